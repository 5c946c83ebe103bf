//! `fdaccept --store`: what a service manager keeps of it from one start to the next. The manager
//! is one of the test's own, which does what systemd does: see "FDSTORE=1" of sd_notify(3), and
//! sd_listen_fds(3).
//!
//! A program of its own: a child that any other test starts has all that the manager has open until
//! it is its program, so what the manager closes then would still be there for fdaccept.
#![allow(unsafe_code)] // a child finds its descriptors before it becomes a program

#[path = "../support/mod.rs"]
mod support;

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use fdtools::queue;
use fdtools::queue::message;
use fdtools::queue::name::Name;
use fdtools::queue::trust::Trust;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, setsockopt, shutdown, socket,
    sockopt,
};
use nix::unistd::{Pid, dup2_raw};
use support::{
    Crowd, DEADLINE, Names, Process, Random, children, connect, connect_unix, descriptors,
    eventually, exchange, path, peer, program, root, script, skip, socket_pair, take_apart, until,
};

/// The names of the two ends of a queue.
const WRITE_END: &str = "fdtools-queue-write";
const READ_END: &str = "fdtools-queue-read";

/// A handler that writes down what it gets, and gives it back.
const ECHO: &str = r#"got=$(cat); echo "$got" >>"$SERVED"; printf %s "$got""#;

/// A command that serves by [`ECHO`], once the test opens it.
const OPENED: &str = r#"until [ -e "$OPEN" ]; do sleep 0.02; done; exec fdpool 2 -- sh -c "$0""#;

/// The loopback address of IPv4, with any free port.
const ANY_PORT: &str = "127.0.0.1:0";

// A service manager.

/// What a manager has heard and keeps.
#[derive(Default)]
struct Kept {
    store: Vec<(String, OwnedFd)>,
    told: Vec<String>,
    /// What it was told that sd_notify(3) does not know.
    nonsense: Vec<String>,
    /// It keeps no more than this.
    most: Option<usize>,
    /// It lets go of nothing before somebody waits for that.
    is_lazy: bool,
    to_forget: Vec<String>,
}

impl Kept {
    fn hear(&mut self, text: &str, with: Vec<OwnedFd>) {
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        let name = value("FDNAME=").unwrap_or_default().to_owned();
        // As fdname_is_valid() of systemd has it, and no space either.
        let is_plain = |byte: u8| byte.is_ascii_graphic() && byte != b':';
        let is_name = !name.is_empty() && name.len() <= 255 && name.bytes().all(is_plain);
        let makes_sense;
        if value("FDSTOREREMOVE=") == Some("1") {
            makes_sense = is_name && with.is_empty();
            self.to_forget.push(name);
            if !self.is_lazy {
                self.forget();
            }
        } else if value("FDSTORE=") == Some("1") {
            // Without FDPOLL=0, systemd gives up what hangs up.
            makes_sense = is_name && with.len() == 1 && value("FDPOLL=") == Some("0");
            for descriptor in with {
                if self.most.is_none_or(|most| self.store.len() < most) {
                    self.store.push((name.clone(), descriptor));
                }
            }
        } else if value("BARRIER=") == Some("1") {
            makes_sense = text == "BARRIER=1" && with.len() == 1;
            self.forget();
        } else {
            makes_sense = with.is_empty();
        }
        if !makes_sense {
            self.nonsense.push(text.to_owned());
        }
        self.told.push(text.to_owned());
    }

    fn forget(&mut self) {
        let names = std::mem::take(&mut self.to_forget);
        self.store.retain(|(kept, _)| !names.contains(kept));
    }
}

/// A service manager, and a directory for everything.
struct Manager {
    names: Names,
    kept: Arc<Mutex<Kept>>,
    heard: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

/// What a test tells the manager itself: to say that it has got to here; to end.
const HERE: &[u8] = b"X_HERE=1";
const END: &[u8] = b"X_END=1";

impl Manager {
    fn new() -> Self {
        let names = Names::new();
        let socket = UnixDatagram::bind(names.directory.path().join("notify")).unwrap();
        let kept = Arc::new(Mutex::new(Kept::default()));
        let (sender, heard) = channel();
        let thread = {
            let kept = Arc::clone(&kept);
            std::thread::spawn(move || listen(&socket, &kept, &sender))
        };
        Self {
            names,
            kept,
            heard,
            thread: Some(thread),
        }
    }

    fn file(&self, name: &str) -> String {
        let path = self.names.directory.path().join(name);
        path.to_str().unwrap().to_owned()
    }

    /// Starts `fdaccept --store` with a named queue.
    fn start(&self, arguments: &[&str]) -> Process {
        self.start_all(&[&["--store", "--bind", &self.names.path()], arguments].concat())
    }

    /// Starts `fdaccept --store` with a command that serves by [`ECHO`] once it is opened.
    fn start_chain(&self, arguments: &[&str]) -> Process {
        let command = ["--", "sh", "-c", OPENED, ECHO];
        self.start_all(&[&["--store"], arguments, &command].concat())
    }

    /// Starts fdaccept as the manager does.
    fn start_all(&self, arguments: &[&str]) -> Process {
        self.start_with(&[], arguments)
    }

    /// The same with other descriptors before those of the store.
    fn start_with(&self, others: &[(&str, &OwnedFd)], arguments: &[&str]) -> Process {
        self.start_words(others, &[&["fdaccept"], arguments].concat(), |_| {})
    }

    /// The same once something was changed.
    fn start_changed(&self, arguments: &[&str], change: impl FnOnce(&mut Command)) -> Process {
        self.start_words(&[], &[&["fdaccept"], arguments].concat(), change)
    }

    fn start_words(
        &self,
        others: &[(&str, &OwnedFd)],
        words: &[&str],
        change: impl FnOnce(&mut Command),
    ) -> Process {
        self.until_heard();
        let alone = alone();
        let kept = self.kept.lock().unwrap();
        let others = others.iter().map(|(name, fd)| (*name, fd.as_raw_fd()));
        let store = kept.store.iter();
        let store = store.map(|(name, fd)| (name.as_str(), fd.as_raw_fd()));
        let (names, numbers): (Vec<_>, Vec<_>) = others.chain(store).unzip();

        let mut command = Command::new("sh");
        command.args(["-c", "LISTEN_PID=$$ exec \"$@\"", "sh"]);
        command.args(words).env("PATH", path());
        command.env("NOTIFY_SOCKET", self.file("notify"));
        command.env("SERVED", self.file("served"));
        command.env("OPEN", self.file("open"));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // Whatever started this test must not interfere.
        command
            .env_remove("LISTEN_FDS")
            .env_remove("LISTEN_FDNAMES");
        if !names.is_empty() {
            command.env("LISTEN_FDS", names.len().to_string());
            command.env("LISTEN_FDNAMES", names.join(":"));
        }
        place(numbers, &mut command);
        change(&mut command);
        launch_alone(&mut command, &alone)
    }

    /// Lets the commands of [`Manager::start_chain`] serve.
    fn open(&self) {
        File::create(self.file("open")).unwrap();
    }

    /// `fdpool --connect QUEUE OPTIONS N -- HANDLER`.
    fn pool(&self, options: &[&str], size: usize, handler: &str) -> Process {
        let mut command = program("fdpool");
        command
            .args(["--connect", &self.names.path()])
            .args(options);
        command.args([&size.to_string(), "--", "sh", "-c", handler]);
        command.env("SERVED", self.file("served"));
        launch(command.env("OPEN", self.file("open")))
    }

    /// A pool of [`ECHO`].
    fn echo(&self) -> Process {
        self.pool(&[], 2, ECHO)
    }

    /// A consumer in this process.
    fn receiver(&self) -> queue::Receiver {
        let name = Name::parse(self.names.path().as_ref()).unwrap();
        queue::Receiver::connect(&name, &Trust::everybody()).unwrap()
    }

    /// Waits until it has heard all that it was told so far.
    fn until_heard(&self) {
        self.tell(HERE);
        self.heard.recv_timeout(DEADLINE).unwrap();
    }

    /// Tells it something. If it has ended, that shows elsewhere.
    fn tell(&self, text: &[u8]) {
        let socket = UnixDatagram::unbound().unwrap();
        let _ = socket.send_to(text, self.file("notify"));
    }

    /// The names of what it keeps, sorted, once it has heard all that it was told.
    fn kept(&self) -> Vec<String> {
        self.until_heard();
        let kept = self.kept.lock().unwrap();
        let mut names: Vec<_> = kept.store.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }

    /// Checks that it keeps both ends of one queue and this many listeners, and nothing else.
    #[track_caller]
    fn expect_kept(&self, listeners: usize) {
        let names = self.kept();
        let (ours, ends): (Vec<_>, Vec<_>) = names
            .iter()
            .partition(|name| name.starts_with("fdtools-listener-"));
        assert_eq!(ends, [READ_END, WRITE_END], "{names:?}");
        assert_eq!(ours.len(), listeners, "{names:?}");
    }

    /// Gives it something to keep.
    fn put(&self, name: &str, descriptor: impl Into<OwnedFd>) {
        let entry = (name.to_owned(), descriptor.into());
        self.kept.lock().unwrap().store.push(entry);
    }

    /// Has it lose what it keeps under names that contain `part`.
    fn lose(&self, part: &str) {
        self.until_heard();
        let mut kept = self.kept.lock().unwrap();
        kept.store.retain(|(kept, _)| !kept.contains(part));
    }

    /// Has it keep something else under a name.
    fn replace(&self, name: &str, descriptor: impl Into<OwnedFd>) {
        assert!(self.kept().contains(&name.to_owned()));
        self.lose(name);
        self.put(name, descriptor);
    }

    /// How often it was told this.
    fn times_told(&self, text: &str) -> usize {
        self.until_heard();
        let kept = self.kept.lock().unwrap();
        kept.told.iter().filter(|told| *told == text).count()
    }

    /// What [`ECHO`] was sent, sorted.
    fn served(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.file("served")).unwrap_or_default();
        let mut served: Vec<_> = text.lines().map(str::to_owned).collect();
        served.sort();
        served
    }

    /// Checks that each of `count` clients of a [`Crowd`] gets its own bytes, and that [`ECHO`] was
    /// run exactly once for it, and for nobody else.
    #[track_caller]
    fn expect_served_once(&self, crowd: Crowd, count: usize) {
        crowd.expect_served();
        let mut numbers: Vec<_> = (0..count).map(|number| number.to_string()).collect();
        numbers.sort();
        assert_eq!(self.served(), numbers);
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.tell(END);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if !std::thread::panicking() {
            assert!(self.kept.lock().unwrap().nonsense.is_empty());
        }
    }
}

fn listen(socket: &UnixDatagram, kept: &Mutex<Kept>, here: &Sender<()>) {
    loop {
        let mut message = match queue::receive(socket) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            message => message.unwrap(),
        };
        let with = message.descriptors.drain(..).collect();
        match message.payload.as_slice() {
            HERE => here.send(()).unwrap(),
            END => return,
            text => {
                let text = String::from_utf8_lossy(text);
                let _alone = alone();
                kept.lock().unwrap().hear(&text, with);
            }
        }
    }
}

/// Keeps others from starting a process. One that has not become its program yet has everything
/// open that this process has, so what is closed meanwhile is not closed.
fn alone() -> MutexGuard<'static, ()> {
    static STARTING: Mutex<()> = Mutex::new(());
    STARTING.lock().unwrap_or_else(|poison| poison.into_inner())
}

/// Starts `command` while nobody else starts anything.
fn launch(command: &mut Command) -> Process {
    launch_alone(command, &alone())
}

/// Starts `command`, and waits until it has become its program, with nothing else open.
fn launch_alone(command: &mut Command, _alone: &MutexGuard<'static, ()>) -> Process {
    /// Beyond all other numbers. The kernel closes them in their order.
    const LAST: RawFd = 900;
    let (mut end, last) = std::io::pipe().unwrap();
    let number = fcntl(&last, FcntlArg::F_DUPFD_CLOEXEC(LAST)).unwrap();
    // SAFETY: fcntl just made this number for us.
    let last = [unsafe { OwnedFd::from_raw_fd(number) }, last.into()];
    let process = Process::start(command);
    drop(last);
    assert_eq!(end.read(&mut [0]).unwrap(), 0);
    process
}

/// Lets `command` find at its descriptors from 3 on what these numbers are here, where they must
/// stay open until it is started.
fn place(numbers: Vec<RawFd>, command: &mut Command) {
    /// Beyond all numbers that are given.
    const AWAY: RawFd = 100;
    let mut copies = Vec::with_capacity(numbers.len());
    let place = move || {
        // First all out of the way: each has a number that another one may get.
        for number in &numbers {
            // SAFETY: the number is open.
            let original = unsafe { BorrowedFd::borrow_raw(*number) };
            copies.push(fcntl(original, FcntlArg::F_DUPFD_CLOEXEC(AWAY))?);
        }
        for (copy, number) in copies.iter().zip(3..) {
            // SAFETY: the copies are open, and this process has no use of its own for the numbers.
            let placed = unsafe { dup2_raw(BorrowedFd::borrow_raw(*copy), number)? };
            let _ = placed.into_raw_fd();
        }
        Ok(())
    };
    // SAFETY: these are system calls; the vector has room for all, so nothing is allocated.
    unsafe { command.pre_exec(place) };
}

/// The two ways to have a queue that outlives fdaccept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Named,
    Chain,
}

const FORMS: [Form; 2] = [Form::Named, Form::Chain];

impl Form {
    fn start(self, manager: &Manager, arguments: &[&str]) -> Process {
        match self {
            Form::Named => manager.start(arguments),
            Form::Chain => manager.start_chain(arguments),
        }
    }

    /// Has [`ECHO`] serve from now on.
    fn serve(self, manager: &Manager) -> Option<Process> {
        match self {
            Form::Named => Some(manager.echo()),
            Form::Chain => {
                manager.open();
                None
            }
        }
    }
}

/// Ends fdaccept and, as a manager does, what is left of its service, without any warning.
#[track_caller]
fn crash(mut process: Process) {
    process.signal_group(Signal::SIGKILL);
    assert_eq!(process.wait().code(), None);
}

/// Ends it by TERM. Returns the status, and all that it said.
#[track_caller]
fn stop(mut process: Process) -> (Option<i32>, String) {
    process.signal(Signal::SIGTERM);
    let (status, log) = process.finish();
    (status.code(), log)
}

/// Once fdaccept has put so many connections into the queue.
#[track_caller]
fn until_passed(process: &mut Process, count: usize) {
    until("connections in the queue", || {
        process.signal(Signal::SIGUSR1);
        process
            .line("accepted ")
            .contains(&format!(" passed {count},"))
    });
}

/// All that fdaccept says until it listens, or until it ends if it does not.
#[track_caller]
fn first_word(process: &mut Process) -> String {
    eventually("a listener or the end", || {
        if !process.is_running() {
            return Some(process.finish().1);
        }
        let log = process.log();
        log.contains("listening on").then_some(log)
    })
}

/// A port of 127.0.0.1 that nobody else gets, but that can be listened on. It is given back with
/// the descriptor.
fn reserve_port() -> (OwnedFd, u16) {
    let kind = SockType::Stream;
    let socket = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
    bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    let bound: SockaddrIn = getsockname(socket.as_raw_fd()).unwrap();
    (socket, bound.port())
}

/// Sends `text`, and returns all that comes back.
#[track_caller]
fn ask_unix(mut client: UnixStream, text: &str) -> String {
    client.write_all(text.as_bytes()).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    answer
}

fn connect_abstract(name: &str) -> UnixStream {
    let address = SocketAddr::from_abstract_name(name.strip_prefix('@').unwrap()).unwrap();
    let client = UnixStream::connect_addr(&address).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client
}

fn has_ipv6() -> bool {
    let is_there = TcpListener::bind("[::1]:0").is_ok();
    if !is_there {
        skip("there is no IPv6");
    }
    is_there
}

/// What the next connection of a queue is, and which client it has.
#[track_caller]
fn take(receiver: &queue::Receiver) -> (TcpStream, u16) {
    let (connection, _, info) = eventually("a connection", || take_apart(receiver));
    let port = std::str::from_utf8(info.get(message::TCP_REMOTE_PORT).unwrap()).unwrap();
    (TcpStream::from(connection), port.parse().unwrap())
}

// A crash.

#[test]
fn what_waits_in_the_queue_survives_a_crash_and_is_served_once() {
    for form in FORMS {
        let manager = Manager::new();
        let mut process = form.start(&manager, &[ANY_PORT]);
        let port = process.port();
        let crowd = Crowd::connect(port, 20);
        until_passed(&mut process, 20);
        crash(process);
        let mut process = form.start(&manager, &[ANY_PORT]);
        assert_eq!(process.port(), port, "{form:?}");
        let _pool = form.serve(&manager);
        manager.expect_served_once(crowd, 20);
    }
}

#[test]
fn who_comes_while_nobody_listens_waits_and_is_served_once() {
    for form in FORMS {
        let manager = Manager::new();
        let mut process = form.start(&manager, &[ANY_PORT]);
        let port = process.port();
        crash(process);
        let crowd = Crowd::connect(port, 20);
        let mut process = form.start(&manager, &[ANY_PORT]);
        assert_eq!(process.port(), port, "{form:?}");
        let _pool = form.serve(&manager);
        manager.expect_served_once(crowd, 20);
    }
}

#[test]
fn first_those_of_the_queue_are_served_and_then_those_of_the_backlog() {
    let manager = Manager::new();
    let mut process = manager.start(&[ANY_PORT]);
    let port = process.port();
    let first: Vec<_> = (0..3).map(|_| connect(port)).collect();
    until_passed(&mut process, 3);
    crash(process);
    let then: Vec<_> = (0..3).map(|_| connect(port)).collect();
    let _process = manager.start(&[ANY_PORT]);
    let receiver = eventually("the queue", || {
        let name = Name::parse(manager.names.path().as_ref()).unwrap();
        queue::Receiver::connect(&name, &Trust::everybody()).ok()
    });
    for client in first.iter().chain(&then) {
        let (_connection, port) = take(&receiver);
        assert_eq!(port, client.local_addr().unwrap().port());
    }
}

#[test]
fn a_consumer_keeps_its_end_and_serves_also_while_nobody_accepts() {
    let manager = Manager::new();
    let mut process = manager.start(&[ANY_PORT]);
    let port = process.port();
    let receiver = manager.receiver();
    let _first = connect(port);
    let _second = connect(port);
    take(&receiver);
    until_passed(&mut process, 2);
    crash(process);
    take(&receiver);
    assert!(receiver.try_receive().unwrap().is_none(), "this is no end");
    for _ in 0..3 {
        let mut process = manager.start(&[ANY_PORT]);
        assert_eq!(process.port(), port);
        let client = connect(port);
        let (_connection, port) = take(&receiver);
        assert_eq!(port, client.local_addr().unwrap().port());
        crash(process);
    }
}

#[test]
fn a_pool_notices_nothing_of_a_crash() {
    let manager = Manager::new();
    let mut process = manager.start(&[ANY_PORT]);
    let port = process.port();
    let mut pool = manager.echo();
    assert_eq!(exchange(port, b"first"), b"first");
    let (slots, said) = (children(pool.pid()), pool.log());
    for _ in 0..3 {
        crash(process);
        process = manager.start(&[ANY_PORT]);
        assert_eq!(process.port(), port);
        assert_eq!(exchange(port, b"next"), b"next");
    }
    assert_eq!((children(pool.pid()), pool.log()), (slots, said));
}

/// Has clients come without a pause while fdaccept ends by `end` and is started again, `rounds`
/// times. Whoever is served at all gets its own bytes back, and no handler is run for nobody.
/// Returns how many clients were not served.
#[track_caller]
fn losses_under_load(rounds: usize, end: impl Fn(Process)) -> usize {
    const CLIENTS: usize = 8;
    const HANDLER: &str = "echo \"$TCPREMOTEPORT\" >>\"$SERVED\"; exec cat";
    let manager = Manager::new();
    let mut process = manager.start(&[ANY_PORT]);
    let port = process.port();
    let _pool = manager.pool(&[], 4, HANDLER);
    let mut random = Random(5);
    let (served, failed) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
    let done = AtomicBool::new(false);
    let _process = std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (served, failed, done) = (&served, &failed, &done);
            scope.spawn(move || {
                for request in 0.. {
                    if done.load(Ordering::SeqCst) {
                        return;
                    }
                    let text = format!("client {number}, request {request}\n");
                    // There always is a listener, so this cannot fail.
                    let client = connect(port);
                    match ask(&client, text.as_bytes()) {
                        Ok(answer) if !answer.is_empty() => {
                            assert_eq!(String::from_utf8_lossy(&answer), text);
                            let port = client.local_addr().unwrap().port();
                            served.lock().unwrap().push(port.to_string());
                        }
                        _ => drop(failed.fetch_add(1, Ordering::SeqCst)),
                    }
                }
            });
        }
        for _ in 0..rounds {
            let before = served.lock().unwrap().len();
            until("clients to be served", || {
                served.lock().unwrap().len() >= before + CLIENTS
            });
            random.pause(20_000);
            end(process);
            process = manager.start(&[ANY_PORT]);
            assert_eq!(process.port(), port);
        }
        done.store(true, Ordering::SeqCst);
        // The last ones are served yet.
        process
    });
    let mut served = served.into_inner().unwrap();
    served.sort();
    assert_eq!(manager.served(), served, "a handler was run in vain");
    manager.expect_kept(1);
    failed.into_inner()
}

/// At worst a crash costs the one connection that was accepted and not yet in the queue.
#[test]
fn crashes_under_load_lose_no_more_than_what_was_in_hand() {
    const CRASHES: usize = 40;
    let lost = losses_under_load(CRASHES, crash);
    eprintln!("{lost} lost in {CRASHES} crashes");
    assert!(lost <= CRASHES, "{lost} lost in {CRASHES} crashes");
}

#[test]
fn clean_stops_under_load_lose_nothing() {
    let lost = losses_under_load(20, |process| {
        let (status, log) = stop(process);
        assert_eq!(status, Some(0), "{log}");
    });
    assert_eq!(lost, 0);
}

/// Wherever a start is broken off: what is kept is whole in the end, and nothing is kept twice.
#[test]
fn crashes_at_the_start_lose_nothing_and_leave_nothing_behind() {
    let manager = Manager::new();
    let path = manager.file("s");
    let mut random = Random(9);
    for _ in 0..60 {
        let process = manager.start(&[ANY_PORT, &path]);
        random.pause(15_000);
        crash(process);
        let kept = manager.kept();
        assert!(kept.len() <= 4, "{kept:?}");
    }
    let mut process = manager.start(&[ANY_PORT, &path]);
    let port = process.port();
    assert_eq!(process.listening(), path);
    manager.expect_kept(2);
    let crowd = Crowd::connect(port, 5);
    until_passed(&mut process, 5);
    for _ in 0..60 {
        crash(process);
        process = manager.start(&[ANY_PORT, &path]);
        random.pause(15_000);
    }
    crash(process);
    let mut process = manager.start(&[ANY_PORT, &path]);
    assert_eq!(process.port(), port);
    manager.expect_kept(2);
    let _pool = manager.echo();
    manager.expect_served_once(crowd, 5);
    assert_eq!(ask_unix(connect_unix(&path), "hello"), "hello");
}

/// Sends `text`, and returns all that comes back.
fn ask(mut client: &TcpStream, text: &[u8]) -> std::io::Result<Vec<u8>> {
    client.write_all(text)?;
    client.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    client.read_to_end(&mut answer)?;
    Ok(answer)
}

#[test]
fn neither_the_store_nor_fdaccept_has_more_open_with_each_start() {
    for form in FORMS {
        let manager = Manager::new();
        manager.open();
        let path = manager.file("s");
        let arguments = ["--grace", "5", ANY_PORT, "localhost:0", &path];
        let mut seen = Vec::new();
        for round in 0..8 {
            let mut process = form.start(&manager, &arguments);
            let port = process.port();
            process.line(&path);
            let pool = form.serve(&manager);
            assert_eq!(exchange(port, b"hello"), b"hello");
            seen.push((manager.kept(), settled(process.pid())));
            drop(pool);
            match round % 2 {
                0 => crash(process),
                _ => assert_eq!(stop(process).0, Some(0)),
            }
        }
        // What the first one opens, later ones find.
        assert!(seen.iter().all(|now| *now == seen[0]), "{form:?}: {seen:?}");
    }
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

#[test]
fn a_limit_on_the_queue_counts_what_waited_there_before() {
    let manager = Manager::new();
    let arguments = ["--queue", "3", ANY_PORT];
    let mut process = manager.start(&arguments);
    let port = process.port();
    let _first: Vec<_> = (0..2).map(|_| connect(port)).collect();
    until_passed(&mut process, 2);
    crash(process);
    let mut process = manager.start(&arguments);
    assert_eq!(process.port(), port);
    let _then: Vec<_> = (0..3).map(|_| connect(port)).collect();
    until_passed(&mut process, 1);
    let receiver = manager.receiver();
    take(&receiver);
    until_passed(&mut process, 2);
    for _ in 0..4 {
        take(&receiver);
    }
    until_passed(&mut process, 3);
}

#[test]
fn the_sandbox_keeps_nothing_from_being_kept() {
    for form in FORMS {
        let manager = Manager::new();
        let arguments = ["--sandbox", ANY_PORT];
        let mut process = form.start(&manager, &arguments);
        let port = process.port();
        let crowd = Crowd::connect(port, 5);
        until_passed(&mut process, 5);
        crash(process);
        let mut process = form.start(&manager, &arguments);
        assert_eq!(process.port(), port);
        let _pool = form.serve(&manager);
        manager.expect_served_once(crowd, 5);
        manager.expect_kept(1);
    }
}

#[test]
fn each_start_says_that_it_is_ready() {
    let manager = Manager::new();
    for count in 1..4 {
        let process = manager.start(&[ANY_PORT]);
        until("READY=1", || manager.times_told("READY=1") == count);
        crash(process);
    }
}

#[test]
fn a_command_finds_nothing_of_the_store() {
    let manager = Manager::new();
    let text = "env >&2; echo open: /proc/$$/fd/* >&2; exec cat";
    let arguments = ["--store", ANY_PORT, "--", "sh", "-c", text];
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut process = manager.start_all(&arguments);
        open.push(process.line("open: ").matches("/fd/").count());
        let log = process.log();
        for name in ["LISTEN_", "NOTIFY_SOCKET", "fdtools-listener"] {
            assert!(!log.contains(name), "{log}");
        }
        crash(process);
    }
    // As many descriptors with a full store as with an empty one.
    assert_eq!(open[0], open[1]);
}

// A clean stop.

#[test]
fn the_port_stays_the_same_over_a_clean_stop() {
    for form in FORMS {
        let manager = Manager::new();
        let mut process = form.start(&manager, &[ANY_PORT]);
        let port = process.port();
        let _pool = form.serve(&manager);
        assert_eq!(exchange(port, b"one"), b"one");
        let (status, log) = stop(process);
        assert_eq!(status, Some(0), "{form:?}: {log}");
        let crowd = Crowd::connect(port, 5);
        let mut process = form.start(&manager, &[ANY_PORT]);
        assert_eq!(process.port(), port);
        crowd.expect_served();
        manager.expect_kept(1);
    }
}

#[test]
fn what_nobody_has_taken_at_a_clean_stop_waits_for_the_next_start() {
    let manager = Manager::new();
    let arguments = ["--grace", "0.1", ANY_PORT];
    let mut process = manager.start(&arguments);
    let port = process.port();
    let crowd = Crowd::connect(port, 5);
    until_passed(&mut process, 5);
    let (status, log) = stop(process);
    // It is not lost, so this is no failure.
    assert_eq!(status, Some(0), "{log}");
    assert!(!log.contains("not taken"), "{log}");
    let _process = manager.start(&arguments);
    let _pool = manager.echo();
    manager.expect_served_once(crowd, 5);
}

#[test]
fn a_queue_that_was_closed_for_its_command_is_replaced() {
    let manager = Manager::new();
    manager.open();
    let mut process = manager.start_chain(&[ANY_PORT]);
    let port = process.port();
    for round in 1..4 {
        assert_eq!(exchange(port, b"hello"), b"hello");
        let (status, log) = stop(process);
        assert_eq!(status, Some(0), "{log}");
        process = manager.start_chain(&[ANY_PORT]);
        assert_eq!(process.port(), port);
        manager.expect_kept(1);
        let told = format!("FDSTOREREMOVE=1\nFDNAME={READ_END}");
        assert_eq!(manager.times_told(&told), round);
    }
    assert_eq!(exchange(port, b"hello"), b"hello");
}

#[test]
fn what_a_command_leaves_when_it_ends_by_itself_waits_for_the_next_one() {
    let manager = Manager::new();
    let arguments = ["--store", ANY_PORT, "--", "sh", "-c"];
    let leave = "until [ -e \"$OPEN\" ]; do sleep 0.02; done; exit 7";
    let mut process = manager.start_all(&[&arguments[..], &[leave]].concat());
    let port = process.port();
    let crowd = Crowd::connect(port, 5);
    until_passed(&mut process, 5);
    manager.open();
    let (status, log) = process.finish();
    assert_eq!(status.code(), Some(7), "{log}");
    assert!(!log.contains("not taken"), "{log}");
    let mut process = manager.start_chain(&[ANY_PORT]);
    assert_eq!(process.port(), port);
    manager.expect_served_once(crowd, 5);
}

// Addresses.

/// That each address shows as the same after a crash and after a clean stop, and that there are
/// so many listeners. Returns how they show.
#[track_caller]
fn assert_addresses_stay(manager: &Manager, arguments: &[&str], count: usize) -> Vec<String> {
    let mut shown: Vec<Vec<String>> = Vec::new();
    for round in 0..4 {
        let mut process = manager.start(arguments);
        shown.push((0..count).map(|_| process.listening()).collect());
        manager.expect_kept(count);
        assert_eq!(shown[round], shown[0], "{arguments:?}");
        match round % 2 {
            0 => crash(process),
            _ => assert_eq!(stop(process).0, Some(0)),
        }
    }
    shown.pop().unwrap()
}

/// The port of an address.
fn port_of(shown: &str) -> u16 {
    shown.rsplit_once(':').unwrap().1.parse().unwrap()
}

#[test]
fn a_free_port_of_both_families_stays() {
    let manager = Manager::new();
    let shown = assert_addresses_stay(&manager, &["0"], 1);
    let port = port_of(&shown[0]);
    let over_ipv4 = Crowd::connect(port, 2);
    let over_ipv6 = has_ipv6().then(|| TcpStream::connect(("::1", port)).unwrap());
    let _process = manager.start(&["0"]);
    let _pool = manager.echo();
    over_ipv4.expect_served();
    if let Some(client) = over_ipv6 {
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        assert_eq!(ask(&client, b"over IPv6").unwrap(), b"over IPv6");
    }
}

#[test]
fn a_free_port_of_ipv6_stays() {
    if has_ipv6() {
        let manager = Manager::new();
        assert_addresses_stay(&manager, &["[::1]:0"], 1);
    }
}

/// A machine on which `two.test` has two addresses.
struct Hosts {
    manager: Manager,
    command: Vec<String>,
}

impl Hosts {
    fn new() -> Option<Self> {
        if !root() {
            return None;
        }
        let (unshare, _mount) = (peer("unshare")?, peer("mount")?);
        let manager = Manager::new();
        let hosts = manager.file("hosts");
        std::fs::write(&hosts, "127.0.0.1 two.test\n127.0.0.2 two.test\n").unwrap();
        let text = "mount --bind \"$0\" /etc/hosts && exec fdaccept \"$@\"";
        let words = [unshare.to_str()?, "--mount", "sh", "-c", text, &hosts];
        let command = words.map(str::to_owned).to_vec();
        Some(Self { manager, command })
    }

    /// Starts fdaccept on that host, and returns its two listeners, sorted.
    #[track_caller]
    fn start(&self) -> (Process, [String; 2]) {
        let queue = self.manager.names.path();
        let mut words: Vec<_> = self.command.iter().map(String::as_str).collect();
        words.extend(["--store", "--bind", &queue, "two.test:0"]);
        let mut process = self.manager.start_words(&[], &words, |_| {});
        let mut shown = [process.listening(), process.listening()];
        shown.sort();
        (process, shown)
    }
}

#[test]
fn every_address_of_a_host_stays_with_their_one_port() {
    let Some(hosts) = Hosts::new() else {
        return;
    };
    let (process, shown) = hosts.start();
    let port = port_of(&shown[0]);
    let expected = ["127.0.0.1", "127.0.0.2"].map(|ip| format!("{ip}:{port}"));
    assert_eq!(shown, expected);
    crash(process);
    let clients = shown
        .clone()
        .map(|address| TcpStream::connect(address).unwrap());
    let (_process, shown) = hosts.start();
    assert_eq!(shown, expected);
    hosts.manager.expect_kept(2);
    let _pool = hosts.manager.echo();
    for client in clients {
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        assert_eq!(ask(&client, b"waited").unwrap(), b"waited");
    }
}

#[test]
fn localhost_stays() {
    let manager = Manager::new();
    let mut process = manager.start(&["localhost:0"]);
    process.port();
    let count = manager.kept().len() - 2;
    crash(process);
    assert_addresses_stay(&manager, &["localhost:0"], count);
}

#[test]
fn several_addresses_stay_each_with_its_own_port() {
    let manager = Manager::new();
    let path = manager.file("s");
    let arguments = [ANY_PORT, &path, "127.0.0.2:0", ANY_PORT];
    let shown = assert_addresses_stay(&manager, &arguments, 4);
    assert_eq!(shown[1], path);
    assert_ne!(shown[0], shown[3], "the same address twice, with two ports");
}

#[test]
fn an_address_that_was_given_twice_and_then_once_keeps_the_first() {
    let manager = Manager::new();
    let shown = assert_addresses_stay(&manager, &[ANY_PORT, ANY_PORT], 2);
    let mut process = manager.start(&[ANY_PORT]);
    process.line("fdtools-listener-1-1-127.0.0.1%3a0 was kept and is not needed any more");
    assert_eq!(process.listening(), shown[0]);
    manager.expect_kept(1);
}

#[test]
fn the_same_port_twice_stays_so() {
    let (_reserved, port) = reserve_port();
    // Linux lets only those share a port that all say so.
    setsockopt(&_reserved, sockopt::ReusePort, &true).unwrap();
    let address = format!("127.0.0.1:{port}");
    let manager = Manager::new();
    let arguments = ["-o", "reuseport", &address, &address];
    assert_addresses_stay(&manager, &arguments, 2);
    let crowd = Crowd::connect(port, 20);
    let _process = manager.start(&arguments);
    let _pool = manager.echo();
    manager.expect_served_once(crowd, 20);
}

#[test]
fn the_order_of_addresses_does_not_matter() {
    let manager = Manager::new();
    let mut process = manager.start(&["127.0.0.1:0", "127.0.0.2:0"]);
    let shown = [process.listening(), process.listening()];
    crash(process);
    let mut process = manager.start(&["127.0.0.2:0", "127.0.0.1:0"]);
    let now = [process.listening(), process.listening()];
    assert_eq!(now, [shown[1].clone(), shown[0].clone()]);
    manager.expect_kept(2);
}

#[test]
fn a_path_stays_with_its_mode_and_whoever_waits_there() {
    let manager = Manager::new();
    let path = manager.file("s");
    let arguments = ["--mode", "640", &path];
    let mut process = manager.start(&arguments);
    assert_eq!(process.listening(), path);
    let facts = || {
        let facts = std::fs::symlink_metadata(&path).unwrap();
        (facts.ino(), facts.permissions().mode() & 0o7777)
    };
    let first = facts();
    assert_eq!(first.1, 0o640);
    for is_crash in [true, false, true] {
        if is_crash {
            crash(process)
        } else {
            assert_eq!(stop(process).0, Some(0))
        }
        assert_eq!(facts(), first);
        let client = connect_unix(&path);
        process = manager.start(&arguments);
        assert_eq!(process.listening(), path);
        assert_eq!(facts(), first);
        let _pool = manager.echo();
        assert_eq!(ask_unix(client, "waited"), "waited");
    }
    manager.expect_kept(1);
}

#[test]
fn a_path_keeps_the_mode_that_it_was_given_later() {
    let manager = Manager::new();
    let path = manager.file("s");
    let process = manager.start(&[&path]);
    until("the path", || manager.kept().len() == 3);
    crash(process);
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
    let mut process = manager.start(&[&path]);
    process.listening();
    let mode = std::fs::symlink_metadata(&path).unwrap().mode();
    assert_eq!(mode & 0o777, 0o666);
}

#[test]
fn a_path_stays_that_of_another_user() {
    if !root() {
        return;
    }
    let manager = Manager::new();
    let path = manager.file("s");
    let arguments = ["--user", "nobody", &path];
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    for is_crash in [true, false, true, true] {
        let mut process = manager.start(&arguments);
        assert_eq!(process.listening(), path);
        until("another user", || {
            let owner = std::fs::metadata(format!("/proc/{}", process.pid())).unwrap();
            owner.uid() == nobody.uid.as_raw()
        });
        let facts = std::fs::symlink_metadata(&path).unwrap();
        assert_eq!(
            (facts.uid(), facts.gid()),
            (nobody.uid.as_raw(), nobody.gid.as_raw())
        );
        let _pool = manager.echo();
        assert_eq!(ask_unix(connect_unix(&path), "hello"), "hello");
        manager.expect_kept(1);
        if is_crash {
            crash(process)
        } else {
            assert_eq!(stop(process).0, Some(0))
        }
    }
}

#[test]
fn a_relative_path_stays() {
    let manager = Manager::new();
    let start = || {
        let arguments = ["--store", "--bind", "./queue", "./s"];
        manager.start_changed(&arguments, |command| {
            command.current_dir(&manager.names.directory);
        })
    };
    let mut process = start();
    assert_eq!(process.listening(), "./s");
    crash(process);
    let client = connect_unix(manager.file("s"));
    let mut process = start();
    assert_eq!(process.listening(), "./s");
    let _pool = manager.echo();
    assert_eq!(ask_unix(client, "waited"), "waited");
    manager.expect_kept(1);
}

#[test]
fn an_abstract_name_stays_with_whoever_waits_there() {
    let manager = Manager::new();
    let name = manager.names.abstract_name();
    let mut process = manager.start(&[&name]);
    assert_eq!(process.listening(), name);
    for is_crash in [true, false] {
        if is_crash {
            crash(process)
        } else {
            assert_eq!(stop(process).0, Some(0))
        }
        let client = connect_abstract(&name);
        process = manager.start(&[&name]);
        assert_eq!(process.listening(), name);
        let _pool = manager.echo();
        assert_eq!(ask_unix(client, "waited"), "waited");
    }
    manager.expect_kept(1);
}

#[test]
fn names_with_anything_in_them_are_told_apart() {
    let manager = Manager::new();
    let paths = ["a:b", "a b", "a%3ab", "ä", "a=b"].map(|name| manager.file(name));
    let arguments: Vec<_> = paths.iter().map(String::as_str).collect();
    assert_addresses_stay(&manager, &arguments, paths.len());
    let _process = manager.start(&arguments);
    let _pool = manager.echo();
    for path in &paths {
        assert_eq!(ask_unix(connect_unix(path), "hello"), "hello");
    }
}

#[test]
fn a_vsock_port_stays_where_there_is_any() {
    let manager = Manager::new();
    let mut process = manager.start(&["vsock::0"]);
    if !first_word(&mut process).contains("listening on") {
        skip("there is no vsock");
        return;
    }
    drop(process);
    assert_addresses_stay(&manager, &["vsock::0"], 1);
}

#[test]
fn a_name_that_is_too_long_to_be_kept_is_a_usage_error() {
    let manager = Manager::new();
    // Each of these bytes takes three in the name.
    let name = format!("@{}", "%".repeat(100));
    let mut process = manager.start(&[&name]);
    let (status, log) = process.finish();
    assert_eq!(status.code(), Some(2), "{log}");
    let expected = format!("fdaccept: --store: the address {name} is too long");
    assert_eq!(log.lines().next(), Some(expected.as_str()));
}

// Changes between two starts.

#[test]
fn an_address_can_become_one_that_it_was_in_the_way_of() {
    let (_reserved, port) = reserve_port();
    let (one, all) = (format!("127.0.0.1:{port}"), format!("0.0.0.0:{port}"));
    let manager = Manager::new();
    manager.kept.lock().unwrap().is_lazy = true;
    for (before, after) in [(&one, &all), (&all, &one)] {
        let mut process = manager.start(&[before]);
        assert_eq!(process.listening(), *before);
        crash(process);
        let mut process = manager.start(&[after]);
        assert_eq!(process.listening(), *after);
        let _pool = manager.echo();
        assert_eq!(exchange(port, b"hello"), b"hello");
        manager.expect_kept(1);
        crash(process);
    }
}

#[test]
fn a_port_can_become_one_of_both_families_and_back() {
    let (_reserved, port) = reserve_port();
    let (one, both) = (format!("127.0.0.1:{port}"), port.to_string());
    let manager = Manager::new();
    manager.kept.lock().unwrap().is_lazy = true;
    for address in [&one, &both, &one] {
        let mut process = manager.start(&[address]);
        assert_eq!(process.port(), port);
        manager.expect_kept(1);
        assert_eq!(stop(process).0, Some(0));
    }
}

#[test]
fn an_address_can_change_while_somebody_else_has_the_old_one_open() {
    let (_reserved, port) = reserve_port();
    let manager = Manager::new();
    let mut process = manager.start(&[&format!("127.0.0.1:{port}")]);
    process.listening();
    manager.expect_kept(1);
    crash(process);
    // As a process does that the manager is just starting.
    let kept = manager.kept.lock().unwrap();
    let copy = |(_, fd): &(String, OwnedFd)| fd.try_clone().unwrap();
    let _copies: Vec<_> = kept.store.iter().map(copy).collect();
    drop(kept);
    let mut process = manager.start(&[&port.to_string()]);
    assert_eq!(process.port(), port);
}

#[test]
fn an_address_that_is_not_given_any_more_is_given_up_and_the_others_stay() {
    let manager = Manager::new();
    let mut process = manager.start(&["127.0.0.1:0", "127.0.0.2:0"]);
    let (stays, goes) = (process.listening(), process.listening());
    crash(process);
    let mut waiting = TcpStream::connect(&goes).unwrap();
    let mut process = manager.start(&["127.0.0.1:0", "127.0.0.3:0"]);
    process.line("fdtools-listener-1-0-127.0.0.2%3a0 was kept and is not needed any more");
    assert_eq!(process.listening(), stays);
    assert!(process.listening().starts_with("127.0.0.3:"));
    manager.expect_kept(2);
    // Nobody listens there any more, and who waited there learns so.
    waiting.set_read_timeout(Some(DEADLINE)).unwrap();
    let end = waiting.read(&mut [0]).unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    let error = TcpStream::connect(&goes).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn everything_is_given_up_without_store() {
    for form in FORMS {
        let manager = Manager::new();
        let (_reserved, port) = reserve_port();
        let address = format!("127.0.0.1:{port}");
        let path = manager.file("s");
        let process = form.start(&manager, &[&address, &path]);
        until("everything to be kept", || manager.kept().len() == 4);
        crash(process);
        let queue = manager.names.path();
        let mut process = match form {
            Form::Named => manager.start_all(&["--bind", &queue, &address, &path]),
            Form::Chain => manager.start_all(&[&address, &path, "--", "fdpool", "2", "--", "cat"]),
        };
        assert_eq!(process.port(), port);
        assert_eq!(process.listening(), path);
        let log = process.log();
        for name in [WRITE_END, READ_END, "fdtools-listener-1-0-127.0.0.1%3a"] {
            let said = format!("fdaccept: {name}");
            let mut lines = log.lines().filter(|line| line.starts_with(&said));
            let line = lines.next().unwrap();
            assert!(
                line.ends_with(" was kept and is not needed any more"),
                "{line}"
            );
            assert_eq!(lines.next(), None);
        }
        assert_eq!(manager.kept(), Vec::<String>::new());
        let _pool = form.serve(&manager);
        assert_eq!(exchange(port, b"hello"), b"hello");
        assert_eq!(ask_unix(connect_unix(&path), "hello"), "hello");
        // And a path of its own vanishes at the end again.
        assert_eq!(stop(process).0, Some(0));
        assert!(!std::fs::exists(&path).unwrap());
    }
}

#[test]
fn everything_is_given_up_also_where_nobody_can_be_told() {
    let manager = Manager::new();
    let mut process = manager.start(&[ANY_PORT]);
    let port = process.port();
    crash(process);
    let address = format!("127.0.0.1:{port}");
    let queue = manager.names.path();
    // What the manager keeps is still in the way then, and that is said.
    let mut process = manager.start_changed(&["--bind", &queue, &address], |command| {
        command.env_remove("NOTIFY_SOCKET");
    });
    let (status, log) = process.finish();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("was kept and is not needed any more"), "{log}");
    assert!(
        log.contains(&format!("cannot bind {address}: Address already in use")),
        "{log}"
    );
}

#[test]
fn a_queue_of_which_one_end_is_missing_is_replaced() {
    for form in FORMS {
        for lost in [WRITE_END, READ_END] {
            let manager = Manager::new();
            let mut process = form.start(&manager, &[ANY_PORT]);
            let port = process.port();
            crash(process);
            manager.lose(lost);
            let mut process = form.start(&manager, &[ANY_PORT]);
            assert_eq!(process.port(), port);
            manager.expect_kept(1);
            let _pool = form.serve(&manager);
            assert_eq!(exchange(port, b"hello"), b"hello");
        }
    }
}

#[test]
fn a_queue_that_a_consumer_has_shut_down_is_replaced() {
    let manager = Manager::new();
    let mut process = manager.start(&[ANY_PORT]);
    let port = process.port();
    let receiver = manager.receiver();
    shutdown(
        receiver.as_fd().as_raw_fd(),
        nix::sys::socket::Shutdown::Both,
    )
    .unwrap();
    let (status, log) = process.finish();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(
        log.contains("the queue was shut down by one of its consumers"),
        "{log}"
    );
    let mut process = manager.start(&[ANY_PORT]);
    assert_eq!(process.port(), port);
    let _pool = manager.echo();
    assert_eq!(exchange(port, b"hello"), b"hello");
    manager.expect_kept(1);
}

#[test]
fn a_listener_that_was_lost_is_opened_anew() {
    let manager = Manager::new();
    let mut process = manager.start(&[ANY_PORT]);
    let port = process.port();
    let crowd = Crowd::connect(port, 3);
    until_passed(&mut process, 3);
    crash(process);
    manager.lose("listener");
    let mut process = manager.start(&[ANY_PORT]);
    process.port();
    manager.expect_kept(1);
    // The queue was not lost.
    let _pool = manager.echo();
    manager.expect_served_once(crowd, 3);
}

/// As with a small FileDescriptorStoreMax=, which has room for one listener of a host and not for
/// the other.
#[test]
fn a_host_of_which_one_listener_is_missing_is_listened_on_as_a_whole() {
    let Some(hosts) = Hosts::new() else {
        return;
    };
    hosts.manager.kept.lock().unwrap().most = Some(3);
    let (process, _) = hosts.start();
    hosts.manager.expect_kept(1);
    crash(process);
    let (_process, shown) = hosts.start();
    for (address, host) in shown.iter().zip(["127.0.0.1:", "127.0.0.2:"]) {
        assert!(address.starts_with(host), "{shown:?}");
        TcpStream::connect(address).unwrap();
    }
}

#[test]
fn an_option_that_comes_too_late_for_what_was_kept_is_not_passed_over() {
    if !has_ipv6() {
        return;
    }
    let manager = Manager::new();
    let mut process = manager.start(&["0"]);
    let port = process.port();
    crash(process);
    let mut process = manager.start(&["-o", "v6only", "0"]);
    let log = first_word(&mut process);
    let is_deaf_to_ipv4 = TcpStream::connect(("127.0.0.1", port)).is_err();
    assert!(is_deaf_to_ipv4 || log.contains("v6only"), "{log}");
}

#[test]
fn a_path_that_has_vanished_is_made_anew_and_the_old_listener_given_up() {
    let manager = Manager::new();
    let path = manager.file("s");
    for _ in 0..3 {
        let mut process = manager.start(&[&path]);
        assert_eq!(process.listening(), path);
        let _pool = manager.echo();
        assert_eq!(ask_unix(connect_unix(&path), "hello"), "hello");
        manager.expect_kept(1);
        crash(process);
        // As a RuntimeDirectory= does when the service is started again.
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_path_that_has_become_something_else_is_an_error() {
    let manager = Manager::new();
    let path = manager.file("s");
    let mut process = manager.start(&[&path]);
    process.listening();
    crash(process);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    let (status, log) = manager.start(&[&path]).finish();
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains("exists and is not a socket"), "{log}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_path_that_another_program_has_taken_is_an_error() {
    let manager = Manager::new();
    let path = manager.file("s");
    let mut process = manager.start(&[&path]);
    process.listening();
    crash(process);
    std::fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    let mut process = manager.start(&[&path]);
    let log = first_word(&mut process);
    assert!(
        !log.contains("listening on"),
        "{other:?} listens there: {log}"
    );
    let (status, log) = process.finish();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(
        log.contains(&format!("cannot bind {path}: Address already in use")),
        "{log}"
    );
    assert!(std::fs::exists(&path).unwrap());
}

#[test]
fn a_path_that_is_not_given_any_more_vanishes() {
    let manager = Manager::new();
    let (old, new) = (manager.file("old"), manager.file("new"));
    let mut process = manager.start(&[&old]);
    process.listening();
    crash(process);
    let mut process = manager.start(&[&new]);
    assert_eq!(process.listening(), new);
    manager.expect_kept(1);
    let left: Vec<_> = [old.clone(), format!("{old}.lock")]
        .into_iter()
        .filter(|path| std::fs::exists(path).unwrap())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

// What is not what its name says.

/// That a client is served though the manager keeps `no_queue` as these ends of the queue.
#[track_caller]
fn assert_queue_is_replaced(no_queue: fn() -> OwnedFd, ends: &[&str]) {
    let manager = Manager::new();
    let mut process = manager.start(&[ANY_PORT]);
    let port = process.port();
    crash(process);
    for end in ends {
        manager.replace(end, no_queue());
    }
    let mut process = manager.start(&[ANY_PORT]);
    assert_eq!(process.port(), port);
    manager.expect_kept(1);
    let _pool = manager.echo();
    let answer = ask(&connect(port), b"hello").unwrap_or_default();
    assert_eq!(answer, b"hello", "{ends:?}: {}", process.log());
}

#[test]
fn a_queue_that_is_none_is_replaced() {
    let no_queues: [fn() -> OwnedFd; 4] = [
        || File::open("/dev/null").unwrap().into(),
        || TcpListener::bind(ANY_PORT).unwrap().into(),
        || UdpSocket::bind(ANY_PORT).unwrap().into(),
        || std::io::pipe().unwrap().1.into(),
    ];
    for no_queue in no_queues {
        for ends in [&[WRITE_END][..], &[READ_END], &[WRITE_END, READ_END]] {
            assert_queue_is_replaced(no_queue, ends);
        }
    }
}

#[test]
fn a_socket_without_another_side_is_no_queue() {
    assert_queue_is_replaced(|| UnixDatagram::unbound().unwrap().into(), &[WRITE_END]);
}

#[test]
fn a_read_end_that_is_none_is_replaced_also_where_a_consumer_has_the_real_one() {
    let manager = Manager::new();
    let mut process = manager.start(&[ANY_PORT]);
    let port = process.port();
    let _receiver = manager.receiver();
    crash(process);
    manager.replace(READ_END, File::open("/dev/null").unwrap());
    let mut process = manager.start(&[ANY_PORT]);
    assert_eq!(process.port(), port);
    let name = Name::parse(manager.names.path().as_ref()).unwrap();
    if let Err(error) = queue::Receiver::connect(&name, &Trust::everybody()) {
        panic!("{error}: {}", process.log());
    }
}

#[test]
fn a_listener_that_is_none_is_named() {
    let name = "fdtools-listener-1-0-127.0.0.1%3a0";
    let listener = TcpListener::bind(ANY_PORT).unwrap();
    let connection = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let kinds: [(OwnedFd, &str); 5] = [
        (connection.into(), "a TCP connection"),
        (File::open("/dev/null").unwrap().into(), "/dev/null"),
        (UdpSocket::bind(ANY_PORT).unwrap().into(), "a UDP socket"),
        (std::io::pipe().unwrap().0.into(), "a pipe"),
        (
            socket_pair(SockType::SeqPacket).0,
            "a Unix seqpacket socket",
        ),
    ];
    for (descriptor, what) in kinds {
        let manager = Manager::new();
        manager.put(name, descriptor);
        let (status, log) = manager.start(&[ANY_PORT]).finish();
        assert_eq!(status.code(), Some(2), "{log}");
        let expected = format!("fdaccept: what was kept of {ANY_PORT} is {what}");
        assert!(log.contains(&expected), "{log}");
    }
}

#[test]
fn names_of_ours_that_mean_nothing_are_given_up() {
    let manager = Manager::new();
    for name in ["fdtools-listener-", "fdtools-listener-9-x"] {
        manager.put(name, File::open("/dev/null").unwrap());
    }
    let mut process = manager.start(&[ANY_PORT]);
    let port = process.port();
    manager.expect_kept(1);
    let _pool = manager.echo();
    assert_eq!(exchange(port, b"hello"), b"hello");
}

#[test]
fn what_is_kept_twice_is_given_up_but_for_one() {
    for end in [WRITE_END, READ_END] {
        let manager = Manager::new();
        let mut process = manager.start(&[ANY_PORT]);
        let port = process.port();
        let crowd = Crowd::connect(port, 3);
        until_passed(&mut process, 3);
        crash(process);
        manager.put(end, socket_pair(SockType::SeqPacket).0);
        for _ in 0..2 {
            let mut process = manager.start(&[ANY_PORT]);
            assert_eq!(process.port(), port);
            manager.expect_kept(1);
            crash(process);
        }
        let _process = manager.start(&[ANY_PORT]);
        let _pool = manager.echo();
        manager.expect_served_once(crowd, 3);
    }
}

#[test]
fn what_is_not_open_is_a_usage_error() {
    let manager = Manager::new();
    let text = format!(
        "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES={WRITE_END} \
         exec fdaccept --store --bind ./queue {ANY_PORT} 3<&-"
    );
    let mut command = script("sh", &text);
    command.current_dir(&manager.names.directory);
    command.env("NOTIFY_SOCKET", manager.file("notify"));
    refuses(launch(&mut command), "descriptor 3 is not open");
}

// Socket activation.

/// A listener as a .socket unit makes it.
fn activated() -> (OwnedFd, u16) {
    let listener = TcpListener::bind(ANY_PORT).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener.into(), port)
}

#[test]
fn listeners_of_a_socket_unit_are_told_from_what_is_kept() {
    let manager = Manager::new();
    let (one, first) = activated();
    let (two, second) = activated();
    let start = || {
        let command = ["--store", "--", "sh", "-c", OPENED, ECHO];
        manager.start_with(&[("echo.socket", &one), ("", &two)], &command)
    };
    let mut process = start();
    assert_eq!((process.port(), process.port()), (first, second));
    let crowd = Crowd::connect(second, 5);
    until_passed(&mut process, 5);
    crash(process);
    // The unit keeps these by itself, so there is the queue alone.
    assert_eq!(manager.kept(), [READ_END, WRITE_END]);
    let mut process = start();
    assert_eq!((process.port(), process.port()), (first, second));
    manager.open();
    manager.expect_served_once(crowd, 5);
    assert_eq!(exchange(first, b"hello"), b"hello");
    assert_eq!(manager.kept(), [READ_END, WRITE_END]);
}

/// Without FileDescriptorName=, the name is that of the unit, which may be anything.
#[test]
fn a_socket_unit_may_have_a_name_that_begins_as_ours_do() {
    let manager = Manager::new();
    let (listener, port) = activated();
    let others = [("fdtools-echo.socket", &listener)];
    let arguments = ["--", "fdpool", "2", "--", "cat"];
    let mut process = manager.start_with(&others, &arguments);
    let log = first_word(&mut process);
    assert!(log.contains("listening on"), "{log}");
    assert_eq!(exchange(port, b"hello"), b"hello");
}

#[test]
fn an_address_goes_before_a_socket_unit_and_is_kept() {
    let manager = Manager::new();
    let (listener, port) = activated();
    let queue = manager.names.path();
    let start = || {
        let arguments = ["--store", "--bind", &queue, ANY_PORT];
        manager.start_with(&[("echo.socket", &listener)], &arguments)
    };
    let mut process = start();
    let own = process.port();
    assert_ne!(own, port);
    crash(process);
    assert_eq!(start().port(), own);
    manager.expect_kept(1);
}

#[test]
fn listeners_that_were_kept_are_given_up_for_those_of_a_socket_unit() {
    let manager = Manager::new();
    let mut process = manager.start_chain(&[ANY_PORT]);
    let old = process.port();
    crash(process);
    let (listener, port) = activated();
    let command = ["--store", "--", "sh", "-c", OPENED, ECHO];
    let mut process = manager.start_with(&[("echo.socket", &listener)], &command);
    assert_eq!(process.port(), port);
    manager.open();
    assert_eq!(exchange(port, b"hello"), b"hello");
    assert_eq!(manager.kept(), [READ_END, WRITE_END], "{}", process.log());
    let error = TcpStream::connect(("127.0.0.1", old)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn everything_is_given_up_without_store_for_a_socket_unit_too() {
    let manager = Manager::new();
    let (listener, port) = activated();
    let start = |arguments: &[&str]| {
        let arguments = [arguments, &["--", "sh", "-c", OPENED, ECHO]].concat();
        manager.start_with(&[("echo.socket", &listener)], &arguments)
    };
    let mut process = start(&["--store"]);
    assert_eq!(process.port(), port);
    crash(process);
    let mut process = start(&[]);
    assert_eq!(process.port(), port);
    manager.open();
    assert_eq!(exchange(port, b"hello"), b"hello");
    assert_eq!(manager.kept(), Vec::<String>::new(), "{}", process.log());
}

// Consumers at the end.

/// A pool of one slot, once it has a client, which it serves by [`ECHO`] when the test opens it.
fn busy_pool(manager: &Manager, options: &[&str]) -> Process {
    let handler = format!("until [ -e \"$OPEN\" ]; do sleep 0.02; done; {ECHO}");
    let pool = manager.pool(options, 1, &handler);
    until("a handler", || {
        let slots = children(pool.pid());
        slots.iter().any(|slot| !children(*slot).is_empty())
    });
    pool
}

/// As when the service is stopped for good, which is when systemd empties its store.
#[test]
fn consumers_serve_the_rest_when_the_manager_lets_go() {
    let manager = Manager::new();
    let mut process = manager.start(&[ANY_PORT]);
    let port = process.port();
    let crowd = Crowd::connect(port, 8);
    until_passed(&mut process, 8);
    let mut once = busy_pool(&manager, &["--once"]);
    let mut stays = busy_pool(&manager, &[]);
    crash(process);
    manager.lose("");
    manager.open();
    manager.expect_served_once(crowd, 8);
    assert_eq!(once.wait().code(), Some(0));
    let mut process = manager.start(&[ANY_PORT]);
    assert_eq!(exchange(process.port(), b"next"), b"next");
    assert!(stays.is_running());
}

#[test]
fn a_crash_is_no_end_for_a_consumer_that_ends_with_fdaccept() {
    let manager = Manager::new();
    let mut process = manager.start(&[ANY_PORT]);
    let port = process.port();
    let mut pool = manager.pool(&["--once"], 1, ECHO);
    for _ in 0..3 {
        assert_eq!(exchange(port, b"hello"), b"hello");
        crash(process);
        process = manager.start(&[ANY_PORT]);
        assert_eq!(process.port(), port);
    }
    assert_eq!(exchange(port, b"hello"), b"hello");
    crash(process);
    assert!(pool.is_running(), "{}", pool.log());
    manager.lose("");
    assert_eq!(pool.wait().code(), Some(0));
}

#[test]
fn a_consumer_that_stops_while_nobody_accepts_leaves_the_rest_to_the_next_one() {
    let manager = Manager::new();
    let mut process = manager.start(&[ANY_PORT]);
    let port = process.port();
    let crowd = Crowd::connect(port, 8);
    until_passed(&mut process, 8);
    let mut pool = busy_pool(&manager, &[]);
    crash(process);
    pool.signal(Signal::SIGTERM);
    manager.open();
    assert_eq!(pool.wait().code(), Some(0));
    let _process = manager.start(&[ANY_PORT]);
    let _pool = manager.echo();
    manager.expect_served_once(crowd, 8);
}

// Wrong usage.

#[track_caller]
fn refuses(mut process: Process, expected: &str) {
    let (status, log) = process.finish();
    assert_eq!(status.code(), Some(2), "{log}");
    assert_eq!(
        log.lines().next(),
        Some(format!("fdaccept: {expected}").as_str())
    );
}

#[test]
fn without_a_manager_nothing_can_be_kept() {
    const EXPECTED: &str = "--store needs a service manager to keep things (NOTIFY_SOCKET)";
    let manager = Manager::new();
    let queue = manager.names.path();
    for form in [&["--bind", &queue, ANY_PORT][..], &[ANY_PORT, "--", "cat"]] {
        let arguments = [&["--store"], form].concat();
        for value in [None, Some("")] {
            let process = manager.start_changed(&arguments, |command| {
                match value {
                    None => command.env_remove("NOTIFY_SOCKET"),
                    Some(value) => command.env("NOTIFY_SOCKET", value),
                };
            });
            refuses(process, EXPECTED);
        }
        // Nobody is there: that is said first.
        let mut process = manager.start_changed(&arguments, |command| {
            command.env("NOTIFY_SOCKET", manager.file("nobody"));
        });
        let (status, log) = process.finish();
        assert_eq!(status.code(), Some(2), "{log}");
        let name = manager.file("nobody");
        let first =
            format!("fdaccept: NOTIFY_SOCKET: cannot reach the service manager at {name}: ");
        assert!(log.starts_with(&first), "{log}");
        assert!(log.contains(EXPECTED), "{log}");
    }
    assert!(!std::fs::exists(queue).unwrap());
}

#[test]
fn a_queue_that_does_not_outlive_fdaccept_cannot_be_kept() {
    const EXPECTED: &str = "--store needs a queue that outlives this process: --bind or -- COMMAND";
    let manager = Manager::new();
    let name = manager.names.path();
    for sink in [&[][..], &["--connect", &name], &["--queue-fd", "3"]] {
        let arguments = [&["--store"], sink, &[ANY_PORT]].concat();
        let process = manager.start_changed(&arguments, |command| {
            command.stdout(Stdio::piped());
        });
        refuses(process, EXPECTED);
    }
    assert_eq!(manager.kept(), Vec::<String>::new());
}

#[test]
fn a_start_that_fails_keeps_what_was_kept() {
    let manager = Manager::new();
    let mut process = manager.start(&[ANY_PORT]);
    let port = process.port();
    let crowd = Crowd::connect(port, 3);
    until_passed(&mut process, 3);
    crash(process);
    let occupied = TcpListener::bind(ANY_PORT).unwrap();
    let address = occupied.local_addr().unwrap().to_string();
    for wrong in [&["-o", "nosuch", ANY_PORT][..], &[ANY_PORT, &address]] {
        let (status, log) = manager.start(wrong).finish();
        assert!(matches!(status.code(), Some(1 | 2)), "{log}");
        manager.expect_kept(1);
    }
    let mut process = manager.start(&[ANY_PORT]);
    assert_eq!(process.port(), port);
    let _pool = manager.echo();
    manager.expect_served_once(crowd, 3);
}
