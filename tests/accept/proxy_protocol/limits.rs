//! Limits of clients that headers speak for.

use std::io::Read;

use fdtools::queue::message::{TCP_REMOTE_IP, TCP_REMOTE_PORT};

use super::*;

/// A handler that tells its client's address and the count of its connections, and then echoes.
const COUNT: &str = "echo $TCPREMOTEIP $TCPCONNNUM; exec cat";

/// The client of a connection as its header names it.
fn client_of(taken: &Taken) -> String {
    let part = |variable| taken.text(variable).unwrap();
    format!("{} {}", part(TCP_REMOTE_IP), part(TCP_REMOTE_PORT))
}

#[test]
fn max_counts_those_in_service_and_headers_that_are_complete_wait_for_their_turn() {
    let mut acceptor = patient("any", &["--max", "2"]);
    let clients = acceptor.begun(12);
    // Nobody is in service, so all were accepted. They complete their headers in another order
    // than they came in.
    let receiver = acceptor.receiver();
    nothing_comes(&receiver);
    let order: Vec<usize> = (0..12).map(|n| n * 5 % 12).collect();
    for number in &order {
        let header = v1(&format!("192.0.2.1:{}", 1000 + number), SERVER);
        write(&clients[*number], &header[BEGUN.len()..]);
        until_all_is_read(&clients[*number]);
    }
    let mut in_service = Vec::new();
    for (place, number) in order.iter().enumerate() {
        if place >= 2 {
            nothing_comes(&receiver);
            in_service.remove(0);
        }
        let taken = take(&receiver);
        assert_eq!(client_of(&taken), format!("192.0.2.1 {}", 1000 + number));
        in_service.push(taken);
    }
    drop(in_service);
    acceptor.until_counted("passed", 12);
    assert_eq!(acceptor.counted("bad header"), 0);
}

#[test]
fn complete_headers_that_wait_for_room_cost_no_time_and_are_never_late() {
    let mut acceptor = proxied("any", &["--max", "1", "--proxy-timeout", "8"]);
    let receiver = acceptor.receiver();
    let clients = acceptor.begun(6);
    let (waiting, stalled) = clients.split_at(4);
    waiting.iter().for_each(|client| complete(client, b""));
    let first = take(&receiver);
    is_idle(acceptor.pid());
    acceptor.until_counted("bad header", stalled.len());
    nothing_comes(&receiver);
    drop(first);
    for _ in 1..waiting.len() {
        assert_eq!(client_of(&take(&receiver)), "192.0.2.1 51000");
    }
}

#[test]
fn who_stalls_does_not_count_for_max() {
    let mut acceptor = patient("any", &["--max", "1"]);
    let _stalled = acceptor.stalled(10, b"PROXY TCP4", 0);
    let _pool = acceptor.who();
    for header in headers() {
        acceptor.serves(&header);
    }
}

#[test]
fn when_full_close_resets_those_whose_headers_are_complete_beyond_max() {
    let (mut acceptor, _pool) = patient("any", &["--max", "1", "--when-full", "close"]).with_pool();
    let first = acceptor.says(&v1(CLIENT, SERVER));
    assert_eq!(first.line(), TOLD);
    let second = acceptor.says(BEGUN);
    acceptor.until_counted("accepted", 2);
    is_left_waiting(&second);
    complete(&second, b"");
    second.expect_reset();
    acceptor.until_counted("by limit", 1);
    assert_eq!(acceptor.counted("bad header"), 0);
}

#[test]
fn when_full_tells_those_whose_headers_are_complete_the_bytes_of_a_file() {
    let names = Names::new();
    let file = names.text("words");
    std::fs::write(&file, "503 later\r\n").unwrap();
    for limit in ["--max", "--max-per-source"] {
        let (acceptor, _pool) = patient("any", &[limit, "1", "--when-full", &file]).with_pool();
        let first = acceptor.says(&v1(CLIENT, SERVER));
        assert_eq!(first.line(), TOLD);
        for header in headers() {
            // With data behind it, or with none, all at once or not.
            let client = acceptor.says(&[&header[..], &[b'x'; 10_000]].concat());
            expect_told(client, "503 later\r", b"");
            let client = acceptor.says(&header[..9]);
            until_all_is_read(&client);
            write(&client, &header[9..]);
            expect_told(client, "503 later\r", b"");
        }
        // A client that is no proxy, or sends no header, is not told.
        acceptor.says(b"GET / HTTP/1.1\r\n").expect_closed();
        is_reset(acceptor.try_client_from([127, 0, 0, 7]));
    }
}

/// What clients that headers speak for, one after another and all at once, get in the place of
/// their count: `None` where they are turned away.
#[track_caller]
fn assert_counts(options: &[&str], clients: &[&str], expected: &[Option<u32>]) {
    let acceptor = proxied("any", options);
    let _pool = acceptor.pool_of(clients.len(), COUNT);
    let mut kept = Vec::new();
    let mut counts = Vec::new();
    for (number, client) in clients.iter().enumerate() {
        let server = match address(client) {
            SocketAddr::V4(_) => SERVER,
            SocketAddr::V6(_) => "[2001:db8::2]:1",
        };
        let make: Make = if number % 2 == 0 { v1 } else { v2 };
        let header = make(client, server);
        let client_ip = address(client).ip().to_canonical();
        let client = acceptor.says(&header);
        let mut line = String::new();
        let mut byte = [0];
        while !line.ends_with('\n') && matches!((&client.0).read(&mut byte), Ok(1)) {
            line.push(char::from(byte[0]));
        }
        let told = line.trim_end().split_once(' ');
        if let Some((ip, _)) = told {
            assert_eq!(ip, client_ip.to_string());
        }
        counts.push(told.map(|(_, count)| count.parse().unwrap()));
        kept.push(client);
    }
    assert_eq!(counts, expected);
}

#[test]
fn clients_are_counted_by_the_address_that_the_header_names() {
    let clients = [
        "192.0.2.1:1",
        "192.0.2.1:2",
        "192.0.2.2:1",
        "192.0.2.1:1",
        "[2001:db8::1]:1",
    ];
    let expected = [Some(1), Some(2), Some(1), Some(3), Some(1)];
    assert_counts(&["--max", "100"], &clients, &expected);
    let expected = [Some(1), Some(2), Some(1), None, Some(1)];
    assert_counts(&["--max-per-source", "2"], &clients, &expected);
}

#[test]
fn a_mapped_address_counts_as_the_ipv4_address_that_it_is() {
    let mapped = "[::ffff:192.0.2.1]:1";
    let clients = [
        "192.0.2.1:1",
        mapped,
        mapped,
        "192.0.2.1:1",
        "[::ffff:192.0.2.2]:1",
    ];
    let expected = [Some(1), Some(2), None, None, Some(1)];
    assert_counts(&["--max-per-source", "2"], &clients, &expected);
}

#[test]
fn the_prefix_of_the_address_that_the_header_names_tells_one_client_from_another() {
    let clients = [
        "[2001:db8::1]:1",
        "[2001:db8::ffff:2]:1",
        "[2001:db8:0:1::1]:1",
        "192.0.2.1:1",
        "192.0.2.200:1",
    ];
    let expected = [Some(1), None, Some(1), Some(1), Some(1)];
    assert_counts(&["--max-per-source", "1"], &clients, &expected);
    let options = ["--max-per-source", "1", "--source-prefix", "24,128"];
    let expected = [Some(1), Some(1), Some(1), Some(1), None];
    assert_counts(&options, &clients, &expected);
}

#[test]
fn one_client_beyond_its_limit_is_reset_and_counted_and_may_come_again() {
    let mut acceptor = proxied("any", &["--max-per-source", "1"]);
    let _pool = acceptor.pool_of(4, COUNT);
    let [v1, v2] = headers();
    let first = acceptor.says(&v1);
    assert_eq!(first.line(), "192.0.2.1 1");
    acceptor.says(&v2).expect_reset();
    acceptor.until_counted("by limit", 1);
    first.finish();
    until("room", || {
        let client = acceptor.says(&v2);
        let _ = client.0.shutdown(std::net::Shutdown::Write);
        client.rest_or_reset() == "192.0.2.1 1\n"
    });
}

#[test]
fn a_proxy_that_speaks_for_itself_counts_as_itself() {
    let mut acceptor = proxied("any", &["--max-per-source", "1"]);
    let _pool = acceptor.pool_of(4, COUNT);
    let [unknown, local] = local_headers();
    let first = acceptor.says(&unknown);
    assert_eq!(first.line(), "127.0.0.1 1");
    let other = acceptor.says(&v1(CLIENT, SERVER));
    assert_eq!(other.line(), "192.0.2.1 1");
    acceptor.says(&local).expect_reset();
    // The header names the same address.
    acceptor.says(&v1("127.0.0.1:9", SERVER)).expect_reset();
    acceptor.until_counted("by limit", 2);
}

#[test]
fn the_rate_counts_connections_that_have_a_header() {
    let acceptor = proxied("any", &["--rate", "4/0.4"]);
    let receiver = acceptor.receiver();
    let start = Instant::now();
    let header = v1(CLIENT, SERVER);
    let _clients = [(); 6].map(|()| (acceptor.says(&header), acceptor.says(b"x")));
    for number in 0..6 {
        take(&receiver);
        has_taken(start, 400 * (number / 4));
    }
}

#[test]
fn a_full_queue_lets_complete_headers_wait_and_loses_none() {
    let mut acceptor = patient("any", &["--queue", "2"]);
    let clients = acceptor.begun(9);
    clients.iter().for_each(|client| complete(client, b"data"));
    acceptor.until_counted("passed", 2);
    // A further one waits in the backlog.
    let last = acceptor.says(&[&v1(CLIENT, SERVER)[..], b"data"].concat());
    is_idle(acceptor.pid());
    assert_eq!(acceptor.counted("passed"), 2);
    assert_eq!(acceptor.counted("accepted"), 9);
    let _pool = acceptor.who();
    for client in clients.into_iter().chain([last]) {
        expect_told(client, TOLD, b"data");
    }
    acceptor.until_counted("passed", 10);
}
