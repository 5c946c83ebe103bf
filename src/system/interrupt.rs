//! Interrupting a blocking receive by a signal, without a gap.
//!
//! A signal handler that only sets a flag misses the signal that comes just before the call blocks.
//! Here the handler also puts `/dev/null` in the place of the descriptor that the program blocks
//! on. A signal before the call makes it fail (`ENOTSOCK`, or end-of-file), a signal during the
//! call interrupts it (`EINTR`, and then the same), and a signal after it changes nothing: what
//! was received is served.
#![allow(unsafe_code)] // a signal handler and the two calls in it

use std::fs::File;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::error::{Error, Result};

const NONE: i32 = -1;

/// `/dev/null`, open for as long as the process lives once a handler is installed.
static NULL: AtomicI32 = AtomicI32::new(NONE);
/// The descriptor that the program blocks on.
static WATCHED: AtomicI32 = AtomicI32::new(NONE);
/// The last signal that came.
static RAISED: AtomicI32 = AtomicI32::new(NONE);

/// From now on each of `signals`, by their numbers (signal(7)), interrupts a call that blocks on a
/// [`watch`]ed descriptor.
///
/// # Errors
/// [`Error::System`] if `/dev/null` cannot be opened or a signal cannot be caught.
pub fn on_signals(signals: &[i32]) -> Result<()> {
    if NULL.load(Ordering::SeqCst) == NONE {
        let null = File::open("/dev/null").map_err(|error| Error::io("open /dev/null", error))?;
        NULL.store(null.into_raw_fd(), Ordering::SeqCst);
    }
    // No SA_RESTART: the call is to return.
    let action = SigAction::new(
        SigHandler::Handler(handler),
        SaFlags::empty(),
        SigSet::empty(),
    );
    for number in signals {
        Signal::try_from(*number)
            // SAFETY: `handler` calls nothing that is not async-signal-safe.
            .and_then(|signal| unsafe { sigaction(signal, &action) })
            .map_err(|errno| Error::system(format!("catch signal {number}"), errno))?;
    }
    Ok(())
}

/// The number of the last of the signals that came, if one did.
pub fn raised() -> Option<i32> {
    Some(RAISED.load(Ordering::SeqCst)).filter(|signal| *signal != NONE)
}

/// While this lives, a signal interrupts what blocks on the descriptor.
#[must_use]
pub struct Watch<'fd>(PhantomData<BorrowedFd<'fd>>);

/// Names the descriptor that the program blocks on from now on. If a signal has come already, the
/// descriptor is `/dev/null` at once; it stays so. There is one watch at a time.
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
        // SAFETY: dup3 is async-signal-safe; `watched` is open, since its Watch borrows it, and
        // its owner notices nothing but that it now is another file.
        unsafe { libc::dup3(null, watched, libc::O_CLOEXEC) };
    }
}
