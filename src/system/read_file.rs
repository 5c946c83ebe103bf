//! Reads a file that the command line names. Nothing there makes the program wait for ever, or read
//! without end.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstat};

use crate::system::descriptor::file_type;
use crate::system::file_owner::{MAX_LINKS, check_link, open_parent};
use crate::system::inherited;
use crate::system::poll::{PollFlags, wait_for};

/// How long the other end of a FIFO may take while no client waits.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Reads at most `most` bytes. A FIFO or a terminal has `patience` to give something, and its end.
///
/// # Errors
/// Those of open(2) and read(2); another one if nothing comes, or not the end. A FIFO without a
/// writer is not an empty file.
pub(crate) fn read(path: &Path, most: usize, patience: Duration) -> io::Result<Vec<u8>> {
    let until = Instant::now() + patience;
    let file = File::from(open_trusted(path)?);
    let is_pipe = file_type(file.as_fd()) == Some(SFlag::S_IFIFO);
    let mut text = Vec::new();
    let mut has_ended = false;
    loop {
        let room = most - text.len();
        match (&file).take(room as u64).read_to_end(&mut text) {
            Ok(_) if !is_pipe || !text.is_empty() => return Ok(text),
            // As long as nobody writes to it, a pipe reads like an empty file.
            Ok(_) if !has_ended => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock && !has_ended => {}
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
            _ if text.is_empty() => return Err(io::Error::other("nothing was written to it")),
            _ => return Err(io::Error::other("its end does not come")),
        }
        let state = wait_for(file.as_fd(), PollFlags::IN, Some(until))?;
        // What is there is read before the end counts.
        has_ended = Instant::now() >= until || state.contains(PollFlags::HUP);
    }
}

/// Opens a file behind links of root's and ours alone. The link of a user with fewer rights may
/// lead to a file that only we can read.
fn open_trusted(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        if inherited::number_of(&path).is_some() {
            return Ok(open(&path, flags, Mode::empty())?);
        }
        let directory = open_parent(&path)?;
        let name = path.file_name().unwrap_or(OsStr::new("."));
        match openat(&directory, name, flags | OFlag::O_NOFOLLOW, Mode::empty()) {
            Err(Errno::ELOOP) => {}
            opened => return Ok(opened?),
        }
        let as_link = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let link = openat(&directory, name, as_link, Mode::empty())?;
        check_link(&fstat(&link)?, "it")?;
        // Not by the path again, where another link may be by now.
        let target = readlinkat(&link, "")?;
        path = path.parent().unwrap_or(Path::new("")).join(target);
    }
    Err(Errno::ELOOP.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::mkfifo;
    use std::io::Write;
    use std::os::unix::fs::symlink;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_plain_file_is_read_up_to_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read(&path, 9, Duration::ZERO).unwrap(), b"12345");
        assert_eq!(read(&path, 3, Duration::ZERO).unwrap(), b"123");
        std::fs::write(&path, "").unwrap();
        assert_eq!(read(&path, 9, LONG).unwrap(), b"");
        assert_eq!(read(Path::new("/dev/null"), 9, LONG).unwrap(), b"");
        assert_eq!(read(Path::new("/dev/zero"), 9, LONG).unwrap(), [0; 9]);
        assert!(read(&dir.path().join("none"), 9, LONG).is_err());
        assert!(read(dir.path(), 9, LONG).is_err());
    }

    #[test]
    fn links_are_followed_as_the_kernel_does() {
        let dir = tempfile::tempdir().unwrap();
        let [sub, file] = ["sub", "file"].map(|name| dir.path().join(name));
        std::fs::create_dir(&sub).unwrap();
        std::fs::write(&file, "text").unwrap();
        symlink("../file", sub.join("up")).unwrap();
        symlink("sub/up", dir.path().join("down")).unwrap();
        symlink(&sub, dir.path().join("other")).unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        symlink("/dev/null", dir.path().join("null")).unwrap();
        let read = |name: &str| read(&dir.path().join(name), 9, Duration::ZERO);
        for name in ["down", "sub/up", "other/up"] {
            assert_eq!(read(name).unwrap(), b"text", "{name}");
        }
        assert_eq!(read("null").unwrap(), b"");
        let error = read("loop").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::ELOOP as i32));
    }

    #[test]
    fn a_fifo_has_some_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let problem = || read(&path, 9, Duration::ZERO).unwrap_err().to_string();
        assert_eq!(problem(), "nothing was written to it");
        // In parts, and by a writer that comes late.
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| read(&path, 99, LONG).unwrap());
            let mut writer = File::options().write(true).open(&path).unwrap();
            writer.write_all(b"one ").unwrap();
            std::thread::yield_now();
            writer.write_all(b"two").unwrap();
            drop(writer);
            assert_eq!(reader.join().unwrap(), b"one two");
        });
        // A writer that says nothing, and one that does not end.
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| read(&path, 99, LONG));
            drop(File::options().write(true).open(&path).unwrap());
            assert!(reader.join().unwrap().is_err());
        });
        let mut writer = File::options().read(true).write(true).open(&path).unwrap();
        assert_eq!(problem(), "nothing was written to it");
        writer.write_all(b"half").unwrap();
        assert_eq!(problem(), "its end does not come");
    }
}
