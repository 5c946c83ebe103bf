//! A listening socket where consumers come to fetch the read end.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::sys::socket::{Backlog, SockType, listen};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

use crate::error::{Error, Result};
use crate::system::pause::{Pause, SHORTAGE};
use crate::system::poll::{PollFlags, Watched};
use crate::system::unix_socket;

/// Consumers that are let in before something else has its turn.
pub(super) const TURN: usize = 16;

/// What happened at a door.
pub(super) enum Event {
    /// A consumer came in.
    Consumer(UnixStream),
    /// Descriptors are short, so that nobody can come in.
    Short,
}

/// The door itself, with nobody at it.
#[derive(Debug)]
pub(super) struct Door {
    listener: OwnedFd,
    pause: Pause,
}

impl Door {
    /// A door whose name `bind` binds. Returns what that returns, too.
    ///
    /// # Errors
    /// That of `bind`; [`Error::System`] for `action` (`EMFILE` and the like).
    pub fn open<T>(
        action: String,
        bind: impl FnOnce(BorrowedFd<'_>) -> Result<T>,
    ) -> Result<(Self, T)> {
        let listener = unix_socket::new_nonblocking(SockType::SeqPacket)?;
        let bound = bind(listener.as_fd())?;
        listen(&listener, Backlog::MAXCONN).map_err(|errno| Error::system(action, errno))?;
        let pause = Pause::default();
        Ok((Self { listener, pause }, bound))
    }

    /// Lets in who is there, one after another, and tells `react` of them. Where that cannot make
    /// room when descriptors are short, which it says by false, the door is shut for a while.
    pub fn attend(&mut self, mut react: impl FnMut(Event) -> bool) {
        // A crowd at the door must not keep us from everything else.
        for _ in 0..TURN {
            if self.pause.is_on() {
                return;
            }
            // Ours alone, so it may be made not to block.
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match accept_with(&self.listener, flags) {
                Ok(consumer) => drop(react(Event::Consumer(consumer.into()))),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) => return,
                Err(_) if react(Event::Short) => {}
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
