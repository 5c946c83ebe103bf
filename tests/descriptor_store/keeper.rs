//! A service manager that keeps descriptors.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use fdtools::queue;
use fdtools::queue::name::Name;
use fdtools::queue::trust::Trust;
use nix::fcntl::{FcntlArg, fcntl};
use nix::unistd::dup2_raw;

use super::*;

/// What a manager has heard and keeps.
#[derive(Default)]
pub struct Kept {
    pub store: Vec<(String, OwnedFd)>,
    told: Vec<String>,
    /// Messages that sd_notify(3) does not know.
    nonsense: Vec<String>,
    /// It keeps no more than this.
    pub most: Option<usize>,
    /// It lets go of nothing before a BARRIER=1.
    pub is_lazy: bool,
    to_forget: Vec<String>,
}

impl Kept {
    fn hear(&mut self, text: &str, with: Vec<OwnedFd>) {
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        let name = value("FDNAME=").unwrap_or_default().to_owned();
        // As fdname_is_valid() of systemd has it, and no space either.
        let is_plain = |byte: u8| byte.is_ascii_graphic() && byte != b':';
        let is_name = !name.is_empty() && name.len() <= 255 && name.bytes().all(is_plain);
        let makes_sense;
        if value("FDSTOREREMOVE=") == Some("1") {
            makes_sense = is_name && with.is_empty();
            self.to_forget.push(name);
            if !self.is_lazy {
                self.forget();
            }
        } else if value("FDSTORE=") == Some("1") {
            // Without FDPOLL=0, systemd gives up what hangs up.
            makes_sense = is_name && with.len() == 1 && value("FDPOLL=") == Some("0");
            for descriptor in with {
                if self.most.is_none_or(|most| self.store.len() < most) {
                    self.store.push((name.clone(), descriptor));
                }
            }
        } else if value("BARRIER=") == Some("1") {
            makes_sense = text == "BARRIER=1" && with.len() == 1;
            self.forget();
        } else {
            makes_sense = with.is_empty();
        }
        if !makes_sense {
            self.nonsense.push(text.to_owned());
        }
        self.told.push(text.to_owned());
    }

    fn forget(&mut self) {
        let names = std::mem::take(&mut self.to_forget);
        self.store.retain(|(kept, _)| !names.contains(kept));
    }
}

/// A service manager, and a directory for everything.
pub struct Keeper {
    form: Form,
    pub names: Names,
    kept: Arc<Mutex<Kept>>,
    heard: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

/// What a test tells the manager itself: to say that it has got to here; to end.
const HERE: &[u8] = b"X_HERE=1";
const END: &[u8] = b"X_END=1";

impl Keeper {
    pub fn new() -> Self {
        Self::of(Form::Named)
    }

    pub fn of(form: Form) -> Self {
        let names = Names::new();
        let socket = UnixDatagram::bind(names.file("notify")).unwrap();
        let kept = Arc::new(Mutex::new(Kept::default()));
        let (sender, heard) = channel();
        let heard_by = Arc::clone(&kept);
        let thread = std::thread::spawn(move || listen(&socket, &heard_by, &sender));
        Self {
            form,
            names,
            kept,
            heard,
            thread: Some(thread),
        }
    }

    pub fn file(&self, name: &str) -> String {
        self.names.text(name)
    }

    /// What it keeps. It hears nothing meanwhile.
    pub fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap()
    }

    /// Starts `fdaccept --store` with a queue that outlives it.
    pub fn start(&self, arguments: &[&str]) -> Process {
        match self.form {
            Form::Named => {
                self.start_all(&[&["--store", "--bind", &self.names.path()], arguments].concat())
            }
            Form::Chain => self.start_all(&[&["--store"], arguments, &OPENED_COMMAND].concat()),
        }
    }

    /// [`Keeper::start`] at any free port, which it returns.
    #[track_caller]
    pub fn first(&self) -> (Process, u16) {
        let mut process = self.start(&[ADDRESS]);
        let port = process.port();
        (process, port)
    }

    /// Starts it again, and checks that the port is the same.
    #[track_caller]
    pub fn again(&self, port: u16) -> Process {
        let (process, now) = self.first();
        assert_eq!(now, port, "{:?}", self.form);
        process
    }

    /// Has it crash at once. Returns the port.
    #[track_caller]
    pub fn crashed(&self) -> u16 {
        let (process, port) = self.first();
        crash(process);
        port
    }

    /// Has it crash with a crowd in the queue.
    #[track_caller]
    pub fn crashed_with(&self, count: usize) -> (u16, Crowd) {
        let (mut process, port) = self.first();
        let crowd = queued(&mut process, port, count);
        crash(process);
        (port, crowd)
    }

    /// Starts it, and waits until it listens at `address`.
    #[track_caller]
    pub fn start_at(&self, address: &str) -> Process {
        let mut process = self.start(&[address]);
        assert_eq!(process.listening(), address);
        process
    }

    pub fn start_all(&self, arguments: &[&str]) -> Process {
        self.start_with(&[], arguments)
    }

    /// Starts fdaccept with other descriptors before the descriptors of the store.
    pub fn start_with(&self, others: &[(&str, &OwnedFd)], arguments: &[&str]) -> Process {
        self.start_words(others, &[&["fdaccept"], arguments].concat(), |_| {})
    }

    /// Starts fdaccept once its command was changed.
    pub fn start_changed(&self, arguments: &[&str], change: impl FnOnce(&mut Command)) -> Process {
        self.start_words(&[], &[&["fdaccept"], arguments].concat(), change)
    }

    pub fn start_words(
        &self,
        others: &[(&str, &OwnedFd)],
        words: &[&str],
        change: impl FnOnce(&mut Command),
    ) -> Process {
        self.until_heard();
        let alone = alone();
        let kept = self.lock();
        let others = others.iter().map(|(name, fd)| (*name, fd.as_raw_fd()));
        let store = kept.store.iter();
        let store = store.map(|(name, fd)| (name.as_str(), fd.as_raw_fd()));
        let (names, numbers): (Vec<_>, Vec<_>) = others.chain(store).unzip();

        let mut command = Command::new("sh");
        command.args(["-c", "LISTEN_PID=$$ exec \"$@\"", "sh"]);
        command.args(words).env("PATH", path());
        command.env("NOTIFY_SOCKET", self.file("notify"));
        command.env("SERVED", self.file("served"));
        command.env("OPEN", self.file("open"));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // Whatever started this test must not interfere.
        command
            .env_remove("LISTEN_FDS")
            .env_remove("LISTEN_FDNAMES");
        if !names.is_empty() {
            command.env("LISTEN_FDS", names.len().to_string());
            command.env("LISTEN_FDNAMES", names.join(":"));
        }
        place(numbers, &mut command);
        change(&mut command);
        launch_alone(&mut command, &alone)
    }

    /// Lets the commands of a chain serve.
    pub fn open(&self) {
        File::create(self.file("open")).unwrap();
    }

    /// `fdpool --connect QUEUE OPTIONS N -- HANDLER`.
    pub fn pool(&self, options: &[&str], size: usize, handler: &str) -> Process {
        let mut command = program("fdpool");
        command
            .args(["--connect", &self.names.path()])
            .args(options);
        command.arg(size.to_string()).arg("--").args(sh_c(handler));
        command.env("SERVED", self.file("served"));
        launch(command.env("OPEN", self.file("open")))
    }

    /// Has [`ECHO`] serve from now on.
    pub fn serve(&self) -> Option<Process> {
        match self.form {
            Form::Named => Some(self.pool(&[], 2, ECHO)),
            Form::Chain => {
                self.open();
                None
            }
        }
    }

    #[track_caller]
    pub fn serves(&self, port: u16) {
        let _pool = self.serve();
        is_served(port);
    }

    pub fn receiver(&self) -> queue::Receiver {
        self.try_receiver().unwrap()
    }

    pub fn try_receiver(&self) -> fdtools::Result<queue::Receiver> {
        let name = Name::parse(self.names.path().as_ref()).unwrap();
        queue::Receiver::connect(&name, &Trust::everybody())
    }

    /// Waits until it has heard all that it was told so far.
    fn until_heard(&self) {
        self.tell(HERE);
        self.heard.recv_timeout(DEADLINE).unwrap();
    }

    /// Tells it something. If it has ended, that shows elsewhere.
    fn tell(&self, text: &[u8]) {
        let socket = UnixDatagram::unbound().unwrap();
        let _ = socket.send_to(text, self.file("notify"));
    }

    /// The names of what it keeps, sorted, once it has heard all that it was told.
    pub fn kept(&self) -> Vec<String> {
        self.until_heard();
        let kept = self.lock();
        let mut names: Vec<_> = kept.store.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }

    /// Checks that it keeps both ends of one queue and this many listeners, and nothing else.
    #[track_caller]
    pub fn expect_kept(&self, listeners: usize) {
        let names = self.kept();
        let (ours, ends): (Vec<_>, Vec<_>) = names
            .iter()
            .partition(|name| name.starts_with("fdtools-listener-"));
        assert_eq!(ends, [READ_END, WRITE_END], "{names:?}");
        assert_eq!(ours.len(), listeners, "{names:?}");
    }

    pub fn put(&self, name: &str, descriptor: impl Into<OwnedFd>) {
        let entry = (name.to_owned(), descriptor.into());
        self.lock().store.push(entry);
    }

    /// Has it lose what it keeps under names that contain `part`.
    pub fn lose(&self, part: &str) {
        self.until_heard();
        let mut kept = self.lock();
        kept.store.retain(|(kept, _)| !kept.contains(part));
    }

    pub fn replace(&self, name: &str, descriptor: impl Into<OwnedFd>) {
        assert!(self.kept().contains(&name.to_owned()));
        self.lose(name);
        self.put(name, descriptor);
    }

    pub fn times_told(&self, text: &str) -> usize {
        self.until_heard();
        let kept = self.lock();
        kept.told.iter().filter(|told| *told == text).count()
    }

    pub fn served(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.file("served")).unwrap_or_default();
        let mut served: Vec<_> = text.lines().map(str::to_owned).collect();
        served.sort();
        served
    }

    /// Checks that each of `count` clients of a [`Crowd`] gets its own bytes, and that [`ECHO`] was
    /// run exactly once for each client, and no more.
    #[track_caller]
    pub fn expect_served_once(&self, crowd: Crowd, count: usize) {
        crowd.expect_served();
        let mut numbers: Vec<_> = (0..count).map(|number| number.to_string()).collect();
        numbers.sort();
        assert_eq!(self.served(), numbers);
    }

    /// [`Keeper::expect_served_once`], with a pool that comes now.
    #[track_caller]
    pub fn serve_once(&self, crowd: Crowd, count: usize) {
        let _pool = self.serve();
        self.expect_served_once(crowd, count);
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.tell(END);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if !std::thread::panicking() {
            assert!(self.lock().nonsense.is_empty());
        }
    }
}

fn listen(socket: &UnixDatagram, kept: &Mutex<Kept>, here: &Sender<()>) {
    loop {
        let mut message = match queue::receive(socket) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            message => message.unwrap(),
        };
        let with = message.descriptors.drain(..).collect();
        match message.payload.as_slice() {
            HERE => here.send(()).unwrap(),
            END => return,
            text => {
                let text = String::from_utf8_lossy(text);
                let _alone = alone();
                kept.lock().unwrap().hear(&text, with);
            }
        }
    }
}

/// Keeps others from starting a process. A child that has not become its program yet has everything
/// open that this process has, so what is closed meanwhile is not closed.
fn alone() -> MutexGuard<'static, ()> {
    static STARTING: Mutex<()> = Mutex::new(());
    STARTING.lock().unwrap_or_else(|poison| poison.into_inner())
}

pub fn launch(command: &mut Command) -> Process {
    launch_alone(command, &alone())
}

/// Starts `command`, and waits until it has become its program, with nothing else open.
fn launch_alone(command: &mut Command, _alone: &MutexGuard<'static, ()>) -> Process {
    /// Beyond all other numbers. The kernel closes them in their order.
    const LAST: RawFd = 900;
    let (mut end, last) = std::io::pipe().unwrap();
    let number = fcntl(&last, FcntlArg::F_DUPFD_CLOEXEC(LAST)).unwrap();
    // SAFETY: fcntl just made this number for us.
    let last = [unsafe { OwnedFd::from_raw_fd(number) }, last.into()];
    let process = Process::start(command);
    drop(last);
    assert_eq!(end.read(&mut [0]).unwrap(), 0);
    process
}

/// Lets `command` find at its descriptors from 3 on what these numbers are here, where they must
/// stay open until it is started.
fn place(numbers: Vec<RawFd>, command: &mut Command) {
    /// Beyond all numbers that are given.
    const AWAY: RawFd = 100;
    let mut copies = Vec::with_capacity(numbers.len());
    let place = move || {
        // First all out of the way: each has a number that another one may get.
        for number in &numbers {
            // SAFETY: the number is open.
            let original = unsafe { BorrowedFd::borrow_raw(*number) };
            copies.push(fcntl(original, FcntlArg::F_DUPFD_CLOEXEC(AWAY))?);
        }
        for (copy, number) in copies.iter().zip(3..) {
            // SAFETY: the copies are open, and this process has no use of its own for the numbers.
            let placed = unsafe { dup2_raw(BorrowedFd::borrow_raw(*copy), number)? };
            let _ = placed.into_raw_fd();
        }
        Ok(())
    };
    // SAFETY: these are system calls; the vector has room for all, so nothing is allocated.
    unsafe { command.pre_exec(place) };
}
