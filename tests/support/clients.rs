//! Clients, one or many.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixStream};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, connect as connect_to,
    recv, socket,
};
use nix::unistd::Pid;
use rustix::net::Shutdown as Side;

use super::*;

/// A connection to 127.0.0.1, whose reads and writes end with the deadline.
#[track_caller]
pub fn connect(port: u16) -> TcpStream {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let stream = TcpStream::connect_timeout(&address, DEADLINE).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// A connection to a Unix socket at a path or, behind `@`, at an abstract name, with the same
/// deadline.
#[track_caller]
pub fn connect_unix(path: impl AsRef<Path>) -> UnixStream {
    let name = path
        .as_ref()
        .to_str()
        .and_then(|path| path.strip_prefix('@'));
    let address = match name {
        Some(name) => UnixAddress::from_abstract_name(name),
        None => UnixAddress::from_pathname(path),
    };
    let stream = UnixStream::connect_addr(&address.unwrap()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Connects, sends `request`, shuts the sending side, and returns all that comes back.
#[track_caller]
pub fn exchange(port: u16, request: &[u8]) -> Vec<u8> {
    try_exchange(port, request).unwrap()
}

/// The same, for a connection that may fail.
pub fn try_exchange(port: u16, request: &[u8]) -> std::io::Result<Vec<u8>> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect_timeout(&address, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    stream.write_all(request)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Whether the other side has sent something or ended.
pub fn is_answered(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let peeked = stream.peek(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    peeked.is_ok()
}

/// The next line that a client gets.
#[track_caller]
pub fn read_line(client: &TcpStream) -> String {
    let mut line = String::new();
    BufReader::new(client).read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// Whether the end of what a client said is not acknowledged for some yet (proc_pid_net(5)).
fn are_on_their_way(clients: &[TcpStream]) -> bool {
    const FIN_WAIT_1: &str = "04"; // include/net/tcp_states.h of the kernel
    let port = |client: &TcpStream| format!(":{:04X}", client.local_addr().unwrap().port());
    let ports: Vec<_> = clients.iter().map(port).collect();
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().any(|line| {
        let words: Vec<_> = line.split_whitespace().take(4).collect();
        words[3] == FIN_WAIT_1 && ports.iter().any(|port| words[1].ends_with(port))
    })
}

/// Clients that have sent who they are and wait for it to come back.
pub struct Crowd(Vec<TcpStream>);

impl Crowd {
    #[track_caller]
    pub fn connect(port: u16, count: usize) -> Self {
        let client = |number: usize| {
            let mut stream = connect(port);
            stream.write_all(number.to_string().as_bytes()).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            stream
        };
        let clients: Vec<_> = (0..count).map(client).collect();
        // Connecting ends before the listener knows, which is when it has the last packet.
        until("all have arrived", || !are_on_their_way(&clients));
        Self(clients)
    }

    /// Expects that no client has an answer yet.
    #[track_caller]
    pub fn expect_waiting(&self) {
        assert!(!self.0.iter().any(is_answered));
    }

    #[track_caller]
    pub fn expect_served(self) {
        for (number, mut stream) in self.0.into_iter().enumerate() {
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, number.to_string());
        }
    }
}

/// A client's side of a connection. Its reads and writes end with the deadline.
pub struct Client<S = TcpStream>(pub S);

impl Client {
    #[track_caller]
    pub fn connect(port: u16) -> Self {
        Self(connect(port))
    }

    pub fn local_port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    pub fn peer_port(&self) -> u16 {
        self.0.peer_addr().unwrap().port()
    }
}

impl Client<UnixStream> {
    #[track_caller]
    pub fn connect_unix(path: impl AsRef<Path>) -> Self {
        Self(connect_unix(path))
    }
}

impl<S: AsFd> Client<S>
where
    for<'a> &'a S: Read + Write,
{
    #[track_caller]
    pub fn send(&self, text: &str) {
        (&self.0).write_all(text.as_bytes()).unwrap();
    }

    /// Sends no more.
    #[track_caller]
    pub fn end(&self) {
        rustix::net::shutdown(&self.0, Side::Write).unwrap();
    }

    /// A signal, as of a debugger or a freezer, ends a read that has a timeout.
    fn read(&self, bytes: &mut [u8]) -> std::io::Result<usize> {
        loop {
            match (&self.0).read(bytes) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// The next line, without its end; what there is of it, if the connection ends.
    #[track_caller]
    pub fn line(&self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        while self.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    /// The process id that is told in the next line.
    #[track_caller]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.line().parse().unwrap())
    }

    /// The same for a script that becomes `cat`, once it has: from then on it opens and closes nothing.
    #[track_caller]
    pub fn reported(&self) -> Pid {
        let pid = self.pid();
        self.expect_served();
        pid
    }

    /// Expects that what is sent comes back.
    #[track_caller]
    pub fn expect_served(&self) {
        self.send("ping\n");
        let mut answer = [0; 5];
        (&self.0).read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"ping\n");
    }

    /// Looks for a byte: 1 if there is one, 0 at the end.
    pub fn peek(&self) -> nix::Result<usize> {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        recv(self.0.as_fd().as_raw_fd(), &mut [0], flags)
    }

    /// Expects neither an answer nor the end of the connection yet.
    #[track_caller]
    pub fn expect_waiting(&self) {
        assert_eq!(self.peek(), Err(Errno::EAGAIN));
    }

    /// Whether the other side has sent something or ended.
    pub fn is_answered(&self) -> bool {
        self.peek().is_ok()
    }

    /// Everything until the end.
    #[track_caller]
    pub fn rest(self) -> String {
        let mut rest = String::new();
        (&self.0).read_to_string(&mut rest).unwrap();
        rest
    }

    /// The same where a reset is an end as well.
    #[track_caller]
    pub fn rest_or_reset(self) -> String {
        let mut rest = Vec::new();
        let _ = (&self.0).read_to_end(&mut rest);
        String::from_utf8(rest).unwrap()
    }

    /// Sends no more, and expects the end without a further word.
    #[track_caller]
    pub fn finish(self) {
        self.end();
        assert_eq!(self.rest(), "");
    }

    /// Sends `text` and no more, and expects `text` and the end.
    #[track_caller]
    pub fn expect_echo(self, text: &str) {
        self.send(text);
        self.end();
        assert_eq!(self.rest(), text);
    }

    /// Expects a reset.
    #[track_caller]
    pub fn expect_reset(self) {
        let error = self.read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(error, Err(ErrorKind::ConnectionReset));
    }

    /// Expects the end or a reset, without a word before it.
    #[track_caller]
    pub fn expect_closed(self) {
        match self.read(&mut [0]) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("{other:?}"),
        }
    }
}

/// A client with an address of its own, of either family. It may be turned away at once.
pub fn try_connect_from(from: impl Into<IpAddr>, server: SocketAddr) -> std::io::Result<TcpStream> {
    let from = from.into();
    let family = match from {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, SockType::Stream, flags, None)?;
    let address = SockaddrStorage::from(SocketAddr::new(from, 0));
    bind(socket.as_raw_fd(), &address)?;
    connect_to(socket.as_raw_fd(), &SockaddrStorage::from(server))?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    Ok(stream)
}
