//! The owners of files: whose they are to be, and whose can be trusted.
//!
//! A file for another user belongs to that user from the first instant. One that is made first and
//! given away later can be met in between, by a process that may not use it yet. It can also be
//! replaced in between, and then another file is given away.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use rustix::process::{Gid, Uid, getegid, geteuid};
use rustix::thread::{capabilities, set_capabilities, set_thread_res_gid, set_thread_res_uid};

use crate::error::to_nix;
use crate::system::descriptor::type_of;
use crate::system::text::printable;

/// The user and the group that a file is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileOwner {
    pub uid: u32,
    pub gid: u32,
}

impl FileOwner {
    /// Runs `action`, whose new files belong to this user and group. In a set-group-ID directory
    /// the group is the directory's. What `action` may do is as before.
    ///
    /// The effective ids are changed, and not those of the file system (setfsuid(2)): who becomes a
    /// user needs the same calls again, and a filter of system calls that lets them through.
    ///
    /// # Errors
    /// `EPERM` if this thread may not make files for that user.
    pub fn make<T>(self, action: impl FnOnce() -> T) -> Result<T, Errno> {
        self.make_as(action).map_err(to_nix)
    }

    fn make_as<T>(self, action: impl FnOnce() -> T) -> rustix::io::Result<T> {
        let (old_uid, old_gid) = (geteuid(), getegid());
        let before = capabilities(None)?;
        set_thread_res_gid(None, Gid::from_raw(self.gid), None)?;
        let made = set_thread_res_uid(None, Uid::from_raw(self.uid), None).and_then(|()| {
            // Who is not root any more keeps its privileges, but they are not in effect.
            let made = set_capabilities(None, before).map(|()| action());
            set_thread_res_uid(None, old_uid, None).and(made)
        });
        set_thread_res_gid(None, old_gid, None)?;
        // What was given up before does not come back with the user.
        set_capabilities(None, before)?;
        made
    }
}

/// Whether what this user has put somewhere can be meant for us: it is root, or us.
pub(crate) fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

/// How many links to follow, as the kernel does.
pub(crate) const MAX_LINKS: usize = 40;

/// Opens the directory that `path` is in (`O_PATH`), behind links of root's and ours alone: the link
/// of a user with fewer rights may lead to where only we can read or write.
///
/// # Errors
/// Those of open(2); `ELOOP` after too many links; another one if a link is somebody else's.
pub(crate) fn open_parent(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let start = |path: &Path| if path.is_absolute() { "/" } else { "." };
    let mut directory = open(start(path), flags, Mode::empty())?;
    let parent = path.parent().unwrap_or(Path::new(""));
    let mut left: Vec<OsString> = parent.iter().rev().map(OsStr::to_owned).collect();
    let mut links = 0;
    while let Some(name) = left.pop() {
        if name == "/" {
            directory = open("/", flags, Mode::empty())?;
            continue;
        }
        let next = openat(&directory, &*name, flags | OFlag::O_NOFOLLOW, Mode::empty())?;
        let stat = fstat(&next)?;
        if type_of(&stat) != SFlag::S_IFLNK {
            directory = next;
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(Errno::ELOOP.into());
        }
        let shown = printable(name.as_encoded_bytes());
        check_link(&stat, &shown)?;
        let target = PathBuf::from(readlinkat(&next, "")?);
        left.extend(target.iter().rev().map(OsStr::to_owned));
    }
    Ok(directory)
}

/// Refuses a symbolic link that is neither root's nor ours.
///
/// # Errors
/// One that begins with `what`.
pub(crate) fn check_link(link: &FileStat, what: &str) -> io::Result<()> {
    if is_trusted(link.st_uid) {
        return Ok(());
    }
    let problem = format!("{what} is a symbolic link of uid {}", link.st_uid);
    Err(io::Error::other(problem))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    /// Makes a file for `owner` in a closed directory, and returns its user and group.
    fn made_for(owner: FileOwner) -> Result<(u32, u32), Errno> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let before = capabilities(None).unwrap();
        let made = owner.make(|| std::fs::write(&path, ""));
        assert_eq!(capabilities(None).unwrap(), before);
        std::fs::write(dir.path().join("ours"), "").unwrap();
        let ours = dir.path().join("ours").metadata().unwrap();
        assert_eq!(ours.uid(), geteuid().as_raw());
        made?.unwrap();
        let meta = path.metadata().unwrap();
        Ok((meta.uid(), meta.gid()))
    }

    #[test]
    fn a_file_is_made_for_another_user_by_who_may() {
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        assert_eq!(made_for(FileOwner { uid, gid }), Ok((uid, gid)));
        let (uid, gid) = (4_000_000_001, 4_000_000_002);
        let made = made_for(FileOwner { uid, gid });
        let is_root = geteuid().is_root();
        assert_eq!(
            made,
            if is_root {
                Ok((uid, gid))
            } else {
                Err(Errno::EPERM)
            }
        );
    }
}
