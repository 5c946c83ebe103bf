//! Room for further descriptors: numbers that are free.
//!
//! The kernel drops a descriptor that comes in a message if the process has no number for it, so there
//! must be some before the message is received.
#![allow(unsafe_code)] // asks about a number that nobody here owns

use std::cell::Cell;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use rustix::io::fcntl_dupfd_cloexec;

use crate::error::to_nix;

/// Numbers that were free when last looked at. Who serves one connection after another finds them
/// free again each time, which costs less than to try whether there are any.
#[derive(Debug)]
pub(crate) struct FreeFds<const WANTED: usize> {
    numbers: Cell<Option<[RawFd; WANTED]>>,
}

impl<const WANTED: usize> Default for FreeFds<WANTED> {
    /// None looked at yet.
    fn default() -> Self {
        Self {
            numbers: Cell::new(None),
        }
    }
}

impl<const WANTED: usize> FreeFds<WANTED> {
    /// Looks whether there is room for so many. `any` is an open descriptor, no matter of what.
    ///
    /// # Errors
    /// The errno of fcntl(2): `EMFILE` if there is not enough, `ENOMEM`.
    pub fn check(&self, any: BorrowedFd<'_>) -> Result<(), Errno> {
        let numbers = self.numbers.get();
        if numbers.is_some_and(|numbers| numbers.into_iter().all(is_free)) {
            return Ok(());
        }
        let copy = |_| fcntl_dupfd_cloexec(any, 0).map_err(to_nix);
        let copies: Vec<OwnedFd> = (0..WANTED).map(copy).collect::<Result<_, _>>()?;
        let numbers: Vec<RawFd> = copies.iter().map(AsRawFd::as_raw_fd).collect();
        self.numbers.set(numbers.try_into().ok());
        Ok(())
    }

    /// Forgets the numbers: something had no room, so they are beyond a limit that is lower now.
    pub fn forget(&self) {
        self.numbers.set(None);
    }
}

fn is_free(number: RawFd) -> bool {
    // SAFETY: this only asks, and fails only for a number that is not open.
    unsafe { libc::fcntl(number, libc::F_GETFD) == -1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::pipe;
    use std::os::fd::AsFd;

    #[test]
    fn numbers_are_tried_and_then_remembered() {
        let (any, _other) = pipe().unwrap();
        let free = FreeFds::<2>::default();
        free.check(any.as_fd()).unwrap();
        let [first, second] = free.numbers.get().unwrap();
        assert!(first > 2 && second > 2 && first != second);
    }

    #[test]
    fn a_number_is_free_until_it_is_open() {
        let (any, _other) = pipe().unwrap();
        assert!(!is_free(any.as_raw_fd()));
        assert!(is_free(-1) && is_free(RawFd::MAX));
        // One that was in use by now is replaced.
        let free = FreeFds::<2>::default();
        free.numbers.set(Some([any.as_raw_fd(); 2]));
        free.check(any.as_fd()).unwrap();
        assert!(!free.numbers.get().unwrap().contains(&any.as_raw_fd()));
    }
}
