//! A log that takes no lines: no program waits for it for long, and none ends by it.

use std::fs::File;
use std::io::{ErrorKind, PipeReader, PipeWriter, Read, Seek, Write, pipe};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::SockType;
use nix::unistd::Pid;

use crate::support::*;

/// Where it listens. The name is so long that no line with it fits into a crowded terminal.
const ADDRESS: &str = "./a-listener-with-a-name-that-is-longer-than-what-is-left-of-a-terminal";

/// `cat` behind an fdaccept with a log of its own.
struct Logging {
    fdaccept: Child,
    names: Names,
}

impl Logging {
    /// `words` are a shell's, up to the address. The log is `log`.
    fn start(words: &str, pool: &str, log: impl Into<Stdio>) -> Self {
        Self::of(sh(&format!("{words} {ADDRESS} -- {pool} -- cat")), log)
    }

    fn of(mut command: Command, log: impl Into<Stdio>) -> Self {
        let names = Names::new();
        command.current_dir(&names.directory).stderr(log);
        let fdaccept = command.spawn().unwrap();
        Self { fdaccept, names }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.fdaccept.id() as i32)
    }

    fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    #[track_caller]
    fn serve(&self, count: usize) {
        let path = self.names.file(ADDRESS);
        until("the listener", || path.exists());
        for _ in 0..count {
            // Its file is there a moment before it listens.
            let client = eventually("a connection", || UnixStream::connect(&path).ok());
            client.set_read_timeout(Some(DEADLINE)).unwrap();
            Client(client).expect_echo("hello");
        }
    }

    /// Whether it is in a write to standard error that blocks.
    fn is_held_up(&self) -> bool {
        let call = std::fs::read_to_string(format!("/proc/{}/syscall", self.pid()));
        let call = call.unwrap_or_default();
        let words: Vec<_> = call.split(' ').take(2).collect();
        words == [&nix::libc::SYS_write.to_string(), "0x2"]
    }

    #[track_caller]
    fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let status = eventually("the end", || self.fdaccept.try_wait().unwrap());
        assert!(status.success(), "{status}");
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        let _ = self.fdaccept.kill();
        let _ = self.fdaccept.wait();
    }
}

/// Expects that programs that log to `log` serve 3 clients and end without failure.
#[track_caller]
fn serve_with(words: &str, log: impl Into<Stdio>) {
    let mut logging = Logging::start(words, "fdpool -v 2", log);
    logging.serve(3);
    logging.stop();
}

/// A pipe of one page, so that there is room for everything or for nothing. Reads do not block.
fn one_page() -> (PipeReader, PipeWriter) {
    let (reader, writer) = pipe().unwrap();
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    (reader, writer)
}

/// Fills a pipe: not one more line fits.
fn fill(pipe: &impl AsRawFd) {
    let mut filler = unblocked(pipe);
    while filler.write(b"\n").is_ok() {}
}

/// Reads all that is there now.
fn drain(log: &mut impl Read) -> String {
    let mut text = Vec::new();
    // The end is that nobody writes any more, or that there is no more now.
    let end = log.read_to_end(&mut text).map_err(|error| error.kind());
    assert!(matches!(end, Ok(_) | Err(ErrorKind::WouldBlock)), "{end:?}");
    String::from_utf8(text).unwrap()
}

/// Reads until a line has the counters. Returns it and all before it.
#[track_caller]
fn until_counters(log: &mut impl Read) -> Vec<String> {
    let mut text = String::new();
    until("the counters", || {
        text += &drain(log);
        text.ends_with('\n') && text.lines().last().is_some_and(is_counters)
    });
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_log_that_is_full_and_not_read_stops_nothing() {
    let (_log, writer) = one_page();
    fill(&writer);
    serve_with("exec fdaccept -v", writer);
}

#[test]
fn a_log_whose_reader_is_gone_stops_nothing() {
    let (log, writer) = pipe().unwrap();
    drop(log);
    serve_with("exec fdaccept -v", writer);
}

#[test]
fn a_log_on_a_full_disk_stops_nothing() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    serve_with("exec fdaccept -v", full);
}

#[test]
fn a_log_file_beyond_the_limit_on_file_sizes_stops_nothing() {
    let mut log = tempfile::tempfile().unwrap();
    // The limit is in units of 512 or 1024 bytes.
    write!(log, "{:512}", "").unwrap();
    serve_with("ulimit -f 1; exec fdaccept -v", log.try_clone().unwrap());
    assert!(log.stream_position().unwrap() <= 1024);
    serve_with("ulimit -f 0; exec fdaccept -v", log);
}

#[test]
fn a_terminal_that_nobody_reads_stops_nothing() {
    for options in ["-v", "-v --sandbox"] {
        let (_screen, terminal) = Screen::crowded().apart();
        serve_with(&format!("exec fdaccept {options}"), terminal);
    }
}

#[test]
fn a_terminal_that_nobody_reads_does_not_stop_the_first_line_in_the_sandbox() {
    let (_screen, terminal) = Screen::crowded().apart();
    let (queue, other) = socket_pair(SockType::SeqPacket);
    let mut command = sh("exec fdaccept -q --sandbox --queue-fd 5 127.0.0.1:0 5<&0 </dev/null");
    command.stdin(other);
    let mut logging = Logging::of(command, terminal);
    until("the sandbox", || {
        try_status_field(logging.pid(), "Seccomp").as_deref() == Some("2")
    });
    // That nobody takes connections is an error.
    drop(queue);
    let status = eventually("the end", || logging.fdaccept.try_wait().unwrap());
    assert_eq!(status.code(), Some(1));
}

#[test]
fn a_terminal_that_is_closed_stops_nothing() {
    let (screen, terminal) = Screen::new().apart();
    drop(screen);
    serve_with("exec fdaccept -v", terminal);
}

#[test]
fn a_log_that_takes_lines_again_says_how_many_were_lost() {
    let (mut log, writer) = one_page();
    fill(&writer);
    let mut logging = Logging::start("exec fdaccept -v", "fdpool 1", writer);
    logging.serve(3);
    drain(&mut log);
    logging.signal(Signal::SIGUSR1);
    let lines = until_counters(&mut log);
    // Where it listens, and the clients.
    let lost = "fdaccept: 4 messages were lost, which the log did not take";
    assert_eq!(lines[0], lost);
    assert_eq!(lines.len(), 2, "{lines:?}");
    // Once.
    logging.signal(Signal::SIGUSR1);
    assert_eq!(until_counters(&mut log).len(), 1);
    logging.stop();
}

#[test]
fn that_lines_were_lost_is_a_warning_in_the_journal() {
    let (mut log, writer) = one_page();
    fill(&writer);
    let journal = "export JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2)";
    let words = format!("{journal}; exec fdaccept -v");
    let mut logging = Logging::start(&words, "fdpool 1", writer);
    logging.serve(1);
    drain(&mut log);
    logging.signal(Signal::SIGUSR1);
    let mut text = String::new();
    until("the counters", || {
        text += &drain(&mut log);
        text.ends_with('\n') && text.contains(", passed 1, ")
    });
    let mut lines = text.lines().filter(|line| !line.is_empty());
    let lost = "<4>fdaccept: 2 messages were lost, which the log did not take";
    assert_eq!(lines.next(), Some(lost), "{text}");
    assert!(
        lines
            .next()
            .unwrap()
            .starts_with("<5>fdaccept: accepted 1, ")
    );
    logging.stop();
}

#[test]
fn a_line_after_half_a_line_begins_anew() {
    let (mut screen, terminal) = Screen::crowded().apart();
    let mut logging = Logging::start("exec fdaccept -v", "fdpool 1", terminal);
    logging.serve(1);
    let mut half = String::new();
    until("half a line", || {
        half += drain(&mut screen).trim_start_matches('x');
        !half.is_empty()
    });
    let line = format!("fdaccept: listening on {ADDRESS}");
    assert!(line.starts_with(&half), "{half:?}");
    logging.signal(Signal::SIGUSR1);
    let lines = until_counters(&mut screen);
    let lost = "fdaccept: 2 messages were lost, which the log did not take";
    assert_eq!(lines[..2], ["", lost]);
    assert_eq!(lines.len(), 3, "{lines:?}");
    logging.stop();
}

/// A log with a slow reader would cost a second for each page otherwise.
#[test]
fn a_slow_log_holds_a_program_up_for_one_second_in_all() {
    let (mut log, writer) = one_page();
    let filler = writer.try_clone().unwrap();
    fill(&filler);
    let start = Instant::now();
    let mut logging = Logging::start("exec fdaccept -v", "fdpool 1", writer);
    for _ in 0..10 {
        logging.serve(1);
        drain(&mut log);
        logging.signal(Signal::SIGUSR1);
        until_counters(&mut log);
        fill(&filler);
    }
    let took = start.elapsed();
    assert!(took < Duration::from_secs(6), "{took:?}");
    logging.stop();
}

#[test]
fn the_slots_of_a_pool_wait_for_a_slow_log_together_and_count_together() {
    let (mut log, writer) = one_page();
    fill(&writer);
    let acceptor = Fdaccept::bound().start();
    let mut pool = program("fdpool");
    pool.args(["-v", "--connect", acceptor.name(), "12", "--", "cat"]);
    let mut child = pool.stderr(writer).spawn().unwrap();
    // Or the log would be held open here.
    drop(pool);
    let start = Instant::now();
    // The queue gives each client to another slot.
    for _ in 0..12 {
        acceptor.client().expect_echo("hello");
    }
    let took = start.elapsed();
    assert!(took < Duration::from_secs(6), "{took:?}");
    drain(&mut log);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
    let rest = drain(&mut log);
    // What a slot says last may have been in time.
    let lost = rest.lines().filter_map(|line| {
        let line = line.strip_prefix("fdpool: ")?;
        let count = line.strip_suffix(" messages were lost, which the log did not take")?;
        count.parse::<usize>().ok()
    });
    // At the start and for each client but the last: "status", "pid", "ok", "end" and "status".
    assert!((56..=61).contains(&lost.sum::<usize>()), "{rest}");
}

#[test]
fn a_program_that_is_told_to_stop_waits_for_no_log() {
    let is_at_once = |_| {
        let (_log, writer) = one_page();
        fill(&writer);
        let mut logging = Logging::start("exec fdaccept -v", "fdpool 1", writer);
        until("the blocked write", || logging.is_held_up());
        let start = Instant::now();
        logging.stop();
        start.elapsed() < Duration::from_millis(500)
    };
    // On a busy machine another program may be in the way.
    assert!((0..10).any(is_at_once));
}

/// Logs a line, and then is `cat`.
const HANDLER: &str = "sh -c 'echo served >&2; exec cat'";

/// Expects that 2 clients are served in a session that stops who writes to its terminal in the
/// background, and that the terminal shows `line` so many times. `text` is the script.
#[track_caller]
fn serve_in_session(text: &str, line: &str, count: usize) {
    needs!(peer("setsid"));
    let screen = Screen::for_the_foreground();
    let mut logging = Logging::of(screen.session(text), screen.terminal.try_clone().unwrap());
    let (mut screen, _terminal) = screen.apart();
    logging.serve(2);
    let mut log = String::new();
    until("all lines", || {
        log += &drain(&mut screen);
        log.matches(line).count() == count
    });
    logging.stop();
}

#[test]
fn a_handler_that_logs_to_its_terminal_in_the_background_is_not_stopped() {
    let text = format!("exec fdaccept {ADDRESS} -- fdpool 1 -- {HANDLER}");
    serve_in_session(&text, "served", 2);
}

#[test]
fn a_worker_that_logs_to_its_terminal_in_the_background_is_not_stopped() {
    let handler = HANDLER.replace('\'', "\"");
    let handler = format!("fdrecv -- {handler} || exit 0");
    let worker = format!("sh -c 'echo served >&2; while :; do {handler}; done'");
    let text = format!("exec fdaccept {ADDRESS} -- fdpool --worker 1 -- {worker}");
    serve_in_session(&text, "served", 3);
}

#[test]
fn programs_that_log_to_their_terminal_in_the_background_are_not_stopped() {
    let text = format!(
        "set -m; fdaccept -v {ADDRESS} -- fdpool -v 1 -- cat & \
         trap 'kill -TERM $!' TERM; wait; wait $!"
    );
    serve_in_session(&text, "fdpool: end ", 2);
}

#[test]
fn only_where_there_is_a_terminal_a_handler_finds_a_signal_ignored() {
    needs!(peer("setsid"));
    let ttou = 1 << (Signal::SIGTTOU as i32 - 1);
    for (pool, on_terminal) in [
        ("fdpool 1 --", ttou),
        // It is not in the background, but in the group of fdaccept.
        ("fdrecv --", 0),
        ("fdpool --worker 1 -- fdrecv --", ttou),
    ] {
        let text =
            format!("trap '' TTOU; exec fdaccept {ADDRESS} -- {pool} sh -c 'echo $$; exec cat'");
        let mut bare = Command::new("setsid");
        bare.args(["sh", "-c", &text]).env("PATH", path());
        let screen = Screen::new();
        for (session, expected) in [(bare, 0), (screen.session(&text), on_terminal)] {
            let logging = Logging::of(session, Stdio::null());
            let path = logging.names.file(ADDRESS);
            let client = eventually("a connection", || UnixStream::connect(&path).ok());
            client.set_read_timeout(Some(DEADLINE)).unwrap();
            let client = Client(client);
            let handler = client.reported();
            assert_eq!(all_ignored(handler), expected, "{pool}");
        }
    }
}

#[test]
fn who_reads_from_its_terminal_in_the_background_is_said_to_be_stopped() {
    needs!(peer("setsid"));
    for (options, what) in [("", "handler"), ("--worker", "worker")] {
        let (mut log, writer) = pipe().unwrap();
        fcntl(&log, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let screen = Screen::new();
        let handler = "sh -c 'read x </dev/tty'";
        let text = format!("exec fdaccept --grace 0 {ADDRESS} -- fdpool {options} 1 -- {handler}");
        let mut logging = Logging::of(screen.session(&text), writer);
        let path = logging.names.file(ADDRESS);
        // Nobody takes the connections of this worker.
        let connect = || UnixStream::connect(&path).ok();
        let _client = (what == "handler").then(|| eventually("a connection", connect));
        let mut text = String::new();
        let pid = eventually("the message", || {
            text += &drain(&mut log);
            let (_, rest) = text.split_once(&format!("fdpool: {what} "))?;
            let (pid, _) = rest.split_once(" is stopped by SIGTTIN\n")?;
            Some(Pid::from_raw(pid.parse().unwrap()))
        });
        assert_eq!(state(pid), Some('T'), "{text}");
        kill(pid, Signal::SIGKILL).unwrap();
        logging.stop();
    }
}
