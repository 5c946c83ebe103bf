//! A pool on a named queue at full load while everything happens to it: who serves is ended,
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
//! FDTOOLS_SOAK_SEED is for another order of things than that of seed 1.

use std::collections::{BTreeMap, HashMap};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::*;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, Signal as PidfdSignal, pidfd_open, pidfd_send_signal};

const CLIENTS: usize = 16;
/// The pool's size at the start, and its limits.
const SIZE: usize = 4;
const SIZES: std::ops::RangeInclusive<usize> = 2..=8;
/// More pools than this do not finish at once.
const GENERATIONS: usize = 8;
/// A process is stopped for less than this many microseconds.
const STOPPED: u64 = 50_000;
/// What memory of a process may differ by, in kB: a few pages of heap that it has not used yet.
const ALLOWANCE: u64 = 256;
/// What everything that is started has in its environment.
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

/// What loses no connection, each as often as it is here.
const GENTLE: &[Action] = &[
    Term, Term, Term, Stop, Stop, Stop, Grow, Grow, Shrink, Shrink, Reload, Replace, KillPool,
    Restart,
];
/// That and what loses what was in hand.
const VIOLENT: &[Action] = &[
    Term,
    Term,
    Stop,
    Stop,
    Grow,
    Grow,
    Shrink,
    Shrink,
    Reload,
    Replace,
    KillPool,
    Restart,
    Kill,
    Kill,
    Kill,
    Kill,
    KillHandler,
    KillHandler,
];
/// What leaves fdaccept and the pool's parent as they are.
const STEADY: &[Action] = &[
    Term,
    Term,
    Stop,
    Stop,
    Grow,
    Grow,
    Shrink,
    Shrink,
    Reload,
    Kill,
    Kill,
    KillHandler,
];

#[test]
fn a_pool_of_slots_serves_everybody_whatever_happens() {
    soak(Kind::Slots);
}

#[test]
fn a_pool_of_workers_serves_everybody_whatever_happens() {
    soak(Kind::Workers);
}

fn soak(kind: Kind) {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
    };
    let seconds = number("FDTOOLS_SOAK").unwrap_or(20);
    let seed = number("FDTOOLS_SOAK_SEED").unwrap_or(1);
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
    eprintln!("{}", site.summary());
}

/// The commands that the pools of this kind take turns with: options of fdpool, and after N.
fn commands(kind: Kind) -> Vec<(Vec<String>, Vec<String>)> {
    let words = |text: &str| {
        text.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    if kind == Kind::Slots {
        return vec![(Vec::new(), words("cat"))];
    }
    let mut commands = Vec::new();
    build_worker();
    if let Some(worker) = rust_worker() {
        let worker = worker.to_str().unwrap().to_owned();
        commands.push((words("--worker"), vec![worker.clone()]));
        // The same, which also says that it is ready.
        let says_so = ["sh", "-c", "echo >&3; exec 3>&-; exec \"$0\"", &worker];
        let says_so = says_so.map(str::to_owned).to_vec();
        commands.push((words("--worker --ready-fd 3"), says_so));
    }
    if let Some(python) = python_worker() {
        let python = python.map(|path| path.to_str().unwrap().to_owned());
        commands.push((words("--worker"), python.to_vec()));
    }
    commands
}

/// Builds the example, which `cargo test` does and `cargo test --test` does not.
fn build_worker() {
    let bin_dir = bin_dir();
    let profile = match bin_dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(other) => other,
        None => return,
    };
    let is_built = bin_dir.join("examples/worker").is_file();
    if let Some(cargo) = std::env::var_os("CARGO").filter(|_| !is_built) {
        let mut build = Command::new(cargo);
        build.args([
            "build",
            "--offline",
            "--example",
            "worker",
            "--profile",
            profile,
        ]);
        build.arg("--target-dir").arg(bin_dir.parent().unwrap());
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        // However long that takes; whether it is there then is seen by who wants it.
        let _ = build.status();
    }
}

/// A connection, or the try to have one, that gave the client no answer.
struct Failure {
    client: Ipv4Addr,
    since: Instant,
    until: Instant,
    /// What the client saw.
    what: String,
}

impl Failure {
    /// The same in words, with the actions that began meanwhile or shortly before.
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

/// Clients without a pause, each connection from an address of its own, by which fdaccept's log
/// says whether it was accepted.
struct Load {
    server: Mutex<SocketAddrV4>,
    /// The second byte of the clients' addresses starts here.
    network: u8,
    next: AtomicU32,
    served: AtomicUsize,
    /// 1 for each client's address when it was accepted, and -1 when it was served.
    balance: Mutex<HashMap<Ipv4Addr, i32>>,
    failures: Mutex<Vec<Failure>>,
    /// What must not happen at all.
    wrong: Mutex<Vec<String>>,
}

/// Ends a load, also where a test fails amid it.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Load {
    /// The server has an address that nobody else uses: its port is still free when it comes back.
    fn new(kind: Kind) -> Self {
        let (own, network) = match kind {
            Kind::Slots => (32, 64),
            Kind::Workers => (33, 128),
        };
        let [.., high, low] = std::process::id().to_be_bytes();
        let server = SocketAddrV4::new(Ipv4Addr::new(127, own, high, low), 0);
        Self {
            server: Mutex::new(server),
            network,
            next: AtomicU32::new(1),
            served: AtomicUsize::new(0),
            balance: Mutex::new(HashMap::new()),
            failures: Mutex::new(Vec::new()),
            wrong: Mutex::new(Vec::new()),
        }
    }

    /// The server's address.
    fn server(&self) -> SocketAddrV4 {
        *self.server.lock().unwrap()
    }

    /// Some 4 million different ones.
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
            let what = match self.ask(client, &text) {
                Ok(answer) if answer == text => {
                    self.count(client, -1);
                    self.served.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                Ok(answer) if text.starts_with(&answer) => format!("{} bytes", answer.len()),
                Ok(answer) => {
                    let answer = String::from_utf8_lossy(&answer);
                    self.say_wrong(format!("{client} got {answer:?}"));
                    return;
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    let place = whereabouts(client);
                    self.say_wrong(format!("{client} still waits: {error}; {place}"));
                    return;
                }
                Err(error) => error.to_string(),
            };
            let until = Instant::now();
            let failure = Failure {
                client,
                since,
                until,
                what,
            };
            self.failures.lock().unwrap().push(failure);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends `text` from the address `client`, and returns what comes back.
    fn ask(&self, client: Ipv4Addr, text: &[u8]) -> std::io::Result<Vec<u8>> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let stream = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
        let mut stream = TcpStream::from(stream);
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        let own = SockaddrIn::from(SocketAddrV4::new(client, 0));
        bind(stream.as_raw_fd(), &own)?;
        connect(stream.as_raw_fd(), &SockaddrIn::from(self.server()))?;
        stream.write_all(text)?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
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

/// fdaccept, the pool, and what is left of those before.
struct Site<'a> {
    kind: Kind,
    commands: Vec<(Vec<String>, Vec<String>)>,
    load: &'a Load,
    random: Random,
    seed: u64,
    names: Names,
    acceptor: Process,
    /// Where the acceptor logs.
    log: PathBuf,
    /// It was told to stop.
    restarting: bool,
    /// When fdaccept was told to stop, and when the next one listened.
    restarts: Vec<(Instant, Option<Instant>)>,
    pool: Process,
    size: usize,
    pools: usize,
    /// Pools that were told to stop, and those that were killed.
    leaving: Vec<Process>,
    killed: Vec<Process>,
    /// Processes that are stopped, and until when.
    stopped: Vec<(OwnedFd, Instant)>,
    actions: BTreeMap<Action, usize>,
    /// When each action began.
    history: Vec<(Instant, Action)>,
    /// Processes that were killed and may have had a connection in hand, in this phase.
    kills: usize,
    all_kills: usize,
    lost: usize,
    /// Clients that fdaccept had not accepted when it ended.
    unaccepted: usize,
    /// How many descriptors fdaccept and the pool have when nothing is to be done.
    descriptors: (usize, usize),
    /// The memory of fdaccept and of the pool: of the first ones before the load, the most that
    /// any had at its end, and that of the last ones after a while and at their end.
    first: (u64, u64),
    most: (u64, u64),
    steady: [(u64, u64); 2],
}

impl<'a> Site<'a> {
    fn new(
        kind: Kind,
        commands: Vec<(Vec<String>, Vec<String>)>,
        load: &'a Load,
        seed: u64,
    ) -> Self {
        let names = Names::new();
        let log = names.directory.path().join("log");
        let acceptor = start_acceptor(&names, load, &log);
        let pool = start_pool(&names, &commands[0]);
        let mut site = Self {
            kind,
            commands,
            load,
            random: Random(seed),
            seed,
            names,
            acceptor,
            log,
            restarting: false,
            restarts: Vec::new(),
            pool,
            size: SIZE,
            pools: 1,
            leaving: Vec::new(),
            killed: Vec::new(),
            stopped: Vec::new(),
            actions: BTreeMap::new(),
            history: Vec::new(),
            kills: 0,
            all_kills: 0,
            lost: 0,
            unaccepted: 0,
            descriptors: (0, 0),
            first: (0, 0),
            most: (0, 0),
            steady: [(0, 0); 2],
        };
        site.until_served();
        // What is done only at the first time is done then.
        for _ in 0..2 * SIZE {
            let client = load.next_client();
            assert_eq!(load.ask(client, b"first").unwrap(), b"first");
            load.count(client, -1);
        }
        site.until_quiet();
        // While a worker is being started, the pool has a pipe to it, besides what it inherited.
        site.until("a pool that starts nobody", |site| {
            let ours = descriptors(Pid::this());
            let is_ours = |pipe: &String| ours.iter().any(|(_, what)| what == pipe);
            let open = descriptors(site.pool.pid());
            let mut pipes = open.iter().filter(|(_, what)| what.starts_with("pipe:"));
            pipes.all(|(_, pipe)| is_ours(pipe))
        });
        site.descriptors = site.count_descriptors();
        site.first = site.memory();
        site
    }

    /// A part of the time, at full load. Afterwards everything is accounted for.
    fn phase(&mut self, name: &str, length: Duration, actions: &[Action]) {
        let pace = match self.kind {
            Kind::Slots => 40_000,
            Kind::Workers => 120_000,
        };
        let load = self.load;
        let done = AtomicBool::new(false);
        let start = Instant::now();
        std::thread::scope(|scope| {
            let _done = Done(&done);
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
                    self.steady[0] = self.memory();
                }
            }
            // Or their clients would wait, and this for them.
            self.until("who was stopped", |site| site.stopped.is_empty());
        });
        self.until_quiet();
        self.steady[1] = self.memory();
        self.note_memory(self.steady[1]);
        let descriptors = self.descriptors;
        self.until("as many descriptors as at the start", |site| {
            site.count_descriptors() == descriptors
        });
        // Its log then says all.
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
            Reload => {
                // It ends a pool of slots.
                if self.kind == Kind::Workers {
                    self.pool.signal(Signal::SIGHUP);
                }
                self.kind == Kind::Workers
            }
            Replace => self.replace(),
            KillPool => self.kill_pool(),
            Restart => {
                let can = !self.restarting;
                if can {
                    self.note_memory((memory(self.acceptor.pid()), 0));
                    self.begin_restart();
                }
                can
            }
        };
        if is_done {
            *self.actions.entry(action).or_default() += 1;
        }
    }

    /// Sends a signal to one of those who serve.
    fn strike(&mut self, signal: PidfdSignal) -> bool {
        let pool = self.pool.pid();
        let mut those = children(pool);
        if self.kind == Kind::Workers && signal != PidfdSignal::STOP {
            // A worker's place stays empty for longer each time that one ends too soon, so most
            // of those that are struck are older.
            if self.random.below(4) > 0 {
                those.retain(|pid| age(*pid) > Duration::from_secs(1));
            }
            if children(pool).len() < self.size {
                return false;
            }
        }
        if those.is_empty() {
            return false;
        }
        let pid = those[self.random.below(those.len() as u64) as usize];
        self.send(pid, signal, || children(pool).contains(&pid))
    }

    fn kill_handler(&mut self) -> bool {
        let pool = self.pool.pid();
        let pairs = children(pool).into_iter();
        let pairs = pairs.flat_map(|slot| children(slot).into_iter().map(move |pid| (slot, pid)));
        let pairs: Vec<_> = pairs.collect();
        if pairs.is_empty() {
            return false;
        }
        let (slot, pid) = pairs[self.random.below(pairs.len() as u64) as usize];
        self.send(pid, PidfdSignal::KILL, || {
            children(slot).contains(&pid) && children(pool).contains(&slot)
        })
    }

    /// Sends a signal to process `pid`, which is ours if `is_ours` says so while it cannot be
    /// another one that has got its number.
    fn send(&mut self, pid: Pid, signal: PidfdSignal, is_ours: impl Fn() -> bool) -> bool {
        let number = rustix::process::Pid::from_raw(pid.as_raw()).unwrap();
        let Ok(process) = pidfd_open(number, PidfdFlags::empty()) else {
            return false;
        };
        if !is_ours() || pidfd_send_signal(&process, signal).is_err() {
            return false;
        }
        if signal == PidfdSignal::KILL {
            self.kills += 1;
        }
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
        // Two that wait are one.
        self.until("the pool to take a signal", |site| {
            !is_pending(site.pool.pid(), signal)
        });
        true
    }

    fn next_pool(&mut self) -> Process {
        let command = &self.commands[self.pools % self.commands.len()];
        self.pools += 1;
        start_pool(&self.names, command)
    }

    fn replace(&mut self) -> bool {
        if self.leaving.len() >= GENERATIONS {
            return false;
        }
        let next = self.next_pool();
        let old = std::mem::replace(&mut self.pool, next);
        // Until then both serve.
        self.leaving.push(old);
        self.size = SIZE;
        self.until_served();
        let old = self.leaving.last().unwrap();
        let memory = memory(old.pid());
        old.signal(Signal::SIGTERM);
        self.note_memory((0, memory));
        true
    }

    fn kill_pool(&mut self) -> bool {
        self.note_memory((0, memory(self.pool.pid())));
        // The process alone.
        self.pool.signal(Signal::SIGKILL);
        self.pool.wait();
        let next = self.next_pool();
        self.killed.push(std::mem::replace(&mut self.pool, next));
        self.size = SIZE;
        self.until_served();
        true
    }

    fn begin_restart(&mut self) {
        self.restarts.push((Instant::now(), None));
        self.acceptor.signal(Signal::SIGTERM);
        self.restarting = true;
    }

    /// Goes on with what takes its time.
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
        if self.acceptor.is_running() {
            // Who begins to serve or to finish needs no look.
        } else if self.restarting {
            let status = self.acceptor.wait();
            self.read_log();
            assert_eq!(status.code(), Some(0), "fdaccept");
            self.acceptor = start_acceptor(&self.names, self.load, &self.log);
            self.restarts.last_mut().unwrap().1 = Some(Instant::now());
            self.restarting = false;
        } else {
            panic!("fdaccept has ended");
        }
        let old = std::mem::take(&mut self.leaving);
        for mut pool in old {
            if pool.is_running() {
                self.leaving.push(pool);
                continue;
            }
            let status = pool.wait();
            assert_eq!(status.code(), Some(0), "an old pool: {}", pool.log());
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

    /// Waits until there is the pool alone, as large as it is to be, with nothing to do.
    #[track_caller]
    fn until_quiet(&mut self) {
        self.until("fdaccept to be back", |site| !site.restarting);
        self.until("the end of older pools", |site| site.leaving.is_empty());
        self.until("a whole pool that is idle", |site| {
            let those = children(site.pool.pid());
            those.len() == site.size && those.into_iter().all(|pid| children(pid).is_empty())
        });
        self.until("the end of what killed pools have left", |site| {
            site.processes().len() == 2 + site.size
        });
        for pool in std::mem::take(&mut self.killed) {
            let log = { pool }.log();
            assert!(!log.contains("panicked"), "{log}");
        }
    }

    /// What was accepted, says the log of an fdaccept that has ended.
    fn read_log(&self) {
        let log = std::fs::read_to_string(&self.log).unwrap();
        for line in log.lines().filter(|line| !is_counters(line)) {
            let Some(rest) = line.strip_prefix("fdaccept: accepted ") else {
                assert!(line.contains(": listening on "), "{line}");
                continue;
            };
            let client = rest.split(' ').next().unwrap().parse().unwrap();
            self.load.count(client, 1);
        }
    }

    /// Every connection has its reason.
    fn account(&mut self, phase: &str) {
        let balance = std::mem::take(&mut *self.load.balance.lock().unwrap());
        let failures = std::mem::take(&mut *self.load.failures.lock().unwrap());
        let failures: HashMap<_, _> = failures.iter().map(|f| (f.client, f)).collect();
        let mut lost = Vec::new();
        for (client, count) in balance {
            assert_eq!(count, 1, "{client} was served and not accepted");
            let failure = failures.get(&client);
            lost.push(failure.unwrap_or_else(|| panic!("{client} was accepted and knows nothing")));
        }
        let kills = std::mem::take(&mut self.kills);
        let history = std::mem::take(&mut self.history);
        assert!(
            lost.len() <= kills,
            "{phase}: {} were accepted and lost with {kills} that were killed: {:#?}",
            lost.len(),
            lost.iter()
                .map(|f| f.describe(&history))
                .collect::<Vec<_>>()
        );
        self.lost += lost.len();
        self.all_kills += kills;
        let lost: Vec<_> = lost.iter().map(|failure| failure.client).collect();
        for failure in failures.values() {
            if lost.contains(&failure.client) {
                continue;
            }
            self.unaccepted += 1;
            let during_restart = self.restarts.iter().any(|(begin, end)| {
                failure.until >= *begin && end.is_none_or(|end| failure.since <= end)
            });
            assert!(
                during_restart,
                "{phase}: not accepted by fdaccept: {}",
                failure.describe(&history)
            );
        }
    }

    /// Everything that was started here, directly or not, and has not ended.
    fn processes(&self) -> Vec<Pid> {
        let mark = format!("{MARK}={}", self.names.path());
        marked(&mark)
    }

    fn count_descriptors(&self) -> (usize, usize) {
        let count = |process: &Process| descriptors(process.pid()).len();
        (count(&self.acceptor), count(&self.pool))
    }

    fn memory(&self) -> (u64, u64) {
        (memory(self.acceptor.pid()), memory(self.pool.pid()))
    }

    fn note_memory(&mut self, (acceptor, pool): (u64, u64)) {
        self.most = (self.most.0.max(acceptor), self.most.1.max(pool));
    }

    /// Stops everything.
    fn end(&mut self) {
        self.pool.signal(Signal::SIGTERM);
        let (status, log) = self.pool.finish();
        assert_eq!(status.code(), Some(0), "the pool: {log}");
        self.acceptor.signal(Signal::SIGTERM);
        assert_eq!(self.acceptor.wait().code(), Some(0), "fdaccept");
        self.read_log();
        assert!(self.load.balance.lock().unwrap().is_empty());
        until("the end of all processes", || self.processes().is_empty());
        let does_grow = |(acceptor, pool): (u64, u64), (acceptor_then, pool_then): (u64, u64)| {
            acceptor_then > acceptor + ALLOWANCE || pool_then > pool + ALLOWANCE
        };
        let [before, after] = self.steady;
        assert!(before.0.min(before.1).min(self.first.0) > 0, "no memory");
        assert!(!does_grow(before, after), "{}", self.summary());
        assert!(!does_grow(self.first, self.most), "{}", self.summary());
    }

    fn summary(&self) -> String {
        let served = self.load.served.load(Ordering::Relaxed);
        let [before, after] = self.steady;
        format!(
            "soak of {:?}: {served} served, {} lost with {} that were killed, {} not accepted in \
             {} restarts; {:?}; kB of fdaccept and the pool: {:?}, at most {:?}, then {before:?}, \
             {after:?}; seed {}",
            self.kind,
            self.lost,
            self.all_kills,
            self.unaccepted,
            self.restarts.len(),
            self.actions,
            self.first,
            self.most,
            self.seed,
        )
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

/// Starts fdaccept, which says in `log` whom it accepts, and waits until it listens.
fn start_acceptor(names: &Names, load: &Load, log: &Path) -> Process {
    // A file, which takes every line at once.
    let _ = std::fs::remove_file(log);
    let text = "exec fdaccept -v --bind \"$1\" \"$2\" 2>>\"$3\"";
    let mut command = script("sh", text);
    command.arg("sh").arg(names.path());
    command.arg(load.server().to_string()).arg(log);
    let mut process = Process::start(command.env(MARK, names.path()));
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

fn start_pool(names: &Names, (options, words): &(Vec<String>, Vec<String>)) -> Process {
    let mut command = program("fdpool");
    command.args(["--connect", &names.path()]).args(options);
    command.arg(SIZE.to_string()).arg("--").args(words);
    Process::start(command.env(MARK, names.path()))
}

/// Who has the other side of a client's connection.
fn whereabouts(client: Ipv4Addr) -> String {
    let peer = format!("{:08X}:", u32::from_ne_bytes(client.octets()));
    let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let sockets = sockets.lines().map(|line| line.split_whitespace());
    // sl, local_address, rem_address, and so on, with the inode as the 10th.
    let inodes = sockets.filter_map(|fields| {
        let fields: Vec<_> = fields.collect();
        fields[2].starts_with(&peer).then(|| fields[9].to_owned())
    });
    let owners = inodes.map(|inode| {
        let socket = format!("socket:[{inode}]");
        let has_it = |pid: &Pid| descriptors(*pid).iter().any(|(_, what)| *what == socket);
        let owners = marked(MARK).into_iter().filter(has_it);
        let owners: Vec<_> = owners.map(|pid| (pid.as_raw(), state(pid))).collect();
        format!("{socket} of {owners:?}")
    });
    owners.collect::<Vec<_>>().join(", ")
}

/// All processes with an entry in their environment that starts with `mark`. One that has ended
/// has none.
fn marked(mark: &str) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_marked = |pid: &i32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment
            .split(|byte| *byte == 0)
            .any(|entry| entry.starts_with(mark.as_bytes()))
    };
    pids.filter(is_marked).map(Pid::from_raw).collect()
}

/// A number of /proc/PID/status, in the base given; 0 if the process has ended.
fn status(pid: Pid, field: &str, base: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let word = line.and_then(|line| line.split_whitespace().nth(1));
    word.map_or(0, |word| u64::from_str_radix(word, base).unwrap())
}

/// The memory that a process has to itself, in kB.
fn memory(pid: Pid) -> u64 {
    status(pid, "RssAnon", 10)
}

fn is_pending(pid: Pid, signal: Signal) -> bool {
    status(pid, "ShdPnd", 16) & 1 << (signal as u32 - 1) != 0
}

/// How long a process has been there.
fn age(pid: Pid) -> Duration {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (uptime, stat) = (read("/proc/uptime"), read(&format!("/proc/{pid}/stat")));
    let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    let since = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.split(' ').nth(19))
        .map_or(uptime, |ticks| ticks.parse::<f64>().unwrap() / 100.0);
    Duration::from_secs_f64((uptime - since).max(0.0))
}
