//! A page of memory that a pool shares with its slots.
//!
//! A slot stores what it does, and counts what it passed over or refused. The pool stores its size,
//! how urgent a stop is, and how many slots are to make room. That costs no system call, and a
//! killed slot leaves nothing locked.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::Signal;

use crate::error::{Error, Result};
use crate::queue::Rejection;
use crate::system::log::Log;
use crate::system::shared;

/// The most slots that a pool can have.
pub(crate) const MAX_SLOTS: usize = 65536;

/// Tells a slot that the scoreboard has news: a stop is more urgent, or a stuck slot may have room.
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

/// What a slot does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    /// It waits for a connection, or ends.
    Idle,
    /// It serves a connection.
    Busy,
    /// It has a connection and cannot start the handler, because processes or memory are short.
    Stuck(Errno),
    /// The pool told a stuck slot to give its connection back and to end.
    GivingBack,
    /// The pool told an idle slot to end. A connection may come first.
    Leaving,
}

impl Activity {
    /// The low byte is the kind, and the rest the errno.
    fn word(self) -> u64 {
        match self {
            Activity::Idle => 0,
            Activity::Busy => 1,
            Activity::Stuck(errno) => 2 | (errno as u64) << 8,
            Activity::GivingBack => 3,
            Activity::Leaving => 4,
        }
    }

    fn of(word: u64) -> Self {
        match word & 0xff {
            0 => Activity::Idle,
            1 => Activity::Busy,
            2 => Activity::Stuck(Errno::from_raw((word >> 8) as i32)),
            3 => Activity::GivingBack,
            _ => Activity::Leaving,
        }
    }

    fn is_busy(self) -> bool {
        !matches!(self, Activity::Idle | Activity::Leaving)
    }
}

/// The words of the pool, then 1 for each slot.
const URGENCY: usize = 0;
const SIZE: usize = 1;
const PLACES: usize = 2;
/// Microseconds from `start` to the end of the last service.
const SERVED: usize = 3;
/// How many slots are to end instead of taking another connection.
const ROOM: usize = 4;
/// Whether a connection may have been given back.
const RETURNED: usize = 5;
/// How many clients had gone before they were served.
const GONE: usize = 6;
/// How many messages were refused.
const REFUSED: usize = 7;
/// How often a handler could not be started, because processes or memory were short.
const FAILURES: usize = 8;
/// The reasons of refusals that were logged, as hashes.
const SAID: usize = 9;
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
        const COUNT: NonZeroUsize = NonZeroUsize::new(WORDS).unwrap();
        let words = shared::words(COUNT)
            .map_err(|errno| Error::system("share memory with slots", errno))?;
        Ok(Self {
            words,
            start: Instant::now(),
        })
    }

    /// Returns what the slot did before.
    pub fn set(&self, index: usize, activity: Activity) -> Activity {
        let before = self.words[SLOTS + index].swap(activity.word(), Ordering::AcqRel);
        let before = Activity::of(before);
        if before.is_busy() && activity == Activity::Idle {
            let now = self.start.elapsed().as_micros() as u64;
            self.words[SERVED].fetch_max(now, Ordering::AcqRel);
        }
        before
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

    pub fn activity(&self, index: usize) -> Activity {
        Activity::of(self.words[SLOTS + index].load(Ordering::Acquire))
    }

    /// Whether the slot has a connection.
    pub fn is_busy(&self, index: usize) -> bool {
        self.activity(index).is_busy()
    }

    /// Tells a stuck slot to give its connection back. Returns whether it still was stuck.
    pub fn tell_to_give_back(&self, index: usize) -> bool {
        let stuck = self.activity(index);
        matches!(stuck, Activity::Stuck(_)) && self.replace(index, stuck, Activity::GivingBack)
    }

    /// Notes that an idle slot is told to end. Returns whether it still was idle.
    pub fn tell_to_leave(&self, index: usize) -> bool {
        self.replace(index, Activity::Idle, Activity::Leaving)
    }

    fn replace(&self, index: usize, old: Activity, new: Activity) -> bool {
        self.words[SLOTS + index]
            .compare_exchange(old.word(), new.word(), Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// From now on `slots` slots end instead of taking another connection.
    pub fn ask_for_room(&self, slots: usize) {
        self.words[ROOM].store(slots as u64, Ordering::Release);
    }

    /// Whether the asking slot is to end, to make room.
    pub fn makes_room(&self) -> bool {
        let one_less = |wanted: u64| wanted.checked_sub(1);
        self.words[ROOM]
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less)
            .is_ok()
    }

    pub fn set_returned(&self, may_be: bool) {
        self.words[RETURNED].store(may_be.into(), Ordering::Release);
    }

    /// Whether a connection may have been given back.
    pub fn may_be_returned(&self) -> bool {
        self.words[RETURNED].load(Ordering::Acquire) != 0
    }

    pub fn count_busy(&self) -> usize {
        let places = self.words[PLACES].load(Ordering::Acquire) as usize;
        (0..places).filter(|index| self.is_busy(*index)).count()
    }

    /// Slots have had the first `places` places so far.
    pub fn set_places(&self, places: usize) {
        self.words[PLACES].store(places as u64, Ordering::Release);
    }

    pub fn count_failure(&self) {
        self.words[FAILURES].fetch_add(1, Ordering::AcqRel);
    }

    /// How often a handler could not be started, because processes or memory were short.
    pub fn failures(&self) -> u64 {
        self.words[FAILURES].load(Ordering::Acquire)
    }

    pub fn count_gone(&self) {
        self.words[GONE].fetch_add(1, Ordering::AcqRel);
    }

    pub fn log_status(&self, log: &Log) {
        if log.is_verbose() {
            let (busy, size) = (self.count_busy(), self.size());
            let gone = self.words[GONE].load(Ordering::Acquire);
            let mut status = format!("status: {busy}/{size}");
            for (what, count) in [("gone", gone), ("refused", self.refused())] {
                if count > 0 {
                    status += &format!(", {what}: {count}");
                }
            }
            log.detail(status);
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
        board.set(1, Activity::Busy);
        board.set(MAX_SLOTS - 1, Activity::Stuck(Errno::ENOMEM));
        board.set_urgency(Urgency::Now);
        board.set_size(7);
        assert!(board.is_busy(1) && !board.is_busy(0));
        let last = board.activity(MAX_SLOTS - 1);
        assert_eq!(last, Activity::Stuck(Errno::ENOMEM));
        assert_eq!(board.count_busy(), 2);
        assert_eq!((board.urgency(), board.size()), (Urgency::Now, 7));
    }

    #[test]
    fn only_a_stuck_slot_gives_back() {
        let board = Scoreboard::new().unwrap();
        board.set(0, Activity::Busy);
        assert!(!board.tell_to_give_back(0));
        board.set(0, Activity::Stuck(Errno::EAGAIN));
        assert!(board.tell_to_give_back(0));
        assert_eq!(board.activity(0), Activity::GivingBack);
        assert!(!board.tell_to_give_back(0));
    }

    #[test]
    fn only_an_idle_slot_leaves_and_is_not_busy_until_it_has_a_connection() {
        let board = Scoreboard::new().unwrap();
        board.set(0, Activity::Busy);
        assert!(!board.tell_to_leave(0));
        board.set(0, Activity::Idle);
        assert!(board.tell_to_leave(0));
        assert!(!board.tell_to_leave(0) && !board.is_busy(0));
        assert_eq!(board.set(0, Activity::Busy), Activity::Leaving);
        assert!(board.is_busy(0));
    }

    #[test]
    fn as_many_slots_make_room_as_were_asked_for() {
        let board = Scoreboard::new().unwrap();
        assert!(!board.makes_room());
        board.ask_for_room(2);
        assert_eq!([(); 3].map(|()| board.makes_room()), [true, true, false]);
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
        board.set(0, Activity::Idle);
        assert_eq!(board.last_service(), start);
        board.set(0, Activity::Busy);
        let before = Instant::now();
        assert!(board.last_service() >= before);
        std::thread::sleep(Duration::from_millis(2));
        board.set(0, Activity::Idle);
        let end = board.last_service();
        assert!(end > start && end <= Instant::now());
        assert_eq!(board.last_service(), end);
    }
}
