//! Changes from root to another user, for good.

use std::collections::BTreeSet;
use std::ffi::CString;

use nix::errno::Errno;
use nix::unistd::{
    Gid, Uid, getgrouplist, getgroups, getresgid, getresuid, setgroups, setresgid, setresuid,
};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use crate::error::{Error, Result, to_nix};
use crate::system::accounts::{find_group, find_user};
use crate::system::file_owner::FileOwner;
use crate::system::text::printable;

/// A user and its groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    shown: String,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

impl User {
    /// Finds `USER[:GROUP]`, each by name or by number, as chown(1) does. GROUP defaults to the
    /// user's own group. Supplementary groups come from the account (initgroups(3)). A number
    /// without an account needs GROUP, and has no other groups.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is no such user or group, or the user is root; [`Error::System`]
    /// if the accounts cannot be read.
    pub fn find(text: &str) -> Result<Self> {
        let shown = printable(text.as_bytes());
        let bad = |problem: &str| Error::Invalid(problem.into());
        let failed = |errno| Error::system(format!("look up user {shown}"), errno);
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let found = find_user(user).map_err(failed)?;
        let given = group.map(|group| find_group(group).map_err(failed));
        let given = match given.transpose()? {
            Some(None) => return Err(bad("no such group")),
            given => given.flatten(),
        };
        let found = found.ok_or_else(|| bad("no such user"))?;
        let uid = found.uid;
        let (gid, groups) = match found.account {
            Some(account) => {
                let gid = given.unwrap_or(account.gid);
                let name = CString::new(account.name).unwrap_or_default();
                (gid, getgrouplist(&name, gid).map_err(failed)?)
            }
            None => {
                let gid = given
                    .ok_or_else(|| bad("there is no account with that number, so give a group"))?;
                (gid, vec![gid])
            }
        };
        // -1 means "unchanged" to setresuid(2).
        if uid.is_root() || uid.as_raw() == u32::MAX || gid.as_raw() == u32::MAX {
            return Err(bad("must be another user than root"));
        }
        Ok(Self {
            shown,
            uid,
            gid,
            groups,
        })
    }

    pub fn uid(&self) -> u32 {
        self.uid.as_raw()
    }

    /// The owner of files that are made for this user.
    pub fn owner(&self) -> FileOwner {
        FileOwner {
            uid: self.uid.as_raw(),
            gid: self.gid.as_raw(),
            is_group_named: false,
        }
    }

    /// Makes this process that user: sets groups, gid and uid, in that order, and drops all
    /// capabilities. Then checks that there is no way back.
    ///
    /// # Errors
    /// [`Error::System`]: `EPERM` without the right to become another user.
    pub fn assume(&self) -> Result<()> {
        let failed = |errno| Error::system(format!("become user {}", self.shown), errno);
        setgroups(&self.groups).map_err(failed)?;
        setresgid(self.gid, self.gid, self.gid).map_err(failed)?;
        setresuid(self.uid, self.uid, self.uid).map_err(failed)?;
        // The kernel drops capabilities only from root, and not under some securebits.
        let none = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, none).map_err(|errno| failed(to_nix(errno)))?;
        match self.is_final() {
            Ok(true) => Ok(()),
            Ok(false) => Err(failed(Errno::ENOTRECOVERABLE)),
            Err(errno) => Err(failed(errno)),
        }
    }

    /// Whether nothing of the old user is left, and no way back.
    fn is_final(&self) -> Result<bool, Errno> {
        let (users, groups) = (getresuid()?, getresgid()?);
        let set = |groups: &[Gid]| -> BTreeSet<u32> {
            groups.iter().map(|group| group.as_raw()).collect()
        };
        Ok([users.real, users.effective, users.saved] == [self.uid; 3]
            && [groups.real, groups.effective, groups.saved] == [self.gid; 3]
            && set(&self.groups) == set(&getgroups()?)
            && setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_err())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_without_an_account_needs_a_group() {
        let user = User::find("4000000001:4000000002").unwrap();
        assert_eq!((user.uid(), user.gid.as_raw()), (4000000001, 4000000002));
        assert_eq!(user.groups, [user.gid]);
        assert!(User::find("4000000001").is_err());
    }

    #[test]
    fn who_is_nobody_or_root_is_refused() {
        for (text, expected) in [
            ("", "no such user"),
            ("-1", "no such user"),
            ("4294967296:1", "no such user"),
            ("no such user", "no such user"),
            (":", "no such group"),
            ("1:", "no such group"),
            ("root:", "no such group"),
            ("1:-1", "no such group"),
            ("1:4294967296", "no such group"),
            ("1:no-such", "no such group"),
            ("root", "must be another user than root"),
            ("0", "must be another user than root"),
            ("0:5", "must be another user than root"),
            ("root:5", "must be another user than root"),
            ("4294967295:5", "must be another user than root"),
            ("5:4294967295", "must be another user than root"),
        ] {
            let error = User::find(text).unwrap_err();
            assert!(matches!(error, Error::Invalid(_)), "{text}");
            assert_eq!(error.to_string(), expected, "{text}");
        }
    }
}
