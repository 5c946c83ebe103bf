//! Terminals.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use nix::unistd::ttyname;
use rustix::event::{PollFd, PollFlags};

use super::*;

/// A terminal whose screen is here: nobody reads it unless the test does.
pub struct Screen {
    /// Reads do not block.
    pub screen: File,
    /// What a program has as its terminal.
    pub terminal: OwnedFd,
}

impl Screen {
    #[allow(clippy::new_without_default)] // nothing but a test makes one
    pub fn new() -> Self {
        let pair = openpty(None, None).unwrap();
        fcntl(&pair.master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        Self {
            screen: pair.master.into(),
            terminal: pair.slave,
        }
    }

    /// Nearly full: there is room, but not for a line of 80 bytes.
    pub fn crowded() -> Self {
        let capacity = Self::new().fill(usize::MAX, Duration::from_millis(500));
        let crowded = Self::new();
        crowded.fill(capacity - 10, DEADLINE);
        assert!(crowded.has_room_within(DEADLINE));
        crowded
    }

    /// A terminal that lets nobody in the background write (termios(3)).
    pub fn for_the_foreground() -> Self {
        let screen = Self::new();
        let mut settings = tcgetattr(&screen.terminal).unwrap();
        settings.local_flags.insert(LocalFlags::TOSTOP);
        tcsetattr(&screen.terminal, SetArg::TCSANOW, &settings).unwrap();
        screen
    }

    /// A script for `sh` that finds the programs, in a session of its own with this terminal. It is
    /// in the foreground. This needs `setsid`.
    pub fn session(&self, text: &str) -> Command {
        let path = ttyname(&self.terminal).unwrap();
        // The first terminal that is opened in a session without one is the session's.
        let text = format!("exec 9<>{}; exec 9>&-; {text}", path.display());
        let mut session = Command::new("setsid");
        session.args(["sh", "-c", &text]).env("PATH", super::path());
        session.stdin(Stdio::null());
        session
    }

    pub fn apart(self) -> (File, OwnedFd) {
        (self.screen, self.terminal)
    }

    /// Writes up to `most` bytes, one by one, as long as there is room within `patience`. Returns their
    /// number.
    fn fill(&self, most: usize, patience: Duration) -> usize {
        let mut filler = unblocked(&self.terminal);
        let mut count = 0;
        while count < most {
            if filler.write(b"x").is_ok() {
                count += 1;
            } else if !self.has_room_within(patience) {
                break;
            }
        }
        count
    }

    /// The kernel makes room for some of what was written, a moment later.
    fn has_room_within(&self, time: Duration) -> bool {
        let mut fds = [PollFd::new(&self.terminal, PollFlags::OUT)];
        poll::wait(&mut fds, Some(Instant::now() + time)).unwrap();
        fds[0].revents().contains(PollFlags::OUT)
    }
}

/// A file description of its own, whose reads and writes do not block.
pub fn unblocked(descriptor: &impl AsRawFd) -> File {
    let path = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    let flags = nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY;
    let mut options = File::options();
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, flags);
    options.read(true).write(true).open(path).unwrap()
}
