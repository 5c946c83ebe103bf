//! Programs that know nothing of fdtools as handlers, with their real clients.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::*;

/// `fdaccept 127.0.0.1:0 | CONSUMER`
struct Pipeline {
    acceptor: Acceptor,
    consumer: Process,
}

impl Pipeline {
    #[track_caller]
    fn start(mut consumer: Command) -> Self {
        let mut acceptor = Fdaccept::piped().start();
        let consumer = consumer.stdin(acceptor.take_pipe()).start();
        Self { acceptor, consumer }
    }

    #[track_caller]
    fn stop(mut self) {
        self.acceptor.term();
        self.consumer.expect_end(0);
        self.acceptor.expect_end(0);
    }
}

fn words(command: &Command) -> impl Iterator<Item = &OsStr> {
    [command.get_program()]
        .into_iter()
        .chain(command.get_args())
}

/// `fdpool 2 -- HANDLER`
fn pool(handler: &Command) -> Command {
    Pool::plain().slots(2, words(handler)).command()
}

fn loop_of_fdrecv(handler: &Command) -> Command {
    let mut consumer = sh("while fdrecv -- \"$@\" || [ $? -ne 69 ]; do :; done");
    consumer.arg("sh").args(words(handler));
    consumer
}

const CONSUMERS: [fn(&Command) -> Command; 2] = [pool, loop_of_fdrecv];

/// `program` with the words of `arguments`.
fn command(program: &Path, arguments: &str) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments.split_whitespace())
        .stdin(Stdio::null());
    command
}

/// Runs a client, which must succeed, and returns what it prints.
#[track_caller]
fn client(command: &mut Command) -> String {
    let (status, output, log) = run(command);
    assert_eq!(status, Some(0), "{log}");
    output
}

/// A text that fits into no single packet.
fn long_text() -> String {
    (0..50_000).map(|number| format!("{number}\n")).collect()
}

#[track_caller]
fn assert_is_long_text(file: &Path) {
    assert_eq!(fs::read_to_string(file).unwrap(), long_text());
}

#[test]
fn a_shell_script_serves_as_a_handler() {
    let names = Names::new();
    let text = "#!/bin/sh\n\
        while read -r line; do\n\
        case $line in quit) echo bye; exit ;; *) echo \"you said $line\" ;; esac\n\
        done\n";
    let handler = executable(names.file("handler"), text);
    for consumer in CONSUMERS {
        let pipeline = Pipeline::start(consumer(&Command::new(&handler)));
        let answer = exchange(pipeline.acceptor.port, b"one\ntwo\n");
        assert_eq!(answer, b"you said one\nyou said two\n");
        let answer = exchange(pipeline.acceptor.port, b"one\nquit\n");
        assert_eq!(answer, b"you said one\nbye\n");
        pipeline.stop();
    }
}

#[test]
fn busybox_httpd_serves_curl() {
    let (Some(busybox), Some(curl)) = (peer("busybox"), peer("curl")) else {
        return;
    };
    let names = Names::new();
    fs::write(names.file("numbers"), long_text()).unwrap();
    let mut httpd = command(&busybox, "httpd -i -h");
    httpd.arg(names.directory.path());
    for consumer in CONSUMERS {
        let pipeline = Pipeline::start(consumer(&httpd));
        let url = format!("http://127.0.0.1:{}/numbers", pipeline.acceptor.port);
        let curl = |more: &str, url: &str| {
            let options = format!("--silent --show-error --noproxy * {more} {url}");
            client(&mut command(&curl, &options))
        };
        for _ in 0..3 {
            assert_eq!(curl("--fail", &url), long_text());
        }
        let code = "--output /dev/null --write-out %{http_code}";
        assert_eq!(curl(code, &format!("{url}-that-are-not-there")), "404");
        pipeline.stop();
    }
}

#[test]
fn git_daemon_serves_git_clone() {
    let Some(git) = peer("git") else { return };
    let names = Names::new();
    let original = names.file("original");
    let configuration = names.file("configuration");
    fs::write(&configuration, "").unwrap();
    // Nobody's configuration but this one.
    let isolated = |mut command: Command| {
        command
            .env("HOME", names.directory.path())
            .env("GIT_CONFIG_GLOBAL", &configuration)
            .env("GIT_CONFIG_NOSYSTEM", "1");
        command
    };
    let git = |arguments: &str| {
        let mut command = isolated(command(&git, arguments));
        for variable in ["GIT_AUTHOR", "GIT_COMMITTER"] {
            command.env(format!("{variable}_NAME"), "A U Thor");
            command.env(format!("{variable}_EMAIL"), "author@example.com");
        }
        command
    };
    client(git("init --quiet").arg(&original));
    fs::write(original.join("numbers"), long_text()).unwrap();
    client(git("add numbers").current_dir(&original));
    client(git("commit --quiet --message Numbers").current_dir(&original));

    let mut daemon = git("daemon --inetd --export-all --log-destination=none");
    daemon.arg(format!("--base-path={}", names.text("")));
    let pipeline = Pipeline::start(isolated(pool(&daemon)));
    let url = format!("git://127.0.0.1:{}/original", pipeline.acceptor.port);
    for name in ["one", "two", "three"] {
        let copy = names.file(name);
        client(git(&format!("clone --quiet {url}")).arg(&copy));
        assert_is_long_text(&copy.join("numbers"));
    }
    pipeline.stop();
}

#[test]
fn sshd_serves_ssh() {
    let (sshd, ssh) = (needs!(peer("sshd")), needs!(peer("ssh")));
    let keygen = needs!(peer("ssh-keygen"));
    needs!(root());
    let names = Names::new();
    // sshd wants this directory, empty and root's, which its service makes.
    fs::create_dir_all("/run/sshd").unwrap();
    for key in ["host", "user"] {
        let mut keygen = command(&keygen, "-q -t ed25519 -f");
        client(keygen.arg(names.file(key)).args(["-N", ""]));
    }
    fs::copy(names.file("user.pub"), names.file("authorized")).unwrap();
    let host_key = fs::read_to_string(names.file("host.pub")).unwrap();
    fs::write(names.file("known"), format!("fdtools-test {host_key}")).unwrap();
    let configuration = format!(
        "HostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nPermitRootLogin yes\n\
         PasswordAuthentication no\nUsePAM no\nUseDNS no\nLogLevel ERROR\n",
        names.text("host"),
        names.text("authorized"),
    );
    fs::write(names.file("configuration"), configuration).unwrap();

    let mut handler = command(&sshd, "-i -e -f");
    handler.arg(names.file("configuration"));
    let pipeline = Pipeline::start(pool(&handler));
    let ssh = |text: &str| {
        let mut command = command(
            &ssh,
            "-F none -o BatchMode=yes -o IdentityAgent=none -o IdentitiesOnly=yes \
             -o HostKeyAlias=fdtools-test -o StrictHostKeyChecking=yes",
        );
        let known = format!("UserKnownHostsFile={}", names.text("known"));
        command.args(["-o", &known, "-i", &names.text("user")]);
        command.args(["-p", &pipeline.acceptor.port.to_string()]);
        command.args(["root@127.0.0.1", text]);
        command
    };
    let hello = format!("hello\n{}", long_text());
    assert_eq!(client(&mut ssh("echo hello; seq 0 49999")), hello);
    // It knows its client: SSH_CONNECTION is made from the socket.
    let connection = client(&mut ssh("echo $SSH_CONNECTION"));
    let fields: Vec<_> = connection.split_whitespace().collect();
    assert_eq!(fields[0], "127.0.0.1");
    assert_eq!(fields[3], pipeline.acceptor.port.to_string());
    assert_eq!(run(&mut ssh("exit 7")).0, Some(7));
    pipeline.stop();
}

#[test]
fn an_rsync_daemon_serves_rsync() {
    let Some(rsync) = peer("rsync") else { return };
    let names = Names::new();
    fs::create_dir_all(names.file("original/deeper")).unwrap();
    for file in ["numbers", "deeper/more"] {
        fs::write(names.file("original").join(file), long_text()).unwrap();
    }
    // As root, an rsync daemon becomes nobody, and nobody may not read root's files.
    let is_root = nix::unistd::geteuid().is_root();
    let user = if is_root { "uid = 0\ngid = 0\n" } else { "" };
    let configuration = format!(
        "use chroot = no\nlog file = /dev/null\n[original]\npath = {}\nread only = yes\n{user}",
        names.text("original"),
    );
    fs::write(names.file("configuration"), configuration).unwrap();
    let mut daemon = command(&rsync, "--daemon");
    daemon.arg(format!("--config={}", names.text("configuration")));
    for (number, consumer) in CONSUMERS.into_iter().enumerate() {
        let pipeline = Pipeline::start(consumer(&daemon));
        let url = format!("rsync://127.0.0.1:{}/original/", pipeline.acceptor.port);
        let copy = names.file(&format!("copy-{number}"));
        client(command(&rsync, "--archive").arg(&url).arg(&copy));
        for file in ["numbers", "deeper/more"] {
            assert_is_long_text(&copy.join(file));
        }
        let mut upload = command(&rsync, "");
        let (status, ..) = run(upload.arg(names.file("configuration")).arg(&url));
        assert_ne!(status, Some(0));
        assert!(!names.file("original/configuration").exists());
        pipeline.stop();
    }
}
