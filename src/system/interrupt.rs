//! Interrupts a blocking call: a receive by a signal, without a gap, and any call after a time.
//!
//! A signal handler that only sets a flag misses the signal just before the call blocks. This
//! handler also replaces the watched descriptor with `/dev/null`. A signal before the call makes
//! the call fail (`ENOTSOCK`, or end-of-file). A signal during the call interrupts it (`EINTR`, and
//! then the same). A signal after the call changes nothing: the received connection is served.
#![allow(unsafe_code)] // sigaction, dup3 in the handler, and a timer that the handler may set

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::{self, c_void, itimerspec, timespec};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::error::{Error, Result};
use crate::system::null;
use crate::system::signals;

const NONE: i32 = -1;

/// [`null::device`], once there is a handler.
static NULL: AtomicI32 = AtomicI32::new(NONE);
/// The watched descriptor.
static WATCHED: AtomicI32 = AtomicI32::new(NONE);
/// The last signal.
static RAISED: AtomicI32 = AtomicI32::new(NONE);

/// How long a close may block that a stranger can make block. A few in a row take as long together.
pub(crate) const CLOSING: Duration = Duration::from_millis(5);

/// The signal of a [`Limit`]. It has no other use.
const TIME_IS_OVER: Signal = Signal::SIGVTALRM;
/// Once the time of a [`Limit`] is over, its signal repeats, so that no later call blocks either.
const AGAIN: Duration = Duration::from_millis(1);

/// Whether this is a program of ours, which may use a signal. In the process of a user of the
/// library a [`Limit`] does nothing.
static MAY_LIMIT: AtomicBool = AtomicBool::new(false);
/// The timer of this process; [`NO_TIMER`] before [`make_timer`].
static TIMER: AtomicPtr<c_void> = AtomicPtr::new(NO_TIMER);
/// The C library has small numbers for timers, 0 among them.
const NO_TIMER: *mut c_void = ptr::without_provenance_mut(usize::MAX);

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
    // The handler cannot make it.
    have_timer();
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
        // What is in flight in the replaced socket may be closed with it.
        let _limit = Limit::begin_in_handler(CLOSING);
        // SAFETY: dup3 is async-signal-safe. `watched` is open, since its Watch borrows it; its
        // owner only finds another file there.
        unsafe { libc::dup3(null, watched, libc::O_CLOEXEC) };
    }
}

/// From now on a [`Limit`] may use a signal in this process.
#[cfg(feature = "programs")]
pub(crate) fn allow_limits() {
    MAY_LIMIT.store(true, Ordering::Relaxed);
}

/// Makes the timer for a [`Limit`], if this process has none: for a process that soon may not. The
/// first limit does it otherwise. Without a timer, which the kernel may refuse, calls block as long as
/// they would have.
pub(crate) fn have_timer() {
    if MAY_LIMIT.load(Ordering::Relaxed) && TIMER.load(Ordering::SeqCst) == NO_TIMER {
        let _ = make_timer();
    }
}

/// In a forked process: its parent's timer is not its own.
pub(crate) fn forget_timer() {
    TIMER.store(NO_TIMER, Ordering::SeqCst);
}

fn make_timer() -> Result<()> {
    signals::only_interrupt(TIME_IS_OVER)?;
    // SAFETY: `sigevent` consists of integers and pointers, and 0 is valid for each.
    let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
    event.sigev_notify = libc::SIGEV_SIGNAL;
    event.sigev_signo = TIME_IS_OVER as i32;
    let mut timer = MaybeUninit::uninit();
    // SAFETY: the kernel reads `event`, and writes the timer's id to `timer`.
    let made = unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, timer.as_mut_ptr()) };
    Errno::result(made).map_err(|errno| Error::system("make a timer", errno))?;
    // SAFETY: timer_create(2) has succeeded.
    TIMER.store(unsafe { timer.assume_init() }, Ordering::SeqCst);
    Ok(())
}

/// Runs `action`, whose blocking calls fail with `EINTR` after `time`. Within an outer limit the
/// outer time counts.
pub(crate) fn after<T>(time: Duration, action: impl FnOnce() -> T) -> T {
    let _limit = Limit::begin(time);
    action()
}

/// While this value lives, blocking calls fail with `EINTR` once a time is over.
#[derive(Debug)]
#[must_use]
pub(crate) struct Limit {
    /// Whether this limit has set the timer, and no outer limit has.
    is_set: bool,
}

impl Limit {
    /// Begins a limit, if this process may use a signal. Makes the timer with the first one.
    pub fn begin(time: Duration) -> Self {
        have_timer();
        Self::begin_in_handler(time)
    }

    /// The same with the timer that is there: timer_settime(2) is async-signal-safe.
    fn begin_in_handler(time: Duration) -> Self {
        let outer = set_timer(time, AGAIN);
        let is_within = outer.is_some_and(|outer| !is_zero(&outer.it_value));
        if let Some(outer) = outer.filter(|_| is_within) {
            set_timer_to(&outer);
        }
        Self {
            is_set: outer.is_some() && !is_within,
        }
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        if self.is_set {
            set_timer(Duration::ZERO, Duration::ZERO);
        }
    }
}

/// Sets the timer. Returns its time before; `None` without a timer.
fn set_timer(time: Duration, again: Duration) -> Option<itimerspec> {
    set_timer_to(&itimerspec {
        it_value: to_timespec(time),
        it_interval: to_timespec(again),
    })
}

fn set_timer_to(value: &itimerspec) -> Option<itimerspec> {
    let timer = TIMER.load(Ordering::SeqCst);
    if timer == NO_TIMER {
        return None;
    }
    let mut before = MaybeUninit::uninit();
    // SAFETY: `timer` is the timer of this process or, in a child without one, unknown to the
    // kernel. The kernel reads `value`, and writes to `before`.
    let set = unsafe { libc::timer_settime(timer, 0, value, before.as_mut_ptr()) };
    // SAFETY: timer_settime(2) has succeeded.
    (set == 0).then(|| unsafe { before.assume_init() })
}

fn to_timespec(time: Duration) -> timespec {
    timespec {
        tv_sec: time.as_secs() as libc::time_t,
        tv_nsec: time.subsec_nanos().into(),
    }
}

fn is_zero(time: &timespec) -> bool {
    time.tv_sec == 0 && time.tv_nsec == 0
}
