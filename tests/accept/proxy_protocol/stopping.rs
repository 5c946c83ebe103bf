//! A stop while headers are awaited, or wait to be let in.

use super::*;

#[track_caller]
fn expect_passed(acceptor: &mut Acceptor, count: usize) {
    let log = acceptor.expect_end(0);
    let counters = format!("accepted {count}, passed {count}, taken {count}, ");
    assert!(log.contains(&counters), "{log}");
}

#[test]
fn a_stop_waits_for_a_header_and_what_it_says_is_served() {
    for (mut acceptor, _pool, header) in each_version(&PATIENT) {
        let clients = acceptor.stalled(3, &header[..9], 0);
        acceptor.term();
        stays("fdaccept waits", || acceptor.is_running());
        for client in clients {
            write(&client, &[&header[9..], b"data"].concat());
            expect_told(client, TOLD, b"data");
        }
        expect_passed(&mut acceptor, 3);
    }
}

#[test]
fn a_stop_waits_for_a_header_no_longer_than_it_may_take() {
    let mut acceptor = proxied("any", &["--proxy-timeout", "0.5", "--grace", "1000"]);
    let start = Instant::now();
    let clients = acceptor.begun(1);
    let log = acceptor.stop();
    has_taken(start, 500);
    assert_eq!(number(log.lines().last().unwrap(), "bad header"), Some(1));
    clients.into_iter().for_each(Client::expect_closed);
}

#[test]
fn a_stop_does_not_wait_for_a_header_longer_than_its_grace() {
    let mut acceptor = patient("any", &["--grace", "0.3"]);
    let clients = acceptor.begun(1);
    acceptor.stop();
    clients.into_iter().for_each(Client::expect_closed);
}

#[test]
fn a_second_stop_waits_for_no_header() {
    let mut acceptor = patient("any", &[]);
    let clients = acceptor.begun(1);
    acceptor.term();
    stays("fdaccept waits", || acceptor.is_running());
    acceptor.stop();
    clients.into_iter().for_each(Client::expect_closed);
}

/// Each accepted connection is in another number, too.
#[test]
fn those_whose_headers_a_stop_gives_up_are_counted() {
    let mut acceptor = patient("any", &["--grace", "0.3"]);
    let _clients = acceptor.begun(3);
    let log = acceptor.stop();
    let line = log.lines().last().unwrap();
    let counts = ["accepted", "passed", "bad header"].map(|what| number(line, what));
    assert_eq!(counts, [Some(3), Some(0), Some(3)], "{line}");
}

#[test]
fn a_stop_takes_what_waits_in_the_backlog_with_its_headers() {
    let (mut acceptor, _pool) = patient("any", &[]).with_pool();
    let [v1, v2] = headers();
    let parts = [&v1[..], &v2[..], &v1[..20], &v2[..3], b""];
    let term = [nix::sys::signal::Signal::SIGTERM];
    let clients = acceptor.at_once(&term, || parts.map(|part| acceptor.says(part)));
    let rest = [b"", &b""[..], &v1[20..], &v2[3..], &v1[..]];
    for (client, rest) in clients.into_iter().zip(rest) {
        write(&client, rest);
        expect_told(client, TOLD, b"");
    }
    acceptor.expect_end(0);
}

#[test]
fn a_stop_lets_complete_headers_in_as_room_comes() {
    let mut acceptor = patient("any", &["--max", "1"]);
    let receiver = acceptor.receiver();
    let clients = acceptor.begun(4);
    for client in &clients {
        complete(client, b"");
        until_all_is_read(client);
    }
    let mut last = take(&receiver);
    acceptor.term();
    for _ in 1..clients.len() {
        nothing_comes(&receiver);
        drop(last);
        last = take(&receiver);
    }
    drop(last);
    expect_passed(&mut acceptor, 4);
}

#[test]
fn complete_headers_that_a_stop_gives_up_are_told_as_not_taken() {
    let mut acceptor = patient("any", &["--max", "1", "--grace", "0.5"]);
    let receiver = acceptor.receiver();
    let clients = acceptor.begun(4);
    for client in &clients[..3] {
        complete(client, b"");
        until_all_is_read(client);
    }
    let _first = take(&receiver);
    acceptor.term();
    let log = acceptor.expect_end(1);
    let expected = "fdaccept: 2 connections were accepted and not taken";
    assert_eq!(log.lines().last(), Some(expected));
    clients.into_iter().skip(1).for_each(Client::expect_closed);
}

#[test]
fn a_chain_ends_after_the_headers_that_were_begun() {
    let words = [&["fdpool", "2", "--"][..], &sh_c(WHO)].concat();
    let mut acceptor = Fdaccept::chain(words).args(RIGHT).args(PATIENT).start();
    let header = v2(CLIENT, SERVER);
    let client = acceptor.says(&header[..14]);
    until_all_is_read(&client);
    until("the pool", || !acceptor.children().is_empty());
    acceptor.term();
    stays("it goes on", || acceptor.is_running());
    write(&client, &[&header[14..], b"data"].concat());
    expect_told(client, TOLD, b"data");
    acceptor.expect_end(0);
}

#[test]
fn a_stop_that_waits_for_a_header_costs_no_time() {
    let mut acceptor = patient("any", &[]);
    let _clients = acceptor.begun(3);
    acceptor.term();
    is_idle(acceptor.pid());
    assert!(acceptor.is_running());
}

#[test]
fn who_comes_while_a_stop_waits_for_a_header_costs_no_time() {
    let mut acceptor = patient("any", &[]);
    let _clients = acceptor.begun(3);
    acceptor.term();
    // By the second answer fdaccept has seen that the backlog was empty when the signal came.
    acceptor.counters();
    assert_eq!(acceptor.counted("accepted"), 3);
    // fdaccept need neither let this client in nor refuse it.
    let _late = std::net::TcpStream::connect(acceptor.server());
    is_idle(acceptor.pid());
    assert!(acceptor.is_running());
}

/// A client that comes later goes elsewhere, instead of waiting for an end.
#[test]
fn nobody_connects_any_more_while_a_stop_waits_for_a_header() {
    let mut acceptor = proxied("any", &["--proxy-timeout", "20", "--grace", "1000"]);
    let _clients = acceptor.begun(1);
    let start = Instant::now();
    acceptor.term();
    until("the end of the listener", || acceptor.try_client().is_err());
    let passed = start.elapsed();
    assert!(passed < Duration::from_secs(15), "after {passed:?}");
    assert!(acceptor.is_running());
}

#[test]
fn no_header_is_waited_for_when_the_consumers_have_gone() {
    let mut acceptor = script_with(&format!("fdaccept OPTIONS | {{ {UNTIL_GO}; }}"));
    let client = acceptor.says(BEGUN);
    until_all_is_read(&client);
    std::fs::write(acceptor.names.file("go"), "").unwrap();
    client.expect_closed();
    acceptor.wait();
}
