//! Listeners that fdaccept inherits: `fd:N`, and the listeners of a service manager.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use crate::support::*;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;

fn copy(descriptor: impl AsFd) -> OwnedFd {
    descriptor.as_fd().try_clone_to_owned().unwrap()
}

/// A script that has a copy of `descriptor` as its standard input.
fn script_with(descriptor: impl AsFd, text: &str) -> Fdaccept {
    Fdaccept::sh(text).stdin(copy(descriptor))
}

/// `fdaccept ARGUMENTS` with a copy of `descriptor` as number 3.
fn with_3(descriptor: impl AsFd, arguments: &str) -> Fdaccept {
    with_variables(descriptor, "", arguments)
}

/// The same with these variables in its environment.
fn with_variables(descriptor: impl AsFd, variables: &str, arguments: &str) -> Fdaccept {
    let text = format!("{variables} exec fdaccept {arguments} 3<&0 </dev/null");
    script_with(descriptor, &text)
}

const ONE: &str = "LISTEN_FDS=1 LISTEN_PID=$$";

/// fdaccept in front of a pool of `handler`, with `listener` as its standard input.
fn serve(listener: impl AsFd, handler: &str) -> Acceptor {
    let fdaccept = Fdaccept::pool(handler).listen("fd:0");
    fdaccept.stdin(copy(listener)).start()
}

/// Checks that this is a usage error.
#[track_caller]
fn is_refused(fdaccept: Fdaccept, expected: &str) {
    let log = fdaccept.fails(2);
    let first = log.lines().next().unwrap();
    assert_eq!(first, format!("fdaccept: {expected}"));
}

fn is_blocking(descriptor: impl AsFd) -> bool {
    let flags = fcntl(descriptor.as_fd(), FcntlArg::F_GETFL).unwrap();
    !OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK)
}

#[test]
fn a_listener_at_a_descriptor_is_served() {
    let (listener, port) = listener();
    let acceptor = with_3(listener, "fd:3 -- fdpool 2 -- cat").start();
    assert_eq!(acceptor.addresses, [format!("127.0.0.1:{port}")]);
    for _ in 0..3 {
        acceptor.expect_echo();
    }
}

/// As inetd passes it, with `wait`.
#[test]
fn a_listener_on_standard_input_is_served() {
    let (listener, port) = listener();
    let acceptor = serve(listener, "cat");
    assert_eq!(acceptor.addresses, [format!("127.0.0.1:{port}")]);
    acceptor.expect_echo();
}

#[test]
fn a_unix_listener_is_served_and_keeps_its_path() {
    let names = Names::new();
    let path = names.file("s");
    let listener = UnixListener::bind(&path).unwrap();
    let mut acceptor = serve(listener, "echo hello");
    assert_eq!(acceptor.addresses, [path.to_str().unwrap()]);
    assert_eq!(Client::connect_unix(&path).rest(), "hello\n");
    acceptor.stop();
    assert!(path.exists(), "the path is another's");
}

#[test]
fn inherited_and_other_addresses_go_together() {
    let (listener, port) = listener();
    let both = Fdaccept::cats().listen(ADDRESS).listen("fd:0");
    let acceptor = both.stdin(copy(&listener)).start();
    assert_eq!(acceptor.ports[1], port);
    for port in &acceptor.ports {
        assert_eq!(exchange(*port, b"hello"), b"hello");
    }
}

#[test]
fn the_listeners_of_a_service_manager_are_served() {
    let (one, first) = listener();
    let (two, second) = listener();
    // Standard output becomes descriptor 4.
    let text =
        "LISTEN_FDS=2 LISTEN_PID=$$ exec fdaccept -- fdpool 2 -- cat 4<&1 >./out 3<&0 </dev/null";
    let mut acceptor = script_with(one, text).stdout(OwnedFd::from(two)).spawn();
    acceptor.hear(2);
    // In the order of their descriptors.
    assert_eq!(acceptor.ports, [first, second]);
    for port in [first, second, first] {
        assert_eq!(exchange(port, b"hello"), b"hello");
    }
}

#[test]
fn an_address_goes_before_the_listeners_of_a_service_manager() {
    let (listener, port) = listener();
    let arguments = "127.0.0.1:0 -- fdpool 2 -- cat";
    let acceptor = with_variables(listener, ONE, arguments).start();
    assert_ne!(acceptor.port, port);
    acceptor.expect_echo();
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
        is_refused(with_variables(&listener, variables, "-- cat"), expected);
    }
    // A shell that does not exec is another process, too.
    let text = format!("{ONE} fdaccept -- cat 3<&0 </dev/null; exit $?");
    is_refused(script_with(&listener, &text), OTHERS);
}

#[test]
fn variables_that_are_no_numbers_are_named() {
    let (listener, _) = listener();
    for (variables, named) in [
        ("LISTEN_FDS=-1 LISTEN_PID=$$", "LISTEN_FDS=-1"),
        ("LISTEN_FDS=1 LISTEN_PID=me", "LISTEN_PID=me"),
    ] {
        let expected = format!("{named} is not a number: unset it, or see sd_listen_fds(3)");
        is_refused(with_variables(&listener, variables, "-- cat"), &expected);
    }
}

#[test]
fn what_is_no_listener_is_named() {
    let (listener, port) = listener();
    let connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (reader, _writer) = std::io::pipe().unwrap();
    let udp = UdpSocket::bind(ADDRESS).unwrap();
    let (stream, _other) = UnixStream::pair().unwrap();
    let datagram = UnixDatagram::unbound().unwrap();
    let kinds: [(OwnedFd, &str); 7] = [
        (reader.into(), "a pipe"),
        (connection.into(), "a TCP connection"),
        (File::open("/dev/null").unwrap().into(), "/dev/null"),
        (File::open("/").unwrap().into(), "a directory"),
        (udp.into(), "a UDP socket"),
        (stream.into(), "a Unix stream connection"),
        (datagram.into(), "a Unix datagram socket"),
    ];
    for (descriptor, what) in kinds {
        let expected = format!("descriptor 3 is {what}, not a listening stream socket");
        is_refused(with_3(&descriptor, "fd:3 -- cat"), &expected);
        is_refused(with_variables(&descriptor, ONE, "-- cat"), &expected);
    }
    let two = "LISTEN_FDS=2 LISTEN_PID=$$";
    is_refused(
        with_variables(&listener, two, "-- cat 4</dev/null"),
        "descriptor 4 is /dev/null, not a listening stream socket",
    );
}

#[test]
fn a_descriptor_that_is_not_open_is_named() {
    let null = File::open("/dev/null").unwrap();
    let closed: String = (3..10).map(|number| format!(" {number}>&-")).collect();
    for (sink, pipe) in [("-- cat", ""), ("--bind @fdtools-never", ""), ("", "| cat")] {
        for number in 3..10 {
            let text = format!("fdaccept fd:{number} {sink} {closed} {pipe}");
            let (_, log) = script_with(&null, &text).spawn().finish();
            let expected = format!("fdaccept: descriptor {number} is not open");
            assert_eq!(log.lines().next(), Some(&*expected), "{text}");
        }
    }
    let text = format!("{ONE} exec fdaccept -- cat {closed}");
    is_refused(script_with(&null, &text), "descriptor 3 is not open");
}

#[test]
fn a_listener_is_taken_over_once() {
    let twice = "descriptor 3 cannot be used for two things at once";
    is_refused(with_3(listener().0, "fd:3 fd:3 -- cat"), twice);
}

#[test]
fn an_option_that_comes_too_late_is_refused() {
    let (listener, _) = listener();
    for option in ["rcvbuf=30000", "reuseport", "freebind"] {
        let expected = format!(
            "socket option {option} must be set before the listener is bound: \
             set it where the inherited one is made"
        );
        let arguments = format!("-o {option} fd:3 -- cat");
        is_refused(with_3(&listener, &arguments), &expected);
    }
    let nodelay = Fdaccept::cats().options("-o nodelay").listen("fd:0");
    nodelay.stdin(copy(&listener)).start().expect_echo();
}

#[test]
fn what_a_service_manager_meant_for_fdaccept_does_not_reach_its_command() {
    let given = ["LISTEN_FDS", "LISTEN_PID", "NOTIFY_SOCKET"];
    let others = OF_A_SERVICE_MANAGER.iter();
    let others = others.filter(|name| !given.contains(name));
    let others: String = others.map(|name| format!("{name}=1 ")).collect();
    let command = "sh -c 'env; echo; ls /proc/$$/fd; exit 7' >./out";
    let variables = format!("{ONE} {others} NOTIFY_SOCKET=/x OTHER=1");
    let arguments = format!("-- {command}");
    let mut acceptor = with_variables(listener().0, &variables, &arguments).spawn();
    acceptor.expect_end(7);
    let told = std::fs::read_to_string(acceptor.names.file("out")).unwrap();
    let (environment, descriptors) = told.split_once("\n\n").unwrap();
    let names = environment
        .lines()
        .filter_map(|line| Some(line.split_once('=')?.0));
    let names: BTreeSet<_> = names.collect();
    assert!(names.contains("OTHER") && names.contains("PATH"));
    for name in OF_A_SERVICE_MANAGER {
        assert!(!names.contains(name), "{environment}");
    }
    let open: Vec<_> = descriptors.lines().collect();
    assert!(!open.contains(&"3"), "{open:?}");
}

#[test]
fn an_inherited_listener_stays_blocking() {
    let (listener, _) = listener();
    let mut acceptor = serve(&listener, "cat");
    for _ in 0..5 {
        acceptor.expect_echo();
        assert!(is_blocking(&listener));
    }
    acceptor.stop();
    assert!(is_blocking(&listener));
}

#[test]
fn an_inherited_listener_is_not_closed_for_the_others() {
    let (listener, port) = listener();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGKILL] {
        let mut acceptor = serve(&listener, "cat");
        acceptor.expect_echo();
        acceptor.end_by(signal);
        let _client = connect(port);
        listener.accept().unwrap();
    }
}

#[test]
fn two_fdaccepts_that_share_a_listener_both_serve() {
    let (listener, port) = listener();
    let one = serve(&listener, "echo one");
    let two = serve(&listener, "echo two");
    let answers: BTreeSet<_> = clients(port, 100).into_iter().collect();
    let is_known = |answer: &Vec<u8>| answer == b"one\n" || answer == b"two\n";
    assert!(answers.iter().all(is_known), "{answers:?}");
    // Either of them alone serves all clients, also after they shared the listener.
    for (stopped, other, expected) in [(&one, &two, b"two\n"), (&two, &one, b"one\n")] {
        other.thaw();
        stopped.freeze();
        assert!(clients(port, 10).iter().all(|answer| answer == expected));
    }
}

#[test]
fn two_fdaccepts_that_share_a_listener_both_stop_at_once() {
    let (listener, port) = listener();
    let mut both = ["echo one", "echo two"].map(|handler| serve(&listener, handler));
    // The slower fdaccept must not stay in accept(2), where it hears no signal.
    clients(port, 200);
    for acceptor in &mut both {
        acceptor.term();
        acceptor.expect_exit(0);
    }
}

/// The answers to `count` clients, 10 at a time.
fn clients(port: u16, count: usize) -> Vec<Vec<u8>> {
    std::thread::scope(|scope| {
        let share = |_| scope.spawn(move || (0..count / 10).map(|_| exchange(port, b"")).collect());
        let threads: Vec<_> = (0..10).map(share).collect();
        let shares = threads.into_iter().map(|thread| thread.join().unwrap());
        shares.flat_map(|share: Vec<Vec<u8>>| share).collect()
    })
}
