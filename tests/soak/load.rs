//! Many clients at once: each gets its own bytes back, also while consumers are killed.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::support::*;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// A variable that everything started by a test has in its environment.
const MARK: &str = "FDTOOLS_TEST_MARK";

/// A value that no other test has.
fn mark(test: &str) -> String {
    format!("{test}-{}", std::process::id())
}

#[track_caller]
fn assert_nothing_is_left(mark: &str) {
    until("every process to end", || {
        processes_with(MARK, mark).is_empty()
    });
}

#[test]
fn two_thousand_connections_from_fifty_clients_each_get_their_own_bytes_back() {
    let mark = mark("two-thousand");
    let mut acceptor = Fdaccept::piped().env(MARK, &mark).start();
    let pipe = acceptor.take_pipe();
    let pool = Pool::plain().stdin(pipe).env(MARK, &mark);
    let mut pool = pool.slots(8, ["cat"]).full();
    let port = acceptor.port;
    // Each slot settles once it has served.
    assert_eq!(exchange(port, b"first"), b"first");
    let slots = pool.members();
    let open = || -> Vec<usize> {
        let everybody = slots.iter().copied().chain([acceptor.pid(), pool.pid()]);
        everybody.map(|pid| descriptors(pid).len()).collect()
    };
    pool.until_idle();
    let before = open();
    std::thread::scope(|scope| {
        for client in 0..50 {
            scope.spawn(move || {
                for number in 0..40 {
                    let request = request(client, number);
                    let answer = try_exchange(port, &request).unwrap_or_else(|error| {
                        panic!("client {client}, request {number}: {error}");
                    });
                    assert!(answer == request, "client {client}, request {number}");
                }
            });
        }
    });
    pool.until_idle();
    until("as many descriptors as before", || open() == before);
    assert_eq!(pool.members(), slots, "a slot was replaced");
    acceptor.term();
    pool.expect_quiet_end();
    acceptor.expect_clean_end();
    assert_nothing_is_left(&mark);
}

/// A consumer of a queue.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Pool,
    Loop,
}

/// The slots of each pool.
const SLOTS: usize = 3;

fn start(kind: Kind, name: &str, mark: &str) -> Process {
    let text = "while fdrecv --connect \"$NAME\" -- cat || [ $? -ne 69 ]; do :; done";
    let mut command = match kind {
        Kind::Pool => Pool::on(name).slots(SLOTS, ["cat"]).command(),
        Kind::Loop => sh(text),
    };
    command.env("NAME", name).env(MARK, mark).start()
}

/// Kills a consumer. Returns how many connections it can have had in hand.
fn kill_consumer(kind: Kind, process: &Process, whole_group: bool) -> usize {
    if kind == Kind::Pool && !whole_group {
        process.signal(Signal::SIGKILL);
        // Its slots finish their connections.
        return 0;
    }
    process.signal_group(Signal::SIGKILL);
    match kind {
        // A slot has a connection in hand until it starts its handler: a handler has a group of
        // its own.
        Kind::Pool => SLOTS,
        Kind::Loop => 1,
    }
}

#[test]
fn only_connections_in_hand_fail_while_consumers_are_killed_and_replaced() {
    const KILLS: usize = 60;
    let mark = mark("killed");
    let mut acceptor = Fdaccept::bound().env(MARK, &mark).start();
    let port = acceptor.port;
    let kinds = [Kind::Pool, Kind::Loop, Kind::Pool, Kind::Loop];
    let mut consumers = kinds.map(|kind| start(kind, acceptor.name(), &mark));
    let mut killed = Vec::new();
    let mut in_hand = 0;
    let done = AtomicBool::new(false);
    let (served, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let _ends = Ends(&done);
        for client in 0..12 {
            let (done, served, failed) = (&done, &served, &failed);
            scope.spawn(move || {
                for number in 0.. {
                    if done.load(Ordering::SeqCst) {
                        return;
                    }
                    let request = request(client, number);
                    let answer = try_exchange(port, &request).unwrap_or_default();
                    // A part of an answer is a failure, too.
                    assert!(request.starts_with(&answer));
                    let count = if answer == request { served } else { failed };
                    count.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let mut random = Random(4);
        for round in 0..KILLS {
            let before = served.load(Ordering::SeqCst);
            until("a client to be served", || {
                served.load(Ordering::SeqCst) > before
            });
            random.pause(20_000);
            let index = round % kinds.len();
            let whole_group = random.below(2) == 0;
            in_hand += kill_consumer(kinds[index], &consumers[index], whole_group);
            let next = start(kinds[index], acceptor.name(), &mark);
            // Kept: the slots of a pool whose parent was killed serve on for a while.
            killed.push(std::mem::replace(&mut consumers[index], next));
        }
    });
    let (served, failed) = (served.into_inner(), failed.into_inner());
    let counts = format!("{served} were served, {failed} failed, {in_hand} may have been in hand");
    eprintln!("{counts}");
    assert!(failed <= in_hand, "{counts}");

    for consumer in &mut consumers {
        assert!(consumer.is_running(), "{}", consumer.log());
    }
    // Nothing is left in the queue, or open: fdaccept has as many descriptors as a fresh one.
    assert_eq!(exchange(port, b"last"), b"last");
    let fresh = Fdaccept::bound().start();
    until_state(fresh.pid(), 'S');
    let count = |pid: Pid| descriptors(pid).len();
    until("as many descriptors as a fresh fdaccept has", || {
        count(acceptor.pid()) == count(fresh.pid())
    });
    acceptor.stop();
    for (kind, mut consumer) in kinds.into_iter().zip(consumers) {
        if kind == Kind::Pool {
            consumer.term();
        }
        consumer.expect_exit(0);
    }
    assert_nothing_is_left(&mark);
    drop(killed);
}
