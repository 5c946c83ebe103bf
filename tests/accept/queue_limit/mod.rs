//! `fdaccept --queue`: how many connections wait that no consumer has taken, and how many were
//! taken, however consumers get at the queue.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::support::*;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{SockType, setsockopt, sockopt};
use nix::unistd::Pid;

mod dead_consumers;
mod every_form;
mod options;
mod other_queues;
mod stopping;

/// How consumers get at the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// It is inherited by a command of fdaccept's.
    Chain,
    /// By tickets.
    Pipe,
    /// At a name of fdaccept's.
    Bind,
    /// Consumers own the name.
    Connect,
    /// The queue is fdaccept's standard output, a socket of this type.
    Output(SockType),
    /// The queue is another descriptor of fdaccept's.
    QueueFd(SockType),
    /// Another descriptor, with a buffer of which two connections use more than a quarter.
    SmallQueueFd,
}

impl Form {
    /// How many connections are accepted, and how many of these passed, while no consumer takes any
    /// and `limit` may wait.
    fn most(self, limit: usize) -> (usize, usize) {
        match self {
            // The consumer's socket holds one more than the limit of the kernel. fdaccept has one
            // in hand.
            Form::Connect => {
                let text = std::fs::read_to_string("/proc/sys/net/unix/max_dgram_qlen").unwrap();
                let holds = text.trim().parse::<usize>().unwrap() + 1;
                (limit.min(holds + 1), limit.min(holds))
            }
            _ => (limit, limit),
        }
    }

    /// Whether a stop waits for the end of the queue, so that fdaccept knows that all was taken.
    fn is_waited_for(self) -> bool {
        matches!(self, Form::Chain | Form::Pipe | Form::Bind)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    accepted: usize,
    passed: usize,
    taken: Option<usize>,
}

impl Told {
    #[track_caller]
    fn read(line: &str) -> Self {
        Self {
            accepted: number(line, "accepted").unwrap(),
            passed: number(line, "passed").unwrap(),
            taken: number(line, "taken"),
        }
    }
}

fn told(accepted: usize, passed: usize, taken: usize) -> Told {
    Told {
        accepted,
        passed,
        taken: Some(taken),
    }
}

/// fdaccept and a pool of `cat`, which serves a client that has shut its sending side.
struct Site {
    form: Form,
    size: usize,
    acceptor: Acceptor,
    port: u16,
    names: Names,
    /// What a pool gets the queue from, where that is a descriptor.
    read_end: Option<OwnedFd>,
    /// Where it is no command of fdaccept's.
    pool: Option<Pool>,
}

/// `fdaccept --queue-fd 5`, where 5 is `queue`.
fn with_queue_fd(queue: OwnedFd) -> Fdaccept {
    let mut command = sh("exec fdaccept --queue-fd 5 \"$@\" 5<&0 </dev/null");
    command.arg("sh");
    Fdaccept::of(command).stdin(queue)
}

impl Site {
    /// fdaccept with these options and further addresses. The pool, of `size` slots, is not there
    /// yet.
    fn start(form: Form, size: usize, options: &[&str]) -> Self {
        let mut read_end = None;
        let mut write_end = |kind| {
            let (write_end, other) = socket_pair(kind);
            read_end = Some(other);
            write_end
        };
        let names = Names::new();
        let name = names.path();
        let fdaccept = match form {
            Form::Chain => {
                let pool = "kill -STOP $$; exec fdpool \"$0\" -- cat";
                Fdaccept::chain(sh_c(pool)).word(size.to_string())
            }
            Form::Pipe => Fdaccept::piped(),
            Form::Bind => Fdaccept::bound_at(&name),
            Form::Connect => Fdaccept::plain().args(["--connect", &name]),
            Form::Output(kind) => Fdaccept::plain().stdout(write_end(kind)),
            Form::QueueFd(kind) => with_queue_fd(write_end(kind)),
            Form::SmallQueueFd => {
                let write_end = write_end(SockType::SeqPacket);
                // The least that there can be.
                setsockopt(&write_end, sockopt::SndBuf, &0).unwrap();
                with_queue_fd(write_end)
            }
        };
        let mut acceptor = fdaccept.args(options).spawn();
        if form == Form::Pipe {
            read_end = Some(acceptor.take_pipe().into());
        }
        let line = acceptor.line("listening on 127.0.0.1:");
        let port = line.rsplit_once(':').unwrap().1.parse().unwrap();
        Self {
            form,
            size,
            acceptor,
            port,
            names,
            read_end,
            pool: None,
        }
    }

    /// With a pool that takes nothing until [`Site::resume`].
    fn paused(form: Form, size: usize, options: &[&str]) -> Self {
        let mut site = Self::start(form, size, options);
        site.bring_pool();
        site.pause();
        site
    }

    /// With a paused pool, and with `count` clients of which `waiting` are in the queue.
    #[track_caller]
    fn filled(
        form: Form,
        size: usize,
        options: &[&str],
        count: usize,
        waiting: usize,
    ) -> (Self, Vec<Client>) {
        let mut site = Self::paused(form, size, options);
        let clients = site.clients(count);
        site.until_told(told(waiting, waiting, 0));
        (site, clients)
    }

    /// The pool comes, or a further one.
    #[track_caller]
    fn bring_pool(&mut self) {
        let pool = match self.form {
            Form::Chain => {
                thaw(self.acceptor.stopped_child());
                None
            }
            Form::Bind => Some(Pool::on(&self.names.path())),
            Form::Connect => Some(Pool::bound_at(&self.names.path())),
            _ => {
                let read_end = self.read_end.as_ref().unwrap();
                Some(Pool::plain().stdin(read_end.try_clone().unwrap()))
            }
        };
        self.pool = pool.map(|pool| pool.slots(self.size, ["cat"]).start());
        until("all slots", || {
            let slots = self.slots();
            slots.len() == self.size && slots.iter().all(|slot| is_named(*slot, "fdpool"))
        });
    }

    fn pool_pid(&self) -> Pid {
        match &self.pool {
            Some(pool) => pool.pid(),
            None => self.acceptor.children()[0],
        }
    }

    fn slots(&self) -> Vec<Pid> {
        children(self.pool_pid())
    }

    /// From now on the pool takes nothing.
    #[track_caller]
    fn pause(&self) {
        let slots = self.slots();
        for slot in &slots {
            kill(*slot, Signal::SIGSTOP).unwrap();
        }
        for slot in slots {
            until_state(slot, 'T');
        }
    }

    fn resume(&self) {
        self.slots().into_iter().for_each(thaw);
    }

    /// Ends the pool at once, whatever it has in hand.
    #[track_caller]
    fn kill_pool(&mut self) {
        let pool = self.pool_pid();
        // So that it replaces no slot, and is the last process that has the queue.
        freeze(pool);
        let slots = children(pool);
        let handlers = slots.iter().flat_map(|slot| children(*slot));
        let others: Vec<_> = slots.iter().copied().chain(handlers).collect();
        for pid in &others {
            kill(*pid, Signal::SIGKILL).unwrap();
        }
        others.into_iter().for_each(until_gone);
        kill(pool, Signal::SIGKILL).unwrap();
        if let Some(mut pool) = self.pool.take() {
            pool.wait();
        }
    }

    fn clients(&self, count: usize) -> Vec<Client> {
        (0..count).map(|_| Client::connect(self.port)).collect()
    }

    #[track_caller]
    fn ask(&mut self) -> Told {
        Told::read(&self.acceptor.counters())
    }

    #[track_caller]
    fn until_told(&mut self, expected: Told) {
        let deadline = Instant::now() + DEADLINE;
        let mut now = self.ask();
        while now != expected {
            assert!(Instant::now() < deadline, "{expected:?}, but {now:?}");
            std::thread::sleep(Duration::from_millis(5));
            now = self.ask();
        }
    }

    /// Waits until it counts so, and watches that it stays so.
    #[track_caller]
    fn stays_told(&mut self, expected: Told) {
        self.until_told(expected);
        stays("the counters", || {
            assert_eq!(self.ask(), expected);
            true
        });
    }

    /// Stops fdaccept. Returns its standard error and its last counters.
    #[track_caller]
    fn stop(mut self, status: i32) -> (String, Told) {
        self.acceptor.term();
        self.finish(status)
    }

    /// Waits for an end that has another reason. Returns its standard error and its last counters.
    #[track_caller]
    fn finish(&mut self, status: i32) -> (String, Told) {
        let log = self.acceptor.expect_end(status);
        let counters = log.lines().rfind(|line| is_counters(line));
        let last = Told::read(counters.unwrap_or_else(|| panic!("no counters: {log}")));
        (log, last)
    }

    /// Waits for its end with these last counters and this last line. Returns its standard error.
    #[track_caller]
    fn ends_with(&mut self, status: i32, counters: Told, expected: &str) -> String {
        let (log, last) = self.finish(status);
        assert_eq!(last, counters, "{log}");
        let found = log.lines().last().unwrap();
        assert!(found == expected || is_up_to(found, expected), "{log}");
        log
    }
}

/// Whether `found` says "up to" where `expected` does not: see [`is_left`].
fn is_up_to(found: &str, expected: &str) -> bool {
    found.replacen("up to ", "", 1) == expected
}

fn is_named(pid: Pid, name: &str) -> bool {
    try_status_field(pid, "Name").as_deref() == Some(name)
}

fn is_serving(slot: Pid) -> bool {
    children(slot).iter().any(|pid| is_named(*pid, "cat"))
}

#[track_caller]
fn serve(client: Client) {
    client.expect_echo("x");
}

#[track_caller]
fn are_without_work(pids: &[Pid]) {
    are_idle(pids, Duration::from_millis(150));
}
