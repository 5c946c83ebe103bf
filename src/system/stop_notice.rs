//! The line that says what a stop waits for.

use std::time::{Duration, Instant};

use crate::system::log::Log;
use crate::system::text::up_to;

/// A stop that is over sooner needs no line.
const SHORT: Duration = Duration::from_millis(500);

/// What another signal does while a stop waits.
pub(crate) const STOPS_NOW: &str = "stops now";

/// Logs once what a stop waits for, if it waits.
#[derive(Debug, Default)]
pub(crate) struct StopNotice {
    due: Option<Instant>,
    grace: Duration,
}

impl StopNotice {
    /// A first signal has begun a stop that may wait for `grace`.
    pub fn begin(&mut self, grace: Duration) {
        self.due = (grace > SHORT).then(|| Instant::now() + SHORT);
        self.grace = grace;
    }

    /// There is no more to say: another signal has come.
    pub fn cancel(&mut self) {
        self.due = None;
    }

    /// When the line is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.due
    }

    /// Logs the line if it is due. `waits_for` is what the stop waits for, if anything, and what another
    /// signal does.
    pub fn attend(&mut self, log: &Log, waits_for: impl FnOnce() -> Option<(String, String)>) {
        if self.due.take_if(|due| *due <= Instant::now()).is_some()
            && let Some((what, second)) = waits_for()
        {
            let time = up_to(self.grace);
            log.warning(format_args!(
                "waits {time}for {what}; a second signal {second}"
            ));
        }
    }
}
