//! A name of ours where consumers fetch the read end of the queue.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use crate::accept::sink::door::{Consumer, Door, Event};
use crate::accept::sink::read_end::ReadEnd;
use crate::accept::sink::refusals::Refusals;
use crate::error::Result;
use crate::queue::name::Name;
use crate::queue::owned_name::{self, OwnedName, PathAccess};
use crate::queue::rendezvous::with_advice;
use crate::queue::trust::Trust;
use crate::system::log::Log;
use crate::system::poll::{PollFlags, Watched};
use crate::system::quick_close::quickly;

pub(super) struct NamedDoor {
    door: Door,
    name: OwnedName,
    trust: Trust,
    refusals: Refusals,
}

impl NamedDoor {
    /// Opens a door at `name`. `access` guards a path (see [`owned_name::bind`]), `trust` an @name.
    ///
    /// # Errors
    /// See [`owned_name::bind`] and [`Door::open`].
    pub fn open(name: &Name, access: PathAccess, trust: Trust) -> Result<Self> {
        let bind = |listener: BorrowedFd<'_>| owned_name::bind(listener, name, access);
        let (door, name) = Door::open(format!("listen on {name}"), bind)?;
        Ok(Self {
            door,
            name,
            trust,
            refusals: Refusals::default(),
        })
    }

    /// How many consumers were refused.
    pub fn refused(&self) -> u64 {
        self.refusals.count()
    }

    /// Hands the read end to every waiting consumer that may have it.
    pub fn attend(&mut self, read_end: &mut ReadEnd, log: &Log) {
        let Self {
            door,
            name,
            trust,
            refusals,
        } = self;
        let react = |event| {
            let Event::Consumer(consumer) = event else {
                return false;
            };
            if let Some(refusal) = refusal(&consumer, name.name(), trust) {
                refusals.add(refusal, log);
            } else {
                // With too many of our descriptors in flight the consumer gets nothing: it sees the
                // end and comes back.
                let _ = read_end.hand_over(&consumer);
            }
            true
        };
        quickly(|| door.attend(react));
    }
}

/// Why the consumer may not have the read end; `None` if it may.
fn refusal(consumer: &Consumer, name: &Name, trust: &Trust) -> Option<String> {
    if !name.is_abstract() {
        return None;
    }
    let checked = trust.check_owner(consumer.as_fd(), name);
    checked.err().map(|error| with_advice(&error))
}

impl Watched for NamedDoor {
    fn descriptors<'fd>(&'fd self, poll: &mut dyn FnMut(BorrowedFd<'fd>, PollFlags)) {
        self.door.descriptors(poll);
    }

    fn deadline(&self) -> Option<Instant> {
        self.door.deadline()
    }
}
