//! The load: clients that each connect, send a line, half-close, and read to the end, again and
//! again.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::socket::sockopt::{IpBindAddressNoPort, SendTimeout};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// A client that gets no answer gives up after this long.
const PATIENCE: Duration = Duration::from_secs(3);
/// The line that a client sends and gets back.
pub const LINE: &[u8] = b"the quick brown fox jumps over the lazy dog\n";

/// The result of a load.
#[derive(Debug, Default)]
pub struct Load {
    /// The time of each connection with the right answer.
    pub latencies: Vec<Duration>,
    /// Connections without the right answer.
    pub failures: usize,
    /// Right answers per second, added up over the clients. Each client counts its own time, so
    /// that a client that waits in vain at the end does not lower the others' rate.
    pub rate: f64,
}

/// Loads the server on `port` with this many clients at once.
pub fn run(port: u16, clients: usize, length: Duration) -> Load {
    let end = Instant::now() + length;
    let mut load = Load::default();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..clients)
            .map(|number| scope.spawn(move || client(number, port, end)))
            .collect();
        for client in clients {
            let client = client.join().expect("a client does not panic");
            load.latencies.extend(client.latencies);
            load.failures += client.failures;
            load.rate += client.rate;
        }
    });
    load
}

fn client(number: usize, port: u16, end: Instant) -> Load {
    // Each client has an address of its own. A closed connection keeps its port for a minute, so
    // the ports of one address are used up within seconds; then the search for a port would be
    // measured.
    let source = Ipv4Addr::from_bits(Ipv4Addr::new(127, 0, 1, 0).to_bits() + number as u32);
    let mut load = Load::default();
    let mut answer = Vec::new();
    let begin = Instant::now();
    let mut start = begin;
    while start < end {
        if is_answered(source, port, &mut answer) {
            load.latencies.push(start.elapsed())
        } else {
            load.failures += 1
        }
        start = Instant::now();
    }
    load.rate = load.latencies.len() as f64 / (start - begin).as_secs_f64();
    load
}

/// Whether one connection got the right answer.
pub fn ask(port: u16) -> bool {
    is_answered(Ipv4Addr::LOCALHOST, port, &mut Vec::new())
}

fn is_answered(source: Ipv4Addr, port: u16, answer: &mut Vec<u8>) -> bool {
    answer.clear();
    exchange(source, port, answer).is_ok() && answer == LINE
}

fn exchange(source: Ipv4Addr, port: u16, answer: &mut Vec<u8>) -> std::io::Result<()> {
    say(source, port)?.read_to_end(answer).map(drop)
}

/// A connection with the line sent and nothing read.
pub fn say(source: Ipv4Addr, port: u16) -> std::io::Result<TcpStream> {
    let mut connection = open(source, port)?;
    connection.write_all(LINE)?;
    connection.shutdown(Shutdown::Write)?;
    Ok(connection)
}

fn open(source: Ipv4Addr, port: u16) -> std::io::Result<TcpStream> {
    let family = AddressFamily::Inet;
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // The kernel then chooses the port at connect(2), when it knows the other end.
    setsockopt(&socket, IpBindAddressNoPort, &true)?;
    let source = SockaddrIn::from(SocketAddrV4::new(source, 0));
    bind(socket.as_raw_fd(), &source)?;
    // The timeout counts for connect(2) too: a server that does not answer has a full backlog at
    // last.
    let patience = TimeVal::milliseconds(PATIENCE.as_millis() as i64);
    setsockopt(&socket, SendTimeout, &patience)?;
    let server = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
    connect(socket.as_raw_fd(), &server)?;
    let connection = TcpStream::from(socket);
    connection.set_read_timeout(Some(PATIENCE))?;
    Ok(connection)
}
