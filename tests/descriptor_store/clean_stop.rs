//! A clean stop.

use super::*;

#[test]
fn the_port_stays_the_same_over_a_clean_stop() {
    for form in FORMS {
        let keeper = Keeper::of(form);
        let (mut process, port) = keeper.first();
        let _pool = keeper.serve();
        is_served(port);
        process.stop();
        let crowd = Crowd::connect(port, 5);
        let _process = keeper.again(port);
        crowd.expect_served();
        keeper.expect_kept(1);
    }
}

#[test]
fn what_nobody_has_taken_at_a_clean_stop_waits_for_the_next_start() {
    let keeper = Keeper::new();
    let arguments = ["--grace", "0.1", ADDRESS];
    let mut process = keeper.start(&arguments);
    let port = process.port();
    let crowd = queued(&mut process, port, 5);
    // Nothing is lost, so this is no failure.
    let log = process.stop();
    assert!(!log.contains("not taken"), "{log}");
    let _process = keeper.start(&arguments);
    keeper.serve_once(crowd, 5);
}

#[test]
fn a_queue_that_was_closed_for_its_command_is_replaced() {
    let keeper = Keeper::of(Form::Chain);
    keeper.open();
    let (mut process, port) = keeper.first();
    for round in 1..4 {
        is_served(port);
        process.stop();
        process = keeper.again(port);
        keeper.expect_kept(1);
        let told = format!("FDSTOREREMOVE=1\nFDNAME={READ_END}");
        assert_eq!(keeper.times_told(&told), round);
    }
    is_served(port);
}

#[test]
fn what_a_command_leaves_when_it_ends_by_itself_waits_for_the_next_one() {
    let keeper = Keeper::of(Form::Chain);
    let leave = "until [ -e \"$OPEN\" ]; do sleep 0.02; done; exit 7";
    let mut process = keeper.start_all(&["--store", ADDRESS, "--", "sh", "-c", leave]);
    let port = process.port();
    let crowd = queued(&mut process, port, 5);
    keeper.open();
    let log = process.expect_end(7);
    assert!(!log.contains("not taken"), "{log}");
    let _process = keeper.again(port);
    keeper.expect_served_once(crowd, 5);
}
