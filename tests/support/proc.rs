//! What /proc says of a process.

use std::collections::BTreeMap;
use std::fs::File;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::*;

/// What a process has open: `(number, what)`, as /proc says it.
pub fn descriptors(pid: Pid) -> Vec<(i32, String)> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    let mut open: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            let what = std::fs::read_link(entry.path()).ok()?;
            Some((number, what.to_string_lossy().into_owned()))
        })
        .collect();
    open.sort();
    open
}

/// The children of a process, in no order.
pub fn children(pid: Pid) -> Vec<Pid> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    text.unwrap_or_default()
        .split_whitespace()
        .map(|pid| Pid::from_raw(pid.parse().unwrap()))
        .collect()
}

/// Whether a process is there, and not a zombie.
pub fn is_alive(pid: Pid) -> bool {
    state(pid).is_some_and(|state| state != 'Z')
}

/// The state letter of a process (proc(5)).
pub fn state(pid: Pid) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// The time on a CPU that a process has used.
pub fn cpu_time(pid: Pid) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    // USER_HZ is 100 on every Linux.
    Duration::from_millis(ticks * 10)
}

/// The parent of a process.
pub fn parent_of(pid: Pid) -> Pid {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let parent = stat.rsplit_once(") ").unwrap().1.split(' ').nth(1);
    Pid::from_raw(parent.unwrap().parse().unwrap())
}

/// A field of /proc/PID/status, while the process is there.
pub fn try_status_field(pid: Pid, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let mut fields = text.lines().filter_map(|line| line.split_once(":\t"));
    Some(fields.find(|(field, _)| *field == name)?.1.to_owned())
}

#[track_caller]
pub fn status_field(pid: Pid, name: &str) -> String {
    try_status_field(pid, name).unwrap()
}

/// A set of signals: `SigCgt` for those that are caught, `SigBlk`, `SigIgn`.
#[track_caller]
pub fn signal_set(pid: Pid, name: &str) -> u64 {
    u64::from_str_radix(&status_field(pid, name), 16).unwrap()
}

/// The signals that a process ignores. The two that the C library keeps for itself do not count: its
/// posix_spawn(3) leaves them ignored, also where it is a test that is started by it.
pub fn all_ignored(pid: Pid) -> u64 {
    signal_set(pid, "SigIgn") & !(0b11 << 31)
}

/// The same without the signal that stays ignored where this test has a terminal.
pub fn ignored(pid: Pid) -> u64 {
    let ttou = u64::from(File::open("/dev/tty").is_ok()) << (Signal::SIGTTOU as i32 - 1);
    all_ignored(pid) & !ttou
}

/// Whether a signal is in a set of a process, while the process is there.
pub fn has_signal(pid: Pid, set: &str, signal: Signal) -> bool {
    let set = try_status_field(pid, set).and_then(|set| u64::from_str_radix(&set, 16).ok());
    set.is_some_and(|set| set & (1 << (signal as i32 - 1)) != 0)
}

/// What a process was started with: `NAME=VALUE`, sorted.
pub fn environ(pid: Pid) -> Vec<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let mut entries: Vec<_> = text.split_terminator('\0').map(str::to_owned).collect();
    entries.sort();
    entries
}

/// The same by name.
pub fn environment(pid: Pid) -> BTreeMap<String, String> {
    let entries = environ(pid).into_iter();
    let pair = |entry: String| {
        let (name, value) = entry.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    };
    entries.filter_map(pair).collect()
}

/// Every process whose environment has this variable.
pub fn processes_with(name: &str, value: &str) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let pids = pids.map(Pid::from_raw);
    let mark = format!("{name}={value}");
    pids.filter(|pid| environ(*pid).contains(&mark)).collect()
}

/// The sockets that a process has open.
pub fn sockets(pid: Pid) -> Vec<String> {
    let open = descriptors(pid).into_iter().map(|(_, what)| what);
    open.filter(|what| what.starts_with("socket:")).collect()
}

#[track_caller]
pub fn until_state(pid: Pid, wanted: char) {
    until(&format!("state {wanted}"), || state(pid) == Some(wanted));
}

#[track_caller]
pub fn until_gone(pid: Pid) {
    until(&format!("the end of {pid}"), || !is_alive(pid));
}

/// Waits until a process runs this program.
#[track_caller]
pub fn until_named(pid: Pid, name: &str) {
    until(name, || {
        try_status_field(pid, "Name").as_deref() == Some(name)
    });
}

/// Stops a process, and waits until it is.
#[track_caller]
pub fn freeze(pid: Pid) {
    nix::sys::signal::kill(pid, Signal::SIGSTOP).unwrap();
    // The second is that of a stop under strace(1).
    until("a stop", || matches!(state(pid), Some('T' | 't')));
}

#[track_caller]
pub fn thaw(pid: Pid) {
    nix::sys::signal::kill(pid, Signal::SIGCONT).unwrap();
}

/// The number of descriptors of a process, once it does not change any more.
pub fn settled(pid: Pid) -> usize {
    let mut last = descriptors(pid).len();
    let mut same = 0;
    until("no change of descriptors", || {
        let now = descriptors(pid).len();
        same = if now == last { same + 1 } else { 0 };
        last = now;
        same == 20
    });
    last
}

/// Checks that processes that have nothing to do use no more CPU than `limit` in a second, in which
/// each would use all of it if it did not wait.
#[track_caller]
pub fn are_idle(pids: &[Pid], limit: Duration) {
    let before: Vec<_> = pids.iter().map(|pid| cpu_time(*pid)).collect();
    // Nothing happens meanwhile: there is nothing else to wait for.
    std::thread::sleep(Duration::from_secs(1));
    for (pid, before) in pids.iter().zip(before) {
        let used = cpu_time(*pid) - before;
        assert!(used < limit, "{used:?} in a second");
    }
}
