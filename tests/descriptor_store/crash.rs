//! A crash.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;

#[test]
fn what_waits_in_the_queue_survives_a_crash_and_is_served_once() {
    for form in FORMS {
        let keeper = Keeper::of(form);
        let (port, crowd) = keeper.crashed_with(20);
        let _process = keeper.again(port);
        keeper.serve_once(crowd, 20);
    }
}

#[test]
fn who_comes_while_nobody_listens_waits_and_is_served_once() {
    for form in FORMS {
        let keeper = Keeper::of(form);
        let port = keeper.crashed();
        let crowd = Crowd::connect(port, 20);
        let _process = keeper.again(port);
        keeper.serve_once(crowd, 20);
    }
}

#[test]
fn first_those_of_the_queue_are_served_and_then_those_of_the_backlog() {
    let keeper = Keeper::new();
    let (mut process, port) = keeper.first();
    let first = [(); 3].map(|()| Client::connect(port));
    process.until_counted("passed", 3);
    crash(process);
    let then = [(); 3].map(|()| Client::connect(port));
    let _process = keeper.start(&[ADDRESS]);
    let receiver = eventually("the queue", || keeper.try_receiver().ok());
    for client in first.iter().chain(&then) {
        is_of(&take(&receiver), client);
    }
}

#[test]
fn a_consumer_keeps_its_end_and_serves_also_while_nobody_accepts() {
    let keeper = Keeper::new();
    let (mut process, port) = keeper.first();
    let receiver = keeper.receiver();
    let _clients = [connect(port), connect(port)];
    take(&receiver);
    process.until_counted("passed", 2);
    crash(process);
    take(&receiver);
    assert!(receiver.try_receive().unwrap().is_none(), "this is no end");
    for _ in 0..3 {
        let process = keeper.again(port);
        let client = Client::connect(port);
        is_of(&take(&receiver), &client);
        crash(process);
    }
}

#[test]
fn a_pool_notices_nothing_of_a_crash() {
    let keeper = Keeper::new();
    let (mut process, port) = keeper.first();
    let mut pool = keeper.serve().unwrap();
    is_served(port);
    let (slots, said) = (pool.children(), pool.log());
    for _ in 0..3 {
        crash(process);
        process = keeper.again(port);
        is_served(port);
    }
    assert_eq!((pool.children(), pool.log()), (slots, said));
}

// Under load.

/// Sends `text`, and returns all that comes back.
fn ask(mut client: &TcpStream, text: &str) -> std::io::Result<String> {
    client.write_all(text.as_bytes())?;
    client.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Has clients come without a pause while fdaccept ends by `end` and is started again, `rounds`
/// times. A client that is served at all gets its own bytes back, and no handler is run in vain.
/// Returns how many clients were not served.
#[track_caller]
fn losses_under_load(rounds: usize, end: impl Fn(Process)) -> usize {
    const CLIENTS: usize = 8;
    const HANDLER: &str = "echo \"$TCPREMOTEPORT\" >>\"$SERVED\"; exec cat";
    let keeper = Keeper::new();
    let (mut process, port) = keeper.first();
    let _pool = keeper.pool(&[], 4, HANDLER);
    let mut random = Random(5);
    let (served, failed) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
    let done = AtomicBool::new(false);
    let _process = std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (served, failed, done) = (&served, &failed, &done);
            scope.spawn(move || {
                for request in 0.. {
                    if done.load(Ordering::SeqCst) {
                        return;
                    }
                    let text = format!("client {number}, request {request}\n");
                    // There always is a listener, so this cannot fail.
                    let client = connect(port);
                    match ask(&client, &text) {
                        Ok(answer) if !answer.is_empty() => {
                            assert_eq!(answer, text);
                            let port = client.local_addr().unwrap().port();
                            served.lock().unwrap().push(port.to_string());
                        }
                        _ => drop(failed.fetch_add(1, Ordering::SeqCst)),
                    }
                }
            });
        }
        for _ in 0..rounds {
            let before = served.lock().unwrap().len();
            until("clients to be served", || {
                served.lock().unwrap().len() >= before + CLIENTS
            });
            random.pause(20_000);
            end(process);
            process = keeper.again(port);
        }
        done.store(true, Ordering::SeqCst);
        // The last clients are still to be served.
        process
    });
    let mut served = served.into_inner().unwrap();
    served.sort();
    assert_eq!(keeper.served(), served, "a handler was run in vain");
    keeper.expect_kept(1);
    failed.into_inner()
}

/// At worst a crash costs 1 connection, which was accepted and not yet in the queue.
#[test]
fn crashes_under_load_lose_no_more_than_what_was_in_hand() {
    const CRASHES: usize = 40;
    let lost = losses_under_load(CRASHES, crash);
    eprintln!("{lost} lost in {CRASHES} crashes");
    assert!(lost <= CRASHES, "{lost} lost in {CRASHES} crashes");
}

#[test]
fn clean_stops_under_load_lose_nothing() {
    assert_eq!(losses_under_load(20, |process| end(process, false)), 0);
}

/// Wherever a start is broken off: what is kept is whole in the end, and nothing is kept twice.
#[test]
fn crashes_at_the_start_lose_nothing_and_leave_nothing_behind() {
    let keeper = Keeper::new();
    let path = keeper.file("s");
    let mut random = Random(9);
    let mut crash_at_start = || {
        let process = keeper.start(&[ADDRESS, &path]);
        random.pause(15_000);
        crash(process);
    };
    for _ in 0..60 {
        crash_at_start();
        let kept = keeper.kept();
        assert!(kept.len() <= 4, "{kept:?}");
    }
    let mut process = keeper.start(&[ADDRESS, &path]);
    let port = process.port();
    assert_eq!(process.listening(), path);
    keeper.expect_kept(2);
    let crowd = queued(&mut process, port, 5);
    crash(process);
    for _ in 0..60 {
        crash_at_start();
    }
    let mut process = keeper.start(&[ADDRESS, &path]);
    assert_eq!(process.port(), port);
    keeper.expect_kept(2);
    let _pool = keeper.serve();
    keeper.expect_served_once(crowd, 5);
    is_served_at(&path);
}

// What else a start finds.

#[test]
fn neither_the_store_nor_fdaccept_has_more_open_with_each_start() {
    for form in FORMS {
        let keeper = Keeper::of(form);
        keeper.open();
        let path = keeper.file("s");
        let arguments = ["--grace", "5", ADDRESS, "localhost:0", &path];
        let mut seen = Vec::new();
        for round in 0..8 {
            let mut process = keeper.start(&arguments);
            let port = process.port();
            process.line(&path);
            let pool = keeper.serve();
            is_served(port);
            seen.push((keeper.kept(), settled(process.pid())));
            drop(pool);
            end(process, round % 2 == 0);
        }
        // What the first one opens, later ones find.
        assert!(seen.iter().all(|now| *now == seen[0]), "{form:?}: {seen:?}");
    }
}

#[test]
fn a_limit_on_the_queue_counts_what_waited_there_before() {
    let keeper = Keeper::new();
    let start = || {
        let mut process = keeper.start(&["--queue", "3", ADDRESS]);
        let port = process.port();
        (process, port)
    };
    let (mut process, port) = start();
    let _first = [(); 2].map(|()| connect(port));
    process.until_counted("passed", 2);
    crash(process);
    let (mut process, now) = start();
    assert_eq!(now, port);
    let _then = [(); 3].map(|()| connect(port));
    process.until_counted("passed", 1);
    let receiver = keeper.receiver();
    take(&receiver);
    process.until_counted("passed", 2);
    for _ in 0..4 {
        take(&receiver);
    }
    process.until_counted("passed", 3);
}

#[test]
fn the_sandbox_keeps_nothing_from_being_kept() {
    for form in FORMS {
        let keeper = Keeper::of(form);
        let start = || keeper.start(&["--sandbox", ADDRESS]);
        let mut process = start();
        let port = process.port();
        let crowd = queued(&mut process, port, 5);
        crash(process);
        let mut process = start();
        assert_eq!(process.port(), port);
        keeper.serve_once(crowd, 5);
        keeper.expect_kept(1);
    }
}

#[test]
fn each_start_says_that_it_is_ready() {
    let keeper = Keeper::new();
    for count in 1..4 {
        let process = keeper.start(&[ADDRESS]);
        until("READY=1", || keeper.times_told("READY=1") == count);
        crash(process);
    }
}

#[test]
fn a_command_finds_nothing_of_the_store() {
    let keeper = Keeper::new();
    let text = "env >&2; echo open: /proc/$$/fd/* >&2; exec cat";
    let arguments = ["--store", ADDRESS, "--", "sh", "-c", text];
    let open = [(); 2].map(|()| {
        let mut process = keeper.start_all(&arguments);
        let open = process.line("open: ").matches("/fd/").count();
        let log = process.log();
        for name in ["LISTEN_", "NOTIFY_SOCKET", "fdtools-listener"] {
            assert!(!log.contains(name), "{log}");
        }
        crash(process);
        open
    });
    // As many descriptors with a full store as with an empty one.
    assert_eq!(open[0], open[1]);
}
