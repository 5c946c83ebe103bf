//! What the kernel tells about a process in /proc.

use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

pub fn raise_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

fn read(pid: Pid, file: &str) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default()
}

/// The number in a line `name: number` of such a file.
fn number(text: &str, name: &str) -> u64 {
    let line = text.lines().find(|line| line.starts_with(name));
    let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    number.unwrap_or_default()
}

/// How often the process waited for something and got it (proc_pid_status(5)).
pub fn wake_ups(pid: Pid) -> u64 {
    number(&read(pid, "status"), "voluntary_ctxt_switches:")
}

/// The processor time of a process without its children, to the nanosecond
/// (Documentation/scheduler/sched-stats.rst of the kernel).
pub fn processor_time(pid: Pid) -> Duration {
    let text = read(pid, "schedstat");
    let time = text.split_whitespace().next();
    Duration::from_nanos(time.and_then(|time| time.parse().ok()).unwrap_or_default())
}

/// The proportional set size in KiB: shared memory counts in parts.
pub fn proportional_set_size(pid: Pid) -> u64 {
    number(&read(pid, "smaps_rollup"), "Pss:")
}

pub fn name(pid: Pid) -> String {
    read(pid, "comm").trim().to_owned()
}
