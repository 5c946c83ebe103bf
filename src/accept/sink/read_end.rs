//! The read end of a queue of ours, kept to hand it out.
//!
//! The kernel limits how many descriptors of one user may be in flight (`ETOOMANYREFS`). A queue
//! that is full reaches that limit, and then its own read end, which is a descriptor too, could not
//! be handed to the consumer that would empty it. So some are kept in flight to nobody, and one of
//! these is taken back for the read end.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use sendfd::SendWithFd;

use crate::error::{Error, Result};
use crate::queue::message::VERSION_LINE;
use crate::queue::scm::{try_receive, try_send};

/// Consumers that can be let in before one of them has taken something.
const RESERVED: usize = 4;

/// The read end, and what makes sure that it can be handed out.
pub(super) struct ReadEnd {
    read_end: OwnedFd,
    reserve: InFlightReserve,
}

impl ReadEnd {
    /// Keeps `read_end`.
    ///
    /// # Errors
    /// [`Error::System`] (`EMFILE` and the like).
    pub fn new(read_end: OwnedFd) -> Result<Self> {
        let reserve = InFlightReserve::new()?;
        Ok(Self { read_end, reserve })
    }

    /// Hands the read end to a consumer, also where too much is in flight to send anything else.
    ///
    /// # Errors
    /// The errno of sendmsg(2).
    pub fn hand_over(&mut self, consumer: &UnixStream) -> Result<(), Errno> {
        loop {
            let sent = consumer.send_with_fd(VERSION_LINE, &[self.read_end.as_raw_fd()]);
            let Err(error) = sent else {
                return Ok(());
            };
            let errno = Errno::from_raw(error.raw_os_error().unwrap_or_default());
            if errno != Errno::ETOOMANYREFS || !self.reserve.take_back() {
                return Err(errno);
            }
        }
    }

    /// Makes sure that it can be handed out later too.
    ///
    /// # Errors
    /// `ETOOMANYREFS` while too much is in flight.
    pub fn fill_reserve(&mut self) -> Result<(), Errno> {
        self.reserve.fill()
    }
}

/// Up to four descriptors in flight to nobody.
#[derive(Debug)]
struct InFlightReserve {
    /// A stream, whose messages with descriptors do not run together, and which no limit on the
    /// number of messages concerns.
    pair: (UnixStream, UnixStream),
    count: usize,
}

impl InFlightReserve {
    /// An empty one. It counts for the user that fills it, who may not be the one that makes it.
    fn new() -> Result<Self> {
        let pair = UnixStream::pair().map_err(|error| Error::io("make a queue", error))?;
        Ok(Self { pair, count: 0 })
    }

    fn fill(&mut self) -> Result<(), Errno> {
        while self.count < RESERVED {
            // Any descriptor will do.
            try_send(&self.pair.0, b"-", &[self.pair.0.as_fd()])?;
            self.count += 1;
        }
        Ok(())
    }

    /// Takes one back. False if there is none left.
    fn take_back(&mut self) -> bool {
        if self.count == 0 {
            return false;
        }
        self.count -= 1;
        try_receive(&self.pair.1).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_back_is_filled_up() {
        let mut reserve = InFlightReserve::new().unwrap();
        reserve.fill().unwrap();
        for _ in 0..RESERVED {
            assert!(reserve.take_back());
        }
        assert!(!reserve.take_back());
        reserve.fill().unwrap();
        assert_eq!(reserve.count, RESERVED);
        assert!(reserve.take_back());
    }
}
