//! `--rate`: how many are accepted in a time.

use std::io::Write;
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

// Only clients that are let in count.

/// Checks that 20 clients from 127.0.0.9, which are refused, take nothing from a rate of 2 clients in
/// 1000 seconds: 2 others are served at once, and a third waits.
#[track_caller]
fn assert_refused_for_free(options: &str, client: impl Fn(&Acceptor) -> Client) {
    let fdaccept = Fdaccept::bound().options(options);
    let acceptor = fdaccept.args(["--rate", "2/1000"]).start();
    let receiver = acceptor.receiver();
    for _ in 0..20 {
        if let Ok(refused) = acceptor.try_client_from([127, 0, 0, 9]) {
            // Without a PROXY header.
            let _ = (&refused.0).write_all(b"nonsense\r\n");
            refused.expect_closed();
        }
    }
    let _clients = [(); 2].map(|()| client(&acceptor));
    let _taken = [(); 2].map(|()| take(&receiver));
    let _third = client(&acceptor);
    nothing_comes(&receiver);
}

#[test]
fn a_client_that_a_rule_denies_takes_nothing_from_the_rate() {
    assert_refused_for_free("--deny 127.0.0.9", Acceptor::client);
}

/// A client behind a proxy.
fn proxied(acceptor: &Acceptor) -> Client {
    let client = acceptor.client();
    client.send("PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n");
    client
}

const PROXY: &str = "--proxy-protocol v1 --proxy-from 127.0.0.1 --proxy-from 127.0.0.9";

#[test]
fn a_client_without_a_proxy_header_takes_nothing_from_the_rate() {
    assert_refused_for_free(PROXY, proxied);
}

#[test]
fn a_client_beyond_its_limit_takes_nothing_from_the_rate() {
    let options = ["--max-per-source", "1", "--rate", "2/1000"];
    let acceptor = limited(&options);
    let receiver = acceptor.receiver();
    let _first = acceptor.client();
    let _taken = take(&receiver);
    for _ in 0..20 {
        is_reset(acceptor.try_client());
    }
    let _second = acceptor.client_from([127, 0, 0, 2]);
    let _taken = (_taken, take(&receiver));
    let _third = acceptor.client_from([127, 0, 0, 3]);
    nothing_comes(&receiver);
}

#[test]
fn the_rate_holds_for_clients_whose_proxy_headers_come_at_once() {
    let mut acceptor = limited(&[&["--rate", "2/1000"], &*split(PROXY)].concat());
    let receiver = acceptor.receiver();
    let clients = [(); 5].map(|()| acceptor.client());
    acceptor.until_counted("accepted", 5);
    acceptor.at_once(&[], || {
        for client in &clients {
            client.send("PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n");
        }
    });
    let _taken = [(); 2].map(|()| take(&receiver));
    nothing_comes(&receiver);
    is_idle(acceptor.pid());
}

fn split(options: &str) -> Vec<&str> {
    options.split(' ').collect()
}
