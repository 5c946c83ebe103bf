//! One slot of a pool: a forked loop that takes a connection, starts its handler and waits for the
//! handler.
//!
//! A slot blocks in recvmsg(2), so a message wakes one slot, not all. `TERM` ends the loop: at once
//! before or during that call, and after that call when the connection is served.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, getppid, setpgid};
use rustix::process::{self, WaitOptions};

use crate::error::Result;
use crate::queue::connection::Connection;
use crate::queue::{Received, Receiver, ends};
use crate::serve::farewell::Farewell;
use crate::serve::handler::Handler;
use crate::serve::returned::Returned;
use crate::serve::scoreboard::{Activity, Scoreboard, URGENT, Urgency};
use crate::serve::seldom::Seldom;
use crate::system::alarm::Alarm;
use crate::system::descriptor::is_hung_up;
use crate::system::log::{Log, Said, Verbosity};
use crate::system::poll::{PollFlags, PollSet, earliest};
use crate::system::processes::Ticks;
use crate::system::signals::Signals;
use crate::system::termination::{KILL_AFTER, Step, Target, Termination};
use crate::system::text::seconds;
use crate::system::vfork::Launcher;
use crate::system::{exit, fork, interrupt, signals};

/// The pause before another try to start a handler.
const START_AGAIN: Duration = Duration::from_millis(250);

/// How often to look whether a client is gone, where poll(2) does not wait for it.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

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

/// What tells that a client is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HangUp {
    /// A reset, or a connection that is closed both ways.
    Reset,
    /// The end of what the client sends, too.
    End,
}

impl HangUp {
    /// What to wait for, besides what poll(2) always reports.
    fn events(self) -> PollFlags {
        match self {
            HangUp::Reset => PollFlags::empty(),
            HangUp::End => PollFlags::RDHUP,
        }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Slot<'a> {
    pub handler: &'a Handler,
    /// How long a handler may run.
    pub timeout: Option<Duration>,
    /// When to end a handler because its client is gone.
    pub hang_up: Option<HangUp>,
    /// How to end connections. `None` if only their handlers have them.
    pub farewell: Option<&'a Farewell>,
    pub scoreboard: Scoreboard,
    /// Connections that other slots gave back.
    pub returned: &'a Returned,
    /// The slot's place on the scoreboard.
    pub index: usize,
    pub log: Log,
}

impl Slot<'_> {
    /// Serves connections until there is a reason to end. Returned connections come before the
    /// connections of `queue`. Needs a process of its own.
    pub fn run(&self, queue: Option<Receiver>) -> End {
        self.serve_all(queue).unwrap_or_else(|error| {
            self.log.error(error);
            End::Failed
        })
    }

    fn serve_all(&self, mut queue: Option<Receiver>) -> Result<End> {
        queue.iter_mut().for_each(Receiver::leave_name);
        let mut clock = Clock::new(self.hang_up)?;
        interrupt::have_timer();
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
        interrupt::on(&[Signal::SIGTERM])?;
        let _watch = queue.as_ref().map(|queue| interrupt::watch(queue.as_fd()));
        fork::adopt()?;
        // The pool blocks TERM, so a TERM that came meanwhile comes now.
        let mut blocked = clock.signals | ignored;
        blocked.remove(Signal::SIGCHLD);
        signals::set_mask(&blocked)?;
        let mut launcher = Launcher::new();
        loop {
            match self.next(queue.as_ref())? {
                Received::Connection(connection) if connection.is_gone() => {
                    self.scoreboard.count_gone();
                    let client = ends::client(connection.info());
                    self.log.detail(format_args!("{client} had gone"));
                    self.scoreboard.log_status(&self.log);
                }
                Received::Connection(connection) => {
                    if self.scoreboard.set(self.index, Activity::Busy) == Activity::Leaving {
                        // The pool counts on the end of this slot, which comes later now.
                        tell_pool();
                    }
                    fork::set_serving(true);
                    let is_over = self.serve(connection, &mut launcher, &mut clock);
                    fork::set_serving(false);
                    self.scoreboard.set(self.index, Activity::Idle);
                    self.scoreboard.log_status(&self.log);
                    if !is_over || self.scoreboard.makes_room() {
                        return Ok(End::Told);
                    }
                }
                Received::Rejected(why) => self.scoreboard.refuse(why, &self.log),
                Received::End => return Ok(End::Queue),
                Received::Interrupted => return Ok(End::Told),
            }
        }
    }

    /// The next connection: a returned one, or one of the queue.
    fn next(&self, queue: Option<&Receiver>) -> Result<Received> {
        let returned = match self.scoreboard.urgency() {
            Urgency::None => self.returned.take()?,
            Urgency::End | Urgency::Now => None,
        };
        match (returned, queue) {
            (Some(connection), _) => {
                // Another slot may have looked meanwhile, seen nothing, and waits for the queue.
                tell_pool();
                Ok(Received::Connection(connection))
            }
            (None, Some(queue)) => queue.receive(),
            (None, None) => Ok(Received::Interrupted),
        }
    }

    /// Returns whether the service is over; `false` if the connection was given back.
    fn serve(&self, connection: Connection, launcher: &mut Launcher, clock: &mut Clock) -> bool {
        let since = Ticks::now();
        let pid = match self.start(&connection, launcher, clock) {
            Start::Started(pid) => pid,
            Start::Dropped => return true,
            Start::GivenBack => return false,
        };
        self.scoreboard.log_status(&self.log);
        if self.log.is_verbose() {
            let client = connection.info().client();
            self.log.detail(format_args!("pid {pid} from {client}"));
            let ends = ends::both(connection.info());
            self.log.detail(format_args!("ok {pid} {ends}"));
        }
        // Without a copy the client sees the end when the handler, and all that it has left, has closed
        // the connection. The lease stays here until the handler ends, whatever it closes or leaves.
        let client = connection.info().client();
        let (copy, lease) = if self.farewell.is_some() || self.hang_up.is_some() {
            (Some(connection), None)
        } else {
            (None, connection.into_lease())
        };
        let end = self.wait_for(pid, &client, copy.as_ref(), clock);
        if let (Some(connection), Some(farewell)) = (copy, self.farewell) {
            farewell.end(connection, since, end.has_children);
        }
        drop(lease);
        let status = end.status;
        self.log.detail(format_args!("end {pid} status {status}"));
        true
    }

    /// Starts the handler. If that fails, because processes are short or the command is being
    /// replaced, keeps the connection and tries again.
    fn start(&self, connection: &Connection, launcher: &mut Launcher, clock: &mut Clock) -> Start {
        let mut said = Said::default();
        loop {
            let error = match self.handler.spawn(connection, launcher) {
                Ok(pid) => {
                    self.set_stuck(None);
                    return Start::Started(pid);
                }
                Err(error) => error,
            };
            match error.errno() {
                Some(errno @ (Errno::EAGAIN | Errno::ENOMEM)) => {
                    self.scoreboard.count_failure();
                    if self.scoreboard.activity(self.index) != Activity::GivingBack {
                        // The pool logs it, once for all slots, and makes room.
                        self.set_stuck(Some(errno));
                    } else {
                        match self.returned.give(connection) {
                            Ok(()) => return Start::GivenBack,
                            Err(error) => {
                                self.set_stuck(Some(errno));
                                self.log
                                    .once(&mut said, Verbosity::Quiet, error.to_string());
                            }
                        }
                    }
                }
                _ => {
                    self.set_stuck(None);
                    let client = connection.info().client();
                    let what = format!("{error}; the connection from {client} waits");
                    self.log.once(&mut said, Verbosity::Quiet, what);
                }
            }
            // Without its pool, nothing would tell the slot to stop.
            if self.scoreboard.urgency() != Urgency::None || getppid() != clock.pool {
                self.log.error(dropped(connection));
                return Start::Dropped;
            }
            clock.pause(START_AGAIN);
        }
    }

    /// Tells the pool whether this slot waits for room.
    fn set_stuck(&self, cause: Option<Errno>) {
        let now = cause.map_or(Activity::Busy, Activity::Stuck);
        if self.scoreboard.activity(self.index) != now {
            let before = self.scoreboard.set(self.index, now);
            if cause.is_none() && matches!(before, Activity::Stuck(_)) {
                // This slot needs no room any more, so it takes its wish back.
                self.scoreboard.makes_room();
            }
            tell_pool();
        }
    }

    /// Waits for a handler, and ends it with all that it has started when there is a reason to.
    fn wait_for(
        &self,
        pid: Pid,
        client: &str,
        copy: Option<&Connection>,
        clock: &mut Clock,
    ) -> HandlerEnd {
        let until = self.timeout.map(|timeout| Instant::now() + timeout);
        let mut end = Termination::new(Target::Handler(pid), until);
        let who = format!("handler {pid} ({client})");
        loop {
            self.go_on(&mut end, &who);
            // A client is gone once: it would be reported again and again.
            let copy = copy.filter(|_| end.countdown().is_running());
            let is_gone = clock.wait_with(copy, end.countdown().deadline());
            if let Some(mut ended) = reap(pid, |signal| self.say_stopped(pid, signal)) {
                end.leader_ended();
                // After a HUP or TERM, the others keep their time even if the handler itself has ended.
                while end.countdown().is_ending() && end.is_there() {
                    self.go_on(&mut end, &format!("what {who} has started"));
                    clock.wait(Some(end.next_look()));
                    ended.has_children = fork::reap();
                }
                return ended;
            }
            if is_gone {
                clock.say_gone(&self.log, &who);
                end.hang_up(Instant::now() + KILL_AFTER);
            }
        }
    }

    /// Nobody else would find out why the slot does not go on.
    fn say_stopped(&self, pid: Pid, signal: i32) {
        let signal = signals::name(signal);
        self.log
            .warning(format_args!("handler {pid} is stopped by {signal}"));
    }

    /// Takes the next step of a termination, by the pool's urgency and by the clock, and says why.
    fn go_on(&self, end: &mut Termination, who: &str) {
        let urgency = self.scoreboard.urgency();
        let countdown = end.countdown();
        let why = match (urgency, countdown.due(Instant::now())) {
            // Somebody has sent a second signal, and knows.
            (Urgency::Now, _) => return end.kill(None),
            (_, Some(Step::Ask)) if countdown.is_ending() => {
                "has not ended, and gets TERM".to_owned()
            }
            (_, Some(Step::Ask)) => {
                let timeout = seconds(self.timeout.unwrap_or_default());
                format!("ran for {timeout} (--timeout), and is ended")
            }
            (_, Some(Step::Kill)) => {
                let time = seconds(KILL_AFTER);
                format!("did not end within {time}, and is killed")
            }
            (Urgency::End, _) if !countdown.is_asked() && !countdown.is_killed() => {
                end.ask(Instant::now() + KILL_AFTER);
                "did not finish within --grace, and is ended".to_owned()
            }
            _ => return,
        };
        end.go_on();
        self.log.warning(format_args!("{who} {why}"));
    }
}

/// The pool looks at its slots after each signal; another parent ignores this one.
fn tell_pool() {
    let _ = kill(getppid(), Signal::SIGCHLD);
}

/// What became of the start of a handler.
enum Start {
    Started(Pid),
    /// The pool stops.
    Dropped,
    /// Another slot serves the connection.
    GivenBack,
}

/// The message about a connection that nobody serves.
pub(super) fn dropped(connection: &Connection) -> String {
    let client = connection.info().client();
    format!("the connection from {client} is dropped")
}

/// The end of a handler.
struct HandlerEnd {
    /// The raw status, as tcpserver logs it.
    status: i32,
    /// Whether the slot has other children, which it has adopted.
    has_children: bool,
}

/// The end of a child, if it has ended. If a signal has stopped the child, calls `stopped` with it.
/// Reaps adopted children as well: the end of several is one signal.
fn reap(pid: Pid, mut stopped: impl FnMut(i32)) -> Option<HandlerEnd> {
    let mut found = None;
    let has_children = loop {
        match process::wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
            Ok(Some((child, status))) if child.as_raw_nonzero().get() == pid.as_raw() => {
                match status.stopping_signal() {
                    Some(signal) => stopped(signal),
                    None => found = Some(status.as_raw()),
                }
            }
            Ok(Some(_)) => {}
            Ok(None) => break true,
            // If this child is gone, nobody knows its status.
            Err(_) => {
                found = found.or(Some(0));
                break false;
            }
        }
    };
    found.map(|status| HandlerEnd {
        status,
        has_children,
    })
}

/// Wakes a slot that waits for its handler: at the handler's end, by the pool, by the time, or because
/// the client is gone.
struct Clock {
    signals: SigSet,
    alarm: Alarm,
    /// For a wait for the client as well.
    hang_up: Option<ClientWatch>,
    /// The parent process at the start. A different parent means that the pool has died.
    pool: Pid,
}

/// What a slot with `--hang-up` watches besides.
struct ClientWatch {
    /// The signals of the [`Clock`], as a descriptor.
    signals: Signals,
    /// The events of a connection.
    events: PollFlags,
    said: Seldom,
}

impl ClientWatch {
    fn new(events: PollFlags) -> Result<Self> {
        Ok(Self {
            // SIGCHLD stays unblocked, and becomes a SIGALRM.
            signals: Signals::new(&[Signal::SIGALRM, URGENT])?,
            events,
            said: Seldom::default(),
        })
    }
}

impl Clock {
    fn new(hang_up: Option<HangUp>) -> Result<Self> {
        let watch = hang_up.map(|hang_up| ClientWatch::new(hang_up.events()));
        Ok(Self {
            signals: SigSet::from_iter([Signal::SIGCHLD, Signal::SIGALRM, URGENT]),
            alarm: Alarm::new()?,
            hang_up: watch.transpose()?,
            pool: getppid(),
        })
    }

    /// Waits without a handler for `time`, or until the pool has news. A child that could not
    /// execute its program has left a signal, which must not make the time shorter.
    fn pause(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while self.wait(Some(until)) != Some(URGENT) && Instant::now() < until {}
        // There is no handler, and the wait has taken the signals of adopted children.
        fork::reap();
    }

    /// Waits as [`Clock::wait`], or until the client of `connection` is gone, if that matters. Returns
    /// whether the client is.
    fn wait_with(&mut self, connection: Option<&Connection>, until: Option<Instant>) -> bool {
        let (Some(connection), Some(watch)) = (connection, &mut self.hang_up) else {
            self.wait(until);
            return false;
        };
        let mut set = PollSet::new();
        set.add(false, watch.signals.as_fd(), PollFlags::IN);
        set.add(true, connection.as_fd(), watch.events);
        set.until(false, until);
        let is_ready = set.wait().is_ok_and(|ready| ready.contains(&true));
        let signals = watch.signals.by_ref().count();
        let is_gone = is_ready && is_hung_up(connection.as_fd(), watch.events);
        if is_ready && !is_gone && signals == 0 {
            // What is reported is no end, and would be reported again at once.
            self.wait(earliest([until, Some(Instant::now() + LOOK_AGAIN)]));
        }
        is_gone
    }

    /// Says that the client of a handler is gone, which clients can bring about as often as they like.
    fn say_gone(&mut self, log: &Log, who: &str) {
        let said = self.hang_up.as_mut().map(|watch| &mut watch.said);
        let what = format_args!("{who} is ended: its client is gone");
        match said.and_then(|said| said.is_due(Instant::now())) {
            Some(0) => log.warning(what),
            Some(others) => log.warning(format_args!("{what}; so were {others} others before")),
            None => log.detail(what),
        }
    }

    /// Waits for a signal, or for `until`. None is missed that came before: the signals are blocked,
    /// and of SIGCHLD, which is not, SIGALRM tells ([`fork::set_serving`]). A left-over signal wakes
    /// the slot for nothing, which does no harm.
    fn wait(&mut self, until: Option<Instant>) -> Option<Signal> {
        if let Some(until) = until {
            self.alarm
                .after(until.saturating_duration_since(Instant::now()));
        }
        self.signals.wait().ok()
    }
}
