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
        let event = SigEvent::new(SigevNotify::SigevSignal {
            signal: Signal::SIGALRM,
            si_value: 0,
        });
        let timer = Timer::new(ClockId::CLOCK_MONOTONIC, event)
            .map_err(|errno| Error::system("make a timer", errno))?;
        Ok(Self { timer })
    }

    /// `SIGALRM` interrupts a blocking call ([`interrupt`]).
    ///
    /// # Errors
    /// [`Error::System`] if no timer is available.
    pub fn interrupting() -> Result<Self> {
        interrupt::on(&[Signal::SIGALRM])?;
        signals::unblock(Signal::SIGALRM)?;
        Self::new()
    }

    pub fn after(&mut self, delay: Duration) {
        // Zero would disarm the timer.
        let delay = delay.max(Duration::from_nanos(1));
        let delay = Expiration::OneShot(TimeSpec::from_duration(delay));
        // The kernel refuses only an invalid time.
        let _ = self.timer.set(delay, TimerSetTimeFlags::empty());
    }
}
