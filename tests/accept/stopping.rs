//! How fdaccept ends: by a signal, with its command, or with its consumers.

use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{self, *};
use fdtools::queue::{Received, Receiver};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::SockType;
use nix::unistd::Pid;

const STOPS: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];

/// A command for a chain: says when its queue has closed, and goes on until it is told to end.
const STAYS: &str = "trap 'echo got TERM >&2; exit 5' TERM; trap 'echo got INT >&2; exit 6' INT; \
                     echo ready >&2; fdrecv -- cat; echo closed $? >&2; \
                     while :; do sleep 0.05; done";

/// A command for a chain that nothing but KILL ends; it says when its queue has closed.
const IGNORES: &str = "trap '' TERM INT; echo ready >&2; fdrecv -- cat; echo closed $? >&2; \
                       while :; do sleep 0.05; done";

fn sh(text: &str) -> Process {
    Process::start(&mut script("sh", text))
}

/// `fdaccept` with these arguments and this shell script as its command.
fn chain(arguments: &[&str], text: &str) -> Process {
    let mut command = program("fdaccept");
    command.args(arguments).args(["--", "sh", "-c", text]);
    Process::start(&mut command)
}

/// `fdaccept` with these arguments, whose pipe leads to `reader`.
fn behind_a_pipe(arguments: &[&str]) -> (Process, PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = program("fdaccept");
    let process = Process::start(command.args(arguments).stdout(writer));
    (process, reader)
}

fn pool(reader: PipeReader, arguments: &[&str]) -> Process {
    let mut command = program("fdpool");
    Process::start(command.args(arguments).stdin(reader))
}

/// Stops a process, does something, and lets it find that and `signals` at once when it goes on.
#[track_caller]
fn at_once(process: &Process, signals: &[Signal], action: impl FnOnce()) {
    process.signal(Signal::SIGSTOP);
    until("the stop", || state(process.pid()) == Some('T'));
    action();
    for signal in signals {
        process.signal(*signal);
    }
    process.signal(Signal::SIGCONT);
}

/// A path for a listener of `fdaccept`, which it removes when it closes the listener: so that can
/// be seen, where the number of a port may be somebody else's by then.
struct OwnPath {
    dir: tempfile::TempDir,
}

impl OwnPath {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir }
    }

    fn text(&self) -> String {
        self.dir.path().join("s").to_str().unwrap().to_owned()
    }

    /// Waits until nobody listens there any more.
    #[track_caller]
    fn expect_closed(&self) {
        until("the end of the listener", || {
            !Path::new(&self.text()).exists()
        });
        assert!(UnixStream::connect(self.text()).is_err());
    }
}

/// Waits until a line says that the command of a chain runs.
#[track_caller]
fn ready(process: &mut Process) {
    process.line("listening on");
    process.line("ready");
}

#[test]
fn a_chain_serves_what_waits_in_the_backlog() {
    for signal in STOPS {
        let mut process = sh("exec fdaccept 127.0.0.1:0 -- fdpool 4 -- cat");
        let port = process.port();
        let mut crowd = None;
        at_once(&process, &[signal], || {
            crowd = Some(Crowd::connect(port, 50))
        });
        crowd.unwrap().expect_served();
        let (status, log) = process.finish();
        assert_eq!(
            (status.code(), besides_counters(&log).len()),
            (Some(0), 1),
            "{log}"
        );
    }
}

#[test]
fn a_pipeline_serves_what_waits_in_the_backlog() {
    for signal in STOPS {
        let (mut process, reader) = behind_a_pipe(&["127.0.0.1:0"]);
        let mut pool = pool(reader, &["4", "cat"]);
        let port = process.port();
        let mut crowd = None;
        at_once(&process, &[signal], || {
            crowd = Some(Crowd::connect(port, 50))
        });
        crowd.unwrap().expect_served();
        assert_eq!(process.wait().code(), Some(0));
        assert_eq!(pool.wait().code(), Some(0));
    }
}

#[test]
fn every_backlog_is_served() {
    let path = OwnPath::new();
    let mut command = script(
        "sh",
        "exec fdaccept 127.0.0.1:0 127.0.0.1:0 \"$0\" -- fdpool 2 -- cat",
    );
    let mut process = Process::start(command.arg(path.text()));
    let (one, two) = (process.port(), process.port());
    process.listening();
    let mut clients = None;
    at_once(&process, &[Signal::SIGTERM], || {
        let crowds = [Crowd::connect(one, 20), Crowd::connect(two, 20)];
        clients = Some((crowds, connect_unix(path.text())));
    });
    let (crowds, mut client) = clients.unwrap();
    crowds.into_iter().for_each(Crowd::expect_served);
    client.write_all(b"x").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "x");
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn a_full_queue_is_served_as_well_as_the_backlog() {
    let text = "exec fdaccept 127.0.0.1:0 -- sh -c 'kill -STOP $$; exec fdpool 4 -- cat'";
    let mut process = sh(text);
    let port = process.port();
    let pool = eventually("the command", || {
        let child = children(process.pid()).pop()?;
        (state(child) == Some('T')).then_some(child)
    });
    let maximum = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    support::raise_limit();
    let crowd = Crowd::connect(port, maximum.trim().parse::<usize>().unwrap().min(600));
    process.signal(Signal::SIGTERM);
    kill(pool, Signal::SIGCONT).unwrap();
    crowd.expect_served();
    let (status, log) = process.finish();
    assert_eq!(
        (status.code(), besides_counters(&log).len()),
        (Some(0), 1),
        "{log}"
    );
}

#[test]
fn a_stop_closes_the_listeners_and_lets_handlers_finish() {
    for signal in STOPS {
        let path = OwnPath::new();
        let mut command = script("sh", "exec fdaccept --grace 3600 \"$0\" -- fdpool 2 -- cat");
        let mut process = Process::start(command.arg(path.text()));
        process.listening();
        let mut client = connect_unix(path.text());
        // It is served once it has an answer.
        client.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
        process.signal(signal);
        path.expect_closed();
        assert!(process.is_running());
        client.write_all(b"y").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "y");
        assert_eq!(process.wait().code(), Some(0));
    }
}

#[test]
fn a_command_gets_term_when_the_grace_is_over_and_its_queue_closed_before() {
    let mut process = chain(&["--grace", "0.3", "127.0.0.1:0"], STAYS);
    ready(&mut process);
    process.signal(Signal::SIGTERM);
    process.line("closed 69");
    process.line("got TERM");
    assert_eq!(process.wait().code(), Some(5));
}

#[test]
fn a_command_has_all_of_the_grace() {
    let mut process = chain(&["--grace", "1.5", "127.0.0.1:0"], STAYS);
    ready(&mut process);
    let begin = Instant::now();
    process.signal(Signal::SIGTERM);
    process.line("got TERM");
    assert!(begin.elapsed() >= Duration::from_millis(1500));
}

#[test]
fn interrupts_are_not_forwarded() {
    let ends = STAYS.replace("while :; do sleep 0.05; done", "exit 3");
    let mut process = chain(&["--grace", "3600", "127.0.0.1:0"], &ends);
    ready(&mut process);
    process.signal(Signal::SIGINT);
    let (status, log) = process.finish();
    assert_eq!(status.code(), Some(3));
    assert!(log.contains("closed 69") && !log.contains("got"), "{log}");
}

#[test]
fn a_second_signal_does_not_wait_for_the_grace() {
    for first in STOPS {
        for second in STOPS {
            let mut process = chain(&["--grace", "3600", "127.0.0.1:0"], STAYS);
            ready(&mut process);
            process.signal(first);
            process.line("closed 69");
            process.signal(second);
            process.line("got TERM");
            assert_eq!(process.wait().code(), Some(5));
        }
    }
}

#[test]
fn a_command_that_ignores_everything_is_killed_5_seconds_after_a_second_signal() {
    let path = OwnPath::new();
    let mut process = chain(&["--grace", "3600", &path.text()], IGNORES);
    ready(&mut process);
    process.signal(Signal::SIGTERM);
    path.expect_closed();
    let begin = Instant::now();
    process.signal(Signal::SIGTERM);
    assert_eq!(process.wait().code(), Some(128 + 9));
    assert!(begin.elapsed() >= Duration::from_secs(5));
}

#[test]
fn a_signal_after_the_grace_kills_a_command_that_ignores_everything() {
    let mut process = chain(&["--grace", "0", "127.0.0.1:0"], IGNORES);
    ready(&mut process);
    let command = children(process.pid())[0];
    process.signal(Signal::SIGTERM);
    // It ignored the TERM that it got at once, and still runs.
    process.line("closed 69");
    assert!(is_alive(command));
    process.signal(Signal::SIGTERM);
    assert_eq!(process.wait().code(), Some(128 + 9));
}

#[test]
fn connections_that_nobody_takes_are_counted() {
    for (count, expected) in [
        (1, "fdaccept: 1 connection was accepted and not taken"),
        (3, "fdaccept: 3 connections were accepted and not taken"),
    ] {
        // Somebody could read the pipe, and never does.
        let (mut process, _reader) = behind_a_pipe(&["-v", "--grace", "0.3", "127.0.0.1:0"]);
        let port = process.port();
        let _crowd = Crowd::connect(port, count);
        for _ in 0..count {
            process.line("accepted");
        }
        process.signal(Signal::SIGTERM);
        let (status, log) = process.finish();
        assert_eq!(status.code(), Some(1), "{log}");
        assert_eq!(log.lines().last(), Some(expected));
    }
}

#[test]
fn connections_on_a_named_queue_that_nobody_takes_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let queue = dir.path().join("q");
    let queue = queue.to_str().unwrap();
    let mut command = program("fdaccept");
    command.args(["-v", "--grace", "0.3", "--bind", queue, "127.0.0.1:0"]);
    let mut process = Process::start(&mut command);
    let _crowd = Crowd::connect(process.port(), 2);
    process.line("accepted");
    process.line("accepted");
    process.signal(Signal::SIGTERM);
    let (status, log) = process.finish();
    assert_eq!(status.code(), Some(1), "{log}");
    let expected = "fdaccept: 2 connections were accepted and not taken";
    assert_eq!(log.lines().last(), Some(expected));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_consumer_that_comes_within_the_grace_takes_what_was_accepted() {
    let path = OwnPath::new();
    let arguments = ["--grace", "3600", "127.0.0.1:0", &path.text()];
    let (mut process, reader) = behind_a_pipe(&arguments);
    let crowd = Crowd::connect(process.port(), 5);
    process.signal(Signal::SIGTERM);
    path.expect_closed();
    assert!(process.is_running());
    let mut pool = pool(reader, &["2", "cat"]);
    crowd.expect_served();
    assert_eq!(process.wait().code(), Some(0));
    assert_eq!(pool.wait().code(), Some(0));
}

#[test]
fn a_second_signal_does_not_wait_for_consumers() {
    for signal in STOPS {
        let path = OwnPath::new();
        let arguments = ["--grace", "3600", "127.0.0.1:0", &path.text()];
        let (mut process, _reader) = behind_a_pipe(&arguments);
        let _crowd = Crowd::connect(process.port(), 2);
        process.signal(signal);
        path.expect_closed();
        assert!(process.is_running());
        process.signal(signal);
        let (status, log) = process.finish();
        assert_eq!(status.code(), Some(1));
        assert!(log.contains("2 connections were accepted and not taken"));
    }
}

#[test]
fn an_idle_pipeline_ends_without_waiting() {
    for signal in STOPS {
        let (mut process, reader) = behind_a_pipe(&["--grace", "3600", "127.0.0.1:0"]);
        let mut pool = pool(reader, &["--grace", "3600", "4", "cat"]);
        let port = process.port();
        assert_eq!(exchange(port, b"x"), b"x");
        process.signal(signal);
        let (status, log) = process.finish();
        assert_eq!(
            (status.code(), besides_counters(&log).len()),
            (Some(0), 1),
            "{log}"
        );
        let (status, log) = pool.finish();
        assert_eq!((status.code(), log.as_str()), (Some(0), ""));
    }
}

#[test]
fn an_idle_chain_ends_without_waiting() {
    for signal in STOPS {
        let text = "exec fdaccept --grace 3600 127.0.0.1:0 -- fdpool --grace 3600 4 -- cat";
        let mut process = sh(text);
        let port = process.port();
        assert_eq!(exchange(port, b"x"), b"x");
        process.signal(signal);
        let (status, log) = process.finish();
        assert_eq!(
            (status.code(), besides_counters(&log).len()),
            (Some(0), 1),
            "{log}"
        );
    }
}

#[test]
fn an_fdaccept_that_never_had_a_consumer_ends_without_waiting() {
    let dir = tempfile::tempdir().unwrap();
    for sink in ["--bind ./q", "--connect ./q", "--connect @fdtools-nobody"] {
        let mut command = script(
            "sh",
            &format!("exec fdaccept --grace 3600 {sink} 127.0.0.1:0"),
        );
        let mut process = Process::start(command.current_dir(&dir));
        process.listening();
        process.signal(Signal::SIGTERM);
        assert_eq!(process.wait().code(), Some(0), "{sink}");
    }
}

#[test]
fn ctrl_c_ends_a_pipeline_after_what_it_serves() {
    let mut process = sh("fdaccept 127.0.0.1:0 | fdpool 2 -- cat");
    let port = process.port();
    let mut clients = [connect(port), connect(port)];
    for client in &mut clients {
        client.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
    }
    let both = children(process.pid());
    assert_eq!(both.len(), 2);
    process.signal_group(Signal::SIGINT);
    for mut client in clients {
        client.write_all(b"y").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "y");
    }
    until("the end of both", || !both.iter().any(|pid| is_alive(*pid)));
    let (_, log) = process.finish();
    assert_eq!(besides_counters(&log).len(), 1, "{log}");
}

#[test]
fn ctrl_c_ends_a_chain_after_what_it_serves() {
    let mut process = sh("exec fdaccept 127.0.0.1:0 -- fdpool 2 -- cat");
    let mut client = connect(process.port());
    client.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
    process.signal_group(Signal::SIGINT);
    client.write_all(b"y").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "y");
    let (status, log) = process.finish();
    assert_eq!(
        (status.code(), besides_counters(&log).len()),
        (Some(0), 1),
        "{log}"
    );
}

/// The command may end just while fdaccept looks at the same signal.
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
    let mut process = chain(&["127.0.0.1:0"], "echo ready >&2; exec sleep 1000");
    ready(&mut process);
    process.signal_group(Signal::SIGINT);
    assert_eq!(process.wait().code(), Some(128 + 2));
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
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let mut process = chain(&[path.to_str().unwrap()], text);
        assert_eq!(process.wait().code(), Some(expected), "{text}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

/// What is said at the end of connections that a command has left in its queue: how many is not
/// known then.
const LEFT: &str = "fdaccept: connections were accepted and not taken";

/// Waits until fdaccept has put two connections into its queue.
#[track_caller]
fn until_two_are_passed(process: &mut Process) {
    until("two in the queue", || {
        process.signal(Signal::SIGUSR1);
        process.line("fdaccept: accepted ").contains(", passed 2, ")
    });
}

/// Checks the last two lines of an fdaccept that accepted two connections of which it does not know
/// how many were taken.
#[track_caller]
fn assert_some_were_left(log: &str) {
    let (before, last) = log.rsplit_once('\n').unwrap();
    assert_eq!(last, LEFT, "{log}");
    let counters = "fdaccept: accepted 2, passed 2, refused by rule 0, ";
    assert!(
        before.lines().last().unwrap().starts_with(counters),
        "{log}"
    );
}

#[test]
fn a_command_that_ends_with_connections_waiting_is_told_of() {
    let text = "echo ready >&2; kill -STOP $$; exit 4";
    let mut process = chain(&["127.0.0.1:0"], text);
    let port = process.port();
    process.line("ready");
    let _crowd = Crowd::connect(port, 2);
    until_two_are_passed(&mut process);
    let command = children(process.pid())[0];
    until("the stop", || state(command) == Some('T'));
    kill(command, Signal::SIGCONT).unwrap();
    let (status, log) = process.finish();
    assert_eq!(status.code(), Some(4));
    assert_some_were_left(&log);
}

#[test]
fn a_command_that_takes_some_and_leaves_others_is_told_of() {
    let text = "fdrecv -- cat; kill -STOP $$; exit 4";
    let mut process = chain(&["127.0.0.1:0"], text);
    let port = process.port();
    let crowd = Crowd::connect(port, 1);
    crowd.expect_served();
    let command = children(process.pid())[0];
    until("the stop", || state(command) == Some('T'));
    let _crowd = Crowd::connect(port, 1);
    until_two_are_passed(&mut process);
    kill(command, Signal::SIGCONT).unwrap();
    let (status, log) = process.finish();
    assert_eq!(status.code(), Some(4));
    assert_some_were_left(&log);
}

#[test]
fn what_a_command_leaves_after_a_stop_is_told_of() {
    for signal in STOPS {
        let path = OwnPath::new();
        let text = "echo ready >&2; kill -STOP $$; exit 4";
        let arguments = ["--grace", "3600", "127.0.0.1:0", &path.text()];
        let mut process = chain(&arguments, text);
        let port = process.port();
        process.line("ready");
        let command = children(process.pid())[0];
        until("the stop", || state(command) == Some('T'));
        let _crowd = Crowd::connect(port, 2);
        process.signal(signal);
        // With the listener, fdaccept closes the queue.
        path.expect_closed();
        kill(command, Signal::SIGCONT).unwrap();
        let (status, log) = process.finish();
        assert_eq!(status.code(), Some(4));
        assert_some_were_left(&log);
    }
}

/// fdaccept may be about to pass one on just then.
#[test]
fn what_a_command_leaves_is_told_of_also_while_clients_come() {
    let mut random = Random(1);
    for _ in 0..30 {
        let mut process = chain(&["127.0.0.1:0"], "echo ready >&2; exec sleep 1000");
        let port = process.port();
        process.line("ready");
        let command = children(process.pid())[0];
        let mut crowd = None;
        at_once(&process, &[], || crowd = Some(Crowd::connect(port, 100)));
        random.pause(3000);
        kill(command, Signal::SIGKILL).unwrap();
        let (status, log) = process.finish();
        assert_eq!(status.code(), Some(128 + 9));
        if !log.contains(", passed 0, ") {
            assert_eq!(log.lines().last(), Some(LEFT), "{log}");
        }
    }
}

#[test]
fn an_error_in_a_chain_leaves_nothing_untold() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = script(
        "sh",
        "exec fdaccept -v fd:0 -- sh -c 'read go <\"$0\"' \"$0\"",
    );
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    command
        .arg(&fifo)
        .stdin(OwnedFd::from(listener.try_clone().unwrap()));
    let mut process = Process::start(&mut command);
    let _client = connect(process.port());
    process.line("accepted");
    // Somebody else who has it can do that.
    nix::sys::socket::shutdown(listener.as_raw_fd(), nix::sys::socket::Shutdown::Both).unwrap();
    process.line("cannot accept on");
    writeln!(File::options().write(true).open(&fifo).unwrap()).unwrap();
    let (status, log) = process.finish();
    assert_eq!(status.code(), Some(1), "{log}");
    assert_eq!(
        log.lines().filter(|line| is_counters(line)).count(),
        1,
        "{log}"
    );
    assert!(log.lines().any(|line| line == LEFT), "{log}");
}

#[test]
fn nothing_is_said_of_connections_that_a_command_took_after_a_stop() {
    let path = OwnPath::new();
    let text = "echo ready >&2; kill -STOP $$; fdrecv -- cat; fdrecv -- cat; exit 4";
    let arguments = ["--grace", "3600", "127.0.0.1:0", &path.text()];
    let mut process = chain(&arguments, text);
    let port = process.port();
    process.line("ready");
    let command = children(process.pid())[0];
    until("the stop", || state(command) == Some('T'));
    let crowd = Crowd::connect(port, 2);
    process.signal(Signal::SIGTERM);
    path.expect_closed();
    kill(command, Signal::SIGCONT).unwrap();
    crowd.expect_served();
    let (status, log) = process.finish();
    assert_eq!(status.code(), Some(4), "{log}");
    let counters = "fdaccept: accepted 2, passed 2, taken 2, ";
    assert!(log.lines().last().unwrap().starts_with(counters), "{log}");
}

#[test]
fn a_command_that_only_closes_the_queue_is_waited_for() {
    let path = OwnPath::new();
    let text = "exec </dev/null; read line <\"$0\"; exit 3";
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut command = program("fdaccept");
    command
        .args([&path.text(), "--", "sh", "-c", text])
        .arg(&fifo);
    let mut process = Process::start(&mut command);
    process.listening();
    path.expect_closed();
    assert!(process.is_running());
    writeln!(File::options().write(true).open(&fifo).unwrap()).unwrap();
    assert_eq!(process.wait().code(), Some(3));
}

#[test]
fn fdaccept_ends_when_nobody_has_its_pipe_any_more() {
    let path = OwnPath::new();
    let (mut process, reader) = behind_a_pipe(&[&path.text()]);
    process.listening();
    drop(reader);
    let (status, log) = process.finish();
    assert_eq!(
        (status.code(), besides_counters(&log).len()),
        (Some(0), 1),
        "{log}"
    );
    path.expect_closed();
}

#[test]
fn connections_that_were_not_taken_when_the_pipe_closes_are_counted() {
    let (mut process, reader) = behind_a_pipe(&["-v", "127.0.0.1:0"]);
    let _crowd = Crowd::connect(process.port(), 2);
    process.line("accepted");
    process.line("accepted");
    drop(reader);
    let (status, log) = process.finish();
    assert_eq!(status.code(), Some(1));
    let expected = "fdaccept: 2 connections were accepted and not taken";
    assert_eq!(log.lines().last(), Some(expected));
}

#[test]
fn a_socket_on_standard_output_without_consumers_is_the_end() {
    let (one, other) = UnixStream::pair().unwrap();
    let mut command = program("fdaccept");
    let command = command.arg("127.0.0.1:0").stdout(OwnedFd::from(other));
    let mut process = Process::start(command);
    // The command has a copy of it.
    command.stdout(std::process::Stdio::null());
    process.listening();
    drop(one);
    let (status, log) = process.finish();
    assert_eq!(
        (status.code(), besides_counters(&log).len()),
        (Some(0), 1),
        "{log}"
    );
}

#[test]
fn a_queue_at_a_descriptor_without_consumers_is_an_error() {
    let (one, other) = UnixStream::pair().unwrap();
    let mut command = script(
        "sh",
        "exec fdaccept --queue-fd 5 127.0.0.1:0 5<&0 </dev/null",
    );
    command.stdin(OwnedFd::from(other));
    let mut process = Process::start(&mut command);
    drop(command);
    process.listening();
    drop(one);
    let (status, log) = process.finish();
    assert_eq!(status.code(), Some(1));
    let expected = "fdaccept: nobody takes connections from the queue any more";
    assert_eq!(log.lines().last(), Some(expected));
}

#[test]
fn that_nobody_is_left_is_found_while_another_client_waits_to_be_accepted() {
    let Some(strace) = peer("strace") else {
        return;
    };
    let (_one, other) = socket_pair(SockType::SeqPacket);
    // The consumers go between the look at the listeners and the first connection.
    let mut command = script(
        "sh",
        "exec \"$0\" -D -qq -o /dev/null -e inject=sendmsg:error=EPIPE \
         fdaccept --queue-fd 5 127.0.0.1:0 127.0.0.1:0 5<&0 </dev/null",
    );
    let mut process = Process::start(command.arg(strace).stdin(other));
    drop(command);
    let ports = [process.port(), process.port()];
    process.signal(Signal::SIGSTOP);
    until("the stop", || {
        matches!(state(process.pid()), Some('T' | 't'))
    });
    let _clients = ports.map(connect);
    process.signal(Signal::SIGCONT);
    let (status, log) = process.finish();
    assert_eq!(status.code(), Some(1), "{log}");
    let expected = "fdaccept: nobody takes connections from the queue any more";
    assert_eq!(log.lines().last(), Some(expected), "{log}");
}

#[test]
fn who_comes_while_something_is_said_and_before_the_stop_is_passed_on() {
    let (one, other) = socket_pair(SockType::SeqPacket);
    let (reader, writer) = std::io::pipe().unwrap();
    let text = "exec fdaccept --queue-fd 5 127.0.0.1:0 5<&0 </dev/null";
    let mut command = script("sh", text);
    command.stdin(other).stderr(writer.try_clone().unwrap());
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut log = BufReader::new(reader);
    let mut line = String::new();
    log.read_line(&mut line).unwrap();
    let port = line.trim().rsplit(':').next().unwrap().parse().unwrap();
    // Of its own, so that only this end does not block.
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let flags = nix::libc::O_NONBLOCK;
    let mut options = std::fs::File::options();
    let filler = options.write(true).custom_flags(flags).open(path).unwrap();
    while (&filler).write(b"\n").is_ok() {}
    drop((filler, writer));
    let pid = Pid::from_raw(child.id() as i32);
    kill(pid, Signal::SIGUSR1).unwrap();
    // It polls the log alone.
    until("a full pipe", || {
        let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap();
        let words: Vec<_> = call.split(' ').collect();
        words[0] == nix::libc::SYS_ppoll.to_string() && words[2] == "0x1"
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
        let dir = tempfile::tempdir().unwrap();
        let mut command = program("fdaccept");
        command
            .args(["--bind", "./q", "./s", "./t"])
            .current_dir(&dir);
        let mut process = Process::start(&mut command);
        process.listening();
        process.listening();
        for name in ["q", "s", "t"] {
            assert!(dir.path().join(name).exists());
        }
        process.signal(signal);
        assert_eq!(process.wait().code(), Some(0));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn paths_that_a_killed_fdaccept_left_are_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let fdaccept = || {
        let mut command = program("fdaccept");
        command.args(["--bind", "./q", "./s"]).current_dir(&dir);
        let mut process = Process::start(&mut command);
        process.listening();
        process
    };
    let mut first = fdaccept();
    first.signal(Signal::SIGKILL);
    first.wait();
    assert!(dir.path().join("s").exists());
    let mut second = fdaccept();
    second.signal(Signal::SIGTERM);
    assert_eq!(second.wait().code(), Some(0));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn hangup_has_its_default_action() {
    let (mut process, _reader) = behind_a_pipe(&["127.0.0.1:0"]);
    process.listening();
    process.signal(Signal::SIGHUP);
    assert_eq!(process.wait().signal(), Some(Signal::SIGHUP as i32));
}

#[test]
fn a_signal_that_was_ignored_stays_ignored() {
    // As a shell without job control starts what is behind `&`.
    let mut process = sh("trap '' INT; exec fdaccept 127.0.0.1:0 -- fdpool 1 -- cat");
    let port = process.port();
    process.signal(Signal::SIGINT);
    for _ in 0..10 {
        assert_eq!(exchange(port, b"x"), b"x");
    }
    assert!(process.is_running());
    process.signal(Signal::SIGTERM);
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn two_signals_and_a_client_at_once_are_no_crash() {
    let (mut process, _reader) = behind_a_pipe(&["127.0.0.1:0"]);
    let port = process.port();
    let mut client = None;
    at_once(&process, &STOPS, || client = Some(connect(port)));
    let (status, log) = process.finish();
    assert!(matches!(status.code(), Some(0 | 1)), "{log}");
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn the_end_of_the_consumers_and_a_client_at_once_are_no_crash() {
    let (mut process, reader) = behind_a_pipe(&["127.0.0.1:0"]);
    let port = process.port();
    let mut client = None;
    at_once(&process, &[], || {
        client = Some(connect(port));
        drop(reader);
    });
    let (status, log) = process.finish();
    assert!(matches!(status.code(), Some(0 | 1)), "{log}");
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn the_end_of_the_command_and_a_client_at_once_are_no_crash() {
    let mut process = chain(&["127.0.0.1:0"], "kill -STOP $$; exec </dev/null; exit 7");
    let port = process.port();
    let command = eventually("the command", || {
        let child = children(process.pid()).pop()?;
        (state(child) == Some('T')).then_some(child)
    });
    let mut client = None;
    at_once(&process, &[], || {
        client = Some(connect(port));
        kill(command, Signal::SIGCONT).unwrap();
        until("its end", || !is_alive(command));
    });
    let (status, log) = process.finish();
    assert_eq!(status.code(), Some(7), "{log}");
}

#[test]
fn no_grace_and_a_client_at_once_are_no_crash() {
    let (mut process, _reader) = behind_a_pipe(&["--grace", "0", "127.0.0.1:0"]);
    let port = process.port();
    let mut client = None;
    at_once(&process, &[Signal::SIGTERM], || {
        client = Some(connect(port))
    });
    let (status, log) = process.finish();
    assert!(matches!(status.code(), Some(0 | 1)), "{log}");
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn a_grace_without_end_is_no_crash() {
    for grace in ["inf", "1e30", "18446744073709551615"] {
        let (mut process, _reader) = behind_a_pipe(&["--grace", grace, "127.0.0.1:0"]);
        process.listening();
        process.signal(Signal::SIGTERM);
        let (status, log) = process.finish();
        assert_eq!(status.code(), Some(0), "{log}");
    }
}
