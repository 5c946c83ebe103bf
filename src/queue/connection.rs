//! A connection from a queue, and the facts known about it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockType, getsockopt, sockopt};
use rustix::net::{getpeername, getsockname};

use crate::queue::message::{self, Info, UnixPeer};
use crate::system::descriptor::socket_facts;
use crate::system::quick_close::QuickClose;
use crate::system::unix_socket;

/// A connection from a queue. The connection is in service until this value is dropped. Dropping
/// closes its lease, which tells an acceptor that counts (`fdaccept --max`).
///
/// A `Connection` reads and writes like a [`TcpStream`](std::net::TcpStream), also through a
/// reference. For a socket of a type, convert a copy, and keep the `Connection` while the copy is
/// in use:
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
    descriptor: QuickClose<File>,
    lease: Option<OwnedFd>,
    info: Info,
}

impl Connection {
    /// `told` is what the message says about the connection. If it says nothing, the kernel is
    /// asked.
    pub(crate) fn new(descriptor: OwnedFd, lease: Option<OwnedFd>, told: Option<Info>) -> Self {
        let info = told.filter(|info| info.get(message::PROTO).is_some());
        // A connection of TCP carries no descriptors, and an acceptor's does not linger.
        let proto = info.as_ref().and_then(|info| info.get(message::PROTO));
        let is_plain = proto == Some(b"TCP");
        let info = info.unwrap_or_else(|| ask(descriptor.as_fd()));
        Self {
            descriptor: QuickClose::if_needed(descriptor.into(), !is_plain),
            lease,
            info,
        }
    }

    /// The facts about the connection: from its message or, if the message says nothing, from the
    /// kernel.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// The descriptor that tells a counting sender that the connection is in service.
    pub(crate) fn lease(&self) -> Option<BorrowedFd<'_>> {
        self.lease.as_ref().map(AsFd::as_fd)
    }

    /// Closes our copy of the connection, which another process serves, and keeps the lease.
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
        (&*self.descriptor).read(buffer)
    }
}

impl Write for &Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self.descriptor).write(bytes)
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

/// What the kernel knows about a descriptor; nothing if it is no connected socket.
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

/// Both addresses of a TCP socket.
fn ask_tcp(descriptor: BorrowedFd<'_>) -> Option<Info> {
    let remote = getpeername(descriptor).ok()??;
    let local = getsockname(descriptor).ok()?;
    let remote = SocketAddr::try_from(remote).ok()?;
    Some(Info::tcp(remote, SocketAddr::try_from(local).ok()?))
}

/// `credentials` are the uid, gid and pid of the peer; the socket tells the names of both ends.
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
