//! Commands that take the queue for a connection.

use std::process::Stdio;
use std::time::Duration;

use crate::support::*;

/// The notices of a log.
fn notices(log: &str) -> Vec<&str> {
    let lines = log.lines();
    lines
        .filter(|line| line.contains("gets the queue"))
        .collect()
}

#[test]
fn a_command_that_reads_the_queue_is_told_once_what_it_is() {
    for words in [&["cat"][..], &["sh", "-c", "cat; :"], &["env", "cat"]] {
        // What it makes of the queue it writes here.
        let mut acceptor = Fdaccept::chain(words).stdout(Stdio::null()).start();
        acceptor.client().rest_or_reset();
        let name = words[0];
        let expected = format!(
            "fdaccept: {name} gets the queue, not a connection: did you mean -- fdpool N -- {name}?"
        );
        assert_eq!(acceptor.line("gets the queue"), expected);
        acceptor.client().rest_or_reset();
        let log = acceptor.stop();
        assert_eq!(notices(&log).len(), 1, "{log}");
    }
}

#[test]
fn a_command_that_waits_for_bytes_is_told_before_a_client_is_lost() {
    let mut acceptor = Fdaccept::chain(sh_c("read line; sleep 100")).start();
    let reader = eventually("the command", || acceptor.children().first().copied());
    let read = format!("{} 0x0 ", nix::libc::SYS_read);
    until("a read of standard input", || {
        let call = std::fs::read_to_string(format!("/proc/{reader}/syscall"));
        call.is_ok_and(|call| call.starts_with(&read))
    });
    let client = acceptor.client();
    acceptor.line("gets the queue");
    // Only now does the shell have the line that it takes for the client's.
    assert_eq!(client.rest_or_reset(), "");
}

#[test]
fn a_command_that_ends_at_once_is_told_what_it_got() {
    let log = Fdaccept::chain(["true"]).fails(0);
    assert_eq!(notices(&log).len(), 1, "{log}");
    // A command that fails has told why.
    let log = Fdaccept::chain(["false"]).fails(1);
    assert!(notices(&log).is_empty(), "{log}");
    let log = Fdaccept::chain(["true"]).arg("-q").fails(0);
    assert_eq!(log, "");
}

#[test]
fn a_command_that_is_stopped_is_told_nothing() {
    let mut acceptor = Fdaccept::chain(["cat"]).start();
    acceptor.term();
    acceptor.expect_clean_end();
}

/// A worker that first looks whether there is a message, and then receives it.
const PEEKS: &str = "
import socket
queue = socket.socket(fileno=0)
while queue.recv(1, socket.MSG_PEEK):
    _, (connection, *_), _, _ = socket.recv_fds(queue, 4096, 2)
    client = socket.socket(fileno=connection)
    client.sendall(client.recv(100))
    client.close()
";

#[test]
fn a_consumer_in_any_language_is_told_nothing() {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let mut consumers = vec![
        words("fdpool 2 -- cat"),
        words("fdrecv -- cat"),
        words("fdpool --worker 2 -- fdrecv -- cat"),
        sh_c("while fdrecv -- cat; do :; done")
            .map(str::to_owned)
            .to_vec(),
        // Another input of the same number.
        sh_c("exec 3<&0 </dev/zero; fdpool --queue-fd 3 2 -- cat & cat >/dev/null; :")
            .map(str::to_owned)
            .to_vec(),
    ];
    let path = |path: std::path::PathBuf| path.to_str().unwrap().to_owned();
    if let Some(python) = python() {
        consumers.push(vec![path(python), "-c".to_owned(), PEEKS.to_owned()]);
    }
    consumers.extend(python_worker().map(|words| words.map(path).to_vec()));
    consumers.extend(rust_worker().map(|worker| vec![path(worker)]));
    let mut acceptors: Vec<_> = consumers
        .iter()
        .map(|words| Fdaccept::chain(words).start())
        .collect();
    for acceptor in &acceptors {
        let client = acceptor.client();
        client.expect_served();
    }
    // Each command is examined a second after its first client, for the last time.
    std::thread::sleep(Duration::from_millis(1500));
    for (acceptor, words) in acceptors.iter_mut().zip(&consumers) {
        let log = acceptor.log();
        assert!(notices(&log).is_empty(), "{words:?}: {log}");
    }
}
