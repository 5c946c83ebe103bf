//! The descriptor store of a service manager, which keeps descriptors from one start to the next:
//! sd_notify(3), `FileDescriptorStoreMax=` of systemd.service(5). It holds descriptors by name;
//! [`restore`](crate::accept::service::restore) makes a queue and listeners of them.

use std::os::fd::{BorrowedFd, OwnedFd};

use crate::accept::service::listen_fds::ListenFds;
use crate::accept::service::notify::Supervisor;
use crate::error::Result;
use crate::system::inherited::claim;
use crate::system::log::Log;

pub(super) const WRITE_END: &str = "fdtools-queue-write";
pub(super) const READ_END: &str = "fdtools-queue-read";
/// The prefix of a listener's name. The number of listeners on the address and the key follow.
pub(super) const LISTENER: &str = "fdtools-listener-";

/// Kept descriptors that are not taken back yet, and the manager for further descriptors.
#[derive(Debug)]
pub(crate) struct FdStore<'a> {
    kept: Vec<(String, OwnedFd)>,
    supervisor: &'a Supervisor,
    is_wanted: bool,
    log: &'a Log,
}

/// Whether a descriptor of this name is from us.
pub(crate) fn is_ours(name: &str) -> bool {
    name == WRITE_END || name == READ_END || name.starts_with(LISTENER)
}

impl<'a> FdStore<'a> {
    /// Claims the descriptors that were passed under our names. Unless the store `is_wanted`, none
    /// is taken back and none is given to `supervisor`.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] if a descriptor is not open.
    pub fn open(
        passed: &ListenFds,
        supervisor: &'a Supervisor,
        is_wanted: bool,
        log: &'a Log,
    ) -> Result<Self> {
        let ours = passed.named().filter(|(name, _)| is_ours(name));
        let kept = ours.map(|(name, number)| Ok((name.to_owned(), claim(number)?)));
        Ok(Self {
            kept: kept.collect::<Result<_>>()?,
            supervisor,
            is_wanted,
            log,
        })
    }

    pub fn is_wanted(&self) -> bool {
        self.is_wanted
    }

    /// How many descriptors are left, under any name.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// How many descriptors can be taken back under a name.
    pub fn count(&self, name: &str) -> usize {
        let same = self.kept.iter().filter(|(kept, _)| kept == name);
        if self.is_wanted { same.count() } else { 0 }
    }

    /// Takes back all descriptors of a name.
    pub fn take(&mut self, name: &str) -> Vec<OwnedFd> {
        let is_it = |kept: &mut (String, OwnedFd)| self.is_wanted && kept.0 == name;
        self.kept.extract_if(.., is_it).map(|(_, fd)| fd).collect()
    }

    pub fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) {
        if self.is_wanted {
            self.supervisor.keep(name, descriptor, self.log);
        }
    }

    /// Tells the manager to drop the descriptors of a name.
    pub fn forget(&self, name: &str) {
        self.supervisor.forget(name, self.log);
    }

    /// Returns the descriptors that are left, and whether the manager's copies are surely gone.
    pub fn give_up_rest(&mut self) -> (Vec<OwnedFd>, bool) {
        for (name, _) in &self.kept {
            self.log
                .notice(format_args!("{name} was kept and is not needed any more"));
            self.forget(name);
        }
        let is_forgotten = !self.kept.is_empty() && self.supervisor.wait_until_heard(self.log);
        let rest = self.kept.drain(..).map(|(_, descriptor)| descriptor);
        (rest.collect(), is_forgotten)
    }
}
