//! Addresses to listen on, spelled as in systemd.socket(5).

use std::ffi::OsStr;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;

use crate::error::{Error, Result};
use crate::queue::name::Name;
use crate::system::text::{digits, printable};

/// The vsock(7) context id for all context ids of this machine (`VMADDR_CID_ANY`).
pub(crate) const VSOCK_CID_ANY: u32 = u32::MAX;

/// An interface name has at most 15 bytes (`IFNAMSIZ` of netdevice(7), less its NUL).
const MAX_INTERFACE: usize = 15;

/// A host name has at most 253 characters (RFC 1035, without the final dot).
const MAX_HOST: usize = 253;

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Address {
    /// `fd:N`: a listener that was open before this program started.
    Inherited(RawFd),
    New(Place),
}

/// Where to open a listener. Port 0 means any free port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    /// `8888`: all addresses of the machine, both families.
    AnyTcp {
        /// The TCP port.
        port: u16,
    },
    /// `127.0.0.1:8888`, `[::1]:8888`, `[fe80::1]:8888%eth0`.
    Tcp {
        /// The scope id is 0, since finding it takes a system call.
        address: SocketAddr,
        /// The interface of a link-local address, by name or number.
        interface: Option<String>,
    },
    /// `localhost:8888`: every address that the name resolves to.
    Host {
        /// Not resolved yet.
        name: String,
        port: u16,
    },
    /// `/run/x.sock` or `@name`.
    Unix(Name),
    /// `vsock:CID:PORT`, vsock(7).
    Vsock {
        /// [`VSOCK_CID_ANY`] for all context ids.
        cid: u32,
        port: u32,
    },
}

impl Address {
    /// Parses an address. A leading `@` makes an abstract name, otherwise a `/` makes a path.
    ///
    /// # Errors
    /// [`Error::Invalid`], which says what is wrong and how to spell the address.
    pub fn parse(text: &OsStr) -> Result<Address> {
        let bytes = text.as_bytes();
        parse(text).map_err(|reason| {
            Error::Invalid(match bytes {
                b"" => reason,
                _ => format!("bad address {}: {reason}", printable(bytes)),
            })
        })
    }
}

impl Place {
    /// The TCP address, if it is a single one and no host's.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Place::Tcp { address, .. } => Some(*address),
            _ => None,
        }
    }
}

impl Address {
    /// Whether a listener there makes a path in the file system.
    pub fn makes_path(&self) -> bool {
        matches!(self, Address::New(Place::Unix(Name::Path(_))))
    }
}

impl std::str::FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Address> {
        Address::parse(OsStr::new(text))
    }
}

impl fmt::Display for Address {
    /// The spelling that parses to this address, as far as that of a [`Place`] does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Inherited(number) => write!(f, "fd:{number}"),
            Address::New(place) => place.fmt(f),
        }
    }
}

impl fmt::Display for Place {
    /// The spelling that parses to this place. Bytes of a path that are not UTF-8 are replaced, and
    /// invisible characters escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::AnyTcp { port } => write!(f, "{port}"),
            Place::Tcp { address, interface } => {
                write!(f, "{address}")?;
                match interface {
                    Some(interface) => write!(f, "%{interface}"),
                    None => Ok(()),
                }
            }
            Place::Host { name, port } => write!(f, "{name}:{port}"),
            Place::Unix(name) => write!(f, "{name}"),
            Place::Vsock { cid, port } => f.write_str(&vsock(*cid, *port)),
        }
    }
}

pub(crate) fn vsock(cid: u32, port: u32) -> String {
    match cid {
        VSOCK_CID_ANY => format!("vsock::{port}"),
        _ => format!("vsock:{cid}:{port}"),
    }
}

type Reason = String;

fn parse(text: &OsStr) -> std::result::Result<Address, Reason> {
    if let Some(number) = text.as_bytes().strip_prefix(b"fd:")
        && !number.contains(&b'/')
    {
        return digits(number)
            .map(Address::Inherited)
            .ok_or_else(|| "write fd:N, N the number of an open descriptor".into());
    }
    parse_place(text).map(Address::New)
}

fn parse_place(text: &OsStr) -> std::result::Result<Place, Reason> {
    let bytes = text.as_bytes();
    if bytes.is_empty() {
        return Err("an address is empty: write a port (8888), ADDRESS:PORT or a path".into());
    }
    // Control characters would reach logs and terminals, and no real address has any.
    if String::from_utf8_lossy(bytes).contains(char::is_control) {
        return Err("it holds a control character".into());
    }
    if bytes.starts_with(b"@") || bytes.contains(&b'/') {
        return Name::parse(text)
            .map(Place::Unix)
            .map_err(|error| error.to_string());
    }
    let Some(text) = text.to_str() else {
        return Err("it is not UTF-8, which only a path may be: write ./NAME".into());
    };
    if let Some(rest) = text.strip_prefix("vsock:") {
        return parse_vsock(rest);
    }
    if let Some(rest) = text.strip_prefix('[') {
        return parse_bracketed(rest);
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(Place::AnyTcp {
            port: parse_port(text)?,
        });
    }
    match text.rsplit_once(':') {
        None => Err(format!(
            "the port is missing: write {text}:PORT, or ./{text} for the path of a socket"
        )),
        Some((host, port)) if host.contains(':') => Err(unbracketed(text, host, port)),
        Some((host, port)) => parse_host(host, port),
    }
}

/// The problem with `text`, which is `host:port` with more than 1 colon.
fn unbracketed(text: &str, host: &str, port: &str) -> Reason {
    // `::1:8888` parses both with and without a port.
    match (host.parse::<Ipv6Addr>(), text.parse::<Ipv6Addr>()) {
        (Ok(ip), Err(_)) => format!("an IPv6 address needs brackets: write [{ip}]:{port}"),
        (Ok(ip), Ok(all)) => {
            format!("an IPv6 address needs brackets: write [{ip}]:{port}, or [{all}]:PORT")
        }
        (Err(_), Ok(all)) => {
            format!("the port is missing, and an IPv6 address needs brackets: write [{all}]:PORT")
        }
        (Err(_), Err(_)) => "it has too many colons: write HOST:PORT, or [IPV6]:PORT".into(),
    }
}

/// Parses `HOST:PORT` with a host that has no colon: an IPv4 address or a name.
fn parse_host(host: &str, port: &str) -> std::result::Result<Place, Reason> {
    if port.contains('%') {
        return Err("%INTERFACE belongs to an IPv6 address: write [fe80::1]:8888%eth0".into());
    }
    let port = parse_port(port)?;
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        return Ok(Place::Tcp {
            address: SocketAddr::from((ip, port)),
            interface: None,
        });
    }
    if matches!(host, "" | "*") {
        return Err(format!("for all addresses write the port alone: {port}"));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if host.len() > MAX_HOST || !host.bytes().all(allowed) || host.starts_with(['-', '.']) {
        return Err(format!("{host} is not a host name"));
    }
    // The resolver would read such names as inet_aton(3) does: 127.1, 0x7f.1, 10.
    let last = host.trim_end_matches('.').rsplit('.').next();
    if last.is_some_and(|last| {
        last.bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_digit())
    }) {
        return Err(format!(
            "{host} is not an IPv4 address: write all four numbers, as in 127.0.0.1:{port}"
        ));
    }
    Ok(Place::Host {
        name: host.into(),
        port,
    })
}

/// Parses what follows the `[` of `[IPV6]:PORT%INTERFACE`.
fn parse_bracketed(rest: &str) -> std::result::Result<Place, Reason> {
    let Some((ip, rest)) = rest.split_once(']') else {
        return Err("the closing bracket is missing: write [IPV6]:PORT".into());
    };
    let ip = match ip.parse::<Ipv6Addr>() {
        Ok(ip) => ip,
        Err(_) if ip.parse::<Ipv4Addr>().is_ok() => {
            return Err(format!("brackets are for IPv6: write {ip}:PORT"));
        }
        Err(_) if ip.contains('%') => {
            return Err("the interface goes last: write [fe80::1]:8888%eth0".into());
        }
        Err(_) => return Err(format!("{ip} is not an IPv6 address")),
    };
    let Some(rest) = rest.strip_prefix(':') else {
        return Err(format!("the port is missing: write [{ip}]:PORT"));
    };
    let (port, interface) = match rest.split_once('%') {
        Some((port, interface)) => (port, Some(interface)),
        None => (rest, None),
    };
    let port = parse_port(port)?;
    match interface {
        None if ip.is_unicast_link_local() => {
            return Err(format!(
                "a link-local address needs its interface: write [{ip}]:{port}%eth0"
            ));
        }
        // The kernel would ignore the interface and listen on more than the user wants.
        Some(_) if !ip.is_unicast_link_local() => {
            return Err(format!(
                "only a link-local address (fe80::1) has an interface: write [{ip}]:{port}"
            ));
        }
        Some(interface)
            if interface.is_empty()
                || interface.len() > MAX_INTERFACE
                || interface.contains([':', '%'])
                || interface.contains(char::is_whitespace) =>
        {
            return Err(format!(
                "{interface:?} is not the name of an interface: write [{ip}]:{port}%eth0"
            ));
        }
        _ => {}
    }
    Ok(Place::Tcp {
        address: SocketAddrV6::new(ip, port, 0, 0).into(),
        interface: interface.map(String::from),
    })
}

/// Parses what follows `vsock:`.
fn parse_vsock(rest: &str) -> std::result::Result<Place, Reason> {
    let parsed = rest.split_once(':').and_then(|(cid, port)| {
        let cid = match cid {
            "" => VSOCK_CID_ANY,
            _ => digits(cid)?,
        };
        Some(Place::Vsock {
            cid,
            port: digits(port)?,
        })
    });
    parsed.ok_or_else(|| {
        "write vsock:CID:PORT, both of them numbers, or vsock::PORT for every CID".into()
    })
}

fn parse_port(text: &str) -> std::result::Result<u16, Reason> {
    digits(text).ok_or_else(|| match text {
        "" => "the port is missing".into(),
        _ => format!("{text} is not a port: write a number from 0 to 65535"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::IpAddr;
    use std::path::PathBuf;

    fn tcp(text: &str) -> Place {
        Place::Tcp {
            address: text.parse().unwrap(),
            interface: None,
        }
    }

    #[test]
    fn every_spelling_parses_and_shows_itself() {
        let all = [
            ("8888", Place::AnyTcp { port: 8888 }),
            ("0", Place::AnyTcp { port: 0 }),
            ("127.0.0.1:8888", tcp("127.0.0.1:8888")),
            ("0.0.0.0:0", tcp("0.0.0.0:0")),
            ("[::1]:8888", tcp("[::1]:8888")),
            ("[::]:80", tcp("[::]:80")),
            ("[::ffff:1.2.3.4]:80", tcp("[::ffff:1.2.3.4]:80")),
            (
                "[fe80::1]:8888%eth0",
                Place::Tcp {
                    address: "[fe80::1]:8888".parse().unwrap(),
                    interface: Some("eth0".into()),
                },
            ),
            (
                "localhost:8888",
                Place::Host {
                    name: "localhost".into(),
                    port: 8888,
                },
            ),
            ("/run/x.sock", Place::Unix(Name::Path("/run/x.sock".into()))),
            ("./8888", Place::Unix(Name::Path("./8888".into()))),
            ("@name", Place::Unix(Name::Abstract(b"name".to_vec()))),
            ("@a/b", Place::Unix(Name::Abstract(b"a/b".to_vec()))),
            ("vsock:2:1234", Place::Vsock { cid: 2, port: 1234 }),
            (
                "vsock::1234",
                Place::Vsock {
                    cid: VSOCK_CID_ANY,
                    port: 1234,
                },
            ),
        ];
        let all = all.map(|(text, place)| (text, Address::New(place)));
        for (text, address) in all.into_iter().chain([("fd:3", Address::Inherited(3))]) {
            assert_eq!(text.parse::<Address>().unwrap(), address, "{text}");
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn a_path_need_not_be_utf8() {
        let odd = OsStr::from_bytes(b"/run/\xff");
        assert_eq!(
            Address::parse(odd).unwrap(),
            Address::New(Place::Unix(Name::Path(PathBuf::from(odd))))
        );
        assert!(Address::parse(OsStr::from_bytes(b"h\xff:80")).is_err());
    }

    #[test]
    fn bad_spellings_say_what_is_wrong() {
        let bad = [
            ("", "write a port (8888), ADDRESS:PORT or a path"),
            ("::1", "write [::1]:PORT"),
            ("fe80::1:2:8888", "brackets"),
            ("::1:8888", "write [::1]:8888, or [::1:8888]:PORT"),
            ("::1:8888%eth0", "write [::1]:8888%eth0"),
            ("1:2:3:4:5:6:7:8:80", "write [1:2:3:4:5:6:7:8]:80"),
            ("1:2:3", "too many colons"),
            ("127.0.0.1", "write 127.0.0.1:PORT"),
            ("localhost", "write localhost:PORT"),
            ("127.0.0.1:", "port is missing"),
            ("70000", "70000 is not a port"),
            ("65536", "write a number from 0 to 65535"),
            ("99999999999999999999", "is not a port"),
            ("127.0.0.1:65536", "write a number from 0 to 65535"),
            ("localhost:http", "http is not a port"),
            ("localhost:+80", "+80 is not a port"),
            ("+80", "the port is missing"),
            ("-1", "the port is missing"),
            (":80", "write the port alone: 80"),
            ("*:80", "write the port alone: 80"),
            ("127.1:80", "write all four numbers"),
            ("256.0.0.1:80", "not an IPv4 address"),
            ("a.0x7f:80", "not an IPv4 address"),
            ("1:80", "not an IPv4 address"),
            ("a b:80", "not a host name"),
            ("-a:80", "not a host name"),
            ("h\u{e9}:80", "not a host name"),
            ("127.0.0.1:80%eth0", "belongs to an IPv6 address"),
            ("localhost:80%eth0", "belongs to an IPv6 address"),
            ("[::1]", "write [::1]:PORT"),
            ("[::1]80", "port is missing"),
            ("[::1]:", "port is missing"),
            ("[::1:80", "closing bracket"),
            ("[x]:80", "not an IPv6 address"),
            ("[127.0.0.1]:80", "brackets are for IPv6"),
            ("[fe80::1%eth0]:80", "interface goes last"),
            ("[fe80::1]:80", "write [fe80::1]:80%eth0"),
            ("[::]:80%eth0", "only a link-local address"),
            ("[fe80::1]:80%", "not the name of an interface"),
            ("[fe80::1]:80%0123456789abcdef", "name of an interface"),
            ("fd:", "write fd:N"),
            ("fd:x", "write fd:N"),
            ("fd:-1", "write fd:N"),
            ("fd:2147483648", "write fd:N"),
            ("08888", "08888 is not a port"),
            ("[::1]:+80", "+80 is not a port"),
            ("fd:03", "write fd:N"),
            ("vsock:1:01", "write vsock:CID:PORT"),
            ("vsock:1", "write vsock:CID:PORT"),
            ("vsock:1:2:3", "write vsock:CID:PORT"),
            ("vsock:4294967296:1", "write vsock:CID:PORT"),
            ("vsock:1:", "write vsock:CID:PORT"),
            ("@", "write @NAME"),
            ("/run/", "is a directory"),
            ("/run/\nx", "control character"),
            ("8888\n", "control character"),
            ("/a\0b", "control character"),
            ("/run/\u{9b}31m", "control character"),
        ];
        for (text, reason) in bad {
            let error = text.parse::<Address>().unwrap_err();
            assert!(matches!(error, Error::Invalid(_)), "{text}");
            let shown = error.to_string();
            assert!(shown.contains(reason), "{text}: {shown}");
            assert!(!shown.chars().any(char::is_control), "{shown:?}");
        }
        let long = "x".repeat(200);
        for text in [format!("/{long}"), format!("@{long}")] {
            let error = text.parse::<Address>().unwrap_err();
            assert!(error.to_string().contains("at most 107"), "{error}");
        }
        assert!(format!("{long}{long}:80").parse::<Address>().is_err());
    }

    /// Texts like addresses: arbitrary bytes alone seldom get past the first check.
    fn plausible() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..130),
            r"[0-9]{0,6}".prop_map(String::into_bytes),
            r"\PC{0,20}:[0-9]{0,5}".prop_map(String::into_bytes),
            r"[a-z0-9.-]{1,9}:[0-9]{1,5}".prop_map(String::into_bytes),
            r"\[(fe80)?:[0-9a-f:.]{0,16}\]:?[0-9]{0,5}(%[a-z0-9]{0,4})?"
                .prop_map(String::into_bytes),
            r"vsock:[0-9]{0,3}:[0-9]{0,11}".prop_map(String::into_bytes),
            r"fd:[0-9]{0,11}".prop_map(String::into_bytes),
            r"[@/]\PC{0,40}".prop_map(String::into_bytes),
            any::<SocketAddr>().prop_map(|address| address.to_string().into_bytes()),
        ]
    }

    /// Checks that an address parses to itself when shown. Returns whether `bytes` are an address.
    fn shows_itself(bytes: &[u8]) -> Result<bool, TestCaseError> {
        let text = OsStr::from_bytes(bytes);
        match Address::parse(text) {
            Ok(address) => {
                let shown = address.to_string();
                prop_assert!(!shown.chars().any(char::is_control));
                if printable(bytes).as_bytes() == bytes {
                    prop_assert_eq!(shown.parse::<Address>().unwrap(), address);
                }
                Ok(true)
            }
            Err(error) => {
                let error = error.to_string();
                prop_assert!(!error.is_empty() && !error.chars().any(char::is_control));
                Ok(false)
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn an_address_shows_what_parses_to_it(bytes in plausible()) {
            shows_itself(&bytes)?;
        }

        #[test]
        fn likely_addresses_mean_themselves(
            text in r"(\[?[0-9a-f:.]{0,12}\]?|localhost|@|/|\./|fd|vsock|vsock:[0-9]{0,11}|\*|a-b\.c)?:?[0-9+ -]{0,7}(%[a-z0-9]{0,17})?",
        ) {
            shows_itself(text.as_bytes())?;
        }

        #[test]
        fn every_ip_and_port_is_an_address(address: SocketAddr) {
            let text = match address {
                SocketAddr::V4(_) => address.to_string(),
                SocketAddr::V6(v6) => format!("[{}]:{}", v6.ip(), v6.port()),
            };
            let link_local = matches!(address.ip(), IpAddr::V6(ip) if ip.is_unicast_link_local());
            prop_assert_eq!(shows_itself(text.as_bytes())?, !link_local);
        }
    }
}
