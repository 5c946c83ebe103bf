//! `--when-full`: what becomes of clients that are too many.

use std::io::{Read, Write};
use std::time::Instant;

use super::*;

#[test]
fn when_full_close_resets_those_beyond_max() {
    let (acceptor, _pool) = served(&["--max", "1", "--when-full", "close"], 8);
    let first = acceptor.session();
    is_reset(acceptor.try_client());
    is_reset(acceptor.try_client_from([127, 0, 0, 2]));
    first.finish();
    eventually("room", || acceptor.try_session()).finish();
}

#[test]
fn when_full_wait_leaves_them_in_the_backlog_but_one_client_beyond_its_own_limit() {
    let options = ["--max", "2", "--max-per-source", "1", "--when-full", "wait"];
    let (acceptor, _pool) = served(&options, 8);
    let first = acceptor.session();
    is_reset(acceptor.try_client());
    let _second = Session::of(acceptor.client_from([127, 0, 0, 2]));
    let third = acceptor.client_from([127, 0, 0, 3]);
    is_left_waiting(&third);
    first.finish();
    Session::of(third).finish();
}

/// fdaccept that tells clients beyond `limit` these bytes of a file, its pool, and the first client.
fn full(limit: &str, text: &[u8]) -> (Acceptor, Pool, Session) {
    let options = [limit, "1", "--when-full", "./words"];
    let fdaccept = Fdaccept::bound().file("words", text).args(options);
    let acceptor = fdaccept.start();
    let pool = acceptor.pool(2);
    let first = acceptor.session();
    (acceptor, pool, first)
}

/// That a client beyond `limit` is told the bytes of a file, and then the end, also if it has
/// asked for something.
#[track_caller]
fn assert_is_told(limit: &str, text: &[u8]) {
    let (acceptor, _pool, _first) = full(limit, text);
    // What the client sends is there before the client is turned away.
    let mut second = acceptor.at_once(&[], || {
        let Client(mut second) = acceptor.client();
        second.write_all(&[b'x'; 10_000]).unwrap();
        second
    });
    let mut told = Vec::new();
    second.read_to_end(&mut told).unwrap();
    assert_eq!(told, text);
}

const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";

cases! {
    assert_is_told;
    when_full_tells_those_beyond_max_the_bytes_of_a_file: "--max", REFUSAL;
    when_full_tells_one_client_beyond_its_limit_the_bytes_of_a_file: "--max-per-source", REFUSAL;
    an_empty_file_tells_nothing_and_ends: "--max", b"";
}

#[test]
fn any_bytes_can_be_told() {
    let bytes: Vec<u8> = (0..4096).map(|number| (number % 256) as u8).collect();
    assert_is_told("--max", &bytes);
}

#[test]
fn clients_that_do_not_end_do_not_keep_others_from_being_told() {
    let (acceptor, _pool, first) = full("--max", b"421 later\r\n");
    let idle = settled(acceptor.pid());
    // More than are listened to at once; none of them reads or ends.
    let slow = acceptor.clients(200);
    let last = acceptor.client();
    last.end();
    assert_eq!(last.rest(), "421 later\r\n");
    first.client.expect_served();
    // The slow clients are given up while they are still there.
    until("their end", || descriptors(acceptor.pid()).len() <= idle);
    drop(slow);
}

#[test]
fn a_client_that_never_stops_sending_is_given_up() {
    let (acceptor, _pool, _first) = full("--max", b"421 later\r\n");
    let Client(mut second) = acceptor.client();
    let start = Instant::now();
    while second.write_all(&[b'x'; 4096]).is_ok() {
        assert!(start.elapsed() < DEADLINE, "still listened to");
    }
}

#[test]
fn the_descriptors_of_fdaccept_are_as_many_as_before_when_clients_were_turned_away() {
    for what in ["close", "./words"] {
        let fdaccept = Fdaccept::bound().file("words", "no\n");
        let acceptor = fdaccept.args(["--max", "1", "--when-full", what]).start();
        let _pool = acceptor.pool(2);
        let _first = acceptor.session();
        let before = settled(acceptor.pid());
        for _ in 0..100 {
            // With a word, or with a reset.
            let mut told = String::new();
            let client = acceptor.try_client();
            let read = client.and_then(|Client(mut stream)| stream.read_to_string(&mut told));
            assert!(read.is_err() || told == "no\n", "{told}");
        }
        until("their end", || descriptors(acceptor.pid()).len() <= before);
    }
}
