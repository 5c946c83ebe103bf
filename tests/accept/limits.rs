//! Limits: how many connections are in service at once and how fast they come, leases, and what
//! becomes of clients that are too many.

use std::io::{ErrorKind, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::poll::wait;
use crate::support::{
    self, DEADLINE, Names, Process, cpu_time, descriptors, eventually, is_alive, is_answered, peer,
    program, python, python_worker, read_line, root, rust_worker, script, skip, socket_pair,
    take_apart, until,
};
use fdtools::queue::message::{self, Info};
use fdtools::queue::name::Name;
use fdtools::queue::trust::Trust;
use fdtools::queue::{self, Receiver};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
use nix::unistd::{Pid, pipe};
use rustix::event::{PollFd, PollFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

/// A handler that tells its process id and the count of its client, and then gives back what it
/// gets until its client ends.
const COUNT: [&str; 3] = ["sh", "-c", "echo $$ $TCPCONNNUM; exec cat"];

/// The same within a script.
const COUNT_IN_SCRIPT: &str = "sh -c 'echo $$ $TCPCONNNUM; exec cat'";

/// For how long something is watched that is not to happen.
const WATCH: Duration = Duration::from_millis(200);

/// fdaccept with a named queue, to which consumers come.
struct Acceptor {
    names: Names,
    process: Process,
    port: u16,
}

impl Acceptor {
    fn start(options: &[&str]) -> Self {
        Self::listen(options, "127.0.0.1:0")
    }

    fn listen(options: &[&str], address: &str) -> Self {
        let names = Names::new();
        let mut command = program("fdaccept");
        command.args(["--bind", &names.path()]).args(options);
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

    /// `fdrecv --connect QUEUE OPTIONS -- COMMAND`.
    fn fdrecv(&self, options: &[&str], words: &[&str]) -> Process {
        let mut command = program("fdrecv");
        command.args(["--connect", &self.names.path()]);
        Process::start(command.args(options).arg("--").args(words))
    }

    /// A consumer in this process.
    fn receiver(&self) -> Receiver {
        let name = Name::parse(self.names.path().as_ref()).unwrap();
        Receiver::connect(&name, &Trust::everybody()).unwrap()
    }

    fn connect(&self) -> TcpStream {
        support::connect(self.port)
    }

    fn try_connect(&self) -> std::io::Result<TcpStream> {
        try_connect_from([127, 0, 0, 1], self.port)
    }

    /// A client of [`COUNT`], or `None` if it is turned away.
    fn try_client(&self) -> Option<Client> {
        Client::try_greeted(self.try_connect().ok()?)
    }

    /// A client that is served by [`COUNT`].
    fn client(&self) -> Client {
        Client::greeted(self.connect())
    }

    /// The count that a further client gets, by way of a consumer in this process; that client is
    /// gone afterwards.
    fn count(&self, receiver: &Receiver) -> u32 {
        let _client = self.connect();
        take(receiver).number.unwrap()
    }

    /// The same by way of a pool of [`COUNT`].
    fn count_by_pool(&self) -> u32 {
        let client = self.client();
        let number = client.number;
        client.finish();
        number
    }
}

/// A client of [`COUNT`].
struct Client {
    stream: TcpStream,
    pid: Pid,
    number: u32,
}

impl Client {
    #[track_caller]
    fn greeted(stream: TcpStream) -> Self {
        Self::try_greeted(stream).unwrap()
    }

    /// `None` if it is turned away.
    fn try_greeted(mut stream: TcpStream) -> Option<Self> {
        let mut line = Vec::new();
        let mut byte = [0];
        while line.last() != Some(&b'\n') {
            match stream.read(&mut byte) {
                Ok(1) => line.push(byte[0]),
                Ok(_) => return None,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
        let line = String::from_utf8(line).unwrap();
        let (pid, number) = line.trim_end().split_once(' ').unwrap();
        Some(Self {
            stream,
            pid: Pid::from_raw(pid.parse().unwrap()),
            number: number.parse().unwrap(),
        })
    }

    /// Ends, and waits until the handler does.
    #[track_caller]
    fn finish(mut self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(self.stream.read(&mut [0]).unwrap(), 0);
    }
}

/// One connection as a consumer in this process has it.
struct Taken {
    connection: OwnedFd,
    lease: Option<OwnedFd>,
    number: Option<u32>,
}

fn try_take(receiver: &Receiver) -> Option<Taken> {
    let (connection, lease, info) = take_apart(receiver)?;
    let number = info.get(message::TCP_CONN_NUM);
    let number = number.map(|text| std::str::from_utf8(text).unwrap().parse().unwrap());
    Some(Taken {
        connection,
        lease,
        number,
    })
}

#[track_caller]
fn take(receiver: &Receiver) -> Taken {
    let deadline = Instant::now() + DEADLINE;
    let mut fds = [PollFd::new(receiver, PollFlags::IN)];
    // Whoever else takes connections from it may be faster.
    while Instant::now() < deadline {
        wait(&mut fds, Some(deadline)).unwrap();
        if let Some(taken) = try_take(receiver) {
            return taken;
        }
    }
    panic!("still waiting for a connection");
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
fn nothing_comes(receiver: &Receiver) {
    stays("no connection comes", || try_take(receiver).is_none());
}

#[track_caller]
fn is_left_waiting(stream: &TcpStream) {
    stays("the client waits", || !is_answered(stream));
}

/// What `count` tells while this many others are in service: never less than one more. What was
/// in service just before may count for a moment longer.
#[track_caller]
fn are_held(others: u32, mut count: impl FnMut() -> u32) {
    until("the count", || count() == others + 1);
    stays("the leases are held", || count() > others);
}

/// That a client's connection is reset, be it that it learns so when it connects.
#[track_caller]
fn is_reset(client: std::io::Result<TcpStream>) {
    let end = client.and_then(|mut stream| stream.read(&mut [0]));
    let end = end.map_err(|error| error.kind());
    assert_eq!(end, Err(ErrorKind::ConnectionReset));
}

/// A client with one of the addresses of 127.0.0.0/8, that may be turned away at once.
fn try_connect_from(address: [u8; 4], port: u16) -> std::io::Result<TcpStream> {
    let kind = SockType::Stream;
    let socket = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let [a, b, c, d] = address;
    bind(socket.as_raw_fd(), &SockaddrIn::new(a, b, c, d, 0)).unwrap();
    connect(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port))?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    Ok(stream)
}

#[track_caller]
fn connect_from(address: [u8; 4], port: u16) -> TcpStream {
    try_connect_from(address, port).unwrap()
}

/// What a process has open besides the standard streams.
fn further_descriptors(pid: Pid) -> Vec<(i32, String)> {
    let open = descriptors(pid).into_iter();
    open.filter(|(number, _)| *number > 2).collect()
}

fn is_pipe(descriptor: &(i32, String)) -> bool {
    descriptor.1.starts_with("pipe:")
}

/// The number of descriptors of a process, once it does not change any more.
fn settled(pid: Pid) -> usize {
    let mut last = descriptors(pid).len();
    let mut same = 0;
    until("no change of descriptors", || {
        let now = descriptors(pid).len();
        same = if now == last { same + 1 } else { 0 };
        last = now;
        same == 20
    });
    last
}

/// Once a process has become `name`.
#[track_caller]
fn until_is(pid: Pid, name: &str) {
    until(name, || {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm"));
        comm.is_ok_and(|comm| comm.trim_end() == name)
    });
}

/// The parent of a process.
fn parent_of(pid: Pid) -> Pid {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let parent = stat.rsplit_once(") ").unwrap().1.split(' ').nth(1);
    Pid::from_raw(parent.unwrap().parse().unwrap())
}

/// Checks that processes that have nothing to do use no CPU in a second, in which they would use
/// all of one if they did not wait.
#[track_caller]
fn is_idle(pid: Pid) {
    let before = cpu_time(pid);
    // Nothing happens meanwhile: there is nothing else to wait for.
    std::thread::sleep(Duration::from_secs(1));
    let used = cpu_time(pid) - before;
    assert!(used < Duration::from_millis(150), "{used:?} in a second");
}

// In service at once.

#[test]
fn more_than_max_wait_in_the_backlog_until_one_ends() {
    let mut acceptor = Acceptor::start(&["-v", "--max", "2"]);
    let _pool = acceptor.pool(8, &COUNT);
    let (first, _second) = (acceptor.client(), acceptor.client());
    let third = acceptor.connect();
    is_left_waiting(&third);
    assert_eq!(acceptor.process.log().matches(": accepted ").count(), 2);
    first.finish();
    Client::greeted(third).finish();
}

#[test]
fn what_waits_in_the_queue_counts_for_max() {
    let acceptor = Acceptor::start(&["--max", "3"]);
    let clients: Vec<_> = (0..5).map(|_| acceptor.connect()).collect();
    let receiver = acceptor.receiver();
    let mut taken: Vec<_> = (0..3).map(|_| take(&receiver)).collect();
    nothing_comes(&receiver);
    taken.pop();
    taken.push(take(&receiver));
    nothing_comes(&receiver);
    drop(clients);
}

#[test]
fn max_counts_over_consumers_of_every_kind() {
    let acceptor = Acceptor::start(&["--max", "2"]);
    let mut fdrecv = acceptor.fdrecv(&[], &["cat"]);
    let in_fdrecv = acceptor.connect();
    until_is(fdrecv.pid(), "cat");
    let _pool = acceptor.pool(1, &COUNT);
    let in_pool = acceptor.client();
    let receiver = acceptor.receiver();
    let _third = acceptor.connect();
    nothing_comes(&receiver);
    drop(in_fdrecv);
    assert!(fdrecv.wait().success());
    let third = take(&receiver);
    let _fourth = acceptor.connect();
    nothing_comes(&receiver);
    drop(third);
    take(&receiver);
    drop(in_pool);
}

#[test]
fn max_counts_over_all_listeners() {
    let names = Names::new();
    let path = names.directory.path().join("listener");
    let text = format!(
        "exec fdaccept --max 2 127.0.0.1:0 127.0.0.1:0 \"$0\" -- fdpool 8 -- {COUNT_IN_SCRIPT}"
    );
    let mut process = Process::start(script("sh", &text).arg(&path));
    let (first, second) = (process.port(), process.port());
    process.listening();
    let one = Client::greeted(support::connect(first));
    let _other = Client::greeted(support::connect(second));
    let third = support::connect(second);
    is_left_waiting(&third);
    let mut fourth = support::connect_unix(&path);
    one.finish();
    // Each listener has its turn.
    fourth.read_exact(&mut [0]).unwrap();
    drop(fourth);
    Client::greeted(third).finish();
}

/// That `--max 2` holds where fdaccept and a pool find each other as `text` says.
#[track_caller]
fn assert_max_holds(text: &str) {
    let names = Names::new();
    let text = text.replace("HANDLER", COUNT_IN_SCRIPT);
    let mut process = Process::start(script("sh", &text).current_dir(&names.directory));
    let port = process.port();
    let client = || Client::greeted(support::connect(port));
    let (first, _second) = (client(), client());
    let third = support::connect(port);
    is_left_waiting(&third);
    first.finish();
    Client::greeted(third).finish();
}

#[test]
fn max_holds_in_a_chain() {
    assert_max_holds("exec fdaccept --max 2 127.0.0.1:0 -- fdpool 8 -- HANDLER");
}

#[test]
fn max_holds_in_a_pipeline() {
    assert_max_holds("fdaccept --max 2 127.0.0.1:0 | fdpool 8 -- HANDLER");
}

#[test]
fn max_holds_with_a_name_of_the_consumer() {
    let text = "fdpool --bind ./q 8 -- HANDLER & exec fdaccept --max 2 --connect ./q 127.0.0.1:0";
    assert_max_holds(text);
}

#[test]
fn max_holds_in_a_loop_of_fdrecv() {
    let each = "while fdrecv --connect ./q -- HANDLER || [ $? -ne 69 ]; do :; done";
    let text = format!(
        "fdaccept --max 2 --bind ./q 127.0.0.1:0 & until [ -S ./q ]; do sleep 0.02; done
         for n in 1 2 3; do {{ {each}; }} & done; wait"
    );
    assert_max_holds(&text);
}

// Of one client.

#[test]
fn one_client_beyond_its_limit_is_reset_and_others_are_served() {
    let acceptor = Acceptor::start(&["--max-per-source", "2"]);
    let _pool = acceptor.pool(8, &COUNT);
    let _two = (acceptor.client(), acceptor.client());
    is_reset(acceptor.try_connect());
    for last in [2, 3] {
        let other = connect_from([127, 0, 0, last], acceptor.port);
        assert_eq!(Client::greeted(other).number, 1);
    }
}

#[test]
fn a_client_at_its_limit_may_come_again_when_one_of_its_connections_ends() {
    let acceptor = Acceptor::start(&["--max-per-source", "1"]);
    let _pool = acceptor.pool(8, &COUNT);
    let client = acceptor.client();
    is_reset(acceptor.try_connect());
    client.finish();
    let again = eventually("room", || acceptor.try_client());
    again.finish();
}

#[test]
fn the_prefix_of_an_ipv4_address_tells_one_client_from_another() {
    let options = ["--max-per-source", "1", "--source-prefix", "24,64"];
    let acceptor = Acceptor::start(&options);
    let _pool = acceptor.pool(8, &COUNT);
    let port = acceptor.port;
    let _first = Client::greeted(connect_from([127, 0, 7, 1], port));
    is_reset(try_connect_from([127, 0, 7, 200], port));
    Client::greeted(connect_from([127, 0, 8, 1], port));
}

#[test]
fn ipv4_clients_of_a_listener_for_both_families_count_by_their_ipv4_address() {
    if TcpListener::bind("[::1]:0").is_err() {
        return skip("there is no IPv6");
    }
    let acceptor = Acceptor::listen(&["--max-per-source", "1"], "0");
    let _pool = acceptor.pool(8, &COUNT);
    let port = acceptor.port;
    let _first = Client::greeted(connect_from([127, 0, 0, 1], port));
    is_reset(try_connect_from([127, 0, 0, 1], port));
    Client::greeted(connect_from([127, 0, 0, 2], port));
    let v6 = SocketAddr::new("::1".parse().unwrap(), port);
    Client::greeted(TcpStream::connect(v6).unwrap());
}

/// What clients with these IPv6 addresses, one after another and all at once, get in the place of
/// their count, in a network of their own.
fn counts_of_ipv6_clients(options: &str, addresses: &str) -> Option<String> {
    let (unshare, _) = (peer("unshare")?, (peer("ip")?, peer("python3")?));
    if !root() {
        return None;
    }
    let clients = "import socket, sys
port, kept = int(sys.argv[1]), []
for address in sys.argv[2:]:
    try:
        client = socket.create_connection(('fd00::1', port), 60, (address, 0))
        kept.append(client)
        line = client.makefile().readline()
    except ConnectionResetError:
        line = ''
    print(line.split()[1] if line else 'reset', flush=True)
";
    let text = format!(
        "ip link set lo up || exit 77
         for a in fd00::1 {addresses}; do ip -6 addr add $a/128 dev lo nodad || exit 77; done
         fdaccept {options} '[fd00::1]:4000' -- fdpool 8 -- {COUNT_IN_SCRIPT} 2>log & p=$!
         until grep -q listening log; do sleep 0.02; done
         python3 -c \"$0\" 4000 {addresses}; kill $p; wait $p"
    );
    let names = Names::new();
    let mut command = Command::new(unshare);
    command
        .args(["-n", "sh", "-c", &text, clients])
        .env("PATH", support::path());
    let (status, stdout, stderr) = support::run(command.current_dir(&names.directory));
    if status == Some(77) || stderr.starts_with("unshare: ") {
        skip(&format!("no network of its own: {stderr}"));
        return None;
    }
    assert_eq!(status, Some(0), "{stderr}");
    Some(stdout.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[test]
fn ipv6_clients_of_one_64_count_as_one() {
    let addresses = "fd00:1::1 fd00:1::ffff:2 fd00:1:0:1::1 fd00:1:0:0:3::";
    if let Some(counts) = counts_of_ipv6_clients("--max-per-source 2", addresses) {
        assert_eq!(counts, "1 2 1 reset");
    }
}

#[test]
fn the_prefix_of_an_ipv6_address_tells_one_client_from_another() {
    let options = "--max-per-source 1 --source-prefix 32,128";
    if let Some(counts) = counts_of_ipv6_clients(options, "fd00:1::1 fd00:1::2") {
        assert_eq!(counts, "1 1");
    }
    let options = "--max-per-source 1 --source-prefix 32,48";
    if let Some(counts) = counts_of_ipv6_clients(options, "fd00:1::1 fd00:1:0:9::2 fd00:1:1::1") {
        assert_eq!(counts, "1 reset 1");
    }
}

#[test]
fn unix_clients_count_by_their_user() {
    let names = Names::new();
    let path = names.directory.path().join("listener");
    let text = "exec fdaccept --max-per-source 1 \"$0\" -- fdpool 4 -- sh -c 'echo here; exec cat'";
    let mut process = Process::start(script("sh", text).arg(&path));
    process.listening();
    let mut first = support::connect_unix(&path);
    first.read_exact(&mut [0; 5]).unwrap();
    let mut second = support::connect_unix(&path);
    assert_eq!(second.read(&mut [0]).unwrap(), 0);
    first.shutdown(Shutdown::Write).unwrap();
    eventually("room", || {
        let mut again = support::connect_unix(&path);
        (again.read(&mut [0]).unwrap() == 1).then_some(())
    });
}

#[test]
fn a_handler_is_told_the_count_of_its_client() {
    let acceptor = Acceptor::start(&["--max", "9"]);
    let _pool = acceptor.pool(8, &COUNT);
    let clients: Vec<_> = (0..3).map(|_| acceptor.client()).collect();
    let numbers: Vec<_> = clients.iter().map(|client| client.number).collect();
    assert_eq!(numbers, [1, 2, 3]);
    let other = connect_from([127, 0, 0, 2], acceptor.port);
    assert_eq!(Client::greeted(other).number, 1);
}

#[test]
fn the_count_goes_down_when_connections_end() {
    let acceptor = Acceptor::start(&["--max-per-source", "9"]);
    let _pool = acceptor.pool(8, &COUNT);
    let clients: Vec<_> = (0..3).map(|_| acceptor.client()).collect();
    clients.into_iter().for_each(Client::finish);
    until("the first again", || acceptor.count_by_pool() == 1);
}

#[test]
fn without_limits_nothing_is_counted() {
    let acceptor = Acceptor::start(&["--rate", "1000/1"]);
    let receiver = acceptor.receiver();
    let _client = acceptor.connect();
    let taken = take(&receiver);
    assert!(taken.lease.is_none() && taken.number.is_none());
    drop(receiver);
    let _pool = acceptor.pool(1, &["sh", "-c", "echo ${TCPCONNNUM-nothing}"]);
    assert_eq!(read_line(&acceptor.connect()), "nothing");
}

// What becomes of those that are too many.

/// A file with what to say.
fn words(names: &Names, text: &[u8]) -> String {
    let path = names.directory.path().join("words");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn when_full_close_resets_those_beyond_max() {
    let acceptor = Acceptor::start(&["--max", "1", "--when-full", "close"]);
    let _pool = acceptor.pool(8, &COUNT);
    let first = acceptor.client();
    is_reset(acceptor.try_connect());
    is_reset(try_connect_from([127, 0, 0, 2], acceptor.port));
    first.finish();
    eventually("room", || acceptor.try_client()).finish();
}

#[test]
fn when_full_wait_leaves_them_in_the_backlog_but_one_client_beyond_its_own_limit() {
    let options = ["--max", "2", "--max-per-source", "1", "--when-full", "wait"];
    let acceptor = Acceptor::start(&options);
    let _pool = acceptor.pool(8, &COUNT);
    let first = acceptor.client();
    is_reset(acceptor.try_connect());
    let _second = Client::greeted(connect_from([127, 0, 0, 2], acceptor.port));
    let third = connect_from([127, 0, 0, 3], acceptor.port);
    is_left_waiting(&third);
    first.finish();
    Client::greeted(third).finish();
}

/// That a client that is too many under `options` is told the bytes of a file, and then the end,
/// also if it has asked for something.
#[track_caller]
fn assert_is_told(options: &[&str], text: &[u8]) {
    let names = Names::new();
    let file = words(&names, text);
    let options = [options, &["--when-full", &file]].concat();
    let acceptor = Acceptor::start(&options);
    let _pool = acceptor.pool(8, &COUNT);
    let _first = acceptor.client();
    // What it sends is there before it is turned away.
    acceptor.process.signal(Signal::SIGSTOP);
    let mut second = acceptor.connect();
    second.write_all(&[b'x'; 10_000]).unwrap();
    acceptor.process.signal(Signal::SIGCONT);
    let mut told = Vec::new();
    second.read_to_end(&mut told).unwrap();
    assert_eq!(told, text);
}

const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";

#[test]
fn when_full_tells_those_beyond_max_the_bytes_of_a_file() {
    assert_is_told(&["--max", "1"], REFUSAL);
}

#[test]
fn when_full_tells_one_client_beyond_its_limit_the_bytes_of_a_file() {
    assert_is_told(&["--max-per-source", "1"], REFUSAL);
}

#[test]
fn any_bytes_can_be_told() {
    let bytes: Vec<u8> = (0..4096).map(|number| (number % 256) as u8).collect();
    assert_is_told(&["--max", "1"], &bytes);
}

#[test]
fn an_empty_file_tells_nothing_and_ends() {
    assert_is_told(&["--max", "1"], b"");
}

#[test]
fn clients_that_do_not_end_do_not_keep_others_from_being_told() {
    let names = Names::new();
    let file = words(&names, b"421 later\r\n");
    let acceptor = Acceptor::start(&["--max", "1", "--when-full", &file]);
    let _pool = acceptor.pool(2, &COUNT);
    let mut first = acceptor.client();
    let idle = settled(acceptor.process.pid());
    // More than are listened to at once; none of them reads or ends.
    let slow: Vec<_> = (0..200).map(|_| acceptor.connect()).collect();
    let mut last = acceptor.connect();
    last.shutdown(Shutdown::Write).unwrap();
    let mut told = String::new();
    last.read_to_string(&mut told).unwrap();
    assert_eq!(told, "421 later\r\n");
    first.stream.write_all(b"ping").unwrap();
    let mut answer = [0; 4];
    first.stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"ping");
    // They are given up, while they are still there.
    let pid = acceptor.process.pid();
    until("their end", || descriptors(pid).len() <= idle);
    drop(slow);
}

#[test]
fn a_client_that_never_stops_sending_is_given_up() {
    let names = Names::new();
    let file = words(&names, b"421 later\r\n");
    let acceptor = Acceptor::start(&["--max", "1", "--when-full", &file]);
    let _pool = acceptor.pool(2, &COUNT);
    let _first = acceptor.client();
    let mut second = acceptor.connect();
    let start = Instant::now();
    while second.write_all(&[b'x'; 4096]).is_ok() {
        assert!(start.elapsed() < DEADLINE, "still listened to");
    }
}

// The rate.

#[test]
fn no_more_are_accepted_in_a_time_than_the_rate_says_and_the_others_wait() {
    let acceptor = Acceptor::start(&["--rate", "3/0.3"]);
    let receiver = acceptor.receiver();
    let start = Instant::now();
    let _clients: Vec<_> = (0..12).map(|_| acceptor.connect()).collect();
    for number in 0..12 {
        take(&receiver);
        let passed = start.elapsed();
        let earliest = Duration::from_millis(300) * (number / 3);
        assert!(passed >= earliest, "{number} after {passed:?}");
    }
}

#[test]
fn the_rate_counts_over_all_listeners() {
    let names = Names::new();
    let mut command = program("fdaccept");
    command.args(["--bind", &names.path(), "--rate", "2/0.4"]);
    let mut process = Process::start(command.args(["127.0.0.1:0", "127.0.0.1:0"]));
    let ports = [process.port(), process.port()];
    let name = Name::parse(names.path().as_ref()).unwrap();
    let receiver = Receiver::connect(&name, &Trust::everybody()).unwrap();
    let start = Instant::now();
    let _clients: Vec<_> = (0..6).map(|n| support::connect(ports[n % 2])).collect();
    for number in 0..6 {
        take(&receiver);
        let earliest = Duration::from_millis(400) * (number / 2);
        assert!(start.elapsed() >= earliest, "{number}");
    }
}

#[test]
fn the_rate_recovers_after_a_flood_of_clients_that_went_away() {
    let acceptor = Acceptor::start(&["--rate", "5/0.1"]);
    let _pool = acceptor.pool(2, &["cat"]);
    for _ in 0..3 {
        let flood: Vec<_> = (0..30).map(|_| acceptor.connect()).collect();
        drop(flood);
        assert_eq!(support::exchange(acceptor.port, b"hello"), b"hello");
    }
}

#[test]
fn the_rate_does_not_depend_on_how_long_services_last() {
    let acceptor = Acceptor::start(&["--rate", "2/0.2"]);
    let receiver = acceptor.receiver();
    let _clients: Vec<_> = (0..6).map(|_| acceptor.connect()).collect();
    // None of them ends.
    let taken: Vec<_> = (0..6).map(|_| take(&receiver)).collect();
    assert_eq!(taken.len(), 6);
}

#[test]
fn waiting_for_the_rate_uses_no_cpu() {
    let acceptor = Acceptor::start(&["--rate", "1/1000"]);
    let receiver = acceptor.receiver();
    let _clients: Vec<_> = (0..5).map(|_| acceptor.connect()).collect();
    let _taken = take(&receiver);
    is_idle(acceptor.process.pid());
    nothing_comes(&receiver);
}

#[test]
fn waiting_for_room_uses_no_cpu() {
    let acceptor = Acceptor::start(&["--max", "1"]);
    let receiver = acceptor.receiver();
    let _clients: Vec<_> = (0..5).map(|_| acceptor.connect()).collect();
    let _taken = take(&receiver);
    is_idle(acceptor.process.pid());
    nothing_comes(&receiver);
}

// Stopping.

#[test]
fn a_stop_lets_the_backlog_in_as_room_comes() {
    let mut acceptor = Acceptor::start(&["--max", "1"]);
    let _pool = acceptor.pool(4, &COUNT);
    let first = acceptor.client();
    let others: Vec<_> = (0..3).map(|_| acceptor.connect()).collect();
    acceptor.process.signal(Signal::SIGTERM);
    stays("fdaccept waits", || acceptor.process.is_running());
    first.finish();
    for other in others {
        Client::greeted(other).finish();
    }
    assert_eq!(acceptor.process.wait().code(), Some(0));
}

#[test]
fn a_stop_lets_the_backlog_in_as_the_rate_allows() {
    let mut acceptor = Acceptor::start(&["--rate", "1/0.2"]);
    let _pool = acceptor.pool(4, &["sh", "-c", "echo 0 0; exec cat"]);
    let clients: Vec<_> = (0..4).map(|_| acceptor.connect()).collect();
    acceptor.process.signal(Signal::SIGTERM);
    for client in clients {
        Client::greeted(client).finish();
    }
    assert_eq!(acceptor.process.wait().code(), Some(0));
}

#[test]
fn a_stop_does_not_wait_for_room_longer_than_its_grace() {
    let mut acceptor = Acceptor::start(&["--max", "1", "--grace", "0.3"]);
    let _pool = acceptor.pool(4, &COUNT);
    let _first = acceptor.client();
    let other = acceptor.connect();
    acceptor.process.signal(Signal::SIGTERM);
    acceptor.process.wait();
    is_reset(Ok(other));
}

// Leases.

#[test]
fn with_a_limit_each_message_carries_the_write_end_of_a_pipe() {
    for options in [["--max", "9"], ["--max-per-source", "9"]] {
        let acceptor = Acceptor::start(&options);
        let receiver = acceptor.receiver();
        let _clients = (acceptor.connect(), acceptor.connect());
        let (first, second) = (take(&receiver), take(&receiver));
        let pipe_of = |taken: &Taken| {
            let number = taken.lease.as_ref().unwrap().as_raw_fd();
            let link = std::fs::read_link(format!("/proc/self/fd/{number}")).unwrap();
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap();
            assert!(info.contains("flags:\t02000001\n"), "{info}");
            link.to_str().unwrap().to_owned()
        };
        assert!(pipe_of(&first).starts_with("pipe:"));
        assert_ne!(pipe_of(&first), pipe_of(&second));
    }
}

#[test]
fn a_lease_is_held_until_it_is_closed_whatever_becomes_of_the_connection() {
    let acceptor = Acceptor::start(&["--max-per-source", "9"]);
    let receiver = acceptor.receiver();
    let client = acceptor.connect();
    let taken = take(&receiver);
    drop((client, taken.connection));
    are_held(1, || acceptor.count(&receiver));
    drop(taken.lease);
    until("the lease to be free", || acceptor.count(&receiver) == 1);
}

#[test]
fn what_is_written_to_a_lease_does_not_free_it() {
    let acceptor = Acceptor::start(&["--max-per-source", "9"]);
    let receiver = acceptor.receiver();
    let _client = acceptor.connect();
    let taken = take(&receiver);
    nix::unistd::write(taken.lease.as_ref().unwrap(), b"free").unwrap();
    are_held(1, || acceptor.count(&receiver));
    is_idle(acceptor.process.pid());
}

#[test]
fn the_slot_of_a_pool_holds_the_lease_and_its_handler_has_none() {
    let acceptor = Acceptor::start(&["--max", "9"]);
    let pool = acceptor.pool(1, &COUNT);
    let client = acceptor.client();
    until_is(client.pid, "cat");
    // What cat opens while it starts it closes again.
    let none = || further_descriptors(client.pid).is_empty();
    until("a handler with nothing else open", none);
    // What else there is it shares with the pool.
    let shared = further_descriptors(pool.pid());
    let open = further_descriptors(parent_of(client.pid));
    let own = open
        .iter()
        .filter(|(_, what)| !shared.iter().any(|(_, other)| other == what));
    assert_eq!(own.filter(|own| is_pipe(own)).count(), 1, "{open:?}");
}

#[test]
fn a_handler_that_closes_everything_still_counts() {
    let names = Names::new();
    let stop = names.directory.path().join("stop");
    let acceptor = Acceptor::start(&["--max-per-source", "9"]);
    let text = format!(
        "exec 0<&- >&- 2>&-; until [ -e '{}' ]; do sleep 0.02; done",
        stop.display()
    );
    let mut pool = acceptor.pool(1, &["sh", "-c", &text]);
    let mut client = acceptor.connect();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    // The slot is busy, so this process is the only consumer.
    let receiver = acceptor.receiver();
    are_held(1, || acceptor.count(&receiver));
    std::fs::write(stop, "").unwrap();
    pool.signal(Signal::SIGTERM);
    pool.wait();
    until("the lease to be free", || acceptor.count(&receiver) == 1);
}

#[test]
fn a_handler_that_leaves_a_child_in_the_background_counts_until_it_ends() {
    let acceptor = Acceptor::start(&["--max", "1"]);
    // The child has the connection, and ends with it.
    let text = "exec 3<&0; cat <&3 & echo $! 1; exit 0";
    let _pool = acceptor.pool(2, &["sh", "-c", text]);
    let clients: Vec<_> = (0..5).map(|_| acceptor.client()).collect();
    assert!(clients.iter().all(|client| is_alive(client.pid)));
    clients.into_iter().for_each(Client::finish);
}

#[test]
fn a_handler_that_is_killed_frees_its_lease() {
    let acceptor = Acceptor::start(&["--max-per-source", "9"]);
    let _pool = acceptor.pool(4, &COUNT);
    let client = acceptor.client();
    are_held(1, || acceptor.count_by_pool());
    kill(client.pid, Signal::SIGKILL).unwrap();
    until("the lease to be free", || acceptor.count_by_pool() == 1);
}

#[test]
fn a_slot_that_is_killed_frees_its_lease() {
    let acceptor = Acceptor::start(&["--max-per-source", "9"]);
    let _pool = acceptor.pool(4, &COUNT);
    let client = acceptor.client();
    are_held(1, || acceptor.count_by_pool());
    kill(parent_of(client.pid), Signal::SIGKILL).unwrap();
    until("the lease to be free", || acceptor.count_by_pool() == 1);
    // The session goes on, and nobody counts it.
    client.finish();
}

#[test]
fn a_session_that_outlives_its_pool_still_counts() {
    let acceptor = Acceptor::start(&["--max-per-source", "9"]);
    let mut pool = acceptor.pool(1, &COUNT);
    let client = acceptor.client();
    pool.signal(Signal::SIGKILL);
    pool.wait();
    let receiver = acceptor.receiver();
    are_held(1, || acceptor.count(&receiver));
    client.finish();
    until("the lease to be free", || acceptor.count(&receiver) == 1);
}

#[test]
fn a_consumer_that_is_killed_with_connections_in_the_queue_frees_nothing_of_them() {
    let acceptor = Acceptor::start(&["--max-per-source", "9"]);
    let mut fdrecv = acceptor.fdrecv(&[], &["sleep", "1000"]);
    let _first = acceptor.connect();
    until_is(fdrecv.pid(), "sleep");
    let _second = acceptor.connect();
    fdrecv.signal(Signal::SIGKILL);
    fdrecv.wait();
    let receiver = acceptor.receiver();
    let _waited = take(&receiver);
    are_held(1, || acceptor.count(&receiver));
}

// Workers.

/// Checks that a worker holds a lease for as long as it serves, and that it is free when the
/// client ends, and when the worker is killed.
#[track_caller]
fn assert_worker_holds_its_lease(command: impl Fn(&str) -> Command) {
    let acceptor = Acceptor::start(&["--max-per-source", "9"]);
    let mut worker = Process::start(&mut command(&acceptor.names.path()));
    let ping = |client: &mut TcpStream| {
        client.write_all(b"ping").unwrap();
        client.read_exact(&mut [0; 4]).unwrap();
    };
    let mut client = acceptor.connect();
    ping(&mut client);
    // While it serves, this process is the only consumer.
    let receiver = acceptor.receiver();
    are_held(1, || acceptor.count(&receiver));
    let mut second = acceptor.connect();
    let queued = take(&receiver);
    drop(queued.lease);
    drop(queued.connection);
    assert_eq!(second.read(&mut [0]).unwrap(), 0);
    drop(receiver);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    // The next one it serves is the only one in service.
    let mut next = acceptor.connect();
    ping(&mut next);
    let receiver = acceptor.receiver();
    until("one in service", || acceptor.count(&receiver) == 2);
    worker.signal(Signal::SIGKILL);
    worker.wait();
    until("the lease to be free", || acceptor.count(&receiver) == 1);
}

#[test]
fn the_example_of_a_worker_in_python_holds_the_lease() {
    let Some([python, source]) = python_worker() else {
        return;
    };
    assert_worker_holds_its_lease(|path| {
        let mut command = Command::new(&python);
        command.arg(&source).arg(path).stdin(Stdio::null());
        command
    });
}

#[test]
fn the_example_of_a_worker_in_rust_holds_the_lease() {
    let Some(worker) = rust_worker() else {
        return;
    };
    assert_worker_holds_its_lease(|path| {
        let mut command = Command::new(&worker);
        command.arg(path).stdin(Stdio::null());
        command
    });
}

#[test]
fn a_worker_of_a_pool_holds_the_lease() {
    let Some([python, source]) = python_worker() else {
        return;
    };
    let acceptor = Acceptor::start(&["--max", "1"]);
    let mut command = program("fdpool");
    command.args(["--connect", &acceptor.names.path(), "--worker", "2", "--"]);
    let _pool = Process::start(command.arg(python).arg(source));
    let mut first = acceptor.connect();
    first.write_all(b"x").unwrap();
    first.read_exact(&mut [0]).unwrap();
    let mut second = acceptor.connect();
    second.write_all(b"y").unwrap();
    is_left_waiting(&second);
    drop(first);
    second.read_exact(&mut [0]).unwrap();
}

// fdrecv.

/// Checks that a command which fdrecv becomes with `options` has its connection at `number`, and
/// the lease besides: one pipe, for writing, and nothing else.
#[track_caller]
fn assert_command_has_lease(options: &[&str], number: i32) {
    let acceptor = Acceptor::start(&["--max-per-source", "9"]);
    let mut fdrecv = acceptor.fdrecv(options, &["sleep", "1000"]);
    let client = acceptor.connect();
    let pid = fdrecv.pid();
    until_is(pid, "sleep");
    let mut open = Vec::new();
    let has_both_alone = |open: &[(i32, String)]| {
        let is_connection = |other, what: &str| other == number && what.starts_with("socket:");
        let has_connection = open.iter().any(|(other, what)| is_connection(*other, what));
        let further = open
            .iter()
            .filter(|(other, _)| *other > 2 && *other != number);
        let further: Vec<_> = further.collect();
        has_connection && further.len() == 1 && is_pipe(further[0])
    };
    // What it opens while it starts it closes again.
    let end = Instant::now() + DEADLINE;
    while !has_both_alone(&open) {
        assert!(Instant::now() < end, "{options:?}: {open:?}");
        std::thread::sleep(Duration::from_millis(5));
        open = descriptors(pid);
    }
    let receiver = acceptor.receiver();
    are_held(1, || acceptor.count(&receiver));
    drop(client);
    kill(pid, Signal::SIGKILL).unwrap();
    fdrecv.wait();
    until("the lease to be free", || acceptor.count(&receiver) == 1);
}

#[test]
fn the_command_of_fdrecv_holds_the_lease_until_it_is_killed() {
    assert_command_has_lease(&[], 1);
}

#[test]
fn the_command_of_fdrecv_holds_the_lease_with_its_connection_at_any_number() {
    std::thread::scope(|scope| {
        for number in [0, 1].into_iter().chain(3..=16).chain([100]) {
            let text = number.to_string();
            scope.spawn(move || assert_command_has_lease(&["--fd", &text], number));
        }
    });
}

#[test]
fn the_command_of_fdrecv_holds_the_lease_with_socket_activation() {
    assert_command_has_lease(&["--activate"], 3);
}

#[test]
fn the_connection_can_have_the_last_number_of_all() {
    let acceptor = Acceptor::start(&["--max-per-source", "9"]);
    // The command's shell needs a number beyond it.
    let text = "ulimit -S -n 10; \
        exec fdrecv --connect \"$0\" --fd 9 -- sh -c 'ulimit -S -n 64; echo here >&9'";
    let number = Process::start(script("sh", text).arg(acceptor.names.path()));
    assert_eq!(read_line(&acceptor.connect()), "here");
    drop(number);
}

#[test]
fn who_has_no_number_for_the_lease_leaves_the_connection_to_others() {
    let acceptor = Acceptor::start(&["--max", "9"]);
    let (mut served, mut short) = (0, 0);
    for limit in 4..16 {
        let client = acceptor.connect();
        let text =
            format!("ulimit -S -n {limit}; exec fdrecv --connect \"$0\" -- sh -c 'echo here'");
        let (status, _, stderr) = support::run(script("sh", &text).arg(acceptor.names.path()));
        match status {
            Some(0) => served += 1,
            _ => {
                assert!(stderr.contains("Too many open files"), "{limit}: {stderr}");
                short += 1;
                let mut other = acceptor.fdrecv(&[], &["sh", "-c", "echo here"]);
                assert!(other.wait().success());
            }
        }
        assert_eq!(read_line(&client), "here", "{limit}");
    }
    assert!(served > 0 && short > 0, "{served} {short}");
}

#[test]
fn a_shell_finds_its_connection_and_not_the_lease() {
    let acceptor = Acceptor::start(&["--max-per-source", "9"]);
    let text = "echo $LISTEN_FDS $TCPCONNNUM >&3";
    let _fdrecv = acceptor.fdrecv(&["--activate"], &["sh", "-c", text]);
    assert_eq!(read_line(&acceptor.connect()), "1 1");
}

// Receivers that know no lease, and senders of something else.

/// A receiver with so much room for descriptors: what it got, and whether there was more.
fn receive_raw<const ROOM: usize>(receiver: &Receiver) -> (Vec<OwnedFd>, bool) {
    #[repr(align(16))]
    struct Room<const ROOM: usize>([MaybeUninit<u8>; ROOM]);
    let mut room = Room([MaybeUninit::uninit(); ROOM]);
    let mut control = RecvAncillaryBuffer::new(&mut room.0);
    let mut payload = [0; 4096];
    let mut buffers = [IoSliceMut::new(&mut payload)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(receiver.as_fd(), &mut buffers, &mut control, flags).unwrap();
    let mut open = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = part {
            open.extend(descriptors);
        }
    }
    (open, received.flags.contains(ReturnFlags::CTRUNC))
}

/// The exact room for one descriptor: what Python's recv_fds(…, 1) has.
const ROOM_FOR_ONE: usize = size_of::<nix::libc::cmsghdr>() + size_of::<i32>();

#[test]
fn a_receiver_with_room_for_one_descriptor_gets_the_connection() {
    let acceptor = Acceptor::start(&["--max", "1"]);
    let receiver = acceptor.receiver();
    for _ in 0..5 {
        let mut client = acceptor.connect();
        let (mut open, cut) = receive_raw::<ROOM_FOR_ONE>(&receiver);
        assert_eq!((open.len(), cut), (1, true));
        let mut connection = TcpStream::from(open.pop().unwrap());
        connection.write_all(b"served").unwrap();
        drop(connection);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        // Nobody has the lease, so the next one is let in.
        assert_eq!(answer, "served");
    }
}

#[test]
fn a_receiver_that_keeps_the_lease_without_knowing_it_frees_it_when_it_ends() {
    let Some(python) = python() else {
        return;
    };
    let acceptor = Acceptor::start(&["--max-per-source", "9"]);
    let text = "import os, socket, sys
door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
door.connect(sys.argv[1])
queue = socket.socket(fileno=socket.recv_fds(door, 4096, 1)[1][0])
_, descriptors, _, _ = socket.recv_fds(queue, 4096, 9)
os.write(descriptors[0], b'served')
os.close(descriptors[0])
queue.close()
sys.stdin.read()
";
    let mut command = Command::new(python);
    command.args(["-c", text, &acceptor.names.path()]);
    let mut other = Process::start(command.stdin(Stdio::piped()));
    let mut client = acceptor.connect();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "served");
    let receiver = acceptor.receiver();
    are_held(1, || acceptor.count(&receiver));
    drop(other.child().stdin.take());
    assert!(other.wait().success());
    until("the lease to be free", || acceptor.count(&receiver) == 1);
}

#[test]
fn a_receiver_in_python_with_room_for_one_descriptor_serves_and_is_not_counted() {
    let Some(python) = python() else {
        return;
    };
    let acceptor = Acceptor::start(&["--max", "1"]);
    let text = "import os, socket, sys
door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
door.connect(sys.argv[1])
queue = socket.socket(fileno=socket.recv_fds(door, 4096, 1)[1][0])
kept = []
while True:
    _, descriptors, _, _ = socket.recv_fds(queue, 4096, 1)
    if not descriptors: break
    os.write(descriptors[0], b'served\\n')
    kept.append(descriptors[0])
";
    let mut command = Command::new(python);
    command.args(["-c", text, &acceptor.names.path()]);
    let _other = Process::start(command.stdin(Stdio::null()));
    // All are in service at once.
    let clients: Vec<_> = (0..5).map(|_| acceptor.connect()).collect();
    for client in &clients {
        assert_eq!(read_line(client), "served");
    }
}

/// A consumer whose queue this process writes to; what it is sent, and what it says.
struct Sent {
    client: UnixStream,
    process: Process,
    queue: OwnedFd,
}

/// Sends `payload`, a connection and what `second` makes to `fdrecv` or `fdpool`.
fn send_to(words: &[&str], payload: &[u8], further: &[OwnedFd]) -> Sent {
    let (queue, read_end) = socket_pair(SockType::SeqPacket);
    let mut command = program(words[0]);
    command.args(&words[1..]).stdin(Stdio::from(read_end));
    let process = Process::start(&mut command);
    // The consumer's own copy is the only one.
    drop(command);
    let (client, connection) = UnixStream::pair().unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    let all = std::iter::once(connection.as_fd()).chain(further.iter().map(AsFd::as_fd));
    let all: Vec<_> = all.collect();
    queue::send(&queue, payload, &all).unwrap();
    Sent {
        client,
        process,
        queue,
    }
}

/// Checks that both programs refuse a message of a connection and these descriptors, and serve the
/// next one.
#[track_caller]
fn assert_refused(payload: &[u8], further: impl Fn() -> Vec<OwnedFd>) {
    for words in [
        &["fdrecv", "--", "echo", "served"][..],
        &["fdpool", "1", "--", "echo", "served"],
    ] {
        let further = further();
        let count = further.len() + 1;
        let mut sent = send_to(words, payload, &further);
        drop(further);
        let line = format!("a message came with {count} descriptors instead of one");
        sent.process.line(&line);
        assert_eq!(sent.client.read(&mut [0]).unwrap(), 0);
        let (mut client, connection) = UnixStream::pair().unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        queue::send(&sent.queue, payload, &[connection.as_fd()]).unwrap();
        drop(connection);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "served\n");
    }
}

#[test]
fn a_second_descriptor_that_is_no_pipe_is_refused() {
    let payload = Info::new().encode();
    assert_refused(&payload, || vec![UnixStream::pair().unwrap().0.into()]);
    assert_refused(&payload, || {
        vec![std::fs::File::open("/dev/null").unwrap().into()]
    });
}

#[test]
fn a_pipe_beside_a_connection_is_refused_from_a_sender_that_says_nothing_of_itself() {
    for payload in [&b"x"[..], b"127.0.0.1 80\0", b"FDTOOLS=2\n"] {
        assert_refused(payload, || vec![pipe().unwrap().1]);
    }
}

#[test]
fn a_third_descriptor_is_refused() {
    assert_refused(&Info::new().encode(), || {
        let (read_end, write_end) = pipe().unwrap();
        vec![write_end, read_end]
    });
}

#[test]
fn another_sender_can_have_leases_too() {
    for words in [&["fdrecv", "--", "cat"][..], &["fdpool", "1", "--", "cat"]] {
        let (read_end, write_end) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let mut sent = send_to(words, &Info::new().encode(), &[write_end]);
        sent.client.write_all(b"x").unwrap();
        sent.client.read_exact(&mut [0]).unwrap();
        let flags = nix::fcntl::OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(&read_end, nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap();
        let has_ended = || nix::unistd::read(&read_end, &mut [0]) == Ok(0);
        stays("it is held", || !has_ended());
        sent.client.shutdown(Shutdown::Write).unwrap();
        until("the end of the lease", has_ended);
    }
}

// What it costs.

#[test]
fn the_descriptors_of_fdaccept_are_as_many_as_before_when_services_have_ended() {
    let options = ["--max", "50", "--max-per-source", "40"];
    let acceptor = Acceptor::start(&options);
    let _pool = acceptor.pool(60, &COUNT);
    acceptor.client().finish();
    let pid = acceptor.process.pid();
    let before = settled(pid);
    for round in 0..3 {
        let clients: Vec<_> = (0..20)
            .map(|n| {
                let address = [127, 0, round, 1 + n % 4];
                Client::greeted(connect_from(address, acceptor.port))
            })
            .collect();
        assert!(descriptors(pid).len() > before);
        clients.into_iter().for_each(Client::finish);
        until("the end of all leases", || descriptors(pid).len() <= before);
    }
}

#[test]
fn the_descriptors_of_fdaccept_are_as_many_as_before_when_clients_were_turned_away() {
    let names = Names::new();
    let file = words(&names, b"no\n");
    for what in ["close", &file] {
        let acceptor = Acceptor::start(&["--max", "1", "--when-full", what]);
        let _pool = acceptor.pool(2, &COUNT);
        let _first = acceptor.client();
        let pid = acceptor.process.pid();
        let before = settled(pid);
        for _ in 0..100 {
            // With a word, or with a reset.
            let mut told = String::new();
            let read = acceptor
                .try_connect()
                .and_then(|mut client| client.read_to_string(&mut told));
            assert!(read.is_err() || told == "no\n", "{told}");
        }
        until("their end", || descriptors(pid).len() <= before);
    }
}

#[test]
fn ten_thousand_leases_cost_no_time_while_nothing_happens_and_all_end() {
    const MANY: usize = 10_000;
    support::raise_limit();
    let (most, _) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    // One for each here, and one in fdaccept.
    let many = MANY.min((most as usize).saturating_sub(1000));
    assert!(many > 0);
    let acceptor = Acceptor::start(&["--max", "1000000"]);
    let receiver = acceptor.receiver();
    let pid = acceptor.process.pid();
    let lease = || {
        let _client = acceptor.connect();
        let taken = take(&receiver);
        (taken.lease.unwrap(), taken.number.unwrap())
    };
    // The time for a thousand, while there are few.
    let batch = |count: usize| {
        let before = cpu_time(pid);
        let leases: Vec<_> = (0..count).map(|_| lease()).collect();
        (leases, cpu_time(pid) - before)
    };
    let size = many / 10;
    let (mut leases, first) = batch(size);
    let mut last = first;
    while leases.len() + size <= many {
        let (further, time) = batch(size);
        leases.extend(further);
        last = time;
    }
    assert_eq!(leases.last().unwrap().1 as usize, leases.len());
    // Ten times as many would cost ten times as much where each of them is looked at.
    let allowed = first * 5 + Duration::from_millis(100);
    assert!(last < allowed, "{last:?} for the last, {first:?} at first");
    is_idle(pid);
    drop(leases);
    until("the end of all leases", || lease().1 == 1);
    until("few descriptors", || descriptors(pid).len() < 30);
}

// When descriptors are short.

/// Takes away all but `left` of the descriptors that a process does not use. Returns what restores
/// them.
fn leave(prlimit: &Path, pid: Pid, left: usize) -> impl Fn() {
    let set = {
        let prlimit = prlimit.to_owned();
        move |limits: &str| {
            let mut command = Command::new(&prlimit);
            command.args(["--pid", &pid.to_string()]);
            let status = command.arg(format!("--nofile={limits}")).status();
            assert!(status.unwrap().success());
        }
    };
    settled(pid);
    let open = descriptors(pid);
    let is_open = |number: &i32| open.iter().any(|(other, _)| other == number);
    let free = (0..).filter(|number| !is_open(number)).nth(left).unwrap();
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = text.lines().find(|line| line.starts_with("Max open files"));
    let soft = line.unwrap().split_whitespace().nth(3).unwrap().to_owned();
    set(&format!("{free}:"));
    move || set(&format!("{soft}:"))
}

#[test]
fn clients_wait_while_there_is_no_descriptor_for_a_lease() {
    let Some(prlimit) = peer("prlimit") else {
        return;
    };
    for left in 0..=4 {
        let mut acceptor = Acceptor::start(&["--max", "1000"]);
        let _pool = acceptor.pool(20, &COUNT);
        let _first = acceptor.client();
        let pid = acceptor.process.pid();
        let restore = leave(&prlimit, pid, left);
        let clients: Vec<_> = (0..10).map(|_| acceptor.connect()).collect();
        let line = acceptor.process.line("cannot accept");
        assert!(line.contains("Too many open files"), "{line}");
        if left == 1 {
            is_idle(pid);
        }
        restore();
        for client in clients {
            Client::greeted(client).finish();
        }
    }
}

#[test]
fn the_end_of_services_gives_descriptors_for_further_leases() {
    let text = "ulimit -n 20; exec fdaccept --max 1000 127.0.0.1:0 -- fdpool 8 -- cat";
    let mut process = Process::start(&mut script("sh", text));
    support::Crowd::connect(process.port(), 100).expect_served();
}

#[test]
fn a_consumer_finds_its_way_when_leases_have_used_up_the_descriptors() {
    let names = Names::new();
    let text = "ulimit -n 32; exec fdaccept --max 1000 --bind ./queue 127.0.0.1:0";
    let mut process = Process::start(script("sh", text).current_dir(&names.directory));
    let crowd = support::Crowd::connect(process.port(), 100);
    process.line("cannot accept");
    let mut command = program("fdpool");
    let _pool = Process::start(command.args(["--connect", &names.path(), "4", "--", "cat"]));
    crowd.expect_served();
}

#[test]
fn a_consumer_finds_its_way_by_ticket_when_leases_have_used_up_the_descriptors() {
    let names = Names::new();
    let text = "ulimit -n 32; fdaccept --max 1000 127.0.0.1:0 | {
        until [ -e go ]; do sleep 0.02; done; exec fdpool 4 -- cat; }";
    let mut process = Process::start(script("sh", text).current_dir(&names.directory));
    let crowd = support::Crowd::connect(process.port(), 100);
    process.line("cannot accept");
    std::fs::write(names.directory.path().join("go"), "").unwrap();
    crowd.expect_served();
}
