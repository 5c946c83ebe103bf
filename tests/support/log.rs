//! What fdaccept says of itself.

/// Whether a line of a log has fdaccept's counters. With `-v`, the line of a connection begins alike.
pub fn is_counters(line: &str) -> bool {
    line.starts_with("fdaccept: accepted ") && line.contains(", passed ")
}

/// The lines of the log of an fdaccept that has ended, but for its counters, which are there once.
#[track_caller]
pub fn besides_counters(log: &str) -> Vec<&str> {
    let (counters, other): (Vec<_>, Vec<_>) = log.lines().partition(|line| is_counters(line));
    assert_eq!(counters.len(), 1, "{log}");
    other
}
