//! Readiness, on a descriptor and to a service manager, and the status with the counters.

use std::io::{PipeReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use crate::support::poll::ready;
use crate::support::*;
use fdtools::queue::name::Name;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::mkfifo;
use rustix::event::PollFlags;

// A descriptor.

/// `fdaccept --notify-fd 3 ARGUMENTS` with a pipe as descriptor 3, and the other side of the pipe.
fn notifying(arguments: &str) -> (Fdaccept, PipeReader) {
    let text = format!("exec fdaccept --notify-fd 3 {arguments} 3>&1 >/dev/null");
    notifying_by(&text)
}

/// A script that has a pipe as its standard output.
fn notifying_by(text: &str) -> (Fdaccept, PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    (Fdaccept::sh(text).stdout(writer), reader)
}

const CAT_1: &str = "127.0.0.1:0 -- fdpool 1 -- cat";

fn is_told(reader: &PipeReader) -> bool {
    !ready(reader.as_fd(), PollFlags::IN).is_empty()
}

/// All that comes until the end.
#[track_caller]
fn all_of(mut reader: PipeReader) -> String {
    until("a word", || is_told(&reader));
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    text
}

#[track_caller]
fn until_asleep(process: &Process) {
    until_state(process.pid(), 'S');
}

#[test]
fn a_newline_and_the_end_come_when_clients_can_connect() {
    for form in ["-- fdpool 1 -- cat", "--bind ./queue", "--connect ./nobody"] {
        let (fdaccept, reader) = notifying(&format!("--grace 0 ./listener {form}"));
        let mut acceptor = fdaccept.spawn();
        assert_eq!(all_of(reader), "\n", "{form}");
        assert!(UnixStream::connect(acceptor.names.file("listener")).is_ok());
        assert!(acceptor.is_running());
        acceptor.end_by(Signal::SIGTERM);
    }
}

#[test]
fn a_pipeline_says_that_it_is_ready() {
    let text = "exec 3>&1 >/dev/null; fdaccept --notify-fd 3 ./listener | fdpool 1 -- cat 3>&-";
    let (fdaccept, reader) = notifying_by(text);
    let acceptor = fdaccept.spawn();
    // The shell holds the pipe open as well: no end comes.
    until("a word", || is_told(&reader));
    Client::connect_unix(acceptor.names.file("listener")).expect_echo("hello");
}

#[test]
fn nothing_comes_before_everything_is_bound() {
    let (fdaccept, reader) = notifying(&format!("--port-file ./fifo {CAT_1}"));
    let fifo = fdaccept.names.text("fifo");
    mkfifo(&*fifo, Mode::S_IRWXU).unwrap();
    let mut acceptor = fdaccept.spawn();
    until_asleep(&acceptor);
    stays("nothing is said", || !is_told(&reader));
    let port = std::fs::read_to_string(&fifo).unwrap();
    assert_eq!(all_of(reader), "\n");
    assert_eq!(port, format!("{}\n", acceptor.port()));
}

#[test]
fn nothing_but_the_end_comes_if_it_cannot_start() {
    let (_taken, port) = listener();
    let (fdaccept, reader) = notifying(&format!("127.0.0.1:{port} -- fdpool 1 -- cat"));
    let mut acceptor = fdaccept.spawn();
    assert_eq!(all_of(reader), "");
    acceptor.expect_exit(1);
}

#[test]
fn a_command_and_its_handlers_do_not_have_the_descriptor() {
    let handler = "sh -c 'ls /proc/self/fd/; cat'";
    let (fdaccept, reader) = notifying(&format!("127.0.0.1:0 -- fdpool 1 -- {handler}"));
    let acceptor = fdaccept.start();
    assert_eq!(all_of(reader), "\n");
    let command = eventually("the command", || acceptor.children().pop());
    until_named(command, "fdpool");
    for pid in [acceptor.pid(), command] {
        let mut pipes = descriptors(pid);
        pipes.retain(|(number, what)| *number == 3 && what.starts_with("pipe:"));
        assert!(pipes.is_empty(), "{pipes:?}");
    }
    // 3 is the directory itself.
    assert_eq!(exchange(acceptor.port, b""), b"0\n1\n2\n3\n");
}

#[test]
fn standard_input_and_output_can_be_what_it_is_said_on() {
    for (number, redirection) in [(0, "<&1 0>&1 >/dev/null"), (1, "")] {
        let (fdaccept, reader) = notifying_by(&format!(
            "exec fdaccept --notify-fd {number} --bind ./queue ./listener {redirection}"
        ));
        let mut acceptor = fdaccept.spawn();
        assert_eq!(all_of(reader), "\n");
        assert!(acceptor.is_running());
        acceptor.end_by(Signal::SIGTERM);
    }
}

#[test]
fn a_file_can_be_what_it_is_said_in() {
    let text = "exec fdaccept --notify-fd 3 ./listener -- fdpool 1 -- cat 3>./said";
    let acceptor = Fdaccept::sh(text).spawn();
    let said = || std::fs::read(acceptor.names.file("said"));
    until("a word", || said().is_ok_and(|said| said == b"\n"));
}

/// Checks that this is a usage error, and leaves no file.
#[track_caller]
fn is_wrong_usage(text: &str, expected: &str) {
    let mut acceptor = Fdaccept::sh(&format!("exec fdaccept {text}")).spawn();
    let log = acceptor.expect_end(2);
    let first = log.lines().next().unwrap();
    assert!(first.starts_with("fdaccept: "), "{text}: {log}");
    assert!(first.contains(expected), "{text}: {log}");
    assert!(acceptor.names.is_empty(), "{text}");
}

#[test]
fn a_descriptor_that_is_not_open_or_in_use_is_a_usage_error() {
    let rest = "--bind ./queue ./listener";
    for (number, expected) in [
        ("9", "descriptor 9 is not open"),
        ("1000000000", "descriptor 1000000000 is not open"),
        ("2", "descriptor 2 is standard error"),
        ("3x", "--notify-fd"),
    ] {
        is_wrong_usage(&format!("--notify-fd={number} {rest}"), expected);
    }
    let twice = "descriptor 3 cannot be used for two things at once";
    is_wrong_usage("--notify-fd 3 --queue-fd 3 ./listener 3>&1", twice);
    is_wrong_usage("--notify-fd 3 ./listener fd:3 -- true 3>&1", twice);
    let output = "descriptor 1 cannot be used for two things at once";
    is_wrong_usage("--notify-fd 1 ./listener", output);
    is_wrong_usage("--notify-fd 1 --queue-fd 1 ./listener", output);
}

#[test]
fn what_fdaccept_opens_itself_is_not_taken_for_a_descriptor_that_was_given() {
    // The manager's socket would be the first free number.
    let fdaccept = Fdaccept::bound().options("--notify-fd 3");
    let log = fdaccept.under(&Manager::at_path()).fails(2);
    assert!(log.contains("descriptor 3 is not open"), "{log}");
}

#[test]
fn a_pipe_whose_reader_is_gone_does_not_end_it() {
    let (fdaccept, reader) = notifying(CAT_1);
    drop(reader);
    let mut acceptor = fdaccept.start();
    let line = acceptor.line("--notify-fd");
    assert!(line.ends_with(": Broken pipe"), "{line}");
    for _ in 0..3 {
        acceptor.expect_echo();
    }
    acceptor.stop();
}

#[test]
fn a_pipe_that_is_full_does_not_keep_it_from_serving_and_from_ending() {
    let (_reader, mut writer) = std::io::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    while writer.write(&[b'x'; 512]).is_ok() {}
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    let mut acceptor = notifying(CAT_1).0.stdout(writer).start();
    acceptor.expect_echo();
    acceptor.stop();
}

#[test]
fn a_sandboxed_one_says_that_it_is_ready() {
    let (fdaccept, reader) = notifying("--sandbox ./listener -- fdpool 1 -- cat");
    let acceptor = fdaccept.spawn();
    assert_eq!(all_of(reader), "\n");
    assert!(UnixStream::connect(acceptor.names.file("listener")).is_ok());
}

// A service manager.

#[test]
fn a_manager_is_told_first_that_clients_can_connect() {
    for manager in [Manager::at_path(), Manager::at_name()] {
        let cats = Fdaccept::cats().listen("./listener");
        let mut acceptor = cats.under(&manager).spawn();
        assert_eq!(manager.next().0, ["READY=1"]);
        assert!(UnixStream::connect(acceptor.names.file("listener")).is_ok());
        assert!(acceptor.is_running());
    }
}

#[test]
fn every_form_tells_a_manager_that_it_is_ready() {
    for form in [
        Fdaccept::bound_at(&Names::new().abstract_name()),
        Fdaccept::plain().options("--connect ./nobody"),
        Fdaccept::piped(),
    ] {
        let manager = Manager::at_path();
        let mut acceptor = form.under(&manager).spawn();
        manager.next_with("READY=1");
        assert!(acceptor.is_running());
    }
}

#[test]
fn a_manager_is_told_nothing_before_everything_is_bound() {
    let manager = Manager::at_path();
    let cats = Fdaccept::cats().options("--port-file ./fifo");
    let fifo = cats.names.text("fifo");
    mkfifo(&*fifo, Mode::S_IRWXU).unwrap();
    let acceptor = cats.under(&manager).spawn();
    until_asleep(&acceptor);
    stays("nothing is told", || !manager.has_something());
    std::fs::read_to_string(&fifo).unwrap();
    assert_eq!(manager.next().0, ["READY=1"]);
}

#[test]
fn a_manager_is_told_nothing_by_one_that_cannot_start() {
    let manager = Manager::at_path();
    let (_taken, port) = listener();
    let cats = Fdaccept::cats().listen(format!("127.0.0.1:{port}"));
    cats.under(&manager).fails(1);
    assert!(!manager.has_something());
}

const NOTHING: &str = "accepted 0, passed 0, taken 0, ";

/// A chain that has told this manager that it is ready.
fn ready_chain(manager: &Manager, fdaccept: Fdaccept) -> Acceptor {
    let acceptor = fdaccept.under(manager).start();
    manager.next_with("READY=1");
    acceptor
}

#[test]
fn the_status_tells_the_counters() {
    let manager = Manager::at_path();
    let acceptor = Fdaccept::cats().under(&manager).start();
    assert!(manager.next().is("READY=1"));
    let first = manager.next();
    let status = first.value("STATUS=").unwrap();
    assert!(status.starts_with(NOTHING), "{status}");
    assert_eq!(first.0.len(), 1);
    for _ in 0..3 {
        acceptor.expect_echo();
    }
    manager.until_status("accepted 3, passed 3, ");
}

#[test]
fn the_status_is_told_at_most_once_a_second_and_not_without_a_change() {
    let manager = Manager::at_path();
    let start = Instant::now();
    let acceptor = Fdaccept::cats().under(&manager).start();
    let mut served = 0;
    while start.elapsed() < Duration::from_millis(2500) {
        acceptor.expect_echo();
        served += 1;
    }
    let mut told = 0;
    manager.next_with("READY=1");
    loop {
        let next = manager.next();
        told += 1;
        let status = next.value("STATUS=").unwrap();
        if status.starts_with(&format!("accepted {served}, passed {served}, ")) {
            break;
        }
    }
    // One at the start, then one a second.
    let most = 1 + start.elapsed().as_secs();
    assert!((2..=most).contains(&told), "{told} of {most}");
    // A status every second would come within this time.
    let end = Instant::now() + Duration::from_millis(1500);
    while Instant::now() < end {
        if manager.has_something() {
            // The count of taken connections may change later.
            let next = manager.next();
            let status = next.value("STATUS=").unwrap();
            let expected = format!("accepted {served}, passed {served}, taken {served}, ");
            assert!(status.starts_with(&expected), "{status}");
            return stays("nothing is told", || !manager.has_something());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The consumer that fdaccept waits for.
fn cat_at(acceptor: &Acceptor) -> Pool {
    Pool::on(acceptor).slots(1, ["cat"]).start()
}

#[test]
fn the_status_tells_what_was_taken_later() {
    let manager = Manager::at_path();
    let acceptor = Fdaccept::bound().under(&manager).start();
    let port = acceptor.port;
    let client = std::thread::spawn(move || exchange(port, b"hello"));
    manager.until_status("accepted 1, passed 1, taken 0, ");
    let _pool = cat_at(&acceptor);
    assert_eq!(client.join().unwrap(), b"hello");
    manager.until_status("accepted 1, passed 1, taken 1, ");
}

/// CLOCK_MONOTONIC in microseconds, as in MONOTONIC_USEC=.
fn monotonic() -> i64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000
}

/// A chain with a file of rules.
fn ruled() -> Fdaccept {
    let cats = Fdaccept::cats().file("rules", "");
    cats.options("--rules ./rules")
}

#[test]
fn a_manager_is_told_when_rules_are_read_again_and_when_that_is_done() {
    let manager = Manager::at_path();
    let ruled = ruled().file("rules", "deny 192.0.2.1\n");
    let mut acceptor = ready_chain(&manager, ruled);
    let rules = acceptor.names.file("rules");
    for (text, said) in [
        ("deny 192.0.2.2\n", "rules: read again"),
        ("nonsense\n", "the old rules stay"),
        ("deny 192.0.2.3\n", "rules: read again"),
    ] {
        std::fs::write(&rules, text).unwrap();
        let before = monotonic();
        acceptor.signal(Signal::SIGHUP);
        let told = manager.next_with("RELOADING=1");
        let at: i64 = told.value("MONOTONIC_USEC=").unwrap().parse().unwrap();
        assert!((before..=monotonic()).contains(&at), "{before} {at}");
        assert!(!told.is("READY=1"));
        manager.next_with("READY=1");
        acceptor.line(said);
    }
    std::fs::remove_file(&rules).unwrap();
    acceptor.signal(Signal::SIGHUP);
    manager.next_with("RELOADING=1");
    manager.next_with("READY=1");
    acceptor.expect_echo();
}

#[test]
fn a_manager_is_told_of_a_stop_when_it_begins() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let manager = Manager::at_path();
        let patient = Fdaccept::bound().options("--grace 3600");
        let mut acceptor = patient.under(&manager).start();
        let port = acceptor.port;
        let client = std::thread::spawn(move || exchange(port, b"hello"));
        manager.next_with("READY=1");
        manager.until_status("accepted 1, ");
        acceptor.signal(signal);
        let told = manager.next_with("STOPPING=1");
        assert_eq!(told.0, ["STOPPING=1"]);
        // It waits until a consumer takes the connection.
        assert!(acceptor.is_running());
        let _pool = cat_at(&acceptor);
        assert_eq!(client.join().unwrap(), b"hello");
        acceptor.expect_exit(0);
    }
}

/// Checks that fdaccept with this `NOTIFY_SOCKET` says `expected` first and once, and serves.
#[track_caller]
fn serves_with(name: &str, expected: &str) {
    let mut acceptor = Fdaccept::cats().env("NOTIFY_SOCKET", name).start();
    acceptor.expect_echo();
    let log = acceptor.stop();
    let first = log.lines().next().unwrap();
    let is_said = first.starts_with("fdaccept: ") && first.contains(expected);
    assert!(is_said, "{log}");
    assert_eq!(log.matches(expected).count(), 1, "{log}");
}

#[test]
fn a_manager_that_cannot_be_reached_is_said_and_keeps_nobody_from_being_served() {
    let names = Names::new();
    let path = &names.text("nobody");
    let expected = format!("cannot reach the service manager at {path}");
    serves_with(path, &format!("{expected}: No such file or directory"));
    drop(UnixDatagram::bind(path).unwrap());
    serves_with(path, &format!("{expected}: Connection refused"));
    std::fs::remove_file(path).unwrap();
    let _stream = UnixListener::bind(path).unwrap();
    serves_with(path, &expected);
    let name = names.abstract_name();
    let expected = format!("cannot reach the service manager at {name}: Connection refused");
    serves_with(&name, &expected);
}

#[test]
fn a_manager_with_a_name_that_makes_no_sense_is_said_and_keeps_nobody_from_being_served() {
    for name in ["vsock:2:3", "x", "./x", "vsock-stream:2:3", "\x1b"] {
        let shown = name.replace('\x1b', "\\u{1b}");
        let expected = format!("NOTIFY_SOCKET: {shown} is not a path or @name");
        serves_with(name, &expected);
    }
    serves_with("@", "the name of the socket is empty");
    serves_with("/", "/ is a directory");
    for first in ["/", "@"] {
        let long = format!("{first}{}", "x".repeat(107));
        let error = Name::parse(format!("{long}x").as_ref()).unwrap_err();
        serves_with(&format!("{long}x"), &error.to_string());
    }
}

#[test]
fn an_empty_name_is_none() {
    let mut acceptor = Fdaccept::cats().env("NOTIFY_SOCKET", "").start();
    acceptor.expect_echo();
    let log = acceptor.log();
    assert!(!log.contains("NOTIFY_SOCKET"), "{log}");
}

#[test]
fn a_manager_that_does_not_read_keeps_nobody_from_being_served() {
    let manager = Manager::at_path();
    manager.fill();
    let mut acceptor = ruled().under(&manager).start();
    acceptor.expect_echo();
    acceptor.line("cannot tell the service manager");
    acceptor.signal(Signal::SIGHUP);
    acceptor.expect_echo();
    acceptor.line("rules: read again");
    acceptor.stop();
}

#[test]
fn a_manager_that_does_not_read_holds_nobody_up_while_rules_are_read_again() {
    let manager = Manager::at_path();
    let acceptor = ready_chain(&manager, ruled());
    manager.fill();
    acceptor.signal(Signal::SIGHUP);
    let start = Instant::now();
    acceptor.expect_echo();
    let taken = start.elapsed();
    assert!(taken < Duration::from_secs(5), "{taken:?}");
}

#[test]
fn a_manager_that_goes_away_keeps_nobody_from_being_served() {
    let manager = Manager::at_path();
    let mut acceptor = ready_chain(&manager, ruled());
    drop(manager);
    acceptor.expect_echo();
    acceptor.signal(Signal::SIGHUP);
    acceptor.line("rules: read again");
    acceptor.expect_echo();
    acceptor.stop();
}

#[test]
fn the_managers_name_reaches_neither_command_nor_handlers() {
    let manager = Manager::at_path();
    let tell = "env | grep -c ^NOTIFY_SOCKET= >&2; exec fdpool 1 -- env";
    let mut acceptor = Fdaccept::chain(["sh", "-c", tell]).under(&manager).start();
    assert_eq!(acceptor.line("0"), "0");
    let environment = String::from_utf8(exchange(acceptor.port, b"")).unwrap();
    assert!(environment.contains("PROTO=TCP"));
    assert!(!environment.contains("NOTIFY_SOCKET"), "{environment}");
}

#[test]
fn the_managers_socket_is_open_in_no_command() {
    let manager = Manager::at_path();
    let acceptor = ready_chain(&manager, Fdaccept::chain(["sleep", "1000"]));
    let command = acceptor.children()[0];
    until_named(command, "sleep");
    let mut sockets = descriptors(command);
    sockets.retain(|(_, what)| what.starts_with("socket:"));
    // Standard input, the queue.
    assert!(matches!(sockets[..], [(0, _)]), "{sockets:?}");
}

#[test]
fn another_user_tells_the_manager_of_root() {
    needs!(root());
    let manager = Manager::at_path();
    let chain = Fdaccept::chain(["sleep", "1000"]).user(4_000_000_001);
    let acceptor = ready_chain(&manager, chain);
    manager.until_status(NOTHING);
    let _client = acceptor.client();
    manager.until_status("accepted 1, ");
    acceptor.term();
    manager.next_with("STOPPING=1");
}

#[test]
fn both_ways_go_together() {
    let manager = Manager::at_path();
    let (fdaccept, reader) = notifying("./listener -- fdpool 1 -- cat");
    let mut acceptor = fdaccept.under(&manager).spawn();
    assert_eq!(all_of(reader), "\n");
    manager.next_with("READY=1");
    assert!(acceptor.is_running());
}
