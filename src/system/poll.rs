//! poll(2) with a deadline instead of a timeout.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
pub(crate) use rustix::event::PollFlags;
use rustix::event::{PollFd, Timespec, poll};

use crate::error::to_nix;

/// The pause after `ENOMEM`: nothing announces free memory.
const MEMORY: Duration = Duration::from_millis(100);

/// A part of a program, as its poll loop sees it.
pub(crate) trait Watched {
    /// Calls `poll` with each descriptor and the events to wait for. Errors and hang-ups are
    /// reported in any case.
    fn descriptors<'fd>(&'fd self, poll: &mut dyn FnMut(BorrowedFd<'fd>, PollFlags));

    /// When there is work even if no descriptor is ready.
    fn deadline(&self) -> Option<Instant> {
        None
    }
}

pub(crate) fn earliest(deadlines: impl IntoIterator<Item = Option<Instant>>) -> Option<Instant> {
    deadlines.into_iter().flatten().min()
}

/// Descriptors and deadlines, each with a token of its owner.
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

    pub fn add(&mut self, token: T, descriptor: BorrowedFd<'fd>, events: PollFlags) {
        self.fds.push(PollFd::from_borrowed_fd(descriptor, events));
        self.tokens.push(token);
    }

    pub fn until(&mut self, token: T, deadline: Option<Instant>) {
        self.deadlines.extend(deadline.map(|at| (token, at)));
    }

    pub fn watch(&mut self, token: T, watched: &'fd (impl Watched + ?Sized)) {
        self.until(token, watched.deadline());
        watched.descriptors(&mut |descriptor, events| self.add(token, descriptor, events));
    }

    /// Waits until a descriptor is ready, a deadline is over, or a signal comes. Returns the tokens
    /// of ready descriptors and past deadlines, possibly none.
    ///
    /// # Errors
    /// The errno of poll(2), but never `EINTR` or `ENOMEM`.
    pub fn wait(mut self) -> Result<Vec<T>, Errno> {
        wait(
            &mut self.fds,
            self.deadlines.iter().map(|(_, at)| *at).min(),
        )?;
        let mut is_ready = self.fds.iter().map(|fd| !fd.revents().is_empty());
        self.tokens.retain(|_| is_ready.next() == Some(true));
        if !self.deadlines.is_empty() {
            let now = Instant::now();
            let due = self.deadlines.iter().filter(|(_, at)| *at <= now);
            self.tokens.extend(due.map(|(token, _)| *token));
        }
        Ok(self.tokens)
    }
}

/// Waits until the descriptor is ready or `until` is over; may return early, without an event.
/// Returns the events, out of `events` and the hang-ups and errors that poll(2) always reports.
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

/// Like [`wait_for`], without waiting.
pub(crate) fn ready(descriptor: BorrowedFd<'_>, events: PollFlags) -> PollFlags {
    wait_for(descriptor, events, Some(Instant::now())).unwrap_or(PollFlags::empty())
}

fn wait(fds: &mut [PollFd<'_>], until: Option<Instant>) -> Result<(), Errno> {
    let timeout = until.map(|until| {
        let left = until.saturating_duration_since(Instant::now());
        // A longer time counts as for ever.
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
