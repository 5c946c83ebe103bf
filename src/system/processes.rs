//! Other processes, as /proc shows them. Where it shows nothing, there is nothing.

use std::fs;
use std::os::fd::{BorrowedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::{self, c_long};
use nix::sys::signal::kill;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// How many threads to examine, of a process and its descendants.
const MOST_THREADS: usize = 64;
/// How many processes to examine for who has a socket, and how many descriptors of each.
const MOST_PROCESSES: usize = 64;
const MOST_DESCRIPTORS: usize = 1024;

/// The children of all threads of a process (proc_pid_task(5)).
pub(crate) fn children(pid: Pid) -> Vec<Pid> {
    let lists = threads(pid).filter_map(|thread| fs::read_to_string(thread.join("children")).ok());
    let mut children = Vec::new();
    for list in lists {
        let numbers = list.split_ascii_whitespace();
        children.extend(numbers.filter_map(|number| number.parse().ok().map(Pid::from_raw)));
    }
    children
}

/// The directories of a process's threads.
fn threads(pid: Pid) -> impl Iterator<Item = PathBuf> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    threads
        .into_iter()
        .flatten()
        .flatten()
        .map(|thread| thread.path())
}

/// Clock ticks since the start of the machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticks(u64);

impl Ticks {
    pub fn now() -> Self {
        // Neither fails on Linux. With 0 every process counts as a later one.
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
        let rate = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(0);
        let ticks = now.as_nanos() * rate.unsigned_abs() as u128 / 1_000_000_000;
        Self(ticks as u64)
    }
}

/// What /proc/PID/stat says (proc_pid_stat(5)).
#[derive(Debug)]
pub(crate) struct Stat {
    /// Neither a zombie nor dead.
    pub is_alive: bool,
    pub parent: Pid,
    pub group: Pid,
    pub session: Pid,
    /// Clock ticks from the start of the machine to the start of the process.
    pub start: u64,
}

impl Stat {
    pub fn read(pid: Pid) -> Option<Self> {
        let bytes = fs::read(format!("/proc/{pid}/stat")).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        // The name may have blanks and brackets.
        let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
        let pid = |index: usize| Some(Pid::from_raw(fields.get(index)?.parse().ok()?));
        Some(Self {
            is_alive: !matches!(*fields.first()?, "Z" | "X"),
            parent: pid(1)?,
            group: pid(2)?,
            session: pid(3)?,
            start: fields.get(19)?.parse().ok()?,
        })
    }
}

/// A socket, as other processes' descriptors show it.
#[derive(Clone, Debug)]
pub(crate) struct SocketLink(PathBuf);

impl SocketLink {
    /// `None` if the kernel does not tell.
    pub fn of(socket: BorrowedFd<'_>) -> Option<Self> {
        let inode = rustix::fs::fstat(socket).ok()?.st_ino;
        Some(Self(format!("socket:[{inode}]").into()))
    }

    /// Whether none of the descendants of a process has this socket open, which the process has had
    /// `since` then. Children that were there before, and theirs, cannot have inherited it. `false` also
    /// if nothing can be known. The process adopts those that lose their parent.
    pub fn is_closed_below(&self, pid: Pid, since: Ticks) -> bool {
        let is_new = |pid: &Pid| Stat::read(*pid).is_none_or(|stat| stat.start >= since.0);
        let first: Vec<_> = children(pid).into_iter().filter(is_new).collect();
        let mut left = first.clone();
        let mut examined = 0;
        while let Some(pid) = left.pop() {
            examined += 1;
            if examined > MOST_PROCESSES || self.may_be_open_in(pid) {
                return false;
            }
            left.extend(children(pid));
        }
        // The children of a process that has ended meanwhile are among these.
        let mut now = children(pid).into_iter().filter(is_new);
        now.all(|child| first.contains(&child))
    }

    /// Whether a process has this socket open, or does not show what it has open.
    fn may_be_open_in(&self, pid: Pid) -> bool {
        let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else {
            // Another user's process, which may be hidden altogether.
            return kill(pid, None) != Err(Errno::ESRCH)
                && Stat::read(pid).is_none_or(|stat| stat.is_alive);
        };
        let mut links = open.flatten().map(|entry| fs::read_link(entry.path()));
        let mut examined = links.by_ref().take(MOST_DESCRIPTORS);
        examined.any(|link| link.is_ok_and(|link| link == self.0)) || links.next().is_some()
    }

    /// Whether a process or a descendant waits for bytes from this socket, by a call that drops the
    /// descriptors of a message.
    pub fn is_read_as_bytes_by(&self, pid: Pid) -> bool {
        let mut left = vec![pid];
        let mut examined = 0;
        while let Some(pid) = left.pop() {
            for thread in threads(pid) {
                examined += 1;
                if examined > MOST_THREADS {
                    return false;
                }
                let call = fs::read_to_string(thread.join("syscall")).unwrap_or_default();
                let read = descriptor_read(&call);
                let link = read.and_then(|number| {
                    fs::read_link(thread.join("fd").join(number.to_string())).ok()
                });
                if link.as_ref() == Some(&self.0) {
                    return true;
                }
            }
            left.extend(children(pid));
        }
        false
    }
}

/// The descriptor that a thread waits to read bytes from, by its `syscall` file: number, 6
/// arguments, stack pointer and program counter (proc_pid_syscall(5)).
fn descriptor_read(call: &str) -> Option<RawFd> {
    let mut words = call.split_ascii_whitespace();
    let number: c_long = words.next()?.parse().ok()?;
    let hexadecimal = |word: &str| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok();
    let values: Vec<u64> = words.map_while(hexadecimal).collect();
    let [descriptor, _, _, flags, _, _, stack, _] = values[..] else {
        return None;
    };
    // A 32-bit program numbers its calls otherwise, and has its stack in the lowest 4 GiB.
    if cfg!(target_pointer_width = "64") && u32::try_from(stack).is_ok() {
        return None;
    }
    let reads = match number {
        libc::SYS_read | libc::SYS_readv | libc::SYS_splice => true,
        // A consumer may wait by a peek, which drops nothing.
        libc::SYS_recvfrom => flags & libc::MSG_PEEK as u64 == 0,
        _ => false,
    };
    // The upper half of the register means nothing.
    reads.then_some(descriptor as RawFd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::getpid;
    use std::io::Write;
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::net::UnixStream;
    use std::process::{Child, Command};
    use std::time::{Duration, Instant};

    #[test]
    fn a_process_is_described_whatever_its_name_is() {
        let own = Stat::read(getpid()).unwrap();
        assert!(own.is_alive && own.start > 0);
        assert_eq!(own.parent, nix::unistd::getppid());
        assert_eq!(own.group, nix::unistd::getpgrp());
        assert_eq!(
            Stat::read(Pid::from_raw(i32::MAX)).map(|stat| stat.start),
            None
        );
    }

    fn line(number: c_long, arguments: [u64; 6], stack: u64) -> String {
        let arguments = arguments.map(|argument| format!("{argument:#x}")).join(" ");
        format!("{number} {arguments} {stack:#x} 0x7f0000001234\n")
    }

    #[test]
    fn calls_that_read_bytes_are_told_from_others() {
        const STACK: u64 = 0x7ffc_0000_0000;
        let read = |number, flags| descriptor_read(&line(number, [5, 1, 2, flags, 0, 0], STACK));
        assert_eq!(read(libc::SYS_read, 0), Some(5));
        assert_eq!(read(libc::SYS_readv, 0), Some(5));
        assert_eq!(
            read(libc::SYS_recvfrom, libc::MSG_CMSG_CLOEXEC as u64),
            Some(5)
        );
        assert_eq!(read(libc::SYS_recvfrom, libc::MSG_PEEK as u64), None);
        for other in [libc::SYS_recvmsg, libc::SYS_ppoll, libc::SYS_write] {
            assert_eq!(read(other, 0), None);
        }
        if cfg!(target_pointer_width = "64") {
            let narrow = line(libc::SYS_read, [5, 1, 2, 0, 0, 0], 0xffff_d000);
            assert_eq!(descriptor_read(&narrow), None);
        }
        for odd in [
            "",
            "running\n",
            "-1 0x7ffc00000000 0x7f0000001234\n",
            "0 0x0\n",
            "0 x\n",
        ] {
            assert_eq!(descriptor_read(odd), None, "{odd}");
        }
    }

    fn reader(script: &str, input: &UnixStream) -> Child {
        let input = OwnedFd::from(input.try_clone().unwrap());
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(input);
        command.spawn().unwrap()
    }

    /// Whether a process becomes a reader of the socket.
    fn becomes_a_reader(child: &Child, socket: &SocketLink) -> bool {
        let pid = Pid::from_raw(child.id() as i32);
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end {
            if socket.is_read_as_bytes_by(pid) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }

    #[test]
    fn a_socket_is_found_in_a_descendant_until_that_has_ended() {
        let (here, there) = UnixStream::pair().unwrap();
        let [one, other] = [&here, &there].map(|end| SocketLink::of(end.as_fd()).unwrap());
        // The shell waits for its child, which has it.
        let mut shell = reader("cat <&0 >/dev/null; :", &there);
        let pid = Pid::from_raw(shell.id() as i32);
        assert!(becomes_a_reader(&shell, &other));
        let since = Ticks(0);
        assert!(!other.is_closed_below(pid, since));
        assert!(one.is_closed_below(pid, since));
        // Who was there before is another's.
        assert!(other.is_closed_below(pid, Ticks(u64::MAX)));
        drop((here, there));
        shell.wait().unwrap();
        assert!(other.is_closed_below(pid, since));
    }

    #[test]
    fn a_reader_of_bytes_is_found_below_its_shell() {
        for script in ["read line", "cat >/dev/null; :"] {
            let (mut here, there) = UnixStream::pair().unwrap();
            let socket = SocketLink::of(there.as_fd()).unwrap();
            let mut child = reader(script, &there);
            assert!(becomes_a_reader(&child, &socket), "{script}");
            // Another socket at the same number is none of ours.
            let other = SocketLink::of(here.as_fd()).unwrap();
            assert!(!other.is_read_as_bytes_by(Pid::from_raw(child.id() as i32)));
            here.write_all(b"x\n").unwrap();
            drop(here);
            child.wait().unwrap();
            assert!(!socket.is_read_as_bytes_by(Pid::from_raw(child.id() as i32)));
        }
    }
}
