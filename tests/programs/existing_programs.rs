//! Programs that know nothing of fdtools as handlers, over their real clients.

use std::ffi::OsStr;
use std::fs;
use std::io::pipe;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::*;
use nix::sys::signal::Signal;

/// A pipeline of fdaccept and a consumer of its connections.
struct Pipeline {
    acceptor: Process,
    consumer: Process,
    port: u16,
}

impl Pipeline {
    /// `fdaccept 127.0.0.1:0 | CONSUMER`
    #[track_caller]
    fn start(consumer: &mut Command) -> Self {
        let (reader, writer) = pipe().unwrap();
        let mut acceptor = program("fdaccept");
        let mut acceptor = Process::start(acceptor.arg("127.0.0.1:0").stdout(writer));
        let process = Process::start(consumer.stdin(reader));
        // The command would keep the pipe open.
        consumer.stdin(Stdio::null());
        Self {
            port: acceptor.port(),
            acceptor,
            consumer: process,
        }
    }

    /// Ends it, and expects that all went well.
    #[track_caller]
    fn stop(mut self) {
        self.acceptor.signal(Signal::SIGTERM);
        let (status, log) = self.consumer.finish();
        assert_eq!(status.code(), Some(0), "{log}");
        let (status, log) = self.acceptor.finish();
        assert_eq!(status.code(), Some(0), "{log}");
    }
}

/// `fdpool 2 -- HANDLER`
fn pool(handler: &mut Command) -> Command {
    let mut pool = program("fdpool");
    pool.args(["2", "--"]);
    pool.arg(handler.get_program()).args(handler.get_args());
    pool
}

/// One fdrecv after another.
fn loop_of_fdrecv(handler: &mut Command) -> Command {
    let text = "while fdrecv -- \"$@\" || [ $? -ne 69 ]; do :; done";
    let mut consumers = script("sh", text);
    consumers.arg("sh").arg(handler.get_program());
    consumers.args(handler.get_args());
    consumers
}

/// Runs a client, which must succeed, and returns what it prints.
#[track_caller]
fn client(command: &mut Command) -> String {
    let (status, output, log) = run(command.stdin(Stdio::null()));
    assert_eq!(status, Some(0), "{log}");
    output
}

/// A text that fits into no single packet.
fn long_text() -> String {
    (0..50_000).map(|number| format!("{number}\n")).collect()
}

#[test]
fn a_shell_script_serves_as_a_handler() {
    let directory = tempfile::tempdir().unwrap();
    let text = "#!/bin/sh\n\
        while read -r line; do\n\
        case $line in quit) echo bye; exit ;; *) echo \"you said $line\" ;; esac\n\
        done\n";
    let handler = executable(directory.path().join("handler"), text);
    for consumer in [pool, loop_of_fdrecv] {
        let pipeline = Pipeline::start(&mut consumer(&mut Command::new(&handler)));
        let answer = exchange(pipeline.port, b"one\ntwo\n");
        assert_eq!(answer, b"you said one\nyou said two\n");
        let answer = exchange(pipeline.port, b"one\nquit\n");
        assert_eq!(answer, b"you said one\nbye\n");
        pipeline.stop();
    }
}

#[test]
fn busybox_httpd_serves_curl() {
    let (Some(busybox), Some(curl)) = (peer("busybox"), peer("curl")) else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("numbers"), long_text()).unwrap();
    let mut httpd = Command::new(busybox);
    httpd.args(["httpd", "-i", "-h"]).arg(directory.path());
    for consumer in [pool, loop_of_fdrecv] {
        let pipeline = Pipeline::start(&mut consumer(&mut httpd));
        let url = format!("http://127.0.0.1:{}/numbers", pipeline.port);
        let curl = || {
            let mut command = Command::new(&curl);
            command.args(["--silent", "--show-error", "--noproxy", "*"]);
            command
        };
        for _ in 0..3 {
            assert_eq!(client(curl().arg("--fail").arg(&url)), long_text());
        }
        let code = ["--output", "/dev/null", "--write-out", "%{http_code}"];
        let missing = format!("{url}-that-are-not-there");
        assert_eq!(client(curl().args(code).arg(missing)), "404");
        pipeline.stop();
    }
}

#[test]
fn git_daemon_serves_git_clone() {
    let Some(git) = peer("git") else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let configuration = at("configuration");
    fs::write(&configuration, "").unwrap();
    let git = |arguments: &[&OsStr]| {
        let mut command = Command::new(&git);
        // Nobody's configuration but this one.
        command
            .args(arguments)
            .env("HOME", directory.path())
            .env("GIT_CONFIG_GLOBAL", &configuration)
            .env("GIT_CONFIG_NOSYSTEM", "1");
        for variable in ["GIT_AUTHOR", "GIT_COMMITTER"] {
            command.env(format!("{variable}_NAME"), "A U Thor");
            command.env(format!("{variable}_EMAIL"), "author@example.com");
        }
        command
    };
    let original = at("original");
    let in_original = |arguments: &[&str]| {
        let place = [OsStr::new("-C"), original.as_os_str()];
        let rest = arguments.iter().map(OsStr::new);
        client(&mut git(&place.into_iter().chain(rest).collect::<Vec<_>>()))
    };
    let init = ["init", "--quiet"].map(OsStr::new);
    client(&mut git(&[init[0], init[1], original.as_os_str()]));
    fs::write(original.join("numbers"), long_text()).unwrap();
    in_original(&["add", "numbers"]);
    in_original(&["commit", "--quiet", "--message", "Numbers"]);

    let base = format!("--base-path={}", directory.path().display());
    let daemon = [
        "daemon",
        "--inetd",
        "--export-all",
        "--log-destination=none",
    ];
    let mut handler = git(&daemon.map(OsStr::new));
    handler.arg(base);
    let mut consumer = pool(&mut handler);
    consumer.env("HOME", directory.path());
    consumer.env("GIT_CONFIG_GLOBAL", &configuration);
    let pipeline = Pipeline::start(&mut consumer);
    let url = format!("git://127.0.0.1:{}/original", pipeline.port);
    for name in ["one", "two", "three"] {
        let copy = at(name);
        let clone = ["clone", "--quiet", &url].map(OsStr::new);
        let mut command = git(&clone);
        client(command.arg(&copy));
        let numbers = fs::read_to_string(copy.join("numbers")).unwrap();
        assert_eq!(numbers, long_text());
    }
    pipeline.stop();
}

#[test]
fn sshd_serves_ssh() {
    let (Some(sshd), Some(ssh), Some(keygen)) = (peer("sshd"), peer("ssh"), peer("ssh-keygen"))
    else {
        return;
    };
    if !root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    // sshd wants this directory, empty and root's, which its service makes.
    fs::create_dir_all("/run/sshd").unwrap();
    for key in ["host", "user"] {
        let mut keygen = Command::new(&keygen);
        client(
            keygen
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(at(key)),
        );
    }
    fs::copy(at("user.pub"), at("authorized")).unwrap();
    let host_key = fs::read_to_string(at("host.pub")).unwrap();
    fs::write(at("known"), format!("fdtools-test {host_key}")).unwrap();
    let shown = |name: &str| at(name).display().to_string();
    let configuration = format!(
        "HostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nPermitRootLogin yes\n\
         PasswordAuthentication no\nUsePAM no\nUseDNS no\nLogLevel ERROR\n",
        shown("host"),
        shown("authorized"),
    );
    fs::write(at("configuration"), configuration).unwrap();

    let mut handler = Command::new(&sshd);
    handler.args(["-i", "-e", "-f"]).arg(at("configuration"));
    let pipeline = Pipeline::start(&mut pool(&mut handler));
    let ssh = |text: &str| {
        let mut command = Command::new(&ssh);
        command
            .args([
                "-F",
                "none",
                "-o",
                "BatchMode=yes",
                "-o",
                "IdentityAgent=none",
            ])
            .args([
                "-o",
                "IdentitiesOnly=yes",
                "-o",
                "HostKeyAlias=fdtools-test",
            ])
            .args(["-o", &format!("UserKnownHostsFile={}", shown("known"))])
            .args(["-o", "StrictHostKeyChecking=yes", "-i", &shown("user")])
            .args(["-p", &pipeline.port.to_string(), "root@127.0.0.1", text]);
        command
    };
    assert_eq!(client(&mut ssh("echo hello; seq 0 49999")), {
        format!("hello\n{}", long_text())
    });
    // It knows who its client is: SSH_CONNECTION is made from the socket.
    let connection = client(&mut ssh("echo $SSH_CONNECTION"));
    let fields: Vec<_> = connection.split_whitespace().collect();
    assert_eq!(fields[0], "127.0.0.1");
    assert_eq!(fields[3], pipeline.port.to_string());
    let (status, ..) = run(ssh("exit 7").stdin(Stdio::null()));
    assert_eq!(status, Some(7));
    pipeline.stop();
}

#[test]
fn an_rsync_daemon_serves_rsync() {
    let Some(rsync) = peer("rsync") else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir_all(at("original/deeper")).unwrap();
    fs::write(at("original/numbers"), long_text()).unwrap();
    fs::write(at("original/deeper/more"), long_text()).unwrap();
    let configuration = format!(
        "use chroot = no\nlog file = /dev/null\n[original]\npath = {}\nread only = yes\n{}",
        at("original").display(),
        uid_and_gid(),
    );
    fs::write(at("configuration"), configuration).unwrap();
    let mut handler = Command::new(&rsync);
    let option = format!("--config={}", at("configuration").display());
    handler.args(["--daemon", &option]);
    for (consumer, name) in [
        (pool as fn(&mut Command) -> Command, "one"),
        (loop_of_fdrecv, "two"),
    ] {
        let pipeline = Pipeline::start(&mut consumer(&mut handler));
        let url = format!("rsync://127.0.0.1:{}/original/", pipeline.port);
        let copy = at(name);
        client(Command::new(&rsync).args(["--archive", &url]).arg(&copy));
        for file in ["numbers", "deeper/more"] {
            let text = fs::read_to_string(copy.join(file)).unwrap();
            assert_eq!(text, long_text());
        }
        let refused = Command::new(&rsync)
            .arg(at("configuration"))
            .arg(&url)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(!refused.status.success());
        assert!(!Path::new(&at("original/configuration")).exists());
        pipeline.stop();
    }
}

/// As root, an rsync daemon becomes nobody, who may not read what is root's.
fn uid_and_gid() -> &'static str {
    if nix::unistd::geteuid().is_root() {
        "uid = 0\ngid = 0\n"
    } else {
        ""
    }
}
