//! The command of `fdaccept ADDRESS -- COMMAND`: a child that reads the queue.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use rustix::process::{WaitOptions, wait};

use crate::error::Result;
use crate::system::command::{Command, environment_without, is_service_managers};
use crate::system::fd_limit::FdLimit;
use crate::system::log::Log;
use crate::system::processes::SocketLink;
use crate::system::signals;

/// When the command is examined again, after the first client. A slow command may not have read
/// anything before.
const SECOND_LOOK: Duration = Duration::from_secs(1);
/// A command that ends well within this time, without a connection, is no consumer.
const TOO_SHORT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Child {
    pid: Pid,
    /// The command as the user wrote it, without its arguments.
    name: String,
    since: Instant,
    /// The queue, if the kernel tells what the command's descriptors are.
    queue: Option<SocketLink>,
    examination: Examination,
}

/// Whether the command reads the queue as a handler reads its connection. A command that does is
/// reported once.
#[derive(Debug)]
enum Examination {
    AtFirstClient,
    At(Instant),
    Done,
}

impl fmt::Display for Child {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Child {
    /// Starts `command` with `read_end` as its standard input. Descriptors, signal mask and
    /// descriptor limit are as fdaccept got them. Variables of the service manager are left out.
    ///
    /// # Errors
    /// See [`Command::start`].
    pub fn start(
        command: &Command,
        read_end: OwnedFd,
        mask: &SigSet,
        limit: &FdLimit,
    ) -> Result<Self> {
        // If our parent ignored SIGCHLD, the command would vanish without a status.
        signals::default(&[Signal::SIGCHLD])?;
        let spawn = |command: &Command| {
            let mut actions = PosixSpawnFileActions::init()?;
            actions.add_dup2(read_end.as_raw_fd(), 0)?;
            let mut attributes = PosixSpawnAttr::init()?;
            attributes.set_flags(
                PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF,
            )?;
            attributes.set_sigmask(mask)?;
            // The command would inherit what this process ignores.
            let mut ignored = SigSet::from_iter(signals::OF_FAILED_WRITES);
            ignored.add(Signal::SIGTTOU);
            attributes.set_sigdefault(&ignored)?;
            let environment = environment_without(is_service_managers);
            limit.with_original(|| {
                posix_spawn(
                    command.path(),
                    &actions,
                    &attributes,
                    command.arguments(),
                    &environment,
                )
            })
        };
        let pid = command.start(spawn)?;
        Ok(Self {
            pid,
            name: command.name(),
            since: Instant::now(),
            queue: SocketLink::of(read_end.as_fd()),
            examination: Examination::AtFirstClient,
        })
    }

    /// Examines the command never: /proc cannot be read from the sandbox.
    pub fn leave_unexamined(&mut self) {
        self.examination = Examination::Done;
    }

    /// A client is about to be passed: examines the command if the client is the first.
    pub fn expect_client(&mut self, log: &Log) {
        if matches!(self.examination, Examination::AtFirstClient) {
            self.examination = Examination::At(Instant::now() + SECOND_LOOK);
            self.examine(log);
        }
    }

    /// When [`Child::attend`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        match self.examination {
            Examination::At(at) => Some(at),
            Examination::AtFirstClient | Examination::Done => None,
        }
    }

    /// Examines the command for the last time, if due.
    pub fn attend(&mut self, log: &Log) {
        if self.deadline().is_some_and(|at| at <= Instant::now()) {
            self.examination = Examination::Done;
            self.examine(log);
        }
    }

    fn examine(&mut self, log: &Log) {
        let queue = self.queue.as_ref();
        if queue.is_some_and(|queue| queue.is_read_as_bytes_by(self.pid)) {
            self.examination = Examination::Done;
            self.say_misled(log);
        }
    }

    /// The command has ended well by itself, without a connection: says that it is no consumer, if
    /// it ended at once.
    pub fn ended_idle(&self, log: &Log) {
        if self.since.elapsed() < TOO_SHORT {
            self.say_misled(log);
        }
    }

    fn say_misled(&self, log: &Log) {
        let name = &self.name;
        log.warning(format_args!(
            "{name} gets the queue, not a connection: did you mean -- fdpool N -- {name}?"
        ));
    }

    /// The command's exit status, or 128 plus the number of the signal that ended it, as in shells;
    /// `None` while it runs. Also reaps other children: the first process of a container gets all
    /// orphans.
    pub fn ended(&self) -> Option<u8> {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid.as_raw_nonzero().get() == self.pid.as_raw() => {
                    let signal = status.terminating_signal().map(|signal| 128 + signal);
                    let code = status.exit_status().or(signal).unwrap_or(1);
                    return Some(u8::try_from(code).unwrap_or(1));
                }
                Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
                Ok(None) => return None,
                // No other code waits for children, so this does not happen.
                Err(_) => return Some(1),
            }
        }
    }

    pub fn pid(&self) -> Pid {
        self.pid
    }

    pub fn signal(&self, signal: Signal) {
        // The command is not reaped yet, so no other process has its id. A failure does not matter.
        let _ = kill(self.pid, signal);
    }
}
