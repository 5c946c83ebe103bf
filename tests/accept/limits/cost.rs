//! What limits cost: descriptors, time, and what happens when descriptors are short.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};

use super::*;

#[test]
fn the_descriptors_of_fdaccept_are_as_many_as_before_when_services_have_ended() {
    let options = ["--max", "50", "--max-per-source", "40"];
    let (acceptor, _pool) = served(&options, 60);
    acceptor.session().finish();
    let pid = acceptor.pid();
    let before = settled(pid);
    for round in 0..3 {
        let session = |n: u8| Session::of(acceptor.client_from([127, 0, round, 1 + n % 4]));
        let sessions: Vec<_> = (0..20).map(session).collect();
        assert!(descriptors(pid).len() > before);
        sessions.into_iter().for_each(Session::finish);
        until("the end of all leases", || descriptors(pid).len() <= before);
    }
}

#[test]
fn ten_thousand_leases_cost_no_time_while_nothing_happens_and_all_end() {
    const MANY: usize = 10_000;
    raise_limit();
    let (most, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // One for each here, and one in fdaccept.
    let many = MANY.min((most as usize).saturating_sub(1000));
    assert!(many > 0);
    let acceptor = limited(&["--max", "1000000"]);
    let receiver = acceptor.receiver();
    let pid = acceptor.pid();
    let lease = || {
        let _client = acceptor.client();
        let taken = take(&receiver);
        let number = taken.number().unwrap();
        (taken.lease.unwrap(), number)
    };
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
    assert_eq!(leases.last().unwrap().1, leases.len());
    // The last batch would cost ten times as much if fdaccept looked at each lease.
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
fn leave(prlimit: &Path, pid: Pid, left: usize) -> impl Fn() + use<'_> {
    settled(pid);
    let open = descriptors(pid);
    let is_open = |number: &i32| open.iter().any(|(other, _)| other == number);
    let free = (0..).filter(|number| !is_open(number)).nth(left).unwrap();
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = text.lines().find(|line| line.starts_with("Max open files"));
    let soft = line.unwrap().split_whitespace().nth(3).unwrap().to_owned();
    limit(prlimit, pid, &format!("{free}:"));
    move || limit(prlimit, pid, &format!("{soft}:"))
}

#[test]
fn clients_wait_while_there_is_no_descriptor_for_a_lease() {
    let prlimit = needs!(peer("prlimit"));
    for left in 0..=4 {
        let (mut acceptor, _pool) = served(&["--max", "1000"], 20);
        let _first = acceptor.session();
        let restore = leave(&prlimit, acceptor.pid(), left);
        let clients = acceptor.clients(10);
        let line = acceptor.line("cannot accept");
        assert!(line.contains("Too many open files"), "{line}");
        if left == 1 {
            is_idle(acceptor.pid());
        }
        restore();
        for client in clients {
            Session::of(client).finish();
        }
    }
}

#[test]
fn the_end_of_services_gives_descriptors_for_further_leases() {
    let text = "ulimit -n 20; exec fdaccept --max 1000 127.0.0.1:0 -- fdpool 8 -- cat";
    let acceptor = Fdaccept::sh(text).start();
    Crowd::connect(acceptor.port, 100).expect_served();
}

/// fdaccept with few descriptors, as `text` says, and a crowd that has used them up.
fn short(text: &str) -> (Acceptor, Crowd) {
    let mut acceptor = Fdaccept::sh(text).start();
    let crowd = Crowd::connect(acceptor.port, 100);
    acceptor.line("cannot accept");
    (acceptor, crowd)
}

#[test]
fn a_consumer_finds_its_way_when_leases_have_used_up_the_descriptors() {
    let text = "ulimit -n 32; exec fdaccept --max 1000 --bind ./queue 127.0.0.1:0";
    let (acceptor, crowd) = short(text);
    let _pool = Pool::on(&acceptor.names.path()).slots(4, ["cat"]).start();
    crowd.expect_served();
}

#[test]
fn a_consumer_finds_its_way_by_ticket_when_leases_have_used_up_the_descriptors() {
    let text = "ulimit -n 32; fdaccept --max 1000 127.0.0.1:0 | {
        until [ -e go ]; do sleep 0.02; done; exec fdpool 4 -- cat; }";
    let (acceptor, crowd) = short(text);
    std::fs::write(acceptor.names.file("go"), "").unwrap();
    crowd.expect_served();
}

/// How long fdaccept with so many descriptors, and 4 slots, take to serve 200 clients.
#[track_caller]
fn time_with_descriptors(most: usize) -> Duration {
    let text = format!("ulimit -n {most}; fdaccept --max 100 127.0.0.1:0 | fdpool 4 -- cat");
    let acceptor = Fdaccept::sh(&text).start();
    let start = Instant::now();
    Crowd::connect(acceptor.port, 200).expect_served();
    start.elapsed()
}

#[test]
fn the_end_of_a_service_ends_a_shortage_at_once() {
    time_with_descriptors(20);
    let (short, enough) = (time_with_descriptors(22), time_with_descriptors(200));
    // A pause for each shortage would take 15 seconds.
    let allowed = enough * 3 + Duration::from_secs(5);
    assert!(short < allowed, "{short:?} instead of {enough:?}");
}
