//! Names of Unix sockets: who owns them, with what permissions, who may be on the other side, and
//! what becomes of them.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::support::{
    self, Process, connect, connect_unix, descriptors, eventually, exchange, program, root, run,
    try_exchange, until,
};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use tempfile::TempDir;

/// Uids that no test runs as.
const NOBODY: u32 = 65534;
const SOMEBODY: u32 = 65533;

/// The programs that own a path, each in the way it does.
const OWNERS: [&str; 4] = ["listener", "fdaccept", "fdpool", "fdrecv"];

/// One of [`OWNERS`], with `path` as its name and `options` before everything else.
fn owner(kind: &str, path: impl AsRef<OsStr>, options: &[&str]) -> Command {
    let path = path.as_ref();
    let mut command = match kind {
        "listener" | "fdaccept" => program("fdaccept"),
        other => program(other),
    };
    command.args(options);
    match kind {
        // To a name that nobody has: what it accepts waits.
        "listener" => command
            .args(["--connect", "@fdtools-test-nobody"])
            .arg(path),
        "fdaccept" => command.arg("--bind").arg(path).arg("127.0.0.1:0"),
        "fdpool" => command.arg("--bind").arg(path).args(["1", "cat"]),
        _ => command.arg("--bind").arg(path).arg("cat"),
    };
    command
}

/// The name of the program that [`owner`] starts.
fn program_of(kind: &str) -> &str {
    match kind {
        "listener" => "fdaccept",
        other => other,
    }
}

/// Waits until `path` is there.
fn wait_for(path: &Path) {
    until("the path to be there", || path.symlink_metadata().is_ok());
}

/// Waits until a process does not simply die of a TERM any more.
fn wait_until_it_minds_signals(process: &Process) {
    until("TERM to be caught or blocked", || {
        let file = format!("/proc/{}/status", process.pid());
        let status = std::fs::read_to_string(file).unwrap();
        let masks = status.lines().filter_map(|line| {
            let mask = line
                .strip_prefix("SigCgt:")
                .or(line.strip_prefix("SigBlk:"));
            u64::from_str_radix(mask?.trim(), 16).ok()
        });
        masks.fold(0, |all, mask| all | mask) & (1 << (Signal::SIGTERM as u32 - 1)) != 0
    });
}

fn mode(path: &Path) -> u32 {
    mode_if_there(path).unwrap()
}

fn mode_if_there(path: &Path) -> Option<u32> {
    let meta = path.symlink_metadata().ok()?;
    Some(meta.permissions().mode() & 0o7777)
}

fn lock_of(path: &Path) -> PathBuf {
    let mut lock = OsString::from(path);
    lock.push(".lock");
    lock.into()
}

fn is_locked(path: &Path) -> bool {
    let lock = File::open(lock_of(path)).unwrap();
    Flock::lock(lock, FlockArg::LockExclusiveNonblock).is_err()
}

fn is_empty(dir: &TempDir) -> bool {
    dir.path().read_dir().unwrap().next().is_none()
}

/// A name in the abstract namespace that nobody else uses.
fn abstract_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("@fdtools-test-names-{}-{count}", std::process::id())
}

/// Whether a name in the abstract namespace is bound.
fn is_bound(name: &str) -> bool {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    sockets
        .lines()
        .any(|line| line.ends_with(&format!(" {name}")))
}

/// A directory that every user can look into.
fn open_dir() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let everybody = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(dir.path(), everybody).unwrap();
    dir
}

/// One of the programs, to be run by another user. The build directory may be closed to it, so
/// `dir` gets a copy.
fn by(uid: u32, dir: &TempDir, name: &str) -> Command {
    let copy = dir.path().join(name);
    if !copy.exists() {
        // Another process writes it, as in support::executable.
        let original = support::bin_dir().join(name);
        let copied = Command::new("cp").arg(original).arg(&copy).status();
        assert!(copied.unwrap().success());
    }
    let mut command = Command::new(copy);
    command.uid(uid).gid(uid).current_dir("/");
    command.stdin(Stdio::null());
    command
}

#[test]
fn only_the_owner_may_use_a_path_unless_told_otherwise() {
    for kind in OWNERS {
        for (options, expected) in [
            (&[][..], 0o600),
            (&["--mode", "660"], 0o660),
            (&["--mode", "777"], 0o777),
            (&["--mode", "0"], 0),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("s");
            let _owner = Process::start(&mut owner(kind, &path, options));
            wait_for(&path);
            assert_eq!(mode(&path), expected, "{kind} {options:?}");
        }
    }
}

#[test]
fn a_path_has_its_mode_from_the_first_instant_whatever_the_umask() {
    for umask in ["0", "077", "777"] {
        for kind in OWNERS {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("s");
            let inner = owner(kind, &path, &["--mode", "640"]);
            let mut command = Command::new("sh");
            let script = format!("umask {umask}; exec \"$@\"");
            command.args(["-c", &script, "sh"]);
            command.arg(inner.get_program()).args(inner.get_args());
            command.stdin(Stdio::null());
            let _owner = std::thread::scope(|scope| {
                let watcher = scope.spawn(|| {
                    let first = eventually_at_once(|| path.symlink_metadata().ok());
                    first.permissions().mode() & 0o7777
                });
                let owner = Process::start(&mut command);
                assert_eq!(watcher.join().unwrap(), 0o640, "{kind}, umask {umask}");
                owner
            });
            assert_eq!(mode(&path), 0o640, "{kind}, umask {umask}");
        }
    }
}

/// As support::eventually, but looking so often that a first instant is seen.
fn eventually_at_once<T>(mut probe: impl FnMut() -> Option<T>) -> T {
    eventually("the path to be there", || (0..500).find_map(|_| probe()))
}

#[test]
fn the_owner_of_a_path_holds_its_lock() {
    for kind in OWNERS {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let mut owner = Process::start(&mut owner(kind, &path, &[]));
        wait_for(&path);
        assert!(is_locked(&path), "{kind}");
        assert_eq!(mode(&lock_of(&path)), 0o600, "{kind}");
        owner.signal_group(Signal::SIGKILL);
        owner.wait();
        assert!(path.exists(), "{kind}");
        // A slot may hold it a moment longer.
        until("the lock to be free", || !is_locked(&path));
    }
}

#[test]
fn a_handler_does_not_hold_the_lock_of_its_pool() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let mut pool = Process::start(program("fdpool").arg("--bind").arg(&path).args([
        "1",
        "sh",
        "-c",
        "ls -l /proc/self/fd/; exec cat",
    ]));
    wait_for(&path);
    let mut acceptor = Process::start(
        program("fdaccept")
            .arg("--connect")
            .arg(&path)
            .arg("127.0.0.1:0"),
    );
    let mut client = connect(acceptor.port());
    let mut first = [0; 1];
    client.read_exact(&mut first).unwrap();
    // The handler lives on, and the pool does not.
    pool.signal(Signal::SIGKILL);
    pool.wait();
    until("the lock to be free", || !is_locked(&path));
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut rest = String::new();
    client.read_to_string(&mut rest).unwrap();
    assert!(!rest.contains(".lock"), "{rest}");
}

#[test]
fn a_socket_whose_owner_was_killed_is_replaced() {
    for kind in OWNERS {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let mut first = Process::start(&mut owner(kind, &path, &[]));
        wait_for(&path);
        first.signal_group(Signal::SIGKILL);
        first.wait();
        assert!(path.exists(), "{kind}");
        until("the lock to be free", || !is_locked(&path));
        let mut second = Process::start(&mut owner(kind, &path, &["--mode", "644"]));
        // Between the old one and the new one there is none for an instant.
        until("the new socket", || mode_if_there(&path) == Some(0o644));
        assert!(second.is_running(), "{}", second.log());
    }
}

#[test]
fn a_consumer_finds_the_fdaccept_that_replaced_a_killed_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let mut first = Process::start(&mut owner("fdaccept", &path, &[]));
    let mut fdpool = program("fdpool");
    fdpool.arg("--connect").arg(&path).args(["1", "cat"]);
    let _pool = Process::start(&mut fdpool);
    assert_eq!(exchange(first.port(), b"one"), b"one");
    first.signal(Signal::SIGKILL);
    first.wait();
    let mut second = Process::start(&mut owner("fdaccept", &path, &[]));
    assert_eq!(exchange(second.port(), b"two"), b"two");
}

/// Expects that `kind` cannot have `path`, says so in these words, and ends.
#[track_caller]
fn cannot_have(kind: &str, path: &Path, status: i32, cause: &str) {
    let (code, _, log) = run(&mut owner(kind, path, &[]));
    let program = program_of(kind);
    let expected = format!("{program}: cannot bind {}: {cause}", path.display());
    assert_eq!(log.lines().next(), Some(&*expected), "{kind}: {log}");
    assert_eq!(code, Some(status), "{kind}: {log}");
}

#[test]
fn a_path_that_another_one_owns_is_in_use() {
    for first in OWNERS {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let mut process = Process::start(&mut owner(first, &path, &[]));
        wait_for(&path);
        for second in OWNERS {
            cannot_have(second, &path, 1, "Address already in use");
        }
        assert!(process.is_running());
        assert!(path.exists() && is_locked(&path));
    }
}

#[test]
fn an_owner_whose_path_another_one_wants_goes_on_serving() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let mut acceptor = Process::start(&mut owner("fdaccept", &path, &[]));
    let port = acceptor.port();
    cannot_have("fdaccept", &path, 1, "Address already in use");
    let mut fdrecv = program("fdrecv");
    fdrecv.arg("--connect").arg(&path).arg("cat");
    let mut consumer = Process::start(&mut fdrecv);
    assert_eq!(exchange(port, b"served"), b"served");
    assert!(consumer.wait().success());
}

#[test]
fn a_socket_of_another_programs_is_in_use() {
    for kind in OWNERS {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        cannot_have(kind, &path, 1, "Address already in use");
        // It still is theirs, and nobody knocked at it.
        listener.set_nonblocking(true).unwrap();
        let nobody = listener.accept().unwrap_err();
        assert_eq!(nobody.kind(), std::io::ErrorKind::WouldBlock);
        drop(connect_unix(&path));
        std::fs::remove_file(&path).unwrap();

        let receiver = UnixDatagram::bind(&path).unwrap();
        cannot_have(kind, &path, 1, "Address already in use");
        receiver.set_nonblocking(true).unwrap();
        let nothing = receiver.recv(&mut [0; 9]).unwrap_err();
        assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
        assert!(path.exists());
        assert!(!lock_of(&path).exists());
    }
}

#[test]
fn a_file_that_is_no_socket_survives() {
    for kind in OWNERS {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let no_socket = format!("{} exists and is not a socket", path.display());
        std::fs::write(&path, "precious").unwrap();
        cannot_have(kind, &path, 2, &no_socket);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        std::fs::remove_file(&path).unwrap();

        std::fs::create_dir(&path).unwrap();
        cannot_have(kind, &path, 2, &no_socket);
        std::fs::remove_dir(&path).unwrap();

        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        cannot_have(kind, &path, 2, &no_socket);
        std::fs::remove_file(&path).unwrap();

        let target = dir.path().join("target");
        std::os::unix::fs::symlink(&target, &path).unwrap();
        cannot_have(kind, &path, 2, &no_socket);
        assert!(!target.exists());
        std::fs::remove_file(&path).unwrap();
        assert!(is_empty(&dir), "{kind}");
    }
}

#[test]
fn a_lock_that_is_no_plain_file_is_not_touched() {
    for kind in OWNERS {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let target = dir.path().join("target");
        std::fs::write(&target, "precious").unwrap();
        std::os::unix::fs::symlink(&target, lock_of(&path)).unwrap();
        let (status, _, log) = run(&mut owner(kind, &path, &[]));
        assert_eq!(status, Some(2), "{log}");
        let first = format!("{}: cannot bind {}: ", program_of(kind), path.display());
        assert!(log.starts_with(&first), "{log}");
        assert!(log.contains("is a symbolic link"), "{log}");
        assert_eq!(std::fs::read(&target).unwrap(), b"precious");
    }
}

#[test]
fn a_directory_that_is_not_there_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("no").join("s");
    for kind in OWNERS {
        cannot_have(kind, &path, 1, "No such file or directory");
    }
}

/// Starts two owners of one path at once, 100 times.
fn race(kind: &str) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    for round in 0..100 {
        let mut two = [(); 2].map(|()| Process::start(&mut owner(kind, &path, &[])));
        let loser = eventually("one to give up", || {
            two.iter_mut().position(|process| !process.is_running())
        });
        let (status, log) = two[loser].finish();
        let in_use = format!(
            "fdaccept: cannot bind {}: Address already in use",
            path.display()
        );
        assert_eq!((status.code(), log), (Some(1), in_use), "round {round}");
        let winner = &mut two[1 - loser];
        winner.listening();
        assert!(winner.is_running());
        assert!(is_locked(&path));
        // What a killed one leaves behind is there for the next two to fight about.
        let signal = match round % 2 {
            0 => Signal::SIGKILL,
            _ => Signal::SIGTERM,
        };
        winner.signal(signal);
        winner.wait();
    }
}

#[test]
fn of_two_that_listen_on_a_path_at_once_exactly_one_gets_it() {
    race("listener");
}

#[test]
fn of_two_that_bind_a_queue_at_once_exactly_one_gets_it() {
    race("fdaccept");
}

#[test]
fn a_path_and_its_lock_are_gone_when_the_owner_ends() {
    for kind in OWNERS {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("s");
            let mut owner = Process::start(&mut owner(kind, &path, &[]));
            wait_for(&path);
            wait_until_it_minds_signals(&owner);
            if program_of(kind) == "fdaccept" {
                owner.listening();
            }
            owner.signal(signal);
            owner.wait();
            assert!(is_empty(&dir), "{kind} {signal}");
        }
    }
}

#[test]
fn fdrecv_gives_its_path_up_before_it_becomes_the_command() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let consumer = Process::start(&mut owner("fdrecv", &path, &[]));
    wait_for(&path);
    let mut fdaccept = program("fdaccept");
    fdaccept.arg("--connect").arg(&path).arg("127.0.0.1:0");
    let mut acceptor = Process::start(&mut fdaccept);
    let mut client = connect(acceptor.port());
    client.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
    assert!(is_empty(&dir));
    let open = descriptors(consumer.pid());
    assert_eq!(open.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn a_path_that_somebody_else_took_meanwhile_stays() {
    for kind in OWNERS {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let mut owner = Process::start(&mut owner(kind, &path, &[]));
        wait_for(&path);
        wait_until_it_minds_signals(&owner);
        if program_of(kind) == "fdaccept" {
            owner.listening();
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "new").unwrap();
        owner.signal_group(Signal::SIGTERM);
        owner.wait();
        assert_eq!(std::fs::read(&path).unwrap(), b"new", "{kind}");
        assert!(!lock_of(&path).exists(), "{kind}");
    }
}

#[test]
fn a_relative_path_is_meant_from_where_the_program_was_started() {
    for kind in OWNERS {
        let dir = tempfile::tempdir().unwrap();
        let mut command = owner(kind, "./s", &[]);
        let mut owner = Process::start(command.current_dir(dir.path()));
        wait_for(&dir.path().join("s"));
        wait_until_it_minds_signals(&owner);
        if program_of(kind) == "fdaccept" {
            owner.listening();
        }
        owner.signal_group(Signal::SIGTERM);
        owner.wait();
        assert!(is_empty(&dir), "{kind}");
    }
}

/// A path of `length` bytes in `dir`.
fn long_path(dir: &TempDir, length: usize) -> PathBuf {
    let used = dir.path().as_os_str().len() + 1;
    dir.path().join("x".repeat(length - used))
}

#[test]
fn a_path_may_have_107_bytes() {
    for kind in OWNERS {
        let dir = tempfile::tempdir().unwrap();
        let path = long_path(&dir, 107);
        let _owner = Process::start(&mut owner(kind, &path, &[]));
        wait_for(&path);
        assert!(is_locked(&path));
    }
}

#[test]
fn a_name_that_is_too_long_is_a_usage_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = long_path(&dir, 108).into_os_string().into_string().unwrap();
    let name = format!("@{}", "x".repeat(108));
    for text in [&path, &name] {
        for kind in OWNERS {
            let (status, _, log) = run(&mut owner(kind, text, &[]));
            assert_eq!(status, Some(2), "{log}");
            assert!(log.contains("has 108 bytes"), "{kind}: {log}");
            assert!(log.starts_with(program_of(kind)), "{log}");
        }
        for command in [
            program("fdaccept").args(["--connect", text, "127.0.0.1:0"]),
            program("fdrecv").args(["--connect", text, "cat"]),
            program("fdpool").args(["--connect", text, "1", "cat"]),
        ] {
            let (status, _, log) = run(command);
            assert_eq!(status, Some(2), "{log}");
            assert!(log.contains("has 108 bytes"), "{log}");
        }
    }
    assert!(is_empty(&dir));
}

#[test]
fn a_path_need_not_be_utf8() {
    for odd in [&b"s\xff\xfe"[..], b"a b", b"s\n", b"'\"$(x)"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(OsStr::from_bytes(odd));
        let mut acceptor = Process::start(&mut owner("fdaccept", &path, &[]));
        let mut fdrecv = program("fdrecv");
        fdrecv.arg("--connect").arg(&path).arg("cat");
        let port = acceptor.port();
        let mut consumer = Process::start(&mut fdrecv);
        assert_eq!(exchange(port, b"odd"), b"odd");
        assert!(consumer.wait().success());
        acceptor.signal(Signal::SIGTERM);
        acceptor.wait();
        assert!(is_empty(&dir));
    }
}

#[test]
fn a_listener_at_a_path_that_is_not_utf8_serves() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(OsStr::from_bytes(b"s\xff"));
    let mut fdaccept = program("fdaccept");
    fdaccept
        .arg(&path)
        .arg("--")
        .arg(support::bin_dir().join("fdpool"));
    fdaccept.args(["1", "sh", "-c", "printf %s \"$IPCLOCALPATH\""]);
    let mut process = Process::start(&mut fdaccept);
    process.listening();
    let mut answer = Vec::new();
    connect_unix(&path).read_to_end(&mut answer).unwrap();
    assert_eq!(answer, path.as_os_str().as_bytes());
}

#[test]
fn a_name_in_a_message_has_no_control_characters() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("no").join("\x1b[31mred\n");
    for kind in ["fdaccept", "fdpool", "fdrecv"] {
        let (_, _, log) = run(&mut owner(kind, &path, &[]));
        assert!(log.contains("\\u{1b}[31mred\\n"), "{log}");
        assert_eq!(log.lines().count(), 1, "{log}");
        assert!(!log.contains('\x1b'));
    }
}

#[test]
fn a_path_that_may_not_be_used_is_an_error() {
    if !root() {
        return;
    }
    let dir = open_dir();
    let path = dir.path().join("s");
    let mut acceptor = Process::start(&mut owner("fdaccept", &path, &[]));
    acceptor.listening();
    let expected = format!("cannot connect to {}: Permission denied", path.display());
    for (name, arguments) in [("fdrecv", &["cat"][..]), ("fdpool", &["1", "cat"])] {
        let mut consumer = by(NOBODY, &dir, name);
        let (status, _, log) = run(consumer.arg("--connect").arg(&path).args(arguments));
        assert_eq!((status, log), (Some(1), format!("{name}: {expected}")));
    }
    acceptor.signal(Signal::SIGTERM);
    acceptor.wait();
    // The mode is what decides.
    let mut acceptor = Process::start(&mut owner("fdaccept", &path, &["--mode", "666"]));
    let port = acceptor.port();
    let mut fdrecv = by(NOBODY, &dir, "fdrecv");
    let mut consumer = Process::start(fdrecv.arg("--connect").arg(&path).arg("cat"));
    assert_eq!(exchange(port, b"allowed"), b"allowed");
    assert!(consumer.wait().success());
}

#[test]
fn a_receiver_at_a_path_that_may_not_be_used_is_an_error() {
    if !root() {
        return;
    }
    let dir = open_dir();
    let path = dir.path().join("s");
    let _pool = Process::start(&mut owner("fdpool", &path, &[]));
    wait_for(&path);
    let mut fdaccept = by(NOBODY, &dir, "fdaccept");
    // At once, while there is no client to lose.
    let (status, _, log) = run(fdaccept.arg("--connect").arg(&path).arg("127.0.0.1:0"));
    let expected = format!("cannot connect to {}: Permission denied", path.display());
    assert_eq!((status, log), (Some(1), format!("fdaccept: {expected}")));
}

#[test]
fn a_directory_that_may_not_be_written_is_an_error() {
    if !root() {
        return;
    }
    let dir = open_dir();
    let path = dir.path().join("s");
    for (name, arguments) in [
        ("fdaccept", &["127.0.0.1:0"][..]),
        ("fdrecv", &["cat"]),
        ("fdpool", &["1", "cat"]),
    ] {
        let mut owner = by(NOBODY, &dir, name);
        let (status, _, log) = run(owner.arg("--bind").arg(&path).args(arguments));
        assert_eq!(status, Some(1), "{log}");
        assert!(log.starts_with(&format!("{name}: cannot ")), "{log}");
        assert!(log.contains(path.to_str().unwrap()), "{log}");
        assert!(log.ends_with(": Permission denied"), "{log}");
    }
}

#[test]
fn an_abstract_name_has_one_owner() {
    // The kernel has a namespace for each type of socket, so only the same type collides.
    for (kind, others) in [
        ("listener", &["listener"][..]),
        ("fdaccept", &["fdaccept"]),
        ("fdpool", &["fdpool", "fdrecv"]),
        ("fdrecv", &["fdpool", "fdrecv"]),
    ] {
        let name = abstract_name();
        let _first = Process::start(&mut owner(kind, &name, &[]));
        until("the name", || is_bound(&name));
        for second in others {
            cannot_have(second, Path::new(&name), 1, "Address already in use");
        }
    }
}

/// `fdaccept --bind @n`, and a consumer by another uid.
fn fdaccept_owns(options: &[&str]) -> (Process, Process, u16, TempDir) {
    let (dir, name) = (open_dir(), abstract_name());
    let mut acceptor = Process::start(&mut owner("fdaccept", &name, options));
    let port = acceptor.port();
    let mut fdrecv = by(NOBODY, &dir, "fdrecv");
    let consumer = Process::start(fdrecv.args(["--connect", &name, "cat"]));
    (acceptor, consumer, port, dir)
}

#[test]
fn fdaccept_refuses_a_consumer_of_another_uid_at_an_abstract_name() {
    if !root() {
        return;
    }
    let (mut acceptor, mut consumer, ..) = fdaccept_owns(&[]);
    let line = acceptor.line("a consumer was refused");
    assert!(line.contains("uid 65534, which is not trusted"), "{line}");
    let (status, log) = consumer.finish();
    assert_eq!(status.code(), Some(69), "{log}");
    assert!(log.starts_with("fdrecv: "), "{log}");
    assert!(acceptor.is_running());
}

#[test]
fn fdaccept_serves_a_consumer_of_an_allowed_uid_at_an_abstract_name() {
    if !root() {
        return;
    }
    let (_acceptor, mut consumer, port, _dir) = fdaccept_owns(&["--allow-uid", "65534"]);
    assert_eq!(exchange(port, b"allowed"), b"allowed");
    assert!(consumer.wait().success());
}

/// `fdaccept --bind @n` by another uid, and that name.
fn foreign_fdaccept() -> (Process, u16, String, TempDir) {
    let (dir, name) = (open_dir(), abstract_name());
    let mut fdaccept = by(NOBODY, &dir, "fdaccept");
    let mut acceptor = Process::start(fdaccept.args(["--bind", &name, "127.0.0.1:0"]));
    let port = acceptor.port();
    (acceptor, port, name, dir)
}

#[test]
fn a_consumer_refuses_an_fdaccept_of_another_uid_at_an_abstract_name() {
    if !root() {
        return;
    }
    let (_acceptor, port, name, _dir) = foreign_fdaccept();
    let refused = "belongs to uid 65534, which is not trusted (--allow-uid 65534 would)";
    let (status, _, log) = run(program("fdrecv").args(["--connect", &name, "cat"]));
    assert_eq!(
        (status, log),
        (Some(1), format!("fdrecv: {name} {refused}"))
    );
    let mut fdpool = program("fdpool");
    let mut pool = Process::start(fdpool.args(["--connect", &name, "1", "cat"]));
    // It may be somebody else's name the next time.
    assert_eq!(
        pool.line(&name),
        format!("fdpool: {name} {refused}; waiting")
    );
    let mut client = connect(port);
    client.set_nonblocking(true).unwrap();
    assert_eq!(support::children(pool.pid()), []);
    let nothing = client.read(&mut [0]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn a_consumer_trusts_an_fdaccept_of_an_allowed_uid_at_an_abstract_name() {
    if !root() {
        return;
    }
    let (_acceptor, port, name, _dir) = foreign_fdaccept();
    let options = ["--allow-uid", "65534", "--connect", &name];
    let _pool = Process::start(program("fdpool").args(options).args(["1", "cat"]));
    assert_eq!(exchange(port, b"allowed"), b"allowed");
}

/// `fdpool --bind @n`, and `fdaccept --connect @n` by another uid.
fn foreign_sender(options: &[&str]) -> (Process, Process, u16, TempDir) {
    let (dir, name) = (open_dir(), abstract_name());
    let pool = Process::start(&mut owner("fdpool", &name, options));
    until("the name", || is_bound(&name));
    let mut fdaccept = by(NOBODY, &dir, "fdaccept");
    let mut sender = Process::start(fdaccept.args(["--connect", &name, "127.0.0.1:0"]));
    let port = sender.port();
    (pool, sender, port, dir)
}

#[test]
fn fdpool_refuses_a_sender_of_another_uid_at_an_abstract_name() {
    if !root() {
        return;
    }
    let (mut pool, _sender, port, _dir) = foreign_sender(&[]);
    let answer = try_exchange(port, b"refused").unwrap_or_default();
    assert_eq!(answer, b"");
    let line = pool.line("65534");
    let refused = "a message came from uid 65534, which may not send to this name";
    assert_eq!(line, format!("fdpool: {refused}"));
    assert!(pool.is_running());
}

#[test]
fn fdpool_serves_a_sender_of_an_allowed_uid_at_an_abstract_name() {
    if !root() {
        return;
    }
    let (_pool, _sender, port, _dir) = foreign_sender(&["--allow-uid", "65534"]);
    assert_eq!(exchange(port, b"allowed"), b"allowed");
}

/// `fdpool --bind @n` by another uid, and `fdaccept --connect @n`.
fn foreign_receiver(options: &[&str]) -> (Process, Process, u16, TempDir) {
    let (dir, name) = (open_dir(), abstract_name());
    let mut fdpool = by(NOBODY, &dir, "fdpool");
    let pool = Process::start(fdpool.args(["--bind", &name, "1", "cat"]));
    until("the name", || is_bound(&name));
    let mut fdaccept = program("fdaccept");
    fdaccept
        .args(options)
        .args(["--connect", &name, "127.0.0.1:0"]);
    let mut sender = Process::start(&mut fdaccept);
    let port = sender.port();
    (pool, sender, port, dir)
}

#[test]
fn fdaccept_sends_nothing_to_a_receiver_of_another_uid_at_an_abstract_name() {
    if !root() {
        return;
    }
    let (_pool, mut sender, port, _dir) = foreign_receiver(&[]);
    let mut client = connect(port);
    let line = sender.line("which is not trusted");
    assert!(line.ends_with("; connections wait"), "{line}");
    // The connection is in hand, and neither served nor dropped.
    client.set_nonblocking(true).unwrap();
    let nothing = client.read(&mut [0]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    assert!(sender.is_running());
}

#[test]
fn fdaccept_sends_to_a_receiver_of_an_allowed_uid_at_an_abstract_name() {
    if !root() {
        return;
    }
    let (_pool, _sender, port, _dir) = foreign_receiver(&["--allow-uid", "65534"]);
    assert_eq!(exchange(port, b"allowed"), b"allowed");
}

#[test]
fn two_users_of_whom_none_is_root_do_not_trust_each_other() {
    if !root() {
        return;
    }
    let (mut acceptor, _port, name, dir) = foreign_fdaccept();
    let mut fdrecv = by(SOMEBODY, &dir, "fdrecv");
    let (status, _, log) = run(fdrecv.args(["--connect", &name, "cat"]));
    assert_eq!(status, Some(1), "{log}");
    assert!(log.contains("belongs to uid 65534"), "{log}");
    // Trust of the consumer's alone is not enough.
    let mut fdrecv = by(SOMEBODY, &dir, "fdrecv");
    let trusting = ["--allow-uid", "65534", "--connect", &name, "cat"];
    let (status, _, log) = run(fdrecv.args(trusting));
    assert_eq!(status, Some(69), "{log}");
    acceptor.line("uid 65533, which is not trusted");
}

#[test]
fn an_allowed_uid_gets_no_path_that_its_mode_denies() {
    if !root() {
        return;
    }
    let dir = open_dir();
    let path = dir.path().join("s");
    let mut acceptor = Process::start(&mut owner("fdaccept", &path, &["--allow-uid", "65534"]));
    acceptor.listening();
    let mut fdrecv = by(NOBODY, &dir, "fdrecv");
    let (status, _, log) = run(fdrecv.arg("--connect").arg(&path).arg("cat"));
    assert_eq!(status, Some(1), "{log}");
    assert!(log.ends_with("Permission denied"), "{log}");
}
