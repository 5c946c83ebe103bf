//! The servers: how each is started, and what it costs.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::load;

/// How long one may take until it answers.
const PATIENCE: Duration = Duration::from_secs(10);

/// One that runs. Dropping it ends all of its processes.
pub struct Server {
    pub name: &'static str,
    pub port: u16,
    shell: Child,
    /// Where its files are, while it runs.
    _directory: tempfile::TempDir,
}

/// A server is a line for the shell, with PORT for the port, if `needs` is installed.
struct Line {
    name: &'static str,
    needs: &'static [&'static str],
    text: &'static str,
}

/// fdtools first.
const PROCESS_PER_CONNECTION: &[Line] = &[
    Line {
        name: "fdaccept \\| fdpool 16",
        needs: &[],
        text: "fdaccept -q 127.0.0.1:PORT | fdpool -q 16 -- cat",
    },
    Line {
        name: "bare accept, vfork, exec",
        needs: &[],
        text: "exec \"$BENCH\" --baseline exec PORT",
    },
    Line {
        name: "tcpserver",
        needs: &["tcpserver"],
        text: "exec tcpserver -H -R -l0 -c 1000 -b 4096 127.0.0.1 PORT cat",
    },
    Line {
        name: "s6-tcpserver",
        needs: &["s6-tcpserver"],
        text: "exec s6-tcpserver -c 1000 -b 4096 127.0.0.1 PORT cat",
    },
    Line {
        name: "systemd-socket-activate",
        needs: &["systemd-socket-activate"],
        text: "exec systemd-socket-activate -a --inetd -l 127.0.0.1:PORT cat",
    },
    Line {
        name: "inetd",
        needs: &["inetutils-inetd"],
        text: "printf '127.0.0.1:PORT stream tcp nowait root /bin/cat cat\\n' >inetd.conf; \
               exec inetutils-inetd -d -R 100000000 ./inetd.conf",
    },
    Line {
        name: "socat",
        needs: &["socat"],
        text: "exec socat TCP-LISTEN:PORT,bind=127.0.0.1,reuseaddr,fork,backlog=4096 EXEC:cat",
    },
    Line {
        name: "ncat",
        needs: &["ncat"],
        text: "exec ncat -4 -k -m 1000 -e /bin/cat -l 127.0.0.1 PORT",
    },
];

const WORKERS: &[Line] = &[
    Line {
        name: "fdpool 2 --worker",
        needs: &[],
        text: "fdaccept -q 127.0.0.1:PORT | fdpool -q --worker 2 -- \"$WORKER\"",
    },
    Line {
        name: "2 processes that accept",
        needs: &[],
        text: "exec \"$BENCH\" --baseline echo PORT",
    },
];

/// All that start a process for each connection.
pub fn process_per_connection() -> Vec<Server> {
    start_all(PROCESS_PER_CONNECTION)
}

/// Those that do not.
pub fn workers() -> Vec<Server> {
    start_all(WORKERS)
}

fn start_all(lines: &[Line]) -> Vec<Server> {
    let is_there = |line: &&Line| {
        let missing = line.needs.iter().find(|name| !is_installed(name));
        if let Some(missing) = missing {
            eprintln!("left out: {missing} is not installed");
        }
        missing.is_none()
    };
    lines
        .iter()
        .filter(is_there)
        .filter_map(Server::start)
        .collect()
}

fn is_installed(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(system)
        .any(|directory| directory.join(name).is_file())
}

impl Server {
    /// Starts one, and waits until it answers; says so if it does not.
    fn start(line: &Line) -> Option<Self> {
        // Free a moment ago, and given to nobody else so soon.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        drop(listener);
        let directory = tempfile::tempdir().expect("a directory");
        let programs = Path::new(env!("CARGO_BIN_EXE_fdaccept"))
            .parent()
            .expect("a directory");
        let mut path = programs.as_os_str().to_owned();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        path.push(":/usr/sbin:/sbin");
        let shell = Command::new("sh")
            .args(["-c", &line.text.replace("PORT", &port.to_string())])
            .env("PATH", path)
            .env("BENCH", std::env::current_exe().expect("this program"))
            .env("WORKER", programs.join("examples/worker"))
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("there is a shell");
        let server = Self {
            name: line.name,
            port,
            shell,
            _directory: directory,
        };
        let until = Instant::now() + PATIENCE;
        let mut answer = Vec::new();
        while load::ask(port, &mut answer).is_err() || answer.is_empty() {
            if Instant::now() > until {
                eprintln!("left out: {} does not answer", line.name);
                return None;
            }
            // Not every one says when it is ready.
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(server)
    }

    /// The processor time of all its processes so far, with those that have ended.
    pub fn cpu_time(&self) -> Duration {
        let ticks = ticks(Pid::from_raw(self.shell.id() as i32));
        let second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
        Duration::from_secs_f64(ticks as f64 / second as f64)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let group = Pid::from_raw(self.shell.id() as i32);
        let _ = killpg(group, Signal::SIGTERM);
        std::thread::sleep(Duration::from_millis(100));
        let _ = killpg(group, Signal::SIGKILL);
        let _ = self.shell.wait();
    }
}

/// Processor time of a process, its children that have ended, and its children that have not, as
/// proc_pid_stat(5) has it.
fn ticks(pid: Pid) -> u64 {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
    let stat = read("stat").unwrap_or_default();
    // What comes before the last parenthesis may have spaces in it.
    let fields = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace();
    let own: u64 = fields
        .skip(11)
        .take(4)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    let children = read(&format!("task/{pid}/children")).unwrap_or_default();
    let children = children
        .split_whitespace()
        .filter_map(|child| child.parse().ok());
    own + children
        .map(|child| ticks(Pid::from_raw(child)))
        .sum::<u64>()
}
