//! `--port-file`: the ports that fdaccept has bound, in a file.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::poll::ready;
use crate::support::*;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use rustix::event::PollFlags;

/// The numbers of a port file.
fn ports(path: impl AsRef<Path>) -> Vec<u16> {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.ends_with('\n'), "{text:?}");
    text.lines().map(|line| line.parse().unwrap()).collect()
}

/// The numbers in `./ports`.
fn ports_of(acceptor: &Acceptor) -> Vec<u16> {
    ports(acceptor.names.file("ports"))
}

/// A chain that writes its ports to `./ports`.
fn filed() -> Fdaccept {
    Fdaccept::cats().options("--port-file ./ports")
}

#[test]
fn the_port_of_an_address_is_in_the_file() {
    let acceptor = filed().start();
    assert_eq!(ports_of(&acceptor), [acceptor.port]);
    assert_eq!(acceptor.names.files(), ["ports"]);
    acceptor.expect_echo();
}

#[test]
fn the_ports_of_several_addresses_are_in_the_file_in_their_order() {
    let addresses = [ADDRESS, "./listener", ADDRESS, ADDRESS];
    let acceptor = addresses.iter().fold(filed(), Fdaccept::listen).start();
    assert_eq!(acceptor.ports.len(), 3);
    assert_eq!(ports_of(&acceptor), acceptor.ports);
}

#[test]
fn a_port_of_several_addresses_is_in_the_file_once() {
    for address in ["localhost:0", "0"] {
        let acceptor = filed().listen(address).start();
        assert_eq!(ports_of(&acceptor), [acceptor.port]);
    }
}

#[test]
fn a_port_that_several_addresses_were_given_is_in_the_file_once() {
    // Another test may take a free port before fdaccept does.
    let (acceptor, port) = eventually("a port that is free", || {
        let (free, port) = listener();
        drop(free);
        let addresses = [1, 2, 3].map(|last| format!("127.0.0.{last}:{port}"));
        let mut acceptor = addresses.iter().fold(filed(), Fdaccept::listen).spawn();
        let is_started = acceptor.line("").contains("listening on");
        is_started.then_some((acceptor, port))
    });
    assert_eq!(ports_of(&acceptor), [port]);
}

#[test]
fn the_port_of_an_inherited_listener_is_in_the_file() {
    let (listener, port) = listener();
    let inherited = filed().listen("fd:0").stdin(OwnedFd::from(listener));
    assert_eq!(ports_of(&inherited.start()), [port]);
}

#[test]
fn a_file_that_was_there_is_replaced_as_a_whole() {
    let old = "old ".repeat(10_000);
    // With many lines a partial write would be seen.
    let fdaccept = filed().file("ports", &old);
    let fdaccept = [ADDRESS; 50].iter().fold(fdaccept, Fdaccept::listen);
    let path = fdaccept.names.text("ports");
    let mut before = File::open(&path).unwrap();
    let inode = before.metadata().unwrap().ino();
    let is_over = AtomicBool::new(false);
    let (seen, mut acceptor) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut seen = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                let text = std::fs::read_to_string(&path).unwrap();
                if seen.last() != Some(&text) {
                    seen.push(text);
                }
            }
            seen
        });
        let acceptor = fdaccept.start();
        is_over.store(true, Ordering::Relaxed);
        (watcher.join().unwrap(), acceptor)
    });
    let now = std::fs::read_to_string(&path).unwrap();
    assert_eq!(now.lines().count(), 50);
    assert!(seen.iter().all(|text| *text == old || *text == now));
    assert_ne!(Path::new(&path).metadata().unwrap().ino(), inode);
    // A reader of the old file still has it.
    let mut still = String::new();
    before.read_to_string(&mut still).unwrap();
    assert_eq!(still, old);
    assert!(acceptor.is_running());
}

#[test]
fn the_file_is_there_before_it_is_said_that_this_is_ready() {
    let manager = Manager::at_path();
    let acceptor = filed().under(&manager).spawn();
    manager.next_with("READY=1");
    let port = ports_of(&acceptor)[0];
    assert_eq!(exchange(port, b"hello"), b"hello");
}

/// fdaccept with a FIFO as the port file: it waits for a reader.
fn with_fifo() -> Acceptor {
    let fdaccept = Fdaccept::cats().options("--port-file ./fifo");
    mkfifo(&*fdaccept.names.text("fifo"), Mode::S_IRWXU).unwrap();
    fdaccept.spawn()
}

#[test]
fn a_fifo_is_written_to_and_stays_one() {
    let mut acceptor = with_fifo();
    let fifo = acceptor.names.file("fifo");
    let written = ports(&fifo);
    assert_eq!(written, [acceptor.port()]);
    assert!(!fifo.symlink_metadata().unwrap().is_file());
}

#[test]
fn a_pipe_that_is_open_is_written_to() {
    for words in [
        "--port-file /dev/fd/3 --bind ./queue 127.0.0.1:0 3>&1 >/dev/null",
        "--port-file /dev/fd/1 --bind ./queue 127.0.0.1:0",
    ] {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let fdaccept = Fdaccept::sh(&format!("exec fdaccept {words}"));
        let mut acceptor = fdaccept.stdout(writer).spawn();
        let mut line = String::new();
        let mut byte = [0];
        while !line.ends_with('\n') {
            until("a line", || {
                !ready(reader.as_fd(), PollFlags::IN).is_empty()
            });
            assert_eq!(reader.read(&mut byte).unwrap(), 1, "{line:?}");
            line.push(char::from(byte[0]));
        }
        assert_eq!(line, format!("{}\n", acceptor.port()));
    }
}

#[test]
fn a_file_that_is_open_is_written_to() {
    let text = "exec fdaccept --port-file /dev/fd/3 127.0.0.1:0 -- fdpool 1 -- cat 3>./ports";
    let mut acceptor = Fdaccept::sh(text).spawn();
    let line = acceptor.line("");
    assert!(line.contains("listening on"), "{line}");
    let port: u16 = line.rsplit_once(':').unwrap().1.parse().unwrap();
    assert_eq!(ports_of(&acceptor), [port]);
}

#[test]
fn a_standard_stream_is_written_to() {
    for (options, stream) in [
        ("--port-file /dev/stdout", "1>>./out"),
        ("--port-file /dev/stderr --quiet", "2>>./out"),
        ("--port-file /proc/self/fd/1", "1>>./out"),
    ] {
        let text = format!("exec fdaccept {options} 127.0.0.1:0 -- fdpool 1 -- cat {stream}");
        let acceptor = Fdaccept::sh(&text).file("out", "before\n").spawn();
        let out = acceptor.names.file("out");
        let text = eventually("a port", || {
            let text = std::fs::read_to_string(&out).unwrap();
            (text.lines().count() > 1).then_some(text)
        });
        let port = text.strip_prefix("before\n").unwrap().trim_end();
        assert_eq!(exchange(port.parse().unwrap(), b"hello"), b"hello");
    }
}

#[test]
fn a_descriptor_that_is_used_otherwise_or_not_open_is_a_usage_error() {
    for (words, expected) in [
        (
            "--port-file /dev/stdout",
            "descriptor 1 cannot be used for two things at once",
        ),
        (
            "--port-file /dev/fd/9 --bind ./queue",
            "descriptor 9 is not open",
        ),
        (
            "--port-file /dev/fd/3 --queue-fd 3 3>&1",
            "descriptor 3 cannot be used for two things at once",
        ),
    ] {
        let text = format!("fdaccept 127.0.0.1:0 {words} | cat");
        let text = format!("set -e; {{ {text}; }} 2>&1 | head -n 1 >&2");
        let mut acceptor = Fdaccept::sh(&text).spawn();
        assert_eq!(acceptor.expect_end(0), format!("fdaccept: {expected}"));
    }
}

/// Checks that fdaccept does not write to `./ports`, for this reason.
#[track_caller]
fn is_refused(fdaccept: Fdaccept, cause: &str) {
    let mut acceptor = fdaccept
        .options("--bind ./queue --port-file ./ports")
        .spawn();
    let log = acceptor.expect_end(1);
    assert_eq!(log, format!("fdaccept: cannot write ./ports: {cause}"));
}

/// A user with fewer rights may have made the link, and root would write behind it.
#[test]
fn a_link_is_not_followed() {
    for target in ["target", "nothing", "/proc/self/fd/1"] {
        let names = Names::new();
        std::fs::write(names.file("target"), "precious").unwrap();
        symlink(target, names.file("ports")).unwrap();
        let out = File::create(names.file("out")).unwrap();
        let fdaccept = Fdaccept::plain().dir(&names.directory).stdout(out);
        is_refused(fdaccept, "it is a symbolic link");
        assert_eq!(names.files(), ["out", "ports", "target"]);
        assert_eq!(std::fs::read(names.file("target")).unwrap(), b"precious");
        assert_eq!(std::fs::read(names.file("out")).unwrap(), b"");
        assert!(names.file("ports").symlink_metadata().unwrap().is_symlink());
    }
}

#[test]
fn a_folder_behind_a_link_of_a_user_with_fewer_rights_is_not_written_to() {
    needs!(root());
    for (owner, is_followed) in [(0, true), (NOBODY, false)] {
        let names = Names::new();
        std::fs::create_dir(names.file("folder")).unwrap();
        symlink("folder", names.file("link")).unwrap();
        lchown(names.file("link"), Some(owner), None).unwrap();
        let fdaccept = Fdaccept::bound().dir(&names.directory);
        let fdaccept = fdaccept.options("--port-file ./link/ports");
        if is_followed {
            let acceptor = fdaccept.listen("127.0.0.1:0").start();
            assert_eq!(ports(names.file("folder/ports")), [acceptor.port]);
        } else {
            let log = fdaccept.listen("127.0.0.1:0").spawn().expect_end(1);
            let expected = format!("./link/ports: link is a symbolic link of uid {NOBODY}");
            assert!(log.contains(&expected), "{log}");
            assert!(!names.file("folder/ports").exists());
        }
    }
}

#[test]
fn a_socket_is_not_written_to() {
    let names = Names::new();
    let _socket = std::os::unix::net::UnixListener::bind(names.file("ports")).unwrap();
    is_refused(
        Fdaccept::plain().dir(&names.directory),
        "it is not a plain file",
    );
}

#[test]
fn a_fifo_that_nobody_reads_is_an_error() {
    let names = Names::new();
    mkfifo(&names.file("ports"), Mode::S_IRWXU).unwrap();
    is_refused(Fdaccept::plain().dir(&names.directory), "nobody reads it");
    assert_eq!(names.files(), ["ports"]);
}

#[test]
fn a_fifo_of_another_user_is_an_error_at_once() {
    needs!(root());
    let names = Names::new();
    mkfifo(&names.file("ports"), Mode::S_IRWXU).unwrap();
    chown(names.file("ports"), Some(NOBODY), None).unwrap();
    // It would be read.
    let path = names.file("ports");
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let _reader = open(&path, flags, Mode::empty()).unwrap();
    for fdaccept in [Fdaccept::plain(), Fdaccept::plain().user(NOBODY)] {
        let cause = format!("it belongs to uid {NOBODY}");
        is_refused(fdaccept.dir(&names.directory), &cause);
    }
}

#[test]
fn a_pipe_that_nobody_empties_is_an_error() {
    let (_reader, mut writer) = std::io::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    std::io::Write::write_all(&mut writer, &[0; 4096]).unwrap();
    let fdaccept = Fdaccept::sh("exec fdaccept --port-file /dev/stdout --bind ./queue 127.0.0.1:0");
    let log = fdaccept.stdout(writer).spawn().expect_end(1);
    assert_eq!(log, "fdaccept: cannot write /dev/stdout: nobody reads it");
}

/// Checks that fdaccept fails with this message, and leaves no file.
#[track_caller]
fn fails(port_file: &str, addresses: &[&str], status: i32, expected: &str) {
    let fdaccept = Fdaccept::bound_at("./queue").args(["--port-file", port_file]);
    std::fs::create_dir(fdaccept.names.text("directory")).unwrap();
    let mut acceptor = addresses.iter().fold(fdaccept, Fdaccept::listen).spawn();
    let log = acceptor.expect_end(status);
    let expected = format!("fdaccept: {expected}");
    assert_eq!(log.lines().next(), Some(&*expected), "{log}");
    assert_eq!(acceptor.names.files(), ["directory"]);
    let directory = acceptor.names.file("directory");
    assert_eq!(directory.read_dir().unwrap().count(), 0);
}

#[test]
fn a_file_without_a_port_is_a_usage_error() {
    let expected = "--port-file needs an address with a port";
    fails("./ports", &["./listener"], 2, expected);
    let name = Names::new().abstract_name();
    fails("./ports", &["./listener", &name], 2, expected);
}

#[track_caller]
fn cannot_write(paths: &[&str], cause: &str) {
    for path in paths {
        let expected = format!("cannot write {path}: {cause}");
        fails(path, &[ADDRESS, "./listener"], 1, &expected);
    }
}

cases! {
    cannot_write;
    a_directory_as_the_file_is_an_error: &["./directory", "/"], "Is a directory";
    a_directory_that_is_not_there_is_an_error:
        &["./none/ports", "/no/such/ports", "./directory/../none/x"], "No such file or directory";
    a_directory_that_is_none_is_an_error: &["/dev/null/ports"], "Not a directory";
}

#[test]
fn a_directory_that_may_not_be_written_is_an_error() {
    needs!(root());
    let fdaccept = Fdaccept::by(NOBODY);
    let ports = fdaccept.names.text("ports");
    let name = Names::new().abstract_name();
    let options = ["--port-file", &ports, "--bind", &name];
    let mut acceptor = fdaccept.args(options).spawn();
    let expected = format!("fdaccept: cannot write {ports}: Permission denied");
    assert_eq!(acceptor.expect_end(1), expected);
    assert!(!Path::new(&ports).exists());
}

#[test]
fn a_limit_on_file_sizes_is_an_error_that_leaves_nothing() {
    let text = "ulimit -f 0; exec fdaccept --port-file ./ports 127.0.0.1:0 -- sleep 100";
    let mut acceptor = Fdaccept::sh(text).spawn();
    let expected = "fdaccept: cannot write ./ports: File too large";
    assert_eq!(acceptor.expect_end(1), expected);
    assert!(acceptor.names.is_empty());
}

#[test]
fn a_fifo_without_a_reader_does_not_keep_a_signal_from_ending_it() {
    let mut acceptor = with_fifo();
    until_state(acceptor.pid(), 'S');
    acceptor.term();
    acceptor.expect_killed_by(Signal::SIGTERM);
}

#[test]
fn the_mode_of_the_file_follows_the_umask() {
    for (umask, mode) in [("022", 0o644), ("077", 0o600), ("027", 0o640), ("0", 0o666)] {
        for is_there in [false, true] {
            let text = "exec fdaccept --port-file ./ports 127.0.0.1:0 -- fdpool 1 -- cat";
            let mut fdaccept = Fdaccept::sh(&format!("umask {umask}; {text}"));
            let path = fdaccept.names.text("ports");
            if is_there {
                fdaccept = fdaccept.file("ports", "old");
                let nobody = std::fs::Permissions::from_mode(0o400);
                std::fs::set_permissions(&path, nobody).unwrap();
            }
            let acceptor = fdaccept.start();
            let meta = Path::new(&path).symlink_metadata().unwrap();
            assert_eq!(meta.permissions().mode() & 0o7777, mode, "{umask}");
            assert_eq!(ports(&path), [acceptor.port]);
        }
    }
}

#[test]
fn with_another_user_the_file_is_written_before() {
    needs!(root());
    // The directory is closed to other users.
    let chain = Fdaccept::chain(["sleep", "1000"]).user(4_000_000_001);
    let acceptor = chain.options("--port-file ./ports").start();
    assert_eq!(ports_of(&acceptor), [acceptor.port]);
    let meta = acceptor.names.file("ports").symlink_metadata().unwrap();
    assert_eq!((meta.uid(), meta.gid()), (0, 0));
}

#[test]
fn a_path_of_any_bytes_can_be_the_file() {
    for name in [&b"p\xff"[..], b"-p", b" ", b"p\n"] {
        let fdaccept = Fdaccept::cats().arg("--port-file");
        let path = Path::new(&fdaccept.names.text("")).join(std::ffi::OsStr::from_bytes(name));
        let acceptor = fdaccept.arg(&path).start();
        assert_eq!(ports(&path), [acceptor.port]);
    }
}
