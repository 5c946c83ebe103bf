//! The library's one error type: what was tried, on what, and why it failed.

use nix::errno::Errno;

/// The result of a library call that can fail with [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a library call failed.
///
/// Its text names action, object and cause (`cannot bind 127.0.0.1:80: Permission denied`);
/// a program puts its own name in front.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What the user asked for cannot be: the text says what to do instead.
    #[error("{0}")]
    Usage(String),
    /// A system call failed.
    #[error("cannot {action}: {}", .errno.desc())]
    System {
        /// What was tried, on what: `bind 127.0.0.1:80`.
        action: String,
        /// The cause.
        errno: Errno,
    },
    /// The other side did what it must not, or is not who it should be.
    #[error("{0}")]
    Peer(String),
    /// What a system call of another kind, without an errno, failed with.
    #[error("cannot {action}: {cause}")]
    Other {
        /// What was tried, on what.
        action: String,
        /// The cause.
        cause: String,
    },
    /// The queue ended before anything was received.
    #[error("{0}")]
    Closed(String),
    /// No such command.
    #[error("cannot run {command}: {cause}")]
    CommandNotFound {
        /// The command as the user wrote it.
        command: String,
        /// The cause.
        cause: String,
    },
    /// The command is there and cannot be executed.
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
    pub fn system(action: impl Into<String>, errno: Errno) -> Self {
        Error::System {
            action: action.into(),
            errno,
        }
    }

    /// The same for an error of the standard library's, which carries an errno.
    pub fn io(action: impl Into<String>, error: std::io::Error) -> Self {
        Self::system(
            action,
            Errno::from_raw(error.raw_os_error().unwrap_or_default()),
        )
    }

    /// The errno of a failed system call, if that is what this error is.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Error::System { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

/// The same error number in the words of the other library: rustix makes some of the calls.
pub(crate) fn to_nix(errno: rustix::io::Errno) -> Errno {
    Errno::from_raw(errno.raw_os_error())
}

/// And the other way round.
pub(crate) fn to_rustix(errno: Errno) -> rustix::io::Errno {
    rustix::io::Errno::from_raw_os_error(errno as i32)
}
