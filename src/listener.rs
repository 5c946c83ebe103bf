//! Listening sockets: made here or inherited.

use std::ffi::OsStr;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::net::if_::{if_indextoname, if_nametoindex};
use nix::sys::socket::{
    self, AddressFamily, Shutdown, SockFlag, SockType, SockaddrStorage, VsockAddr, getsockname,
    getsockopt, setsockopt, shutdown, sockopt,
};

use crate::address::{self, Address};
use crate::connection::unix_names;
use crate::descriptor::{describe, socket_facts};
use crate::name::{self, Name, OwnedName, printable};
use crate::sockopt::{SocketOption, When};
use crate::store::Store;
use crate::user::User;
use crate::{Error, Result, inherited as claimed};

/// How often the addresses of one host are bound anew because the free port that the first one got
/// was taken for another.
const MAX_TRIES: usize = 16;

/// The vsock(7) port that means any free one (`VMADDR_PORT_ANY`).
const VSOCK_PORT_ANY: u32 = u32::MAX;

/// What a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TCP over IPv4 or IPv6.
    Tcp,
    /// A Unix stream socket.
    Unix,
    /// vsock(7): between a virtual machine and its host.
    Vsock,
}

/// How to make listeners.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How many connections may wait to be accepted; `None` for as many as the kernel allows
    /// (`net.core.somaxconn`, which bounds any other value too).
    pub backlog: Option<u32>,
    /// The permissions of a Unix socket's path; `None` for 0600. Nothing else has any.
    pub mode: Option<u32>,
    /// Options in the order in which they are set.
    pub socket_options: Vec<SocketOption>,
}

/// A listening socket. Dropping it closes it; if it has a path that was made here, that is removed.
///
/// Its `Display` is the address really bound: `127.0.0.1:34567`, `[::]:8888`, `/run/x.sock`,
/// `@name`, `vsock:1:5`.
#[derive(Debug)]
pub struct Listener {
    /// Before `fd`, so that the path is gone before the socket is.
    name: Option<OwnedName>,
    fd: OwnedFd,
    shown: Rc<str>,
    kind: Kind,
    inherited: bool,
    local: Option<SocketAddr>,
    port: Option<u32>,
}

impl Listener {
    /// What it speaks.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The address really bound, as it is displayed.
    pub fn shown(&self) -> Rc<str> {
        Rc::clone(&self.shown)
    }

    /// The port that it is bound to, over TCP and vsock.
    pub fn port(&self) -> Option<u32> {
        self.port
    }

    /// Makes its path, if it has one, that of another user.
    ///
    /// # Errors
    /// Those of [`OwnedName::give_to`].
    pub fn give_to(&self, user: &User) -> Result<()> {
        let name = self.name.as_ref();
        name.map_or(Ok(()), |name| name.give_to(user.uid(), user.gid()))
    }

    /// Leaves its path, if it has one, where it is, also when this is dropped.
    pub fn leave_name(&mut self) {
        if let Some(name) = &mut self.name {
            name.leave();
        }
    }

    /// Whether it was open before this program started. It then may be shared with others, so it was
    /// left in the mode it had: accepting may block, also after a poll if another was quicker.
    pub fn is_inherited(&self) -> bool {
        self.inherited
    }

    /// The local address of every connection that it accepts, if it is bound to one TCP address
    /// and not to a wildcard. An IPv4 address mapped into IPv6 is given as the IPv4 address.
    pub fn local(&self) -> Option<SocketAddr> {
        self.local
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// Opens listeners on all `addresses`, in their order; a host gives one for each of its addresses.
///
/// `localhost:8888` leaves out addresses that this machine does not have if it has another one; a
/// bare port listens on IPv4 alone where there is no IPv6.
///
/// # Errors
/// [`Error::System`] if one of them cannot be had (the others then are closed again),
/// [`Error::Other`] if a host does not resolve, [`Error::Usage`] if an inherited one is no
/// listener or a socket option applies to none of them.
pub fn open_all(
    addresses: &[Address],
    options: &Options,
    store: &mut Store<'_>,
) -> Result<Vec<Listener>> {
    // Before anything is made: neither leaves a trace when a later one fails.
    let mut targets = Vec::new();
    for address in addresses {
        let passed = match address {
            Address::Inherited(number) => Some(take_over(*number)?),
            _ => None,
        };
        targets.push((address, passed));
    }
    let audience: Vec<_> = targets
        .iter()
        .map(|(address, passed)| match passed {
            Some(passed) => (vec![passed.family], true),
            None => (families(address), false),
        })
        .collect();
    check_options(&options.socket_options, &audience)?;

    let mut listeners = Vec::new();
    let keys = keys(addresses, options);
    let kept = store.listeners(&keys);
    for ((address, passed), (key, kept)) in targets.into_iter().zip(keys.iter().zip(kept)) {
        if let Some(passed) = passed {
            listeners.push(adopt(passed, options)?);
            continue;
        }
        let count = kept.len();
        let mut opened = match revive(address, kept, options)? {
            Some(revived) => revived,
            None => {
                store.forget_listeners(key, count);
                let new = open(address, options)?;
                store.keep_listeners(key, &new)?;
                new
            }
        };
        if store.is_wanted() {
            opened.iter_mut().for_each(Listener::leave_name);
        }
        listeners.append(&mut opened);
    }
    Ok(listeners)
}

/// What the listeners of each address are known by from one start to the next: the address, how
/// often it was given before, and the options that can only be set on a new one.
fn keys(addresses: &[Address], options: &Options) -> Vec<String> {
    let shown: Vec<_> = addresses.iter().map(Address::to_string).collect();
    let early = options.socket_options.iter();
    let early: String = early
        .filter(|option| option.when() == When::BeforeBind)
        .map(|option| format!("+{option}"))
        .collect();
    let key = |index: usize| {
        let before = shown[..index].iter();
        let count = before.filter(|other| **other == shown[index]).count();
        format!("{count}-{}{early}", shown[index])
    };
    (0..shown.len()).map(key).collect()
}

/// Gives up a listener that was kept, with the path that it has, if it still is that. `is_ours` says
/// that nobody is to go on with it: who has a copy for a moment yet, as a process that the manager is
/// starting, is then not in the way of another listener.
pub(crate) fn give_up(kept: OwnedFd, is_ours: bool) {
    if let (Some(path), _) = unix_names(kept.as_fd())
        && let Ok(name) = Name::parse(OsStr::from_bytes(&path))
    {
        // Dropping the right to it removes it. Whoever else has it by now keeps it.
        let _ = name::take_over(kept.as_fd(), &name);
    }
    if is_ours {
        let _ = shutdown(kept.as_raw_fd(), Shutdown::Both);
    }
}

/// Opens the listeners of one address.
fn open(address: &Address, options: &Options) -> Result<Vec<Listener>> {
    let one = |listener: Result<_>| listener.map(|listener| vec![listener]);
    match address {
        Address::AnyTcp { port } => one(open_any(*port, options)),
        Address::Tcp { address, interface } => {
            let address = with_scope(*address, interface.as_deref())?;
            one(open_tcp(address, None, options))
        }
        Address::Host { name, port } => open_host(name, *port, options),
        Address::Unix(name) => one(open_unix(name, options)),
        Address::Vsock { cid, port } => one(open_vsock(*cid, *port, options)),
        Address::Inherited(number) => one(inherited(*number, options)),
    }
}

/// Goes on with the listeners that an earlier process had of an address; `None` if there are none,
/// or nobody can reach them any more.
fn revive(
    address: &Address,
    kept: Vec<OwnedFd>,
    options: &Options,
) -> Result<Option<Vec<Listener>>> {
    if kept.is_empty() {
        return Ok(None);
    }
    let shown = address.to_string();
    let mut revived = Vec::new();
    for fd in kept {
        let Taken { fd, family, kind } = examine(fd).map_err(|fd| {
            let what = describe(fd.as_fd());
            Error::Usage(format!("what was kept of {shown} is {what}"))
        })?;
        let name = match address {
            Address::Unix(name) => match name::take_over(fd.as_fd(), name)? {
                None => return Ok(None),
                taken => taken,
            },
            _ => None,
        };
        apply_options(fd.as_fd(), family, options, Some(When::Inherited))?;
        listen(fd.as_fd(), &shown, options)?;
        let flags = fcntl(&fd, FcntlArg::F_GETFL)
            .map_err(|errno| Error::system(format!("use what was kept of {shown}"), errno))?;
        let mut listener = finish(fd, kind, name)?;
        listener.inherited = !OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK);
        revived.push(listener);
    }
    Ok(Some(revived))
}

/// Takes over the listener that the parent process left open as descriptor `number`.
///
/// # Errors
/// [`Error::Usage`] if it is not open, is claimed already, is something else than a listening
/// stream socket (the text says what), or a socket option is of no use for it.
pub fn inherited(number: RawFd, options: &Options) -> Result<Listener> {
    let passed = take_over(number)?;
    check_options(&options.socket_options, &[(vec![passed.family], true)])?;
    adopt(passed, options)
}

/// Takes over the listeners with these numbers, which a service manager passed.
///
/// # Errors
/// As from [`inherited`].
pub fn inherited_all(
    numbers: impl Iterator<Item = RawFd>,
    options: &Options,
) -> Result<Vec<Listener>> {
    // A number that is too large ends at the first descriptor that is not open.
    let passed: Vec<Taken> = numbers.map(take_over).collect::<Result<_>>()?;
    if passed.is_empty() {
        return Ok(Vec::new());
    }
    let audience: Vec<_> = passed
        .iter()
        .map(|passed| (vec![passed.family], true))
        .collect();
    check_options(&options.socket_options, &audience)?;
    passed
        .into_iter()
        .map(|passed| adopt(passed, options))
        .collect()
}

/// A listener that was taken over, and not looked at any closer yet.
struct Taken {
    fd: OwnedFd,
    family: AddressFamily,
    kind: Kind,
}

/// Claims descriptor `number` and checks that it is a listening stream socket.
fn take_over(number: RawFd) -> Result<Taken> {
    examine(claimed::claim(number)?).map_err(|fd| {
        let error = Error::Usage(format!(
            "descriptor {number} is {}, not a listening stream socket",
            describe(fd.as_fd())
        ));
        // Left open: it may be standard error, where this is to be said.
        let _ = fd.into_raw_fd();
        error
    })
}

/// Looks whether `fd` is a listening stream socket; gives it back if not.
fn examine(fd: OwnedFd) -> Result<Taken, OwnedFd> {
    match socket_facts(fd.as_fd()) {
        Some(facts) if facts.listens && facts.kind == Some(SockType::Stream) => {
            match facts
                .family
                .and_then(|family| Some((family, kind_of(family)?)))
            {
                Some((family, kind)) => Ok(Taken { fd, family, kind }),
                None => Err(fd),
            }
        }
        _ => Err(fd),
    }
}

/// What listeners of a family speak.
fn kind_of(family: AddressFamily) -> Option<Kind> {
    match family {
        AddressFamily::Inet | AddressFamily::Inet6 => Some(Kind::Tcp),
        AddressFamily::Unix => Some(Kind::Unix),
        AddressFamily::Vsock => Some(Kind::Vsock),
        _ => None,
    }
}

/// The families that the listeners of an address may have.
fn families(address: &Address) -> Vec<AddressFamily> {
    match address {
        Address::AnyTcp { .. } | Address::Host { .. } => {
            vec![AddressFamily::Inet6, AddressFamily::Inet]
        }
        Address::Tcp { address, .. } => vec![family_of(address)],
        Address::Unix(_) => vec![AddressFamily::Unix],
        Address::Vsock { .. } => vec![AddressFamily::Vsock],
        Address::Inherited(_) => Vec::new(),
    }
}

fn family_of(address: &SocketAddr) -> AddressFamily {
    match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Checks that each option is of use for one of the listeners, of which are known the families that
/// they may have, and whether they are inherited.
fn check_options(options: &[SocketOption], listeners: &[(Vec<AddressFamily>, bool)]) -> Result<()> {
    for option in options {
        let mut concerned = listeners
            .iter()
            .filter(|(families, _)| families.iter().any(|family| option.applies_to(*family)))
            .peekable();
        if concerned.peek().is_none() {
            return Err(Error::Usage(format!(
                "socket option {option} applies to none of the addresses: leave it out"
            )));
        }
        if option.when() == When::BeforeBind && concerned.all(|(_, inherited)| *inherited) {
            return Err(Error::Usage(format!(
                "socket option {option} must be set before the listener is bound: \
                 set it where the inherited one is made"
            )));
        }
    }
    Ok(())
}

/// Sets the options that concern `family`, of one moment only if `when` says so.
fn apply_options(
    fd: BorrowedFd<'_>,
    family: AddressFamily,
    options: &Options,
    when: Option<When>,
) -> Result<()> {
    options
        .socket_options
        .iter()
        .filter(|option| option.applies_to(family))
        .filter(|option| when.is_none_or(|when| option.when() == when))
        .try_for_each(|option| option.apply(fd))
}

/// Makes a listener of a descriptor that was taken over.
fn adopt(passed: Taken, options: &Options) -> Result<Listener> {
    let Taken { fd, family, kind } = passed;
    apply_options(fd.as_fd(), family, options, Some(When::Inherited))?;
    let mut listener = finish(fd, kind, None)?;
    listener.inherited = true;
    // A transparent one, ip(7), accepts connections to any address.
    if listener.local.is_some() && getsockopt(&listener, sockopt::IpTransparent).unwrap_or(true) {
        listener.local = None;
    }
    Ok(listener)
}

/// Makes a listener of a socket that listens; `name` is the right to its name, if it has one.
fn finish(fd: OwnedFd, kind: Kind, name: Option<OwnedName>) -> Result<Listener> {
    let failed = |errno| Error::system("get the address of a listener", errno);
    let (shown, local, port) = match (kind, &name) {
        (Kind::Unix, Some(name)) => (name.name().to_string(), None, None),
        (Kind::Unix, None) => (show_unix(fd.as_fd()), None, None),
        (Kind::Vsock, _) => {
            let bound = getsockname::<VsockAddr>(fd.as_raw_fd()).map_err(failed)?;
            let (cid, port) = (bound.cid(), bound.port());
            (address::vsock(cid, port), None, Some(port))
        }
        (Kind::Tcp, _) => {
            let bound = tcp_address(fd.as_fd()).map_err(failed)?;
            let fixed = Some(canonical(bound)).filter(|fixed| !fixed.ip().is_unspecified());
            (show_tcp(bound), fixed, Some(bound.port().into()))
        }
    };
    Ok(Listener {
        name,
        fd,
        shown: shown.into(),
        kind,
        inherited: false,
        local,
        port,
    })
}

/// The address that a TCP socket is bound to.
fn tcp_address(fd: BorrowedFd<'_>) -> nix::Result<SocketAddr> {
    let bound: SockaddrStorage = getsockname(fd.as_raw_fd())?;
    let v4 = bound.as_sockaddr_in().map(|v4| SocketAddr::from(*v4));
    let v6 = bound.as_sockaddr_in6().map(|v6| SocketAddr::from(*v6));
    v4.or(v6).ok_or(Errno::EAFNOSUPPORT)
}

/// The same address with an IPv4 address as one, where it was mapped into IPv6.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::from((ip, address.port())),
        IpAddr::V6(_) => address,
    }
}

/// The spelling of a bound TCP address, as in systemd.socket(5).
fn show_tcp(address: SocketAddr) -> String {
    match address {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => {
            let interface = match if_indextoname(v6.scope_id()) {
                Ok(name) => printable(name.to_bytes()),
                Err(_) => v6.scope_id().to_string(),
            };
            format!("[{}]:{}%{interface}", v6.ip(), v6.port())
        }
        _ => address.to_string(),
    }
}

/// The spelling of the address of an inherited Unix listener.
fn show_unix(fd: BorrowedFd<'_>) -> String {
    match unix_names(fd) {
        (Some(name), _) => printable(&name),
        (None, _) => format!("fd:{}", fd.as_raw_fd()),
    }
}

/// Makes a stream socket that is closed on exec and does not block.
fn stream_socket(family: AddressFamily, shown: &str) -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket::socket(family, SockType::Stream, flags, None)
        .map_err(|errno| Error::system(format!("bind {shown}"), errno))
}

/// Listens on a bound socket.
fn listen(fd: BorrowedFd<'_>, shown: &str, options: &Options) -> Result<()> {
    // The kernel lowers it to net.core.somaxconn, listen(2); nix refuses what is over 4096.
    let backlog = options.backlog.unwrap_or(u32::MAX);
    rustix::net::listen(fd, i32::try_from(backlog).unwrap_or(i32::MAX)).map_err(|error| {
        let errno = Errno::from_raw(error.raw_os_error());
        Error::system(format!("listen on {shown}"), errno)
    })
}

/// Listens on one TCP address; `v6only` is what an IPv6 socket gets unless an option says else.
fn open_tcp(address: SocketAddr, v6only: Option<bool>, options: &Options) -> Result<Listener> {
    let shown = show_tcp(address);
    let failed = |errno| Error::system(format!("bind {shown}"), errno);
    let family = family_of(&address);
    let fd = stream_socket(family, &shown)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true).map_err(failed)?;
    if let (AddressFamily::Inet6, Some(v6only)) = (family, v6only) {
        setsockopt(&fd, sockopt::Ipv6V6Only, &v6only).map_err(failed)?;
    }
    apply_options(fd.as_fd(), family, options, None)?;
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(address)).map_err(failed)?;
    listen(fd.as_fd(), &shown, options)?;
    finish(fd, Kind::Tcp, None)
}

/// Listens on all addresses of both families, or on IPv4 alone where there is no IPv6.
fn open_any(port: u16, options: &Options) -> Result<Listener> {
    let v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    match open_tcp(v6, Some(false), options) {
        Err(error) if is_missing(&error) && !wants_v6only(options) => {
            open_tcp((Ipv4Addr::UNSPECIFIED, port).into(), None, options)
        }
        result => result,
    }
}

/// Whether the options ask for IPv6 and nothing else.
fn wants_v6only(options: &Options) -> bool {
    let said = options.socket_options.iter().rev();
    said.filter_map(SocketOption::v6only).next() == Some(true)
}

/// Whether this machine does not have the family or the address.
fn is_missing(error: &Error) -> bool {
    matches!(
        error.errno(),
        Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL)
    )
}

/// `address` with the scope id of `interface`, a name or a number.
fn with_scope(address: SocketAddr, interface: Option<&str>) -> Result<SocketAddr> {
    let (SocketAddr::V6(mut v6), Some(interface)) = (address, interface) else {
        return Ok(address);
    };
    let scope = if_nametoindex(interface)
        .or_else(|errno| interface.parse().map_err(|_| errno))
        .map_err(|errno| Error::system(format!("bind {address}%{interface}"), errno))?;
    v6.set_scope_id(scope);
    Ok(v6.into())
}

/// Listens on every address of a host, all with the same port.
fn open_host(name: &str, port: u16, options: &Options) -> Result<Vec<Listener>> {
    let mut addresses = Vec::new();
    for address in (name, port)
        .to_socket_addrs()
        .map_err(|error| unresolved(name, &error))?
    {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    let mut tries = 1;
    loop {
        match open_each(&addresses, name, options) {
            // The port that was free for one address was not for the next.
            Err(error)
                if port == 0 && error.errno() == Some(Errno::EADDRINUSE) && tries < MAX_TRIES =>
            {
                tries += 1;
            }
            result => return result,
        }
    }
}

/// The error for a host name that does not resolve.
fn unresolved(name: &str, error: &std::io::Error) -> Error {
    if let Some(errno) = error.raw_os_error() {
        return Error::system(format!("resolve {name}"), Errno::from_raw(errno));
    }
    // The resolver's own words, gai_strerror(3), are behind a preface.
    let text = error.to_string();
    let reason = text.rsplit_once(": ").map_or(text.as_str(), |(_, end)| end);
    Error::Other {
        action: format!("resolve {name}"),
        cause: reason.into(),
    }
}

/// Listens on `addresses` of host `name`. The first one's port is also that of the others.
fn open_each(addresses: &[SocketAddr], name: &str, options: &Options) -> Result<Vec<Listener>> {
    let mut listeners: Vec<Listener> = Vec::new();
    let mut missing = None;
    let mut port = None;
    for address in addresses {
        let mut address = *address;
        address.set_port(port.unwrap_or(address.port()));
        match open_tcp(address, None, options) {
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
        None => Err(Error::Usage(format!(
            "cannot resolve {name}: it has no address"
        ))),
    }
}

/// Listens on a Unix socket.
fn open_unix(name: &Name, options: &Options) -> Result<Listener> {
    let shown = name.to_string();
    let fd = stream_socket(AddressFamily::Unix, &shown)?;
    let owned = name::bind(fd.as_fd(), name, options.mode)?;
    listen(fd.as_fd(), &shown, options)?;
    finish(fd, Kind::Unix, Some(owned))
}

/// Listens on a vsock address.
fn open_vsock(cid: u32, port: u32, options: &Options) -> Result<Listener> {
    let shown = address::vsock(cid, port);
    let fd = stream_socket(AddressFamily::Vsock, &shown)?;
    // As everywhere, 0 is any free port.
    let port = if port == 0 { VSOCK_PORT_ANY } else { port };
    socket::bind(fd.as_raw_fd(), &VsockAddr::new(cid, port))
        .map_err(|errno| Error::system(format!("bind {shown}"), errno))?;
    listen(fd.as_fd(), &shown, options)?;
    finish(fd, Kind::Vsock, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listen_fds::Passed;
    use crate::report::{Log, Verbosity};
    use crate::supervisor::Supervisor;
    use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
    use std::collections::BTreeSet;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::{Command, Stdio};
    use std::sync::atomic::{AtomicI32, Ordering};

    /// Options from their spellings.
    fn with(socket_options: &[&str]) -> Options {
        let parse = |text: &&str| SocketOption::parse(text).unwrap();
        Options {
            socket_options: socket_options.iter().map(parse).collect(),
            ..Options::default()
        }
    }

    fn open(addresses: &[&str], options: &Options) -> Result<Vec<Listener>> {
        let addresses: Vec<Address> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        let (nobody, log) = (Supervisor::default(), Log::new("test", Verbosity::Normal));
        let mut store = Store::open(&Passed::default(), &nobody, false, &log)?;
        open_all(&addresses, options, &mut store)
    }

    fn open_one(address: &str, options: &Options) -> Listener {
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

    /// Leaves `fd` open under a number that no other test ever has: numbers are claimed for good.
    fn leave_open(fd: impl AsFd) -> RawFd {
        static NEXT: AtomicI32 = AtomicI32::new(500);
        let lowest = NEXT.fetch_add(1, Ordering::Relaxed);
        let number = fcntl(fd.as_fd(), FcntlArg::F_DUPFD(lowest)).unwrap();
        assert_eq!(number, lowest);
        number
    }

    fn accept(listener: &Listener) -> OwnedFd {
        rustix::net::accept(listener).unwrap()
    }

    #[test]
    fn a_fixed_address_is_bound() {
        let listener = open_one("127.0.0.1:0", &Options::default());
        assert_eq!(listener.kind(), Kind::Tcp);
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

        let error = open(&[&local.to_string()], &Options::default()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("cannot bind {local}: Address already in use")
        );
        drop(listener);
        open_one(&local.to_string(), &Options::default());
    }

    #[test]
    fn a_bare_port_takes_both_families() {
        let listener = open_one("0", &Options::default());
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
            // With the sysctl disable_ipv6 there still is [::], though no other address (seen).
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
        let listeners = open(&["localhost:0"], &Options::default()).unwrap();
        let ports: BTreeSet<u16> = listeners.iter().map(port).collect();
        assert_eq!(ports.len(), 1);
        for listener in &listeners {
            assert!(listener.local().unwrap().ip().is_loopback());
        }
        let error = open(&["no-such-host.invalid:80"], &Options::default()).unwrap_err();
        let shown = error.to_string();
        assert!(
            shown.starts_with("cannot resolve no-such-host.invalid: "),
            "{shown}"
        );
    }

    #[test]
    fn addresses_that_are_not_there_are_left_out() {
        // TEST-NET-1 of RFC 5737 is nobody's.
        let here: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let gone: SocketAddr = "192.0.2.1:0".parse().unwrap();
        let options = Options::default();
        assert_eq!(open_each(&[gone, here], "x", &options).unwrap().len(), 1);
        let error = open_each(&[gone], "x", &options).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot bind 192.0.2.1:0: Cannot assign requested address"
        );
        let two: SocketAddr = "127.0.0.2:0".parse().unwrap();
        let both = open_each(&[here, two], "x", &options).unwrap();
        assert_eq!(port(&both[0]), port(&both[1]));
        assert!(open_each(&[], "x", &options).is_err());
        // Unless that is asked for.
        open_one("192.0.2.1:0", &with(&["freebind"]));
        if has_ipv6() {
            open_one("[2001:db8::1]:0", &with(&["freebind"]));
        }
    }

    #[test]
    fn an_interface_is_found() {
        let error = open(&["[fe80::1]:80%nosuch"], &Options::default()).unwrap_err();
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
        let listener = open_one(path.to_str().unwrap(), &Options::default());
        assert_eq!(listener.to_string(), path.to_str().unwrap());
        assert_eq!((listener.kind(), listener.local()), (Kind::Unix, None));
        UnixStream::connect(&path).unwrap();
        // One that fails takes those before it with it.
        let other = dir.path().join("t");
        let both = [other.to_str().unwrap(), path.to_str().unwrap()];
        assert!(open(&both, &Options::default()).is_err());
        assert!(!other.exists());
        drop(listener);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_abstract_name_is_bound() {
        let name = format!("@fdtools-listener-{}", std::process::id());
        assert_eq!(open_one(&name, &Options::default()).to_string(), name);
    }

    #[test]
    fn vsock_is_bound_where_there_is_any() {
        match open(&["vsock::0"], &Options::default()) {
            Ok(listeners) => {
                assert_eq!(listeners[0].kind(), Kind::Vsock);
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
        assert_eq!(getsockopt(&connection, sockopt::TcpKeepIdle).unwrap(), 77);
        assert_eq!(getsockopt(&connection, sockopt::RcvBuf).unwrap(), 60000);
        open_one(&listener.to_string(), &with(&["reuseport"]));
    }

    #[test]
    fn a_backlog_may_be_anything() {
        for backlog in [None, Some(0), Some(1), Some(100_000), Some(u32::MAX)] {
            let options = Options {
                backlog,
                ..Options::default()
            };
            open_one("127.0.0.1:0", &options);
        }
    }

    #[test]
    fn an_option_of_no_use_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let refused = |addresses: &[&str], option: &str, reason: &str| {
            let error = open(addresses, &with(&[option])).unwrap_err();
            assert!(matches!(error, Error::Usage(_)));
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
        // Otherwise it is set where it can be.
        let name = format!("@fdtools-options-{}", std::process::id());
        let passed = format!("fd:{}", leave_open(&listener));
        let options = with(&["nodelay", "rcvbuf=30000"]);
        let listeners = open(&[&name, &passed, "127.0.0.1:0"], &options).unwrap();
        let buffer = |index: usize| getsockopt(&listeners[index], sockopt::RcvBuf).unwrap();
        assert_ne!(buffer(1), 60000);
        assert_eq!(buffer(2), 60000);
        assert!(getsockopt(&listeners[1], sockopt::TcpNoDelay).unwrap());
    }

    #[test]
    fn an_inherited_listener_stays_as_it_is() {
        let original = TcpListener::bind("127.0.0.1:0").unwrap();
        let listener = inherited(leave_open(&original), &with(&["nodelay"])).unwrap();
        assert!(listener.is_inherited());
        assert_eq!(listener.local(), original.local_addr().ok());
        let flags = OFlag::from_bits_truncate(fcntl(&listener, FcntlArg::F_GETFL).unwrap());
        assert!(!flags.contains(OFlag::O_NONBLOCK));

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let original = UnixListener::bind(&path).unwrap();
        let listener = inherited(leave_open(&original), &Options::default()).unwrap();
        assert_eq!(listener.to_string(), path.to_str().unwrap());
        assert_eq!(listener.kind(), Kind::Unix);
        drop(listener);
        assert!(path.exists(), "the path is another's");
    }

    #[test]
    fn what_is_no_listener_is_named() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let (stream, _other) = UnixStream::pair().unwrap();
        let refused = |number: RawFd, what: &str| {
            let error = inherited(number, &Options::default()).unwrap_err();
            assert!(matches!(error, Error::Usage(_)));
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
        let error = inherited(-1, &Options::default()).unwrap_err();
        assert!(matches!(error, Error::Usage(_)));
    }

    /// Runs this test again in a process whose descriptors 3 and 4 are listeners.
    #[test]
    fn a_service_manager_passes_listeners() {
        const CHILD: &str = "FDTOOLS_TEST_CHILD";
        if std::env::var_os(CHILD).is_some() {
            let passed = Passed::from_environment().unwrap();
            let found = inherited_all(passed.unnamed(|_| false), &Options::default());
            if std::env::var("LISTEN_FDS").unwrap() != "2" {
                assert!(matches!(found, Err(Error::Usage(_))), "{found:?}");
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
                .arg("listener::tests::a_service_manager_passes_listeners")
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
