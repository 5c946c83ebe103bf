//! The accept loop: connections from listeners into a sink, until there is a reason to stop.
//!
//! Backpressure is not polling the listeners. One connection at most is in hand: accepted, and
//! not in the queue yet.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustix::io::Errno;
use rustix::net::{SocketAddrAny, SocketFlags, acceptfrom_with};

use crate::alarm::Alarm;
use crate::arrival::Arrival;
use crate::awaited_headers::AwaitedHeaders;
use crate::chain::Chain;
use crate::counters::Refusal;
use crate::error::{to_nix, to_rustix};
use crate::guard::Guard;
use crate::listener::{Kind, Listener};
use crate::queue::RETRY;
use crate::report::Log;
use crate::room::Room;
use crate::signals::{Signals, not_ignored};
use crate::sink::{Passed, Sink, Untaken};
use crate::supervisor::Supervisor;
use crate::wait::{PollFd, PollFlags, wait};
use crate::{Error, Result, backlog, message};

/// How long nothing is accepted when descriptors or memory are short.
const PAUSE: Duration = Duration::from_millis(250);
/// A shortage that is over for less than this was not over.
const SAME_SHORTAGE: Duration = Duration::from_secs(60);
/// How often to look where nothing tells that the queue is empty, or has room.
const LOOK: Duration = Duration::from_millis(20);
/// How long after a TERM that was not to wait a command is ended.
const KILL_AFTER: Duration = Duration::from_secs(5);
/// The most connections taken from one listener before the next has its turn.
const TURN: usize = 16;
/// How long closing what a stranger sent may block.
const LINGER: Duration = Duration::from_millis(5);
/// How long an accept may block that another process was faster at.
const BLOCKED: Duration = Duration::from_millis(50);

/// The signals that the loop takes over; of those that stop it, the ones that are not ignored. HUP
/// only where it has something to `reload`.
pub fn signals(reload: bool) -> Vec<Signal> {
    let mut signals = not_ignored(&[Signal::SIGTERM, Signal::SIGINT]);
    signals.extend([Signal::SIGCHLD, Signal::SIGUSR1]);
    if reload {
        signals.push(Signal::SIGHUP);
    }
    signals
}

/// What became of one accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// This client is gone, or a signal came: there may be a next one.
    Retry,
    /// Nobody is there.
    Nobody,
    /// Descriptors or memory are short: accept nothing for a while.
    Pause,
    /// It will not work later either.
    Fatal,
}

/// The class of an error of accept(2), which also reports errors of the new connection.
fn classify(errno: Errno) -> Class {
    match errno {
        Errno::INTR
        | Errno::CONNABORTED
        | Errno::PROTO
        | Errno::PERM
        | Errno::TIMEDOUT
        | Errno::NETDOWN
        | Errno::NETUNREACH
        | Errno::HOSTDOWN
        | Errno::HOSTUNREACH
        | Errno::NOPROTOOPT
        | Errno::OPNOTSUPP
        | Errno::CONNRESET
        | Errno::NONET => Class::Retry,
        Errno::AGAIN => Class::Nobody,
        Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM => Class::Pause,
        _ => Class::Fatal,
    }
}

/// A connection that is accepted and not in the queue yet.
struct InHand {
    connection: OwnedFd,
    lease: Option<OwnedFd>,
    payload: Vec<u8>,
}

/// What the loop is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Accepting.
    Open,
    /// Told to stop: what already is in the backlogs is accepted.
    LastOrders,
    /// Nothing is accepted any more; what was accepted is waited for.
    Closed,
}

/// One listener and what is left to be accepted from it.
struct Place {
    listener: Listener,
    /// Once told to stop: connections that its backlog may still hold from before.
    left: usize,
}

/// What the accept loop is given to work with.
pub struct Parts {
    /// Where connections come from.
    pub listeners: Vec<Listener>,
    /// Where a proxy must say first whom it speaks for.
    pub headers: Option<AwaitedHeaders>,
    /// Who decides which are let in.
    pub guard: Guard,
    /// Where they go.
    pub sink: Sink,
    /// The command that reads the sink, if it is one of ours.
    pub chain: Option<Chain>,
    /// Who is told how this goes.
    pub supervisor: Supervisor,
    /// Those of [`signals`].
    pub signals: Signals,
    /// How long what was accepted is waited for after a stop.
    pub grace: Duration,
    /// Where things are said.
    pub log: Log,
}

/// Everything that the accept loop works with.
pub struct Acceptor {
    places: Vec<Place>,
    /// The one whose turn it is.
    next_place: usize,
    headers: Option<AwaitedHeaders>,
    /// For a consumer that comes.
    room: Room<1>,
    guard: Guard,
    sink: Sink,
    chain: Option<Chain>,
    supervisor: Supervisor,
    signals: Signals,
    grace: Duration,
    log: Log,
    longest_backlog: usize,
    alarm: Alarm,
    stage: Stage,
    in_hand: Option<InHand>,
    /// Nothing is accepted before this.
    paused_until: Option<Instant>,
    /// When descriptors or memory were last short.
    short_at: Option<Instant>,
    /// What is in hand is not tried again before this.
    retry_at: Option<Instant>,
    retry_after: Duration,
    /// When what was accepted is no longer waited for, or the command gets its next signal.
    deadline: Option<Instant>,
    /// The signal that the command gets then.
    next_signal: Signal,
    /// A second signal came.
    at_once: bool,
    /// Nobody can take connections any more.
    gone: bool,
}

impl Acceptor {
    /// The loop, not running yet.
    ///
    /// # Errors
    /// [`Error::System`] if there is no timer to be had.
    pub fn new(parts: Parts) -> Result<Self> {
        let place = |listener| Place { listener, left: 0 };
        Ok(Self {
            places: parts.listeners.into_iter().map(place).collect(),
            next_place: 0,
            headers: parts.headers,
            room: Room::new(),
            guard: parts.guard,
            sink: parts.sink,
            chain: parts.chain,
            supervisor: parts.supervisor,
            signals: parts.signals,
            grace: parts.grace,
            log: parts.log,
            longest_backlog: backlog::longest(),
            alarm: Alarm::breaking_off()?,
            stage: Stage::Open,
            in_hand: None,
            paused_until: None,
            short_at: None,
            retry_at: None,
            retry_after: RETRY,
            deadline: None,
            next_signal: Signal::SIGTERM,
            at_once: false,
            gone: false,
        })
    }

    /// Runs until a signal, the end of the consumers or the end of the command. Returns the exit
    /// status.
    ///
    /// # Errors
    /// [`Error::System`] for what will not work later either; [`Error::Peer`] if a queue that
    /// was handed to us has no consumers any more.
    pub fn run(mut self) -> Result<u8> {
        self.supervisor.ready(&self.log);
        self.tell_status();
        match self.serve() {
            Ok(Some(status)) => Ok(self.end_with_chain(status)),
            Ok(None) => self.end(),
            Err(error) if self.chain.is_none() => {
                self.say_untaken();
                Err(error)
            }
            // The command still gets to the end of its queue.
            Err(error) => {
                self.log.error(error);
                self.close();
                self.gone = true;
                self.deadline = Some(Instant::now() + self.grace);
                if let Err(error) = self.serve() {
                    self.log.error(error);
                }
                Ok(self.end_with_chain(1))
            }
        }
    }

    /// The loop. Returns the exit status of the command, if it has ended; `None` at another end.
    fn serve(&mut self) -> Result<Option<u8>> {
        // Consumers may be there already, and a first ticket is due.
        self.attend_sink()?;
        loop {
            if self.chain.is_none() && self.is_done() {
                return Ok(None);
            }
            let ready = self.wait()?;
            if ready.signals {
                // First all signals are read: one that comes later wakes the loop again.
                let stage = self.stage;
                self.attend_signals();
                let ended = self.chain.as_ref().and_then(Chain::ended);
                if ended.is_some() {
                    return Ok(ended);
                }
                if self.stage != stage {
                    // Who came before that signal may have come after the listeners were looked at.
                    continue;
                }
            }
            if ready.sink {
                self.attend_sink()?;
            }
            self.guard.attend();
            self.attend_headers();
            self.attend_clock();
            self.attend_supervisor();
            self.pass()?;
            self.let_in_complete()?;
            self.accept(&ready.listeners)?;
            self.close_when_done();
        }
    }

    /// Waits until something is to be done.
    fn wait(&mut self) -> Result<Ready> {
        let now = Instant::now();
        let listening = self.is_accepting(now);
        // A last order is taken without waiting for it.
        let until = match self.stage {
            Stage::LastOrders if listening && !self.places.is_empty() => Some(now),
            _ => self.next_deadline(now),
        };
        let for_room = self.in_hand.is_some() && self.retry_at.is_none();
        let mut fds = vec![PollFd::from_borrowed_fd(
            self.signals.as_fd(),
            PollFlags::IN,
        )];
        // Once everybody is gone there is nothing to learn, and the end would be told for ever.
        if !self.gone {
            fds.extend(self.sink.watch(for_room));
        }
        let sinks = fds.len();
        let headers = self.headers.iter().map(AsFd::as_fd);
        let guards = self.guard.descriptors().chain(headers);
        fds.extend(guards.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let guards = fds.len();
        if listening {
            let places = self.places.iter();
            fds.extend(places.map(|p| PollFd::from_borrowed_fd(p.listener.as_fd(), PollFlags::IN)));
        }
        wait(&mut fds, until).map_err(|errno| Error::system("wait for connections", errno))?;
        let is_ready = |fd: &PollFd| !fd.revents().is_empty();
        let now = Instant::now();
        Ok(Ready {
            signals: is_ready(&fds[0]),
            sink: fds[1..sinks].iter().any(is_ready)
                || self.sink.deadline().is_some_and(|at| at <= now),
            listeners: fds[guards..].iter().map(is_ready).collect(),
        })
    }

    fn next_deadline(&mut self, now: Instant) -> Option<Instant> {
        let is_emptied = self.stage == Stage::Closed && self.chain.is_none();
        let looks = is_emptied || self.sink.must_look_for_room();
        let look = looks.then(|| now + LOOK);
        let sink = (!self.gone).then(|| self.sink.deadline()).flatten();
        let guard = self.guard.deadline(now);
        let headers = self.headers.as_ref();
        let header = headers.and_then(AwaitedHeaders::deadline);
        let status = self.status_due();
        [
            self.paused_until,
            self.retry_at,
            self.deadline,
            sink,
            look,
            guard,
            header,
            status,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn is_accepting(&mut self, now: Instant) -> bool {
        self.stage != Stage::Closed
            && self.paused_until.is_none_or(|until| until <= now)
            && self.may_accept(now)
    }

    /// Whether there is room for one more, here and in service.
    fn may_accept(&mut self, now: Instant) -> bool {
        self.complete_headers() == 0 && self.guard.shut_until(now).is_none() && self.may_let_in()
    }

    /// The same for one that was accepted already.
    fn may_let_in(&mut self) -> bool {
        self.in_hand.is_none() && !self.guard.is_full() && self.sink.has_room()
    }

    fn complete_headers(&self) -> usize {
        self.headers.as_ref().map_or(0, AwaitedHeaders::complete)
    }

    /// Accepts what waits at the listeners that are ready, and passes it on.
    fn accept(&mut self, ready: &[bool]) -> Result<()> {
        // They may be gone since they were ready.
        if self.stage == Stage::Closed {
            return Ok(());
        }
        // Where there is room for one only, each listener has its turn all the same.
        let count = ready.len();
        let first = self.next_place;
        let in_turn = (0..count).map(|index| (first + index) % count);
        for index in in_turn.filter(|index| ready[*index]) {
            // Nobody may have been left to take the one before.
            if self.stage == Stage::Closed {
                return Ok(());
            }
            for _ in 0..self.places[index].turn() {
                let may_accept = self.is_accepting(Instant::now());
                if !may_accept || self.places[index].is_finished(self.stage) {
                    break;
                }
                self.accept_from(index)?;
            }
        }
        if self.stage == Stage::LastOrders {
            // Not ready means that its backlog is empty.
            for (place, _) in self
                .places
                .iter_mut()
                .zip(ready)
                .filter(|(_, ready)| !**ready)
            {
                place.left = 0;
            }
            // Nobody is to connect for nothing.
            self.places.retain(|place| place.left > 0);
        }
        Ok(())
    }

    /// Accepts one connection, if one is there.
    fn accept_from(&mut self, index: usize) -> Result<()> {
        match self.accept_one(index) {
            Ok((connection, remote)) => {
                self.places[index].left = self.places[index].left.saturating_sub(1);
                self.next_place = index + 1;
                self.guard.count();
                let listener = &self.places[index].listener;
                let arrival = Arrival::new(connection, remote.as_ref(), listener);
                return self.receive(arrival);
            }
            Err(errno) => match classify(errno) {
                Class::Retry => {
                    let is_clients = errno != Errno::INTR;
                    self.guard.counters.failed += u64::from(is_clients);
                }
                Class::Nobody => self.places[index].left = 0,
                Class::Pause => {
                    if !self.give_up_header() {
                        self.pause(to_nix(errno));
                    }
                }
                Class::Fatal => {
                    let action = format!("accept on {}", self.places[index].listener);
                    return Err(Error::system(action, to_nix(errno)));
                }
            },
        }
        Ok(())
    }

    fn accept_one(&mut self, index: usize) -> Result<(OwnedFd, Option<SocketAddrAny>), Errno> {
        self.guard.prepare().map_err(to_rustix)?;
        let listener = &self.places[index].listener;
        let accept = || acceptfrom_with(listener, SocketFlags::CLOEXEC);
        if !listener.is_inherited() {
            return accept();
        }
        // Not ours alone, so it may block, and another process may have been faster.
        let accepted = self.alarm.limit(BLOCKED, accept);
        accepted.map_err(|errno| match errno {
            Errno::INTR => Errno::AGAIN,
            errno => errno,
        })
    }

    /// One was accepted: it is let in, or first must say whom it speaks for.
    fn receive(&mut self, arrival: Arrival) -> Result<()> {
        let Some(headers) = &mut self.headers else {
            return self.let_in_and_pass(arrival);
        };
        if let Some((refused, why)) = headers.expect(arrival, Instant::now()) {
            self.turn_away(refused, why);
        }
        self.leave_room();
        self.let_in_complete()
    }

    /// Lets those in that have said whom they speak for, as long as there is room.
    fn let_in_complete(&mut self) -> Result<()> {
        while self.complete_headers() > 0 && self.paused_until.is_none() && self.may_let_in() {
            if let Err(errno) = self.guard.prepare() {
                self.pause(errno);
                break;
            }
            let complete = self.headers.as_mut().and_then(AwaitedHeaders::take);
            if let Some(arrival) = complete {
                self.let_in_and_pass(arrival)?;
            }
        }
        Ok(())
    }

    fn let_in_and_pass(&mut self, arrival: Arrival) -> Result<()> {
        self.let_in(arrival);
        self.pass()?;
        if self.may_let_in() {
            // The next one finds everything prepared; that it cannot be is said when it is needed.
            let _ = self.guard.prepare();
            self.leave_room();
        }
        Ok(())
    }

    /// A consumer that comes needs a descriptor, too: where each client takes some, those give theirs
    /// up that can.
    fn leave_room(&mut self) {
        if self.headers.is_none() && !self.guard.counts() {
            return;
        }
        while self.room.check(self.signals.as_fd()).is_err() {
            if !self.give_up_header() {
                self.guard.is_short();
                break;
            }
        }
    }

    /// Takes one in hand, or turns it away.
    fn let_in(&mut self, arrival: Arrival) {
        let connection = arrival.connection.as_fd();
        let entry = match self.guard.judge(connection, &arrival.client) {
            Ok(entry) => entry,
            Err(why) => return self.turn_away(arrival, why),
        };
        let mut info = arrival.info();
        if let Some(number) = entry.number {
            info.set(message::TCP_CONN_NUM, number.to_string());
        }
        if self.log.is_verbose() {
            let (client, listener) = (info.client(), &arrival.listener);
            self.log
                .detail(format_args!("accepted {client} on {listener}"));
        }
        self.in_hand = Some(InHand {
            connection: arrival.connection,
            lease: entry.lease,
            payload: info.encode(),
        });
    }

    fn turn_away(&mut self, arrival: Arrival, why: Refusal) {
        if self.log.is_verbose() {
            let (client, listener) = (arrival.info().client(), &arrival.listener);
            self.log
                .detail(format_args!("refused {client} on {listener}: {why}"));
        }
        self.guard.refuse(arrival.connection, why);
    }

    fn attend_headers(&mut self) {
        let headers = self.headers.as_mut();
        let refused = headers.map(|headers| headers.attend(Instant::now()));
        for (arrival, why) in refused.into_iter().flatten() {
            self.turn_away(arrival, why);
        }
    }

    /// Descriptors are short: gives one up that has waited longest for its header. False if there
    /// is none.
    fn give_up_header(&mut self) -> bool {
        let headers = self.headers.as_mut();
        let Some((arrival, why)) = headers.and_then(AwaitedHeaders::give_up_oldest) else {
            return false;
        };
        self.turn_away(arrival, why);
        true
    }

    /// Puts what is in hand into the queue, if there is room.
    fn pass(&mut self) -> Result<()> {
        let Some(hand) = &self.in_hand else {
            return Ok(());
        };
        if self.gone || self.retry_at.is_some_and(|at| Instant::now() < at) {
            return Ok(());
        }
        self.retry_at = None;
        let lease = hand.lease.as_ref().map(AsFd::as_fd);
        match self
            .sink
            .pass(hand.connection.as_fd(), lease, &hand.payload, &self.log)?
        {
            // Our copy is closed, so that the client sees the end when its handler ends.
            Passed::Done => {
                self.guard.counters.passed += 1;
                self.in_hand = None;
                self.retry_after = RETRY;
            }
            Passed::Full => {}
            Passed::Later => {
                self.retry_at = Some(Instant::now() + self.retry_after);
                self.retry_after = (self.retry_after * 2).min(PAUSE);
            }
            Passed::Gone => self.nobody_is_left(),
        }
        Ok(())
    }

    fn pause(&mut self, errno: nix::errno::Errno) {
        let now = Instant::now();
        self.guard.is_short();
        self.paused_until = Some(now + PAUSE);
        // One that comes and goes is said once.
        if self.short_at.is_none_or(|at| now - at > SAME_SHORTAGE) {
            let cause = errno.desc();
            self.log.error(format_args!(
                "cannot accept: {cause}; connections wait until it can"
            ));
        }
        self.short_at = Some(now);
    }

    fn attend_sink(&mut self) -> Result<()> {
        if self.gone {
            return Ok(());
        }
        // What strangers sent is closed here, and closing their sockets may block (SO_LINGER).
        let (sink, log) = (&mut self.sink, &self.log);
        if !self.alarm.limit(LINGER, || sink.attend(log))? {
            self.nobody_is_left();
        }
        Ok(())
    }

    /// Without consumers there is nothing to accept for.
    fn nobody_is_left(&mut self) {
        self.gone = true;
        self.retry_at = None;
        self.close();
    }

    fn attend_signals(&mut self) {
        while let Some(signal) = self.signals.next() {
            match signal {
                Signal::SIGCHLD => {}
                Signal::SIGUSR1 => self.say_counters(),
                Signal::SIGHUP => self.reload(),
                _ if self.deadline.is_none() && !self.at_once => self.stop(),
                _ => self.stop_at_once(),
            }
        }
    }

    fn say_counters(&mut self) {
        let taken = self.sink.taken();
        self.log.notice(self.guard.counters.line(taken));
    }

    fn attend_supervisor(&mut self) {
        if self.status_due().is_some_and(|due| due <= Instant::now()) {
            self.tell_status();
        }
    }

    fn status_due(&mut self) -> Option<Instant> {
        // What was taken is of interest to a manager alone.
        let is_managed = self.supervisor.is_managed();
        let taken = is_managed.then(|| self.sink.taken()).flatten();
        self.supervisor.status_due(&self.guard.counters, taken)
    }

    fn tell_status(&mut self) {
        if self.supervisor.is_managed() {
            let taken = self.sink.taken();
            self.supervisor.status(self.guard.counters, taken);
        }
    }

    fn reload(&mut self) {
        self.supervisor.reloading(&self.log);
        match self.guard.reload() {
            Ok(()) => self.log.notice("rules: read again"),
            Err(error) => self.log.error(format_args!("{error}; the old rules stay")),
        }
        self.supervisor.reloaded(&self.log);
    }

    /// The first signal: no new ones, and time for those that are there.
    fn stop(&mut self) {
        self.supervisor.stopping();
        self.deadline = Some(Instant::now() + self.grace);
        if self.stage == Stage::Open {
            self.stage = Stage::LastOrders;
            for place in &mut self.places {
                // More than this cannot have been waiting when the signal came.
                place.left = self.longest_backlog + 1;
            }
        }
    }

    /// A second signal: no more waiting.
    fn stop_at_once(&mut self) {
        self.at_once = true;
        self.close();
        if let Some(chain) = &self.chain {
            chain.signal(Signal::SIGTERM);
            // Who is impatient does not put the end off.
            if self.next_signal != Signal::SIGKILL {
                self.next_signal = Signal::SIGKILL;
                self.deadline = Some(Instant::now() + KILL_AFTER);
            }
        }
    }

    fn attend_clock(&mut self) {
        let now = Instant::now();
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
        }
        if self.deadline.is_some_and(|at| at <= now) {
            self.close();
            match &self.chain {
                Some(chain) => {
                    chain.signal(self.next_signal);
                    self.deadline = None;
                    // A further signal from outside does not wait again.
                    self.at_once = true;
                }
                None => self.at_once = true,
            }
        }
    }

    /// Ends the last orders when there are none left.
    fn close_when_done(&mut self) {
        if self.stage == Stage::LastOrders
            && self.in_hand.is_none()
            && self.headers.as_ref().is_none_or(AwaitedHeaders::is_empty)
            && self.places.is_empty()
        {
            self.close();
        }
    }

    /// Closes the listeners and, where that tells the command to finish, the queue.
    fn close(&mut self) {
        self.stage = Stage::Closed;
        self.places.clear();
        let given_up = self.headers.as_mut().map(AwaitedHeaders::give_up);
        for (arrival, why) in given_up.into_iter().flatten() {
            self.turn_away(arrival, why);
        }
        if self.sink.is_chain() && !self.gone {
            self.sink.close();
        }
    }

    fn is_done(&self) -> bool {
        self.stage == Stage::Closed && (self.gone || self.at_once || self.sink.is_taken())
    }

    fn end_with_chain(mut self, status: u8) -> u8 {
        self.places.clear();
        self.say_untaken();
        status
    }

    fn end(self) -> Result<u8> {
        let is_failure = self.gone && self.sink.needs_consumers();
        match (self.say_untaken(), is_failure) {
            (_, true) => {
                let gone = "nobody takes connections from the queue any more";
                Err(Error::Peer(gone.into()))
            }
            (true, false) => Ok(1),
            (false, false) => Ok(0),
        }
    }

    /// Gives up the queue, and says what became of connections. Whether some were accepted in vain.
    fn say_untaken(mut self) -> bool {
        let in_hand = usize::from(self.in_hand.is_some()) + self.complete_headers();
        let taken = self.sink.taken();
        let untaken = self.sink.give_up();
        let taken = taken.filter(|_| untaken != Untaken::Some);
        self.log.notice(self.guard.counters.line(taken));
        match untaken {
            Untaken::Some => self.log.error("connections were accepted and not taken"),
            Untaken::Exactly(in_queue) => match in_queue + in_hand {
                0 => return false,
                1 => self.log.error("1 connection was accepted and not taken"),
                count => self.log.error(format_args!(
                    "{count} connections were accepted and not taken"
                )),
            },
        }
        true
    }
}

/// What [`Acceptor::wait`] found.
struct Ready {
    signals: bool,
    sink: bool,
    /// One for each listener; none while nothing is to be accepted.
    listeners: Vec<bool>,
}

impl Place {
    /// How many connections to take now that somebody is there. To find nobody costs more than to
    /// ask, since accept(2) makes a socket before it looks; and it costs time where that blocks.
    fn turn(&self) -> usize {
        match self.listener.kind() {
            Kind::Tcp if !self.listener.is_inherited() => {
                backlog::waiting(self.listener.as_fd()).clamp(1, TURN)
            }
            _ => 1,
        }
    }

    fn is_finished(&self, stage: Stage) -> bool {
        stage == Stage::LastOrders && self.left == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_accept_have_their_class() {
        assert_eq!(classify(Errno::CONNABORTED), Class::Retry);
        assert_eq!(classify(Errno::INTR), Class::Retry);
        assert_eq!(classify(Errno::AGAIN), Class::Nobody);
        assert_eq!(classify(Errno::MFILE), Class::Pause);
        assert_eq!(classify(Errno::NFILE), Class::Pause);
        assert_eq!(classify(Errno::NOMEM), Class::Pause);
        assert_eq!(classify(Errno::BADF), Class::Fatal);
        assert_eq!(classify(Errno::INVAL), Class::Fatal);
    }
}
