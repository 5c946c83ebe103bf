//! Where a program starts: at the `main` of the C library.
//!
//! The Rust runtime's own `main` reads the memory map of the process, and prepares a stack and two signal
//! handlers, in order to say of a fault that the stack overflowed. For a program that is about to
//! become another one that is a good part of its life, and a child of any program would have to undo the
//! handlers. What else the runtime does before and after is done here.

use std::os::fd::IntoRawFd;

use nix::sys::signal::Signal;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::stdio;

use crate::error::to_nix;
use crate::report;
use crate::{Error, Result, signals};

/// Makes the `main` of the program of this name, to be used once, with `no_main` where the C library
/// is glibc, the only one that lets everybody know the arguments. `run` does the work and returns
/// the exit status; its error is reported.
#[macro_export]
macro_rules! program {
    ($name:expr, $run:expr) => {
        #[cfg(target_env = "gnu")]
        #[allow(unsafe_code)]
        // SAFETY: this is the `main` that the C library calls, and with `no_main` the only one.
        #[unsafe(no_mangle)]
        extern "C" fn main() -> std::ffi::c_int {
            $crate::start::run($name, $run)
        }

        #[cfg(not(target_env = "gnu"))]
        fn main() {
            $crate::start::run($name, $run);
        }
    };
}

/// Runs a program from its start to its end.
pub fn run(program: &'static str, run: impl FnOnce() -> Result<u8>) -> ! {
    let done = prepare().and_then(|()| run());
    // It writes what waits to be written.
    std::process::exit(report::finish(program, done).into())
}

/// What every Rust program may count on.
fn prepare() -> Result<()> {
    // The standard streams are open, so that nothing else gets their numbers.
    for stream in [stdio::stdin(), stdio::stdout(), stdio::stderr()] {
        if rustix::io::fcntl_getfd(stream) == Err(Errno::BADF) {
            // Those below are open, so it gets the very number, to be kept.
            let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty());
            let null = null.map_err(|errno| Error::system("open /dev/null", to_nix(errno)))?;
            let _ = null.into_raw_fd();
        }
    }
    // What is written to nobody is an error like others, and not the end.
    signals::ignore(&[Signal::SIGPIPE])
}
