//! Variables that were meant for a process before handlers and workers.

/// What a service manager means for one process.
pub const OF_A_SERVICE_MANAGER: [&str; 11] = [
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "WATCHDOG_LATER",
    "MAINPID",
    "MAINPIDFDID",
    "FDSTORE",
];

/// What other servers tell of a connection, and fdtools does not.
pub const OF_OTHER_SERVERS: [&str; 16] = [
    "TCPREMOTEHOST",
    "TCPREMOTEINFO",
    "TCPLOCALHOST",
    "IPCREMOTEINFO",
    "REMOTE_HOST",
    "SSLREMOTEIP",
    "SSLLOCALPORT",
    "SSL_CIPHER",
    "SSL_CLIENT_S_DN",
    "SSL_PEER_CERT_HASH",
    "SSL_TLS_SNI_SERVERNAME",
    "UNIXREMOTEEUID",
    "UNIXREMOTEPATH",
    "UNIXREMOTELATER",
    "UNIXLOCALPATH",
    "UNIXLOCALUID",
];
