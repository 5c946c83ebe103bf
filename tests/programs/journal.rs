//! Lines have their priority where standard error is the journal, which `JOURNAL_STREAM` tells.

use crate::support::*;

/// Runs `command` with a standard error that stands for the journal.
fn in_journal(command: &str) -> String {
    format!("JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2); export JOURNAL_STREAM; {command}")
}

const CHAIN: &str = "exec fdaccept -v 127.0.0.1:0 -- fdpool -v 1 -- \
    sh -c 'echo \"<2>of the handler\" >&2; echo $JOURNAL_STREAM; exec cat'";

/// Serves a client, and stops. Returns what the handler told of the variable, and the log without
/// the line of the handler.
#[track_caller]
fn serve(text: &str) -> (String, Vec<String>) {
    let mut acceptor = Fdaccept::sh(text).start();
    let client = acceptor.client();
    let told = client.line();
    client.finish();
    let log = acceptor.stop();
    let lines = log.lines().map(str::to_owned);
    let (handlers, lines): (Vec<_>, Vec<_>) = lines.partition(|line| line.contains("handler"));
    assert_eq!(handlers, ["<2>of the handler"], "{log}");
    (told, lines)
}

#[track_caller]
fn expect_priority(lines: &[String], priority: &str, what: &str) {
    let found = lines.iter().find(|line| line.contains(what)).unwrap();
    assert!(found.starts_with(priority), "{found:?}");
}

#[test]
fn every_line_in_the_journal_begins_with_its_priority() {
    let (told, lines) = serve(&in_journal(CHAIN));
    for line in &lines {
        let rest = line.strip_prefix(['<']).unwrap_or_default();
        let rest = rest.trim_start_matches(|digit| ('3'..='6').contains(&digit));
        assert!(
            rest.starts_with(">fdaccept: ") || rest.starts_with(">fdpool: "),
            "{line:?}"
        );
    }
    expect_priority(&lines, "<5>fdaccept: ", "listening on");
    expect_priority(&lines, "<6>fdaccept: ", "accepted 127.0.0.1");
    expect_priority(&lines, "<6>fdpool: ", "pid ");
    expect_priority(&lines, "<5>fdaccept: ", ", passed 1");
    // The handler has the same standard error, and may want to know.
    assert!(told.contains(':'), "{told:?}");
}

#[test]
fn lines_have_no_priority_where_standard_error_is_not_the_journal() {
    let other = "JOURNAL_STREAM=$(stat -Lc %d:%i /); export JOURNAL_STREAM; ";
    for before in ["", other, "export JOURNAL_STREAM=x; "] {
        let (_, lines) = serve(&format!("{before}{CHAIN}"));
        assert!(lines.iter().all(|line| line.starts_with("fd")), "{lines:?}");
    }
}

#[test]
fn an_error_in_the_journal_has_the_priority_of_an_error() {
    for command in ["fdaccept --foo 1", "fdpool 0 -- cat", "fdrecv -- cat"] {
        let (_, _, log) = run(&mut sh(&in_journal(command)));
        assert!(log.lines().count() > 0);
        assert!(log.lines().all(|line| line.starts_with("<3>fd")), "{log}");
    }
}

#[test]
fn no_text_from_outside_begins_a_line_in_the_journal() {
    let command = "exec fdpool 1 -- \"$(printf 'x\\n<0>y')\"";
    let (_, _, log) = run(&mut sh(&in_journal(command)));
    assert!(log.contains(r"x\n<0>y"), "{log}");
    assert!(
        log.lines().all(|line| line.starts_with("<3>fdpool: ")),
        "{log}"
    );
}

#[test]
fn what_an_operator_would_look_into_is_a_warning() {
    let chain = "exec fdaccept 127.0.0.1:0 -- fdpool --worker 1 -- sh -c 'exit 1'";
    let mut acceptor = Fdaccept::sh(&in_journal(chain)).start();
    let line = acceptor.line("ended with status 1");
    assert!(line.starts_with("<4>fdpool: worker "), "{line}");
}
