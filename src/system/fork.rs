//! Forking without executing another program.
#![allow(unsafe_code)] // fork

use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::libc;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid};

use crate::error::{Error, Result};
use crate::system::log_output;

/// Forks a child that runs only `work` and exits with its result. The kernel sends `on_our_death`
/// to the child when this process dies.
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
            // A panic must not unwind into the parent's code and run it a second time.
            let status = catch_unwind(AssertUnwindSafe(|| {
                log_output::forget_alarm();
                let asked = set_pdeathsig(on_our_death);
                // The parent may have died before the prctl(2).
                if asked.is_err() || getppid() != parent {
                    return 1;
                }
                work()
            }));
            // SAFETY: _exit has no preconditions. exit(3) would run the parent's exit handlers.
            unsafe { libc::_exit(status.unwrap_or(101).into()) }
        }
    }
}
