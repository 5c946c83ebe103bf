//! Both ends of a connection as text for a log. Pure.

use crate::queue::message::{
    IPC_LOCAL_PATH, IPC_REMOTE_EUID, IPC_REMOTE_PATH, IPC_REMOTE_PID, Info, TCP_LOCAL_IP,
    TCP_LOCAL_PORT, TCP_REMOTE_IP, TCP_REMOTE_PORT, Variable,
};

/// The longest path in a log, which is that of a Unix socket. A message may tell a longer one.
const LONGEST: usize = 108;

/// The client with what tells its connections apart: `192.0.2.7:45678`, `[2001:db8::7]:45678`, or
/// `1000:1000 (pid 4321)`.
pub(crate) fn client(info: &Info) -> String {
    let known = |variable| text(info, variable);
    match (
        known(TCP_REMOTE_IP),
        known(TCP_REMOTE_PORT),
        known(IPC_REMOTE_PID),
    ) {
        (Some(ip), Some(port), _) => format!("{}:{port}", bracketed(&ip)),
        (None, _, Some(pid)) => format!("{} (pid {pid})", info.client()),
        _ => info.client(),
    }
}

/// Both ends in tcpserver's words, which are `NAME:IP:PORT NAME:IP:INFO:PORT`, the server's first. No
/// name is looked up. A Unix connection has paths for addresses, the client's uid for the info, and
/// its pid for the port. What is not known is empty.
pub(crate) fn both(info: &Info) -> String {
    let known = |variable| text(info, variable).unwrap_or_default();
    let address = |ip, path| match text(info, ip) {
        Some(ip) => bracketed(&ip),
        None => info.get(path).map(plain).unwrap_or_default(),
    };
    let port = [TCP_REMOTE_PORT, IPC_REMOTE_PID].map(|variable| text(info, variable));
    format!(
        ":{}:{} :{}:{}:{}",
        address(TCP_LOCAL_IP, IPC_LOCAL_PATH),
        known(TCP_LOCAL_PORT),
        address(TCP_REMOTE_IP, IPC_REMOTE_PATH),
        known(IPC_REMOTE_EUID),
        port.into_iter().flatten().next().unwrap_or_default()
    )
}

fn text(info: &Info, variable: Variable) -> Option<String> {
    let value = info.get(variable)?;
    Some(String::from_utf8_lossy(value).into_owned())
}

/// The colons of an IPv6 address are none of the line's.
fn bracketed(ip: &str) -> String {
    if ip.contains(':') {
        format!("[{ip}]")
    } else {
        ip.to_owned()
    }
}

/// As tcpserver shows a name: bytes that would be taken for a part of the line are a `?`.
fn plain(path: &[u8]) -> String {
    let bytes = path.iter().take(LONGEST);
    let shown = bytes.map(|byte| match byte {
        b':' | b'%' => '?',
        _ if byte.is_ascii_graphic() => char::from(*byte),
        _ => '?',
    });
    shown.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::message::{PROTO, UnixPeer};

    fn tcp(remote: &str, local: &str) -> Info {
        Info::tcp(remote.parse().unwrap(), local.parse().unwrap())
    }

    #[test]
    fn a_tcp_connection_is_shown_as_by_tcpserver() {
        let info = tcp("127.0.0.1:45678", "127.0.0.1:8888");
        assert_eq!(both(&info), ":127.0.0.1:8888 :127.0.0.1::45678");
        assert_eq!(client(&info), "127.0.0.1:45678");
        let info = tcp("[2001:db8::7]:45678", "[::1]:8888");
        assert_eq!(both(&info), ":[::1]:8888 :[2001:db8::7]::45678");
        assert_eq!(client(&info), "[2001:db8::7]:45678");
        let info = tcp("[::ffff:192.0.2.7]:45678", "[::ffff:192.0.2.1]:8888");
        assert_eq!(both(&info), ":192.0.2.1:8888 :192.0.2.7::45678");
    }

    #[test]
    fn a_unix_connection_has_the_uid_and_the_pid_of_its_client() {
        let peer = UnixPeer {
            uid: Some(1000),
            gid: Some(100),
            pid: Some(4321),
            remote_path: Some(b"/tmp/a b:c%d\xff"),
            local_path: Some(b"/run/x.sock"),
        };
        let info = Info::unix(peer);
        assert_eq!(both(&info), ":/run/x.sock: :/tmp/a?b?c?d?:1000:4321");
        assert_eq!(client(&info), "1000:100 (pid 4321)");
        let unnamed = UnixPeer {
            remote_path: None,
            pid: None,
            ..peer
        };
        assert_eq!(both(&Info::unix(unnamed)), ":/run/x.sock: ::1000:");
        assert_eq!(client(&Info::unix(unnamed)), "1000:100");
    }

    #[test]
    fn what_is_not_known_is_empty() {
        let mut info = Info::new();
        assert_eq!(both(&info), ":: :::");
        assert_eq!(client(&info), "unknown");
        info.set(PROTO, "TCP");
        info.set(TCP_REMOTE_IP, "fe80::1%eth0");
        assert_eq!(both(&info), ":: :[fe80::1%eth0]::");
        assert_eq!(client(&info), "fe80::1%eth0");
        info.set(TCP_REMOTE_PORT, "7");
        assert_eq!(client(&info), "[fe80::1%eth0]:7");
        info.set(IPC_LOCAL_PATH, "x".repeat(3000));
        assert_eq!(both(&info).len(), LONGEST + ":: :[fe80::1%eth0]::7".len());
    }
}
