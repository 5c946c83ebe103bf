//! Changes between two starts: of addresses, of paths, and of what is kept.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use nix::sys::socket::{Shutdown, shutdown};

use super::addresses::Hosts;
use super::*;

// Addresses.

#[test]
fn an_address_can_become_one_that_it_was_in_the_way_of() {
    let (_reserved, port) = reserve_port();
    let (one, all) = (format!("127.0.0.1:{port}"), format!("0.0.0.0:{port}"));
    let keeper = Keeper::new();
    keeper.lock().is_lazy = true;
    for (before, after) in [(&one, &all), (&all, &one)] {
        crash(keeper.start_at(before));
        let process = keeper.start_at(after);
        keeper.serves(port);
        keeper.expect_kept(1);
        crash(process);
    }
}

#[test]
fn a_port_can_become_one_of_both_families_and_back() {
    let (_reserved, port) = reserve_port();
    let (one, both) = (format!("127.0.0.1:{port}"), port.to_string());
    let keeper = Keeper::new();
    keeper.lock().is_lazy = true;
    for address in [&one, &both, &one] {
        let mut process = keeper.start(&[address]);
        assert_eq!(process.port(), port);
        keeper.expect_kept(1);
        process.stop();
    }
}

#[test]
fn an_ipv6_wildcard_can_leave_ipv4_to_another_address_and_have_it_back() {
    needs!(has_ipv6());
    let (_reserved, port) = reserve_port();
    let (v4, v6) = (format!("0.0.0.0:{port}"), format!("[::]:{port}"));
    let keeper = Keeper::new();
    keeper.lock().is_lazy = true;
    let options = ["-o", "nodelay", &v6];
    for addresses in [&options[..], &[&options[..], &[&v4]].concat(), &options] {
        let mut process = keeper.start(addresses);
        let count = addresses.len() - 2;
        (0..count).for_each(|_| assert_eq!(process.port(), port));
        keeper.expect_kept(count);
        crash(process);
    }
}

#[test]
fn an_address_can_change_while_somebody_else_has_the_old_one_open() {
    let (_reserved, port) = reserve_port();
    let keeper = Keeper::new();
    let process = keeper.start_at(&format!("127.0.0.1:{port}"));
    keeper.expect_kept(1);
    crash(process);
    // A process that the manager is just starting has copies.
    let copy = |(_, fd): &(String, OwnedFd)| fd.try_clone().unwrap();
    let _copies: Vec<_> = keeper.lock().store.iter().map(copy).collect();
    let mut process = keeper.start(&[&port.to_string()]);
    assert_eq!(process.port(), port);
}

#[test]
fn an_address_that_is_not_given_any_more_is_given_up_and_the_others_stay() {
    let keeper = Keeper::new();
    let mut process = keeper.start(&["127.0.0.1:0", "127.0.0.2:0"]);
    let (stays, goes) = (process.listening(), process.listening());
    crash(process);
    let mut waiting = TcpStream::connect(&goes).unwrap();
    let mut process = keeper.start(&["127.0.0.1:0", "127.0.0.3:0"]);
    process.line("fdtools-listener-1-0-127.0.0.2%3a0 was kept and is not needed any more");
    assert_eq!(process.listening(), stays);
    assert!(process.listening().starts_with("127.0.0.3:"));
    keeper.expect_kept(2);
    // The old address is closed, and the client that waited there learns so.
    waiting.set_read_timeout(Some(DEADLINE)).unwrap();
    let end = waiting.read(&mut [0]).unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    let error = TcpStream::connect(&goes).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn an_option_that_comes_too_late_for_what_was_kept_is_not_passed_over() {
    needs!(has_ipv6());
    let keeper = Keeper::new();
    let mut process = keeper.start(&["0"]);
    let port = process.port();
    crash(process);
    let mut process = keeper.start(&["-o", "v6only", "0"]);
    let log = first_word(&mut process);
    let is_deaf_to_ipv4 = TcpStream::connect(("127.0.0.1", port)).is_err();
    assert!(is_deaf_to_ipv4 || log.contains("v6only"), "{log}");
}

// No --store any more.

#[test]
fn everything_is_given_up_without_store() {
    for form in FORMS {
        let keeper = Keeper::of(form);
        let (_reserved, port) = reserve_port();
        let address = format!("127.0.0.1:{port}");
        let path = keeper.file("s");
        let process = keeper.start(&[&address, &path]);
        until("everything to be kept", || keeper.kept().len() == 4);
        crash(process);
        let queue = keeper.names.path();
        let mut process = match form {
            Form::Named => keeper.start_all(&["--bind", &queue, &address, &path]),
            Form::Chain => keeper.start_all(&[&address, &path, "--", "fdpool", "2", "--", "cat"]),
        };
        assert_eq!(process.port(), port);
        assert_eq!(process.listening(), path);
        let log = process.log();
        for name in [WRITE_END, READ_END, "fdtools-listener-1-0-127.0.0.1%3a"] {
            let said = format!("fdaccept: {name}");
            let mut lines = log.lines().filter(|line| line.starts_with(&said));
            let line = lines.next().unwrap();
            let end = " was kept and is not needed any more";
            assert!(line.ends_with(end), "{line}");
            assert_eq!(lines.next(), None);
        }
        assert_eq!(keeper.kept(), Vec::<String>::new());
        let _pool = keeper.serve();
        is_served(port);
        is_served_at(&path);
        // And a path of its own vanishes at the end again.
        process.stop();
        assert!(!std::fs::exists(&path).unwrap());
    }
}

#[test]
fn everything_is_given_up_also_where_nobody_can_be_told() {
    let keeper = Keeper::new();
    let port = keeper.crashed();
    let address = format!("127.0.0.1:{port}");
    let queue = keeper.names.path();
    // What the manager keeps is still in the way then, and that is said.
    let mut process = keeper.start_changed(&["--bind", &queue, &address], |command| {
        command.env_remove("NOTIFY_SOCKET");
    });
    let log = process.expect_end(1);
    assert!(log.contains("was kept and is not needed any more"), "{log}");
    let error = format!("cannot bind {address}: Address already in use");
    assert!(log.contains(&error), "{log}");
}

// What is kept.

#[test]
fn a_queue_of_which_one_end_is_missing_is_replaced() {
    for form in FORMS {
        for lost in [WRITE_END, READ_END] {
            let keeper = Keeper::of(form);
            let port = keeper.crashed();
            keeper.lose(lost);
            let _process = keeper.again(port);
            keeper.expect_kept(1);
            keeper.serves(port);
        }
    }
}

#[test]
fn a_queue_that_a_consumer_has_shut_down_is_replaced() {
    let keeper = Keeper::new();
    let (mut process, port) = keeper.first();
    let receiver = keeper.receiver();
    shutdown(receiver.as_fd().as_raw_fd(), Shutdown::Both).unwrap();
    let log = process.expect_end(1);
    let error = "the queue was shut down by one of its consumers";
    assert!(log.contains(error), "{log}");
    let _process = keeper.again(port);
    keeper.serves(port);
    keeper.expect_kept(1);
}

#[test]
fn a_listener_that_was_lost_is_opened_anew() {
    let keeper = Keeper::new();
    let (_, crowd) = keeper.crashed_with(3);
    keeper.lose("listener");
    let _process = keeper.first();
    keeper.expect_kept(1);
    // The queue was not lost.
    keeper.serve_once(crowd, 3);
}

/// As with a small FileDescriptorStoreMax=, which has room for one listener of a host and not for
/// the other.
#[test]
fn a_host_of_which_one_listener_is_missing_is_listened_on_as_a_whole() {
    let hosts = needs!(Hosts::new());
    hosts.keeper.lock().most = Some(3);
    let (process, _) = hosts.start();
    hosts.keeper.expect_kept(1);
    crash(process);
    let (_process, shown) = hosts.start();
    for (address, host) in shown.iter().zip(["127.0.0.1:", "127.0.0.2:"]) {
        assert!(address.starts_with(host), "{shown:?}");
        TcpStream::connect(address).unwrap();
    }
}

// Paths.

#[test]
fn a_path_that_has_vanished_is_made_anew_and_the_old_listener_given_up() {
    let keeper = Keeper::new();
    let path = keeper.file("s");
    for _ in 0..3 {
        let process = keeper.start_at(&path);
        let _pool = keeper.serve();
        is_served_at(&path);
        keeper.expect_kept(1);
        crash(process);
        // As a RuntimeDirectory= does when the service is started again.
        std::fs::remove_file(&path).unwrap();
    }
}

/// A manager that keeps a listener at a path that is not there any more, and the path.
fn without_path() -> (Keeper, String) {
    let keeper = Keeper::new();
    let path = keeper.file("s");
    crash(keeper.start_at(&path));
    std::fs::remove_file(&path).unwrap();
    (keeper, path)
}

#[test]
fn a_path_that_has_become_something_else_is_an_error() {
    let (keeper, path) = without_path();
    std::fs::write(&path, "precious").unwrap();
    let log = keeper.start(&[&path]).expect_end(2);
    assert!(log.contains("exists and is not a socket"), "{log}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_path_that_another_program_has_taken_is_an_error() {
    let (keeper, path) = without_path();
    let _other = UnixListener::bind(&path).unwrap();
    let mut process = keeper.start(&[&path]);
    let log = first_word(&mut process);
    assert!(!log.contains("listening on"), "{log}");
    let log = process.expect_end(1);
    let error = format!("cannot bind {path}: Address already in use");
    assert!(log.contains(&error), "{log}");
    assert!(std::fs::exists(&path).unwrap());
}

#[test]
fn a_path_that_is_not_given_any_more_vanishes() {
    let keeper = Keeper::new();
    let (old, new) = (keeper.file("old"), keeper.file("new"));
    crash(keeper.start_at(&old));
    let _process = keeper.start_at(&new);
    keeper.expect_kept(1);
    for path in [old.clone(), format!("{old}.lock")] {
        assert!(!std::fs::exists(&path).unwrap(), "{path}");
    }
}
