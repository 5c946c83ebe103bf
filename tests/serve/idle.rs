//! `fdpool --exit-idle`, however the pool got its queue. That it does not fire while something is
//! served, and that nothing is lost, is in replacement.rs.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::*;
use nix::sys::signal::{Signal, kill};

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
        let mut command = script("sh", &text.replace("CREW", crew));
        let mut process = Process::start(command.current_dir(&dir));
        process.line(IDLE);
        assert!(start.elapsed() >= Duration::from_millis(500));
        let (status, log) = process.finish();
        assert_eq!(status.code(), Some(0), "{text}: {log}");
    }
}

#[test]
fn a_pool_behind_a_pipe_ends_and_fdaccept_with_it() {
    assert_ends("fdaccept 127.0.0.1:0 | fdpool --exit-idle 0.5 CREW");
}

#[test]
fn a_pool_in_a_chain_ends_and_fdaccept_with_it() {
    assert_ends("exec fdaccept 127.0.0.1:0 -- fdpool --exit-idle 0.5 CREW");
}

#[test]
fn a_pool_with_a_name_of_its_own_ends() {
    assert_ends("exec fdpool --bind ./inbox --exit-idle 0.5 CREW");
}

#[test]
fn a_pool_that_finds_nobody_at_a_name_ends() {
    assert_ends("exec fdpool --connect ./queue --exit-idle 0.5 CREW");
}

#[test]
fn workers_that_never_are_ready_end() {
    assert_ends(
        "fdaccept 127.0.0.1:0 | fdpool --exit-idle 0.5 --worker --ready-fd 3 1 -- sleep 100 # CREW",
    );
}

#[test]
fn the_time_begins_when_the_queue_is_had() {
    // The shell sends its ticket only when it has read a line.
    let text = "{ read -r go; exec fdaccept 127.0.0.1:0; } | fdpool --exit-idle 1 1 -- cat";
    let mut command = script("sh", text);
    let mut process = Process::start(command.stdin(std::process::Stdio::piped()));
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
    let dir = tempfile::tempdir().unwrap();
    let busy = "i=0; while [ $i -lt 1000000 ]; do i=$((i+1)); done";
    let text = format!("(sh -c '{busy}; echo done >./end' &); exec sleep 100");
    let mut command = program("fdpool");
    command.args([
        "--connect",
        "./queue",
        "--exit-idle",
        "0.5",
        "1",
        "--worker",
        "--",
    ]);
    command.args(["sh", "-c", &text]).current_dir(&dir);
    let mut process = Process::start(&mut command);
    // Nobody is at the name, so there is no worker yet; fdaccept brings it.
    let mut acceptor = program("fdaccept");
    acceptor.args(["--bind", "./queue", "127.0.0.1:0"]);
    let mut acceptor = Process::start(acceptor.current_dir(&dir));
    acceptor.port();
    until("the worker", || !children(process.pid()).is_empty());
    process.line(IDLE);
    assert!(dir.path().join("end").exists(), "the child was cut off");
}

#[test]
fn the_first_signal_after_it_is_no_second_one() {
    let names = Names::new();
    let mut acceptor = program("fdaccept");
    let mut acceptor = Process::start(acceptor.args(["--bind", &names.path(), "127.0.0.1:0"]));
    let port = acceptor.port();
    let mut pool: Command = program("fdpool");
    pool.args([
        "--connect",
        &names.path(),
        "--exit-idle",
        "0.5",
        "1",
        "--worker",
        "--",
    ]);
    let mut pool = Process::start(pool.args(["sh", "-c", WORKER]));
    let mut client = connect(port);
    let echo = |client: &mut TcpStream| {
        client.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
    };
    echo(&mut client);
    // Workers that do nothing are idle, also with a connection in hand, which they may finish.
    pool.line(IDLE);
    kill(pool.pid(), Signal::SIGTERM).unwrap();
    echo(&mut client);
    client.shutdown(Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    let (status, log) = pool.finish();
    assert_eq!(status.code(), Some(0), "{log}");
}
