//! Where the two sides of a queue meet, by options that all three programs share.

use std::ffi::OsString;
use std::os::fd::RawFd;

use crate::error::Error;
use crate::queue::owned_name::PathAccess;

/// At most one of the first three is given. Without any, the queue is a standard stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rendezvous {
    /// `--queue-fd`: the queue's descriptor.
    pub queue_fd: Option<RawFd>,
    /// `--connect`: a name that the other side owns.
    pub connect: Option<OsString>,
    /// `--bind`: a name for us to own.
    pub bind: Option<OsString>,
    /// `--mode` and `--owner`: of the path that `--bind` makes.
    pub access: PathAccess,
    /// `--allow-uid`: uids that may be on the other side of an abstract name, besides ours and
    /// root's.
    pub allow_uid: Vec<u32>,
}

/// Names the option of the programs that would help.
pub(crate) fn with_advice(error: &Error) -> String {
    match error {
        Error::Untrusted { uid, .. } => format!("{error} (--allow-uid {uid} would)"),
        _ => error.to_string(),
    }
}
