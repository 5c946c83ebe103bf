//! fdaccept: listens, accepts, and passes each connection into a queue.

use std::env;
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::time::Duration;

use clap::Parser;

use crate::accept::admission::Admission;
use crate::accept::listen::address::Address;
use crate::accept::listen::socket_option::{self, SocketOption};
use crate::accept::listen::{ListenOptions, Listener, inherit};
use crate::accept::service::child::Child;
use crate::accept::service::fd_store::{self, FdStore};
use crate::accept::service::footprint::Footprint;
use crate::accept::service::listen_fds::ListenFds;
use crate::accept::service::user::User;
use crate::accept::service::{restore, sandbox};
use crate::accept::sink::Sink;
use crate::accept::{self, Acceptor, Parts};
use crate::cli::admission::AdmissionArguments;
use crate::cli::common::{LogArguments, QueueArguments, parse};
use crate::cli::service::ServiceArguments;
use crate::cli::usage;
use crate::queue::owned_name::PathAccess;
use crate::system::command::Command;
use crate::system::fd_limit::FdLimit;
use crate::system::log_output;
use crate::system::signals::{self, Signals};
use crate::system::text::{parse_number, parse_seconds};

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

/// Does what the command line of this process says. Returns the exit status.
///
/// # Errors
/// Why the program ends, other than by a signal or by the end of its consumers.
pub fn run() -> anyhow::Result<u8> {
    let arguments = AcceptArguments::parse_checked()?;
    signals::ignore_tostop()?;
    let log = arguments.log.log(PROGRAM);
    let limit = FdLimit::raise();
    let command = arguments.command()?;
    let user = arguments.service.user()?;
    let access = arguments.queue.access(user.as_ref().map(User::owner))?;
    let passed = ListenFds::from_environment()?;
    let supervisor = arguments.service.supervisor(&log)?;
    let mut store = FdStore::open(&passed, &supervisor, arguments.service.store(), &log)?;
    let (sink, read_end) = arguments.sink(user.as_ref(), access, &mut store)?;
    let admission = arguments.admission()?;
    // A host look-up may take long. No signal is handled yet, so a signal simply ends the program.
    let listeners = arguments.listeners(access, &passed, &mut store)?;
    let proxy = arguments.admission.awaited_headers(&listeners)?;
    arguments.service.write_ports(&listeners)?;
    let signals = Signals::new(&accept::signals(arguments.admission.has_rules()))?;
    if let Some(user) = user {
        user.assume()?;
        sink.check()?;
    }
    // Opens a file, so it must come first: from now on only connections take descriptors.
    let footprint = Footprint::of_start();
    for listener in &listeners {
        log.notice(format_args!("listening on {listener}"));
    }
    let child = match command.zip(read_end) {
        Some((command, read_end)) => {
            let mask = signals.original_mask();
            let mut child = Child::start(&command, read_end, &mask, &limit)?;
            if arguments.service.sandbox() {
                child.leave_unexamined();
            }
            Some(child)
        }
        None => None,
    };
    let pid = child.as_ref().map(Child::pid);
    let acceptor = Acceptor::new(Parts {
        listeners,
        proxy,
        admission,
        sink,
        is_bare: arguments.bare,
        child,
        supervisor,
        signals,
        grace: arguments.grace,
        log,
    });
    footprint.reduce();
    if arguments.service.sandbox() {
        log_output::prepare();
        sandbox::enter(pid)?;
    }
    Ok(acceptor.run()?)
}

/// Listen, accept, and pass each connection into a queue.
#[derive(Parser)]
#[command(name = PROGRAM, version, override_usage = USAGE, after_help = after_help())]
#[command(mut_arg("allow_uid", |arg| arg.help(ALLOW_UID)))]
struct AcceptArguments {
    #[arg(value_name = "ADDRESS", help = ADDRESSES)]
    addresses: Vec<OsString>,

    /// Run this with the queue as its standard input, and exit as it exits
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,

    #[command(flatten)]
    queue: QueueArguments,

    /// Connections that may wait to be accepted [default: the kernel's maximum]
    #[arg(long, value_name = "N", value_parser = parse_number::<u32>)]
    backlog: Option<u32>,

    /// Set a socket option (repeatable)
    #[arg(short = 'o', long = "option", value_name = "NAME[=VALUE]", value_parser = SocketOption::parse)]
    options: Vec<SocketOption>,

    /// At most N connections in the queue; more wait to be accepted [default: the kernel's limit]
    #[arg(long = "queue", value_name = "N", value_parser = parse_number::<NonZeroUsize>)]
    queue_limit: Option<NonZeroUsize>,

    /// Pass each connection with one byte, for receivers that know no other message
    #[arg(long)]
    bare: bool,

    #[command(flatten)]
    admission: AdmissionArguments,

    /// On TERM or INT, time for what was accepted to be taken
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = parse_seconds)]
    grace: Duration,

    #[command(flatten)]
    service: ServiceArguments,

    #[command(flatten)]
    log: LogArguments,
}

fn after_help() -> String {
    format!(
        "Socket options:\n{}\n\n{SINKS}",
        socket_option::help().trim_end()
    )
}

impl AcceptArguments {
    /// The command line, checked as a whole.
    fn parse_checked() -> anyhow::Result<Self> {
        let arguments: Self = parse()?;
        arguments.check()?;
        Ok(arguments)
    }

    /// Rejects options that exclude each other.
    fn check(&self) -> anyhow::Result<()> {
        let is_own = !self.command.is_empty() || self.queue.binds();
        if self.service.store() && !is_own {
            return Err(usage(
                "--store needs a queue that outlives this process: --bind or -- COMMAND",
            ));
        }
        if self.bare && self.admission.has_limits() {
            return Err(usage(
                "--bare passes connections alone, and --max and --max-per-source count by a lease \
                 beside each",
            ));
        }
        if self.queue.lacks_path() && !self.addresses()?.iter().any(Address::makes_path) {
            return Err(usage("--owner needs a path, as an ADDRESS or for --bind"));
        }
        let later = if self.admission.has_rules() {
            Some("--rules is read again later")
        } else {
            let again = "--connect finds the other side again later";
            self.queue.connects().then_some(again)
        };
        match later.filter(|_| self.service.sandbox()) {
            Some(why) => Err(usage(format!("{why}, which --sandbox does not let it do"))),
            None => Ok(()),
        }
    }

    /// The command after `--`, looked up before anything is bound for it.
    fn command(&self) -> anyhow::Result<Option<Command>> {
        match self.command.as_slice() {
            // As in a script whose variable for the command is empty.
            [] if env::args_os().last().is_some_and(|last| last == "--") => {
                Err(usage("no command given after --"))
            }
            [] => Ok(None),
            _ if self.queue.is_given() => Err(usage(
                "give either -- COMMAND or one of --bind, --connect and --queue-fd",
            )),
            words => Ok(Some(Command::find(words)?)),
        }
    }

    /// The sink, and the read end if it is for a command. `user` is the user that we become later.
    fn sink(
        &self,
        user: Option<&User>,
        access: PathAccess,
        store: &mut FdStore<'_>,
    ) -> anyhow::Result<(Sink, Option<OwnedFd>)> {
        let mut rendezvous = self.queue.rendezvous(access);
        rendezvous.allow_uid.extend(user.map(User::uid));
        let (mut sink, read_end) = if self.command.is_empty() {
            let queue = || restore::queue(store);
            (Sink::open(&rendezvous, queue)?, None)
        } else {
            let (sender, read_end) = restore::queue(store)?;
            (Sink::chain(sender, store.is_wanted()), Some(read_end))
        };
        if let Some(most) = self.queue_limit {
            sink.limit(most.get())?;
        }
        Ok((sink, read_end))
    }

    fn admission(&self) -> anyhow::Result<Admission> {
        Ok(Admission::new(
            self.admission.options(self.queue.allow_uid())?,
        )?)
    }

    fn addresses(&self) -> crate::error::Result<Vec<Address>> {
        let addresses = self.addresses.iter();
        addresses.map(|text| Address::parse(text)).collect()
    }

    /// Listeners on the addresses, or else the `passed` listeners.
    fn listeners(
        &self,
        access: PathAccess,
        passed: &ListenFds,
        store: &mut FdStore<'_>,
    ) -> anyhow::Result<Vec<Listener>> {
        let options = ListenOptions {
            backlog: self.backlog,
            access,
            socket_options: self.options.clone(),
        };
        let addresses = self.addresses()?;
        if !addresses.is_empty() {
            return Ok(restore::listeners(&addresses, &options, store)?);
        }
        restore::give_up_rest(store);
        let listeners = inherit::inherited_all(passed.unnamed(fd_store::is_ours), &options)?;
        if !listeners.is_empty() {
            return Ok(listeners);
        }
        let problem = match env::var_os("LISTEN_FDS") {
            Some(_) => "LISTEN_FDS is not meant for this process (LISTEN_PID)",
            None => "no listeners in LISTEN_FDS",
        };
        Err(usage(format!("no ADDRESS given, and {problem}")))
    }
}

#[cfg(test)]
mod tests {
    use super::AcceptArguments;
    use crate::cli::common::tests::{refuses_values, refuses_what_all_refuse};

    #[test]
    fn values_that_make_no_sense_are_refused() {
        let rest = &["0"];
        refuses_what_all_refuse::<AcceptArguments>(rest);
        let backlogs = ["x", "-1", "4294967296", ""];
        refuses_values::<AcceptArguments>("--backlog", &backlogs, rest, "'--backlog <N>'");
        let expected = "not a number of seconds";
        refuses_values::<AcceptArguments>("--grace", &["x", "-1", ""], rest, expected);
        refuses_values::<AcceptArguments>("-o", &["foo"], rest, "known are nodelay");
    }
}
