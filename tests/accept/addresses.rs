//! Where fdaccept listens: every form of address, socket options, and its messages about them.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::support::*;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, VsockAddr, setsockopt, socket, sockopt,
};

const IPV6_LOOPBACK: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// fdaccept at these addresses, in front of a pool of `cat`s.
fn cats_at(addresses: &str) -> Acceptor {
    let addresses = addresses.split(' ');
    addresses.fold(Fdaccept::cats(), Fdaccept::listen).start()
}

/// The first address.
fn address_of(acceptor: &Acceptor) -> SocketAddr {
    acceptor.addresses[0].parse().unwrap()
}

/// The message of an fdaccept that fails with status 1.
#[track_caller]
fn error_of(arguments: &str) -> String {
    let (status, _, stderr) = run(program("fdaccept").args(arguments.split(' ')));
    assert_eq!(status, Some(1), "{stderr}");
    stderr
}

/// Checks that fdaccept cannot bind this address, with this message.
#[track_caller]
fn cannot_bind(address: &str, cause: &str) {
    let expected = format!("fdaccept: cannot bind {address}: {cause}");
    assert_eq!(error_of(address), expected);
}

/// Checks that a client of `address` gets its own bytes back.
#[track_caller]
fn echoes(address: impl Into<SocketAddr>) {
    let client = TcpStream::connect_timeout(&address.into(), DEADLINE).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    Client(client).expect_echo("hello");
}

#[track_caller]
fn echoes_at(path: impl AsRef<Path>) {
    Client::connect_unix(path).expect_echo("hello");
}

fn is_refused(address: impl Into<SocketAddr>) -> bool {
    match TcpStream::connect_timeout(&address.into(), DEADLINE) {
        Ok(_) => false,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
    }
}

/// Whether `is_so` holds once in 5 tries: another test may have the same port at the other address.
fn repeatedly(mut is_so: impl FnMut() -> bool) -> bool {
    (0..5).any(|_| is_so())
}

/// Says that this machine lacks what a test is about.
fn lacks(what: &str) {
    eprintln!("skipped: this machine has no {what}");
}

#[test]
fn a_bare_port_serves_both_families() {
    let acceptor = cats_at("0");
    let port = acceptor.port;
    echoes(([127, 0, 0, 1], port));
    if has_ipv6() {
        assert_eq!(acceptor.addresses, [format!("[::]:{port}")]);
        echoes((IPV6_LOOPBACK, port));
    }
}

#[test]
fn an_ipv4_address_is_served() {
    let acceptor = cats_at(ADDRESS);
    let address = address_of(&acceptor);
    assert_eq!(address.ip(), IpAddr::from([127, 0, 0, 1]));
    assert_ne!(address.port(), 0);
    echoes(address);
}

#[test]
fn another_address_of_the_loopback_network_is_served_alone() {
    assert!(repeatedly(|| {
        let acceptor = cats_at("127.8.7.6:0");
        echoes(address_of(&acceptor));
        is_refused(([127, 0, 0, 1], acceptor.port))
    }));
}

#[test]
fn an_ipv6_address_is_served() {
    needs!(has_ipv6());
    let acceptor = cats_at("[::1]:0");
    let address = address_of(&acceptor);
    assert!(address.is_ipv6() && address.ip().is_loopback());
    echoes(address);
}

#[test]
fn every_address_of_a_host_is_served_on_the_same_port() {
    let mut acceptor = cats_at("localhost:0");
    let resolved = ("localhost", 0).to_socket_addrs().unwrap();
    let ips = resolved.map(|address| address.ip());
    let resolved: BTreeSet<_> = ips
        .filter(|ip| TcpListener::bind((*ip, 0)).is_ok())
        .collect();
    acceptor.hear(resolved.len() - 1);
    let listening = acceptor.addresses.iter();
    let listening: Vec<SocketAddr> = listening.map(|text| text.parse().unwrap()).collect();
    let ips: BTreeSet<_> = listening.iter().map(SocketAddr::ip).collect();
    let ports: BTreeSet<_> = listening.iter().map(SocketAddr::port).collect();
    assert_eq!(ips, resolved);
    assert_eq!(ports.len(), 1);
    listening.into_iter().for_each(echoes);
}

#[test]
fn several_addresses_share_one_queue() {
    let name = Names::new().abstract_name();
    let acceptor = cats_at(&format!("{ADDRESS} ./s {ADDRESS} {name}"));
    let [first, path, second, shown] = &acceptor.addresses[..] else {
        panic!("{:?}", acceptor.addresses)
    };
    assert_eq!((&**path, shown), ("./s", &name));
    let [first, second]: [SocketAddr; 2] = [first, second].map(|text| text.parse().unwrap());
    assert_ne!(first, second);
    for _ in 0..3 {
        echoes(first);
        echoes_at(acceptor.names.file("s"));
        echoes(second);
        echoes_at(&name);
    }
}

#[test]
fn a_path_is_served() {
    let fdaccept = Fdaccept::cats();
    let path = fdaccept.names.text("socket");
    let acceptor = fdaccept.listen(&path).start();
    assert_eq!(acceptor.addresses, [&*path]);
    echoes_at(path);
}

#[test]
fn a_relative_path_is_served() {
    for text in ["./8888", "../a/s"] {
        let names = Names::new();
        let inside = names.file("a");
        std::fs::create_dir(&inside).unwrap();
        let acceptor = Fdaccept::cats().dir(&inside).listen(text).start();
        assert_eq!(acceptor.addresses, [text]);
        echoes_at(inside.join(text));
    }
}

#[test]
fn an_abstract_name_is_served() {
    let name = Names::new().abstract_name();
    let acceptor = cats_at(&name);
    assert_eq!(acceptor.addresses, [&*name]);
    echoes_at(&name);
}

#[test]
fn a_link_local_address_has_its_interface() {
    cannot_bind("[fe80::1]:0%fdtools-none", "No such device");
    // The loopback interface has no such address.
    let cause = match has_ipv6() {
        true => "Cannot assign requested address",
        false => "Address family not supported by protocol",
    };
    cannot_bind("[fe80::1]:0%lo", cause);
    let Some((ip, interface)) = link_local() else {
        return lacks("link-local address");
    };
    let acceptor = cats_at(&format!("[{ip}]:0%{interface}"));
    let (address, shown) = acceptor.addresses[0].rsplit_once('%').unwrap();
    assert_eq!(shown, interface);
    let mut address: SocketAddrV6 = address.parse().unwrap();
    let index = nix::net::if_::if_nametoindex(interface.as_str()).unwrap();
    address.set_scope_id(index);
    echoes(address);
}

/// A link-local address of this machine that can be bound, and its interface.
fn link_local() -> Option<(Ipv6Addr, String)> {
    let text = std::fs::read_to_string("/proc/net/if_inet6").ok()?;
    text.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let ip = Ipv6Addr::from(u128::from_str_radix(words[0], 16).ok()?);
        let scope = u32::from_str_radix(words[1], 16).ok()?;
        let address = SocketAddrV6::new(ip, 0, 0, scope);
        let usable = ip.is_unicast_link_local() && TcpListener::bind(address).is_ok();
        usable.then(|| (ip, words[5].to_owned()))
    })
}

#[test]
fn a_vsock_address_is_served_where_there_is_any() {
    let mut process = Fdaccept::cats().listen("vsock::0").spawn();
    let line = process.line("vsock:");
    if line.contains("cannot") {
        let prefix = "fdaccept: cannot bind vsock::0: ";
        assert!(line.starts_with(prefix), "{line}");
        process.expect_exit(1);
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
    let client = UnixStream::from(client);
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    Client(client).expect_echo("hello");
}

#[track_caller]
fn is_one_line(address: &str, problem: &str) {
    let error = error_of(address);
    let prefix = format!("fdaccept: {problem}: ");
    assert!(error.starts_with(&prefix), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

cases! {
    is_one_line;
    // This machine has another context id than 7, unless it is a guest with just that.
    a_vsock_address_that_cannot_be_had_is_an_error: "vsock:7:1234", "cannot bind vsock:7:1234";
    a_name_that_does_not_resolve_is_an_error:
        "no-such-host.invalid:80", "cannot resolve no-such-host.invalid";
}

#[test]
fn a_port_that_is_in_use_is_an_error() {
    let first = cats_at(ADDRESS);
    let address = &first.addresses[0];
    let expected = format!("fdaccept: cannot bind {address}: Address already in use");
    // Where one of 2 addresses fails, fdaccept reports neither as listening.
    for arguments in [
        address.clone(),
        format!("{address} -- cat"),
        format!("{ADDRESS} {address}"),
    ] {
        assert_eq!(error_of(&arguments), expected);
    }
    echoes(address_of(&first));
}

#[test]
fn the_wildcards_of_both_families_share_a_port_in_any_order() {
    needs!(has_ipv6());
    let (_reserved, port) = reserve_port();
    let [v4, v6] = ["0.0.0.0", "[::]"].map(|ip| format!("{ip}:{port}"));
    for addresses in [[&v4, &v6], [&v6, &v4]] {
        let acceptor = cats_at(&format!("{} {}", addresses[0], addresses[1]));
        assert_eq!(acceptor.addresses.iter().collect::<Vec<_>>(), addresses);
        echoes(([127, 0, 0, 1], port));
        echoes((IPV6_LOOPBACK, port));
    }
    // IPv4 may be an inherited listener's.
    let inherited = TcpListener::bind(&v4).unwrap();
    let acceptor = Fdaccept::cats()
        .listen(&v6)
        .listen("fd:0")
        .stdin(OwnedFd::from(inherited));
    let _acceptor = acceptor.start();
    echoes(([127, 0, 0, 1], port));
    echoes((IPV6_LOOPBACK, port));
}

#[test]
fn an_ipv6_wildcard_alone_still_has_ipv4() {
    needs!(has_ipv6());
    let free = Fdaccept::cats().listen("[::]:0").options("-o v6only=0");
    echoes(([127, 0, 0, 1], free.start().port));
    // Free ports are different ones.
    let acceptor = Fdaccept::cats()
        .listen("0.0.0.0:0")
        .listen("[::]:0")
        .start();
    let [v4, v6] = acceptor.ports[..] else {
        panic!("{:?}", acceptor.ports)
    };
    assert_ne!(v4, v6);
}

#[test]
fn addresses_in_each_others_way_name_each_other() {
    needs!(has_ipv6());
    let (_reserved, port) = reserve_port();
    for (options, one, other) in [
        ("", "P", "127.0.0.1:P"),
        ("", "P", "P"),
        ("", "P", "[::1]:P"),
        ("", "P", "0.0.0.0:P"),
        ("", "0.0.0.0:P", "127.0.0.1:P"),
        ("", "[::]:P", "127.0.0.1:P"),
        ("", "127.0.0.1:P", "127.0.0.1:P"),
        ("-o v6only=0 ", "0.0.0.0:P", "[::]:P"),
        ("-o v6only=0 ", "127.0.0.1:P", "[::ffff:127.0.0.1]:P"),
        ("", "./s", "./s"),
        ("", "@fdtools-test-twice", "@fdtools-test-twice"),
    ] {
        let [one, other] = [one, other].map(|text| text.replace('P', &port.to_string()));
        for (first, second) in [(&one, &other), (&other, &one)] {
            let in_directory = Fdaccept::plain().options(options).args(["--bind", "./q"]);
            let log = in_directory.listen(first).listen(second).fails(1);
            // A port alone shows as the wildcard that it is.
            let shown = second.parse::<u16>().map(|port| format!("[::]:{port}"));
            let shown = shown.as_ref().unwrap_or(second);
            let cause = format!("Address already in use ({first} on this command line has it)");
            assert_eq!(log, format!("fdaccept: cannot bind {shown}: {cause}"));
        }
    }
    // Another process is in the way, and nothing of the command line.
    let _other = TcpListener::bind(("127.0.0.2", port)).unwrap();
    let arguments = format!("127.0.0.1:{port} 127.0.0.2:{port}");
    let expected = format!("fdaccept: cannot bind 127.0.0.2:{port}: Address already in use");
    assert_eq!(error_of(&arguments), expected);
}

#[test]
fn a_unix_address_that_is_in_use_is_an_error() {
    let names = Names::new();
    for address in names.both() {
        let _first = cats_at(&address);
        cannot_bind(&address, "Address already in use");
    }
}

#[test]
fn one_bad_address_takes_the_others_with_it() {
    let names = Names::new();
    error_of(&format!("{} 192.0.2.1:0", names.path()));
    assert!(names.is_empty());
}

cases! {
    cannot_bind;
    // TEST-NET-1 of RFC 5737: no machine has it.
    an_address_of_another_machine_is_an_error: "192.0.2.1:0", "Cannot assign requested address";
    a_path_in_no_directory_is_an_error: "/no/such/directory/s", "No such file or directory";
}

#[test]
fn a_port_without_permission_is_an_error() {
    needs!(root());
    let first_free = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    if first_free.is_ok_and(|port| port.trim().parse::<u32>().unwrap() <= 80) {
        return lacks("privileged port 80");
    }
    assert_eq!(
        Fdaccept::by(NOBODY).listen("127.0.0.1:80").fails(1),
        "fdaccept: cannot bind 127.0.0.1:80: Permission denied"
    );
}

/// The kernel holds one more connection than the backlog says.
#[test]
fn the_backlog_is_as_long_as_was_asked() {
    for backlog in [0, 3, 20] {
        let fdaccept = Fdaccept::cats().listen("./s");
        let acceptor = fdaccept.options(&format!("--backlog={backlog}")).start();
        acceptor.freeze();
        let mut waiting = Vec::new();
        let full = loop {
            match connect_without_waiting(&acceptor.names.file("s")) {
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
    let ss = needs!(peer("ss"));
    let backlog = |options: &str| -> u32 {
        let acceptor = Fdaccept::cats().options(options).start();
        let filter = format!("sport = :{}", acceptor.port);
        let (_, listed, _) = run(Command::new(&ss).args(["-Hltn", &filter]));
        let words: Vec<_> = listed.split_whitespace().collect();
        assert_eq!(words.first(), Some(&"LISTEN"), "{listed}");
        words[2].parse().unwrap()
    };
    let maximum = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let maximum: u32 = maximum.trim().parse().unwrap();
    assert_eq!(backlog(""), maximum);
    assert_eq!(backlog("--backlog=4294967295"), maximum);
    assert_eq!(backlog("--backlog=7"), 7);
}

#[test]
fn v6only_leaves_ipv4_to_others() {
    needs!(has_ipv6());
    assert!(repeatedly(|| {
        let acceptor = Fdaccept::cats().options("-o v6only").listen("0").start();
        echoes((IPV6_LOOPBACK, acceptor.port));
        is_refused(([127, 0, 0, 1], acceptor.port))
    }));
    // Also where the kernel's default is 1.
    let both = Fdaccept::cats().options("-o v6only=0").listen("[::]:0");
    echoes(([127, 0, 0, 1], both.start().port));
}

#[test]
fn reuseport_shares_a_port_among_fdaccepts() {
    let sharing = |handler| Fdaccept::pool(handler).options("-o reuseport");
    let one = sharing("echo one").start();
    let two = sharing("echo two").listen(&one.addresses[0]).start();
    assert_eq!(two.addresses, one.addresses);
    // The kernel chooses by the client's port.
    let mut answers = BTreeSet::new();
    until("an answer of each", || {
        answers.insert(exchange(one.port, b""));
        answers.len() == 2
    });
    let error = error_of(&one.addresses[0]);
    assert!(error.ends_with("Address already in use"), "{error}");
}

#[test]
fn freebind_binds_an_address_that_is_not_there_yet() {
    let fdaccept = Fdaccept::cats().options("-o freebind");
    let address = address_of(&fdaccept.listen("192.0.2.1:0").start());
    assert_eq!(address.ip(), IpAddr::from([192, 0, 2, 1]));
    assert_ne!(address.port(), 0);
}

#[test]
fn a_unix_listener_has_the_mode_that_was_asked() {
    // The umask does not matter.
    for umask in ["000", "077"] {
        for (option, expected) in [("", 0o600), ("--mode 666", 0o666), ("--mode=0770", 0o770)] {
            let text = format!("umask {umask}; exec fdaccept {option} ./s -- fdpool 1 cat");
            let acceptor = Fdaccept::sh(&text).start();
            let meta = std::fs::metadata(acceptor.names.file("s")).unwrap();
            let mode = meta.permissions().mode() & 0o7777;
            assert_eq!(mode, expected, "{option} {umask}");
            // The command keeps the umask.
            let pool = eventually("the pool", || acceptor.children().pop());
            assert_eq!(status_field(pool, "Umask"), format!("0{umask}"));
        }
    }
}

#[test]
fn a_mode_keeps_others_out() {
    needs!(root());
    for (option, may) in [("--mode=600", false), ("--mode=666", true)] {
        let acceptor = Fdaccept::cats().open().arg(option).listen("./s").start();
        // A shell cannot connect, but it can tell whether it may: connect(2) asks for writing.
        let mut command = script("sh", "test -w \"$0\"");
        command.arg(acceptor.names.file("s"));
        assert_eq!(succeeds(command.uid(NOBODY).gid(NOBODY)), may);
    }
}

#[test]
fn there_is_one_line_for_each_listener_and_no_other() {
    let mut acceptor = cats_at(&format!("{ADDRESS} {ADDRESS}"));
    let [one, two] = acceptor.ports[..] else {
        panic!("{:?}", acceptor.ports)
    };
    assert_ne!(one, two);
    for port in [one, two] {
        assert_eq!(exchange(port, b"x"), b"x");
    }
    let log = acceptor.stop();
    let lines = besides_counters(&log);
    assert_eq!(lines.len(), 2, "{log}");
    let start = "fdaccept: listening on 127.0.0.1:";
    assert!(lines.iter().all(|line| line.starts_with(start)), "{log}");
}

#[test]
fn quiet_says_nothing_of_what_goes_well() {
    let mut acceptor = Fdaccept::cats().arg("-q").listen("./s").spawn();
    let path = acceptor.names.file("s");
    until("the listener", || UnixStream::connect(&path).is_ok());
    echoes_at(path);
    acceptor.term();
    acceptor.expect_quiet_end();
    // Errors are logged all the same.
    assert!(error_of("-q 192.0.2.1:0").starts_with("fdaccept: cannot bind"));
}

#[test]
fn verbose_logs_each_connection_that_is_accepted() {
    let both = Fdaccept::cats().listen(ADDRESS).listen("./s");
    let mut acceptor = both.arg("-v").start();
    let address = acceptor.addresses[0].clone();
    for _ in 0..2 {
        echoes(address_of(&acceptor));
        let line = acceptor.line("accepted");
        let told = port_told(
            &line,
            "fdaccept: accepted 127.0.0.1",
            &format!(" on {address}"),
        );
        assert!(told.is_some(), "{line}");
    }
    echoes_at(acceptor.names.file("s"));
    let line = acceptor.line("accepted");
    let pid = std::process::id();
    assert!(line.ends_with(&format!(" (pid {pid}) on ./s")), "{line}");
}

#[test]
fn a_client_is_told_as_what_it_is() {
    let variables = "echo $PROTO $TCPREMOTEIP $TCPREMOTEPORT $TCPLOCALIP $TCPLOCALPORT";
    let tell = Fdaccept::pool("sh -c").word(variables);
    let acceptor = tell.listen("0").start();
    let client = acceptor.client();
    // Not as ::ffff:127.0.0.1, though the socket has both families.
    let (here, there) = (client.local_port(), acceptor.port);
    let expected = format!("TCP 127.0.0.1 {here} 127.0.0.1 {there}\n");
    assert_eq!(client.rest(), expected);
}

#[test]
fn clients_that_are_gone_before_they_are_accepted_do_no_harm() {
    let mut acceptor = cats_at(ADDRESS);
    acceptor.at_once(&[], || {
        for number in 0..20 {
            let client = connect(acceptor.port);
            if number % 2 == 0 {
                // close(2) then resets the connection.
                let at_once = nix::libc::linger {
                    l_onoff: 1,
                    l_linger: 0,
                };
                setsockopt(&client, sockopt::Linger, &at_once).unwrap();
            }
        }
    });
    for _ in 0..3 {
        echoes(address_of(&acceptor));
    }
    assert!(!acceptor.log().contains("cannot"), "{}", acceptor.log());
}

#[test]
fn what_is_accepted_can_be_used_as_it_is() {
    let straight = Straight::start(Fdaccept::plain());
    let client = straight.acceptor.client();
    let mut server = TcpStream::from(straight.receive());
    let flags = nix::fcntl::fcntl(server.as_fd(), nix::fcntl::FcntlArg::F_GETFL).unwrap();
    let flags = nix::fcntl::OFlag::from_bits_retain(flags);
    assert!(!flags.contains(nix::fcntl::OFlag::O_NONBLOCK));
    server.write_all(b"hello").unwrap();
    // No copy is left behind.
    drop(server);
    assert_eq!(client.rest(), "hello");
}
