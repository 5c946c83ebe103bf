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

mod environment;
mod queues;
mod reload;
mod restart;
mod stopping;
mod watchdog;

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
}

/// `count` workers that are ready, with their process ids.
#[track_caller]
fn ready_workers(count: usize) -> (Workers, BTreeSet<Pid>) {
    let pool = Workers::start(&["--ready-fd", "3"], count, &ready_after(":"));
    let workers = pool.until_noted("ready", count);
    (pool, workers)
}

/// The same. Workers that start later are ready only when there is a file `gate`.
#[track_caller]
fn gated_workers(count: usize) -> (Workers, BTreeSet<Pid>) {
    let text = ready_after("while [ ! -e \"$DIR/gate\" ]; do sleep 0.05; done");
    let pool = Workers::start(&["-v", "--ready-fd", "3"], count, &text);
    pool.touch("gate");
    let workers = pool.until_noted("ready", count);
    pool.remove("gate");
    (pool, workers)
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

/// The worker of examples/ in Rust, as a command line.
fn rust_example() -> Option<Vec<String>> {
    rust_worker().map(|path| vec![word(path)])
}

/// The one in Python.
fn python_example() -> Option<Vec<String>> {
    python_worker().map(|words| words.map(word).to_vec())
}

/// The workers that can be run here: the script, and the two examples.
fn kinds() -> Vec<Vec<String>> {
    let script = sh_c(LOOP).map(str::to_owned).to_vec();
    let all = [Some(script), rust_example(), python_example()];
    all.into_iter().flatten().collect()
}

/// The example in Rust finishes its connection on TERM. As it does not say when it is ready, a
/// shell does just before it becomes it. For --ready-fd 3.
fn gentle() -> Option<[String; 4]> {
    let text = "echo >&3; exec \"$0\" 3>&-";
    rust_worker().map(|path| ["sh".into(), "-c".into(), text.into(), word(path)])
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
