//! The queue and the listeners of an earlier process of this service, from the descriptor store, or
//! else new ones.

use std::ffi::OsStr;
use std::fmt::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, Shutdown, SockType, shutdown};

use crate::accept::listen::address::{Address, Place};
use crate::accept::listen::inherit::{Claimed, adopt, examine};
use crate::accept::listen::open::{Neighbours, Opening, open, openings};
use crate::accept::listen::socket_option::When;
use crate::accept::listen::{ListenOptions, Listener, apply_options, finish, listen};
use crate::accept::service::fd_store::{FdStore, LISTENER, READ_END, WRITE_END};
use crate::error::{Error, Result};
use crate::queue::name::Name;
use crate::queue::{self, Sender, owned_name};
use crate::system::descriptor::{describe, socket_facts};
use crate::system::poll::{PollFlags, ready};
use crate::system::quick_close::{QuickClose, quickly};
use crate::system::{sock_diag, unix_socket};

/// The longest name that a manager accepts.
const LONGEST: usize = 255;

/// The kept queue, or else a new queue, which then is kept instead.
///
/// # Errors
/// [`Error::System`] (`EMFILE` and the like).
pub(crate) fn queue(store: &mut FdStore<'_>) -> Result<(Sender, OwnedFd)> {
    let (write_ends, read_ends) = (store.take(WRITE_END), store.take(READ_END));
    let count = write_ends.len() + read_ends.len();
    let found = quickly(|| find_queue(write_ends, read_ends));
    let (sender, read_end) = match (found, count) {
        (Some(kept), 2) => return Ok(kept),
        (Some(kept), _) => kept,
        (None, _) => queue::ends()?,
    };
    if count > 0 {
        store.forget(WRITE_END);
        store.forget(READ_END);
    }
    store.keep(WRITE_END, sender.as_fd());
    store.keep(READ_END, read_end.as_fd());
    Ok((sender, read_end))
}

/// The first 2 ends that belong to the same queue, if the queue is not closed.
fn find_queue(write_ends: Vec<OwnedFd>, read_ends: Vec<OwnedFd>) -> Option<(Sender, OwnedFd)> {
    for write_end in write_ends.into_iter().filter(is_end) {
        // A queue that was closed so that a command would finish is at its end.
        let is_open = ready(write_end.as_fd(), PollFlags::empty()).is_empty();
        let is_other_end = |read_end: &&OwnedFd| {
            let found = sock_diag::are_connected(write_end.as_fd(), read_end.as_fd());
            is_end(read_end) && found.unwrap_or(true)
        };
        let other = read_ends.iter().find(is_other_end);
        if let Some(other) = other.filter(|_| is_open)
            && let Ok(read_end) = other.try_clone()
        {
            return Some((Sender::from_socket(write_end).ok()?, read_end));
        }
    }
    None
}

/// Whether the descriptor can be an end of our queue.
fn is_end(descriptor: &OwnedFd) -> bool {
    let facts = socket_facts(descriptor.as_fd());
    facts.is_some_and(|facts| {
        facts.family == Some(AddressFamily::Unix)
            && facts.kind == Some(SockType::SeqPacket)
            && facts.connected
    })
}

/// Listeners on all `addresses`, in their order. An address gets its kept listeners, or else new
/// ones, which then are kept. Kept listeners that no address needs are given up.
///
/// # Errors
/// [`Error::System`] if a listener cannot be opened (the other new listeners are closed again),
/// [`Error::Other`] if a host does not resolve, [`Error::Invalid`] if an inherited descriptor is no
/// listener, a socket option applies to none of the addresses, or an address is too long for the
/// store.
pub(crate) fn listeners(
    addresses: &[Address],
    options: &ListenOptions,
    store: &mut FdStore<'_>,
) -> Result<Vec<Listener>> {
    // Before any socket is made, so that a failure leaves no trace.
    let openings = openings(addresses, options)?;
    let keys = keys(addresses, &openings, options);
    let kept: Vec<_> = keys.iter().map(|key| take_listeners(store, key)).collect();
    give_up_rest(store);
    let mut listeners: Vec<Listener> = Vec::new();
    let mut owners = Vec::new();
    for ((opening, owner), (key, kept)) in openings
        .into_iter()
        .zip(addresses)
        .zip(keys.iter().zip(kept))
    {
        let mut opened = match opening {
            Opening::Inherited(claimed) => vec![adopt(claimed, options)?],
            Opening::New { place, leaves_ipv4 } => {
                let count = kept.len();
                let mut opened = match revive(place, kept, options)? {
                    Some(revived) => revived,
                    None => {
                        if count > 0 {
                            store.forget(&name_of(key, count));
                        }
                        let neighbours = Neighbours {
                            listeners: &listeners,
                            addresses: &owners,
                        };
                        let new = open(place, leaves_ipv4, options, neighbours)?;
                        keep_listeners(store, key, &new)?;
                        new
                    }
                };
                if store.is_wanted() {
                    opened.iter_mut().for_each(Listener::leave_name);
                }
                opened
            }
        };
        owners.resize(owners.len() + opened.len(), owner);
        listeners.append(&mut opened);
    }
    Ok(listeners)
}

/// The keys that identify the listeners of an address from one start to the next: the address, how
/// many equal addresses come before it, and the options that only a new socket takes.
fn keys(addresses: &[Address], openings: &[Opening<'_>], options: &ListenOptions) -> Vec<String> {
    let shown: Vec<_> = addresses.iter().map(Address::to_string).collect();
    let early = options.socket_options.iter();
    let early: String = early
        .filter(|option| option.when() == When::BeforeBind)
        .map(|option| format!("+{option}"))
        .collect();
    let key = |index: usize| {
        let before = shown[..index].iter();
        let count = before.filter(|other| **other == shown[index]).count();
        let leaves_ipv4 = matches!(
            openings[index],
            Opening::New {
                leaves_ipv4: true,
                ..
            }
        );
        // As if the user had said so.
        let implied = if leaves_ipv4 { "+v6only" } else { "" };
        format!("{count}-{}{early}{implied}", shown[index])
    };
    (0..shown.len()).map(key).collect()
}

/// The kept listeners of `key`: all of them, or none.
fn take_listeners(store: &mut FdStore<'_>, key: &str) -> Vec<OwnedFd> {
    let names = (1..=store.len()).map(|count| (count, name_of(key, count)));
    let complete = names
        .filter(|(count, name)| store.count(name) == *count)
        .map(|(_, name)| name)
        .next();
    complete.map_or_else(Vec::new, |name| store.take(&name))
}

/// Has new listeners kept under `key`.
fn keep_listeners(store: &FdStore<'_>, key: &str, listeners: &[Listener]) -> Result<()> {
    let name = name_of(key, listeners.len());
    if store.is_wanted() && name.len() > LONGEST {
        // Without the count in front of the address.
        let address = key.split_once('-').map_or(key, |(_, address)| address);
        let problem = format!("--store: the address {address} is too long");
        return Err(Error::Invalid(problem));
    }
    for listener in listeners {
        store.keep(&name, listener.as_fd());
    }
    Ok(())
}

/// Gives up the descriptors that are left: another listener may need their address.
pub(crate) fn give_up_rest(store: &mut FdStore<'_>) {
    let (rest, is_forgotten) = store.give_up_rest();
    for descriptor in rest {
        give_up(QuickClose::new(descriptor), is_forgotten);
    }
}

/// Gives up a kept listener, and removes its path if the path is still that socket. `is_forgotten`
/// says that no process goes on with the listener. Then shutdown(2) frees the address, even if a
/// process that the manager is starting has a copy for a moment.
fn give_up(kept: QuickClose<OwnedFd>, is_forgotten: bool) {
    if let (Some(path), _) = unix_socket::names(kept.as_fd())
        && let Ok(name) = Name::parse(OsStr::from_bytes(&path))
    {
        // The path of a new owner stays.
        let _ = owned_name::remove(kept.as_fd(), &name);
    }
    if is_forgotten {
        let _ = shutdown(kept.as_raw_fd(), Shutdown::Both);
    }
}

/// Goes on with the kept listeners of a place; `None` if there are none, or if clients cannot
/// reach them any more.
fn revive(
    place: &Place,
    kept: Vec<OwnedFd>,
    options: &ListenOptions,
) -> Result<Option<Vec<Listener>>> {
    if kept.is_empty() {
        return Ok(None);
    }
    let shown = place.to_string();
    let mut revived = Vec::new();
    for fd in kept {
        let Claimed {
            fd,
            family,
            transport,
        } = examine(fd).map_err(|fd| {
            let what = describe(fd.as_fd());
            Error::Invalid(format!("what was kept of {shown} is {what}"))
        })?;
        let name = match place {
            Place::Unix(name) => match owned_name::reclaim(fd.as_fd(), name, options.access)? {
                None => return Ok(None),
                reclaimed => reclaimed,
            },
            _ => None,
        };
        apply_options(fd.as_fd(), family, options, Some(When::AnyTime))?;
        listen(fd.as_fd(), &shown, options)?;
        let flags = fcntl(&fd, FcntlArg::F_GETFL)
            .map_err(|errno| Error::system(format!("use what was kept of {shown}"), errno))?;
        let may_block = !OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK);
        let mut listener = finish(fd, transport, name)?;
        listener.set_inherited(may_block);
        revived.push(listener);
    }
    Ok(Some(revived))
}

/// The name of `count` listeners with this key. Special characters of a name list are escaped.
fn name_of(key: &str, count: usize) -> String {
    let mut name = format!("{LISTENER}{count}-");
    for byte in key.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'/' | b'-' | b'_' | b'@' => {
                name.push(char::from(byte));
            }
            // Writing to a string does not fail.
            _ => drop(write!(name, "%{byte:02x}")),
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accept::service::fd_store::is_ours;

    #[test]
    fn names_have_nothing_that_means_something_in_a_list() {
        let name = name_of("0-[::1]:80+v6only=1", 2);
        assert_eq!(name, "fdtools-listener-2-0-%5b%3a%3a1%5d%3a80%2bv6only%3d1");
        assert!(is_ours(&name) && is_ours(WRITE_END) && is_ours(READ_END));
        assert!(!is_ours("fdtools-echo.socket") && !is_ours("fdtools-queue-web.socket"));
    }
}
