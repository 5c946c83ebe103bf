//! A terminal in which the lines of the pages are pasted.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::Pid;

use super::pages::Blocks;
use crate::support::*;

/// The ports that the pages use.
pub const PORTS: &[&str] = &["8888", "8443", "9418", "2222", "80"];

/// `sh`, and every other shell that is installed.
pub fn shells() -> Vec<&'static str> {
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

/// Somebody who pastes lines, each in a window of its own, all in one new directory.
pub struct Terminal {
    shell: &'static str,
    pub lines: &'static [&'static str],
    // Before the directory, so that they have ended when it is removed.
    pub processes: Vec<Process>,
    /// What holds a network namespace, and lives as long as that is used.
    network: Option<Process>,
    programs: PathBuf,
    dir: tempfile::TempDir,
}

impl Terminal {
    pub fn new(shell: &'static str, lines: &'static [&'static str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for file in Blocks::read().files_for(lines) {
            std::fs::write(dir.path().join(&file.name), &file.text).unwrap();
        }
        Self {
            shell,
            lines,
            processes: Vec::new(),
            network: None,
            programs: bin_dir(),
            dir,
        }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Runs one of the lines of this test.
    pub fn run(&mut self, index: usize) -> &mut Process {
        let line = self.lines[index];
        if self.network.is_some() {
            self.run_text(line)
        } else {
            self.run_text(&with_free_ports(line))
        }
    }

    /// Runs one of the lines to its end.
    pub fn finish(&mut self, index: usize) {
        let (status, log) = self.run(index).finish();
        assert!(status.success(), "{log}");
    }

    /// Runs everything in a new network namespace from now on, with its ports as they are.
    pub fn isolate(&mut self) {
        let mut holder = Command::new("unshare");
        let script = "ip link set lo up && echo up >&2 && exec cat";
        holder.args(["--net", "sh", "-c", script]);
        let mut holder = Process::start(holder.stdin(Stdio::piped()).stdout(Stdio::null()));
        holder.line("up");
        self.network = Some(holder);
    }

    /// A program in the directory of this terminal, and in its network namespace.
    pub fn command(&self, program: &str) -> Command {
        let mut command = match &self.network {
            None => Command::new(program),
            Some(holder) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/proc/{}/ns/net", holder.pid()));
                command.arg(program);
                command
            }
        };
        command.current_dir(self.dir()).stdin(Stdio::null());
        command
    }

    /// What a client gets over TLS that checks the certificate, connects from this address and sends
    /// "you"; empty if there is nothing to get, as before the server is there.
    pub fn ask_over_tls(&self, from: &str, port: u16) -> String {
        let mut client = self.command("openssl");
        client.args([
            "s_client",
            "-quiet",
            "-verify_return_error",
            "-CAfile",
            "server.pem",
        ]);
        client.args(["-verify_hostname", "localhost", "-bind", from]);
        client.arg("-connect").arg(format!("127.0.0.1:{port}"));
        client.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut client = Process::start(&mut client);
        let mut stdin = client.child().stdin.take().unwrap();
        // It may have ended already.
        let _ = stdin.write_all(b"you\n");
        let mut answer = String::new();
        let mut stdout = client.child().stdout.take().unwrap();
        stdout.read_to_string(&mut answer).unwrap();
        answer
    }

    pub fn run_text(&mut self, line: &str) -> &mut Process {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = std::iter::once(self.programs.clone()).chain(std::env::split_paths(&path));
        let mut words = self.shell.split(' ');
        let mut shell = self.command(words.next().unwrap());
        shell.args(words).args(["-c", line]);
        shell.env("PATH", std::env::join_paths(dirs).unwrap());
        // A handler that forgets to flush must not pass.
        shell.env_remove("PYTHONUNBUFFERED");
        shell.env("GOCACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("go"));
        shell.stdout(Stdio::null());
        self.processes.push(Process::start(&mut shell));
        self.processes.last_mut().unwrap()
    }

    /// Goes to the directory of README, as far as the lines need it.
    pub fn link_examples(&self) {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
        std::os::unix::fs::symlink(examples, self.dir().join("examples")).unwrap();
    }

    /// Copies the programs to where every user finds them. cp does it: a file that is open for
    /// writing here may be so in a child of another test, and then cannot be executed.
    pub fn install_programs(&mut self) {
        let programs = self.dir().join("bin");
        let script = "mkdir bin && cp \"$1/fdaccept\" \"$1/fdpool\" bin && chmod 755 . bin bin/*";
        let mut copy = Command::new("sh");
        copy.args(["-c", script, "sh"]).arg(&self.programs);
        assert!(copy.current_dir(self.dir()).status().unwrap().success());
        self.programs = programs;
    }
}

/// The line with 0 in the place of each port.
pub fn with_free_ports(line: &str) -> String {
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
pub fn only_ports_are_replaced() {
    let line = "fdaccept 80 127.0.0.1:8888 ./80.sock | fdpool 8 -- x 8080";
    let expected = "fdaccept 0 127.0.0.1:0 ./80.sock | fdpool 8 -- x 8080";
    assert_eq!(with_free_ports(line), expected);
}

/// The first process of this name among a process and all below it: the shell of a line may have become
/// the program, or be its parent.
#[track_caller]
pub fn descendant(pid: Pid, name: &str) -> Pid {
    let is_named = |pid: &Pid| {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm"));
        comm.unwrap_or_default().trim_end() == name
    };
    let mut generation = vec![pid];
    while !generation.is_empty() {
        if let Some(found) = generation.iter().copied().find(is_named) {
            return found;
        }
        generation = generation.into_iter().flat_map(children).collect();
    }
    panic!("no {name} below process {pid}");
}

/// The number that a process has in its own namespace.
pub fn pid_inside(pid: Pid) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let numbers = status.lines().find(|line| line.starts_with("NSpid:"));
    numbers
        .unwrap()
        .split_whitespace()
        .last()
        .unwrap()
        .to_owned()
}
