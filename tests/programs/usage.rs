//! Wrong usage: each has a message with the program's name and what to do, and its own status.

use std::ffi::OsStr;
use std::fs::File;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::process::Command;

use crate::support::*;

const PROGRAMS: [&str; 3] = ["fdaccept", "fdrecv", "fdpool"];

/// Expects wrong usage: status 2, and two lines. The first says what is wrong, in the words
/// `expected` among others, the second where to read more.
#[track_caller]
fn refuses(name: &str, arguments: &[&str], expected: &str) {
    let (status, _, message) = run(program(name).args(arguments));
    check(name, status, &message, expected);
}

/// The same for a command with standard streams of its own. Returns the message.
#[track_caller]
fn refuses_with(name: &str, command: &mut Command, expected: &str) -> String {
    let (status, message) = command.start().finish();
    check(name, status.code(), &message, expected);
    message
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

/// A whole command line of the program with these options.
fn whole<'a>(name: &str, options: &[&'a str]) -> Vec<&'a str> {
    let rest: &[&str] = match name {
        "fdaccept" => &[ADDRESS],
        "fdrecv" => &["cat"],
        _ => &["4", "cat"],
    };
    [options, rest].concat()
}

#[test]
fn an_unknown_option_is_a_usage_error() {
    for name in PROGRAMS {
        refuses(name, &["--nonsense"], "'--nonsense'");
        refuses(name, &whole(name, &["-Z"]), "'-Z'");
    }
}

#[test]
fn an_option_that_is_almost_right_has_its_name_told() {
    for name in PROGRAMS {
        let message =
            "unexpected argument '--conect' found; a similar argument exists: '--connect'";
        refuses(name, &whole(name, &["--conect", "x"]), message);
        // Nobody is told to pass it to the command.
        let (_, _, log) = run(program(name).args(whole(name, &["--nonsense"])));
        let first = format!("{name}: unexpected argument '--nonsense' found\n");
        assert!(log.starts_with(&first), "{log}");
    }
}

#[test]
fn a_pool_says_that_its_size_comes_first() {
    for arguments in [&["--", "cat", "4"][..], &["cat", "4"]] {
        let message = "which comes before the command: fdpool N -- COMMAND";
        refuses("fdpool", arguments, message);
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
        refuses(name, &["--bind"], "a value is required");
    }
}

#[test]
fn a_bad_address_says_how_to_write_it() {
    for arguments in [&["127.0.0.1"][..], &[ADDRESS, "127.0.0.1"]] {
        refuses("fdaccept", arguments, "write 127.0.0.1:PORT");
    }
}

#[test]
fn a_path_that_is_too_long_is_refused() {
    let long = format!("/tmp/{}", "x".repeat(200));
    refuses("fdaccept", &[&long], "at most 107");
    refuses("fdaccept", &["--bind", &long, ADDRESS], "at most 107");
    for name in PROGRAMS {
        refuses(name, &whole(name, &["--connect", &long]), "at most 107");
    }
}

#[test]
fn a_bad_socket_option_says_what_there_is() {
    refuses("fdaccept", &["-o", "foo", ADDRESS], "known are nodelay");
    refuses("fdaccept", &["-o", "nodelay", "@fdtools-x"], "leave it out");
    let none = "none of the addresses";
    refuses("fdaccept", &["-o", "v6only", ADDRESS], none);
}

#[test]
fn a_bad_number_says_what_it_should_be() {
    for name in PROGRAMS {
        for (option, expected) in [
            ("--mode=888", "octal number from 0 to 777"),
            ("--queue-fd=-1", "not the number of a descriptor"),
            ("--allow-uid=root", "'--allow-uid <UID>'"),
        ] {
            let arguments = whole(name, &["--bind", "@fdtools-never", option]);
            refuses(name, &arguments, expected);
        }
    }
    for (name, option, expected) in [
        ("fdaccept", "--backlog=x", "'--backlog <N>'"),
        ("fdaccept", "--grace=x", "not a number of seconds"),
        ("fdpool", "--grace=x", "not a number of seconds"),
        ("fdpool", "--timeout=x", "not a number of seconds"),
        ("fdrecv", "--timeout=x", "not a number of seconds"),
        ("fdrecv", "--fd=x", "not the number of a descriptor"),
        ("fdrecv", "--fd=2000000000", "beyond the limit"),
    ] {
        refuses(name, &whole(name, &[option]), expected);
    }
}

#[test]
fn a_pool_has_from_1_to_65536_slots() {
    refuses("fdpool", &["0", "cat"], "not a number from 1 to 65536");
    refuses("fdpool", &["-1", "cat"], "'-1'");
}

#[test]
fn only_one_sink_or_source_can_be_given() {
    let names = Names::new();
    let (one, other) = (names.text("one"), names.text("other"));
    let bind = ["--bind", &one];
    let connect = ["--connect", &other];
    for name in PROGRAMS {
        let both = [bind, connect].concat();
        refuses(name, &whole(name, &both), "cannot be used with");
    }
    for sink in [bind, connect, ["--queue-fd", "0"]] {
        let arguments = [&sink[..], &[ADDRESS, "--", "cat"]].concat();
        refuses("fdaccept", &arguments, "give either -- COMMAND or one of");
    }
    assert!(names.is_empty());
}

/// Descriptors that carry no connections, with their names, and the TCP connection's other side.
fn no_queues() -> ([(OwnedFd, &'static str); 5], TcpStream) {
    let open = |path: &str| File::options().read(true).write(true).open(path).unwrap();
    let (tcp, other) = tcp_pair();
    let listener = UnixListener::bind(Names::new().file("s")).unwrap();
    let file = tempfile::tempfile().unwrap();
    let no_queues = [
        (open("/dev/ptmx").into(), "a terminal"),
        (file.into(), "a regular file"),
        (open("/dev/null").into(), "/dev/null"),
        (tcp.into(), "a TCP connection"),
        (listener.into(), "a listening Unix stream socket"),
    ];
    (no_queues, other)
}

#[test]
fn a_sink_that_carries_no_connections_says_what_to_do_instead() {
    let (sinks, _other) = no_queues();
    for (sink, what) in sinks {
        let mut command = program("fdaccept");
        command.arg(ADDRESS).stdout(sink);
        let expected = format!("standard output is {what}");
        let message = refuses_with("fdaccept", &mut command, &expected);
        for way in ["| fdpool 4 -- COMMAND", "-- COMMAND", "--bind", "--connect"] {
            assert!(message.contains(way), "{message}");
        }
        assert!(!message.contains("listening on"), "{message}");
    }
}

#[test]
fn standard_output_that_is_closed_is_no_sink() {
    let mut command = sh("exec fdaccept 127.0.0.1:0 >&-");
    refuses_with("fdaccept", &mut command, "which carries no connections");
}

#[test]
fn a_source_that_is_no_queue_says_what_to_do_instead() {
    for name in ["fdrecv", "fdpool"] {
        let (sources, _other) = no_queues();
        for (source, what) in sources {
            let mut command = program(name);
            command.args(whole(name, &[])).stdin(source);
            let expected = format!("standard input is {what}");
            let message = refuses_with(name, &mut command, &expected);
            for way in ["fdaccept ADDRESS |", "--connect", "--bind", "--queue-fd"] {
                assert!(message.contains(way), "{message}");
            }
        }
        let arguments = whole(name, &[]).join(" ");
        let mut command = sh(&format!("exec {name} {arguments} <&-"));
        refuses_with(name, &mut command, ", not a queue");
    }
}

#[test]
fn a_descriptor_that_is_no_queue_is_named() {
    for name in PROGRAMS {
        let arguments = whole(name, &["--queue-fd", "9"]).join(" ");
        for (redirection, what) in [
            ("9>&-", "not open"),
            ("9</dev/null", "/dev/null"),
            ("9</", "a directory"),
        ] {
            let mut command = sh(&format!("exec {name} {arguments} {redirection}"));
            let expected = format!("descriptor 9 is {what}");
            refuses_with(name, &mut command, &expected);
        }
        let arguments = whole(name, &["--queue-fd", "2"]);
        refuses(name, &arguments, "descriptor 2 is standard error");
    }
}

/// A program does not take its own files for files that it was given.
#[test]
fn a_descriptor_that_a_program_opened_itself_is_not_open() {
    let closed: String = (3..10).map(|number| format!(" {number}>&-")).collect();
    for name in PROGRAMS {
        for number in 3..10 {
            let arguments = whole(name, &["--queue-fd", &number.to_string()]).join(" ");
            let mut command = sh(&format!("exec {name} {arguments}{closed}"));
            let expected = format!("descriptor {number} is not open");
            refuses_with(name, &mut command, &expected);
        }
    }
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    for name in PROGRAMS {
        refuses(name, &whole(name, &["-v", "-q"]), "cannot be used with");
    }
    let both = ["--fd", "3", "--activate", "cat"];
    refuses("fdrecv", &both, "cannot be used with");
}

/// Expects that each program says of this command why it cannot be run, and binds nothing.
#[track_caller]
fn cannot_run(command: &str, cause: &str, status: i32) {
    let names = Names::new();
    let address = &names.path();
    let shown = if command.is_empty() { "''" } else { command };
    for (name, arguments) in [
        ("fdaccept", &[address, "--", command][..]),
        ("fdrecv", &["--bind", address, "--", command]),
        ("fdpool", &["--bind", address, "4", "--", command]),
        ("fdrecv", &["--", command]),
        ("fdpool", &["4", "--", command]),
    ] {
        let (code, _, message) = run(program(name).args(arguments));
        assert_eq!(message, format!("{name}: cannot run {shown}: {cause}"));
        assert_eq!(code, Some(status));
        assert!(names.is_empty());
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
    let prints = |name: &str, option: &str| {
        let (status, output, stderr) = run(program(name).arg(option));
        assert_eq!((status, stderr.as_str()), (Some(0), ""));
        output
    };
    for name in PROGRAMS {
        for option in ["--help", "-h"] {
            let help = prints(name, option);
            assert!(help.contains(&format!("Usage: {name} [OPTIONS]")), "{help}");
            assert!(help.contains("--queue-fd"), "{help}");
        }
        let version = format!("{name} {}\n", env!("CARGO_PKG_VERSION"));
        for option in ["--version", "-V"] {
            assert_eq!(prints(name, option), version);
        }
    }
}

#[test]
fn an_answer_that_cannot_be_written_is_a_failure() {
    let (_, without_reader) = std::io::pipe().unwrap();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let file = tempfile::tempfile().unwrap();
    for (output, before, cause) in [
        (OwnedFd::from(without_reader), ":", "Broken pipe"),
        (full.into(), ":", "No space left on device"),
        (
            File::open("/dev/null").unwrap().into(),
            "exec >&-",
            "it is closed",
        ),
        // The limit comes before the first byte.
        (file.into(), "ulimit -f 0", "File too large"),
    ] {
        for name in PROGRAMS {
            for option in ["--help", "-h", "--version", "-V"] {
                let text = format!("{before}; exec {name} {option}");
                let mut command = sh(&text);
                let mut process = command.stdout(output.try_clone().unwrap()).start();
                let expected = format!("{name}: cannot write to standard output: {cause}");
                assert_eq!(process.expect_end(1), expected);
            }
        }
    }
}

#[test]
fn what_follows_the_command_is_the_commands() {
    let chain = |words: &str| Fdaccept::chain(words.split(' ')).start();
    for words in [
        "fdpool 4 -- cat -n",
        "fdpool 4 cat -n",
        "fdpool -q 4 cat -n",
        "fdrecv -- cat -n",
        "fdrecv cat -n",
    ] {
        let process = chain(words);
        let answer = exchange(process.port, b"x\n");
        assert_eq!(answer, b"     1\tx\n", "{words}");
    }
    // Also what fdtools would understand.
    let process = chain("fdrecv echo --help -q 4");
    assert_eq!(process.client().rest(), "--help -q 4\n");
}

#[test]
fn arguments_that_are_not_utf8_are_no_crash() {
    let odd = OsStr::from_bytes(b"\xff\xfe");
    for name in PROGRAMS {
        let mut command = program(name);
        let (status, _, message) = run(command.arg("--mode").arg(odd).args(whole(name, &[])));
        assert_eq!(status, Some(2), "{message}");
        assert!(message.starts_with(&format!("{name}: ")), "{message}");
    }
    let (status, _, message) = run(program("fdaccept").arg(odd));
    check("fdaccept", status, &message, "write ./NAME");
    let (status, _, message) = run(program("fdpool").arg(odd).arg("cat"));
    assert_eq!(status, Some(2), "{message}");
    for words in [&["fdrecv"][..], &["fdpool", "4"], &["fdaccept", "0", "--"]] {
        let (status, _, message) = run(program(words[0]).args(&words[1..]).arg(odd));
        assert_eq!(status, Some(127), "{message}");
        assert!(message.contains("cannot run"), "{message}");
    }
}

/// A terminal must not obey what somebody put into a script's arguments.
#[test]
fn control_characters_of_arguments_do_not_reach_the_terminal() {
    let checks = |name: &str, arguments: &[&str]| {
        let (_, _, message) = run(program(name).args(arguments));
        assert!(message.starts_with(&format!("{name}: ")), "{message:?}");
        assert!(!message.contains('\x1b'), "{message:?}");
    };
    for name in PROGRAMS {
        checks(name, &["--\x1b[31mx"]);
        checks(name, &whole(name, &["--mode=\x1b[31m"]));
        checks(name, &whole(name, &["--bind=/no/such/\x1b[31m"]));
    }
    checks("fdrecv", &["no\x1b[31m"]);
    checks("fdpool", &["4", "no\x1b[31m"]);
    checks("fdaccept", &["0", "--", "no\x1b[31m"]);
}

/// A command prefix that takes all devices away. `None` if the machine forbids the mount.
fn without_devices() -> Option<[String; 5]> {
    let unshare = peer("unshare").filter(|_| root())?;
    let unshare = unshare.into_os_string().into_string().unwrap();
    let text = "mount -t tmpfs none /dev || exit 77; exec \"$@\"";
    let words = [&unshare, "--mount", "sh", "-c", text].map(str::to_owned);
    let mut trial = Command::new(&words[0]);
    let (status, _, stderr) = run(trial.args(&words[1..]).args(["sh", "true"]));
    if status != Some(0) {
        skip(&format!("no mounts of its own: {stderr}"));
        return None;
    }
    Some(words)
}

#[test]
fn without_dev_null_nothing_starts_and_nothing_is_taken() {
    let prefix = needs!(without_devices());
    let names = Names::new();
    let queue = Queue::new();
    let _client = queue.client();
    for (name, arguments) in [
        ("fdaccept", &["--bind", "./queue", "./listener"][..]),
        (
            "fdaccept",
            &[
                "--port-file",
                "./ports",
                ADDRESS,
                "--",
                "touch",
                "./started",
            ],
        ),
        ("fdpool", &["1", "cat"]),
        ("fdpool", &["--worker", "1", "cat"]),
        ("fdpool", &["--bind", "./queue", "1", "cat"]),
        ("fdpool", &["--connect", "./queue", "1", "cat"]),
        ("fdrecv", &["cat"]),
        ("fdrecv", &["--activate", "cat"]),
        ("fdrecv", &["--fd", "5", "cat"]),
        ("fdrecv", &["--connect", "./queue", "--timeout", "9", "cat"]),
    ] {
        let mut command = Command::new(&prefix[0]);
        command
            .args(&prefix[1..])
            .arg("sh")
            .arg(bin_dir().join(name));
        command.args(arguments).current_dir(&names.directory);
        let mut process = command.stdin(queue.input()).start();
        let expected = format!("{name}: cannot open /dev/null: No such file or directory");
        assert_eq!(process.expect_end(1), expected, "{arguments:?}");
        assert!(names.is_empty(), "{arguments:?}");
    }
    assert!(queue.has_one());
}
