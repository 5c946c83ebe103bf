//! A name of ours where consumers fetch the read end of the queue.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{Backlog, SockType, listen};
use rustix::net::{SocketFlags, accept_with};

use crate::name::{self, Name, OwnedName};
use crate::own_queue::OwnQueue;
use crate::queue::{self, close_unread};
use crate::report::Log;
use crate::trust::Trust;
use crate::user::User;
use crate::{Error, Result};

/// How long it stays shut when descriptors are short.
const PAUSE: Duration = Duration::from_millis(250);
/// Consumers that are let in before something else has its turn.
const TURN: usize = 16;
/// Refusals that are logged, each once.
const REFUSALS: usize = 64;

/// A name where consumers fetch the read end.
pub(crate) struct NamedDoor {
    listener: OwnedFd,
    name: OwnedName,
    trust: Trust,
    shut_until: Option<Instant>,
    /// What was said of consumers that were refused.
    refused: BTreeSet<String>,
}

impl NamedDoor {
    /// Opens a door at `name`; see [`name::bind`] for `mode`, and `trust` for names without one.
    ///
    /// # Errors
    /// Those of [`name::bind`]; [`Error::System`] (`EMFILE` and the like).
    pub fn open(name: &Name, mode: Option<u32>, trust: Trust) -> Result<Self> {
        let listener = queue::unix_socket_without_waiting(SockType::SeqPacket)?;
        let owned = name::bind(listener.as_fd(), name, mode)?;
        listen(&listener, Backlog::MAXCONN)
            .map_err(|errno| Error::system(format!("listen on {name}"), errno))?;
        Ok(Self {
            listener,
            name: owned,
            trust,
            shut_until: None,
            refused: BTreeSet::new(),
        })
    }

    /// Makes the path, if the name is one, that of another user.
    ///
    /// # Errors
    /// Those of [`OwnedName::give_to`].
    pub fn give_to(&self, user: &User) -> Result<()> {
        self.name.give_to(user.uid(), user.gid())
    }

    /// What is readable when somebody is there; nothing while the door is shut.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        let is_open = self.shut_until.is_none();
        is_open.then(|| self.listener.as_fd())
    }

    /// When it opens again.
    pub fn deadline(&self) -> Option<Instant> {
        self.shut_until
    }

    /// Hands the read end to everybody who is there and may have it.
    pub fn attend(&mut self, own: &mut OwnQueue, log: &Log) {
        let now = Instant::now();
        if self.shut_until.is_some_and(|until| now < until) {
            return;
        }
        self.shut_until = None;
        // A crowd at the door must not keep us from everything else.
        for _ in 0..TURN {
            match accept_with(&self.listener, SocketFlags::CLOEXEC) {
                Ok(consumer) => {
                    self.serve(&consumer, own, log);
                    close_unread(consumer);
                }
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                // Descriptors are short: consumers wait a little.
                Err(_) => {
                    self.shut_until = Some(now + PAUSE);
                    return;
                }
            }
        }
    }

    fn serve(&mut self, consumer: &OwnedFd, own: &mut OwnQueue, log: &Log) {
        let name = self.name.name();
        if name.is_abstract()
            && let Err(error) = self.trust.check_owner(consumer.as_fd(), name)
        {
            // Once for each: who is refused may come again as often as it likes.
            let refusal = error.to_string();
            if self.refused.len() < REFUSALS && self.refused.insert(refusal.clone()) {
                log.error(format_args!("a consumer was refused: {refusal}"));
            }
            return;
        }
        // One that gets nothing, since too much of ours is on its way, sees the end and comes
        // again.
        let _ = own.hand_over(consumer.as_fd());
    }
}
