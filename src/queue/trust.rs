//! Who may be on the other side of an abstract name.
//!
//! A path is guarded by its directory and its mode. For an abstract name the kernel tells the uid
//! of the other side, which must be ours, root's or an allowed one.

use std::os::fd::BorrowedFd;

use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::geteuid;

use crate::error::{Error, Result};
use crate::queue::name::Name;
use crate::system::sock_diag::peer_uid;

/// The trusted uids.
#[derive(Clone, Debug)]
pub struct Trust {
    /// `None`: everybody.
    uids: Option<Vec<u32>>,
}

impl Trust {
    /// Trusts everybody: for pairs, and for paths, whose mode keeps others out.
    pub fn everybody() -> Self {
        Self { uids: None }
    }

    /// Trusts this process's effective uid, root, and `others`.
    pub fn us_and(others: &[u32]) -> Self {
        let mut uids = vec![0, geteuid().as_raw()];
        uids.extend(others);
        Self { uids: Some(uids) }
    }

    /// Whether some uid is not trusted.
    pub(crate) fn is_limited(&self) -> bool {
        self.uids.is_some()
    }

    /// Whether `uid` is trusted.
    pub fn allows(&self, uid: u32) -> bool {
        self.uids.as_ref().is_none_or(|uids| uids.contains(&uid))
    }

    /// Checks the other side of a connected socket by `SO_PEERCRED`.
    ///
    /// # Errors
    /// [`Error::Untrusted`] if its uid is not trusted, [`Error::System`] if the kernel does not
    /// say.
    pub(crate) fn check_owner(&self, socket: BorrowedFd<'_>, name: &Name) -> Result<()> {
        let peer = getsockopt(&socket, sockopt::PeerCredentials)
            .map_err(|errno| Error::system(format!("ask who owns {name}"), errno))?;
        self.check(peer.uid(), name)
    }

    /// Checks the owner of the name that a datagram socket is connected to. `SO_PEERCRED` does not
    /// work for datagram sockets, so the kernel's socket diagnostics are asked.
    ///
    /// # Errors
    /// [`Error::Untrusted`] if its uid is not trusted, [`Error::System`] if the kernel does not
    /// say.
    pub(crate) fn check_receiver(&self, socket: BorrowedFd<'_>, name: &Name) -> Result<()> {
        if self.uids.is_none() {
            return Ok(());
        }
        let uid = peer_uid(socket)
            .map_err(|errno| Error::system(format!("ask who receives at {name}"), errno))?;
        self.check(uid, name)
    }

    fn check(&self, uid: u32, name: &Name) -> Result<()> {
        if self.allows(uid) {
            return Ok(());
        }
        Err(Error::Untrusted {
            name: name.to_string(),
            uid,
        })
    }
}
