//! A connection and what is known of it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockType, getsockopt, sockopt};
use rustix::net::{getpeername, getsockname};

use crate::queue::message::{self, Info, UnixPeer};
use crate::system::descriptor::socket_facts;
use crate::system::unix_socket;

/// A connection that was taken from a queue. It is in service until it is dropped: an acceptor that
/// counts (`fdaccept --max`) is told so by its lease, which lives as long as this value.
///
/// It reads and writes as a [`TcpStream`](std::net::TcpStream) does, also through a reference. For a
/// socket of a type, make it of a copy, and keep the connection for as long as that is used:
///
/// ```
/// # use fdtools::queue::{self, Received};
/// # use fdtools::queue::message::Info;
/// # use std::net::{TcpListener, TcpStream};
/// use std::os::fd::AsFd;
/// # let listener = TcpListener::bind("127.0.0.1:0")?;
/// # let _client = TcpStream::connect(listener.local_addr()?)?;
/// # let (sender, receiver) = queue::pair()?;
/// # sender.send(listener.accept()?.0, &Info::new())?;
/// # let Received::Connection(connection) = receiver.receive()? else { panic!() };
/// let stream = TcpStream::from(connection.as_fd().try_clone_to_owned()?);
/// stream.set_nodelay(true)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Connection {
    descriptor: File,
    lease: Option<OwnedFd>,
    info: Info,
}

impl Connection {
    /// A connection with what its message said of it. Where that is nothing, the descriptor is
    /// asked itself.
    pub(crate) fn new(descriptor: OwnedFd, lease: Option<OwnedFd>, told: Option<Info>) -> Self {
        let info = told.filter(|info| info.get(message::PROTO).is_some());
        let info = info.unwrap_or_else(|| ask(descriptor.as_fd()));
        Self {
            descriptor: descriptor.into(),
            lease,
            info,
        }
    }

    /// What is known of it: what its message said or, where that was nothing, what the descriptor
    /// tells itself.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// What tells the sender that it is in service, where the sender counts.
    pub(crate) fn lease(&self) -> Option<BorrowedFd<'_>> {
        self.lease.as_ref().map(AsFd::as_fd)
    }

    /// Closes the connection, which somebody else serves, and keeps its lease.
    pub(crate) fn into_lease(self) -> Option<OwnedFd> {
        self.lease
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Read for &Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.descriptor).read(buffer)
    }
}

impl Write for &Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&self.descriptor).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a descriptor tells of itself: nothing if it is no connected socket.
pub(crate) fn ask(descriptor: BorrowedFd<'_>) -> Info {
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
    let (local, remote) = unix_socket::names(descriptor);
    Info::unix(UnixPeer {
        credentials,
        remote_path: remote.as_deref(),
        local_path: local.as_deref(),
    })
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
        let file = File::open("/dev/null").unwrap();
        assert_eq!(ask(file.as_fd()), Info::new());
    }

    #[test]
    fn it_reads_and_writes_what_the_client_does() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let connection = Connection::new(server.into(), None, None);
        client.write_all(b"question").unwrap();
        let mut question = [0; 8];
        (&connection).read_exact(&mut question).unwrap();
        assert_eq!(&question, b"question");
        (&connection).write_all(b"answer").unwrap();
        drop(connection);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "answer");
    }
}
