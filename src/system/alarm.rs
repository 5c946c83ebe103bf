//! A timer that sends `SIGALRM`.

use std::time::Duration;

use nix::sys::signal::{SigEvent, SigSet, SigevNotify, Signal};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;

use crate::error::{Error, Result};
use crate::system::interrupt;

/// A timer of this process. It is not running at first.
pub(crate) struct Alarm {
    timer: Timer,
}

impl Alarm {
    /// A timer whose signal the caller waits for.
    ///
    /// # Errors
    /// [`Error::System`] if there is no timer to be had.
    pub fn new() -> Result<Self> {
        let event = SigEvent::new(SigevNotify::SigevSignal {
            signal: Signal::SIGALRM,
            si_value: 0,
        });
        let timer = Timer::new(ClockId::CLOCK_MONOTONIC, event)
            .map_err(|errno| Error::system("make a timer", errno))?;
        Ok(Self { timer })
    }

    /// A timer whose signal interrupts whatever blocks ([`interrupt`]).
    ///
    /// # Errors
    /// [`Error::System`] if there is no timer to be had.
    pub fn interrupting() -> Result<Self> {
        interrupt::on_signals(&[Signal::SIGALRM as i32])?;
        SigSet::from_iter([Signal::SIGALRM])
            .thread_unblock()
            .map_err(|errno| Error::system("unblock SIGALRM", errno))?;
        Self::new()
    }

    /// Sends the signal once, after `delay`.
    pub fn after(&mut self, delay: Duration) {
        // Zero would stop the timer.
        let delay = delay.max(Duration::from_nanos(1));
        self.set(Expiration::OneShot(TimeSpec::from_duration(delay)));
    }

    /// Does something that may block: after `limit` it fails with `EINTR`. The signal comes again
    /// and again, in case that the first one came before it blocked.
    pub fn limit<T>(&mut self, limit: Duration, action: impl FnOnce() -> T) -> T {
        self.set(Expiration::Interval(TimeSpec::from_duration(limit)));
        let result = action();
        self.set(Expiration::OneShot(TimeSpec::from_duration(Duration::ZERO)));
        result
    }

    fn set(&mut self, expiration: Expiration) {
        // The kernel refuses only what is no time.
        let _ = self.timer.set(expiration, TimerSetTimeFlags::empty());
    }
}
