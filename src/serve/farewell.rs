//! How a slot ends a connection whose handler has ended.
//!
//! The close of a TCP socket with unread input resets the connection, and the client loses what it has
//! not read yet. So the slot keeps a copy while the handler runs. Unless the client has ended its
//! side, the pool's process gets the copy and lets it [linger](crate::serve::lingering).

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::getpid;

use crate::queue::Sender;
use crate::queue::connection::Connection;
use crate::system::drain::{drain_all, drain_until, end_sending, ends_in_order, has_input};
use crate::system::processes::{SocketLink, children};
use crate::system::quick_close::quickly;

/// The slot's way to the pool's process.
pub(super) struct Farewell {
    sender: Sender,
    time: Duration,
}

impl Farewell {
    pub fn new(sender: Sender, time: Duration) -> Self {
        Self { sender, time }
    }

    /// Ends a connection, with its lease, whose handler was reaped. `has_children` says that this slot
    /// has others, be they of this handler or of an earlier one. Does not block while the pool lives.
    pub fn end(&self, connection: Connection, has_children: bool) {
        let socket = connection.as_fd();
        if !has_input(socket)
            || !ends_in_order(socket)
            || has_children && may_go_on(&connection)
            || !end_sending(socket)
        {
            return;
        }
        match self.sender.pass_on(&connection) {
            Ok(()) => {}
            // The pool has died, so this slot serves nobody after this one.
            Err(Errno::EPIPE | Errno::ECONNRESET) => {
                drain_until(socket, Some(Instant::now() + self.time));
            }
            // What comes now would reset the connection.
            Err(_) => quickly(|| drain_all(socket, &mut [0; 4096])),
        }
    }
}

/// Whether somebody whom a handler has left may use the connection. Where /proc does not even show that
/// this slot has children, nothing is known.
fn may_go_on(connection: &Connection) -> bool {
    let slot = getpid();
    let link = SocketLink::of(connection.as_fd());
    children(slot).is_empty() || !link.is_some_and(|link| link.is_closed_below(slot))
}
