//! Clients that connect and say nothing: `-o defer=SECONDS`.

use crate::support::*;
use nix::sys::signal::Signal;

/// So long that no client is accepted unheard during a test.
const LONG: &str = "-v -o defer=1000";

/// A listener's silent clients, as they are for the kernel: between SYN and accept(2).
fn deferring(handler: &str) -> Acceptor {
    Fdaccept::pool(handler).options(LONG).start()
}

#[test]
fn silent_clients_hold_no_slot() {
    let mut acceptor = deferring("cat");
    let silent = acceptor.clients(4);
    for _ in 0..3 {
        acceptor.client().expect_echo("hello");
    }
    assert_eq!(acceptor.counted("accepted"), 3);
    // Each is served once it speaks.
    for client in silent {
        client.expect_echo("hello at last");
    }
    assert_eq!(acceptor.counted("accepted"), 7);
}

#[test]
fn without_defer_silent_clients_hold_the_slots() {
    let mut acceptor = Fdaccept::cats().options("-v").start();
    let silent = acceptor.clients(2);
    acceptor.until_accepted(2);
    let third = acceptor.client();
    third.send("hello");
    is_left_waiting(&third);
    drop(silent);
    third.end();
    assert_eq!(third.rest(), "hello");
}

#[test]
fn a_silent_client_is_handed_over_after_the_time() {
    let acceptor = Fdaccept::pool("echo welcome").options("-o defer=1").start();
    // The server speaks first, so the client waits until then.
    assert_eq!(acceptor.client().rest(), "welcome\n");
}

#[test]
fn a_client_that_closes_in_order_without_a_word_is_handed_over_and_one_that_resets_is_not() {
    let mut acceptor = deferring("cat");
    acceptor.client().finish();
    assert_eq!(acceptor.counted("accepted"), 1);
    acceptor.client().reset();
    acceptor.client().expect_echo("hello");
    assert_eq!(acceptor.counted("accepted"), 2);
}

/// Nobody could tell a client that stays silent that the service ends.
#[test]
fn a_stop_waits_for_no_silent_client() {
    for options in [
        LONG,
        "-v -o defer=1000 --max 1",
        "-v -o defer=1000 --rate 1/1000",
    ] {
        let mut acceptor = Fdaccept::cats().options(options).start();
        let silent = acceptor.clients(3);
        let served = acceptor.served_client();
        served.finish();
        acceptor.stop();
        // They find out when they speak.
        for client in silent {
            client.send("hello");
            client.expect_reset();
        }
    }
}

#[test]
fn a_stop_serves_whoever_has_spoken_before() {
    let mut acceptor = deferring("cat");
    let silent = acceptor.clients(3);
    let crowd = acceptor.at_once(&[Signal::SIGTERM], || Crowd::connect(acceptor.port, 20));
    crowd.expect_served();
    acceptor.expect_exit(0);
    drop(silent);
}

/// The proxy speaks first, so its connections are accepted as soon as its header is there.
#[test]
fn a_proxy_header_is_a_word() {
    let proxied = "--proxy-protocol v1 --proxy-from 127.0.0.1";
    let mut acceptor = Fdaccept::pool("sh -c")
        .word("echo $TCPREMOTEIP")
        .options(LONG);
    acceptor = acceptor.options(proxied);
    let mut acceptor = acceptor.start();
    let silent = acceptor.client();
    let client = acceptor.client();
    client.send("PROXY TCP4 192.0.2.7 192.0.2.1 5000 80\r\n");
    assert_eq!(client.rest(), "192.0.2.7\n");
    assert_eq!(acceptor.counted("accepted"), 1);
    drop(silent);
}

/// The kernel then remembers them by SYN cookies, which know of no deferring (tcp(7)).
#[test]
fn silent_clients_beyond_the_backlog_are_handed_over_at_once() {
    let cookies = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_syncookies");
    if cookies.is_ok_and(|cookies| cookies.trim() != "1") {
        return skip("SYN cookies are off or always on");
    }
    let fdaccept = Fdaccept::cats().options(LONG).arg("--backlog=4");
    let mut acceptor = fdaccept.start();
    let _silent = acceptor.clients(4);
    assert_eq!(acceptor.counted("accepted"), 0);
    let _more = acceptor.clients(4);
    acceptor.until_accepted(1);
}
