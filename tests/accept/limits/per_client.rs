//! `--max-per-source`: how many of one client are in service, and what is told of it.

use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use fdtools::queue::message;

use super::*;

#[test]
fn one_client_beyond_its_limit_is_reset_and_others_are_served() {
    let (acceptor, _pool) = served(&["--max-per-source", "2"], 8);
    let _two = (acceptor.session(), acceptor.session());
    is_reset(acceptor.try_client());
    for last in [2, 3] {
        let other = acceptor.client_from([127, 0, 0, last]);
        assert_eq!(Session::of(other).number, 1);
    }
}

#[test]
fn a_client_at_its_limit_may_come_again_when_one_of_its_connections_ends() {
    let (acceptor, _pool) = served(&["--max-per-source", "1"], 8);
    let session = acceptor.session();
    is_reset(acceptor.try_client());
    session.finish();
    eventually("room", || acceptor.try_session()).finish();
}

#[test]
fn the_prefix_of_an_ipv4_address_tells_one_client_from_another() {
    let options = ["--max-per-source", "1", "--source-prefix", "24,64"];
    let (acceptor, _pool) = served(&options, 8);
    let _first = Session::of(acceptor.client_from([127, 0, 7, 1]));
    is_reset(acceptor.try_client_from([127, 0, 7, 200]));
    Session::of(acceptor.client_from([127, 0, 8, 1]));
}

#[test]
fn ipv4_clients_of_a_listener_for_both_families_count_by_their_ipv4_address() {
    needs!(has_ipv6());
    let fdaccept = Fdaccept::bound().args(["--max-per-source", "1"]);
    let acceptor = fdaccept.listen("0").start();
    let _pool = acceptor.pool(8);
    let _first = acceptor.session();
    is_reset(acceptor.try_client());
    Session::of(acceptor.client_from([127, 0, 0, 2]));
    let v6 = SocketAddr::new("::1".parse().unwrap(), acceptor.port);
    Session::of(Client(TcpStream::connect(v6).unwrap()));
}

/// What clients with these IPv6 addresses, one after another and all at once, get in the place of
/// their count, in a network of their own.
fn counts_of_ipv6_clients(options: &str, addresses: &str) -> Option<String> {
    let (unshare, _) = (peer("unshare")?, (peer("ip")?, peer("python3")?));
    if !root() {
        return None;
    }
    let clients = "import socket, sys
port, kept = int(sys.argv[1]), []
for address in sys.argv[2:]:
    try:
        client = socket.create_connection(('fd00::1', port), 60, (address, 0))
        kept.append(client)
        line = client.makefile().readline()
    except ConnectionResetError:
        line = ''
    print(line.split()[1] if line else 'reset', flush=True)
";
    let text = format!(
        "ip link set lo up || exit 77
         for a in fd00::1 {addresses}; do ip -6 addr add $a/128 dev lo nodad || exit 77; done
         fdaccept {options} '[fd00::1]:4000' -- fdpool 8 -- {COUNT_IN_SCRIPT} 2>log & p=$!
         until grep -q listening log; do sleep 0.02; done
         python3 -c \"$0\" 4000 {addresses}; kill $p; wait $p"
    );
    let names = Names::new();
    let mut command = Command::new(unshare);
    command.args(["-n", "sh", "-c", &text, clients]);
    command.env("PATH", path()).current_dir(&names.directory);
    let (status, stdout, stderr) = run(&mut command);
    if status == Some(77) || stderr.starts_with("unshare: ") {
        skip(&format!("no network of its own: {stderr}"));
        return None;
    }
    assert_eq!(status, Some(0), "{stderr}");
    Some(stdout.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[track_caller]
fn assert_ipv6_counts(options: &str, addresses: &str, expected: &str) {
    if let Some(counts) = counts_of_ipv6_clients(options, addresses) {
        assert_eq!(counts, expected);
    }
}

#[test]
fn ipv6_clients_of_one_64_count_as_one() {
    let addresses = "fd00:1::1 fd00:1::ffff:2 fd00:1:0:1::1 fd00:1:0:0:3::";
    assert_ipv6_counts("--max-per-source 2", addresses, "1 2 1 reset");
}

#[test]
fn the_prefix_of_an_ipv6_address_tells_one_client_from_another() {
    let options = "--max-per-source 1 --source-prefix 32,128";
    assert_ipv6_counts(options, "fd00:1::1 fd00:1::2", "1 1");
    let options = "--max-per-source 1 --source-prefix 32,48";
    let addresses = "fd00:1::1 fd00:1:0:9::2 fd00:1:1::1";
    assert_ipv6_counts(options, addresses, "1 reset 1");
}

#[test]
fn unix_clients_count_by_their_user() {
    let names = Names::new();
    let path = names.text("listener");
    let words = ["fdpool", "4", "--", "sh", "-c", "echo here; exec cat"];
    let fdaccept = Fdaccept::chain(words).args(["--max-per-source", "1"]);
    let _acceptor = fdaccept.listen(&path).start();
    let first = Client::connect_unix(&path);
    assert_eq!(first.line(), "here");
    assert_eq!(Client::connect_unix(&path).rest(), "");
    first.end();
    until("room", || Client::connect_unix(&path).line() == "here");
}

// What is told of the count.

#[test]
fn a_handler_is_told_the_count_of_its_client() {
    let (acceptor, _pool) = served(&["--max", "9"], 8);
    let sessions = [(); 3].map(|()| acceptor.session());
    assert_eq!(sessions.each_ref().map(|session| session.number), [1, 2, 3]);
    let other = acceptor.client_from([127, 0, 0, 2]);
    assert_eq!(Session::of(other).number, 1);
}

#[test]
fn the_count_goes_down_when_connections_end() {
    let (acceptor, _pool) = served(&["--max-per-source", "9"], 8);
    let sessions = [(); 3].map(|()| acceptor.session());
    sessions.into_iter().for_each(Session::finish);
    none_is_held(|| acceptor.count_by_pool());
}

#[test]
fn without_limits_nothing_is_counted() {
    let acceptor = limited(&["--rate", "1000/1"]);
    let receiver = acceptor.receiver();
    let _client = acceptor.client();
    let taken = take(&receiver);
    assert!(taken.lease.is_none() && taken.text(message::TCP_CONN_NUM).is_none());
    drop(receiver);
    let _pool = acceptor.pool_of(1, "echo ${TCPCONNNUM-nothing}");
    assert_eq!(acceptor.client().line(), "nothing");
}
