//! The listeners, which take turns, and the errors of accept(2).

use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};

use crate::accept::incoming::Incoming;
use crate::accept::listen::{Listener, Transport, backlog};
use crate::error::{Error, to_nix};
use crate::system::interrupt;

/// The most connections from a listener before the next listener's turn.
const LONGEST_TURN: usize = 16;
/// How long accept(2) may block when another process took the connection first.
const BLOCKED: Duration = Duration::from_millis(50);

/// What to do after a failed accept(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// The client is gone, or a signal came: try the next connection.
    Retry,
    /// No connection waits.
    Nobody,
    /// Descriptors or memory are short: pause.
    Pause,
    /// The error is permanent.
    Fatal,
}

/// accept(2) also reports errors of the new connection.
pub(super) fn classify(errno: Errno) -> Class {
    match errno {
        Errno::EINTR
        | Errno::ECONNABORTED
        | Errno::EPROTO
        | Errno::EPERM
        | Errno::ETIMEDOUT
        | Errno::ENETDOWN
        | Errno::ENETUNREACH
        | Errno::EHOSTDOWN
        | Errno::EHOSTUNREACH
        | Errno::ENOPROTOOPT
        | Errno::EOPNOTSUPP
        | Errno::ECONNRESET
        | Errno::ENONET => Class::Retry,
        Errno::EAGAIN => Class::Nobody,
        Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM => Class::Pause,
        _ => Class::Fatal,
    }
}

struct Place {
    listener: Listener,
    /// During last orders: how many connections from before the stop the backlog may still hold.
    left: usize,
}

pub(super) struct Turns {
    places: Vec<Place>,
    next: usize,
    longest_backlog: usize,
}

impl Turns {
    pub fn new(listeners: Vec<Listener>) -> Self {
        let place = |listener| Place { listener, left: 0 };
        Self {
            places: listeners.into_iter().map(place).collect(),
            next: 0,
            longest_backlog: backlog::longest(),
        }
    }

    pub fn listeners(&self) -> impl Iterator<Item = &Listener> {
        self.places.iter().map(|place| &place.listener)
    }

    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The `ready` listeners in the order of their turns. So each listener is served even if there
    /// is room for only 1 connection.
    pub fn in_turn(&self, mut ready: Vec<usize>) -> Vec<usize> {
        ready.sort_unstable_by_key(|index| (*index < self.next, *index));
        ready
    }

    /// How many connections to accept in this turn. An accept(2) in vain costs more than this
    /// query, because the kernel makes a socket first. On a blocking listener it also takes time.
    pub fn length(&self, index: usize) -> usize {
        let listener = &self.places[index].listener;
        match listener.transport() {
            Transport::Tcp if !listener.is_inherited() => {
                backlog::waiting(listener.as_fd()).clamp(1, LONGEST_TURN)
            }
            _ => 1,
        }
    }

    /// Accepts a connection from listener `index`.
    ///
    /// # Errors
    /// The errno of accept(2); `EAGAIN` if no connection waits.
    pub fn accept(&mut self, index: usize) -> Result<Incoming, Errno> {
        let place = &mut self.places[index];
        let listener = &place.listener;
        let accept = || acceptfrom_with(listener, SocketFlags::CLOEXEC).map_err(to_nix);
        let accepted = if listener.is_inherited() {
            // A shared listener may block, and another process may have taken the connection.
            interrupt::after(BLOCKED, accept).map_err(|errno| match errno {
                Errno::EINTR => Errno::EAGAIN,
                errno => errno,
            })
        } else {
            accept()
        };
        let (connection, remote) = accepted?;
        let incoming = Incoming::new(connection, remote.as_ref(), listener);
        place.left = place.left.saturating_sub(1);
        self.next = index + 1;
        Ok(incoming)
    }

    /// The error to report for an errno of [`Class::Fatal`].
    pub fn error(&self, index: usize, errno: Errno) -> Error {
        Error::system(format!("accept on {}", self.places[index].listener), errno)
    }

    /// From now on accepts only connections that the backlogs may hold already.
    pub fn call_last_orders(&mut self) {
        for place in &mut self.places {
            place.left = self.longest_backlog + 1;
        }
    }

    /// Whether last orders are over for this listener.
    pub fn is_over(&self, index: usize) -> bool {
        self.places[index].left == 0
    }

    /// Ends last orders for this listener: its backlog is empty.
    pub fn end(&mut self, index: usize) {
        self.places[index].left = 0;
    }

    /// Ends last orders for all listeners but the `ready` ones.
    pub fn end_all_but(&mut self, ready: &[usize]) {
        let places = self.places.iter_mut().enumerate();
        for (_, place) in places.filter(|(index, _)| !ready.contains(index)) {
            place.left = 0;
        }
    }

    /// Closes the listeners without last orders, so that no client connects in vain.
    pub fn retire(&mut self) {
        self.places.retain(|place| place.left > 0);
    }

    pub fn close(&mut self) {
        self.places.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_accept_have_their_class() {
        assert_eq!(classify(Errno::ECONNABORTED), Class::Retry);
        assert_eq!(classify(Errno::EINTR), Class::Retry);
        assert_eq!(classify(Errno::EAGAIN), Class::Nobody);
        assert_eq!(classify(Errno::EMFILE), Class::Pause);
        assert_eq!(classify(Errno::ENFILE), Class::Pause);
        assert_eq!(classify(Errno::ENOMEM), Class::Pause);
        assert_eq!(classify(Errno::EBADF), Class::Fatal);
        assert_eq!(classify(Errno::EINVAL), Class::Fatal);
    }

    #[test]
    fn the_turn_goes_round() {
        let mut turns = Turns::new(Vec::new());
        assert_eq!(turns.in_turn(vec![0, 1, 2]), [0, 1, 2]);
        turns.next = 2;
        assert_eq!(turns.in_turn(vec![0, 1, 2]), [2, 0, 1]);
        assert_eq!(turns.in_turn(vec![0, 1]), [0, 1]);
        turns.next = 3;
        assert_eq!(turns.in_turn(vec![1, 2]), [1, 2]);
    }
}
