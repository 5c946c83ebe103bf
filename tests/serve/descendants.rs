//! What a handler or a worker has started, and has left its process group or outlived its parent.

use crate::support::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpgid};

/// A handler or worker in Python that leaves its process group for that of its parent.
const LEAVE: &str = "import os, signal, time\n\
    signal.signal(signal.SIGTERM, signal.SIG_IGN if os.environ.get('STUBBORN') else signal.SIG_DFL)\n\
    os.setpgid(0, os.getpgid(os.getppid()))\n\
    print(os.getpid(), flush=True)\n\
    while True: time.sleep(100)";
/// Starts a process in a session of its own, which says its process id when it is one.
const OWN_SESSION: &str = "setsid sh -c 'echo $$; exec sleep 100' &";
/// The same, and its parent is gone at once.
const ORPHAN: &str = "(setsid sh -c 'echo $$; exec sleep 100' &)";

/// A pool of one slot on a queue.
#[track_caller]
fn start(options: &str, handler: &str) -> (Queue, Pool) {
    let queue = Queue::new();
    let pool = Pool::on(&queue).options(options);
    let pool = pool.slots(1, sh_c(handler)).full();
    (queue, pool)
}

#[test]
fn timeout_ends_a_handler_that_left_its_process_group() {
    let python = needs!(python());
    let queue = Queue::new();
    let pool = Pool::on(&queue).options("-v --timeout 3");
    let handler = [python.to_str().unwrap(), "-c", LEAVE];
    let mut pool = pool.slots(1, handler).start();
    // By then the interpreter has started.
    let handler = queue.client().pid();
    pool.line(&format!("end {handler} status {}", Signal::SIGTERM as i32));
    pool.stop();
}

#[test]
fn a_stop_kills_a_handler_that_left_its_process_group() {
    let python = needs!(python());
    let queue = Queue::new();
    let pool = Pool::on(&queue)
        .options("-v --grace 100000")
        .env("STUBBORN", "1");
    let handler = [python.to_str().unwrap(), "-c", LEAVE];
    let mut pool = pool.slots(1, handler).start();
    let client = queue.client();
    let handler = client.pid();
    pool.term();
    pool.signal(Signal::SIGINT);
    pool.line(&format!("end {handler} status {}", Signal::SIGKILL as i32));
    pool.expect_exit(0);
}

#[test]
fn a_stop_kills_a_worker_that_left_its_process_group() {
    let python = needs!(python());
    let queue = Queue::new();
    let pool = Pool::on(&queue)
        .options("-v --grace 0.2")
        .env("STUBBORN", "1");
    let worker = [python.to_str().unwrap(), "-c", LEAVE];
    let pool = pool.stdout(std::process::Stdio::null());
    let mut pool = pool.workers(1, worker).full();
    let worker = pool.members()[0];
    // Before it starts, it is in that group as well.
    until("it to leave", || {
        has_signal(worker, "SigIgn", Signal::SIGTERM)
            && getpgid(Some(worker)) == getpgid(Some(pool.pid()))
    });
    pool.term();
    pool.line(&format!("end {worker} status {}", Signal::SIGKILL as i32));
    pool.expect_exit(0);
}

/// Expects that a process that `first` starts ends with its handler.
#[track_caller]
fn assert_ends_too(options: &str, first: &str, end: impl Fn(&Pool)) {
    needs!(peer("setsid"));
    let (queue, mut pool) = start(options, &format!("{first}\nexec sleep 100"));
    let client = queue.client();
    let other = client.pid();
    until("a process", || getpgid(Some(other)) == Ok(other));
    end(&pool);
    until_gone(other);
    assert_eq!(client.rest_or_reset(), "");
    pool.term();
    pool.expect_exit(0);
}

cases! {
    assert_ends_too;
    timeout_ends_what_a_handler_put_into_a_session_of_its_own: "--timeout 0.3", OWN_SESSION, |_| {};
    timeout_ends_what_a_handler_put_into_a_session_of_its_own_and_left:
        "--timeout 0.3", ORPHAN, |_| {};
    timeout_kills_what_ignores_term_in_a_session_of_its_own:
        "--timeout 0.3", "trap '' TERM; (setsid sh -c 'echo $$; exec sleep 100' &); trap - TERM",
        |_| {};
    a_stop_ends_what_a_handler_put_into_a_session_of_its_own:
        "--grace 0.3", OWN_SESSION, |pool: &Pool| pool.term();
    a_stop_ends_what_a_handler_put_into_a_session_of_its_own_and_left:
        "--grace 0.3", ORPHAN, |pool: &Pool| pool.term();
    a_second_signal_ends_what_a_handler_put_into_a_session_of_its_own: "--grace 100000", ORPHAN,
        |pool: &Pool| {
            pool.term();
            pool.signal(Signal::SIGINT);
        };
}

#[test]
fn a_worker_that_is_killed_takes_along_what_it_put_into_a_session_of_its_own() {
    needs!(peer("setsid"));
    let names = Names::new();
    let log = names.file("log");
    let text = "trap '' TERM; setsid sh -c 'echo $$ >\"$LOG\"; exec sleep 300' & \
                while :; do sleep 0.05; done";
    let queue = Queue::new();
    let pool = Pool::on(&queue).options("--grace 0.2").env("LOG", &log);
    let mut pool = pool.workers(1, sh_c(text)).full();
    let child = eventually("its child", || {
        let text = std::fs::read_to_string(&log).ok()?;
        Some(Pid::from_raw(text.strip_suffix('\n')?.parse().ok()?))
    });
    pool.stop();
    until_gone(child);
}

/// A handler that leaves a daemon if its client says so, and stays otherwise.
const DAEMON: &str = "read word; if [ \"$word\" = leave ]; then \
    (setsid sh -c 'echo $$; exec sleep 100 <&- >&- 2>&-' &); else echo $$; exec sleep 100; fi";

/// Makes a handler leave a daemon, and end well.
#[track_caller]
fn leave_daemon(queue: &Queue) -> Pid {
    let client = queue.client();
    client.send("leave\n");
    let daemon = client.pid();
    assert_eq!(client.rest(), "");
    daemon
}

#[test]
fn what_a_handler_left_goes_on_when_a_later_handler_is_ended() {
    needs!(peer("setsid"));
    let (queue, mut pool) = start("--timeout 0.3", DAEMON);
    let daemons = [leave_daemon(&queue), leave_daemon(&queue)];
    let slot = pool.members()[0];
    for _ in 0..2 {
        let client = queue.client();
        client.send("stay\n");
        until_gone(client.pid());
        assert_eq!(client.rest_or_reset(), "");
        assert!(daemons.into_iter().all(is_alive));
    }
    assert!(daemons.iter().all(|daemon| parent_of(*daemon) == slot));
    pool.term();
    pool.expect_exit(0);
    assert!(daemons.into_iter().all(is_alive));
    for daemon in daemons {
        kill(daemon, Signal::SIGKILL).unwrap();
    }
}

#[test]
fn what_a_handler_left_is_reaped_when_it_ends() {
    needs!(peer("setsid"));
    let (queue, mut pool) = start("", DAEMON);
    // While the slot waits for a connection, and while it waits for a handler.
    for busy in [false, true] {
        let daemon = leave_daemon(&queue);
        let client = queue.client();
        if busy {
            client.send("stay\n");
            client.pid();
        } else {
            client.send("leave\n");
            kill(client.pid(), Signal::SIGKILL).unwrap();
        }
        kill(daemon, Signal::SIGKILL).unwrap();
        until("no zombie", || state(daemon).is_none());
        if !busy {
            until("no child", || children(pool.members()[0]).is_empty());
        }
    }
    pool.term();
    pool.signal(Signal::SIGINT);
    pool.expect_exit(0);
}

#[test]
fn a_zombie_that_a_handler_left_is_reaped() {
    // cat does not know of the child that it has.
    let (queue, mut pool) = start("", "sh -c 'exit 0' & exec cat");
    let slot = pool.members()[0];
    for _ in 0..20 {
        queue.client().expect_echo("hello");
        until("no child", || children(slot).is_empty());
    }
    assert_eq!(pool.stop(), "");
}
