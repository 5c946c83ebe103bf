//! Lingering close: last words to clients that are turned away, said without waiting for anybody.
//!
//! Closing a socket in which something lies unread makes the kernel reset the connection, and the
//! client may lose what it was told. So the client is listened to until it has ended too, for a
//! short time and in a small number.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, setsockopt, shutdown, sockopt};

use crate::system::poll::{PollFlags, Watched};

/// How long the end of a client is waited for.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// How many clients are waited for; the oldest is closed for a further one.
const MOST_LINGERING: usize = 64;
/// How much is read at a time.
const CHUNK: usize = 4096;
/// Reads from one client before others have their turn.
const READS: usize = 16;

/// Clients that were told something, and have not ended yet.
#[derive(Debug, Default)]
pub(crate) struct LingeringCloses {
    /// The oldest first, each with when it is given up.
    leaving: VecDeque<(OwnedFd, Instant)>,
}

impl LingeringCloses {
    /// Says `words` to a client, and that nothing more will come.
    pub fn say(&mut self, connection: OwnedFd, words: &[u8]) {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let _ = send(connection.as_raw_fd(), words, flags);
        let _ = shutdown(connection.as_raw_fd(), Shutdown::Write);
        if has_ended(connection.as_fd()) {
            return;
        }
        if self.leaving.len() == MOST_LINGERING {
            self.leaving.pop_front();
        }
        self.leaving
            .push_back((connection, Instant::now() + END_PATIENCE));
    }

    /// Reads on, and closes those that have ended or take too long.
    pub fn attend(&mut self) {
        let now = Instant::now();
        self.leaving
            .retain(|(connection, until)| now < *until && !has_ended(connection.as_fd()));
    }
}

impl Watched for LingeringCloses {
    fn descriptors<'fd>(&'fd self, poll: &mut dyn FnMut(BorrowedFd<'fd>, PollFlags)) {
        for (connection, _) in &self.leaving {
            poll(connection.as_fd(), PollFlags::IN);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.leaving.front().map(|(_, until)| *until)
    }
}

/// Reads what is there, to forget it. Whether the client has ended.
fn has_ended(connection: BorrowedFd<'_>) -> bool {
    let mut chunk = [0; CHUNK];
    for _ in 0..READS {
        match recv(connection.as_raw_fd(), &mut chunk, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return true,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return errno != Errno::EAGAIN,
        }
    }
    false
}

/// Closes a connection at once: the client sees a reset, and nothing is left of it here, where a
/// plain close would leave a port in TIME_WAIT.
pub(super) fn reset(connection: OwnedFd) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    let _ = setsockopt(&connection, sockopt::Linger, &linger);
}
