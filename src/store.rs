//! What a service manager keeps for us from one start to the next: its descriptor store, see
//! sd_notify(3) and `FileDescriptorStoreMax=` of systemd.service(5).

use std::fmt::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::address::Address;
use crate::inherited::claim;
use crate::listen_fds::Passed;
use crate::listener::Listener;
use crate::queue::{self, Sender};
use crate::report::Log;
use crate::supervisor::Supervisor;
use crate::wait::{PollFlags, ready};
use crate::{Error, Result};

/// How all our names begin.
const OURS: &str = "fdtools-";
/// The two ends of the queue.
const WRITE_END: &str = "fdtools-queue-write";
const READ_END: &str = "fdtools-queue-read";
/// A listener; its address follows.
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
    name.starts_with(OURS)
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

    fn take(&mut self, name: &str) -> Option<OwnedFd> {
        let place = self.kept.iter().position(|(kept, _)| kept == name)?;
        self.is_wanted.then(|| self.kept.remove(place).1)
    }

    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) {
        if self.is_wanted {
            self.supervisor.keep(name, descriptor, self.log);
        }
    }

    /// The queue that was kept, or else a new one, which then is kept.
    ///
    /// # Errors
    /// [`Error::System`] (`EMFILE` and the like).
    pub fn queue(&mut self) -> Result<(Sender, OwnedFd)> {
        let kept = (self.take(WRITE_END), self.take(READ_END));
        let is_anything = kept.0.is_some() || kept.1.is_some();
        if let (Some(write_end), Some(read_end)) = kept
            && let Ok(sender) = Sender::from_socket(write_end)
            // One that was closed for a command to finish is at its end.
            && ready(sender.as_fd(), PollFlags::empty()).is_empty()
        {
            return Ok((sender, read_end));
        }
        if is_anything {
            self.supervisor.forget(WRITE_END, self.log);
            self.supervisor.forget(READ_END, self.log);
        }
        let (sender, read_end) = queue::ends()?;
        self.keep(WRITE_END, sender.as_fd());
        self.keep(READ_END, read_end.as_fd());
        Ok((sender, read_end))
    }

    /// The listeners that were kept of each of `addresses`: all that it had, or none. What is left
    /// after that is given up, and the manager has let go of it when this returns: an address of it
    /// may be wanted in another way.
    pub fn listeners(&mut self, addresses: &[Address]) -> Vec<Vec<OwnedFd>> {
        let names: Vec<_> = (0..addresses.len())
            .map(|index| name_of(addresses, index))
            .collect();
        let kept = names
            .iter()
            .map(|name| std::iter::from_fn(|| self.take(name)).collect());
        let kept = kept.collect();
        for (name, _) in self.kept.drain(..) {
            self.log
                .notice(format_args!("{name} was kept and is not needed any more"));
            self.supervisor.forget(&name, self.log);
            self.supervisor.wait_until_heard(self.log);
        }
        kept
    }

    /// Has the listeners of the address with this index kept, which are new and all that it has.
    ///
    /// # Errors
    /// [`Error::Usage`] if their address makes too long a name.
    pub fn keep_listeners(
        &self,
        addresses: &[Address],
        index: usize,
        listeners: &[Listener],
    ) -> Result<()> {
        let name = name_of(addresses, index);
        if self.is_wanted && name.len() > LONGEST {
            let address = &addresses[index];
            let problem = format!("--store: the address {address} is too long");
            return Err(Error::Usage(problem));
        }
        for listener in listeners {
            self.keep(&name, listener.as_fd());
        }
        Ok(())
    }

    /// Whether things are kept.
    pub fn is_wanted(&self) -> bool {
        self.is_wanted
    }
}

/// The name of the listeners of the address with this index. What has a meaning in a list of names
/// is escaped; of the same address several times each is another one.
fn name_of(addresses: &[Address], index: usize) -> String {
    let address = addresses[index].to_string();
    let before = addresses[..index].iter();
    let count = before.filter(|other| other.to_string() == address).count();
    let mut name = format!("{LISTENER}{count}-");
    for byte in address.bytes() {
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
    use std::ffi::OsStr;

    #[test]
    fn a_listener_is_known_by_its_address() {
        let addresses = ["[::1]:80", "./a b", "[::1]:80"];
        let addresses = addresses.map(|text| Address::parse(OsStr::new(text)).unwrap());
        let names: Vec<_> = (0..3).map(|index| name_of(&addresses, index)).collect();
        assert_eq!(
            names,
            [
                "fdtools-listener-0-%5b%3a%3a1%5d%3a80",
                "fdtools-listener-0-./a%20b",
                "fdtools-listener-1-%5b%3a%3a1%5d%3a80"
            ]
        );
    }
}
