//! How many connections are in service, whoever serves them.
//!
//! With each connection goes the write end of a pipe, its lease. Whoever serves the connection keeps
//! it open as long as it does; when the last copy is closed, however that came, the read end here
//! hangs up. Nobody has to report anything.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use rustix::event::{Timespec, epoll};
use rustix::io::fcntl_dupfd_cloexec;

use crate::accept::client::ClientKey;
use crate::error::{Error, Result, to_nix};

/// How many ends are looked at with one call.
const BATCH: usize = 64;

/// How many descriptors are kept back.
const RESERVE: usize = 4;

/// A lease that nobody has yet.
#[derive(Debug)]
struct Spare {
    read_end: OwnedFd,
    write_end: OwnedFd,
}

/// One that somebody has.
#[derive(Debug)]
struct Held {
    /// It hangs up when the service ends.
    read_end: OwnedFd,
    key: Option<ClientKey>,
}

/// The leases that are out.
#[derive(Debug)]
pub(crate) struct Leases {
    /// Watches all of them at once, at a cost that does not grow with their number.
    epoll: OwnedFd,
    held: BTreeMap<RawFd, Held>,
    by_key: BTreeMap<ClientKey, u32>,
    spare: Option<Spare>,
    /// Given up when descriptors are short, so that those who are to take connections, and so end
    /// the shortage, can come.
    reserve: Vec<OwnedFd>,
}

impl Leases {
    /// None yet.
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
            reserve: Vec::new(),
        })
    }

    /// Makes sure that there is one to grant: to be called before a connection is accepted, which
    /// would have to wait in hand otherwise.
    ///
    /// # Errors
    /// The errno: `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn prepare(&mut self) -> Result<(), Errno> {
        let prepared = self.try_to_prepare();
        if prepared.is_err() {
            self.give_up_reserve();
        }
        prepared
    }

    /// Descriptors are short: leaves some to whoever needs them.
    pub fn give_up_reserve(&mut self) {
        self.reserve.clear();
    }

    fn try_to_prepare(&mut self) -> Result<(), Errno> {
        while self.reserve.len() < RESERVE {
            let copy = fcntl_dupfd_cloexec(&self.epoll, 0).map_err(to_nix)?;
            self.reserve.push(copy);
        }
        if self.spare.is_some() {
            return Ok(());
        }
        let (read_end, write_end) = pipe2(OFlag::O_CLOEXEC)?;
        let number = read_end.as_raw_fd() as u64;
        // Its end is always told, and nothing else is of interest.
        let data = epoll::EventData::new_u64(number);
        epoll::add(&self.epoll, &read_end, data, epoll::EventFlags::empty()).map_err(to_nix)?;
        self.spare = Some(Spare {
            read_end,
            write_end,
        });
        Ok(())
    }

    /// Grants the one that was prepared, to a client of `key`. Returns what goes with the
    /// connection; `None` if none was prepared.
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

    /// Takes back those that were given up.
    pub fn attend(&mut self) {
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

    /// How many connections are in service, those that wait in the queue among them.
    pub fn count(&self) -> usize {
        self.held.len()
    }

    /// How many of them are of `key`.
    pub fn count_of(&self, key: &ClientKey) -> u32 {
        self.by_key.get(key).copied().unwrap_or_default()
    }
}

impl AsFd for Leases {
    /// Readable when [`Leases::attend`] has something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::poll::{PollFlags, ready};

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
        leases.attend();
        assert_eq!((leases.count(), leases.count_of(&key)), (2, 2));
        assert!(ready(leases.as_fd(), PollFlags::IN).is_empty());
        drop(copy);
        assert!(!ready(leases.as_fd(), PollFlags::IN).is_empty());
        leases.attend();
        assert_eq!((leases.count(), leases.count_of(&key)), (1, 1));
        drop(second);
        leases.attend();
        assert_eq!((leases.count(), leases.count_of(&key)), (0, 0));
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
        leases.attend();
        assert_eq!(leases.count(), 0);
    }
}
