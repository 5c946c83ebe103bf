//! A file that tells which ports were bound, for who asked for any free one.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use crate::listener::Listener;
use crate::name::printable;
use crate::{Error, Result};

/// Writes the ports of `listeners`, each once and on a line of its own, to `path`. A plain file is
/// replaced as a whole, so that who waits for it never sees half of it; anything else, such as a
/// FIFO, is written to.
///
/// # Errors
/// [`Error::Usage`] if none of them has a port; [`Error::System`] if it cannot be written.
pub fn write(path: &Path, listeners: &[Listener]) -> Result<()> {
    let mut ports: Vec<u32> = Vec::new();
    for port in listeners.iter().filter_map(Listener::port) {
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    if ports.is_empty() {
        return Err(Error::Usage(
            "--port-file needs an address with a port".into(),
        ));
    }
    let lines: String = ports.iter().map(|port| format!("{port}\n")).collect();
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
