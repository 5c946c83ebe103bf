//! accept(2) fails, as where a filter of the system forbids it: once, for a while, or for good.

use std::os::fd::AsRawFd;

use nix::sys::socket::{SockType, UnixAddr, connect as connect_to};

use crate::support::*;

/// `fdpool 2 -- cat` behind an fdaccept whose calls of accept(2) with the numbers `which` fail with
/// `error`.
fn failing(error: &str, which: &str) -> Option<Fdaccept> {
    let traced = traced(&format!(
        "-o /dev/null -e inject=accept4:error={error}:when={which}"
    ))?;
    let chain = Fdaccept::behind(&traced);
    Some(chain.words("fdpool 2 -- cat"))
}

/// Checks that fdaccept says once that it cannot accept, uses no CPU, and can be stopped.
#[track_caller]
fn assert_a_lasting_failure_is_waited_out(error: &str, cause: &str) {
    let fdaccept = needs!(failing(error, "1+"));
    let mut acceptor = fdaccept.options("--grace 3600").start();
    let client = acceptor.client();
    let address = acceptor.addresses[0].clone();
    let expected =
        format!("fdaccept: cannot accept on {address}: {cause}; connections wait until it can");
    assert_eq!(acceptor.line("cannot accept"), expected);
    is_idle(acceptor.pid());
    assert!(acceptor.counted("failed") > 3);
    client.expect_waiting();
    // Nobody will let that client in.
    let log = acceptor.stop();
    assert_eq!(log.matches("cannot accept").count(), 1, "{log}");
}

cases! {
    assert_a_lasting_failure_is_waited_out;
    a_filter_that_refuses_every_connection_is_waited_out: "EPERM", "Operation not permitted";
    a_policy_that_denies_every_connection_is_waited_out: "EACCES", "Permission denied";
    a_network_that_stays_down_is_waited_out: "ENETDOWN", "Network is down";
    a_protocol_that_fails_each_time_is_waited_out: "EPROTO", "Protocol error";
    clients_that_are_gone_each_time_are_waited_out: "ECONNABORTED", "Software caused connection abort";
    an_error_that_nobody_foresaw_is_waited_out: "ENOSR", "Out of streams resources";
}

#[test]
fn a_listener_that_seems_to_be_ready_and_never_is_costs_no_cpu() {
    let mut acceptor = needs!(failing("EAGAIN", "1+")).start();
    let _client = acceptor.client();
    acceptor.line("cannot accept on");
    is_idle(acceptor.pid());
    acceptor.stop();
}

#[test]
fn the_end_of_a_lasting_failure_is_logged_and_everybody_is_served() {
    let mut acceptor = needs!(failing("EPERM", "1..6")).start();
    let crowd = Crowd::connect(acceptor.port, 10);
    acceptor.line("cannot accept on");
    let again = format!("fdaccept: accepts on {} again", acceptor.addresses[0]);
    assert_eq!(acceptor.line("again"), again);
    crowd.expect_served();
    assert_eq!(acceptor.counted("failed"), 6);
}

#[test]
fn a_few_failures_cost_nothing_and_are_counted() {
    let mut acceptor = needs!(failing("ECONNABORTED", "1..3")).start();
    Crowd::connect(acceptor.port, 5).expect_served();
    assert_eq!(acceptor.counted("failed"), 3);
    assert!(!acceptor.log().contains("cannot accept"));
}

#[test]
fn failures_that_successes_part_are_no_lasting_failure() {
    let mut acceptor = needs!(failing("ECONNABORTED", "1+2")).start();
    Crowd::connect(acceptor.port, 20).expect_served();
    assert!(acceptor.counted("failed") >= 20);
    assert!(!acceptor.log().contains("cannot accept"));
}

/// Checks that fdaccept rests while its door lets no consumer in.
#[track_caller]
fn assert_a_shut_door_keeps_nobody_busy(error: &str) {
    let inject = format!("-o /dev/null -e inject=accept4:error={error}");
    let fdaccept = Fdaccept::behind(&needs!(traced(&inject)));
    let acceptor = fdaccept.args(["--bind", "./queue"]).start();
    let consumer = unix_socket(SockType::SeqPacket);
    let door = UnixAddr::new(acceptor.names.path().as_str()).unwrap();
    connect_to(consumer.as_raw_fd(), &door).unwrap();
    let mut looks = 0;
    until("a rest", || {
        let is_asleep = state(acceptor.pid()) == Some('S');
        looks = if is_asleep { looks + 1 } else { 0 };
        looks == 10
    });
}

cases! {
    assert_a_shut_door_keeps_nobody_busy;
    a_consumer_that_is_gone_each_time_keeps_nobody_busy: "ECONNABORTED";
    a_consumer_that_seems_to_be_there_and_never_is_keeps_nobody_busy: "EAGAIN";
}
