//! Every kind of address stays the same.

use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use nix::sys::socket::{setsockopt, sockopt};

use super::*;

/// That each address shows as the same after a crash and after a clean stop, and that there are
/// so many listeners. Returns how they show.
#[track_caller]
fn assert_addresses_stay(keeper: &Keeper, arguments: &[&str], count: usize) -> Vec<String> {
    let mut shown: Vec<Vec<String>> = Vec::new();
    for round in 0..4 {
        let mut process = keeper.start(arguments);
        shown.push((0..count).map(|_| process.listening()).collect());
        keeper.expect_kept(count);
        assert_eq!(shown[round], shown[0], "{arguments:?}");
        end(process, round % 2 == 0);
    }
    shown.pop().unwrap()
}

fn port_of(shown: &str) -> u16 {
    shown.rsplit_once(':').unwrap().1.parse().unwrap()
}

#[test]
fn a_free_port_of_both_families_stays() {
    let keeper = Keeper::new();
    let shown = assert_addresses_stay(&keeper, &["0"], 1);
    let port = port_of(&shown[0]);
    let over_ipv4 = Crowd::connect(port, 2);
    let over_ipv6 = has_ipv6().then(|| TcpStream::connect(("::1", port)).unwrap());
    let _process = keeper.start(&["0"]);
    let _pool = keeper.serve();
    over_ipv4.expect_served();
    if let Some(client) = over_ipv6 {
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        Client(client).expect_echo("over IPv6");
    }
}

#[test]
fn a_free_port_of_ipv6_stays() {
    if has_ipv6() {
        assert_addresses_stay(&Keeper::new(), &["[::1]:0"], 1);
    }
}

/// A machine on which `two.test` has two addresses.
pub struct Hosts {
    pub keeper: Keeper,
    command: Vec<String>,
}

impl Hosts {
    pub fn new() -> Option<Self> {
        if !root() {
            return None;
        }
        let (unshare, _mount) = (peer("unshare")?, peer("mount")?);
        let keeper = Keeper::new();
        let hosts = keeper.file("hosts");
        std::fs::write(&hosts, "127.0.0.1 two.test\n127.0.0.2 two.test\n").unwrap();
        let text = "mount --bind \"$0\" /etc/hosts && exec fdaccept \"$@\"";
        let words = [unshare.to_str()?, "--mount", "sh", "-c", text, &hosts];
        let command = words.map(str::to_owned).to_vec();
        Some(Self { keeper, command })
    }

    /// Starts fdaccept on that host, and returns its two listeners, sorted.
    #[track_caller]
    pub fn start(&self) -> (Process, [String; 2]) {
        let queue = self.keeper.names.path();
        let mut words: Vec<_> = self.command.iter().map(String::as_str).collect();
        words.extend(["--store", "--bind", &queue, "two.test:0"]);
        let mut process = self.keeper.start_words(&[], &words, |_| {});
        let mut shown = [process.listening(), process.listening()];
        shown.sort();
        (process, shown)
    }
}

#[test]
fn every_address_of_a_host_stays_with_their_one_port() {
    let hosts = needs!(Hosts::new());
    let (process, shown) = hosts.start();
    let port = port_of(&shown[0]);
    let expected = ["127.0.0.1", "127.0.0.2"].map(|ip| format!("{ip}:{port}"));
    assert_eq!(shown, expected);
    crash(process);
    let clients = shown.map(|address| TcpStream::connect(address).unwrap());
    let (_process, shown) = hosts.start();
    assert_eq!(shown, expected);
    hosts.keeper.expect_kept(2);
    let _pool = hosts.keeper.serve();
    for client in clients {
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        Client(client).expect_echo("waited");
    }
}

#[test]
fn localhost_stays() {
    let keeper = Keeper::new();
    let mut process = keeper.start(&["localhost:0"]);
    process.port();
    let count = keeper.kept().len() - 2;
    crash(process);
    assert_addresses_stay(&keeper, &["localhost:0"], count);
}

#[test]
fn several_addresses_stay_each_with_its_own_port() {
    let keeper = Keeper::new();
    let path = keeper.file("s");
    let arguments = [ADDRESS, &path, "127.0.0.2:0", ADDRESS];
    let shown = assert_addresses_stay(&keeper, &arguments, 4);
    assert_eq!(shown[1], path);
    assert_ne!(shown[0], shown[3], "the same address twice, with two ports");
}

#[test]
fn an_address_that_was_given_twice_and_then_once_keeps_the_first() {
    let keeper = Keeper::new();
    let shown = assert_addresses_stay(&keeper, &[ADDRESS, ADDRESS], 2);
    let mut process = keeper.start(&[ADDRESS]);
    process.line("fdtools-listener-1-1-127.0.0.1%3a0 was kept and is not needed any more");
    assert_eq!(process.listening(), shown[0]);
    keeper.expect_kept(1);
}

#[test]
fn the_same_port_twice_stays_so() {
    let (reserved, port) = reserve_port();
    // Linux lets sockets share a port if every one says so.
    setsockopt(&reserved, sockopt::ReusePort, &true).unwrap();
    let address = format!("127.0.0.1:{port}");
    let keeper = Keeper::new();
    let arguments = ["-o", "reuseport", &address, &address];
    assert_addresses_stay(&keeper, &arguments, 2);
    let crowd = Crowd::connect(port, 20);
    let _process = keeper.start(&arguments);
    keeper.serve_once(crowd, 20);
}

#[test]
fn the_order_of_addresses_does_not_matter() {
    let keeper = Keeper::new();
    let mut process = keeper.start(&["127.0.0.1:0", "127.0.0.2:0"]);
    let [one, two] = [process.listening(), process.listening()];
    crash(process);
    let mut process = keeper.start(&["127.0.0.2:0", "127.0.0.1:0"]);
    assert_eq!([process.listening(), process.listening()], [two, one]);
    keeper.expect_kept(2);
}

// Paths and names.

#[test]
fn a_path_stays_with_its_mode_and_whoever_waits_there() {
    let keeper = Keeper::new();
    let path = keeper.file("s");
    let start = || {
        let mut process = keeper.start(&["--mode", "640", &path]);
        assert_eq!(process.listening(), path);
        process
    };
    let facts = || {
        let facts = std::fs::symlink_metadata(&path).unwrap();
        (facts.ino(), facts.permissions().mode() & 0o7777)
    };
    let mut process = start();
    let first = facts();
    assert_eq!(first.1, 0o640);
    for is_crash in [true, false, true] {
        end(process, is_crash);
        assert_eq!(facts(), first);
        let client = Client::connect_unix(&path);
        process = start();
        assert_eq!(facts(), first);
        let _pool = keeper.serve();
        client.expect_echo("waited");
    }
    keeper.expect_kept(1);
}

/// Somebody may have changed what an earlier start gave.
#[test]
fn a_path_gets_the_mode_of_each_start() {
    let keeper = Keeper::new();
    let path = keeper.file("s");
    let mode = || std::fs::symlink_metadata(&path).unwrap().mode() & 0o7777;
    for (options, expected) in [
        (&[][..], 0o600),
        (&["--mode", "660"], 0o660),
        (&["--mode", "0"], 0),
        (&[], 0o600),
    ] {
        let mut process = keeper.start(&[options, &[&path]].concat());
        assert_eq!(process.listening(), path);
        assert_eq!(mode(), expected, "{options:?}");
        keeper.expect_kept(1);
        crash(process);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
    }
}

#[test]
fn a_path_stays_that_of_another_user() {
    needs!(root());
    let keeper = Keeper::new();
    let path = keeper.file("s");
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let nobody = (nobody.uid.as_raw(), nobody.gid.as_raw());
    for is_crash in [true, false, true, true] {
        let mut process = keeper.start(&["--user", "nobody", &path]);
        assert_eq!(process.listening(), path);
        until("another user", || {
            let owner = std::fs::metadata(format!("/proc/{}", process.pid())).unwrap();
            owner.uid() == nobody.0
        });
        let facts = std::fs::symlink_metadata(&path).unwrap();
        assert_eq!((facts.uid(), facts.gid()), nobody);
        let _pool = keeper.serve();
        is_served_at(&path);
        keeper.expect_kept(1);
        end(process, is_crash);
    }
}

/// Starts fdaccept with these options. Checks that its listener goes on, that its queue and its
/// listener are whose they should be, and that clients get through. Then it crashes.
#[track_caller]
fn owner_is(keeper: &Keeper, options: &[&str], expected: (u32, u32, u32)) {
    let path = keeper.file("s");
    let before = std::fs::symlink_metadata(&path).map(|facts| facts.ino());
    let mut process = keeper.start(&[options, &[&path]].concat());
    assert_eq!(process.listening(), path, "{options:?}");
    for path in [&path, &keeper.names.path()] {
        assert_eq!(whose(path.as_ref()), expected, "{options:?} {path}");
    }
    if let Ok(before) = before {
        let now = std::fs::symlink_metadata(&path).unwrap().ino();
        assert_eq!(now, before, "{options:?}");
    }
    let _pool = keeper.serve();
    is_served_at(&path);
    keeper.expect_kept(1);
    crash(process);
}

#[test]
fn a_path_gets_the_owner_and_the_mode_of_each_start() {
    needs!(root());
    let keeper = Keeper::new();
    for (options, expected) in [
        (&[][..], (0, 0, 0o600)),
        (
            &["--owner", ":4000000005", "--mode", "660"],
            (0, 4_000_000_005, 0o660),
        ),
        (
            &["--owner", "4000000001:4000000006", "--mode", "620"],
            (4_000_000_001, 4_000_000_006, 0o620),
        ),
        (&["--owner", "4000000001"], (4_000_000_001, 0, 0o600)),
        (
            &["--user", "4000000001:4000000006"],
            (4_000_000_001, 4_000_000_006, 0o600),
        ),
        (&["--mode", "660"], (0, 0, 0o660)),
    ] {
        owner_is(&keeper, options, expected);
    }
}

/// In a directory that gives its own group to new files.
#[test]
fn a_path_gets_back_the_group_of_its_directory() {
    needs!(root());
    let keeper = Keeper::new();
    let directory = keeper.file("");
    std::os::unix::fs::chown(&directory, None, Some(4_000_000_009)).unwrap();
    std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o2755)).unwrap();
    for (options, expected) in [
        (
            &["--owner", ":4000000005", "--mode", "660"][..],
            (0, 4_000_000_005, 0o660),
        ),
        (&[], (0, 4_000_000_009, 0o600)),
        (
            &["--owner", ":4000000005", "--mode", "660"],
            (0, 4_000_000_005, 0o660),
        ),
        (
            &["--owner", "4000000001"],
            (4_000_000_001, 4_000_000_009, 0o600),
        ),
        (
            &["--user", "4000000001:4000000006", "--mode", "660"],
            (4_000_000_001, 4_000_000_009, 0o660),
        ),
    ] {
        owner_is(&keeper, options, expected);
    }
}

#[test]
fn a_relative_path_stays() {
    let keeper = Keeper::new();
    let start = || {
        let arguments = ["--store", "--bind", "./queue", "./s"];
        let mut process = keeper.start_changed(&arguments, |command| {
            command.current_dir(&keeper.names.directory);
        });
        assert_eq!(process.listening(), "./s");
        process
    };
    crash(start());
    let client = Client::connect_unix(keeper.file("s"));
    let _process = start();
    let _pool = keeper.serve();
    client.expect_echo("waited");
    keeper.expect_kept(1);
}

#[test]
fn an_abstract_name_stays_with_whoever_waits_there() {
    let keeper = Keeper::new();
    let name = keeper.names.abstract_name();
    let mut process = keeper.start_at(&name);
    for is_crash in [true, false] {
        end(process, is_crash);
        let client = Client::connect_unix(&name);
        process = keeper.start_at(&name);
        let _pool = keeper.serve();
        client.expect_echo("waited");
    }
    keeper.expect_kept(1);
}

#[test]
fn names_with_anything_in_them_are_told_apart() {
    let keeper = Keeper::new();
    let paths = ["a:b", "a b", "a%3ab", "ä", "a=b"].map(|name| keeper.file(name));
    let arguments = paths.each_ref().map(String::as_str);
    assert_addresses_stay(&keeper, &arguments, paths.len());
    let _process = keeper.start(&arguments);
    let _pool = keeper.serve();
    for path in &paths {
        is_served_at(path);
    }
}

#[test]
fn a_vsock_port_stays_where_there_is_any() {
    let keeper = Keeper::new();
    let mut process = keeper.start(&["vsock::0"]);
    if !first_word(&mut process).contains("listening on") {
        skip("there is no vsock");
        return;
    }
    drop(process);
    assert_addresses_stay(&keeper, &["vsock::0"], 1);
}

#[test]
fn a_name_that_is_too_long_to_be_kept_is_a_usage_error() {
    let keeper = Keeper::new();
    // Each of these bytes takes three in the name.
    let name = format!("@{}", "%".repeat(100));
    let expected = format!("--store: the address {name} is too long");
    usage::refuses(keeper.start(&[&name]), &expected);
}
