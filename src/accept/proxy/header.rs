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

    const PROXY: u8 = 0x21;
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

    /// Checks that a header is refused as soon as these bytes are there, however they come.
    #[track_caller]
    fn assert_malformed(versions: &[Version], all: &[impl AsRef<[u8]>]) {
        for (version, bad) in versions
            .iter()
            .flat_map(|one| all.iter().map(move |bad| (one, bad)))
        {
            for at_once in [1, 16, 5000] {
                let (bad, found) = (bad.as_ref(), read(*version, bad.as_ref(), at_once));
                assert_eq!(found, Err(Malformed), "{version:?} {}", bad.escape_ascii());
            }
        }
    }

    fn bad_lines() -> Vec<String> {
        let long = "x".repeat(200);
        let with_return_late = format!("PROXY UNKNOWN {}\r\n", "x".repeat(92));
        assert_eq!(with_return_late.len(), V1_MOST + 1);
        [
            "PROXY\r\n",
            "PROXY \r\n",
            "PROXY  UNKNOWN\r\n",
            "PROXY TCP4\r\n",
            "PROXY TCP4 \r\n",
            "PROXY TCP4 192.0.2.1\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 51000\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 51000 \r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 51000 443 \r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 51000 443 1\r\n",
            "PROXY TCP4  192.0.2.1 198.51.100.7 51000 443\r\n",
            "PROXY TCP4 192.0.2.1  198.51.100.7 51000 443\r\n",
            "PROXY TCP4 192.0.2.1\t198.51.100.7 51000 443\r\n",
            "PROXY\tTCP4 192.0.2.1 198.51.100.7 51000 443\r\n",
            " PROXY TCP4 192.0.2.1 198.51.100.7 51000 443\r\n",
            "\u{feff}PROXY TCP4 192.0.2.1 198.51.100.7 51000 443\r\n",
            "proxy TCP4 192.0.2.1 198.51.100.7 51000 443\r\n",
            "PROXY tcp4 192.0.2.1 198.51.100.7 51000 443\r\n",
            "PROXY TCP 192.0.2.1 198.51.100.7 51000 443\r\n",
            "PROXY TCP5 192.0.2.1 198.51.100.7 51000 443\r\n",
            "PROXY TCP44 192.0.2.1 198.51.100.7 51000 443\r\n",
            "PROXY UDP4 192.0.2.1 198.51.100.7 51000 443\r\n",
            "PROXY UNIX a b\r\n",
            "PROXY UNKNOWNS\r\n",
            // Addresses.
            "PROXY TCP4 192.0.2 198.51.100.7 51000 443\r\n",
            "PROXY TCP4 192.0.2.1.1 198.51.100.7 51000 443\r\n",
            "PROXY TCP4 192.0.2.256 198.51.100.7 51000 443\r\n",
            "PROXY TCP4 192.0.2.01 198.51.100.7 51000 443\r\n",
            "PROXY TCP4 0xc0000201 198.51.100.7 51000 443\r\n",
            "PROXY TCP4 3221225985 198.51.100.7 51000 443\r\n",
            "PROXY TCP4 192.0.2.-1 198.51.100.7 51000 443\r\n",
            "PROXY TCP4 192.0.2.+1 198.51.100.7 51000 443\r\n",
            "PROXY TCP4 192.0.2.1/32 198.51.100.7 51000 443\r\n",
            "PROXY TCP4 192.0.2.1:51000 198.51.100.7:443\r\n",
            "PROXY TCP4 localhost 198.51.100.7 51000 443\r\n",
            "PROXY TCP4 2001:db8::1 198.51.100.7 51000 443\r\n",
            "PROXY TCP4 ::ffff:192.0.2.1 198.51.100.7 51000 443\r\n",
            "PROXY TCP4 192.0.2.\u{661} 198.51.100.7 51000 443\r\n",
            "PROXY TCP6 192.0.2.1 198.51.100.7 51000 443\r\n",
            "PROXY TCP6 2001:db8::1 198.51.100.7 51000 443\r\n",
            "PROXY TCP6 [2001:db8::1] [2001:db8::2] 51000 443\r\n",
            "PROXY TCP6 2001:db8::1%lo 2001:db8::2 51000 443\r\n",
            "PROXY TCP6 2001::db8::1 2001:db8::2 51000 443\r\n",
            "PROXY TCP6 1:2:3:4:5:6:7:8:9 2001:db8::2 51000 443\r\n",
            "PROXY TCP6 1:2:3:4:5:6:7 2001:db8::2 51000 443\r\n",
            "PROXY TCP6 12345::1 2001:db8::2 51000 443\r\n",
            "PROXY TCP6 2001:db8::g 2001:db8::2 51000 443\r\n",
            // Ports.
            "PROXY TCP4 192.0.2.1 198.51.100.7 65536 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 51000 65536\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 051000 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 51000 00\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 -1 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 51000 -0\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 0x1 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 http 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 51000 99999999999999999999\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 51000 443\0\r\n",
            "PROXY TCP4 192.0.2.1\0 198.51.100.7 51000 443\r\n",
            "PROXY TCP4 192.0.2.1\r 198.51.100.7 51000 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 51000 080\r\n",
            // Ends.
            "PROXY TCP4 192.0.2.1 198.51.100.7 51000 443\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 51000 443\n\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 51000 443\r\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 51000 443\r \n",
            "PROXY TCP4 192.0.2.1 198.51.100.7\r 51000 443\r\n",
            "PROXY TCP4\r192.0.2.1\r198.51.100.7\r51000\r443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7\n51000 443\r\n",
            "PROXY UNKNOWN\n",
            // So long that there is no end in time.
            &format!("PROXY TCP4 192.0.2.1 198.51.100.7 51000 443\r{long}"),
            &format!("PROXY UNKNOWN {long}\r\n"),
            &with_return_late,
            &format!("PROXY {}", "x".repeat(101)),
        ]
        .map(str::to_owned)
        .to_vec()
    }

    #[test]
    fn a_line_that_is_no_header_is_malformed() {
        assert_malformed(&[Version::V1, Version::Any], &bad_lines());
    }

    #[test]
    fn a_line_that_is_no_header_is_malformed_where_any_version_may_come() {
        // As many bytes as tell version 1 from version 2 are read before the line is looked at.
        let request = "GET / HTTP/1.1\r\n\r\n";
        let lines: Vec<_> = bad_lines()
            .iter()
            .map(|line| format!("{line}{request}"))
            .collect();
        assert_malformed(&[Version::Any], &lines);
    }

    /// "Decimal integer": digits.
    #[test]
    fn a_port_with_a_sign_is_malformed() {
        let line = |ports| format!("PROXY TCP4 192.0.2.1 198.51.100.7 {ports}\r\n");
        let bad = ["+51000 443", "51000 +443", "+0 443"].map(line);
        assert_malformed(&[Version::V1, Version::Any], &bad);
    }

    /// "The receiver must not tolerate a single CR or LF character to end the line."
    #[test]
    fn a_line_that_ends_in_a_space_in_the_place_of_its_return_is_malformed() {
        let bad = [
            "PROXY TCP4 192.0.2.1 198.51.100.7 51000 443 \n",
            "PROXY UNKNOWN \n",
            "PROXY UNKNOWN a b c d \n",
        ];
        assert_malformed(&[Version::V1, Version::Any], &bad);
    }

    #[test]
    fn a_wrong_signature_is_malformed_wherever_it_is_wrong() {
        let wrong = |place: usize| {
            let mut bad = v2(PROXY, 0x11, TCP4);
            bad[place] ^= 0x20;
            bad
        };
        let bad: Vec<_> = (0..V2.len()).map(wrong).collect();
        assert_malformed(&[Version::V2, Version::Any], &bad);
    }

    #[test]
    fn a_version_or_command_that_there_is_not_is_malformed() {
        let commands = (0..=255_u8).filter(|command| !matches!(*command, LOCAL | PROXY));
        // Known before the rest has come.
        let begun = commands.map(|command| v2(command, 0x11, &[1; 12])[..V2_FIXED].to_vec());
        assert_malformed(&[Version::V2, Version::Any], &begun.collect::<Vec<_>>());
    }

    #[test]
    fn a_family_that_there_is_not_is_malformed() {
        let bad = [0x13, 0x1f, 0x23, 0x33, 0x0f, 0x40, 0x41, 0x51, 0x91, 0xf1]
            .map(|family| v2(PROXY, family, &[1; 300])[..V2_FIXED].to_vec());
        assert_malformed(&[Version::V2, Version::Any], &bad);
    }

    #[test]
    fn a_length_without_room_for_the_addresses_is_malformed() {
        let bad = [
            (0x11, 0),
            (0x11, 1),
            (0x11, 11),
            (0x12, 11),
            (0x21, 0),
            (0x21, 12),
            (0x21, 35),
            (0x22, 35),
            (0x31, 0),
            (0x31, 215),
            (0x32, 215),
        ]
        .map(|(family, length)| v2(PROXY, family, &vec![1; length])[..V2_FIXED].to_vec());
        assert_malformed(&[Version::V2, Version::Any], &bad);
    }

    #[test]
    fn a_header_of_the_other_version_is_malformed() {
        let binary = [v2(PROXY, 0x11, TCP4), v2(LOCAL, 0, b"")];
        assert_malformed(&[Version::V1], &binary);
        let text = [
            "PROXY TCP4 192.0.2.1 198.51.100.7 12345 80\r\n",
            "PROXY UNKNOWN\r\n",
        ];
        assert_malformed(&[Version::V2], &text);
    }

    #[test]
    fn addresses_of_another_kind_than_the_connection_are_not_used() {
        use Version::{Any, V2};
        for (family, rest) in [
            (0x00, &b""[..]),
            (0x00, &[0xff; 300]),
            (0x12, &[1; 12]),
            (0x22, &[1; 36]),
            (0x31, &[b'x'; 216]),
            (0x32, &[0; 216]),
        ] {
            assert_reads(&[V2, Any], &v2(PROXY, family, rest), ProxyCommand::Local);
        }
    }

    /// "The receiver must ignore anything presented before the CRLF."
    #[test]
    fn whatever_a_line_of_an_unknown_client_says_is_ignored() {
        use Version::{Any, V1};
        let line = b"PROXY UNKNOWN one two three four five six seven\r\n";
        assert_reads(&[V1, Any], line, ProxyCommand::Local);
        assert_reads(
            &[V1, Any],
            b"PROXY UNKNOWN \xff\xfe\r\n",
            ProxyCommand::Local,
        );
    }

    #[test]
    fn headers_are_as_long_as_they_say_whatever_they_hold() {
        use Version::{Any, V2};
        let expected = client("192.0.2.1:12345", "198.51.100.7:80");
        for more in [
            &b"\x04"[..],
            b"\x04\xff\xff",
            b"\x20\0\0",
            &[0; 4080],
            &[0xff; 4096],
            super::V2,
        ] {
            assert_reads(
                &[V2, Any],
                &v2(PROXY, 0x11, &[TCP4, more].concat()),
                expected,
            );
        }
    }

    #[test]
    fn the_longest_lines_may_come_byte_by_byte() {
        use Version::{Any, V1};
        let most = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let line = format!("PROXY TCP6 {most} {most} 65535 65535\r\n");
        assert_eq!(line.len(), 104);
        let expected = client(&format!("[{most}]:65535"), &format!("[{most}]:65535"));
        assert_reads(&[V1, Any], line.as_bytes(), expected);
        let line = format!("PROXY UNKNOWN {most} {most} 65535 65535\r\n");
        assert_eq!(line.len(), V1_MOST);
        assert_reads(&[V1, Any], line.as_bytes(), ProxyCommand::Local);
    }

    #[test]
    fn a_long_header_may_come_byte_by_byte() {
        use Version::{Any, V2};
        let padding = [&[4, 1, 44][..], &[b'\n'; 300]].concat();
        let header = v2(PROXY, 0x11, &[TCP4, &padding].concat());
        assert_reads(
            &[V2, Any],
            &header,
            client("192.0.2.1:12345", "198.51.100.7:80"),
        );
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
