//! A stop with a full queue.

use nix::sys::socket::SockType;

use super::*;

#[test]
fn what_nobody_takes_from_a_full_queue_is_counted_after_the_grace() {
    for form in [Form::Pipe, Form::Bind] {
        let mut site = Site::start(form, 1, &["--grace", "0.3", "--queue", "3"]);
        let clients = site.clients(5);
        site.until_told(told(3, 3, 0));
        site.acceptor.term();
        let expected = "fdaccept: 3 connections were accepted and not taken";
        site.ends_with(1, told(3, 3, 0), expected);
        // Nor is what was in the backlog left hanging.
        clients.into_iter().skip(3).for_each(Client::expect_closed);
    }
}

#[test]
fn a_second_signal_does_not_wait_for_room() {
    let mut site = Site::start(Form::Pipe, 1, &["--grace", "3600", "--queue", "1"]);
    let _clients = site.clients(3);
    site.until_told(told(1, 1, 0));
    site.acceptor.term();
    site.stays_told(told(1, 1, 0));
    site.acceptor.term();
    let expected = "fdaccept: 1 connection was accepted and not taken";
    site.ends_with(1, told(1, 1, 0), expected);
}

#[test]
fn a_command_that_takes_nothing_gets_term_after_the_grace_and_what_it_left_is_told() {
    let fdaccept = Fdaccept::chain(["sleep", "1000"]);
    let mut acceptor = fdaccept.options("--grace 0.3 --queue 2").start();
    let clients = acceptor.clients(4);
    until("a full queue", || {
        Told::read(&acceptor.counters()) == told(2, 2, 0)
    });
    acceptor.term();
    let log = acceptor.expect_end(128 + 15);
    expect_left(log.lines().last().unwrap(), 2);
    clients.into_iter().for_each(Client::expect_closed);
}

#[test]
fn what_was_passed_into_a_full_queue_of_somebody_else_is_served_after_the_end() {
    for form in [
        Form::Output(SockType::Stream),
        Form::QueueFd(SockType::SeqPacket),
        Form::Connect,
    ] {
        let options = ["--grace", "0.3", "--queue", "2"];
        let (mut site, mut clients) = Site::filled(form, 1, &options, 4, 2);
        site.acceptor.term();
        let (log, last) = site.finish(0);
        assert_eq!(last, told(2, 2, 0), "{log}");
        clients.drain(2..).for_each(Client::expect_closed);
        site.resume();
        clients.into_iter().for_each(serve);
    }
}

#[test]
fn what_a_command_takes_after_a_stop_is_counted() {
    let names = Names::new();
    let path = names.text("s");
    let options = ["--queue", "5", &path];
    let (mut site, clients) = Site::filled(Form::Chain, 1, &options, 3, 3);
    site.acceptor.term();
    // The queue is closed with the listeners, and what is in it can still be taken.
    until("the end of the listeners", || !names.file("s").exists());
    assert_eq!(site.ask(), told(3, 3, 0));
    site.resume();
    for (served, client) in clients.into_iter().enumerate() {
        site.until_told(told(3, 3, served + 1));
        serve(client);
    }
    let (log, last) = site.finish(0);
    assert_eq!(last, told(3, 3, 3), "{log}");
}
