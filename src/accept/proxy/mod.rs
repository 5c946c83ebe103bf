//! Connections whose PROXY header is awaited.
//!
//! A header is read to its last byte and no further: the next byte is the handler's. Bytes of a
//! header are taken out of the socket at once, so that only new bytes make the socket readable.

use std::collections::{BTreeMap, VecDeque};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use rustix::event::{Timespec, epoll};

use crate::accept::client::Client;
use crate::accept::counters::Refusal;
use crate::accept::incoming::Incoming;
use crate::accept::proxy::header::{Header, NextRead, ProxyCommand, Version};
use crate::error::{Error, Result, to_nix};
use crate::system::poll::{PollFlags, Watched};

pub(crate) mod header;

/// How many connections may wait for their header. One more drops the oldest.
const MOST_AWAITED: usize = 1024;
/// How many events to get with 1 call.
const BATCH: usize = 64;
/// How many bytes to read at a time.
const CHUNK: usize = 4096;

#[derive(Clone, Debug)]
pub(crate) struct ProxyOptions {
    pub version: Version,
    /// The proxies. No other client may connect.
    pub from: Vec<IpNet>,
    /// How long a header may take.
    pub timeout: Duration,
}

/// A connection whose header is incomplete.
#[derive(Debug)]
struct Awaited {
    incoming: Incoming,
    header: Header,
    until: Instant,
}

/// Connections that wait for their header, and connections with a header that wait for room.
#[derive(Debug)]
pub(crate) struct AwaitedHeaders {
    options: ProxyOptions,
    /// Watches all incomplete headers, at a cost that does not grow with their number.
    epoll: OwnedFd,
    /// By serial number. All headers have the same timeout, so the first is the next to be late.
    awaited: BTreeMap<u64, Awaited>,
    next: u64,
    complete: VecDeque<Incoming>,
}

/// A connection to refuse, and why.
pub(crate) type Refused = (Incoming, Refusal);

impl AwaitedHeaders {
    /// Awaits no header yet.
    ///
    /// # Errors
    /// [`Error::System`] (`EMFILE` and the like).
    pub fn new(options: ProxyOptions) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|errno| Error::system("watch PROXY headers", to_nix(errno)))?;
        Ok(Self {
            options,
            epoll,
            awaited: BTreeMap::new(),
            next: 0,
            complete: VecDeque::new(),
        })
    }

    /// Reads the header of `incoming`, which may be complete at once. Returns a connection to
    /// refuse: `incoming`, or the oldest if too many wait.
    pub fn expect(&mut self, incoming: Incoming, now: Instant) -> Option<Refused> {
        let Client::Address(address) = incoming.client else {
            return Some((incoming, Refusal::Rule));
        };
        let ip = IpNet::from(address.ip().to_canonical());
        if !self.options.from.iter().any(|net| net.contains(&ip)) {
            return Some((incoming, Refusal::Rule));
        }
        let mut awaited = Awaited {
            incoming,
            header: Header::new(self.options.version),
            until: now + self.options.timeout,
        };
        match awaited.read() {
            Progress::Complete => self.complete.push_back(awaited.incoming),
            Progress::Refused(why) => return Some((awaited.incoming, why)),
            Progress::Waiting => return self.wait_for(awaited),
        }
        None
    }

    fn wait_for(&mut self, awaited: Awaited) -> Option<Refused> {
        let data = epoll::EventData::new_u64(self.next);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
        if epoll::add(&self.epoll, &awaited.incoming.connection, data, flags).is_err() {
            // The kernel has no memory to watch the connection.
            return Some((awaited.incoming, Refusal::Shortage));
        }
        self.awaited.insert(self.next, awaited);
        self.next += 1;
        if self.awaited.len() > MOST_AWAITED {
            self.give_up_oldest(Refusal::Crowd)
        } else {
            None
        }
    }

    /// Gives up the connection that has waited longest, if any.
    pub fn give_up_oldest(&mut self, why: Refusal) -> Option<Refused> {
        let (_, oldest) = self.awaited.pop_first()?;
        Some((oldest.incoming, why))
    }

    /// Gives up all connections with an incomplete header.
    pub fn give_up(&mut self) -> Vec<Refused> {
        let awaited = std::mem::take(&mut self.awaited).into_values();
        awaited
            .map(|awaited| (awaited.incoming, Refusal::LateHeader))
            .collect()
    }

    /// Reads on. Returns the connections to refuse.
    pub fn attend(&mut self, now: Instant) -> Vec<Refused> {
        let mut refused = Vec::new();
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); BATCH];
        // The next call reports the events that do not fit.
        let ready = match epoll::wait(&self.epoll, &mut events, Some(&Timespec::default())) {
            Ok((ready, _)) => ready,
            Err(_) => &mut [],
        };
        for event in ready.iter() {
            let number = event.data.u64();
            let Some(awaited) = self.awaited.get_mut(&number) else {
                continue;
            };
            match awaited.read() {
                Progress::Waiting => {}
                progress => refused.extend(self.settle(number, progress)),
            }
        }
        while self.deadline().is_some_and(|until| until <= now)
            && let Some(mut first) = self.awaited.first_entry()
        {
            // If this process was held up, the header may have arrived in time.
            let progress = match first.get_mut().read() {
                Progress::Waiting => Progress::Refused(Refusal::LateHeader),
                progress => progress,
            };
            let number = *first.key();
            refused.extend(self.settle(number, progress));
        }
        refused
    }

    /// Ends the wait for a header.
    fn settle(&mut self, number: u64, progress: Progress) -> Option<Refused> {
        let Awaited { incoming, .. } = self.awaited.remove(&number)?;
        // Other processes keep the connection open, so epoll would report it forever.
        let _ = epoll::delete(&self.epoll, &incoming.connection);
        if let Progress::Refused(why) = progress {
            return Some((incoming, why));
        }
        self.complete.push_back(incoming);
        None
    }

    /// The next connection with a complete header.
    pub fn take(&mut self) -> Option<Incoming> {
        self.complete.pop_front()
    }

    /// How many connections have no complete header yet.
    pub fn incomplete(&self) -> usize {
        self.awaited.len()
    }

    /// How many connections have a complete header.
    pub fn complete(&self) -> usize {
        self.complete.len()
    }

    /// Whether no connection waits, for its header or for room.
    pub fn is_empty(&self) -> bool {
        self.awaited.is_empty() && self.complete.is_empty()
    }
}

impl Watched for AwaitedHeaders {
    fn descriptors<'fd>(&'fd self, poll: &mut dyn FnMut(BorrowedFd<'fd>, PollFlags)) {
        poll(self.epoll.as_fd(), PollFlags::IN);
    }

    /// When the next header is late.
    fn deadline(&self) -> Option<Instant> {
        let first = self.awaited.first_key_value();
        first.map(|(_, awaited)| awaited.until)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Waiting,
    Complete,
    Refused(Refusal),
}

impl Awaited {
    /// Reads the part of the header that has arrived.
    fn read(&mut self) -> Progress {
        loop {
            let count = match self.header.next() {
                Err(_) => return Progress::Refused(Refusal::BadHeader),
                Ok(NextRead::Done(command)) => {
                    if let ProxyCommand::Proxy {
                        source,
                        destination,
                    } = command
                    {
                        self.incoming.client = Client::Address(source);
                        self.incoming.local = Some(destination);
                    }
                    return Progress::Complete;
                }
                Ok(NextRead::Read(most)) => self.take(most),
                Ok(NextRead::ReadLine(most)) => self
                    .look(most)
                    .and_then(|count| if count == 0 { Ok(0) } else { self.take(count) }),
            };
            match count {
                // The connection ended before its header did.
                Ok(0) => return Progress::Refused(Refusal::BadHeader),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Progress::Waiting,
                Err(_) => return Progress::Refused(Refusal::BadHeader),
            }
        }
    }

    /// Takes at most `most` bytes. Returns how many.
    fn take(&mut self, most: usize) -> Result<usize, Errno> {
        let mut chunk = [0; CHUNK];
        let chunk = &mut chunk[..most.min(CHUNK)];
        let count = self.receive(chunk, MsgFlags::empty())?;
        self.header.add(&chunk[..count]);
        Ok(count)
    }

    /// Peeks at the next bytes, at most `most`. Returns how many there are up to the end of the
    /// line, or in all without one.
    fn look(&self, most: usize) -> Result<usize, Errno> {
        let mut chunk = [0; CHUNK];
        let chunk = &mut chunk[..most.min(CHUNK)];
        let count = self.receive(chunk, MsgFlags::MSG_PEEK)?;
        let end = chunk[..count].iter().position(|byte| *byte == b'\n');
        Ok(end.map_or(count, |end| end + 1))
    }

    fn receive(&self, chunk: &mut [u8], flags: MsgFlags) -> Result<usize, Errno> {
        let socket = self.incoming.connection.as_raw_fd();
        recv(socket, chunk, flags | MsgFlags::MSG_DONTWAIT)
    }
}
