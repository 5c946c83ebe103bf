//! fdpool: keeps handlers or workers busy with the connections of a queue.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::time::Duration;

use clap::Parser;
use nix::sys::signal::Signal;

use crate::cli::common::{LogArguments, QueueArguments, parse};
use crate::cli::{manager, usage};
use crate::queue::name::Name;
use crate::queue::rendezvous::Rendezvous;
use crate::serve::handler::Handler;
use crate::serve::pool::{Pool, PoolOptions};
use crate::serve::scoreboard::MAX_SLOTS;
use crate::serve::slot::HangUp;
use crate::serve::slots::{SlotOptions, Slots};
use crate::serve::source::Source;
use crate::serve::watchdog::Watchdog;
use crate::serve::worker::{Ready, WorkerCommand};
use crate::serve::workers::Workers;
use crate::system::text::{digits, parse_descriptor, parse_seconds, parse_timeout};
use crate::system::{inherited, log_output, signals};

const PROGRAM: &str = "fdpool";
/// How long a connection lasts after its handler.
const LINGER: Duration = Duration::from_secs(5);
const USAGE: &str = "fdpool [OPTIONS] N [--] COMMAND [ARG]...";
const SOURCES: &str = "\
Without --bind, --connect or --queue-fd the queue is standard input: a pipe from
fdaccept, as in 'fdaccept 8888 | fdpool 4 -- cat', or a Unix socket.";

/// Take connections from a queue and run COMMAND for each, up to N at once, with the connection as its standard input and output.
#[derive(Parser)]
#[command(name = PROGRAM, version, override_usage = USAGE, after_help = SOURCES)]
struct PoolArguments {
    /// How many connections to serve at once, or how many workers to run
    #[arg(value_name = "N", value_parser = parse_size)]
    size: usize,

    /// The command that serves a connection, or that is a worker
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,

    #[command(flatten)]
    queue: QueueArguments,

    /// Run N copies of COMMAND that stay, each with the queue as its standard input
    #[arg(long)]
    worker: bool,

    /// A worker has started when it writes a newline to descriptor FD
    #[arg(long, value_name = "FD", requires = "worker", value_parser = parse_ready_fd)]
    ready_fd: Option<RawFd>,

    /// End a worker that takes longer to say that it is ready
    #[arg(long, value_name = "SECONDS", default_value = "30", requires = "ready_fd", value_parser = parse_timeout)]
    ready_timeout: Duration,

    /// End when fdaccept does, instead of waiting until it is back (with --connect)
    #[arg(long, requires = "connect")]
    once: bool,

    /// End a handler that runs longer, with all that it has started: TERM, KILL after 5 seconds
    #[arg(long, value_name = "SECONDS", value_parser = parse_timeout)]
    timeout: Option<Duration>,

    /// End a worker that does not say WATCHDOG=1 to NOTIFY_SOCKET at least so often
    #[arg(long, value_name = "SECONDS", requires = "worker", value_parser = parse_timeout)]
    watchdog: Option<Duration>,
    /// End a handler whose client is gone, by its reset, or by its end as well: HUP, TERM, KILL
    #[arg(long, value_name = "reset|end", value_parser = parse_hang_up, conflicts_with = "worker")]
    hang_up: Option<HangUp>,

    /// How long an ended handler's connection waits for its client's end; 0 keeps no copy of it [default: 5]
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    linger: Option<Duration>,

    /// Time to finish for handlers on TERM or INT, and for workers that are to go
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = parse_seconds)]
    grace: Duration,

    /// Stop when nothing was served for so long
    #[arg(long, value_name = "SECONDS", value_parser = parse_timeout)]
    exit_idle: Option<Duration>,

    #[command(flatten)]
    log: LogArguments,
}

/// Does what the command line of this process says. Returns the exit status.
///
/// # Errors
/// Why the program ends, other than by a signal or by the end of its queue.
pub fn run() -> anyhow::Result<u8> {
    let arguments: PoolArguments = parse()?;
    signals::ignore_tostop()?;
    if arguments.worker {
        arguments.check_workers()?;
        run_workers(&arguments)
    } else {
        run_slots(&arguments)
    }
}

fn run_slots(arguments: &PoolArguments) -> anyhow::Result<u8> {
    let log = arguments.log.log(PROGRAM);
    let handler = Handler::find(&arguments.command)?;
    let source = Source::open(&arguments.queue.source()?)?;
    inherited::close_others_on_exec()?;
    log_output::share()?;
    let options = SlotOptions {
        timeout: arguments.timeout,
        linger: arguments.linger.unwrap_or(LINGER),
        hang_up: arguments.hang_up,
    };
    let slots = Slots::new(handler, arguments.size, options, log)?;
    let heartbeat = manager::heartbeat(&log);
    Ok(Pool::new(source, slots, arguments.options(), heartbeat, log)?.run()?)
}

fn run_workers(arguments: &PoolArguments) -> anyhow::Result<u8> {
    if arguments.timeout.is_some() {
        return Err(usage(
            "--timeout ends handlers, and cannot be used with --worker: --watchdog SECONDS ends a \
             worker that hangs",
        ));
    }
    // A HUP that comes before the pool can reload waits for the pool.
    signals::block(&[Signal::SIGHUP])?;
    let log = arguments.log.log(PROGRAM);
    let ready = arguments.ready_fd.map(|fd| Ready {
        fd,
        timeout: arguments.ready_timeout,
    });
    let command = WorkerCommand::find(&arguments.command, ready)?;
    let rendezvous = arguments.queue.source()?;
    check_name_of_workers(&rendezvous)?;
    let source = Source::open(&rendezvous)?;
    inherited::close_others_on_exec()?;
    let watchdog = arguments.watchdog.map(Watchdog::open).transpose()?;
    let workers = Workers::new(command, arguments.size, arguments.grace, watchdog, log);
    let heartbeat = manager::heartbeat(&log);
    Ok(Pool::new(source, workers, arguments.options(), heartbeat, log)?.run()?)
}

impl PoolArguments {
    fn check_workers(&self) -> anyhow::Result<()> {
        match self.linger {
            None => Ok(()),
            Some(_) => Err(usage(
                "--linger is for handlers: a worker ends its connections itself, as \
                 Connection::finish of the library does",
            )),
        }
    }

    fn options(&self) -> PoolOptions {
        PoolOptions {
            grace: self.grace,
            once: self.once,
            exit_idle: self.exit_idle,
        }
    }
}

/// Anybody can send to an abstract name, so a receiver must check the sender. With `--worker` the
/// workers receive, and fdpool cannot check for them.
fn check_name_of_workers(rendezvous: &Rendezvous) -> anyhow::Result<()> {
    match &rendezvous.bind {
        Some(name) if Name::parse(name)?.is_abstract() => Err(usage(
            "--worker needs a path for --bind: anybody can send to an abstract name",
        )),
        _ => Ok(()),
    }
}

fn parse_size(text: &str) -> Result<usize, String> {
    let problem = format!("not a number from 1 to {MAX_SLOTS}");
    match digits(text) {
        Some(size @ 1..=MAX_SLOTS) => Ok(size),
        // As in `fdpool -- cat 4`.
        _ if text.starts_with(|first: char| !first.is_ascii_digit()) => Err(format!(
            "{problem}, which comes before the command: fdpool N -- COMMAND"
        )),
        _ => Err(problem),
    }
}

fn parse_hang_up(text: &str) -> Result<HangUp, String> {
    match text {
        "reset" => Ok(HangUp::Reset),
        "end" => Ok(HangUp::End),
        _ => Err("not 'reset' or 'end'".into()),
    }
}

/// The standard streams are taken: standard input is the queue.
fn parse_ready_fd(text: &str) -> Result<RawFd, String> {
    match parse_descriptor(text)? {
        0..3 => Err("must be 3 or more".into()),
        number => Ok(number),
    }
}

#[cfg(test)]
mod tests {
    use super::PoolArguments;
    use crate::cli::common::tests::{refuses, refuses_values, refuses_what_all_refuse};

    #[test]
    fn values_that_make_no_sense_are_refused() {
        let rest = &["4", "cat"];
        refuses_what_all_refuse::<PoolArguments>(rest);
        let expected = "not a number of seconds";
        for option in [
            "--grace",
            "--timeout",
            "--linger",
            "--ready-timeout",
            "--watchdog",
        ] {
            refuses_values::<PoolArguments>(option, &["x", "-1", ""], rest, expected);
        }
        let expected = "not 'reset' or 'end'";
        refuses_values::<PoolArguments>("--hang-up", &["x", "END", ""], rest, expected);
        refuses::<PoolArguments>(&["--worker", "--hang-up=end", "4", "cat"], "--worker");
        for size in [
            "0",
            "+4",
            "04",
            "65537",
            "x",
            "",
            "4.5",
            "99999999999999999999",
        ] {
            refuses::<PoolArguments>(&[size, "cat"], "not a number from 1 to 65536");
        }
    }
}
