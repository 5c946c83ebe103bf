//! Limits how many connections are let in within a period. No clock, no I/O.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use crate::system::text::{digits, parse_timeout};

/// The highest count of a rate.
const MOST_COUNTED: usize = 1_000_000;

/// At most `count` connections in any period of length `time`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    count: NonZeroUsize,
    time: Duration,
    /// When the last connections came, the oldest first; never more than `count`.
    last: VecDeque<Instant>,
}

impl Rate {
    /// Parses `N/SECONDS`.
    ///
    /// # Errors
    /// The problem, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let problem = || format!("not a rate (N/SECONDS, N from 1 to {MOST_COUNTED})");
        let (count, time) = text.split_once('/').ok_or_else(problem)?;
        let count: Option<NonZeroUsize> = digits(count);
        let count = count.filter(|count| count.get() <= MOST_COUNTED);
        let time = parse_timeout(time)?;
        Ok(Self {
            count: count.ok_or_else(problem)?,
            time,
            last: VecDeque::new(),
        })
    }

    /// Counts a connection.
    pub fn count(&mut self, now: Instant) {
        if self.last.len() == self.count.get() {
            self.last.pop_front();
        }
        self.last.push_back(now);
    }

    /// Until when no connection may come; `None` if the next may come now.
    pub fn full_until(&self, now: Instant) -> Option<Instant> {
        if self.last.len() < self.count.get() {
            return None;
        }
        let until = *self.last.front()? + self.time;
        (now < until).then_some(until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_stretch_of_that_time_has_more() {
        let mut rate = Rate::parse("3/2").unwrap();
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        for millis in [0, 500, 1000] {
            assert_eq!(rate.full_until(at(millis)), None);
            rate.count(at(millis));
        }
        assert_eq!(rate.full_until(at(1000)), Some(at(2000)));
        assert_eq!(rate.full_until(at(1999)), Some(at(2000)));
        assert_eq!(rate.full_until(at(2000)), None);
        rate.count(at(2000));
        assert_eq!(rate.full_until(at(2000)), Some(at(2500)));
        // However long no connection came.
        assert_eq!(rate.full_until(at(1_000_000)), None);
    }

    #[test]
    fn a_rate_is_a_number_and_a_time() {
        assert!(Rate::parse("1/0.5").is_ok());
        for bad in [
            "",
            "5",
            "5/",
            "/5",
            "0/1",
            "5/0",
            "-1/1",
            "x/1",
            "1/x",
            "1/1/1",
            "9999999/1",
        ] {
            assert!(Rate::parse(bad).is_err(), "{bad}");
        }
    }
}
