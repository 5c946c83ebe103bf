//! Access: rules on addresses, a file of rules, users and groups of Unix clients, and the
//! counters.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::{lchown, symlink};
use std::process::{Command, Stdio};

use crate::support::*;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

/// fdaccept with a pool whose handlers say "served".
fn guarded() -> Fdaccept {
    Fdaccept::pool("echo served")
}

fn start(options: &str) -> Acceptor {
    guarded().options(options).start()
}

/// The answer to a client at this address, from a server in the same family.
fn ask(client: &str, port: u16) -> std::io::Result<String> {
    let client: IpAddr = client.parse().unwrap();
    let server = match client {
        IpAddr::V4(_) => SocketAddr::from(([127, 0, 0, 1], port)),
        IpAddr::V6(_) => SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], port)),
    };
    let mut told = String::new();
    try_connect_from(client, server)?.read_to_string(&mut told)?;
    Ok(told)
}

/// Whether a client at this address is served; if not, its connection is reset.
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

#[track_caller]
fn serves(acceptor: &Acceptor, clients: &[&str]) {
    for client in clients {
        assert!(is_served(client, acceptor.port), "{client}");
    }
}

#[track_caller]
fn resets(acceptor: &Acceptor, clients: &[&str]) {
    for client in clients {
        assert!(!is_served(client, acceptor.port), "{client}");
    }
}

// Rules on addresses.

/// Checks which clients fdaccept with these options resets, and which it serves.
#[track_caller]
fn expect_judged(options: &str, denied: &[&str], allowed: &[&str]) {
    let acceptor = start(options);
    resets(&acceptor, denied);
    serves(&acceptor, allowed);
}

cases! {
    expect_judged;
    a_client_that_a_rule_denies_is_reset_and_others_are_served:
        "--deny 127.0.0.9", &["127.0.0.9"], &["127.0.0.8", "127.0.0.1"];
    a_rule_that_allows_some_shuts_out_all_others:
        "--allow 127.0.0.8/31", &["127.0.0.7", "127.0.0.10"], &["127.0.0.8", "127.0.0.9"];
    a_rule_on_mapped_addresses_is_one_on_ipv4_addresses:
        "--deny ::ffff:127.0.0.8/127", &["127.0.0.8", "127.0.0.9"], &["127.0.0.10"];
    clients_that_a_rule_denies_do_not_count_for_limits:
        "--deny 127.0.0.9 --max 1 --max-per-source 1", &["127.0.0.9"; 10], &["127.0.0.8"];
    users_and_groups_do_not_hold_clients_over_tcp:
        "--allow-uid 7001 --allow-gid 7001", &[], &["127.0.0.1"];
}

#[test]
fn the_most_specific_rule_decides_in_whatever_order_they_are_given() {
    let mut rules = [
        "--deny 127.0.0.0/8",
        "--allow 127.1.0.0/16",
        "--deny 127.1.1.0/24",
        "--allow 127.1.1.1/32",
    ];
    for _ in 0..2 {
        let (denied, allowed) = (["127.0.0.1", "127.1.1.2"], ["127.1.2.1", "127.1.1.1"]);
        expect_judged(&rules.join(" "), &denied, &allowed);
        rules.reverse();
    }
}

/// Many clients under many rules, compared with a linear search of the rules.
#[test]
fn every_client_is_judged_as_its_longest_prefix_says() {
    let mut random = Random(7);
    let mut rules: Vec<(bool, u32, u32)> = Vec::new();
    while rules.len() < 40 {
        let length = 9 + random.below(24) as u32;
        let mask = u32::MAX << (32 - length);
        // Few bits vary, so that many networks contain others.
        let net = (0x7f00_0000 | random.below(16) as u32 | (random.below(4) as u32) << 22) & mask;
        let is_same = |(_, other, bits): &(bool, u32, u32)| (*other, *bits) == (net, length);
        if !rules.iter().any(is_same) {
            rules.push((random.below(2) == 0, net, length));
        }
    }
    let mut fdaccept = guarded();
    for (allow, net, length) in &rules {
        let option = if *allow { "--allow" } else { "--deny" };
        let net = std::net::Ipv4Addr::from(*net);
        fdaccept = fdaccept.options(&format!("{option} {net}/{length}"));
    }
    let acceptor = fdaccept.start();
    let mut seen = [0, 0];
    for _ in 0..100 {
        let bits = 0x7f00_0000 | random.below(16) as u32 | (random.below(4) as u32) << 22;
        // No client can have the address 127.0.0.0.
        let client = bits.max(0x7f00_0001);
        let holds = |net, length| client & (u32::MAX << (32 - length)) == net;
        let holding = rules.iter().filter(|(_, net, length)| holds(*net, *length));
        let longest = holding.max_by_key(|(_, _, length)| *length);
        let expected = longest.is_some_and(|(allow, _, _)| *allow);
        let text = std::net::Ipv4Addr::from(client).to_string();
        let is_served = is_served(&text, acceptor.port);
        assert_eq!(is_served, expected, "{text} {longest:?}");
        seen[usize::from(expected)] += 1;
    }
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}

#[test]
fn rules_hold_ipv6_clients() {
    needs!(has_ipv6());
    let at_ipv6 = |options| guarded().listen("[::1]:0").options(options).start();
    resets(&at_ipv6("--deny ::1"), &["::1"]);
    resets(&at_ipv6("--allow 2001:db8::/32"), &["::1"]);
    resets(&at_ipv6("--allow 127.0.0.1"), &["::1"]);
    serves(&at_ipv6("--allow ::/64"), &["::1"]);
    serves(&at_ipv6("--deny ::/0 --allow ::1/128"), &["::1"]);
}

#[test]
fn ipv4_rules_hold_ipv4_clients_of_a_listener_for_both_families() {
    needs!(has_ipv6());
    let acceptor = guarded().listen("0").options("--deny 127.0.0.9").start();
    resets(&acceptor, &["127.0.0.9"]);
    serves(&acceptor, &["127.0.0.8", "::1"]);
    let acceptor = guarded().listen("0").options("--allow 127.0.0.9").start();
    serves(&acceptor, &["127.0.0.9"]);
    resets(&acceptor, &["127.0.0.8", "::1"]);
}

#[test]
fn rules_hold_at_every_listener() {
    let two = guarded().listen(ADDRESS).listen(ADDRESS);
    let acceptor = two.options("--deny 127.0.0.9").start();
    for port in &acceptor.ports {
        assert!(!is_served("127.0.0.9", *port));
        assert!(is_served("127.0.0.8", *port));
    }
}

#[test]
fn a_client_that_a_rule_denies_is_not_told_what_those_are_that_are_too_many() {
    let full = guarded()
        .file("words", "too many\n")
        .options("--max 1 --when-full ./words");
    resets(&full.options("--deny 127.0.0.9").start(), &["127.0.0.9"]);
}

#[test]
fn the_log_says_who_was_refused_and_why() {
    let mut acceptor = start("-v --deny 127.0.0.9");
    resets(&acceptor, &["127.0.0.9"]);
    let line = acceptor.line("refused");
    let why = format!(" on 127.0.0.1:{}: a rule denies it", acceptor.port);
    let told = port_told(&line, "fdaccept: refused 127.0.0.9", &why);
    assert!(told.is_some(), "{line}");
}

// A file of rules.

fn ruled(rules: &str) -> Fdaccept {
    guarded().file("rules", rules).options("--rules ./rules")
}

/// Writes other rules to the file. fdaccept does not read them yet.
fn write(acceptor: &Acceptor, rules: &str) {
    std::fs::write(acceptor.names.file("rules"), rules).unwrap();
}

/// Has fdaccept read the rules again, and returns what it says.
#[track_caller]
fn reload(acceptor: &mut Acceptor) -> String {
    acceptor.signal(Signal::SIGHUP);
    acceptor.line("rules")
}

#[test]
fn a_file_has_a_rule_a_line_and_comments() {
    let rules = "# Who may come.\n\n  allow\t127.0.0.0/24 # these\r\ndeny 127.0.0.9\nallow ::1";
    let acceptor = ruled(rules).start();
    serves(&acceptor, &["127.0.0.8"]);
    resets(&acceptor, &["127.0.0.9", "127.0.1.1"]);
}

#[test]
fn a_file_of_another_system_is_understood() {
    let mut acceptor = ruled("\u{feff}deny 127.0.0.9\r\nallow 127.0.0.0/24\r\n").start();
    serves(&acceptor, &["127.0.0.8"]);
    resets(&acceptor, &["127.0.0.9"]);
    write(&acceptor, "\u{feff}# None.\r\n");
    assert_eq!(reload(&mut acceptor), "fdaccept: rules: read again");
    serves(&acceptor, &["127.0.0.9"]);
}

#[test]
fn what_cannot_be_seen_in_a_broken_rule_is_shown() {
    for (rule, line, shown) in [
        ("deny\u{a0}127.0.0.9", 1, r"deny\u{a0}127.0.0.9"),
        (
            "allow ::1\n\u{feff}deny 127.0.0.9",
            2,
            r"\u{feff}deny 127.0.0.9",
        ),
        ("deny 127.0.0.9\u{200b}", 1, r"127.0.0.9\u{200b}"),
    ] {
        let log = ruled(rule).fails(2);
        let start = format!("fdaccept: ./rules:{line}: not a");
        assert!(log.starts_with(&start) && log.ends_with(shown), "{log}");
    }
}

#[test]
fn an_empty_file_denies_nobody() {
    serves(&ruled("").start(), &["127.0.0.1"]);
}

#[test]
fn the_rules_of_the_file_are_added_to_those_of_the_command_line() {
    let ruled = ruled("allow 127.0.0.9\n").options("--deny 127.0.0.0/24");
    let mut acceptor = ruled.start();
    resets(&acceptor, &["127.0.0.8", "127.0.1.1"]);
    serves(&acceptor, &["127.0.0.9"]);
    write(&acceptor, "");
    reload(&mut acceptor);
    resets(&acceptor, &["127.0.0.9"]);
    serves(&acceptor, &["127.0.1.1"]);
}

#[test]
fn the_file_is_read_again_on_hup_and_not_before() {
    let mut acceptor = ruled("deny 127.0.0.9\n").start();
    write(&acceptor, "deny 127.0.0.8\n");
    serves(&acceptor, &["127.0.0.8"]);
    resets(&acceptor, &["127.0.0.9"]);
    assert_eq!(reload(&mut acceptor), "fdaccept: rules: read again");
    resets(&acceptor, &["127.0.0.8"]);
    serves(&acceptor, &["127.0.0.9"]);
}

#[test]
fn a_broken_file_keeps_the_old_rules_and_the_log_says_which_line() {
    let mut acceptor = ruled("deny 127.0.0.9\n").start();
    for (line, text) in [
        (1, "nonsense"),
        (2, "deny 127.0.0.8\nallow"),
        (3, "deny 127.0.0.8\n\ndeny 127.0.0.300\nallow x"),
        (2, "deny 127.0.0.8\nallow 127.0.0.8"),
        (1, "allow 127.0.0.0/33"),
    ] {
        write(&acceptor, text);
        let said = reload(&mut acceptor);
        let start = format!("fdaccept: ./rules:{line}: ");
        assert!(said.starts_with(&start), "{said}");
        assert!(said.ends_with("; the old rules stay"), "{said}");
        serves(&acceptor, &["127.0.0.8"]);
        resets(&acceptor, &["127.0.0.9"]);
    }
    write(&acceptor, "deny 127.0.0.8\n");
    reload(&mut acceptor);
    resets(&acceptor, &["127.0.0.8"]);
    serves(&acceptor, &["127.0.0.9"]);
}

#[test]
fn a_file_that_is_gone_keeps_the_old_rules() {
    let mut acceptor = ruled("deny 127.0.0.9\n").start();
    std::fs::remove_file(acceptor.names.file("rules")).unwrap();
    let said = reload(&mut acceptor);
    assert!(said.contains("No such file or directory"), "{said}");
    assert!(said.ends_with("; the old rules stay"), "{said}");
    resets(&acceptor, &["127.0.0.9"]);
    serves(&acceptor, &["127.0.0.8"]);
}

#[test]
fn a_file_that_has_become_a_fifo_keeps_the_old_rules_and_nobody_waits() {
    let mut acceptor = ruled("deny 127.0.0.9\n").start();
    let rules = acceptor.names.file("rules");
    std::fs::remove_file(&rules).unwrap();
    mkfifo(&rules, Mode::S_IRWXU).unwrap();
    let said = reload(&mut acceptor);
    let expected =
        "cannot read the rules in ./rules: nothing was written to it; the old rules stay";
    assert_eq!(said, format!("fdaccept: {expected}"));
    resets(&acceptor, &["127.0.0.9"]);
    serves(&acceptor, &["127.0.0.8"]);
}

#[test]
fn rules_from_a_pipe_stay_when_it_has_nothing_more() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"deny 127.0.0.9\n").unwrap();
    drop(writer);
    let piped = guarded().options("--rules /dev/fd/0").stdin(reader);
    let mut acceptor = piped.start();
    resets(&acceptor, &["127.0.0.9"]);
    let said = reload(&mut acceptor);
    assert!(said.ends_with("; the old rules stay"), "{said}");
    resets(&acceptor, &["127.0.0.9"]);
    serves(&acceptor, &["127.0.0.8"]);
}

#[test]
fn who_is_served_stays_so_when_rules_change() {
    let cats = Fdaccept::cats().file("rules", "");
    let mut acceptor = cats.options("--rules ./rules").start();
    let client = acceptor.served_client();
    write(&acceptor, "deny 127.0.0.0/8");
    assert_eq!(reload(&mut acceptor), "fdaccept: rules: read again");
    client.expect_served();
}

#[test]
fn many_hups_turn_nobody_away_who_is_allowed() {
    let acceptor = ruled("allow 127.0.0.0/24\ndeny 127.0.0.9\n").start();
    for _ in 0..50 {
        acceptor.signal(Signal::SIGHUP);
        serves(&acceptor, &["127.0.0.8"]);
        acceptor.signal(Signal::SIGHUP);
        resets(&acceptor, &["127.0.0.9"]);
    }
}

#[test]
fn without_a_file_of_rules_hup_ends_fdaccept() {
    let mut acceptor = unread("--deny 127.0.0.9");
    acceptor.signal(Signal::SIGHUP);
    acceptor.expect_killed_by(Signal::SIGHUP);
}

// Users and groups of Unix clients.

/// A Unix listener whose mode keeps nobody out.
fn unix_listener(options: &str) -> Acceptor {
    let anybody = guarded().open().options("--mode 0666");
    anybody.options(options).listen("./listener").start()
}

/// Whether a Unix client with this user, primary group and further groups is served.
fn serves_user(acceptor: &Acceptor, uid: u32, gid: u32, groups: &[u32]) -> bool {
    let groups: Vec<_> = groups.iter().map(u32::to_string).collect();
    let groups = if groups.is_empty() {
        "--clear-groups".to_owned()
    } else {
        format!("--groups={}", groups.join(","))
    };
    let mut command = Command::new(peer("setpriv").unwrap());
    command.args([format!("--reuid={uid}"), format!("--regid={gid}"), groups]);
    command.arg(peer("socat").unwrap()).arg("-u");
    command.arg(format!("UNIX-CONNECT:{}", acceptor.names.text("listener")));
    let (_, told, stderr) = run(command.arg("STDOUT").stdin(Stdio::null()));
    let is_refused = told.is_empty() && !stderr.contains("Permission denied");
    assert!(told == "served\n" || is_refused, "{told:?} {stderr:?}");
    !told.is_empty()
}

/// Checks which users, by uid, gid and further groups, a listener with these options serves.
#[track_caller]
fn expect_users(options: &str, expected: &[(u32, u32, &[u32], bool)]) {
    if root() && peer("setpriv").is_some() && peer("socat").is_some() {
        let acceptor = unix_listener(options);
        for (uid, gid, groups, served) in expected {
            let is_served = serves_user(&acceptor, *uid, *gid, groups);
            assert_eq!(is_served, *served, "{uid} {gid} {groups:?}");
        }
    }
}

cases! {
    expect_users;
    the_users_that_are_named_may_connect_and_nobody_else: "--allow-uid 7001 --allow-uid 7002", &[
        (7001, 1, &[], true),
        (7002, 1, &[], true),
        (7003, 7001, &[7001], false),
        // Nor root.
        (0, 0, &[], false),
    ];
    who_has_an_allowed_group_as_its_primary_one_may_connect: "--allow-gid 7001", &[
        (5, 7001, &[], true),
        (5, 7001, &[1, 2], true),
        (7001, 5, &[], false),
        (0, 0, &[], false),
    ];
    who_has_an_allowed_group_as_a_supplementary_one_may_connect: "--allow-gid 7001", &[
        (5, 5, &[7001], true),
        (5, 5, &[1, 7001, 9000], true),
        (5, 5, &[1, 7002, 9000], false),
    ];
    either_an_allowed_user_or_an_allowed_group_is_enough: "--allow-uid 7001 --allow-gid 7002", &[
        (7001, 5, &[], true),
        (5, 7002, &[], true),
        (5, 5, &[7002], true),
        (7002, 7001, &[7001], false),
    ];
    without_users_and_groups_everybody_may_connect: "", &[(7001, 7001, &[], true)];
}

#[test]
fn a_user_may_have_any_number_of_groups() {
    let mut groups: Vec<u32> = (10_000..12_000).collect();
    groups.push(7001);
    let without = &groups[..2000];
    expect_users(
        "--allow-gid 7001",
        &[(5, 5, without, false), (5, 5, &groups, true)],
    );
}

/// Whether a Unix listener serves the user of this test.
fn serves_us(options: &str) -> bool {
    let acceptor = unix_listener(options);
    let mut told = String::new();
    let read = connect_unix(acceptor.names.file("listener")).read_to_string(&mut told);
    assert!(read.is_err() || told.is_empty() || told == "served\n");
    told == "served\n"
}

#[test]
fn this_user_may_connect_where_it_or_its_group_is_named() {
    let uid = nix::unistd::geteuid().as_raw();
    let gid = nix::unistd::getegid().as_raw();
    assert!(serves_us(&format!("--allow-uid {uid}")));
    assert!(!serves_us(&format!("--allow-uid {}", uid + 1)));
    assert!(serves_us(&format!("--allow-gid {gid}")));
    assert!(!serves_us("--allow-gid 4000000"));
}

#[test]
fn rules_on_addresses_do_not_hold_unix_clients() {
    assert!(serves_us("--allow 192.0.2.1"));
    assert!(serves_us("--deny 0.0.0.0/0 --deny ::/0"));
}

// Wrong usage. The parsers' own tests try more spellings.

/// Checks that fdaccept ends with this status and a message that contains `expected`. Returns the
/// lines after it.
#[track_caller]
fn ends_saying(fdaccept: Fdaccept, options: &str, status: i32, expected: &str) -> String {
    let log = fdaccept.args(options.split(' ')).fails(status);
    let (first, rest) = log.split_once('\n').unwrap_or((&log, ""));
    assert!(first.starts_with("fdaccept: "), "{log}");
    assert!(first.contains(expected), "{options}: {log}");
    rest.to_owned()
}

/// The same for what is wrong with a file, where `--help` would not help.
#[track_caller]
fn ends(fdaccept: Fdaccept, options: &str, status: i32, expected: &str) {
    assert_eq!(ends_saying(fdaccept, options, status, expected), "");
}

/// Checks that these options are wrong usage, with messages that contain this.
#[track_caller]
fn is_wrong_usage(wrong: &[(&str, &str)]) {
    for (options, expected) in wrong {
        let rest = ends_saying(Fdaccept::bound(), options, 2, expected);
        assert_eq!(rest, "fdaccept: try 'fdaccept --help' for more information");
    }
}

cases! {
    is_wrong_usage;
    what_is_no_network_is_a_usage_error:
        &[("--allow=10.0.0.0/33", "--allow"), ("--deny=", "--deny")];
    a_network_that_is_both_allowed_and_denied_is_a_usage_error:
        &[("--allow 10.1.0.0/16 --deny 10.1.2.3/16", "10.1.0.0/16 is allowed and denied")];
    a_limit_is_a_number_from_one_on:
        &[("--max=0", "--max"), ("--max-per-source=0", "--max-per-source")];
    a_rate_is_a_number_in_a_time: &[("--rate=5", "--rate")];
    a_prefix_of_sources_is_two_numbers_of_bits:
        &[("--max-per-source 1 --source-prefix=33,64", "--source-prefix")];
    a_prefix_of_sources_needs_a_limit_for_each:
        &[("--max 1 --source-prefix 24,48", "--max-per-source")];
    when_full_needs_a_limit: &[
        ("--when-full close", "--when-full needs --max"),
        ("--rate 1/1 --when-full wait", "--when-full"),
    ];
    one_client_cannot_be_left_in_the_backlog:
        &[("--max-per-source 1 --when-full wait", "--when-full wait needs --max")];
    a_group_is_a_number: &[("--allow-gid=4294967296", "--allow-gid")];
}

#[test]
fn a_broken_file_of_rules_is_a_usage_error_that_names_the_line() {
    let rules = "allow ::1\n\npermit 10.0.0.0/8\n";
    let broken = Fdaccept::bound().file("rules", rules);
    ends(broken, "--rules ./rules", 2, "./rules:3: ");
}

#[test]
fn a_file_of_rules_that_cannot_be_read_is_an_error() {
    let options = "--rules /nowhere/rules";
    ends(Fdaccept::bound(), options, 1, "/nowhere/rules");
}

#[test]
fn what_to_say_when_full_must_be_readable_and_short() {
    let long = Fdaccept::bound().file("words", [b'x'; 4097]);
    ends(long, "--max 1 --when-full ./words", 2, "./words");
    let missing = "--max 1 --when-full /nowhere/words";
    ends(Fdaccept::bound(), missing, 1, "/nowhere/words");
}

#[test]
fn a_fifo_that_nobody_writes_to_is_an_error() {
    std::thread::scope(|scope| {
        for options in ["--rules ./fifo", "--max 1 --when-full ./fifo"] {
            scope.spawn(move || {
                let fdaccept = Fdaccept::bound();
                mkfifo(&*fdaccept.names.text("fifo"), Mode::S_IRWXU).unwrap();
                ends(fdaccept, options, 1, "./fifo: nothing was written to it");
            });
        }
    });
}

/// It may lead to a file that only root can read, and clients would be told what is there.
#[test]
fn a_link_of_a_user_with_fewer_rights_is_not_followed() {
    needs!(root());
    for options in ["--rules ./link", "--max 1 --when-full ./link"] {
        let fdaccept = || {
            let fdaccept = Fdaccept::bound().file("file", "# secret");
            symlink("file", fdaccept.names.text("link")).unwrap();
            fdaccept
        };
        fdaccept().options(options).start();
        let theirs = fdaccept();
        lchown(theirs.names.text("link"), Some(NOBODY), None).unwrap();
        let expected = format!("./link: it is a symbolic link of uid {NOBODY}");
        ends(theirs, options, 1, &expected);
    }
}

/// The same on the way to the file.
#[test]
fn a_folder_behind_a_link_of_a_user_with_fewer_rights_is_not_entered() {
    needs!(root());
    for options in ["--rules ./link/file", "--max 1 --when-full ./link/file"] {
        let fdaccept = || {
            let fdaccept = Fdaccept::bound();
            std::fs::create_dir(fdaccept.names.text("folder")).unwrap();
            symlink("folder", fdaccept.names.text("link")).unwrap();
            fdaccept.file("folder/file", "# secret")
        };
        fdaccept().options(options).start();
        let theirs = fdaccept();
        lchown(theirs.names.text("link"), Some(NOBODY), None).unwrap();
        let expected = format!("./link/file: link is a symbolic link of uid {NOBODY}");
        ends(theirs, options, 1, &expected);
    }
}

#[test]
fn a_descriptor_that_nobody_left_open_is_no_empty_file_of_rules() {
    for options in ["--rules /dev/fd/3", "--max 1 --when-full /dev/fd/3"] {
        let log = Fdaccept::bound().options(options).spawn().expect_end(2);
        assert!(log.contains("descriptor 3 is not open"), "{log}");
    }
    let text = "exec fdaccept --rules /dev/fd/3 --bind ./queue 127.0.0.1:0 3<rules";
    let mut fdaccept = Fdaccept::sh(text).file("rules", "deny 127.0.0.1\n").spawn();
    let client = TcpStream::connect((Ipv4Addr::LOCALHOST, fdaccept.port()));
    let denied = client.and_then(|mut client| client.read(&mut [0]));
    assert_eq!(denied.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_file_without_an_end_is_wrong_usage() {
    for options in ["--rules /dev/zero", "--max 1 --when-full /dev/zero"] {
        ends(Fdaccept::bound(), options, 2, "/dev/zero has more than ");
    }
}

// Counters.

/// Sends USR1 until fdaccept's answer contains `expected`.
#[track_caller]
fn until_counters(process: &mut Process, expected: &str) {
    until(expected, || process.counters().contains(expected));
}

/// fdaccept with a named queue that nobody reads.
fn unread(options: &str) -> Acceptor {
    Fdaccept::bound().options(options).start()
}

/// Takes one connection, and ends.
#[track_caller]
fn take_one(acceptor: &Acceptor) {
    fdrecv_on(acceptor).arg("true").start().expect_end(0);
}

#[test]
fn counters_tell_on_usr1_what_became_of_whom() {
    let mut acceptor = unread("--deny 127.0.0.9 --max-per-source 2");
    until_counters(
        &mut acceptor,
        "accepted 0, passed 0, taken 0, refused by rule 0, by limit 0, held up by rate 0, \
         bad header 0, failed 0",
    );
    let _two = [acceptor.client(), acceptor.client()];
    until_counters(&mut acceptor, "accepted 2, passed 2, taken 0, ");
    for client in ["127.0.0.9", "127.0.0.9", "127.0.0.9", "127.0.0.1"] {
        assert!(ask(client, acceptor.port).is_err());
    }
    take_one(&acceptor);
    until_counters(
        &mut acceptor,
        "accepted 6, passed 2, taken 1, refused by rule 3, by limit 1, held up by rate 0, \
         bad header 0, failed 0",
    );
}

#[test]
fn counters_are_told_at_exit() {
    let mut acceptor = unread("--deny 127.0.0.9");
    let _client = acceptor.client();
    assert!(ask("127.0.0.9", acceptor.port).is_err());
    take_one(&acceptor);
    let expected = "fdaccept: accepted 2, passed 1, taken 1, refused by rule 1, by limit 0, \
                    held up by rate 0, bad header 0, failed 0";
    assert_eq!(acceptor.stop().lines().last(), Some(expected));
}

#[test]
fn counters_are_told_at_exit_also_without_rules_and_limits() {
    let mut acceptor = unread("");
    let _client = acceptor.client();
    take_one(&acceptor);
    let log = acceptor.stop();
    let expected = "fdaccept: accepted 1, passed 1, taken 1, refused by rule 0, by limit 0, \
                    held up by rate 0, bad header 0, failed 0";
    assert_eq!(log.lines().last(), Some(expected));
    assert_eq!(besides_counters(&log).len(), 1, "{log}");
}

#[test]
fn counters_at_exit_tell_what_nobody_took() {
    let mut acceptor = unread("--grace 0.2");
    let _clients = [acceptor.client(), acceptor.client()];
    until_counters(&mut acceptor, "passed 2");
    acceptor.term();
    let log = acceptor.expect_end(1);
    let expected = "\nfdaccept: accepted 2, passed 2, taken 0, ";
    assert!(log.contains(expected), "{log}");
}

#[test]
fn counters_tell_how_often_the_rate_held_clients_up() {
    let mut acceptor = unread("--rate 1/0.1");
    let _clients = [(); 3].map(|()| acceptor.client());
    until_counters(&mut acceptor, "accepted 3, ");
    let count = acceptor.counted("held up by rate");
    assert!((2..=3).contains(&count), "{count}");
}

#[test]
fn counters_are_told_in_a_chain_and_do_not_disturb_it() {
    let mut acceptor = start("--deny 127.0.0.9");
    serves(&acceptor, &["127.0.0.8"]);
    resets(&acceptor, &["127.0.0.9"]);
    let pool = acceptor.children()[0];
    until("two slots", || children(pool).len() == 2);
    until_counters(&mut acceptor, "accepted 2, passed 1");
    serves(&acceptor, &["127.0.0.8"]);
    // This signal asks a pool for one slot more.
    assert_eq!(children(pool).len(), 2);
    let log = acceptor.stop();
    assert!(log.contains("\nfdaccept: accepted 3, passed 2, "), "{log}");
}

#[test]
fn a_pipeline_tells_its_counters_at_exit() {
    let text = "fdaccept --deny 127.0.0.9 127.0.0.1:0 | fdpool 2 -- echo served";
    let mut acceptor = Fdaccept::sh(text).start();
    serves(&acceptor, &["127.0.0.8"]);
    resets(&acceptor, &["127.0.0.9"]);
    let name = |pid: &_| try_status_field(*pid, "Name");
    let mut both = acceptor.children().into_iter();
    let fdaccept = both.find(|pid| name(pid).as_deref() == Some("fdaccept"));
    kill(fdaccept.unwrap(), Signal::SIGTERM).unwrap();
    let (_, log) = acceptor.finish();
    let expected = "fdaccept: accepted 2, passed 1, taken 1, refused by rule 1, by limit 0, ";
    assert!(log.contains(expected), "{log}");
}

#[test]
fn counters_are_no_errors_so_they_are_not_told_where_only_errors_are() {
    let mut acceptor = Fdaccept::bound().arg("-q").spawn();
    // With -q no line says that it listens.
    until("the name", || acceptor.names.file("queue").exists());
    until("its signals", || {
        has_signal(acceptor.pid(), "SigBlk", Signal::SIGTERM)
    });
    acceptor.term();
    assert_eq!(acceptor.finish().1, "");
}
