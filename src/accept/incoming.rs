//! A connection that was accepted and not let in yet.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::net::{SocketAddrAny, getsockname};

use crate::accept::client::Client;
use crate::accept::listen::Listener;
use crate::queue::connection;
use crate::queue::message::Info;

/// A connection, and what is known of it so far.
#[derive(Debug)]
pub(crate) struct Incoming {
    /// The connection itself.
    pub connection: OwnedFd,
    /// Who is at the other end.
    pub client: Client,
    /// The address that the client connected to, over TCP, if it was told.
    pub local: Option<SocketAddr>,
    /// The listener that it came from, as the log calls it.
    pub listener: Rc<str>,
}

impl Incoming {
    /// One that `listener` just accepted; `remote` is what accept(2) said.
    pub fn new(connection: OwnedFd, remote: Option<&SocketAddrAny>, listener: &Listener) -> Self {
        Self {
            client: Client::of(connection.as_fd(), remote),
            connection,
            local: listener.local(),
            listener: listener.shown(),
        }
    }

    /// What its message says of it.
    pub fn info(&self) -> Info {
        let connection = self.connection.as_fd();
        // A listener with one address saves asking each connection for it; and accept told the
        // client's, also if it is gone by now.
        let own = || SocketAddr::try_from(getsockname(connection).ok()?).ok();
        match self.client {
            Client::Address(remote) => match self.local.or_else(own) {
                Some(local) => Info::tcp(remote, local),
                None => Info::new(),
            },
            Client::User { uid, gid, pid } => connection::unix(connection, Some((uid, gid, pid))),
            Client::Unknown => connection::ask(connection),
        }
    }
}
