//! The queue of a pool: inherited or bound once, or fetched from a name again and again.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::queue::Receiver;
use crate::queue::fetch::{Visit, is_passing};
use crate::queue::rendezvous::with_advice;
use crate::serve::source::{Found, Source};
use crate::system::heartbeat::Heartbeat;
use crate::system::log::{Log, Said, Verbosity};
use crate::system::poll::{PollFlags, Watched};

/// How often to try a name that nobody owns.
const RECONNECT: Duration = Duration::from_millis(100);

enum Queue {
    Open(Receiver),
    /// The owner of the name was asked for the queue.
    Asked(Visit),
    /// Nobody owns the name; the next try is at this time.
    Absent(Instant),
    /// There will be no other queue.
    Ended,
}

/// The source of a pool's queue, and the queue.
pub(crate) struct Link {
    source: Source,
    queue: Queue,
    /// End with the queue, even if the name could give another one.
    once: bool,
    /// How many queues the name has given.
    generation: u64,
    /// When the last queue was fetched.
    had: Instant,
    /// The last message about a name that nobody owns.
    said: Said,
}

impl Link {
    /// Waits for the queue, unless a name gives it, and keeps `heartbeat` going. A signal interrupts
    /// the wait ([`crate::system::interrupt`]); then there is no queue.
    ///
    /// # Errors
    /// The errors of [`Source::queue`]; [`Error::Closed`] if there never was a queue.
    pub fn open(mut source: Source, once: bool, heartbeat: Option<&mut Heartbeat>) -> Result<Self> {
        if let Some(heartbeat) = heartbeat {
            source.await_ticket(heartbeat)?;
        }
        let queue = match &source {
            Source::Named { .. } => Queue::Absent(Instant::now()),
            _ => match source.queue()? {
                Found::Queue(receiver) => Queue::Open(receiver),
                Found::End | Found::Interrupted => Queue::Ended,
                Found::NoTicket => return Err(no_ticket()),
            },
        };
        Ok(Self {
            source,
            queue,
            once,
            generation: 0,
            had: Instant::now(),
            said: Said::default(),
        })
    }

    pub fn queue(&self) -> Option<&Receiver> {
        match &self.queue {
            Queue::Open(receiver) => Some(receiver),
            _ => None,
        }
    }

    /// The number of the current queue, or of the last one.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether there is no queue and will be none.
    pub fn has_ended(&self) -> bool {
        matches!(self.queue, Queue::Ended)
    }

    /// Gives up the queue and the source: this process takes no more connections.
    pub fn close(&mut self) {
        self.queue = Queue::Ended;
        // fdaccept sees the closed source at once, and knows that nobody will take its connections.
        self.source = Source::Queue(None);
    }

    /// Takes the queue for a forked child and closes the source. fdaccept goes on while any process
    /// has the pipe of tickets open, so only the parent may have it open.
    pub fn take_queue(&mut self) -> Option<Receiver> {
        let queue = std::mem::replace(&mut self.queue, Queue::Ended);
        self.close();
        match queue {
            Queue::Open(receiver) => Some(receiver),
            _ => None,
        }
    }

    /// The queue of `generation` has ended. A name may give another one.
    pub fn queue_ended(&mut self, generation: u64) {
        if self.queue().is_none() || generation != self.generation {
            return;
        }
        self.queue = match self.source {
            // Not at once, because the last queue may have ended as soon as it was fetched.
            Source::Named { .. } if !self.once => Queue::Absent(self.had + RECONNECT),
            _ => Queue::Ended,
        };
    }

    /// Fetches the queue from the name when that is due.
    ///
    /// # Errors
    /// [`Error::System`] if the name cannot give the first queue, for a permanent reason.
    pub fn attend(&mut self, log: &Log) -> Result<()> {
        let Source::Named { name, trust } = &self.source else {
            return Ok(());
        };
        let asked = match &self.queue {
            Queue::Absent(at) if *at <= Instant::now() => {
                Source::visit(name, trust).map(Queue::Asked)
            }
            Queue::Asked(visit) => match visit.finish(name) {
                Err(error) if error.errno() == Some(Errno::EAGAIN) => return Ok(()),
                other => other.and_then(Receiver::from_socket).map(Queue::Open),
            },
            _ => return Ok(()),
        };
        match asked {
            Ok(queue) => {
                if matches!(queue, Queue::Open(_)) {
                    self.generation += 1;
                    self.had = Instant::now();
                    if self.said.forget() {
                        log.notice(format_args!("connected to {name}"));
                    }
                }
                self.queue = queue;
            }
            // Once the pool has served, it waits after any error.
            Err(error) if is_passing(&error) || self.generation > 0 => {
                let problem = format!("{}; waiting", with_advice(&error));
                log.once(&mut self.said, Verbosity::Normal, problem);
                self.queue = Queue::Absent(Instant::now() + RECONNECT);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

fn no_ticket() -> Error {
    let why = "cannot get the queue: the pipe ended without a ticket from fdaccept";
    Error::Closed(why.into())
}

impl Watched for Link {
    fn descriptors<'fd>(&'fd self, poll: &mut dyn FnMut(BorrowedFd<'fd>, PollFlags)) {
        if let Queue::Asked(visit) = &self.queue {
            poll(visit.as_fd(), PollFlags::IN);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match self.queue {
            Queue::Absent(at) => Some(at),
            _ => None,
        }
    }
}
