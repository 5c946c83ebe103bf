//! Where an acceptor puts connections: its side of a queue, however it was made.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{Shutdown, getsockopt, shutdown, sockopt};
use nix::sys::stat::SFlag;

use crate::descriptor::{describe, file_type};
use crate::name::Name;
use crate::named_door::NamedDoor;
use crate::own_queue::OwnQueue;
use crate::queue::{Sender, is_passing};
use crate::rendezvous::Rendezvous;
use crate::report::Log;
use crate::ticket::Door;
use crate::trust::Trust;
use crate::unread::{Receipts, Unread, is_told_of, waiting};
use crate::user::User;
use crate::wait::{PollFd, PollFlags, ready};
use crate::{Error, Result, inherited};

/// The size of a pipe with tickets: one page, so that it has room for exactly one.
const ONE_PAGE: i32 = 4096;

/// What became of a connection that was to be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
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
pub enum Untaken {
    /// This many; 0 is how it should be.
    Exactly(usize),
    /// Some: somebody else had the read end, and is gone.
    Some,
}

/// Where connections go.
pub struct Sink {
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
        door: Door,
        own: OwnQueue,
    },
    /// From a name of ours.
    Named { door: NamedDoor, own: OwnQueue },
    /// A consumer's name, to which we send.
    Remote {
        name: Name,
        trust: Trust,
        problem: Option<String>,
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
    /// [`Error::Usage`] if that is nothing which can carry connections; those of [`crate::name::bind`].
    pub fn open(
        options: &Rendezvous,
        queue: impl FnOnce() -> Result<(Sender, OwnedFd)>,
    ) -> Result<Self> {
        let trust = Trust::us_and(&options.allow_uid);
        if let Some(name) = &options.bind {
            let (sender, read_end) = queue()?;
            let own = OwnQueue::new(read_end)?;
            let door = NamedDoor::open(&Name::parse(name)?, options.mode, trust)?;
            return Ok(Self::new(Some(sender), Way::Named { door, own }));
        }
        if let Some(name) = &options.connect {
            let name = Name::parse(name)?;
            let way = Way::Remote {
                name,
                trust,
                problem: None,
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
            None => Error::Usage(format!(
                "standard output is {what}, which carries no connections: pipe it into a consumer \
                 (… | fdpool 4 -- COMMAND), or give -- COMMAND, --bind or --connect"
            )),
            Some(number) => Error::Usage(format!(
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
                    door: Door::open()?,
                    own: OwnQueue::new(read_end)?,
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

    /// Whether connections can be passed on by who we are now, or at least later. What is no passing
    /// trouble is said while there is no client yet to wait for it.
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

    /// Makes the path that it has bound, if it has, that of another user.
    ///
    /// # Errors
    /// [`Error::System`]: `EPERM` for who may not do that.
    pub fn give_to(&self, user: &User) -> Result<()> {
        match &self.way {
            Way::Named { door, .. } => door.give_to(user),
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
    ) -> Result<Passed> {
        if self.sender.is_none()
            && let Err(error) = self.connect()
        {
            self.say(&error, log);
            return Ok(Passed::Later);
        }
        let Some(sender) = &self.sender else {
            return Ok(Passed::Gone);
        };
        if let Way::Tickets { own, .. } | Way::Named { own, .. } = &mut self.way
            && own.fill_ballast() == Err(Errno::ETOOMANYREFS)
        {
            // The next consumer comes before the next connection.
            return Ok(Passed::Later);
        }
        match sender.try_send(connection, lease, payload) {
            Ok(()) => {
                self.unread.remember(payload.len(), sender.as_fd());
                if let Way::Remote { problem, .. } = &mut self.way {
                    *problem = None;
                }
                Ok(Passed::Done)
            }
            Err(Errno::EAGAIN) => Ok(Passed::Full),
            Err(Errno::ETOOMANYREFS | Errno::ENOBUFS | Errno::ENOMEM) => Ok(Passed::Later),
            Err(errno) if is_gone(errno) => match self.way {
                // Somebody else may bind the name yet.
                Way::Remote { .. } => {
                    self.sender = None;
                    self.left_unread = true;
                    Ok(Passed::Later)
                }
                Way::Tickets { .. } | Way::Named { .. } => Err(shut_down()),
                Way::Chain | Way::Straight { .. } => {
                    // The kernel says so once, and not again to who asks for the socket's error.
                    self.left_unread |= errno == Errno::ECONNRESET;
                    Ok(Passed::Gone)
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
            let text = trouble.to_string();
            if problem.as_ref() != Some(&text) {
                log.notice(format_args!("{text}; connections wait"));
                *problem = Some(text);
            }
        }
    }

    /// What to poll: besides the consumers' side of things, the way to them, for room if
    /// `for_room`, else only for its end.
    pub(crate) fn watch(&self, for_room: bool) -> Vec<PollFd<'_>> {
        let mut fds = Vec::with_capacity(3);
        if let Some(sender) = &self.sender {
            let room = match for_room {
                true => PollFlags::OUT,
                false => PollFlags::empty(),
            };
            fds.push(PollFd::from_borrowed_fd(sender.as_fd(), room));
        }
        let receipts = self.limit.iter().map(|limit| limit.receipts.as_fd());
        fds.extend(receipts.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        match &self.way {
            Way::Tickets { pipe, door, .. } => {
                let room = match door.is_ticket_due() {
                    true => PollFlags::OUT,
                    false => PollFlags::empty(),
                };
                fds.push(PollFd::from_borrowed_fd(pipe.as_fd(), room));
                let doors = door.descriptors();
                fds.extend(doors.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            }
            Way::Named { door, .. } => {
                let doors = door.descriptor().into_iter();
                fds.extend(doors.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            }
            _ => {}
        }
        fds
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
            Way::Tickets { pipe, door, own } => {
                door.attend(|consumer| own.hand_over(consumer));
                offer_ticket(pipe, door)
            }
            Way::Named { door, own } => {
                door.attend(own, log);
                Ok(true)
            }
            Way::Remote { .. } => Ok(true),
            Way::Chain | Way::Straight { .. } => Ok(!is_hung_up),
        }
    }

    /// Whether the read end belongs to a command of ours, which ends when the queue does.
    pub fn is_chain(&self) -> bool {
        matches!(self.way, Way::Chain)
    }

    /// Whether a queue without consumers is a failure in itself: it is where we were given a
    /// descriptor, and is not at the end of a pipeline.
    pub fn needs_consumers(&self) -> bool {
        matches!(self.way, Way::Straight { is_output: false })
    }

    /// Closes the queue: who reads the rest of it then finds its end.
    pub fn close(&mut self) {
        // As a close does, but what is taken still can be told.
        if let Some(sender) = &self.sender {
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
            Way::Tickets { own, .. } | Way::Named { own, .. } => {
                drop(own);
                match hung_up(sender.as_fd()) {
                    true => Untaken::Exactly(untaken),
                    false => Untaken::Exactly(0),
                }
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
fn offer_ticket(pipe: &mut File, door: &mut Door) -> Result<bool> {
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
