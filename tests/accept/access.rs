//! Access: rules on addresses, a file of rules, users and groups of Unix clients, and the counters
//! that say what became of whom.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{
    self, DEADLINE, Names, Process, Random, besides_counters, children, connect_unix, peer,
    program, root, run, skip, until,
};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket};

/// fdaccept with a pool whose handlers say "served".
struct Guarded {
    process: Process,
    port: u16,
}

const POOL: [&str; 6] = ["--", "fdpool", "2", "--", "echo", "served"];

impl Guarded {
    fn start(options: &[&str]) -> Self {
        Self::listen("127.0.0.1:0", options)
    }

    fn listen(address: &str, options: &[&str]) -> Self {
        let mut command = program("fdaccept");
        let mut process = Process::start(command.args(options).arg(address).args(POOL));
        let port = process.port();
        Self { process, port }
    }

    /// Whether a client with this address is served; if not, its connection is reset.
    #[track_caller]
    fn serves(&self, client: &str) -> bool {
        is_served(client, self.port)
    }
}

/// All that a client with the address `client`, of either family, gets from the same port of its
/// loopback.
fn ask(client: &str, port: u16) -> std::io::Result<String> {
    let client: IpAddr = client.parse().unwrap();
    let (family, server): (_, IpAddr) = match client {
        IpAddr::V4(_) => (AddressFamily::Inet, "127.0.0.1".parse().unwrap()),
        IpAddr::V6(_) => (AddressFamily::Inet6, "::1".parse().unwrap()),
    };
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, SockType::Stream, flags, None).unwrap();
    let address = |ip, port| SockaddrStorage::from(SocketAddr::new(ip, port));
    bind(socket.as_raw_fd(), &address(client, 0)).unwrap();
    connect(socket.as_raw_fd(), &address(server, port))?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut told = String::new();
    stream.read_to_string(&mut told)?;
    Ok(told)
}

#[track_caller]
fn is_served(client: &str, port: u16) -> bool {
    match ask(client, port) {
        Ok(told) => {
            assert_eq!(told, "served\n");
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
            false
        }
    }
}

fn has_ipv6() -> bool {
    let is_there = TcpListener::bind("[::1]:0").is_ok();
    if !is_there {
        skip("there is no IPv6");
    }
    is_there
}

// Rules on addresses.

#[test]
fn a_client_that_a_rule_denies_is_reset_and_others_are_served() {
    let guarded = Guarded::start(&["--deny", "127.0.0.9"]);
    assert!(!guarded.serves("127.0.0.9"));
    assert!(guarded.serves("127.0.0.8"));
    assert!(guarded.serves("127.0.0.1"));
}

#[test]
fn a_rule_that_allows_some_shuts_out_all_others() {
    let guarded = Guarded::start(&["--allow", "127.0.0.8/31"]);
    for (client, served) in [
        ("127.0.0.7", false),
        ("127.0.0.8", true),
        ("127.0.0.9", true),
        ("127.0.0.10", false),
    ] {
        assert_eq!(guarded.serves(client), served, "{client}");
    }
}

#[test]
fn the_most_specific_rule_decides_in_whatever_order_they_are_given() {
    let rules = [
        ["--deny", "127.0.0.0/8"],
        ["--allow", "127.1.0.0/16"],
        ["--deny", "127.1.1.0/24"],
        ["--allow", "127.1.1.1/32"],
    ];
    let mut reversed = rules;
    reversed.reverse();
    for rules in [rules, reversed] {
        let guarded = Guarded::start(&rules.concat());
        assert!(!guarded.serves("127.0.0.1"));
        assert!(guarded.serves("127.1.2.1"));
        assert!(!guarded.serves("127.1.1.2"));
        assert!(guarded.serves("127.1.1.1"));
    }
}

/// Many clients under many rules, against a table that is looked through from end to end.
#[test]
fn every_client_is_judged_as_its_longest_prefix_says() {
    let mut random = Random(7);
    let mut rules: Vec<(bool, u32, u32)> = Vec::new();
    while rules.len() < 40 {
        let length = 9 + random.below(24) as u32;
        let mask = u32::MAX << (32 - length);
        // Few bits vary, so that many rules hold one another.
        let net = (0x7f00_0000 | random.below(16) as u32 | (random.below(4) as u32) << 22) & mask;
        if !rules
            .iter()
            .any(|(_, other, bits)| (*other, *bits) == (net, length))
        {
            rules.push((random.below(2) == 0, net, length));
        }
    }
    let mut command = program("fdaccept");
    for (allow, net, length) in &rules {
        let option = if *allow { "--allow" } else { "--deny" };
        let net = std::net::Ipv4Addr::from(*net);
        command.args([option, &format!("{net}/{length}")]);
    }
    let mut process = Process::start(command.arg("127.0.0.1:0").args(POOL));
    let port = process.port();
    let mut seen = [0, 0];
    for _ in 0..100 {
        let bits = 0x7f00_0000 | random.below(16) as u32 | (random.below(4) as u32) << 22;
        // 127.0.0.0 is nobody's address.
        let client = bits.max(0x7f00_0001);
        let holds = |net, length| client & (u32::MAX << (32 - length)) == net;
        let holding = rules.iter().filter(|(_, net, length)| holds(*net, *length));
        let longest = holding.max_by_key(|(_, _, length)| *length);
        let expected = longest.is_some_and(|(allow, _, _)| *allow);
        let text = std::net::Ipv4Addr::from(client).to_string();
        assert_eq!(is_served(&text, port), expected, "{text} {longest:?}");
        seen[usize::from(expected)] += 1;
    }
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}

#[test]
fn rules_hold_ipv6_clients() {
    if has_ipv6() {
        assert!(!Guarded::listen("[::1]:0", &["--deny", "::1"]).serves("::1"));
        assert!(!Guarded::listen("[::1]:0", &["--allow", "2001:db8::/32"]).serves("::1"));
        assert!(!Guarded::listen("[::1]:0", &["--allow", "127.0.0.1"]).serves("::1"));
        assert!(Guarded::listen("[::1]:0", &["--allow", "::/64"]).serves("::1"));
        let specific = ["--deny", "::/0", "--allow", "::1/128"];
        assert!(Guarded::listen("[::1]:0", &specific).serves("::1"));
    }
}

#[test]
fn ipv4_rules_hold_ipv4_clients_of_a_listener_for_both_families() {
    if has_ipv6() {
        let guarded = Guarded::listen("0", &["--deny", "127.0.0.9"]);
        assert!(!guarded.serves("127.0.0.9"));
        assert!(guarded.serves("127.0.0.8"));
        assert!(guarded.serves("::1"));
        let guarded = Guarded::listen("0", &["--allow", "127.0.0.9"]);
        assert!(guarded.serves("127.0.0.9"));
        assert!(!guarded.serves("127.0.0.8"));
        assert!(!guarded.serves("::1"));
    }
}

#[test]
fn a_rule_on_mapped_addresses_is_one_on_ipv4_addresses() {
    let guarded = Guarded::start(&["--deny", "::ffff:127.0.0.8/127"]);
    assert!(!guarded.serves("127.0.0.8"));
    assert!(!guarded.serves("127.0.0.9"));
    assert!(guarded.serves("127.0.0.10"));
}

#[test]
fn rules_hold_at_every_listener() {
    let mut command = program("fdaccept");
    command.args(["--deny", "127.0.0.9", "127.0.0.1:0", "127.0.0.1:0"]);
    let mut process = Process::start(command.args(POOL));
    for port in [process.port(), process.port()] {
        assert!(!is_served("127.0.0.9", port));
        assert!(is_served("127.0.0.8", port));
    }
}

#[test]
fn clients_that_a_rule_denies_do_not_count_for_limits() {
    let options = ["--deny", "127.0.0.9", "--max", "1", "--max-per-source", "1"];
    let guarded = Guarded::start(&options);
    for _ in 0..10 {
        assert!(!guarded.serves("127.0.0.9"));
    }
    assert!(guarded.serves("127.0.0.8"));
}

#[test]
fn a_client_that_a_rule_denies_is_not_told_what_those_are_that_are_too_many() {
    let names = Names::new();
    let words = names.directory.path().join("words");
    std::fs::write(&words, "too many\n").unwrap();
    let words = words.to_str().unwrap();
    let options = ["--deny", "127.0.0.9", "--max", "1", "--when-full", words];
    assert!(!Guarded::start(&options).serves("127.0.0.9"));
}

#[test]
fn the_log_says_who_was_refused_and_why() {
    let mut guarded = Guarded::start(&["-v", "--deny", "127.0.0.9"]);
    assert!(!guarded.serves("127.0.0.9"));
    let line = guarded.process.line("refused");
    let expected = format!(
        "fdaccept: refused 127.0.0.9 on 127.0.0.1:{}: a rule denies it",
        guarded.port
    );
    assert_eq!(line, expected);
}

// A file of rules.

/// A file of rules, and fdaccept that goes by it.
struct Ruled {
    _names: Names,
    file: PathBuf,
    guarded: Guarded,
}

impl Ruled {
    fn start(rules: &str, options: &[&str]) -> Self {
        let names = Names::new();
        let file = names.directory.path().join("rules");
        std::fs::write(&file, rules).unwrap();
        let given = ["--rules", file.to_str().unwrap()];
        let guarded = Guarded::start(&[&given, options].concat());
        Self {
            _names: names,
            file,
            guarded,
        }
    }

    /// Other rules, which are not read yet.
    fn write(&self, rules: &str) {
        std::fs::write(&self.file, rules).unwrap();
    }

    /// Tells fdaccept to read them, and returns what it says.
    #[track_caller]
    fn reload(&mut self) -> String {
        self.guarded.process.signal(Signal::SIGHUP);
        self.guarded.process.line("rules")
    }

    #[track_caller]
    fn serves(&self, client: &str) -> bool {
        self.guarded.serves(client)
    }
}

#[test]
fn a_file_has_a_rule_a_line_and_comments() {
    let rules = "# Who may come.\n\n  allow\t127.0.0.0/24 # these\r\ndeny 127.0.0.9\nallow ::1";
    let ruled = Ruled::start(rules, &[]);
    assert!(ruled.serves("127.0.0.8"));
    assert!(!ruled.serves("127.0.0.9"));
    assert!(!ruled.serves("127.0.1.1"));
}

#[test]
fn an_empty_file_denies_nobody() {
    assert!(Ruled::start("", &[]).serves("127.0.0.1"));
}

#[test]
fn the_rules_of_the_file_are_added_to_those_of_the_command_line() {
    let mut ruled = Ruled::start("allow 127.0.0.9\n", &["--deny", "127.0.0.0/24"]);
    assert!(!ruled.serves("127.0.0.8"));
    assert!(ruled.serves("127.0.0.9"));
    assert!(!ruled.serves("127.0.1.1"));
    ruled.write("");
    ruled.reload();
    assert!(!ruled.serves("127.0.0.9"));
    assert!(ruled.serves("127.0.1.1"));
}

#[test]
fn the_file_is_read_again_on_hup_and_not_before() {
    let mut ruled = Ruled::start("deny 127.0.0.9\n", &[]);
    ruled.write("deny 127.0.0.8\n");
    assert!(ruled.serves("127.0.0.8"));
    assert!(!ruled.serves("127.0.0.9"));
    assert_eq!(ruled.reload(), "fdaccept: rules: read again");
    assert!(!ruled.serves("127.0.0.8"));
    assert!(ruled.serves("127.0.0.9"));
}

#[test]
fn a_broken_file_keeps_the_old_rules_and_the_log_says_which_line() {
    let mut ruled = Ruled::start("deny 127.0.0.9\n", &[]);
    let file = ruled.file.to_str().unwrap().to_owned();
    for (line, text) in [
        (1, "nonsense"),
        (2, "deny 127.0.0.8\nallow"),
        (3, "deny 127.0.0.8\n\ndeny 127.0.0.300\nallow x"),
        (2, "deny 127.0.0.8\nallow 127.0.0.8"),
        (1, "allow 127.0.0.0/33"),
    ] {
        ruled.write(text);
        let said = ruled.reload();
        let start = format!("fdaccept: {file}:{line}: ");
        assert!(said.starts_with(&start), "{said}");
        assert!(said.ends_with("; the old rules stay"), "{said}");
        assert!(ruled.serves("127.0.0.8"));
        assert!(!ruled.serves("127.0.0.9"));
    }
    ruled.write("deny 127.0.0.8\n");
    ruled.reload();
    assert!(!ruled.serves("127.0.0.8"));
    assert!(ruled.serves("127.0.0.9"));
}

#[test]
fn a_file_that_is_gone_keeps_the_old_rules() {
    let mut ruled = Ruled::start("deny 127.0.0.9\n", &[]);
    std::fs::remove_file(&ruled.file).unwrap();
    let said = ruled.reload();
    assert!(said.contains("No such file or directory"), "{said}");
    assert!(said.ends_with("; the old rules stay"), "{said}");
    assert!(!ruled.serves("127.0.0.9"));
    assert!(ruled.serves("127.0.0.8"));
}

#[test]
fn who_is_served_stays_so_when_rules_change() {
    let names = Names::new();
    let file = names.directory.path().join("rules");
    std::fs::write(&file, "").unwrap();
    let mut command = program("fdaccept");
    command.arg("--rules").arg(&file).arg("127.0.0.1:0");
    let mut process = Process::start(command.args(["--", "fdpool", "2", "--", "cat"]));
    let mut client = support::connect(process.port());
    let mut ping = || {
        std::io::Write::write_all(&mut client, b"ping").unwrap();
        client.read_exact(&mut [0; 4]).unwrap();
    };
    ping();
    std::fs::write(&file, "deny 127.0.0.0/8").unwrap();
    process.signal(Signal::SIGHUP);
    process.line("read again");
    ping();
}

#[test]
fn many_hups_turn_nobody_away_who_is_allowed() {
    let ruled = Ruled::start("allow 127.0.0.0/24\ndeny 127.0.0.9\n", &[]);
    for _ in 0..50 {
        ruled.guarded.process.signal(Signal::SIGHUP);
        assert!(ruled.serves("127.0.0.8"));
        ruled.guarded.process.signal(Signal::SIGHUP);
        assert!(!ruled.serves("127.0.0.9"));
    }
}

#[test]
fn without_a_file_of_rules_hup_ends_fdaccept() {
    let mut command = program("fdaccept");
    let names = Names::new();
    command.args(["--deny", "127.0.0.9", "--bind", &names.path()]);
    let mut process = Process::start(command.arg("127.0.0.1:0"));
    process.port();
    process.signal(Signal::SIGHUP);
    assert_eq!(process.wait().signal(), Some(Signal::SIGHUP as i32));
}

// Users and groups of Unix clients.

/// A Unix listener that everybody may connect to, as far as its mode goes.
struct UnixListener {
    _process: Process,
    _names: Names,
    path: PathBuf,
}

impl UnixListener {
    fn start(options: &[&str]) -> Self {
        let names = Names::new();
        let everybody = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&names.directory, everybody).unwrap();
        let path = names.directory.path().join("listener");
        let mut command = program("fdaccept");
        command.args(options).args(["--mode", "0666"]).arg(&path);
        let mut process = Process::start(command.args(POOL));
        process.listening();
        Self {
            _process: process,
            _names: names,
            path,
        }
    }

    /// Whether a client with this user, primary group and further groups is served.
    fn serves(&self, uid: u32, gid: u32, groups: &[u32]) -> bool {
        let groups: Vec<_> = groups.iter().map(u32::to_string).collect();
        let groups = if groups.is_empty() {
            "--clear-groups".to_owned()
        } else {
            format!("--groups={}", groups.join(","))
        };
        let mut command = Command::new(peer("setpriv").unwrap());
        command.args([format!("--reuid={uid}"), format!("--regid={gid}"), groups]);
        command.arg(peer("socat").unwrap()).arg("-u");
        command.arg(format!("UNIX-CONNECT:{}", self.path.display()));
        let (_, told, stderr) = run(command.arg("STDOUT").stdin(Stdio::null()));
        let is_refused = told.is_empty() && !stderr.contains("Permission denied");
        assert!(told == "served\n" || is_refused, "{told:?} {stderr:?}");
        !told.is_empty()
    }
}

fn can_be_others() -> bool {
    root() && peer("setpriv").is_some() && peer("socat").is_some()
}

#[test]
fn the_users_that_are_named_may_connect_and_nobody_else() {
    if can_be_others() {
        let listener = UnixListener::start(&["--allow-uid", "7001", "--allow-uid", "7002"]);
        assert!(listener.serves(7001, 1, &[]));
        assert!(listener.serves(7002, 1, &[]));
        assert!(!listener.serves(7003, 7001, &[7001]));
        // Nor root.
        assert!(!listener.serves(0, 0, &[]));
    }
}

#[test]
fn who_has_an_allowed_group_as_its_primary_one_may_connect() {
    if can_be_others() {
        let listener = UnixListener::start(&["--allow-gid", "7001"]);
        assert!(listener.serves(5, 7001, &[]));
        assert!(listener.serves(5, 7001, &[1, 2]));
        assert!(!listener.serves(7001, 5, &[]));
        assert!(!listener.serves(0, 0, &[]));
    }
}

#[test]
fn who_has_an_allowed_group_as_a_supplementary_one_may_connect() {
    if can_be_others() {
        let listener = UnixListener::start(&["--allow-gid", "7001"]);
        assert!(listener.serves(5, 5, &[7001]));
        assert!(listener.serves(5, 5, &[1, 7001, 9000]));
        assert!(!listener.serves(5, 5, &[1, 7002, 9000]));
    }
}

#[test]
fn a_user_may_have_any_number_of_groups() {
    if can_be_others() {
        let listener = UnixListener::start(&["--allow-gid", "7001"]);
        let mut groups: Vec<u32> = (10_000..12_000).collect();
        assert!(!listener.serves(5, 5, &groups));
        groups.push(7001);
        assert!(listener.serves(5, 5, &groups));
    }
}

#[test]
fn either_an_allowed_user_or_an_allowed_group_is_enough() {
    if can_be_others() {
        let listener = UnixListener::start(&["--allow-uid", "7001", "--allow-gid", "7002"]);
        assert!(listener.serves(7001, 5, &[]));
        assert!(listener.serves(5, 7002, &[]));
        assert!(listener.serves(5, 5, &[7002]));
        assert!(!listener.serves(7002, 7001, &[7001]));
    }
}

#[test]
fn without_users_and_groups_everybody_may_connect() {
    if can_be_others() {
        assert!(UnixListener::start(&[]).serves(7001, 7001, &[]));
    }
}

/// Whether this user, which may be root, is served by a Unix listener.
fn serves_us(options: &[&str]) -> bool {
    let listener = UnixListener::start(options);
    let mut told = String::new();
    let read = connect_unix(&listener.path).read_to_string(&mut told);
    assert!(read.is_err() || told.is_empty() || told == "served\n");
    told == "served\n"
}

#[test]
fn this_user_may_connect_where_it_or_its_group_is_named() {
    let uid = nix::unistd::geteuid().as_raw();
    let gid = nix::unistd::getegid().as_raw();
    assert!(serves_us(&["--allow-uid", &uid.to_string()]));
    assert!(!serves_us(&["--allow-uid", &(uid + 1).to_string()]));
    assert!(serves_us(&["--allow-gid", &gid.to_string()]));
    assert!(!serves_us(&["--allow-gid", "4000000"]));
}

#[test]
fn rules_on_addresses_do_not_hold_unix_clients() {
    assert!(serves_us(&["--allow", "192.0.2.1"]));
    assert!(serves_us(&["--deny", "0.0.0.0/0", "--deny", "::/0"]));
}

#[test]
fn users_and_groups_do_not_hold_clients_over_tcp() {
    let guarded = Guarded::start(&["--allow-uid", "7001", "--allow-gid", "7001"]);
    assert!(guarded.serves("127.0.0.1"));
}

// Wrong usage.

/// Checks that fdaccept with these options ends with this status, and with a message that has its
/// name and `expected`.
#[track_caller]
fn ends(options: &[&str], status: i32, expected: &str) {
    let names = Names::new();
    let mut command = program("fdaccept");
    command.args(["--bind", &names.path()]).args(options);
    let (code, _, stderr) = run(command.arg("127.0.0.1:0"));
    assert_eq!(code, Some(status), "{options:?}: {stderr}");
    let first = stderr.lines().next().unwrap();
    assert!(first.starts_with("fdaccept: "), "{stderr}");
    assert!(first.contains(expected), "{options:?}: {stderr}");
    if status == 2 {
        let help = "\nfdaccept: try 'fdaccept --help' for more information";
        assert!(stderr.ends_with(help), "{stderr}");
    }
}

#[test]
fn what_is_no_network_is_a_usage_error() {
    for option in ["--allow", "--deny"] {
        for text in [
            "",
            "x",
            "10.0.0",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/",
            "10.0.0.1-2",
            "localhost",
        ] {
            ends(&[&format!("{option}={text}")], 2, option);
        }
    }
}

#[test]
fn a_network_that_is_both_allowed_and_denied_is_a_usage_error() {
    let options = ["--allow", "10.1.0.0/16", "--deny", "10.1.2.3/16"];
    ends(&options, 2, "10.1.0.0/16 is allowed and denied");
}

#[test]
fn a_broken_file_of_rules_is_a_usage_error_that_names_the_line() {
    let names = Names::new();
    let file = names.directory.path().join("rules");
    std::fs::write(&file, "allow ::1\n\npermit 10.0.0.0/8\n").unwrap();
    let file = file.to_str().unwrap();
    ends(&["--rules", file], 2, &format!("{file}:3: "));
}

#[test]
fn a_file_of_rules_that_cannot_be_read_is_an_error() {
    ends(&["--rules", "/nowhere/rules"], 1, "/nowhere/rules");
}

#[test]
fn a_limit_is_a_number_from_one_on() {
    for option in ["--max", "--max-per-source"] {
        for text in ["0", "-1", "", "x", "1.5", "99999999999999999999999"] {
            ends(&[&format!("{option}={text}")], 2, option);
        }
    }
}

#[test]
fn a_rate_is_a_number_in_a_time() {
    for text in ["", "5", "5/", "/5", "0/1", "5/0", "-1/1", "1/x", "1/2/3"] {
        ends(&[&format!("--rate={text}")], 2, "--rate");
    }
}

#[test]
fn a_prefix_of_sources_is_two_numbers_of_bits() {
    for text in ["", "32", "33,64", "32,129", "x,64", "32,64,1"] {
        let option = format!("--source-prefix={text}");
        ends(&["--max-per-source", "1", &option], 2, "--source-prefix");
    }
}

#[test]
fn a_prefix_of_sources_needs_a_limit_for_each() {
    ends(
        &["--max", "1", "--source-prefix", "24,48"],
        2,
        "--max-per-source",
    );
}

#[test]
fn when_full_needs_a_limit() {
    ends(&["--when-full", "close"], 2, "--when-full needs --max");
    ends(&["--rate", "1/1", "--when-full", "wait"], 2, "--when-full");
}

#[test]
fn one_client_cannot_be_left_in_the_backlog() {
    let options = ["--max-per-source", "1", "--when-full", "wait"];
    ends(&options, 2, "--when-full wait needs --max");
}

#[test]
fn what_to_say_when_full_must_be_readable_and_short() {
    let names = Names::new();
    let file = names.directory.path().join("words");
    std::fs::write(&file, [b'x'; 4097]).unwrap();
    let file = file.to_str().unwrap();
    ends(&["--max", "1", "--when-full", file], 2, file);
    let missing = ["--max", "1", "--when-full", "/nowhere/words"];
    ends(&missing, 1, "/nowhere/words");
}

#[test]
fn a_group_is_a_number() {
    for text in ["", "x", "-1", "4294967296"] {
        ends(&[&format!("--allow-gid={text}")], 2, "--allow-gid");
    }
}

// Counters.

/// Sends USR1 until fdaccept's answer contains `expected`.
#[track_caller]
fn until_counters(process: &mut Process, expected: &str) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        process.signal(Signal::SIGUSR1);
        let line = process.line("fdaccept: accepted ");
        if line.contains(expected) {
            return;
        }
        assert!(Instant::now() < deadline, "{expected}, but {line}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// fdaccept with a named queue that nobody reads.
fn unread(names: &Names, options: &[&str]) -> (Process, u16) {
    let mut command = program("fdaccept");
    command.args(["--bind", &names.path()]).args(options);
    let mut process = Process::start(command.arg("127.0.0.1:0"));
    let port = process.port();
    (process, port)
}

/// Takes one connection, and ends.
#[track_caller]
fn take_one(names: &Names) {
    let (status, _, stderr) = run(program("fdrecv").args(["--connect", &names.path(), "true"]));
    assert_eq!(status, Some(0), "{stderr}");
}

#[test]
fn counters_tell_on_usr1_what_became_of_whom() {
    let names = Names::new();
    let options = ["--deny", "127.0.0.9", "--max-per-source", "2"];
    let (mut process, port) = unread(&names, &options);
    until_counters(
        &mut process,
        "accepted 0, passed 0, taken 0, refused by rule 0, by limit 0, held up by rate 0, \
         bad header 0, failed 0",
    );
    let _two = (support::connect(port), support::connect(port));
    until_counters(&mut process, "accepted 2, passed 2, taken 0, ");
    for _ in 0..3 {
        assert!(ask("127.0.0.9", port).is_err());
    }
    assert!(ask("127.0.0.1", port).is_err());
    take_one(&names);
    until_counters(
        &mut process,
        "accepted 6, passed 2, taken 1, refused by rule 3, by limit 1, held up by rate 0, \
         bad header 0, failed 0",
    );
}

#[test]
fn counters_are_told_at_exit() {
    let names = Names::new();
    let (mut process, port) = unread(&names, &["--deny", "127.0.0.9"]);
    let _client = support::connect(port);
    assert!(ask("127.0.0.9", port).is_err());
    take_one(&names);
    process.signal(Signal::SIGTERM);
    let (status, log) = process.finish();
    assert_eq!(status.code(), Some(0), "{log}");
    let expected = "fdaccept: accepted 2, passed 1, taken 1, refused by rule 1, by limit 0, \
                    held up by rate 0, bad header 0, failed 0";
    assert_eq!(log.lines().last(), Some(expected));
}

#[test]
fn counters_are_told_at_exit_also_without_rules_and_limits() {
    let names = Names::new();
    let (mut process, port) = unread(&names, &[]);
    let _client = support::connect(port);
    take_one(&names);
    process.signal(Signal::SIGTERM);
    let (status, log) = process.finish();
    assert_eq!(status.code(), Some(0), "{log}");
    let expected = "fdaccept: accepted 1, passed 1, taken 1, refused by rule 0, by limit 0, \
                    held up by rate 0, bad header 0, failed 0";
    assert_eq!(log.lines().last(), Some(expected));
    assert_eq!(besides_counters(&log).len(), 1, "{log}");
}

#[test]
fn counters_at_exit_tell_what_nobody_took() {
    let names = Names::new();
    let (mut process, port) = unread(&names, &["--grace", "0.2"]);
    let _clients = (support::connect(port), support::connect(port));
    until_counters(&mut process, "passed 2");
    process.signal(Signal::SIGTERM);
    let (status, log) = process.finish();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(
        log.contains("\nfdaccept: accepted 2, passed 2, taken 0, "),
        "{log}"
    );
}

#[test]
fn counters_tell_how_often_the_rate_held_clients_up() {
    let names = Names::new();
    let (mut process, port) = unread(&names, &["--rate", "1/0.1"]);
    let _clients: Vec<_> = (0..3).map(|_| support::connect(port)).collect();
    until_counters(&mut process, "accepted 3, ");
    process.signal(Signal::SIGUSR1);
    let line = process.line("held up by rate");
    let count = line.split("held up by rate ").nth(1).unwrap();
    let count: u32 = count.split(',').next().unwrap().parse().unwrap();
    assert!((2..=3).contains(&count), "{line}");
}

#[test]
fn counters_are_told_in_a_chain_and_do_not_disturb_it() {
    let mut guarded = Guarded::start(&["--deny", "127.0.0.9"]);
    assert!(guarded.serves("127.0.0.8"));
    assert!(!guarded.serves("127.0.0.9"));
    let pool = children(guarded.process.pid())[0];
    until("two slots", || children(pool).len() == 2);
    until_counters(&mut guarded.process, "accepted 2, passed 1");
    assert!(guarded.serves("127.0.0.8"));
    // Of a pool this signal is a request for a slot more.
    assert_eq!(children(pool).len(), 2);
    guarded.process.signal(Signal::SIGTERM);
    let (status, log) = guarded.process.finish();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("\nfdaccept: accepted 3, passed 2, "), "{log}");
}

#[test]
fn a_pipeline_tells_its_counters_at_exit() {
    let text = "fdaccept --deny 127.0.0.9 127.0.0.1:0 | fdpool 2 -- echo served";
    let mut process = Process::start(&mut support::script("sh", text));
    let port = process.port();
    assert!(is_served("127.0.0.8", port));
    assert!(!is_served("127.0.0.9", port));
    let is_fdaccept = |pid: &nix::unistd::Pid| {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm"));
        comm.is_ok_and(|comm| comm.trim_end() == "fdaccept")
    };
    let fdaccept = children(process.pid()).into_iter().find(is_fdaccept);
    nix::sys::signal::kill(fdaccept.unwrap(), Signal::SIGTERM).unwrap();
    let (_, log) = process.finish();
    let expected = "fdaccept: accepted 2, passed 1, taken 1, refused by rule 1, by limit 0, ";
    assert!(log.contains(expected), "{log}");
}

#[test]
fn counters_are_no_errors_so_they_are_not_told_where_only_errors_are() {
    let names = Names::new();
    let mut command = program("fdaccept");
    command.args(["-q", "--bind", &names.path()]);
    let mut process = Process::start(command.arg("127.0.0.1:0"));
    // It has no line to wait for: what it listens at does as well.
    until("the name", || names.directory.path().join("queue").exists());
    until("its signals", || {
        let text = std::fs::read_to_string(format!("/proc/{}/status", process.pid()));
        let blocked = text.unwrap().lines().find_map(|line| {
            let set = line.strip_prefix("SigBlk:\t")?;
            u64::from_str_radix(set, 16).ok()
        });
        blocked.is_some_and(|set| set & (1 << (Signal::SIGTERM as i32 - 1)) != 0)
    });
    process.signal(Signal::SIGTERM);
    assert_eq!(process.finish().1, "");
}
