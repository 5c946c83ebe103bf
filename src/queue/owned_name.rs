//! The ownership of the name of a socket.
//!
//! The owner of a path holds an exclusive `flock` on `PATH.lock`. The kernel drops the lock however
//! the owner dies, so a socket with a free lock has no owner and may be removed. A name in the
//! abstract namespace ends with its socket and needs no lock.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, FlockArg, OFlag, open};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, lstat, umask};
use nix::unistd::{Gid, Uid, fchown, fchownat, unlink};

use crate::error::{Error, Result};
use crate::queue::name::Name;
use crate::system::descriptor::type_of;
use crate::system::sock_diag::bound_inode;
use crate::system::text::printable;

/// The default permissions of a socket: its owner only.
const DEFAULT_MODE: u32 = 0o600;

/// After this many tries, a race for a path counts as lost.
const MAX_TRIES: usize = 100;

/// The umask belongs to the whole process: two threads that change it must not overlap.
static UMASK: Mutex<()> = Mutex::new(());

/// Device and inode number of a file.
type FileId = (u64, u64);

fn file_id(stat: &FileStat) -> FileId {
    (stat.st_dev, stat.st_ino)
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

    /// Gives the path and its lock file to another user. An abstract name has neither.
    ///
    /// # Errors
    /// [`Error::System`]: `EPERM` if this process may not do that, `ENOENT` if the path is no
    /// longer ours.
    pub fn give_to(&self, uid: u32, gid: u32) -> Result<()> {
        let name = &self.name;
        let failed = |errno| Error::system(format!("give {name} to uid {uid}"), errno);
        let file = self.file.as_ref();
        file.map_or(Ok(()), |file| file.give_to(uid, gid))
            .map_err(failed)
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
    lock: Lock,
}

impl OwnedFile {
    fn give_to(&self, uid: u32, gid: u32) -> nix::Result<()> {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        // A file that another process has put there meanwhile keeps its owner.
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let socket = open(&self.path, flags, Mode::empty())?;
        if file_id(&fstat(&socket)?) != self.id {
            return Err(Errno::ENOENT);
        }
        fchownat(&socket, "", uid, gid, AtFlags::AT_EMPTY_PATH)?;
        fchown(&self.lock.fd, uid, gid)
    }
}

impl Drop for OwnedFile {
    fn drop(&mut self) {
        if self.is_left || std::process::id() != self.pid {
            return;
        }
        // An error could be reported to nobody, and a file that is no longer ours stays.
        remove_if(&self.path, self.id);
        // While the lock is held: a process that opened this file meanwhile finds it gone and
        // starts again.
        remove_if(&self.lock.path, self.lock.id);
    }
}

/// Removes `path` if it is still the file `id`.
fn remove_if(path: &Path, id: FileId) {
    if lstat(path).is_ok_and(|stat| file_id(&stat) == id) {
        let _ = unlink(path);
    }
}

/// An exclusive lock on a file, until its descriptor is closed.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    id: FileId,
    /// Not a `nix::fcntl::Flock`, which unlocks when it is dropped. Forked children share the lock,
    /// so a child that dropped its copy would unlock its parent's.
    fd: OwnedFd,
}

/// Binds `socket`, a Unix socket of any type, to `name`.
///
/// `mode` is the permissions of the path (default 0600) from the first instant; an abstract name
/// has none. A socket that a dead owner left behind is replaced.
///
/// # Errors
/// [`Error::System`] with `EADDRINUSE` if the name has another owner; [`Error::Invalid`] if the
/// path exists and is no socket, or if its lock file is not a plain file.
pub(crate) fn bind(socket: BorrowedFd<'_>, name: &Name, mode: Option<u32>) -> Result<OwnedName> {
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
            let lock = lock(name, &path)?;
            let mode = Mode::from_bits_truncate(mode.unwrap_or(DEFAULT_MODE)) & all_modes();
            match bind_locked(socket, &address, name, &path, mode) {
                Ok(id) => Some(OwnedFile {
                    path,
                    id,
                    pid: std::process::id(),
                    is_left: false,
                    lock,
                }),
                Err(error) => {
                    remove_if(&lock.path, lock.id);
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
/// is still open. `None` if the path is no longer that socket.
///
/// # Errors
/// [`Error::System`] with `EADDRINUSE` if the name has another owner; [`Error::Invalid`] if its
/// lock file is not a plain file.
pub(crate) fn reclaim(socket: BorrowedFd<'_>, name: &Name) -> Result<Option<OwnedName>> {
    let mut file = None;
    if let Name::Path(path) = name {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let lock = lock(name, &path)?;
        let found = lstat(&path).ok();
        // If the kernel does not tell the socket's inode, any socket at the path must do.
        let inode = bound_inode(socket);
        let is_it = |stat: &FileStat| {
            type_of(stat) == SFlag::S_IFSOCK
                && inode.is_none_or(|inode| inode == stat.st_ino as u32)
        };
        let Some(stat) = found.filter(is_it) else {
            remove_if(&lock.path, lock.id);
            return Ok(None);
        };
        file = Some(OwnedFile {
            path,
            id: file_id(&stat),
            pid: std::process::id(),
            is_left: false,
            lock,
        });
    }
    Ok(Some(OwnedName {
        name: name.clone(),
        file,
    }))
}

fn all_modes() -> Mode {
    Mode::S_IRWXU | Mode::S_IRWXG | Mode::S_IRWXO
}

/// Locks `path`, which messages call `name`.
fn lock(name: &Name, path: &Path) -> Result<Lock> {
    let mut lock_path = OsString::from(path);
    lock_path.push(".lock");
    let lock_path = PathBuf::from(lock_path);
    let shown = printable(lock_path.as_os_str().as_encoded_bytes());
    let not_plain = |what: &str| {
        Error::Invalid(format!(
            "cannot bind {name}: {shown} is {what}; it must be a plain file or not be there"
        ))
    };
    for _ in 0..MAX_TRIES {
        let flags = OFlag::O_RDWR
            | OFlag::O_CLOEXEC
            | OFlag::O_NOFOLLOW
            // The open must not block on a FIFO or device that somebody put there.
            | OFlag::O_NONBLOCK
            | OFlag::O_NOCTTY;
        // An existing lock file is opened without O_CREAT: the kernel may refuse O_CREAT even to
        // root for another user's file (fs.protected_regular).
        let made = match open(&lock_path, flags, Mode::empty()) {
            Err(Errno::ENOENT) => {
                let mode = Mode::S_IRUSR | Mode::S_IWUSR;
                open(&lock_path, flags | OFlag::O_CREAT, mode)
            }
            there => there,
        };
        let fd = match made {
            Ok(fd) => fd,
            Err(Errno::ELOOP) if is_symlink(&lock_path) => {
                return Err(not_plain("a symbolic link"));
            }
            Err(Errno::EISDIR) => return Err(not_plain("a directory")),
            // The directory is wrong, not the lock file in it.
            Err(errno @ (Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP)) => {
                return Err(Error::system(format!("bind {name}"), errno));
            }
            Err(errno) => return Err(Error::system(format!("open {shown}"), errno)),
        };
        match flock_now(&fd) {
            Ok(()) => {}
            Err(Errno::EWOULDBLOCK) => {
                return Err(Error::system(format!("bind {name}"), Errno::EADDRINUSE));
            }
            Err(errno) => return Err(Error::system(format!("lock {shown}"), errno)),
        }
        let opened =
            fstat(&fd).map_err(|errno| Error::system(format!("examine {shown}"), errno))?;
        if type_of(&opened) != SFlag::S_IFREG {
            return Err(not_plain("a special file"));
        }
        let id = file_id(&opened);
        // The previous owner may have removed the file between our open and our lock.
        if lstat(&lock_path).is_ok_and(|stat| file_id(&stat) == id) {
            return Ok(Lock {
                path: lock_path,
                id,
                fd,
            });
        }
    }
    Err(Error::system(format!("bind {name}"), Errno::EADDRINUSE))
}

/// Fails with `EWOULDBLOCK` instead of waiting.
#[expect(deprecated, reason = "Flock unlocks on drop, see Lock")]
fn flock_now(fd: &OwnedFd) -> nix::Result<()> {
    nix::fcntl::flock(fd.as_raw_fd(), FlockArg::LockExclusiveNonblock)
}

fn is_symlink(path: &Path) -> bool {
    lstat(path).is_ok_and(|stat| type_of(&stat) == SFlag::S_IFLNK)
}

/// Binds `socket` to a locked path, and returns the id of the new file.
fn bind_locked(
    socket: BorrowedFd<'_>,
    address: &UnixAddr,
    name: &Name,
    path: &Path,
    mode: Mode,
) -> Result<FileId> {
    let failed = |errno| Error::system(format!("bind {name}"), errno);
    for _ in 0..MAX_TRIES {
        match bind_with_mode(socket, address, mode) {
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
        Ok((bind(socket.as_fd(), name, mode)?, socket))
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
