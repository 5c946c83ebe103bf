//! A pool of workers: programs that stay, and take connections from the queue themselves.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::*;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::socket::SockType;
use nix::sys::stat::fstat;
use nix::unistd::{Pid, getpgid, getsid};
use tempfile::TempDir;

const ADDRESS: &str = "127.0.0.1:0";

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

/// fdpool with workers, on a queue whose write end is here.
struct Pool {
    process: Process,
    queue: Option<OwnedFd>,
    /// The other end, which stays, whoever has it besides.
    _read_end: OwnedFd,
    folder: TempDir,
}

impl Pool {
    /// With a shell script as the worker.
    fn start(arguments: &[&str], text: &str) -> Self {
        Self::of_command(arguments, &["sh", "-c", text])
    }

    fn of_command(arguments: &[&str], worker: &[impl AsRef<OsStr>]) -> Self {
        let mut command = program("fdpool");
        command
            .args(arguments)
            .args(["--worker", "--"])
            .args(worker);
        Self::of(command, tempfile::tempdir().unwrap())
    }

    /// `command` becomes the pool, and finds the queue as its standard input.
    fn of(mut command: Command, folder: TempDir) -> Self {
        let (queue, read_end) = socket_pair(SockType::SeqPacket);
        let copy = read_end.try_clone().unwrap();
        command.env("DIR", folder.path()).stdin(copy);
        Self {
            process: Process::start(&mut command),
            queue: Some(queue),
            _read_end: read_end,
            folder,
        }
    }

    fn workers(&self) -> BTreeSet<Pid> {
        workers(&self.process)
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
        self.folder.path().join(name)
    }

    fn touch(&self, name: &str) {
        File::create(self.file(name)).unwrap();
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.file(name)).unwrap();
    }

    /// A client whose connection now is in the queue.
    fn client(&self) -> UnixStream {
        let (client, connection) = UnixStream::pair().unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        client.set_write_timeout(Some(DEADLINE)).unwrap();
        let queue = self.queue.as_ref().unwrap();
        fdtools::queue::send(queue, b"FDTOOLS=1\n", &[connection.as_fd()]).unwrap();
        client
    }

    #[track_caller]
    fn reload(&mut self) {
        self.process.signal(Signal::SIGHUP);
        self.process.line("reload: done");
    }

    /// Stops it, and returns what it has said.
    #[track_caller]
    fn stop(mut self) -> String {
        self.process.signal(Signal::SIGTERM);
        assert_ends_well(&mut self.process)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        end_workers(&mut self.process);
    }
}

/// Where a test fails, no worker is to outlive it, nor what it has started.
fn end_workers(pool: &mut Process) {
    if pool.is_running() {
        pool.signal(Signal::SIGSTOP);
        for worker in workers(pool) {
            let _ = killpg(worker, Signal::SIGKILL);
        }
    }
}

/// The workers of a pool. Whoever else is its child leads no process group.
fn workers(pool: &Process) -> BTreeSet<Pid> {
    let leads = |pid: &Pid| getpgid(Some(*pid)) == Ok(*pid);
    let read = || -> BTreeSet<Pid> { children(pool.pid()).into_iter().filter(leads).collect() };
    // While one ends, the kernel may leave out another one (proc_pid_task(5)).
    loop {
        let workers = read();
        if read() == workers {
            return workers;
        }
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

#[track_caller]
fn assert_ends_well(process: &mut Process) -> String {
    let (status, log) = process.finish();
    assert_eq!(status.code(), Some(0), "{log}");
    log
}

/// As above, and that nothing was said besides what the script's fdrecv says of the end.
#[track_caller]
fn assert_ends_quietly(process: &mut Process) {
    let log = assert_ends_well(process);
    let mut lines = log.lines();
    assert!(
        lines.all(|line| line == "fdrecv: the queue is closed"),
        "{log}"
    );
}

#[track_caller]
fn stop(process: &mut Process) -> String {
    process.signal(Signal::SIGTERM);
    assert_ends_well(process)
}

#[track_caller]
fn until_gone(pid: Pid) {
    until(&format!("the end of {pid}"), || !is_alive(pid));
}

/// Expects that the connection is being served: what is sent comes back.
#[track_caller]
fn assert_is_served(mut client: impl Read + Write) {
    client.write_all(b"ping\n").unwrap();
    let mut answer = [0; 5];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"ping\n");
}

/// Expects that nobody has answered yet, nor closed the connection.
#[track_caller]
fn assert_waits(mut client: &UnixStream) {
    client.set_nonblocking(true).unwrap();
    let read = client.read(&mut [0]);
    client.set_nonblocking(false).unwrap();
    assert_eq!(read.unwrap_err().kind(), ErrorKind::WouldBlock);
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
    let script = ["sh", "-c", LOOP].map(str::to_owned).to_vec();
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

fn fdaccept(arguments: &[&str]) -> Process {
    Process::start(program("fdaccept").args(arguments))
}

fn fdpool(arguments: &[&str], worker: &[impl AsRef<OsStr>]) -> Started {
    let mut command = program("fdpool");
    command
        .args(arguments)
        .args(["--worker", "--"])
        .args(worker);
    Started(Process::start(&mut command))
}

/// A pool whose queue comes from elsewhere.
struct Started(Process);

impl Deref for Started {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.0
    }
}

impl DerefMut for Started {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.0
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        end_workers(self);
    }
}

/// Expects that two workers serve.
#[track_caller]
fn assert_two_serve(port: u16) {
    let clients = [connect(port), connect(port)];
    clients.iter().for_each(|client| assert_is_served(client));
    clients.iter().for_each(|client| assert_is_served(client));
    drop(clients);
    for number in 0..5 {
        let request = format!("request {number}").into_bytes();
        assert_eq!(exchange(port, &request), request);
    }
}

/// A field of /proc/PID/status.
fn status_field(pid: Pid, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mut fields = status.lines().filter_map(|line| line.split_once(":\t"));
    let field = fields.find(|(key, _)| *key == name);
    field.unwrap().1.to_owned()
}

/// Waits until a process runs this program. Where that is at the end of a script, nobody needs the
/// script any more.
#[track_caller]
fn until_named(pid: Pid, name: &str) {
    until(name, || status_field(pid, "Name") == name);
}

// Where the queue comes from.

#[test]
fn workers_serve_a_queue_that_came_by_ticket() {
    for worker in kinds() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut acceptor = Process::start(program("fdaccept").arg(ADDRESS).stdout(writer));
        let mut command = program("fdpool");
        command.args(["2", "--worker", "--"]).args(&worker);
        let mut pool = Process::start(command.stdin(reader));
        // Or this would hold the pipe open.
        drop(command);
        assert_two_serve(acceptor.port());
        stop(&mut acceptor);
        assert_ends_quietly(&mut pool);
    }
}

#[test]
fn when_a_pool_behind_a_pipe_stops_so_does_fdaccept() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut acceptor = Process::start(program("fdaccept").arg(ADDRESS).stdout(writer));
    let mut command = program("fdpool");
    command.args(["2", "--worker", "--", "sh", "-c", LOOP]);
    let mut pool = Process::start(command.stdin(reader));
    drop(command);
    // No worker may hold the pipe.
    assert_two_serve(acceptor.port());
    stop(&mut pool);
    assert_ends_well(&mut acceptor);
}

#[test]
fn workers_serve_a_queue_in_a_chain() {
    for worker in kinds() {
        let mut command = program("fdaccept");
        command.args([ADDRESS, "--", "fdpool", "2", "--worker", "--"]);
        let mut process = Process::start(command.args(&worker));
        assert_two_serve(process.port());
        process.signal(Signal::SIGTERM);
        let (status, log) = process.finish();
        let lines = besides_counters(&log).into_iter();
        let more = lines.filter(|line| !line.starts_with("fdrecv: "));
        assert_eq!((status.code(), more.count()), (Some(0), 1), "{log}");
    }
}

#[test]
fn workers_serve_a_queue_that_a_name_gives() {
    let names = Names::new();
    for worker in kinds() {
        for name in [&names.path(), &names.abstract_name()] {
            let mut acceptor = fdaccept(&["--bind", name, ADDRESS]);
            let port = acceptor.port();
            let mut pool = fdpool(&["--connect", name, "2"], &worker);
            assert_two_serve(port);
            stop(&mut acceptor);
            pool.line("waiting");
            let log = stop(&mut pool);
            assert!(!log.contains("the next one"), "{log}");
        }
    }
}

#[test]
fn workers_serve_a_queue_at_a_path_that_the_pool_owns() {
    let names = Names::new();
    let name = &names.path();
    for worker in kinds() {
        let mut pool = fdpool(&["--bind", name, "2"], &worker);
        let mut acceptor = fdaccept(&["--connect", name, ADDRESS]);
        assert_two_serve(acceptor.port());
        stop(&mut acceptor);
        // Others may come.
        let mut acceptor = fdaccept(&["--connect", name, ADDRESS]);
        assert_two_serve(acceptor.port());
        stop(&mut acceptor);
        assert_eq!(stop(&mut pool), "");
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
            let mut acceptor = Process::start(program("fdaccept").arg(ADDRESS).stdout(write_end));
            let mut command = script("sh", text);
            command.arg("sh").args(&worker);
            let mut pool = Process::start(command.stdin(read_end));
            drop(command);
            assert_two_serve(acceptor.port());
            stop(&mut acceptor);
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
    let mut pool = Pool::start(&["2"], &format!("exec 2>/dev/null; {text}"));
    let both = pool.until_noted("ready", 2);
    std::thread::sleep(Duration::from_millis(1000));
    let (first, other) = (*both.first().unwrap(), *both.last().unwrap());
    kill(first, Signal::SIGKILL).unwrap();
    let line = pool.process.line("the next one");
    let expected =
        format!("fdpool: worker {first} was ended by signal 9; the next one is started at once");
    assert_eq!(line, expected);
    for (count, delay) in [(1, "0.1"), (2, "0.2")] {
        pool.until_noted("end", count);
        let worker = pool.noted("end")[count - 1];
        let expected = format!(
            "fdpool: worker {worker} ended with status 4; the next one is started in {delay} s"
        );
        assert_eq!(pool.process.line("the next one"), expected);
    }
    assert!(is_alive(other));
    pool.stop();
}

#[test]
fn after_a_worker_that_ended_too_soon_there_is_a_delay_that_doubles() {
    let start = Instant::now();
    let mut pool = Pool::start(&["1"], "echo start $$ >>\"$DIR/log\"; exit 3");
    pool.process.line("in 0.8 s");
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
    let arguments = ["--ready-fd", "3", "4"];
    let mut pool = Pool::start(&arguments, "echo start $$ >>\"$DIR/log\"; exit 3");
    pool.process.line("in 0.4 s");
    let log = pool.stop();
    let foreign = log.lines().find(|line| !line.contains("the next one"));
    assert_eq!(foreign, None);
}

#[test]
fn a_worker_that_fails_again_and_again_leaves_the_work_to_the_others() {
    let text = format!("mkdir \"$DIR/taken\" 2>/dev/null || exit 1; {LOOP}");
    let mut pool = Pool::start(&["3"], &text);
    let client = pool.client();
    assert_is_served(&client);
    pool.process.line("in 0.2 s");
    pool.process.line("in 0.2 s");
    assert_is_served(&client);
    drop(client);
    assert_is_served(pool.client());
    pool.stop();
}

#[test]
fn what_a_worker_does_not_receive_stays_in_the_queue_whatever_happens_to_it() {
    let text = format!(
        "echo start $$ >>\"$DIR/log\"; while [ ! -e \"$DIR/go\" ]; do sleep 0.05; done; {LOOP}"
    );
    let mut pool = Pool::start(&["1"], &text);
    let clients: Vec<_> = (0..5).map(|_| pool.client()).collect();
    for (round, signal) in [Signal::SIGKILL, Signal::SIGTERM].into_iter().enumerate() {
        pool.until_noted("start", round + 1);
        kill(pool.worker(), signal).unwrap();
        pool.process.line("the next one");
    }
    clients.iter().for_each(assert_waits);
    pool.touch("go");
    clients.into_iter().for_each(assert_is_served);
    pool.stop();
}

#[test]
fn stopped_workers_leave_connections_to_the_others() {
    let mut pool = Pool::start(&["3"], LOOP);
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
        assert_is_served(pool.client());
    }
    // Nor do they hold up the end.
    pool.process.signal(Signal::SIGTERM);
    assert_eq!(assert_ends_well(&mut pool.process), "");
}

#[test]
fn what_a_worker_left_behind_may_finish() {
    let pool = Pool::start(&["1"], LOOP);
    let client = pool.client();
    assert_is_served(&client);
    let first = pool.worker();
    kill(first, Signal::SIGKILL).unwrap();
    // Its child goes on with the connection, and the next worker with the queue.
    assert_is_served(pool.client());
    assert_is_served(&client);
    pool.stop();
}

#[test]
fn a_child_that_a_worker_left_behind_gets_term_after_the_grace_and_kill_5_seconds_later() {
    let text = "if mkdir \"$DIR/first\"; then \
        (trap 'echo term 0 >>\"$DIR/log\"' TERM; while :; do sleep 0.05; done) & \
        echo child $! >>\"$DIR/log\"; exit; fi 2>/dev/null; exec sleep 100";
    let start = Instant::now();
    let pool = Pool::start(&["--grace", "0.3", "1"], text);
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
fn pool_of_a_file(options: &[&str], text: &str) -> (Pool, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let worker = executable(folder.path().join("worker"), text);
    let mut command = program("fdpool");
    command
        .arg("-v")
        .args(options)
        .args(["1", "--worker", "--"])
        .arg(&worker);
    let mut pool = Pool::of(command, folder);
    pool.process.line("was started");
    (pool, worker)
}

#[test]
fn a_command_that_vanishes_while_the_pool_runs_is_tried_until_it_is_back() {
    // With a line for the kernel and without one.
    for start in ["#!/bin/sh\n", ""] {
        let (mut pool, file) = pool_of_a_file(&[], &format!("{start}{LOOP}\n"));
        assert_is_served(pool.client());
        let away = pool.file("away");
        std::fs::rename(&file, &away).unwrap();
        let worker = pool.worker();
        killpg(worker, Signal::SIGKILL).unwrap();
        // Who is killed while it waits for a connection may still get one.
        until("the end of its group", || killpg(worker, None).is_err());
        let client = pool.client();
        let line = pool.process.line("next try in 0.2 s");
        let expected = format!(
            "fdpool: cannot run {}: No such file or directory; next try in 0.2 s",
            file.display()
        );
        assert_eq!(line, expected);
        assert_waits(&client);
        std::fs::rename(&away, &file).unwrap();
        assert_is_served(&client);
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
    pool.process.line("Permission denied; next try in 0.2 s");
    set_mode(0o755);
    until("another worker", || pool.worker() != first);
    pool.stop();
}

#[test]
fn a_reload_whose_command_is_gone_keeps_the_old_workers() {
    let (mut pool, file) = pool_of_a_file(&[], "#!/bin/sh\nexec sleep 100\n");
    let first = pool.worker();
    until_named(first, "sleep");
    let away = pool.file("away");
    std::fs::rename(&file, &away).unwrap();
    pool.process.signal(Signal::SIGHUP);
    let line = pool.process.line("stay");
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
        let (queue, read_end) = socket_pair(SockType::SeqPacket);
        fdtools::queue::send(&queue, b"first", &[queue.as_fd()]).unwrap();
        let mut command = program("fdpool");
        command.args(["1", "--worker", worker]);
        let (status, _, log) = run(command.stdin(read_end.try_clone().unwrap()));
        assert_eq!(status, Some(expected), "{log}");
        let message = fdtools::queue::try_receive(&read_end).unwrap();
        assert_eq!(message.payload, b"first");
    }
}

// HUP.

/// Expects that at no time fewer than `count` were there that are ready and were not asked to go.
#[track_caller]
fn assert_never_fewer(pool: &Pool, count: usize) {
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
        let size = count.to_string();
        let mut pool = Pool::start(&["--ready-fd", "3", &size], &ready_after(":"));
        let mut old = pool.until_noted("ready", count);
        for round in 1..=3 {
            pool.process.signal(Signal::SIGHUP);
            let line = pool.process.line("reload: ");
            assert_eq!(line, format!("fdpool: reload: {count} workers to replace"));
            pool.process.line("reload: done");
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
    let mut pool = Pool::of_command(&["-v", "1"], &["sleep", "100"]);
    pool.process.line("was started");
    let old = pool.worker();
    let start = Instant::now();
    pool.process.signal(Signal::SIGHUP);
    pool.process.line(&format!("end {old} status 15"));
    assert!(start.elapsed() >= Duration::from_secs(1));
    until("another worker", || pool.worker() != old);
    pool.stop();
}

#[test]
fn with_a_ready_descriptor_a_new_worker_has_started_when_it_says_so_and_not_before() {
    let mut pool = Pool::start(&["--ready-fd", "3", "1"], &ready_behind_a_gate());
    pool.touch("gate");
    let old = pool.until_noted("ready", 1);
    pool.remove("gate");
    pool.process.signal(Signal::SIGHUP);
    pool.until_workers(2);
    // That it lives for a second does not count.
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(pool.noted("term"), []);
    assert_eq!(pool.workers().len(), 2);
    pool.touch("gate");
    pool.process.line("reload: done");
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
    let mut pool = Pool::start(&[options, &["2"]].concat(), &text);
    let old = pool.until_noted("ready", 2);
    pool.touch("broken");
    pool.process.signal(Signal::SIGHUP);
    let line = pool.process.line("the old workers stay");
    let said = |word: &&&str| line.contains(**word);
    assert!(line.starts_with("fdpool: reload: worker "), "{line}");
    assert!(words.iter().find(said).is_some(), "{line}");
    until("the end of the new one", || pool.workers() == old);
    assert_eq!(pool.noted("term"), []);
    // It does not go on by itself.
    assert!(!pool.process.log().contains("reload: done"));
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
    let mut pool = Pool::start(&["-v", "--ready-fd", "3", "1"], &ready_after(first));
    pool.process.line("is ready");
    let old = pool.worker();
    pool.reload();
    until("another worker", || pool.worker() != old);
    assert_never_fewer(&pool, 1);
    pool.stop();
}

#[test]
fn a_new_worker_that_never_is_ready_leaves_the_old_ones_until_the_next_reload() {
    let first = "if [ -e \"$DIR/broken\" ]; then trap - TERM; printf junk >&3; sleep 100; fi";
    let mut pool = Pool::start(&["--ready-fd", "3", "2"], &ready_after(first));
    let old = pool.until_noted("ready", 2);
    pool.touch("broken");
    pool.process.signal(Signal::SIGHUP);
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
    let arguments = ["-v", "--ready-fd", "3", "2"];
    let mut pool = Pool::start(&arguments, &ready_behind_a_gate());
    pool.touch("gate");
    pool.until_noted("ready", 2);
    pool.remove("gate");
    for _ in 0..3 {
        pool.process.signal(Signal::SIGHUP);
        pool.process.line("reload: 2 workers to replace");
        pool.process.line("was started");
    }
    pool.touch("gate");
    pool.process.line("reload: done");
    pool.until_workers(2);
    // All that are there came after the last signal.
    let log = pool.process.log();
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
    let mut pool = Pool::start(&["--ready-fd", "3", "2"], &ready_after(":"));
    let old = pool.until_noted("ready", 2);
    let mut random = Random(4);
    for _ in 0..20 {
        pool.process.signal(Signal::SIGHUP);
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
    let mut pool = Pool::start(
        &["--grace", "100000", "2"],
        "trap '' TERM; while :; do sleep 1; done",
    );
    pool.until_workers(2);
    let mut most = 0;
    for _ in 0..500 {
        pool.process.signal(Signal::SIGHUP);
        pool.process.line("to replace");
        most = most.max(pool.workers().len());
    }
    // Four that leave for each place, those that stay, and a candidate.
    assert!((3..=8 + 2 + 1).contains(&most), "{most} workers");
    pool.process.signal(Signal::SIGTERM);
    pool.process.signal(Signal::SIGINT);
    assert_ends_well(&mut pool.process);
}

#[test]
fn a_worker_of_another_user_that_cannot_be_ended_is_given_up() {
    if !root() {
        return;
    }
    let Some(setpriv) = peer("setpriv") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let copy = "chmod 755 . && cp \"$0\" ./fdpool && chmod 755 ./fdpool";
    let mut copy = script("sh", copy);
    copy.current_dir(&dir).arg(bin_dir().join("fdpool"));
    assert!(run(&mut copy).0 == Some(0));
    // The pool may become somebody else, but not signal them.
    let capabilities = "-all,+setuid,+setgid";
    let mut command = Command::new(&setpriv);
    command.args(["--reuid=65533", "--regid=65533", "--clear-groups"]);
    command.args(["--inh-caps", capabilities, "--ambient-caps", capabilities]);
    command.args([
        "./fdpool",
        "--grace",
        "0.1",
        "--queue-fd",
        "0",
        "--worker",
        "1",
        "--",
    ]);
    command
        .arg(&setpriv)
        .args(["--reuid=65532", "sleep", "1000"]);
    let (_write_end, read_end) = socket_pair(SockType::SeqPacket);
    let mut pool = Process::start(command.current_dir(&dir).stdin(read_end));
    let is_another = |pid: &Pid| status_field(*pid, "Uid").starts_with("65532");
    let worker = eventually("the worker", || {
        children(pool.pid()).into_iter().find(is_another)
    });
    pool.signal(Signal::SIGTERM);
    pool.line(&format!(
        "worker {worker} cannot be ended, and is left alone"
    ));
    assert_eq!(pool.wait().code(), Some(0));
    kill(worker, Signal::SIGKILL).unwrap();
}

#[test]
fn a_reload_starts_a_worker_whose_place_waits_and_its_delay_begins_anew() {
    let mut pool = Pool::start(&["1"], "exit 1");
    pool.process.line("in 0.8 s");
    pool.process.signal(Signal::SIGHUP);
    pool.process.line("reload: 0 workers to replace");
    assert!(pool.process.line("the next one").ends_with("in 0.1 s"));
    pool.stop();
}

#[test]
fn a_reload_replaces_those_that_are_there_while_one_fails() {
    // Only who has the place is well; a new one takes it over.
    let first = "if [ -e \"$DIR/full\" ]; then exit 1; fi";
    let mut pool = Pool::start(&["--ready-fd", "3", "2"], &ready_after(first));
    let both = pool.until_noted("ready", 2);
    pool.touch("full");
    let gone = *both.first().unwrap();
    kill(gone, Signal::SIGKILL).unwrap();
    pool.process.line("in 0.2 s");
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
        let arguments = ["-v", "--grace", "0.2", "--ready-fd", "3", "1"];
        let mut pool = Pool::start(&arguments, &text);
        pool.process.line("is ready");
        let old = pool.worker();
        let child = *pool.until_noted("child", 1).first().unwrap();
        let start = Instant::now();
        pool.reload();
        pool.process.line(&format!("end {old} status {status}"));
        until_gone(child);
        assert!(start.elapsed() >= Duration::from_millis(200));
        until("another worker", || pool.worker() != old);
        let log = pool.stop();
        let killed = format!("worker {old} did not end within 0.2 s, and is killed");
        assert_eq!(log.contains(&killed), status == 9, "{log}");
    }
}

#[test]
fn old_workers_that_are_stopped_go_too() {
    let arguments = ["--grace", "100000", "--ready-fd", "3", "2"];
    let mut pool = Pool::start(&arguments, &ready_after(":"));
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
    let mut pool = Pool::of_command(&["--ready-fd", "3", "1"], &worker);
    let mut clients = Vec::new();
    for round in 1..=4 {
        let client = pool.client();
        assert_is_served(&client);
        clients.push(client);
        assert_eq!(pool.workers().len(), round);
        pool.reload();
    }
    for client in clients {
        assert_is_served(&client);
        let before = pool.workers().len();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!((&client).read(&mut [0]).unwrap(), 0);
        pool.until_workers(before - 1);
    }
    assert_is_served(pool.client());
    pool.stop();
}

#[test]
fn a_reload_before_there_is_a_queue_does_no_harm() {
    let names = Names::new();
    let name = &names.path();
    let mut pool = fdpool(&["--connect", name, "2"], &["sh", "-c", LOOP]);
    pool.line("waiting");
    pool.signal(Signal::SIGHUP);
    pool.line("reload: 0 workers to replace");
    let mut acceptor = fdaccept(&["--bind", name, ADDRESS]);
    assert_two_serve(acceptor.port());
    stop(&mut pool);
    stop(&mut acceptor);
}

#[test]
fn a_hangup_that_was_ignored_when_the_pool_started_reloads_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = script(
        "sh",
        "trap '' HUP; exec fdpool --ready-fd 3 1 --worker -- sh -c \"$0\"",
    );
    command.arg(ready_after(":"));
    let mut pool = Pool::of(command, folder);
    let old = pool.until_noted("ready", 1);
    pool.reload();
    pool.until_replaced(&old, 1);
    pool.stop();
}

#[test]
fn without_workers_a_hangup_ends_the_pool() {
    let (_queue, read_end) = socket_pair(SockType::SeqPacket);
    let mut command = program("fdpool");
    let mut pool = Process::start(command.args(["1", "--", "cat"]).stdin(read_end));
    until("a slot", || children(pool.pid()).len() == 1);
    pool.signal(Signal::SIGHUP);
    assert_eq!(pool.wait().signal(), Some(Signal::SIGHUP as i32));
}

/// Clients without a pause, each of which wants its own bytes back, while `chaos` goes on.
fn under_load(arguments: &[&str], worker: &[String], chaos: impl FnOnce(&mut Process)) {
    /// Also where something fails.
    struct Ends<'a>(&'a AtomicBool);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    let names = Names::new();
    let name = names.path();
    let mut acceptor = fdaccept(&["--bind", &name, ADDRESS]);
    let port = acceptor.port();
    let mut pool = fdpool(&[&["--connect", &name], arguments].concat(), worker);
    let (done, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let end = Ends(&done);
        for client in 0..4 {
            let (done, served) = (&done, &served);
            scope.spawn(move || {
                for number in 0.. {
                    let request = format!("client {client}, request {number}\n").into_bytes();
                    assert_eq!(exchange(port, &request), request);
                    served.fetch_add(1, Ordering::SeqCst);
                    if done.load(Ordering::SeqCst) {
                        return;
                    }
                }
            });
        }
        until("the first to be served", || {
            served.load(Ordering::SeqCst) > 0
        });
        chaos(&mut pool);
        let before = served.load(Ordering::SeqCst);
        until("more to be served", || {
            served.load(Ordering::SeqCst) > before
        });
        drop(end);
    });
    stop(&mut pool);
    stop(&mut acceptor);
}

fn reload_under_load(worker: &[String]) {
    under_load(&["1"], worker, |pool| {
        let old = workers(pool);
        pool.signal(Signal::SIGHUP);
        pool.line("reload: done");
        until("new workers", || {
            let new = workers(pool);
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
    under_load(&["--ready-fd", "3", "2"], &command, |pool| {
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
    let mut pool = Pool::start(&["-v", "--ready-fd", "3", "1"], &ready_after(":"));
    pool.until_noted("ready", 1);
    for (count, signal) in [(2, Signal::SIGTTIN), (3, Signal::SIGUSR1)] {
        pool.process.signal(signal);
        let line = pool.process.line("status: ");
        assert_eq!(line, format!("fdpool: status: {count} workers"));
        pool.until_noted("ready", count);
    }
    for (terms, count) in [(1, 2), (2, 1), (2, 1), (2, 1)] {
        pool.process.signal(Signal::SIGTTOU);
        let line = pool.process.line("status: ");
        assert_eq!(line, format!("fdpool: status: {count} workers"));
        pool.until_noted("term", terms);
        pool.until_workers(count);
    }
    pool.process.signal(Signal::SIGTTIN);
    pool.until_noted("ready", 4);
    assert_eq!(pool.noted("term").len(), 2);
    pool.stop();
}

#[test]
fn a_worker_that_is_too_many_finishes_what_it_has_in_hand() {
    let Some(worker) = gentle() else { return };
    let mut pool = Pool::of_command(&["-v", "--ready-fd", "3", "2"], &worker);
    let clients = [pool.client(), pool.client()];
    clients.iter().for_each(|client| assert_is_served(client));
    pool.process.signal(Signal::SIGTTOU);
    pool.process.line("status: 1 workers");
    clients.iter().for_each(|client| assert_is_served(client));
    assert_eq!(pool.workers().len(), 2);
    drop(clients);
    pool.until_workers(1);
    assert_is_served(pool.client());
    pool.stop();
}

#[test]
fn a_place_that_waits_is_the_first_to_be_taken_away() {
    let first = "mkdir \"$DIR/first\" 2>/dev/null || [ -e \"$DIR/mended\" ] || exit 1";
    let mut pool = Pool::start(&["-v", "--ready-fd", "3", "2"], &ready_after(first));
    let well = pool.until_noted("ready", 1);
    pool.process.line("in 0.8 s");
    pool.process.signal(Signal::SIGTTOU);
    pool.process.line("status: 1 workers");
    pool.touch("mended");
    pool.process.signal(Signal::SIGHUP);
    pool.process.line("reload: 1 workers to replace");
    pool.process.line("reload: done");
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
        let arguments = ["-v", "--ready-fd", "3", "2"];
        let mut pool = Pool::start(&arguments, &ready_behind_a_gate());
        pool.touch("gate");
        let old = pool.until_noted("ready", 2);
        pool.remove("gate");
        pool.process.signal(Signal::SIGHUP);
        pool.until_workers(3);
        for signal in signals {
            pool.process.signal(*signal);
            pool.process.line("status: ");
        }
        // The first new one still waits. What is there is as many as wanted, besides it.
        pool.until_workers(count + 1);
        pool.touch("gate");
        pool.process.line("reload: done");
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
        let mut pool = Pool::start(&["-v", "--ready-fd", &number, "2"], &text);
        pool.process.line("is ready");
        pool.process.line("is ready");
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
    let mut command = script("sh", text);
    command.arg(format!("echo >&5; exec 5>&-; {LOOP}"));
    let mut pool = Pool::of(command, tempfile::tempdir().unwrap());
    pool.process.line("is ready");
    assert_is_served(pool.client());
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
        pool.process.line("is ready");
        let worker = pool.worker();
        std::fs::rename(file, pool.file("away")).unwrap();
        kill(worker, Signal::SIGKILL).unwrap();
    }
    for (pool, file) in &mut pools {
        pool.process
            .line("No such file or directory; next try in 0.2 s");
        std::fs::rename(pool.file("away"), file).unwrap();
    }
    for (pool, _) in &mut pools {
        pool.process.line("is ready");
    }
    pools.into_iter().for_each(|(pool, _)| drop(pool.stop()));
}

#[test]
fn a_worker_that_closes_its_ready_descriptor_without_a_newline_serves_all_the_same() {
    let text = format!("exec 3>&-; {LOOP}");
    let mut pool = Pool::start(&["--ready-fd", "3", "1"], &text);
    let line = pool.process.line("ready descriptor");
    let worker = pool.worker();
    let expected = format!("fdpool: worker {worker} closed its ready descriptor without a newline");
    assert_eq!(line, expected);
    assert_is_served(pool.client());
    assert_eq!(pool.worker(), worker);
    pool.stop();
}

// Stopping.

#[test]
fn a_stop_asks_every_worker_to_go() {
    for signal in STOPS {
        // Nothing but their own end is to end them.
        let arguments = ["--grace", "100000", "--ready-fd", "3", "3"];
        let mut pool = Pool::start(&arguments, &ready_after(":"));
        let workers = pool.until_noted("ready", 3);
        pool.process.signal(signal);
        assert_eq!(assert_ends_well(&mut pool.process), "");
        assert_eq!(pool.until_noted("term", 3), workers);
    }
}

#[test]
fn a_terminals_interrupt_does_not_reach_workers() {
    let text = ready_after("trap 'echo int $$ >>\"$DIR/log\"' INT");
    let mut pool = Pool::start(&["--ready-fd", "3", "2"], &text);
    pool.until_noted("ready", 2);
    pool.process.signal_group(Signal::SIGINT);
    assert_ends_well(&mut pool.process);
    assert_eq!(pool.noted("int"), []);
    assert_eq!(pool.noted("term").len(), 2);
}

#[test]
fn a_worker_that_is_asked_to_go_finishes_what_it_has_in_hand() {
    for worker in [gentle(), gentle_python()].into_iter().flatten() {
        let mut pool = Pool::of_command(&["--ready-fd", "3", "2"], &worker);
        let client = pool.client();
        assert_is_served(&client);
        pool.until_workers(2);
        pool.process.signal(Signal::SIGTERM);
        // The one that is idle ends.
        pool.until_workers(1);
        // What comes now waits for somebody else.
        let later = pool.client();
        assert_is_served(&client);
        assert_waits(&later);
        drop((client, later));
        assert_eq!(assert_ends_well(&mut pool.process), "");
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
    let mut pool = Pool::start(&["--grace", "0.3", "2"], &text);
    let workers = pool.until_noted("ready", 2);
    let children = pool.noted("child");
    let start = Instant::now();
    pool.process.signal(Signal::SIGTERM);
    let log = assert_ends_well(&mut pool.process);
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
    let mut pool = Pool::start(&["--grace", "100000", "1"], &text);
    pool.until_noted("ready", 1);
    pool.until_noted("child", 1);
    pool.process.signal(Signal::SIGTERM);
    pool.until_noted("term", 1);
    // Its child would have noted it by then.
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(pool.noted("child_term"), []);
    assert!(pool.process.is_running());
    pool.touch("gate");
    pool.until_noted("child_term", 1);
    assert_ends_well(&mut pool.process);
}

#[test]
fn a_stop_kills_what_a_worker_left_after_the_grace() {
    let text = format!("{STUBBORN} & exec sleep 100");
    let mut pool = Pool::start(&["--grace", "0.3", "1"], &text);
    let child = *pool.until_noted("child", 1).first().unwrap();
    let worker = pool.worker();
    let start = Instant::now();
    pool.process.signal(Signal::SIGTERM);
    until_gone(worker);
    assert_ends_well(&mut pool.process);
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
        let mut pool = Pool::start(&["--grace", "100000", "2"], &text);
        let workers = pool.until_noted("ready", 2);
        let children = pool.noted("child");
        pool.process.signal(STOPS[first]);
        pool.until_noted("term", 2);
        pool.until_workers(1);
        assert!(children.iter().all(|child| is_alive(*child)));
        pool.process.signal(STOPS[second]);
        assert_ends_well(&mut pool.process);
        workers.into_iter().chain(children).for_each(until_gone);
    }
}

/// A stop of a pool ends its workers that `stop` has stopped.
#[track_caller]
fn assert_stopped_workers_end(stop: impl Fn(Pid)) {
    // Nothing but their own end is to end them.
    let arguments = ["--grace", "100000", "--ready-fd", "3", "2"];
    let mut pool = Pool::start(&arguments, &ready_after(":"));
    let workers = pool.until_noted("ready", 2);
    for worker in workers {
        stop(worker);
        until_stopped(worker);
    }
    pool.process.signal(Signal::SIGTERM);
    assert_ends_well(&mut pool.process);
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
    let mut pool = Pool::start(&["--ready-fd", "3", "2"], &ready_behind_a_gate());
    pool.touch("gate");
    pool.until_noted("ready", 2);
    pool.remove("gate");
    pool.process.signal(Signal::SIGHUP);
    pool.until_workers(3);
    let all = pool.workers();
    pool.process.signal(Signal::SIGTERM);
    assert_ends_well(&mut pool.process);
    all.into_iter().for_each(until_gone);
}

#[test]
fn a_reload_in_a_stop_starts_nobody() {
    let text = ready_after("trap 'echo term $$ >>\"$DIR/log\"; touch \"$DIR/stopping\"' TERM");
    let arguments = ["-v", "--grace", "0.3", "--ready-fd", "3", "1"];
    let mut pool = Pool::start(&arguments, &text);
    let worker = pool.until_noted("ready", 1);
    pool.process.signal(Signal::SIGTERM);
    pool.until_noted("term", 1);
    for signal in [Signal::SIGHUP, Signal::SIGTTIN, Signal::SIGUSR1] {
        pool.process.signal(signal);
    }
    let log = assert_ends_well(&mut pool.process);
    assert_eq!(log.matches("was started").count(), 1, "{log}");
    assert!(!log.contains("reload"), "{log}");
    assert_eq!(pool.until_noted("ready", 1), worker);
}

#[test]
fn a_stop_while_a_worker_waits_for_its_next_start_ends_at_once() {
    let mut pool = Pool::start(&["1"], "exit 1");
    pool.process.line("in 0.2 s");
    pool.process.signal(Signal::SIGTERM);
    assert_ends_well(&mut pool.process);
}

#[test]
fn a_stop_while_there_is_no_queue_ends_at_once() {
    let names = Names::new();
    let mut pool = fdpool(&["--connect", &names.path(), "2"], &["cat"]);
    pool.line("waiting");
    stop(&mut pool);
}

#[test]
fn when_the_pool_is_killed_its_workers_get_term() {
    let mut pool = Pool::start(&["--ready-fd", "3", "3"], &ready_after(":"));
    let workers = pool.until_noted("ready", 3);
    pool.process.signal(Signal::SIGKILL);
    assert_eq!(pool.process.wait().signal(), Some(Signal::SIGKILL as i32));
    assert_eq!(pool.until_noted("term", 3), workers);
    workers.into_iter().for_each(until_gone);
}

#[test]
fn when_the_pool_is_killed_workers_that_are_stopped_get_hup_and_term() {
    let text = ready_after("trap 'echo hup $$ >>\"$DIR/log\"' HUP");
    let mut pool = Pool::start(&["--ready-fd", "3", "2"], &text);
    let workers = pool.until_noted("ready", 2);
    for worker in &workers {
        killpg(*worker, Signal::SIGSTOP).unwrap();
        until_stopped(*worker);
    }
    pool.process.signal(Signal::SIGKILL);
    pool.process.wait();
    // The kernel has let them go on, too.
    assert_eq!(pool.until_noted("term", 2), workers);
    assert_eq!(pool.until_noted("hup", 2), workers);
}

#[test]
fn an_example_that_is_stopped_when_the_pool_is_killed_finishes_what_it_has() {
    let examples = [rust_example().map(|path| vec![path]), python_example()];
    for command in examples.into_iter().flatten() {
        let names = Names::new();
        let mut acceptor = fdaccept(&["--bind", &names.path(), ADDRESS]);
        let port = acceptor.port();
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let mut pool = fdpool(&["--connect", &names.path(), "1"], &command);
        let client = connect(port);
        assert_is_served(&client);
        let worker = workers(&pool).pop_first().expect("it serves");
        kill(worker, Signal::SIGSTOP).unwrap();
        until_stopped(worker);
        pool.signal(Signal::SIGKILL);
        pool.wait();
        assert_is_served(&client);
        drop(client);
        until_gone(worker);
    }
}

#[test]
fn when_the_pool_is_killed_connections_in_hand_are_finished_and_another_pool_goes_on() {
    let Some(worker) = rust_example() else { return };
    let names = Names::new();
    let name = &names.path();
    let mut acceptor = fdaccept(&["--bind", name, ADDRESS]);
    let port = acceptor.port();
    let mut pool = fdpool(&["--connect", name, "2"], &[&worker]);
    let client = connect(port);
    assert_is_served(&client);
    until("both workers", || workers(&pool).len() == 2);
    let workers = workers(&pool);
    pool.signal(Signal::SIGKILL);
    pool.wait();
    until("the end of the idle one", || {
        workers.iter().filter(|pid| is_alive(**pid)).count() == 1
    });
    let later = connect(port);
    assert_is_served(&client);
    drop(client);
    workers.into_iter().for_each(until_gone);
    let mut pool = fdpool(&["--connect", name, "1"], &[&worker]);
    assert_is_served(&later);
    drop(later);
    stop(&mut pool);
    stop(&mut acceptor);
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
        let mut pool = Pool::of(command, tempfile::tempdir().unwrap());
        pool.until_noted("ready", 1);
        let first = children(pool.process.pid())[0];
        kill(first, Signal::SIGTERM).unwrap();
        assert_eq!(pool.process.wait().code(), Some(0));
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
    let pool = Pool::of(command, tempfile::tempdir().unwrap());
    pool.until_noted("ready", 1);
    let first = children(pool.process.pid())[0];
    let fdpool = children(first)[0];
    kill(fdpool, Signal::SIGTERM).unwrap();
    until_gone(fdpool);
}

// The end of the queue.

#[test]
fn at_the_end_of_the_queue_workers_end_and_so_does_the_pool() {
    for worker in kinds() {
        let mut pool = Pool::of_command(&["3"], &worker);
        assert_is_served(pool.client());
        let waiting: Vec<_> = (0..10).map(|_| pool.client()).collect();
        pool.queue = None;
        waiting.into_iter().for_each(assert_is_served);
        assert_ends_quietly(&mut pool.process);
    }
}

#[test]
fn workers_serve_what_waits_though_who_accepted_it_is_gone_and_they_end_again_and_again() {
    let text = "while [ ! -e \"$DIR/gate\" ]; do sleep 0.05; done\n\
        mkdir \"$DIR/1\" 2>/dev/null && exit 1; mkdir \"$DIR/2\" 2>/dev/null && kill -9 $$\n\
        fdrecv -- cat; exit 0";
    let mut pool = Pool::start(&["1"], text);
    let waiting = [pool.client(), pool.client()];
    pool.queue = None;
    pool.touch("gate");
    waiting.into_iter().for_each(assert_is_served);
    let log = assert_ends_well(&mut pool.process);
    // After the last one there is nothing to start another one for.
    assert_eq!(log.matches("the next one is started").count(), 3, "{log}");
}

#[test]
fn what_waits_in_the_queue_of_a_name_is_served_though_fdaccept_is_gone_and_then_the_next_one() {
    let names = Names::new();
    let name = &names.path();
    let mut acceptor = fdaccept(&["-v", "--bind", name, ADDRESS]);
    let port = acceptor.port();
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "while [ ! -e \"$DIR/gate\" ]; do sleep 0.05; done\n\
         mkdir \"$DIR/first\" 2>/dev/null && exit 1; {LOOP}"
    );
    let mut command = program("fdpool");
    command.args([
        "-v",
        "--connect",
        name,
        "1",
        "--worker",
        "--",
        "sh",
        "-c",
        &text,
    ]);
    let mut pool = Process::start(command.env("DIR", folder.path()));
    pool.line("was started");
    let crowd = Crowd::connect(port, 5);
    for _ in 0..5 {
        acceptor.line("accepted");
    }
    // It is in the queue when there is nothing to do any more.
    until("it to wait", || state(acceptor.pid()) == Some('S'));
    acceptor.signal(Signal::SIGKILL);
    acceptor.wait();
    File::create(folder.path().join("gate")).unwrap();
    pool.line("ended with status 1; the next one is started");
    crowd.expect_served();
    let mut acceptor = fdaccept(&["--bind", name, ADDRESS]);
    assert_eq!(exchange(acceptor.port(), b"again"), b"again");
    stop(&mut pool);
    stop(&mut acceptor);
}

#[test]
fn workers_are_started_anew_each_time_that_fdaccept_is_back() {
    for worker in kinds() {
        let names = Names::new();
        let name = &names.path();
        let mut pool = fdpool(&["--connect", name, "2"], &worker);
        // A queue that ends in either way, twice in a row.
        for signal in [
            Signal::SIGTERM,
            Signal::SIGKILL,
            Signal::SIGTERM,
            Signal::SIGKILL,
        ] {
            let mut acceptor = fdaccept(&["--bind", name, ADDRESS]);
            assert_two_serve(acceptor.port());
            assert_eq!(workers(&pool).len(), 2);
            acceptor.signal(signal);
            acceptor.wait();
        }
        // The end of the queue is no failure.
        let log = stop(&mut pool);
        assert!(!log.contains("the next one"), "{log}");
    }
}

#[test]
fn a_worker_that_is_busy_when_fdaccept_is_restarted_finishes_while_another_serves() {
    let names = Names::new();
    let name = &names.path();
    let mut pool = fdpool(&["--connect", name, "2"], &["sh", "-c", LOOP]);
    let mut acceptor = fdaccept(&["--bind", name, ADDRESS]);
    let client = connect(acceptor.port());
    assert_is_served(&client);
    let mut port = 0;
    for _ in 0..3 {
        acceptor.signal(Signal::SIGKILL);
        acceptor.wait();
        acceptor = fdaccept(&["--bind", name, ADDRESS]);
        port = acceptor.port();
        assert_eq!(exchange(port, b"next"), b"next");
        assert_is_served(&client);
    }
    // Then its place is the new queue's as well.
    drop(client);
    assert_two_serve(port);
    let log = stop(&mut pool);
    assert!(!log.contains("the next one"), "{log}");
    stop(&mut acceptor);
}

#[test]
fn the_only_worker_busy_when_fdaccept_is_restarted_finishes_first() {
    let names = Names::new();
    let name = &names.path();
    let mut pool = fdpool(&["--connect", name, "1"], &["sh", "-c", LOOP]);
    let mut acceptor = fdaccept(&["--bind", name, ADDRESS]);
    let client = connect(acceptor.port());
    assert_is_served(&client);
    acceptor.signal(Signal::SIGKILL);
    acceptor.wait();
    let mut acceptor = fdaccept(&["--bind", name, ADDRESS]);
    let next = connect(acceptor.port());
    assert_is_served(&client);
    drop(client);
    assert_is_served(&next);
    drop(next);
    stop(&mut pool);
    stop(&mut acceptor);
}

#[test]
fn a_reload_goes_on_when_fdaccept_is_back() {
    let names = Names::new();
    let name = &names.path();
    let mut acceptor = fdaccept(&["--bind", name, ADDRESS]);
    let text = format!("echo >&3; exec 3>&-; {LOOP}");
    let arguments = ["--ready-fd", "3", "--connect", name, "2"];
    let port = acceptor.port();
    let mut pool = fdpool(&arguments, &["sh", "-c", &text]);
    // It keeps the old queue, and a worker of it.
    let client = connect(port);
    assert_is_served(&client);
    acceptor.signal(Signal::SIGKILL);
    acceptor.wait();
    pool.line("waiting");
    pool.signal(Signal::SIGHUP);
    pool.line("reload: 1 workers to replace");
    assert_is_served(&client);
    let mut acceptor = fdaccept(&["--bind", name, ADDRESS]);
    pool.line("reload: done");
    assert_two_serve(acceptor.port());
    stop(&mut pool);
    stop(&mut acceptor);
}

#[test]
fn once_ends_the_pool_with_the_queue() {
    let names = Names::new();
    let name = &names.path();
    for worker in kinds() {
        let mut acceptor = fdaccept(&["--bind", name, ADDRESS]);
        let port = acceptor.port();
        let mut pool = fdpool(&["--once", "--connect", name, "2"], &worker);
        assert_two_serve(port);
        let client = connect(port);
        assert_is_served(&client);
        stop(&mut acceptor);
        until("the end of the idle one", || workers(&pool).len() == 1);
        assert_is_served(&client);
        drop(client);
        assert_ends_quietly(&mut pool);
    }
}

// What a worker finds.

/// A pool of one worker that is `sleep`, started by a shell that does `first`; and that worker.
fn sleeper(first: &str) -> (Pool, Pid) {
    let text = format!("{first}\nexec fdpool 1 --worker -- sleep 100");
    let pool = Pool::of(script("sh", &text), tempfile::tempdir().unwrap());
    let worker = pool.worker();
    until_named(worker, "sleep");
    (pool, worker)
}

#[test]
fn a_worker_finds_the_queue_and_the_standard_streams_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("output");
    let text = "exec fdpool 2 --worker -- sleep 100 4</dev/null 7</dev/null 9>/dev/null";
    let (queue, read_end) = socket_pair(SockType::SeqPacket);
    let inode = fstat(&read_end).unwrap().st_ino;
    let blocking = |fd: &OwnedFd| {
        let flags = fcntl(fd, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
        !flags.unwrap().contains(OFlag::O_NONBLOCK)
    };
    let copy = read_end.try_clone().unwrap();
    let mut command = script("sh", text);
    command.stdin(copy).stdout(File::create(&output).unwrap());
    let mut pool = Pool {
        process: Process::start(&mut command),
        queue: Some(queue),
        _read_end: read_end,
        folder,
    };
    pool.until_workers(2);
    let stderr = descriptors(pool.process.pid())[2].1.clone();
    let expected = [
        (0, format!("socket:[{inode}]")),
        (1, output.to_str().unwrap().to_owned()),
        (2, stderr),
    ];
    for worker in pool.workers() {
        until("the worker", || descriptors(worker) == expected);
    }
    assert!(blocking(&pool._read_end));
    stop(&mut pool.process);
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
    let environment = |pid: Pid| -> BTreeSet<String> {
        let bytes = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let entries = text.split_terminator('\0');
        entries.map(str::to_owned).collect()
    };
    let mut expected = environment(pool.process.pid());
    let (words, count) = (not_ours.split(' ').skip(1), expected.len());
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    expected.retain(|entry| !words.contains(&entry.as_str()));
    assert_eq!(expected.len(), count - words.len());
    assert!(expected.contains("KEPT=word"));
    assert_eq!(environment(worker), expected);
    pool.stop();
}

#[test]
fn a_worker_leads_a_group_of_its_own_and_inherits_the_rest() {
    let (pool, worker) = sleeper("cd /; umask 027; ulimit -n 77; ulimit -c 0");
    let parent = pool.process.pid();
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
    let arguments = ["-v", "--ready-fd", "3", "1"];
    let mut pool = Pool::start(&arguments, &ready_after("trap 'exit 3' TERM"));
    pool.process.line("is ready");
    let (one, two) = (pool.worker(), {
        pool.process.signal(Signal::SIGHUP);
        pool.process.line("is ready");
        pool.process.line("end ");
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
    let mut pool = Pool::start(&["-q", "--ready-fd", "3", "1"], &ready_after(":"));
    pool.until_noted("ready", 1);
    kill(pool.worker(), Signal::SIGKILL).unwrap();
    pool.until_noted("ready", 2);
    pool.process.signal(Signal::SIGHUP);
    pool.until_noted("ready", 3);
    pool.until_noted("term", 1);
    pool.until_workers(1);
    assert_eq!(stop(&mut pool.process), "");
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
