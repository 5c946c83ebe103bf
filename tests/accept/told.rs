//! What fdaccept tells of what it waits for.

use nix::sys::signal::Signal;

use crate::support::*;

#[test]
fn a_stop_says_how_many_connections_it_waits_for_and_how_long() {
    for (options, time) in [("", "up to 30 s "), ("--grace inf", "")] {
        for (count, connections) in [(1, "1 connection"), (2, "2 connections")] {
            let mut acceptor = Fdaccept::bound().options(options).start();
            let _clients = acceptor.clients(count);
            acceptor.until_counted("passed", count);
            acceptor.term();
            let line = acceptor.line("waits");
            let what = format!("consumers to take {connections}; a second signal stops now");
            assert_eq!(line, format!("fdaccept: waits {time}for {what}"));
            acceptor.signal(Signal::SIGINT);
            acceptor.expect_exit(1);
        }
    }
}

#[test]
fn a_stop_says_that_it_waits_for_its_command() {
    let mut chain = Fdaccept::pool("cat").start();
    let client = chain.served_client();
    chain.term();
    let line = chain.line("waits");
    let expected = "fdaccept: waits up to 30 s for the end of fdpool; a second signal ends fdpool";
    assert_eq!(line, expected);
    client.finish();
    chain.expect_exit(0);
}

#[test]
fn a_command_that_outlives_the_grace_is_told() {
    let mut chain = Fdaccept::pool("cat").options("--grace 0.5").start();
    let client = chain.served_client();
    chain.term();
    let line = chain.line("--grace");
    assert_eq!(
        line,
        "fdaccept: fdpool did not end within --grace, and gets TERM"
    );
    client.finish();
    chain.expect_exit(0);
}

#[test]
fn a_stop_says_that_it_waits_for_headers() {
    let options = "--proxy-protocol any --proxy-from 127.0.0.1 --proxy-timeout 1000";
    let mut acceptor = Fdaccept::bound().options(options).start();
    let _clients = acceptor.clients(2);
    acceptor.until_counted("accepted", 2);
    acceptor.term();
    let line = acceptor.line("waits");
    let expected = "fdaccept: waits up to 30 s for 2 PROXY headers; a second signal stops now";
    assert_eq!(line, expected);
    acceptor.signal(Signal::SIGINT);
    acceptor.expect_exit(0);
}

#[test]
fn a_stop_says_that_clients_in_the_backlog_hold_it_up() {
    let mut acceptor = Fdaccept::bound().options("--max 1").start();
    let _clients = acceptor.clients(2);
    acceptor.until_counted("passed", 1);
    acceptor.term();
    let line = acceptor.line("waits");
    let what = "clients in the backlog and for consumers to take 1 connection";
    assert!(line.contains(&format!("for {what}; a second")), "{line}");
    acceptor.signal(Signal::SIGINT);
    acceptor.expect_exit(1);
}

#[test]
fn a_stop_that_waits_for_nothing_says_nothing() {
    let mut acceptor = Fdaccept::bound().start();
    acceptor.term();
    let log = acceptor.expect_end(0);
    assert!(!log.lines().any(is_of_a_wait), "{log}");
}

// Too many clients.

/// What an acceptor has logged of these words.
fn said(acceptor: &mut Acceptor, words: &str) -> usize {
    acceptor.log().matches(words).count()
}

#[test]
fn a_full_queue_is_said_once_and_so_is_its_end() {
    // The last two are more than the queue holds.
    for (options, crowd) in [
        ("--queue 1", 2),
        ("--queue 1 --sandbox", 2),
        ("", 400),
        ("--queue 5000", 400),
    ] {
        let mut acceptor = Fdaccept::bound().options(options).start();
        let clients = acceptor.clients(crowd);
        let line = acceptor.line("the queue");
        let expected = "fdaccept: the queue is full: consumers are busy, or there are none; further \
                        clients wait in the backlog";
        assert_eq!(line, expected);
        drop(clients);
        let _pool = acceptor.pool_of(4, "cat");
        assert_eq!(
            acceptor.line("the queue"),
            "fdaccept: the queue has room again"
        );
        assert_eq!(said(&mut acceptor, "the queue"), 2);
    }
}

#[test]
fn a_queue_that_is_full_again_soon_is_not_said_again() {
    let mut acceptor = Fdaccept::bound().options("--queue 1").start();
    let receiver = acceptor.receiver();
    let _first = acceptor.client();
    acceptor.line("the queue is full");
    take(&receiver);
    acceptor.line("the queue has room again");
    let _second = acceptor.client();
    acceptor.until_counted("passed", 2);
    for _ in 0..20 {
        stays("it is not said again", || {
            said(&mut acceptor, "is full") == 1
        });
    }
}

#[test]
fn the_most_connections_in_service_are_said_with_what_becomes_of_others() {
    for (when_full, fate) in [
        ("", "wait in the backlog"),
        ("--when-full close", "are turned away"),
    ] {
        let options = format!("--max 2 {when_full}");
        let mut acceptor = Fdaccept::bound().options(&options).start();
        let _pool = acceptor.pool_of(4, "cat");
        let clients = [acceptor.served_client(), acceptor.served_client()];
        let line = acceptor.line("--max");
        assert_eq!(
            line,
            format!("fdaccept: --max 2 is reached; further clients {fate}")
        );
        let [first, _second] = clients;
        first.finish();
        let line = acceptor.line("--max");
        let expected = "fdaccept: fewer connections than --max 2 are in service again";
        assert_eq!(line, expected);
    }
}

#[test]
fn a_client_over_its_limit_is_named_once_and_counted_until_its_last_connection_has_gone() {
    let mut acceptor = Fdaccept::bound().options("--max-per-source 1").start();
    let _pool = acceptor.pool_of(4, "cat");
    let first = acceptor.served_client();
    let other = acceptor.client_from([127, 0, 0, 2]);
    other.expect_served();
    for _ in 0..4 {
        is_reset(acceptor.try_client());
    }
    let why = "it has 1 connection already (--max-per-source 1)";
    let named = format!(
        "fdaccept: refused 127.0.0.1 on 127.0.0.1:{}: {why}",
        acceptor.port
    );
    assert_eq!(acceptor.line("refused"), named);
    first.finish();
    assert_eq!(
        acceptor.line("refused"),
        "fdaccept: refused 127.0.0.1 again, 3 times (--max-per-source)"
    );
    is_reset(acceptor.try_client_from([127, 0, 0, 2]));
    is_reset(acceptor.try_client_from([127, 0, 0, 2]));
    acceptor.line("refused 127.0.0.2 on ");
    acceptor.signal(Signal::SIGUSR1);
    assert_eq!(
        acceptor.line("refused"),
        "fdaccept: refused 127.0.0.2 again, once (--max-per-source)"
    );
    is_reset(acceptor.try_client_from([127, 0, 0, 2]));
    acceptor.until_counted("by limit", 7);
    drop(other);
    let log = acceptor.stop();
    assert_eq!(log.matches("refused 127.0.0.1 on ").count(), 1, "{log}");
    assert_eq!(log.matches("refused 127.0.0.2 on ").count(), 1, "{log}");
    assert_eq!(
        log.matches("refused 127.0.0.2 again, once").count(),
        2,
        "{log}"
    );
}

#[test]
fn what_was_refused_of_a_client_is_told_at_the_end() {
    let mut acceptor = Fdaccept::bound().options("--max-per-source 1").start();
    let _waiting = acceptor.client();
    for _ in 0..3 {
        is_reset(acceptor.try_client());
    }
    acceptor.line("refused 127.0.0.1 on ");
    acceptor.term();
    acceptor.signal(Signal::SIGINT);
    let log = acceptor.expect_end(1);
    let lines: Vec<_> = log.lines().collect();
    let end = lines
        .iter()
        .position(|line| line.contains("refused 127.0.0.1 again, 2 times"));
    let counters = lines.iter().position(|line| is_counters(line));
    assert!(end.is_some() && end < counters, "{log}");
}

#[test]
fn each_refusal_has_its_line_with_verbose_and_none_is_counted_besides() {
    let options = "-v --max-per-source 1";
    let mut acceptor = Fdaccept::bound().options(options).start();
    let _waiting = acceptor.client();
    for _ in 0..3 {
        is_reset(acceptor.try_client());
    }
    acceptor.until_counted("by limit", 3);
    acceptor.term();
    acceptor.signal(Signal::SIGINT);
    let log = acceptor.expect_end(1);
    let why = ": it has 1 connection already (--max-per-source 1)";
    let rest = format!(" on 127.0.0.1:{}{why}", acceptor.port);
    assert_eq!(
        times_told(&log, "fdaccept: refused 127.0.0.1", &rest),
        3,
        "{log}"
    );
    assert!(!log.contains(" more"), "{log}");
}

#[test]
fn clients_of_many_addresses_over_their_limits_do_not_fill_the_log() {
    let mut acceptor = Fdaccept::bound().options("--max-per-source 1").start();
    let addresses = (1..=100).map(|last| [127, 0, 1, last]);
    let _waiting: Vec<_> = addresses
        .clone()
        .map(|address| acceptor.client_from(address))
        .collect();
    for address in addresses {
        is_reset(acceptor.try_client_from(address));
    }
    acceptor.until_counted("by limit", 100);
    let named = said(&mut acceptor, "--max-per-source");
    // On a very slow machine a minute may have passed.
    assert!((1..=48).contains(&named), "{named}");
}
