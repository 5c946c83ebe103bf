//! New Unix sockets, and the names of connected ones.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::error::{Error, Result};

pub(crate) fn new(kind: SockType) -> Result<OwnedFd> {
    make(kind, SockFlag::SOCK_CLOEXEC)
}

/// Only for a socket that no other process shares: O_NONBLOCK would apply to all of them.
pub(crate) fn new_nonblocking(kind: SockType) -> Result<OwnedFd> {
    make(kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)
}

fn make(kind: SockType, flags: SockFlag) -> Result<OwnedFd> {
    socket(AddressFamily::Unix, kind, flags, None)
        .map_err(|errno| Error::system("make a Unix socket", errno))
}

/// The names of a Unix socket and of its peer, as users write them.
///
/// The standard library copes with a path that fills its 108 bytes without a NUL, which any client
/// may choose.
pub(crate) fn names(descriptor: BorrowedFd<'_>) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
    let name = |address: io::Result<SocketAddr>| {
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
