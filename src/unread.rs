//! What was sent through a Unix socket and nobody has received yet, as the kernel tells.
//!
//! The kernel says how much memory the messages use that this socket has sent and nobody has
//! received (`SIOCOUTQ`), whoever has the other side. Messages are received in order, so those are
//! the newest ones.
#![allow(unsafe_code)] // an ioctl

use std::collections::{BTreeMap, VecDeque};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::libc;
use nix::sys::socket::{getsockopt, sockopt};
use rustix::event::{Timespec, epoll};

use crate::error::to_nix;
use crate::queue::{self, Sender};
use crate::{Error, Result};

/// Messages whose lengths are remembered: more than a queue holds.
const REMEMBERED: usize = 4096;
/// As long as what is said of most connections.
const TYPICAL: usize = 150;
/// What that uses on 64-bit machines, for when it cannot be tried out.
const TYPICAL_WEIGHT: u64 = 768;

/// The messages that were sent through one socket.
#[derive(Debug, Default)]
pub(crate) struct Unread {
    sent: u64,
    /// The lengths of the last ones, the newest last.
    lengths: VecDeque<usize>,
    /// The memory that a message of some length uses.
    weights: BTreeMap<usize, u64>,
}

impl Unread {
    /// Those that wait already in a socket that was used before.
    pub fn left_in(socket: BorrowedFd<'_>) -> Self {
        let mut unread = Self::default();
        let count = waiting(socket) / unread.weight(TYPICAL);
        for _ in 0..count {
            unread.remember(TYPICAL);
        }
        unread
    }

    /// One more was sent.
    pub fn remember(&mut self, length: usize) {
        self.sent += 1;
        if self.lengths.len() == REMEMBERED {
            self.lengths.pop_front();
        }
        self.lengths.push_back(length);
    }

    /// How many of them nobody has received.
    pub fn count(&mut self, socket: BorrowedFd<'_>) -> usize {
        let waiting = waiting(socket);
        let mut weight = 0;
        let mut count = 0;
        while weight < waiting && count < self.lengths.len() {
            count += 1;
            weight += self.weight(self.lengths[self.lengths.len() - count]);
        }
        count
    }

    /// How many there were.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// There is another socket, from which nobody has received yet.
    pub fn start_anew(&mut self) {
        self.lengths.clear();
    }

    /// The memory that a message of `length` bytes uses. It depends on the kernel, so it is tried
    /// out.
    fn weight(&mut self, length: usize) -> u64 {
        if let Some(weight) = self.weights.get(&length) {
            return *weight;
        }
        let Some(weight) = try_out(length) else {
            return TYPICAL_WEIGHT;
        };
        self.weights.insert(length, weight);
        weight
    }
}

/// Sends a message to nobody.
fn try_out(length: usize) -> Option<u64> {
    let (sender, _read_end) = queue::ends().ok()?;
    queue::send(&sender, &vec![0; length], &[], false).ok()?;
    Some(waiting(sender.as_fd())).filter(|weight| *weight > 0)
}

/// The memory that messages use which were sent through `socket` and not received.
pub(crate) fn waiting(socket: BorrowedFd<'_>) -> u64 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: `bytes` is where the kernel puts its answer, an int.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) };
    match done {
        0 => u64::try_from(bytes).unwrap_or_default(),
        _ => 0,
    }
}

/// Tells when something was received.
#[derive(Debug)]
pub(crate) struct Receipts {
    /// Watches the sockets for what the kernel tells with each message that is freed.
    epoll: OwnedFd,
}

impl Receipts {
    /// Of no socket yet.
    ///
    /// # Errors
    /// [`Error::System`] (`EMFILE` and the like).
    pub fn new() -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|errno| Error::system("watch the queue", to_nix(errno)))?;
        Ok(Self { epoll })
    }

    /// Tells of `sender` from now on, until it is closed.
    ///
    /// # Errors
    /// [`Error::System`] (`ENOMEM` and the like).
    pub fn watch(&self, sender: &Sender) -> Result<()> {
        // Being writable is told once, and again with each message that is freed.
        let flags = epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(&self.epoll, sender, epoll::EventData::new_u64(0), flags)
            .map_err(|errno| Error::system("watch the queue", to_nix(errno)))
    }

    /// Forgets what was told so far.
    pub fn forget(&self) {
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); 1];
        let _ = epoll::wait(&self.epoll, &mut events, Some(&Timespec::default()));
    }
}

impl AsFd for Receipts {
    /// Readable when something was received since [`Receipts::forget`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// Whether the kernel tells of what is received from `socket`: it does so only while it counts as
/// writable, which is when a quarter of its buffer is used at most.
pub(crate) fn is_told_of(socket: BorrowedFd<'_>) -> bool {
    let buffer = getsockopt(&socket, sockopt::SndBuf).unwrap_or_default();
    waiting(socket) <= buffer as u64 / 4
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::MAX_PAYLOAD;
    use crate::wait::{PollFlags, ready};

    #[test]
    fn messages_of_every_length_are_counted() {
        let (sender, read_end) = queue::ends().unwrap();
        let mut unread = Unread::default();
        let lengths = [1, 100, 150, 200, 320, 384, 385, 1000, MAX_PAYLOAD];
        for (index, length) in lengths.into_iter().enumerate() {
            queue::send(&sender, &vec![0; length], &[], false).unwrap();
            unread.remember(length);
            assert_eq!(unread.count(sender.as_fd()), index + 1);
        }
        for left in (0..lengths.len()).rev() {
            queue::receive(&read_end, false).unwrap();
            assert_eq!(unread.count(sender.as_fd()), left);
        }
    }

    #[test]
    fn what_an_earlier_owner_sent_is_counted() {
        let (sender, read_end) = queue::ends().unwrap();
        for _ in 0..5 {
            queue::send(&sender, &[0; 120], &[], false).unwrap();
        }
        let mut unread = Unread::left_in(sender.as_fd());
        assert_eq!(unread.count(sender.as_fd()), 5);
        queue::receive(&read_end, false).unwrap();
        assert_eq!((unread.sent(), unread.count(sender.as_fd())), (5, 4));
    }

    #[test]
    fn each_receipt_is_told_once() {
        let (sender, read_end) = queue::ends().unwrap();
        let receipts = Receipts::new().unwrap();
        receipts.watch(&sender).unwrap();
        let is_told = || !ready(receipts.as_fd(), PollFlags::IN).is_empty();
        receipts.forget();
        for _ in 0..2 {
            queue::send(&sender, b"-", &[], false).unwrap();
        }
        assert!(!is_told());
        for _ in 0..2 {
            queue::receive(&read_end, false).unwrap();
            assert!(is_told());
            receipts.forget();
            assert!(!is_told());
        }
    }
}
