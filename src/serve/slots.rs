//! The slots of a pool, as their parent sees them.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::WaitStatus;

use crate::error::Result;
use crate::serve::handler::Handler;
use crate::serve::link::Link;
use crate::serve::pool::Crew;
use crate::serve::scoreboard::{Scoreboard, URGENT, Urgency};
use crate::serve::slot::Slot;
use crate::system::exit::CLOSED;
use crate::system::fork;
use crate::system::log::Log;
use crate::system::pause::Pause;
use crate::system::poll::{PollFlags, Watched, earliest};
use crate::system::termination::{Countdown, KILL_AFTER, Step};

/// How long no slot is started after one that failed, or that could not be started.
const FAILED: Duration = Duration::from_secs(1);
/// How long a slot may take for the end of its handler.
const SLACK: Duration = Duration::from_secs(2);

/// A slot as its parent sees it.
#[derive(Debug)]
struct SlotProcess {
    /// Its place on the scoreboard.
    index: usize,
    /// Which of the queues that we had it serves.
    generation: u64,
    /// It was told to go, and does not count any more.
    leaving: bool,
}

/// A number of slots, each of which serves one connection at a time.
pub(crate) struct Slots {
    handler: Handler,
    /// How long a handler may run.
    timeout: Option<Duration>,
    scoreboard: Scoreboard,
    children: BTreeMap<Pid, SlotProcess>,
    places: Places,
    /// Running: until handlers are asked to end. Then slots get time for that.
    stop: Countdown,
    /// No slot is started during this.
    pause: Pause,
    log: Log,
}

impl Slots {
    /// As many as `size`, which start `handler` for each connection and end one that runs longer
    /// than `timeout`. They are started by their [`Pool`](crate::serve::pool::Pool).
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
            stop: Countdown::Running(None),
            pause: Pause::default(),
            log,
        })
    }

    /// Starts the slots that are missing.
    fn fill(&mut self, link: &mut Link) {
        let staying = self.children.values().filter(|child| !child.leaving);
        for _ in staying.count()..self.scoreboard.size() {
            if self.pause.is_on() || link.queue().is_none() {
                return;
            }
            if let Err(error) = self.start_slot(link) {
                self.log.error(error);
                self.pause.begin(FAILED);
            }
        }
    }

    fn start_slot(&mut self, link: &mut Link) -> Result<()> {
        let index = self.places.take();
        self.scoreboard.set_places(self.places.used);
        let generation = link.generation();
        match fork::start(Signal::SIGTERM, || self.be_slot(index, link)) {
            Ok(pid) => {
                let child = SlotProcess {
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
    fn be_slot(&self, index: usize, link: &mut Link) -> u8 {
        let Some(queue) = link.take_queue() else {
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
        match self.stop.due(now) {
            Some(Step::Ask) => {
                self.scoreboard.set_urgency(Urgency::End);
                self.tell(URGENT);
                self.stop = Countdown::Asked(Some(now + KILL_AFTER + SLACK));
            }
            Some(Step::Kill | Step::GiveUp) => {
                self.tell(Signal::SIGKILL);
                self.stop = Countdown::Killed(Some(now + SLACK));
            }
            None => {}
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

impl Watched for Slots {
    /// The end of a slot is told by a signal.
    fn descriptors<'fd>(&'fd self, _poll: &mut dyn FnMut(BorrowedFd<'fd>, PollFlags)) {}

    fn deadline(&self) -> Option<Instant> {
        earliest([self.stop.deadline(), self.pause.deadline()])
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

    fn attend(&mut self, link: &mut Link) {
        self.fill(link);
        self.attend_stop();
    }

    fn ended(&mut self, pid: Pid, status: WaitStatus, link: &mut Link) {
        let Some(child) = self.children.remove(&pid) else {
            return;
        };
        self.scoreboard.set_busy(child.index, false);
        self.places.give_back(child.index);
        match (status.exit_status(), status.terminating_signal()) {
            (Some(0), _) => {}
            (Some(status), _) if status == i32::from(CLOSED) => {
                link.queue_ended(child.generation);
            }
            (_, Some(signal)) => {
                self.log
                    .notice(format_args!("slot {pid} was ended by signal {signal}"));
            }
            // It has said why.
            _ => self.pause.begin(FAILED),
        }
    }

    fn is_gone(&self) -> bool {
        self.children.is_empty()
    }

    fn stop(&mut self, grace: Duration) {
        self.tell(Signal::SIGTERM);
        self.stop = Countdown::Running(Some(Instant::now() + grace));
    }

    fn stop_now(&mut self) {
        self.scoreboard.set_urgency(Urgency::Now);
        self.tell(URGENT);
        self.stop = Countdown::Asked(Some(Instant::now() + SLACK));
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
