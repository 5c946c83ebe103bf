//! A page of memory that a pool shares with its slots.
//!
//! A slot stores whether it is busy, the pool stores how urgent a stop is. That costs no system
//! call, and a killed slot leaves nothing locked.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::error::{Error, Result};
use crate::system::log::Log;
use crate::system::shared;

/// The most slots that a pool can have.
pub(crate) const MAX_SLOTS: usize = 65536;

/// Tells a slot that the urgency of the pool's stop has changed.
pub(crate) const URGENT: Signal = Signal::SIGUSR2;

/// What a slot does with its handler while the pool stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Urgency {
    /// Let the handler finish.
    None,
    /// Send TERM to the handler, and KILL if it does not end.
    End,
    /// Send KILL to the handler.
    Now,
}

/// 4 words for the pool, then 1 for each slot.
const URGENCY: usize = 0;
const SIZE: usize = 1;
const PLACES: usize = 2;
/// Microseconds from `start` to the end of the last service.
const SERVED: usize = 3;
const SLOTS: usize = 4;
/// Room for slots that still finish while their successors run.
const WORDS: usize = SLOTS + 2 * MAX_SLOTS;

/// The shared memory. It stays mapped until the process ends; pages of unused slots take no memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scoreboard {
    words: &'static [AtomicU64],
    start: Instant,
}

impl Scoreboard {
    /// Children that are forked from now on share the memory.
    ///
    /// # Errors
    /// [`Error::System`] (`ENOMEM`).
    pub fn new() -> Result<Self> {
        const COUNT: NonZeroUsize = NonZeroUsize::new(WORDS).unwrap();
        let words = shared::words(COUNT)
            .map_err(|errno| Error::system("share memory with slots", errno))?;
        Ok(Self {
            words,
            start: Instant::now(),
        })
    }

    pub fn set_busy(&self, index: usize, busy: bool) {
        let before = self.words[SLOTS + index].swap(busy.into(), Ordering::AcqRel);
        if before != 0 && !busy {
            let now = self.start.elapsed().as_micros() as u64;
            self.words[SERVED].fetch_max(now, Ordering::AcqRel);
        }
    }

    /// When a slot last served a connection: now, if one is busy; `start`, if none ever was.
    pub fn last_service(&self) -> Instant {
        if self.count_busy() > 0 {
            return Instant::now();
        }
        // Loaded after the count, so that a service which ends meanwhile is not overlooked.
        let served = self.words[SERVED].load(Ordering::Acquire);
        self.start + Duration::from_micros(served)
    }

    pub fn is_busy(&self, index: usize) -> bool {
        self.words[SLOTS + index].load(Ordering::Acquire) != 0
    }

    pub fn count_busy(&self) -> usize {
        let places = self.words[PLACES].load(Ordering::Acquire) as usize;
        (0..places).filter(|index| self.is_busy(*index)).count()
    }

    /// Slots have had the first `places` places so far.
    pub fn set_places(&self, places: usize) {
        self.words[PLACES].store(places as u64, Ordering::Release);
    }

    pub fn log_status(&self, log: &Log) {
        if log.is_verbose() {
            log.detail(format_args!(
                "status: {}/{}",
                self.count_busy(),
                self.size()
            ));
        }
    }

    pub fn set_size(&self, size: usize) {
        self.words[SIZE].store(size as u64, Ordering::Release);
    }

    pub fn size(&self) -> usize {
        self.words[SIZE].load(Ordering::Acquire) as usize
    }

    pub fn set_urgency(&self, urgency: Urgency) {
        self.words[URGENCY].store(urgency as u64, Ordering::Release);
    }

    pub fn urgency(&self) -> Urgency {
        match self.words[URGENCY].load(Ordering::Acquire) {
            0 => Urgency::None,
            1 => Urgency::End,
            _ => Urgency::Now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_says_the_other_sees() {
        let board = Scoreboard::new().unwrap();
        assert_eq!(board.urgency(), Urgency::None);
        assert_eq!(board.count_busy(), 0);
        board.set_places(MAX_SLOTS);
        board.set_busy(1, true);
        board.set_busy(MAX_SLOTS - 1, true);
        board.set_urgency(Urgency::Now);
        board.set_size(7);
        assert!(board.is_busy(1) && !board.is_busy(0));
        assert_eq!(board.count_busy(), 2);
        assert_eq!((board.urgency(), board.size()), (Urgency::Now, 7));
    }

    #[test]
    fn the_end_of_a_service_is_remembered() {
        let board = Scoreboard::new().unwrap();
        board.set_places(1);
        let start = board.last_service();
        board.set_busy(0, false);
        assert_eq!(board.last_service(), start);
        board.set_busy(0, true);
        let before = Instant::now();
        assert!(board.last_service() >= before);
        std::thread::sleep(Duration::from_millis(2));
        board.set_busy(0, false);
        let end = board.last_service();
        assert!(end > start && end <= Instant::now());
        assert_eq!(board.last_service(), end);
    }
}
