//! PROXY headers: whom a proxy speaks for, what is no header, who takes too long to say it, and
//! what limits, rules and a stop make of it.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::poll::wait;
use crate::support::{
    self, DEADLINE, Names, Process, Random, children, cpu_time, descriptors, eventually, exchange,
    is_answered, program, read_line, run, script, skip, state, take_apart, until,
};
use fdtools::queue::Receiver;
use fdtools::queue::message;
use fdtools::queue::name::Name;
use fdtools::queue::trust::Trust;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, connect, send, setsockopt,
    socket, sockopt,
};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags};

/// A handler that tells who its client is and where it connected to, and then gives back what it
/// gets until its client ends.
const WHO: [&str; 3] = [
    "sh",
    "-c",
    "echo $TCPREMOTEIP $TCPREMOTEPORT $TCPLOCALIP $TCPLOCALPORT; exec cat",
];

/// One that tells its client's address and the count of its connections, and does the same.
const COUNT: [&str; 3] = ["sh", "-c", "echo $TCPREMOTEIP $TCPCONNNUM; exec cat"];

/// How a header of version 2 begins.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The two commands of version 2.
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;

/// A client that proxies speak for, where it connected to, and how a handler tells it.
const CLIENT: &str = "192.0.2.1:51000";
const SERVER: &str = "198.51.100.7:443";
const TOLD: &str = "192.0.2.1 51000 198.51.100.7 443";

/// For how long something is watched that is not to happen.
const WATCH: Duration = Duration::from_millis(200);

/// More time for a header than any test takes.
const PATIENT: [&str; 2] = ["--proxy-timeout", "1000"];

/// A header of version 1.
fn v1(client: &str, server: &str) -> Vec<u8> {
    let (client, server) = (address(client), address(server));
    let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
    let ips = format!("{} {}", client.ip(), server.ip());
    let ports = format!("{} {}", client.port(), server.port());
    format!("PROXY {family} {ips} {ports}\r\n").into_bytes()
}

/// One of version 2.
fn v2(client: &str, server: &str) -> Vec<u8> {
    v2_with(client, server, &[])
}

/// One of version 2 with more behind the addresses.
fn v2_with(client: &str, server: &str, more: &[u8]) -> Vec<u8> {
    let (client, server) = (address(client), address(server));
    let bytes = |ip| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let rest = [
        &bytes(client.ip())[..],
        &bytes(server.ip()),
        &client.port().to_be_bytes(),
        &server.port().to_be_bytes(),
        more,
    ];
    let family = if client.is_ipv4() { 0x11 } else { 0x21 };
    v2_of(PROXY, family, &rest.concat())
}

/// One of version 2 with any command and family.
fn v2_of(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [SIGNATURE, &[command, family], &length, rest].concat()
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A vector as version 2 has it behind the addresses (PP2_TYPE_NOOP), with a value of this length.
fn padding(length: u16) -> Vec<u8> {
    let [high, low] = length.to_be_bytes();
    [&[4, high, low][..], &vec![b'\n'; usize::from(length)]].concat()
}

/// Each version that takes the one, and a header of it.
fn both_versions() -> [(&'static str, Vec<u8>); 4] {
    [
        ("v1", v1(CLIENT, SERVER)),
        ("any", v1(CLIENT, SERVER)),
        ("v2", v2(CLIENT, SERVER)),
        ("any", v2(CLIENT, SERVER)),
    ]
}

/// fdaccept with a named queue, to which consumers come; 127.0.0.1 is its proxy.
struct Acceptor {
    names: Names,
    process: Process,
    port: u16,
}

impl Acceptor {
    fn start(version: &str, options: &[&str]) -> Self {
        Self::listen(version, options, "127.0.0.1:0")
    }

    fn listen(version: &str, options: &[&str], address: &str) -> Self {
        let names = Names::new();
        let mut command = program("fdaccept");
        command.args(["--bind", &names.path(), "--proxy-protocol", version]);
        command.args(["--proxy-from", "127.0.0.1"]).args(options);
        let mut process = Process::start(command.arg(address));
        let port = process.port();
        Self {
            names,
            process,
            port,
        }
    }

    /// `fdpool --connect QUEUE N -- HANDLER`.
    fn pool(&self, size: usize, handler: &[&str]) -> Process {
        let mut command = program("fdpool");
        command.args(["--connect", &self.names.path(), &size.to_string(), "--"]);
        Process::start(command.args(handler))
    }

    /// A consumer in this process.
    fn receiver(&self) -> Receiver {
        let name = Name::parse(self.names.path().as_ref()).unwrap();
        Receiver::connect(&name, &Trust::everybody()).unwrap()
    }

    fn connect(&self) -> TcpStream {
        support::connect(self.port)
    }

    /// A client that has sent this, however that ended.
    fn says(&self, bytes: &[u8]) -> TcpStream {
        let mut client = self.connect();
        let _ = client.write_all(bytes);
        client
    }

    /// Waits until it has done what there was to do, and sleeps.
    #[track_caller]
    fn until_asleep(&self) {
        let pid = self.process.pid();
        until("fdaccept to sleep", || state(pid) == Some('S'));
    }

    /// A client that has sent this, each byte once fdaccept had done with the one before it.
    #[track_caller]
    fn says_slowly(&self, bytes: &[u8]) -> TcpStream {
        let mut client = self.connect();
        client.set_nodelay(true).unwrap();
        for byte in bytes {
            self.until_asleep();
            client.write_all(&[*byte]).unwrap();
        }
        client
    }

    /// One of the numbers that it tells on USR1.
    fn counted(&mut self, what: &str) -> u64 {
        counted(&mut self.process, what)
    }

    #[track_caller]
    fn until_counted(&mut self, what: &str, count: u64) {
        until_counted(&mut self.process, what, count);
    }

    /// Clients that have sent this and no more, once all of them were accepted, after `before`
    /// others.
    #[track_caller]
    fn stalled(&mut self, count: usize, bytes: &[u8], before: u64) -> Vec<TcpStream> {
        let stalled: Vec<_> = (0..count).map(|_| self.says(bytes)).collect();
        self.until_counted("accepted", before + count as u64);
        stalled
    }

    /// Sends the signal to stop, and waits for the end. Returns the status and all lines.
    #[track_caller]
    fn stop(mut self) -> (Option<i32>, String) {
        self.process.signal(Signal::SIGTERM);
        let (status, log) = self.process.finish();
        (status.code(), log)
    }
}

/// One of the numbers that fdaccept tells on USR1.
#[track_caller]
fn counted(process: &mut Process, what: &str) -> u64 {
    process.signal(Signal::SIGUSR1);
    number(&process.line("held up by rate"), what)
}

#[track_caller]
fn until_counted(process: &mut Process, what: &str, count: u64) {
    let mut last = 0;
    let deadline = Instant::now() + DEADLINE;
    while Instant::now() < deadline {
        last = counted(process, what);
        if last == count {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{what} {last}, not {count}");
}

/// The number behind `what` in a line of counters.
#[track_caller]
fn number(line: &str, what: &str) -> u64 {
    let (_, rest) = line.split_once(&format!("{what} ")).unwrap();
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
    digits.unwrap().parse().unwrap()
}

/// Ends what a client says. Returns the first line that it gets, and all that comes behind.
#[track_caller]
fn finish(mut client: TcpStream) -> (String, Vec<u8>) {
    client.shutdown(Shutdown::Write).unwrap();
    let mut told = Vec::new();
    client.read_to_end(&mut told).unwrap();
    split(&told)
}

#[track_caller]
fn split(told: &[u8]) -> (String, Vec<u8>) {
    let end = told.iter().position(|byte| *byte == b'\n');
    let end = end.unwrap_or_else(|| panic!("no line: {told:?}"));
    let line = String::from_utf8(told[..end].to_vec()).unwrap();
    (line, told[end + 1..].to_vec())
}

/// How a handler tells the addresses of the connection itself.
fn own(client: &TcpStream) -> String {
    let (client, server) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
    let (ip, port) = (client.ip().to_canonical(), client.port());
    format!("{ip} {port} {} {}", server.ip(), server.port())
}

/// Waits until a client's connection ends, without a word to it.
#[track_caller]
fn is_closed(mut client: TcpStream) {
    match client.read(&mut [0]) {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("{other:?}"),
    }
}

/// That a client's connection is reset, be it that it learns so when it connects.
#[track_caller]
fn is_reset(client: std::io::Result<TcpStream>) {
    let end = client.and_then(|mut client| client.read(&mut [0]));
    let end = end.map_err(|error| error.kind());
    assert_eq!(end, Err(ErrorKind::ConnectionReset));
}

/// A client with an address of its own, of either family.
fn connect_from(from: &str, server: SocketAddr) -> std::io::Result<TcpStream> {
    let from: IpAddr = from.parse().unwrap();
    let family = match from {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, SockType::Stream, flags, None).unwrap();
    bind(
        socket.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(from, 0)),
    )
    .unwrap();
    connect(socket.as_raw_fd(), &SockaddrStorage::from(server))?;
    let client = TcpStream::from(socket);
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.set_write_timeout(Some(DEADLINE)).unwrap();
    Ok(client)
}

/// How many of the bytes that a client has sent over IPv4 nobody at the other end has read; `None`
/// if the kernel tells of no such connection.
fn unread(client: &TcpStream) -> Option<usize> {
    let port = |address: SocketAddr| format!(":{:04X}", address.port());
    let server = port(client.peer_addr().unwrap());
    let client = port(client.local_addr().unwrap());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let is_it = words[1].ends_with(&server) && words[2].ends_with(&client);
        let (_, waiting) = words[4].split_once(':')?;
        is_it.then(|| usize::from_str_radix(waiting, 16).unwrap())
    })
}

#[track_caller]
fn until_all_is_read(client: &TcpStream) {
    until("all to be read", || unread(client) == Some(0));
}

/// Watches for a while that `is_true` stays so.
#[track_caller]
fn stays(what: &str, mut is_true: impl FnMut() -> bool) {
    let end = Instant::now() + WATCH;
    while Instant::now() < end {
        assert!(is_true(), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[track_caller]
fn is_left_waiting(client: &TcpStream) {
    stays("the client waits", || !is_answered(client));
}

/// Checks that a process that has nothing to do uses no CPU in a second, in which it would use all
/// of one if it did not wait.
#[track_caller]
fn is_idle(pid: Pid) {
    let before = cpu_time(pid);
    // Nothing happens meanwhile: there is nothing else to wait for.
    std::thread::sleep(Duration::from_secs(1));
    let used = cpu_time(pid) - before;
    assert!(used < Duration::from_millis(150), "{used:?} in a second");
}

/// The descriptors of a process, once they do not change any more.
#[track_caller]
fn settled(pid: Pid) -> Vec<(i32, String)> {
    let mut last = descriptors(pid);
    let mut same = 0;
    until("no change of descriptors", || {
        let now = descriptors(pid);
        same = if now == last { same + 1 } else { 0 };
        last = now;
        same == 20
    });
    last
}

/// One connection as a consumer in this process has it.
struct Taken {
    connection: OwnedFd,
    _lease: Option<OwnedFd>,
    client: String,
}

fn try_take(receiver: &Receiver) -> Option<Taken> {
    let (connection, lease, info) = take_apart(receiver)?;
    let text = |variable| {
        let value = info.get(variable).unwrap().to_vec();
        String::from_utf8(value).unwrap()
    };
    let ip = text(message::TCP_REMOTE_IP);
    Some(Taken {
        connection,
        _lease: lease,
        client: format!("{ip} {}", text(message::TCP_REMOTE_PORT)),
    })
}

#[track_caller]
fn take(receiver: &Receiver) -> Taken {
    let deadline = Instant::now() + DEADLINE;
    let mut fds = [PollFd::new(receiver, PollFlags::IN)];
    while Instant::now() < deadline {
        wait(&mut fds, Some(deadline)).unwrap();
        if let Some(taken) = try_take(receiver) {
            return taken;
        }
    }
    panic!("still waiting for a connection");
}

#[track_caller]
fn nothing_comes(receiver: &Receiver) {
    stays("no connection comes", || try_take(receiver).is_none());
}

fn has_ipv6() -> bool {
    let is_there = TcpListener::bind("[::1]:0").is_ok();
    if !is_there {
        skip("there is no IPv6");
    }
    is_there
}

// Who the client is.

#[test]
fn a_handler_is_told_the_client_that_the_header_names() {
    let (client6, server6) = ("[2001:db8::1]:65535", "[2001:db8::2]:1");
    let told6 = "2001:db8::1 65535 2001:db8::2 1";
    for version in ["v1", "any", "v2"] {
        let acceptor = Acceptor::start(version, &[]);
        let _pool = acceptor.pool(2, &WHO);
        let ask = |header: Vec<u8>| split(&exchange(acceptor.port, &header));
        if version != "v2" {
            assert_eq!(ask(v1(CLIENT, SERVER)).0, TOLD);
            assert_eq!(ask(v1(client6, server6)).0, told6);
        }
        if version != "v1" {
            assert_eq!(ask(v2(CLIENT, SERVER)).0, TOLD);
            assert_eq!(ask(v2(client6, server6)).0, told6);
        }
    }
}

#[test]
fn a_handler_finds_all_its_variables() {
    let text = "echo $PROTO $TCPREMOTEIP $TCPREMOTEPORT $TCPLOCALIP $TCPLOCALPORT $REMOTE_ADDR \
        $REMOTE_PORT ${IPCREMOTEEUID-none} ${TCPCONNNUM-none}";
    let acceptor = Acceptor::start("any", &[]);
    let _pool = acceptor.pool(1, &["sh", "-c", text]);
    for header in [v1(CLIENT, SERVER), v2(CLIENT, SERVER)] {
        let told = exchange(acceptor.port, &header);
        let expected = format!("TCP {TOLD} 192.0.2.1 51000 none none\n");
        assert_eq!(String::from_utf8(told).unwrap(), expected);
    }
}

/// That the client of a header is told where fdaccept and a pool find each other as `text` says.
#[track_caller]
fn assert_told(text: &str) {
    let names = Names::new();
    let options = "--proxy-protocol any --proxy-from 127.0.0.1 127.0.0.1:0";
    let text = text
        .replace("OPTIONS", options)
        .replace("HANDLER", &format!("sh -c '{}'", WHO[2]));
    let mut process = Process::start(script("sh", &text).current_dir(&names.directory));
    let port = process.port();
    for header in [v1(CLIENT, SERVER), v2(CLIENT, SERVER)] {
        let told = exchange(port, &[&header[..], b"data"].concat());
        assert_eq!(split(&told), (TOLD.to_owned(), b"data".to_vec()));
    }
}

#[test]
fn the_client_is_told_in_a_chain() {
    assert_told("exec fdaccept OPTIONS -- fdpool 2 -- HANDLER");
}

#[test]
fn the_client_is_told_in_a_pipeline() {
    assert_told("fdaccept OPTIONS | fdpool 2 -- HANDLER");
}

#[test]
fn the_client_is_told_with_a_name_of_the_consumer() {
    assert_told("fdpool --bind ./q 2 -- HANDLER & exec fdaccept --connect ./q OPTIONS");
}

#[test]
fn the_client_is_told_in_a_loop_of_fdrecv() {
    let each = "while fdrecv -- HANDLER || [ $? -ne 69 ]; do :; done";
    assert_told(&format!("fdaccept OPTIONS | {each}"));
}

#[test]
fn the_client_is_told_with_an_inherited_listener() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut command = program("fdaccept");
    command.args(["--proxy-protocol", "any", "--proxy-from", "127.0.0.1"]);
    command.args(["fd:0", "--", "fdpool", "2", "--"]).args(WHO);
    command.stdin(Stdio::from(OwnedFd::from(listener)));
    let _process = Process::start(&mut command);
    for header in [v1(CLIENT, SERVER), v2(CLIENT, SERVER)] {
        assert_eq!(split(&exchange(port, &header)).0, TOLD);
    }
}

#[test]
fn every_listener_expects_headers() {
    let mut command = program("fdaccept");
    command.args(RIGHT).args(["127.0.0.1:0", "127.0.0.1:0"]);
    command.args(["--", "fdpool", "2", "--"]).args(WHO);
    let mut process = Process::start(&mut command);
    for port in [process.port(), process.port()] {
        assert_eq!(split(&exchange(port, &v1(CLIENT, SERVER))).0, TOLD);
        let mut client = support::connect(port);
        client.write_all(b"GET / HTTP/1.1\r\n").unwrap();
        is_closed(client);
    }
}

#[test]
fn a_proxy_that_speaks_for_itself_is_the_client() {
    let long = "PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n".as_bytes();
    let tcp4 = [192, 0, 2, 1, 198, 51, 100, 7, 0, 1, 0, 2];
    let acceptor = Acceptor::start("any", &[]);
    let _pool = acceptor.pool(2, &WHO);
    for header in [
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN \r\n".to_vec(),
        b"PROXY UNKNOWN something else\r\n".to_vec(),
        long.to_vec(),
        v2_of(LOCAL, 0x00, b""),
        v2_of(LOCAL, 0x11, &tcp4),
        v2_of(LOCAL, 0x11, b"short"),
        // A family that there is not, of which nothing is asked here.
        v2_of(LOCAL, 0xff, b"ignored"),
        v2_of(LOCAL, 0x00, &[0xff; 5000]),
    ] {
        let client = acceptor.says(&[&header[..], b"data"].concat());
        let expected = (own(&client), b"data".to_vec());
        assert_eq!(finish(client), expected, "{header:?}");
    }
}

#[test]
fn addresses_of_another_kind_than_the_connection_are_not_used() {
    let (inet, inet6) = ([1; 12], [1; 36]);
    let acceptor = Acceptor::start("v2", &[]);
    let _pool = acceptor.pool(2, &WHO);
    for header in [
        // Nothing said, datagrams, and Unix sockets.
        v2_of(PROXY, 0x00, b""),
        v2_of(PROXY, 0x00, &[0xff; 300]),
        v2_of(PROXY, 0x12, &inet),
        v2_of(PROXY, 0x22, &inet6),
        v2_of(PROXY, 0x31, &[b'x'; 216]),
        v2_of(PROXY, 0x32, &[0; 216]),
    ] {
        let client = acceptor.says(&[&header[..], b"data"].concat());
        let expected = (own(&client), b"data".to_vec());
        assert_eq!(finish(client), expected, "{header:?}");
    }
}

/// As the protocol has it: "the receiver must ignore anything presented before the CRLF".
#[test]
fn whatever_a_line_of_an_unknown_client_says_is_ignored() {
    let acceptor = Acceptor::start("v1", &PATIENT);
    let _pool = acceptor.pool(2, &WHO);
    for line in [
        &b"PROXY UNKNOWN one two three four five six seven\r\n"[..],
        b"PROXY UNKNOWN \xff\xfe\r\n",
    ] {
        let client = acceptor.says(&[line, b"data"].concat());
        let expected = (own(&client), b"data".to_vec());
        let mut told = Vec::new();
        client.shutdown(Shutdown::Write).unwrap();
        (&client).read_to_end(&mut told).unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        assert!(!told.is_empty(), "{line:?} is refused");
        assert_eq!(split(&told), expected, "{line:?}");
    }
}

#[test]
fn any_address_and_port_can_be_told() {
    let acceptor = Acceptor::start("any", &[]);
    let _pool = acceptor.pool(2, &WHO);
    for (client, server) in [
        ("0.0.0.0:0", "255.255.255.255:65535"),
        ("127.0.0.1:1", "127.0.0.1:1"),
        ("[::]:0", "[ffff::ffff]:65535"),
        ("[1:2:3:4:5:6:7:8]:9", "[fe80::1]:10"),
    ] {
        let (from, to) = (address(client), address(server));
        let ips = (from.ip(), to.ip());
        let expected = format!("{} {} {} {}", ips.0, from.port(), ips.1, to.port());
        for header in [v1(client, server), v2(client, server)] {
            assert_eq!(split(&exchange(acceptor.port, &header)).0, expected);
        }
    }
}

#[test]
fn mapped_addresses_are_told_as_the_ipv4_addresses_that_they_are() {
    let acceptor = Acceptor::start("any", &[]);
    let _pool = acceptor.pool(2, &WHO);
    let mapped = ("[::ffff:192.0.2.1]:51000", "[::ffff:198.51.100.7]:443");
    for header in [v1(mapped.0, mapped.1), v2(mapped.0, mapped.1)] {
        assert_eq!(split(&exchange(acceptor.port, &header)).0, TOLD);
    }
}

// Who may say it.

#[test]
fn a_client_that_is_no_proxy_is_reset_and_counted_whatever_it_says() {
    let mut acceptor = Acceptor::start("any", &["-v", "--proxy-from", "127.0.0.8/31"]);
    let _pool = acceptor.pool(2, &WHO);
    let server = SocketAddr::from(([127, 0, 0, 1], acceptor.port));
    for (number, words) in [&v1(CLIENT, SERVER)[..], &v2(CLIENT, SERVER), b"", b"GET"]
        .into_iter()
        .enumerate()
    {
        // The reset may be told to whichever call comes next.
        let client = connect_from("127.0.0.7", server)
            .and_then(|mut client| client.write_all(words).map(|()| client));
        is_reset(client);
        acceptor.until_counted("refused by rule", number as u64 + 1);
    }
    assert_eq!(acceptor.counted("bad header"), 0);
    for proxy in ["127.0.0.1", "127.0.0.8", "127.0.0.9"] {
        let mut client = connect_from(proxy, server).unwrap();
        client.write_all(&v1(CLIENT, SERVER)).unwrap();
        assert_eq!(finish(client).0, TOLD);
    }
    let log = acceptor.process.log();
    let port = acceptor.port;
    let refused = format!("fdaccept: refused 127.0.0.7 on 127.0.0.1:{port}: a rule denies it");
    let refusals = log.lines().filter(|line| *line == refused).count();
    assert_eq!(refusals, 4, "{log}");
}

#[test]
fn proxies_may_come_over_ipv6_and_over_ipv4_to_a_listener_for_both() {
    if !has_ipv6() {
        return;
    }
    for from in [["127.0.0.0/8", "::1"], ["::ffff:127.0.0.0/104", "::/127"]] {
        let options = ["--proxy-from", from[0], "--proxy-from", from[1]];
        let acceptor = Acceptor::listen("any", &options, "0");
        let _pool = acceptor.pool(2, &WHO);
        let port = acceptor.port;
        for (proxy, server) in [("127.0.0.9", "127.0.0.1"), ("::1", "::1")] {
            let server = SocketAddr::new(server.parse().unwrap(), port);
            for header in [v1(CLIENT, SERVER), v2(CLIENT, SERVER)] {
                let mut client = connect_from(proxy, server).unwrap();
                client.write_all(&header).unwrap();
                assert_eq!(finish(client).0, TOLD);
            }
            for header in [b"PROXY UNKNOWN\r\n".to_vec(), v2_of(LOCAL, 0, b"")] {
                let mut client = connect_from(proxy, server).unwrap();
                client.write_all(&header).unwrap();
                let expected = own(&client);
                assert_eq!(finish(client).0, expected);
            }
        }
    }
    let acceptor = Acceptor::listen("any", &[], "0");
    let server = SocketAddr::new("::1".parse().unwrap(), acceptor.port);
    is_reset(connect_from("::1", server));
}

// What belongs to the header, and what to the handler.

/// What could be taken for more of a header, or for its end.
fn treacherous_data() -> Vec<Vec<u8>> {
    vec![
        b"".to_vec(),
        b"\r\n".to_vec(),
        b"\n".to_vec(),
        b"\0".to_vec(),
        v1("203.0.113.9:1", SERVER),
        v2("203.0.113.9:1", SERVER),
        SIGNATURE.to_vec(),
        vec![b'\r'; 300],
        (0..100_000_u32).map(|n| (n % 251) as u8).collect(),
    ]
}

#[test]
fn data_in_one_segment_with_the_header_arrives_untouched() {
    for (version, header) in both_versions() {
        let acceptor = Acceptor::start(version, &[]);
        let _pool = acceptor.pool(2, &WHO);
        for data in treacherous_data() {
            let mut client = acceptor.connect();
            // Read and written at once, since there may be more than buffers hold.
            let mut writer = client.try_clone().unwrap();
            let bytes = [&header[..], &data].concat();
            let writer = std::thread::spawn(move || {
                writer.write_all(&bytes).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            let mut told = Vec::new();
            client.read_to_end(&mut told).unwrap();
            writer.join().unwrap();
            assert_eq!(split(&told), (TOLD.to_owned(), data));
        }
    }
}

#[test]
fn not_a_byte_more_than_the_header_is_read() {
    for (version, header) in both_versions() {
        let acceptor = Acceptor::start(version, &[]);
        let receiver = acceptor.receiver();
        for data in treacherous_data() {
            let data = &data[..data.len().min(1000)];
            let _client = acceptor.says(&[&header[..], data].concat());
            let connection = TcpStream::from(take(&receiver).connection);
            // All was there before the connection was passed on.
            connection.set_nonblocking(true).unwrap();
            let mut there = [0; 2000];
            let count = connection.peek(&mut there).unwrap_or_default();
            assert_eq!(&there[..count], data);
        }
    }
}

#[test]
fn a_handler_speaks_first_where_only_a_header_has_come() {
    for (version, header) in both_versions() {
        let acceptor = Acceptor::start(version, &[]);
        let _pool = acceptor.pool(2, &WHO);
        let client = acceptor.says(&header);
        assert_eq!(read_line(&client), TOLD);
        // And it answers at once, though the client goes on.
        for word in ["ping\n", "PROXY \n", "\r\n"] {
            (&client).write_all(word.as_bytes()).unwrap();
            let mut answer = vec![0; word.len()];
            (&client).read_exact(&mut answer).unwrap();
            assert_eq!(answer, word.as_bytes());
        }
    }
}

#[test]
fn no_handler_starts_before_the_header_is_complete() {
    for (version, header) in both_versions() {
        let acceptor = Acceptor::start(version, &PATIENT);
        let _pool = acceptor.pool(2, &WHO);
        let (last, most) = header.split_last().unwrap();
        let mut client = acceptor.says(most);
        until_all_is_read(&client);
        is_left_waiting(&client);
        client.write_all(&[*last]).unwrap();
        assert_eq!(read_line(&client), TOLD);
    }
}

#[test]
fn a_header_may_come_in_two_parts_wherever_it_is_cut() {
    for (version, header) in both_versions() {
        let acceptor = Acceptor::start(version, &PATIENT);
        let _pool = acceptor.pool(4, &WHO);
        for cut in 1..header.len() {
            let mut client = acceptor.says(&header[..cut]);
            acceptor.until_asleep();
            let rest = [&header[cut..], b"\r\ndata"].concat();
            client.write_all(&rest).unwrap();
            let expected = (TOLD.to_owned(), b"\r\ndata".to_vec());
            assert_eq!(finish(client), expected, "{version} {cut}");
        }
    }
}

#[test]
fn a_header_may_come_byte_by_byte() {
    for (version, header) in both_versions() {
        let acceptor = Acceptor::start(version, &PATIENT);
        let _pool = acceptor.pool(2, &WHO);
        let mut client = acceptor.says_slowly(&header);
        client.write_all(b"data").unwrap();
        assert_eq!(finish(client), (TOLD.to_owned(), b"data".to_vec()));
    }
}

#[test]
fn the_longest_lines_may_come_byte_by_byte() {
    let most = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    let unknown = format!("PROXY UNKNOWN {most} {most} 65535 65535\r\n");
    let known = format!("PROXY TCP6 {most} {most} 65535 65535\r\n");
    assert_eq!((unknown.len(), known.len()), (107, 104));
    for version in ["v1", "any"] {
        let acceptor = Acceptor::start(version, &PATIENT);
        let _pool = acceptor.pool(2, &WHO);
        for line in [&unknown, &known] {
            let mut client = acceptor.says_slowly(line.as_bytes());
            let expected = if line == &unknown {
                own(&client)
            } else {
                format!("{most} 65535 {most} 65535")
            };
            client.write_all(b"data").unwrap();
            assert_eq!(finish(client), (expected, b"data".to_vec()));
        }
    }
}

#[test]
fn a_long_header_may_come_byte_by_byte() {
    let header = v2_with(CLIENT, SERVER, &padding(300));
    let acceptor = Acceptor::start("any", &PATIENT);
    let _pool = acceptor.pool(2, &WHO);
    let mut client = acceptor.says_slowly(&header);
    client.write_all(b"data").unwrap();
    assert_eq!(finish(client), (TOLD.to_owned(), b"data".to_vec()));
}

/// The longest header that there is.
fn longest() -> Vec<u8> {
    let header = v2_with(CLIENT, SERVER, &padding(u16::MAX - 12 - 3));
    assert_eq!(header.len(), 16 + 65_535);
    header
}

#[test]
fn the_longest_header_may_come_at_once_or_in_single_bytes() {
    for version in ["v2", "any"] {
        let acceptor = Acceptor::start(version, &PATIENT);
        let _pool = acceptor.pool(2, &WHO);
        let data = v1(CLIENT, SERVER);
        let client = acceptor.says(&[longest(), data.clone()].concat());
        assert_eq!(finish(client), (TOLD.to_owned(), data.clone()));
        let mut client = acceptor.connect();
        client.set_nodelay(true).unwrap();
        for byte in longest() {
            client.write_all(&[byte]).unwrap();
        }
        client.write_all(&data).unwrap();
        assert_eq!(finish(client), (TOLD.to_owned(), data));
    }
}

#[test]
fn headers_are_as_long_as_they_say_whatever_they_hold() {
    let acceptor = Acceptor::start("v2", &[]);
    let _pool = acceptor.pool(2, &WHO);
    // No vectors, or broken ones: nothing of them is of interest.
    for more in [
        b"\x04".to_vec(),
        b"\x04\xff\xff".to_vec(),
        b"\x20\0\0".to_vec(),
        vec![0; 4080],
        vec![0xff; 4096],
        SIGNATURE.to_vec(),
    ] {
        let header = v2_with(CLIENT, SERVER, &more);
        let told = exchange(acceptor.port, &[&header[..], b"data"].concat());
        assert_eq!(split(&told), (TOLD.to_owned(), b"data".to_vec()));
    }
}

/// Cuts that look random, of headers of any kind with any data behind.
#[test]
fn however_a_stream_is_cut_the_handler_gets_what_follows_the_header() {
    let acceptor = Acceptor::start("any", &PATIENT);
    let _pool = acceptor.pool(4, &WHO);
    let mut random = Random(11);
    for round in 0..100 {
        let more = padding(random.below(600) as u16);
        let header = match random.below(3) {
            0 => v1(CLIENT, SERVER),
            1 => v2(CLIENT, SERVER),
            _ => v2_with(CLIENT, SERVER, &more),
        };
        let letters = b"\r\n PROXY\0";
        let count = random.below(200);
        let letter = |_| letters[random.below(letters.len() as u64) as usize];
        let data: Vec<u8> = (0..count).map(letter).collect();
        let stream = [&header[..], &data].concat();
        let mut client = acceptor.connect();
        client.set_nodelay(true).unwrap();
        let mut rest = &stream[..];
        while !rest.is_empty() {
            let most = 1 + random.below(60).min(rest.len() as u64 - 1);
            let (part, after) = rest.split_at(most as usize);
            client.write_all(part).unwrap();
            random.pause(300);
            rest = after;
        }
        assert_eq!(finish(client), (TOLD.to_owned(), data), "{round}");
    }
}

#[test]
fn the_end_of_a_client_behind_its_header_is_the_handlers() {
    for (version, header) in both_versions() {
        let acceptor = Acceptor::start(version, &[]);
        let client = acceptor.says(&header);
        client.shutdown(Shutdown::Write).unwrap();
        // There by the time the header is read, too.
        let _pool = acceptor.pool(1, &WHO);
        assert_eq!(finish(client), (TOLD.to_owned(), Vec::new()));
    }
}

#[test]
fn urgent_data_within_a_header_does_not_disturb_others() {
    for (version, header) in both_versions() {
        let mut acceptor = Acceptor::start(version, &["--proxy-timeout", "2"]);
        let _pool = acceptor.pool(2, &WHO);
        let mut clients: Vec<_> = [0, 1, 7, 13, header.len() - 1]
            .into_iter()
            .map(|place| {
                let client = acceptor.says(&header[..place]);
                send(client.as_raw_fd(), b"!", MsgFlags::MSG_OOB).unwrap();
                client
            })
            .collect();
        assert_eq!(split(&exchange(acceptor.port, &header)).0, TOLD);
        is_idle(acceptor.process.pid());
        // Whatever is made of them.
        for client in &mut clients {
            let _ = client.write_all(&header);
        }
        acceptor.until_counted("accepted", 6);
        until("an end of all", || {
            acceptor.counted("passed") + acceptor.counted("bad header") == 6
        });
    }
}

// What is no header.

/// Checks that fdaccept closes the connections of clients that say these and then wait, as soon
/// as it sees that, counts them, and serves the next one.
#[track_caller]
fn assert_malformed(version: &str, all: &[Vec<u8>]) {
    let mut acceptor = Acceptor::start(version, &[&PATIENT[..], &["-v"]].concat());
    let _pool = acceptor.pool(1, &WHO);
    for (number, bad) in all.iter().enumerate() {
        let mut client = acceptor.says(bad);
        let end = client.read(&mut [0; 100]);
        let is_closed = match &end {
            Ok(count) => *count == 0,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        };
        let shown = bad.escape_ascii();
        assert!(is_closed, "{version} \"{shown}\": {end:?}");
        acceptor.until_counted("bad header", number as u64 + 1);
    }
    let header = match version {
        "v1" => v1(CLIENT, SERVER),
        _ => v2(CLIENT, SERVER),
    };
    assert_eq!(split(&exchange(acceptor.port, &header)).0, TOLD);
    let port = acceptor.port;
    let refused = format!("fdaccept: refused 127.0.0.1 on 127.0.0.1:{port}: no PROXY header");
    let log = acceptor.process.log();
    let refusals = log.lines().filter(|line| *line == refused).count();
    assert_eq!(refusals, all.len(), "{log}");
}

/// What is a line, but no header.
fn bad_lines() -> Vec<Vec<u8>> {
    let long = "x".repeat(200);
    let with_return_late = format!("PROXY UNKNOWN {}\r\n", "x".repeat(92));
    assert_eq!(with_return_late.len(), 108);
    [
        "PROXY\r\n",
        "PROXY \r\n",
        "PROXY  UNKNOWN\r\n",
        "PROXY TCP4\r\n",
        "PROXY TCP4 \r\n",
        "PROXY TCP4 192.0.2.1\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 51000\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 51000 \r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 51000 443 \r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 51000 443 1\r\n",
        "PROXY TCP4  192.0.2.1 198.51.100.7 51000 443\r\n",
        "PROXY TCP4 192.0.2.1  198.51.100.7 51000 443\r\n",
        "PROXY TCP4 192.0.2.1\t198.51.100.7 51000 443\r\n",
        "PROXY\tTCP4 192.0.2.1 198.51.100.7 51000 443\r\n",
        " PROXY TCP4 192.0.2.1 198.51.100.7 51000 443\r\n",
        "\u{feff}PROXY TCP4 192.0.2.1 198.51.100.7 51000 443\r\n",
        "proxy TCP4 192.0.2.1 198.51.100.7 51000 443\r\n",
        "PROXY tcp4 192.0.2.1 198.51.100.7 51000 443\r\n",
        "PROXY TCP 192.0.2.1 198.51.100.7 51000 443\r\n",
        "PROXY TCP5 192.0.2.1 198.51.100.7 51000 443\r\n",
        "PROXY TCP44 192.0.2.1 198.51.100.7 51000 443\r\n",
        "PROXY UDP4 192.0.2.1 198.51.100.7 51000 443\r\n",
        "PROXY UNIX a b\r\n",
        "PROXY UNKNOWNS\r\n",
        // Addresses.
        "PROXY TCP4 192.0.2 198.51.100.7 51000 443\r\n",
        "PROXY TCP4 192.0.2.1.1 198.51.100.7 51000 443\r\n",
        "PROXY TCP4 192.0.2.256 198.51.100.7 51000 443\r\n",
        "PROXY TCP4 192.0.2.01 198.51.100.7 51000 443\r\n",
        "PROXY TCP4 0xc0000201 198.51.100.7 51000 443\r\n",
        "PROXY TCP4 3221225985 198.51.100.7 51000 443\r\n",
        "PROXY TCP4 192.0.2.-1 198.51.100.7 51000 443\r\n",
        "PROXY TCP4 192.0.2.+1 198.51.100.7 51000 443\r\n",
        "PROXY TCP4 192.0.2.1/32 198.51.100.7 51000 443\r\n",
        "PROXY TCP4 192.0.2.1:51000 198.51.100.7:443\r\n",
        "PROXY TCP4 localhost 198.51.100.7 51000 443\r\n",
        "PROXY TCP4 2001:db8::1 198.51.100.7 51000 443\r\n",
        "PROXY TCP4 ::ffff:192.0.2.1 198.51.100.7 51000 443\r\n",
        "PROXY TCP4 192.0.2.\u{661} 198.51.100.7 51000 443\r\n",
        "PROXY TCP6 192.0.2.1 198.51.100.7 51000 443\r\n",
        "PROXY TCP6 2001:db8::1 198.51.100.7 51000 443\r\n",
        "PROXY TCP6 [2001:db8::1] [2001:db8::2] 51000 443\r\n",
        "PROXY TCP6 2001:db8::1%lo 2001:db8::2 51000 443\r\n",
        "PROXY TCP6 2001::db8::1 2001:db8::2 51000 443\r\n",
        "PROXY TCP6 1:2:3:4:5:6:7:8:9 2001:db8::2 51000 443\r\n",
        "PROXY TCP6 1:2:3:4:5:6:7 2001:db8::2 51000 443\r\n",
        "PROXY TCP6 12345::1 2001:db8::2 51000 443\r\n",
        "PROXY TCP6 2001:db8::g 2001:db8::2 51000 443\r\n",
        // Ports.
        "PROXY TCP4 192.0.2.1 198.51.100.7 65536 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 51000 65536\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 051000 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 51000 00\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 -1 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 51000 -0\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 0x1 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 http 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 51000 99999999999999999999\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 51000 443\0\r\n",
        "PROXY TCP4 192.0.2.1\0 198.51.100.7 51000 443\r\n",
        // Ends.
        "PROXY TCP4 192.0.2.1 198.51.100.7 51000 443\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 51000 443\n\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 51000 443\r\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 51000 443\r \n",
        "PROXY TCP4 192.0.2.1 198.51.100.7\r 51000 443\r\n",
        "PROXY TCP4\r192.0.2.1\r198.51.100.7\r51000\r443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7\n51000 443\r\n",
        "PROXY UNKNOWN\n",
        // So long that there is no end in time.
        &format!("PROXY TCP4 192.0.2.1 198.51.100.7 51000 443\r{long}"),
        &format!("PROXY UNKNOWN {long}\r\n"),
        &with_return_late,
        &format!("PROXY {}", "x".repeat(101)),
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect()
}

#[test]
fn a_line_that_is_no_header_is_malformed() {
    assert_malformed("v1", &bad_lines());
}

#[test]
fn a_line_that_is_no_header_is_malformed_where_any_version_may_come() {
    let mut lines = bad_lines();
    // With at least as many bytes as tell one version from the other.
    for line in &mut lines {
        line.extend_from_slice(b"GET / HTTP/1.1\r\n\r\n");
    }
    assert_malformed("any", &lines);
}

/// "Decimal integer": digits.
#[test]
fn a_port_with_a_sign_is_malformed() {
    let line = |ports| format!("PROXY TCP4 192.0.2.1 198.51.100.7 {ports}\r\n").into_bytes();
    let bad = ["+51000 443", "51000 +443", "+0 443"].map(line);
    assert_malformed("v1", &bad);
}

/// "The receiver must not tolerate a single CR or LF character to end the line."
#[test]
fn a_line_that_ends_in_a_space_in_the_place_of_its_return_is_malformed() {
    let bad = [
        &b"PROXY TCP4 192.0.2.1 198.51.100.7 51000 443 \n"[..],
        b"PROXY UNKNOWN \n",
        b"PROXY UNKNOWN a b c d \n",
    ];
    assert_malformed("v1", &bad.map(<[u8]>::to_vec));
}

#[test]
fn hostile_bytes_are_malformed() {
    let bad = [
        &b"G"[..],
        b"GET / HTTP/1.1\r\nHost: example\r\n\r\n",
        b"\n",
        b"\r\r",
        b"\0",
        b"\xff\xff\xff\xff",
        b"PROXYTCP4 192.0.2.1 198.51.100.7 51000 443\r\n",
        b"PRO\0Y ",
        // TLS, SSH, and a record of nothing but newlines.
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        &[b'\n'; 5000],
        &[0; 5000],
        &[b'A'; 70_000],
    ];
    for version in ["v1", "v2", "any"] {
        assert_malformed(version, &bad.map(<[u8]>::to_vec));
    }
}

#[test]
fn a_wrong_signature_is_malformed_wherever_it_is_wrong() {
    let good = v2(CLIENT, SERVER);
    let bad: Vec<_> = (0..SIGNATURE.len())
        .map(|place| {
            let mut bad = good.clone();
            bad[place] ^= 0x20;
            bad
        })
        .collect();
    assert_malformed("v2", &bad);
    assert_malformed("any", &bad);
}

#[test]
fn a_version_or_command_that_there_is_not_is_malformed() {
    let commands = (0..=255_u8).filter(|command| !matches!(*command, LOCAL | PROXY));
    let bad: Vec<_> = commands
        .step_by(7)
        .chain([0x00, 0x01, 0x10, 0x11, 0x22, 0x2f, 0x30, 0x31])
        // Without what would follow: it is known by now.
        .map(|command| v2_of(command, 0x11, &[1; 12])[..16].to_vec())
        .collect();
    assert_malformed("any", &bad);
}

#[test]
fn a_family_that_there_is_not_is_malformed() {
    let bad: Vec<_> = [0x13, 0x1f, 0x23, 0x33, 0x0f, 0x40, 0x41, 0x51, 0x91, 0xf1]
        .map(|family| v2_of(PROXY, family, &[1; 300])[..16].to_vec())
        .to_vec();
    assert_malformed("v2", &bad);
}

#[test]
fn a_length_without_room_for_the_addresses_is_malformed() {
    let bad: Vec<_> = [
        (0x11, 0),
        (0x11, 1),
        (0x11, 11),
        (0x12, 11),
        (0x21, 0),
        (0x21, 12),
        (0x21, 35),
        (0x22, 35),
        (0x31, 0),
        (0x31, 215),
        (0x32, 215),
    ]
    .map(|(family, length)| v2_of(PROXY, family, &vec![1; length])[..16].to_vec())
    .to_vec();
    assert_malformed("v2", &bad);
    assert_malformed("any", &bad);
}

#[test]
fn a_header_of_the_other_version_is_malformed() {
    assert_malformed("v1", &[v2(CLIENT, SERVER), v2_of(LOCAL, 0, b"")]);
    assert_malformed("v2", &[v1(CLIENT, SERVER), b"PROXY UNKNOWN\r\n".to_vec()]);
}

#[test]
fn a_client_that_ends_before_its_header_is_complete_is_closed_and_counted() {
    for (version, header) in both_versions() {
        let mut acceptor = Acceptor::start(version, &PATIENT);
        let _pool = acceptor.pool(2, &WHO);
        let places = (0..header.len()).step_by(3).chain([header.len() - 1]);
        for (number, place) in places.enumerate() {
            let client = acceptor.says(&header[..place]);
            client.shutdown(Shutdown::Write).unwrap();
            is_closed(client);
            acceptor.until_counted("bad header", number as u64 + 1);
        }
        assert_eq!(split(&exchange(acceptor.port, &header)).0, TOLD);
    }
}

#[test]
fn a_client_that_resets_its_connection_in_its_header_is_counted_and_forgotten() {
    for (version, header) in both_versions() {
        let mut acceptor = Acceptor::start(version, &PATIENT);
        let before = settled(acceptor.process.pid());
        for place in [0, 1, 5, header.len() - 1] {
            let client = acceptor.says(&header[..place]);
            acceptor.until_asleep();
            let linger = nix::libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            setsockopt(&client, sockopt::Linger, &linger).unwrap();
        }
        // One that is gone before it is accepted may count as failed.
        until("all to be counted", || {
            acceptor.counted("bad header") + acceptor.counted("failed") == 4
        });
        assert_eq!(settled(acceptor.process.pid()), before);
        let _pool = acceptor.pool(1, &WHO);
        assert_eq!(split(&exchange(acceptor.port, &header)).0, TOLD);
    }
}

/// Streams that look random, most of which begin like a header.
#[test]
fn nothing_that_clients_say_keeps_others_from_being_served() {
    let acceptor = Acceptor::start("any", &["--proxy-timeout", "2"]);
    let _pool = acceptor.pool(4, &WHO);
    let pid = acceptor.process.pid();
    let before = settled(pid);
    let mut random = Random(5);
    for _ in 0..20 {
        let crowd: Vec<_> = (0..20)
            .map(|_| {
                let mut stream = match random.below(4) {
                    0 => v1(CLIENT, SERVER),
                    1 => v2_with(CLIENT, SERVER, &padding(50)),
                    2 => v2_of(PROXY, random.below(256) as u8, &[7; 40]),
                    _ => Vec::new(),
                };
                for _ in 0..random.below(4) {
                    if !stream.is_empty() {
                        let place = random.below(stream.len() as u64) as usize;
                        stream[place] = random.below(256) as u8;
                    }
                }
                let length = random.below(stream.len() as u64 + 1) as usize;
                stream.truncate(length);
                let tail = random.below(30);
                stream.extend((0..tail).map(|_| random.below(256) as u8));
                let client = acceptor.says(&stream);
                match random.below(3) {
                    0 => Some(client),
                    1 => {
                        let _ = client.shutdown(Shutdown::Write);
                        Some(client)
                    }
                    _ => None,
                }
            })
            .collect();
        for header in [v1(CLIENT, SERVER), v2(CLIENT, SERVER)] {
            assert_eq!(split(&exchange(acceptor.port, &header)).0, TOLD);
        }
        drop(crowd);
    }
    until("its end with them", || descriptors(pid) == before);
    let (status, log) = acceptor.stop();
    assert_eq!(status, Some(0), "{log}");
    let line = log.lines().last().unwrap();
    let sum = number(line, "passed") + number(line, "bad header");
    assert_eq!(number(line, "accepted"), sum, "{line}");
}

// Who takes too long.

/// A few places where a header may stop.
fn places(header: &[u8]) -> Vec<usize> {
    let mut places = vec![0, 1, 5, 6, 10, 11, 12, 13, 14, 15, 16, 17, 27];
    places.extend([header.len() - 2, header.len() - 1]);
    places.retain(|place| *place < header.len());
    places
}

#[test]
fn who_stalls_anywhere_blocks_nobody_and_costs_no_time_and_may_go_on() {
    for (version, header) in both_versions() {
        let header = match version {
            "v2" => v2_with(CLIENT, SERVER, &padding(9000)),
            _ => header,
        };
        let acceptor = Acceptor::start(version, &PATIENT);
        let _pool = acceptor.pool(4, &WHO);
        let stalled: Vec<_> = places(&header)
            .into_iter()
            .map(|place| (acceptor.says(&header[..place]), place))
            .collect();
        acceptor.until_asleep();
        for _ in 0..5 {
            assert_eq!(split(&exchange(acceptor.port, &header)).0, TOLD);
        }
        is_idle(acceptor.process.pid());
        for (mut client, place) in stalled {
            client.write_all(&header[place..]).unwrap();
            assert_eq!(finish(client).0, TOLD, "{version} {place}");
        }
    }
}

#[test]
fn a_header_that_is_late_closes_the_connection_and_is_counted() {
    for (version, header) in both_versions() {
        let mut acceptor = Acceptor::start(version, &["-v", "--proxy-timeout", "0.5"]);
        let _pool = acceptor.pool(2, &WHO);
        let places = places(&header);
        let start = Instant::now();
        let stalled: Vec<_> = places
            .iter()
            .map(|place| acceptor.says(&header[..*place]))
            .collect();
        for client in stalled {
            is_closed(client);
            let passed = start.elapsed();
            assert!(passed >= Duration::from_millis(500), "after {passed:?}");
        }
        acceptor.until_counted("bad header", places.len() as u64);
        let port = acceptor.port;
        let late = "its PROXY header is late";
        let late = format!("fdaccept: refused 127.0.0.1 on 127.0.0.1:{port}: {late}");
        let log = acceptor.process.log();
        let lines = log.lines().filter(|line| *line == late).count();
        assert_eq!(lines, places.len(), "{log}");
    }
}

#[test]
fn a_header_may_take_five_seconds_by_default() {
    let mut acceptor = Acceptor::start("any", &[]);
    let start = Instant::now();
    is_closed(acceptor.says(b"PROXY "));
    let passed = start.elapsed();
    assert!(passed >= Duration::from_secs(5), "after {passed:?}");
    acceptor.until_counted("bad header", 1);
}

#[test]
fn bytes_now_and_then_do_not_put_the_end_off() {
    for (version, header) in [("v1", v1(CLIENT, SERVER)), ("v2", longest())] {
        let acceptor = Acceptor::start(version, &["--proxy-timeout", "0.3"]);
        let start = Instant::now();
        let mut client = acceptor.connect();
        client.set_nodelay(true).unwrap();
        let most = &header[..header.len() - 1];
        let mut sent = 0;
        // It always has something new to say, though it never comes to an end.
        while start.elapsed() < DEADLINE {
            if sent + 1 < most.len() {
                let _ = client.write_all(&most[sent..=sent]);
                sent += 1;
            }
            if is_answered(&client) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        is_closed(client);
        let passed = start.elapsed();
        assert!(passed >= Duration::from_millis(300), "after {passed:?}");
    }
}

#[test]
fn the_time_for_a_header_is_none_for_what_follows() {
    for (version, header) in both_versions() {
        let acceptor = Acceptor::start(version, &["--proxy-timeout", "1.5"]);
        let _pool = acceptor.pool(2, &WHO);
        let mut client = acceptor.says(&header);
        assert_eq!(read_line(&client), TOLD);
        // One that came later has had all its time.
        is_closed(acceptor.connect());
        client.write_all(b"data").unwrap();
        client.read_exact(&mut [0; 4]).unwrap();
        finish_rest(client);
    }
}

#[test]
fn headers_that_wait_for_a_consumer_are_not_late() {
    let mut acceptor = Acceptor::start("any", &["--proxy-timeout", "1.5"]);
    let clients: Vec<_> = (0..5).map(|_| acceptor.says(&v1(CLIENT, SERVER))).collect();
    acceptor.until_counted("passed", 5);
    is_closed(acceptor.connect());
    let _pool = acceptor.pool(2, &WHO);
    for client in clients {
        assert_eq!(finish(client).0, TOLD);
    }
}

/// They lie there, and it is fdaccept that comes late.
#[test]
fn headers_that_came_in_time_are_not_late_if_fdaccept_was_held_up() {
    let mut acceptor = Acceptor::start("any", &["--proxy-timeout", "5"]);
    let clients = acceptor.stalled(100, b"PROXY ", 0);
    acceptor.process.signal(Signal::SIGSTOP);
    let header = v1(CLIENT, SERVER);
    for mut client in &clients {
        client.write_all(&header[6..]).unwrap();
    }
    // What is awaited here is nothing but the time.
    std::thread::sleep(Duration::from_secs(6));
    acceptor.process.signal(Signal::SIGCONT);
    until("a decision on all", || {
        acceptor.counted("passed") + acceptor.counted("bad header") == 100
    });
    assert_eq!(acceptor.counted("bad header"), 0);
    let _pool = acceptor.pool(4, &WHO);
    for client in clients {
        assert_eq!(finish(client).0, TOLD);
    }
}

// A crowd of those who stall.

/// The most that are waited for at once.
const MOST: usize = 1024;

/// Whether this process and fdaccept may have as many descriptors as a crowd needs.
fn may_have_crowds() -> bool {
    support::raise_limit();
    let (most, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let backlog = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let is_enough = most >= 4096 && backlog.trim().parse::<usize>().unwrap() >= 100;
    if !is_enough {
        skip("the limit on descriptors is too low for a crowd");
    }
    is_enough
}

/// Connects clients as fast as fdaccept takes them, so that none waits in the backlog for long.
#[track_caller]
fn crowd(acceptor: &mut Acceptor, count: usize, bytes: &[u8]) -> Vec<TcpStream> {
    let mut all = Vec::new();
    let before = acceptor.counted("accepted");
    while all.len() < count {
        let next = (count - all.len()).min(64);
        let so_far = before + all.len() as u64;
        all.extend(acceptor.stalled(next, bytes, so_far));
    }
    all
}

#[test]
fn at_most_1024_are_waited_for_and_the_oldest_goes_for_a_further_one() {
    if !may_have_crowds() {
        return;
    }
    let mut acceptor = Acceptor::start("any", &[&PATIENT[..], &["-v"]].concat());
    let mut stalled = crowd(&mut acceptor, MOST, b"PRO").into_iter();
    assert_eq!(acceptor.counted("bad header"), 0);
    let mut further = Vec::new();
    for number in 1..=5 {
        further.push(acceptor.says(b"PRO"));
        is_closed(stalled.next().unwrap());
        acceptor.until_counted("bad header", number);
    }
    further.extend(stalled);
    assert_eq!(further.len(), MOST);
    assert!(!further.iter().any(is_answered));
    let why = "too many PROXY headers are awaited";
    assert_eq!(acceptor.process.log().matches(why).count(), 5);
}

#[test]
fn while_more_than_1024_stall_others_are_served() {
    if !may_have_crowds() {
        return;
    }
    for (version, header) in both_versions() {
        let mut acceptor = Acceptor::start(version, &PATIENT);
        let _pool = acceptor.pool(2, &WHO);
        let pid = acceptor.process.pid();
        assert_eq!(split(&exchange(acceptor.port, &header)).0, TOLD);
        let before = settled(pid);
        let mut stalled = crowd(&mut acceptor, MOST, &header[..header.len() - 1]);
        for _ in 0..10 {
            // One that says its header byte by byte, while others go on coming.
            let mut slow = acceptor.connect();
            let (first, last) = header.split_at(7);
            slow.write_all(first).unwrap();
            acceptor.until_asleep();
            stalled.extend(crowd(&mut acceptor, 20, &header[..3]));
            slow.write_all(last).unwrap();
            assert_eq!(finish(slow).0, TOLD);
            assert_eq!(split(&exchange(acceptor.port, &header)).0, TOLD);
        }
        is_idle(pid);
        let open = descriptors(pid).len() - before.len();
        assert!((MOST - 20..=MOST).contains(&open), "{open}");
        // Each of the last ones may still go on.
        let mut last = stalled.pop().unwrap();
        last.write_all(&header[3..]).unwrap();
        assert_eq!(finish(last).0, TOLD);
        drop(stalled);
        until("the end of all", || descriptors(pid) == before);
        let passed = acceptor.counted("passed");
        let sum = passed + acceptor.counted("bad header");
        assert_eq!((acceptor.counted("accepted"), passed), (sum, 22));
    }
}

// When descriptors are short.

/// fdaccept with few descriptors and a pool, as `text` says, and many clients that stall.
#[track_caller]
fn assert_served_with_few_descriptors(text: &str) {
    let names = Names::new();
    let options = "--proxy-protocol any --proxy-from 127.0.0.1 --proxy-timeout 1000 127.0.0.1:0";
    let text = text.replace("OPTIONS", options);
    let mut process = Process::start(script("sh", &text).current_dir(&names.directory));
    let port = process.port();
    let stall = || -> Vec<_> {
        let clients = (0..40).map(|_| support::connect(port));
        clients
            .inspect(|mut c| c.write_all(b"PROXY ").unwrap())
            .collect()
    };
    let mut stalled = stall();
    for number in 0..20 {
        for header in [v1(CLIENT, SERVER), v2(CLIENT, SERVER)] {
            let text = number.to_string();
            let request = [&header[..], text.as_bytes()].concat();
            assert_eq!(exchange(port, &request), text.as_bytes());
        }
        if number == 10 {
            stalled.extend(stall());
        }
    }
    let log = process.log();
    assert!(!log.contains("cannot accept"), "{log}");
}

#[test]
fn a_chain_with_few_descriptors_serves_others_than_those_who_stall() {
    assert_served_with_few_descriptors("ulimit -n 20; exec fdaccept OPTIONS -- fdpool 4 -- cat");
}

#[test]
fn a_chain_with_few_descriptors_and_a_limit_serves_others_than_those_who_stall() {
    let text = "ulimit -n 32; exec fdaccept --max 100 OPTIONS -- fdpool 4 -- cat";
    assert_served_with_few_descriptors(text);
}

#[test]
fn a_pipeline_with_few_descriptors_serves_others_than_those_who_stall() {
    assert_served_with_few_descriptors("ulimit -n 24; fdaccept OPTIONS | fdpool 4 -- cat");
}

#[test]
fn who_stalls_with_few_descriptors_costs_no_time() {
    let text = "ulimit -n 20; exec fdaccept --proxy-protocol any --proxy-from 127.0.0.1 \
        --proxy-timeout 1000 127.0.0.1:0 -- fdpool 1 -- cat";
    let mut process = Process::start(&mut script("sh", text));
    let port = process.port();
    let _stalled: Vec<_> = (0..40).map(|_| support::connect(port)).collect();
    until_counted(&mut process, "accepted", 40);
    is_idle(process.pid());
    let header = v1(CLIENT, SERVER);
    let request = [&header[..], b"data"].concat();
    assert_eq!(exchange(port, &request), b"data");
}

/// That a consumer which comes last finds the queue, in which a client waits, though others who
/// stall have all descriptors that there are.
#[track_caller]
fn assert_consumer_comes(text: &str) {
    let names = Names::new();
    let options = "--proxy-protocol any --proxy-from 127.0.0.1 --proxy-timeout 1000 127.0.0.1:0";
    let text = text.replace("OPTIONS", options);
    let mut process = Process::start(script("sh", &text).current_dir(&names.directory));
    let port = process.port();
    let mut client = support::connect(port);
    let header = v1(CLIENT, SERVER);
    client.write_all(&[&header[..], b"data"].concat()).unwrap();
    let stalled: Vec<_> = (0..60).map(|_| support::connect(port)).collect();
    // That the first of them was given up tells that there was no descriptor left.
    until("a shortage", || is_answered(&stalled[0]));
    std::fs::write(names.directory.path().join("go"), "").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"data");
}

const UNTIL_GO: &str = "until [ -e go ]; do sleep 0.02; done";

#[test]
fn a_consumer_finds_its_way_when_those_who_stall_have_used_up_the_descriptors() {
    assert_consumer_comes(&format!(
        "ulimit -n 24; {{ {UNTIL_GO}; exec fdpool --connect ./queue 1 -- cat; }} & \
         exec fdaccept --bind ./queue OPTIONS"
    ));
}

#[test]
fn a_consumer_finds_its_way_by_ticket_when_those_who_stall_have_used_up_the_descriptors() {
    assert_consumer_comes(&format!(
        "ulimit -n 24; fdaccept OPTIONS | {{ {UNTIL_GO}; exec fdpool 1 -- cat; }}"
    ));
}

#[test]
fn the_descriptors_of_fdaccept_are_those_of_before_whatever_clients_did() {
    // With limits a lease for the next client may be there already, or not.
    let limits = &["--max", "50", "--max-per-source", "40"][..];
    for (options, spare) in [(&[][..], 0), (limits, 2)] {
        let options = [&["--proxy-timeout", "2"], options].concat();
        let mut acceptor = Acceptor::start("any", &options);
        let _pool = acceptor.pool(4, &WHO);
        let header = v2(CLIENT, SERVER);
        assert_eq!(split(&exchange(acceptor.port, &header)).0, TOLD);
        let pid = acceptor.process.pid();
        let before = settled(pid);
        let server = SocketAddr::from(([127, 0, 0, 1], acceptor.port));
        let mut late = Vec::new();
        for _ in 0..20 {
            late.push(acceptor.says(&header[..20]));
            let _bad = acceptor.says(b"GET / HTTP/1.1\r\n");
            let _stranger = connect_from("127.0.0.7", server);
            drop(acceptor.says(&header[..10]));
            drop(acceptor.connect());
            assert_eq!(split(&exchange(acceptor.port, &header)).0, TOLD);
        }
        until_counted(&mut acceptor.process, "refused by rule", 20);
        until_counted(&mut acceptor.process, "bad header", 80);
        let open = settled(pid);
        assert!(open.len() <= before.len() + spare, "{before:?} {open:?}");
    }
}

// Limits.

#[test]
fn max_counts_those_in_service_and_headers_that_are_complete_wait_for_their_turn() {
    let mut acceptor = Acceptor::start("any", &[&PATIENT[..], &["--max", "2"]].concat());
    let clients = acceptor.stalled(12, b"PROXY ", 0);
    // Nobody is in service, so that all of them were accepted. They complete their headers in
    // another order than they came in.
    let receiver = acceptor.receiver();
    nothing_comes(&receiver);
    let order: Vec<usize> = (0..12).map(|n| n * 5 % 12).collect();
    for number in &order {
        let header = v1(&format!("192.0.2.1:{}", 1000 + number), SERVER);
        let mut client = &clients[*number];
        client.write_all(&header[6..]).unwrap();
        until_all_is_read(client);
    }
    let mut in_service = Vec::new();
    for (place, number) in order.iter().enumerate() {
        if place >= 2 {
            nothing_comes(&receiver);
            in_service.remove(0);
        }
        let taken = take(&receiver);
        assert_eq!(taken.client, format!("192.0.2.1 {}", 1000 + number));
        in_service.push(taken);
    }
    drop(in_service);
    acceptor.until_counted("passed", 12);
    assert_eq!(acceptor.counted("bad header"), 0);
}

#[test]
fn complete_headers_that_wait_for_room_cost_no_time_and_are_never_late() {
    let options = ["--max", "1", "--proxy-timeout", "3"];
    let mut acceptor = Acceptor::start("any", &options);
    let receiver = acceptor.receiver();
    let clients = acceptor.stalled(6, b"PROXY ", 0);
    let (waiting, stalled) = clients.split_at(4);
    let header = v1(CLIENT, SERVER);
    for mut client in waiting {
        client.write_all(&header[6..]).unwrap();
    }
    let first = take(&receiver);
    is_idle(acceptor.process.pid());
    acceptor.until_counted("bad header", stalled.len() as u64);
    nothing_comes(&receiver);
    drop(first);
    for _ in 1..waiting.len() {
        assert_eq!(take(&receiver).client, "192.0.2.1 51000");
    }
}

#[test]
fn who_stalls_does_not_count_for_max() {
    let mut acceptor = Acceptor::start("any", &[&PATIENT[..], &["--max", "1"]].concat());
    let _stalled = acceptor.stalled(10, b"PROXY TCP4", 0);
    let _pool = acceptor.pool(2, &WHO);
    for header in [v1(CLIENT, SERVER), v2(CLIENT, SERVER)] {
        assert_eq!(split(&exchange(acceptor.port, &header)).0, TOLD);
    }
}

#[test]
fn when_full_close_resets_those_whose_headers_are_complete_beyond_max() {
    let options = [&PATIENT[..], &["--max", "1", "--when-full", "close"]].concat();
    let mut acceptor = Acceptor::start("any", &options);
    let _pool = acceptor.pool(3, &WHO);
    let first = acceptor.says(&v1(CLIENT, SERVER));
    assert_eq!(read_line(&first), TOLD);
    let mut second = acceptor.says(b"PROXY ");
    acceptor.until_counted("accepted", 2);
    is_left_waiting(&second);
    second.write_all(&v1(CLIENT, SERVER)[6..]).unwrap();
    is_reset(Ok(second));
    acceptor.until_counted("by limit", 1);
    assert_eq!(acceptor.counted("bad header"), 0);
}

#[test]
fn when_full_tells_those_whose_headers_are_complete_the_bytes_of_a_file() {
    let names = Names::new();
    let file = names.directory.path().join("words");
    std::fs::write(&file, "503 later\r\n").unwrap();
    for limit in ["--max", "--max-per-source"] {
        let options = [limit, "1", "--when-full", file.to_str().unwrap()];
        let acceptor = Acceptor::start("any", &[&PATIENT[..], &options].concat());
        let _pool = acceptor.pool(3, &WHO);
        let first = acceptor.says(&v1(CLIENT, SERVER));
        assert_eq!(read_line(&first), TOLD);
        for header in [v1(CLIENT, SERVER), v2(CLIENT, SERVER)] {
            // With data behind it, or with none, all at once or not.
            let client = acceptor.says(&[&header[..], &[b'x'; 10_000]].concat());
            assert_eq!(finish(client), ("503 later\r".to_owned(), Vec::new()));
            let mut client = acceptor.says(&header[..9]);
            until_all_is_read(&client);
            client.write_all(&header[9..]).unwrap();
            assert_eq!(finish(client), ("503 later\r".to_owned(), Vec::new()));
        }
        // Those who are no proxies, or say no header, are not told.
        is_closed(acceptor.says(b"GET / HTTP/1.1\r\n"));
        let server = SocketAddr::from(([127, 0, 0, 1], acceptor.port));
        is_reset(connect_from("127.0.0.7", server));
    }
}

/// What clients that headers speak for, one after another and all at once, get in the place of
/// their count: `None` where they are turned away.
#[track_caller]
fn counts(options: &[&str], clients: &[&str]) -> Vec<Option<u32>> {
    let acceptor = Acceptor::start("any", options);
    let _pool = acceptor.pool(clients.len(), &COUNT);
    let mut kept = Vec::new();
    let mut counts = Vec::new();
    for (number, client) in clients.iter().enumerate() {
        let server = if address(client).is_ipv4() {
            SERVER
        } else {
            "[2001:db8::2]:1"
        };
        let header = match number % 2 {
            0 => v1(client, server),
            _ => v2(client, server),
        };
        let client_ip = address(client).ip().to_canonical();
        let client = acceptor.says(&header);
        let mut line = String::new();
        let mut byte = [0];
        while !line.ends_with('\n') && matches!((&client).read(&mut byte), Ok(1)) {
            line.push(char::from(byte[0]));
        }
        let told = line.trim_end().split_once(' ');
        if let Some((ip, _)) = told {
            assert_eq!(ip, client_ip.to_string());
        }
        counts.push(told.map(|(_, count)| count.parse().unwrap()));
        kept.push(client);
    }
    counts
}

#[test]
fn clients_are_counted_by_the_address_that_the_header_names() {
    let clients = [
        "192.0.2.1:1",
        "192.0.2.1:2",
        "192.0.2.2:1",
        "192.0.2.1:1",
        "[2001:db8::1]:1",
    ];
    let expected = [Some(1), Some(2), Some(1), Some(3), Some(1)];
    assert_eq!(counts(&["--max", "100"], &clients), expected);
    let expected = [Some(1), Some(2), Some(1), None, Some(1)];
    assert_eq!(counts(&["--max-per-source", "2"], &clients), expected);
}

#[test]
fn a_mapped_address_counts_as_the_ipv4_address_that_it_is() {
    let mapped = "[::ffff:192.0.2.1]:1";
    let clients = [
        "192.0.2.1:1",
        mapped,
        mapped,
        "192.0.2.1:1",
        "[::ffff:192.0.2.2]:1",
    ];
    let expected = [Some(1), Some(2), None, None, Some(1)];
    assert_eq!(counts(&["--max-per-source", "2"], &clients), expected);
}

#[test]
fn the_prefix_of_the_address_that_the_header_names_tells_one_client_from_another() {
    let clients = [
        "[2001:db8::1]:1",
        "[2001:db8::ffff:2]:1",
        "[2001:db8:0:1::1]:1",
        "192.0.2.1:1",
        "192.0.2.200:1",
    ];
    let expected = [Some(1), None, Some(1), Some(1), Some(1)];
    assert_eq!(counts(&["--max-per-source", "1"], &clients), expected);
    let options = ["--max-per-source", "1", "--source-prefix", "24,128"];
    let expected = [Some(1), Some(1), Some(1), Some(1), None];
    assert_eq!(counts(&options, &clients), expected);
}

#[test]
fn one_client_beyond_its_limit_is_reset_and_counted_and_may_come_again() {
    let mut acceptor = Acceptor::start("any", &["--max-per-source", "1"]);
    let _pool = acceptor.pool(4, &COUNT);
    let first = acceptor.says(&v1(CLIENT, SERVER));
    assert_eq!(read_line(&first), "192.0.2.1 1");
    is_reset(Ok(acceptor.says(&v2(CLIENT, SERVER))));
    acceptor.until_counted("by limit", 1);
    finish_rest(first);
    eventually("room", || {
        let mut told = Vec::new();
        let client = acceptor.says(&v2(CLIENT, SERVER));
        let _ = client.shutdown(Shutdown::Write);
        (&client).read_to_end(&mut told).ok()?;
        (told == b"192.0.2.1 1\n").then_some(())
    });
}

/// Ends a client that has been told who it is.
#[track_caller]
fn finish_rest(mut client: TcpStream) {
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_proxy_that_speaks_for_itself_counts_as_itself() {
    let mut acceptor = Acceptor::start("any", &["--max-per-source", "1"]);
    let _pool = acceptor.pool(4, &COUNT);
    let first = acceptor.says(b"PROXY UNKNOWN\r\n");
    assert_eq!(read_line(&first), "127.0.0.1 1");
    let other = acceptor.says(&v1(CLIENT, SERVER));
    assert_eq!(read_line(&other), "192.0.2.1 1");
    is_reset(Ok(acceptor.says(&v2_of(LOCAL, 0, b""))));
    // The header names the same address.
    is_reset(Ok(acceptor.says(&v1("127.0.0.1:9", SERVER))));
    acceptor.until_counted("by limit", 2);
}

#[test]
fn the_rate_counts_connections_whatever_their_headers_are() {
    let acceptor = Acceptor::start("any", &["--rate", "4/0.4"]);
    let receiver = acceptor.receiver();
    let start = Instant::now();
    let header = v1(CLIENT, SERVER);
    let _clients: Vec<_> = (0..6)
        .map(|_| (acceptor.says(&header), acceptor.says(b"x")))
        .collect();
    // Of each four two have a header.
    for number in 0..6 {
        take(&receiver);
        let passed = start.elapsed();
        let earliest = Duration::from_millis(400) * (number / 2);
        assert!(passed >= earliest, "{number} after {passed:?}");
    }
}

#[test]
fn a_full_queue_lets_complete_headers_wait_and_loses_none() {
    let options = [&PATIENT[..], &["--queue", "2"]].concat();
    let mut acceptor = Acceptor::start("any", &options);
    let clients = acceptor.stalled(9, b"PROXY ", 0);
    let header = v1(CLIENT, SERVER);
    for mut client in &clients {
        client.write_all(&[&header[6..], b"data"].concat()).unwrap();
    }
    acceptor.until_counted("passed", 2);
    // A further one waits in the backlog.
    let last = acceptor.says(&[&header[..], b"data"].concat());
    is_idle(acceptor.process.pid());
    assert_eq!(acceptor.counted("passed"), 2);
    assert_eq!(acceptor.counted("accepted"), 9);
    let _pool = acceptor.pool(2, &WHO);
    for client in clients.into_iter().chain([last]) {
        assert_eq!(finish(client), (TOLD.to_owned(), b"data".to_vec()));
    }
    acceptor.until_counted("passed", 10);
}

// Rules.

#[test]
fn rules_hold_the_client_that_the_header_names() {
    let options = ["--deny", "192.0.2.0/24", "--deny", "2001:db8::/32"];
    let mut acceptor = Acceptor::start("any", &options);
    let _pool = acceptor.pool(2, &WHO);
    let server6 = "[2001:db8::2]:1";
    let mut refused = 0;
    for (client, server) in [
        ("192.0.2.255:1", SERVER),
        ("[2001:db8::1]:1", server6),
        ("[::ffff:192.0.2.1]:1", server6),
    ] {
        for header in [v1(client, server), v2(client, server)] {
            is_reset(Ok(acceptor.says(&header)));
            refused += 1;
            acceptor.until_counted("refused by rule", refused);
        }
    }
    for client in ["192.0.3.1:1", "127.0.0.1:1"] {
        for header in [v1(client, SERVER), v2(client, SERVER)] {
            let (told, _) = split(&exchange(acceptor.port, &header));
            assert!(told.starts_with(&client.replace(':', " ")), "{told}");
        }
    }
    let by_itself = split(&exchange(acceptor.port, b"PROXY UNKNOWN\r\n")).0;
    assert!(by_itself.starts_with("127.0.0.1 "), "{by_itself}");
}

#[test]
fn rules_hold_a_proxy_where_it_speaks_for_itself_alone() {
    let mut acceptor = Acceptor::start("any", &["-v", "--allow", "192.0.2.1"]);
    let _pool = acceptor.pool(2, &WHO);
    for header in [v1(CLIENT, SERVER), v2(CLIENT, SERVER)] {
        assert_eq!(split(&exchange(acceptor.port, &header)).0, TOLD);
    }
    for header in [b"PROXY UNKNOWN\r\n".to_vec(), v2_of(LOCAL, 0, b"")] {
        is_reset(Ok(acceptor.says(&header)));
    }
    acceptor.until_counted("refused by rule", 2);
    let log = acceptor.process.log();
    let port = acceptor.port;
    for line in [
        format!("fdaccept: accepted 192.0.2.1 on 127.0.0.1:{port}"),
        format!("fdaccept: refused 127.0.0.1 on 127.0.0.1:{port}: a rule denies it"),
    ] {
        assert_eq!(log.lines().filter(|one| **one == line).count(), 2, "{log}");
    }
}

#[test]
fn rules_that_are_read_again_hold_those_whose_headers_come_then() {
    let names = Names::new();
    let file = names.directory.path().join("rules");
    std::fs::write(&file, "").unwrap();
    let options = [&PATIENT[..], &["--rules", file.to_str().unwrap()]].concat();
    let mut acceptor = Acceptor::start("any", &options);
    let _pool = acceptor.pool(2, &WHO);
    let header = v1(CLIENT, SERVER);
    assert_eq!(split(&exchange(acceptor.port, &header)).0, TOLD);
    let mut client = acceptor.says(b"PROXY ");
    until_all_is_read(&client);
    std::fs::write(&file, "deny 192.0.2.1\n").unwrap();
    acceptor.process.signal(Signal::SIGHUP);
    acceptor.process.line("rules: read again");
    client.write_all(&header[6..]).unwrap();
    is_reset(Ok(client));
}

// Wrong usage.

/// Checks that fdaccept with these words is wrong usage: status 2, two lines, of which the first
/// has `expected`, and that nothing is left of it.
#[track_caller]
fn is_wrong(words: &[&str], expected: &str) {
    let names = Names::new();
    let mut command = program("fdaccept");
    command.args(["--bind", &names.path()]).args(words);
    let (status, _, stderr) = run(command.current_dir(&names.directory));
    assert_eq!(status, Some(2), "{words:?}: {stderr}");
    let lines: Vec<_> = stderr.lines().collect();
    let problem = |line: &&str| line.starts_with("fdaccept: ") && line.contains(expected);
    assert!(lines.first().is_some_and(problem), "{words:?}: {stderr}");
    let help = "fdaccept: try 'fdaccept --help' for more information";
    assert_eq!(
        (lines.len(), lines[lines.len() - 1]),
        (2, help),
        "{words:?}"
    );
    let left = std::fs::read_dir(&names.directory).unwrap().count();
    assert_eq!(left, 0, "{words:?}");
}

#[test]
fn headers_without_proxies_are_a_usage_error() {
    is_wrong(&["--proxy-protocol", "any", "127.0.0.1:0"], "--proxy-from");
}

#[test]
fn proxies_without_headers_are_a_usage_error() {
    let from = ["--proxy-from", "127.0.0.1", "127.0.0.1:0"];
    is_wrong(&from, "--proxy-protocol");
    let timeout = ["--proxy-timeout", "1", "127.0.0.1:0"];
    is_wrong(&timeout, "--proxy-protocol");
}

/// The options of a use that is right but for what is appended.
const RIGHT: [&str; 4] = ["--proxy-protocol", "any", "--proxy-from", "127.0.0.1"];

#[test]
fn a_version_that_there_is_not_is_a_usage_error() {
    for version in ["", "v3", "V1", "1", "v1,v2", "ANY", "v1 "] {
        let option = format!("--proxy-protocol={version}");
        let words = [&option, "--proxy-from", "127.0.0.1", "127.0.0.1:0"];
        is_wrong(&words, "--proxy-protocol");
    }
    is_wrong(&["--proxy-protocol"], "--proxy-protocol");
}

#[test]
fn what_is_no_network_of_proxies_is_a_usage_error() {
    for net in [
        "",
        "x",
        "10.0.0",
        "10.0.0.0/33",
        "::/129",
        "10.0.0.0/",
        "localhost",
    ] {
        let option = format!("--proxy-from={net}");
        let words = ["--proxy-protocol", "any", &option, "127.0.0.1:0"];
        is_wrong(&words, "--proxy-from");
    }
}

#[test]
fn what_is_no_time_for_a_header_is_a_usage_error() {
    for time in ["", "0", "0.0", "-1", "x", "nan", "5s", "1e-300"] {
        let option = format!("--proxy-timeout={time}");
        let words = [&RIGHT[..], &[&option, "127.0.0.1:0"]].concat();
        is_wrong(&words, "--proxy-timeout");
    }
}

#[test]
fn any_time_for_a_header_may_be_given() {
    for time in ["1e300", "inf", "99999999999999999999", "0.001"] {
        let acceptor = Acceptor::start("any", &["--proxy-timeout", time]);
        let _pool = acceptor.pool(1, &WHO);
        // A header may be late where there is next to no time.
        eventually("an answer", || {
            let client = acceptor.says(&v1(CLIENT, SERVER));
            let _ = client.shutdown(Shutdown::Write);
            let mut told = Vec::new();
            (&client).read_to_end(&mut told).ok()?;
            (!told.is_empty()).then(|| assert_eq!(split(&told).0, TOLD))
        });
    }
}

#[test]
fn headers_on_a_unix_listener_are_a_usage_error() {
    let abstract_name = Names::new().abstract_name();
    for address in ["./listener", &abstract_name] {
        is_wrong(&[&RIGHT[..], &[address]].concat(), "--proxy-protocol");
        let both = [&RIGHT[..], &["127.0.0.1:0", address]].concat();
        is_wrong(&both, "--proxy-protocol");
    }
}

#[test]
fn headers_on_an_inherited_unix_listener_are_a_usage_error() {
    let names = Names::new();
    let path = names.directory.path().join("listener");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mut command = program("fdaccept");
    command
        .args(["--bind", &names.path()])
        .args(RIGHT)
        .arg("fd:0");
    command.stdin(Stdio::from(OwnedFd::from(listener)));
    let (status, _, stderr) = run(&mut command);
    assert_eq!(status, Some(2), "{stderr}");
    assert!(stderr.contains("--proxy-protocol"), "{stderr}");
}

// Stopping.

#[test]
fn a_stop_waits_for_a_header_and_what_it_says_is_served() {
    for (version, header) in both_versions() {
        let mut acceptor = Acceptor::start(version, &PATIENT);
        let _pool = acceptor.pool(2, &WHO);
        let clients = acceptor.stalled(3, &header[..9], 0);
        acceptor.process.signal(Signal::SIGTERM);
        stays("fdaccept waits", || acceptor.process.is_running());
        for mut client in clients {
            client.write_all(&[&header[9..], b"data"].concat()).unwrap();
            assert_eq!(finish(client), (TOLD.to_owned(), b"data".to_vec()));
        }
        let (status, log) = acceptor.process.finish();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(log.contains("accepted 3, passed 3, taken 3, "), "{log}");
    }
}

#[test]
fn a_stop_waits_for_a_header_no_longer_than_it_may_take() {
    let mut acceptor = Acceptor::start("any", &["--proxy-timeout", "0.5", "--grace", "1000"]);
    let start = Instant::now();
    let client = acceptor.stalled(1, b"PROXY ", 0).pop().unwrap();
    let (status, log) = acceptor.stop();
    let passed = start.elapsed();
    assert!(passed >= Duration::from_millis(500), "after {passed:?}");
    assert_eq!(status, Some(0), "{log}");
    assert_eq!(number(log.lines().last().unwrap(), "bad header"), 1);
    is_closed(client);
}

#[test]
fn a_stop_does_not_wait_for_a_header_longer_than_its_grace() {
    let options = [&PATIENT[..], &["--grace", "0.3"]].concat();
    let mut acceptor = Acceptor::start("any", &options);
    let client = acceptor.stalled(1, b"PROXY ", 0).pop().unwrap();
    let (status, log) = acceptor.stop();
    assert_eq!(status, Some(0), "{log}");
    is_closed(client);
}

#[test]
fn a_second_stop_waits_for_no_header() {
    let mut acceptor = Acceptor::start("any", &PATIENT);
    let client = acceptor.stalled(1, b"PROXY ", 0).pop().unwrap();
    acceptor.process.signal(Signal::SIGTERM);
    stays("fdaccept waits", || acceptor.process.is_running());
    let (status, log) = acceptor.stop();
    assert_eq!(status, Some(0), "{log}");
    is_closed(client);
}

/// Every connection that was accepted is in one of the other numbers.
#[test]
fn those_whose_headers_a_stop_gives_up_are_counted() {
    let options = [&PATIENT[..], &["--grace", "0.3"]].concat();
    let mut acceptor = Acceptor::start("any", &options);
    let _clients = acceptor.stalled(3, b"PROXY ", 0);
    let (_, log) = acceptor.stop();
    let line = log.lines().last().unwrap();
    assert_eq!((number(line, "accepted"), number(line, "passed")), (3, 0));
    assert_eq!(number(line, "bad header"), 3, "{line}");
}

#[test]
fn a_stop_takes_what_waits_in_the_backlog_with_its_headers() {
    let mut acceptor = Acceptor::start("any", &PATIENT);
    let _pool = acceptor.pool(2, &WHO);
    acceptor.process.signal(Signal::SIGSTOP);
    let (v1, v2) = (v1(CLIENT, SERVER), v2(CLIENT, SERVER));
    let parts = [&v1[..], &v2[..], &v1[..20], &v2[..3], b""];
    let clients: Vec<_> = parts.map(|part| acceptor.says(part)).into_iter().collect();
    acceptor.process.signal(Signal::SIGTERM);
    acceptor.process.signal(Signal::SIGCONT);
    let rest = [b"", &b""[..], &v1[20..], &v2[3..], &v1[..]];
    for (mut client, rest) in clients.into_iter().zip(rest) {
        client.write_all(rest).unwrap();
        assert_eq!(finish(client).0, TOLD);
    }
    let (status, log) = acceptor.process.finish();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn a_stop_lets_complete_headers_in_as_room_comes() {
    let options = [&PATIENT[..], &["--max", "1"]].concat();
    let mut acceptor = Acceptor::start("any", &options);
    let receiver = acceptor.receiver();
    let clients = acceptor.stalled(4, b"PROXY ", 0);
    let header = v1(CLIENT, SERVER);
    for mut client in &clients {
        client.write_all(&header[6..]).unwrap();
        until_all_is_read(client);
    }
    let mut last = take(&receiver);
    acceptor.process.signal(Signal::SIGTERM);
    for _ in 1..clients.len() {
        nothing_comes(&receiver);
        drop(last);
        last = take(&receiver);
    }
    drop(last);
    let (status, log) = acceptor.process.finish();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("accepted 4, passed 4, taken 4, "), "{log}");
}

#[test]
fn complete_headers_that_a_stop_gives_up_are_told_as_not_taken() {
    let options = [&PATIENT[..], &["--max", "1", "--grace", "0.5"]].concat();
    let mut acceptor = Acceptor::start("any", &options);
    let receiver = acceptor.receiver();
    let clients = acceptor.stalled(4, b"PROXY ", 0);
    let header = v1(CLIENT, SERVER);
    for mut client in &clients[..3] {
        client.write_all(&header[6..]).unwrap();
        until_all_is_read(client);
    }
    let _first = take(&receiver);
    let (status, log) = acceptor.stop();
    assert_eq!(status, Some(1), "{log}");
    let expected = "fdaccept: 2 connections were accepted and not taken";
    assert_eq!(log.lines().last(), Some(expected));
    for client in clients.into_iter().skip(1) {
        is_closed(client);
    }
}

#[test]
fn a_chain_ends_after_the_headers_that_were_begun() {
    let mut command = program("fdaccept");
    command.args(RIGHT).args(PATIENT).arg("127.0.0.1:0");
    command.args(["--", "fdpool", "2", "--"]).args(WHO);
    let mut process = Process::start(&mut command);
    let port = process.port();
    let mut client = support::connect(port);
    let header = v2(CLIENT, SERVER);
    client.write_all(&header[..14]).unwrap();
    until_all_is_read(&client);
    until("the pool", || !children(process.pid()).is_empty());
    process.signal(Signal::SIGTERM);
    stays("it goes on", || process.is_running());
    client
        .write_all(&[&header[14..], b"data"].concat())
        .unwrap();
    assert_eq!(finish(client), (TOLD.to_owned(), b"data".to_vec()));
    let (status, log) = process.finish();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn a_stop_that_waits_for_a_header_costs_no_time() {
    let mut acceptor = Acceptor::start("any", &PATIENT);
    let _clients = acceptor.stalled(3, b"PROXY ", 0);
    acceptor.process.signal(Signal::SIGTERM);
    is_idle(acceptor.process.pid());
    assert!(acceptor.process.is_running());
}

#[test]
fn who_comes_while_a_stop_waits_for_a_header_costs_no_time() {
    let mut acceptor = Acceptor::start("any", &PATIENT);
    let _clients = acceptor.stalled(3, b"PROXY ", 0);
    acceptor.process.signal(Signal::SIGTERM);
    // By the second answer it has seen that nobody else was there when the signal came.
    acceptor.counted("accepted");
    assert_eq!(acceptor.counted("accepted"), 3);
    // Nobody has to let this one in, or to refuse it.
    let _late = TcpStream::connect(("127.0.0.1", acceptor.port));
    is_idle(acceptor.process.pid());
    assert!(acceptor.process.is_running());
}

/// Whoever comes later goes elsewhere, instead of waiting for an end.
#[test]
fn nobody_connects_any_more_while_a_stop_waits_for_a_header() {
    let mut acceptor = Acceptor::start("any", &["--proxy-timeout", "20", "--grace", "1000"]);
    let _client = acceptor.stalled(1, b"PROXY ", 0);
    let start = Instant::now();
    acceptor.process.signal(Signal::SIGTERM);
    let server = SocketAddr::from(([127, 0, 0, 1], acceptor.port));
    until("the end of the listener", || {
        TcpStream::connect(server).is_err()
    });
    let passed = start.elapsed();
    assert!(passed < Duration::from_secs(15), "after {passed:?}");
    assert!(acceptor.process.is_running());
}

#[test]
fn no_header_is_waited_for_when_the_consumers_have_gone() {
    let names = Names::new();
    let text = format!(
        "fdaccept --proxy-protocol any --proxy-from 127.0.0.1 --proxy-timeout 1000 127.0.0.1:0 | \
         {{ {UNTIL_GO}; }}"
    );
    let mut process = Process::start(script("sh", &text).current_dir(&names.directory));
    let mut client = support::connect(process.port());
    client.write_all(b"PROXY ").unwrap();
    until_all_is_read(&client);
    std::fs::write(names.directory.path().join("go"), "").unwrap();
    is_closed(client);
    process.wait();
}
