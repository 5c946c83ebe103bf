//! A connection from a queue, and the facts known about it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockType};
use rustix::net::netdevice::index_to_name;
use rustix::net::{getpeername, getsockname};

use crate::queue::message::{self, Info, UnixPeer};
use crate::queue::variable::is_interface_name;
use crate::system::descriptor::{has_peer_gone, socket_facts};
use crate::system::drain::{drain_until, end_sending, ends_in_order, has_input};
use crate::system::peer_ids::{PeerIds, peer_ids};
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
    /// `told` is what the message says about the connection. If it says nothing, or if it says that
    /// another descriptor is a Unix connection, the kernel is asked.
    pub(crate) fn new(descriptor: OwnedFd, lease: Option<OwnedFd>, told: Option<Info>) -> Self {
        let info = told.and_then(|info| with_own_ids(info, descriptor.as_fd()));
        let info = info.unwrap_or_else(|| ask(descriptor.as_fd()));
        Self {
            // Whatever the message says, the descriptor may be any.
            descriptor: QuickClose::new(descriptor.into()),
            lease,
            info,
        }
    }

    /// The facts about the connection: from its message or, if the message says nothing, from the
    /// kernel. The ids of a Unix client ([`IPC_REMOTE_EUID`](message::IPC_REMOTE_EUID) and so on)
    /// always come from the kernel, as the namespaces of this process number them. A process without
    /// a number here is left out.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Whether the client has gone: it has reset the connection, or has closed it and left nothing to
    /// read. A client that only sends no more (a half-close) has not gone. What is no socket is not a
    /// client, and has not gone either.
    ///
    /// A client may go while its connection waits in the queue. [`Receiver`](crate::queue::Receiver)
    /// returns such a connection like any other.
    pub fn is_gone(&self) -> bool {
        has_peer_gone(self.as_fd())
    }

    /// Ends the connection so that the client gets all that was sent: ends the sending side, drains what
    /// the client still sends until it has ended its side, for `time` at most, and closes. Closing a
    /// TCP socket with unread input, or before more input comes, would reset it, and the client would
    /// lose what it has not read yet. The lease is kept as long. Whether the descriptor is in
    /// non-blocking mode does not matter.
    ///
    /// Returns whether the client has ended, or reset the connection. What is no connected stream or
    /// seqpacket socket is closed at once, also a socket with `SO_LINGER` and 0 seconds, which asks for
    /// a reset; that is `true`.
    ///
    /// Other processes that have the connection cannot send any more.
    ///
    /// ```
    /// # use fdtools::queue::{self, Received};
    /// # use fdtools::queue::message::Info;
    /// # use std::net::{TcpListener, TcpStream};
    /// use std::io::{Read, Write};
    /// use std::time::Duration;
    /// # let listener = TcpListener::bind("127.0.0.1:0")?;
    /// # let mut client = TcpStream::connect(listener.local_addr()?)?;
    /// # let (sender, receiver) = queue::pair()?;
    /// # sender.send(listener.accept()?.0, &Info::new())?;
    /// # let Received::Connection(mut connection) = receiver.receive()? else { panic!() };
    /// client.write_all(b"a request that nobody reads")?;
    /// let client = std::thread::spawn(move || {
    ///     let mut answer = String::new();
    ///     client.read_to_string(&mut answer).map(|_| answer)
    /// });
    /// connection.write_all(b"the answer")?;
    /// assert!(connection.finish(Duration::from_secs(5)));
    /// assert_eq!(client.join().unwrap()?, "the answer");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn finish(self, time: Duration) -> bool {
        let socket = self.as_fd();
        !has_input(socket)
            || !ends_in_order(socket)
            || !end_sending(socket)
            || drain_until(socket, Instant::now().checked_add(time))
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

/// `told` with the ids of a Unix client as this process sees them: the sender's namespaces may
/// number them otherwise. `None` if `told` names no protocol, or the Unix one for another descriptor.
fn with_own_ids(mut told: Info, descriptor: BorrowedFd<'_>) -> Option<Info> {
    let ids = match told.get(message::PROTO)? {
        b"IPC" => peer_ids(descriptor)?,
        _ => PeerIds::default(),
    };
    told.set_credentials(&unix_peer(ids));
    Some(told)
}

fn unix_peer(ids: PeerIds) -> UnixPeer<'static> {
    UnixPeer {
        uid: ids.uid,
        gid: ids.gid,
        pid: ids.pid,
        ..UnixPeer::default()
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
            unix(descriptor, peer_ids(descriptor).unwrap_or_default())
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
    Some(tcp(descriptor, remote, SocketAddr::try_from(local).ok()?))
}

/// The facts about a TCP connection, with the names of the interfaces of link-local addresses.
pub(crate) fn tcp(descriptor: BorrowedFd<'_>, remote: SocketAddr, local: SocketAddr) -> Info {
    let mut info = Info::tcp(remote, local);
    let addresses = [
        (message::TCP_REMOTE_IP, remote),
        (message::TCP_LOCAL_IP, local),
    ];
    for (variable, address) in addresses {
        if let SocketAddr::V6(v6) = address
            && v6.scope_id() != 0
            && v6.ip().is_unicast_link_local()
            // The socket tells the name in its own network namespace, which may be another than ours.
            // An interface that is gone has no name any more, and keeps its number.
            && let Ok(name) = index_to_name(descriptor, v6.scope_id())
            && is_interface_name(&name)
        {
            info.set(variable, format!("{}%{name}", v6.ip()));
        }
    }
    info
}

/// The facts about a Unix connection. `ids` belong to the peer. The socket tells the names of both
/// ends.
pub(crate) fn unix(descriptor: BorrowedFd<'_>, ids: PeerIds) -> Info {
    let (local, remote) = unix_socket::names(descriptor);
    Info::unix(UnixPeer {
        remote_path: remote.as_deref(),
        local_path: local.as_deref(),
        ..unix_peer(ids)
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
    fn the_ids_in_a_message_do_not_count() {
        let told = |lines: &str| Info::decode(format!("FDTOOLS=1\n{lines}").as_bytes());
        let (one, _other) = UnixStream::pair().unwrap();
        let lie = "PROTO=IPC\nIPCREMOTEEUID=77\nIPCREMOTEEGID=77\nIPCREMOTEPID=77\n";
        let asked = ask(one.as_fd());
        let connection = Connection::new(one.into(), None, told(lie));
        assert_eq!(connection.info(), &asked);

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let asked = ask(client.as_fd());
        let connection = Connection::new(client.into(), None, told(lie));
        assert_eq!(connection.info(), &asked);

        let (one, _other) = UnixStream::pair().unwrap();
        let proxied = "PROTO=TCP\nTCPREMOTEIP=192.0.2.1\n";
        let lie = format!("{proxied}IPCREMOTEEUID=0\nIPCREMOTEPID=1\n");
        let connection = Connection::new(one.into(), None, told(&lie));
        assert_eq!(Some(connection.info()), told(proxied).as_ref());
    }

    #[test]
    fn the_ids_fit_into_a_message_or_are_left_out() {
        let (one, _other) = UnixStream::pair().unwrap();
        let start = "FDTOOLS=1\nPROTO=IPC\nIPCLOCALPATH=";
        let path = "x".repeat(message::MAX_PAYLOAD - start.len() - "\n".len());
        let told = Info::decode(format!("{start}{path}\n").as_bytes()).unwrap();
        let connection = Connection::new(one.into(), None, Some(told.clone()));
        assert_eq!(connection.info(), &told);
    }

    fn is_gone(descriptor: impl Into<OwnedFd>) -> bool {
        Connection::new(descriptor.into(), None, None).is_gone()
    }

    #[test]
    fn a_unix_client_has_gone_once_nothing_of_it_is_left_to_read() {
        let (client, server) = UnixStream::pair().unwrap();
        assert!(!is_gone(server.try_clone().unwrap()));
        (&client).write_all(b"last words").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(!is_gone(server.try_clone().unwrap()));
        drop(client);
        assert!(!is_gone(server.try_clone().unwrap()));
        (&server).read_exact(&mut [0; 10]).unwrap();
        assert!(is_gone(server));
    }

    #[test]
    fn a_tcp_client_has_gone_once_it_has_reset_the_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = || {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (client, listener.accept().unwrap().0)
        };
        let (client, server) = connect();
        assert!(!is_gone(server.try_clone().unwrap()));
        (&client).write_all(b"last words").unwrap();
        drop(client);
        (&server).read_exact(&mut [0; 10]).unwrap();
        assert_eq!((&server).read(&mut [0]).unwrap(), 0);
        assert!(!is_gone(server), "its end could be a half-close");

        let (client, server) = connect();
        (&client).write_all(b"last words").unwrap();
        let linger = nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        nix::sys::socket::setsockopt(&client, nix::sys::socket::sockopt::Linger, &linger).unwrap();
        drop(client);
        assert!(is_gone(server));
    }

    #[test]
    fn what_is_no_connection_has_not_gone() {
        use nix::sys::socket::{SockFlag, socket};
        for family in [AddressFamily::Inet, AddressFamily::Unix] {
            let flags = SockFlag::SOCK_CLOEXEC;
            assert!(!is_gone(
                socket(family, SockType::Stream, flags, None).unwrap()
            ));
        }
        let (reader, writer) = std::io::pipe().unwrap();
        drop(writer);
        assert!(!is_gone(reader));
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        assert!(!is_gone(writer));
        assert!(!is_gone(File::open("/dev/null").unwrap()));
    }

    #[test]
    fn a_client_that_ends_late_gets_all_and_one_that_does_not_end_is_left() {
        const NONE: Duration = Duration::ZERO;
        let finish =
            |descriptor: OwnedFd, time| Connection::new(descriptor, None, None).finish(time);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = listener.accept().unwrap().0;
        server.set_nonblocking(true).unwrap();
        client.write_all(&[b'?'; 100_000]).unwrap();
        let mut other = server.try_clone().unwrap();
        let copy = server.try_clone().unwrap();
        assert!(!finish(copy.into(), NONE));
        assert!(other.write(b"x").is_err(), "the sending side is ended");
        let finished = std::thread::spawn(move || finish(server.into(), Duration::MAX));
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        client.write_all(b"more").unwrap();
        drop(client);
        assert!(finished.join().unwrap());

        let (_client, server) = UnixStream::pair().unwrap();
        assert!(!finish(server.into(), Duration::from_millis(1)));
        assert!(finish(
            File::open("/dev/null").unwrap().into(),
            Duration::MAX
        ));
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(finish(datagrams.into(), Duration::MAX));
        assert!(finish(listener.into(), Duration::MAX));
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
