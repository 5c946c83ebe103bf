//! What is left of a process group whose first process has ended.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::slot::KILL_AFTER;

/// How often they are looked at, as nothing announces their end: those that were asked to end,
/// and those that were not.
const LOOK_SOON: Duration = Duration::from_millis(50);
const LOOK: Duration = Duration::from_millis(500);

/// Processes of which the pool knows the group only.
#[derive(Debug)]
pub(crate) struct Remains {
    group: Pid,
    stage: Stage,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// They may finish what they do, and are asked to end then.
    Left(Instant),
    /// They were asked to end, and are killed then.
    Asked(Instant),
    Killed,
}

impl Remains {
    /// What is left of `group`, if there is something; it may go on until `at`.
    pub fn leave(group: Pid, at: Instant) -> Option<Self> {
        let stage = Stage::Left(at);
        let remains = Self { group, stage };
        remains.is_there().then_some(remains)
    }

    /// Asks them to end, and gives them until `at`.
    pub fn ask_to_go(&mut self, at: Instant) {
        if let Stage::Left(_) = self.stage {
            self.signal(Signal::SIGTERM);
            // One that is stopped would not see it.
            self.signal(Signal::SIGCONT);
            self.stage = Stage::Asked(at);
        }
    }

    /// Ends them now.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.stage = Stage::Killed;
    }

    /// Goes on by the clock. Returns whether there is something to come back for.
    pub fn go_on(&mut self) -> bool {
        let now = Instant::now();
        match self.stage {
            _ if !self.is_there() => return false,
            Stage::Left(at) if at <= now => self.ask_to_go(now + KILL_AFTER),
            Stage::Asked(at) if at <= now => self.kill(),
            _ => {}
        }
        // What KILL does not end, nothing does.
        !matches!(self.stage, Stage::Killed)
    }

    /// When to look again.
    pub fn look(&self) -> Instant {
        let now = Instant::now();
        match self.stage {
            Stage::Left(at) => at.min(now + LOOK),
            Stage::Asked(at) => at.min(now + LOOK_SOON),
            Stage::Killed => now,
        }
    }

    /// The number is not reused while one of the group is there, and a group that was gone once
    /// is not looked at again.
    fn is_there(&self) -> bool {
        killpg(self.group, None) != Err(Errno::ESRCH)
    }

    fn signal(&self, signal: Signal) {
        let _ = killpg(self.group, signal);
    }
}
