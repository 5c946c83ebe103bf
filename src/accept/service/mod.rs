//! A process among others: under whom it runs, and what it tells and leaves to its supervisor.

pub(crate) mod child;
pub(crate) mod fd_store;
pub(crate) mod footprint;
pub(crate) mod listen_fds;
pub(crate) mod notify;
pub(crate) mod port_file;
pub(crate) mod restore;
pub(crate) mod sandbox;
pub(crate) mod user;
