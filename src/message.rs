//! The payload of a message: what is known of a connection, to bytes and back. Pure.
//!
//! A payload is `NAME=value` lines, each ended by a newline, the first of them `FDTOOLS=1`.
//! It comes from outside: [`Info::decode`] keeps only the names of [`VARIABLES`], and of those
//! only values that are what the name promises.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

/// The first line of every payload: the format's version.
pub const VERSION_LINE: &[u8] = b"FDTOOLS=1\n";

/// The most bytes that a payload may have.
pub const MAX_PAYLOAD: usize = 4096;

/// What a value must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `TCP` or `IPC`.
    Protocol,
    /// An IPv4 or IPv6 address.
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
    kind: Kind,
}

impl Variable {
    /// Its name, as in the environment: `TCPREMOTEIP`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether `value` is what this name promises.
    fn accepts(&self, value: &[u8]) -> bool {
        let text = || std::str::from_utf8(value).ok();
        match self.kind {
            Kind::Protocol => value == b"TCP" || value == b"IPC",
            Kind::Ip => text().is_some_and(|text| text.parse::<IpAddr>().is_ok()),
            Kind::Port => is_number(value) && text().is_some_and(|t| t.parse::<u16>().is_ok()),
            Kind::Number => is_number(value) && text().is_some_and(|t| t.parse::<u32>().is_ok()),
            Kind::Path => !value.is_empty() && !value.iter().any(u8::is_ascii_control),
        }
    }
}

/// Digits only: what `parse` takes besides them (`+5`) is no number here.
fn is_number(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(u8::is_ascii_digit)
}

macro_rules! variables {
    ($($(#[$doc:meta])* $constant:ident = $name:literal, $kind:ident;)*) => {
        $($(#[$doc])* pub const $constant: Variable = Variable { name: $name, kind: Kind::$kind };)*
        /// The whole table. Nothing outside it gets from a message into an environment.
        pub const VARIABLES: &[Variable] = &[$($constant),*];
    };
}

variables! {
    /// The protocol, `TCP` or `IPC` (UCSPI).
    PROTO = "PROTO", Protocol;
    /// The client's address (UCSPI).
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

/// What a Unix connection tells of its two ends.
#[derive(Clone, Copy, Debug, Default)]
pub struct UnixPeer<'a> {
    /// The client's uid, gid and pid (`SO_PEERCRED`).
    pub credentials: Option<(u32, u32, u32)>,
    /// The client's own name; `@` stands for the leading NUL of an abstract one.
    pub remote_path: Option<&'a [u8]>,
    /// The name it connected to.
    pub local_path: Option<&'a [u8]>,
}

/// What is known of one connection: a value for some of [`VARIABLES`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Info {
    values: Vec<(Variable, Vec<u8>)>,
}

impl Info {
    /// Nothing known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What a TCP connection tells: both addresses. A mapped address (`::ffff:192.0.2.1`) is
    /// written as the IPv4 address that it is.
    pub fn tcp(remote: SocketAddr, local: SocketAddr) -> Self {
        let ip = |address: SocketAddr| address.ip().to_canonical().to_string();
        let port = |address: SocketAddr| address.port().to_string();
        // All of them are what their names promise.
        let values = [
            (PROTO, "TCP".into()),
            (TCP_REMOTE_IP, ip(remote)),
            (TCP_REMOTE_PORT, port(remote)),
            (TCP_LOCAL_IP, ip(local)),
            (TCP_LOCAL_PORT, port(local)),
        ];
        let values = values.map(|(variable, value)| (variable, value.into_bytes()));
        Self {
            values: values.into(),
        }
    }

    /// What a Unix connection tells. A client chooses the name of its own socket, so a name with
    /// a control byte in it is left out.
    pub fn unix(peer: UnixPeer<'_>) -> Self {
        let mut info = Self::new();
        info.set(PROTO, "IPC");
        if let Some((uid, gid, pid)) = peer.credentials {
            info.set(IPC_REMOTE_EUID, uid.to_string());
            info.set(IPC_REMOTE_EGID, gid.to_string());
            // 0 stands for one that has no number here: it is in another container.
            if pid != 0 {
                info.set(IPC_REMOTE_PID, pid.to_string());
            }
        }
        if let Some(path) = peer.remote_path {
            info.set(IPC_REMOTE_PATH, path);
        }
        if let Some(path) = peer.local_path {
            info.set(IPC_LOCAL_PATH, path);
        }
        info
    }

    /// Gives `variable` a value. Returns false, and leaves it without one, if the value is not
    /// what the name promises.
    pub fn set(&mut self, variable: Variable, value: impl AsRef<[u8]>) -> bool {
        let value = value.as_ref();
        self.values.retain(|(known, _)| *known != variable);
        let accepted = variable.accepts(value);
        if accepted {
            self.values.push((variable, value.to_vec()));
        }
        accepted
    }

    /// The value of `variable`, if there is one.
    pub fn get(&self, variable: Variable) -> Option<&[u8]> {
        let found = self.values.iter().find(|(known, _)| *known == variable);
        found.map(|(_, value)| value.as_slice())
    }

    /// Every variable that has a value, with `REMOTE_ADDR` and `REMOTE_PORT` taken from the TCP
    /// ones where they do not have one of their own.
    pub fn variables(&self) -> impl Iterator<Item = (Variable, &[u8])> {
        let alias = |alias: Variable, of: Variable| match self.get(alias) {
            Some(_) => None,
            None => self.get(of).map(|value| (alias, value)),
        };
        let own = self.values.iter();
        own.map(|(variable, value)| (*variable, value.as_slice()))
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

    /// The payload of a message that says all this: at most [`MAX_PAYLOAD`] bytes. A value that
    /// would not fit is left out.
    pub fn encode(&self) -> Vec<u8> {
        let mut payload = Vec::with_capacity(256);
        payload.extend_from_slice(VERSION_LINE);
        for (variable, value) in &self.values {
            if payload.len() + variable.name.len() + value.len() + 2 > MAX_PAYLOAD {
                continue;
            }
            payload.extend_from_slice(variable.name.as_bytes());
            payload.push(b'=');
            payload.extend_from_slice(value);
            payload.push(b'\n');
        }
        payload
    }

    /// Reads a payload. Returns `None` if this is not one, or is one of another version, or says
    /// a name twice: the message then is a bare connection, of which its payload tells nothing.
    /// Names outside the table and values that are not what their name promises are left out.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        if payload.len() > MAX_PAYLOAD {
            return None;
        }
        let lines = payload.strip_prefix(VERSION_LINE)?;
        let lines = match lines {
            [] => return Some(Self::new()),
            _ => lines.strip_suffix(b"\n")?,
        };
        let mut info = Self::new();
        let mut seen = BTreeSet::from([&b"FDTOOLS"[..]]);
        for line in lines.split(|byte| *byte == b'\n') {
            let Some(equals) = line.iter().position(|byte| *byte == b'=') else {
                continue;
            };
            let (name, value) = (&line[..equals], &line[equals + 1..]);
            if !seen.insert(name) {
                return None;
            }
            let known = VARIABLES.iter().find(|known| known.name.as_bytes() == name);
            if let Some(variable) = known.filter(|known| known.accepts(value)) {
                info.values.push((*variable, value.to_vec()));
            }
        }
        Some(info)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(lines: &[u8]) -> Option<Info> {
        Info::decode(&[VERSION_LINE, lines].concat())
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let info = Info::tcp(
            "[::ffff:192.0.2.1]:4000".parse().unwrap(),
            "[::1]:80".parse().unwrap(),
        );
        assert_eq!(info.get(TCP_REMOTE_IP), Some(&b"192.0.2.1"[..]));
        assert_eq!(Info::decode(&info.encode()), Some(info));
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
            "TCPREMOTEIP=127.0.0.1 ",
            "TCPREMOTEPORT=65536",
            "TCPREMOTEPORT=+5",
            "TCPREMOTEPORT=",
            "IPCREMOTEEUID=-1",
            "IPCREMOTEEUID=4294967296",
            "IPCREMOTEPATH=",
            "IPCREMOTEPATH=a\tb",
        ] {
            let info = decode(format!("{line}\n").as_bytes()).unwrap();
            assert_eq!(info, Info::new(), "{line}");
        }
    }

    #[test]
    fn a_name_that_comes_twice_voids_the_payload() {
        assert_eq!(decode(b"TCPREMOTEPORT=1\nTCPREMOTEPORT=1\n"), None);
        assert_eq!(decode(b"FDTOOLS=1\n"), None);
        assert_eq!(decode(b"OTHER=1\nOTHER=2\n"), None);
    }

    #[test]
    fn what_is_no_payload_is_not_understood() {
        for payload in [
            &b""[..],
            b"\0",
            b"127.0.0.1 4000\0",
            b"FDTOOLS=2\n",
            b"FDTOOLS=1",
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
            credentials: Some((1, 2, 3)),
            remote_path: Some(b"/tmp/x\nTCPREMOTEIP=192.0.2.1"),
            local_path: Some(b"/run/\xff"),
        });
        assert_eq!(info.get(IPC_REMOTE_PATH), None);
        assert_eq!(info.get(IPC_LOCAL_PATH), Some(&b"/run/\xff"[..]));
        assert_eq!(info.client(), "1:2");
    }

    #[test]
    fn systemds_names_follow_the_tcp_ones() {
        let info = decode(b"TCPREMOTEIP=::1\nREMOTE_PORT=7\nTCPREMOTEPORT=8\n").unwrap();
        let find = |name| info.variables().find(|(v, _)| v.name() == name).unwrap().1;
        assert_eq!(find("REMOTE_ADDR"), b"::1");
        assert_eq!(find("REMOTE_PORT"), b"7");
    }

    proptest::proptest! {
        #[test]
        fn no_payload_crashes_it_or_brings_in_a_bad_value(lines: Vec<u8>) {
            if let Some(info) = decode(&lines) {
                for (variable, value) in info.variables() {
                    assert!(variable.accepts(value));
                }
                assert_eq!(Info::decode(&info.encode()), Some(info));
            }
        }

        #[test]
        fn likely_names_with_any_value_are_checked(index in 0..VARIABLES.len(), value: Vec<u8>) {
            let mut info = Info::new();
            let accepted = info.set(VARIABLES[index], &value);
            assert_eq!(accepted, VARIABLES[index].accepts(&value));
            assert_eq!(Info::decode(&info.encode()), Some(info));
        }
    }
}
