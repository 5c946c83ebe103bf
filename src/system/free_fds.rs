//! Free descriptor numbers for the descriptors in a message.
//!
//! The kernel drops a received descriptor if the process has no number for it, so the numbers are
//! checked before a message is received.
#![allow(unsafe_code)] // asks about a number without owning a descriptor

use std::cell::Cell;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use rustix::io::fcntl_dupfd_cloexec;

use crate::error::to_nix;

/// The numbers that were free at the last check. A process that serves one connection after another
/// finds the same numbers free again, and asking about them is cheaper than trying for new ones.
#[derive(Debug)]
pub(crate) struct FreeFds<const WANTED: usize> {
    numbers: Cell<Option<[RawFd; WANTED]>>,
}

impl<const WANTED: usize> Default for FreeFds<WANTED> {
    fn default() -> Self {
        Self {
            numbers: Cell::new(None),
        }
    }
}

impl<const WANTED: usize> FreeFds<WANTED> {
    /// Checks that `WANTED` numbers are free. `any` is any open descriptor.
    ///
    /// # Errors
    /// The errno of fcntl(2): `EMFILE` if too few numbers are free, `ENOMEM`.
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

    /// Forgets the numbers. The kernel had no room for a descriptor, so these numbers are beyond a
    /// limit that has been lowered.
    pub fn forget(&self) {
        self.numbers.set(None);
    }
}

fn is_free(number: RawFd) -> bool {
    // SAFETY: F_GETFD only asks, and fails only for a number that is not open.
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
        // A number that is in use by now is replaced.
        let free = FreeFds::<2>::default();
        free.numbers.set(Some([any.as_raw_fd(); 2]));
        free.check(any.as_fd()).unwrap();
        assert!(!free.numbers.get().unwrap().contains(&any.as_raw_fd()));
    }
}
