//! `fdaccept --user`: once everything is bound it is somebody else for good, so is its command, and
//! whatever it has made belongs to that user.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{
    self, Crowd, DEADLINE, Names, Process, children, connect, connect_unix, descriptors,
    eventually, exchange, is_answered, peer, program, root, run, script, skip, until,
};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{Pid, User, getgrouplist};
use rustix::process::{Gid, Uid};
use rustix::thread::{
    LinkNameSpaceType, move_into_link_name_space, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};
use tempfile::TempDir;

const ADDRESS: &str = "127.0.0.1:0";
/// Users without an account.
const SOMEBODY: u32 = 4_000_000_001;
const THIRD: u32 = 4_000_000_002;
/// As `--user` takes the first one.
const AS_SOMEBODY: &str = "4000000001:4000000001";

/// Who a process is, as /proc says it.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    uids: [u32; 4],
    gids: [u32; 4],
    groups: BTreeSet<u32>,
    /// Of each set the capabilities: inheritable, permitted, effective, ambient.
    capabilities: [u64; 4],
}

impl Identity {
    fn of(pid: Pid) -> Self {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let lines = text.lines();
            let line = lines.filter_map(|line| line.strip_prefix(name)).next();
            line.unwrap().strip_prefix(':').unwrap().trim()
        };
        let numbers = |name| field(name).split_whitespace().map(|n| n.parse().unwrap());
        let four = |name| numbers(name).collect::<Vec<_>>().try_into().unwrap();
        let capabilities = ["CapInh", "CapPrm", "CapEff", "CapAmb"];
        Self {
            uids: four("Uid"),
            gids: four("Gid"),
            groups: numbers("Groups").collect(),
            capabilities: capabilities.map(|name| u64::from_str_radix(field(name), 16).unwrap()),
        }
    }

    /// That of somebody who is nobody else besides and has no privilege.
    fn plain(uid: u32, gid: u32, groups: &[u32]) -> Self {
        Self {
            uids: [uid; 4],
            gids: [gid; 4],
            groups: groups.iter().copied().collect(),
            capabilities: [0; 4],
        }
    }
}

/// Checks who a chain and its command are.
#[track_caller]
fn are(process: &Process, expected: &Identity) {
    assert_eq!(&Identity::of(process.pid()), expected, "fdaccept");
    let command = eventually("the command", || children(process.pid()).pop());
    assert_eq!(&Identity::of(command), expected, "its command");
}

/// `fdaccept --user USER`, behind `wrapper`, with a command that lives on.
#[track_caller]
fn chain_behind(wrapper: &[&str], user: &str) -> Process {
    let mut words = wrapper.to_vec();
    let fdaccept = support::bin_dir().join("fdaccept");
    words.push(fdaccept.to_str().unwrap());
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::null());
    command.args(["--user", user, ADDRESS, "--", "sleep", "1000"]);
    let mut process = Process::start(&mut command);
    // By then it is who it is to be.
    process.listening();
    process
}

/// A directory that every user can look into.
fn open_dir() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let everybody = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(dir.path(), everybody).unwrap();
    dir
}

/// One of the programs, to be run by another user. The build directory may be closed to it, so
/// `dir` gets a copy.
fn by(uid: u32, dir: &TempDir, name: &str) -> Command {
    let copy = dir.path().join(name);
    if !copy.exists() {
        // Another process writes it, as in support::executable.
        let original = support::bin_dir().join(name);
        let copied = Command::new("cp").arg(original).arg(&copy).status();
        assert!(copied.unwrap().success());
    }
    let mut command = Command::new(copy);
    command.uid(uid).gid(uid).current_dir("/");
    command.stdin(Stdio::null());
    command
}

// Who it becomes.

#[test]
fn it_and_its_command_become_the_user_with_the_users_groups() {
    if !root() {
        return;
    }
    let Some(nobody) = User::from_name("nobody").unwrap() else {
        return skip("there is no user nobody");
    };
    let groups = getgrouplist(c"nobody", nobody.gid).unwrap();
    let groups: Vec<_> = groups.into_iter().map(|gid| gid.as_raw()).collect();
    let (uid, gid) = (nobody.uid.as_raw(), nobody.gid.as_raw());
    for user in ["nobody", &uid.to_string()] {
        are(
            &chain_behind(&["env"], user),
            &Identity::plain(uid, gid, &groups),
        );
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

/// What a command starts with that finds these accounts and no others.
fn with_accounts(dir: &TempDir, accounts: &str, groups: &str) -> Option<Vec<String>> {
    let unshare = peer("unshare").filter(|_| root())?;
    let [passwd, group] = [("passwd", accounts), ("group", groups)].map(|(name, text)| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.into_os_string().into_string().unwrap()
    });
    let text = "mount --bind \"$1\" /etc/passwd && mount --bind \"$2\" /etc/group || exit 77
        shift 2; exec \"$@\"";
    let unshare = unshare.into_os_string().into_string().unwrap();
    let words = [&unshare, "--mount", "sh", "-c", text, "sh", &passwd, &group];
    let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
    let mut trial = Command::new(&words[0]);
    let (status, _, stderr) = run(trial.args(&words[1..]).arg("true"));
    if status != Some(0) {
        skip(&format!("no accounts of its own: {stderr}"));
        return None;
    }
    Some(words)
}

#[test]
fn names_and_numbers_and_groups_are_understood() {
    let dir = open_dir();
    let Some(words) = with_accounts(&dir, ACCOUNTS, GROUPS) else {
        return;
    };
    let words: Vec<_> = words.iter().map(String::as_str).collect();
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
        let expected = Identity::plain(uid, gid, groups);
        are(&chain_behind(&words, user), &expected);
    }
}

#[test]
fn a_user_may_be_in_many_groups() {
    let dir = open_dir();
    let mut groups = GROUPS.to_owned();
    let numbers: Vec<u32> = (8000..8300).collect();
    for number in &numbers {
        groups.push_str(&format!("group{number}:x:{number}:bob,alice\n"));
    }
    let Some(words) = with_accounts(&dir, ACCOUNTS, &groups) else {
        return;
    };
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let expected = [&[7001, 7010, 7011][..], &numbers].concat();
    let expected = Identity::plain(7001, 7001, &expected);
    are(&chain_behind(&words, "alice"), &expected);
}

#[test]
fn every_name_of_root_is_refused() {
    let dir = open_dir();
    let Some(words) = with_accounts(&dir, ACCOUNTS, GROUPS) else {
        return;
    };
    for user in ["root", "toor", "0", "toor:his"] {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command.arg(support::bin_dir().join("fdaccept"));
        command.args(["--user", user, ADDRESS, "--", "true"]);
        let (status, _, log) = run(command.stdin(Stdio::null()));
        assert_eq!(status, Some(2), "{user}: {log}");
        let expected = format!("fdaccept: --user {user}: must be another user than root");
        assert_eq!(log.lines().next(), Some(&*expected));
    }
}

// What it may have been before.

const RAISED: &str = "+setuid,+setgid,+net_bind_service,+sys_admin,+dac_override,+chown";

#[test]
fn nothing_is_left_of_groups_capabilities_and_secure_bits() {
    let Some(setpriv) = peer("setpriv").filter(|_| root()) else {
        return;
    };
    let setpriv = setpriv.to_str().unwrap();
    let inheritable = &format!("--inh-caps={RAISED}");
    let ambient = &format!("--ambient-caps={RAISED}");
    for before in [
        &["--groups=0,5,7002,4000000009"][..],
        &["--clear-groups"],
        &[inheritable],
        &[inheritable, ambient],
        &["--securebits=+no_setuid_fixup"],
        &["--securebits=+no_setuid_fixup", inheritable, ambient],
        &[
            "--securebits=+noroot,+no_setuid_fixup",
            inheritable,
            ambient,
        ],
        &["--securebits=+no_setuid_fixup,+no_setuid_fixup_locked"],
        // Not even root before, but with its means.
        &[
            "--reuid=7009",
            "--regid=7009",
            "--clear-groups",
            inheritable,
            ambient,
        ],
        &["--ruid=7009", "--euid=0", "--groups=5,7"],
    ] {
        let wrapper = [&[setpriv], before].concat();
        let mut trial = Command::new(setpriv);
        if !trial.args(before).arg("true").status().unwrap().success() {
            skip(&format!("no {before:?} here"));
            continue;
        }
        let process = chain_behind(&wrapper, AS_SOMEBODY);
        are(&process, &Identity::plain(SOMEBODY, SOMEBODY, &[SOMEBODY]));
    }
}

/// Tries the ways back that setpriv(1) has, and says which one is open.
const WAYS_BACK: &str = "try() { setpriv \"$@\" true 2>/dev/null && echo came back by $* >&2; }
    for id in reuid ruid euid; do try --$id=0; done
    for id in regid rgid egid; do try --$id=0 --keep-groups; done
    for other in --groups=0 --clear-groups --inh-caps=+chown --securebits=+noroot
    do try $other; done
    echo tried >&2; exec sleep 1000";

#[test]
fn a_command_cannot_come_back() {
    let Some(setpriv) = peer("setpriv").filter(|_| root()) else {
        return;
    };
    let setpriv = setpriv.to_str().unwrap();
    for before in [
        &["--groups=0,5"][..],
        &["--securebits=+no_setuid_fixup", "--groups=0,5"],
    ] {
        let mut command = Command::new(setpriv);
        command.args(before).stdin(Stdio::null());
        command.arg(support::bin_dir().join("fdaccept"));
        command.args(["--user", AS_SOMEBODY, ADDRESS, "--", "sh", "-c", WAYS_BACK]);
        let mut process = Process::start(&mut command);
        process.line("tried");
        assert!(!process.log().contains("came back"), "{}", process.log());
    }
}

/// The same ways, so that one that is open is noticed.
#[test]
fn who_still_is_root_can_come_back() {
    if !root() || peer("setpriv").is_none() {
        return;
    }
    let mut command = program("fdaccept");
    command.args([ADDRESS, "--", "sh", "-c", WAYS_BACK]);
    let mut process = Process::start(&mut command);
    for way in ["--reuid=0", "--regid=0", "--groups=0", "--clear-groups"] {
        process.line(&format!("came back by {way}"));
    }
    process.line("tried");
}

// Who cannot become somebody else.

/// Checks that fdaccept with these options says what is wrong with its `--user` before it does
/// anything else.
#[track_caller]
fn is_wrong(user: &str, expected: &str) {
    let names = Names::new();
    let directory = names.directory.path();
    let taken = TcpListener::bind(ADDRESS).unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let mut command = program("fdaccept");
    command.arg(format!("--user={user}"));
    command.args(["--bind", &names.path()]);
    command.arg("--port-file").arg(directory.join("ports"));
    // Who tried to bind that would say so.
    command.arg(directory.join("listener")).arg(&taken);
    let (status, _, log) = run(&mut command);
    assert_eq!(status, Some(2), "{log}");
    assert_eq!(log.lines().next(), Some(expected), "{log}");
    assert_eq!(directory.read_dir().unwrap().count(), 0);
}

#[test]
fn a_user_that_is_not_there_is_a_usage_error_before_anything_is_made() {
    is_wrong("no-such", "fdaccept: --user no-such: no such user");
    is_wrong("", "fdaccept: --user : no such user");
    is_wrong(":", "fdaccept: --user :: no such group");
    is_wrong("-1", "fdaccept: --user -1: no such user");
    is_wrong(
        "4294967296:1",
        "fdaccept: --user 4294967296:1: no such user",
    );
    is_wrong("\x1b[31m", "fdaccept: --user \\u{1b}[31m: no such user");
}

#[test]
fn a_group_that_is_not_there_is_a_usage_error_before_anything_is_made() {
    let expected = "fdaccept: --user 4000000001:no-such: no such group";
    is_wrong("4000000001:no-such", expected);
    is_wrong("root:", "fdaccept: --user root:: no such group");
    is_wrong("1:-1", "fdaccept: --user 1:-1: no such group");
    is_wrong(
        "1:4294967296",
        "fdaccept: --user 1:4294967296: no such group",
    );
}

#[test]
fn root_is_a_usage_error_before_anything_is_made() {
    for root in [
        "root",
        "0",
        "0:5",
        "root:nogroup",
        "4294967295:5",
        "5:4294967295",
    ] {
        if root == "root:nogroup" && nix::unistd::Group::from_name("nogroup").unwrap().is_none() {
            continue;
        }
        let expected = format!("fdaccept: --user {root}: must be another user than root");
        is_wrong(root, &expected);
    }
}

#[test]
fn a_number_without_an_account_needs_a_group() {
    let expected = "there is no account with that number, so give a group";
    is_wrong(
        "4000000001",
        &format!("fdaccept: --user 4000000001: {expected}"),
    );
}

/// Runs `fdaccept --user` without the privileges for it, with a listener in whose backlog a client
/// already is.
#[track_caller]
fn fails_and_accepts_nothing(wrapper: &[&str], dir: &TempDir, options: &[&str]) -> String {
    let listener = TcpListener::bind(ADDRESS).unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.write_all(b"hello").unwrap();
    let fdaccept = by(THIRD, dir, "fdaccept").get_program().to_owned();
    let mut command = Command::new(wrapper[0]);
    command.args(&wrapper[1..]).arg(fdaccept);
    command.args(["--user", AS_SOMEBODY]).args(options);
    command.args(["fd:0", "--", "touch", "./started"]);
    command.stdin(OwnedFd::from(listener.try_clone().unwrap()));
    let (status, _, log) = run(command.current_dir(dir.path()));
    assert_eq!(status, Some(1), "{log}");
    assert!(!log.contains("listening"), "{log}");
    assert!(!dir.path().join("started").exists());
    // The client still is in the backlog, and nobody has read from it.
    let (mut connection, _) = listener.accept().unwrap();
    connection.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut said = [0; 5];
    connection.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"hello");
    log
}

#[test]
fn who_has_no_privileges_fails_and_accepts_nothing() {
    let Some(setpriv) = peer("setpriv").filter(|_| root()) else {
        return;
    };
    let setpriv = setpriv.to_str().unwrap();
    let (third, group) = (&format!("--reuid={THIRD}"), &format!("--regid={THIRD}"));
    let lacks = |capability: &str| {
        let rest = RAISED.replace(&format!(",+{capability}"), "");
        let rest = rest.replace(&format!("+{capability},"), "");
        [
            format!("--inh-caps={rest}"),
            format!("--ambient-caps={rest}"),
        ]
    };
    let [no_setuid, no_setgid] = ["setuid", "setgid"].map(lacks);
    for lacking in [
        &[][..],
        &[&*no_setuid[0], &no_setuid[1]],
        &[&no_setgid[0], &no_setgid[1]],
    ] {
        let dir = open_dir();
        chown(dir.path(), Some(THIRD), Some(THIRD)).unwrap();
        let wrapper = [&[setpriv, third, group, "--clear-groups"], lacking].concat();
        let log = fails_and_accepts_nothing(&wrapper, &dir, &[]);
        let expected =
            format!("fdaccept: cannot become user {AS_SOMEBODY}: Operation not permitted");
        assert_eq!(log, expected);
    }
}

#[test]
fn who_may_not_give_a_path_away_fails_and_leaves_none() {
    let Some(setpriv) = peer("setpriv").filter(|_| root()) else {
        return;
    };
    let dir = open_dir();
    chown(dir.path(), Some(THIRD), Some(THIRD)).unwrap();
    let who = [format!("--reuid={THIRD}"), format!("--regid={THIRD}")];
    let wrapper = [
        setpriv.to_str().unwrap(),
        &who[0],
        &who[1],
        "--clear-groups",
    ];
    let log = fails_and_accepts_nothing(&wrapper, &dir, &["./listener"]);
    let expected = format!("cannot give ./listener to uid {SOMEBODY}: Operation not permitted");
    assert_eq!(log, format!("fdaccept: {expected}"));
    assert!(!dir.path().join("listener").exists());
    assert!(!dir.path().join("listener.lock").exists());
}

// What it does as root first.

#[test]
fn a_port_below_1024_is_bound_before() {
    let (Some(unshare), Some(_)) = (peer("unshare"), peer("ip")) else {
        return;
    };
    if !root() {
        return;
    }
    let dir = open_dir();
    let fdpool = by(SOMEBODY, &dir, "fdpool").get_program().to_owned();
    // Which is where only root may bind it.
    let text = "ip link set lo up && echo 1024 >/proc/sys/net/ipv4/ip_unprivileged_port_start \
        || { echo no network >&2; exit 77; }
        exec fdaccept --user \"$1\" 127.0.0.1:80 -- \"$0\" 2 -- sh -c 'id -u; exec cat'";
    let mut command = Command::new(unshare);
    command.args(["--net", "sh", "-c", text]).arg(fdpool);
    command.arg(AS_SOMEBODY).env("PATH", support::path());
    let mut process = Process::start(command.stdin(Stdio::null()));
    let line = process.line("");
    if line.starts_with("unshare: ") || line.contains("no network") {
        return skip("no network of its own");
    }
    assert_eq!(line, "fdaccept: listening on 127.0.0.1:80");
    let namespace = File::open(format!("/proc/{}/ns/net", process.pid())).unwrap();
    let client = std::thread::spawn(move || {
        // Of this thread alone.
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(namespace.as_fd(), kind).unwrap();
        exchange(80, b"hello")
    });
    let expected = format!("{SOMEBODY}\nhello");
    assert_eq!(client.join().unwrap(), expected.as_bytes());
    are(&process, &Identity::plain(SOMEBODY, SOMEBODY, &[SOMEBODY]));
}

fn lock_of(path: &Path) -> PathBuf {
    let mut lock = OsString::from(path);
    lock.push(".lock");
    lock.into()
}

/// Owner, group and permissions.
fn whose(path: &Path) -> (u32, u32, u32) {
    let meta = path.symlink_metadata().unwrap();
    (meta.uid(), meta.gid(), meta.permissions().mode() & 0o7777)
}

#[test]
fn the_paths_of_queues_and_listeners_belong_to_the_user() {
    if !root() {
        return;
    }
    for (options, mode) in [(&[][..], 0o600), (&["--mode", "660"], 0o660)] {
        let dir = open_dir();
        let (queue, listener) = (dir.path().join("queue"), dir.path().join("listener"));
        let mut command = program("fdaccept");
        command
            .args(["--user", "4000000001:4000000005"])
            .args(options);
        command.arg("--bind").arg(&queue).arg(&listener);
        let mut process = Process::start(&mut command);
        process.listening();
        for path in [&queue, &listener] {
            assert_eq!(whose(path), (SOMEBODY, 4_000_000_005, mode));
            assert_eq!(whose(&lock_of(path)), (SOMEBODY, 4_000_000_005, 0o600));
        }
    }
}

/// fdaccept of another user, with a queue to which consumers come.
struct Acceptor {
    process: Process,
    port: u16,
    dir: TempDir,
}

impl Acceptor {
    #[track_caller]
    fn start(queue: &str) -> Self {
        let dir = open_dir();
        let mut command = program("fdaccept");
        command.args(["--user", AS_SOMEBODY, "--bind", queue, ADDRESS]);
        let mut process = Process::start(command.current_dir(&dir));
        let port = process.port();
        Self { process, port, dir }
    }

    /// `fdpool --connect NAME`, of this user.
    fn pool(&self, uid: u32, queue: &str) -> Process {
        let mut command = by(uid, &self.dir, "fdpool");
        command.args(["--connect", queue, "2", "--", "sh", "-c"]);
        command.arg("id -u; exec cat");
        Process::start(command.current_dir(&self.dir))
    }

    /// Checks that a pool of this user serves.
    #[track_caller]
    fn is_served_by(&self, uid: u32, queue: &str) {
        let mut pool = self.pool(uid, queue);
        for _ in 0..3 {
            let answer = exchange(self.port, b"hello");
            assert_eq!(String::from_utf8(answer).unwrap(), format!("{uid}\nhello"));
        }
        // All of it, or what is left would take the next connection.
        pool.signal(Signal::SIGTERM);
        pool.wait();
    }
}

#[test]
fn a_pool_of_that_user_has_the_queue_at_a_path_and_that_of_a_third_one_not() {
    if !root() {
        return;
    }
    let acceptor = Acceptor::start("./queue");
    acceptor.is_served_by(SOMEBODY, "./queue");
    let (status, log) = acceptor.pool(THIRD, "./queue").finish();
    assert_eq!(status.code(), Some(1), "{log}");
    assert_eq!(log, "fdpool: cannot connect to ./queue: Permission denied");
    acceptor.is_served_by(0, "./queue");
    acceptor.is_served_by(SOMEBODY, "./queue");
}

/// As where both are started at the same time, and looking up a host takes long.
#[test]
fn a_pool_of_that_user_need_not_wait_until_everything_is_bound() {
    if !root() {
        return;
    }
    let dir = open_dir();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let mut command = program("fdaccept");
    command.args(["--user", AS_SOMEBODY, "--bind", "./queue", ADDRESS]);
    // Which waits for its reader.
    command.args(["--port-file", "./fifo"]);
    let _process = Process::start(command.current_dir(&dir));
    until("the queue", || dir.path().join("queue").exists());
    let mut fdpool = by(SOMEBODY, &dir, "fdpool");
    fdpool.args(["--connect", "./queue", "2", "--", "cat"]);
    let mut pool = Process::start(fdpool.current_dir(&dir));
    until("it to wait or to end", || {
        !pool.is_running() || is_waiting(pool.pid())
    });
    assert!(pool.is_running(), "{}", pool.log());
    let port = std::fs::read_to_string(&fifo).unwrap();
    let port = port.trim_end().parse().unwrap();
    assert_eq!(exchange(port, b"hello"), b"hello");
}

/// Whether a program has gone as far as it can: it has become itself, and sleeps.
fn is_waiting(pid: Pid) -> bool {
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm"));
    comm.is_ok_and(|comm| comm.starts_with("fd")) && support::state(pid) == Some('S')
}

#[test]
fn consumers_of_root_and_of_that_user_have_the_queue_at_an_abstract_name_and_no_third_ones() {
    if !root() {
        return;
    }
    let name = Names::new().abstract_name();
    let mut acceptor = Acceptor::start(&name);
    acceptor.is_served_by(SOMEBODY, &name);
    acceptor.is_served_by(0, &name);
    let mut fdrecv = by(THIRD, &acceptor.dir, "fdrecv");
    let (status, _, log) = run(fdrecv.args(["--connect", &name, "--allow-uid", "0", "cat"]));
    assert_eq!(status, Some(69), "{log}");
    let line = acceptor.process.line("a consumer was refused");
    assert!(line.contains("4000000002, which is not trusted"), "{line}");
    acceptor.is_served_by(SOMEBODY, &name);
}

#[test]
fn an_allowed_third_user_has_the_queue_at_an_abstract_name() {
    if !root() {
        return;
    }
    let (dir, name) = (open_dir(), Names::new().abstract_name());
    let mut command = program("fdaccept");
    command.args(["--user", AS_SOMEBODY, "--allow-uid", &THIRD.to_string()]);
    let mut process = Process::start(command.args(["--bind", &name, ADDRESS]));
    let port = process.port();
    for uid in [THIRD, SOMEBODY, 0] {
        let mut fdrecv = by(uid, &dir, "fdrecv");
        let mut consumer = Process::start(fdrecv.args(["--connect", &name, "--", "id", "-u"]));
        assert_eq!(exchange(port, b""), format!("{uid}\n").as_bytes());
        assert!(consumer.wait().success());
    }
}

#[test]
fn consumers_of_any_user_have_the_queue_by_a_ticket() {
    if !root() {
        return;
    }
    let dir = open_dir();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut process = {
        let mut command = program("fdaccept");
        Process::start(
            command
                .args(["--user", AS_SOMEBODY, ADDRESS])
                .stdout(writer),
        )
    };
    let port = process.port();
    for uid in [0, SOMEBODY, THIRD, 0] {
        let consumer = |name: &str, words: &[&str]| {
            let mut command = by(uid, &dir, name);
            command.args(words).stdin(reader.try_clone().unwrap());
            Process::start(&mut command)
        };
        let mut fdrecv = consumer("fdrecv", &["--", "id", "-u"]);
        assert_eq!(exchange(port, b""), format!("{uid}\n").as_bytes());
        assert!(fdrecv.wait().success());
        let mut pool = consumer("fdpool", &["2", "--", "cat"]);
        assert_eq!(exchange(port, b"hello"), b"hello");
        pool.signal(Signal::SIGTERM);
        pool.wait();
    }
    drop(reader);
    assert_eq!(process.wait().code(), Some(0));
}

/// Whether somebody with this user and group may connect to a Unix socket.
fn may_connect(uid: u32, path: &Path) -> bool {
    let path = path.to_owned();
    let client = std::thread::spawn(move || {
        // Of this thread alone.
        let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
        set_thread_groups(&[]).unwrap();
        set_thread_res_gid(group, group, group).unwrap();
        set_thread_res_uid(user, user, user).unwrap();
        UnixStream::connect(path).is_ok()
    });
    client.join().unwrap()
}

#[test]
fn a_client_of_that_user_may_connect_to_a_unix_listener_and_a_third_one_not() {
    if !root() {
        return;
    }
    let dir = open_dir();
    let path = dir.path().join("listener");
    let fdpool = by(SOMEBODY, &dir, "fdpool").get_program().to_owned();
    let mut command = program("fdaccept");
    command.args(["--user", AS_SOMEBODY]).arg(&path);
    command.arg("--").arg(fdpool).args(["2", "--", "id", "-u"]);
    let mut process = Process::start(&mut command);
    process.listening();
    assert!(may_connect(SOMEBODY, &path));
    assert!(!may_connect(THIRD, &path));
    let mut told = String::new();
    connect_unix(&path).read_to_string(&mut told).unwrap();
    assert_eq!(told, format!("{SOMEBODY}\n"));
}

#[test]
fn the_paths_are_gone_at_the_end_where_the_user_may_remove_them() {
    if !root() {
        return;
    }
    let dir = open_dir();
    chown(dir.path(), Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    let mut command = program("fdaccept");
    command.args(["--user", AS_SOMEBODY, "--bind", "./queue", "./listener"]);
    let mut process = Process::start(command.current_dir(&dir));
    process.listening();
    process.signal(Signal::SIGTERM);
    assert_eq!(process.wait().code(), Some(0));
    assert_eq!(dir.path().read_dir().unwrap().count(), 0);
}

#[test]
fn the_paths_that_the_user_may_not_remove_are_taken_over_by_the_next_one() {
    if !root() {
        return;
    }
    let dir = open_dir();
    for user in ["4000000001:5", "4000000002:6", "4000000001:7"] {
        let mut command = program("fdaccept");
        command.args(["--user", user, "--bind", "./queue", "./listener"]);
        let mut process = Process::start(command.current_dir(&dir));
        process.listening();
        let (uid, gid) = user.split_once(':').unwrap();
        let expected = (uid.parse().unwrap(), gid.parse().unwrap(), 0o600);
        assert_eq!(whose(&dir.path().join("queue")), expected);
        process.signal(Signal::SIGTERM);
        assert_eq!(process.wait().code(), Some(0));
    }
}

#[test]
fn a_command_that_the_user_may_not_execute_is_an_error() {
    if !root() {
        return;
    }
    let dir = open_dir();
    let path = dir.path().join("roots");
    let command = support::executable(&path, "#!/bin/sh\nexec sleep 1000\n");
    let mode = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(&path, mode).unwrap();
    let mut fdaccept = program("fdaccept");
    fdaccept.args(["--user", AS_SOMEBODY, ADDRESS, "--"]);
    let (status, _, log) = run(fdaccept.arg(command));
    assert_eq!(status, Some(126), "{log}");
    assert!(log.contains("Permission denied"), "{log}");
}

#[test]
fn rules_that_the_user_may_not_read_again_stay() {
    if !root() {
        return;
    }
    let dir = open_dir();
    let rules = dir.path().join("rules");
    std::fs::write(&rules, "deny 127.0.0.9\n").unwrap();
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(&rules, mode).unwrap();
    let fdpool = by(SOMEBODY, &dir, "fdpool").get_program().to_owned();
    let mut command = program("fdaccept");
    command.args(["--user", AS_SOMEBODY, "--rules"]).arg(&rules);
    command.args([ADDRESS, "--"]).arg(fdpool);
    let mut process = Process::start(command.args(["2", "--", "cat"]));
    let port = process.port();
    process.signal(Signal::SIGHUP);
    let line = process.line("rules");
    assert!(
        line.ends_with("Permission denied; the old rules stay"),
        "{line}"
    );
    assert_eq!(exchange(port, b"hello"), b"hello");
    chown(&rules, Some(SOMEBODY), None).unwrap();
    process.signal(Signal::SIGHUP);
    process.line("rules: read again");
}

/// Where the consumer owns the name, the user must be one that may send there.
#[test]
fn a_consumers_path_that_the_user_may_not_use_is_an_error_or_served_all_the_same() {
    if !root() {
        return;
    }
    let names = Names::new();
    let mut pool = program("fdpool");
    let _pool = Process::start(pool.args(["--bind", &names.path(), "2", "--", "cat"]));
    until("the name", || Path::new(&names.path()).exists());
    let mut command = program("fdaccept");
    command.args(["--user", AS_SOMEBODY, "--connect", &names.path(), ADDRESS]);
    let mut process = Process::start(&mut command);
    if eventually("a word", || {
        let log = process.log();
        (!log.is_empty()).then_some(log.contains("listening on "))
    }) {
        let log = process.log();
        let port = log.split_once("listening on 127.0.0.1:").unwrap().1;
        let mut client = connect(port.lines().next().unwrap().parse().unwrap());
        client.write_all(b"hello").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        until("the end of the wait", || {
            let log = process.log();
            assert!(!log.contains("connections wait"), "{log}");
            is_answered(&client)
        });
    } else {
        assert_eq!(process.wait().code(), Some(1), "{}", process.log());
    }
}

// When the queue is full.

/// Waits until a process has a connection in hand that it cannot pass on: it has had more than
/// `count` descriptors for a while.
#[track_caller]
fn until_full(pid: Pid, count: usize) {
    let mut full = 0;
    until("a full queue", || {
        full = if descriptors(pid).len() > count {
            full + 1
        } else {
            0
        };
        full == 20
    });
}

/// The kernel limits how many descriptors of a user who is not root may be on their way. `text`
/// starts fdaccept.
#[track_caller]
fn a_consumer_has_a_full_queue(text: &str) {
    if !root() {
        return;
    }
    let dir = open_dir();
    // For who becomes another user before it starts.
    let fdaccept = by(SOMEBODY, &dir, "fdaccept").get_program().to_owned();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut process = {
        let mut command = script("sh", &format!("ulimit -n 32; exec {text}"));
        command.arg(fdaccept).stdout(writer).current_dir(&dir);
        Process::start(&mut command)
    };
    let port = process.port();
    let pid = process.pid();
    let idle = descriptors(pid).len();
    let crowd = Crowd::connect(port, 60);
    until_full(pid, idle);
    let mut pool = program("fdpool");
    pool.current_dir(&dir).stdin(reader);
    if text.contains("@") {
        let name = text.split(' ').find(|word| word.starts_with('@'));
        pool.args(["--connect", name.unwrap()]);
    }
    let _pool = Process::start(pool.args(["4", "--", "cat"]));
    drop(pool);
    crowd.expect_served();
}

#[test]
fn a_consumer_has_a_full_queue_from_a_name() {
    let name = Names::new().abstract_name();
    let text = format!("\"$0\" --user 4000000011:11 --bind {name} {ADDRESS}");
    a_consumer_has_a_full_queue(&text);
}

#[test]
fn a_consumer_has_a_full_queue_by_a_ticket() {
    a_consumer_has_a_full_queue("\"$0\" --user 4000000012:12 127.0.0.1:0");
}

/// The same of who was that user from the start.
#[test]
fn a_consumer_has_a_full_queue_of_who_never_was_root() {
    if peer("setpriv").is_some() {
        let ids = "--reuid=4000000013 --regid=13 --clear-groups";
        a_consumer_has_a_full_queue(&format!("setpriv {ids} \"$0\" 127.0.0.1:0"));
    }
}
