//! Clients, senders and sockets that nobody should meet.

use std::io::Write;
use std::net::TcpStream;
use std::os::fd::OwnedFd;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Linger;

use super::*;

impl Client {
    /// Resets the connection.
    pub fn reset(self) {
        let at_once = nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&self.0, Linger, &at_once).unwrap();
    }
}

/// A TCP socket whose last close would block for an hour: it lingers and has unsent data. The
/// other side, which is returned with it, does not read.
pub fn lingering() -> (TcpStream, TcpStream) {
    lingering_for(3600)
}

/// The same for so many seconds.
pub fn lingering_for(seconds: i32) -> (TcpStream, TcpStream) {
    let (other, mut socket) = tcp_pair();
    socket.set_nonblocking(true).unwrap();
    while socket.write(&[0; 65536]).is_ok() {}
    socket.set_nonblocking(false).unwrap();
    let linger = nix::libc::linger {
        l_onoff: 1,
        l_linger: seconds,
    };
    setsockopt(&socket, Linger, &linger).unwrap();
    (socket, other)
}

/// The other side, and the socket. In this order they can be dropped together without blocking.
pub fn lingering_pair() -> (OwnedFd, OwnedFd) {
    let (socket, other) = lingering();
    (other.into(), socket.into())
}
