//! Clients that are gone without a word, because the cable was pulled: `-o keepalive=SECONDS` and
//! `-o user-timeout=SECONDS`.

use std::io::Read;

use crate::support::*;

/// What a handler says whose client is given up.
const GIVEN_UP: &str = "Connection timed out";

#[track_caller]
fn an_idle_client_is_given_up(options: &str) {
    let network = needs!(FarNetwork::new());
    let mut server = network.server(options, "cat");
    let client = network.client(&server);
    client.expect_served();
    network.pull_cable();
    server.line(GIVEN_UP);
    // The slot is free again, which the end of a pool without connections shows.
    server.stop();
}

cases! {
    an_idle_client_is_given_up;
    keepalive_gives_an_idle_client_up: "-o keepalive=2";
    the_shortest_keepalive_gives_an_idle_client_up: "-o keepalive=1";
    keepalive_counts_probes_where_there_is_no_user_timeout: "-o keepalive=3 -o user-timeout=0";
}

/// The kernel alone would send the data again for 15 minutes.
#[track_caller]
fn a_client_that_acknowledges_nothing_is_given_up(options: &str) {
    let network = needs!(FarNetwork::new());
    let mut server = network.server(options, "yes");
    let client = network.client(&server);
    let mut reader = client.0.try_clone().unwrap();
    let (has_begun, begun) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut bytes = [0; 65536];
        assert_ne!(reader.read(&mut bytes).unwrap(), 0);
        has_begun.send(()).unwrap();
        // Reads on, so that the handler never waits for room at the client.
        while reader.read(&mut bytes).is_ok_and(|count| count > 0) {}
    });
    begun.recv_timeout(DEADLINE).unwrap();
    network.pull_cable();
    server.line(GIVEN_UP);
    client.0.shutdown(std::net::Shutdown::Both).unwrap();
    reader.join().unwrap();
    server.stop();
}

cases! {
    a_client_that_acknowledges_nothing_is_given_up;
    keepalive_gives_a_client_up_while_the_handler_writes: "-o keepalive=2";
    a_user_timeout_gives_a_client_up_while_the_handler_writes: "-o user-timeout=1.5";
    the_user_timeout_counts_while_the_handler_writes: "-o keepalive=1000 -o user-timeout=2";
}

/// The client lives, but TCP_USER_TIMEOUT does not tell why data cannot be sent.
#[test]
fn a_client_that_does_not_read_for_so_long_is_given_up() {
    let mut acceptor = Fdaccept::pool("yes").options("-o keepalive=1").start();
    let _client = acceptor.client();
    acceptor.line(GIVEN_UP);
}
