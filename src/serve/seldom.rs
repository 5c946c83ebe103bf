//! Lines that clients can cause as often as they like.

use std::time::{Duration, Instant};

const SELDOM: Duration = Duration::from_secs(60);

/// Lets one line a minute through, and counts the others.
#[derive(Debug, Default)]
pub(super) struct Seldom {
    last: Option<Instant>,
    left_out: u64,
}

impl Seldom {
    /// Whether the line is due now: then how many were left out since the last one.
    pub fn is_due(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now < last + SELDOM) {
            self.left_out += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_minute_has_the_number_of_the_others() {
        let mut seldom = Seldom::default();
        let start = Instant::now();
        let due = [0, 1, 30, 59, 60, 61, 200, 201].map(|seconds| {
            let now = start + Duration::from_secs(seconds);
            seldom.is_due(now)
        });
        let expected = [Some(0), None, None, None, Some(3), None, Some(1), None];
        assert_eq!(due, expected);
    }
}
