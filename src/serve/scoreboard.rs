//! A page of memory that a pool shares with its slots.
//!
//! A slot stores whether it is busy, the pool stores how urgent a stop is. That costs no system
//! call, and a killed slot leaves nothing locked.
#![allow(unsafe_code)] // one mapping of atomics, shared with forked children

use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::signal::Signal;

use crate::error::{Error, Result};
use crate::queue::Rejection;
use crate::system::log::Log;

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

/// The words of the pool, then 1 for each slot.
const URGENCY: usize = 0;
const SIZE: usize = 1;
const PLACES: usize = 2;
/// Microseconds from `start` to the end of the last service.
const SERVED: usize = 3;
/// How many messages were refused.
const REFUSED: usize = 4;
/// The reasons of refusals that were logged, as hashes.
const SAID: usize = 5;
/// How many different reasons are logged.
const MOST_SAID: usize = 64;
const SLOTS: usize = SAID + MOST_SAID;
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
        const BYTES: NonZeroUsize = NonZeroUsize::new(WORDS * size_of::<AtomicU64>()).unwrap();
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let page = unsafe {
            mmap_anonymous(
                None,
                BYTES,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE,
            )
        }
        .map_err(|errno| Error::system("share memory with slots", errno))?;
        // SAFETY: the mapping is as long as this slice, page-aligned, zeroed, never unmapped, and
        // accessed only through these atomics, for which every bit pattern is valid.
        let words = unsafe { std::slice::from_raw_parts(page.as_ptr().cast(), WORDS) };
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
            let (busy, size) = (self.count_busy(), self.size());
            match self.refused() {
                0 => log.detail(format_args!("status: {busy}/{size}")),
                count => log.detail(format_args!("status: {busy}/{size}, {count} refused")),
            }
        }
    }

    /// Logs why a message was refused, once for all slots, and counts it. Strangers may send
    /// messages without end.
    pub fn refuse(&self, why: Rejection, log: &Log) {
        self.words[REFUSED].fetch_add(1, Ordering::AcqRel);
        if self.is_new(why) {
            log.error(why);
        }
    }

    fn is_new(&self, why: Rejection) -> bool {
        let mut hasher = DefaultHasher::new();
        why.hash(&mut hasher);
        // 0 is an empty word.
        let why = hasher.finish() | 1;
        for word in &self.words[SAID..SLOTS] {
            match word.compare_exchange(0, why, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(said) if said == why => return false,
                Err(_) => {}
            }
        }
        false
    }

    /// How many messages were refused.
    pub fn refused(&self) -> u64 {
        self.words[REFUSED].load(Ordering::Acquire)
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
    fn each_reason_of_a_refusal_is_new_once_and_there_are_few() {
        let board = Scoreboard::new().unwrap();
        assert!(board.is_new(Rejection::Sender(7)));
        assert!(board.is_new(Rejection::Sender(8)));
        assert!(board.is_new(Rejection::NoDescriptor));
        assert!(!board.is_new(Rejection::Sender(7)));
        assert!(!board.is_new(Rejection::NoDescriptor));
        let new = (100..300).filter(|uid| board.is_new(Rejection::Sender(*uid)));
        assert_eq!(new.count(), MOST_SAID - 3);
        assert!(!board.is_busy(0));
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
