//! Whether processes are active, seen from outside by their processor time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use crate::system::descendants::children;

/// The processor time of some processes and of their descendants.
#[derive(Debug)]
pub(crate) struct CpuActivity {
    used: BTreeMap<Pid, Duration>,
    /// When `used` last changed.
    last: Instant,
}

impl CpuActivity {
    pub fn new() -> Self {
        Self {
            used: BTreeMap::new(),
            last: Instant::now(),
        }
    }

    /// Looks again. Returns the time of the last activity.
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

/// Zero if the process is gone.
fn processor_time(pid: Pid) -> Duration {
    let clock = ClockId::pid_cpu_clock_id(pid);
    let time = clock.and_then(clock_gettime);
    time.map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_is_seen_to_do_something_and_to_do_nothing() {
        // The shell waits for its child, cat, which does the work.
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
        // The shell or cat may still be on its way to sleep.
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
