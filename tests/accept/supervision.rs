//! What contrib/ has for systemd and s6: systemd accepts the units, the programs know every option
//! in them, and s6 really runs its service directories.

use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use tempfile::TempDir;

fn contrib() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib")
}

/// A file of contrib/.
fn text(name: &str) -> String {
    std::fs::read_to_string(contrib().join(name)).unwrap()
}

const UNITS: [&str; 4] = [
    "echo-accept.service",
    "echo-pool.service",
    "echo.socket",
    "echo.service",
];

/// The command of a service.
fn exec_start(unit: &str) -> String {
    let text = text(&format!("systemd/{unit}"));
    let starts: Vec<_> = values(&text, "ExecStart=").collect();
    assert_eq!(starts.len(), 1, "{unit}");
    starts[0].to_owned()
}

/// The rest of each line that begins with `name`.
fn values<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| line.strip_prefix(name))
}

/// The entries of contrib/systemd and contrib/s6.
fn contents() -> Vec<String> {
    let mut names = Vec::new();
    for part in ["systemd", "s6"] {
        for entry in std::fs::read_dir(contrib().join(part)).unwrap() {
            let name = entry.unwrap().file_name();
            names.push(format!("{part}/{}", name.to_str().unwrap()));
        }
    }
    names
}

#[test]
fn the_readme_says_of_each_file_where_it_goes() {
    let readme = text("README.md");
    for name in contents() {
        assert!(readme.contains(&format!("| `{name}` | ")), "{name}");
    }
    // No other files.
    assert_eq!(values(&readme, "| `").count(), contents().len());
}

// systemd.

#[test]
fn systemd_accepts_every_unit() {
    let analyze = needs!(peer("systemd-analyze"));
    let names = Names::new();
    for unit in UNITS {
        // systemd looks for the programs.
        let unit_text = text(&format!("systemd/{unit}"));
        let unit_text = unit_text.replace("/usr/local/bin/worker", "/bin/cat");
        let unit_text = unit_text.replace("/usr/local/bin", bin_dir().to_str().unwrap());
        std::fs::write(names.file(unit), unit_text).unwrap();
    }
    for unit in UNITS {
        let mut command = Command::new(&analyze);
        let (status, stdout, stderr) = run(command.arg("verify").arg(names.file(unit)));
        let is_ours = stderr.lines().any(|line| line.contains("echo"));
        let result = (status, is_ours);
        assert_eq!(result, (Some(0), false), "{unit}: {stdout}{stderr}");
    }
}

#[test]
fn there_is_no_other_unit() {
    let units = contents().into_iter().filter_map(|name| {
        let name = name.strip_prefix("systemd/")?.to_owned();
        name.contains('.').then_some(name)
    });
    let mut units: Vec<_> = units.collect();
    units.sort();
    let mut known = UNITS.map(str::to_owned);
    known.sort();
    assert_eq!(units, known);
}

/// The options in a command line, each with its program.
fn options(words: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut current = None;
    for word in words.split_whitespace() {
        let name = word.rsplit('/').next().unwrap();
        match word {
            "--" => current = None,
            _ if ["fdaccept", "fdpool", "fdrecv"].contains(&name) => current = Some(name),
            _ if word.starts_with('-') => {
                let option = word.split('=').next().unwrap();
                found.extend(current.map(|program| (program.to_owned(), option.to_owned())));
            }
            _ => {}
        }
    }
    found
}

#[test]
fn the_programs_have_every_option_that_is_given_to_them() {
    let mut commands: Vec<String> = ["echo-accept.service", "echo-pool.service", "echo.service"]
        .map(exec_start)
        .to_vec();
    for service in ["echo-accept", "echo-pool"] {
        let text = text(&format!("s6/{service}/run"));
        // The options are also inside of words that the shell puts together.
        let line = text
            .lines()
            .rfind(|line| line.starts_with("exec "))
            .unwrap();
        commands.push(line.replace(['{', '}', '+', '"'], " "));
    }
    for command in commands {
        let options = options(&command);
        assert!(!options.is_empty(), "{command}");
        for (name, option) in options {
            let (_, help, _) = run(program(&name).arg("--help"));
            let mut words = help.split([' ', '\n', ',', '[', ']']);
            assert!(words.any(|word| word == option), "{name} {option}");
        }
    }
}

#[test]
fn options_are_found_in_a_command() {
    let line = "/usr/local/bin/fdaccept -q --max 3 --rate=1/2 80 -- /x/fdpool --once 4 -- ls -l";
    let found = options(line);
    let expected = [
        ("fdaccept", "-q"),
        ("fdaccept", "--max"),
        ("fdaccept", "--rate"),
        ("fdpool", "--once"),
    ];
    let expected = expected.map(|(program, option)| (program.to_owned(), option.to_owned()));
    assert_eq!(found, expected);
}

/// A service with `changes` to its command, as systemd would start it.
fn service(unit: &str, changes: &[(&str, &str)], manager: &Manager) -> Command {
    let mut line = exec_start(unit);
    for (from, to) in changes {
        assert!(line.contains(from), "{line}");
        line = line.replace(from, to);
    }
    let line = line.replace("/usr/local/bin", bin_dir().to_str().unwrap());
    let mut command = sh(&format!("LISTEN_PID=$$ exec {line} 3<&0 </dev/null"));
    // Whatever started this test must not interfere.
    for name in ["LISTEN_FDS", "LISTEN_FDNAMES"] {
        command.env_remove(name);
    }
    command.env("NOTIFY_SOCKET", &manager.name);
    command.stdout(Stdio::null());
    command
}

#[test]
fn the_two_services_with_a_named_queue_serve() {
    let worker = needs!(python_worker());
    let manager = Manager::at_path();
    let queue = manager.names.text("queue");
    let queue = ("/run/echo/queue", &*queue);
    let rules = contrib().join("systemd/rules");
    let rules = ("/etc/echo/rules", rules.to_str().unwrap());
    let changes = [queue, rules, (" 8888", " 127.0.0.1:0")];
    let mut accept = service("echo-accept.service", &changes, &manager).start();
    let port = accept.port();
    manager.until_told("READY=1");
    let worker = worker.map(|word| word.to_str().unwrap().to_owned());
    let changes = [queue, ("/usr/local/bin/worker", &worker.join(" "))];
    let mut pool = Pool::of(&mut service("echo-pool.service", &changes, &manager));
    let ask = || assert!(!exchange(port, b"hello\n").is_empty());
    ask();
    // As ExecReload= does it.
    accept.signal(Signal::SIGHUP);
    manager.until_told("RELOADING=1");
    manager.until_told("READY=1");
    accept.line("rules: read again");
    pool.signal(Signal::SIGHUP);
    pool.line("reload: done");
    ask();
    pool.stop();
    accept.stop();
}

#[test]
fn the_service_with_both_programs_serves_the_listener_of_its_socket_unit() {
    let manager = Manager::at_path();
    let (listener, port) = listener();
    let socket = text("systemd/echo.socket");
    let name = values(&socket, "FileDescriptorName=").next().unwrap();
    let mut command = service("echo.service", &[], &manager);
    command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", name);
    let mut process = command.stdin(OwnedFd::from(listener)).start();
    assert_eq!(process.port(), port);
    manager.until_told("READY=1");
    Crowd::connect(port, 10).expect_served();
    process.stop();
}

// s6.

const SERVICES: [&str; 2] = ["echo-accept", "echo-pool"];

/// Both services under an s6-svscan of their own.
struct Tree {
    scan: Process,
    folder: TempDir,
    port: u16,
    /// Reserves the port while nothing listens there.
    _reserved: OwnedFd,
}

impl Tree {
    /// `None` if s6 is not installed.
    fn start() -> Option<Self> {
        Self::start_as("", path())
    }

    fn start_as(user: &str, path: std::ffi::OsString) -> Option<Self> {
        for tool in ["svscan", "svscanctl", "svc", "svwait", "svstat"] {
            peer(&format!("s6-{tool}"))?;
        }
        let (reserved, port) = reserve_port();
        // The queue is for another user as well.
        let folder = open_dir();
        // cp writes the scripts: a file that is open for writing cannot be executed.
        let scan = folder.path().join("scan");
        let mut copy = Command::new("cp");
        copy.arg("-r").arg(contrib().join("s6")).arg(&scan);
        assert!(succeeds(&mut copy));
        let mut command = sh("exec s6-svscan \"$0\" >&2");
        command.arg(&scan).env("PATH", path);
        command.env("ECHO_ADDRESS", format!("127.0.0.1:{port}"));
        command.env("ECHO_QUEUE", folder.path().join("run/queue"));
        command.env("ECHO_USER", user);
        let tree = Self {
            scan: command.start(),
            folder,
            port,
            _reserved: reserved,
        };
        // Until then the tools of s6 fail.
        for service in SERVICES {
            until("supervision", || {
                tree.try_run("s6-svstat", &[], service).is_some()
            });
        }
        Some(tree)
    }

    fn service(&self, name: &str) -> PathBuf {
        self.folder.path().join("scan").join(name)
    }

    /// Runs a tool of s6 on one of the services, and returns what it says.
    fn try_run(&self, tool: &str, options: &[&str], service: &str) -> Option<String> {
        let mut command = Command::new(peer(tool)?);
        command.args(options).arg(self.service(service));
        let (status, told, _) = run(&mut command);
        (status == Some(0)).then(|| told.trim_end().to_owned())
    }

    #[track_caller]
    fn run(&self, tool: &str, options: &[&str], service: &str) -> String {
        let told = self.try_run(tool, options, service);
        told.unwrap_or_else(|| panic!("{tool} {options:?} {service}"))
    }

    /// Waits until fdaccept is ready.
    #[track_caller]
    fn until_ready(&self) {
        let time = DEADLINE.as_millis().to_string();
        self.run("s6-svwait", &["-U", "-t", &time], "echo-accept");
    }

    /// Waits until a service is up, and is another process than `before`. Returns which.
    #[track_caller]
    fn pid(&self, service: &str, before: Option<Pid>) -> Pid {
        eventually("a process", || {
            let told = self.run("s6-svstat", &["-o", "pid"], service);
            let pid = Pid::from_raw(told.parse().unwrap());
            (pid.as_raw() > 0 && Some(pid) != before).then_some(pid)
        })
    }

    /// Kills a service, and waits until s6 has started it again.
    #[track_caller]
    fn crash(&self, service: &str) -> Pid {
        let before = self.pid(service, None);
        kill(before, Signal::SIGKILL).unwrap();
        self.pid(service, Some(before))
    }

    /// Stops a service, and waits until it is down.
    #[track_caller]
    fn stop(&self, service: &str) {
        let time = DEADLINE.as_millis().to_string();
        self.run("s6-svc", &["-d", "-wD", "-T", &time], service);
        assert_eq!(self.run("s6-svstat", &["-o", "up"], service), "false");
    }

    /// Fills all slots of the pool.
    #[track_caller]
    fn occupy(&self) -> Vec<Client> {
        let clients = (0..4).map(|_| Client::connect(self.port)).collect();
        let pool = self.pid("echo-pool", None);
        let is_busy = |slot: &Pid| !children(*slot).is_empty();
        until("four handlers", || {
            children(pool).iter().filter(|slot| is_busy(slot)).count() == 4
        });
        clients
    }

    /// Waits until this fdaccept has passed `count` connections.
    #[track_caller]
    fn until_passed(&mut self, count: usize) {
        let pid = self.pid("echo-accept", None);
        let expected = format!(" passed {count},");
        until("connections in the queue", || {
            kill(pid, Signal::SIGUSR1).unwrap();
            self.scan.line("accepted ").contains(&expected)
        });
    }

    /// Ends s6-svscan and both services.
    #[track_caller]
    fn finish(mut self) -> String {
        let pids = SERVICES.map(|service| self.pid(service, None));
        let mut command = Command::new(peer("s6-svscanctl").unwrap());
        command.arg("-t").arg(self.folder.path().join("scan"));
        assert!(succeeds(&mut command));
        let log = self.scan.expect_end(0);
        for pid in pids {
            assert!(!is_alive(pid), "{log}");
        }
        log
    }
}

impl Drop for Tree {
    /// Each service has a session of its own, so it does not end with the process group.
    fn drop(&mut self) {
        if !self.scan.is_running() {
            return;
        }
        self.scan.signal(Signal::SIGTERM);
        let deadline = Instant::now() + DEADLINE;
        while self.scan.is_running() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A tree whose fdaccept is ready.
fn ready_tree() -> Option<Tree> {
    let tree = Tree::start()?;
    tree.until_ready();
    Some(tree)
}

#[test]
fn run_scripts_are_executable_and_without_a_fault_that_shellcheck_knows() {
    for service in SERVICES {
        let file = contrib().join("s6").join(service).join("run");
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o755);
        let shellcheck = needs!(peer("shellcheck"));
        let (status, stdout, stderr) = run(Command::new(shellcheck).arg(&file));
        assert_eq!(status, Some(0), "{stdout}{stderr}");
    }
}

#[test]
fn s6_is_told_when_fdaccept_is_ready_and_clients_are_served() {
    let tree = needs!(ready_tree());
    assert_eq!(
        tree.run("s6-svstat", &["-o", "up,ready"], "echo-accept"),
        "true true"
    );
    // Readiness is true: no client is refused.
    Crowd::connect(tree.port, 10).expect_served();
    let log = tree.finish();
    assert!(!log.contains("not taken"), "{log}");
}

#[test]
fn clients_that_wait_survive_a_crash_of_fdpool_under_s6() {
    let mut tree = needs!(ready_tree());
    let served = tree.occupy();
    let crowd = Crowd::connect(tree.port, 6);
    tree.until_passed(10);
    tree.crash("echo-pool");
    crowd.expect_served();
    assert_eq!(exchange(tree.port, b"next"), b"next");
    // The handlers outlived the pool.
    drop(served);
    tree.finish();
}

#[test]
fn clients_that_wait_survive_a_crash_of_fdaccept_under_s6() {
    let mut tree = needs!(ready_tree());
    let served = tree.occupy();
    let crowd = Crowd::connect(tree.port, 6);
    tree.until_passed(10);
    tree.crash("echo-accept");
    tree.until_ready();
    // The clients in service notice nothing of it.
    for client in served {
        client.expect_echo("hello");
    }
    crowd.expect_served();
    assert_eq!(exchange(tree.port, b"next"), b"next");
    tree.finish();
}

#[test]
fn either_side_stops_and_starts_on_its_own_under_s6() {
    let mut tree = needs!(ready_tree());
    assert_eq!(exchange(tree.port, b"first"), b"first");
    tree.stop("echo-pool");
    let crowd = Crowd::connect(tree.port, 6);
    tree.until_passed(7);
    tree.run("s6-svc", &["-u"], "echo-pool");
    crowd.expect_served();
    tree.stop("echo-accept");
    assert!(TcpStream::connect(("127.0.0.1", tree.port)).is_err());
    assert!(is_alive(tree.pid("echo-pool", None)));
    tree.run("s6-svc", &["-u"], "echo-accept");
    tree.until_ready();
    assert_eq!(exchange(tree.port, b"next"), b"next");
    tree.finish();
}

#[test]
fn both_programs_run_under_another_user_under_s6() {
    if !root() || peer("s6-setuidgid").is_none() {
        return;
    }
    let programs = open_dir();
    for name in ["fdaccept", "fdpool"] {
        copy_of(name, programs.path());
    }
    let rest = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(programs.path().to_owned()).chain(std::env::split_paths(&rest));
    let tree = needs!(Tree::start_as(
        "nobody",
        std::env::join_paths(dirs).unwrap()
    ));
    tree.until_ready();
    assert_eq!(exchange(tree.port, b"as nobody"), b"as nobody");
    let nobody = User::from_name("nobody").unwrap().unwrap();
    for service in SERVICES {
        let pid = tree.pid(service, None);
        let owner = std::fs::metadata(format!("/proc/{pid}")).unwrap().uid();
        assert_eq!(owner, nobody.uid.as_raw(), "{service}");
    }
    // And once more, with what the first fdaccept has left in the directory.
    tree.crash("echo-accept");
    tree.until_ready();
    assert_eq!(exchange(tree.port, b"again"), b"again");
    tree.finish();
}
