//! The part of fdaccept's command line that says under whom it runs: its user and its supervisor.

use std::env;
use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::Args;

use crate::arguments::parse_descriptor;
use crate::listener::Listener;
use crate::report::Log;
use crate::supervisor::Supervisor;
use crate::user::User;
use crate::{Result, port_file};

/// Under whom it runs.
#[derive(Args, Clone, Debug)]
pub struct ServiceArguments {
    /// Become USER for good, once everything is bound; so does COMMAND
    #[arg(long, value_name = "USER[:GROUP]")]
    user: Option<String>,

    /// Give up every system call but those that passing connections takes
    #[arg(long)]
    sandbox: bool,

    /// Write a newline to descriptor N, and close it, when connections can come (s6)
    #[arg(long, value_name = "N", value_parser = parse_descriptor)]
    notify_fd: Option<RawFd>,

    /// Write the ports that were bound to PATH, a line each
    #[arg(long, value_name = "PATH")]
    port_file: Option<PathBuf>,

    /// Have the service manager keep the queue and the listeners from one start to the next
    #[arg(long)]
    store: bool,
}

impl ServiceArguments {
    /// The user to become.
    ///
    /// # Errors
    /// Those of [`User::find`].
    pub fn user(&self) -> Result<Option<User>> {
        self.user.as_deref().map(User::find).transpose()
    }

    /// Who is told how this process is: also by `NOTIFY_SOCKET` in the environment.
    ///
    /// # Errors
    /// Those of [`Supervisor::new`].
    pub fn supervisor(&self, log: &Log) -> Result<Supervisor> {
        Supervisor::new(self.notify_fd, env::var_os("NOTIFY_SOCKET"), log)
    }

    /// Writes the ports of `listeners` to where they are wanted.
    ///
    /// # Errors
    /// Those of [`port_file::write`].
    pub fn write_ports(&self, listeners: &[Listener]) -> Result<()> {
        let path = self.port_file.as_deref();
        path.map_or(Ok(()), |path| port_file::write(path, listeners))
    }

    /// Whether nothing is to be left but the loop.
    pub fn sandbox(&self) -> bool {
        self.sandbox
    }

    /// Whether a service manager is to keep things.
    pub fn store(&self) -> bool {
        self.store
    }
}
