//! 200 clients at once that stall, reset, flood, exceed every limit and send half a PROXY header, from
//! many loopback addresses, while a well-behaved one keeps getting its answers. At the end fdaccept has
//! the descriptors and the memory that it had at the start, and each connection is accounted for.
//!
//! 60 seconds, or as many as FDTOOLS_SOAK says; FDTOOLS_SOAK_SEED is for another order of things.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::*;
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect as connect_to, setsockopt, socket,
    sockopt,
};
use nix::unistd::Pid;

const CLIENTS: u64 = 200;
/// Where they come from: more of them than any of these may have connections.
const ADDRESSES: u64 = 20;
/// From there nobody may connect.
const DENIED: Ipv4Addr = Ipv4Addr::new(127, 66, 0, 1);
/// Where the well-behaved one comes from.
const GOOD: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const MAX_PER_SOURCE: u64 = 4;
/// More than all of them together can have.
const MAX: u64 = 100;
/// What memory may differ by, in kB: a few pages of heap that it has not used before.
const ALLOWANCE: u64 = 256;
/// No answer takes as long, on a machine that others use as well.
const PATIENCE: Duration = Duration::from_secs(30);

const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c";

#[test]
fn who_keeps_to_the_rules_is_served_among_200_who_do_not() {
    soak("--rate 1000/1", false);
}

#[test]
fn so_it_is_behind_a_proxy_and_in_a_sandbox() {
    let user = if nix::unistd::geteuid().is_root() {
        "--user nobody"
    } else {
        ""
    };
    let proxy = "--proxy-protocol any --proxy-from 127.0.0.0/8 --proxy-timeout 3";
    soak(&format!("{proxy} --sandbox {user}"), true);
}

fn soak(options: &str, proxied: bool) {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
    };
    let seconds = number("FDTOOLS_SOAK").unwrap_or(60);
    let seed = number("FDTOOLS_SOAK_SEED").unwrap_or(1);
    // Copied, since another user may not be allowed to look where this was built.
    let directory = tempfile::tempdir().unwrap();
    let text = format!(
        "exec fdaccept --max {MAX} --max-per-source {MAX_PER_SOURCE} --queue 50 --deny 127.66.0.0/16 \
         --deny 192.0.2.66 {options} 127.0.0.1:0 127.1.1.1:0 -- ./fdpool --timeout 1 {MAX} -- cat"
    );
    let pool = directory.path().join("fdpool");
    std::fs::copy(bin_dir().join("fdpool"), pool).unwrap();
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(directory.path(), everybody).unwrap();
    let mut process = Process::start(script("sh", &text).current_dir(directory.path()));
    let port = process.port();

    let site = Site {
        port,
        proxied,
        is_over: AtomicBool::new(false),
        attacks: AtomicU64::new(0),
    };
    let pid = process.pid();
    let pipes_before = pipes(&open_files(pid));
    site.ask_as_well_behaved(0);
    // Both ends of the next lease are what stays.
    let start = eventually("the first client is forgotten", || {
        let open = open_files(pid);
        (pipes(&open) == pipes_before + 2).then_some(open)
    });
    // What heap it needs once and for all it has after some clients of every kind.
    for what in 0..KINDS {
        site.attack(what, &mut Random(seed + what));
    }
    until("these are forgotten", || open_files(pid) == start);
    let memory = anonymous(pid);

    let (mut answers, mut slowest) = (0, Duration::ZERO);
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let site = &site;
            let mut random = Random(seed * 1_000_003 + client);
            let attacker = move || {
                while !site.is_over.load(Ordering::Relaxed) {
                    site.attack(random.below(KINDS), &mut random);
                    random.pause(100_000);
                }
            };
            let thread = std::thread::Builder::new().stack_size(128 * 1024);
            thread.spawn_scoped(scope, attacker).unwrap();
        }
        // Also where an answer does not come.
        let _over = Over(&site.is_over);
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            let asked = Instant::now();
            site.ask_as_well_behaved(answers);
            slowest = slowest.max(asked.elapsed());
            answers += 1;
        }
    });
    let attacks = site.attacks.load(Ordering::Relaxed);
    eprintln!("{answers} answers, the slowest after {slowest:?}, among {attacks} attacks");
    until("all are forgotten", || open_files(pid) == start);
    let now = anonymous(pid);
    eprintln!("kB of memory: {memory} at the start, {now} at the end");
    assert!(now <= memory + ALLOWANCE);

    process.signal(Signal::SIGTERM);
    let (status, log) = process.finish();
    assert!(status.success(), "{status}: {log}");
    let line = log
        .lines()
        .find(|line| line.contains(": accepted "))
        .unwrap();
    eprintln!("{line}");
    let count = |name: &str| -> u64 {
        let (_, rest) = line.split_once(&format!("{name} ")).unwrap();
        rest.split(',').next().unwrap().parse().unwrap()
    };
    let refused = count("by rule") + count("by limit") + count("bad header");
    assert_eq!(count("accepted"), count("passed") + refused);
    assert_eq!(count("passed"), count("taken"));
    assert!(count("by rule") > 0 && count("by limit") > 0);
    assert_eq!(count("bad header") > 0, proxied);
}

/// What is attacked.
struct Site {
    port: u16,
    proxied: bool,
    is_over: AtomicBool,
    attacks: AtomicU64,
}

/// Tells the others that it is over.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How many kinds of attacks there are.
const KINDS: u64 = 9;

impl Site {
    /// One attack. That it fails is what it is for.
    fn attack(&self, kind: u64, random: &mut Random) {
        self.attacks.fetch_add(1, Ordering::Relaxed);
        let address = match random.below(20) {
            0 => DENIED,
            _ => Ipv4Addr::new(127, 9, 9, 1 + random.below(ADDRESSES) as u8),
        };
        let Some(mut socket) = self.connect_from(address) else {
            return;
        };
        // Half of them say half a header; there, too, where nobody expects one.
        let header = header(address, random.below(65536) as u16, random.below(2) == 0);
        let length = match random.below(2) {
            0 => random.below(header.len() as u64) as usize,
            _ => header.len(),
        };
        let _ = socket.write_all(&header[..length]);
        match kind {
            // Stalls.
            0 => random.pause(2_000_000),
            // Resets, at once or after something was said.
            1 => reset(&socket),
            2 => {
                let _ = socket.write_all(b"something");
                random.pause(10_000);
                reset(&socket);
            }
            // Says things and listens to nothing.
            3 => {
                let _ = socket.set_write_timeout(Some(Duration::from_millis(300)));
                let _ = socket.write_all(&[b'x'; 1 << 20]);
            }
            // Says nothing more, and waits for the end.
            4 => {
                let _ = socket.shutdown(Shutdown::Write);
                let _ = socket.set_read_timeout(Some(Duration::from_secs(2)));
                let _ = socket.read(&mut [0; 100]);
            }
            // Comes with too many at once.
            5 => {
                let count = 1 + random.below(20);
                let more: Vec<_> = (0..count).map(|_| self.connect_from(address)).collect();
                random.pause(500_000);
                drop(more);
            }
            // Says it a byte at a time.
            6 => {
                for byte in &header[length..] {
                    let _ = socket.write_all(&[*byte]);
                    random.pause(20_000);
                }
            }
            // Speaks for whom nothing is allowed, or too much already.
            7 => {
                let of = Ipv4Addr::new(192, 0, 2, 66 + random.below(2) as u8);
                let mut other = self.connect_from(address);
                if let Some(other) = &mut other {
                    let _ = other.write_all(&self::header(of, 1, true));
                }
                random.pause(300_000);
            }
            // Nonsense.
            _ => {
                let bytes: Vec<u8> = (0..200).map(|_| random.below(256) as u8).collect();
                let _ = socket.write_all(&bytes);
                random.pause(100_000);
            }
        }
    }

    fn connect_from(&self, address: Ipv4Addr) -> Option<TcpStream> {
        let family = AddressFamily::Inet;
        let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).ok()?;
        bind(
            socket.as_raw_fd(),
            &SockaddrIn::from(SocketAddrV4::new(address, 0)),
        )
        .ok()?;
        // An attacker's patience is limited, too.
        let patience = nix::sys::time::TimeVal::new(2, 0);
        setsockopt(&socket, sockopt::SendTimeout, &patience).ok()?;
        let to = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 1), self.port);
        connect_to(socket.as_raw_fd(), &SockaddrIn::from(to)).ok()?;
        Some(TcpStream::from(socket))
    }

    /// Asks as one should, and gets the answer.
    #[track_caller]
    fn ask_as_well_behaved(&self, number: u64) {
        let mut socket = TcpStream::connect((GOOD, self.port)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        if self.proxied {
            let port = socket.local_addr().unwrap().port();
            socket
                .write_all(&header(GOOD, port, number.is_multiple_of(2)))
                .unwrap();
        }
        let request = format!("request {number}\n");
        socket.write_all(request.as_bytes()).unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, request);
    }
}

/// A header of either version that speaks for this client.
fn header(address: Ipv4Addr, port: u16, is_text: bool) -> Vec<u8> {
    if is_text {
        format!("PROXY TCP4 {address} 127.0.0.1 {port} 80\r\n").into_bytes()
    } else {
        {
            let addresses = [address.octets(), [127, 0, 0, 1]].concat();
            [V2, &addresses, &port.to_be_bytes(), &[0, 80]].concat()
        }
    }
}

fn reset(socket: &TcpStream) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    let _ = setsockopt(socket, sockopt::Linger, &linger);
}

/// What is open, but for numbers and inodes, which the next lease has others of.
fn open_files(pid: Pid) -> Vec<String> {
    let open = descriptors(pid).into_iter();
    let mut open: Vec<_> = open
        .map(|(_, what)| what.split('[').next().unwrap().to_owned())
        .collect();
    open.sort();
    open
}

fn pipes(open: &[String]) -> usize {
    open.iter().filter(|what| *what == "pipe:").count()
}

/// Memory of its own, in kB.
fn anonymous(pid: Pid) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let number = line.unwrap().split_whitespace().nth(1);
    number.unwrap().parse().unwrap()
}
