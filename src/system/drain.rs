//! What a connection needs before it is closed: the close of a TCP socket whose input is unread, or
//! still comes, resets the connection, and the client loses what it has not read yet.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, SockType, getsockopt, recv, shutdown, sockopt};

use crate::system::poll::{PollFlags, wait_for};
use crate::system::quick_close::quickly;

/// Enough for the largest receive buffer that Linux has by default, with a buffer of 64 KiB.
const ROUNDS: usize = 128;

/// How often to look where poll(2) does not wait.
const PAUSE: Duration = Duration::from_millis(10);

/// What was found in a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drained {
    /// The client has ended its side, or the connection is broken. There is nothing to drain in what
    /// is no connection.
    End,
    Bytes,
    /// Nothing now.
    Nothing,
}

/// Whether a close could reset the connection: input is unread, or the client has not ended its side.
/// Costs one system call.
pub(crate) fn has_input(connection: BorrowedFd<'_>) -> bool {
    receive(connection, &mut [0], MsgFlags::MSG_PEEK) != Drained::End
}

/// Whether the connection has an end that can be waited for: it is a socket of such a kind, and nobody
/// has asked for a reset (`SO_LINGER` with 0 seconds).
pub(crate) fn ends_in_order(connection: BorrowedFd<'_>) -> bool {
    let kind = getsockopt(&connection, sockopt::SockType);
    let linger = getsockopt(&connection, sockopt::Linger);
    matches!(kind, Ok(SockType::Stream | SockType::SeqPacket))
        && linger.is_ok_and(|linger| linger.l_onoff == 0 || linger.l_linger != 0)
}

/// Ends the sending side for everybody who has the connection. Returns whether there is one.
pub(crate) fn end_sending(connection: BorrowedFd<'_>) -> bool {
    shutdown(connection.as_raw_fd(), Shutdown::Write).is_ok()
}

/// Drains once, up to the length of `buffer`, whose content does not matter. Blocks only where it
/// closes what a stranger has sent ([`quickly`]).
pub(crate) fn drain(connection: BorrowedFd<'_>, buffer: &mut [u8]) -> Drained {
    // TCP drops the bytes without a copy.
    receive(connection, buffer, MsgFlags::MSG_TRUNC)
}

/// Drains what is there, as [`drain`] does.
pub(crate) fn drain_all(connection: BorrowedFd<'_>, buffer: &mut [u8]) {
    let mut rounds = 0..ROUNDS;
    while rounds.next().is_some() && drain(connection, buffer) == Drained::Bytes {}
}

/// Drains until the client has ended its side, or until the time. Returns whether the client has.
pub(crate) fn drain_until(connection: BorrowedFd<'_>, until: Option<Instant>) -> bool {
    let mut buffer = [0; 16 * 1024];
    loop {
        match quickly(|| drain(connection, &mut buffer)) {
            Drained::End => return true,
            _ if until.is_some_and(|at| at <= Instant::now()) => return false,
            Drained::Bytes => {}
            Drained::Nothing => {
                let events = wait_for(connection, PollFlags::IN, until);
                // Messages about what was sent (MSG_ERRQUEUE) are reported for ever.
                if events == Ok(PollFlags::ERR) {
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }
}

fn receive(connection: BorrowedFd<'_>, buffer: &mut [u8], flags: MsgFlags) -> Drained {
    // There is no room for descriptors, so the kernel drops those in a message.
    let flags = flags | MsgFlags::MSG_DONTWAIT;
    match recv(connection.as_raw_fd(), buffer, flags) {
        Ok(0) => Drained::End,
        Ok(_) | Err(Errno::EINTR) => Drained::Bytes,
        Err(Errno::EAGAIN) => Drained::Nothing,
        Err(_) => Drained::End,
    }
}
