//! The user and the process at the other side of a Unix socket, as our namespaces number them.

use std::os::fd::BorrowedFd;

use nix::sys::socket::{getsockopt, sockopt};

/// What the kernel tells of a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PeerIds {
    /// In a user namespace, the overflow uid (65534) stands for every user without a number there
    /// (user_namespaces(7)).
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// `None` if the process has no number in our pid namespace.
    pub pid: Option<u32>,
}

/// The ids of the peer when it connected (`SO_PEERCRED`); `None` if `socket` is no Unix socket with a
/// peer.
pub(crate) fn peer_ids(socket: BorrowedFd<'_>) -> Option<PeerIds> {
    /// The ids of a socket that has no peer, or that is no Unix socket.
    const NOBODY: u32 = u32::MAX;
    let peer = getsockopt(&socket, sockopt::PeerCredentials).ok()?;
    (peer.uid() != NOBODY).then(|| PeerIds {
        uid: Some(peer.uid()),
        gid: Some(peer.gid()),
        pid: u32::try_from(peer.pid()).ok().filter(|pid| *pid != 0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    #[test]
    fn the_peer_of_a_pair_is_this_process() {
        let (one, _other) = UnixStream::pair().unwrap();
        let ids = peer_ids(one.as_fd()).unwrap();
        assert_eq!(ids.pid, Some(std::process::id()));
        assert_eq!(ids.uid, Some(nix::unistd::geteuid().as_raw()));
    }

    #[test]
    fn only_a_unix_socket_with_a_peer_has_ids() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(peer_ids(client.as_fd()), None);
        assert_eq!(peer_ids(UnixDatagram::unbound().unwrap().as_fd()), None);
        assert_eq!(peer_ids(File::open("/dev/null").unwrap().as_fd()), None);
    }
}
