//! The name of a Unix socket, as users write it.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::socket::UnixAddr;
use nix::sys::stat::{SFlag, stat};

use crate::error::{Error, Result};
use crate::system::descriptor::type_of;
use crate::system::text::printable;

/// The longest path or abstract name in bytes: `sun_path` (unix(7)) has 108, and 1 is a NUL.
pub const MAX_LEN: usize = 107;

/// The name of a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Name {
    /// A path in the file system.
    Path(PathBuf),
    /// A name in the abstract namespace, unix(7), without its leading NUL byte.
    Abstract(Vec<u8>),
}

impl Name {
    /// Parses `@NAME` as a name in the abstract namespace, and any other text as a path.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the name is empty, has a NUL byte, is longer than [`MAX_LEN`] bytes,
    /// or is the path of a directory (ends in `/`, `.` or `..`).
    pub fn parse(text: &OsStr) -> Result<Name> {
        let bytes = text.as_bytes();
        let name = match bytes.strip_prefix(b"@") {
            Some(name) => Name::Abstract(name.to_vec()),
            None => Name::Path(PathBuf::from(text)),
        };
        name.check()?;
        Ok(name)
    }

    /// Whether the name is in the abstract namespace, and so has no mode, lock or directory.
    pub fn is_abstract(&self) -> bool {
        matches!(self, Name::Abstract(_))
    }

    /// The address for bind(2) or connect(2).
    ///
    /// # Errors
    /// [`Error::Invalid`] as from [`Name::parse`], for a name that was made otherwise.
    pub(crate) fn address(&self) -> Result<UnixAddr> {
        self.check()?;
        match self {
            Name::Path(path) => UnixAddr::new(path),
            Name::Abstract(name) => UnixAddr::new_abstract(name),
        }
        .map_err(|errno| Error::system(format!("use {self} as the name of a socket"), errno))
    }

    /// The error of a failed connect(2). `owner` is the program that makes the expected socket.
    pub(crate) fn cannot_connect(&self, errno: Errno, owner: &str) -> Error {
        let action = format!("connect to {self}");
        let cause = match errno {
            Errno::EPROTOTYPE => format!("it is a socket of another type than that of {owner}"),
            Errno::ECONNREFUSED | Errno::EACCES if self.is_other_file() => {
                "it is not a socket".into()
            }
            errno => return Error::system(action, errno),
        };
        Error::Other { action, cause }
    }

    /// Whether something is at the path, but no socket.
    fn is_other_file(&self) -> bool {
        let Name::Path(path) = self else {
            return false;
        };
        stat(path).is_ok_and(|found| type_of(&found) != SFlag::S_IFSOCK)
    }

    fn check(&self) -> Result<()> {
        let (bytes, what) = match self {
            Name::Path(path) => (path.as_os_str().as_bytes(), "path"),
            Name::Abstract(name) => (name.as_slice(), "name"),
        };
        if bytes.is_empty() {
            return Err(Error::Invalid(match self {
                Name::Path(_) => "the path of the socket is empty".into(),
                Name::Abstract(_) => "the name of the socket is empty: write @NAME".into(),
            }));
        }
        if bytes.contains(&0) {
            return Err(Error::Invalid(format!("{self} holds a NUL byte")));
        }
        if bytes.len() > MAX_LEN {
            return Err(Error::Invalid(format!(
                "the {what} {self} has {} bytes, the {what} of a socket at most {MAX_LEN}",
                bytes.len()
            )));
        }
        if !self.is_abstract() {
            let last = bytes.rsplit(|&byte| byte == b'/').next();
            if matches!(last, Some(b"" | b"." | b"..")) {
                return Err(Error::Invalid(format!(
                    "{self} is a directory: write the path of a socket"
                )));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Name {
    /// The name as the user wrote it; bytes that are not UTF-8 are replaced, control characters
    /// escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Path(path) => f.write_str(&printable(path.as_os_str().as_bytes())),
            Name::Abstract(name) => write!(f, "@{}", printable(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Name> {
        Name::parse(OsStr::new(text))
    }

    #[test]
    fn names_are_parsed() {
        assert_eq!(parse("@x").unwrap(), Name::Abstract(b"x".to_vec()));
        assert_eq!(parse("/run/x").unwrap(), Name::Path("/run/x".into()));
        assert_eq!(parse("x").unwrap(), Name::Path("x".into()));
        let odd = Name::parse(OsStr::from_bytes(b"/\xff\n")).unwrap();
        assert_eq!(odd.to_string(), "/\u{fffd}\\n");
        for bad in ["", "@", "a\0b", "@a\0", "/", "/run/", "/run/.", "..", "."] {
            assert!(matches!(parse(bad), Err(Error::Invalid(_))), "{bad:?}");
        }
        for prefix in ["/", "@"] {
            let longest = MAX_LEN - usize::from(prefix == "/");
            let name = parse(&format!("{prefix}{}", "x".repeat(longest))).unwrap();
            name.address().unwrap();
            let error = parse(&format!("{prefix}{}", "x".repeat(longest + 1))).unwrap_err();
            assert!(error.to_string().contains("at most 107"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_name_panics(bytes in proptest::collection::vec(any::<u8>(), 0..130)) {
            match Name::parse(OsStr::from_bytes(&bytes)) {
                Ok(name) => {
                    prop_assert!(name.address().is_ok());
                    prop_assert!(!name.to_string().chars().any(char::is_control));
                }
                Err(error) => prop_assert!(!error.to_string().chars().any(char::is_control)),
            }
        }
    }
}
