//! Files that belong to another user from the first instant.
//!
//! A file that is made first and given away later can be met in between, by a process that may not
//! use it yet. It can also be replaced in between, and then another file is given away.

use nix::errno::Errno;
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::thread::{capabilities, set_capabilities};

use crate::error::to_nix;

/// The user and the group that a file is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileOwner {
    pub uid: u32,
    pub gid: u32,
}

impl FileOwner {
    /// Runs `action`, whose new files belong to this user and group. In a set-group-ID directory the
    /// group is the directory's. What `action` may do is as before.
    ///
    /// # Errors
    /// `EPERM` if this thread may not make files for that user.
    pub fn make<T>(self, action: impl FnOnce() -> T) -> Result<T, Errno> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        let before = capabilities(None).map_err(to_nix)?;
        let (old_uid, old_gid) = (setfsuid(uid), setfsgid(gid));
        // Neither call reports a failure: a second one tells what the first one has set.
        let is_set = setfsuid(uid) == uid && setfsgid(gid) == gid;
        // Who is not root has no power over files, unless it is said again.
        let result = if is_set && set_capabilities(None, before).is_ok() {
            Ok(action())
        } else {
            Err(Errno::EPERM)
        };
        setfsgid(old_gid);
        setfsuid(old_uid);
        // What was given up before is not to come back with the user.
        set_capabilities(None, before).map_err(to_nix)?;
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::{getegid, geteuid};
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
