//! While descriptors or memory are short: accepts nothing for a while, and logs that once.

use std::time::Instant;

use nix::errno::Errno;

use crate::accept::failures::Causes;
use crate::error::words;
use crate::system::log::Log;
use crate::system::pause::{Pause, SHORTAGE};

#[derive(Default)]
pub(super) struct Shortage {
    pause: Pause,
    causes: Causes,
}

impl Shortage {
    /// Pauses because of `errno`.
    pub fn begin(&mut self, errno: Errno, log: &Log) {
        self.pause.begin(SHORTAGE);
        if self.causes.is_news(errno) {
            let cause = words(errno);
            log.error(format_args!(
                "cannot accept: {cause}; connections wait until it can"
            ));
        }
    }

    /// Something was freed: tries again at once.
    pub fn end(&self) {
        self.pause.end();
    }

    /// Whether accepting is paused.
    pub fn is_on(&self) -> bool {
        self.pause.is_on()
    }

    /// When the pause ends.
    pub fn deadline(&self) -> Option<Instant> {
        self.pause.deadline()
    }
}
