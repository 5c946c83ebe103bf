//! Descriptors that a service manager passed to this process, sd_listen_fds(3).

use std::env;
use std::ffi::OsStr;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;

use crate::error::{Error, Result};
use crate::system::text::{digits, printable};

/// The number of the first descriptor (sd_listen_fds(3)).
const LISTEN_FDS_START: RawFd = 3;

/// The descriptors that were passed. They need not be open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ListenFds {
    count: RawFd,
    /// There may be fewer names than descriptors.
    names: Vec<String>,
}

impl ListenFds {
    /// Reads `LISTEN_FDS`, `LISTEN_PID` and `LISTEN_FDNAMES` from the environment.
    ///
    /// # Errors
    /// See [`ListenFds::parse`].
    pub fn from_environment() -> Result<Self> {
        let [count, pid, names] = ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"].map(env::var_os);
        Self::parse(count.as_deref(), pid.as_deref(), names.as_deref())
    }

    /// Parses the values of these variables. No descriptor was passed to us if `count` or `pid` is
    /// missing, or if `pid` is another process.
    ///
    /// # Errors
    /// [`Error::Invalid`] if `count` or `pid` is not a number.
    pub fn parse(
        count: Option<&OsStr>,
        pid: Option<&OsStr>,
        names: Option<&OsStr>,
    ) -> Result<Self> {
        let (Some(count), Some(pid)) = (count, pid) else {
            return Ok(Self::default());
        };
        if number("LISTEN_PID", pid)?.unsigned_abs() != std::process::id() {
            return Ok(Self::default());
        }
        let count = number("LISTEN_FDS", count)?;
        let names = names
            .map_or(&b""[..], OsStr::as_bytes)
            .split(|byte| *byte == b':');
        let names = names.map(|name| String::from_utf8_lossy(name).into_owned());
        Ok(Self {
            count,
            names: names.take(count as usize).collect(),
        })
    }

    /// The numbers of the descriptors without a name of ours.
    pub fn unnamed<'a>(
        &'a self,
        is_ours: impl Fn(&str) -> bool + 'a,
    ) -> impl Iterator<Item = RawFd> + 'a {
        let name = |index| self.names.get(index as usize);
        let others =
            (0..self.count).filter(move |index| !name(*index).is_some_and(|name| is_ours(name)));
        others.map(|index| LISTEN_FDS_START.saturating_add(index))
    }

    /// The descriptors with a name, and their numbers.
    pub fn named(&self) -> impl Iterator<Item = (&str, RawFd)> {
        let names = self.names.iter().map(String::as_str);
        names.zip(LISTEN_FDS_START..)
    }
}

/// Parses a variable's value: decimal digits, within an int.
fn number(variable: &str, value: &OsStr) -> Result<i32> {
    value.to_str().and_then(digits).ok_or_else(|| {
        Error::Invalid(format!(
            "{variable}={} is not a number: unset it, or see sd_listen_fds(3)",
            printable(value.as_encoded_bytes())
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(count: Option<&str>, pid: Option<&str>, names: &str) -> Result<ListenFds> {
        let names = Some(OsStr::new(names));
        ListenFds::parse(count.map(OsStr::new), pid.map(OsStr::new), names)
    }

    #[test]
    fn the_environment_is_checked() {
        let me = std::process::id().to_string();
        for (count, pid) in [
            (None, None),
            (Some("1"), None),
            (None, Some(me.as_str())),
            (Some("1"), Some("1")),
            (Some("x"), Some("1")),
            (Some("0"), Some(&me)),
        ] {
            let passed = passed(count, pid, "a:b").unwrap();
            assert_eq!(passed.unnamed(|_| false).count(), 0);
        }
        for bad in ["", "x", "-1", "+1", "1 ", "99999999999"] {
            let error = passed(Some(bad), Some(&me), "").unwrap_err();
            assert!(matches!(error, Error::Invalid(_)), "{bad}: {error}");
        }
        for bad in ["", "-1", "x\x1b", "99999999999"] {
            let error = passed(Some("1"), Some(bad), "").unwrap_err();
            assert!(matches!(error, Error::Invalid(_)), "{bad}: {error}");
        }
    }

    #[test]
    fn ours_are_told_from_others_by_their_names() {
        let me = std::process::id().to_string();
        let passed = passed(Some("4"), Some(&me), "http:ours-1:ours-2").unwrap();
        let is_ours = |name: &str| name.starts_with("ours-");
        assert_eq!(passed.unnamed(is_ours).collect::<Vec<_>>(), [3, 6]);
        let named = passed.named().filter(|(name, _)| is_ours(name));
        assert_eq!(named.collect::<Vec<_>>(), [("ours-1", 4), ("ours-2", 5)]);
    }
}
