//! Waiting for descriptors: poll(2), with a point in time instead of a timeout.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
pub(crate) use rustix::event::PollFlags;
use rustix::event::{PollFd, Timespec, poll};

use crate::error::to_nix;

/// How long to wait for memory, which nothing announces.
const MEMORY: Duration = Duration::from_millis(100);

/// What a poll loop watches for somebody.
pub(crate) trait Watched {
    /// Calls `poll` with each descriptor to wait for, and what it is to be ready for; its end is
    /// told in any case.
    fn descriptors<'fd>(&'fd self, poll: &mut dyn FnMut(BorrowedFd<'fd>, PollFlags));

    /// When there is something to do though nothing is ready.
    fn deadline(&self) -> Option<Instant> {
        None
    }
}

/// The earliest of some points in time, if there is any.
pub(crate) fn earliest(deadlines: impl IntoIterator<Item = Option<Instant>>) -> Option<Instant> {
    deadlines.into_iter().flatten().min()
}

/// Descriptors and deadlines to wait for, each under a token that tells whose it is.
pub(crate) struct PollSet<'fd, T> {
    fds: Vec<PollFd<'fd>>,
    tokens: Vec<T>,
    deadlines: Vec<(T, Instant)>,
}

impl<'fd, T: Copy + PartialEq> PollSet<'fd, T> {
    pub fn new() -> Self {
        Self {
            fds: Vec::new(),
            tokens: Vec::new(),
            deadlines: Vec::new(),
        }
    }

    /// Adds one descriptor.
    pub fn add(&mut self, token: T, descriptor: BorrowedFd<'fd>, events: PollFlags) {
        self.fds.push(PollFd::from_borrowed_fd(descriptor, events));
        self.tokens.push(token);
    }

    /// Adds a point in time.
    pub fn until(&mut self, token: T, deadline: Option<Instant>) {
        self.deadlines.extend(deadline.map(|at| (token, at)));
    }

    /// Adds everything that `watched` waits for.
    pub fn watch(&mut self, token: T, watched: &'fd (impl Watched + ?Sized)) {
        self.until(token, watched.deadline());
        watched.descriptors(&mut |descriptor, events| self.add(token, descriptor, events));
    }

    /// Waits until something is ready or due, or a signal comes. Returns the tokens of what is; it
    /// may be nothing.
    ///
    /// # Errors
    /// The errno of poll(2), but never `EINTR` or `ENOMEM`.
    pub fn wait(mut self) -> Result<Vec<T>, Errno> {
        wait(
            &mut self.fds,
            self.deadlines.iter().map(|(_, at)| *at).min(),
        )?;
        let now = Instant::now();
        let fds = self.fds.iter().zip(self.tokens);
        let ready = fds.filter(|(fd, _)| !fd.revents().is_empty());
        let ready = ready.map(|(_, token)| token);
        let due = self.deadlines.iter().filter(|(_, at)| *at <= now);
        Ok(ready.chain(due.map(|(token, _)| *token)).collect())
    }
}

/// Waits until one descriptor is ready or `until` is over; it may also return for nothing. Returns
/// what it is ready for, out of `events` and the ends that poll(2) always tells.
///
/// # Errors
/// The errno of poll(2), but never `EINTR` or `ENOMEM`.
pub(crate) fn wait_for(
    descriptor: BorrowedFd<'_>,
    events: PollFlags,
    until: Option<Instant>,
) -> Result<PollFlags, Errno> {
    let mut fds = [PollFd::from_borrowed_fd(descriptor, events)];
    wait(&mut fds, until)?;
    Ok(fds[0].revents())
}

/// What a descriptor is ready for now.
pub(crate) fn ready(descriptor: BorrowedFd<'_>, events: PollFlags) -> PollFlags {
    wait_for(descriptor, events, Some(Instant::now())).unwrap_or(PollFlags::empty())
}

fn wait(fds: &mut [PollFd<'_>], until: Option<Instant>) -> Result<(), Errno> {
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
            std::thread::sleep(MEMORY);
            Ok(())
        }
        Err(errno) => Err(to_nix(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{PipeReader, Write, pipe};
    use std::os::fd::AsFd;

    struct Pipe(PipeReader, Option<Instant>);

    impl Watched for Pipe {
        fn descriptors<'fd>(&'fd self, poll: &mut dyn FnMut(BorrowedFd<'fd>, PollFlags)) {
            poll(self.0.as_fd(), PollFlags::IN);
        }

        fn deadline(&self) -> Option<Instant> {
            self.1
        }
    }

    #[test]
    fn the_tokens_of_what_is_ready_or_due_come_back() {
        let (now, later) = (Instant::now(), Instant::now() + Duration::from_secs(60));
        let (reader, mut writer) = pipe().unwrap();
        let (quiet, _other) = pipe().unwrap();
        let (idle, _third) = pipe().unwrap();
        writer.write_all(b"x").unwrap();
        let watched = [
            ('r', Pipe(reader, None)),
            ('d', Pipe(quiet, Some(now))),
            ('i', Pipe(idle, Some(later))),
        ];
        let mut set = PollSet::new();
        for (token, pipe) in &watched {
            set.watch(*token, pipe);
        }
        assert_eq!(set.wait().unwrap(), ['r', 'd']);
        assert_eq!(earliest([None, Some(later), Some(now)]), Some(now));
        assert_eq!(earliest([None, None]), None);
    }
}
