//! While descriptors or memory are short: accepts nothing for a while, and logs that once.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::error::words;
use crate::system::free_fds::FreeFds;
use crate::system::log::Log;
use crate::system::pause::{Pause, SHORTAGE};

/// Shortages closer together than this are logged once.
const SAME: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(super) struct Shortage {
    pause: Pause,
    last: Option<Instant>,
    /// Keeps a descriptor free for the next consumer.
    free: FreeFds<1>,
}

impl Shortage {
    /// Pauses because of `errno`.
    pub fn begin(&mut self, errno: Errno, log: &Log) {
        let now = Instant::now();
        self.pause.begin(SHORTAGE);
        if self.last.is_none_or(|last| now - last > SAME) {
            let cause = words(errno);
            log.error(format_args!(
                "cannot accept: {cause}; connections wait until it can"
            ));
        }
        self.last = Some(now);
    }

    /// Whether accepting is paused.
    pub fn is_on(&self) -> bool {
        self.pause.is_on()
    }

    /// When the pause ends.
    pub fn deadline(&self) -> Option<Instant> {
        self.pause.deadline()
    }

    /// Whether a descriptor is free for the next consumer. `any` is any open descriptor.
    pub fn has_room(&self, any: BorrowedFd<'_>) -> bool {
        self.free.check(any).is_ok()
    }
}
