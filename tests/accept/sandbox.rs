//! `fdaccept --sandbox`: what it cannot do any more once it accepts, tried in the running program
//! itself, and that it still does everything that it is for.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{
    self, Crowd, DEADLINE, Names, Process, children, connect, connect_unix, descriptors,
    eventually, exchange, is_alive, is_answered, peer, program, root, run, script, socket_pair,
    state, try_exchange, until,
};
use fdtools::queue::send;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::socket::sockopt::Linger;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect as connect_to, setsockopt, socket,
};
use nix::unistd::Pid;

const ADDRESS: &str = "127.0.0.1:0";
/// A uid that no test runs as.
const NOBODY: &str = "65534";

/// What /proc says of a process under `field`.
fn status(pid: Pid, field: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    Some(line?.strip_prefix(':')?.trim().to_owned())
}

/// How many filters of system calls a process is under. This one may be under some already.
fn filters(pid: Pid) -> Option<u32> {
    status(pid, "Seccomp_filters")?.parse().ok()
}

fn is_sandboxed(pid: Pid) -> bool {
    let ours = filters(Pid::this()).unwrap();
    filters(pid) == Some(ours + 1)
}

/// Waits until a process has given up what it does not need.
#[track_caller]
fn until_sandboxed(pid: Pid) {
    until("the sandbox", || is_sandboxed(pid));
}

fn fdaccept(arguments: &[&str]) -> Command {
    let mut command = program("fdaccept");
    command.arg("--sandbox").args(arguments);
    // Whatever started this test must not interfere.
    command.env_remove("NOTIFY_SOCKET");
    command
}

/// A sandboxed fdaccept with a TCP listener.
struct Sandboxed {
    process: Process,
    port: u16,
}

impl Sandboxed {
    #[track_caller]
    fn start(command: &mut Command) -> Self {
        let mut process = Process::start(command);
        let port = process.port();
        until_sandboxed(process.pid());
        Self { process, port }
    }

    /// One that runs this command.
    #[track_caller]
    fn chain(options: &[&str], words: &[&str]) -> Self {
        Self::start(fdaccept(options).args([ADDRESS, "--"]).args(words))
    }

    /// One that owns this name.
    #[track_caller]
    fn bound(name: &str, options: &[&str]) -> Self {
        Self::start(fdaccept(options).args(["--bind", name, ADDRESS]))
    }

    #[track_caller]
    fn serves(&self) {
        assert_eq!(exchange(self.port, b"hello"), b"hello");
    }

    #[track_caller]
    fn ends(&mut self, status: i32) {
        self.process.signal(Signal::SIGTERM);
        assert_eq!(self.process.wait().code(), Some(status));
    }
}

/// `fdpool --connect NAME N -- HANDLER`.
fn pool(name: &str, size: usize, handler: &[&str]) -> Process {
    let mut command = program("fdpool");
    command.args(["--connect", name, &size.to_string(), "--"]);
    Process::start(command.args(handler))
}

/// `fdrecv --connect NAME -- HANDLER`.
fn fdrecv(name: &str, handler: &[&str]) -> Process {
    let mut command = program("fdrecv");
    Process::start(command.args(["--connect", name, "--"]).args(handler))
}

const POOL_OF_CATS: [&str; 4] = ["fdpool", "4", "--", "cat"];

// What it cannot do any more.

#[test]
fn it_is_under_a_filter_and_gains_no_privileges() {
    let sandboxed = Sandboxed::chain(&[], &POOL_OF_CATS);
    let pid = sandboxed.process.pid();
    assert_eq!(status(pid, "Seccomp").as_deref(), Some("2"));
    assert_eq!(status(pid, "NoNewPrivs").as_deref(), Some("1"));
    sandboxed.serves();
}

#[test]
fn without_the_option_it_is_under_no_filter() {
    let mut command = program("fdaccept");
    let mut process = Process::start(command.args([ADDRESS, "--"]).args(POOL_OF_CATS));
    assert_eq!(exchange(process.port(), b"hello"), b"hello");
    assert!(!is_sandboxed(process.pid()));
}

#[test]
fn every_form_is_under_the_filter() {
    let names = Names::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let _pipe = Sandboxed::start(fdaccept(&[ADDRESS]).stdout(writer));
    let (ours, theirs) = socket_pair(SockType::SeqPacket);
    let _socket = Sandboxed::start(fdaccept(&[ADDRESS]).stdout(theirs));
    let _path = Sandboxed::bound(&names.path(), &[]);
    let _name = Sandboxed::bound(&names.abstract_name(), &[]);
    drop((reader, ours));
}

#[test]
fn its_command_is_under_no_filter() {
    // Which opens files and starts programs.
    let text = "cat /proc/self/status >&2; exec fdpool 1 -- cat";
    let mut process = Process::start(fdaccept(&[ADDRESS, "--"]).args(["sh", "-c", text]));
    let port = process.port();
    for field in ["NoNewPrivs", "Seccomp", "Seccomp_filters"] {
        let ours = status(Pid::this(), field).unwrap();
        let line = process.line(&format!("{field}:"));
        assert_eq!(line, format!("{field}:\t{ours}"));
    }
    until_sandboxed(process.pid());
    assert_eq!(exchange(port, b"hello"), b"hello");
}

/// Calls made in the middle of a program's own. The calls have other numbers elsewhere.
#[cfg(target_arch = "x86_64")]
mod within {
    use super::*;
    use nix::libc::{self, c_long, user_regs_struct};
    use nix::sys::ptrace;
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

    /// A process that was stopped in its wait, and makes calls for us. Dropping this lets it go on.
    struct Puppet {
        pid: Pid,
        registers: user_regs_struct,
    }

    /// One call: its name, its number and its arguments.
    type Call = (&'static str, c_long, [u64; 6]);

    const PERMITTED_NOT: i64 = -(libc::EPERM as i64);

    /// As an argument: -1.
    const MINUS: u64 = u64::MAX;

    impl Puppet {
        /// `None` if nobody may do that here.
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
                support::skip("ptrace is not permitted");
                None
            })
        }

        /// Puts `bytes` where the process has nothing of its own, and returns the address.
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

        /// Has it make a call. Returns what that returns: the negated errno if it fails.
        #[track_caller]
        fn call(&self, number: c_long, arguments: [u64; 6]) -> i64 {
            let mut registers = self.registers;
            let [rdi, rsi, rdx, r10, r8, r9] = arguments;
            registers.rip -= 2; // the instruction that it waits in
            registers.rax = number as u64;
            registers.orig_rax = MINUS; // nothing is to be made again
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

    /// Waits until `pid` stops for `signal`. Others that come first reach it.
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

    /// Calls that change nothing where they are not refused, given the address of `"/"`.
    fn harmless_calls(root: u64) -> Vec<Call> {
        let us = u64::from(std::process::id());
        let (exec, private) = (
            (libc::PROT_READ | libc::PROT_EXEC) as u64,
            (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64,
        );
        let all = exec | libc::PROT_WRITE as u64;
        let here = libc::AT_FDCWD as u64;
        let unshared = libc::CLONE_SIGHAND as u64; // without CLONE_VM there is no such thing
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
            ("option", libc::SYS_setsockopt, [MINUS, 6, 13, 0, 0, 0]), // of TCP, SO_LINGER's number
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
        let sandboxed = Sandboxed::chain(&[], &POOL_OF_CATS);
        let Some(puppet) = Puppet::seize(sandboxed.process.pid()) else {
            return;
        };
        let root = puppet.put(b"/\0");
        for call in harmless_calls(root) {
            puppet.is_refused(call);
        }
        puppet.is_refused(("fork", libc::SYS_fork, [0; 6]));
        puppet.is_refused(("vfork", libc::SYS_vfork, [0; 6]));
        drop(puppet);
        for _ in 0..3 {
            sandboxed.serves();
        }
    }

    /// The same calls, so that it is the filter that refuses them.
    #[test]
    fn without_a_sandbox_it_could() {
        if filters(Pid::this()) != Some(0) {
            return support::skip("there is a filter already");
        }
        let mut command = program("fdaccept");
        let mut process = Process::start(command.args([ADDRESS, "--"]).args(POOL_OF_CATS));
        let port = process.port();
        assert_eq!(exchange(port, b"hello"), b"hello");
        let Some(puppet) = Puppet::seize(process.pid()) else {
            return;
        };
        let root = puppet.put(b"/\0");
        let may_be_refused = ["bpf", "io_uring", "peek", "poke"]; // by the machine's own rules
        let calls = harmless_calls(root).into_iter();
        for (name, number, arguments) in calls.filter(|(name, ..)| !may_be_refused.contains(name)) {
            let result = puppet.call(number, arguments);
            assert_ne!(result, PERMITTED_NOT, "{name}{arguments:x?}");
        }
        drop(puppet);
        assert_eq!(exchange(port, b"hello"), b"hello");
    }

    #[test]
    fn no_call_is_left_but_those_of_the_loop() {
        let left = [
            libc::SYS_accept4,
            libc::SYS_brk,
            libc::SYS_clock_gettime,
            libc::SYS_clock_nanosleep,
            libc::SYS_close,
            libc::SYS_epoll_ctl,
            libc::SYS_epoll_pwait,
            libc::SYS_epoll_wait,
            libc::SYS_exit_group,
            libc::SYS_fcntl,
            libc::SYS_fstat,
            libc::SYS_futex,
            libc::SYS_getpeername,
            libc::SYS_getpid,
            libc::SYS_getrandom,
            libc::SYS_getsockname,
            libc::SYS_getsockopt,
            libc::SYS_gettid,
            libc::SYS_ioctl,
            libc::SYS_madvise,
            libc::SYS_mmap,
            libc::SYS_mremap,
            libc::SYS_munmap,
            libc::SYS_newfstatat,
            libc::SYS_pipe2,
            libc::SYS_poll,
            libc::SYS_ppoll,
            libc::SYS_read,
            libc::SYS_recvfrom,
            libc::SYS_recvmsg,
            libc::SYS_restart_syscall,
            libc::SYS_rt_sigprocmask,
            libc::SYS_rt_sigreturn,
            libc::SYS_sendmsg,
            libc::SYS_sendto,
            libc::SYS_setsockopt,
            libc::SYS_shutdown,
            libc::SYS_sigaltstack,
            libc::SYS_socketpair,
            libc::SYS_tgkill,
            libc::SYS_timer_settime,
            libc::SYS_wait4,
            libc::SYS_write,
            libc::SYS_writev,
        ];
        let names = Names::new();
        let sandboxed = Sandboxed::bound(&names.path(), &[]);
        let Some(puppet) = Puppet::seize(sandboxed.process.pid()) else {
            return;
        };
        // The kernel's own calls of its probes, which no filter concerns.
        let probes = [335, 336];
        let all = (0..600).filter(|number| !probes.contains(number));
        for number in all.filter(|number| !left.contains(number)) {
            puppet.is_refused(("call", number, [MINUS; 6]));
        }
        // And the same numbers of the ABI with short pointers.
        const X32: c_long = 0x4000_0000;
        for number in left.into_iter().chain([libc::SYS_openat, libc::SYS_kill]) {
            puppet.is_refused(("call of x32", X32 | number, [MINUS; 6]));
        }
        drop(puppet);
        let _pool = pool(&names.path(), 1, &["cat"]);
        sandboxed.serves();
    }

    #[test]
    fn it_can_signal_its_command_and_nobody_else() {
        let sandboxed = Sandboxed::chain(&[], &POOL_OF_CATS);
        let pid = sandboxed.process.pid();
        let command = children(pid)[0];
        let slot = eventually("a slot", || children(command).pop());
        let Some(puppet) = Puppet::seize(pid) else {
            return;
        };
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
        sandboxed.serves();
    }

    #[test]
    fn without_a_command_it_can_signal_nobody() {
        let names = Names::new();
        let sandboxed = Sandboxed::bound(&names.path(), &[]);
        let pid = sandboxed.process.pid();
        let Some(puppet) = Puppet::seize(pid) else {
            return;
        };
        for other in [-1, 0, 1, pid.as_raw(), std::process::id() as i32] {
            puppet.is_refused(("kill", libc::SYS_kill, [other as u64, 0, 0, 0, 0, 0]));
        }
    }

    #[test]
    fn it_can_signal_nobody_by_the_number_of_a_thread() {
        let sandboxed = Sandboxed::chain(&[], &POOL_OF_CATS);
        let Some(puppet) = Puppet::seize(sandboxed.process.pid()) else {
            return;
        };
        let us = u64::from(std::process::id());
        let thread = nix::unistd::gettid().as_raw() as u64;
        puppet.is_refused(("tgkill", libc::SYS_tgkill, [us, thread, 0, 0, 0, 0]));
    }

    #[test]
    fn it_learns_nothing_of_files() {
        let sandboxed = Sandboxed::chain(&[], &POOL_OF_CATS);
        let Some(puppet) = Puppet::seize(sandboxed.process.pid()) else {
            return;
        };
        let path = puppet.put(b"/etc/passwd\0");
        let (here, empty) = (libc::AT_FDCWD as u64, libc::AT_EMPTY_PATH as u64);
        let room = path + 64;
        // The flag allows an empty path, and any other one as well.
        let call = [here, path, room, empty, 0, 0];
        puppet.is_refused(("newfstatat", libc::SYS_newfstatat, call));
    }

    #[test]
    fn it_makes_no_socket_that_sends_to_others() {
        let names = Names::new();
        let path = names.directory.path().join("log");
        let _log = UnixDatagram::bind(&path).unwrap();
        let sandboxed = Sandboxed::chain(&[], &POOL_OF_CATS);
        let Some(puppet) = Puppet::seize(sandboxed.process.pid()) else {
            return;
        };
        let pair = puppet.put(&[0; 8]);
        let [unix, datagram] = [libc::AF_UNIX, libc::SOCK_DGRAM].map(|number| number as u64);
        let made = puppet.call(libc::SYS_socketpair, [unix, datagram, 0, pair, 0, 0]);
        if made == 0 {
            // One of a pair of datagram sockets may send to any name.
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
        let sandboxed = Sandboxed::chain(&[], &POOL_OF_CATS);
        let Some(puppet) = Puppet::seize(sandboxed.process.pid()) else {
            return;
        };
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
}

// What it does all the same.

#[test]
fn a_chain_serves_a_crowd() {
    let mut sandboxed = Sandboxed::chain(&[], &POOL_OF_CATS);
    Crowd::connect(sandboxed.port, 50).expect_served();
    sandboxed.ends(0);
}

#[test]
fn a_chain_exits_as_its_command() {
    let mut sandboxed = Sandboxed::chain(&[], &["sh", "-c", "fdrecv -- cat; exit 7"]);
    sandboxed.serves();
    assert_eq!(sandboxed.process.wait().code(), Some(7));
}

#[test]
fn a_pipe_gives_one_consumer_after_another_its_ticket() {
    let (reader, writer) = std::io::pipe().unwrap();
    let sandboxed = Sandboxed::start(fdaccept(&[ADDRESS]).stdout(writer));
    let consumer = |words: &[&str]| {
        let mut command = program(words[0]);
        command.args(&words[1..]).stdin(reader.try_clone().unwrap());
        Process::start(&mut command)
    };
    for _ in 0..3 {
        let mut fdrecv = consumer(&["fdrecv", "--", "cat"]);
        sandboxed.serves();
        assert!(fdrecv.wait().success());
    }
    let _pool = consumer(&POOL_OF_CATS);
    let _other = consumer(&POOL_OF_CATS);
    Crowd::connect(sandboxed.port, 30).expect_served();
}

#[test]
fn a_pipeline_ends_with_its_consumers() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut sandboxed = Sandboxed::start(fdaccept(&[ADDRESS]).stdout(writer));
    let mut fdrecv = Process::start(program("fdrecv").args(["--", "cat"]).stdin(reader));
    sandboxed.serves();
    assert!(fdrecv.wait().success());
    assert_eq!(sandboxed.process.wait().code(), Some(0));
}

/// Consumers at a name come, are killed, and come again.
#[track_caller]
fn consumers_come_and_go(name: &str) {
    let mut sandboxed = Sandboxed::bound(name, &[]);
    for _ in 0..3 {
        let mut first = pool(name, 2, &["cat"]);
        sandboxed.serves();
        let mut held = connect(sandboxed.port);
        held.write_all(b"x").unwrap();
        held.read_exact(&mut [0]).unwrap();
        let slots = children(first.pid());
        first.signal(Signal::SIGKILL);
        first.wait();
        // Or what is left of it would take the next connection.
        drop(held);
        until("the end of its slots", || {
            slots.iter().all(|slot| !is_alive(*slot))
        });
        let mut consumer = fdrecv(name, &["cat"]);
        sandboxed.serves();
        assert!(consumer.wait().success());
    }
    sandboxed.ends(0);
}

#[test]
fn consumers_come_to_a_path_and_are_killed_and_others_come() {
    consumers_come_and_go(&Names::new().path());
}

#[test]
fn consumers_come_to_an_abstract_name_and_are_killed_and_others_come() {
    consumers_come_and_go(&Names::new().abstract_name());
}

#[test]
fn a_unix_socket_on_standard_output_takes_connections() {
    for kind in [SockType::SeqPacket, SockType::Stream, SockType::Datagram] {
        let (ours, theirs) = socket_pair(kind);
        let mut sandboxed = Sandboxed::start(fdaccept(&[ADDRESS]).stdout(theirs));
        let mut pool = program("fdpool");
        let mut pool = Process::start(pool.args(["2", "--", "cat"]).stdin(ours));
        for _ in 0..3 {
            sandboxed.serves();
        }
        sandboxed.ends(0);
        pool.signal(Signal::SIGTERM);
        pool.wait();
    }
}

/// fdaccept with a listener of ours as if a service manager had made it.
fn with_listener(listener: &TcpListener, words: &str) -> Process {
    let text = format!("LISTEN_FDS=1 LISTEN_PID=$$ exec fdaccept --sandbox {words} 3<&0");
    let mut command = script("sh", &text);
    command.stdin(OwnedFd::from(listener.try_clone().unwrap()));
    command.env_remove("LISTEN_FDNAMES");
    Process::start(command.env_remove("NOTIFY_SOCKET"))
}

#[test]
fn inherited_listeners_are_served_also_where_another_one_is_faster() {
    let listener = TcpListener::bind(ADDRESS).unwrap();
    let port = listener.local_addr().unwrap().port();
    let start = || {
        let mut process = with_listener(&listener, "-- fdpool 2 -- cat");
        process.listening();
        until_sandboxed(process.pid());
        process
    };
    let mut both = [start(), start()];
    for _ in 0..50 {
        assert_eq!(exchange(port, b"hello"), b"hello");
    }
    for process in &mut both {
        assert!(process.is_running(), "{}", process.log());
    }
}

/// Whether a client of a Unix listener is served.
#[track_caller]
fn is_served_at_unix_listener(options: &[&str]) -> bool {
    let names = Names::new();
    let mut command = fdaccept(options);
    command.args([&names.path(), "--", "fdpool", "2", "--", "echo", "served"]);
    let mut process = Process::start(&mut command);
    process.listening();
    until_sandboxed(process.pid());
    let mut told = String::new();
    let end = connect_unix(names.path()).read_to_string(&mut told);
    assert!(process.is_running());
    end.is_ok() && told == "served\n"
}

#[test]
fn unix_clients_are_served_and_asked_who_they_are() {
    let uid = nix::unistd::geteuid().as_raw();
    let gid = nix::unistd::getegid().as_raw();
    assert!(is_served_at_unix_listener(&[]));
    assert!(is_served_at_unix_listener(&[
        "--allow-uid",
        &uid.to_string()
    ]));
    assert!(!is_served_at_unix_listener(&["--allow-uid", "4000000001"]));
    assert!(is_served_at_unix_listener(&[
        "--allow-gid",
        &gid.to_string()
    ]));
    assert!(!is_served_at_unix_listener(&["--allow-gid", "4000000001"]));
}

/// A client that is served by cat, and holds on.
#[track_caller]
fn holding(port: u16) -> TcpStream {
    let mut client = connect(port);
    client.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
    client
}

#[test]
fn more_than_max_wait_until_one_ends() {
    let names = Names::new();
    let sandboxed = Sandboxed::bound(&names.path(), &["--max", "1"]);
    let _pool = pool(&names.path(), 4, &["cat"]);
    for _ in 0..5 {
        let first = holding(sandboxed.port);
        let mut second = connect(sandboxed.port);
        second.write_all(b"x").unwrap();
        // It has its turn only now.
        assert!(!is_answered(&second));
        drop(first);
        second.read_exact(&mut [0]).unwrap();
    }
}

#[test]
fn one_client_beyond_its_limit_is_told_the_words_of_a_file() {
    let names = Names::new();
    let words = names.directory.path().join("words");
    std::fs::write(&words, "421 later\r\n").unwrap();
    let words = words.to_str().unwrap();
    let options = ["--max-per-source", "1", "--when-full", words];
    let sandboxed = Sandboxed::bound(&names.path(), &options);
    let _pool = pool(&names.path(), 4, &["cat"]);
    let first = holding(sandboxed.port);
    for _ in 0..3 {
        assert_eq!(exchange(sandboxed.port, b"hello"), b"421 later\r\n");
    }
    drop(first);
    until("room", || {
        try_exchange(sandboxed.port, b"hello").is_ok_and(|answer| answer == b"hello")
    });
}

#[test]
fn clients_beyond_a_limit_or_against_a_rule_are_reset() {
    let options = ["--max-per-source", "1", "--deny", "127.0.0.0/8"];
    let sandboxed = Sandboxed::chain(
        &[&options[..], &["--allow", "127.0.0.1"]].concat(),
        &POOL_OF_CATS,
    );
    let first = holding(sandboxed.port);
    let reset = try_exchange(sandboxed.port, b"hello").unwrap_err();
    assert_eq!(reset.kind(), std::io::ErrorKind::ConnectionReset);
    drop(first);
    let denying = Sandboxed::chain(&options[2..], &POOL_OF_CATS);
    let reset = try_exchange(denying.port, b"hello").unwrap_err();
    assert_eq!(reset.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn the_rate_holds_clients_up_and_serves_them_later() {
    let sandboxed = Sandboxed::chain(&["--rate", "3/0.2"], &POOL_OF_CATS);
    Crowd::connect(sandboxed.port, 12).expect_served();
}

#[test]
fn a_limited_queue_is_filled_and_emptied_and_filled_again() {
    let names = Names::new();
    let sandboxed = Sandboxed::bound(&names.path(), &["--queue", "2"]);
    for _ in 0..3 {
        let crowd = Crowd::connect(sandboxed.port, 10);
        let mut pool = pool(&names.path(), 2, &["cat"]);
        crowd.expect_served();
        // All of it, or what is left would take the next connections.
        pool.signal(Signal::SIGTERM);
        pool.wait();
    }
}

#[test]
fn proxy_headers_are_read() {
    let options = ["--proxy-protocol", "any", "--proxy-from", "127.0.0.1"];
    let options = [&options[..], &["--proxy-timeout", "0.2"]].concat();
    let tell = ["sh", "-c", "echo $TCPREMOTEIP; exec cat"];
    let handler = [&["fdpool", "2", "--"][..], &tell].concat();
    let sandboxed = Sandboxed::chain(&options, &handler);
    for _ in 0..3 {
        let header = b"PROXY TCP4 192.0.2.1 198.51.100.7 12345 80\r\nhello";
        let answer = exchange(sandboxed.port, header);
        assert_eq!(answer, b"192.0.2.1\nhello");
        // In two parts.
        let mut client = connect(sandboxed.port);
        client.set_nodelay(true).unwrap();
        client.write_all(b"PROXY TCP4 192.0.2.2").unwrap();
        client.write_all(b" 198.51.100.7 1 80\r\n").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "192.0.2.2\n");
        // None, and one that is late: no answer.
        assert_eq!(
            try_exchange(sandboxed.port, b"hello\r\n").unwrap_or_default(),
            b""
        );
        let mut late = connect(sandboxed.port);
        assert_eq!(late.read(&mut [0]).unwrap_or_default(), 0);
    }
}

#[test]
fn the_counters_are_told_on_demand() {
    let mut sandboxed = Sandboxed::chain(&["-v"], &POOL_OF_CATS);
    sandboxed.serves();
    sandboxed.process.line(": accepted 127.0.0.1 on 127.0.0.1:");
    sandboxed.process.signal(Signal::SIGUSR1);
    sandboxed.process.line("accepted 1, passed 1, taken 1");
    sandboxed.serves();
    sandboxed.process.signal(Signal::SIGUSR1);
    sandboxed.process.line("accepted 2, passed 2, taken 2");
}

#[test]
fn a_stop_serves_what_waits_in_the_backlog() {
    let mut sandboxed = Sandboxed::chain(&["-v"], &POOL_OF_CATS);
    let pid = sandboxed.process.pid();
    sandboxed.process.signal(Signal::SIGSTOP);
    until("the stop", || state(pid) == Some('T'));
    let crowd = Crowd::connect(sandboxed.port, 20);
    sandboxed.process.signal(Signal::SIGTERM);
    sandboxed.process.signal(Signal::SIGCONT);
    crowd.expect_served();
    assert_eq!(sandboxed.process.wait().code(), Some(0));
}

#[test]
fn a_stop_waits_for_consumers_for_the_grace() {
    let names = Names::new();
    let mut sandboxed = Sandboxed::bound(&names.path(), &["--grace", "0.3"]);
    let client = connect(sandboxed.port);
    sandboxed.process.signal(Signal::SIGTERM);
    sandboxed
        .process
        .line("1 connection was accepted and not taken");
    assert_eq!(sandboxed.process.wait().code(), Some(1));
    drop(client);
}

/// A command that says what reaches it.
const STAYS: &str = "trap 'echo got TERM >&2; exit 5' TERM; echo ready >&2
    while :; do sleep 0.05; done";
/// One that nothing but KILL ends.
const IGNORES: &str = "trap '' TERM; echo ready >&2; while :; do sleep 0.05; done";

/// A chain of such a command.
#[track_caller]
fn chain_of(grace: &str, text: &str) -> Process {
    let mut command = fdaccept(&["--grace", grace, ADDRESS, "--", "sh", "-c", text]);
    let mut process = Process::start(&mut command);
    process.line("ready");
    until_sandboxed(process.pid());
    process
}

#[test]
fn a_command_gets_term_when_the_grace_is_over() {
    let mut process = chain_of("0.2", STAYS);
    process.signal(Signal::SIGTERM);
    process.line("got TERM");
    assert_eq!(process.wait().code(), Some(5));
}

/// The sockets that a process has open.
fn sockets(pid: Pid) -> usize {
    let open = descriptors(pid);
    open.iter()
        .filter(|(_, what)| what.starts_with("socket:"))
        .count()
}

#[test]
fn a_command_gets_term_at_a_second_signal() {
    let mut process = chain_of("3600", STAYS);
    process.signal(Signal::SIGTERM);
    until("the first to be heard", || sockets(process.pid()) <= 1);
    process.signal(Signal::SIGTERM);
    process.line("got TERM");
    assert_eq!(process.wait().code(), Some(5));
}

#[test]
fn a_command_that_ignores_a_second_signal_is_killed() {
    let mut process = chain_of("3600", IGNORES);
    process.signal(Signal::SIGTERM);
    until("the first to be heard", || sockets(process.pid()) <= 1);
    process.signal(Signal::SIGTERM);
    assert_eq!(process.wait().code(), Some(128 + 9));
}

#[test]
fn with_few_descriptors_everybody_is_served() {
    for text in [
        "exec fdaccept --sandbox 127.0.0.1:0 -- fdpool 4 -- cat",
        "exec fdaccept --sandbox --max 30 127.0.0.1:0 -- fdpool 4 -- cat",
        "fdaccept --sandbox 127.0.0.1:0 | fdpool 4 -- cat",
        "fdpool --connect ./q 4 -- cat & exec fdaccept --sandbox --bind ./q 127.0.0.1:0",
    ] {
        let names = Names::new();
        let mut command = script("sh", &format!("ulimit -n 16; {text}"));
        let mut process = Process::start(command.current_dir(&names.directory));
        Crowd::connect(process.port(), 50).expect_served();
    }
}

#[test]
fn without_a_descriptor_left_clients_wait() {
    let Some(prlimit) = peer("prlimit") else {
        return;
    };
    let mut sandboxed = Sandboxed::chain(&[], &POOL_OF_CATS);
    sandboxed.serves();
    let pid = sandboxed.process.pid();
    let limit = |soft: usize| {
        let mut command = Command::new(&prlimit);
        command.args(["--pid", &pid.to_string()]);
        let status = command.arg(format!("--nofile={soft}:")).status();
        assert!(status.unwrap().success());
    };
    for _ in 0..2 {
        limit(3);
        let crowd = Crowd::connect(sandboxed.port, 10);
        if sandboxed.process.log().contains("cannot accept") {
            // It is said once.
        } else {
            sandboxed.process.line("cannot accept: Too many open files");
        }
        limit(1024);
        crowd.expect_served();
    }
}

/// A TCP socket whose last close would block for an hour: it lingers, has unsent data, and the
/// other side, which is returned with it, does not read.
fn lingering() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(ADDRESS).unwrap();
    let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (other, _) = listener.accept().unwrap();
    socket.set_nonblocking(true).unwrap();
    while socket.write(&[0; 65536]).is_ok() {}
    socket.set_nonblocking(false).unwrap();
    let hour = nix::libc::linger {
        l_onoff: 1,
        l_linger: 3600,
    };
    setsockopt(&socket, Linger, &hour).unwrap();
    (socket, other)
}

/// Somebody who goes to a door and says things there.
fn visit(address: &UnixAddr, messages: &[(&[u8], &[BorrowedFd<'_>])]) -> OwnedFd {
    let (family, flags) = (AddressFamily::Unix, SockFlag::SOCK_CLOEXEC);
    let visitor = socket(family, SockType::SeqPacket, flags, None).unwrap();
    connect_to(visitor.as_raw_fd(), address).unwrap();
    for (payload, descriptors) in messages {
        match send(&visitor, payload, descriptors) {
            // The door may be shut already.
            Ok(()) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
                ) => {}
            Err(errno) => panic!("{errno}"),
        }
    }
    visitor
}

/// Strangers at a door leave all kinds of things there. As long as what is returned is not read,
/// some of them cannot be closed quickly.
fn leave_things_at(address: &UnixAddr) -> [TcpStream; 2] {
    let (lingers, other) = lingering();
    let (nested, its_end) = socket_pair(SockType::SeqPacket);
    let (inner, inner_other) = lingering();
    for _ in 0..3 {
        send(&nested, b"", &[]).unwrap();
    }
    send(&nested, b"within", &[inner.as_fd(), its_end.as_fd()]).unwrap();
    let listens = TcpListener::bind(ADDRESS).unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    let many = [null.as_fd(); 253];
    visit(address, &[]);
    visit(address, &[(b"", &[]), (b"x", &[])]);
    visit(address, &[(b"nonsense", &[lingers.as_fd()])]);
    visit(address, &[(b"FDTOOLS=1\n", &many), (b"", &many)]);
    visit(
        address,
        &[(b"y", &[its_end.as_fd()]), (b"z", &[nested.as_fd()])],
    );
    visit(address, &[(&[b'x'; 60000], &[listens.as_fd()])]);
    [other, inner_other]
}

/// The same while nobody is looking, so that all of it is there when somebody does.
fn misbehave_at(address: &UnixAddr, process: &Process) -> [TcpStream; 2] {
    process.signal(Signal::SIGSTOP);
    until("the stop", || state(process.pid()) == Some('T'));
    let others = leave_things_at(address);
    process.signal(Signal::SIGCONT);
    others
}

#[test]
fn strangers_at_a_name_keep_nobody_out() {
    let names = Names::new();
    for name in [names.path(), names.abstract_name()] {
        let sandboxed = Sandboxed::bound(&name, &[]);
        let address = match name.strip_prefix('@') {
            Some(name) => UnixAddr::new_abstract(name.as_bytes()),
            None => UnixAddr::new(Path::new(&name)),
        }
        .unwrap();
        for _ in 0..3 {
            let _others = misbehave_at(&address, &sandboxed.process);
            let mut consumer = fdrecv(&name, &["cat"]);
            sandboxed.serves();
            assert!(consumer.wait().success());
        }
    }
}

#[test]
fn strangers_at_the_door_of_tickets_keep_nobody_out() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let sandboxed = Sandboxed::start(fdaccept(&[ADDRESS]).stdout(writer));
    let mut ticket = [0; 94];
    reader.read_exact(&mut ticket).unwrap();
    let door = [b"fdtools-", &ticket[17..49]].concat();
    let address = UnixAddr::new_abstract(&door).unwrap();
    for _ in 0..3 {
        let _others = misbehave_at(&address, &sandboxed.process);
        let void = format!("FDTOOLS=1\nTOKEN={:032x}\n", 7);
        visit(&address, &[(void.as_bytes(), &[])]);
        let mut fdrecv = program("fdrecv");
        fdrecv
            .args(["--", "cat"])
            .stdin(reader.try_clone().unwrap());
        let mut consumer = Process::start(&mut fdrecv);
        sandboxed.serves();
        assert!(consumer.wait().success());
    }
}

#[test]
fn a_consumer_of_another_user_at_an_abstract_name_is_refused() {
    let Some(setpriv) = peer("setpriv").filter(|_| root()) else {
        return;
    };
    let names = Names::new();
    let name = names.abstract_name();
    let mut sandboxed = Sandboxed::bound(&name, &[]);
    let Some(python) = support::python() else {
        return;
    };
    let text = "import socket, sys
door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
door.connect('\\0' + sys.argv[1][1:])
print(len(socket.recv_fds(door, 4096, 1)[1]))";
    let mut command = Command::new(setpriv);
    command.args(["--reuid", NOBODY, "--clear-groups"]);
    command.arg(python).args(["-c", text, &name]);
    let (_, told, _) = run(command.stdin(Stdio::null()).current_dir("/"));
    assert_eq!(told, "0\n");
    sandboxed.process.line("a consumer was refused");
    let _pool = pool(&name, 1, &["cat"]);
    sandboxed.serves();
}

#[test]
fn a_service_manager_is_told_how_it_is() {
    let names = Names::new();
    let path = names.directory.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(DEADLINE)).unwrap();
    let told = |wanted: &str| {
        until(wanted, || {
            let mut message = [0; 4096];
            let length = support::receive_message(&manager, &mut message);
            let text = String::from_utf8(message[..length].to_vec()).unwrap();
            text.contains(wanted)
        });
    };
    let mut command = fdaccept(&[ADDRESS, "--"]);
    let command = command.args(POOL_OF_CATS).env("NOTIFY_SOCKET", &path);
    let mut sandboxed = Sandboxed::start(command);
    told("READY=1");
    told("STATUS=accepted 0");
    sandboxed.serves();
    told("STATUS=accepted 1");
    sandboxed.process.signal(Signal::SIGTERM);
    told("STOPPING=1");
    assert_eq!(sandboxed.process.wait().code(), Some(0));
}

#[test]
fn another_user_is_sandboxed_as_well() {
    if !root() {
        return;
    }
    let names = Names::new();
    let user = format!("{NOBODY}:{NOBODY}");
    let mut sandboxed = Sandboxed::bound(&names.path(), &["--user", &user]);
    let pid = sandboxed.process.pid();
    assert_eq!(
        status(pid, "Uid").unwrap(),
        [NOBODY; 4].join("\t"),
        "all four of them"
    );
    let _pool = pool(&names.path(), 2, &["cat"]);
    for _ in 0..3 {
        sandboxed.serves();
    }
    sandboxed.ends(0);
    let chain = Sandboxed::chain(&["--user", &user], &["sh", "-c", "sleep 1000"]);
    let command = children(chain.process.pid())[0];
    assert_eq!(status(command, "Seccomp").as_deref(), Some("0"));
}

#[test]
fn a_path_that_it_left_is_taken_over_by_the_next_one() {
    let names = Names::new();
    for _ in 0..3 {
        let mut sandboxed = Sandboxed::bound(&names.path(), &[]);
        let _pool = pool(&names.path(), 1, &["cat"]);
        sandboxed.serves();
        sandboxed.ends(0);
    }
}

#[test]
fn what_needs_more_calls_is_a_usage_error() {
    let names = Names::new();
    let rules = names.directory.path().join("rules");
    std::fs::write(&rules, "").unwrap();
    let path = names.path();
    for (options, expected) in [
        (
            ["--rules", rules.to_str().unwrap(), "--bind", &path],
            "--rules",
        ),
        (["--grace", "1", "--connect", &path], "--connect"),
    ] {
        let (status, _, log) = run(fdaccept(&options).arg(ADDRESS));
        assert_eq!(status, Some(2), "{log}");
        let first = log.lines().next().unwrap();
        assert!(first.starts_with(&format!("fdaccept: {expected}")), "{log}");
        assert!(first.contains("--sandbox"), "{log}");
        assert!(!Path::new(&path).exists());
    }
}

// Whether the filter refuses anything that it needs.

/// Runs fdaccept under strace(1) while `act` is done to it, and returns the names of the calls that
/// were refused.
#[track_caller]
fn refused_while(
    options: &[&str],
    act: impl FnOnce(&mut Sandboxed, &Names),
) -> Option<BTreeSet<String>> {
    let strace = peer("strace")?;
    let names = Names::new();
    let trace = names.directory.path().join("trace");
    let notify = names.directory.path().join("notify");
    let _manager = UnixDatagram::bind(&notify).unwrap();
    // The tracer is a grandchild, so that what we start is fdaccept itself.
    let mut command = Command::new(strace);
    command.args(["-D", "-qq", "-o"]).arg(&trace);
    command.arg(support::bin_dir().join("fdaccept"));
    command.args(["--sandbox", "-v"]).args(options);
    command.env("PATH", support::path()).stdin(Stdio::null());
    command.env("NOTIFY_SOCKET", &notify);
    let mut process = Process::start(command.current_dir(&names.directory));
    let port = process.port();
    until_sandboxed(process.pid());
    let mut sandboxed = Sandboxed { process, port };
    act(&mut sandboxed, &names);
    sandboxed.process.signal(Signal::SIGUSR1);
    sandboxed.process.line("accepted");
    if sandboxed.process.is_running() {
        sandboxed.process.signal(Signal::SIGTERM);
    }
    sandboxed.process.wait();
    let calls = eventually("the end of the trace", || {
        let text = std::fs::read(&trace).ok()?;
        let text = String::from_utf8_lossy(&text).into_owned();
        text.contains("exit_group").then_some(text)
    });
    let after = calls.split_once("SECCOMP_SET_MODE_FILTER").unwrap().1;
    let refused = after.lines().filter(|line| line.contains(" EPERM "));
    let name = |line: &str| line.split('(').next().unwrap().to_owned();
    Some(refused.map(name).collect())
}

/// A timer need not be deleted by who ends.
fn expect_nothing_refused(refused: Option<BTreeSet<String>>) {
    let refused = refused.unwrap_or_default();
    assert!(
        refused.iter().all(|name| name == "timer_delete"),
        "{refused:?}"
    );
}

#[test]
fn nothing_that_a_chain_needs_is_refused() {
    let options = [
        "--max", "5", "--rate", "50/0.1", "--queue", "3", ADDRESS, ADDRESS, "--",
    ];
    let options = [&options[..], &POOL_OF_CATS].concat();
    expect_nothing_refused(refused_while(&options, |sandboxed, _| {
        for _ in 0..3 {
            Crowd::connect(sandboxed.port, 10).expect_served();
        }
    }));
}

#[test]
fn nothing_that_a_named_queue_needs_is_refused() {
    let names = Names::new();
    let (name, listener) = (&names.abstract_name(), &names.abstract_name());
    let words = names.directory.path().join("words");
    std::fs::write(&words, "421 later\r\n").unwrap();
    let options = [
        "--bind",
        name,
        "--max-per-source",
        "3",
        "--when-full",
        words.to_str().unwrap(),
        "--allow-gid",
        "4000000001",
        "--deny",
        "127.0.0.9",
        ADDRESS,
        listener,
    ];
    expect_nothing_refused(refused_while(&options, |sandboxed, _| {
        let _pool = pool(name, 8, &["cat"]);
        let address = UnixAddr::new_abstract(&name.as_bytes()[1..]).unwrap();
        let _others = leave_things_at(&address);
        let kept: Vec<_> = (0..3).map(|_| holding(sandboxed.port)).collect();
        assert_eq!(exchange(sandboxed.port, b"hello"), b"421 later\r\n");
        // Whose group is not the one.
        let stream = socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        );
        let stream = stream.unwrap();
        let address = UnixAddr::new_abstract(&listener.as_bytes()[1..]).unwrap();
        connect_to(stream.as_raw_fd(), &address).unwrap();
        sandboxed.process.line("a rule denies it");
        drop(kept);
    }));
}

#[test]
fn nothing_that_headers_of_proxies_need_is_refused() {
    let options = ["--proxy-protocol", "v1", "--proxy-from", "127.0.0.1"];
    let more = ["--proxy-timeout", "0.1", ADDRESS, "--"];
    let options = [&options[..], &more, &POOL_OF_CATS].concat();
    expect_nothing_refused(refused_while(&options, |sandboxed, _| {
        let header = b"PROXY TCP4 192.0.2.1 198.51.100.7 12345 80\r\nhello";
        assert_eq!(exchange(sandboxed.port, header), b"hello");
        let _ = try_exchange(sandboxed.port, b"none\r\n");
        let late = connect(sandboxed.port);
        sandboxed.process.line("late");
        drop(late);
    }));
}

#[test]
fn nothing_that_a_second_signal_needs_is_refused() {
    let options = [ADDRESS, "--", "sh", "-c", STAYS];
    expect_nothing_refused(refused_while(&options, |sandboxed, _| {
        sandboxed.process.line("ready");
        sandboxed.process.signal(Signal::SIGTERM);
        until("it to be heard", || sockets(sandboxed.process.pid()) <= 2);
    }));
}
