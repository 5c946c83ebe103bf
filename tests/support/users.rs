//! Other users.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::*;

/// Uids that no test runs as.
pub const NOBODY: u32 = 65534;
pub const SOMEBODY: u32 = 65533;

/// A directory that every user can look into.
pub fn open_dir() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let everybody = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(dir.path(), everybody).unwrap();
    dir
}

/// A copy of one of the programs in `dir`, as the build directory may be closed to other users.
pub fn copy_of(name: &str, dir: &Path) -> PathBuf {
    let copy = dir.join(name);
    if !copy.exists() {
        // Another process writes it, as in `executable`.
        let original = bin_dir().join(name);
        assert!(succeeds(Command::new("cp").arg(original).arg(&copy)));
    }
    copy
}

/// One of the programs, to be run by another user, as a copy in `dir`.
pub fn by(uid: u32, dir: impl AsRef<Path>, name: &str) -> Command {
    let mut command = Command::new(copy_of(name, dir.as_ref()));
    command.uid(uid).gid(uid).current_dir("/");
    command.stdin(Stdio::null());
    command
}

/// Owner, group and permissions of a file.
#[track_caller]
pub fn whose(path: &Path) -> (u32, u32, u32) {
    let meta = path.symlink_metadata().unwrap();
    (meta.uid(), meta.gid(), meta.permissions().mode() & 0o7777)
}

/// Does `action` as another user, in a thread of its own: the other threads keep theirs.
pub fn as_user<T: Send>(uid: u32, action: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let uid = rustix::process::Uid::from_raw(uid);
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            action()
        });
        thread.join().unwrap()
    })
}
