//! Programs that speak the format without fdtools: workers, senders and receivers in Python, and
//! messages as other tools send them.

use std::io::{Read, Write, pipe};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::support::*;
use nix::sys::signal::Signal;
use nix::sys::socket::SockType;

const ADDRESS: &str = "127.0.0.1:0";

/// A handler that reads a line and tells what it was told of its connection.
const TELL: &str = "read line && \
    echo $PROTO $TCPREMOTEIP $TCPREMOTEPORT $TCPLOCALIP $TCPLOCALPORT $REMOTE_ADDR $REMOTE_PORT";

/// What [`TELL`] says of a connection from port `remote` to port `local`.
fn told(remote: u16, local: u16) -> String {
    format!("TCP 127.0.0.1 {remote} 127.0.0.1 {local} 127.0.0.1 {remote}\n")
}

#[track_caller]
fn read_all(mut from: impl Read) -> String {
    let mut text = String::new();
    from.read_to_string(&mut text).unwrap();
    text
}

#[track_caller]
fn stop(process: &mut Process) {
    process.signal(Signal::SIGTERM);
    assert_ends_well(process);
}

#[track_caller]
fn assert_ends_well(process: &mut Process) {
    let (status, log) = process.finish();
    assert_eq!(status.code(), Some(0), "{log}");
}

fn fdaccept(arguments: &[&str]) -> Process {
    Process::start(program("fdaccept").args(arguments))
}

/// A connection over TCP: the client, its server side, and the ports of the two.
fn tcp_connection() -> (TcpStream, TcpStream, u16, u16) {
    let listener = TcpListener::bind(ADDRESS).unwrap();
    let local = listener.local_addr().unwrap().port();
    let client = connect(local);
    let remote = client.local_addr().unwrap().port();
    (client, listener.accept().unwrap().0, remote, local)
}

// The workers of examples/.

/// The examples that can be run here: the command line of each.
fn workers() -> Vec<Vec<PathBuf>> {
    let python = python_worker().map(Vec::from);
    let rust = rust_worker().map(|compiled| vec![compiled]);
    [python, rust].into_iter().flatten().collect()
}

fn start_worker(worker: &[PathBuf], arguments: &[&str]) -> Process {
    let mut command = Command::new(&worker[0]);
    command.args(&worker[1..]).args(arguments);
    Process::start(command.stdin(Stdio::null()).stdout(Stdio::piped()))
}

/// Expects that a worker ends well, and has printed nothing.
#[track_caller]
fn assert_ends_quietly(worker: &mut Process) {
    let (status, log) = worker.finish();
    assert_eq!((status.code(), log.as_str()), (Some(0), ""));
    assert_eq!(read_all(worker.child().stdout.take().unwrap()), "");
}

#[track_caller]
fn assert_echoes(port: u16) {
    for request in ["one", "two"] {
        assert_eq!(exchange(port, request.as_bytes()), request.as_bytes());
    }
}

/// Expects that the connection is being served: a line comes back.
#[track_caller]
fn assert_answers(mut client: &TcpStream) {
    client.write_all(b"hello\n").unwrap();
    assert_eq!(read_line(client), "hello");
}

#[test]
fn a_worker_takes_connections_from_the_queue_of_a_name() {
    let names = Names::new();
    for worker in workers() {
        for name in [&names.path(), &names.abstract_name()] {
            let mut acceptor = fdaccept(&["--bind", name, ADDRESS]);
            let port = acceptor.port();
            let mut worker = start_worker(&worker, &[name]);
            assert_echoes(port);
            // The end of the queue is its own.
            stop(&mut acceptor);
            assert_ends_quietly(&mut worker);
        }
    }
}

#[test]
fn two_workers_share_the_queue_of_a_name() {
    let names = Names::new();
    let name = &names.path();
    for worker in workers() {
        let mut acceptor = fdaccept(&["--bind", name, ADDRESS]);
        let port = acceptor.port();
        let mut two = [(); 2].map(|()| start_worker(&worker, &[name]));
        let clients = [connect(port), connect(port)];
        clients.iter().for_each(|client| assert_answers(client));
        drop(clients);
        stop(&mut acceptor);
        two.iter_mut()
            .for_each(|worker| assert_ends_quietly(worker));
    }
}

#[test]
fn a_worker_takes_connections_at_a_name_of_its_own() {
    let names = Names::new();
    for worker in workers() {
        for name in [&names.path(), &names.abstract_name()] {
            let mut worker = start_worker(&worker, &["--bind", name]);
            let mut acceptor = fdaccept(&["--connect", name, ADDRESS]);
            assert_echoes(acceptor.port());
            stop(&mut acceptor);
            assert!(worker.is_running());
            worker.signal(Signal::SIGTERM);
            assert_ends_quietly(&mut worker);
            assert!(!Path::new(name).exists());
        }
    }
}

#[test]
fn a_worker_that_is_told_to_stop_finishes_its_connection_and_takes_no_other() {
    let names = Names::new();
    let name = &names.path();
    for worker in workers() {
        let mut acceptor = fdaccept(&["--bind", name, ADDRESS]);
        let port = acceptor.port();
        let mut first = start_worker(&worker, &[name]);
        let client = connect(port);
        assert_answers(&client);
        let waiting = connect(port);
        // The queue is given up a moment after the signal was sent.
        let sockets = || {
            let open = descriptors(first.pid());
            open.iter()
                .filter(|(_, what)| what.starts_with("socket:"))
                .count()
        };
        let before = sockets();
        first.signal(Signal::SIGTERM);
        until("the queue is given up", || sockets() < before);
        assert_answers(&client);
        drop(client);
        assert_ends_quietly(&mut first);
        // What it did not take is there for the next one.
        let mut second = start_worker(&worker, &[name]);
        assert_answers(&waiting);
        drop(waiting);
        stop(&mut acceptor);
        assert_ends_quietly(&mut second);
    }
}

#[test]
fn a_worker_that_waits_for_a_connection_stops_at_once() {
    let names = Names::new();
    let name = &names.path();
    for worker in workers() {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let mut acceptor = fdaccept(&["--bind", name, ADDRESS]);
            let port = acceptor.port();
            let mut worker = start_worker(&worker, &[name]);
            assert_echoes(port);
            worker.signal(signal);
            assert_ends_quietly(&mut worker);
            stop(&mut acceptor);
        }
    }
}

#[test]
fn workers_that_stop_amid_the_work_lose_no_connection() {
    let names = Names::new();
    let name = &names.path();
    for worker in workers() {
        let mut acceptor = fdaccept(&["--bind", name, ADDRESS]);
        let port = acceptor.port();
        let mut pool = program("fdpool");
        let mut pool = Process::start(pool.args(["--once", "--connect", name, "1", "--", "cat"]));
        for round in 0..5 {
            let mut worker = start_worker(&worker, &[name]);
            let is_stopped = AtomicBool::new(false);
            std::thread::scope(|scope| {
                for number in 0..2 {
                    let is_stopped = &is_stopped;
                    scope.spawn(move || {
                        let deadline = Instant::now() + DEADLINE;
                        while !is_stopped.load(Ordering::SeqCst) && Instant::now() < deadline {
                            let request = format!("{round} {number}").into_bytes();
                            assert_eq!(exchange(port, &request), request);
                        }
                    });
                }
                // It has the queue, and is told to leave it amid the work.
                until("a worker with a queue", || minds_term(&worker));
                worker.signal(Signal::SIGTERM);
                worker.wait();
                is_stopped.store(true, Ordering::SeqCst);
            });
            assert_ends_quietly(&mut worker);
        }
        stop(&mut acceptor);
        assert_ends_well(&mut pool);
    }
}

/// Whether a worker catches TERM, or waits for it, which it does once it has its queue. Before it
/// is the worker it may have more signals blocked, also as a shell that starts another program.
fn minds_term(worker: &Process) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid()));
    let status = status.unwrap_or_default();
    let has = |set: &str, signal: Signal| {
        let set = status.lines().find_map(|line| line.strip_prefix(set));
        let set = u64::from_str_radix(set.unwrap_or("0").trim(), 16).unwrap();
        set & (1 << (signal as u32 - 1)) != 0
    };
    let waits = has("SigBlk:", Signal::SIGTERM) && !has("SigBlk:", Signal::SIGCHLD);
    waits || has("SigCgt:", Signal::SIGTERM)
}

#[test]
fn a_worker_closes_what_is_no_connection_and_goes_on() {
    let names = Names::new();
    let name = &names.path();
    for worker in workers() {
        let mut worker = start_worker(&worker, &["--bind", name]);
        until("the name", || Path::new(name).exists());
        let sender = UnixDatagram::unbound().unwrap();
        until("the worker", || sender.connect(name).is_ok());
        let serve = || {
            let (mut client, server, ..) = tcp_connection();
            fdtools::queue::send(&sender, b"\0", &[server.as_fd()]).unwrap();
            drop(server);
            client.write_all(b"hello").unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(read_all(client), "hello");
        };
        serve();
        // What else a worker has open comes and goes.
        let sockets = |pid| {
            let open = descriptors(pid).into_iter();
            open.filter(|(_, what)| what.starts_with("socket:")).count()
        };
        let pid = worker.pid();
        assert_eq!(sockets(pid), 1);
        let (mut client, server, ..) = tcp_connection();
        let two = [server.as_fd(), server.as_fd()];
        fdtools::queue::send(&sender, b"two", &two).unwrap();
        fdtools::queue::send(&sender, b"none", &[]).unwrap();
        fdtools::queue::send(&sender, b"", &[]).unwrap();
        drop(server);
        // The last copy is closed, so this is the end.
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        serve();
        assert_eq!(sockets(pid), 1);
        worker.signal(Signal::SIGTERM);
        assert_ends_quietly(&mut worker);
    }
}

// Senders.

#[test]
fn the_smallest_sender_feeds_fdpool() {
    let Some(sender) = example("sender") else {
        return;
    };
    let names = Names::new();
    let name = names.path();
    let answer = "read line && echo \"$line from $TCPREMOTEPORT\"";
    let mut pool = program("fdpool");
    pool.args(["--bind", &name, "2", "--", "sh", "-c", answer]);
    let mut pool = Process::start(&mut pool);
    until("the name", || Path::new(&name).exists());
    let mut sender = Process::start(Command::new(sender).args(["0", &name]));
    let port = sender.port();
    for _ in 0..20 {
        let mut client = connect(port);
        let remote = client.local_addr().unwrap().port();
        client.write_all(b"hello\n").unwrap();
        assert_eq!(read_all(client), format!("hello from {remote}\n"));
    }
    sender.signal(Signal::SIGTERM);
    sender.wait();
    stop(&mut pool);
}

/// Connects to itself, sends the server side of that connection to a name in one message with a
/// payload, and prints the two ports and what the client then gets.
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

fn sender(python: &Path, name: &str, payload: &str) -> Command {
    let mut command = Command::new(python);
    command.args(["-c", SENDER, name, payload]);
    command.stdin(Stdio::null());
    command
}

/// Splits what a sender prints into the client's port, the server's, and the answer.
#[track_caller]
fn sent(output: &str) -> (u16, u16, String) {
    let (ports, answer) = output.split_once('\n').unwrap();
    let (remote, local) = ports.split_once(' ').unwrap();
    (
        remote.parse().unwrap(),
        local.parse().unwrap(),
        answer.to_owned(),
    )
}

/// Waits until somebody has bound a name.
#[track_caller]
fn await_owner(name: &str) {
    let name = fdtools::queue::name::Name::parse(name.as_ref()).unwrap();
    let trust = fdtools::queue::trust::Trust::us_and(&[]);
    until("the owner of the name", || {
        fdtools::queue::Sender::connect(&name, &trust).is_ok()
    });
}

#[test]
fn python_senders_send_to_fdpool_all_at_once() {
    let Some(python) = peer("python3") else {
        return;
    };
    let names = Names::new();
    for name in [&names.path(), &names.abstract_name()] {
        let mut pool = program("fdpool");
        let mut pool = Process::start(pool.args(["--bind", name, "2", "--", "sh", "-c", TELL]));
        await_owner(name);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let (status, output, log) = run(&mut sender(&python, name, r"FDTOOLS=1\n"));
                    assert_eq!(status, Some(0), "{log}");
                    let (remote, local, answer) = sent(&output);
                    assert_eq!(answer, told(remote, local));
                });
            }
        });
        stop(&mut pool);
    }
}

#[test]
fn a_python_sender_sends_to_fdrecv() {
    let Some(python) = peer("python3") else {
        return;
    };
    let names = Names::new();
    for name in [&names.path(), &names.abstract_name()] {
        let mut handler = program("fdrecv");
        let mut handler = Process::start(handler.args(["--bind", name, "--", "cat"]));
        await_owner(name);
        let (status, output, log) = run(&mut sender(&python, name, r"FDTOOLS=1\n"));
        assert_eq!(status, Some(0), "{log}");
        assert_eq!(sent(&output).2, "hello\n");
        assert_ends_well(&mut handler);
    }
}

#[test]
fn what_a_python_sender_says_of_a_connection_reaches_the_handler() {
    let Some(python) = peer("python3") else {
        return;
    };
    let names = Names::new();
    let name = &names.path();
    let mut handler = program("fdrecv");
    let mut handler = Process::start(handler.args(["--bind", name, "--", "sh", "-c", TELL]));
    await_owner(name);
    let payload = r"FDTOOLS=1\nPROTO=TCP\nTCPREMOTEIP=192.0.2.7\nTCPREMOTEPORT=7\nTCPLOCALIP=::1\nTCPLOCALPORT=8\n";
    let (status, output, log) = run(&mut sender(&python, name, payload));
    assert_eq!(status, Some(0), "{log}");
    assert_eq!(sent(&output).2, "TCP 192.0.2.7 7 ::1 8 192.0.2.7 7\n");
    assert_ends_well(&mut handler);
}

/// A message that says nothing which fdtools understands: the handler is told what the descriptor
/// itself says.
#[track_caller]
fn assert_is_a_bare_connection(payload: &str) {
    let Some(python) = peer("python3") else {
        return;
    };
    let names = Names::new();
    let name = &names.path();
    let mut pool = program("fdpool");
    let mut pool = Process::start(pool.args(["--bind", name, "1", "--", "sh", "-c", TELL]));
    await_owner(name);
    let (status, output, log) = run(&mut sender(&python, name, payload));
    assert_eq!(status, Some(0), "{log}");
    let (remote, local, answer) = sent(&output);
    assert_eq!(answer, told(remote, local));
    stop(&mut pool);
}

#[test]
fn a_message_of_flingfd_is_a_bare_connection() {
    // One byte, whatever it is.
    assert_is_a_bare_connection(r"\x14");
    assert_is_a_bare_connection("x");
}

#[test]
fn a_message_of_nc_is_a_bare_connection() {
    assert_is_a_bare_connection(r"\x00");
}

#[test]
fn a_message_of_the_tcl_original_is_a_bare_connection() {
    // What it says is not believed: the descriptor knows better.
    assert_is_a_bare_connection(r"192.0.2.7 4711\x00");
}

#[test]
fn messages_of_other_tools_on_a_stream_socket_are_one_connection_each() {
    let payloads: [&[u8]; 5] = [
        b"\0",
        b"192.0.2.7 4711\0",
        b"x",
        b"FDTOOLS=1\n",
        b"192.0.2.8 4712\0",
    ];
    for kind in [SockType::Stream, SockType::SeqPacket] {
        let (write_end, read_end) = socket_pair(kind);
        let connections = payloads.map(|payload| {
            let (mut client, server, remote, local) = tcp_connection();
            client.write_all(b"hello\n").unwrap();
            fdtools::queue::send(&write_end, payload, &[server.as_fd()]).unwrap();
            (client, remote, local)
        });
        drop(write_end);
        let mut pool = program("fdpool");
        pool.args(["2", "--", "sh", "-c", TELL]);
        let mut pool = Process::start(pool.stdin(read_end));
        for (client, remote, local) in connections {
            assert_eq!(read_all(client), told(remote, local));
        }
        assert_ends_well(&mut pool);
    }
}

/// Whether the installed nc is the one of OpenBSD, which can pass a connection on.
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
    let Some(nc) = nc_that_passes() else {
        return;
    };
    let listener = TcpListener::bind(ADDRESS).unwrap();
    let local = listener.local_addr().unwrap().port();
    let (write_end, read_end) = socket_pair(SockType::Stream);
    let mut handler = program("fdrecv");
    handler.args(["--", "sh", "-c", TELL]);
    let mut handler = Process::start(handler.stdin(read_end));
    let mut nc = Command::new(nc);
    nc.args(["-F", "127.0.0.1", &local.to_string()]);
    let mut nc = Process::start(nc.stdin(Stdio::null()).stdout(write_end));
    let (mut server, peer) = listener.accept().unwrap();
    server.write_all(b"hello\n").unwrap();
    server.set_read_timeout(Some(DEADLINE)).unwrap();
    // Here it is nc's end that is passed on and served.
    assert_eq!(read_all(server), told(local, peer.port()));
    assert_ends_well(&mut nc);
    assert_ends_well(&mut handler);
}

// Receivers in Python.

/// Gets its side of a queue in one of the ways there are, takes one connection from it, and
/// answers the client when the payload is exactly what it should be.
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

/// A receiver, on this standard input.
fn receiver(python: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(python);
    command.arg("-c").arg(RECEIVER).args(arguments);
    command.stdin(Stdio::null());
    command
}

#[track_caller]
fn assert_received(port: u16, receiver: &mut Process) {
    let client = connect(port);
    assert_ends_well(receiver);
    assert_eq!(read_all(client), "as it should be\n");
}

#[test]
fn fdaccept_sends_to_a_python_receiver_through_a_socket_on_standard_output() {
    let Some(python) = peer("python3") else {
        return;
    };
    // A stream socket is what ssh's ProxyUseFdpass gives.
    for kind in [SockType::Stream, SockType::SeqPacket, SockType::Datagram] {
        let (write_end, read_end) = socket_pair(kind);
        let mut acceptor = Process::start(program("fdaccept").arg(ADDRESS).stdout(write_end));
        let mut receiver =
            Process::start(receiver(&python, &["inherited"]).stdin(Stdio::from(read_end)));
        assert_received(acceptor.port(), &mut receiver);
    }
}

#[test]
fn fdaccept_sends_to_a_python_receiver_in_a_chain() {
    let Some(python) = peer("python3") else {
        return;
    };
    let mut chain = program("fdaccept");
    chain.args([ADDRESS, "--"]).arg(python);
    let mut chain = Process::start(chain.args(["-c", RECEIVER, "inherited"]));
    let port = chain.port();
    assert_received(port, &mut chain);
}

#[test]
fn fdaccept_gives_its_queue_to_a_python_receiver_for_a_ticket() {
    let Some(python) = peer("python3") else {
        return;
    };
    let (reader, writer) = pipe().unwrap();
    let mut acceptor = Process::start(program("fdaccept").arg(ADDRESS).stdout(writer));
    let mut receiver = Process::start(receiver(&python, &["ticket"]).stdin(reader));
    assert_received(acceptor.port(), &mut receiver);
    assert_ends_well(&mut acceptor);
}

#[test]
fn fdaccept_gives_its_queue_to_a_python_receiver_at_its_name() {
    let Some(python) = peer("python3") else {
        return;
    };
    let names = Names::new();
    for name in [&names.path(), &names.abstract_name()] {
        let mut acceptor = fdaccept(&["--bind", name, ADDRESS]);
        let port = acceptor.port();
        let mut receiver = Process::start(&mut receiver(&python, &["connect", name]));
        assert_received(port, &mut receiver);
        stop(&mut acceptor);
    }
}

#[test]
fn fdaccept_sends_to_the_name_of_a_python_receiver() {
    let Some(python) = peer("python3") else {
        return;
    };
    let names = Names::new();
    for name in [&names.path(), &names.abstract_name()] {
        let mut receiver = Process::start(&mut receiver(&python, &["bind", name]));
        let mut acceptor = fdaccept(&["--connect", name, ADDRESS]);
        assert_received(acceptor.port(), &mut receiver);
        stop(&mut acceptor);
    }
}

#[test]
fn fdaccept_tells_a_python_receiver_who_is_at_a_unix_socket() {
    let Some(python) = peer("python3") else {
        return;
    };
    let names = Names::new();
    let name = &names.path();
    let listener = &names.directory.path().join("listener");
    let mut acceptor = program("fdaccept");
    let mut acceptor = Process::start(acceptor.args(["--bind", name]).arg(listener));
    acceptor.listening();
    let mut receiver = Process::start(&mut receiver(&python, &["connect", name]));
    let client = connect_unix(listener);
    assert_ends_well(&mut receiver);
    assert_eq!(read_all(client), "as it should be\n");
    stop(&mut acceptor);
}

#[test]
fn fdaccept_sends_to_a_receiver_that_reads_one_byte_as_flingfd_does() {
    let Some(python) = peer("python3") else {
        return;
    };
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
    let name = &names.path();
    let mut receiver = Command::new(python);
    let mut receiver = Process::start(receiver.args(["-c", text, name]).stdin(Stdio::null()));
    let mut acceptor = fdaccept(&["--connect", name, ADDRESS]);
    let port = acceptor.port();
    for _ in 0..2 {
        assert_eq!(read_line(&connect(port)), "hello");
    }
    assert_ends_well(&mut receiver);
    stop(&mut acceptor);
}
