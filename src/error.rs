//! The library's one error type: action, object and cause.

use std::io;

use nix::errno::Errno;

/// The result of a call that can fail with [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed.
///
/// The text names action, object and cause (`cannot bind 127.0.0.1:80: Permission denied`), but not
/// the program.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument or a descriptor is unusable; the text says why.
    #[error("{0}")]
    Invalid(String),
    /// A system call failed.
    #[error("cannot {action}: {}", describe(.cause))]
    System {
        /// Action and object: `bind 127.0.0.1:80`.
        action: String,
        /// The cause, with its errno.
        cause: io::Error,
    },
    /// The other side broke the protocol; the text says how.
    #[error("{0}")]
    Peer(String),
    /// An abstract name belongs to an untrusted uid.
    #[error("{name} belongs to uid {uid}, which is not trusted")]
    Untrusted {
        /// The name, with `@` in front.
        name: String,
        /// The owner's uid.
        uid: u32,
    },
    /// The text of a file is unusable; the text says where and why.
    #[doc(hidden)] // only the programs meet this
    #[error("{0}")]
    File(String),
    /// A call failed for a reason without an errno.
    #[error("cannot {action}: {cause}")]
    Other {
        /// Action and object.
        action: String,
        /// The cause.
        cause: String,
    },
    /// No connection came: the queue has ended, cannot be reached, or gave none in time.
    #[doc(hidden)] // only the programs meet this
    #[error("{0}")]
    Closed(String),
    /// The command does not exist.
    #[doc(hidden)] // only the programs meet this
    #[error("cannot run {command}: {cause}")]
    CommandNotFound {
        /// The command as the user wrote it.
        command: String,
        /// The cause.
        cause: String,
    },
    /// The command exists but cannot be executed.
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
    /// A failed system call. `action` is action and object in the infinitive
    /// (`"bind 127.0.0.1:80"`).
    pub(crate) fn system(action: impl Into<String>, errno: Errno) -> Self {
        Self::io(action, errno.into())
    }

    pub(crate) fn io(action: impl Into<String>, cause: io::Error) -> Self {
        Error::System {
            action: action.into(),
            cause,
        }
    }

    /// The errno of a failed system call (`EAGAIN` and the like, errno(3)); `None` for other
    /// errors.
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

/// The words of strerror(3), which people search for. `io::Error` appends the number of the errno.
fn describe(cause: &io::Error) -> String {
    let text = cause.to_string();
    match cause.raw_os_error() {
        Some(errno) => text
            .trim_end_matches(&format!(" (os error {errno})"))
            .to_owned(),
        None => text,
    }
}

/// The words of strerror(3).
pub(crate) fn words(errno: Errno) -> String {
    describe(&errno.into())
}

pub(crate) fn to_nix(errno: rustix::io::Errno) -> Errno {
    Errno::from_raw(errno.raw_os_error())
}
