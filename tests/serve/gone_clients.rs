//! Clients that go while their connection waits in the queue.

use std::os::fd::AsFd;

use crate::support::*;

/// An fdaccept, and a pool with one slot that is busy with a client.
fn busy(options: &[&str], handler: &str) -> (Acceptor, Pool, Client) {
    let acceptor = Fdaccept::bound().args(options).start();
    let pool = Pool::on(&acceptor)
        .arg("-v")
        .slots(1, sh_c(handler))
        .start();
    let client = acceptor.served_client();
    (acceptor, pool, client)
}

#[test]
fn clients_that_reset_while_they_wait_start_no_handler_and_are_counted() {
    let (mut acceptor, mut pool, first) = busy(&[], "exec cat");
    for client in acceptor.clients(5) {
        // What it said is as void as the connection.
        client.send("hello");
        client.reset();
    }
    let last = acceptor.client();
    acceptor.until_counted("passed", 7);
    first.finish();
    last.expect_served();
    last.finish();
    pool.line("status: 0/1, gone: 5");
    let log = pool.stop();
    assert_eq!(log.matches("fdpool: pid ").count(), 2, "{log}");
    assert_eq!(
        times_told(&log, "fdpool: 127.0.0.1", " had gone"),
        5,
        "{log}"
    );
}

#[test]
fn a_client_that_has_sent_its_end_is_served() {
    let (mut acceptor, _pool, first) = busy(&[], "exec cat");
    let half_closed = acceptor.client();
    half_closed.send("half");
    half_closed.end();
    acceptor.until_counted("passed", 2);
    first.finish();
    assert_eq!(half_closed.rest(), "half");
}

/// To the other side that looks like a half-close.
#[test]
fn a_tcp_client_that_has_said_all_and_closed_is_heard() {
    let names = Names::new();
    let heard = names.file("heard");
    let handler = format!("tee -a {}", heard.display());
    let (mut acceptor, mut pool, first) = busy(&[], &handler);
    let client = acceptor.client();
    client.send("last words");
    drop(client);
    acceptor.until_counted("passed", 2);
    first.finish();
    pool.line("end ");
    pool.line("end ");
    assert_eq!(std::fs::read_to_string(heard).unwrap(), "ping\nlast words");
}

#[test]
fn a_unix_client_that_has_said_something_and_closed_is_heard() {
    let names = Names::new();
    let heard = names.file("heard");
    let queue = Queue::new();
    let handler = format!("cat >>{}", heard.display());
    let mut pool = Pool::on(&queue).arg("-v").slots(1, sh_c(&handler)).full();
    let slot = pool.children()[0];
    freeze(slot);
    drop(queue.client());
    let client = queue.client();
    client.send("last words");
    drop(client);
    thaw(slot);
    pool.line("end ");
    assert_eq!(std::fs::read_to_string(heard).unwrap(), "last words");
    let log = pool.log();
    assert_eq!(log.matches("fdpool: pid ").count(), 1, "{log}");
    assert_eq!(log.matches(" had gone").count(), 1, "{log}");
}

#[test]
fn the_lease_of_a_client_that_has_gone_ends() {
    let (mut acceptor, mut pool, first) = busy(&["--max", "2"], "exec cat");
    acceptor.client().reset();
    acceptor.until_counted("passed", 2);
    first.finish();
    pool.line("gone: 1");
    let [served, waiting] = [acceptor.client(), acceptor.client()];
    acceptor.until_counted("passed", 4);
    served.expect_echo("served");
    waiting.expect_echo("waiting");
}

#[test]
fn fdrecv_takes_the_next_one() {
    let queue = Queue::new();
    let (client, server) = tcp_pair();
    queue.send(server.as_fd());
    Client(client).reset();
    drop(server);
    drop(queue.client());
    let client = queue.tcp_client();
    let mut fdrecv = fdrecv_on(&queue).args(["-v", "cat"]).start();
    client.expect_echo("served");
    let log = fdrecv.expect_end(0);
    assert_eq!(log.matches(" had gone").count(), 2, "{log}");
}

#[test]
fn fdrecv_ends_with_69_if_all_clients_have_gone() {
    let mut queue = Queue::new();
    drop(queue.client());
    let mut fdrecv = fdrecv_on(&queue).arg("cat").start();
    queue.close();
    assert_eq!(fdrecv.expect_end(69), "fdrecv: the queue is closed");
}
