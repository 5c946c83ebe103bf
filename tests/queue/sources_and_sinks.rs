//! Every way to join the programs: each source with each sink that fits it, over real clients.

use std::fmt::Display;
use std::os::fd::OwnedFd;

use crate::support::*;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::socket::SockType;
use nix::unistd::Pid;

/// A handler that answers the first line and ends. Its client need not end for that.
const ANSWER: [&str; 3] = ["sh", "-c", "read line && echo \"served $line\""];

/// One fdrecv after another, until the queue is closed.
const LOOP: &str = "while fdrecv -- \"$@\" || [ $? -ne 69 ]; do :; done";

/// Ends of one owner of a name after another. KILL leaves the path behind, TERM does not.
const ENDS: [Signal; 3] = [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGTERM];

/// Expects an answer, and the end of the connection with the handler, though the client keeps its
/// own sending side open.
#[track_caller]
fn assert_served(port: u16) {
    assert_eq!(request(port, "hello").rest(), "served hello\n");
}

#[track_caller]
fn assert_three_served(port: u16) {
    (0..3).for_each(|_| assert_served(port));
}

/// A client that has sent one line.
#[track_caller]
fn request(port: u16, line: impl Display) -> Client {
    let client = Client::connect(port);
    client.send(&format!("{line}\n"));
    client
}

/// So many clients. Each has sent its number.
#[track_caller]
fn requests(port: u16, count: usize) -> Vec<Client> {
    (0..count).map(|number| request(port, number)).collect()
}

#[track_caller]
fn assert_answered(clients: &[Client]) {
    for (number, client) in clients.iter().enumerate() {
        assert_eq!(client.line(), format!("served {number}"));
    }
}

fn fdpool(source: &(impl Source + ?Sized), size: usize) -> Pool {
    Pool::on(source).slots(size, ANSWER).start()
}

/// A pool that ends with its queue.
fn fdpool_once(source: &impl Source, size: usize) -> Pool {
    let pool = Pool::on(source).args(["--once"]);
    pool.slots(size, ANSWER).start()
}

fn fdrecv(source: &(impl Source + ?Sized)) -> Process {
    fdrecv_on(source).arg("--").args(ANSWER).start()
}

/// fdaccept that sends to a name.
#[track_caller]
fn sender(name: &str) -> Acceptor {
    Fdaccept::plain().args(["--connect", name]).start()
}

fn pool_at(name: &str, size: usize) -> Pool {
    Pool::bound_at(name).slots(size, ANSWER).start()
}

fn with_pipe(expect: fn((OwnedFd, OwnedFd))) {
    expect(pipe_ends());
}

fn with_sockets(expect: fn((OwnedFd, OwnedFd))) {
    socket_pairs().into_iter().for_each(expect);
}

fn at_path(expect: fn(&str)) {
    expect(&Names::new().path());
}

fn at_name(expect: fn(&str)) {
    expect(&Names::new().abstract_name());
}

/// Tests that expect the same of different queues.
macro_rules! tests {
    ($($test:ident: $body:expr;)*) => {$(
        #[test]
        fn $test() {
            $body;
        }
    )*};
}

// A chain: fdaccept starts the consumer.

#[track_caller]
fn chain(words: &[&str]) -> Acceptor {
    Fdaccept::chain(words.iter().chain(&ANSWER)).start()
}

#[test]
fn a_chain_feeds_fdpool() {
    let mut chain = chain(&["fdpool", "2", "--"]);
    assert_three_served(chain.port);
    chain.stop();
}

#[test]
fn a_chain_feeds_fdrecv_and_exits_as_its_handler() {
    let text = "read line && echo \"served $line\"; exit 9";
    let mut chain = Fdaccept::chain(["fdrecv", "--", "sh", "-c", text]).start();
    assert_served(chain.port);
    chain.expect_end(9);
}

#[test]
fn a_chain_feeds_a_loop_of_fdrecv() {
    let mut chain = chain(&["sh", "-c", LOOP, "sh"]);
    assert_three_served(chain.port);
    chain.stop();
}

#[test]
fn a_chain_exits_as_its_command_exits() {
    for status in [0, 7, 255] {
        let mut chain = Fdaccept::chain(sh_c(&format!("exit {status}"))).start();
        chain.expect_end(status);
    }
}

#[test]
fn a_chain_whose_command_dies_of_a_signal_exits_with_128_and_its_number() {
    for (signal, status) in [("KILL", 137), ("TERM", 143)] {
        let mut chain = Fdaccept::chain(sh_c(&format!("kill -{signal} $$"))).start();
        chain.expect_end(status);
    }
}

#[test]
fn a_chain_ends_with_69_if_its_fdrecv_received_nothing() {
    let mut chain = Fdaccept::chain(["fdrecv", "--", "cat"]).start();
    chain.term();
    chain.expect_end(69);
}

// A pipe, on which tickets travel, and sockets that something else made.

/// Joins fdaccept's standard output with the standard input of `consumer`. Nothing else has an end.
#[track_caller]
fn join<T>(
    option: Option<&str>,
    (write_end, read_end): (OwnedFd, OwnedFd),
    consumer: impl FnOnce(&OwnedFd) -> T,
) -> (Acceptor, T) {
    let acceptor = Fdaccept::plain().args(option).stdout(write_end).start();
    let consumer = consumer(&read_end);
    (acceptor, consumer)
}

fn feeds_fdpool(ends: (OwnedFd, OwnedFd)) {
    let (mut acceptor, mut pool) = join(None, ends, |queue| fdpool(queue, 2));
    assert_three_served(acceptor.port);
    acceptor.stop();
    pool.expect_end(0);
}

fn feeds_fdrecv_and_ends_with_it(ends: (OwnedFd, OwnedFd)) {
    let (mut acceptor, mut handler) = join(None, ends, fdrecv);
    assert_served(acceptor.port);
    handler.expect_end(0);
    acceptor.expect_end(0);
}

tests! {
    a_pipe_feeds_fdpool: with_pipe(feeds_fdpool);
    a_socket_on_standard_output_feeds_fdpool: with_sockets(feeds_fdpool);
    a_pipe_feeds_fdrecv_and_ends_with_it: with_pipe(feeds_fdrecv_and_ends_with_it);
    a_socket_on_standard_output_feeds_fdrecv_and_ends_with_it: with_sockets(feeds_fdrecv_and_ends_with_it);
}

#[test]
fn a_pipe_feeds_one_fdrecv_after_another() {
    let mut acceptor = Fdaccept::piped().start();
    for _ in 0..3 {
        let mut handler = fdrecv(&acceptor);
        assert_served(acceptor.port);
        handler.expect_end(0);
    }
    drop(acceptor.take_pipe());
    acceptor.expect_end(0);
}

#[test]
fn three_consumers_on_one_pipe_all_get_work() {
    for words in [&["fdpool", "1"][..], &["fdrecv"]] {
        let mut acceptor = Fdaccept::piped().start();
        let pipe = acceptor.take_pipe();
        let mut consumers = ["a", "b", "c"].map(|name| {
            let text = format!("echo {name}; exec cat");
            let mut consumer = program(words[0]);
            pipe.give_to(consumer.args(&words[1..]).arg("--").args(sh_c(&text)));
            consumer.start()
        });
        drop(pipe);
        // Each has room for 1 connection: the third one served is the third consumer's.
        let clients = [(); 3].map(|()| acceptor.client());
        let mut names = clients.each_ref().map(Client::line);
        names.sort();
        assert_eq!(names, ["a", "b", "c"]);
        drop(clients);
        acceptor.term();
        for consumer in &mut consumers {
            consumer.expect_end(0);
        }
        acceptor.expect_end(0);
    }
}

/// Consumers come and go while connections wait: each connection is answered.
fn come_and_go(acceptor: &Acceptor) {
    let port = acceptor.port;
    let start = || Pool::on(acceptor).args(["-v"]).slots(2, ANSWER).start();
    let mut clients = Vec::new();
    for _ in 0..5 {
        let first = clients.len();
        clients.extend((first..first + 4).map(|number| request(port, number)));
        let mut pool = start();
        // It stops once it has begun to serve. Other connections may still wait.
        pool.line("pid ");
        pool.stop();
    }
    let mut last = start();
    assert_answered(&clients);
    // Without a connection left for it, the last pool may not have begun.
    assert_served(port);
    last.stop();
}

#[test]
fn consumers_that_join_and_leave_a_pipe_lose_no_connection() {
    let mut acceptor = Fdaccept::piped().start();
    come_and_go(&acceptor);
    drop(acceptor.take_pipe());
    acceptor.expect_end(0);
}

#[test]
fn many_connections_through_a_stream_socket_stay_apart() {
    // A stream has no messages. Connections that wait in it together are still one each.
    let (write_end, read_end) = socket_pair(SockType::Stream);
    let mut acceptor = Fdaccept::plain().args(["-v"]).stdout(write_end).start();
    let clients = requests(acceptor.port, 20);
    acceptor.until_accepted(20);
    let mut pool = fdpool(&read_end, 3);
    drop(read_end);
    assert_answered(&clients);
    acceptor.stop();
    pool.expect_end(0);
}

// Queues at other descriptors.

/// fdaccept with its side of the queue as descriptor 5, and nothing of it elsewhere.
fn fdaccept_at_5(write_end: OwnedFd) -> (Process, u16) {
    let text = format!("exec fdaccept --queue-fd 5 {ADDRESS} 5>&1 >/dev/null");
    let mut acceptor = sh(&text).stdout(write_end).start();
    let port = acceptor.port();
    (acceptor, port)
}

/// A consumer with its side of the queue as descriptor 6.
fn consumer_at_6(words: &str, read_end: OwnedFd) -> Process {
    let text = format!("exec {words} -- \"$@\" 6<&0 </dev/null");
    sh(&text).arg("sh").args(ANSWER).stdin(read_end).start()
}

fn queue_fd_on_both_sides((write_end, read_end): (OwnedFd, OwnedFd)) {
    let (mut acceptor, port) = fdaccept_at_5(write_end);
    let mut pool = consumer_at_6("fdpool --queue-fd 6 2", read_end);
    assert_served(port);
    acceptor.stop();
    pool.expect_end(0);
}

tests! {
    queue_fd_takes_a_socket_pair_on_both_sides: with_sockets(queue_fd_on_both_sides);
    queue_fd_takes_a_pipe_on_both_sides: with_pipe(queue_fd_on_both_sides);
}

#[test]
fn queue_fd_of_fdrecv_takes_a_socket_or_a_pipe() {
    let consumer = |queue: &OwnedFd| {
        let queue = queue.try_clone().unwrap();
        consumer_at_6("fdrecv --queue-fd 6", queue)
    };
    for ends in socket_pairs().into_iter().chain([pipe_ends()]) {
        let (mut acceptor, mut handler) = join(None, ends, consumer);
        assert_served(acceptor.port);
        handler.expect_end(0);
        acceptor.expect_end(0);
    }
}

#[test]
fn fdaccept_fails_when_the_readers_of_its_queue_fd_are_gone() {
    let (write_end, read_end) = socket_pair(SockType::SeqPacket);
    let (mut acceptor, _) = fdaccept_at_5(write_end);
    drop(read_end);
    let log = acceptor.expect_end(1);
    assert!(log.contains("nobody takes connections"), "{log}");
}

// A name that fdaccept owns.

fn named_queue_feeds_fdpool(name: &str) {
    let mut acceptor = Fdaccept::bound_at(name).start();
    let mut pool = fdpool_once(&acceptor, 2);
    assert_three_served(acceptor.port);
    acceptor.stop();
    pool.expect_end(0);
}

tests! {
    fdpool_connects_to_a_path_that_fdaccept_owns: at_path(named_queue_feeds_fdpool);
    fdpool_connects_to_an_abstract_name_that_fdaccept_owns: at_name(named_queue_feeds_fdpool);
}

fn named_queue_feeds_fdrecv(name: &str) {
    let mut acceptor = Fdaccept::bound_at(name).start();
    for _ in 0..3 {
        let mut handler = fdrecv(&acceptor);
        assert_served(acceptor.port);
        handler.expect_end(0);
    }
    // Unlike a pipe, a name does not end with its consumers.
    assert!(acceptor.is_running());
    acceptor.stop();
}

tests! {
    fdrecv_connects_to_a_path_that_fdaccept_owns: at_path(named_queue_feeds_fdrecv);
    fdrecv_connects_to_an_abstract_name_that_fdaccept_owns: at_name(named_queue_feeds_fdrecv);
}

#[test]
fn consumers_that_join_and_leave_a_named_queue_lose_no_connection() {
    let mut acceptor = Fdaccept::bound().start();
    come_and_go(&acceptor);
    acceptor.stop();
}

#[test]
fn fdpool_waits_for_a_name_that_does_not_exist_yet() {
    for name in Names::new().both() {
        let mut pool = fdpool(&name, 2);
        pool.line(&format!("cannot connect to {name}"));
        let mut acceptor = Fdaccept::bound_at(&name).start();
        assert_served(acceptor.port);
        pool.line(&format!("connected to {name}"));
        pool.stop();
        acceptor.stop();
    }
}

#[test]
fn fdpool_connects_again_when_fdaccept_is_back() {
    for name in Names::new().both() {
        let mut pool = fdpool(&name, 2);
        for signal in ENDS {
            let mut acceptor = Fdaccept::bound_at(&name).start();
            assert_served(acceptor.port);
            assert_served(acceptor.port);
            acceptor.end_by(signal);
            assert!(pool.is_running());
        }
        pool.stop();
    }
}

#[test]
fn fdpool_once_ends_with_fdaccept() {
    let names = Names::new();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut acceptor = Fdaccept::bound_at(&names.path()).start();
        let mut pool = fdpool_once(&acceptor, 2);
        assert_served(acceptor.port);
        acceptor.end_by(signal);
        pool.expect_end(0);
    }
}

// A name that the consumer owns.

fn fdpool_owns(name: &str) {
    let mut pool = pool_at(name, 2);
    let mut acceptor = sender(name);
    assert_three_served(acceptor.port);
    acceptor.stop();
    // Other senders may come.
    assert!(pool.is_running());
    pool.stop();
}

tests! {
    fdaccept_connects_to_a_path_that_fdpool_owns: at_path(fdpool_owns);
    fdaccept_connects_to_an_abstract_name_that_fdpool_owns: at_name(fdpool_owns);
}

/// fdrecv that owns a name.
fn fdrecv_at(name: &str, options: &[&str]) -> Process {
    let mut fdrecv = program("fdrecv");
    fdrecv.args(options).args(["--bind", name, "--"]);
    fdrecv.args(ANSWER).start()
}

fn fdrecv_owns(name: &str) {
    let mut handler = fdrecv_at(name, &[]);
    let mut acceptor = sender(name);
    assert_served(acceptor.port);
    handler.expect_end(0);
    acceptor.stop();
}

tests! {
    fdaccept_connects_to_a_path_that_fdrecv_owns: at_path(fdrecv_owns);
    fdaccept_connects_to_an_abstract_name_that_fdrecv_owns: at_name(fdrecv_owns);
}

#[test]
fn two_fdaccepts_send_to_one_fdpool() {
    let names = Names::new();
    let mut pool = pool_at(&names.path(), 2);
    let mut acceptors = [(); 2].map(|()| sender(&names.path()));
    for acceptor in acceptors.iter().cycle().take(6) {
        assert_served(acceptor.port);
    }
    for acceptor in &mut acceptors {
        acceptor.stop();
    }
    pool.stop();
}

#[test]
fn a_connection_waits_until_a_consumer_owns_the_name() {
    for name in Names::new().both() {
        let mut acceptor = sender(&name);
        let clients = requests(acceptor.port, 2);
        acceptor.line("connections wait");
        let mut pool = pool_at(&name, 1);
        assert_answered(&clients);
        acceptor.stop();
        pool.stop();
    }
}

#[test]
fn a_consumer_that_owns_the_name_can_be_replaced() {
    let names = Names::new();
    let name = &names.path();
    let mut acceptor = sender(name);
    for signal in ENDS {
        // This client comes while nobody has the name.
        let early = request(acceptor.port, "early");
        let mut pool = pool_at(name, 1);
        assert_eq!(early.line(), "served early");
        assert_served(acceptor.port);
        pool.signal(signal);
        // The pool's slots have the socket too.
        pool.finish();
    }
    acceptor.stop();
}

// How they end.

#[test]
fn fdaccept_ends_with_0_when_its_readers_leave_and_all_was_taken() {
    let (mut acceptor, mut pool) = join(None, pipe_ends(), |queue| fdpool(queue, 1));
    assert_served(acceptor.port);
    pool.stop();
    let log = acceptor.expect_end(0);
    assert!(!log.contains("not taken"), "{log}");
}

#[test]
fn fdaccept_ends_with_1_and_their_number_when_its_readers_leave_connections() {
    for (count, message) in [
        (1, "fdaccept: 1 connection was accepted and not taken"),
        (3, "fdaccept: 3 connections were accepted and not taken"),
    ] {
        let mut acceptor = Fdaccept::piped().args(["-v"]).start();
        let clients: Vec<_> = (0..count).map(|_| acceptor.client()).collect();
        acceptor.until_accepted(count);
        drop(acceptor.take_pipe());
        let log = acceptor.expect_end(1);
        assert!(log.ends_with(message), "{log}");
        // They are not left hanging.
        clients.into_iter().for_each(Client::expect_closed);
    }
}

#[test]
fn fdaccept_ends_with_1_when_nobody_took_from_its_name() {
    let fdaccept = Fdaccept::bound().args(["-v", "--grace", "0"]);
    let mut acceptor = fdaccept.start();
    let _client = acceptor.client();
    acceptor.until_accepted(1);
    acceptor.term();
    let log = acceptor.expect_end(1);
    let message = "1 connection was accepted and not taken";
    assert!(log.contains(message), "{log}");
}

/// Ends fdpool alone by KILL while its handler serves a client and 3 other clients wait.
#[track_caller]
fn kill_pool(acceptor: &mut Acceptor, pool: Pid) {
    let client = acceptor.served_client();
    let waiting = acceptor.clients(3);
    acceptor.until_counted("passed", 4);
    kill(pool, Signal::SIGKILL).unwrap();
    waiting.into_iter().for_each(Client::expect_closed);
    client.expect_served();
    client.finish();
}

const THREE_LEFT: &str = "fdaccept: 3 connections were accepted and not taken";

#[test]
fn what_a_killed_pool_leaves_in_a_pipe_is_told() {
    let mut acceptor = Fdaccept::piped().start();
    let pool = Pool::on(&acceptor).slots(1, ["cat"]).start();
    drop(acceptor.take_pipe());
    kill_pool(&mut acceptor, pool.pid());
    let log = acceptor.expect_end(1);
    assert!(log.ends_with(THREE_LEFT), "{log}");
}

#[test]
fn what_a_killed_pool_leaves_in_a_socket_is_told() {
    let (write_end, read_end) = socket_pair(SockType::Stream);
    let mut acceptor = Fdaccept::plain().stdout(write_end).start();
    let pool = Pool::on(&read_end).slots(1, ["cat"]).start();
    drop(read_end);
    kill_pool(&mut acceptor, pool.pid());
    let log = acceptor.expect_end(1);
    expect_left(log.lines().last().unwrap(), 3);
}

#[test]
fn what_a_killed_pool_leaves_in_a_chain_is_told() {
    let mut chain = Fdaccept::chain(["fdpool", "1", "--", "cat"]).start();
    until("the pool", || !chain.children().is_empty());
    let pool = chain.children()[0];
    kill_pool(&mut chain, pool);
    let log = chain.expect_end(128 + 9);
    expect_left(log.lines().last().unwrap(), 3);
}

/// There the next pool could take them.
#[test]
fn what_a_killed_pool_leaves_at_a_name_is_told_after_a_stop() {
    let mut acceptor = Fdaccept::bound().args(["--grace", "0.3"]).start();
    let pool = Pool::on(&acceptor).slots(1, ["cat"]).start();
    let client = acceptor.served_client();
    let _waiting = acceptor.clients(3);
    acceptor.until_counted("passed", 4);
    pool.signal(Signal::SIGKILL);
    acceptor.term();
    let log = acceptor.expect_end(1);
    assert!(log.ends_with(THREE_LEFT), "{log}");
    client.expect_served();
    client.finish();
}

#[test]
fn a_worker_that_only_has_the_queue_does_not_count_as_a_consumer() {
    let mut acceptor = Fdaccept::piped().start();
    let stays = sh_c("trap '' TERM HUP; exec sleep 60");
    let mut pool = Pool::on(&acceptor).workers(1, stays).full();
    let worker = pool.members()[0];
    until_named(worker, "sleep");
    drop(acceptor.take_pipe());
    let _waiting = acceptor.clients(3);
    acceptor.until_counted("passed", 3);
    pool.slay();
    let log = acceptor.expect_end(1);
    assert!(is_alive(worker));
    killpg(worker, Signal::SIGKILL).unwrap();
    assert!(log.ends_with(THREE_LEFT), "{log}");
}

#[test]
fn fdpool_ends_with_69_if_there_never_was_a_queue() {
    let message = "fdpool: cannot get the queue: the pipe ended without a ticket from fdaccept";
    for options in [&[][..], &["--worker"]] {
        let (_, read_end) = pipe_ends();
        let mut pool = Pool::on(&read_end).args(options).slots(2, ["cat"]).start();
        assert_eq!(pool.expect_end(69), message);
    }
    let (_listener, port) = listener();
    let mut pipeline = sh(&format!("fdaccept 127.0.0.1:{port} | fdpool 2 -- cat")).start();
    let log = pipeline.expect_end(69);
    assert!(log.contains("Address already in use"), "{log}");
    assert!(log.contains(message), "{log}");
}

#[test]
fn fdpool_ends_with_0_if_its_queue_ends_without_a_connection() {
    let (mut acceptor, mut pool) = join(None, pipe_ends(), |queue| fdpool(queue, 1));
    until("the queue", || !pool.children().is_empty());
    acceptor.stop();
    pool.expect_quiet_end();
}

#[test]
fn fdrecv_ends_with_69_when_the_queue_is_closed() {
    let (mut acceptor, mut waiting) = join(None, pipe_ends(), fdrecv);
    acceptor.stop();
    waiting.expect_end(69);
    for (write_end, read_end) in socket_pairs().into_iter().chain([pipe_ends()]) {
        drop(write_end);
        fdrecv(&read_end).expect_end(69);
    }
}

#[test]
fn fdrecv_ends_with_69_when_nobody_owns_the_name() {
    for name in Names::new().both() {
        fdrecv(&name).expect_end(69);
    }
}

#[test]
fn fdrecv_ends_with_69_when_its_time_is_up() {
    let timeout = ["--timeout", "0.1"];
    fdrecv_at(&Names::new().path(), &timeout).expect_end(69);
    let consumer = |queue: &OwnedFd| {
        fdrecv_on(queue)
            .args(timeout)
            .arg("--")
            .args(ANSWER)
            .start()
    };
    let (_acceptor, mut receiver) = join(None, pipe_ends(), consumer);
    receiver.expect_end(69);
}

#[test]
fn fdrecv_of_a_named_queue_ends_with_69_when_fdaccept_goes() {
    let mut acceptor = Fdaccept::bound().start();
    let mut receiver = fdrecv(&acceptor);
    until("fdrecv at the name", || !sockets(receiver.pid()).is_empty());
    acceptor.stop();
    receiver.expect_end(69);
}

/// Fills the queue of an fdaccept that serves through one busy slot, kills fdaccept, and expects
/// that the queue is served to its end.
fn assert_drained_after_kill(acceptor: &mut Acceptor) {
    // The consumer has the queue.
    assert_served(acceptor.port);
    acceptor.until_accepted(1);
    let busy = acceptor.client();
    let waiting = requests(acceptor.port, 5);
    // fdaccept has at most 1 connection in hand. Once it has accepted this one, the earlier ones
    // are in the queue.
    let _in_hand = acceptor.client();
    acceptor.until_accepted(7);
    acceptor.end_by(Signal::SIGKILL);
    busy.send("first\n");
    assert_eq!(busy.line(), "served first");
    assert_answered(&waiting);
}

fn pool_drains(ends: (OwnedFd, OwnedFd)) {
    let (mut acceptor, mut pool) = join(Some("-v"), ends, |queue| fdpool(queue, 1));
    assert_drained_after_kill(&mut acceptor);
    pool.expect_end(0);
}

tests! {
    a_pool_on_a_pipe_drains_the_queue_of_an_fdaccept_that_was_killed: with_pipe(pool_drains);
    a_pool_on_a_socket_drains_the_queue_of_an_fdaccept_that_was_killed: with_sockets(pool_drains);
}

#[test]
fn a_pool_on_a_named_queue_drains_it_when_its_fdaccept_was_killed() {
    let mut acceptor = Fdaccept::bound().args(["-v"]).start();
    let mut pool = fdpool_once(&acceptor, 1);
    assert_drained_after_kill(&mut acceptor);
    pool.expect_end(0);
}

#[test]
fn a_pool_in_a_chain_drains_the_queue_of_an_fdaccept_that_was_killed() {
    let words = sh_c("echo pool $$ >&2; exec fdpool 1 -- \"$@\"");
    let words = words.iter().chain(&["sh"]).chain(&ANSWER);
    let mut chain = Fdaccept::chain(words).args(["-v"]).start();
    let line = chain.line("pool ");
    let pool = Pid::from_raw(line.rsplit_once(' ').unwrap().1.parse().unwrap());
    assert_drained_after_kill(&mut chain);
    until_gone(pool);
}

#[test]
fn a_loop_of_fdrecv_on_a_socket_drains_the_queue_of_an_fdaccept_that_was_killed() {
    let consumers = |queue: &OwnedFd| {
        let mut shell = sh(LOOP);
        queue.give_to(shell.arg("sh").args(ANSWER));
        shell.start()
    };
    let ends = socket_pair(SockType::SeqPacket);
    let (mut acceptor, mut consumers) = join(Some("-v"), ends, consumers);
    assert_drained_after_kill(&mut acceptor);
    consumers.expect_end(0);
}

#[test]
fn a_unix_listener_feeds_a_pool() {
    let names = Names::new();
    let path = names.text("listener");
    let mut acceptor = Fdaccept::piped().listen(&path).start();
    let mut pool = fdpool(&acceptor, 1);
    drop(acceptor.take_pipe());
    let client = Client::connect_unix(&path);
    client.send("hello\n");
    assert_eq!(client.rest(), "served hello\n");
    acceptor.stop();
    pool.expect_end(0);
}
