//! What a consumer makes of messages that no fdaccept sends: nothing that they contain crashes
//! it, stays open in it, or gets into a handler's environment that does not belong there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{self, DEADLINE, Process, children, program, until};
use fdtools::queue::send;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::sys::socket::sockopt::{Linger, SndBuf};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect as connect_to, setsockopt, socket,
    socketpair,
};
use nix::unistd::Pid;
use tempfile::TempDir;

/// A handler that tells its environment, line by line, and an empty line at the end.
const TELL: [&str; 3] = ["sh", "-c", "env; echo"];

/// A pool with one slot, and a sender to it.
struct Pool {
    process: Process,
    queue: OwnedFd,
    /// Its own side, where it is a pair whose other side must stay open.
    _dir: Option<TempDir>,
}

impl Pool {
    /// A pool that owns a datagram name.
    fn bound(handler: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let mut command = program("fdpool");
        command.arg("--bind").arg(&path).arg("1").args(handler);
        let process = Process::start(&mut command);
        let queue = sender_to(&path);
        Self::new(process, queue, Some(dir))
    }

    /// A pool whose standard input is one side of a pair.
    fn on_pair(kind: SockType, handler: &[&str]) -> Self {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let mut command = program("fdpool");
        command.arg("1").args(handler).stdin(theirs);
        let process = Process::start(&mut command);
        Self::new(process, ours, None)
    }

    fn new(process: Process, queue: OwnedFd, dir: Option<TempDir>) -> Self {
        setsockopt(&queue, SndBuf, &(1 << 20)).unwrap();
        let pool = Self {
            process,
            queue,
            _dir: dir,
        };
        until("the slot", || children(pool.process.pid()).len() == 1);
        pool
    }

    /// The process that receives.
    fn slot(&self) -> Pid {
        children(self.process.pid())[0]
    }

    fn send(&self, payload: &[u8], descriptors: &[BorrowedFd<'_>]) {
        send(&self.queue, payload, descriptors).unwrap();
    }

    /// Sends a connection with `payload`, and returns what its handler tells of its environment.
    fn environment_for(&self, payload: &[u8]) -> BTreeMap<String, String> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(DEADLINE)).unwrap();
        self.send(payload, &[theirs.as_fd()]);
        drop(theirs);
        told(ours)
    }

    /// Whether a message of fdaccept's kind is served as it should be, now.
    #[track_caller]
    fn serves(&self) {
        let payload = b"FDTOOLS=1\nPROTO=TCP\nTCPREMOTEIP=192.0.2.7\n";
        let environment = self.environment_for(payload);
        assert_eq!(
            ours(&environment),
            [
                ("PROTO", "TCP"),
                ("REMOTE_ADDR", "192.0.2.7"),
                ("TCPREMOTEIP", "192.0.2.7"),
            ]
        );
    }
}

/// A socket that sends to a datagram name.
fn sender_to(path: &Path) -> OwnedFd {
    let (family, flags) = (AddressFamily::Unix, SockFlag::SOCK_CLOEXEC);
    let sender = socket(family, SockType::Datagram, flags, None).unwrap();
    let address = UnixAddr::new(path).unwrap();
    until("the name", || {
        connect_to(sender.as_raw_fd(), &address).is_ok()
    });
    sender
}

/// What a handler tells on its connection.
#[track_caller]
fn told(mut connection: impl Read) -> BTreeMap<String, String> {
    let mut text = Vec::new();
    connection.read_to_end(&mut text).unwrap();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(text.ends_with("\n\n"), "no answer: {text:?}");
    let variable = |line: &str| {
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        (name.to_owned(), value.to_owned())
    };
    text.trim_end().lines().map(variable).collect()
}

/// Of an environment, what can come from a message.
fn ours(environment: &BTreeMap<String, String>) -> Vec<(&str, &str)> {
    let known = |name: &str| {
        let prefixes = ["PROTO", "TCP", "IPC", "REMOTE_"];
        name == "FDTOOLS" || prefixes.iter().any(|prefix| name.starts_with(prefix))
    };
    let all = environment.iter();
    let pairs = all.map(|(name, value)| (name.as_str(), value.as_str()));
    pairs.filter(|(name, _)| known(name)).collect()
}

/// What the connection of [`Pool::environment_for`] says of itself.
fn of_a_pair() -> Vec<(String, String)> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    [
        ("IPCREMOTEEGID", gid.to_string()),
        ("IPCREMOTEEUID", uid.to_string()),
        ("IPCREMOTEPID", std::process::id().to_string()),
        ("PROTO", "IPC".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

/// A message with `payload` is a bare connection: it tells of itself what there is to tell.
#[track_caller]
fn is_bare(pool: &Pool, payload: &[u8]) {
    let environment = pool.environment_for(payload);
    let told = ours(&environment);
    let expected = of_a_pair();
    let expected = expected.iter().map(|(n, v)| (n.as_str(), v.as_str()));
    assert_eq!(told, expected.collect::<Vec<_>>());
}

/// Two ends of a TCP connection.
fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    let (server, _) = listener.accept().unwrap();
    (client, server)
}

/// A TCP socket whose last close would block for an hour: it lingers and has unsent data. The
/// other side, which is returned with it, does not read.
fn lingering() -> (TcpStream, TcpStream) {
    let (other, mut socket) = tcp_pair();
    socket.set_nonblocking(true).unwrap();
    while socket.write(&[0; 65536]).is_ok() {}
    socket.set_nonblocking(false).unwrap();
    let hour = nix::libc::linger {
        l_onoff: 1,
        l_linger: 3600,
    };
    setsockopt(&socket, Linger, &hour).unwrap();
    (socket, other)
}

/// Stops the slot, so that what is sent now is received when the sender has closed its copies.
fn while_stopped(pool: &Pool, action: impl FnOnce()) {
    let slot = pool.slot();
    nix::sys::signal::kill(slot, Signal::SIGSTOP).unwrap();
    until("the stop", || support::state(slot) == Some('T'));
    action();
    nix::sys::signal::kill(slot, Signal::SIGCONT).unwrap();
}

#[test]
fn a_message_without_a_descriptor_is_said_and_refused() {
    let mut pool = Pool::bound(&TELL);
    for payload in [&b"FDTOOLS=1\nPROTO=TCP\n"[..], b"x", b"127.0.0.1 4000\0"] {
        pool.send(payload, &[]);
        let line = pool.process.line("without");
        assert_eq!(line, "fdpool: a message came without a descriptor");
        pool.serves();
    }
}

#[test]
fn a_message_with_too_many_descriptors_is_said_and_all_are_closed() {
    let mut pool = Pool::bound(&TELL);
    pool.serves();
    let (pid, slot) = (pool.process.pid(), pool.slot());
    let before = (open_in(pid), open_in(slot));
    for count in [2, 3, 253] {
        let (mut client, server) = tcp_pair();
        pool.send(b"FDTOOLS=1\nPROTO=TCP\n", &vec![server.as_fd(); count]);
        drop(server);
        let line = pool.process.line("descriptors");
        let expected = format!("a message came with {count} descriptors instead of one");
        assert_eq!(line, format!("fdpool: {expected}"));
        // So the client learns it as well.
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        pool.serves();
        assert_eq!(pool.slot(), slot);
        are_open(pid, slot, &before);
    }
}

#[test]
fn an_oversized_payload_says_nothing_and_its_connection_is_served() {
    let pool = Pool::bound(&TELL);
    for length in [4097, 60000] {
        let mut payload = b"FDTOOLS=1\nPROTO=TCP\nTCPREMOTEIP=192.0.2.1\n".to_vec();
        payload.resize(length - 1, b'x');
        payload.push(b'\n');
        is_bare(&pool, &payload);
        // Also where what is cut off leaves whole lines.
        let mut lines = b"FDTOOLS=1\nPROTO=TCP\nTCPREMOTEIP=192.0.2.1\n".to_vec();
        lines.resize(4095, b'x');
        lines.push(b'\n');
        lines.resize(length, b'\n');
        is_bare(&pool, &lines);
        pool.serves();
    }
}

#[test]
fn a_payload_of_full_length_is_understood() {
    let pool = Pool::bound(&TELL);
    let mut payload = b"FDTOOLS=1\nPROTO=TCP\nTCPREMOTEIP=192.0.2.1\n".to_vec();
    payload.resize(4095, b'x');
    payload.push(b'\n');
    let environment = pool.environment_for(&payload);
    assert_eq!(environment["TCPREMOTEIP"], "192.0.2.1");
}

#[test]
fn an_empty_message_at_a_name_is_not_the_end() {
    let mut pool = Pool::bound(&TELL);
    for _ in 0..3 {
        pool.send(b"", &[]);
        let line = pool.process.line("without");
        assert_eq!(line, "fdpool: a message came without a descriptor");
        pool.serves();
    }
    assert!(pool.process.is_running());
}

#[test]
fn an_empty_message_on_a_pair_is_not_the_end() {
    let mut pool = Pool::on_pair(SockType::SeqPacket, &TELL);
    for _ in 0..3 {
        pool.send(b"", &[]);
        let line = pool.process.line("without");
        assert_eq!(line, "fdpool: a message came without a descriptor");
        pool.serves();
    }
    assert!(pool.process.is_running());
}

#[test]
fn connections_behind_an_empty_message_are_served_though_the_sender_is_gone() {
    for payload in [&b"FDTOOLS=1\n"[..], b"x"] {
        let pool = Pool::on_pair(SockType::SeqPacket, &TELL);
        let (ours, theirs) = UnixStream::pair().unwrap();
        while_stopped(&pool, || {
            pool.send(b"", &[]);
            pool.send(b"", &[]);
            pool.send(payload, &[theirs.as_fd()]);
            nix::sys::socket::shutdown(pool.queue.as_raw_fd(), nix::sys::socket::Shutdown::Write)
                .unwrap();
        });
        drop(theirs);
        told(ours);
        let mut process = pool.process;
        assert_eq!(process.wait().code(), Some(0));
    }
}

#[test]
fn a_message_with_an_empty_payload_is_a_bare_connection() {
    let pool = Pool::bound(&TELL);
    is_bare(&pool, b"");
    let pool = Pool::on_pair(SockType::SeqPacket, &TELL);
    is_bare(&pool, b"");
}

#[test]
fn a_payload_that_is_not_understood_is_a_bare_connection() {
    let pool = Pool::bound(&TELL);
    for payload in [
        &b"x"[..],
        b"\0",
        b"\n",
        b"192.0.2.1 4000\0",
        b"FDTOOLS=2\nPROTO=TCP\nTCPREMOTEIP=192.0.2.1\n",
        b"FDTOOLS=\nPROTO=TCP\n",
        b"FDTOOLS=1",
        b" FDTOOLS=1\nPROTO=TCP\n",
        b"fdtools=1\nPROTO=TCP\n",
        b"PROTO=TCP\nFDTOOLS=1\n",
        b"FDTOOLS=1\r\nPROTO=TCP\r\n",
        b"FDTOOLS=1\nPROTO=TCP\nTCPREMOTEIP=192.0.2.1",
        b"FDTOOLS=1\nPROTO=TCP\nFDTOOLS=1\n",
    ] {
        is_bare(&pool, payload);
    }
    pool.serves();
}

#[test]
fn a_name_that_comes_twice_voids_the_payload() {
    let pool = Pool::bound(&TELL);
    for name in ["PROTO=TCP", "TCPREMOTEIP=192.0.2.1", "OTHER=1"] {
        let payload = format!("FDTOOLS=1\nPROTO=TCP\nTCPREMOTEIP=192.0.2.2\n{name}\nOTHER=2\n");
        is_bare(&pool, payload.as_bytes());
    }
}

#[test]
fn names_outside_the_table_get_into_no_environment() {
    let pool = Pool::bound(&TELL);
    pool.serves();
    let usual = pool.environment_for(b"FDTOOLS=1\nPROTO=TCP\n");
    let payload = b"FDTOOLS=1\nPROTO=TCP\nLD_PRELOAD=/nowhere/x.so\nPATH=/nowhere\nIFS=x\n\
        BASH_ENV=/nowhere\nENV=/nowhere\nLISTEN_FDS=1\nNEWNAME=1\nPROTO2=TCP\nproto=UDP\n\
        TCPREMOTEINFO=x\nTCPREMOTEHOST=x\n PROTO=IPC\n=x\nnothing\n\n";
    assert_eq!(pool.environment_for(payload), usual);
    assert_eq!(ours(&usual), [("PROTO", "TCP")]);
}

#[test]
fn values_that_are_not_what_their_names_promise_are_left_out() {
    let pool = Pool::bound(&TELL);
    for line in [
        "TCPREMOTEIP=localhost",
        "TCPREMOTEIP=192.0.2.1 ",
        "TCPREMOTEIP=192.0.2.256",
        "TCPREMOTEIP=192.0.2.1;reboot",
        "TCPREMOTEIP=[::1]",
        "TCPREMOTEIP=fe80::1%lo",
        "TCPREMOTEIP=",
        "TCPLOCALIP=0x7f.1",
        "REMOTE_ADDR=$(reboot)",
        "TCPREMOTEPORT=65536",
        "TCPREMOTEPORT=-1",
        "TCPREMOTEPORT=+1",
        "TCPREMOTEPORT= 1",
        "TCPLOCALPORT=http",
        "REMOTE_PORT=1e3",
        "IPCREMOTEEUID=root",
        "IPCREMOTEEUID=4294967296",
        "IPCREMOTEEGID=-1",
        "IPCREMOTEPID=0x10",
        "IPCREMOTEPATH=",
        "IPCREMOTEPATH=/a\tb",
        "IPCLOCALPATH=/a\x1b[31m",
        "IPCLOCALPATH=/a\x7f",
        "IPCLOCALPATH=/a\0b",
        "TCPCONNNUM=many",
    ] {
        let payload = format!("FDTOOLS=1\nPROTO=TCP\n{line}\n");
        let environment = pool.environment_for(payload.as_bytes());
        assert_eq!(ours(&environment), [("PROTO", "TCP")], "{line:?}");
    }
    let environment = pool.environment_for(b"FDTOOLS=1\nPROTO=SCTP\nTCPREMOTEIP=192.0.2.1\n");
    assert_eq!(environment["PROTO"], "IPC", "it asks the connection itself");
    assert!(!environment.contains_key("TCPREMOTEIP"));
}

#[test]
fn bytes_that_are_not_utf8_are_left_out_except_in_paths() {
    let dir = tempfile::tempdir().unwrap();
    let saved = dir.path().join("environment");
    let script = format!(
        "tr '\\0' '\\n' </proc/self/environ >{}; echo; echo",
        saved.display()
    );
    let pool = Pool::bound(&["sh", "-c", &script]);
    pool.environment_for(
        b"FDTOOLS=1\nPROTO=IPC\nIPCREMOTEPATH=/\xff\xfe\nTCPREMOTEIP=\xff\nTCPREMOTEPORT=1\xff\n\
        \xff=\xff\nPROTO\xff=TCP\n",
    );
    let environment = std::fs::read(&saved).unwrap();
    let lines: Vec<_> = environment.split(|byte| *byte == b'\n').collect();
    assert!(lines.contains(&&b"IPCREMOTEPATH=/\xff\xfe"[..]));
    assert!(lines.contains(&&b"PROTO=IPC"[..]));
    let others = |line: &&&[u8]| line.starts_with(b"TCP") || line.starts_with(b"\xff");
    assert_eq!(lines.iter().filter(others).count(), 0);
}

#[test]
fn one_message_leaves_nothing_for_the_next() {
    let pool = Pool::bound(&TELL);
    let full = b"FDTOOLS=1\nPROTO=TCP\nTCPREMOTEIP=192.0.2.1\nTCPREMOTEPORT=1\nTCPLOCALIP=::1\n\
        TCPLOCALPORT=2\nTCPCONNNUM=3\n";
    let environment = pool.environment_for(full);
    assert_eq!(
        ours(&environment),
        [
            ("PROTO", "TCP"),
            ("REMOTE_ADDR", "192.0.2.1"),
            ("REMOTE_PORT", "1"),
            ("TCPCONNNUM", "3"),
            ("TCPLOCALIP", "::1"),
            ("TCPLOCALPORT", "2"),
            ("TCPREMOTEIP", "192.0.2.1"),
            ("TCPREMOTEPORT", "1"),
        ]
    );
    is_bare(&pool, b"x");
    let environment = pool.environment_for(b"FDTOOLS=1\nPROTO=IPC\n");
    assert_eq!(ours(&environment), [("PROTO", "IPC")]);
}

#[test]
fn a_unix_client_cannot_write_lines_of_its_own_by_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let server = dir.path().join("s");
    let mut command = program("fdaccept");
    command
        .arg(&server)
        .arg("--")
        .arg(support::bin_dir().join("fdpool"));
    command.arg("1").args(TELL);
    let mut process = Process::start(&mut command);
    process.listening();
    let hostile = "c\nTCPREMOTEIP=192.0.2.1\nPROTO=TCP\nLD_PRELOAD=x\n";
    for name in [
        UnixAddr::new(&dir.path().join(hostile)),
        UnixAddr::new_abstract(format!("fdtools-test-{}{hostile}", std::process::id()).as_bytes()),
    ] {
        let (family, flags) = (AddressFamily::Unix, SockFlag::SOCK_CLOEXEC);
        let client = socket(family, SockType::Stream, flags, None).unwrap();
        nix::sys::socket::bind(client.as_raw_fd(), &name.unwrap()).unwrap();
        connect_to(client.as_raw_fd(), &UnixAddr::new(&server).unwrap()).unwrap();
        let environment = told(UnixStream::from(client));
        let names: Vec<_> = ours(&environment).iter().map(|(name, _)| *name).collect();
        let expected = [
            "IPCLOCALPATH",
            "IPCREMOTEEGID",
            "IPCREMOTEEUID",
            "IPCREMOTEPID",
            "PROTO",
        ];
        assert_eq!(names, expected);
        assert_eq!(environment["PROTO"], "IPC");
        assert_eq!(environment["IPCLOCALPATH"], server.to_str().unwrap());
        assert!(!environment.contains_key("LD_PRELOAD"));
    }
}

#[test]
fn what_is_no_socket_is_served_and_nothing_is_said_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let pool = Pool::bound(&TELL);
    let path = dir.path().join("answer");
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    pool.send(b"x", &[file.as_fd()]);
    let told_to_file = || std::fs::read_to_string(&path).unwrap();
    until("the handler", || told_to_file().ends_with("\n\n"));
    assert_eq!(ours(&told(told_to_file().as_bytes())), []);

    let (reader, writer) = std::io::pipe().unwrap();
    pool.send(b"x", &[writer.as_fd()]);
    drop(writer);
    assert_eq!(ours(&told(reader)), []);

    let null = File::open("/dev/null").unwrap();
    pool.send(b"x", &[null.as_fd()]);
    let directory = File::open("/").unwrap();
    pool.send(b"x", &[directory.as_fd()]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    pool.send(b"x", &[listener.as_fd()]);
    let path_only = File::from(
        nix::fcntl::open(
            "/",
            OFlag::O_PATH | OFlag::O_CLOEXEC,
            nix::sys::stat::Mode::empty(),
        )
        .unwrap(),
    );
    pool.send(b"x", &[path_only.as_fd()]);
    // Its own queue.
    pool.send(b"x", &[pool.queue.as_fd()]);
    pool.serves();
}

#[test]
fn of_a_socket_that_is_no_connection_nothing_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let saved = dir.path().join("environment");
    let script = format!(
        "env > {0}.new; echo >> {0}.new; mv {0}.new {0}",
        saved.display()
    );
    let pool = Pool::bound(&["sh", "-c", &script]);
    let datagram = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    datagram.connect("127.0.0.1:9").unwrap();
    let unconnected = std::os::unix::net::UnixDatagram::unbound().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let unix = UnixListener::bind(dir.path().join("l")).unwrap();
    for socket in [
        datagram.as_fd(),
        unconnected.as_fd(),
        listener.as_fd(),
        unix.as_fd(),
    ] {
        pool.send(b"x", &[socket]);
        until("the handler", || saved.exists());
        let environment = told(File::open(&saved).unwrap());
        let peer =
            |name: &str| name.contains("REMOTE") || name == "PROTO" && environment[name] == "TCP";
        let wrong: Vec<_> = ours(&environment)
            .into_iter()
            .filter(|(name, _)| peer(name))
            .collect();
        assert_eq!(wrong, []);
        std::fs::remove_file(&saved).unwrap();
    }
}

#[test]
fn a_connection_that_does_not_block_is_made_to() {
    let flags = "sed -n 's/^flags:[^0-9]*//p' /proc/self/fdinfo/0; cat";
    let pool = Pool::bound(&["sh", "-c", flags]);
    let (mut client, server) = tcp_pair();
    server.set_nonblocking(true).unwrap();
    // Not closed here, so that the flag can be seen from both sides.
    pool.send(b"x", &[server.as_fd()]);
    let mut line = String::new();
    BufReader::new(&client).read_line(&mut line).unwrap();
    let flags = i32::from_str_radix(line.trim(), 8).unwrap();
    assert_eq!(flags & OFlag::O_NONBLOCK.bits(), 0);
    let flags = fcntl(&server, FcntlArg::F_GETFL).unwrap();
    assert_eq!(flags & OFlag::O_NONBLOCK.bits(), 0);
    drop(server);
    client.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_refused_socket_that_lingers_does_not_block_the_receiver() {
    let pool = Pool::bound(&TELL);
    let (socket, _other) = lingering();
    while_stopped(&pool, || {
        pool.send(b"x", &[socket.as_fd(), socket.as_fd()]);
        drop(socket);
    });
    pool.serves();
}

#[test]
fn a_lingering_socket_within_a_refused_one_does_not_block_the_receiver() {
    let pool = Pool::bound(&TELL);
    let (socket, _other) = lingering();
    let (inner, outer) = UnixStream::pair().unwrap();
    send(&inner, b"x", &[socket.as_fd()]).unwrap();
    drop(socket);
    while_stopped(&pool, || {
        pool.send(b"x", &[outer.as_fd(), outer.as_fd()]);
        drop((inner, outer));
    });
    pool.serves();
}

#[test]
fn a_lingering_socket_behind_an_empty_message_does_not_block_the_receiver() {
    let pool = Pool::bound(&TELL);
    let (socket, _other) = lingering();
    let (kind, flags) = (SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
    let (inner, outer) = socketpair(AddressFamily::Unix, kind, None, flags).unwrap();
    for _ in 0..5 {
        send(&inner, b"", &[]).unwrap();
    }
    send(&inner, b"x", &[socket.as_fd()]).unwrap();
    drop(socket);
    while_stopped(&pool, || {
        pool.send(b"x", &[outer.as_fd(), outer.as_fd()]);
        drop((inner, outer));
    });
    pool.serves();
}

#[test]
fn a_lingering_socket_in_the_backlog_of_a_refused_one_does_not_block_the_receiver() {
    let pool = Pool::bound(&TELL);
    let dir = tempfile::tempdir().unwrap();
    let (socket, _other) = lingering();
    let listener = UnixListener::bind(dir.path().join("l")).unwrap();
    let client = UnixStream::connect(dir.path().join("l")).unwrap();
    send(&client, b"x", &[socket.as_fd()]).unwrap();
    drop(socket);
    while_stopped(&pool, || {
        pool.send(b"x", &[listener.as_fd(), listener.as_fd()]);
        drop((listener, client));
    });
    pool.serves();
}

#[test]
fn a_pair_that_does_not_block_is_waited_on_and_left_so() {
    let pool = Pool::on_pair(SockType::SeqPacket, &TELL);
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
    )
    .unwrap();
    let copy = theirs.try_clone().unwrap();
    let process = Process::start(program("fdpool").arg("1").args(TELL).stdin(theirs));
    let other = Pool::new(process, ours, None);
    for pool in [&pool, &other] {
        pool.serves();
    }
    let flags = fcntl(&copy, FcntlArg::F_GETFL).unwrap();
    assert_ne!(flags & OFlag::O_NONBLOCK.bits(), 0, "it is somebody else's");
    let slot = other.slot();
    let before = support::cpu_time(slot);
    other.serves();
    assert!(support::cpu_time(slot) - before < std::time::Duration::from_secs(1));
}

#[test]
fn a_stream_pair_is_as_good() {
    let mut pool = Pool::on_pair(SockType::Stream, &TELL);
    pool.serves();
    pool.send(b"FDTOOLS=1\nPROTO=TCP\n", &[]);
    pool.process
        .line("fdpool: a message came without a descriptor");
    pool.serves();
    let null = File::open("/dev/null").unwrap();
    pool.send(b"x", &[null.as_fd(), null.as_fd()]);
    pool.process
        .line("fdpool: a message came with 2 descriptors");
    pool.serves();
    is_bare(&pool, b"x");
    // What is too long for one message reads as one with a connection and others without.
    is_bare(&pool, &[b'x'; 10000]);
    pool.process
        .line("fdpool: a message came without a descriptor");
    assert!(pool.process.is_running());
}

#[test]
fn fdrecv_passes_over_what_is_no_connection() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let mut command = program("fdrecv");
    command.arg("--bind").arg(&path).args(TELL);
    let mut process = Process::start(&mut command);
    let queue = sender_to(&path);
    let zero = File::open("/dev/zero").unwrap();
    let zero = zero.as_fd();
    let nothing: [(&[u8], &[BorrowedFd<'_>]); 4] = [
        (b"", &[]),
        (b"FDTOOLS=1\nPROTO=TCP\n", &[]),
        (b"x", &[zero, zero]),
        (b"x", &[zero; 253]),
    ];
    for (payload, descriptors) in nothing {
        send(&queue, payload, descriptors).unwrap();
        process.line("fdrecv: a message came with");
    }
    let open = open_in(process.pid());
    assert!(!open.contains(&"/dev/zero".to_owned()), "{open:?}");
    let (ours_, theirs) = UnixStream::pair().unwrap();
    send(
        &queue,
        b"FDTOOLS=1\nPROTO=IPC\nPATH=/x\n",
        &[theirs.as_fd()],
    )
    .unwrap();
    drop(theirs);
    assert_eq!(ours(&told(ours_)), [("PROTO", "IPC")]);
    assert!(process.wait().success());
}

#[test]
fn fdrecv_on_an_inherited_pair_passes_over_empty_messages() {
    let (queue, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .unwrap();
    let mut process = Process::start(program("fdrecv").args(TELL).stdin(theirs));
    for _ in 0..3 {
        send(&queue, b"", &[]).unwrap();
        process.line("fdrecv: a message came without a descriptor");
    }
    let (ours_, theirs) = UnixStream::pair().unwrap();
    send(&queue, b"FDTOOLS=1\nPROTO=IPC\n", &[theirs.as_fd()]).unwrap();
    drop(theirs);
    assert_eq!(ours(&told(ours_)), [("PROTO", "IPC")]);
    assert!(process.wait().success());
}

#[test]
fn a_message_whose_descriptors_do_not_fit_is_refused_and_the_next_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let fdpool = support::bin_dir().join("fdpool");
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 30; exec \"$@\"", "sh"]);
    command
        .arg(fdpool)
        .arg("--bind")
        .arg(&path)
        .arg("1")
        .args(TELL);
    let process = Process::start(command.stdin(Stdio::null()));
    let queue = sender_to(&path);
    let mut pool = Pool::new(process, queue, Some(dir));
    pool.serves();
    let before = open_in(pool.slot());
    let zero = File::open("/dev/zero").unwrap();
    for _ in 0..3 {
        pool.send(b"x", &[zero.as_fd(); 100]);
        let line = pool.process.line("fdpool: a message ");
        assert!(line.contains("lost descriptors"), "{line}");
        pool.serves();
        let slot = pool.slot();
        until("the same descriptors as before", || open_in(slot) == before);
    }
}

/// What a process has open, apart from the numbers: which number the next descriptor gets depends
/// on what else was open just then.
fn open_in(pid: Pid) -> Vec<String> {
    let open = support::descriptors(pid).into_iter();
    let mut open: Vec<_> = open.map(|(_, what)| what).collect();
    open.sort();
    open
}

/// Waits until two processes have open what they had before.
#[track_caller]
fn are_open(pid: Pid, slot: Pid, before: &(Vec<String>, Vec<String>)) {
    let mut now = Default::default();
    let start = std::time::Instant::now();
    while start.elapsed() < DEADLINE {
        now = (open_in(pid), open_in(slot));
        if now == *before {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(now, *before);
}

/// Numbers that look random and are the same each time (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % below as u64) as usize
    }

    /// A payload: bytes, or lines of likely names and unlikely values.
    fn payload(&mut self) -> Vec<u8> {
        if self.next(3) == 0 {
            let length = [0, 1, 20, 4096, 5000][self.next(5)];
            return (0..length).map(|_| self.next(256) as u8).collect();
        }
        let mut payload =
            [&b"FDTOOLS=1\n"[..], b"FDTOOLS=1\nPROTO=TCP\n", b""][self.next(3)].to_vec();
        for _ in 0..self.next(8) {
            let names = [
                "PROTO",
                "TCPREMOTEIP",
                "IPCREMOTEPATH",
                "PATH",
                "LD_PRELOAD",
                "",
                "FDTOOLS",
            ];
            payload.extend(names[self.next(names.len())].as_bytes());
            payload.push(b"==\n\0"[self.next(4)]);
            for _ in 0..self.next(30) {
                payload.push(self.next(256) as u8);
            }
            payload.push(b"\n\n\n="[self.next(4)]);
        }
        payload
    }
}

#[test]
fn a_thousand_random_messages_leave_the_pool_as_it_was() {
    for pool in [
        Pool::bound(&["true"]),
        Pool::on_pair(SockType::SeqPacket, &["true"]),
    ] {
        let mut numbers = Numbers(1);
        // Its slot is ready, and has nothing open that it only needs to start.
        serve_one(&pool);
        let (pid, slot) = (pool.process.pid(), pool.slot());
        let before = (open_in(pid), open_in(slot));
        let zero = File::open("/dev/zero").unwrap();
        let (one, other) = UnixStream::pair().unwrap();
        for _ in 0..500 {
            let payload = numbers.payload();
            let kinds = [zero.as_fd(), one.as_fd(), other.as_fd(), pool.queue.as_fd()];
            let count = [0, 0, 1, 2, 3, 253][numbers.next(6)];
            let carried: Vec<_> = (0..count).map(|_| kinds[numbers.next(4)]).collect();
            match send(&pool.queue, &payload, &carried) {
                // The kernel does not pass descriptors round in circles for ever.
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(Errno::ETOOMANYREFS as i32) => {}
                Err(errno) => panic!("{errno}"),
            }
        }
        serve_one(&pool);
        assert_eq!(children(pid), [slot], "no slot was lost");
        are_open(pid, slot, &before);
    }
}

/// Sends a connection and waits until its handler has ended.
fn serve_one(pool: &Pool) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(DEADLINE)).unwrap();
    pool.send(b"FDTOOLS=1\n", &[theirs.as_fd()]);
    drop(theirs);
    ours.read_to_end(&mut Vec::new()).unwrap();
}
