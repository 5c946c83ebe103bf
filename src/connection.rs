//! A connection and what is known of it.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::sockopt::socket_peercred;
use rustix::net::{SocketAddrAny, SocketAddrUnix, getpeername, getsockname};

use crate::message::{self, Info, UnixPeer};

/// A connection that was taken from a queue.
#[derive(Debug)]
pub struct Connection {
    /// The connection itself, or whatever else the sender passed.
    pub descriptor: OwnedFd,
    /// What is known of it.
    pub info: Info,
}

impl Connection {
    /// A connection with what its message said of it. Where that is nothing, the descriptor is
    /// asked itself.
    pub fn new(descriptor: OwnedFd, told: Option<Info>) -> Self {
        let info = told.filter(|info| info.get(message::PROTO).is_some());
        let info = info.unwrap_or_else(|| ask(descriptor.as_fd()));
        Self { descriptor, info }
    }
}

/// What a descriptor tells of itself: nothing if it is no connected socket.
pub fn ask(descriptor: BorrowedFd<'_>) -> Info {
    let remote = getpeername(descriptor).ok().flatten();
    let local = getsockname(descriptor).ok();
    about(descriptor, remote.as_ref(), local.as_ref())
}

/// What two addresses tell of a connection; for a Unix socket its credentials are asked for.
pub fn about(
    descriptor: BorrowedFd<'_>,
    remote: Option<&SocketAddrAny>,
    local: Option<&SocketAddrAny>,
) -> Info {
    let inet = |address: Option<&SocketAddrAny>| SocketAddr::try_from(address?.clone()).ok();
    if let (Some(remote), Some(local)) = (inet(remote), inet(local)) {
        return Info::tcp(remote, local);
    }
    let unix = |address: Option<&SocketAddrAny>| SocketAddrUnix::try_from(address?.clone()).ok();
    let Some(local) = unix(local) else {
        return Info::new();
    };
    let credentials = socket_peercred(descriptor).ok();
    let (remote_path, local_path) = (unix(remote).and_then(|a| path(&a)), path(&local));
    Info::unix(UnixPeer {
        credentials: credentials.map(|peer| {
            let pid = peer.pid.as_raw_nonzero().get() as u32;
            (peer.uid.as_raw(), peer.gid.as_raw(), pid)
        }),
        remote_path: remote_path.as_deref(),
        local_path: local_path.as_deref(),
    })
}

/// The name of a Unix socket as users write it; `None` if it has none.
fn path(address: &SocketAddrUnix) -> Option<Vec<u8>> {
    match address.abstract_name() {
        Some(name) => Some([b"@", name].concat()),
        None => address.path_bytes().map(<[u8]>::to_vec),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

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
