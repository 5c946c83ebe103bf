//! What grows with fdtools and what does not: slots, connections that wait, connections that are open,
//! memory, and how long it takes to start.
//!
//! ```text
//! cargo bench --bench scale
//! ```

mod hold;
#[path = "../peers/load.rs"]
mod load;
#[path = "../peers/server.rs"]
mod server;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use server::{Line, Server, children};

const LENGTH: Duration = Duration::from_secs(3);
/// As many connections as one process has descriptors for, on both sides, at most.
const OPEN: usize = 10_000;
const WAITING: usize = 5_000;
const STARTS: usize = 300;

fn main() {
    if std::env::args().any(|argument| argument == "--hold") {
        hold::run();
    }
    // Both ends of every open connection of this benchmark are counted.
    fdtools::limit::Limit::raise();
    slots();
    memory();
    waiting();
    open();
    start_of_fdrecv();
}

macro_rules! pool_of {
    ($($slots:literal),*) => {
        [$(($slots, Line {
            name: concat!("fdpool ", $slots),
            needs: &[],
            text: concat!("fdaccept -q 127.0.0.1:PORT -- fdpool -q ", $slots, " -- cat & wait"),
        })),*]
    };
}

/// A connection costs the same whatever the number of slots.
fn slots() {
    println!("| slots | all started after ms | connections/s | switches each |");
    println!("| ---: | ---: | ---: | ---: |");
    for (count, line) in pool_of!(1, 16, 256, 1000) {
        let start = Instant::now();
        let Some(server) = Server::start(&line) else {
            continue;
        };
        let pool = pool_of(&server);
        while children(pool).len() < count {
            std::thread::sleep(Duration::from_millis(1));
        }
        let started = start.elapsed();
        let everybody = || [&children(pool)[..], &[pool], &children(server.pid())[..]].concat();
        let everybody = everybody();
        let switches = || everybody.iter().map(|pid| switches(*pid)).sum::<u64>();
        let before = switches();
        let load = load::run(server.port, 16, LENGTH);
        let served = load.latencies.len() as f64;
        println!(
            "| {count} | {:.0} | {:.0} | {:.1} |",
            started.as_secs_f64() * 1e3,
            served / load.elapsed.as_secs_f64(),
            (switches() - before) as f64 / served,
        );
    }
}

/// The pool of the server `fdaccept … -- fdpool …`, which a shell waits for.
fn pool_of(server: &Server) -> Pid {
    let acceptor = children(server.pid())[0];
    children(acceptor)[0]
}

/// How often a process was switched to (proc_pid_status(5)).
fn switches(pid: Pid) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let lines = status.lines().filter(|line| line.contains("ctxt_switches"));
    let numbers = lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    numbers.sum()
}

/// Proportional set sizes, in KiB.
fn memory() {
    let [(_, line), ..] = pool_of!(16);
    let Some(server) = Server::start(&line) else {
        return;
    };
    load::run(server.port, 16, Duration::from_millis(500));
    let pool = pool_of(&server);
    let slots = children(pool);
    let sum: u64 = slots.iter().map(|slot| proportional(*slot)).sum();
    println!(
        "\nKiB of memory: fdaccept {}, fdpool {}, a waiting slot {}",
        proportional(children(server.pid())[0]),
        proportional(pool),
        sum / slots.len() as u64
    );
}

fn proportional(pid: Pid) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("Pss:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    number.unwrap_or_default()
}

/// How fast those are served that wait in the queue and in two backlogs.
fn waiting() {
    let line = Line {
        name: "a queue that nobody serves for a while",
        needs: &[],
        text: "fdaccept -q --bind ./queue --port-file ./ports 127.0.0.1:PORT 127.0.0.1:0 & \
               fdpool -q --connect ./queue --exit-idle 0.5 1 -- cat; \
               until [ -e go ]; do sleep 0.01; done; \
               exec fdpool -q --connect ./queue 16 -- cat",
    };
    let Some(server) = Server::start(&line) else {
        return;
    };
    let ports = std::fs::read_to_string(server.directory().join("ports")).unwrap_or_default();
    let ports: Vec<u16> = ports.lines().filter_map(|port| port.parse().ok()).collect();
    // The pool that answered at the start goes by itself.
    let is_pool = |pid: &Pid| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
        name.is_ok_and(|name| name.trim() == "fdpool")
    };
    while children(server.pid()).iter().any(is_pool) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut clients = Vec::new();
    for number in 0..WAITING {
        let port = ports[number % ports.len()];
        let mut client =
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("room in a backlog");
        let asked = client.write_all(b"waiting\n");
        asked
            .and_then(|()| client.shutdown(Shutdown::Write))
            .expect("an open connection");
        clients.push(client);
    }
    std::fs::write(server.directory().join("go"), "").expect("a file");
    let start = Instant::now();
    let answered = clients.into_iter().filter_map(|mut client| {
        let mut answer = String::new();
        let _ = client.set_read_timeout(Some(Duration::from_secs(60)));
        let read = client.read_to_string(&mut answer);
        read.ok().filter(|_| answer == "waiting\n")
    });
    let answered = answered.count();
    let rate = answered as f64 / start.elapsed().as_secs_f64();
    println!("\n{WAITING} that waited: {answered} answered, {rate:.0} a second");
}

/// Connections that stay open, held by two workers.
fn open() {
    let line = Line {
        name: "workers that hold connections",
        needs: &[],
        text: "fdaccept -q 127.0.0.1:PORT -- fdpool -q --worker 2 -- \"$BENCH\" --hold & wait",
    };
    let Some(server) = Server::start(&line) else {
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
        "\n{} connections open: {answered} of them answered, after {:.1} s",
        clients.len(),
        start.elapsed().as_secs_f64()
    );
}

/// What fdrecv adds to starting a command.
fn start_of_fdrecv() {
    let line = Line {
        name: "a queue for fdrecv",
        needs: &[],
        text: "fdaccept -q --bind ./queue 127.0.0.1:PORT & \
               fdrecv --connect ./queue -- cat; wait",
    };
    let Some(server) = Server::start(&line) else {
        return;
    };
    let queue = server.directory().join("queue");
    let fdrecv = env!("CARGO_BIN_EXE_fdrecv");
    let time = |command: &mut Command| {
        let start = Instant::now();
        let _ = command.status();
        start.elapsed().as_secs_f64() * 1e3
    };
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let _client = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port));
        let mut command = Command::new(fdrecv);
        with.push(time(
            command
                .arg("--connect")
                .arg(&queue)
                .args(["--", "/bin/true"]),
        ));
        without.push(time(&mut Command::new("/bin/true")));
    }
    for times in [&mut with, &mut without] {
        times.sort_by(f64::total_cmp);
    }
    let (with, without) = (with[STARTS / 2], without[STARTS / 2]);
    println!(
        "\nfdrecv: {with:.2} ms with it, {without:.2} ms the command alone: it adds {:.2} ms",
        with - without
    );
}
