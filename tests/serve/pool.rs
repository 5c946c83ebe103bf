//! A pool: its slots, its signals, its log.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Read;
use std::time::{Duration, Instant};

use crate::support::*;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// A handler that tells its process id, and then gives back what it gets until its client ends.
const ECHO: [&str; 3] = ["sh", "-c", "echo $$; exec cat"];

/// The signals that stop a pool.
const STOPS: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];

/// A pool of `size` slots that all were started.
#[track_caller]
fn pool_on(
    acceptor: &Acceptor,
    options: &[&str],
    size: usize,
    handler: impl IntoIterator<Item: AsRef<OsStr>>,
) -> Pool {
    Pool::on(acceptor).args(options).slots(size, handler).full()
}

/// fdaccept with a named queue, and such a pool.
#[track_caller]
fn start(
    options: &[&str],
    size: usize,
    handler: impl IntoIterator<Item: AsRef<OsStr>>,
) -> (Acceptor, Pool) {
    let acceptor = Fdaccept::bound().start();
    let pool = pool_on(&acceptor, options, size, handler);
    (acceptor, pool)
}

// Connections.

#[test]
fn connections_beyond_the_slots_wait_and_are_served_first_come_first_served() {
    let acceptor = Fdaccept::bound().start();
    let order = acceptor.names.file("order");
    let text = "echo here; read word; echo \"$word\" >>\"$ORDER\"; echo \"$word\"";
    let _pool = Pool::on(&acceptor)
        .env("ORDER", &order)
        .slots(1, sh_c(text))
        .start();
    let first = acceptor.client();
    assert_eq!(first.line(), "here");
    let later: Vec<_> = (1..=20)
        .map(|number| {
            let client = acceptor.client();
            client.send(&format!("{number}\n"));
            (number, client)
        })
        .collect();
    assert!(!later.iter().any(|(_, client)| client.is_answered()));
    first.send("0\n");
    assert_eq!(first.rest_or_reset(), "0\n");
    for (number, client) in later {
        assert_eq!(client.rest_or_reset(), format!("here\n{number}\n"));
    }
    let expected: String = (0..=20).map(|number| format!("{number}\n")).collect();
    assert_eq!(std::fs::read_to_string(order).unwrap(), expected);
}

#[test]
fn each_slot_serves_one_connection_at_a_time() {
    let (acceptor, _pool) = start(&[], 3, ECHO);
    let mut clients: Vec<_> = (0..3).map(|_| acceptor.client()).collect();
    for client in &clients {
        client.pid();
    }
    let fourth = acceptor.client();
    clients.iter().for_each(Client::expect_served);
    fourth.expect_waiting();
    clients.pop().unwrap().finish();
    fourth.pid();
    clients.iter().for_each(Client::expect_served);
}

#[test]
fn a_handler_that_is_stopped_is_said_and_can_go_on() {
    let (acceptor, mut pool) = start(&[], 1, sh_c("echo $$; kill -STOP $$; exec cat"));
    let client = acceptor.client();
    let pid = client.pid();
    let expected = format!("fdpool: handler {pid} is stopped by SIGSTOP");
    assert_eq!(pool.line("stopped"), expected);
    thaw(pid);
    client.expect_served();
    client.finish();
    assert_eq!(pool.stop(), expected);
}

/// One slot: what comes after a handler that ends as `text` ends is served, and the log says
/// `status`.
#[track_caller]
fn assert_frees_its_slot(text: &str, statuses: &[i32]) {
    let text = format!("echo $$; read word; if [ \"$word\" = go ]; then {text}; fi; echo fine");
    let (acceptor, mut pool) = start(&["-v"], 1, sh_c(&text));
    let client = acceptor.client();
    let pid = client.pid();
    let next = acceptor.client();
    next.send("on\n");
    client.send("go\n");
    client.rest_or_reset();
    let end = pool.line(&format!("end {pid} "));
    let status = end.rsplit_once(' ').unwrap().1.parse().unwrap();
    assert!(statuses.contains(&status), "{end}");
    next.line();
    assert_eq!(next.line(), "fine");
    // It is the same slot.
    assert!(!pool.log().contains("ended by signal"), "{}", pool.log());
}

cases! {
    assert_frees_its_slot;
    a_handler_that_fails_frees_its_slot: "exit 3", &[768];
    // With 128 if a core was written.
    a_handler_that_crashes_frees_its_slot: "kill -SEGV $$", &[11, 11 + 128];
    a_handler_that_kills_itself_frees_its_slot: "kill -KILL $$", &[9];
}

#[test]
fn a_handler_that_is_killed_from_outside_frees_its_slot() {
    let (acceptor, mut pool) = start(&["-v"], 1, ECHO);
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let client = acceptor.client();
        let pid = client.pid();
        kill(pid, signal).unwrap();
        assert_eq!(client.rest_or_reset(), "");
        pool.line(&format!("end {pid} status {}", signal as i32));
    }
    acceptor.client().pid();
}

#[test]
fn a_handler_that_leaves_a_background_process_frees_its_slot() {
    // The process in the background has its streams elsewhere, and outlives its parent.
    let text = "sleep 100 </dev/null >/dev/null 2>&1 & echo $!";
    let (acceptor, _pool) = start(&[], 1, sh_c(text));
    for _ in 0..3 {
        let client = acceptor.client();
        let background = client.pid();
        assert_eq!(client.rest_or_reset(), "");
        assert!(is_alive(background));
        kill(background, Signal::SIGKILL).unwrap();
    }
}

// Time limits.

#[test]
fn timeout_ends_a_handler_with_its_children() {
    let text = "sleep 100 & echo $$; echo $!; wait";
    let (acceptor, mut pool) = start(&["-v", "--timeout", "0.3"], 1, sh_c(text));
    for _ in 0..2 {
        let client = acceptor.client();
        let (handler, child) = (client.pid(), client.pid());
        assert_eq!(client.rest_or_reset(), "");
        pool.line(&format!("end {handler} status {}", Signal::SIGTERM as i32));
        until_gone(child);
    }
}

/// Expects that `--timeout` ends a handler that does `first` by `signal`, after at least `time` ms.
#[track_caller]
fn assert_timeout_ends(first: &str, signal: Signal, time: u64) {
    let text = format!("{first}; exec sleep 100");
    let (acceptor, mut pool) = start(&["-v", "--timeout", "0.3"], 1, sh_c(&text));
    let start = Instant::now();
    let client = acceptor.client();
    let handler = client.pid();
    assert_eq!(client.rest_or_reset(), "");
    pool.line(&format!("end {handler} status {}", signal as i32));
    assert!(start.elapsed() >= Duration::from_millis(time));
}

cases! {
    assert_timeout_ends;
    timeout_ends_a_handler_that_is_stopped: "echo $$; kill -STOP $$", Signal::SIGTERM, 300;
    timeout_kills_a_handler_that_ignores_term_5_seconds_later:
        "trap '' TERM; echo $$", Signal::SIGKILL, 5300;
}

#[test]
fn timeout_kills_a_child_that_ignores_term_also_when_its_parent_is_gone() {
    // The shell dies of TERM; what it left in its group holds the connection.
    let text = "(trap '' TERM; exec sleep 100) & echo $$; echo $!; wait";
    let (acceptor, _pool) = start(&["--timeout", "0.3"], 1, sh_c(text));
    let client = acceptor.client();
    let (handler, child) = (client.pid(), client.pid());
    until_gone(handler);
    assert!(is_alive(child));
    assert_eq!(client.rest_or_reset(), "");
    until_gone(child);
    // The slot is free again.
    killpg(acceptor.client().pid(), Signal::SIGKILL).unwrap();
}

// Stopping.

#[test]
fn a_stop_ends_waiting_slots_at_once_and_lets_running_handlers_finish() {
    for signal in STOPS {
        let (acceptor, mut pool) = start(&[], 4, ECHO);
        let client = acceptor.client();
        let handler = client.pid();
        let slot = parent_of(handler);
        pool.signal(signal);
        until("the end of the other slots", || pool.children() == [slot]);
        // What comes now waits for somebody else.
        let later = acceptor.client();
        client.expect_served();
        client.finish();
        pool.expect_exit(0);
        later.expect_waiting();
        let _next = pool_on(&acceptor, &[], 1, ECHO);
        later.pid();
    }
}

#[test]
fn a_terminals_interrupt_ends_a_pool_and_not_its_handlers() {
    let (acceptor, mut pool) = start(&[], 4, ECHO);
    let client = acceptor.client();
    client.pid();
    pool.signal_group(Signal::SIGINT);
    pool.until_size(1);
    client.expect_served();
    client.finish();
    pool.expect_exit(0);
}

#[test]
fn an_interrupt_that_was_ignored_when_a_pool_started_does_not_stop_it() {
    let acceptor = Fdaccept::bound().start();
    let text = "trap '' INT; exec fdpool --connect \"$NAME\" 2 -- cat";
    let mut pool = Pool::of(sh(text).env("NAME", acceptor.name()));
    pool.until_size(2);
    pool.until_idle();
    pool.signal_group(Signal::SIGINT);
    // A pool that stops starts no slots.
    pool.signal(Signal::SIGUSR1);
    pool.until_size(3);
    assert_eq!(exchange(acceptor.port, b"word"), b"word");
    pool.stop();
}

#[test]
fn a_stop_reaches_slots_that_are_stopped() {
    // Nothing but the slots' own end is to end this.
    let (_acceptor, mut pool) = start(&["--grace", "100000"], 2, ECHO);
    pool.until_idle();
    for slot in pool.children() {
        freeze(slot);
    }
    pool.stop();
}

#[test]
fn a_stop_gives_handlers_their_grace_and_then_term() {
    let acceptor = Fdaccept::bound().start();
    let text = "trap 'echo bye; exit 0' TERM; echo $$; \
                for i in 1 2 3 4 5 6 7 8 9 10; do sleep 10 & wait $!; done";
    let mut pool = pool_on(&acceptor, &["--grace", "0.3"], 2, sh_c(text));
    let client = acceptor.client();
    client.pid();
    let start = Instant::now();
    pool.term();
    assert_eq!(client.rest_or_reset(), "bye\n");
    assert!(start.elapsed() >= Duration::from_millis(300));
    pool.expect_exit(0);
}

#[test]
fn a_stop_kills_what_ignores_term_with_its_group() {
    let text = "trap '' TERM; sleep 100 & echo $$; echo $!; wait; sleep 100";
    let (acceptor, mut pool) = start(&["--grace", "0.3"], 2, sh_c(text));
    let client = acceptor.client();
    let (handler, child) = (client.pid(), client.pid());
    pool.term();
    assert_eq!(client.rest_or_reset(), "");
    pool.expect_exit(0);
    until("the end of both", || !is_alive(handler) && !is_alive(child));
}

#[test]
fn a_second_signal_ends_handlers_at_once() {
    for first in STOPS {
        let text = "trap '' TERM; sleep 100 & echo $$; echo $!; wait; sleep 100";
        let (acceptor, mut pool) = start(&["--grace", "100000"], 2, sh_c(text));
        let client = acceptor.client();
        let (handler, child) = (client.pid(), client.pid());
        pool.signal(first);
        pool.until_size(1);
        pool.term();
        assert_eq!(client.rest_or_reset(), "");
        pool.expect_exit(0);
        until("the end of both", || !is_alive(handler) && !is_alive(child));
    }
}

/// Waits until TERM stops a pool, and does not end it at once.
#[track_caller]
fn until_stoppable(pool: &Pool) {
    until("its signals to be taken over", || {
        has_signal(pool.pid(), "SigBlk", Signal::SIGTERM)
    });
}

#[test]
fn a_stop_without_connections_ends_at_once() {
    let acceptor = Fdaccept::bound().start();
    for signal in STOPS {
        let mut pool = Pool::on(&acceptor).slots(2, ECHO).start();
        until_stoppable(&pool);
        pool.signal(signal);
        pool.expect_exit(0);
    }
}

#[test]
fn no_connection_is_taken_and_dropped_by_a_stop() {
    let acceptor = Fdaccept::bound().start();
    let mut pool = Pool::on(&acceptor).slots(3, ["cat"]).start();
    // What each client has under way at the end is served by the last pool.
    under_load(acceptor.port, 0, |tally| {
        let mut random = Random(1);
        for _ in 0..60 {
            tally.wait();
            random.pause(20_000);
            let next = Pool::on(&acceptor).slots(3, ["cat"]).start();
            until_stoppable(&pool);
            pool.stop();
            pool = next;
        }
        pool
    });
}

// Size.

#[test]
fn ttin_and_usr1_make_one_slot_more() {
    let (acceptor, mut pool) = start(&["-v"], 1, ECHO);
    pool.line("status: 0/1");
    pool.signal(Signal::SIGTTIN);
    assert_eq!(pool.line("status: "), "fdpool: status: 0/2");
    pool.signal(Signal::SIGUSR1);
    assert_eq!(pool.line("status: "), "fdpool: status: 0/3");
    let clients: Vec<_> = (0..3).map(|_| acceptor.client()).collect();
    for client in &clients {
        client.pid();
    }
    let fourth = acceptor.client();
    clients.iter().for_each(Client::expect_served);
    fourth.expect_waiting();
}

#[test]
fn ttou_makes_one_slot_less_an_idle_one_first() {
    let (acceptor, mut pool) = start(&["-v"], 3, ECHO);
    let client = acceptor.client();
    let slot = parent_of(client.pid());
    pool.line("pid ");
    for size in [2, 1] {
        pool.signal(Signal::SIGTTOU);
        assert_eq!(pool.line("status: "), format!("fdpool: status: 1/{size}"));
    }
    until("one slot", || pool.children() == [slot]);
    client.expect_served();
}

#[test]
fn a_busy_slot_that_is_to_go_finishes_first() {
    let (acceptor, mut pool) = start(&["-v"], 2, ECHO);
    let mut clients = [acceptor.client(), acceptor.client()];
    let slots = [parent_of(clients[0].pid()), parent_of(clients[1].pid())];
    pool.line("pid ");
    pool.line("pid ");
    pool.signal(Signal::SIGTTOU);
    assert_eq!(pool.line("status: "), "fdpool: status: 2/1");
    let third = acceptor.client();
    clients.iter().for_each(Client::expect_served);
    // Of two that are busy the older one goes, whichever client it has.
    if slots[0] > slots[1] {
        clients.reverse();
    }
    for client in clients {
        third.expect_waiting();
        client.finish();
    }
    // One of the two is left.
    let left = parent_of(third.pid());
    assert!(slots.contains(&left));
    until("one slot", || pool.children() == [left]);
    third.expect_served();
}

#[test]
fn a_busy_slot_that_is_to_go_keeps_its_place_until_it_has_gone() {
    let (acceptor, mut pool) = start(&["-v"], 2, ECHO);
    let clients = [acceptor.client(), acceptor.client()];
    let slots = [parent_of(clients[0].pid()), parent_of(clients[1].pid())];
    for _ in 0..2 {
        pool.line("pid ");
    }
    // Each line of a later round comes after what the pool did in the round before.
    for _ in 0..3 {
        for (signal, status) in [(Signal::SIGTTOU, "2/1"), (Signal::SIGTTIN, "2/2")] {
            pool.signal(signal);
            assert_eq!(pool.line("status: "), format!("fdpool: status: {status}"));
        }
    }
    let third = acceptor.client();
    clients.iter().for_each(Client::expect_served);
    assert_eq!(BTreeSet::from(slots), pool.children().into_iter().collect());
    third.expect_waiting();
    drop(clients);
    third.pid();
    third.expect_served();
    pool.until_size(2);
}

#[test]
fn a_pool_never_has_less_than_one_slot() {
    let (acceptor, mut pool) = start(&["-v"], 2, ECHO);
    pool.line("status: 0/2");
    for _ in 0..3 {
        pool.signal(Signal::SIGTTOU);
        assert_eq!(pool.line("status: "), "fdpool: status: 0/1");
    }
    pool.until_size(1);
    acceptor.client().pid();
}

#[test]
fn a_pool_that_was_made_smaller_and_larger_again_has_its_slots() {
    let (acceptor, mut pool) = start(&["-v"], 1, ECHO);
    pool.line("status: 0/1");
    for round in 0..30 {
        pool.signal(Signal::SIGTTIN);
        assert_eq!(pool.line("status: "), "fdpool: status: 0/2", "{round}");
        pool.signal(Signal::SIGTTOU);
        assert_eq!(pool.line("status: "), "fdpool: status: 0/1", "{round}");
    }
    pool.until_size(1);
    pool.until_idle();
    assert_eq!(pool.children().len(), 1);
    acceptor.client().pid();
}

// Slots and the parent that die.

#[test]
fn a_slot_that_dies_is_replaced() {
    let (acceptor, mut pool) = start(&[], 2, ECHO);
    pool.until_idle();
    for signal in [Signal::SIGKILL, Signal::SIGABRT] {
        let before = pool.children();
        kill(before[0], signal).unwrap();
        pool.line(&format!("slot {} was ended by signal", before[0]));
        pool.until_size(2);
        assert!(!pool.children().contains(&before[0]));
    }
    let clients = [acceptor.client(), acceptor.client()];
    for client in &clients {
        client.pid();
    }
}

#[test]
fn a_slot_that_is_told_to_end_is_replaced() {
    let (_acceptor, pool) = start(&[], 2, ECHO);
    pool.until_idle();
    let slot = pool.children()[0];
    kill(slot, Signal::SIGTERM).unwrap();
    pool.until_replaced(&[slot], 2);
}

#[test]
fn a_handler_outlives_its_slot_which_is_replaced() {
    let (acceptor, pool) = start(&[], 1, ECHO);
    let client = acceptor.client();
    let slot = parent_of(client.pid());
    kill(slot, Signal::SIGKILL).unwrap();
    pool.until_replaced(&[slot], 1);
    acceptor.client().pid();
    client.expect_served();
    client.finish();
}

#[test]
fn a_busy_slot_that_is_told_to_end_finishes_first() {
    let (acceptor, pool) = start(&[], 1, ECHO);
    let client = acceptor.client();
    let slot = parent_of(client.pid());
    kill(slot, Signal::SIGTERM).unwrap();
    let next = acceptor.client();
    client.expect_served();
    assert_eq!(pool.children(), [slot]);
    client.finish();
    assert_ne!(parent_of(next.pid()), slot);
}

#[test]
fn idle_slots_that_are_stopped_leave_connections_to_the_others() {
    let (acceptor, pool) = start(&[], 4, ["cat"]);
    pool.until_idle();
    let slots = pool.children();
    for slot in &slots[..3] {
        freeze(*slot);
    }
    for number in 0..20 {
        let text = format!("{number}\n").into_bytes();
        assert_eq!(exchange(acceptor.port, &text), text);
    }
    for slot in &slots[..3] {
        assert_eq!(state(*slot), Some('T'));
        thaw(*slot);
    }
    assert_eq!(pool.children(), slots);
}

#[test]
fn when_the_parent_is_killed_waiting_slots_end_and_running_handlers_finish() {
    let (acceptor, mut pool) = start(&[], 3, ECHO);
    let client = acceptor.client();
    let handler = client.pid();
    let busy = parent_of(handler);
    let slots = pool.children();
    pool.slay();
    let is_busy = |slot: &&Pid| **slot == busy;
    for slot in slots.iter().filter(|slot| !is_busy(slot)) {
        until_gone(*slot);
    }
    // It is no slot any more that takes the next one.
    let next = acceptor.client();
    client.expect_served();
    client.finish();
    until_gone(busy);
    assert!(!is_alive(handler));
    next.expect_waiting();
    let _pool = pool_on(&acceptor, &[], 1, ECHO);
    next.pid();
}

// The log.

#[test]
fn verbose_logs_each_connection_in_the_words_of_tcpserver() {
    let text = "echo $$; read line; exit 3";
    let chain = ["fdpool", "-v", "4", "--", "sh", "-c", text];
    let mut process = Fdaccept::chain(chain).arg("-v").start();
    let client = process.client();
    let pid = client.pid();
    process.line(&format!("pid {pid} from"));
    client.finish();
    process.line("status: 0/4");
    let log = process.stop();
    let accepted = log.lines().find_map(|line| {
        let listener = format!(" on 127.0.0.1:{port}", port = process.port);
        port_told(line, "fdaccept: accepted 127.0.0.1", &listener)
    });
    let (server, client) = (process.port, accepted.expect(&log));
    let lines = besides_counters(&log);
    let expected = [
        "fdpool: status: 0/4".to_owned(),
        "fdpool: status: 1/4".to_owned(),
        format!("fdpool: pid {pid} from 127.0.0.1"),
        format!("fdpool: ok {pid} :127.0.0.1:{server} :127.0.0.1::{client}"),
        format!("fdpool: end {pid} status 768"),
        "fdpool: status: 0/4".to_owned(),
    ];
    let of_pool = lines.iter().filter(|line| line.starts_with("fdpool: "));
    assert!(of_pool.eq(&expected), "{log}");
}

#[test]
fn the_words_are_those_that_tcpserver_uses() {
    if peer("tcpserver").is_none() {
        return;
    }
    // It does not say which port it got, except on standard output.
    let text = "exec tcpserver -v -1 -c 4 -H -R -l '' 127.0.0.1 0 sh -c 'exit 3'";
    let mut tcpserver = sh(text).stdout(std::process::Stdio::piped()).start();
    let mut port = String::new();
    let mut stdout = tcpserver.child().stdout.take().unwrap();
    let mut byte = [0];
    while stdout.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        port.push(byte[0].into());
    }
    let client = connect(port.parse().unwrap());
    let from = client.local_addr().unwrap().port();
    drop(client);
    tcpserver.line("end ");
    tcpserver.line("status: 0/4");
    let log = tcpserver.log();
    let end = log.lines().find(|line| line.contains("end ")).unwrap();
    let pid = end.split(' ').nth(2).unwrap();
    for line in [
        "status: 0/4".to_owned(),
        "status: 1/4".to_owned(),
        format!("pid {pid} from 127.0.0.1"),
        format!("ok {pid} :127.0.0.1:{port} :127.0.0.1::{from}"),
        format!("end {pid} status 768"),
    ] {
        let line = format!("tcpserver: {line}");
        assert!(log.lines().any(|logged| logged == line), "{line}: {log}");
    }
}

#[test]
fn nothing_is_logged_of_a_connection_by_default() {
    let acceptor = Fdaccept::bound().start();
    for option in [&[][..], &["-q"]] {
        let mut pool = Pool::on(&acceptor).args(option).slots(2, ["cat"]).full();
        assert_eq!(exchange(acceptor.port, b"word"), b"word");
        assert_eq!(pool.stop(), "");
    }
}

#[test]
fn quiet_logs_no_notices() {
    let (_acceptor, mut pool) = start(&["-q"], 1, ECHO);
    pool.until_idle();
    let slot = pool.children()[0];
    kill(slot, Signal::SIGKILL).unwrap();
    pool.until_replaced(&[slot], 1);
    assert_eq!(pool.stop(), "");
}

#[test]
fn a_status_is_logged_though_the_pool_was_started_with_children_ignored() {
    let acceptor = Fdaccept::bound().start();
    let text = "trap '' CHLD; exec fdpool -v --connect \"$NAME\" 1 -- sh -c 'exit 3'";
    let mut pool = Pool::of(sh(text).env("NAME", acceptor.name()));
    assert_eq!(exchange(acceptor.port, b""), b"");
    let end = pool.line(": end ");
    assert!(end.ends_with(" status 768"), "{end}");
}

// The command.

#[test]
fn a_connection_waits_for_a_command_that_vanished_while_the_pool_ran() {
    for option in ["-v", "-q"] {
        let acceptor = Fdaccept::bound().start();
        let (handler, away) = (acceptor.names.file("handler"), acceptor.names.file("away"));
        executable(&handler, "#!/bin/sh\nexec cat\n");
        let mut pool = pool_on(&acceptor, &[option], 1, [&handler]);
        assert_eq!(exchange(acceptor.port, b"before"), b"before");
        std::fs::rename(&handler, &away).unwrap();
        let client = acceptor.client();
        client.send("after\n");
        let line = pool.line("waits");
        let words = [
            "fdpool: ",
            handler.to_str().unwrap(),
            "No such file",
            "the connection from 127.0.0.1 waits",
        ];
        assert!(words.iter().all(|word| line.contains(word)), "{line}");
        client.expect_waiting();
        std::fs::rename(&away, &handler).unwrap();
        assert_eq!(client.line(), "after");
        assert_eq!(pool.log().matches("waits").count(), 1);
    }
}

#[test]
fn a_slot_that_waits_for_its_command_uses_no_processor_time() {
    let acceptor = Fdaccept::bound().start();
    let handler = acceptor.names.file("handler");
    executable(&handler, "#!/bin/sh\nexec cat\n");
    let mut pool = pool_on(&acceptor, &["--grace", "0"], 1, [&handler]);
    std::fs::remove_file(&handler).unwrap();
    let _client = acceptor.client();
    pool.line("waits");
    are_idle(&pool.members(), Duration::from_millis(80));
    pool.stop();
}

#[test]
fn a_stop_with_grace_drops_a_connection_whose_command_is_gone_and_says_so() {
    let acceptor = Fdaccept::bound().start();
    let handler = acceptor.names.file("handler");
    executable(&handler, "#!/bin/sh\nexec cat\n");
    let mut pool = pool_on(&acceptor, &["--grace", "0.3"], 1, [&handler]);
    std::fs::remove_file(&handler).unwrap();
    let client = acceptor.client();
    pool.line("waits");
    pool.term();
    assert_eq!(client.rest_or_reset(), "");
    let log = pool.expect_end(0);
    let said = "fdpool: the connection from 127.0.0.1 is dropped";
    assert!(log.lines().any(|line| line == said), "{log}");
}

#[test]
fn a_pool_that_shrinks_after_a_slot_failed_is_idle() {
    let prlimit = needs!(peer("prlimit"));
    let queue = Queue::new();
    let mut pool = Pool::on(&queue).slots(2, ["cat"]).full();
    for slot in pool.members() {
        limit(&prlimit, slot, "3:3");
    }
    let _client = queue.client();
    pool.line("cannot receive a connection: Too many open files");
    pool.signal(Signal::SIGTTOU);
    pool.until_size(1);
    // The pause after the failure ends in the first second.
    let idle = Duration::from_millis(80);
    are_idle(&[pool.pid()], idle);
    are_idle(&[pool.pid()], idle);
}
