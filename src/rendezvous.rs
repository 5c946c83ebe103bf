//! Where the two sides of a queue meet, as the user says it. All three programs spell it alike.

use std::ffi::OsString;
use std::os::fd::RawFd;

/// How to get to the other side. At most one of the first three is given; without any, it is a
/// standard stream.
#[derive(Clone, Debug, Default)]
pub struct Rendezvous {
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
