//! Watching fdaccept: its counters, its use of the CPU, and what comes out of its queue.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use fdtools::queue::Receiver;
use fdtools::queue::message::{self, Info, Variable};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags};

use super::*;

/// The number behind `what` in a line of counters.
pub fn number(line: &str, what: &str) -> Option<usize> {
    let (_, rest) = line.split_once(&format!("{what} "))?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

impl Process {
    /// The line of counters that fdaccept writes on USR1.
    #[track_caller]
    pub fn counters(&mut self) -> String {
        self.signal(Signal::SIGUSR1);
        self.line(", held up by rate ")
    }

    #[track_caller]
    pub fn counted(&mut self, what: &str) -> usize {
        number(&self.counters(), what).unwrap()
    }

    #[track_caller]
    pub fn until_counted(&mut self, what: &str, count: usize) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let line = self.counters();
            if number(&line, what) == Some(count) {
                return;
            }
            assert!(Instant::now() < deadline, "{what} {count}, but {line}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The child that has stopped itself, as `kill -STOP $$` does.
    #[track_caller]
    pub fn stopped_child(&self) -> Pid {
        eventually("a stopped child", || {
            let children = self.children();
            children.into_iter().find(|pid| state(*pid) == Some('T'))
        })
    }
}

/// Checks that a process that only waits uses no CPU.
#[track_caller]
pub fn is_idle(pid: Pid) {
    are_idle(&[pid], Duration::from_millis(150));
}

/// A connection that a consumer in this process has taken.
pub struct Taken {
    pub connection: OwnedFd,
    pub lease: Option<OwnedFd>,
    pub info: Info,
}

impl Taken {
    pub fn text(&self, variable: Variable) -> Option<&str> {
        let value = self.info.get(variable)?;
        Some(std::str::from_utf8(value).unwrap())
    }

    pub fn number(&self) -> Option<usize> {
        let text = self.text(message::TCP_CONN_NUM)?;
        Some(text.parse().unwrap())
    }
}

pub fn try_take(receiver: &Receiver) -> Option<Taken> {
    let (connection, lease, info) = take_apart(receiver)?;
    Some(Taken {
        connection,
        lease,
        info,
    })
}

#[track_caller]
pub fn take(receiver: &Receiver) -> Taken {
    let deadline = Instant::now() + DEADLINE;
    let mut fds = [PollFd::new(receiver, PollFlags::IN)];
    // Another consumer may be faster.
    while Instant::now() < deadline {
        poll::wait(&mut fds, Some(deadline)).unwrap();
        if let Some(taken) = try_take(receiver) {
            return taken;
        }
    }
    panic!("still waiting for a connection");
}

#[track_caller]
pub fn nothing_comes(receiver: &Receiver) {
    stays("no connection comes", || try_take(receiver).is_none());
}

impl Acceptor {
    pub fn pool_of(&self, size: usize, handler: &str) -> Pool {
        Pool::on(self).slots(size, sh_c(handler)).start()
    }

    pub fn clients(&self, count: usize) -> Vec<Client> {
        (0..count).map(|_| self.client()).collect()
    }

    /// A client that a handler such as `cat` serves.
    #[track_caller]
    pub fn served_client(&self) -> Client {
        let client = self.client();
        client.expect_served();
        client
    }

    /// Its first port of 127.0.0.1.
    pub fn server(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// A client with this address of its own, which may be turned away at once.
    pub fn try_client_from(&self, from: impl Into<IpAddr>) -> std::io::Result<Client> {
        try_connect_from(from, self.server()).map(Client)
    }

    #[track_caller]
    pub fn client_from(&self, from: impl Into<IpAddr>) -> Client {
        self.try_client_from(from).unwrap()
    }

    /// A client that may be turned away at once.
    pub fn try_client(&self) -> std::io::Result<Client> {
        self.try_client_from([127, 0, 0, 1])
    }
}

/// That a client is reset, when it connects or later.
#[track_caller]
pub fn is_reset(client: std::io::Result<Client>) {
    let end = client.and_then(|Client(mut stream)| stream.read(&mut [0]));
    let end = end.map_err(|error| error.kind());
    assert_eq!(end, Err(ErrorKind::ConnectionReset));
}

/// That a client is neither answered nor turned away for a while.
#[track_caller]
pub fn is_left_waiting(client: &Client) {
    stays("the client waits", || !client.is_answered());
}
