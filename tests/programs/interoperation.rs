//! Programs that speak the format without fdtools: workers, senders and receivers in Python, and
//! messages as other tools send them.

use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::*;
use fdtools::queue::{Sender, name::Name, send, trust::Trust, try_receive};
use nix::sys::signal::Signal;
use nix::sys::socket::SockType;

/// A handler that reads a line and tells the variables of its connection.
const TELL: &str = "read line && \
    echo $PROTO $TCPREMOTEIP $TCPREMOTEPORT $TCPLOCALIP $TCPLOCALPORT $REMOTE_ADDR $REMOTE_PORT";

/// What [`TELL`] says of a connection from port `remote` to port `local`.
fn told(remote: u16, local: u16) -> String {
    format!("TCP 127.0.0.1 {remote} 127.0.0.1 {local} 127.0.0.1 {remote}\n")
}

/// `--connect NAME`
fn fdaccept_to(name: &str) -> Acceptor {
    Fdaccept::plain().args(["--connect", name]).start()
}

/// Waits until somebody has bound a name.
#[track_caller]
fn until_owned(name: &str) {
    let name = Name::parse(name.as_ref()).unwrap();
    let trust = Trust::us_and(&[]);
    until("the owner of the name", || {
        Sender::connect(&name, &trust).is_ok()
    });
}

// The workers of examples/.

/// The command lines of the examples that can be run here.
fn workers() -> Vec<Vec<PathBuf>> {
    let python = python_worker().map(Vec::from);
    let rust = rust_worker().map(|compiled| vec![compiled]);
    [python, rust].into_iter().flatten().collect()
}

fn start_worker(worker: &[PathBuf], arguments: &[&str]) -> Process {
    let mut command = Command::new(&worker[0]);
    command.args(&worker[1..]).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).start()
}

/// Expects that a worker ends well, and has printed nothing.
#[track_caller]
fn expect_nothing_printed(mut worker: Process) {
    worker.expect_quiet_end();
    let stdout = worker.child().stdout.take().unwrap();
    assert_eq!(std::io::read_to_string(stdout).unwrap(), "");
}

#[track_caller]
fn assert_echoes(acceptor: &Acceptor) {
    for request in ["one", "two"] {
        acceptor.client().expect_echo(request);
    }
}

#[test]
fn a_worker_takes_connections_from_the_queue_of_a_name() {
    let names = Names::new();
    for worker in workers() {
        for name in [names.path(), names.abstract_name()] {
            let mut acceptor = Fdaccept::bound_at(&name).start();
            let worker = start_worker(&worker, &[&name]);
            assert_echoes(&acceptor);
            // The queue ends, and the worker with it.
            acceptor.stop();
            expect_nothing_printed(worker);
        }
    }
}

#[test]
fn two_workers_share_the_queue_of_a_name() {
    for worker in workers() {
        let mut acceptor = Fdaccept::bound().start();
        let two = [(); 2].map(|()| start_worker(&worker, &[acceptor.name()]));
        let clients = [acceptor.client(), acceptor.client()];
        clients.iter().for_each(Client::expect_served);
        drop(clients);
        acceptor.stop();
        two.into_iter().for_each(expect_nothing_printed);
    }
}

#[test]
fn a_worker_takes_connections_at_a_name_of_its_own() {
    let names = Names::new();
    for worker in workers() {
        for name in [names.path(), names.abstract_name()] {
            let mut worker = start_worker(&worker, &["--bind", &name]);
            let mut acceptor = fdaccept_to(&name);
            assert_echoes(&acceptor);
            acceptor.stop();
            assert!(worker.is_running());
            worker.term();
            expect_nothing_printed(worker);
            assert!(!Path::new(&name).exists());
        }
    }
}

#[test]
fn a_worker_that_is_told_to_stop_finishes_its_connection_and_takes_no_other() {
    for worker in workers() {
        let mut acceptor = Fdaccept::bound().start();
        let first = start_worker(&worker, &[acceptor.name()]);
        let client = acceptor.served_client();
        let waiting = acceptor.client();
        let open = || sockets(first.pid()).len();
        let before = open();
        first.term();
        until("the worker to give up the queue", || open() < before);
        client.expect_served();
        drop(client);
        expect_nothing_printed(first);
        // The waiting client is left to the next worker.
        let second = start_worker(&worker, &[acceptor.name()]);
        waiting.expect_served();
        drop(waiting);
        acceptor.stop();
        expect_nothing_printed(second);
    }
}

#[test]
fn a_worker_that_waits_for_a_connection_stops_at_once() {
    for worker in workers() {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let mut acceptor = Fdaccept::bound().start();
            let worker = start_worker(&worker, &[acceptor.name()]);
            assert_echoes(&acceptor);
            worker.signal(signal);
            expect_nothing_printed(worker);
            acceptor.stop();
        }
    }
}

#[test]
fn workers_that_stop_amid_the_work_lose_no_connection() {
    for worker in workers() {
        let mut acceptor = Fdaccept::bound().start();
        let once = Pool::on(&acceptor).args(["--once"]);
        let mut pool = once.slots(1, ["cat"]).start();
        under_load(acceptor.port, 0, |_| {
            for _ in 0..5 {
                let worker = start_worker(&worker, &[acceptor.name()]);
                until("a worker with a queue", || minds_term(&worker));
                worker.term();
                expect_nothing_printed(worker);
            }
        });
        acceptor.stop();
        pool.expect_end(0);
    }
}

/// Whether a worker catches TERM, or waits for it, as it does once it has its queue. A process
/// that is about to become the worker may have all signals blocked: then CHLD is blocked, too.
fn minds_term(worker: &Process) -> bool {
    let set = |name| {
        let field = try_status_field(worker.pid(), name).unwrap_or("0".into());
        u64::from_str_radix(&field, 16).unwrap()
    };
    let [term, chld] = [Signal::SIGTERM, Signal::SIGCHLD].map(|signal| 1 << (signal as u32 - 1));
    set("SigBlk") & (term | chld) == term || set("SigCgt") & term != 0
}

#[test]
fn a_worker_closes_what_is_no_connection_and_goes_on() {
    let names = Names::new();
    let name = names.path();
    for worker in workers() {
        let worker = start_worker(&worker, &["--bind", &name]);
        let sender = UnixDatagram::unbound().unwrap();
        until("the worker", || sender.connect(&name).is_ok());
        let serve = || {
            let (client, server) = tcp_pair();
            send(&sender, b"\0", &[server.as_fd()]).unwrap();
            drop(server);
            Client(client).expect_echo("hello");
            // What else a worker has open comes and goes.
            until("the close", || sockets(worker.pid()).len() == 1);
        };
        serve();
        let (client, server) = tcp_pair();
        let two = [server.as_fd(), server.as_fd()];
        send(&sender, b"two", &two).unwrap();
        send(&sender, b"none", &[]).unwrap();
        send(&sender, b"", &[]).unwrap();
        drop(server);
        // The connection ends when the worker has closed both copies.
        assert_eq!(Client(client).rest(), "");
        serve();
        worker.term();
        expect_nothing_printed(worker);
    }
}

// Senders.

#[test]
fn the_smallest_sender_feeds_fdpool() {
    let sender = needs!(example("sender"));
    let names = Names::new();
    let name = names.path();
    let answer = "read line && echo \"$line from $TCPREMOTEPORT\"";
    let mut pool = Pool::bound_at(&name).slots(2, sh_c(answer)).start();
    until_owned(&name);
    let mut sender = Command::new(sender).args(["0", &name]).start();
    let port = sender.port();
    for _ in 0..20 {
        let client = Client::connect(port);
        let remote = client.local_port();
        client.send("hello\n");
        assert_eq!(client.rest(), format!("hello from {remote}\n"));
    }
    sender.end_by(Signal::SIGTERM);
    pool.stop();
}

/// Connects to itself, sends the server side of that connection to a name in one message with a
/// payload, and prints both ports and the client's answer.
const SENDER: &str = r#"
import socket, sys
name, payload = sys.argv[1], sys.argv[2].encode().decode("unicode_escape").encode("latin1")
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
queue = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
queue.connect("\0" + name[1:] if name.startswith("@") else name)
assert socket.send_fds(queue, [payload], [server.fileno()]) == len(payload)
server.close()
client.sendall(b"hello\n")
client.shutdown(socket.SHUT_WR)
print(client.getsockname()[1], listener.getsockname()[1])
print(client.makefile().read(), end="")
"#;

/// Runs [`SENDER`] once the name is bound. Returns the client's port, the server's, and the answer.
#[track_caller]
fn send_to(name: &str, payload: &str, python: &Path) -> (u16, u16, String) {
    until_owned(name);
    let mut command = Command::new(python);
    command.args(["-c", SENDER, name, payload]);
    let (status, output, log) = run(command.stdin(Stdio::null()));
    assert_eq!(status, Some(0), "{log}");
    let (ports, answer) = output.split_once('\n').unwrap();
    let (remote, local) = ports.split_once(' ').unwrap();
    let port = |text: &str| text.parse().unwrap();
    (port(remote), port(local), answer.to_owned())
}

#[test]
fn python_senders_send_to_fdpool_all_at_once() {
    let Some(python) = python() else { return };
    let names = Names::new();
    for name in [names.path(), names.abstract_name()] {
        let mut pool = Pool::bound_at(&name).slots(2, sh_c(TELL)).start();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let (remote, local, answer) = send_to(&name, r"FDTOOLS=1\n", &python);
                    assert_eq!(answer, told(remote, local));
                });
            }
        });
        pool.stop();
    }
}

#[test]
fn a_python_sender_sends_to_fdrecv() {
    let Some(python) = python() else { return };
    let names = Names::new();
    for name in [names.path(), names.abstract_name()] {
        let mut handler = program("fdrecv");
        let mut handler = handler.args(["--bind", &name, "--", "cat"]).start();
        assert_eq!(send_to(&name, r"FDTOOLS=1\n", &python).2, "hello\n");
        handler.expect_end(0);
    }
}

#[test]
fn what_a_python_sender_says_of_a_connection_reaches_the_handler() {
    let Some(python) = python() else { return };
    let names = Names::new();
    let name = names.path();
    let mut handler = program("fdrecv");
    handler.args(["--bind", &name, "--"]).args(sh_c(TELL));
    let mut handler = handler.start();
    let payload = r"FDTOOLS=1\nPROTO=TCP\nTCPREMOTEIP=192.0.2.7\nTCPREMOTEPORT=7\nTCPLOCALIP=::1\nTCPLOCALPORT=8\n";
    let answer = send_to(&name, payload, &python).2;
    assert_eq!(answer, "TCP 192.0.2.7 7 ::1 8 192.0.2.7 7\n");
    handler.expect_end(0);
}

/// Expects that a handler is told what the socket itself says, whatever the payload says.
#[track_caller]
fn assert_are_bare_connections(payloads: &[&str]) {
    let python = needs!(python());
    for payload in payloads {
        let names = Names::new();
        let mut pool = Pool::bound_at(&names.path()).slots(1, sh_c(TELL)).start();
        let (remote, local, answer) = send_to(&names.path(), payload, &python);
        assert_eq!(answer, told(remote, local));
        pool.stop();
    }
}

cases! {
    assert_are_bare_connections;
    // One byte, whatever it is.
    a_message_of_flingfd_is_a_bare_connection: &[r"\x14", "x"];
    a_message_of_nc_is_a_bare_connection: &[r"\x00"];
    a_message_of_the_tcl_original_is_a_bare_connection: &[r"192.0.2.7 4711\x00"];
}

#[test]
fn messages_of_other_tools_on_a_stream_socket_are_one_connection_each() {
    let payloads = [
        "\0",
        "192.0.2.7 4711\0",
        "x",
        "FDTOOLS=1\n",
        "192.0.2.8 4712\0",
    ];
    for kind in [SockType::Stream, SockType::SeqPacket] {
        let mut queue = Queue::of(kind);
        let clients = payloads.map(|payload| {
            let (client, server) = tcp_pair();
            send(queue.write_end(), payload.as_bytes(), &[server.as_fd()]).unwrap();
            let client = Client(client);
            client.send("hello\n");
            client
        });
        queue.close();
        let mut pool = Pool::on(&queue).slots(2, sh_c(TELL)).start();
        for client in clients {
            let expected = told(client.local_port(), client.peer_port());
            assert_eq!(client.rest(), expected);
        }
        pool.expect_end(0);
    }
}

/// OpenBSD's nc, which can pass a connection on.
fn nc_that_passes() -> Option<PathBuf> {
    let nc = peer("nc")?;
    let (_, output, log) = run(Command::new(&nc).arg("-h").stdin(Stdio::null()));
    if !(output + &log).contains("Pass socket fd") {
        skip("nc cannot pass a connection");
        return None;
    }
    Some(nc)
}

#[test]
fn the_real_nc_passes_its_connection_to_fdrecv() {
    let Some(nc) = nc_that_passes() else { return };
    let (listener, local) = listener();
    let (write_end, read_end) = socket_pair(SockType::Stream);
    let mut handler = program("fdrecv");
    let mut handler = handler.arg("--").args(sh_c(TELL)).stdin(read_end).start();
    let mut nc = Command::new(nc);
    nc.args(["-F", "127.0.0.1", &local.to_string()]);
    let mut nc = nc.stdin(Stdio::null()).stdout(write_end).start();
    let (server, peer) = listener.accept().unwrap();
    server.set_read_timeout(Some(DEADLINE)).unwrap();
    let server = Client(server);
    server.send("hello\n");
    // nc passes on its own end, so that end is served.
    assert_eq!(server.rest(), told(local, peer.port()));
    nc.expect_end(0);
    handler.expect_end(0);
}

// Receivers in Python.

/// Gets a queue in one of 4 ways, takes one connection from it, and answers the client if the
/// payload is exactly what it should be.
const RECEIVER: &str = r#"
import os, re, socket, struct, sys

def unix(kind):
    return socket.socket(socket.AF_UNIX, kind)

def address(name):
    return "\0" + name[1:] if name.startswith("@") else name

def credentials(peer):
    return struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))

def fetch(door):
    payload, fds, flags, _ = socket.recv_fds(door, 4096, 2)
    assert payload == b"FDTOOLS=1\n" and len(fds) == 1, (payload, fds)
    queue = socket.socket(fileno=fds[0])
    assert queue.family == socket.AF_UNIX and queue.type == socket.SOCK_SEQPACKET, queue
    return queue

def redeem(ticket):
    form = rb"fdtools-ticket 1 ([0-9a-f]{32}) ([0-9]{10}) ([0-9a-f]{32})\n"
    name, uid, token = re.fullmatch(form, ticket).groups()
    door = unix(socket.SOCK_SEQPACKET)
    door.connect(b"\0fdtools-" + name)
    assert credentials(door)[1] == int(uid)
    door.send(b"FDTOOLS=1\nTOKEN=" + token + b"\n")
    return fetch(door)

how, *name = sys.argv[1:]
if how == "inherited":
    queue = socket.socket(fileno=0)
elif how == "ticket":
    # A ticket is one line of 94 bytes.
    queue = redeem(os.read(0, 94))
elif how == "bind":
    queue = unix(socket.SOCK_DGRAM)
    queue.bind(address(name[0]))
elif how == "connect":
    door = unix(socket.SOCK_SEQPACKET)
    door.connect(address(name[0]))
    queue = fetch(door)

payload, fds, flags, _ = socket.recv_fds(queue, 4097, 2)
assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC), flags
assert len(fds) == 1, fds
client = socket.socket(fileno=fds[0])
if client.family == socket.AF_UNIX:
    pid, uid, gid = credentials(client)
    expected = ["PROTO=IPC", f"IPCREMOTEEUID={uid}", f"IPCREMOTEEGID={gid}",
                f"IPCREMOTEPID={pid}", f"IPCLOCALPATH={client.getsockname()}"]
else:
    (remote, remote_port), (local, local_port) = client.getpeername(), client.getsockname()
    expected = ["PROTO=TCP", f"TCPREMOTEIP={remote}", f"TCPREMOTEPORT={remote_port}",
                f"TCPLOCALIP={local}", f"TCPLOCALPORT={local_port}"]
first, *lines, rest = payload.decode().split("\n")
assert first == "FDTOOLS=1" and rest == "", payload
assert sorted(lines) == sorted(expected), (payload, expected)
client.sendall(b"as it should be\n")
"#;

fn receiver(python: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(python);
    command.args(["-c", RECEIVER]).args(arguments);
    command.stdin(Stdio::null());
    command
}

#[track_caller]
fn assert_received(client: Client, receiver: &mut Process) {
    receiver.expect_end(0);
    assert_eq!(client.rest(), "as it should be\n");
}

#[test]
fn fdaccept_sends_to_a_python_receiver_through_a_socket_on_standard_output() {
    let Some(python) = python() else { return };
    // A stream socket is what ssh's ProxyUseFdpass gives.
    for kind in [SockType::Stream, SockType::SeqPacket, SockType::Datagram] {
        let (write_end, read_end) = socket_pair(kind);
        let acceptor = Fdaccept::plain().stdout(write_end).start();
        let mut receiver = receiver(&python, &["inherited"]).stdin(read_end).start();
        assert_received(acceptor.client(), &mut receiver);
    }
}

#[test]
fn fdaccept_sends_to_a_python_receiver_in_a_chain() {
    let Some(python) = python() else { return };
    let python = python.to_str().unwrap();
    let mut chain = Fdaccept::chain([python, "-c", RECEIVER, "inherited"]).start();
    assert_received(chain.client(), &mut chain);
}

#[test]
fn fdaccept_gives_its_queue_to_a_python_receiver_for_a_ticket() {
    let Some(python) = python() else { return };
    let mut acceptor = Fdaccept::piped().start();
    let mut receiver = receiver(&python, &["ticket"])
        .stdin(acceptor.take_pipe())
        .start();
    assert_received(acceptor.client(), &mut receiver);
    acceptor.expect_end(0);
}

#[test]
fn fdaccept_gives_its_queue_to_a_python_receiver_at_its_name() {
    let Some(python) = python() else { return };
    let names = Names::new();
    for name in [names.path(), names.abstract_name()] {
        let mut acceptor = Fdaccept::bound_at(&name).start();
        let mut receiver = receiver(&python, &["connect", &name]).start();
        assert_received(acceptor.client(), &mut receiver);
        acceptor.stop();
    }
}

#[test]
fn fdaccept_sends_to_the_name_of_a_python_receiver() {
    let Some(python) = python() else { return };
    let names = Names::new();
    for name in [names.path(), names.abstract_name()] {
        let mut receiver = receiver(&python, &["bind", &name]).start();
        let mut acceptor = fdaccept_to(&name);
        assert_received(acceptor.client(), &mut receiver);
        acceptor.stop();
    }
}

#[test]
fn fdaccept_tells_a_python_receiver_who_is_at_a_unix_socket() {
    let Some(python) = python() else { return };
    let names = Names::new();
    let listener = names.file("listener");
    let mut acceptor = Fdaccept::bound_in(names).listen(&listener).start();
    let mut receiver = receiver(&python, &["connect", acceptor.name()]).start();
    let client = Client::connect_unix(listener);
    receiver.expect_end(0);
    assert_eq!(client.rest(), "as it should be\n");
    acceptor.stop();
}

// Receivers of one byte and one descriptor: `fdaccept --bare`.

/// Serves 3 connections that Python's multiprocessing receives, from its standard input or from a
/// name of its own.
const HANDLES: &str = r#"
import socket, sys
from multiprocessing import reduction
if len(sys.argv) > 1:
    queue = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    queue.bind(sys.argv[1].replace("@", "\0", 1))
else:
    queue = socket.socket(fileno=0)
for number in range(3):
    with socket.socket(fileno=reduction.recv_handle(queue)) as client:
        client.sendall(f"{number}\n".encode())
"#;

fn bare() -> Fdaccept {
    Fdaccept::plain().arg("--bare")
}

#[track_caller]
fn expect_handles(acceptor: &Acceptor) {
    for number in 0..3 {
        assert_eq!(acceptor.client().rest(), format!("{number}\n"));
    }
}

#[test]
fn pythons_multiprocessing_receives_bare_connections_from_a_socket_on_standard_output() {
    let python = needs!(python());
    for kind in [SockType::Stream, SockType::SeqPacket, SockType::Datagram] {
        let (write_end, read_end) = socket_pair(kind);
        let acceptor = bare().stdout(write_end).start();
        let mut receiver = Command::new(&python);
        let mut receiver = receiver.args(["-c", HANDLES]).stdin(read_end).start();
        expect_handles(&acceptor);
        receiver.expect_end(0);
    }
}

#[test]
fn pythons_multiprocessing_receives_bare_connections_in_a_chain_and_at_its_name() {
    let python = needs!(python());
    let python = python.to_str().unwrap();
    let mut chain = Fdaccept::chain([python, "-c", HANDLES])
        .arg("--bare")
        .start();
    expect_handles(&chain);
    chain.expect_end(0);

    let names = Names::new();
    for name in [names.path(), names.abstract_name()] {
        let mut receiver = Command::new(python);
        receiver.args(["-c", HANDLES, &name]).stdin(Stdio::null());
        let mut receiver = receiver.start();
        until_owned(&name);
        let mut acceptor = bare().args(["--connect", &name]).start();
        expect_handles(&acceptor);
        receiver.expect_end(0);
        acceptor.stop();
    }
}

#[test]
fn consumers_of_every_kind_ask_a_bare_connection_who_its_client_is() {
    let tells = |acceptor: &Acceptor| {
        for _ in 0..2 {
            let client = acceptor.client();
            client.send("\n");
            let expected = told(client.local_port(), client.peer_port());
            assert_eq!(client.rest(), expected);
        }
    };
    let chain = Fdaccept::pool("sh").word("-c").word(TELL).arg("--bare");
    tells(&chain.start());
    for acceptor in [Fdaccept::bound(), Fdaccept::piped()] {
        let acceptor = acceptor
            .arg("--bare")
            .options("--queue 2 --rate 100/1")
            .start();
        let _pool = Pool::on(&acceptor).slots(2, sh_c(TELL)).start();
        tells(&acceptor);
    }
    for (write_end, read_end) in socket_pairs() {
        let acceptor = bare().stdout(write_end).start();
        let _pool = Pool::on(&read_end).slots(2, sh_c(TELL)).start();
        drop(read_end);
        tells(&acceptor);
    }
    let names = Names::new();
    for name in names.both() {
        let pool = Pool::plain().args(["--bind", &name]).slots(2, sh_c(TELL));
        let _pool = pool.start();
        until_owned(&name);
        tells(&bare().args(["--connect", &name]).start());
    }
}

#[test]
fn a_bare_connection_is_counted_in_the_queue_and_kept_through_a_consumer() {
    let mut acceptor = Fdaccept::bound().arg("--bare").options("--queue 3").start();
    let clients = acceptor.clients(5);
    acceptor.until_counted("passed", 3);
    let receiver = acceptor.receiver();
    for _ in clients {
        // A payload of one byte, and nothing beside the connection.
        let mut message = eventually("a message", || try_receive(&receiver).ok());
        assert_eq!(
            (message.payload.as_slice(), message.descriptors.len()),
            (&[1][..], 1)
        );
        message.descriptors.clear();
    }
    acceptor.until_counted("taken", 5);
}

#[test]
fn what_counts_by_leases_is_not_for_bare_connections() {
    for limit in ["--max", "--max-per-source"] {
        let log = bare().args([limit, "1"]).fails(2);
        assert!(
            log.starts_with("fdaccept: --bare passes connections alone, and --max"),
            "{log}"
        );
    }
}

#[test]
fn fdaccept_sends_to_a_receiver_that_reads_one_byte_as_flingfd_does() {
    let Some(python) = python() else { return };
    let text = r#"
import socket, sys
queue = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
queue.bind(sys.argv[1])
for _ in range(2):
    payload, fds, flags, _ = socket.recv_fds(queue, 1, 1)
    assert len(fds) == 1 and not flags & socket.MSG_CTRUNC
    socket.socket(fileno=fds[0]).sendall(b"hello\n")
"#;
    let names = Names::new();
    let mut receiver = Command::new(python);
    receiver.args(["-c", text, &names.path()]);
    let mut receiver = receiver.stdin(Stdio::null()).start();
    let mut acceptor = fdaccept_to(&names.path());
    for _ in 0..2 {
        assert_eq!(acceptor.client().line(), "hello");
    }
    receiver.expect_end(0);
    acceptor.stop();
}
