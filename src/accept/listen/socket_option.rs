//! Socket options for a listener. Help, parsing and setting all use one table.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, setsockopt, sockopt};

use crate::accept::listen::backlog;
use crate::accept::listen::keepalive::{self, Probes};
use crate::error::{Error, Result};
use crate::system::text::{digits, parse_seconds};

/// A socket option and its value, as in `-o NAME[=VALUE]`.
#[derive(Clone, Copy)]
pub(crate) struct SocketOption {
    row: &'static Row,
    /// Of [`Takes::Seconds`] in milliseconds.
    value: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// Before the listener is bound, so not on an inherited listener.
    BeforeBind,
    /// At any time, so on an inherited listener, too.
    AnyTime,
}

#[derive(Clone, Copy)]
enum Takes {
    /// Nothing, `=1` or `=0`.
    Flag,
    /// Nothing, or a number within these bounds.
    Optional(&'static str, u32, u32),
    /// A number within these bounds.
    Number(&'static str, u32, u32),
    /// Seconds with an optional fraction.
    Seconds,
}

/// A TCP option. A Unix or vsock listener lacks the option, or does not pass it on to accepted
/// connections (seen for `rcvbuf` and `sndbuf`).
struct Row {
    name: &'static str,
    takes: Takes,
    families: &'static [AddressFamily],
    when: When,
    help: &'static str,
    set: fn(BorrowedFd<'_>, Option<u32>) -> nix::Result<()>,
}

const TCP: &[AddressFamily] = &[AddressFamily::Inet, AddressFamily::Inet6];

/// The kernel stores a buffer size as an int, and doubles it.
const MAX_BUFFER: u32 = i32::MAX as u32 / 2;

/// The kernel stores milliseconds as an int.
const MAX_MILLISECONDS: u32 = i32::MAX as u32;

/// The options, in the order in which they are set: `keepalive` sets a user timeout, which
/// `user-timeout` replaces.
const TABLE: &[Row] = &[
    Row {
        name: "nodelay",
        takes: Takes::Flag,
        families: TCP,
        when: When::AnyTime,
        help: "send small packets at once (TCP_NODELAY)",
        set: |fd, value| setsockopt(&fd, sockopt::TcpNoDelay, &is_on(value)),
    },
    Row {
        name: "keepalive",
        takes: Takes::Optional("SECONDS", 1, keepalive::MAX_SECONDS),
        families: TCP,
        when: When::AnyTime,
        help: "end the connections of clients that are gone for SECONDS (SO_KEEPALIVE)",
        set: |fd, value| {
            setsockopt(&fd, sockopt::KeepAlive, &true)?;
            value.map_or(Ok(()), |seconds| Probes::within(seconds).set(fd))
        },
    },
    Row {
        name: "user-timeout",
        takes: Takes::Seconds,
        families: TCP,
        when: When::AnyTime,
        help: "end a connection that takes no data for SECONDS (TCP_USER_TIMEOUT)",
        set: |fd, value| setsockopt(&fd, sockopt::TcpUserTimeout, &value.unwrap_or(0)),
    },
    Row {
        name: "defer",
        takes: Takes::Number("SECONDS", 0, backlog::MAX_DEFERRED),
        families: TCP,
        when: When::AnyTime,
        help: "accept a client once it speaks, or after SECONDS (TCP_DEFER_ACCEPT)",
        set: |fd, value| backlog::defer(fd, value.unwrap_or(0)),
    },
    Row {
        name: "reuseport",
        takes: Takes::Flag,
        families: TCP,
        when: When::BeforeBind,
        help: "share the port with other listeners that say so too (SO_REUSEPORT)",
        set: |fd, value| setsockopt(&fd, sockopt::ReusePort, &is_on(value)),
    },
    Row {
        name: "v6only",
        takes: Takes::Flag,
        families: &[AddressFamily::Inet6],
        when: When::BeforeBind,
        help: "IPv6 only, no IPv4 on the same socket (IPV6_V6ONLY)",
        set: |fd, value| setsockopt(&fd, sockopt::Ipv6V6Only, &is_on(value)),
    },
    Row {
        name: "freebind",
        takes: Takes::Flag,
        families: TCP,
        when: When::BeforeBind,
        help: "bind an address that the machine does not have yet (IP_FREEBIND)",
        // One flag serves both families, and an IPv6 socket takes it at the IPv4 level (seen).
        set: |fd, value| setsockopt(&fd, sockopt::IpFreebind, &is_on(value)),
    },
    Row {
        name: "rcvbuf",
        takes: Takes::Number("BYTES", 1, MAX_BUFFER),
        families: TCP,
        when: When::BeforeBind,
        help: "receive buffer, at most net.core.rmem_max (SO_RCVBUF)",
        set: |fd, value| setsockopt(&fd, sockopt::RcvBuf, &size(value)),
    },
    Row {
        name: "sndbuf",
        takes: Takes::Number("BYTES", 1, MAX_BUFFER),
        families: TCP,
        when: When::BeforeBind,
        help: "send buffer, at most net.core.wmem_max (SO_SNDBUF)",
        set: |fd, value| setsockopt(&fd, sockopt::SndBuf, &size(value)),
    },
];

/// A flag without a value is on.
fn is_on(value: Option<u32>) -> bool {
    value != Some(0)
}

/// The table demands a number, so there is one.
fn size(value: Option<u32>) -> usize {
    value.unwrap_or(0).try_into().unwrap_or(usize::MAX)
}

/// Rounded up: 0 has a meaning of its own.
fn milliseconds(text: &str) -> Option<u32> {
    let number = parse_seconds(text).ok()?.as_nanos().div_ceil(1_000_000);
    let number = u32::try_from(number).ok()?;
    (number <= MAX_MILLISECONDS).then_some(number)
}

/// Parses to the same number of milliseconds.
fn seconds(milliseconds: u32) -> String {
    let duration = Duration::from_millis(milliseconds.into());
    duration.as_secs_f64().to_string()
}

impl SocketOption {
    /// Parses `NAME` or `NAME=VALUE`.
    ///
    /// # Errors
    /// A text that lists the known options, or says what the option takes.
    pub fn parse(text: &str) -> std::result::Result<SocketOption, String> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        let Some(row) = TABLE.iter().find(|row| row.name == name) else {
            let known: Vec<_> = TABLE.iter().map(Row::spelling).collect();
            return Err(format!(
                "no such socket option; known are {}",
                known.join(", ")
            ));
        };
        let bad = |expected: String| format!("write {}: {expected}", row.spelling());
        let number = |min: u32, max: u32, value: &str| match digits(value)
            .filter(|number| (min..=max).contains(number))
        {
            Some(number) => Ok(Some(number)),
            None => Err(bad(format!("the value is a number from {min} to {max}"))),
        };
        let value = match (row.takes, value) {
            (Takes::Flag | Takes::Optional(..), None) => None,
            (Takes::Flag, Some(value)) => number(0, 1, value)?,
            (Takes::Number(..) | Takes::Seconds, None) => {
                return Err(bad("the value is missing".into()));
            }
            (Takes::Optional(_, min, max) | Takes::Number(_, min, max), Some(value)) => {
                number(min, max, value)?
            }
            (Takes::Seconds, Some(value)) => match milliseconds(value) {
                Some(number) => Some(number),
                None => {
                    let most = seconds(MAX_MILLISECONDS);
                    return Err(bad(format!(
                        "the value is a number of seconds from 0 to {most}"
                    )));
                }
            },
        };
        Ok(SocketOption { row, value })
    }

    /// An option with a lower rank is set first.
    pub fn rank(&self) -> Option<usize> {
        TABLE.iter().position(|row| row.name == self.row.name)
    }

    pub fn when(&self) -> When {
        self.row.when
    }

    pub fn applies_to(&self, family: AddressFamily) -> bool {
        self.row.families.contains(&family)
    }

    /// Whether the option excludes IPv4 from an IPv6 listener; `None` for any other option.
    pub fn v6only(&self) -> Option<bool> {
        (self.row.name == "v6only").then(|| is_on(self.value))
    }

    /// # Errors
    /// [`Error::System`] if the kernel refuses the option.
    pub fn apply(&self, socket: BorrowedFd<'_>) -> Result<()> {
        (self.row.set)(socket, self.value)
            .map_err(|errno| Error::system(format!("set socket option {self}"), errno))
    }
}

impl fmt::Display for SocketOption {
    /// The spelling that parses to this option.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row.name)?;
        match (self.row.takes, self.value) {
            (_, None) => Ok(()),
            (Takes::Seconds, Some(value)) => write!(f, "={}", seconds(value)),
            (_, Some(value)) => write!(f, "={value}"),
        }
    }
}

impl fmt::Debug for SocketOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SocketOption({self})")
    }
}

impl PartialEq for SocketOption {
    fn eq(&self, other: &Self) -> bool {
        self.row.name == other.row.name && self.value == other.value
    }
}

impl Eq for SocketOption {}

impl Row {
    /// Name and value as in `--help`: `keepalive[=SECONDS]`.
    fn spelling(&self) -> String {
        match self.takes {
            Takes::Flag => format!("{}[=0|1]", self.name),
            Takes::Optional(unit, ..) => format!("{}[={unit}]", self.name),
            Takes::Number(unit, ..) => format!("{}={unit}", self.name),
            Takes::Seconds => format!("{}=SECONDS", self.name),
        }
    }
}

/// The options for `--help`: 1 line each, with the spelling in a column.
pub(crate) fn help() -> String {
    let lines: Vec<_> = TABLE
        .iter()
        .map(|row| format!("  {:<21}{}", row.spelling(), row.help))
        .collect();
    lines.join("\n")
}

/// Checks that each option applies to at least 1 listener. `listeners` holds the possible families
/// of each listener, and whether it is inherited.
pub(crate) fn check_options(
    options: &[SocketOption],
    listeners: &[(Vec<AddressFamily>, bool)],
) -> Result<()> {
    for option in options {
        let mut concerned = listeners
            .iter()
            .filter(|(families, _)| families.iter().any(|family| option.applies_to(*family)))
            .peekable();
        if concerned.peek().is_none() {
            return Err(Error::Invalid(format!(
                "socket option {option} applies to none of the addresses: leave it out"
            )));
        }
        if option.when() == When::BeforeBind && concerned.all(|(_, inherited)| *inherited) {
            return Err(Error::Invalid(format!(
                "socket option {option} must be set before the listener is bound: \
                 set it where the inherited one is made"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{SockFlag, SockType, getsockopt, socket};
    use proptest::prelude::*;
    use std::os::fd::{AsFd, OwnedFd};

    fn parse(text: &str) -> SocketOption {
        SocketOption::parse(text).unwrap()
    }

    fn tcp() -> OwnedFd {
        let family = AddressFamily::Inet;
        socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap()
    }

    #[test]
    fn options_show_what_parses_to_them() {
        for text in [
            "nodelay",
            "nodelay=0",
            "nodelay=1",
            "keepalive",
            "keepalive=60",
            "user-timeout=60",
            "user-timeout=0.25",
            "user-timeout=2147483.647",
            "user-timeout=0",
            "defer=5",
            "defer=0",
            "reuseport",
            "v6only=0",
            "freebind",
            "rcvbuf=65536",
            "sndbuf=1",
        ] {
            assert_eq!(parse(text).to_string(), text);
            assert_eq!(parse(&parse(text).to_string()), parse(text));
        }
    }

    #[test]
    fn bad_options_say_what_is_wrong() {
        for (text, reason) in [
            ("", "known are nodelay[=0|1], keepalive[=SECONDS]"),
            ("foo", "known are nodelay"),
            ("Nodelay", "no such socket option"),
            ("=1", "known are nodelay"),
            ("nodelay=2", "from 0 to 1"),
            ("nodelay=", "from 0 to 1"),
            ("keepalive=", "the value is a number from 1 to 32767"),
            ("keepalive=x", "from 1 to 32767"),
            ("keepalive=0", "from 1 to 32767"),
            ("keepalive=+5", "from 1 to 32767"),
            ("keepalive=32768", "from 1 to 32767"),
            ("keepalive=1.5", "from 1 to 32767"),
            ("user-timeout", "write user-timeout=SECONDS: the value is"),
            ("user-timeout=", "a number of seconds from 0 to 2147483.647"),
            (
                "user-timeout=-1",
                "a number of seconds from 0 to 2147483.647",
            ),
            ("user-timeout=2147483.648", "from 0 to 2147483.647"),
            ("user-timeout=inf", "from 0 to 2147483.647"),
            ("user-timeout=1m", "from 0 to 2147483.647"),
            ("usertimeout=1", "no such socket option"),
            ("defer", "write defer=SECONDS: the value is missing"),
            ("defer=29888", "the value is a number from 0 to 29887"),
            ("defer=0.5", "the value is a number from 0 to 29887"),
            ("rcvbuf", "write rcvbuf=BYTES: the value is missing"),
            ("sndbuf=", "the value is a number"),
            ("sndbuf=0", "write sndbuf=BYTES"),
            ("sndbuf=64k", "write sndbuf=BYTES"),
            ("sndbuf=99999999999", "the value is a number"),
        ] {
            let error = SocketOption::parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn options_are_set() {
        let socket = tcp();
        let set = |text: &str| parse(text).apply(socket.as_fd()).unwrap();
        set("nodelay");
        assert!(getsockopt(&socket, sockopt::TcpNoDelay).unwrap());
        set("nodelay=0");
        assert!(!getsockopt(&socket, sockopt::TcpNoDelay).unwrap());
        set("keepalive=77");
        assert!(getsockopt(&socket, sockopt::KeepAlive).unwrap());
        let user_timeout = || getsockopt(&socket, sockopt::TcpUserTimeout).unwrap();
        assert_eq!(user_timeout(), 77_000);
        set("user-timeout=0.0001");
        assert_eq!(user_timeout(), 1);
        set("user-timeout=2147483.647");
        assert_eq!(user_timeout(), 2_147_483_647);
        set("user-timeout=0");
        assert_eq!(user_timeout(), 0);
        set("reuseport");
        assert!(getsockopt(&socket, sockopt::ReusePort).unwrap());
        set("freebind");
        assert!(getsockopt(&socket, sockopt::IpFreebind).unwrap());
        // The kernel doubles buffer sizes, socket(7).
        set("rcvbuf=30000");
        assert_eq!(getsockopt(&socket, sockopt::RcvBuf).unwrap(), 60000);
        set("sndbuf=30000");
        assert_eq!(getsockopt(&socket, sockopt::SndBuf).unwrap(), 60000);
        let error = parse("v6only").apply(socket.as_fd()).unwrap_err();
        assert!(error.to_string().contains("set socket option v6only"));
    }

    #[test]
    fn every_row_is_whole() {
        for row in TABLE {
            assert!(!row.families.is_empty());
            assert!(help().contains(&row.spelling()), "{}", row.name);
        }
        assert!(help().lines().all(|line| line.len() < 100));
        assert!(parse("v6only").applies_to(AddressFamily::Inet6));
        assert!(!parse("v6only").applies_to(AddressFamily::Inet));
        assert!(!parse("nodelay").applies_to(AddressFamily::Unix));
        assert_eq!(parse("rcvbuf=1").when(), When::BeforeBind);
        assert!(parse("keepalive").rank() < parse("user-timeout=1").rank());
    }

    proptest! {
        #[test]
        fn no_option_panics(text in "(nodelay|keepalive|user-timeout|rcvbuf)?=?(\\PC{0,12}|[0-9]{1,7}\\.[0-9]{1,7})") {
            if let Ok(option) = SocketOption::parse(&text) {
                prop_assert_eq!(parse(&option.to_string()), option);
            }
        }
    }
}
