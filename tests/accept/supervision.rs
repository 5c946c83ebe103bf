//! What contrib/ has for systemd and s6: systemd accepts the units, the programs know every option
//! in them, and s6 really runs its service directories.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{
    self, Crowd, DEADLINE, Process, bin_dir, children, connect, eventually, exchange, is_alive,
    path, peer, program, python_worker, root, run, script, until,
};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, setsockopt, socket, sockopt,
};
use nix::unistd::{Pid, User};

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
    let mut lines = text
        .lines()
        .filter_map(|line| line.strip_prefix("ExecStart="));
    let line = lines.next().unwrap();
    assert_eq!(lines.next(), None, "{unit}");
    line.to_owned()
}

/// Every file and directory in contrib/, but those within services of s6.
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
    // And of no other.
    let rows = readme.lines().filter_map(|line| line.strip_prefix("| `"));
    assert_eq!(rows.count(), contents().len());
}

// systemd.

#[test]
fn systemd_accepts_every_unit() {
    let Some(analyze) = peer("systemd-analyze") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    for unit in UNITS {
        // The programs must be there: ours are where they were built, and the worker is any.
        let unit_text = text(&format!("systemd/{unit}"));
        let unit_text = unit_text.replace("/usr/local/bin/worker", "/bin/cat");
        let unit_text = unit_text.replace("/usr/local/bin", bin_dir().to_str().unwrap());
        std::fs::write(folder.path().join(unit), unit_text).unwrap();
    }
    for unit in UNITS {
        let file = folder.path().join(unit);
        let (status, stdout, stderr) = run(Command::new(&analyze).arg("verify").arg(&file));
        let ours: Vec<_> = stderr
            .lines()
            .filter(|line| line.contains("echo"))
            .collect();
        assert_eq!(
            (status, ours),
            (Some(0), Vec::new()),
            "{unit}: {stdout}{stderr}"
        );
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

/// The options that `words` gives to the programs in it, with which program it gives them to.
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
        // Words that the shell puts together do not matter here, but what is in them does.
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

/// The command of a service, where `changes` are made to it, as systemd would start it.
fn service(unit: &str, changes: &[(&str, &str)], notify: &Path) -> Command {
    let mut line = exec_start(unit);
    for (from, to) in changes {
        assert!(line.contains(from), "{line}");
        line = line.replace(from, to);
    }
    let line = line.replace("/usr/local/bin", bin_dir().to_str().unwrap());
    let mut command = script("sh", &format!("LISTEN_PID=$$ exec {line} 3<&0 </dev/null"));
    // Whatever started this test must not interfere.
    command
        .env_remove("LISTEN_FDS")
        .env_remove("LISTEN_FDNAMES");
    command.env("NOTIFY_SOCKET", notify);
    command.stdout(Stdio::null());
    command
}

/// A manager that reads what it is told and keeps nothing.
struct Manager {
    folder: tempfile::TempDir,
    socket: UnixDatagram,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { folder, socket }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    #[track_caller]
    fn until_told(&self, what: &str) {
        let mut buffer = [0; 4096];
        loop {
            let length = support::receive_message(&self.socket, &mut buffer);
            if String::from_utf8_lossy(&buffer[..length]).contains(what) {
                return;
            }
        }
    }
}

#[test]
fn the_two_services_with_a_named_queue_serve() {
    let Some(worker) = python_worker() else {
        return;
    };
    let manager = Manager::new();
    let notify = manager.file("notify");
    let queue = manager.file("queue");
    let rules = contrib().join("systemd/rules");
    let queue = ("/run/echo/queue", queue.to_str().unwrap());
    let changes = [
        queue,
        ("/etc/echo/rules", rules.to_str().unwrap()),
        (" 8888", " 127.0.0.1:0"),
    ];
    let mut accept = Process::start(&mut service("echo-accept.service", &changes, &notify));
    let port = accept.port();
    manager.until_told("READY=1");
    let worker = worker
        .map(|word| word.to_str().unwrap().to_owned())
        .join(" ");
    let changes = [queue, ("/usr/local/bin/worker", &worker)];
    let mut pool = Process::start(&mut service("echo-pool.service", &changes, &notify));
    let ask = || {
        let answer = exchange(port, b"hello\n");
        assert!(!answer.is_empty());
    };
    ask();
    // The reload of each.
    accept.signal(Signal::SIGHUP);
    manager.until_told("RELOADING=1");
    manager.until_told("READY=1");
    accept.line("rules: read again");
    pool.signal(Signal::SIGHUP);
    pool.line("reload: done");
    ask();
    for process in [&mut pool, &mut accept] {
        process.signal(Signal::SIGTERM);
        let (status, log) = process.finish();
        assert_eq!(status.code(), Some(0), "{log}");
    }
}

#[test]
fn the_service_with_both_programs_serves_the_listener_of_its_socket_unit() {
    let manager = Manager::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let notify = manager.file("notify");
    let name = text("systemd/echo.socket");
    let mut names = name
        .lines()
        .filter_map(|line| line.strip_prefix("FileDescriptorName="));
    let mut command = service("echo.service", &[], &notify);
    command
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDNAMES", names.next().unwrap());
    let mut process = Process::start(command.stdin(OwnedFd::from(listener)));
    assert_eq!(process.port(), port);
    manager.until_told("READY=1");
    Crowd::connect(port, 10).expect_served();
    process.signal(Signal::SIGTERM);
    let (status, log) = process.finish();
    assert_eq!(status.code(), Some(0), "{log}");
}

// s6.

const SERVICES: [&str; 2] = ["echo-accept", "echo-pool"];

/// Both services under an s6-svscan of their own.
struct Tree {
    scan: Process,
    folder: tempfile::TempDir,
    port: u16,
    /// Nobody else gets the port while nobody listens there.
    _reserved: OwnedFd,
}

impl Tree {
    /// `None` if s6 is not installed.
    fn start() -> Option<Self> {
        Self::start_as("", path())
    }

    fn start_as(user: &str, path: std::ffi::OsString) -> Option<Self> {
        for tool in [
            "s6-svscan",
            "s6-svscanctl",
            "s6-svc",
            "s6-svwait",
            "s6-svstat",
        ] {
            peer(tool)?;
        }
        let (reserved, port) = reserve_port();
        let folder = tempfile::tempdir().unwrap();
        // cp writes them, since what is open for writing cannot be executed.
        let mut copy = Command::new("cp");
        copy.arg("-r")
            .arg(contrib().join("s6"))
            .arg(folder.path().join("scan"));
        assert!(copy.status().unwrap().success());
        // Another user has to get to the queue.
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let mut command = script("sh", "exec s6-svscan \"$0\" >&2");
        command.arg(folder.path().join("scan")).env("PATH", path);
        command.env("ECHO_ADDRESS", format!("127.0.0.1:{port}"));
        command.env("ECHO_QUEUE", folder.path().join("run/queue"));
        command.env("ECHO_USER", user);
        let scan = Process::start(&mut command);
        let tree = Self {
            scan,
            folder,
            port,
            _reserved: reserved,
        };
        // Before that there is nobody to be asked.
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
        let output = command.stderr(Stdio::null()).output().unwrap();
        let is_done = output.status.success();
        is_done.then(|| {
            String::from_utf8(output.stdout)
                .unwrap()
                .trim_end()
                .to_owned()
        })
    }

    #[track_caller]
    fn run(&self, tool: &str, options: &[&str], service: &str) -> String {
        let told = self.try_run(tool, options, service);
        told.unwrap_or_else(|| panic!("{tool} {options:?} {service}"))
    }

    /// Waits until fdaccept has said that it is ready.
    #[track_caller]
    fn until_ready(&self) {
        let milliseconds = DEADLINE.as_millis().to_string();
        self.run("s6-svwait", &["-U", "-t", &milliseconds], "echo-accept");
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
        let milliseconds = DEADLINE.as_millis().to_string();
        self.run("s6-svc", &["-d", "-wD", "-T", &milliseconds], service);
        assert_eq!(self.run("s6-svstat", &["-o", "up"], service), "false");
    }

    /// Fills all slots of the pool with clients that do not end yet.
    #[track_caller]
    fn occupy(&self) -> Vec<TcpStream> {
        let clients: Vec<_> = (0..4).map(|_| connect(self.port)).collect();
        let pool = self.pid("echo-pool", None);
        until("four handlers", || {
            let slots = children(pool);
            slots
                .iter()
                .filter(|slot| !children(**slot).is_empty())
                .count()
                == 4
        });
        clients
    }

    /// Waits until so many connections were put into the queue since fdaccept was started.
    #[track_caller]
    fn until_passed(&mut self, count: usize) {
        let pid = self.pid("echo-accept", None);
        until("connections in the queue", || {
            kill(pid, Signal::SIGUSR1).unwrap();
            self.scan
                .line("accepted ")
                .contains(&format!(" passed {count},"))
        });
    }

    /// Ends everything, and waits for that.
    #[track_caller]
    fn finish(mut self) -> String {
        let pids = SERVICES.map(|service| self.pid(service, None));
        let mut command = Command::new(peer("s6-svscanctl").unwrap());
        command.arg("-t").arg(self.folder.path().join("scan"));
        assert!(command.status().unwrap().success());
        let (status, log) = self.scan.finish();
        assert!(status.success(), "{log}");
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

/// A port of 127.0.0.1 that nobody else gets, but that can be listened on. It is given back with
/// the descriptor.
fn reserve_port() -> (OwnedFd, u16) {
    let kind = SockType::Stream;
    let socket = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
    bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    let bound: SockaddrIn = getsockname(socket.as_raw_fd()).unwrap();
    (socket, bound.port())
}

/// Sends `text`, and returns all that comes back.
fn ask(mut client: TcpStream, text: &str) -> std::io::Result<String> {
    client.write_all(text.as_bytes())?;
    client.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn run_scripts_are_executable_and_without_a_fault_that_shellcheck_knows() {
    for service in SERVICES {
        let file = contrib().join("s6").join(service).join("run");
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o755);
        let Some(shellcheck) = peer("shellcheck") else {
            return;
        };
        let (status, stdout, stderr) = run(Command::new(shellcheck).arg(&file));
        assert_eq!(status, Some(0), "{stdout}{stderr}");
    }
}

#[test]
fn s6_is_told_when_fdaccept_is_ready_and_clients_are_served() {
    let Some(tree) = Tree::start() else {
        return;
    };
    tree.until_ready();
    assert_eq!(
        tree.run("s6-svstat", &["-o", "up,ready"], "echo-accept"),
        "true true"
    );
    // It is true: nobody is refused.
    Crowd::connect(tree.port, 10).expect_served();
    let log = tree.finish();
    assert!(!log.contains("not taken"), "{log}");
}

#[test]
fn clients_that_wait_survive_a_crash_of_fdpool_under_s6() {
    let Some(mut tree) = Tree::start() else {
        return;
    };
    tree.until_ready();
    let served = tree.occupy();
    let crowd = Crowd::connect(tree.port, 6);
    tree.until_passed(10);
    tree.crash("echo-pool");
    crowd.expect_served();
    assert_eq!(exchange(tree.port, b"next"), b"next");
    // Their handlers have outlived the pool.
    drop(served);
    tree.finish();
}

#[test]
fn clients_that_wait_survive_a_crash_of_fdaccept_under_s6() {
    let Some(mut tree) = Tree::start() else {
        return;
    };
    tree.until_ready();
    let served = tree.occupy();
    let crowd = Crowd::connect(tree.port, 6);
    tree.until_passed(10);
    tree.crash("echo-accept");
    tree.until_ready();
    // Who is served notices nothing of it.
    for client in served {
        assert_eq!(ask(client, "hello").unwrap(), "hello");
    }
    crowd.expect_served();
    assert_eq!(exchange(tree.port, b"next"), b"next");
    tree.finish();
}

#[test]
fn either_side_stops_and_starts_on_its_own_under_s6() {
    let Some(mut tree) = Tree::start() else {
        return;
    };
    tree.until_ready();
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
    // Where these were built, nobody else may be allowed to look.
    let programs = tempfile::tempdir().unwrap();
    let text = "cp \"$0/fdaccept\" \"$0/fdpool\" \"$1\" && chmod 755 \"$1\" \"$1\"/*";
    let mut copy = script("sh", text);
    copy.arg(bin_dir()).arg(programs.path());
    assert!(copy.status().unwrap().success());
    let rest = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(programs.path().to_owned()).chain(std::env::split_paths(&rest));
    let Some(tree) = Tree::start_as("nobody", std::env::join_paths(dirs).unwrap()) else {
        return;
    };
    tree.until_ready();
    assert_eq!(exchange(tree.port, b"as nobody"), b"as nobody");
    let nobody = User::from_name("nobody").unwrap().unwrap();
    for service in SERVICES {
        let pid = tree.pid(service, None);
        let owner = std::fs::metadata(format!("/proc/{pid}")).unwrap().uid();
        assert_eq!(owner, nobody.uid.as_raw(), "{service}");
    }
    // And once more, with what the first one has left in the directory.
    tree.crash("echo-accept");
    tree.until_ready();
    assert_eq!(exchange(tree.port, b"again"), b"again");
    tree.finish();
}
