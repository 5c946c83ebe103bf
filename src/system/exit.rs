//! The exit statuses of the programs.

/// Wrong usage.
pub(crate) const USAGE: u8 = 2;
/// The queue closed before a connection came (`EX_UNAVAILABLE` of sysexits.h).
pub(crate) const CLOSED: u8 = 69;
/// The command exists but cannot be executed (POSIX shells, env(1)).
pub(crate) const NOT_EXECUTABLE: u8 = 126;
/// The command does not exist (POSIX shells, env(1)).
pub(crate) const NOT_FOUND: u8 = 127;
