//! fdaccept in other surroundings, and what its clients and consumers do.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::Pid;

use super::*;

impl Fdaccept {
    /// `-- fdpool 2 -- HANDLER`, whose words are parted by spaces.
    pub fn pool(handler: &str) -> Self {
        Self::chain(["fdpool", "2", "--"]).words(handler)
    }

    pub fn cats() -> Self {
        Self::pool("cat")
    }

    /// A script for `sh` that ends in one fdaccept, with all its arguments.
    pub fn sh(text: &str) -> Self {
        let mut plain = Self::of(script("sh", text));
        plain.is_complete = true;
        plain
    }

    /// Started by these words, as of env(1).
    pub fn behind(wrapper: &[impl AsRef<OsStr>]) -> Self {
        let mut command = Command::new(&wrapper[0]);
        command.args(&wrapper[1..]).arg(bin_dir().join("fdaccept"));
        command.env("PATH", path()).stdin(Stdio::null());
        Self::of(command)
    }

    /// Started by another user, in `/`. Its own directory is open.
    pub fn by(uid: u32) -> Self {
        let names = Self::plain().open().names;
        let command = super::by(uid, &names.directory, "fdaccept");
        let mut plain = Self::of(command);
        plain.names = names;
        plain
    }

    /// Has another user start what there is.
    pub fn run_by(mut self, uid: u32) -> Self {
        self.command.uid(uid).gid(uid);
        self
    }

    /// `-- WORDS`, in addition to the words that are there.
    pub fn words(mut self, words: &str) -> Self {
        self.words.extend(words.split(' ').map(Into::into));
        self
    }

    /// One of these words, whatever is in it.
    pub fn word(mut self, word: impl AsRef<OsStr>) -> Self {
        self.words.push(word.as_ref().into());
        self
    }

    /// Writes a file into its directory.
    pub fn file(self, name: &str, text: impl AsRef<[u8]>) -> Self {
        std::fs::write(self.names.file(name), text).unwrap();
        self
    }

    /// Lets every user look into its directory.
    pub fn open(self) -> Self {
        let everybody = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&self.names.directory, everybody).unwrap();
        self
    }

    /// As a service of this manager.
    pub fn under(self, manager: &Manager) -> Self {
        self.env("NOTIFY_SOCKET", &manager.name)
    }

    /// `--user USER:USER`
    pub fn user(self, uid: u32) -> Self {
        self.args(["--user".to_owned(), format!("{uid}:{uid}")])
    }

    /// Runs it to its end, with this status. Returns its standard error.
    #[track_caller]
    pub fn fails(mut self, status: i32) -> String {
        self.complete();
        let (ended, _, log) = run(&mut self.command);
        assert_eq!(ended, Some(status), "{log}");
        log
    }
}

impl Acceptor {
    /// Checks that a client gets its own bytes back.
    #[track_caller]
    pub fn expect_echo(&self) {
        assert_eq!(exchange(self.port, b"hello"), b"hello");
    }
}

/// Waits until an fdaccept has a connection in hand that it cannot pass on: it has had more than
/// `count` descriptors for a while.
#[track_caller]
pub fn until_full(pid: Pid, count: usize) {
    let mut full = 0;
    until("a full queue", || {
        let is_full = descriptors(pid).len() > count;
        full = if is_full { full + 1 } else { 0 };
        full == 20
    });
}

/// Sets the limits on descriptors of a running process, as `SOFT:HARD` or `SOFT:`.
#[track_caller]
pub fn limit(prlimit: &Path, pid: Pid, limits: &str) {
    let mut command = Command::new(prlimit);
    command.args(["--pid", &pid.to_string()]);
    let status = command.arg(format!("--nofile={limits}")).status();
    assert!(status.unwrap().success());
}
