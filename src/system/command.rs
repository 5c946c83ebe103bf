//! A command line: looked up before anything depends on the command, then executed.

use std::env;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::unistd::{AccessFlags, Pid, faccessat};

use crate::error::{Error, Result, words};

/// The search path if `PATH` is not set, as in execvp(3) of glibc.
const DEFAULT_PATH: &str = "/bin:/usr/bin";
/// Runs a script without a `#!` line (POSIX execvp).
const SHELL: &CStr = c"/bin/sh";

/// What fails while processes or memory are short.
pub(crate) const START: &str = "start a process";

#[derive(Clone, Debug)]
pub(crate) struct Command {
    path: CString,
    arguments: Vec<CString>,
}

impl Command {
    /// Looks up the first of `words` as execvp(3) does: a name without a slash along `PATH`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there are no words; [`Error::CommandNotFound`];
    /// [`Error::CommandNotExecutable`] for the command, or for a script's interpreter (`#!`).
    pub fn find(words: &[OsString]) -> Result<Self> {
        let Some(name) = words.first() else {
            return Err(Error::Invalid("no command given".into()));
        };
        let path = look_up(name, env::var_os("PATH"))?;
        let words = words.iter().map(|word| c_string(word.as_bytes()));
        Ok(Self {
            path: c_string(path.as_os_str().as_bytes())?,
            arguments: words.collect::<Result<_>>()?,
        })
    }

    pub fn path(&self) -> &CStr {
        &self.path
    }

    /// The command as the user wrote it, without its arguments, for messages.
    pub fn name(&self) -> String {
        let name = self.arguments.first().unwrap_or(&self.path);
        name.to_string_lossy().into_owned()
    }

    /// Argument 0 is the command as the user wrote it.
    pub fn arguments(&self) -> &[CString] {
        &self.arguments
    }

    /// Executes this command by `action`. A file that the kernel does not know how to execute
    /// (`ENOEXEC`) is tried once more as a shell script, as in execvp(3).
    ///
    /// # Errors
    /// The errno of `action`.
    pub fn attempt<T>(
        &self,
        mut action: impl FnMut(&Self) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match action(self) {
            Err(Errno::ENOEXEC) => action(&self.as_shell_script()),
            other => other,
        }
    }

    /// Starts this command as a process, by `action`.
    ///
    /// # Errors
    /// [`Error::System`] if no process is available (`EAGAIN`, `ENOMEM`);
    /// [`Error::CommandNotFound`] or [`Error::CommandNotExecutable`] if the command has gone
    /// meanwhile.
    pub fn start(&self, action: impl FnMut(&Self) -> Result<Pid, Errno>) -> Result<Pid> {
        self.attempt(action)
            .map_err(|errno| self.error_of_start(errno))
    }

    pub fn error_of_start(&self, errno: Errno) -> Error {
        match errno {
            Errno::EAGAIN | Errno::ENOMEM => Error::system(START, errno),
            errno => self.error(errno),
        }
    }

    fn as_shell_script(&self) -> Self {
        let words = [SHELL.to_owned(), self.path.clone()];
        let rest = self.arguments.iter().skip(1).cloned();
        Self {
            path: SHELL.to_owned(),
            arguments: words.into_iter().chain(rest).collect(),
        }
    }

    pub fn error(&self, errno: Errno) -> Error {
        let name = OsStr::from_bytes(self.arguments.first().unwrap_or(&self.path).as_bytes());
        failed(name, errno)
    }
}

/// A missing file and an unusable file have different exit statuses.
fn failed(name: &OsStr, errno: Errno) -> Error {
    let command = if name.is_empty() {
        "''".into()
    } else {
        name.to_string_lossy().into_owned()
    };
    let cause = words(errno);
    match errno {
        Errno::ENOENT | Errno::ENOTDIR => Error::CommandNotFound { command, cause },
        _ => Error::CommandNotExecutable { command, cause },
    }
}

fn look_up(name: &OsStr, path: Option<OsString>) -> Result<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        let file = Path::new(name);
        check(file).map_err(|errno| failed(name, errno))?;
        check_interpreter(name, file)?;
        return Ok(file.into());
    }
    let mut errno = Errno::ENOENT;
    if !name.is_empty() {
        let path = path.unwrap_or_else(|| DEFAULT_PATH.into());
        for folder in env::split_paths(&path) {
            // An empty entry is the working directory (POSIX).
            let file = Path::new(".").join(folder).join(name);
            match check(&file) {
                Ok(()) => {
                    check_interpreter(name, &file)?;
                    return Ok(file);
                }
                Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                // A later folder may have an executable file.
                Err(other) => errno = other,
            }
        }
    }
    Err(failed(name, errno))
}

/// Whether this process may execute `file`, as far as the kernel tells beforehand.
fn check(file: &Path) -> Result<(), Errno> {
    let found = file
        .metadata()
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or_default()))?;
    if !found.is_file() {
        return Err(Errno::EACCES);
    }
    let here = nix::fcntl::AT_FDCWD;
    faccessat(here, file, AccessFlags::X_OK, AtFlags::AT_EACCESS)
}

/// A script without its interpreter cannot be executed.
fn check_interpreter(name: &OsStr, file: &Path) -> Result<()> {
    let Some(interpreter) = interpreter(file) else {
        return Ok(());
    };
    check(&interpreter).map_err(|errno| Error::CommandNotExecutable {
        command: name.to_string_lossy().into_owned(),
        cause: format!(
            "its interpreter {}: {}",
            interpreter.display(),
            words(errno)
        ),
    })
}

fn interpreter(script: &Path) -> Option<PathBuf> {
    // As much of the line as the kernel reads (BINPRM_BUF_SIZE).
    let mut start = Vec::with_capacity(256);
    File::open(script)
        .ok()?
        .take(256)
        .read_to_end(&mut start)
        .ok()?;
    let line = start.strip_prefix(b"#!")?.split(|b| *b == b'\n').next()?;
    let words = line.split(|byte| matches!(byte, b' ' | b'\t'));
    let program = words.into_iter().find(|word| !word.is_empty())?;
    Some(PathBuf::from(OsString::from_vec(program.to_vec())))
}

pub(crate) fn environment_without(drop: impl Fn(&[u8]) -> bool) -> Vec<CString> {
    env::vars_os()
        .filter(|(name, _)| !drop(name.as_bytes()))
        .filter_map(|(name, value)| entry(name.as_bytes(), value.as_bytes()))
        .collect()
}

/// One entry of an environment; `None` if it has a NUL byte.
pub(crate) fn entry(name: &[u8], value: &[u8]) -> Option<CString> {
    CString::new([name, b"=", value].concat()).ok()
}

/// Whether a service manager means this variable for our process, and not for our children
/// (sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3), systemd.exec(5)).
pub(crate) fn is_service_managers(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 8] = [
        b"LISTEN_PID",
        b"LISTEN_PIDFDID",
        b"LISTEN_FDS",
        b"LISTEN_FDNAMES",
        b"NOTIFY_SOCKET",
        b"MAINPID",
        b"MAINPIDFDID",
        b"FDSTORE",
    ];
    NAMES.contains(&name) || name.starts_with(b"WATCHDOG_")
}

fn c_string(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| Error::Invalid("a NUL byte in a command".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::exit::{NOT_EXECUTABLE, NOT_FOUND};
    use std::os::unix::fs::PermissionsExt;

    fn write(folder: &Path, name: &str, mode: u32, text: &str) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn status(name: impl AsRef<OsStr>, path: &Path) -> u8 {
        match look_up(name.as_ref(), Some(path.into())) {
            Ok(_) => 0,
            Err(Error::CommandNotFound { .. }) => NOT_FOUND,
            Err(Error::CommandNotExecutable { .. }) => NOT_EXECUTABLE,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_command_is_found_or_it_is_said_why_not() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        write(folder, "good", 0o755, "#!/bin/sh\n");
        write(folder, "plain", 0o644, "#!/bin/sh\n");
        write(folder, "lost", 0o755, "#! /no/such/interpreter -x\n");
        assert_eq!(status("good", folder), 0);
        assert_eq!(status("none", folder), 127);
        assert_eq!(status("", folder), 127);
        assert_eq!(status("plain", folder), 126);
        assert_eq!(status("lost", folder), 126);
        assert_eq!(status(folder, folder), 126);
        assert_eq!(status(folder.join("good/x"), folder), 127);
    }

    #[test]
    fn one_that_cannot_be_executed_does_not_hide_one_that_can() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("1"), folder.path().join("2"));
        std::fs::create_dir(&first).unwrap();
        std::fs::create_dir(&second).unwrap();
        write(&first, "tool", 0o644, "");
        let good = write(&second, "tool", 0o755, "");
        let path = env::join_paths([&first, &second]).unwrap();
        assert_eq!(look_up("tool".as_ref(), Some(path)).unwrap(), good);
    }
}
