//! Starts a program without copying this process: the child runs in our memory until it executes,
//! and we wait until then, as with vfork(2).
//!
//! posix_spawn(3) does the same, but asks the kernel about each of the 64 signals in every child.
//! The [`Launcher`] knows which signals must be reset.
#![allow(unsafe_code)] // clone(2), and the child before it executes

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use nix::errno::Errno;
use nix::libc::{self, c_char, c_int, c_void};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::system::signals;

/// Enough for a few system calls, and for what the C library saves on the way.
const STACK: usize = 32 * 1024;
/// A multiple of the stack alignment of every architecture.
const ALIGNMENT: usize = 64;

/// Starts programs in process groups of their own, with one socket as descriptors 0 and 1, every
/// signal at its default action and none blocked.
#[derive(Debug)]
pub(crate) struct Launcher {
    /// The child's stack, reused for every start.
    stack: Vec<MaybeUninit<u8>>,
    /// The signals whose action must be reset in a child.
    signals: Vec<c_int>,
}

/// The child's task. All of it lives in the parent, which waits.
struct Plan {
    path: *const c_char,
    arguments: *const *const c_char,
    environment: *const *const c_char,
    socket: c_int,
    signals: *const c_int,
    signals_len: usize,
    /// Why the child failed; 0 for success.
    errno: c_int,
}

impl Launcher {
    /// From now on this process must not change the action of a signal, but for one that no child
    /// gets before exec, which ends every handler.
    pub fn new() -> Self {
        let mut signals = signals::to_reset();
        // Our handler for SIGCHLD does no harm in a child, and exec resets it.
        signals.retain(|number| *number != Signal::SIGCHLD as c_int);
        Self {
            stack: Vec::with_capacity(STACK),
            signals,
        }
    }

    /// Starts the program at `path`. Returns when it executes.
    ///
    /// # Errors
    /// The errno of clone(2) or execve(2).
    pub fn start(
        &mut self,
        path: &CStr,
        arguments: &[impl AsRef<CStr>],
        environment: &[&CStr],
        socket: BorrowedFd<'_>,
    ) -> Result<Pid, Errno> {
        let arguments: Vec<_> = null_ended(arguments.iter().map(AsRef::as_ref));
        let environment: Vec<_> = null_ended(environment.iter().copied());
        let mut plan = Plan {
            path: path.as_ptr(),
            arguments: arguments.as_ptr(),
            environment: environment.as_ptr(),
            socket: socket.as_raw_fd(),
            signals: self.signals.as_ptr(),
            signals_len: self.signals.len(),
            errno: 0,
        };
        let top = self.stack.as_mut_ptr().cast::<u8>().wrapping_add(STACK);
        let top = top.wrapping_sub(top as usize % ALIGNMENT);
        // Our signal handlers must not run in the child: they would run in our memory.
        let mut mask = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), Some(&mut mask))?;
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | Signal::SIGCHLD as c_int;
        // SAFETY: the stack is ours and large enough. `plan` and what it points to live until the
        // child has executed or ended, for which CLONE_VFORK waits. `child` only makes system
        // calls.
        let pid = unsafe {
            libc::clone(
                child,
                top.cast::<c_void>(),
                flags,
                ptr::from_mut(&mut plan).cast(),
            )
        };
        let cloned = Errno::result(pid);
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?;
        let pid = Pid::from_raw(cloned?);
        // SAFETY: `plan` lives here; the child, which may have written to it, has left this memory.
        match unsafe { ptr::read_volatile(&plan.errno) } {
            0 => Ok(pid),
            errno => {
                let _ = waitpid(pid, None);
                Err(Errno::from_raw(errno))
            }
        }
    }
}

fn null_ended<'a>(strings: impl Iterator<Item = &'a CStr>) -> Vec<*const c_char> {
    strings.map(CStr::as_ptr).chain([ptr::null()]).collect()
}

/// Makes system calls only, because the child runs in its parent's memory.
extern "C" fn child(plan: *mut c_void) -> c_int {
    let plan = plan.cast::<Plan>();
    // SAFETY: the parent made the plan and waits. All calls here are async-signal-safe.
    unsafe {
        let Plan {
            path,
            arguments,
            environment,
            socket,
            ..
        } = *plan;
        libc::setpgid(0, 0);
        for index in 0..(*plan).signals_len {
            signals::default_raw(*(*plan).signals.add(index));
        }
        if libc::dup2(socket, 0) != -1 && libc::dup2(socket, 1) != -1 {
            let mut none = MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigemptyset(none.as_mut_ptr());
            libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
            libc::execve(path, arguments, environment);
        }
        ptr::write_volatile(&raw mut (*plan).errno, Errno::last_raw());
        libc::_exit(127)
    }
}
