//! `--owner [USER][:GROUP]`: whose the paths are, without becoming that user.

use super::*;

/// A group that no user here has as its own.
const GROUP: u32 = 4_000_000_009;

/// Owner, group and permissions of the queue and of the listener of an fdaccept.
#[track_caller]
fn paths_are(acceptor: &Acceptor, expected: (u32, u32, u32)) {
    for name in ["queue", "listener"] {
        let path = acceptor.names.file(name);
        assert_eq!(whose(&path), expected, "{name}");
        let (uid, gid, _) = expected;
        assert_eq!(whose(&lock_of(&path)), (uid, gid, 0o600), "{name}");
    }
}

/// What the command line of each program needs behind its options.
fn rest_of(program: &str) -> &'static [&'static str] {
    match program {
        "fdaccept" => &[ADDRESS],
        "fdpool" => &["2", "--", "cat"],
        _ => &["--", "cat"],
    }
}

/// fdaccept with a queue and a listener.
fn two_paths() -> Fdaccept {
    Fdaccept::bound_at("./queue").listen("./listener")
}

#[test]
fn paths_belong_to_the_owner_that_was_named() {
    needs!(root());
    for (owner, uid, gid) in [
        ("4000000001", SOMEBODY, 0),
        (":4000000009", 0, GROUP),
        ("4000000001:4000000009", SOMEBODY, GROUP),
        ("root:", 0, 0),
        ("root", 0, 0),
    ] {
        let acceptor = two_paths().args(["--owner", owner]).start();
        paths_are(&acceptor, (uid, gid, 0o600));
    }
}

#[test]
fn names_of_users_and_groups_are_found() {
    needs!(root());
    let Some(nobody) = User::from_name("nobody").unwrap() else {
        return skip("there is no user nobody");
    };
    let (uid, gid) = (nobody.uid.as_raw(), nobody.gid.as_raw());
    // With a colon the group is that of the account, as for chown(1).
    for (owner, gid) in [("nobody", 0), ("nobody:", gid), ("nobody:root", 0)] {
        let acceptor = two_paths().args(["--owner", owner, "--mode=660"]).start();
        paths_are(&acceptor, (uid, gid, 0o660));
    }
}

#[test]
fn the_owner_counts_more_than_the_user() {
    needs!(root());
    for (owner, uid, gid) in [
        (":4000000009", SOMEBODY, GROUP),
        ("4000000002", THIRD, SOMEBODY),
        ("4000000002:4000000009", THIRD, GROUP),
        ("root:root", 0, 0),
    ] {
        let fdaccept = two_paths().open().user(SOMEBODY);
        let acceptor = fdaccept.args(["--owner", owner]).start();
        paths_are(&acceptor, (uid, gid, 0o600));
        let identity = Identity::of(acceptor.pid());
        assert_eq!(identity, Identity::somebody());
    }
}

/// In a directory that gives its own group to new files.
#[test]
fn a_group_that_was_named_counts_more_than_that_of_the_directory() {
    needs!(root());
    for (owner, uid, gid) in [
        (":4000000005", 0, 4_000_000_005),
        ("4000000001:4000000005", SOMEBODY, 4_000_000_005),
        (":4000000009", 0, GROUP),
        ("4000000001", SOMEBODY, GROUP),
    ] {
        let fdaccept = two_paths().args(["--owner", owner]).options("--mode 660");
        in_directory_of_group(&fdaccept);
        let acceptor = fdaccept.start();
        for name in ["queue", "listener"] {
            let path = acceptor.names.file(name);
            assert_eq!(whose(&path), (uid, gid, 0o660), "{owner} {name}");
        }
    }
}

fn in_directory_of_group(fdaccept: &Fdaccept) {
    let directory = fdaccept.names.text("");
    chown(&directory, None, Some(GROUP)).unwrap();
    set_mode(&directory, 0o2755);
}

#[test]
fn clients_of_the_group_connect_and_others_do_not() {
    needs!(root());
    let fdaccept = Fdaccept::pool("cat").open();
    let options = format!("--owner :{GROUP} --mode 660");
    let acceptor = fdaccept.options(&options).listen("./listener").start();
    let path = acceptor.names.file("listener");
    let connect = |uid, gid| as_member(uid, gid, || UnixStream::connect(&path));
    let client = connect(THIRD, GROUP).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    Client(client).expect_echo("hello");
    let refused = connect(THIRD, THIRD).map_err(|error| error.kind());
    assert_eq!(refused.err(), Some(std::io::ErrorKind::PermissionDenied));
}

#[test]
fn consumers_of_the_group_have_the_queue() {
    needs!(root());
    let dir = open_dir();
    let fdaccept = Fdaccept::bound().open();
    let options = format!("--owner :{GROUP} --mode 660");
    let acceptor = fdaccept.options(&options).start();
    let fdrecv = |gid: u32| {
        let mut fdrecv = by(THIRD, &dir, "fdrecv");
        std::os::unix::process::CommandExt::gid(&mut fdrecv, gid);
        acceptor.give_to(&mut fdrecv);
        fdrecv.args(["--", "cat"]).start()
    };
    let log = fdrecv(THIRD).expect_end(1);
    assert!(log.ends_with(": Permission denied"), "{log}");
    let mut consumer = fdrecv(GROUP);
    acceptor.client().expect_echo("hello");
    consumer.expect_end(0);
}

/// A consumer that owns the name: anybody who may send to it has its handlers.
fn consumer(program: &str, options: &str) -> Command {
    let mut command = super::program(program);
    command.args(["--bind", "./inbox"]).args(options.split(' '));
    command.args(rest_of(program));
    command
}

#[test]
fn senders_of_the_group_reach_a_consumer_and_others_do_not() {
    needs!(root());
    for program in ["fdpool", "fdrecv"] {
        let dir = open_dir();
        let mut command = consumer(program, &format!("--owner :{GROUP} --mode 660"));
        let _consumer = command.current_dir(&dir).start();
        let path = dir.path().join("inbox");
        until("the name", || path.exists());
        assert_eq!(whose(&path), (0, GROUP, 0o660));
        assert_eq!(whose(&lock_of(&path)), (0, GROUP, 0o600));
        let fdaccept = |gid| {
            let command = by(THIRD, &dir, "fdaccept");
            let mut fdaccept = Fdaccept::of(command).arg("--connect").arg(&path);
            std::os::unix::process::CommandExt::gid(fdaccept.command_mut(), gid);
            fdaccept
        };
        let log = fdaccept(THIRD).fails(1);
        assert!(log.ends_with(": Permission denied"), "{log}");
        fdaccept(GROUP).start().expect_echo();
    }
}

/// Nobody can send to a name before it has its owner, though sending needs no listener.
#[test]
fn a_path_that_must_be_given_away_is_closed_until_then() {
    needs!(root());
    let slow = "-o /dev/null --inject=fchownat,chown,lchown:delay_enter=300000";
    let traced = needs!(traced(slow));
    let dir = open_dir();
    chown(dir.path(), None, Some(GROUP)).unwrap();
    set_mode(dir.path(), 0o2755);
    let fdpool = bin_dir().join("fdpool");
    let mut command = Command::new(&traced[0]);
    command.arg(&traced[1]).arg(fdpool).current_dir(&dir);
    command.args(["--bind", "./inbox", "--owner", ":5", "--mode", "666"]);
    command.env("PATH", path()).stdin(Stdio::null());
    let _pool = Pool::of(command.args(["2", "--", "cat"]));
    let path = dir.path().join("inbox");
    let mut seen = BTreeSet::new();
    until("the owner", || {
        seen.extend((0..100).filter_map(|_| paths::whose_if_there(&path)));
        seen.contains(&(0, 5, 0o666))
    });
    // With the directory's group it is closed; with its own, its mode comes last.
    let expected = [(0, GROUP, 0o600), (0, 5, 0o600), (0, 5, 0o666)];
    assert!(
        seen.iter().all(|found| expected.contains(found)),
        "{seen:?}"
    );
}

/// The kernel does not tell what the socket is bound to: the path could be another socket.
#[test]
fn in_a_directory_of_another_user_a_doubtful_path_is_not_given_away() {
    needs!(root());
    let mute = "-f -o /dev/null --inject=sendto:error=EMFILE";
    for (uid, mode, is_given) in [
        (SOMEBODY, 0o755, false),
        (0, 0o777, false),
        (0, 0o1777, true),
        (0, 0o755, true),
    ] {
        let traced = needs!(traced(mute));
        let dir = open_dir();
        chown(dir.path(), Some(uid), None).unwrap();
        set_mode(dir.path(), mode);
        let fdrecv = bin_dir().join("fdrecv");
        let mut command = Command::new(&traced[0]);
        command.arg(&traced[1]).arg(fdrecv).current_dir(&dir);
        command.args(["--bind", "./inbox", "--owner", ":5", "--mode", "660"]);
        command.args(["--", "cat"]);
        command.env("PATH", path()).stdin(Stdio::null());
        let mut process = command.start();
        let path = dir.path().join("inbox");
        if is_given {
            until("the mode", || {
                paths::whose_if_there(&path) == Some((0, 5, 0o660))
            });
            continue;
        }
        let log = process.expect_end(1);
        let expected = "fdrecv: cannot give ./inbox to uid 0 and gid 5: Too many open files";
        assert_eq!(log, expected, "{uid} {mode:o}");
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    }
}

#[test]
fn a_path_has_its_owner_and_its_mode_from_the_first_instant() {
    needs!(root());
    let slow = "-o /dev/null --inject=fchownat,chown,fchmodat,chmod:delay_enter=300000";
    let traced = needs!(traced(slow));
    for name in ["queue", "listener"] {
        let fdaccept = Fdaccept::behind(&traced).args(["--bind", "./queue"]);
        let owner = format!("--owner {SOMEBODY}:{GROUP} --mode 660");
        let fdaccept = fdaccept.options(&owner).listen("./listener");
        let path = fdaccept.names.file(name);
        let mut acceptor = fdaccept.spawn();
        let first = eventually("the path", || {
            (0..500).find_map(|_| paths::whose_if_there(&path))
        });
        assert_eq!(first, (SOMEBODY, GROUP, 0o660), "{name}");
        acceptor.listening();
    }
}

/// A user without privileges, with these further groups.
fn of_groups(setpriv: &str, groups: &str) -> [String; 4] {
    let further = match groups {
        "" => "--clear-groups".to_owned(),
        groups => format!("--groups={groups}"),
    };
    let ids = [format!("--reuid={THIRD}"), format!("--regid={THIRD}")];
    let [uid, gid] = ids;
    [setpriv.to_owned(), uid, gid, further]
}

/// fdaccept, or fdpool, by [`THIRD`] with these groups in a directory of its own, for the group.
fn by_third(dir: &TempDir, program: &str, setpriv: &str, groups: &str) -> Command {
    chown(dir.path(), Some(THIRD), Some(THIRD)).unwrap();
    let words = of_groups(setpriv, groups);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).arg(copy_of(program, dir.path()));
    command.args(["--bind", "./name", "--mode", "660"]);
    command.args(["--owner", &format!(":{GROUP}")]);
    command.args(rest_of(program)).current_dir(dir);
    command.stdin(Stdio::null());
    command
}

#[test]
fn who_is_not_root_gives_paths_to_a_group_of_its_own() {
    let setpriv = needs!(setpriv());
    for program in ["fdaccept", "fdpool"] {
        let dir = open_dir();
        let groups = format!("{GROUP},7");
        let path = dir.path().join("name");
        let start = || {
            let mut process = by_third(&dir, program, &setpriv, &groups).start();
            match program {
                "fdaccept" => drop(process.listening()),
                _ => until("its slots", || process.children().len() == 2),
            }
            assert_eq!(whose(&path), (THIRD, GROUP, 0o660));
            assert_eq!(whose(&lock_of(&path)), (THIRD, GROUP, 0o600));
            process
        };
        // What it leaves when it is killed is replaced.
        let mut process = start();
        let slots = process.children();
        process.slay();
        // A slot that outlives its pool for a moment has the socket open.
        slots.into_iter().for_each(until_gone);
        start().stop();
        assert!(!path.exists() && !lock_of(&path).exists());
    }
}

#[test]
fn who_may_not_give_paths_to_a_group_fails_and_leaves_none() {
    let setpriv = needs!(setpriv());
    for program in ["fdaccept", "fdpool"] {
        let dir = open_dir();
        let mut process = by_third(&dir, program, &setpriv, "").start();
        let log = process.expect_end(1);
        let expected = format!(
            "{program}: cannot give ./name to uid {THIRD} and gid {GROUP}: Operation not permitted"
        );
        assert_eq!(log, expected);
        let path = dir.path().join("name");
        assert!(!path.exists() && !lock_of(&path).exists());
    }
}

#[test]
fn the_paths_are_gone_at_the_end_and_there_again_after_a_restart() {
    needs!(root());
    let dir = open_dir();
    let owned = || {
        let owner = format!("{SOMEBODY}:{GROUP}");
        let fdaccept = two_paths().args(["--owner", &owner]);
        fdaccept.dir(&dir).start()
    };
    let is = |expected: Option<(u32, u32, u32)>| {
        for name in ["queue", "listener"] {
            assert_eq!(paths::whose_if_there(&dir.path().join(name)), expected);
        }
    };
    let expected = Some((SOMEBODY, GROUP, 0o600));
    let mut acceptor = owned();
    is(expected);
    acceptor.stop();
    is(None);
    let mut acceptor = owned();
    acceptor.slay();
    is(expected);
    let mut acceptor = owned();
    is(expected);
    acceptor.stop();
    is(None);
}

#[test]
fn an_owner_that_is_nobody_is_wrong_usage() {
    for (owner, problem) in [
        ("no-such-user", "no such user"),
        ("no-such-user:root", "no such user"),
        (":no-such-group", "no such group"),
        ("root:no-such-group", "no such group"),
        (
            "4000000001:",
            "there is no account with that number, so give a group",
        ),
        (":", "write USER, USER:GROUP or :GROUP"),
        ("", "write USER, USER:GROUP or :GROUP"),
    ] {
        for program in ["fdaccept", "fdpool", "fdrecv"] {
            let dir = open_dir();
            let mut command = super::program(program);
            command.args(["--bind", "./name", "--owner", owner]);
            let (status, _, log) = run(command.args(rest_of(program)).current_dir(&dir));
            assert_eq!(status, Some(2), "{log}");
            let expected = format!("{program}: --owner {owner}: {problem}");
            assert_eq!(log.lines().next(), Some(&*expected));
            assert_eq!(dir.path().read_dir().unwrap().count(), 0);
        }
    }
}

#[test]
fn an_owner_without_a_path_is_wrong_usage() {
    let name = Names::new().abstract_name();
    let no_path = |fdaccept: Fdaccept| {
        let log = fdaccept.options("--owner root").fails(2);
        let expected = "fdaccept: --owner needs a path, as an ADDRESS or for --bind";
        assert_eq!(log.lines().next(), Some(expected));
    };
    no_path(Fdaccept::cats());
    no_path(Fdaccept::bound_at(&name).listen("@fdtools-test-no-path"));
    no_path(Fdaccept::plain().options("--connect ./inbox"));
    for program in ["fdpool", "fdrecv"] {
        for source in ["--bind", "--connect"] {
            let mut command = super::program(program);
            command.args([source, &name, "--owner", "root"]);
            let (status, _, log) = run(command.args(rest_of(program)));
            assert_eq!(status, Some(2), "{log}");
            let expected = format!("{program}: --owner needs a path for --bind");
            assert_eq!(log.lines().next(), Some(&*expected));
        }
    }
}
