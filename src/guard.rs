//! Who gets from a listener to the queue: access rules, limits and the rate, all together.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use nix::errno::Errno;

use crate::access::Access;
use crate::client::{Client, SourcePrefix};
use crate::counters::{Counters, Refusal};
use crate::farewell::{Farewells, reset};
use crate::lease::Leases;
use crate::rate::Rate;
use crate::{Error, Result, peer_groups};

/// The most bytes that a client is told that is turned away: they fit into any socket's buffer.
const MOST_WORDS: u64 = 4096;

/// What becomes of clients that are too many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// They are left in the backlog.
    Wait,
    /// Their connection is reset.
    Close,
    /// They are told this first.
    Say(Vec<u8>),
}

impl WhenFull {
    /// `wait`, `close`, or a file with what to say.
    ///
    /// # Errors
    /// [`Error::System`] if the file cannot be read; [`Error::Usage`] if it is too long.
    pub fn parse(text: &OsStr) -> Result<Self> {
        match text.to_str() {
            Some("wait") => return Ok(WhenFull::Wait),
            Some("close") => return Ok(WhenFull::Close),
            _ => {}
        }
        let shown = Path::new(text).display();
        let failed = |error| Error::io(format!("read {shown}"), error);
        let file = File::open(text).map_err(failed)?;
        let mut words = Vec::new();
        file.take(MOST_WORDS + 1)
            .read_to_end(&mut words)
            .map_err(failed)?;
        match words.len() as u64 > MOST_WORDS {
            true => Err(Error::Usage(format!(
                "{shown} has more than {MOST_WORDS} bytes"
            ))),
            false => Ok(WhenFull::Say(words)),
        }
    }
}

/// What is let in.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who may connect.
    pub access: Access,
    /// How many in service at once.
    pub max: Option<usize>,
    /// How many of one client.
    pub max_per_source: Option<u32>,
    /// What counts as one client.
    pub source_prefix: SourcePrefix,
    /// How many in a time.
    pub rate: Option<Rate>,
    /// What becomes of those that are too many; `None` for what each limit does by default.
    pub when_full: Option<WhenFull>,
}

/// What goes with a connection that was let in.
#[derive(Debug)]
pub struct Entry {
    /// Tells when it is not in service any more, where that is counted.
    pub lease: Option<OwnedFd>,
    /// How many connections its TCP client has, this one among them, where that is counted.
    pub number: Option<u32>,
}

/// The guard at the door.
#[derive(Debug)]
pub struct Guard {
    options: Options,
    /// Only where something is limited by what is in service.
    leases: Option<Leases>,
    farewells: Farewells,
    /// What it has done so far.
    pub counters: Counters,
}

impl Guard {
    /// One that goes by `options`.
    ///
    /// # Errors
    /// [`Error::Usage`] if clients are to wait where they cannot; [`Error::System`] (`EMFILE`
    /// and the like).
    pub fn new(options: Options) -> Result<Self> {
        if options.when_full == Some(WhenFull::Wait) && options.max.is_none() {
            return Err(Error::Usage(
                "--when-full wait needs --max: one client cannot be left in the backlog without \
                 those behind it"
                    .into(),
            ));
        }
        let counts = options.max.is_some() || options.max_per_source.is_some();
        Ok(Self {
            leases: counts.then(Leases::new).transpose()?,
            options,
            farewells: Farewells::default(),
            counters: Counters::default(),
        })
    }

    /// Makes sure that the next connection can be let in.
    ///
    /// # Errors
    /// The errno: `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn prepare(&mut self) -> Result<(), Errno> {
        self.leases.as_mut().map_or(Ok(()), Leases::prepare)
    }

    /// Descriptors are short: leaves some to whoever needs them.
    pub fn is_short(&mut self) {
        if let Some(leases) = &mut self.leases {
            leases.give_up_reserve();
        }
    }

    /// Whether it counts what is in service, for which it has a descriptor open each.
    pub fn counts(&self) -> bool {
        self.leases.is_some()
    }

    /// Whether everybody waits until a service ends.
    pub fn is_full(&self) -> bool {
        let waits = matches!(self.options.when_full, None | Some(WhenFull::Wait));
        waits && self.has_max()
    }

    fn has_max(&self) -> bool {
        let count = self.leases.as_ref().map(Leases::count);
        count
            .zip(self.options.max)
            .is_some_and(|(count, max)| count >= max)
    }

    /// Until when everybody waits, because of the rate.
    pub fn shut_until(&self, now: Instant) -> Option<Instant> {
        let rate = self.options.rate.as_ref();
        rate.and_then(|rate| rate.full_until(now))
    }

    /// One was accepted.
    pub fn count(&mut self) {
        self.counters.accepted += 1;
        if let Some(rate) = &mut self.options.rate {
            let now = Instant::now();
            rate.count(now);
            self.counters.by_rate += u64::from(rate.full_until(now).is_some());
        }
    }

    /// Decides whether one is let in.
    ///
    /// # Errors
    /// Why not.
    pub fn judge(&mut self, connection: BorrowedFd<'_>, client: &Client) -> Result<Entry, Refusal> {
        if !self.is_allowed(connection, client) {
            return Err(Refusal::Rule);
        }
        let is_full = self.has_max();
        let Some(leases) = &mut self.leases else {
            return Ok(Entry {
                lease: None,
                number: None,
            });
        };
        let origin = self.options.source_prefix.origin(client);
        let number = origin.map_or(0, |origin| leases.count_of(&origin));
        let most = self.options.max_per_source;
        if is_full || origin.is_some() && most.is_some_and(|most| number >= most) {
            return Err(Refusal::Limit);
        }
        Ok(Entry {
            lease: leases.grant(origin),
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

    /// Turns a connection away.
    pub fn refuse(&mut self, connection: OwnedFd, why: Refusal) {
        self.counters.refused(why);
        match (&self.options.when_full, why) {
            (Some(WhenFull::Say(words)), Refusal::Limit) => self.farewells.say(connection, words),
            (_, Refusal::Rule | Refusal::Limit) => reset(connection),
            // Its proxy is an honest one, if a slow one.
            _ => drop(connection),
        }
    }

    /// Does what is due.
    pub fn attend(&mut self) {
        if let Some(leases) = &mut self.leases {
            leases.attend();
        }
        self.farewells.attend();
    }

    /// Reads the file of rules again.
    ///
    /// # Errors
    /// Those of [`Access::reload`]; then the old rules stay.
    pub fn reload(&mut self) -> Result<()> {
        self.options.access.reload()
    }

    /// What is readable when [`Guard::attend`] has something to do.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let leases = self.leases.iter().map(Leases::as_fd);
        leases.chain(self.farewells.descriptors())
    }

    /// When it has, though nothing is readable, or the rate lets the next one in.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let deadlines = [self.farewells.deadline(), self.shut_until(now)];
        deadlines.into_iter().flatten().min()
    }
}
