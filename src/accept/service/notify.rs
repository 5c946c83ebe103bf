//! Reports to a supervisor: to s6 through a descriptor, to systemd and the like through a socket
//! (sd_notify(3)).

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use sd_notify::NotifyState;

use crate::accept::counters::Counters;
use crate::error::{Error, Result};
use crate::queue::scm::try_send;
use crate::system::heartbeat::Heartbeat;
use crate::system::log::Log;
use crate::system::poll::{PollFlags, wait_for};

/// How long a necessary report may take. Any other report is sent at once or not at all.
const MANAGER_PATIENCE: Duration = Duration::from_secs(5);
/// How long a necessary report may take while clients wait.
const SHORT_PATIENCE: Duration = Duration::from_millis(500);
/// The shortest time between 2 reports of the status.
const STATUS_PAUSE: Duration = Duration::from_secs(1);

/// The supervisor: a descriptor, a service manager, both or none.
#[derive(Debug, Default)]
pub(crate) struct Supervisor {
    /// Gets a newline when fdaccept is ready.
    ready_fd: Option<File>,
    manager: Option<OwnedFd>,
    /// With a watchdog of the manager.
    heartbeat: Option<Heartbeat>,
    told: Option<Told>,
}

/// The status of the last report.
#[derive(Debug)]
struct Told {
    counters: Counters,
    taken: Option<u64>,
    at: Instant,
}

impl Supervisor {
    /// `ready_fd` gets a newline. `manager` is connected to the service manager, which must hear of
    /// fdaccept within the time of `watchdog`, again and again.
    ///
    /// # Errors
    /// [`Error::System`] (`EMFILE`).
    pub fn new(
        ready_fd: Option<OwnedFd>,
        manager: Option<OwnedFd>,
        watchdog: Option<Duration>,
    ) -> Result<Self> {
        let heartbeat = match manager.as_ref().zip(watchdog) {
            Some((manager, within)) => {
                let copy = manager.try_clone();
                let copy = copy.map_err(|error| Error::io("tell the service manager", error))?;
                Some(Heartbeat::new(copy, within))
            }
            None => None,
        };
        Ok(Self {
            ready_fd: ready_fd.map(File::from),
            manager,
            heartbeat,
            told: None,
        })
    }

    /// The time of the next [`Supervisor::beat`].
    pub fn beat_due(&self) -> Option<Instant> {
        self.heartbeat.as_ref().map(Heartbeat::deadline)
    }

    /// Tells the watchdog that fdaccept goes on, if due.
    pub fn beat(&mut self) {
        if let Some(heartbeat) = &mut self.heartbeat {
            heartbeat.attend();
        }
    }

    pub fn is_managed(&self) -> bool {
        self.manager.is_some()
    }

    /// Reports that everything has started.
    pub fn ready(&mut self, log: &Log) {
        if let Some(file) = self.ready_fd.take()
            && let Err(errno) = say_ready(file)
        {
            let action = "say on --notify-fd that this is ready";
            log.error(Error::system(action, errno));
        }
        self.tell_surely(&[NotifyState::Ready], &[], MANAGER_PATIENCE, log);
    }

    /// Reports that no more connections will be accepted.
    pub fn stopping(&self) {
        // If this report is lost, the manager still sees the exit.
        let _ = self.tell(&[NotifyState::Stopping]);
    }

    /// Reports that a reload has begun. [`Supervisor::reloaded`] reports its end.
    pub fn reloading(&self, log: &Log) {
        // systemd ignores a report that is older than its own request.
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            let what = [NotifyState::Reloading, now];
            self.tell_surely(&what, &[], SHORT_PATIENCE, log);
        }
    }

    /// Reports the end of a reload.
    pub fn reloaded(&self, log: &Log) {
        self.tell_surely(&[NotifyState::Ready], &[], SHORT_PATIENCE, log);
    }

    /// When to report the status again, or to look for a change: no event tells when consumers take
    /// more. `None` without a manager, or if the manager knows the status.
    pub fn status_due(&self, counters: &Counters, taken: Option<u64>) -> Option<Instant> {
        let told = self.told.as_ref().filter(|_| self.is_managed())?;
        let is_news = (told.counters, told.taken) != (*counters, taken);
        let is_more_to_come = taken.is_some_and(|taken| taken < counters.passed);
        (is_news || is_more_to_come).then(|| told.at + STATUS_PAUSE)
    }

    /// Reports the status.
    pub fn status(&mut self, counters: Counters, taken: Option<u64>) {
        let told = self.told.as_ref();
        let is_news = told.is_none_or(|told| (told.counters, told.taken) != (counters, taken));
        let words = counters.line(taken).to_string();
        // If the manager does not take this report, a later report repeats it.
        let is_told = !is_news || self.tell(&[NotifyState::Status(&words)]);
        let taken = taken.filter(|_| is_told);
        let at = Instant::now();
        self.told = Some(Told {
            counters,
            taken,
            at,
        });
    }

    /// Gives the manager a descriptor to keep under a name, until the service has ended for good.
    pub fn keep(&self, name: &str, descriptor: BorrowedFd<'_>, log: &Log) {
        let what = [
            NotifyState::Custom("FDSTORE=1"),
            NotifyState::Custom("FDPOLL=0"),
            NotifyState::Custom(&format!("FDNAME={name}")),
        ];
        self.tell_surely(&what, &[descriptor], MANAGER_PATIENCE, log);
    }

    /// Tells the manager to drop the descriptors of a name.
    pub fn forget(&self, name: &str, log: &Log) {
        let what = [
            NotifyState::Custom("FDSTOREREMOVE=1"),
            NotifyState::Custom(&format!("FDNAME={name}")),
        ];
        self.tell_surely(&what, &[], MANAGER_PATIENCE, log);
    }

    /// Waits until the manager has read every report. False if that is unknown: there is no
    /// manager, or the manager takes too long.
    pub fn wait_until_heard(&self, log: &Log) -> bool {
        let Ok((read_end, write_end)) = pipe2(OFlag::O_CLOEXEC) else {
            return false;
        };
        let barrier = [NotifyState::Custom("BARRIER=1")];
        if !self.tell_surely(&barrier, &[write_end.as_fd()], MANAGER_PATIENCE, log) {
            return false;
        }
        drop(write_end);
        // The pipe hangs up when the manager has closed its copy, too.
        let until = Instant::now() + MANAGER_PATIENCE;
        loop {
            let state = wait_for(read_end.as_fd(), PollFlags::IN, Some(until));
            let is_heard = state.is_ok_and(|state| !state.is_empty());
            if is_heard || Instant::now() >= until {
                return is_heard;
            }
        }
    }

    /// Sends a report. False if the manager cannot take it now.
    fn tell(&self, what: &[NotifyState<'_>]) -> bool {
        let manager = self.manager.as_ref();
        manager.is_some_and(|manager| try_send(manager, &encode(what), &[]).is_ok())
    }

    /// Sends a report, for which it waits up to `patience`. Returns whether the report was sent.
    fn tell_surely(
        &self,
        what: &[NotifyState<'_>],
        with: &[BorrowedFd<'_>],
        patience: Duration,
        log: &Log,
    ) -> bool {
        let Some(manager) = &self.manager else {
            return false;
        };
        let until = Instant::now() + patience;
        loop {
            match try_send(manager, &encode(what), with) {
                Ok(()) => return true,
                Err(Errno::EAGAIN) if Instant::now() < until => {
                    let _ = wait_for(manager.as_fd(), PollFlags::OUT, Some(until));
                }
                Err(errno) => {
                    log.error(Error::system("tell the service manager", errno));
                    return false;
                }
            }
        }
    }
}

/// Writes the newline, if there is room.
fn say_ready(mut file: File) -> Result<(), Errno> {
    let until = Instant::now() + SHORT_PATIENCE;
    if wait_for(file.as_fd(), PollFlags::OUT, Some(until))?.is_empty() {
        return Err(Errno::EAGAIN);
    }
    let written = file.write_all(b"\n");
    written.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or_default()))
}

fn encode(what: &[NotifyState<'_>]) -> Vec<u8> {
    let lines: Vec<_> = what.iter().map(NotifyState::to_string).collect();
    lines.join("\n").into_bytes()
}
