//! fdaccept's side of a queue, of whatever kind.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::rlim_t;
use nix::sys::socket::{Shutdown, SockType, shutdown};
use nix::sys::stat::SFlag;

use crate::accept::sink::named_door::NamedDoor;
use crate::accept::sink::read_end::ReadEnd;
use crate::accept::sink::reserve::Reserve;
use crate::accept::sink::stuck::{InFlightLimit, Stuck, Words, is_shortage};
use crate::accept::sink::ticket_door::{IN_VAIN, TicketDoor};
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
use crate::system::unix_socket;

mod door;
mod named_door;
mod read_end;
mod refusals;
mod reserve;
mod stuck;
mod ticket_door;
mod unread;

/// The size of a pipe for tickets: 1 page, which has room for exactly 1 ticket.
const ONE_PAGE: i32 = 4096;

/// How long processes may keep the read end after the consumers have gone. A slot closes it when its
/// pool has ended, which is a moment later.
const LETTING_GO: Duration = Duration::from_secs(1);
/// How often to look whether they have closed it, since nothing announces that.
const LET_GO: Duration = Duration::from_millis(5);

/// What became of an attempt to pass a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// The connection is in the queue.
    Done,
    /// No room: try again when the sink is writable.
    Full,
    /// Not now, and no event tells when: try again soon.
    Later,
    /// No consumer is left.
    Gone,
}

/// Accepted connections that no consumer takes any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Untaken {
    Exactly(usize),
    /// The processes with the read end are gone, and so is what they had not taken: so many connections
    /// at the last look.
    AtMost(usize),
}

pub(crate) struct Sink {
    sender: Option<Sender>,
    unread: Unread,
    /// The owner of a name is gone, and connections that it has not received may be lost.
    left_unread: bool,
    limit: Option<QueueLimit>,
    /// At the last look as many waited as may.
    is_at_limit: bool,
    /// The kernel took no more at the last try.
    is_refused: bool,
    in_flight_limit: InFlightLimit,
    /// How many descriptors a message of ours carries.
    carried: usize,
    passing: Stuck,
    handing_out: Stuck,
    way: Way,
}

struct QueueLimit {
    most: usize,
    receipts: Receipts,
}

/// How the read end reaches consumers.
enum Way {
    /// As the standard input of our command.
    Chain {
        /// The service manager has the read end as well, for the next command.
        is_kept: bool,
    },
    /// We inherited the socket, and its maker hands out the read end.
    Straight {
        /// The socket is standard output, so the end of its reader is no failure.
        is_output: bool,
    },
    /// By tickets on a pipe.
    Tickets {
        pipe: File,
        door: TicketDoor,
        read_end: ReadEnd,
    },
    /// From a name that we own.
    Named { door: NamedDoor, read_end: ReadEnd },
    /// A consumer owns the name, and we send to it.
    Remote {
        name: Name,
        trust: Trust,
        problem: Said,
        /// For a connect while clients have all other descriptors: the socket itself, and one to
        /// ask whose an abstract name is.
        reserve: Reserve<2>,
    },
}

impl Sink {
    /// A queue whose read end is the standard input of a command. `is_kept`: the service manager keeps
    /// the queue for the next command.
    pub fn chain(sender: Sender, is_kept: bool) -> Self {
        Self::new(Some(sender), Way::Chain { is_kept })
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
            is_at_limit: false,
            is_refused: false,
            in_flight_limit: InFlightLimit::get(),
            carried: 1,
            passing: Stuck::new(Words {
                action: "pass a connection",
                waiting: "connections wait",
                again: "connections are passed again",
            }),
            handing_out: Stuck::new(Words {
                action: "hand out the queue",
                waiting: "consumers wait",
                again: "the queue is handed out again",
            }),
            way,
        }
    }

    /// The sink that the options name, or else standard output. `queue` makes our own queue, or
    /// takes the queue that the service manager has kept.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the descriptor cannot carry connections; see also
    /// [`crate::queue::owned_name::bind`].
    pub fn open(
        options: &Rendezvous,
        queue: impl FnOnce() -> Result<(Sender, OwnedFd)>,
    ) -> Result<Self> {
        let trust = Trust::us_and(&options.allow_uid);
        if let Some(name) = &options.bind {
            let (sender, read_end) = queue()?;
            let read_end = ReadEnd::new(read_end)?;
            let door = NamedDoor::open(&Name::parse(name)?, options.access, trust)?;
            return Ok(Self::new(Some(sender), Way::Named { door, read_end }));
        }
        if let Some(name) = &options.connect {
            let name = Name::parse(name)?;
            let mut reserve = Reserve::default();
            reserve.fill(another_socket);
            let way = Way::Remote {
                name,
                trust,
                problem: Said::default(),
                reserve,
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

    /// Whether the current user can pass connections, now or later. Fails now, before any client
    /// waits, if the error is permanent.
    ///
    /// # Errors
    /// [`Error::System`] if the error is permanent.
    pub fn check(&self) -> Result<()> {
        let Way::Remote { name, trust, .. } = &self.way else {
            return Ok(());
        };
        match Sender::connect(name, trust) {
            Err(error) if !is_passing(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// From now on at most `most` connections wait in the queue.
    pub fn limit(&mut self, most: usize) -> Result<()> {
        let receipts = Receipts::new()?;
        if let Some(sender) = &self.sender {
            receipts.watch(sender)?;
        }
        self.limit = Some(QueueLimit { most, receipts });
        Ok(())
    }

    /// Whether the limit lets another connection into the queue.
    pub fn has_room(&mut self) -> bool {
        let Some(most) = self.limit.as_ref().map(|limit| limit.most) else {
            return true;
        };
        self.is_at_limit = self.untaken() >= most;
        !self.is_at_limit
    }

    /// Whether the queue had no room when a connection was last passed, or room last looked for.
    pub fn is_full(&self) -> bool {
        self.is_at_limit || self.is_refused
    }

    /// Whether to look for room at intervals: there is none, and no event will tell when there is.
    pub fn must_look_for_room(&mut self) -> bool {
        let is_full = !self.has_room();
        let sender = self.sender.as_ref().filter(|_| is_full);
        sender.is_some_and(|sender| !is_told_of(sender.as_fd()))
    }

    /// Passes `connection`, with its lease if it has one, without blocking.
    ///
    /// # Errors
    /// [`Error::Peer`] if a consumer has shut down our queue; [`Error::System`] for a permanent
    /// error.
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
        self.carried = 1 + usize::from(lease.is_some());
        let reserved = match &mut self.way {
            Way::Tickets { read_end, .. } | Way::Named { read_end, .. } => read_end.fill_reserve(),
            _ => Ok(()),
        };
        let sent = match reserved {
            // Waits, or else the next consumer could not get the read end.
            Err(errno) if is_shortage(errno) => Err(errno),
            _ => sender.pass(connection, lease, payload),
        };
        match sent {
            Ok(()) => {
                self.is_refused = false;
                self.unread.remember(payload.len(), sender.as_fd());
                self.passing.works(log);
                if let Way::Remote { problem, .. } = &mut self.way {
                    problem.forget();
                }
                Ok(Delivery::Done)
            }
            Err(Errno::EAGAIN) => {
                self.is_refused = true;
                Ok(Delivery::Full)
            }
            Err(errno) if is_shortage(errno) => {
                let others = self.others_in_flight();
                // The messages of our own queue are all that the kernel allows.
                self.is_refused |= errno == Errno::ETOOMANYREFS && others == 0;
                self.passing.fails(errno, others, log);
                Ok(Delivery::Later)
            }
            Err(errno) if is_gone(errno) => match self.way {
                // Another consumer may bind the name later.
                Way::Remote { .. } => {
                    self.sender = None;
                    self.left_unread = true;
                    Ok(Delivery::Later)
                }
                Way::Tickets { .. } | Way::Named { .. } => Err(shut_down()),
                Way::Chain { .. } | Way::Straight { .. } => {
                    if errno == Errno::ECONNRESET {
                        self.unread.lose();
                    }
                    Ok(Delivery::Gone)
                }
            },
            Err(errno) => Err(Error::system("pass a connection", errno)),
        }
    }

    fn connect(&mut self) -> Result<()> {
        if let Way::Remote {
            name,
            trust,
            reserve,
            ..
        } = &mut self.way
        {
            reserve.give_up();
            let connected = Sender::connect(name, trust);
            reserve.fill(another_socket);
            let sender = connected?;
            if let Some(limit) = &self.limit {
                limit.receipts.watch(&sender)?;
            }
            self.unread.start_anew();
            self.sender = Some(sender);
        }
        Ok(())
    }

    /// Logs why a consumer's name cannot be reached: once, until that changes.
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

    /// Polls the doors for consumers, and the queue for room if `for_room`, else only for its end.
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

    /// When [`Sink::attend`] is due without an event.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.way {
            Way::Tickets { door, .. } => door.deadline(),
            Way::Named { door, .. } => door.deadline(),
            _ => None,
        }
    }

    /// Serves consumers that come for the read end. False if no consumer is left.
    ///
    /// # Errors
    /// [`Error::Peer`] if a consumer has shut down the shared queue; [`Error::System`] if the
    /// kernel has no random bytes for a ticket.
    pub fn attend(&mut self, log: &Log) -> Result<bool> {
        if let Some(limit) = &self.limit {
            limit.receipts.forget();
        }
        let is_hung_up = self
            .sender
            .as_ref()
            .is_some_and(|sender| hung_up(sender.as_fd()));
        let is_there = match &mut self.way {
            // We hold the read end ourselves, so only a consumer's shutdown(2) can hang up.
            Way::Tickets { .. } | Way::Named { .. } if is_hung_up => Err(shut_down()),
            Way::Tickets {
                pipe,
                door,
                read_end,
            } => {
                door.attend(read_end, log);
                let is_read = offer_ticket(pipe, door);
                if door.is_misread() {
                    log.warning(format_args!(
                        "{IN_VAIN} tickets were read and none was redeemed: does the reader of \
                         the pipe understand them? Did you mean | fdpool N -- COMMAND?"
                    ));
                }
                is_read
            }
            Way::Named { door, read_end } => {
                door.attend(read_end, log);
                Ok(true)
            }
            Way::Remote { .. } => Ok(true),
            Way::Chain { .. } | Way::Straight { .. } => Ok(!is_hung_up),
        };
        self.tell_handing_out(log);
        is_there
    }

    /// Logs it if consumers cannot get the read end.
    fn tell_handing_out(&mut self, log: &Log) {
        let Some(read_end) = self.read_end() else {
            return;
        };
        match read_end.shortage() {
            Some(errno) => {
                let others = self.others_in_flight();
                self.handing_out.fails(errno, others, log);
            }
            None => self.handing_out.works(log),
        }
    }

    /// How many consumers were refused at our door.
    pub fn refused(&self) -> u64 {
        match &self.way {
            Way::Tickets { door, .. } => door.refused(),
            Way::Named { door, .. } => door.refused(),
            _ => 0,
        }
    }

    /// The read end that we hand out.
    fn read_end(&self) -> Option<&ReadEnd> {
        match &self.way {
            Way::Tickets { read_end, .. } | Way::Named { read_end, .. } => Some(read_end),
            _ => None,
        }
    }

    /// After `ETOOMANYREFS`: how many descriptors other processes of this user have in flight, at
    /// least.
    fn others_in_flight(&mut self) -> rlim_t {
        let reserved = self.read_end().map_or(0, ReadEnd::in_flight);
        let own = self.untaken() * self.carried + reserved;
        self.in_flight_limit.others(own)
    }

    /// Whether the loss of all consumers is a failure: yes for `--queue-fd`, no for standard
    /// output, which ends with its pipeline.
    pub fn needs_consumers(&self) -> bool {
        matches!(self.way, Way::Straight { is_output: false })
    }

    /// Closes the queue of our command: the command reads the rest, and then the end.
    pub fn end_chain(&mut self) {
        // Unlike close(2), shutdown(2) lets us still count what consumers take.
        if let (Way::Chain { .. }, Some(sender)) = (&self.way, &self.sender) {
            let _ = shutdown(sender.as_fd().as_raw_fd(), Shutdown::Both);
        }
    }

    /// Whether fdaccept may end: its own queue is empty. Connections in an inherited queue belong
    /// to the consumers already.
    pub fn is_taken(&self) -> bool {
        let own = matches!(self.way, Way::Tickets { .. } | Way::Named { .. });
        let sender = self.sender.as_ref().filter(|_| own);
        sender.is_none_or(|sender| waiting(sender.as_fd()) == 0)
    }

    /// Counts what waits in a queue that may be lost with its consumers, since it cannot be counted then.
    pub fn look(&mut self) {
        if matches!(self.way, Way::Chain { .. } | Way::Straight { .. }) {
            self.untaken();
        }
    }

    /// How many connections a stop waits for: those in a queue that we were given are their consumers'.
    pub fn awaited(&mut self) -> usize {
        match self.way {
            Way::Chain { .. } | Way::Tickets { .. } | Way::Named { .. } => self.untaken(),
            Way::Straight { .. } | Way::Remote { .. } => 0,
        }
    }

    /// How many connections wait in the queue.
    fn untaken(&mut self) -> usize {
        let sender = self.sender.as_ref();
        sender.map_or(0, |sender| self.unread.count(sender.as_fd()))
    }

    /// How many of our connections consumers have taken; `None` if some may be lost.
    pub fn taken(&mut self) -> Option<u64> {
        let sender = self.sender.as_ref().map(AsFd::as_fd);
        let taken = sender.map_or(0, |sender| self.unread.received(sender));
        (!self.left_unread).then_some(taken)
    }

    /// Gives up the queue. Returns what no consumer takes any more, and how many connections were
    /// taken, if known. What is neither stays in the queue for its consumers.
    pub fn give_up(mut self) -> (Untaken, Option<u64>) {
        let taken = self.taken();
        let nobody_comes = self.nobody_comes();
        let sender = match self.sender {
            Some(sender) if !matches!(self.way, Way::Remote { .. }) => sender,
            _ => return (Untaken::Exactly(0), taken),
        };
        self.unread.count(sender.as_fd());
        let mut is_counted = !self.unread.is_lost(sender.as_fd());
        // Without our own read end, the kernel reports that nobody has one.
        drop(self.way);
        let until = Instant::now() + LETTING_GO;
        let (untaken, waiting) = loop {
            let waiting = self.unread.count(sender.as_fd());
            if self.unread.is_lost(sender.as_fd()) {
                let untaken = if is_counted {
                    Untaken::Exactly(waiting)
                } else {
                    Untaken::AtMost(waiting)
                };
                break (untaken, waiting);
            }
            is_counted = true;
            if waiting == 0 || !nobody_comes {
                break (Untaken::Exactly(0), waiting);
            }
            if until <= Instant::now() {
                break (Untaken::Exactly(waiting), waiting);
            }
            std::thread::sleep(LET_GO);
        };
        let is_known = matches!(untaken, Untaken::Exactly(_));
        let taken = is_known.then(|| self.unread.sent().saturating_sub(waiting as u64));
        (untaken, taken)
    }

    /// Whether our consumers have gone. A process that still has the read end then, such as a worker
    /// that finishes its last connection, takes no more.
    fn nobody_comes(&self) -> bool {
        match &self.way {
            // We give up the queue of a command when the command has ended.
            Way::Chain { is_kept } => !is_kept,
            Way::Tickets { pipe, .. } => {
                ready(pipe.as_fd(), PollFlags::OUT).contains(PollFlags::ERR)
            }
            Way::Straight { .. } | Way::Named { .. } | Way::Remote { .. } => false,
        }
    }
}

/// A socket for the reserve.
fn another_socket() -> Result<OwnedFd> {
    unix_socket::new(SockType::Datagram)
}

/// Polls for room if `wanted`, else only for the end.
fn for_writing(wanted: bool) -> PollFlags {
    if wanted {
        PollFlags::OUT
    } else {
        PollFlags::empty()
    }
}

/// Whether this errno of a send means that nobody has the other end.
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

/// Writes a ticket if due and the last ticket was read. False if the pipe has no reader left.
fn offer_ticket(pipe: &mut File, door: &mut TicketDoor) -> Result<bool> {
    // Polls first: O_NONBLOCK would affect every process with this pipe.
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
        // Another acceptor was faster with its ticket.
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::io("write a ticket", error)),
    }
}
