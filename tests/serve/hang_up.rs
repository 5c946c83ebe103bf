//! Handlers whose client is gone (`--hang-up`).

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::support::*;
use nix::sys::signal::Signal;
use rustix::event::PollFlags;

/// A handler that has nothing to do with its client any more.
const SLEEP: &str = "echo $$; exec sleep 100";

#[track_caller]
fn start(options: &str, handler: &str) -> (Acceptor, Pool) {
    let acceptor = Fdaccept::bound().start();
    let pool = Pool::on(&acceptor).arg("-v").options(options);
    let pool = pool.slots(1, sh_c(handler)).full();
    (acceptor, pool)
}

/// Expects that `HUP` ends a handler when its client does `go`, and that the next client is served.
#[track_caller]
fn assert_ends(options: &str, go: impl Fn(Client)) {
    let (acceptor, mut pool) = start(options, SLEEP);
    for _ in 0..2 {
        let client = acceptor.client();
        let pid = client.pid();
        go(client);
        let line = pool.line("is ended");
        let expected = format!("fdpool: handler {pid} (127.0.0.1) is ended: its client is gone");
        assert_eq!(line, expected);
        pool.line(&format!("end {pid} status {}", Signal::SIGHUP as i32));
    }
}

cases! {
    assert_ends;
    a_reset_ends_a_handler_that_neither_reads_nor_writes: "--hang-up reset", Client::reset;
    a_reset_ends_a_handler_also_without_lingering: "--hang-up reset --linger 0", Client::reset;
    a_reset_ends_a_handler_that_has_an_end_in_order_as_well: "--hang-up end", Client::reset;
    the_end_of_a_client_ends_a_handler_if_that_is_wanted: "--hang-up end", drop;
    a_half_close_ends_a_handler_if_that_is_wanted: "--hang-up end", |client: Client| {
        client.end();
        // The handler has sent nothing more, and its end is the client's.
        assert_eq!(client.rest(), "");
    };
}

#[test]
fn a_client_that_ends_in_order_has_not_reset_its_connection() {
    let (acceptor, mut pool) = start("--hang-up reset", SLEEP);
    for close in [false, true] {
        let client = acceptor.client();
        let pid = client.pid();
        client.end();
        let client = (!close).then_some(client);
        stays("the handler runs", || is_alive(pid));
        nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
        pool.line("end ");
        drop(client);
    }
    let log = pool.stop();
    assert!(!log.contains("gone"), "{log}");
}

#[test]
fn a_reset_is_seen_when_something_is_sent_to_a_client_that_has_closed() {
    let (acceptor, mut pool) = start(
        "--hang-up reset",
        "echo $$; read -r line; echo $$; exec sleep 100",
    );
    let client = acceptor.client();
    let pid = client.pid();
    // The client does not read the second line, so its kernel resets the connection.
    client.send("line\n");
    drop(client);
    pool.line(&format!("handler {pid} (127.0.0.1) is ended"));
}

#[test]
fn a_unix_client_is_gone_when_it_has_closed() {
    for (options, half) in [("-v --hang-up reset", false), ("-v --hang-up end", true)] {
        let queue = Queue::new();
        let pool = Pool::on(&queue).options(options);
        let mut pool = pool.slots(1, sh_c(SLEEP)).full();
        let client = queue.client();
        let pid = client.pid();
        client.end();
        let client = if half {
            Some(client)
        } else {
            stays("the handler runs", || is_alive(pid));
            drop(client);
            None
        };
        let line = pool.line("is ended");
        assert!(line.contains(&format!("handler {pid} (")), "{line}");
        pool.line(&format!("end {pid} status {}", Signal::SIGHUP as i32));
        drop(client);
    }
}

#[test]
fn messages_about_what_was_sent_are_no_hang_up() {
    let python = needs!(python());
    let queue = Queue::new();
    // SO_TIMESTAMPING: TX_SOFTWARE and SOFTWARE.
    let text = "import socket, time\n\
        client = socket.socket(fileno=0)\n\
        client.setsockopt(socket.SOL_SOCKET, 37, 1 << 1 | 1 << 4)\n\
        client.sendall(b'answer\\n')\n\
        time.sleep(100)";
    let handler = [python.to_str().unwrap(), "-c", text];
    let pool = Pool::on(&queue).options("-v --hang-up reset --grace 0");
    let mut pool = pool.slots(1, handler).full();
    let (client, server) = tcp_pair();
    queue.send(&server);
    let client = Client(client);
    assert_eq!(client.line(), "answer");
    until("a message", || {
        poll::ready(server.as_fd(), PollFlags::empty()) == PollFlags::ERR
    });
    are_idle(&pool.members(), Duration::from_millis(150));
    assert!(!pool.log().contains("gone"), "{}", pool.log());
    client.reset();
    pool.line("is gone");
}

#[test]
fn clients_that_go_again_and_again_are_said_once() {
    let acceptor = Fdaccept::bound().start();
    let pool = Pool::on(&acceptor).options("--hang-up reset");
    let mut pool = pool.slots(1, sh_c(SLEEP)).full();
    for _ in 0..5 {
        let client = acceptor.client();
        let pid = client.pid();
        client.reset();
        until_gone(pid);
    }
    let log = pool.stop();
    assert_eq!(log.matches("its client is gone").count(), 1, "{log}");
}

#[test]
fn what_ignores_a_hang_up_gets_term_and_kill() {
    let names = Names::new();
    let log = names.file("log");
    let acceptor = Fdaccept::bound().start();
    let text = "trap 'echo HUP >>\"$LOG\"' HUP; trap 'echo TERM >>\"$LOG\"' TERM; echo $$
        while :; do sleep 100 & wait; done";
    let pool = Pool::on(&acceptor).options("-v --hang-up reset");
    let mut pool = pool.env("LOG", &log).slots(1, sh_c(text)).full();
    let client = acceptor.client();
    let pid = client.pid();
    let start = Instant::now();
    client.reset();
    pool.line("is gone");
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    until("HUP", || said().starts_with("HUP\n"));
    // The connection stays as it is, and the slot waits.
    are_idle(&pool.members(), Duration::from_millis(150));
    pool.line(&format!("end {pid} status {}", Signal::SIGKILL as i32));
    assert_eq!(said(), "HUP\nTERM\n");
    assert!(start.elapsed() >= Duration::from_secs(10));
    assert_eq!(pool.log().matches("is gone").count(), 1);
}

#[test]
fn a_hang_up_ends_all_that_a_handler_has_started() {
    needs!(peer("setsid"));
    let text = "sleep 100 & echo $!; (setsid sh -c 'echo $$; exec sleep 100' &); exec sleep 100";
    let (acceptor, mut pool) = start("--hang-up reset", text);
    let client = acceptor.client();
    let others = [client.pid(), client.pid()];
    client.reset();
    others.into_iter().for_each(until_gone);
    pool.line("end ");
}

#[test]
fn a_handler_that_ends_by_itself_is_not_touched() {
    let (acceptor, mut pool) = start("--hang-up reset", "exec cat");
    let slots = pool.members();
    for number in 0..200 {
        let client = acceptor.client();
        client.expect_echo(&number.to_string());
        let end = pool.line(": end ");
        assert!(end.ends_with(" status 0"), "{end}");
    }
    assert_eq!(pool.members(), slots);
    assert!(!pool.log().contains("gone"));
}

#[test]
fn a_slot_that_watches_its_client_uses_no_processor_time() {
    let (acceptor, pool) = start("--hang-up end", "exec cat");
    let client = acceptor.served_client();
    are_idle(&pool.members(), Duration::from_millis(150));
    client.expect_served();
}

#[test]
fn a_slot_that_watches_its_client_hears_the_pool_and_the_clock() {
    let (acceptor, mut pool) = start("--hang-up reset --timeout 0.3", SLEEP);
    let client = acceptor.client();
    let pid = client.pid();
    pool.line(&format!("end {pid} status {}", Signal::SIGTERM as i32));
    drop(client);
    pool.stop();

    let text = format!("trap '' TERM HUP; {SLEEP}");
    let (acceptor, mut pool) = start("--hang-up reset --grace 100000", &text);
    let client = acceptor.client();
    let pid = client.pid();
    pool.term();
    pool.signal(Signal::SIGINT);
    pool.line(&format!("end {pid} status {}", Signal::SIGKILL as i32));
    pool.expect_exit(0);
}
