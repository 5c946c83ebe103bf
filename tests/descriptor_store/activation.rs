//! Socket activation beside the store.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::os::fd::OwnedFd;

use super::*;

fn activated() -> (OwnedFd, u16) {
    let (listener, port) = listener();
    (listener.into(), port)
}

/// Starts fdaccept with one listener of a unit and [`OPENED`]. Checks that it listens there.
#[track_caller]
fn start_at(keeper: &Keeper, unit: &(OwnedFd, u16), options: &[&str]) -> Process {
    let arguments = [options, &OPENED_COMMAND].concat();
    let mut process = keeper.start_with(&[("echo.socket", &unit.0)], &arguments);
    assert_eq!(process.port(), unit.1);
    process
}

#[test]
fn listeners_of_a_socket_unit_are_told_from_what_is_kept() {
    let keeper = Keeper::new();
    let (one, first) = activated();
    let (two, second) = activated();
    let start = || {
        let command = [&["--store"], &OPENED_COMMAND[..]].concat();
        let mut process = keeper.start_with(&[("echo.socket", &one), ("", &two)], &command);
        assert_eq!((process.port(), process.port()), (first, second));
        process
    };
    let mut process = start();
    let crowd = queued(&mut process, second, 5);
    crash(process);
    // The unit keeps these by itself, so there is the queue alone.
    assert_eq!(keeper.kept(), [READ_END, WRITE_END]);
    let _process = start();
    keeper.open();
    keeper.expect_served_once(crowd, 5);
    is_served(first);
    assert_eq!(keeper.kept(), [READ_END, WRITE_END]);
}

/// Without FileDescriptorName=, the name is the name of the unit, which may be anything.
#[test]
fn a_socket_unit_may_have_a_name_that_begins_as_ours_do() {
    let keeper = Keeper::new();
    let (listener, port) = activated();
    let others = [("fdtools-echo.socket", &listener)];
    let arguments = ["--", "fdpool", "2", "--", "cat"];
    let mut process = keeper.start_with(&others, &arguments);
    let log = first_word(&mut process);
    assert!(log.contains("listening on"), "{log}");
    is_served(port);
}

#[test]
fn an_address_goes_before_a_socket_unit_and_is_kept() {
    let keeper = Keeper::new();
    let (listener, port) = activated();
    let queue = keeper.names.path();
    let start = || {
        let arguments = ["--store", "--bind", &queue, ADDRESS];
        keeper.start_with(&[("echo.socket", &listener)], &arguments)
    };
    let mut process = start();
    let own = process.port();
    assert_ne!(own, port);
    crash(process);
    assert_eq!(start().port(), own);
    keeper.expect_kept(1);
}

#[test]
fn listeners_that_were_kept_are_given_up_for_those_of_a_socket_unit() {
    let keeper = Keeper::of(Form::Chain);
    let (process, old) = keeper.first();
    crash(process);
    let unit = activated();
    let mut process = start_at(&keeper, &unit, &["--store"]);
    keeper.open();
    is_served(unit.1);
    assert_eq!(keeper.kept(), [READ_END, WRITE_END], "{}", process.log());
    let error = TcpStream::connect(("127.0.0.1", old)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn everything_is_given_up_without_store_for_a_socket_unit_too() {
    let keeper = Keeper::new();
    let unit = activated();
    crash(start_at(&keeper, &unit, &["--store"]));
    let mut process = start_at(&keeper, &unit, &[]);
    keeper.open();
    is_served(unit.1);
    assert_eq!(keeper.kept(), Vec::<String>::new(), "{}", process.log());
}
