//! The read end of a queue.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{SockType, setsockopt, sockopt};
use nix::sys::stat::SFlag;

use crate::error::{Error, Result};
use crate::queue::connection::Connection;
use crate::queue::fetch::Visit;
use crate::queue::message::Info;
use crate::queue::name::Name;
use crate::queue::owned_name::{self, OwnedName, PathAccess};
use crate::queue::scm::{self, MAX_QUEUED, Message, is_drained};
use crate::queue::trust::Trust;
use crate::system::descriptor::{check_is_queue, file_type};
use crate::system::free_fds::FreeFds;
use crate::system::poll::{PollFlags, ready, wait_for};
use crate::system::quick_close::QuickClose;
use crate::system::{inherited, interrupt, unix_socket};

/// The result of a receive.
#[derive(Debug)]
#[non_exhaustive]
pub enum Received {
    /// A connection, or a descriptor of any other kind.
    Connection(Connection),
    /// A message without a valid connection. All its descriptors are closed.
    Rejected(Rejection),
    /// The other side is gone, and the queue is empty.
    End,
    /// A signal interrupted the wait ([`crate::interrupt`]). No message was taken.
    Interrupted,
}

/// Why a message was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Rejection {
    /// The message carried no descriptor.
    #[error("a message came without a descriptor")]
    NoDescriptor,
    /// The message carried this many descriptors. A connection is 1, and 2 with a lease.
    #[error("a message came with {0} descriptors instead of one")]
    TooManyDescriptors(usize),
    /// The kernel dropped some of the message's descriptors.
    #[error("a message lost descriptors on its way (MSG_CTRUNC)")]
    DescriptorsCut,
    /// The sender of the message, this uid, may not send here.
    #[error("a message came from uid {0}, which may not send to this name")]
    Sender(u32),
    /// The kernel did not tell the sender, as for a process in another container.
    #[error("a message came from an unknown uid, which may not send to this name")]
    UnknownSender,
}

/// The read end of a queue, for one thread.
pub struct Receiver {
    /// Messages may be left in it.
    socket: QuickClose<OwnedFd>,
    /// The allowed senders, if the name itself does not limit them.
    trust: Trust,
    /// Numbers for a connection and its lease.
    free: FreeFds<2>,
    /// The name that this end is bound to.
    name: Option<OwnedName>,
}

impl Receiver {
    fn new(socket: QuickClose<OwnedFd>, trust: Trust, name: Option<OwnedName>) -> Self {
        Self {
            socket,
            trust,
            free: FreeFds::default(),
            name,
        }
    }

    /// Takes `socket` as a read end: a connected Unix socket of any type, or a bound datagram
    /// socket.
    ///
    /// # Errors
    /// [`Error::Invalid`] if `socket` is no Unix socket, or listens; the text says what it is.
    pub fn from_socket(socket: OwnedFd) -> Result<Self> {
        let socket = QuickClose::new(socket);
        check_is_queue(socket.as_fd())?;
        Ok(Self::new(socket, Trust::everybody(), None))
    }

    /// Takes descriptor `number`, inherited at the start of this process, as a read end: 0 in a
    /// worker of `fdpool --worker`. Call this before anything else uses that number.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the descriptor is something else or not open; the text says what.
    pub fn inherit(number: RawFd) -> Result<Self> {
        Self::from_socket(inherited::claim(number)?)
    }

    /// Binds the datagram socket `name`, to which any number of senders may send. `mode` is the
    /// permissions of its file (0600 if `None`). An abstract name has none: there `trust` says who
    /// may send.
    ///
    /// # Errors
    /// [`Error::System`]: `EADDRINUSE` if the name has another owner; [`Error::Invalid`] if the
    /// path exists and is no socket, or if its lock file (`PATH.lock`) is not ours.
    pub fn bind(name: &Name, mode: Option<u32>, trust: Trust) -> Result<Self> {
        Self::bind_for(name, PathAccess { mode, owner: None }, trust)
    }

    /// Like [`Receiver::bind`], for an owner of the path.
    ///
    /// # Errors
    /// Those of [`Receiver::bind`]; [`Error::System`] with `EPERM` if this process may not make
    /// files for the owner.
    pub(crate) fn bind_for(name: &Name, access: PathAccess, trust: Trust) -> Result<Self> {
        let socket = QuickClose::new(unix_socket::new(SockType::Datagram)?);
        let trust = if name.is_abstract() {
            trust
        } else {
            Trust::everybody()
        };
        if trust.is_limited() {
            // Before anybody can send.
            setsockopt(&*socket, sockopt::PassCred, &true)
                .map_err(|errno| Error::system(format!("ask who sends to {name}"), errno))?;
        }
        let owned = owned_name::bind(socket.as_fd(), name, access)?;
        Ok(Self::new(socket, trust, Some(owned)))
    }

    /// Fetches the read end from the owner of `name`, such as `fdaccept --bind`. Anybody can bind
    /// an abstract name, so `trust` says who may own it.
    ///
    /// # Errors
    /// [`Error::System`]: `ENOENT` or `ECONNREFUSED` while nobody owns the name, `ECONNRESET` if
    /// the owner goes away, `ENOTSOCK` if a signal interrupts the call. [`Error::Other`] if
    /// something else than a seqpacket socket is there; [`Error::Untrusted`] if `trust` does not
    /// allow the owner; [`Error::Peer`] if the answer is no queue.
    pub fn connect(name: &Name, trust: &Trust) -> Result<Self> {
        let visit = Visit::new()?;
        let _watch = interrupt::watch(visit.as_fd());
        visit.begin(name, trust)?;
        Self::from_socket(visit.finish(name)?)
    }

    /// In a forked process: leaves the name to the process that bound it. The name is then free
    /// when that process is gone, however long this one lives.
    pub(crate) fn leave_name(&mut self) {
        self.name = None;
    }

    /// Waits for the next connection and takes it. No connection is lost between two calls:
    /// connections that are not taken stay for other consumers.
    ///
    /// # Errors
    /// [`Error::System`]: `EMFILE` if there are no numbers for a connection and its lease; then no
    /// message was taken.
    pub fn receive(&self) -> Result<Received> {
        loop {
            if let Some(received) = self.take(|socket| scm::receive(socket))? {
                return Ok(received);
            }
            // Another process made this socket non-blocking, as it may.
            let _ = wait_for(self.socket.as_fd(), PollFlags::IN, None);
        }
    }

    /// Like [`Receiver::receive`], but `None` if the queue is empty now.
    ///
    /// # Errors
    /// Those of [`Receiver::receive`].
    pub fn try_receive(&self) -> Result<Option<Received>> {
        self.take(|socket| scm::try_receive(socket))
    }

    fn take(
        &self,
        receive: impl Fn(BorrowedFd<'_>) -> Result<Message, Errno>,
    ) -> Result<Option<Received>> {
        let failed = |errno| Error::system("receive a connection", errno);
        let mut is_gone = false;
        let mut empties = 0;
        loop {
            self.free.check(self.socket.as_fd()).map_err(failed)?;
            match receive(self.socket.as_fd()) {
                // An empty message reads like the end, and nothing tells one from the other. But the
                // end stays, and of empty messages there are only so many in a queue.
                Ok(message) if message.is_empty() && (is_gone || self.other_side_is_gone()) => {
                    is_gone = true;
                    empties += 1;
                    if empties > MAX_QUEUED {
                        return Ok(Some(Received::End));
                    }
                }
                // The end was read, but a signal came before the other side could be checked.
                Ok(message) if message.is_empty() && interrupt::raised().is_some() => {
                    return Ok(Some(Received::Interrupted));
                }
                Ok(message) => return Ok(Some(self.judge(message))),
                Err(Errno::EAGAIN) => return Ok(None),
                // ECONNRESET: the other side closed without reading all that was sent to it. Its
                // own messages are still here.
                Err(Errno::EINTR | Errno::ECONNRESET) => {}
                Err(Errno::ENOTSOCK) => return Ok(Some(Received::Interrupted)),
                Err(errno) => return Err(failed(errno)),
            }
        }
    }

    /// Decides what a message is. A rejected message is closed with all its descriptors.
    fn judge(&self, mut message: Message) -> Received {
        if message.descriptors_cut {
            self.free.forget();
        }
        // Before anything else of the message is looked at.
        let is_trusted = message
            .sender
            .map_or(!self.trust.is_limited(), |uid| self.trust.allows(uid));
        if !is_trusted {
            let unknown = Rejection::UnknownSender;
            return Received::Rejected(message.sender.map_or(unknown, Rejection::Sender));
        }
        let info = if message.payload_cut {
            None
        } else {
            Info::decode(&message.payload)
        };
        // Only a sender with a valid payload knows of leases, and a lease is the end of a pipe.
        let has_lease = info.is_some()
            && matches!(&message.descriptors[..], [_, lease] if is_pipe(lease.as_fd()));
        let rejection = match message.descriptors.len() {
            _ if message.descriptors_cut => Some(Rejection::DescriptorsCut),
            0 => Some(Rejection::NoDescriptor),
            1 => None,
            2 if has_lease => None,
            count => Some(Rejection::TooManyDescriptors(count)),
        };
        if let Some(rejection) = rejection {
            return Received::Rejected(rejection);
        }
        let mut descriptors = message.descriptors.drain(..);
        match (descriptors.next(), descriptors.next()) {
            (Some(descriptor), lease) => {
                Received::Connection(Connection::new(descriptor, lease, info))
            }
            (None, _) => Received::Rejected(Rejection::NoDescriptor),
        }
    }

    /// Whether the other side is gone and the queue is empty, or the next message is: for a worker
    /// that reads the queue, both are the end. Takes no message, and does not block.
    pub fn is_at_end(&self) -> bool {
        self.other_side_is_gone() && is_drained(self.socket.as_fd())
    }

    fn other_side_is_gone(&self) -> bool {
        let gone = PollFlags::HUP | PollFlags::RDHUP;
        ready(self.socket.as_fd(), gone).intersects(gone)
    }
}

impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn is_pipe(descriptor: BorrowedFd<'_>) -> bool {
    file_type(descriptor) == Some(SFlag::S_IFIFO)
}
