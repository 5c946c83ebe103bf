//! What is no header. The parser's own tests have more of it.

use nix::sys::socket::{setsockopt, sockopt};

use super::*;

/// Checks that fdaccept closes the connections of clients that say these and then wait, as soon
/// as it sees that, counts them, and serves the next client.
#[track_caller]
fn assert_malformed(version: &str, all: &[&[u8]]) {
    let (mut acceptor, _pool) = patient(version, &["-v"]).with_pool();
    for (number, bad) in all.iter().enumerate() {
        acceptor.says(bad).expect_closed();
        acceptor.until_counted("bad header", number + 1);
    }
    let [v1, v2] = headers();
    acceptor.serves(if version == "v1" { &v1 } else { &v2 });
    let port = acceptor.port;
    let why = format!(" on 127.0.0.1:{port}: no PROXY header");
    let log = acceptor.log();
    let refused = times_told(&log, "fdaccept: refused 127.0.0.1", &why);
    assert_eq!(refused, all.len(), "{log}");
}

#[test]
fn hostile_bytes_are_malformed() {
    let bad = [
        &b"G"[..],
        b"GET / HTTP/1.1\r\nHost: example\r\n\r\n",
        b"\n",
        b"\r\r",
        b"\0",
        b"\xff\xff\xff\xff",
        b"PROXYTCP4 192.0.2.1 198.51.100.7 51000 443\r\n",
        b"PRO\0Y ",
        // TLS, SSH, and a record of nothing but newlines.
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        &[b'\n'; 5000],
        &[0; 5000],
        &[b'A'; 70_000],
    ];
    for version in ["v1", "v2", "any"] {
        assert_malformed(version, &bad);
    }
}

#[test]
fn headers_that_are_almost_right_are_malformed() {
    let lines = [
        &b"PROXY TCP4 192.0.2.1 198.51.100.7 51000\r\n"[..],
        b"PROXY TCP4 192.0.2.1 198.51.100.7 51000 443\n",
        b"PROXY TCP4 192.0.2.256 198.51.100.7 51000 443\r\n",
        b"PROXY UNKNOWN \n",
        &[b"PROXY ", &[b'x'; 200][..]].concat(),
    ];
    let binary = [
        // A version, a family and a length that there are not.
        &v2_of(0x11, 0x11, &[1; 12])[..16],
        &v2_of(PROXY, 0x41, &[1; 300])[..16],
        &v2_of(PROXY, 0x11, &[1; 11])[..16],
    ];
    let [v1, v2] = headers();
    assert_malformed("v1", &[&lines[..], &[&v2]].concat());
    assert_malformed("v2", &[&binary[..], &[&v1]].concat());
    assert_malformed("any", &[&lines[..], &binary].concat());
}

#[test]
fn a_client_that_ends_before_its_header_is_complete_is_closed_and_counted() {
    for (mut acceptor, _pool, header) in each_version(&PATIENT) {
        let places = (0..header.len()).step_by(3).chain([header.len() - 1]);
        for (number, place) in places.enumerate() {
            let client = acceptor.says(&header[..place]);
            client.end();
            client.expect_closed();
            acceptor.until_counted("bad header", number + 1);
        }
        acceptor.serves(&header);
    }
}

#[test]
fn a_client_that_resets_its_connection_in_its_header_is_counted_and_forgotten() {
    for (version, header) in both_versions() {
        let mut acceptor = patient(version, &[]);
        let before = settled_descriptors(acceptor.pid());
        for place in [0, 1, 5, header.len() - 1] {
            let client = acceptor.says(&header[..place]);
            acceptor.until_asleep();
            let linger = nix::libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            setsockopt(&client.0, sockopt::Linger, &linger).unwrap();
        }
        // A client that is gone before it is accepted may count as failed.
        until("all to be counted", || {
            acceptor.counted("bad header") + acceptor.counted("failed") == 4
        });
        assert_eq!(settled_descriptors(acceptor.pid()), before);
        let _pool = acceptor.who();
        acceptor.serves(&header);
    }
}

/// Streams that look random, most of which begin like a header.
#[test]
fn nothing_that_clients_say_keeps_others_from_being_served() {
    let (mut acceptor, _pool) = proxied("any", &["--proxy-timeout", "8"]).with_pool();
    let before = settled_descriptors(acceptor.pid());
    let mut random = Random(5);
    for _ in 0..20 {
        let mut client = || {
            let mut stream = match random.below(4) {
                0 => v1(CLIENT, SERVER),
                1 => v2_with(CLIENT, SERVER, &padding(50)),
                2 => v2_of(PROXY, random.below(256) as u8, &[7; 40]),
                _ => Vec::new(),
            };
            for _ in 0..random.below(4) {
                if !stream.is_empty() {
                    let place = random.below(stream.len() as u64) as usize;
                    stream[place] = random.below(256) as u8;
                }
            }
            let length = random.below(stream.len() as u64 + 1) as usize;
            stream.truncate(length);
            let tail = random.below(30);
            stream.extend((0..tail).map(|_| random.below(256) as u8));
            let client = acceptor.says(&stream);
            let fate = random.below(3);
            if fate == 1 {
                let _ = client.0.shutdown(std::net::Shutdown::Write);
            }
            (fate < 2).then_some(client)
        };
        let crowd: Vec<_> = (0..20).map(|_| client()).collect();
        for header in headers() {
            acceptor.serves(&header);
        }
        drop(crowd);
    }
    until("its end with them", || {
        descriptors(acceptor.pid()) == before
    });
    let log = acceptor.stop();
    let line = log.lines().last().unwrap();
    let count = |what| number(line, what).unwrap();
    assert_eq!(
        count("accepted"),
        count("passed") + count("bad header"),
        "{line}"
    );
}
