//! The descendants of a child, also those that left its process group, as /proc tells them.
//!
//! A process that loses its parent is adopted by the nearest subreaper
//! (`PR_SET_CHILD_SUBREAPER`). If that is this process, descendants are found by their age and
//! session. Without /proc there are no descendants.

use std::collections::BTreeSet;

use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid};
use rustix::process::{self, PidfdFlags, pidfd_open, pidfd_send_signal};

use crate::system::processes::{Stat, children};

/// How often to look for children that were made while others were killed.
const ROUNDS: usize = 32;

#[derive(Debug)]
pub(crate) struct Descendants {
    leader: Pid,
    /// The leader is not reaped yet, so its number is its own.
    has_leader: bool,
    /// When the leader was started, if adopted processes are to be found.
    start: Option<u64>,
}

impl Descendants {
    /// The descendants of `leader`, a child of this process, as long as their parents live.
    pub fn of(leader: Pid) -> Self {
        Self {
            leader,
            has_leader: true,
            start: None,
        }
    }

    /// The same, with those that this process has adopted. `leader` is the only child that this
    /// process has started; it may have adopted others before.
    pub fn with_adopted(leader: Pid) -> Self {
        let start = Stat::read(leader).map(|stat| stat.start);
        Self {
            start,
            ..Self::of(leader)
        }
    }

    /// The leader was reaped.
    pub fn leader_ended(&mut self) {
        self.has_leader = false;
    }

    pub fn is_there(&self) -> bool {
        !self.all().is_empty()
    }

    /// Sends TERM or HUP to those that have left the group of the leader.
    pub fn ask(&self, signal: Signal) {
        let signal = process::Signal::from_named_raw(signal as i32);
        let signals = signal.into_iter().chain([process::Signal::CONT]);
        let signals: Vec<_> = signals.collect();
        let all = self.all();
        for pid in &all {
            if Stat::read(*pid).is_some_and(|stat| stat.group != self.leader) {
                self.send(*pid, &all, &signals);
            }
        }
    }

    /// Sends KILL to all, until no new ones appear.
    pub fn kill(&self) {
        let mut killed = BTreeSet::new();
        for _ in 0..ROUNDS {
            let all = self.all();
            let new: Vec<_> = all.difference(&killed).copied().collect();
            if new.is_empty() {
                return;
            }
            for pid in &new {
                self.send(*pid, &all, &[process::Signal::KILL]);
            }
            killed.extend(new);
        }
    }

    /// Sends signals to one of `all`. A number that another process has got meanwhile is left
    /// alone: its parent is a stranger.
    fn send(&self, pid: Pid, all: &BTreeSet<Pid>, signals: &[process::Signal]) {
        let number = process::Pid::from_raw(pid.as_raw());
        let Some(Ok(process)) = number.map(|pid| pidfd_open(pid, PidfdFlags::empty())) else {
            return;
        };
        let is_ours = |parent: Pid| {
            all.contains(&parent)
                || parent == getpid()
                || (self.has_leader && parent == self.leader)
        };
        if Stat::read(pid).is_some_and(|stat| is_ours(stat.parent)) {
            for signal in signals {
                let _ = pidfd_send_signal(&process, *signal);
            }
        }
    }

    /// Those that live. A zombie has no children.
    fn all(&self) -> BTreeSet<Pid> {
        let mut all = BTreeSet::new();
        let mut left = self.adopted();
        if self.has_leader {
            left.extend(children(self.leader));
        }
        while let Some(pid) = left.pop() {
            if Stat::read(pid).is_some_and(|stat| stat.is_alive) && all.insert(pid) {
                left.extend(children(pid));
            }
        }
        all
    }

    /// The adopted processes that were started after the leader. Those that an older one has left
    /// are in its session or its group.
    fn adopted(&self) -> Vec<Pid> {
        let Some(start) = self.start else {
            return Vec::new();
        };
        let own = getpid();
        let Some(session) = Stat::read(own).map(|stat| stat.session) else {
            return Vec::new();
        };
        let others = children(own).into_iter().filter(|pid| *pid != self.leader);
        let others = others.filter_map(|pid| Some((pid, Stat::read(pid)?)));
        let (new, old): (Vec<_>, Vec<_>) =
            others.partition(|(pid, stat)| (stat.start, *pid) > (start, self.leader));
        let is_of = |new: &Stat, old: &Stat| {
            new.group == old.group || (new.session == old.session && new.session != session)
        };
        let new = new.into_iter();
        new.filter(|(_, new)| !old.iter().any(|(_, old)| is_of(new, old)))
            .map(|(pid, _)| pid)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    #[test]
    fn descendants_are_killed_and_nobody_else() {
        let text = "sh -c 'echo $$; sleep 100 & echo $!; wait' & wait";
        let start = || {
            let mut command = Command::new("sh");
            let mut shell = command
                .args(["-c", text])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(shell.stdout.take().unwrap()).lines();
            let mut pid = || Pid::from_raw(lines.next().unwrap().unwrap().parse().unwrap());
            let pids = BTreeSet::from([pid(), pid()]);
            (shell, pids)
        };
        let (mut first, of_first) = start();
        let (mut second, of_second) = start();
        let all = Descendants::of(Pid::from_raw(first.id() as i32));
        assert_eq!(all.all(), of_first);
        all.kill();
        first.wait().unwrap();
        let other = Descendants::of(Pid::from_raw(second.id() as i32));
        assert_eq!(other.all(), of_second);
        other.kill();
        second.wait().unwrap();
    }
}
