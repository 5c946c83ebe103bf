//! Queues that are unlike the usual ones: small, long, with long messages, or used before.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use fdtools::queue::message::Info;
use fdtools::queue::{Received, Receiver};
use nix::sys::socket::{SockType, UnixAddr, bind, connect, setsockopt, sockopt};

use super::every_form::*;
use super::*;

#[test]
fn a_queue_with_a_small_buffer_is_limited() {
    for limit in 1..=3 {
        assert_limit(Form::SmallQueueFd, limit);
    }
}

#[test]
fn a_queue_with_a_small_buffer_loses_nothing() {
    nothing_is_lost_under_load(Form::SmallQueueFd);
    bursts_are_taken(Form::SmallQueueFd);
    consumers_come_late(Form::SmallQueueFd);
}

#[test]
fn a_queue_of_datagrams_is_limited() {
    assert_limit(Form::QueueFd(SockType::Datagram), 3);
}

#[test]
fn a_stream_at_a_descriptor_and_packets_on_standard_output_are_limited() {
    assert_limit(Form::QueueFd(SockType::Stream), 2);
    assert_limit(Form::Output(SockType::SeqPacket), 2);
}

/// A client of a Unix socket with a name of its own, which makes its message long.
fn unix_client(own: &Path, server: &str) -> UnixStream {
    let socket = unix_socket(SockType::Stream);
    bind(socket.as_raw_fd(), &UnixAddr::new(own).unwrap()).unwrap();
    connect(socket.as_raw_fd(), &UnixAddr::new(server).unwrap()).unwrap();
    let stream = UnixStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

#[test]
fn connections_count_alike_however_much_is_said_of_them() {
    const LIMIT: usize = 10;
    let names = Names::new();
    let server = names.text("s");
    let mut site = Site::paused(Form::Bind, 1, &["--queue", "10", &server]);
    // A name can have 107 bytes.
    let own = |number: usize| {
        let room = 107 - names.directory.path().as_os_str().len() - 4;
        names.file(&format!("{number:02}{}", "x".repeat(room * number / 20)))
    };
    let tcp = site.clients(20);
    let unix = (0..20).map(|number| Client(unix_client(&own(number), &server)));
    let unix: Vec<_> = unix.collect();
    site.stays_told(told(LIMIT, LIMIT, 0));
    tcp.iter().for_each(Client::end);
    unix.iter().for_each(Client::end);
    let mut random = Random(2);
    let mut taken = 0;
    while taken < 40 {
        site.resume();
        random.pause(3000);
        site.pause();
        taken = site.ask().taken.unwrap();
        let accepted = 40.min(taken + LIMIT);
        site.until_told(told(accepted, accepted, taken));
    }
    site.resume();
    for client in tcp {
        assert_eq!(client.rest(), "");
    }
    for client in unix {
        assert_eq!(client.rest(), "");
    }
}

/// `fdaccept --queue LIMIT` whose queue has 3 messages of an earlier owner; and their clients.
fn with_what_an_earlier_owner_left(limit: usize) -> (Site, Vec<UnixStream>) {
    let mut site = Site::start(Form::QueueFd(SockType::SeqPacket), 1, &[]);
    site.acceptor.slay();
    let (write_end, read_end) = socket_pair(SockType::SeqPacket);
    let mut clients = Vec::new();
    for _ in 0..3 {
        let (client, connection) = UnixStream::pair().unwrap();
        let payload = Info::new().encode();
        fdtools::queue::try_send(&write_end, &payload, &[connection.as_fd()]).unwrap();
        clients.push(client);
    }
    let limit = ["--queue", &limit.to_string()];
    site.acceptor = with_queue_fd(write_end).args(limit).start();
    site.port = site.acceptor.port;
    site.read_end = Some(read_end);
    (site, clients)
}

#[test]
fn what_an_earlier_owner_left_in_the_queue_counts_for_the_limit() {
    let (mut site, _left) = with_what_an_earlier_owner_left(5);
    let _clients = site.clients(6);
    site.stays_told(told(2, 2, 0));
}

#[test]
fn what_an_earlier_owner_left_in_the_queue_is_not_told_as_taken() {
    let (mut site, _left) = with_what_an_earlier_owner_left(5);
    let _clients = site.clients(2);
    site.until_told(told(2, 2, 0));
    let receive = |site: &Site| {
        fdtools::queue::receive(site.read_end.as_ref().unwrap()).unwrap();
    };
    for _ in 0..3 {
        receive(&site);
    }
    assert_eq!(site.ask(), told(2, 2, 0));
    receive(&site);
    assert_eq!(site.ask(), told(2, 2, 1));
}

/// fdaccept at `server` with these options and packets on its standard output; and their read end.
fn into_packets(options: &[&str], server: &str, buffer: Option<usize>) -> (Process, OwnedFd) {
    let (write_end, read_end) = socket_pair(SockType::SeqPacket);
    if let Some(buffer) = buffer {
        setsockopt(&write_end, sockopt::SndBufForce, &buffer).unwrap();
    }
    let mut command = program("fdaccept");
    let mut process = command.args(options).arg(server).stdout(write_end).start();
    process.listening();
    (process, read_end)
}

/// Other tests have fewer in a queue than fdaccept can remember.
#[test]
fn a_limit_of_some_thousands_is_kept() {
    needs!(root());
    const LIMIT: usize = 4500;
    let names = Names::new();
    let server = names.text("s");
    let options = ["--queue", &LIMIT.to_string()];
    let (mut process, _read_end) = into_packets(&options, &server, Some(16 << 20));
    // No client waits to be served, so that few are open here.
    for _ in 0..LIMIT + 100 {
        drop(UnixStream::connect(&server).unwrap());
    }
    let mut ask = || Told::read(&process.counters());
    until("a full queue", || ask().accepted >= LIMIT);
    stays("a full queue", || {
        assert_eq!(ask(), told(LIMIT, LIMIT, 0));
        true
    });
}

/// The kernel tells that a connection was taken a moment before its memory is free. A client that
/// waits then must not wait for ever.
#[test]
fn the_room_that_one_leaves_is_seen_every_time() {
    const EACH: usize = 20_000;
    let names = Names::new();
    let server = names.text("s");
    let (mut process, read_end) = into_packets(&["--queue", "1"], &server, None);
    let receiver = Receiver::from_socket(read_end).unwrap();
    let take_all = move || while !matches!(receiver.receive().unwrap(), Received::End) {};
    let consumer = std::thread::spawn(take_all);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..EACH {
                    assert_eq!(Client::connect_unix(&server).rest(), "");
                }
            });
        }
    });
    let log = process.stop();
    let all = 3 * EACH;
    assert_eq!(Told::read(log.lines().last().unwrap()), told(all, all, all));
    consumer.join().unwrap();
}

#[test]
fn what_one_leaves_in_the_backlog_another_accepts() {
    let (listener, port) = listener();
    let listener = OwnedFd::from(listener);
    let start = |limit: &str| {
        let (write_end, read_end) = socket_pair(SockType::SeqPacket);
        let mut command = program("fdaccept");
        command.args(["--queue", limit, "fd:0"]).stdout(write_end);
        let mut process = command.stdin(listener.try_clone().unwrap()).start();
        process.listening();
        (process, read_end)
    };
    let (_full, _nobody) = start("2");
    let (_other, read_end) = start("1");
    let _pool = Pool::plain().stdin(read_end).slots(2, ["cat"]).start();
    let crowd: Vec<_> = (0..20).map(|_| Client::connect(port)).collect();
    crowd.iter().for_each(Client::end);
    until("all but two", || {
        crowd.iter().filter(|client| client.is_answered()).count() >= 18
    });
}
