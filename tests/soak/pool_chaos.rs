//! Slots that get signals at random moments while clients keep them busy: the other slots serve
//! every connection that a slot did not have in hand. 1,000 signals in all.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::ask;
use crate::support::{self, *};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const CLIENTS: usize = 8;
const SLOTS: usize = 4;

/// The handler writes down its client's port, and then gives back what it gets.
const HANDLER: &str = "echo \"$TCPREMOTEPORT\" >>\"$STARTED\"; exec cat";

/// The ports in order.
fn sorted(ports: impl IntoIterator<Item = u16>) -> Vec<u16> {
    let mut ports: Vec<_> = ports.into_iter().collect();
    ports.sort_unstable();
    ports
}

/// Runs `chaos`, with the process id of the pool, while clients without a pause want their own
/// bytes back. Afterwards the pool must have all its slots and serve with each of them, and every
/// handler that was started must have served its client. Returns how many clients were served and
/// how many were not.
fn under_load(chaos: impl FnOnce(Pid)) -> (usize, usize) {
    let names = Names::new();
    let started = names.file("started");
    let slots = SLOTS.to_string();
    let chain = Fdaccept::chain(["fdpool", &slots, "--", "sh", "-c", HANDLER]);
    let mut acceptor = chain.env("STARTED", &started).start();
    let port = acceptor.port;
    let pool = eventually("the pool", || acceptor.children().first().copied());
    let is_whole = || children(pool).len() == SLOTS;
    until("all slots", is_whole);
    let done = AtomicBool::new(false);
    let (served, failed) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
    let serve = |text: &[u8]| {
        let client = support::connect(port);
        match ask(&client, text) {
            Ok(answer) if !answer.is_empty() => {
                // Never half of it, or another's.
                assert_eq!(answer, text);
                let port = client.local_addr().unwrap().port();
                served.lock().unwrap().push(port);
            }
            _ => drop(failed.fetch_add(1, Ordering::SeqCst)),
        }
    };
    serve(b"first\n");
    assert_eq!(served.lock().unwrap().len(), 1);
    let before = descriptors(acceptor.pid()).len();
    std::thread::scope(|scope| {
        let _ends = Ends(&done);
        for number in 0..CLIENTS {
            let (done, serve) = (&done, &serve);
            scope.spawn(move || {
                for request in 0.. {
                    if done.load(Ordering::SeqCst) {
                        return;
                    }
                    serve(format!("client {number}, request {request}\n").as_bytes());
                }
            });
        }
        until("the first clients to be served", || {
            served.lock().unwrap().len() >= CLIENTS
        });
        chaos(pool);
    });
    let text = std::fs::read_to_string(&started).unwrap();
    let started = sorted(text.lines().map(|port| port.parse().unwrap()));
    let served = sorted(served.into_inner().unwrap());
    assert_eq!(
        started, served,
        "a handler was started and its client not served"
    );

    // It is whole: as many clients at once as it has slots, and nothing is left over.
    until("all slots", is_whole);
    let have_handlers = |count| {
        let slots = children(pool);
        slots.into_iter().all(|slot| children(slot).len() == count)
    };
    let clients: Vec<_> = (0..SLOTS).map(|_| acceptor.client()).collect();
    until("all slots to be busy", || is_whole() && have_handlers(1));
    drop(clients);
    until("all slots to be idle", || have_handlers(0));
    until("as many descriptors as before", || {
        descriptors(acceptor.pid()).len() == before
    });
    acceptor.stop();
    (served.len(), failed.into_inner())
}

/// One of the slots. The pool may reap it meanwhile, so a signal that finds nobody is no failure.
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

#[test]
fn slots_that_are_told_to_end_at_random_moments_lose_nothing() {
    let (served, failed) = under_load(send(Signal::SIGTERM, 400, 1));
    assert_eq!(failed, 0, "{served} were served");
}

#[test]
fn slots_that_are_stopped_and_continued_at_random_moments_lose_nothing() {
    let (served, failed) = under_load(|pool| {
        let mut random = Random(2);
        for _ in 0..300 {
            random.pause(6_000);
            let slot = any_slot(pool, &mut random);
            kill(slot, Signal::SIGSTOP).unwrap();
            random.pause(6_000);
            kill(slot, Signal::SIGCONT).unwrap();
        }
    });
    assert_eq!(failed, 0, "{served} were served");
}

/// A slot has a connection in hand until it starts its handler, which goes on without its slot. So
/// at most one connection is lost with each slot.
#[test]
fn slots_that_are_killed_at_random_moments_lose_at_most_what_they_had_in_hand() {
    const KILLS: usize = 300;
    let (served, failed) = under_load(send(Signal::SIGKILL, KILLS, 3));
    eprintln!("{served} were served, {failed} were lost with {KILLS} slots");
    assert!(failed <= KILLS, "{failed} were lost with {KILLS} slots");
}
