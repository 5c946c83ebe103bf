//! fdaccept run by another user, by a script, under a manager, or until it fails.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::Pid;

use super::*;

impl Fdaccept {
    /// `-- fdpool 2 -- HANDLER`. Spaces separate the words of the handler.
    pub fn pool(handler: &str) -> Self {
        Self::chain(["fdpool", "2", "--"]).words(handler)
    }

    pub fn cats() -> Self {
        Self::pool("cat")
    }

    /// A script for `sh` that runs one fdaccept, with all its arguments.
    pub fn sh(text: &str) -> Self {
        let mut plain = Self::of(script("sh", text));
        plain.is_complete = true;
        plain
    }

    /// The arguments of another program that runs fdaccept, such as env(1).
    pub fn behind(wrapper: &[impl AsRef<OsStr>]) -> Self {
        let mut command = Command::new(&wrapper[0]);
        command.args(&wrapper[1..]).arg(bin_dir().join("fdaccept"));
        command.env("PATH", path()).stdin(Stdio::null());
        Self::of(command)
    }

    /// Run by another user, in `/`. All users can read its directory of names.
    pub fn by(uid: u32) -> Self {
        let names = Self::plain().open().names;
        let command = super::by(uid, &names.directory, "fdaccept");
        let mut plain = Self::of(command);
        plain.names = names;
        plain
    }

    /// Changes the user of the whole command line.
    pub fn run_by(mut self, uid: u32) -> Self {
        self.command.uid(uid).gid(uid);
        self
    }

    /// Adds words, separated by spaces, to the command of a chain.
    pub fn words(mut self, words: &str) -> Self {
        self.words.extend(words.split(' ').map(Into::into));
        self
    }

    /// Adds one word, which may contain spaces.
    pub fn word(mut self, word: impl AsRef<OsStr>) -> Self {
        self.words.push(word.as_ref().into());
        self
    }

    /// Writes a file into the directory of its names.
    pub fn file(self, name: &str, text: impl AsRef<[u8]>) -> Self {
        std::fs::write(self.names.file(name), text).unwrap();
        self
    }

    /// Lets all users read the directory of its names.
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
    #[track_caller]
    pub fn expect_echo(&self) {
        assert_eq!(exchange(self.port, b"hello"), b"hello");
    }
}

/// Waits until an fdaccept holds a connection that it cannot pass on: it has had more than `count`
/// descriptors for a while.
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
    assert!(succeeds(command.arg(format!("--nofile={limits}"))));
}
