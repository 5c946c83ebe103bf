//! What the three programs' command lines have in common.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, Parser};

use crate::rendezvous::Rendezvous;
use crate::report::{Log, Verbosity};
use crate::{Error, Result, name};

/// Where the queue is: on the side of who accepts as of who serves. Each of the three ways
/// excludes the others.
#[derive(Args, Clone, Debug)]
pub struct QueueArguments {
    /// Own PATH (or @NAME), where the other side finds this one
    #[arg(long, value_name = "PATH", conflicts_with_all = ["connect", "queue_fd"])]
    bind: Option<OsString>,

    /// Find the other side at PATH (or @NAME), which it owns
    #[arg(long, value_name = "PATH", conflicts_with = "queue_fd")]
    connect: Option<OsString>,

    /// Use descriptor N, instead of a standard stream
    #[arg(long, value_name = "N", value_parser = parse_descriptor)]
    queue_fd: Option<RawFd>,

    /// Permissions of the sockets that are made, in octal [default: 0600]
    #[arg(long, value_name = "MODE", value_parser = name::parse_mode)]
    mode: Option<u32>,

    /// Also trust UID at the other side of an @NAME, besides this user and root (repeatable)
    #[arg(long, value_name = "UID")]
    allow_uid: Vec<u32>,
}

impl QueueArguments {
    /// Whether the command line says where the queue is.
    pub fn is_given(&self) -> bool {
        self.bind.is_some() || self.connect.is_some() || self.queue_fd.is_some()
    }

    /// The permissions of the sockets that are made, if given.
    pub fn mode(&self) -> Option<u32> {
        self.mode
    }

    /// The users that `--allow-uid` names.
    pub fn allow_uid(&self) -> &[u32] {
        &self.allow_uid
    }

    /// Where the other side is.
    pub fn rendezvous(&self) -> Rendezvous {
        Rendezvous {
            queue_fd: self.queue_fd,
            connect: self.connect.clone(),
            bind: self.bind.clone(),
            mode: self.mode,
            allow_uid: self.allow_uid.clone(),
        }
    }
}

/// How much is said on standard error.
#[derive(Args, Clone, Copy, Debug)]
pub struct LogArguments {
    /// Log each connection
    #[arg(short, long, conflicts_with = "quiet")]
    verbose: bool,

    /// Log errors only
    #[arg(short, long)]
    quiet: bool,
}

impl LogArguments {
    /// The log of `program`.
    pub fn log(self, program: &'static str) -> Log {
        let verbosity = match (self.verbose, self.quiet) {
            (true, _) => Verbosity::Verbose,
            (_, true) => Verbosity::Quiet,
            _ => Verbosity::Normal,
        };
        Log::new(program, verbosity)
    }
}

/// Parses the command line. `--help` and `--version` are answered here, and end the program.
///
/// # Errors
/// [`Error::Usage`] for what is no command line of `program`.
pub fn parse<T: Parser>() -> Result<T> {
    let command = T::command().disable_help_subcommand(true);
    let matches = command.try_get_matches();
    let parsed = matches.and_then(|mut matches| T::from_arg_matches_mut(&mut matches));
    parsed.or_else(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => error.exit(),
        _ => Err(Error::Usage(in_one_line(&error.to_string()))),
    })
}

/// What is wrong, from clap's text of several paragraphs: the first one, and a tip if there is.
fn in_one_line(text: &str) -> String {
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let paragraphs = text.split("\n\n").map(str::trim);
    let wanted = paragraphs
        .enumerate()
        .filter(|(index, text)| *index == 0 || text.starts_with("tip: "));
    let lines = wanted.flat_map(|(_, text)| text.lines().map(str::trim));
    lines.collect::<Vec<_>>().join(" ")
}

/// More seconds than anybody waits: some thirty years, which every clock can add to now.
const FOR_EVER: f64 = 1e9;

/// Parses a number of seconds, with a fraction if wanted, as timeout(1) takes it.
///
/// # Errors
/// What is wrong, in words, for what is no such number.
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .ok()
        .filter(|seconds: &f64| !seconds.is_nan())
        .ok_or("not a number of seconds")?;
    let duration = Duration::try_from_secs_f64(seconds.min(FOR_EVER));
    duration.map_err(|_| "not a number of seconds".to_owned())
}

/// Parses a number of seconds that is more than none.
///
/// # Errors
/// What is wrong, in words.
pub fn parse_timeout(text: &str) -> Result<Duration, String> {
    match parse_seconds(text)? {
        Duration::ZERO => Err("must be more than 0".into()),
        timeout => Ok(timeout),
    }
}

/// Parses the number of a descriptor.
///
/// # Errors
/// What is wrong, in words.
pub fn parse_descriptor(text: &str) -> Result<RawFd, String> {
    match text.parse() {
        Ok(number) if number >= 0 && text.bytes().all(|b| b.is_ascii_digit()) => Ok(number),
        _ => Err("not the number of a descriptor".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_may_have_a_fraction_and_nothing_else() {
        assert_eq!(parse_seconds("30"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_seconds("0.25"), Ok(Duration::from_millis(250)));
        assert_eq!(
            parse_seconds("1e300"),
            Ok(Duration::from_secs(1_000_000_000))
        );
        assert!(parse_timeout("0").is_err());
        for bad in ["", "-1", "1s", "nan"] {
            assert!(parse_seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn descriptors_are_numbers() {
        assert_eq!(parse_descriptor("7"), Ok(7));
        for bad in ["", "-1", "+7", "x", "99999999999"] {
            assert!(parse_descriptor(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_usage_error_is_one_line() {
        let text = "error: unexpected argument '--foo' found\n\n  tip: to pass it, use '-- --foo'\n\nUsage: x\n\nFor more information, try '--help'.\n";
        assert_eq!(
            in_one_line(text),
            "unexpected argument '--foo' found tip: to pass it, use '-- --foo'"
        );
        let text = "error: the following required arguments were not provided:\n  <N>\n  <COMMAND>...\n\nUsage: x\n";
        assert_eq!(
            in_one_line(text),
            "the following required arguments were not provided: <N> <COMMAND>..."
        );
    }
}
