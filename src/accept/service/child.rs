//! The command of `fdaccept ADDRESS -- COMMAND`: a child that reads the queue.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use rustix::process::{WaitOptions, wait};

use crate::error::Result;
use crate::system::command::{Command, environment_without, is_service_managers};
use crate::system::fd_limit::FdLimit;
use crate::system::signals;

#[derive(Debug)]
pub(crate) struct Child {
    pid: Pid,
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
        command.start(spawn).map(|pid| Self { pid })
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
