//! A pool: a parent that only supervises, and the slots that serve.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::{self, WaitOptions, WaitStatus};

use crate::fork;
use crate::handler::Handler;
use crate::queue::{Receiver, Visit, is_passing};
use crate::report::{CLOSED, Log};
use crate::scoreboard::{MAX_SLOTS, Scoreboard, Urgency};
use crate::signals::Signals;
use crate::slot::{KILL_AFTER, Slot, URGENT};
use crate::source::{Found, Source};
use crate::wait::{PollFd, PollFlags, wait};
use crate::{Error, Result, interrupt, signals};

/// How often a name is tried at which nobody is.
const RECONNECT: Duration = Duration::from_millis(100);
/// How long no slot is started after one that failed, or that could not be started.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a slot may take for the end of its handler.
const SLACK: Duration = Duration::from_secs(2);

/// The signals that resize the pool.
const RESIZING: [Signal; 3] = [Signal::SIGTTIN, Signal::SIGTTOU, Signal::SIGUSR1];

/// What a pool is to be like.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many slots.
    pub size: usize,
    /// How long a handler may run.
    pub timeout: Option<Duration>,
    /// How long handlers may go on when the pool stops.
    pub grace: Duration,
    /// End with the queue, also where a name could give another one.
    pub once: bool,
}

/// A slot as its parent sees it.
#[derive(Debug)]
struct Child {
    /// Its place on the scoreboard.
    index: usize,
    /// Which of the queues that we had it serves.
    generation: u64,
    /// It was told to go, and does not count any more.
    leaving: bool,
}

/// Where the queue is.
enum Queue {
    /// Here.
    Open(Receiver),
    /// Somebody at a name was asked for it.
    Asked(Visit),
    /// Nobody is at the name; it is tried again then.
    Absent(Instant),
    /// There will be no other one.
    Ended,
}

/// Why a pool stops, and how far that has gone.
enum Stop {
    /// Ask handlers to end then.
    Grace(Instant),
    /// They were asked; end slots that are still there then.
    Asked(Instant),
}

/// A pool of slots. It forks, so it is for a process with one thread.
pub struct Pool {
    source: Source,
    queue: Queue,
    generation: u64,
    handler: Handler,
    options: Options,
    scoreboard: Scoreboard,
    signals: Signals,
    children: BTreeMap<Pid, Child>,
    places: Places,
    stop: Option<Stop>,
    /// No slot is started before this.
    paused_until: Option<Instant>,
    /// What was said last of a name where nobody is.
    problem: Option<String>,
    log: Log,
}

impl Pool {
    /// A pool that takes its queue from `source` and starts `handler` for each connection. It
    /// waits for the queue, except for one that a name gives.
    ///
    /// # Errors
    /// Those of [`Source::queue`]; [`Error::System`].
    pub fn new(mut source: Source, handler: Handler, options: Options, log: Log) -> Result<Self> {
        // If whoever started us ignored it, children would vanish without a status.
        signals::default(&[Signal::SIGCHLD])?;
        let stopping = signals::not_ignored(&[Signal::SIGTERM, Signal::SIGINT]);
        // Meant for slots; who sends it to every fdpool means no harm.
        signals::ignore(&[URGENT])?;
        // While there is no queue yet, a stop breaks off the wait for it, and resizing waits.
        interrupt::break_off_on(&stopping)?;
        signals::block(&RESIZING)?;
        let mut queue = match &source {
            Source::Named { .. } => Queue::Absent(Instant::now()),
            _ => match source.queue()? {
                Found::Queue(receiver) => Queue::Open(receiver),
                Found::End | Found::BrokenOff => Queue::Ended,
            },
        };
        let own = [&stopping[..], &RESIZING, &[Signal::SIGCHLD]].concat();
        let signals = Signals::new(&own)?;
        // Also where it is ignored: a slot that is told to go while it starts must not miss it.
        signals::block(&[Signal::SIGTERM])?;
        if interrupt::raised().is_some() {
            queue = Queue::Ended;
        }
        let scoreboard = Scoreboard::new()?;
        scoreboard.set_size(options.size);
        Ok(Self {
            source,
            queue,
            generation: 0,
            handler,
            options,
            scoreboard,
            signals,
            children: BTreeMap::new(),
            places: Places::default(),
            stop: None,
            paused_until: None,
            problem: None,
            log,
        })
    }

    /// Runs until a signal, or the end of the queue, and until the last handler has finished.
    /// Returns the exit status.
    ///
    /// # Errors
    /// [`Error::System`] or [`Error::Peer`] if no queue can be had from the name, also later.
    pub fn run(mut self) -> Result<u8> {
        self.log_status();
        loop {
            self.fill();
            if self.children.is_empty() && matches!(self.queue, Queue::Ended) {
                return Ok(0);
            }
            self.wait()?;
            self.attend_signals();
            self.reap();
            self.attend_name()?;
            self.attend_stop();
        }
    }

    /// Waits until something is to be done.
    fn wait(&self) -> Result<()> {
        let mut fds = vec![PollFd::from_borrowed_fd(
            self.signals.as_fd(),
            PollFlags::IN,
        )];
        if let Queue::Asked(visit) = &self.queue {
            fds.push(PollFd::from_borrowed_fd(visit.as_fd(), PollFlags::IN));
        }
        let name = match self.queue {
            Queue::Absent(at) => Some(at),
            _ => None,
        };
        let stop = match self.stop {
            Some(Stop::Grace(at) | Stop::Asked(at)) => Some(at),
            None => None,
        };
        let deadlines = [name, stop, self.paused_until];
        wait(&mut fds, deadlines.into_iter().flatten().min())
            .map_err(|errno| Error::system("wait for slots", errno))
    }

    /// Starts the slots that are missing.
    fn fill(&mut self) {
        let now = Instant::now();
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
        }
        let staying = self.children.values().filter(|child| !child.leaving);
        for _ in staying.count()..self.scoreboard.size() {
            if self.paused_until.is_some() || !matches!(self.queue, Queue::Open(_)) {
                return;
            }
            if let Err(error) = self.start_slot() {
                self.log.error(error);
                self.paused_until = Some(now + PAUSE);
            }
        }
    }

    fn start_slot(&mut self) -> Result<()> {
        let index = self.places.take();
        self.scoreboard.set_places(self.places.used);
        match fork::start(Signal::SIGTERM, || self.be_slot(index)) {
            Ok(pid) => {
                let child = Child {
                    index,
                    generation: self.generation,
                    leaving: false,
                };
                self.children.insert(pid, child);
                Ok(())
            }
            Err(error) => {
                self.places.give_back(index);
                Err(error)
            }
        }
    }

    /// What a forked child does: it keeps the queue, and nothing else that is the parent's. While
    /// somebody has the pipe with tickets open, fdaccept goes on.
    fn be_slot(&mut self, index: usize) -> u8 {
        self.source = Source::Queue(None);
        let Queue::Open(queue) = std::mem::replace(&mut self.queue, Queue::Ended) else {
            return CLOSED;
        };
        let slot = Slot {
            handler: &self.handler,
            timeout: self.options.timeout,
            scoreboard: self.scoreboard,
            index,
            log: self.log,
        };
        slot.run(queue).status()
    }

    fn attend_signals(&mut self) {
        while let Some(signal) = self.signals.next() {
            match signal {
                Signal::SIGTERM | Signal::SIGINT => match self.stop {
                    None => self.stop(),
                    Some(_) => self.stop_now(),
                },
                Signal::SIGTTIN | Signal::SIGUSR1 => self.resize(self.scoreboard.size() + 1),
                Signal::SIGTTOU => self.resize(self.scoreboard.size() - 1),
                _ => {}
            }
        }
    }

    /// Changes the number of slots. What is too many finishes its connection first, and an idle
    /// slot goes before a busy one.
    fn resize(&mut self, size: usize) {
        self.scoreboard.set_size(size.clamp(1, MAX_SLOTS));
        let staying = self.children.iter_mut().filter(|(_, child)| !child.leaving);
        let mut staying: Vec<_> = staying.collect();
        let surplus = staying.len().saturating_sub(self.scoreboard.size());
        staying.sort_by_key(|(_, child)| self.scoreboard.is_busy(child.index));
        for (pid, child) in staying.into_iter().take(surplus) {
            child.leaving = true;
            let _ = kill(*pid, Signal::SIGTERM);
        }
        self.log_status();
    }

    /// The first signal: take nothing more, and time for handlers to finish.
    fn stop(&mut self) {
        self.queue = Queue::Ended;
        // fdaccept learns at once that nobody will take what it accepts.
        self.source = Source::Queue(None);
        self.tell_slots(Signal::SIGTERM);
        self.stop = Some(Stop::Grace(Instant::now() + self.options.grace));
    }

    /// A second signal.
    fn stop_now(&mut self) {
        self.scoreboard.set_urgency(Urgency::Now);
        self.tell_slots(URGENT);
        self.stop = Some(Stop::Asked(Instant::now() + SLACK));
    }

    /// Goes on with a stop by the clock.
    fn attend_stop(&mut self) {
        let now = Instant::now();
        match self.stop {
            Some(Stop::Grace(at)) if at <= now => {
                self.scoreboard.set_urgency(Urgency::End);
                self.tell_slots(URGENT);
                self.stop = Some(Stop::Asked(now + KILL_AFTER + SLACK));
            }
            Some(Stop::Asked(at)) if at <= now => {
                self.tell_slots(Signal::SIGKILL);
                self.stop = Some(Stop::Asked(now + SLACK));
            }
            _ => {}
        }
    }

    /// Sends a signal to every slot; one that is stopped goes on, to see it.
    fn tell_slots(&self, signal: Signal) {
        for pid in self.children.keys() {
            // None of them is reaped yet, so this is nobody else.
            let _ = kill(*pid, signal);
            let _ = kill(*pid, Signal::SIGCONT);
        }
    }

    /// Takes leave of the slots that have ended.
    fn reap(&mut self) {
        loop {
            match process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => self.lay_to_rest(pid, status),
                Err(rustix::io::Errno::INTR) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn lay_to_rest(&mut self, pid: process::Pid, status: WaitStatus) {
        let pid = Pid::from_raw(pid.as_raw_nonzero().get());
        let Some(child) = self.children.remove(&pid) else {
            return;
        };
        self.scoreboard.set_busy(child.index, false);
        self.places.give_back(child.index);
        match (status.exit_status(), status.terminating_signal()) {
            (Some(0), _) => {}
            (Some(status), _) if status == i32::from(CLOSED) => {
                if child.generation == self.generation {
                    self.queue_ended();
                }
            }
            (_, Some(signal)) => {
                self.log
                    .notice(format_args!("slot {pid} was ended by signal {signal}"));
            }
            // It has said why.
            _ => self.paused_until = Some(Instant::now() + PAUSE),
        }
    }

    /// The queue has ended: a name may give another one.
    fn queue_ended(&mut self) {
        self.queue = match self.source {
            Source::Named { .. } if !self.options.once => Queue::Absent(Instant::now()),
            _ => Queue::Ended,
        };
    }

    /// Fetches the queue from a name, when it is time to.
    fn attend_name(&mut self) -> Result<()> {
        let Source::Named { name, trust } = &self.source else {
            return Ok(());
        };
        let asked = match &self.queue {
            Queue::Absent(at) if *at <= Instant::now() => {
                Source::visit(name, trust).map(Queue::Asked)
            }
            Queue::Asked(visit) => match visit.finish(name) {
                Err(error) if error.errno() == Some(nix::errno::Errno::EAGAIN) => return Ok(()),
                other => other.map(Queue::Open),
            },
            _ => return Ok(()),
        };
        match asked {
            Ok(queue) => {
                if matches!(queue, Queue::Open(_)) {
                    self.generation += 1;
                    if self.problem.take().is_some() {
                        self.log.notice(format_args!("connected to {name}"));
                    }
                }
                self.queue = queue;
            }
            // Once it has served, it stays for whatever comes.
            Err(error) if is_passing(&error) || self.generation > 0 => {
                let problem = error.to_string();
                if self.problem.as_ref() != Some(&problem) {
                    self.log.notice(format_args!("{problem}; waiting"));
                    self.problem = Some(problem);
                }
                self.queue = Queue::Absent(Instant::now() + RECONNECT);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn log_status(&self) {
        self.scoreboard.log_status(&self.log);
    }
}

/// The places on the scoreboard.
#[derive(Debug, Default)]
struct Places {
    /// Those below this have been used.
    used: usize,
    /// Of these, those that are free.
    free: Vec<usize>,
}

impl Places {
    fn take(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.used += 1;
            self.used - 1
        })
    }

    fn give_back(&mut self, place: usize) {
        self.free.push(place);
    }
}
