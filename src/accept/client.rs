//! Who is at the other end of a connection that was just accepted.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use ipnet::IpNet;
use nix::sys::socket::{getsockopt, sockopt};
use rustix::net::{AddressFamily, SocketAddrAny};

/// A client, as far as rules and limits go by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// Over TCP.
    Address(SocketAddr),
    /// Over a Unix socket: the user and the group that the client had when it connected.
    User {
        /// Its effective uid.
        uid: u32,
        /// Its effective gid.
        gid: u32,
        /// Its process id; 0 if it has none here, being in another namespace.
        pid: u32,
    },
    /// Over something else, or gone before it could be asked.
    Unknown,
}

impl Client {
    /// Who is at the other end of `connection`; `remote` is what accept(2) said.
    pub fn of(connection: BorrowedFd<'_>, remote: Option<&SocketAddrAny>) -> Self {
        // A Unix client that has bound its socket to no name has no address.
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

/// All clients that count as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ClientKey {
    /// Those of a network, which may be a single address.
    Net(IpNet),
    /// Those of a user.
    User(u32),
}

/// How many bits of an address tell one client from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SourcePrefix {
    v4: u8,
    v6: u8,
}

impl Default for SourcePrefix {
    /// Each IPv4 address; each IPv6 network of the size that a customer gets (RFC 6177).
    fn default() -> Self {
        Self { v4: 32, v6: 64 }
    }
}

impl SourcePrefix {
    /// Parses `V4,V6`: two numbers of bits.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bits = |text: &str, most| text.parse().ok().filter(|bits: &u8| *bits <= most);
        let parsed = text.split_once(',').and_then(|(v4, v6)| {
            let (v4, v6) = (bits(v4, 32)?, bits(v6, 128)?);
            Some(Self { v4, v6 })
        });
        parsed.ok_or_else(|| "not two prefix lengths (0 to 32, 0 to 128), as in 32,64".into())
    }

    /// What `client` counts as; `None` if that cannot be told.
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
        // IPv4 that is mapped into IPv6 is IPv4.
        assert_eq!(key("32,64", "::ffff:192.0.2.1"), "192.0.2.1/32");
        assert_eq!(SourcePrefix::parse("32,64"), Ok(SourcePrefix::default()));
        for bad in ["", "32", "33,64", "32,129", "a,b", "32,64,1", "-1,64"] {
            assert!(SourcePrefix::parse(bad).is_err(), "{bad}");
        }
    }
}
