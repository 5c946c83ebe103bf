//! Something that is left alone for a while, such as a listener while descriptors are short.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// How long nothing is accepted or opened while descriptors or memory are short.
pub(crate) const SHORTAGE: Duration = Duration::from_millis(250);

/// A pause that may be on. It ends by itself. Its end is told once, by [`Pause::is_on`] or by
/// [`Pause::deadline`]: a loop that looks at either, in whatever order, neither sleeps past the end
/// nor is woken by it for ever.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pause {
    until: Cell<Option<Instant>>,
}

impl Pause {
    /// From now on, for `length`.
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

    /// When it ends, which may be just over; `None` if it is not on.
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
