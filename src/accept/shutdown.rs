//! How far the end of fdaccept has come: one value, with its transitions in one place.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::accept::service::child::Child;
use crate::accept::sink::Sink;
use crate::system::termination::{Countdown, KILL_AFTER, Step};

/// What the loop is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Accepting.
    Open,
    /// Told to stop: what already is in the backlogs is accepted.
    LastOrders,
    /// Nothing is accepted any more; what was accepted is waited for.
    Closed,
    /// Closed, and nobody can take connections any more.
    Gone,
}

/// The end of the loop, and of the command that reads its queue.
pub(super) struct Shutdown {
    stage: Stage,
    /// Running: until what was accepted is waited for no longer. Then the command is asked to end.
    countdown: Countdown,
    grace: Duration,
    child: Option<Child>,
}

impl Shutdown {
    pub fn new(child: Option<Child>, grace: Duration) -> Self {
        Self {
            stage: Stage::Open,
            countdown: Countdown::Running(None),
            grace,
            child,
        }
    }

    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Whether nothing is accepted any more.
    pub fn is_closed(&self) -> bool {
        matches!(self.stage, Stage::Closed | Stage::Gone)
    }

    pub fn has_child(&self) -> bool {
        self.child.is_some()
    }

    /// The exit status of the command, if there is one and it has ended.
    pub fn child_ended(&self) -> Option<u8> {
        self.child.as_ref().and_then(Child::ended)
    }

    /// Whether only the emptying of the queue is waited for.
    pub fn is_emptying(&self) -> bool {
        self.stage == Stage::Closed && self.child.is_none()
    }

    /// Whether it is over; a command is waited for in any case.
    pub fn is_done(&self, sink: &Sink) -> bool {
        let is_at_once = !self.countdown.is_running();
        self.child.is_none()
            && match self.stage {
                Stage::Open | Stage::LastOrders => false,
                Stage::Closed => is_at_once || sink.is_taken(),
                Stage::Gone => true,
            }
    }

    /// Whether a signal, or the time, has told it to stop.
    pub fn is_told(&self) -> bool {
        self.countdown != Countdown::Running(None)
    }

    /// The first signal. Whether last orders are to be called.
    pub fn stop(&mut self) -> bool {
        self.countdown = Countdown::Running(Some(Instant::now() + self.grace));
        let is_open = self.stage == Stage::Open;
        if is_open {
            self.stage = Stage::LastOrders;
        }
        is_open
    }

    /// A second signal: no more waiting.
    pub fn stop_at_once(&mut self) {
        let Some(child) = &self.child else {
            self.countdown = Countdown::Asked(None);
            return;
        };
        child.signal(Signal::SIGTERM);
        // Who is impatient does not put the end off.
        if let Countdown::Running(_) | Countdown::Asked(None) = self.countdown {
            self.countdown = Countdown::Asked(Some(Instant::now() + KILL_AFTER));
        }
    }

    /// Nothing is accepted any more.
    pub fn close(&mut self) {
        if self.stage != Stage::Gone {
            self.stage = Stage::Closed;
        }
    }

    /// Nobody can take connections any more.
    pub fn nobody_is_left(&mut self) {
        self.stage = Stage::Gone;
    }

    /// Something failed for good: the command has time to get to the end of its queue.
    pub fn fail(&mut self) {
        self.stage = Stage::Gone;
        if self.countdown.is_running() {
            self.countdown = Countdown::Running(Some(Instant::now() + self.grace));
        }
    }

    /// Whether the time for what was accepted, or for the command, is over.
    pub fn is_due(&self) -> bool {
        self.countdown.due(Instant::now()).is_some()
    }

    /// Asks the command to end, or kills it, when that is due.
    pub fn go_on(&mut self) {
        let (signal, next) = match self.countdown.due(Instant::now()) {
            // From now on only a further signal from outside puts an end to the wait.
            Some(Step::Ask) => (Signal::SIGTERM, Countdown::Asked(None)),
            Some(Step::Kill | Step::GiveUp) => (Signal::SIGKILL, Countdown::Killed(None)),
            None => return,
        };
        if let Some(child) = &self.child {
            child.signal(signal);
        }
        self.countdown = next;
    }

    /// When [`Shutdown::go_on`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.countdown.deadline()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shutdown(grace: Duration) -> Shutdown {
        Shutdown::new(None, grace)
    }

    #[test]
    fn the_first_signal_calls_last_orders_once() {
        let mut end = shutdown(Duration::from_secs(60));
        assert!(!end.is_told() && !end.is_closed());
        assert!(end.stop());
        assert_eq!((end.stage(), end.is_told()), (Stage::LastOrders, true));
        assert!(!end.is_due());
        end.close();
        assert!(!end.stop());
        assert_eq!(end.stage(), Stage::Closed);
        assert!(end.is_emptying());
    }

    #[test]
    fn the_time_closes() {
        let mut end = shutdown(Duration::ZERO);
        end.stop();
        assert!(end.is_due());
        end.go_on();
        assert_eq!((end.deadline(), end.is_due()), (None, false));
        assert!(end.is_told());
    }

    #[test]
    fn who_is_gone_stays_gone() {
        let mut end = shutdown(Duration::ZERO);
        end.nobody_is_left();
        end.close();
        assert_eq!(end.stage(), Stage::Gone);
        assert!(end.is_closed() && !end.is_emptying() && !end.is_told());
    }

    #[test]
    fn a_second_signal_waits_for_nothing() {
        let mut end = shutdown(Duration::from_secs(60));
        end.stop();
        end.close();
        end.stop_at_once();
        assert_eq!(
            (end.countdown, end.deadline()),
            (Countdown::Asked(None), None)
        );
    }
}
