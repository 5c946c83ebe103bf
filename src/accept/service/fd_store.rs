//! The descriptor store of a service manager, which keeps descriptors for us from one start to the
//! next: see sd_notify(3) and `FileDescriptorStoreMax=` of systemd.service(5). It knows names and
//! descriptors; [`restore`](crate::accept::service::restore) makes a queue and listeners of them.

use std::os::fd::{BorrowedFd, OwnedFd};

use crate::accept::service::listen_fds::ListenFds;
use crate::accept::service::notify::Supervisor;
use crate::error::Result;
use crate::system::inherited::claim;
use crate::system::log::Log;

/// The two ends of the queue.
pub(super) const WRITE_END: &str = "fdtools-queue-write";
pub(super) const READ_END: &str = "fdtools-queue-read";
/// A listener. How many there are of its address follows, and what they are known by.
pub(super) const LISTENER: &str = "fdtools-listener-";

/// What was kept and has not been taken back yet; and where more can be given to.
#[derive(Debug)]
pub(crate) struct FdStore<'a> {
    kept: Vec<(String, OwnedFd)>,
    supervisor: &'a Supervisor,
    is_wanted: bool,
    log: &'a Log,
}

/// Whether the manager calls something so that we gave it.
pub(crate) fn is_ours(name: &str) -> bool {
    name == WRITE_END || name == READ_END || name.starts_with(LISTENER)
}

impl<'a> FdStore<'a> {
    /// What was passed to this process under our names. It is taken back, and more is given to
    /// `supervisor`, only if the store `is_wanted`.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] if one of these is not open.
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

    /// How many were kept, under whatever names.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// How many can be taken back under a name.
    pub fn count(&self, name: &str) -> usize {
        let same = self.kept.iter().filter(|(kept, _)| kept == name);
        if self.is_wanted { same.count() } else { 0 }
    }

    /// Takes back all that was kept under a name.
    pub fn take(&mut self, name: &str) -> Vec<OwnedFd> {
        let is_it = |kept: &mut (String, OwnedFd)| self.is_wanted && kept.0 == name;
        self.kept.extract_if(.., is_it).map(|(_, fd)| fd).collect()
    }

    /// Has a descriptor kept.
    pub fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) {
        if self.is_wanted {
            self.supervisor.keep(name, descriptor, self.log);
        }
    }

    /// What has that name need not be kept.
    pub fn forget(&self, name: &str) {
        self.supervisor.forget(name, self.log);
    }

    /// What nobody has taken back. The manager need not keep it; whether it is known to have let go
    /// of it when this returns.
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
