//! Starting one handler: its descriptors, environment, signals and process group.
//!
//! A handler starts clean: the connection on descriptors 0 and 1, standard error inherited and
//! nothing else open; blocking mode; every signal at its default action and none blocked; an
//! environment without variables of another connection.

use std::ffi::{CStr, CString, OsString};
use std::os::fd::{AsFd, BorrowedFd, RawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::SigSet;
use nix::unistd::{Pid, execve};

use crate::error::{Error, Result};
use crate::queue::connection::Connection;
use crate::queue::message::{Info, VARIABLES};
use crate::system::command::{Command, entry, environment_without, is_service_managers};
use crate::system::signals;
use crate::system::vfork::Launcher;
use crate::system::{inherited, null};

/// Where a handler finds its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// At descriptors 0 and 1, as under inetd.
    Standard,
    /// At this descriptor; standard input is `/dev/null`, standard output is inherited.
    Descriptor(RawFd),
    /// At descriptor 3, announced by `LISTEN_FDS` and its kin (sd_listen_fds(3)), as in an
    /// `Accept=yes` service of systemd.
    Activation,
}

/// The descriptor of [`Placement::Activation`] (`SD_LISTEN_FDS_START`).
const ACTIVATION: RawFd = 3;

impl Placement {
    /// The highest descriptor of the connection.
    fn number(self) -> RawFd {
        match self {
            Placement::Standard => 1,
            Placement::Descriptor(number) => number,
            Placement::Activation => ACTIVATION,
        }
    }
}

/// A command that serves one connection each time it is started.
#[derive(Clone, Debug)]
pub(crate) struct Handler {
    command: Command,
    /// The environment of every handler, without the variables of a connection.
    environment: Vec<CString>,
}

impl Handler {
    /// # Errors
    /// Those of [`Command::find`].
    pub fn find(words: &[OsString]) -> Result<Self> {
        Ok(Self {
            command: Command::find(words)?,
            environment: clean_environment(),
        })
    }

    /// Starts the command in a process group of its own. The caller keeps its copy of the
    /// connection, and closes the copy so that only the handler has the connection.
    ///
    /// # Errors
    /// [`Error::System`] if no process is available (`EAGAIN`, `ENOMEM`);
    /// [`Error::CommandNotFound`] or [`Error::CommandNotExecutable`] if the command has gone
    /// meanwhile.
    pub(crate) fn spawn(&self, connection: &Connection, launcher: &mut Launcher) -> Result<Pid> {
        let socket = connection.as_fd();
        make_blocking(socket);
        let own = variables(connection.info());
        let environment: Vec<&CStr> = self
            .environment
            .iter()
            .chain(&own)
            .map(AsRef::as_ref)
            .collect();
        self.command.start(|command| {
            launcher.start(command.path(), command.arguments(), &environment, socket)
        })
    }

    /// Becomes the command. Returns only if that fails.
    ///
    /// # Errors
    /// [`Error::System`] for the steps before exec; [`Error::CommandNotFound`] or
    /// [`Error::CommandNotExecutable`] if the command has gone meanwhile.
    pub fn exec(&self, connection: &Connection, placement: Placement) -> Error {
        match self.try_exec(connection, placement) {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    fn try_exec(
        &self,
        connection: &Connection,
        placement: Placement,
    ) -> Result<std::convert::Infallible> {
        let socket = connection.as_fd();
        make_blocking(socket);
        let environment = match placement {
            Placement::Activation => {
                let pid = std::process::id().to_string();
                let names = [
                    ("LISTEN_FDS", "1"),
                    ("LISTEN_PID", &pid),
                    ("LISTEN_FDNAMES", "connection"),
                ];
                self.environment_for(connection.info(), &names)
            }
            _ => self.environment_for(connection.info(), &[]),
        };
        if let Some(lease) = connection.lease() {
            // Only the command is left to hold the lease.
            inherited::leave_open(lease, placement.number())?;
        }
        match placement {
            Placement::Standard => {
                inherited::place(socket, 0)?;
                inherited::place(socket, 1)?;
            }
            Placement::Descriptor(number) => place_apart(socket, number)?,
            Placement::Activation => place_apart(socket, ACTIVATION)?,
        }
        // exec resets caught signals to their default action, and not a moment before: a signal now
        // must not end a process that has a connection in hand.
        signals::default_ignored();
        signals::set_mask(&SigSet::empty())?;
        self.command
            .attempt(|command| execve(command.path(), command.arguments(), &environment))
            .map_err(|errno| self.command.error(errno))
    }

    fn environment_for(&self, info: &Info, further: &[(&str, &str)]) -> Vec<CString> {
        let further = further.iter();
        let further = further.filter_map(|(name, value)| entry(name.as_bytes(), value.as_bytes()));
        let inherited = self.environment.iter().cloned();
        inherited.chain(variables(info)).chain(further).collect()
    }
}

fn variables(info: &Info) -> Vec<CString> {
    let variables = info.variables();
    let entries =
        variables.filter_map(|(variable, value)| entry(variable.name().as_bytes(), value));
    entries.collect()
}

/// Our environment, without the variables of a connection or of our service manager.
pub(crate) fn clean_environment() -> Vec<CString> {
    environment_without(|name| is_of_a_connection(name) || is_service_managers(name))
}

/// Whether an inherited variable describes a connection, which then is not the handler's.
fn is_of_a_connection(name: &[u8]) -> bool {
    /// Variables that other servers set and fdtools does not.
    const OTHERS: [&[u8]; 6] = [
        b"TCPREMOTEHOST",
        b"TCPREMOTEINFO",
        b"TCPLOCALHOST",
        b"IPCREMOTEINFO",
        b"IPCCONNNUM",
        b"REMOTE_HOST",
    ];
    /// The families of sslserver, s6-tlsserver and unixserver.
    const FAMILIES: [&[u8]; 3] = [b"SSL", b"UNIXLOCAL", b"UNIXREMOTE"];
    /// Settings of TLS libraries, which describe no connection.
    const SETTINGS: [&[u8]; 3] = [b"SSL_CERT_DIR", b"SSL_CERT_FILE", b"SSLKEYLOGFILE"];
    let mut ours = VARIABLES.iter().map(|known| known.name().as_bytes());
    let is_of_family = || FAMILIES.iter().any(|family| name.starts_with(family));
    ours.any(|known| known == name)
        || OTHERS.contains(&name)
        || is_of_family() && !SETTINGS.contains(&name)
}

/// Puts the connection at `number` and `/dev/null` at standard input.
fn place_apart(socket: BorrowedFd<'_>, number: RawFd) -> Result<()> {
    inherited::place(null::device()?, 0)?;
    inherited::place(socket, number)
}

/// A handler does not expect a non-blocking connection, but the sender may have left it so. Errors
/// do not matter: a descriptor of any kind is served.
fn make_blocking(descriptor: BorrowedFd<'_>) {
    let flags = fcntl(descriptor, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
    if let Ok(flags) = flags
        && flags.contains(OFlag::O_NONBLOCK)
    {
        let _ = fcntl(descriptor, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK));
    }
}
