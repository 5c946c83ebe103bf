//! While processes or memory are short, or slots fail: no slot is started for a while. The pause
//! doubles, and the log tells of a shortage once.

use std::fmt::Display;
use std::time::{Duration, Instant};

use crate::system::log::{Log, Said, Verbosity};
use crate::system::pause::Pause;

const FIRST: Duration = Duration::from_secs(1);
const LAST: Duration = Duration::from_secs(30);
/// Shortages closer together than this are logged once, and each makes the next pause longer.
const SAME: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Shortage {
    pause: Pause,
    /// The length of the last pause.
    length: Duration,
    last: Option<Instant>,
    said: Said,
    /// The message that not even one handler can be started.
    said_last: Said,
}

impl Shortage {
    /// Begins a pause, unless one is on.
    pub fn begin(&mut self) {
        let now = Instant::now();
        if self.last.is_none_or(|last| now - last > SAME) {
            self.length = Duration::ZERO;
            self.said.forget();
            self.said_last.forget();
        }
        self.last = Some(now);
        if !self.pause.is_on() {
            self.length = (self.length * 2).clamp(FIRST, LAST);
            self.pause.begin(self.length);
        }
    }

    /// Logs that a handler or a slot could not be started.
    pub fn say(&mut self, problem: impl Display, log: &Log) {
        let what = format!("{problem}; idle slots give way to handlers");
        log.once(&mut self.said, Verbosity::Quiet, what);
    }

    /// Logs that the only slot cannot start its handler.
    pub fn say_of_last_slot(&mut self, problem: impl Display, log: &Log) {
        let what = format!("{problem}; there is one slot, and no room for its handler");
        log.once(&mut self.said_last, Verbosity::Quiet, what);
    }

    pub fn end_pause(&self) {
        self.pause.end();
    }

    /// Whether the pause is on.
    pub fn is_on(&self) -> bool {
        self.pause.is_on()
    }

    /// Whether there was a shortage lately.
    pub fn is_short(&self) -> bool {
        self.last.is_some_and(|last| last.elapsed() <= SAME)
    }

    /// When the pause ends.
    pub fn deadline(&self) -> Option<Instant> {
        self.pause.deadline()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pause_is_twice_as_long_up_to_half_a_minute() {
        let mut shortage = Shortage::default();
        let lengths = [1, 2, 4, 8, 16, 30, 30].map(Duration::from_secs);
        for length in lengths {
            shortage.begin();
            assert_eq!(shortage.length, length);
            // During a pause a further shortage changes nothing.
            shortage.begin();
            assert_eq!(shortage.length, length);
            shortage.pause.end();
        }
        let long_ago = Instant::now().checked_sub(SAME * 2).expect("uptime");
        shortage.last = Some(long_ago);
        shortage.begin();
        assert_eq!(shortage.length, FIRST);
    }
}
