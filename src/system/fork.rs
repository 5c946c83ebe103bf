//! Forking a process that goes on in the same program.
#![allow(unsafe_code)] // fork

use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::libc;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid};

use crate::error::{Error, Result};

/// Starts a copy of this process that does `work`, and nothing else, and exits with its result.
/// When this process dies it gets `on_our_death`.
///
/// # Errors
/// [`Error::System`] (`EAGAIN`, `ENOMEM`).
pub(crate) fn start(on_our_death: Signal, work: impl FnOnce() -> u8) -> Result<Pid> {
    let parent = getpid();
    // SAFETY: the programs have one thread, so the child may do whatever the parent may.
    let child = unsafe { fork() }.map_err(|errno| Error::system("start a process", errno))?;
    match child {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            // What would unwind here would go on as a second parent.
            let status = catch_unwind(AssertUnwindSafe(|| {
                let asked = set_pdeathsig(on_our_death);
                // It may have died before it was asked for.
                if asked.is_err() || getppid() != parent {
                    return 1;
                }
                work()
            }));
            // SAFETY: _exit has no preconditions. exit(3) would run what the parent set up for
            // its own end.
            unsafe { libc::_exit(status.unwrap_or(101).into()) }
        }
    }
}
