//! Counts the messages that were sent through a Unix socket and not received yet.
//!
//! The kernel tells how much memory such messages use (`SIOCOUTQ`), no matter who has the other
//! end. Messages are received in order, so the unreceived messages are the newest.
#![allow(unsafe_code)] // an ioctl

use std::collections::{BTreeMap, VecDeque};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::libc;
use nix::sys::socket::{getsockopt, sockopt};
use rustix::event::{Timespec, epoll};

use crate::error::{Error, Result, to_nix};
use crate::queue::scm::try_send;
use crate::queue::{self, Sender};
use crate::system::poll::{PollFlags, ready};

/// The length of most messages.
const TYPICAL: usize = 150;
/// The memory of a [`TYPICAL`] message on 64-bit machines, if it cannot be measured.
const TYPICAL_WEIGHT: u64 = 768;
/// Less than any message uses. The kernel reports a receipt before the message's last byte is
/// freed.
const REMAINDER: u64 = 256;
/// How many lengths to collect before they are weighed.
const COLLECTED: usize = 4096;

/// The messages that were sent through a socket.
#[derive(Debug, Default)]
pub(crate) struct Unread {
    sent: u64,
    /// The lengths of messages sent since the last count.
    lengths: Vec<usize>,
    /// The memory of each older message that was unreceived at the last count, the newest last.
    weights: VecDeque<u64>,
    /// The sum of `weights`.
    total: u64,
    /// All receivers have gone and left messages, which the kernel has freed.
    is_lost: bool,
    /// The measured memory of a message, by its length.
    weighed: BTreeMap<usize, u64>,
}

impl Unread {
    /// Starts with the messages that an earlier owner of the socket has left unread.
    pub fn left_in(socket: BorrowedFd<'_>) -> Self {
        let mut unread = Self::default();
        let count = waiting(socket) / unread.weight(TYPICAL);
        unread.lengths = vec![TYPICAL; count as usize];
        unread
    }

    /// Notes that a message of `length` bytes was sent through `socket`.
    pub fn remember(&mut self, length: usize, socket: BorrowedFd<'_>) {
        self.sent += 1;
        self.lengths.push(length);
        if self.lengths.len() == COLLECTED {
            self.count(socket);
        }
    }

    /// How many messages are unreceived, including messages of an earlier owner. If all receivers are
    /// gone and the kernel has freed what they left: how many were unreceived at most.
    pub fn count(&mut self, socket: BorrowedFd<'_>) -> usize {
        let waiting = waiting(socket);
        for length in std::mem::take(&mut self.lengths) {
            let weight = self.weight(length);
            self.weights.push_back(weight);
            self.total += weight;
        }
        // Less is waiting because of receipts, or because the kernel frees what nobody will receive.
        if self.is_oldest_gone(waiting) && !self.is_lost(socket) {
            while self.is_oldest_gone(waiting) {
                self.total -= self.weights.pop_front().unwrap_or_default();
            }
        }
        self.weights.len()
    }

    fn is_oldest_gone(&self, waiting: u64) -> bool {
        let oldest = self.weights.front();
        oldest.is_some_and(|oldest| self.total - oldest + REMAINDER >= waiting)
    }

    /// How many messages of our own were sent.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// How many of our own messages were received; at least so many, if others are lost.
    pub fn received(&mut self, socket: BorrowedFd<'_>) -> u64 {
        self.sent.saturating_sub(self.count(socket) as u64)
    }

    /// Whether all receivers have gone and left messages, which nobody will receive.
    pub fn is_lost(&mut self, socket: BorrowedFd<'_>) -> bool {
        self.is_lost |= ready(socket, PollFlags::empty()).contains(PollFlags::ERR);
        self.is_lost
    }

    /// The same, told by an error of a send: the kernel reports it once.
    pub fn lose(&mut self) {
        self.is_lost = true;
    }

    /// Starts again with a new socket, which is empty.
    pub fn start_anew(&mut self) {
        *self = Self {
            sent: self.sent,
            ..Self::default()
        };
    }

    /// The memory of a message of `length` bytes. It depends on the kernel, so it is measured.
    fn weight(&mut self, length: usize) -> u64 {
        if let Some(weight) = self.weighed.get(&length) {
            return *weight;
        }
        let Some(weight) = try_out(length) else {
            return TYPICAL_WEIGHT;
        };
        self.weighed.insert(length, weight);
        weight
    }
}

/// Measures a message in a queue without a consumer.
fn try_out(length: usize) -> Option<u64> {
    let (sender, _read_end) = queue::ends().ok()?;
    try_send(&sender, &vec![0; length], &[]).ok()?;
    Some(waiting(sender.as_fd())).filter(|weight| *weight > 0)
}

/// The memory of the messages that were sent through `socket` and not received.
pub(crate) fn waiting(socket: BorrowedFd<'_>) -> u64 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes its answer, an int, to `bytes`.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) };
    if done == 0 {
        u64::try_from(bytes).unwrap_or_default()
    } else {
        0
    }
}

/// Tells when a message was received.
#[derive(Debug)]
pub(crate) struct Receipts {
    /// Gets an event for each message that the kernel frees.
    epoll: OwnedFd,
}

impl Receipts {
    /// Watches no socket yet.
    ///
    /// # Errors
    /// [`Error::System`] (`EMFILE` and the like).
    pub fn new() -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|errno| Error::system("watch the queue", to_nix(errno)))?;
        Ok(Self { epoll })
    }

    /// Watches `sender` until it is closed.
    ///
    /// # Errors
    /// [`Error::System`] (`ENOMEM` and the like).
    pub fn watch(&self, sender: &Sender) -> Result<()> {
        // Edge-triggered, so a writable socket is reported once, and again for each freed message.
        let flags = epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(&self.epoll, sender, epoll::EventData::new_u64(0), flags)
            .map_err(|errno| Error::system("watch the queue", to_nix(errno)))
    }

    /// Clears the event.
    pub fn forget(&self) {
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); 1];
        let _ = epoll::wait(&self.epoll, &mut events, Some(&Timespec::default()));
    }
}

impl AsFd for Receipts {
    /// Readable when a message was received since [`Receipts::forget`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// Whether the kernel reports each message that is received from `socket`. It does so only while
/// the socket counts as writable: at most a quarter of its buffer is in use.
pub(crate) fn is_told_of(socket: BorrowedFd<'_>) -> bool {
    let buffer = getsockopt(&socket, sockopt::SndBuf).unwrap_or_default();
    waiting(socket) <= buffer as u64 / 4
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::message::MAX_PAYLOAD;
    use crate::queue::scm::try_receive;
    use nix::errno::Errno;

    #[test]
    fn messages_of_every_length_are_counted() {
        let (sender, read_end) = queue::ends().unwrap();
        let mut unread = Unread::default();
        let lengths = [1, 100, 150, 200, 320, 384, 385, 1000, MAX_PAYLOAD];
        for (index, length) in lengths.into_iter().enumerate() {
            try_send(&sender, &vec![0; length], &[]).unwrap();
            unread.remember(length, sender.as_fd());
            assert_eq!(unread.count(sender.as_fd()), index + 1);
        }
        for left in (0..lengths.len()).rev() {
            try_receive(&read_end).unwrap();
            assert_eq!(unread.count(sender.as_fd()), left);
            let received = (lengths.len() - left) as u64;
            assert_eq!(unread.received(sender.as_fd()), received);
        }
    }

    #[test]
    fn what_an_earlier_owner_sent_is_counted_and_not_as_ours() {
        let (sender, read_end) = queue::ends().unwrap();
        for _ in 0..5 {
            try_send(&sender, &[0; 120], &[]).unwrap();
        }
        let mut unread = Unread::left_in(sender.as_fd());
        assert_eq!(unread.count(sender.as_fd()), 5);
        try_receive(&read_end).unwrap();
        assert_eq!(unread.count(sender.as_fd()), 4);
        assert_eq!(unread.received(sender.as_fd()), 0);
        try_send(&sender, b"ours", &[]).unwrap();
        unread.remember(4, sender.as_fd());
        for _ in 0..5 {
            assert_eq!(unread.received(sender.as_fd()), 0);
            try_receive(&read_end).unwrap();
        }
        assert_eq!(unread.received(sender.as_fd()), 1);
    }

    #[test]
    fn what_is_lost_with_its_receivers_is_counted_as_before() {
        let (sender, read_end) = queue::ends().unwrap();
        let mut unread = Unread::default();
        for _ in 0..5 {
            try_send(&sender, b"-", &[]).unwrap();
            unread.remember(1, sender.as_fd());
        }
        try_receive(&read_end).unwrap();
        assert_eq!(unread.count(sender.as_fd()), 4);
        // Nobody has counted this receipt.
        try_receive(&read_end).unwrap();
        drop(read_end);
        for _ in 0..2 {
            assert_eq!(unread.count(sender.as_fd()), 4);
            assert_eq!(unread.received(sender.as_fd()), 1);
        }
        // The kernel tells it once.
        assert_eq!(try_send(&sender, b"-", &[]), Err(Errno::ECONNRESET));
        assert_eq!(unread.count(sender.as_fd()), 4);
    }

    #[test]
    fn what_is_received_is_forgotten() {
        let (sender, read_end) = queue::ends().unwrap();
        let mut unread = Unread::default();
        for _ in 0..3 * COLLECTED {
            try_send(&sender, b"-", &[]).unwrap();
            unread.remember(1, sender.as_fd());
            try_receive(&read_end).unwrap();
        }
        assert!(unread.lengths.len() < COLLECTED && unread.weights.len() <= 1);
        assert_eq!(unread.received(sender.as_fd()), 3 * COLLECTED as u64);
    }

    #[test]
    fn each_receipt_is_told_once() {
        let (sender, read_end) = queue::ends().unwrap();
        let receipts = Receipts::new().unwrap();
        receipts.watch(&sender).unwrap();
        let is_told = || !ready(receipts.as_fd(), PollFlags::IN).is_empty();
        receipts.forget();
        for _ in 0..2 {
            try_send(&sender, b"-", &[]).unwrap();
        }
        assert!(!is_told());
        for _ in 0..2 {
            try_receive(&read_end).unwrap();
            assert!(is_told());
            receipts.forget();
            assert!(!is_told());
        }
    }
}
