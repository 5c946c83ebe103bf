//! Sends that fail for want of something that other processes use up. A failure that lasts is logged
//! once, and so is its end.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, rlim_t};

use crate::error::Error;
use crate::system::log::Log;

/// A failure that is over sooner is not logged.
const LASTING: Duration = Duration::from_millis(500);

/// Whether to try again after this errno of a send. No event tells when.
pub(super) fn is_shortage(errno: Errno) -> bool {
    matches!(errno, Errno::ETOOMANYREFS | Errno::ENOBUFS | Errno::ENOMEM)
}

/// What the log says of one kind of send.
#[derive(Debug)]
pub(super) struct Words {
    /// Action and object, in the infinitive.
    pub action: &'static str,
    pub waiting: &'static str,
    pub again: &'static str,
}

#[derive(Debug)]
pub(super) struct Stuck {
    words: Words,
    /// When the first of the failures in a row came.
    since: Option<Instant>,
    /// The cause that was logged.
    told: Option<Errno>,
}

impl Stuck {
    pub fn new(words: Words) -> Self {
        Self {
            words,
            since: None,
            told: None,
        }
    }

    /// A send failed. `others` is how many descriptors other processes of this user have in flight,
    /// at least. Without any, the kernel's limit is reached by a full queue, which is no trouble.
    pub fn fails(&mut self, errno: Errno, others: rlim_t, log: &Log) {
        let since = *self.since.get_or_insert_with(Instant::now);
        let is_by_others = errno == Errno::ETOOMANYREFS;
        let is_full = is_by_others && others == 0;
        if is_full || since.elapsed() < LASTING || self.told == Some(errno) {
            return;
        }
        self.told = Some(errno);
        let problem = Error::system(self.words.action, errno);
        let waiting = self.words.waiting;
        if is_by_others {
            log.error(format_args!(
                "{problem}; other processes of this user have {others} or more descriptors in \
                 flight; {waiting}"
            ));
        } else {
            log.error(format_args!("{problem}; {waiting}"));
        }
    }

    /// A send succeeded.
    pub fn works(&mut self, log: &Log) {
        self.since = None;
        if self.told.take().is_some() {
            log.notice(self.words.again);
        }
    }
}

/// The limit on descriptors in flight, which the kernel applies to each user.
#[derive(Debug)]
pub(super) struct InFlightLimit {
    /// The sandbox lets us ask only at the start.
    at_start: rlim_t,
}

impl InFlightLimit {
    pub fn get() -> Self {
        Self {
            at_start: soft_limit().unwrap_or(rlim_t::MAX),
        }
    }

    /// How many descriptors others must have in flight, after `ETOOMANYREFS` with `own` of ours.
    pub fn others(&self, own: usize) -> rlim_t {
        // The kernel lets one more than the limit pass.
        let limit = soft_limit().unwrap_or(self.at_start);
        limit.saturating_add(1).saturating_sub(own as rlim_t)
    }
}

fn soft_limit() -> Option<rlim_t> {
    getrlimit(Resource::RLIMIT_NOFILE)
        .ok()
        .map(|(soft, _)| soft)
}
