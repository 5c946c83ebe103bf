//! The options of fdaccept about its user and its supervisor.

use std::os::fd::RawFd;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use crate::accept::listen::Listener;
use crate::accept::service::notify::Supervisor;
use crate::accept::service::port_file;
use crate::accept::service::user::User;
use crate::cli::{manager, usage};
use crate::error::Error;
use crate::system::inherited;
use crate::system::log::Log;
use crate::system::text::{parse_descriptor, printable};

/// User, sandbox and supervisor.
#[derive(Args, Clone, Debug)]
pub(super) struct ServiceArguments {
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
    pub fn user(&self) -> anyhow::Result<Option<User>> {
        let Some(user) = &self.user else {
            return Ok(None);
        };
        match User::find(user) {
            Err(error @ Error::Invalid(_)) => {
                let option = format!("--user {}", printable(user.as_bytes()));
                Err(error).context(option)
            }
            found => Ok(Some(found?)),
        }
    }

    /// The supervisor of `--notify-fd`, and of `NOTIFY_SOCKET` in the environment.
    pub fn supervisor(&self, log: &Log) -> anyhow::Result<Supervisor> {
        // Before anything else can get the number.
        let notify_fd = self.notify_fd.map(inherited::claim).transpose()?;
        let supervisor = Supervisor::new(notify_fd, manager::socket(log), manager::watchdog())?;
        if self.store && !supervisor.is_managed() {
            return Err(usage(
                "--store needs a service manager to keep things (NOTIFY_SOCKET)",
            ));
        }
        Ok(supervisor)
    }

    /// Writes the ports of `listeners` to the file of `--port-file`, if given.
    pub fn write_ports(&self, listeners: &[Listener]) -> anyhow::Result<()> {
        let Some(path) = &self.port_file else {
            return Ok(());
        };
        let ports: Vec<u32> = listeners.iter().filter_map(Listener::port).collect();
        if ports.is_empty() {
            return Err(usage("--port-file needs an address with a port"));
        }
        Ok(port_file::write(path, ports.into_iter())?)
    }

    pub fn sandbox(&self) -> bool {
        self.sandbox
    }

    pub fn store(&self) -> bool {
        self.store
    }
}
