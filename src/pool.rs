//! A pool: the parent that supervises those who serve.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustix::process::{self, WaitOptions};

use crate::crew::Crew;
use crate::report::Log;
use crate::scoreboard::MAX_SLOTS;
use crate::signals::Signals;
use crate::slot::URGENT;
use crate::source::Source;
use crate::supply::Supply;
use crate::wait::{PollFd, PollFlags, wait};
use crate::{Error, Result, interrupt, signals};

pub use crate::slots::Slots;
pub use crate::workers::Workers;

/// The signals that resize a pool.
const RESIZING: [Signal; 3] = [Signal::SIGTTIN, Signal::SIGTTOU, Signal::SIGUSR1];
/// How often in the time that a pool may be idle it is looked whether it is.
const LOOKS: u32 = 8;

/// How a pool ends.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long who serves may go on when the pool stops.
    pub grace: Duration,
    /// End with the queue, also where a name could give another one.
    pub once: bool,
    /// Stop when nothing was served for this long.
    pub exit_idle: Option<Duration>,
}

/// A pool of [`Slots`] or of [`Workers`]. It forks, so it is for a process with one thread.
pub struct Pool<C> {
    supply: Supply,
    crew: C,
    options: Options,
    signals: Signals,
    /// Since when it could have served.
    since: Instant,
    /// A signal said that it is to stop.
    told: bool,
    /// It takes nothing more, be it that it was told or that it was idle.
    stopping: bool,
    log: Log,
}

#[allow(private_bounds)] // nobody else has a crew
impl<C: Crew> Pool<C> {
    /// A pool that takes its queue from `source`, and gives it to `crew`. It waits for the queue,
    /// except for one that a name gives.
    ///
    /// # Errors
    /// Those of [`Source::queue`]; [`Error::System`].
    pub fn new(source: Source, crew: C, options: Options, log: Log) -> Result<Self> {
        // If whoever started us ignored them: children would vanish without a status, and who
        // asks for a reload means it.
        signals::default(&[Signal::SIGCHLD])?;
        signals::default(C::RELOADING)?;
        let stopping = signals::not_ignored(&[Signal::SIGTERM, Signal::SIGINT]);
        // Meant for slots; who sends it to every fdpool means no harm.
        signals::ignore(&[URGENT])?;
        // While there is no queue yet, a stop breaks off the wait for it, and the rest waits.
        interrupt::break_off_on(&stopping)?;
        let later = [&RESIZING, C::RELOADING].concat();
        signals::block(&later)?;
        let mut supply = Supply::open(source, options.once)?;
        let signals = Signals::new(&[&stopping[..], &later, &[Signal::SIGCHLD]].concat())?;
        // Also where it is ignored: a slot that is told to go while it starts must not miss it.
        signals::block(&[Signal::SIGTERM])?;
        let told = interrupt::raised().is_some();
        if told {
            supply.close();
        }
        Ok(Self {
            supply,
            crew,
            options,
            signals,
            since: Instant::now(),
            told,
            stopping: told,
            log,
        })
    }

    /// Runs until a signal, or the end of the queue, and until the last one who serves has
    /// finished. Returns the exit status.
    ///
    /// # Errors
    /// [`Error::System`] or [`Error::Peer`] if no queue can be had from the name.
    pub fn run(mut self) -> Result<u8> {
        loop {
            let look = self.attend_idleness();
            let due = self.crew.attend(&mut self.supply);
            if self.crew.is_gone() && self.supply.has_ended() {
                return Ok(0);
            }
            self.wait([look, due, self.supply.deadline()])?;
            self.attend_signals();
            self.reap();
            self.supply.attend(&self.log)?;
        }
    }

    /// Waits until something is to be done.
    fn wait(&self, deadlines: [Option<Instant>; 3]) -> Result<()> {
        let watched = [Some(self.signals.as_fd()), self.supply.asked()];
        let watched = watched.into_iter().flatten().chain(self.crew.watched());
        let mut fds: Vec<_> = watched
            .map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN))
            .collect();
        wait(&mut fds, deadlines.into_iter().flatten().min())
            .map_err(|errno| Error::system("wait for the pool's processes", errno))
    }

    fn attend_signals(&mut self) {
        while let Some(signal) = self.signals.next() {
            match signal {
                Signal::SIGTERM | Signal::SIGINT => self.attend_stop(),
                Signal::SIGTTIN | Signal::SIGUSR1 => self.resize(self.crew.size() + 1),
                Signal::SIGTTOU => self.resize(self.crew.size() - 1),
                Signal::SIGHUP if !self.stopping => self.crew.reload(),
                _ => {}
            }
        }
    }

    fn resize(&mut self, size: usize) {
        self.crew.resize(size.clamp(1, MAX_SLOTS));
    }

    /// The first signal is a stop, and a second one means now.
    fn attend_stop(&mut self) {
        if std::mem::replace(&mut self.told, true) {
            self.crew.stop_now();
        } else if !self.stopping {
            self.stop();
        }
    }

    /// Takes nothing more, and gives time to finish.
    fn stop(&mut self) {
        self.stopping = true;
        self.supply.close();
        self.crew.stop(self.options.grace);
    }

    /// Takes leave of the children that have ended.
    fn reap(&mut self) {
        loop {
            match process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let pid = Pid::from_raw(pid.as_raw_nonzero().get());
                    self.crew.ended(pid, status, &mut self.supply);
                }
                Err(rustix::io::Errno::INTR) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Stops when nothing was served for too long. Returns when to look again.
    fn attend_idleness(&mut self) -> Option<Instant> {
        let limit = self.options.exit_idle.filter(|_| !self.stopping)?;
        let now = Instant::now();
        let end = self.crew.last_service().max(self.since) + limit;
        if now < end {
            return Some(end.min(now + limit / LOOKS));
        }
        let seconds = limit.as_secs_f64();
        self.log
            .notice(format_args!("nothing was served for {seconds} s; stopping"));
        self.stop();
        None
    }
}
