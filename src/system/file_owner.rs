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

use crate::error::{Error, Result, to_nix};
use crate::system::accounts::{find_group, find_user};
use crate::system::descriptor::type_of;
use crate::system::text::printable;

/// The user and the group that a file is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileOwner {
    pub uid: u32,
    pub gid: u32,
    /// The group was named for the file, so a set-group-ID directory does not change it.
    pub is_group_named: bool,
}

/// `[USER][:GROUP]`, as chown(1) understands it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NamedOwner {
    uid: Option<u32>,
    gid: Option<u32>,
}

impl NamedOwner {
    /// Finds user and group, each by name or by number. `USER:` is USER with the group of its
    /// account.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is no such user or group, or neither is named; [`Error::System`]
    /// if the accounts cannot be read.
    pub fn find(text: &str) -> Result<Self> {
        let bad = |problem: &str| Error::Invalid(problem.into());
        let failed = |errno| {
            let shown = printable(text.as_bytes());
            Error::system(format!("look up owner {shown}"), errno)
        };
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let found = match user {
            "" => None,
            user => {
                let found = find_user(user).map_err(failed)?;
                Some(found.ok_or_else(|| bad("no such user"))?)
            }
        };
        let gid = match (group, &found) {
            (None, Some(_)) => None,
            (None | Some(""), None) => return Err(bad("write USER, USER:GROUP or :GROUP")),
            (Some(""), Some(found)) => {
                let account = found.account.as_ref();
                let account = account
                    .ok_or_else(|| bad("there is no account with that number, so give a group"))?;
                Some(account.gid)
            }
            (Some(group), _) => {
                let gid = find_group(group).map_err(failed)?;
                Some(gid.ok_or_else(|| bad("no such group"))?)
            }
        };
        let (uid, gid) = (
            found.map(|found| found.uid.as_raw()),
            gid.map(|gid| gid.as_raw()),
        );
        // -1 means "unchanged" to chown(2).
        match (uid, gid) {
            (Some(u32::MAX), _) => Err(bad("no such user")),
            (_, Some(u32::MAX)) => Err(bad("no such group")),
            _ => Ok(Self { uid, gid }),
        }
    }

    /// Whose a file is that otherwise would be `owner`'s, or ours.
    pub fn instead_of(self, owner: Option<FileOwner>) -> FileOwner {
        let otherwise = owner.unwrap_or_else(FileOwner::ourselves);
        FileOwner {
            uid: self.uid.unwrap_or(otherwise.uid),
            gid: self.gid.unwrap_or(otherwise.gid),
            is_group_named: self.gid.is_some(),
        }
    }
}

impl FileOwner {
    pub fn ourselves() -> Self {
        Self {
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            is_group_named: false,
        }
    }

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

    fn owner(uid: u32, gid: u32) -> FileOwner {
        FileOwner {
            uid,
            gid,
            is_group_named: false,
        }
    }

    #[test]
    fn an_owner_is_named_as_for_chown() {
        let named = |uid, gid| NamedOwner { uid, gid };
        for (text, expected) in [
            ("root", named(Some(0), None)),
            ("0", named(Some(0), None)),
            ("root:", named(Some(0), Some(0))),
            (":root", named(None, Some(0))),
            ("4000000001", named(Some(4_000_000_001), None)),
            (":4000000001", named(None, Some(4_000_000_001))),
            ("root:4000000001", named(Some(0), Some(4_000_000_001))),
        ] {
            assert_eq!(NamedOwner::find(text).unwrap(), expected, "{text}");
        }
        for (text, expected) in [
            ("", "write USER, USER:GROUP or :GROUP"),
            (":", "write USER, USER:GROUP or :GROUP"),
            ("no-such", "no such user"),
            ("no-such:root", "no such user"),
            ("-1", "no such user"),
            ("+0", "no such user"),
            ("4294967295", "no such user"),
            ("4294967296", "no such user"),
            ("root:no-such", "no such group"),
            (":no-such", "no such group"),
            (":4294967295", "no such group"),
            ("root:root:root", "no such group"),
            ("root.root", "no such user"),
            ("4000000001:", "there is no account with that number"),
        ] {
            let error = NamedOwner::find(text).unwrap_err();
            assert!(matches!(error, Error::Invalid(_)), "{text}");
            assert!(error.to_string().starts_with(expected), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_not_named_stays() {
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        let found = |text| NamedOwner::find(text).unwrap();
        let named = |uid, gid| FileOwner {
            is_group_named: true,
            ..owner(uid, gid)
        };
        assert_eq!(found("7").instead_of(None), owner(7, gid));
        assert_eq!(found(":7").instead_of(None), named(uid, 7));
        assert_eq!(found("7:8").instead_of(None), named(7, 8));
        let other = Some(owner(5, 6));
        assert_eq!(found("7").instead_of(other), owner(7, 6));
        assert_eq!(found(":7").instead_of(other), named(5, 7));
        assert_eq!(found("7:8").instead_of(other), named(7, 8));
    }

    #[test]
    fn a_file_is_made_for_another_user_by_who_may() {
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        assert_eq!(made_for(owner(uid, gid)), Ok((uid, gid)));
        let (uid, gid) = (4_000_000_001, 4_000_000_002);
        let made = made_for(owner(uid, gid));
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
