//! 200 clients at once that stall, reset, flood, exceed every limit and send half a PROXY header, from
//! many loopback addresses, and that send files that cannot be closed, sockets that linger and FIFOs
//! to whatever Unix socket there is, while a well-behaved one keeps getting its answers. At the end
//! fdaccept has the descriptors and the memory that it had at the start, and each connection is
//! accounted for.
//!
//! 60 seconds, or as many as FDTOOLS_SOAK says. FDTOOLS_SOAK_SEED changes the order of attacks.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::*;
use crate::{ALLOWANCE, ask, memory, setting};
use fdtools::queue::send;
use nix::sys::socket::{SockType, UnixAddr, connect};
use nix::unistd::Pid;
use rustix::net::sockopt::set_socket_linger;

const CLIENTS: u64 = 200;
/// How many addresses attackers have: more than any of these may have connections.
const ADDRESSES: u64 = 20;
/// Nobody may connect from this address.
const DENIED: Ipv4Addr = Ipv4Addr::new(127, 66, 0, 1);
/// Where everybody connects.
const SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
/// How many addresses the well-behaved client has. Its next connection may come before the pool has
/// seen that the last handlers ended, and until then these are in service.
const GOOD_ADDRESSES: u64 = 16;
const MAX_PER_SOURCE: u64 = 4;
/// More than all clients together may have.
const MAX: u64 = 100;
/// No answer takes as long, on a busy machine either.
const PATIENCE: Duration = Duration::from_secs(30);

const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c";

#[test]
fn who_keeps_to_the_rules_is_served_among_200_who_do_not() {
    let name = Names::new().abstract_name();
    let fuse = Fuse::mount();
    let strangers = Strangers {
        listener: Names::new().abstract_name(),
        door: name.clone(),
        file: fuse.as_ref().map(|fuse| &fuse.file),
    };
    let fdaccept = Fdaccept::bound_at(&name).listen(ADDRESS);
    let fdaccept = fdaccept
        .listen(&strangers.listener)
        .options("--rate 1000/1");
    let pool = Pool::on(&name).options("--timeout 1");
    let _pool = pool.slots(MAX as usize, ["cat"]).start();
    soak(fdaccept, false, Some(strangers));
    assert!(fuse.is_none_or(|fuse| fuse.held() == 0), "it was closed");
}

#[test]
fn so_it_is_behind_a_proxy_and_in_a_sandbox() {
    let is_root = nix::unistd::geteuid().is_root();
    let user = if is_root { "--user nobody" } else { "" };
    let proxy = "--proxy-protocol any --proxy-from 127.0.0.0/8 --proxy-timeout 10";
    // nobody may have no access to the build directory.
    let directory = open_dir();
    copy_of("fdpool", directory.path());
    let pool = format!("./fdpool --timeout 1 {MAX} -- cat");
    let fdaccept = Fdaccept::chain(pool.split(' ')).dir(&directory);
    let fdaccept = fdaccept.options(&format!("{proxy} --sandbox {user}"));
    soak(fdaccept.listen(ADDRESS), true, None);
}

fn soak(fdaccept: Fdaccept, proxied: bool, strangers: Option<Strangers<'_>>) {
    let seconds = setting("FDTOOLS_SOAK").unwrap_or(60);
    let seed = setting("FDTOOLS_SOAK_SEED").unwrap_or(1);
    let options = format!(
        "--max {MAX} --max-per-source {MAX_PER_SOURCE} --queue 50 --deny 127.66.0.0/16 \
         --deny 192.0.2.66"
    );
    let fdaccept = fdaccept.options(&options).listen("127.1.1.1:0");
    let mut acceptor = fdaccept.start();

    let site = Site {
        port: acceptor.port,
        proxied,
        strangers,
        is_over: AtomicBool::new(false),
        attacks: AtomicU64::new(0),
    };
    let pid = acceptor.pid();
    let pipes_before = pipes(&open_files(pid));
    site.ask_as_well_behaved(0);
    // Both ends of the next lease stay.
    let start = eventually("the first client is forgotten", || {
        let open = open_files(pid);
        (pipes(&open) == pipes_before + 2).then_some(open)
    });
    // Clients of every kind, so that fdaccept has all the heap that it needs once.
    for kind in 0..KINDS {
        site.attack(kind, &mut Random(seed + kind));
    }
    until("these are forgotten", || open_files(pid) == start);
    let memory_before = memory(pid);

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
        let _ends = Ends(&site.is_over);
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
    let now = memory(pid);
    eprintln!("kB of memory: {memory_before} at the start, {now} at the end");
    assert!(now > 0 && now <= memory_before + ALLOWANCE);

    let log = acceptor.stop();
    let line = log.lines().find(|line| is_counters(line)).unwrap();
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
struct Site<'a> {
    port: u16,
    proxied: bool,
    strangers: Option<Strangers<'a>>,
    is_over: AtomicBool,
    attacks: AtomicU64,
}

/// How many kinds of attacks there are.
const KINDS: u64 = 11;

/// Where local strangers send descriptors, and their file.
struct Strangers<'a> {
    /// A Unix socket for clients.
    listener: String,
    /// Where consumers fetch the queue.
    door: String,
    file: Option<&'a File>,
}

impl Strangers<'_> {
    /// Sends a few messages with descriptors, and closes.
    fn attack(&self, random: &mut Random) -> nix::Result<()> {
        let (kind, name) = match random.below(2) {
            0 => (SockType::Stream, &self.listener),
            _ => (SockType::SeqPacket, &self.door),
        };
        let socket = unix_socket(kind);
        let address = UnixAddr::new_abstract(&name.as_bytes()[1..])?;
        connect(socket.as_raw_fd(), &address)?;
        let (reader, writer) = std::io::pipe().unwrap();
        let (lingers, other) = lingering_for(3);
        let descriptors = match (&self.file, random.below(3)) {
            (Some(file), 0) => vec![file.as_fd(); 3],
            (_, 1) => vec![reader.as_fd(), writer.as_fd()],
            _ => vec![lingers.as_fd(); 2],
        };
        for _ in 0..1 + random.below(3) {
            // It may have been turned away.
            let _ = send(&socket, b"FDTOOLS=1\n", &descriptors);
        }
        // The other side must still be there when fdaccept closes the socket.
        drop(lingers);
        random.pause(200_000);
        drop((socket, other));
        Ok(())
    }
}

impl Site<'_> {
    /// One attack, which may fail.
    fn attack(&self, kind: u64, random: &mut Random) {
        self.attacks.fetch_add(1, Ordering::Relaxed);
        if let (Some(strangers), 9..) = (&self.strangers, kind) {
            let _ = strangers.attack(random);
            return;
        }
        let address = match random.below(20) {
            0 => DENIED,
            _ => Ipv4Addr::new(127, 9, 9, 1 + random.below(ADDRESSES) as u8),
        };
        let Some(mut socket) = self.connect_from(address) else {
            return;
        };
        // Half of the attackers send half a header, also where fdaccept expects none.
        let header = header(address, random.below(65536) as u16, random.below(2) == 0);
        let length = match random.below(2) {
            0 => random.below(header.len() as u64) as usize,
            _ => header.len(),
        };
        let _ = socket.write_all(&header[..length]);
        match kind {
            // Stalls.
            0 => random.pause(2_000_000),
            // Resets, at once or after some bytes.
            1 => reset(&socket),
            2 => {
                let _ = socket.write_all(b"something");
                random.pause(10_000);
                reset(&socket);
            }
            // Floods, and reads nothing.
            3 => {
                let _ = socket.set_write_timeout(Some(Duration::from_millis(300)));
                let _ = socket.write_all(&[b'x'; 1 << 20]);
            }
            // Sends no more, and waits for the end.
            4 => {
                let _ = socket.shutdown(Shutdown::Write);
                let _ = socket.set_read_timeout(Some(Duration::from_secs(2)));
                let _ = socket.read(&mut [0; 100]);
            }
            // Opens too many at once.
            5 => {
                let count = 1 + random.below(20);
                let more: Vec<_> = (0..count).map(|_| self.connect_from(address)).collect();
                random.pause(500_000);
                drop(more);
            }
            // Sends the rest of the header a byte at a time.
            6 => {
                for byte in &header[length..] {
                    let _ = socket.write_all(&[*byte]);
                    random.pause(20_000);
                }
            }
            // Speaks for a client that is denied, or that has too many already.
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
        let socket = try_connect_from(address, (SERVER, self.port).into()).ok()?;
        // Attackers do not wait for ever.
        let _ = socket.set_write_timeout(Some(Duration::from_secs(2)));
        Some(socket)
    }

    /// Asks as one should, and gets the answer.
    #[track_caller]
    fn ask_as_well_behaved(&self, number: u64) {
        let address = Ipv4Addr::new(127, 1, 2, 1 + (number % GOOD_ADDRESSES) as u8);
        let mut socket = try_connect_from(address, (SERVER, self.port).into()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        if self.proxied {
            let port = socket.local_addr().unwrap().port();
            let header = header(address, port, number.is_multiple_of(2));
            socket.write_all(&header).unwrap();
        }
        let request = format!("request {number}\n");
        let answer = ask(&socket, request.as_bytes()).unwrap();
        assert_eq!(answer, request.as_bytes());
    }
}

/// A header of either version that speaks for this client.
fn header(address: Ipv4Addr, port: u16, is_text: bool) -> Vec<u8> {
    if is_text {
        return format!("PROXY TCP4 {address} 127.0.0.1 {port} 80\r\n").into_bytes();
    }
    let addresses = [address.octets(), [127, 0, 0, 1]].concat();
    [V2, &addresses, &port.to_be_bytes(), &[0, 80]].concat()
}

fn reset(socket: &TcpStream) {
    let _ = set_socket_linger(socket, Some(Duration::ZERO));
}

/// What is open, without numbers and inodes: the next lease has others.
fn open_files(pid: Pid) -> Vec<String> {
    let kind = |what: String| what.split('[').next().unwrap().to_owned();
    let open = descriptors(pid).into_iter();
    let mut open: Vec<_> = open.map(|(_, what)| kind(what)).collect();
    open.sort();
    open
}

fn pipes(open: &[String]) -> usize {
    open.iter().filter(|what| *what == "pipe:").count()
}
