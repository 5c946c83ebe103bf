//! `--rate`: how many are accepted in a time.

use std::time::{Duration, Instant};

use super::*;

/// Takes `count` connections of clients that came after `start`, of which `at_once` may come in
/// each `interval` milliseconds.
#[track_caller]
fn come_no_faster(receiver: &Receiver, start: Instant, count: u32, at_once: u32, interval: u64) {
    for number in 0..count {
        take(receiver);
        let passed = start.elapsed();
        let earliest = Duration::from_millis(interval) * (number / at_once);
        assert!(passed >= earliest, "{number} after {passed:?}");
    }
}

#[test]
fn no_more_are_accepted_in_a_time_than_the_rate_says_and_the_others_wait() {
    let acceptor = limited(&["--rate", "3/0.3"]);
    let receiver = acceptor.receiver();
    let start = Instant::now();
    let _clients = acceptor.clients(12);
    come_no_faster(&receiver, start, 12, 3, 300);
}

#[test]
fn the_rate_counts_over_all_listeners() {
    let fdaccept = Fdaccept::bound().args(["--rate", "2/0.4"]);
    let acceptor = fdaccept.listen(ADDRESS).listen(ADDRESS).start();
    let receiver = acceptor.receiver();
    let start = Instant::now();
    let clients = (0..6).map(|n| Client::connect(acceptor.ports[n % 2]));
    let _clients: Vec<_> = clients.collect();
    come_no_faster(&receiver, start, 6, 2, 400);
}

#[test]
fn the_rate_recovers_after_a_flood_of_clients_that_went_away() {
    let acceptor = limited(&["--rate", "5/0.1"]);
    let _pool = acceptor.pool_of(2, "cat");
    for _ in 0..3 {
        drop(acceptor.clients(30));
        assert_eq!(exchange(acceptor.port, b"hello"), b"hello");
    }
}

#[test]
fn the_rate_does_not_depend_on_how_long_services_last() {
    let acceptor = limited(&["--rate", "2/0.2"]);
    let receiver = acceptor.receiver();
    let _clients = acceptor.clients(6);
    // None of them ends.
    let taken: Vec<_> = (0..6).map(|_| take(&receiver)).collect();
    assert_eq!(taken.len(), 6);
}

cases! {
    assert_waits_idle;
    waiting_for_the_rate_uses_no_cpu: &["--rate", "1/1000"];
}

#[test]
fn a_stop_lets_the_backlog_in_as_the_rate_allows() {
    let mut acceptor = limited(&["--rate", "1/0.2"]);
    let _pool = acceptor.pool_of(4, "echo 0 0; exec cat");
    let clients = acceptor.clients(4);
    acceptor.term();
    for client in clients {
        Session::of(client).finish();
    }
    acceptor.expect_exit(0);
}

#[test]
fn a_stop_does_not_wait_for_the_rate_when_nobody_waits() {
    let fdaccept = Fdaccept::bound().options("--rate 1/1000 --grace 3600");
    let mut acceptor = fdaccept.listen(ADDRESS).listen("./s").start();
    let _pool = acceptor.pool_of(1, "cat");
    acceptor.served_client().finish();
    acceptor.stop();
}

#[test]
fn a_stop_closes_the_listeners_where_nobody_waits_while_the_rate_is_reached() {
    let fdaccept = Fdaccept::bound().options("--rate 1/1000 --grace 3600");
    let mut acceptor = fdaccept.listen(ADDRESS).listen("./s").start();
    let _pool = acceptor.pool_of(1, "cat");
    acceptor.served_client().finish();
    let waiting = acceptor.client();
    acceptor.term();
    let path = acceptor.names.file("s");
    until("the end of the other listener", || !path.exists());
    is_left_waiting(&waiting);
    acceptor.stop();
}
