//! The watchdog of a service manager (`WATCHDOG_USEC`), as fdpool answers it.

use std::process::Stdio;

use crate::support::*;

/// As a service of this manager, with a watchdog.
fn watched(pool: Fdpool, manager: &Manager) -> Fdpool {
    let pool = pool.env("NOTIFY_SOCKET", &manager.name);
    pool.env("WATCHDOG_USEC", OFTEN)
}

/// A worker in sh.
const LOOP: &str = "while fdrecv -- cat || [ $? -ne 69 ]; do :; done";

#[track_caller]
fn is_heard_again_and_again(crew: impl FnOnce(Fdpool) -> Fdpool) {
    let (manager, acceptor) = (Manager::at_path(), Fdaccept::bound().start());
    let pool = watched(crew(Pool::on(&acceptor)), &manager).start();
    let client = acceptor.served_client();
    manager.until_beats();
    // It waits for the client when it stops.
    pool.term();
    manager.until_beats();
    client.expect_served();
}

#[test]
fn the_manager_of_slots_is_told_that_they_are_supervised() {
    is_heard_again_and_again(|pool| pool.slots(1, ["cat"]));
}

#[test]
fn the_manager_of_workers_is_told_that_they_are_supervised() {
    let stubborn = format!("trap : TERM; {LOOP}");
    is_heard_again_and_again(|pool| pool.workers(1, sh_c(&stubborn)));
}

#[test]
fn the_manager_of_a_pool_that_waits_for_its_name_is_told_that_it_is_alive() {
    let manager = Manager::at_name();
    let names = Names::new();
    let pool = Pool::on(&names.path()).slots(1, ["cat"]);
    let _pool = watched(pool, &manager).start();
    manager.until_beats();
}

#[test]
fn the_manager_of_a_pool_that_waits_for_its_first_ticket_is_told_that_it_is_alive() {
    let manager = Manager::at_name();
    let (reader, _writer) = std::io::pipe().unwrap();
    let pool = Pool::on(&reader).slots(1, ["cat"]);
    let mut pool = watched(pool, &manager).start();
    manager.until_beats();
    // A stop ends the wait.
    pool.stop();
}

#[test]
fn a_pool_that_does_not_run_says_nothing() {
    let (manager, acceptor) = (Manager::at_name(), Fdaccept::bound().start());
    let pool = watched(Pool::on(&acceptor).slots(1, ["cat"]), &manager).start();
    manager.until_beats();
    pool.freeze();
    let _ = manager.rest();
    stays("silence", || !manager.has_something());
    pool.thaw();
    manager.until_beats();
}

#[test]
fn the_watchdog_of_another_process_is_told_nothing_nor_is_a_manager_without_one() {
    for (name, value) in [("WATCHDOG_PID", "1"), ("WATCHDOG_USEC", "0")] {
        let (manager, acceptor) = (Manager::at_path(), Fdaccept::bound().start());
        let pool = Pool::on(&acceptor).slots(1, ["env"]);
        let mut pool = watched(pool, &manager).env(name, value).start();
        let found = String::from_utf8(exchange(acceptor.port, b"")).unwrap();
        assert!(found.contains("PROTO=TCP"));
        assert!(
            !found.contains("WATCHDOG") && !found.contains("NOTIFY"),
            "{found}"
        );
        pool.stop();
        assert!(!manager.has_something());
    }
}

#[test]
fn a_manager_out_of_reach_is_said_and_keeps_nobody_from_being_served() {
    let acceptor = Fdaccept::bound().start();
    let names = Names::new();
    let nobody = names.text("nobody");
    let pool = Pool::on(&acceptor)
        .slots(1, ["cat"])
        .env("WATCHDOG_USEC", OFTEN);
    let mut pool = pool
        .env("NOTIFY_SOCKET", &nobody)
        .stdout(Stdio::null())
        .start();
    acceptor.expect_echo();
    pool.line(&format!(
        "NOTIFY_SOCKET: cannot reach the service manager at {nobody}: No such file or directory"
    ));
}
