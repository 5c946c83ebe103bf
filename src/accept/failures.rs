//! Failures of accept(2) at one listener. A failure that lasts pauses the listener, and is logged
//! once.

use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::accept::listen::Listener;
use crate::error::Error;
use crate::system::log::Log;
use crate::system::pause::Pause;

/// How many failures in a row cost nothing: clients that are gone, a network that is down.
const FREE: u32 = 3;
/// The pause after the first failure beyond these. Each further pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The same cause at a shorter distance is logged once.
const SAME: Duration = Duration::from_secs(60);

/// Failures without a success between them.
#[derive(Debug, Default)]
pub(super) struct Failures {
    in_a_row: u32,
    pause: Pause,
    causes: Causes,
    /// A cause was logged, and its end was not.
    is_told: bool,
}

impl Failures {
    /// Counts a failure. `is_news` is whether it is worth a line in the log.
    pub fn add(&mut self, listener: &Listener, errno: Errno, is_news: bool, log: &Log) {
        self.in_a_row = self.in_a_row.saturating_add(1);
        let Some(doublings) = self.in_a_row.checked_sub(FREE + 1) else {
            return;
        };
        let length = FIRST_PAUSE.saturating_mul(1 << doublings.min(16));
        self.pause.begin(length.min(LONGEST_PAUSE));
        if is_news && self.causes.is_news(errno) {
            let error = Error::system(format!("accept on {listener}"), errno);
            log.error(format_args!("{error}; connections wait until it can"));
            self.is_told = true;
        }
    }

    /// A connection was accepted.
    pub fn end(&mut self, listener: &Listener, log: &Log) {
        self.in_a_row = 0;
        if std::mem::take(&mut self.is_told) {
            log.notice(format_args!("accepts on {listener} again"));
        }
    }

    /// Whether so many failures came in a row that another one is likely.
    pub fn are_lasting(&self) -> bool {
        self.in_a_row > FREE
    }

    pub fn is_pause_on(&self) -> bool {
        self.pause.is_on()
    }

    /// When the pause ends.
    pub fn deadline(&self) -> Option<Instant> {
        self.pause.deadline()
    }

    /// Ends the pause: the listener is tried at once.
    pub fn end_pause(&self) {
        self.pause.end();
    }
}

/// Causes of failures that were met in the last minute.
#[derive(Debug, Default)]
pub(super) struct Causes(Vec<(Errno, Instant)>);

impl Causes {
    /// Notes a cause. Whether it was not met for a while.
    pub fn is_news(&mut self, errno: Errno) -> bool {
        let now = Instant::now();
        self.0.retain(|(_, last)| now - *last <= SAME);
        match self.0.iter_mut().find(|(cause, _)| *cause == errno) {
            Some((_, last)) => {
                *last = now;
                false
            }
            None => {
                self.0.push((errno, now));
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_news_once() {
        let mut causes = Causes::default();
        assert!(causes.is_news(Errno::EPERM));
        assert!(!causes.is_news(Errno::EPERM));
        assert!(causes.is_news(Errno::EMFILE));
        assert!(!causes.is_news(Errno::EPERM));
    }
}
