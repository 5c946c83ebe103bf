//! The servers: their start and their cost.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::load;

/// How long a server may take to its first answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The shell around a server. It ends the whole server when its own input ends, which happens
/// however the benchmark ends.
const GUARD: &str = "{ TEXT\n} & read -r _; trap '' TERM; kill 0; sleep 0.1; \
                     rm -rf -- \"$DIRECTORY\"; kill -KILL 0";

/// A running server. Dropping it ends all of its processes.
pub struct Server {
    #[allow(dead_code)] // not every benchmark prints it
    pub name: &'static str,
    pub port: u16,
    shell: Child,
    /// The working directory, as long as the server runs.
    directory: tempfile::TempDir,
}

/// A server: a line for the shell, with PORT for the port, which runs if the programs of `needs`
/// are installed.
pub struct Line {
    pub name: &'static str,
    pub needs: &'static [&'static str],
    pub text: &'static str,
}

impl Server {
    /// Starts a server with `environment` added, and waits for an answer; prints why if there is
    /// none.
    pub fn start(line: &Line, environment: &[(&str, &Path)]) -> Option<Self> {
        if let Some(missing) = line.needs.iter().find(|name| !is_installed(name)) {
            eprintln!("left out: {missing} is not installed");
            return None;
        }
        // The port was free a moment ago, and the kernel gives it to nobody else so soon.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        drop(listener);
        let directory = tempfile::tempdir().expect("a directory");
        let programs = programs();
        let mut path = programs.as_os_str().to_owned();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        path.push(":/usr/sbin:/sbin");
        let text = line.text.replace("PORT", &port.to_string());
        let shell = Command::new("sh")
            .args(["-c", &GUARD.replace("TEXT", &text)])
            .env("PATH", path)
            .env("BENCH", std::env::current_exe().expect("this program"))
            .env("DIRECTORY", directory.path())
            .envs(environment.iter().copied())
            .current_dir(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("there is a shell");
        let server = Self {
            name: line.name,
            port,
            shell,
            directory,
        };
        let until = Instant::now() + PATIENCE;
        while !load::ask(port) {
            if Instant::now() > until {
                eprintln!("left out: {} does not answer as it should", line.name);
                return None;
            }
            // Not every server reports that it is ready.
            std::thread::sleep(Duration::from_millis(1));
        }
        Some(server)
    }

    #[allow(dead_code)] // not every benchmark looks into it
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The process of the line, if the line is one command.
    #[allow(dead_code)] // not every benchmark looks into it
    pub fn pid(&self) -> Pid {
        children(self.shell())[0]
    }

    fn shell(&self) -> Pid {
        Pid::from_raw(self.shell.id() as i32)
    }

    /// The processor time of all the server's processes so far, exited ones included.
    #[allow(dead_code)] // where there are many processes, ticks are too coarse
    pub fn cpu_time(&self) -> Duration {
        let ticks = ticks(self.shell());
        let second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
        Duration::from_secs_f64(ticks as f64 / second as f64)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

/// The directory of the programs that cargo built.
fn programs() -> &'static Path {
    let program = Path::new(env!("CARGO_BIN_EXE_fdaccept"));
    program.parent().expect("a directory")
}

fn is_installed(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(system)
        .any(|directory| directory.join(name).is_file())
}

/// Processor time of a process, of its exited children and of its living children
/// (proc_pid_stat(5)).
#[allow(dead_code)] // see cpu_time
fn ticks(pid: Pid) -> u64 {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
    let stat = read("stat").unwrap_or_default();
    // The program's name, which the last parenthesis ends, may have spaces.
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
    own + children(pid).into_iter().map(ticks).sum::<u64>()
}

pub fn children(pid: Pid) -> Vec<Pid> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = std::fs::read_to_string(path).unwrap_or_default();
    let numbers = children
        .split_whitespace()
        .filter_map(|child| child.parse().ok());
    numbers.map(Pid::from_raw).collect()
}
