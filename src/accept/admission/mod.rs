//! Decides which connections get from a listener to the queue: access rules, limits and the rate.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::accept::admission::excess::Excess;
use crate::accept::admission::lease::Leases;
use crate::accept::admission::lingering_close::{LingeringCloses, reset};
use crate::accept::admission::rate::Rate;
use crate::accept::admission::rules::Access;
use crate::accept::client::{Client, ClientKey, SourcePrefix};
use crate::accept::counters::{Counters, Refusal};
use crate::error::{Error, Result};
use crate::system::inherited;
use crate::system::peer_groups;
use crate::system::poll::{PollFlags, Watched};
use crate::system::quick_close::QuickClose;
use crate::system::read_file::{PATIENCE, read};

mod excess;
mod lease;
mod lingering_close;
pub(crate) mod rate;
pub(crate) mod rules;

/// The longest last words, in bytes. They fit into any socket's buffer.
const MOST_WORDS: usize = 4096;

/// What becomes of clients over a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WhenFull {
    /// Clients stay in the backlog.
    Wait,
    /// The connection is reset.
    Close,
    /// The client gets these words first.
    Say(Vec<u8>),
}

impl WhenFull {
    /// Parses `wait`, `close`, or the path of a file with the words.
    ///
    /// # Errors
    /// [`Error::System`] if the file cannot be read; [`Error::File`] if the file is too long.
    pub fn parse(text: &OsStr) -> Result<Self> {
        match text.to_str() {
            Some("wait") => return Ok(WhenFull::Wait),
            Some("close") => return Ok(WhenFull::Close),
            _ => {}
        }
        let shown = Path::new(text).display();
        let failed = |error| Error::io(format!("read {shown}"), error);
        inherited::check_path(Path::new(text))?;
        let words = read(Path::new(text), MOST_WORDS + 1, PATIENCE).map_err(failed)?;
        if words.len() > MOST_WORDS {
            let problem = format!("{shown} has more than {MOST_WORDS} bytes");
            return Err(Error::File(problem));
        }
        Ok(WhenFull::Say(words))
    }
}

#[derive(Clone, Debug)]
pub(crate) struct AdmissionOptions {
    pub access: Access,
    /// The most connections in service at once.
    pub max: Option<usize>,
    /// The most connections of a client in service at once.
    pub max_per_source: Option<u32>,
    /// Which addresses count as the same client.
    pub source_prefix: SourcePrefix,
    pub rate: Option<Rate>,
    /// By default clients over `max` wait, and clients over `max_per_source` are reset.
    pub when_full: Option<WhenFull>,
}

/// What goes with an admitted connection.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Tells when the service of the connection ends, if connections are counted.
    pub lease: Option<OwnedFd>,
    /// How many connections the TCP client has, this one included, if connections are counted.
    pub number: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct Admission {
    options: AdmissionOptions,
    /// Only with a limit on connections in service.
    leases: Option<Leases>,
    excess: Excess,
    lingering: LingeringCloses,
    pub counters: Counters,
}

impl Admission {
    /// # Errors
    /// [`Error::System`] (`EMFILE` and the like).
    pub fn new(options: AdmissionOptions) -> Result<Self> {
        let counts = options.max.is_some() || options.max_per_source.is_some();
        Ok(Self {
            leases: counts.then(Leases::new).transpose()?,
            options,
            excess: Excess::default(),
            lingering: LingeringCloses::default(),
            counters: Counters::default(),
        })
    }

    /// Makes sure that the next connection can be admitted.
    ///
    /// # Errors
    /// The errno: `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn prepare(&mut self) -> Result<(), Errno> {
        self.leases.as_mut().map_or(Ok(()), Leases::prepare)
    }

    /// Whether all clients wait until the service of a connection ends.
    pub fn is_full(&self) -> bool {
        let waits = matches!(self.options.when_full, None | Some(WhenFull::Wait));
        waits && self.has_max()
    }

    /// The most connections in service at once, if there is a limit.
    pub fn max(&self) -> Option<usize> {
        self.options.max
    }

    /// Whether so many are in service.
    pub fn has_max(&self) -> bool {
        let count = self.leases.as_ref().map(Leases::count);
        count
            .zip(self.options.max)
            .is_some_and(|(count, max)| count >= max)
    }

    /// Until when all clients wait because of the rate.
    pub fn shut_until(&self, now: Instant) -> Option<Instant> {
        let rate = self.options.rate.as_ref();
        rate.and_then(|rate| rate.full_until(now))
    }

    /// Decides whether to admit a connection: by the rules, then by the limits. A client that is
    /// refused takes nothing from the rate.
    ///
    /// # Errors
    /// The reason for a refusal.
    pub fn judge(&mut self, connection: BorrowedFd<'_>, client: &Client) -> Result<Entry, Refusal> {
        if !self.is_allowed(connection, client) {
            return Err(Refusal::Rule);
        }
        let entry = self.enter(client)?;
        if let Some(rate) = &mut self.options.rate {
            let now = Instant::now();
            rate.count(now);
            self.counters.by_rate += u64::from(rate.full_until(now).is_some());
        }
        Ok(entry)
    }

    fn enter(&mut self, client: &Client) -> Result<Entry, Refusal> {
        let is_full = self.has_max();
        let Some(leases) = &mut self.leases else {
            return Ok(Entry {
                lease: None,
                number: None,
            });
        };
        let key = self.options.source_prefix.key(client);
        let number = key.map_or(0, |key| leases.count_of(&key));
        let most = self.options.max_per_source;
        if is_full {
            return Err(Refusal::Limit);
        }
        if let Some((key, most)) = key.zip(most)
            && number >= most
        {
            return Err(Refusal::OwnLimit(key, number));
        }
        Ok(Entry {
            lease: leases.grant(key),
            number: matches!(client, Client::Address(_)).then_some(number + 1),
        })
    }

    fn is_allowed(&self, connection: BorrowedFd<'_>, client: &Client) -> bool {
        let access = &self.options.access;
        match client {
            Client::Address(address) => access.allows(address.ip()),
            Client::User { uid, gid, .. } if access.asks_users() => {
                let mut gids = peer_groups::of(connection);
                gids.push(*gid);
                access.allows_user(*uid, &gids)
            }
            Client::User { .. } => true,
            Client::Unknown => !access.asks_users(),
        }
    }

    pub fn refuse(&mut self, connection: QuickClose<OwnedFd>, why: Refusal) {
        self.counters.refused(why);
        match (&self.options.when_full, why) {
            (Some(WhenFull::Say(words)), Refusal::Limit | Refusal::OwnLimit(..)) => {
                self.lingering.say(connection, words);
            }
            (_, Refusal::Rule | Refusal::Limit | Refusal::OwnLimit(..)) => reset(connection),
            // The proxy is honest, only slow: a plain close will do.
            _ => drop(connection),
        }
    }

    /// Counts the refusal of a client by its own limit. Returns whether the client is to be named, once
    /// for all its refusals.
    pub fn is_first_excess(&mut self, why: Refusal) -> bool {
        match why {
            Refusal::OwnLimit(key, _) => self.excess.refuse(key, Instant::now()),
            _ => false,
        }
    }

    /// The named clients that have no connection left, and how often each was refused besides.
    pub fn ended_excess(&mut self) -> Vec<(ClientKey, u64)> {
        let leases = self.leases.as_ref();
        let count = |key: &ClientKey| leases.map_or(0, |leases| leases.count_of(key));
        self.excess.end(|key| count(key) > 0)
    }

    /// The named clients, and how often each was refused since it was last told.
    pub fn excess_so_far(&mut self) -> Vec<(ClientKey, u64)> {
        self.excess.so_far()
    }

    /// Takes back leases, and goes on with lingering closes. Returns whether any has ended.
    pub fn attend(&mut self) -> bool {
        let has_ended = self.leases.as_mut().is_some_and(Leases::attend);
        self.lingering.attend() || has_ended
    }

    /// Reads the file of rules again.
    ///
    /// # Errors
    /// See [`Access::reload`]. After an error the old rules stay.
    pub fn reload(&mut self) -> Result<()> {
        self.options.access.reload(Duration::ZERO)
    }
}

impl Watched for Admission {
    fn descriptors<'fd>(&'fd self, poll: &mut dyn FnMut(BorrowedFd<'fd>, PollFlags)) {
        if let Some(leases) = &self.leases {
            poll(leases.as_fd(), PollFlags::IN);
        }
        self.lingering.descriptors(poll);
    }

    fn deadline(&self) -> Option<Instant> {
        self.lingering.deadline()
    }
}
