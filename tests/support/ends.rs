//! Ends of queues that a test holds itself.

use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;

use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::*;

/// Queues of both kinds that a socket can be, each as its write end and its read end.
pub fn socket_pairs() -> [(OwnedFd, OwnedFd); 2] {
    [SockType::Stream, SockType::SeqPacket].map(socket_pair)
}

/// The write end and the read end of a pipe.
pub fn pipe_ends() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = std::io::pipe().unwrap();
    (writer.into(), reader.into())
}

/// Standard input.
impl Source for OwnedFd {
    fn give_to(&self, consumer: &mut Command) {
        consumer.stdin(self.try_clone().unwrap());
    }
}

/// A Unix socket without a name.
pub fn unix_socket(kind: SockType) -> OwnedFd {
    socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).unwrap()
}

/// A socket that sends to the name of a consumer, once the consumer has it.
#[track_caller]
pub fn sender_to(name: &str) -> OwnedFd {
    let sender = unix_socket(SockType::Datagram);
    let address = UnixAddr::new(name).unwrap();
    until("the name", || connect(sender.as_raw_fd(), &address).is_ok());
    sender
}

impl Names {
    /// A path, and a name in the abstract namespace.
    pub fn both(&self) -> [String; 2] {
        [self.path(), self.abstract_name()]
    }
}

impl Process {
    /// Ends it by a signal, with whatever status.
    #[track_caller]
    pub fn end_by(&mut self, signal: Signal) {
        self.signal(signal);
        self.wait();
    }

    /// Waits until fdaccept has accepted `count` more connections, which it says with `-v`.
    #[track_caller]
    pub fn until_accepted(&mut self, count: usize) {
        (0..count).for_each(|_| drop(self.line("accepted ")));
    }
}

/// fdaccept whose queue ends in this process.
pub struct Straight {
    pub acceptor: Acceptor,
    queue: OwnedFd,
}

impl Straight {
    pub fn start(fdaccept: Fdaccept) -> Self {
        let (queue, other) = socket_pair(SockType::SeqPacket);
        let deadline = TimeVal::seconds(DEADLINE.as_secs() as i64);
        setsockopt(&queue, sockopt::ReceiveTimeout, &deadline).unwrap();
        let acceptor = fdaccept.stdout(other).start();
        Self { acceptor, queue }
    }

    #[track_caller]
    pub fn receive(&self) -> OwnedFd {
        let mut message = fdtools::queue::receive(&self.queue).unwrap();
        assert_eq!(message.descriptors.len(), 1);
        message.descriptors.pop().unwrap()
    }
}
