//! The payload of a message: the facts about a connection, to bytes and back. Pure.
//!
//! A payload is `NAME=value` lines, each with a newline; the first is `FDTOOLS=1`. A payload comes
//! from outside: [`Info::decode`] keeps only names from [`VARIABLES`], with values that are valid
//! for the name.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io::Write;
use std::net::SocketAddr;

use crate::queue::variable::Host;
pub use crate::queue::variable::{
    IPC_LOCAL_PATH, IPC_REMOTE_EGID, IPC_REMOTE_EUID, IPC_REMOTE_PATH, IPC_REMOTE_PID, PROTO,
    REMOTE_ADDR, REMOTE_PORT, TCP_CONN_NUM, TCP_LOCAL_IP, TCP_LOCAL_PORT, TCP_REMOTE_IP,
    TCP_REMOTE_PORT, VARIABLES, Variable,
};

/// The first line of every payload: the format's version.
pub const VERSION_LINE: &[u8] = b"FDTOOLS=1\n";

/// The payload of a message that says nothing: the number of its descriptors. Python's
/// multiprocessing checks that; other receivers of a byte take any.
pub const BARE: &[u8] = &[1];

/// The longest payload in bytes.
pub const MAX_PAYLOAD: usize = 4096;

/// Room for all facts about a TCP connection, so that the buffer does not move.
const TCP_LENGTH: usize = 160;

/// The facts about the two ends of a Unix connection, none at first ([`UnixPeer::default`]).
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct UnixPeer<'a> {
    /// The client's effective uid when it connected (`SO_PEERCRED`).
    pub uid: Option<u32>,
    /// The client's effective gid.
    pub gid: Option<u32>,
    /// The client's process id.
    pub pid: Option<u32>,
    /// The client's own name; `@` stands for the leading NUL of an abstract name.
    pub remote_path: Option<&'a [u8]>,
    /// The name that the client connected to.
    pub local_path: Option<&'a [u8]>,
}

/// The facts about a connection: values for some of [`VARIABLES`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Info {
    /// The payload after its first line: `NAME=value` lines, each name once, each value valid.
    lines: Vec<u8>,
}

impl Info {
    /// No facts yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The facts about a TCP connection: both addresses. A mapped address (`::ffff:192.0.2.1`) is
    /// written as the IPv4 address, a link-local one with the number of its interface
    /// (`fe80::1%2`).
    pub fn tcp(remote: SocketAddr, local: SocketAddr) -> Self {
        let mut info = Self {
            lines: Vec::with_capacity(TCP_LENGTH),
        };
        // All these values are valid.
        info.add(PROTO, "TCP");
        info.add(TCP_REMOTE_IP, Host(remote));
        info.add(TCP_REMOTE_PORT, remote.port());
        info.add(TCP_LOCAL_IP, Host(local));
        info.add(TCP_LOCAL_PORT, local.port());
        info
    }

    /// The facts about a Unix connection. A client chooses the name of its own socket, so a name
    /// with a control byte, or too long for a message, is left out.
    pub fn unix(peer: UnixPeer<'_>) -> Self {
        let mut info = Self::new();
        info.add(PROTO, "IPC");
        info.set_credentials(&peer);
        if let Some(path) = peer.remote_path {
            info.set(IPC_REMOTE_PATH, path);
        }
        if let Some(path) = peer.local_path {
            info.set(IPC_LOCAL_PATH, path);
        }
        info
    }

    /// Sets the value of `variable`; an address is spelled as in RFC 5952. Returns false, and leaves
    /// the variable without a value, if the value is not valid for it, or if a message of
    /// [`MAX_PAYLOAD`] bytes has no room.
    pub fn set(&mut self, variable: Variable, value: impl AsRef<[u8]>) -> bool {
        self.unset(variable);
        self.add_if_valid(variable, value.as_ref())
    }

    /// Gives `variable`, which has no value, one if that is valid and there is room for it.
    fn add_if_valid(&mut self, variable: Variable, value: &[u8]) -> bool {
        let Some(value) = variable.spell(value) else {
            return false;
        };
        let length = self.lines.len() + variable.name().len() + value.len() + b"=\n".len();
        let fits = VERSION_LINE.len() + length <= MAX_PAYLOAD;
        if fits {
            self.add_line(variable, |lines| lines.extend_from_slice(&value));
        }
        fits
    }

    /// Replaces the ids of a Unix client, as far as a message has room for them.
    pub(crate) fn set_credentials(&mut self, peer: &UnixPeer<'_>) {
        let ids = [
            (IPC_REMOTE_EUID, peer.uid),
            (IPC_REMOTE_EGID, peer.gid),
            (IPC_REMOTE_PID, peer.pid),
        ];
        for (variable, id) in ids {
            self.unset(variable);
            if let Some(id) = id {
                self.add_if_valid(variable, id.to_string().as_bytes());
            }
        }
    }

    fn unset(&mut self, variable: Variable) {
        let mut start = 0;
        for line in self.lines.split_inclusive(|byte| *byte == b'\n') {
            let end = start + line.len();
            if line
                .strip_prefix(variable.name().as_bytes())
                .is_some_and(|rest| rest[0] == b'=')
            {
                self.lines.drain(start..end);
                return;
            }
            start = end;
        }
    }

    /// Adds a short, valid value for a variable without one.
    fn add(&mut self, variable: Variable, value: impl Display) {
        self.add_line(variable, |lines| {
            // A write to a vector does not fail.
            let _ = write!(lines, "{value}");
        });
    }

    fn add_line(&mut self, variable: Variable, write_value: impl FnOnce(&mut Vec<u8>)) {
        self.lines.extend_from_slice(variable.name().as_bytes());
        self.lines.push(b'=');
        write_value(&mut self.lines);
        self.lines.push(b'\n');
    }

    /// All names, each from [`VARIABLES`], with their values.
    fn entries(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let lines = self.lines.split(|byte| *byte == b'\n');
        lines.filter_map(split_at_equals)
    }

    /// The value of `variable`; `None` if there is none.
    pub fn get(&self, variable: Variable) -> Option<&[u8]> {
        let mut entries = self.entries();
        let found = entries.find(|(name, _)| *name == variable.name().as_bytes());
        found.map(|(_, value)| value)
    }

    /// Every variable with a value. `REMOTE_ADDR` and `REMOTE_PORT` default to the TCP variables.
    pub fn variables(&self) -> impl Iterator<Item = (Variable, &[u8])> {
        let alias = |alias: Variable, of: Variable| match self.get(alias) {
            Some(_) => None,
            None => self.get(of).map(|value| (alias, value)),
        };
        let own = self.entries();
        own.filter_map(|(name, value)| Some((VARIABLES[index_of(name)?], value)))
            .chain(alias(REMOTE_ADDR, TCP_REMOTE_IP))
            .chain(alias(REMOTE_PORT, TCP_REMOTE_PORT))
    }

    /// The client in a few characters for a log: its address, `UID:GID`, or `unknown`.
    pub fn client(&self) -> String {
        let text = |variable| {
            self.get(variable)
                .map(|value| String::from_utf8_lossy(value).into_owned())
        };
        if let Some(ip) = text(TCP_REMOTE_IP) {
            return ip;
        }
        match (text(IPC_REMOTE_EUID), text(IPC_REMOTE_EGID)) {
            (Some(uid), Some(gid)) => format!("{uid}:{gid}"),
            _ => "unknown".into(),
        }
    }

    /// The payload of a message with these facts, at most [`MAX_PAYLOAD`] bytes.
    pub fn encode(&self) -> Vec<u8> {
        [VERSION_LINE, &self.lines].concat()
    }

    /// Reads a payload. Returns `None` for other bytes, for another version, or for a name that
    /// comes twice: the message then is a bare connection, without facts. Other names and invalid
    /// values are left out.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        if payload.len() > MAX_PAYLOAD {
            return None;
        }
        let lines = payload.strip_prefix(VERSION_LINE)?;
        if !lines.is_empty() && !lines.ends_with(b"\n") {
            return None;
        }
        let mut info = Self {
            lines: Vec::with_capacity(lines.len()),
        };
        let mut seen = [false; VARIABLES.len()];
        let mut seen_others = BTreeSet::new();
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            let Some((name, value)) = split_at_equals(&line[..line.len() - 1]) else {
                continue;
            };
            match index_of(name) {
                Some(index) if seen[index] => return None,
                Some(index) => {
                    seen[index] = true;
                    info.add_if_valid(VARIABLES[index], value);
                }
                None if name == b"FDTOOLS" || !seen_others.insert(name) => return None,
                None => {}
            }
        }
        Some(info)
    }
}

/// The name and the value of a line; `None` if it has no `=`.
fn split_at_equals(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let equals = line.iter().position(|byte| *byte == b'=')?;
    Some((&line[..equals], &line[equals + 1..]))
}

fn index_of(name: &[u8]) -> Option<usize> {
    VARIABLES
        .iter()
        .position(|known| known.name().as_bytes() == name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::{IpAddr, SocketAddrV6};

    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;
    use proptest::strategy::Union;

    use super::*;

    fn decode(lines: &[u8]) -> Option<Info> {
        Info::decode(&[VERSION_LINE, lines].concat())
    }

    #[test]
    fn a_mapped_address_is_told_as_ipv4() {
        let info = Info::tcp(
            "[::ffff:192.0.2.1]:4000".parse().unwrap(),
            "[::1]:80".parse().unwrap(),
        );
        assert_eq!(info.get(TCP_REMOTE_IP), Some(&b"192.0.2.1"[..]));
    }

    #[test]
    fn a_link_local_address_has_the_number_of_its_interface() {
        let address = |ip: &str, scope| SocketAddrV6::new(ip.parse().unwrap(), 1, 0, scope).into();
        let info = Info::tcp(address("fe80::1", 7), address("fe80::2", 0));
        assert_eq!(info.get(TCP_REMOTE_IP), Some(&b"fe80::1%7"[..]));
        assert_eq!(info.get(TCP_LOCAL_IP), Some(&b"fe80::2"[..]));
        assert_eq!(Info::decode(&info.encode()), Some(info));
        let info = Info::tcp(address("2001:db8::1", 7), address("::1", 7));
        assert_eq!(info.get(TCP_REMOTE_IP), Some(&b"2001:db8::1"[..]));
    }

    #[test]
    fn a_name_outside_the_table_is_dropped() {
        let info = decode(b"LD_PRELOAD=/x.so\nPATH=/tmp\nPROTO=TCP\nnothing\n=\n").unwrap();
        let names: Vec<_> = info.variables().map(|(v, _)| v.name()).collect();
        assert_eq!(names, ["PROTO"]);
    }

    #[test]
    fn a_value_that_is_not_what_its_name_promises_is_dropped() {
        for line in [
            "PROTO=UDP",
            "TCPREMOTEIP=localhost",
            "TCPREMOTEIP=192.0.2.1 ",
            "TCPREMOTEIP=192.0.2.256",
            "TCPREMOTEIP=192.0.2.1;reboot",
            "TCPREMOTEIP=[::1]",
            "TCPREMOTEIP=::1%lo",
            "TCPREMOTEIP=127.0.0.1%lo",
            "TCPREMOTEIP=fe80::1%",
            "TCPREMOTEIP=",
            "TCPLOCALIP=0x7f.1",
            "REMOTE_ADDR=$(reboot)",
            "TCPREMOTEPORT=65536",
            "TCPREMOTEPORT=-1",
            "TCPREMOTEPORT=+1",
            "TCPREMOTEPORT= 1",
            "TCPREMOTEPORT=",
            "TCPREMOTEPORT=0000000001",
            "TCPREMOTEPORT=01",
            "TCPLOCALPORT=00",
            "IPCREMOTEPID=+1",
            "TCPCONNNUM=01",
            "TCPLOCALPORT=http",
            "REMOTE_PORT=1e3",
            "IPCREMOTEEUID=-1",
            "IPCREMOTEEUID=root",
            "IPCREMOTEEUID=4294967296",
            "IPCREMOTEEGID=-1",
            "IPCREMOTEPID=0x10",
            "IPCREMOTEPATH=",
            "IPCREMOTEPATH=/a\tb",
            "IPCLOCALPATH=/a\x1b[31m",
            "IPCLOCALPATH=/a\x7f",
            "IPCLOCALPATH=/a\0b",
            "TCPCONNNUM=many",
        ] {
            let info = decode(format!("{line}\n").as_bytes()).unwrap();
            assert_eq!(info, Info::new(), "{line}");
        }
    }

    #[test]
    fn an_address_has_one_spelling() {
        for (sent, spelled) in [
            ("192.0.2.1", Some("192.0.2.1")),
            ("::ffff:192.0.2.1", Some("192.0.2.1")),
            ("::FFFF:c000:201", Some("192.0.2.1")),
            ("0:0:0:0:0:0:0:1", Some("::1")),
            ("2001:DB8::000a", Some("2001:db8::a")),
            ("2001:db8::192.0.2.1", Some("2001:db8::c000:201")),
            ("1:2:3::5:6:7:8", Some("1:2:3:0:5:6:7:8")),
            ("192.0.2.01", None),
            ("192.0.2", None),
            ("0xc0000201", None),
            ("2001:db8::0000a", None),
            ("[::1]", None),
            ("FE80::0001%eth0", Some("fe80::1%eth0")),
            ("fe80::1%br-0.7_x", Some("fe80::1%br-0.7_x")),
            ("fe80::1%4294967295", Some("fe80::1%4294967295")),
            ("fe80::1%4294967296", None),
            ("fe80::1%0", None),
            ("fe80::1%01", None),
            ("fe80::1%+1", None),
            ("fe80::1%eth0%eth0", None),
            ("fe80::1%an-interface-of16", None),
            ("fe80::1%$(reboot)", None),
            ("fe80::1%e\th", None),
            ("2001:db8::1%eth0", None),
            ("::ffff:192.0.2.1%eth0", None),
        ] {
            let spelled = spelled.map(str::as_bytes);
            let decoded = decode(format!("TCPREMOTEIP={sent}\n").as_bytes()).unwrap();
            assert_eq!(decoded.get(TCP_REMOTE_IP), spelled, "{sent}");
            let mut info = Info::new();
            assert_eq!(info.set(REMOTE_ADDR, sent), spelled.is_some(), "{sent}");
            assert_eq!(info.get(REMOTE_ADDR), spelled, "{sent}");
        }
    }

    #[test]
    fn an_address_that_gets_longer_than_its_message_allows_is_left_out() {
        let path = vec![b'x'; MAX_PAYLOAD - VERSION_LINE.len() - "IPCLOCALPATH=\n".len() - 27];
        let lines = [
            b"IPCLOCALPATH=",
            &path[..],
            b"\nTCPREMOTEIP=1:2:3::5:6:7:8\n",
        ]
        .concat();
        assert_eq!(VERSION_LINE.len() + lines.len(), MAX_PAYLOAD);
        let info = decode(&lines).unwrap();
        assert_eq!(info.get(IPC_LOCAL_PATH), Some(&path[..]));
        assert_eq!(info.get(TCP_REMOTE_IP), None);
    }

    #[test]
    fn a_number_has_one_spelling() {
        let info = decode(b"TCPREMOTEPORT=00080\nTCPLOCALPORT=80\nREMOTE_PORT=0\n").unwrap();
        assert_eq!(info.get(TCP_REMOTE_PORT), None);
        assert_eq!(info.get(TCP_LOCAL_PORT), Some(&b"80"[..]));
        assert_eq!(info.get(REMOTE_PORT), Some(&b"0"[..]));
    }

    #[test]
    fn a_name_that_comes_twice_voids_the_payload() {
        assert_eq!(decode(b"TCPREMOTEPORT=1\nTCPREMOTEPORT=1\n"), None);
        assert_eq!(decode(b"FDTOOLS=1\n"), None);
        assert_eq!(decode(b"PROTO=TCP\nFDTOOLS=1\n"), None);
        assert_eq!(decode(b"PROTO=TCP\nOTHER=2\nPROTO=TCP\n"), None);
        assert_eq!(decode(b"OTHER=1\nOTHER=2\n"), None);
    }

    #[test]
    fn what_is_no_payload_is_not_understood() {
        for payload in [
            &b""[..],
            b"x",
            b"\0",
            b"\n",
            b"127.0.0.1 4000\0",
            b"FDTOOLS=2\nPROTO=TCP\n",
            b"FDTOOLS=\nPROTO=TCP\n",
            b"FDTOOLS=1",
            b" FDTOOLS=1\nPROTO=TCP\n",
            b"fdtools=1\nPROTO=TCP\n",
            b"PROTO=TCP\nFDTOOLS=1\n",
            b"FDTOOLS=1\r\nPROTO=TCP\r\n",
            b"FDTOOLS=1\nPROTO=TCP",
            &[b'x'; 5000],
        ] {
            assert_eq!(Info::decode(payload), None, "{payload:?}");
        }
        assert_eq!(Info::decode(VERSION_LINE), Some(Info::new()));
    }

    #[test]
    fn a_path_with_a_control_byte_is_not_sent() {
        let info = Info::unix(UnixPeer {
            uid: Some(1),
            gid: Some(2),
            remote_path: Some(b"/tmp/x\nTCPREMOTEIP=192.0.2.1"),
            local_path: Some(b"/run/\xff"),
            ..UnixPeer::default()
        });
        assert_eq!(info.get(IPC_REMOTE_PATH), None);
        assert_eq!(info.get(IPC_LOCAL_PATH), Some(&b"/run/\xff"[..]));
        assert_eq!(info.client(), "1:2");
    }

    #[test]
    fn what_has_no_room_in_a_message_is_left_out() {
        let mut info = Info::new();
        let room = MAX_PAYLOAD - VERSION_LINE.len() - "IPCLOCALPATH=\n".len();
        assert!(!info.set(IPC_LOCAL_PATH, vec![b'x'; room + 1]));
        assert_eq!(info, Info::new());
        assert!(info.set(IPC_LOCAL_PATH, vec![b'x'; room]));
        assert!(!info.set(PROTO, "IPC"));
        assert_eq!(info.encode().len(), MAX_PAYLOAD);
        // The new value takes the place of the old one.
        assert!(info.set(IPC_LOCAL_PATH, "/run/x"));
        assert!(info.set(PROTO, "IPC"));
        assert_eq!(info.get(IPC_LOCAL_PATH), Some(&b"/run/x"[..]));
    }

    #[test]
    fn systemds_names_follow_the_tcp_ones() {
        let info = decode(b"TCPREMOTEIP=::1\nREMOTE_PORT=7\nTCPREMOTEPORT=8\n").unwrap();
        let find = |name| info.variables().find(|(v, _)| v.name() == name).unwrap().1;
        assert_eq!(find("REMOTE_ADDR"), b"::1");
        assert_eq!(find("REMOTE_PORT"), b"7");
    }

    /// A variable with a value that it may have.
    fn valid() -> impl Strategy<Value = (Variable, Vec<u8>)> {
        let path = vec(any::<u8>(), 1..120).prop_map(|mut path| {
            path.retain(|byte| !byte.is_ascii_control());
            path.push(b'/');
            path
        });
        let ip = any::<IpAddr>().prop_map(|ip| ip.to_string().into_bytes());
        let port = any::<u16>().prop_map(|port| port.to_string().into_bytes());
        let number = any::<u32>().prop_map(|number| number.to_string().into_bytes());
        let protocol = select(vec![b"TCP".to_vec(), b"IPC".to_vec()]);
        (select(VARIABLES), path, ip, port, number, protocol).prop_map(
            |(variable, path, ip, port, number, protocol)| {
                let value = match variable.name() {
                    "PROTO" => protocol,
                    name if name.ends_with("IP") || name.ends_with("ADDR") => ip,
                    name if name.ends_with("PORT") => port,
                    name if name.ends_with("PATH") => path,
                    _ => number,
                };
                (variable, value)
            },
        )
    }

    /// A payload that the library wrote, and the information that it says.
    fn payload() -> impl Strategy<Value = (Info, Vec<u8>)> {
        vec(valid(), 0..14).prop_map(|values| {
            let mut info = Info::new();
            for (variable, value) in values {
                assert!(info.set(variable, &value), "{variable:?} {value:?}");
            }
            let payload = info.encode();
            (info, payload)
        })
    }

    /// Lines that look like a payload's.
    fn likely_lines() -> impl Strategy<Value = Vec<u8>> {
        let names = VARIABLES.iter().map(|variable| variable.name());
        let names: Vec<_> = names.chain(["FDTOOLS", "PATH", "LD_PRELOAD", ""]).collect();
        let values = Union::new([
            select(vec![
                "TCP",
                "IPC",
                "::1",
                "192.0.2.1",
                "fe80::1%eth0",
                "fe80::1%3",
                "::1%lo",
                "80",
                "080",
                "0",
                "65536",
                "-1",
                "/x",
                "a b",
            ])
            .prop_map(|text| text.as_bytes().to_vec())
            .boxed(),
            vec(any::<u8>(), 0..20).boxed(),
        ]);
        let line = (select(names), values).prop_map(|(name, value)| {
            let mut line = name.as_bytes().to_vec();
            line.push(b'=');
            line.extend(value);
            line.push(b'\n');
            line
        });
        vec(line, 0..10).prop_map(|lines| [VERSION_LINE, &lines.concat()].concat())
    }

    /// Some change of some bytes.
    fn mutate(bytes: &mut Vec<u8>, changes: &[(u8, usize, u8)]) {
        for (kind, at, byte) in changes {
            let at = at % (bytes.len() + 1);
            match kind % 4 {
                0 => bytes.insert(at, *byte),
                1 => bytes.truncate(at),
                2 if at < bytes.len() => bytes[at] = *byte,
                _ if at < bytes.len() => {
                    bytes.remove(at);
                }
                _ => {}
            }
        }
    }

    fn changes() -> impl Strategy<Value = Vec<(u8, usize, u8)>> {
        vec((any::<u8>(), any::<usize>(), any::<u8>()), 1..5)
    }

    /// Whether a variable has a value that it may have: said here once more, in other words.
    fn is_valid(name: &str, value: &[u8]) -> bool {
        let text = std::str::from_utf8(value).unwrap_or("?");
        let is_u16 = text
            .parse()
            .is_ok_and(|number: u16| number.to_string() == text);
        let is_u32 = text
            .parse()
            .is_ok_and(|number: u32| number.to_string() == text);
        match name {
            "PROTO" => ["TCP", "IPC"].contains(&text),
            "TCPREMOTEIP" | "TCPLOCALIP" | "REMOTE_ADDR" => {
                let (ip, zone) = text.split_once('%').unwrap_or((text, "any"));
                let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
                let is_linked = ip.starts_with("fe8") || ip.starts_with("fe9");
                let is_linked = is_linked || ip.starts_with("fea") || ip.starts_with("feb");
                let is_zone = (1..16).contains(&zone.len()) && zone.chars().all(is_plain);
                ip.parse::<IpAddr>().is_ok() && is_zone && (is_linked || ip == text)
            }
            "TCPREMOTEPORT" | "TCPLOCALPORT" | "REMOTE_PORT" => is_u16,
            "IPCREMOTEEUID" | "IPCREMOTEEGID" | "IPCREMOTEPID" | "TCPCONNNUM" => is_u32,
            "IPCREMOTEPATH" | "IPCLOCALPATH" => {
                !value.is_empty() && value.iter().all(|byte| *byte >= 0x20 && *byte != 0x7f)
            }
            _ => false,
        }
    }

    /// Checks what was decoded: no name outside the table, none twice, and no bad value.
    fn check(payload: &[u8]) -> Result<(), TestCaseError> {
        let Some(info) = Info::decode(payload) else {
            return Ok(());
        };
        prop_assert!(payload.len() <= MAX_PAYLOAD && payload.starts_with(VERSION_LINE));
        let mut seen = BTreeSet::new();
        for (variable, value) in info.variables() {
            prop_assert!(is_valid(variable.name(), value), "{variable:?} {value:?}");
            prop_assert!(seen.insert(variable.name()), "{} twice", variable.name());
        }
        let client = info.client();
        prop_assert!(!client.is_empty() && !client.chars().any(char::is_control));
        prop_assert_eq!(Info::decode(&info.encode()), Some(info));
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 512,
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn a_payload_says_what_was_put_in((info, payload) in payload()) {
            prop_assert!(payload.len() <= MAX_PAYLOAD);
            prop_assert_eq!(Info::decode(&payload), Some(info));
        }

        #[test]
        fn any_bytes_decode_to_valid_values_or_nothing(bytes in vec(any::<u8>(), 0..5000)) {
            check(&bytes)?;
            check(&[VERSION_LINE, &bytes].concat())?;
        }

        #[test]
        fn likely_lines_decode_to_valid_values_or_nothing(payload in likely_lines()) {
            check(&payload)?;
        }

        #[test]
        fn a_changed_payload_decodes_to_valid_values_or_nothing(
            (_, mut payload) in payload(),
            changes in changes(),
        ) {
            mutate(&mut payload, &changes);
            check(&payload)?;
        }

        #[test]
        fn two_payloads_one_behind_the_other_are_none((_, one) in payload(), (_, other) in payload()) {
            prop_assert_eq!(Info::decode(&[one, other].concat()), None);
        }

        #[test]
        fn a_payload_that_was_cut_within_a_line_is_none((_, payload) in payload(), at: prop::sample::Index) {
            let cut = &payload[..at.index(payload.len())];
            prop_assert_eq!(Info::decode(cut).is_some(), cut.ends_with(b"\n"));
        }

        #[test]
        fn a_tcp_connection_is_told_with_addresses_that_parse(remote: SocketAddr, local: SocketAddr) {
            let info = Info::tcp(remote, local);
            check(&info.encode())?;
            let told: Vec<_> = info.variables().map(|(variable, _)| variable.name()).collect();
            for name in ["TCPREMOTEIP", "TCPREMOTEPORT", "TCPLOCALIP", "TCPLOCALPORT", "REMOTE_ADDR"] {
                prop_assert!(told.contains(&name));
            }
            let ip = remote.ip().to_canonical();
            let expected = match remote {
                SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() && v6.scope_id() != 0 => {
                    format!("{ip}%{}", v6.scope_id())
                }
                _ => ip.to_string(),
            };
            prop_assert_eq!(info.client(), expected);
        }

        #[test]
        fn no_path_of_a_client_writes_a_line(path in vec(any::<u8>(), 0..200), local in vec(any::<u8>(), 0..200)) {
            let info = Info::unix(UnixPeer {
                uid: Some(1),
                gid: Some(2),
                pid: Some(3),
                remote_path: Some(&path),
                local_path: Some(&local),
            });
            let payload = info.encode();
            check(&payload)?;
            let lines = payload.iter().filter(|byte| **byte == b'\n').count();
            prop_assert_eq!(lines, 1 + info.variables().count());
            prop_assert_eq!(info.client(), "1:2");
        }

        #[test]
        fn a_value_that_is_too_long_is_left_out_and_the_rest_is_said(length in 3900usize..5000) {
            let long = vec![b'x'; length];
            let info = Info::unix(UnixPeer {
                uid: Some(1),
                gid: Some(2),
                pid: Some(3),
                remote_path: Some(&long),
                local_path: Some(b"/run/s"),
            });
            let payload = info.encode();
            prop_assert!(payload.len() <= MAX_PAYLOAD);
            let decoded = Info::decode(&payload).unwrap();
            prop_assert_eq!(decoded.client(), "1:2");
            for (variable, value) in decoded.variables() {
                prop_assert_eq!(info.get(variable), Some(value));
            }
        }

        #[test]
        fn likely_names_with_any_value_are_checked(variable in select(VARIABLES), value: Vec<u8>) {
            let mut info = Info::new();
            let accepted = info.set(variable, &value);
            prop_assert_eq!(accepted, is_valid(variable.name(), &value));
            prop_assert_eq!(Info::decode(&info.encode()), Some(info));
        }
    }
}
