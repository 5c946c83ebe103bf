//! Where an acceptor puts connections: its side of a queue, however it was made.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{Backlog, SockType, getsockopt, listen, sockopt};
use nix::sys::stat::SFlag;
use rustix::net::{SocketFlags, accept_with};

use crate::ballast::Ballast;
use crate::descriptor::{describe, file_type};
use crate::name::{self, Name, OwnedName};
use crate::queue::{self, Sender, close_unread, hand_over, is_passing};
use crate::rendezvous::Rendezvous;
use crate::report::Log;
use crate::ticket::Door;
use crate::trust::Trust;
use crate::wait::{PollFd, PollFlags, ready};
use crate::{Error, Result, inherited};

/// How long a door stays shut when descriptors are short.
const PAUSE: Duration = Duration::from_millis(250);
/// Consumers that are let in before something else has its turn.
const TURN: usize = 16;
/// Refusals that are logged, each once.
const REFUSALS: usize = 64;
/// The size of a pipe with tickets: one page, so that it has room for exactly one.
const ONE_PAGE: i32 = 4096;
/// Messages whose lengths are remembered: more than a queue holds.
const REMEMBERED: usize = 4096;

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
    /// Some: the queue was somebody else's, and its read end is gone.
    Some,
    /// Nobody knows: the queue was closed for a command to finish.
    Unknown,
}

/// Where connections go.
pub struct Sink {
    sender: Option<Sender>,
    way: Way,
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
    /// A queue for a command that will have the read end, which is returned, as its standard
    /// input.
    ///
    /// # Errors
    /// [`Error::System`] (`EMFILE` and the like).
    pub fn chain() -> Result<(Self, OwnedFd)> {
        let (sender, read_end) = queue::ends()?;
        let sink = Self {
            sender: Some(sender),
            way: Way::Chain,
        };
        Ok((sink, read_end))
    }

    /// The sink that the options name, or else the one that standard output is.
    ///
    /// # Errors
    /// [`Error::Usage`] if that is nothing which can carry connections; those of [`name::bind`].
    pub fn open(options: &Rendezvous) -> Result<Self> {
        let trust = Trust::us_and(&options.allow_uid);
        if let Some(name) = &options.bind {
            let (sender, own) = OwnQueue::new()?;
            let door = NamedDoor::open(&Name::parse(name)?, options.mode, trust)?;
            return Ok(Self {
                sender: Some(sender),
                way: Way::Named { door, own },
            });
        }
        if let Some(name) = &options.connect {
            let name = Name::parse(name)?;
            // What is no passing trouble is said now, while there is no client yet to wait for it.
            match Sender::connect(&name, &trust) {
                Err(error) if !is_passing(&error) => return Err(error),
                _ => {}
            }
            return Ok(Self {
                sender: None,
                way: Way::Remote {
                    name,
                    trust,
                    problem: None,
                },
            });
        }
        Self::from_descriptor(options.queue_fd)
    }

    fn from_descriptor(queue_fd: Option<RawFd>) -> Result<Self> {
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
                let (sender, own) = OwnQueue::new()?;
                fcntl(&descriptor, FcntlArg::F_SETPIPE_SZ(ONE_PAGE))
                    .map_err(|errno| Error::system("make the pipe one page long", errno))?;
                Ok(Self {
                    sender: Some(sender),
                    way: Way::Tickets {
                        pipe: File::from(descriptor),
                        door: Door::open()?,
                        own,
                    },
                })
            }
            Some(SFlag::S_IFSOCK) => match Sender::from_socket(descriptor) {
                Ok(sender) => Ok(Self {
                    sender: Some(sender),
                    way: Way::Straight {
                        is_output: queue_fd.is_none(),
                    },
                }),
                Err(_) => Err(problem()),
            },
            _ => Err(problem()),
        }
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
            && own.ballast.fill() == Err(Errno::ETOOMANYREFS)
        {
            // The next consumer comes before the next connection.
            return Ok(Passed::Later);
        }
        match sender.try_send(connection, lease, payload) {
            Ok(()) => {
                match &mut self.way {
                    Way::Tickets { own, .. } | Way::Named { own, .. } => {
                        own.remember(payload.len());
                    }
                    Way::Remote { problem, .. } => *problem = None,
                    Way::Chain | Way::Straight { .. } => {}
                }
                Ok(Passed::Done)
            }
            Err(Errno::EAGAIN) => Ok(Passed::Full),
            Err(Errno::ETOOMANYREFS | Errno::ENOBUFS | Errno::ENOMEM) => Ok(Passed::Later),
            Err(errno) if is_gone(errno) => match self.way {
                // Somebody else may bind the name yet.
                Way::Remote { .. } => {
                    self.sender = None;
                    Ok(Passed::Later)
                }
                Way::Tickets { .. } | Way::Named { .. } => Err(shut_down()),
                Way::Chain | Way::Straight { .. } => Ok(Passed::Gone),
            },
            Err(errno) => Err(Error::system("pass a connection", errno)),
        }
    }

    /// Opens the way to a consumer's name.
    fn connect(&mut self) -> Result<()> {
        if let Way::Remote { name, trust, .. } = &self.way {
            self.sender = Some(Sender::connect(name, trust)?);
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
            Way::Named { door, .. } if door.shut_until.is_none() => {
                fds.push(PollFd::from_borrowed_fd(
                    door.listener.as_fd(),
                    PollFlags::IN,
                ));
            }
            _ => {}
        }
        fds
    }

    /// When [`Sink::attend`] has something to do though nothing is ready.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.way {
            Way::Tickets { door, .. } => door.deadline(),
            Way::Named { door, .. } => door.shut_until,
            _ => None,
        }
    }

    /// Gives consumers what they came for. False if nobody can take connections any more.
    ///
    /// # Errors
    /// [`Error::Peer`] if a consumer has shut down the queue that all share; [`Error::System`] if
    /// the kernel has no random bytes for a ticket.
    pub fn attend(&mut self, log: &Log) -> Result<bool> {
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

    /// Closes the write end: who reads the rest of the queue then finds its end.
    pub fn close(&mut self) {
        self.sender = None;
    }

    /// Whether everything that had to be taken from us before we may end has been taken. What was
    /// passed straight on is the consumer's already.
    pub fn is_taken(&self) -> bool {
        match &self.way {
            Way::Tickets { own, .. } | Way::Named { own, .. } => own.untaken() == 0,
            _ => true,
        }
    }

    /// How many connections nobody has taken, where that can be told.
    pub fn untaken(&self) -> Option<usize> {
        match &self.way {
            Way::Tickets { own, .. } | Way::Named { own, .. } => Some(own.untaken()),
            _ => None,
        }
    }

    /// Gives up the queue. Returns what nobody can take any more; what a consumer still can take
    /// it will.
    pub fn give_up(self) -> Untaken {
        match (self.way, self.sender) {
            (Way::Tickets { own, .. } | Way::Named { own, .. }, Some(sender)) => {
                let untaken = own.untaken();
                drop(own);
                match hung_up(sender.as_fd()) {
                    true => Untaken::Exactly(untaken),
                    false => Untaken::Exactly(0),
                }
            }
            (Way::Chain | Way::Straight { .. }, Some(sender)) if hung_up(sender.as_fd()) => {
                // So the kernel says that something was left unread.
                match getsockopt(&sender, sockopt::SocketError) {
                    Ok(error) if error != 0 => Untaken::Some,
                    _ => Untaken::Exactly(0),
                }
            }
            (Way::Chain, None) => Untaken::Unknown,
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

/// A queue of ours, whose read end we keep to hand it out.
struct OwnQueue {
    read_end: OwnedFd,
    ballast: Ballast,
    /// The lengths of the last messages that were sent, the newest last.
    lengths: VecDeque<usize>,
}

impl OwnQueue {
    fn new() -> Result<(Sender, Self)> {
        let (sender, read_end) = queue::ends()?;
        let own = Self {
            read_end,
            ballast: Ballast::new()?,
            lengths: VecDeque::new(),
        };
        Ok((sender, own))
    }

    /// Hands the read end to a consumer, also where too much is on its way to send anything else.
    fn hand_over(&mut self, consumer: BorrowedFd<'_>) -> Result<(), Errno> {
        loop {
            match hand_over(consumer, self.read_end.as_fd()) {
                Err(Errno::ETOOMANYREFS) if self.ballast.throw_off() => {}
                other => return other,
            }
        }
    }

    fn remember(&mut self, length: usize) {
        if self.lengths.len() == REMEMBERED {
            self.lengths.pop_front();
        }
        self.lengths.push_back(length);
    }

    /// How many messages nobody has taken. The kernel tells how many bytes wait; as messages are
    /// taken in order, these are those of the newest ones.
    fn untaken(&self) -> usize {
        let waiting = rustix::io::ioctl_fionread(self.read_end.as_fd()).unwrap_or_default();
        let mut bytes = 0;
        let newest_first = self.lengths.iter().rev();
        newest_first
            .take_while(|length| {
                let is_waiting = bytes < waiting;
                bytes += **length as u64;
                is_waiting
            })
            .count()
    }
}

/// A name where consumers fetch the read end.
struct NamedDoor {
    listener: OwnedFd,
    name: OwnedName,
    trust: Trust,
    shut_until: Option<Instant>,
    /// What was said of consumers that were refused.
    refused: BTreeSet<String>,
}

impl NamedDoor {
    fn open(name: &Name, mode: Option<u32>, trust: Trust) -> Result<Self> {
        let listener = queue::unix_socket_without_waiting(SockType::SeqPacket)?;
        let owned = name::bind(listener.as_fd(), name, mode)?;
        listen(&listener, Backlog::MAXCONN)
            .map_err(|errno| Error::system(format!("listen on {name}"), errno))?;
        Ok(Self {
            listener,
            name: owned,
            trust,
            shut_until: None,
            refused: BTreeSet::new(),
        })
    }

    /// Hands the read end to everybody who is there and may have it.
    fn attend(&mut self, own: &mut OwnQueue, log: &Log) {
        let now = Instant::now();
        if self.shut_until.is_some_and(|until| now < until) {
            return;
        }
        self.shut_until = None;
        // A crowd at the door must not keep us from everything else.
        for _ in 0..TURN {
            match accept_with(&self.listener, SocketFlags::CLOEXEC) {
                Ok(consumer) => {
                    self.serve(&consumer, own, log);
                    close_unread(consumer);
                }
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                // Descriptors are short: consumers wait a little.
                Err(_) => {
                    self.shut_until = Some(now + PAUSE);
                    return;
                }
            }
        }
    }

    fn serve(&mut self, consumer: &OwnedFd, own: &mut OwnQueue, log: &Log) {
        let name = self.name.name();
        if name.is_abstract()
            && let Err(error) = self.trust.check_owner(consumer.as_fd(), name)
        {
            // Once for each: who is refused may come again as often as it likes.
            let refusal = error.to_string();
            if self.refused.len() < REFUSALS && self.refused.insert(refusal.clone()) {
                log.error(format_args!("a consumer was refused: {refusal}"));
            }
            return;
        }
        // One that gets nothing, since too much of ours is on its way, sees the end and comes
        // again.
        let _ = own.hand_over(consumer.as_fd());
    }
}
