//! Linux, seen from Rust. Nothing here knows of queues or of our programs.

pub(crate) mod alarm;
pub(crate) mod command;
pub(crate) mod descendants;
pub(crate) mod descriptor;
pub(crate) mod exit;
pub(crate) mod fd_limit;
pub(crate) mod file_owner;
pub(crate) mod fork;
pub(crate) mod free_fds;
pub(crate) mod inherited;
pub mod interrupt;
pub(crate) mod log;
pub(crate) mod null;
pub(crate) mod pause;
pub(crate) mod peer_groups;
pub(crate) mod peer_ids;
pub(crate) mod poll;
pub(crate) mod processes;
pub(crate) mod quick_close;
pub(crate) mod read_file;
pub(crate) mod signals;
pub(crate) mod sock_diag;
pub(crate) mod termination;
pub(crate) mod text;
pub(crate) mod unix_socket;
pub(crate) mod vfork;
