//! What a consumer makes of messages that no fdaccept sends: nothing in them crashes it, stays open
//! in it, or gets into a handler's environment that does not belong there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::time::Duration;

use crate::support::*;
use fdtools::queue::send;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::socket::sockopt::SndBuf;
use nix::sys::socket::{Shutdown, SockType, UnixAddr, bind, connect, setsockopt, shutdown};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, getegid, geteuid};

/// A handler that tells its environment, line by line, and an empty line at the end.
const TELL: [&str; 3] = ["sh", "-c", "env; echo"];

/// What fdaccept could say of a connection.
const USUAL: &[u8] = b"FDTOOLS=1\nPROTO=TCP\nTCPREMOTEIP=192.0.2.1\n";

/// A pool with one slot, and a sender to it.
struct Target {
    pool: Pool,
    queue: OwnedFd,
    names: Names,
}

impl Target {
    /// A pool that owns a datagram name.
    fn bound() -> Self {
        Self::with_handler(&TELL)
    }

    fn with_handler(handler: &[&str]) -> Self {
        Self::bound_in(Names::new(), |name| {
            Pool::bound_at(name).slots(1, handler).start()
        })
    }

    fn bound_in(names: Names, pool: impl FnOnce(&str) -> Pool) -> Self {
        let pool = pool(&names.path());
        let queue = sender_to(&names.path());
        Self::new(pool, queue, names)
    }

    fn paired(kind: SockType) -> Self {
        Self::on_pair(socket_pair(kind), &TELL)
    }

    /// A pool whose standard input is one side of a pair.
    fn on_pair((queue, read_end): (OwnedFd, OwnedFd), handler: &[&str]) -> Self {
        let pool = Pool::on(&read_end).slots(1, handler).start();
        Self::new(pool, queue, Names::new())
    }

    fn new(pool: Pool, queue: OwnedFd, names: Names) -> Self {
        setsockopt(&queue, SndBuf, &(1 << 20)).unwrap();
        pool.until_size(1);
        Self { pool, queue, names }
    }

    /// The process that receives.
    fn slot(&self) -> Pid {
        self.pool.children()[0]
    }

    fn send(&self, payload: &[u8], descriptors: &[BorrowedFd<'_>]) {
        send(&self.queue, payload, descriptors).unwrap();
    }

    fn environment_for(&self, payload: &[u8]) -> BTreeMap<String, String> {
        environment_for(&self.queue, payload)
    }

    /// Expects that the handler of a message with `payload` finds these variables of a message's.
    #[track_caller]
    fn expect(&self, payload: &[u8], variables: &[(&str, &str)]) {
        let environment = self.environment_for(payload);
        let text = String::from_utf8_lossy(payload);
        assert_eq!(ours(&environment), variables, "{text:?}");
    }

    /// Expects that a message with `payload` is a bare connection: it tells of itself what there is
    /// to tell.
    #[track_caller]
    fn expect_bare(&self, payload: &[u8]) {
        let (gid, uid) = (getegid().to_string(), geteuid().to_string());
        let pid = std::process::id().to_string();
        let variables = [
            ("IPCREMOTEEGID", &*gid),
            ("IPCREMOTEEUID", &uid),
            ("IPCREMOTEPID", &pid),
            ("PROTO", "IPC"),
        ];
        self.expect(payload, &variables);
    }

    /// Expects that a message of fdaccept's kind is served now.
    #[track_caller]
    fn expect_service(&self) {
        let variables = [
            ("PROTO", "TCP"),
            ("REMOTE_ADDR", "192.0.2.1"),
            ("TCPREMOTEIP", "192.0.2.1"),
        ];
        self.expect(USUAL, &variables);
    }

    /// Sends messages without a descriptor. Expects that the next one is served after each, and that
    /// all are refused, which is said once.
    #[track_caller]
    fn expect_refusals(&mut self, payloads: &[&[u8]]) {
        for payload in payloads {
            self.send(payload, &[]);
            self.expect_service();
        }
        let line = "fdpool: a message came without a descriptor";
        assert_eq!(self.pool.log(), line);
    }

    /// Stops the slot, so that what is sent now is received when the sender has closed its copies.
    fn while_stopped(&self, action: impl FnOnce()) {
        let slot = self.slot();
        freeze(slot);
        action();
        thaw(slot);
    }

    /// What the pool and its slot have open.
    fn open(&self) -> [Vec<String>; 2] {
        [self.pool.pid(), self.slot()].map(open_in)
    }

    /// The same, once the slot has closed what it has served.
    fn settled(&self) -> [Vec<String>; 2] {
        for pid in [self.pool.pid(), self.slot()] {
            settled(pid);
        }
        self.open()
    }

    /// Waits until the pool and its slot have open what they had before.
    #[track_caller]
    fn until_open(&self, before: &[Vec<String>; 2]) {
        until(&format!("{before:?}"), || self.open() == *before);
    }

    /// Sends a connection, which does not linger, and waits until its handler has ended.
    fn serve_one(&self) {
        let (client, server) = unix_pair();
        client.end();
        self.send(b"FDTOOLS=1\n", &[server.as_fd()]);
        drop(server);
        client.rest();
    }
}

/// Sends a connection with `payload`, and returns what its handler tells of its environment.
#[track_caller]
fn environment_for(queue: &OwnedFd, payload: &[u8]) -> BTreeMap<String, String> {
    let (client, server) = unix_pair();
    send(queue, payload, &[server.as_fd()]).unwrap();
    drop(server);
    told(client.0)
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

/// What a process has open, apart from the numbers: which number the next descriptor gets depends
/// on what else was open just then.
fn open_in(pid: Pid) -> Vec<String> {
    let open = descriptors(pid).into_iter();
    let mut open: Vec<_> = open.map(|(_, what)| what).collect();
    open.sort();
    open
}

/// Whether a descriptor does not block.
fn is_nonblocking(descriptor: impl AsFd) -> bool {
    let flags = fcntl(descriptor, FcntlArg::F_GETFL).unwrap();
    flags & OFlag::O_NONBLOCK.bits() != 0
}

// Messages that carry no connection.

#[test]
fn a_message_without_a_descriptor_is_said_and_refused() {
    let mut target = Target::bound();
    target.expect_refusals(&[b"FDTOOLS=1\nPROTO=TCP\n", b"x", b"127.0.0.1 4000\0"]);
    let log = target.pool.stop();
    assert!(log.ends_with("fdpool: 3 messages were refused"), "{log}");
}

#[test]
fn a_message_with_too_many_descriptors_is_said_and_all_are_closed() {
    let mut target = Target::bound();
    target.expect_service();
    let (slot, before) = (target.slot(), target.settled());
    for count in [2, 3, 253] {
        let (client, server) = tcp_pair();
        target.send(b"FDTOOLS=1\nPROTO=TCP\n", &vec![server.as_fd(); count]);
        drop(server);
        let line = target.pool.line("descriptors");
        let expected = format!("a message came with {count} descriptors instead of one");
        assert_eq!(line, format!("fdpool: {expected}"));
        // The client learns it as well.
        assert_eq!(Client(client).rest(), "");
        target.expect_service();
        assert_eq!(target.slot(), slot);
        target.until_open(&before);
    }
}

fn assert_empty_messages_are_not_the_end(mut target: Target) {
    target.expect_refusals(&[b"", b"", b""]);
    assert!(target.pool.is_running());
}

cases! {
    assert_empty_messages_are_not_the_end;
    an_empty_message_at_a_name_is_not_the_end: Target::bound();
    an_empty_message_on_a_pair_is_not_the_end: Target::paired(SockType::SeqPacket);
}

#[test]
fn connections_behind_an_empty_message_are_served_though_the_sender_is_gone() {
    for payload in [&b"FDTOOLS=1\n"[..], b"x"] {
        let mut target = Target::paired(SockType::SeqPacket);
        let (client, server) = unix_pair();
        target.while_stopped(|| {
            target.send(b"", &[]);
            target.send(b"", &[]);
            target.send(payload, &[server.as_fd()]);
            shutdown(target.queue.as_raw_fd(), Shutdown::Write).unwrap();
        });
        drop(server);
        told(client.0);
        target.pool.expect_exit(0);
    }
}

// Payloads.

#[test]
fn an_oversized_payload_says_nothing_and_its_connection_is_served() {
    let target = Target::bound();
    for length in [4097, 60000] {
        let mut payload = USUAL.to_vec();
        payload.resize(length - 1, b'x');
        payload.push(b'\n');
        target.expect_bare(&payload);
        // Also where what is cut off leaves whole lines.
        let mut lines = USUAL.to_vec();
        lines.resize(4095, b'x');
        lines.resize(length, b'\n');
        target.expect_bare(&lines);
        target.expect_service();
    }
}

#[test]
fn a_payload_of_full_length_is_understood() {
    let target = Target::bound();
    let mut payload = USUAL.to_vec();
    payload.resize(4095, b'x');
    payload.push(b'\n');
    let environment = target.environment_for(&payload);
    assert_eq!(environment["TCPREMOTEIP"], "192.0.2.1");
}

#[test]
fn a_message_with_an_empty_payload_is_a_bare_connection() {
    Target::bound().expect_bare(b"");
    Target::paired(SockType::SeqPacket).expect_bare(b"");
}

// What is a payload is tested beside its parser.
#[test]
fn a_payload_that_is_not_understood_is_a_bare_connection() {
    let target = Target::bound();
    target.expect_bare(b"x");
    target.expect_bare(b"\0");
    target.expect_bare(b"FDTOOLS=2\nPROTO=TCP\nTCPREMOTEIP=192.0.2.1\n");
    target.expect_service();
}

#[test]
fn a_name_that_comes_twice_voids_the_payload() {
    let payload = b"FDTOOLS=1\nPROTO=TCP\nTCPREMOTEIP=192.0.2.2\nTCPREMOTEIP=192.0.2.1\n";
    Target::bound().expect_bare(payload);
}

#[test]
fn names_outside_the_table_get_into_no_environment() {
    let target = Target::bound();
    target.expect_service();
    let usual = target.environment_for(b"FDTOOLS=1\nPROTO=TCP\n");
    let payload = b"FDTOOLS=1\nPROTO=TCP\nLD_PRELOAD=/nowhere/x.so\nPATH=/nowhere\nIFS=x\n\
        BASH_ENV=/nowhere\nENV=/nowhere\nLISTEN_FDS=1\nNEWNAME=1\nPROTO2=TCP\nproto=UDP\n\
        TCPREMOTEINFO=x\nTCPREMOTEHOST=x\n PROTO=IPC\n=x\nnothing\n\n";
    assert_eq!(target.environment_for(payload), usual);
    assert_eq!(ours(&usual), [("PROTO", "TCP")]);
}

#[test]
fn values_that_are_not_what_their_names_promise_are_left_out() {
    let target = Target::bound();
    for line in ["TCPREMOTEIP=localhost", "IPCLOCALPATH=/a\0b"] {
        let payload = format!("FDTOOLS=1\nPROTO=TCP\n{line}\n");
        target.expect(payload.as_bytes(), &[("PROTO", "TCP")]);
    }
    let environment = target.environment_for(b"FDTOOLS=1\nPROTO=SCTP\nTCPREMOTEIP=192.0.2.1\n");
    assert_eq!(environment["PROTO"], "IPC", "it asks the connection itself");
    assert!(!environment.contains_key("TCPREMOTEIP"));
}

#[test]
fn bytes_that_are_not_utf8_are_left_out_except_in_paths() {
    let names = Names::new();
    let saved = names.text("environment");
    let text = format!("tr '\\0' '\\n' </proc/self/environ >{saved}; echo; echo");
    let target = Target::with_handler(&sh_c(&text));
    target.environment_for(
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
    let target = Target::bound();
    let full = b"FDTOOLS=1\nPROTO=TCP\nTCPREMOTEIP=192.0.2.1\nTCPREMOTEPORT=1\nTCPLOCALIP=::1\n\
        TCPLOCALPORT=2\nTCPCONNNUM=3\n";
    let variables = [
        ("PROTO", "TCP"),
        ("REMOTE_ADDR", "192.0.2.1"),
        ("REMOTE_PORT", "1"),
        ("TCPCONNNUM", "3"),
        ("TCPLOCALIP", "::1"),
        ("TCPLOCALPORT", "2"),
        ("TCPREMOTEIP", "192.0.2.1"),
        ("TCPREMOTEPORT", "1"),
    ];
    target.expect(full, &variables);
    target.expect_bare(b"x");
    target.expect_bare(b"FDTOOLS=1\nPROTO=IPC\n");
}

#[test]
fn a_unix_client_cannot_write_lines_of_its_own_by_its_path() {
    let names = Names::new();
    let server = names.text("s");
    let chain = ["fdpool", "1"].into_iter().chain(TELL);
    let _acceptor = Fdaccept::chain(chain).listen(&server).start();
    let hostile = "c\nTCPREMOTEIP=192.0.2.1\nPROTO=TCP\nLD_PRELOAD=x\n";
    let abstract_name = format!("{}{hostile}", &names.abstract_name()[1..]);
    for name in [
        UnixAddr::new(&names.file(hostile)),
        UnixAddr::new_abstract(abstract_name.as_bytes()),
    ] {
        let client = unix_socket(SockType::Stream);
        bind(client.as_raw_fd(), &name.unwrap()).unwrap();
        connect(client.as_raw_fd(), &UnixAddr::new(&*server).unwrap()).unwrap();
        let environment = told(UnixStream::from(client));
        let names: Vec<_> = ours(&environment).iter().map(|(name, _)| *name).collect();
        let expected = "IPCLOCALPATH IPCREMOTEEGID IPCREMOTEEUID IPCREMOTEPID PROTO";
        assert_eq!(names.join(" "), expected);
        assert_eq!(environment["PROTO"], "IPC");
        assert_eq!(environment["IPCLOCALPATH"], server);
        assert!(!environment.contains_key("LD_PRELOAD"));
    }
}

// Descriptors that are no connections, or odd ones.

#[test]
fn what_is_no_socket_is_served_and_nothing_is_said_of_it() {
    let target = Target::bound();
    let path = target.names.file("answer");
    let mut options = File::options();
    options.read(true).write(true).create_new(true);
    let file = options.open(&path).unwrap();
    target.send(b"x", &[file.as_fd()]);
    let told_to_file = || std::fs::read_to_string(&path).unwrap();
    until("the handler", || told_to_file().ends_with("\n\n"));
    assert_eq!(ours(&told(told_to_file().as_bytes())), []);

    let (reader, writer) = std::io::pipe().unwrap();
    target.send(b"x", &[writer.as_fd()]);
    drop(writer);
    assert_eq!(ours(&told(reader)), []);

    let null = File::open("/dev/null").unwrap();
    let directory = File::open("/").unwrap();
    let listener = TcpListener::bind(ADDRESS).unwrap();
    let path_only = open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
    for other in [
        null.as_fd(),
        directory.as_fd(),
        listener.as_fd(),
        path_only.as_fd(),
        // Its own queue.
        target.queue.as_fd(),
    ] {
        target.send(b"x", &[other]);
    }
    target.expect_service();
}

#[test]
fn of_a_socket_that_is_no_connection_nothing_is_said() {
    let names = Names::new();
    let saved = names.text("environment");
    let text = format!("env > {saved}.new; echo >> {saved}.new; mv {saved}.new {saved}");
    let target = Target::with_handler(&sh_c(&text));
    let datagram = UdpSocket::bind(ADDRESS).unwrap();
    datagram.connect("127.0.0.1:9").unwrap();
    let unconnected = UnixDatagram::unbound().unwrap();
    let listener = TcpListener::bind(ADDRESS).unwrap();
    let unix = UnixListener::bind(names.file("l")).unwrap();
    for socket in [
        datagram.as_fd(),
        unconnected.as_fd(),
        listener.as_fd(),
        unix.as_fd(),
    ] {
        target.send(b"x", &[socket]);
        let file = eventually("the handler", || File::open(&saved).ok());
        let mut environment = told(file);
        environment
            .retain(|name, value| name.contains("REMOTE") || name == "PROTO" && value == "TCP");
        assert_eq!(ours(&environment), []);
        std::fs::remove_file(&saved).unwrap();
    }
}

#[test]
fn a_connection_that_does_not_block_is_made_to() {
    let text = "sed -n 's/^flags:[^0-9]*//p' /proc/self/fdinfo/0; cat";
    let target = Target::with_handler(&sh_c(text));
    let (client, server) = tcp_pair();
    let client = Client(client);
    server.set_nonblocking(true).unwrap();
    // Not closed here, so that the flag can be seen from both sides.
    target.send(b"x", &[server.as_fd()]);
    let flags = i32::from_str_radix(&client.line(), 8).unwrap();
    assert_eq!(flags & OFlag::O_NONBLOCK.bits(), 0);
    assert!(!is_nonblocking(&server));
    drop(server);
    client.expect_served();
}

// Sockets whose last close would block. They must not be closed by the process that receives.

/// Sends `carrier` in a message that is refused. The receiver's copies are the last ones of it, and
/// what is `kept` here is closed before them. Expects that the pool goes on.
fn assert_refused_without_blocking(carrier: impl AsFd, kept: impl Sized) {
    let target = Target::bound();
    target.while_stopped(|| {
        target.send(b"x", &[carrier.as_fd(), carrier.as_fd()]);
        leave((carrier, kept));
    });
    target.expect_service();
}

#[test]
fn a_refused_socket_that_lingers_does_not_block_the_receiver() {
    let (socket, _other) = lingering();
    assert_refused_without_blocking(socket, ());
}

#[test]
fn a_lingering_socket_within_a_refused_one_does_not_block_the_receiver() {
    let (socket, _other) = lingering();
    let (inner, outer) = UnixStream::pair().unwrap();
    send(&inner, b"x", &[socket.as_fd()]).unwrap();
    assert_refused_without_blocking(outer, (inner, socket));
}

#[test]
fn a_lingering_socket_behind_an_empty_message_does_not_block_the_receiver() {
    let (socket, _other) = lingering();
    let (inner, outer) = socket_pair(SockType::SeqPacket);
    for _ in 0..5 {
        send(&inner, b"", &[]).unwrap();
    }
    send(&inner, b"x", &[socket.as_fd()]).unwrap();
    assert_refused_without_blocking(outer, (inner, socket));
}

#[test]
fn a_lingering_socket_in_the_backlog_of_a_refused_one_does_not_block_the_receiver() {
    let names = Names::new();
    let (socket, _other) = lingering();
    let listener = UnixListener::bind(names.path()).unwrap();
    let client = UnixStream::connect(names.path()).unwrap();
    send(&client, b"x", &[socket.as_fd()]).unwrap();
    assert_refused_without_blocking(listener, (client, socket));
}

// Other queues, and fdrecv.

#[test]
fn a_pair_that_does_not_block_is_waited_on_and_left_so() {
    let (write_end, read_end) = socket_pair(SockType::SeqPacket);
    for end in [&write_end, &read_end] {
        fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    }
    let copy = read_end.try_clone().unwrap();
    let target = Target::on_pair((write_end, read_end), &TELL);
    target.expect_service();
    assert!(is_nonblocking(copy), "it is somebody else's");
    let slot = target.slot();
    let before = cpu_time(slot);
    target.expect_service();
    assert!(cpu_time(slot) - before < Duration::from_secs(1));
}

#[test]
fn a_stream_pair_is_as_good() {
    let mut target = Target::paired(SockType::Stream);
    target.expect_service();
    // In a stream, what is sent before this is received would be a part of it.
    target.send(b"FDTOOLS=1\nPROTO=TCP\n", &[]);
    let pool = &mut target.pool;
    pool.line("fdpool: a message came without a descriptor");
    target.expect_service();
    let null = File::open("/dev/null").unwrap();
    target.send(b"x", &[null.as_fd(), null.as_fd()]);
    let pool = &mut target.pool;
    pool.line("fdpool: a message came with 2 descriptors");
    target.expect_service();
    target.expect_bare(b"x");

    // What is too long for one message reads as one with a connection and others without.
    let mut target = Target::paired(SockType::Stream);
    target.expect_bare(&[b'x'; 10000]);
    let pool = &mut target.pool;
    pool.line("fdpool: a message came without a descriptor");
    assert!(pool.is_running());
}

/// Expects that fdrecv becomes the handler of a message with `payload`.
fn assert_received(queue: &OwnedFd, payload: &[u8], mut fdrecv: Process) {
    let environment = environment_for(queue, payload);
    assert_eq!(ours(&environment), [("PROTO", "TCP")]);
    fdrecv.expect_exit(0);
}

#[test]
fn fdrecv_passes_over_what_is_no_connection() {
    let names = Names::new();
    let name = &names.path();
    let mut fdrecv = program("fdrecv");
    let mut fdrecv = fdrecv.args(["--bind", name]).args(TELL).start();
    let queue = sender_to(name);
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
    }
    fdrecv.line("fdrecv: a message came without a descriptor");
    fdrecv.line("fdrecv: a message came with 2 descriptors");
    fdrecv.line("fdrecv: a message came with 253 descriptors");
    let open = || open_in(fdrecv.pid());
    until("none of these is open", || {
        !open().contains(&"/dev/zero".to_owned())
    });
    assert_received(&queue, b"FDTOOLS=1\nPROTO=TCP\nPATH=/x\n", fdrecv);
}

#[test]
fn fdrecv_on_an_inherited_pair_passes_over_empty_messages() {
    let queue = Queue::new();
    let mut fdrecv = fdrecv_on(&queue).args(TELL).start();
    for _ in 0..3 {
        send(queue.write_end(), b"", &[]).unwrap();
    }
    fdrecv.line("fdrecv: a message came without a descriptor");
    assert_received(queue.write_end(), b"FDTOOLS=1\nPROTO=TCP\n", fdrecv);
}

#[test]
fn a_message_whose_descriptors_do_not_fit_is_refused_and_the_next_is_served() {
    let text = "ulimit -n 30; exec fdpool --bind \"$NAME\" 1 sh -c 'env; echo'";
    let mut target = Target::bound_in(Names::new(), |name| Pool::of(sh(text).env("NAME", name)));
    target.expect_service();
    // The slot closes its copy of the connection a moment after the end that was seen.
    settled(target.slot());
    let before = open_in(target.slot());
    let zero = File::open("/dev/zero").unwrap();
    for _ in 0..3 {
        target.send(b"x", &[zero.as_fd(); 100]);
        target.expect_service();
        let slot = target.slot();
        until("the same descriptors as before", || open_in(slot) == before);
    }
    let log = target.pool.stop();
    let lines: Vec<_> = log.lines().collect();
    let [said, counted] = &lines[..] else {
        panic!("{log}");
    };
    assert!(said.contains("lost descriptors"), "{log}");
    assert_eq!(*counted, "fdpool: 3 messages were refused");
}

fn pick<T: Copy>(random: &mut Random, from: &[T]) -> T {
    from[random.below(from.len() as u64) as usize]
}

fn bytes(random: &mut Random, length: u64) -> impl Iterator<Item = u8> {
    (0..length).map(|_| random.below(256) as u8)
}

/// A payload: bytes, or lines of likely names and unlikely values.
fn payload(random: &mut Random) -> Vec<u8> {
    if random.below(3) == 0 {
        let length = pick(random, &[0, 1, 20, 4096, 5000]);
        return bytes(random, length).collect();
    }
    let starts = [&b"FDTOOLS=1\n"[..], b"FDTOOLS=1\nPROTO=TCP\n", b""];
    let mut payload = pick(random, &starts).to_vec();
    for _ in 0..random.below(8) {
        let likely = ["PROTO", "TCPREMOTEIP", "IPCREMOTEPATH"];
        let names = [&likely[..], &["PATH", "LD_PRELOAD", "", "FDTOOLS"]].concat();
        payload.extend(pick(random, &names).as_bytes());
        payload.push(pick(random, b"==\n\0"));
        let length = random.below(30);
        payload.extend(bytes(random, length));
        payload.push(pick(random, b"\n\n\n="));
    }
    payload
}

#[test]
fn a_thousand_random_messages_leave_the_pool_as_it_was() {
    // As a connection, the end of a pair would be shut after its handler, and the queue with it.
    for (target, passes_itself) in [
        (Target::with_handler(&["true"]), true),
        (
            Target::on_pair(socket_pair(SockType::SeqPacket), &["true"]),
            false,
        ),
    ] {
        let mut random = Random(1);
        // Its slot is ready, and has nothing open that it only needs to start.
        target.serve_one();
        let (slot, before) = (target.slot(), target.settled());
        let zero = File::open("/dev/zero").unwrap();
        let (one, other) = UnixStream::pair().unwrap();
        for _ in 0..500 {
            let payload = payload(&mut random);
            let own = passes_itself.then_some(target.queue.as_fd());
            let kinds = [zero.as_fd(), one.as_fd(), other.as_fd()];
            let kinds: Vec<_> = kinds.into_iter().chain(own).collect();
            let count = pick(&mut random, &[0, 0, 1, 2, 3, 253]);
            let carried: Vec<_> = (0..count).map(|_| pick(&mut random, &kinds)).collect();
            match send(&target.queue, &payload, &carried) {
                // The kernel does not pass descriptors round in circles for ever.
                Err(error) if error.raw_os_error() == Some(Errno::ETOOMANYREFS as i32) => {}
                sent => sent.unwrap(),
            }
        }
        target.serve_one();
        assert_eq!(target.pool.children(), [slot], "no slot was lost");
        target.until_open(&before);
    }
}
