//! `fdpool --exit-idle`, however the pool got its queue. That it does not fire while something is
//! served, and that nothing is lost, is in replacement.rs.

use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::*;

const IDLE: &str = "stopping";

/// A worker that finishes what it has when it is told to go, in sh.
const WORKER: &str = "trap stop=1 TERM; while [ -z \"$stop\" ]; do fdrecv -- cat || exit; done";

/// What makes a pool one of slots, and one of workers.
const CREWS: [&str; 2] = [
    "1 -- cat",
    "1 --worker -- sh -c 'while fdrecv -- cat; do :; done'",
];

/// A pool that is alone with its queue ends, and not before its time.
#[track_caller]
fn assert_ends(text: &str) {
    for crew in CREWS {
        let dir = tempfile::tempdir().unwrap();
        let start = Instant::now();
        let text = text.replace("CREW", crew);
        let mut process = sh(&text).current_dir(&dir).start();
        process.line(IDLE);
        assert!(start.elapsed() >= Duration::from_millis(500));
        process.expect_end(0);
    }
}

cases! {
    assert_ends;
    a_pool_behind_a_pipe_ends_and_fdaccept_with_it:
        "fdaccept 127.0.0.1:0 | fdpool --exit-idle 0.5 CREW";
    a_pool_in_a_chain_ends_and_fdaccept_with_it:
        "exec fdaccept 127.0.0.1:0 -- fdpool --exit-idle 0.5 CREW";
    a_pool_with_a_name_of_its_own_ends: "exec fdpool --bind ./inbox --exit-idle 0.5 CREW";
    a_pool_that_finds_nobody_at_a_name_ends: "exec fdpool --connect ./queue --exit-idle 0.5 CREW";
    workers_that_never_are_ready_end: "fdaccept 127.0.0.1:0 | \
        fdpool --exit-idle 0.5 --worker --ready-fd 3 1 -- sleep 100 # CREW";
}

#[test]
fn the_time_begins_when_the_queue_is_had() {
    // The shell sends its ticket only when it has read a line.
    let text = "{ read -r go; exec fdaccept 127.0.0.1:0; } | fdpool --exit-idle 1 1 -- cat";
    let mut process = sh(text).stdin(Stdio::piped()).start();
    // A bounded time that is longer than the pool may be idle.
    std::thread::sleep(Duration::from_millis(1500));
    let start = Instant::now();
    let mut stdin = process.child().stdin.take().unwrap();
    stdin.write_all(b"go\n").unwrap();
    process.line(IDLE);
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[test]
fn what_workers_left_behind_is_not_idle_while_it_works() {
    let names = Names::new();
    // It may be without a processor for a while on a busy machine, but not for as long as it works.
    let busy = "i=0; while [ $i -lt 1500000 ]; do i=$((i+1)); done";
    let text = format!("(sh -c '{busy}; echo done >./end' &); exec sleep 100");
    let pool = Pool::on("./queue").args(["--exit-idle", "2"]);
    let pool = pool.dir(&names.directory).workers(1, sh_c(&text));
    let mut process = pool.start();
    // Nobody is at the name, so there is no worker yet; fdaccept brings it.
    let acceptor = Fdaccept::bound_at("./queue").dir(&names.directory);
    let _acceptor = acceptor.start();
    until("the worker", || !process.children().is_empty());
    process.line(IDLE);
    assert!(names.file("end").exists(), "the child was cut off");
}

#[test]
fn the_first_signal_after_it_is_no_second_one() {
    let acceptor = Fdaccept::bound().start();
    let pool = Pool::on(&acceptor).args(["--exit-idle", "0.5"]);
    let mut pool = pool.workers(1, sh_c(WORKER)).start();
    let client = acceptor.served_client();
    // Workers that do nothing are idle, also with a connection in hand, which they may finish.
    pool.line(IDLE);
    pool.term();
    client.expect_served();
    client.end();
    client.rest();
    pool.expect_end(0);
}
