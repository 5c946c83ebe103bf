//! Connections that stay open, held by 2 workers.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use crate::server::{Line, Server};

/// At most as many connections as one process has descriptors for, on either side.
const OPEN: usize = 10_000;

pub fn measure() {
    let line = Line {
        name: "workers that hold connections",
        needs: &[],
        text: "exec fdaccept -q 127.0.0.1:PORT -- fdpool -q --worker 2 -- \"$BENCH\" --hold",
    };
    let Some(server) = Server::start(&line, &[]) else {
        return;
    };
    let start = Instant::now();
    let mut clients = Vec::new();
    while clients.len() < OPEN {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, server.port)) {
            Ok(client) => clients.push(client),
            Err(error) => {
                eprintln!("after {} connections: {error}", clients.len());
                break;
            }
        }
    }
    let mut answered = 0;
    for client in &mut clients {
        let mut byte = [0];
        let _ = client.set_read_timeout(Some(Duration::from_secs(10)));
        let asked = client
            .write_all(b"x")
            .and_then(|()| client.read_exact(&mut byte));
        answered += usize::from(asked.is_ok() && byte == *b"x");
    }
    println!(
        "{} connections open: {answered} of them answered, after {:.1} s",
        clients.len(),
        start.elapsed().as_secs_f64()
    );
}
