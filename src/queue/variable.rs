//! The variables of a message, and what their values look like. Pure.

use std::borrow::Cow;
use std::fmt::{self, Display};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;

use crate::system::text::digits;

/// What a value must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// `TCP` or `IPC`.
    Protocol,
    /// An IPv4 or IPv6 address; a link-local address may have a zone.
    Ip,
    /// 0 to 65535.
    Port,
    /// A uid, gid, pid or count: 0 to 4294967295.
    Number,
    /// The name of a Unix socket: any bytes but control bytes.
    Path,
}

/// A variable that a message may carry and a handler may find in its environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variable {
    name: &'static str,
    format: Format,
}

impl Variable {
    /// The name, as in the environment: `TCPREMOTEIP`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// `value` as a message spells it, if it is valid for this variable.
    pub(super) fn spell<'a>(&self, value: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        let is_valid = match self.format {
            Format::Protocol => value == b"TCP" || value == b"IPC",
            Format::Ip => return spell_ip(value),
            Format::Port => digits::<u16>(value).is_some(),
            Format::Number => digits::<u32>(value).is_some(),
            Format::Path => !value.is_empty() && !value.iter().any(u8::is_ascii_control),
        };
        is_valid.then_some(Cow::Borrowed(value))
    }
}

/// An address has one spelling: that of RFC 5952. An IPv4 address that is mapped into IPv6 is the
/// IPv4 address. The zone of a link-local address follows a `%`.
fn spell_ip(value: &[u8]) -> Option<Cow<'_, [u8]>> {
    let text = std::str::from_utf8(value).ok()?;
    let (ip, zone) = match text.split_once('%') {
        Some((ip, zone)) => (ip, Some(zone)),
        None => (text, None),
    };
    let spelled = match (ip.parse().ok()?, zone) {
        // Only this spelling parses.
        (IpAddr::V4(_), None) => return Some(Cow::Borrowed(value)),
        (ip, None) => ip.to_canonical().to_string(),
        (IpAddr::V6(ip), Some(zone)) if ip.is_unicast_link_local() && is_zone(zone) => {
            format!("{ip}%{zone}")
        }
        _ => return None,
    };
    Some(Cow::Owned(spelled.into_bytes()))
}

/// Whether `zone` is the name or the number of an interface (RFC 4007).
fn is_zone(zone: &str) -> bool {
    is_interface_name(zone) || digits::<NonZeroU32>(zone).is_some()
}

/// Whether a message may name an interface so. The kernel lets a name hold control bytes, `$` and
/// the like; and digits alone would be a number.
pub(super) fn is_interface_name(name: &str) -> bool {
    /// `IFNAMSIZ` of linux/if.h, without the NUL.
    const MOST: usize = 15;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=MOST).contains(&name.len())
        && name.bytes().all(is_plain)
        && !name.bytes().all(|byte| byte.is_ascii_digit())
}

/// The IP of an address, as a message spells it.
pub(super) struct Host(pub SocketAddr);

impl Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() && v6.scope_id() != 0 => {
                write!(f, "{}%{}", v6.ip(), v6.scope_id())
            }
            address => address.ip().to_canonical().fmt(f),
        }
    }
}

macro_rules! variables {
    ($($(#[$doc:meta])* $constant:ident = $name:literal, $format:ident;)*) => {
        $($(#[$doc])* pub const $constant: Variable = Variable { name: $name, format: Format::$format };)*
        /// The whole table. Nothing outside it gets from a message into an environment.
        pub const VARIABLES: &[Variable] = &[$($constant),*];
    };
}

variables! {
    /// The protocol, `TCP` or `IPC` (UCSPI).
    PROTO = "PROTO", Protocol;
    /// The client's address (UCSPI), that of a link-local client with its interface: `fe80::1%eth0`.
    TCP_REMOTE_IP = "TCPREMOTEIP", Ip;
    /// The client's port (UCSPI).
    TCP_REMOTE_PORT = "TCPREMOTEPORT", Port;
    /// The server's address (UCSPI).
    TCP_LOCAL_IP = "TCPLOCALIP", Ip;
    /// The server's port (UCSPI).
    TCP_LOCAL_PORT = "TCPLOCALPORT", Port;
    /// The effective uid of a Unix client when it connected (s6-ipcserver).
    IPC_REMOTE_EUID = "IPCREMOTEEUID", Number;
    /// The effective gid of a Unix client when it connected (s6-ipcserver).
    IPC_REMOTE_EGID = "IPCREMOTEEGID", Number;
    /// The process id of a Unix client.
    IPC_REMOTE_PID = "IPCREMOTEPID", Number;
    /// The name that a Unix client bound its own socket to, if any (s6-ipcserver).
    IPC_REMOTE_PATH = "IPCREMOTEPATH", Path;
    /// The name that a Unix client connected to (s6-ipcserver).
    IPC_LOCAL_PATH = "IPCLOCALPATH", Path;
    /// The client's address, as an `Accept=yes` service gets it (systemd.exec(5)).
    REMOTE_ADDR = "REMOTE_ADDR", Ip;
    /// The client's port, as an `Accept=yes` service gets it (systemd.exec(5)).
    REMOTE_PORT = "REMOTE_PORT", Port;
    /// The number of open connections of this client (s6-tcpserver).
    TCP_CONN_NUM = "TCPCONNNUM", Number;
}
