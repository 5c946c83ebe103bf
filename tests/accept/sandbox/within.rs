//! System calls that a running fdaccept is made to do by ptrace(2). Their numbers are for x86-64.

use std::os::unix::net::UnixDatagram;

use super::*;
use nix::errno::Errno;
use nix::libc::{self, c_long, user_regs_struct};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

/// A process that is stopped in ppoll(2), and makes calls for us. Dropping this lets it go on.
struct Puppet {
    pid: Pid,
    registers: user_regs_struct,
}

/// Name, number and arguments.
type Call = (&'static str, c_long, [u64; 6]);

const PERMITTED_NOT: i64 = -(libc::EPERM as i64);

/// As an argument: -1.
const MINUS: u64 = u64::MAX;

impl Puppet {
    /// `None` if the machine forbids ptrace(2).
    fn seize(pid: Pid) -> Option<Self> {
        eventually("it to wait", || {
            match ptrace::attach(pid) {
                Err(Errno::EPERM) => return Some(None),
                other => other.unwrap(),
            }
            wait_for_stop(pid, Signal::SIGSTOP);
            let registers = ptrace::getregs(pid).unwrap();
            let puppet = Self { pid, registers };
            let waits = registers.orig_rax as c_long == libc::SYS_ppoll;
            waits.then_some(Some(puppet))
        })
        .or_else(|| {
            skip("ptrace is not permitted");
            None
        })
    }

    /// Writes `bytes` below the stack of the process. Returns their address.
    fn put(&self, bytes: &[u8]) -> u64 {
        let place = (self.registers.rsp - 2048) & !7;
        for (word, chunk) in (place..).step_by(8).zip(bytes.chunks(8)) {
            let mut padded = [0; 8];
            padded[..chunk.len()].copy_from_slice(chunk);
            let value = c_long::from_ne_bytes(padded);
            ptrace::write(self.pid, word as ptrace::AddressType, value).unwrap();
        }
        place
    }

    /// Has the process make a call. Returns its result: the negated errno if it fails.
    #[track_caller]
    fn call(&self, number: c_long, arguments: [u64; 6]) -> i64 {
        let mut registers = self.registers;
        let [rdi, rsi, rdx, r10, r8, r9] = arguments;
        registers.rip -= 2; // back to the syscall instruction
        registers.rax = number as u64;
        registers.orig_rax = MINUS; // no restart of the interrupted call
        (registers.rdi, registers.rsi, registers.rdx) = (rdi, rsi, rdx);
        (registers.r10, registers.r8, registers.r9) = (r10, r8, r9);
        ptrace::setregs(self.pid, registers).unwrap();
        ptrace::step(self.pid, None).unwrap();
        wait_for_stop(self.pid, Signal::SIGTRAP);
        let after = ptrace::getregs(self.pid).unwrap();
        assert_eq!(after.rip, self.registers.rip);
        after.rax as i64
    }

    #[track_caller]
    fn is_refused(&self, (name, number, arguments): Call) {
        let result = self.call(number, arguments);
        assert_eq!(result, PERMITTED_NOT, "{name}{arguments:x?}");
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        let _ = ptrace::setregs(self.pid, self.registers);
        let _ = ptrace::detach(self.pid, None);
    }
}

/// Waits until `pid` stops for `signal`. Other signals are passed on.
#[track_caller]
fn wait_for_stop(pid: Pid, signal: Signal) {
    until("a stop", || {
        let flags = WaitPidFlag::WNOHANG | WaitPidFlag::__WALL;
        match waitpid(pid, Some(flags)).unwrap() {
            WaitStatus::StillAlive => false,
            WaitStatus::Stopped(_, stopped) if stopped == signal => true,
            WaitStatus::Stopped(_, other) => {
                ptrace::cont(pid, other).unwrap();
                false
            }
            other => panic!("{other:?}"),
        }
    });
}

/// Calls without an effect where they are permitted. `root` is the address of `"/"`.
fn harmless_calls(root: u64) -> Vec<Call> {
    let us = u64::from(std::process::id());
    let (exec, private) = (
        (libc::PROT_READ | libc::PROT_EXEC) as u64,
        (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64,
    );
    let all = exec | libc::PROT_WRITE as u64;
    let here = libc::AT_FDCWD as u64;
    let unshared = libc::CLONE_SIGHAND as u64; // without CLONE_VM it is invalid
    let [inet, unix] = [libc::AF_INET, libc::AF_UNIX].map(|family| family as u64);
    vec![
        ("openat", libc::SYS_openat, [here, root, 0, 0, 0, 0]),
        ("openat2", libc::SYS_openat2, [here, root, 0, 0, 0, 0]),
        ("open", libc::SYS_open, [root, 0, 0, 0, 0, 0]),
        ("creat", libc::SYS_creat, [root, 0o600, 0, 0, 0, 0]),
        ("stat", libc::SYS_stat, [root, MINUS, 0, 0, 0, 0]),
        ("access", libc::SYS_access, [root, 0, 0, 0, 0, 0]),
        ("unlink", libc::SYS_unlink, [root, 0, 0, 0, 0, 0]),
        ("fstatat", libc::SYS_newfstatat, [here, root, 0, 0, 0, 0]),
        ("execve", libc::SYS_execve, [root, 0, 0, 0, 0, 0]),
        ("execveat", libc::SYS_execveat, [here, root, 0, 0, 0, 0]),
        ("socket", libc::SYS_socket, [inet, 1, 0, 0, 0, 0]),
        ("socket", libc::SYS_socket, [unix, 2, 0, 0, 0, 0]),
        ("connect", libc::SYS_connect, [MINUS, 0, 0, 0, 0, 0]),
        ("bind", libc::SYS_bind, [MINUS, 0, 0, 0, 0, 0]),
        ("listen", libc::SYS_listen, [MINUS, 0, 0, 0, 0, 0]),
        ("socketpair", libc::SYS_socketpair, [inet, 1, 0, 0, 0, 0]),
        ("clone", libc::SYS_clone, [unshared, 0, 0, 0, 0, 0]),
        ("clone3", libc::SYS_clone3, [0, 0, 0, 0, 0, 0]),
        ("ptrace", libc::SYS_ptrace, [16, MINUS, 0, 0, 0, 0]),
        ("kill", libc::SYS_kill, [us, 0, 0, 0, 0, 0]),
        ("tkill", libc::SYS_tkill, [us, 0, 0, 0, 0, 0]),
        ("pidfd_open", libc::SYS_pidfd_open, [us, 0, 0, 0, 0, 0]),
        ("peek", libc::SYS_process_vm_readv, [us, 0, 0, 0, 0, 0]),
        ("poke", libc::SYS_process_vm_writev, [us, 0, 0, 0, 0, 0]),
        ("mprotect", libc::SYS_mprotect, [0, 0, exec, 0, 0, 0]),
        ("mmap", libc::SYS_mmap, [0, 4096, exec, private, MINUS, 0]),
        ("mmap", libc::SYS_mmap, [0, 4096, all, private, MINUS, 0]),
        ("fcntl", libc::SYS_fcntl, [MINUS, 4, 0, 0, 0, 0]), // F_SETFL
        ("fcntl", libc::SYS_fcntl, [MINUS, 8, us, 0, 0, 0]), // F_SETOWN
        ("ioctl", libc::SYS_ioctl, [MINUS, libc::FIONBIO, 0, 0, 0, 0]),
        ("ioctl", libc::SYS_ioctl, [MINUS, libc::TIOCSTI, 0, 0, 0, 0]),
        ("option", libc::SYS_setsockopt, [MINUS, 1, 2, 0, 0, 0]), // SO_REUSEADDR
        ("option", libc::SYS_setsockopt, [MINUS, 6, 13, 0, 0, 0]), // a TCP option with the number of SO_LINGER
        ("prctl", libc::SYS_prctl, [MINUS, 0, 0, 0, 0, 0]),
        (
            "setuid",
            libc::SYS_setresuid,
            [MINUS, MINUS, MINUS, 0, 0, 0],
        ),
        ("memfd", libc::SYS_memfd_create, [MINUS, 0, 0, 0, 0, 0]),
        ("io_uring", libc::SYS_io_uring_setup, [0, 0, 0, 0, 0, 0]),
        ("bpf", libc::SYS_bpf, [MINUS, 0, 0, 0, 0, 0]),
    ]
}

#[test]
fn it_opens_no_file_starts_no_program_and_reaches_nobody() {
    let acceptor = chain();
    let puppet = needs!(Puppet::seize(acceptor.pid()));
    let root = puppet.put(b"/\0");
    for call in harmless_calls(root) {
        puppet.is_refused(call);
    }
    puppet.is_refused(("fork", libc::SYS_fork, [0; 6]));
    puppet.is_refused(("vfork", libc::SYS_vfork, [0; 6]));
    drop(puppet);
    for _ in 0..3 {
        acceptor.expect_echo();
    }
}

/// Shows that the filter, and nothing else, refuses these calls.
#[test]
fn without_a_sandbox_it_could() {
    if filters(Pid::this()) != Some(0) {
        return skip("there is a filter already");
    }
    let acceptor = Fdaccept::chain(POOL_OF_CATS).start();
    acceptor.expect_echo();
    let puppet = needs!(Puppet::seize(acceptor.pid()));
    let root = puppet.put(b"/\0");
    let may_be_refused = ["bpf", "io_uring", "peek", "poke"]; // by the machine's own rules
    let calls = harmless_calls(root).into_iter();
    for (name, number, arguments) in calls.filter(|(name, ..)| !may_be_refused.contains(name)) {
        let result = puppet.call(number, arguments);
        assert_ne!(result, PERMITTED_NOT, "{name}{arguments:x?}");
    }
    drop(puppet);
    acceptor.expect_echo();
}

macro_rules! calls {
    ($($name:ident)+) => { [$(libc::$name),+] };
}

#[test]
fn no_call_is_left_but_those_of_the_loop() {
    let left = calls! {
        SYS_accept4 SYS_brk SYS_clock_gettime SYS_clock_nanosleep SYS_close SYS_epoll_ctl
        SYS_epoll_pwait SYS_epoll_wait SYS_exit_group SYS_fcntl SYS_fstat SYS_futex
        SYS_getpeername SYS_getpid SYS_getrandom SYS_getsockname SYS_getsockopt SYS_gettid
        SYS_ioctl SYS_madvise SYS_mmap SYS_mremap SYS_munmap SYS_newfstatat SYS_pipe2
        SYS_poll SYS_ppoll SYS_read SYS_recvfrom SYS_recvmsg SYS_restart_syscall
        SYS_rt_sigpending SYS_rt_sigprocmask SYS_rt_sigreturn SYS_sendmsg SYS_sendto
        SYS_setsockopt SYS_shutdown SYS_sigaltstack SYS_socketpair SYS_tgkill
        SYS_timer_settime SYS_wait4 SYS_write SYS_writev
    };
    let acceptor = start(Fdaccept::bound());
    let puppet = needs!(Puppet::seize(acceptor.pid()));
    // uretprobe and uprobe, which seccomp does not filter.
    let probes = [335, 336];
    let all = (0..600).filter(|number| !probes.contains(number));
    for number in all.filter(|number| !left.contains(number)) {
        puppet.is_refused(("call", number, [MINUS; 6]));
    }
    // The same numbers of the x32 ABI.
    const X32: c_long = 0x4000_0000;
    for number in left.into_iter().chain([libc::SYS_openat, libc::SYS_kill]) {
        puppet.is_refused(("call of x32", X32 | number, [MINUS; 6]));
    }
    drop(puppet);
    let _pool = cats_at(&acceptor, 1);
    acceptor.expect_echo();
}

#[test]
fn it_can_signal_its_command_and_nobody_else() {
    let acceptor = chain();
    let pid = acceptor.pid();
    let command = children(pid)[0];
    let slot = eventually("a slot", || children(command).pop());
    let puppet = needs!(Puppet::seize(pid));
    let kill = |pid: i32| puppet.call(libc::SYS_kill, [pid as u64, 0, 0, 0, 0, 0]);
    assert_eq!(kill(command.as_raw()), 0);
    for other in [
        -1,
        0,
        1,
        pid.as_raw(),
        -pid.as_raw(),
        -command.as_raw(),
        slot.as_raw(),
    ] {
        assert_eq!(kill(other), PERMITTED_NOT, "{other}");
    }
    drop(puppet);
    acceptor.expect_echo();
}

#[test]
fn without_a_command_it_can_signal_nobody() {
    let acceptor = start(Fdaccept::bound());
    let pid = acceptor.pid();
    let puppet = needs!(Puppet::seize(pid));
    for other in [-1, 0, 1, pid.as_raw(), std::process::id() as i32] {
        puppet.is_refused(("kill", libc::SYS_kill, [other as u64, 0, 0, 0, 0, 0]));
    }
}

#[test]
fn it_can_signal_nobody_by_the_number_of_a_thread() {
    let acceptor = chain();
    let puppet = needs!(Puppet::seize(acceptor.pid()));
    let us = u64::from(std::process::id());
    let thread = nix::unistd::gettid().as_raw() as u64;
    puppet.is_refused(("tgkill", libc::SYS_tgkill, [us, thread, 0, 0, 0, 0]));
}

#[test]
fn it_learns_nothing_of_files() {
    let acceptor = chain();
    let puppet = needs!(Puppet::seize(acceptor.pid()));
    let path = puppet.put(b"/etc/passwd\0");
    let (here, empty) = (libc::AT_FDCWD as u64, libc::AT_EMPTY_PATH as u64);
    let room = path + 64;
    // AT_EMPTY_PATH permits any other path as well.
    let call = [here, path, room, empty, 0, 0];
    puppet.is_refused(("newfstatat", libc::SYS_newfstatat, call));
}

#[test]
fn it_makes_no_socket_that_sends_to_others() {
    let names = Names::new();
    let path = names.directory.path().join("log");
    let _log = UnixDatagram::bind(&path).unwrap();
    let acceptor = chain();
    let puppet = needs!(Puppet::seize(acceptor.pid()));
    let pair = puppet.put(&[0; 8]);
    let [unix, datagram] = [libc::AF_UNIX, libc::SOCK_DGRAM].map(|number| number as u64);
    let made = puppet.call(libc::SYS_socketpair, [unix, datagram, 0, pair, 0, 0]);
    if made == 0 {
        // A datagram socket of a pair may send to any name.
        let word = ptrace::read(puppet.pid, pair as ptrace::AddressType).unwrap();
        let socket = (word as u64) & 0xffff_ffff;
        let family = (libc::AF_UNIX as u16).to_ne_bytes();
        let path = path.as_os_str().as_encoded_bytes();
        let address = [&family, path, b"\0"].concat();
        let length = address.len() as u64;
        let address = puppet.put(&address);
        let call = [socket, address, 5, 0, address, length];
        let sent = puppet.call(libc::SYS_sendto, call);
        assert!(sent < 0, "{sent} bytes sent to somebody else");
    }
}

#[test]
fn it_can_have_memory_as_long_as_that_is_not_executed() {
    let acceptor = chain();
    let puppet = needs!(Puppet::seize(acceptor.pid()));
    let plain = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let private = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    let place = puppet.call(libc::SYS_mmap, [0, 4096, plain, private, MINUS, 0]);
    assert!(place > 0, "{place}");
    let exec = libc::PROT_EXEC as u64;
    let call = [place as u64, 4096, exec, 0, 0, 0];
    puppet.is_refused(("mprotect", libc::SYS_mprotect, call));
    let call = [place as u64, 4096, plain, MINUS, 0, 0];
    puppet.is_refused(("pkey_mprotect", libc::SYS_pkey_mprotect, call));
    let gone = puppet.call(libc::SYS_munmap, [place as u64, 4096, 0, 0, 0, 0]);
    assert_eq!(gone, 0);
}
