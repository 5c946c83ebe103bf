//! Wrong usage, and starts that fail.

use std::net::TcpListener;
use std::process::Stdio;

use super::*;

#[track_caller]
pub fn refuses(mut process: Process, expected: &str) {
    let log = process.expect_end(2);
    let expected = format!("fdaccept: {expected}");
    assert_eq!(log.lines().next(), Some(expected.as_str()));
}

#[test]
fn without_a_manager_nothing_can_be_kept() {
    const EXPECTED: &str = "--store needs a service manager to keep things (NOTIFY_SOCKET)";
    let keeper = Keeper::new();
    let queue = keeper.names.path();
    for form in [&["--bind", &queue, ADDRESS][..], &[ADDRESS, "--", "cat"]] {
        let arguments = [&["--store"], form].concat();
        let start = |manager: Option<&str>| {
            keeper.start_changed(&arguments, |command| {
                match manager {
                    None => command.env_remove("NOTIFY_SOCKET"),
                    Some(name) => command.env("NOTIFY_SOCKET", name),
                };
            })
        };
        refuses(start(None), EXPECTED);
        refuses(start(Some("")), EXPECTED);
        // Nobody is there: that is said first.
        let name = keeper.file("nobody");
        let log = start(Some(&name)).expect_end(2);
        let first =
            format!("fdaccept: NOTIFY_SOCKET: cannot reach the service manager at {name}: ");
        assert!(log.starts_with(&first), "{log}");
        assert!(log.contains(EXPECTED), "{log}");
    }
    assert!(!std::fs::exists(queue).unwrap());
}

#[test]
fn a_queue_that_does_not_outlive_fdaccept_cannot_be_kept() {
    const EXPECTED: &str = "--store needs a queue that outlives this process: --bind or -- COMMAND";
    let keeper = Keeper::new();
    let name = keeper.names.path();
    for sink in [&[][..], &["--connect", &name], &["--queue-fd", "3"]] {
        let arguments = [&["--store"], sink, &[ADDRESS]].concat();
        let process = keeper.start_changed(&arguments, |command| {
            command.stdout(Stdio::piped());
        });
        refuses(process, EXPECTED);
    }
    assert_eq!(keeper.kept(), Vec::<String>::new());
}

#[test]
fn a_start_that_fails_keeps_what_was_kept() {
    let keeper = Keeper::new();
    let (port, crowd) = keeper.crashed_with(3);
    let occupied = TcpListener::bind(ADDRESS).unwrap();
    let address = occupied.local_addr().unwrap().to_string();
    for wrong in [&["-o", "nosuch", ADDRESS][..], &[ADDRESS, &address]] {
        let (status, log) = keeper.start(wrong).finish();
        assert!(matches!(status.code(), Some(1 | 2)), "{log}");
        keeper.expect_kept(1);
    }
    let _process = keeper.again(port);
    keeper.serve_once(crowd, 3);
}
