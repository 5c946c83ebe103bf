//! fdpool as most tests want it.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::PipeReader;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getpgid};

use super::*;

/// Where a consumer gets connections from.
pub trait Source {
    fn give_to(&self, consumer: &mut Command);
}

/// `--connect NAME`
impl Source for str {
    fn give_to(&self, consumer: &mut Command) {
        consumer.args(["--connect", self]);
    }
}

impl Source for String {
    fn give_to(&self, consumer: &mut Command) {
        self.as_str().give_to(consumer);
    }
}

impl Source for PipeReader {
    fn give_to(&self, consumer: &mut Command) {
        consumer.stdin(self.try_clone().unwrap());
    }
}

impl Source for Queue {
    fn give_to(&self, consumer: &mut Command) {
        consumer.stdin(self.input());
    }
}

/// `fdrecv` on a queue, without further arguments yet.
pub fn fdrecv_on(source: &(impl Source + ?Sized)) -> Command {
    let mut command = program("fdrecv");
    source.give_to(&mut command);
    command
}

/// A command line of fdpool.
pub struct Fdpool {
    command: Command,
    size: usize,
    words: Vec<OsString>,
}

impl Line for Fdpool {
    fn command_mut(&mut self) -> &mut Command {
        &mut self.command
    }
}

impl Fdpool {
    /// `SIZE -- HANDLER`
    pub fn slots(mut self, size: usize, handler: impl IntoIterator<Item: AsRef<OsStr>>) -> Self {
        self.size = size;
        self.words = handler
            .into_iter()
            .map(|word| word.as_ref().into())
            .collect();
        self
    }

    /// `--worker SIZE -- WORKER`
    pub fn workers(self, size: usize, worker: impl IntoIterator<Item: AsRef<OsStr>>) -> Self {
        self.args(["--worker"]).slots(size, worker)
    }

    /// The whole command line.
    pub fn command(mut self) -> Command {
        self.command.arg(self.size.to_string());
        self.command.arg("--").args(&self.words);
        self.command
    }

    /// Starts it. It may take a moment until it serves.
    #[track_caller]
    pub fn start(self) -> Pool {
        Pool::of(&mut self.command())
    }

    /// Starts it, and waits until all its slots, or workers, were.
    #[track_caller]
    pub fn full(self) -> Pool {
        let size = self.size;
        let pool = self.start();
        pool.until_size(size);
        pool
    }
}

/// An fdpool that runs. Dropping it kills the process groups of its workers as well.
pub struct Pool(Process);

impl Deref for Pool {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.0
    }
}

impl DerefMut for Pool {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.0
    }
}

impl Pool {
    pub fn on(source: &(impl Source + ?Sized)) -> Fdpool {
        let mut plain = Self::plain();
        source.give_to(&mut plain.command);
        plain
    }

    /// `--bind NAME`
    pub fn bound_at(name: &str) -> Fdpool {
        Self::plain().args(["--bind", name])
    }

    /// Without a source: standard input is what `stdin` says.
    pub fn plain() -> Fdpool {
        Fdpool {
            command: program("fdpool"),
            size: 0,
            words: Vec::new(),
        }
    }

    /// The pool that `command` becomes: a script, or another program that runs fdpool.
    #[track_caller]
    pub fn of(command: &mut Command) -> Self {
        let pool = Self(Process::start(command));
        // Or what is a queue for the pool would stay open in the command.
        command.stdin(Stdio::null());
        pool
    }

    #[track_caller]
    pub fn until_size(&self, size: usize) {
        until(&format!("a pool of {size}"), || {
            self.children().len() == size
        });
    }

    /// Waits until every slot waits for a connection: it watches for TERM, sleeps, and has no handler.
    #[track_caller]
    pub fn until_idle(&self) {
        let is_idle = |slot: Pid| {
            has_signal(slot, "SigCgt", Signal::SIGTERM)
                && state(slot) == Some('S')
                && children(slot).is_empty()
        };
        until("idle slots", || self.children().into_iter().all(is_idle));
    }

    /// Its slots or workers, and for a moment who is about to become one.
    pub fn members(&self) -> Vec<Pid> {
        // While one ends, the kernel may leave out another one (proc_pid_task(5)).
        loop {
            let members = self.children();
            if self.children() == members {
                return members;
            }
        }
    }

    /// Waits until there are `count`, none of them one of `old`.
    #[track_caller]
    pub fn until_replaced(&self, old: &[Pid], count: usize) -> Vec<Pid> {
        eventually("others", || {
            let members = self.members();
            let is_new = members.iter().all(|member| !old.contains(member));
            (members.len() == count && is_new).then_some(members)
        })
    }

    /// Its workers. Whoever else is its child leads no process group.
    pub fn workers(&self) -> BTreeSet<Pid> {
        let members = self.members().into_iter();
        members
            .filter(|pid| getpgid(Some(*pid)) == Ok(*pid))
            .collect()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.is_running() {
            self.signal(Signal::SIGSTOP);
            for worker in self.workers() {
                let _ = killpg(worker, Signal::SIGKILL);
            }
        }
    }
}
