//! What the tests have in common: starting the real programs, waiting for events under a
//! deadline, and looking at what is open.
#![allow(dead_code)] // each test file uses its share

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use fdtools::queue::message::Info;
use fdtools::queue::try_receive;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, kill, killpg, signal};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::Pid;

pub mod poll;

/// Nothing that a test waits for takes longer, also on a machine with much else to do.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The directory of the three programs.
pub fn bin_dir() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_fdaccept"));
    program.parent().unwrap().to_owned()
}

/// A PATH on which the three programs come first.
pub fn path() -> std::ffi::OsString {
    let rest = std::env::var_os("PATH").unwrap_or_default();
    let dirs = [bin_dir()];
    let dirs = dirs.into_iter().chain(std::env::split_paths(&rest));
    std::env::join_paths(dirs).unwrap()
}

/// One of the three programs.
pub fn program(name: &str) -> Command {
    let mut command = Command::new(bin_dir().join(name));
    command.env("PATH", path()).stdin(Stdio::null());
    command
}

/// A script for `sh`, or for another shell (`"busybox sh"`), that finds the programs.
pub fn script(shell: &str, text: &str) -> Command {
    let mut words = shell.split(' ');
    let mut command = Command::new(words.next().unwrap());
    command.args(words).arg("-c").arg(text);
    command.env("PATH", path()).stdin(Stdio::null());
    command
}

/// Another program that a test needs: `None`, and a line that says so, if it is not installed.
/// With FDTOOLS_REQUIRE_PEERS=1 that is a failure.
pub fn peer(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let found = std::env::split_paths(&path)
        .chain(sbin)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file());
    if found.is_none() {
        skip(&format!("{name} is not installed"));
    }
    found
}

/// The Python interpreter itself, if it is installed: what comes first on the path may be a script
/// that looks for it.
pub fn python() -> Option<PathBuf> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let mut command = Command::new(peer("python3")?);
        let output = command
            .args(["-c", "import sys; print(sys.executable)"])
            .output();
        let path = String::from_utf8(output.unwrap().stdout).unwrap();
        Some(PathBuf::from(path.trim_end()))
    };
    FOUND.get_or_init(find).clone()
}

/// The worker of examples/ in Python, as a command line.
pub fn python_worker() -> Option<[PathBuf; 2]> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/worker.py");
    Some([python()?, source])
}

/// The one in Rust.
pub fn rust_worker() -> Option<PathBuf> {
    example("worker")
}

/// An example. `cargo test` builds it, `cargo test --test` does not.
pub fn example(name: &str) -> Option<PathBuf> {
    let compiled = bin_dir().join("examples").join(name);
    if !compiled.is_file() {
        skip(&format!("examples/{name}.rs is not built"));
        return None;
    }
    Some(compiled)
}

/// Raises the soft limit on open descriptors to the hard one.
pub fn raise_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

/// Gives signals their default action, which processes started from here inherit.
fn default_signals(signals: &[Signal]) {
    for number in signals {
        // SAFETY: SIG_DFL runs no code of ours.
        #[allow(unsafe_code)]
        unsafe { signal(*number, SigHandler::SigDfl) }.unwrap();
    }
}

/// The next message of a queue taken apart: the connection, its lease, and what its payload says.
/// `None` if there is none now.
pub fn take_apart(queue: impl AsFd) -> Option<(OwnedFd, Option<OwnedFd>, Info)> {
    let mut message = match try_receive(queue) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
        message => message.unwrap(),
    };
    let info = Info::decode(&message.payload).unwrap();
    let mut descriptors = message.descriptors.drain(..);
    let connection = descriptors.next().unwrap();
    let lease = descriptors.next();
    assert_eq!(descriptors.len(), 0);
    Some((connection, lease, info))
}

/// Whether the test runs as root, which it needs. Handled as [`peer`] is.
pub fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skip("this needs root");
    }
    root
}

/// Says that a test is skipped, and why; a failure with FDTOOLS_REQUIRE_PEERS=1.
pub fn skip(why: &str) {
    assert!(
        std::env::var_os("FDTOOLS_REQUIRE_PEERS").is_none_or(|value| value != "1"),
        "{why}, and FDTOOLS_REQUIRE_PEERS=1"
    );
    eprintln!("skipped: {why}");
}

/// A process in a process group of its own, with its standard error read line by line. Dropping
/// it kills the group.
pub struct Process {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Process {
    /// Starts `command`. It ignores no signal, also where this test was started so, as nohup(1)
    /// and a shell's `&` do.
    pub fn start(command: &mut Command) -> Self {
        default_signals(&[Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT]);
        command.stderr(Stdio::piped()).process_group(0);
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stderr.split(b'\n') {
                let Ok(line) = line else { return };
                let line = String::from_utf8_lossy(&line).into_owned();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            lines,
            seen: Vec::new(),
        }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// What standard input and output are connected to, where they are pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends the process itself a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Sends its whole process group a signal, as a terminal does.
    pub fn signal_group(&self, signal: Signal) {
        killpg(self.pid(), signal).unwrap();
    }

    /// Waits for the next line on standard error that contains `text`.
    #[track_caller]
    pub fn line(&mut self, text: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self.next_line(deadline) {
                Some(line) if line.contains(text) => return line,
                Some(_) => {}
                None => panic!("no line with {text:?}, only {:#?}", self.seen),
            }
        }
    }

    fn next_line(&mut self, deadline: Instant) -> Option<String> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left) {
            Ok(line) => {
                self.seen.push(line.clone());
                Some(line)
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => None,
        }
    }

    /// Waits until fdaccept says where it listens, and returns the address.
    #[track_caller]
    pub fn listening(&mut self) -> String {
        let line = self.line("listening on ");
        line.split_once("listening on ").unwrap().1.to_owned()
    }

    /// The same for an address with a port.
    #[track_caller]
    pub fn port(&mut self) -> u16 {
        let address = self.listening();
        address.rsplit_once(':').unwrap().1.parse().unwrap()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let pid = self.pid();
        eventually(&format!("the end of process {pid}"), || {
            self.child.try_wait().unwrap()
        })
    }

    /// Waits for its end. Returns the exit status and everything that it wrote to standard error.
    #[track_caller]
    pub fn finish(&mut self) -> (ExitStatus, String) {
        let status = self.wait();
        let deadline = Instant::now() + DEADLINE;
        while self.next_line(deadline).is_some() {}
        (status, self.seen.join("\n"))
    }

    /// What it has written to standard error so far.
    pub fn log(&mut self) -> String {
        while let Ok(line) = self.lines.try_recv() {
            self.seen.push(line);
        }
        self.seen.join("\n")
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Once it is reaped, its number may be somebody else's.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = killpg(self.pid(), Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

/// Waits until `probe` has an answer. To be used where nothing announces the event.
#[track_caller]
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = probe() {
            return answer;
        }
        assert!(Instant::now() < deadline, "still waiting for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until `is_true`.
#[track_caller]
pub fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    eventually(what, || is_true().then_some(()));
}

/// A connection to 127.0.0.1, whose reads and writes end with the deadline.
#[track_caller]
pub fn connect(port: u16) -> TcpStream {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let stream = TcpStream::connect_timeout(&address, DEADLINE).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// A connection to a Unix socket, with the same deadline.
#[track_caller]
pub fn connect_unix(path: impl AsRef<Path>) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Connects, sends `request`, shuts the sending side, and returns all that comes back.
#[track_caller]
pub fn exchange(port: u16, request: &[u8]) -> Vec<u8> {
    try_exchange(port, request).unwrap()
}

/// The same, for a connection that may fail.
pub fn try_exchange(port: u16, request: &[u8]) -> std::io::Result<Vec<u8>> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect_timeout(&address, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    stream.write_all(request)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Whether the other side has sent something or ended.
pub fn is_answered(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let peeked = stream.peek(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    peeked.is_ok()
}

/// What a process has open: `(number, what)`, as /proc says it.
pub fn descriptors(pid: Pid) -> Vec<(i32, String)> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    let mut open: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            let what = std::fs::read_link(entry.path()).ok()?;
            Some((number, what.to_string_lossy().into_owned()))
        })
        .collect();
    open.sort();
    open
}

/// The children of a process, in no order.
pub fn children(pid: Pid) -> Vec<Pid> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    text.unwrap_or_default()
        .split_whitespace()
        .map(|pid| Pid::from_raw(pid.parse().unwrap()))
        .collect()
}

/// Whether a process is there, and not a zombie.
pub fn is_alive(pid: Pid) -> bool {
    state(pid).is_some_and(|state| state != 'Z')
}

/// The state letter of a process (proc(5)).
pub fn state(pid: Pid) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// The time on a CPU that a process has used.
pub fn cpu_time(pid: Pid) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    // USER_HZ is 100 on every Linux.
    Duration::from_millis(ticks * 10)
}

/// Writes an executable script. Another process writes it: were it open for writing here, a child
/// that some other test forks just then would have it open too, and it could not be executed.
pub fn executable(path: impl AsRef<Path>, text: &str) -> PathBuf {
    let path = path.as_ref();
    let mut writer = Command::new("sh")
        .args(["-c", "cat > \"$1\" && chmod 755 \"$1\"", "sh"])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = writer.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).unwrap();
    drop(stdin);
    assert!(writer.wait().unwrap().success());
    path.to_owned()
}

/// Runs a command to its end and returns its exit status, standard output and standard error.
#[track_caller]
pub fn run(command: &mut Command) -> (Option<i32>, String, String) {
    command.stdout(Stdio::piped());
    let mut process = Process::start(command);
    let mut stdout = process.child().stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = stdout.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let (status, stderr) = process.finish();
    (status.code(), reader.join().unwrap(), stderr)
}

/// The next line that a client gets.
#[track_caller]
pub fn read_line(client: &TcpStream) -> String {
    let mut line = String::new();
    BufReader::new(client).read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// Whether a line of a log is the one that fdaccept tells its counters in. That of a connection,
/// with `-v`, begins as it does.
pub fn is_counters(line: &str) -> bool {
    line.starts_with("fdaccept: accepted ") && line.contains(", passed ")
}

/// The lines of the log of an fdaccept that has ended, but for its counters, which are there once.
#[track_caller]
pub fn besides_counters(log: &str) -> Vec<&str> {
    let (counters, other): (Vec<_>, Vec<_>) = log.lines().partition(|line| is_counters(line));
    assert_eq!(counters.len(), 1, "{log}");
    other
}

/// A queue as something else than fdtools could make it.
pub fn socket_pair(kind: SockType) -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap()
}

/// Names that nothing else uses: a path in a directory that vanishes with this, and others in the
/// abstract namespace.
pub struct Names {
    pub directory: tempfile::TempDir,
}

impl Names {
    #[allow(clippy::new_without_default)] // nothing but a test makes one
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { directory }
    }

    pub fn path(&self) -> String {
        let path = self.directory.path().join("queue");
        path.to_str().unwrap().to_owned()
    }

    pub fn abstract_name(&self) -> String {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        format!("@fdtools-test-{}-{count}", std::process::id())
    }
}

/// Receives one message. With a time limit that is not begun again by itself after a signal.
#[track_caller]
pub fn receive_message(socket: &UnixDatagram, buffer: &mut [u8]) -> usize {
    loop {
        match socket.recv(buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            received => return received.unwrap(),
        }
    }
}

/// Whether the end of what a client said is not acknowledged for some yet (proc_pid_net(5)).
fn are_on_their_way(clients: &[TcpStream]) -> bool {
    const FIN_WAIT_1: &str = "04"; // include/net/tcp_states.h of the kernel
    let port = |client: &TcpStream| format!(":{:04X}", client.local_addr().unwrap().port());
    let ports: Vec<_> = clients.iter().map(port).collect();
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().any(|line| {
        let words: Vec<_> = line.split_whitespace().take(4).collect();
        words[3] == FIN_WAIT_1 && ports.iter().any(|port| words[1].ends_with(port))
    })
}

/// Clients that have sent who they are and wait for it to come back.
pub struct Crowd(Vec<TcpStream>);

impl Crowd {
    #[track_caller]
    pub fn connect(port: u16, count: usize) -> Self {
        let client = |number: usize| {
            let mut stream = connect(port);
            stream.write_all(number.to_string().as_bytes()).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            stream
        };
        let clients: Vec<_> = (0..count).map(client).collect();
        // Connecting ends before the listener knows, which is when it has the last packet.
        until("all have arrived", || !are_on_their_way(&clients));
        Self(clients)
    }

    #[track_caller]
    pub fn expect_served(self) {
        for (number, mut stream) in self.0.into_iter().enumerate() {
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, number.to_string());
        }
    }
}

/// Numbers that look random and are the same each time (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }

    /// Waits for less than this many microseconds: not for an event, but to meet what goes on at
    /// another moment each time.
    pub fn pause(&mut self, microseconds: u64) {
        std::thread::sleep(Duration::from_micros(self.below(microseconds)));
    }
}
