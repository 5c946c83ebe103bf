//! The one error type: what was tried, on what, and why it failed.

use std::io;

use nix::errno::Errno;

/// The result of a call that can fail with [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed.
///
/// Its text names action, object and cause (`cannot bind 127.0.0.1:80: Permission denied`);
/// a program puts its own name in front.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What was given cannot be used: the text says what is wrong with it.
    #[error("{0}")]
    Invalid(String),
    /// A system call failed.
    #[error("cannot {action}: {}", describe(.cause))]
    System {
        /// What was tried, on what: `bind 127.0.0.1:80`.
        action: String,
        /// The cause, with its errno.
        cause: io::Error,
    },
    /// The other side did what it must not.
    #[error("{0}")]
    Peer(String),
    /// The other side of an abstract name is somebody who is not trusted.
    #[error("{name} belongs to uid {uid}, which is not trusted")]
    Untrusted {
        /// The name, `@` in front.
        name: String,
        /// Who has it.
        uid: u32,
    },
    /// Something failed for a reason without an errno.
    #[doc(hidden)] // only the programs meet this
    #[error("cannot {action}: {cause}")]
    Other {
        /// What was tried, on what.
        action: String,
        /// The cause.
        cause: String,
    },
    /// The queue ended before anything was received.
    #[doc(hidden)] // only the programs meet this
    #[error("{0}")]
    Closed(String),
    /// No such command.
    #[doc(hidden)] // only the programs meet this
    #[error("cannot run {command}: {cause}")]
    CommandNotFound {
        /// The command as the user wrote it.
        command: String,
        /// The cause.
        cause: String,
    },
    /// The command is there and cannot be executed.
    #[doc(hidden)] // only the programs meet this
    #[error("cannot run {command}: {cause}")]
    CommandNotExecutable {
        /// The command as the user wrote it.
        command: String,
        /// The cause.
        cause: String,
    },
}

impl Error {
    /// A failed system call: `action` says what was tried on what, in the infinitive
    /// (`"bind 127.0.0.1:80"`).
    pub(crate) fn system(action: impl Into<String>, errno: Errno) -> Self {
        Self::io(action, errno.into())
    }

    /// The same for an error of the standard library.
    pub(crate) fn io(action: impl Into<String>, cause: io::Error) -> Self {
        Error::System {
            action: action.into(),
            cause,
        }
    }

    /// The errno of a failed system call (`EAGAIN` and the like of errno(3)), if that is what this
    /// error is.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Error::System { cause, .. } => cause.raw_os_error(),
            _ => None,
        }
    }

    pub(crate) fn errno(&self) -> Option<Errno> {
        self.raw_os_error().map(Errno::from_raw)
    }
}

/// The cause without the number that the standard library adds.
fn describe(cause: &io::Error) -> String {
    match cause.raw_os_error() {
        Some(errno) => Errno::from_raw(errno).desc().to_owned(),
        None => cause.to_string(),
    }
}

/// The same error number in the words of the other library: rustix makes some of the calls.
pub(crate) fn to_nix(errno: rustix::io::Errno) -> Errno {
    Errno::from_raw(errno.raw_os_error())
}
