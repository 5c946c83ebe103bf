//! How fdaccept ends: by a signal, with its command, or with its consumers.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::support::*;
use fdtools::queue::{Received, Receiver};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::SockType;
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

const STOPS: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];

/// A command for a chain: says when its queue has closed, and goes on until it is told to end.
const STAYS: &str = "trap 'echo got TERM >&2; exit 5' TERM; trap 'echo got INT >&2; exit 6' INT; \
                     echo ready >&2; fdrecv -- cat; echo closed $? >&2; \
                     while :; do sleep 0.05; done";

/// A command for a chain that nothing but KILL ends; it says when its queue has closed.
const IGNORES: &str = "trap '' TERM INT; echo ready >&2; fdrecv -- cat; echo closed $? >&2; \
                       while :; do sleep 0.05; done";

/// `fdaccept OPTIONS ADDRESS -- sh -c TEXT`
fn chain(options: &[&str], text: &str) -> Acceptor {
    Fdaccept::chain(sh_c(text)).args(options).start()
}

/// With [`ADDRESS`] and a path. fdaccept removes the path when it closes the listeners; another
/// process may have the port by then.
fn with_path(fdaccept: Fdaccept) -> Acceptor {
    let path = fdaccept.names.text("s");
    fdaccept.listen(ADDRESS).listen(path).start()
}

fn chain_with_path(options: &[&str], text: &str) -> Acceptor {
    with_path(Fdaccept::chain(sh_c(text)).args(options))
}

fn unix_client(acceptor: &Acceptor) -> Client<UnixStream> {
    Client::connect_unix(acceptor.names.file("s"))
}

#[track_caller]
fn expect_closed(acceptor: &Acceptor) {
    let path = acceptor.names.file("s");
    until("the end of the listener", || !path.exists());
    assert!(UnixStream::connect(path).is_err());
}

/// A pipe that a script can wait for, and what ends its wait.
fn fifo(names: &Names) -> (PathBuf, impl FnOnce()) {
    let fifo = names.file("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let path = fifo.clone();
    let go = move || writeln!(File::options().write(true).open(fifo).unwrap()).unwrap();
    (path, go)
}

/// Expects exit status 1, and this line at the end of the log.
#[track_caller]
fn assert_last_line(process: &mut Process, expected: &str) {
    let log = process.expect_end(1);
    assert_eq!(log.lines().last(), Some(expected), "{log}");
}

const NOBODY_TAKES: &str = "fdaccept: nobody takes connections from the queue any more";

#[test]
fn a_chain_serves_what_waits_in_the_backlog() {
    for signal in STOPS {
        let mut process = Fdaccept::chain(["fdpool", "4", "cat"]).start();
        let crowd = process.at_once(&[signal], || Crowd::connect(process.port, 50));
        crowd.expect_served();
        process.expect_clean_end();
    }
}

#[test]
fn a_pipeline_serves_what_waits_in_the_backlog() {
    for signal in STOPS {
        let mut process = Fdaccept::piped().start();
        let pool = Pool::plain().stdin(process.take_pipe());
        let mut pool = pool.slots(4, ["cat"]).start();
        let crowd = process.at_once(&[signal], || Crowd::connect(process.port, 50));
        crowd.expect_served();
        process.expect_exit(0);
        pool.expect_exit(0);
    }
}

#[test]
fn every_backlog_is_served() {
    let fdaccept = Fdaccept::chain(["fdpool", "2", "cat"]).listen(ADDRESS);
    let mut process = with_path(fdaccept);
    let ports = process.ports.clone();
    let (crowds, client) = process.at_once(&[Signal::SIGTERM], || {
        let crowds = ports.iter().map(|port| Crowd::connect(*port, 20));
        (crowds.collect::<Vec<_>>(), unix_client(&process))
    });
    assert_eq!(crowds.len(), 2);
    crowds.into_iter().for_each(Crowd::expect_served);
    client.expect_echo("x");
    process.expect_exit(0);
}

#[test]
fn a_full_queue_is_served_as_well_as_the_backlog() {
    let mut process = chain(&[], "kill -STOP $$; exec fdpool 4 -- cat");
    let pool = process.stopped_child();
    let maximum = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    raise_limit();
    let maximum = maximum.trim().parse::<usize>().unwrap();
    let crowd = Crowd::connect(process.port, maximum.min(600));
    process.term();
    thaw(pool);
    crowd.expect_served();
    process.expect_clean_end();
}

#[test]
fn a_stop_closes_the_listeners_and_lets_handlers_finish() {
    for signal in STOPS {
        let fdaccept = Fdaccept::chain(["fdpool", "2", "cat"]);
        let mut process = with_path(fdaccept.args(["--grace", "3600"]));
        let client = unix_client(&process);
        client.expect_served();
        process.signal(signal);
        expect_closed(&process);
        assert!(process.is_running());
        client.expect_echo("y");
        process.expect_exit(0);
    }
}

#[test]
fn a_command_gets_term_when_the_grace_is_over_and_its_queue_closed_before() {
    let mut process = chain(&["--grace", "0.3"], STAYS);
    process.line("ready");
    process.term();
    process.line("closed 69");
    process.line("got TERM");
    process.expect_exit(5);
}

#[test]
fn a_command_has_all_of_the_grace() {
    let mut process = chain(&["--grace", "1.5"], STAYS);
    process.line("ready");
    let begin = Instant::now();
    process.term();
    process.line("got TERM");
    assert!(begin.elapsed() >= Duration::from_millis(1500));
}

#[test]
fn interrupts_are_not_forwarded() {
    let ends = STAYS.replace("while :; do sleep 0.05; done", "exit 3");
    let mut process = chain(&["--grace", "3600"], &ends);
    process.line("ready");
    process.signal(Signal::SIGINT);
    let log = process.expect_end(3);
    assert!(log.contains("closed 69") && !log.contains("got"), "{log}");
}

#[test]
fn a_second_signal_does_not_wait_for_the_grace() {
    for first in STOPS {
        for second in STOPS {
            let mut process = chain(&["--grace", "3600"], STAYS);
            process.line("ready");
            process.signal(first);
            process.line("closed 69");
            process.signal(second);
            process.line("got TERM");
            process.expect_exit(5);
        }
    }
}

#[test]
fn a_command_that_ignores_everything_is_killed_5_seconds_after_a_second_signal() {
    let mut process = chain_with_path(&["--grace", "3600"], IGNORES);
    process.line("ready");
    process.term();
    expect_closed(&process);
    let begin = Instant::now();
    process.term();
    process.expect_exit(128 + 9);
    assert!(begin.elapsed() >= Duration::from_secs(5));
}

#[test]
fn a_signal_after_the_grace_kills_a_command_that_ignores_everything() {
    let mut process = chain(&["--grace", "0"], IGNORES);
    process.line("ready");
    let command = process.children()[0];
    process.term();
    // The command ignored the TERM that it got at once.
    process.line("closed 69");
    assert!(is_alive(command));
    process.term();
    process.expect_exit(128 + 9);
}

#[test]
fn connections_that_nobody_takes_are_counted() {
    for (count, expected) in [
        (1, "fdaccept: 1 connection was accepted and not taken"),
        (3, "fdaccept: 3 connections were accepted and not taken"),
    ] {
        // The test could read the pipe, and never does.
        let mut process = Fdaccept::piped().args(["-v", "--grace", "0.3"]).start();
        let _crowd = Crowd::connect(process.port, count);
        process.until_accepted(count);
        process.term();
        assert_last_line(&mut process, expected);
    }
}

#[test]
fn connections_on_a_named_queue_that_nobody_takes_are_counted() {
    let mut process = Fdaccept::bound().args(["-v", "--grace", "0.3"]).start();
    let _crowd = Crowd::connect(process.port, 2);
    process.until_accepted(2);
    process.term();
    let expected = "fdaccept: 2 connections were accepted and not taken";
    assert_last_line(&mut process, expected);
    assert!(process.names.is_empty());
}

#[test]
fn a_consumer_that_comes_within_the_grace_takes_what_was_accepted() {
    let mut process = with_path(Fdaccept::piped().args(["--grace", "3600"]));
    let crowd = Crowd::connect(process.port, 5);
    process.term();
    expect_closed(&process);
    assert!(process.is_running());
    let pool = Pool::plain().stdin(process.take_pipe());
    let mut pool = pool.slots(2, ["cat"]).start();
    crowd.expect_served();
    process.expect_exit(0);
    pool.expect_exit(0);
}

#[test]
fn a_second_signal_does_not_wait_for_consumers() {
    for signal in STOPS {
        let mut process = with_path(Fdaccept::piped().args(["--grace", "3600"]));
        let _crowd = Crowd::connect(process.port, 2);
        process.signal(signal);
        expect_closed(&process);
        assert!(process.is_running());
        process.signal(signal);
        let log = process.expect_end(1);
        assert!(log.contains("2 connections were accepted and not taken"));
    }
}

#[test]
fn an_idle_pipeline_ends_without_waiting() {
    for signal in STOPS {
        let mut process = Fdaccept::piped().args(["--grace", "3600"]).start();
        let pool = Pool::plain()
            .args(["--grace", "3600"])
            .stdin(process.take_pipe());
        let mut pool = pool.slots(4, ["cat"]).start();
        assert_eq!(exchange(process.port, b"x"), b"x");
        process.signal(signal);
        process.expect_clean_end();
        pool.expect_quiet_end();
    }
}

#[test]
fn an_idle_chain_ends_without_waiting() {
    for signal in STOPS {
        let pool = ["fdpool", "--grace", "3600", "4", "cat"];
        let mut process = Fdaccept::chain(pool).args(["--grace", "3600"]).start();
        assert_eq!(exchange(process.port, b"x"), b"x");
        process.signal(signal);
        process.expect_clean_end();
    }
}

#[test]
fn an_fdaccept_that_never_had_a_consumer_ends_without_waiting() {
    let dir = tempfile::tempdir().unwrap();
    for sink in ["--bind ./q", "--connect ./q", "--connect @fdtools-nobody"] {
        let fdaccept = Fdaccept::plain().dir(&dir).args(["--grace", "3600"]);
        let mut process = fdaccept.args(sink.split(' ')).start();
        process.stop();
    }
}

#[test]
fn ctrl_c_ends_a_pipeline_after_what_it_serves() {
    let mut process = sh("fdaccept 127.0.0.1:0 | fdpool 2 -- cat").start();
    let port = process.port();
    let clients = [port, port].map(Client::connect);
    clients.iter().for_each(Client::expect_served);
    let both = process.children();
    assert_eq!(both.len(), 2);
    process.signal_group(Signal::SIGINT);
    for client in clients {
        client.expect_echo("y");
    }
    both.into_iter().for_each(until_gone);
    let (_, log) = process.finish();
    assert_eq!(besides_counters(&log).len(), 1, "{log}");
}

#[test]
fn ctrl_c_ends_a_chain_after_what_it_serves() {
    let mut process = Fdaccept::chain(["fdpool", "2", "cat"]).start();
    let client = process.served_client();
    process.signal_group(Signal::SIGINT);
    client.expect_echo("y");
    process.expect_clean_end();
}

/// The command may end while fdaccept looks at the same signal.
#[test]
fn ctrl_c_ends_a_chain_every_time() {
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..60).for_each(|_| interrupt_a_chain()));
        }
    });
}

#[track_caller]
fn interrupt_a_chain() {
    let mut process = chain(&[], "echo ready >&2; exec sleep 1000");
    process.line("ready");
    process.signal_group(Signal::SIGINT);
    process.expect_exit(128 + 2);
}

#[test]
fn a_chain_exits_as_its_command_exits() {
    for (text, expected) in [
        ("exit 0", 0),
        ("exit 7", 7),
        ("exit 255", 255),
        ("kill -KILL $$", 128 + 9),
        ("kill -TERM $$", 128 + 15),
    ] {
        let mut process = chain_with_path(&[], text);
        process.expect_exit(expected);
        assert!(process.names.is_empty());
    }
}

/// Checks the last two lines of an fdaccept that passed 2 connections, of which so many were left.
#[track_caller]
fn assert_some_were_left(log: &str, count: usize) {
    let (before, last) = log.rsplit_once('\n').unwrap();
    expect_left(last, count);
    let counters = "fdaccept: accepted 2, passed 2, refused by rule 0, ";
    let before = before.lines().last().unwrap();
    assert!(before.starts_with(counters), "{log}");
}

#[test]
fn a_command_that_ends_with_connections_waiting_is_told_of() {
    let mut process = chain(&[], "echo ready >&2; kill -STOP $$; exit 4");
    process.line("ready");
    let _crowd = Crowd::connect(process.port, 2);
    process.until_counted("passed", 2);
    thaw(process.stopped_child());
    let log = process.expect_end(4);
    assert_some_were_left(&log, 2);
}

#[test]
fn a_command_that_ends_well_with_connections_waiting_is_a_failure() {
    let mut process = chain(&[], "echo ready >&2; kill -STOP $$; exit 0");
    process.line("ready");
    let _crowd = Crowd::connect(process.port, 2);
    process.until_counted("passed", 2);
    thaw(process.stopped_child());
    let log = process.expect_end(1);
    assert_some_were_left(&log, 2);
}

#[test]
fn a_command_that_takes_some_and_leaves_others_is_told_of() {
    let mut process = chain(&[], "fdrecv -- cat; kill -STOP $$; exit 4");
    let crowd = Crowd::connect(process.port, 1);
    crowd.expect_served();
    let command = process.stopped_child();
    let _crowd = Crowd::connect(process.port, 1);
    process.until_counted("passed", 2);
    thaw(command);
    let log = process.expect_end(4);
    assert_some_were_left(&log, 1);
}

#[test]
fn what_a_command_leaves_after_a_stop_is_told_of() {
    for signal in STOPS {
        let text = "echo ready >&2; kill -STOP $$; exit 4";
        let mut process = chain_with_path(&["--grace", "3600"], text);
        process.line("ready");
        let command = process.stopped_child();
        let _crowd = Crowd::connect(process.port, 2);
        process.signal(signal);
        // With the listener, fdaccept closes the queue.
        expect_closed(&process);
        thaw(command);
        let log = process.expect_end(4);
        assert_some_were_left(&log, 2);
    }
}

/// fdaccept may be about to pass a connection just then.
#[test]
fn what_a_command_leaves_is_told_of_also_while_clients_come() {
    let mut random = Random(1);
    for _ in 0..30 {
        let mut process = chain(&[], "echo ready >&2; exec sleep 1000");
        process.line("ready");
        let command = process.children()[0];
        let _crowd = process.at_once(&[], || Crowd::connect(process.port, 100));
        random.pause(3000);
        kill(command, Signal::SIGKILL).unwrap();
        let log = process.expect_end(128 + 9);
        if !log.contains(", passed 0, ") {
            let last = log.lines().last().unwrap();
            assert!(last.ends_with("accepted and not taken"), "{log}");
        }
    }
}

#[test]
fn an_error_in_a_chain_leaves_nothing_untold() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let names = Names::new();
    let (path, go) = fifo(&names);
    let mut command = sh("exec fdaccept -v fd:0 -- sh -c 'read go <\"$0\"' \"$0\"");
    let copy = OwnedFd::from(listener.try_clone().unwrap());
    let mut process = command.arg(path).stdin(copy).start();
    let _client = connect(process.port());
    process.line("accepted");
    // Any process that has the listener can do that.
    nix::sys::socket::shutdown(listener.as_raw_fd(), nix::sys::socket::Shutdown::Both).unwrap();
    process.line("cannot accept on");
    go();
    let log = process.expect_end(1);
    besides_counters(&log);
    assert!(log.lines().any(|line| is_left(line, 1)), "{log}");
}

#[test]
fn nothing_is_said_of_connections_that_a_command_took_after_a_stop() {
    let text = "echo ready >&2; kill -STOP $$; fdrecv -- cat; fdrecv -- cat; exit 4";
    let mut process = chain_with_path(&["--grace", "3600"], text);
    process.line("ready");
    let command = process.stopped_child();
    let crowd = Crowd::connect(process.port, 2);
    process.term();
    expect_closed(&process);
    thaw(command);
    crowd.expect_served();
    let log = process.expect_end(4);
    let counters = "fdaccept: accepted 2, passed 2, taken 2, ";
    assert!(log.lines().last().unwrap().starts_with(counters), "{log}");
}

#[test]
fn a_command_that_only_closes_the_queue_is_waited_for() {
    let text = "exec </dev/null; read line <\"$0\"; exit 3";
    let names = Names::new();
    let (path, go) = fifo(&names);
    let words = sh_c(text).map(OsString::from).into_iter();
    let mut process = with_path(Fdaccept::chain(words.chain([path.into()])));
    expect_closed(&process);
    assert!(process.is_running());
    go();
    process.expect_exit(3);
}

#[test]
fn fdaccept_ends_when_nobody_has_its_pipe_any_more() {
    let mut process = with_path(Fdaccept::piped());
    drop(process.take_pipe());
    process.expect_clean_end();
    expect_closed(&process);
}

#[test]
fn connections_that_were_not_taken_when_the_pipe_closes_are_counted() {
    let mut process = Fdaccept::piped().args(["-v"]).start();
    let _crowd = Crowd::connect(process.port, 2);
    process.until_accepted(2);
    drop(process.take_pipe());
    let expected = "fdaccept: 2 connections were accepted and not taken";
    assert_last_line(&mut process, expected);
}

#[test]
fn a_socket_on_standard_output_without_consumers_is_the_end() {
    let (one, other) = UnixStream::pair().unwrap();
    let fdaccept = Fdaccept::plain().stdout(OwnedFd::from(other));
    let mut process = fdaccept.start();
    drop(one);
    process.expect_clean_end();
}

#[test]
fn a_queue_at_a_descriptor_without_consumers_is_an_error() {
    let (one, other) = UnixStream::pair().unwrap();
    let text = "exec fdaccept --queue-fd 5 127.0.0.1:0 5<&0 </dev/null";
    let mut process = sh(text).stdin(OwnedFd::from(other)).start();
    process.listening();
    drop(one);
    assert_last_line(&mut process, NOBODY_TAKES);
}

#[test]
fn that_nobody_is_left_is_found_while_another_client_waits_to_be_accepted() {
    let traced = needs!(traced("-o /dev/null -e inject=sendmsg:error=EPIPE"));
    let (_one, other) = socket_pair(SockType::SeqPacket);
    // The consumers go between the look at the listeners and the first connection.
    let mut command =
        sh("exec \"$0\" \"$1\" fdaccept --queue-fd 5 127.0.0.1:0 127.0.0.1:0 5<&0 </dev/null");
    let mut process = command.args(traced).stdin(other).start();
    drop(command);
    let ports = [process.port(), process.port()];
    process.freeze();
    let _clients = ports.map(connect);
    process.thaw();
    assert_last_line(&mut process, NOBODY_TAKES);
}

#[test]
fn who_comes_while_something_is_said_and_before_the_stop_is_passed_on() {
    let (one, other) = socket_pair(SockType::SeqPacket);
    let (reader, writer) = std::io::pipe().unwrap();
    let text = "exec fdaccept --queue-fd 5 127.0.0.1:0 5<&0 </dev/null";
    let mut command = sh(text);
    command.stdin(other).stderr(writer.try_clone().unwrap());
    let mut child = spawn(&mut command).unwrap();
    drop(command);
    let mut log = BufReader::new(reader);
    let mut line = String::new();
    log.read_line(&mut line).unwrap();
    let port = line.trim().rsplit(':').next().unwrap().parse().unwrap();
    // A file description of its own, so that only this end does not block.
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let flags = nix::libc::O_NONBLOCK;
    let mut options = std::fs::File::options();
    let filler = options.write(true).custom_flags(flags).open(path).unwrap();
    while (&filler).write(b"\n").is_ok() {}
    drop((filler, writer));
    let pid = Pid::from_raw(child.id() as i32);
    kill(pid, Signal::SIGUSR1).unwrap();
    // fdaccept waits for the log.
    until("a full pipe", || {
        let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap();
        let words: Vec<_> = call.split(' ').collect();
        words[0] == nix::libc::SYS_write.to_string() && words[1] == "0x2"
    });
    let _crowd = Crowd::connect(port, 1);
    kill(pid, Signal::SIGTERM).unwrap();
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    assert!(child.wait().unwrap().success(), "{rest}");
    let queue = Receiver::from_socket(one).unwrap();
    let received = queue.receive().unwrap();
    assert!(matches!(received, Received::Connection(_)), "{rest}");
}

#[test]
fn paths_are_removed_at_the_end() {
    for signal in STOPS {
        let fdaccept = Fdaccept::bound_at("./q").listen("./s").listen("./t");
        let mut process = fdaccept.start();
        for name in ["q", "s", "t"] {
            assert!(process.names.file(name).exists());
        }
        process.signal(signal);
        process.expect_exit(0);
        assert!(process.names.is_empty());
    }
}

#[test]
fn paths_that_a_killed_fdaccept_left_are_taken_over() {
    let names = Names::new();
    let fdaccept = || {
        Fdaccept::bound_at("./q")
            .dir(&names.directory)
            .listen("./s")
    };
    let mut first = fdaccept().start();
    first.slay();
    assert!(names.file("s").exists());
    fdaccept().start().stop();
    assert!(names.is_empty());
}

#[test]
fn hangup_has_its_default_action() {
    let mut process = Fdaccept::piped().start();
    process.signal(Signal::SIGHUP);
    process.expect_killed_by(Signal::SIGHUP);
}

#[test]
fn a_signal_that_was_ignored_stays_ignored() {
    // As a shell without job control starts what is behind `&`.
    let text = "trap '' INT; exec fdaccept 127.0.0.1:0 -- fdpool 1 -- cat";
    let mut process = sh(text).start();
    let port = process.port();
    process.signal(Signal::SIGINT);
    for _ in 0..10 {
        assert_eq!(exchange(port, b"x"), b"x");
    }
    assert!(process.is_running());
    process.stop();
}

#[track_caller]
fn expect_no_crash(process: &mut Process) {
    let (status, log) = process.finish();
    assert!(matches!(status.code(), Some(0 | 1)), "{log}");
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn two_signals_and_a_client_at_once_are_no_crash() {
    let mut process = Fdaccept::piped().start();
    let _client = process.at_once(&STOPS, || connect(process.port));
    expect_no_crash(&mut process);
}

#[test]
fn the_end_of_the_consumers_and_a_client_at_once_are_no_crash() {
    let mut process = Fdaccept::piped().start();
    let pipe = process.take_pipe();
    let _client = process.at_once(&[], || {
        let client = connect(process.port);
        drop(pipe);
        client
    });
    expect_no_crash(&mut process);
}

#[test]
fn the_end_of_the_command_and_a_client_at_once_are_no_crash() {
    let mut process = chain(&[], "kill -STOP $$; exec </dev/null; exit 7");
    let command = process.stopped_child();
    let _client = process.at_once(&[], || {
        let client = connect(process.port);
        thaw(command);
        until_gone(command);
        client
    });
    let log = process.expect_end(7);
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn no_grace_and_a_client_at_once_are_no_crash() {
    let mut process = Fdaccept::piped().args(["--grace", "0"]).start();
    let _client = process.at_once(&[Signal::SIGTERM], || connect(process.port));
    expect_no_crash(&mut process);
}

#[test]
fn a_grace_without_end_is_no_crash() {
    for grace in ["inf", "1e30", "18446744073709551615"] {
        let mut process = Fdaccept::piped().args(["--grace", grace]).start();
        process.stop();
    }
}
