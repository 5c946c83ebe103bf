//! What fdpool and fdrecv tell of clients and handlers.

use std::net::{IpAddr, SocketAddr};

use crate::support::*;

/// fdpool and fdrecv as the command of a chain, with `-v`.
const CONSUMERS: [&[&str]; 2] = [
    &["fdpool", "-v", "1", "--", "cat"],
    &["fdrecv", "-v", "--", "cat"],
];

/// What follows `ok PID ` in the line of a chain's consumer.
#[track_caller]
fn ends(acceptor: &mut Acceptor) -> String {
    let line = acceptor.line(": ok ");
    line.splitn(4, ' ').last().unwrap().to_owned()
}

#[test]
fn the_lines_of_both_sides_have_the_port_of_the_client() {
    needs!(has_ipv6());
    for consumer in CONSUMERS {
        for (address, ip) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "[::1]")] {
            let chain = Fdaccept::chain(consumer).arg("-v").listen(address);
            let mut acceptor = chain.start();
            let from: IpAddr = ip.trim_matches(['[', ']']).parse().unwrap();
            let server = SocketAddr::new(from, acceptor.port);
            let client = try_connect_from(from, server).unwrap();
            let port = client.local_addr().unwrap().port();
            acceptor.line(&format!("fdaccept: accepted {ip}:{port} on {ip}:"));
            let expected = format!(":{ip}:{} :{ip}::{port}", acceptor.port);
            assert_eq!(ends(&mut acceptor), expected);
        }
    }
}

#[test]
fn the_line_of_a_unix_client_has_the_path_its_uid_and_its_pid() {
    let uid = nix::unistd::getuid();
    let pid = std::process::id();
    for consumer in CONSUMERS {
        let chain = Fdaccept::chain(consumer).arg("-v").listen("./a b");
        let mut acceptor = chain.start();
        let _client = connect_unix(acceptor.names.file("a b"));
        acceptor.line(&format!(" (pid {pid}) on ./a b"));
        assert_eq!(ends(&mut acceptor), format!(":./a?b: ::{uid}:{pid}"));
    }
}

#[test]
fn what_is_no_connection_has_empty_ends_in_the_log() {
    let queue = Queue::new();
    let mut pool = Pool::on(&queue).arg("-v").slots(1, ["true"]).start();
    queue.send(std::fs::File::open("/dev/null").unwrap());
    let line = pool.line(": ok ");
    assert!(line.ends_with(" :: :::"), "{line}");
}
