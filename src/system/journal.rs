//! The journal of systemd as standard error, where a line may begin with its priority (sd-daemon(3)).

use std::env;
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;

use rustix::fs::fstat;
use rustix::stdio::stderr;

use crate::system::text::digits;

/// How much a line matters, as in syslog(3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Priority {
    Error,
    Warning,
    Notice,
    Info,
}

impl Priority {
    /// What a line begins with: nothing where standard error is not the journal.
    pub fn prefix(self) -> &'static str {
        match self {
            _ if !is_stderr() => "",
            Priority::Error => "<3>",
            Priority::Warning => "<4>",
            Priority::Notice => "<5>",
            Priority::Info => "<6>",
        }
    }
}

/// Whether standard error is the journal. The first call looks, and children that are forked later
/// need not.
pub(crate) fn is_stderr() -> bool {
    static IS_STDERR: OnceLock<bool> = OnceLock::new();
    *IS_STDERR.get_or_init(|| {
        env::var_os("JOURNAL_STREAM").is_some_and(|stream| is_told_by(stream.as_bytes()))
    })
}

/// Whether `stream`, which is `DEVICE:INODE` (systemd.exec(5)), is standard error. Another program
/// may have passed the variable on and given us another standard error.
fn is_told_by(stream: &[u8]) -> bool {
    let colon = stream.iter().position(|byte| *byte == b':');
    let numbers = colon.map(|colon| (digits(&stream[..colon]), digits(&stream[colon + 1..])));
    let Some((Some(device), Some(inode))) = numbers else {
        return false;
    };
    fstat(stderr()).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (device, inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_device_and_the_inode_of_standard_error_tell() {
        let stat = fstat(stderr()).unwrap();
        let (device, inode): (u64, u64) = (stat.st_dev, stat.st_ino);
        assert!(is_told_by(format!("{device}:{inode}").as_bytes()));
        let others = [
            format!("{device}:{}", inode + 1),
            format!("{}:{inode}", device + 1),
            format!("{device}:{inode}:"),
            format!("{device}:{inode}\n"),
            format!("{device}"),
            format!("{device}:"),
            format!(":{inode}"),
            format!("+{device}:{inode}"),
            "99999999999999999999:1".to_owned(),
            String::new(),
        ];
        for other in others {
            assert!(!is_told_by(other.as_bytes()), "{other:?}");
        }
    }
}
