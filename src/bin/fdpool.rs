//! fdpool: keeps a number of handlers busy with the connections of a queue.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use fdtools::arguments::{LogArguments, QueueArguments, parse, parse_seconds, parse_timeout};
use fdtools::handler::Handler;
use fdtools::pool::{Options, Pool};
use fdtools::scoreboard::MAX_SLOTS;
use fdtools::source::Source;
use fdtools::{Result, inherited, report};

const PROGRAM: &str = "fdpool";
const USAGE: &str = "fdpool [OPTIONS] N [--] COMMAND [ARG]...";
const SOURCES: &str = "\
Without --bind, --connect or --queue-fd the queue is standard input: a pipe from
fdaccept, as in 'fdaccept 8888 | fdpool 4 -- cat', or a Unix socket.";

/// Take connections from a queue and run COMMAND for each, up to N at once, with the connection as its standard input and output.
#[derive(Parser)]
#[command(name = PROGRAM, version, override_usage = USAGE, after_help = SOURCES)]
struct Arguments {
    /// How many connections to serve at once
    #[arg(value_name = "N", value_parser = parse_size)]
    size: usize,

    /// The command that serves a connection
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,

    #[command(flatten)]
    queue: QueueArguments,

    /// End when fdaccept does, instead of waiting until it is back (with --connect)
    #[arg(long, requires = "connect")]
    once: bool,

    /// End a handler that runs longer: TERM to its process group, KILL after 5 seconds
    #[arg(long, value_name = "SECONDS", value_parser = parse_timeout)]
    timeout: Option<Duration>,

    /// On TERM or INT, time for running handlers to finish
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = parse_seconds)]
    grace: Duration,

    #[command(flatten)]
    log: LogArguments,
}

fn main() -> ExitCode {
    report::finish(PROGRAM, run())
}

fn run() -> Result<u8> {
    let arguments: Arguments = parse()?;
    let log = arguments.log.log(PROGRAM);
    let handler = Handler::find(&arguments.command)?;
    let source = Source::open(&arguments.queue.rendezvous())?;
    inherited::close_others_on_exec()?;
    let options = Options {
        size: arguments.size,
        timeout: arguments.timeout,
        grace: arguments.grace,
        once: arguments.once,
    };
    Pool::new(source, handler, options, log)?.run()
}

fn parse_size(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(size @ 1..=MAX_SLOTS) => Ok(size),
        _ => Err(format!("not a number from 1 to {MAX_SLOTS}")),
    }
}
