//! The kind of an open descriptor, and its name in messages.

use std::io::IsTerminal;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockType, SockaddrLike, SockaddrStorage, getpeername, getsockname,
    getsockopt, recv, sockopt,
};
use nix::sys::stat::{FileStat, SFlag, fstat, makedev};

use crate::error::{Error, Result};
use crate::system::poll::{PollFlags, ready};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SocketFacts {
    /// `None` if nix does not know the family.
    pub family: Option<AddressFamily>,
    /// `None` if nix does not know the type.
    pub kind: Option<SockType>,
    /// `SO_ACCEPTCONN`.
    pub listens: bool,
    pub connected: bool,
}

/// The file type (`S_IFIFO`, `S_IFSOCK` and so on, inode(7)); no bits for epoll and the like, which
/// have no type.
pub(crate) fn type_of(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// The file type of `fd`, as [`type_of`]; `None` if `fd` cannot be examined.
pub(crate) fn file_type(fd: BorrowedFd<'_>) -> Option<SFlag> {
    // The C library's fstat makes another system call, which could also follow a path (see the
    // sandbox).
    let stat = rustix::fs::fstat(fd).ok()?;
    Some(SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT)
}

/// `None` if `fd` is no socket.
pub(crate) fn socket_facts(fd: BorrowedFd<'_>) -> Option<SocketFacts> {
    if file_type(fd) != Some(SFlag::S_IFSOCK) {
        return None;
    }
    Some(SocketFacts {
        family: getsockname::<SockaddrStorage>(fd.as_raw_fd())
            .ok()
            .and_then(|address| address.family()),
        kind: getsockopt(&fd, sockopt::SockType).ok(),
        listens: getsockopt(&fd, sockopt::AcceptConn).unwrap_or(false),
        connected: getpeername::<SockaddrStorage>(fd.as_raw_fd()).is_ok(),
    })
}

/// Whether the other side of a connection has gone: the connection was reset, or closed and read to
/// its end. A half-closed connection is not gone, nor is what is no socket. Costs one system call if
/// the other side is there.
pub(crate) fn has_peer_gone(fd: BorrowedFd<'_>) -> bool {
    let state = ready(fd, PollFlags::empty());
    // Both ways are closed. A TCP socket that was reset has an error as well, one that never was
    // connected has none. A Unix socket whose client has closed may still hold what the client said.
    state.contains(PollFlags::HUP)
        && file_type(fd) == Some(SFlag::S_IFSOCK)
        && (state.contains(PollFlags::ERR) || is_at_end(fd))
}

/// Whether a connection is closed both ways, as by a reset, or has one of `events`. Messages about what
/// was sent through a socket (`MSG_ERRQUEUE`), which poll(2) reports as an error, are no end.
pub(crate) fn is_hung_up(fd: BorrowedFd<'_>, events: PollFlags) -> bool {
    let state = ready(fd, events);
    state.intersects(PollFlags::HUP | events)
        || state.contains(PollFlags::ERR) && file_type(fd) != Some(SFlag::S_IFSOCK)
}

fn is_at_end(socket: BorrowedFd<'_>) -> bool {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    recv(socket.as_raw_fd(), &mut [0], flags) == Ok(0)
}

/// Names `fd`, with its article: `a pipe`, `a terminal`, `/dev/null`, `a TCP connection`,
/// `a Unix stream socket that does not listen`.
pub(crate) fn describe(fd: BorrowedFd<'_>) -> String {
    let Ok(stat) = fstat(fd) else {
        return "something that cannot be examined".into();
    };
    let null = makedev(1, 3); // null(4)
    match type_of(&stat) {
        SFlag::S_IFIFO => "a pipe".into(),
        SFlag::S_IFREG => "a regular file".into(),
        SFlag::S_IFDIR => "a directory".into(),
        SFlag::S_IFBLK => "a block device".into(),
        SFlag::S_IFCHR if fd.is_terminal() => "a terminal".into(),
        SFlag::S_IFCHR if stat.st_rdev == null => "/dev/null".into(),
        SFlag::S_IFCHR => "a character device".into(),
        SFlag::S_IFLNK => "a symbolic link".into(),
        SFlag::S_IFSOCK => match socket_facts(fd) {
            Some(facts) => describe_socket(facts),
            None => "a socket".into(),
        },
        // epoll, eventfd, signalfd and the like have no file type.
        _ => "a kernel object".into(),
    }
}

fn describe_socket(facts: SocketFacts) -> String {
    use AddressFamily::{Inet, Inet6, Unix, Vsock};
    let kind = match (facts.family, facts.kind) {
        (Some(Inet | Inet6), Some(SockType::Stream)) => "TCP",
        (Some(Inet | Inet6), Some(SockType::Datagram)) => return "a UDP socket".into(),
        (Some(Unix), Some(SockType::Stream)) => "Unix stream",
        (Some(Unix), Some(SockType::Datagram)) => return "a Unix datagram socket".into(),
        (Some(Unix), Some(SockType::SeqPacket)) if facts.listens => {
            return "a listening Unix seqpacket socket".into();
        }
        (Some(Unix), Some(SockType::SeqPacket)) => return "a Unix seqpacket socket".into(),
        (Some(Vsock), Some(SockType::Stream)) => "vsock stream",
        (_, Some(SockType::Raw)) => return "a raw socket".into(),
        _ => return "a socket of another kind".into(),
    };
    if facts.listens {
        format!("a listening {kind} socket")
    } else if facts.connected {
        format!("a {kind} connection")
    } else {
        format!("a {kind} socket that does not listen")
    }
}

/// Checks that `socket` can be an end of a queue: a Unix socket, but not a listening one.
///
/// # Errors
/// [`Error::Invalid`] for any other descriptor; the text names its kind.
pub(crate) fn check_is_queue(socket: BorrowedFd<'_>) -> Result<()> {
    let facts = socket_facts(socket);
    if facts.is_some_and(|facts| facts.family == Some(AddressFamily::Unix) && !facts.listens) {
        return Ok(());
    }
    Err(Error::Invalid(format!("{}, not a queue", describe(socket))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{SockFlag, socket, socketpair};
    use std::fs::File;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::net::{UnixDatagram, UnixListener};

    fn told(fd: impl AsFd) -> String {
        describe(fd.as_fd())
    }

    #[test]
    fn files_are_told_apart() {
        let (reader, writer) = std::io::pipe().unwrap();
        assert_eq!(told(reader), "a pipe");
        assert_eq!(told(writer), "a pipe");
        assert_eq!(told(tempfile::tempfile().unwrap()), "a regular file");
        assert_eq!(told(File::open("/").unwrap()), "a directory");
        assert_eq!(told(File::open("/dev/null").unwrap()), "/dev/null");
        assert_eq!(told(File::open("/dev/zero").unwrap()), "a character device");
        let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC);
        assert_eq!(told(epoll.unwrap()), "a kernel object");
        if let Ok(terminal) = File::open("/dev/ptmx") {
            assert_eq!(told(terminal), "a terminal");
        }
    }

    #[test]
    fn sockets_are_told_apart() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(told(&tcp), "a listening TCP socket");
        let client = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        assert_eq!(told(client), "a TCP connection");
        assert_eq!(
            told(UdpSocket::bind("127.0.0.1:0").unwrap()),
            "a UDP socket"
        );

        let dir = tempfile::tempdir().unwrap();
        let unix = UnixListener::bind(dir.path().join("s")).unwrap();
        assert_eq!(told(unix), "a listening Unix stream socket");
        assert_eq!(
            told(UnixDatagram::unbound().unwrap()),
            "a Unix datagram socket"
        );
        let pair = |kind| -> OwnedFd {
            socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC)
                .unwrap()
                .0
        };
        assert_eq!(told(pair(SockType::SeqPacket)), "a Unix seqpacket socket");

        let new = |family| socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        let unix = new(AddressFamily::Unix);
        assert_eq!(told(unix), "a Unix stream socket that does not listen");
        let tcp = new(AddressFamily::Inet);
        assert_eq!(told(tcp), "a TCP socket that does not listen");
        let netlink = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            None,
        );
        assert_eq!(told(netlink.unwrap()), "a socket of another kind");
    }

    #[test]
    fn a_connection_is_no_listener() {
        let pair = socketpair(
            AddressFamily::Unix,
            SockType::Stream,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        assert_eq!(told(pair.0), "a Unix stream connection");
        let (reader, _writer) = std::io::pipe().unwrap();
        assert_eq!(socket_facts(reader.as_fd()), None);
    }
}
