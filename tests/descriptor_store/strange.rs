//! Kept descriptors that are not what their names say.

use std::fs::File;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use nix::sys::socket::SockType;

use super::*;

/// That a client is served though the manager keeps `no_queue` as these ends of the queue.
#[track_caller]
fn assert_queue_is_replaced(no_queue: fn() -> OwnedFd, ends: &[&str]) {
    let keeper = Keeper::new();
    let port = keeper.crashed();
    for end in ends {
        keeper.replace(end, no_queue());
    }
    let mut process = keeper.again(port);
    keeper.expect_kept(1);
    let _pool = keeper.serve();
    let answer = try_exchange(port, b"hello").unwrap_or_default();
    assert_eq!(answer, b"hello", "{ends:?}: {}", process.log());
}

#[test]
fn a_queue_that_is_none_is_replaced() {
    let no_queues: [fn() -> OwnedFd; 4] = [
        || File::open("/dev/null").unwrap().into(),
        || TcpListener::bind(ADDRESS).unwrap().into(),
        || UdpSocket::bind(ADDRESS).unwrap().into(),
        || std::io::pipe().unwrap().1.into(),
    ];
    for no_queue in no_queues {
        for ends in [&[WRITE_END][..], &[READ_END], &[WRITE_END, READ_END]] {
            assert_queue_is_replaced(no_queue, ends);
        }
    }
}

#[test]
fn a_socket_without_another_side_is_no_queue() {
    assert_queue_is_replaced(|| UnixDatagram::unbound().unwrap().into(), &[WRITE_END]);
}

#[test]
fn a_read_end_that_is_none_is_replaced_also_where_a_consumer_has_the_real_one() {
    let keeper = Keeper::new();
    let (process, port) = keeper.first();
    let _receiver = keeper.receiver();
    crash(process);
    keeper.replace(READ_END, File::open("/dev/null").unwrap());
    let mut process = keeper.again(port);
    if let Err(error) = keeper.try_receiver() {
        panic!("{error}: {}", process.log());
    }
}

#[test]
fn a_listener_that_is_none_is_named() {
    let name = "fdtools-listener-1-0-127.0.0.1%3a0";
    let listener = TcpListener::bind(ADDRESS).unwrap();
    let connection = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let packets = socket_pair(SockType::SeqPacket).0;
    let kinds: [(OwnedFd, &str); 5] = [
        (connection.into(), "a TCP connection"),
        (File::open("/dev/null").unwrap().into(), "/dev/null"),
        (UdpSocket::bind(ADDRESS).unwrap().into(), "a UDP socket"),
        (std::io::pipe().unwrap().0.into(), "a pipe"),
        (packets, "a Unix seqpacket socket"),
    ];
    for (descriptor, what) in kinds {
        let keeper = Keeper::new();
        keeper.put(name, descriptor);
        let log = keeper.start(&[ADDRESS]).expect_end(2);
        let expected = format!("fdaccept: what was kept of {ADDRESS} is {what}");
        assert!(log.contains(&expected), "{log}");
    }
}

#[test]
fn names_of_ours_that_mean_nothing_are_given_up() {
    let keeper = Keeper::new();
    for name in ["fdtools-listener-", "fdtools-listener-9-x"] {
        keeper.put(name, File::open("/dev/null").unwrap());
    }
    let (_process, port) = keeper.first();
    keeper.expect_kept(1);
    keeper.serves(port);
}

#[test]
fn what_is_kept_twice_is_given_up_but_for_one() {
    for end in [WRITE_END, READ_END] {
        let keeper = Keeper::new();
        let (port, crowd) = keeper.crashed_with(3);
        keeper.put(end, socket_pair(SockType::SeqPacket).0);
        for _ in 0..2 {
            let process = keeper.again(port);
            keeper.expect_kept(1);
            crash(process);
        }
        let _process = keeper.start(&[ADDRESS]);
        keeper.serve_once(crowd, 3);
    }
}

#[test]
fn what_is_not_open_is_a_usage_error() {
    let keeper = Keeper::new();
    let text = format!(
        "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES={WRITE_END} \
         exec fdaccept --store --bind ./queue {ADDRESS} 3<&-"
    );
    let mut command = sh(&text);
    command.current_dir(&keeper.names.directory);
    command.env("NOTIFY_SOCKET", keeper.file("notify"));
    usage::refuses(launch(&mut command), "descriptor 3 is not open");
}
