//! A connection and what is known of it.

use std::ffi::OsStr;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::{self, net::UnixStream};
use std::path::Path;

use nix::sys::socket::{AddressFamily, SockType, getsockopt, sockopt};
use rustix::net::{getpeername, getsockname};

use crate::descriptor::socket_facts;
use crate::message::{self, Info, UnixPeer};

/// A connection that was taken from a queue.
#[derive(Debug)]
pub struct Connection {
    /// The connection itself, or whatever else the sender passed.
    pub descriptor: OwnedFd,
    /// What tells the sender that it is in service, where the sender counts.
    pub lease: Option<OwnedFd>,
    /// What is known of it.
    pub info: Info,
}

impl Connection {
    /// A connection with what its message said of it. Where that is nothing, the descriptor is
    /// asked itself.
    pub fn new(descriptor: OwnedFd, lease: Option<OwnedFd>, told: Option<Info>) -> Self {
        let info = told.filter(|info| info.get(message::PROTO).is_some());
        let info = info.unwrap_or_else(|| ask(descriptor.as_fd()));
        Self {
            descriptor,
            lease,
            info,
        }
    }
}

/// What a descriptor tells of itself: nothing if it is no connected socket.
pub fn ask(descriptor: BorrowedFd<'_>) -> Info {
    let facts = socket_facts(descriptor).filter(|facts| facts.connected);
    let Some(facts) = facts else {
        return Info::new();
    };
    match (facts.family, facts.kind) {
        (Some(AddressFamily::Unix), _) => {
            let peer = getsockopt(&descriptor, sockopt::PeerCredentials).ok();
            let credentials = peer.map(|peer| (peer.uid(), peer.gid(), peer.pid() as u32));
            unix(descriptor, credentials)
        }
        (_, Some(SockType::Stream)) => ask_tcp(descriptor).unwrap_or_default(),
        _ => Info::new(),
    }
}

/// What a TCP socket tells of itself: both addresses.
fn ask_tcp(descriptor: BorrowedFd<'_>) -> Option<Info> {
    let remote = getpeername(descriptor).ok()??;
    let local = getsockname(descriptor).ok()?;
    let remote = SocketAddr::try_from(remote).ok()?;
    Some(Info::tcp(remote, SocketAddr::try_from(local).ok()?))
}

/// What is known of a Unix socket: the uid, gid and pid of who is there, and the names of both
/// ends, which it tells itself.
pub(crate) fn unix(descriptor: BorrowedFd<'_>, credentials: Option<(u32, u32, u32)>) -> Info {
    let (local, remote) = unix_names(descriptor);
    Info::unix(UnixPeer {
        credentials,
        remote_path: remote.as_deref(),
        local_path: local.as_deref(),
    })
}

/// The names that a Unix socket and its peer are bound to, as users write them.
///
/// The standard library is asked, since it copes with a path that fills its 108 bytes without a
/// NUL, which any client may choose.
pub(crate) fn unix_names(descriptor: BorrowedFd<'_>) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
    let name = |address: io::Result<unix::net::SocketAddr>| {
        let address = address.ok()?;
        let path = address.as_pathname().map(Path::as_os_str);
        match path.map(OsStr::as_bytes) {
            Some(path) => Some(path.to_vec()),
            None => Some([b"@", address.as_abstract_name()?].concat()),
        }
    };
    match descriptor.try_clone_to_owned().map(UnixStream::from) {
        Ok(socket) => (name(socket.local_addr()), name(socket.peer_addr())),
        Err(_) => (None, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_tcp_connection_tells_both_addresses() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, remote) = listener.accept().unwrap();
        let expected = Info::tcp(remote, listener.local_addr().unwrap());
        assert_eq!(ask(server.as_fd()), expected);
        drop(client);
    }

    #[test]
    fn a_unix_connection_tells_who_is_there() {
        let (one, _other) = UnixStream::pair().unwrap();
        let info = ask(one.as_fd());
        let pid = std::process::id().to_string();
        assert_eq!(info.get(message::IPC_REMOTE_PID), Some(pid.as_bytes()));
        assert_eq!(info.get(message::IPC_REMOTE_PATH), None);
    }

    #[test]
    fn what_is_no_socket_tells_nothing() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(ask(file.as_fd()), Info::new());
    }
}
