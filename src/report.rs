//! What a program says on standard error, and its exit status.

use std::fmt::Display;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::name::printable;
use crate::wait::{PollFd, PollFlags, wait};
use crate::{Error, Result};

/// Exit status of a wrong usage.
pub const USAGE: u8 = 2;
/// Exit status of a queue that closed before anything was received (`EX_UNAVAILABLE` of
/// sysexits.h).
pub const CLOSED: u8 = 69;
/// Exit status of a command that is there and cannot be executed (POSIX shells, env(1)).
pub const NOT_EXECUTABLE: u8 = 126;
/// Exit status of a command that does not exist (POSIX shells, env(1)).
pub const NOT_FOUND: u8 = 127;

/// How long a line waits for a log that is not read.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whether the last line was lost so.
static STUCK: AtomicBool = AtomicBool::new(false);

/// How much a program says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Errors only (`-q`).
    Quiet,
    /// Also what an operator wants to know once.
    Normal,
    /// Also each connection (`-v`).
    Verbose,
}

/// Where a program says things: its name, and how much is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Log {
    program: &'static str,
    verbosity: Verbosity,
}

impl Log {
    /// A log of lines that start with `program`.
    pub fn new(program: &'static str, verbosity: Verbosity) -> Self {
        Self { program, verbosity }
    }

    /// Whether each connection is logged; building such lines can be left out otherwise.
    pub fn is_verbose(&self) -> bool {
        self.verbosity >= Verbosity::Verbose
    }

    /// Something went wrong.
    pub fn error(&self, what: impl Display) {
        self.line(what);
    }

    /// Something that an operator wants to know.
    pub fn notice(&self, what: impl Display) {
        if self.verbosity >= Verbosity::Normal {
            self.line(what);
        }
    }

    /// Something about one connection.
    pub fn detail(&self, what: impl Display) {
        if self.is_verbose() {
            self.line(what);
        }
    }

    /// One write for one line: several processes share the log, and their lines must not mix.
    /// What came from outside must not make further lines, nor move the terminal's cursor.
    /// Nothing can be done about a log that takes no more.
    fn line(&self, what: impl Display) {
        let text = printable(what.to_string().as_bytes());
        let line = format!("{}: {text}\n", self.program);
        // A log that is not read holds us up once, and then loses lines.
        let stderr = std::io::stderr();
        let patience = match STUCK.load(Ordering::Relaxed) {
            true => Duration::ZERO,
            false => PATIENCE,
        };
        let until = Instant::now() + patience;
        let is_stuck = loop {
            let mut fds = [PollFd::new(&stderr, PollFlags::OUT)];
            let _ = wait(&mut fds, Some(until));
            // A signal is no reason to lose a line.
            match fds[0].revents().is_empty() {
                true if Instant::now() < until => {}
                is_stuck => break is_stuck,
            }
        };
        STUCK.store(is_stuck, Ordering::Relaxed);
        if is_stuck {
            return;
        }
        let _ = (&stderr).write_all(line.as_bytes());
    }
}

/// The exit status that an error stands for.
pub fn status(error: &Error) -> u8 {
    match error {
        Error::Usage(_) => USAGE,
        Error::Closed(_) => CLOSED,
        Error::CommandNotFound { .. } => NOT_FOUND,
        Error::CommandNotExecutable { .. } => NOT_EXECUTABLE,
        Error::System { .. } | Error::Other { .. } | Error::Peer(_) => 1,
    }
}

/// How a program ends: an error is said. Returns the exit status.
pub fn finish(program: &'static str, result: Result<u8>) -> u8 {
    result.unwrap_or_else(|error| {
        Log::new(program, Verbosity::Quiet).error(&error);
        if matches!(error, Error::Usage(_)) {
            Log::new(program, Verbosity::Quiet)
                .error(format_args!("try '{program} --help' for more information"));
        }
        status(&error)
    })
}
