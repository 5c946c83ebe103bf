//! The command line of fdaccept.

use std::env;
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::time::Duration;

use clap::Parser;

use crate::address::Address;
use crate::arguments::{LogArguments, QueueArguments, parse, parse_seconds};
use crate::command::Command;
use crate::guard::Guard;
use crate::guard_arguments::GuardArguments;
use crate::listen_fds::Passed;
use crate::listener::{self, Listener};
use crate::service_arguments::ServiceArguments;
use crate::sink::Sink;
use crate::sockopt::{self, SocketOption};
use crate::store::{self, Store};
use crate::user::User;
use crate::{Error, Result};

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
#[command(name = "fdaccept", version, override_usage = USAGE, after_help = after_help())]
#[command(mut_arg("allow_uid", |arg| arg.help(ALLOW_UID)))]
pub struct Arguments {
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

    /// Who is let in.
    #[command(flatten)]
    pub guard: GuardArguments,

    /// On TERM or INT, time for what was accepted to be taken
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = parse_seconds)]
    pub grace: Duration,

    /// Under whom it runs.
    #[command(flatten)]
    pub service: ServiceArguments,

    /// How much is said.
    #[command(flatten)]
    pub log: LogArguments,
}

fn after_help() -> String {
    format!("Socket options:\n{}\n\n{SINKS}", sockopt::help().trim_end())
}

impl Arguments {
    /// The command line of this process, if it makes sense as a whole.
    ///
    /// # Errors
    /// [`Error::Usage`] if it does not.
    pub fn parse() -> Result<Self> {
        let arguments: Self = parse()?;
        arguments.check()?;
        Ok(arguments)
    }

    /// What cannot be had together.
    fn check(&self) -> Result<()> {
        let rendezvous = self.queue.rendezvous();
        let is_own = !self.command.is_empty() || rendezvous.bind.is_some();
        if self.service.store() && !is_own {
            let problem = "--store needs a queue that outlives this process: --bind or -- COMMAND";
            return Err(Error::Usage(problem.into()));
        }
        let later = match self.guard.has_rules() {
            true => Some("--rules is read again later"),
            false => rendezvous
                .connect
                .map(|_| "--connect finds the other side again later"),
        };
        match later.filter(|_| self.service.sandbox()) {
            Some(why) => Err(Error::Usage(format!(
                "{why}, which --sandbox does not let it do"
            ))),
            None => Ok(()),
        }
    }

    /// The command of the chain form, found before anything is bound for it.
    ///
    /// # Errors
    /// Those of [`Command::find`]; [`Error::Usage`] if there is none, or another queue as well.
    pub fn command(&self) -> Result<Option<Command>> {
        match self.command.as_slice() {
            // As where a variable of a script that should be the command is empty.
            [] if env::args_os().last().is_some_and(|last| last == "--") => {
                Err(Error::Usage("no command given after --".into()))
            }
            [] => Ok(None),
            _ if self.queue.is_given() => Err(Error::Usage(
                "give either -- COMMAND or one of --bind, --connect and --queue-fd".into(),
            )),
            words => Command::find(words).map(Some),
        }
    }

    /// Where connections go, and the read end, if that is for a command. `user` is whom we become
    /// later.
    ///
    /// # Errors
    /// Those of [`Sink::open`].
    pub fn sink(
        &self,
        user: Option<&User>,
        store: &mut Store<'_>,
    ) -> Result<(Sink, Option<OwnedFd>)> {
        let mut rendezvous = self.queue.rendezvous();
        rendezvous.allow_uid.extend(user.map(User::uid));
        let (mut sink, read_end) = match self.command.is_empty() {
            true => (Sink::open(&rendezvous, || store.queue())?, None),
            false => {
                let (sender, read_end) = store.queue()?;
                (Sink::chain(sender), Some(read_end))
            }
        };
        if let Some(user) = user {
            // At once: its consumers may be there already.
            sink.give_to(user)?;
        }
        if let Some(most) = self.queue_limit {
            sink.limit(most.get())?;
        }
        Ok((sink, read_end))
    }

    /// Who decides what is let in.
    ///
    /// # Errors
    /// Those of [`GuardArguments::options`] and [`Guard::new`].
    pub fn guard(&self) -> Result<Guard> {
        Guard::new(self.guard.options(self.queue.allow_uid())?)
    }

    /// Where connections come from: the addresses, or else what was `passed`.
    ///
    /// # Errors
    /// Those of [`listener::open_all`] and [`listener::inherited_all`]; [`Error::Usage`] if there
    /// is nothing of either.
    pub fn listeners(&self, passed: &Passed, store: &mut Store<'_>) -> Result<Vec<Listener>> {
        let options = listener::Options {
            backlog: self.backlog,
            mode: self.queue.mode(),
            socket_options: self.options.clone(),
        };
        let addresses = self.addresses.iter().map(|text| Address::parse(text));
        let addresses = addresses.collect::<Result<Vec<_>>>()?;
        if !addresses.is_empty() {
            return listener::open_all(&addresses, &options, store);
        }
        store.listeners(&[]);
        let listeners = listener::inherited_all(passed.unnamed(store::is_ours), &options)?;
        let problem = match (listeners.is_empty(), env::var_os("LISTEN_FDS")) {
            (false, _) => return Ok(listeners),
            (true, Some(_)) => "LISTEN_FDS is not meant for this process (LISTEN_PID)",
            (true, None) => "no listeners in LISTEN_FDS",
        };
        Err(Error::Usage(format!("no ADDRESS given, and {problem}")))
    }
}
