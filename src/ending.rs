//! The end of a process group: by itself, asked by `TERM`, or by `KILL`.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How long a group has between TERM and KILL where nothing else is said.
pub(crate) const KILL_AFTER: Duration = Duration::from_secs(5);
/// How often it is looked whether a group is there whose first process is gone, as nothing
/// announces its end: one that is to end, and one that is not.
const LOOK_SOON: Duration = Duration::from_millis(50);
const LOOK: Duration = Duration::from_millis(500);

/// A process group, and how far its end has gone.
#[derive(Debug)]
pub(crate) struct Ending {
    group: Pid,
    stage: Stage,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// It may go on, and is asked to end then.
    Running(Option<Instant>),
    /// It was asked to end, and is killed then.
    Asked(Instant),
    Killed,
}

impl Ending {
    /// A group that may go on until `at`, or for ever.
    pub fn new(group: Pid, at: Option<Instant>) -> Self {
        let stage = Stage::Running(at);
        Self { group, stage }
    }

    /// Asks it to end, if it was not asked yet, and gives it until `at`.
    pub fn ask_to_go(&mut self, at: Instant) {
        if let Stage::Running(_) = self.stage {
            self.signal(Signal::SIGTERM);
            // One that is stopped would not see it.
            self.signal(Signal::SIGCONT);
            self.stage = Stage::Asked(at);
        }
    }

    /// Ends it now.
    pub fn kill(&mut self) {
        if !self.is_killed() {
            self.signal(Signal::SIGKILL);
            self.stage = Stage::Killed;
        }
    }

    /// Does what is due by the clock.
    pub fn go_on(&mut self) {
        let now = Instant::now();
        match self.stage {
            Stage::Running(Some(at)) if at <= now => self.ask_to_go(now + KILL_AFTER),
            Stage::Asked(at) if at <= now => self.kill(),
            _ => {}
        }
    }

    /// When something is due by the clock.
    pub fn deadline(&self) -> Option<Instant> {
        match self.stage {
            Stage::Running(at) => at,
            Stage::Asked(at) => Some(at),
            Stage::Killed => None,
        }
    }

    /// When to look at it again, if its first process is gone.
    pub fn look(&self) -> Instant {
        let pause = match self.stage {
            Stage::Running(_) => LOOK,
            Stage::Asked(_) | Stage::Killed => LOOK_SOON,
        };
        let look = Instant::now() + pause;
        self.deadline().map_or(look, |at| at.min(look))
    }

    /// Whether it was asked to end, and may still do so by itself.
    pub fn is_asked(&self) -> bool {
        matches!(self.stage, Stage::Asked(_))
    }

    /// Whether it was killed. What that does not end, nothing does.
    pub fn is_killed(&self) -> bool {
        matches!(self.stage, Stage::Killed)
    }

    /// Whether anybody of the group is there, be it as a zombie. The number is not reused until
    /// then, and a group that was gone once is not looked at again.
    pub fn is_there(&self) -> bool {
        killpg(self.group, None) != Err(Errno::ESRCH)
    }

    fn signal(&self, signal: Signal) {
        let _ = killpg(self.group, signal);
    }
}
