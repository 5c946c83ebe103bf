//! Starting the programs, and what becomes of them.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{PoisonError, RwLock};
use std::time::Instant;

use nix::sys::signal::{SigHandler, Signal, kill, killpg, signal};
use nix::unistd::Pid;

use super::*;

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

/// Gives signals their default action, which processes started from here inherit.
fn default_signals(signals: &[Signal]) {
    for number in signals {
        // SAFETY: SIG_DFL runs no code of ours.
        #[allow(unsafe_code)]
        unsafe { signal(*number, SigHandler::SigDfl) }.unwrap();
    }
}

/// A process in a process group of its own, with its standard error read line by line. Dropping
/// it kills the group.
pub struct Process {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

/// Held while a child is started: it has copies of all our descriptors until its exec.
static STARTING: RwLock<()> = RwLock::new(());

/// Drops the last copies that we have of sockets whose last close blocks, while no child that is being
/// started has any.
pub fn leave<T>(sockets: T) {
    let _alone = STARTING.write().unwrap_or_else(PoisonError::into_inner);
    drop(sockets);
}

/// Starts a child as [`Command::spawn`] does, while nobody [leaves](leave) a socket.
pub fn spawn(command: &mut Command) -> std::io::Result<Child> {
    let _starting = STARTING.read().unwrap_or_else(PoisonError::into_inner);
    command.spawn()
}

/// Whether a command that runs to its end succeeds.
pub fn succeeds(command: &mut Command) -> bool {
    let mut child = spawn(command).unwrap_or_else(|error| panic!("{command:?}: {error}"));
    child.wait().unwrap().success()
}

impl Process {
    /// Starts `command`. It ignores no signal, also where this test was started so, as nohup(1)
    /// and a shell's `&` do.
    pub fn start(command: &mut Command) -> Self {
        default_signals(&[Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT]);
        command.stderr(Stdio::piped()).process_group(0);
        let mut child = spawn(command).unwrap_or_else(|error| panic!("{command:?}: {error}"));
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

    pub fn children(&self) -> Vec<Pid> {
        children(self.pid())
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

    #[track_caller]
    pub fn term(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Stops it, and waits until it is.
    #[track_caller]
    pub fn freeze(&self) {
        freeze(self.pid());
    }

    #[track_caller]
    pub fn thaw(&self) {
        thaw(self.pid());
    }

    /// Stops it, does `action`, sends `signals`, and lets it go on: it finds all of that at once.
    #[track_caller]
    pub fn at_once<T>(&self, signals: &[Signal], action: impl FnOnce() -> T) -> T {
        self.freeze();
        let result = action();
        signals.iter().for_each(|signal| self.signal(*signal));
        self.thaw();
        result
    }

    /// Sends KILL, and waits for its end. Its children may go on.
    #[track_caller]
    pub fn slay(&mut self) {
        self.signal(Signal::SIGKILL);
        self.expect_killed_by(Signal::SIGKILL);
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

    /// Expects this exit status. Other processes may still have its standard error.
    #[track_caller]
    pub fn expect_exit(&mut self, status: i32) {
        let ended = self.wait();
        assert_eq!(ended.code(), Some(status), "{}", self.log());
    }

    #[track_caller]
    pub fn expect_killed_by(&mut self, signal: Signal) {
        let ended = self.wait();
        assert_eq!(ended.signal(), Some(signal as i32), "{}", self.log());
    }

    /// Expects this exit status, and waits until nobody has its standard error, which it returns.
    #[track_caller]
    pub fn expect_end(&mut self, status: i32) -> String {
        let (ended, log) = self.finish();
        assert_eq!(ended.code(), Some(status), "{log}");
        log
    }

    /// Expects exit status 0 and an empty standard error, but for what a stop waited for.
    #[track_caller]
    pub fn expect_quiet_end(&mut self) {
        let log = self.expect_end(0);
        assert!(log.lines().all(is_of_a_wait), "{log}");
    }

    /// Sends TERM, and expects exit status 0. Returns all of its standard error, but for what the stop
    /// waited for.
    #[track_caller]
    pub fn stop(&mut self) -> String {
        self.term();
        let log = self.expect_end(0);
        let lines = log.lines().filter(|line| !is_of_a_wait(line));
        lines.collect::<Vec<_>>().join("\n")
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

/// Writes an executable script. Another process writes it: were it open for writing here, a child
/// that some other test forks just then would have it open too, and it could not be executed.
pub fn executable(path: impl AsRef<Path>, text: &str) -> PathBuf {
    let path = path.as_ref();
    let mut writer = Command::new("sh");
    writer.args(["-c", "cat > \"$1\" && chmod 755 \"$1\"", "sh"]);
    let mut writer = spawn(writer.arg(path).stdin(Stdio::piped())).unwrap();
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

/// `command.start()` for `Process::start(&mut command)`.
pub trait Start {
    fn start(&mut self) -> Process;
}

impl Start for Command {
    #[track_caller]
    fn start(&mut self) -> Process {
        Process::start(self)
    }
}

/// A command line that is put together step by step.
pub trait Line: Sized {
    fn command_mut(&mut self) -> &mut Command;

    fn args(mut self, arguments: impl IntoIterator<Item: AsRef<OsStr>>) -> Self {
        self.command_mut().args(arguments);
        self
    }

    fn arg(self, argument: impl AsRef<OsStr>) -> Self {
        self.args([argument])
    }

    /// Arguments that are parted by spaces.
    fn options(self, options: &str) -> Self {
        self.args(options.split_whitespace())
    }

    fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command_mut().env(name, value);
        self
    }

    fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.command_mut().current_dir(dir);
        self
    }

    fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.command_mut().stdin(stdin);
        self
    }

    fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.command_mut().stdout(stdout);
        self
    }
}

/// A script for `sh` that finds the programs.
pub fn sh(text: &str) -> Command {
    script("sh", text)
}

/// A script as the words of a handler, a worker or a command.
pub fn sh_c(text: &str) -> [&str; 3] {
    ["sh", "-c", text]
}
