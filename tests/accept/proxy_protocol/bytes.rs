//! What belongs to the header, and what to the handler.

use std::net::TcpStream;
use std::os::fd::AsRawFd;

use nix::sys::socket::{MsgFlags, send};

use super::*;

/// What could be taken for more of a header, or for its end.
fn treacherous_data() -> Vec<Vec<u8>> {
    vec![
        b"".to_vec(),
        b"\r\n".to_vec(),
        b"\n".to_vec(),
        b"\0".to_vec(),
        v1("203.0.113.9:1", SERVER),
        v2("203.0.113.9:1", SERVER),
        SIGNATURE.to_vec(),
        vec![b'\r'; 300],
        (0..100_000_u32).map(|n| (n % 251) as u8).collect(),
    ]
}

#[test]
fn data_in_one_segment_with_the_header_arrives_untouched() {
    for (acceptor, _pool, header) in each_version(&[]) {
        for data in treacherous_data() {
            let client = acceptor.client();
            // Read and written at once, since there may be more than buffers hold.
            let writer = Client(client.0.try_clone().unwrap());
            let bytes = [&header[..], &data].concat();
            let writer = std::thread::spawn(move || {
                write(&writer, &bytes);
                writer.end();
            });
            assert_all_told(client, TOLD, &data);
            writer.join().unwrap();
        }
    }
}

#[test]
fn not_a_byte_more_than_the_header_is_read() {
    for (version, header) in both_versions() {
        let acceptor = proxied(version, &[]);
        let receiver = acceptor.receiver();
        for data in treacherous_data() {
            let data = &data[..data.len().min(1000)];
            let _client = acceptor.says(&[&header[..], data].concat());
            let connection = TcpStream::from(take(&receiver).connection);
            // All was there before the connection was passed on.
            connection.set_nonblocking(true).unwrap();
            let mut there = [0; 2000];
            let count = connection.peek(&mut there).unwrap_or_default();
            assert_eq!(&there[..count], data);
        }
    }
}

#[test]
fn a_handler_speaks_first_where_only_a_header_has_come() {
    for (acceptor, _pool, header) in each_version(&[]) {
        let client = acceptor.says(&header);
        assert_eq!(client.line(), TOLD);
        // And it answers at once, though the client goes on.
        for word in ["ping\n", "PROXY \n", "\r\n"] {
            client.send(word);
            assert_eq!(client.line() + "\n", word);
        }
    }
}

#[test]
fn no_handler_starts_before_the_header_is_complete() {
    for (acceptor, _pool, header) in each_version(&PATIENT) {
        let (last, most) = header.split_last().unwrap();
        let client = acceptor.says(most);
        until_all_is_read(&client);
        is_left_waiting(&client);
        write(&client, &[*last]);
        assert_eq!(client.line(), TOLD);
    }
}

// Headers in parts.

#[test]
fn a_header_may_come_in_two_parts_wherever_it_is_cut() {
    for (acceptor, _pool, header) in each_version(&PATIENT) {
        for cut in 1..header.len() {
            let client = acceptor.says(&header[..cut]);
            acceptor.until_asleep();
            write(&client, &[&header[cut..], b"\r\ndata"].concat());
            expect_told(client, TOLD, b"\r\ndata");
        }
    }
}

#[test]
fn a_header_may_come_byte_by_byte() {
    for (acceptor, _pool, header) in each_version(&PATIENT) {
        let client = acceptor.client();
        client.0.set_nodelay(true).unwrap();
        for byte in header {
            // fdaccept has done with the byte before.
            acceptor.until_asleep();
            write(&client, &[byte]);
        }
        write(&client, b"data");
        expect_told(client, TOLD, b"data");
    }
}

#[test]
fn the_longest_header_may_come_at_once_or_in_single_bytes() {
    for version in ["v2", "any"] {
        let (acceptor, _pool) = patient(version, &[]).with_pool();
        let data = v1(CLIENT, SERVER);
        let client = acceptor.says(&[longest(), data.clone()].concat());
        expect_told(client, TOLD, &data);
        let client = acceptor.client();
        client.0.set_nodelay(true).unwrap();
        for byte in longest() {
            write(&client, &[byte]);
        }
        write(&client, &data);
        expect_told(client, TOLD, &data);
    }
}

/// Cuts that look random, of headers of any kind with any data behind.
#[test]
fn however_a_stream_is_cut_the_handler_gets_what_follows_the_header() {
    let (acceptor, _pool) = patient("any", &[]).with_pool();
    let mut random = Random(11);
    for _ in 0..100 {
        let more = padding(random.below(600) as u16);
        let header = match random.below(3) {
            0 => v1(CLIENT, SERVER),
            1 => v2(CLIENT, SERVER),
            _ => v2_with(CLIENT, SERVER, &more),
        };
        let letters = b"\r\n PROXY\0";
        let count = random.below(200);
        let letter = |_| letters[random.below(letters.len() as u64) as usize];
        let data: Vec<u8> = (0..count).map(letter).collect();
        let stream = [&header[..], &data].concat();
        let client = acceptor.client();
        client.0.set_nodelay(true).unwrap();
        let mut rest = &stream[..];
        while !rest.is_empty() {
            let most = 1 + random.below(60).min(rest.len() as u64 - 1);
            let (part, after) = rest.split_at(most as usize);
            write(&client, part);
            random.pause(300);
            rest = after;
        }
        expect_told(client, TOLD, &data);
    }
}

#[test]
fn the_end_of_a_client_behind_its_header_is_the_handlers() {
    for (version, header) in both_versions() {
        let acceptor = proxied(version, &[]);
        let client = acceptor.says(&header);
        client.end();
        // The end is there by the time the header is read.
        let _pool = acceptor.who();
        assert_all_told(client, TOLD, b"");
    }
}

#[test]
fn urgent_data_within_a_header_does_not_disturb_others() {
    for (mut acceptor, _pool, header) in each_version(&["--proxy-timeout", "2"]) {
        let clients = [0, 1, 7, 13, header.len() - 1].map(|place| {
            let client = acceptor.says(&header[..place]);
            send(client.0.as_raw_fd(), b"!", MsgFlags::MSG_OOB).unwrap();
            client
        });
        acceptor.serves(&header);
        is_idle(acceptor.pid());
        // What becomes of these clients does not matter.
        for client in &clients {
            let _ = (&client.0).write_all(&header);
        }
        acceptor.until_counted("accepted", 6);
        until("an end of all", || {
            acceptor.counted("passed") + acceptor.counted("bad header") == 6
        });
    }
}
