//! When descriptors are short, or the queue is full: everybody is served in the end, and nobody
//! burns a processor while waiting.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::support::{self, *};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The command of a chain, stopped before it is a pool of `cat`s.
const STOPPED_POOL: &str = "sh -c 'kill -STOP $$; exec fdpool 4 -- cat'";

/// How many of `wanted` clients can wait: no more than the backlog of a listener holds.
fn crowd_size(wanted: usize) -> usize {
    let maximum = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    // Each client is a descriptor of this process.
    support::raise_limit();
    wanted.min(maximum.trim().parse().unwrap())
}

/// Checks that processes that have nothing to do use no CPU in a second, in which they would use
/// all of one if they did not wait.
#[track_caller]
fn are_idle(processes: &[Pid]) {
    let used = || {
        processes
            .iter()
            .map(|pid| cpu_time(*pid))
            .collect::<Vec<_>>()
    };
    let before = used();
    // Nothing happens meanwhile: there is nothing else to wait for.
    std::thread::sleep(Duration::from_secs(1));
    for (before, after) in before.into_iter().zip(used()) {
        let used = after - before;
        assert!(used < Duration::from_millis(80), "{used:?} in a second");
    }
}

/// Waits until a process has a connection in hand that it cannot pass on: it has had more than
/// `count` descriptors for a while.
#[track_caller]
fn wait_until_full(pid: Pid, count: usize) {
    let mut full = 0;
    until("a full queue", || {
        full = if descriptors(pid).len() > count {
            full + 1
        } else {
            0
        };
        full == 20
    });
}

/// The only child of a process, once it is in this state.
#[track_caller]
fn child_in_state(pid: Pid, wanted: char) -> Pid {
    eventually("the command", || {
        let child = children(pid).pop()?;
        (state(child) == Some(wanted)).then_some(child)
    })
}

fn sh(text: &str) -> Process {
    Process::start(&mut script("sh", text))
}

/// A pool of `cat` that has no shortage of its own, at the queue `q` in a directory.
fn pool_at_q(directory: &Path) -> Process {
    let mut command = program("fdpool");
    command.args(["--connect", "./q", "2", "--", "cat"]);
    Process::start(command.current_dir(directory))
}

/// Sets the limits on descriptors of a running process, as `SOFT:HARD` or `SOFT:`.
fn limit(prlimit: &Path, pid: Pid, limits: &str) {
    let mut command = Command::new(prlimit);
    command.args(["--pid", &pid.to_string()]);
    let status = command.arg(format!("--nofile={limits}")).status().unwrap();
    assert!(status.success());
}

/// Takes away every descriptor that a process does not use yet: none at all is below the soft
/// limit then. Returns what restores it.
fn leave_none(prlimit: &Path, pid: Pid) -> impl Fn() {
    let open = settled(pid);
    let mut free = 0..;
    let is_open = |number: i32| open.iter().any(|(other, _)| *other == number);
    let lowest = free.find(|number| !is_open(*number)).unwrap();
    let (original, _) = limits(pid);
    limit(prlimit, pid, &format!("{lowest}:"));
    move || limit(prlimit, pid, &format!("{original}:"))
}

/// The soft and the hard limit on descriptors of a process.
fn limits(pid: Pid) -> (String, String) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = text.lines().find(|line| line.starts_with("Max open files"));
    let words: Vec<_> = line.unwrap().split_whitespace().collect();
    (words[3].to_owned(), words[4].to_owned())
}

#[test]
fn a_chain_with_few_descriptors_serves_everybody() {
    let mut process = sh("ulimit -n 16; exec fdaccept 127.0.0.1:0 -- fdpool 4 -- cat");
    Crowd::connect(process.port(), crowd_size(100)).expect_served();
    assert!(!process.log().contains("cannot"), "{}", process.log());
}

#[test]
fn a_pipeline_with_few_descriptors_serves_everybody() {
    let mut process = sh("ulimit -n 16; fdaccept 127.0.0.1:0 | fdpool 4 -- cat");
    Crowd::connect(process.port(), crowd_size(100)).expect_served();
    assert!(!process.log().contains("cannot"), "{}", process.log());
}

#[test]
fn a_named_queue_with_few_descriptors_serves_everybody() {
    let dir = tempfile::tempdir().unwrap();
    for text in [
        "fdpool --connect ./q 4 -- cat & exec fdaccept --bind ./q 127.0.0.1:0",
        "fdpool --bind ./q 4 -- cat & exec fdaccept --connect ./q 127.0.0.1:0",
    ] {
        let mut command = script("sh", &format!("ulimit -n 16; {text}"));
        let mut process = Process::start(command.current_dir(&dir));
        Crowd::connect(process.port(), crowd_size(100)).expect_served();
        process.signal_group(Signal::SIGTERM);
        process.wait();
        until("the end of the pool", || !dir.path().join("q").exists());
    }
}

#[test]
fn a_consumer_that_comes_last_finds_a_descriptor_whatever_clients_have() {
    for limit in 22..25 {
        for options in ["--max 4", "--queue 3 --max-per-source 50"] {
            let dir = tempfile::tempdir().unwrap();
            let text = format!("ulimit -n {limit}; exec fdaccept {options} --bind ./q 127.0.0.1:0");
            let mut process = Process::start(script("sh", &text).current_dir(&dir));
            let crowd = Crowd::connect(process.port(), 12);
            let _pool = pool_at_q(dir.path());
            crowd.expect_served();
        }
    }
}

#[test]
fn a_worker_whose_limit_becomes_lower_ends_instead_of_losing_more() {
    let (Some(prlimit), Some(worker)) = (peer("prlimit"), rust_worker()) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let mut command = script("sh", "exec fdaccept --max 9 --bind ./q 127.0.0.1:0");
    let mut process = Process::start(command.current_dir(&dir));
    let port = process.port();
    let mut command = Command::new(worker);
    let mut low = Process::start(command.arg("./q").current_dir(&dir));
    assert_eq!(exchange(port, b"hello"), b"hello");
    limit(&prlimit, low.pid(), "4:");
    // The numbers that were free are not any more, which is found out by the first one.
    let _lost = connect(port);
    let waiting = Crowd::connect(port, 3);
    let (_, log) = low.finish();
    assert!(log.contains("Too many open files"), "{log}");
    let _pool = pool_at_q(dir.path());
    waiting.expect_served();
}

#[test]
fn single_consumers_with_few_descriptors_serve_everybody() {
    let loop_of_fdrecv = "while fdrecv -- cat || [ $? -ne 69 ]; do :; done";
    let mut process = sh(&format!(
        "ulimit -n 16; fdaccept 127.0.0.1:0 | {loop_of_fdrecv}"
    ));
    Crowd::connect(process.port(), crowd_size(30)).expect_served();
}

#[test]
fn fdaccept_waits_while_it_has_no_descriptor_left() {
    let Some(prlimit) = peer("prlimit") else {
        return;
    };
    let mut process = sh("exec fdaccept 127.0.0.1:0 -- fdpool 2 -- cat");
    let port = process.port();
    assert_eq!(exchange(port, b"before"), b"before");
    let pid = process.pid();
    let idle = settled(pid);
    let restore = leave_none(&prlimit, pid);
    let crowd = Crowd::connect(port, 20);
    let line = process.line("cannot accept");
    assert_eq!(
        line,
        "fdaccept: cannot accept: Too many open files; connections wait until it can"
    );
    are_idle(&[pid]);
    assert_eq!(descriptors(pid), idle);
    restore();
    crowd.expect_served();
    // And again, which is not said again so soon.
    let restore = leave_none(&prlimit, pid);
    let crowd = Crowd::connect(port, 20);
    are_idle(&[pid]);
    restore();
    crowd.expect_served();
    assert_eq!(process.log().matches("cannot accept").count(), 1);
}

/// The descriptors of a process that has none of a connection any more.
fn settled(pid: Pid) -> Vec<(i32, String)> {
    let mut last = descriptors(pid);
    let mut same = 0;
    until("no change of descriptors", || {
        let now = descriptors(pid);
        same = if now == last { same + 1 } else { 0 };
        last = now;
        same == 10
    });
    last
}

#[test]
fn fdaccept_without_descriptors_still_can_be_stopped() {
    let Some(prlimit) = peer("prlimit") else {
        return;
    };
    let mut process = sh("exec fdaccept --grace 0.5 127.0.0.1:0 -- fdpool 2 -- cat");
    let port = process.port();
    assert_eq!(exchange(port, b"x"), b"x");
    let _ = leave_none(&prlimit, process.pid());
    let _client = connect(port);
    process.line("cannot accept");
    process.signal(Signal::SIGTERM);
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn a_consumer_at_the_door_waits_while_there_is_no_descriptor() {
    let Some(prlimit) = peer("prlimit") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let mut command = script("sh", "exec fdaccept --bind ./q 127.0.0.1:0");
    let mut process = Process::start(command.current_dir(&dir));
    let port = process.port();
    let pid = process.pid();
    let restore = leave_none(&prlimit, pid);
    let mut command = script("sh", "exec fdpool --connect ./q 2 -- cat");
    let _pool = Process::start(command.current_dir(&dir));
    let crowd = Crowd::connect(port, 10);
    process.line("cannot accept");
    are_idle(&[pid]);
    restore();
    crowd.expect_served();
}

#[test]
fn a_full_queue_stops_accepting_and_loses_nothing() {
    let mut process = sh(&format!("exec fdaccept 127.0.0.1:0 -- {STOPPED_POOL}"));
    let port = process.port();
    let pid = process.pid();
    let pool = child_in_state(pid, 'T');
    let idle = settled(pid).len();
    let crowd = Crowd::connect(port, crowd_size(1000));
    wait_until_full(pid, idle);
    are_idle(&[pid, pool]);
    // One is in hand, and the others are not taken before there is room for them.
    assert_eq!(descriptors(pid).len(), idle + 1);
    kill(pool, Signal::SIGCONT).unwrap();
    crowd.expect_served();
    assert_eq!(settled(pid).len(), idle);
}

#[test]
fn a_full_queue_behind_busy_handlers_loses_nothing() {
    let mut process = sh("exec fdaccept 127.0.0.1:0 -- fdpool 2 -- cat");
    let port = process.port();
    let pid = process.pid();
    // They say nothing, so their handlers wait for them.
    let busy: Vec<_> = (0..2).map(|_| connect(port)).collect();
    let pool = eventually("the pool", || children(pid).pop());
    let handlers = || -> usize {
        let slots = children(pool);
        slots.into_iter().map(|slot| children(slot).len()).sum()
    };
    until("both handlers", || handlers() == 2);
    let idle = settled(pid).len();
    let crowd = Crowd::connect(port, crowd_size(1000));
    wait_until_full(pid, idle);
    are_idle(&[&[pid, pool][..], &children(pool)].concat());
    drop(busy);
    crowd.expect_served();
}

#[test]
fn a_full_queue_of_a_consumers_own_name_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = script("sh", "exec fdpool --bind ./q 1 -- cat");
    let pool = Process::start(command.current_dir(&dir));
    until("the name", || dir.path().join("q").exists());
    until("the slot", || children(pool.pid()).len() == 1);
    let slot = children(pool.pid())[0];
    kill(slot, Signal::SIGSTOP).unwrap();
    let mut command = script("sh", "exec fdaccept --connect ./q 127.0.0.1:0");
    let mut process = Process::start(command.current_dir(&dir));
    let port = process.port();
    let idle = settled(process.pid()).len();
    let crowd = Crowd::connect(port, crowd_size(100));
    // One more for the way to the consumer, which it opens only now.
    wait_until_full(process.pid(), idle + 1);
    are_idle(&[process.pid()]);
    assert_eq!(state(slot), Some('T'));
    kill(slot, Signal::SIGCONT).unwrap();
    crowd.expect_served();
}

/// A copy of the programs that every user can execute, wherever the build is.
fn for_everybody(dir: &Path) {
    std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
    for name in ["fdaccept", "fdpool", "fdrecv"] {
        // Another process writes it, as in `executable`.
        let mut copy = Command::new("cp");
        let copied = copy.arg(bin_dir().join(name)).arg(dir).status();
        assert!(copied.unwrap().success());
    }
}

/// A script for a user who has nothing else on the way, as whom descriptors in messages count:
/// root's do not.
fn sh_as_nobody_else(dir: &Path, text: &str) -> Process {
    for_everybody(dir);
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let uid = 1_000_000 + 16 * std::process::id() + number;
    let mut command = Command::new("sh");
    let path = [dir.as_os_str(), "/usr/bin".as_ref(), "/bin".as_ref()];
    command
        .args(["-c", text])
        .uid(uid)
        .gid(uid)
        .current_dir("/");
    command.env("PATH", path.join(std::ffi::OsStr::new(":")));
    Process::start(&mut command)
}

#[test]
fn too_many_descriptors_on_their_way_are_waited_for() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let text = format!("ulimit -n 20; exec fdaccept 127.0.0.1:0 -- {STOPPED_POOL}");
    let mut process = sh_as_nobody_else(dir.path(), &text);
    let port = process.port();
    let pid = process.pid();
    let pool = child_in_state(pid, 'T');
    let idle = settled(pid).len();
    let crowd = Crowd::connect(port, crowd_size(200));
    wait_until_full(pid, idle);
    are_idle(&[pid]);
    kill(pool, Signal::SIGCONT).unwrap();
    crowd.expect_served();
    process.signal(Signal::SIGTERM);
    let (status, log) = process.finish();
    assert_eq!(
        (status.code(), besides_counters(&log).len()),
        (Some(0), 1),
        "{log}"
    );
}

/// The queue itself is a descriptor that has to be on its way to a consumer.
#[test]
fn a_consumer_gets_the_queue_while_too_many_are_on_their_way() {
    if !root() {
        return;
    }
    let loop_of_fdrecv = "while fdrecv -- cat || [ $? -ne 69 ]; do :; done";
    for consumers in ["exec fdpool 4 -- cat", loop_of_fdrecv] {
        let dir = tempfile::tempdir().unwrap();
        let stopped = format!("sh -c 'kill -STOP $$; {consumers}'");
        let text = format!("ulimit -n 20; fdaccept 127.0.0.1:0 | {stopped}");
        let mut process = sh_as_nobody_else(dir.path(), &text);
        let port = process.port();
        let both = eventually("both programs", || {
            Some(children(process.pid())).filter(|both| both.len() == 2)
        });
        let in_state = |wanted| both.iter().find(|pid| state(**pid) == Some(wanted));
        let consumer = *eventually("the consumer", || in_state('T'));
        let fdaccept = *both.iter().find(|pid| **pid != consumer).unwrap();
        let idle = settled(fdaccept).len();
        let crowd = Crowd::connect(port, crowd_size(200));
        wait_until_full(fdaccept, idle);
        kill(consumer, Signal::SIGCONT).unwrap();
        crowd.expect_served();
    }
}

/// It has a connection in hand then that it cannot pass on, and nobody to pass it to.
#[test]
fn the_end_of_the_queue_while_too_many_are_on_their_way_is_waited_out() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let command = "sh -c 'kill -STOP $$; exec sleep 1000 </dev/null'";
    let text = format!("ulimit -n 20; exec fdaccept 127.0.0.1:0 -- {command}");
    let mut process = sh_as_nobody_else(dir.path(), &text);
    let port = process.port();
    let pid = process.pid();
    let command = child_in_state(pid, 'T');
    let idle = settled(pid);
    let _crowd = Crowd::connect(port, crowd_size(200));
    wait_until_full(pid, idle.len());
    kill(command, Signal::SIGCONT).unwrap();
    // Without consumers it stops listening.
    until("the end of the listener", || {
        let now = descriptors(pid);
        idle.iter().any(|open| !now.contains(open))
    });
    are_idle(&[pid]);
    kill(command, Signal::SIGTERM).unwrap();
    let (status, log) = process.finish();
    assert_eq!(status.code(), Some(128 + 15));
    let left = "fdaccept: connections were accepted and not taken";
    assert_eq!(log.lines().last(), Some(left), "{log}");
}

#[test]
fn the_soft_limit_is_raised_for_fdaccept_alone() {
    let handler = "sh -c 'ulimit -Sn; ulimit -Hn'";
    let mut process = sh(&format!(
        "ulimit -Sn 50; ulimit -Hn 100; exec fdaccept 127.0.0.1:0 -- fdpool 1 -- {handler}"
    ));
    let port = process.port();
    assert_eq!(exchange(port, b""), b"50\n100\n");
    let own = limits(process.pid());
    assert_eq!(own, ("100".to_owned(), "100".to_owned()));
    let pool = children(process.pid()).pop().unwrap();
    assert_eq!(limits(pool), ("50".to_owned(), "100".to_owned()));
}

#[test]
fn a_pool_has_the_limit_that_it_was_given() {
    let handler = "sh -c 'ulimit -Sn; ulimit -Hn'";
    let mut process = sh(&format!(
        "ulimit -Sn 50; ulimit -Hn 100; fdaccept 127.0.0.1:0 | fdpool 1 -- {handler}"
    ));
    assert_eq!(exchange(process.port(), b""), b"50\n100\n");
}

#[test]
fn fdaccept_closes_its_copy_of_each_connection() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let mut command = script("sh", "exec fdaccept 127.0.0.1:0 \"$0\" -- fdpool 4 -- cat");
    let mut process = Process::start(command.arg(&path));
    let port = process.port();
    process.listening();
    let pid = process.pid();
    let before = settled(pid);
    for number in 0..500 {
        let number = number.to_string();
        assert_eq!(exchange(port, number.as_bytes()), number.as_bytes());
    }
    for _ in 0..50 {
        let mut client = connect_unix(&path);
        client.write_all(b"x").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"x");
    }
    assert_eq!(settled(pid), before);
}
