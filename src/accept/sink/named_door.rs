//! A name of ours where consumers fetch the read end of the queue.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use crate::accept::sink::door::{Door, Event};
use crate::accept::sink::read_end::ReadEnd;
use crate::error::Result;
use crate::queue::name::Name;
use crate::queue::owned_name::{self, OwnedName, PathAccess};
use crate::queue::rendezvous::with_advice;
use crate::queue::scm::close_unread;
use crate::queue::trust::Trust;
use crate::system::log::Log;
use crate::system::poll::{PollFlags, Watched};

/// How many different refusals are logged, each once.
const REFUSALS: usize = 64;

pub(super) struct NamedDoor {
    door: Door,
    name: OwnedName,
    trust: Trust,
    /// The refusals that were logged.
    refused: BTreeSet<String>,
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
            refused: BTreeSet::new(),
        })
    }

    /// Hands the read end to every waiting consumer that may have it.
    pub fn attend(&mut self, read_end: &mut ReadEnd, log: &Log) {
        let Self {
            door,
            name,
            trust,
            refused,
        } = self;
        door.attend(|event| {
            let Event::Consumer(consumer) = event else {
                return false;
            };
            if let Some(refusal) = refusal(&consumer, name.name(), trust) {
                // Each refusal once: a refused consumer may come back without end.
                if refused.len() < REFUSALS && refused.insert(refusal.clone()) {
                    log.error(format_args!("a consumer was refused: {refusal}"));
                }
            } else {
                // With too many of our descriptors in flight the consumer gets nothing: it sees the
                // end and comes back.
                let _ = read_end.hand_over(&consumer);
            }
            close_unread(consumer.into());
            true
        });
    }
}

/// Why the consumer may not have the read end; `None` if it may.
fn refusal(consumer: &UnixStream, name: &Name, trust: &Trust) -> Option<String> {
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
