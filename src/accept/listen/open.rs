//! Opening listeners on addresses.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    self, AddressFamily, SockFlag, SockType, SockaddrStorage, VsockAddr, getsockopt, setsockopt,
    sockopt,
};

use crate::accept::listen::address::{self, Address, Place};
use crate::accept::listen::inherit::{Claimed, claim_listener};
use crate::accept::listen::socket_option::{SocketOption, check_options};
use crate::accept::listen::{
    ListenOptions, Listener, Transport, apply_options, canonical, finish, listen, show_tcp,
    tcp_address,
};
use crate::error::{Error, Result, words};
use crate::queue::name::Name;
use crate::queue::owned_name;
use crate::system::text::digits;

/// How often to bind all addresses of a host to another free port, because the port that was free
/// for the first address was taken for the next.
const MAX_TRIES: usize = 16;

/// The vsock(7) port for any free port (`VMADDR_PORT_ANY`).
const VSOCK_PORT_ANY: u32 = u32::MAX;

/// An address to open.
pub(crate) enum Opening<'a> {
    /// A listener that was open before this program started.
    Inherited(Claimed),
    /// An address without a listener yet.
    New {
        place: &'a Place,
        /// The IPv4 wildcard of the port is another opening, so `[::]` takes IPv6 alone.
        leaves_ipv4: bool,
    },
}

/// The listeners that are open already, each with its address as the user wrote it.
#[derive(Clone, Copy)]
pub(crate) struct Neighbours<'a> {
    pub listeners: &'a [Listener],
    pub addresses: &'a [&'a Address],
}

impl Neighbours<'_> {
    const NONE: Self = Self {
        listeners: &[],
        addresses: &[],
    };

    /// The error of binding `shown`. If the address is in use by one of these listeners, the text
    /// names that one.
    fn cannot_bind(
        &self,
        shown: &str,
        errno: Errno,
        is_owner: impl Fn(&Listener) -> bool,
    ) -> Error {
        let action = format!("bind {shown}");
        let mut owners = self.listeners.iter().zip(self.addresses);
        let owner = owners.find(|(listener, _)| is_owner(listener));
        match owner.filter(|_| errno == Errno::EADDRINUSE) {
            Some((_, address)) => Error::Other {
                action,
                cause: format!("{} ({address} on this command line has it)", words(errno)),
            },
            None => Error::system(action, errno),
        }
    }
}

/// A TCP address as it is bound.
struct Bound {
    address: SocketAddr,
    is_v6only: bool,
}

impl Bound {
    fn new(address: SocketAddr, socket: BorrowedFd<'_>) -> Self {
        Self {
            address: canonical(address),
            is_v6only: getsockopt(&socket, sockopt::Ipv6V6Only).unwrap_or(false),
        }
    }

    /// The address of a TCP listener.
    fn of(listener: &Listener) -> Option<Self> {
        let address = tcp_address(listener.as_fd()).ok()?;
        Some(Self::new(address, listener.as_fd()))
    }

    /// Whether no two sockets can listen on both.
    fn overlaps(&self, other: &Self) -> bool {
        let is_same = self.address.ip() == other.address.ip();
        self.address.port() == other.address.port()
            && (is_same || self.includes(other) || other.includes(self))
    }

    /// Whether this is a wildcard for the other's address.
    fn includes(&self, other: &Self) -> bool {
        let is_family = self.address.is_ipv4() == other.address.is_ipv4();
        let is_both = self.address.is_ipv6() && !self.is_v6only;
        self.address.ip().is_unspecified() && (is_family || is_both)
    }
}

/// Claims inherited listeners and checks the options, before any socket is made.
///
/// # Errors
/// [`Error::Invalid`] if an inherited descriptor is no listener, or a socket option applies to none
/// of the addresses.
pub(crate) fn openings<'a>(
    addresses: &'a [Address],
    options: &ListenOptions,
) -> Result<Vec<Opening<'a>>> {
    let mut openings = Vec::new();
    for address in addresses {
        openings.push(match address {
            Address::Inherited(number) => Opening::Inherited(claim_listener(*number)?),
            Address::New(place) => Opening::New {
                place,
                leaves_ipv4: false,
            },
        });
    }
    if !options
        .socket_options
        .iter()
        .any(|option| option.v6only().is_some())
    {
        leave_ipv4(&mut openings);
    }
    let audience = openings.iter().map(|opening| match opening {
        Opening::Inherited(claimed) => (vec![claimed.family], true),
        Opening::New { place, .. } => (families(place), false),
    });
    check_options(&options.socket_options, &audience.collect::<Vec<_>>())?;
    Ok(openings)
}

/// Notes where IPv4 is left to another opening: at `[::]:80` beside `0.0.0.0:80`.
fn leave_ipv4(openings: &mut [Opening<'_>]) {
    let wildcards = openings.iter().filter_map(|opening| match opening {
        Opening::Inherited(claimed) => tcp_address(claimed.fd.as_fd()).ok(),
        Opening::New { place, .. } => place.tcp(),
    });
    let is_wildcard = |address: &SocketAddr| address.ip() == Ipv4Addr::UNSPECIFIED;
    let ports: Vec<u16> = wildcards
        .filter(is_wildcard)
        .map(|address| address.port())
        .filter(|port| *port != 0)
        .collect();
    for opening in openings {
        if let Opening::New { place, leaves_ipv4 } = opening {
            let wildcard = place
                .tcp()
                .filter(|address| address.ip() == Ipv6Addr::UNSPECIFIED);
            *leaves_ipv4 = wildcard.is_some_and(|address| ports.contains(&address.port()));
        }
    }
}

/// Opens new listeners at a place: 1 for each address of a host, else 1. `leaves_ipv4` is that
/// of [`Opening::New`].
///
/// `localhost:8888` leaves out addresses that this machine lacks, if it has another of them. A bare
/// port listens on IPv4 alone if there is no IPv6.
///
/// # Errors
/// [`Error::System`] if opening a listener fails, [`Error::Other`] if a host does not resolve.
pub(crate) fn open(
    place: &Place,
    leaves_ipv4: bool,
    options: &ListenOptions,
    neighbours: Neighbours<'_>,
) -> Result<Vec<Listener>> {
    let one = |listener: Result<_>| listener.map(|listener| vec![listener]);
    match place {
        Place::AnyTcp { port } => one(open_any(*port, options, neighbours)),
        Place::Tcp { address, interface } => {
            let address = with_scope(*address, interface.as_deref())?;
            one(open_tcp(
                address,
                leaves_ipv4.then_some(true),
                options,
                neighbours,
            ))
        }
        Place::Host { name, port } => open_host(name, *port, options, neighbours),
        Place::Unix(name) => one(open_unix(name, options, neighbours)),
        Place::Vsock { cid, port } => one(open_vsock(*cid, *port, options, neighbours)),
    }
}

fn families(place: &Place) -> Vec<AddressFamily> {
    match place {
        Place::AnyTcp { .. } | Place::Host { .. } => {
            vec![AddressFamily::Inet6, AddressFamily::Inet]
        }
        Place::Tcp { address, .. } => vec![family_of(address)],
        Place::Unix(_) => vec![AddressFamily::Unix],
        Place::Vsock { .. } => vec![AddressFamily::Vsock],
    }
}

fn family_of(address: &SocketAddr) -> AddressFamily {
    match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn stream_socket(family: AddressFamily, shown: &str) -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket::socket(family, SockType::Stream, flags, None)
        .map_err(|errno| Error::system(format!("bind {shown}"), errno))
}

/// Listens on a TCP address. `v6only` is the default for IPv6; an option overrides it.
fn open_tcp(
    address: SocketAddr,
    v6only: Option<bool>,
    options: &ListenOptions,
    neighbours: Neighbours<'_>,
) -> Result<Listener> {
    let shown = show_tcp(address);
    let failed = |errno| Error::system(format!("bind {shown}"), errno);
    let family = family_of(&address);
    let fd = stream_socket(family, &shown)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true).map_err(failed)?;
    if let (AddressFamily::Inet6, Some(v6only)) = (family, v6only) {
        setsockopt(&fd, sockopt::Ipv6V6Only, &v6only).map_err(failed)?;
    }
    apply_options(fd.as_fd(), family, options, None)?;
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(address)).map_err(|errno| {
        let wanted = Bound::new(address, fd.as_fd());
        let is_owner =
            |other: &Listener| Bound::of(other).is_some_and(|other| other.overlaps(&wanted));
        neighbours.cannot_bind(&shown, errno, is_owner)
    })?;
    listen(fd.as_fd(), &shown, options)?;
    finish(fd, Transport::Tcp, None)
}

/// Listens on all addresses of both families, or of IPv4 alone if there is no IPv6.
fn open_any(port: u16, options: &ListenOptions, neighbours: Neighbours<'_>) -> Result<Listener> {
    let v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    match open_tcp(v6, Some(false), options, neighbours) {
        Err(error) if is_missing(&error) && !wants_v6only(options) => {
            let v4 = (Ipv4Addr::UNSPECIFIED, port).into();
            open_tcp(v4, None, options, neighbours)
        }
        result => result,
    }
}

/// Whether the last such option asks for IPv6 alone.
fn wants_v6only(options: &ListenOptions) -> bool {
    let said = options.socket_options.iter().rev();
    said.filter_map(SocketOption::v6only).next() == Some(true)
}

/// Whether this machine lacks the family or the address.
fn is_missing(error: &Error) -> bool {
    matches!(
        error.errno(),
        Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL)
    )
}

/// Adds the scope id of `interface`, a name or a number.
fn with_scope(address: SocketAddr, interface: Option<&str>) -> Result<SocketAddr> {
    let (SocketAddr::V6(mut v6), Some(interface)) = (address, interface) else {
        return Ok(address);
    };
    let scope = if_nametoindex(interface)
        .or_else(|errno| digits(interface).ok_or(errno))
        .map_err(|errno| Error::system(format!("bind {address}%{interface}"), errno))?;
    v6.set_scope_id(scope);
    Ok(v6.into())
}

/// Listens on every address of a host, with the same port on each.
fn open_host(
    name: &str,
    port: u16,
    options: &ListenOptions,
    neighbours: Neighbours<'_>,
) -> Result<Vec<Listener>> {
    let mut addresses = Vec::new();
    for address in (name, port)
        .to_socket_addrs()
        .map_err(|error| unresolved(name, &error))?
    {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    // A free port that turns out to be in use is another try, and no error.
    let neighbours = if port == 0 {
        Neighbours::NONE
    } else {
        neighbours
    };
    let mut tries = 1;
    loop {
        match open_each(&addresses, name, options, neighbours) {
            // The port that was free for one address was taken for the next.
            Err(error)
                if port == 0 && error.errno() == Some(Errno::EADDRINUSE) && tries < MAX_TRIES =>
            {
                tries += 1;
            }
            result => return result,
        }
    }
}

fn unresolved(name: &str, error: &std::io::Error) -> Error {
    if let Some(errno) = error.raw_os_error() {
        return Error::system(format!("resolve {name}"), Errno::from_raw(errno));
    }
    // std puts a preface before the resolver's own words, gai_strerror(3).
    let text = error.to_string();
    let reason = text.rsplit_once(": ").map_or(text.as_str(), |(_, end)| end);
    Error::Other {
        action: format!("resolve {name}"),
        cause: reason.into(),
    }
}

/// Listens on `addresses` of host `name`, all on the port that the first listener got.
fn open_each(
    addresses: &[SocketAddr],
    name: &str,
    options: &ListenOptions,
    neighbours: Neighbours<'_>,
) -> Result<Vec<Listener>> {
    let mut listeners: Vec<Listener> = Vec::new();
    let mut missing = None;
    let mut port = None;
    for address in addresses {
        let mut address = *address;
        address.set_port(port.unwrap_or(address.port()));
        match open_tcp(address, None, options, neighbours) {
            Ok(listener) => {
                port = tcp_address(listener.as_fd()).ok().map(|bound| bound.port());
                listeners.push(listener);
            }
            Err(error) if is_missing(&error) => missing = missing.or(Some(error)),
            Err(error) => return Err(error),
        }
    }
    match missing {
        _ if !listeners.is_empty() => Ok(listeners),
        Some(error) => Err(error),
        None => Err(Error::Invalid(format!(
            "cannot resolve {name}: it has no address"
        ))),
    }
}

fn open_unix(name: &Name, options: &ListenOptions, neighbours: Neighbours<'_>) -> Result<Listener> {
    let shown = name.to_string();
    let fd = stream_socket(AddressFamily::Unix, &shown)?;
    let is_owner =
        |other: &Listener| other.transport() == Transport::Unix && *other.shown == *shown;
    let bound = owned_name::bind(fd.as_fd(), name, options.access);
    let owned = bound.map_err(|error| match error.errno() {
        Some(errno @ Errno::EADDRINUSE) => neighbours.cannot_bind(&shown, errno, is_owner),
        _ => error,
    })?;
    listen(fd.as_fd(), &shown, options)?;
    finish(fd, Transport::Unix, Some(owned))
}

fn open_vsock(
    cid: u32,
    port: u32,
    options: &ListenOptions,
    neighbours: Neighbours<'_>,
) -> Result<Listener> {
    let shown = address::vsock(cid, port);
    let fd = stream_socket(AddressFamily::Vsock, &shown)?;
    // 0 means any free port, as for TCP.
    let port = if port == 0 { VSOCK_PORT_ANY } else { port };
    socket::bind(fd.as_raw_fd(), &VsockAddr::new(cid, port))
        .map_err(|errno| neighbours.cannot_bind(&shown, errno, |other| *other.shown == *shown))?;
    listen(fd.as_fd(), &shown, options)?;
    finish(fd, Transport::Vsock, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accept::listen::inherit::adopt;
    use crate::accept::listen::tests::{accept, leave_open};
    use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
    use std::collections::BTreeSet;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    fn with(socket_options: &[&str]) -> ListenOptions {
        let parse = |text: &&str| SocketOption::parse(text).unwrap();
        ListenOptions {
            socket_options: socket_options.iter().map(parse).collect(),
            ..ListenOptions::default()
        }
    }

    fn open(addresses: &[&str], options: &ListenOptions) -> Result<Vec<Listener>> {
        let addresses: Vec<Address> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        let mut all = Vec::new();
        for opening in openings(&addresses, options)? {
            all.append(&mut match opening {
                Opening::Inherited(claimed) => vec![adopt(claimed, options)?],
                Opening::New { place, leaves_ipv4 } => {
                    super::open(place, leaves_ipv4, options, Neighbours::NONE)?
                }
            });
        }
        Ok(all)
    }

    fn open_one(address: &str, options: &ListenOptions) -> Listener {
        let mut listeners = open(&[address], options).unwrap();
        assert_eq!(listeners.len(), 1);
        listeners.remove(0)
    }

    fn port(listener: &Listener) -> u16 {
        tcp_address(listener.as_fd()).unwrap().port()
    }

    fn has_ipv6() -> bool {
        TcpListener::bind("[::1]:0").is_ok()
    }

    #[test]
    fn a_fixed_address_is_bound() {
        // No other test takes a port there, which would be in use.
        let listener = open_one("127.0.0.11:0", &ListenOptions::default());
        assert_eq!(listener.transport(), Transport::Tcp);
        assert!(!listener.is_inherited());
        let local = listener.local().unwrap();
        assert_ne!(local.port(), 0);
        assert_eq!(listener.to_string(), local.to_string());
        assert!(getsockopt(&listener, sockopt::ReuseAddr).unwrap());
        let flags = OFlag::from_bits_truncate(fcntl(&listener, FcntlArg::F_GETFL).unwrap());
        assert!(flags.contains(OFlag::O_NONBLOCK));
        let flags = FdFlag::from_bits_truncate(fcntl(&listener, FcntlArg::F_GETFD).unwrap());
        assert!(flags.contains(FdFlag::FD_CLOEXEC));
        TcpStream::connect(local).unwrap();

        let error = open(&[&local.to_string()], &ListenOptions::default()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("cannot bind {local}: Address already in use")
        );
        drop(listener);
        open_one(&local.to_string(), &ListenOptions::default());
    }

    #[test]
    fn a_bare_port_takes_both_families() {
        let listener = open_one("0", &ListenOptions::default());
        assert_eq!(listener.local(), None);
        let port = port(&listener);
        TcpStream::connect(("127.0.0.1", port)).unwrap();
        let shown = listener.to_string();
        if has_ipv6() {
            assert_eq!(shown, format!("[::]:{port}"));
            TcpStream::connect(("::1", port)).unwrap();

            let only = open_one("0", &with(&["v6only=0", "v6only"]));
            assert!(getsockopt(&only, sockopt::Ipv6V6Only).unwrap());
        } else {
            // With the sysctl disable_ipv6 there still is [::], but no other address (seen).
            assert!(
                ["[::]", "0.0.0.0"]
                    .map(|ip| format!("{ip}:{port}"))
                    .contains(&shown)
            );
        }
        assert!(wants_v6only(&with(&["v6only"])));
        assert!(!wants_v6only(&with(&["v6only", "nodelay", "v6only=0"])));
    }

    #[test]
    fn a_host_has_one_port() {
        let listeners = open(&["localhost:0"], &ListenOptions::default()).unwrap();
        let ports: BTreeSet<u16> = listeners.iter().map(port).collect();
        assert_eq!(ports.len(), 1);
        for listener in &listeners {
            assert!(listener.local().unwrap().ip().is_loopback());
        }
        let error = open(&["no-such-host.invalid:80"], &ListenOptions::default()).unwrap_err();
        let shown = error.to_string();
        assert!(
            shown.starts_with("cannot resolve no-such-host.invalid: "),
            "{shown}"
        );
    }

    #[test]
    fn addresses_that_are_not_there_are_left_out() {
        // No machine has an address of TEST-NET-1, RFC 5737.
        let here: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let gone: SocketAddr = "192.0.2.1:0".parse().unwrap();
        let options = ListenOptions::default();
        assert_eq!(
            open_each(&[gone, here], "x", &options, Neighbours::NONE)
                .unwrap()
                .len(),
            1
        );
        let error = open_each(&[gone], "x", &options, Neighbours::NONE).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot bind 192.0.2.1:0: Cannot assign requested address"
        );
        let two: SocketAddr = "127.0.0.2:0".parse().unwrap();
        let both = open_each(&[here, two], "x", &options, Neighbours::NONE).unwrap();
        assert_eq!(port(&both[0]), port(&both[1]));
        assert!(open_each(&[], "x", &options, Neighbours::NONE).is_err());
        // With freebind the machine need not have the address.
        open_one("192.0.2.1:0", &with(&["freebind"]));
        if has_ipv6() {
            open_one("[2001:db8::1]:0", &with(&["freebind"]));
        }
    }

    #[test]
    fn an_interface_is_found() {
        let error = open(&["[fe80::1]:80%nosuch"], &ListenOptions::default()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot bind [fe80::1]:80%nosuch: No such device"
        );
        let address = "[fe80::1]:80".parse().unwrap();
        let by_name = with_scope(address, Some("lo")).unwrap();
        assert_eq!(by_name, with_scope(address, Some("1")).unwrap());
        assert_eq!(show_tcp(by_name), "[fe80::1]:80%lo");
    }

    #[test]
    fn a_mapped_address_is_an_ipv4_address() {
        let mapped: SocketAddr = "[::ffff:127.0.0.1]:80".parse().unwrap();
        assert_eq!(canonical(mapped).to_string(), "127.0.0.1:80");
        if has_ipv6() {
            let listener = open_one("[::ffff:0.0.0.0]:0", &with(&["v6only=0"]));
            assert_eq!(listener.local(), None);
        }
    }

    #[test]
    fn a_path_is_bound_and_vanishes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = open_one(path.to_str().unwrap(), &ListenOptions::default());
        assert_eq!(listener.to_string(), path.to_str().unwrap());
        assert_eq!(
            (listener.transport(), listener.local()),
            (Transport::Unix, None)
        );
        UnixStream::connect(&path).unwrap();
        // If the second address fails, the first listener is closed again.
        let other = dir.path().join("t");
        let both = [other.to_str().unwrap(), path.to_str().unwrap()];
        assert!(open(&both, &ListenOptions::default()).is_err());
        assert!(!other.exists());
        drop(listener);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_abstract_name_is_bound() {
        let name = format!("@fdtools-listener-{}", std::process::id());
        assert_eq!(open_one(&name, &ListenOptions::default()).to_string(), name);
    }

    #[test]
    fn vsock_is_bound_where_there_is_any() {
        match open(&["vsock::0"], &ListenOptions::default()) {
            Ok(listeners) => {
                assert_eq!(listeners[0].transport(), Transport::Vsock);
                let shown = listeners[0].to_string();
                assert!(
                    shown.starts_with("vsock::") && shown != "vsock::0",
                    "{shown}"
                );
            }
            Err(error) => assert!(error.to_string().starts_with("cannot bind vsock::0: ")),
        }
    }

    #[test]
    fn connections_inherit_options() {
        let options = with(&["nodelay", "keepalive=77", "rcvbuf=30000", "reuseport"]);
        let listener = open_one("127.0.0.1:0", &options);
        let _client = TcpStream::connect(listener.local().unwrap()).unwrap();
        let connection = accept(&listener);
        assert!(getsockopt(&connection, sockopt::TcpNoDelay).unwrap());
        assert!(getsockopt(&connection, sockopt::KeepAlive).unwrap());
        assert_eq!(getsockopt(&connection, sockopt::TcpKeepIdle).unwrap(), 41);
        let user_timeout = getsockopt(&connection, sockopt::TcpUserTimeout).unwrap();
        assert_eq!(user_timeout, 77_000);
        assert_eq!(getsockopt(&connection, sockopt::RcvBuf).unwrap(), 60000);
        open_one(&listener.to_string(), &with(&["reuseport"]));
    }

    #[test]
    fn a_backlog_may_be_anything() {
        for backlog in [None, Some(0), Some(1), Some(100_000), Some(u32::MAX)] {
            let options = ListenOptions {
                backlog,
                ..ListenOptions::default()
            };
            open_one("127.0.0.1:0", &options);
        }
    }

    #[test]
    fn an_option_of_no_use_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let refused = |addresses: &[&str], option: &str, reason: &str| {
            let error = open(addresses, &with(&[option])).unwrap_err();
            assert!(matches!(error, Error::Invalid(_)));
            assert!(error.to_string().contains(reason), "{error}");
        };
        refused(&["@fdtools-x"], "nodelay", "none of the addresses");
        refused(&["127.0.0.1:0", "vsock::1"], "v6only", "none of the");
        let number = leave_open(&listener);
        refused(&[&format!("fd:{number}")], "v6only=0", "none of the");
        let number = leave_open(&listener);
        refused(
            &[&format!("fd:{number}")],
            "rcvbuf=1",
            "before the listener",
        );
        // Each option is set on the listeners that it applies to.
        let name = format!("@fdtools-options-{}", std::process::id());
        let passed = format!("fd:{}", leave_open(&listener));
        let options = with(&["nodelay", "rcvbuf=30000"]);
        let listeners = open(&[&name, &passed, "127.0.0.1:0"], &options).unwrap();
        let buffer = |index: usize| getsockopt(&listeners[index], sockopt::RcvBuf).unwrap();
        assert_ne!(buffer(1), 60000);
        assert_eq!(buffer(2), 60000);
        assert!(getsockopt(&listeners[1], sockopt::TcpNoDelay).unwrap());
    }
}
