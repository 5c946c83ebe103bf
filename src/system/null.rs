//! `/dev/null`, opened once and never closed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Result, to_nix};

static NULL: OnceLock<OwnedFd> = OnceLock::new();

/// # Errors
/// [`Error::System`] if `/dev/null` cannot be opened.
pub(crate) fn device() -> Result<BorrowedFd<'static>> {
    if let Some(null) = NULL.get() {
        return Ok(null.as_fd());
    }
    let null = open(OFlags::CLOEXEC)?;
    Ok(NULL.get_or_init(|| null).as_fd())
}

/// Opens it once more.
///
/// # Errors
/// Those of [`device`].
pub(crate) fn open(flags: OFlags) -> Result<OwnedFd> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | flags, Mode::empty());
    null.map_err(|errno| Error::system("open /dev/null", to_nix(errno)))
}
