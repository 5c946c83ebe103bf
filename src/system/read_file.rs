//! Reads a file that the command line names. Nothing there makes the program wait for ever, or read
//! without end.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag};

use crate::system::descriptor::file_type;
use crate::system::poll::{PollFlags, wait_for};

/// How long a FIFO may take while no client waits.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Reads at most `most` bytes. A FIFO or a terminal has `patience` to give something, and its end.
///
/// # Errors
/// Those of open(2) and read(2); another one if nothing comes, or not the end. A FIFO without a
/// writer is not an empty file.
pub(crate) fn read(path: &Path, most: usize, patience: Duration) -> io::Result<Vec<u8>> {
    let until = Instant::now() + patience;
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let file = File::from(open(path, flags, Mode::empty())?);
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

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::mkfifo;
    use std::io::Write;

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
