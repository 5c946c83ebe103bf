//! One slot of a pool: a forked loop that takes a connection, starts its handler and waits for the
//! handler.
//!
//! A slot blocks in recvmsg(2), so a message wakes one slot, not all. `TERM` ends the loop: at once
//! before or during that call, and after that call when the connection is served.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, getppid, setpgid};
use rustix::process::{self, WaitOptions};

use crate::error::Result;
use crate::queue::connection::Connection;
use crate::queue::{Received, Receiver};
use crate::serve::handler::Handler;
use crate::serve::scoreboard::{Scoreboard, URGENT, Urgency};
use crate::system::alarm::Alarm;
use crate::system::log::{Log, Said, Verbosity};
use crate::system::termination::{KILL_AFTER, Target, Termination};
use crate::system::vfork::Launcher;
use crate::system::{exit, interrupt, signals};

/// The pause before another try to start a handler.
const START_AGAIN: Duration = Duration::from_millis(250);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// A signal told the slot to end.
    Told,
    Queue,
    /// An error, which is logged.
    Failed,
}

impl End {
    /// The exit status, by which the pool knows the reason.
    pub fn status(self) -> u8 {
        match self {
            End::Told => 0,
            End::Queue => exit::CLOSED,
            End::Failed => 1,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Slot<'a> {
    pub handler: &'a Handler,
    /// How long a handler may run.
    pub timeout: Option<Duration>,
    pub scoreboard: Scoreboard,
    /// The slot's place on the scoreboard.
    pub index: usize,
    pub log: Log,
}

impl Slot<'_> {
    /// Serves connections from `queue` until there is a reason to end. Needs a process of its own.
    pub fn run(&self, queue: Receiver) -> End {
        self.serve_all(queue).unwrap_or_else(|error| {
            self.log.error(error);
            End::Failed
        })
    }

    fn serve_all(&self, mut queue: Receiver) -> Result<End> {
        queue.leave_name();
        let mut clock = Clock::new()?;
        // A signal to the pool's group, as from a terminal, is for the pool: in a slot it would end
        // a handler that is just being started. HUP is blocked because the kernel hangs up on an
        // orphaned process group with a stopped process.
        let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
        let ignored = signals::block_instead_of_ignoring(&[
            Signal::SIGHUP,
            // For the pool, which tells its slots.
            Signal::SIGINT,
            Signal::SIGUSR1,
            Signal::SIGTTIN,
            Signal::SIGTTOU,
        ])?;
        interrupt::on_signals(&[Signal::SIGTERM as i32])?;
        let _watch = interrupt::watch(queue.as_fd());
        // The pool blocks TERM, so a TERM that came meanwhile comes now.
        signals::set_mask(&(clock.signals | ignored))?;
        let mut launcher = Launcher::new();
        loop {
            match queue.receive()? {
                Received::Connection(connection) => {
                    self.scoreboard.set_busy(self.index, true);
                    self.serve(connection, &mut launcher, &mut clock);
                    self.scoreboard.set_busy(self.index, false);
                    self.scoreboard.log_status(&self.log);
                }
                Received::Rejected(why) => self.log.error(why),
                Received::End => return Ok(End::Queue),
                Received::Interrupted => return Ok(End::Told),
            }
        }
    }

    fn serve(&self, connection: Connection, launcher: &mut Launcher, clock: &mut Clock) {
        let Some(pid) = self.start(&connection, launcher, clock) else {
            return;
        };
        self.scoreboard.log_status(&self.log);
        if self.log.is_verbose() {
            let client = connection.info().client();
            self.log.detail(format_args!("pid {pid} from {client}"));
        }
        // Only the handler has the connection now, so the client sees the end when the handler
        // ends. The lease stays here until then, whatever the handler closes or leaves behind.
        let lease = connection.into_lease();
        let status = self.wait_for(pid, clock);
        drop(lease);
        self.log.detail(format_args!("end {pid} status {status}"));
    }

    /// Starts the handler. If that fails, because processes are short or the command is being
    /// replaced, keeps the connection and tries again; `None` if the pool stops first.
    fn start(
        &self,
        connection: &Connection,
        launcher: &mut Launcher,
        clock: &mut Clock,
    ) -> Option<Pid> {
        let mut said = Said::default();
        loop {
            let problem = match self.handler.spawn(connection, launcher) {
                Ok(pid) => return Some(pid),
                Err(error) => error.to_string(),
            };
            let client = connection.info().client();
            let what = format!("{problem}; the connection from {client} waits");
            self.log.once(&mut said, Verbosity::Quiet, what);
            // Without its pool, nothing would tell the slot to stop.
            if self.scoreboard.urgency() != Urgency::None || getppid() != clock.pool {
                self.log
                    .error(format_args!("the connection from {client} is dropped"));
                return None;
            }
            clock.wait(Some(Instant::now() + START_AGAIN));
        }
    }

    /// Waits for a handler, and ends its process group when there is a reason to. Returns the raw
    /// status of the handler, as tcpserver logs it.
    fn wait_for(&self, pid: Pid, clock: &mut Clock) -> i32 {
        let until = self.timeout.map(|timeout| Instant::now() + timeout);
        let mut end = Termination::new(Target::Group(pid), until);
        loop {
            self.go_on(&mut end);
            clock.wait(end.countdown().deadline());
            if let Some(status) = reap(pid, |signal| self.say_stopped(pid, signal)) {
                // After a TERM, the group keeps its time even if the handler itself has ended.
                while end.countdown().is_asked() && end.is_there() {
                    self.go_on(&mut end);
                    clock.wait(Some(end.next_look()));
                }
                return status;
            }
        }
    }

    /// Nobody else would find out why the slot does not go on.
    fn say_stopped(&self, pid: Pid, signal: i32) {
        let signal = signals::name(signal);
        self.log
            .notice(format_args!("handler {pid} is stopped by {signal}"));
    }

    /// Takes the next step of a termination, by the pool's urgency and by the clock.
    fn go_on(&self, end: &mut Termination) {
        match self.scoreboard.urgency() {
            Urgency::None => {}
            Urgency::End => end.ask(Instant::now() + KILL_AFTER),
            Urgency::Now => end.kill(None),
        }
        end.go_on();
    }
}

/// The raw status of a child that has ended; otherwise `None`. If a signal has stopped the child,
/// calls `stopped` with it.
fn reap(pid: Pid, stopped: impl FnOnce(i32)) -> Option<i32> {
    let pid = process::Pid::from_raw(pid.as_raw())?;
    loop {
        match process::waitpid(Some(pid), WaitOptions::NOHANG | WaitOptions::UNTRACED) {
            Ok(None) => return None,
            Ok(Some((_, status))) => match status.stopping_signal() {
                Some(signal) => {
                    stopped(signal);
                    return None;
                }
                None => return Some(status.as_raw()),
            },
            Err(rustix::io::Errno::INTR) => {}
            // The child is gone, and nobody knows its status.
            Err(_) => return Some(0),
        }
    }
}

/// Wakes a slot that waits for its handler: at the handler's end, by the pool, or by the time.
struct Clock {
    signals: SigSet,
    alarm: Alarm,
    /// The parent process at the start. A different parent means that the pool has died.
    pool: Pid,
}

impl Clock {
    fn new() -> Result<Self> {
        Ok(Self {
            signals: SigSet::from_iter([Signal::SIGCHLD, Signal::SIGALRM, URGENT]),
            alarm: Alarm::new()?,
            pool: getppid(),
        })
    }

    /// Waits for a signal, or for `until`. The signals are blocked, so none is missed that came
    /// before. A left-over signal wakes the slot for nothing, which does no harm.
    fn wait(&mut self, until: Option<Instant>) {
        if let Some(until) = until {
            self.alarm
                .after(until.saturating_duration_since(Instant::now()));
        }
        let _ = self.signals.wait();
    }
}
