//! Every line that README.md gives to paste is run here, for real, under every shell that is
//! installed.
//!
//! Each test below names the lines that it runs, word for word, and what a client then gets. A
//! line of README that no test knows is a failure, and so is a line that README no longer has.
//! README must not run on anybody's real ports, so before a line is run every port in it becomes
//! 0 (any free one); the real one is what fdaccept says. Files need no such change: README uses
//! relative names, and each test runs in a directory of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::*;

/// Lines that build the project, or need what they installed: `.ci/run` runs them.
const RUN_BY_CI: &[&str] = &[
    "cargo install --locked --path . && fdaccept 8888 | fdpool 4 -- cat",
    "telnet localhost 8888",
    "cargo test",
];

/// The ports that README uses.
const PORTS: &[&str] = &["8888", "9418", "2222", "80"];

/// The shells that are here: `sh`, and of the others those that are installed.
fn shells() -> Vec<&'static str> {
    let others = ["dash", "bash", "zsh", "ksh93", "busybox"];
    let others = others.into_iter().filter(|name| peer(name).is_some());
    let with_words = |name| match name {
        "busybox" => "busybox sh",
        name => name,
    };
    std::iter::once("sh")
        .chain(others.map(with_words))
        .collect()
}

/// A test for some of the lines. All lines together make `RUN_HERE`.
macro_rules! readme {
    ($($(#[$attribute:meta])* fn $name:ident($terminal:ident: [$($line:literal),+]) $body:block)+) => {
        const RUN_HERE: &[&str] = &[$($($line),+),+];
        $(
            $(#[$attribute])*
            #[test]
            fn $name() {
                for shell in shells() {
                    let mut $terminal = Terminal::new(shell, &[$($line),+]);
                    // Each shell its own, also where one is skipped.
                    #[allow(clippy::redundant_closure_call)]
                    (|| $body)();
                }
            }
        )+
    };
}

readme! {
    fn a_shell_script_greets_its_client(terminal: [
        r#"fdaccept 8888 | fdpool 4 -- sh -c 'read -r name; echo "hello $name, you come from $TCPREMOTEIP"'"#
    ]) {
        let port = terminal.run(0).port();
        assert_eq!(ask(port, "you\n"), "hello you, you come from 127.0.0.1\n");
    }

    fn busybox_httpd_serves_a_file(terminal: [
        "fdaccept 8888 | fdpool 16 -- busybox httpd -i -h ."
    ]) {
        if peer("busybox").is_none() {
            return;
        }
        std::fs::write(terminal.dir().join("page"), "of text").unwrap();
        let port = terminal.run(0).port();
        let answer = ask(port, "GET /page HTTP/1.0\r\n\r\n");
        assert!(answer.starts_with("HTTP/1"), "{answer}");
        assert!(answer.contains(" 200 ") && answer.ends_with("\r\n\r\nof text"), "{answer}");
    }

    fn git_daemon_serves_a_clone(terminal: [
        r#"fdaccept 9418 | fdpool 8 -- git daemon --inetd --export-all --base-path="$PWD" "$PWD""#
    ]) {
        if peer("git").is_none() {
            return;
        }
        let repository = terminal.dir().join("project");
        git(terminal.dir(), &["init", "-q", "project"]);
        let commit = ["commit", "-q", "--allow-empty", "-m", "seen through fdpool"];
        git(&repository, &commit);
        let port = terminal.run(0).port();
        git(terminal.dir(), &["clone", "-q", &format!("git://127.0.0.1:{port}/project"), "copy"]);
        let log = git(&terminal.dir().join("copy"), &["log", "--format=%s"]);
        assert_eq!(log, "seen through fdpool\n");
    }

    fn sshd_says_who_it_is(terminal: ["fdaccept 2222 | fdpool 8 -- /usr/sbin/sshd -i"]) {
        if !root() || peer("sshd").is_none() {
            return;
        }
        // The service makes this directory when it is started, and it may never have been.
        std::fs::create_dir_all("/run/sshd").unwrap();
        let port = terminal.run(0).port();
        assert!(first_line(&connect(port)).starts_with("SSH-2.0-"));
    }

    fn a_port_and_a_unix_socket_feed_one_pool(terminal: [
        "fdaccept 127.0.0.1:8888 ./echo.sock | fdpool 4 -- cat"
    ]) {
        let process = terminal.run(0);
        let port = process.port();
        process.line("listening on ./echo.sock");
        assert_eq!(ask(port, "over TCP"), "over TCP");
        let mut client = connect_unix(terminal.dir().join("echo.sock"));
        client.write_all(b"over a path").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "over a path");
    }

    fn fdrecv_serves_one_connection_and_ends(terminal: ["fdaccept 8888 | fdrecv -- cat"]) {
        let process = terminal.run(0);
        let port = process.port();
        assert_eq!(ask(port, "one"), "one");
        assert!(process.wait().success());
    }

    fn a_loop_of_fdrecv_serves_one_after_another(terminal: [
        "fdaccept 8888 | while fdrecv -- cat || [ $? -ne 69 ]; do :; done"
    ]) {
        let port = terminal.run(0).port();
        for round in ["one", "two", "three"] {
            assert_eq!(ask(port, round), round);
        }
    }

    fn two_pools_on_one_pipe_share_the_connections(terminal: [
        "fdaccept 8888 | { fdpool 2 -- sh -c 'echo one' <&3 3<&- & exec fdpool 2 -- sh -c 'echo two' 3<&-; } 3<&0"
    ]) {
        let port = terminal.run(0).port();
        let mut seen = std::collections::BTreeSet::new();
        until("an answer from each pool", || {
            seen.insert(ask(port, ""));
            seen.len() >= 2
        });
        assert!(seen.iter().eq(["one\n", "two\n"]), "{seen:?}");
    }

    fn a_pool_finds_the_queue_by_its_name(terminal: [
        "fdaccept --bind ./echo.queue 8888",
        "fdpool --connect ./echo.queue 4 -- cat"
    ]) {
        let port = terminal.run(0).port();
        terminal.run(1);
        assert_eq!(ask(port, "by name"), "by name");
    }

    fn python_workers_serve_in_a_pool(terminal: [
        "fdaccept 8888 | fdpool --worker 4 -- python3 examples/worker.py"
    ]) {
        if peer("python3").is_none() {
            return;
        }
        terminal.link_examples();
        let port = terminal.run(0).port();
        assert_eq!(ask(port, "by a worker"), "by a worker");
    }

    fn shell_scripts_are_workers(terminal: [
        "fdaccept 8888 | fdpool --worker 4 -- sh -c 'while fdrecv -- cat || [ $? -ne 69 ]; do :; done'"
    ]) {
        let port = terminal.run(0).port();
        for round in ["one", "two", "three"] {
            assert_eq!(ask(port, round), round);
        }
    }

    fn workers_say_that_they_are_ready_and_are_exchanged(terminal: [
        "fdaccept --bind ./echo.queue 8888",
        "fdpool --connect ./echo.queue --worker --ready-fd 3 4 -- sh -c 'echo >&3; exec python3 examples/worker.py'"
    ]) {
        if peer("python3").is_none() {
            return;
        }
        terminal.link_examples();
        let port = terminal.run(0).port();
        let pool = terminal.run(1);
        assert_eq!(ask(port, "old"), "old");
        // The shell may have become the pool, or be its parent.
        let pids = std::iter::once(pool.pid()).chain(children(pool.pid()));
        let name = |pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let fdpool = pids.into_iter().find(|pid| name(*pid) == "fdpool\n").unwrap();
        nix::sys::signal::kill(fdpool, nix::sys::signal::Signal::SIGHUP).unwrap();
        pool.line("reload: done");
        assert_eq!(ask(port, "new"), "new");
    }

    fn a_python_worker_finds_the_queue_by_its_name(terminal: [
        "python3 examples/worker.py ./echo.queue"
    ]) {
        if peer("python3").is_none() {
            return;
        }
        terminal.link_examples();
        let port = terminal.run_text("fdaccept --bind ./echo.queue 0").port();
        terminal.run(0);
        assert!(!ask(port, "hello\n").is_empty());
    }

    fn an_acceptor_finds_the_consumer_by_its_name(terminal: [
        "fdpool --bind ./echo.inbox 4 -- cat",
        "fdaccept --connect ./echo.inbox 8888"
    ]) {
        terminal.run(0);
        let port = terminal.run(1).port();
        assert_eq!(ask(port, "by name"), "by name");
    }

    fn fdaccept_starts_the_pool_itself(terminal: ["fdaccept 8888 -- fdpool 4 -- cat"]) {
        let port = terminal.run(0).port();
        assert_eq!(ask(port, "no shell"), "no shell");
    }

    fn a_listener_made_by_another_program_is_used(terminal: [
        "s6-ipcserver-socketbinder ./echo.sock fdaccept fd:0 -- fdpool 4 -- cat"
    ]) {
        if peer("s6-ipcserver-socketbinder").is_none() {
            return;
        }
        assert_eq!(terminal.run(0).listening(), "./echo.sock");
        let mut client = connect_unix(terminal.dir().join("echo.sock"));
        client.write_all(b"inherited").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "inherited");
    }

    fn a_program_for_activation_finds_its_connection_at_descriptor_3(terminal: [
        "fdaccept 8888 | fdrecv --activate -- sh -c 'exec cat <&3 >&3'"
    ]) {
        let port = terminal.run(0).port();
        assert_eq!(ask(port, "activated"), "activated");
    }

    fn the_listener_alone_is_roots(terminal: [
        r#"sudo "$(command -v fdaccept)" 80 | fdpool 4 -- cat"#
    ]) {
        if !root() || peer("sudo").is_none() {
            return;
        }
        let port = terminal.run(0).port();
        assert_eq!(ask(port, "as root"), "as root");
    }

    fn the_pool_runs_under_another_user(terminal: [
        "fdaccept 80 | setpriv --reuid=nobody --regid=nogroup --clear-groups fdpool 4 -- cat"
    ]) {
        if !root() || peer("setpriv").is_none() {
            return;
        }
        // Where this was built, nobody else may be allowed to look.
        terminal.install_programs();
        let port = terminal.run(0).port();
        assert_eq!(ask(port, "as nobody"), "as nobody");
    }

    fn a_pool_runs_behind_prlimit_and_nice(terminal: [
        "fdaccept 8888 | prlimit --nofile=64 nice fdpool 4 -- cat"
    ]) {
        if peer("prlimit").is_none() {
            return;
        }
        let port = terminal.run(0).port();
        assert_eq!(ask(port, "limited"), "limited");
    }

    fn a_pool_runs_behind_s6_softlimit_and_env(terminal: [
        r#"fdaccept 8888 | s6-softlimit -o 64 env -i PATH="$PATH" fdpool 4 -- cat"#
    ]) {
        if peer("s6-softlimit").is_none() {
            return;
        }
        let port = terminal.run(0).port();
        assert_eq!(ask(port, "limited"), "limited");
    }

    fn limits_let_connections_in(terminal: [
        "fdaccept --max 100 --max-per-source 10 8888 | fdpool 200 -- cat"
    ]) {
        let port = terminal.run(0).port();
        assert_eq!(ask(port, "one of few"), "one of few");
    }

    fn rules_let_some_in(terminal: [
        "fdaccept --allow 127.0.0.0/8 --allow ::1 --deny 127.0.0.66 8888 | fdpool 4 -- cat"
    ]) {
        let port = terminal.run(0).port();
        assert_eq!(ask(port, "from here"), "from here");
    }

    fn a_rate_lets_connections_in(terminal: ["fdaccept --rate 50/1 8888 | fdpool 4 -- cat"]) {
        let port = terminal.run(0).port();
        assert_eq!(ask(port, "in time"), "in time");
    }

    fn a_short_queue_passes_connections(terminal: ["fdaccept --queue 10 8888 | fdpool 4 -- cat"]) {
        let port = terminal.run(0).port();
        assert_eq!(ask(port, "one of ten"), "one of ten");
    }

    fn a_proxy_says_who_the_client_is(terminal: [
        "fdaccept --proxy-protocol any --proxy-from 127.0.0.0/8 8888 | fdpool 4 -- cat"
    ]) {
        let port = terminal.run(0).port();
        let request = "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nfrom far away";
        assert_eq!(ask(port, request), "from far away");
    }

    fn nothing_stays_roots_but_the_port(terminal: [
        "fdaccept --user nobody --sandbox 80 -- fdpool 4 -- cat"
    ]) {
        if !root() {
            return;
        }
        // Where this was built, nobody else may be allowed to look.
        terminal.install_programs();
        let port = terminal.run(0).port();
        assert_eq!(ask(port, "as nobody"), "as nobody");
    }

    fn handlers_run_behind_prlimit_and_nice(terminal: [
        "fdaccept 8888 | fdpool --timeout 60 4 -- prlimit --nofile=64 --cpu=10 nice cat"
    ]) {
        if peer("prlimit").is_none() {
            return;
        }
        let port = terminal.run(0).port();
        assert_eq!(ask(port, "limited"), "limited");
    }
}

#[test]
fn every_line_of_readme_is_run_and_no_other() {
    let text = include_str!("../../README.md");
    let mut in_block = false;
    let mut found: Vec<&str> = Vec::new();
    for line in text.lines() {
        match line {
            "```sh" => in_block = true,
            "```" => in_block = false,
            line if in_block => found.push(line),
            _ => {}
        }
    }
    assert!(!in_block, "a code block is not closed");
    // Others are files, of which each has a test below.
    assert_eq!(
        text.matches("\n```sh\n").count() + 1,
        text.matches("\n```\n").count()
    );
    let mut known = [RUN_BY_CI, RUN_HERE].concat();
    found.sort_unstable();
    known.sort_unstable();
    assert_eq!(found, known);
}

#[test]
fn systemd_accepts_the_unit() {
    let Some(analyze) = peer("systemd-analyze") else {
        return;
    };
    let text = include_str!("../../README.md");
    let (_, unit) = text.split_once("\n```ini\n").unwrap();
    let (unit, _) = unit.split_once("```\n").unwrap();
    assert_eq!(unit.matches("/usr/local/bin/").count(), 2, "{unit}");
    // The programs must be there: ours is where it was built, and the worker is any.
    let unit = unit.replace("/usr/local/bin/worker", "/bin/cat");
    let unit = unit.replace("/usr/local/bin", bin_dir().to_str().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("echo.service");
    std::fs::write(&file, unit).unwrap();
    let (status, stdout, stderr) = run(Command::new(analyze).arg("verify").arg(&file));
    let ours: Vec<_> = stderr
        .lines()
        .filter(|line| line.contains("echo.service"))
        .collect();
    assert_eq!((status, ours), (Some(0), Vec::new()), "{stdout}{stderr}");
}

/// Somebody who pastes lines, each in a window of its own, all in one new directory.
struct Terminal {
    shell: &'static str,
    lines: &'static [&'static str],
    // Before the directory, so that they have ended when it is removed.
    processes: Vec<Process>,
    programs: PathBuf,
    dir: tempfile::TempDir,
}

impl Terminal {
    fn new(shell: &'static str, lines: &'static [&'static str]) -> Self {
        Self {
            shell,
            lines,
            processes: Vec::new(),
            programs: bin_dir(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Runs one of the lines of this test.
    fn run(&mut self, index: usize) -> &mut Process {
        self.run_text(&with_free_ports(self.lines[index]))
    }

    fn run_text(&mut self, line: &str) -> &mut Process {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = std::iter::once(self.programs.clone()).chain(std::env::split_paths(&path));
        let mut words = self.shell.split(' ');
        let mut shell = Command::new(words.next().unwrap());
        shell.args(words).args(["-c", line]).current_dir(self.dir());
        shell.env("PATH", std::env::join_paths(dirs).unwrap());
        shell.stdin(Stdio::null()).stdout(Stdio::null());
        self.processes.push(Process::start(&mut shell));
        self.processes.last_mut().unwrap()
    }

    /// Goes to the directory of README, as far as its lines need it.
    fn link_examples(&self) {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
        std::os::unix::fs::symlink(examples, self.dir().join("examples")).unwrap();
    }

    /// Copies the programs to where every user finds them. cp does it: a file that is open for
    /// writing here may be so in a child of another test, and then cannot be executed.
    fn install_programs(&mut self) {
        let programs = self.dir().join("bin");
        let script = "mkdir bin && cp \"$1/fdaccept\" \"$1/fdpool\" bin && chmod 755 . bin bin/*";
        let mut copy = Command::new("sh");
        copy.args(["-c", script, "sh"]).arg(&self.programs);
        assert!(copy.current_dir(self.dir()).status().unwrap().success());
        self.programs = programs;
    }
}

/// The line with 0 in the place of each port.
fn with_free_ports(line: &str) -> String {
    let words = line.split(' ').map(|word| {
        let (host, port) = word
            .rsplit_once(':')
            .map_or(("", word), |(host, port)| (&word[..=host.len()], port));
        if PORTS.contains(&port) {
            format!("{host}0")
        } else {
            word.to_owned()
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn only_ports_are_replaced() {
    let line = "fdaccept 80 127.0.0.1:8888 ./80.sock | fdpool 8 -- x 8080";
    let expected = "fdaccept 0 127.0.0.1:0 ./80.sock | fdpool 8 -- x 8080";
    assert_eq!(with_free_ports(line), expected);
}

/// Sends `request`, and returns all of the answer.
#[track_caller]
fn ask(port: u16, request: &str) -> String {
    String::from_utf8(exchange(port, request.as_bytes())).unwrap()
}

#[track_caller]
fn first_line(client: &TcpStream) -> String {
    let mut line = String::new();
    BufReader::new(client).read_line(&mut line).unwrap();
    line
}

/// Runs git without anybody's settings, and returns what it says.
#[track_caller]
fn git(dir: &Path, arguments: &[&str]) -> String {
    let mut git = Command::new("git");
    git.args(["-c", "user.name=x", "-c", "user.email=x@localhost"]);
    git.args(arguments).current_dir(dir).stdin(Stdio::null());
    git.env("GIT_CONFIG_GLOBAL", "/dev/null");
    let (status, stdout, stderr) = run(&mut git);
    assert_eq!(status, Some(0), "{arguments:?}: {stderr}");
    stdout
}
