//! Counts connections in service, whoever serves them.
//!
//! Each connection carries the write end of a pipe, its lease. A handler keeps the lease open as
//! long as it serves the connection. When the last copy is closed, for whatever reason, the read
//! end here hangs up. Nobody has to report anything.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use rustix::event::{Timespec, epoll};

use crate::accept::client::ClientKey;
use crate::error::{Error, Result, to_nix};

/// How many events to get with 1 call.
const BATCH: usize = 64;

/// A lease that is not granted yet.
#[derive(Debug)]
struct Spare {
    read_end: OwnedFd,
    write_end: OwnedFd,
}

/// A granted lease.
#[derive(Debug)]
struct Held {
    /// Hangs up when the service of the connection ends.
    read_end: OwnedFd,
    key: Option<ClientKey>,
}

#[derive(Debug)]
pub(crate) struct Leases {
    /// Watches all leases, at a cost that does not grow with their number.
    epoll: OwnedFd,
    held: BTreeMap<RawFd, Held>,
    by_key: BTreeMap<ClientKey, u32>,
    spare: Option<Spare>,
}

impl Leases {
    /// Starts without any lease.
    ///
    /// # Errors
    /// [`Error::System`] (`EMFILE` and the like).
    pub fn new() -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|errno| Error::system("watch leases", to_nix(errno)))?;
        Ok(Self {
            epoll,
            held: BTreeMap::new(),
            by_key: BTreeMap::new(),
            spare: None,
        })
    }

    /// Prepares a spare lease. To be called before accept(2), or else the connection might have to
    /// wait in hand.
    ///
    /// # Errors
    /// The errno: `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn prepare(&mut self) -> Result<(), Errno> {
        if self.spare.is_some() {
            return Ok(());
        }
        let (read_end, write_end) = pipe2(OFlag::O_CLOEXEC)?;
        let number = read_end.as_raw_fd() as u64;
        // The kernel always reports a hang-up, and no other event matters.
        let data = epoll::EventData::new_u64(number);
        epoll::add(&self.epoll, &read_end, data, epoll::EventFlags::empty()).map_err(to_nix)?;
        self.spare = Some(Spare {
            read_end,
            write_end,
        });
        Ok(())
    }

    /// Grants the spare lease to a client of `key`. Returns the write end for the connection;
    /// `None` without a spare.
    pub fn grant(&mut self, key: Option<ClientKey>) -> Option<OwnedFd> {
        let spare = self.spare.take()?;
        if let Some(key) = key {
            *self.by_key.entry(key).or_default() += 1;
        }
        let held = Held {
            read_end: spare.read_end,
            key,
        };
        self.held.insert(held.read_end.as_raw_fd(), held);
        Some(spare.write_end)
    }

    /// Takes back the leases whose last copy is closed. Returns whether there were any.
    pub fn attend(&mut self) -> bool {
        let before = self.held.len();
        self.take_back();
        self.held.len() < before
    }

    fn take_back(&mut self) {
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); BATCH];
        let now = Timespec::default();
        loop {
            let ended = match epoll::wait(&self.epoll, &mut events, Some(&now)) {
                Ok((ended, _)) => ended,
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return,
            };
            if ended.is_empty() {
                return;
            }
            for event in ended.iter() {
                let number = event.data.u64() as RawFd;
                let Some(held) = self.held.remove(&number) else {
                    continue;
                };
                if let Some(key) = held.key
                    && let Some(count) = self.by_key.get_mut(&key)
                {
                    *count -= 1;
                    if *count == 0 {
                        self.by_key.remove(&key);
                    }
                }
            }
        }
    }

    /// How many connections are in service. Connections in the queue count, too.
    pub fn count(&self) -> usize {
        self.held.len()
    }

    /// How many connections of `key` are in service.
    pub fn count_of(&self, key: &ClientKey) -> u32 {
        self.by_key.get(key).copied().unwrap_or_default()
    }
}

impl AsFd for Leases {
    /// Readable when [`Leases::attend`] is due.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::poll::{PollFlags, ready, wait_for};
    use std::time::{Duration, Instant};

    /// Waits until the last copies of leases are closed: a child that another test forks has copies
    /// until its exec.
    fn attend_until(leases: &mut Leases, count: usize) {
        let end = Instant::now() + Duration::from_secs(60);
        while leases.count() > count && Instant::now() < end {
            wait_for(leases.as_fd(), PollFlags::IN, Some(end)).unwrap();
            leases.attend();
        }
        assert_eq!(leases.count(), count);
    }

    #[test]
    fn a_lease_is_out_until_its_last_copy_is_closed() {
        let key = ClientKey::User(7);
        let mut leases = Leases::new().unwrap();
        assert!(leases.grant(Some(key)).is_none());
        let mut grant = || {
            leases.prepare().unwrap();
            leases.grant(Some(key)).unwrap()
        };
        let (first, second) = (grant(), grant());
        let copy = first.try_clone().unwrap();
        drop(first);
        assert!(!leases.attend());
        assert_eq!((leases.count(), leases.count_of(&key)), (2, 2));
        assert!(ready(leases.as_fd(), PollFlags::IN).is_empty());
        drop(copy);
        attend_until(&mut leases, 1);
        assert_eq!(leases.count_of(&key), 1);
        drop(second);
        attend_until(&mut leases, 0);
        assert_eq!(leases.count_of(&key), 0);
    }

    #[test]
    fn many_end_at_once() {
        let mut leases = Leases::new().unwrap();
        let held: Vec<_> = (0..3 * BATCH)
            .map(|_| {
                leases.prepare().unwrap();
                leases.grant(None).unwrap()
            })
            .collect();
        assert_eq!(leases.count(), 3 * BATCH);
        drop(held);
        attend_until(&mut leases, 0);
    }
}
