//! A pool of workers: programs that stay, and take connections from the queue themselves.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::*;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::socket::SockType;
use nix::sys::stat::fstat;
use nix::unistd::{Pid, getpgid, getsid};

/// The signals that stop a pool.
const STOPS: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];

/// A worker of one line. TERM ends it with whatever it serves.
const LOOP: &str = "while fdrecv -- cat || [ $? -ne 69 ]; do :; done";

/// A worker's last words: it stays until a signal.
const STAY: &str = "while :; do sleep 0.05; done";

/// A child that ignores TERM, and notes `child PID` when it does.
const STUBBORN: &str = "sh -c 'trap \"\" TERM; echo child $$ >>\"$DIR/log\"; exec sleep 100'";

/// A worker that does `first`, says that it is ready, and stays. In `$DIR/log` it notes
/// `ready PID` before it says so, and `term PID` when it is asked to go, which it does.
fn ready_after(first: &str) -> String {
    format!(
        "trap 'echo term $$ >>\"$DIR/log\"; exit' TERM; {first}\n\
         echo ready $$ >>\"$DIR/log\"; echo >&3; exec 3>&-; {STAY}"
    )
}

/// As above, but ready only when there is a file `gate`.
fn ready_behind_a_gate() -> String {
    ready_after("while [ ! -e \"$DIR/gate\" ]; do sleep 0.05; done")
}

/// A pool of workers on a queue of the test's own.
struct Workers {
    pool: Pool,
    queue: Queue,
    folder: Names,
}

impl Deref for Workers {
    type Target = Pool;

    fn deref(&self) -> &Pool {
        &self.pool
    }
}

impl DerefMut for Workers {
    fn deref_mut(&mut self) -> &mut Pool {
        &mut self.pool
    }
}

impl Workers {
    /// With a shell script as the worker.
    fn start(options: &[&str], size: usize, text: &str) -> Self {
        Self::of_command(options, size, sh_c(text))
    }

    fn of_command(
        options: &[&str],
        size: usize,
        worker: impl IntoIterator<Item: AsRef<OsStr>>,
    ) -> Self {
        let pool = Pool::plain().args(options).workers(size, worker);
        Self::of(&mut pool.command())
    }

    /// `command` becomes the pool, and finds the queue as its standard input.
    fn of(command: &mut Command) -> Self {
        Self::of_in(command, Names::new())
    }

    fn of_in(command: &mut Command, folder: Names) -> Self {
        let queue = Queue::new();
        command
            .env("DIR", folder.directory.path())
            .stdin(queue.input());
        Self {
            pool: Pool::of(command),
            queue,
            folder,
        }
    }

    /// The only one.
    #[track_caller]
    fn worker(&self) -> Pid {
        eventually("one worker", || {
            let workers = self.workers();
            (workers.len() == 1).then(|| *workers.first().unwrap())
        })
    }

    /// Waits until there are `count`, none of them one of `old`.
    #[track_caller]
    fn until_replaced(&self, old: &BTreeSet<Pid>, count: usize) -> BTreeSet<Pid> {
        eventually("other workers", || {
            let workers = self.workers();
            (workers.len() == count && workers.is_disjoint(old)).then_some(workers)
        })
    }

    /// Waits until another one is the only one.
    #[track_caller]
    fn until_other(&self, old: Pid) {
        until("another worker", || self.worker() != old);
    }

    #[track_caller]
    fn until_workers(&self, count: usize) {
        until(&format!("{count} workers"), || {
            self.workers().len() == count
        });
    }

    /// What workers have noted, in order.
    fn notes(&self) -> Vec<(String, Pid)> {
        let text = std::fs::read_to_string(self.file("log")).unwrap_or_default();
        // The last line may be half there.
        let lines = text.split_inclusive('\n').filter(|l| l.ends_with('\n'));
        lines
            .map(|line| {
                let (word, pid) = line.trim_end().split_once(' ').unwrap();
                (word.to_owned(), Pid::from_raw(pid.parse().unwrap()))
            })
            .collect()
    }

    /// Who has noted `word`.
    fn noted(&self, word: &str) -> Vec<Pid> {
        let notes = self.notes().into_iter();
        notes
            .filter(|(w, _)| w == word)
            .map(|(_, pid)| pid)
            .collect()
    }

    /// Waits until `count` have noted `word`, and returns who.
    #[track_caller]
    fn until_noted(&self, word: &str, count: usize) -> BTreeSet<Pid> {
        until(&format!("{count} {word}"), || {
            self.noted(word).len() >= count
        });
        self.noted(word).into_iter().collect()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.file(name)
    }

    fn touch(&self, name: &str) {
        File::create(self.file(name)).unwrap();
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.file(name)).unwrap();
    }

    /// A client whose connection now is in the queue.
    fn client(&self) -> Client<UnixStream> {
        self.queue.client()
    }

    #[track_caller]
    fn reload(&mut self) {
        self.signal(Signal::SIGHUP);
        self.line("reload: done");
    }

    /// Stops it, and returns what it has said.
    #[track_caller]
    fn stop(mut self) -> String {
        self.pool.stop()
    }
}

/// Waits until a worker is stopped. A shell whose child was stopped before it was the child's program
/// sleeps until that goes on.
#[track_caller]
fn until_stopped(worker: Pid) {
    let is_stopped = |pid: &Pid| state(*pid) == Some('T');
    until("it to stop", || match state(worker) {
        Some('D') => children(worker).iter().any(is_stopped),
        _ => is_stopped(&worker),
    });
}

/// Expects an end without failure, and that nothing was said besides what the script's fdrecv says of the end.
#[track_caller]
fn assert_ends_quietly(process: &mut Process) {
    let log = process.expect_end(0);
    let mut lines = log.lines();
    assert!(
        lines.all(|line| line == "fdrecv: the queue is closed"),
        "{log}"
    );
}

fn word(path: PathBuf) -> String {
    path.into_os_string().into_string().unwrap()
}

/// The worker of examples/ in Rust.
fn rust_example() -> Option<String> {
    rust_worker().map(word)
}

/// The one in Python, as a command line.
fn python_example() -> Option<Vec<String>> {
    python_worker().map(|words| words.map(word).to_vec())
}

/// The workers that can be run here: the script, and the two examples.
fn kinds() -> Vec<Vec<String>> {
    let script = sh_c(LOOP).map(str::to_owned).to_vec();
    let examples = [rust_example().map(|path| vec![path]), python_example()];
    let examples = examples.into_iter().flatten();
    [script].into_iter().chain(examples).collect()
}

/// The example in Rust finishes its connection on TERM. As it does not say when it is ready, a
/// shell does just before it becomes it. For --ready-fd 3.
fn gentle() -> Option<[String; 4]> {
    let text = "echo >&3; exec \"$0\" 3>&-";
    rust_example().map(|path| ["sh".into(), "-c".into(), text.into(), path])
}

/// Expects that two workers serve.
#[track_caller]
fn assert_two_serve(port: u16) {
    let clients = [port, port].map(Client::connect);
    clients.iter().for_each(Client::expect_served);
    clients.iter().for_each(Client::expect_served);
    drop(clients);
    for number in 0..5 {
        let request = format!("request {number}").into_bytes();
        assert_eq!(exchange(port, &request), request);
    }
}

// Where the queue comes from.

#[test]
fn workers_serve_a_queue_that_came_by_ticket() {
    for worker in kinds() {
        let mut acceptor = Fdaccept::piped().start();
        let pool = Pool::plain().stdin(acceptor.take_pipe());
        let mut pool = pool.workers(2, &worker).start();
        assert_two_serve(acceptor.port);
        acceptor.stop();
        assert_ends_quietly(&mut pool);
    }
}

#[test]
fn when_a_pool_behind_a_pipe_stops_so_does_fdaccept() {
    let mut acceptor = Fdaccept::piped().start();
    let pool = Pool::plain().stdin(acceptor.take_pipe());
    let mut pool = pool.workers(2, sh_c(LOOP)).start();
    // No worker may hold the pipe.
    assert_two_serve(acceptor.port);
    pool.stop();
    acceptor.expect_end(0);
}

#[test]
fn workers_serve_a_queue_in_a_chain() {
    for worker in kinds() {
        let pool = ["fdpool", "2", "--worker", "--"].into_iter();
        let chain = pool.chain(worker.iter().map(String::as_str));
        let mut process = Fdaccept::chain(chain).start();
        assert_two_serve(process.port);
        let log = process.stop();
        let lines = besides_counters(&log).into_iter();
        let more = lines.filter(|line| !line.starts_with("fdrecv: "));
        assert_eq!(more.count(), 1, "{log}");
    }
}

#[test]
fn workers_serve_a_queue_that_a_name_gives() {
    let names = Names::new();
    for worker in kinds() {
        for name in [&names.path(), &names.abstract_name()] {
            let mut acceptor = Fdaccept::bound_at(name).start();
            let port = acceptor.port;
            let mut pool = Pool::on(name).workers(2, &worker).start();
            assert_two_serve(port);
            acceptor.stop();
            pool.line("waiting");
            let log = pool.stop();
            assert!(!log.contains("the next one"), "{log}");
        }
    }
}

#[test]
fn workers_serve_a_queue_at_a_path_that_the_pool_owns() {
    let names = Names::new();
    let name = &names.path();
    for worker in kinds() {
        let mut pool = Pool::bound_at(name).workers(2, &worker).start();
        let mut acceptor = Fdaccept::plain().args(["--connect", name]).start();
        assert_two_serve(acceptor.port);
        acceptor.stop();
        // Others may come.
        let mut acceptor = Fdaccept::plain().args(["--connect", name]).start();
        assert_two_serve(acceptor.port);
        acceptor.stop();
        assert_eq!(pool.stop(), "");
        assert!(!Path::new(name).exists());
    }
}

#[test]
fn workers_serve_a_queue_that_is_a_descriptor_of_the_pool() {
    for worker in kinds() {
        for text in [
            "exec fdpool 2 --worker -- \"$@\"",
            "exec fdpool --queue-fd 5 2 --worker -- \"$@\" 5<&0 </dev/null",
        ] {
            let (write_end, read_end) = socket_pair(SockType::SeqPacket);
            let mut acceptor = Fdaccept::plain().stdout(write_end).start();
            let mut pool = Pool::of(sh(text).arg("sh").args(&worker).stdin(read_end));
            assert_two_serve(acceptor.port);
            acceptor.stop();
            assert_ends_quietly(&mut pool);
        }
    }
}

// Restart.

#[test]
fn a_worker_that_lived_for_a_second_is_replaced_at_once_and_the_others_go_on() {
    // The third one and all that follow end too soon.
    let text = "mkdir \"$DIR/1\" || mkdir \"$DIR/2\" || { echo end $$ >>\"$DIR/log\"; exit 4; }\n\
        echo ready $$ >>\"$DIR/log\"; exec sleep 100";
    let mut pool = Workers::start(&[], 2, &format!("exec 2>/dev/null; {text}"));
    let both = pool.until_noted("ready", 2);
    std::thread::sleep(Duration::from_millis(1000));
    let (first, other) = (*both.first().unwrap(), *both.last().unwrap());
    kill(first, Signal::SIGKILL).unwrap();
    let line = pool.line("the next one");
    let expected =
        format!("fdpool: worker {first} was ended by signal 9; the next one is started at once");
    assert_eq!(line, expected);
    for (count, delay) in [(1, "0.1"), (2, "0.2")] {
        pool.until_noted("end", count);
        let worker = pool.noted("end")[count - 1];
        let expected = format!(
            "fdpool: worker {worker} ended with status 4; the next one is started in {delay} s"
        );
        assert_eq!(pool.line("the next one"), expected);
    }
    assert!(is_alive(other));
    pool.stop();
}

#[test]
fn after_a_worker_that_ended_too_soon_there_is_a_delay_that_doubles() {
    let start = Instant::now();
    let mut pool = Workers::start(&[], 1, "echo start $$ >>\"$DIR/log\"; exit 3");
    pool.line("in 0.8 s");
    assert!(start.elapsed() >= Duration::from_millis(100 + 200 + 400));
    let workers = pool.noted("start");
    let expected: Vec<_> = std::iter::zip(&workers, ["0.1", "0.2", "0.4", "0.8"])
        .map(|(pid, delay)| {
            format!(
                "fdpool: worker {pid} ended with status 3; the next one is started in {delay} s"
            )
        })
        .collect();
    // One more may have ended by now.
    let log = pool.stop();
    assert_eq!(log.lines().take(4).collect::<Vec<_>>(), expected);
}

#[test]
fn a_worker_that_dies_before_it_is_ready_has_one_line_in_the_log() {
    let mut pool = Workers::start(
        &["--ready-fd", "3"],
        4,
        "echo start $$ >>\"$DIR/log\"; exit 3",
    );
    pool.line("in 0.4 s");
    let log = pool.stop();
    let foreign = log.lines().find(|line| !line.contains("the next one"));
    assert_eq!(foreign, None);
}

#[test]
fn a_worker_that_fails_again_and_again_leaves_the_work_to_the_others() {
    let text = format!("mkdir \"$DIR/taken\" 2>/dev/null || exit 1; {LOOP}");
    let mut pool = Workers::start(&[], 3, &text);
    let client = pool.client();
    client.expect_served();
    pool.line("in 0.2 s");
    pool.line("in 0.2 s");
    client.expect_served();
    drop(client);
    pool.client().expect_served();
    pool.stop();
}

#[test]
fn what_a_worker_does_not_receive_stays_in_the_queue_whatever_happens_to_it() {
    let text = format!(
        "echo start $$ >>\"$DIR/log\"; while [ ! -e \"$DIR/go\" ]; do sleep 0.05; done; {LOOP}"
    );
    let mut pool = Workers::start(&[], 1, &text);
    let clients: Vec<_> = (0..5).map(|_| pool.client()).collect();
    for (round, signal) in [Signal::SIGKILL, Signal::SIGTERM].into_iter().enumerate() {
        pool.until_noted("start", round + 1);
        kill(pool.worker(), signal).unwrap();
        pool.line("the next one");
    }
    clients.iter().for_each(Client::expect_waiting);
    pool.touch("go");
    clients
        .into_iter()
        .for_each(|client| client.expect_served());
    pool.stop();
}

#[test]
fn stopped_workers_leave_connections_to_the_others() {
    let mut pool = Workers::start(&[], 3, LOOP);
    pool.until_workers(3);
    for worker in pool.workers().into_iter().skip(1) {
        let waits = || {
            children(worker)
                .first()
                .is_some_and(|c| state(*c) == Some('S'))
        };
        until("it to wait", waits);
        killpg(worker, Signal::SIGSTOP).unwrap();
        until("it to stop", || {
            let fdrecv = children(worker).first().copied();
            state(worker) == Some('T') && fdrecv.is_none_or(|pid| state(pid) == Some('T'))
        });
    }
    for _ in 0..10 {
        pool.client().expect_served();
    }
    // Nor do they hold up the end.
    pool.term();
    assert_eq!(pool.expect_end(0), "");
}

#[test]
fn what_a_worker_left_behind_may_finish() {
    let pool = Workers::start(&[], 1, LOOP);
    let client = pool.client();
    client.expect_served();
    let first = pool.worker();
    kill(first, Signal::SIGKILL).unwrap();
    // Its child goes on with the connection, and the next worker with the queue.
    pool.client().expect_served();
    client.expect_served();
    pool.stop();
}

#[test]
fn a_child_that_a_worker_left_behind_gets_term_after_the_grace_and_kill_5_seconds_later() {
    let text = "if mkdir \"$DIR/first\"; then \
        (trap 'echo term 0 >>\"$DIR/log\"' TERM; while :; do sleep 0.05; done) & \
        echo child $! >>\"$DIR/log\"; exit; fi 2>/dev/null; exec sleep 100";
    let start = Instant::now();
    let pool = Workers::start(&["--grace", "0.3"], 1, text);
    let child = *pool.until_noted("child", 1).first().unwrap();
    pool.until_noted("term", 1);
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert!(is_alive(child));
    until_gone(child);
    assert!(start.elapsed() >= Duration::from_millis(5300));
    pool.stop();
}

// A command that vanishes.

/// A pool of one worker whose command can be taken away, and has been started.
fn pool_of_a_file(options: &[&str], text: &str) -> (Workers, PathBuf) {
    let folder = Names::new();
    let worker = executable(folder.file("worker"), text);
    let options = ["-v"].iter().chain(options);
    let pool = Pool::plain().args(options).workers(1, [&worker]);
    let mut pool = Workers::of_in(&mut pool.command(), folder);
    pool.line("was started");
    (pool, worker)
}

#[test]
fn a_command_that_vanishes_while_the_pool_runs_is_tried_until_it_is_back() {
    // With a line for the kernel and without one.
    for start in ["#!/bin/sh\n", ""] {
        let (mut pool, file) = pool_of_a_file(&[], &format!("{start}{LOOP}\n"));
        pool.client().expect_served();
        let away = pool.file("away");
        std::fs::rename(&file, &away).unwrap();
        let worker = pool.worker();
        killpg(worker, Signal::SIGKILL).unwrap();
        // Who is killed while it waits for a connection may still get one.
        until("the end of its group", || killpg(worker, None).is_err());
        let client = pool.client();
        let line = pool.line("next try in 0.2 s");
        let expected = format!(
            "fdpool: cannot run {}: No such file or directory; next try in 0.2 s",
            file.display()
        );
        assert_eq!(line, expected);
        client.expect_waiting();
        std::fs::rename(&away, &file).unwrap();
        client.expect_served();
        pool.stop();
    }
}

#[test]
fn a_command_that_may_not_be_executed_any_more_is_tried_until_it_may() {
    use std::os::unix::fs::PermissionsExt;
    let (mut pool, file) = pool_of_a_file(&[], "#!/bin/sh\nexec sleep 100\n");
    let first = pool.worker();
    until_named(first, "sleep");
    let set_mode = |mode| std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
    set_mode(0o644);
    kill(first, Signal::SIGKILL).unwrap();
    pool.line("Permission denied; next try in 0.2 s");
    set_mode(0o755);
    pool.until_other(first);
    pool.stop();
}

#[test]
fn a_reload_whose_command_is_gone_keeps_the_old_workers() {
    let (mut pool, file) = pool_of_a_file(&[], "#!/bin/sh\nexec sleep 100\n");
    let first = pool.worker();
    until_named(first, "sleep");
    let away = pool.file("away");
    std::fs::rename(&file, &away).unwrap();
    pool.signal(Signal::SIGHUP);
    let line = pool.line("stay");
    let file_name = file.to_str().unwrap();
    let expected = format!(
        "fdpool: reload: cannot run {file_name}: No such file or directory; the old workers stay"
    );
    assert_eq!(line, expected);
    until("the old one alone", || pool.worker() == first);
    pool.stop();
}

#[test]
fn a_command_that_cannot_be_run_is_noticed_before_anything_is_taken_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    File::create(&plain).unwrap();
    for (worker, expected) in [("/no/such/worker", 127), (plain.to_str().unwrap(), 126)] {
        let queue = Queue::new();
        let write_end = queue.write_end();
        fdtools::queue::send(write_end, b"first", &[write_end.as_fd()]).unwrap();
        let mut command = program("fdpool");
        command.args(["1", "--worker", worker]);
        let (status, _, log) = run(command.stdin(queue.input()));
        assert_eq!(status, Some(expected), "{log}");
        let message = fdtools::queue::try_receive(&queue.read_end).unwrap();
        assert_eq!(message.payload, b"first");
    }
}

// HUP.

/// Expects that at no time fewer than `count` were there that are ready and were not asked to go.
#[track_caller]
fn assert_never_fewer(pool: &Workers, count: usize) {
    let notes = pool.notes();
    let mut there = BTreeSet::new();
    let mut reached = false;
    for (word, pid) in &notes {
        match word.as_str() {
            "ready" => there.insert(pid),
            "term" => there.remove(pid),
            _ => false,
        };
        reached |= there.len() >= count;
        assert!(!reached || there.len() >= count, "{notes:?}");
    }
    assert!(reached, "{notes:?}");
}

#[test]
fn a_reload_replaces_every_worker_and_none_before_a_new_one_is_ready() {
    for count in [1, 3] {
        let mut pool = Workers::start(&["--ready-fd", "3"], count, &ready_after(":"));
        let mut old = pool.until_noted("ready", count);
        for round in 1..=3 {
            pool.signal(Signal::SIGHUP);
            let line = pool.line("reload: ");
            assert_eq!(line, format!("fdpool: reload: {count} workers to replace"));
            pool.line("reload: done");
            // Each once, and no new one.
            pool.until_noted("term", round * count);
            let new = pool.until_replaced(&old, count);
            assert_eq!(pool.noted("term").len(), round * count);
            old = new;
        }
        assert_never_fewer(&pool, count);
        pool.stop();
    }
}

#[test]
fn without_a_ready_descriptor_a_new_worker_has_started_when_it_lived_for_a_second() {
    let mut pool = Workers::of_command(&["-v"], 1, &["sleep", "100"]);
    pool.line("was started");
    let old = pool.worker();
    let start = Instant::now();
    pool.signal(Signal::SIGHUP);
    pool.line(&format!("end {old} status 15"));
    assert!(start.elapsed() >= Duration::from_secs(1));
    pool.until_other(old);
    pool.stop();
}

#[test]
fn with_a_ready_descriptor_a_new_worker_has_started_when_it_says_so_and_not_before() {
    let mut pool = Workers::start(&["--ready-fd", "3"], 1, &ready_behind_a_gate());
    pool.touch("gate");
    let old = pool.until_noted("ready", 1);
    pool.remove("gate");
    pool.signal(Signal::SIGHUP);
    pool.until_workers(2);
    // That it lives for a second does not count.
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(pool.noted("term"), []);
    assert_eq!(pool.workers().len(), 2);
    pool.touch("gate");
    pool.line("reload: done");
    assert_eq!(pool.until_noted("term", 1), old);
    assert_never_fewer(&pool, 1);
    pool.stop();
}

/// Two old workers, and new ones that do `how`: the old ones stay, and `words` say why. When that
/// is mended, a further reload replaces them.
#[track_caller]
fn assert_reload_fails(options: &[&str], how: &str, words: &[&str]) {
    let text = match options {
        [] => format!(
            "if [ -e \"$DIR/broken\" ]; then {how}; fi; echo ready $$ >>\"$DIR/log\"; exec sleep 100"
        ),
        _ => ready_after(&format!(
            "if [ -e \"$DIR/broken\" ]; then trap - TERM; {how}; fi"
        )),
    };
    let mut pool = Workers::start(options, 2, &text);
    let old = pool.until_noted("ready", 2);
    pool.touch("broken");
    pool.signal(Signal::SIGHUP);
    let line = pool.line("the old workers stay");
    let said = |word: &&&str| line.contains(**word);
    assert!(line.starts_with("fdpool: reload: worker "), "{line}");
    assert!(words.iter().find(said).is_some(), "{line}");
    until("the end of the new one", || pool.workers() == old);
    assert_eq!(pool.noted("term"), []);
    // It does not go on by itself.
    assert!(!pool.log().contains("reload: done"));
    pool.remove("broken");
    // It takes two seconds without.
    if !options.is_empty() {
        pool.reload();
        pool.until_replaced(&old, 2);
    }
    pool.stop();
}

/// Which of the two is seen first, its end or that of its pipe, is chance.
const UNREADY: [&str; 2] = ["does not say that it is ready", "before it had started"];

#[test]
fn a_new_worker_that_dies_within_a_second_keeps_the_old_ones() {
    let words = ["ended with status 7 before it had started"];
    assert_reload_fails(&[], "exit 7", &words);
    let words = ["was ended by signal 9 before it had started"];
    assert_reload_fails(&[], "kill -KILL $$", &words);
}

#[test]
fn a_new_worker_that_dies_before_it_is_ready_keeps_the_old_ones() {
    assert_reload_fails(&["--ready-fd", "3"], "exit 7", &UNREADY);
    assert_reload_fails(&["--ready-fd", "3"], "printf junk >&3; exit 7", &UNREADY);
}

#[test]
fn a_new_worker_that_closes_its_ready_descriptor_without_a_newline_keeps_the_old_ones() {
    for how in ["exec 3>&-", "printf junk >&3; exec 3>&-"] {
        let how = format!("{how}; sleep 100");
        assert_reload_fails(&["--ready-fd", "3"], &how, &UNREADY[..1]);
    }
}

#[test]
fn a_worker_is_ready_when_the_newline_comes_whatever_came_before() {
    let first = "printf 'not yet' >&3; sleep 0.1; printf ', but' >&3; sleep 0.1";
    let mut pool = Workers::start(&["-v", "--ready-fd", "3"], 1, &ready_after(first));
    pool.line("is ready");
    let old = pool.worker();
    pool.reload();
    pool.until_other(old);
    assert_never_fewer(&pool, 1);
    pool.stop();
}

#[test]
fn a_new_worker_that_never_is_ready_leaves_the_old_ones_until_the_next_reload() {
    let first = "if [ -e \"$DIR/broken\" ]; then trap - TERM; printf junk >&3; sleep 100; fi";
    let mut pool = Workers::start(&["--ready-fd", "3"], 2, &ready_after(first));
    let old = pool.until_noted("ready", 2);
    pool.touch("broken");
    pool.signal(Signal::SIGHUP);
    pool.until_workers(3);
    let stuck = *pool.workers().difference(&old).next().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert!(pool.workers().is_superset(&old));
    assert_eq!(pool.noted("term"), []);
    pool.remove("broken");
    pool.reload();
    until_gone(stuck);
    pool.until_replaced(&old, 2);
    assert_never_fewer(&pool, 2);
    pool.stop();
}

#[test]
fn a_reload_in_a_reload_starts_it_over() {
    let mut pool = Workers::start(&["-v", "--ready-fd", "3"], 2, &ready_behind_a_gate());
    pool.touch("gate");
    pool.until_noted("ready", 2);
    pool.remove("gate");
    for _ in 0..3 {
        pool.signal(Signal::SIGHUP);
        pool.line("reload: 2 workers to replace");
        pool.line("was started");
    }
    pool.touch("gate");
    pool.line("reload: done");
    pool.until_workers(2);
    // All that are there came after the last signal.
    let log = pool.log();
    let (before, after) = log.rsplit_once("to replace").unwrap();
    for worker in pool.workers() {
        let started = format!("worker {worker} was started");
        assert!(
            !before.contains(&started) && after.contains(&started),
            "{log}"
        );
    }
    assert_eq!(log.matches("reload: done").count(), 1, "{log}");
    assert_never_fewer(&pool, 2);
    pool.stop();
}

#[test]
fn many_reloads_at_once_end_with_new_workers() {
    let mut pool = Workers::start(&["--ready-fd", "3"], 2, &ready_after(":"));
    let old = pool.until_noted("ready", 2);
    let mut random = Random(4);
    for _ in 0..20 {
        pool.signal(Signal::SIGHUP);
        random.pause(20_000);
    }
    pool.reload();
    pool.until_replaced(&old, 2);
    pool.until_noted("ready", 4);
    assert_never_fewer(&pool, 2);
    pool.stop();
}

#[test]
fn reloads_that_come_faster_than_workers_end_start_no_more_than_a_few() {
    let text = "trap '' TERM; while :; do sleep 1; done";
    let mut pool = Workers::start(&["--grace", "100000"], 2, text);
    pool.until_workers(2);
    let mut most = 0;
    for _ in 0..500 {
        pool.signal(Signal::SIGHUP);
        pool.line("to replace");
        most = most.max(pool.workers().len());
    }
    // Four that leave for each place, those that stay, and a candidate.
    assert!((3..=8 + 2 + 1).contains(&most), "{most} workers");
    pool.term();
    pool.signal(Signal::SIGINT);
    pool.expect_end(0);
}

#[test]
fn a_worker_of_another_user_that_cannot_be_ended_is_given_up() {
    if !root() {
        return;
    }
    let Some(setpriv) = peer("setpriv") else {
        return;
    };
    let dir = open_dir();
    copy_of("fdpool", dir.path());
    // The pool may become somebody else, but not signal them.
    let capabilities = "-all,+setuid,+setgid";
    let mut command = Command::new(&setpriv);
    command.args(["--reuid=65533", "--regid=65533", "--clear-groups"]);
    command.args(["--inh-caps", capabilities, "--ambient-caps", capabilities]);
    let options = "--grace 0.1 --queue-fd 0 --worker 1 --";
    command.arg("./fdpool").args(options.split(' '));
    command
        .arg(&setpriv)
        .args("--reuid=65532 sleep 1000".split(' '));
    let queue = Queue::new();
    let mut pool = Pool::of(command.current_dir(&dir).stdin(queue.input()));
    let is_another = |pid: &Pid| status_field(*pid, "Uid").starts_with("65532");
    let worker = eventually("the worker", || {
        pool.children().into_iter().find(is_another)
    });
    pool.term();
    pool.line(&format!(
        "worker {worker} cannot be ended, and is left alone"
    ));
    pool.expect_exit(0);
    kill(worker, Signal::SIGKILL).unwrap();
}

#[test]
fn a_reload_starts_a_worker_whose_place_waits_and_its_delay_begins_anew() {
    let mut pool = Workers::start(&[], 1, "exit 1");
    pool.line("in 0.8 s");
    pool.signal(Signal::SIGHUP);
    pool.line("reload: 0 workers to replace");
    assert!(pool.line("the next one").ends_with("in 0.1 s"));
    pool.stop();
}

#[test]
fn a_reload_replaces_those_that_are_there_while_one_fails() {
    // Only who has the place is well; a new one takes it over.
    let first = "if [ -e \"$DIR/full\" ]; then exit 1; fi";
    let mut pool = Workers::start(&["--ready-fd", "3"], 2, &ready_after(first));
    let both = pool.until_noted("ready", 2);
    pool.touch("full");
    let gone = *both.first().unwrap();
    kill(gone, Signal::SIGKILL).unwrap();
    pool.line("in 0.2 s");
    pool.remove("full");
    pool.reload();
    pool.until_replaced(&both, 2);
    pool.until_noted("term", 1);
    assert_eq!(pool.noted("term"), [*both.last().unwrap()]);
    pool.stop();
}

#[test]
fn an_old_worker_that_ignores_term_is_killed_after_the_grace_with_its_group() {
    // One that ignores it with its child, and one that dies of it and leaves such a child.
    for (end, status) in [("trap '' TERM", 9), ("trap - TERM", 15)] {
        let text = format!("{STUBBORN} & {end}; echo >&3; exec 3>&-; exec sleep 100");
        let mut pool = Workers::start(&["-v", "--grace", "0.2", "--ready-fd", "3"], 1, &text);
        pool.line("is ready");
        let old = pool.worker();
        let child = *pool.until_noted("child", 1).first().unwrap();
        let start = Instant::now();
        pool.reload();
        pool.line(&format!("end {old} status {status}"));
        until_gone(child);
        assert!(start.elapsed() >= Duration::from_millis(200));
        pool.until_other(old);
        let log = pool.stop();
        let killed = format!("worker {old} did not end within 0.2 s, and is killed");
        assert_eq!(log.contains(&killed), status == 9, "{log}");
    }
}

#[test]
fn old_workers_that_are_stopped_go_too() {
    let mut pool = Workers::start(
        &["--grace", "100000", "--ready-fd", "3"],
        2,
        &ready_after(":"),
    );
    let old = pool.until_noted("ready", 2);
    for worker in &old {
        kill(*worker, Signal::SIGSTOP).unwrap();
        until_stopped(*worker);
    }
    pool.reload();
    until("the new ones", || pool.workers().is_disjoint(&old));
    assert_eq!(pool.until_noted("term", 2), old);
    pool.stop();
}

#[test]
fn old_workers_finish_what_they_have_in_hand_several_generations_at_once() {
    let Some(worker) = gentle() else { return };
    let mut pool = Workers::of_command(&["--ready-fd", "3"], 1, &worker);
    let mut clients = Vec::new();
    for round in 1..=4 {
        let client = pool.client();
        client.expect_served();
        clients.push(client);
        assert_eq!(pool.workers().len(), round);
        pool.reload();
    }
    for client in clients {
        client.expect_served();
        let before = pool.workers().len();
        client.finish();
        pool.until_workers(before - 1);
    }
    pool.client().expect_served();
    pool.stop();
}

#[test]
fn a_reload_before_there_is_a_queue_does_no_harm() {
    let names = Names::new();
    let name = &names.path();
    let mut pool = Pool::on(name).workers(2, sh_c(LOOP)).start();
    pool.line("waiting");
    pool.signal(Signal::SIGHUP);
    pool.line("reload: 0 workers to replace");
    let mut acceptor = Fdaccept::bound_at(name).start();
    assert_two_serve(acceptor.port);
    pool.stop();
    acceptor.stop();
}

#[test]
fn a_hangup_that_was_ignored_when_the_pool_started_reloads_all_the_same() {
    let text = "trap '' HUP; exec fdpool --ready-fd 3 1 --worker -- sh -c \"$0\"";
    let mut pool = Workers::of(sh(text).arg(ready_after(":")));
    let old = pool.until_noted("ready", 1);
    pool.reload();
    pool.until_replaced(&old, 1);
    pool.stop();
}

#[test]
fn without_workers_a_hangup_ends_the_pool() {
    let queue = Queue::new();
    let mut pool = Pool::on(&queue).slots(1, ["cat"]).full();
    pool.signal(Signal::SIGHUP);
    pool.expect_killed_by(Signal::SIGHUP);
}

/// Does `chaos` to a pool whose clients each want their own bytes back.
fn chaos_under_load(
    options: &[&str],
    size: usize,
    worker: &[String],
    chaos: impl FnOnce(&mut Pool),
) {
    let mut acceptor = Fdaccept::bound().start();
    let pool = Pool::on(&acceptor).args(options);
    let mut pool = pool.workers(size, worker).start();
    under_load(acceptor.port, 0, |tally| {
        tally.wait();
        chaos(&mut pool);
        tally.wait();
    });
    pool.stop();
    acceptor.stop();
}

fn reload_under_load(worker: &[String]) {
    chaos_under_load(&[], 1, worker, |pool| {
        let old = pool.workers();
        pool.signal(Signal::SIGHUP);
        pool.line("reload: done");
        until("new workers", || {
            let new = pool.workers();
            new.len() == 1 && new.is_disjoint(&old)
        });
    });
}

#[test]
fn a_reload_of_the_example_in_rust_loses_no_connection() {
    if let Some(worker) = rust_example() {
        reload_under_load(&[worker]);
    }
}

#[test]
fn a_reload_of_the_example_in_python_loses_no_connection() {
    if let Some(worker) = python_example() {
        reload_under_load(&worker);
    }
}

/// Many reloads one after another, and others that are broken off by the next one, amid changes
/// of the size. A shell says that the worker is ready, so that they take no time.
fn many_reloads_under_load(worker: &[String]) {
    let text = "echo >&3; exec \"$@\" 3>&-";
    let command = ["sh", "-c", text, "sh"].map(str::to_owned);
    let command = [&command, worker].concat();
    chaos_under_load(&["--ready-fd", "3"], 2, &command, |pool| {
        let mut random = Random(5);
        for round in 0..12 {
            pool.signal(Signal::SIGHUP);
            random.pause(10_000);
            pool.signal(match round % 2 {
                0 => Signal::SIGTTIN,
                _ => Signal::SIGTTOU,
            });
            if round % 3 == 0 {
                pool.line("reload: done");
            }
        }
        pool.line("reload: done");
    });
}

#[test]
fn many_reloads_of_the_example_in_rust_lose_no_connection() {
    if let Some(worker) = rust_example() {
        many_reloads_under_load(&[worker]);
    }
}

#[test]
fn many_reloads_of_the_example_in_python_lose_no_connection() {
    if let Some(worker) = python_example() {
        many_reloads_under_load(&worker);
    }
}

// Size.

#[test]
fn ttin_and_usr1_make_one_worker_more_and_ttou_one_less_but_never_none() {
    let mut pool = Workers::start(&["-v", "--ready-fd", "3"], 1, &ready_after(":"));
    pool.until_noted("ready", 1);
    for (count, signal) in [(2, Signal::SIGTTIN), (3, Signal::SIGUSR1)] {
        pool.signal(signal);
        let line = pool.line("status: ");
        assert_eq!(line, format!("fdpool: status: {count} workers"));
        pool.until_noted("ready", count);
    }
    for (terms, count) in [(1, 2), (2, 1), (2, 1), (2, 1)] {
        pool.signal(Signal::SIGTTOU);
        let line = pool.line("status: ");
        assert_eq!(line, format!("fdpool: status: {count} workers"));
        pool.until_noted("term", terms);
        pool.until_workers(count);
    }
    pool.signal(Signal::SIGTTIN);
    pool.until_noted("ready", 4);
    assert_eq!(pool.noted("term").len(), 2);
    pool.stop();
}

#[test]
fn a_worker_that_is_too_many_finishes_what_it_has_in_hand() {
    let Some(worker) = gentle() else { return };
    let mut pool = Workers::of_command(&["-v", "--ready-fd", "3"], 2, &worker);
    let clients = [pool.client(), pool.client()];
    clients.iter().for_each(Client::expect_served);
    pool.signal(Signal::SIGTTOU);
    pool.line("status: 1 workers");
    clients.iter().for_each(Client::expect_served);
    assert_eq!(pool.workers().len(), 2);
    drop(clients);
    pool.until_workers(1);
    pool.client().expect_served();
    pool.stop();
}

#[test]
fn a_place_that_waits_is_the_first_to_be_taken_away() {
    let first = "mkdir \"$DIR/first\" 2>/dev/null || [ -e \"$DIR/mended\" ] || exit 1";
    let mut pool = Workers::start(&["-v", "--ready-fd", "3"], 2, &ready_after(first));
    let well = pool.until_noted("ready", 1);
    pool.line("in 0.8 s");
    pool.signal(Signal::SIGTTOU);
    pool.line("status: 1 workers");
    pool.touch("mended");
    pool.signal(Signal::SIGHUP);
    pool.line("reload: 1 workers to replace");
    pool.line("reload: done");
    assert_eq!(pool.until_noted("term", 1), well);
    pool.until_workers(1);
    assert_eq!(pool.noted("ready").len(), 2);
    pool.stop();
}

#[test]
fn the_size_can_be_changed_in_a_reload_and_stays() {
    for (signals, count) in [
        (&[Signal::SIGTTIN][..], 3),
        (&[Signal::SIGUSR1], 3),
        (&[Signal::SIGTTOU], 1),
        (&[Signal::SIGTTOU, Signal::SIGTTIN, Signal::SIGUSR1], 3),
    ] {
        let mut pool = Workers::start(&["-v", "--ready-fd", "3"], 2, &ready_behind_a_gate());
        pool.touch("gate");
        let old = pool.until_noted("ready", 2);
        pool.remove("gate");
        pool.signal(Signal::SIGHUP);
        pool.until_workers(3);
        for signal in signals {
            pool.signal(*signal);
            pool.line("status: ");
        }
        // The first new one still waits. What is there is as many as wanted, besides it.
        pool.until_workers(count + 1);
        pool.touch("gate");
        pool.line("reload: done");
        let before = pool.until_replaced(&old, count);
        pool.until_noted("ready", old.len() + count);
        pool.reload();
        pool.until_replaced(&before, count);
        assert_never_fewer(&pool, 1);
        pool.stop();
    }
}

// The ready descriptor.

#[test]
fn any_descriptor_can_be_the_ready_one() {
    for number in (3..=16).chain([64, 200]) {
        let number = number.to_string();
        let text = format!("echo >/proc/self/fd/{number}; exec sleep 100");
        let mut pool = Workers::start(&["-v", "--ready-fd", &number], 2, &text);
        pool.line("is ready");
        pool.line("is ready");
        for worker in pool.workers() {
            let expected = [0, 1, 2, number.parse().unwrap()];
            // What else is open, it opens itself while it starts.
            let open = eventually("the worker", || {
                let open = descriptors(worker);
                let numbers = open.iter().map(|(number, _)| *number);
                numbers.eq(expected).then_some(open)
            });
            assert!(open[0].1.starts_with("socket:"), "{open:?}");
            assert!(open[3].1.starts_with("pipe:"), "{open:?}");
        }
        pool.stop();
    }
}

#[test]
fn the_ready_descriptor_can_have_the_number_of_the_queue() {
    let text =
        "exec fdpool -v --queue-fd 5 --ready-fd 5 1 --worker -- sh -c \"$0\" 5<&0 </dev/null";
    let worker = format!("echo >&5; exec 5>&-; {LOOP}");
    let mut pool = Workers::of(sh(text).arg(worker));
    pool.line("is ready");
    pool.client().expect_served();
    pool.stop();
}

#[test]
fn a_command_that_vanishes_is_noticed_whatever_the_ready_descriptor_is() {
    let mut pools: Vec<_> = (3..=12)
        .map(|number| {
            let text = format!("#!/bin/sh\necho >/proc/self/fd/{number}\nexec sleep 100\n");
            pool_of_a_file(&["--ready-fd", &number.to_string()], &text)
        })
        .collect();
    for (pool, file) in &mut pools {
        pool.line("is ready");
        let worker = pool.worker();
        std::fs::rename(file, pool.file("away")).unwrap();
        kill(worker, Signal::SIGKILL).unwrap();
    }
    for (pool, file) in &mut pools {
        pool.line("No such file or directory; next try in 0.2 s");
        std::fs::rename(pool.file("away"), file).unwrap();
    }
    for (pool, _) in &mut pools {
        pool.line("is ready");
    }
    pools.into_iter().for_each(|(pool, _)| drop(pool.stop()));
}

#[test]
fn a_worker_that_closes_its_ready_descriptor_without_a_newline_serves_all_the_same() {
    let text = format!("exec 3>&-; {LOOP}");
    let mut pool = Workers::start(&["--ready-fd", "3"], 1, &text);
    let line = pool.line("ready descriptor");
    let worker = pool.worker();
    let expected = format!("fdpool: worker {worker} closed its ready descriptor without a newline");
    assert_eq!(line, expected);
    pool.client().expect_served();
    assert_eq!(pool.worker(), worker);
    pool.stop();
}

// Stopping.

#[test]
fn a_stop_asks_every_worker_to_go() {
    for signal in STOPS {
        // Nothing but their own end is to end them.
        let mut pool = Workers::start(
            &["--grace", "100000", "--ready-fd", "3"],
            3,
            &ready_after(":"),
        );
        let workers = pool.until_noted("ready", 3);
        pool.signal(signal);
        assert_eq!(pool.expect_end(0), "");
        assert_eq!(pool.until_noted("term", 3), workers);
    }
}

#[test]
fn a_terminals_interrupt_does_not_reach_workers() {
    let text = ready_after("trap 'echo int $$ >>\"$DIR/log\"' INT");
    let mut pool = Workers::start(&["--ready-fd", "3"], 2, &text);
    pool.until_noted("ready", 2);
    pool.signal_group(Signal::SIGINT);
    pool.expect_end(0);
    assert_eq!(pool.noted("int"), []);
    assert_eq!(pool.noted("term").len(), 2);
}

#[test]
fn a_worker_that_is_asked_to_go_finishes_what_it_has_in_hand() {
    for worker in [gentle(), gentle_python()].into_iter().flatten() {
        let mut pool = Workers::of_command(&["--ready-fd", "3"], 2, &worker);
        let client = pool.client();
        client.expect_served();
        pool.until_workers(2);
        pool.term();
        // The one that is idle ends.
        pool.until_workers(1);
        // What comes now waits for somebody else.
        let later = pool.client();
        client.expect_served();
        later.expect_waiting();
        drop((client, later));
        assert_eq!(pool.expect_end(0), "");
    }
}

/// As [`gentle`], in Python.
fn gentle_python() -> Option<[String; 4]> {
    let [python, source] = <[String; 2]>::try_from(python_example()?).unwrap();
    let text = format!("echo >&3; exec '{python}' \"$0\" 3>&-");
    Some(["sh".into(), "-c".into(), text, source])
}

#[test]
fn a_stop_kills_workers_that_ignore_term_after_the_grace_with_their_groups() {
    let text = format!(
        "trap '' TERM; sleep 100 & echo child $! >>\"$DIR/log\"; echo ready $$ >>\"$DIR/log\"; {STAY}"
    );
    let mut pool = Workers::start(&["--grace", "0.3"], 2, &text);
    let workers = pool.until_noted("ready", 2);
    let children = pool.noted("child");
    let start = Instant::now();
    pool.term();
    let log = pool.expect_end(0);
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert_eq!(log.matches("did not end within 0.3 s").count(), 2, "{log}");
    assert_eq!(log.lines().count(), 2, "{log}");
    workers.into_iter().chain(children).for_each(until_gone);
}

#[test]
fn a_stop_asks_a_worker_alone_and_then_what_it_leaves() {
    let text = format!(
        "(trap 'echo child_term 0 >>\"$DIR/log\"; exit' TERM; echo child 0 >>\"$DIR/log\"; {STAY}) &\n\
         trap 'echo term $$ >>\"$DIR/log\"; \
               while [ ! -e \"$DIR/gate\" ]; do sleep 0.05; done; exit' TERM\n\
         echo ready $$ >>\"$DIR/log\"; {STAY}"
    );
    let mut pool = Workers::start(&["--grace", "100000"], 1, &text);
    pool.until_noted("ready", 1);
    pool.until_noted("child", 1);
    pool.term();
    pool.until_noted("term", 1);
    // Its child would have noted it by then.
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(pool.noted("child_term"), []);
    assert!(pool.is_running());
    pool.touch("gate");
    pool.until_noted("child_term", 1);
    pool.expect_end(0);
}

#[test]
fn a_stop_kills_what_a_worker_left_after_the_grace() {
    let text = format!("{STUBBORN} & exec sleep 100");
    let mut pool = Workers::start(&["--grace", "0.3"], 1, &text);
    let child = *pool.until_noted("child", 1).first().unwrap();
    let worker = pool.worker();
    let start = Instant::now();
    pool.term();
    until_gone(worker);
    pool.expect_end(0);
    assert!(start.elapsed() >= Duration::from_millis(300));
    until_gone(child);
}

#[test]
fn a_second_signal_kills_every_group_at_once() {
    for (first, second) in [(0, 0), (0, 1), (1, 0)] {
        // Of the first worker only a child is left when the second signal comes.
        let text = format!(
            "trap '' TERM; sleep 100 & echo child $! >>\"$DIR/log\"\n\
             if mkdir \"$DIR/first\" 2>/dev/null; then leaves=exit; fi\n\
             trap 'echo term $$ >>\"$DIR/log\"; $leaves' TERM; echo ready $$ >>\"$DIR/log\"; {STAY}"
        );
        let mut pool = Workers::start(&["--grace", "100000"], 2, &text);
        let workers = pool.until_noted("ready", 2);
        let children = pool.noted("child");
        pool.signal(STOPS[first]);
        pool.until_noted("term", 2);
        pool.until_workers(1);
        assert!(children.iter().all(|child| is_alive(*child)));
        pool.signal(STOPS[second]);
        pool.expect_end(0);
        workers.into_iter().chain(children).for_each(until_gone);
    }
}

/// A stop of a pool ends its workers that `stop` has stopped.
#[track_caller]
fn assert_stopped_workers_end(stop: impl Fn(Pid)) {
    // Nothing but their own end is to end them.
    let mut pool = Workers::start(
        &["--grace", "100000", "--ready-fd", "3"],
        2,
        &ready_after(":"),
    );
    let workers = pool.until_noted("ready", 2);
    for worker in workers {
        stop(worker);
        until_stopped(worker);
    }
    pool.term();
    pool.expect_end(0);
    assert_eq!(pool.noted("term").len(), 2);
}

#[test]
fn a_stop_reaches_workers_that_are_stopped() {
    assert_stopped_workers_end(|worker| kill(worker, Signal::SIGSTOP).unwrap());
}

#[test]
fn a_stop_reaches_workers_that_are_stopped_with_all_that_they_have_started() {
    assert_stopped_workers_end(|worker| killpg(worker, Signal::SIGSTOP).unwrap());
}

#[test]
fn a_stop_in_a_reload_ends_old_and_new() {
    let mut pool = Workers::start(&["--ready-fd", "3"], 2, &ready_behind_a_gate());
    pool.touch("gate");
    pool.until_noted("ready", 2);
    pool.remove("gate");
    pool.signal(Signal::SIGHUP);
    pool.until_workers(3);
    let all = pool.workers();
    pool.term();
    pool.expect_end(0);
    all.into_iter().for_each(until_gone);
}

#[test]
fn a_reload_in_a_stop_starts_nobody() {
    let text = ready_after("trap 'echo term $$ >>\"$DIR/log\"; touch \"$DIR/stopping\"' TERM");
    let mut pool = Workers::start(&["-v", "--grace", "0.3", "--ready-fd", "3"], 1, &text);
    let worker = pool.until_noted("ready", 1);
    pool.term();
    pool.until_noted("term", 1);
    for signal in [Signal::SIGHUP, Signal::SIGTTIN, Signal::SIGUSR1] {
        pool.signal(signal);
    }
    let log = pool.expect_end(0);
    assert_eq!(log.matches("was started").count(), 1, "{log}");
    assert!(!log.contains("reload"), "{log}");
    assert_eq!(pool.until_noted("ready", 1), worker);
}

#[test]
fn a_stop_while_a_worker_waits_for_its_next_start_ends_at_once() {
    let mut pool = Workers::start(&[], 1, "exit 1");
    pool.line("in 0.2 s");
    pool.term();
    pool.expect_end(0);
}

#[test]
fn a_stop_while_there_is_no_queue_ends_at_once() {
    let names = Names::new();
    let mut pool = Pool::on(&names.path()).workers(2, &["cat"]).start();
    pool.line("waiting");
    pool.stop();
}

#[test]
fn when_the_pool_is_killed_its_workers_get_term() {
    let mut pool = Workers::start(&["--ready-fd", "3"], 3, &ready_after(":"));
    let workers = pool.until_noted("ready", 3);
    pool.slay();
    assert_eq!(pool.until_noted("term", 3), workers);
    workers.into_iter().for_each(until_gone);
}

#[test]
fn when_the_pool_is_killed_workers_that_are_stopped_get_hup_and_term() {
    let text = ready_after("trap 'echo hup $$ >>\"$DIR/log\"' HUP");
    let mut pool = Workers::start(&["--ready-fd", "3"], 2, &text);
    let workers = pool.until_noted("ready", 2);
    for worker in &workers {
        killpg(*worker, Signal::SIGSTOP).unwrap();
        until_stopped(*worker);
    }
    pool.slay();
    // The kernel has let them go on, too.
    assert_eq!(pool.until_noted("term", 2), workers);
    assert_eq!(pool.until_noted("hup", 2), workers);
}

#[test]
fn an_example_that_is_stopped_when_the_pool_is_killed_finishes_what_it_has() {
    let examples = [rust_example().map(|path| vec![path]), python_example()];
    for command in examples.into_iter().flatten() {
        let names = Names::new();
        let acceptor = Fdaccept::bound_at(&names.path()).start();
        let port = acceptor.port;
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let mut pool = Pool::on(&names.path()).workers(1, &command).start();
        let client = Client::connect(port);
        client.expect_served();
        let worker = pool.workers().pop_first().expect("it serves");
        kill(worker, Signal::SIGSTOP).unwrap();
        until_stopped(worker);
        pool.signal(Signal::SIGKILL);
        pool.wait();
        client.expect_served();
        drop(client);
        until_gone(worker);
    }
}

#[test]
fn when_the_pool_is_killed_connections_in_hand_are_finished_and_another_pool_goes_on() {
    let Some(worker) = rust_example() else { return };
    let names = Names::new();
    let name = &names.path();
    let mut acceptor = Fdaccept::bound_at(name).start();
    let port = acceptor.port;
    let mut pool = Pool::on(name).workers(2, &[&worker]).start();
    let client = Client::connect(port);
    client.expect_served();
    until("both workers", || pool.workers().len() == 2);
    let workers = pool.workers();
    pool.slay();
    until("the end of the idle one", || {
        workers.iter().filter(|pid| is_alive(**pid)).count() == 1
    });
    let later = Client::connect(port);
    client.expect_served();
    drop(client);
    workers.into_iter().for_each(until_gone);
    let mut pool = Pool::on(name).workers(1, &[&worker]).start();
    later.expect_served();
    drop(later);
    pool.stop();
    acceptor.stop();
}

/// A command that runs another one as the first process of a container, if that can be done here.
fn container() -> Option<Command> {
    if !root() {
        return None;
    }
    let unshare = peer("unshare")?;
    let container = || {
        let mut command = Command::new(&unshare);
        command.args(["--pid", "--fork", "--kill-child"]);
        command.env("PATH", path()).stdin(Stdio::null());
        command
    };
    if !container().arg("true").status().unwrap().success() {
        skip("no namespace of processes can be made here");
        return None;
    }
    Some(container())
}

/// A worker that leaves a child, which is an orphan when it gets TERM.
fn leaves_an_orphan() -> String {
    format!("sleep 100 & trap exit TERM; echo ready $$ >>\"$DIR/log\"; {STAY}")
}

#[test]
fn the_first_process_of_a_container_ends_with_what_its_workers_left() {
    let text = leaves_an_orphan();
    let pool = ["fdpool", "--grace", "100000", "1", "--worker", "--"];
    let chain = ["fdaccept", "--grace", "0.1", ADDRESS, "--"];
    for first in [&[][..], &chain] {
        let Some(mut command) = container() else {
            return;
        };
        command.args(first).args(pool).args(["sh", "-c", &text]);
        let mut pool = Workers::of(&mut command);
        pool.until_noted("ready", 1);
        let first = pool.children()[0];
        kill(first, Signal::SIGTERM).unwrap();
        pool.expect_exit(0);
    }
}

#[test]
fn a_stop_does_not_wait_until_somebody_reaps_orphans() {
    let Some(mut command) = container() else {
        return;
    };
    // Here nobody does, as in a container whose first process knows of no orphans.
    let text = "fdpool --grace 100000 1 --worker -- sh -c \"$0\" <&3 3<&- & exec sleep 100";
    let text = format!("{{ {text}; }} 3<&0 </dev/null");
    command.args(["sh", "-c", &text, &leaves_an_orphan()]);
    let pool = Workers::of(&mut command);
    pool.until_noted("ready", 1);
    let first = pool.children()[0];
    let fdpool = children(first)[0];
    kill(fdpool, Signal::SIGTERM).unwrap();
    until_gone(fdpool);
}

// The end of the queue.

#[test]
fn at_the_end_of_the_queue_workers_end_and_so_does_the_pool() {
    for worker in kinds() {
        let mut pool = Workers::of_command(&[], 3, &worker);
        pool.client().expect_served();
        let waiting: Vec<_> = (0..10).map(|_| pool.client()).collect();
        pool.queue.close();
        waiting
            .into_iter()
            .for_each(|client| client.expect_served());
        assert_ends_quietly(&mut pool);
    }
}

#[test]
fn workers_serve_what_waits_though_who_accepted_it_is_gone_and_they_end_again_and_again() {
    let text = "while [ ! -e \"$DIR/gate\" ]; do sleep 0.05; done\n\
        mkdir \"$DIR/1\" 2>/dev/null && exit 1; mkdir \"$DIR/2\" 2>/dev/null && kill -9 $$\n\
        fdrecv -- cat; exit 0";
    let mut pool = Workers::start(&[], 1, text);
    let waiting = [pool.client(), pool.client()];
    pool.queue.close();
    pool.touch("gate");
    waiting
        .into_iter()
        .for_each(|client| client.expect_served());
    let log = pool.expect_end(0);
    // After the last one there is nothing to start another one for.
    assert_eq!(log.matches("the next one is started").count(), 3, "{log}");
}

#[test]
fn what_waits_in_the_queue_of_a_name_is_served_though_fdaccept_is_gone_and_then_the_next_one() {
    let names = Names::new();
    let name = &names.path();
    let mut acceptor = Fdaccept::bound_at(name).args(["-v"]).start();
    let port = acceptor.port;
    let text = format!(
        "while [ ! -e \"$DIR/gate\" ]; do sleep 0.05; done\n\
         mkdir \"$DIR/first\" 2>/dev/null && exit 1; {LOOP}"
    );
    let pool = Pool::on(name)
        .args(["-v"])
        .env("DIR", names.directory.path());
    let mut pool = pool.workers(1, sh_c(&text)).start();
    pool.line("was started");
    let crowd = Crowd::connect(port, 5);
    for _ in 0..5 {
        acceptor.line("accepted");
    }
    // It is in the queue when there is nothing to do any more.
    until_state(acceptor.pid(), 'S');
    acceptor.slay();
    File::create(names.file("gate")).unwrap();
    pool.line("ended with status 1; the next one is started");
    crowd.expect_served();
    let mut acceptor = Fdaccept::bound_at(name).start();
    assert_eq!(exchange(acceptor.port, b"again"), b"again");
    pool.stop();
    acceptor.stop();
}

#[test]
fn workers_are_started_anew_each_time_that_fdaccept_is_back() {
    for worker in kinds() {
        let names = Names::new();
        let name = &names.path();
        let mut pool = Pool::on(name).workers(2, &worker).start();
        // A queue that ends in either way, twice in a row.
        for signal in [
            Signal::SIGTERM,
            Signal::SIGKILL,
            Signal::SIGTERM,
            Signal::SIGKILL,
        ] {
            let mut acceptor = Fdaccept::bound_at(name).start();
            assert_two_serve(acceptor.port);
            assert_eq!(pool.workers().len(), 2);
            acceptor.signal(signal);
            acceptor.wait();
        }
        // The end of the queue is no failure.
        let log = pool.stop();
        assert!(!log.contains("the next one"), "{log}");
    }
}

#[test]
fn a_worker_that_is_busy_when_fdaccept_is_restarted_finishes_while_another_serves() {
    let names = Names::new();
    let name = &names.path();
    let mut pool = Pool::on(name).workers(2, sh_c(LOOP)).start();
    let mut acceptor = Fdaccept::bound_at(name).start();
    let client = Client::connect(acceptor.port);
    client.expect_served();
    let mut port = 0;
    for _ in 0..3 {
        acceptor.slay();
        acceptor = Fdaccept::bound_at(name).start();
        port = acceptor.port;
        assert_eq!(exchange(port, b"next"), b"next");
        client.expect_served();
    }
    // Then its place is the new queue's as well.
    drop(client);
    assert_two_serve(port);
    let log = pool.stop();
    assert!(!log.contains("the next one"), "{log}");
    acceptor.stop();
}

#[test]
fn the_only_worker_busy_when_fdaccept_is_restarted_finishes_first() {
    let names = Names::new();
    let name = &names.path();
    let mut pool = Pool::on(name).workers(1, sh_c(LOOP)).start();
    let mut acceptor = Fdaccept::bound_at(name).start();
    let client = Client::connect(acceptor.port);
    client.expect_served();
    acceptor.slay();
    let mut acceptor = Fdaccept::bound_at(name).start();
    let next = Client::connect(acceptor.port);
    client.expect_served();
    drop(client);
    next.expect_served();
    drop(next);
    pool.stop();
    acceptor.stop();
}

#[test]
fn a_reload_goes_on_when_fdaccept_is_back() {
    let names = Names::new();
    let name = &names.path();
    let mut acceptor = Fdaccept::bound_at(name).start();
    let text = format!("echo >&3; exec 3>&-; {LOOP}");
    let port = acceptor.port;
    let pool = Pool::on(name).args(["--ready-fd", "3"]);
    let mut pool = pool.workers(2, sh_c(&text)).start();
    // It keeps the old queue, and a worker of it.
    let client = Client::connect(port);
    client.expect_served();
    acceptor.slay();
    pool.line("waiting");
    pool.signal(Signal::SIGHUP);
    pool.line("reload: 1 workers to replace");
    client.expect_served();
    let mut acceptor = Fdaccept::bound_at(name).start();
    pool.line("reload: done");
    assert_two_serve(acceptor.port);
    pool.stop();
    acceptor.stop();
}

#[test]
fn once_ends_the_pool_with_the_queue() {
    let names = Names::new();
    let name = &names.path();
    for worker in kinds() {
        let mut acceptor = Fdaccept::bound_at(name).start();
        let port = acceptor.port;
        let pool = Pool::on(name).args(["--once"]);
        let mut pool = pool.workers(2, &worker).start();
        assert_two_serve(port);
        let client = Client::connect(port);
        client.expect_served();
        acceptor.stop();
        until("the end of the idle one", || pool.workers().len() == 1);
        client.expect_served();
        drop(client);
        assert_ends_quietly(&mut pool);
    }
}

// What a worker finds.

/// A pool of one worker that is `sleep`, started by a shell that does `first`; and that worker.
fn sleeper(first: &str) -> (Workers, Pid) {
    let text = format!("{first}\nexec fdpool 1 --worker -- sleep 100");
    let pool = Workers::of(&mut sh(&text));
    let worker = pool.worker();
    until_named(worker, "sleep");
    (pool, worker)
}

#[test]
fn a_worker_finds_the_queue_and_the_standard_streams_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("output");
    let text = "exec fdpool 2 --worker -- sleep 100 4</dev/null 7</dev/null 9>/dev/null";
    let blocking = |fd: &OwnedFd| {
        let flags = fcntl(fd, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
        !flags.unwrap().contains(OFlag::O_NONBLOCK)
    };
    let pool = Workers::of(sh(text).stdout(File::create(&output).unwrap()));
    pool.until_workers(2);
    let inode = fstat(&pool.queue.read_end).unwrap().st_ino;
    let stderr = descriptors(pool.pid())[2].1.clone();
    let expected = [
        (0, format!("socket:[{inode}]")),
        (1, output.to_str().unwrap().to_owned()),
        (2, stderr),
    ];
    for worker in pool.workers() {
        until("the worker", || descriptors(worker) == expected);
    }
    assert!(blocking(&pool.queue.read_end));
    pool.stop();
}

#[test]
fn a_worker_finds_every_signal_at_its_default_and_none_blocked() {
    let started = std::thread::spawn(|| {
        // For this thread, and what it starts.
        SigSet::all().thread_block().unwrap();
        let ignored = "trap '' HUP INT QUIT PIPE ALRM USR1 USR2 CHLD TSTP TTIN TTOU WINCH";
        sleeper(ignored)
    });
    let (pool, worker) = started.join().unwrap();
    for field in ["SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd"] {
        assert_eq!(status_field(worker, field), "0000000000000000", "{field}");
    }
    pool.stop();
}

#[test]
fn a_worker_finds_the_environment_without_what_speaks_of_a_connection_or_of_the_pool() {
    let ours = "export KEPT=word REMOTE_USER=kept";
    let not_ours = "export PROTO=TCP TCPREMOTEIP=1.2.3.4 TCPREMOTEPORT=5 TCPLOCALIP=1.2.3.4 \
        TCPLOCALPORT=5 TCPREMOTEHOST=x TCPREMOTEINFO=x TCPLOCALHOST=x IPCREMOTEEUID=1 \
        IPCREMOTEEGID=1 IPCREMOTEPID=1 IPCREMOTEPATH=x IPCLOCALPATH=x REMOTE_ADDR=1.2.3.4 \
        REMOTE_PORT=5 TCPCONNNUM=1 LISTEN_PID=1 LISTEN_FDS=1 LISTEN_FDNAMES=x NOTIFY_SOCKET=x";
    let (pool, worker) = sleeper(&format!("{ours}\n{not_ours}"));
    let mut expected = environ(pool.pid());
    let (words, count) = (not_ours.split(' ').skip(1), expected.len());
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    expected.retain(|entry| !words.contains(&entry.as_str()));
    assert_eq!(expected.len(), count - words.len());
    assert!(expected.contains(&"KEPT=word".to_owned()));
    assert_eq!(environ(worker), expected);
    pool.stop();
}

#[test]
fn a_worker_leads_a_group_of_its_own_and_inherits_the_rest() {
    let (pool, worker) = sleeper("cd /; umask 027; ulimit -n 77; ulimit -c 0");
    let parent = pool.pid();
    assert_eq!(getpgid(Some(worker)), Ok(worker));
    assert_eq!(getsid(Some(worker)), getsid(Some(parent)));
    assert_eq!(status_field(worker, "PPid"), parent.to_string());
    assert_eq!(status_field(worker, "Umask"), "0027");
    let read = |pid: Pid, name| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    let limits = read(worker, "limits");
    assert_eq!(limits, read(parent, "limits"));
    assert!(
        limits
            .lines()
            .any(|line| line.starts_with("Max open files            77 "))
    );
    let folder = std::fs::read_link(format!("/proc/{worker}/cwd")).unwrap();
    assert_eq!(folder, Path::new("/"));
    pool.stop();
}

// The log.

#[test]
fn verbose_tells_of_each_worker() {
    let mut pool = Workers::start(
        &["-v", "--ready-fd", "3"],
        1,
        &ready_after("trap 'exit 3' TERM"),
    );
    pool.line("is ready");
    let (one, two) = (pool.worker(), {
        pool.signal(Signal::SIGHUP);
        pool.line("is ready");
        pool.line("end ");
        pool.worker()
    });
    let log = pool.stop();
    let mut lines: Vec<_> = log.lines().collect();
    // An old one may have ended before the reload is said to be done.
    let expected = [
        format!("fdpool: worker {one} was started"),
        format!("fdpool: worker {one} is ready"),
        "fdpool: reload: 1 workers to replace".to_owned(),
        format!("fdpool: worker {two} was started"),
        format!("fdpool: worker {two} is ready"),
        "fdpool: reload: done".to_owned(),
        format!("fdpool: end {one} status 768"),
        format!("fdpool: end {two} status 768"),
    ];
    lines[5..7].sort_unstable_by_key(|line| !line.contains("reload"));
    assert_eq!(lines, expected);
}

#[test]
fn quiet_tells_of_no_restart_and_no_reload() {
    let pool = Workers::start(&["-q", "--ready-fd", "3"], 1, &ready_after(":"));
    pool.until_noted("ready", 1);
    kill(pool.worker(), Signal::SIGKILL).unwrap();
    pool.until_noted("ready", 2);
    pool.signal(Signal::SIGHUP);
    pool.until_noted("ready", 3);
    pool.until_noted("term", 1);
    pool.until_workers(1);
    assert_eq!(pool.stop(), "");
}

// Usage.

#[test]
fn what_makes_no_sense_with_workers_is_a_wrong_usage() {
    let cases: [(&[&str], &str); 12] = [
        (&["--worker", "--timeout", "1", "1"], "--timeout"),
        (&["--ready-fd", "3", "1"], "--worker"),
        (&["--worker", "--ready-fd", "0", "1"], "must be 3 or more"),
        (&["--worker", "--ready-fd", "1", "1"], "must be 3 or more"),
        (&["--worker", "--ready-fd", "2", "1"], "must be 3 or more"),
        (
            &["--worker", "--ready-fd", "x", "1"],
            "not the number of a descriptor",
        ),
        (
            &["--worker", "--ready-fd", "+3", "1"],
            "not the number of a descriptor",
        ),
        (
            &["--worker", "--ready-fd", "99999999", "1"],
            "99999999 is beyond the limit",
        ),
        (
            &["--worker", "--bind", "@name", "1"],
            "--worker needs a path for --bind",
        ),
        (&["--worker", "--once", "1"], "--connect"),
        (&["--worker", "0"], "not a number from 1 to 65536"),
        (
            &["--worker", "1", "--bind", "a", "--connect", "b"],
            "cannot be used with",
        ),
    ];
    for (arguments, problem) in cases {
        let (status, _, log) = run(program("fdpool").args(arguments).args(["--", "cat"]));
        assert_eq!(status, Some(2), "{arguments:?}: {log}");
        assert!(log.lines().next().unwrap().contains(problem), "{log}");
    }
}

#[test]
fn workers_need_a_command() {
    let (status, _, log) = run(program("fdpool").args(["--worker", "1"]));
    assert_eq!(status, Some(2));
    assert!(log.contains("COMMAND"), "{log}");
}
