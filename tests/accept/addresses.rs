//! Where fdaccept listens: every form of address, socket options, and what it says of them.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::support::*;
use fdtools::queue;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, VsockAddr, getsockopt, setsockopt, socket,
    socketpair, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// `fdaccept` with these arguments, in front of a pool of `cat`s.
fn cat_behind(arguments: &[&str]) -> Process {
    serve(arguments, &["cat"])
}

/// The same with another handler.
fn serve(arguments: &[&str], handler: &[&str]) -> Process {
    let mut command = program("fdaccept");
    command.args(arguments).args(["--", "fdpool", "2", "--"]);
    Process::start(command.args(handler))
}

/// What `fdaccept` with these arguments fails with, at status 1.
#[track_caller]
fn error_of(arguments: &[&str]) -> String {
    let (status, _, stderr) = run(program("fdaccept").args(arguments));
    assert_eq!(status, Some(1), "{stderr}");
    stderr
}

/// Checks that a client of `address` gets its own bytes back.
#[track_caller]
fn echoes(address: impl Into<SocketAddr>) {
    let address = address.into();
    let mut client = TcpStream::connect_timeout(&address, DEADLINE).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.write_all(b"hello").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    expect_hello(client);
}

#[track_caller]
fn echoes_on_unix(mut client: UnixStream) {
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.write_all(b"hello").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    expect_hello(client);
}

#[track_caller]
fn expect_hello(mut client: impl Read) {
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "hello");
}

fn is_refused(address: SocketAddr) -> bool {
    match TcpStream::connect_timeout(&address, DEADLINE) {
        Ok(_) => false,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
    }
}

/// Whether something is so, once in five times: the port that one address got may by chance be
/// another test's at the other address.
fn repeatedly(mut is_so: impl FnMut() -> bool) -> bool {
    (0..5).any(|_| is_so())
}

/// Says that this machine lacks what a test is about.
fn lacks(what: &str) {
    eprintln!("skipped: this machine has no {what}");
}

fn has_ipv6() -> bool {
    TcpListener::bind("[::1]:0").is_ok()
}

/// A name in the abstract namespace that no other test has.
fn abstract_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("fdtools-test-addresses-{}-{number}", std::process::id())
}

fn connect_abstract(name: &str) -> UnixStream {
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
    UnixStream::connect_addr(&address).unwrap()
}

/// `fdaccept` whose queue ends in this process.
struct Straight {
    process: Process,
    queue: OwnedFd,
}

impl Straight {
    fn start(arguments: &[&str]) -> Self {
        let (queue, other) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        let deadline = TimeVal::seconds(DEADLINE.as_secs() as i64);
        setsockopt(&queue, sockopt::ReceiveTimeout, &deadline).unwrap();
        let process = Process::start(program("fdaccept").args(arguments).stdout(other));
        Self { process, queue }
    }

    /// The next connection.
    #[track_caller]
    fn receive(&self) -> OwnedFd {
        let mut message = queue::receive(&self.queue).unwrap();
        assert_eq!(message.descriptors.len(), 1);
        message.descriptors.pop().unwrap()
    }
}

/// A connection as it comes out of the queue of an `fdaccept` with these arguments and
/// `127.0.0.1:0`.
#[track_caller]
fn accepted_with(arguments: &[&str]) -> OwnedFd {
    let mut straight = Straight::start(&[arguments, &["127.0.0.1:0"]].concat());
    let _client = connect(straight.process.port());
    straight.receive()
}

#[test]
fn a_bare_port_serves_both_families() {
    let mut process = cat_behind(&["0"]);
    let line = process.listening();
    let port: u16 = line.rsplit_once(':').unwrap().1.parse().unwrap();
    echoes(([127, 0, 0, 1], port));
    if has_ipv6() {
        assert_eq!(line, format!("[::]:{port}"));
        echoes((IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]), port));
    } else {
        lacks("IPv6");
    }
}

#[test]
fn an_ipv4_address_is_served() {
    let mut process = cat_behind(&["127.0.0.1:0"]);
    let address: SocketAddr = process.listening().parse().unwrap();
    assert_eq!(address.ip(), IpAddr::from([127, 0, 0, 1]));
    assert_ne!(address.port(), 0);
    echoes(address);
}

#[test]
fn another_address_of_the_loopback_network_is_served_alone() {
    let alone = || {
        let mut process = cat_behind(&["127.8.7.6:0"]);
        let address: SocketAddr = process.listening().parse().unwrap();
        echoes(address);
        is_refused(SocketAddr::from(([127, 0, 0, 1], address.port())))
    };
    assert!(repeatedly(alone));
}

#[test]
fn an_ipv6_address_is_served() {
    if !has_ipv6() {
        return lacks("IPv6");
    }
    let mut process = cat_behind(&["[::1]:0"]);
    let address: SocketAddr = process.listening().parse().unwrap();
    assert!(address.is_ipv6() && address.ip().is_loopback());
    echoes(address);
}

#[test]
fn every_address_of_a_host_is_served_on_the_same_port() {
    let mut process = cat_behind(&["localhost:0"]);
    let resolved: BTreeSet<_> = ("localhost", 0)
        .to_socket_addrs()
        .unwrap()
        .map(|address| address.ip())
        .filter(|ip| TcpListener::bind((*ip, 0)).is_ok())
        .collect();
    let listening: Vec<SocketAddr> = resolved
        .iter()
        .map(|_| process.listening().parse().unwrap())
        .collect();
    let ips: BTreeSet<_> = listening.iter().map(|address| address.ip()).collect();
    let ports: BTreeSet<_> = listening.iter().map(|address| address.port()).collect();
    assert_eq!(ips, resolved);
    assert_eq!(ports.len(), 1);
    listening.into_iter().for_each(echoes);
}

#[test]
fn several_addresses_share_one_queue() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let name = abstract_name();
    let at_name = format!("@{name}");
    let path = path.to_str().unwrap();
    let mut process = cat_behind(&["127.0.0.1:0", path, "127.0.0.1:0", &at_name]);
    // In the order in which they were given.
    let first: SocketAddr = process.listening().parse().unwrap();
    assert_eq!(process.listening(), path);
    let second: SocketAddr = process.listening().parse().unwrap();
    assert_eq!(process.listening(), at_name);
    assert_ne!(first, second);
    for _ in 0..3 {
        echoes(first);
        echoes_on_unix(connect_unix(path));
        echoes(second);
        echoes_on_unix(connect_abstract(&name));
    }
}

#[test]
fn a_path_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let mut process = cat_behind(&[path.to_str().unwrap()]);
    assert_eq!(process.listening(), path.to_str().unwrap());
    echoes_on_unix(connect_unix(&path));
}

#[test]
fn a_relative_path_is_served() {
    let dir = tempfile::tempdir().unwrap();
    for text in ["./8888", "../a/s"] {
        let inside = dir.path().join("a");
        std::fs::create_dir_all(&inside).unwrap();
        let mut command = program("fdaccept");
        command.args([text, "--", "fdpool", "1", "--", "cat"]);
        let mut process = Process::start(command.current_dir(&inside));
        assert_eq!(process.listening(), text);
        echoes_on_unix(connect_unix(inside.join(text)));
    }
}

#[test]
fn an_abstract_name_is_served() {
    let name = abstract_name();
    let mut process = cat_behind(&[&format!("@{name}")]);
    assert_eq!(process.listening(), format!("@{name}"));
    echoes_on_unix(connect_abstract(&name));
}

#[test]
fn a_link_local_address_has_its_interface() {
    let missing = error_of(&["[fe80::1]:0%fdtools-none"]);
    assert_eq!(
        missing,
        "fdaccept: cannot bind [fe80::1]:0%fdtools-none: No such device"
    );
    // The loopback interface has no such address.
    let cause = if has_ipv6() {
        "Cannot assign requested address"
    } else {
        "Address family not supported by protocol"
    };
    let wrong = error_of(&["[fe80::1]:0%lo"]);
    assert_eq!(
        wrong,
        format!("fdaccept: cannot bind [fe80::1]:0%lo: {cause}")
    );
    let Some((ip, interface)) = link_local() else {
        return lacks("link-local address");
    };
    let mut process = cat_behind(&[&format!("[{ip}]:0%{interface}")]);
    let line = process.listening();
    let (address, shown) = line.rsplit_once('%').unwrap();
    assert_eq!(shown, interface);
    let SocketAddr::V6(mut address) = address.parse().unwrap() else {
        panic!("{line}")
    };
    let index = nix::net::if_::if_nametoindex(interface.as_str()).unwrap();
    address.set_scope_id(index);
    echoes(address);
}

/// A link-local address of this machine that can be bound, and its interface.
fn link_local() -> Option<(std::net::Ipv6Addr, String)> {
    let text = std::fs::read_to_string("/proc/net/if_inet6").ok()?;
    text.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let ip = std::net::Ipv6Addr::from(u128::from_str_radix(words[0], 16).ok()?);
        let scope = u32::from_str_radix(words[1], 16).ok()?;
        let address = std::net::SocketAddrV6::new(ip, 0, 0, scope);
        let usable = ip.is_unicast_link_local() && TcpListener::bind(address).is_ok();
        usable.then(|| (ip, words[5].to_owned()))
    })
}

#[test]
fn a_vsock_address_is_served_where_there_is_any() {
    let mut process = cat_behind(&["vsock::0"]);
    let line = process.line("vsock:");
    if line.contains("cannot") {
        let prefix = "fdaccept: cannot bind vsock::0: ";
        assert!(line.starts_with(prefix), "{line}");
        assert_eq!(process.wait().code(), Some(1));
        return lacks("vsock");
    }
    let port = line.strip_prefix("fdaccept: listening on vsock::").unwrap();
    let port: u32 = port.parse().unwrap();
    assert_ne!(port, 0);
    // VMADDR_CID_LOCAL, vsock(7).
    let flags = SockFlag::SOCK_CLOEXEC;
    let client = socket(AddressFamily::Vsock, SockType::Stream, flags, None).unwrap();
    let address = VsockAddr::new(1, port);
    if nix::sys::socket::connect(client.as_raw_fd(), &address).is_err() {
        return lacks("vsock that leads back to itself");
    }
    echoes_on_unix(UnixStream::from(client));
}

#[test]
fn a_vsock_address_that_cannot_be_had_is_an_error() {
    // 7 is no context id of this machine, unless it is a guest that happens to have it.
    let error = error_of(&["vsock:7:1234"]);
    let prefix = "fdaccept: cannot bind vsock:7:1234: ";
    assert!(error.starts_with(prefix), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn a_port_that_is_in_use_is_an_error() {
    let mut first = cat_behind(&["127.0.0.1:0"]);
    let address = first.listening();
    let in_use = format!("fdaccept: cannot bind {address}: Address already in use");
    assert_eq!(error_of(&[&address]), in_use);
    assert_eq!(error_of(&[&address, "--", "cat"]), in_use);
    // None of the others is said to listen, since none does in the end.
    assert_eq!(error_of(&["127.0.0.1:0", &address]), in_use);
    echoes(address.parse::<SocketAddr>().unwrap());
}

#[test]
fn a_unix_address_that_is_in_use_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let at_name = format!("@{}", abstract_name());
    for address in [path.to_str().unwrap(), &at_name] {
        let mut first = cat_behind(&[address]);
        first.listening();
        let in_use = format!("fdaccept: cannot bind {address}: Address already in use");
        assert_eq!(error_of(&[address]), in_use);
    }
}

#[test]
fn one_bad_address_takes_the_others_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    error_of(&[path.to_str().unwrap(), "192.0.2.1:0"]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn an_address_of_another_machine_is_an_error() {
    // TEST-NET-1 of RFC 5737 is nobody's.
    assert_eq!(
        error_of(&["192.0.2.1:0"]),
        "fdaccept: cannot bind 192.0.2.1:0: Cannot assign requested address"
    );
}

#[test]
fn a_port_without_permission_is_an_error() {
    if !root() {
        return;
    }
    let first_free = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    if first_free.is_ok_and(|port| port.trim().parse::<u32>().unwrap() <= 80) {
        return lacks("privileged port 80");
    }
    let dir = tempfile::tempdir().unwrap();
    let fdaccept = for_everybody("fdaccept", dir.path());
    let mut command = Command::new(fdaccept);
    command.arg("127.0.0.1:80").uid(65534).gid(65534);
    let (status, _, stderr) = run(&mut command);
    assert_eq!(
        stderr,
        "fdaccept: cannot bind 127.0.0.1:80: Permission denied"
    );
    assert_eq!(status, Some(1));
}

/// A copy of one of the programs that every user can execute, wherever the build is.
fn for_everybody(name: &str, dir: &Path) -> std::path::PathBuf {
    std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
    // Another process writes it, as in `executable`.
    let mut copy = Command::new("cp");
    let copied = copy.arg(bin_dir().join(name)).arg(dir).status();
    assert!(copied.unwrap().success());
    dir.join(name)
}

#[test]
fn a_name_that_does_not_resolve_is_an_error() {
    let error = error_of(&["no-such-host.invalid:80"]);
    let prefix = "fdaccept: cannot resolve no-such-host.invalid: ";
    assert!(error.starts_with(prefix), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn a_path_in_no_directory_is_an_error() {
    assert_eq!(
        error_of(&["/no/such/directory/s"]),
        "fdaccept: cannot bind /no/such/directory/s: No such file or directory"
    );
}

/// The kernel holds one more connection than the backlog says.
#[test]
fn the_backlog_is_as_long_as_was_asked() {
    for backlog in [0, 3, 20] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let option = format!("--backlog={backlog}");
        let mut process = cat_behind(&[&option, path.to_str().unwrap()]);
        process.listening();
        process.signal(Signal::SIGSTOP);
        until("the stop", || state(process.pid()) == Some('T'));
        let mut waiting = Vec::new();
        let full = loop {
            match connect_without_waiting(&path) {
                Ok(client) => waiting.push(client),
                Err(errno) => break errno,
            }
        };
        assert_eq!((waiting.len(), full), (backlog + 1, Errno::EAGAIN));
    }
}

fn connect_without_waiting(path: &Path) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let client = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    nix::sys::socket::connect(client.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(client)
}

#[test]
fn the_backlog_is_the_kernels_maximum_by_default() {
    let Some(ss) = peer("ss") else { return };
    let backlog = |arguments: &[&str]| -> u32 {
        let mut process = cat_behind(arguments);
        let filter = format!("sport = :{}", process.port());
        let (_, listed, _) = run(Command::new(&ss).args(["-Hltn", &filter]));
        let words: Vec<_> = listed.split_whitespace().collect();
        assert_eq!(words.first(), Some(&"LISTEN"), "{listed}");
        words[2].parse().unwrap()
    };
    let maximum = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let maximum: u32 = maximum.trim().parse().unwrap();
    assert_eq!(backlog(&["127.0.0.1:0"]), maximum);
    assert_eq!(backlog(&["--backlog=4294967295", "127.0.0.1:0"]), maximum);
    assert_eq!(backlog(&["--backlog=7", "127.0.0.1:0"]), 7);
}

#[test]
fn nodelay_is_set_on_what_is_accepted() {
    let nodelay =
        |arguments: &[&str]| getsockopt(&accepted_with(arguments), sockopt::TcpNoDelay).unwrap();
    assert!(nodelay(&["-o", "nodelay"]));
    assert!(nodelay(&["--option=nodelay=1"]));
    assert!(!nodelay(&[]));
    // The last one counts.
    assert!(!nodelay(&["-o", "nodelay", "-o", "nodelay=0"]));
}

#[test]
fn keepalive_is_set_on_what_is_accepted() {
    let connection = accepted_with(&["-o", "keepalive=7"]);
    assert!(getsockopt(&connection, sockopt::KeepAlive).unwrap());
    assert_eq!(getsockopt(&connection, sockopt::TcpKeepIdle).unwrap(), 7);
    let default = getsockopt(&accepted_with(&[]), sockopt::TcpKeepIdle).unwrap();
    let connection = accepted_with(&["-o", "keepalive"]);
    assert!(getsockopt(&connection, sockopt::KeepAlive).unwrap());
    assert_eq!(
        getsockopt(&connection, sockopt::TcpKeepIdle).unwrap(),
        default
    );
    let connection = accepted_with(&[]);
    assert!(!getsockopt(&connection, sockopt::KeepAlive).unwrap());
}

#[test]
fn buffer_sizes_are_set_on_what_is_accepted() {
    let options = ["-o", "rcvbuf=30000", "-o", "sndbuf=20000"];
    let connection = accepted_with(&options);
    // The kernel doubles them, socket(7).
    assert_eq!(getsockopt(&connection, sockopt::RcvBuf).unwrap(), 60000);
    assert_eq!(getsockopt(&connection, sockopt::SndBuf).unwrap(), 40000);
}

#[test]
fn an_option_is_set_where_it_applies() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let arguments = ["-o", "nodelay", path.to_str().unwrap(), "127.0.0.1:0"];
    let mut straight = Straight::start(&arguments);
    straight.process.listening();
    let _client = connect(straight.process.port());
    let connection = straight.receive();
    assert!(getsockopt(&connection, sockopt::TcpNoDelay).unwrap());
    let _client = connect_unix(&path);
    straight.receive();
}

#[test]
fn v6only_leaves_ipv4_to_others() {
    if !has_ipv6() {
        return lacks("IPv6");
    }
    let alone = || {
        let mut process = cat_behind(&["-o", "v6only", "0"]);
        let port = process.port();
        echoes((IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]), port));
        is_refused(SocketAddr::from(([127, 0, 0, 1], port)))
    };
    assert!(repeatedly(alone));
    // Also where the kernel's default is otherwise.
    let mut both = cat_behind(&["-o", "v6only=0", "[::]:0"]);
    echoes(([127, 0, 0, 1], both.port()));
}

#[test]
fn reuseport_shares_a_port_among_fdaccepts() {
    let options = ["-o", "reuseport"];
    let mut one = serve(&[&options[..], &["127.0.0.1:0"]].concat(), &["echo", "one"]);
    let address = one.listening();
    let mut two = serve(&[&options[..], &[&address]].concat(), &["echo", "two"]);
    assert_eq!(two.listening(), address);
    let port = address.rsplit_once(':').unwrap().1.parse().unwrap();
    // The kernel chooses by the client's port.
    let mut answers = BTreeSet::new();
    until("an answer of each", || {
        answers.insert(exchange(port, b""));
        answers.len() == 2
    });
    let error = error_of(&[&address]);
    assert!(error.ends_with("Address already in use"), "{error}");
}

#[test]
fn freebind_binds_an_address_that_is_not_there_yet() {
    let mut process = cat_behind(&["-o", "freebind", "192.0.2.1:0"]);
    let address: SocketAddr = process.listening().parse().unwrap();
    assert_eq!(address.ip(), IpAddr::from([192, 0, 2, 1]));
    assert_ne!(address.port(), 0);
}

#[test]
fn a_unix_listener_has_the_mode_that_was_asked() {
    // Whatever the umask is.
    for umask in ["000", "077"] {
        for (option, expected) in [("", 0o600), ("--mode 666", 0o666), ("--mode=0770", 0o770)] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("s");
            let text = format!("umask {umask}; exec fdaccept {option} \"$0\" -- fdpool 1 cat");
            let mut process = Process::start(script("sh", &text).arg(&path));
            process.listening();
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, expected, "{option} {umask}");
            // What it starts has the umask as it was.
            let pool = eventually("the pool", || children(process.pid()).pop());
            let status = std::fs::read_to_string(format!("/proc/{pool}/status")).unwrap();
            assert!(status.contains(&format!("Umask:\t0{umask}")), "{status}");
        }
    }
}

#[test]
fn a_mode_keeps_others_out() {
    if !root() {
        return;
    }
    for (option, may) in [("--mode=600", false), ("--mode=666", true)] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let path = dir.path().join("s");
        let mut process = cat_behind(&[option, path.to_str().unwrap()]);
        process.listening();
        // A shell cannot connect, but it can tell whether it may: connect(2) asks for writing.
        let mut command = script("sh", "test -w \"$0\"");
        let status = command.arg(&path).uid(65534).gid(65534).status().unwrap();
        assert_eq!(status.success(), may);
    }
}

#[test]
fn there_is_one_line_for_each_listener_and_no_other() {
    let mut process = cat_behind(&["127.0.0.1:0", "127.0.0.1:0"]);
    let (one, two) = (process.port(), process.port());
    assert_ne!(one, two);
    for port in [one, two] {
        assert_eq!(exchange(port, b"x"), b"x");
    }
    process.signal(Signal::SIGTERM);
    let (status, log) = process.finish();
    let lines = besides_counters(&log);
    assert_eq!((status.code(), lines.len()), (Some(0), 2), "{log}");
    assert!(
        lines
            .iter()
            .all(|line| line.starts_with("fdaccept: listening on 127.0.0.1:"))
    );
}

#[test]
fn quiet_says_nothing_of_what_goes_well() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let mut process = cat_behind(&["-q", path.to_str().unwrap()]);
    let client = eventually("the listener", || UnixStream::connect(&path).ok());
    echoes_on_unix(client);
    process.signal(Signal::SIGTERM);
    let (status, log) = process.finish();
    assert_eq!((status.code(), log.as_str()), (Some(0), ""));
    // Errors are said all the same.
    assert!(error_of(&["-q", "192.0.2.1:0"]).starts_with("fdaccept: cannot bind"));
}

#[test]
fn verbose_logs_each_connection_that_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let mut process = cat_behind(&["-v", "127.0.0.1:0", path.to_str().unwrap()]);
    let address = process.listening();
    process.listening();
    for _ in 0..2 {
        echoes(address.parse::<SocketAddr>().unwrap());
        let line = process.line("accepted");
        assert_eq!(line, format!("fdaccept: accepted 127.0.0.1 on {address}"));
    }
    echoes_on_unix(connect_unix(&path));
    let line = process.line("accepted");
    assert!(line.ends_with(&format!("on {}", path.display())), "{line}");
}

#[test]
fn a_client_is_told_as_what_it_is() {
    let variables = "echo $PROTO $TCPREMOTEIP $TCPREMOTEPORT $TCPLOCALIP $TCPLOCALPORT";
    let mut process = serve(&["0"], &["sh", "-c", variables]);
    let mut client = connect(process.port());
    let (here, there) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    // Not as ::ffff:127.0.0.1, though the socket has both families.
    let expected = format!("TCP 127.0.0.1 {} 127.0.0.1 {}\n", here.port(), there.port());
    assert_eq!(answer, expected);
}

#[test]
fn clients_that_are_gone_before_they_are_accepted_do_no_harm() {
    let mut process = cat_behind(&["127.0.0.1:0"]);
    let address: SocketAddr = process.listening().parse().unwrap();
    process.signal(Signal::SIGSTOP);
    until("the stop", || state(process.pid()) == Some('T'));
    for number in 0..20 {
        let client = connect(address.port());
        if number % 2 == 0 {
            // Closing it then is a reset.
            let at_once = nix::libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            setsockopt(&client, sockopt::Linger, &at_once).unwrap();
        }
    }
    process.signal(Signal::SIGCONT);
    for _ in 0..3 {
        echoes(address);
    }
    assert!(!process.log().contains("cannot"), "{}", process.log());
}

#[test]
fn what_is_accepted_can_be_used_as_it_is() {
    let mut straight = Straight::start(&["127.0.0.1:0"]);
    let mut client = connect(straight.process.port());
    let mut server = TcpStream::from(straight.receive());
    let flags = nix::fcntl::fcntl(server.as_fd(), nix::fcntl::FcntlArg::F_GETFL).unwrap();
    let flags = nix::fcntl::OFlag::from_bits_retain(flags);
    assert!(!flags.contains(nix::fcntl::OFlag::O_NONBLOCK));
    server.write_all(b"hello").unwrap();
    drop(server);
    // No copy is left behind.
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "hello");
}
