//! A file system of a stranger's, whose file no program of ours can close.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::gettid;
use tempfile::TempDir;

use super::*;

/// The operations of linux/fuse.h that an open file needs.
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;
/// The nodes: the root, and the file.
const ROOT: u64 = 1;
const FILE: u64 = 2;

/// In the environment of the server: where it mounts its file system.
const DIRECTORY: &str = "FDTOOLS_TEST_FUSE";
/// The line that the server writes for each close that waits.
const HELD: &str = "held";

/// Never answers when a program of ours closes its file (`FUSE_FLUSH`), so that close(2) waits for
/// ever, in a state that ignores signals. When a test closes the file, it answers.
pub struct Fuse {
    pub file: File,
    held: Arc<AtomicUsize>,
    server: Child,
    _directory: TempDir,
}

impl Fuse {
    /// `None` where there is no FUSE, or for want of root; handled as [`peer`] is.
    pub fn mount() -> Option<Self> {
        if !root() {
            return None;
        }
        if !Path::new("/dev/fuse").exists() {
            skip("there is no /dev/fuse");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        // In a process of its own: were it a part of this one, and this one killed, the file would be
        // closed when nobody answers any more.
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "support::fuse::serves_its_file", "--nocapture"]);
        command.env(DIRECTORY, directory.path());
        let mut server = spawn(command.stdout(Stdio::piped())).unwrap();
        let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
        // By way of the mount namespace of the thread that serves.
        let thread = lines.find_map(|line| {
            let line = line.unwrap();
            Some(line.split_once("mounted by ")?.1.to_owned())
        });
        let thread = thread.unwrap();
        let root = format!("/proc/{thread}/root{}/f", directory.path().display());
        let file = File::options().read(true).write(true).open(root).unwrap();
        let held = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&held);
        std::thread::spawn(move || {
            // The harness writes there as well, such as that this test has been running for long.
            for line in lines.map_while(Result::ok) {
                count.fetch_add(usize::from(line == HELD), Ordering::SeqCst);
            }
        });
        Some(Self {
            file,
            held,
            server,
            _directory: directory,
        })
    }

    /// How many closes wait for ever.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }
}

impl Drop for Fuse {
    /// Ends what still waits for an answer.
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// No test: the server of a [`Fuse`].
#[test]
fn serves_its_file() {
    let Some(directory) = std::env::var_os(DIRECTORY) else {
        return;
    };
    set_pdeathsig(Signal::SIGKILL).unwrap();
    let device = File::options().read(true).write(true).open("/dev/fuse");
    let device = device.unwrap();
    // The file system is in the mount namespace of this process, and goes with it.
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount_at(directory.as_ref(), &device);
    println!("mounted by {}", gettid());
    serve(&device);
}

fn mount_at(directory: &Path, device: &File) {
    let nothing = None::<&str>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(nothing, "/", nothing, private, nothing).unwrap();
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
        device.as_raw_fd()
    );
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(
        Some("test"),
        directory,
        Some("fuse"),
        flags,
        Some(&*options),
    )
    .unwrap();
}

/// Answers requests until the file system is aborted.
fn serve(mut device: &File) {
    let mut request = vec![0; 1 << 20];
    while let Ok(length) = device.read(&mut request) {
        let request = &request[..length];
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_ne_bytes(request[at..at + 8].try_into().unwrap());
        let (operation, unique, node, thread) = (word(4), long(8), long(16), word(32));
        let answer = match operation {
            INIT => Ok([&words(&[7, 31, 0, 0])[..], &[0; 48]].concat()),
            LOOKUP => {
                let entry = [FILE, 0, 0, 0, 0].map(u64::to_ne_bytes).concat();
                Ok([entry, attributes(FILE)].concat())
            }
            GETATTR => Ok([vec![0; 16], attributes(node)].concat()),
            OPEN => Ok(vec![0; 16]),
            FLUSH if is_ours(thread) => {
                println!("{HELD}");
                continue;
            }
            FLUSH | RELEASE => Ok(Vec::new()),
            FORGET | INTERRUPT | BATCH_FORGET => continue,
            _ => Err(nix::libc::ENOSYS),
        };
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(errno) => (-errno, Vec::new()),
        };
        let mut reply = words(&[16 + body.len() as u32, error as u32]);
        reply.extend(unique.to_ne_bytes());
        reply.extend(body);
        // Who asked may be gone.
        let _ = device.write_all(&reply);
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// `struct fuse_attr`
fn attributes(node: u64) -> Vec<u8> {
    let mode = if node == ROOT { 0o40755 } else { 0o100666 };
    let times_and_sizes = [node, 0, 0, 0, 0, 0].map(u64::to_ne_bytes).concat();
    let rest = words(&[0, 0, 0, mode, 1, 0, 0, 0, 4096, 0]);
    [times_and_sizes, rest].concat()
}

/// Whether the thread is of a program of ours. A child of a test closes the file as well, when it
/// becomes the program.
fn is_ours(thread: u32) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{thread}/comm"));
    let name = name.unwrap_or_default();
    ["fdaccept", "fdpool", "fdrecv"].contains(&name.trim_end())
}
