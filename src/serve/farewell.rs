//! How a slot ends a connection whose handler has ended.
//!
//! The close of a TCP socket with unread input resets the connection, and the client loses what it has
//! not read yet. So the slot keeps a copy while the handler runs. Unless the client has ended its
//! side, the pool's process gets the copy and lets it [linger](crate::serve::lingering).

use std::os::fd::AsFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::getpid;

use crate::queue::Sender;
use crate::queue::connection::Connection;
use crate::system::drain::{drain_all, drain_until, end_sending, ends_in_order, has_input};
use crate::system::processes::{SocketLink, Ticks, children};
use crate::system::quick_close::quickly;

/// How often, and how many milliseconds apart, to look whether a process in the background has closed a
/// connection.
const PAUSES: [u64; 8] = [0, 1, 2, 4, 8, 16, 32, 64];

/// The slot's way to the pool's process.
pub(super) struct Farewell {
    sender: Sender,
    time: Duration,
}

impl Farewell {
    pub fn new(sender: Sender, time: Duration) -> Self {
        Self { sender, time }
    }

    /// Ends a connection, with its lease, which came `since` then, and whose handler was reaped.
    /// `has_children` says that this slot has others, be they of this handler or of an earlier one.
    /// Blocks for a moment at most while the pool lives.
    pub fn end(&self, connection: Connection, since: Ticks, has_children: bool) {
        let socket = connection.as_fd();
        if !has_input(socket)
            || !ends_in_order(socket)
            || has_children && may_go_on(&connection, since)
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
fn may_go_on(connection: &Connection, since: Ticks) -> bool {
    let slot = getpid();
    let Some(link) = SocketLink::of(connection.as_fd()) else {
        return true;
    };
    if children(slot).is_empty() {
        return true;
    }
    // A process in the background has the connection until it gets to redirect its own.
    !PAUSES.into_iter().any(|pause| {
        sleep(Duration::from_millis(pause));
        link.is_closed_below(slot, since)
    })
}
