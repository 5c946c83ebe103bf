//! A file that tells which ports were bound, for who asked for any free one.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use crate::error::{Error, Result};
use crate::system::text::printable;

/// Writes `ports`, each once and on a line of its own, to `path`. A plain file is replaced as a
/// whole, so that who waits for it never sees half of it; anything else, such as a FIFO, is written
/// to.
///
/// # Errors
/// [`Error::System`] if it cannot be written.
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
    // A link, as those in /dev/fd, stays one.
    let is_special = std::fs::symlink_metadata(path).is_ok_and(|file| !file.is_file());
    if is_special {
        let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
        return file.write_all(text);
    }
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}", std::process::id()));
    // Not one that somebody else has put there.
    let mut file = File::create_new(&new)?;
    let written = file
        .write_all(text)
        .and_then(|()| std::fs::rename(&new, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    written
}
