//! What a handler finds when it starts: descriptors, signals, environment, process group, limits;
//! and what its client sees of it.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::support::*;
use fdtools::queue::message::VARIABLES;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::socket::{SockType, UnixAddr, bind, connect};
use nix::unistd::{Pid, getegid, geteuid, getpgid};

/// A handler that tells its process id and is a plain program from then on.
const REPORT: [&str; 3] = ["sh", "-c", "echo $$; exec cat"];
/// The same within a script.
const REPORT_WORDS: &str = "sh -c 'echo $$; exec cat'";
/// A command that stops itself, to be looked at.
const STOPPED: [&str; 3] = ["sh", "-c", "kill -STOP $$"];
/// Both programs that start handlers. A slot has a copy of the connection, or none.
const CONSUMERS: [&[&str]; 3] = [
    &["fdpool", "1"],
    &["fdpool", "--linger", "0", "1"],
    &["fdrecv"],
];

/// `fdaccept 127.0.0.1:0 -- CONSUMER -- HANDLER`.
fn chain(consumer: &[&str], handler: &[&str]) -> Fdaccept {
    Fdaccept::chain([consumer, &["--"], handler].concat())
}

/// `CONSUMER -- HANDLER` with its queue here.
fn on(queue: &Queue, words: &[&str], handler: &[&str]) -> Command {
    let mut command = program(words[0]);
    command.args(&words[1..]).arg("--").args(handler);
    command.stdin(queue.input());
    command
}

/// A handler that runs, and what it serves.
struct Running {
    process: Process,
    client: Client,
    pid: Pid,
}

/// A process that has just been started serves [`REPORT`] behind a port that it announces.
fn running(mut process: Process) -> Running {
    let client = Client::connect(process.port());
    Running::new(process, client)
}

impl Running {
    fn new(process: Process, client: Client) -> Self {
        let pid = client.reported();
        Self {
            process,
            client,
            pid,
        }
    }

    /// [`REPORT`] in a chain.
    fn chain(consumer: &[&str]) -> Self {
        Self::behind(chain(consumer, &REPORT))
    }

    fn behind(chain: Fdaccept) -> Self {
        let acceptor = chain.start();
        let client = acceptor.client();
        Self::new(acceptor.process, client)
    }
}

#[track_caller]
fn assert_only_the_standard_three(pid: Pid) {
    let open = descriptors(pid);
    let numbers: Vec<_> = open.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, [0, 1, 2], "{open:?}");
    assert!(open[0].1.starts_with("socket:"), "{open:?}");
    assert_eq!(open[0].1, open[1].1, "{open:?}");
}

// Descriptors.

#[test]
fn a_handler_sees_exactly_descriptors_0_1_and_2() {
    for consumer in CONSUMERS {
        let running = Running::chain(consumer);
        assert_only_the_standard_three(running.pid);
    }
}

const STRAY: &str = "exec 3</dev/null 4</dev/null 5</dev/null 6</dev/null 7</dev/null \
                     8</dev/null 9</dev/null\n";

/// `fdaccept` is a command line up to its consumer.
#[track_caller]
fn assert_no_stray_descriptors(fdaccept: &str) {
    for consumer in ["fdpool 1", "fdpool --linger 0 1", "fdrecv"] {
        let text = format!("{STRAY} {fdaccept} {consumer} -- {REPORT_WORDS}");
        let running = running(sh(&text).start());
        assert_only_the_standard_three(running.pid);
    }
}

cases! {
    assert_no_stray_descriptors;
    a_handler_sees_none_of_the_stray_descriptors_of_a_chain: "exec fdaccept 127.0.0.1:0 --";
    a_handler_sees_none_of_the_stray_descriptors_of_a_pipeline: "fdaccept 127.0.0.1:0 |";
}

#[test]
fn a_handler_sees_none_of_the_stray_descriptors_beside_a_named_queue() {
    for consumer in ["fdpool --connect \"$NAME\" 1", "fdrecv --connect \"$NAME\""] {
        let acceptor = Fdaccept::bound().start();
        let text = format!("{STRAY} exec {consumer} -- {REPORT_WORDS}");
        let _consumer = sh(&text).env("NAME", acceptor.name()).start();
        let client = acceptor.client();
        assert_only_the_standard_three(client.reported());
    }
}

#[test]
fn a_handler_sees_none_of_the_stray_descriptors_beside_queue_fd() {
    for consumer in ["fdpool --queue-fd 7 1", "fdrecv --queue-fd 7"] {
        let queue = Queue::new();
        let text = format!("{STRAY} exec {consumer} -- {REPORT_WORDS} 7<&0 </dev/null");
        let _consumer = sh(&text).stdin(queue.input()).start();
        let client = queue.tcp_client();
        assert_only_the_standard_three(client.reported());
    }
}

#[test]
fn a_handler_has_its_connection_though_the_standard_descriptors_were_closed() {
    let acceptor = Fdaccept::bound().start();
    for consumer in ["fdpool --connect \"$NAME\" 1", "fdrecv --connect \"$NAME\""] {
        let text = format!("exec {consumer} -- {REPORT_WORDS} <&- >&- 2>&-");
        let _consumer = sh(&text).env("NAME", acceptor.name()).start();
        let client = acceptor.client();
        assert_only_the_standard_three(client.reported());
    }
}

#[test]
fn a_handler_finds_a_blocking_connection_that_its_sender_had_non_blocking() {
    for consumer in CONSUMERS {
        let queue = Queue::new();
        let (client, server) = tcp_pair();
        let client = Client(client);
        server.set_nonblocking(true).unwrap();
        queue.send(server);
        let _consumer = on(&queue, consumer, &REPORT).start();
        let pid = client.reported();
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
        let running = Running::chain(consumer);
        assert_eq!(ignored(running.pid), 0, "{consumer:?}");
        assert_eq!(signal_set(running.pid, "SigCgt"), 0, "{consumer:?}");
    }
}

#[test]
fn a_handler_finds_every_signal_at_its_default_though_its_parents_ignored_some() {
    for consumer in ["fdpool 1", "fdpool --linger 0 1", "fdrecv"] {
        let text = format!(
            "trap '' HUP INT QUIT PIPE ALRM TERM USR1 USR2 CHLD TSTP TTIN TTOU\n\
             exec fdaccept 127.0.0.1:0 -- {consumer} -- {REPORT_WORDS}"
        );
        let running = running(sh(&text).start());
        assert!(ignored(running.process.pid()) & 1 != 0);
        assert_eq!(ignored(running.pid), 0, "{consumer}");
        assert_eq!(signal_set(running.pid, "SigCgt"), 0, "{consumer}");
    }
}

#[test]
fn the_command_of_a_chain_finds_signals_as_fdaccept_was_given_them() {
    let text = "trap '' USR2; exec fdaccept 127.0.0.1:0 -- sleep 100";
    let mut process = sh(text).start();
    process.port();
    let sleep = eventually("a consumer", || process.children().first().copied());
    until_named(sleep, "sleep");
    let usr2 = 1 << (Signal::SIGUSR2 as i32 - 1);
    assert_eq!(ignored(sleep), usr2);
    assert_eq!(signal_set(sleep, "SigBlk"), 0);
}

#[test]
fn a_handler_finds_no_signal_blocked() {
    for consumer in CONSUMERS {
        let running = Running::chain(consumer);
        assert_eq!(signal_set(running.pid, "SigBlk"), 0, "{consumer:?}");
    }
}

fn with_signals_blocked<T: Send>(start: impl FnOnce() -> T + Send) -> T {
    let blocked = || {
        // For this thread, and what it starts.
        SigSet::all().thread_block().unwrap();
        start()
    };
    std::thread::scope(|scope| scope.spawn(blocked).join().unwrap())
}

#[test]
fn a_handler_finds_no_signal_blocked_though_its_parents_blocked_all() {
    for consumer in CONSUMERS {
        let acceptor = with_signals_blocked(|| chain(consumer, &REPORT).start());
        assert!(signal_set(acceptor.pid(), "SigBlk") & 1 != 0);
        let pid = acceptor.client().reported();
        assert_eq!(signal_set(pid, "SigBlk"), 0, "{consumer:?}");
    }
}

// The clients of `yes` end before they close, so that the other side learns of it as `EPIPE`. To a
// reset alone it is `ECONNRESET`, which is no signal.

/// The client of `yes` reads one line and leaves.
#[track_caller]
fn leave(client: Client) {
    assert_eq!(client.line(), "y");
    client.end();
}

#[test]
fn yes_dies_of_sigpipe_when_the_client_of_a_pool_leaves() {
    let mut pool = chain(&["fdpool", "-v", "1"], &["yes"]).start();
    leave(pool.client());
    let end = pool.line(": end ");
    let sigpipe = format!(" status {}", Signal::SIGPIPE as i32);
    assert!(end.ends_with(&sigpipe), "{end}");
}

#[test]
fn yes_dies_of_sigpipe_when_the_client_of_fdrecv_leaves() {
    let queue = Queue::new();
    let client = queue.tcp_client();
    let mut yes = fdrecv_on(&queue).args(["--", "yes"]).start();
    leave(client);
    yes.expect_killed_by(Signal::SIGPIPE);
}

// Environment.

/// The variables of the table that a handler has.
fn told(pid: Pid) -> BTreeMap<String, String> {
    let mut all = environment(pid);
    all.retain(|name, _| VARIABLES.iter().any(|v| v.name() == name));
    all
}

fn expected<const N: usize>(variables: [(&str, String); N]) -> BTreeMap<String, String> {
    let variables = variables.into_iter();
    variables
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// That a handler is told of a connection over 127.0.0.1 what the manual says.
#[track_caller]
fn assert_told(pid: Pid, client: &Client) {
    let (remote, local) = (client.local_port(), client.peer_port());
    let expected = expected([
        ("PROTO", "TCP".into()),
        ("TCPREMOTEIP", "127.0.0.1".into()),
        ("TCPREMOTEPORT", remote.to_string()),
        ("TCPLOCALIP", "127.0.0.1".into()),
        ("TCPLOCALPORT", local.to_string()),
        ("REMOTE_ADDR", "127.0.0.1".into()),
        ("REMOTE_PORT", remote.to_string()),
    ]);
    assert_eq!(told(pid), expected);
}

#[test]
fn a_handler_of_a_tcp_client_finds_the_documented_environment() {
    for consumer in CONSUMERS {
        let running = Running::chain(consumer);
        assert_told(running.pid, &running.client);
    }
}

#[test]
fn a_handler_of_a_bare_connection_finds_the_same_environment() {
    for consumer in CONSUMERS {
        let queue = Queue::new();
        let client = queue.tcp_client();
        let _consumer = on(&queue, consumer, &REPORT).start();
        assert_told(client.reported(), &client);
    }
}

#[test]
fn an_ipv4_client_of_a_port_for_both_families_has_a_plain_ipv4_address() {
    for consumer in CONSUMERS {
        let running = Running::behind(chain(consumer, &REPORT).listen("0"));
        let told = told(running.pid);
        for name in ["TCPREMOTEIP", "TCPLOCALIP", "REMOTE_ADDR"] {
            assert_eq!(told[name], "127.0.0.1", "{name}");
        }
    }
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
        let _process = chain(consumer, &REPORT).listen(&path).start();
        let client = Client::connect_unix(&path);
        let told = told(client.reported());
        assert_eq!(told, expected(told_of_unix_client(&path)), "{consumer:?}");
    }
}

#[test]
fn a_handler_of_a_unix_client_with_a_name_finds_that_name() {
    for consumer in CONSUMERS {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let own = folder.path().join("client");
        let _process = chain(consumer, &REPORT).listen(&path).start();
        let client = unix_socket(SockType::Stream);
        bind(client.as_raw_fd(), &UnixAddr::new(&own).unwrap()).unwrap();
        connect(client.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        let client = UnixStream::from(client);
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        let client = Client(client);
        let told = told(client.reported());
        let mut expected = expected(told_of_unix_client(&path));
        let own = own.to_str().unwrap();
        expected.insert("IPCREMOTEPATH".into(), own.into());
        assert_eq!(told, expected, "{consumer:?}");
    }
}

#[test]
fn a_handler_finds_no_stale_copy_of_its_variables() {
    for consumer in CONSUMERS {
        let queue = Queue::new();
        let client = queue.client();
        let stale = VARIABLES.iter().map(|variable| (variable.name(), "stale"));
        let _consumer = on(&queue, consumer, &REPORT).envs(stale).start();
        let told = told(client.reported());
        assert_eq!(told["PROTO"], "IPC");
        assert!(!told.values().any(|value| value == "stale"), "{told:?}");
    }
}

#[test]
fn a_handler_finds_nothing_that_a_service_manager_meant_for_its_parents() {
    assert_cleared(&OF_A_SERVICE_MANAGER, &["FDTOOLS_TEST_KEPT"]);
}

#[test]
fn a_handler_finds_nothing_that_another_server_told_its_parents_of_a_connection() {
    let kept = ["REMOTE_USER", "SSL_CERT_FILE", "SSL_CERT_DIR"];
    assert_cleared(&OF_OTHER_SERVERS, &[&kept[..], &["SSLKEYLOGFILE"]].concat());
}

/// Expects that handlers inherit the variables `kept`, and not the variables `cleared`.
#[track_caller]
fn assert_cleared(cleared: &[&str], kept: &[&str]) {
    for consumer in CONSUMERS {
        let queue = Queue::new();
        let client = queue.tcp_client();
        let inherited = [cleared, kept].concat().into_iter().map(|name| (name, "1"));
        let _consumer = on(&queue, consumer, &REPORT).envs(inherited).start();
        let environment = environment(client.reported());
        for name in cleared {
            assert_eq!(environment.get(*name), None, "{name} {consumer:?}");
        }
        for name in kept {
            assert_eq!(environment[*name], "1", "{name} {consumer:?}");
        }
    }
}

// What the client sees.

#[test]
fn a_client_that_shuts_its_sending_side_still_gets_its_answer() {
    for consumer in CONSUMERS {
        let handler = ["sh", "-c", "text=$(cat); echo \"all of it: $text\""];
        let process = chain(consumer, &handler).start();
        let answer = exchange(process.port, b"some\nlines\n");
        assert_eq!(answer, b"all of it: some\nlines\n");
    }
}

/// Expects that clients end one by one: the first while handlers that started later run, the last
/// while none does.
#[track_caller]
fn assert_end_one_by_one(port: u16, count: usize) {
    let clients: Vec<_> = (0..count).map(|_| Client::connect(port)).collect();
    for client in &clients {
        assert_eq!(client.line(), "here");
    }
    for (number, client) in clients.into_iter().enumerate() {
        client.send(&format!("{number}\n"));
        assert_eq!(client.rest(), format!("{number}\n"));
    }
}

#[test]
fn a_client_sees_the_end_when_its_handler_exits_while_others_run() {
    let handler = ["sh", "-c", "echo here; read line; echo \"$line\""];
    let process = chain(&["fdpool", "4"], &handler).start();
    assert_end_one_by_one(process.port, 4);
}

#[test]
fn a_client_sees_the_end_when_the_command_of_fdrecv_exits_while_others_run() {
    let text = "fdaccept 127.0.0.1:0 | \
                { for i in 1 2 3; do fdrecv -- sh -c 'echo here; read line; echo \"$line\"' <&3 & \
                done; wait; } 3<&0";
    let mut process = sh(text).start();
    assert_end_one_by_one(process.port(), 3);
}

#[test]
fn a_client_sees_the_end_when_its_handler_closes_the_connection_and_goes_on() {
    // A slot's copy would keep the connection open.
    for consumer in &CONSUMERS[1..] {
        let text = "echo $$; exec <&- >&-; exec sleep 100";
        let process = chain(consumer, &sh_c(text)).start();
        let client = process.client();
        let pid = client.pid();
        assert!(client.rest().is_empty() && is_alive(pid));
        kill(pid, Signal::SIGKILL).unwrap();
    }
}

#[test]
fn a_client_that_resets_its_connection_ends_only_its_own_handler() {
    let process = chain(&["fdpool", "2"], &REPORT).start();
    let [one, two] = [process.client(), process.client()];
    let pid = one.reported();
    two.reported();
    // Unread data makes the close a reset.
    one.send("unread\n");
    until("the echo", || one.peek() == Ok(1));
    drop(one);
    until_gone(pid);
    two.expect_served();
}

// Processes.

#[test]
fn a_handler_of_a_pool_leads_a_process_group_of_its_own() {
    let running = Running::chain(&["fdpool", "1"]);
    assert_eq!(getpgid(Some(running.pid)), Ok(running.pid));
}

#[test]
fn the_command_of_fdrecv_stays_in_the_process_group() {
    let running = Running::chain(&["fdrecv"]);
    assert_eq!(getpgid(Some(running.pid)), Ok(running.process.pid()));
}

#[test]
fn fdrecv_becomes_the_command() {
    let queue = Queue::new();
    let client = queue.tcp_client();
    let process = fdrecv_on(&queue).arg("--").args(REPORT).start();
    assert_eq!(client.reported(), process.pid());
}

#[test]
fn the_status_of_fdrecv_is_that_of_its_command() {
    let queue = Queue::new();
    let _client = queue.tcp_client();
    let mut command = fdrecv_on(&queue);
    let mut process = command.arg("--").args(sh_c("exit 42")).start();
    process.expect_exit(42);
}

#[test]
fn handlers_and_the_command_of_a_chain_have_the_limit_on_descriptors_that_fdaccept_was_given() {
    let limits = "sh -c 'ulimit -S -n; ulimit -H -n'";
    for consumer in ["fdpool 1", "fdpool --linger 0 1", "fdrecv"] {
        let text = format!(
            "ulimit -S -n 234; ulimit -H -n >&2\n\
             exec fdaccept 127.0.0.1:0 -- sh -c 'ulimit -S -n >&2; exec \"$@\"' sh \
             {consumer} -- {limits}"
        );
        let mut process = sh(&text).start();
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
    let mut process = sh(text).start();
    assert_eq!(exchange(process.port(), b""), b"234\n");
}

#[test]
fn a_script_that_does_not_name_its_interpreter_runs() {
    let folder = tempfile::tempdir().unwrap();
    let text = "read line\necho \"$1 $line\"\n";
    let handler = executable(folder.path().join("handler"), text);
    for consumer in CONSUMERS {
        let handler = [handler.to_str().unwrap(), "argument"];
        let process = chain(consumer, &handler).start();
        assert_eq!(exchange(process.port, b"word\n"), b"argument word\n");
    }
}

// Commands that cannot be run.

#[track_caller]
fn assert_refused(command: &str, expected: i32) {
    for consumer in CONSUMERS {
        let queue = Queue::new();
        let _client = queue.tcp_client();
        let mut process = on(&queue, consumer, &[command]).start();
        let log = process.expect_end(expected);
        let start = format!("{}: ", consumer[0]);
        assert!(log.starts_with(&start) && log.contains(command), "{log}");
        assert!(queue.has_one(), "the connection is gone");
    }
}

#[test]
fn an_unknown_command_is_127_before_any_connection_is_taken() {
    assert_refused("fdtools-no-such-command", 127);
    assert_refused("/no/such/folder/command", 127);
}

#[test]
fn a_command_that_is_not_executable_is_126_before_any_connection_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    std::fs::write(&plain, "#!/bin/sh\n").unwrap();
    assert_refused(plain.to_str().unwrap(), 126);
    assert_refused(folder.path().to_str().unwrap(), 126);
}

#[test]
fn a_script_whose_interpreter_is_missing_is_126_before_any_connection_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let script = executable(folder.path().join("lost"), "#!/no/such/interpreter\n");
    assert_refused(script.to_str().unwrap(), 126);
}

// fdrecv's own ways.

/// The descriptors of a command of fdrecv, and what the connection is.
fn placed(option: &[&str]) -> Vec<(i32, String)> {
    let queue = Queue::new();
    let (_client, server) = tcp_pair();
    queue.send(&server);
    let mut command = fdrecv_on(&queue);
    command.args(option).arg("--").args(STOPPED);
    let process = command.stdout(Stdio::piped()).start();
    until_state(process.pid(), 'T');
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
fn assert_placed(option: &[&str], number: i32) {
    let expected = [
        (0, "/dev/null".to_owned()),
        (1, "pipe".to_owned()),
        (2, "pipe".to_owned()),
        (number, "connection".to_owned()),
    ];
    assert_eq!(placed(option), expected);
}

#[test]
fn fdrecv_fd_puts_the_connection_at_any_number_and_nothing_else() {
    for number in (3..20).chain([100]) {
        assert_placed(&["--fd", &number.to_string()], number);
    }
}

#[test]
fn fdrecv_fd_puts_a_connection_from_a_name_at_any_number_and_nothing_else() {
    let acceptor = Fdaccept::bound().start();
    for number in 3..16 {
        let mut command = fdrecv_on(&acceptor);
        command.args(["--fd", &number.to_string(), "--"]);
        let process = command.args(STOPPED).stdout(Stdio::piped()).start();
        let _client = acceptor.client();
        until_state(process.pid(), 'T');
        let open = descriptors(process.pid());
        let numbers: Vec<_> = open.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, [0, 1, 2, number], "{open:?}");
        assert_eq!(open[0].1, "/dev/null");
        assert!(open[3].1.starts_with("socket:"), "{open:?}");
    }
}

#[test]
fn fdrecv_activate_puts_the_connection_at_3_and_nothing_else() {
    assert_placed(&["--activate"], 3);
}

#[test]
fn fdrecv_activate_announces_the_connection_to_the_command() {
    let text = "fdaccept 127.0.0.1:0 -- fdrecv --activate -- \
                sh -c 'echo $LISTEN_FDS $LISTEN_FDNAMES $LISTEN_PID $$ $REMOTE_ADDR >&3'";
    let mut process = sh(text).env("LISTEN_FDNAMES", "stale:stale").start();
    let answer = String::from_utf8(exchange(process.port(), b"")).unwrap();
    let words: Vec<_> = answer.split_whitespace().collect();
    assert_eq!(words[..2], ["1", "connection"], "{answer}");
    assert_eq!(words[2], words[3], "{answer}");
    assert_eq!(words[4], "127.0.0.1", "{answer}");
}

#[track_caller]
fn assert_wrong_usage(all_options: &[&str], text: &str) {
    for options in all_options {
        let queue = Queue::new();
        let _client = queue.tcp_client();
        let command = format!("ulimit -S -n 64; exec fdrecv {options} -- cat");
        let log = sh(&command).stdin(queue.input()).start().expect_end(2);
        assert!(log.starts_with("fdrecv: ") && log.contains(text), "{log}");
        assert!(queue.has_one(), "the connection is gone");
    }
}

cases! {
    assert_wrong_usage;
    fdrecv_fd_and_activate_together_are_refused: &["--fd 5 --activate"], "--activate";
    fdrecv_fd_beyond_the_limit_is_refused_before_a_connection_is_taken:
        &["--fd 64", "--fd 2147483647"], "limit";
}

#[test]
fn fdrecv_gives_up_after_its_timeout_and_takes_nothing() {
    let queue = Queue::new();
    let mut command = fdrecv_on(&queue);
    command.args(["--timeout", "0.2", "--", "cat"]);
    command.start().expect_exit(69);
    let _client = queue.tcp_client();
    assert!(queue.has_one());
}

#[test]
fn a_connection_that_comes_as_fdrecv_gives_up_is_served_or_stays() {
    let mut served = 0;
    for round in 0..100u64 {
        let queue = Queue::new();
        let mut command = fdrecv_on(&queue);
        command.args(["--timeout", "0.03", "--", "sh", "-c", "echo served"]);
        let mut process = command.start();
        // Around the time that it takes to start, and to give up.
        sleep(Duration::from_micros(28_000 + round * 200));
        let client = queue.tcp_client();
        let status = process.wait();
        match status.code() {
            Some(0) => {
                assert_eq!(client.rest(), "served\n");
                served += 1;
            }
            Some(69) => assert!(queue.has_one(), "taken in round {round}"),
            _ => panic!("{status:?} in round {round}: {}", process.log()),
        }
    }
    eprintln!("{served} of 100 were served");
}

/// Waits until fdrecv watches for signals: from then on one breaks off its wait.
fn until_it_waits(pid: Pid) {
    until("fdrecv to wait", || {
        has_signal(pid, "SigCgt", Signal::SIGTERM) && state(pid) == Some('S')
    });
}

#[test]
fn a_signal_ends_fdrecv_while_it_waits_and_it_takes_nothing() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let queue = Queue::new();
        let mut process = fdrecv_on(&queue).args(["--", "cat"]).start();
        until_it_waits(process.pid());
        process.signal(signal);
        process.expect_killed_by(signal);
        let _client = queue.tcp_client();
        assert!(queue.has_one());
    }
}

#[test]
fn a_signal_that_came_before_fdrecv_waits_is_not_missed() {
    for _ in 0..20 {
        let queue = Queue::new();
        // It comes when fdrecv unblocks it, which is before it waits.
        let mut process = with_signals_blocked(|| fdrecv_on(&queue).args(["--", "cat"]).start());
        process.term();
        process.expect_killed_by(Signal::SIGTERM);
    }
}

#[test]
fn the_time_to_give_up_does_not_count_for_the_command() {
    let queue = Queue::new();
    let client = queue.tcp_client();
    let mut command = fdrecv_on(&queue);
    command.args(["--timeout", "0.3", "--"]).args(REPORT);
    let mut process = command.start();
    client.reported();
    // A time that passes is what this is about.
    sleep(Duration::from_millis(600));
    client.expect_served();
    client.end();
    process.expect_exit(0);
}

#[test]
fn stopping_and_continuing_fdrecv_does_not_end_its_wait() {
    let queue = Queue::new();
    let process = fdrecv_on(&queue).arg("--").args(REPORT).start();
    until_it_waits(process.pid());
    process.freeze();
    process.thaw();
    assert_eq!(queue.tcp_client().pid(), process.pid());
}
