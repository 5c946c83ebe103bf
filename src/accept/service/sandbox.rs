//! The system calls that are left to fdaccept in its loop.
//!
//! In the sandbox fdaccept can open no file, start no program and connect to nobody.

use std::collections::BTreeMap;

use nix::libc::{self, c_long};
use nix::unistd::Pid;
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

use crate::error::{Error, Result};

/// Calls that are allowed with any arguments.
const CALLS: &[c_long] = &[
    // The loop itself.
    libc::SYS_accept4,
    libc::SYS_close,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    libc::SYS_wait4,
    libc::SYS_write,
    libc::SYS_writev,
    // Time and signals.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_timer_settime,
    // Random bytes for tickets.
    libc::SYS_getrandom,
    // Memory, and the end.
    libc::SYS_brk,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_sigaltstack,
    libc::SYS_getpid,
    libc::SYS_gettid,
    // For open descriptors, not for paths.
    libc::SYS_fstat,
];

/// The older forms of some calls.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = &[libc::SYS_epoll_wait, libc::SYS_poll];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[];

/// An argument of a call: its index, a mask, and the value of the masked bits.
type Argument = (u8, u64, u64);
/// All bits of an int.
const ALL: u64 = 0xffff_ffff;
/// All bits of a pointer.
const POINTER: u64 = u64::MAX;
/// The flags of a message that fdaccept sends. Another flag, `MSG_FASTOPEN`, makes a connection.
const SEND_FLAGS: libc::c_int = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;

/// Calls that are allowed if their arguments match one of these lists.
fn limited_calls() -> Vec<(c_long, Vec<Vec<Argument>>)> {
    let int = |index, value: libc::c_int| (index, ALL, value as u32 as u64);
    let send_flags = |index| (index, ALL & !u64::from(SEND_FLAGS as u32), 0);
    vec![
        // To the peer of a connected socket. For sendmsg(2), the kernel reads the destination
        // behind a pointer, where no filter can look: a datagram socket can send to any name.
        (libc::SYS_sendto, vec![vec![send_flags(3), (4, POINTER, 0)]]),
        (libc::SYS_sendmsg, vec![vec![send_flags(2)]]),
        // Memory, unless it is executable.
        (libc::SYS_mmap, vec![vec![(2, libc::PROT_EXEC as u64, 0)]]),
        (
            libc::SYS_mprotect,
            vec![vec![(2, libc::PROT_EXEC as u64, 0)]],
        ),
        // For abort(3) after a panic.
        (
            libc::SYS_tgkill,
            vec![vec![(0, ALL, u64::from(std::process::id()))]],
        ),
        (
            libc::SYS_fcntl,
            vec![
                vec![int(1, libc::F_DUPFD_CLOEXEC)],
                vec![int(1, libc::F_GETFD)],
                vec![int(1, libc::F_GETFL)],
            ],
        ),
        (
            libc::SYS_ioctl,
            vec![
                vec![(1, ALL, libc::TIOCOUTQ)],
                vec![(1, ALL, libc::FIONREAD)],
                // The name of a link-local client's interface.
                vec![(1, ALL, libc::SIOCGIFNAME)],
            ],
        ),
        // To close with a reset, or without waiting.
        (
            libc::SYS_setsockopt,
            vec![vec![int(1, libc::SOL_SOCKET), int(2, libc::SO_LINGER)]],
        ),
        // To weigh messages in a queue. A socket of another type could send to any name.
        (
            libc::SYS_socketpair,
            vec![vec![
                int(0, libc::AF_UNIX),
                int(1, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC),
            ]],
        ),
    ]
}

/// From now on only the calls of the loop succeed: others fail with `EPERM`. Also sets
/// `no_new_privs`. `chain` is a child that may get signals from us.
///
/// # Errors
/// [`Error::Other`] if the kernel or the architecture has no such filter.
pub(crate) fn enter(chain: Option<Pid>) -> Result<()> {
    let failed = |cause: String| Error::Other {
        action: "enter the sandbox".into(),
        cause,
    };
    let filter = filter(chain).map_err(|error| failed(error.to_string()))?;
    apply_filter(&filter).map_err(|error| failed(error.to_string()))
}

fn filter(chain: Option<Pid>) -> Result<seccompiler::BpfProgram, seccompiler::BackendError> {
    let any = CALLS.iter().chain(OLDER).map(|call| (*call, Vec::new()));
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> = any.collect();
    let mut limited = limited_calls();
    if let Some(pid) = chain {
        let pid = (0, ALL, pid.as_raw() as u32 as u64);
        limited.push((libc::SYS_kill, vec![vec![pid]]));
    }
    for (call, alternatives) in limited {
        let alternatives: Result<_, _> = alternatives.into_iter().map(rule).collect();
        rules.insert(call, alternatives?);
    }
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(
        rules.into_iter().collect(),
        refused,
        SeccompAction::Allow,
        arch,
    )?
    .try_into()
}

fn rule(arguments: Vec<Argument>) -> Result<SeccompRule, seccompiler::BackendError> {
    let condition = |(index, mask, value): Argument| {
        let compare = SeccompCmpOp::MaskedEq(mask);
        SeccompCondition::new(index, SeccompCmpArgLen::Qword, compare, value)
    };
    let conditions: Result<_, _> = arguments.into_iter().map(condition).collect();
    SeccompRule::new(conditions?)
}
