//! Clients that take too long to send their header.

use super::*;

/// A few places where a header may stop.
fn places(header: &[u8]) -> Vec<usize> {
    let mut places = vec![0, 1, 5, 6, 10, 11, 12, 13, 14, 15, 16, 17, 27];
    places.extend([header.len() - 2, header.len() - 1]);
    places.retain(|place| *place < header.len());
    places
}

#[test]
fn who_stalls_anywhere_blocks_nobody_and_costs_no_time_and_may_go_on() {
    for (version, mut header) in both_versions() {
        if version == "v2" {
            header = v2_with(CLIENT, SERVER, &padding(9000));
        }
        let (acceptor, _pool) = patient(version, &[]).with_pool();
        let stall = |place: usize| (acceptor.says(&header[..place]), place);
        let stalled: Vec<_> = places(&header).into_iter().map(stall).collect();
        acceptor.until_asleep();
        for _ in 0..5 {
            acceptor.serves(&header);
        }
        is_idle(acceptor.pid());
        for (client, place) in stalled {
            write(&client, &header[place..]);
            expect_told(client, TOLD, b"");
        }
    }
}

#[test]
fn a_header_that_is_late_closes_the_connection_and_is_counted() {
    for (mut acceptor, _pool, header) in each_version(&["-v", "--proxy-timeout", "0.5"]) {
        let places = places(&header);
        let start = Instant::now();
        let stalled = places.iter().map(|place| acceptor.says(&header[..*place]));
        for client in stalled.collect::<Vec<_>>() {
            client.expect_closed();
            has_taken(start, 500);
        }
        acceptor.until_counted("bad header", places.len());
        let port = acceptor.port;
        let late = "its PROXY header is late";
        let late = format!(" on 127.0.0.1:{port}: {late}");
        let log = acceptor.log();
        let refused = times_told(&log, "fdaccept: refused 127.0.0.1", &late);
        assert_eq!(refused, places.len(), "{log}");
    }
}

#[test]
fn a_header_may_take_five_seconds_by_default() {
    let mut acceptor = proxied("any", &[]);
    let start = Instant::now();
    acceptor.says(BEGUN).expect_closed();
    has_taken(start, 5000);
    acceptor.until_counted("bad header", 1);
}

#[test]
fn bytes_now_and_then_do_not_put_the_end_off() {
    for (version, header) in [("v1", v1(CLIENT, SERVER)), ("v2", longest())] {
        let acceptor = proxied(version, &["--proxy-timeout", "0.3"]);
        let start = Instant::now();
        let client = acceptor.client();
        client.0.set_nodelay(true).unwrap();
        let mut most = header[..header.len() - 2].iter();
        // The client always has something new to say, though it never comes to an end.
        until("the end", || {
            if let Some(byte) = most.next() {
                let _ = (&client.0).write_all(&[*byte]);
            }
            client.is_answered()
        });
        client.expect_closed();
        has_taken(start, 300);
    }
}

#[test]
fn the_time_for_a_header_is_none_for_what_follows() {
    for (acceptor, _pool, header) in each_version(&["--proxy-timeout", "1.5"]) {
        let client = acceptor.has_heard(&header);
        assert_eq!(client.line(), TOLD);
        // A client that came later has had all its time.
        acceptor.client().expect_closed();
        client.expect_echo("data");
    }
}

#[test]
fn headers_that_wait_for_a_consumer_are_not_late() {
    let mut acceptor = proxied("any", &["--proxy-timeout", "1.5"]);
    let clients = [(); 5].map(|()| acceptor.has_heard(&v1(CLIENT, SERVER)));
    acceptor.until_counted("passed", 5);
    acceptor.client().expect_closed();
    let _pool = acceptor.who();
    for client in clients {
        expect_told(client, TOLD, b"");
    }
}

/// It is fdaccept that comes late.
#[test]
fn headers_that_came_in_time_are_not_late_if_fdaccept_was_held_up() {
    let mut acceptor = proxied("any", &["--proxy-timeout", "5"]);
    let clients = acceptor.begun(100);
    acceptor.freeze();
    clients.iter().for_each(|client| complete(client, b""));
    // Nothing but the time is awaited here.
    std::thread::sleep(Duration::from_secs(6));
    acceptor.thaw();
    until("a decision on all", || {
        acceptor.counted("passed") + acceptor.counted("bad header") == 100
    });
    assert_eq!(acceptor.counted("bad header"), 0);
    let _pool = acceptor.who();
    for client in clients {
        expect_told(client, TOLD, b"");
    }
}
