//! `fdaccept --user`: once everything is bound, fdaccept and its command run as that user for good,
//! and what fdaccept has made belongs to that user.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::*;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{Pid, User, getgrouplist};
use rustix::process::{Gid, Uid};
use rustix::thread::{
    LinkNameSpaceType, move_into_link_name_space, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};
use tempfile::TempDir;

mod owner;
mod paths;

/// Uids without an account.
const SOMEBODY: u32 = 4_000_000_001;
const THIRD: u32 = 4_000_000_002;
/// [`SOMEBODY`] for `--user`.
const AS_SOMEBODY: &str = "4000000001:4000000001";

/// The credentials of a process, from /proc.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    uids: [u32; 4],
    gids: [u32; 4],
    groups: BTreeSet<u32>,
    /// Capability sets: inheritable, permitted, effective, ambient.
    capabilities: [u64; 4],
}

impl Identity {
    fn of(pid: Pid) -> Self {
        let numbers = |name| {
            let text = status_field(pid, name);
            let numbers = text.split_whitespace().map(|n| n.parse().unwrap());
            numbers.collect::<Vec<_>>()
        };
        let four = |name| numbers(name).try_into().unwrap();
        let capabilities = ["CapInh", "CapPrm", "CapEff", "CapAmb"];
        Self {
            uids: four("Uid"),
            gids: four("Gid"),
            groups: numbers("Groups").into_iter().collect(),
            capabilities: capabilities.map(|name| signal_set(pid, name)),
        }
    }

    /// One uid, one gid, no capabilities.
    fn plain(uid: u32, gid: u32, groups: &[u32]) -> Self {
        Self {
            uids: [uid; 4],
            gids: [gid; 4],
            groups: groups.iter().copied().collect(),
            capabilities: [0; 4],
        }
    }

    fn somebody() -> Self {
        Self::plain(SOMEBODY, SOMEBODY, &[SOMEBODY])
    }
}

/// Checks the credentials of a chain and its command.
#[track_caller]
fn are(process: &Process, expected: &Identity) {
    assert_eq!(&Identity::of(process.pid()), expected, "fdaccept");
    let command = eventually("the command", || process.children().pop());
    assert_eq!(&Identity::of(command), expected, "its command");
}

/// Checks the credentials of `fdaccept --user USER` behind `wrapper`, once it listens.
#[track_caller]
fn becomes(wrapper: &[impl AsRef<std::ffi::OsStr>], user: &str, expected: &Identity) {
    let fdaccept = Fdaccept::behind(wrapper).args(["--user", user]);
    are(&fdaccept.words("sleep 1000").start(), expected);
}

/// setpriv(1), for root.
fn setpriv() -> Option<String> {
    let path = peer("setpriv").filter(|_| root())?;
    Some(path.into_os_string().into_string().unwrap())
}

// The user, its groups.

#[test]
fn it_and_its_command_become_the_user_with_the_users_groups() {
    needs!(root());
    let Some(nobody) = User::from_name("nobody").unwrap() else {
        return skip("there is no user nobody");
    };
    let groups = getgrouplist(c"nobody", nobody.gid).unwrap();
    let groups: Vec<_> = groups.into_iter().map(|gid| gid.as_raw()).collect();
    let (uid, gid) = (nobody.uid.as_raw(), nobody.gid.as_raw());
    for user in ["nobody", &uid.to_string()] {
        becomes(&["env"], user, &Identity::plain(uid, gid, &groups));
    }
}

const ACCOUNTS: &str = "\
root:x:0:0::/:/bin/sh
toor:x:0:0::/:/bin/sh
alice:x:7001:7001::/:/bin/sh
bob:x:7002:7100::/:/bin/sh
7005:x:7003:7003::/:/bin/sh
";
const GROUPS: &str = "\
root:x:0:
alice:x:7001:
both:x:7010:alice,bob
hers:x:7011:alice
his:x:7012:bob
7013:x:7020:
";

/// A command prefix that replaces the accounts of the machine.
struct Accounts {
    words: Vec<String>,
    _dir: TempDir,
}

impl Accounts {
    /// [`ACCOUNTS`] and these groups. `None` if the machine forbids the mounts.
    fn with(groups: &str) -> Option<Self> {
        let unshare = peer("unshare").filter(|_| root())?;
        let dir = open_dir();
        let [passwd, group] = [("passwd", ACCOUNTS), ("group", groups)].map(|(name, text)| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.into_os_string().into_string().unwrap()
        });
        let text = "mount --bind \"$1\" /etc/passwd && mount --bind \"$2\" /etc/group || exit 77
            shift 2; exec \"$@\"";
        let unshare = unshare.into_os_string().into_string().unwrap();
        let words = [&unshare, "--mount", "sh", "-c", text, "sh", &passwd, &group];
        let words = words.map(str::to_owned).to_vec();
        let mut trial = Command::new(&words[0]);
        let (status, _, stderr) = run(trial.args(&words[1..]).arg("true"));
        if status != Some(0) {
            skip(&format!("no accounts of its own: {stderr}"));
            return None;
        }
        Some(Self { words, _dir: dir })
    }
}

#[test]
fn names_and_numbers_and_groups_are_understood() {
    let accounts = needs!(Accounts::with(GROUPS));
    for (user, uid, gid, groups) in [
        ("alice", 7001, 7001, &[7001, 7010, 7011][..]),
        ("7001", 7001, 7001, &[7001, 7010, 7011]),
        ("alice:his", 7001, 7012, &[7010, 7011, 7012]),
        ("alice:7777", 7001, 7777, &[7010, 7011, 7777]),
        ("7001:his", 7001, 7012, &[7010, 7011, 7012]),
        ("bob", 7002, 7100, &[7010, 7012, 7100]),
        // A name comes before a number.
        ("7005", 7003, 7003, &[7003]),
        ("alice:7013", 7001, 7020, &[7010, 7011, 7020]),
        // Without an account.
        ("4000000001:7777", SOMEBODY, 7777, &[7777]),
        ("4000000001:alice", SOMEBODY, 7001, &[7001]),
    ] {
        becomes(&accounts.words, user, &Identity::plain(uid, gid, groups));
    }
}

#[test]
fn a_user_may_be_in_many_groups() {
    let mut groups = GROUPS.to_owned();
    let numbers: Vec<u32> = (8000..8300).collect();
    for number in &numbers {
        groups.push_str(&format!("group{number}:x:{number}:bob,alice\n"));
    }
    let accounts = needs!(Accounts::with(&groups));
    let expected = [&[7001, 7010, 7011][..], &numbers].concat();
    let expected = Identity::plain(7001, 7001, &expected);
    becomes(&accounts.words, "alice", &expected);
}

#[test]
fn every_name_of_root_is_refused() {
    let accounts = needs!(Accounts::with(GROUPS));
    for user in ["root", "toor", "0", "toor:his"] {
        let fdaccept = Fdaccept::behind(&accounts.words).args(["--user", user]);
        let log = fdaccept.words("true").fails(2);
        let expected = format!("fdaccept: --user {user}: must be another user than root");
        assert_eq!(log.lines().next(), Some(&*expected));
    }
}

// Privileges that fdaccept was started with.

const RAISED: &str = "+setuid,+setgid,+net_bind_service,+sys_admin,+dac_override,+chown";

#[test]
fn nothing_is_left_of_groups_capabilities_and_secure_bits() {
    let setpriv = needs!(setpriv());
    let raised = format!("--inh-caps={RAISED} --ambient-caps={RAISED}");
    for before in [
        "--groups=0,5,7002,4000000009",
        "--clear-groups",
        &format!("--inh-caps={RAISED}"),
        &raised,
        "--securebits=+no_setuid_fixup",
        &format!("--securebits=+no_setuid_fixup {raised}"),
        &format!("--securebits=+noroot,+no_setuid_fixup {raised}"),
        "--securebits=+no_setuid_fixup,+no_setuid_fixup_locked",
        // Not root, but with its capabilities.
        &format!("--reuid=7009 --regid=7009 --clear-groups {raised}"),
        "--ruid=7009 --euid=0 --groups=5,7",
    ] {
        let words = format!("{setpriv} {before}");
        let words: Vec<_> = words.split(' ').collect();
        let mut trial = Command::new(&setpriv);
        trial.args(&words[1..]).arg("true");
        if !succeeds(&mut trial) {
            skip(&format!("no {before:?} here"));
            continue;
        }
        becomes(&words, AS_SOMEBODY, &Identity::somebody());
    }
}

/// Tries all that setpriv(1) can do to regain privileges, and says what succeeds.
const WAYS_BACK: &str = "try() { setpriv \"$@\" true 2>/dev/null && echo came back by $* >&2; }
    for id in reuid ruid euid; do try --$id=0; done
    for id in regid rgid egid; do try --$id=0 --keep-groups; done
    for other in --groups=0 --clear-groups --inh-caps=+chown --securebits=+noroot
    do try $other; done
    echo tried >&2; exec sleep 1000";

#[test]
fn a_command_cannot_come_back() {
    let setpriv = needs!(setpriv());
    let root = [&setpriv, "--groups=0,5"];
    let kept = [&setpriv, "--securebits=+no_setuid_fixup", "--groups=0,5"];
    for before in [&root[..], &kept] {
        let fdaccept = Fdaccept::behind(before).user(SOMEBODY);
        let mut acceptor = fdaccept.words("sh -c").word(WAYS_BACK).start();
        acceptor.line("tried");
        assert!(!acceptor.log().contains("came back"), "{}", acceptor.log());
    }
}

/// Shows that [`WAYS_BACK`] notices success.
#[test]
fn who_still_is_root_can_come_back() {
    needs!(setpriv());
    let mut acceptor = Fdaccept::chain(["sh", "-c", WAYS_BACK]).start();
    for way in ["--reuid=0", "--regid=0", "--groups=0", "--clear-groups"] {
        acceptor.line(&format!("came back by {way}"));
    }
    acceptor.line("tried");
}

// Errors.

/// Checks that fdaccept says what is wrong with this user, before it binds or writes anything.
#[track_caller]
fn is_wrong(user: &str, expected: &str) {
    let names = Names::new();
    let taken = TcpListener::bind(ADDRESS).unwrap();
    let fdaccept = Fdaccept::bound_at(&names.path()).dir(&names.directory);
    let fdaccept = fdaccept
        .arg(format!("--user={user}"))
        .options("--port-file ./ports");
    // The second address is in use. fdaccept must fail before it finds that out.
    let taken = taken.local_addr().unwrap().to_string();
    let log = fdaccept.listen("./listener").listen(taken).fails(2);
    let expected = format!("fdaccept: --user {expected}");
    assert_eq!(log.lines().next(), Some(&*expected), "{log}");
    assert!(names.is_empty());
}

#[test]
fn a_user_that_is_not_there_is_a_usage_error_before_anything_is_made() {
    is_wrong("no-such", "no-such: no such user");
    is_wrong("\x1b[31m", "\\u{1b}[31m: no such user");
}

cases! {
    is_wrong;
    a_group_that_is_not_there_is_a_usage_error_before_anything_is_made:
        "4000000001:no-such", "4000000001:no-such: no such group";
    root_is_a_usage_error_before_anything_is_made: "root", "root: must be another user than root";
    a_number_without_an_account_needs_a_group:
        "4000000001", "4000000001: there is no account with that number, so give a group";
}

/// Runs `fdaccept --user` without the privileges for it, with a listener in whose backlog a client
/// already is.
#[track_caller]
fn fails_and_accepts_nothing(dir: &TempDir, wrapper: &[String], address: &[&str]) -> String {
    let listener = TcpListener::bind(ADDRESS).unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.write_all(b"hello").unwrap();
    chown(dir.path(), Some(THIRD), Some(THIRD)).unwrap();
    let mut command = Command::new(setpriv().unwrap());
    command.args([format!("--reuid={THIRD}"), format!("--regid={THIRD}")]);
    command.arg("--clear-groups").args(wrapper);
    command.arg(copy_of("fdaccept", dir.path()));
    let fdaccept = Fdaccept::of(command).user(SOMEBODY).args(address);
    let inherited = OwnedFd::from(listener.try_clone().unwrap());
    let fdaccept = fdaccept.arg("fd:0").stdin(inherited).dir(dir);
    let log = fdaccept.words("touch ./started").fails(1);
    assert!(!log.contains("listening"), "{log}");
    assert!(!dir.path().join("started").exists());
    // The client is still in the backlog, with all that it has sent.
    let (mut connection, _) = listener.accept().unwrap();
    connection.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut said = [0; 5];
    connection.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"hello");
    log
}

#[test]
fn who_has_no_privileges_fails_and_accepts_nothing() {
    needs!(setpriv());
    let lacks = |capability: &str| {
        let mut rest: Vec<_> = RAISED.split(',').collect();
        rest.retain(|other| *other != capability);
        let rest = rest.join(",");
        ["--inh-caps", "--ambient-caps"].map(|option| format!("{option}={rest}"))
    };
    let [no_setuid, no_setgid] = ["+setuid", "+setgid"].map(lacks);
    for lacking in [vec![], no_setuid.to_vec(), no_setgid.to_vec()] {
        let log = fails_and_accepts_nothing(&open_dir(), &lacking, &[]);
        let expected = format!("cannot become user {AS_SOMEBODY}: Operation not permitted");
        assert_eq!(log, format!("fdaccept: {expected}"));
    }
}

#[test]
fn who_may_not_give_a_path_away_fails_and_leaves_none() {
    needs!(setpriv());
    let dir = open_dir();
    let log = fails_and_accepts_nothing(&dir, &[], &["./listener"]);
    let expected = format!("cannot give ./listener to uid {SOMEBODY}: Operation not permitted");
    assert_eq!(log, format!("fdaccept: {expected}"));
    assert!(!dir.path().join("listener").exists());
    assert!(!dir.path().join("listener.lock").exists());
}

// Steps that need root.

#[test]
fn a_port_below_1024_is_bound_before() {
    let unshare = needs!(peer("unshare"));
    needs!(peer("ip"));
    needs!(root());
    let dir = open_dir();
    // A network where only root may bind the port.
    let text = "ip link set lo up && echo 1024 >/proc/sys/net/ipv4/ip_unprivileged_port_start \
        || { echo no network >&2; exit 77; }
        exec fdaccept --user \"$1\" 127.0.0.1:80 -- \"$0\" 2 -- sh -c 'id -u; exec cat'";
    let mut command = Command::new(unshare);
    command.args(["--net", "sh", "-c", text]);
    command.arg(copy_of("fdpool", dir.path())).arg(AS_SOMEBODY);
    command.env("PATH", path()).stdin(Stdio::null());
    let mut process = command.start();
    let line = process.line("");
    if line.starts_with("unshare: ") || line.contains("no network") {
        return skip("no network of its own");
    }
    assert_eq!(line, "fdaccept: listening on 127.0.0.1:80");
    let namespace = File::open(format!("/proc/{}/ns/net", process.pid())).unwrap();
    let client = std::thread::spawn(move || {
        // This thread alone changes its network.
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(namespace.as_fd(), kind).unwrap();
        exchange(80, b"hello")
    });
    let expected = format!("{SOMEBODY}\nhello");
    assert_eq!(client.join().unwrap(), expected.as_bytes());
    are(&process, &Identity::somebody());
}

#[test]
fn the_paths_of_queues_and_listeners_belong_to_the_user() {
    needs!(root());
    for (options, mode) in [("", 0o600), ("--mode 660", 0o660)] {
        let fdaccept = Fdaccept::bound().options("--user 4000000001:4000000005");
        let acceptor = fdaccept.options(options).listen("./listener").start();
        for path in ["queue", "listener"].map(|name| acceptor.names.file(name)) {
            assert_eq!(whose(&path), (SOMEBODY, 4_000_000_005, mode));
            assert_eq!(whose(&lock_of(&path)), (SOMEBODY, 4_000_000_005, 0o600));
        }
    }
}

/// `fdaccept --user`, with a queue of this name.
fn acceptor_at(queue: &str) -> Acceptor {
    Fdaccept::bound_at(queue).open().user(SOMEBODY).start()
}

/// `fdpool --connect QUEUE`, run by this user.
fn pool(acceptor: &Acceptor, uid: u32) -> Pool {
    let mut command = by(uid, &acceptor.names.directory, "fdpool");
    command.current_dir(&acceptor.names.directory);
    acceptor.give_to(&mut command);
    command.args(["2", "--", "sh", "-c", "id -u; exec cat"]);
    Pool::of(&mut command)
}

/// Checks that a pool run by this user serves.
#[track_caller]
fn is_served_by(acceptor: &Acceptor, uid: u32) {
    let mut pool = pool(acceptor, uid);
    for _ in 0..3 {
        let answer = exchange(acceptor.port, b"hello");
        assert_eq!(String::from_utf8(answer).unwrap(), format!("{uid}\nhello"));
    }
    // Slots that outlive the pool would take the next connection.
    pool.end_by(Signal::SIGTERM);
}

#[test]
fn a_pool_of_that_user_has_the_queue_at_a_path_and_that_of_a_third_one_not() {
    needs!(root());
    let acceptor = acceptor_at("./queue");
    is_served_by(&acceptor, SOMEBODY);
    let log = pool(&acceptor, THIRD).expect_end(1);
    assert_eq!(log, "fdpool: cannot connect to ./queue: Permission denied");
    is_served_by(&acceptor, 0);
    is_served_by(&acceptor, SOMEBODY);
}

/// As when both start at the same time, and resolving a host takes long.
#[test]
fn a_pool_of_that_user_need_not_wait_until_everything_is_bound() {
    needs!(root());
    let fdaccept = Fdaccept::bound_at("./queue").open().user(SOMEBODY);
    let fifo = fdaccept.names.text("fifo");
    nix::unistd::mkfifo(&*fifo, Mode::S_IRWXU).unwrap();
    // fdaccept waits until the FIFO has a reader.
    let acceptor = fdaccept.options("--port-file ./fifo").spawn();
    until("the queue", || acceptor.names.file("queue").exists());
    let mut fdpool = by(SOMEBODY, &acceptor.names.directory, "fdpool");
    fdpool.args(["--connect", "./queue", "2", "--", "cat"]);
    let mut pool = Pool::of(fdpool.current_dir(&acceptor.names.directory));
    until("it to wait or to end", || {
        !pool.is_running() || is_waiting(pool.pid())
    });
    assert!(pool.is_running(), "{}", pool.log());
    let port = std::fs::read_to_string(&fifo).unwrap();
    let port = port.trim_end().parse().unwrap();
    assert_eq!(exchange(port, b"hello"), b"hello");
}

/// Whether a child has executed one of the programs, and sleeps.
fn is_waiting(pid: Pid) -> bool {
    let name = try_status_field(pid, "Name");
    name.is_some_and(|name| name.starts_with("fd")) && state(pid) == Some('S')
}

#[test]
fn consumers_of_root_and_of_that_user_have_the_queue_at_an_abstract_name_and_no_third_ones() {
    needs!(root());
    let name = Names::new().abstract_name();
    let mut acceptor = acceptor_at(&name);
    is_served_by(&acceptor, SOMEBODY);
    is_served_by(&acceptor, 0);
    let mut fdrecv = by(THIRD, &acceptor.names.directory, "fdrecv");
    fdrecv.args(["--connect", &name, "--allow-uid", "0", "cat"]);
    fdrecv.start().expect_end(69);
    let line = acceptor.line("a consumer was refused");
    assert!(line.contains("4000000002, which is not trusted"), "{line}");
    is_served_by(&acceptor, SOMEBODY);
}

/// Checks that `fdrecv` run by this user serves.
#[track_caller]
fn is_received_by(acceptor: &Acceptor, dir: &TempDir, uid: u32) {
    let mut fdrecv = by(uid, dir, "fdrecv");
    acceptor.give_to(&mut fdrecv);
    let mut consumer = fdrecv.args(["--", "id", "-u"]).start();
    let answer = exchange(acceptor.port, b"");
    assert_eq!(answer, format!("{uid}\n").as_bytes());
    assert!(consumer.wait().success());
}

#[test]
fn an_allowed_third_user_has_the_queue_at_an_abstract_name() {
    needs!(root());
    let dir = open_dir();
    let fdaccept = Fdaccept::bound_at(&Names::new().abstract_name()).user(SOMEBODY);
    let acceptor = fdaccept.options(&format!("--allow-uid {THIRD}")).start();
    for uid in [THIRD, SOMEBODY, 0] {
        is_received_by(&acceptor, &dir, uid);
    }
}

#[test]
fn consumers_of_any_user_have_the_queue_by_a_ticket() {
    needs!(root());
    let dir = open_dir();
    let mut acceptor = Fdaccept::piped().user(SOMEBODY).start();
    for uid in [0, SOMEBODY, THIRD, 0] {
        is_received_by(&acceptor, &dir, uid);
        let mut fdpool = by(uid, &dir, "fdpool");
        acceptor.give_to(&mut fdpool);
        let mut pool = Pool::of(fdpool.args(["2", "--", "cat"]));
        acceptor.expect_echo();
        pool.end_by(Signal::SIGTERM);
    }
    drop(acceptor.take_pipe());
    acceptor.expect_exit(0);
}

/// Does `action` as a user with one group.
fn as_member<T: Send>(uid: u32, gid: u32, action: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // The calls change this thread alone.
            let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
            set_thread_groups(&[]).unwrap();
            set_thread_res_gid(group, group, group).unwrap();
            set_thread_res_uid(user, user, user).unwrap();
            action()
        });
        thread.join().unwrap()
    })
}

/// Whether a process with this uid and gid may connect to a Unix socket.
fn may_connect(uid: u32, path: &Path) -> bool {
    as_member(uid, uid, || UnixStream::connect(path).is_ok())
}

/// fdaccept for [`SOMEBODY`] with a pool, from a copy that this user may execute.
fn pool_of_somebody(handler: &[&str]) -> Fdaccept {
    let mut plain = Fdaccept::plain().open().user(SOMEBODY);
    let fdpool = copy_of("fdpool", Path::new(&plain.names.text("")));
    plain = plain.word(fdpool).words("2 --");
    handler.iter().fold(plain, Fdaccept::word)
}

#[test]
fn a_client_of_that_user_may_connect_to_a_unix_listener_and_a_third_one_not() {
    needs!(root());
    let acceptor = pool_of_somebody(&["id", "-u"]).listen("./listener").start();
    let path = acceptor.names.file("listener");
    assert!(may_connect(SOMEBODY, &path));
    assert!(!may_connect(THIRD, &path));
    let told = Client::connect_unix(&path).rest();
    assert_eq!(told, format!("{SOMEBODY}\n"));
}

#[test]
fn the_paths_are_gone_at_the_end_where_the_user_may_remove_them() {
    needs!(root());
    let fdaccept = Fdaccept::bound_at("./queue")
        .listen("./listener")
        .user(SOMEBODY);
    chown(fdaccept.names.text(""), Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    let mut acceptor = fdaccept.start();
    acceptor.stop();
    assert!(acceptor.names.is_empty());
}

#[test]
fn the_paths_that_the_user_may_not_remove_are_taken_over_by_the_next_one() {
    needs!(root());
    let dir = open_dir();
    for (uid, gid) in [(SOMEBODY, 5), (THIRD, 6), (SOMEBODY, 7)] {
        let fdaccept = Fdaccept::bound_at("./queue").listen("./listener").dir(&dir);
        let mut acceptor = fdaccept.options(&format!("--user {uid}:{gid}")).start();
        assert_eq!(whose(&dir.path().join("queue")), (uid, gid, 0o600));
        acceptor.stop();
    }
}

fn set_mode(path: impl AsRef<Path>, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_command_that_the_user_may_not_execute_is_an_error() {
    needs!(root());
    let fdaccept = Fdaccept::plain().open().user(SOMEBODY);
    let path = fdaccept.names.text("roots");
    let command = executable(&path, "#!/bin/sh\nexec sleep 1000\n");
    set_mode(&path, 0o700);
    let log = fdaccept.word(command).fails(126);
    assert!(log.contains("Permission denied"), "{log}");
}

#[test]
fn rules_that_the_user_may_not_read_again_stay() {
    needs!(root());
    let fdaccept = pool_of_somebody(&["cat"]).file("rules", "deny 127.0.0.9\n");
    let rules = fdaccept.names.text("rules");
    set_mode(&rules, 0o600);
    let mut acceptor = fdaccept.options("--rules ./rules").start();
    acceptor.signal(Signal::SIGHUP);
    let line = acceptor.line("rules");
    let expected = "Permission denied; the old rules stay";
    assert!(line.ends_with(expected), "{line}");
    acceptor.expect_echo();
    chown(&rules, Some(SOMEBODY), None).unwrap();
    acceptor.signal(Signal::SIGHUP);
    acceptor.line("rules: read again");
}

/// The consumer owns the name: whether the user may send to it is up to the consumer's mode.
#[test]
fn a_consumers_path_that_the_user_may_not_use_is_an_error_or_served_all_the_same() {
    needs!(root());
    let names = Names::new();
    let _pool = Pool::bound_at(&names.path()).slots(2, ["cat"]).start();
    until("the name", || names.file("queue").exists());
    let fdaccept = Fdaccept::plain().user(SOMEBODY);
    let mut acceptor = fdaccept.args(["--connect", &names.path()]).spawn();
    let log = eventually("a word", || {
        Some(acceptor.log()).filter(|log| !log.is_empty())
    });
    if log.contains("listening on ") {
        let port = log.split_once("listening on 127.0.0.1:").unwrap().1;
        let client = Client::connect(port.lines().next().unwrap().parse().unwrap());
        client.send("hello");
        client.end();
        until("the end of the wait", || {
            let log = acceptor.log();
            assert!(!log.contains("connections wait"), "{log}");
            client.is_answered()
        });
    } else {
        acceptor.expect_exit(1);
    }
}

// When the queue is full.

/// The kernel limits the descriptors in flight of every user but root. `text` starts fdaccept.
#[track_caller]
fn a_consumer_has_a_full_queue(text: &str) {
    needs!(root());
    let dir = open_dir();
    // Started by setpriv(1), fdaccept cannot be in the build directory, which may be closed.
    let fdaccept = copy_of("fdaccept", dir.path());
    let text = text.replace("fdaccept", fdaccept.to_str().unwrap());
    let (reader, writer) = std::io::pipe().unwrap();
    let fdaccept = Fdaccept::sh(&format!("ulimit -n 32; exec {text} {ADDRESS}"));
    let acceptor = fdaccept.stdout(writer).start();
    let pid = acceptor.pid();
    let idle = descriptors(pid).len();
    let crowd = Crowd::connect(acceptor.port, 60);
    until_full(pid, idle);
    let pool = match text.split(' ').find(|word| word.starts_with('@')) {
        Some(name) => Pool::on(name),
        None => Pool::on(&reader),
    };
    let _pool = pool.slots(4, ["cat"]).start();
    drop(reader);
    crowd.expect_served();
}

cases! {
    a_consumer_has_a_full_queue;
    a_consumer_has_a_full_queue_from_a_name:
        &format!("fdaccept --user 4000000011:11 --bind {}", Names::new().abstract_name());
    a_consumer_has_a_full_queue_by_a_ticket: "fdaccept --user 4000000012:12";
}

#[test]
fn a_consumer_has_a_full_queue_of_who_never_was_root() {
    needs!(setpriv());
    let ids = "--reuid=4000000013 --regid=13 --clear-groups";
    a_consumer_has_a_full_queue(&format!("setpriv {ids} fdaccept"));
}
