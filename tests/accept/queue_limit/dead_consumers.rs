//! What becomes of the queue when its consumers die.

use nix::sys::socket::SockType;

use super::*;

const LIMIT: [&str; 2] = ["--queue", "3"];

/// What waits outlives the consumers where the queue is fdaccept's own.
#[track_caller]
fn assert_outlives_consumers(form: Form) {
    let (mut site, mut clients) = Site::filled(form, 1, &LIMIT, 8, 3);
    site.kill_pool();
    site.stays_told(told(3, 3, 0));
    // The next pool dies with a connection in hand.
    site.bring_pool();
    site.until_told(told(4, 4, 1));
    let slot = site.slots()[0];
    until("the handler", || is_serving(slot));
    site.kill_pool();
    clients.remove(0).expect_closed();
    site.stays_told(told(4, 4, 1));
    site.bring_pool();
    clients.into_iter().for_each(serve);
    site.until_told(told(8, 8, 8));
    let (log, last) = site.stop(0);
    assert_eq!(last, told(8, 8, 8), "{log}");
}

cases! {
    assert_outlives_consumers;
    what_waits_outlives_the_consumers_of_a_pipe: Form::Pipe;
    what_waits_outlives_the_consumers_at_a_name: Form::Bind;
}

/// Has the last consumers of a full queue die. Checks the end of fdaccept, its last counters and
/// its last line.
#[track_caller]
fn assert_end_after_consumers(form: Form, status: i32, counters: Told, last: &str) -> String {
    let (mut site, clients) = Site::filled(form, 1, &LIMIT, 5, 3);
    drop(site.read_end.take());
    site.kill_pool();
    let log = site.ends_with(status, counters, last);
    clients.into_iter().for_each(Client::expect_closed);
    log
}

const THREE_LEFT: &str = "fdaccept: 3 connections were accepted and not taken";

/// How many were taken is not known then.
const UNKNOWN: Told = Told {
    accepted: 3,
    passed: 3,
    taken: None,
};

cases! {
    assert_end_after_consumers;
    what_waited_for_the_last_readers_of_a_pipe_is_told: Form::Pipe, 1, told(3, 3, 0),
        THREE_LEFT;
    what_a_command_leaves_in_a_full_queue_is_told: Form::Chain, 128 + 9, UNKNOWN, THREE_LEFT;
}

#[test]
fn what_consumers_leave_in_a_socket_on_standard_output_is_told() {
    for kind in [SockType::Stream, SockType::SeqPacket] {
        assert_end_after_consumers(Form::Output(kind), 1, UNKNOWN, THREE_LEFT);
    }
}

#[test]
fn what_consumers_leave_in_a_socket_at_a_descriptor_is_told() {
    for kind in [SockType::Stream, SockType::SeqPacket] {
        let expected = "fdaccept: nobody takes connections from the queue any more";
        let log = assert_end_after_consumers(Form::QueueFd(kind), 1, UNKNOWN, expected);
        assert!(log.lines().any(|line| is_left(line, 3)), "{log}");
    }
}

/// What waited is lost with the owner of the name, but not the room.
#[test]
fn there_is_room_for_others_when_the_owner_of_a_name_has_died() {
    let (mut site, mut clients) = Site::filled(Form::Connect, 1, &LIMIT, 8, 3);
    site.kill_pool();
    let rest = clients.split_off(3);
    clients.into_iter().for_each(Client::expect_closed);
    // One connection is in hand until a pool owns the name again.
    until("the next", || site.ask().accepted == 4);
    is_idle(site.acceptor.pid());
    site.bring_pool();
    until("what may wait", || site.ask().accepted == 7);
    rest.into_iter().for_each(serve);
    let (log, last) = site.stop(0);
    assert_eq!((last.accepted, last.passed), (8, 8), "{log}");
}

#[test]
fn what_is_lost_with_the_owner_of_a_name_is_not_told_as_taken() {
    let (mut site, clients) = Site::filled(Form::Connect, 1, &LIMIT, 4, 3);
    site.kill_pool();
    until("the next", || site.ask().accepted == 4);
    let taken = |told: Told| told.taken.unwrap_or_default();
    let now = site.ask();
    assert_eq!(taken(now), 0, "{now:?}");
    site.bring_pool();
    clients.into_iter().skip(3).for_each(serve);
    let (log, last) = site.stop(0);
    assert!(taken(last) <= 1, "{log}");
}

#[test]
fn what_is_taken_while_fdaccept_stands_still_makes_room() {
    for form in [Form::Chain, Form::Bind, Form::Connect] {
        let (mut site, clients) = Site::filled(form, 4, &LIMIT, 10, 3);
        site.acceptor.freeze();
        site.resume();
        until("three handlers", || {
            let slots = site.slots();
            slots.into_iter().filter(|slot| is_serving(*slot)).count() == 3
        });
        site.acceptor.thaw();
        site.stays_told(told(7, 7, 4));
        clients.into_iter().for_each(serve);
    }
}
