//! Standard error as the output of a log that must not hold the program up.
//!
//! poll(2) promises room where a write blocks all the same: on a terminal that has less room than
//! the line needs, and on anything that other processes fill meanwhile. `O_NONBLOCK` would hold for
//! everybody who shares standard error. So a timer interrupts the write.
//!
//! Lines may wait [`PATIENCE`] in all. From then on a line that finds no room at once is lost, and
//! the next line that finds room says how many were. A write that was interrupted within a line
//! leaves the rest of the line out.

use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};
use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use rustix::stdio::stderr;

use crate::error::{Error, Result};
use crate::system::journal::Priority;
use crate::system::poll::{PollFlags, ready, wait_for};
use crate::system::{interrupt, shared, signals};

/// How long lines may wait, in all. Of several processes that wait at the same time, the time counts
/// once.
const PATIENCE: Duration = Duration::from_secs(1);
/// Patience is whole again this long after the last line that waited or was lost.
const RECOVERY: Duration = Duration::from_secs(60);
/// How often a line that waits looks whether it still may.
const LOOK: Duration = Duration::from_millis(20);
/// How long the write of a line may take without counting as a wait, and the limit for a line that
/// may not wait.
const AT_ONCE: Duration = Duration::from_millis(1);

/// The signals that tell a program to stop, which then waits for no log.
const STOPS: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];

/// How much of the patience is used up, in microseconds.
const USED: usize = 0;
/// When a line waited or was lost, in microseconds of the monotonic clock.
const TROUBLE: usize = 1;
/// How many lines were lost.
const LOST: usize = 2;
/// Whether the output ends within a line.
const TORN: usize = 3;
const WORDS: usize = 4;

/// The words of a process that shares them with nobody.
static OWN: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];
static SHARED: OnceLock<&'static [AtomicU64]> = OnceLock::new();

/// From now on this process shares its patience, and the count of lost lines, with the children that
/// it forks.
///
/// # Errors
/// [`Error::System`] (`ENOMEM`).
pub(crate) fn share() -> Result<()> {
    const COUNT: NonZeroUsize = NonZeroUsize::new(WORDS).unwrap();
    let words =
        shared::words(COUNT).map_err(|errno| Error::system("share memory with slots", errno))?;
    for (word, own) in words.iter().zip(&OWN) {
        word.store(own.load(Ordering::Relaxed), Ordering::Relaxed);
    }
    let _ = SHARED.set(words);
    Ok(())
}

/// Looks at standard error, for a process that soon may not.
pub(crate) fn prepare() {
    let _ = may_block();
}

/// Writes a line that begins with the name of the program, behind its priority where the log is the
/// journal.
pub(crate) fn write_line(program: &str, priority: Priority, text: &str) {
    let prefix = priority.prefix();
    write(program, &format!("{prefix}{program}: {text}\n"), 1);
}

/// Says how many lines were lost, if nobody knows yet.
pub(crate) fn say_lost(program: &str) {
    if word(LOST).load(Ordering::Relaxed) != 0 {
        write(program, "", 0);
    }
}

/// Writes `lines`, which are `count` lines, after what is to be said of earlier ones. All of it is
/// one write: several processes share the output, and their lines must not mix.
fn write(program: &str, lines: &str, count: u64) {
    let (lost, torn) = (take(LOST), take(TORN));
    let end = if torn == 0 { "" } else { "\n" };
    let prefix = Priority::Warning.prefix();
    let gap = match lost {
        0 => String::new(),
        1 => format!("{prefix}{program}: 1 message was lost, which the log did not take\n"),
        _ => format!("{prefix}{program}: {lost} messages were lost, which the log did not take\n"),
    };
    let text = format!("{end}{gap}{lines}");
    let written = write_all(text.as_bytes());
    if written < text.len() {
        word(LOST).fetch_add(lost + count, Ordering::Relaxed);
        let torn = match written.checked_sub(1) {
            None => torn,
            Some(last) => u64::from(text.as_bytes()[last] != b'\n'),
        };
        word(TORN).fetch_or(torn, Ordering::Relaxed);
        word(TROUBLE).fetch_max(micros(now()), Ordering::Relaxed);
    }
}

/// Returns how much was written. An error is not told: a failing log cannot be reported.
fn write_all(text: &[u8]) -> usize {
    // Nothing interrupts the write to a file.
    if !may_block() {
        return write_while(text, || true);
    }
    let mut wait = Wait::begin();
    if !wait.is_patient && ready(stderr().as_fd(), PollFlags::OUT).is_empty() {
        return 0;
    }
    let limit = if wait.is_patient { LOOK } else { AT_ONCE };
    let written = interrupt::after(limit, || write_while(text, || wait.may_go_on()));
    wait.count();
    written
}

/// Writes until all is written, or an error comes, or an interruption while `may_go_on` is false.
fn write_while(text: &[u8], mut may_go_on: impl FnMut() -> bool) -> usize {
    let mut written = 0;
    loop {
        match rustix::io::write(stderr(), &text[written..]) {
            Ok(count) => written += count,
            Err(Errno::INTR) => {}
            // Somebody else made standard error non-blocking.
            Err(Errno::AGAIN) => {
                let until = Instant::now() + LOOK;
                let _ = wait_for(stderr().as_fd(), PollFlags::OUT, Some(until));
            }
            Err(_) => return written,
        }
        if written == text.len() || !may_go_on() {
            return written;
        }
    }
}

/// The time of one line.
struct Wait {
    start: Duration,
    /// Until then the time is counted.
    counted: Duration,
    /// Whether the line may use up patience.
    is_patient: bool,
}

impl Wait {
    fn begin() -> Self {
        let start = now();
        if start >= Duration::from_micros(word(TROUBLE).load(Ordering::Relaxed)) + RECOVERY {
            word(USED).store(0, Ordering::Relaxed);
        }
        Self {
            start,
            counted: start,
            is_patient: is_patience_left(),
        }
    }

    fn may_go_on(&mut self) -> bool {
        self.count();
        if !self.is_patient {
            return self.counted < self.start + AT_ONCE;
        }
        if is_told_to_stop() {
            // What is said at the end does not wait either.
            word(USED).store(micros(PATIENCE), Ordering::Relaxed);
        }
        is_patience_left()
    }

    /// Uses up patience for the time since the last count.
    fn count(&mut self) {
        let now = now();
        if now >= self.start + AT_ONCE {
            let before = word(TROUBLE).fetch_max(micros(now), Ordering::Relaxed);
            // Another process that waits has counted until then.
            let from = self.counted.max(Duration::from_micros(before));
            let time = micros(now.saturating_sub(from));
            word(USED).fetch_add(time, Ordering::Relaxed);
        }
        self.counted = now;
    }
}

fn is_patience_left() -> bool {
    word(USED).load(Ordering::Relaxed) < micros(PATIENCE)
}

fn is_told_to_stop() -> bool {
    let is_stop = |number| STOPS.iter().any(|stop| *stop as i32 == number);
    interrupt::raised().is_some_and(is_stop) || signals::is_pending(&STOPS)
}

fn may_block() -> bool {
    static MAY_BLOCK: OnceLock<bool> = OnceLock::new();
    *MAY_BLOCK.get_or_init(|| {
        let is_file =
            |stat: rustix::fs::Stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        !fstat(stderr()).is_ok_and(is_file)
    })
}

fn word(index: usize) -> &'static AtomicU64 {
    let words: &'static [AtomicU64] = SHARED.get().copied().unwrap_or(&OWN);
    &words[index]
}

fn take(index: usize) -> u64 {
    match word(index).load(Ordering::Relaxed) {
        0 => 0,
        _ => word(index).swap(0, Ordering::Relaxed),
    }
}

/// The same clock in all processes.
fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

fn micros(time: Duration) -> u64 {
    time.as_micros() as u64
}
