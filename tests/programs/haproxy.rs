//! A real HAProxy in front of two fdaccepts on two machines, of which one goes and comes back. The
//! machines are network namespaces.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use crate::support::{DEADLINE, Names, Process, bin_dir, path, peer, python, root, skip, until};
use nix::sys::signal::Signal;

/// Where HAProxy listens, which is where clients connect to.
const FRONT: &str = "127.0.0.1:8080";

/// Where both fdaccepts listen, each at its own address.
const PORT: &str = "8888";

/// How many clients in a row are looked at.
const MANY: usize = 50;

/// The most of them that may be lost: those that are on their way to a machine when it goes. The
/// others HAProxy sends to the other machine. A check of its health may fail by chance on a busy
/// one.
const FEW: usize = 10;

/// Clients from many addresses, one after another. Each line is an address, and what its client
/// was told: nothing, if that failed.
const CLIENTS: &str = "import itertools, socket, sys, time
for number in itertools.count():
    address = f'127.1.{number // 250 % 250}.{number % 250 + 1}'
    words = ''
    try:
        with socket.socket() as client:
            client.settimeout(60)
            client.bind((address, 0))
            client.connect(('127.0.0.1', 8080))
            words = client.makefile().readline().strip()
    except OSError:
        pass
    print(address, words, file=sys.stderr, flush=True)
    time.sleep(0.002 if words else 0.1)
";

/// The programs that this needs besides fdtools, if they are all here.
struct Peers {
    haproxy: PathBuf,
    ip: PathBuf,
    python: PathBuf,
}

impl Peers {
    fn find() -> Option<Self> {
        let (haproxy, ip, python) = (peer("haproxy")?, peer("ip")?, python()?);
        root().then_some(Self {
            haproxy,
            ip,
            python,
        })
    }
}

/// Runs `ip` with these words.
fn run_ip(ip: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(ip);
    command.args(words).stdin(Stdio::null()).output().unwrap()
}

/// A network namespace, which is removed with this.
struct Namespace {
    ip: PathBuf,
    name: String,
}

impl Namespace {
    /// A new one; what is wrong, if it cannot be had.
    fn make(ip: &Path, name: &str) -> Result<Self, String> {
        let made = run_ip(ip, &["netns", "add", name]);
        let problem = || String::from_utf8_lossy(&made.stderr).into_owned();
        if !made.status.success() {
            return Err(problem());
        }
        Ok(Self {
            ip: ip.to_owned(),
            name: name.to_owned(),
        })
    }

    /// Runs `ip` within it.
    fn ip(&self, words: &[&str]) -> Output {
        run_ip(&self.ip, &[&["-n", &self.name], words].concat())
    }

    /// The same, where it must not fail.
    #[track_caller]
    fn must(&self, words: &[&str]) {
        let output = self.ip(words);
        let problem = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ip {words:?}: {problem}");
    }

    /// A command that runs within it, as the process that is started.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(&self.ip);
        command.args(["netns", "exec", &self.name]).arg(program);
        command.env("PATH", path()).stdin(Stdio::null());
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        run_ip(&self.ip, &["netns", "del", &self.name]);
    }
}

/// A machine behind HAProxy, with one fdaccept. The programs end before their namespace goes.
struct Machine {
    fdaccept: Process,
    _namespace: Namespace,
    side: char,
}

impl Machine {
    /// Makes one, and the wire from `front` to it.
    fn start(peers: &Peers, front: &Namespace, side: char, version: &str) -> Self {
        let name = front.name.replace("front", &side.to_string());
        let namespace = Namespace::make(&peers.ip, &name).unwrap();
        let net = net(side);
        let (here, there) = (format!("to-{side}"), format!("{net}.2"));
        let wire = ["type", "veth", "peer", "name", "front", "netns", &name];
        front.must(&[&["link", "add", &here], &wire[..]].concat());
        for (end, interface, address) in [
            (front, here.as_str(), format!("{net}.1/24")),
            (&namespace, "front", format!("{there}/24")),
        ] {
            end.must(&["addr", "add", &address, "dev", interface]);
            end.must(&["link", "set", interface, "up"]);
        }
        let mut command = namespace.command(bin_dir().join("fdaccept"));
        command.args(["--proxy-protocol", version, "--proxy-from"]);
        command.args([format!("{net}.1"), format!("{there}:{PORT}")]);
        let handler = format!("echo {side} $TCPREMOTEIP $TCPLOCALIP:$TCPLOCALPORT");
        command.args(["--", "fdpool", "4", "--", "sh", "-c", &handler]);
        let mut fdaccept = Process::start(&mut command);
        fdaccept.listening();
        Self {
            fdaccept,
            _namespace: namespace,
            side,
        }
    }

    /// Ends it as `signal` does, and takes it away.
    #[track_caller]
    fn take_away(mut self, front: &Namespace, signal: Signal) {
        self.fdaccept.signal(signal);
        let (status, log) = self.fdaccept.finish();
        assert!(status.success() || signal == Signal::SIGKILL, "{log}");
        let interface = format!("to-{}", self.side);
        drop(self);
        // The kernel takes the wire away after the namespace has gone.
        until("the end of the wire", || {
            !front.ip(&["link", "show", &interface]).status.success()
        });
    }
}

/// The first three numbers of the addresses on the wire to a machine.
fn net(side: char) -> String {
    format!("10.77.{}", u32::from(side))
}

/// HAProxy, its clients and the two machines. What is made first goes last.
struct Farm {
    clients: Process,
    /// How many clients were looked at.
    seen: usize,
    haproxy: Process,
    machines: Vec<Machine>,
    _names: Names,
    front: Namespace,
}

impl Farm {
    /// Starts all, with `option` on HAProxy's servers; `None` if this machine cannot have it.
    fn start(peers: &Peers, option: &str, version: &str) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("fdtools-{}-{count}-front", std::process::id());
        let front = match Namespace::make(&peers.ip, &name) {
            Ok(front) => front,
            Err(problem) => {
                skip(&format!("no network of its own: {problem}"));
                return None;
            }
        };
        if !front.command("true").status().unwrap().success() {
            skip("nothing can be run in a network of its own");
            return None;
        }
        front.must(&["link", "set", "lo", "up"]);
        let machines = ['a', 'b'].map(|side| Machine::start(peers, &front, side, version));
        let names = Names::new();
        let file = names.directory.path().join("haproxy.cfg");
        std::fs::write(&file, configuration(option)).unwrap();
        let mut command = front.command(&peers.haproxy);
        let haproxy = Process::start(command.arg("-db").arg("-f").arg(&file));
        let clients = Process::start(front.command(&peers.python).args(["-c", CLIENTS]));
        Some(Self {
            clients,
            seen: 0,
            haproxy,
            machines: machines.into(),
            _names: names,
            front,
        })
    }

    /// The next client's answer; see [`answered`].
    #[track_caller]
    fn answer(&mut self) -> Option<char> {
        let line = self.clients.line("127.1.");
        self.seen += 1;
        answered(&line)
    }

    /// The answers of all that have come meanwhile.
    #[track_caller]
    fn answers(&mut self) -> Vec<Option<char>> {
        let log = self.clients.log();
        let lines = log.lines().filter(|line| line.contains("127.1."));
        let answers: Vec<_> = lines.skip(self.seen).map(answered).collect();
        self.seen += answers.len();
        answers
    }

    /// Waits for an answer of `side`.
    #[track_caller]
    fn until_answered_by(&mut self, side: char) {
        let deadline = Instant::now() + DEADLINE;
        while self.answer() != Some(side) {
            let log = self.haproxy.log();
            assert!(Instant::now() < deadline, "nothing from {side}: {log}");
        }
    }

    /// Takes a machine away as `signal` does, and checks that clients go on being answered, by the
    /// other one.
    #[track_caller]
    fn lose(&mut self, side: char, signal: Signal) {
        let is_it = |machine: &Machine| machine.side == side;
        let place = self.machines.iter().position(is_it).unwrap();
        let machine = self.machines.remove(place);
        machine.take_away(&self.front, signal);
        let mut answers = self.answers();
        answers.extend((0..MANY).map(|_| self.answer()));
        let lost = answers.iter().filter(|answer| answer.is_none()).count();
        assert!(lost <= FEW, "{lost}: {answers:?} {}", self.haproxy.log());
        // The first of these may have come before it went.
        let last = &answers[answers.len() - FEW..];
        assert!(!last.contains(&Some(side)), "{answers:?}");
    }
}

/// What a client has told: the machine that answered it, or `None` if it got no answer. One that it
/// got is about the client itself, not about HAProxy.
#[track_caller]
fn answered(line: &str) -> Option<char> {
    let words: Vec<_> = line.split_whitespace().collect();
    match words[..] {
        [_] => None,
        [address, side, remote, local] => {
            assert_eq!((remote, local), (address, FRONT), "{line}");
            side.chars().next()
        }
        _ => panic!("{line}"),
    }
}

/// HAProxy's, for both machines, with short checks of their health.
fn configuration(option: &str) -> String {
    let server = |side| {
        let address = format!("{}.2:{PORT}", net(side));
        format!("  server {side} {address} {option} check inter 100ms fall 1 rise 1\n")
    };
    format!(
        "defaults
  mode tcp
  timeout connect 1s
  timeout check 5s
  timeout client 60s
  timeout server 60s
  retries 5
  option redispatch 1
listen farm
  bind {FRONT}
  balance roundrobin
{}{}",
        server('a'),
        server('b')
    )
}

/// That clients are served, whichever machine goes, in whichever way, and again by both when it has
/// come back.
#[track_caller]
fn assert_survives(option: &str, version: &str) {
    let Some(peers) = Peers::find() else {
        return;
    };
    let Some(mut farm) = Farm::start(&peers, option, version) else {
        return;
    };
    farm.until_answered_by('a');
    farm.until_answered_by('b');
    for (gone, other, signal) in [
        ('a', 'b', Signal::SIGTERM),
        ('b', 'a', Signal::SIGKILL),
        ('a', 'b', Signal::SIGKILL),
    ] {
        farm.lose(gone, signal);
        let machine = Machine::start(&peers, &farm.front, gone, version);
        farm.machines.push(machine);
        farm.until_answered_by(gone);
        farm.until_answered_by(other);
    }
}

#[test]
fn clients_of_haproxy_are_served_while_one_of_two_machines_goes_and_comes_with_version_1() {
    assert_survives("send-proxy", "v1");
}

#[test]
fn clients_of_haproxy_are_served_while_one_of_two_machines_goes_and_comes_with_version_2() {
    assert_survives("send-proxy-v2", "v2");
}
