//! The exit statuses of the programs.

/// Wrong usage.
pub(crate) const USAGE: u8 = 2;
/// A queue that closed before anything was received (`EX_UNAVAILABLE` of sysexits.h).
pub(crate) const CLOSED: u8 = 69;
/// A command that is there and cannot be executed (POSIX shells, env(1)).
pub(crate) const NOT_EXECUTABLE: u8 = 126;
/// A command that does not exist (POSIX shells, env(1)).
pub(crate) const NOT_FOUND: u8 = 127;
