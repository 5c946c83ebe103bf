//! The listeners, which take turns, and the errors of accept(2).

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};

use crate::accept::failures::Failures;
use crate::accept::incoming::Incoming;
use crate::accept::listen::{Listener, Transport, backlog};
use crate::error::{Error, to_nix};
use crate::system::interrupt;
use crate::system::log::Log;
use crate::system::pause::is_short;
use crate::system::poll::{PollFlags, earliest, ready};

/// The most connections from a listener before the next listener's turn.
const LONGEST_TURN: usize = 16;
/// How long accept(2) may block when another process took the connection first.
const BLOCKED: Duration = Duration::from_millis(50);

/// What to do after a failed accept(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// This connection failed, or a signal came: try the next connection.
    Retry,
    /// No connection waits.
    Nobody,
    /// Descriptors or memory are short: pause.
    Pause,
    /// The error is permanent.
    Fatal,
}

/// accept(2) also reports errors of the new connection, and of whatever filters connections.
pub(super) fn classify(errno: Errno) -> Class {
    match errno {
        Errno::EAGAIN => Class::Nobody,
        errno if is_short(errno) => Class::Pause,
        Errno::EBADF | Errno::EFAULT | Errno::EINVAL | Errno::ENOSYS | Errno::ENOTSOCK => {
            Class::Fatal
        }
        _ => Class::Retry,
    }
}

struct Place {
    listener: Listener,
    /// During last orders: how many connections from before the stop the backlog may still hold.
    left: usize,
    failures: Failures,
}

pub(super) struct Turns {
    places: Vec<Place>,
    next: usize,
    longest_backlog: usize,
    /// Last orders were called.
    is_calling: bool,
}

impl Turns {
    pub fn new(listeners: Vec<Listener>) -> Self {
        let place = |listener| Place {
            listener,
            left: 0,
            failures: Failures::default(),
        };
        Self {
            places: listeners.into_iter().map(place).collect(),
            next: 0,
            longest_backlog: backlog::longest(),
            is_calling: false,
        }
    }

    /// The listeners to wait for, with their indices: all but those whose failures pause them.
    pub fn listening(&self) -> impl Iterator<Item = (usize, &Listener)> {
        let places = self.places.iter().enumerate();
        let places = places.filter(|(_, place)| !place.failures.is_pause_on());
        places.map(|(index, place)| (index, &place.listener))
    }

    /// When a paused listener is to be tried again.
    pub fn deadline(&self) -> Option<Instant> {
        earliest(self.places.iter().map(|place| place.failures.deadline()))
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

    /// Whether to accept from listener `index` now: no failures pause it, and last orders are not
    /// over there.
    pub fn may_accept(&self, index: usize) -> bool {
        let place = &self.places[index];
        let is_over = self.is_calling && place.left == 0;
        !is_over && !place.failures.is_pause_on()
    }

    /// Accepts a connection from listener `index`.
    ///
    /// # Errors
    /// The errno of accept(2); `EAGAIN` if no connection waits.
    pub fn accept(&mut self, index: usize, log: &Log) -> Result<Incoming, Errno> {
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
        place.failures.end(listener, log);
        self.next = index + 1;
        Ok(incoming)
    }

    /// Notes that accept(2) failed at listener `index`. Failures that last pause the listener, and
    /// end its last orders.
    pub fn fail(&mut self, index: usize, errno: Errno, log: &Log) {
        let place = &mut self.places[index];
        // Where others accept as well, they may be faster each time.
        let is_news = errno != Errno::EAGAIN || !place.listener.is_inherited();
        place.failures.add(&place.listener, errno, is_news, log);
        if self.is_calling && place.failures.are_lasting() {
            place.left = 0;
        }
    }

    /// The error to report for an errno of [`Class::Fatal`].
    pub fn error(&self, index: usize, errno: Errno) -> Error {
        Error::system(format!("accept on {}", self.places[index].listener), errno)
    }

    /// From now on accepts only connections that the backlogs may hold already.
    pub fn call_last_orders(&mut self) {
        self.is_calling = true;
        for place in &mut self.places {
            place.left = self.longest_backlog + 1;
            place.failures.end_pause();
        }
    }

    /// Whether a connection waits at listener `index`, as far as poll(2) knows.
    pub fn has_waiting(&self, index: usize) -> bool {
        let listener = self.places[index].listener.as_fd();
        !ready(listener, PollFlags::IN).is_empty()
    }

    /// During last orders: closes the listeners where no connection waits, so that no client
    /// connects in vain.
    pub fn retire_idle(&mut self) {
        for index in 0..self.places.len() {
            if !self.has_waiting(index) {
                self.places[index].left = 0;
            }
        }
        self.places.retain(|place| place.left > 0);
    }

    pub fn close(&mut self) {
        self.places.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accept::listen::finish;
    use crate::system::log::Verbosity;
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::os::fd::OwnedFd;

    #[test]
    fn errors_of_accept_have_their_class() {
        assert_eq!(classify(Errno::ECONNABORTED), Class::Retry);
        assert_eq!(classify(Errno::EINTR), Class::Retry);
        assert_eq!(classify(Errno::EAGAIN), Class::Nobody);
        assert_eq!(classify(Errno::EMFILE), Class::Pause);
        assert_eq!(classify(Errno::ENFILE), Class::Pause);
        assert_eq!(classify(Errno::ENOMEM), Class::Pause);
        assert_eq!(classify(Errno::EPERM), Class::Retry);
        assert_eq!(classify(Errno::EACCES), Class::Retry);
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

    /// 2 listeners, each with a client.
    fn two() -> (Turns, [TcpStream; 2]) {
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let clients = [0, 1].map(|index: usize| {
            let address: SocketAddr = listeners[index].local_addr().unwrap();
            TcpStream::connect(address).unwrap()
        });
        let listeners = listeners.map(OwnedFd::from);
        let listeners = listeners.map(|fd| finish(fd, Transport::Tcp, None).unwrap());
        (Turns::new(listeners.into()), clients)
    }

    fn listening(turns: &Turns) -> Vec<usize> {
        turns.listening().map(|(index, _)| index).collect()
    }

    #[test]
    fn only_the_listener_that_fails_again_and_again_pauses() {
        let (mut turns, _clients) = two();
        let log = Log::new("test", Verbosity::Quiet);
        for _ in 0..3 {
            turns.fail(0, Errno::EPERM, &log);
        }
        assert_eq!((listening(&turns), turns.deadline()), (vec![0, 1], None));
        // So often that the pause is not over before it is looked at.
        for _ in 0..20 {
            turns.fail(0, Errno::EPERM, &log);
        }
        assert_eq!(listening(&turns), [1]);
        assert!(turns.deadline().is_some());
        assert!(!turns.may_accept(0) && turns.may_accept(1));
    }

    #[test]
    fn last_orders_try_a_failing_listener_once_more() {
        let (mut turns, _clients) = two();
        let log = Log::new("test", Verbosity::Quiet);
        for _ in 0..20 {
            turns.fail(0, Errno::EPERM, &log);
        }
        turns.call_last_orders();
        assert!(turns.may_accept(0) && turns.may_accept(1));
        turns.retire_idle();
        assert_eq!(turns.places.len(), 2);
        turns.fail(0, Errno::EPERM, &log);
        turns.retire_idle();
        assert_eq!(turns.places.len(), 1);
    }
}
