//! Listeners that fdaccept was started with: `fd:N`, and those of a service manager.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::Command;

use crate::support::*;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;

/// The options of the shell that give `fdaccept` its standard input as descriptor 3.
const AS_3: &str = "3<&0 </dev/null";

fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A shell that has a copy of `descriptor` as its standard input and runs `text`.
fn shell_with(descriptor: impl AsFd, text: &str) -> Command {
    let copy = descriptor.as_fd().try_clone_to_owned().unwrap();
    let mut command = script("sh", text);
    command.stdin(copy);
    // Whatever started this test must not interfere.
    for variable in [
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
        "NOTIFY_SOCKET",
    ] {
        command.env_remove(variable);
    }
    command
}

/// `fdaccept` in front of a pool of `handler`, with `descriptor` as its standard input.
fn serve(descriptor: impl AsFd, arguments: &str, handler: &str) -> Process {
    let text = format!("exec fdaccept {arguments} -- fdpool 2 -- {handler}");
    Process::start(&mut shell_with(descriptor, &text))
}

/// Checks that it is a usage error to give `fdaccept` this descriptor as its number 3.
#[track_caller]
fn refuses(descriptor: impl AsFd, text: &str, expected: &str) {
    let (status, _, stderr) = run(&mut shell_with(descriptor, text));
    assert_eq!(status, Some(2), "{stderr}");
    let first = stderr.lines().next().unwrap();
    assert_eq!(first, format!("fdaccept: {expected}"));
}

fn is_blocking(descriptor: impl AsFd) -> bool {
    let flags = fcntl(descriptor.as_fd(), FcntlArg::F_GETFL).unwrap();
    !OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK)
}

#[test]
fn a_listener_at_a_descriptor_is_served() {
    let (listener, port) = listener();
    let text = format!("exec fdaccept fd:3 -- fdpool 2 -- cat {AS_3}");
    let mut process = Process::start(&mut shell_with(&listener, &text));
    assert_eq!(process.listening(), format!("127.0.0.1:{port}"));
    for _ in 0..3 {
        assert_eq!(exchange(port, b"hello"), b"hello");
    }
}

/// As under the `wait` of inetd.
#[test]
fn a_listener_on_standard_input_is_served() {
    let (listener, port) = listener();
    let mut process = serve(&listener, "fd:0", "cat");
    assert_eq!(process.listening(), format!("127.0.0.1:{port}"));
    assert_eq!(exchange(port, b"hello"), b"hello");
}

#[test]
fn a_unix_listener_is_served_and_keeps_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let mut process = serve(&listener, "fd:0", "echo hello");
    assert_eq!(process.listening(), path.to_str().unwrap());
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut connect_unix(&path), &mut answer).unwrap();
    assert_eq!(answer, "hello\n");
    process.signal(Signal::SIGTERM);
    assert_eq!(process.wait().code(), Some(0));
    assert!(path.exists(), "the path is another's");
}

#[test]
fn inherited_and_other_addresses_go_together() {
    let (listener, port) = listener();
    let mut process = serve(&listener, "127.0.0.1:0 fd:0", "cat");
    let other = process.port();
    assert_eq!(process.port(), port);
    for port in [other, port] {
        assert_eq!(exchange(port, b"hello"), b"hello");
    }
}

#[test]
fn the_listeners_of_a_service_manager_are_served() {
    let (one, first) = listener();
    let (two, second) = listener();
    let dir = tempfile::tempdir().unwrap();
    let two = OwnedFd::from(two);
    let text =
        format!("LISTEN_FDS=2 LISTEN_PID=$$ exec fdaccept -- fdpool 2 -- cat 4<&1 >\"$0\" {AS_3}");
    let mut command = shell_with(&one, &text);
    let command = command.arg(dir.path().join("out")).stdout(two);
    let mut process = Process::start(command);
    // Descriptors 3 and 4, in their order.
    assert_eq!(process.port(), first);
    assert_eq!(process.port(), second);
    for port in [first, second, first] {
        assert_eq!(exchange(port, b"hello"), b"hello");
    }
}

#[test]
fn an_address_goes_before_the_listeners_of_a_service_manager() {
    let (listener, port) = listener();
    let text =
        format!("LISTEN_FDS=1 LISTEN_PID=$$ exec fdaccept 127.0.0.1:0 -- fdpool 2 -- cat {AS_3}");
    let mut process = Process::start(&mut shell_with(&listener, &text));
    let other = process.port();
    assert_ne!(other, port);
    assert_eq!(exchange(other, b"hello"), b"hello");
}

#[test]
fn the_listeners_of_another_process_are_ignored() {
    let (listener, _) = listener();
    const OTHERS: &str =
        "no ADDRESS given, and LISTEN_FDS is not meant for this process (LISTEN_PID)";
    const NONE: &str = "no ADDRESS given, and no listeners in LISTEN_FDS";
    for (variables, expected) in [
        ("LISTEN_FDS=1 LISTEN_PID=1", OTHERS),
        ("LISTEN_FDS=1", OTHERS),
        ("LISTEN_PID=$$", NONE),
    ] {
        let text = format!("{variables} exec fdaccept -- cat {AS_3}");
        refuses(&listener, &text, expected);
    }
    // A shell that stays is another process, too.
    let text = format!("LISTEN_FDS=1 LISTEN_PID=$$ fdaccept -- cat {AS_3}; exit $?");
    refuses(&listener, &text, OTHERS);
}

#[test]
fn variables_that_are_no_numbers_are_named() {
    let (listener, _) = listener();
    let bad = [
        ("LISTEN_FDS=x LISTEN_PID=$$", "LISTEN_FDS=x"),
        ("LISTEN_FDS=-1 LISTEN_PID=$$", "LISTEN_FDS=-1"),
        ("LISTEN_FDS=1 LISTEN_PID=me", "LISTEN_PID=me"),
    ];
    for (variables, named) in bad {
        let text = format!("{variables} exec fdaccept -- cat {AS_3}");
        let expected = format!("{named} is not a number: unset it, or see sd_listen_fds(3)");
        refuses(&listener, &text, &expected);
    }
}

#[test]
fn what_is_no_listener_is_named() {
    let (listener, port) = listener();
    let connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (reader, _writer) = std::io::pipe().unwrap();
    let kinds: [(OwnedFd, &str); 7] = [
        (reader.into(), "a pipe"),
        (connection.into(), "a TCP connection"),
        (File::open("/dev/null").unwrap().into(), "/dev/null"),
        (File::open("/").unwrap().into(), "a directory"),
        (
            UdpSocket::bind("127.0.0.1:0").unwrap().into(),
            "a UDP socket",
        ),
        (
            UnixStream::pair().unwrap().0.into(),
            "a Unix stream connection",
        ),
        (
            UnixDatagram::unbound().unwrap().into(),
            "a Unix datagram socket",
        ),
    ];
    for (descriptor, what) in kinds {
        let expected = format!("descriptor 3 is {what}, not a listening stream socket");
        let address = format!("exec fdaccept fd:3 -- cat {AS_3}");
        refuses(&descriptor, &address, &expected);
        let passed = format!("LISTEN_FDS=1 LISTEN_PID=$$ exec fdaccept -- cat {AS_3}");
        refuses(&descriptor, &passed, &expected);
    }
    let both = format!("LISTEN_FDS=2 LISTEN_PID=$$ exec fdaccept -- cat {AS_3} 4</dev/null");
    refuses(
        &listener,
        &both,
        "descriptor 4 is /dev/null, not a listening stream socket",
    );
}

#[test]
fn a_descriptor_that_is_not_open_is_named() {
    let null = File::open("/dev/null").unwrap();
    let closed: String = (3..10).map(|number| format!(" {number}>&-")).collect();
    for sink in ["-- cat", "--bind @fdtools-never", "| cat"] {
        let (end, pipe) = if sink.starts_with('|') {
            ("", sink)
        } else {
            (sink, "")
        };
        for number in 3..10 {
            let text = format!("fdaccept fd:{number} {end} {closed} {pipe}");
            let (_, _, stderr) = run(&mut shell_with(&null, &text));
            let first = stderr.lines().next().unwrap().to_owned();
            assert_eq!(
                first,
                format!("fdaccept: descriptor {number} is not open"),
                "{sink}"
            );
        }
    }
    let text = format!("LISTEN_FDS=1 LISTEN_PID=$$ exec fdaccept -- cat {closed}");
    refuses(&null, &text, "descriptor 3 is not open");
}

#[test]
fn a_listener_is_taken_over_once() {
    let (listener, _) = listener();
    refuses(
        &listener,
        &format!("exec fdaccept fd:3 fd:3 -- cat {AS_3}"),
        "descriptor 3 cannot be used for two things at once",
    );
}

#[test]
fn an_option_that_comes_too_late_is_refused() {
    let (listener, port) = listener();
    for option in ["rcvbuf=30000", "reuseport", "freebind"] {
        let text = format!("exec fdaccept -o {option} fd:3 -- cat {AS_3}");
        let expected = format!(
            "socket option {option} must be set before the listener is bound: \
             set it where the inherited one is made"
        );
        refuses(&listener, &text, &expected);
    }
    let mut process = serve(&listener, "-o nodelay fd:0", "cat");
    process.listening();
    assert_eq!(exchange(port, b"hello"), b"hello");
}

#[test]
fn what_a_service_manager_meant_for_fdaccept_does_not_reach_its_command() {
    let (listener, _) = listener();
    let text = format!(
        "LISTEN_FDS=1 LISTEN_PID=$$ LISTEN_PIDFDID=1 LISTEN_FDNAMES=x NOTIFY_SOCKET=/x OTHER=1 \
         exec fdaccept -- sh -c 'env; echo; ls /proc/$$/fd; exit 7' {AS_3}"
    );
    let (status, stdout, _) = run(&mut shell_with(&listener, &text));
    let (environment, descriptors) = stdout.split_once("\n\n").unwrap();
    let names: BTreeSet<_> = environment
        .lines()
        .filter_map(|line| Some(line.split_once('=')?.0))
        .collect();
    assert!(names.contains("OTHER") && names.contains("PATH"));
    for name in [
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_PIDFDID",
        "LISTEN_FDNAMES",
        "NOTIFY_SOCKET",
    ] {
        assert!(!names.contains(name), "{environment}");
    }
    let open: Vec<_> = descriptors.lines().collect();
    assert!(!open.contains(&"3"), "{open:?}");
    assert_eq!(status, Some(7));
}

#[test]
fn an_inherited_listener_stays_blocking() {
    let (listener, port) = listener();
    let mut process = serve(&listener, "fd:0", "cat");
    process.listening();
    for _ in 0..5 {
        assert_eq!(exchange(port, b"hello"), b"hello");
        assert!(is_blocking(&listener));
    }
    process.signal(Signal::SIGTERM);
    assert_eq!(process.wait().code(), Some(0));
    assert!(is_blocking(&listener));
}

#[test]
fn an_inherited_listener_is_not_closed_for_the_others() {
    let (listener, port) = listener();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGKILL] {
        let mut process = serve(&listener, "fd:0", "cat");
        process.listening();
        assert_eq!(exchange(port, b"hello"), b"hello");
        process.signal(signal);
        process.wait();
        let _client = connect(port);
        listener.accept().unwrap();
    }
}

#[test]
fn two_fdaccepts_that_share_a_listener_both_serve() {
    let (listener, port) = listener();
    let mut one = serve(&listener, "fd:0", "echo one");
    let mut two = serve(&listener, "fd:0", "echo two");
    one.listening();
    two.listening();
    let answers: BTreeSet<_> = clients(port, 100).into_iter().collect();
    assert!(
        answers
            .iter()
            .all(|answer| answer == b"one\n" || answer == b"two\n"),
        "{answers:?}"
    );
    // Each of them alone serves everybody, also after it had to share.
    for (stopped, other, expected) in [(&one, &two, b"two\n"), (&two, &one, b"one\n")] {
        other.signal(Signal::SIGCONT);
        stopped.signal(Signal::SIGSTOP);
        until("the stop", || state(stopped.pid()) == Some('T'));
        assert!(clients(port, 10).iter().all(|answer| answer == expected));
    }
}

#[test]
fn two_fdaccepts_that_share_a_listener_both_stop_at_once() {
    let (listener, port) = listener();
    let mut one = serve(&listener, "fd:0", "echo one");
    let mut two = serve(&listener, "fd:0", "echo two");
    one.listening();
    two.listening();
    // Whoever was slower at one of these must not be left in accept(2), deaf.
    clients(port, 200);
    for process in [&mut one, &mut two] {
        process.signal(Signal::SIGTERM);
        assert_eq!(process.wait().code(), Some(0));
    }
}

/// The answers that so many clients get, ten at a time.
fn clients(port: u16, count: usize) -> Vec<Vec<u8>> {
    std::thread::scope(|scope| {
        let share = |_| scope.spawn(move || (0..count / 10).map(|_| exchange(port, b"")).collect());
        let threads: Vec<_> = (0..10).map(share).collect();
        let shares = threads.into_iter().map(|thread| thread.join().unwrap());
        shares.flat_map(|share: Vec<Vec<u8>>| share).collect()
    })
}
