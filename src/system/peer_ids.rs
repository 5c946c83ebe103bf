//! The user and the process at the other side of a Unix socket, as our namespaces number them.

use std::fs;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;

use nix::sys::socket::{getsockopt, sockopt};

/// What the kernel tells of a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PeerIds {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub pid: Option<u32>,
}

/// The ids of the peer when it connected (`SO_PEERCRED`); `None` if `socket` is no Unix socket with a
/// peer. An id that has no number in our namespaces is left out.
pub(crate) fn peer_ids(socket: BorrowedFd<'_>) -> Option<PeerIds> {
    /// The ids of a socket that has no peer, or that is no Unix socket.
    const NOBODY: u32 = u32::MAX;
    let peer = getsockopt(&socket, sockopt::PeerCredentials).ok()?;
    if peer.uid() == NOBODY {
        return None;
    }
    let unmapped = Unmapped::here();
    Some(PeerIds {
        uid: Some(peer.uid()).filter(|uid| Some(*uid) != unmapped.uid),
        gid: Some(peer.gid()).filter(|gid| Some(*gid) != unmapped.gid),
        pid: u32::try_from(peer.pid()).ok().filter(|pid| *pid != 0),
    })
}

/// The numbers that stand for every user, and every group, without a number in our user namespace
/// (user_namespaces(7)); `None` if each has one.
struct Unmapped {
    uid: Option<u32>,
    gid: Option<u32>,
}

impl Unmapped {
    /// Read once: a process does not change its user namespace here.
    fn here() -> &'static Self {
        static HERE: OnceLock<Unmapped> = OnceLock::new();
        HERE.get_or_init(|| Self {
            uid: unmapped("/proc/self/uid_map", "/proc/sys/kernel/overflowuid"),
            gid: unmapped("/proc/self/gid_map", "/proc/sys/kernel/overflowgid"),
        })
    }
}

fn unmapped(map: &str, overflow: &str) -> Option<u32> {
    /// The number unless an administrator changes it.
    const USUAL: u32 = 65534;
    if fs::read_to_string(map).is_ok_and(|map| maps_all(&map)) {
        return None;
    }
    let overflow = fs::read_to_string(overflow).ok();
    let number = overflow.and_then(|text| text.trim().parse().ok());
    Some(number.unwrap_or(USUAL))
}

/// Whether every id has a number: all but -1, which is no id. Pure.
fn maps_all(map: &str) -> bool {
    let counts = map.lines().filter_map(|line| {
        let count = line.split_ascii_whitespace().nth(2)?;
        count.parse::<u64>().ok()
    });
    counts.sum::<u64>() == u64::from(u32::MAX)
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
        let us = nix::unistd::geteuid().as_raw();
        assert!(ids.uid.is_none_or(|uid| uid == us));
    }

    #[test]
    fn only_a_unix_socket_with_a_peer_has_ids() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(peer_ids(client.as_fd()), None);
        assert_eq!(peer_ids(UnixDatagram::unbound().unwrap().as_fd()), None);
        assert_eq!(peer_ids(File::open("/dev/null").unwrap().as_fd()), None);
    }

    #[test]
    fn a_map_of_all_ids_is_told_from_others() {
        assert!(maps_all("         0          0 4294967295\n"));
        assert!(maps_all("0 0 1\n1 1 4294967294\n"));
        for map in ["", "0 1000 1\n", "0 0 4294967294\n", "x\n", "0 0 x\n"] {
            assert!(!maps_all(map), "{map}");
        }
    }
}
