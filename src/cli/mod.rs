//! The command lines: what each program does, step by step, and how programs start and end.
//!
//! A program starts at the `main` of the C library. The Rust runtime's own `main` reads the memory
//! map of the process, and prepares a stack and 2 signal handlers, to report a stack overflow. That
//! is a good part of the life of a program that soon becomes another program, and each child would
//! have to undo the handlers. The rest of the runtime's work is done here.

use std::fmt;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::stdio;

use crate::error::{Error, Result};
use crate::queue::rendezvous::with_advice;
use crate::system::log::{Log, Verbosity};
use crate::system::{exit, interrupt, journal, log_output, null, signals};

mod admission;
mod common;
pub mod fdaccept;
pub mod fdpool;
pub mod fdrecv;
mod manager;
mod service;

/// Makes the `main` of the program `$name`. To be used once, and with `no_main` under glibc: only
/// glibc gives the arguments to code that runs without the Rust runtime. `$run` does the work and
/// returns the exit status; its error is logged.
#[doc(hidden)]
#[macro_export]
macro_rules! program {
    ($name:expr, $run:expr) => {
        #[cfg(target_env = "gnu")]
        #[allow(unsafe_code)]
        // SAFETY: the C library calls this `main`, and with `no_main` there is no other.
        #[unsafe(no_mangle)]
        extern "C" fn main() -> std::ffi::c_int {
            $crate::start($name, $run)
        }

        #[cfg(not(target_env = "gnu"))]
        fn main() {
            $crate::start($name, $run);
        }
    };
}

/// Runs a program from start to exit.
pub fn start(program: &'static str, run: impl FnOnce() -> anyhow::Result<u8>) -> ! {
    let done = prepare().map_err(anyhow::Error::from).and_then(|()| run());
    let status = done.unwrap_or_else(|error| report(program, &error));
    log_output::say_lost(program);
    std::process::exit(status.into())
}

/// The parent left standard output closed.
static HAS_NO_OUTPUT: AtomicBool = AtomicBool::new(false);

/// Does what the Rust runtime does for every program.
fn prepare() -> Result<()> {
    // Opens closed standard streams, so that no other descriptor gets their numbers.
    for stream in [stdio::stdin(), stdio::stdout(), stdio::stderr()] {
        if rustix::io::fcntl_getfd(stream) == Err(Errno::BADF) {
            let is_output = stream.as_raw_fd() == stdio::raw_stdout();
            HAS_NO_OUTPUT.fetch_or(is_output, Ordering::Relaxed);
            // All lower numbers are open, so this descriptor gets the closed number. It stays open.
            let _ = null::open(OFlags::empty())?.into_raw_fd();
        }
    }
    // Needed later, when a connection may be in hand: fails now, before anything is taken.
    null::device()?;
    // Before anything is forked that would have to look for itself.
    journal::is_stderr();
    interrupt::allow_limits();
    signals::ignore(&signals::OF_FAILED_WRITES)
}

/// Writes a text that was asked for, such as `--help`, to standard output.
fn answer(text: &str) -> Result<()> {
    const ACTION: &str = "write to standard output";
    if HAS_NO_OUTPUT.load(Ordering::Relaxed) {
        return Err(Error::Other {
            action: ACTION.into(),
            cause: "it is closed".into(),
        });
    }
    let mut output = io::stdout();
    let written = output.write_all(text.as_bytes());
    written
        .and_then(|()| output.flush())
        .map_err(|error| Error::io(ACTION, error))
}

/// A command line that makes no sense. The text says what to do instead.
#[derive(Debug)]
struct Usage(String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

fn usage(problem: impl Into<String>) -> anyhow::Error {
    Usage(problem.into()).into()
}

/// Logs why a program ends. Returns the exit status.
fn report(program: &'static str, error: &anyhow::Error) -> u8 {
    let log = Log::new(program, Verbosity::Quiet);
    match error.downcast_ref::<Error>() {
        Some(untrusted @ Error::Untrusted { .. }) => log.error(with_advice(untrusted)),
        _ => log.error(format_args!("{error:#}")),
    }
    if is_helped_by_help(error) {
        log.error(format_args!("try '{program} --help' for more information"));
    }
    status(error)
}

/// Whether the command line itself is wrong, and not a file that it names.
fn is_helped_by_help(error: &anyhow::Error) -> bool {
    let invalid = error.downcast_ref::<Error>();
    error.is::<Usage>() || matches!(invalid, Some(Error::Invalid(_)))
}

fn status(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Error>() {
        Some(Error::Invalid(_) | Error::File(_)) => exit::USAGE,
        Some(Error::Closed(_)) => exit::CLOSED,
        Some(Error::CommandNotFound { .. }) => exit::NOT_FOUND,
        Some(Error::CommandNotExecutable { .. }) => exit::NOT_EXECUTABLE,
        Some(_) => 1,
        None if error.is::<Usage>() => exit::USAGE,
        None => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn an_error_has_its_status_whatever_is_said_with_it() {
        let closed = || Error::Closed("the queue is closed".into());
        assert_eq!(status(&closed().into()), 69);
        let with_context = Err::<(), _>(closed()).context("--connect x").unwrap_err();
        assert_eq!(status(&with_context), 69);
        assert_eq!(
            format!("{with_context:#}"),
            "--connect x: the queue is closed"
        );
        assert_eq!(status(&usage("no command given")), 2);
        assert_eq!(status(&usage("x").context("y")), 2);
        assert_eq!(status(&Error::Invalid("x".into()).into()), 2);
        assert_eq!(status(&Error::File("x".into()).into()), 2);
        assert_eq!(status(&Error::Peer("x".into()).into()), 1);
        assert_eq!(status(&anyhow::anyhow!("x")), 1);
    }
}
