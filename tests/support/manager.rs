//! A stand-in for a service manager (sd_notify(3)).

use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use rustix::event::PollFlags;

use super::*;

/// Receives one message. With a time limit that is not begun again by itself after a signal.
#[track_caller]
pub fn receive_message(socket: &UnixDatagram, buffer: &mut [u8]) -> usize {
    loop {
        match socket.recv(buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            received => return received.unwrap(),
        }
    }
}

/// What a watchdog waits for (sd_watchdog_enabled(3)).
pub const ALIVE: &str = "WATCHDOG=1";
/// The time of a watchdog that hears something all the time, for WATCHDOG_USEC.
pub const OFTEN: &str = "100000";
/// Twice as many messages as may wait in a socket (net.unix.max_dgram_qlen), as it usually is.
const BEATS: usize = 20;

/// One message to a service manager, line by line.
#[derive(Debug)]
pub struct Told(pub Vec<String>);

impl Told {
    pub fn is(&self, line: &str) -> bool {
        self.0.iter().any(|other| other == line)
    }

    /// What comes after this, if a line begins so.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().find_map(|line| line.strip_prefix(name))
    }
}

/// It reads what it is told when the test does.
pub struct Manager {
    pub socket: UnixDatagram,
    /// For NOTIFY_SOCKET.
    pub name: String,
    pub names: Names,
}

impl Manager {
    /// One at a path.
    pub fn at_path() -> Self {
        let names = Names::new();
        let name = names.text("notify");
        let socket = UnixDatagram::bind(&name).unwrap();
        Self::new(names, name, socket)
    }

    /// One in the abstract namespace.
    pub fn at_name() -> Self {
        let names = Names::new();
        let name = names.abstract_name();
        let address = SocketAddr::from_abstract_name(&name[1..]).unwrap();
        Self::new(names, name, UnixDatagram::bind_addr(&address).unwrap())
    }

    fn new(names: Names, name: String, socket: UnixDatagram) -> Self {
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self {
            socket,
            name,
            names,
        }
    }

    /// The next message.
    #[track_caller]
    pub fn next(&self) -> Told {
        let mut message = [0; 4096];
        let length = receive_message(&self.socket, &mut message);
        let text = String::from_utf8(message[..length].to_vec()).unwrap();
        Told(text.lines().map(str::to_owned).collect())
    }

    /// The next message that has this line; what comes before it is only the status.
    #[track_caller]
    pub fn next_with(&self, line: &str) -> Told {
        eventually(line, || {
            let told = self.next();
            let is_status = told.value("STATUS=").is_some();
            assert!(is_status || told.is(line), "{told:?} before {line}");
            told.is(line).then_some(told)
        })
    }

    /// Waits for a message that has this line, whatever comes before it.
    #[track_caller]
    pub fn until_told(&self, line: &str) {
        until(line, || self.next().is(line));
    }

    /// Waits for a status that begins so.
    #[track_caller]
    pub fn until_status(&self, expected: &str) {
        until(expected, || {
            let told = self.next();
            let status = told.value("STATUS=");
            status.is_some_and(|status| status.starts_with(expected))
        });
    }

    /// Leaves no room for a message, as if it had not read for long.
    pub fn fill(&self) {
        let send_all = || {
            let socket = UnixDatagram::unbound().unwrap();
            socket.set_nonblocking(true).unwrap();
            let mut sent = 0;
            while socket.send_to(b"X_FULL=1", &self.name).is_ok() {
                sent += 1;
            }
            sent
        };
        // One sender may reach its own limit first.
        while send_all() > 0 {}
    }

    /// Waits until it was told so often that somebody is alive that what waited before is not it.
    #[track_caller]
    pub fn until_beats(&self) {
        for _ in 0..BEATS {
            self.until_told(ALIVE);
        }
    }

    /// Everything that it was told and has not read.
    pub fn rest(&self) -> Vec<Told> {
        let next = || self.has_something().then(|| self.next());
        std::iter::from_fn(next).collect()
    }

    pub fn has_something(&self) -> bool {
        !poll::ready(self.socket.as_fd(), PollFlags::IN).is_empty()
    }
}
