//! fdaccept: listens, accepts, and passes each connection into a queue.

use std::env;
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use fdtools::accept::{self, Acceptor, Parts};
use fdtools::address::Address;
use fdtools::arguments::{LogArguments, QueueArguments, parse, parse_seconds};
use fdtools::chain::Chain;
use fdtools::command::Command;
use fdtools::guard::Guard;
use fdtools::guard_arguments::GuardArguments;
use fdtools::limit::Limit;
use fdtools::listener::{self, Listener};
use fdtools::queue;
use fdtools::report;
use fdtools::signals::Signals;
use fdtools::sink::Sink;
use fdtools::sockopt::{self, SocketOption};
use fdtools::{Error, Result};

const PROGRAM: &str = "fdaccept";
const USAGE: &str = "fdaccept [OPTIONS] ADDRESS... [-- COMMAND [ARG]...]";
const ADDRESSES: &str = "\
Where to listen: PORT, IP:PORT, [IP]:PORT, HOST:PORT, /PATH, @NAME, vsock:CID:PORT or fd:N";
const ALLOW_UID: &str = "\
Also trust UID at the other side of an @NAME; of clients of Unix sockets let UID in (repeatable)";
const SINKS: &str = "\
Without COMMAND, --bind, --connect or --queue-fd the queue is standard output: a
pipe or a Unix socket, as in 'fdaccept 8888 | fdpool 4 -- cat'. Without ADDRESS,
the listeners of LISTEN_FDS are used.";

/// Listen, accept, and pass each connection into a queue.
#[derive(Parser)]
#[command(name = PROGRAM, version, override_usage = USAGE, after_help = after_help())]
#[command(mut_arg("allow_uid", |arg| arg.help(ALLOW_UID)))]
struct Arguments {
    #[arg(value_name = "ADDRESS", help = ADDRESSES)]
    addresses: Vec<OsString>,

    /// Run this with the queue as its standard input, and exit as it exits
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,

    #[command(flatten)]
    queue: QueueArguments,

    /// Connections that may wait to be accepted [default: the kernel's maximum]
    #[arg(long, value_name = "N")]
    backlog: Option<u32>,

    /// Set a socket option (repeatable)
    #[arg(short = 'o', long = "option", value_name = "NAME[=VALUE]", value_parser = SocketOption::parse)]
    options: Vec<SocketOption>,

    /// At most N connections in the queue; more wait to be accepted [default: the kernel's limit]
    #[arg(long = "queue", value_name = "N")]
    queue_limit: Option<NonZeroUsize>,

    #[command(flatten)]
    guard: GuardArguments,

    /// On TERM or INT, time for what was accepted to be taken
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = parse_seconds)]
    grace: Duration,

    #[command(flatten)]
    log: LogArguments,
}

fn after_help() -> String {
    format!("Socket options:\n{}\n\n{SINKS}", sockopt::help().trim_end())
}

fn main() -> ExitCode {
    report::finish(PROGRAM, run())
}

fn run() -> Result<u8> {
    let arguments: Arguments = parse()?;
    let log = arguments.log.log(PROGRAM);
    let limit = Limit::raise();
    let command = find_command(&arguments)?;
    let (mut sink, read_end) = match command {
        Some(_) => {
            let (sender, read_end) = queue::ends()?;
            (Sink::chain(sender), Some(read_end))
        }
        None => (
            Sink::open(&arguments.queue.rendezvous(), queue::ends)?,
            None,
        ),
    };
    if let Some(most) = arguments.queue_limit {
        sink.limit(most.get())?;
    }
    let guard = Guard::new(arguments.guard.options(arguments.queue.allow_uid())?)?;
    // Looking up a host may take long; until it is over a signal simply ends us.
    let listeners = open_listeners(&arguments)?;
    let headers = arguments.guard.awaited_headers(&listeners)?;
    let signals = Signals::new(&accept::signals(arguments.guard.has_rules()))?;
    for listener in &listeners {
        log.notice(format_args!("listening on {listener}"));
    }
    let chain = match command.zip(read_end) {
        Some((command, read_end)) => {
            let mask = signals.original_mask();
            Some(Chain::start(&command, read_end, &mask, &limit)?)
        }
        None => None,
    };
    let parts = Parts {
        listeners,
        headers,
        guard,
        sink,
        chain,
        signals,
        grace: arguments.grace,
        log,
    };
    Acceptor::new(parts)?.run()
}

/// The command of the chain form, found before anything is bound for it.
fn find_command(arguments: &Arguments) -> Result<Option<Command>> {
    match arguments.command.as_slice() {
        // As where a variable of a script that should be the command is empty.
        [] if env::args_os().last().is_some_and(|last| last == "--") => {
            Err(Error::Usage("no command given after --".into()))
        }
        [] => Ok(None),
        _ if arguments.queue.is_given() => Err(Error::Usage(
            "give either -- COMMAND or one of --bind, --connect and --queue-fd".into(),
        )),
        words => Command::find(words).map(Some),
    }
}

fn open_listeners(arguments: &Arguments) -> Result<Vec<Listener>> {
    let options = listener::Options {
        backlog: arguments.backlog,
        mode: arguments.queue.mode(),
        socket_options: arguments.options.clone(),
    };
    if !arguments.addresses.is_empty() {
        let addresses = arguments.addresses.iter().map(|text| Address::parse(text));
        return listener::open_all(&addresses.collect::<Result<Vec<_>>>()?, &options);
    }
    let (fds, pid) = (env::var_os("LISTEN_FDS"), env::var_os("LISTEN_PID"));
    let listeners = listener::from_environment(fds.as_deref(), pid.as_deref(), &options)?;
    match listeners.is_empty() {
        false => Ok(listeners),
        true => Err(Error::Usage(
            match fds {
                Some(_) => {
                    "no ADDRESS given, and LISTEN_FDS is not meant for this process (LISTEN_PID)"
                }
                None => "no ADDRESS given, and no listeners in LISTEN_FDS",
            }
            .into(),
        )),
    }
}
