//! Ends a process with its group and its descendants: by `TERM`, then by `KILL`; by `HUP` before, if
//! its client is gone.
//!
//! [`Countdown`] is the state machine, without signals; [`Termination`] adds the target.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getpgid};

use crate::system::descendants::Descendants;
use crate::system::poll::earliest;

/// From TERM to KILL by default, and from HUP to TERM.
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
    /// HUP was sent.
    HungUp(Option<Instant>),
    Asked(Option<Instant>),
    Killed(Option<Instant>),
}

impl Countdown {
    pub fn deadline(self) -> Option<Instant> {
        let (Self::Running(at) | Self::HungUp(at) | Self::Asked(at) | Self::Killed(at)) = self;
        at
    }

    pub fn due(self, now: Instant) -> Option<Step> {
        let is_due = self.deadline().is_some_and(|at| at <= now);
        is_due.then_some(match self {
            Self::Running(_) | Self::HungUp(_) => Step::Ask,
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

    /// HUP or TERM was sent, and KILL was not.
    pub fn is_ending(self) -> bool {
        matches!(self, Self::HungUp(_) | Self::Asked(_))
    }

    pub fn is_killed(self) -> bool {
        matches!(self, Self::Killed(_))
    }
}

/// The target of the signals, by the number of a child that was made the leader of a group. The
/// number is not reused while the child is not reaped, or the group has a process or zombie.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// A child that serves one connection: signals go to the child, its group and its descendants,
    /// also those that this process has adopted.
    Handler(Pid),
    /// A child that serves many connections: TERM goes to the child alone, KILL also to its group
    /// and its descendants.
    Worker(Pid),
    /// The group of a child that was reaped.
    Rest(Pid),
    /// That group, once it has no process: its number may be another group's.
    Gone,
}

impl Target {
    /// Sends TERM or HUP.
    fn ask(self, signal: Signal) {
        match self {
            Self::Worker(pid) => drop(kill(pid, signal)),
            _ => self.signal(signal),
        }
        // A stopped process would see neither the signal nor the end of a stopped child.
        self.signal(Signal::SIGCONT);
    }

    /// Signals the group, and the child itself if it has left the group.
    fn signal(self, signal: Signal) {
        let group = match self {
            Self::Handler(pid) | Self::Worker(pid) => {
                if getpgid(Some(pid)) != Ok(pid) {
                    let _ = kill(pid, signal);
                }
                pid
            }
            Self::Rest(group) => group,
            Self::Gone => return,
        };
        let _ = killpg(group, signal);
    }

    /// The child was reaped.
    fn without_child(self) -> Self {
        match self {
            Self::Handler(pid) | Self::Worker(pid) | Self::Rest(pid) => Self::Rest(pid),
            Self::Gone => Self::Gone,
        }
    }

    fn descendants(self) -> Option<Descendants> {
        match self {
            Self::Handler(pid) => Some(Descendants::with_adopted(pid)),
            Self::Worker(pid) => Some(Descendants::of(pid)),
            Self::Rest(_) | Self::Gone => None,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Termination {
    target: Target,
    countdown: Countdown,
    /// Known since the first signal that goes to them.
    descendants: Option<Descendants>,
}

impl Termination {
    /// The target gets its TERM at `until`, or never.
    pub fn new(target: Target, until: Option<Instant>) -> Self {
        Self {
            target,
            countdown: Countdown::Running(until),
            descendants: None,
        }
    }

    pub fn countdown(&self) -> Countdown {
        self.countdown
    }

    /// Sends HUP, but only once, and not after another signal. TERM is due at `until`, or before if it
    /// was.
    pub fn hang_up(&mut self, until: Instant) {
        if let Countdown::Running(at) = self.countdown {
            self.send(Signal::SIGHUP);
            self.countdown = Countdown::HungUp(earliest([at, Some(until)]));
        }
    }

    /// Sends TERM, but only once. KILL is due at `until`.
    pub fn ask(&mut self, until: Instant) {
        if let Countdown::Running(_) | Countdown::HungUp(_) = self.countdown {
            self.send(Signal::SIGTERM);
            self.countdown = Countdown::Asked(Some(until));
        }
    }

    fn send(&mut self, signal: Signal) {
        if matches!(self.target, Target::Handler(_)) {
            self.descendants = self.target.descendants();
        }
        if let Some(descendants) = &self.descendants {
            descendants.ask(signal);
        }
        self.target.ask(signal);
    }

    /// Sends KILL, but only once. Giving up is due at `until`.
    pub fn kill(&mut self, until: Option<Instant>) {
        if !self.countdown.is_killed() {
            let target = self.target;
            self.descendants = self.descendants.take().or_else(|| target.descendants());
            // Before the parents end, and once more for children that were just being made.
            self.kill_descendants();
            target.signal(Signal::SIGKILL);
            self.kill_descendants();
            self.countdown = Countdown::Killed(until);
        }
    }

    fn kill_descendants(&self) {
        if let Some(descendants) = &self.descendants {
            descendants.kill();
        }
    }

    /// The child was reaped, so its number is that of its group only.
    pub fn leader_ended(&mut self) {
        self.target = self.target.without_child();
        if let Some(descendants) = &mut self.descendants {
            descendants.leader_ended();
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

    /// Whether the child is not reaped, its group has a process, be it a zombie, or a descendant
    /// that was signalled lives.
    pub fn is_there(&mut self) -> bool {
        if let Target::Rest(group) = self.target
            && killpg(group, None) == Err(Errno::ESRCH)
        {
            self.target = Target::Gone;
        }
        !matches!(self.target, Target::Gone)
            || self.descendants.as_ref().is_some_and(Descendants::is_there)
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
        assert_eq!(Countdown::HungUp(Some(now)).due(now), Some(Step::Ask));
        assert_eq!(Countdown::Asked(Some(now)).due(now), Some(Step::Kill));
        assert_eq!(Countdown::Killed(Some(now)).due(now), Some(Step::GiveUp));
        for waiting in [
            Countdown::Running(None),
            Countdown::Asked(None),
            Countdown::Killed(None),
            Countdown::HungUp(None),
            Countdown::Running(Some(later)),
            Countdown::HungUp(Some(later)),
            Countdown::Asked(Some(later)),
        ] {
            assert_eq!(waiting.due(now), None, "{waiting:?}");
        }
    }

    /// The number is beyond every process id, so this group has no process.
    const NOBODY: Target = Target::Rest(Pid::from_raw(i32::MAX));

    #[test]
    fn a_hang_up_comes_first_and_once_and_puts_nothing_off() {
        let now = Instant::now();
        let [soon, later] = [1, 2].map(|count| now + KILL_AFTER * count);
        let mut end = Termination::new(NOBODY, None);
        end.hang_up(soon);
        end.hang_up(later);
        assert_eq!(end.countdown(), Countdown::HungUp(Some(soon)));
        assert!(end.countdown().is_ending() && !end.countdown().is_running());
        end.ask(later);
        end.hang_up(soon);
        assert_eq!(end.countdown(), Countdown::Asked(Some(later)));

        let mut end = Termination::new(NOBODY, Some(soon));
        end.hang_up(later);
        assert_eq!(end.countdown(), Countdown::HungUp(Some(soon)));
        end.kill(None);
        end.hang_up(later);
        assert_eq!(end.countdown(), Countdown::Killed(None));

        let mut end = Termination::new(NOBODY, None);
        end.hang_up(now);
        end.go_on();
        assert!(matches!(end.countdown(), Countdown::Asked(Some(_))));
    }

    #[test]
    fn nobody_is_asked_twice_nor_after_a_kill() {
        let mut end = Termination::new(NOBODY, None);
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
