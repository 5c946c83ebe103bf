//! Short of descriptors, or with a full queue: every client is served in the end, and waiting costs
//! no CPU.

use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::support::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The command of a chain, stopped before it is a pool of `cat`s.
const STOPPED_POOL: &str = "sh -c 'kill -STOP $$; exec fdpool 4 -- cat'";

const LOOP_OF_FDRECV: &str = "while fdrecv -- cat || [ $? -ne 69 ]; do :; done";

/// As many of `wanted` clients as the backlog of a listener holds.
fn crowd_size(wanted: usize) -> usize {
    let maximum = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    // Each client is a descriptor of this process.
    raise_limit();
    wanted.min(maximum.trim().parse().unwrap())
}

/// Checks that these processes use no CPU, in a second.
#[track_caller]
fn are_idle(pids: &[Pid]) {
    crate::support::are_idle(pids, Duration::from_millis(80));
}

#[track_caller]
fn start(text: &str) -> Acceptor {
    Fdaccept::sh(text).start()
}

/// A pool of `cat`s that has no shortage of its own.
fn pool_at(acceptor: &Acceptor) -> Pool {
    Pool::on(acceptor).slots(2, ["cat"]).start()
}

/// The descriptors of a process, once all connections are closed.
fn settled(pid: Pid) -> Vec<(i32, String)> {
    crate::support::settled(pid);
    descriptors(pid)
}

/// Lowers the soft limit until no free descriptor is below it. Returns a function that restores it.
fn leave_none(prlimit: &Path, pid: Pid) -> impl Fn() {
    let open = settled(pid);
    let is_open = |number: i32| open.iter().any(|(other, _)| *other == number);
    let lowest = (0..).find(|number| !is_open(*number)).unwrap();
    let (original, _) = limits(pid);
    limit(prlimit, pid, &format!("{lowest}:"));
    move || limit(prlimit, pid, &format!("{original}:"))
}

/// The soft and the hard limit on descriptors of a process.
fn limits(pid: Pid) -> (String, String) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = text.lines().find(|line| line.starts_with("Max open files"));
    let words: Vec<_> = line.unwrap().split_whitespace().collect();
    (words[3].to_owned(), words[4].to_owned())
}

#[track_caller]
fn serves_everybody(text: &str) {
    let mut acceptor = start(&format!("ulimit -n 16; {text}"));
    Crowd::connect(acceptor.port, crowd_size(100)).expect_served();
    assert!(!acceptor.log().contains("cannot"), "{}", acceptor.log());
}

cases! {
    serves_everybody;
    a_chain_with_few_descriptors_serves_everybody:
        "exec fdaccept 127.0.0.1:0 -- fdpool 4 -- cat";
    a_pipeline_with_few_descriptors_serves_everybody: "fdaccept 127.0.0.1:0 | fdpool 4 -- cat";
}

#[test]
fn a_named_queue_with_few_descriptors_serves_everybody() {
    for text in [
        "fdpool --connect ./q 4 -- cat & exec fdaccept --bind ./q 127.0.0.1:0",
        "fdpool --bind ./q 4 -- cat & exec fdaccept --connect ./q 127.0.0.1:0",
    ] {
        let mut acceptor = start(&format!("ulimit -n 16; {text}"));
        Crowd::connect(acceptor.port, crowd_size(100)).expect_served();
        acceptor.signal_group(Signal::SIGTERM);
        acceptor.wait();
        let name = acceptor.names.file("q");
        until("the end of the pool", || !name.exists());
    }
}

#[test]
fn a_consumer_that_comes_last_finds_a_descriptor_whatever_clients_have() {
    for limit in 22..25 {
        for options in ["--max 4", "--queue 3 --max-per-source 50"] {
            let text = format!("exec fdaccept {options} --bind ./q 127.0.0.1:0");
            let acceptor = start(&format!("ulimit -n {limit}; {text}"));
            let crowd = Crowd::connect(acceptor.port, 12);
            let queue = acceptor.names.text("q");
            let _pool = Pool::on(&queue).slots(2, ["cat"]).start();
            crowd.expect_served();
        }
    }
}

#[test]
fn a_worker_whose_limit_becomes_lower_ends_instead_of_losing_more() {
    let prlimit = needs!(peer("prlimit"));
    let worker = needs!(rust_worker());
    let acceptor = Fdaccept::bound().options("--max 9").start();
    let mut low = Command::new(worker).arg(acceptor.name()).start();
    acceptor.expect_echo();
    limit(&prlimit, low.pid(), "4:");
    // The worker learns from the first client that the free numbers are gone.
    let _lost = acceptor.client();
    let waiting = Crowd::connect(acceptor.port, 3);
    let (_, log) = low.finish();
    assert!(log.contains("Too many open files"), "{log}");
    let _pool = pool_at(&acceptor);
    waiting.expect_served();
}

#[test]
fn single_consumers_with_few_descriptors_serve_everybody() {
    let text = format!("ulimit -n 16; fdaccept 127.0.0.1:0 | {LOOP_OF_FDRECV}");
    let acceptor = start(&text);
    Crowd::connect(acceptor.port, crowd_size(30)).expect_served();
}

#[test]
fn fdaccept_waits_while_it_has_no_descriptor_left() {
    let prlimit = needs!(peer("prlimit"));
    let mut acceptor = Fdaccept::cats().start();
    acceptor.expect_echo();
    let pid = acceptor.pid();
    let idle = settled(pid);
    let restore = leave_none(&prlimit, pid);
    let crowd = Crowd::connect(acceptor.port, 20);
    assert_eq!(
        acceptor.line("cannot accept"),
        "fdaccept: cannot accept: Too many open files; connections wait until it can"
    );
    are_idle(&[pid]);
    assert_eq!(descriptors(pid), idle);
    restore();
    crowd.expect_served();
    // The second shortage comes too soon to be logged again.
    let restore = leave_none(&prlimit, pid);
    let crowd = Crowd::connect(acceptor.port, 20);
    are_idle(&[pid]);
    restore();
    crowd.expect_served();
    assert_eq!(acceptor.log().matches("cannot accept").count(), 1);
}

#[test]
fn fdaccept_without_descriptors_still_can_be_stopped() {
    let prlimit = needs!(peer("prlimit"));
    let mut acceptor = Fdaccept::cats().options("--grace 0.5").start();
    acceptor.expect_echo();
    let _ = leave_none(&prlimit, acceptor.pid());
    let _client = acceptor.client();
    acceptor.line("cannot accept");
    acceptor.stop();
}

#[test]
fn a_consumer_at_the_door_waits_while_there_is_no_descriptor() {
    let prlimit = needs!(peer("prlimit"));
    let mut acceptor = Fdaccept::bound().start();
    let restore = leave_none(&prlimit, acceptor.pid());
    let _pool = pool_at(&acceptor);
    let crowd = Crowd::connect(acceptor.port, 10);
    acceptor.line("cannot accept");
    are_idle(&[acceptor.pid()]);
    restore();
    crowd.expect_served();
}

#[test]
fn a_full_queue_stops_accepting_and_loses_nothing() {
    let acceptor = start(&format!("exec fdaccept 127.0.0.1:0 -- {STOPPED_POOL}"));
    let pid = acceptor.pid();
    let pool = acceptor.stopped_child();
    let idle = settled(pid).len();
    let crowd = Crowd::connect(acceptor.port, crowd_size(1000));
    until_full(pid, idle);
    are_idle(&[pid, pool]);
    // fdaccept holds one connection, and leaves the others in the backlog.
    assert_eq!(descriptors(pid).len(), idle + 1);
    thaw(pool);
    crowd.expect_served();
    assert_eq!(settled(pid).len(), idle);
}

#[test]
fn a_full_queue_behind_busy_handlers_loses_nothing() {
    let acceptor = Fdaccept::cats().start();
    let pid = acceptor.pid();
    // These clients say nothing, and their handlers wait for them.
    let busy = [acceptor.client(), acceptor.client()];
    let pool = eventually("the pool", || acceptor.children().pop());
    let handlers = || -> usize {
        let slots = children(pool);
        slots.into_iter().map(|slot| children(slot).len()).sum()
    };
    until("both handlers", || handlers() == 2);
    let idle = settled(pid).len();
    let crowd = Crowd::connect(acceptor.port, crowd_size(1000));
    until_full(pid, idle);
    are_idle(&[&[pid, pool][..], &children(pool)].concat());
    drop(busy);
    crowd.expect_served();
}

#[test]
fn a_full_queue_of_a_consumers_own_name_loses_nothing() {
    let names = Names::new();
    let pool = Pool::bound_at(&names.path()).slots(1, ["cat"]).full();
    until("the name", || names.file("queue").exists());
    let slot = pool.children()[0];
    kill(slot, Signal::SIGSTOP).unwrap();
    let fdaccept = Fdaccept::plain().args(["--connect", &names.path()]);
    let acceptor = fdaccept.start();
    let pid = acceptor.pid();
    let idle = settled(pid).len();
    let crowd = Crowd::connect(acceptor.port, crowd_size(100));
    // With the first client it opens one more, for the consumer's socket.
    until_full(pid, idle + 1);
    are_idle(&[pid]);
    assert_eq!(state(slot), Some('T'));
    thaw(slot);
    crowd.expect_served();
}

/// A user without descriptors in flight. The kernel counts them per user, except for root.
fn new_user() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    1_000_000 + 16 * std::process::id() + number
}

/// A script run by a user, whose the directory is.
fn start_as(uid: u32, text: &str) -> Acceptor {
    let fdaccept = Fdaccept::sh(text).open().run_by(uid);
    let programs = fdaccept.names.text("");
    chown(&programs, Some(uid), None).unwrap();
    for name in ["fdaccept", "fdpool", "fdrecv"] {
        copy_of(name, Path::new(&programs));
    }
    let path = format!("{programs}:/usr/bin:/bin");
    fdaccept.env("PATH", path).start()
}

#[test]
fn too_many_descriptors_on_their_way_are_waited_for() {
    needs!(root());
    let text = format!("ulimit -n 20; exec fdaccept 127.0.0.1:0 -- {STOPPED_POOL}");
    let mut acceptor = start_as(new_user(), &text);
    let pid = acceptor.pid();
    let pool = acceptor.stopped_child();
    let idle = settled(pid).len();
    let crowd = Crowd::connect(acceptor.port, crowd_size(200));
    until_full(pid, idle);
    are_idle(&[pid]);
    thaw(pool);
    crowd.expect_served();
    let log = acceptor.stop();
    assert_eq!(besides_counters(&log).len(), 1, "{log}");
}

/// The queue itself is a descriptor that travels to a consumer.
#[test]
fn a_consumer_gets_the_queue_while_too_many_are_on_their_way() {
    needs!(root());
    for consumers in ["exec fdpool 4 -- cat", LOOP_OF_FDRECV] {
        let stopped = format!("sh -c 'kill -STOP $$; {consumers}'");
        let text = format!("ulimit -n 20; fdaccept 127.0.0.1:0 | {stopped}");
        let acceptor = start_as(new_user(), &text);
        let both = eventually("both programs", || {
            Some(acceptor.children()).filter(|both| both.len() == 2)
        });
        let in_state = |wanted| both.iter().find(|pid| state(**pid) == Some(wanted));
        let consumer = *eventually("the consumer", || in_state('T'));
        let fdaccept = *both.iter().find(|pid| **pid != consumer).unwrap();
        let idle = settled(fdaccept).len();
        let crowd = Crowd::connect(acceptor.port, crowd_size(200));
        until_full(fdaccept, idle);
        thaw(consumer);
        crowd.expect_served();
    }
}

/// The queue is full, and all descriptors are leases.
#[test]
fn a_consumer_finds_its_way_when_both_limits_on_descriptors_are_reached_at_once() {
    needs!(root());
    // With some of these limits a connection in hand, which cannot be passed, takes the last one.
    for limit in 34..42 {
        let text = format!("ulimit -n {limit}; exec fdaccept --max 1000 --bind ./q 127.0.0.1:0");
        let acceptor = start_as(new_user(), &text);
        let crowd = Crowd::connect(acceptor.port, 60);
        settled(acceptor.pid());
        let queue = acceptor.names.text("q");
        let _pool = Pool::on(&queue).slots(4, ["cat"]).start();
        crowd.expect_served();
    }
}

/// fdaccept holds a connection that it cannot pass on, and has no consumer any more.
#[test]
fn the_end_of_the_queue_while_too_many_are_on_their_way_is_waited_out() {
    needs!(root());
    let command = "sh -c 'kill -STOP $$; exec sleep 1000 </dev/null'";
    let text = format!("ulimit -n 20; exec fdaccept 127.0.0.1:0 -- {command}");
    let mut acceptor = start_as(new_user(), &text);
    let pid = acceptor.pid();
    let command = acceptor.stopped_child();
    let idle = settled(pid);
    let _crowd = Crowd::connect(acceptor.port, crowd_size(200));
    until_full(pid, idle.len());
    thaw(command);
    // Without consumers it stops listening.
    until("the end of the listener", || {
        let now = descriptors(pid);
        idle.iter().any(|open| !now.contains(open))
    });
    are_idle(&[pid]);
    kill(command, Signal::SIGTERM).unwrap();
    let log = acceptor.expect_end(128 + 15);
    let last = log.lines().last().unwrap();
    assert!(
        last.ends_with(" connections were accepted and not taken"),
        "{log}"
    );
}

/// Another service of the user `uid`, with as many descriptors in flight as the kernel allows. Returns
/// what lets it take them.
fn crowded_service(uid: u32) -> (Acceptor, impl FnOnce()) {
    let text = format!("ulimit -n 20; exec fdaccept 127.0.0.1:0 -- {STOPPED_POOL}");
    let acceptor = start_as(uid, &text);
    let pool = acceptor.stopped_child();
    let idle = settled(acceptor.pid()).len();
    let crowd = Crowd::connect(acceptor.port, crowd_size(200));
    until_full(acceptor.pid(), idle);
    let end = move || {
        thaw(pool);
        crowd.expect_served();
    };
    (acceptor, end)
}

/// The end of a line about descriptors in flight, without their number.
const OTHERS: &str = " or more descriptors in flight";

#[test]
fn descriptors_that_another_service_has_on_their_way_are_told_of_and_waited_for() {
    needs!(root());
    let uid = new_user();
    let text = "ulimit -n 20; exec fdaccept 127.0.0.1:0 -- fdpool 4 -- cat";
    let mut acceptor = start_as(uid, text);
    acceptor.expect_echo();
    let (_other, end) = crowded_service(uid);
    let crowd = Crowd::connect(acceptor.port, 10);
    let line = acceptor.line("cannot pass a connection");
    let problem = "fdaccept: cannot pass a connection: Too many references: cannot splice; \
                   other processes of this user have 21 or more descriptors in flight; \
                   connections wait";
    assert_eq!(line, problem);
    are_idle(&[acceptor.pid()]);
    crowd.expect_waiting();
    end();
    acceptor.line("fdaccept: connections are passed again");
    crowd.expect_served();
    let log = acceptor.stop();
    assert_eq!(log.matches(OTHERS).count(), 1, "{log}");
}

#[test]
fn a_consumer_that_cannot_get_the_queue_because_of_another_service_is_told_of() {
    needs!(root());
    let uid = new_user();
    let (_other, end) = crowded_service(uid);
    let mut acceptor = start_as(uid, "ulimit -n 20; exec fdaccept --bind ./q 127.0.0.1:0");
    let queue = acceptor.names.text("q");
    let _pool = Pool::on(&queue).slots(1, ["cat"]).start();
    let line = acceptor.line("cannot hand out the queue");
    assert!(
        line.contains(OTHERS) && line.ends_with("; consumers wait"),
        "{line}"
    );
    let client = acceptor.client();
    end();
    acceptor.line("fdaccept: the queue is handed out again");
    client.expect_echo("hello");
    let log = acceptor.stop();
    assert_eq!(log.matches("cannot hand out").count(), 1, "{log}");
}

#[test]
fn a_consumer_with_a_ticket_waits_while_another_service_has_too_many_on_their_way() {
    needs!(root());
    let uid = new_user();
    let (_other, end) = crowded_service(uid);
    let text = "ulimit -n 20; fdaccept 127.0.0.1:0 | fdpool 1 -- cat";
    let mut acceptor = start_as(uid, text);
    acceptor.line("cannot hand out the queue");
    end();
    acceptor.line("fdaccept: the queue is handed out again");
    acceptor.expect_echo();
}

const LIMITS: &str = "sh -c 'ulimit -Sn; ulimit -Hn'";

#[test]
fn the_soft_limit_is_raised_for_fdaccept_alone() {
    let acceptor = start(&format!(
        "ulimit -Sn 50; ulimit -Hn 100; exec fdaccept 127.0.0.1:0 -- fdpool 1 -- {LIMITS}"
    ));
    assert_eq!(exchange(acceptor.port, b""), b"50\n100\n");
    let own = limits(acceptor.pid());
    assert_eq!(own, ("100".to_owned(), "100".to_owned()));
    let pool = acceptor.children().pop().unwrap();
    assert_eq!(limits(pool), ("50".to_owned(), "100".to_owned()));
}

#[test]
fn a_pool_has_the_limit_that_it_was_given() {
    let acceptor = start(&format!(
        "ulimit -Sn 50; ulimit -Hn 100; fdaccept 127.0.0.1:0 | fdpool 1 -- {LIMITS}"
    ));
    assert_eq!(exchange(acceptor.port, b""), b"50\n100\n");
}

#[test]
fn fdaccept_closes_its_copy_of_each_connection() {
    let acceptor = Fdaccept::cats().listen(ADDRESS).listen("./s").start();
    let before = settled(acceptor.pid());
    for number in 0..500 {
        let number = number.to_string();
        acceptor.client().expect_echo(&number);
    }
    for _ in 0..50 {
        Client::connect_unix(acceptor.names.file("s")).expect_echo("x");
    }
    assert_eq!(settled(acceptor.pid()), before);
}

#[test]
fn a_shortage_that_a_stop_ends_leaves_fdaccept_idle() {
    let prlimit = needs!(peer("prlimit"));
    let stubborn = sh_c("trap '' TERM; while :; do sleep 1; done");
    let mut acceptor = Fdaccept::chain(stubborn).args(["--grace", "0.1"]).start();
    let (pid, port) = (acceptor.pid(), acceptor.port);
    let _lift = leave_none(&prlimit, pid);
    let _client = connect(port);
    acceptor.line("cannot accept: Too many open files");
    acceptor.term();
    until("the end of the grace", || {
        TcpStream::connect(("127.0.0.1", port)).is_err()
    });
    // The pause of the shortage ends in the first second.
    are_idle(&[pid]);
    are_idle(&[pid]);
}
