//! Unix clients who send descriptors, in connections that fdaccept closes: a refusal, a farewell and
//! a stop take no longer for it.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::support::*;
use fdtools::queue::send;
use nix::sys::signal::Signal;

/// A client with sockets in flight that linger for an hour, and their other sides. fdaccept must not
/// close the client meanwhile, or it is the test that closes them last.
fn attacker(listener: impl AsRef<Path>) -> (UnixStream, Vec<OwnedFd>) {
    let client = connect_unix(listener);
    let (others, sockets): (Vec<_>, Vec<_>) = (0..20).map(|_| lingering_pair()).unzip();
    let borrowed: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
    send(&client, b"x", &borrowed).unwrap();
    // The message now has the last copies.
    leave(sockets);
    (client, others)
}

/// fdaccept at a Unix socket, for clients that are to be refused, and over TCP.
fn start(fdaccept: Fdaccept) -> Acceptor {
    let fdaccept = fdaccept.file("words", "421 later\r\n");
    fdaccept.listen(ADDRESS).listen("./listener").start()
}

/// Expects that clients over TCP are served after attackers have been refused, who had sent their
/// sockets before they were accepted.
#[track_caller]
fn assert_refused_at_no_cost(acceptor: &Acceptor) {
    let listener = acceptor.names.file("listener");
    let attackers = acceptor.at_once(&[], || [(); 3].map(|()| attacker(&listener)));
    for last in 1..=3 {
        acceptor
            .client_from([127, 0, 0, last])
            .expect_echo("served");
    }
    drop(attackers);
}

#[test]
fn what_a_client_that_a_rule_denies_has_sent_does_not_stop_fdaccept() {
    let mut acceptor = start(Fdaccept::cats().options("--allow-uid 4000000001"));
    assert_refused_at_no_cost(&acceptor);
    acceptor.until_counted("refused by rule", 3);
}

/// The same for clients beyond a limit that are told `what`.
fn assert_full_at_no_cost(what: &str) {
    let options = format!("--max-per-source 1 --when-full {what}");
    let mut acceptor = start(Fdaccept::cats().options(&options));
    let first = Client::connect_unix(acceptor.names.file("listener"));
    first.expect_served();
    assert_refused_at_no_cost(&acceptor);
    acceptor.until_counted("by limit", 3);
}

cases! {
    assert_full_at_no_cost;
    what_a_client_beyond_a_limit_has_sent_does_not_stop_fdaccept: "close";
    what_a_client_that_is_told_last_words_has_sent_does_not_stop_fdaccept: "./words";
}

#[test]
fn what_a_client_sends_after_last_words_does_not_stop_fdaccept() {
    let options = "--max-per-source 1 --when-full ./words";
    let acceptor = start(Fdaccept::cats().options(options));
    let listener = acceptor.names.file("listener");
    let first = Client::connect_unix(&listener);
    first.expect_served();
    let (_second, _other) = eventually("a client whose end is awaited", || {
        let second = Client::connect_unix(&listener);
        assert_eq!(second.line(), "421 later\r");
        acceptor.at_once(&[], || {
            let (other, socket) = lingering_pair();
            // On a busy machine it is given up by now.
            let sent = send(&second.0, b"x", &[socket.as_fd()]);
            leave(socket);
            sent.is_ok().then_some((second, other))
        })
    });
    for last in 1..=3 {
        acceptor
            .client_from([127, 0, 0, last])
            .expect_echo("served");
    }
}

#[test]
fn what_clients_in_a_backlog_have_sent_does_not_delay_the_end_of_fdaccept() {
    let mut acceptor = start(Fdaccept::chain(["cat"]));
    let listener = acceptor.names.file("listener");
    let command = eventually("the command", || acceptor.children().pop());
    until_named(command, "cat");
    let _attackers = acceptor.at_once(&[], || {
        nix::sys::signal::kill(command, Signal::SIGKILL).unwrap();
        [(); 3].map(|()| attacker(&listener))
    });
    acceptor.expect_exit(137);
}

#[test]
fn what_the_client_of_the_connection_in_hand_has_sent_does_not_delay_the_end_of_fdaccept() {
    let names = Names::new();
    let fdaccept = Fdaccept::plain().args(["--connect", &names.path()]);
    let mut acceptor = start(fdaccept);
    let listener = acceptor.names.file("listener");
    let _attacker = attacker(&listener);
    acceptor.line("connections wait");
    acceptor.signal(Signal::SIGTERM);
    acceptor.signal(Signal::SIGINT);
    acceptor.expect_exit(1);
}
