//! What becomes of a connection whose handler has ended before its client: the answer arrives whole, and
//! nobody waits for the client.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::path::Path;
use std::process::Stdio;
use std::thread::{self, sleep};
use std::time::Duration;

use crate::support::*;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// So long that only the client's end ends a connection.
const LONG: &str = "--linger 100000";
/// The answer of a handler.
const LENGTH: usize = 8_000_000;

/// A pool on an fdaccept, with a log of each connection.
#[track_caller]
fn start(options: &str, size: usize, handler: &str) -> (Acceptor, Pool) {
    let acceptor = Fdaccept::bound().start();
    let pool = Pool::on(&acceptor).arg("-v").options(options);
    let pool = pool.slots(size, sh_c(handler)).full();
    (acceptor, pool)
}

/// A client that has the answer, whose handler has ended, and that has ended nothing itself.
#[track_caller]
fn left(pool: &mut Pool, client: Client) -> Client {
    assert_eq!(client.line(), "answer");
    pool.line("fdpool: end ");
    client
}

/// Waits until the pool's process has so many descriptors.
#[track_caller]
fn until_open(pool: &Pool, count: usize) {
    until(&format!("{count} descriptors"), || {
        descriptors(pool.pid()).len() == count
    });
}

// Answers.

/// Expects that a client which sends a long request, and reads the answer slowly, gets all of it from a
/// handler that reads `first`.
#[track_caller]
fn assert_whole(first: &str) {
    let handler = format!("{first} head -c {LENGTH} /dev/zero");
    let (acceptor, mut pool) = start("--linger 60", 1, &handler);
    for _ in 0..2 {
        let mut client = acceptor.client().0;
        let mut writer = client.try_clone().unwrap();
        // Nobody reads it, so it fills the buffers.
        let writer = thread::spawn(move || {
            let mut request = vec![b'?'; 1_000_000];
            request[100] = b'\n';
            writer.write_all(&request)
        });
        let (mut got, mut buffer) = (0, vec![0; 256 * 1024]);
        loop {
            match client.read(&mut buffer).unwrap() {
                0 => break,
                count => got += count,
            }
            // The limited rate.
            sleep(Duration::from_millis(5));
        }
        assert_eq!(got, LENGTH);
        writer.join().unwrap().unwrap();
    }
    pool.line("fdpool: end ");
}

cases! {
    assert_whole;
    an_answer_arrives_whole_though_the_handler_reads_nothing: "";
    an_answer_arrives_whole_though_the_handler_reads_one_line: "read -r line;";
    an_answer_arrives_whole_though_the_handler_reads_half_of_the_request:
        "head -c 500000 >/dev/null;";
}

/// Expects that a request which comes when the handler has ended does not harm the answer, of which the
/// client has read some. The handler does `first` before.
#[track_caller]
fn assert_takes_late_request(first: &str, go: impl Fn(&mut Pool)) {
    let handler = format!("{first} echo $$; exec head -c {LENGTH} /dev/zero");
    let (acceptor, mut pool) = start(LONG, 1, &handler);
    let client = acceptor.client();
    let pid = client.pid();
    go(&mut pool);
    let (mut got, mut buffer) = (0, vec![0; 16 * 1024]);
    // More slowly than the handler writes, so that the buffers stay full.
    let mut read = || {
        sleep(Duration::from_millis(1));
        let count = (&client.0).read(&mut buffer).unwrap();
        got += count;
        count
    };
    while is_alive(pid) {
        read();
    }
    // What a real network needs.
    sleep(Duration::from_millis(100));
    client.send("a late request\n");
    while read() > 0 {}
    assert_eq!(got, LENGTH);
}

cases! {
    assert_takes_late_request;
    a_request_that_comes_after_the_end_of_the_handler_harms_nothing: "", |_| {};
    nor_if_the_handler_has_left_a_process_that_has_closed_the_connection:
        "sleep 10 </dev/null >/dev/null 2>&1 &", |_| {};
    nor_if_the_pool_was_killed_meanwhile: "", |pool: &mut Pool| pool.slay();
}

#[test]
fn an_answer_to_a_unix_client_arrives_whole_though_nobody_reads_the_request() {
    let queue = Queue::new();
    let pool = Pool::on(&queue).arg("-v").options(LONG);
    let mut pool = pool.slots(1, sh_c("echo answer")).full();
    let before = settled(pool.pid());
    for late in [false, true] {
        let client = queue.client();
        if late {
            pool.line("fdpool: end ");
        }
        client.send("request\n");
        assert_eq!(client.rest(), "answer\n");
        until_open(&pool, before);
    }
}

#[test]
fn a_handler_that_asks_for_a_reset_has_one() {
    let python = needs!(python());
    let queue = Queue::new();
    let text = "import socket, struct\n\
        client = socket.socket(fileno=0)\n\
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))";
    let handler = [python.to_str().unwrap(), "-c", text];
    let _pool = Pool::on(&queue).slots(1, handler).start();
    queue.tcp_client().expect_reset();
}

// Clients that do not end.

#[test]
fn a_client_that_never_closes_holds_no_slot_and_is_closed_in_the_end() {
    let (acceptor, mut pool) = start("--linger 1", 1, "echo answer");
    let before = settled(pool.pid());
    let silent: Vec<_> = (0..5)
        .map(|_| {
            let client = acceptor.client();
            left(&mut pool, client)
        })
        .collect();
    until_open(&pool, before);
    for client in silent {
        // The kernel resets what comes now.
        until("a reset", || (&client.0).write_all(b"x").is_err());
    }
}

#[test]
fn a_client_that_sends_for_ever_costs_little_and_is_closed_in_the_end() {
    let (acceptor, mut pool) = start("--linger 4", 1, "echo answer");
    let before = settled(pool.pid());
    let client = acceptor.client();
    let mut stream = client.0.try_clone().unwrap();
    let flood = thread::spawn(move || while stream.write_all(&[0; 65536]).is_ok() {});
    let client = left(&mut pool, client);
    are_idle(&[pool.pid()], Duration::from_millis(400));
    assert_eq!(acceptor.client().rest(), "answer\n");
    until_open(&pool, before);
    flood.join().unwrap();
    drop(client);
}

#[test]
fn messages_about_what_was_sent_cost_little_while_a_connection_lingers() {
    let python = needs!(python());
    let queue = Queue::new();
    // SO_TIMESTAMPING: TX_SOFTWARE and SOFTWARE.
    let text = "import socket\n\
        client = socket.socket(fileno=0)\n\
        client.setsockopt(socket.SOL_SOCKET, 37, 1 << 1 | 1 << 4)\n\
        client.sendall(b'answer\\n')";
    let handler = [python.to_str().unwrap(), "-c", text];
    let pool = Pool::on(&queue).arg("-v").options(LONG);
    let mut pool = pool.slots(1, handler).full();
    let before = settled(pool.pid());
    let client = left(&mut pool, queue.tcp_client());
    until_open(&pool, before + 1);
    are_idle(&[pool.pid()], Duration::from_millis(150));
    drop(client);
    until_open(&pool, before);
}

#[test]
fn of_more_clients_than_may_linger_the_oldest_is_closed() {
    let acceptor = Fdaccept::bound().start();
    let text = format!("ulimit -n 64; exec fdpool -v {LONG} --connect \"$NAME\" 1 -- echo answer");
    let mut pool = Pool::of(sh(&text).env("NAME", acceptor.name()));
    pool.until_size(1);
    let before = settled(pool.pid());
    let most = 16;
    let clients: Vec<_> = (0..most + 5)
        .map(|_| {
            let client = acceptor.client();
            left(&mut pool, client)
        })
        .collect();
    until_open(&pool, before + most);
    let mut clients = clients.into_iter();
    for client in clients.by_ref().take(5) {
        assert_eq!(client.line(), "");
        until("a reset", || (&client.0).write_all(b"x").is_err());
    }
    // The others go on until they end.
    let rest: Vec<_> = clients.collect();
    assert!(rest.iter().all(|client| client.peek() == Ok(0)));
    drop(rest);
    until_open(&pool, before);
}

/// Leaves a pool's process `left` numbers for further descriptors.
#[track_caller]
fn leave_free(prlimit: &Path, pool: &Pool, left: usize) {
    settled(pool.pid());
    let open = descriptors(pool.pid());
    let is_open = |number: &i32| open.iter().any(|(other, _)| other == number);
    let limit_at = (0..).filter(|number| !is_open(number)).nth(left).unwrap();
    limit(prlimit, pool.pid(), &format!("{limit_at}:"));
}

#[test]
fn the_oldest_is_closed_when_descriptors_are_short() {
    let prlimit = needs!(peer("prlimit"));
    let (acceptor, mut pool) = start(LONG, 1, "echo answer");
    let before = settled(pool.pid());
    // For a connection and its lease.
    leave_free(&prlimit, &pool, 2);
    let first = acceptor.client();
    let first = left(&mut pool, first);
    until_open(&pool, before + 1);
    let second = acceptor.client();
    let second = left(&mut pool, second);
    until("a reset", || (&first.0).write_all(b"x").is_err());
    until_open(&pool, before + 1);
    drop(second);
    until_open(&pool, before);
    pool.stop();
}

#[test]
fn a_stop_is_over_with_the_grace_though_there_is_no_descriptor_for_what_lingers() {
    let prlimit = needs!(peer("prlimit"));
    let (acceptor, mut pool) = start("--linger 100000 --grace 0.5", 1, "echo answer");
    leave_free(&prlimit, &pool, 0);
    let client = acceptor.client();
    let _client = left(&mut pool, client);
    are_idle(&[pool.pid()], Duration::from_millis(150));
    pool.stop();
}

// Others that have the connection.

/// Expects that a process that a handler leaves in the background goes on with the connection.
#[track_caller]
fn assert_goes_on(handler: &str) {
    needs!(peer("setsid"));
    let (acceptor, mut pool) = start("--linger 0.1", 1, handler);
    for _ in 0..2 {
        let client = acceptor.client();
        let client = left(&mut pool, client);
        client.expect_waiting();
        client.send("question\n");
        assert_eq!(client.rest(), "later question\n");
    }
}

cases! {
    assert_goes_on;
    a_process_in_the_background_goes_on_with_the_connection:
        "exec 3<&0; (read -r line <&3; echo \"later $line\") & echo answer";
    a_process_in_a_session_of_its_own_goes_on_with_the_connection:
        "exec 3<&0; setsid sh -c 'read -r line <&3; echo \"later $line\"' & echo answer";
    a_process_below_one_that_has_closed_the_connection_goes_on_with_it:
        "exec 3<&0; (setsid sh -c '
            sh -c \"read -r line <&3; echo \\\"later \\$line\\\"\" & exec <&- >&- 3<&-; wait' &)
        echo answer";
}

#[test]
fn a_handler_that_shuts_its_output_down_is_seen_at_once() {
    let python = needs!(python());
    let queue = Queue::new();
    let text = "import socket, time\n\
        client = socket.socket(fileno=0)\n\
        client.sendall(b'answer\\n')\n\
        client.shutdown(socket.SHUT_WR)\n\
        client.recv(1)";
    let handler = [python.to_str().unwrap(), "-c", text];
    let mut pool = Pool::on(&queue).arg("-v").slots(1, handler).start();
    let client = queue.tcp_client();
    assert_eq!(client.line(), "answer");
    assert_eq!(client.line(), "");
    drop(client);
    pool.line("fdpool: end ");
}

#[test]
fn the_client_of_a_handler_that_closes_its_connection_and_goes_on_waits_while_the_slot_has_a_copy()
{
    let (acceptor, _pool) = start("", 1, "echo $$; exec <&- >&-; exec sleep 100");
    let client = acceptor.client();
    let handler = client.pid();
    until_named(handler, "sleep");
    client.expect_waiting();
    nix::sys::signal::kill(handler, Signal::SIGKILL).unwrap();
    assert_eq!(client.rest(), "");
}

#[test]
fn neither_slots_nor_handlers_have_connections_that_linger() {
    let (acceptor, mut pool) = start(LONG, 1, "echo answer; read -r line");
    pool.until_idle();
    let plain = sockets(pool.children()[0]).len();
    let client = acceptor.client();
    client.send("\n");
    let client = left(&mut pool, client);
    let old = pool.members();
    for count in 2..=3 {
        pool.signal(Signal::SIGUSR1);
        pool.until_size(count);
    }
    pool.until_idle();
    let new = pool
        .members()
        .into_iter()
        .filter(|slot| !old.contains(slot));
    for slot in new {
        assert_eq!(sockets(slot).len(), plain);
    }
    drop(client);
}

#[test]
fn what_handlers_have_left_costs_no_later_client_its_answer() {
    // A process that has closed the connection by the time its handler ends.
    let leave = "mkfifo \"$D/$$\"; { exec </dev/null >/dev/null 2>&1; echo >\"$D/$$\"; exec sleep 20; } & \
        read -r line <\"$D/$$\"; echo answer";
    let names = Names::new();
    let acceptor = Fdaccept::bound().start();
    let pool = Pool::on(&acceptor).env("D", names.text(""));
    let _pool = pool.slots(1, sh_c(leave)).start();
    for _ in 0..80 {
        let client = acceptor.client();
        client.send("request\n");
        assert_eq!(client.rest(), "answer\n");
    }
}

// Time and descriptors.

#[test]
fn five_thousand_connections_leave_nothing_open() {
    let acceptor = Fdaccept::bound().start();
    let pool = Pool::on(&acceptor).slots(4, ["echo", "answer"]).full();
    let counts = |pids: &[Pid]| -> Vec<_> { pids.iter().map(|pid| settled(*pid)).collect() };
    let port = acceptor.port;
    let serve = |count: usize| {
        for number in 0..count {
            let client = Client::connect(port);
            if number % 2 == 0 {
                client.send("request\n");
            }
            client.rest();
        }
    };
    serve(100);
    pool.until_idle();
    let mut pids = pool.members();
    pids.push(pool.pid());
    let before = counts(&pids);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| serve(1250));
        }
    });
    pool.until_idle();
    assert_eq!(counts(&pids), before);
}

#[test]
fn a_lease_is_kept_while_its_connection_lingers() {
    let acceptor = Fdaccept::bound().args(["--max", "1"]).start();
    let pool = Pool::on(&acceptor).options("-v").options(LONG);
    let mut pool = pool.slots(2, sh_c("echo answer")).full();
    let first = acceptor.client();
    let first = left(&mut pool, first);
    let second = acceptor.client();
    is_left_waiting(&second);
    drop(first);
    assert_eq!(second.rest(), "answer\n");
}

#[test]
fn a_stop_waits_for_what_lingers_until_it_has_ended() {
    let options = format!("{LONG} --grace 100000");
    let (acceptor, mut pool) = start(&options, 2, "echo answer");
    let client = acceptor.client();
    let client = left(&mut pool, client);
    pool.term();
    pool.until_size(0);
    stays("the pool runs", || pool.is_running());
    drop(client);
    pool.expect_exit(0);
}

#[test]
fn a_stop_waits_for_what_lingers_no_longer_than_the_grace() {
    let options = format!("{LONG} --grace 0.5");
    let (acceptor, mut pool) = start(&options, 2, "echo answer");
    let client = acceptor.client();
    let _client = left(&mut pool, client);
    pool.stop();
}

#[test]
fn a_second_signal_ends_what_lingers_at_once() {
    let options = format!("{LONG} --grace 100000");
    let (acceptor, mut pool) = start(&options, 2, "echo answer");
    let client = acceptor.client();
    let _client = left(&mut pool, client);
    pool.term();
    pool.until_size(0);
    pool.stop();
}

#[test]
fn the_end_of_the_queue_waits_for_what_lingers() {
    let mut queue = Queue::new();
    let pool = Pool::on(&queue).options("-v").options(LONG);
    let mut pool = pool.slots(1, ["echo", "answer"]).full();
    let client = queue.tcp_client();
    let client = left(&mut pool, client);
    queue.close();
    pool.until_size(0);
    stays("the pool runs", || pool.is_running());
    client.0.shutdown(Shutdown::Write).unwrap();
    pool.expect_exit(0);
}

// Without.

#[test]
fn without_lingering_a_slot_has_no_copy_of_its_connection() {
    for (options, copies) in [("--linger 0", 0), ("", 1)] {
        let (acceptor, pool) = start(options, 1, "exec cat");
        pool.until_idle();
        let idle = sockets(pool.children()[0]).len();
        let client = acceptor.served_client();
        let slot = pool.children()[0];
        until("a copy, or none", || sockets(slot).len() == idle + copies);
        client.finish();
    }
}

#[test]
fn linger_is_no_option_for_workers() {
    let mut command = program("fdpool");
    command.args(["--worker", "--linger", "1", "1", "--", "cat"]);
    let log = command.stdin(Stdio::null()).start().expect_end(2);
    assert!(
        log.contains("--linger") && log.contains("Connection::finish"),
        "{log}"
    );
}
