//! A pool: the parent process that supervises slots or workers.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustix::process::{self, WaitOptions, WaitStatus};

use crate::error::{Error, Result};
use crate::serve::link::Link;
use crate::serve::scoreboard::{MAX_SLOTS, URGENT};
use crate::serve::source::Source;
use crate::system::heartbeat::Heartbeat;
use crate::system::interrupt;
use crate::system::log::Log;
use crate::system::poll::{PollFlags, PollSet, Watched};
use crate::system::signals::{self, Signals};
use crate::system::stop_notice::{STOPS_NOW, StopNotice};
use crate::system::text::seconds;

/// The signals that resize a pool.
const RESIZING: [Signal; 3] = [Signal::SIGTTIN, Signal::SIGTTOU, Signal::SIGUSR1];
/// How many checks for idleness fit into the time of `--exit-idle`.
const LOOKS: u32 = 8;

/// The processes of a pool. No call waits for a process once it executes its program.
pub(crate) trait Crew: Watched {
    /// The signals that this crew understands, besides those of every pool.
    const RELOADING: &'static [Signal];

    /// The wanted number of processes.
    fn size(&self) -> usize;

    fn resize(&mut self, size: usize);

    /// Does what is due: starts missing processes if there is a queue, and ends processes whose
    /// time is over. The pool then asks for the next deadline.
    fn attend(&mut self, link: &mut Link);

    /// A child of this process has exited.
    fn ended(&mut self, pid: Pid, status: WaitStatus, link: &mut Link);

    /// A signal has stopped a child of this process.
    fn stopped(&mut self, _pid: Pid, _signal: i32) {}

    /// Whether no process is left.
    fn is_gone(&self) -> bool;

    /// What a stop waits for, in words, if it does: clients may be in service there.
    fn in_service(&self) -> Option<String>;

    /// Replaces all processes without a gap, on a signal of [`Crew::RELOADING`].
    fn reload(&mut self) {}

    /// Takes no more connections: idle processes end at once, busy ones have `grace` to finish.
    fn stop(&mut self, grace: Duration);

    /// Ends all processes now.
    fn stop_now(&mut self);

    /// How many messages were refused, as far as this process knows.
    fn refused(&self) -> u64 {
        0
    }

    /// When a connection was last served, as far as can be seen: now, if one is being served.
    fn last_service(&mut self) -> Instant;
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct PoolOptions {
    /// How long busy processes may go on when the pool stops.
    pub grace: Duration,
    /// End with the queue, even if the name could give another one.
    pub once: bool,
    /// Stop after this long without a connection in service.
    pub exit_idle: Option<Duration>,
}

/// A pool of slots or of workers. It forks, so its process must have one thread.
pub(crate) struct Pool<C> {
    link: Link,
    crew: C,
    options: PoolOptions,
    signals: Signals,
    /// With a watchdog of the service manager.
    heartbeat: Option<Heartbeat>,
    /// When the pool was started: idleness counts from here.
    since: Instant,
    /// A signal told the pool to stop.
    told: bool,
    /// The pool takes no more connections, because of a signal or of idleness.
    stopping: bool,
    notice: StopNotice,
    log: Log,
}

impl<C: Crew> Pool<C> {
    /// A pool that takes its queue from `source` and gives it to `crew`. Waits for the queue,
    /// unless a name gives it.
    ///
    /// # Errors
    /// The errors of [`Link::open`]; [`Error::System`] if a signal cannot be caught or blocked.
    pub fn new(
        source: Source,
        crew: C,
        options: PoolOptions,
        mut heartbeat: Option<Heartbeat>,
        log: Log,
    ) -> Result<Self> {
        // Our parent may have ignored these signals. With CHLD ignored, children would vanish
        // without a status; and a reload must always work.
        signals::default(&[Signal::SIGCHLD])?;
        signals::default(C::RELOADING)?;
        let stopping = signals::not_ignored(&[Signal::SIGTERM, Signal::SIGINT]);
        // This signal is for slots. Sent to every fdpool, it must do no harm.
        signals::ignore(&[URGENT])?;
        // While there is no queue yet, a stop interrupts the wait for it; other signals stay
        // pending.
        interrupt::on(&stopping)?;
        let later = [&RESIZING, C::RELOADING].concat();
        signals::block(&later)?;
        let mut link = Link::open(source, options.once, heartbeat.as_mut())?;
        let signals = Signals::new(&[&stopping[..], &later, &[Signal::SIGCHLD]].concat())?;
        // TERM is blocked even if it is ignored: a slot must not miss a TERM while it starts.
        signals::block(&[Signal::SIGTERM])?;
        let told = interrupt::raised().is_some();
        if told {
            link.close();
        }
        Ok(Self {
            link,
            crew,
            options,
            signals,
            heartbeat,
            since: Instant::now(),
            told,
            stopping: told,
            notice: StopNotice::default(),
            log,
        })
    }

    /// Runs until a signal or the end of the queue, and until the last busy process has finished.
    /// Returns the exit status.
    ///
    /// # Errors
    /// [`Error::System`] if the name cannot give the first queue, for a permanent reason.
    pub fn run(mut self) -> Result<u8> {
        loop {
            if let Some(heartbeat) = &mut self.heartbeat {
                heartbeat.attend();
            }
            let look = self.attend_idleness();
            self.crew.attend(&mut self.link);
            if self.crew.is_gone() && self.link.has_ended() {
                self.say_refused();
                return Ok(0);
            }
            self.attend_notice();
            self.wait(look)?;
            self.attend_signals();
            self.reap();
            self.link.attend(&self.log)?;
        }
    }

    fn say_refused(&self) {
        match self.crew.refused() {
            0 => {}
            1 => self.log.warning("1 message was refused"),
            count => self
                .log
                .warning(format_args!("{count} messages were refused")),
        }
    }

    fn attend_notice(&mut self) {
        let crew = &self.crew;
        let waits_for = || Some((crew.in_service()?, STOPS_NOW.to_owned()));
        self.notice.attend(&self.log, waits_for);
    }

    fn wait(&self, look: Option<Instant>) -> Result<()> {
        let mut set = PollSet::new();
        set.add((), self.signals.as_fd(), PollFlags::IN);
        set.watch((), &self.link);
        set.watch((), &self.crew);
        set.until((), look);
        set.until((), self.notice.deadline());
        set.until((), self.heartbeat.as_ref().map(Heartbeat::deadline));
        set.wait()
            .map(drop)
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

    /// The first signal stops the pool; the second signal ends all processes now.
    fn attend_stop(&mut self) {
        if std::mem::replace(&mut self.told, true) {
            self.notice.cancel();
            self.crew.stop_now();
        } else if !self.stopping {
            self.notice.begin(self.options.grace);
            self.stop();
        }
    }

    fn stop(&mut self) {
        self.stopping = true;
        self.link.close();
        self.crew.stop(self.options.grace);
    }

    /// Reaps exited children, and notices stopped ones.
    fn reap(&mut self) {
        loop {
            match process::wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
                Ok(Some((pid, status))) => {
                    let pid = Pid::from_raw(pid.as_raw_nonzero().get());
                    match status.stopping_signal() {
                        Some(signal) => self.crew.stopped(pid, signal),
                        None => self.crew.ended(pid, status, &mut self.link),
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Stops after too long without service. Returns when to look again.
    fn attend_idleness(&mut self) -> Option<Instant> {
        let limit = self.options.exit_idle.filter(|_| !self.stopping)?;
        let now = Instant::now();
        let end = self.crew.last_service().max(self.since) + limit;
        if now < end {
            return Some(end.min(now + limit / LOOKS));
        }
        let time = seconds(limit);
        self.log
            .notice(format_args!("nothing was served for {time}; stopping"));
        self.stop();
        None
    }
}
