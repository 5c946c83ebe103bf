//! What a program says on standard error.

use std::fmt::Display;
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::system::poll::{PollFlags, wait_for};
use crate::system::text::printable;

/// How long a line waits for a log that is not read.
const LOG_PATIENCE: Duration = Duration::from_secs(1);

/// Whether the last line was lost because of that.
static STUCK: AtomicBool = AtomicBool::new(false);

/// How much a program says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verbosity {
    /// Errors only (`-q`).
    Quiet,
    /// Also what an operator wants to know once.
    Normal,
    /// Also each connection (`-v`).
    Verbose,
}

/// Where a program says things: its name, and how much is wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Log {
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
        self.say(Verbosity::Quiet, what);
    }

    /// Something that an operator wants to know.
    pub fn notice(&self, what: impl Display) {
        self.say(Verbosity::Normal, what);
    }

    /// Something about one connection.
    pub fn detail(&self, what: impl Display) {
        self.say(Verbosity::Verbose, what);
    }

    /// Something that lasts and is met again and again: said once, until it changes.
    pub fn once(&self, said: &mut Said, least: Verbosity, what: impl Display) {
        let what = what.to_string();
        if said.0.as_ref() != Some(&what) {
            self.say(least, &what);
            said.0 = Some(what);
        }
    }

    fn say(&self, least: Verbosity, what: impl Display) {
        if self.verbosity >= least {
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
        let patience = if STUCK.load(Ordering::Relaxed) {
            Duration::ZERO
        } else {
            LOG_PATIENCE
        };
        let until = Instant::now() + patience;
        let is_stuck = loop {
            let state = wait_for(stderr.as_fd(), PollFlags::OUT, Some(until));
            let is_writable = state.is_ok_and(|state| !state.is_empty());
            // A signal is no reason to lose a line.
            if is_writable || Instant::now() >= until {
                break !is_writable;
            }
        };
        STUCK.store(is_stuck, Ordering::Relaxed);
        if is_stuck {
            return;
        }
        let _ = (&stderr).write_all(line.as_bytes());
    }
}

/// What was said last of one trouble, see [`Log::once`].
#[derive(Debug, Default)]
pub(crate) struct Said(Option<String>);

impl Said {
    /// The trouble is over. Whether anything was said of it.
    pub fn forget(&mut self) -> bool {
        self.0.take().is_some()
    }
}
