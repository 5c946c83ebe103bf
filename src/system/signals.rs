//! Signals as a descriptor, and the actions of signals.
#![allow(unsafe_code)] // sigaction with SIG_DFL, SIG_IGN and a handler that does nothing

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use nix::libc;
use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, pthread_sigmask, raise, sigaction,
    signal,
};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Result};

/// A write without a reader, or beyond the limit on file sizes, is an error like any other, and does
/// not kill the program: programs ignore these signals.
pub(crate) const OF_FAILED_WRITES: [Signal; 2] = [Signal::SIGPIPE, Signal::SIGXFSZ];

/// Signals that are read from a descriptor. They stay blocked until the process ends or sets its
/// mask.
pub(crate) struct Signals {
    descriptor: SignalFd,
    original_mask: SigSet,
}

impl Signals {
    /// Blocks `signals`. From now on they wait in the descriptor.
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

    /// The mask before [`Signals::new`].
    pub fn original_mask(&self) -> SigSet {
        self.original_mask
    }
}

impl Iterator for Signals {
    type Item = Signal;

    /// The next pending signal, or `None`.
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

/// Ignores `TTOU` from now on, if this process has a terminal. Whoever writes to its terminal in the
/// background, a log for example, is stopped by that signal if the terminal has `tostop`
/// (termios(3)) and the signal is not ignored. A service must not be stopped, and nor must its
/// handlers, so this signal [stays ignored](stays_ignored) in new programs.
///
/// # Errors
/// None in practice; [`Error::System`] if the kernel refuses.
pub(crate) fn ignore_tostop() -> Result<()> {
    match has_terminal() {
        true => ignore(&[Signal::SIGTTOU]),
        false => Ok(()),
    }
}

fn has_terminal() -> bool {
    let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open("/dev/tty", flags, Mode::empty()).is_ok()
}

/// Whether new programs find the signal ignored, see [`ignore_tostop`].
fn stays_ignored(number: libc::c_int) -> bool {
    number == Signal::SIGTTOU as i32 && is_ignored(number) && has_terminal()
}

/// Gives every ignored signal its default action, but for `TTOU` of a terminal. A handler then does
/// not inherit what our parent ignored (`nohup`, a shell's `&`) or what we ignore ourselves.
pub(crate) fn default_ignored() {
    let ignored = (1..=libc::SIGRTMAX()).filter(|number| is_ignored(*number));
    ignored
        .filter(|number| !stays_ignored(*number))
        .for_each(default_raw);
}

/// The signals whose action must be reset in a process that shares our memory and will execute a
/// program: those that are ignored, and those with a handler. A handler that does nothing does no
/// harm there either, and the execution resets it.
pub(crate) fn to_reset() -> Vec<libc::c_int> {
    let harmless = [libc::SIG_DFL, do_nothing as *const () as usize];
    let signals = 1..=libc::SIGRTMAX();
    signals
        .filter(|number| !harmless.contains(&action_of(*number)) && !stays_ignored(*number))
        .collect()
}

/// From now on `number` only interrupts blocking calls. It is no longer blocked.
///
/// # Errors
/// [`Error::System`] for a signal that cannot be caught (`KILL`, `STOP`).
pub(crate) fn only_interrupt(number: Signal) -> Result<()> {
    // No SA_RESTART: the interrupted call must return.
    let action = SigAction::new(
        SigHandler::Handler(do_nothing),
        SaFlags::empty(),
        SigSet::empty(),
    );
    // SAFETY: `do_nothing` does nothing.
    unsafe { sigaction(number, &action) }
        .map_err(|errno| Error::system(format!("catch {number}"), errno))?;
    unblock(number)
}

extern "C" fn do_nothing(_: libc::c_int) {}

/// Gives a signal its default action by a bare system call, for a process that shares the memory of
/// another.
pub(crate) fn default_raw(number: libc::c_int) {
    let default = KernelAction::default();
    // SAFETY: SIG_DFL, which is 0, runs no code of ours.
    unsafe { libc::syscall(libc::SYS_rt_sigaction, number, &default, 0, KERNEL_SET) };
}

/// Blocks `signals` and all ignored signals, and gives them their default action: new processes
/// then find every signal at its default action, but for `TTOU` of a terminal. Returns the signals
/// that must stay blocked.
///
/// # Errors
/// [`Error::System`] for a signal without another action (`KILL`, `STOP`).
pub(crate) fn block_instead_of_ignoring(signals: &[Signal]) -> Result<SigSet> {
    let ignored = Signal::iterator().filter(|number| is_ignored(*number as i32));
    let all: Vec<Signal> = ignored.chain(signals.iter().copied()).collect();
    block(&all)?;
    let inherited = all.iter().copied();
    let inherited = inherited.filter(|number| !stays_ignored(*number as i32));
    default(&inherited.collect::<Vec<_>>())?;
    Ok(all.into_iter().collect())
}

/// Large enough for the kernel's `struct sigaction`; the handler comes first (except on MIPS). The
/// C library keeps signals 32 and 33 for itself, so only the kernel tells about those.
type KernelAction = [usize; 16];
/// The size of the kernel's signal set in bytes.
const KERNEL_SET: usize = 8;

/// Blocks `signals`, besides the signals that are blocked already.
///
/// # Errors
/// None in practice; [`Error::System`] if the kernel refuses.
pub(crate) fn block(signals: &[Signal]) -> Result<()> {
    let set: SigSet = signals.iter().copied().collect();
    set.thread_block()
        .map_err(|errno| Error::system("block signals", errno))
}

/// # Errors
/// None in practice; [`Error::System`] if the kernel refuses.
pub(crate) fn unblock(number: Signal) -> Result<()> {
    SigSet::from_iter([number])
        .thread_unblock()
        .map_err(|errno| Error::system(format!("unblock {number}"), errno))
}

/// Whether one of `signals` is blocked and has come.
pub(crate) fn is_pending(signals: &[Signal]) -> bool {
    let mut pending = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the kernel fills the set, unless the call fails.
    let pending = unsafe {
        match libc::sigpending(pending.as_mut_ptr()) {
            0 => SigSet::from_sigset_t_unchecked(pending.assume_init()),
            _ => return false,
        }
    };
    signals.iter().any(|number| pending.contains(*number))
}

/// Gives `signals` their default action.
///
/// # Errors
/// [`Error::System`] for a signal without another action (`KILL`, `STOP`).
pub(crate) fn default(signals: &[Signal]) -> Result<()> {
    for number in signals {
        // SAFETY: SIG_DFL runs no code of ours.
        unsafe { signal(*number, SigHandler::SigDfl) }
            .map_err(|errno| Error::system(format!("restore {number}"), errno))?;
    }
    Ok(())
}

/// `signals` without those that our parent ignored, as nohup(1) and a shell's `&` do.
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
    // SAFETY: this only asks, and `action` has room for the answer.
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

/// The name of a signal, `SIGTERM` for example; its number if it has none.
pub(crate) fn name(number: i32) -> String {
    Signal::try_from(number)
        .map_or_else(|_| format!("signal {number}"), |signal| signal.to_string())
}

/// Ends this process by the default action of `number`, so that its parent sees the signal. Returns
/// only if that action does not end a process.
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
