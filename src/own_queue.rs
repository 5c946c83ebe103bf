//! A queue of ours, whose read end we keep to hand it out.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use crate::Result;
use crate::ballast::Ballast;
use crate::queue::hand_over;

/// The read end, and what makes sure that it can be handed out.
pub(crate) struct OwnQueue {
    read_end: OwnedFd,
    ballast: Ballast,
}

impl OwnQueue {
    /// Keeps `read_end`.
    ///
    /// # Errors
    /// [`crate::Error::System`] (`EMFILE` and the like).
    pub fn new(read_end: OwnedFd) -> Result<Self> {
        let ballast = Ballast::new()?;
        Ok(Self { read_end, ballast })
    }

    /// Hands the read end to a consumer, also where too much is on its way to send anything else.
    ///
    /// # Errors
    /// The errno of sendmsg(2).
    pub fn hand_over(&mut self, consumer: BorrowedFd<'_>) -> Result<(), Errno> {
        loop {
            match hand_over(consumer, self.read_end.as_fd()) {
                Err(Errno::ETOOMANYREFS) if self.ballast.throw_off() => {}
                other => return other,
            }
        }
    }

    /// Makes sure that it can be handed over later too.
    ///
    /// # Errors
    /// `ETOOMANYREFS` while too much is on its way.
    pub fn fill_ballast(&mut self) -> Result<(), Errno> {
        self.ballast.fill()
    }
}
