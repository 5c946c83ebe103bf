//! fdaccept as a service: its command, its user, its service manager and its sandbox.

pub(crate) mod child;
pub(crate) mod fd_store;
pub(crate) mod footprint;
pub(crate) mod listen_fds;
pub(crate) mod notify;
pub(crate) mod port_file;
pub(crate) mod restore;
pub(crate) mod sandbox;
pub(crate) mod user;
