//! A file that tells the bound ports to a program that asked for any free port.
//!
//! Its directory may belong to a user with fewer rights than ours: what we do not know to be safe
//! is neither followed nor written to, and nothing waits for ever.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::error::{Error, Result};
use crate::system::descriptor::type_of;
use crate::system::file_owner::{is_trusted, open_parent};
use crate::system::inherited;
use crate::system::interrupt;
use crate::system::poll::{PollFlags, wait_for};
use crate::system::read_file::PATIENCE;
use crate::system::text::printable;

/// A pipe that poll calls writable has room for so many bytes (`PIPE_BUF`).
const ROOM: usize = 4096;

/// How many names to try for a new file.
const MAX_TRIES: u32 = 100;

/// Writes `ports` to `path`, each once and on a line of its own. A plain file is replaced as a
/// whole, so that a reader never sees half of it. A FIFO, a device, or a descriptor that was
/// inherited (`/dev/fd/3`) is written to.
///
/// # Errors
/// [`Error::System`] if `path` cannot be written, if nobody reads it in time, or if it is something
/// else, such as a symbolic link; [`Error::Invalid`] if the descriptor is not open.
pub(crate) fn write(path: &Path, ports: impl Iterator<Item = u32>) -> Result<()> {
    let mut once: Vec<u32> = Vec::new();
    for port in ports {
        if !once.contains(&port) {
            once.push(port);
        }
    }
    let lines: String = once.iter().map(|port| format!("{port}\n")).collect();
    let text = lines.as_bytes();
    let written = match inherited::number_of(path) {
        Some(number) => write_in_time(&inherited::copy(number)?.into(), text),
        None => write_at(path, text),
    };
    let shown = printable(path.as_os_str().as_encoded_bytes());
    written.map_err(|error| Error::io(format!("write {shown}"), error))
}

fn write_at(path: &Path, text: &[u8]) -> io::Result<()> {
    let directory = &open_parent(path)?;
    let name = path.file_name().ok_or(Errno::EISDIR)?;
    let Ok(found) = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) else {
        return replace(directory, name, text);
    };
    let refused = |why: &str| Err(io::Error::other(why));
    match type_of(&found) {
        SFlag::S_IFREG => replace(directory, name, text),
        // Anybody else could make us wait.
        SFlag::S_IFIFO if !is_trusted(found.st_uid) => {
            refused(&format!("it belongs to uid {}", found.st_uid))
        }
        SFlag::S_IFIFO | SFlag::S_IFCHR => write_to(directory, name, &found, text),
        SFlag::S_IFDIR => Err(Errno::EISDIR.into()),
        SFlag::S_IFLNK => refused("it is a symbolic link"),
        _ => refused("it is not a plain file"),
    }
}

fn is_unread() -> io::Error {
    io::Error::other("nobody reads it")
}

fn replace(directory: &OwnedFd, name: &OsStr, text: &[u8]) -> io::Result<()> {
    let (new, mut file) = make_in(directory)?;
    let written = file
        .write_all(text)
        .and_then(|()| Ok(renameat(directory, &*new, directory, name)?));
    if written.is_err() {
        let _ = unlinkat(directory, &*new, UnlinkatFlags::NoRemoveDir);
    }
    written
}

/// Makes a new file in a directory. A file that is there already is not touched.
fn make_in(directory: &OwnedFd) -> io::Result<(String, File)> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let mode = Mode::from_bits_truncate(0o666);
    let pid = std::process::id();
    let mut tries = 0;
    loop {
        let name = format!(".fdaccept-{pid}-{tries}");
        match openat(directory, &*name, flags, mode) {
            // A process that was killed may have left it.
            Err(Errno::EEXIST) if tries < MAX_TRIES => tries += 1,
            made => return Ok((name, made?.into())),
        }
    }
}

/// Writes to the FIFO or device that was `found`. The open of a FIFO waits for a reader.
fn write_to(directory: &OwnedFd, name: &OsStr, found: &FileStat, text: &[u8]) -> io::Result<()> {
    let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let opened = interrupt::after(PATIENCE, || openat(directory, name, flags, Mode::empty()));
    let file = match opened {
        Err(Errno::EINTR) => return Err(is_unread()),
        opened => File::from(opened?),
    };
    let opened = fstat(&file)?;
    if (opened.st_dev, opened.st_ino) != (found.st_dev, found.st_ino) {
        return Err(io::Error::other("it was just replaced"));
    }
    write_in_time(&file, text)
}

/// Writes all of `text`, without waiting for ever. The file may be shared, so its mode stays.
fn write_in_time(mut file: &File, text: &[u8]) -> io::Result<()> {
    let until = Instant::now() + PATIENCE;
    let mut rest = text;
    while !rest.is_empty() {
        if wait_for(file.as_fd(), PollFlags::OUT, Some(until))?.is_empty() {
            if Instant::now() >= until {
                return Err(is_unread());
            }
            continue;
        }
        match file.write(&rest[..rest.len().min(ROOM)]) {
            Ok(count) => rest = &rest[count..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Another writer was faster, and the file is non-blocking.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_left_is_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ports");
        let left = dir
            .path()
            .join(format!(".fdaccept-{}-0", std::process::id()));
        std::fs::write(&left, "left").unwrap();
        write(&path, [1, 2, 1].into_iter()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"1\n2\n");
        assert_eq!(std::fs::read(&left).unwrap(), b"left");
    }
}
