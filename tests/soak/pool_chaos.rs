//! Slots that get signals at random moments while clients keep them busy: what a slot did not
//! have in hand is served by the others. 1,000 signals in all.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::support::{self, *};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const CLIENTS: usize = 8;
const SLOTS: usize = 4;

/// The handler says whom it serves, and then gives back what it gets.
const HANDLER: &str = "echo \"$TCPREMOTEPORT\" >>\"$STARTED\"; exec cat";

/// What became of the clients.
#[derive(Debug, Default)]
struct Tally {
    /// The ports of those that got their own bytes back.
    served: Mutex<Vec<u16>>,
    failed: AtomicUsize,
}

impl Tally {
    fn count(&self) -> usize {
        self.served.lock().unwrap().len()
    }
}

/// Sends `text`, and returns what comes back.
fn ask(client: &mut TcpStream, text: &[u8]) -> std::io::Result<Vec<u8>> {
    client.write_all(text)?;
    client.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    client.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Runs `chaos`, which is told the pool, while clients without a pause want their own bytes
/// back. Afterwards the pool must have all its slots and serve with each of them, and every
/// handler that was started must have served its client. Returns how many clients were served and
/// how many were not.
fn under_load(chaos: impl FnOnce(Pid)) -> (usize, usize) {
    let folder = tempfile::tempdir().unwrap();
    let started = folder.path().join("started");
    let mut command = program("fdaccept");
    command.args(["127.0.0.1:0", "--", "fdpool", &SLOTS.to_string()]);
    command.args(["--", "sh", "-c", HANDLER]);
    let mut process = Process::start(command.env("STARTED", &started));
    let port = process.port();
    let pool = eventually("the pool", || children(process.pid()).first().copied());
    until("all slots", || children(pool).len() == SLOTS);
    let done = AtomicBool::new(false);
    let tally = Tally::default();
    let mut first = support::connect(port);
    assert_eq!(ask(&mut first, b"first\n").unwrap(), b"first\n");
    tally
        .served
        .lock()
        .unwrap()
        .push(first.local_addr().unwrap().port());
    let before = descriptors(process.pid()).len();
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (done, tally) = (&done, &tally);
            scope.spawn(move || {
                for request in 0.. {
                    if done.load(Ordering::SeqCst) {
                        return;
                    }
                    let text = format!("client {number}, request {request}\n").into_bytes();
                    let mut client = support::connect(port);
                    match ask(&mut client, &text) {
                        Ok(answer) if !answer.is_empty() => {
                            // Never half of it, or another's.
                            assert_eq!(answer, text);
                            let port = client.local_addr().unwrap().port();
                            tally.served.lock().unwrap().push(port);
                        }
                        _ => drop(tally.failed.fetch_add(1, Ordering::SeqCst)),
                    }
                }
            });
        }
        until("the first clients to be served", || {
            tally.count() >= CLIENTS
        });
        chaos(pool);
        done.store(true, Ordering::SeqCst);
    });
    let text = std::fs::read_to_string(&started).unwrap();
    let mut started: Vec<u16> = text.lines().map(|port| port.parse().unwrap()).collect();
    let mut served = tally.served.into_inner().unwrap();
    started.sort_unstable();
    served.sort_unstable();
    assert_eq!(
        started, served,
        "a handler was started and its client not served"
    );

    // It is whole: as many at once as it has slots, and nothing is left over.
    until("all slots", || children(pool).len() == SLOTS);
    let clients: Vec<_> = (0..SLOTS).map(|_| support::connect(port)).collect();
    until("all slots to be busy", || {
        let slots = children(pool);
        slots.len() == SLOTS && slots.into_iter().all(|slot| children(slot).len() == 1)
    });
    drop(clients);
    until("all slots to be idle", || {
        children(pool)
            .into_iter()
            .all(|slot| children(slot).is_empty())
    });
    until("as many descriptors as before", || {
        descriptors(process.pid()).len() == before
    });
    process.signal(Signal::SIGTERM);
    let (status, log) = process.finish();
    assert_eq!(status.code(), Some(0), "{log}");
    (served.len(), tally.failed.into_inner())
}

/// One of the slots. It is a child of the pool, which reaps it only when it has ended: a number
/// that is not there any more is the pool's to replace, and no reason to fail.
fn any_slot(pool: Pid, random: &mut Random) -> Pid {
    let slots = eventually("a slot", || {
        let slots = children(pool);
        (!slots.is_empty()).then_some(slots)
    });
    slots[random.below(slots.len() as u64) as usize]
}

/// Sends `signal` to `count` slots, at random moments.
fn send(signal: Signal, count: usize, seed: u64) -> impl FnOnce(Pid) {
    move |pool| {
        let mut random = Random(seed);
        for _ in 0..count {
            random.pause(8_000);
            let _ = kill(any_slot(pool, &mut random), signal);
        }
    }
}

/// Stops and continues `count` slots, at random moments and for random times.
fn stop_and_continue(count: usize, seed: u64) -> impl FnOnce(Pid) {
    move |pool| {
        let mut random = Random(seed);
        for _ in 0..count {
            random.pause(6_000);
            let slot = any_slot(pool, &mut random);
            kill(slot, Signal::SIGSTOP).unwrap();
            random.pause(6_000);
            kill(slot, Signal::SIGCONT).unwrap();
        }
    }
}

#[test]
fn slots_that_are_told_to_end_at_random_moments_lose_nothing() {
    let (served, failed) = under_load(send(Signal::SIGTERM, 400, 1));
    assert_eq!(failed, 0, "{served} were served");
}

#[test]
fn slots_that_are_stopped_and_continued_at_random_moments_lose_nothing() {
    let (served, failed) = under_load(stop_and_continue(300, 2));
    assert_eq!(failed, 0, "{served} were served");
}

/// A slot has a connection in hand until its handler is started, which goes on without its slot
/// (that is checked for every test here). So at most one is lost with each slot.
#[test]
fn slots_that_are_killed_at_random_moments_lose_at_most_what_they_had_in_hand() {
    const KILLS: usize = 300;
    let (served, failed) = under_load(send(Signal::SIGKILL, KILLS, 3));
    eprintln!("{served} were served, {failed} were lost with {KILLS} slots");
    assert!(failed <= KILLS, "{failed} were lost with {KILLS} slots");
}
