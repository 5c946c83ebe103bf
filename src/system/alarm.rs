//! A timer that sends a signal.

use std::time::Duration;

use nix::sys::signal::{SigEvent, SigevNotify, Signal};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;

use crate::error::{Error, Result};
use crate::system::{interrupt, signals};

pub(crate) struct Alarm {
    timer: Timer,
}

impl Alarm {
    /// The caller waits for `SIGALRM`, as with sigwait(3).
    ///
    /// # Errors
    /// [`Error::System`] if no timer is available.
    pub fn new() -> Result<Self> {
        Self::sending(Signal::SIGALRM)
    }

    /// `SIGALRM` interrupts a blocking call ([`interrupt`]).
    ///
    /// # Errors
    /// [`Error::System`] if no timer is available.
    pub fn interrupting() -> Result<Self> {
        interrupt::on_signals(&[Signal::SIGALRM as i32])?;
        signals::unblock(Signal::SIGALRM)?;
        Self::new()
    }

    /// The signal interrupts a blocking call and has no other effect, whatever else waits for
    /// `SIGALRM`. It is `SIGURG`, which is harmless where nobody catches it.
    ///
    /// # Errors
    /// [`Error::System`] if no timer is available.
    pub fn interrupting_only() -> Result<Self> {
        signals::interrupt_by(Signal::SIGURG)?;
        signals::unblock(Signal::SIGURG)?;
        Self::sending(Signal::SIGURG)
    }

    fn sending(signal: Signal) -> Result<Self> {
        let event = SigEvent::new(SigevNotify::SigevSignal {
            signal,
            si_value: 0,
        });
        let timer = Timer::new(ClockId::CLOCK_MONOTONIC, event)
            .map_err(|errno| Error::system("make a timer", errno))?;
        Ok(Self { timer })
    }

    pub fn after(&mut self, delay: Duration) {
        // Zero would disarm the timer.
        let delay = delay.max(Duration::from_nanos(1));
        self.set(Expiration::OneShot(TimeSpec::from_duration(delay)));
    }

    /// Runs `action`, whose blocking calls fail with `EINTR` after `limit`. The signal repeats, in
    /// case the first one comes before the call blocks.
    pub fn limit<T>(&mut self, limit: Duration, action: impl FnOnce() -> T) -> T {
        self.set(Expiration::Interval(TimeSpec::from_duration(limit)));
        let result = action();
        self.set(Expiration::OneShot(TimeSpec::from_duration(Duration::ZERO)));
        result
    }

    fn set(&mut self, expiration: Expiration) {
        // The kernel refuses only an invalid time.
        let _ = self.timer.set(expiration, TimerSetTimeFlags::empty());
    }
}
