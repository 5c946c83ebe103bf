//! The queue of a pool: had once, or fetched from a name again and again.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::error::Result;
use crate::queue::Receiver;
use crate::queue::fetch::{Visit, is_passing};
use crate::queue::rendezvous::with_advice;
use crate::serve::source::{Found, Source};
use crate::system::log::{Log, Said, Verbosity};
use crate::system::poll::{PollFlags, Watched};

/// How often a name is tried at which nobody is.
const RECONNECT: Duration = Duration::from_millis(100);

/// Where the queue is.
enum Queue {
    /// Here.
    Open(Receiver),
    /// Somebody at a name was asked for it.
    Asked(Visit),
    /// Nobody is at the name; it is tried again then.
    Absent(Instant),
    /// There will be no other one.
    Ended,
}

/// What a pool's connections come from.
pub(crate) struct Link {
    source: Source,
    queue: Queue,
    /// End with the queue, also where a name could give another one.
    once: bool,
    /// How many queues a name has given.
    generation: u64,
    /// When the last one was had.
    had: Instant,
    /// What was said last of a name where nobody is.
    said: Said,
}

impl Link {
    /// Waits for the queue, except for one that a name gives. A signal breaks the wait off
    /// ([`crate::system::interrupt`]); then there is no queue.
    ///
    /// # Errors
    /// Those of [`Source::queue`].
    pub fn open(mut source: Source, once: bool) -> Result<Self> {
        let queue = match &source {
            Source::Named { .. } => Queue::Absent(Instant::now()),
            _ => match source.queue()? {
                Found::Queue(receiver) => Queue::Open(receiver),
                Found::End | Found::Interrupted => Queue::Ended,
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

    /// The queue, if it is here.
    pub fn queue(&self) -> Option<&Receiver> {
        match &self.queue {
            Queue::Open(receiver) => Some(receiver),
            _ => None,
        }
    }

    /// Which of the queues that there were is the present one, or was the last.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether there is no queue, and will be none.
    pub fn has_ended(&self) -> bool {
        matches!(self.queue, Queue::Ended)
    }

    /// Gives everything up: nobody here takes another connection.
    pub fn close(&mut self) {
        self.queue = Queue::Ended;
        // fdaccept learns at once that nobody will take what it accepts.
        self.source = Source::Queue(None);
    }

    /// The queue alone, for a forked child. While somebody has the pipe with tickets open,
    /// fdaccept goes on, so that must be nobody but the parent.
    pub fn take_queue(&mut self) -> Option<Receiver> {
        let queue = std::mem::replace(&mut self.queue, Queue::Ended);
        self.close();
        match queue {
            Queue::Open(receiver) => Some(receiver),
            _ => None,
        }
    }

    /// The queue of `generation` has ended: a name may give another one.
    pub fn queue_ended(&mut self, generation: u64) {
        if self.queue().is_none() || generation != self.generation {
            return;
        }
        self.queue = match self.source {
            // Not at once if that one ended as soon as it was had.
            Source::Named { .. } if !self.once => Queue::Absent(self.had + RECONNECT),
            _ => Queue::Ended,
        };
    }

    /// Fetches the queue from a name, when it is time to.
    ///
    /// # Errors
    /// [`crate::Error::System`] or [`crate::Error::Peer`] if the first queue cannot be had from
    /// the name, for a reason that does not pass by itself.
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
            // Once it has served, it stays for whatever comes.
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
