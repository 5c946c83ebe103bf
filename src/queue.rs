//! Sending and receiving connections. The only file that knows `SCM_RIGHTS`.
//!
//! A queue is an `AF_UNIX` socket whose messages each carry one connection. [`Sender`] and
//! [`Receiver`] are its two sides; [`send`] and [`receive`] below them pass any descriptors with
//! any bytes.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Shutdown, SockFlag, SockType, UnixAddr, connect, setsockopt, shutdown, socket,
    socketpair, sockopt,
};
use nix::sys::stat::SFlag;
use rustix::io::ioctl_fionread;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, accept_with, recvmsg, sendmsg,
};

use crate::descriptor::{describe, file_type, socket_facts};
use crate::error::to_nix;
use crate::message::{Info, MAX_PAYLOAD};
use crate::name::{self, Name, OwnedName};
use crate::room::Room;
use crate::trust::Trust;
use crate::wait::{PollFd, PollFlags, ready, wait};
use crate::{Error, Result, inherited};

/// The most descriptors that one message can carry (`SCM_MAX_FD` of the kernel).
pub const MAX_DESCRIPTORS: usize = 253;

/// More messages than wait in a queue whose buffer is as large as anybody may make it by default.
const MAX_QUEUED: usize = 1024;

/// How long to wait before a send is tried again that failed for want of something that no event
/// announces (`ETOOMANYREFS`: too many of this user's descriptors are on their way).
pub const RETRY: Duration = Duration::from_millis(2);

/// Sends `payload` and `descriptors` as one message. With `wait` false it does not block.
///
/// # Errors
/// The errno of sendmsg(2): `EAGAIN` if there is no room and `wait` is false, `EPIPE` if nobody
/// can receive it any more (never a signal), `ETOOMANYREFS`, `EMSGSIZE` and so on; `EINVAL` for
/// more than [`MAX_DESCRIPTORS`].
pub fn send(
    socket: impl AsFd,
    payload: &[u8],
    descriptors: &[BorrowedFd<'_>],
    wait: bool,
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::EINVAL);
    }
    let mut flags = SendFlags::NOSIGNAL;
    if !wait {
        flags |= SendFlags::DONTWAIT;
    }
    loop {
        match sendmsg(&socket, &[IoSlice::new(payload)], &mut control, flags) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(to_nix(errno)),
        }
    }
}

/// One message as it came.
#[derive(Debug)]
pub struct Message {
    /// Its bytes; where there were more than [`MAX_PAYLOAD`], the first of them.
    pub payload: Vec<u8>,
    /// Its descriptors, close-on-exec.
    pub descriptors: Vec<OwnedFd>,
    /// The sender's uid, where the socket asks for it (`SO_PASSCRED`).
    pub sender: Option<u32>,
    /// The message had more bytes than were taken (`MSG_TRUNC`).
    pub payload_cut: bool,
    /// It had more descriptors than could be taken; the kernel closed them (`MSG_CTRUNC`).
    pub descriptors_cut: bool,
}

/// Receives one message. With `wait` false it does not block. An empty payload without
/// descriptors can be an empty message or the end.
///
/// # Errors
/// The errno of recvmsg(2), `EINTR` among them.
pub fn receive(socket: impl AsFd, wait: bool) -> Result<Message, Errno> {
    // Room for every descriptor that a message can have: what the kernel has to drop for want of
    // room it closes in our name, and closing a stranger's socket can block.
    let mut space =
        [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS), ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut payload = [0; MAX_PAYLOAD];
    let mut flags = RecvFlags::CMSG_CLOEXEC;
    if !wait {
        flags |= RecvFlags::DONTWAIT;
    }
    let mut buffers = [IoSliceMut::new(&mut payload)];
    let received = recvmsg(&socket, &mut buffers, &mut control, flags).map_err(to_nix)?;
    let mut message = Message {
        payload: Vec::new(),
        descriptors: Vec::new(),
        sender: None,
        payload_cut: received.flags.contains(ReturnFlags::TRUNC),
        descriptors_cut: received.flags.contains(ReturnFlags::CTRUNC),
    };
    for part in control.drain() {
        match part {
            RecvAncillaryMessage::ScmRights(descriptors) => message.descriptors.extend(descriptors),
            // A process id of 0, of a sender in another namespace, does not fit into what rustix
            // makes of it: then there may be no sender, which is not trusted.
            RecvAncillaryMessage::ScmCredentials(sender) => {
                message.sender = Some(sender.uid.as_raw());
            }
            _ => {}
        }
    }
    message.payload = payload[..received.bytes].to_vec();
    Ok(message)
}

impl Message {
    /// Whether there is nothing in it, as at the end.
    fn is_empty(&self) -> bool {
        self.payload.is_empty() && self.descriptors.is_empty()
    }
}

impl Drop for Message {
    /// Closes the descriptors that nobody took out.
    fn drop(&mut self) {
        self.descriptors.drain(..).for_each(close_unread);
    }
}

/// A new queue: whatever is sent on the one side is received, once, on the other, which any
/// number of processes may share.
///
/// # Errors
/// [`Error::System`] (`EMFILE` and the like).
pub fn pair() -> Result<(Sender, Receiver)> {
    let (sender, read_end) = ends()?;
    Ok((sender, Receiver::new(read_end, Trust::everybody(), None)))
}

/// As [`pair`], for one who only passes the read end on.
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
    Ok((Sender { socket: write_end }, read_end))
}

/// The write end of a queue.
#[derive(Debug)]
pub struct Sender {
    socket: OwnedFd,
}

impl Sender {
    /// The write end that `socket` is: a connected Unix socket of any type.
    ///
    /// # Errors
    /// [`Error::Usage`] if it is something else; the text says what.
    pub fn from_socket(socket: OwnedFd) -> Result<Self> {
        check_is_queue(socket.as_fd())?;
        Ok(Self { socket })
    }

    /// Opens the way to whoever is bound to the datagram socket `name`, as [`Receiver::bind`]
    /// and flingfd are. For an abstract name, which anybody can bind, `trust` says who may be.
    ///
    /// # Errors
    /// [`Error::System`]; its errno is `ENOENT` or `ECONNREFUSED` while nobody is there.
    /// [`Error::Peer`] if somebody is whom `trust` does not allow.
    pub fn connect(name: &Name, trust: &Trust) -> Result<Self> {
        let failed = |errno| Error::system(format!("connect to {name}"), errno);
        let socket = unix_socket(SockType::Datagram)?;
        connect(socket.as_raw_fd(), &name.address()?).map_err(failed)?;
        if name.is_abstract() {
            trust.check_receiver(socket.as_fd(), name)?;
        }
        Ok(Self { socket })
    }

    /// Passes `connection` on, with what is known of it. It blocks while the queue is full. The
    /// caller keeps its own copy and closes it when it likes.
    ///
    /// # Errors
    /// [`Error::System`]; `EPIPE` means that nobody can receive it any more.
    pub fn send(&self, connection: impl AsFd, info: &Info) -> Result<()> {
        let payload = info.encode();
        loop {
            match send(&self.socket, &payload, &[connection.as_fd()], true) {
                Ok(()) => return Ok(()),
                Err(Errno::EAGAIN) => wait_for(self.socket.as_fd(), PollFlags::OUT),
                Err(Errno::ETOOMANYREFS) => std::thread::sleep(RETRY),
                Err(errno) => return Err(Error::system("pass a connection", errno)),
            }
        }
    }

    /// As [`Sender::send`], with a payload made before, without blocking, and with a lease if
    /// there is one: what its receiver keeps open while the connection is in service.
    ///
    /// # Errors
    /// The errno of sendmsg(2), `EAGAIN` if the queue is full.
    pub fn try_send(
        &self,
        connection: impl AsFd,
        lease: Option<BorrowedFd<'_>>,
        payload: &[u8],
    ) -> Result<(), Errno> {
        let connection = connection.as_fd();
        match lease {
            Some(lease) => send(&self.socket, payload, &[connection, lease], false),
            None => send(&self.socket, payload, &[connection], false),
        }
    }
}

impl AsFd for Sender {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What one receive brought.
#[derive(Debug)]
pub enum Received {
    /// A connection, or whatever else the descriptor is.
    Connection {
        /// The connection itself, close-on-exec.
        descriptor: OwnedFd,
        /// What tells the sender that the connection is in service, to be kept open for as long as
        /// it is; `None` if the sender does not count.
        lease: Option<OwnedFd>,
        /// What its message said of it; `None` for a message that is not understood.
        info: Option<Info>,
    },
    /// A message that was not a connection. All that it carried is closed.
    Refused(Refusal),
    /// The other side is gone and the queue is empty.
    End,
    /// A signal broke the wait off ([`crate::interrupt`]). Nothing was taken.
    BrokenOff,
}

/// Why a message was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It carried none.
    #[error("a message came without a descriptor")]
    NoDescriptor,
    /// It carried this many, where one is a connection, and a second one a lease.
    #[error("a message came with {0} descriptors instead of one")]
    TooManyDescriptors(usize),
    /// The kernel had to drop some of its descriptors.
    #[error("a message lost descriptors on its way (MSG_CTRUNC)")]
    DescriptorsCut,
    /// Its sender may not send here.
    #[error("a message came from uid {0}, which may not send to this name")]
    Sender(u32),
    /// The kernel did not say who sent it, as for a process in another container.
    #[error("a message came from an unknown uid, which may not send to this name")]
    UnknownSender,
}

/// The read end of a queue. It is for one thread.
pub struct Receiver {
    socket: OwnedFd,
    /// Who may send, where the name itself does not say so.
    trust: Trust,
    /// For a connection and its lease.
    room: Room<2>,
    /// The name that this end is bound to, if it is.
    name: Option<OwnedName>,
}

impl Receiver {
    fn new(socket: OwnedFd, trust: Trust, name: Option<OwnedName>) -> Self {
        Self {
            socket,
            trust,
            room: Room::new(),
            name,
        }
    }

    /// The read end that `socket` is: a connected Unix socket of any type, or a bound datagram
    /// socket.
    ///
    /// # Errors
    /// [`Error::Usage`] if it is something else; the text says what.
    pub fn from_socket(socket: OwnedFd) -> Result<Self> {
        check_is_queue(socket.as_fd())?;
        Ok(Self::new(socket, Trust::everybody(), None))
    }

    /// The read end that this process was started with as descriptor `number`: 0 for a worker of
    /// `fdpool --worker`. To be called before anything else uses that number.
    ///
    /// # Errors
    /// [`Error::Usage`] if it is something else or not open; the text says what.
    pub fn inherit(number: RawFd) -> Result<Self> {
        Self::from_socket(inherited::claim(number)?)
    }

    /// Owns the datagram socket `name`, to which any number of senders send. `mode` is that of
    /// its file (0600 if `None`). An abstract name has no mode: there `trust` says who may send.
    ///
    /// # Errors
    /// Those of [`name::bind`].
    pub fn bind(name: &Name, mode: Option<u32>, trust: Trust) -> Result<Self> {
        let socket = unix_socket(SockType::Datagram)?;
        let trust = match name.is_abstract() {
            true => trust,
            false => Trust::everybody(),
        };
        if trust.is_limited() {
            // Before anybody can send.
            setsockopt(&socket, sockopt::PassCred, &true)
                .map_err(|errno| Error::system(format!("ask who sends to {name}"), errno))?;
        }
        let owned = name::bind(socket.as_fd(), name, mode)?;
        Ok(Self::new(socket, trust, Some(owned)))
    }

    /// Fetches the read end from who owns the name, as `fdaccept --bind` does. For an abstract
    /// name, which anybody can bind, `trust` says who may own it.
    ///
    /// # Errors
    /// [`Error::System`]; its errno is `ENOENT` or `ECONNREFUSED` while nobody is there,
    /// `ECONNRESET` if who was there went away, `ENOTSOCK` if a signal broke it off.
    /// [`Error::Peer`] if it is somebody whom `trust` does not allow or who answers something
    /// else.
    pub fn connect(name: &Name, trust: &Trust) -> Result<Self> {
        let visit = Visit::new()?;
        let _watch = crate::interrupt::watch(visit.as_fd());
        visit.begin(name, trust)?;
        visit.finish(name)
    }

    /// In a process that was forked: leaves the name to the one that bound it, so that it is
    /// free when that one is gone, however long this one lives on.
    pub fn leave_name(&mut self) {
        self.name = None;
    }

    /// Waits for the next connection and takes it. No connection is lost between two calls; what
    /// is not taken stays for others.
    ///
    /// # Errors
    /// [`Error::System`]: `EMFILE` if there are no numbers for a connection and its lease, in which
    /// case nothing was taken.
    pub fn receive(&self) -> Result<Received> {
        loop {
            if let Some(received) = self.take(true)? {
                return Ok(received);
            }
            // Somebody else made this socket non-blocking, which is theirs to do.
            wait_for(self.socket.as_fd(), PollFlags::IN);
        }
    }

    /// As [`Receiver::receive`], but `None` if nothing is there now.
    ///
    /// # Errors
    /// Those of [`Receiver::receive`].
    pub fn try_receive(&self) -> Result<Option<Received>> {
        self.take(false)
    }

    fn take(&self, wait: bool) -> Result<Option<Received>> {
        let failed = |errno| Error::system("receive a connection", errno);
        let mut empties = 0;
        loop {
            self.room.check(self.socket.as_fd()).map_err(failed)?;
            match receive(&self.socket, wait) {
                // An empty message reads as the end does, and may have others behind it.
                Ok(message) if message.is_empty() && self.other_side_is_gone() => {
                    empties += 1;
                    if empties > MAX_QUEUED || is_drained(self.socket.as_fd()) {
                        return Ok(Some(Received::End));
                    }
                }
                // The end was read, and a signal came before the other side could be looked at.
                Ok(message) if message.is_empty() && crate::interrupt::raised().is_some() => {
                    return Ok(Some(Received::BrokenOff));
                }
                Ok(message) => return Ok(Some(self.judge(message))),
                Err(Errno::EAGAIN) => return Ok(None),
                // What we would have sent to the other side was not read there: no end of ours.
                Err(Errno::EINTR | Errno::ECONNRESET) => {}
                Err(Errno::ENOTSOCK) => return Ok(Some(Received::BrokenOff)),
                Err(errno) => return Err(failed(errno)),
            }
        }
    }

    /// Decides what a message is, and closes all of one that is refused.
    fn judge(&self, mut message: Message) -> Received {
        if message.descriptors_cut {
            self.room.forget();
        }
        let info = match message.payload_cut {
            true => None,
            false => Info::decode(&message.payload),
        };
        // Who knows of leases says what it sends, and a lease is the end of a pipe.
        let has_lease = info.is_some()
            && matches!(&message.descriptors[..], [_, lease] if is_pipe(lease.as_fd()));
        let refusal = match message.sender {
            Some(uid) if !self.trust.allows(uid) => Some(Refusal::Sender(uid)),
            None if self.trust.is_limited() => Some(Refusal::UnknownSender),
            _ if message.descriptors_cut => Some(Refusal::DescriptorsCut),
            _ => match message.descriptors.len() {
                0 => Some(Refusal::NoDescriptor),
                1 => None,
                2 if has_lease => None,
                count => Some(Refusal::TooManyDescriptors(count)),
            },
        };
        if let Some(refusal) = refusal {
            return Received::Refused(refusal);
        }
        let mut descriptors = message.descriptors.drain(..);
        match (descriptors.next(), descriptors.next()) {
            (Some(descriptor), lease) => Received::Connection {
                descriptor,
                lease,
                info,
            },
            (None, _) => Received::Refused(Refusal::NoDescriptor),
        }
    }

    /// Whether nothing is left and nothing will come: the other side is gone and every message
    /// was taken. Takes nothing, and does not block.
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

/// Whether nothing is left in `socket`, if its other side is gone.
fn is_drained(socket: BorrowedFd<'_>) -> bool {
    // All bytes that wait; and then a message that has none, but may carry a connection.
    ioctl_fionread(socket) == Ok(0) && is_next_the_end(socket)
}

fn is_next_the_end(socket: BorrowedFd<'_>) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    loop {
        let mut buffer = [0];
        let mut buffers = [IoSliceMut::new(&mut buffer)];
        let mut control = RecvAncillaryBuffer::new(&mut []);
        match recvmsg(socket, &mut buffers, &mut control, flags) {
            // Without room for descriptors the kernel says that there are some.
            Ok(next) => return next.bytes == 0 && !next.flags.contains(ReturnFlags::CTRUNC),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNRESET) => {}
            Err(_) => return false,
        }
    }
}

/// Hands `read_end` over to who connected to `door`, without blocking.
///
/// # Errors
/// The errno of sendmsg(2).
pub(crate) fn hand_over(door: impl AsFd, read_end: impl AsFd) -> Result<(), Errno> {
    send(door, &Info::new().encode(), &[read_end.as_fd()], false)
}

/// A consumer at the door of somebody who hands out a queue.
pub(crate) struct Visit {
    door: OwnedFd,
}

impl Visit {
    /// A socket to go there with.
    pub fn new() -> Result<Self> {
        let door = unix_socket(SockType::SeqPacket)?;
        Ok(Self { door })
    }

    /// As [`Visit::new`], for one that must not block.
    pub fn without_waiting() -> Result<Self> {
        let door = unix_socket_without_waiting(SockType::SeqPacket)?;
        Ok(Self { door })
    }

    /// Goes to `name`.
    pub fn begin(&self, name: &Name, trust: &Trust) -> Result<()> {
        self.connect(&name.address()?)
            .map_err(|errno| Error::system(format!("connect to {name}"), errno))?;
        if name.is_abstract() {
            trust.check_owner(self.door.as_fd(), name)?;
        }
        Ok(())
    }

    /// Goes to an address that the caller checks.
    pub fn connect(&self, address: &UnixAddr) -> Result<(), Errno> {
        loop {
            match connect(self.door.as_raw_fd(), address) {
                Err(Errno::EINTR) => {}
                other => return other,
            }
        }
    }

    /// Takes the queue that is handed over.
    pub fn finish(&self, name: &Name) -> Result<Receiver> {
        match self.fetch() {
            Ok(Some(receiver)) => Ok(receiver),
            Ok(None) => Err(Error::Peer(format!("{name} does not hand out a queue"))),
            Err(errno) => Err(Error::system(format!("get the queue from {name}"), errno)),
        }
    }

    /// Takes what [`hand_over`] gives; `None` if the answer is no queue.
    pub fn fetch(&self) -> Result<Option<Receiver>, Errno> {
        let mut answer = loop {
            match receive(&self.door, true) {
                Err(Errno::EINTR) => {}
                other => break other?,
            }
        };
        if answer.descriptors_cut {
            // It came, and there was no number for it.
            return Err(Errno::EMFILE);
        }
        if answer.is_empty() {
            return Err(Errno::ECONNRESET);
        }
        let alone = answer.descriptors.len() == 1;
        if !alone || Info::decode(&answer.payload).is_none() {
            return Ok(None);
        }
        let Some(socket) = answer.descriptors.pop() else {
            return Ok(None);
        };
        Ok(Receiver::from_socket(socket).ok())
    }
}

impl AsFd for Visit {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.door.as_fd()
    }
}

/// The errors of a connect that mean that nobody is there yet.
pub(crate) fn is_absent(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::ENOENT | Errno::ECONNREFUSED | Errno::ECONNRESET | Errno::EAGAIN
    )
}

/// Whether a name may be worth another try: nobody is there, somebody else is, or descriptors
/// are short.
pub(crate) fn is_passing(error: &Error) -> bool {
    use Errno::{EMFILE, ENFILE, ENOBUFS, ENOMEM};
    let short = |errno| matches!(errno, EMFILE | ENFILE | ENOBUFS | ENOMEM);
    matches!(error, Error::Peer(_))
        || error
            .errno()
            .is_some_and(|errno| is_absent(errno) || short(errno))
}

/// Closes a stranger's descriptor, and what is on its way in it, if it is a Unix socket. Their
/// `SO_LINGER` could make that block for seconds, so it is turned off first; on what is no socket
/// that fails, and is not needed.
pub(crate) fn close_unread(descriptor: OwnedFd) {
    let linger = nix::libc::linger {
        l_onoff: 0,
        l_linger: 0,
    };
    let mut open = vec![descriptor];
    while let Some(descriptor) = open.pop() {
        let is_socket = setsockopt(&descriptor, sockopt::Linger, &linger).is_ok();
        let facts = is_socket
            .then(|| socket_facts(descriptor.as_fd()))
            .flatten();
        let facts = facts.filter(|facts| facts.family == Some(AddressFamily::Unix));
        let Some(facts) = facts else {
            continue;
        };
        // Nothing more is to come in behind what is taken out; and nothing blocks any more.
        let _ = shutdown(descriptor.as_raw_fd(), Shutdown::Read);
        if facts.listens {
            while let Ok(waiting) = accept_with(&descriptor, SocketFlags::CLOEXEC) {
                open.push(waiting);
            }
        }
        // An empty message of a seqpacket socket reads as its end does; a stream has none, and a
        // datagram socket no end.
        let mut ends = match facts.kind {
            Some(SockType::SeqPacket) => MAX_QUEUED,
            _ => 1,
        };
        while let Ok(mut message) = receive(&descriptor, false) {
            if message.is_empty() && facts.kind != Some(SockType::Datagram) {
                ends -= 1;
                if ends == 0 || is_drained(descriptor.as_fd()) {
                    break;
                }
            }
            open.append(&mut message.descriptors);
        }
    }
}

/// Whether `descriptor` is an end of a pipe.
fn is_pipe(descriptor: BorrowedFd<'_>) -> bool {
    file_type(descriptor) == Some(SFlag::S_IFIFO)
}

/// Blocks until `socket` is ready or a signal comes.
fn wait_for(socket: BorrowedFd<'_>, events: PollFlags) {
    let _ = wait(&mut [PollFd::from_borrowed_fd(socket, events)], None);
}

/// A new Unix socket.
pub(crate) fn unix_socket(kind: SockType) -> Result<OwnedFd> {
    make_unix_socket(kind, SockFlag::SOCK_CLOEXEC)
}

/// A new Unix socket that does not block. It is ours alone: what we share with others never is
/// made so, as it would be so for them too.
pub(crate) fn unix_socket_without_waiting(kind: SockType) -> Result<OwnedFd> {
    make_unix_socket(kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)
}

fn make_unix_socket(kind: SockType, flags: SockFlag) -> Result<OwnedFd> {
    socket(AddressFamily::Unix, kind, flags, None)
        .map_err(|errno| Error::system("make a Unix socket", errno))
}

/// A queue is a Unix socket that does not listen: connected, or a datagram one.
fn check_is_queue(socket: BorrowedFd<'_>) -> Result<()> {
    let facts = socket_facts(socket);
    if facts.is_some_and(|facts| facts.family == Some(AddressFamily::Unix) && !facts.listens) {
        return Ok(());
    }
    Err(Error::Usage(format!("{}, not a queue", describe(socket))))
}
