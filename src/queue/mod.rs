//! A queue: sockets whose messages each carry one connection.
//!
//! [`Sender`] and [`Receiver`] are the ends of a queue; [`pair`] makes both. [`send`] and
//! [`receive`] pass any descriptors with any bytes. The formats are in fdtools(7).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::error::{Error, Result};

pub mod connection;
#[cfg(feature = "programs")]
pub(crate) mod ends;
pub(crate) mod fetch;
pub mod message;
pub mod name;
pub(crate) mod owned_name;
mod path_lock;
mod receiver;
#[cfg(feature = "programs")]
pub(crate) mod rendezvous;
pub(crate) mod scm;
mod sender;
pub mod ticket;
pub mod trust;
mod variable;

pub use receiver::{Received, Receiver, Rejection};
pub use scm::{MAX_DESCRIPTORS, Message};
#[cfg(feature = "programs")]
pub(crate) use sender::RETRY;
pub use sender::Sender;

/// Makes a queue. Each message from the [`Sender`] is received once by the [`Receiver`], which any
/// number of processes may share.
///
/// # Errors
/// [`Error::System`] (`EMFILE` and the like).
pub fn pair() -> Result<(Sender, Receiver)> {
    let (sender, read_end) = ends()?;
    Ok((sender, Receiver::from_socket(read_end)?))
}

/// Like [`pair`], for a process that only passes the read end on.
///
/// # Errors
/// [`Error::System`] (`EMFILE` and the like).
pub fn ends() -> Result<(Sender, OwnedFd)> {
    let (write_end, read_end) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .map_err(|errno| Error::system("make a queue", errno))?;
    Ok((Sender::from_socket(write_end)?, read_end))
}

/// Sends `payload` and `descriptors` as one message on the Unix socket `socket`. Blocks while the
/// socket has no room.
///
/// # Errors
/// The errno of sendmsg(2): `EPIPE` if nobody can receive the message any more (never a signal),
/// `ETOOMANYREFS`, `EMSGSIZE` and so on; `EINVAL` for more than [`MAX_DESCRIPTORS`].
pub fn send(socket: impl AsFd, payload: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    Ok(scm::send(socket, payload, descriptors)?)
}

/// Like [`send`], without blocking.
///
/// # Errors
/// Those of [`send`]; `EAGAIN` if there is no room.
pub fn try_send(
    socket: impl AsFd,
    payload: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    Ok(scm::try_send(socket, payload, descriptors)?)
}

/// Receives one message from the Unix socket `socket`. Blocks until a message comes. An empty
/// payload without descriptors is an empty message or the end.
///
/// # Errors
/// The errno of recvmsg(2), `EINTR` among them.
pub fn receive(socket: impl AsFd) -> io::Result<Message> {
    Ok(scm::receive(socket)?)
}

/// Like [`receive`], without blocking.
///
/// # Errors
/// Those of [`receive`]; `EAGAIN` if there is no message.
pub fn try_receive(socket: impl AsFd) -> io::Result<Message> {
    Ok(scm::try_receive(socket)?)
}
