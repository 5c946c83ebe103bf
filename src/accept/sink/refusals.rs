//! Consumers that a door has refused: each reason is logged once, and all are counted.

use std::fmt::Display;

use crate::system::log::{Log, Said, Verbosity};

#[derive(Debug, Default)]
pub(super) struct Refusals {
    count: u64,
    said: Said,
}

impl Refusals {
    pub fn count(&self) -> u64 {
        self.count
    }

    /// A refused consumer may come back without end.
    pub fn add(&mut self, why: impl Display, log: &Log) {
        self.count += 1;
        let what = format_args!("a consumer was refused: {why}");
        log.once(&mut self.said, Verbosity::Quiet, what);
    }
}
