//! What a handler finds when it starts: descriptors, signals, environment, process group, limits;
//! and what its client sees of it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::support::{self, *};
use fdtools::queue::message::Info;
use fdtools::queue::{Received, Receiver, Sender, pair};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, connect, socket};
use nix::unistd::{Pid, getegid, geteuid};

/// A handler that tells its process id and is a plain program from then on.
const REPORT: [&str; 3] = ["sh", "-c", "echo $$; exec cat"];
/// The same within a script.
const REPORT_WORDS: &str = "sh -c 'echo $$; exec cat'";
/// A command that stops itself, to be looked at.
const STOPPED: [&str; 3] = ["sh", "-c", "kill -STOP $$"];
/// Both programs that start handlers.
const CONSUMERS: [&[&str]; 2] = [&["fdpool", "1"], &["fdrecv"]];

/// `fdaccept 127.0.0.1:0 -- CONSUMER -- HANDLER`.
fn chain(consumer: &[&str], handler: &[&str]) -> Command {
    let mut command = program("fdaccept");
    command.args(["127.0.0.1:0", "--"]);
    command.args(consumer).arg("--").args(handler);
    command
}

/// Reads one line that a handler sent.
fn line(client: &mut impl Read) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while client.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

/// Waits until the handler [`REPORT`] is what it becomes, with all that a program opens and closes
/// when it starts behind it, and returns its process id.
fn reported(client: &mut (impl Read + Write)) -> Pid {
    let pid = Pid::from_raw(line(client).parse().unwrap());
    client.write_all(b"ready\n").unwrap();
    assert_eq!(line(client), "ready");
    pid
}

/// A handler that runs, and what it serves.
struct Running {
    process: Process,
    client: TcpStream,
    pid: Pid,
}

/// Starts a command that serves [`REPORT`] behind a port that it announces, and is its client.
fn running(command: &mut Command) -> Running {
    let mut process = Process::start(command);
    let port = process.port();
    let mut client = support::connect(port);
    let pid = reported(&mut client);
    Running {
        process,
        client,
        pid,
    }
}

/// A field of /proc/PID/status.
fn status_field(pid: Pid, name: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let lines = text.lines();
    let mut fields = lines.filter_map(|line| line.split_once(":\t"));
    let found = fields.find(|(field, _)| *field == name);
    found.unwrap().1.to_owned()
}

/// A set of signals of /proc/PID/status.
fn signal_set(pid: Pid, name: &str) -> u64 {
    u64::from_str_radix(&status_field(pid, name), 16).unwrap()
}

/// The signals that a process ignores. The two that the C library keeps for itself do not count:
/// its posix_spawn(3) leaves them ignored, also where it is a test that is started by it.
fn ignored(pid: Pid) -> u64 {
    signal_set(pid, "SigIgn") & !(0b11 << 31)
}

/// The process group of a process.
fn group(pid: Pid) -> Pid {
    nix::unistd::getpgid(Some(pid)).unwrap()
}

fn environment(pid: Pid) -> BTreeMap<String, String> {
    let bytes = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    let entries = bytes.split(|byte| *byte == 0);
    let entries = entries.map(|entry| String::from_utf8_lossy(entry).into_owned());
    entries
        .filter_map(|entry| {
            entry
                .split_once('=')
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
        })
        .collect()
}

#[track_caller]
fn assert_only_the_standard_three(pid: Pid) {
    let open = descriptors(pid);
    let numbers: Vec<_> = open.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, [0, 1, 2], "{open:?}");
    assert!(open[0].1.starts_with("socket:"), "{open:?}");
    assert_eq!(open[0].1, open[1].1, "{open:?}");
}

/// A queue of this process, and what a consumer gets as its standard input.
fn queue() -> (Sender, Receiver) {
    pair().unwrap()
}

fn input(queue: &Receiver) -> Stdio {
    Stdio::from(queue.as_fd().try_clone_to_owned().unwrap())
}

/// Both sides of a TCP connection.
fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = support::connect(listener.local_addr().unwrap().port());
    (client, listener.accept().unwrap().0)
}

/// Puts a new connection into a queue and returns its client's side.
fn send_one(sender: &Sender) -> TcpStream {
    let (client, server) = tcp_pair();
    sender.send(server, &Info::new()).unwrap();
    client
}

fn has_one(receiver: &Receiver) -> bool {
    matches!(
        receiver.try_receive().unwrap(),
        Some(Received::Connection(_))
    )
}

// Descriptors.

#[test]
fn a_handler_sees_exactly_descriptors_0_1_and_2() {
    for consumer in CONSUMERS {
        let running = running(&mut chain(consumer, &REPORT));
        assert_only_the_standard_three(running.pid);
    }
}

const STRAY: &str = "exec 3</dev/null 4</dev/null 5</dev/null 6</dev/null 7</dev/null \
                     8</dev/null 9</dev/null\n";

#[test]
fn a_handler_sees_none_of_the_stray_descriptors_of_a_chain() {
    for consumer in ["fdpool 1", "fdrecv"] {
        let text = format!("{STRAY} exec fdaccept 127.0.0.1:0 -- {consumer} -- {REPORT_WORDS}");
        let running = running(&mut script("sh", &text));
        assert_only_the_standard_three(running.pid);
    }
}

#[test]
fn a_handler_sees_none_of_the_stray_descriptors_of_a_pipeline() {
    for consumer in ["fdpool 1", "fdrecv"] {
        let text = format!("{STRAY} fdaccept 127.0.0.1:0 | {consumer} -- {REPORT_WORDS}");
        let running = running(&mut script("sh", &text));
        assert_only_the_standard_three(running.pid);
    }
}

#[test]
fn a_handler_sees_none_of_the_stray_descriptors_beside_a_named_queue() {
    for consumer in ["fdpool --connect \"$NAME\" 1", "fdrecv --connect \"$NAME\""] {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join("queue");
        let mut acceptor = program("fdaccept");
        acceptor.arg("--bind").arg(&name).arg("127.0.0.1:0");
        let mut acceptor = Process::start(&mut acceptor);
        let port = acceptor.port();
        let text = format!("{STRAY} exec {consumer} -- {REPORT_WORDS}");
        let _consumer = Process::start(script("sh", &text).env("NAME", &name));
        let mut client = support::connect(port);
        assert_only_the_standard_three(reported(&mut client));
    }
}

#[test]
fn a_handler_sees_none_of_the_stray_descriptors_beside_queue_fd() {
    for consumer in ["fdpool --queue-fd 7 1", "fdrecv --queue-fd 7"] {
        let (sender, receiver) = queue();
        let text = format!("{STRAY} exec {consumer} -- {REPORT_WORDS} 7<&0 </dev/null");
        let _consumer = Process::start(script("sh", &text).stdin(input(&receiver)));
        let mut client = send_one(&sender);
        assert_only_the_standard_three(reported(&mut client));
    }
}

#[test]
fn a_handler_has_its_connection_though_the_standard_descriptors_were_closed() {
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().join("queue");
    let mut acceptor = program("fdaccept");
    acceptor.arg("--bind").arg(&name).arg("127.0.0.1:0");
    let mut acceptor = Process::start(&mut acceptor);
    let port = acceptor.port();
    for consumer in ["fdpool --connect \"$NAME\" 1", "fdrecv --connect \"$NAME\""] {
        let text = format!("exec {consumer} -- {REPORT_WORDS} <&- >&- 2>&-");
        let _consumer = Process::start(script("sh", &text).env("NAME", &name));
        let mut client = support::connect(port);
        assert_only_the_standard_three(reported(&mut client));
    }
}

#[test]
fn a_handler_finds_a_blocking_connection_that_its_sender_had_non_blocking() {
    for consumer in CONSUMERS {
        let (sender, receiver) = queue();
        let (mut client, server) = tcp_pair();
        server.set_nonblocking(true).unwrap();
        sender.send(&server, &Info::new()).unwrap();
        drop(server);
        let mut command = program(consumer[0]);
        command.args(&consumer[1..]).arg("--").args(REPORT);
        let _consumer = Process::start(command.stdin(input(&receiver)));
        let pid = reported(&mut client);
        for number in [0, 1] {
            let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:\t"));
            let flags = i32::from_str_radix(flags.unwrap(), 8).unwrap();
            assert_eq!(flags & nix::libc::O_NONBLOCK, 0, "{info}");
        }
    }
}

// Signals.

#[test]
fn a_handler_finds_every_signal_at_its_default() {
    for consumer in CONSUMERS {
        let running = running(&mut chain(consumer, &REPORT));
        assert_eq!(ignored(running.pid), 0, "{consumer:?}");
        assert_eq!(signal_set(running.pid, "SigCgt"), 0, "{consumer:?}");
    }
}

#[test]
fn a_handler_finds_every_signal_at_its_default_though_its_parents_ignored_some() {
    for consumer in ["fdpool 1", "fdrecv"] {
        let text = format!(
            "trap '' HUP INT QUIT PIPE ALRM TERM USR1 USR2 CHLD TSTP TTIN TTOU\n\
             exec fdaccept 127.0.0.1:0 -- {consumer} -- {REPORT_WORDS}"
        );
        let running = running(&mut script("sh", &text));
        assert!(ignored(running.process.pid()) & 1 != 0);
        assert_eq!(ignored(running.pid), 0, "{consumer}");
        assert_eq!(signal_set(running.pid, "SigCgt"), 0, "{consumer}");
    }
}

#[test]
fn a_handler_finds_no_signal_blocked() {
    for consumer in CONSUMERS {
        let running = running(&mut chain(consumer, &REPORT));
        assert_eq!(signal_set(running.pid, "SigBlk"), 0, "{consumer:?}");
    }
}

fn start_with_signals_blocked(mut command: Command) -> Process {
    let start = move || {
        // For this thread, and what it starts.
        SigSet::all().thread_block().unwrap();
        Process::start(&mut command)
    };
    std::thread::spawn(start).join().unwrap()
}

#[test]
fn a_handler_finds_no_signal_blocked_though_its_parents_blocked_all() {
    for consumer in CONSUMERS {
        let mut process = start_with_signals_blocked(chain(consumer, &REPORT));
        let port = process.port();
        assert!(signal_set(process.pid(), "SigBlk") & 1 != 0);
        let mut client = support::connect(port);
        let pid = reported(&mut client);
        assert_eq!(signal_set(pid, "SigBlk"), 0, "{consumer:?}");
    }
}

/// Leaves in the order in which the other side learns of it as `EPIPE`: its end, then a reset. To
/// a reset alone it is `ECONNRESET`, which is no signal.
fn leave(client: TcpStream) {
    client.shutdown(Shutdown::Write).unwrap();
}

#[test]
fn yes_dies_of_sigpipe_when_the_client_of_a_pool_leaves() {
    let mut pool = Process::start(&mut chain(&["fdpool", "-v", "1"], &["yes"]));
    let mut client = support::connect(pool.port());
    assert_eq!(line(&mut client), "y");
    leave(client);
    let end = pool.line(": end ");
    let sigpipe = format!(" status {}", Signal::SIGPIPE as i32);
    assert!(end.ends_with(&sigpipe), "{end}");
}

#[test]
fn yes_dies_of_sigpipe_when_the_client_of_fdrecv_leaves() {
    let (sender, receiver) = queue();
    let mut client = send_one(&sender);
    let mut command = program("fdrecv");
    let mut yes = Process::start(command.args(["--", "yes"]).stdin(input(&receiver)));
    assert_eq!(line(&mut client), "y");
    leave(client);
    assert_eq!(yes.wait().signal(), Some(Signal::SIGPIPE as i32));
}

// Environment.

/// The variables of the table that a handler has.
fn told(pid: Pid) -> BTreeMap<String, String> {
    let mut all = environment(pid);
    all.retain(|name, _| {
        fdtools::queue::message::VARIABLES
            .iter()
            .any(|v| v.name() == name)
    });
    all
}

fn expected<const N: usize>(variables: [(&str, String); N]) -> BTreeMap<String, String> {
    let variables = variables.into_iter();
    variables
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

#[test]
fn a_handler_of_a_tcp_client_finds_the_documented_environment() {
    for consumer in CONSUMERS {
        let running = running(&mut chain(consumer, &REPORT));
        let (remote, local) = (running.client.local_addr(), running.client.peer_addr());
        let (remote, local) = (remote.unwrap(), local.unwrap());
        let expected = expected([
            ("PROTO", "TCP".into()),
            ("TCPREMOTEIP", "127.0.0.1".into()),
            ("TCPREMOTEPORT", remote.port().to_string()),
            ("TCPLOCALIP", "127.0.0.1".into()),
            ("TCPLOCALPORT", local.port().to_string()),
            ("REMOTE_ADDR", "127.0.0.1".into()),
            ("REMOTE_PORT", remote.port().to_string()),
        ]);
        assert_eq!(told(running.pid), expected, "{consumer:?}");
    }
}

#[test]
fn a_handler_of_a_bare_connection_finds_the_same_environment() {
    for consumer in CONSUMERS {
        let (sender, receiver) = queue();
        let mut client = send_one(&sender);
        let mut command = program(consumer[0]);
        command.args(&consumer[1..]).arg("--").args(REPORT);
        let _consumer = Process::start(command.stdin(input(&receiver)));
        let pid = reported(&mut client);
        let remote = client.local_addr().unwrap().port().to_string();
        let expected = expected([
            ("PROTO", "TCP".into()),
            ("TCPREMOTEIP", "127.0.0.1".into()),
            ("TCPREMOTEPORT", remote.clone()),
            ("TCPLOCALIP", "127.0.0.1".into()),
            (
                "TCPLOCALPORT",
                client.peer_addr().unwrap().port().to_string(),
            ),
            ("REMOTE_ADDR", "127.0.0.1".into()),
            ("REMOTE_PORT", remote),
        ]);
        assert_eq!(told(pid), expected, "{consumer:?}");
    }
}

#[test]
fn an_ipv4_client_of_a_port_for_both_families_has_a_plain_ipv4_address() {
    for consumer in CONSUMERS {
        let mut command = program("fdaccept");
        command.args(["0", "--"]);
        command.args(consumer).arg("--").args(REPORT);
        let running = running(&mut command);
        let told = told(running.pid);
        for name in ["TCPREMOTEIP", "TCPLOCALIP", "REMOTE_ADDR"] {
            assert_eq!(told[name], "127.0.0.1", "{name}");
        }
    }
}

/// `fdaccept PATH -- CONSUMER -- HANDLER`, once it listens.
fn unix_chain(consumer: &[&str], path: &Path) -> Process {
    let mut command = program("fdaccept");
    command.arg(path).arg("--");
    command.args(consumer).arg("--").args(REPORT);
    let mut process = Process::start(&mut command);
    process.listening();
    process
}

fn told_of_unix_client(path: &Path) -> [(&'static str, String); 5] {
    [
        ("PROTO", "IPC".into()),
        ("IPCREMOTEEUID", geteuid().to_string()),
        ("IPCREMOTEEGID", getegid().to_string()),
        ("IPCREMOTEPID", std::process::id().to_string()),
        ("IPCLOCALPATH", path.to_str().unwrap().into()),
    ]
}

#[test]
fn a_handler_of_a_unix_client_finds_the_documented_environment() {
    for consumer in CONSUMERS {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let _process = unix_chain(consumer, &path);
        let mut client = connect_unix(&path);
        let told = told(reported(&mut client));
        assert_eq!(told, expected(told_of_unix_client(&path)), "{consumer:?}");
    }
}

#[test]
fn a_handler_of_a_unix_client_with_a_name_finds_that_name() {
    for consumer in CONSUMERS {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let own = folder.path().join("client");
        let _process = unix_chain(consumer, &path);
        let flags = SockFlag::SOCK_CLOEXEC;
        let client: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        bind(client.as_raw_fd(), &UnixAddr::new(&own).unwrap()).unwrap();
        connect(client.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        let mut client = UnixStream::from(client);
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        let told = told(reported(&mut client));
        let mut expected = expected(told_of_unix_client(&path));
        let own = own.to_str().unwrap();
        expected.insert("IPCREMOTEPATH".into(), own.into());
        assert_eq!(told, expected, "{consumer:?}");
    }
}

#[test]
fn a_handler_finds_no_stale_copy_of_its_variables() {
    for consumer in CONSUMERS {
        let (sender, receiver) = queue();
        let mut command = program(consumer[0]);
        command.args(&consumer[1..]).arg("--").args(REPORT);
        for variable in fdtools::queue::message::VARIABLES {
            command.env(variable.name(), "stale");
        }
        let (mut client, server) = UnixStream::pair().unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        sender.send(server, &Info::new()).unwrap();
        let _consumer = Process::start(command.stdin(input(&receiver)));
        let told = told(reported(&mut client));
        assert_eq!(told["PROTO"], "IPC");
        assert!(!told.values().any(|value| value == "stale"), "{told:?}");
    }
}

#[test]
fn a_handler_finds_nothing_that_a_service_manager_meant_for_its_parents() {
    const NAMES: [&str; 5] = [
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
        "LISTEN_PIDFDID",
        "NOTIFY_SOCKET",
    ];
    for consumer in CONSUMERS {
        let (sender, receiver) = queue();
        let mut command = program(consumer[0]);
        command.args(&consumer[1..]).arg("--").args(REPORT);
        command.envs(NAMES.map(|name| (name, "1")));
        command.env("FDTOOLS_TEST_KEPT", "kept");
        let mut client = send_one(&sender);
        let _consumer = Process::start(command.stdin(input(&receiver)));
        let environment = environment(reported(&mut client));
        assert_eq!(environment["FDTOOLS_TEST_KEPT"], "kept");
        for name in NAMES {
            assert_eq!(environment.get(name), None, "{name} {consumer:?}");
        }
    }
}

// What the client sees.

#[test]
fn a_client_that_shuts_its_sending_side_still_gets_its_answer() {
    for consumer in CONSUMERS {
        let handler = ["sh", "-c", "text=$(cat); echo \"all of it: $text\""];
        let mut process = Process::start(&mut chain(consumer, &handler));
        let answer = exchange(process.port(), b"some\nlines\n");
        assert_eq!(answer, b"all of it: some\nlines\n");
    }
}

#[test]
fn a_client_sees_the_end_when_its_handler_exits_while_others_run() {
    let handler = ["sh", "-c", "echo here; read line; echo \"$line\""];
    let mut process = Process::start(&mut chain(&["fdpool", "4"], &handler));
    let port = process.port();
    let mut clients: Vec<_> = (0..4).map(|_| support::connect(port)).collect();
    for client in &mut clients {
        assert_eq!(line(client), "here");
    }
    // The first ends while those that started later run, and the last while none does.
    for (number, mut client) in clients.into_iter().enumerate() {
        client.write_all(format!("{number}\n").as_bytes()).unwrap();
        let mut rest = String::new();
        client.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, format!("{number}\n"));
    }
}

#[test]
fn a_client_sees_the_end_when_the_command_of_fdrecv_exits_while_others_run() {
    let text = "fdaccept 127.0.0.1:0 | \
                { for i in 1 2 3; do fdrecv -- sh -c 'echo here; read line; echo \"$line\"' <&3 & \
                done; wait; } 3<&0";
    let mut process = Process::start(&mut script("sh", text));
    let port = process.port();
    let mut clients: Vec<_> = (0..3).map(|_| support::connect(port)).collect();
    for client in &mut clients {
        assert_eq!(line(client), "here");
    }
    for (number, mut client) in clients.into_iter().enumerate() {
        client.write_all(format!("{number}\n").as_bytes()).unwrap();
        let mut rest = String::new();
        client.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, format!("{number}\n"));
    }
}

#[test]
fn a_client_sees_the_end_when_its_handler_closes_the_connection_and_goes_on() {
    for consumer in CONSUMERS {
        let text = "echo $$; exec <&- >&-; exec sleep 100";
        let mut process = Process::start(&mut chain(consumer, &["sh", "-c", text]));
        let mut client = support::connect(process.port());
        let pid = Pid::from_raw(line(&mut client).parse().unwrap());
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty() && is_alive(pid));
        nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
    }
}

#[test]
fn a_client_that_resets_its_connection_ends_only_its_own_handler() {
    let mut process = Process::start(&mut chain(&["fdpool", "2"], &REPORT));
    let port = process.port();
    let mut one = support::connect(port);
    let (mut two, pid) = (support::connect(port), reported(&mut one));
    reported(&mut two);
    // Unread data makes the close a reset.
    one.write_all(b"unread\n").unwrap();
    until("the echo", || one.peek(&mut [0; 8]).is_ok_and(|n| n > 0));
    drop(one);
    until("the end of its handler", || !is_alive(pid));
    two.write_all(b"still here\n").unwrap();
    assert_eq!(line(&mut two), "still here");
}

// Processes.

#[test]
fn a_handler_of_a_pool_leads_a_process_group_of_its_own() {
    let running = running(&mut chain(&["fdpool", "1"], &REPORT));
    assert_eq!(group(running.pid), running.pid);
}

#[test]
fn the_command_of_fdrecv_stays_in_the_process_group() {
    let running = running(&mut chain(&["fdrecv"], &REPORT));
    assert_eq!(group(running.pid), running.process.pid());
}

#[test]
fn fdrecv_becomes_the_command() {
    let (sender, receiver) = queue();
    let mut client = send_one(&sender);
    let mut command = program("fdrecv");
    command.arg("--").args(REPORT).stdin(input(&receiver));
    let process = Process::start(&mut command);
    assert_eq!(reported(&mut client), process.pid());
}

#[test]
fn the_status_of_fdrecv_is_that_of_its_command() {
    let (sender, receiver) = queue();
    let _client = send_one(&sender);
    let mut command = program("fdrecv");
    command.args(["--", "sh", "-c", "exit 42"]);
    let (status, _, _) = run(command.stdin(input(&receiver)));
    assert_eq!(status, Some(42));
}

#[test]
fn handlers_and_the_command_of_a_chain_have_the_limit_on_descriptors_that_fdaccept_was_given() {
    let limits = "sh -c 'ulimit -S -n; ulimit -H -n'";
    for consumer in ["fdpool 1", "fdrecv"] {
        let text = format!(
            "ulimit -S -n 234; ulimit -H -n >&2\n\
             exec fdaccept 127.0.0.1:0 -- sh -c 'ulimit -S -n >&2; exec \"$@\"' sh \
             {consumer} -- {limits}"
        );
        let mut process = Process::start(&mut script("sh", &text));
        let hard = process.line("");
        assert_ne!(hard, "234", "this shows nothing");
        let port = process.port();
        assert_eq!(process.line("234"), "234");
        let answer = String::from_utf8(exchange(port, b"")).unwrap();
        assert_eq!(answer, format!("234\n{hard}\n"), "{consumer}");
    }
}

#[test]
fn handlers_behind_a_pipe_have_the_original_limit_on_descriptors() {
    let text = "ulimit -S -n 234; fdaccept 127.0.0.1:0 | fdpool 1 -- sh -c 'ulimit -S -n'";
    let mut process = Process::start(&mut script("sh", text));
    assert_eq!(exchange(process.port(), b""), b"234\n");
}

#[test]
fn a_script_that_does_not_name_its_interpreter_runs() {
    let folder = tempfile::tempdir().unwrap();
    let text = "read line\necho \"$1 $line\"\n";
    let handler = executable(folder.path().join("handler"), text);
    for consumer in CONSUMERS {
        let handler = [handler.to_str().unwrap(), "argument"];
        let mut process = Process::start(&mut chain(consumer, &handler));
        assert_eq!(exchange(process.port(), b"word\n"), b"argument word\n");
    }
}

// Commands that cannot be run.

#[track_caller]
fn assert_refused(consumer: &[&str], command: &str, expected: i32) {
    let (sender, receiver) = queue();
    let _client = send_one(&sender);
    let mut words = program(consumer[0]);
    words.args(&consumer[1..]).args(["--", command]);
    let (status, _, log) = run(words.stdin(input(&receiver)));
    assert_eq!(status, Some(expected), "{log}");
    let start = format!("{}: ", consumer[0]);
    assert!(log.starts_with(&start) && log.contains(command), "{log}");
    assert!(has_one(&receiver), "the connection is gone");
}

#[test]
fn an_unknown_command_is_127_before_any_connection_is_taken() {
    for consumer in CONSUMERS {
        assert_refused(consumer, "fdtools-no-such-command", 127);
        assert_refused(consumer, "/no/such/folder/command", 127);
    }
}

#[test]
fn a_command_that_is_not_executable_is_126_before_any_connection_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    std::fs::write(&plain, "#!/bin/sh\n").unwrap();
    for consumer in CONSUMERS {
        assert_refused(consumer, plain.to_str().unwrap(), 126);
        assert_refused(consumer, folder.path().to_str().unwrap(), 126);
    }
}

#[test]
fn a_script_whose_interpreter_is_missing_is_126_before_any_connection_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let script = executable(folder.path().join("lost"), "#!/no/such/interpreter\n");
    for consumer in CONSUMERS {
        assert_refused(consumer, script.to_str().unwrap(), 126);
    }
}

// fdrecv's own ways.

fn until_stopped(pid: Pid) {
    until("it to stop", || state(pid) == Some('T'));
}

/// The descriptors of a command of fdrecv, and what the connection is.
fn placed(option: &[&str], set_source: impl FnOnce(&mut Command, &Receiver)) -> Vec<(i32, String)> {
    let (sender, receiver) = queue();
    let (_client, server) = tcp_pair();
    sender.send(&server, &Info::new()).unwrap();
    let mut command = program("fdrecv");
    set_source(&mut command, &receiver);
    command.args(option).arg("--").args(STOPPED);
    let process = Process::start(command.stdout(Stdio::piped()));
    until_stopped(process.pid());
    let mut open = descriptors(process.pid());
    let number = server.as_raw_fd();
    let connection = std::fs::read_link(format!("/proc/self/fd/{number}")).unwrap();
    for (_, what) in &mut open {
        if Path::new(what) == connection {
            *what = "connection".into();
        } else if what.starts_with("pipe:") {
            *what = "pipe".into();
        }
    }
    open
}

#[track_caller]
fn assert_placed(number: i32, open: &[(i32, String)]) {
    let expected = [
        (0, "/dev/null".to_owned()),
        (1, "pipe".to_owned()),
        (2, "pipe".to_owned()),
        (number, "connection".to_owned()),
    ];
    assert_eq!(open, expected);
}

#[test]
fn fdrecv_fd_puts_the_connection_at_any_number_and_nothing_else() {
    for number in (3..20).chain([100]) {
        let open = placed(&["--fd", &number.to_string()], |command, queue| {
            command.stdin(input(queue));
        });
        assert_placed(number, &open);
    }
}

#[test]
fn fdrecv_fd_puts_a_connection_from_a_name_at_any_number_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().join("queue");
    let mut acceptor = program("fdaccept");
    acceptor.arg("--bind").arg(&name).arg("127.0.0.1:0");
    let mut acceptor = Process::start(&mut acceptor);
    let port = acceptor.port();
    for number in 3..16 {
        let mut command = program("fdrecv");
        command.arg("--connect").arg(&name);
        command
            .args(["--fd", &number.to_string(), "--"])
            .args(STOPPED);
        let process = Process::start(command.stdout(Stdio::piped()));
        let _client = support::connect(port);
        until_stopped(process.pid());
        let open = descriptors(process.pid());
        let numbers: Vec<_> = open.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, [0, 1, 2, number], "{open:?}");
        assert_eq!(open[0].1, "/dev/null");
        assert!(open[3].1.starts_with("socket:"), "{open:?}");
    }
}

#[test]
fn fdrecv_activate_puts_the_connection_at_3_and_nothing_else() {
    let open = placed(&["--activate"], |command, queue| {
        command.stdin(input(queue));
    });
    assert_placed(3, &open);
}

#[test]
fn fdrecv_activate_announces_the_connection_to_the_command() {
    let text = "fdaccept 127.0.0.1:0 -- fdrecv --activate -- \
                sh -c 'echo $LISTEN_FDS $LISTEN_FDNAMES $LISTEN_PID $$ $REMOTE_ADDR >&3'";
    let mut command = script("sh", text);
    command.env("LISTEN_FDNAMES", "stale:stale");
    let mut process = Process::start(&mut command);
    let answer = String::from_utf8(exchange(process.port(), b"")).unwrap();
    let words: Vec<_> = answer.split_whitespace().collect();
    assert_eq!(words[..2], ["1", "connection"], "{answer}");
    assert_eq!(words[2], words[3], "{answer}");
    assert_eq!(words[4], "127.0.0.1", "{answer}");
}

#[track_caller]
fn assert_wrong_usage(options: &str, text: &str) {
    let (sender, receiver) = queue();
    let _client = send_one(&sender);
    let command = format!("ulimit -S -n 64; exec fdrecv {options} -- cat");
    let (status, _, log) = run(script("sh", &command).stdin(input(&receiver)));
    assert_eq!(status, Some(2), "{log}");
    assert!(log.starts_with("fdrecv: ") && log.contains(text), "{log}");
    assert!(has_one(&receiver), "the connection is gone");
}

#[test]
fn fdrecv_fd_and_activate_together_are_refused() {
    assert_wrong_usage("--fd 5 --activate", "--activate");
}

#[test]
fn fdrecv_fd_beyond_the_limit_is_refused_before_a_connection_is_taken() {
    assert_wrong_usage("--fd 64", "limit");
    assert_wrong_usage("--fd 2147483647", "limit");
}

#[test]
fn fdrecv_gives_up_after_its_timeout_and_takes_nothing() {
    let (sender, receiver) = queue();
    let mut command = program("fdrecv");
    command.args(["--timeout", "0.2", "--", "cat"]);
    let (status, _, log) = run(command.stdin(input(&receiver)));
    assert_eq!(status, Some(69), "{log}");
    let _client = send_one(&sender);
    assert!(has_one(&receiver));
}

#[test]
fn a_connection_that_comes_as_fdrecv_gives_up_is_served_or_stays() {
    let mut served = 0;
    for round in 0..100u64 {
        let (sender, receiver) = queue();
        let mut command = program("fdrecv");
        command.args(["--timeout", "0.03", "--", "sh", "-c", "echo served"]);
        let mut process = Process::start(command.stdin(input(&receiver)));
        // Around the time that it takes to start, and to give up.
        sleep(Duration::from_micros(28_000 + round * 200));
        let mut client = send_one(&sender);
        let status = process.wait();
        match status.code() {
            Some(0) => {
                let mut answer = String::new();
                client.read_to_string(&mut answer).unwrap();
                assert_eq!(answer, "served\n");
                served += 1;
            }
            Some(69) => assert!(has_one(&receiver), "taken in round {round}"),
            _ => panic!("{status:?} in round {round}: {}", process.log()),
        }
    }
    eprintln!("{served} of 100 were served");
}

/// Waits until fdrecv watches for signals: from then on one breaks off its wait.
fn until_it_waits(pid: Pid) {
    until("fdrecv to wait", || {
        signal_set(pid, "SigCgt") & (1 << (Signal::SIGTERM as i32 - 1)) != 0
            && state(pid) == Some('S')
    });
}

#[test]
fn a_signal_ends_fdrecv_while_it_waits_and_it_takes_nothing() {
    let signals = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];
    for signal in signals {
        let (sender, receiver) = queue();
        let mut command = program("fdrecv");
        let mut process = Process::start(command.args(["--", "cat"]).stdin(input(&receiver)));
        until_it_waits(process.pid());
        process.signal(signal);
        assert_eq!(process.wait().signal(), Some(signal as i32));
        let _client = send_one(&sender);
        assert!(has_one(&receiver));
    }
}

#[test]
fn a_signal_that_came_before_fdrecv_waits_is_not_missed() {
    for _ in 0..20 {
        let (_sender, receiver) = queue();
        let mut command = program("fdrecv");
        command.args(["--", "cat"]).stdin(input(&receiver));
        // It comes when fdrecv unblocks it, which is before it waits.
        let mut process = start_with_signals_blocked(command);
        process.signal(Signal::SIGTERM);
        assert_eq!(process.wait().signal(), Some(Signal::SIGTERM as i32));
    }
}

#[test]
fn the_time_to_give_up_does_not_count_for_the_command() {
    let (sender, receiver) = queue();
    let mut command = program("fdrecv");
    command.args(["--timeout", "0.3", "--"]).args(REPORT);
    let mut client = send_one(&sender);
    let mut process = Process::start(command.stdin(input(&receiver)));
    reported(&mut client);
    // A time that passes is what this is about.
    sleep(Duration::from_millis(600));
    client.write_all(b"still here\n").unwrap();
    assert_eq!(line(&mut client), "still here");
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn stopping_and_continuing_fdrecv_does_not_end_its_wait() {
    let (sender, receiver) = queue();
    let mut command = program("fdrecv");
    let process = Process::start(command.arg("--").args(REPORT).stdin(input(&receiver)));
    until_it_waits(process.pid());
    process.signal(Signal::SIGSTOP);
    until_stopped(process.pid());
    process.signal(Signal::SIGCONT);
    let client = send_one(&sender);
    let mut first = String::new();
    BufReader::new(client).read_line(&mut first).unwrap();
    assert_eq!(first.trim_end(), process.pid().to_string());
}
