//! Keepalive: probes of a client that says nothing, so that a dead one does not stay for ever.

use std::os::fd::BorrowedFd;

use nix::sys::socket::{setsockopt, sockopt};

/// The longest time: the kernel's limit on each of the times here (`MAX_TCP_KEEPIDLE`).
pub(super) const MAX_SECONDS: u32 = 32_767;

/// A probe or its answer may get lost, so there are several.
const COUNT: u32 = 3;

/// When to probe, and when to give up, in seconds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Probes {
    /// From the client's last word to the first probe.
    idle: u32,
    interval: u32,
    count: u32,
    /// For unacknowledged data, which the kernel would send again for 15 minutes. It does not probe
    /// meanwhile.
    timeout: u32,
}

impl Probes {
    /// Ends a connection `seconds` after the last word of its client, or after 2 seconds at the
    /// earliest. Half of that time passes before the first probe.
    pub fn within(seconds: u32) -> Self {
        let interval = (seconds / (2 * COUNT)).max(1);
        let count = seconds.saturating_sub(1).clamp(1, COUNT);
        Self {
            // A timeout ends a connection when a probe is due, so the last one must not come before.
            idle: seconds.saturating_sub(interval * count).max(1),
            interval,
            count,
            timeout: seconds,
        }
    }

    pub fn set(&self, listener: BorrowedFd<'_>) -> nix::Result<()> {
        setsockopt(&listener, sockopt::TcpKeepIdle, &self.idle)?;
        setsockopt(&listener, sockopt::TcpKeepInterval, &self.interval)?;
        // With a user timeout the kernel does not count. Without it, as where a handler takes it
        // back, the end comes as soon.
        setsockopt(&listener, sockopt::TcpKeepCount, &self.count)?;
        let milliseconds = self.timeout.saturating_mul(1000);
        setsockopt(&listener, sockopt::TcpUserTimeout, &milliseconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_comes_after_the_time_that_was_asked() {
        for seconds in 1..=MAX_SECONDS {
            let probes = Probes::within(seconds);
            let end = probes.idle + probes.interval * probes.count;
            assert_eq!(end, seconds.max(2), "{probes:?}");
            assert!(probes.idle >= probes.interval && probes.interval >= 1);
            assert!(seconds < 4 || probes.count == COUNT, "{probes:?}");
        }
        let probes = |idle, interval, count, timeout| Probes {
            idle,
            interval,
            count,
            timeout,
        };
        assert_eq!(Probes::within(1), probes(1, 1, 1, 1));
        assert_eq!(Probes::within(60), probes(30, 10, 3, 60));
    }
}
