//! The write end of a queue.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{SockType, connect};

use crate::error::{Error, Result};
use crate::queue::connection::Connection;
use crate::queue::message::Info;
use crate::queue::name::Name;
use crate::queue::scm;
use crate::queue::trust::Trust;
use crate::system::descriptor::check_is_queue;
use crate::system::poll::{PollFlags, wait_for};
use crate::system::quick_close::QuickClose;
use crate::system::unix_socket;

/// The pause before a send is tried again after `ETOOMANYREFS`: too many of this user's descriptors
/// are in flight, and no event announces the end of that.
pub(crate) const RETRY: Duration = Duration::from_millis(2);

const PASS: &str = "pass a connection";

/// The write end of a queue.
#[derive(Debug)]
pub struct Sender {
    socket: QuickClose<OwnedFd>,
}

impl Sender {
    /// Takes `socket`, a connected Unix socket of any type, as a write end.
    ///
    /// # Errors
    /// [`Error::Invalid`] if `socket` is no Unix socket, or listens; the text says what it is.
    pub fn from_socket(socket: OwnedFd) -> Result<Self> {
        let socket = QuickClose::new(socket);
        check_is_queue(socket.as_fd())?;
        Ok(Self { socket })
    }

    /// Connects to the process that has bound the datagram socket `name`, by
    /// [`Receiver::bind`](crate::queue::Receiver::bind) or as flingfd does. Anybody can bind an
    /// abstract name, so `trust` says who may own it.
    ///
    /// # Errors
    /// [`Error::System`]: `ENOENT` or `ECONNREFUSED` while nobody owns the name; [`Error::Other`]
    /// if something else than a datagram socket is there; [`Error::Untrusted`] if `trust` does not allow the owner.
    pub fn connect(name: &Name, trust: &Trust) -> Result<Self> {
        let failed = |errno| name.cannot_connect(errno, "fdpool --bind");
        let socket = QuickClose::new(unix_socket::new(SockType::Datagram)?);
        connect(socket.as_raw_fd(), &name.address()?).map_err(failed)?;
        if name.is_abstract() {
            trust.check_receiver(socket.as_fd(), name)?;
        }
        Ok(Self { socket })
    }

    /// Sends `connection` with the facts `info`. Blocks while the queue is full. The caller keeps
    /// its own copy of the connection, and may close it at any time.
    ///
    /// # Errors
    /// [`Error::System`]: `EPIPE` if nobody can receive the message any more.
    pub fn send(&self, connection: impl AsFd, info: &Info) -> Result<()> {
        let payload = info.encode();
        loop {
            match scm::send(&self.socket, &payload, &[connection.as_fd()]) {
                Ok(()) => return Ok(()),
                // Another process made this socket non-blocking.
                Err(Errno::EAGAIN) => drop(wait_for(self.as_fd(), PollFlags::OUT, None)),
                Err(Errno::ETOOMANYREFS) => std::thread::sleep(RETRY),
                Err(errno) => return Err(Error::system(PASS, errno)),
            }
        }
    }

    /// Like [`Sender::send`], without blocking.
    ///
    /// # Errors
    /// [`Error::System`]: `EAGAIN` if the queue is full, `ETOOMANYREFS` if too many descriptors of
    /// this user are in flight, and those of [`Sender::send`].
    pub fn try_send(&self, connection: impl AsFd, info: &Info) -> Result<()> {
        self.pass(connection.as_fd(), None, &info.encode())
            .map_err(|errno| Error::system(PASS, errno))
    }

    /// Passes on a connection that was received, with its lease and all that is known of it. The
    /// caller then closes its copy.
    ///
    /// # Errors
    /// Those of [`Sender::pass`].
    pub(crate) fn pass_on(&self, connection: &Connection) -> Result<(), Errno> {
        let payload = connection.info().encode();
        self.pass(connection.as_fd(), connection.lease(), &payload)
    }

    /// Like [`Sender::try_send`], with an encoded payload, and with a lease if the sender counts.
    /// The receiver keeps the lease open while the connection is in service.
    ///
    /// # Errors
    /// The errno of sendmsg(2), `EAGAIN` if the queue is full.
    pub(crate) fn pass(
        &self,
        connection: BorrowedFd<'_>,
        lease: Option<BorrowedFd<'_>>,
        payload: &[u8],
    ) -> Result<(), Errno> {
        match lease {
            Some(lease) => scm::try_send(&self.socket, payload, &[connection, lease]),
            None => scm::try_send(&self.socket, payload, &[connection]),
        }
    }
}

impl AsFd for Sender {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
