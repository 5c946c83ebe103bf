//! Messages of a program on standard error.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::system::poll::{PollFlags, wait_for};
use crate::system::text::printable;

/// How long a line waits while nobody reads the log.
const LOG_PATIENCE: Duration = Duration::from_secs(1);

/// How many different texts of a problem are logged.
const MOST_SAID: usize = 64;

/// The last line was lost, since nobody reads the log.
static STUCK: AtomicBool = AtomicBool::new(false);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verbosity {
    /// Errors only (`-q`).
    Quiet,
    /// Also notices for the operator.
    Normal,
    /// Also each connection (`-v`).
    Verbose,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Log {
    program: &'static str,
    verbosity: Verbosity,
}

impl Log {
    pub fn new(program: &'static str, verbosity: Verbosity) -> Self {
        Self { program, verbosity }
    }

    /// If not, callers need not build the lines of a connection.
    pub fn is_verbose(&self) -> bool {
        self.verbosity >= Verbosity::Verbose
    }

    pub fn error(&self, what: impl Display) {
        self.say(Verbosity::Quiet, what);
    }

    pub fn notice(&self, what: impl Display) {
        self.say(Verbosity::Normal, what);
    }

    pub fn detail(&self, what: impl Display) {
        self.say(Verbosity::Verbose, what);
    }

    /// Logs a lasting problem once for each of its texts, of which there are few: strangers who
    /// change the text again and again do not fill the log.
    pub fn once(&self, said: &mut Said, least: Verbosity, what: impl Display) {
        let what = what.to_string();
        if said.0.len() < MOST_SAID && !said.0.contains(&what) {
            self.say(least, &what);
            said.0.insert(what);
        }
    }

    fn say(&self, least: Verbosity, what: impl Display) {
        if self.verbosity >= least {
            self.line(what);
        }
    }

    /// Writes a line in one write: several processes share the log, and their lines must not mix.
    /// Text from outside must not make further lines or move the terminal's cursor. The error of a
    /// write is ignored: a failing log cannot be reported.
    fn line(&self, what: impl Display) {
        let text = printable(what.to_string().as_bytes());
        let line = format!("{}: {text}\n", self.program);
        // An unread log blocks us once, and then loses lines.
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

/// The messages about one problem, see [`Log::once`].
#[derive(Debug, Default)]
pub(crate) struct Said(BTreeSet<String>);

impl Said {
    /// The problem is over. Returns whether it was logged.
    pub fn forget(&mut self) -> bool {
        !std::mem::take(&mut self.0).is_empty()
    }
}
