//! Listeners that were open before this program started.

use std::os::fd::{AsFd, OwnedFd, RawFd};

use nix::sys::socket::{AddressFamily, SockType, getsockopt, sockopt};

use crate::accept::listen::socket_option::{When, check_options};
use crate::accept::listen::{ListenOptions, Listener, Transport, apply_options, finish};
use crate::error::{Error, Result};
use crate::system::descriptor::{describe, socket_facts};
use crate::system::inherited;

/// Takes over the listeners that a service manager passed under these numbers.
///
/// # Errors
/// [`Error::Invalid`] if a descriptor is not open, is claimed already or is no listening stream
/// socket (the text says what it is), or if a socket option applies to none of the listeners.
pub(crate) fn inherited_all(
    numbers: impl Iterator<Item = RawFd>,
    options: &ListenOptions,
) -> Result<Vec<Listener>> {
    // If LISTEN_FDS is too large, this stops at the first descriptor that is not open.
    let claimed: Vec<Claimed> = numbers.map(claim_listener).collect::<Result<_>>()?;
    if claimed.is_empty() {
        return Ok(Vec::new());
    }
    let audience: Vec<_> = claimed
        .iter()
        .map(|claimed| (vec![claimed.family], true))
        .collect();
    check_options(&options.socket_options, &audience)?;
    claimed
        .into_iter()
        .map(|claimed| adopt(claimed, options))
        .collect()
}

/// An inherited listening stream socket, still unchanged.
pub(crate) struct Claimed {
    pub fd: OwnedFd,
    pub family: AddressFamily,
    pub transport: Transport,
}

/// Claims descriptor `number` and checks that it is a listening stream socket.
pub(crate) fn claim_listener(number: RawFd) -> Result<Claimed> {
    examine(inherited::claim(number)?).map_err(|fd| {
        Error::Invalid(format!(
            "descriptor {number} is {}, not a listening stream socket",
            describe(fd.as_fd())
        ))
    })
}

/// Returns `fd` as an error if it is no listening stream socket.
pub(crate) fn examine(fd: OwnedFd) -> Result<Claimed, OwnedFd> {
    match socket_facts(fd.as_fd()) {
        Some(facts) if facts.listens && facts.kind == Some(SockType::Stream) => {
            match facts
                .family
                .and_then(|family| Some((family, transport_of(family)?)))
            {
                Some((family, transport)) => Ok(Claimed {
                    fd,
                    family,
                    transport,
                }),
                None => Err(fd),
            }
        }
        _ => Err(fd),
    }
}

fn transport_of(family: AddressFamily) -> Option<Transport> {
    match family {
        AddressFamily::Inet | AddressFamily::Inet6 => Some(Transport::Tcp),
        AddressFamily::Unix => Some(Transport::Unix),
        AddressFamily::Vsock => Some(Transport::Vsock),
        _ => None,
    }
}

/// Makes a listener of an inherited socket.
pub(crate) fn adopt(claimed: Claimed, options: &ListenOptions) -> Result<Listener> {
    let Claimed {
        fd,
        family,
        transport,
    } = claimed;
    apply_options(fd.as_fd(), family, options, Some(When::AnyTime))?;
    let mut listener = finish(fd, transport, None)?;
    listener.set_inherited(true);
    // A transparent listener (ip(7)) accepts connections to any address.
    if listener.local().is_some() && getsockopt(&listener, sockopt::IpTransparent).unwrap_or(true) {
        listener.forget_local();
    }
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accept::listen::socket_option::SocketOption;
    use crate::accept::listen::tests::{accept, leave_open};
    use crate::accept::service::listen_fds::ListenFds;
    use crate::queue::name::Name;
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::sys::socket::{self, SockFlag};
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::{Command, Stdio};

    fn inherited(number: RawFd, options: &ListenOptions) -> Result<Listener> {
        let mut listeners = inherited_all([number].into_iter(), options)?;
        Ok(listeners.remove(0))
    }

    #[test]
    fn an_inherited_listener_stays_as_it_is() {
        let original = TcpListener::bind("127.0.0.1:0").unwrap();
        let nodelay = ListenOptions {
            socket_options: vec![SocketOption::parse("nodelay").unwrap()],
            ..ListenOptions::default()
        };
        let listener = inherited(leave_open(&original), &nodelay).unwrap();
        assert!(listener.is_inherited());
        assert_eq!(listener.local(), original.local_addr().ok());
        let flags = OFlag::from_bits_truncate(fcntl(&listener, FcntlArg::F_GETFL).unwrap());
        assert!(!flags.contains(OFlag::O_NONBLOCK));

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let original = UnixListener::bind(&path).unwrap();
        let listener = inherited(leave_open(&original), &ListenOptions::default()).unwrap();
        assert_eq!(listener.to_string(), path.to_str().unwrap());
        assert_eq!(listener.transport(), Transport::Unix);
        drop(listener);
        assert!(path.exists(), "the path is another's");
    }

    #[test]
    fn what_is_no_listener_is_named() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let (stream, _other) = UnixStream::pair().unwrap();
        let refused = |number: RawFd, what: &str| {
            let error = inherited(number, &ListenOptions::default()).unwrap_err();
            assert!(matches!(error, Error::Invalid(_)));
            assert_eq!(
                error.to_string(),
                format!("descriptor {number} is {what}, not a listening stream socket")
            );
        };
        refused(leave_open(reader), "a pipe");
        refused(leave_open(stream), "a Unix stream connection");
        let listener = socket::socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        let name = Name::Abstract(format!("fdtools-seq-{}", std::process::id()).into());
        socket::bind(listener.as_raw_fd(), &name.address().unwrap()).unwrap();
        rustix::net::listen(&listener, 1).unwrap();
        refused(leave_open(listener), "a listening Unix seqpacket socket");
        let error = inherited(-1, &ListenOptions::default()).unwrap_err();
        assert!(matches!(error, Error::Invalid(_)));
    }

    /// Runs this test again in a process whose descriptors 3 and 4 are listeners.
    #[test]
    fn a_service_manager_passes_listeners() {
        const CHILD: &str = "FDTOOLS_TEST_CHILD";
        if std::env::var_os(CHILD).is_some() {
            let passed = ListenFds::from_environment().unwrap();
            let found = inherited_all(passed.unnamed(|_| false), &ListenOptions::default());
            if std::env::var("LISTEN_FDS").unwrap() != "2" {
                assert!(matches!(found, Err(Error::Invalid(_))), "{found:?}");
                return;
            }
            let found = found.unwrap();
            assert_eq!(found.len(), 2);
            let local = found[0].local().unwrap();
            assert_eq!(found[1].local(), Some(local));
            let mut client = TcpStream::connect(local).unwrap();
            client.write_all(b"x").unwrap();
            let mut server = TcpStream::from(accept(&found[1]));
            server.read_exact(&mut [0]).unwrap();
            return;
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for count in ["2", "2147483647"] {
            let status = Command::new("/bin/sh")
                .arg("-c")
                .arg("LISTEN_PID=$$ exec \"$@\" 3<&0 4<&0 </dev/null")
                .arg("sh")
                .arg(std::env::current_exe().unwrap())
                .arg("--exact")
                .arg("accept::listen::inherit::tests::a_service_manager_passes_listeners")
                .env(CHILD, "1")
                .env("LISTEN_FDS", count)
                .stdin(OwnedFd::from(listener.try_clone().unwrap()))
                .stdout(Stdio::null())
                .status()
                .unwrap();
            assert!(status.success(), "LISTEN_FDS={count}");
        }
    }
}
