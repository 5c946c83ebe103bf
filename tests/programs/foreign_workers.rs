//! The workers of examples/ in other languages than Rust, each of which keeps every rule of
//! fdtools(7): they serve, stop without a gap, outlive hostile messages, and take a queue that
//! somebody else has made non-blocking.

use std::fs::File;
use std::io::{ErrorKind, Read, Write, pipe};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::*;
use fdtools::queue::send;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::linger;
use nix::sys::signal::Signal;
use nix::sys::socket::{SockType, setsockopt, sockopt};
use nix::unistd::Pid;
use rustix::io::ioctl_fionread;
use rustix::process::{self, Resource, Rlimit, prlimit};

/// The payload that says nothing of a connection.
const BARE: &[u8] = b"FDTOOLS=1\n";

// The languages.

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples")
        .join(name)
}

/// Where compilers put what they make, and Go what it has compiled before.
fn scratch() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// What `compile` writes to the path that it is given. Other tests may run the program that was made
/// before, so that it is replaced, not written to.
fn compiled(name: &str, compile: impl FnOnce(&Path) -> Command) -> Vec<PathBuf> {
    let folder = tempfile::tempdir_in(scratch()).unwrap();
    let fresh = folder.path().join(name);
    let (status, _, log) = run(&mut compile(&fresh));
    assert_eq!(status, Some(0), "{log}");
    let kept = scratch().join(name);
    std::fs::rename(fresh, &kept).unwrap();
    vec![kept]
}

fn c() -> Option<Vec<PathBuf>> {
    static COMPILED: OnceLock<Option<Vec<PathBuf>>> = OnceLock::new();
    let compile = || {
        let compiler = peer("cc")?;
        Some(compiled("worker-c", |to| {
            let mut command = Command::new(compiler);
            command.args(["-O2", "-Wall", "-Wextra", "-Werror", "-o"]);
            command.arg(to).arg(source("worker.c"));
            command
        }))
    };
    COMPILED.get_or_init(compile).clone()
}

fn go() -> Option<Vec<PathBuf>> {
    static COMPILED: OnceLock<Option<Vec<PathBuf>>> = OnceLock::new();
    let compile = || {
        let go = peer("go")?;
        Some(compiled("worker-go", |to| {
            let mut command = Command::new(go);
            command
                .args(["build", "-o"])
                .arg(to)
                .arg(source("worker.go"));
            // Neither a network, nor a home, nor what somebody has set for Go.
            command.current_dir(scratch()).env_remove("GOROOT");
            command.env("GOCACHE", scratch().join("go-cache"));
            command.env("GOPATH", scratch().join("go-path"));
            for (name, value) in [
                ("CGO_ENABLED", "0"),
                ("GO111MODULE", "on"),
                ("GOENV", "off"),
                ("GOFLAGS", ""),
                ("GOPROXY", "off"),
                ("GOTELEMETRY", "off"),
                ("GOTOOLCHAIN", "local"),
            ] {
                command.env(name, value);
            }
            command
        }))
    };
    COMPILED.get_or_init(compile).clone()
}

fn perl() -> Option<Vec<PathBuf>> {
    Some(vec![peer("perl")?, source("worker.pl")])
}

fn python() -> Option<Vec<PathBuf>> {
    python_worker().map(Vec::from)
}

fn ruby() -> Option<Vec<PathBuf>> {
    Some(vec![peer("ruby")?, source("worker.rb")])
}

/// Each of these tests with each of the workers.
macro_rules! in_every_language {
    ($($test:ident)*) => {
        $(mod $test {
            in_every_language!(@ $test: c go perl python ruby);
        })*
    };
    (@ $test:ident: $($language:ident)*) => {
        $(#[test]
        fn $language() {
            if let Some(worker) = super::$language() {
                super::$test(&worker);
            }
        })*
    };
}

in_every_language! {
    a_pool_of_it_serves
    it_ends_with_the_queue
    it_loses_no_connection_when_it_is_stopped_200_times_amid_the_work
    it_finishes_its_connection_and_leaves_the_others
    hostile_messages_neither_stop_it_nor_leave_descriptors
    a_queue_that_is_non_blocking_is_waited_for
    it_says_that_it_is_alive_while_it_waits_and_not_when_it_is_stuck
    a_manager_that_takes_nothing_does_not_hold_it_up
    two_that_wait_for_one_queue_both_say_that_they_are_alive
}

/// The watchdog of the example in Rust, which has the rest of its tests elsewhere.
mod rust {
    use super::*;

    fn worker() -> Option<Vec<PathBuf>> {
        rust_worker().map(|path| vec![path])
    }

    #[test]
    fn it_says_that_it_is_alive() {
        let worker = needs!(worker());
        it_says_that_it_is_alive_while_it_waits_and_not_when_it_is_stuck(&worker);
        a_manager_that_takes_nothing_does_not_hold_it_up(&worker);
        two_that_wait_for_one_queue_both_say_that_they_are_alive(&worker);
    }
}

// What they have in common.

/// Starts a worker with the read end of a queue as its standard input. It has 64 descriptors.
fn start(worker: &[PathBuf], queue: impl AsFd) -> Process {
    let queue = queue.as_fd().try_clone_to_owned().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 64; exec \"$@\"", "sh"]);
    command.args(worker).stdin(queue).stdout(Stdio::null());
    Process::start(&mut command)
}

/// Expects that a worker ends well and has complained of nothing.
#[track_caller]
fn assert_ends_quietly(worker: &mut Process) {
    let (status, log) = worker.finish();
    assert_eq!((status.code(), log.as_str()), (Some(0), ""));
}

#[track_caller]
fn stop(worker: &mut Process) {
    worker.signal(Signal::SIGTERM);
    assert_ends_quietly(worker);
}

/// A client whose connection has just been sent to a queue.
#[track_caller]
fn client(queue: impl AsFd, payload: &[u8]) -> UnixStream {
    let (client, server) = pair();
    send(queue, payload, &[server.as_fd()]).unwrap();
    client
}

fn pair() -> (UnixStream, UnixStream) {
    let (client, server) = UnixStream::pair().unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.set_write_timeout(Some(DEADLINE)).unwrap();
    (client, server)
}

/// Expects that what the client sends comes back, and then the end.
#[track_caller]
fn assert_is_served(mut client: UnixStream) {
    client.write_all(b"hello").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "hello");
}

/// Expects that the client is being served.
#[track_caller]
fn assert_answers(mut client: &UnixStream) {
    client.write_all(b"hello").unwrap();
    let mut answer = [0; 5];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
}

/// How many descriptors a worker has open.
fn count(worker: &Process) -> usize {
    descriptors(worker.pid()).len()
}

// Serving.

fn a_pool_of_it_serves(worker: &[PathBuf]) {
    let mut command = program("fdaccept");
    command.args(["127.0.0.1:0", "--", "fdpool", "--worker", "4", "--"]);
    let mut acceptor = Process::start(command.args(worker));
    let port = acceptor.port();
    // Each takes one, and all four are served at once.
    let clients = [(); 4].map(|()| connect(port));
    for mut client in &clients {
        client.write_all(b"hello\n").unwrap();
        assert_eq!(read_line(client), "hello");
    }
    drop(clients);
    let much = vec![b'x'; 1 << 20];
    for _ in 0..3 {
        let answer = std::thread::scope(|scope| {
            let mut client = connect(port);
            let mut writer = client.try_clone().unwrap();
            let much = &much;
            scope.spawn(move || {
                writer.write_all(much).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).unwrap();
            answer
        });
        assert!(answer == much);
    }
    acceptor.signal(Signal::SIGTERM);
    let (status, log) = acceptor.finish();
    assert_eq!(status.code(), Some(0), "{log}");
}

fn it_ends_with_the_queue(worker: &[PathBuf]) {
    let (queue, read_end) = socket_pair(SockType::SeqPacket);
    let mut worker = start(worker, &read_end);
    assert_is_served(client(&queue, BARE));
    // What waits comes first, behind a message that reads as the end does.
    let waiting = [(); 3].map(|()| {
        send(&queue, b"", &[]).unwrap();
        client(&queue, BARE)
    });
    // What the other side leaves unread is an error of the next receive, and not the end.
    send(&read_end, b"unread", &[]).unwrap();
    drop(queue);
    waiting.into_iter().for_each(assert_is_served);
    assert_ends_quietly(&mut worker);
}

// Stopping.

const LANES: usize = 4;
const STOPS: usize = 200;
const CLIENTS: usize = 2;

fn it_loses_no_connection_when_it_is_stopped_200_times_amid_the_work(worker: &[PathBuf]) {
    std::thread::scope(|scope| {
        for lane in 0..LANES {
            scope.spawn(move || stop_again_and_again(worker, STOPS / LANES, lane as u64));
        }
    });
}

/// Sets a flag when it is dropped, also by a panic.
struct Raise<'flag>(&'flag AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn stop_again_and_again(worker: &[PathBuf], times: usize, seed: u64) {
    let mut random = Random(seed);
    let (queue, read_end) = socket_pair(SockType::SeqPacket);
    let (is_over, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let clients = [(); CLIENTS].map(|()| {
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    assert_is_served(client(&queue, BARE));
                    served.fetch_add(1, Ordering::SeqCst);
                }
            })
        });
        let over = Raise(&is_over);
        let start_one = || {
            // As many as there are clients may be of the worker before.
            let before = served.load(Ordering::SeqCst);
            let one = start(worker, &read_end);
            until("connections that it served", || {
                served.load(Ordering::SeqCst) > before + CLIENTS
            });
            one
        };
        for _ in 0..times {
            let mut one = start_one();
            random.pause(2000);
            stop(&mut one);
        }
        // What the others have left.
        let mut last = start_one();
        drop(over);
        clients
            .into_iter()
            .for_each(|client| client.join().unwrap());
        stop(&mut last);
    });
}

/// Waits until a busy worker knows of a signal: the signal is blocked and waits to be read, or it was
/// taken and no thread has anything left to do.
fn until_known(pid: Pid, signal: Signal) {
    until_quiet(pid, "a signal that is known", || {
        !has_signal(pid, "ShdPnd", signal)
            || threads(pid).all(|thread| has_signal(thread, "SigBlk", signal))
    });
}

/// Waits until all threads sleep and `holds`, in 3 looks in a row.
fn until_quiet(pid: Pid, what: &str, holds: impl Fn() -> bool) {
    let mut quiet = 0;
    until(what, || {
        let is_quiet = holds() && threads(pid).all(|thread| state(thread) == Some('S'));
        quiet = if is_quiet { quiet + 1 } else { 0 };
        quiet == 3
    });
}

fn threads(pid: Pid) -> impl Iterator<Item = Pid> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads.map(|thread| {
        let name = thread.unwrap().file_name();
        Pid::from_raw(name.to_str().unwrap().parse().unwrap())
    })
}

fn it_finishes_its_connection_and_leaves_the_others(worker: &[PathBuf]) {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let (queue, read_end) = socket_pair(SockType::SeqPacket);
        let mut first = start(worker, &read_end);
        let served = client(&queue, BARE);
        assert_answers(&served);
        until_quiet(first.pid(), "a worker that waits for its client", || true);
        first.signal(signal);
        until_known(first.pid(), signal);
        let waiting = [(); 100].map(|()| {
            let mut waiting = client(&queue, BARE);
            waiting.write_all(b"hello").unwrap();
            waiting.shutdown(Shutdown::Write).unwrap();
            waiting
        });
        assert_answers(&served);
        assert_is_served(served);
        assert_ends_quietly(&mut first);
        assert!(ioctl_fionread(&read_end).unwrap() > 0);
        let mut second = start(worker, &read_end);
        for mut waiting in waiting {
            let mut answer = String::new();
            waiting.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, "hello");
        }
        stop(&mut second);
    }
}

// Hostile senders.

fn hostile_messages_neither_stop_it_nor_leave_descriptors(worker: &[PathBuf]) {
    let (queue, read_end) = socket_pair(SockType::SeqPacket);
    let mut worker = start(worker, &read_end);
    assert_is_served(client(&queue, BARE));
    let before = settled(worker.pid());

    let null = File::open("/dev/null").unwrap();
    let folder = File::open("/").unwrap();
    let (_, pipe_end) = pipe().unwrap();
    for round in 0..3 {
        // Without a descriptor.
        for payload in [&b""[..], b"\0", b"none", BARE, &[b'x'; 5000]] {
            send(&queue, payload, &[]).unwrap();
        }
        // With too many, of which the client sees the end: two, two where the second could be a
        // lease if there were a payload, or is none; three; more than the worker has numbers for.
        let refused = |payload: &[u8], others: &[BorrowedFd<'_>]| {
            let (mut client, server) = pair();
            let all: Vec<_> = [&[server.as_fd()], others].concat();
            send(&queue, payload, &all).unwrap();
            drop(server);
            assert_eq!(client.read(&mut [0]).unwrap(), 0, "{payload:?} {others:?}");
        };
        refused(b"junk", &[null.as_fd()]);
        refused(b"junk", &[pipe_end.as_fd()]);
        refused(BARE, &[null.as_fd()]);
        refused(BARE, &[pipe_end.as_fd(), pipe_end.as_fd()]);
        refused(BARE, &[pipe_end.as_fd(); 252]);
        refused(b"", &[folder.as_fd(); 100]);
        // Not a socket.
        for other in [null.as_fd(), folder.as_fd(), pipe_end.as_fd()] {
            send(&queue, BARE, &[other]).unwrap();
        }
        // Closing these connections would block: the first is received, the second closed by the
        // kernel if there is no room for it.
        let (unread, server) = full_connection();
        let (unread_too, other) = full_connection();
        send(&queue, b"junk", &[server.as_fd(), null.as_fd()]).unwrap();
        let behind = [&[null.as_fd(); 20][..], &[other.as_fd()]].concat();
        send(&queue, b"junk", &behind).unwrap();
        drop((server, other));
        // Junk beside a connection is no reason not to serve it.
        for payload in [
            &b""[..],
            b"\0",
            b"FDTOOLS=2\n",
            b"FDTOOLS=1",
            b"FDTOOLS=1\nPROTO=TCP\nPROTO=TCP\n",
            b"\xff\n=\n\n",
            &[b'x'; 5000],
        ] {
            assert_is_served(client(&queue, payload));
        }
        // A client that has gone.
        let (mut gone, server) = pair();
        gone.write_all(b"unheard").unwrap();
        drop(gone);
        send(&queue, BARE, &[server.as_fd()]).unwrap();
        drop(server);
        assert_is_served(client(&queue, BARE));
        drop((unread, unread_too));
        until("as many descriptors as before", || count(&worker) == before);
        assert!(worker.is_running(), "{round}");
    }

    // What came whole looks like a connection and its lease; a third one found no number.
    let before = leave_two_numbers(worker.pid());
    let (mut client, server) = pair();
    let three = [server.as_fd(), pipe_end.as_fd(), null.as_fd()];
    send(&queue, BARE, &three).unwrap();
    drop(server);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    prlimit(
        process::Pid::from_raw(worker.pid().as_raw()),
        Resource::Nofile,
        before,
    )
    .unwrap();
    stop(&mut worker);
}

/// Lowers the limit of a process that waits, so that it has two numbers left for descriptors. Returns
/// what the limit was.
fn leave_two_numbers(worker: Pid) -> Rlimit {
    let used: Vec<_> = descriptors(worker).iter().map(|(fd, _)| *fd).collect();
    let mut free = (0..).filter(|fd| !used.contains(fd));
    let limit = Rlimit {
        current: free.nth(2).map(|fd| fd as u64),
        maximum: Some(64),
    };
    prlimit(
        process::Pid::from_raw(worker.as_raw()),
        Resource::Nofile,
        limit,
    )
    .unwrap()
}

/// A connection that has as much on its way as it can have, of which the client reads nothing, and
/// that lingers for longer than the test.
fn full_connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = connect(listener.local_addr().unwrap().port());
    let mut server = listener.accept().unwrap().0;
    server.set_nonblocking(true).unwrap();
    let much = [0; 65536];
    let end = loop {
        if let Err(error) = server.write(&much) {
            break error;
        }
    };
    assert_eq!(end.kind(), ErrorKind::WouldBlock);
    server.set_nonblocking(false).unwrap();
    let long = linger {
        l_onoff: 1,
        l_linger: 10 * DEADLINE.as_secs() as i32,
    };
    setsockopt(&server, sockopt::Linger, &long).unwrap();
    (client, server)
}

// O_NONBLOCK.

/// Makes a queue non-blocking for all that share it.
fn make_nonblocking(read_end: impl AsFd) {
    let flags = fcntl(&read_end, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
    let flags = flags.unwrap() | OFlag::O_NONBLOCK;
    fcntl(&read_end, FcntlArg::F_SETFL(flags)).unwrap();
}

fn a_queue_that_is_non_blocking_is_waited_for(worker: &[PathBuf]) {
    let (queue, read_end) = socket_pair(SockType::SeqPacket);
    make_nonblocking(&read_end);
    let mut two = [(); 2].map(|()| start(worker, &read_end));
    // Each has one.
    let clients = [(); 2].map(|()| client(&queue, BARE));
    clients.iter().for_each(|client| assert_answers(client));
    drop(clients);
    // Nothing announces that a process does not spin: a bounded time tells.
    let before = [&two[0], &two[1]].map(|worker| cpu_time(worker.pid()));
    std::thread::sleep(Duration::from_millis(500));
    for (worker, before) in two.iter().zip(before) {
        let used = cpu_time(worker.pid()) - before;
        assert!(used < Duration::from_millis(100), "{used:?}");
    }
    // A connection that is non-blocking, with a client that takes its time.
    // Now and then both workers see a message that one of them gets.
    for _ in 0..200 {
        let (client, server) = pair();
        server.set_nonblocking(true).unwrap();
        send(&queue, BARE, &[server.as_fd()]).unwrap();
        drop(server);
        assert_answers(&client);
        assert_is_served(client);
    }
    stop(&mut two[0]);
    assert_is_served(client(&queue, BARE));
    drop(queue);
    assert_ends_quietly(&mut two[1]);
}

// The examples of the page itself.

/// The example in fdtools(7) behind the line that begins with `introduction`.
fn example_of_the_page(introduction: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("man/fdtools.7");
    let page = std::fs::read_to_string(page).unwrap();
    let (_, rest) = page.split_once(&format!("\n{introduction}")).unwrap();
    let (_, rest) = rest.split_once("\n.Bd -literal -offset indent\n").unwrap();
    let (text, _) = rest.split_once("\n.Ed\n").unwrap();
    text.replace("\\e", "\\")
}

#[test]
fn the_worker_of_the_page_serves_and_takes_no_error_for_the_end() {
    let Some(python) = crate::support::python() else {
        return;
    };
    let text = example_of_the_page("A worker in Python,");
    let (queue, read_end) = socket_pair(SockType::SeqPacket);
    make_nonblocking(&read_end);
    let mut worker = start(&[python, "-c".into(), text.into()], &read_end);
    assert_is_served(client(&queue, BARE));
    let before = settled(worker.pid());
    for payload in [BARE, b"", b"junk"] {
        send(&queue, b"none", &[]).unwrap();
        assert_is_served(client(&queue, payload));
    }
    until("no more descriptors than before", || {
        count(&worker) <= before
    });
    let waiting = client(&queue, BARE);
    send(&read_end, b"unread", &[]).unwrap();
    drop(queue);
    assert_is_served(waiting);
    assert_ends_quietly(&mut worker);
}

#[test]
fn the_sender_of_the_page_tells_of_its_clients() {
    let Some(python) = crate::support::python() else {
        return;
    };
    let text = example_of_the_page("A sender in Python,");
    // Any port, which it says.
    let text = text.replace("8888", "0").replace(
        "\nqueue = ",
        "\nimport sys\nprint('listening on 127.0.0.1:%d' % listener.getsockname()[1], \
         file=sys.stderr)\nqueue = ",
    );
    let folder = tempfile::tempdir().unwrap();
    let answer = "read line && echo $line $PROTO $TCPREMOTEIP $TCPREMOTEPORT";
    let mut pool = program("fdpool");
    pool.args(["--bind", "./echo.queue", "2", "sh", "-c", answer]);
    let mut pool = Process::start(pool.current_dir(&folder));
    let name = folder.path().join("echo.queue");
    until("the name", || name.exists());
    let mut sender = Command::new(python);
    let mut sender = Process::start(sender.args(["-c", &text]).current_dir(&folder));
    let port = sender.port();
    for _ in 0..5 {
        let mut client = connect(port);
        let remote = client.local_addr().unwrap().port();
        client.write_all(b"hello\n").unwrap();
        let mut told = String::new();
        client.read_to_string(&mut told).unwrap();
        assert_eq!(told, format!("hello TCP 127.0.0.1 {remote}\n"));
    }
    // A pool that has gone is its end.
    stop(&mut pool);
    drop(connect(port));
    let (status, log) = sender.finish();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("ConnectionRefusedError"), "{log}");
}

// The watchdog.

/// Starts a worker that a manager watches.
fn start_watched(worker: &[PathBuf], queue: impl AsFd, manager: &Manager) -> Process {
    let mut command = Command::new(&worker[0]);
    command.args(&worker[1..]);
    command.env("NOTIFY_SOCKET", &manager.name);
    command.env("WATCHDOG_USEC", OFTEN);
    command.stdin(queue.as_fd().try_clone_to_owned().unwrap());
    Process::start(command.stdout(Stdio::null()))
}

fn it_says_that_it_is_alive_while_it_waits_and_not_when_it_is_stuck(worker: &[PathBuf]) {
    for manager in [Manager::at_name(), Manager::at_path()] {
        let (queue, read_end) = socket_pair(SockType::SeqPacket);
        let mut worker = start_watched(worker, &read_end, &manager);
        // While it is idle, while a client says nothing, and then again.
        manager.until_beats();
        let waiting = client(&queue, BARE);
        assert_answers(&waiting);
        manager.until_beats();
        assert_answers(&waiting);
        drop(waiting);
        manager.until_beats();
        // A client that does not read holds it up: nothing says that it is alive.
        let mut stuck = client(&queue, BARE);
        stuck.set_nonblocking(true).unwrap();
        eventually("a worker that waits for nothing but its client", || {
            while stuck.write(&[0; 4096]).is_ok() {}
            let _ = manager.rest();
            let end = std::time::Instant::now() + 5 * WATCH;
            let mut is_silent = true;
            while std::time::Instant::now() < end && is_silent {
                std::thread::sleep(Duration::from_millis(5));
                is_silent = !manager.has_something();
            }
            is_silent.then_some(())
        });
        drop(stuck);
        manager.until_beats();
        assert_is_served(client(&queue, BARE));
        drop(queue);
        assert_ends_quietly(&mut worker);
    }
}

fn a_manager_that_takes_nothing_does_not_hold_it_up(worker: &[PathBuf]) {
    let manager = Manager::at_name();
    let (queue, read_end) = socket_pair(SockType::SeqPacket);
    manager.fill();
    let mut worker = start_watched(worker, &read_end, &manager);
    for _ in 0..3 {
        let waiting = client(&queue, BARE);
        assert_answers(&waiting);
        stays("a manager without room", || manager.has_something());
        assert_answers(&waiting);
    }
    manager.until_beats();
    drop(queue);
    assert_ends_quietly(&mut worker);
}

fn two_that_wait_for_one_queue_both_say_that_they_are_alive(worker: &[PathBuf]) {
    let managers = [Manager::at_name(), Manager::at_name()];
    let (queue, read_end) = socket_pair(SockType::SeqPacket);
    let mut workers = managers
        .each_ref()
        .map(|manager| start_watched(worker, &read_end, manager));
    for _ in 0..50 {
        // Each wakes both, and one of them finds nothing.
        assert_is_served(client(&queue, BARE));
    }
    managers.iter().for_each(Manager::until_beats);
    drop(queue);
    workers.iter_mut().for_each(assert_ends_quietly);
}
