//! The service manager of this process: its socket (sd_notify(3)), and its watchdog
//! (sd_watchdog_enabled(3)).

use std::env;
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{SockType, connect};

use crate::error::{Error, Result};
use crate::queue::name::Name;
use crate::system::heartbeat::Heartbeat;
use crate::system::log::Log;
use crate::system::text::printable;
use crate::system::unix_socket;

/// A socket that is connected to the manager of `NOTIFY_SOCKET`. A manager out of reach is logged, and
/// is no reason not to start (sd_notify(3)).
pub(super) fn socket(log: &Log) -> Option<OwnedFd> {
    let name = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty())?;
    reach(&name)
        .inspect_err(|error| log.error(format_args!("NOTIFY_SOCKET: {error}")))
        .ok()
}

/// Connects to the manager's socket now: later another user or the sandbox may forbid it.
fn reach(name: &OsStr) -> Result<OwnedFd> {
    let shown = printable(name.as_encoded_bytes());
    let is_name = matches!(name.as_encoded_bytes(), [b'/' | b'@', ..]);
    if !is_name {
        return Err(Error::Invalid(format!(
            "{shown} is not a path or @name: unset it, or see sd_notify(3)"
        )));
    }
    let failed = |errno| Error::system(format!("reach the service manager at {shown}"), errno);
    let socket = unix_socket::new(SockType::Datagram)?;
    connect(socket.as_fd().as_raw_fd(), &Name::parse(name)?.address()?).map_err(failed)?;
    Ok(socket)
}

/// Within which time the manager must hear of this process, again and again; `None` if it need not.
pub(super) fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|within| !within.is_zero())
}

/// The heartbeat that the manager wants of this process.
pub(super) fn heartbeat(log: &Log) -> Option<Heartbeat> {
    let within = watchdog()?;
    Some(Heartbeat::new(socket(log)?, within))
}
