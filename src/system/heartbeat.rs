//! The watchdog of a service manager (sd_watchdog_enabled(3)), kept quiet by a poll loop. A loop that
//! hangs sends nothing, and the manager notices.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::{SendFlags, send};

const ALIVE: &[u8] = b"WATCHDOG=1";
/// The shortest time between 2 messages.
const SHORTEST: Duration = Duration::from_millis(1);
/// A message that the manager did not take is sent again after this part of the usual pause.
const RETRIES: u32 = 8;

#[derive(Debug)]
pub(crate) struct Heartbeat {
    manager: OwnedFd,
    pause: Duration,
    next: Instant,
}

impl Heartbeat {
    /// `manager` is connected to the manager, which waits for a message `within` this time, again
    /// and again. The first message is due now.
    pub fn new(manager: OwnedFd, within: Duration) -> Self {
        Self {
            manager,
            pause: (within / 2).max(SHORTEST),
            next: Instant::now(),
        }
    }

    /// When the next message is due.
    pub fn deadline(&self) -> Instant {
        self.next
    }

    /// Sends the message, if due. Does not wait for a manager that has no room for it.
    pub fn attend(&mut self) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        let sent = send(
            &self.manager,
            ALIVE,
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        );
        self.next = now
            + match sent {
                Ok(_) => self.pause,
                Err(_) => (self.pause / RETRIES).max(SHORTEST),
            };
    }
}
