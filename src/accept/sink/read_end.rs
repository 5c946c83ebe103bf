//! The read end of our own queue, and a reserve that lets us always hand it out.
//!
//! The kernel limits how many descriptors of a user may be in flight (`ETOOMANYREFS`), and a full
//! queue reaches that limit. The read end is a descriptor too, so the consumer that would empty the
//! queue could not get it. The reserve keeps some descriptors in flight to nobody: one of them
//! makes room for the read end.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use sendfd::SendWithFd;

use crate::accept::sink::stuck::is_shortage;
use crate::error::{Error, Result};
use crate::queue::message::VERSION_LINE;
use crate::queue::scm::{try_receive, try_send};
use crate::system::quick_close::QuickClose;

/// How many consumers can get the read end before one of them must take a connection.
const RESERVED: usize = 4;

pub(super) struct ReadEnd {
    /// Connections may be left in it.
    read_end: QuickClose<OwnedFd>,
    reserve: InFlightReserve,
    /// Why consumers do not get it at the moment.
    shortage: Option<Errno>,
}

impl ReadEnd {
    /// The reserve starts empty.
    ///
    /// # Errors
    /// [`Error::System`] (`EMFILE` and the like).
    pub fn new(read_end: OwnedFd) -> Result<Self> {
        let reserve = InFlightReserve::new()?;
        Ok(Self {
            read_end: QuickClose::new(read_end),
            reserve,
            shortage: None,
        })
    }

    /// Hands the read end to a consumer, even if nothing else can be sent (`ETOOMANYREFS`).
    ///
    /// # Errors
    /// The errno of sendmsg(2).
    pub fn hand_over(&mut self, consumer: &UnixStream) -> Result<(), Errno> {
        let handed = self.try_to_hand_over(consumer);
        match handed {
            Ok(()) => self.shortage = None,
            Err(errno) if is_shortage(errno) => self.shortage = Some(errno),
            // The consumer is gone.
            Err(_) => {}
        }
        handed
    }

    fn try_to_hand_over(&mut self, consumer: &UnixStream) -> Result<(), Errno> {
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

    /// Why consumers do not get the read end at the moment, if something is short.
    pub fn shortage(&self) -> Option<Errno> {
        self.shortage
    }

    /// How many descriptors the reserve has in flight.
    pub fn in_flight(&self) -> usize {
        self.reserve.count
    }

    /// Makes sure that the read end can be handed out later, too.
    ///
    /// # Errors
    /// `ETOOMANYREFS` while too many descriptors are in flight.
    pub fn fill_reserve(&mut self) -> Result<(), Errno> {
        self.reserve.fill()
    }
}

/// Up to 4 descriptors in flight to nobody.
#[derive(Debug)]
struct InFlightReserve {
    /// A stream keeps messages with descriptors apart, and has no limit on the number of messages.
    pair: (UnixStream, UnixStream),
    count: usize,
}

impl InFlightReserve {
    /// The descriptors count for the user at the time of [`InFlightReserve::fill`], which may be
    /// another than now.
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

    /// Takes a descriptor back. False if none is left.
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
