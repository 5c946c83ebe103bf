//! Fetches the read end of a queue from the process that hands it out.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{SockType, UnixAddr, connect};

use crate::error::{Error, Result};
use crate::queue::message::Info;
use crate::queue::name::Name;
use crate::queue::scm;
use crate::queue::trust::Trust;
use crate::system::descriptor::check_is_queue;
use crate::system::pause::is_short;
use crate::system::quick_close::QuickClose;
use crate::system::unix_socket;

/// A consumer's connection to the door of an acceptor, which hands out the queue's read end.
pub(crate) struct Visit {
    door: QuickClose<OwnedFd>,
}

impl Visit {
    pub fn new() -> Result<Self> {
        let door = QuickClose::new(unix_socket::new(SockType::SeqPacket)?);
        Ok(Self { door })
    }

    /// Like [`Visit::new`], for a process that must not block.
    pub fn new_nonblocking() -> Result<Self> {
        let door = QuickClose::new(unix_socket::new_nonblocking(SockType::SeqPacket)?);
        Ok(Self { door })
    }

    /// Connects to `name`, and checks the owner of an abstract name.
    pub fn begin(&self, name: &Name, trust: &Trust) -> Result<()> {
        self.connect(&name.address()?)
            .map_err(|errno| name.cannot_connect(errno, "fdaccept --bind"))?;
        if name.is_abstract() {
            trust.check_owner(self.door.as_fd(), name)?;
        }
        Ok(())
    }

    /// Connects to an address; the caller checks its owner.
    pub fn connect(&self, address: &UnixAddr) -> Result<(), Errno> {
        loop {
            match connect(self.door.as_raw_fd(), address) {
                Err(Errno::EINTR) => {}
                other => return other,
            }
        }
    }

    /// Receives the read end that `name` hands out.
    pub fn finish(&self, name: &Name) -> Result<OwnedFd> {
        match self.fetch() {
            Ok(Some(read_end)) => Ok(read_end),
            Ok(None) => Err(Error::Peer(format!("{name} does not hand out a queue"))),
            Err(errno) => Err(Error::system(format!("get the queue from {name}"), errno)),
        }
    }

    /// Receives the read end; `None` if the answer is no queue.
    pub fn fetch(&self) -> Result<Option<OwnedFd>, Errno> {
        let mut answer = loop {
            match scm::receive(&self.door) {
                Err(Errno::EINTR) => {}
                other => break other?,
            }
        };
        if answer.descriptors_cut {
            // The read end came, but there was no number for it.
            return Err(Errno::EMFILE);
        }
        if answer.is_empty() {
            return Err(Errno::ECONNRESET);
        }
        let alone = answer.descriptors.len() == 1;
        if !alone || Info::decode(&answer.payload).is_none() {
            return Ok(None);
        }
        let read_end = answer.descriptors.pop();
        Ok(read_end.filter(|socket| check_is_queue(socket.as_fd()).is_ok()))
    }
}

impl AsFd for Visit {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.door.as_fd()
    }
}

/// Errors of a visit that mean that nobody hands out the queue yet.
pub(crate) fn is_absent(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::ENOENT | Errno::ECONNREFUSED | Errno::ECONNRESET | Errno::EAGAIN
    )
}

/// Whether another try may succeed: nobody owns the name, another process owns it, or descriptors
/// or memory are short.
pub(crate) fn is_passing(error: &Error) -> bool {
    matches!(error, Error::Peer(_) | Error::Untrusted { .. })
        || error
            .errno()
            .is_some_and(|errno| is_absent(errno) || is_short(errno))
}
