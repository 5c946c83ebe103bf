//! Connections that slots gave back, because each of several slots had one and none could start a
//! handler. They wait in a queue of the pool's own for the next slot with room.

use std::os::fd::AsFd;

use crate::error::{Error, Result};
use crate::queue::connection::Connection;
use crate::queue::{self, Received, Receiver, Sender};
use crate::serve::scoreboard::Scoreboard;
use crate::system::poll::{PollFlags, ready};

/// The queue, which the pool shares with its slots.
pub(super) struct Returned {
    sender: Sender,
    receiver: Receiver,
    scoreboard: Scoreboard,
}

impl Returned {
    /// # Errors
    /// [`Error::System`] (`EMFILE` and the like).
    pub fn new(scoreboard: Scoreboard) -> Result<Self> {
        let (sender, receiver) = queue::pair()?;
        Ok(Self {
            sender,
            receiver,
            scoreboard,
        })
    }

    /// Gives `connection` back; the caller then closes its copy.
    ///
    /// # Errors
    /// [`Error::System`]: `EAGAIN` if there is no room, `ETOOMANYREFS`.
    pub fn give(&self, connection: &Connection) -> Result<()> {
        self.sender
            .pass_on(connection)
            .map_err(|errno| Error::system("give a connection back", errno))?;
        self.scoreboard.set_returned(true);
        Ok(())
    }

    /// The connection that waits longest. Costs no system call if none was given back.
    ///
    /// # Errors
    /// [`Error::System`]: `EMFILE` if there are no numbers for a connection and its lease.
    pub fn take(&self) -> Result<Option<Connection>> {
        while self.scoreboard.may_be_returned() {
            // Before the look, so that a connection which comes after the look is not overlooked.
            self.scoreboard.set_returned(false);
            match self.receiver.try_receive() {
                Ok(Some(received)) => {
                    self.scoreboard.set_returned(true);
                    if let Received::Connection(connection) = received {
                        return Ok(Some(connection));
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    self.scoreboard.set_returned(true);
                    return Err(error);
                }
            }
        }
        Ok(None)
    }

    /// Whether a connection waits here. Costs no system call if none was given back.
    pub fn is_there(&self) -> bool {
        self.scoreboard.may_be_returned() && self.look()
    }

    /// Looks again: a slot may have been killed while it gave a connection back or took one.
    pub fn look(&self) -> bool {
        let is_there = !ready(self.receiver.as_fd(), PollFlags::IN).is_empty();
        if is_there {
            self.scoreboard.set_returned(true);
        }
        is_there
    }
}
