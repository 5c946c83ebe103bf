//! The slots of a pool, as their parent process sees them.

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

/// The pause after a slot has failed or could not be started.
const FAILED: Duration = Duration::from_secs(1);
/// How much longer than its handler a slot may take to end.
const SLACK: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct SlotProcess {
    /// The slot's place on the scoreboard.
    index: usize,
    /// The number of the queue that the slot serves.
    generation: u64,
    /// The slot was told to end, and no longer counts.
    leaving: bool,
}

/// The slots of a pool. Each serves one connection at a time.
pub(crate) struct Slots {
    handler: Handler,
    /// How long a handler may run.
    timeout: Option<Duration>,
    scoreboard: Scoreboard,
    children: BTreeMap<Pid, SlotProcess>,
    places: Places,
    /// `Running` until handlers are asked to end; then slots have time to end.
    stop: Countdown,
    /// No slot is started during this pause.
    pause: Pause,
    log: Log,
}

impl Slots {
    /// `size` slots, which start `handler` for each connection and end it after `timeout`. The
    /// [`Pool`](crate::serve::pool::Pool) starts the slots.
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

    /// Runs in a forked child, which keeps the queue and closes the rest of the parent's link.
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

    /// Takes the due step of a stop.
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

    /// Sends a signal to every slot. A stopped slot is continued, so that it sees the signal.
    fn tell(&self, signal: Signal) {
        for pid in self.children.keys() {
            // No slot is reaped yet, so no other process has this pid.
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
    /// Each connection starts its handler anew, so there is nothing to reload.
    const RELOADING: &'static [Signal] = &[];

    fn size(&self) -> usize {
        self.scoreboard.size()
    }

    /// A surplus slot finishes its connection first. Idle slots go before busy ones.
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
            // The slot has logged the reason.
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

    fn refused(&self) -> u64 {
        self.scoreboard.refused()
    }

    fn last_service(&mut self) -> Instant {
        self.scoreboard.last_service()
    }
}

#[derive(Debug, Default)]
struct Places {
    /// Places below this number have been used.
    used: usize,
    /// The free places below `used`.
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
