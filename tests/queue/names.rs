//! Names of Unix sockets: who owns them, with what permissions, who may be on the other side, and
//! what becomes of them.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::Command;

use crate::support::*;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

/// The programs that own a path, each in the way it does.
const OWNERS: [&str; 4] = ["listener", "fdaccept", "fdpool", "fdrecv"];

/// The programs, with what they need besides `--bind` or `--connect`.
const PROGRAMS: [(&str, &[&str]); 3] = [
    ("fdaccept", &[ADDRESS]),
    ("fdpool", &["1", "cat"]),
    ("fdrecv", &["cat"]),
];

const IN_USE: &str = "Address already in use";

/// A path that vanishes with its directory.
fn a_path() -> (Names, String) {
    let names = Names::new();
    let path = names.path();
    (names, path)
}

/// One of [`OWNERS`], with `path` as its name and `options` before everything else.
fn owner(kind: &str, path: impl AsRef<OsStr>, options: &[&str]) -> Command {
    let mut command = program(program_of(kind));
    command.args(options);
    if kind == "listener" {
        // To a name that nobody has: what it accepts waits.
        let connect = ["--connect", "@fdtools-test-nobody"];
        command.args(connect).arg(path);
        return command;
    }
    let (_, rest) = PROGRAMS.iter().find(|(name, _)| *name == kind).unwrap();
    command.arg("--bind").arg(path).args(*rest);
    command
}

/// The name of the program that [`owner`] starts.
fn program_of(kind: &str) -> &str {
    match kind {
        "listener" => "fdaccept",
        other => other,
    }
}

/// Starts an owner of `path`, and waits until the path is there.
#[track_caller]
fn start(kind: &str, path: impl AsRef<Path>, options: &[&str]) -> Process {
    let path = path.as_ref();
    let process = owner(kind, path, options).start();
    until("the path to be there", || mode_if_there(path).is_some());
    process
}

/// Waits until an owner does not simply die of a signal any more.
#[track_caller]
fn until_it_minds_signals(kind: &str, owner: &mut Process) {
    until("TERM to be caught or blocked", || {
        let minds = |set| has_signal(owner.pid(), set, Signal::SIGTERM);
        minds("SigCgt") || minds("SigBlk")
    });
    if program_of(kind) == "fdaccept" {
        owner.listening();
    }
}

/// KILL for an owner and its slots. The path stays.
#[track_caller]
fn kill_group(owner: &mut Process, path: &str) {
    owner.signal_group(Signal::SIGKILL);
    owner.wait();
    assert!(Path::new(path).exists());
    // A slot may have the lock and the socket a moment longer.
    until("the lock to be free", || !is_locked(path));
    until("the socket to be nobody's", || {
        let knock = UnixDatagram::unbound().unwrap().connect(path);
        knock.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    });
}

fn mode(path: impl AsRef<Path>) -> u32 {
    mode_if_there(path).unwrap()
}

fn mode_if_there(path: impl AsRef<Path>) -> Option<u32> {
    let meta = path.as_ref().symlink_metadata().ok()?;
    Some(meta.permissions().mode() & 0o7777)
}

fn is_locked(path: impl AsRef<Path>) -> bool {
    let lock = File::open(lock_of(path)).unwrap();
    Flock::lock(lock, FlockArg::LockExclusiveNonblock).is_err()
}

/// Waits until a name in the abstract namespace is bound.
#[track_caller]
fn until_bound(name: &str) {
    until("the name", || {
        // Others may have names that are not UTF-8.
        let sockets = std::fs::read("/proc/net/unix").unwrap();
        let end = format!(" {name}");
        let mut lines = sockets.split(|byte| *byte == b'\n');
        lines.any(|line| line.ends_with(end.as_bytes()))
    });
}

/// Expects that `kind` cannot have `path`, says so in these words, and ends.
#[track_caller]
fn cannot_have(kind: &str, path: &str, status: i32, cause: &str) {
    let log = owner(kind, path, &[]).start().expect_end(status);
    let program = program_of(kind);
    let expected = format!("{program}: cannot bind {path}: {cause}");
    assert_eq!(log.lines().next(), Some(&*expected), "{kind}: {log}");
}

// Modes and locks.

#[test]
fn only_the_owner_may_use_a_path_unless_told_otherwise() {
    for kind in OWNERS {
        for (options, expected) in [
            (&[][..], 0o600),
            (&["--mode", "660"], 0o660),
            (&["--mode", "777"], 0o777),
            (&["--mode", "0"], 0),
        ] {
            let names = Names::new();
            let _owner = start(kind, names.path(), options);
            assert_eq!(mode(names.path()), expected, "{kind} {options:?}");
        }
    }
}

#[test]
fn a_path_has_its_mode_from_the_first_instant_whatever_the_umask() {
    for umask in ["0", "077", "777"] {
        for kind in OWNERS {
            let names = Names::new();
            let path = &names.path();
            let inner = owner(kind, path, &["--mode", "640"]);
            let mut command = sh(&format!("umask {umask}; exec \"$@\""));
            command.arg("sh").arg(inner.get_program());
            command.args(inner.get_args());
            std::thread::scope(|scope| {
                // It looks so often that it sees the first instant.
                let watcher = scope.spawn(|| {
                    eventually("the path to be there", || {
                        (0..500).find_map(|_| mode_if_there(path))
                    })
                });
                let _owner = command.start();
                assert_eq!(watcher.join().unwrap(), 0o640, "{kind}, umask {umask}");
                assert_eq!(mode(path), 0o640, "{kind}, umask {umask}");
            });
        }
    }
}

#[test]
fn the_owner_of_a_path_holds_its_lock() {
    for kind in OWNERS {
        let (_names, path) = &a_path();
        let mut owner = start(kind, path, &[]);
        assert!(is_locked(path), "{kind}");
        assert_eq!(mode(lock_of(path)), 0o600, "{kind}");
        kill_group(&mut owner, path);
    }
}

#[test]
fn a_handler_does_not_hold_the_lock_of_its_pool() {
    let (_names, path) = &a_path();
    let handler = sh_c("ls -l /proc/self/fd/; exec cat");
    let mut pool = Pool::bound_at(path).slots(1, handler).start();
    let acceptor = Fdaccept::plain().args(["--connect", path]).start();
    let client = acceptor.client();
    client.line();
    // The handler lives on, and the pool does not.
    pool.slay();
    until("the lock to be free", || !is_locked(path));
    client.end();
    let rest = client.rest();
    assert!(!rest.contains(".lock"), "{rest}");
}

// Who has a path, and who wants it.

#[test]
fn a_socket_whose_owner_was_killed_is_replaced() {
    for kind in OWNERS {
        let (_names, path) = &a_path();
        kill_group(&mut start(kind, path, &[]), path);
        let mut second = owner(kind, path, &["--mode", "644"]).start();
        // Between the old one and the new one there is none for an instant.
        until("the new socket", || mode_if_there(path) == Some(0o644));
        assert!(second.is_running(), "{}", second.log());
    }
}

#[test]
fn a_path_that_another_one_owns_is_in_use() {
    for first in OWNERS {
        let (_names, path) = &a_path();
        let mut process = start(first, path, &[]);
        for second in OWNERS {
            cannot_have(second, path, 1, IN_USE);
        }
        assert!(process.is_running());
        assert!(Path::new(path).exists() && is_locked(path));
    }
}

#[test]
fn an_owner_whose_path_another_one_wants_goes_on_serving() {
    let acceptor = Fdaccept::bound().start();
    cannot_have("fdaccept", acceptor.name(), 1, IN_USE);
    let mut consumer = fdrecv_on(&acceptor).arg("cat").start();
    assert_eq!(exchange(acceptor.port, b"served"), b"served");
    consumer.expect_exit(0);
}

#[test]
fn a_socket_of_another_programs_is_in_use() {
    for kind in OWNERS {
        let (_names, path) = &a_path();
        let listener = UnixListener::bind(path).unwrap();
        cannot_have(kind, path, 1, IN_USE);
        // It still is theirs, and nobody knocked at it.
        listener.set_nonblocking(true).unwrap();
        let nobody = listener.accept().unwrap_err();
        assert_eq!(nobody.kind(), ErrorKind::WouldBlock);
        drop(connect_unix(path));
        std::fs::remove_file(path).unwrap();

        let receiver = UnixDatagram::bind(path).unwrap();
        cannot_have(kind, path, 1, IN_USE);
        receiver.set_nonblocking(true).unwrap();
        let nothing = receiver.recv(&mut [0; 9]).unwrap_err();
        assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
        assert!(Path::new(path).exists());
        assert!(!lock_of(path).exists());
    }
}

#[test]
fn a_file_that_is_no_socket_survives() {
    for kind in OWNERS {
        let (names, path) = &a_path();
        let cannot_have = || {
            let cause = format!("{path} exists and is not a socket");
            cannot_have(kind, path, 2, &cause);
        };
        std::fs::write(path, "precious").unwrap();
        cannot_have();
        assert_eq!(std::fs::read(path).unwrap(), b"precious");
        std::fs::remove_file(path).unwrap();

        std::fs::create_dir(path).unwrap();
        cannot_have();
        std::fs::remove_dir(path).unwrap();

        mkfifo(&**path, Mode::S_IRWXU).unwrap();
        cannot_have();
        std::fs::remove_file(path).unwrap();

        let target = names.file("target");
        symlink(&target, path).unwrap();
        cannot_have();
        assert!(!target.exists());
        std::fs::remove_file(path).unwrap();
        assert!(names.is_empty(), "{kind}");
    }
}

#[test]
fn a_lock_that_is_no_plain_file_is_not_touched() {
    for kind in OWNERS {
        let names = Names::new();
        let (path, target) = (&names.path(), names.file("target"));
        std::fs::write(&target, "precious").unwrap();
        symlink(&target, lock_of(path)).unwrap();
        let log = owner(kind, path, &[]).start().expect_end(2);
        let first = format!("{}: cannot bind {path}: ", program_of(kind));
        assert!(log.starts_with(&first), "{log}");
        assert!(log.contains("is a symbolic link"), "{log}");
        assert_eq!(std::fs::read(&target).unwrap(), b"precious");
    }
}

#[test]
fn a_file_of_somebody_elses_is_no_lock() {
    for kind in OWNERS {
        let names = Names::new();
        let (path, other) = (names.path(), names.file("other"));
        let lock = lock_of(&path);
        let is_refused = |what: &str| {
            let log = owner(kind, &path, &[]).start().expect_end(2);
            let shown = lock.to_str().unwrap();
            let expected = format!("cannot bind {path}: {shown} {what}; ");
            assert!(log.contains(&expected), "{kind}: {log}");
        };
        std::fs::write(&lock, "precious").unwrap();
        is_refused("is not empty");
        assert_eq!(std::fs::read(&lock).unwrap(), b"precious");
        std::fs::write(&lock, "").unwrap();
        std::fs::hard_link(&lock, &other).unwrap();
        is_refused("has another name");
        assert!(lock.exists() && other.exists());
        // One that an owner left is replaced.
        std::fs::remove_file(&other).unwrap();
        let _owner = start(kind, &path, &[]);
        assert!(is_locked(&path), "{kind}");
    }
}

#[test]
fn a_directory_that_is_not_there_is_an_error() {
    let names = Names::new();
    for kind in OWNERS {
        cannot_have(kind, &names.text("no/s"), 1, "No such file or directory");
    }
}

/// Starts two owners of one path at once, 100 times.
fn race(kind: &str) {
    let (_names, path) = &a_path();
    for round in 0..100 {
        let mut two = [(); 2].map(|()| owner(kind, path, &[]).start());
        let loser = eventually("one to give up", || {
            two.iter_mut().position(|process| !process.is_running())
        });
        let (status, log) = two[loser].finish();
        let in_use = format!("fdaccept: cannot bind {path}: {IN_USE}");
        assert_eq!((status.code(), log), (Some(1), in_use), "round {round}");
        let winner = &mut two[1 - loser];
        winner.listening();
        assert!(winner.is_running());
        assert!(is_locked(path));
        // What KILL leaves behind is there for the next two to fight about.
        winner.end_by([Signal::SIGKILL, Signal::SIGTERM][round % 2]);
    }
}

cases! {
    race;
    of_two_that_listen_on_a_path_at_once_exactly_one_gets_it: "listener";
    of_two_that_bind_a_queue_at_once_exactly_one_gets_it: "fdaccept";
}

// How a path goes.

#[test]
fn a_path_and_its_lock_are_gone_when_the_owner_ends() {
    for kind in OWNERS {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let names = Names::new();
            let mut owner = start(kind, names.path(), &[]);
            until_it_minds_signals(kind, &mut owner);
            owner.end_by(signal);
            assert!(names.is_empty(), "{kind} {signal}");
        }
    }
}

#[test]
fn fdrecv_gives_its_path_up_before_it_becomes_the_command() {
    let (names, path) = &a_path();
    let consumer = start("fdrecv", path, &[]);
    let acceptor = Fdaccept::plain().args(["--connect", path]).start();
    let _client = acceptor.served_client();
    assert!(names.is_empty());
    let open = descriptors(consumer.pid());
    assert_eq!(open.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn a_path_that_somebody_else_took_meanwhile_stays() {
    for kind in OWNERS {
        let (_names, path) = &a_path();
        let mut owner = start(kind, path, &[]);
        until_it_minds_signals(kind, &mut owner);
        std::fs::remove_file(path).unwrap();
        std::fs::write(path, "new").unwrap();
        owner.signal_group(Signal::SIGTERM);
        owner.wait();
        assert_eq!(std::fs::read(path).unwrap(), b"new", "{kind}");
        assert!(!lock_of(path).exists(), "{kind}");
    }
}

#[test]
fn a_relative_path_is_meant_from_where_the_program_was_started() {
    for kind in OWNERS {
        let names = Names::new();
        let mut command = owner(kind, "./queue", &[]);
        let mut owner = command.current_dir(&names.directory).start();
        until("the path", || mode_if_there(names.path()).is_some());
        until_it_minds_signals(kind, &mut owner);
        owner.signal_group(Signal::SIGTERM);
        owner.wait();
        assert!(names.is_empty(), "{kind}");
    }
}

// How a name is written.

/// A path of `length` bytes.
fn long_path(names: &Names, length: usize) -> String {
    let used = names.text("").len();
    names.text(&"x".repeat(length - used))
}

#[test]
fn a_path_may_have_107_bytes() {
    for kind in OWNERS {
        let names = Names::new();
        let path = long_path(&names, 107);
        let _owner = start(kind, &path, &[]);
        assert!(is_locked(&path));
    }
}

#[test]
fn a_name_that_is_too_long_is_a_usage_error() {
    let names = Names::new();
    let is_refused = |program: &str, command: &mut Command| {
        let log = command.start().expect_end(2);
        assert!(log.contains("has 108 bytes"), "{log}");
        assert!(log.starts_with(program), "{log}");
    };
    for text in [long_path(&names, 108), format!("@{}", "x".repeat(108))] {
        for kind in OWNERS {
            is_refused(program_of(kind), &mut owner(kind, &text, &[]));
        }
        for (name, rest) in PROGRAMS {
            is_refused(name, program(name).args(["--connect", &text]).args(rest));
        }
    }
    assert!(names.is_empty());
}

#[test]
fn a_path_need_not_be_utf8() {
    for odd in [&b"s\xff\xfe"[..], b"a b", b"s\n", b"'\"$(x)"] {
        let names = Names::new();
        let path = names.directory.path().join(OsStr::from_bytes(odd));
        let mut acceptor = start("fdaccept", &path, &[]);
        // Before, the path may not be listened on yet.
        let port = acceptor.port();
        let mut fdrecv = program("fdrecv");
        let mut consumer = fdrecv.arg("--connect").arg(&path).arg("cat").start();
        assert_eq!(exchange(port, b"odd"), b"odd");
        consumer.expect_exit(0);
        acceptor.end_by(Signal::SIGTERM);
        assert!(names.is_empty());
    }
}

#[test]
fn a_listener_at_a_path_that_is_not_utf8_serves() {
    let names = Names::new();
    let path = names.directory.path().join(OsStr::from_bytes(b"s\xff"));
    let chain = ["fdpool", "1", "sh", "-c", "printf %s \"$IPCLOCALPATH\""];
    let _acceptor = Fdaccept::chain(chain).listen(&path).start();
    let mut answer = Vec::new();
    connect_unix(&path).read_to_end(&mut answer).unwrap();
    assert_eq!(answer, path.as_os_str().as_bytes());
}

#[test]
fn a_name_in_a_message_has_no_control_characters() {
    let path = Names::new().text("no/\x1b[31mred\n");
    for kind in ["fdaccept", "fdpool", "fdrecv"] {
        let (_, _, log) = run(&mut owner(kind, &path, &[]));
        assert!(log.contains("\\u{1b}[31mred\\n"), "{log}");
        assert_eq!(log.lines().count(), 1, "{log}");
        assert!(!log.contains('\x1b'));
    }
}

// Other users.

/// Names for a test of 2 users, in a directory that both can look into. `None` without root.
fn shared_names() -> Option<Names> {
    let names = || Names {
        directory: open_dir(),
    };
    root().then(names)
}

/// Starts one of the programs by another user.
fn start_by(uid: u32, name: &str, arguments: &[&str]) -> Process {
    let dir = open_dir();
    by(uid, &dir, name).args(arguments).start()
}

/// An option that trusts [`NOBODY`].
const TRUST: [&str; 2] = ["--allow-uid", "65534"];

#[test]
fn a_path_that_may_not_be_used_is_an_error() {
    let names = needs!(shared_names());
    let path = &names.path();
    let mut acceptor = Fdaccept::bound_at(path).start();
    for (name, rest) in &PROGRAMS[1..] {
        let arguments = [&["--connect", path], *rest].concat();
        let log = start_by(NOBODY, name, &arguments).expect_end(1);
        let expected = format!("{name}: cannot connect to {path}: Permission denied");
        assert_eq!(log, expected);
    }
    acceptor.end_by(Signal::SIGTERM);
    // The mode is what decides.
    let acceptor = Fdaccept::bound_at(path).args(["--mode", "666"]).start();
    let mut consumer = start_by(NOBODY, "fdrecv", &["--connect", path, "cat"]);
    assert_eq!(exchange(acceptor.port, b"allowed"), b"allowed");
    consumer.expect_exit(0);
}

#[test]
fn a_receiver_at_a_path_that_may_not_be_used_is_an_error() {
    let names = needs!(shared_names());
    let path = &names.path();
    let _pool = start("fdpool", path, &[]);
    // At once, while there is no client to lose.
    let mut fdaccept = start_by(NOBODY, "fdaccept", &["--connect", path, ADDRESS]);
    let expected = format!("fdaccept: cannot connect to {path}: Permission denied");
    assert_eq!(fdaccept.expect_end(1), expected);
}

#[test]
fn a_directory_that_may_not_be_written_is_an_error() {
    let names = needs!(shared_names());
    let path = &names.path();
    for (name, rest) in PROGRAMS {
        let arguments = [&["--bind", path], rest].concat();
        let log = start_by(NOBODY, name, &arguments).expect_end(1);
        assert!(log.starts_with(&format!("{name}: cannot ")), "{log}");
        assert!(log.contains(path), "{log}");
        assert!(log.ends_with(": Permission denied"), "{log}");
    }
}

#[test]
fn an_allowed_uid_gets_no_path_that_its_mode_denies() {
    let names = needs!(shared_names());
    let path = &names.path();
    let _acceptor = Fdaccept::bound_at(path).args(TRUST).start();
    let mut fdrecv = start_by(NOBODY, "fdrecv", &["--connect", path, "cat"]);
    let log = fdrecv.expect_end(1);
    assert!(log.ends_with("Permission denied"), "{log}");
}

// Abstract names.

/// A name for a test of 2 users. `None` without root.
fn shared_name() -> Option<String> {
    root().then(|| Names::new().abstract_name())
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
        let name = Names::new().abstract_name();
        let _first = owner(kind, &name, &[]).start();
        until_bound(&name);
        for second in others {
            cannot_have(second, &name, 1, IN_USE);
        }
    }
}

#[test]
fn fdaccept_refuses_a_consumer_of_another_uid_at_an_abstract_name() {
    let name = needs!(shared_name());
    let mut acceptor = Fdaccept::bound_at(&name).start();
    let mut consumer = start_by(NOBODY, "fdrecv", &["--connect", &name, "cat"]);
    let line = acceptor.line("a consumer was refused");
    assert!(line.contains("uid 65534, which is not trusted"), "{line}");
    let log = consumer.expect_end(69);
    assert!(log.starts_with("fdrecv: "), "{log}");
    assert!(acceptor.is_running());
}

#[test]
fn fdaccept_serves_a_consumer_of_an_allowed_uid_at_an_abstract_name() {
    let name = needs!(shared_name());
    let acceptor = Fdaccept::bound_at(&name).args(TRUST).start();
    let mut consumer = start_by(NOBODY, "fdrecv", &["--connect", &name, "cat"]);
    assert_eq!(exchange(acceptor.port, b"allowed"), b"allowed");
    consumer.expect_exit(0);
}

/// fdaccept by another user that owns `name`, and its port.
fn foreign_fdaccept(name: &str) -> (Process, u16) {
    let mut acceptor = start_by(NOBODY, "fdaccept", &["--bind", name, ADDRESS]);
    let port = acceptor.port();
    (acceptor, port)
}

#[test]
fn a_consumer_refuses_an_fdaccept_of_another_uid_at_an_abstract_name() {
    let name = &needs!(shared_name());
    let (_acceptor, port) = foreign_fdaccept(name);
    let refused =
        format!("{name} belongs to uid 65534, which is not trusted (--allow-uid 65534 would)");
    let log = fdrecv_on(name).arg("cat").start().expect_end(1);
    assert_eq!(log, format!("fdrecv: {refused}"));
    let mut pool = Pool::on(name).slots(1, ["cat"]).start();
    // The name may be somebody else's the next time.
    assert_eq!(pool.line(name), format!("fdpool: {refused}; waiting"));
    let client = Client::connect(port);
    assert_eq!(pool.children(), []);
    client.expect_waiting();
}

#[test]
fn a_consumer_trusts_an_fdaccept_of_an_allowed_uid_at_an_abstract_name() {
    let name = &needs!(shared_name());
    let (_acceptor, port) = foreign_fdaccept(name);
    let _pool = Pool::on(name).args(TRUST).slots(1, ["cat"]).start();
    assert_eq!(exchange(port, b"allowed"), b"allowed");
}

#[test]
fn two_users_of_whom_none_is_root_do_not_trust_each_other() {
    let name = &needs!(shared_name());
    let (mut acceptor, _) = foreign_fdaccept(name);
    let arguments = ["--allow-uid", "65534", "--connect", name, "cat"];
    let log = start_by(SOMEBODY, "fdrecv", &arguments[2..]).expect_end(1);
    assert!(log.contains("belongs to uid 65534"), "{log}");
    // Trust by the consumer alone is not enough.
    start_by(SOMEBODY, "fdrecv", &arguments).expect_end(69);
    acceptor.line("uid 65533, which is not trusted");
}

/// fdpool that owns `name`, fdaccept by another user that sends to it, and the port.
fn foreign_sender(name: &str, options: &[&str]) -> (Process, Process, u16) {
    let pool = owner("fdpool", name, options).start();
    until_bound(name);
    let mut sender = start_by(NOBODY, "fdaccept", &["--connect", name, ADDRESS]);
    let port = sender.port();
    (pool, sender, port)
}

#[test]
fn fdpool_refuses_a_sender_of_another_uid_at_an_abstract_name() {
    let name = needs!(shared_name());
    let (mut pool, _sender, port) = foreign_sender(&name, &[]);
    let answer = try_exchange(port, b"refused").unwrap_or_default();
    assert_eq!(answer, b"");
    let refused = "a message came from uid 65534, which may not send to this name";
    assert_eq!(pool.line("65534"), format!("fdpool: {refused}"));
    assert!(pool.is_running());
}

#[test]
fn fdpool_serves_a_sender_of_an_allowed_uid_at_an_abstract_name() {
    let name = needs!(shared_name());
    let (_pool, _sender, port) = foreign_sender(&name, &TRUST);
    assert_eq!(exchange(port, b"allowed"), b"allowed");
}

/// fdpool by another user that owns a name, and fdaccept that sends to it.
fn foreign_receiver(name: &str, options: &[&str]) -> (Process, Acceptor) {
    let pool = start_by(NOBODY, "fdpool", &["--bind", name, "1", "cat"]);
    until_bound(name);
    let sender = Fdaccept::plain().args(options).args(["--connect", name]);
    (pool, sender.start())
}

#[test]
fn fdaccept_sends_nothing_to_a_receiver_of_another_uid_at_an_abstract_name() {
    let name = needs!(shared_name());
    let (_pool, mut sender) = foreign_receiver(&name, &[]);
    let client = sender.client();
    let line = sender.line("which is not trusted");
    assert!(line.ends_with("; connections wait"), "{line}");
    // The connection is in hand, and neither served nor dropped.
    client.expect_waiting();
    assert!(sender.is_running());
}

#[test]
fn fdaccept_sends_to_a_receiver_of_an_allowed_uid_at_an_abstract_name() {
    let name = needs!(shared_name());
    let (_pool, sender) = foreign_receiver(&name, &TRUST);
    assert_eq!(exchange(sender.port, b"allowed"), b"allowed");
}
