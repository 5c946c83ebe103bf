//! Messages of a program on standard error.

use std::fmt::Display;

use crate::system::log_output;
use crate::system::text::printable;

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

    /// Logs a lasting problem once, until its text changes.
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

    /// Text from outside must not make further lines or move the terminal's cursor.
    fn line(&self, what: impl Display) {
        let text = printable(what.to_string().as_bytes());
        log_output::write_line(self.program, &text);
    }
}

/// The last message about one problem, see [`Log::once`].
#[derive(Debug, Default)]
pub(crate) struct Said(Option<String>);

impl Said {
    /// The problem is over. Returns whether it was logged.
    pub fn forget(&mut self) -> bool {
        self.0.take().is_some()
    }
}
