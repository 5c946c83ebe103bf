//! Ends a process or a process group: by `TERM`, then by `KILL`.
//!
//! [`Countdown`] is the state machine, without signals; [`Termination`] adds the target.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::system::poll::earliest;

/// From TERM to KILL by default.
pub(crate) const KILL_AFTER: Duration = Duration::from_secs(5);
/// How often to look whether a group without its first process still exists, since nothing
/// announces its end. `LOOK_SOON` applies after a TERM or KILL, `LOOK` before.
const LOOK_SOON: Duration = Duration::from_millis(50);
const LOOK: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Send TERM.
    Ask,
    /// Send KILL.
    Kill,
    /// Stop waiting.
    GiveUp,
}

/// The stage of a termination, with the deadline of the next step; `None` is never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Countdown {
    Running(Option<Instant>),
    Asked(Option<Instant>),
    Killed(Option<Instant>),
}

impl Countdown {
    pub fn deadline(self) -> Option<Instant> {
        let (Self::Running(at) | Self::Asked(at) | Self::Killed(at)) = self;
        at
    }

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

/// The target of the signals. Its number is not reused while the group has a process or zombie.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    Group(Pid),
    /// TERM goes to the first process of a group, KILL to the whole group.
    Leader(Pid),
}

impl Target {
    fn ask(self) {
        let (Self::Group(pid) | Self::Leader(pid)) = self;
        let _ = match self {
            Self::Group(group) => killpg(group, Signal::SIGTERM),
            Self::Leader(leader) => kill(leader, Signal::SIGTERM),
        };
        // A stopped process would see neither the TERM nor the end of a stopped child.
        let _ = killpg(pid, Signal::SIGCONT);
    }

    fn kill(self) {
        let (Self::Group(pid) | Self::Leader(pid)) = self;
        let _ = killpg(pid, Signal::SIGKILL);
    }

    /// Whether the group has a process, be it a zombie.
    fn is_there(self) -> bool {
        let (Self::Group(pid) | Self::Leader(pid)) = self;
        killpg(pid, None) != Err(Errno::ESRCH)
    }
}

#[derive(Debug)]
pub(crate) struct Termination {
    target: Target,
    countdown: Countdown,
}

impl Termination {
    /// The target gets its TERM at `until`, or never.
    pub fn new(target: Target, until: Option<Instant>) -> Self {
        Self {
            target,
            countdown: Countdown::Running(until),
        }
    }

    pub fn countdown(&self) -> Countdown {
        self.countdown
    }

    /// Sends TERM, but only once. KILL is due at `until`.
    pub fn ask(&mut self, until: Instant) {
        if self.countdown.is_running() {
            self.target.ask();
            self.countdown = Countdown::Asked(Some(until));
        }
    }

    /// Sends KILL, but only once. Giving up is due at `until`.
    pub fn kill(&mut self, until: Option<Instant>) {
        if !self.countdown.is_killed() {
            self.target.kill();
            self.countdown = Countdown::Killed(until);
        }
    }

    /// Takes the step that is due.
    pub fn go_on(&mut self) {
        let now = Instant::now();
        match self.countdown.due(now) {
            Some(Step::Ask) => self.ask(now + KILL_AFTER),
            Some(Step::Kill) => self.kill(None),
            Some(Step::GiveUp) | None => {}
        }
    }

    /// Whether the group has a process, be it a zombie. Its number may be reused after that, so do
    /// not look again once the group was gone.
    pub fn is_there(&self) -> bool {
        self.target.is_there()
    }

    /// When to look again at a group without its first process.
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
        // The number is beyond every process id, so this group has no process.
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
