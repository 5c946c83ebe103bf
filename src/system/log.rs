//! Messages of a program on standard error.

use std::collections::BTreeSet;
use std::fmt::Display;

use crate::system::journal::Priority;
use crate::system::log_output;
use crate::system::text::printable;

/// How many different texts of a problem are logged.
const MOST_SAID: usize = 64;

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
        self.say(Verbosity::Quiet, Priority::Error, what);
    }

    /// For what an operator would look into.
    pub fn warning(&self, what: impl Display) {
        self.say(Verbosity::Normal, Priority::Warning, what);
    }

    /// For what happens in good order.
    pub fn notice(&self, what: impl Display) {
        self.say(Verbosity::Normal, Priority::Notice, what);
    }

    pub fn detail(&self, what: impl Display) {
        self.say(Verbosity::Verbose, Priority::Info, what);
    }

    /// Logs a lasting problem once for each of its texts, of which there are few: strangers who
    /// change the text again and again do not fill the log. A problem is an error or a warning.
    pub fn once(&self, said: &mut Said, least: Verbosity, what: impl Display) {
        let what = what.to_string();
        if said.0.len() < MOST_SAID && !said.0.contains(&what) {
            let priority = match least {
                Verbosity::Quiet => Priority::Error,
                Verbosity::Normal | Verbosity::Verbose => Priority::Warning,
            };
            self.say(least, priority, &what);
            said.0.insert(what);
        }
    }

    fn say(&self, least: Verbosity, priority: Priority, what: impl Display) {
        if self.verbosity >= least {
            self.line(priority, what);
        }
    }

    /// Text from outside must not make further lines, which could have a priority of their own, or
    /// move the terminal's cursor.
    fn line(&self, priority: Priority, what: impl Display) {
        let text = printable(what.to_string().as_bytes());
        log_output::write_line(self.program, priority, &text);
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
