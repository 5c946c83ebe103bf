//! System calls that a running fdaccept is made to do by ptrace(2). Their numbers are for x86-64.

use std::os::unix::net::{UnixDatagram, UnixListener};
use std::time::Instant;

use super::*;
use nix::errno::Errno;
use nix::libc::{self, c_long, user_regs_struct};
use nix::sys::ptrace;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};

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
/// As a mask: an int.
const ALL: u64 = 0xffff_ffff;

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

    /// Where [`Puppet::put`] writes.
    fn place(&self) -> u64 {
        (self.registers.rsp - 2048) & !7
    }

    /// Writes `bytes` below the stack of the process. Returns their address.
    fn put(&self, bytes: &[u8]) -> u64 {
        let place = self.place();
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
        assert_eq!(result, PERMITTED_NOT, "{name} ({number}) {arguments:x?}");
    }

    /// Has the process make a call for each `value` of one argument, and returns those that are not
    /// refused.
    fn permitted(
        &self,
        number: c_long,
        mut arguments: [u64; 6],
        index: usize,
        values: impl IntoIterator<Item = u64>,
    ) -> Vec<u64> {
        let is_permitted = |value: &u64| {
            arguments[index] = *value;
            self.call(number, arguments) != PERMITTED_NOT
        };
        values.into_iter().filter(is_permitted).collect()
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
    let deadline = Instant::now() + DEADLINE;
    // Thousands of calls are made, and a stop comes at once: no pause between two looks.
    loop {
        let flags = WaitPidFlag::WNOHANG | WaitPidFlag::__WALL;
        match waitpid(pid, Some(flags)).unwrap() {
            WaitStatus::StillAlive => std::thread::yield_now(),
            WaitStatus::Stopped(_, stopped) if stopped == signal => return,
            WaitStatus::Stopped(_, other) => ptrace::cont(pid, other).unwrap(),
            other => panic!("{other:?}"),
        }
        assert!(Instant::now() < deadline, "still waiting for a stop");
    }
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
        ("sendmmsg", libc::SYS_sendmmsg, [MINUS, 0, 0, 0, 0, 0]),
        ("splice", libc::SYS_splice, [MINUS, 0, MINUS, 0, 0, 0]),
        ("sendfile", libc::SYS_sendfile, [MINUS, MINUS, 0, 0, 0, 0]),
        ("dup", libc::SYS_dup, [MINUS, 0, 0, 0, 0, 0]),
        ("chmod", libc::SYS_fchmod, [MINUS, 0, 0, 0, 0, 0]),
        ("chown", libc::SYS_fchown, [MINUS, 0, 0, 0, 0, 0]),
        ("truncate", libc::SYS_ftruncate, [MINUS, 0, 0, 0, 0, 0]),
        ("chdir", libc::SYS_fchdir, [MINUS, 0, 0, 0, 0, 0]),
        (
            "link",
            libc::SYS_linkat,
            [MINUS, root, MINUS, root, MINUS, 0],
        ),
        (
            "rename",
            libc::SYS_renameat2,
            [here, root, here, root, 0, 0],
        ),
        (
            "watch",
            libc::SYS_inotify_add_watch,
            [MINUS, root, 0, 0, 0, 0],
        ),
        ("action", libc::SYS_rt_sigaction, [MINUS, 0, 0, 8, 0, 0]),
        (
            "queue a signal",
            libc::SYS_rt_sigqueueinfo,
            [us, 0, root, 0, 0, 0],
        ),
        ("limit", libc::SYS_prlimit64, [us, 0, 0, 0, 0, 0]),
        (
            "personality",
            libc::SYS_personality,
            [MINUS & ALL, 0, 0, 0, 0, 0],
        ),
        ("filter", libc::SYS_seccomp, [MINUS & ALL, 0, 0, 0, 0, 0]),
        ("timer", libc::SYS_timerfd_create, [MINUS, 0, 0, 0, 0, 0]),
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
        let address = unix_address(&path);
        let length = address.len() as u64;
        let address = puppet.put(&address);
        let call = [socket, address, 5, 0, address, length];
        let sent = puppet.call(libc::SYS_sendto, call);
        assert!(sent < 0, "{sent} bytes sent to somebody else");
    }
}

/// An address of 127.0.0.1, as the kernel has it.
fn inet_address(port: u16) -> Vec<u8> {
    let family = (libc::AF_INET as u16).to_ne_bytes();
    [&family[..], &port.to_be_bytes(), &[127, 0, 0, 1], &[0; 8]].concat()
}

/// The address of a path, as the kernel has it.
fn unix_address(path: &Path) -> Vec<u8> {
    let family = (libc::AF_UNIX as u16).to_ne_bytes();
    [&family, path.as_os_str().as_encoded_bytes(), b"\0"].concat()
}

/// What [`Puppet::put_message`] has put, by its addresses.
struct Letter {
    /// `struct msghdr`
    header: u64,
    name: u64,
    name_length: u64,
    data: u64,
}

impl Puppet {
    /// Puts a message of 3 bytes to this address into the memory of the process.
    fn put_message(&self, name: &[u8]) -> Letter {
        const IOVEC: u64 = 56;
        let header = self.place();
        let letter = Letter {
            header,
            name: header + IOVEC + 16,
            name_length: name.len() as u64,
            data: header + IOVEC + 16 + name.len() as u64,
        };
        let no_control_data = [0, 0, 0];
        let words = [letter.name, letter.name_length, header + IOVEC, 1];
        let iovec = [letter.data, 3];
        let words = words.iter().chain(&no_control_data).chain(&iovec);
        let words = words.flat_map(|word| word.to_ne_bytes());
        let bytes: Vec<u8> = words.chain([name, b"out"].concat()).collect();
        assert_eq!(self.put(&bytes), header);
        letter
    }

    /// Its listeners, all of them shut down. Then they are sockets like any other.
    fn listeners(&self) -> Vec<u64> {
        let is_listener = |number: &u64| {
            // Only a listener can be accepted from: others fail with ENOTSOCK, EINVAL and the like.
            let accepted = self.call(libc::SYS_accept4, [*number, 0, 0, 0, 0, 0]);
            accepted == -(libc::EAGAIN as i64)
        };
        let listeners: Vec<u64> = (3..64).filter(is_listener).collect();
        for listener in &listeners {
            self.call(libc::SYS_shutdown, [*listener, 2, 0, 0, 0, 0]);
        }
        assert!(!listeners.is_empty());
        listeners
    }
}

#[test]
fn it_connects_to_nobody_by_a_listener() {
    let acceptor = chain();
    let (elsewhere, port) = listener();
    elsewhere.set_nonblocking(true).unwrap();
    let puppet = needs!(Puppet::seize(acceptor.pid()));
    let letter = puppet.put_message(&inet_address(port));
    let (header, data) = (letter.header, letter.data);
    let (name, length) = (letter.name, letter.name_length);
    let fast = libc::MSG_FASTOPEN as u64;
    for socket in puppet.listeners() {
        for (what, number, arguments) in [
            (
                "a name",
                libc::SYS_sendto,
                [socket, data, 3, 0, name, length],
            ),
            (
                "a fast name",
                libc::SYS_sendto,
                [socket, data, 3, fast, name, length],
            ),
            (
                "a fast message",
                libc::SYS_sendmsg,
                [socket, header, fast, 0, 0, 0],
            ),
            (
                "messages",
                libc::SYS_sendmmsg,
                [socket, header, 1, fast, 0, 0],
            ),
            (
                "connect",
                libc::SYS_connect,
                [socket, name, length, 0, 0, 0],
            ),
            ("bind", libc::SYS_bind, [socket, name, length, 0, 0, 0]),
            ("listen", libc::SYS_listen, [socket, 1, 0, 0, 0, 0]),
            // TCP_FASTOPEN_CONNECT, TCP_REPAIR, TCP_ULP
            (
                "fast connect",
                libc::SYS_setsockopt,
                [socket, 6, 30, data, 4, 0],
            ),
            ("repair", libc::SYS_setsockopt, [socket, 6, 19, data, 4, 0]),
            (
                "protocol",
                libc::SYS_setsockopt,
                [socket, 6, 31, data, 4, 0],
            ),
        ] {
            puppet.is_refused((what, number, arguments));
        }
        // What is left goes nowhere.
        let quiet = libc::MSG_NOSIGNAL as u64;
        let sent = puppet.call(libc::SYS_sendmsg, [socket, header, quiet, 0, 0, 0]);
        assert!(sent < 0, "{sent} bytes were sent");
    }
    let nobody = elsewhere.accept().unwrap_err();
    assert_eq!(nobody.kind(), ErrorKind::WouldBlock);
}

/// Shows that the test before would see a connection.
#[test]
fn without_a_sandbox_it_could_connect_by_a_listener() {
    let acceptor = Fdaccept::chain(POOL_OF_CATS).start();
    acceptor.expect_echo();
    let (elsewhere, port) = listener();
    let puppet = needs!(Puppet::seize(acceptor.pid()));
    let header = puppet.put_message(&inet_address(port)).header;
    let fast = (libc::MSG_FASTOPEN | libc::MSG_NOSIGNAL) as u64;
    let is_on_its_way = puppet.listeners().into_iter().any(|socket| {
        let sent = puppet.call(libc::SYS_sendmsg, [socket, header, fast, 0, 0, 0]);
        [3, -(libc::EINPROGRESS as i64)].contains(&sent)
    });
    if !is_on_its_way {
        return skip("no TCP Fast Open here");
    }
    elsewhere.accept().unwrap();
}

/// Has a sandboxed process send by all its sockets to a datagram socket and to a listener of the
/// test's own. Returns whether something arrived at each.
fn reached_by_name(fdaccept: Fdaccept) -> Option<[bool; 2]> {
    let names = Names::new();
    let [datagram, stream] = ["datagram", "stream"].map(|name| names.file(name));
    let log = UnixDatagram::bind(&datagram).unwrap();
    log.set_nonblocking(true).unwrap();
    let server = UnixListener::bind(&stream).unwrap();
    server.set_nonblocking(true).unwrap();
    let acceptor = start(fdaccept.listen("./listener").listen(ADDRESS));
    let puppet = Puppet::seize(acceptor.pid())?;
    puppet.listeners();
    let quiet = (libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) as u64;
    for path in [&datagram, &stream] {
        let letter = puppet.put_message(&unix_address(path));
        for socket in 3..64 {
            puppet.call(libc::SYS_sendmsg, [socket, letter.header, quiet, 0, 0, 0]);
        }
    }
    Some([log.recv(&mut [0; 9]).is_ok(), server.accept().is_ok()])
}

#[test]
fn it_sends_to_nobody_by_a_unix_listener_or_the_queue() {
    let fdaccept = Fdaccept::bound_at(&Names::new().abstract_name());
    assert_eq!(needs!(reached_by_name(fdaccept)), [false, false]);
}

/// What the manual says about the socket of a service manager: no filter sees the name.
#[test]
fn by_a_datagram_socket_it_reaches_another_one() {
    let manager = Manager::at_path();
    let fdaccept = Fdaccept::bound_at(&Names::new().abstract_name()).under(&manager);
    assert_eq!(needs!(reached_by_name(fdaccept)), [true, false]);
}

/// Each bit, and nothing.
fn bits(count: u32) -> impl Iterator<Item = u64> {
    (0..count).map(|bit| 1 << bit).chain([0])
}

#[test]
fn of_calls_with_many_uses_it_has_a_few() {
    let acceptor = chain();
    let puppet = needs!(Puppet::seize(acceptor.pid()));
    let none = [MINUS, 0, 0, 0, 0, 0];
    let plain = [libc::MSG_DONTWAIT as u64, libc::MSG_NOSIGNAL as u64, 0];
    for (what, number, index) in [
        ("sendto", libc::SYS_sendto, 3),
        ("sendmsg", libc::SYS_sendmsg, 2),
    ] {
        let flags = puppet.permitted(number, none, index, bits(32));
        assert_eq!(flags, plain, "flags of {what}");
    }
    let named = puppet.permitted(libc::SYS_sendto, none, 4, bits(64));
    assert_eq!(named, [0], "a destination");
    let commands = puppet.permitted(libc::SYS_fcntl, none, 1, 0..1100);
    let few = [libc::F_GETFD, libc::F_GETFL, libc::F_DUPFD_CLOEXEC].map(|command| command as u64);
    assert_eq!(commands, few, "fcntl");
    let requests = puppet.permitted(libc::SYS_ioctl, none, 1, 0x5400..0x5500);
    assert_eq!(requests, [libc::TIOCOUTQ, libc::FIONREAD], "ioctl");
    for level in 0..300 {
        let options = puppet.permitted(libc::SYS_setsockopt, [MINUS, level, 0, 0, 0, 0], 2, 0..100);
        let linger: &[u64] = if level == 1 { &[13] } else { &[] };
        assert_eq!(options, linger, "options of level {level}");
    }
    let families = puppet.permitted(libc::SYS_socketpair, [0, 0x80005, 0, 0, 0, 0], 0, 0..60);
    assert_eq!(families, [1], "families of a pair");
    let kinds = puppet.permitted(libc::SYS_socketpair, [1, 0, 0, 0, 0, 0], 1, 0..12);
    assert!(kinds.is_empty(), "types of a pair: {kinds:?}");
    drop(puppet);
    acceptor.expect_echo();
}

/// The numbers of the 32-bit ABI mean other calls.
#[test]
fn a_call_of_32_bits_ends_it() {
    let mut acceptor = chain();
    let pid = acceptor.pid();
    let puppet = needs!(Puppet::seize(pid));
    let place = (puppet.registers.rip - 2) as ptrace::AddressType;
    let word = ptrace::read(pid, place).unwrap();
    let [syscall, int_0x80] = [0x050f, 0x80cd];
    assert_eq!(word & 0xffff, syscall);
    ptrace::write(pid, place, word & !0xffff | int_0x80).unwrap();
    let mut registers = puppet.registers;
    registers.rip -= 2;
    (registers.rax, registers.orig_rax) = (20, MINUS); // getpid of the 32-bit ABI
    ptrace::setregs(pid, registers).unwrap();
    ptrace::cont(pid, None).unwrap();
    // A kernel without such calls stops it for SIGSEGV.
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED | WaitPidFlag::WNOWAIT;
    let ended = waitid(Id::Pid(pid), flags | WaitPidFlag::__WALL).unwrap();
    if let WaitStatus::Stopped(_, Signal::SIGSEGV) = ended {
        return skip("this kernel has no calls of 32 bits");
    }
    acceptor.expect_killed_by(Signal::SIGSYS);
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
