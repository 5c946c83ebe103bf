//! A listening socket where consumers fetch the read end.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::sys::socket::{Backlog, SockType, listen};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

use crate::accept::sink::reserve::Reserve;
use crate::error::{Error, Result};
use crate::system::pause::{Pause, SHORTAGE};
use crate::system::poll::{PollFlags, Watched, ready};
use crate::system::quick_close::QuickClose;
use crate::system::unix_socket;

/// How many consumers to serve before the rest of the loop has its turn.
pub(super) const TURN: usize = 16;

/// After so many looks without a consumer, see whether one waits all the same.
const LOOKS_IN_VAIN: u32 = 64;

/// A visitor that wants the read end. Nothing is known of it yet, and it may have sent anything.
pub(super) type Consumer = QuickClose<UnixStream>;

pub(super) enum Event {
    Consumer(Consumer),
    /// Descriptors are short, so no consumer can be accepted.
    Short,
}

#[derive(Debug)]
pub(super) struct Door {
    listener: OwnedFd,
    pause: Pause,
    /// For a consumer that comes while clients have all other descriptors: without it the clients
    /// and the consumer would wait for each other.
    reserve: Reserve<1>,
    looks_in_vain: u32,
}

impl Door {
    /// Opens a door under the name that `bind` binds. Also returns the value of `bind`.
    ///
    /// # Errors
    /// The error of `bind`; [`Error::System`] for `action` (`EMFILE` and the like).
    pub fn open<T>(
        action: String,
        bind: impl FnOnce(BorrowedFd<'_>) -> Result<T>,
    ) -> Result<(Self, T)> {
        let listener = unix_socket::new_nonblocking(SockType::SeqPacket)?;
        let bound = bind(listener.as_fd())?;
        listen(&listener, Backlog::MAXCONN).map_err(|errno| Error::system(action, errno))?;
        let mut door = Self {
            listener,
            pause: Pause::default(),
            reserve: Reserve::default(),
            looks_in_vain: 0,
        };
        door.fill_reserve();
        Ok((door, bound))
    }

    /// Accepts consumers and gives each to `react`. If descriptors are short and `react` cannot
    /// free any (returns false), the door is shut for a while.
    pub fn attend(&mut self, react: impl FnMut(Event) -> bool) {
        self.admit(react);
        self.fill_reserve();
    }

    fn fill_reserve(&mut self) {
        self.reserve.fill(|| self.listener.try_clone());
    }

    fn nobody_came(&mut self) {
        self.looks_in_vain = (self.looks_in_vain + 1) % LOOKS_IN_VAIN;
        // Something hides the consumer from us, and poll(2) would report it for ever.
        if self.looks_in_vain == 0 && !ready(self.listener.as_fd(), PollFlags::IN).is_empty() {
            self.pause.begin(SHORTAGE);
        }
    }

    fn admit(&mut self, mut react: impl FnMut(Event) -> bool) {
        // A crowd of consumers must not keep the loop from other work.
        for _ in 0..TURN {
            if self.pause.is_on() {
                return;
            }
            // No other process has this socket, so non-blocking mode harms nobody.
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match accept_with(&self.listener, flags) {
                Ok(consumer) => {
                    self.looks_in_vain = 0;
                    let consumer = QuickClose::new(consumer.into());
                    react(Event::Consumer(consumer));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return self.nobody_came(),
                Err(_) if self.reserve.give_up() || react(Event::Short) => {}
                Err(_) => self.pause.begin(SHORTAGE),
            }
        }
    }
}

impl Watched for Door {
    fn descriptors<'fd>(&'fd self, poll: &mut dyn FnMut(BorrowedFd<'fd>, PollFlags)) {
        if !self.pause.is_on() {
            poll(self.listener.as_fd(), PollFlags::IN);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.pause.deadline()
    }
}
