//! What fdpool and fdrecv tell of clients and handlers.

use std::net::{IpAddr, SocketAddr};

use nix::sys::signal::Signal;

use crate::support::*;

/// fdpool and fdrecv as the command of a chain, with `-v`.
const CONSUMERS: [&[&str]; 2] = [
    &["fdpool", "-v", "1", "--", "cat"],
    &["fdrecv", "-v", "--", "cat"],
];

/// What follows `ok PID ` in the line of a chain's consumer.
#[track_caller]
fn ends(acceptor: &mut Acceptor) -> String {
    let line = acceptor.line(": ok ");
    line.splitn(4, ' ').last().unwrap().to_owned()
}

#[test]
fn the_lines_of_both_sides_have_the_port_of_the_client() {
    needs!(has_ipv6());
    for consumer in CONSUMERS {
        for (address, ip) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "[::1]")] {
            let chain = Fdaccept::chain(consumer).arg("-v").listen(address);
            let mut acceptor = chain.start();
            let from: IpAddr = ip.trim_matches(['[', ']']).parse().unwrap();
            let server = SocketAddr::new(from, acceptor.port);
            let client = try_connect_from(from, server).unwrap();
            let port = client.local_addr().unwrap().port();
            acceptor.line(&format!("fdaccept: accepted {ip}:{port} on {ip}:"));
            let expected = format!(":{ip}:{} :{ip}::{port}", acceptor.port);
            assert_eq!(ends(&mut acceptor), expected);
        }
    }
}

#[test]
fn the_line_of_a_unix_client_has_the_path_its_uid_and_its_pid() {
    let uid = nix::unistd::getuid();
    let pid = std::process::id();
    for consumer in CONSUMERS {
        let chain = Fdaccept::chain(consumer).arg("-v").listen("./a b");
        let mut acceptor = chain.start();
        let _client = connect_unix(acceptor.names.file("a b"));
        acceptor.line(&format!(" (pid {pid}) on ./a b"));
        assert_eq!(ends(&mut acceptor), format!(":./a?b: ::{uid}:{pid}"));
    }
}

#[test]
fn what_is_no_connection_has_empty_ends_in_the_log() {
    let queue = Queue::new();
    let mut pool = Pool::on(&queue).arg("-v").slots(1, ["true"]).start();
    queue.send(std::fs::File::open("/dev/null").unwrap());
    let line = pool.line(": ok ");
    assert!(line.ends_with(" :: :::"), "{line}");
}

// Why a pool or a handler goes on, or does not.

#[test]
fn a_stop_says_for_how_many_handlers_it_waits_and_for_how_long() {
    for (options, time) in [
        ("", "waits up to 30 s for"),
        ("--grace 100.5", "waits up to 100.5 s for"),
        ("--grace inf", "waits for"),
    ] {
        for (count, handlers) in [(1, "1 handler"), (2, "2 handlers")] {
            let queue = Queue::new();
            let mut pool = Pool::on(&queue).options(options).slots(3, ["cat"]).start();
            let clients: Vec<_> = (0..count).map(|_| queue.client()).collect();
            clients.iter().for_each(|client| client.expect_served());
            pool.term();
            let expected = format!("fdpool: {time} {handlers}; a second signal stops now");
            assert_eq!(pool.line("waits"), expected);
            pool.signal(Signal::SIGINT);
            assert_eq!(pool.expect_end(0), expected);
        }
    }
}

#[test]
fn a_stop_says_for_how_many_workers_it_waits() {
    let queue = Queue::new();
    let worker = sh_c("trap '' TERM; echo >&2; exec sleep 100");
    let mut pool = Pool::on(&queue).workers(2, worker).start();
    (0..2).for_each(|_| drop(pool.line("")));
    pool.term();
    let line = pool.line("waits");
    assert_eq!(
        line,
        "fdpool: waits up to 30 s for 2 workers; a second signal stops now"
    );
    pool.signal(Signal::SIGINT);
    pool.expect_exit(0);
}

#[test]
fn a_stop_says_that_it_waits_for_clients_to_close() {
    let mut acceptor = Fdaccept::bound().start();
    let pool = Pool::on(&acceptor).options("-v --linger 1000");
    let mut pool = pool.slots(1, ["true"]).start();
    let client = acceptor.client();
    pool.line(": end ");
    pool.term();
    assert_eq!(
        pool.line("waits"),
        "fdpool: waits up to 30 s for 1 connection to be closed by clients (--linger 1000 s); a \
         second signal stops now"
    );
    drop(client);
    pool.expect_exit(0);
    acceptor.stop();
}

#[test]
fn a_stop_that_waits_for_nobody_says_nothing() {
    let queue = Queue::new();
    let mut pool = Pool::on(&queue).slots(2, ["cat"]).full();
    queue.client().expect_echo("hello");
    pool.until_idle();
    pool.term();
    assert_eq!(pool.expect_end(0), "");
}

#[test]
fn a_quiet_pool_does_not_say_what_it_waits_for() {
    let queue = Queue::new();
    let mut pool = Pool::on(&queue).arg("-q").slots(1, ["cat"]).start();
    let client = queue.client();
    client.expect_served();
    pool.term();
    for _ in 0..3 {
        stays("it waits", || pool.is_running());
    }
    client.finish();
    assert_eq!(pool.expect_end(0), "");
}

#[test]
fn a_handler_that_is_ended_is_told_with_its_client_and_the_reason() {
    let acceptor = Fdaccept::bound().start();
    let stubborn = sh_c("trap '' TERM; echo $$; exec sleep 100");
    for (options, why) in [
        ("--timeout 3.5", "ran for 3.5 s (--timeout), and is ended"),
        ("--grace 0", "did not finish within --grace, and is ended"),
    ] {
        let mut pool = Pool::on(&acceptor)
            .options(options)
            .slots(1, stubborn)
            .start();
        let client = acceptor.client();
        let who = format!("fdpool: handler {} (127.0.0.1)", client.pid());
        if options.contains("--grace") {
            pool.term();
        }
        assert_eq!(pool.line("fdpool: "), format!("{who} {why}"));
        let killed = format!("{who} did not end within 5 s, and is killed");
        assert_eq!(pool.line("fdpool: "), killed);
        client.rest_or_reset();
    }
}

#[test]
fn what_a_handler_leaves_to_a_kill_is_told_as_well() {
    let queue = Queue::new();
    let text = "(trap '' TERM; echo $$; exec sleep 100) & wait";
    let options = "--timeout 3.5";
    let mut pool = Pool::on(&queue)
        .options(options)
        .slots(1, sh_c(text))
        .start();
    let handler = queue.client().pid();
    pool.line(&format!("handler {handler} ("));
    let line = pool.line("killed");
    let start = format!("fdpool: what handler {handler} (");
    assert!(line.starts_with(&start), "{line}");
    assert!(
        line.ends_with(") has started did not end within 5 s, and is killed"),
        "{line}"
    );
    pool.stop();
}
