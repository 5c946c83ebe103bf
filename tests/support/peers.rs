//! What a machine may lack: other programs, root, IPv6, the examples.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::*;

/// Ends a test that lacks something: `needs!(root())`, `let ss = needs!(peer("ss"))`.
#[allow(unused_macros)] // not every group has such tests
macro_rules! needs {
    ($what:expr) => {
        match crate::support::Needed::found($what) {
            Some(found) => found,
            None => return,
        }
    };
}
pub(crate) use needs;

pub trait Needed {
    type Found;

    fn found(self) -> Option<Self::Found>;
}

impl Needed for bool {
    type Found = ();

    fn found(self) -> Option<()> {
        self.then_some(())
    }
}

impl<T> Needed for Option<T> {
    type Found = T;

    fn found(self) -> Self {
        self
    }
}

/// Another program that a test needs: `None`, and a line that says so, if it is not installed.
/// With FDTOOLS_REQUIRE_PEERS=1 that is a failure.
pub fn peer(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let found = std::env::split_paths(&path)
        .chain(sbin)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file());
    if found.is_none() {
        skip(&format!("{name} is not installed"));
    }
    found
}

/// What runs the command that follows it under strace(1) with these options, if that is installed. The
/// process is a child as without it.
pub fn traced(options: &str) -> Option<[String; 2]> {
    peer("strace")?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/traced");
    Some([script, options].map(str::to_owned))
}

/// The Python interpreter itself, if it is installed: what comes first on the path may be a script
/// that looks for it.
pub fn python() -> Option<PathBuf> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let mut command = Command::new(peer("python3")?);
        let (_, path, _) = run(command.args(["-c", "import sys; print(sys.executable)"]));
        Some(PathBuf::from(path.trim_end()))
    };
    FOUND.get_or_init(find).clone()
}

/// The worker of examples/ in Python, as a command line.
pub fn python_worker() -> Option<[PathBuf; 2]> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/worker.py");
    Some([python()?, source])
}

/// The one in Rust.
pub fn rust_worker() -> Option<PathBuf> {
    example("worker")
}

/// An example. `cargo test` builds it, `cargo test --test` does not.
pub fn example(name: &str) -> Option<PathBuf> {
    let compiled = bin_dir().join("examples").join(name);
    if !compiled.is_file() {
        skip(&format!("examples/{name}.rs is not built"));
        return None;
    }
    Some(compiled)
}

/// Raises the soft limit on open descriptors to the hard one.
pub fn raise_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

/// Whether the test runs as root, which it needs. Handled as [`peer`] is.
pub fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skip("this needs root");
    }
    root
}

/// Says that a test is skipped, and why; a failure with FDTOOLS_REQUIRE_PEERS=1.
pub fn skip(why: &str) {
    assert!(
        std::env::var_os("FDTOOLS_REQUIRE_PEERS").is_none_or(|value| value != "1"),
        "{why}, and FDTOOLS_REQUIRE_PEERS=1"
    );
    eprintln!("skipped: {why}");
}

/// Whether there is IPv6. Handled as [`peer`] is.
pub fn has_ipv6() -> bool {
    let is_there = TcpListener::bind("[::1]:0").is_ok();
    if !is_there {
        skip("there is no IPv6");
    }
    is_there
}
