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

use crate::counters::Counters;
use crate::name::{Name, printable};
use crate::report::Log;
use crate::wait::{PollFd, PollFlags, wait};
use crate::{Error, Result, inherited, queue};

/// How long what must be told may take; what need not be is told at once or not at all.
const PATIENCE: Duration = Duration::from_secs(5);
/// The status is told no more often.
const STATUS_PAUSE: Duration = Duration::from_secs(1);

/// Whoever supervises us, in one way or both, or nobody.
#[derive(Debug, Default)]
pub struct Supervisor {
    /// Where a newline says that we are ready.
    ready_fd: Option<File>,
    manager: Option<OwnedFd>,
    /// What was told last, and when.
    told: Option<(Counters, Instant)>,
}

impl Supervisor {
    /// Those that wait for a newline on descriptor `ready_fd`, and at the socket `notify_socket`
    /// (the value of `NOTIFY_SOCKET`). That one cannot be reached is said, and no reason not to
    /// start, as sd_notify(3) has it.
    ///
    /// # Errors
    /// [`Error::Usage`] if the descriptor is not open.
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
                log.error(error);
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
        if let Some(mut file) = self.ready_fd.take()
            && let Err(error) = file.write_all(b"\n")
        {
            log.error(Error::io("say on --notify-fd that this is ready", error));
        }
        self.tell_surely(&[NotifyState::Ready], &[], log);
    }

    /// No more connections will be accepted.
    pub fn stopping(&self) {
        self.tell(&[NotifyState::Stopping]);
    }

    /// Something is read again, until [`Supervisor::reloaded`].
    pub fn reloading(&self, log: &Log) {
        // systemd takes no word for it that is older than its own request.
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            self.tell_surely(&[NotifyState::Reloading, now], &[], log);
        }
    }

    /// It was read.
    pub fn reloaded(&self, log: &Log) {
        self.tell_surely(&[NotifyState::Ready], &[], log);
    }

    /// When `counters` are to be told; `None` if nobody is interested, or has been told already.
    pub fn status_due(&self, counters: &Counters) -> Option<Instant> {
        let (told, at) = self.told.as_ref().filter(|_| self.is_managed())?;
        (told != counters).then(|| *at + STATUS_PAUSE)
    }

    /// This is the status now: `counters`, in words.
    pub fn status(&mut self, counters: Counters, words: &str) {
        self.tell(&[NotifyState::Status(words)]);
        self.told = Some((counters, Instant::now()));
    }

    /// Gives the service manager a descriptor to keep, under a name, until this service has
    /// ended for good.
    pub fn keep(&self, name: &str, descriptor: BorrowedFd<'_>, log: &Log) {
        let what = [
            NotifyState::Custom("FDSTORE=1"),
            NotifyState::Custom("FDPOLL=0"),
            NotifyState::Custom(&format!("FDNAME={name}")),
        ];
        self.tell_surely(&what, &[descriptor], log);
    }

    /// It need not keep what has that name.
    pub fn forget(&self, name: &str, log: &Log) {
        let what = [
            NotifyState::Custom("FDSTOREREMOVE=1"),
            NotifyState::Custom(&format!("FDNAME={name}")),
        ];
        self.tell_surely(&what, &[], log);
    }

    /// Waits until the manager has heard everything that it was told.
    pub fn wait_until_heard(&self, log: &Log) {
        let Ok((read_end, write_end)) = pipe2(OFlag::O_CLOEXEC) else {
            return;
        };
        let barrier = [NotifyState::Custom("BARRIER=1")];
        self.tell_surely(&barrier, &[write_end.as_fd()], log);
        drop(write_end);
        // It hangs up when the manager, too, has closed it.
        let mut fds = [PollFd::new(&read_end, PollFlags::IN)];
        let until = Instant::now() + PATIENCE;
        while fds[0].revents().is_empty() && Instant::now() < until {
            let _ = wait(&mut fds, Some(until));
        }
    }

    fn tell(&self, what: &[NotifyState<'_>]) {
        if let Some(manager) = &self.manager {
            let _ = queue::send(manager, &encode(what), &[], false);
        }
    }

    fn tell_surely(&self, what: &[NotifyState<'_>], with: &[BorrowedFd<'_>], log: &Log) {
        let Some(manager) = &self.manager else {
            return;
        };
        let until = Instant::now() + PATIENCE;
        loop {
            match queue::send(manager, &encode(what), with, false) {
                Ok(()) => return,
                Err(Errno::EAGAIN) if Instant::now() < until => {
                    let mut fds = [PollFd::new(manager, PollFlags::OUT)];
                    let _ = wait(&mut fds, Some(until));
                }
                Err(errno) => {
                    log.error(Error::system("tell the service manager", errno));
                    return;
                }
            }
        }
    }
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
        return Err(Error::Usage(format!(
            "NOTIFY_SOCKET={shown} is not a path or @name: unset it, or see sd_notify(3)"
        )));
    }
    let failed = |errno| Error::system(format!("reach the service manager at {shown}"), errno);
    let socket = queue::unix_socket(SockType::Datagram)?;
    connect(socket.as_fd().as_raw_fd(), &Name::parse(name)?.address()?).map_err(failed)?;
    Ok(socket)
}
