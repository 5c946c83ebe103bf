//! Waiting for descriptors: poll(2), with a point in time instead of a timeout.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
pub use rustix::event::{PollFd, PollFlags};

use crate::error::to_nix;
use rustix::event::{Timespec, poll};

/// How long to wait for memory, which nothing announces.
const PAUSE: Duration = Duration::from_millis(100);

/// Waits until one of `fds` is ready, `until` is over, or a signal comes; it may also return for
/// nothing.
///
/// # Errors
/// The errno of poll(2), but never `EINTR` or `ENOMEM`.
pub fn wait(fds: &mut [PollFd<'_>], until: Option<Instant>) -> Result<(), Errno> {
    let timeout = until.map(|until| {
        let left = until.saturating_duration_since(Instant::now());
        // What does not fit is as good as for ever.
        Timespec::try_from(left).unwrap_or(Timespec {
            tv_sec: i64::MAX,
            tv_nsec: 0,
        })
    });
    match poll(fds, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(rustix::io::Errno::NOMEM) => {
            std::thread::sleep(PAUSE);
            Ok(())
        }
        Err(errno) => Err(to_nix(errno)),
    }
}

/// What a descriptor is ready for now, out of `events` and the ends that poll(2) always tells.
pub fn ready(descriptor: BorrowedFd<'_>, events: PollFlags) -> PollFlags {
    let mut fds = [PollFd::from_borrowed_fd(descriptor, events)];
    match wait(&mut fds, Some(Instant::now())) {
        Ok(()) => fds[0].revents(),
        Err(_) => PollFlags::empty(),
    }
}
