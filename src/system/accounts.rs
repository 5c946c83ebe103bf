//! Users and groups of this machine, by name or by number, as chown(1) finds them: a name comes first.

use nix::errno::Errno;
use nix::unistd::{Gid, Group, Uid, User};

use crate::system::text::digits;

pub(crate) struct Found {
    pub uid: Uid,
    /// A number may have none.
    pub account: Option<User>,
}

/// Finds a user; `None` if there is none.
///
/// # Errors
/// The errno, if the accounts cannot be read.
pub(crate) fn find_user(text: &str) -> Result<Option<Found>, Errno> {
    if let Some(account) = User::from_name(text)? {
        let uid = account.uid;
        let account = Some(account);
        return Ok(Some(Found { uid, account }));
    }
    let Some(uid) = digits(text).map(Uid::from_raw) else {
        return Ok(None);
    };
    let account = User::from_uid(uid)?;
    Ok(Some(Found { uid, account }))
}

/// Finds a group; `None` if there is none.
///
/// # Errors
/// The errno, if the groups cannot be read.
pub(crate) fn find_group(text: &str) -> Result<Option<Gid>, Errno> {
    let named = Group::from_name(text)?.map(|group| group.gid);
    Ok(named.or_else(|| digits(text).map(Gid::from_raw)))
}
