//! The options that the 3 programs share.

use std::ffi::OsString;
use std::os::fd::RawFd;

use anyhow::Context;
use clap::error::ErrorKind;
use clap::{Args, Parser};

use crate::cli::{answer, usage};
use crate::error::Error;
use crate::queue::name::Name;
use crate::queue::owned_name::PathAccess;
use crate::queue::rendezvous::Rendezvous;
use crate::system::file_owner::{FileOwner, NamedOwner};
use crate::system::log::{Log, Verbosity};
use crate::system::text::{parse_descriptor, parse_mode, parse_number, printable};

/// Where the queue is, for acceptors and consumers alike. Each of the 3 ways excludes the others.
#[derive(Args, Clone, Debug)]
pub(super) struct QueueArguments {
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
    #[arg(long, value_name = "MODE", value_parser = parse_mode)]
    mode: Option<u32>,

    /// Owner of the sockets that are made, and their group, as for chown [default: this user]
    #[arg(long, value_name = "[USER][:GROUP]")]
    owner: Option<String>,

    /// Also trust UID at the other side of an @NAME, besides this user and root (repeatable)
    #[arg(long, value_name = "UID", value_parser = parse_number::<u32>)]
    allow_uid: Vec<u32>,
}

impl QueueArguments {
    /// Whether the command line says where the queue is.
    pub fn is_given(&self) -> bool {
        self.bind.is_some() || self.connect.is_some() || self.queue_fd.is_some()
    }

    pub fn binds(&self) -> bool {
        self.bind.is_some()
    }

    pub fn connects(&self) -> bool {
        self.connect.is_some()
    }

    /// Whether `--owner` needs another path than that of `--bind`, which is none.
    pub fn lacks_path(&self) -> bool {
        let name = self.bind.as_ref().map(|name| Name::parse(name));
        // What is no name is refused for that.
        let has_path = name.is_some_and(|name| !name.is_ok_and(|name| name.is_abstract()));
        self.owner.is_some() && !has_path
    }

    /// `--mode` and `--owner` of the paths that are made. What `--owner` does not name is as of
    /// `user`, or ours.
    pub fn access(&self, user: Option<FileOwner>) -> anyhow::Result<PathAccess> {
        let owner = match &self.owner {
            None => user,
            Some(text) => match NamedOwner::find(text) {
                Err(error @ Error::Invalid(_)) => {
                    let option = format!("--owner {}", printable(text.as_bytes()));
                    return Err(error).context(option);
                }
                found => Some(found?.instead_of(user)),
            },
        };
        let mode = self.mode;
        Ok(PathAccess { mode, owner })
    }

    pub fn allow_uid(&self) -> &[u32] {
        &self.allow_uid
    }

    /// Where a consumer finds its queue.
    pub fn source(&self) -> anyhow::Result<Rendezvous> {
        if self.lacks_path() {
            return Err(usage("--owner needs a path for --bind"));
        }
        Ok(self.rendezvous(self.access(None)?))
    }

    pub fn rendezvous(&self, access: PathAccess) -> Rendezvous {
        Rendezvous {
            queue_fd: self.queue_fd,
            connect: self.connect.clone(),
            bind: self.bind.clone(),
            access,
            allow_uid: self.allow_uid.clone(),
        }
    }
}

/// How much to log on standard error.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct LogArguments {
    /// Log each connection
    #[arg(short, long, conflicts_with = "quiet")]
    verbose: bool,

    /// Log errors only
    #[arg(short, long)]
    quiet: bool,
}

impl LogArguments {
    pub fn log(self, program: &'static str) -> Log {
        let verbosity = match (self.verbose, self.quiet) {
            (true, _) => Verbosity::Verbose,
            (_, true) => Verbosity::Quiet,
            _ => Verbosity::Normal,
        };
        Log::new(program, verbosity)
    }
}

/// Parses the command line. Answers `--help` and `--version` and exits.
///
/// # Errors
/// The problem, if the command line is not valid for the program, or if the answer cannot be
/// written.
pub(super) fn parse<T: Parser>() -> anyhow::Result<T> {
    parse_from(std::env::args_os())
}

fn parse_from<T: Parser>(words: impl IntoIterator<Item = OsString>) -> anyhow::Result<T> {
    let command = T::command().disable_help_subcommand(true);
    let matches = command.try_get_matches_from(words);
    let parsed = matches.and_then(|mut matches| T::from_arg_matches_mut(&mut matches));
    parsed.or_else(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            answer(&error.to_string())?;
            std::process::exit(0)
        }
        _ => Err(usage(in_one_line(&error.to_string()))),
    })
}

/// Reduces clap's text of several paragraphs to the problem, and a similar option, if any.
fn in_one_line(text: &str) -> String {
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let (problem, rest) = text.split_once("\n\n").unwrap_or((text, ""));
    let problem: Vec<_> = problem.lines().map(str::trim).collect();
    let tips = rest
        .lines()
        .filter_map(|line| line.trim().strip_prefix("tip: "));
    // Hardly anybody wants to pass an unknown option to the command.
    let tips = tips.filter(|tip| !tip.starts_with("to pass "));
    let tips: String = tips.map(|tip| format!("; {tip}")).collect();
    problem.join(" ") + &tips
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    /// Expects that a command line of these words is refused, in the words `expected` among others.
    #[track_caller]
    pub fn refuses<T: Parser>(words: &[impl AsRef<OsStr>], expected: &str) {
        let words = words.iter().map(|word| word.as_ref().to_owned());
        let words: Vec<_> = ["program".into()].into_iter().chain(words).collect();
        let problem = parse_from::<T>(words.clone()).err().unwrap().to_string();
        assert!(problem.contains(expected), "{words:?}: {problem}");
        assert!(!problem.contains('\n'), "{problem:?}");
    }

    /// Expects that each of these values of an option is refused, and a value that is not UTF-8.
    #[track_caller]
    pub fn refuses_values<T: Parser>(option: &str, values: &[&str], rest: &[&str], expected: &str) {
        for value in values {
            let option = format!("{option}={value}");
            refuses::<T>(&[&[option.as_str()], rest].concat(), expected);
        }
        let odd = [OsStr::new(option), OsStr::from_bytes(b"\xff\xfe")];
        let rest = rest.iter().map(OsStr::new);
        refuses::<T>(&odd.into_iter().chain(rest).collect::<Vec<_>>(), "");
    }

    /// Expects that a program refuses wrong values of the options that all programs have. `rest`
    /// is what its command line needs.
    #[track_caller]
    pub fn refuses_what_all_refuse<T: Parser>(rest: &[&str]) {
        let [bind, connect] = [["--bind", "one"], ["--connect", "other"]];
        let queue_fd = ["--queue-fd", "0"];
        for (one, other) in [(bind, connect), (bind, queue_fd), (connect, queue_fd)] {
            for both in [[one, other].concat(), [other, one].concat()] {
                refuses::<T>(&[&both, rest].concat(), "cannot be used with");
            }
        }
        for both in [["-v", "-q"], ["--quiet", "--verbose"]] {
            refuses::<T>(&[&both, rest].concat(), "cannot be used with");
        }
        for option in [
            "--bind",
            "--connect",
            "--queue-fd",
            "--mode",
            "--owner",
            "--allow-uid",
        ] {
            refuses::<T>(&[option], "a value is required");
        }
        let expected = "octal number from 0 to 777";
        refuses_values::<T>("--mode", &["888", "-1", ""], rest, expected);
        let expected = "not the number of a descriptor";
        refuses_values::<T>("--queue-fd", &["x", "-1", ""], rest, expected);
        let uids = ["x", "-1", "root", ""];
        refuses_values::<T>("--allow-uid", &uids, rest, "'--allow-uid <UID>'");
    }

    #[test]
    fn a_usage_error_is_one_line() {
        let text = "error: unexpected argument '--foo' found\n\n  tip: a similar argument exists: '--fool'\n  tip: to pass '--foo' as a value, use '-- --foo'\n\nUsage: x\n\nFor more information, try '--help'.\n";
        assert_eq!(
            in_one_line(text),
            "unexpected argument '--foo' found; a similar argument exists: '--fool'"
        );
        let text = "error: the following required arguments were not provided:\n  <N>\n  <COMMAND>...\n\nUsage: x\n";
        assert_eq!(
            in_one_line(text),
            "the following required arguments were not provided: <N> <COMMAND>..."
        );
    }
}
