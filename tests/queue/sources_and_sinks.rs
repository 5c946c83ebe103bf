//! Every way to join the programs: each source with each sink that fits it, over real clients.

use std::io::{ErrorKind, Read, Write, pipe};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use crate::support::*;
use nix::sys::signal::Signal;
use nix::sys::socket::SockType;

/// A handler that answers the first line and ends; its client does not have to end for that.
const ANSWER: [&str; 3] = ["sh", "-c", "read line && echo \"served $line\""];

/// One fdrecv after another, until the queue is closed.
const LOOP: &str = "while fdrecv -- \"$@\" || [ $? -ne 69 ]; do :; done";

/// Any free port.
const ADDRESS: &str = "127.0.0.1:0";

/// Whether the other side answers and, when the handler ends, the client sees the end, though it
/// keeps its own sending side open.
#[track_caller]
fn assert_served(port: u16) {
    let mut client = request(port, "hello");
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "served hello\n");
}

/// A client that has sent one line.
#[track_caller]
fn request(port: u16, line: &str) -> TcpStream {
    let mut client = connect(port);
    writeln!(client, "{line}").unwrap();
    client
}

/// Ends a program as a service manager does, and expects that this is no failure.
#[track_caller]
fn stop(process: &mut Process) {
    process.signal(Signal::SIGTERM);
    assert_ends_with(process, 0);
}

#[track_caller]
fn assert_ends_with(process: &mut Process, status: i32) {
    let (ended, log) = process.finish();
    assert_eq!(ended.code(), Some(status), "{log}");
}

fn fdaccept(arguments: &[&str]) -> Command {
    let mut command = program("fdaccept");
    command.args(arguments);
    command
}

/// `fdpool`, or whatever else these words start with, and then the handler that answers.
fn consumer(words: &[&str]) -> Command {
    let mut command = program(words[0]);
    command.args(&words[1..]).arg("--").args(ANSWER);
    command
}

// A chain: fdaccept starts the consumer.

#[test]
fn a_chain_feeds_fdpool() {
    let mut chain = fdaccept(&[ADDRESS, "--", "fdpool", "2", "--"]);
    let mut chain = Process::start(chain.args(ANSWER));
    let port = chain.port();
    for _ in 0..3 {
        assert_served(port);
    }
    stop(&mut chain);
}

#[test]
fn a_chain_feeds_fdrecv_and_exits_as_its_handler() {
    let handler = ["sh", "-c", "read line && echo \"served $line\"; exit 9"];
    let mut chain = fdaccept(&[ADDRESS, "--", "fdrecv", "--"]);
    let mut chain = Process::start(chain.args(handler));
    assert_served(chain.port());
    assert_ends_with(&mut chain, 9);
}

#[test]
fn a_chain_feeds_a_loop_of_fdrecv() {
    let mut chain = fdaccept(&[ADDRESS, "--", "sh", "-c", LOOP, "sh"]);
    let mut chain = Process::start(chain.args(ANSWER));
    let port = chain.port();
    for _ in 0..3 {
        assert_served(port);
    }
    stop(&mut chain);
}

#[test]
fn a_chain_exits_as_its_command_exits() {
    for status in [0, 7, 255] {
        let exit = format!("exit {status}");
        let mut chain = Process::start(&mut fdaccept(&[ADDRESS, "--", "sh", "-c", &exit]));
        assert_ends_with(&mut chain, status);
    }
}

#[test]
fn a_chain_whose_command_dies_of_a_signal_exits_with_128_and_its_number() {
    for (signal, status) in [("KILL", 137), ("TERM", 143)] {
        let die = format!("kill -{signal} $$");
        let mut chain = Process::start(&mut fdaccept(&[ADDRESS, "--", "sh", "-c", &die]));
        assert_ends_with(&mut chain, status);
    }
}

#[test]
fn a_chain_ends_with_69_if_its_fdrecv_received_nothing() {
    let mut chain = Process::start(&mut fdaccept(&[ADDRESS, "--", "fdrecv", "--", "cat"]));
    chain.port();
    chain.signal(Signal::SIGTERM);
    assert_ends_with(&mut chain, 69);
}

// A pipe, on which tickets travel.

/// A pipeline of fdaccept and a consumer.
fn pipeline(options: &[&str], consumer: &mut Command) -> (Process, Process) {
    let (reader, writer) = pipe().unwrap();
    let acceptor = Process::start(fdaccept(options).arg(ADDRESS).stdout(writer));
    let consumer = start_on(reader, consumer);
    (acceptor, consumer)
}

/// A consumer with this read end as its standard input. The command, which would keep that open,
/// is made to forget it.
fn start_on(read_end: impl Into<Stdio>, consumer: &mut Command) -> Process {
    let process = Process::start(consumer.stdin(read_end));
    consumer.stdin(Stdio::null());
    process
}

#[test]
fn a_pipe_feeds_fdpool() {
    let (mut acceptor, mut pool) = pipeline(&[], &mut consumer(&["fdpool", "2"]));
    let port = acceptor.port();
    for _ in 0..3 {
        assert_served(port);
    }
    stop(&mut acceptor);
    assert_ends_with(&mut pool, 0);
}

#[test]
fn a_pipe_feeds_fdrecv_and_ends_with_it() {
    let (mut acceptor, mut handler) = pipeline(&[], &mut consumer(&["fdrecv"]));
    assert_served(acceptor.port());
    assert_ends_with(&mut handler, 0);
    assert_ends_with(&mut acceptor, 0);
}

#[test]
fn a_pipe_feeds_one_fdrecv_after_another() {
    let (reader, writer) = pipe().unwrap();
    let mut acceptor = Process::start(fdaccept(&[ADDRESS]).stdout(writer));
    let port = acceptor.port();
    for _ in 0..3 {
        let mut handler = start_on(reader.try_clone().unwrap(), &mut consumer(&["fdrecv"]));
        assert_served(port);
        assert_ends_with(&mut handler, 0);
    }
    drop(reader);
    assert_ends_with(&mut acceptor, 0);
}

#[test]
fn three_consumers_on_one_pipe_all_get_work() {
    for words in [&["fdpool", "1"][..], &["fdrecv"]] {
        let (reader, writer) = pipe().unwrap();
        let mut acceptor = Process::start(fdaccept(&[ADDRESS]).stdout(writer));
        let port = acceptor.port();
        let mut consumers: Vec<_> = ["a", "b", "c"]
            .iter()
            .map(|name| {
                let mut command = program(words[0]);
                command.args(&words[1..]).args(["--", "sh", "-c"]);
                command.arg(format!("echo {name}; exec cat"));
                start_on(reader.try_clone().unwrap(), &mut command)
            })
            .collect();
        drop(reader);
        // Each has room for one connection, so a third that is served is the third consumer's.
        let clients: Vec<_> = (0..3).map(|_| connect(port)).collect();
        let mut names: Vec<_> = clients.iter().map(read_line).collect();
        names.sort();
        assert_eq!(names, ["a", "b", "c"]);
        drop(clients);
        acceptor.signal(Signal::SIGTERM);
        for consumer in &mut consumers {
            assert_ends_with(consumer, 0);
        }
        assert_ends_with(&mut acceptor, 0);
    }
}

#[test]
fn consumers_that_join_and_leave_a_pipe_lose_no_connection() {
    let (reader, writer) = pipe().unwrap();
    let mut acceptor = Process::start(fdaccept(&[ADDRESS]).stdout(writer));
    let port = acceptor.port();
    come_and_go(port, || {
        let mut pool = consumer(&["fdpool", "-v", "2"]);
        start_on(reader.try_clone().unwrap(), &mut pool)
    });
    drop(reader);
    assert_ends_with(&mut acceptor, 0);
}

/// Consumers come and go while connections wait: each of these is answered.
#[track_caller]
fn come_and_go(port: u16, start: impl Fn() -> Process) {
    let mut clients = Vec::new();
    for _ in 0..5 {
        let first = clients.len();
        clients.extend((first..first + 4).map(|number| request(port, &number.to_string())));
        let mut pool = start();
        // It is stopped when it has begun to serve; others may still wait.
        pool.line("pid ");
        stop(&mut pool);
    }
    let mut last = start();
    for (number, client) in clients.iter().enumerate() {
        assert_eq!(read_line(client), format!("served {number}"));
    }
    // If nothing was left for it, it may not have begun.
    assert_served(port);
    stop(&mut last);
}

// Sockets that something else made.

/// fdaccept on one side of a pair as its standard output, and a consumer on the other.
fn pair_pipeline(kind: SockType, consumer: &mut Command) -> (Process, Process) {
    let (write_end, read_end) = socket_pair(kind);
    let acceptor = Process::start(fdaccept(&[ADDRESS]).stdout(write_end));
    let consumer = start_on(read_end, consumer);
    (acceptor, consumer)
}

#[test]
fn a_socket_on_standard_output_feeds_fdpool() {
    for kind in [SockType::Stream, SockType::SeqPacket] {
        let (mut acceptor, mut pool) = pair_pipeline(kind, &mut consumer(&["fdpool", "2"]));
        let port = acceptor.port();
        for _ in 0..3 {
            assert_served(port);
        }
        stop(&mut acceptor);
        assert_ends_with(&mut pool, 0);
    }
}

#[test]
fn a_socket_on_standard_output_feeds_fdrecv_and_ends_with_it() {
    for kind in [SockType::Stream, SockType::SeqPacket] {
        let (mut acceptor, mut handler) = pair_pipeline(kind, &mut consumer(&["fdrecv"]));
        assert_served(acceptor.port());
        assert_ends_with(&mut handler, 0);
        assert_ends_with(&mut acceptor, 0);
    }
}

#[test]
fn many_connections_through_a_stream_socket_stay_apart() {
    // A stream has no messages; connections that wait there together are still one each.
    let (write_end, read_end) = socket_pair(SockType::Stream);
    let mut acceptor = Process::start(fdaccept(&["-v", ADDRESS]).stdout(write_end));
    let port = acceptor.port();
    let clients: Vec<_> = (0..20)
        .map(|number| request(port, &number.to_string()))
        .collect();
    (0..20).for_each(|_| drop(acceptor.line("accepted ")));
    let mut pool = Process::start(consumer(&["fdpool", "3"]).stdin(read_end));
    for (number, client) in clients.iter().enumerate() {
        assert_eq!(read_line(client), format!("served {number}"));
    }
    stop(&mut acceptor);
    assert_ends_with(&mut pool, 0);
}

/// fdaccept with its side of the queue at descriptor 5, and nothing of it elsewhere.
fn fdaccept_at_5(write_end: impl Into<Stdio>) -> Process {
    let text = format!("exec fdaccept --queue-fd 5 {ADDRESS} 5>&1 >/dev/null");
    Process::start(script("sh", &text).stdout(write_end))
}

/// A consumer with its side of the queue at descriptor 6.
fn consumer_at_6(words: &str, read_end: impl Into<Stdio>) -> Process {
    let mut command = script("sh", &format!("exec {words} -- \"$@\" 6<&0 </dev/null"));
    Process::start(command.arg("sh").args(ANSWER).stdin(read_end))
}

#[test]
fn queue_fd_takes_a_socket_pair_on_both_sides() {
    for kind in [SockType::Stream, SockType::SeqPacket] {
        let (write_end, read_end) = socket_pair(kind);
        let mut acceptor = fdaccept_at_5(write_end);
        let mut pool = consumer_at_6("fdpool --queue-fd 6 2", read_end);
        assert_served(acceptor.port());
        stop(&mut acceptor);
        assert_ends_with(&mut pool, 0);
    }
}

#[test]
fn queue_fd_takes_a_pipe_on_both_sides() {
    let (reader, writer) = pipe().unwrap();
    let mut acceptor = fdaccept_at_5(writer);
    let mut pool = consumer_at_6("fdpool --queue-fd 6 2", reader);
    assert_served(acceptor.port());
    stop(&mut acceptor);
    assert_ends_with(&mut pool, 0);
}

#[test]
fn queue_fd_of_fdrecv_takes_a_socket_or_a_pipe() {
    for kind in [SockType::Stream, SockType::SeqPacket] {
        let (write_end, read_end) = socket_pair(kind);
        let mut acceptor = Process::start(fdaccept(&[ADDRESS]).stdout(write_end));
        let mut handler = consumer_at_6("fdrecv --queue-fd 6", read_end);
        assert_served(acceptor.port());
        assert_ends_with(&mut handler, 0);
    }
    let (reader, writer) = pipe().unwrap();
    let mut acceptor = Process::start(fdaccept(&[ADDRESS]).stdout(writer));
    let mut handler = consumer_at_6("fdrecv --queue-fd 6", reader);
    assert_served(acceptor.port());
    assert_ends_with(&mut handler, 0);
    assert_ends_with(&mut acceptor, 0);
}

#[test]
fn fdaccept_fails_when_the_readers_of_its_queue_fd_are_gone() {
    let (write_end, read_end) = socket_pair(SockType::SeqPacket);
    let mut acceptor = fdaccept_at_5(write_end);
    acceptor.port();
    drop(read_end);
    let (status, log) = acceptor.finish();
    assert_eq!(status.code(), Some(1));
    assert!(log.contains("nobody takes connections"), "{log}");
}

// A name that fdaccept owns.

#[track_caller]
fn assert_named_queue_feeds_fdpool(name: &str) {
    let mut acceptor = Process::start(&mut fdaccept(&["--bind", name, ADDRESS]));
    let port = acceptor.port();
    let mut pool = consumer(&["fdpool", "--once", "--connect", name, "2"]);
    let mut pool = Process::start(&mut pool);
    for _ in 0..3 {
        assert_served(port);
    }
    stop(&mut acceptor);
    assert_ends_with(&mut pool, 0);
}

#[test]
fn fdpool_connects_to_a_path_that_fdaccept_owns() {
    assert_named_queue_feeds_fdpool(&Names::new().path());
}

#[test]
fn fdpool_connects_to_an_abstract_name_that_fdaccept_owns() {
    assert_named_queue_feeds_fdpool(&Names::new().abstract_name());
}

#[track_caller]
fn assert_named_queue_feeds_fdrecv(name: &str) {
    let mut acceptor = Process::start(&mut fdaccept(&["--bind", name, ADDRESS]));
    let port = acceptor.port();
    for _ in 0..3 {
        let mut handler = Process::start(&mut consumer(&["fdrecv", "--connect", name]));
        assert_served(port);
        assert_ends_with(&mut handler, 0);
    }
    // Unlike a pipe, a name does not end with its consumers.
    assert!(acceptor.is_running());
    stop(&mut acceptor);
}

#[test]
fn fdrecv_connects_to_a_path_that_fdaccept_owns() {
    assert_named_queue_feeds_fdrecv(&Names::new().path());
}

#[test]
fn fdrecv_connects_to_an_abstract_name_that_fdaccept_owns() {
    assert_named_queue_feeds_fdrecv(&Names::new().abstract_name());
}

#[test]
fn consumers_that_join_and_leave_a_named_queue_lose_no_connection() {
    let names = Names::new();
    let name = &names.path();
    let mut acceptor = Process::start(&mut fdaccept(&["--bind", name, ADDRESS]));
    let port = acceptor.port();
    come_and_go(port, || {
        Process::start(&mut consumer(&["fdpool", "-v", "--connect", name, "2"]))
    });
    stop(&mut acceptor);
}

#[test]
fn fdpool_waits_for_a_name_that_does_not_exist_yet() {
    let names = Names::new();
    for name in [&names.path(), &names.abstract_name()] {
        let mut pool = consumer(&["fdpool", "--connect", name, "2"]);
        let mut pool = Process::start(&mut pool);
        pool.line(&format!("cannot connect to {name}"));
        let mut acceptor = Process::start(&mut fdaccept(&["--bind", name, ADDRESS]));
        assert_served(acceptor.port());
        pool.line(&format!("connected to {name}"));
        stop(&mut pool);
        stop(&mut acceptor);
    }
}

#[test]
fn fdpool_connects_again_when_fdaccept_is_back() {
    let names = Names::new();
    for name in [&names.path(), &names.abstract_name()] {
        let mut pool = consumer(&["fdpool", "--connect", name, "2"]);
        let mut pool = Process::start(&mut pool);
        // KILL leaves the path behind, TERM does not.
        for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGTERM] {
            let mut acceptor = Process::start(&mut fdaccept(&["--bind", name, ADDRESS]));
            let port = acceptor.port();
            assert_served(port);
            assert_served(port);
            acceptor.signal(signal);
            acceptor.wait();
            assert!(pool.is_running());
        }
        stop(&mut pool);
    }
}

#[test]
fn fdpool_once_ends_with_fdaccept() {
    let names = Names::new();
    let name = &names.path();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut acceptor = Process::start(&mut fdaccept(&["--bind", name, ADDRESS]));
        let port = acceptor.port();
        let mut pool = consumer(&["fdpool", "--once", "--connect", name, "2"]);
        let mut pool = Process::start(&mut pool);
        assert_served(port);
        acceptor.signal(signal);
        acceptor.wait();
        assert_ends_with(&mut pool, 0);
    }
}

// A name that the consumer owns.

#[track_caller]
fn assert_fdpool_owns(name: &str) {
    let mut pool = Process::start(&mut consumer(&["fdpool", "--bind", name, "2"]));
    let mut acceptor = Process::start(&mut fdaccept(&["--connect", name, ADDRESS]));
    let port = acceptor.port();
    for _ in 0..3 {
        assert_served(port);
    }
    stop(&mut acceptor);
    // Other senders may come.
    assert!(pool.is_running());
    stop(&mut pool);
}

#[test]
fn fdaccept_connects_to_a_path_that_fdpool_owns() {
    assert_fdpool_owns(&Names::new().path());
}

#[test]
fn fdaccept_connects_to_an_abstract_name_that_fdpool_owns() {
    assert_fdpool_owns(&Names::new().abstract_name());
}

#[track_caller]
fn assert_fdrecv_owns(name: &str) {
    let mut handler = Process::start(&mut consumer(&["fdrecv", "--bind", name]));
    let mut acceptor = Process::start(&mut fdaccept(&["--connect", name, ADDRESS]));
    assert_served(acceptor.port());
    assert_ends_with(&mut handler, 0);
    stop(&mut acceptor);
}

#[test]
fn fdaccept_connects_to_a_path_that_fdrecv_owns() {
    assert_fdrecv_owns(&Names::new().path());
}

#[test]
fn fdaccept_connects_to_an_abstract_name_that_fdrecv_owns() {
    assert_fdrecv_owns(&Names::new().abstract_name());
}

#[test]
fn two_fdaccepts_send_to_one_fdpool() {
    let names = Names::new();
    let name = &names.path();
    let mut pool = Process::start(&mut consumer(&["fdpool", "--bind", name, "2"]));
    let mut acceptors =
        [(); 2].map(|()| Process::start(&mut fdaccept(&["--connect", name, ADDRESS])));
    let ports = acceptors.each_mut().map(|acceptor| acceptor.port());
    for port in ports.into_iter().cycle().take(6) {
        assert_served(port);
    }
    acceptors.iter_mut().for_each(|acceptor| stop(acceptor));
    stop(&mut pool);
}

#[test]
fn a_connection_waits_until_a_consumer_owns_the_name() {
    let names = Names::new();
    for name in [&names.path(), &names.abstract_name()] {
        let mut acceptor = Process::start(&mut fdaccept(&["--connect", name, ADDRESS]));
        let port = acceptor.port();
        let clients = [request(port, "one"), request(port, "two")];
        acceptor.line("connections wait");
        let mut pool = Process::start(&mut consumer(&["fdpool", "--bind", name, "1"]));
        assert_eq!(read_line(&clients[0]), "served one");
        assert_eq!(read_line(&clients[1]), "served two");
        stop(&mut acceptor);
        stop(&mut pool);
    }
}

#[test]
fn a_consumer_that_owns_the_name_can_be_replaced() {
    let names = Names::new();
    let name = &names.path();
    let mut acceptor = Process::start(&mut fdaccept(&["--connect", name, ADDRESS]));
    let port = acceptor.port();
    // KILL leaves the path behind, TERM does not.
    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGTERM] {
        // It comes while nobody is there.
        let early = request(port, "early");
        let mut pool = Process::start(&mut consumer(&["fdpool", "--bind", name, "1"]));
        assert_eq!(read_line(&early), "served early");
        assert_served(port);
        pool.signal(signal);
        // Its slots have the socket too.
        pool.finish();
    }
    stop(&mut acceptor);
}

// How they end.

#[test]
fn fdaccept_ends_with_0_when_its_readers_leave_and_all_was_taken() {
    let (mut acceptor, mut pool) = pipeline(&[], &mut consumer(&["fdpool", "1"]));
    assert_served(acceptor.port());
    stop(&mut pool);
    let (status, log) = acceptor.finish();
    assert_eq!(status.code(), Some(0));
    assert!(!log.contains("not taken"), "{log}");
}

#[test]
fn fdaccept_ends_with_1_and_their_number_when_its_readers_leave_connections() {
    for (count, message) in [
        (1, "1 connection was accepted and not taken"),
        (3, "3 connections were accepted and not taken"),
    ] {
        let (reader, writer) = pipe().unwrap();
        let mut acceptor = Process::start(fdaccept(&["-v", ADDRESS]).stdout(writer));
        let port = acceptor.port();
        let clients: Vec<_> = (0..count).map(|_| connect(port)).collect();
        (0..count).for_each(|_| drop(acceptor.line("accepted ")));
        drop(reader);
        let (status, log) = acceptor.finish();
        assert_eq!(status.code(), Some(1));
        assert!(log.contains(message), "{log}");
        // They are not left hanging.
        for mut client in clients {
            match client.read(&mut [0]) {
                Ok(count) => assert_eq!(count, 0),
                Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
            }
        }
    }
}

#[test]
fn fdaccept_ends_with_1_when_nobody_took_from_its_name() {
    let names = Names::new();
    let name = &names.path();
    let mut acceptor = fdaccept(&["-v", "--grace", "0", "--bind", name, ADDRESS]);
    let mut acceptor = Process::start(&mut acceptor);
    let _client = connect(acceptor.port());
    acceptor.line("accepted ");
    acceptor.signal(Signal::SIGTERM);
    let (status, log) = acceptor.finish();
    assert_eq!(status.code(), Some(1));
    assert!(
        log.contains("1 connection was accepted and not taken"),
        "{log}"
    );
}

#[test]
fn fdrecv_ends_with_69_when_the_queue_is_closed() {
    let (mut acceptor, mut waiting) = pipeline(&[], &mut consumer(&["fdrecv"]));
    acceptor.port();
    stop(&mut acceptor);
    assert_ends_with(&mut waiting, 69);

    for kind in [SockType::Stream, SockType::SeqPacket] {
        let (_, read_end) = socket_pair(kind);
        let mut late = Process::start(consumer(&["fdrecv"]).stdin(read_end));
        assert_ends_with(&mut late, 69);
    }
    let (reader, _) = pipe().unwrap();
    let mut late = Process::start(consumer(&["fdrecv"]).stdin(reader));
    assert_ends_with(&mut late, 69);
}

#[test]
fn fdrecv_ends_with_69_when_nobody_owns_the_name() {
    let names = Names::new();
    for name in [&names.path(), &names.abstract_name()] {
        let mut receiver = Process::start(&mut consumer(&["fdrecv", "--connect", name]));
        assert_ends_with(&mut receiver, 69);
    }
}

#[test]
fn fdrecv_ends_with_69_when_its_time_is_up() {
    let names = Names::new();
    let mut receiver = consumer(&["fdrecv", "--timeout", "0.1", "--bind", &names.path()]);
    assert_ends_with(&mut Process::start(&mut receiver), 69);
    let mut receiver = consumer(&["fdrecv", "--timeout", "0.1"]);
    let (_acceptor, mut receiver) = pipeline(&[], &mut receiver);
    assert_ends_with(&mut receiver, 69);
}

#[test]
fn fdrecv_of_a_named_queue_ends_with_69_when_fdaccept_goes() {
    let names = Names::new();
    let name = &names.path();
    let mut acceptor = Process::start(&mut fdaccept(&["--bind", name, ADDRESS]));
    acceptor.port();
    let mut receiver = Process::start(&mut consumer(&["fdrecv", "--connect", name]));
    let pid = receiver.pid();
    let is_socket = |(_, what): &(i32, String)| what.starts_with("socket:");
    until("fdrecv at the name", || {
        descriptors(pid).iter().any(is_socket)
    });
    stop(&mut acceptor);
    assert_ends_with(&mut receiver, 69);
}

/// Fills the queue of an fdaccept that serves through one busy slot, kills fdaccept, and expects
/// that the queue is served to its end.
#[track_caller]
fn assert_drained_after_kill(acceptor: &mut Process, port: u16) {
    // The consumer has the queue.
    assert_served(port);
    acceptor.line("accepted ");
    let mut busy = connect(port);
    let mut waiting: Vec<_> = (0..5).map(|n| request(port, &n.to_string())).collect();
    // fdaccept has one connection in hand at most. That this one is accepted says that those
    // before it are in the queue.
    let _in_hand = connect(port);
    (0..7).for_each(|_| drop(acceptor.line("accepted ")));
    acceptor.signal(Signal::SIGKILL);
    acceptor.wait();
    writeln!(busy, "first").unwrap();
    assert_eq!(read_line(&busy), "served first");
    for (number, client) in waiting.iter_mut().enumerate() {
        assert_eq!(read_line(client), format!("served {number}"));
    }
}

#[test]
fn a_pool_on_a_pipe_drains_the_queue_of_an_fdaccept_that_was_killed() {
    let (mut acceptor, mut pool) = pipeline(&["-v"], &mut consumer(&["fdpool", "1"]));
    let port = acceptor.port();
    assert_drained_after_kill(&mut acceptor, port);
    assert_ends_with(&mut pool, 0);
}

#[test]
fn a_pool_on_a_socket_drains_the_queue_of_an_fdaccept_that_was_killed() {
    for kind in [SockType::Stream, SockType::SeqPacket] {
        let (write_end, read_end) = socket_pair(kind);
        let mut acceptor = Process::start(fdaccept(&["-v", ADDRESS]).stdout(write_end));
        let port = acceptor.port();
        let mut pool = Process::start(consumer(&["fdpool", "1"]).stdin(read_end));
        assert_drained_after_kill(&mut acceptor, port);
        assert_ends_with(&mut pool, 0);
    }
}

#[test]
fn a_pool_on_a_named_queue_drains_it_when_its_fdaccept_was_killed() {
    let names = Names::new();
    let name = &names.path();
    let mut acceptor = Process::start(&mut fdaccept(&["-v", "--bind", name, ADDRESS]));
    let port = acceptor.port();
    let mut pool = consumer(&["fdpool", "--once", "--connect", name, "1"]);
    let mut pool = Process::start(&mut pool);
    assert_drained_after_kill(&mut acceptor, port);
    assert_ends_with(&mut pool, 0);
}

#[test]
fn a_pool_in_a_chain_drains_the_queue_of_an_fdaccept_that_was_killed() {
    let text = "echo pool $$ >&2; exec fdpool 1 -- \"$@\"";
    let mut chain = fdaccept(&["-v", ADDRESS, "--", "sh", "-c", text, "sh"]);
    let mut chain = Process::start(chain.args(ANSWER));
    let port = chain.port();
    let line = chain.line("pool ");
    let pool = line.rsplit_once(' ').unwrap().1.parse().unwrap();
    let pool = nix::unistd::Pid::from_raw(pool);
    assert_drained_after_kill(&mut chain, port);
    until("the end of the pool", || !is_alive(pool));
}

#[test]
fn a_loop_of_fdrecv_on_a_socket_drains_the_queue_of_an_fdaccept_that_was_killed() {
    let (write_end, read_end) = socket_pair(SockType::SeqPacket);
    let mut acceptor = Process::start(fdaccept(&["-v", ADDRESS]).stdout(write_end));
    let port = acceptor.port();
    let mut consumers = script("sh", LOOP);
    let mut consumers = start_on(read_end, consumers.arg("sh").args(ANSWER));
    assert_drained_after_kill(&mut acceptor, port);
    assert_ends_with(&mut consumers, 0);
}

#[test]
fn a_unix_listener_feeds_a_pool() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("listener");
    let (reader, writer) = pipe().unwrap();
    let mut acceptor = Process::start(program("fdaccept").arg(&path).stdout(writer));
    let mut pool = start_on(reader, &mut consumer(&["fdpool", "1"]));
    acceptor.listening();
    let mut client: UnixStream = connect_unix(&path);
    client.write_all(b"hello\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "served hello\n");
    stop(&mut acceptor);
    assert_ends_with(&mut pool, 0);
}
