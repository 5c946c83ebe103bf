//! Trouble that is nobody's fault, and must neither end a program nor lose a connection.

use std::io::{Read, pipe};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::Command;

use crate::support::*;
use fdtools::queue::send;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;

/// Whether a process blocks or waits.
fn is_asleep(process: &Process) -> bool {
    state(process.pid()) == Some('S')
}

#[test]
fn a_pool_that_waits_for_its_ticket_can_be_resized_and_stopped() {
    let (tickets, _writer) = pipe().unwrap();
    let mut pool = Pool::on(&tickets).args(["-v"]).slots(1, ["cat"]).start();
    // It catches TERM while it waits.
    until("the pool to wait", || {
        has_signal(pool.pid(), "SigCgt", Signal::SIGTERM) && is_asleep(&pool)
    });
    pool.signal(Signal::SIGUSR1);
    pool.signal(Signal::SIGTTIN);
    pool.signal(Signal::SIGTTOU);
    pool.stop();
}

#[test]
fn a_pipe_that_somebody_made_non_blocking_is_waited_on() {
    let (tickets, writer) = pipe().unwrap();
    fcntl(&tickets, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let mut fdrecv = fdrecv_on(&tickets).args(["--", "cat"]).start();
    until("fdrecv to wait", || is_asleep(&fdrecv));
    let acceptor = Fdaccept::plain().stdout(writer).start();
    assert_eq!(exchange(acceptor.port, b"hello"), b"hello");
    fdrecv.expect_exit(0);
}

#[test]
fn a_door_that_cannot_be_reached_from_here_is_an_error() {
    needs!(root());
    let unshare = needs!(peer("unshare"));
    for consumer in [&["fdpool", "1"][..], &["fdrecv"]] {
        let mut acceptor = Fdaccept::piped().start();
        let mut elsewhere = Command::new(&unshare);
        elsewhere.arg("--net").arg(bin_dir().join(consumer[0]));
        elsewhere.args(&consumer[1..]).args(["--", "cat"]);
        elsewhere.stdin(acceptor.take_pipe());
        let log = elsewhere.start().expect_end(69);
        assert!(log.contains("network namespace"), "{log}");
        // Or this would hold the pipe open.
        drop(elsewhere);
        acceptor.expect_exit(0);
    }
}

#[test]
fn who_reads_tickets_without_end_does_not_keep_fdaccept_busy() {
    let mut acceptor = Fdaccept::piped().start();
    let mut tickets = acceptor.take_pipe();
    for _ in 0..260 {
        tickets.read_exact(&mut [0; 94]).unwrap();
    }
    // The last ones came one at a time: there was nothing to do between them.
    until("it to wait", || is_asleep(&acceptor));
    // A consumer that comes now gets its ticket.
    let mut fdrecv = fdrecv_on(&tickets).args(["--", "cat"]).start();
    assert_eq!(exchange(acceptor.port, b"hello"), b"hello");
    fdrecv.expect_exit(0);
}

#[test]
fn a_connection_without_payload_behind_empty_messages_is_served_at_the_end_of_a_queue() {
    for empties in [1, 2, 100] {
        let mut queue = Queue::new();
        let (client, connection) = unix_pair();
        for _ in 0..empties {
            send(queue.write_end(), b"", &[]).unwrap();
        }
        send(queue.write_end(), b"", &[connection.as_fd()]).unwrap();
        queue.close();
        drop(connection);
        let mut pool = Pool::on(&queue).slots(1, ["echo", "served"]).start();
        assert_eq!(client.rest(), "served\n");
        pool.expect_exit(0);
    }
}

#[test]
fn a_pool_outlives_a_name_that_is_something_else_for_a_while() {
    let names = Names::new();
    let name = &names.path();
    let mut acceptor = Fdaccept::bound_at(name).start();
    let mut pool = Pool::on(name).slots(2, ["cat"]).start();
    assert_eq!(exchange(acceptor.port, b"first"), b"first");
    acceptor.stop();
    let other = UnixDatagram::bind(name).unwrap();
    pool.line("a socket of another type than that of fdaccept --bind; waiting");
    drop(other);
    std::fs::remove_file(name).unwrap();
    let acceptor = Fdaccept::bound_at(name).start();
    assert_eq!(exchange(acceptor.port, b"second"), b"second");
    pool.stop();
}

#[test]
fn a_slot_without_a_pool_gives_up_a_connection_that_it_cannot_serve() {
    let names = Names::new();
    let handler = executable(names.file("handler"), "#!/bin/sh\n");
    let queue = Queue::new();
    let mut pool = Pool::on(&queue).slots(1, [&handler]).full();
    let slot = pool.children()[0];
    std::fs::remove_file(&handler).unwrap();
    let (client, connection) = unix_pair();
    send(queue.write_end(), b"", &[connection.as_fd()]).unwrap();
    drop(connection);
    pool.line("waits");
    pool.signal(Signal::SIGKILL);
    assert_eq!(client.rest(), "");
    until_gone(slot);
}

#[test]
fn a_consumers_name_that_never_can_be_one_is_said_at_once() {
    let names = Names::new();
    let name = &names.path();
    let _listener = UnixListener::bind(name).unwrap();
    let (status, _, log) = run(program("fdaccept").args(["--connect", name, ADDRESS]));
    assert_eq!(status, Some(1), "{log}");
    let problem = "it is a socket of another type than that of fdpool --bind";
    assert_eq!(
        log,
        format!("fdaccept: cannot connect to {name}: {problem}")
    );
}

/// The command lines of the programs that find a queue at `name`.
fn connecting(name: &str) -> [(&'static str, Vec<&str>); 3] {
    let connect = ["--connect", name];
    [
        ("fdaccept", [&connect[..], &[ADDRESS]].concat()),
        ("fdrecv", [&connect[..], &["cat"]].concat()),
        ("fdpool", [&connect[..], &["2", "cat"]].concat()),
    ]
}

#[test]
fn a_name_that_is_no_socket_is_said_at_once() {
    let names = Names::new();
    let file = names.text("file");
    std::fs::write(&file, "").unwrap();
    let directory = names.directory.path().to_str().unwrap();
    for name in [&file, directory, "/dev/null"] {
        for (program_name, arguments) in connecting(name) {
            let (status, _, log) = run(program(program_name).args(arguments));
            let expected = format!("{program_name}: cannot connect to {name}: it is not a socket");
            assert_eq!((status, log), (Some(1), expected));
        }
    }
}

#[test]
fn a_name_that_is_another_socket_is_said_at_once() {
    let names = Names::new();
    let (stream, inbox) = (names.text("stream"), names.text("inbox"));
    let _stream = UnixListener::bind(&stream).unwrap();
    let _inbox = UnixDatagram::bind(&inbox).unwrap();
    for name in [&stream, &inbox] {
        for (program_name, arguments) in connecting(name) {
            let owner = match program_name {
                // A datagram socket is what it sends to.
                "fdaccept" if *name == inbox => continue,
                "fdaccept" => "fdpool --bind",
                _ => "fdaccept --bind",
            };
            let (status, _, log) = run(program(program_name).args(arguments));
            let problem = format!("it is a socket of another type than that of {owner}");
            let expected = format!("{program_name}: cannot connect to {name}: {problem}");
            assert_eq!((status, log), (Some(1), expected));
        }
    }
}

#[test]
fn a_command_that_an_empty_variable_lost_is_noticed() {
    let (status, _, log) = run(program("fdaccept").args([ADDRESS, "--"]));
    assert_eq!(status, Some(2));
    let expected = "fdaccept: no command given after --";
    assert!(log.starts_with(expected), "{log}");
}
