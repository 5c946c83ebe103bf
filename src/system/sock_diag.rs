//! Asks the kernel for the peer of a connected datagram socket (sock_diag(7)).
//!
//! The first query gives the inode of the peer, the second one the uid of that inode. A connected
//! datagram socket keeps its peer, so the answer holds as long as the connection.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use nix::sys::stat::fstat;

/// `SOCK_DIAG_BY_FAMILY` of linux/sock_diag.h.
const BY_FAMILY: u16 = 20;
/// `NLMSG_ERROR` and `NLM_F_REQUEST` of linux/netlink.h.
const ERROR: u16 = 2;
const REQUEST: u16 = 1;
/// Attributes of linux/unix_diag.h. A request asks for each by the bit 1 << number, but for
/// `UNIX_DIAG_UID` (7) by 0x40.
const VFS: u16 = 1;
const SHOW_VFS: u32 = 1 << 1;
const PEER: u16 = 2;
const SHOW_PEER: u32 = 1 << 2;
const UID: u16 = 7;
const SHOW_UID: u32 = 0x40;
/// Bytes before the attributes: nlmsghdr, then unix_diag_msg.
const HEADER: usize = 16;
const ANSWER: usize = HEADER + 16;

/// Whether two Unix sockets are connected to each other; `None` if the kernel does not say.
pub(crate) fn are_connected(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> Option<bool> {
    let inode = |socket| fstat(socket).ok().map(|stat| stat.st_ino as u32);
    let peer = ask(inode(one)?, SHOW_PEER, PEER).ok()?;
    Some(peer == Some(inode(other)?))
}

/// The last 32 bits of the inode of the path that a Unix socket is bound to.
///
/// # Errors
/// The errno of the netlink calls; `ENOENT` if the socket is bound to no path, or if this kernel
/// does not tell (CONFIG_UNIX_DIAG).
pub(crate) fn bound_inode(socket: BorrowedFd<'_>) -> Result<u32, Errno> {
    let inode = fstat(socket)?.st_ino as u32;
    ask(inode, SHOW_VFS, VFS)?.ok_or(Errno::ENOENT)
}

/// The uid of the owner of the socket's peer.
///
/// # Errors
/// The errno of the netlink calls; `ENOTCONN` if `socket` has no peer, `EOPNOTSUPP` if this kernel
/// does not tell uids (before Linux 5.3).
pub(crate) fn peer_uid(socket: BorrowedFd<'_>) -> Result<u32, Errno> {
    let inode = fstat(socket)?.st_ino as u32;
    let peer = ask(inode, SHOW_PEER, PEER)?.ok_or(Errno::ENOTCONN)?;
    ask(peer, SHOW_UID, UID)?.ok_or(Errno::EOPNOTSUPP)
}

/// Asks for a 32-bit attribute of the Unix socket with this inode.
fn ask(inode: u32, show: u32, attribute: u16) -> Result<Option<u32>, Errno> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    let kernel = NetlinkAddr::new(0, 0);
    let request = request(inode, show);
    sendto(netlink.as_raw_fd(), &request, &kernel, MsgFlags::empty())?;
    let mut answer = [0; 1024];
    let length = loop {
        match recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty()) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    find(&answer[..length], attribute)
}

fn request(inode: u32, show: u32) -> Vec<u8> {
    let mut request = Vec::with_capacity(40);
    // nlmsghdr: length, type, flags, sequence, port.
    request.extend(40u32.to_ne_bytes());
    request.extend(BY_FAMILY.to_ne_bytes());
    request.extend(REQUEST.to_ne_bytes());
    request.extend([0; 8]);
    // unix_diag_req: family, protocol, padding, states, inode, show, no cookie.
    request.extend([AddressFamily::Unix as u8, 0, 0, 0]);
    request.extend(u32::MAX.to_ne_bytes());
    request.extend(inode.to_ne_bytes());
    request.extend(show.to_ne_bytes());
    request.extend([0xff; 8]);
    request
}

/// Finds an attribute in an answer. Pure.
fn find(answer: &[u8], attribute: u16) -> Result<Option<u32>, Errno> {
    let u16_at = |at: usize| Some(u16::from_ne_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_ne_bytes(answer.get(at..at + 4)?.try_into().ok()?));
    match u16_at(4) {
        Some(BY_FAMILY) => {}
        Some(ERROR) => {
            let errno = u32_at(HEADER).unwrap_or_default() as i32;
            return Err(Errno::from_raw(-errno));
        }
        _ => return Err(Errno::EPROTO),
    }
    let mut at = ANSWER;
    while let (Some(length), Some(kind)) = (u16_at(at), u16_at(at + 2)) {
        if kind == attribute {
            return Ok(u32_at(at + 4));
        }
        // Attributes are padded to 4 bytes. A length below 4, the attribute's header, would loop
        // for ever.
        at += usize::from(length).max(4).next_multiple_of(4);
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{UnixAddr, bind, connect};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn the_owner_of_a_datagram_name_is_known() {
        let name = format!("fdtools-test-diag-{}", std::process::id());
        let address = UnixAddr::new_abstract(name.as_bytes()).unwrap();
        let unbound = || UnixDatagram::unbound().unwrap();
        let (receiver, sender) = (unbound(), unbound());
        assert_eq!(peer_uid(sender.as_fd()), Err(Errno::ENOTCONN));
        bind(receiver.as_raw_fd(), &address).unwrap();
        connect(sender.as_raw_fd(), &address).unwrap();
        let us = nix::unistd::geteuid().as_raw();
        assert_eq!(peer_uid(sender.as_fd()), Ok(us));
    }

    #[test]
    fn both_ends_of_a_pair_are_known() {
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let (third, _fourth) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(are_connected(one.as_fd(), other.as_fd()), Some(true));
        assert_eq!(are_connected(one.as_fd(), third.as_fd()), Some(false));
        assert_eq!(bound_inode(one.as_fd()), Err(Errno::ENOENT));
    }

    #[test]
    fn the_file_of_a_bound_socket_is_known() {
        use std::os::unix::fs::MetadataExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let inode = std::fs::symlink_metadata(&path).unwrap().ino() as u32;
        assert_eq!(bound_inode(socket.as_fd()), Ok(inode));
    }

    proptest::proptest! {
        #[test]
        fn no_answer_crashes_it(mut answer: Vec<u8>) {
            let _ = find(&answer, UID);
            if answer.len() > 6 {
                answer[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
                let _ = find(&answer, UID);
            }
        }
    }
}
