//! Directories, names and ports for sockets.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::socket::{
    SockFlag, SockType, SockaddrLike, SockaddrStorage, bind, setsockopt, socket, sockopt,
};

use super::*;

/// Names that nothing else uses: a path in a directory that vanishes with this, and others in the
/// abstract namespace.
pub struct Names {
    pub directory: tempfile::TempDir,
}

impl Names {
    #[allow(clippy::new_without_default)] // nothing but a test makes one
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { directory }
    }

    pub fn path(&self) -> String {
        self.text("queue")
    }

    /// A file in the directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Its path as an argument.
    pub fn text(&self, name: &str) -> String {
        self.file(name).to_str().unwrap().to_owned()
    }

    pub fn is_empty(&self) -> bool {
        self.files().is_empty()
    }

    /// What is in the directory, in order.
    pub fn files(&self) -> Vec<String> {
        let entries = self.directory.path().read_dir().unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    pub fn abstract_name(&self) -> String {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        format!("@fdtools-test-{}-{count}", std::process::id())
    }
}

/// The lock of a Unix socket at a path.
pub fn lock_of(path: impl AsRef<Path>) -> PathBuf {
    let mut lock = OsString::from(path.as_ref());
    lock.push(".lock");
    lock.into()
}

/// A port that the kernel gives to no other socket, of any address, but that can be listened on. It is
/// free again when the descriptor is closed.
pub fn reserve_port() -> (OwnedFd, u16) {
    let everywhere: [IpAddr; 2] = [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()];
    let socket = everywhere.into_iter().find_map(|address| {
        let address = SockaddrStorage::from(SocketAddr::new(address, 0));
        let family = address.family().unwrap();
        let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).ok()?;
        setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
        bind(socket.as_raw_fd(), &address).ok()?;
        Some(socket)
    });
    let listener = TcpListener::from(socket.unwrap());
    let port = listener.local_addr().unwrap().port();
    (listener.into(), port)
}
