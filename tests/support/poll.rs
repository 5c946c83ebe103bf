//! Waiting for descriptors of a test's own.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Waits until one of `fds` is ready or `until` is over; it may also return for nothing.
pub fn wait(fds: &mut [PollFd<'_>], until: Option<Instant>) -> Result<(), Errno> {
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    let timeout = left.map(|left| Timespec::try_from(left).unwrap());
    match poll(fds, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// What a descriptor is ready for now, out of `events` and the ends that poll(2) always tells.
pub fn ready(descriptor: BorrowedFd<'_>, events: PollFlags) -> PollFlags {
    let mut fds = [PollFd::from_borrowed_fd(descriptor, events)];
    wait(&mut fds, Some(Instant::now())).unwrap();
    fds[0].revents()
}
