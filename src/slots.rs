//! The slots of a pool, as their parent sees them.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::WaitStatus;

use crate::crew::Crew;
use crate::ending::KILL_AFTER;
use crate::handler::Handler;
use crate::report::{CLOSED, Log};
use crate::scoreboard::{Scoreboard, Urgency};
use crate::slot::{Slot, URGENT};
use crate::supply::Supply;
use crate::{Result, fork};

/// How long no slot is started after one that failed, or that could not be started.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a slot may take for the end of its handler.
const SLACK: Duration = Duration::from_secs(2);

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

/// Why slots stop, and how far that has gone.
enum Stop {
    /// Ask handlers to end then.
    Grace(Instant),
    /// They were asked; end slots that are still there then.
    Asked(Instant),
}

/// A number of slots, each of which serves one connection at a time.
pub struct Slots {
    handler: Handler,
    /// How long a handler may run.
    timeout: Option<Duration>,
    scoreboard: Scoreboard,
    children: BTreeMap<Pid, Child>,
    places: Places,
    stop: Option<Stop>,
    /// No slot is started before this.
    paused_until: Option<Instant>,
    log: Log,
}

impl Slots {
    /// As many as `size`, which start `handler` for each connection and end one that runs longer
    /// than `timeout`. They are started by their [`crate::pool::Pool`].
    ///
    /// # Errors
    /// [`crate::Error::System`] (`ENOMEM`).
    pub fn new(handler: Handler, size: usize, timeout: Option<Duration>, log: Log) -> Result<Self> {
        let scoreboard = Scoreboard::new()?;
        scoreboard.set_size(size);
        scoreboard.log_status(&log);
        Ok(Self {
            handler,
            timeout,
            scoreboard,
            children: BTreeMap::new(),
            places: Places::default(),
            stop: None,
            paused_until: None,
            log,
        })
    }

    /// Starts the slots that are missing.
    fn fill(&mut self, supply: &mut Supply) {
        let now = Instant::now();
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
        }
        let staying = self.children.values().filter(|child| !child.leaving);
        for _ in staying.count()..self.scoreboard.size() {
            if self.paused_until.is_some() || supply.queue().is_none() {
                return;
            }
            if let Err(error) = self.start_slot(supply) {
                self.log.error(error);
                self.paused_until = Some(now + PAUSE);
            }
        }
    }

    fn start_slot(&mut self, supply: &mut Supply) -> Result<()> {
        let index = self.places.take();
        self.scoreboard.set_places(self.places.used);
        let generation = supply.generation();
        match fork::start(Signal::SIGTERM, || self.be_slot(index, supply)) {
            Ok(pid) => {
                let child = Child {
                    index,
                    generation,
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

    /// What a forked child does: it keeps the queue, and nothing else that is the parent's.
    fn be_slot(&self, index: usize, supply: &mut Supply) -> u8 {
        let Some(queue) = supply.take_queue() else {
            return CLOSED;
        };
        let slot = Slot {
            handler: &self.handler,
            timeout: self.timeout,
            scoreboard: self.scoreboard,
            index,
            log: self.log,
        };
        slot.run(queue).status()
    }

    /// Goes on with a stop by the clock.
    fn attend_stop(&mut self) {
        let now = Instant::now();
        match self.stop {
            Some(Stop::Grace(at)) if at <= now => {
                self.scoreboard.set_urgency(Urgency::End);
                self.tell(URGENT);
                self.stop = Some(Stop::Asked(now + KILL_AFTER + SLACK));
            }
            Some(Stop::Asked(at)) if at <= now => {
                self.tell(Signal::SIGKILL);
                self.stop = Some(Stop::Asked(now + SLACK));
            }
            _ => {}
        }
    }

    /// Sends a signal to every slot; one that is stopped goes on, to see it.
    fn tell(&self, signal: Signal) {
        for pid in self.children.keys() {
            // None of them is reaped yet, so this is nobody else.
            let _ = kill(*pid, signal);
            let _ = kill(*pid, Signal::SIGCONT);
        }
    }
}

impl Crew for Slots {
    /// The handlers are started anew for each connection.
    const RELOADING: &'static [Signal] = &[];

    fn size(&self) -> usize {
        self.scoreboard.size()
    }

    /// What is too many finishes its connection first, and an idle slot goes before a busy one.
    fn resize(&mut self, size: usize) {
        self.scoreboard.set_size(size);
        let staying = self.children.iter_mut().filter(|(_, child)| !child.leaving);
        let mut staying: Vec<_> = staying.collect();
        let surplus = staying.len().saturating_sub(size);
        staying.sort_by_key(|(_, child)| self.scoreboard.is_busy(child.index));
        for (pid, child) in staying.into_iter().take(surplus) {
            child.leaving = true;
            let _ = kill(*pid, Signal::SIGTERM);
        }
        self.scoreboard.log_status(&self.log);
    }

    fn attend(&mut self, supply: &mut Supply) -> Option<Instant> {
        self.fill(supply);
        self.attend_stop();
        let stop = match self.stop {
            Some(Stop::Grace(at) | Stop::Asked(at)) => Some(at),
            None => None,
        };
        [stop, self.paused_until].into_iter().flatten().min()
    }

    fn watched(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    fn ended(&mut self, pid: Pid, status: WaitStatus, supply: &mut Supply) {
        let Some(child) = self.children.remove(&pid) else {
            return;
        };
        self.scoreboard.set_busy(child.index, false);
        self.places.give_back(child.index);
        match (status.exit_status(), status.terminating_signal()) {
            (Some(0), _) => {}
            (Some(status), _) if status == i32::from(CLOSED) => {
                supply.queue_ended(child.generation);
            }
            (_, Some(signal)) => {
                self.log
                    .notice(format_args!("slot {pid} was ended by signal {signal}"));
            }
            // It has said why.
            _ => self.paused_until = Some(Instant::now() + PAUSE),
        }
    }

    fn is_gone(&self) -> bool {
        self.children.is_empty()
    }

    fn stop(&mut self, grace: Duration) {
        self.tell(Signal::SIGTERM);
        self.stop = Some(Stop::Grace(Instant::now() + grace));
    }

    fn stop_now(&mut self) {
        self.scoreboard.set_urgency(Urgency::Now);
        self.tell(URGENT);
        self.stop = Some(Stop::Asked(Instant::now() + SLACK));
    }

    fn last_service(&mut self) -> Instant {
        self.scoreboard.last_service()
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
