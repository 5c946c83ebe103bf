//! A real HAProxy in front of 2 machines with an fdaccept each, of which 1 goes and comes back. The
//! machines are network namespaces.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use crate::support::*;
use nix::sys::signal::Signal;

/// HAProxy's address, to which clients connect.
const FRONT: &str = "127.0.0.1:8080";

/// The port of both fdaccepts, each at its own address.
const PORT: &str = "8888";

/// How many clients in a row are looked at.
const MANY: usize = 50;

/// How many of them may be lost: clients on their way to a machine when it goes. HAProxy sends the
/// others to the other machine. On a busy machine a health check may fail by chance.
const FEW: usize = 10;

/// Clients from many addresses, one after another. Each prints its address and its answer, or the
/// address alone if it failed.
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

/// Runs `ip` with these words. The error is what it says.
fn run_ip(ip: &Path, words: &str) -> Result<(), String> {
    let mut command = Command::new(ip);
    let (status, _, log) = run(command.args(words.split(' ')).stdin(Stdio::null()));
    match status {
        Some(0) => Ok(()),
        _ => Err(format!("ip {words}: {log}")),
    }
}

/// A network namespace, removed on drop.
struct Namespace {
    ip: PathBuf,
    name: String,
}

impl Namespace {
    fn new(ip: &Path, name: &str) -> Result<Self, String> {
        run_ip(ip, &format!("netns add {name}"))?;
        let (ip, name) = (ip.to_owned(), name.to_owned());
        Ok(Self { ip, name })
    }

    /// Runs `ip` within it.
    fn ip(&self, words: &str) -> Result<(), String> {
        run_ip(&self.ip, &format!("-n {} {words}", self.name))
    }

    /// A command that runs within it and keeps its process id.
    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(&self.ip);
        command.args(["netns", "exec", &self.name]).arg(program);
        command.env("PATH", path()).stdin(Stdio::null());
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = run_ip(&self.ip, &format!("netns del {}", self.name));
    }
}

/// A machine behind HAProxy. Its program ends before its namespace goes.
struct Machine {
    fdaccept: Process,
    _namespace: Namespace,
}

impl Machine {
    /// Makes a machine, and the wire from `front` to it.
    fn start(front: &Namespace, side: char, version: &str) -> Self {
        let name = front.name.replace("front", &side.to_string());
        let namespace = Namespace::new(&front.ip, &name).unwrap();
        let net = net(side);
        let here = format!("to-{side}");
        let wire = format!("link add {here} type veth peer name front netns {name}");
        front.ip(&wire).unwrap();
        for (end, interface, host) in [(front, here.as_str(), 1), (&namespace, "front", 2)] {
            let address = format!("addr add {net}.{host}/24 dev {interface}");
            end.ip(&address).unwrap();
            end.ip(&format!("link set {interface} up")).unwrap();
        }
        let handler = format!("echo {side} $TCPREMOTEIP $TCPLOCALIP:$TCPLOCALPORT");
        let mut fdaccept = namespace
            .command(bin_dir().join("fdaccept"))
            .args(["--proxy-protocol", version, "--proxy-from"])
            .args([format!("{net}.1"), format!("{net}.2:{PORT}")])
            .args(["--", "fdpool", "4", "--", "sh", "-c", &handler])
            .start();
        fdaccept.listening();
        Self {
            fdaccept,
            _namespace: namespace,
        }
    }
}

/// The first 3 numbers of the addresses on the wire to a machine.
fn net(side: char) -> String {
    format!("10.77.{}", u32::from(side))
}

/// HAProxy, its clients and both machines. Fields are dropped in this order.
struct Farm {
    clients: Process,
    /// How many clients were looked at.
    seen: usize,
    haproxy: Process,
    machines: BTreeMap<char, Machine>,
    _names: Names,
    front: Namespace,
}

impl Farm {
    /// Starts all, with `option` on HAProxy's servers; `None` if a program, root or network
    /// namespaces are missing.
    fn start(option: &str, version: &str) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let (haproxy, ip, python) = (peer("haproxy")?, peer("ip")?, python()?);
        if !root() {
            return None;
        }
        let name = format!("fdtools-{}-{count}-front", std::process::id());
        let front = Namespace::new(&ip, &name)
            .map_err(|problem| skip(&format!("no network of its own: {problem}")))
            .ok()?;
        if !front.command("true").status().unwrap().success() {
            skip("nothing can be run in a network of its own");
            return None;
        }
        front.ip("link set lo up").unwrap();
        let machine = |side| (side, Machine::start(&front, side, version));
        let machines = ['a', 'b'].map(machine).into();
        let names = Names::new();
        let file = names.file("haproxy.cfg");
        std::fs::write(&file, configuration(option)).unwrap();
        Some(Self {
            haproxy: front
                .command(&haproxy)
                .args(["-db", "-f"])
                .arg(file)
                .start(),
            clients: front.command(&python).args(["-c", CLIENTS]).start(),
            seen: 0,
            machines,
            _names: names,
            front,
        })
    }

    /// The next client's answer; see [`answered`].
    #[track_caller]
    fn answer(&mut self) -> Option<char> {
        self.seen += 1;
        answered(&self.clients.line("127.1."))
    }

    /// The answers of all clients that have ended meanwhile.
    #[track_caller]
    fn answers(&mut self) -> Vec<Option<char>> {
        let log = self.clients.log();
        let lines = log.lines().filter(|line| line.contains("127.1."));
        let answers: Vec<_> = lines.skip(self.seen).map(answered).collect();
        self.seen += answers.len();
        answers
    }

    #[track_caller]
    fn until_answered_by(&mut self, side: char) {
        let deadline = Instant::now() + DEADLINE;
        while self.answer() != Some(side) {
            let log = self.haproxy.log();
            assert!(Instant::now() < deadline, "nothing from {side}: {log}");
        }
    }

    /// Removes a machine, and expects that the other one goes on answering clients.
    #[track_caller]
    fn lose(&mut self, side: char, signal: Signal) {
        let mut machine = self.machines.remove(&side).unwrap();
        machine.fdaccept.signal(signal);
        let (status, log) = machine.fdaccept.finish();
        assert!(status.success() || signal == Signal::SIGKILL, "{log}");
        drop(machine);
        // The kernel removes the wire some time after the namespace.
        let wire = format!("link show to-{side}");
        until("the end of the wire", || self.front.ip(&wire).is_err());
        let mut answers = self.answers();
        answers.extend((0..MANY).map(|_| self.answer()));
        let lost = answers.iter().filter(|answer| answer.is_none()).count();
        assert!(lost <= FEW, "{lost}: {answers:?} {}", self.haproxy.log());
        // Answers before these may have come while the machine was there.
        let last = &answers[answers.len() - FEW..];
        assert!(!last.contains(&Some(side)), "{answers:?}");
    }
}

/// The machine that answered a client; `None` without an answer. An answer must name the client
/// itself, not HAProxy.
#[track_caller]
fn answered(line: &str) -> Option<char> {
    match line.split_whitespace().collect::<Vec<_>>()[..] {
        [_] => None,
        [address, side, remote, local] => {
            assert_eq!((remote, local), (address, FRONT), "{line}");
            side.chars().next()
        }
        _ => panic!("{line}"),
    }
}

/// HAProxy's configuration, with short health checks.
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

/// Expects that clients are served whichever machine goes, and by both after it has come back.
#[track_caller]
fn assert_survives(option: &str, version: &str) {
    let Some(mut farm) = Farm::start(option, version) else {
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
        let machine = Machine::start(&farm.front, gone, version);
        farm.machines.insert(gone, machine);
        farm.until_answered_by(gone);
        farm.until_answered_by(other);
    }
}

cases! {
    assert_survives;
    clients_of_haproxy_are_served_while_one_of_two_machines_goes_and_comes_with_version_1:
        "send-proxy", "v1";
    clients_of_haproxy_are_served_while_one_of_two_machines_goes_and_comes_with_version_2:
        "send-proxy-v2", "v2";
}
