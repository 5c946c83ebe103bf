//! The workers of a pool: started, replaced when they end, exchanged in a reload.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpgid, getpid};
use rustix::process::WaitStatus;

use crate::error::{Error, Result};
use crate::queue::Receiver;
use crate::serve::cpu_activity::CpuActivity;
use crate::serve::link::Link;
use crate::serve::pool::Crew;
use crate::serve::watchdog::Watchdog;
use crate::serve::worker::{Readiness, STARTED_AFTER, Worker, WorkerCommand};
use crate::system::log::{Log, Said, Verbosity};
use crate::system::poll::{PollFlags, Watched};
use crate::system::processes::{SocketLink, children};
use crate::system::signals;
use crate::system::termination::{KILL_AFTER, Step, Target, Termination};
use crate::system::text::{counted, seconds};

/// How long a place stays empty after its worker ended too soon. The delay doubles with each
/// further failure.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LAST_DELAY: Duration = Duration::from_secs(30);
/// Workers that end with status 0 within [`STARTED_AFTER`] are replaced this far apart, so that
/// workers which end at once do not fill the processor.
const SOON: Duration = Duration::from_millis(10);
/// From TERM to KILL of a worker that hangs: it is past listening, and a client waits.
const HUNG: Duration = Duration::from_secs(1);
/// A reload starts no worker while this many per place are still leaving.
const MOST_LEAVING: usize = 4;

/// A place for a worker, to be filled at `at`.
#[derive(Clone, Copy, Debug)]
struct Vacancy {
    at: Instant,
    /// How many workers in this place ended too soon, in a row.
    failures: u32,
}

impl Vacancy {
    fn now(failures: u32) -> Self {
        let at = Instant::now() + delay(failures);
        Self { at, failures }
    }
}

/// The workers of a pool. Each takes one connection after another from the queue.
pub(crate) struct Workers {
    command: WorkerCommand,
    size: usize,
    /// The time from TERM to KILL of a worker.
    grace: Duration,
    workers: BTreeMap<Pid, Worker>,
    watchdog: Option<Watchdog>,
    vacancies: Vec<Vacancy>,
    /// Without a queue no worker is started.
    has_queue: bool,
    /// A reload is replacing the workers.
    reloading: bool,
    /// The new worker of a reload. Once it has started, an older one goes.
    candidate: Option<Pid>,
    pace: Pace,
    /// The last message about workers that end at once.
    said: Said,
    /// Groups whose worker has ended, and which still have processes.
    remains: Vec<Termination>,
    activity: CpuActivity,
    /// Whether the first worker was examined, see [`Workers::examine`].
    is_examined: bool,
    log: Log,
}

impl Workers {
    /// `size` workers, each with `grace` from TERM to KILL. The [`Pool`](crate::serve::pool::Pool)
    /// starts them.
    pub fn new(
        mut command: WorkerCommand,
        size: usize,
        grace: Duration,
        watchdog: Option<Watchdog>,
        log: Log,
    ) -> Self {
        if let Some(watchdog) = &watchdog {
            command.watched_by(watchdog);
        }
        // The orphans of workers become our children, so that their end is seen. If the kernel
        // refuses, another process reaps them.
        let _ = set_child_subreaper(true);
        Self {
            command,
            size,
            grace,
            workers: BTreeMap::new(),
            watchdog,
            vacancies: Vec::new(),
            has_queue: false,
            reloading: false,
            candidate: None,
            pace: Pace(Instant::now()),
            said: Said::default(),
            remains: Vec::new(),
            activity: CpuActivity::new(),
            is_examined: false,
            log,
        }
    }

    /// The workers that count: neither leaving ones nor the candidate.
    fn staying(&self) -> impl Iterator<Item = (&Pid, &Worker)> {
        let candidate = self.candidate;
        self.workers
            .iter()
            .filter(move |(pid, worker)| !worker.is_leaving() && Some(**pid) != candidate)
    }

    /// Adds or removes places until there are `size`.
    fn balance(&mut self) {
        let mut places = self.staying().count() + self.vacancies.len();
        while places < self.size {
            self.vacancies.push(Vacancy::now(0));
            places += 1;
        }
        while places > self.size {
            if self.vacancies.pop().is_none() {
                let surplus = self.staying().min_by_key(|(_, worker)| {
                    let started = worker.readiness.is_started();
                    // First a stale worker, then one that has not started yet, then the newest.
                    (!worker.stale, started, std::cmp::Reverse(worker.since))
                });
                let Some((pid, _)) = surplus else { return };
                self.ask_to_go(*pid);
            }
            places -= 1;
        }
    }

    fn ask_to_go(&mut self, pid: Pid) {
        if let Some(worker) = self.workers.get_mut(&pid) {
            worker.ask_to_go(self.grace);
        }
    }

    fn fill(&mut self, queue: &Receiver, generation: u64) {
        let now = Instant::now();
        let vacancies = std::mem::take(&mut self.vacancies);
        let (due, later): (Vec<_>, Vec<_>) = vacancies.into_iter().partition(|v| v.at <= now);
        self.vacancies = later;
        let mut due = due.into_iter();
        for vacancy in due.by_ref() {
            let Err(error) = self.start(queue, generation, vacancy.failures) else {
                continue;
            };
            let next = Vacancy::now(vacancy.failures + 1);
            let delay = seconds(delay(next.failures));
            self.log.error(format_args!("{error}; next try in {delay}"));
            self.vacancies.push(next);
            if matches!(error, Error::System { .. }) {
                // Processes or descriptors are short, for all places.
                let at = next.at;
                let rest = due.map(|vacancy| Vacancy { at, ..vacancy });
                self.vacancies.extend(rest);
                return;
            }
        }
    }

    fn start(&mut self, queue: &Receiver, generation: u64, failures: u32) -> Result<Pid> {
        let (pid, readiness) = self.command.start(queue)?;
        self.log.detail(format_args!("worker {pid} was started"));
        let clock = self.command.clock();
        let worker = Worker::new(pid, readiness, clock, generation, failures);
        self.workers.insert(pid, worker);
        Ok(pid)
    }

    /// Goes on with a reload: starts the next worker that is to replace an older one.
    fn roll(&mut self, queue: &Receiver, generation: u64) {
        if !self.reloading || self.candidate.is_some() {
            return;
        }
        if !self.staying().any(|(_, worker)| worker.stale) {
            self.reloading = false;
            self.log.notice("reload: done");
            return;
        }
        // Reloads faster than workers can end must not fill the machine with workers.
        let leaving = self.workers.values().filter(|worker| worker.is_leaving());
        if leaving.count() >= MOST_LEAVING * self.size {
            return;
        }
        match self.start(queue, generation, 0) {
            Ok(pid) => self.candidate = Some(pid),
            Err(error) => self.give_up_reload(error),
        }
    }

    /// The workers that are not replaced yet stay.
    fn give_up_reload(&mut self, why: impl std::fmt::Display) {
        self.reloading = false;
        self.candidate = None;
        self.workers
            .values_mut()
            .for_each(|worker| worker.stale = false);
        self.log
            .error(format_args!("reload: {why}; the old workers stay"));
    }

    /// Looks whether new workers report that they are ready.
    fn hear(&mut self) {
        let mut late = Vec::new();
        for (pid, worker) in &mut self.workers {
            if !worker.hear_readiness() {
                continue;
            }
            match worker.readiness {
                Readiness::Closed(_) => {}
                Readiness::Late if worker.is_leaving() => {}
                Readiness::Late => late.push(*pid),
                Readiness::Never => self.log.error(format_args!(
                    "worker {pid} closed its ready descriptor without a newline"
                )),
                _ => self.log.detail(format_args!("worker {pid} is ready")),
            }
        }
        late.into_iter().for_each(|pid| self.end_late(pid));
        let Some((pid, candidate)) = self
            .candidate
            .and_then(|pid| self.workers.get_key_value(&pid))
        else {
            return;
        };
        let pid = *pid;
        if candidate.readiness.is_started() {
            // From now on the candidate counts, and balance() sends an older worker away.
            self.candidate = None;
        } else if matches!(candidate.readiness, Readiness::Never) {
            self.give_up_reload(format_args!("worker {pid} does not say that it is ready"));
            self.ask_to_go(pid);
        }
    }

    /// Says once that a worker that has lived for a second reads the queue as a handler reads its
    /// connection.
    fn examine(&mut self, queue: &Receiver) {
        if self.examined_at().is_none_or(|at| Instant::now() < at) {
            return;
        }
        self.is_examined = true;
        let oldest = self.workers.iter().min_by_key(|(_, worker)| worker.since);
        let queue = SocketLink::of(queue.as_fd());
        let is_misled = oldest
            .zip(queue)
            .is_some_and(|((pid, _), queue)| queue.is_read_as_bytes_by(*pid));
        if is_misled {
            let name = self.command.name();
            self.log.warning(format_args!(
                "{name} gets the queue, not a connection: did you mean fdpool N -- {name}, without \
                 --worker?"
            ));
        }
    }

    fn examined_at(&self) -> Option<Instant> {
        let workers = self.workers.values().filter(|_| !self.is_examined);
        let oldest = workers.map(|worker| worker.since).min();
        oldest.map(|since| since + STARTED_AFTER)
    }

    /// Ends a worker that did not report in time that it is ready.
    fn end_late(&mut self, pid: Pid) {
        let Some(worker) = self.workers.get_mut(&pid) else {
            return;
        };
        // It serves nobody, so it needs no more time to end than a handler.
        worker.ask_to_go(KILL_AFTER.min(self.grace));
        let within = seconds(self.command.ready_timeout());
        let failures = worker.failures + 1;
        self.replace_failed(pid, &format!("was not ready within {within}"), failures);
    }

    /// Says why a worker is ended, and makes a place for the next one.
    fn replace_failed(&mut self, pid: Pid, problem: &str, failures: u32) {
        let problem = format!("worker {pid} {problem}");
        if self.candidate == Some(pid) {
            self.give_up_reload(problem);
            return;
        }
        let when = when(failures);
        self.log.error(format_args!(
            "{problem}, and is ended; the next one is started {when}"
        ));
        self.vacancies.push(Vacancy::now(failures));
    }

    /// Ends the workers that hang.
    fn attend_watchdog(&mut self) {
        self.hear_watchdog();
        let now = Instant::now();
        let workers = self.workers.iter_mut();
        let hung: Vec<Pid> = workers
            .filter_map(|(pid, worker)| worker.hangs(now).then_some(*pid))
            .collect();
        hung.into_iter().for_each(|pid| self.end_hung(pid));
    }

    /// Hears what workers say of themselves.
    fn hear_watchdog(&mut self) {
        let Some(watchdog) = &mut self.watchdog else {
            return;
        };
        let workers = &mut self.workers;
        let hear = |sender, report| {
            let worker = worker_of(sender, workers).and_then(|pid| workers.get_mut(&pid));
            let clock = worker.and_then(|worker| worker.clock.as_mut());
            clock.map(|clock| clock.hear(report)).is_some()
        };
        watchdog.hear(hear, &self.log);
    }

    fn end_hung(&mut self, pid: Pid) {
        let Some(worker) = self.workers.get_mut(&pid) else {
            return;
        };
        let Some(clock) = worker.clock else { return };
        worker.ask_to_go(HUNG.min(self.grace));
        let has_worked = clock.is_heard() && worker.since.elapsed() >= STARTED_AFTER;
        let failures = if has_worked { 0 } else { worker.failures + 1 };
        let time = seconds(clock.time());
        let problem = if clock.is_triggered() {
            "asked for its end (WATCHDOG=trigger)".to_owned()
        } else if clock.is_heard() {
            format!("has not been heard of for {time}")
        } else {
            format!("did not say within {time} that it is alive (WATCHDOG=1)")
        };
        self.replace_failed(pid, &problem, failures);
    }

    /// Kills workers whose time to end by themselves is over.
    fn attend_leaving(&mut self) {
        let log = self.log;
        self.workers.retain(|pid, worker| {
            match worker.due() {
                Some(Step::Kill) => {
                    let grace = seconds(worker.patience);
                    log.warning(format_args!(
                        "worker {pid} did not end within {grace}, and is killed"
                    ));
                    worker.kill();
                }
                Some(Step::GiveUp) => {
                    log.error(format_args!(
                        "worker {pid} cannot be ended, and is left alone"
                    ));
                    return false;
                }
                Some(Step::Ask) | None => {}
            }
            true
        });
        self.remains.retain_mut(|remains| {
            remains.is_there() && {
                remains.go_on();
                !remains.countdown().is_killed()
            }
        });
    }

    /// Makes a place for the successor of a worker that ended without being told to.
    fn replace(&mut self, pid: Pid, mut worker: Worker, status: WaitStatus) {
        let lived = worker.since.elapsed() >= STARTED_AFTER;
        if worker.ends_well(status) {
            let now = Instant::now();
            let at = if lived {
                now
            } else {
                self.pace.next(self.size)
            };
            if at > now {
                let rate = Duration::from_secs(1).as_millis() / SOON.as_millis();
                let what = format!(
                    "workers end with status 0 within a second; at most {rate} a second are started"
                );
                self.log.once(&mut self.said, Verbosity::Normal, what);
            }
            self.vacancies.push(Vacancy { at, failures: 0 });
            return;
        }
        let failures = if lived { 0 } else { worker.failures + 1 };
        let (how, when) = (how(status), when(failures));
        self.log.warning(format_args!(
            "worker {pid} {how}; the next one is started {when}"
        ));
        self.vacancies.push(Vacancy::now(failures));
    }
}

impl Watched for Workers {
    /// The watchdog, and the pipes of the workers that have not reported their readiness.
    fn descriptors<'fd>(&'fd self, poll: &mut dyn FnMut(BorrowedFd<'fd>, PollFlags)) {
        if let Some(watchdog) = &self.watchdog {
            poll(watchdog.as_fd(), PollFlags::IN);
        }
        for worker in self.workers.values() {
            if let Readiness::Awaited { pipe, .. } = &worker.readiness {
                poll(pipe.as_fd(), PollFlags::IN);
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let vacancies = self.vacancies.iter().map(|vacancy| vacancy.at);
        let vacancies = vacancies.filter(|_| self.has_queue);
        let readiness = self.workers.iter().filter_map(|(pid, worker)| {
            // When other workers have started does not matter.
            let matters =
                Some(*pid) == self.candidate || !matches!(worker.readiness, Readiness::Lives(_));
            worker.readiness.deadline().filter(|_| matters)
        });
        let leaving = self.workers.values().filter_map(Worker::deadline);
        let remains = self.remains.iter().map(Termination::next_look);
        let silence = self.workers.values().filter_map(Worker::must_be_heard_at);
        let deadlines = vacancies.chain(readiness).chain(leaving).chain(remains);
        let deadlines = deadlines.chain(silence);
        let examined = self.examined_at().filter(|_| self.has_queue);
        deadlines.chain(examined).min()
    }
}

impl Crew for Workers {
    const RELOADING: &'static [Signal] = &[Signal::SIGHUP];

    fn size(&self) -> usize {
        self.size
    }

    fn resize(&mut self, size: usize) {
        self.size = size;
        self.log.detail(format_args!("status: {size} workers"));
    }

    fn attend(&mut self, link: &mut Link) {
        self.hear();
        self.attend_watchdog();
        self.attend_leaving();
        self.balance();
        // No worker reports the end of the queue, so look before another one is started.
        let is_due = !self.vacancies.is_empty() || self.reloading;
        if is_due && link.queue().is_some_and(Receiver::is_at_end) {
            link.queue_ended(link.generation());
        }
        if let Some(queue) = link.queue() {
            self.fill(queue, link.generation());
            self.roll(queue, link.generation());
            self.examine(queue);
        }
        self.has_queue = link.queue().is_some();
    }

    fn ended(&mut self, pid: Pid, status: WaitStatus, link: &mut Link) {
        // What it said at last is no stranger's.
        self.hear_watchdog();
        let Some(worker) = self.workers.remove(&pid) else {
            return;
        };
        let raw = status.as_raw();
        self.log.detail(format_args!("end {pid} status {raw}"));
        let now = Instant::now();
        let mut remains = Termination::new(Target::Rest(pid), Some(now + self.grace));
        if remains.is_there() {
            if worker.is_leaving() {
                remains.ask(worker.killed_at().unwrap_or(now));
            }
            self.remains.push(remains);
        }
        let was_candidate = self.candidate == Some(pid);
        if was_candidate {
            self.candidate = None;
        }
        if worker.is_leaving() {
            return;
        }
        // A worker that finds the end of the queue has ended well, however soon.
        if link.queue().is_some_and(Receiver::is_at_end) {
            link.queue_ended(worker.generation);
        }
        let on_this_queue = link.generation() == worker.generation && link.queue().is_some();
        match (was_candidate, on_this_queue) {
            (true, true) => {
                let how = how(status);
                self.give_up_reload(format_args!("worker {pid} {how} before it had started"));
            }
            (false, true) => self.replace(pid, worker, status),
            // balance() makes a place for the next worker, on the next queue.
            (_, false) => {}
        }
    }

    fn stopped(&mut self, pid: Pid, signal: i32) {
        if self.workers.contains_key(&pid) {
            let signal = signals::name(signal);
            self.log
                .warning(format_args!("worker {pid} is stopped by {signal}"));
        }
    }

    fn is_gone(&self) -> bool {
        self.workers.is_empty() && self.remains.is_empty()
    }

    fn in_service(&self) -> Option<String> {
        match (self.workers.len(), self.remains.len()) {
            (0, 0) => None,
            // They outlive their workers.
            (0, left) => Some(format!("the children of {}", counted(left, "worker"))),
            (workers, _) => Some(counted(workers, "worker")),
        }
    }

    fn reload(&mut self) {
        let count = self.staying().count();
        self.log
            .notice(format_args!("reload: {count} workers to replace"));
        if let Some(candidate) = self.candidate.take() {
            self.ask_to_go(candidate);
        }
        for worker in self.workers.values_mut() {
            worker.stale = true;
        }
        // The reload may have changed what made workers fail.
        self.vacancies
            .iter_mut()
            .for_each(|vacancy| *vacancy = Vacancy::now(0));
        self.reloading = true;
    }

    fn stop(&mut self, grace: Duration) {
        self.candidate = None;
        let at = Instant::now() + grace;
        self.workers
            .values_mut()
            .for_each(|worker| worker.ask_to_go(grace));
        self.remains.iter_mut().for_each(|remains| remains.ask(at));
    }

    fn stop_now(&mut self) {
        self.workers.values_mut().for_each(Worker::kill);
        self.remains
            .iter_mut()
            .for_each(|remains| remains.kill(None));
    }

    fn refused(&self) -> u64 {
        self.watchdog.as_ref().map_or(0, Watchdog::refused)
    }

    /// Workers do not tell what they serve; only their activity can be seen.
    fn last_service(&mut self) -> Instant {
        // The orphans of workers are our children.
        let orphans = children(getpid());
        let workers = self.workers.keys().copied();
        self.activity.look(workers.chain(orphans))
    }
}

/// The worker that a process belongs to: it is the worker, or in its process group.
fn worker_of(pid: Pid, workers: &BTreeMap<Pid, Worker>) -> Option<Pid> {
    if workers.contains_key(&pid) {
        return Some(pid);
    }
    let group = getpgid(Some(pid)).ok()?;
    workers.contains_key(&group).then_some(group)
}

/// The earliest start of the next worker that replaces a short-lived one.
#[derive(Debug)]
struct Pace(Instant);

impl Pace {
    /// At once for the first `burst` workers after a pause, then [`SOON`] apart.
    fn next(&mut self, burst: usize) -> Instant {
        let now = Instant::now();
        let credit = SOON.saturating_mul(u32::try_from(burst).unwrap_or(u32::MAX));
        let paused = now.checked_sub(credit).unwrap_or(now);
        self.0 = self.0.max(paused) + SOON;
        self.0.max(now)
    }
}

/// The delay before the next start, after this many failures in a row.
fn delay(failures: u32) -> Duration {
    match failures.checked_sub(1) {
        None => Duration::ZERO,
        Some(before) => {
            let factor = 2_u32.saturating_pow(before);
            FIRST_DELAY.saturating_mul(factor).min(LAST_DELAY)
        }
    }
}

/// When the next worker is started, after this many failures in a row.
fn when(failures: u32) -> String {
    match delay(failures) {
        Duration::ZERO => "at once".to_owned(),
        delay => format!("in {}", seconds(delay)),
    }
}

fn how(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (_, Some(signal)) => format!("was ended by signal {signal}"),
        (Some(status), _) => format!("ended with status {status}"),
        _ => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_from_a_tenth_of_a_second_to_half_a_minute() {
        let delays = (0..=10).map(|failures| delay(failures).as_millis());
        let expected = [0, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000];
        assert_eq!(delays.collect::<Vec<_>>(), expected);
        assert_eq!(delay(u32::MAX), LAST_DELAY);
    }

    #[test]
    fn short_lived_workers_are_replaced_at_once_and_then_apart() {
        let start = Instant::now();
        let mut pace = Pace(start);
        std::thread::sleep(SOON * 3);
        let starts: Vec<_> = (0..5).map(|_| pace.next(2)).collect();
        let now = Instant::now();
        assert!(starts[..2].iter().all(|at| *at <= now));
        let apart = starts.windows(2).skip(1).map(|pair| pair[1] - pair[0]);
        assert!(apart.into_iter().all(|apart| apart <= SOON));
        assert_eq!(starts[4] - starts[3], SOON);
        assert!(starts[4] >= start + SOON * 4);
    }
}
