//! Signals as a descriptor, and their state as a program should find it.
#![allow(unsafe_code)] // sigaction: only SIG_DFL and SIG_IGN, so there is no handler to be unsafe

use std::os::fd::{AsFd, BorrowedFd};

use nix::libc;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, pthread_sigmask, raise, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::error::{Error, Result};

/// Signals that are read from a descriptor. They are blocked for as long as the process lives,
/// or until somebody sets the mask.
pub(crate) struct Signals {
    descriptor: SignalFd,
    original_mask: SigSet,
}

impl Signals {
    /// Takes `signals` over: from now on they wait to be read.
    ///
    /// # Errors
    /// [`Error::System`] if the descriptor cannot be made (`EMFILE` and the like).
    pub fn new(signals: &[Signal]) -> Result<Self> {
        let set: SigSet = signals.iter().copied().collect();
        let mut original_mask = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&set), Some(&mut original_mask))
            .map_err(|errno| Error::system("block signals", errno))?;
        let descriptor = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(|errno| Error::system("make a signal descriptor", errno))?;
        Ok(Self {
            descriptor,
            original_mask,
        })
    }

    /// The mask that this process was started with.
    pub fn original_mask(&self) -> SigSet {
        self.original_mask
    }
}

impl Iterator for Signals {
    type Item = Signal;

    /// The next signal that came, or `None` if there is none now.
    fn next(&mut self) -> Option<Signal> {
        let info = self.descriptor.read_signal().ok().flatten()?;
        Signal::try_from(info.ssi_signo as i32).ok()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Gives every signal that is ignored its default action. What a parent ignored (`nohup`, a
/// shell's `&`) and what the Rust runtime ignores (`SIGPIPE`) does not reach a handler so.
pub(crate) fn default_ignored() {
    for number in (1..=libc::SIGRTMAX()).filter(|number| is_ignored(*number)) {
        default_raw(number);
    }
}

/// The numbers of all signals that are not at their default action.
pub(crate) fn not_default() -> Vec<libc::c_int> {
    let signals = 1..=libc::SIGRTMAX();
    signals
        .filter(|number| action_of(*number) != libc::SIG_DFL)
        .collect()
}

/// Gives a signal its default action, in a process that shares the memory of another: nothing is
/// called but the kernel.
pub(crate) fn default_raw(number: libc::c_int) {
    let default = KernelAction::default();
    // SAFETY: SIG_DFL, which is 0, runs no code of ours.
    unsafe { libc::syscall(libc::SYS_rt_sigaction, number, &default, 0, KERNEL_SET) };
}

/// Blocks what is ignored, and `signals` too, instead of ignoring it: what is started from here finds
/// every one of them at its default action. Returns what then is to stay blocked.
///
/// # Errors
/// [`Error::System`] for a signal that has no other action (`KILL`, `STOP`).
pub(crate) fn block_instead_of_ignoring(signals: &[Signal]) -> Result<SigSet> {
    let ignored = Signal::iterator().filter(|number| is_ignored(*number as i32));
    let all: Vec<Signal> = ignored.chain(signals.iter().copied()).collect();
    block(&all)?;
    default(&all)?;
    Ok(all.into_iter().collect())
}

/// As much as the kernel's own `struct sigaction` has; its handler comes first (but on MIPS).
/// The C library keeps two signals (32 and 33) for itself, so only the kernel can be asked about those.
type KernelAction = [usize; 16];
/// The size of the kernel's signal set, in bytes.
const KERNEL_SET: usize = 8;

/// Blocks `signals`, besides those that are blocked already.
///
/// # Errors
/// None in practice; [`Error::System`] if the kernel refuses.
pub(crate) fn block(signals: &[Signal]) -> Result<()> {
    let set: SigSet = signals.iter().copied().collect();
    set.thread_block()
        .map_err(|errno| Error::system("block signals", errno))
}

/// Gives `signals` their default action.
///
/// # Errors
/// [`Error::System`] for a signal that has no other one (`KILL`, `STOP`).
pub(crate) fn default(signals: &[Signal]) -> Result<()> {
    for number in signals {
        // SAFETY: SIG_DFL runs no code of ours.
        unsafe { signal(*number, SigHandler::SigDfl) }
            .map_err(|errno| Error::system(format!("restore {number}"), errno))?;
    }
    Ok(())
}

/// Those of `signals` that whoever started us did not ignore, as nohup(1) and a shell's `&` do.
pub(crate) fn not_ignored(signals: &[Signal]) -> Vec<Signal> {
    let signals = signals.iter().copied();
    signals
        .filter(|number| !is_ignored(*number as i32))
        .collect()
}

fn is_ignored(number: i32) -> bool {
    action_of(number) == libc::SIG_IGN
}

fn action_of(number: i32) -> usize {
    let mut action = KernelAction::default();
    // SAFETY: this only asks; `action` is where the answer goes, and has room for it.
    unsafe { libc::syscall(libc::SYS_rt_sigaction, number, 0, &mut action, KERNEL_SET) };
    action[0]
}

/// Ignores `signals`.
///
/// # Errors
/// [`Error::System`] for a signal that cannot be ignored (`KILL`, `STOP`).
pub(crate) fn ignore(signals: &[Signal]) -> Result<()> {
    for number in signals {
        // SAFETY: SIG_IGN runs no code of ours.
        unsafe { signal(*number, SigHandler::SigIgn) }
            .map_err(|errno| Error::system(format!("ignore {number}"), errno))?;
    }
    Ok(())
}

/// Sets the mask of blocked signals to exactly `mask`.
///
/// # Errors
/// None in practice; [`Error::System`] if the kernel refuses.
pub(crate) fn set_mask(mask: &SigSet) -> Result<()> {
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(mask), None)
        .map_err(|errno| Error::system("set the signal mask", errno))
}

/// Ends this process by `number`, as if it had never been caught, so that who waits for it sees
/// the signal. Returns only if that signal does not end a process.
///
/// # Errors
/// [`Error::System`] for a signal that cannot be raised.
pub(crate) fn die_of(number: Signal) -> Result<()> {
    // SAFETY: SIG_DFL runs no code of ours.
    unsafe { signal(number, SigHandler::SigDfl) }
        .and_then(|_| SigSet::empty().thread_set_mask())
        .and_then(|()| raise(number))
        .map_err(|errno| Error::system(format!("end by {number}"), errno))
}
