//! Linux, seen from Rust. Nothing here knows of queues or of our programs.

pub(crate) mod alarm;
pub(crate) mod command;
pub(crate) mod descriptor;
pub(crate) mod exit;
pub(crate) mod fd_limit;
pub(crate) mod fork;
pub(crate) mod free_fds;
pub(crate) mod inherited;
pub mod interrupt;
pub(crate) mod log;
pub(crate) mod log_output;
pub(crate) mod pause;
pub(crate) mod peer_groups;
pub(crate) mod poll;
pub(crate) mod shared;
pub(crate) mod signals;
pub(crate) mod sock_diag;
pub(crate) mod termination;
pub(crate) mod text;
pub(crate) mod unix_socket;
pub(crate) mod vfork;
