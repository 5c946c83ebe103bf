//! Whose the paths of queues and listeners are, and what happens to files of somebody else's.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;

use super::*;

/// Owner, group and permissions, if something is there.
pub(super) fn whose_if_there(path: &Path) -> Option<(u32, u32, u32)> {
    path.symlink_metadata().ok().map(|_| whose(path))
}

/// fdaccept for [`SOMEBODY`] behind `wrapper`, with a queue and a listener.
fn with_paths(wrapper: &[impl AsRef<OsStr>]) -> Fdaccept {
    let fdaccept = Fdaccept::behind(wrapper).args(["--bind", "./queue"]);
    fdaccept.user(SOMEBODY).listen("./listener")
}

#[test]
fn a_path_belongs_to_the_user_from_the_first_instant() {
    needs!(root());
    // A path that is given away later would be seen before.
    let slow = "-o /dev/null --inject=fchownat,chown,lchown:delay_enter=300000";
    let traced = needs!(traced(slow));
    for name in ["queue", "listener"] {
        let fdaccept = with_paths(&traced);
        let path = fdaccept.names.file(name);
        let mut acceptor = fdaccept.spawn();
        let first = eventually("the path", || (0..500).find_map(|_| whose_if_there(&path)));
        assert_eq!(first, (SOMEBODY, SOMEBODY, 0o600), "{name}");
        acceptor.listening();
    }
}

#[test]
fn a_path_in_a_directory_of_a_group_has_that_group() {
    needs!(root());
    let fdaccept = with_paths(&["env"]).options("--mode 660");
    let dir = fdaccept.names.text("");
    chown(&dir, None, Some(4_000_000_009)).unwrap();
    set_mode(&dir, 0o2755);
    let acceptor = fdaccept.start();
    for name in ["queue", "listener"] {
        let path = acceptor.names.file(name);
        assert_eq!(whose(&path), (SOMEBODY, 4_000_000_009, 0o660), "{name}");
    }
}

#[test]
fn who_has_no_power_over_directories_gives_a_path_away() {
    let setpriv = needs!(setpriv());
    let without = "--bounding-set=-dac_override,-dac_read_search";
    let acceptor = with_paths(&[&setpriv, without]).start();
    for path in ["queue", "listener"].map(|name| acceptor.names.file(name)) {
        assert_eq!(whose(&path), (SOMEBODY, SOMEBODY, 0o600));
        assert_eq!(whose(&lock_of(&path)), (SOMEBODY, SOMEBODY, 0o600));
    }
}

/// Where `--user` may write, and may move files of root's to.
fn directory_of_somebody() -> TempDir {
    let dir = open_dir();
    chown(dir.path(), Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    dir
}

#[test]
fn a_file_of_roots_at_the_place_of_a_lock_is_neither_given_away_nor_removed() {
    needs!(root());
    for name in ["queue", "listener"] {
        let dir = directory_of_somebody();
        let lock = lock_of(dir.path().join(name));
        std::fs::write(&lock, "secret").unwrap();
        set_mode(&lock, 0o600);
        let log = with_paths(&["env"]).dir(&dir).fails(2);
        let expected = format!("fdaccept: cannot bind ./{name}: ");
        assert!(log.starts_with(&expected), "{log}");
        assert!(log.contains(&format!("{name}.lock is not empty")), "{log}");
        assert_eq!(whose(&lock), (0, 0, 0o600));
        assert_eq!(std::fs::read(&lock).unwrap(), b"secret");
    }
}

/// Somebody may have an empty file of root's open, into which root will write.
#[test]
fn an_empty_file_at_the_place_of_a_lock_is_not_given_away() {
    needs!(root());
    let dir = directory_of_somebody();
    let lock = lock_of(dir.path().join("queue"));
    let file = File::create(&lock).unwrap();
    let _acceptor = with_paths(&["env"]).dir(&dir).start();
    assert_eq!(file.metadata().unwrap().uid(), 0);
    assert_eq!(whose(&lock), (SOMEBODY, SOMEBODY, 0o600));
}

#[test]
fn a_lock_file_of_another_user_is_refused_unless_root_starts() {
    needs!(root());
    let dir = directory_of_somebody();
    let lock = lock_of(dir.path().join("queue"));
    std::fs::write(&lock, "").unwrap();
    chown(&lock, Some(THIRD), None).unwrap();
    set_mode(&lock, 0o666);
    let copy = copy_of("fdaccept", dir.path());
    let bind = || Fdaccept::of(Command::new(&copy)).args(["--bind", "./queue"]);
    let log = bind().run_by(SOMEBODY).dir(&dir).fails(2);
    let expected = format!("queue.lock belongs to uid {THIRD}");
    assert!(log.contains(&expected), "{log}");
    assert_eq!(whose(&lock), (THIRD, 0, 0o666));
    let _acceptor = bind().dir(&dir).start();
    assert_eq!(whose(&lock), (0, 0, 0o600));
}
