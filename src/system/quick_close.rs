//! Closing sockets of which a stranger decides how long their close takes.
//!
//! Descriptors that were sent through a Unix socket and not received are closed with that socket, and
//! the last close(2) of a socket that lingers (`SO_LINGER`) waits. Descriptors in flight are closed
//! without a flush, so a file of a stranger's file system does not block.

use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd};

use crate::system::interrupt::{self, CLOSING, Limit};

/// Runs `action`, in which closing and receiving descriptors of strangers blocks no longer than
/// [`CLOSING`].
pub(crate) fn quickly<T>(action: impl FnOnce() -> T) -> T {
    interrupt::after(CLOSING, action)
}

/// A socket whose close blocks no longer than [`CLOSING`], whatever strangers have sent through it.
#[derive(Debug)]
pub(crate) struct QuickClose<T> {
    socket: T,
    /// Begins when this value is dropped. Fields are dropped in order, so the socket is closed
    /// within the limit.
    limit: Option<Limit>,
    may_block: bool,
}

impl<T> QuickClose<T> {
    pub fn new(socket: T) -> Self {
        Self::if_needed(socket, true)
    }

    /// Without `may_block` the close is a plain one, which saves 2 system calls: for TCP, which
    /// carries no descriptors.
    pub fn if_needed(socket: T, may_block: bool) -> Self {
        Self {
            socket,
            limit: None,
            may_block,
        }
    }

    /// Limits how long receiving without interest in descriptors may block: what is received is
    /// closed at once.
    pub fn limit(&self) -> Option<Limit> {
        self.may_block.then(|| Limit::begin(CLOSING))
    }
}

impl<T> Drop for QuickClose<T> {
    fn drop(&mut self) {
        self.limit = self.limit();
    }
}

impl<T> Deref for QuickClose<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.socket
    }
}

impl<T> DerefMut for QuickClose<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.socket
    }
}

impl<T: AsFd> AsFd for QuickClose<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
