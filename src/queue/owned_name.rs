//! The ownership of the name of a socket.
//!
//! The owner of a path holds its lock ([`PathLock`]), so a socket with a free lock has no owner and
//! may be removed. A name in the abstract namespace ends with its socket and needs no lock.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, getsockopt, sockopt};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstat, lstat, stat, umask};
use nix::unistd::{Gid, Uid, fchownat, unlink};

use crate::error::{Error, Result};
use crate::queue::name::Name;
use crate::queue::path_lock::{FileId, MAX_TRIES, PathLock, cannot_give, file_id, remove_if};
use crate::system::descriptor::type_of;
use crate::system::file_owner::{FileOwner, is_trusted};
use crate::system::sock_diag::bound_inode;

/// The default permissions of a socket: its owner only.
const DEFAULT_MODE: u32 = 0o600;

/// The umask belongs to the whole process: two threads that change it must not overlap.
static UMASK: Mutex<()> = Mutex::new(());

/// The owner and the permissions of a path. An abstract name has neither.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PathAccess {
    /// `None` for 0600.
    pub mode: Option<u32>,
    /// `None` for ourselves.
    pub owner: Option<FileOwner>,
}

impl PathAccess {
    fn permissions(self) -> Mode {
        Mode::from_bits_truncate(self.mode.unwrap_or(DEFAULT_MODE)) & all_modes()
    }
}

/// The ownership of a name that a socket is bound to.
///
/// Dropping this value removes the path and its lock file, but only in the process that bound the
/// name: a forked child has a copy, and must not take the name away from its parent.
#[derive(Debug)]
pub(crate) struct OwnedName {
    name: Name,
    /// The files to remove; `None` for an abstract name.
    file: Option<OwnedFile>,
}

impl OwnedName {
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Leaves the path in place when this value is dropped.
    pub fn leave(&mut self) {
        if let Some(file) = &mut self.file {
            file.is_left = true;
        }
    }
}

#[derive(Debug)]
struct OwnedFile {
    /// Absolute, so that a chdir(2) does not change it.
    path: PathBuf,
    /// The bound socket.
    id: FileId,
    /// The process that bound the socket.
    pid: u32,
    /// The path stays when this value is dropped.
    is_left: bool,
    /// Held as long as the socket.
    lock: PathLock,
}

impl OwnedFile {
    fn new(path: PathBuf, id: FileId, lock: PathLock) -> Self {
        Self {
            path,
            id,
            pid: std::process::id(),
            is_left: false,
            lock,
        }
    }
}

impl Drop for OwnedFile {
    fn drop(&mut self) {
        if self.is_left || std::process::id() != self.pid {
            return;
        }
        // An error could be reported to nobody, and a file that is no longer ours stays.
        remove_if(&self.path, self.id);
        self.lock.remove();
    }
}

/// Binds `socket`, a Unix socket of any type, to `name`.
///
/// The path has its owner and its permissions from the first instant. A socket that a dead owner
/// left behind is replaced.
///
/// # Errors
/// [`Error::System`]: `EADDRINUSE` if the name has another owner, `EPERM` if this process may not
/// make files for `access.owner`; [`Error::Invalid`] if the path exists and is no socket, or if its
/// lock file is not ours.
pub(crate) fn bind(socket: BorrowedFd<'_>, name: &Name, access: PathAccess) -> Result<OwnedName> {
    let address = name.address()?;
    let failed = |errno| Error::system(format!("bind {name}"), errno);
    let file = match name {
        Name::Abstract(_) => {
            socket::bind(socket.as_raw_fd(), &address).map_err(failed)?;
            None
        }
        Name::Path(path) => {
            // Without a working directory, the relative path must do.
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            let lock = PathLock::take(name, &path, access.owner)?;
            match bind_locked(socket, &address, name, &path, access) {
                Ok(id) => Some(OwnedFile::new(path, id, lock)),
                Err(error) => {
                    lock.remove();
                    return Err(error);
                }
            }
        }
    };
    Ok(OwnedName {
        name: name.clone(),
        file,
    })
}

/// Takes `name` over from a process that left it ([`OwnedName::leave`]), with its `socket`, which
/// is still open. `None` if the path is no longer that socket. A path gets the owner and the
/// permissions that [`bind`] would have given it.
///
/// # Errors
/// [`Error::System`]: `EADDRINUSE` if the name has another owner, `EPERM` if this process may not
/// give the path to its owner; [`Error::Invalid`] if its lock file is not ours.
pub(crate) fn reclaim(
    socket: BorrowedFd<'_>,
    name: &Name,
    access: PathAccess,
) -> Result<Option<OwnedName>> {
    let mut file = None;
    if let Name::Path(path) = name {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let lock = PathLock::take(name, &path, access.owner)?;
        let Some(bound) = find_bound(socket, &path) else {
            lock.remove();
            return Ok(None);
        };
        let owner = lock.owner_beside(access.owner.unwrap_or_else(FileOwner::ourselves));
        give(&path, &bound, owner, access.permissions())
            .map_err(|errno| cannot_give(name, owner, errno))?;
        file = Some(OwnedFile::new(path, bound.id, lock));
    }
    Ok(Some(OwnedName {
        name: name.clone(),
        file,
    }))
}

/// Removes the path of a `socket` that another process left ([`OwnedName::leave`]), if the path
/// still is that socket. A new owner keeps the path.
///
/// # Errors
/// As of [`reclaim`].
pub(crate) fn remove(socket: BorrowedFd<'_>, name: &Name) -> Result<()> {
    if let Name::Path(path) = name {
        let lock = PathLock::take(name, path, None)?;
        if let Some(bound) = find_bound(socket, path) {
            remove_if(path, bound.id);
        }
        lock.remove();
    }
    Ok(())
}

/// The file that a socket is bound to.
struct Bound {
    id: FileId,
    /// Why the kernel does not tell what the socket is bound to. The file may be another socket.
    doubt: Option<Errno>,
}

/// The file at `path`, if `socket` is bound to it.
fn find_bound(socket: BorrowedFd<'_>, path: &Path) -> Option<Bound> {
    let found = lstat(path).ok()?;
    let inode = bound_inode(socket);
    let is_socket = type_of(&found) == SFlag::S_IFSOCK;
    let is_it = inode.is_ok_and(|inode| inode == found.st_ino as u32);
    (is_socket && (is_it || inode.is_err())).then(|| Bound {
        id: file_id(&found),
        doubt: inode.err(),
    })
}

fn all_modes() -> Mode {
    Mode::S_IRWXU | Mode::S_IRWXG | Mode::S_IRWXO
}

/// Binds `socket` to a locked path, and returns the id of the new file.
fn bind_locked(
    socket: BorrowedFd<'_>,
    address: &UnixAddr,
    name: &Name,
    path: &Path,
    access: PathAccess,
) -> Result<FileId> {
    let failed = |errno| Error::system(format!("bind {name}"), errno);
    let mode = access.permissions();
    for _ in 0..MAX_TRIES {
        let bound = match access.owner {
            Some(owner) => bind_for(owner, socket, address, path, mode)
                .map_err(|errno| cannot_give(name, owner, errno))?,
            None => bind_with_mode(socket, address, mode),
        };
        match bound {
            Ok(()) => return lstat(path).map(|stat| file_id(&stat)).map_err(failed),
            Err(Errno::EADDRINUSE) => {}
            Err(errno) => return Err(failed(errno)),
        }
        let found = match lstat(path) {
            Ok(stat) => stat,
            Err(Errno::ENOENT) => continue,
            Err(errno) => return Err(failed(errno)),
        };
        if type_of(&found) != SFlag::S_IFSOCK {
            return Err(Error::Invalid(format!(
                "cannot bind {name}: {name} exists and is not a socket"
            )));
        }
        if !is_stale(address) {
            return Err(failed(Errno::EADDRINUSE));
        }
        match unlink(path) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => {
                return Err(Error::system(format!("remove stale socket {name}"), errno));
            }
        }
    }
    Err(failed(Errno::EADDRINUSE))
}

/// Binds `socket` so that the path belongs to `owner` before anybody can connect. The inner errno is
/// that of bind(2), the outer one that of giving the path away.
fn bind_for(
    owner: FileOwner,
    socket: BorrowedFd<'_>,
    address: &UnixAddr,
    path: &Path,
    mode: Mode,
) -> nix::Result<nix::Result<()>> {
    // Nobody can connect before the socket listens. But anybody with the right can send datagrams at once.
    let closed = match getsockopt(&socket, sockopt::SockType) {
        Ok(SockType::Stream | SockType::SeqPacket) => mode,
        _ => mode & Mode::S_IRWXU,
    };
    // The kernel may give the path another group than the named one: that of its directory.
    let first = if owner.is_group_named { closed } else { mode };
    match owner.make(|| bind_with_mode(socket, address, first)) {
        // Without CAP_DAC_OVERRIDE, perhaps only we can make files in this directory.
        Ok(Err(Errno::EACCES)) => {}
        // Without CAP_SETGID, we can still give a file of ours to a group of ours.
        Err(Errno::EPERM) => {}
        Ok(Ok(())) if owner.is_group_named => {
            return give_away(socket, path, owner, mode).map(Ok);
        }
        made => return made,
    }
    let bound = bind_with_mode(socket, address, closed);
    if bound.is_ok() {
        give_away(socket, path, owner, mode)?;
    }
    Ok(bound)
}

/// Gives the path that `socket` has just been bound to its owner and its mode. Removes the path if
/// that fails.
fn give_away(socket: BorrowedFd<'_>, path: &Path, owner: FileOwner, mode: Mode) -> nix::Result<()> {
    // In a directory of somebody else's the path may have been replaced.
    let bound = find_bound(socket, path).ok_or(Errno::ENOENT)?;
    give(path, &bound, owner, mode).inspect_err(|_| remove_if(path, bound.id))
}

/// Gives a socket's path its owner and its mode. A group that is not to connect never can.
fn give(path: &Path, bound: &Bound, owner: FileOwner, mode: Mode) -> nix::Result<()> {
    let file = open_bound(path, bound.id)?;
    let found = fstat(&file)?;
    let is_owner = (found.st_uid, found.st_gid) == (owner.uid, owner.gid);
    if is_owner && mode_of(&found) == mode {
        return Ok(());
    }
    if let Some(errno) = bound.doubt
        && !is_ours_alone(path)
    {
        return Err(errno);
    }
    if !is_owner {
        set_mode(&file, mode & Mode::S_IRWXU)?;
        let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        fchownat(&file, "", Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH)?;
    }
    set_mode(&file, mode)
}

/// Whether nobody but root and us can replace a file of ours at `path`.
fn is_ours_alone(path: &Path) -> bool {
    let directory = path.parent().and_then(|directory| stat(directory).ok());
    directory.is_some_and(|directory| {
        let mode = Mode::from_bits_truncate(directory.st_mode);
        let is_shared = mode.intersects(Mode::S_IWGRP | Mode::S_IWOTH);
        is_trusted(directory.st_uid) && (!is_shared || mode.contains(Mode::S_ISVTX))
    })
}

/// Opens a socket's path (`O_PATH`), if it still is the file `id`.
fn open_bound(path: &Path, id: FileId) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = open(path, flags, Mode::empty())?;
    let found = fstat(&file)?;
    if file_id(&found) != id || type_of(&found) != SFlag::S_IFSOCK {
        return Err(Errno::ENOENT);
    }
    Ok(file)
}

fn mode_of(found: &FileStat) -> Mode {
    Mode::from_bits_truncate(found.st_mode) & all_modes()
}

fn set_mode(file: &OwnedFd, mode: Mode) -> nix::Result<()> {
    if mode_of(&fstat(file)?) == mode {
        return Ok(());
    }
    // fchmod(2) refuses a descriptor of O_PATH; its link in /proc leads to the file itself.
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    fchmodat(AT_FDCWD, &*link, mode, FchmodatFlags::FollowSymlink)
}

/// The umask gives the path exactly `mode` from the first instant.
fn bind_with_mode(socket: BorrowedFd<'_>, address: &UnixAddr, mode: Mode) -> nix::Result<()> {
    let _alone = UMASK.lock().unwrap_or_else(|poison| poison.into_inner());
    let before = umask(all_modes() & !mode);
    let result = socket::bind(socket.as_raw_fd(), address);
    umask(before);
    result
}

/// Whether the file at `address` is left over from a closed socket.
///
/// Connecting a datagram socket tells without troubling a listener. The connect succeeds with a
/// datagram socket, fails with `EPROTOTYPE` for any other open socket, listening or not, and fails
/// with `ECONNREFUSED` only for a closed socket of any type (seen on Linux 6.18).
fn is_stale(address: &UnixAddr) -> bool {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    match socket::socket(AddressFamily::Unix, SockType::Datagram, flags, None) {
        Ok(probe) => socket::connect(probe.as_raw_fd(), address) == Err(Errno::ECONNREFUSED),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn socket_of(kind: SockType) -> OwnedFd {
        socket::socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).unwrap()
    }

    fn bind_new(name: &Name, mode: Option<u32>) -> Result<(OwnedName, OwnedFd)> {
        let socket = socket_of(SockType::Datagram);
        let access = PathAccess { mode, owner: None };
        Ok((bind(socket.as_fd(), name, access)?, socket))
    }

    /// Closes a bound socket. A child that another test forks at that moment has a copy until its exec.
    fn abandon(socket: OwnedFd, name: &Name) {
        drop(socket);
        while !is_stale(&name.address().unwrap()) {
            std::thread::yield_now();
        }
    }

    fn in_use(name: &Name) -> String {
        format!("cannot bind {name}: Address already in use")
    }

    #[test]
    fn a_path_has_its_mode_and_vanishes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let name = Name::Path(path.clone());
        for (mode, expected) in [(None, 0o600), (Some(0o666), 0o666), (Some(0), 0)] {
            let (owned, _socket) = bind_new(&name, mode).unwrap();
            let meta = std::fs::symlink_metadata(&path).unwrap();
            assert_eq!(meta.permissions().mode() & 0o7777, expected);
            assert_eq!(owned.name(), &name);
            assert_eq!(
                bind_new(&name, None).unwrap_err().to_string(),
                in_use(&name)
            );
            drop(owned);
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let name = Name::Path(path.clone());
        for kind in [SockType::Stream, SockType::SeqPacket, SockType::Datagram] {
            let old = socket_of(kind);
            socket::bind(old.as_raw_fd(), &name.address().unwrap()).unwrap();
            // This socket has no lock and does not even listen, but it has an owner.
            assert_eq!(
                bind_new(&name, None).unwrap_err().to_string(),
                in_use(&name)
            );
            abandon(old, &name);
            let (_owned, _socket) = bind_new(&name, None).unwrap();
            assert!(path.exists());
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_socket_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let name = Name::Path(path.clone());
        std::fs::write(&path, "precious").unwrap();
        let error = bind_new(&name, None).unwrap_err().to_string();
        assert!(error.contains("exists and is not a socket"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/nowhere", &path).unwrap();
        let error = bind_new(&name, None).unwrap_err().to_string();
        assert!(error.contains("exists and is not a socket"), "{error}");
        // Another process's file at the path stays on drop.
        std::fs::remove_file(&path).unwrap();
        let (owned, _socket) = bind_new(&name, None).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "new").unwrap();
        drop(owned);
        assert!(path.exists());
    }

    #[test]
    fn odd_lock_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let name = Name::Path(dir.path().join("s"));
        let lock = dir.path().join("s.lock");
        let refused = |what: &str| {
            let error = bind_new(&name, None).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        std::os::unix::fs::symlink(dir.path().join("target"), &lock).unwrap();
        refused("s.lock is a symbolic link");
        assert!(!dir.path().join("target").exists());
        std::fs::remove_file(&lock).unwrap();
        std::fs::create_dir(&lock).unwrap();
        refused("s.lock is a directory");
        std::fs::remove_dir(&lock).unwrap();
        nix::unistd::mkfifo(&lock, Mode::S_IRWXU).unwrap();
        refused("s.lock is a special file");
        std::fs::remove_file(&lock).unwrap();
        // An owner that was killed left this lock file.
        std::fs::write(&lock, "").unwrap();
        drop(bind_new(&name, None).unwrap());
        assert!(!lock.exists());
        let nowhere = Name::Path(dir.path().join("no/s"));
        let error = bind_new(&nowhere, None).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ENOENT));
        assert_eq!(
            error.to_string(),
            format!("cannot bind {nowhere}: No such file or directory")
        );
    }

    #[test]
    fn a_forked_copy_takes_nothing_away() {
        let dir = tempfile::tempdir().unwrap();
        let name = Name::Path(dir.path().join("s"));
        let (mut owned, _socket) = bind_new(&name, None).unwrap();
        // As after a fork: this is another process, and the parent still has the lock open.
        let file = owned.file.as_mut().unwrap();
        file.pid += 1;
        let _parent = file.lock.fd.try_clone().unwrap();
        drop(owned);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        assert_eq!(
            bind_new(&name, None).unwrap_err().to_string(),
            in_use(&name)
        );
    }

    #[test]
    fn abstract_names_have_one_owner() {
        let name = Name::Abstract(format!("fdtools-test-{}", std::process::id()).into_bytes());
        let (_owned, first) = bind_new(&name, Some(0o666)).unwrap();
        assert_eq!(
            bind_new(&name, None).unwrap_err().to_string(),
            in_use(&name)
        );
        abandon(first, &name);
        bind_new(&name, None).unwrap();
    }

    #[test]
    fn exactly_one_wins() {
        const THREADS: usize = 4;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let name = Name::Path(path.clone());
        for round in 0..200 {
            if round % 2 == 0 {
                let stale = socket_of(SockType::Stream);
                socket::bind(stale.as_raw_fd(), &name.address().unwrap()).unwrap();
                abandon(stale, &name);
            }
            if round % 3 == 0 {
                std::fs::write(dir.path().join("s.lock"), "").unwrap();
            }
            let winners = AtomicUsize::new(0);
            let (start, end) = (Barrier::new(THREADS), Barrier::new(THREADS));
            std::thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| {
                        start.wait();
                        let bound = bind_new(&name, None);
                        match &bound {
                            Ok(_) => {
                                winners.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(error) => assert_eq!(error.errno(), Some(Errno::EADDRINUSE)),
                        }
                        end.wait();
                    });
                }
            });
            assert_eq!(winners.into_inner(), 1, "round {round}");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn owners_never_overlap() {
        let dir = tempfile::tempdir().unwrap();
        let name = Name::Path(dir.path().join("s"));
        let (owners, bound) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        if let Ok(held) = bind_new(&name, None) {
                            assert_eq!(owners.fetch_add(1, Ordering::SeqCst), 0);
                            bound.fetch_add(1, Ordering::Relaxed);
                            owners.fetch_sub(1, Ordering::SeqCst);
                            drop(held);
                        }
                    }
                });
            }
        });
        assert!(bound.into_inner() > 0);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
