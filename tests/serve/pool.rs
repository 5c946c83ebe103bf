//! A pool: its slots, its signals, its log.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::{self, *};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;

/// A handler that tells its process id, and then gives back what it gets until its client ends.
const ECHO: [&str; 3] = ["sh", "-c", "echo $$; exec cat"];

/// fdaccept with a named queue, for pools that come and go.
struct Acceptor {
    folder: TempDir,
    _process: Process,
    port: u16,
}

impl Acceptor {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = program("fdaccept");
        command.arg("--bind").arg(folder.path().join("queue"));
        let mut process = Process::start(command.arg("127.0.0.1:0"));
        let port = process.port();
        Self {
            folder,
            _process: process,
            port,
        }
    }

    fn name(&self) -> PathBuf {
        self.folder.path().join("queue")
    }

    /// `fdpool --connect NAME OPTIONS N -- HANDLER`, not started yet.
    fn pool(&self, arguments: &[&str], handler: &[&str]) -> Command {
        let mut command = program("fdpool");
        command.arg("--connect").arg(self.name());
        command.args(arguments).arg("--").args(handler);
        command
    }

    /// The same, once it has as many slots as it is to have.
    fn start_pool(&self, arguments: &[&str], handler: &[&str]) -> Process {
        let pool = Process::start(&mut self.pool(arguments, handler));
        let size = arguments.last().unwrap().parse().unwrap();
        until_slots(&pool, size);
        pool
    }

    fn client(&self) -> Client {
        Client(support::connect(self.port))
    }
}

fn until_slots(pool: &Process, count: usize) {
    let pid = pool.pid();
    until(&format!("{count} slots"), || children(pid).len() == count);
}

struct Client(TcpStream);

impl Client {
    fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).unwrap();
    }

    /// The next line of the handler.
    fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        while self.0.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    /// The process id that the handler tells.
    fn pid(&mut self) -> Pid {
        Pid::from_raw(self.line().parse().unwrap())
    }

    /// That the handler still answers.
    #[track_caller]
    fn assert_is_served(&mut self) {
        self.send("ping\n");
        assert_eq!(self.line(), "ping");
    }

    /// Everything until the end; also what ended by a reset has ended.
    fn rest(mut self) -> String {
        let mut rest = Vec::new();
        let _ = self.0.read_to_end(&mut rest);
        String::from_utf8(rest).unwrap()
    }

    /// Shuts the sending side, so that the handler ends, and waits for that.
    fn finish(self) {
        self.0.shutdown(Shutdown::Write).unwrap();
        assert_eq!(self.rest(), "");
    }

    fn is_answered(&self) -> bool {
        support::is_answered(&self.0)
    }
}

/// Whether a slot waits for a connection: it watches for TERM, sleeps, and has no handler.
fn is_waiting(slot: Pid) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{slot}/status")).unwrap_or_default();
    let caught = text.lines().find_map(|line| line.strip_prefix("SigCgt:\t"));
    let caught = caught.and_then(|set| u64::from_str_radix(set, 16).ok());
    caught.is_some_and(|set| set & (1 << (Signal::SIGTERM as i32 - 1)) != 0)
        && state(slot) == Some('S')
        && children(slot).is_empty()
}

fn until_waiting(pool: &Process) {
    let pid = pool.pid();
    until("idle slots", || children(pid).into_iter().all(is_waiting));
}

/// The signals that stop a pool.
const STOPS: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];

/// The slot that a handler belongs to.
fn slot_of(handler: Pid) -> Pid {
    let stat = std::fs::read_to_string(format!("/proc/{handler}/stat")).unwrap();
    let parent = stat.rsplit_once(") ").unwrap().1.split(' ').nth(1);
    Pid::from_raw(parent.unwrap().parse().unwrap())
}

// Connections.

#[test]
fn connections_beyond_the_slots_wait_and_are_served_first_come_first_served() {
    let acceptor = Acceptor::start();
    let order = acceptor.folder.path().join("order");
    let text = "echo here; read word; echo \"$word\" >>\"$ORDER\"; echo \"$word\"";
    let mut command = acceptor.pool(&["1"], &["sh", "-c", text]);
    let _pool = Process::start(command.env("ORDER", &order));
    let mut first = acceptor.client();
    assert_eq!(first.line(), "here");
    let later: Vec<_> = (1..=20)
        .map(|number| {
            let mut client = acceptor.client();
            client.send(&format!("{number}\n"));
            (number, client)
        })
        .collect();
    assert!(!later.iter().any(|(_, client)| client.is_answered()));
    first.send("0\n");
    assert_eq!(first.rest(), "0\n");
    for (number, client) in later {
        assert_eq!(client.rest(), format!("here\n{number}\n"));
    }
    let expected: String = (0..=20).map(|number| format!("{number}\n")).collect();
    assert_eq!(std::fs::read_to_string(order).unwrap(), expected);
}

#[test]
fn each_slot_serves_one_connection_at_a_time() {
    let acceptor = Acceptor::start();
    let _pool = acceptor.start_pool(&["3"], &ECHO);
    let mut clients: Vec<_> = (0..3).map(|_| acceptor.client()).collect();
    for client in &mut clients {
        client.pid();
    }
    let mut fourth = acceptor.client();
    for client in &mut clients {
        client.assert_is_served();
    }
    assert!(!fourth.is_answered());
    clients.pop().unwrap().finish();
    fourth.pid();
    for client in &mut clients {
        client.assert_is_served();
    }
}

/// One slot: what comes after a handler that ends as `text` ends is served, and the log says
/// `status`.
#[track_caller]
fn assert_frees_its_slot(text: &str, statuses: &[i32]) {
    let acceptor = Acceptor::start();
    let text = format!("echo $$; read word; if [ \"$word\" = go ]; then {text}; fi; echo fine");
    let mut pool = acceptor.start_pool(&["-v", "1"], &["sh", "-c", &text]);
    let mut client = acceptor.client();
    let pid = client.pid();
    let mut next = acceptor.client();
    next.send("on\n");
    client.send("go\n");
    client.rest();
    let end = pool.line(&format!("end {pid} "));
    let status = end.rsplit_once(' ').unwrap().1.parse().unwrap();
    assert!(statuses.contains(&status), "{end}");
    next.line();
    assert_eq!(next.line(), "fine");
    // It is the same slot.
    assert!(!pool.log().contains("ended by signal"), "{}", pool.log());
}

#[test]
fn a_handler_that_fails_frees_its_slot() {
    assert_frees_its_slot("exit 3", &[768]);
}

#[test]
fn a_handler_that_crashes_frees_its_slot() {
    // With 128 if a core was written.
    assert_frees_its_slot("kill -SEGV $$", &[11, 11 + 128]);
}

#[test]
fn a_handler_that_kills_itself_frees_its_slot() {
    assert_frees_its_slot("kill -KILL $$", &[9]);
}

#[test]
fn a_handler_that_is_killed_from_outside_frees_its_slot() {
    let acceptor = Acceptor::start();
    let mut pool = acceptor.start_pool(&["-v", "1"], &ECHO);
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let mut client = acceptor.client();
        let pid = client.pid();
        kill(pid, signal).unwrap();
        assert_eq!(client.rest(), "");
        pool.line(&format!("end {pid} status {}", signal as i32));
    }
    acceptor.client().pid();
}

#[test]
fn a_handler_that_leaves_a_background_process_frees_its_slot() {
    let acceptor = Acceptor::start();
    // The process in the background has its streams elsewhere, and outlives its parent.
    let text = "sleep 100 </dev/null >/dev/null 2>&1 & echo $!";
    let _pool = acceptor.start_pool(&["1"], &["sh", "-c", text]);
    for _ in 0..3 {
        let mut client = acceptor.client();
        let background = client.pid();
        assert_eq!(client.rest(), "");
        assert!(is_alive(background));
        kill(background, Signal::SIGKILL).unwrap();
    }
}

// Time limits.

#[test]
fn timeout_ends_a_handler_with_its_children() {
    let acceptor = Acceptor::start();
    let text = "sleep 100 & echo $$; echo $!; wait";
    let mut pool = acceptor.start_pool(&["-v", "--timeout", "0.3", "1"], &["sh", "-c", text]);
    for _ in 0..2 {
        let mut client = acceptor.client();
        let (handler, child) = (client.pid(), client.pid());
        assert_eq!(client.rest(), "");
        pool.line(&format!("end {handler} status {}", Signal::SIGTERM as i32));
        until("the end of the child", || !is_alive(child));
    }
}

#[test]
fn timeout_ends_a_handler_that_is_stopped() {
    let acceptor = Acceptor::start();
    let text = "echo $$; kill -STOP $$; exec sleep 100";
    let mut pool = acceptor.start_pool(&["-v", "--timeout", "0.3", "1"], &["sh", "-c", text]);
    let mut client = acceptor.client();
    let handler = client.pid();
    assert_eq!(client.rest(), "");
    pool.line(&format!("end {handler} status {}", Signal::SIGTERM as i32));
}

#[test]
fn timeout_kills_a_handler_that_ignores_term_5_seconds_later() {
    let acceptor = Acceptor::start();
    let text = "trap '' TERM; echo $$; exec sleep 100";
    let mut pool = acceptor.start_pool(&["-v", "--timeout", "0.3", "1"], &["sh", "-c", text]);
    let start = Instant::now();
    let mut client = acceptor.client();
    let handler = client.pid();
    assert_eq!(client.rest(), "");
    pool.line(&format!("end {handler} status {}", Signal::SIGKILL as i32));
    assert!(start.elapsed() >= Duration::from_millis(5300));
}

#[test]
fn timeout_kills_a_child_that_ignores_term_also_when_its_parent_is_gone() {
    let acceptor = Acceptor::start();
    // The shell dies of TERM; what it left in its group holds the connection.
    let text = "(trap '' TERM; exec sleep 100) & echo $$; echo $!; wait";
    let _pool = acceptor.start_pool(&["--timeout", "0.3", "1"], &["sh", "-c", text]);
    let mut client = acceptor.client();
    let (handler, child) = (client.pid(), client.pid());
    until("the end of the handler", || !is_alive(handler));
    assert!(is_alive(child));
    assert_eq!(client.rest(), "");
    until("the end of the child", || !is_alive(child));
    // The slot is free again.
    killpg(acceptor.client().pid(), Signal::SIGKILL).unwrap();
}

// Stopping.

#[test]
fn a_stop_ends_waiting_slots_at_once_and_lets_running_handlers_finish() {
    for signal in STOPS {
        let acceptor = Acceptor::start();
        let mut pool = acceptor.start_pool(&["4"], &ECHO);
        let mut client = acceptor.client();
        let handler = client.pid();
        let slot = slot_of(handler);
        pool.signal(signal);
        until("the end of the other slots", || {
            children(pool.pid()) == [slot]
        });
        // What comes now waits for somebody else.
        let mut later = acceptor.client();
        client.assert_is_served();
        client.finish();
        assert_eq!(pool.wait().code(), Some(0));
        assert!(!later.is_answered());
        let _next = acceptor.start_pool(&["1"], &ECHO);
        later.pid();
    }
}

#[test]
fn a_terminals_interrupt_ends_a_pool_and_not_its_handlers() {
    let acceptor = Acceptor::start();
    let mut pool = acceptor.start_pool(&["4"], &ECHO);
    let mut client = acceptor.client();
    client.pid();
    pool.signal_group(Signal::SIGINT);
    until_slots(&pool, 1);
    client.assert_is_served();
    client.finish();
    assert_eq!(pool.wait().code(), Some(0));
}

#[test]
fn an_interrupt_that_was_ignored_when_a_pool_started_does_not_stop_it() {
    let acceptor = Acceptor::start();
    let text = "trap '' INT; exec fdpool --connect \"$NAME\" 2 -- cat";
    let mut command = script("sh", text);
    let mut pool = Process::start(command.env("NAME", acceptor.name()));
    until_slots(&pool, 2);
    until_waiting(&pool);
    pool.signal_group(Signal::SIGINT);
    // A pool that stops starts no slots.
    pool.signal(Signal::SIGUSR1);
    until_slots(&pool, 3);
    assert_eq!(exchange(acceptor.port, b"word"), b"word");
    pool.signal(Signal::SIGTERM);
    assert_eq!(pool.wait().code(), Some(0));
}

#[test]
fn a_stop_reaches_slots_that_are_stopped() {
    let acceptor = Acceptor::start();
    // Nothing but the slots' own end is to end this.
    let mut pool = acceptor.start_pool(&["--grace", "100000", "2"], &ECHO);
    until_waiting(&pool);
    for slot in children(pool.pid()) {
        kill(slot, Signal::SIGSTOP).unwrap();
        until("it to stop", || state(slot) == Some('T'));
    }
    pool.signal(Signal::SIGTERM);
    assert_eq!(pool.wait().code(), Some(0));
}

#[test]
fn a_stop_gives_handlers_their_grace_and_then_term() {
    let acceptor = Acceptor::start();
    let text = "trap 'echo bye; exit 0' TERM; echo $$; \
                for i in 1 2 3 4 5 6 7 8 9 10; do sleep 10 & wait $!; done";
    let mut pool = acceptor.start_pool(&["--grace", "0.3", "2"], &["sh", "-c", text]);
    let mut client = acceptor.client();
    client.pid();
    let start = Instant::now();
    pool.signal(Signal::SIGTERM);
    assert_eq!(client.rest(), "bye\n");
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert_eq!(pool.wait().code(), Some(0));
}

#[test]
fn a_stop_kills_what_ignores_term_with_its_group() {
    let acceptor = Acceptor::start();
    let text = "trap '' TERM; sleep 100 & echo $$; echo $!; wait; sleep 100";
    let mut pool = acceptor.start_pool(&["--grace", "0.3", "2"], &["sh", "-c", text]);
    let mut client = acceptor.client();
    let (handler, child) = (client.pid(), client.pid());
    pool.signal(Signal::SIGTERM);
    assert_eq!(client.rest(), "");
    assert_eq!(pool.wait().code(), Some(0));
    until("the end of both", || !is_alive(handler) && !is_alive(child));
}

#[test]
fn a_second_signal_ends_handlers_at_once() {
    for first in STOPS {
        let acceptor = Acceptor::start();
        let text = "trap '' TERM; sleep 100 & echo $$; echo $!; wait; sleep 100";
        let arguments = ["--grace", "100000", "2"];
        let mut pool = acceptor.start_pool(&arguments, &["sh", "-c", text]);
        let mut client = acceptor.client();
        let (handler, child) = (client.pid(), client.pid());
        pool.signal(first);
        until_slots(&pool, 1);
        pool.signal(Signal::SIGTERM);
        assert_eq!(client.rest(), "");
        assert_eq!(pool.wait().code(), Some(0));
        until("the end of both", || !is_alive(handler) && !is_alive(child));
    }
}

#[test]
fn a_stop_without_connections_ends_at_once() {
    let acceptor = Acceptor::start();
    for signal in STOPS {
        let mut pool = Process::start(&mut acceptor.pool(&["2"], &ECHO));
        until("its signals to be taken over", || {
            let text = std::fs::read_to_string(format!("/proc/{}/status", pool.pid()));
            let text = text.unwrap_or_default();
            let blocked = text.lines().find_map(|line| line.strip_prefix("SigBlk:\t"));
            let blocked = blocked.and_then(|set| u64::from_str_radix(set, 16).ok());
            blocked.is_some_and(|set| set & (1 << (Signal::SIGTERM as i32 - 1)) != 0)
        });
        pool.signal(signal);
        assert_eq!(pool.wait().code(), Some(0));
    }
}

#[test]
fn no_connection_is_taken_and_dropped_by_a_stop() {
    let acceptor = Acceptor::start();
    let port = acceptor.port;
    let done = AtomicBool::new(false);
    let served = AtomicUsize::new(0);
    let mut pool = Process::start(&mut acceptor.pool(&["3"], &["cat"]));
    std::thread::scope(|scope| {
        for client in 0..6 {
            let (done, served) = (&done, &served);
            scope.spawn(move || {
                for number in 0.. {
                    let text = format!("{client} {number}\n").into_bytes();
                    let answer = try_exchange(port, &text);
                    assert_eq!(answer.ok().as_ref(), Some(&text), "{client} {number}");
                    served.fetch_add(1, Ordering::SeqCst);
                    if done.load(Ordering::SeqCst) {
                        return;
                    }
                }
            });
        }
        let mut random = Random(1);
        for _ in 0..60 {
            let before = served.load(Ordering::SeqCst);
            until("a client to be served", || {
                served.load(Ordering::SeqCst) > before
            });
            std::thread::sleep(Duration::from_micros(random.below(20_000)));
            let next = Process::start(&mut acceptor.pool(&["3"], &["cat"]));
            pool.signal(Signal::SIGTERM);
            assert_eq!(pool.wait().code(), Some(0));
            pool = next;
        }
        // What each client still has under way is served by the last pool.
        done.store(true, Ordering::SeqCst);
    });
}

// Size.

#[test]
fn ttin_and_usr1_make_one_slot_more() {
    let acceptor = Acceptor::start();
    let mut pool = acceptor.start_pool(&["-v", "1"], &ECHO);
    pool.line("status: 0/1");
    pool.signal(Signal::SIGTTIN);
    assert_eq!(pool.line("status: "), "fdpool: status: 0/2");
    pool.signal(Signal::SIGUSR1);
    assert_eq!(pool.line("status: "), "fdpool: status: 0/3");
    let mut clients: Vec<_> = (0..3).map(|_| acceptor.client()).collect();
    for client in &mut clients {
        client.pid();
    }
    let fourth = acceptor.client();
    for client in &mut clients {
        client.assert_is_served();
    }
    assert!(!fourth.is_answered());
}

#[test]
fn ttou_makes_one_slot_less_an_idle_one_first() {
    let acceptor = Acceptor::start();
    let mut pool = acceptor.start_pool(&["-v", "3"], &ECHO);
    let mut client = acceptor.client();
    let slot = slot_of(client.pid());
    pool.line("pid ");
    for size in [2, 1] {
        pool.signal(Signal::SIGTTOU);
        assert_eq!(pool.line("status: "), format!("fdpool: status: 1/{size}"));
    }
    until("one slot", || children(pool.pid()) == [slot]);
    client.assert_is_served();
}

#[test]
fn a_busy_slot_that_is_to_go_finishes_first() {
    let acceptor = Acceptor::start();
    let mut pool = acceptor.start_pool(&["-v", "2"], &ECHO);
    let mut clients = [acceptor.client(), acceptor.client()];
    let slots = [slot_of(clients[0].pid()), slot_of(clients[1].pid())];
    pool.line("pid ");
    pool.line("pid ");
    pool.signal(Signal::SIGTTOU);
    assert_eq!(pool.line("status: "), "fdpool: status: 2/1");
    let mut third = acceptor.client();
    for client in &mut clients {
        client.assert_is_served();
    }
    // Of two that are busy the older one goes, whichever client it has.
    if slots[0] > slots[1] {
        clients.reverse();
    }
    for client in clients {
        assert!(!third.is_answered());
        client.finish();
    }
    // One of the two is left.
    let left = slot_of(third.pid());
    assert!(slots.contains(&left));
    until("one slot", || children(pool.pid()) == [left]);
    third.assert_is_served();
}

#[test]
fn a_pool_never_has_less_than_one_slot() {
    let acceptor = Acceptor::start();
    let mut pool = acceptor.start_pool(&["-v", "2"], &ECHO);
    pool.line("status: 0/2");
    for _ in 0..3 {
        pool.signal(Signal::SIGTTOU);
        assert_eq!(pool.line("status: "), "fdpool: status: 0/1");
    }
    until_slots(&pool, 1);
    acceptor.client().pid();
}

#[test]
fn a_pool_that_was_made_smaller_and_larger_again_has_its_slots() {
    let acceptor = Acceptor::start();
    let mut pool = acceptor.start_pool(&["-v", "1"], &ECHO);
    pool.line("status: 0/1");
    for round in 0..30 {
        pool.signal(Signal::SIGTTIN);
        assert_eq!(pool.line("status: "), "fdpool: status: 0/2", "{round}");
        pool.signal(Signal::SIGTTOU);
        assert_eq!(pool.line("status: "), "fdpool: status: 0/1", "{round}");
    }
    until_slots(&pool, 1);
    until_waiting(&pool);
    assert_eq!(children(pool.pid()).len(), 1);
    acceptor.client().pid();
}

// Slots and the parent that die.

#[test]
fn a_slot_that_dies_is_replaced() {
    let acceptor = Acceptor::start();
    let mut pool = acceptor.start_pool(&["2"], &ECHO);
    until_waiting(&pool);
    for signal in [Signal::SIGKILL, Signal::SIGABRT] {
        let before = children(pool.pid());
        kill(before[0], signal).unwrap();
        pool.line(&format!("slot {} was ended by signal", before[0]));
        until_slots(&pool, 2);
        assert!(!children(pool.pid()).contains(&before[0]));
    }
    let mut clients = [acceptor.client(), acceptor.client()];
    for client in &mut clients {
        client.pid();
    }
}

#[test]
fn a_slot_that_is_told_to_end_is_replaced() {
    let acceptor = Acceptor::start();
    let pool = acceptor.start_pool(&["2"], &ECHO);
    until_waiting(&pool);
    let slot = children(pool.pid())[0];
    kill(slot, Signal::SIGTERM).unwrap();
    until("another slot", || {
        let slots = children(pool.pid());
        slots.len() == 2 && !slots.contains(&slot)
    });
}

#[test]
fn a_handler_outlives_its_slot_which_is_replaced() {
    let acceptor = Acceptor::start();
    let pool = acceptor.start_pool(&["1"], &ECHO);
    let mut client = acceptor.client();
    let slot = slot_of(client.pid());
    kill(slot, Signal::SIGKILL).unwrap();
    until("another slot", || {
        let slots = children(pool.pid());
        slots.len() == 1 && !slots.contains(&slot)
    });
    acceptor.client().pid();
    client.assert_is_served();
    client.finish();
}

#[test]
fn a_busy_slot_that_is_told_to_end_finishes_first() {
    let acceptor = Acceptor::start();
    let pool = acceptor.start_pool(&["1"], &ECHO);
    let mut client = acceptor.client();
    let slot = slot_of(client.pid());
    kill(slot, Signal::SIGTERM).unwrap();
    let mut next = acceptor.client();
    client.assert_is_served();
    assert_eq!(children(pool.pid()), [slot]);
    client.finish();
    assert_ne!(slot_of(next.pid()), slot);
}

#[test]
fn idle_slots_that_are_stopped_leave_connections_to_the_others() {
    let acceptor = Acceptor::start();
    let pool = acceptor.start_pool(&["4"], &["cat"]);
    until_waiting(&pool);
    let slots = children(pool.pid());
    for slot in &slots[..3] {
        kill(*slot, Signal::SIGSTOP).unwrap();
        until("it to stop", || state(*slot) == Some('T'));
    }
    for number in 0..20 {
        let text = format!("{number}\n").into_bytes();
        assert_eq!(exchange(acceptor.port, &text), text);
    }
    for slot in &slots[..3] {
        assert_eq!(state(*slot), Some('T'));
        kill(*slot, Signal::SIGCONT).unwrap();
    }
    assert_eq!(children(pool.pid()), slots);
}

#[test]
fn when_the_parent_is_killed_waiting_slots_end_and_running_handlers_finish() {
    let acceptor = Acceptor::start();
    let mut pool = acceptor.start_pool(&["3"], &ECHO);
    let mut client = acceptor.client();
    let handler = client.pid();
    let busy = slot_of(handler);
    let slots = children(pool.pid());
    pool.signal(Signal::SIGKILL);
    assert_eq!(pool.wait().signal(), Some(Signal::SIGKILL as i32));
    let is_busy = |slot: &&Pid| **slot == busy;
    for slot in slots.iter().filter(|slot| !is_busy(slot)) {
        until("the end of a waiting slot", || !is_alive(*slot));
    }
    // It is no slot any more that takes the next one.
    let mut next = acceptor.client();
    client.assert_is_served();
    client.finish();
    until("the end of the last slot", || !is_alive(busy));
    assert!(!is_alive(handler));
    assert!(!next.is_answered());
    let _pool = acceptor.start_pool(&["1"], &ECHO);
    next.pid();
}

// The log.

#[test]
fn verbose_logs_each_connection_in_the_words_of_tcpserver() {
    let mut command = program("fdaccept");
    command.args(["127.0.0.1:0", "--", "fdpool", "-v", "4", "--"]);
    let text = "echo $$; read line; exit 3";
    let mut process = Process::start(command.args(["sh", "-c", text]));
    let mut client = Client(support::connect(process.port()));
    let pid = client.pid();
    process.line(&format!("pid {pid} from"));
    client.finish();
    process.line("status: 0/4");
    process.signal(Signal::SIGTERM);
    let (status, log) = process.finish();
    assert_eq!(status.code(), Some(0));
    let lines = besides_counters(&log);
    let expected = [
        "fdpool: status: 0/4".to_owned(),
        "fdpool: status: 1/4".to_owned(),
        format!("fdpool: pid {pid} from 127.0.0.1"),
        format!("fdpool: end {pid} status 768"),
        "fdpool: status: 0/4".to_owned(),
    ];
    assert_eq!(lines[1..], expected);
}

#[test]
fn the_words_are_those_that_tcpserver_uses() {
    if peer("tcpserver").is_none() {
        return;
    }
    // It does not say which port it got, except on standard output.
    let text = "exec tcpserver -v -1 -c 4 -H -R -l localhost 127.0.0.1 0 sh -c 'exit 3'";
    let mut tcpserver = Process::start(script("sh", text).stdout(std::process::Stdio::piped()));
    let mut port = String::new();
    let mut stdout = tcpserver.child().stdout.take().unwrap();
    let mut byte = [0];
    while stdout.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        port.push(byte[0].into());
    }
    exchange(port.parse().unwrap(), b"");
    tcpserver.line("end ");
    tcpserver.line("status: 0/4");
    let log = tcpserver.log();
    let end = log.lines().find(|line| line.contains("end ")).unwrap();
    let pid = end.split(' ').nth(2).unwrap();
    for line in [
        "status: 0/4".to_owned(),
        "status: 1/4".to_owned(),
        format!("pid {pid} from 127.0.0.1"),
        format!("end {pid} status 768"),
    ] {
        let line = format!("tcpserver: {line}");
        assert!(log.lines().any(|logged| logged == line), "{line}: {log}");
    }
}

#[test]
fn nothing_is_logged_of_a_connection_by_default() {
    let acceptor = Acceptor::start();
    for option in [&["2"][..], &["-q", "2"]] {
        let mut pool = acceptor.start_pool(option, &["cat"]);
        assert_eq!(exchange(acceptor.port, b"word"), b"word");
        pool.signal(Signal::SIGTERM);
        let (status, log) = pool.finish();
        assert_eq!(status.code(), Some(0));
        assert_eq!(log, "");
    }
}

#[test]
fn quiet_logs_no_notices() {
    let acceptor = Acceptor::start();
    let mut pool = acceptor.start_pool(&["-q", "1"], &ECHO);
    until_waiting(&pool);
    let slot = children(pool.pid())[0];
    kill(slot, Signal::SIGKILL).unwrap();
    until("another slot", || {
        let slots = children(pool.pid());
        slots.len() == 1 && !slots.contains(&slot)
    });
    pool.signal(Signal::SIGTERM);
    assert_eq!(pool.finish().1, "");
}

#[test]
fn a_status_is_logged_though_the_pool_was_started_with_children_ignored() {
    let acceptor = Acceptor::start();
    let text = "trap '' CHLD; exec fdpool -v --connect \"$NAME\" 1 -- sh -c 'exit 3'";
    let mut command = script("sh", text);
    let mut pool = Process::start(command.env("NAME", acceptor.name()));
    assert_eq!(exchange(acceptor.port, b""), b"");
    let end = pool.line(": end ");
    assert!(end.ends_with(" status 768"), "{end}");
}

// The command.

#[test]
fn a_connection_waits_for_a_command_that_vanished_while_the_pool_ran() {
    for option in ["-v", "-q"] {
        let acceptor = Acceptor::start();
        let (handler, away) = (
            acceptor.folder.path().join("handler"),
            acceptor.folder.path().join("away"),
        );
        executable(&handler, "#!/bin/sh\nexec cat\n");
        let mut pool = acceptor.start_pool(&[option, "1"], &[handler.to_str().unwrap()]);
        assert_eq!(exchange(acceptor.port, b"before"), b"before");
        std::fs::rename(&handler, &away).unwrap();
        let mut client = acceptor.client();
        client.send("after\n");
        let line = pool.line("waits");
        let words = [
            "fdpool: ",
            handler.to_str().unwrap(),
            "No such file",
            "the connection from 127.0.0.1 waits",
        ];
        assert!(words.iter().all(|word| line.contains(word)), "{line}");
        assert!(!client.is_answered());
        std::fs::rename(&away, &handler).unwrap();
        assert_eq!(client.line(), "after");
        assert_eq!(pool.log().matches("waits").count(), 1);
    }
}

#[test]
fn a_stop_with_grace_drops_a_connection_whose_command_is_gone_and_says_so() {
    let acceptor = Acceptor::start();
    let handler = acceptor.folder.path().join("handler");
    executable(&handler, "#!/bin/sh\nexec cat\n");
    let arguments = ["--grace", "0.3", "1"];
    let mut pool = acceptor.start_pool(&arguments, &[handler.to_str().unwrap()]);
    std::fs::remove_file(&handler).unwrap();
    let client = acceptor.client();
    pool.line("waits");
    pool.signal(Signal::SIGTERM);
    assert_eq!(client.rest(), "");
    let (status, log) = pool.finish();
    assert_eq!(status.code(), Some(0));
    let said = "fdpool: the connection from 127.0.0.1 is dropped";
    assert!(log.lines().any(|line| line == said), "{log}");
}
