//! The load: clients that each connect, say a line, half-close, and read to the end, again and again.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::time::{Duration, Instant};

/// A client that gets no answer gives up after this long.
const PATIENCE: Duration = Duration::from_secs(3);
const LINE: &[u8] = b"the quick brown fox jumps over the lazy dog\n";

/// What came of a load.
#[derive(Debug, Default)]
pub struct Load {
    /// How long each connection took that was answered rightly.
    pub latencies: Vec<Duration>,
    /// Connections that were not.
    pub failures: usize,
    /// How long all of it took.
    pub elapsed: Duration,
}

/// Loads what listens on `port` with so many clients at once.
pub fn run(port: u16, clients: usize, length: Duration) -> Load {
    let start = Instant::now();
    let end = start + length;
    let mut load = Load::default();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..clients)
            .map(|_| scope.spawn(move || client(port, end)))
            .collect();
        for client in clients {
            let (latencies, failures) = client.join().expect("a client does not panic");
            load.latencies.extend(latencies);
            load.failures += failures;
        }
    });
    load.elapsed = start.elapsed();
    load
}

fn client(port: u16, end: Instant) -> (Vec<Duration>, usize) {
    let (mut latencies, mut failures) = (Vec::new(), 0);
    let mut answer = Vec::new();
    while Instant::now() < end {
        let start = Instant::now();
        match ask(port, &mut answer) {
            Ok(()) if answer == LINE => latencies.push(start.elapsed()),
            _ => failures += 1,
        }
    }
    (latencies, failures)
}

/// One connection.
pub fn ask(port: u16, answer: &mut Vec<u8>) -> std::io::Result<()> {
    // A server that does not answer any more has a full backlog at last.
    let address = (Ipv4Addr::LOCALHOST, port).into();
    let mut connection = TcpStream::connect_timeout(&address, PATIENCE)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.write_all(LINE)?;
    connection.shutdown(Shutdown::Write)?;
    answer.clear();
    connection.read_to_end(answer).map(drop)
}
