//! Interrupts a blocking receive by a signal, without a gap.
//!
//! A signal handler that only sets a flag misses the signal just before the call blocks. This
//! handler also replaces the watched descriptor with `/dev/null`. A signal before the call makes
//! the call fail (`ENOTSOCK`, or end-of-file). A signal during the call interrupts it (`EINTR`, and
//! then the same). A signal after the call changes nothing: the received connection is served.
#![allow(unsafe_code)] // sigaction, and dup3 in the handler

use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::error::{Error, Result};
use crate::system::null;

const NONE: i32 = -1;

/// [`null::device`], once there is a handler.
static NULL: AtomicI32 = AtomicI32::new(NONE);
/// The watched descriptor.
static WATCHED: AtomicI32 = AtomicI32::new(NONE);
/// The last signal.
static RAISED: AtomicI32 = AtomicI32::new(NONE);

/// From now on each of `signals`, by number (signal(7)), interrupts a call that blocks on a
/// [`watch`]ed descriptor.
///
/// # Errors
/// [`Error::System`] if `/dev/null` cannot be opened or a signal cannot be caught.
pub fn on_signals(signals: &[i32]) -> Result<()> {
    NULL.store(null::device()?.as_raw_fd(), Ordering::SeqCst);
    // No SA_RESTART: the interrupted call must return.
    let action = SigAction::new(
        SigHandler::Handler(handler),
        SaFlags::empty(),
        SigSet::empty(),
    );
    for number in signals {
        Signal::try_from(*number)
            // SAFETY: `handler` makes only async-signal-safe calls.
            .and_then(|signal| unsafe { sigaction(signal, &action) })
            .map_err(|errno| Error::system(format!("catch signal {number}"), errno))?;
    }
    Ok(())
}

/// [`on_signals`], with the signals of this crate.
///
/// # Errors
/// Those of [`on_signals`].
pub(crate) fn on(signals: &[Signal]) -> Result<()> {
    let numbers: Vec<i32> = signals.iter().map(|signal| *signal as i32).collect();
    on_signals(&numbers)
}

/// The number of the last caught signal; `None` if none has come.
pub fn raised() -> Option<i32> {
    Some(RAISED.load(Ordering::SeqCst)).filter(|signal| *signal != NONE)
}

/// The watch on a descriptor, from [`watch`]. Dropping it ends the watch.
#[must_use]
pub struct Watch<'fd>(PhantomData<BorrowedFd<'fd>>);

/// Names the descriptor that the program blocks on from now on, until the returned value is
/// dropped. After a signal, the descriptor is replaced with `/dev/null` at once, and stays so. A
/// process has one watch at a time.
pub fn watch(descriptor: BorrowedFd<'_>) -> Watch<'_> {
    WATCHED.store(descriptor.as_raw_fd(), Ordering::SeqCst);
    if raised().is_some() {
        replace();
    }
    Watch(PhantomData)
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        WATCHED.store(NONE, Ordering::SeqCst);
    }
}

extern "C" fn handler(signal: libc::c_int) {
    let errno = Errno::last_raw();
    RAISED.store(signal, Ordering::SeqCst);
    replace();
    Errno::set_raw(errno);
}

fn replace() {
    let (null, watched) = (NULL.load(Ordering::SeqCst), WATCHED.load(Ordering::SeqCst));
    if null != NONE && watched != NONE {
        // SAFETY: dup3 is async-signal-safe. `watched` is open, since its Watch borrows it; its
        // owner only finds another file there.
        unsafe { libc::dup3(null, watched, libc::O_CLOEXEC) };
    }
}
