//! A file that tells the bound ports to a program that asked for any free port.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use crate::error::{Error, Result};
use crate::system::text::printable;

/// Writes `ports` to `path`, each once and on a line of its own. A plain file is replaced as a
/// whole, so that a reader never sees half of it. Anything else, such as a FIFO, is written to.
///
/// # Errors
/// [`Error::System`] if `path` cannot be written.
pub(crate) fn write(path: &Path, ports: impl Iterator<Item = u32>) -> Result<()> {
    let mut once: Vec<u32> = Vec::new();
    for port in ports {
        if !once.contains(&port) {
            once.push(port);
        }
    }
    let lines: String = once.iter().map(|port| format!("{port}\n")).collect();
    let shown = printable(path.as_os_str().as_encoded_bytes());
    write_whole(path, lines.as_bytes()).map_err(|error| Error::io(format!("write {shown}"), error))
}

fn write_whole(path: &Path, text: &[u8]) -> io::Result<()> {
    // A symbolic link, as in /dev/fd, stays a link.
    let is_special = std::fs::symlink_metadata(path).is_ok_and(|file| !file.is_file());
    if is_special {
        let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
        return file.write_all(text);
    }
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}", std::process::id()));
    // Never a file that somebody else has put there.
    let mut file = File::create_new(&new)?;
    let written = file
        .write_all(text)
        .and_then(|()| std::fs::rename(&new, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    written
}
