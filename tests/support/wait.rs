//! Waiting for what nothing announces, and watching that something does not happen.

use std::time::{Duration, Instant};

/// Nothing that a test waits for takes longer, also on a machine with much else to do.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until `probe` has an answer. To be used where nothing announces the event.
#[track_caller]
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = probe() {
            return answer;
        }
        assert!(Instant::now() < deadline, "still waiting for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until `is_true`.
#[track_caller]
pub fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    eventually(what, || is_true().then_some(()));
}

/// For how long something is watched that is not to happen.
pub const WATCH: Duration = Duration::from_millis(200);

/// Watches for a while that `is_true` stays so.
#[track_caller]
pub fn stays(what: &str, mut is_true: impl FnMut() -> bool) {
    let end = Instant::now() + WATCH;
    while Instant::now() < end {
        assert!(is_true(), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
