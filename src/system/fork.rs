//! Forking without executing another program, and reaping children that were adopted.
#![allow(unsafe_code)] // fork; sigaction, and waitpid in the handler

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl::{set_child_subreaper, set_pdeathsig};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid};

use crate::error::{Error, Result};
use crate::system::command::START;
use crate::system::interrupt;

/// While this process serves, it waits for its own child, and the handler reaps nobody.
static SERVES: AtomicBool = AtomicBool::new(false);
/// A child ended outside of a wait for signals.
static ENDED: AtomicBool = AtomicBool::new(false);
/// The process that [`adopt`] was called in.
static ADOPTER: AtomicI32 = AtomicI32::new(0);

/// From now on this process adopts the descendants that its children leave. They are reaped as soon
/// as they end, but not while this process serves ([`set_serving`]). SIGCHLD must not be blocked.
///
/// # Errors
/// [`Error::System`] if the signal cannot be caught.
pub(crate) fn adopt() -> Result<()> {
    ADOPTER.store(getpid().as_raw(), Ordering::SeqCst);
    let action = SigAction::new(
        SigHandler::Handler(child_ended),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    // SAFETY: the handler makes only async-signal-safe calls.
    unsafe { sigaction(Signal::SIGCHLD, &action) }
        .map_err(|errno| Error::system("catch SIGCHLD", errno))?;
    // If the kernel refuses, another process reaps them.
    let _ = set_child_subreaper(true);
    Ok(())
}

/// While this process serves, it waits for SIGCHLD and SIGALRM by itself, and reaps all children
/// then. A SIGCHLD that comes outside of such a wait is noted, and becomes a SIGALRM.
pub(crate) fn set_serving(serves: bool) {
    SERVES.store(serves, Ordering::SeqCst);
    if !serves && ENDED.swap(false, Ordering::SeqCst) {
        reap();
    }
}

extern "C" fn child_ended(_: libc::c_int) {
    let errno = Errno::last_raw();
    if SERVES.load(Ordering::SeqCst) {
        ENDED.store(true, Ordering::SeqCst);
        // By number: a child that shares our memory until it executes may run this.
        // SAFETY: kill is async-signal-safe.
        unsafe { libc::kill(ADOPTER.load(Ordering::SeqCst), libc::SIGALRM) };
    } else {
        reap();
    }
    Errno::set_raw(errno);
}

/// Reaps all children that have ended. Returns whether others are left.
pub(crate) fn reap() -> bool {
    loop {
        // SAFETY: waitpid is async-signal-safe, and the status may be null.
        match unsafe { libc::waitpid(-1, ptr::null_mut(), libc::WNOHANG) } {
            0 => return true,
            -1 => return false,
            _ => {}
        }
    }
}

/// Forks a child that runs only `work` and exits with its result. The kernel sends `on_our_death`
/// to the child when this process dies.
///
/// # Errors
/// [`Error::System`] (`EAGAIN`, `ENOMEM`).
pub(crate) fn start(on_our_death: Signal, work: impl FnOnce() -> u8) -> Result<Pid> {
    let parent = getpid();
    // SAFETY: the programs have one thread, so the child may do whatever the parent may.
    let child = unsafe { fork() }.map_err(|errno| Error::system(START, errno))?;
    match child {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            // A panic must not unwind into the parent's code and run it a second time.
            let status = catch_unwind(AssertUnwindSafe(|| {
                interrupt::forget_timer();
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
