//! The stages of fdaccept's end, with all transitions in one place.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::accept::service::child::Child;
use crate::accept::sink::Sink;
use crate::system::log::Log;
use crate::system::stop_notice::{STOPS_NOW, StopNotice};
use crate::system::termination::{Countdown, KILL_AFTER, Step};
use crate::system::text::seconds;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Open,
    /// Told to stop. Connections in the backlogs are still accepted.
    LastOrders,
    /// The listeners are closed. Consumers may still take accepted connections.
    Closed,
    /// Closed, and no more connections are passed: no consumer is left, or an error is permanent.
    Gone,
}

/// The end of the loop, and of the command that reads its queue.
pub(super) struct Shutdown {
    stage: Stage,
    /// In `Running`: the end of the grace period, when the command gets TERM.
    countdown: Countdown,
    grace: Duration,
    notice: StopNotice,
    child: Option<Child>,
}

impl Shutdown {
    pub fn new(child: Option<Child>, grace: Duration) -> Self {
        Self {
            stage: Stage::Open,
            countdown: Countdown::Running(None),
            grace,
            notice: StopNotice::default(),
            child,
        }
    }

    pub fn stage(&self) -> Stage {
        self.stage
    }

    pub fn is_closed(&self) -> bool {
        matches!(self.stage, Stage::Closed | Stage::Gone)
    }

    pub fn has_child(&self) -> bool {
        self.child.is_some()
    }

    /// The command's exit status, once the command has ended.
    pub fn child_ended(&self) -> Option<u8> {
        self.child.as_ref().and_then(Child::ended)
    }

    pub fn child(&self) -> Option<&Child> {
        self.child.as_ref()
    }

    pub fn child_mut(&mut self) -> Option<&mut Child> {
        self.child.as_mut()
    }

    /// The command ended with this status: says so if it is no consumer. `taken` is how many
    /// connections were taken from the queue, if known.
    pub fn say_if_idle(&self, status: u8, taken: Option<u64>, log: &Log) {
        if let Some(child) = &self.child
            && (status, taken) == (0, Some(0))
            && !self.is_told()
        {
            child.ended_idle(log);
        }
    }

    /// Whether fdaccept only waits until consumers have emptied the queue.
    pub fn is_emptying(&self) -> bool {
        self.stage == Stage::Closed && self.child.is_none()
    }

    /// Whether fdaccept may exit. With a command only the command's end decides.
    pub fn is_done(&self, sink: &Sink) -> bool {
        let is_at_once = !self.countdown.is_running();
        self.child.is_none()
            && match self.stage {
                Stage::Open | Stage::LastOrders => false,
                Stage::Closed => is_at_once || sink.is_taken(),
                Stage::Gone => true,
            }
    }

    /// Whether the end has begun, so that the next TERM or INT is not the first.
    pub fn is_told(&self) -> bool {
        self.countdown != Countdown::Running(None)
    }

    /// The first TERM or INT. Returns whether to call last orders.
    pub fn stop(&mut self) -> bool {
        self.notice.begin(self.grace);
        self.countdown = Countdown::Running(Some(Instant::now() + self.grace));
        let is_open = self.stage == Stage::Open;
        if is_open {
            self.stage = Stage::LastOrders;
        }
        is_open
    }

    /// The second TERM or INT: waits no longer.
    pub fn stop_at_once(&mut self) {
        self.notice.cancel();
        let Some(child) = &self.child else {
            self.countdown = Countdown::Asked(None);
            return;
        };
        child.signal(Signal::SIGTERM);
        // Further signals do not postpone KILL.
        if let Countdown::Running(_) | Countdown::Asked(None) = self.countdown {
            self.countdown = Countdown::Asked(Some(Instant::now() + KILL_AFTER));
        }
    }

    pub fn close(&mut self) {
        if self.stage != Stage::Gone {
            self.stage = Stage::Closed;
        }
    }

    pub fn nobody_is_left(&mut self) {
        self.stage = Stage::Gone;
    }

    /// After a permanent error: the command has the grace period to read its queue to the end.
    pub fn fail(&mut self) {
        self.stage = Stage::Gone;
        if self.countdown.is_running() {
            self.countdown = Countdown::Running(Some(Instant::now() + self.grace));
        }
    }

    /// Whether the grace period, or the command's time to exit, is over.
    pub fn is_due(&self) -> bool {
        self.countdown.due(Instant::now()).is_some()
    }

    /// Logs once, if due, what a stop waits for: for `clients`, if there are any, and for the command.
    pub fn attend_notice(&mut self, log: &Log, clients: impl FnOnce() -> Vec<String>) {
        let child = &self.child;
        self.notice.attend(log, || {
            let mut all = clients();
            all.extend(child.as_ref().map(|child| format!("the end of {child}")));
            let second = match child {
                Some(child) => format!("ends {child}"),
                None => STOPS_NOW.to_owned(),
            };
            (!all.is_empty()).then(|| (all.join(" and for "), second))
        });
    }

    /// When [`Shutdown::attend_notice`] is due.
    pub fn notice_deadline(&self) -> Option<Instant> {
        self.notice.deadline()
    }

    /// Sends the command TERM or KILL, if due, and logs it.
    pub fn go_on(&mut self, log: &Log) {
        let (signal, next) = match self.countdown.due(Instant::now()) {
            // No KILL is due after this TERM: only another signal from outside ends the wait.
            Some(Step::Ask) => (Signal::SIGTERM, Countdown::Asked(None)),
            Some(Step::Kill | Step::GiveUp) => (Signal::SIGKILL, Countdown::Killed(None)),
            None => return,
        };
        if let Some(child) = &self.child {
            child.signal(signal);
            let what = match signal {
                Signal::SIGTERM => "did not end within --grace, and gets TERM".to_owned(),
                _ => format!("did not end within {}, and is killed", seconds(KILL_AFTER)),
            };
            log.warning(format_args!("{child} {what}"));
        }
        self.countdown = next;
    }

    /// When [`Shutdown::go_on`] has a step to take.
    pub fn deadline(&self) -> Option<Instant> {
        self.countdown.deadline()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::log::Verbosity;

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
        end.go_on(&Log::new("fdaccept", Verbosity::Quiet));
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
