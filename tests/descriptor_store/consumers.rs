//! Consumers that stop, or outlive the manager's store.

use super::*;

/// A pool of one slot, once it has a client, which it serves by [`ECHO`] when the test opens it.
fn busy_pool(keeper: &Keeper, options: &[&str]) -> Process {
    let handler = format!("until [ -e \"$OPEN\" ]; do sleep 0.02; done; {ECHO}");
    let pool = keeper.pool(options, 1, &handler);
    until("a handler", || {
        let slots = pool.children();
        slots.iter().any(|slot| !children(*slot).is_empty())
    });
    pool
}

/// As when the service is stopped for good, which is when systemd empties its store.
#[test]
fn consumers_serve_the_rest_when_the_manager_lets_go() {
    let keeper = Keeper::new();
    let (mut process, port) = keeper.first();
    let crowd = queued(&mut process, port, 8);
    let mut once = busy_pool(&keeper, &["--once"]);
    let mut stays = busy_pool(&keeper, &[]);
    crash(process);
    keeper.lose("");
    keeper.open();
    keeper.expect_served_once(crowd, 8);
    once.expect_exit(0);
    let (_process, port) = keeper.first();
    is_served(port);
    assert!(stays.is_running());
}

#[test]
fn a_crash_is_no_end_for_a_consumer_that_ends_with_fdaccept() {
    let keeper = Keeper::new();
    let (mut process, port) = keeper.first();
    let mut pool = keeper.pool(&["--once"], 1, ECHO);
    for _ in 0..3 {
        is_served(port);
        crash(process);
        process = keeper.again(port);
    }
    is_served(port);
    crash(process);
    assert!(pool.is_running(), "{}", pool.log());
    keeper.lose("");
    pool.expect_exit(0);
}

#[test]
fn a_consumer_that_stops_while_nobody_accepts_leaves_the_rest_to_the_next_one() {
    let keeper = Keeper::new();
    let (mut process, port) = keeper.first();
    let crowd = queued(&mut process, port, 8);
    let mut pool = busy_pool(&keeper, &[]);
    crash(process);
    pool.term();
    keeper.open();
    pool.expect_exit(0);
    let _process = keeper.start(&[ADDRESS]);
    keeper.serve_once(crowd, 8);
}
