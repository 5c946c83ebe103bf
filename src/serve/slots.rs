//! The slots of a pool, as their parent process sees them.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::WaitStatus;

use crate::error::{Error, Result};
use crate::serve::handler::Handler;
use crate::serve::lingering::Lingering;
use crate::serve::link::Link;
use crate::serve::pool::Crew;
use crate::serve::returned::Returned;
use crate::serve::scoreboard::{Activity, Scoreboard, URGENT, Urgency};
use crate::serve::shortage::Shortage;
use crate::serve::slot::{HangUp, Slot, dropped};
use crate::system::command::START;
use crate::system::exit::CLOSED;
use crate::system::fork;
use crate::system::log::Log;
use crate::system::poll::{PollFlags, Watched, earliest};
use crate::system::termination::{Countdown, KILL_AFTER, Step};
use crate::system::text::{counted, seconds};

/// A slot that is alone, and stuck for this long, has no room for its handler.
const ALONE: Duration = Duration::from_millis(500);
/// How much longer than its handler a slot may take to end.
const SLACK: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct SlotProcess {
    /// The slot's place on the scoreboard.
    index: usize,
    /// The number of the queue that the slot serves.
    generation: u64,
    /// The slot was told to end. It keeps its place until it has ended: it may have a connection.
    leaving: bool,
}

impl SlotProcess {
    fn leave(&mut self, pid: Pid) {
        self.leaving = true;
        let _ = kill(pid, Signal::SIGTERM);
        // A stopped slot would not end.
        let _ = kill(pid, Signal::SIGCONT);
    }
}

/// The only slot is stuck.
#[derive(Clone, Copy, Debug)]
struct Alone {
    /// When that is told; `None` once it is.
    at: Option<Instant>,
    /// The failed starts before.
    failures: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct SlotOptions {
    /// How long a handler may run.
    pub timeout: Option<Duration>,
    /// How long a connection may last after its handler. With 0 no copy of it is kept.
    pub linger: Duration,
    /// When to end a handler because its client is gone.
    pub hang_up: Option<HangUp>,
}

/// The slots of a pool. Each serves one connection at a time.
pub(crate) struct Slots {
    handler: Handler,
    options: SlotOptions,
    scoreboard: Scoreboard,
    children: BTreeMap<Pid, SlotProcess>,
    places: Places,
    /// Connections that slots gave back.
    returned: Returned,
    /// Connections whose handlers have ended.
    lingering: Option<Lingering>,
    /// Slots with a connection wait for room, or for slots that are about to make room.
    crowded: bool,
    /// Since the only slot is stuck.
    alone: Option<Alone>,
    /// `Running` until handlers are asked to end; then slots have time to end.
    stop: Countdown,
    /// No slot is started while slots fail or processes are short.
    shortage: Shortage,
    log: Log,
}

impl Slots {
    /// `size` slots, which start `handler` for each connection. The
    /// [`Pool`](crate::serve::pool::Pool) starts the slots.
    ///
    /// # Errors
    /// [`crate::Error::System`] (`ENOMEM`, `EMFILE` and the like).
    pub fn new(handler: Handler, size: usize, options: SlotOptions, log: Log) -> Result<Self> {
        let scoreboard = Scoreboard::new()?;
        scoreboard.set_size(size);
        scoreboard.log_status(&log);
        let lingers = !options.linger.is_zero();
        let lingering = lingers.then(|| Lingering::new(options.linger));
        Ok(Self {
            handler,
            options,
            scoreboard,
            children: BTreeMap::new(),
            places: Places::default(),
            returned: Returned::new(scoreboard)?,
            lingering: lingering.transpose()?,
            crowded: false,
            alone: None,
            stop: Countdown::Running(None),
            shortage: Shortage::default(),
            log,
        })
    }

    fn fill(&mut self, link: &mut Link) {
        let missing = self.scoreboard.size().saturating_sub(self.children.len());
        for _ in 0..self.may_start(missing, link) {
            if let Err(error) = self.start_slot(link) {
                self.shortage.begin();
                self.shortage.say(error, &self.log);
                return;
            }
        }
    }

    /// How many of the missing slots may be started now.
    fn may_start(&self, missing: usize, link: &Link) -> usize {
        // Slots that have a connection come first.
        if self.crowded || self.scoreboard.urgency() != Urgency::None {
            return 0;
        }
        // A returned connection waits neither for a queue nor for the end of the pause.
        let returned = usize::from(self.returned.is_there());
        match (link.queue(), self.shortage.is_on()) {
            (None, _) | (Some(_), true) => missing.min(returned),
            (Some(_), false) => missing,
        }
    }

    /// Makes room for slots that have a connection and cannot start its handler. Idle slots end at
    /// once, and slots that finish their connection end then. Where that is not enough, one of two
    /// stuck slots gives its connection back, and ends to make room for the other one.
    fn make_room(&mut self) {
        let (mut idle, mut stuck) = (Vec::new(), Vec::new());
        let (mut busy, mut coming) = (0, 0);
        let mut cause = None;
        for (pid, child) in &mut self.children {
            match self.scoreboard.activity(child.index) {
                Activity::Idle => idle.push((*pid, child)),
                Activity::Leaving | Activity::GivingBack => coming += 1,
                Activity::Stuck(errno) => {
                    cause = Some(errno);
                    stuck.push((*pid, child.index));
                }
                Activity::Busy => busy += 1,
            }
        }
        // A returned connection waits for a new slot: an idle slot does not look for it.
        let returned = usize::from(self.returned.is_there());
        let wanted = (stuck.len() + returned).saturating_sub(coming);
        let idle = idle
            .into_iter()
            .filter(|(_, child)| self.scoreboard.tell_to_leave(child.index));
        for (pid, child) in idle.take(wanted) {
            coming += 1;
            child.leave(pid);
        }
        let mut lacking = stuck.len().saturating_sub(coming);
        let pairs = lacking.div_ceil(2).min(stuck.len().saturating_sub(1));
        for (pid, index) in &stuck[..pairs] {
            if self.scoreboard.tell_to_give_back(*index) {
                let _ = kill(*pid, URGENT);
            }
        }
        lacking = lacking.saturating_sub(2 * pairs);
        // Only a busy slot makes room. A stuck slot may start its handler meanwhile, and must stay.
        self.scoreboard.ask_for_room(lacking.min(busy));
        self.crowded = !stuck.is_empty();
        self.tell_of_shortage(cause);
    }

    /// Logs why slots are stuck, if they are.
    fn tell_of_shortage(&mut self, cause: Option<Errno>) {
        let since = self.alone.take();
        let Some(errno) = cause else { return };
        let problem = Error::system(START, errno);
        self.shortage.begin();
        let now = Instant::now();
        if self.children.len() > 1 {
            self.shortage.say(problem, &self.log);
            return;
        }
        let failures = self.scoreboard.failures();
        let at = Some(now + ALONE);
        let mut alone = since.unwrap_or(Alone { at, failures });
        if alone.at.is_some_and(|at| at <= now) {
            // The first failure may be that of a try which began before the slot was alone.
            let has_tried = failures > alone.failures + 1;
            // On a busy machine the slot may not have come to it.
            alone.at = at.filter(|_| !has_tried);
            if has_tried {
                self.shortage.say_of_last_slot(problem, &self.log);
            }
        }
        self.alone = Some(alone);
    }

    /// The time for handlers is over, so nobody is left for returned connections.
    fn drop_returned(&self) {
        while self.scoreboard.urgency() != Urgency::None
            && let Ok(Some(connection)) = self.returned.take()
        {
            self.log.error(dropped(&connection));
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
    fn be_slot(&mut self, index: usize, link: &mut Link) -> u8 {
        let queue = link.take_queue();
        let farewell = self.lingering.take().map(Lingering::into_slot);
        let slot = Slot {
            handler: &self.handler,
            timeout: self.options.timeout,
            hang_up: self.options.hang_up,
            farewell: farewell.as_ref(),
            scoreboard: self.scoreboard,
            returned: &self.returned,
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

    fn end_lingering_by(&mut self, end: Instant) {
        if let Some(lingering) = &mut self.lingering {
            lingering.end_by(end);
        }
    }

    /// A process has ended, so that a stuck slot may have room.
    fn tell_stuck(&self) {
        for (pid, child) in &self.children {
            if let Activity::Stuck(_) = self.scoreboard.activity(child.index) {
                let _ = kill(*pid, URGENT);
            }
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
    /// Those of lingering connections. The end of a slot is told by a signal.
    fn descriptors<'fd>(&'fd self, poll: &mut dyn FnMut(BorrowedFd<'fd>, PollFlags)) {
        if let Some(lingering) = &self.lingering {
            lingering.descriptors(poll);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let alone = self.alone.and_then(|alone| alone.at);
        let lingering = self.lingering.as_ref().and_then(Watched::deadline);
        let stop = self.stop.deadline();
        earliest([stop, self.shortage.deadline(), alone, lingering])
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
            self.scoreboard.tell_to_leave(child.index);
            child.leave(*pid);
        }
        self.scoreboard.log_status(&self.log);
    }

    fn attend(&mut self, link: &mut Link) {
        self.attend_stop();
        if let Some(lingering) = &mut self.lingering {
            lingering.attend();
        }
        self.drop_returned();
        self.make_room();
        self.fill(link);
    }

    fn ended(&mut self, pid: Pid, status: WaitStatus, link: &mut Link) {
        let Some(child) = self.children.remove(&pid) else {
            return;
        };
        self.scoreboard.set(child.index, Activity::Idle);
        self.places.give_back(child.index);
        if self.crowded || self.shortage.is_short() {
            self.returned.look();
            self.tell_stuck();
        }
        match (status.exit_status(), status.terminating_signal()) {
            (Some(0), _) => {}
            (Some(status), _) if status == i32::from(CLOSED) => {
                link.queue_ended(child.generation);
            }
            (_, Some(signal)) => {
                self.log
                    .warning(format_args!("slot {pid} was ended by signal {signal}"));
            }
            // The slot has logged the reason.
            _ => return self.shortage.begin(),
        }
        if self.children.is_empty() {
            // Somebody must try whether the shortage is over.
            self.shortage.end_pause();
        }
    }

    fn is_gone(&self) -> bool {
        self.children.is_empty()
            && !self.returned.is_there()
            && self.lingering.as_ref().is_none_or(Lingering::is_empty)
    }

    fn in_service(&self) -> Option<String> {
        let busy = self.scoreboard.count_busy();
        let lingering = self.lingering.as_ref().map_or(0, Lingering::len);
        match (busy, lingering) {
            (0, 0) => None,
            (0, left) => {
                let (connections, time) =
                    (counted(left, "connection"), seconds(self.options.linger));
                Some(format!(
                    "{connections} to be closed by clients (--linger {time})"
                ))
            }
            (busy, _) => Some(counted(busy, "handler")),
        }
    }

    fn stop(&mut self, grace: Duration) {
        self.tell(Signal::SIGTERM);
        let end = Instant::now() + grace;
        self.stop = Countdown::Running(Some(end));
        self.end_lingering_by(end);
    }

    fn stop_now(&mut self) {
        self.scoreboard.set_urgency(Urgency::Now);
        self.tell(URGENT);
        let now = Instant::now();
        self.stop = Countdown::Asked(Some(now + SLACK));
        self.end_lingering_by(now);
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
