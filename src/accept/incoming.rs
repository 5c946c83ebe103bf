//! A connection that is accepted, but not admitted yet.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::net::{SocketAddrAny, getsockname};

use crate::accept::client::Client;
use crate::accept::listen::Listener;
use crate::queue::connection;
use crate::queue::message::Info;
use crate::system::peer_ids::PeerIds;
use crate::system::quick_close::QuickClose;

#[derive(Debug)]
pub(crate) struct Incoming {
    /// A Unix client may have sent descriptors, which are closed with the connection.
    pub connection: QuickClose<OwnedFd>,
    /// The peer, or the client that the peer's PROXY header names.
    pub client: Client,
    /// The TCP address that the client connected to, if the listener or a PROXY header tells.
    pub local: Option<SocketAddr>,
    /// The listener's name in the log.
    pub listener: Rc<str>,
}

impl Incoming {
    /// `remote` is the address that accept(2) returned.
    pub fn new(connection: OwnedFd, remote: Option<&SocketAddrAny>, listener: &Listener) -> Self {
        Self {
            client: Client::of(connection.as_fd(), remote),
            connection: QuickClose::if_needed(connection, listener.transport().may_carry()),
            local: listener.local(),
            listener: listener.shown(),
        }
    }

    /// What the queue message says of the connection.
    pub fn info(&self) -> Info {
        let connection = self.connection.as_fd();
        // A listener with a single address saves a getsockname(2) for each connection. The client's
        // address comes from accept(2), so it is known even if the client is gone by now.
        let own = || SocketAddr::try_from(getsockname(connection).ok()?).ok();
        match self.client {
            Client::Address(remote) => match self.local.or_else(own) {
                Some(local) => connection::tcp(connection, remote, local),
                None => Info::new(),
            },
            Client::User { uid, gid, pid } => {
                let ids = PeerIds {
                    uid: Some(uid),
                    gid: Some(gid),
                    pid: Some(pid).filter(|pid| *pid != 0),
                };
                connection::unix(connection, ids)
            }
            Client::Unknown => connection::ask(connection),
        }
    }
}
