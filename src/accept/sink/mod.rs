//! Where an acceptor puts connections: its side of a queue, however it was made.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{Shutdown, getsockopt, shutdown, sockopt};
use nix::sys::stat::SFlag;

use crate::accept::sink::named_door::NamedDoor;
use crate::accept::sink::read_end::ReadEnd;
use crate::accept::sink::ticket_door::TicketDoor;
use crate::accept::sink::unread::{Receipts, Unread, is_told_of, waiting};
use crate::error::{Error, Result};
use crate::queue::Sender;
use crate::queue::fetch::is_passing;
use crate::queue::name::Name;
use crate::queue::rendezvous::{Rendezvous, with_advice};
use crate::queue::trust::Trust;
use crate::system::descriptor::{describe, file_type};
use crate::system::inherited;
use crate::system::log::{Log, Said, Verbosity};
use crate::system::poll::{PollFlags, Watched, ready};

mod door;
mod named_door;
mod read_end;
mod ticket_door;
mod unread;

/// The size of a pipe with tickets: one page, so that it has room for exactly one.
const ONE_PAGE: i32 = 4096;

/// What became of a connection that was to be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// It is in the queue.
    Done,
    /// There is no room: try again when the sink is writable.
    Full,
    /// It cannot be passed now, and nothing announces when it can: try again soon.
    Later,
    /// Nobody can take connections any more.
    Gone,
}

/// Connections that were accepted and that nobody can take any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Untaken {
    /// This many; 0 is how it should be.
    Exactly(usize),
    /// Some: somebody else had the read end, and is gone.
    Some,
}

/// Where connections go.
pub(crate) struct Sink {
    sender: Option<Sender>,
    unread: Unread,
    /// Consumers have gone, and may have left something unread that nobody can take any more.
    left_unread: bool,
    limit: Option<QueueLimit>,
    way: Way,
}

/// How many may be in the queue.
struct QueueLimit {
    most: usize,
    receipts: Receipts,
}

/// How the read end reaches consumers.
enum Way {
    /// A command of ours has it as its standard input.
    Chain,
    /// Whoever made the socket sees to that.
    Straight {
        /// It is our standard output: the end of who reads it is no failure.
        is_output: bool,
    },
    /// By tickets on a pipe.
    Tickets {
        pipe: File,
        door: TicketDoor,
        read_end: ReadEnd,
    },
    /// From a name of ours.
    Named { door: NamedDoor, read_end: ReadEnd },
    /// A consumer's name, to which we send.
    Remote {
        name: Name,
        trust: Trust,
        problem: Said,
    },
}

impl Sink {
    /// Into the write end of a queue whose read end a command has as its standard input.
    pub fn chain(sender: Sender) -> Self {
        Self::new(Some(sender), Way::Chain)
    }

    fn new(sender: Option<Sender>, way: Way) -> Self {
        let unread = sender
            .as_ref()
            .map(|sender| Unread::left_in(sender.as_fd()));
        Self {
            sender,
            unread: unread.unwrap_or_default(),
            left_unread: false,
            limit: None,
            way,
        }
    }

    /// The sink that the options name, or else the one that standard output is. `queue` makes the
    /// queue where it is to be ours, or finds the one that is there from before.
    ///
    /// # Errors
    /// [`Error::Invalid`] if that is nothing which can carry connections; those of [`crate::queue::owned_name::bind`].
    pub fn open(
        options: &Rendezvous,
        queue: impl FnOnce() -> Result<(Sender, OwnedFd)>,
    ) -> Result<Self> {
        let trust = Trust::us_and(&options.allow_uid);
        if let Some(name) = &options.bind {
            let (sender, read_end) = queue()?;
            let read_end = ReadEnd::new(read_end)?;
            let door = NamedDoor::open(&Name::parse(name)?, options.mode, trust)?;
            return Ok(Self::new(Some(sender), Way::Named { door, read_end }));
        }
        if let Some(name) = &options.connect {
            let name = Name::parse(name)?;
            let way = Way::Remote {
                name,
                trust,
                problem: Said::default(),
            };
            let sink = Self::new(None, way);
            sink.check()?;
            return Ok(sink);
        }
        Self::from_descriptor(options.queue_fd, queue)
    }

    fn from_descriptor(
        queue_fd: Option<RawFd>,
        queue: impl FnOnce() -> Result<(Sender, OwnedFd)>,
    ) -> Result<Self> {
        let descriptor = inherited::claim(queue_fd.unwrap_or(1))?;
        let what = describe(descriptor.as_fd());
        let problem = || match queue_fd {
            None => Error::Invalid(format!(
                "standard output is {what}, which carries no connections: pipe it into a consumer \
                 (… | fdpool 4 -- COMMAND), or give -- COMMAND, --bind or --connect"
            )),
            Some(number) => Error::Invalid(format!(
                "descriptor {number} is {what}, which carries no connections"
            )),
        };
        match file_type(descriptor.as_fd()) {
            Some(SFlag::S_IFIFO) => {
                let (sender, read_end) = queue()?;
                fcntl(&descriptor, FcntlArg::F_SETPIPE_SZ(ONE_PAGE))
                    .map_err(|errno| Error::system("make the pipe one page long", errno))?;
                let way = Way::Tickets {
                    pipe: File::from(descriptor),
                    door: TicketDoor::open()?,
                    read_end: ReadEnd::new(read_end)?,
                };
                Ok(Self::new(Some(sender), way))
            }
            Some(SFlag::S_IFSOCK) => match Sender::from_socket(descriptor) {
                Ok(sender) => {
                    let is_output = queue_fd.is_none();
                    Ok(Self::new(Some(sender), Way::Straight { is_output }))
                }
                Err(_) => Err(problem()),
            },
            _ => Err(problem()),
        }
    }

    /// Whether connections can be passed on by who we are now, or at least later. Fails now, before
    /// any client waits, if the error is permanent.
    ///
    /// # Errors
    /// [`Error::System`] or [`Error::Peer`] if they cannot.
    pub fn check(&self) -> Result<()> {
        let Way::Remote { name, trust, .. } = &self.way else {
            return Ok(());
        };
        match Sender::connect(name, trust) {
            Err(error) if !is_passing(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Gives the path that it has bound, if it has, to another user.
    ///
    /// # Errors
    /// [`Error::System`]: `EPERM` for who may not do that.
    pub fn give_to(&self, uid: u32, gid: u32) -> Result<()> {
        match &self.way {
            Way::Named { door, .. } => door.give_to(uid, gid),
            _ => Ok(()),
        }
    }

    /// From now on at most `most` connections wait in the queue.
    ///
    /// # Errors
    /// [`Error::System`] (`EMFILE` and the like).
    pub fn limit(&mut self, most: usize) -> Result<()> {
        let receipts = Receipts::new()?;
        if let Some(sender) = &self.sender {
            receipts.watch(sender)?;
        }
        self.limit = Some(QueueLimit { most, receipts });
        Ok(())
    }

    /// Whether one more may wait in the queue.
    pub fn has_room(&mut self) -> bool {
        let most = self.limit.as_ref().map(|limit| limit.most);
        most.is_none_or(|most| self.untaken() < most)
    }

    /// Whether there is no room, and nothing will tell when there is, so that it must be looked for.
    pub fn must_look_for_room(&mut self) -> bool {
        let is_full = !self.has_room();
        let sender = self.sender.as_ref().filter(|_| is_full);
        sender.is_some_and(|sender| !is_told_of(sender.as_fd()))
    }

    /// Passes `connection` on, with its lease if it has one, without blocking.
    ///
    /// # Errors
    /// [`Error::System`] if it never will be possible, also later.
    pub fn pass(
        &mut self,
        connection: BorrowedFd<'_>,
        lease: Option<BorrowedFd<'_>>,
        payload: &[u8],
        log: &Log,
    ) -> Result<Delivery> {
        if self.sender.is_none()
            && let Err(error) = self.connect()
        {
            self.say(&error, log);
            return Ok(Delivery::Later);
        }
        let Some(sender) = &self.sender else {
            return Ok(Delivery::Gone);
        };
        if let Way::Tickets { read_end, .. } | Way::Named { read_end, .. } = &mut self.way
            && read_end.fill_reserve() == Err(Errno::ETOOMANYREFS)
        {
            // The next consumer comes before the next connection.
            return Ok(Delivery::Later);
        }
        match sender.pass(connection, lease, payload) {
            Ok(()) => {
                self.unread.remember(payload.len(), sender.as_fd());
                if let Way::Remote { problem, .. } = &mut self.way {
                    problem.forget();
                }
                Ok(Delivery::Done)
            }
            Err(Errno::EAGAIN) => Ok(Delivery::Full),
            Err(Errno::ETOOMANYREFS | Errno::ENOBUFS | Errno::ENOMEM) => Ok(Delivery::Later),
            Err(errno) if is_gone(errno) => match self.way {
                // Somebody else may bind the name yet.
                Way::Remote { .. } => {
                    self.sender = None;
                    self.left_unread = true;
                    Ok(Delivery::Later)
                }
                Way::Tickets { .. } | Way::Named { .. } => Err(shut_down()),
                Way::Chain | Way::Straight { .. } => {
                    // The kernel says so once, and not again to who asks for the socket's error.
                    self.left_unread |= errno == Errno::ECONNRESET;
                    Ok(Delivery::Gone)
                }
            },
            Err(errno) => Err(Error::system("pass a connection", errno)),
        }
    }

    /// Opens the way to a consumer's name.
    fn connect(&mut self) -> Result<()> {
        if let Way::Remote { name, trust, .. } = &self.way {
            let sender = Sender::connect(name, trust)?;
            if let Some(limit) = &self.limit {
                limit.receipts.watch(&sender)?;
            }
            self.unread.start_anew();
            self.sender = Some(sender);
        }
        Ok(())
    }

    /// Says why the way to a name is not open: once, until that changes.
    fn say(&mut self, trouble: &Error, log: &Log) {
        if let Way::Remote { problem, .. } = &mut self.way {
            let text = with_advice(trouble);
            log.once(
                problem,
                Verbosity::Normal,
                format_args!("{text}; connections wait"),
            );
        }
    }

    /// What to poll: besides the consumers' side of things, the way to them, for room if
    /// `for_room`, else only for its end.
    pub fn descriptors<'fd>(
        &'fd self,
        for_room: bool,
        poll: &mut dyn FnMut(BorrowedFd<'fd>, PollFlags),
    ) {
        if let Some(sender) = &self.sender {
            poll(sender.as_fd(), for_writing(for_room));
        }
        if let Some(limit) = &self.limit {
            poll(limit.receipts.as_fd(), PollFlags::IN);
        }
        match &self.way {
            Way::Tickets { pipe, door, .. } => {
                poll(pipe.as_fd(), for_writing(door.is_ticket_due()));
                door.descriptors(poll);
            }
            Way::Named { door, .. } => door.descriptors(poll),
            _ => {}
        }
    }

    /// When [`Sink::attend`] has something to do though nothing is ready.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.way {
            Way::Tickets { door, .. } => door.deadline(),
            Way::Named { door, .. } => door.deadline(),
            _ => None,
        }
    }

    /// Gives consumers what they came for. False if nobody can take connections any more.
    ///
    /// # Errors
    /// [`Error::Peer`] if a consumer has shut down the queue that all share; [`Error::System`] if
    /// the kernel has no random bytes for a ticket.
    pub fn attend(&mut self, log: &Log) -> Result<bool> {
        if let Some(limit) = &self.limit {
            limit.receipts.forget();
        }
        let is_hung_up = self
            .sender
            .as_ref()
            .is_some_and(|sender| hung_up(sender.as_fd()));
        match &mut self.way {
            // We have its read end ourselves, so this is no end that comes by itself.
            Way::Tickets { .. } | Way::Named { .. } if is_hung_up => Err(shut_down()),
            Way::Tickets {
                pipe,
                door,
                read_end,
            } => {
                door.attend(read_end);
                offer_ticket(pipe, door)
            }
            Way::Named { door, read_end } => {
                door.attend(read_end, log);
                Ok(true)
            }
            Way::Remote { .. } => Ok(true),
            Way::Chain | Way::Straight { .. } => Ok(!is_hung_up),
        }
    }

    /// Whether a queue without consumers is a failure in itself: it is where we were given a
    /// descriptor, and is not at the end of a pipeline.
    pub fn needs_consumers(&self) -> bool {
        matches!(self.way, Way::Straight { is_output: false })
    }

    /// Closes the queue of a command of ours, which then finds its end when it has read the rest.
    pub fn end_chain(&mut self) {
        // As a close does, but what is taken still can be told.
        if let (Way::Chain, Some(sender)) = (&self.way, &self.sender) {
            let _ = shutdown(sender.as_fd().as_raw_fd(), Shutdown::Both);
        }
    }

    /// Whether everything that had to be taken from us before we may end has been taken. What was
    /// passed straight on is the consumer's already.
    pub fn is_taken(&self) -> bool {
        let own = matches!(self.way, Way::Tickets { .. } | Way::Named { .. });
        let sender = self.sender.as_ref().filter(|_| own);
        sender.is_none_or(|sender| waiting(sender.as_fd()) == 0)
    }

    /// How many connections wait in the queue.
    fn untaken(&mut self) -> usize {
        let sender = self.sender.as_ref();
        sender.map_or(0, |sender| self.unread.count(sender.as_fd()))
    }

    /// How many of ours consumers have taken; `None` if that is not known any more, since some
    /// have gone.
    pub fn taken(&mut self) -> Option<u64> {
        let sender = self.sender.as_ref().map(AsFd::as_fd);
        let taken = sender.map_or(0, |sender| self.unread.received(sender));
        (!self.left_unread).then_some(taken)
    }

    /// Gives up the queue. Returns what nobody can take any more; what a consumer still can take
    /// it will.
    pub fn give_up(mut self) -> Untaken {
        let untaken = self.untaken();
        let Some(sender) = self.sender else {
            return Untaken::Exactly(0);
        };
        match self.way {
            Way::Tickets { read_end, .. } | Way::Named { read_end, .. } => {
                drop(read_end);
                let is_lost = hung_up(sender.as_fd());
                Untaken::Exactly(if is_lost { untaken } else { 0 })
            }
            Way::Chain | Way::Straight { .. } if self.left_unread => Untaken::Some,
            Way::Chain | Way::Straight { .. } if hung_up(sender.as_fd()) => {
                // So the kernel says that something was left unread.
                match getsockopt(&sender, sockopt::SocketError) {
                    Ok(error) if error != 0 => Untaken::Some,
                    _ => Untaken::Exactly(0),
                }
            }
            _ => Untaken::Exactly(0),
        }
    }
}

/// Waits for room if `wanted`; the end is told in any case.
fn for_writing(wanted: bool) -> PollFlags {
    if wanted {
        PollFlags::OUT
    } else {
        PollFlags::empty()
    }
}

/// The errors of a send that mean that nobody is on the other side.
fn is_gone(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EPIPE | Errno::ECONNRESET | Errno::ECONNREFUSED | Errno::ENOTCONN
    )
}

fn shut_down() -> Error {
    Error::Peer("the queue was shut down by one of its consumers".into())
}

fn hung_up(descriptor: BorrowedFd<'_>) -> bool {
    ready(descriptor, PollFlags::empty()).intersects(PollFlags::HUP | PollFlags::ERR)
}

/// Writes the next ticket if nobody has left one unread. False if the pipe has no readers left.
fn offer_ticket(pipe: &mut File, door: &mut TicketDoor) -> Result<bool> {
    // Looking first, since O_NONBLOCK would be everybody's who has this pipe.
    let state = ready(pipe.as_fd(), PollFlags::OUT);
    if state.contains(PollFlags::ERR) {
        return Ok(false);
    }
    if !state.contains(PollFlags::OUT) || !door.is_ticket_due() {
        return Ok(true);
    }
    let ticket = door.issue()?;
    match pipe.write_all(ticket.encode().as_bytes()) {
        Ok(()) => Ok(true),
        // Somebody else was faster with a ticket of theirs.
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::io("write a ticket", error)),
    }
}
