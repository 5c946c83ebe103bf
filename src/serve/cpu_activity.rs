//! Whether processes do something, seen from outside: by the processor time that they use.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// What some processes, and those that they started, have done so far.
#[derive(Debug)]
pub(crate) struct CpuActivity {
    /// The processor time of each.
    used: BTreeMap<Pid, Duration>,
    /// When it was seen to change.
    last: Instant,
}

impl CpuActivity {
    /// Nothing was seen yet.
    pub fn new() -> Self {
        Self {
            used: BTreeMap::new(),
            last: Instant::now(),
        }
    }

    /// Looks again. Returns when something was seen to have been done last.
    pub fn look(&mut self, processes: impl IntoIterator<Item = Pid>) -> Instant {
        let mut used = BTreeMap::new();
        let mut left: Vec<Pid> = processes.into_iter().collect();
        while let Some(pid) = left.pop() {
            left.extend(children(pid));
            used.insert(pid, processor_time(pid));
        }
        if used != self.used {
            self.used = used;
            self.last = Instant::now();
        }
        self.last
    }
}

/// The processor time that a process has used; none if it is gone.
fn processor_time(pid: Pid) -> Duration {
    let clock = ClockId::pid_cpu_clock_id(pid);
    let time = clock.and_then(clock_gettime);
    time.map_or(Duration::ZERO, Duration::from)
}

/// The children of a process, each of whose threads can have some (proc_pid_task(5)). Where the
/// kernel does not tell, none are seen.
pub(crate) fn children(pid: Pid) -> Vec<Pid> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let lists = threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let mut children = Vec::new();
    for list in lists {
        let numbers = list.split_ascii_whitespace();
        children.extend(numbers.filter_map(|number| number.parse().ok().map(Pid::from_raw)));
    }
    children
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_is_seen_to_do_something_and_to_do_nothing() {
        // A shell that waits for its child, which does the work.
        let mut shell = Command::new("sh")
            .args(["-c", "cat; :"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(shell.id() as i32);
        let (mut to, mut from) = (shell.stdin.take().unwrap(), shell.stdout.take().unwrap());
        let mut exchange = || {
            to.write_all(b"x").unwrap();
            from.read_exact(&mut [0]).unwrap();
        };
        let mut activity = CpuActivity::new();
        exchange();
        // It may still be on its way to sleep.
        let mut seen = activity.look([pid]);
        loop {
            std::thread::sleep(Duration::from_millis(20));
            let again = activity.look([pid]);
            if again == seen {
                break;
            }
            seen = again;
        }
        exchange();
        assert!(activity.look([pid]) > seen);
        drop(to);
        shell.wait().unwrap();
        assert!(activity.look([]) > seen);
    }
}
