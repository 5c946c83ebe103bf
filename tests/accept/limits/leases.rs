//! Leases: which process holds them, and until when.

use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use super::*;

/// fdaccept with a limit that no test reaches.
fn leasing() -> Acceptor {
    limited(&LIMIT)
}

fn leased(size: usize) -> (Acceptor, Pool) {
    served(&LIMIT, size)
}

const LIMIT: [&str; 2] = ["--max-per-source", "9"];

#[test]
fn with_a_limit_each_message_carries_the_write_end_of_a_pipe() {
    for option in ["--max", "--max-per-source"] {
        let acceptor = limited(&[option, "9"]);
        let receiver = acceptor.receiver();
        let _clients = acceptor.clients(2);
        let pipe_of = |taken: &Taken| {
            let number = taken.lease.as_ref().unwrap().as_raw_fd();
            let link = std::fs::read_link(format!("/proc/self/fd/{number}")).unwrap();
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap();
            assert!(info.contains("flags:\t02000001\n"), "{info}");
            link.to_str().unwrap().to_owned()
        };
        let (first, second) = (take(&receiver), take(&receiver));
        assert!(pipe_of(&first).starts_with("pipe:"));
        assert_ne!(pipe_of(&first), pipe_of(&second));
    }
}

#[test]
fn a_lease_is_held_until_it_is_closed_whatever_becomes_of_the_connection() {
    let acceptor = leasing();
    let receiver = acceptor.receiver();
    let client = acceptor.client();
    let taken = take(&receiver);
    drop((client, taken.connection));
    are_held(1, || acceptor.count(&receiver));
    drop(taken.lease);
    none_is_held(|| acceptor.count(&receiver));
}

#[test]
fn what_is_written_to_a_lease_does_not_free_it() {
    let acceptor = leasing();
    let receiver = acceptor.receiver();
    let _client = acceptor.client();
    let taken = take(&receiver);
    nix::unistd::write(taken.lease.as_ref().unwrap(), b"free").unwrap();
    are_held(1, || acceptor.count(&receiver));
    is_idle(acceptor.pid());
}

// Pools.

fn further_descriptors(pid: Pid) -> Vec<(i32, String)> {
    let open = descriptors(pid).into_iter();
    open.filter(|(number, _)| *number > 2).collect()
}

fn is_pipe(descriptor: &(i32, String)) -> bool {
    descriptor.1.starts_with("pipe:")
}

#[test]
fn the_slot_of_a_pool_holds_the_lease_and_its_handler_has_none() {
    let (acceptor, pool) = served(&["--max", "9"], 1);
    let session = acceptor.session();
    until_named(session.pid, "cat");
    // What cat opens while it starts it closes again.
    until("a handler with nothing else open", || {
        further_descriptors(session.pid).is_empty()
    });
    // What else the slot has open it shares with the pool.
    let shared = further_descriptors(pool.pid());
    let open = further_descriptors(parent_of(session.pid));
    let is_own = |(_, what): &&(i32, String)| !shared.iter().any(|(_, other)| other == what);
    let own = open.iter().filter(is_own);
    assert_eq!(own.filter(|own| is_pipe(own)).count(), 1, "{open:?}");
}

#[test]
fn a_handler_that_closes_everything_still_counts() {
    let names = Names::new();
    let acceptor = leasing();
    let text = format!(
        "exec 0<&- >&- 2>&-; until [ -e '{}' ]; do sleep 0.02; done",
        names.text("stop")
    );
    // With a copy in the slot, the client would not see it.
    let pool = Pool::on(&acceptor).options("--linger 0");
    let mut pool = pool.slots(1, sh_c(&text)).start();
    assert_eq!(acceptor.client().rest(), "");
    // The slot is busy, so this process is the only consumer.
    let receiver = acceptor.receiver();
    are_held(1, || acceptor.count(&receiver));
    std::fs::write(names.file("stop"), "").unwrap();
    pool.end_by(Signal::SIGTERM);
    none_is_held(|| acceptor.count(&receiver));
}

#[test]
fn a_handler_that_leaves_a_child_in_the_background_counts_until_it_ends() {
    let acceptor = limited(&["--max", "1"]);
    // The child has the connection, and ends with it.
    let _pool = acceptor.pool_of(2, "exec 3<&0; cat <&3 & echo $! 1; exit 0");
    let sessions = [(); 5].map(|()| acceptor.session());
    assert!(sessions.iter().all(|session| is_alive(session.pid)));
    sessions.into_iter().for_each(Session::finish);
}

#[test]
fn a_handler_that_is_killed_frees_its_lease() {
    let (acceptor, _pool) = leased(4);
    let session = acceptor.session();
    are_held(1, || acceptor.count_by_pool());
    kill(session.pid, Signal::SIGKILL).unwrap();
    none_is_held(|| acceptor.count_by_pool());
}

#[test]
fn a_slot_that_is_killed_frees_its_lease() {
    let (acceptor, _pool) = leased(4);
    let session = acceptor.session();
    are_held(1, || acceptor.count_by_pool());
    kill(parent_of(session.pid), Signal::SIGKILL).unwrap();
    none_is_held(|| acceptor.count_by_pool());
    // The session goes on, and does not count.
    session.finish();
}

#[test]
fn a_session_that_outlives_its_pool_still_counts() {
    let (acceptor, mut pool) = leased(1);
    let session = acceptor.session();
    pool.slay();
    let receiver = acceptor.receiver();
    are_held(1, || acceptor.count(&receiver));
    session.finish();
    none_is_held(|| acceptor.count(&receiver));
}

#[test]
fn a_consumer_that_is_killed_with_connections_in_the_queue_frees_nothing_of_them() {
    let acceptor = leasing();
    let mut fdrecv = acceptor.fdrecv(&[], &["sleep", "1000"]);
    let _first = acceptor.client();
    until_named(fdrecv.pid(), "sleep");
    let _second = acceptor.client();
    fdrecv.slay();
    let receiver = acceptor.receiver();
    let _waited = take(&receiver);
    are_held(1, || acceptor.count(&receiver));
}

// Workers.

/// Checks that a worker holds a lease for as long as it serves, and that the lease is free when
/// the client ends, and when the worker is killed.
#[track_caller]
fn assert_worker_holds_its_lease(words: Option<Vec<PathBuf>>) {
    let words = needs!(words);
    let acceptor = leasing();
    let mut worker = Command::new(&words[0]);
    worker.args(&words[1..]).arg(acceptor.name());
    let mut worker = worker.stdin(Stdio::null()).start();
    let client = acceptor.served_client();
    // While the worker serves, this process is the only consumer.
    let receiver = acceptor.receiver();
    are_held(1, || acceptor.count(&receiver));
    let second = acceptor.client();
    drop(take(&receiver));
    assert_eq!(second.rest(), "");
    drop(receiver);
    client.finish();
    // The next client is the only one in service.
    let _next = acceptor.served_client();
    let receiver = acceptor.receiver();
    until("one in service", || acceptor.count(&receiver) == 2);
    worker.slay();
    none_is_held(|| acceptor.count(&receiver));
}

cases! {
    assert_worker_holds_its_lease;
    the_example_of_a_worker_in_python_holds_the_lease: python_worker().map(Vec::from);
    the_example_of_a_worker_in_rust_holds_the_lease: rust_worker().map(|path| vec![path]);
}

#[test]
fn a_worker_of_a_pool_holds_the_lease() {
    let worker = needs!(python_worker());
    let acceptor = limited(&["--max", "1"]);
    let _pool = Pool::on(&acceptor).workers(2, worker).start();
    let first = acceptor.served_client();
    let second = acceptor.client();
    second.send("y");
    is_left_waiting(&second);
    drop(first);
    second.end();
    assert_eq!(second.rest(), "y");
}

// fdrecv.

/// Checks that a command which fdrecv becomes with `options` has its connection at `number`, and
/// the lease besides: one pipe, for writing, and nothing else.
#[track_caller]
fn assert_command_has_lease(options: &[&str], number: i32) {
    let acceptor = leasing();
    let mut fdrecv = acceptor.fdrecv(options, &["sleep", "1000"]);
    let client = acceptor.client();
    let pid = fdrecv.pid();
    until_named(pid, "sleep");
    let has_both_alone = |open: &[(i32, String)]| {
        let is_connection = |other, what: &str| other == number && what.starts_with("socket:");
        let has_connection = open.iter().any(|(other, what)| is_connection(*other, what));
        let mut further = open
            .iter()
            .filter(|(other, _)| *other > 2 && *other != number);
        has_connection && further.next().is_some_and(is_pipe) && further.next().is_none()
    };
    // What the command opens while it starts it closes again.
    let end = Instant::now() + DEADLINE;
    let mut open = descriptors(pid);
    while !has_both_alone(&open) {
        assert!(Instant::now() < end, "{options:?}: {open:?}");
        std::thread::sleep(Duration::from_millis(5));
        open = descriptors(pid);
    }
    let receiver = acceptor.receiver();
    are_held(1, || acceptor.count(&receiver));
    drop(client);
    fdrecv.slay();
    none_is_held(|| acceptor.count(&receiver));
}

cases! {
    assert_command_has_lease;
    the_command_of_fdrecv_holds_the_lease_until_it_is_killed: &[], 1;
    the_command_of_fdrecv_holds_the_lease_with_socket_activation: &["--activate"], 3;
}

#[test]
fn the_command_of_fdrecv_holds_the_lease_with_its_connection_at_any_number() {
    std::thread::scope(|scope| {
        for number in [0, 1].into_iter().chain(3..=16).chain([100]) {
            let text = number.to_string();
            scope.spawn(move || assert_command_has_lease(&["--fd", &text], number));
        }
    });
}

#[test]
fn the_connection_can_have_the_last_number_of_all() {
    let acceptor = leasing();
    // The command's shell needs a number beyond it.
    let text = "ulimit -S -n 10; \
        exec fdrecv --connect \"$0\" --fd 9 -- sh -c 'ulimit -S -n 64; echo here >&9'";
    let _fdrecv = sh(text).arg(acceptor.name()).start();
    assert_eq!(acceptor.client().line(), "here");
}

#[test]
fn who_has_no_number_for_the_lease_leaves_the_connection_to_others() {
    let acceptor = limited(&["--max", "9"]);
    let (mut served, mut short) = (0, 0);
    for limit in 4..16 {
        let client = acceptor.client();
        let handler = "sh -c 'echo here'";
        let text = format!("ulimit -S -n {limit}; exec fdrecv --connect \"$0\" -- {handler}");
        let (status, _, stderr) = run(sh(&text).arg(acceptor.name()));
        if status == Some(0) {
            served += 1;
        } else {
            assert!(stderr.contains("Too many open files"), "{limit}: {stderr}");
            short += 1;
            let mut other = acceptor.fdrecv(&[], &sh_c("echo here"));
            other.expect_exit(0);
        }
        assert_eq!(client.line(), "here", "{limit}");
    }
    assert!(served > 0 && short > 0, "{served} {short}");
}

#[test]
fn a_shell_finds_its_connection_and_not_the_lease() {
    let acceptor = leasing();
    let text = "echo $LISTEN_FDS $TCPCONNNUM >&3";
    let _fdrecv = acceptor.fdrecv(&["--activate"], &sh_c(text));
    assert_eq!(acceptor.client().line(), "1 1");
}
