//! A pause, such as of a listener while descriptors are short.

use std::cell::Cell;
use std::time::{Duration, Instant};

use nix::errno::Errno;

/// How long accept(2) and open(2) pause while descriptors or memory are short.
pub(crate) const SHORTAGE: Duration = Duration::from_millis(250);

/// Whether descriptors or memory are short, by the errno of a call that needs a new descriptor.
pub(crate) fn is_short(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM
    )
}

/// A pause that ends by itself. Its end is told once, by [`Pause::is_on`] or by [`Pause::deadline`]: a
/// loop may call both in any order, never sleeps past the end, and is not woken by it for ever.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pause {
    until: Cell<Option<Instant>>,
}

impl Pause {
    pub fn begin(&self, length: Duration) {
        self.until.set(Some(Instant::now() + length));
    }

    pub fn end(&self) {
        self.until.set(None);
    }

    pub fn is_on(&self) -> bool {
        if self.until.get().is_some_and(|at| at <= Instant::now()) {
            self.end();
        }
        self.until.get().is_some()
    }

    /// When the pause ends; the moment may be just over.
    pub fn deadline(&self) -> Option<Instant> {
        let until = self.until.get();
        // Whoever asks notices the end.
        let _ = self.is_on();
        until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_ends() {
        let pause = Pause::default();
        assert!(!pause.is_on());
        pause.begin(Duration::from_secs(60));
        assert!(pause.is_on() && pause.deadline().is_some());
        pause.end();
        assert!(!pause.is_on());
        pause.begin(Duration::ZERO);
        assert!(pause.deadline().is_some());
        assert_eq!((pause.is_on(), pause.deadline()), (false, None));
        pause.begin(Duration::ZERO);
        assert_eq!((pause.is_on(), pause.deadline()), (false, None));
    }
}
