//! Lingering close: last words to refused clients, without waiting for anybody.
//!
//! A close(2) with unread data makes the kernel reset the connection, and the client may lose the
//! words. So the client's data is read until the client closes, for a short time and for few
//! clients.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, setsockopt, shutdown, sockopt};

use crate::system::poll::{PollFlags, Watched};
use crate::system::quick_close::QuickClose;

/// How long to wait until a client closes.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// How many clients to wait for. One more closes the oldest.
const MOST_LINGERING: usize = 64;
/// How many bytes to read at a time.
const CHUNK: usize = 4096;
/// How many reads from a client before the next client's turn.
const READS: usize = 16;

/// Clients that got their last words and have not closed yet.
#[derive(Debug, Default)]
pub(crate) struct LingeringCloses {
    /// With the time when the client is given up; the oldest first.
    leaving: VecDeque<(QuickClose<OwnedFd>, Instant)>,
}

impl LingeringCloses {
    /// Sends `words` to a client, then the end.
    pub fn say(&mut self, connection: QuickClose<OwnedFd>, words: &[u8]) {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let _ = send(connection.as_raw_fd(), words, flags);
        let _ = shutdown(connection.as_raw_fd(), Shutdown::Write);
        if has_ended(&connection) {
            return;
        }
        if self.leaving.len() == MOST_LINGERING {
            self.leaving.pop_front();
        }
        self.leaving
            .push_back((connection, Instant::now() + END_PATIENCE));
    }

    /// Reads on. Drops clients that have closed or take too long. Returns whether there were any.
    pub fn attend(&mut self) -> bool {
        let now = Instant::now();
        let before = self.leaving.len();
        self.leaving
            .retain(|(connection, until)| now < *until && !has_ended(connection));
        self.leaving.len() < before
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

/// Reads and drops the data that has arrived, and descriptors that came with it. Returns whether the
/// client has closed.
fn has_ended(connection: &QuickClose<OwnedFd>) -> bool {
    let _limit = connection.limit();
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

/// Closes a connection with a reset. A plain close would leave a port in TIME_WAIT here.
pub(super) fn reset(connection: QuickClose<OwnedFd>) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    let _ = setsockopt(&*connection, sockopt::Linger, &linger);
}
