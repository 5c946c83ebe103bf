//! `fdaccept --store`: what a service manager keeps of it from one start to the next. The manager
//! is a stand-in that does what systemd does: see "FDSTORE=1" of sd_notify(3), and
//! sd_listen_fds(3).
//!
//! A program of its own: a child that any other test starts has all that the manager has open until
//! it is its program, so what the manager closes then would still be there for fdaccept.
#![allow(unsafe_code)] // a child finds its descriptors before it becomes a program

#[path = "../support/mod.rs"]
mod support;

mod activation;
mod addresses;
mod changes;
mod clean_stop;
mod consumers;
mod crash;
mod keeper;
mod strange;
mod usage;

use fdtools::queue::message;
use nix::sys::signal::Signal;
use support::*;

use keeper::*;

/// The names of the two ends of a queue.
const WRITE_END: &str = "fdtools-queue-write";
const READ_END: &str = "fdtools-queue-read";

/// A handler that writes down what it gets, and gives it back.
const ECHO: &str = r#"got=$(cat); echo "$got" >>"$SERVED"; printf %s "$got""#;

/// A command that serves by [`ECHO`], once the test opens it.
const OPENED: &str = r#"until [ -e "$OPEN" ]; do sleep 0.02; done; exec fdpool 2 -- sh -c "$0""#;

/// `-- COMMAND` for [`OPENED`].
const OPENED_COMMAND: [&str; 5] = ["--", "sh", "-c", OPENED, ECHO];

/// The two ways to have a queue that outlives fdaccept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Named,
    Chain,
}

const FORMS: [Form; 2] = [Form::Named, Form::Chain];

/// Kills fdaccept and, as a manager does, what is left of its service.
#[track_caller]
fn crash(mut process: Process) {
    process.signal_group(Signal::SIGKILL);
    assert_eq!(process.wait().code(), None);
}

/// Ends fdaccept by a crash or by TERM.
#[track_caller]
fn end(mut process: Process, is_crash: bool) {
    if is_crash {
        crash(process);
    } else {
        process.stop();
    }
}

/// A crowd whose connections fdaccept has put into the queue.
#[track_caller]
fn queued(process: &mut Process, port: u16, count: usize) -> Crowd {
    let crowd = Crowd::connect(port, count);
    process.until_counted("passed", count);
    crowd
}

/// All that fdaccept says until it listens, or until it ends if it does not.
#[track_caller]
fn first_word(process: &mut Process) -> String {
    eventually("a listener or the end", || {
        if !process.is_running() {
            return Some(process.finish().1);
        }
        let log = process.log();
        log.contains("listening on").then_some(log)
    })
}

/// Checks that a connection out of the queue belongs to `client`.
#[track_caller]
fn is_of(taken: &Taken, client: &Client) {
    let port = taken.text(message::TCP_REMOTE_PORT).unwrap();
    assert_eq!(port, client.local_port().to_string());
}

#[track_caller]
fn is_served(port: u16) {
    Client::connect(port).expect_echo("hello");
}

#[track_caller]
fn is_served_at(path: &str) {
    Client::connect_unix(path).expect_echo("hello");
}
