//! Who a Unix client is, where the programs are in different namespaces.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::support::*;

/// Tells what the handler is told, in one line.
const TELL: &str =
    "echo uid ${IPCREMOTEEUID-none} gid ${IPCREMOTEEGID-none} pid ${IPCREMOTEPID-none}";

/// A program of `uid`, in a user namespace whose root it is, behind `options` of unshare(1).
fn in_namespace(uid: u32, options: &str, names: &Names, program: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--kill-child", "--fork"]);
    command.args(options.split_whitespace());
    command.arg(copy_of(program, names.directory.path()));
    command.uid(uid).gid(uid).current_dir("/");
    command
}

/// A directory for names that all users can write to.
fn shared() -> Names {
    let names = Names::new();
    let everybody = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(&names.directory, everybody).unwrap();
    names
}

/// What a client of a user is told of itself, and its process id.
#[track_caller]
fn told_to(uid: u32, path: &str) -> (String, u32) {
    let mut client = Command::new(python().unwrap());
    client.args(["-c", CLIENT, path, &uid.to_string()]);
    let (status, output, log) = run(&mut client);
    assert_eq!(status, Some(0), "{log}");
    let (told, pid) = output.trim_end().split_once('\n').unwrap();
    (told.to_owned(), pid.parse().unwrap())
}

const CLIENT: &str = "import os, socket, sys
uid = int(sys.argv[2])
os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
print(client.makefile().read().strip())
print(os.getpid())";

#[test]
fn a_pool_in_a_container_leaves_out_what_the_kernel_does_not_tell_there() {
    needs!(root());
    needs!(peer("unshare"));
    needs!(python());
    let names = shared();
    let [queue, listener] = [names.text("queue"), names.text("listener")];
    let fdaccept = Fdaccept::plain().args(["--mode", "666", "--bind", &queue]);
    let _acceptor = fdaccept.listen(&listener).start();
    let mut pool = in_namespace(NOBODY, "--pid", &names, "fdpool");
    let pool = pool.args(["--connect", &queue, "1", "sh", "-c", TELL]);
    let _pool = Process::start(pool);
    let (told, _) = told_to(0, &listener);
    // This user has no number there, which is what 65534 stands for.
    assert_eq!(told, "uid 65534 gid 65534 pid none");
    // This user is the root of the namespace. Processes outside have no number in it.
    let (told, _) = told_to(NOBODY, &listener);
    assert_eq!(told, "uid 0 gid 0 pid none");
}

#[test]
fn an_acceptor_in_a_container_does_not_make_anybody_root() {
    needs!(root());
    needs!(peer("unshare"));
    needs!(python());
    for handler in [&["fdpool", "1"][..], &["fdrecv"]] {
        let names = shared();
        let [queue, listener] = [names.text("queue"), names.text("listener")];
        let mut acceptor = in_namespace(NOBODY, "", &names, "fdaccept");
        acceptor.args(["--mode", "666", "--bind", &queue, &listener]);
        let mut acceptor = Process::start(&mut acceptor);
        acceptor.listening();
        let mut consumer = program(handler[0]);
        consumer.args(["--connect", &queue]).args(&handler[1..]);
        let _consumer = Process::start(consumer.args(["--", "sh", "-c", TELL]));
        let (told, pid) = told_to(NOBODY, &listener);
        assert_eq!(told, format!("uid {NOBODY} gid {NOBODY} pid {pid}"));
    }
}
