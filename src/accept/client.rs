//! The client of a connection that was just accepted.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use ipnet::IpNet;
use nix::sys::socket::{getsockopt, sockopt};
use rustix::net::{AddressFamily, SocketAddrAny};

use crate::system::text::digits;

/// A client, as rules and limits see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// Over TCP.
    Address(SocketAddr),
    /// Over a Unix socket: effective uid and gid at the time of connect(2).
    User {
        uid: u32,
        gid: u32,
        /// 0 if the client has no process id in our PID namespace.
        pid: u32,
    },
    /// Over another transport, or gone before its credentials were read.
    Unknown,
}

impl Client {
    /// `remote` is the address that accept(2) returned.
    pub fn of(connection: BorrowedFd<'_>, remote: Option<&SocketAddrAny>) -> Self {
        // The socket of a Unix client may be unbound: then accept(2) returns no address.
        if let Some(remote) = remote
            && remote.address_family() != AddressFamily::UNIX
        {
            let address = SocketAddr::try_from(remote.clone());
            return address.map_or(Client::Unknown, Client::Address);
        }
        match getsockopt(&connection, sockopt::PeerCredentials) {
            Ok(peer) => Client::User {
                uid: peer.uid(),
                gid: peer.gid(),
                pid: peer.pid() as u32,
            },
            Err(_) => Client::Unknown,
        }
    }
}

/// The clients that `--max-per-source` counts together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ClientKey {
    /// A network, which may be a single address.
    Net(IpNet),
    User(u32),
}

impl fmt::Display for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientKey::Net(net) if net.prefix_len() == net.max_prefix_len() => net.addr().fmt(f),
            ClientKey::Net(net) => net.fmt(f),
            ClientKey::User(uid) => write!(f, "uid {uid}"),
        }
    }
}

/// How many bits of an address identify a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SourcePrefix {
    v4: u8,
    v6: u8,
}

impl Default for SourcePrefix {
    /// An IPv4 address, or an IPv6 /64: the smallest network of a site (RFC 6177).
    fn default() -> Self {
        Self { v4: 32, v6: 64 }
    }
}

impl SourcePrefix {
    /// Parses `V4,V6`: 2 prefix lengths.
    ///
    /// # Errors
    /// The problem, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bits = |text: &str, most| digits(text).filter(|bits: &u8| *bits <= most);
        let parsed = text.split_once(',').and_then(|(v4, v6)| {
            let (v4, v6) = (bits(v4, 32)?, bits(v6, 128)?);
            Some(Self { v4, v6 })
        });
        parsed.ok_or_else(|| "not two prefix lengths (0 to 32, 0 to 128), as in 32,64".into())
    }

    /// The key under which `client` counts; `None` if the client is unknown.
    pub fn key(&self, client: &Client) -> Option<ClientKey> {
        match client {
            Client::Address(address) => {
                let address = address.ip().to_canonical();
                let bits = match address {
                    IpAddr::V4(_) => self.v4,
                    IpAddr::V6(_) => self.v6,
                };
                let net = IpNet::new(address, bits).ok()?;
                Some(ClientKey::Net(net.trunc()))
            }
            Client::User { uid, .. } => Some(ClientKey::User(*uid)),
            Client::Unknown => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(prefix: &str, address: &str) -> String {
        let client = Client::Address(SocketAddr::new(address.parse().unwrap(), 1));
        let prefix = SourcePrefix::parse(prefix).unwrap();
        match prefix.key(&client) {
            Some(ClientKey::Net(net)) => net.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn clients_count_by_their_prefix() {
        assert_eq!(key("32,64", "192.0.2.1"), "192.0.2.1/32");
        assert_eq!(key("24,64", "192.0.2.1"), "192.0.2.0/24");
        assert_eq!(key("32,64", "2001:db8::1:2:3:4"), "2001:db8::/64");
        assert_eq!(key("0,128", "192.0.2.1"), "0.0.0.0/0");
        // An IPv4-mapped IPv6 address counts as IPv4.
        assert_eq!(key("32,64", "::ffff:192.0.2.1"), "192.0.2.1/32");
        assert_eq!(SourcePrefix::parse("32,64"), Ok(SourcePrefix::default()));
        for bad in [
            "", "32", "33,64", "32,129", "a,b", "32,64,1", "-1,64", "+1,64", "032,64",
        ] {
            assert!(SourcePrefix::parse(bad).is_err(), "{bad}");
        }
    }
}
