//! The lock of a path: an exclusive `flock` on `PATH.lock`.
//!
//! The kernel drops the lock however its owner dies. The file that a dead owner left is replaced by
//! a new one: so the locked file is always our own, and may be given away and removed.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FlockArg, OFlag, open};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, lstat};
use nix::unistd::{Gid, Uid, fchown, getegid, geteuid, unlink};

use crate::error::{Error, Result};
use crate::queue::name::Name;
use crate::system::descriptor::type_of;
use crate::system::file_owner::FileOwner;
use crate::system::text::printable;

/// After this many tries, a race for a path counts as lost.
pub(super) const MAX_TRIES: usize = 100;

/// Device and inode number of a file.
pub(super) type FileId = (u64, u64);

pub(super) fn file_id(stat: &FileStat) -> FileId {
    (stat.st_dev, stat.st_ino)
}

/// Removes `path` if it is still the file `id`.
pub(super) fn remove_if(path: &Path, id: FileId) {
    if lstat(path).is_ok_and(|stat| file_id(&stat) == id) {
        let _ = unlink(path);
    }
}

pub(super) fn cannot_give(name: &Name, owner: FileOwner, errno: Errno) -> Error {
    let FileOwner { uid, gid, .. } = owner;
    let group = if owner.is_group_named {
        format!(" and gid {gid}")
    } else {
        String::new()
    };
    Error::system(format!("give {name} to uid {uid}{group}"), errno)
}

/// An exclusive lock on a file that we have made, until its descriptor is closed.
#[derive(Debug)]
pub(super) struct PathLock {
    path: PathBuf,
    id: FileId,
    /// The group that the kernel gave to the new file.
    first_gid: u32,
    /// Not a `nix::fcntl::Flock`, which unlocks when it is dropped. Forked children share the lock,
    /// so a child that dropped its copy would unlock its parent's.
    pub fd: OwnedFd,
}

impl PathLock {
    /// Locks `path`, which messages call `name`. The lock file belongs to `owner`, or to us.
    ///
    /// # Errors
    /// [`Error::System`] with `EADDRINUSE` if somebody else has the lock; [`Error::Invalid`] if the
    /// lock file is not what a dead owner leaves.
    pub fn take(name: &Name, path: &Path, owner: Option<FileOwner>) -> Result<Self> {
        let file = LockFile::of(name, path);
        for _ in 0..MAX_TRIES {
            let (fd, is_new) = match file.make()? {
                Some(fd) => (fd, true),
                None => match file.find()? {
                    Some(fd) => (fd, false),
                    None => continue,
                },
            };
            file.lock(&fd)?;
            // Another process may have removed the file between our open and our lock.
            let Some(found) = file.if_there(&fd)? else {
                continue;
            };
            if !is_new {
                file.remove()?;
                continue;
            }
            let lock = Self {
                path: file.path,
                id: file_id(&found),
                first_gid: found.st_gid,
                fd,
            };
            if let Some(owner) = owner {
                lock.give_to(owner).map_err(|errno| {
                    lock.remove();
                    cannot_give(name, owner, errno)
                })?;
            }
            return Ok(lock);
        }
        Err(file.cannot_bind(Errno::EADDRINUSE))
    }

    /// Safe even in a directory of somebody else's: the descriptor is that of a file we have made.
    fn give_to(&self, owner: FileOwner) -> Result<(), Errno> {
        let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        fchown(&self.fd, Some(uid), Some(gid))
    }

    /// Whose a new file beside the lock is if it is made for `owner`: where new files have the group
    /// of their directory, so has the lock file had.
    pub fn owner_beside(&self, owner: FileOwner) -> FileOwner {
        let is_directorys = self.first_gid != getegid().as_raw();
        let gid = match owner.is_group_named {
            false if is_directorys => self.first_gid,
            _ => owner.gid,
        };
        FileOwner { gid, ..owner }
    }

    /// Removes the lock file, while the lock is held: a process that has opened the file meanwhile
    /// finds it gone and starts again.
    pub fn remove(&self) {
        remove_if(&self.path, self.id);
    }
}

/// `PATH.lock`, whoever has it.
struct LockFile<'a> {
    /// The name that the lock is for.
    name: &'a Name,
    path: PathBuf,
    shown: String,
}

impl<'a> LockFile<'a> {
    fn of(name: &'a Name, path: &Path) -> Self {
        let mut lock_path = OsString::from(path);
        lock_path.push(".lock");
        Self {
            name,
            shown: printable(lock_path.as_encoded_bytes()),
            path: PathBuf::from(lock_path),
        }
    }

    fn cannot_bind(&self, errno: Errno) -> Error {
        Error::system(format!("bind {}", self.name), errno)
    }

    fn is(&self, what: &str) -> Error {
        let Self { name, shown, .. } = self;
        Error::Invalid(format!(
            "cannot bind {name}: {shown} {what}; it must be a lock file of ours or not be there"
        ))
    }

    fn open(&self, further: OFlag) -> Result<OwnedFd, Errno> {
        let flags = OFlag::O_RDWR
            | OFlag::O_CLOEXEC
            | OFlag::O_NOFOLLOW
            // The open must not block on a FIFO or device that somebody put there.
            | OFlag::O_NONBLOCK
            | OFlag::O_NOCTTY;
        open(&self.path, flags | further, Mode::S_IRUSR | Mode::S_IWUSR)
    }

    /// A new file; `None` if there is one already.
    fn make(&self) -> Result<Option<OwnedFd>> {
        match self.open(OFlag::O_CREAT | OFlag::O_EXCL) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::EEXIST) => Ok(None),
            // The directory is wrong, not the lock file in it.
            Err(errno @ (Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP)) => {
                Err(self.cannot_bind(errno))
            }
            Err(errno) => Err(self.failed("open", errno)),
        }
    }

    fn failed(&self, action: &str, errno: Errno) -> Error {
        Error::system(format!("{action} {}", self.shown), errno)
    }

    /// The file that is there, if it is what an owner leaves that was killed: empty, with one link,
    /// and ours. `None` if it has just been removed.
    fn find(&self) -> Result<Option<OwnedFd>> {
        let fd = match self.open(OFlag::empty()) {
            Ok(fd) => fd,
            Err(Errno::ENOENT) => return Ok(None),
            Err(Errno::ELOOP) => return Err(self.is("is a symbolic link")),
            Err(Errno::EISDIR) => return Err(self.is("is a directory")),
            Err(errno) => return Err(self.failed("open", errno)),
        };
        let found = fstat(&fd).map_err(|errno| self.failed("examine", errno))?;
        let us = geteuid();
        match found.st_nlink {
            _ if type_of(&found) != SFlag::S_IFREG => Err(self.is("is a special file")),
            _ if found.st_size != 0 => Err(self.is("is not empty")),
            0 => Ok(None),
            1 if us.is_root() || found.st_uid == us.as_raw() => Ok(Some(fd)),
            1 => Err(self.is(&format!("belongs to uid {}", found.st_uid))),
            _ => Err(self.is("has another name")),
        }
    }

    /// Fails instead of waiting.
    #[expect(deprecated, reason = "Flock unlocks on drop, see PathLock")]
    fn lock(&self, fd: &OwnedFd) -> Result<()> {
        match nix::fcntl::flock(fd.as_raw_fd(), FlockArg::LockExclusiveNonblock) {
            Ok(()) => Ok(()),
            Err(Errno::EWOULDBLOCK) => Err(self.cannot_bind(Errno::EADDRINUSE)),
            Err(errno) => Err(self.failed("lock", errno)),
        }
    }

    /// What the open file is; `None` if the path is no longer that file.
    fn if_there(&self, fd: &OwnedFd) -> Result<Option<FileStat>> {
        let opened = fstat(fd).map_err(|errno| self.failed("examine", errno))?;
        let id = file_id(&opened);
        let is_there = lstat(&self.path).is_ok_and(|stat| file_id(&stat) == id);
        Ok(is_there.then_some(opened))
    }

    fn remove(&self) -> Result<()> {
        match unlink(&self.path) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(self.failed("remove", errno)),
        }
    }
}
