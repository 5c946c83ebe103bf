//! examples/forking.py, the worker that forks for each connection: how many it serves at once, what it
//! closes, and that it stops without losing a connection.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use crate::support::*;
use nix::sys::signal::Signal;
use nix::sys::socket::{MsgFlags, SockType, recv};
use rustix::event::PollFlags;

/// A queue, and where its connections come from.
struct Queue {
    listener: TcpListener,
    write_end: OwnedFd,
    read_end: OwnedFd,
}

impl Queue {
    fn new() -> Self {
        let (write_end, read_end) = socket_pair(SockType::SeqPacket);
        Self {
            listener: TcpListener::bind("127.0.0.1:0").unwrap(),
            write_end,
            read_end,
        }
    }

    /// A client whose connection is in the queue.
    fn client(&self) -> TcpStream {
        let client = connect(self.listener.local_addr().unwrap().port());
        let (connection, _) = self.listener.accept().unwrap();
        fdtools::queue::send(&self.write_end, b"FDTOOLS=1\n", &[connection.as_fd()]).unwrap();
        client
    }

    /// A worker that serves `room` at once, if there is Python.
    fn worker(&self, room: usize) -> Option<Process> {
        Some(Process::start(&mut self.command(room)?))
    }

    fn command(&self, room: usize) -> Option<Command> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/forking.py");
        let mut command = Command::new(python()?);
        command.arg(source).arg(room.to_string());
        // A handler that forgets to flush must not pass.
        command.env_remove("PYTHONUNBUFFERED");
        command.stdin(self.read_end.try_clone().unwrap());
        command.stdout(Stdio::null());
        Some(command)
    }

    /// Whether nothing waits.
    fn is_empty(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let peeked = recv(self.read_end.as_raw_fd(), &mut [0; 16], flags);
        peeked == Err(nix::errno::Errno::EAGAIN)
    }
}

/// Expects that somebody serves this client now.
#[track_caller]
fn greeted(client: &TcpStream) {
    let mut words = [0; "who are you?\n".len()];
    let mut client = client;
    client.read_exact(&mut words).unwrap();
    assert_eq!(&words, b"who are you?\n");
}

/// Says who it is and reads to the end. Returns the processes that served: the child and its worker.
#[track_caller]
fn served(mut client: &TcpStream) -> (String, String) {
    client.write_all(b"you\n").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    let words: Vec<_> = answer.split_whitespace().collect();
    let [
        "hello",
        "you,",
        "process",
        child,
        "of",
        "worker",
        worker,
        "serves",
        "you",
    ] = words[..]
    else {
        panic!("{answer:?}");
    };
    (child.to_owned(), worker.to_owned())
}

#[track_caller]
fn ends_quietly(worker: &mut Process) {
    let (status, log) = worker.finish();
    assert_eq!((status.code(), log.as_str()), (Some(0), ""));
}

#[test]
fn each_connection_has_a_child_and_no_more_than_room_at_once() {
    let queue = Queue::new();
    let Some(mut worker) = queue.worker(2) else {
        return;
    };
    let clients = [queue.client(), queue.client(), queue.client()];
    greeted(&clients[0]);
    greeted(&clients[1]);
    assert!(!queue.is_empty());
    assert!(!is_answered(&clients[2]));
    let mut seen = BTreeSet::from([served(&clients[0])]);
    // There is room again.
    greeted(&clients[2]);
    assert!(queue.is_empty());
    seen.extend([served(&clients[1]), served(&clients[2])]);
    let workers: BTreeSet<_> = seen.iter().map(|(_, worker)| worker.clone()).collect();
    assert_eq!(
        (seen.len(), workers),
        (3, BTreeSet::from([worker.pid().to_string()]))
    );
    drop(queue.write_end);
    ends_quietly(&mut worker);
}

#[test]
fn the_lease_is_held_until_the_child_has_ended() {
    let queue = Queue::new();
    let Some(mut worker) = queue.worker(1) else {
        return;
    };
    let client = connect(queue.listener.local_addr().unwrap().port());
    let (connection, _) = queue.listener.accept().unwrap();
    let (mut watched, lease) = std::io::pipe().unwrap();
    let both = [connection.as_fd(), lease.as_fd()];
    fdtools::queue::send(&queue.write_end, b"FDTOOLS=1\n", &both).unwrap();
    drop((connection, lease));
    greeted(&client);
    let now = poll::ready(watched.as_fd(), PollFlags::IN);
    assert!(now.is_empty(), "{now:?}");
    served(&client);
    // The end, not a byte.
    assert_eq!(watched.read(&mut [0]).unwrap(), 0);
    drop(queue.write_end);
    ends_quietly(&mut worker);
}

#[test]
fn what_is_no_connection_is_closed_and_the_worker_goes_on() {
    let queue = Queue::new();
    let Some(mut worker) = queue.worker(4) else {
        return;
    };
    greeted(&queue.client());
    // The queue; what else is open comes and goes.
    let sockets = |worker: &Process| {
        let open = descriptors(worker.pid()).into_iter();
        open.filter(|(_, what)| what.starts_with("socket:")).count()
    };
    until("the child has it alone", || sockets(&worker) == 1);
    let mut stranger = connect(queue.listener.local_addr().unwrap().port());
    let (connection, _) = queue.listener.accept().unwrap();
    let two = [connection.as_fd(), connection.as_fd()];
    let many = vec![connection.as_fd(); 100];
    for descriptors in [&two[..], &many, &[]] {
        fdtools::queue::send(&queue.write_end, b"x", descriptors).unwrap();
    }
    fdtools::queue::send(&queue.write_end, b"", &[]).unwrap();
    drop(connection);
    // The last copy is closed.
    assert_eq!(stranger.read(&mut [0]).unwrap(), 0);
    let client = queue.client();
    greeted(&client);
    served(&client);
    until("nothing is left open", || sockets(&worker) == 1);
    worker.signal(Signal::SIGTERM);
    ends_quietly(&mut worker);
}

#[test]
fn a_stop_waits_for_the_children_and_takes_no_further_connection() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let queue = Queue::new();
        let Some(mut first) = queue.worker(2) else {
            return;
        };
        let client = queue.client();
        greeted(&client);
        first.signal(signal);
        let has_queue = || {
            descriptors(first.pid())
                .iter()
                .any(|(number, _)| *number == 0)
        };
        until("the queue is given up", || !has_queue());
        let next = queue.client();
        let mut second = queue.worker(2).unwrap();
        greeted(&next);
        assert_eq!(served(&next).1, second.pid().to_string());
        assert_eq!(served(&client).1, first.pid().to_string());
        ends_quietly(&mut first);
        drop(queue.write_end);
        ends_quietly(&mut second);
    }
}

#[test]
fn workers_that_stop_amid_the_work_lose_no_connection() {
    const ROUNDS: usize = 50;
    const CLIENTS: usize = 4;
    let queue = Queue::new();
    let Some(mut worker) = queue.worker(2) else {
        return;
    };
    let mut random = Random(1);
    for _ in 0..ROUNDS {
        let first = queue.client();
        greeted(&first);
        let clients: Vec<_> = (0..CLIENTS).map(|_| queue.client()).collect();
        let next = queue.worker(2).unwrap();
        thread::scope(|scope| {
            for client in &clients {
                scope.spawn(|| {
                    greeted(client);
                    served(client)
                });
            }
            scope.spawn(|| served(&first));
            random.pause(20_000);
            worker.signal(Signal::SIGTERM);
        });
        ends_quietly(&mut worker);
        worker = next;
    }
    drop(queue.write_end);
    ends_quietly(&mut worker);
}

#[test]
fn it_says_that_it_is_alive_while_it_waits_and_while_children_serve() {
    let (queue, manager) = (Queue::new(), Manager::at_name());
    let mut command = needs!(queue.command(1));
    command.env("NOTIFY_SOCKET", &manager.name);
    let mut worker = command.env("WATCHDOG_USEC", OFTEN).start();
    manager.until_beats();
    let client = queue.client();
    greeted(&client);
    manager.until_beats();
    served(&client);
    manager.until_beats();
    drop(queue.write_end);
    ends_quietly(&mut worker);
}

#[test]
fn an_answer_arrives_whole_though_most_of_the_request_is_not_read() {
    let queue = Queue::new();
    let Some(mut worker) = queue.worker(1) else {
        return;
    };
    let client = queue.client();
    greeted(&client);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut request = b"you\n".to_vec();
            request.resize(1_000_000, b'?');
            (&client).write_all(&request).unwrap();
        });
        let mut answer = String::new();
        (&client).read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("hello you, "), "{answer}");
    });
    drop(client);
    worker.term();
    ends_quietly(&mut worker);
}
