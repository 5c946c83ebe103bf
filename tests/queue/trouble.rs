//! Trouble that is nobody's fault, and must neither end a program nor lose a connection.

use std::io::{PipeWriter, Read, Write, pipe};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use crate::support::*;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::sys::socket::SockType;

const ADDRESS: &str = "127.0.0.1:0";

/// Whether a process blocks or waits, as one does that has nothing to do.
fn is_asleep(process: &Process) -> bool {
    state(process.pid()) == Some('S')
}

#[test]
fn a_pool_that_waits_for_its_ticket_can_be_resized_and_stopped() {
    let (tickets, _writer) = pipe().unwrap();
    let mut command = program("fdpool");
    let mut pool = Process::start(command.args(["-v", "1", "cat"]).stdin(tickets));
    // It catches TERM when it waits.
    let mask = 1 << (Signal::SIGTERM as i32 - 1);
    until("the pool to wait", || {
        signal_set(&pool, "SigCgt") & mask != 0 && is_asleep(&pool)
    });
    pool.signal(Signal::SIGUSR1);
    pool.signal(Signal::SIGTTIN);
    pool.signal(Signal::SIGTTOU);
    pool.signal(Signal::SIGTERM);
    assert_eq!(pool.wait().code(), Some(0));
}

/// One of the sets of signals in /proc/PID/status.
fn signal_set(process: &Process, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid()));
    let status = status.unwrap_or_default();
    let mut lines = status.lines().filter_map(|line| line.split_once(":\t"));
    let set = lines.find(|(key, _)| *key == name).map(|(_, set)| set);
    u64::from_str_radix(set.unwrap_or("0"), 16).unwrap()
}

#[test]
fn a_pipe_that_somebody_made_non_blocking_is_waited_on() {
    let (tickets, writer) = pipe().unwrap();
    fcntl(&tickets, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let mut fdrecv = program("fdrecv");
    let mut fdrecv = Process::start(fdrecv.args(["--", "cat"]).stdin(tickets));
    until("fdrecv to wait", || is_asleep(&fdrecv));
    let mut fdaccept = program("fdaccept");
    let mut fdaccept = Process::start(fdaccept.arg(ADDRESS).stdout(writer));
    assert_eq!(exchange(fdaccept.port(), b"hello"), b"hello");
    assert!(fdrecv.wait().success());
}

#[test]
fn a_door_that_cannot_be_reached_from_here_is_an_error() {
    if !root() {
        return;
    }
    let Some(unshare) = peer("unshare") else {
        return;
    };
    for consumer in [&["fdpool", "1"][..], &["fdrecv"]] {
        let (tickets, writer) = pipe().unwrap();
        let mut fdaccept = program("fdaccept");
        let mut fdaccept = Process::start(fdaccept.arg(ADDRESS).stdout(writer));
        fdaccept.listening();
        let mut command = std::process::Command::new(&unshare);
        command.arg("--net").arg(bin_dir().join(consumer[0]));
        command.args(&consumer[1..]).args(["--", "cat"]);
        let mut elsewhere = Process::start(command.stdin(tickets));
        // Or this would hold the pipe open.
        drop(command);
        let (status, log) = elsewhere.finish();
        assert_eq!(status.code(), Some(69), "{log}");
        assert!(log.contains("network namespace"), "{log}");
        assert!(fdaccept.wait().success());
    }
}

#[test]
fn who_reads_tickets_without_end_does_not_keep_fdaccept_busy() {
    let (mut tickets, writer) = pipe().unwrap();
    let mut fdaccept = program("fdaccept");
    let mut fdaccept = Process::start(fdaccept.arg(ADDRESS).stdout(writer));
    let port = fdaccept.port();
    let reader = tickets.try_clone().unwrap();
    let waste = std::thread::spawn(move || {
        let mut line = [0; 94];
        for _ in 0..260 {
            tickets.read_exact(&mut line).unwrap();
        }
    });
    waste.join().unwrap();
    // The last ones came one at a time, so there was nothing to do between them.
    until("it to wait", || is_asleep(&fdaccept));
    // And a consumer that comes now gets its ticket.
    let mut fdrecv = program("fdrecv");
    let mut fdrecv = Process::start(fdrecv.args(["--", "cat"]).stdin(reader));
    assert_eq!(exchange(port, b"hello"), b"hello");
    assert!(fdrecv.wait().success());
}

#[test]
fn a_connection_without_payload_behind_an_empty_message_is_served_at_the_end_of_a_queue() {
    let (ours, theirs) = socket_pair(SockType::SeqPacket);
    let (mut client, connection) = UnixStream::pair().unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    fdtools::queue::send(&ours, b"", &[]).unwrap();
    fdtools::queue::send(&ours, b"", &[connection.as_fd()]).unwrap();
    drop((ours, connection));
    let mut pool = program("fdpool");
    let mut pool = Process::start(pool.args(["1", "echo", "served"]).stdin(theirs));
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "served\n");
    assert_eq!(pool.wait().code(), Some(0));
}

#[test]
fn a_pool_outlives_a_name_that_is_something_else_for_a_while() {
    let names = Names::new();
    let name = &names.path();
    let start = || {
        let mut fdaccept = program("fdaccept");
        Process::start(fdaccept.args(["--bind", name, ADDRESS]))
    };
    let mut fdaccept = start();
    let mut pool = program("fdpool");
    let mut pool = Process::start(pool.args(["--connect", name, "2", "cat"]));
    assert_eq!(exchange(fdaccept.port(), b"first"), b"first");
    fdaccept.signal(Signal::SIGTERM);
    assert!(fdaccept.wait().success());
    let other = UnixDatagram::bind(name).unwrap();
    pool.line("wrong type for socket; waiting");
    drop(other);
    std::fs::remove_file(name).unwrap();
    let mut fdaccept = start();
    assert_eq!(exchange(fdaccept.port(), b"second"), b"second");
    pool.signal(Signal::SIGTERM);
    assert!(pool.wait().success());
}

#[test]
fn a_slot_without_a_pool_gives_up_a_connection_that_it_cannot_serve() {
    let names = Names::new();
    let handler = executable(names.directory.path().join("handler"), "#!/bin/sh\n");
    let (ours, theirs) = socket_pair(SockType::SeqPacket);
    let mut pool = program("fdpool");
    let mut pool = Process::start(pool.arg("1").arg(&handler).stdin(theirs));
    until("a slot", || children(pool.pid()).len() == 1);
    let slot = children(pool.pid())[0];
    std::fs::remove_file(&handler).unwrap();
    let (mut client, connection) = UnixStream::pair().unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    fdtools::queue::send(&ours, b"", &[connection.as_fd()]).unwrap();
    drop(connection);
    pool.line("waits");
    pool.signal(Signal::SIGKILL);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    until("the end of the slot", || !is_alive(slot));
}

#[test]
fn a_consumers_name_that_never_can_be_one_is_said_at_once() {
    let names = Names::new();
    let name = &names.path();
    let _listener = UnixListener::bind(name).unwrap();
    let mut fdaccept = program("fdaccept");
    let (status, _, log) = run(fdaccept.args(["--connect", name, ADDRESS]));
    assert_eq!(status, Some(1), "{log}");
    let expected = format!("fdaccept: cannot connect to {name}: Protocol wrong type for socket");
    assert_eq!(log, expected);
}

#[test]
fn a_log_that_is_full_and_not_read_stops_nothing() {
    // Full: not one more line fits.
    let (log, mut writer) = pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    while writer.write(&[b'x'; 512]).is_ok() {}
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    serve_with_log(writer);
    drop(log);
}

#[test]
fn a_log_whose_reader_is_gone_stops_nothing() {
    let (log, writer) = pipe().unwrap();
    drop(log);
    serve_with_log(writer);
}

/// Three clients are served, and the end is a good one, by programs that log to `log`.
fn serve_with_log(log: PipeWriter) {
    let names = Names::new();
    let path = &names.path();
    let mut fdaccept = program("fdaccept");
    fdaccept.args(["-v", path, "--", "fdpool", "-v", "2", "cat"]);
    let mut fdaccept = fdaccept.stderr(log).spawn().unwrap();
    until("the listener", || UnixStream::connect(path).is_ok());
    for _ in 0..3 {
        let mut client = connect_unix(path);
        client.write_all(b"hello").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "hello");
    }
    let pid = nix::unistd::Pid::from_raw(fdaccept.id() as i32);
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    let status = eventually("the end", || fdaccept.try_wait().unwrap());
    assert!(status.success());
}

#[test]
fn a_command_that_an_empty_variable_lost_is_noticed() {
    let (status, _, log) = run(program("fdaccept").args([ADDRESS, "--"]));
    assert_eq!(status, Some(2));
    assert!(
        log.starts_with("fdaccept: no command given after --"),
        "{log}"
    );
}
