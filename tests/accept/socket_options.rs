//! Options of `-o` on the connections that are accepted.

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use crate::support::*;
use nix::sys::socket::{getsockopt, sockopt};

/// A TCP connection out of the queue of an fdaccept with these options.
#[track_caller]
fn accepted_with(options: &str) -> OwnedFd {
    let straight = Straight::start(Fdaccept::plain().options(options));
    let _client = straight.acceptor.client();
    straight.receive()
}

#[test]
fn nodelay_is_set_on_what_is_accepted() {
    let nodelay = |options| getsockopt(&accepted_with(options), sockopt::TcpNoDelay).unwrap();
    assert!(nodelay("-o nodelay"));
    assert!(nodelay("--option=nodelay=1"));
    assert!(!nodelay(""));
    // The last one counts.
    assert!(!nodelay("-o nodelay -o nodelay=0"));
}

#[test]
fn buffer_sizes_are_set_on_what_is_accepted() {
    let connection = accepted_with("-o rcvbuf=30000 -o sndbuf=20000");
    // The kernel doubles them, socket(7).
    assert_eq!(getsockopt(&connection, sockopt::RcvBuf).unwrap(), 60000);
    assert_eq!(getsockopt(&connection, sockopt::SndBuf).unwrap(), 40000);
}

#[test]
fn an_option_is_set_where_it_applies() {
    let both = Fdaccept::plain().listen("./s").listen(ADDRESS);
    let straight = Straight::start(both.options("-o nodelay"));
    let _client = straight.acceptor.client();
    let connection = straight.receive();
    assert!(getsockopt(&connection, sockopt::TcpNoDelay).unwrap());
    let _client = connect_unix(straight.acceptor.names.file("s"));
    straight.receive();
}

/// Whether keepalive is on; seconds to the first probe, between probes, and to the end; and the user
/// timeout in milliseconds.
fn keepalive(connection: &OwnedFd) -> (bool, [u32; 3], u32) {
    let is_on = getsockopt(connection, sockopt::KeepAlive).unwrap();
    let idle = getsockopt(connection, sockopt::TcpKeepIdle).unwrap();
    let interval = getsockopt(connection, sockopt::TcpKeepInterval).unwrap();
    let count = getsockopt(connection, sockopt::TcpKeepCount).unwrap();
    let timeout = getsockopt(connection, sockopt::TcpUserTimeout).unwrap();
    (is_on, [idle, interval, idle + interval * count], timeout)
}

#[test]
fn keepalive_ends_the_connection_of_a_dead_client_after_the_time_in_all() {
    let with = |options| keepalive(&accepted_with(options));
    assert_eq!(with("-o keepalive=60"), (true, [30, 10, 60], 60_000));
    assert_eq!(with("-o keepalive=1"), (true, [1, 1, 2], 1000));
    assert_eq!(with("-o keepalive=5"), (true, [2, 1, 5], 5000));
    let longest = [16_384, 5461, 32_767];
    assert_eq!(with("-o keepalive=32767"), (true, longest, 32_767_000));
    // Without a time, those of the kernel hold.
    let (is_on, default, timeout) = with("");
    assert_eq!((is_on, timeout), (false, 0));
    assert_eq!(with("-o keepalive"), (true, default, 0));
    // The last one counts.
    assert_eq!(with("-o keepalive=60 -o keepalive"), (true, default, 0));
}

#[test]
fn a_user_timeout_counts_more_than_that_of_keepalive() {
    let (is_on, _, timeout) = keepalive(&accepted_with("-o user-timeout=2.5"));
    assert_eq!((is_on, timeout), (false, 2500));
    for (options, expected) in [
        ("-o keepalive=60 -o user-timeout=7", 7000),
        ("-o user-timeout=7 -o keepalive=60", 7000),
        ("-o user-timeout=7 -o user-timeout=0 -o keepalive=60", 0),
    ] {
        let found = keepalive(&accepted_with(options));
        assert_eq!(found, (true, [30, 10, 60], expected), "{options}");
    }
}

#[test]
fn an_inherited_listener_takes_the_options_of_connections_and_of_accepting() {
    let listener = TcpListener::bind(ADDRESS).unwrap();
    let inherited = Fdaccept::plain().listen("fd:0");
    let options = "-o keepalive=60 -o user-timeout=7 -o defer=1000";
    let inherited = inherited.options(options).stdin(OwnedFd::from(listener));
    let straight = Straight::start(inherited);
    let _silent = straight.acceptor.client();
    let client = straight.acceptor.client();
    client.send("hello");
    let connection = straight.receive();
    assert_eq!(keepalive(&connection), (true, [30, 10, 60], 7000));
    let peer = TcpStream::from(connection).peer_addr().unwrap();
    assert_eq!(peer.port(), client.local_port());
}

#[test]
fn options_of_tcp_are_refused_where_there_is_no_tcp() {
    for option in ["keepalive=5", "user-timeout=5", "defer=5"] {
        let unix = Fdaccept::cats().args(["-o", option]);
        let log = unix.listen("./s").listen("@fdtools-test-no-tcp").fails(2);
        let expected = format!(
            "fdaccept: socket option {option} applies to none of the addresses: leave it out"
        );
        assert_eq!(log.lines().next(), Some(&*expected));
    }
}
