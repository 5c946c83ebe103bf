//! Connections whose handlers have ended before their clients: each is drained until its client ends
//! its side, for a limited time. The slots hand them over ([`Farewell`]) and go on.
//!
//! All of them cost the pool's process 3 descriptors, in one of which it waits for all, and a limited
//! part of its time, whatever their clients send.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, rlim_t};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use crate::error::{Error, Result, to_nix};
use crate::queue::connection::Connection;
use crate::queue::{self, Received, Receiver, Sender};
use crate::serve::farewell::Farewell;
use crate::system::drain::{Drained, drain, drain_all};
use crate::system::pause::{Pause, SHORTAGE};
use crate::system::poll::{PollFlags, Watched, earliest, ready};
use crate::system::quick_close::quickly;

/// The most connections that linger at a time.
const MOST: usize = 256;
/// Descriptors that are kept for other purposes of the pool's process.
const RESERVED: rlim_t = 32;
/// A connection and its lease.
const DESCRIPTORS: rlim_t = 2;
/// How much is drained in one turn, of all connections together.
const TURN: usize = 1024 * 1024;
/// How much is drained in one turn of one connection.
const BUFFER: usize = 256 * 1024;
/// The pause after a turn that did not end all that were ready.
const BETWEEN: Duration = Duration::from_millis(10);

#[derive(Debug)]
struct Entry {
    connection: Connection,
    until: Instant,
}

pub(super) struct Lingering {
    sender: Sender,
    /// What slots hand over.
    inbox: Receiver,
    /// All connections, by their numbers.
    epoll: OwnedFd,
    /// By age, and so by deadline as well.
    entries: BTreeMap<u64, Entry>,
    /// The number of the next connection.
    next: u64,
    most: usize,
    /// How long a connection may linger.
    time: Duration,
    /// When none lingers any more, because the pool stops.
    end: Option<Instant>,
    pause: Pause,
    /// Without a descriptor for another connection, and with none to close.
    shortage: Pause,
    buffer: Vec<u8>,
}

impl Lingering {
    /// # Errors
    /// [`Error::System`] (`EMFILE` and the like).
    pub fn new(time: Duration) -> Result<Self> {
        let (sender, inbox) = queue::pair()?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)
            .map_err(|errno| Error::system("make an epoll descriptor", to_nix(errno)))?;
        let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((0, 0));
        Ok(Self {
            sender,
            inbox,
            epoll,
            entries: BTreeMap::new(),
            next: 0,
            most: most(limit),
            time,
            end: None,
            pause: Pause::default(),
            shortage: Pause::default(),
            buffer: vec![0; BUFFER],
        })
    }

    /// In a forked slot: closes the pool's connections, which would not end otherwise.
    pub fn into_slot(self) -> Farewell {
        quickly(|| drop(self.entries));
        Farewell::new(self.sender, self.time)
    }

    /// Takes what slots have handed over, drains, and ends what is due.
    pub fn attend(&mut self) {
        if !self.shortage.is_on() {
            self.take_all();
        }
        if !self.entries.is_empty() && !self.pause.is_on() {
            self.drain();
        }
        let now = Instant::now();
        while self.deadline_of_oldest().is_some_and(|at| at <= now) {
            self.end_oldest();
        }
    }

    /// From now on none lingers longer than to `end`.
    pub fn end_by(&mut self, end: Instant) {
        self.end = Some(end);
    }

    /// Whether no connection lingers, nor was handed over. What cannot be taken while descriptors are
    /// short counts no longer than it could linger.
    pub fn is_empty(&self) -> bool {
        let is_over = self.end.is_some_and(|end| end <= Instant::now());
        self.entries.is_empty() && (is_over || !self.has_more())
    }

    /// Whether slots have handed something over.
    fn has_more(&self) -> bool {
        !ready(self.inbox.as_fd(), PollFlags::IN).is_empty()
    }

    /// How many connections linger.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    fn take_all(&mut self) {
        while self.has_more() {
            match self.inbox.try_receive() {
                Ok(Some(Received::Connection(connection))) => self.add(connection),
                // A message that has lost its connection.
                Ok(Some(Received::Rejected(_))) => {}
                Ok(_) => return,
                Err(_) if self.entries.is_empty() => return self.shortage.begin(SHORTAGE),
                // There is no number for the next one.
                Err(_) => self.end_oldest(),
            }
        }
    }

    fn add(&mut self, connection: Connection) {
        if self.entries.len() >= self.most {
            self.end_oldest();
        }
        let until = Instant::now() + self.time;
        let flags = EventFlags::IN | EventFlags::RDHUP;
        let data = EventData::new_u64(self.next);
        let added = epoll::add(&self.epoll, &connection, data, flags);
        self.entries.insert(self.next, Entry { connection, until });
        if added.is_err() {
            self.end(self.next);
        }
        self.next += 1;
    }

    /// Drains each connection that has something, and ends each whose client has ended.
    fn drain(&mut self) {
        let mut events = Vec::with_capacity(self.entries.len());
        let now = Timespec::default();
        let spare = rustix::buffer::spare_capacity(&mut events);
        if epoll::wait(&self.epoll, spare, Some(&now)).is_err() {
            return self.pause.begin(BETWEEN);
        }
        let share = share(events.len());
        let mut ended = Vec::new();
        quickly(|| {
            for event in &events {
                let Event { data, .. } = *event;
                let number = data.u64();
                let Some(entry) = self.entries.get(&number) else {
                    continue;
                };
                let connection = entry.connection.as_fd();
                if drain(connection, &mut self.buffer[..share]) == Drained::End {
                    ended.push(number);
                }
            }
        });
        // The others sent something, and may send on. Or nothing is found, and is reported for ever:
        // messages about what was sent (MSG_ERRQUEUE).
        if ended.len() < events.len() {
            self.pause.begin(BETWEEN);
        }
        ended.into_iter().for_each(|number| self.close(number));
    }

    fn deadline_of_oldest(&self) -> Option<Instant> {
        let (_, oldest) = self.entries.first_key_value()?;
        earliest([Some(oldest.until), self.end])
    }

    fn end_oldest(&mut self) {
        if let Some((number, _)) = self.entries.first_key_value() {
            self.end(*number);
        }
    }

    /// Ends a connection whose client has not ended. What is unread must not reset it.
    fn end(&mut self, number: u64) {
        if let Some(entry) = self.entries.get(&number) {
            let connection = entry.connection.as_fd();
            quickly(|| drain_all(connection, &mut self.buffer));
            self.close(number);
        }
    }

    fn close(&mut self, number: u64) {
        if let Some(entry) = self.entries.remove(&number) {
            // A slot that is just being forked may have it, too, and then the close alone would not
            // do this.
            let _ = epoll::delete(&self.epoll, &entry.connection);
        }
    }
}

impl Watched for Lingering {
    fn descriptors<'fd>(&'fd self, poll: &mut dyn FnMut(BorrowedFd<'fd>, PollFlags)) {
        if !self.shortage.is_on() {
            poll(self.inbox.as_fd(), PollFlags::IN);
        }
        if !self.entries.is_empty() && !self.pause.is_on() {
            poll(self.epoll.as_fd(), PollFlags::IN);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let pauses = [self.pause.deadline(), self.shortage.deadline()];
        earliest(pauses.into_iter().chain([self.deadline_of_oldest()]))
    }
}

/// How many connections may linger under a limit on descriptors.
fn most(limit: rlim_t) -> usize {
    let room = limit.saturating_sub(RESERVED) / DESCRIPTORS;
    usize::try_from(room).map_or(MOST, |room| room.clamp(1, MOST))
}

/// How much to drain of each of so many connections.
fn share(connections: usize) -> usize {
    (TURN / connections.max(1)).min(BUFFER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_linger_where_descriptors_are_few() {
        let counts = [0, 20, 32, 36, 64, 544, 1024].map(most);
        assert_eq!(counts, [1, 1, 1, 2, 16, 256, 256]);
        assert_eq!(most(rlim_t::MAX), MOST);
    }

    #[test]
    fn one_turn_drains_no_more_however_many_there_are() {
        assert_eq!(share(0), BUFFER);
        assert_eq!(share(1), BUFFER);
        assert!((1..=MOST).all(|count| share(count) * count <= TURN && share(count) >= 4096));
    }
}
