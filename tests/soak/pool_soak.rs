//! A pool on a named queue at full load while everything happens to it: slots and workers are ended,
//! killed, stopped and continued, the pool is resized, reloaded, replaced and killed, fdaccept is
//! restarted. Every connection that fdaccept had accepted and no killed process had in hand is
//! served, no process or descriptor is left over, and memory does not grow.
//!
//! 20 seconds, or as many as FDTOOLS_SOAK says, with the output of the long one:
//!
//! ```text
//! FDTOOLS_SOAK=300 cargo test --release --test soak pool_soak -- --nocapture
//! ```
//!
//! FDTOOLS_SOAK_SEED changes the order of actions.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::*;
use crate::{ALLOWANCE, ask, memory, setting};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, Signal as PidfdSignal, pidfd_open, pidfd_send_signal};

const CLIENTS: usize = 16;
/// The pool's size at the start, and its limits.
const SIZE: usize = 4;
const SIZES: std::ops::RangeInclusive<usize> = 2..=8;
/// At most so many pools may be finishing.
const GENERATIONS: usize = 8;
/// A process is stopped for less than this many microseconds.
const STOPPED: u64 = 50_000;
/// A variable that everything started here has in its environment.
const MARK: &str = "FDTOOLS_SOAK_MARK";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Slots,
    Workers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Action {
    Term,
    Stop,
    Grow,
    Shrink,
    Reload,
    Replace,
    KillPool,
    Restart,
    Kill,
    KillHandler,
}

use Action::*;

/// Actions that lose no connection, each as often as it is here.
const GENTLE: &[Action] = &[
    Term, Term, Term, Stop, Stop, Stop, Grow, Grow, Shrink, Shrink, Reload, Replace, KillPool,
    Restart,
];
/// The same, and actions that lose connections in hand.
#[rustfmt::skip]
const VIOLENT: &[Action] = &[
    Term, Term, Stop, Stop, Grow, Grow, Shrink, Shrink, Reload, Replace, KillPool, Restart,
    Kill, Kill, Kill, Kill, KillHandler, KillHandler,
];
/// Actions that leave fdaccept and the pool's parent as they are.
#[rustfmt::skip]
const STEADY: &[Action] = &[
    Term, Term, Stop, Stop, Grow, Grow, Shrink, Shrink, Reload, Kill, Kill, KillHandler,
];

cases! {
    soak;
    a_pool_of_slots_serves_everybody_whatever_happens: Kind::Slots;
    a_pool_of_workers_serves_everybody_whatever_happens: Kind::Workers;
}

fn soak(kind: Kind) {
    let seconds = setting("FDTOOLS_SOAK").unwrap_or(20);
    let seed = setting("FDTOOLS_SOAK_SEED").unwrap_or(1);
    eprintln!("soak of {kind:?}: {seconds} s, seed {seed}");
    let commands = commands(kind);
    if commands.is_empty() {
        return skip("no example worker can be run");
    }
    let load = Load::new(kind);
    let mut site = Site::new(kind, commands, &load, seed);
    let length = Duration::from_secs(seconds);
    site.phase("gentle", length.mul_f64(0.4), GENTLE);
    site.phase("violent", length.mul_f64(0.4), VIOLENT);
    site.phase("steady", length.mul_f64(0.2), STEADY);
    site.end();
}

/// Options of fdpool, and the words of its handler or worker.
type PoolCommand = (&'static [&'static str], Vec<OsString>);

/// The commands that the pools of this kind take turns with.
fn commands(kind: Kind) -> Vec<PoolCommand> {
    if kind == Kind::Slots {
        return vec![(&[], vec!["cat".into()])];
    }
    let mut commands: Vec<PoolCommand> = Vec::new();
    build_worker();
    if let Some(worker) = rust_worker() {
        commands.push((&["--worker"], vec![worker.clone().into()]));
        // The same, which also says that it is ready.
        let ready = sh_c("echo >&3; exec 3>&-; exec \"$0\"").map(OsString::from);
        let ready = ready.into_iter().chain([worker.into()]).collect();
        commands.push((&["--worker", "--ready-fd", "3"], ready));
    }
    if let Some(python) = python_worker() {
        commands.push((&["--worker"], python.map(OsString::from).into()));
    }
    commands
}

/// Builds the example: `cargo test` does so, `cargo test --test` does not.
fn build_worker() {
    let directory = bin_dir();
    let profile = directory.file_name().unwrap().to_str().unwrap();
    let profile = profile.replace("debug", "dev");
    let is_built = directory.join("examples/worker").is_file();
    if let Some(cargo) = std::env::var_os("CARGO").filter(|_| !is_built) {
        let words = format!("build --offline --example worker --profile {profile} --target-dir");
        let mut build = Command::new(cargo);
        build
            .args(words.split(' '))
            .arg(directory.parent().unwrap());
        // A build that failed is noticed where the worker is needed.
        let _ = build.current_dir(env!("CARGO_MANIFEST_DIR")).status();
    }
}

/// A connection, or the attempt at one, without an answer.
struct Failure {
    client: Ipv4Addr,
    since: Instant,
    until: Instant,
    /// What the client saw.
    what: String,
}

impl Failure {
    /// The failure in words, with the actions that began meanwhile or shortly before.
    fn describe(&self, history: &[(Instant, Action)]) -> String {
        let Failure { client, what, .. } = self;
        let lasted = self.until - self.since;
        let actions: Vec<_> = history
            .iter()
            .filter(|(at, _)| *at <= self.until && *at + Duration::from_millis(100) >= self.since)
            .map(|(at, action)| format!("{action:?} {:?} before its end", self.until - *at))
            .collect();
        format!("{client}: {what} after {lasted:?}; {}", actions.join(", "))
    }
}

/// Clients without a pause. Each connection has an address of its own: by it fdaccept's log says
/// whether the connection was accepted.
struct Load {
    names: Names,
    server: Mutex<SocketAddrV4>,
    /// The second byte of the clients' addresses starts here.
    network: u8,
    next: AtomicU32,
    served: AtomicUsize,
    /// 1 for each client's address when it was accepted, and -1 when it was served.
    balance: Mutex<HashMap<Ipv4Addr, i32>>,
    failures: Mutex<Vec<Failure>>,
    /// What must never happen.
    wrong: Mutex<Vec<String>>,
}

impl Load {
    /// The server's address is used by nobody else, so its port is still free after a restart.
    fn new(kind: Kind) -> Self {
        let (own, network) = match kind {
            Kind::Slots => (32, 64),
            Kind::Workers => (33, 128),
        };
        let [.., high, low] = std::process::id().to_be_bytes();
        let server = SocketAddrV4::new(Ipv4Addr::new(127, own, high, low), 0);
        Self {
            names: Names::new(),
            server: Mutex::new(server),
            network,
            next: AtomicU32::new(1),
            served: AtomicUsize::new(0),
            balance: Mutex::new(HashMap::new()),
            failures: Mutex::new(Vec::new()),
            wrong: Mutex::new(Vec::new()),
        }
    }

    fn server(&self) -> SocketAddrV4 {
        *self.server.lock().unwrap()
    }

    /// One of 4 million addresses.
    fn next_client(&self) -> Ipv4Addr {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let [_, high, middle, low] = number.to_be_bytes();
        Ipv4Addr::new(127, self.network + high % 64, middle, low)
    }

    fn run(&self, done: &AtomicBool) {
        while !done.load(Ordering::SeqCst) {
            let client = self.next_client();
            let since = Instant::now();
            let text = format!("what {client} says, and nobody else\n").into_bytes();
            let answer = self.ask(client, &text);
            let until = Instant::now();
            let what = match answer {
                Ok(answer) if answer == text => {
                    self.count(client, -1);
                    self.served.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                Ok(answer) if text.starts_with(&answer) => format!("{} bytes", answer.len()),
                Ok(answer) => {
                    let answer = String::from_utf8_lossy(&answer);
                    return self.say_wrong(format!("{client} got {answer:?}"));
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    let place = whereabouts(client, &self.names.path());
                    return self.say_wrong(format!("{client} still waits: {error}; {place}"));
                }
                Err(error) => error.to_string(),
            };
            self.failures.lock().unwrap().push(Failure {
                client,
                since,
                until,
                what,
            });
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends `text` from the address `client`, and returns what comes back.
    fn ask(&self, client: Ipv4Addr, text: &[u8]) -> std::io::Result<Vec<u8>> {
        ask(&try_connect_from(client, self.server().into())?, text)
    }

    fn count(&self, client: Ipv4Addr, what: i32) {
        let mut balance = self.balance.lock().unwrap();
        let sum = balance.entry(client).or_default();
        *sum += what;
        if *sum == 0 {
            balance.remove(&client);
        }
    }

    fn say_wrong(&self, what: String) {
        self.wrong.lock().unwrap().push(what);
    }
}

/// What has happened so far.
#[derive(Debug, Default)]
#[allow(dead_code)] // some fields are only printed
struct Record {
    served: usize,
    actions: BTreeMap<Action, usize>,
    /// Processes that were killed and may have had a connection in hand.
    kills: usize,
    lost: usize,
    /// Clients that fdaccept had not accepted when it ended.
    unaccepted: usize,
    /// The memory of fdaccept and of the pool in kB: before the load, the most at any one's end,
    /// and in the last phase after a while and at the end.
    first: [u64; 2],
    most: [u64; 2],
    steady: [[u64; 2]; 2],
}

/// fdaccept, the pool, and what earlier ones have left.
struct Site<'a> {
    kind: Kind,
    commands: Vec<PoolCommand>,
    load: &'a Load,
    random: Random,
    seed: u64,
    acceptor: Process,
    /// fdaccept's log.
    log: PathBuf,
    /// fdaccept was told to stop.
    restarting: bool,
    pool: Process,
    size: usize,
    pools: usize,
    /// Pools that were told to stop, and pools that were killed.
    leaving: Vec<Process>,
    killed: Vec<Process>,
    /// Processes that are stopped, and until when.
    stopped: Vec<(OwnedFd, Instant)>,
    /// How many descriptors an idle fdaccept and an idle pool have.
    descriptors: [usize; 2],
    /// When each action of this phase began.
    history: Vec<(Instant, Action)>,
    /// When fdaccept was told to stop, and when the next one listened.
    restarts: Vec<(Instant, Option<Instant>)>,
    /// Processes that were killed in this phase.
    kills: usize,
    record: Record,
}

impl<'a> Site<'a> {
    fn new(kind: Kind, commands: Vec<PoolCommand>, load: &'a Load, seed: u64) -> Self {
        let log = load.names.file("log");
        let mut site = Self {
            kind,
            load,
            random: Random(seed),
            seed,
            acceptor: start_acceptor(load, &log),
            log,
            restarting: false,
            pool: start_pool(load, &commands[0]),
            commands,
            size: SIZE,
            pools: 1,
            leaving: Vec::new(),
            killed: Vec::new(),
            stopped: Vec::new(),
            descriptors: [0; 2],
            history: Vec::new(),
            restarts: Vec::new(),
            kills: 0,
            record: Record::default(),
        };
        site.until_served();
        // Afterwards everything has been done once.
        for _ in 0..2 * SIZE {
            let client = load.next_client();
            assert_eq!(load.ask(client, b"first").unwrap(), b"first");
            load.count(client, -1);
        }
        site.until_quiet();
        // While a worker is being started, the pool has a pipe to it, besides inherited pipes.
        site.until("a pool that starts nobody", |site| {
            let ours = descriptors(Pid::this());
            let is_ours = |pipe: &String| ours.iter().any(|(_, what)| what == pipe);
            let open = descriptors(site.pool.pid());
            let mut pipes = open.iter().filter(|(_, what)| what.starts_with("pipe:"));
            pipes.all(|(_, pipe)| is_ours(pipe))
        });
        site.descriptors = site.count_descriptors();
        site.record.first = site.memory();
        site
    }

    /// A part of the time, at full load. At its end everything is accounted for.
    fn phase(&mut self, name: &str, length: Duration, actions: &[Action]) {
        let pace = match self.kind {
            Kind::Slots => 40_000,
            Kind::Workers => 120_000,
        };
        let load = self.load;
        let done = AtomicBool::new(false);
        let start = Instant::now();
        std::thread::scope(|scope| {
            let _ends = Ends(&done);
            for _ in 0..CLIENTS {
                scope.spawn(|| load.run(&done));
            }
            let mut warm = false;
            while start.elapsed() < length {
                self.random.pause(pace);
                self.attend();
                let number = self.random.below(actions.len() as u64);
                self.act(actions[number as usize]);
                if !warm && start.elapsed() > length / 4 && !self.restarting {
                    warm = true;
                    self.record.steady[0] = self.memory();
                }
            }
            // Stopped processes would keep their clients waiting, and the end of the load.
            self.until("stopped processes", |site| site.stopped.is_empty());
        });
        self.until_quiet();
        self.record.steady[1] = self.memory();
        self.note_memory(self.record.steady[1]);
        let descriptors = self.descriptors;
        self.until("as many descriptors as at the start", |site| {
            site.count_descriptors() == descriptors
        });
        // Only an fdaccept that has ended has written its whole log.
        self.begin_restart();
        self.until_quiet();
        self.account(name);
    }

    fn act(&mut self, action: Action) {
        self.history.push((Instant::now(), action));
        let is_done = match action {
            Term => self.strike(PidfdSignal::TERM),
            Stop => self.strike(PidfdSignal::STOP),
            Kill => self.strike(PidfdSignal::KILL),
            KillHandler => self.kind == Kind::Slots && self.kill_handler(),
            Grow => {
                let signal = [Signal::SIGTTIN, Signal::SIGUSR1][self.random.below(2) as usize];
                self.resize(signal, self.size + 1)
            }
            Shrink => self.resize(Signal::SIGTTOU, self.size - 1),
            // HUP ends a pool of slots.
            Reload if self.kind == Kind::Slots => false,
            Reload => {
                self.pool.signal(Signal::SIGHUP);
                true
            }
            Replace => self.replace(),
            KillPool => self.kill_pool(),
            Restart if self.restarting => false,
            Restart => {
                self.note_memory([memory(self.acceptor.pid()), 0]);
                self.begin_restart();
                true
            }
        };
        if is_done {
            *self.record.actions.entry(action).or_default() += 1;
        }
    }

    /// One of `all`; `None` if there are none.
    fn any<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        let count = all.len() as u64;
        (count > 0).then(|| all[self.random.below(count) as usize])
    }

    /// Sends a signal to a slot or worker.
    fn strike(&mut self, signal: PidfdSignal) -> bool {
        let pool = self.pool.pid();
        let mut members = children(pool);
        if self.kind == Kind::Workers && signal != PidfdSignal::STOP {
            // A worker's place stays empty for longer each time that it ends too soon, so most
            // struck workers are older.
            if self.random.below(4) > 0 {
                members.retain(|pid| age(*pid) > Duration::from_secs(1));
            }
            if children(pool).len() < self.size {
                return false;
            }
        }
        let Some(pid) = self.any(&members) else {
            return false;
        };
        self.send(pid, signal, || children(pool).contains(&pid))
    }

    fn kill_handler(&mut self) -> bool {
        let pool = self.pool.pid();
        let slots = children(pool).into_iter();
        let pairs = slots.flat_map(|slot| children(slot).into_iter().map(move |pid| (slot, pid)));
        let Some((slot, pid)) = self.any(&pairs.collect::<Vec<_>>()) else {
            return false;
        };
        self.send(pid, PidfdSignal::KILL, || {
            children(slot).contains(&pid) && children(pool).contains(&slot)
        })
    }

    /// Sends a signal to process `pid` if it `is_ours`. It is held by then, so its number cannot
    /// become another process's.
    fn send(&mut self, pid: Pid, signal: PidfdSignal, is_ours: impl Fn() -> bool) -> bool {
        let number = rustix::process::Pid::from_raw(pid.as_raw()).unwrap();
        let Ok(process) = pidfd_open(number, PidfdFlags::empty()) else {
            return false;
        };
        if !is_ours() || pidfd_send_signal(&process, signal).is_err() {
            return false;
        }
        self.kills += usize::from(signal == PidfdSignal::KILL);
        if signal == PidfdSignal::STOP {
            let time = Duration::from_micros(self.random.below(STOPPED));
            self.stopped.push((process, Instant::now() + time));
        }
        true
    }

    fn resize(&mut self, signal: Signal, size: usize) -> bool {
        if !SIZES.contains(&size) {
            return false;
        }
        self.size = size;
        self.pool.signal(signal);
        // Equal signals that are pending merge.
        self.until("the pool to take a signal", |site| {
            !has_signal(site.pool.pid(), "ShdPnd", signal)
        });
        true
    }

    /// Starts the next pool. Returns the one before.
    fn next_pool(&mut self) -> Process {
        let command = &self.commands[self.pools % self.commands.len()];
        self.pools += 1;
        self.size = SIZE;
        let next = start_pool(self.load, command);
        std::mem::replace(&mut self.pool, next)
    }

    fn replace(&mut self) -> bool {
        if self.leaving.len() >= GENERATIONS {
            return false;
        }
        let old = self.next_pool();
        // Until then both serve.
        self.leaving.push(old);
        self.until_served();
        let old = self.leaving.last().unwrap();
        let memory = memory(old.pid());
        old.term();
        self.note_memory([0, memory]);
        true
    }

    fn kill_pool(&mut self) -> bool {
        self.note_memory([0, memory(self.pool.pid())]);
        self.pool.slay();
        let old = self.next_pool();
        self.killed.push(old);
        self.until_served();
        true
    }

    fn begin_restart(&mut self) {
        self.restarts.push((Instant::now(), None));
        self.acceptor.term();
        self.restarting = true;
    }

    /// Continues stopped processes, restarts fdaccept, and sees old pools off.
    fn attend(&mut self) {
        let now = Instant::now();
        self.stopped.retain(|(process, until)| {
            let stays = now < *until;
            if !stays {
                let _ = pidfd_send_signal(process, PidfdSignal::CONT);
            }
            stays
        });
        let wrong = self.load.wrong.lock().unwrap().join("; ");
        assert!(wrong.is_empty(), "{wrong}");
        assert!(self.pool.is_running(), "the pool: {}", self.pool.log());
        if !self.acceptor.is_running() {
            assert!(self.restarting, "fdaccept has ended");
            self.read_log();
            self.acceptor.expect_exit(0);
            self.acceptor = start_acceptor(self.load, &self.log);
            self.restarts.last_mut().unwrap().1 = Some(Instant::now());
            self.restarting = false;
        }
        let is_gone = |pool: &mut Process| !pool.is_running();
        for mut pool in self.leaving.extract_if(.., is_gone) {
            pool.expect_exit(0);
            assert!(!pool.log().contains("panicked"), "{}", pool.log());
        }
    }

    /// Waits until `is_true`, and attends to the rest meanwhile.
    #[track_caller]
    fn until(&mut self, what: &str, mut is_true: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !is_true(self) {
            assert!(Instant::now() < deadline, "still waiting for {what}");
            std::thread::sleep(Duration::from_millis(2));
            self.attend();
        }
    }

    #[track_caller]
    fn until_served(&mut self) {
        self.until("the pool to serve", |site| {
            children(site.pool.pid()).len() >= site.size
        });
    }

    /// Waits until only fdaccept and a whole, idle pool are left.
    #[track_caller]
    fn until_quiet(&mut self) {
        self.until("fdaccept to be back", |site| !site.restarting);
        self.until("the end of older pools", |site| site.leaving.is_empty());
        self.until("a whole pool that is idle", |site| {
            let members = children(site.pool.pid());
            members.len() == site.size && members.into_iter().all(|pid| children(pid).is_empty())
        });
        self.until("the end of what killed pools have left", |site| {
            site.processes().len() == 2 + site.size
        });
        for pool in std::mem::take(&mut self.killed) {
            let log = { pool }.log();
            assert!(!log.contains("panicked"), "{log}");
        }
    }

    /// Counts what the log of an fdaccept that has ended says it accepted.
    fn read_log(&self) {
        let log = std::fs::read_to_string(&self.log).unwrap();
        for line in log.lines().filter(|line| !is_counters(line)) {
            let Some(rest) = line.strip_prefix("fdaccept: accepted ") else {
                let others = [": listening on ", ": the queue "];
                let is_usual = others.iter().any(|other| line.contains(other));
                assert!(is_usual || is_of_a_wait(line), "{line}");
                continue;
            };
            let (client, _) = rest.split_once(':').unwrap();
            self.load.count(client.parse().unwrap(), 1);
        }
    }

    /// Expects that each connection without an answer has its reason.
    fn account(&mut self, phase: &str) {
        let accepted = std::mem::take(&mut *self.load.balance.lock().unwrap());
        let failures = std::mem::take(&mut *self.load.failures.lock().unwrap());
        let history = std::mem::take(&mut self.history);
        let kills = std::mem::take(&mut self.kills);
        for (client, count) in &accepted {
            assert_eq!(*count, 1, "{client} was served and not accepted");
            let is_known = failures.iter().any(|failure| failure.client == *client);
            assert!(is_known, "{client} was accepted and knows nothing");
        }
        let (lost, others): (Vec<_>, Vec<_>) = failures
            .into_iter()
            .partition(|failure| accepted.contains_key(&failure.client));
        let describe = |failure: &Failure| failure.describe(&history);
        assert!(
            lost.len() <= kills,
            "{phase}: {} were accepted and lost with {kills} that were killed: {:#?}",
            lost.len(),
            lost.iter().map(describe).collect::<Vec<_>>()
        );
        for failure in &others {
            let during_restart = self.restarts.iter().any(|(begin, end)| {
                failure.until >= *begin && end.is_none_or(|end| failure.since <= end)
            });
            let failure = describe(failure);
            assert!(
                during_restart,
                "{phase}: not accepted by fdaccept: {failure}"
            );
        }
        self.record.kills += kills;
        self.record.lost += lost.len();
        self.record.unaccepted += others.len();
    }

    /// Every running process that was started here, directly or not.
    fn processes(&self) -> Vec<Pid> {
        processes_with(MARK, &self.load.names.path())
    }

    fn count_descriptors(&self) -> [usize; 2] {
        [&self.acceptor, &self.pool].map(|process| descriptors(process.pid()).len())
    }

    fn memory(&self) -> [u64; 2] {
        [&self.acceptor, &self.pool].map(|process| memory(process.pid()))
    }

    fn note_memory(&mut self, ended: [u64; 2]) {
        for (most, ended) in self.record.most.iter_mut().zip(ended) {
            *most = ended.max(*most);
        }
    }

    /// Stops everything.
    fn end(&mut self) {
        self.pool.stop();
        self.acceptor.term();
        self.acceptor.expect_exit(0);
        self.read_log();
        assert!(self.load.balance.lock().unwrap().is_empty());
        until("the end of all processes", || self.processes().is_empty());
        let Record {
            first,
            most,
            steady: [before, after],
            ..
        } = self.record;
        let grows = |from: [u64; 2], to: [u64; 2]| (0..2).any(|i| to[i] > from[i] + ALLOWANCE);
        assert!(before[0].min(before[1]).min(first[0]) > 0, "no memory");
        let summary = self.summary();
        assert!(!grows(before, after) && !grows(first, most), "{summary}");
        eprintln!("{summary}");
    }

    fn summary(&mut self) -> String {
        self.record.served = self.load.served.load(Ordering::Relaxed);
        let (kind, seed, restarts) = (self.kind, self.seed, self.restarts.len());
        let record = &self.record;
        format!("soak of {kind:?}, seed {seed}, {restarts} restarts: {record:?}")
    }
}

impl Drop for Site<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.summary());
            eprintln!("the pool: {}", self.pool.log());
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let other = |line: &&str| is_counters(line) || !line.contains(" accepted ");
            let log: Vec<_> = log.lines().filter(other).collect();
            eprintln!("fdaccept: {}", log.join("\n"));
            for pid in self.processes() {
                let what = std::fs::read_link(format!("/proc/{pid}/exe"));
                eprintln!("{pid} {:?} {what:?} {:?}", state(pid), descriptors(pid));
            }
        }
        for pid in self.processes() {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

/// Starts fdaccept, which logs accepted clients in `log`, and waits until it listens.
fn start_acceptor(load: &Load, log: &Path) -> Process {
    let name = load.names.path();
    // A file, which takes every line at once.
    let _ = std::fs::remove_file(log);
    let mut command = sh("exec fdaccept -v --bind \"$0\" \"$1\" 2>>\"$2\"");
    command.args([&name, &load.server().to_string()]).arg(log);
    let mut process = command.env(MARK, &name).start();
    let line = eventually("fdaccept to listen", || {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        assert!(process.is_running(), "fdaccept: {text}");
        let (line, _) = text.split_once('\n')?;
        Some(line.to_owned())
    });
    let (_, address) = line.split_once("listening on ").unwrap();
    *load.server.lock().unwrap() = address.parse().unwrap();
    process
}

fn start_pool(load: &Load, (options, words): &PoolCommand) -> Process {
    let name = load.names.path();
    let pool = Pool::on(&name).args(*options).slots(SIZE, words);
    pool.env(MARK, &name).command().start()
}

/// The processes that have the server side of a client's connection.
fn whereabouts(client: Ipv4Addr, mark: &str) -> String {
    let peer = format!("{:08X}:", u32::from_ne_bytes(client.octets()));
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    // sl, local_address, rem_address, and so on, with the inode as the 10th.
    let inodes = table.lines().filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields[2].starts_with(&peer).then(|| fields[9].to_owned())
    });
    let owners = inodes.map(|inode| {
        let socket = format!("socket:[{inode}]");
        let ours = processes_with(MARK, mark).into_iter();
        let owners = ours.filter(|pid| sockets(*pid).contains(&socket));
        let owners: Vec<_> = owners.map(|pid| (pid.as_raw(), state(pid))).collect();
        format!("{socket} of {owners:?}")
    });
    owners.collect::<Vec<_>>().join(", ")
}

/// How long a process has been there.
fn age(pid: Pid) -> Duration {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (uptime, stat) = (read("/proc/uptime"), read(&format!("/proc/{pid}/stat")));
    let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    let fields = stat.rsplit_once(") ").map(|(_, fields)| fields);
    // USER_HZ is 100 on every Linux.
    let start = fields.and_then(|fields| fields.split(' ').nth(19)?.parse::<f64>().ok());
    Duration::from_secs_f64((uptime - start.map_or(uptime, |ticks| ticks / 100.0)).max(0.0))
}
