//! What fdaccept says of itself.

/// Whether a line of a log has fdaccept's counters. With `-v`, the line of a connection begins alike.
pub fn is_counters(line: &str) -> bool {
    line.starts_with("fdaccept: accepted ") && line.contains(", passed ")
}

/// The client's port in a line that is `start`, the port, and `rest`: `fdaccept: refused 127.0.0.7`,
/// `:45678`, ` on 127.0.0.1:8888: a rule denies it`.
pub fn port_told(line: &str, start: &str, rest: &str) -> Option<u16> {
    let line = line.strip_prefix(start)?.strip_prefix(':')?;
    line.strip_suffix(rest)?.parse().ok()
}

/// How many lines of a log are such lines.
pub fn times_told(log: &str, start: &str, rest: &str) -> usize {
    let told = log
        .lines()
        .filter(|line| port_told(line, start, rest).is_some());
    told.count()
}

/// Whether fdaccept says that so many connections are lost with their consumers. How many exactly it knows
/// only if it has looked between the end of the first consumer and that of the last.
pub fn is_left(line: &str, count: usize) -> bool {
    let what = match count {
        1 => "1 connection was accepted and not taken".to_owned(),
        _ => format!("{count} connections were accepted and not taken"),
    };
    let said = line.strip_prefix("fdaccept: ").unwrap_or_default();
    said.strip_prefix("up to ").unwrap_or(said) == what
}

#[track_caller]
pub fn expect_left(line: &str, count: usize) {
    assert!(is_left(line, count), "{line:?} is not of {count}");
}

/// Whether a line says what a stop waits for. On a slow machine every stop may wait for a moment.
pub fn is_of_a_wait(line: &str) -> bool {
    line.contains(": waits ") && line.contains("; a second signal ")
}

/// Whether a line says that the queue is full, or has room again.
pub fn is_of_room(line: &str) -> bool {
    line.contains(": the queue is full: ") || line.ends_with(": the queue has room again")
}

/// The lines of the log of an fdaccept that has ended, but for its counters, which are there once, and
/// for what depends on the time that others take: a full queue, and what the stop waited for.
#[track_caller]
pub fn besides_counters(log: &str) -> Vec<&str> {
    let lines = log
        .lines()
        .filter(|line| !is_of_a_wait(line) && !is_of_room(line));
    let (counters, other): (Vec<_>, Vec<_>) = lines.partition(|line| is_counters(line));
    assert_eq!(counters.len(), 1, "{log}");
    other
}
