//! The watchdog of workers: each says again and again that it is alive, to a socket of the pool, in
//! the words of sd_notify(3).
//!
//! Anybody can send to an abstract name. What counts is the process id that the kernel tells. A
//! stranger who sends as fast as possible delays what workers send by some milliseconds, if they wait for
//! room: the kernel lets blocked senders go on in turn.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{SockType, UnixAddr, bind, getsockname, setsockopt, sockopt};
use nix::unistd::Pid;

use crate::error::{Error, Result};
use crate::queue::scm::{MAX_QUEUED, try_receive_words};
use crate::system::command::entry;
use crate::system::log::{Log, Said, Verbosity};
use crate::system::poll::{PollFlags, ready};
use crate::system::quick_close::QuickClose;
use crate::system::text::digits;
use crate::system::unix_socket;

/// The longest message that is read. Nothing that counts here is as long.
const LONGEST: usize = 4096;
/// The longest time that a worker can ask for: about 30 years, which every clock can add to now.
const LONGEST_TIME: Duration = Duration::from_secs(1_000_000_000);
/// A pool that looks later than this after a worker's time is over did not run by itself.
const LATE: Duration = Duration::from_millis(100);

/// What one message says. Other fields are ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// `WATCHDOG=1`
    pub is_alive: bool,
    /// `WATCHDOG=trigger`: the worker wants to be ended.
    pub is_trigger: bool,
    /// `WATCHDOG_USEC=N`: how long the worker may be silent from now on.
    pub time: Option<Duration>,
}

impl Report {
    fn parse(message: &[u8]) -> Self {
        let mut report = Self::default();
        for line in message.split(|byte| *byte == b'\n') {
            match line {
                b"WATCHDOG=1" => report.is_alive = true,
                b"WATCHDOG=trigger" => report.is_trigger = true,
                _ => {
                    let number = line.strip_prefix(b"WATCHDOG_USEC=").and_then(digits);
                    let number = number.filter(|number| *number > 0);
                    let time = number.map(|number| Duration::from_micros(number).min(LONGEST_TIME));
                    report.time = time.or(report.time);
                }
            }
        }
        report
    }
}

/// The socket that workers send to.
pub(crate) struct Watchdog {
    /// Descriptors may be left in it.
    socket: QuickClose<OwnedFd>,
    /// In the abstract namespace, without its NUL byte. The kernel has chosen it.
    name: Vec<u8>,
    /// How long a worker may be silent, unless it asks for another time.
    time: Duration,
    strangers: Strangers,
}

impl Watchdog {
    /// # Errors
    /// [`Error::System`] (`EMFILE` and the like).
    pub fn open(time: Duration) -> Result<Self> {
        let failed = |errno| Error::system("open the watchdog of workers", errno);
        let socket = QuickClose::new(unix_socket::new(SockType::Datagram)?);
        // Before anybody can send.
        setsockopt(&*socket, sockopt::PassCred, &true).map_err(failed)?;
        let number = socket.as_raw_fd();
        bind(number, &UnixAddr::new_unnamed()).map_err(failed)?;
        let address: UnixAddr = getsockname(number).map_err(failed)?;
        Ok(Self {
            socket,
            name: address.as_abstract().unwrap_or_default().to_vec(),
            time,
            strangers: Strangers::default(),
        })
    }

    pub fn time(&self) -> Duration {
        self.time
    }

    /// What a worker finds in its environment, besides its process id.
    pub fn variables(&self) -> [Option<CString>; 2] {
        let name = [b"@", &self.name[..]].concat();
        let micros = self.time.as_micros().max(1).to_string();
        [
            entry(b"NOTIFY_SOCKET", &name),
            entry(b"WATCHDOG_USEC", micros.as_bytes()),
        ]
    }

    /// Takes the messages that wait. `hear` gets each, with the process that sent it, and returns
    /// whether that is a worker. It is called before the next message is taken: a sender may end as
    /// soon as its message was.
    pub fn hear(&mut self, mut hear: impl FnMut(Pid, Report) -> bool, log: &Log) {
        if ready(self.socket.as_fd(), PollFlags::IN).is_empty() {
            return;
        }
        let limit = self.socket.limit();
        // No more than can have waited at the start, so that a flood does not keep the pool here.
        for _ in 0..MAX_QUEUED {
            let mut bytes = [0; LONGEST];
            let words = match try_receive_words(&*self.socket, &mut bytes) {
                Ok(words) => words,
                Err(Errno::EINTR) => continue,
                Err(_) => break,
            };
            let message = if words.is_cut {
                &[]
            } else {
                &bytes[..words.length]
            };
            let report = Report::parse(message);
            if !words.sender.is_some_and(|(pid, _)| hear(pid, report)) {
                self.strangers.add(words.sender.map(|(_, uid)| uid));
            }
        }
        drop(limit);
        self.strangers.say(log);
    }

    /// How many messages did not come from a worker.
    pub fn refused(&self) -> u64 {
        self.strangers.count
    }
}

impl AsFd for Watchdog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Messages that count for no worker. Each uid is told once, and all messages are counted.
#[derive(Debug, Default)]
struct Strangers {
    count: u64,
    /// The uids of which nothing was said yet; `None` if the kernel does not know the sender.
    new: BTreeSet<Option<u32>>,
    said: Said,
}

impl Strangers {
    fn add(&mut self, uid: Option<u32>) {
        self.count += 1;
        self.new.insert(uid);
    }

    fn say(&mut self, log: &Log) {
        for uid in std::mem::take(&mut self.new) {
            let who = match uid {
                Some(uid) => format!("a process of uid {uid}"),
                None => "an unknown process".to_owned(),
            };
            let what = format!("{who}, which is no worker, sent a message to the watchdog");
            log.once(&mut self.said, Verbosity::Normal, what);
        }
    }
}

/// The time that a worker has left until it must be heard of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// How long the worker may be silent.
    time: Duration,
    until: Instant,
    /// Whether the worker was heard of at all.
    is_heard: bool,
    /// Whether the time was given once more, since the worker was heard of.
    is_extended: bool,
    /// Whether the worker wants to be ended.
    is_triggered: bool,
}

impl Clock {
    pub fn start(time: Duration) -> Self {
        Self {
            time,
            until: Instant::now() + time,
            is_heard: false,
            is_extended: false,
            is_triggered: false,
        }
    }

    /// The whole time begins now.
    pub fn restart(&mut self) {
        self.until = Instant::now() + self.time;
    }

    pub fn hear(&mut self, report: Report) {
        self.is_triggered |= report.is_trigger;
        self.time = report.time.unwrap_or(self.time);
        if report.is_alive || report.time.is_some() {
            self.is_heard = true;
            self.is_extended = false;
            self.restart();
        }
    }

    pub fn time(&self) -> Duration {
        self.time
    }

    pub fn is_triggered(&self) -> bool {
        self.is_triggered
    }

    pub fn is_heard(&self) -> bool {
        self.is_heard
    }

    pub fn deadline(&self) -> Instant {
        self.until
    }

    /// Whether the worker was silent for its time. If this process looks late, it was stopped, and
    /// perhaps the whole machine: then the worker has its time once more.
    pub fn is_over(&mut self, now: Instant) -> bool {
        if now < self.until {
            return false;
        }
        if now - self.until > LATE && !self.is_extended {
            self.is_extended = true;
            self.restart();
            return false;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn time(micros: u64) -> Report {
        Report {
            time: Some(Duration::from_micros(micros)),
            ..Report::default()
        }
    }

    #[test]
    fn three_fields_count_and_others_do_not() {
        let alive = Report {
            is_alive: true,
            ..Report::default()
        };
        let trigger = Report {
            is_trigger: true,
            ..Report::default()
        };
        assert_eq!(Report::parse(b"WATCHDOG=1"), alive);
        assert_eq!(Report::parse(b"READY=1\nWATCHDOG=1\nSTATUS=x\n"), alive);
        assert_eq!(Report::parse(b"WATCHDOG=trigger"), trigger);
        assert_eq!(Report::parse(b"WATCHDOG_USEC=20000000"), time(20_000_000));
        assert_eq!(
            Report::parse(b"WATCHDOG_USEC=18446744073709551615").time,
            Some(LONGEST_TIME)
        );
        for other in [
            &b""[..],
            b"\n\n",
            b"WATCHDOG=0",
            b"WATCHDOG=1 ",
            b" WATCHDOG=1",
            b"watchdog=1",
            b"WATCHDOG=1\0",
            b"WATCHDOG_USEC=",
            b"WATCHDOG_USEC=0",
            b"WATCHDOG_USEC=-1",
            b"WATCHDOG_USEC=+1",
            b"WATCHDOG_USEC=1s",
            b"WATCHDOG_USEC=18446744073709551616",
            b"READY=1",
        ] {
            assert_eq!(Report::parse(other), Report::default(), "{other:?}");
        }
    }

    #[test]
    fn a_worker_is_silent_when_its_time_is_over() {
        let mut clock = Clock::start(Duration::from_secs(60));
        let (begun, end) = (Instant::now(), clock.deadline());
        assert!(!clock.is_over(begun));
        assert!(clock.is_over(end));
        assert!(clock.is_over(end + LATE));
        assert!(!clock.is_heard());
        clock.hear(Report::parse(b"READY=1"));
        assert!(!clock.is_heard() && clock.deadline() == end);
        clock.hear(Report::parse(b"WATCHDOG=1"));
        assert!(clock.is_heard() && clock.deadline() > end);
        clock.hear(time(1));
        assert!(clock.time() == Duration::from_micros(1) && clock.deadline() < end);
    }

    #[test]
    fn a_pool_that_looks_late_gives_the_time_once_more_and_not_again() {
        let mut clock = Clock::start(Duration::from_millis(1));
        let late = Instant::now() + Duration::from_secs(60);
        assert!(!clock.is_over(late));
        assert!(clock.is_over(late));
        clock.hear(Report::parse(b"WATCHDOG=1"));
        assert!(!clock.is_over(late));
    }

    proptest! {
        #[test]
        fn no_message_does_harm(message: Vec<u8>) {
            let mut clock = Clock::start(Duration::from_secs(60));
            clock.hear(Report::parse(&message));
            prop_assert!(clock.time() <= LONGEST_TIME);
        }
    }
}
