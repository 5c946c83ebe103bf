//! `fdaccept --sandbox`: system calls that fail once it accepts, tried in the running program, and
//! everything that still works.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::*;
use fdtools::queue::send;
use nix::sys::signal::Signal;
use nix::sys::socket::{SockType, UnixAddr, connect as connect_to};
use nix::unistd::Pid;

#[cfg(target_arch = "x86_64")]
mod within;

/// The number of seccomp filters of a process. The test itself may have some.
fn filters(pid: Pid) -> Option<u32> {
    try_status_field(pid, "Seccomp_filters")?.parse().ok()
}

fn is_sandboxed(pid: Pid) -> bool {
    let ours = filters(Pid::this()).unwrap();
    filters(pid) == Some(ours + 1)
}

#[track_caller]
fn until_sandboxed(pid: Pid) {
    until("the sandbox", || is_sandboxed(pid));
}

#[track_caller]
fn start(fdaccept: Fdaccept) -> Acceptor {
    let acceptor = fdaccept.arg("--sandbox").start();
    until_sandboxed(acceptor.pid());
    acceptor
}

const POOL_OF_CATS: [&str; 4] = ["fdpool", "4", "--", "cat"];

#[track_caller]
fn chain_with(options: &str) -> Acceptor {
    start(Fdaccept::chain(POOL_OF_CATS).options(options))
}

fn chain() -> Acceptor {
    chain_with("")
}

#[track_caller]
fn bound_with(options: &str) -> Acceptor {
    start(Fdaccept::bound().options(options))
}

#[track_caller]
fn ends(mut acceptor: Acceptor) {
    acceptor.term();
    acceptor.expect_exit(0);
}

/// A pool as a consumer.
fn cats_at(acceptor: &Acceptor, size: usize) -> Pool {
    Pool::on(acceptor).slots(size, ["cat"]).start()
}

/// Checks that `fdrecv` takes one connection and serves it.
#[track_caller]
fn is_received(acceptor: &Acceptor) {
    let mut consumer = fdrecv_on(acceptor).args(["--", "cat"]).start();
    acceptor.expect_echo();
    assert!(consumer.wait().success());
}

// Calls that fail.

#[test]
fn it_is_under_a_filter_and_gains_no_privileges() {
    let acceptor = chain();
    assert_eq!(status_field(acceptor.pid(), "Seccomp"), "2");
    assert_eq!(status_field(acceptor.pid(), "NoNewPrivs"), "1");
    acceptor.expect_echo();
}

#[test]
fn without_the_option_it_is_under_no_filter() {
    let acceptor = Fdaccept::chain(POOL_OF_CATS).start();
    acceptor.expect_echo();
    assert!(!is_sandboxed(acceptor.pid()));
}

#[test]
fn every_form_is_under_the_filter() {
    let _pipe = start(Fdaccept::piped());
    let (_ours, theirs) = socket_pair(SockType::SeqPacket);
    let _socket = start(Fdaccept::plain().stdout(theirs));
    let _path = start(Fdaccept::bound());
    let _name = start(Fdaccept::bound_at(&Names::new().abstract_name()));
}

#[test]
fn its_command_is_under_no_filter() {
    // The command opens files and starts programs.
    let text = "cat /proc/self/status >&2; exec fdpool 1 -- cat";
    let fdaccept = Fdaccept::chain(["sh", "-c", text]).arg("--sandbox");
    let mut acceptor = fdaccept.start();
    for field in ["NoNewPrivs", "Seccomp", "Seccomp_filters"] {
        let ours = status_field(Pid::this(), field);
        let line = acceptor.line(&format!("{field}:"));
        assert_eq!(line, format!("{field}:\t{ours}"));
    }
    until_sandboxed(acceptor.pid());
    acceptor.expect_echo();
}

// Everything that still works.

#[test]
fn a_chain_serves_a_crowd() {
    let acceptor = chain();
    Crowd::connect(acceptor.port, 50).expect_served();
    ends(acceptor);
}

#[test]
fn a_chain_exits_as_its_command() {
    let text = "fdrecv -- cat; exit 7";
    let mut acceptor = start(Fdaccept::chain(["sh", "-c", text]));
    acceptor.expect_echo();
    acceptor.expect_exit(7);
}

#[test]
fn a_pipe_gives_one_consumer_after_another_its_ticket() {
    let acceptor = start(Fdaccept::piped());
    for _ in 0..3 {
        is_received(&acceptor);
    }
    let _pool = cats_at(&acceptor, 4);
    let _other = cats_at(&acceptor, 4);
    Crowd::connect(acceptor.port, 30).expect_served();
}

#[test]
fn a_pipeline_ends_with_its_consumers() {
    let mut acceptor = start(Fdaccept::piped());
    let mut fdrecv = program("fdrecv");
    fdrecv.args(["--", "cat"]).stdin(acceptor.take_pipe());
    let mut consumer = fdrecv.start();
    drop(fdrecv);
    acceptor.expect_echo();
    assert!(consumer.wait().success());
    acceptor.expect_exit(0);
}

/// Consumers connect, are killed, and connect again.
#[track_caller]
fn consumers_come_and_go(fdaccept: Fdaccept) {
    let acceptor = start(fdaccept);
    for _ in 0..3 {
        let mut first = cats_at(&acceptor, 2);
        acceptor.expect_echo();
        let held = acceptor.served_client();
        let slots = first.children();
        first.slay();
        // Slots that outlive the pool would take the next connection.
        drop(held);
        slots.into_iter().for_each(until_gone);
        is_received(&acceptor);
    }
    ends(acceptor);
}

cases! {
    consumers_come_and_go;
    consumers_come_to_a_path_and_are_killed_and_others_come: Fdaccept::bound();
    consumers_come_to_an_abstract_name_and_are_killed_and_others_come:
        Fdaccept::bound_at(&Names::new().abstract_name());
}

#[test]
fn a_unix_socket_on_standard_output_takes_connections() {
    for kind in [SockType::SeqPacket, SockType::Stream, SockType::Datagram] {
        let (ours, theirs) = socket_pair(kind);
        let acceptor = start(Fdaccept::plain().stdout(theirs));
        let mut pool = Pool::plain().stdin(ours).slots(2, ["cat"]).start();
        for _ in 0..3 {
            acceptor.expect_echo();
        }
        ends(acceptor);
        pool.end_by(Signal::SIGTERM);
    }
}

#[test]
fn inherited_listeners_are_served_also_where_another_one_is_faster() {
    let listener = TcpListener::bind(ADDRESS).unwrap();
    let start = || {
        let fdaccept = "exec fdaccept --sandbox -- fdpool 2 -- cat 3<&0";
        let fdaccept = Fdaccept::sh(&format!("LISTEN_FDS=1 LISTEN_PID=$$ {fdaccept}"));
        let inherited = OwnedFd::from(listener.try_clone().unwrap());
        let acceptor = fdaccept.stdin(inherited).start();
        until_sandboxed(acceptor.pid());
        acceptor
    };
    let mut both = [start(), start()];
    for _ in 0..50 {
        both[0].expect_echo();
    }
    for acceptor in &mut both {
        assert!(acceptor.is_running(), "{}", acceptor.log());
    }
}

#[test]
fn unix_clients_are_served_and_asked_who_they_are() {
    let uid = nix::unistd::geteuid().as_raw();
    let gid = nix::unistd::getegid().as_raw();
    for (options, expected) in [
        ("", true),
        (&format!("--allow-uid {uid}"), true),
        ("--allow-uid 4000000001", false),
        (&format!("--allow-gid {gid}"), true),
        ("--allow-gid 4000000001", false),
    ] {
        let fdaccept = Fdaccept::pool("echo served").listen("./listener");
        let mut acceptor = start(fdaccept.options(options));
        let mut told = String::new();
        let end = connect_unix(acceptor.names.file("listener")).read_to_string(&mut told);
        assert!(acceptor.is_running());
        assert_eq!(end.is_ok() && told == "served\n", expected, "{options}");
    }
}

#[test]
fn more_than_max_wait_until_one_ends() {
    let acceptor = bound_with("--max 1");
    let _pool = cats_at(&acceptor, 4);
    for _ in 0..5 {
        let first = acceptor.served_client();
        let second = acceptor.client();
        second.send("x");
        // It has its turn only now.
        second.expect_waiting();
        drop(first);
        (&second.0).read_exact(&mut [0]).unwrap();
    }
}

#[test]
fn one_client_beyond_its_limit_is_told_the_words_of_a_file() {
    let fdaccept = Fdaccept::bound().file("words", "421 later\r\n");
    let limited = fdaccept.options("--max-per-source 1 --when-full ./words");
    let acceptor = start(limited);
    let _pool = cats_at(&acceptor, 4);
    let first = acceptor.served_client();
    for _ in 0..3 {
        assert_eq!(exchange(acceptor.port, b"hello"), b"421 later\r\n");
    }
    drop(first);
    until("room", || {
        try_exchange(acceptor.port, b"hello").is_ok_and(|answer| answer == b"hello")
    });
}

#[test]
fn clients_beyond_a_limit_or_against_a_rule_are_reset() {
    let acceptor = chain_with("--max-per-source 1 --deny 127.0.0.0/8 --allow 127.0.0.1");
    let _first = acceptor.served_client();
    is_reset(acceptor.try_client());
    is_reset(chain_with("--deny 127.0.0.0/8").try_client());
}

#[test]
fn the_rate_holds_clients_up_and_serves_them_later() {
    let acceptor = chain_with("--rate 3/0.2");
    Crowd::connect(acceptor.port, 12).expect_served();
}

#[test]
fn a_limited_queue_is_filled_and_emptied_and_filled_again() {
    let acceptor = bound_with("--queue 2");
    for _ in 0..3 {
        let crowd = Crowd::connect(acceptor.port, 10);
        let mut pool = cats_at(&acceptor, 2);
        crowd.expect_served();
        // Slots that outlive the pool would take the next connections.
        pool.end_by(Signal::SIGTERM);
    }
}

#[test]
fn proxy_headers_are_read() {
    let tell = Fdaccept::pool("sh -c").word("echo $TCPREMOTEIP; exec cat");
    let options = "--proxy-protocol any --proxy-from 127.0.0.1 --proxy-timeout 5";
    let acceptor = start(tell.options(options));
    for _ in 0..3 {
        let header = b"PROXY TCP4 192.0.2.1 198.51.100.7 12345 80\r\nhello";
        let answer = exchange(acceptor.port, header);
        assert_eq!(answer, b"192.0.2.1\nhello");
        // In two parts.
        let client = acceptor.client();
        client.0.set_nodelay(true).unwrap();
        client.send("PROXY TCP4 192.0.2.2");
        client.send(" 198.51.100.7 1 80\r\n");
        client.end();
        assert_eq!(client.rest(), "192.0.2.2\n");
    }
    // Without a header, and with a late one: no answer.
    let none = try_exchange(acceptor.port, b"hello\r\n");
    assert_eq!(none.unwrap_or_default(), b"");
    let mut late = connect(acceptor.port);
    assert_eq!(late.read(&mut [0]).unwrap_or_default(), 0);
}

#[test]
fn the_counters_are_told_on_demand() {
    let mut acceptor = chain_with("-v");
    acceptor.expect_echo();
    acceptor.line(": accepted 127.0.0.1:");
    acceptor.signal(Signal::SIGUSR1);
    acceptor.line("accepted 1, passed 1, taken 1");
    acceptor.expect_echo();
    acceptor.signal(Signal::SIGUSR1);
    acceptor.line("accepted 2, passed 2, taken 2");
}

#[test]
fn a_stop_serves_what_waits_in_the_backlog() {
    let mut acceptor = chain_with("-v");
    let port = acceptor.port;
    let crowd = acceptor.at_once(&[Signal::SIGTERM], || Crowd::connect(port, 20));
    crowd.expect_served();
    acceptor.expect_exit(0);
}

#[test]
fn a_stop_waits_for_consumers_for_the_grace() {
    let mut acceptor = bound_with("--grace 0.3");
    let _client = acceptor.client();
    acceptor.term();
    acceptor.line("1 connection was accepted and not taken");
    acceptor.expect_exit(1);
}

/// A command that reports TERM.
const STAYS: &str = "trap 'echo got TERM >&2; exit 5' TERM; echo ready >&2
    while :; do sleep 0.05; done";
/// A command that nothing but KILL ends.
const IGNORES: &str = "trap '' TERM; echo ready >&2; while :; do sleep 0.05; done";

/// A chain of such a command, once it is ready.
#[track_caller]
fn chain_of(grace: &str, text: &str) -> Acceptor {
    let fdaccept = Fdaccept::chain(["sh", "-c", text]);
    let mut acceptor = start(fdaccept.args(["--grace", grace]));
    acceptor.line("ready");
    acceptor
}

/// Sends TERM, and waits until fdaccept has closed all sockets but so many.
#[track_caller]
fn term_until(acceptor: &Acceptor, left: usize) {
    acceptor.term();
    until("it to be heard", || sockets(acceptor.pid()).len() <= left);
}

#[test]
fn a_command_gets_term_when_the_grace_is_over() {
    let mut acceptor = chain_of("0.2", STAYS);
    acceptor.term();
    acceptor.line("got TERM");
    acceptor.expect_exit(5);
}

#[test]
fn a_command_gets_term_at_a_second_signal() {
    let mut acceptor = chain_of("3600", STAYS);
    term_until(&acceptor, 1);
    acceptor.term();
    acceptor.line("got TERM");
    acceptor.expect_exit(5);
}

#[test]
fn a_command_that_ignores_a_second_signal_is_killed() {
    let mut acceptor = chain_of("3600", IGNORES);
    term_until(&acceptor, 1);
    acceptor.term();
    acceptor.expect_exit(128 + 9);
}

#[test]
fn with_few_descriptors_everybody_is_served() {
    for text in [
        "exec fdaccept --sandbox 127.0.0.1:0 -- fdpool 4 -- cat",
        "exec fdaccept --sandbox --max 30 127.0.0.1:0 -- fdpool 4 -- cat",
        "fdaccept --sandbox 127.0.0.1:0 | fdpool 4 -- cat",
        "fdpool --connect ./q 4 -- cat & exec fdaccept --sandbox --bind ./q 127.0.0.1:0",
    ] {
        let acceptor = Fdaccept::sh(&format!("ulimit -n 16; {text}")).start();
        Crowd::connect(acceptor.port, 50).expect_served();
    }
}

#[test]
fn without_a_descriptor_left_clients_wait() {
    let prlimit = needs!(peer("prlimit"));
    let mut acceptor = chain();
    acceptor.expect_echo();
    for _ in 0..2 {
        limit(&prlimit, acceptor.pid(), "3:");
        let crowd = Crowd::connect(acceptor.port, 10);
        // The message comes once.
        if !acceptor.log().contains("cannot accept") {
            acceptor.line("cannot accept: Too many open files");
        }
        limit(&prlimit, acceptor.pid(), "1024:");
        crowd.expect_served();
    }
}

/// Connects to a door, and sends messages there.
fn visit(address: &UnixAddr, messages: &[(&[u8], &[BorrowedFd<'_>])]) -> OwnedFd {
    use ErrorKind::{BrokenPipe, ConnectionReset};
    let visitor = unix_socket(SockType::SeqPacket);
    connect_to(visitor.as_raw_fd(), address).unwrap();
    for (payload, descriptors) in messages {
        match send(&visitor, payload, descriptors) {
            // The door may be shut already.
            Err(error) if [BrokenPipe, ConnectionReset].contains(&error.kind()) => {}
            sent => sent.unwrap(),
        }
    }
    visitor
}

/// Strangers send all kinds of descriptors to a door. The last close of some of them takes long until
/// their other sides are dropped. Returns our copies, and these other sides, which are to be dropped
/// first.
fn leave_things_at(address: &UnixAddr) -> (impl Sized + use<>, [TcpStream; 2]) {
    let (lingers, other) = lingering();
    let (nested, its_end) = socket_pair(SockType::SeqPacket);
    let (inner, inner_other) = lingering();
    for _ in 0..3 {
        send(&nested, b"", &[]).unwrap();
    }
    send(&nested, b"within", &[inner.as_fd(), its_end.as_fd()]).unwrap();
    let listens = TcpListener::bind(ADDRESS).unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    let many = [null.as_fd(); 253];
    visit(address, &[]);
    visit(address, &[(b"", &[]), (b"x", &[])]);
    visit(address, &[(b"nonsense", &[lingers.as_fd()])]);
    visit(address, &[(b"FDTOOLS=1\n", &many), (b"", &many)]);
    let two: [(&[u8], &[_]); 2] = [(b"y", &[its_end.as_fd()]), (b"z", &[nested.as_fd()])];
    visit(address, &two);
    visit(address, &[(&[b'x'; 60000], &[listens.as_fd()])]);
    ((lingers, inner, nested, its_end), [other, inner_other])
}

/// The same while fdaccept is stopped, so that it finds everything at once.
fn misbehave_at(address: &UnixAddr, acceptor: &Acceptor) -> [TcpStream; 2] {
    acceptor.at_once(&[], || {
        let (ours, others) = leave_things_at(address);
        leave(ours);
        others
    })
}

#[test]
fn strangers_at_a_name_keep_nobody_out() {
    let names = Names::new();
    for name in [names.path(), names.abstract_name()] {
        let acceptor = start(Fdaccept::bound_at(&name));
        let address = match name.strip_prefix('@') {
            Some(name) => UnixAddr::new_abstract(name.as_bytes()),
            None => UnixAddr::new(Path::new(&name)),
        }
        .unwrap();
        for _ in 0..3 {
            let _others = misbehave_at(&address, &acceptor);
            is_received(&acceptor);
        }
    }
}

#[test]
fn strangers_at_the_door_of_tickets_keep_nobody_out() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let acceptor = start(Fdaccept::plain().stdout(writer));
    let mut ticket = [0; 94];
    reader.read_exact(&mut ticket).unwrap();
    let door = [b"fdtools-", &ticket[17..49]].concat();
    let address = UnixAddr::new_abstract(&door).unwrap();
    for _ in 0..3 {
        let _others = misbehave_at(&address, &acceptor);
        let void = format!("FDTOOLS=1\nTOKEN={:032x}\n", 7);
        visit(&address, &[(void.as_bytes(), &[])]);
        let mut fdrecv = program("fdrecv");
        reader.give_to(&mut fdrecv);
        let mut consumer = fdrecv.args(["--", "cat"]).start();
        acceptor.expect_echo();
        assert!(consumer.wait().success());
    }
}

#[test]
fn a_consumer_of_another_user_at_an_abstract_name_is_refused() {
    let setpriv = needs!(peer("setpriv").filter(|_| root()));
    let name = Names::new().abstract_name();
    let mut acceptor = start(Fdaccept::bound_at(&name));
    let python = needs!(python());
    let text = "import socket, sys
door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
door.connect('\\0' + sys.argv[1][1:])
print(len(socket.recv_fds(door, 4096, 1)[1]))";
    let mut command = Command::new(setpriv);
    command.args(["--reuid", &NOBODY.to_string(), "--clear-groups"]);
    command.arg(python).args(["-c", text, &name]);
    let (_, told, _) = run(command.stdin(Stdio::null()).current_dir("/"));
    assert_eq!(told, "0\n");
    acceptor.line("a consumer was refused");
    let _pool = cats_at(&acceptor, 1);
    acceptor.expect_echo();
}

#[test]
fn a_service_manager_is_told_how_it_is() {
    let manager = Manager::at_path();
    let mut acceptor = start(Fdaccept::chain(POOL_OF_CATS).under(&manager));
    manager.until_told("READY=1");
    manager.until_status("accepted 0");
    acceptor.expect_echo();
    manager.until_status("accepted 1");
    acceptor.term();
    manager.until_told("STOPPING=1");
    acceptor.expect_exit(0);
}

#[test]
fn another_user_is_sandboxed_as_well() {
    needs!(root());
    let acceptor = start(Fdaccept::bound().user(NOBODY));
    let uids = status_field(acceptor.pid(), "Uid");
    assert_eq!(uids, ["65534"; 4].join("\t"), "all four of them");
    let _pool = cats_at(&acceptor, 2);
    for _ in 0..3 {
        acceptor.expect_echo();
    }
    ends(acceptor);
    let chain = Fdaccept::chain(["sh", "-c", "sleep 1000"]);
    let acceptor = start(chain.user(NOBODY));
    assert_eq!(status_field(acceptor.children()[0], "Seccomp"), "0");
}

#[test]
fn a_path_that_it_left_is_taken_over_by_the_next_one() {
    let names = Names::new();
    for _ in 0..3 {
        let acceptor = start(Fdaccept::bound_at(&names.path()));
        let _pool = cats_at(&acceptor, 1);
        acceptor.expect_echo();
        ends(acceptor);
    }
}

#[test]
fn what_needs_more_calls_is_a_usage_error() {
    for (options, expected) in [
        ("--bind ./queue --rules ./rules", "--rules"),
        ("--grace 1 --connect ./queue", "--connect"),
    ] {
        let fdaccept = Fdaccept::plain().options(options).file("rules", "");
        let mut acceptor = fdaccept.arg("--sandbox").spawn();
        let log = acceptor.expect_end(2);
        let first = log.lines().next().unwrap();
        assert!(first.starts_with(&format!("fdaccept: {expected}")), "{log}");
        assert!(first.contains("--sandbox"), "{log}");
        assert_eq!(acceptor.names.files(), ["rules"]);
    }
}

// The filter refuses nothing that fdaccept needs.

/// Does `act` to an fdaccept under strace(1), and checks that no call of it is refused.
#[track_caller]
fn expect_nothing_refused(fdaccept: Fdaccept, act: impl FnOnce(&mut Acceptor)) {
    let manager = Manager::at_path();
    let mut acceptor = start(fdaccept.arg("-v").under(&manager));
    act(&mut acceptor);
    acceptor.signal(Signal::SIGUSR1);
    acceptor.line("accepted");
    if acceptor.is_running() {
        acceptor.term();
    }
    acceptor.wait();
    let calls = eventually("the end of the trace", || {
        let text = std::fs::read(acceptor.names.file("trace")).ok()?;
        let text = String::from_utf8_lossy(&text).into_owned();
        text.contains("exit_group").then_some(text)
    });
    let after = calls.split_once("SECCOMP_SET_MODE_FILTER").unwrap().1;
    let refused = after.lines().filter(|line| line.contains(" EPERM "));
    let refused: BTreeSet<_> = refused.filter_map(|line| line.split('(').next()).collect();
    assert!(refused.is_empty(), "{refused:?}");
}

fn traced_fdaccept() -> Option<Fdaccept> {
    Some(Fdaccept::behind(&traced("-o ./trace")?))
}

#[test]
fn nothing_that_a_chain_needs_is_refused() {
    let chain = needs!(traced_fdaccept()).listen(ADDRESS).listen(ADDRESS);
    let chain = chain.words("fdpool 4 -- cat");
    let chain = chain.options("--max 5 --rate 50/0.1 --queue 3");
    expect_nothing_refused(chain, |acceptor| {
        for _ in 0..3 {
            Crowd::connect(acceptor.port, 10).expect_served();
        }
    });
}

#[test]
fn nothing_that_a_named_queue_needs_is_refused() {
    let names = Names::new();
    let (name, listener) = (&names.abstract_name(), &names.abstract_name());
    let fdaccept = needs!(traced_fdaccept())
        .file("words", "421 later\r\n")
        .args(["--bind", name]);
    let fdaccept = fdaccept.options("--max-per-source 3 --when-full ./words");
    let fdaccept = fdaccept.options("--allow-gid 4000000001 --deny 127.0.0.9");
    expect_nothing_refused(fdaccept.listen(ADDRESS).listen(listener), |acceptor| {
        let _pool = Pool::on(name).slots(8, ["cat"]).start();
        let address = UnixAddr::new_abstract(&name.as_bytes()[1..]).unwrap();
        // fdaccept may close its copies before we do, so that ours are the last.
        let (_ours, _others) = leave_things_at(&address);
        let _kept = [(); 3].map(|()| acceptor.served_client());
        assert_eq!(exchange(acceptor.port, b"hello"), b"421 later\r\n");
        // A client of another group.
        let stream = unix_socket(SockType::Stream);
        let address = UnixAddr::new_abstract(&listener.as_bytes()[1..]).unwrap();
        connect_to(stream.as_raw_fd(), &address).unwrap();
        acceptor.line("a rule denies it");
    });
}

#[test]
fn nothing_that_headers_of_proxies_need_is_refused() {
    let options = "--proxy-protocol v1 --proxy-from 127.0.0.1 --proxy-timeout 0.1";
    let chain = needs!(traced_fdaccept())
        .words("fdpool 4 -- cat")
        .options(options);
    expect_nothing_refused(chain, |acceptor| {
        // In time, however slow we are.
        let client = acceptor.at_once(&[], || {
            let client = acceptor.client();
            client.send("PROXY TCP4 192.0.2.1 198.51.100.7 12345 80\r\nhello");
            client.end();
            client
        });
        assert_eq!(client.rest(), "hello");
        let _ = try_exchange(acceptor.port, b"none\r\n");
        let _late = connect(acceptor.port);
        acceptor.line("late");
    });
}

#[test]
fn nothing_that_a_second_signal_needs_is_refused() {
    let chain = needs!(traced_fdaccept()).words("sh -c").word(STAYS);
    expect_nothing_refused(chain, |acceptor| {
        acceptor.line("ready");
        term_until(acceptor, 2);
    });
}
