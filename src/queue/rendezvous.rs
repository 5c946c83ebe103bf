//! Where the two sides of a queue meet, as the user says it. All three programs spell it alike.

use std::ffi::OsString;
use std::os::fd::RawFd;

use crate::error::Error;

/// How to get to the other side. At most one of the first three is given; without any, it is a
/// standard stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rendezvous {
    /// `--queue-fd`: this descriptor.
    pub queue_fd: Option<RawFd>,
    /// `--connect`: a name that the other side owns.
    pub connect: Option<OsString>,
    /// `--bind`: a name for us to own.
    pub bind: Option<OsString>,
    /// `--mode`: of the socket file that `--bind` makes; 0600 if `None`.
    pub mode: Option<u32>,
    /// `--allow-uid`: who may be on the other side of an abstract name, besides us and root.
    pub allow_uid: Vec<u32>,
}

/// `error` with the option that would help, as a user of the programs can give it.
pub(crate) fn with_advice(error: &Error) -> String {
    match error {
        Error::Untrusted { uid, .. } => format!("{error} (--allow-uid {uid} would)"),
        _ => error.to_string(),
    }
}
