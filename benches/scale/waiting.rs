//! How fast connections are served that wait in the queue and in 2 backlogs.

use std::io::Read;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use crate::load;
use crate::process;
use crate::server::{Line, Server, children};

const WAITING: usize = 5_000;

pub fn measure() {
    let line = Line {
        name: "a queue that nobody serves for a while",
        needs: &[],
        text: "fdaccept -q --bind ./queue --port-file ./ports 127.0.0.1:PORT 127.0.0.1:0 & \
               fdpool -q --connect ./queue --exit-idle 0.5 1 -- cat; \
               until [ -e go ]; do sleep 0.01; done; \
               exec fdpool -q --connect ./queue 16 -- cat",
    };
    let Some(server) = Server::start(&line, &[]) else {
        return;
    };
    let ports = std::fs::read_to_string(server.directory().join("ports")).unwrap_or_default();
    let ports: Vec<u16> = ports.lines().filter_map(|port| port.parse().ok()).collect();
    // The pool that answered at the start ends by itself.
    let is_pool = |pid: &Pid| process::name(*pid) == "fdpool";
    while children(server.pid()).iter().any(is_pool) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut clients = Vec::new();
    for number in 0..WAITING {
        let port = ports[number % ports.len()];
        match load::say(Ipv4Addr::LOCALHOST, port) {
            Ok(client) => clients.push(client),
            Err(error) => {
                eprintln!("after {number} connections: {error}");
                break;
            }
        }
    }
    let waiting = clients.len();
    std::fs::write(server.directory().join("go"), "").expect("a file");
    let start = Instant::now();
    let answered = clients.into_iter().filter_map(|mut client| {
        let mut answer = Vec::new();
        let _ = client.set_read_timeout(Some(Duration::from_secs(60)));
        let read = client.read_to_end(&mut answer);
        read.ok().filter(|_| answer == load::LINE)
    });
    let answered = answered.count();
    let rate = answered as f64 / start.elapsed().as_secs_f64();
    println!("{waiting} that waited: {answered} answered, {rate:.0} a second");
}
