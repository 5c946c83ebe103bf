//! Descriptors that are kept on their way to nobody, to be thrown off when something must pass.
//!
//! The kernel limits how many descriptors of one user may be on their way (`ETOOMANYREFS`). A
//! queue that is full reaches that limit, and then its own read end, which is a descriptor too,
//! could not be handed to the consumer that would empty it. With ballast it can: one of these is
//! taken back for it.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nix::errno::Errno;

use crate::queue;
use crate::{Error, Result};

/// Consumers that can be let in before one of them has taken something.
const UNITS: usize = 4;

/// Up to four descriptors on their way.
#[derive(Debug)]
pub(crate) struct Ballast {
    /// A stream, whose messages with descriptors do not run together, and which no limit on the
    /// number of messages concerns.
    way: (UnixStream, UnixStream),
    aboard: usize,
}

impl Ballast {
    /// Nothing yet. It counts for the user who fills it, which may not be the one that makes it.
    ///
    /// # Errors
    /// [`Error::System`] (`EMFILE` and the like).
    pub fn new() -> Result<Self> {
        let way = UnixStream::pair().map_err(|error| Error::io("make a queue", error))?;
        Ok(Self { way, aboard: 0 })
    }

    /// Fills up what was thrown off.
    ///
    /// # Errors
    /// `ETOOMANYREFS` while that is too much.
    pub fn fill(&mut self) -> Result<(), Errno> {
        while self.aboard < UNITS {
            // Any descriptor will do.
            queue::send(&self.way.0, b"-", &[self.way.0.as_fd()], false)?;
            self.aboard += 1;
        }
        Ok(())
    }

    /// Throws one off. False if there is none left.
    pub fn throw_off(&mut self) -> bool {
        if self.aboard == 0 {
            return false;
        }
        self.aboard -= 1;
        queue::receive(&self.way.1, false).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_thrown_off_is_filled_up() {
        let mut ballast = Ballast::new().unwrap();
        ballast.fill().unwrap();
        for _ in 0..UNITS {
            assert!(ballast.throw_off());
        }
        assert!(!ballast.throw_off());
        ballast.fill().unwrap();
        assert_eq!(ballast.aboard, UNITS);
        assert!(ballast.throw_off());
    }
}
