//! Wrong usage: each has a message with the program's name and what to do, and its own status.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use crate::support::*;

const PROGRAMS: [&str; 3] = ["fdaccept", "fdrecv", "fdpool"];

/// The exit status and the message of one of the programs.
fn fails(name: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let (status, _, stderr) = run(program(name).args(arguments));
    assert!(stderr.starts_with(&format!("{name}: ")), "{stderr}");
    (status, stderr)
}

/// Checks that these are wrong usage: status 2, and two lines. The first says what is wrong, in
/// the words `expected` among others, the second where to read more.
#[track_caller]
fn refuses(name: &str, arguments: &[&str], expected: &str) {
    let (status, message) = fails(name, arguments);
    check(name, status, &message, expected);
}

/// The same for a command whose standard streams the caller has set.
#[track_caller]
fn refuses_with(name: &str, command: &mut Command, expected: &str) {
    let (status, message) = Process::start(command).finish();
    check(name, status.code(), &message, expected);
}

#[track_caller]
fn check(name: &str, status: Option<i32>, message: &str, expected: &str) {
    let lines: Vec<_> = message.lines().collect();
    assert_eq!(status, Some(2), "{message}");
    assert_eq!(lines.len(), 2, "{message}");
    assert!(lines[0].starts_with(&format!("{name}: ")), "{message}");
    assert!(lines[0].contains(expected), "{message}");
    let help = format!("{name}: try '{name} --help' for more information");
    assert_eq!(lines[1], help);
}

/// One of the programs with all that it needs, but for `options`.
fn whole<'a>(name: &str, options: &[&'a str]) -> Vec<&'a str> {
    let rest: &[&str] = match name {
        "fdaccept" => &["127.0.0.1:0"],
        "fdrecv" => &["cat"],
        _ => &["4", "cat"],
    };
    [options, rest].concat()
}

fn terminal() -> OwnedFd {
    let terminal = File::options().read(true).write(true).open("/dev/ptmx");
    terminal.unwrap().into()
}

/// Both sides of a TCP connection.
fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

#[test]
fn an_unknown_option_is_a_usage_error() {
    for name in PROGRAMS {
        refuses(name, &["--nonsense"], "'--nonsense'");
        refuses(name, &whole(name, &["-Z"]), "'-Z'");
    }
}

#[test]
fn what_is_missing_is_named() {
    refuses("fdaccept", &[], "no ADDRESS given");
    refuses("fdaccept", &["--", "cat"], "no ADDRESS given");
    refuses("fdrecv", &[], "not provided: <COMMAND>...");
    refuses("fdrecv", &["--"], "not provided: <COMMAND>...");
    refuses("fdpool", &[], "not provided: <N> <COMMAND>...");
    refuses("fdpool", &["4"], "not provided: <COMMAND>...");
    refuses("fdpool", &["4", "--"], "not provided: <COMMAND>...");
    for name in PROGRAMS {
        for option in ["--bind", "--connect", "--queue-fd", "--mode", "--allow-uid"] {
            refuses(name, &[option], "a value is required");
        }
    }
}

#[test]
fn a_bad_address_says_how_to_write_it() {
    let bad = [
        ("", "write a port (8888), ADDRESS:PORT or a path"),
        ("::1:8888", "write [::1]:8888"),
        ("::1", "write [::1]:PORT"),
        ("127.0.0.1", "write 127.0.0.1:PORT"),
        ("localhost", "write localhost:PORT"),
        ("70000", "write a number from 0 to 65535"),
        ("127.0.0.1:65536", "write a number from 0 to 65535"),
        ("localhost:http", "http is not a port"),
        ("127.0.0.1:", "the port is missing"),
        (":8888", "write the port alone: 8888"),
        ("*:8888", "write the port alone: 8888"),
        ("127.1:80", "write all four numbers"),
        ("a b:80", "a b is not a host name"),
        ("[::1]", "write [::1]:PORT"),
        ("[::1:80", "closing bracket"),
        ("[127.0.0.1]:80", "brackets are for IPv6"),
        ("[fe80::1]:80", "write [fe80::1]:80%eth0"),
        ("[::1]:80%lo", "only a link-local address"),
        ("fd:", "write fd:N"),
        ("fd:x", "write fd:N"),
        ("fd:-1", "write fd:N"),
        ("vsock:1", "write vsock:CID:PORT"),
        ("@", "write @NAME"),
        ("/tmp/", "is a directory"),
        ("8888\n", "control character"),
    ];
    for (address, expected) in bad {
        refuses("fdaccept", &[address], expected);
        // Also behind a good one, which is not bound then.
        refuses("fdaccept", &["127.0.0.1:0", address], expected);
    }
}

#[test]
fn a_path_that_is_too_long_is_refused() {
    let long = format!("/tmp/{}", "x".repeat(200));
    refuses("fdaccept", &[&long], "at most 107");
    refuses("fdaccept", &["--bind", &long, "127.0.0.1:0"], "at most 107");
    for name in PROGRAMS {
        refuses(name, &whole(name, &["--connect", &long]), "at most 107");
    }
}

#[test]
fn a_bad_socket_option_says_what_there_is() {
    let bad = [
        ("foo", "known are nodelay"),
        ("", "known are nodelay"),
        ("=1", "known are nodelay"),
        ("nodelay=2", "the value is a number from 0 to 1"),
        ("keepalive=", "the value is a number from 1 to 32767"),
        ("keepalive=x", "the value is a number from 1 to 32767"),
        ("rcvbuf", "write rcvbuf=BYTES"),
        ("sndbuf=0", "write sndbuf=BYTES"),
        ("sndbuf=64k", "write sndbuf=BYTES"),
    ];
    for (option, expected) in bad {
        refuses("fdaccept", &["-o", option, "127.0.0.1:0"], expected);
    }
    refuses("fdaccept", &["-o", "nodelay", "@fdtools-x"], "leave it out");
    refuses(
        "fdaccept",
        &["-o", "v6only", "127.0.0.1:0"],
        "none of the addresses",
    );
}

#[test]
fn a_bad_number_says_what_it_should_be() {
    for mode in ["888", "0x1ff", "1777", "-1", "rw", ""] {
        for name in PROGRAMS {
            let option = format!("--mode={mode}");
            let arguments = whole(name, &["--bind", "@fdtools-never", &option]);
            refuses(name, &arguments, "octal number from 0 to 777");
        }
    }
    for backlog in ["x", "-1", "4294967296", ""] {
        let option = format!("--backlog={backlog}");
        refuses("fdaccept", &[&option, "127.0.0.1:0"], "'--backlog <N>'");
    }
    for seconds in ["x", "-1", "1s", "nan", ""] {
        for (name, option) in [
            ("fdaccept", "--grace"),
            ("fdpool", "--grace"),
            ("fdpool", "--timeout"),
            ("fdrecv", "--timeout"),
        ] {
            let option = format!("{option}={seconds}");
            let arguments = whole(name, &[&option]);
            refuses(name, &arguments, "not a number of seconds");
        }
    }
    for number in ["x", "-1", "+7", "99999999999", ""] {
        let option = format!("--fd={number}");
        let expected = "not the number of a descriptor";
        refuses("fdrecv", &[&option, "cat"], expected);
        for name in PROGRAMS {
            let option = format!("--queue-fd={number}");
            refuses(name, &whole(name, &[&option]), expected);
        }
    }
    for uid in ["x", "-1", "root", ""] {
        for name in PROGRAMS {
            let option = format!("--allow-uid={uid}");
            refuses(name, &whole(name, &[&option]), "'--allow-uid <UID>'");
        }
    }
    refuses("fdrecv", &["--fd", "2000000000", "cat"], "beyond the limit");
}

#[test]
fn a_pool_has_from_1_to_65536_slots() {
    for size in ["0", "65537", "x", "", "4.5", "99999999999999999999"] {
        refuses("fdpool", &[size, "cat"], "not a number from 1 to 65536");
    }
    refuses("fdpool", &["-1", "cat"], "'-1'");
}

#[test]
fn only_one_sink_or_source_can_be_given() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (dir.path().join("one"), dir.path().join("other"));
    let (one, other) = (one.to_str().unwrap(), other.to_str().unwrap());
    let bind = ["--bind", one];
    let connect = ["--connect", other];
    let queue_fd = ["--queue-fd", "0"];
    for name in PROGRAMS {
        for (first, second) in [(bind, connect), (bind, queue_fd), (connect, queue_fd)] {
            for both in [[first, second].concat(), [second, first].concat()] {
                refuses(name, &whole(name, &both), "cannot be used with");
            }
        }
    }
    for sink in [bind, connect, queue_fd] {
        let arguments = [&sink[..], &["127.0.0.1:0", "--", "cat"]].concat();
        refuses("fdaccept", &arguments, "give either -- COMMAND or one of");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_sink_that_carries_no_connections_says_what_to_do_instead() {
    let (tcp, _other) = connection();
    let listener = UnixListener::bind(tempfile::tempdir().unwrap().path().join("s")).unwrap();
    let null = File::options().write(true).open("/dev/null").unwrap();
    let sinks: [(OwnedFd, &str); 5] = [
        (terminal(), "standard output is a terminal"),
        (
            tempfile::tempfile().unwrap().into(),
            "standard output is a regular file",
        ),
        (null.into(), "standard output is /dev/null"),
        (tcp.into(), "standard output is a TCP connection"),
        (
            listener.into(),
            "standard output is a listening Unix stream socket",
        ),
    ];
    for (sink, expected) in sinks {
        let mut command = program("fdaccept");
        command.arg("127.0.0.1:0").stdout(sink);
        let (status, message) = Process::start(&mut command).finish();
        check("fdaccept", status.code(), &message, expected);
        for way in ["| fdpool 4 -- COMMAND", "-- COMMAND", "--bind", "--connect"] {
            assert!(message.contains(way), "{message}");
        }
        assert!(!message.contains("listening on"), "{message}");
    }
}

#[test]
fn standard_output_that_is_closed_is_no_sink() {
    let mut command = script("sh", "exec fdaccept 127.0.0.1:0 >&-");
    refuses_with("fdaccept", &mut command, "which carries no connections");
}

#[test]
fn a_source_that_is_no_queue_says_what_to_do_instead() {
    for (name, arguments) in [("fdrecv", "cat"), ("fdpool", "1 cat")] {
        let (tcp, _other) = connection();
        let listener = UnixListener::bind(tempfile::tempdir().unwrap().path().join("s")).unwrap();
        let sources: [(Stdio, &str); 5] = [
            (terminal().into(), "standard input is a terminal"),
            (
                tempfile::tempfile().unwrap().into(),
                "standard input is a regular file",
            ),
            (Stdio::null(), "standard input is /dev/null"),
            (
                OwnedFd::from(tcp).into(),
                "standard input is a TCP connection",
            ),
            (
                OwnedFd::from(listener).into(),
                "standard input is a listening Unix stream socket",
            ),
        ];
        for (source, expected) in sources {
            let mut command = program(name);
            command.args(arguments.split(' ')).stdin(source);
            let (status, message) = Process::start(&mut command).finish();
            check(name, status.code(), &message, expected);
            for way in ["fdaccept ADDRESS |", "--connect", "--bind", "--queue-fd"] {
                assert!(message.contains(way), "{message}");
            }
        }
        let mut command = script("sh", &format!("exec {name} {arguments} <&-"));
        refuses_with(name, &mut command, ", not a queue");
    }
}

#[test]
fn a_descriptor_that_is_no_queue_is_named() {
    for name in PROGRAMS {
        let arguments = whole(name, &["--queue-fd", "9"]).join(" ");
        let mut command = script("sh", &format!("exec {name} {arguments} 9>&-"));
        refuses_with(name, &mut command, "descriptor 9 is not open");
        let mut command = script("sh", &format!("exec {name} {arguments} 9</dev/null"));
        refuses_with(name, &mut command, "descriptor 9 is /dev/null");
        let mut command = script("sh", &format!("exec {name} {arguments} 9</"));
        refuses_with(name, &mut command, "descriptor 9 is a directory");
        let arguments = whole(name, &["--queue-fd", "2"]);
        refuses(name, &arguments, "descriptor 2 is standard error");
    }
}

/// Its own files must not be taken for some that it was given.
#[test]
fn a_descriptor_that_a_program_opened_itself_is_not_open() {
    for name in PROGRAMS {
        for number in 3..10 {
            let number = number.to_string();
            let arguments = whole(name, &["--queue-fd", &number]).join(" ");
            let closed: String = (3..10).map(|number| format!(" {number}>&-")).collect();
            let mut command = script("sh", &format!("exec {name} {arguments}{closed}"));
            let expected = format!("descriptor {number} is not open");
            refuses_with(name, &mut command, &expected);
        }
    }
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    for name in PROGRAMS {
        refuses(name, &whole(name, &["-v", "-q"]), "cannot be used with");
        let long = whole(name, &["--quiet", "--verbose"]);
        refuses(name, &long, "cannot be used with");
    }
    let both = ["--fd", "3", "--activate", "cat"];
    refuses("fdrecv", &both, "cannot be used with");
}

/// What each of the programs says of `command`, which it is to run, and its status. The chain
/// form binds nothing for it.
#[track_caller]
fn cannot_run(command: &str, cause: &str, status: i32) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let address = path.to_str().unwrap();
    let forms = [
        ("fdaccept", vec![address, "--", command]),
        ("fdrecv", vec!["--bind", address, "--", command]),
        ("fdpool", vec!["--bind", address, "4", "--", command]),
        ("fdrecv", vec!["--", command]),
        ("fdpool", vec!["4", "--", command]),
    ];
    for (name, arguments) in forms {
        let (code, message) = fails(name, &arguments);
        let shown = match command {
            "" => "''",
            command => command,
        };
        assert_eq!(message, format!("{name}: cannot run {shown}: {cause}"));
        assert_eq!(code, Some(status));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_command_that_does_not_exist_is_noticed_before_anything_is_bound() {
    cannot_run("fdtools-no-such-command", "No such file or directory", 127);
    cannot_run("/no/such/command", "No such file or directory", 127);
    cannot_run("", "No such file or directory", 127);
}

#[test]
fn a_command_that_cannot_be_executed_is_noticed_before_anything_is_bound() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let file = file.path().to_str().unwrap();
    cannot_run(file, "Permission denied", 126);
    cannot_run("/", "Permission denied", 126);
}

#[test]
fn help_and_version_are_on_standard_output() {
    for name in PROGRAMS {
        for option in ["--help", "-h"] {
            let (status, help, stderr) = run(program(name).arg(option));
            assert_eq!((status, stderr.as_str()), (Some(0), ""));
            assert!(help.contains(&format!("Usage: {name} [OPTIONS]")), "{help}");
            assert!(help.contains("--queue-fd"), "{help}");
        }
        for option in ["--version", "-V"] {
            let (status, version, stderr) = run(program(name).arg(option));
            assert_eq!((status, stderr.as_str()), (Some(0), ""));
            assert_eq!(version, format!("{name} {}\n", env!("CARGO_PKG_VERSION")));
        }
    }
}

#[test]
fn what_follows_the_command_is_the_commands() {
    for form in [
        "fdaccept 127.0.0.1:0 -- fdpool 4 -- cat -n",
        "fdaccept 127.0.0.1:0 -- fdpool 4 cat -n",
        "fdaccept 127.0.0.1:0 -- fdpool -q 4 cat -n",
        "fdaccept 127.0.0.1:0 -- fdrecv -- cat -n",
        "fdaccept 127.0.0.1:0 -- fdrecv cat -n",
    ] {
        let mut process = Process::start(&mut script("sh", &format!("exec {form}")));
        let port = process.port();
        assert_eq!(exchange(port, b"x\n"), b"     1\tx\n", "{form}");
    }
    // The same for what fdtools would understand.
    let mut command = script("sh", "exec fdaccept 127.0.0.1:0 -- fdrecv echo --help -q 4");
    let mut process = Process::start(&mut command);
    let port = process.port();
    let mut answer = String::new();
    connect(port).read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "--help -q 4\n");
}

#[test]
fn arguments_that_are_not_utf8_are_no_crash() {
    let odd = OsStr::from_bytes(b"\xff\xfe");
    for name in PROGRAMS {
        for option in [
            "--mode",
            "--queue-fd",
            "--allow-uid",
            "--grace",
            "--timeout",
            "--backlog",
            "-o",
            "--fd",
        ] {
            let mut command = program(name);
            command.arg(option).arg(odd).args(whole(name, &[]));
            let (status, _, message) = run(&mut command);
            assert_eq!(status, Some(2), "{message}");
            assert!(message.starts_with(&format!("{name}: ")), "{message}");
        }
    }
    let (status, _, message) = run(program("fdaccept").arg(odd));
    check("fdaccept", status, &message, "write ./NAME");
    let (status, _, message) = run(program("fdpool").arg(odd).arg("cat"));
    assert_eq!(status, Some(2), "{message}");
    let commands = [&["fdrecv"][..], &["fdpool", "4"], &["fdaccept", "0", "--"]];
    for words in commands {
        let (status, _, message) = run(program(words[0]).args(&words[1..]).arg(odd));
        assert_eq!(status, Some(127), "{message}");
        assert!(message.contains("cannot run"), "{message}");
    }
}

/// A terminal must not obey what somebody put into a script's arguments.
#[test]
fn control_characters_of_arguments_do_not_reach_the_terminal() {
    for name in PROGRAMS {
        for arguments in [
            vec!["--\x1b[31mx"],
            whole(name, &["--mode=\x1b[31m"]),
            whole(name, &["--bind=/no/such/\x1b[31m"]),
        ] {
            let (_, message) = fails(name, &arguments);
            assert!(!message.contains('\x1b'), "{message:?}");
        }
    }
    for arguments in [
        vec!["fdrecv"],
        vec!["fdpool", "4"],
        vec!["fdaccept", "0", "--"],
    ] {
        let (_, message) = fails(arguments[0], &[&arguments[1..], &["no\x1b[31m"]].concat());
        assert!(!message.contains('\x1b'), "{message:?}");
    }
}
