//! Limits: how many connections are in service at once and how fast they come, leases, and what
//! becomes of clients that are too many.

use std::io::ErrorKind;

use crate::support::*;
use fdtools::queue::Receiver;
use nix::unistd::Pid;

mod cost;
mod in_service;
mod leases;
mod other_programs;
mod per_client;
mod rate;
mod when_full;

/// A handler that tells its process id and the count of its client, and then echoes.
const COUNT: &str = "echo $$ $TCPCONNNUM; exec cat";

/// [`COUNT`] within a script.
const COUNT_IN_SCRIPT: &str = "sh -c 'echo $$ $TCPCONNNUM; exec cat'";

#[track_caller]
fn limited(options: &[&str]) -> Acceptor {
    Fdaccept::bound().args(options).start()
}

#[track_caller]
fn served(options: &[&str], size: usize) -> (Acceptor, Pool) {
    let acceptor = limited(options);
    let pool = acceptor.pool(size);
    (acceptor, pool)
}

impl Acceptor {
    fn pool(&self, size: usize) -> Pool {
        self.pool_of(size, COUNT)
    }

    /// `fdrecv OPTIONS -- WORDS`
    fn fdrecv(&self, options: &[&str], words: &[&str]) -> Process {
        let mut command = fdrecv_on(self);
        command.args(options).arg("--").args(words).start()
    }

    #[track_caller]
    fn session(&self) -> Session {
        Session::of(self.client())
    }

    fn try_session(&self) -> Option<Session> {
        Session::try_of(self.try_client().ok()?)
    }

    /// The count that a further client gets by way of a consumer in this process. The client is
    /// gone afterwards.
    fn count(&self, receiver: &Receiver) -> usize {
        let _client = self.client();
        take(receiver).number().unwrap()
    }

    /// The count that a further client gets by way of a pool of [`COUNT`].
    fn count_by_pool(&self) -> usize {
        let session = self.session();
        let number = session.number;
        session.finish();
        number
    }
}

struct Session {
    client: Client,
    pid: Pid,
    number: usize,
}

impl Session {
    #[track_caller]
    fn of(client: Client) -> Self {
        Self::try_of(client).unwrap()
    }

    fn try_of(client: Client) -> Option<Self> {
        match client.0.peek(&mut [0]) {
            Ok(1) => {}
            Ok(_) => return None,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
            Err(error) => panic!("{error}"),
        }
        let line = client.line();
        let (pid, number) = line.split_once(' ').unwrap();
        Some(Self {
            client,
            pid: Pid::from_raw(pid.parse().unwrap()),
            number: number.parse().unwrap(),
        })
    }

    #[track_caller]
    fn finish(self) {
        self.client.finish();
    }
}

/// Checks what `count` tells while this many others are in service: never less than one more. A
/// service that has just ended may count for a moment longer.
#[track_caller]
fn are_held(others: usize, mut count: impl FnMut() -> usize) {
    until("the count", || count() == others + 1);
    stays("the leases are held", || count() > others);
}

#[track_caller]
fn none_is_held(mut count: impl FnMut() -> usize) {
    until("the lease to be free", || count() == 1);
}

/// Checks that fdaccept with these options passes one of 5 connections, and waits without using CPU.
#[track_caller]
fn assert_waits_idle(options: &[&str]) {
    let acceptor = limited(options);
    let receiver = acceptor.receiver();
    let _clients = acceptor.clients(5);
    let _taken = take(&receiver);
    is_idle(acceptor.pid());
    nothing_comes(&receiver);
}
