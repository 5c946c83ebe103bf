//! More slots or workers than the system allows processes.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::io::ioctl_fionread;
use tempfile::TempDir;

const SHORT: &str = "fdpool: cannot start a process: Resource temporarily unavailable; \
                     idle slots give way to handlers";

/// A pool of a user who has no other processes, and may have only so many.
struct Limited {
    pool: Pool,
    queue: Queue,
    number: u32,
    _directory: TempDir,
}

/// A user of this test only: the kernel counts the processes of a user.
fn user(number: u32) -> u32 {
    100_000 + std::process::id() * 16 + number
}

impl Limited {
    /// `words` are the arguments of fdpool. Its queue has `clients` connections already.
    fn start(
        number: u32,
        processes: u64,
        words: &[&str],
        clients: usize,
    ) -> (Self, Vec<Client<UnixStream>>) {
        let directory = open_dir();
        copy_of("fdpool", directory.path());
        let queue = Queue::new();
        let clients = (0..clients).map(|_| queue.client()).collect();
        let mut command = by_limited(number, processes, directory.path());
        command.args(words).stdin(queue.input());
        let limited = Self {
            pool: Pool::of(&mut command),
            queue,
            number,
            _directory: directory,
        };
        (limited, clients)
    }

    /// From now on its processes may be so many.
    fn allow(&self, processes: u64) {
        // First the pool alone: a slot that it starts from now on has it from the pool.
        self.allow_one(self.pool.pid(), processes);
        for pid in self.pool.members() {
            self.allow_one(pid, processes);
        }
    }

    fn allow_one(&self, pid: Pid, processes: u64) {
        let mut command = as_user(self.number);
        command.args(["prlimit", "--pid", &pid.to_string()]);
        let status = command.arg(format!("--nproc={processes}:")).status();
        // A slot may have given way meanwhile.
        assert!(status.unwrap().success() || !is_alive(pid));
    }
}

fn as_user(number: u32) -> Command {
    let id = user(number);
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={id}"), format!("--regid={id}")]);
    command.arg("--clear-groups");
    command
}

/// fdpool as a user who may have only so many processes, or ask for more.
fn by_limited(number: u32, processes: u64, directory: &Path) -> Command {
    let mut command = as_user(number);
    command.args(["prlimit", &format!("--nproc={processes}:200")]);
    command.arg(directory.join("fdpool"));
    command.env("PATH", path()).stdin(Stdio::null());
    command
}

fn can_limit() -> bool {
    root() && peer("prlimit").is_some() && peer("setpriv").is_some()
}

/// Nobody waits for another client to end.
#[track_caller]
fn all_are_served(clients: impl IntoIterator<Item = Client<UnixStream>>) {
    let clients: Vec<_> = clients.into_iter().collect();
    for client in &clients {
        client.send("hello");
        client.end();
    }
    for client in clients {
        assert_eq!(client.rest(), "hello");
    }
}

/// `slots` slots find a connection for each, and some more, before any of them has a handler.
#[track_caller]
fn assert_all_are_served(number: u32, slots: usize, processes: u64) {
    needs!(can_limit());
    let words = [&slots.to_string(), "--", "cat"];
    let (mut limited, clients) = Limited::start(number, processes, &words, slots + 3);
    // Nobody ends before the handlers have to share.
    limited.pool.line(SHORT);
    all_are_served(clients);
    // A slot that comes later finds room, too.
    limited.queue.client().expect_echo("hello");
    assert_eq!(limited.pool.stop(), SHORT);
}

cases! {
    assert_all_are_served;
    a_limit_that_allows_one_slot_and_one_handler_serves_all: 0, 2, 3;
    a_limit_that_allows_all_slots_and_no_handler_serves_all: 1, 11, 12;
    a_limit_that_allows_half_of_the_slots_serves_all: 2, 20, 12;
    a_limit_that_allows_all_slots_and_one_handler_serves_all: 3, 5, 6;
}

#[test]
fn slots_come_back_when_the_shortage_is_over() {
    needs!(can_limit());
    let (mut limited, clients) = Limited::start(4, 6, &["10", "--", "cat"], 4);
    limited.pool.line(SHORT);
    limited.allow(100);
    clients.iter().for_each(Client::expect_served);
    limited.pool.until_size(10);
    let more: Vec<_> = (0..6).map(|_| limited.queue.client()).collect();
    more.iter().for_each(Client::expect_served);
    clients.iter().for_each(Client::expect_served);
    drop((clients, more));
    assert_eq!(limited.pool.stop(), SHORT);
}

/// The pause that a shortage has left does not keep the only slot away.
#[test]
fn a_slot_that_is_killed_after_a_shortage_is_replaced_at_once() {
    needs!(can_limit());
    let (mut limited, clients) = Limited::start(10, 2, &["1", "--", "cat"], 1);
    limited.pool.line("no room for its handler");
    // The pause is 4 seconds by now.
    std::thread::sleep(Duration::from_secs(3));
    limited.allow(100);
    clients[0].expect_served();
    drop(clients);
    limited.pool.until_idle();
    let slot = limited.pool.members()[0];
    let start = Instant::now();
    kill(slot, Signal::SIGKILL).unwrap();
    // Until then it may take a connection along.
    until("the end of the slot", || !is_alive(slot));
    limited.queue.client().expect_echo("hello");
    assert!(start.elapsed() < Duration::from_secs(2));
    limited.pool.stop();
}

#[test]
fn a_slot_without_room_for_its_handler_says_so_and_keeps_its_connection() {
    needs!(can_limit());
    let (mut limited, clients) = Limited::start(5, 2, &["1", "--", "cat"], 1);
    let line = limited.pool.line("cannot start");
    let expected = "fdpool: cannot start a process: Resource temporarily unavailable; \
                    there is one slot, and no room for its handler";
    assert_eq!(line, expected);
    are_idle(&limited.pool.members(), Duration::from_millis(80));
    clients[0].expect_waiting();
    limited.allow(3);
    clients[0].expect_served();
    drop(clients);
    assert_eq!(limited.pool.stop(), expected);
}

/// Both slots have a connection, and neither has room for a handler, when the pool gets `signals`.
#[track_caller]
fn assert_stuck_slots_serve(number: u32, signals: &[Signal]) {
    needs!(can_limit());
    let (mut limited, _) = Limited::start(number, 3, &["2", "--", "cat"], 0);
    limited.pool.until_size(2);
    limited.pool.until_idle();
    let queue = &limited.queue;
    let clients = limited.pool.at_once(signals, || {
        let clients = [queue.client(), queue.client()];
        until("both to be taken", || {
            ioctl_fionread(&queue.read_end) == Ok(0)
        });
        clients
    });
    all_are_served(clients);
    if signals.is_empty() {
        limited.pool.term();
    }
    assert_eq!(limited.pool.expect_end(0), SHORT);
}

cases! {
    assert_stuck_slots_serve;
    slots_that_all_have_a_connection_and_no_room_serve_one_after_another: 6, &[];
    slots_that_all_have_a_connection_and_no_room_serve_before_they_stop: 9, &[Signal::SIGTERM];
}

#[test]
fn a_stop_drops_what_no_handler_can_be_started_for_and_says_so() {
    needs!(can_limit());
    let words = ["--grace", "0.3", "1", "--", "cat"];
    let (mut limited, clients) = Limited::start(7, 2, &words, 1);
    limited.pool.line("no room for its handler");
    let log = limited.pool.stop();
    assert!(
        log.lines()
            .any(|line| line.starts_with("fdpool: the connection from")),
        "{log}"
    );
    for client in clients {
        client.expect_closed();
    }
}

#[test]
fn workers_that_can_be_started_serve_while_others_cannot() {
    needs!(can_limit());
    let worker = needs!(rust_worker());
    let directory = open_dir();
    let copy = directory.path().join("worker");
    let copied = Command::new("cp").arg(worker).arg(&copy).status();
    assert!(copied.unwrap().success());
    let worker = copy.to_str().unwrap();
    let words = ["--worker", "6", "--", worker];
    let (mut limited, clients) = Limited::start(8, 4, &words, 10);
    let line = limited.pool.line("next try in 0.1 s");
    let expected = "fdpool: cannot start a process: Resource temporarily unavailable; \
                    next try in 0.1 s";
    assert_eq!(line, expected);
    all_are_served(clients);
    limited.pool.line("next try in 0.8 s");
    limited.allow(100);
    limited.pool.until_size(6);
    limited.pool.stop();
}
