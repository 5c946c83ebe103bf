//! What fdaccept tells of itself: that it is ready, on a descriptor and to a service manager; how it
//! goes; and which ports it has, in a file.

use std::fs::File;
use std::io::{PipeReader, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::poll::ready;
use crate::support::{
    self, DEADLINE, Names, Process, bin_dir, children, connect_unix, descriptors, eventually,
    exchange, program, root, run, script, until,
};
use fdtools::queue::name::Name;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::mkfifo;
use rustix::event::PollFlags;

const ADDRESS: &str = "127.0.0.1:0";
const POOL_OF_CATS: [&str; 5] = ["--", "fdpool", "4", "--", "cat"];
/// For how long something is watched that is not to happen.
const WATCH: Duration = Duration::from_millis(200);

fn fdaccept(arguments: &[&str]) -> Command {
    let mut command = program("fdaccept");
    // Whatever started this test must not interfere.
    command.args(arguments).env_remove("NOTIFY_SOCKET");
    command
}

/// Watches for a while that `is_true` stays so.
#[track_caller]
fn stays(what: &str, mut is_true: impl FnMut() -> bool) {
    let end = Instant::now() + WATCH;
    while Instant::now() < end {
        assert!(is_true(), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

// A descriptor.

/// A shell that runs `text` in a directory of its own, with a pipe as descriptor 3, and the other
/// side of the pipe.
fn with_pipe(names: &Names, text: &str) -> (Process, PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = script("sh", &format!("{text} 3>&1 >/dev/null"));
    command.stdout(writer).current_dir(&names.directory);
    let process = Process::start(command.env_remove("NOTIFY_SOCKET"));
    (process, reader)
}

fn is_told(reader: &PipeReader) -> bool {
    !ready(reader.as_fd(), PollFlags::IN).is_empty()
}

/// All that is said on it until its end.
#[track_caller]
fn all_of(mut reader: PipeReader) -> String {
    until("a word", || is_told(&reader));
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_newline_and_the_end_come_when_clients_can_connect() {
    let names = Names::new();
    for form in ["-- fdpool 1 -- cat", "--bind ./queue", "--connect ./nobody"] {
        let text = format!("exec fdaccept --grace 0 --notify-fd 3 ./listener {form}");
        let (mut process, reader) = with_pipe(&names, &text);
        assert_eq!(all_of(reader), "\n", "{form}");
        assert!(UnixStream::connect(names.directory.path().join("listener")).is_ok());
        assert!(process.is_running());
        process.signal(Signal::SIGTERM);
        process.wait();
    }
}

#[test]
fn a_pipeline_says_that_it_is_ready() {
    let names = Names::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let text = "exec 3>&1 >/dev/null; fdaccept --notify-fd 3 ./listener | fdpool 1 -- cat 3>&-";
    let _process = {
        let mut command = script("sh", text);
        command.stdout(writer).current_dir(&names.directory);
        Process::start(command.env_remove("NOTIFY_SOCKET"))
    };
    // The shell holds it open as well, so there is no end.
    until("a word", || is_told(&reader));
    let mut client = connect_unix(names.directory.path().join("listener"));
    client.write_all(b"hello").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "hello");
}

#[test]
fn nothing_comes_before_everything_is_bound() {
    let names = Names::new();
    let fifo = names.directory.path().join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let text = "exec fdaccept --notify-fd 3 --port-file ./fifo 127.0.0.1:0 -- fdpool 1 -- cat";
    let (mut process, reader) = with_pipe(&names, text);
    until("it to wait", || support::state(process.pid()) == Some('S'));
    stays("nothing is said", || !is_told(&reader));
    let port = std::fs::read_to_string(&fifo).unwrap();
    assert_eq!(all_of(reader), "\n");
    assert_eq!(port, format!("{}\n", process.port()));
}

#[test]
fn nothing_but_the_end_comes_if_it_cannot_start() {
    let names = Names::new();
    let taken = TcpListener::bind(ADDRESS).unwrap();
    let address = taken.local_addr().unwrap();
    let text = format!("exec fdaccept --notify-fd 3 {address} -- fdpool 1 -- cat");
    let (mut process, reader) = with_pipe(&names, &text);
    assert_eq!(all_of(reader), "");
    assert_eq!(process.wait().code(), Some(1));
}

#[test]
fn a_command_and_its_handlers_do_not_have_the_descriptor() {
    let names = Names::new();
    let text =
        "exec fdaccept --notify-fd 3 127.0.0.1:0 -- fdpool 1 -- sh -c 'ls /proc/self/fd/; cat'";
    let (mut process, reader) = with_pipe(&names, text);
    let port = process.port();
    assert_eq!(all_of(reader), "\n");
    let command = eventually("the command", || children(process.pid()).pop());
    until("it to be a pool", || {
        std::fs::read_to_string(format!("/proc/{command}/comm"))
            .is_ok_and(|comm| comm == "fdpool\n")
    });
    for pid in [process.pid(), command] {
        let is_pipe = |what: &str| what.starts_with("pipe:");
        let pipes = descriptors(pid).into_iter();
        let pipes: Vec<_> = pipes
            .filter(|(number, what)| *number == 3 && is_pipe(what))
            .collect();
        assert!(pipes.is_empty(), "{pipes:?}");
    }
    // The directory itself is one of them.
    assert_eq!(exchange(port, b""), b"0\n1\n2\n3\n");
}

#[test]
fn standard_input_and_output_can_be_what_it_is_said_on() {
    let names = Names::new();
    for (number, redirection) in [(0, "<&1 0>&1 >/dev/null"), (1, "")] {
        let text =
            format!("exec fdaccept --notify-fd {number} --bind ./queue ./listener {redirection}");
        let (reader, writer) = std::io::pipe().unwrap();
        let mut process = {
            let mut command = script("sh", &text);
            Process::start(command.stdout(writer).current_dir(&names.directory))
        };
        assert_eq!(all_of(reader), "\n");
        assert!(process.is_running());
        process.signal(Signal::SIGTERM);
        process.wait();
    }
}

#[test]
fn a_file_can_be_what_it_is_said_in() {
    let names = Names::new();
    let text = "exec fdaccept --notify-fd 3 ./listener -- fdpool 1 -- cat 3>./said";
    let mut command = script("sh", text);
    let _process = Process::start(command.current_dir(&names.directory));
    let said = names.directory.path().join("said");
    until("a word", || {
        std::fs::read(&said).is_ok_and(|said| said == b"\n")
    });
}

/// Checks that this is a usage error, and that nothing is made.
#[track_caller]
fn is_wrong_usage(text: &str, expected: &str) {
    let names = Names::new();
    let mut command = script("sh", &format!("exec fdaccept {text}"));
    command.current_dir(&names.directory);
    let (status, _, log) = run(command.env_remove("NOTIFY_SOCKET"));
    assert_eq!(status, Some(2), "{text}: {log}");
    let first = log.lines().next().unwrap();
    assert!(first.starts_with("fdaccept: "), "{text}: {log}");
    assert!(first.contains(expected), "{text}: {log}");
    assert_eq!(
        names.directory.path().read_dir().unwrap().count(),
        0,
        "{text}"
    );
}

#[test]
fn a_descriptor_that_is_not_open_or_in_use_is_a_usage_error() {
    let rest = "--bind ./queue ./listener";
    is_wrong_usage(&format!("--notify-fd 9 {rest}"), "descriptor 9 is not open");
    is_wrong_usage(
        &format!("--notify-fd 1000000000 {rest}"),
        "descriptor 1000000000 is not open",
    );
    is_wrong_usage(
        &format!("--notify-fd 2 {rest}"),
        "descriptor 2 is standard error",
    );
    for bad in ["x", "''", "-1", "3x", "99999999999"] {
        is_wrong_usage(&format!("--notify-fd={bad} {rest}"), "--notify-fd");
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
    let names = Names::new();
    let path = names.directory.path().join("manager");
    let _manager = UnixDatagram::bind(&path).unwrap();
    let mut command = fdaccept(&["--notify-fd", "3", "--bind", &names.path(), ADDRESS]);
    let (status, _, log) = run(command.env("NOTIFY_SOCKET", &path));
    assert_eq!(status, Some(2), "{log}");
    assert!(log.contains("descriptor 3 is not open"), "{log}");
}

#[test]
fn a_pipe_whose_reader_is_gone_does_not_end_it() {
    let names = Names::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let text = "exec fdaccept --notify-fd 3 127.0.0.1:0 -- fdpool 1 -- cat 3>&1 >/dev/null";
    let mut command = script("sh", text);
    command.stdout(writer).current_dir(&names.directory);
    let mut process = Process::start(command.env_remove("NOTIFY_SOCKET"));
    let port = process.port();
    let line = process.line("--notify-fd");
    assert!(line.ends_with(": Broken pipe"), "{line}");
    for _ in 0..3 {
        assert_eq!(exchange(port, b"hello"), b"hello");
    }
    process.signal(Signal::SIGTERM);
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn a_pipe_that_is_full_does_not_keep_it_from_serving_and_from_ending() {
    let names = Names::new();
    let (reader, mut writer) = std::io::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    while writer.write(&[b'x'; 512]).is_ok() {}
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    let text = "exec fdaccept --notify-fd 3 127.0.0.1:0 -- fdpool 1 -- cat 3>&1 >/dev/null";
    let mut command = script("sh", text);
    command.stdout(writer).current_dir(&names.directory);
    let mut process = Process::start(command.env_remove("NOTIFY_SOCKET"));
    let port = process.port();
    assert_eq!(exchange(port, b"hello"), b"hello");
    process.signal(Signal::SIGTERM);
    assert_eq!(process.wait().code(), Some(0));
    drop(reader);
}

#[test]
fn a_sandboxed_one_says_that_it_is_ready() {
    let names = Names::new();
    let text = "exec fdaccept --sandbox --notify-fd 3 ./listener -- fdpool 1 -- cat";
    let (_process, reader) = with_pipe(&names, text);
    assert_eq!(all_of(reader), "\n");
    assert!(UnixStream::connect(names.directory.path().join("listener")).is_ok());
}

// A service manager.

/// One message to a service manager, line by line.
#[derive(Debug)]
struct Told(Vec<String>);

impl Told {
    fn is(&self, line: &str) -> bool {
        self.0.iter().any(|other| other == line)
    }

    /// What comes after this, if a line begins so.
    fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().find_map(|line| line.strip_prefix(name))
    }
}

/// A stand-in for a service manager.
struct Manager {
    socket: UnixDatagram,
    name: String,
    _names: Names,
}

impl Manager {
    /// One at a path.
    fn at_path() -> Self {
        let names = Names::new();
        let path = names.directory.path().join("manager");
        let name = path.to_str().unwrap().to_owned();
        Self::new(names, name, UnixDatagram::bind(path).unwrap())
    }

    /// One in the abstract namespace.
    fn at_name() -> Self {
        let names = Names::new();
        let name = names.abstract_name();
        let address = SocketAddr::from_abstract_name(&name[1..]).unwrap();
        Self::new(names, name, UnixDatagram::bind_addr(&address).unwrap())
    }

    fn new(names: Names, name: String, socket: UnixDatagram) -> Self {
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self {
            socket,
            name,
            _names: names,
        }
    }

    /// `fdaccept` under this manager.
    fn start(&self, arguments: &[&str]) -> Process {
        Process::start(fdaccept(arguments).env("NOTIFY_SOCKET", &self.name))
    }

    /// The next message.
    #[track_caller]
    fn next(&self) -> Told {
        let mut message = [0; 4096];
        let length = support::receive_message(&self.socket, &mut message);
        let text = String::from_utf8(message[..length].to_vec()).unwrap();
        Told(text.lines().map(str::to_owned).collect())
    }

    /// The next message that has this line; what comes before it is only the status.
    #[track_caller]
    fn next_with(&self, line: &str) -> Told {
        eventually(line, || {
            let told = self.next();
            let is_status = told.value("STATUS=").is_some();
            assert!(is_status || told.is(line), "{told:?} before {line}");
            told.is(line).then_some(told)
        })
    }

    /// Waits for a status that begins so.
    #[track_caller]
    fn until_status(&self, expected: &str) {
        until(expected, || {
            let told = self.next();
            let status = told.value("STATUS=");
            status.is_some_and(|status| status.starts_with(expected))
        });
    }

    fn has_something(&self) -> bool {
        !ready(self.socket.as_fd(), PollFlags::IN).is_empty()
    }

    /// Leaves no room for a message, as if it had not read for long.
    fn fill(&self) {
        let send_all = || {
            let socket = UnixDatagram::unbound().unwrap();
            socket.set_nonblocking(true).unwrap();
            let mut sent = 0;
            while socket.send_to(b"X_FULL=1", &self.name).is_ok() {
                sent += 1;
            }
            sent
        };
        // One sender may reach its own limit first.
        while send_all() > 0 {}
    }
}

#[test]
fn a_manager_is_told_first_that_clients_can_connect() {
    for manager in [Manager::at_path(), Manager::at_name()] {
        let names = Names::new();
        let listener = names.path();
        let mut process = manager.start(&[&[&*listener], &POOL_OF_CATS[..]].concat());
        assert_eq!(manager.next().0, ["READY=1"]);
        assert!(UnixStream::connect(&listener).is_ok());
        assert!(process.is_running());
    }
}

#[test]
fn every_form_tells_a_manager_that_it_is_ready() {
    let names = Names::new();
    for form in [
        &["--bind", &names.abstract_name()][..],
        &["--connect", "./nobody"],
    ] {
        let manager = Manager::at_path();
        let mut process = manager.start(&[form, &[ADDRESS]].concat());
        manager.next_with("READY=1");
        assert!(process.is_running());
    }
    let manager = Manager::at_path();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = fdaccept(&[ADDRESS]);
    command.env("NOTIFY_SOCKET", &manager.name).stdout(writer);
    let _process = Process::start(&mut command);
    manager.next_with("READY=1");
    drop(reader);
}

#[test]
fn a_manager_is_told_nothing_before_everything_is_bound() {
    let names = Names::new();
    let fifo = names.directory.path().join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let manager = Manager::at_path();
    let options = ["--port-file", fifo.to_str().unwrap(), ADDRESS];
    let process = manager.start(&[&options, &POOL_OF_CATS[..]].concat());
    until("it to wait", || support::state(process.pid()) == Some('S'));
    stays("nothing is told", || !manager.has_something());
    std::fs::read_to_string(&fifo).unwrap();
    assert_eq!(manager.next().0, ["READY=1"]);
}

#[test]
fn a_manager_is_told_nothing_by_one_that_cannot_start() {
    let manager = Manager::at_path();
    let taken = TcpListener::bind(ADDRESS).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut process = manager.start(&[&[&*address], &POOL_OF_CATS[..]].concat());
    assert_eq!(process.wait().code(), Some(1));
    assert!(!manager.has_something());
}

const NOTHING: &str = "accepted 0, passed 0, taken 0, ";

#[test]
fn the_status_tells_the_counters() {
    let manager = Manager::at_path();
    let mut process = manager.start(&[&[ADDRESS], &POOL_OF_CATS[..]].concat());
    let port = process.port();
    assert!(manager.next().is("READY=1"));
    let first = manager.next();
    let status = first.value("STATUS=").unwrap();
    assert!(status.starts_with(NOTHING), "{status}");
    assert_eq!(first.0.len(), 1);
    for _ in 0..3 {
        assert_eq!(exchange(port, b"hello"), b"hello");
    }
    manager.until_status("accepted 3, passed 3, ");
}

#[test]
fn the_status_is_told_at_most_once_a_second_and_not_without_a_change() {
    let manager = Manager::at_path();
    let start = Instant::now();
    let mut process = manager.start(&[&[ADDRESS], &POOL_OF_CATS[..]].concat());
    let port = process.port();
    let mut served = 0;
    while start.elapsed() < Duration::from_millis(2500) {
        assert_eq!(exchange(port, b"hello"), b"hello");
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
    // The first one, then one after each second.
    let most = 1 + start.elapsed().as_secs();
    assert!((2..=most).contains(&told), "{told} of {most}");
    // More than a second: it would come again by then.
    let end = Instant::now() + Duration::from_millis(1500);
    while Instant::now() < end {
        if manager.has_something() {
            // What was taken may have changed since.
            let next = manager.next();
            let status = next.value("STATUS=").unwrap();
            let expected = format!("accepted {served}, passed {served}, taken {served}, ");
            assert!(status.starts_with(&expected), "{status}");
            return stays("nothing is told", || !manager.has_something());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_status_tells_what_was_taken_later() {
    let names = Names::new();
    let manager = Manager::at_path();
    let mut process = manager.start(&["--bind", &names.path(), ADDRESS]);
    let port = process.port();
    let client = std::thread::spawn(move || exchange(port, b"hello"));
    manager.until_status("accepted 1, passed 1, taken 0, ");
    let mut pool = program("fdpool");
    pool.args(["--connect", &names.path(), "1", "--", "cat"]);
    let _pool = Process::start(&mut pool);
    assert_eq!(client.join().unwrap(), b"hello");
    manager.until_status("accepted 1, passed 1, taken 1, ");
}

/// Microseconds of the clock that systemd goes by.
fn monotonic() -> i64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000
}

#[test]
fn a_manager_is_told_when_rules_are_read_again_and_when_that_is_done() {
    let names = Names::new();
    let rules = names.directory.path().join("rules");
    let manager = Manager::at_path();
    std::fs::write(&rules, "deny 192.0.2.1\n").unwrap();
    let options = ["--rules", rules.to_str().unwrap(), ADDRESS];
    let mut process = manager.start(&[&options, &POOL_OF_CATS[..]].concat());
    let port = process.port();
    manager.next_with("READY=1");
    for (text, said) in [
        ("deny 192.0.2.2\n", "rules: read again"),
        ("nonsense\n", "the old rules stay"),
        ("deny 192.0.2.3\n", "rules: read again"),
    ] {
        std::fs::write(&rules, text).unwrap();
        let before = monotonic();
        process.signal(Signal::SIGHUP);
        let told = manager.next_with("RELOADING=1");
        let at: i64 = told.value("MONOTONIC_USEC=").unwrap().parse().unwrap();
        assert!((before..=monotonic()).contains(&at), "{before} {at}");
        assert!(!told.is("READY=1"));
        manager.next_with("READY=1");
        process.line(said);
    }
    std::fs::remove_file(&rules).unwrap();
    process.signal(Signal::SIGHUP);
    manager.next_with("RELOADING=1");
    manager.next_with("READY=1");
    assert_eq!(exchange(port, b"hello"), b"hello");
}

#[test]
fn a_manager_is_told_of_a_stop_when_it_begins() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let names = Names::new();
        let manager = Manager::at_path();
        let options = ["--grace", "3600", "--bind", &names.path(), ADDRESS];
        let mut process = manager.start(&options);
        let port = process.port();
        let client = std::thread::spawn(move || exchange(port, b"hello"));
        manager.next_with("READY=1");
        manager.until_status("accepted 1, ");
        process.signal(signal);
        let told = manager.next_with("STOPPING=1");
        assert_eq!(told.0, ["STOPPING=1"]);
        // It waits for who takes what it has.
        assert!(process.is_running());
        let mut pool = program("fdpool");
        pool.args(["--connect", &names.path(), "1", "--", "cat"]);
        let _pool = Process::start(&mut pool);
        assert_eq!(client.join().unwrap(), b"hello");
        assert_eq!(process.wait().code(), Some(0));
    }
}

/// Checks that fdaccept with this `NOTIFY_SOCKET` says `expected`, and serves.
#[track_caller]
fn serves_with(name: &str, expected: &str) {
    let mut command = fdaccept(&[ADDRESS]);
    command.args(POOL_OF_CATS).env("NOTIFY_SOCKET", name);
    let mut process = Process::start(&mut command);
    let port = process.port();
    assert_eq!(exchange(port, b"hello"), b"hello");
    process.signal(Signal::SIGTERM);
    let (status, log) = process.finish();
    assert_eq!(status.code(), Some(0), "{log}");
    let first = log.lines().next().unwrap();
    assert!(
        first.starts_with("fdaccept: ") && first.contains(expected),
        "{log}"
    );
    assert_eq!(log.matches(expected).count(), 1, "{log}");
}

#[test]
fn a_manager_that_cannot_be_reached_is_said_and_keeps_nobody_from_being_served() {
    let names = Names::new();
    let path = names.directory.path().join("nobody");
    let path = path.to_str().unwrap();
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
    let mut command = fdaccept(&[ADDRESS]);
    command.args(POOL_OF_CATS).env("NOTIFY_SOCKET", "");
    let mut process = Process::start(&mut command);
    assert_eq!(exchange(process.port(), b"hello"), b"hello");
    assert!(
        !process.log().contains("NOTIFY_SOCKET"),
        "{}",
        process.log()
    );
}

#[test]
fn a_manager_that_does_not_read_keeps_nobody_from_being_served() {
    let manager = Manager::at_path();
    manager.fill();
    let names = Names::new();
    let rules = names.directory.path().join("rules");
    std::fs::write(&rules, "").unwrap();
    let options = ["--rules", rules.to_str().unwrap(), ADDRESS];
    let mut process = manager.start(&[&options, &POOL_OF_CATS[..]].concat());
    let port = process.port();
    assert_eq!(exchange(port, b"hello"), b"hello");
    process.line("cannot tell the service manager");
    process.signal(Signal::SIGHUP);
    assert_eq!(exchange(port, b"hello"), b"hello");
    process.line("rules: read again");
    process.signal(Signal::SIGTERM);
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn a_manager_that_does_not_read_holds_nobody_up_while_rules_are_read_again() {
    let names = Names::new();
    let rules = names.directory.path().join("rules");
    std::fs::write(&rules, "").unwrap();
    let manager = Manager::at_path();
    let options = ["--rules", rules.to_str().unwrap(), ADDRESS];
    let mut process = manager.start(&[&options, &POOL_OF_CATS[..]].concat());
    let port = process.port();
    manager.next_with("READY=1");
    manager.fill();
    process.signal(Signal::SIGHUP);
    let start = Instant::now();
    assert_eq!(exchange(port, b"hello"), b"hello");
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn a_manager_that_goes_away_keeps_nobody_from_being_served() {
    let names = Names::new();
    let rules = names.directory.path().join("rules");
    std::fs::write(&rules, "").unwrap();
    let manager = Manager::at_path();
    let options = ["--rules", rules.to_str().unwrap(), ADDRESS];
    let mut process = manager.start(&[&options, &POOL_OF_CATS[..]].concat());
    let port = process.port();
    manager.next_with("READY=1");
    drop(manager);
    assert_eq!(exchange(port, b"hello"), b"hello");
    process.signal(Signal::SIGHUP);
    process.line("rules: read again");
    assert_eq!(exchange(port, b"hello"), b"hello");
    process.signal(Signal::SIGTERM);
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn the_managers_name_reaches_neither_command_nor_handlers() {
    let manager = Manager::at_path();
    let tell = "env | grep -c ^NOTIFY_SOCKET= >&2; exec fdpool 1 -- env";
    let mut process = manager.start(&[ADDRESS, "--", "sh", "-c", tell]);
    let port = process.port();
    assert_eq!(process.line("0"), "0");
    let environment = String::from_utf8(exchange(port, b"")).unwrap();
    assert!(environment.contains("PROTO=TCP"));
    assert!(!environment.contains("NOTIFY_SOCKET"), "{environment}");
}

#[test]
fn the_managers_socket_is_open_in_no_command() {
    let manager = Manager::at_path();
    let process = manager.start(&[ADDRESS, "--", "sleep", "1000"]);
    manager.next_with("READY=1");
    let command = children(process.pid())[0];
    until("the command", || {
        std::fs::read_to_string(format!("/proc/{command}/comm")).is_ok_and(|comm| comm == "sleep\n")
    });
    let open = descriptors(command);
    let sockets = open.iter().filter(|(_, what)| what.starts_with("socket:"));
    // Its standard input, the queue.
    assert_eq!(sockets.map(|(number, _)| *number).collect::<Vec<_>>(), [0]);
}

#[test]
fn another_user_tells_the_manager_of_root() {
    if !root() {
        return;
    }
    let manager = Manager::at_path();
    let user = "4000000001:4000000001";
    let options = ["--user", user, ADDRESS, "--", "sleep", "1000"];
    let mut process = manager.start(&options);
    let port = process.port();
    manager.next_with("READY=1");
    manager.until_status(NOTHING);
    let _client = support::connect(port);
    manager.until_status("accepted 1, ");
    process.signal(Signal::SIGTERM);
    manager.next_with("STOPPING=1");
}

#[test]
fn both_ways_go_together() {
    let manager = Manager::at_path();
    let (reader, writer) = std::io::pipe().unwrap();
    let names = Names::new();
    let mut process = {
        let text = "exec fdaccept --notify-fd 3 ./listener -- fdpool 1 -- cat 3>&1 >/dev/null";
        let mut command = script("sh", text);
        command.env("NOTIFY_SOCKET", &manager.name).stdout(writer);
        Process::start(command.current_dir(&names.directory))
    };
    assert_eq!(all_of(reader), "\n");
    manager.next_with("READY=1");
    assert!(process.is_running());
}

// The ports.

/// The numbers of a port file.
fn ports(path: impl AsRef<Path>) -> Vec<u16> {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.ends_with('\n'), "{text:?}");
    text.lines().map(|line| line.parse().unwrap()).collect()
}

/// fdaccept with a port file in a directory of its own, and what it listens on.
struct Filed {
    names: Names,
    _process: Process,
    addresses: Vec<String>,
}

impl Filed {
    #[track_caller]
    fn start(addresses: &[&str], count: usize) -> Self {
        let names = Names::new();
        let mut command = fdaccept(&["--port-file", "./ports"]);
        command.args(addresses).args(POOL_OF_CATS);
        let mut process = Process::start(command.current_dir(&names.directory));
        let addresses = (0..count).map(|_| process.listening()).collect();
        Self {
            names,
            _process: process,
            addresses,
        }
    }

    fn path(&self) -> PathBuf {
        self.names.directory.path().join("ports")
    }

    /// The port of one of the addresses.
    fn port(&self, index: usize) -> u16 {
        let port = self.addresses[index].rsplit_once(':').unwrap().1;
        port.parse().unwrap()
    }

    /// The files of its directory.
    fn files(&self) -> Vec<String> {
        let entries = self.names.directory.path().read_dir().unwrap();
        let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
        let mut names: Vec<_> = entries
            .map(|entry| name(entry).into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

#[test]
fn the_port_of_an_address_is_in_the_file() {
    let filed = Filed::start(&[ADDRESS], 1);
    let port = filed.port(0);
    assert_eq!(ports(filed.path()), [port]);
    assert_eq!(filed.files(), ["ports"]);
    assert_eq!(exchange(port, b"hello"), b"hello");
}

#[test]
fn the_ports_of_several_addresses_are_in_the_file_in_their_order() {
    let filed = Filed::start(&[ADDRESS, "./listener", ADDRESS, ADDRESS], 4);
    let expected = [0, 2, 3].map(|index| filed.port(index));
    assert_eq!(ports(filed.path()), expected);
}

#[test]
fn a_port_of_several_addresses_is_in_the_file_once() {
    let filed = Filed::start(&["localhost:0"], 1);
    assert_eq!(ports(filed.path()), [filed.port(0)]);
    let filed = Filed::start(&["0"], 1);
    assert_eq!(ports(filed.path()), [filed.port(0)]);
}

#[test]
fn a_port_that_several_addresses_were_given_is_in_the_file_once() {
    // One that was free just now may be another test's by the time that it is wanted.
    let (names, port, _process) = eventually("a port that is free", || {
        let free = TcpListener::bind(ADDRESS).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let names = Names::new();
        let mut command = fdaccept(&["--port-file", "./ports"]);
        command.args([1, 2, 3].map(|last| format!("127.0.0.{last}:{port}")));
        command.args(POOL_OF_CATS).current_dir(&names.directory);
        let mut process = Process::start(&mut command);
        let is_started = process.line("").contains("listening on");
        is_started.then_some((names, port, process))
    });
    assert_eq!(ports(names.directory.path().join("ports")), [port]);
}

#[test]
fn the_port_of_an_inherited_listener_is_in_the_file() {
    let names = Names::new();
    let listener = TcpListener::bind(ADDRESS).unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut command = fdaccept(&["--port-file", "./ports", "fd:0"]);
    command.args(POOL_OF_CATS).stdin(OwnedFd::from(listener));
    let mut process = Process::start(command.current_dir(&names.directory));
    process.listening();
    assert_eq!(ports(names.directory.path().join("ports")), [port]);
}

#[test]
fn a_file_that_was_there_is_replaced_as_a_whole() {
    let names = Names::new();
    let path = names.directory.path().join("ports");
    let old = "old ".repeat(10_000);
    std::fs::write(&path, &old).unwrap();
    let mut before = File::open(&path).unwrap();
    let inode = before.metadata().unwrap().ino();
    let is_over = AtomicBool::new(false);
    let mut command = fdaccept(&["--port-file", "./ports"]);
    // Many lines: they are not written at once by chance.
    command.args([ADDRESS; 50]).args(POOL_OF_CATS);
    let (seen, mut process) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut seen = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                let text = std::fs::read_to_string(&path).unwrap();
                if seen.last() != Some(&text) {
                    seen.push(text);
                }
            }
            seen
        });
        let mut process = Process::start(command.current_dir(&names.directory));
        process.listening();
        is_over.store(true, Ordering::Relaxed);
        (watcher.join().unwrap(), process)
    });
    let now = std::fs::read_to_string(&path).unwrap();
    assert_eq!(now.lines().count(), 50);
    assert!(seen.iter().all(|text| *text == old || *text == now));
    assert_ne!(path.metadata().unwrap().ino(), inode);
    // Who has the old one open still has it.
    let mut still = String::new();
    before.read_to_string(&mut still).unwrap();
    assert_eq!(still, old);
    assert!(process.is_running());
}

#[test]
fn the_file_is_there_before_it_is_said_that_this_is_ready() {
    let manager = Manager::at_path();
    let names = Names::new();
    let path = names.directory.path().join("ports");
    let options = ["--port-file", path.to_str().unwrap(), ADDRESS];
    let _process = manager.start(&[&options, &POOL_OF_CATS[..]].concat());
    manager.next_with("READY=1");
    let port = ports(&path)[0];
    assert_eq!(exchange(port, b"hello"), b"hello");
}

#[test]
fn a_fifo_is_written_to_and_stays_one() {
    let names = Names::new();
    let fifo = names.directory.path().join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let mut command = fdaccept(&["--port-file", "./fifo", ADDRESS]);
    command.args(POOL_OF_CATS);
    let mut process = Process::start(command.current_dir(&names.directory));
    let written = ports(&fifo);
    assert_eq!(written, [process.port()]);
    assert!(!fifo.symlink_metadata().unwrap().is_file());
}

/// All that fdaccept writes to a pipe which it has as this descriptor.
#[track_caller]
fn written_to(options: &str, redirections: &str) -> (String, Process) {
    let names = Names::new();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let text = format!("exec fdaccept {options} --bind ./queue {ADDRESS} {redirections}");
    let process = {
        let mut command = script("sh", &text);
        command.stdout(writer).current_dir(&names.directory);
        Process::start(command.env_remove("NOTIFY_SOCKET"))
    };
    let mut line = String::new();
    let mut byte = [0];
    while !line.ends_with('\n') {
        until("a line", || {
            !ready(reader.as_fd(), PollFlags::IN).is_empty()
        });
        assert_eq!(reader.read(&mut byte).unwrap(), 1, "{line:?}");
        line.push(char::from(byte[0]));
    }
    (line, process)
}

#[test]
fn a_pipe_that_is_open_is_written_to() {
    let (line, mut process) = written_to("--port-file /dev/fd/3", "3>&1 >/dev/null");
    assert_eq!(line, format!("{}\n", process.port()));
    let (line, mut process) = written_to("--port-file /dev/fd/1", "");
    assert_eq!(line, format!("{}\n", process.port()));
}

#[test]
fn a_file_that_is_open_is_written_to() {
    let names = Names::new();
    let text = "exec fdaccept --port-file /dev/fd/3 127.0.0.1:0 -- fdpool 1 -- cat 3>./ports";
    let mut command = script("sh", text);
    let mut process = Process::start(command.current_dir(&names.directory));
    let line = process.line("");
    assert!(line.contains("listening on"), "{line}");
    let port = line.rsplit_once(':').unwrap().1.parse().unwrap();
    assert_eq!(ports(names.directory.path().join("ports")), [port]);
}

/// As `/dev/stdout` is one: it is not to be replaced by a file.
#[test]
fn a_link_to_an_open_file_stays_one() {
    let names = Names::new();
    let link = names.directory.path().join("stdout");
    symlink("/proc/self/fd/1", &link).unwrap();
    let out = File::create(names.directory.path().join("out")).unwrap();
    let mut command = fdaccept(&["--port-file", "./stdout", ADDRESS]);
    command.args(POOL_OF_CATS).stdout(out);
    let mut process = Process::start(command.current_dir(&names.directory));
    let port = process.port();
    assert!(link.symlink_metadata().unwrap().is_symlink());
    assert_eq!(ports(names.directory.path().join("out")), [port]);
}

/// Checks that fdaccept with these options ends so, and leaves nothing behind.
#[track_caller]
fn fails(port_file: &str, addresses: &[&str], status: i32, expected: &str) {
    let names = Names::new();
    std::fs::create_dir(names.directory.path().join("directory")).unwrap();
    let mut command = fdaccept(&["--port-file", port_file, "--bind", "./queue"]);
    command.args(addresses).current_dir(&names.directory);
    let (code, _, log) = run(&mut command);
    assert_eq!(code, Some(status), "{log}");
    assert_eq!(log.lines().next(), Some(expected), "{log}");
    let left = names.directory.path().read_dir().unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["directory"]);
    let directory = names.directory.path().join("directory");
    assert_eq!(directory.read_dir().unwrap().count(), 0);
}

#[test]
fn a_file_without_a_port_is_a_usage_error() {
    let expected = "fdaccept: --port-file needs an address with a port";
    fails("./ports", &["./listener"], 2, expected);
    let name = Names::new().abstract_name();
    fails("./ports", &["./listener", &name], 2, expected);
}

#[test]
fn a_directory_as_the_file_is_an_error() {
    let addresses = [ADDRESS, "./listener"];
    let expected = "fdaccept: cannot write ./directory: Is a directory";
    fails("./directory", &addresses, 1, expected);
    fails(
        "/",
        &addresses,
        1,
        "fdaccept: cannot write /: Is a directory",
    );
}

#[test]
fn a_directory_that_is_not_there_is_an_error() {
    let addresses = [ADDRESS, "./listener"];
    for path in ["./none/ports", "/no/such/ports", "./directory/../none/x"] {
        let expected = format!("fdaccept: cannot write {path}: No such file or directory");
        fails(path, &addresses, 1, &expected);
    }
}

#[test]
fn a_directory_that_is_none_is_an_error() {
    let expected = "fdaccept: cannot write /dev/null/ports: Not a directory";
    fails("/dev/null/ports", &[ADDRESS, "./listener"], 1, expected);
}

#[test]
fn a_directory_that_may_not_be_written_is_an_error() {
    if !root() {
        return;
    }
    let names = Names::new();
    let directory = names.directory.path();
    let everybody = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(directory, everybody).unwrap();
    // The build directory may be closed to it. Another process copies, as in support::executable.
    let copy = directory.join("fdaccept");
    let mut cp = Command::new("cp");
    let copied = cp.arg(bin_dir().join("fdaccept")).arg(&copy).status();
    assert!(copied.unwrap().success());
    let name = names.abstract_name();
    let mut command = Command::new(&copy);
    command.uid(65534).gid(65534).stdin(Stdio::null());
    command.args(["--port-file", "./ports", "--bind", &name, ADDRESS]);
    let (status, _, log) = run(command.current_dir(directory));
    assert_eq!(status, Some(1), "{log}");
    assert_eq!(log, "fdaccept: cannot write ./ports: Permission denied");
    assert!(!directory.join("ports").exists());
}

#[test]
fn a_fifo_without_a_reader_does_not_keep_a_signal_from_ending_it() {
    let names = Names::new();
    let fifo = names.directory.path().join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let mut command = fdaccept(&["--port-file", "./fifo", ADDRESS]);
    command.args(POOL_OF_CATS);
    let mut process = Process::start(command.current_dir(&names.directory));
    until("it to wait", || support::state(process.pid()) == Some('S'));
    process.signal(Signal::SIGTERM);
    assert_eq!(process.wait().signal(), Some(Signal::SIGTERM as i32));
}

#[test]
fn the_mode_of_the_file_follows_the_umask() {
    for (umask, mode) in [("022", 0o644), ("077", 0o600), ("027", 0o640), ("0", 0o666)] {
        for is_there in [false, true] {
            let names = Names::new();
            let path = names.directory.path().join("ports");
            if is_there {
                std::fs::write(&path, "old").unwrap();
                let nobody = std::fs::Permissions::from_mode(0o400);
                std::fs::set_permissions(&path, nobody).unwrap();
            }
            let text = format!(
                "umask {umask}; exec fdaccept --port-file ./ports 127.0.0.1:0 -- fdpool 1 -- cat"
            );
            let mut command = script("sh", &text);
            let mut process = Process::start(command.current_dir(&names.directory));
            let port = process.port();
            let meta = path.symlink_metadata().unwrap();
            assert_eq!(meta.permissions().mode() & 0o7777, mode, "{umask}");
            assert_eq!(ports(&path), [port]);
        }
    }
}

#[test]
fn with_another_user_the_file_is_written_before() {
    if !root() {
        return;
    }
    // A directory that is closed to others.
    let names = Names::new();
    let mut command = fdaccept(&["--user", "4000000001:4000000001"]);
    command.args(["--port-file", "./ports", ADDRESS, "--", "sleep", "1000"]);
    let mut process = Process::start(command.current_dir(&names.directory));
    let port = process.port();
    let path = names.directory.path().join("ports");
    assert_eq!(ports(&path), [port]);
    let meta = path.symlink_metadata().unwrap();
    assert_eq!((meta.uid(), meta.gid()), (0, 0));
}

#[test]
fn a_path_of_any_bytes_can_be_the_file() {
    use std::os::unix::ffi::OsStrExt;
    let names = Names::new();
    for name in [&b"p\xff"[..], b"-p", b" ", b"p\n"] {
        let path = names
            .directory
            .path()
            .join(std::ffi::OsStr::from_bytes(name));
        let mut command = fdaccept(&["--port-file"]);
        command.arg(&path).arg(ADDRESS).args(POOL_OF_CATS);
        let mut process = Process::start(&mut command);
        assert_eq!(process.port(), ports(&path)[0]);
    }
}
