//! fdaccept as most tests want it.

use std::ffi::{OsStr, OsString};
use std::io::PipeReader;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::process::{Command, Stdio};

use fdtools::queue::Receiver;
use fdtools::queue::name::Name;
use fdtools::queue::trust::Trust;

use super::*;

/// Any free port.
pub const ADDRESS: &str = "127.0.0.1:0";

/// A command line of fdaccept. It listens at [`ADDRESS`] unless it is told otherwise.
pub struct Fdaccept {
    pub(super) command: Command,
    pub names: Names,
    name: Option<String>,
    pipe: Option<PipeReader>,
    addresses: Vec<OsString>,
    /// The command of a chain.
    pub(super) words: Vec<OsString>,
    /// Whether `command` has all its arguments.
    pub(super) is_complete: bool,
}

impl Line for Fdaccept {
    fn command_mut(&mut self) -> &mut Command {
        &mut self.command
    }
}

impl Fdaccept {
    /// Without a sink: the test adds one.
    pub fn plain() -> Self {
        Self::of(program("fdaccept"))
    }

    /// A command that ends in fdaccept. It runs in the directory of its names, unless it is told
    /// otherwise.
    pub fn of(mut command: Command) -> Self {
        // Whatever started this test must not interfere.
        for name in OF_A_SERVICE_MANAGER {
            command.env_remove(name);
        }
        Self {
            command,
            names: Names::new(),
            name: None,
            pipe: None,
            addresses: Vec::new(),
            words: Vec::new(),
            is_complete: false,
        }
    }

    /// `--bind` at a path of its own.
    pub fn bound() -> Self {
        Self::bound_in(Names::new())
    }

    /// The same in a directory that a test has already.
    pub fn bound_in(names: Names) -> Self {
        let mut bound = Self::bound_at(&names.path());
        bound.names = names;
        bound
    }

    /// `--bind NAME`
    pub fn bound_at(name: &str) -> Self {
        Self::plain().bound_as(name.to_owned())
    }

    fn bound_as(mut self, name: String) -> Self {
        self.command.args(["--bind", &name]);
        self.name = Some(name);
        self
    }

    /// Standard output is a pipe: `take_pipe` has its read end, `Pool::on(&acceptor)` a copy of it.
    pub fn piped() -> Self {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut plain = Self::plain();
        plain.command.stdout(writer);
        plain.pipe = Some(reader);
        plain
    }

    /// `-- WORDS`
    pub fn chain(words: impl IntoIterator<Item: AsRef<OsStr>>) -> Self {
        let mut plain = Self::plain();
        plain.words = words.into_iter().map(|word| word.as_ref().into()).collect();
        plain
    }

    /// Listens here instead of at [`ADDRESS`]. Several calls make several listeners.
    pub fn listen(mut self, address: impl AsRef<OsStr>) -> Self {
        self.addresses.push(address.as_ref().into());
        self
    }

    /// Adds what the command line still lacks. Returns the number of addresses.
    pub(super) fn complete(&mut self) -> usize {
        if self.addresses.is_empty() {
            self.addresses.push(ADDRESS.into());
        }
        if !self.is_complete {
            self.command.args(&self.addresses);
            if !self.words.is_empty() {
                self.command.arg("--").args(&self.words);
            }
        }
        if self.command.get_current_dir().is_none() {
            self.command.current_dir(&self.names.directory);
        }
        self.is_complete = true;
        self.addresses.len()
    }

    /// Starts it, and waits until it listens everywhere.
    #[track_caller]
    pub fn start(mut self) -> Acceptor {
        let count = self.complete();
        let mut acceptor = self.spawn();
        acceptor.hear(count);
        acceptor
    }

    /// Starts it, and does not wait: the acceptor knows no port.
    #[track_caller]
    pub fn spawn(mut self) -> Acceptor {
        self.complete();
        Acceptor {
            process: Process::start(&mut self.command),
            port: 0,
            ports: Vec::new(),
            addresses: Vec::new(),
            names: self.names,
            name: self.name,
            pipe: self.pipe,
        }
    }
}

/// An fdaccept that listens.
pub struct Acceptor {
    pub process: Process,
    /// The first port.
    pub port: u16,
    pub ports: Vec<u16>,
    /// Where it listens, as it says.
    pub addresses: Vec<String>,
    /// A directory for its name, and for what else a test needs.
    pub names: Names,
    name: Option<String>,
    pipe: Option<PipeReader>,
}

impl Deref for Acceptor {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Acceptor {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Acceptor {
    /// Waits until it says where it listens, at so many addresses.
    #[track_caller]
    pub fn hear(&mut self, addresses: usize) {
        for _ in 0..addresses {
            let address = self.process.listening();
            let port = address
                .rsplit_once(':')
                .map(|(_, port)| port.parse::<u16>());
            self.ports.extend(port.into_iter().flatten());
            self.addresses.push(address);
        }
        self.port = self.ports.first().copied().unwrap_or(0);
    }

    /// The name of its queue.
    pub fn name(&self) -> &str {
        self.name.as_ref().unwrap()
    }

    #[track_caller]
    pub fn client(&self) -> Client {
        Client::connect(self.port)
    }

    pub fn pipe(&self) -> &PipeReader {
        self.pipe.as_ref().unwrap()
    }

    /// The read end of its pipe. It is not held here any more.
    pub fn take_pipe(&mut self) -> PipeReader {
        self.pipe.take().unwrap()
    }

    /// A consumer in this process.
    pub fn receiver(&self) -> Receiver {
        let name = Name::parse(self.name().as_ref()).unwrap();
        Receiver::connect(&name, &Trust::everybody()).unwrap()
    }

    /// Expects exit status 0, and no lines but one for each listener and one with the counters.
    #[track_caller]
    pub fn expect_clean_end(&mut self) {
        let log = self.process.expect_end(0);
        assert_eq!(besides_counters(&log).len(), self.addresses.len(), "{log}");
    }
}

impl Source for Acceptor {
    fn give_to(&self, consumer: &mut Command) {
        match (&self.name, &self.pipe) {
            (Some(name), _) => consumer.args(["--connect", name]),
            (None, pipe) => consumer.stdin(pipe.as_ref().unwrap().try_clone().unwrap()),
        };
    }
}
