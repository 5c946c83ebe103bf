//! Queues of a test's own, and what comes out of them.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use fdtools::queue::message::{Info, VERSION_LINE};
use fdtools::queue::{send, try_receive};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::*;

/// The next message of a queue taken apart: the connection, its lease, and what its payload says.
/// `None` if there is none now.
pub fn take_apart(queue: impl AsFd) -> Option<(OwnedFd, Option<OwnedFd>, Info)> {
    let mut message = match try_receive(queue) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
        message => message.unwrap(),
    };
    let info = Info::decode(&message.payload).unwrap();
    let mut descriptors = message.descriptors.drain(..);
    let connection = descriptors.next().unwrap();
    let lease = descriptors.next();
    assert_eq!(descriptors.len(), 0);
    Some((connection, lease, info))
}

/// A queue as something else than fdtools could make it.
pub fn socket_pair(kind: SockType) -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap()
}

/// A listener of the test's own, and its port.
pub fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind(ADDRESS).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Both sides of a TCP connection: the client's, and the server's.
pub fn tcp_pair() -> (TcpStream, TcpStream) {
    let (listener, port) = listener();
    let client = connect(port);
    (client, listener.accept().unwrap().0)
}

/// Both sides of a connection of Unix sockets.
pub fn unix_pair() -> (Client<UnixStream>, UnixStream) {
    let (client, server) = UnixStream::pair().unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.set_write_timeout(Some(DEADLINE)).unwrap();
    (Client(client), server)
}

/// A queue whose two ends are here, whoever has them besides.
pub struct Queue {
    write_end: Option<OwnedFd>,
    pub read_end: OwnedFd,
}

impl Queue {
    #[allow(clippy::new_without_default)] // nothing but a test makes one
    pub fn new() -> Self {
        Self::of(SockType::SeqPacket)
    }

    pub fn of(kind: SockType) -> Self {
        let (write_end, read_end) = socket_pair(kind);
        Self {
            write_end: Some(write_end),
            read_end,
        }
    }

    pub fn write_end(&self) -> &OwnedFd {
        self.write_end.as_ref().unwrap()
    }

    /// Nobody sends any more.
    pub fn close(&mut self) {
        self.write_end = None;
    }

    /// Standard input of a consumer.
    pub fn input(&self) -> Stdio {
        self.read_end.try_clone().unwrap().into()
    }

    /// Puts a connection in of which nothing is said.
    #[track_caller]
    pub fn send(&self, connection: impl AsFd) {
        send(self.write_end(), VERSION_LINE, &[connection.as_fd()]).unwrap();
    }

    /// A client whose connection is in the queue now.
    pub fn client(&self) -> Client<UnixStream> {
        let (client, server) = unix_pair();
        self.send(server);
        client
    }

    /// The same over TCP.
    pub fn tcp_client(&self) -> Client {
        let (client, server) = tcp_pair();
        self.send(server);
        Client(client)
    }

    /// Takes a connection out, if there is one.
    pub fn has_one(&self) -> bool {
        take_apart(&self.read_end).is_some()
    }
}
