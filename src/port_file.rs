//! A file that tells which ports were bound, for who asked for any free one.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::errno::Errno;

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
    let is_special = std::fs::metadata(path).is_ok_and(|file| !file.is_file());
    if is_special {
        return OpenOptions::new().write(true).open(path)?.write_all(text);
    }
    // Next to it, since only within one file system a rename replaces a file.
    let directory = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Err(Errno::ENOENT.into()),
    };
    let everybody = std::fs::Permissions::from_mode(0o666);
    let file = tempfile::Builder::new()
        .permissions(everybody)
        .tempfile_in(directory);
    let mut file: tempfile::NamedTempFile<File> = file?;
    file.write_all(text)?;
    file.persist(path).map(drop).map_err(|error| error.error)
}
