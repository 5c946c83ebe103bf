//! Many clients at once: each gets its own bytes back, also while consumers are killed.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A request that no other client makes. It fits into the buffers of two sockets, since it is
/// sent before the first byte of the answer is read.
fn request(client: usize, number: usize) -> Vec<u8> {
    let mut random = Random((client * 1_000_000 + number) as u64);
    let mut text = format!("client {client}, request {number}\n").into_bytes();
    let length = random.below(16 * 1024);
    text.extend((0..length).map(|_| random.below(256) as u8));
    text
}

/// The child of `parent` that is the program `name`.
fn child_named(parent: Pid, name: &str) -> Pid {
    eventually(name, || {
        children(parent).into_iter().find(|pid| {
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm"));
            comm.is_ok_and(|comm| comm.trim_end() == name)
        })
    })
}

/// Processes that have `mark` in their environment, as everything that a test starts with it, and
/// what that starts in turn.
fn marked(mark: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let marked = entries.filter(|entry| {
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let mut variables = environment.split(|byte| *byte == 0);
        variables.any(|variable| variable == mark.as_bytes())
    });
    marked
        .map(|entry| {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            format!("{:?} {}", entry.file_name(), String::from_utf8_lossy(&line))
        })
        .collect()
}

const MARK: &str = "FDTOOLS_TEST_MARK";

/// Names a mark that no other test has.
fn mark(test: &str) -> String {
    format!("{test}-{}", std::process::id())
}

#[track_caller]
fn assert_nothing_is_left(mark: &str) {
    let mark = format!("{MARK}={mark}");
    until("every process to end", || marked(&mark).is_empty());
}

#[test]
fn two_thousand_connections_from_fifty_clients_each_get_their_own_bytes_back() {
    let mark = mark("two-thousand");
    let text = "fdaccept 127.0.0.1:0 | fdpool 8 -- cat";
    let mut process = Process::start(script("sh", text).env(MARK, &mark));
    let port = process.port();
    let acceptor = child_named(process.pid(), "fdaccept");
    let pool = child_named(process.pid(), "fdpool");
    until("all slots", || children(pool).len() == 8);
    // Each slot settles once it has served.
    assert_eq!(exchange(port, b"first"), b"first");
    let slots = children(pool);
    let open = || -> Vec<usize> {
        let everybody = slots.iter().chain([&acceptor, &pool]);
        everybody.map(|pid| descriptors(*pid).len()).collect()
    };
    // Without a handler, and waiting for the next connection.
    let is_idle = |slot: &Pid| children(*slot).is_empty() && state(*slot) == Some('S');
    let idle = || slots.iter().all(is_idle);
    until("idle slots", idle);
    let before = open();
    std::thread::scope(|scope| {
        for client in 0..50 {
            scope.spawn(move || {
                for number in 0..40 {
                    let request = request(client, number);
                    let answer = try_exchange(port, &request);
                    let answer = answer.unwrap_or_else(|error| {
                        panic!("client {client}, request {number}: {error}");
                    });
                    assert!(answer == request, "client {client}, request {number}");
                }
            });
        }
    });
    until("idle slots", idle);
    until("as many descriptors as before", || open() == before);
    assert_eq!(children(pool), slots, "a slot was replaced");
    kill(acceptor, Signal::SIGTERM).unwrap();
    let (status, log) = process.finish();
    assert_eq!(status.code(), Some(0), "{log}");
    assert_eq!(besides_counters(&log).len(), 1, "{log}");
    assert_nothing_is_left(&mark);
}

/// Waits until both have as many descriptors open.
#[track_caller]
fn until_as_many_open(one: Pid, other: Pid) {
    let mut seen = Default::default();
    let start = Instant::now();
    while start.elapsed() < DEADLINE {
        seen = (descriptors(one), descriptors(other));
        if seen.0.len() == seen.1.len() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{seen:#?}");
}

/// A consumer of the named queue.
#[derive(Clone, Copy)]
enum Kind {
    Pool,
    Loop,
}

/// The slots of each pool.
const SLOTS: usize = 3;

fn start(kind: Kind, name: &Path, mark: &str) -> Process {
    let mut command = match kind {
        Kind::Pool => {
            let mut command = program("fdpool");
            command.arg("--connect").arg(name).arg(SLOTS.to_string());
            command.args(["--", "cat"]);
            command
        }
        Kind::Loop => {
            let text = "while fdrecv --connect \"$NAME\" -- cat || [ $? -ne 69 ]; do :; done";
            let mut command = script("sh", text);
            command.env("NAME", name);
            command
        }
    };
    Process::start(command.env(MARK, mark))
}

/// Kills a consumer. Returns how many connections it can have had in hand.
fn kill_consumer(kind: Kind, process: &Process, whole_group: bool) -> usize {
    match kind {
        Kind::Pool if whole_group => {
            process.signal_group(Signal::SIGKILL);
            // One each, whose handler was not started yet: a handler has its own group.
            SLOTS
        }
        Kind::Pool => {
            process.signal(Signal::SIGKILL);
            // Its slots finish what they have.
            0
        }
        Kind::Loop => {
            process.signal_group(Signal::SIGKILL);
            1
        }
    }
}

#[test]
fn only_connections_in_hand_fail_while_consumers_are_killed_and_replaced() {
    const KILLS: usize = 60;
    let mark = mark("killed");
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().join("queue");
    let mut command = program("fdaccept");
    command.arg("--bind").arg(&name).arg("127.0.0.1:0");
    let mut acceptor = Process::start(command.env(MARK, &mark));
    let port = acceptor.port();
    let kinds = [Kind::Pool, Kind::Loop, Kind::Pool, Kind::Loop];
    let mut consumers = kinds.map(|kind| start(kind, &name, &mark));
    let mut killed = Vec::new();
    let mut in_hand = 0;
    let done = AtomicBool::new(false);
    let (served, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for client in 0..12 {
            let (done, served, failed) = (&done, &served, &failed);
            scope.spawn(move || {
                for number in 0.. {
                    if done.load(Ordering::SeqCst) {
                        return;
                    }
                    let request = request(client, number);
                    match try_exchange(port, &request) {
                        Ok(answer) if answer == request => served.fetch_add(1, Ordering::SeqCst),
                        Ok(answer) => {
                            // What it did get was its own.
                            assert!(request.starts_with(&answer));
                            failed.fetch_add(1, Ordering::SeqCst)
                        }
                        Err(_) => failed.fetch_add(1, Ordering::SeqCst),
                    };
                }
            });
        }
        let mut random = Random(4);
        for round in 0..KILLS {
            let before = served.load(Ordering::SeqCst);
            until("a client to be served", || {
                served.load(Ordering::SeqCst) > before
            });
            std::thread::sleep(Duration::from_micros(random.below(20_000)));
            let index = round % kinds.len();
            let whole_group = random.below(2) == 0;
            in_hand += kill_consumer(kinds[index], &consumers[index], whole_group);
            let next = start(kinds[index], &name, &mark);
            // Kept: what was in the group of a pool whose parent was killed goes on for a while.
            killed.push(std::mem::replace(&mut consumers[index], next));
        }
        done.store(true, Ordering::SeqCst);
    });
    let (served, failed) = (served.into_inner(), failed.into_inner());
    eprintln!("{served} were served, {failed} failed, {in_hand} may have been in hand");
    assert!(
        failed <= in_hand,
        "{failed} of {served} failed, {in_hand} may"
    );

    for consumer in &mut consumers {
        assert!(consumer.is_running(), "{}", consumer.log());
    }
    // Nothing is left in the queue, or open: fdaccept has what another one has that never served.
    assert_eq!(exchange(port, b"last"), b"last");
    let fresh_name = folder.path().join("fresh");
    let mut command = program("fdaccept");
    command.arg("--bind").arg(&fresh_name).arg("127.0.0.1:0");
    let mut fresh = Process::start(&mut command);
    fresh.port();
    until("it to wait", || state(fresh.pid()) == Some('S'));
    until_as_many_open(acceptor.pid(), fresh.pid());
    acceptor.signal(Signal::SIGTERM);
    let (status, log) = acceptor.finish();
    assert_eq!(status.code(), Some(0), "{log}");
    for (kind, mut consumer) in kinds.into_iter().zip(consumers) {
        if matches!(kind, Kind::Pool) {
            consumer.signal(Signal::SIGTERM);
        }
        assert_eq!(consumer.wait().code(), Some(0));
    }
    assert_nothing_is_left(&mark);
    drop(killed);
}
