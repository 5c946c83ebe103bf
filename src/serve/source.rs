//! Where a consumer gets its queue.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::stat::SFlag;

use crate::error::{Error, Result};
use crate::queue::Receiver;
use crate::queue::fetch::{Visit, is_absent};
use crate::queue::name::Name;
use crate::queue::rendezvous::Rendezvous;
use crate::queue::ticket::{self, Redeemed};
use crate::queue::trust::Trust;
use crate::system::descriptor::{describe, file_type};
use crate::system::heartbeat::Heartbeat;
use crate::system::poll::{PollFlags, wait_for};
use crate::system::{inherited, interrupt};

const WAIT: &str = "wait for a ticket";

pub(crate) enum Source {
    /// The queue itself, inherited or bound. It can be taken once.
    Queue(Option<Receiver>),
    /// A pipe with tickets.
    Tickets(OwnedFd),
    /// A name whose owner hands out the queue.
    Named {
        name: Name,
        /// The trusted owners of the name.
        trust: Trust,
    },
}

pub(crate) enum Found {
    Queue(Receiver),
    /// The queue has ended, and there will be no other one.
    End,
    /// The pipe has ended without a ticket: there never was a queue.
    NoTicket,
    /// A signal interrupted the wait ([`crate::system::interrupt`]).
    Interrupted,
}

impl Source {
    /// Finds the source of the queue; binds the name of `--bind`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a descriptor cannot be the source of a queue; those of
    /// [`Receiver::bind_for`].
    pub fn open(options: &Rendezvous) -> Result<Self> {
        let trust = Trust::us_and(&options.allow_uid);
        if let Some(name) = &options.connect {
            let name = Name::parse(name)?;
            return Ok(Source::Named { name, trust });
        }
        if let Some(name) = &options.bind {
            let receiver = Receiver::bind_for(&Name::parse(name)?, options.access, trust)?;
            return Ok(Source::Queue(Some(receiver)));
        }
        let number = options.queue_fd.unwrap_or(0);
        let descriptor = inherited::claim(number)?;
        let what = || match options.queue_fd {
            None => format!(
                "standard input is {}, not a queue: run this behind fdaccept (fdaccept ADDRESS | …), \
                 or give --connect, --bind or --queue-fd",
                describe(descriptor.as_fd())
            ),
            Some(number) => format!(
                "descriptor {number} is {}, not a queue",
                describe(descriptor.as_fd())
            ),
        };
        match file_type(descriptor.as_fd()) {
            Some(SFlag::S_IFIFO) => Ok(Source::Tickets(descriptor)),
            Some(SFlag::S_IFSOCK) => {
                let problem = what();
                match Receiver::from_socket(descriptor) {
                    Err(Error::Invalid(_)) => Err(Error::Invalid(problem)),
                    other => Ok(Source::Queue(Some(other?))),
                }
            }
            _ => Err(Error::Invalid(what())),
        }
    }

    /// Waits until the pipe has a ticket, and keeps `heartbeat` going meanwhile. [`Source::queue`]
    /// may still wait, if another consumer is faster.
    ///
    /// # Errors
    /// [`Error::System`] (`EMFILE`).
    pub fn await_ticket(&self, heartbeat: &mut Heartbeat) -> Result<()> {
        let Source::Tickets(pipe) = self else {
            return Ok(());
        };
        // A copy, so that a signal does not replace the pipe itself.
        let pipe = pipe.try_clone();
        let pipe = pipe.map_err(|error| Error::io(WAIT, error))?;
        let _watch = interrupt::watch(pipe.as_fd());
        loop {
            heartbeat.attend();
            let until = Some(heartbeat.deadline());
            let state = wait_for(pipe.as_fd(), PollFlags::IN, until)
                .map_err(|errno| Error::system(WAIT, errno))?;
            if !state.is_empty() {
                return Ok(());
            }
        }
    }

    /// Waits for the queue.
    ///
    /// # Errors
    /// [`Error::System`] with `ENOENT` or `ECONNREFUSED` if nobody owns the name; [`Error::Closed`]
    /// if the door of the tickets cannot be reached from here; [`Error::Untrusted`] or
    /// [`Error::Peer`] if the other side is not trusted, or if the pipe gives no ticket or a void
    /// one.
    pub fn queue(&mut self) -> Result<Found> {
        match self {
            Source::Queue(receiver) => Ok(receiver.take().map_or(Found::End, Found::Queue)),
            Source::Tickets(pipe) => queue_for_ticket(pipe),
            Source::Named { name, trust } => match Receiver::connect(name, trust) {
                Ok(receiver) => Ok(Found::Queue(receiver)),
                Err(error) if error.errno() == Some(Errno::ENOTSOCK) => Ok(Found::Interrupted),
                Err(error) => Err(error),
            },
        }
    }

    /// Whether an errno of [`Source::queue`] means that nobody owns the name.
    pub fn is_absent(&self, errno: Errno) -> bool {
        matches!(self, Source::Named { .. }) && is_absent(errno)
    }

    /// Begins to fetch the queue from a name. The visit's descriptor is readable once the answer is
    /// there.
    pub(crate) fn visit(name: &Name, trust: &Trust) -> Result<Visit> {
        let visit = Visit::new_nonblocking()?;
        visit.begin(name, trust)?;
        Ok(visit)
    }
}

/// Takes tickets from the pipe until one gives the queue. A ticket may be void, or of an fdaccept
/// that is gone; then another ticket may follow, or the end of the pipe.
fn queue_for_ticket(pipe: &OwnedFd) -> Result<Found> {
    let mut worthless = None;
    let mut shut = Vec::new();
    loop {
        let Some(ticket) = next_ticket(pipe)? else {
            return match interrupt::raised() {
                Some(_) => Ok(Found::Interrupted),
                None if shut.is_empty() && worthless.is_none() => Ok(Found::NoTicket),
                None => worthless.map_or(Ok(Found::End), Err),
            };
        };
        let problem = match ticket::redeem(&ticket) {
            Ok(Redeemed::Queue(receiver)) => return Ok(Found::Queue(receiver)),
            Ok(Redeemed::Interrupted) => return Ok(Found::Interrupted),
            Ok(Redeemed::Void) => {
                worthless = Some(Error::Peer(
                    "the ticket is void: it was used before, or is too old".into(),
                ));
                continue;
            }
            Ok(Redeemed::Gone) => None,
            Err(error @ Error::Peer(_)) => Some(error),
            Err(error) => return Err(error),
        };
        // An fdaccept that is gone may have left two tickets: this one and one in the pipe. A third
        // ticket for the same door comes from a living fdaccept.
        shut.push(ticket.door());
        if shut.iter().filter(|door| **door == ticket.door()).count() > 2 {
            return Err(Error::Closed(match problem {
                Some(problem) => problem.to_string(),
                None => "the door of the ticket cannot be reached from here: is fdaccept in \
                         another network namespace? A name (--bind PATH, --connect PATH) can be \
                         shared"
                    .into(),
            }));
        }
        worthless = problem.or(worthless);
    }
}

/// The next ticket; `None` at the end of the pipe or after a signal.
fn next_ticket(pipe: &OwnedFd) -> Result<Option<ticket::Ticket>> {
    // A copy, so that a signal does not replace the pipe itself.
    let pipe = pipe.try_clone();
    let pipe = File::from(pipe.map_err(|error| Error::io("read a ticket", error))?);
    let _watch = interrupt::watch(pipe.as_fd());
    loop {
        match ticket::read(&pipe) {
            Err(_) if interrupt::raised().is_some() => return Ok(None),
            // Another process made the pipe non-blocking, as it may.
            Err(error) if error.errno() == Some(Errno::EAGAIN) => {
                wait_for(pipe.as_fd(), PollFlags::IN, None)
                    .map_err(|errno| Error::system(WAIT, errno))?;
            }
            ticket => return ticket,
        }
    }
}
