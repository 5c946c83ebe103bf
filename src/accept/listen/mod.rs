//! Listening sockets, made here ([`open`]) or inherited ([`inherit`]).

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use nix::errno::Errno;
use nix::net::if_::if_indextoname;
use nix::sys::socket::{AddressFamily, SockaddrStorage, VsockAddr, getsockname};

use crate::accept::listen::socket_option::{SocketOption, When};
use crate::error::{Error, Result};
use crate::queue::owned_name::{OwnedName, PathAccess};
use crate::system::quick_close::QuickClose;
use crate::system::text::printable;
use crate::system::unix_socket;

pub(crate) mod address;
pub(crate) mod backlog;
pub(crate) mod inherit;
mod keepalive;
pub(crate) mod open;
pub(crate) mod socket_option;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// TCP over IPv4 or IPv6.
    Tcp,
    /// A Unix stream socket.
    Unix,
    /// Between a virtual machine and its host, vsock(7).
    Vsock,
}

impl Transport {
    /// Whether a connection can carry descriptors.
    pub fn may_carry(self) -> bool {
        self == Transport::Unix
    }
}

/// Options of new listeners.
#[derive(Clone, Debug, Default)]
pub(crate) struct ListenOptions {
    /// How many connections may wait to be accepted; `None` for the kernel's maximum. That maximum
    /// (`net.core.somaxconn`) also bounds any other value.
    pub backlog: Option<u32>,
    /// Of the path of a Unix socket.
    pub access: PathAccess,
    /// Of an option that is given twice, the last one counts.
    pub socket_options: Vec<SocketOption>,
}

/// A listening socket. Dropping it closes the socket, and removes the path that was bound for it.
///
/// Its `Display` is the address really bound: `127.0.0.1:34567`, `[::]:8888`, `/run/x.sock`,
/// `@name`, `vsock:1:5`.
#[derive(Debug)]
pub(crate) struct Listener {
    /// Before `fd`, so that the path is removed before the socket is closed.
    name: Option<OwnedName>,
    /// Its backlog is closed with it.
    fd: QuickClose<OwnedFd>,
    shown: Rc<str>,
    transport: Transport,
    inherited: bool,
    local: Option<SocketAddr>,
    port: Option<u32>,
}

impl Listener {
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// The address really bound, as displayed.
    pub fn shown(&self) -> Rc<str> {
        Rc::clone(&self.shown)
    }

    /// The bound port of TCP or vsock.
    pub fn port(&self) -> Option<u32> {
        self.port
    }

    /// Leaves the bound path, if any, in place when the listener is dropped.
    pub fn leave_name(&mut self) {
        if let Some(name) = &mut self.name {
            name.leave();
        }
    }

    /// Whether the listener was open before this program started. Other processes may share it, so
    /// its mode was not changed: accept(2) may block, even after poll, if another process is
    /// faster.
    pub fn is_inherited(&self) -> bool {
        self.inherited
    }

    pub fn set_inherited(&mut self, inherited: bool) {
        self.inherited = inherited;
    }

    /// The local address of every connection, if the listener is bound to a single TCP address. An
    /// IPv4-mapped IPv6 address becomes the IPv4 address.
    pub fn local(&self) -> Option<SocketAddr> {
        self.local
    }

    /// Makes the caller ask each connection for its local address.
    pub fn forget_local(&mut self) {
        self.local = None;
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// Sets the options that apply to `family`; only those due at `when`, if given.
pub(crate) fn apply_options(
    fd: BorrowedFd<'_>,
    family: AddressFamily,
    options: &ListenOptions,
    when: Option<When>,
) -> Result<()> {
    let all = &options.socket_options;
    let is_last = |index: usize| {
        let mut later = all[index + 1..].iter();
        later.all(|later| later.rank() != all[index].rank())
    };
    let last = (0..all.len()).filter(|index| is_last(*index));
    let mut due: Vec<_> = last
        .map(|index| &all[index])
        .filter(|option| option.applies_to(family))
        .filter(|option| when.is_none_or(|when| option.when() == when))
        .collect();
    due.sort_by_key(|option| option.rank());
    due.into_iter().try_for_each(|option| option.apply(fd))
}

/// Makes a listener of a listening socket. `name` is the right to the name that it is bound to.
pub(crate) fn finish(
    fd: OwnedFd,
    transport: Transport,
    name: Option<OwnedName>,
) -> Result<Listener> {
    let failed = |errno| Error::system("get the address of a listener", errno);
    let (shown, local, port) = match (transport, &name) {
        (Transport::Unix, Some(name)) => (name.name().to_string(), None, None),
        (Transport::Unix, None) => (show_unix(fd.as_fd()), None, None),
        (Transport::Vsock, _) => {
            let bound = getsockname::<VsockAddr>(fd.as_raw_fd()).map_err(failed)?;
            let (cid, port) = (bound.cid(), bound.port());
            (address::vsock(cid, port), None, Some(port))
        }
        (Transport::Tcp, _) => {
            let bound = tcp_address(fd.as_fd()).map_err(failed)?;
            let fixed = Some(canonical(bound)).filter(|fixed| !fixed.ip().is_unspecified());
            (show_tcp(bound), fixed, Some(bound.port().into()))
        }
    };
    Ok(Listener {
        name,
        fd: QuickClose::if_needed(fd, transport.may_carry()),
        shown: shown.into(),
        transport,
        inherited: false,
        local,
        port,
    })
}

pub(super) fn tcp_address(fd: BorrowedFd<'_>) -> nix::Result<SocketAddr> {
    let bound: SockaddrStorage = getsockname(fd.as_raw_fd())?;
    let v4 = bound.as_sockaddr_in().map(|v4| SocketAddr::from(*v4));
    let v6 = bound.as_sockaddr_in6().map(|v6| SocketAddr::from(*v6));
    v4.or(v6).ok_or(Errno::EAFNOSUPPORT)
}

/// Turns an IPv4-mapped IPv6 address into the IPv4 address.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::from((ip, address.port())),
        IpAddr::V6(_) => address,
    }
}

/// Spells a bound TCP address as systemd.socket(5) does.
pub(super) fn show_tcp(address: SocketAddr) -> String {
    match address {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => {
            let interface = match if_indextoname(v6.scope_id()) {
                Ok(name) => printable(name.to_bytes()),
                Err(_) => v6.scope_id().to_string(),
            };
            format!("[{}]:{}%{interface}", v6.ip(), v6.port())
        }
        _ => address.to_string(),
    }
}

/// Spells the address of an inherited Unix listener.
fn show_unix(fd: BorrowedFd<'_>) -> String {
    match unix_socket::names(fd) {
        (Some(name), _) => printable(&name),
        (None, _) => format!("fd:{}", fd.as_raw_fd()),
    }
}

pub(crate) fn listen(fd: BorrowedFd<'_>, shown: &str, options: &ListenOptions) -> Result<()> {
    // The kernel lowers the backlog to net.core.somaxconn, listen(2); nix refuses more than 4096.
    let backlog = options.backlog.unwrap_or(u32::MAX);
    rustix::net::listen(fd, i32::try_from(backlog).unwrap_or(i32::MAX)).map_err(|error| {
        let errno = Errno::from_raw(error.raw_os_error());
        Error::system(format!("listen on {shown}"), errno)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, fcntl};
    use std::os::fd::RawFd;
    use std::sync::atomic::{AtomicI32, Ordering};

    /// Leaves `fd` open under a number of its own: a number can be claimed only once.
    pub(super) fn leave_open(fd: impl AsFd) -> RawFd {
        static NEXT: AtomicI32 = AtomicI32::new(500);
        let lowest = NEXT.fetch_add(1, Ordering::Relaxed);
        let number = fcntl(fd.as_fd(), FcntlArg::F_DUPFD(lowest)).unwrap();
        assert_eq!(number, lowest);
        number
    }

    pub(super) fn accept(listener: &Listener) -> OwnedFd {
        rustix::net::accept(listener).unwrap()
    }
}
