//! Backlogs: connections that wait at a listener to be accepted.
#![allow(unsafe_code)] // one getsockopt and one setsockopt, which no library has

use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc;

/// How many connections wait at a TCP listener, as in ss(8); 0 if the kernel does not tell.
pub(crate) fn waiting(listener: BorrowedFd<'_>) -> usize {
    // SAFETY: `tcp_info` consists of integers, and 0 is valid for each.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    // Without the statistics after this field.
    let wanted = offset_of!(libc::tcp_info, tcpi_sacked);
    let mut length = wanted as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, and `info` is longer.
    let result = unsafe {
        libc::getsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &mut length,
        )
    };
    if result == 0 && length as usize == wanted {
        info.tcpi_unacked as usize
    } else {
        0
    }
}

/// The longest time, in seconds, for which the kernel defers a connection: 255 times, by up to 120
/// seconds each (seen).
pub(crate) const MAX_DEFERRED: u32 = 29_887;

/// Keeps a connection out of the backlog of a TCP listener until its client has sent something, or
/// for about `seconds` (`TCP_DEFER_ACCEPT`, tcp(7)); 0 for not at all.
///
/// The kernel rounds up to 1, 3, 7, 15, 31, 63 or 127 seconds, and so on: to when it would repeat
/// its part of the handshake (seen).
pub(crate) fn defer(listener: BorrowedFd<'_>, seconds: u32) -> nix::Result<()> {
    let seconds = seconds as libc::c_int;
    // SAFETY: the kernel reads an int, which is `seconds`.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const seconds).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    Errno::result(result).map(drop)
}

/// The longest backlog that the kernel allows, in connections.
pub(crate) fn longest() -> usize {
    let text = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap_or_default();
    text.trim().parse().unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::poll::{PollFlags, ready};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn those_that_wait_are_counted() {
        let listener = TcpListener::bind("[::1]:0")
            .or_else(|_| TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        assert_eq!(waiting(listener.as_fd()), 0);
        let address = listener.local_addr().unwrap();
        let _clients = [(); 3].map(|()| TcpStream::connect(address).unwrap());
        // A client connects before the listener has seen the last step of the handshake.
        let _taken = [(); 2].map(|()| listener.accept().unwrap());
        assert!(!ready(listener.as_fd(), PollFlags::IN).is_empty());
        assert_eq!(waiting(listener.as_fd()), 1);
        listener.accept().unwrap();
        assert_eq!(waiting(listener.as_fd()), 0);
    }

    #[test]
    fn those_of_a_unix_listener_are_not_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        assert_eq!(waiting(listener.as_fd()), 0);
    }
}
