//! Every line that README.md and docs/cookbook.md give to paste is run here, for real, under every
//! shell that is installed.
//!
//! Each test below names the lines that it runs, word for word, and what a client then gets. A line of
//! these pages that no test knows is a failure, and so is a line that no page has. Nothing must run
//! on anybody's real ports. So before a line is run every port in it becomes 0 (any free port), and
//! fdaccept says which port it got; lines whose ports are in files, too, run unchanged in a network
//! namespace of their own. Paths need no such change: the lines use relative names, and each test runs
//! in a directory of its own, which has the files that the pages show.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Group;

use crate::support::*;

mod pages;
mod terminal;

use pages::Blocks;
use terminal::*;

/// Lines that build the project, or need what they installed: `.ci/run` runs them.
const RUN_BY_CI: &[&str] = &[
    "cargo install --locked --path . && fdaccept 8888 | fdpool 4 -- cat",
    "telnet localhost 8888",
    "cargo test",
];

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

    fn this_machine_alone_is_served(terminal: ["fdaccept 127.0.0.1:8888 | fdpool 4 -- cat"]) {
        let process = terminal.run(0);
        let address = process.listening();
        assert!(address.starts_with("127.0.0.1:"), "{address}");
        let (_, port) = address.rsplit_once(':').unwrap();
        assert_eq!(ask(port.parse().unwrap(), "from here"), "from here");
    }

    fn handlers_in_python_hold_a_dialogue(terminal: ["fdaccept 8888 | fdpool 4 -- python3 hello.py"]) {
        if peer("python3").is_none() {
            return;
        }
        assert_dialogue(terminal.run(0).port());
    }

    fn handlers_in_perl_hold_a_dialogue(terminal: ["fdaccept 8888 | fdpool 4 -- perl hello.pl"]) {
        if peer("perl").is_none() {
            return;
        }
        assert_dialogue(terminal.run(0).port());
    }

    fn handlers_in_go_hold_a_dialogue(terminal: [
        "go build -o hello hello.go && fdaccept 8888 | fdpool 4 -- ./hello"
    ]) {
        if peer("go").is_none() {
            return;
        }
        assert_dialogue(terminal.run(0).port());
    }

    fn handlers_in_node_hold_a_dialogue(terminal: ["fdaccept 8888 | fdpool 4 -- node hello.js"]) {
        if peer("node").is_none() {
            return;
        }
        assert_dialogue(terminal.run(0).port());
    }

    fn a_client_gets_standard_error_where_it_is_sent_there(terminal: [
        "fdaccept 8888 | fdpool 4 -- sh -c 'exec ls ./nothing 2>&1'"
    ]) {
        let answer = ask(terminal.run(0).port(), "");
        assert!(answer.contains("./nothing"), "{answer}");
    }

    fn variables_of_other_programs_are_made_of_ours(terminal: [
        "fdaccept 8888 | fdpool 4 -- sh -c 'SOCAT_PEERADDR=$TCPREMOTEIP SOCAT_PEERPORT=$TCPREMOTEPORT exec printenv SOCAT_PEERADDR'",
        "fdaccept 8888 | fdpool 4 -- sh -c 'NCAT_REMOTE_ADDR=$TCPREMOTEIP NCAT_REMOTE_PORT=$TCPREMOTEPORT exec printenv NCAT_REMOTE_ADDR'"
    ]) {
        for index in 0..2 {
            let port = terminal.run(index).port();
            assert_eq!(ask(port, ""), "127.0.0.1\n");
        }
    }

    fn stunnel_encrypts_behind_the_pool(terminal: [
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=localhost -keyout server.pem -out server.pem",
        "fdaccept 8443 | fdpool 4 -- stunnel inetd.conf"
    ]) {
        let peers = ["openssl", "stunnel", "python3"];
        if peers.iter().any(|name| peer(name).is_none()) {
            return;
        }
        terminal.finish(0);
        let port = terminal.run(1).port();
        let answer = terminal.ask_over_tls("127.0.0.7", port);
        assert_eq!(answer, "who are you?\nhello you, you come from 127.0.0.7\n");
    }

    fn stunnel_and_haproxy_in_front_encrypt_and_say_who_the_client_is(terminal: [
        "fdaccept --proxy-protocol any --proxy-from 127.0.0.1 127.0.0.1:8888 | fdpool 4 -- python3 hello.py",
        "stunnel front.conf",
        "haproxy -f front.cfg"
    ]) {
        let peers = ["openssl", "stunnel", "haproxy", "python3", "unshare", "ip"];
        if !root() || peers.iter().any(|name| peer(name).is_none()) {
            return;
        }
        terminal.isolate();
        let certificate = RUN_HERE.iter().find(|line| line.starts_with("openssl req")).unwrap();
        assert!(terminal.run_text(certificate).wait().success());
        terminal.run(0).port();
        for index in [1, 2] {
            terminal.run(index);
            let asked = |from| {
                let answer = terminal.ask_over_tls(from, 8443);
                (!answer.is_empty()).then_some(answer)
            };
            let answer = eventually("an answer over TLS", || asked("127.0.0.7"));
            assert_eq!(answer, "who are you?\nhello you, you come from 127.0.0.7\n");
            let front = terminal.processes.pop().unwrap();
            assert_eq!(terminal.processes.len(), 2);
            drop(front);
        }
    }

    fn a_listener_of_systemd_is_used(terminal: [
        "systemd-socket-activate -l 8888 fdaccept -- fdpool 4 -- cat"
    ]) {
        let peers = ["systemd-socket-activate", "nc", "unshare", "ip"];
        if !root() || peers.iter().any(|name| peer(name).is_none()) {
            return;
        }
        terminal.isolate();
        // The first client starts fdaccept.
        terminal.run(0).line("Listening on");
        let mut client = terminal.command("nc");
        client.args(["-N", "127.0.0.1", "8888"]);
        client.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut client = Process::start(&mut client);
        let mut request = client.child().stdin.take().unwrap();
        request.write_all(b"of systemd").unwrap();
        drop(request);
        let mut answer = String::new();
        client.child().stdout.take().unwrap().read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "of systemd");
    }

    fn fdaccept_is_the_first_process_of_a_container(terminal: [
        "unshare --fork --kill-child --pid --mount-proc fdaccept 8888 -- fdpool 4 -- cat"
    ]) {
        if !root() || peer("unshare").is_none() {
            return;
        }
        let process = terminal.run(0);
        let port = process.port();
        assert_eq!(ask(port, "contained"), "contained");
        let fdaccept = descendant(process.pid(), "fdaccept");
        assert_eq!(pid_inside(fdaccept), "1");
        kill(fdaccept, Signal::SIGTERM).unwrap();
        assert!(process.wait().success());
    }

    fn a_pool_in_a_container_without_a_network_serves(terminal: [
        "fdaccept --bind ./echo.queue 8888",
        "unshare --map-root-user --net --fork --kill-child --pid --mount-proc fdpool --connect ./echo.queue 4 -- cat"
    ]) {
        if !root() || peer("unshare").is_none() {
            return;
        }
        let port = terminal.run(0).port();
        let pool = terminal.run(1);
        assert_eq!(ask(port, "contained"), "contained");
        let fdpool = descendant(pool.pid(), "fdpool");
        assert_eq!(pid_inside(fdpool), "1");
        let network = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
        assert_ne!(network(&fdpool.to_string()), network("self"));
    }

    fn one_line_has_a_queue_with_a_name(terminal: [
        "fdaccept --bind ./echo.queue 8888 & fdpool --connect ./echo.queue 4 -- cat"
    ]) {
        let process = terminal.run(0);
        let port = process.port();
        assert_eq!(ask(port, "first pool"), "first pool");
        // fdaccept stays where the pool is ended.
        let [pool, acceptor] = ["fdpool", "fdaccept"].map(|name| descendant(process.pid(), name));
        kill(pool, Signal::SIGTERM).unwrap();
        until("the end of the pool", || !is_alive(pool));
        let client = std::thread::spawn(move || ask(port, "second pool"));
        terminal.run_text("fdpool --connect ./echo.queue 4 -- cat");
        assert_eq!(client.join().unwrap(), "second pool");
        // The shell of the line has gone, so nobody else ends it.
        kill(acceptor, Signal::SIGTERM).unwrap();
    }

    fn a_pool_ends_that_has_nothing_to_do(terminal: [
        "fdaccept 8888 | fdpool --exit-idle 60 4 -- cat"
    ]) {
        let port = terminal.run(0).port();
        assert_eq!(ask(port, "not idle"), "not idle");
        let line = terminal.lines[0].replace("8888", "0").replace("60", "0.1");
        let idle = terminal.run_text(&line);
        idle.line("nothing was served for");
        assert!(idle.wait().success());
    }

    fn a_handler_ends_with_its_client(terminal: [
        "fdaccept 8888 | fdpool --hang-up end 4 -- tail -f news"
    ]) {
        std::fs::write(terminal.dir().join("news"), "nothing new\n").unwrap();
        let process = terminal.run(0);
        let client = connect(process.port());
        assert_eq!(first_line(&client), "nothing new\n");
        drop(client);
        process.line("its client is gone");
    }

    fn a_python_worker_forks_for_each_connection(terminal: [
        "fdaccept 8888 | fdpool --worker 1 -- python3 examples/forking.py 16"
    ]) {
        if peer("python3").is_none() {
            return;
        }
        terminal.link_examples();
        let port = terminal.run(0).port();
        let answers = [ask(port, "you\n"), ask(port, "you\n")];
        let served = |answer: &String| {
            let words: Vec<_> = answer.trim_end().split([' ', '\n']).map(str::to_owned).collect();
            assert_eq!((words[3].as_str(), words[5].as_str(), words[8].as_str()), ("hello", "process", "worker"), "{answer}");
            (words[6].clone(), words[9].clone())
        };
        let [(first, worker), (second, same)] = answers.each_ref().map(served);
        assert_eq!(worker, same);
        assert_ne!(first, second);
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
        let mut seen = BTreeSet::new();
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

    fn python_workers_say_that_they_are_alive(terminal: [
        "fdaccept 8888 | fdpool --watchdog 20 --worker 4 -- python3 examples/worker.py"
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
        kill(descendant(pool.pid(), "fdpool"), Signal::SIGHUP).unwrap();
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

    fn a_group_may_use_a_socket(terminal: [
        "fdaccept --owner :nogroup --mode 0660 ./app.sock | fdpool 4 -- cat"
    ]) {
        let Some(group) = Group::from_name("nogroup").unwrap().filter(|_| root()) else {
            return;
        };
        assert_eq!(terminal.run(0).listening(), "./app.sock");
        let path = terminal.dir().join("app.sock");
        let meta = path.metadata().unwrap();
        assert_eq!((meta.gid(), meta.mode() & 0o777), (group.gid.as_raw(), 0o660));
        Client::connect_unix(path).expect_echo("hello");
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

    fn who_is_too_many_is_told(terminal: [
        "echo 'busy, try again' >busy && fdaccept --max 10 --when-full ./busy 8888 | fdpool 10 -- cat"
    ]) {
        let port = terminal.run(0).port();
        let mut clients: Vec<_> = (0..10).map(|_| connect(port)).collect();
        for client in &mut clients {
            client.write_all(b"hello\n").unwrap();
            assert_eq!(first_line(client), "hello\n");
        }
        assert_eq!(first_line(&connect(port)), "busy, try again\n");
    }

    fn dead_clients_are_looked_for(terminal: [
        "fdaccept -o keepalive=60 -o nodelay 8888 | fdpool 4 -- cat"
    ]) {
        let port = terminal.run(0).port();
        assert_eq!(ask(port, "alive"), "alive");
    }

    fn a_client_that_speaks_is_served_though_others_are_silent(terminal: [
        "fdaccept -o defer=15 8888 | fdpool 4 -- cat"
    ]) {
        let port = terminal.run(0).port();
        let _silent = [(); 4].map(|()| connect(port));
        assert_eq!(ask(port, "spoken"), "spoken");
    }

    fn each_connection_is_logged(terminal: ["fdaccept -v 8888 | fdpool -v 4 -- cat"]) {
        let process = terminal.run(0);
        let port = process.port();
        assert_eq!(ask(port, "seen"), "seen");
        let line = process.line("fdpool: pid ");
        assert!(line.ends_with(" from 127.0.0.1"), "{line}");
        let line = process.line("fdpool: ok ");
        assert!(line.contains(&format!(" :127.0.0.1:{port} :127.0.0.1::")), "{line}");
        let line = process.line("fdpool: end ");
        assert!(line.ends_with(" status 0"), "{line}");
    }

    fn a_free_port_is_in_a_file(terminal: [
        "fdaccept --port-file ./port 127.0.0.1:0 | fdpool 4 -- cat"
    ]) {
        let port = terminal.run(0).port();
        let text = std::fs::read_to_string(terminal.dir().join("port")).unwrap();
        assert_eq!(text, format!("{port}\n"));
        assert_eq!(ask(port, "found"), "found");
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
fn every_line_of_the_pages_is_run_and_no_other() {
    let blocks = Blocks::read();
    let found: BTreeSet<_> = blocks.lines.iter().map(String::as_str).collect();
    let known = BTreeSet::from_iter([RUN_BY_CI, RUN_HERE].concat());
    let none = BTreeSet::new();
    let difference = (&found - &known, &known - &found);
    assert_eq!(difference, (none.clone(), none), "(not run, on no page)");
    // A unit of systemd has a test below.
    let used = blocks.files_for(RUN_HERE);
    for file in &blocks.files {
        let is_used = used.iter().any(|used| used.name == file.name);
        let is_unit = file.name.ends_with(".service");
        assert!(is_used || is_unit, "no line needs {}", file.name);
    }
}

#[test]
fn the_map_of_the_house_names_what_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("CONTRIBUTING.md")).unwrap();
    // What stands between backticks; a program has more words.
    let quoted = text.split('`').skip(1).step_by(2);
    let rooms = ["src/", "tests/", "man/", "docs/", "benches/", ".ci/"];
    let paths = quoted.filter_map(|quoted| quoted.split_whitespace().next());
    let paths: Vec<_> = paths
        .filter(|path| rooms.iter().any(|room| path.starts_with(room)))
        .collect();
    assert!(paths.len() > 20, "{paths:?}");
    for path in paths {
        assert!(root.join(path).exists(), "{path}");
    }
}

#[test]
fn systemd_accepts_the_units() {
    let Some(analyze) = peer("systemd-analyze") else {
        return;
    };
    let blocks = Blocks::read();
    let units = blocks
        .files
        .iter()
        .filter(|file| file.name.ends_with(".service"));
    let mut count = 0;
    for unit in units {
        count += 1;
        let text = &unit.text;
        assert_eq!(
            (
                unit.language.as_str(),
                text.matches("/usr/local/bin/").count()
            ),
            ("ini", 2)
        );
        // The programs must be there: ours is where it was built, and the worker is any.
        let text = text.replace("/usr/local/bin/worker", "/bin/cat");
        let text = text.replace("/usr/local/bin", bin_dir().to_str().unwrap());
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(&unit.name);
        std::fs::write(&file, text).unwrap();
        let (status, stdout, stderr) = run(Command::new(&analyze).arg("verify").arg(&file));
        let ours: Vec<_> = stderr
            .lines()
            .filter(|line| line.contains(&unit.name))
            .collect();
        assert_eq!((status, ours), (Some(0), Vec::new()), "{stdout}{stderr}");
    }
    assert_eq!(count, 1);
}

/// Expects a handler that asks before it hears anything, and then knows its client.
#[track_caller]
fn assert_dialogue(port: u16) {
    let mut client = connect(port);
    assert_eq!(first_line(&client), "who are you?\n");
    client.write_all(b"you\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "hello you, you come from 127.0.0.1\n");
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
