//! One worker of a pool: a long-lived command that takes connections from the queue itself.
//!
//! It starts as a handler does, but for its standard input, which is the queue's read end, and for
//! a signal that it gets when its pool dies.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, execve, pipe2, setpgid};

use crate::error::{Error, Result};
use crate::queue::Receiver;
use crate::serve::handler::clean_environment;
use crate::system::command::Command;
use crate::system::poll::{PollFlags, ready};
use crate::system::termination::{Countdown, Step, Target, Termination};
use crate::system::{fork, inherited, signals};

/// What fails where pipes cannot be had.
const START: &str = "start a worker";
/// How long a worker that does not say when it is ready lives before it counts as started.
pub(super) const STARTED_AFTER: Duration = Duration::from_secs(1);
/// A process that ends closes its descriptors a moment before its end is seen.
const CLOSING: Duration = Duration::from_millis(100);
/// How long a worker that was killed may take to be gone.
const GIVE_UP_AFTER: Duration = Duration::from_secs(2);
/// Where a worker finds the queue.
const QUEUE: RawFd = 0;

/// The command of a pool's workers.
#[derive(Clone, Debug)]
pub(crate) struct WorkerCommand {
    command: Command,
    environment: Vec<CString>,
    /// The descriptor to which a worker writes a newline when it is ready, if it is to.
    ready_fd: Option<RawFd>,
}

impl WorkerCommand {
    /// Finds the command. With `ready_fd` a worker says when it is ready, by a newline on that
    /// descriptor, as s6's services do.
    ///
    /// # Errors
    /// Those of [`Command::find`]; [`Error::Invalid`] if a process may not have such a descriptor.
    pub fn find(words: &[OsString], ready_fd: Option<RawFd>) -> Result<Self> {
        ready_fd.map_or(Ok(()), inherited::check_number)?;
        Ok(Self {
            command: Command::find(words)?,
            environment: clean_environment(),
            ready_fd,
        })
    }

    /// Starts a worker, in a process group of its own, that serves `queue`. It is
    /// executing its command when this returns.
    ///
    /// # Errors
    /// [`Error::System`] for want of a process or of descriptors; [`Error::CommandNotFound`] or
    /// [`Error::CommandNotExecutable`] if the command is gone by now.
    pub fn start(&self, queue: &Receiver) -> Result<(Pid, Readiness)> {
        let (failure, mut report) = pipe()?;
        let ready = match self.ready_fd {
            Some(number) => Some((number, pipe()?)),
            None => None,
        };
        // The ready descriptor will take its number, so another one is needed.
        if self.ready_fd == Some(report.as_raw_fd()) {
            report = report
                .try_clone()
                .map_err(|error| Error::io(START, error))?;
        }
        let pid = fork::start(Signal::SIGTERM, || {
            let ready = ready.as_ref();
            let ready = ready.map(|(number, (_, end))| (*number, end.as_fd()));
            let Err(errno) = self.become_worker(queue, ready);
            let _ = rustix::io::write(&report, &(errno as i32).to_ne_bytes());
            // Of no interest beside that.
            1
        })?;
        drop(report);
        if let Some(errno) = errno_of_exec(failure) {
            return Err(self.command.error_of_start(errno));
        }
        let readiness = match ready {
            Some((_, (end, _))) => Readiness::Awaited(end),
            None => Readiness::Lives(Instant::now() + STARTED_AFTER),
        };
        Ok((pid, readiness))
    }

    /// What a forked child does.
    fn become_worker(
        &self,
        queue: &Receiver,
        ready: Option<(RawFd, BorrowedFd<'_>)>,
    ) -> Result<Infallible, Errno> {
        let errno = |error: Error| error.errno().unwrap_or(Errno::EINVAL);
        // A group, but no session, of its own: the kernel shares processor time out by session first
        // (autogroups, sched(7)), and then a worker that is given a connection takes the processor
        // from the one that gives it.
        setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
        inherited::place(queue.as_fd(), QUEUE).map_err(errno)?;
        if let Some((number, end)) = ready {
            inherited::place(end, number).map_err(errno)?;
        }
        // What the pool catches must end this process already before its program is executed.
        signals::default(&[Signal::SIGTERM, Signal::SIGINT]).map_err(errno)?;
        signals::default_ignored();
        signals::set_mask(&SigSet::empty()).map_err(errno)?;
        self.command
            .attempt(|command| execve(command.path(), command.arguments(), &self.environment))
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe2(OFlag::O_CLOEXEC).map_err(|errno| Error::system(START, errno))
}

/// Waits for a child's exec, which closes the pipe, or for the errno that it failed with.
fn errno_of_exec(failure: OwnedFd) -> Option<Errno> {
    let mut bytes = [0; size_of::<i32>()];
    let read = File::from(failure).read_exact(&mut bytes);
    read.is_ok()
        .then(|| Errno::from_raw(i32::from_ne_bytes(bytes)))
}

/// Whether a worker has started.
#[derive(Debug)]
pub(crate) enum Readiness {
    /// It has if it is still there then.
    Lives(Instant),
    /// It will write a newline to the other end of this pipe.
    Awaited(OwnedFd),
    /// It said so.
    Said,
    /// It closed its end of the pipe before. If it is still there then, it never will say so.
    Closed(Instant),
    /// It never will.
    Never,
}

impl Readiness {
    /// Reads what the worker has said, without blocking. Returns whether it changed.
    pub fn hear(&mut self) -> bool {
        let heard = match self {
            Readiness::Awaited(pipe) => read_readiness(pipe),
            Readiness::Closed(at) if *at <= Instant::now() => Some(Readiness::Never),
            _ => None,
        };
        heard.map(|heard| *self = heard).is_some()
    }

    /// Whether the worker counts as started.
    pub fn is_started(&self) -> bool {
        match self {
            Readiness::Lives(from) => *from <= Instant::now(),
            Readiness::Said => true,
            Readiness::Awaited(_) | Readiness::Closed(_) | Readiness::Never => false,
        }
    }

    /// When it changes by the clock, or has changed.
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            Readiness::Lives(at) | Readiness::Closed(at) => Some(*at),
            Readiness::Awaited(_) | Readiness::Said | Readiness::Never => None,
        }
    }
}

/// What a worker has said, if it has said something.
fn read_readiness(pipe: &OwnedFd) -> Option<Readiness> {
    if ready(pipe.as_fd(), PollFlags::IN).is_empty() {
        return None;
    }
    let mut bytes = [0; 512];
    match rustix::io::read(pipe, &mut bytes) {
        Ok(0) => Some(Readiness::Closed(Instant::now() + CLOSING)),
        Ok(count) if bytes[..count].contains(&b'\n') => Some(Readiness::Said),
        _ => None,
    }
}

/// A worker as its pool sees it. It is not reaped yet, so its number is nobody else's.
#[derive(Debug)]
pub(crate) struct Worker {
    /// When it was started.
    pub since: Instant,
    /// Which of the queues that the pool had it serves.
    pub generation: u64,
    /// How many before it in its place ended too soon.
    pub failures: u32,
    /// Whether it has started.
    pub readiness: Readiness,
    /// A newer one is to take its place.
    pub stale: bool,
    end: Termination,
}

impl Worker {
    /// One that was just started.
    pub fn new(pid: Pid, readiness: Readiness, generation: u64, failures: u32) -> Self {
        Self {
            since: Instant::now(),
            generation,
            failures,
            readiness,
            stale: false,
            end: Termination::new(Target::Leader(pid), None),
        }
    }

    /// Whether it was told to go, and does not count any more.
    pub fn is_leaving(&self) -> bool {
        !self.end.countdown().is_running()
    }

    /// When it is killed, if it was asked to end.
    pub fn killed_at(&self) -> Option<Instant> {
        match self.end.countdown() {
            Countdown::Asked(at) => at,
            _ => None,
        }
    }

    /// When something is due of it.
    pub fn deadline(&self) -> Option<Instant> {
        self.end.countdown().deadline()
    }

    /// What is due of it by the clock: to kill it, or to give it up, as it may be another user's by
    /// now.
    pub fn due(&self) -> Option<Step> {
        self.end.countdown().due(Instant::now())
    }

    /// Asks it to end, and gives it until `at`. Its children are its own affair while it is there.
    pub fn ask_to_go(&mut self, at: Instant) {
        self.end.ask(at);
    }

    /// Ends it now, with all that it started.
    pub fn kill(&mut self) {
        self.end.kill(Some(Instant::now() + GIVE_UP_AFTER));
    }
}
