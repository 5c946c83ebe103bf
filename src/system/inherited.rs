//! Descriptors that were open before this program started, each claimed once.
//!
//! A program's main claims the numbers that a user gave, before it opens any descriptor of its own:
//! until then none of those numbers is ours.
#![allow(unsafe_code)] // only here a number from outside becomes an owned descriptor

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Mutex;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, rlim_t};

use crate::error::{Error, Result};
use crate::system::null;
use crate::system::text::digits;

static CLAIMED: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// The first number after the standard streams.
const FIRST_OTHER: RawFd = 3;

/// Takes over descriptor `number`, which the parent process left open, and marks it close-on-exec.
/// For a standard stream (0 or 1), returns a copy and leaves `/dev/null` at the number, so that a
/// number below 3 is never reused.
///
/// # Errors
/// [`Error::Invalid`] if `number` is 2, not open, or already claimed: a descriptor has one owner.
pub(crate) fn claim(number: RawFd) -> Result<OwnedFd> {
    let mut claimed = CLAIMED.lock().unwrap_or_else(|poison| poison.into_inner());
    let borrowed = unclaimed(number, &claimed)?;
    if number == 2 {
        let taken = "descriptor 2 is standard error, where messages go";
        return Err(Error::Invalid(taken.into()));
    }
    let failed = |errno| cannot_use(number, errno);
    let owned = if number < FIRST_OTHER {
        let copy = fcntl(borrowed, FcntlArg::F_DUPFD_CLOEXEC(FIRST_OTHER)).map_err(failed)?;
        let null = null::device()?;
        // SAFETY: the three standard streams belong to the whole process; replacing one leaves its
        // writers with an open descriptor.
        Errno::result(unsafe { libc::dup2(null.as_raw_fd(), number) }).map_err(failed)?;
        // SAFETY: fcntl just made this number.
        unsafe { OwnedFd::from_raw_fd(copy) }
    } else {
        fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(failed)?;
        // SAFETY: the number is open, and CLAIMED shows that nothing in this process owns it yet.
        unsafe { OwnedFd::from_raw_fd(number) }
    };
    claimed.insert(number);
    Ok(owned)
}

/// A copy of descriptor `number`, which the parent process left open and which stays open.
///
/// # Errors
/// [`Error::Invalid`] if `number` is not open, or claimed.
pub(crate) fn copy(number: RawFd) -> Result<OwnedFd> {
    let claimed = CLAIMED.lock().unwrap_or_else(|poison| poison.into_inner());
    let copy = unclaimed(number, &claimed)?.try_clone_to_owned();
    copy.map_err(|error| Error::io(format!("use descriptor {number}"), error))
}

/// The number in the path of a descriptor. Such paths are links to links, which the kernel follows
/// to what is open.
pub(crate) fn number_of(path: &Path) -> Option<RawFd> {
    match path.to_str()? {
        "/dev/stdin" => Some(0),
        "/dev/stdout" => Some(1),
        "/dev/stderr" => Some(2),
        path => {
            let number = path
                .strip_prefix("/dev/fd/")
                .or_else(|| path.strip_prefix("/proc/self/fd/"))?;
            digits(number)
        }
    }
}

/// Checks a path that is to be read: one of a descriptor must not name a descriptor of our own.
///
/// # Errors
/// [`Error::Invalid`] if the parent process did not leave that descriptor open, or it is claimed.
pub(crate) fn check_path(path: &Path) -> Result<()> {
    number_of(path).map_or(Ok(()), |number| copy(number).map(drop))
}

fn unclaimed(number: RawFd, claimed: &BTreeSet<RawFd>) -> Result<BorrowedFd<'static>> {
    if claimed.contains(&number) {
        let twice = format!("descriptor {number} cannot be used for two things at once");
        return Err(Error::Invalid(twice));
    }
    if number < 0 {
        return Err(cannot_use(number, Errno::EBADF));
    }
    // SAFETY: whoever left it open for us left it for good, and nothing in this process owns it yet.
    // If the number is not open, the call below fails.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = fcntl(borrowed, FcntlArg::F_GETFD).map_err(|errno| cannot_use(number, errno))?;
    // A close-on-exec descriptor did not come by exec: this process opened it.
    if FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC) {
        return Err(cannot_use(number, Errno::EBADF));
    }
    Ok(borrowed)
}

fn cannot_use(number: RawFd, errno: Errno) -> Error {
    match errno {
        Errno::EBADF => Error::Invalid(format!("descriptor {number} is not open")),
        errno => Error::system(format!("use descriptor {number}"), errno),
    }
}

/// Marks every descriptor but the standard streams close-on-exec, so that a command inherits
/// nothing else, whatever our parent left open. All claims come first.
///
/// # Errors
/// [`Error::System`] if the kernel is older than Linux 5.11 and there is no `/proc` either.
pub(crate) fn close_others_on_exec() -> Result<()> {
    // SAFETY: this sets flags and closes nothing.
    let done = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            FIRST_OTHER as libc::c_uint,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if done == 0 {
        return Ok(());
    }
    let failed = |error| Error::io("find the open descriptors", error);
    for entry in std::fs::read_dir("/proc/self/fd").map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let number = name.to_str().and_then(|name| name.parse().ok());
        if let Some(number) = number.filter(|number: &RawFd| *number >= FIRST_OTHER) {
            // SAFETY: as above; the call only fails for a number that was closed meanwhile.
            unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

/// Checks that a connection can be placed at `number` later.
///
/// # Errors
/// [`Error::Invalid`] if `number` is beyond the limit on descriptors.
pub(crate) fn check_number(number: RawFd) -> Result<()> {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((rlim_t::MAX, 0));
    if rlim_t::try_from(number).is_ok_and(|number| number < limit) {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "descriptor {number} is beyond the limit of {limit} (ulimit -n)"
    )))
}

/// Puts a copy of `descriptor` at `number`, open across exec, and closes the descriptor that was
/// there: the caller becomes another program next and needs no descriptor of its own.
///
/// # Errors
/// [`Error::System`]: `EBADF` if `number` is beyond the limit on descriptors.
pub(crate) fn place(descriptor: BorrowedFd<'_>, number: RawFd) -> Result<()> {
    let failed = |errno| Error::system(format!("use descriptor {number}"), errno);
    if descriptor.as_raw_fd() == number {
        let flags = FcntlArg::F_SETFD(FdFlag::empty());
        return fcntl(descriptor, flags).map(drop).map_err(failed);
    }
    // SAFETY: see above; the caller does not return to the owner of the old descriptor at `number`.
    Errno::result(unsafe { libc::dup2(descriptor.as_raw_fd(), number) })
        .map(drop)
        .map_err(failed)
}

/// Leaves `descriptor` open across exec. If another descriptor has `taken` its number, leaves a
/// copy open instead.
///
/// # Errors
/// [`Error::System`] if there is no number for a copy.
pub(crate) fn leave_open(descriptor: BorrowedFd<'_>, taken: RawFd) -> Result<()> {
    let action = if descriptor.as_raw_fd() == taken {
        FcntlArg::F_DUPFD(FIRST_OTHER)
    } else {
        FcntlArg::F_SETFD(FdFlag::empty())
    };
    fcntl(descriptor, action)
        .map(drop)
        .map_err(|errno| Error::system("keep a descriptor open", errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_descriptors_are_known() {
        for (path, number) in [
            ("/dev/stdin", Some(0)),
            ("/dev/stdout", Some(1)),
            ("/dev/stderr", Some(2)),
            ("/dev/fd/3", Some(3)),
            ("/proc/self/fd/10", Some(10)),
            ("/dev/fd/", None),
            ("/dev/fd/x", None),
            ("dev/fd/3", None),
            ("/dev/null", None),
            ("ports", None),
        ] {
            assert_eq!(number_of(Path::new(path)), number, "{path}");
        }
    }
}
