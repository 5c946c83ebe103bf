//! `fdaccept --queue`: how many connections wait that no consumer has taken, and how many were
//! taken, however consumers get at the queue.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::{self, *};
use fdtools::queue::message::Info;
use fdtools::queue::{Received, Receiver};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, bind, connect, setsockopt, socket, sockopt,
};
use nix::unistd::Pid;

const ADDRESS: &str = "127.0.0.1:0";

/// For how long something is watched that is not to happen.
const WATCH: Duration = Duration::from_millis(200);

/// What is said at the end of connections that were left in somebody else's queue.
const LEFT: &str = "fdaccept: connections were accepted and not taken";

/// How consumers get at the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// A command of fdaccept's has it.
    Chain,
    /// By tickets.
    Pipe,
    /// At a name of fdaccept's.
    Bind,
    /// They own the name.
    Connect,
    /// It is fdaccept's standard output, of this type.
    Output(SockType),
    /// It is another descriptor of fdaccept's.
    QueueFd(SockType),
    /// The same with a buffer of which two connections use more than a quarter.
    SmallQueueFd,
}

impl Form {
    /// How many connections are accepted, and how many of them passed, while nobody takes any and
    /// `limit` may wait.
    fn most(self, limit: usize) -> (usize, usize) {
        match self {
            // The consumer's socket holds so many and one more, and one is in hand.
            Form::Connect => {
                let text = std::fs::read_to_string("/proc/sys/net/unix/max_dgram_qlen").unwrap();
                let holds = text.trim().parse::<usize>().unwrap() + 1;
                (limit.min(holds + 1), limit.min(holds))
            }
            _ => (limit, limit),
        }
    }

    /// Whether fdaccept waits for the end of the queue when it is told to stop, so that it knows
    /// that all of it was taken.
    fn is_waited_for(self) -> bool {
        matches!(self, Form::Chain | Form::Pipe | Form::Bind)
    }
}

/// What fdaccept counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    accepted: usize,
    passed: usize,
    taken: Option<usize>,
}

impl Told {
    #[track_caller]
    fn read(line: &str) -> Self {
        let number = |what: &str| {
            let (_, rest) = line.split_once(&format!("{what} "))?;
            let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
            digits.parse().ok()
        };
        Self {
            accepted: number("accepted").unwrap(),
            passed: number("passed").unwrap(),
            taken: number("taken"),
        }
    }
}

fn told(accepted: usize, passed: usize, taken: usize) -> Told {
    Told {
        accepted,
        passed,
        taken: Some(taken),
    }
}

/// fdaccept and a pool of `cat`s, which serve a client when it has shut its sending side.
struct Site {
    form: Form,
    size: usize,
    acceptor: Process,
    port: u16,
    names: Names,
    /// What a pool gets the queue from, where that is a descriptor.
    read_end: Option<OwnedFd>,
    /// Where it is no command of fdaccept's.
    pool: Option<Process>,
}

impl Site {
    /// fdaccept, with these options and further addresses. The pool, of `size` slots, is not there
    /// yet.
    fn start(form: Form, size: usize, options: &[&str]) -> Self {
        let names = Names::new();
        let mut read_end = None;
        let mut command = match form {
            Form::QueueFd(_) | Form::SmallQueueFd => {
                let text = "exec fdaccept --queue-fd 5 \"$@\" 5<&0 </dev/null";
                let mut command = script("sh", text);
                command.arg("sh");
                command
            }
            _ => program("fdaccept"),
        };
        command.args(options).arg(ADDRESS);
        match form {
            Form::Chain => {
                let pool = "kill -STOP $$; exec fdpool \"$0\" -- cat";
                command.args(["--", "sh", "-c", pool, &size.to_string()]);
            }
            Form::Pipe => {
                let (reader, writer) = std::io::pipe().unwrap();
                command.stdout(writer);
                read_end = Some(reader.into());
            }
            Form::Bind => drop(command.args(["--bind", &names.path()])),
            Form::Connect => drop(command.args(["--connect", &names.path()])),
            Form::Output(kind) => {
                let (write_end, other) = socket_pair(kind);
                command.stdout(write_end);
                read_end = Some(other);
            }
            Form::QueueFd(_) | Form::SmallQueueFd => {
                let kind = match form {
                    Form::QueueFd(kind) => kind,
                    _ => SockType::SeqPacket,
                };
                let (write_end, other) = socket_pair(kind);
                if form == Form::SmallQueueFd {
                    // The least that there can be.
                    setsockopt(&write_end, sockopt::SndBuf, &0).unwrap();
                }
                command.stdin(write_end);
                read_end = Some(other);
            }
        }
        let mut acceptor = Process::start(&mut command);
        // Its copy of the queue.
        drop(command);
        let line = acceptor.line("listening on 127.0.0.1:");
        let port = line.rsplit_once(':').unwrap().1.parse().unwrap();
        Self {
            form,
            size,
            acceptor,
            port,
            names,
            read_end,
            pool: None,
        }
    }

    /// With a pool that takes nothing until it may.
    fn paused(form: Form, size: usize, options: &[&str]) -> Self {
        let mut site = Self::start(form, size, options);
        site.bring_pool();
        site.pause();
        site
    }

    /// The pool comes, or a further one.
    #[track_caller]
    fn bring_pool(&mut self) {
        let mut command = program("fdpool");
        match self.form {
            Form::Chain => kill(self.command_when_stopped(), Signal::SIGCONT).unwrap(),
            Form::Bind => drop(command.args(["--connect", &self.names.path()])),
            Form::Connect => drop(command.args(["--bind", &self.names.path()])),
            _ => {
                let read_end = self.read_end.as_ref().unwrap();
                command.stdin(read_end.try_clone().unwrap());
            }
        }
        if self.form != Form::Chain {
            command.args([&self.size.to_string(), "--", "cat"]);
            self.pool = Some(Process::start(&mut command));
        }
        until("all slots", || {
            let slots = children(self.pool_pid());
            slots.len() == self.size && slots.iter().all(|slot| is_named(*slot, "fdpool"))
        });
    }

    /// The command of a chain that has stopped itself.
    #[track_caller]
    fn command_when_stopped(&self) -> Pid {
        eventually("the command", || {
            let command = *children(self.acceptor.pid()).first()?;
            (state(command) == Some('T')).then_some(command)
        })
    }

    fn pool_pid(&self) -> Pid {
        match &self.pool {
            Some(pool) => pool.pid(),
            None => children(self.acceptor.pid())[0],
        }
    }

    /// From now on the pool takes nothing.
    #[track_caller]
    fn pause(&self) {
        let slots = children(self.pool_pid());
        for slot in &slots {
            kill(*slot, Signal::SIGSTOP).unwrap();
        }
        for slot in slots {
            until("the stop", || state(slot) == Some('T'));
        }
    }

    fn resume(&self) {
        for slot in children(self.pool_pid()) {
            kill(slot, Signal::SIGCONT).unwrap();
        }
    }

    /// Ends the pool at once, whatever it has in hand.
    #[track_caller]
    fn kill_pool(&mut self) {
        let pool = self.pool_pid();
        // It is to put nobody in the place of its slots, and be the last one that has the queue.
        kill(pool, Signal::SIGSTOP).unwrap();
        until("the stop", || state(pool) == Some('T'));
        let slots = children(pool);
        let handlers = slots.iter().flat_map(|slot| children(*slot));
        let others: Vec<_> = slots.iter().copied().chain(handlers).collect();
        for pid in &others {
            kill(*pid, Signal::SIGKILL).unwrap();
        }
        until("the end of the slots", || {
            !others.iter().any(|pid| is_alive(*pid))
        });
        kill(pool, Signal::SIGKILL).unwrap();
        if let Some(mut pool) = self.pool.take() {
            pool.wait();
        }
    }

    fn connect(&self) -> TcpStream {
        support::connect(self.port)
    }

    fn clients(&self, count: usize) -> Vec<TcpStream> {
        (0..count).map(|_| self.connect()).collect()
    }

    /// What fdaccept says on USR1.
    #[track_caller]
    fn ask(&mut self) -> Told {
        self.acceptor.signal(Signal::SIGUSR1);
        Told::read(&self.acceptor.line("fdaccept: accepted "))
    }

    #[track_caller]
    fn until_told(&mut self, expected: Told) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let now = self.ask();
            if now == expected {
                return;
            }
            assert!(Instant::now() < deadline, "{expected:?}, but {now:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until it counts so, and watches that it stays so.
    #[track_caller]
    fn stays_told(&mut self, expected: Told) {
        self.until_told(expected);
        let end = Instant::now() + WATCH;
        while Instant::now() < end {
            assert_eq!(self.ask(), expected);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Tells fdaccept to stop. Returns what it said until its end, and its last counters.
    #[track_caller]
    fn stop(mut self, status: i32) -> (String, Told) {
        self.acceptor.signal(Signal::SIGTERM);
        self.finish(status)
    }

    /// The same where it has a reason to end.
    #[track_caller]
    fn finish(&mut self, status: i32) -> (String, Told) {
        let (ended, log) = self.acceptor.finish();
        assert_eq!(ended.code(), Some(status), "{log}");
        let counters = log.lines().rfind(|line| is_counters(line));
        let last = Told::read(counters.unwrap_or_else(|| panic!("no counters: {log}")));
        (log, last)
    }
}

/// Whether a process is there and has this name.
fn is_named(pid: Pid, name: &str) -> bool {
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm"));
    comm.is_ok_and(|comm| comm.trim_end() == name)
}

/// Whether the handler of a slot runs.
fn is_served_by(slot: Pid, handler: &str) -> bool {
    children(slot).iter().any(|pid| is_named(*pid, handler))
}

/// Serves a client that may be taken.
#[track_caller]
fn serve(mut client: TcpStream) {
    let mut answer = String::new();
    client.write_all(b"x").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "x");
}

/// That a client is not served: its connection ends.
#[track_caller]
fn is_dropped(mut client: TcpStream) {
    match client.read(&mut [0]) {
        Ok(count) => assert_eq!(count, 0),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
}

/// Checks that processes that have nothing to do use no CPU in a second, in which each would use
/// all of one if it did not wait.
#[track_caller]
fn are_idle(pids: &[Pid]) {
    let before: Vec<_> = pids.iter().map(|pid| cpu_time(*pid)).collect();
    // Nothing happens meanwhile: there is nothing else to wait for.
    std::thread::sleep(Duration::from_secs(1));
    for (pid, before) in pids.iter().zip(before) {
        let used = cpu_time(*pid) - before;
        assert!(used < Duration::from_millis(150), "{used:?} in a second");
    }
}

/// `--queue LIMIT` as an option.
fn queue(limit: usize) -> [String; 2] {
    ["--queue".to_owned(), limit.to_string()]
}

fn strs(options: &[String]) -> Vec<&str> {
    options.iter().map(String::as_str).collect()
}

// In every form.

/// Counts step by step what waits, what is served, and what is left in the backlog.
#[track_caller]
fn assert_limit(form: Form, limit: usize) {
    let mut site = Site::paused(form, 1, &strs(&queue(limit)));
    let count = limit + 5;
    let clients = site.clients(count);
    site.stays_told(told(limit, limit, 0));
    site.resume();
    // The pool has one in service at a time.
    for (served, client) in clients.into_iter().enumerate() {
        let accepted = count.min(served + 1 + limit);
        match served {
            0 => site.stays_told(told(accepted, accepted, 1)),
            _ => site.until_told(told(accepted, accepted, served + 1)),
        }
        serve(client);
    }
    site.until_told(told(count, count, count));
    let (_, last) = site.stop(0);
    assert_eq!(last, told(count, count, count));
}

fn one_waits(form: Form) {
    assert_limit(form, 1);
}

fn three_wait(form: Form) {
    assert_limit(form, 3);
}

/// More than a quarter of what the kernel's queue holds.
fn a_hundred_wait(form: Form) {
    support::raise_limit();
    let mut site = Site::paused(form, 4, &strs(&queue(100)));
    let (accepted, passed) = form.most(100);
    let count = accepted + 30;
    let clients = site.clients(count);
    site.stays_told(told(accepted, passed, 0));
    // Room is seen also where the kernel does not tell of it.
    kill(children(site.pool_pid())[0], Signal::SIGCONT).unwrap();
    site.stays_told(told(accepted + 1, passed + 1, 1));
    site.resume();
    site.stays_told(told(accepted + 4, passed + 4, 4));
    clients.into_iter().for_each(serve);
    site.until_told(told(count, count, count));
}

/// More than the kernel's queue holds.
fn a_thousand_may_wait(form: Form) {
    support::raise_limit();
    let mut site = Site::paused(form, 4, &strs(&queue(1000)));
    let count = match form {
        Form::Connect => form.most(1000).0 + 40,
        _ => 320,
    };
    let crowd = Crowd::connect(site.port, count);
    // How many it holds depends on its buffer.
    let mut last = site.ask();
    let mut since = Instant::now();
    until("a full queue", || {
        let now = site.ask();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        since.elapsed() > WATCH
    });
    assert!(last.passed >= form.most(100).1, "{last:?}");
    let in_hand = usize::from(last.passed < count);
    assert_eq!(last, told(last.passed + in_hand, last.passed, 0));
    are_idle(&[site.acceptor.pid()]);
    site.resume();
    crowd.expect_served();
    site.until_told(told(count, count, count));
}

fn a_full_queue_is_no_work(form: Form) {
    support::raise_limit();
    let full = |limit: usize| {
        let mut site = Site::paused(form, 1, &strs(&queue(limit)));
        let (accepted, passed) = form.most(limit);
        let clients = site.clients(accepted + 5);
        site.until_told(told(accepted, passed, 0));
        (site, told(accepted, passed, 0), clients)
    };
    let mut sites = [full(1), full(100)];
    let pids = sites.each_ref().map(|(site, ..)| site.acceptor.pid());
    are_idle(&pids);
    // Nor is it work while room is waited for in order to stop.
    for (site, ..) in &sites {
        site.acceptor.signal(Signal::SIGTERM);
    }
    are_idle(&pids);
    for (site, expected, _) in &mut sites {
        assert_eq!(site.ask(), *expected);
    }
}

fn consumers_come_late(form: Form) {
    let mut site = Site::start(form, 2, &["--queue", "2"]);
    let crowd = Crowd::connect(site.port, 6);
    site.stays_told(match form {
        // Nobody is at the name.
        Form::Connect => told(1, 0, 0),
        _ => told(2, 2, 0),
    });
    site.bring_pool();
    crowd.expect_served();
    site.until_told(told(6, 6, 6));
}

/// Consumers take several at once, and then none for a while, again and again.
fn bursts_are_taken(form: Form) {
    const LIMIT: usize = 3;
    let mut site = Site::paused(form, 8, &strs(&queue(LIMIT)));
    let count = 120;
    let crowd = Crowd::connect(site.port, count);
    let mut random = Random(1);
    for _ in 0..30 {
        site.resume();
        random.pause(4000);
        site.pause();
        let now = site.ask();
        assert!(now.accepted <= now.taken.unwrap() + LIMIT, "{now:?}");
    }
    let taken = site.ask().taken.unwrap();
    let accepted = count.min(taken + LIMIT);
    site.until_told(told(accepted, accepted, taken));
    site.resume();
    crowd.expect_served();
    site.until_told(told(count, count, count));
}

/// What was taken is known without a limit as well.
fn taken_without_a_limit(form: Form) {
    let mut site = Site::paused(form, 1, &[]);
    let clients = site.clients(5);
    site.stays_told(told(5, 5, 0));
    site.resume();
    for (served, client) in clients.into_iter().enumerate() {
        site.until_told(told(5, 5, served + 1));
        serve(client);
    }
    let (_, last) = site.stop(0);
    assert_eq!(last, told(5, 5, 5));
}

fn nothing_is_lost_under_load(form: Form) {
    let mut site = Site::start(form, 4, &["--queue", "2"]);
    site.bring_pool();
    let port = site.port;
    std::thread::scope(|scope| {
        for client in 0..10 {
            scope.spawn(move || {
                for number in 0..30 {
                    let request = format!("{client}: {number}").into_bytes();
                    assert_eq!(exchange(port, &request), request);
                }
            });
        }
    });
    site.until_told(told(300, 300, 300));
    let (log, last) = site.stop(0);
    assert_eq!(last, told(300, 300, 300), "{log}");
}

fn a_stop_serves_the_queue_and_the_backlog(form: Form) {
    let mut site = Site::paused(form, 2, &["--grace", "3600", "--queue", "2"]);
    let crowd = Crowd::connect(site.port, 10);
    site.until_told(told(2, 2, 0));
    site.acceptor.signal(Signal::SIGTERM);
    site.stays_told(told(2, 2, 0));
    site.resume();
    crowd.expect_served();
    let (log, last) = site.finish(0);
    assert_eq!((last.accepted, last.passed), (10, 10), "{log}");
    if form.is_waited_for() {
        assert_eq!(last.taken, Some(10), "{log}")
    } else {
        assert!((8..=10).contains(&last.taken.unwrap()), "{log}")
    }
}

/// The same tests for each form.
macro_rules! forms {
    ($($module:ident: $form:expr;)*) => {$(
        mod $module {
            use super::*;

            forms!{@tests $form;
                at_most_one_waits = one_waits;
                at_most_three_wait = three_wait;
                at_most_a_hundred_wait = a_hundred_wait;
                a_limit_that_is_more_than_the_queue_holds_is_no_obstacle = a_thousand_may_wait;
                a_full_queue_is_waited_for_without_work = a_full_queue_is_no_work;
                consumers_that_come_late_find_what_waits = consumers_come_late;
                the_limit_is_kept_when_consumers_take_in_bursts = bursts_are_taken;
                what_is_taken_is_told_without_a_limit = taken_without_a_limit;
                nothing_is_lost_with_many_clients = nothing_is_lost_under_load;
                a_stop_serves_a_full_queue_and_the_backlog = a_stop_serves_the_queue_and_the_backlog;
            }
        }
    )*};
    (@tests $form:expr; $($name:ident = $check:ident;)*) => {$(
        #[test]
        fn $name() {
            $check($form);
        }
    )*};
}

forms! {
    in_a_chain: Form::Chain;
    through_a_pipe: Form::Pipe;
    at_a_name: Form::Bind;
    to_a_name: Form::Connect;
    into_standard_output: Form::Output(SockType::Stream);
    into_a_descriptor: Form::QueueFd(SockType::SeqPacket);
}

// Other queues.

#[test]
fn a_queue_with_a_small_buffer_is_limited() {
    for limit in 1..=3 {
        assert_limit(Form::SmallQueueFd, limit);
    }
}

#[test]
fn a_queue_with_a_small_buffer_loses_nothing() {
    nothing_is_lost_under_load(Form::SmallQueueFd);
    bursts_are_taken(Form::SmallQueueFd);
    consumers_come_late(Form::SmallQueueFd);
}

#[test]
fn a_queue_of_datagrams_is_limited() {
    assert_limit(Form::QueueFd(SockType::Datagram), 3);
}

#[test]
fn a_stream_at_a_descriptor_and_packets_on_standard_output_are_limited() {
    assert_limit(Form::QueueFd(SockType::Stream), 2);
    assert_limit(Form::Output(SockType::SeqPacket), 2);
}

/// A client of a Unix socket with a name of its own, which is what makes its message long.
fn unix_client(own: &Path, server: &Path) -> UnixStream {
    let kind = SockType::Stream;
    let socket = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(socket.as_raw_fd(), &UnixAddr::new(own).unwrap()).unwrap();
    connect(socket.as_raw_fd(), &UnixAddr::new(server).unwrap()).unwrap();
    let stream = UnixStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

#[test]
fn connections_count_alike_however_much_is_said_of_them() {
    const LIMIT: usize = 10;
    let directory = tempfile::tempdir().unwrap();
    let server = directory.path().join("s");
    let options = ["--queue", "10", server.to_str().unwrap()];
    let mut site = Site::paused(Form::Bind, 1, &options);
    // A name can have 107 bytes.
    let own = |number: usize| -> PathBuf {
        let room = 107 - directory.path().as_os_str().len() - 4;
        let letters = "x".repeat(room * number / 20);
        directory.path().join(format!("{number:02}{letters}"))
    };
    let mut tcp = site.clients(20);
    let mut unix: Vec<_> = (0..20)
        .map(|number| unix_client(&own(number), &server))
        .collect();
    site.stays_told(told(LIMIT, LIMIT, 0));
    for (client, other) in tcp.iter_mut().zip(&mut unix) {
        client.shutdown(Shutdown::Write).unwrap();
        other.shutdown(Shutdown::Write).unwrap();
    }
    let mut random = Random(2);
    let mut taken = 0;
    while taken < 40 {
        site.resume();
        random.pause(3000);
        site.pause();
        taken = site.ask().taken.unwrap();
        let accepted = 40.min(taken + LIMIT);
        site.until_told(told(accepted, accepted, taken));
    }
    site.resume();
    for mut client in tcp {
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
    for mut client in unix {
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
}

/// `fdaccept --queue LIMIT` whose queue has three messages of an earlier owner; and its read end.
fn with_what_an_earlier_owner_left(limit: usize) -> (Site, Vec<OwnedFd>) {
    let mut site = Site::start(Form::QueueFd(SockType::SeqPacket), 1, &[]);
    site.acceptor.signal(Signal::SIGKILL);
    site.acceptor.wait();
    let (write_end, read_end) = socket_pair(SockType::SeqPacket);
    let mut clients = Vec::new();
    for _ in 0..3 {
        let (client, connection) = UnixStream::pair().unwrap();
        let payload = Info::new().encode();
        fdtools::queue::try_send(&write_end, &payload, &[connection.as_fd()]).unwrap();
        clients.push(client.into());
    }
    let text = "exec fdaccept --queue-fd 5 \"$@\" 5<&0 </dev/null";
    let mut command = script("sh", text);
    command.arg("sh").args(queue(limit)).arg(ADDRESS);
    site.acceptor = Process::start(command.stdin(write_end));
    drop(command);
    site.port = site.acceptor.port();
    site.read_end = Some(read_end);
    (site, clients)
}

#[test]
fn what_an_earlier_owner_left_in_the_queue_counts_for_the_limit() {
    let (mut site, _left) = with_what_an_earlier_owner_left(5);
    let _clients = site.clients(6);
    site.stays_told(told(2, 2, 0));
}

#[test]
fn what_an_earlier_owner_left_in_the_queue_is_not_told_as_taken() {
    let (mut site, _left) = with_what_an_earlier_owner_left(5);
    let _clients = site.clients(2);
    site.until_told(told(2, 2, 0));
    for _ in 0..3 {
        fdtools::queue::receive(site.read_end.as_ref().unwrap()).unwrap();
    }
    assert_eq!(site.ask(), told(2, 2, 0));
    fdtools::queue::receive(site.read_end.as_ref().unwrap()).unwrap();
    assert_eq!(site.ask(), told(2, 2, 1));
}

/// Other tests have fewer in a queue than fdaccept can remember.
#[test]
fn a_limit_of_some_thousands_is_kept() {
    if !root() {
        return;
    }
    const LIMIT: usize = 4500;
    let (write_end, read_end) = socket_pair(SockType::SeqPacket);
    setsockopt(&write_end, sockopt::SndBufForce, &(16 << 20)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let server = directory.path().join("s");
    let mut command = program("fdaccept");
    command.args(queue(LIMIT)).arg(&server).stdout(write_end);
    let mut process = Process::start(&mut command);
    drop(command);
    process.listening();
    // They do not wait to be served, so that they are not all open here.
    for _ in 0..LIMIT + 100 {
        drop(UnixStream::connect(&server).unwrap());
    }
    let mut ask = || {
        process.signal(Signal::SIGUSR1);
        Told::read(&process.line("fdaccept: accepted "))
    };
    until("a full queue", || ask().accepted >= LIMIT);
    let end = Instant::now() + WATCH;
    while Instant::now() < end {
        assert_eq!(ask(), told(LIMIT, LIMIT, 0));
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(read_end);
}

// Consumers that die.

/// What waits outlives them where the queue is fdaccept's own.
#[track_caller]
fn assert_outlives_consumers(form: Form) {
    let mut site = Site::paused(form, 1, &["--queue", "3"]);
    let mut clients = site.clients(8);
    site.until_told(told(3, 3, 0));
    site.kill_pool();
    site.stays_told(told(3, 3, 0));
    // The next one dies with a connection in hand.
    site.bring_pool();
    site.until_told(told(4, 4, 1));
    let slot = children(site.pool_pid())[0];
    until("the handler", || is_served_by(slot, "cat"));
    site.kill_pool();
    is_dropped(clients.remove(0));
    site.stays_told(told(4, 4, 1));
    site.bring_pool();
    clients.into_iter().for_each(serve);
    site.until_told(told(8, 8, 8));
    let (log, last) = site.stop(0);
    assert_eq!(last, told(8, 8, 8), "{log}");
}

#[test]
fn what_waits_outlives_the_consumers_of_a_pipe() {
    assert_outlives_consumers(Form::Pipe);
}

#[test]
fn what_waits_outlives_the_consumers_at_a_name() {
    assert_outlives_consumers(Form::Bind);
}

#[test]
fn what_waited_for_the_last_readers_of_a_pipe_is_told() {
    let mut site = Site::paused(Form::Pipe, 1, &["--queue", "3"]);
    let clients = site.clients(5);
    site.until_told(told(3, 3, 0));
    drop(site.read_end.take());
    site.kill_pool();
    let (log, last) = site.finish(1);
    assert_eq!(last, told(3, 3, 0));
    let expected = "fdaccept: 3 connections were accepted and not taken";
    assert_eq!(log.lines().last(), Some(expected), "{log}");
    clients.into_iter().for_each(is_dropped);
}

/// How many were taken is not known then.
const UNKNOWN: Told = Told {
    accepted: 3,
    passed: 3,
    taken: None,
};

#[test]
fn what_a_command_leaves_in_a_full_queue_is_told() {
    let mut site = Site::paused(Form::Chain, 1, &["--queue", "3"]);
    let clients = site.clients(5);
    site.until_told(told(3, 3, 0));
    site.kill_pool();
    let (log, last) = site.finish(128 + 9);
    assert_eq!(last, UNKNOWN);
    assert_eq!(log.lines().last(), Some(LEFT), "{log}");
    clients.into_iter().for_each(is_dropped);
}

#[test]
fn what_consumers_leave_in_a_socket_on_standard_output_is_told() {
    for kind in [SockType::Stream, SockType::SeqPacket] {
        let mut site = Site::paused(Form::Output(kind), 1, &["--queue", "3"]);
        let clients = site.clients(5);
        site.until_told(told(3, 3, 0));
        drop(site.read_end.take());
        site.kill_pool();
        let (log, last) = site.finish(1);
        assert_eq!(last, UNKNOWN);
        assert_eq!(log.lines().last(), Some(LEFT), "{log}");
        clients.into_iter().for_each(is_dropped);
    }
}

#[test]
fn what_consumers_leave_in_a_socket_at_a_descriptor_is_told() {
    for kind in [SockType::Stream, SockType::SeqPacket] {
        let mut site = Site::paused(Form::QueueFd(kind), 1, &["--queue", "3"]);
        let clients = site.clients(5);
        site.until_told(told(3, 3, 0));
        drop(site.read_end.take());
        site.kill_pool();
        let (log, last) = site.finish(1);
        assert_eq!(last, UNKNOWN);
        assert!(log.lines().any(|line| line == LEFT), "{log}");
        let expected = "fdaccept: nobody takes connections from the queue any more";
        assert_eq!(log.lines().last(), Some(expected), "{log}");
        clients.into_iter().for_each(is_dropped);
    }
}

/// What waited is lost with who owns the name, but not the room.
#[test]
fn there_is_room_for_others_when_the_owner_of_a_name_has_died() {
    let mut site = Site::paused(Form::Connect, 1, &["--queue", "3"]);
    let mut clients = site.clients(8);
    site.until_told(told(3, 3, 0));
    site.kill_pool();
    let rest = clients.split_off(3);
    clients.into_iter().for_each(is_dropped);
    // One is in hand until somebody owns the name again.
    until("the next", || site.ask().accepted == 4);
    are_idle(&[site.acceptor.pid()]);
    site.bring_pool();
    until("what may wait", || site.ask().accepted == 7);
    rest.into_iter().for_each(serve);
    let (log, last) = site.stop(0);
    assert_eq!((last.accepted, last.passed), (8, 8), "{log}");
}

#[test]
fn what_is_lost_with_the_owner_of_a_name_is_not_told_as_taken() {
    let mut site = Site::paused(Form::Connect, 1, &["--queue", "3"]);
    let clients = site.clients(4);
    site.until_told(told(3, 3, 0));
    site.kill_pool();
    until("the next", || site.ask().accepted == 4);
    let taken = |told: Told| told.taken.unwrap_or_default();
    let now = site.ask();
    assert_eq!(taken(now), 0, "{now:?}");
    site.bring_pool();
    clients.into_iter().skip(3).for_each(serve);
    let (log, last) = site.stop(0);
    assert!(taken(last) <= 1, "{log}");
}

// A stop with a full queue that nobody takes from.

#[test]
fn what_nobody_takes_from_a_full_queue_is_counted_after_the_grace() {
    for form in [Form::Pipe, Form::Bind] {
        let mut site = Site::start(form, 1, &["--grace", "0.3", "--queue", "3"]);
        let clients = site.clients(5);
        site.until_told(told(3, 3, 0));
        let (log, last) = site.stop(1);
        assert_eq!(last, told(3, 3, 0));
        let expected = "fdaccept: 3 connections were accepted and not taken";
        assert_eq!(log.lines().last(), Some(expected), "{log}");
        // Nor is what was in the backlog left hanging.
        clients.into_iter().skip(3).for_each(is_dropped);
    }
}

#[test]
fn a_second_signal_does_not_wait_for_room() {
    let mut site = Site::start(Form::Pipe, 1, &["--grace", "3600", "--queue", "1"]);
    let _clients = site.clients(3);
    site.until_told(told(1, 1, 0));
    site.acceptor.signal(Signal::SIGTERM);
    site.stays_told(told(1, 1, 0));
    let (log, last) = site.stop(1);
    assert_eq!(last, told(1, 1, 0));
    let expected = "fdaccept: 1 connection was accepted and not taken";
    assert_eq!(log.lines().last(), Some(expected), "{log}");
}

#[test]
fn a_command_that_takes_nothing_gets_term_after_the_grace_and_what_it_left_is_told() {
    let mut command = program("fdaccept");
    command.args(["--grace", "0.3", "--queue", "2", ADDRESS]);
    let mut process = Process::start(command.args(["--", "sleep", "1000"]));
    let port = process.port();
    let clients: Vec<_> = (0..4).map(|_| support::connect(port)).collect();
    until("a full queue", || {
        process.signal(Signal::SIGUSR1);
        Told::read(&process.line("fdaccept: accepted ")) == told(2, 2, 0)
    });
    process.signal(Signal::SIGTERM);
    let (status, log) = process.finish();
    assert_eq!(status.code(), Some(128 + 15), "{log}");
    assert_eq!(log.lines().last(), Some(LEFT), "{log}");
    clients.into_iter().for_each(is_dropped);
}

#[test]
fn what_was_passed_into_a_full_queue_of_somebody_else_is_served_after_the_end() {
    let forms = [
        Form::Output(SockType::Stream),
        Form::QueueFd(SockType::SeqPacket),
        Form::Connect,
    ];
    for form in forms {
        let mut site = Site::paused(form, 1, &["--grace", "0.3", "--queue", "2"]);
        let mut clients = site.clients(4);
        site.until_told(told(2, 2, 0));
        site.acceptor.signal(Signal::SIGTERM);
        let (log, last) = site.finish(0);
        assert_eq!(last, told(2, 2, 0), "{log}");
        clients.drain(2..).for_each(is_dropped);
        site.resume();
        clients.into_iter().for_each(serve);
    }
}

#[test]
fn what_a_command_takes_after_a_stop_is_counted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let options = ["--queue", "5", path.to_str().unwrap()];
    let mut site = Site::paused(Form::Chain, 1, &options);
    let clients = site.clients(3);
    site.until_told(told(3, 3, 0));
    site.acceptor.signal(Signal::SIGTERM);
    // The queue is closed with the listeners, and what is in it can still be taken.
    until("the end of the listeners", || !path.exists());
    assert_eq!(site.ask(), told(3, 3, 0));
    site.resume();
    for (served, client) in clients.into_iter().enumerate() {
        site.until_told(told(3, 3, served + 1));
        serve(client);
    }
    let (log, last) = site.finish(0);
    assert_eq!(last, told(3, 3, 3), "{log}");
}

#[test]
fn what_is_taken_while_fdaccept_stands_still_makes_room() {
    for form in [Form::Chain, Form::Bind, Form::Connect] {
        let mut site = Site::paused(form, 4, &["--queue", "3"]);
        let clients = site.clients(10);
        site.until_told(told(3, 3, 0));
        let acceptor = site.acceptor.pid();
        site.acceptor.signal(Signal::SIGSTOP);
        until("the stop", || state(acceptor) == Some('T'));
        site.resume();
        until("three handlers", || {
            let slots = children(site.pool_pid());
            slots
                .iter()
                .filter(|slot| is_served_by(**slot, "cat"))
                .count()
                == 3
        });
        site.acceptor.signal(Signal::SIGCONT);
        site.stays_told(told(7, 7, 4));
        clients.into_iter().for_each(serve);
    }
}

/// The kernel tells that a connection was taken a moment before its memory is free. One that waits
/// then must not wait for ever.
#[test]
fn the_room_that_one_leaves_is_seen_every_time() {
    const EACH: usize = 20_000;
    let directory = tempfile::tempdir().unwrap();
    let server = directory.path().join("s");
    let (write_end, read_end) = socket_pair(SockType::SeqPacket);
    let mut command = program("fdaccept");
    command
        .args(["--queue", "1"])
        .arg(&server)
        .stdout(write_end);
    let mut process = Process::start(&mut command);
    drop(command);
    process.listening();
    let receiver = Receiver::from_socket(read_end).unwrap();
    let consumer =
        std::thread::spawn(
            move || {
                while !matches!(receiver.receive().unwrap(), Received::End) {}
            },
        );
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..EACH {
                    assert_eq!(connect_unix(&server).read(&mut [0]).unwrap(), 0);
                }
            });
        }
    });
    process.signal(Signal::SIGTERM);
    let (status, log) = process.finish();
    assert_eq!(status.code(), Some(0), "{log}");
    let all = 3 * EACH;
    assert_eq!(Told::read(log.lines().last().unwrap()), told(all, all, all));
    consumer.join().unwrap();
}

/// Another fdaccept has the same listener.
#[test]
fn what_one_leaves_in_the_backlog_another_accepts() {
    let listener = std::net::TcpListener::bind(ADDRESS).unwrap();
    let port = listener.local_addr().unwrap().port();
    let listener = OwnedFd::from(listener);
    let start = |limit: usize| {
        let (write_end, read_end) = socket_pair(SockType::SeqPacket);
        let mut command = program("fdaccept");
        command.args(queue(limit)).arg("fd:0").stdout(write_end);
        let mut process = Process::start(command.stdin(listener.try_clone().unwrap()));
        process.listening();
        (process, read_end)
    };
    let (_full, _nobody) = start(2);
    let (_other, read_end) = start(1);
    let mut command = program("fdpool");
    let _pool = Process::start(command.args(["2", "cat"]).stdin(read_end));
    drop(command);
    let crowd: Vec<_> = (0..20).map(|_| support::connect(port)).collect();
    for client in &crowd {
        client.shutdown(Shutdown::Write).unwrap();
    }
    until("all but two", || {
        crowd.iter().filter(|client| is_answered(client)).count() >= 18
    });
}

// With other limits.

#[test]
fn more_than_the_queue_holds_can_be_in_service() {
    let mut site = Site::paused(Form::Bind, 8, &["--queue", "3", "--max", "5"]);
    let clients = site.clients(8);
    site.stays_told(told(3, 3, 0));
    site.resume();
    site.stays_told(told(5, 5, 5));
    clients.into_iter().for_each(serve);
    site.until_told(told(8, 8, 8));
}

#[test]
fn fewer_wait_than_the_queue_may_hold_where_fewer_may_be_in_service() {
    let mut site = Site::paused(Form::Chain, 1, &["--queue", "5", "--max", "3"]);
    let clients = site.clients(8);
    site.stays_told(told(3, 3, 0));
    site.resume();
    site.stays_told(told(3, 3, 1));
    clients.into_iter().for_each(serve);
    site.until_told(told(8, 8, 8));
}

#[test]
fn nobody_is_turned_away_for_a_full_queue() {
    for when_full in ["wait", "close"] {
        let options = ["--queue", "1", "--max", "2", "--when-full", when_full];
        let mut site = Site::paused(Form::Bind, 8, &options);
        let clients = site.clients(4);
        site.stays_told(told(1, 1, 0));
        site.resume();
        match when_full {
            "wait" => {
                site.stays_told(told(2, 2, 2));
                clients.into_iter().for_each(serve);
                site.until_told(told(4, 4, 4));
            }
            _ => {
                site.stays_told(told(4, 2, 2));
                let (first, others) = clients.split_at(2);
                for client in others {
                    is_dropped(client.try_clone().unwrap());
                }
                for client in first {
                    serve(client.try_clone().unwrap());
                }
            }
        }
    }
}

#[test]
fn clients_beyond_their_own_limit_are_turned_away_when_the_queue_has_room() {
    let options = ["--queue", "2", "--max-per-source", "3"];
    let mut site = Site::paused(Form::Pipe, 8, &options);
    let mut clients = site.clients(6);
    site.stays_told(told(2, 2, 0));
    site.resume();
    site.stays_told(told(6, 3, 3));
    clients.drain(3..).for_each(is_dropped);
    clients.into_iter().for_each(serve);
}

#[test]
fn the_limit_holds_for_those_who_say_whom_they_speak_for_at_once() {
    let mut options = vec!["--queue", "2", "--proxy-timeout", "3600"];
    options.extend(["--proxy-protocol", "v1", "--proxy-from", "127.0.0.0/8"]);
    let mut site = Site::paused(Form::Bind, 1, &options);
    let mut clients = site.clients(6);
    site.until_told(told(6, 0, 0));
    for client in &mut clients {
        client
            .write_all(b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 80\r\n")
            .unwrap();
    }
    site.stays_told(told(6, 2, 0));
    are_idle(&[site.acceptor.pid()]);
    site.resume();
    site.stays_told(told(6, 3, 1));
    for client in &mut clients {
        client.shutdown(Shutdown::Write).unwrap();
    }
    for mut client in clients {
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
    site.until_told(told(6, 6, 6));
}

/// The clients of one listener do not wait for all of those of another, however few may wait in
/// the queue.
#[track_caller]
fn assert_each_listener_has_its_turn(options: &[&str], waits: usize) {
    let mut options = options.to_vec();
    options.push(ADDRESS);
    let mut site = Site::paused(Form::Bind, 1, &options);
    let second = site.acceptor.port();
    let crowd = site.clients(60);
    let mut other = support::connect(second);
    other.shutdown(Shutdown::Write).unwrap();
    site.until_told(told(waits, waits, 0));
    site.resume();
    let mut served = 0;
    for client in crowd {
        // One is in service, and one waits. The other one ends by itself.
        until("the next", || {
            let accepted = 61.min(served + 2);
            is_answered(&other) || site.ask() == told(accepted, accepted, served + 1)
        });
        if is_answered(&other) {
            break;
        }
        serve(client);
        served += 1;
    }
    assert!(served < 40, "{served} were served first");
    assert_eq!(other.read(&mut [0]).unwrap(), 0);
}

#[test]
fn each_listener_has_its_turn_while_one_may_wait() {
    assert_each_listener_has_its_turn(&["--queue", "1"], 1);
}

#[test]
fn each_listener_has_its_turn_while_two_may_be_in_service() {
    assert_each_listener_has_its_turn(&["--max", "2"], 2);
}

// The command line.

#[test]
fn a_limit_is_a_number_and_not_0() {
    let dir = tempfile::tempdir().unwrap();
    for text in ["0", "-1", "", "x", "1.5", "18446744073709551616"] {
        let mut command = program("fdaccept");
        command.args([&format!("--queue={text}"), "--bind", "./q", ADDRESS]);
        let (status, stdout, stderr) = run(command.current_dir(&dir));
        assert_eq!((status, stdout.as_str()), (Some(2), ""), "{text}: {stderr}");
        assert!(stderr.starts_with("fdaccept: "), "{text}: {stderr}");
        assert!(stderr.contains("--queue"), "{text}: {stderr}");
    }
}

#[test]
fn a_limit_can_be_as_large_as_a_number_can_be() {
    let mut site = Site::paused(Form::Bind, 1, &["--queue", "18446744073709551615"]);
    let clients = site.clients(5);
    site.stays_told(told(5, 5, 0));
    site.resume();
    clients.into_iter().for_each(serve);
}
