//! Telling whoever supervises this process how it is: s6 by a descriptor, systemd and its like by a
//! socket (sd_notify(3)).

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{SockType, connect};
use nix::unistd::pipe2;
use sd_notify::NotifyState;

use crate::accept::counters::Counters;
use crate::error::{Error, Result};
use crate::queue::name::Name;
use crate::queue::scm::try_send;
use crate::system::log::Log;
use crate::system::poll::{PollFlags, wait_for};
use crate::system::text::printable;
use crate::system::{inherited, unix_socket};

/// How long what must be told may take; what need not be is told at once or not at all.
const MANAGER_PATIENCE: Duration = Duration::from_secs(5);
/// The same while clients wait.
const SHORT_PATIENCE: Duration = Duration::from_millis(500);
/// The status is told no more often.
const STATUS_PAUSE: Duration = Duration::from_secs(1);

/// Whoever supervises us, in one way or both, or nobody.
#[derive(Debug, Default)]
pub(crate) struct Supervisor {
    /// Where a newline says that we are ready.
    ready_fd: Option<File>,
    manager: Option<OwnedFd>,
    told: Option<Told>,
}

/// The status that was told last.
#[derive(Debug)]
struct Told {
    counters: Counters,
    taken: Option<u64>,
    at: Instant,
}

impl Supervisor {
    /// Those that wait for a newline on descriptor `ready_fd`, and at the socket `notify_socket`
    /// (the value of `NOTIFY_SOCKET`). That one cannot be reached is said, and no reason not to
    /// start, as sd_notify(3) has it.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the descriptor is not open.
    pub fn new(
        ready_fd: Option<RawFd>,
        notify_socket: Option<OsString>,
        log: &Log,
    ) -> Result<Self> {
        let ready_fd = ready_fd.map(inherited::claim).transpose()?;
        let notify_socket = notify_socket.filter(|name| !name.is_empty());
        let manager = notify_socket.as_deref().map(reach).transpose();
        Ok(Self {
            ready_fd: ready_fd.map(File::from),
            manager: manager.unwrap_or_else(|error| {
                log.error(format_args!("NOTIFY_SOCKET: {error}"));
                None
            }),
            told: None,
        })
    }

    /// Whether there is a service manager.
    pub fn is_managed(&self) -> bool {
        self.manager.is_some()
    }

    /// Everything has started.
    pub fn ready(&mut self, log: &Log) {
        if let Some(file) = self.ready_fd.take()
            && let Err(errno) = say_ready(file)
        {
            let action = "say on --notify-fd that this is ready";
            log.error(Error::system(action, errno));
        }
        self.tell_surely(&[NotifyState::Ready], &[], MANAGER_PATIENCE, log);
    }

    /// No more connections will be accepted.
    pub fn stopping(&self) {
        // One that does not listen will see the end.
        let _ = self.tell(&[NotifyState::Stopping]);
    }

    /// Something is read again, until [`Supervisor::reloaded`].
    pub fn reloading(&self, log: &Log) {
        // systemd takes no word for it that is older than its own request.
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            let what = [NotifyState::Reloading, now];
            self.tell_surely(&what, &[], SHORT_PATIENCE, log);
        }
    }

    /// It was read.
    pub fn reloaded(&self, log: &Log) {
        self.tell_surely(&[NotifyState::Ready], &[], SHORT_PATIENCE, log);
    }

    /// When the status is to be told again, or looked at again, since nothing tells when consumers take
    /// more; `None` if nobody is interested, or it has been told.
    pub fn status_due(&self, counters: &Counters, taken: Option<u64>) -> Option<Instant> {
        let told = self.told.as_ref().filter(|_| self.is_managed())?;
        let is_news = (told.counters, told.taken) != (*counters, taken);
        let is_more_to_come = taken.is_some_and(|taken| taken < counters.passed);
        (is_news || is_more_to_come).then(|| told.at + STATUS_PAUSE)
    }

    /// This is the status now.
    pub fn status(&mut self, counters: Counters, taken: Option<u64>) {
        let told = self.told.as_ref();
        let is_news = told.is_none_or(|told| (told.counters, told.taken) != (counters, taken));
        let words = counters.line(taken).to_string();
        // What the manager does not listen to now, it is told later.
        let is_told = !is_news || self.tell(&[NotifyState::Status(&words)]);
        let taken = taken.filter(|_| is_told);
        let at = Instant::now();
        self.told = Some(Told {
            counters,
            taken,
            at,
        });
    }

    /// Gives the service manager a descriptor to keep, under a name, until this service has
    /// ended for good.
    pub fn keep(&self, name: &str, descriptor: BorrowedFd<'_>, log: &Log) {
        let what = [
            NotifyState::Custom("FDSTORE=1"),
            NotifyState::Custom("FDPOLL=0"),
            NotifyState::Custom(&format!("FDNAME={name}")),
        ];
        self.tell_surely(&what, &[descriptor], MANAGER_PATIENCE, log);
    }

    /// It need not keep what has that name.
    pub fn forget(&self, name: &str, log: &Log) {
        let what = [
            NotifyState::Custom("FDSTOREREMOVE=1"),
            NotifyState::Custom(&format!("FDNAME={name}")),
        ];
        self.tell_surely(&what, &[], MANAGER_PATIENCE, log);
    }

    /// Waits until the manager has heard everything that it was told. False if that is not known:
    /// there is none, or it takes too long.
    pub fn wait_until_heard(&self, log: &Log) -> bool {
        let Ok((read_end, write_end)) = pipe2(OFlag::O_CLOEXEC) else {
            return false;
        };
        let barrier = [NotifyState::Custom("BARRIER=1")];
        if !self.tell_surely(&barrier, &[write_end.as_fd()], MANAGER_PATIENCE, log) {
            return false;
        }
        drop(write_end);
        // It hangs up when the manager, too, has closed it.
        let until = Instant::now() + MANAGER_PATIENCE;
        loop {
            let state = wait_for(read_end.as_fd(), PollFlags::IN, Some(until));
            let is_heard = state.is_ok_and(|state| !state.is_empty());
            if is_heard || Instant::now() >= until {
                return is_heard;
            }
        }
    }

    /// Whether it could be told now.
    fn tell(&self, what: &[NotifyState<'_>]) -> bool {
        let manager = self.manager.as_ref();
        manager.is_some_and(|manager| try_send(manager, &encode(what), &[]).is_ok())
    }

    /// Tells the manager, if there is one, in the time that `patience` gives. Whether it was told.
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

/// Writes the newline, if there is room for it.
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

/// Opens the way to the service manager's socket: while nothing keeps us from it yet.
fn reach(name: &OsStr) -> Result<OwnedFd> {
    let shown = printable(name.as_encoded_bytes());
    let is_name = matches!(name.as_encoded_bytes(), [b'/' | b'@', ..]);
    if !is_name {
        return Err(Error::Invalid(format!(
            "{shown} is not a path or @name: unset it, or see sd_notify(3)"
        )));
    }
    let failed = |errno| Error::system(format!("reach the service manager at {shown}"), errno);
    let socket = unix_socket::new(SockType::Datagram)?;
    connect(socket.as_fd().as_raw_fd(), &Name::parse(name)?.address()?).map_err(failed)?;
    Ok(socket)
}
