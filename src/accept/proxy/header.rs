//! Parses PROXY headers, in which a proxy names its client. No I/O.
//!
//! The protocol is HAProxy's, <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>.

use std::fmt;
use std::net::SocketAddr;

use ppp::{v1, v2};

/// The start of a version 1 header.
const V1: &[u8] = b"PROXY ";
/// The start of a version 1 header without a client's address.
const UNKNOWN: &[u8] = b"PROXY UNKNOWN";
/// The start of a version 2 header.
const V2: &[u8] = v2::PROTOCOL_PREFIX;
/// The longest version 1 header, in bytes (section 2.1).
const V1_MOST: usize = 107;
/// The part of a version 2 header that tells the length of the rest (section 2.2).
const V2_FIXED: usize = 16;
/// The offset of version 2's command, and the command of a proxy that speaks for itself.
const COMMAND: usize = 12;
const LOCAL: u8 = 0x20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// A line of text.
    V1,
    /// A binary header.
    V2,
    Any,
}

impl Version {
    /// Parses `v1`, `v2` or `any`.
    ///
    /// # Errors
    /// The problem, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "v1" => Ok(Version::V1),
            "v2" => Ok(Version::V2),
            "any" => Ok(Version::Any),
            _ => Err("must be v1, v2 or any".into()),
        }
    }
}

/// The command of a header, in the protocol's own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProxyCommand {
    /// The proxy speaks for a client.
    Proxy {
        source: SocketAddr,
        /// The address that the client connected to.
        destination: SocketAddr,
    },
    /// The proxy speaks for itself, as in a health check, or for a client without an address.
    Local,
}

/// The next step of reading a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NextRead {
    /// At most this many bytes, all of which belong to the header.
    Read(usize),
    /// At most this many bytes, and none after the end of the line.
    ReadLine(usize),
    /// The header is complete.
    Done(ProxyCommand),
}

/// Not a header of the expected version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a PROXY header")
    }
}

/// The part of a header that has arrived.
#[derive(Debug)]
pub(crate) struct Header {
    version: Version,
    bytes: Vec<u8>,
}

impl Header {
    pub fn new(version: Version) -> Self {
        Self {
            version,
            bytes: Vec::new(),
        }
    }

    /// Adds bytes that were read as [`Header::next`] says.
    pub fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Returns the next step of reading.
    ///
    /// # Errors
    /// [`Malformed`], as early as possible.
    pub fn next(&self) -> Result<NextRead, Malformed> {
        let may_be = |version, start: &[u8]| {
            let common = start.len().min(self.bytes.len());
            (self.version == version || self.version == Version::Any)
                && self.bytes[..common] == start[..common]
        };
        match (may_be(Version::V1, V1), may_be(Version::V2, V2)) {
            // The shortest header of either version is longer than this.
            (true, true) => Ok(NextRead::Read(V2.len())),
            (true, false) => self.next_v1(),
            (false, true) => self.next_v2(),
            (false, false) => Err(Malformed),
        }
    }

    fn next_v1(&self) -> Result<NextRead, Malformed> {
        if !self.bytes.ends_with(b"\n") {
            return match V1_MOST - self.bytes.len() {
                0 => Err(Malformed),
                left => Ok(NextRead::ReadLine(left)),
            };
        }
        let line = self.bytes.strip_suffix(b"\r\n").ok_or(Malformed)?;
        // The protocol says to ignore the rest of the line.
        if let Some(rest) = line.strip_prefix(UNKNOWN)
            && matches!(rest, [] | [b' ', ..])
        {
            return Ok(NextRead::Done(ProxyCommand::Local));
        }
        // Numbers have no sign, but the parser would take one.
        if line.contains(&b'+') {
            return Err(Malformed);
        }
        let header = v1::Header::try_from(&self.bytes[..]).map_err(|_| Malformed)?;
        // The parser stops at the first carriage return, which may be before the end of the line.
        if header.header.len() != self.bytes.len() {
            return Err(Malformed);
        }
        Ok(NextRead::Done(match header.addresses {
            v1::Addresses::Tcp4(ip) => from_v4(ip),
            v1::Addresses::Tcp6(ip) => from_v6(ip),
            v1::Addresses::Unknown => ProxyCommand::Local,
        }))
    }

    fn next_v2(&self) -> Result<NextRead, Malformed> {
        let missing = |length: usize| NextRead::Read(length - self.bytes.len());
        let Some(fixed) = self.bytes.get(..V2_FIXED) else {
            return Ok(missing(V2_FIXED));
        };
        let length = V2_FIXED + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
        // The protocol says to ignore the rest of the header.
        if fixed[COMMAND] == LOCAL {
            return Ok(if self.bytes.len() < length {
                missing(length)
            } else {
                NextRead::Done(ProxyCommand::Local)
            });
        }
        match v2::Header::try_from(&self.bytes[..]) {
            Err(v2::ParseError::Partial(..)) => Ok(missing(length)),
            Err(_) => Err(Malformed),
            Ok(header) => Ok(NextRead::Done(match (header.protocol, header.addresses) {
                (v2::Protocol::Stream, v2::Addresses::IPv4(ip)) => from_v4(ip),
                (v2::Protocol::Stream, v2::Addresses::IPv6(ip)) => from_v6(ip),
                // Addresses that a TCP connection does not have.
                _ => ProxyCommand::Local,
            })),
        }
    }
}

fn from_v4(ip: v1::IPv4) -> ProxyCommand {
    ProxyCommand::Proxy {
        source: (ip.source_address, ip.source_port).into(),
        destination: (ip.destination_address, ip.destination_port).into(),
    }
}

fn from_v6(ip: v1::IPv6) -> ProxyCommand {
    ProxyCommand::Proxy {
        source: (ip.source_address, ip.source_port).into(),
        destination: (ip.destination_address, ip.destination_port).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a header from `stream`, at most `at_once` bytes at a time. Returns the command and the
    /// unread bytes.
    fn read(
        version: Version,
        stream: &[u8],
        at_once: usize,
    ) -> Result<Option<(ProxyCommand, Vec<u8>)>, Malformed> {
        let mut header = Header::new(version);
        let mut rest = stream;
        loop {
            let there = &rest[..rest.len().min(at_once)];
            let count = match header.next()? {
                NextRead::Done(origin) => return Ok(Some((origin, rest.to_vec()))),
                NextRead::Read(most) => there.len().min(most),
                NextRead::ReadLine(most) => {
                    let there = &there[..there.len().min(most)];
                    let end = there.iter().position(|byte| *byte == b'\n');
                    end.map_or(there.len(), |end| end + 1)
                }
            };
            if count == 0 {
                return Ok(None);
            }
            header.add(&rest[..count]);
            rest = &rest[count..];
        }
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = (rest.len() as u16).to_be_bytes();
        [V2, &[command, family], &length, rest].concat()
    }

    fn client(source: &str, destination: &str) -> ProxyCommand {
        ProxyCommand::Proxy {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        }
    }

    #[track_caller]
    fn assert_reads(versions: &[Version], header: &[u8], expected: ProxyCommand) {
        let stream = [header, b"PROXY data\n"].concat();
        for version in versions {
            for at_once in [1, 2, 7, 15, 16, 100, 1000] {
                let found = read(*version, &stream, at_once);
                assert_eq!(found, Ok(Some((expected, b"PROXY data\n".to_vec()))));
            }
            for length in 0..header.len() {
                assert_eq!(read(*version, &header[..length], 1000), Ok(None));
            }
        }
    }

    const TCP4: &[u8] = &[192, 0, 2, 1, 198, 51, 100, 7, 0x30, 0x39, 0, 80];

    #[test]
    fn headers_are_read_and_not_a_byte_more() {
        use Version::{Any, V1, V2};
        let text = b"PROXY TCP4 192.0.2.1 198.51.100.7 12345 80\r\n";
        let expected = client("192.0.2.1:12345", "198.51.100.7:80");
        assert_reads(&[V1, Any], text, expected);
        assert_reads(&[V2, Any], &v2(0x21, 0x11, TCP4), expected);
        // With a TLV after the addresses.
        let more = [TCP4, &[4, 0, 3, 1, 2, 3]].concat();
        assert_reads(&[V2, Any], &v2(0x21, 0x11, &more), expected);

        let text = b"PROXY TCP6 2001:db8::1 2001:db8::2 65535 0\r\n";
        let expected = client("[2001:db8::1]:65535", "[2001:db8::2]:0");
        assert_reads(&[V1, Any], text, expected);
    }

    #[test]
    fn a_proxy_may_speak_for_itself() {
        use Version::{Any, V1, V2};
        assert_reads(&[V1, Any], b"PROXY UNKNOWN\r\n", ProxyCommand::Local);
        let long = b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n";
        assert_reads(&[V1, Any], long, ProxyCommand::Local);
        assert_reads(
            &[V1],
            b"PROXY UNKNOWN a b c d e f \xff\r\n",
            ProxyCommand::Local,
        );
        for family in [0x00, 0x11, 0x99] {
            assert_reads(&[V2, Any], &v2(LOCAL, family, b""), ProxyCommand::Local);
        }
        assert_reads(&[V2, Any], &v2(0x21, 0x00, b"ignored"), ProxyCommand::Local);
        // Unix sockets, and datagrams.
        assert_reads(&[V2, Any], &v2(0x21, 0x31, &[0; 216]), ProxyCommand::Local);
        assert_reads(&[V2, Any], &v2(0x21, 0x12, TCP4), ProxyCommand::Local);
    }

    #[test]
    fn the_longest_headers_are_read() {
        let address = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let text = format!("PROXY UNKNOWN {address} {address} 65535 65535\r\n");
        assert_eq!(text.len(), V1_MOST);
        assert_reads(&[Version::V1], text.as_bytes(), ProxyCommand::Local);
        let most = [TCP4, &vec![0; 65535 - TCP4.len()]].concat();
        let found = read(Version::V2, &v2(0x21, 0x11, &most), 4096);
        let expected = client("192.0.2.1:12345", "198.51.100.7:80");
        assert_eq!(found, Ok(Some((expected, Vec::new()))));
    }

    #[test]
    fn what_is_no_header_is_known_as_soon_as_possible() {
        for version in [Version::V1, Version::V2, Version::Any] {
            for bad in [&b"G"[..], b"PROXX", b"\r\n\r\n\x01", b"proxy "] {
                assert_eq!(read(version, bad, 1000), Err(Malformed), "{bad:?}");
            }
        }
        assert_eq!(read(Version::V1, &v2(LOCAL, 0, b""), 1), Err(Malformed));
        assert_eq!(read(Version::V2, b"PROXY UNKNOWN\r\n", 1), Err(Malformed));
        // Before the rest of the header has arrived.
        for (command, family) in [(0x31, 0x11), (0x22, 0x11), (0x21, 0x41), (0x21, 0x13)] {
            let begun = &v2(command, family, TCP4)[..V2_FIXED];
            assert_eq!(read(Version::Any, begun, 100), Err(Malformed));
        }
        assert_eq!(
            read(Version::V2, &v2(0x21, 0x21, TCP4), 100),
            Err(Malformed)
        );
    }

    #[test]
    fn a_bad_line_is_malformed() {
        let long = format!("PROXY {}", "x".repeat(V1_MOST));
        for bad in [
            "PROXY TCP4 192.0.2.1 198.51.100.7 12345 80\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 12345 80\r\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 12345 65536\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 12345 080\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 12345\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 12345 80 1\r\n",
            "PROXY TCP4 2001:db8::1 198.51.100.7 12345 80\r\n",
            "PROXY TCP6 192.0.2.1 198.51.100.7 12345 80\r\n",
            "PROXY TCP4  192.0.2.1 198.51.100.7 12345 80\r\n",
            "PROXY TCP5 192.0.2.1 198.51.100.7 12345 80\r\n",
            "PROXY TCP4 192.0.2.1\r 198.51.100.7 12345 80\r\n",
            "PROXY \r\n",
            "PROXY UNKNOWN\n",
            "PROXY UNKNOWN \n",
            "PROXY UNKNOWNS\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 12345 80 \n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 +12345 80\r\n",
            &long,
        ] {
            assert_eq!(
                read(Version::Any, bad.as_bytes(), 1000),
                Err(Malformed),
                "{bad:?}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_crashes_it(stream: Vec<u8>, at_once in 1..50_usize, which in 0..3_usize) {
            let starts: [&[u8]; 3] = [b"", V1, V2];
            let stream = [starts[which], &stream].concat();
            let _ = read(Version::Any, &stream, at_once);
        }
    }
}
