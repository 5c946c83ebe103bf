//! fdrecv: takes one connection from a queue and becomes the command that serves it.

use std::ffi::OsString;
use std::os::fd::{AsFd, RawFd};
use std::time::Duration;

use clap::Parser;
use nix::sys::signal::{SigSet, Signal};

use crate::cli::common::{LogArguments, QueueArguments, parse};
use crate::error::{Error, Result};
use crate::queue::connection::Connection;
use crate::queue::{Received, Receiver, ends};
use crate::serve::handler::{Handler, Placement};
use crate::serve::source::{Found, Source};
use crate::system::alarm::Alarm;
use crate::system::log::{Log, Said, Verbosity};
use crate::system::text::{parse_descriptor, parse_timeout};
use crate::system::{inherited, interrupt, signals};

const PROGRAM: &str = "fdrecv";
const USAGE: &str = "fdrecv [OPTIONS] [--] COMMAND [ARG]...";
const SOURCES: &str = "\
Without --bind, --connect or --queue-fd the queue is standard input: a pipe from
fdaccept, as in 'fdaccept 8888 | fdrecv -- cat', or a Unix socket.
Exits with 69 if the queue is closed and nothing was received.";

/// Take one connection from a queue and become COMMAND, with the connection as its standard input and output.
#[derive(Parser)]
#[command(name = PROGRAM, version, override_usage = USAGE, after_help = SOURCES)]
struct RecvArguments {
    /// The command that serves the connection
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,

    #[command(flatten)]
    queue: QueueArguments,

    /// Give up waiting for a connection after this (status 69)
    #[arg(long, value_name = "SECONDS", value_parser = parse_timeout)]
    timeout: Option<Duration>,

    /// Put the connection at descriptor N instead of 0 and 1
    #[arg(long, value_name = "N", value_parser = parse_descriptor, conflicts_with = "activate")]
    fd: Option<RawFd>,

    /// Hand the connection over as LISTEN_FDS=1, as an Accept=yes service of systemd gets it
    #[arg(long)]
    activate: bool,

    #[command(flatten)]
    log: LogArguments,
}

/// Does what the command line of this process says. Returns the exit status.
///
/// # Errors
/// Why the program ends, other than by a signal or by the end of its queue.
pub fn run() -> anyhow::Result<u8> {
    let arguments: RecvArguments = parse()?;
    let log = arguments.log.log(PROGRAM);
    let handler = Handler::find(&arguments.command)?;
    let placement = placement(&arguments)?;
    let mut source = Source::open(&arguments.queue.source()?)?;
    inherited::close_others_on_exec()?;
    let alarm = watch_signals(arguments.timeout)?;
    let connection = match find(&mut source)? {
        Found::Queue(queue) => receive(&queue, &log)?,
        Found::End | Found::NoTicket => None,
        Found::Interrupted => return Ok(interrupted()?),
    };
    let Some(connection) = connection else {
        return match interrupt::raised() {
            Some(_) => Ok(interrupted()?),
            None => Err(Error::Closed("the queue is closed".into()).into()),
        };
    };
    // Before exec: the timeout must not end the command.
    drop(alarm);
    if log.is_verbose() {
        let (pid, info) = (std::process::id(), connection.info());
        log.detail(format_args!("pid {pid} from {}", info.client()));
        log.detail(format_args!("ok {pid} {}", ends::both(info)));
    }
    Err(handler.exec(&connection, placement).into())
}

/// Where to put the connection. Rejects an impossible number before a connection is taken.
fn placement(arguments: &RecvArguments) -> Result<Placement> {
    match (arguments.fd, arguments.activate) {
        (Some(number), _) => {
            inherited::check_number(number)?;
            Ok(Placement::Descriptor(number))
        }
        (None, true) => Ok(Placement::Activation),
        (None, false) => Ok(Placement::Standard),
    }
}

/// From now on a signal or the timeout interrupts the wait, but loses no connection.
fn watch_signals(timeout: Option<Duration>) -> Result<Option<Alarm>> {
    let fatal = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];
    let fatal = signals::not_ignored(&fatal);
    interrupt::on(&fatal)?;
    signals::set_mask(&SigSet::empty())?;
    let alarm = timeout.map(|timeout| {
        let mut alarm = Alarm::interrupting()?;
        alarm.after(timeout);
        Ok(alarm)
    });
    alarm.transpose()
}

/// Finds the queue. If nobody is at its name, the queue counts as closed.
fn find(source: &mut Source) -> Result<Found> {
    source.queue().map_err(|error| match error.errno() {
        Some(errno) if source.is_absent(errno) => Error::Closed(error.to_string()),
        _ => error,
    })
}

/// The next connection; `None` at the end of the queue or after an interruption.
fn receive(queue: &Receiver, log: &Log) -> Result<Option<Connection>> {
    let _watch = interrupt::watch(queue.as_fd());
    // Strangers may send messages without end.
    let mut said = Said::default();
    loop {
        match queue.receive()? {
            Received::Connection(connection) if connection.is_gone() => {
                let client = ends::client(connection.info());
                log.detail(format_args!("{client} had gone"));
            }
            Received::Connection(connection) => return Ok(Some(connection)),
            Received::Rejected(why) => log.once(&mut said, Verbosity::Quiet, why),
            Received::End | Received::Interrupted => return Ok(None),
        }
    }
}

/// Ends by the signal that interrupted the wait. SIGALRM means the timeout.
fn interrupted() -> Result<u8> {
    let raised = interrupt::raised().and_then(|number| Signal::try_from(number).ok());
    match raised {
        Some(Signal::SIGALRM) | None => Err(Error::Closed("no connection came in time".into())),
        Some(signal) => {
            signals::die_of(signal)?;
            Ok(1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::RecvArguments;
    use crate::cli::common::tests::{refuses_values, refuses_what_all_refuse};

    #[test]
    fn values_that_make_no_sense_are_refused() {
        let rest = &["cat"];
        refuses_what_all_refuse::<RecvArguments>(rest);
        let expected = "not a number of seconds";
        refuses_values::<RecvArguments>("--timeout", &["x", "-1", ""], rest, expected);
        let expected = "not the number of a descriptor";
        refuses_values::<RecvArguments>("--fd", &["x", "-1", ""], rest, expected);
    }
}
