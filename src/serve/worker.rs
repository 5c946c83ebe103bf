//! One worker of a pool: a long-lived command that takes connections from the queue itself.
//!
//! A worker starts like a handler, but its standard input is the queue's read end, and it gets a
//! signal when its pool dies.

use std::convert::Infallible;
use std::ffi::{CStr, CString, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, execve, getpid, pipe2, setpgid};
use rustix::process::WaitStatus;

use crate::error::{Error, Result};
use crate::queue::Receiver;
use crate::serve::handler::clean_environment;
use crate::serve::watchdog::{Clock, Watchdog};
use crate::system::command::{Command, entry};
use crate::system::poll::{PollFlags, ready};
use crate::system::termination::{Countdown, Step, Target, Termination};
use crate::system::{fork, inherited, signals};

const START: &str = "start a worker";
/// After this time a worker without a ready descriptor counts as started.
pub(super) const STARTED_AFTER: Duration = Duration::from_secs(1);
/// A process that ends closes its descriptors a moment before its end is seen.
const CLOSING: Duration = Duration::from_millis(100);
/// How long a killed worker may take to end.
const GIVE_UP_AFTER: Duration = Duration::from_secs(2);
/// The queue's descriptor in a worker.
const QUEUE: RawFd = 0;

#[derive(Clone, Debug)]
pub(crate) struct WorkerCommand {
    command: Command,
    environment: Vec<CString>,
    ready: Option<Ready>,
    /// How long a worker may be silent, if it is watched.
    watchdog: Option<Duration>,
}

/// How a worker reports that it is ready.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ready {
    /// The worker writes a newline to this descriptor.
    pub fd: RawFd,
    /// A worker that takes longer is ended.
    pub timeout: Duration,
}

impl WorkerCommand {
    /// Finds the command. With `ready` a worker reports that it is ready, like a service of s6.
    ///
    /// # Errors
    /// Those of [`Command::find`]; [`Error::Invalid`] if the ready descriptor is beyond the limit
    /// on descriptors.
    pub fn find(words: &[OsString], ready: Option<Ready>) -> Result<Self> {
        ready.map_or(Ok(()), |ready| inherited::check_number(ready.fd))?;
        Ok(Self {
            command: Command::find(words)?,
            environment: clean_environment(),
            ready,
            watchdog: None,
        })
    }

    /// Workers are to tell `watchdog` that they are alive.
    pub fn watched_by(&mut self, watchdog: &Watchdog) {
        self.environment
            .extend(watchdog.variables().into_iter().flatten());
        self.watchdog = Some(watchdog.time());
    }

    /// The clock of a worker that has just been started.
    pub fn clock(&self) -> Option<Clock> {
        self.watchdog.map(Clock::start)
    }

    /// The command as the user wrote it, without its arguments.
    pub fn name(&self) -> String {
        self.command.name()
    }

    pub fn ready_timeout(&self) -> Duration {
        self.ready.map_or(Duration::MAX, |ready| ready.timeout)
    }

    /// Starts a worker that serves `queue`, in a process group of its own. Returns once the worker
    /// executes its command.
    ///
    /// # Errors
    /// [`Error::System`] if processes or descriptors are short; [`Error::CommandNotFound`] or
    /// [`Error::CommandNotExecutable`] if the command has gone meanwhile.
    pub fn start(&self, queue: &Receiver) -> Result<(Pid, Readiness)> {
        let (failure, mut report) = pipe()?;
        let ready = match self.ready {
            Some(ready) => Some((ready, pipe()?)),
            None => None,
        };
        // The report needs another number if the ready descriptor takes this one.
        if self.ready.map(|ready| ready.fd) == Some(report.as_raw_fd()) {
            report = report
                .try_clone()
                .map_err(|error| Error::io(START, error))?;
        }
        let pid = fork::start(Signal::SIGTERM, || {
            let ready = ready.as_ref();
            let ready = ready.map(|(ready, (_, end))| (ready.fd, end.as_fd()));
            let Err(errno) = self.become_worker(queue, ready);
            let _ = rustix::io::write(&report, &(errno as i32).to_ne_bytes());
            // The pool has the errno and ignores this status.
            1
        })?;
        drop(report);
        if let Some(errno) = errno_of_exec(failure) {
            return Err(self.command.error_of_start(errno));
        }
        let readiness = match ready {
            Some((ready, (end, _))) => Readiness::Awaited {
                pipe: end,
                until: Instant::now() + ready.timeout,
            },
            None => Readiness::Lives(Instant::now() + STARTED_AFTER),
        };
        Ok((pid, readiness))
    }

    fn become_worker(
        &self,
        queue: &Receiver,
        ready: Option<(RawFd, BorrowedFd<'_>)>,
    ) -> Result<Infallible, Errno> {
        let errno = |error: Error| error.errno().unwrap_or(Errno::EINVAL);
        // A group, but no session, of its own: the kernel shares processor time out by session
        // first (autogroups, sched(7)). A worker in its own session would take the processor from
        // the process that gives it a connection.
        setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
        inherited::place(queue.as_fd(), QUEUE).map_err(errno)?;
        if let Some((number, end)) = ready {
            inherited::place(end, number).map_err(errno)?;
        }
        // A signal that the pool catches must end this process even before exec.
        signals::default(&[Signal::SIGTERM, Signal::SIGINT]).map_err(errno)?;
        signals::default_ignored();
        signals::set_mask(&SigSet::empty()).map_err(errno)?;
        let mut environment: Vec<&CStr> = self.environment.iter().map(AsRef::as_ref).collect();
        // A process that the worker starts learns by this that the watchdog is not its own.
        let pid = entry(b"WATCHDOG_PID", getpid().to_string().as_bytes());
        environment.extend(pid.as_deref().filter(|_| self.watchdog.is_some()));
        self.command
            .attempt(|command| execve(command.path(), command.arguments(), &environment))
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe2(OFlag::O_CLOEXEC).map_err(|errno| Error::system(START, errno))
}

/// Waits until exec closes the child's pipe, or until the child sends the errno of its failure.
fn errno_of_exec(failure: OwnedFd) -> Option<Errno> {
    let mut bytes = [0; size_of::<i32>()];
    let read = File::from(failure).read_exact(&mut bytes);
    read.is_ok()
        .then(|| Errno::from_raw(i32::from_ne_bytes(bytes)))
}

#[derive(Debug)]
pub(crate) enum Readiness {
    /// The worker counts as started if it still lives at this time.
    Lives(Instant),
    /// The worker will write a newline to the other end of this pipe, or be late.
    Awaited { pipe: OwnedFd, until: Instant },
    /// The worker wrote the newline.
    Said,
    /// The worker closed the pipe without a newline. If it lives at this time, it is never ready.
    Closed(Instant),
    /// The worker lives, and is never ready.
    Never,
    /// The worker did not report in time.
    Late,
}

impl Readiness {
    /// Reads from the worker's pipe without blocking. Returns whether the readiness changed.
    pub fn hear(&mut self) -> bool {
        let heard = match self {
            Readiness::Awaited { pipe, until } => read_readiness(pipe)
                .or_else(|| (*until <= Instant::now()).then_some(Readiness::Late)),
            Readiness::Closed(at) if *at <= Instant::now() => Some(Readiness::Never),
            _ => None,
        };
        heard.map(|heard| *self = heard).is_some()
    }

    pub fn is_started(&self) -> bool {
        match self {
            Readiness::Lives(from) => *from <= Instant::now(),
            Readiness::Said => true,
            Readiness::Awaited { .. }
            | Readiness::Closed(_)
            | Readiness::Never
            | Readiness::Late => false,
        }
    }

    /// When the clock changes the readiness, or has changed it.
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            Readiness::Lives(at) | Readiness::Closed(at) | Readiness::Awaited { until: at, .. } => {
                Some(*at)
            }
            Readiness::Said | Readiness::Never | Readiness::Late => None,
        }
    }
}

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

/// A worker as its pool sees it. The worker is not reaped yet, so its pid is not reused.
#[derive(Debug)]
pub(crate) struct Worker {
    pub since: Instant,
    /// The number of the queue that the worker serves.
    pub generation: u64,
    /// How many predecessors in the same place ended too soon, in a row.
    pub failures: u32,
    pub readiness: Readiness,
    /// With a watchdog.
    pub clock: Option<Clock>,
    /// A newer worker is to replace this one.
    pub stale: bool,
    /// From TERM to KILL, once the worker was asked to end.
    pub patience: Duration,
    end: Termination,
}

impl Worker {
    pub fn new(
        pid: Pid,
        readiness: Readiness,
        clock: Option<Clock>,
        generation: u64,
        failures: u32,
    ) -> Self {
        Self {
            since: Instant::now(),
            generation,
            failures,
            readiness,
            clock,
            stale: false,
            patience: Duration::ZERO,
            end: Termination::new(Target::Worker(pid), None),
        }
    }

    /// Whether the worker was told to end, and no longer counts.
    pub fn is_leaving(&self) -> bool {
        !self.end.countdown().is_running()
    }

    /// When the worker is killed, if it was asked to end.
    pub fn killed_at(&self) -> Option<Instant> {
        match self.end.countdown() {
            Countdown::Asked(at) => at,
            _ => None,
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.end.countdown().deadline()
    }

    /// Looks whether the worker reports that it is ready. The time of its watchdog begins then.
    pub fn hear_readiness(&mut self) -> bool {
        let has_changed = self.readiness.hear();
        if has_changed && let Some(clock) = &mut self.clock {
            clock.restart();
        }
        has_changed
    }

    /// When the watchdog must have heard of the worker: not while it starts or leaves, which have
    /// limits of their own.
    pub fn must_be_heard_at(&self) -> Option<Instant> {
        let starts = matches!(
            self.readiness,
            Readiness::Awaited { .. } | Readiness::Closed(_)
        );
        let clock = self.clock.filter(|_| !starts && !self.is_leaving());
        clock.map(|clock| clock.deadline())
    }

    /// Whether the worker was silent for too long, or wants to be ended.
    pub fn hangs(&mut self, now: Instant) -> bool {
        let must_be_heard = self.must_be_heard_at().is_some();
        let is_leaving = self.is_leaving();
        let clock = self.clock.as_mut().filter(|_| !is_leaving);
        clock.is_some_and(|clock| clock.is_triggered() || (must_be_heard && clock.is_over(now)))
    }

    /// The step that is due: to kill the worker, or to give up because the worker may run as another
    /// user by now.
    pub fn due(&self) -> Option<Step> {
        self.end.countdown().due(Instant::now())
    }

    /// Whether an end with status 0 is no failure: the worker has served as much as it wanted.
    pub fn ends_well(&mut self, status: WaitStatus) -> bool {
        self.readiness.hear();
        let is_ready = matches!(self.readiness, Readiness::Lives(_) | Readiness::Said);
        status.exit_status() == Some(0) && is_ready
    }

    /// Sends TERM, and KILL after `patience`, but only once. While the worker lives, its children
    /// are its own affair.
    pub fn ask_to_go(&mut self, patience: Duration) {
        if !self.is_leaving() {
            self.patience = patience;
            self.end.ask(Instant::now() + patience);
        }
    }

    /// Kills the worker, its process group and its descendants now.
    pub fn kill(&mut self) {
        self.end.kill(Some(Instant::now() + GIVE_UP_AFTER));
    }
}
