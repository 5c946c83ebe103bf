//! The supplementary groups of a Unix socket's peer.
#![allow(unsafe_code)] // getsockopt of variable length, which no library has

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;

/// The most groups that a user can have (`NGROUPS_MAX`).
const MOST_GROUPS: usize = 65536;

/// The peer's groups when it connected (`SO_PEERGROUPS`); empty if the kernel does not tell.
pub(crate) fn of(socket: BorrowedFd<'_>) -> Vec<u32> {
    let mut groups = vec![0_u32; 64];
    loop {
        let mut length = (groups.len() * size_of::<u32>()) as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes, which `groups` has.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &mut length,
            )
        };
        let count = length as usize / size_of::<u32>();
        if result == 0 {
            groups.truncate(count);
            return groups;
        }
        // With too little room the kernel says how much is needed.
        if nix::errno::Errno::last() != nix::errno::Errno::ERANGE || count > MOST_GROUPS {
            return Vec::new();
        }
        groups.resize(count.max(groups.len() + 1), 0);
    }
}
