//! The end of a process or of a process group: by itself, asked by `TERM`, or by `KILL`.
//!
//! [`Countdown`] is the state machine, without a signal in it; [`Termination`] is one with the
//! target that it signals.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::system::poll::earliest;

/// From TERM to KILL, where nothing else is said.
pub(crate) const KILL_AFTER: Duration = Duration::from_secs(5);
/// How often to look whether a group is still there whose first process is gone, as nothing
/// announces its end: one that is to end, and one that is not.
const LOOK_SOON: Duration = Duration::from_millis(50);
const LOOK: Duration = Duration::from_millis(500);

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// To ask for the end.
    Ask,
    /// To end it by force.
    Kill,
    /// To wait no longer.
    GiveUp,
}

/// How far an end has gone, each with when the next step is due; `None` for never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Countdown {
    Running(Option<Instant>),
    Asked(Option<Instant>),
    Killed(Option<Instant>),
}

impl Countdown {
    /// When the next step is due.
    pub fn deadline(self) -> Option<Instant> {
        let (Self::Running(at) | Self::Asked(at) | Self::Killed(at)) = self;
        at
    }

    /// The step that is due at `now`.
    pub fn due(self, now: Instant) -> Option<Step> {
        let is_due = self.deadline().is_some_and(|at| at <= now);
        is_due.then_some(match self {
            Self::Running(_) => Step::Ask,
            Self::Asked(_) => Step::Kill,
            Self::Killed(_) => Step::GiveUp,
        })
    }

    pub fn is_running(self) -> bool {
        matches!(self, Self::Running(_))
    }

    pub fn is_asked(self) -> bool {
        matches!(self, Self::Asked(_))
    }

    pub fn is_killed(self) -> bool {
        matches!(self, Self::Killed(_))
    }
}

/// Who gets the signals. Its number is nobody else's until the last process of it is reaped.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// A process group.
    Group(Pid),
    /// The first process of a group is asked; all of the group is killed.
    Leader(Pid),
}

impl Target {
    fn ask(self) {
        let (Self::Group(pid) | Self::Leader(pid)) = self;
        let _ = match self {
            Self::Group(group) => killpg(group, Signal::SIGTERM),
            Self::Leader(leader) => kill(leader, Signal::SIGTERM),
        };
        // A stopped process would not see it, nor the end of a stopped child.
        let _ = killpg(pid, Signal::SIGCONT);
    }

    fn kill(self) {
        let (Self::Group(pid) | Self::Leader(pid)) = self;
        let _ = killpg(pid, Signal::SIGKILL);
    }

    /// Whether anybody of the group is there, be it as a zombie.
    fn is_there(self) -> bool {
        let (Self::Group(pid) | Self::Leader(pid)) = self;
        killpg(pid, None) != Err(Errno::ESRCH)
    }
}

/// The end of one target.
#[derive(Debug)]
pub(crate) struct Termination {
    target: Target,
    countdown: Countdown,
}

impl Termination {
    /// Of a target that may go on until `until`, or for ever.
    pub fn new(target: Target, until: Option<Instant>) -> Self {
        Self {
            target,
            countdown: Countdown::Running(until),
        }
    }

    pub fn countdown(&self) -> Countdown {
        self.countdown
    }

    /// Asks for the end, unless that was done before. KILL is due at `until`.
    pub fn ask(&mut self, until: Instant) {
        if self.countdown.is_running() {
            self.target.ask();
            self.countdown = Countdown::Asked(Some(until));
        }
    }

    /// Kills, unless that was done before. To give up is due at `until`.
    pub fn kill(&mut self, until: Option<Instant>) {
        if !self.countdown.is_killed() {
            self.target.kill();
            self.countdown = Countdown::Killed(until);
        }
    }

    /// Does what is due by the clock.
    pub fn go_on(&mut self) {
        let now = Instant::now();
        match self.countdown.due(now) {
            Some(Step::Ask) => self.ask(now + KILL_AFTER),
            Some(Step::Kill) => self.kill(None),
            Some(Step::GiveUp) | None => {}
        }
    }

    /// Whether anybody of the group is there. Its number is not reused until then, and a group that
    /// was gone once is not to be looked at again.
    pub fn is_there(&self) -> bool {
        self.target.is_there()
    }

    /// When to look at it again, if its first process is gone.
    pub fn next_look(&self) -> Instant {
        let pause = if self.countdown.is_running() {
            LOOK
        } else {
            LOOK_SOON
        };
        let look = Instant::now() + pause;
        earliest([self.countdown.deadline(), Some(look)]).unwrap_or(look)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_has_its_step() {
        let (now, later) = (Instant::now(), Instant::now() + KILL_AFTER);
        assert_eq!(Countdown::Running(Some(now)).due(now), Some(Step::Ask));
        assert_eq!(Countdown::Asked(Some(now)).due(now), Some(Step::Kill));
        assert_eq!(Countdown::Killed(Some(now)).due(now), Some(Step::GiveUp));
        for waiting in [
            Countdown::Running(None),
            Countdown::Asked(None),
            Countdown::Killed(None),
            Countdown::Running(Some(later)),
            Countdown::Asked(Some(later)),
        ] {
            assert_eq!(waiting.due(now), None, "{waiting:?}");
        }
    }

    #[test]
    fn nobody_is_asked_twice_nor_after_a_kill() {
        // A group of nobody: its number is beyond every process id.
        let mut end = Termination::new(Target::Group(Pid::from_raw(i32::MAX)), None);
        let (soon, later) = (Instant::now(), Instant::now() + KILL_AFTER);
        end.ask(soon);
        end.ask(later);
        assert_eq!(end.countdown(), Countdown::Asked(Some(soon)));
        end.go_on();
        assert_eq!(end.countdown(), Countdown::Killed(None));
        end.ask(later);
        end.kill(Some(later));
        assert_eq!(end.countdown(), Countdown::Killed(None));
        assert!(!end.is_there());
    }
}
