//! Receivers that know no lease, and senders that are not fdaccept.

use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use fdtools::queue;
use fdtools::queue::message::Info;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{pipe, pipe2};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

use super::*;

/// A receiver with so much room for descriptors: what it got, and whether there was more.
fn receive_raw<const ROOM: usize>(receiver: &Receiver) -> (Vec<OwnedFd>, bool) {
    #[repr(align(16))]
    struct Room<const ROOM: usize>([MaybeUninit<u8>; ROOM]);
    let mut room = Room([MaybeUninit::uninit(); ROOM]);
    let mut control = RecvAncillaryBuffer::new(&mut room.0);
    let mut payload = [0; 4096];
    let mut buffers = [IoSliceMut::new(&mut payload)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(receiver.as_fd(), &mut buffers, &mut control, flags).unwrap();
    let mut open = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = part {
            open.extend(descriptors);
        }
    }
    (open, received.flags.contains(ReturnFlags::CTRUNC))
}

/// The exact room for one descriptor: what Python's recv_fds(…, 1) has.
const ROOM_FOR_ONE: usize = size_of::<nix::libc::cmsghdr>() + size_of::<i32>();

#[test]
fn a_receiver_with_room_for_one_descriptor_gets_the_connection() {
    let acceptor = limited(&["--max", "1"]);
    let receiver = acceptor.receiver();
    for _ in 0..5 {
        let client = acceptor.client();
        let (mut open, cut) = receive_raw::<ROOM_FOR_ONE>(&receiver);
        assert_eq!((open.len(), cut), (1, true));
        let mut connection = TcpStream::from(open.pop().unwrap());
        connection.write_all(b"served").unwrap();
        drop(connection);
        // Nobody has the lease, so the next client is let in.
        assert_eq!(client.rest(), "served");
    }
}

/// A receiver in Python: connects to the queue of `acceptor`, and goes on as `text` says.
fn in_python(acceptor: &Acceptor, text: &str) -> Option<Process> {
    let text = format!(
        "import os, socket, sys
door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
door.connect(sys.argv[1])
queue = socket.socket(fileno=socket.recv_fds(door, 4096, 1)[1][0])
{text}"
    );
    let mut command = Command::new(python()?);
    command.args(["-c", &text, acceptor.name()]);
    Some(command.stdin(Stdio::piped()).start())
}

#[test]
fn a_receiver_that_keeps_the_lease_without_knowing_it_frees_it_when_it_ends() {
    let acceptor = limited(&["--max-per-source", "9"]);
    let text = "_, descriptors, _, _ = socket.recv_fds(queue, 4096, 9)
os.write(descriptors[0], b'served')
os.close(descriptors[0])
queue.close()
sys.stdin.read()
";
    let mut other = needs!(in_python(&acceptor, text));
    assert_eq!(acceptor.client().rest(), "served");
    let receiver = acceptor.receiver();
    are_held(1, || acceptor.count(&receiver));
    drop(other.child().stdin.take());
    other.expect_exit(0);
    none_is_held(|| acceptor.count(&receiver));
}

#[test]
fn a_receiver_in_python_with_room_for_one_descriptor_serves_and_is_not_counted() {
    let acceptor = limited(&["--max", "1"]);
    let text = "kept = []
while True:
    _, descriptors, _, _ = socket.recv_fds(queue, 4096, 1)
    if not descriptors: break
    os.write(descriptors[0], b'served\\n')
    kept.append(descriptors[0])
";
    let _other = needs!(in_python(&acceptor, text));
    // All are in service at once.
    let clients = acceptor.clients(5);
    for client in &clients {
        assert_eq!(client.line(), "served");
    }
}

// Other senders.

fn consumers(handler: &[&'static str]) -> [Vec<&'static str>; 2] {
    let heads: [&[_]; 2] = [&["fdrecv", "--"], &["fdpool", "1", "--"]];
    heads.map(|head| [head, handler].concat())
}

/// A consumer that is sent `payload` with a connection and further descriptors: its process, its
/// queue, and the client of the connection.
fn send_to(
    words: &[&str],
    payload: &[u8],
    further: &[OwnedFd],
) -> (Process, Queue, Client<UnixStream>) {
    let queue = Queue::new();
    let mut command = program(words[0]);
    let process = command.args(&words[1..]).stdin(queue.input()).start();
    let (client, connection) = unix_pair();
    let mut all = vec![connection.as_fd()];
    all.extend(further.iter().map(AsFd::as_fd));
    queue::send(queue.write_end(), payload, &all).unwrap();
    (process, queue, client)
}

/// Checks that both consumers refuse a message of a connection and these descriptors, and serve
/// the next one.
#[track_caller]
fn assert_refused(payload: &[u8], further: impl Fn() -> Vec<OwnedFd>) {
    for words in consumers(&["echo", "served"]) {
        let further = further();
        let count = further.len() + 1;
        let (mut process, queue, client) = send_to(&words, payload, &further);
        drop(further);
        process.line(&format!(
            "a message came with {count} descriptors instead of one"
        ));
        assert_eq!(client.rest(), "");
        let (client, connection) = unix_pair();
        queue::send(queue.write_end(), payload, &[connection.as_fd()]).unwrap();
        drop(connection);
        assert_eq!(client.rest(), "served\n");
    }
}

#[test]
fn a_second_descriptor_that_is_no_pipe_is_refused() {
    let payload = Info::new().encode();
    assert_refused(&payload, || vec![UnixStream::pair().unwrap().0.into()]);
    assert_refused(&payload, || {
        vec![std::fs::File::open("/dev/null").unwrap().into()]
    });
}

#[test]
fn a_pipe_beside_a_connection_is_refused_from_a_sender_that_says_nothing_of_itself() {
    for payload in [&b"x"[..], b"127.0.0.1 80\0", b"FDTOOLS=2\n"] {
        assert_refused(payload, || vec![pipe().unwrap().1]);
    }
}

#[test]
fn a_third_descriptor_is_refused() {
    assert_refused(&Info::new().encode(), || {
        let (read_end, write_end) = pipe().unwrap();
        vec![write_end, read_end]
    });
}

#[test]
fn another_sender_can_have_leases_too() {
    for words in consumers(&["cat"]) {
        let (read_end, write_end) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let payload = Info::new().encode();
        let (_process, _queue, client) = send_to(&words, &payload, &[write_end]);
        client.expect_served();
        fcntl(&read_end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let has_ended = || nix::unistd::read(&read_end, &mut [0]) == Ok(0);
        stays("it is held", || !has_ended());
        client.end();
        until("the end of the lease", has_ended);
    }
}
