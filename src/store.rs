//! What a service manager keeps for us from one start to the next: its descriptor store, see
//! sd_notify(3) and `FileDescriptorStoreMax=` of systemd.service(5).

use std::fmt::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockType};

use crate::descriptor::socket_facts;
use crate::inherited::claim;
use crate::listen_fds::Passed;
use crate::listener::{self, Listener};
use crate::queue::{self, Sender};
use crate::report::Log;
use crate::supervisor::Supervisor;
use crate::wait::{PollFlags, ready};
use crate::{Error, Result, diag};

/// The two ends of the queue.
const WRITE_END: &str = "fdtools-queue-write";
const READ_END: &str = "fdtools-queue-read";
/// A listener. How many there are of its address follows, and what they are known by.
const LISTENER: &str = "fdtools-listener-";
/// The longest name that a manager takes.
const LONGEST: usize = 255;

/// What was kept and has not been taken back yet; and where more can be given to.
#[derive(Debug)]
pub struct Store<'a> {
    kept: Vec<(String, OwnedFd)>,
    supervisor: &'a Supervisor,
    is_wanted: bool,
    log: &'a Log,
}

/// Whether the manager calls something so that we gave it.
pub fn is_ours(name: &str) -> bool {
    name == WRITE_END || name == READ_END || name.starts_with(LISTENER)
}

impl<'a> Store<'a> {
    /// What was passed to this process under our names. More is given to `supervisor` only if that
    /// `is_wanted`.
    ///
    /// # Errors
    /// [`Error::Usage`] if one of these is not open, or more is wanted and there is nobody to give it
    /// to.
    pub fn open(
        passed: &Passed,
        supervisor: &'a Supervisor,
        is_wanted: bool,
        log: &'a Log,
    ) -> Result<Self> {
        if is_wanted && !supervisor.is_managed() {
            let problem = "--store needs a service manager to keep things (NOTIFY_SOCKET)";
            return Err(Error::Usage(problem.into()));
        }
        let ours = passed.named().filter(|(name, _)| is_ours(name));
        let kept = ours.map(|(name, number)| Ok((name.to_owned(), claim(number)?)));
        Ok(Self {
            kept: kept.collect::<Result<_>>()?,
            supervisor,
            is_wanted,
            log,
        })
    }

    /// All that was kept under a name.
    fn take(&mut self, name: &str) -> Vec<OwnedFd> {
        let is_it = |kept: &mut (String, OwnedFd)| self.is_wanted && kept.0 == name;
        self.kept.extract_if(.., is_it).map(|(_, fd)| fd).collect()
    }

    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) {
        if self.is_wanted {
            self.supervisor.keep(name, descriptor, self.log);
        }
    }

    /// The queue that was kept, or else a new one; that then is kept, and nothing else.
    ///
    /// # Errors
    /// [`Error::System`] (`EMFILE` and the like).
    pub fn queue(&mut self) -> Result<(Sender, OwnedFd)> {
        let (write_ends, read_ends) = (self.take(WRITE_END), self.take(READ_END));
        let count = write_ends.len() + read_ends.len();
        let (sender, read_end) = match (find_queue(write_ends, read_ends), count) {
            (Some(kept), 2) => return Ok(kept),
            (Some(kept), _) => kept,
            (None, _) => queue::ends()?,
        };
        if count > 0 {
            self.supervisor.forget(WRITE_END, self.log);
            self.supervisor.forget(READ_END, self.log);
        }
        self.keep(WRITE_END, sender.as_fd());
        self.keep(READ_END, read_end.as_fd());
        Ok((sender, read_end))
    }

    /// The listeners that were kept under each of `keys`: all that there were, or none. What is left
    /// after that is given up, and the manager has let go of it when this returns: an address of it
    /// may be wanted in another way.
    pub fn listeners(&mut self, keys: &[String]) -> Vec<Vec<OwnedFd>> {
        let most = self.kept.len();
        let all_of = |key: &String| {
            for count in 1..=most {
                let name = name_of(key, count);
                let kept = self.take(&name);
                if kept.len() == count {
                    return kept;
                }
                self.kept
                    .extend(kept.into_iter().map(|fd| (name.clone(), fd)));
            }
            Vec::new()
        };
        let kept = keys.iter().map(all_of).collect();
        for (name, _) in &self.kept {
            self.log
                .notice(format_args!("{name} was kept and is not needed any more"));
            self.supervisor.forget(name, self.log);
        }
        let is_forgotten = !self.kept.is_empty() && self.supervisor.wait_until_heard(self.log);
        for (_, descriptor) in self.kept.drain(..) {
            listener::give_up(descriptor, is_forgotten);
        }
        kept
    }

    /// Has the listeners kept that are known by `key`, which are new.
    ///
    /// # Errors
    /// [`Error::Usage`] if their name is too long.
    pub fn keep_listeners(&self, key: &str, listeners: &[Listener]) -> Result<()> {
        let name = name_of(key, listeners.len());
        if self.is_wanted && name.len() > LONGEST {
            // Without the number that is in front of it.
            let address = key.split_once('-').map_or(key, |(_, address)| address);
            let problem = format!("--store: the address {address} is too long");
            return Err(Error::Usage(problem));
        }
        for listener in listeners {
            self.keep(&name, listener.as_fd());
        }
        Ok(())
    }

    /// Listeners that were kept under this key are of no use any more.
    pub fn forget_listeners(&self, key: &str, count: usize) {
        if count > 0 {
            self.supervisor.forget(&name_of(key, count), self.log);
        }
    }

    /// Whether things are kept.
    pub fn is_wanted(&self) -> bool {
        self.is_wanted
    }
}

/// The first two of these that are the ends of one queue which is not at its end.
fn find_queue(write_ends: Vec<OwnedFd>, read_ends: Vec<OwnedFd>) -> Option<(Sender, OwnedFd)> {
    for write_end in write_ends.into_iter().filter(is_end) {
        // One that was closed for a command to finish is at its end.
        let is_open = ready(write_end.as_fd(), PollFlags::empty()).is_empty();
        let is_other_end = |read_end: &&OwnedFd| {
            let found = diag::are_connected(write_end.as_fd(), read_end.as_fd());
            is_end(read_end) && found.unwrap_or(true)
        };
        let other = read_ends.iter().find(is_other_end);
        if let Some(other) = other.filter(|_| is_open)
            && let Ok(read_end) = other.try_clone()
        {
            return Some((Sender::from_socket(write_end).ok()?, read_end));
        }
    }
    None
}

/// Whether it can be an end of a queue of ours.
fn is_end(descriptor: &OwnedFd) -> bool {
    let facts = socket_facts(descriptor.as_fd());
    facts.is_some_and(|facts| {
        facts.family == Some(AddressFamily::Unix)
            && facts.kind == Some(SockType::SeqPacket)
            && facts.connected
    })
}

/// The name of listeners that are known by `key` and are so many. What has a meaning in a list of
/// names is escaped.
fn name_of(key: &str, count: usize) -> String {
    let mut name = format!("{LISTENER}{count}-");
    for byte in key.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'/' | b'-' | b'_' | b'@' => {
                name.push(char::from(byte));
            }
            // Writing to a string does not fail.
            _ => drop(write!(name, "%{byte:02x}")),
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_nothing_that_means_something_in_a_list() {
        let name = name_of("0-[::1]:80+v6only=1", 2);
        assert_eq!(name, "fdtools-listener-2-0-%5b%3a%3a1%5d%3a80%2bv6only%3d1");
        assert!(is_ours(&name) && is_ours(WRITE_END) && is_ours(READ_END));
        assert!(!is_ours("fdtools-echo.socket"));
    }
}
