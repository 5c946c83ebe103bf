//! PROXY headers: which client they name, malformed and late headers, and what limits, rules and a
//! stop make of them.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::support::*;
use nix::unistd::Pid;

mod bytes;
mod crowds;
mod late;
mod limits;
mod malformed;
mod rules;
mod speakers;
mod stopping;
mod usage;

/// A handler that tells both addresses of its connection, and then echoes.
const WHO: &str = "echo $TCPREMOTEIP $TCPREMOTEPORT $TCPLOCALIP $TCPLOCALPORT; exec cat";

/// How a header of version 2 begins.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The two commands of version 2.
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;

/// A client that proxies speak for, where it connected to, and how [`WHO`] tells it.
const CLIENT: &str = "192.0.2.1:51000";
const SERVER: &str = "198.51.100.7:443";
const TOLD: &str = "192.0.2.1 51000 198.51.100.7 443";

/// The options of every fdaccept here.
const RIGHT: [&str; 4] = ["--proxy-protocol", "any", "--proxy-from", "127.0.0.1"];

/// More time for a header than any test takes.
const PATIENT: [&str; 2] = ["--proxy-timeout", "1000"];

/// All of that, within a script.
const OPTIONS: &str =
    "--proxy-protocol any --proxy-from 127.0.0.1 --proxy-timeout 1000 127.0.0.1:0";

/// Lets a script wait for a file.
const UNTIL_GO: &str = "until [ -e go ]; do sleep 0.02; done";

/// How version 1 begins.
const BEGUN: &[u8] = b"PROXY ";

// Headers.

/// What makes a header of a client and a server.
type Make = fn(&str, &str) -> Vec<u8>;

fn v1(client: &str, server: &str) -> Vec<u8> {
    let (client, server) = (address(client), address(server));
    let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
    let ips = format!("{} {}", client.ip(), server.ip());
    let ports = format!("{} {}", client.port(), server.port());
    format!("PROXY {family} {ips} {ports}\r\n").into_bytes()
}

fn v2(client: &str, server: &str) -> Vec<u8> {
    v2_with(client, server, &[])
}

/// A header of version 2 with more behind the addresses.
fn v2_with(client: &str, server: &str, more: &[u8]) -> Vec<u8> {
    let (client, server) = (address(client), address(server));
    let bytes = |ip| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let rest = [
        &bytes(client.ip())[..],
        &bytes(server.ip()),
        &client.port().to_be_bytes(),
        &server.port().to_be_bytes(),
        more,
    ];
    let family = if client.is_ipv4() { 0x11 } else { 0x21 };
    v2_of(PROXY, family, &rest.concat())
}

/// A header of version 2 with any command and family.
fn v2_of(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [SIGNATURE, &[command, family], &length, rest].concat()
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A vector as version 2 has it behind the addresses (PP2_TYPE_NOOP), with a value of this length.
fn padding(length: u16) -> Vec<u8> {
    let [high, low] = length.to_be_bytes();
    [&[4, high, low][..], &vec![b'\n'; usize::from(length)]].concat()
}

fn longest() -> Vec<u8> {
    let header = v2_with(CLIENT, SERVER, &padding(u16::MAX - 12 - 3));
    assert_eq!(header.len(), 16 + 65_535);
    header
}

/// A header of each version for [`CLIENT`].
fn headers() -> [Vec<u8>; 2] {
    [v1(CLIENT, SERVER), v2(CLIENT, SERVER)]
}

/// Headers of a proxy that speaks for itself.
fn local_headers() -> [Vec<u8>; 2] {
    [b"PROXY UNKNOWN\r\n".to_vec(), v2_of(LOCAL, 0, b"")]
}

/// Each `--proxy-protocol` with a header that it takes.
fn both_versions() -> [(&'static str, Vec<u8>); 4] {
    let [v1, v2] = headers();
    [
        ("v1", v1.clone()),
        ("any", v1),
        ("v2", v2.clone()),
        ("any", v2),
    ]
}

// fdaccept.

/// fdaccept with a named queue. Its proxy is 127.0.0.1.
#[track_caller]
fn proxied(version: &str, options: &[&str]) -> Acceptor {
    proxied_at(ADDRESS, version, options)
}

#[track_caller]
fn proxied_at(address: &str, version: &str, options: &[&str]) -> Acceptor {
    let right = ["--proxy-protocol", version, "--proxy-from", "127.0.0.1"];
    let fdaccept = Fdaccept::bound().args(right).args(options);
    fdaccept.listen(address).start()
}

/// [`proxied`] with all the time for headers.
#[track_caller]
fn patient(version: &str, options: &[&str]) -> Acceptor {
    proxied(version, &[&PATIENT[..], options].concat())
}

/// A script whose fdaccept has [`OPTIONS`] where it says so.
#[track_caller]
fn script_with(text: &str) -> Acceptor {
    Fdaccept::sh(&text.replace("OPTIONS", OPTIONS)).start()
}

/// One after another, fdaccept with each `--proxy-protocol`, a pool, and a header that it takes.
fn each_version(options: &[&str]) -> impl Iterator<Item = (Acceptor, Pool, Vec<u8>)> {
    both_versions().into_iter().map(|(version, header)| {
        let (acceptor, pool) = proxied(version, options).with_pool();
        (acceptor, pool, header)
    })
}

impl Acceptor {
    fn who(&self) -> Pool {
        self.pool_of(4, WHO)
    }

    fn with_pool(self) -> (Self, Pool) {
        let pool = self.who();
        (self, pool)
    }

    /// A client that has sent this, or was reset meanwhile.
    fn says(&self, bytes: &[u8]) -> Client {
        let client = self.client();
        let _ = (&client.0).write_all(bytes);
        client
    }

    /// The same, all of it there before fdaccept sees the client: it is in time however slow we are.
    fn has_heard(&self, bytes: &[u8]) -> Client {
        self.at_once(&[], || self.says(bytes))
    }

    /// Checks that the client of a header of [`CLIENT`] is served.
    #[track_caller]
    fn serves(&self, header: &[u8]) {
        expect_told(self.has_heard(header), TOLD, b"");
    }

    /// Waits until fdaccept has done its work, and sleeps.
    #[track_caller]
    fn until_asleep(&self) {
        until_state(self.pid(), 'S');
    }

    /// Clients that have sent this and no more, once all of them were accepted after `before`
    /// others.
    #[track_caller]
    fn stalled(&mut self, count: usize, bytes: &[u8], before: usize) -> Vec<Client> {
        let stalled: Vec<_> = (0..count).map(|_| self.says(bytes)).collect();
        self.until_counted("accepted", before + count);
        stalled
    }

    /// The first clients, once they have begun a header of version 1 and were accepted.
    #[track_caller]
    fn begun(&mut self, count: usize) -> Vec<Client> {
        self.stalled(count, BEGUN, 0)
    }
}

// Clients.

#[track_caller]
fn write(client: &Client, bytes: &[u8]) {
    (&client.0).write_all(bytes).unwrap();
}

/// Completes what has [`BEGUN`], and sends `data` with it.
#[track_caller]
fn complete(client: &Client, data: &[u8]) {
    write(client, &[&v1(CLIENT, SERVER)[BEGUN.len()..], data].concat());
}

/// Sends no more. Checks that `line` and then `data` is all that comes back.
#[track_caller]
fn expect_told(client: Client, line: &str, data: &[u8]) {
    client.end();
    assert_all_told(client, line, data);
}

#[track_caller]
fn assert_all_told(client: Client, line: &str, data: &[u8]) {
    let mut told = Vec::new();
    (&client.0).read_to_end(&mut told).unwrap();
    let expected = [line.as_bytes(), b"\n", data].concat();
    let shown = |bytes: &[u8]| bytes.escape_ascii().to_string();
    assert!(
        told == expected,
        "{}, not {}",
        shown(&told),
        shown(&expected)
    );
}

/// How [`WHO`] tells the addresses of the connection itself.
fn own(client: &Client) -> String {
    let (from, to) = (
        client.0.local_addr().unwrap(),
        client.0.peer_addr().unwrap(),
    );
    let ip = from.ip().to_canonical();
    format!("{ip} {} {} {}", from.port(), to.ip(), to.port())
}

/// How many bytes of a client the other end has not read; `None` if the kernel tells of no such
/// connection. IPv4 only.
fn unread(client: &Client) -> Option<usize> {
    let port = |address: SocketAddr| format!(":{:04X}", address.port());
    let server = port(client.0.peer_addr().unwrap());
    let client = port(client.0.local_addr().unwrap());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let is_it = words[1].ends_with(&server) && words[2].ends_with(&client);
        let (_, waiting) = words[4].split_once(':')?;
        is_it.then(|| usize::from_str_radix(waiting, 16).unwrap())
    })
}

#[track_caller]
fn until_all_is_read(client: &Client) {
    until("all to be read", || unread(client) == Some(0));
}

#[track_caller]
fn has_taken(start: Instant, milliseconds: u64) {
    let passed = start.elapsed();
    let least = Duration::from_millis(milliseconds);
    assert!(passed >= least, "after {passed:?}");
}

/// The descriptors of a process, once they do not change any more.
#[track_caller]
fn settled_descriptors(pid: Pid) -> Vec<(i32, String)> {
    settled(pid);
    descriptors(pid)
}
