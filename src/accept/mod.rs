//! fdaccept: takes connections from listeners and passes them to a sink.
//!
//! A connection enters at [`listen`], passes [`proxy`] and [`admission`], and leaves at [`sink`].
//! While there is no room, the loop does not poll the listeners, and clients wait in the backlogs.
//! At most 1 connection is in hand: admitted, but not in the queue yet.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::Signal;

use crate::accept::admission::Admission;
use crate::accept::client::ClientKey;
use crate::accept::congestion::{Congestion, News};
use crate::accept::counters::Refusal;
use crate::accept::incoming::Incoming;
use crate::accept::listen::Listener;
use crate::accept::outbox::{InHand, Outbox};
use crate::accept::proxy::AwaitedHeaders;
use crate::accept::service::child::Child;
use crate::accept::service::notify::Supervisor;
use crate::accept::shortage::Shortage;
use crate::accept::shutdown::{Shutdown, Stage};
use crate::accept::sink::{Delivery, Sink, Untaken};
use crate::accept::turns::{Class, Turns, classify};
use crate::error::{Error, Result};
use crate::queue::{ends, message};
use crate::system::interrupt;
use crate::system::log::Log;
use crate::system::poll::{PollFlags, PollSet};
use crate::system::signals::{Signals, not_ignored};
use crate::system::text::counted;

pub(crate) mod admission;
pub(crate) mod client;
mod congestion;
mod counters;
mod failures;
mod incoming;
pub(crate) mod listen;
mod outbox;
pub(crate) mod proxy;
pub(crate) mod service;
mod shortage;
mod shutdown;
pub(crate) mod sink;
mod turns;

/// How often to look whether the queue is empty or has room, where no event tells.
const LOOK_FOR_ROOM: Duration = Duration::from_millis(20);

/// The signals that the loop handles: TERM and INT unless ignored, HUP only with rules to `reload`.
pub(crate) fn signals(reload: bool) -> Vec<Signal> {
    let mut signals = not_ignored(&[Signal::SIGTERM, Signal::SIGINT]);
    signals.extend([Signal::SIGCHLD, Signal::SIGUSR1]);
    if reload {
        signals.push(Signal::SIGHUP);
    }
    signals
}

/// The arguments of [`Acceptor::new`].
pub(crate) struct Parts {
    pub listeners: Vec<Listener>,
    /// With `--proxy-protocol`: awaits PROXY headers.
    pub proxy: Option<AwaitedHeaders>,
    pub admission: Admission,
    pub sink: Sink,
    /// With `--bare`: messages say nothing of their connections.
    pub is_bare: bool,
    /// The command after `--`, which reads the queue.
    pub child: Option<Child>,
    pub supervisor: Supervisor,
    /// Opened for [`signals`].
    pub signals: Signals,
    /// After a stop: how long to wait until consumers have taken every connection.
    pub grace: Duration,
    pub log: Log,
}

pub(crate) struct Acceptor {
    turns: Turns,
    shortage: Shortage,
    proxy: Option<AwaitedHeaders>,
    admission: Admission,
    outbox: Outbox,
    is_bare: bool,
    sink: Sink,
    shutdown: Shutdown,
    supervisor: Supervisor,
    signals: Signals,
    queue_congestion: Congestion,
    max_congestion: Congestion,
    log: Log,
}

/// Why a wait ended.
struct Ready(Vec<Cause>);

impl Ready {
    fn is(&self, cause: Cause) -> bool {
        self.0.contains(&cause)
    }

    /// Indices of the listeners with a waiting connection.
    fn listeners(&self) -> Vec<usize> {
        let listener = |cause: &Cause| match cause {
            Cause::Listener(index) => Some(*index),
            _ => None,
        };
        self.0.iter().filter_map(listener).collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Signals,
    Consumers,
    Listener(usize),
    /// Clients and the clock: the loop attends them after every wait.
    Other,
}

impl Acceptor {
    /// Does not start the loop: [`Acceptor::run`] does.
    pub fn new(parts: Parts) -> Self {
        // The sandbox does not let this process make a timer later.
        interrupt::have_timer();
        Self {
            turns: Turns::new(parts.listeners),
            shortage: Shortage::default(),
            proxy: parts.proxy,
            admission: parts.admission,
            outbox: Outbox::new(),
            is_bare: parts.is_bare,
            sink: parts.sink,
            shutdown: Shutdown::new(parts.child, parts.grace),
            supervisor: parts.supervisor,
            signals: parts.signals,
            queue_congestion: Congestion::default(),
            max_congestion: Congestion::default(),
            log: parts.log,
        }
    }

    /// Runs until a signal, or until consumers or command end. Returns the exit status.
    ///
    /// # Errors
    /// [`Error::System`] for a permanent error; [`Error::Peer`] if an inherited queue lost its
    /// consumers.
    pub fn run(mut self) -> Result<u8> {
        self.supervisor.ready(&self.log);
        self.tell_status();
        match self.serve() {
            Ok(Some(status)) => Ok(self.end_with_child(status)),
            Ok(None) => self.end(),
            Err(error) if !self.shutdown.has_child() => {
                self.say_untaken();
                Err(error)
            }
            // The command may still read its queue to the end.
            Err(error) => {
                self.log.error(error);
                self.close();
                self.shutdown.fail();
                if let Err(error) = self.serve() {
                    self.log.error(error);
                }
                Ok(self.end_with_child(1))
            }
        }
    }

    /// Returns the command's exit status, or `None` without a command.
    fn serve(&mut self) -> Result<Option<u8>> {
        // Consumers may wait already, and the first ticket is due.
        self.attend_sink()?;
        loop {
            if self.shutdown.is_done(&self.sink) {
                return Ok(None);
            }
            let ready = self.wait()?;
            if ready.is(Cause::Signals) {
                // Reads all signals at once: a later signal wakes the loop again.
                self.attend_signals();
                let ended = self.shutdown.child_ended();
                if ended.is_some() {
                    return Ok(ended);
                }
            }
            if ready.is(Cause::Consumers) {
                self.attend_sink()?;
            }
            self.attend_clients();
            if let Some(child) = self.shutdown.child_mut() {
                child.attend(&self.log);
            }
            if self.shutdown.is_due() {
                // Before the signal, so that the command finds the end of its queue.
                self.close();
                self.shutdown.go_on(&self.log);
            }
            self.attend_notice();
            self.attend_supervisor();
            self.pass()?;
            self.let_in_complete()?;
            self.accept(&ready)?;
            self.close_when_done();
        }
    }

    fn wait(&mut self) -> Result<Ready> {
        let now = Instant::now();
        let shortage_ends = self.shortage.deadline();
        let is_listening = self.is_accepting(now);
        let status_due = self.status_due();
        let must_look = self.shutdown.is_emptying() || self.sink.must_look_for_room();
        // The sink has looked for room just now.
        self.attend_congestion(now);
        self.sink.look();
        let mut set = PollSet::new();
        set.add(Cause::Signals, self.signals.as_fd(), PollFlags::IN);
        // After the last consumer the sink would report nothing but its end, forever.
        if self.shutdown.stage() != Stage::Gone {
            set.until(Cause::Other, self.outbox.retry_at());
            set.until(Cause::Consumers, self.sink.deadline());
            let mut poll = |descriptor, events| set.add(Cause::Consumers, descriptor, events);
            self.sink.descriptors(self.outbox.wants_room(), &mut poll);
        }
        set.watch(Cause::Other, &self.admission);
        if let Some(proxy) = &self.proxy {
            set.watch(Cause::Other, proxy);
        }
        if is_listening {
            for (index, listener) in self.turns.listening() {
                set.add(Cause::Listener(index), listener.as_fd(), PollFlags::IN);
            }
            set.until(Cause::Other, self.turns.deadline());
        }
        set.until(Cause::Other, must_look.then(|| now + LOOK_FOR_ROOM));
        set.until(Cause::Other, shortage_ends);
        set.until(Cause::Other, self.shutdown.deadline());
        set.until(Cause::Other, self.shutdown.notice_deadline());
        set.until(
            Cause::Other,
            self.shutdown.child().and_then(Child::deadline),
        );
        set.until(Cause::Other, self.admission.shut_until(now));
        set.until(Cause::Other, status_due);
        set.until(Cause::Other, self.queue_congestion.deadline());
        set.until(Cause::Other, self.max_congestion.deadline());
        set.until(Cause::Other, self.supervisor.beat_due());
        let failed = |errno| Error::system("wait for connections", errno);
        Ok(Ready(set.wait().map_err(failed)?))
    }

    fn is_accepting(&mut self, now: Instant) -> bool {
        !self.shutdown.is_closed()
            && !self.shortage.is_on()
            && self.complete_headers() == 0
            && self.may_let_in(now)
    }

    /// Whether an accepted connection could go to the queue now.
    fn may_let_in(&mut self, now: Instant) -> bool {
        self.outbox.is_free()
            && !self.admission.is_full()
            && self.admission.shut_until(now).is_none()
            && self.sink.has_room()
    }

    fn complete_headers(&self) -> usize {
        self.proxy.as_ref().map_or(0, AwaitedHeaders::complete)
    }

    /// Accepts connections from the ready listeners, and passes them on.
    fn accept(&mut self, ready: &Ready) -> Result<()> {
        // The listeners may have been closed since the poll.
        if self.shutdown.is_closed() {
            return Ok(());
        }
        for index in self.turns.in_turn(ready.listeners()) {
            // The last consumer may have gone before the previous connection was passed.
            if self.shutdown.is_closed() {
                return Ok(());
            }
            for _ in 0..self.turns.length(index) {
                if !self.is_accepting(Instant::now()) || !self.turns.may_accept(index) {
                    break;
                }
                self.accept_from(index)?;
            }
        }
        if self.shutdown.stage() == Stage::LastOrders {
            // Looks again: clients may have come between the poll and the signal.
            self.turns.retire_idle();
        }
        Ok(())
    }

    fn accept_from(&mut self, index: usize) -> Result<()> {
        let prepared = self.admission.prepare();
        match prepared.and_then(|()| self.turns.accept(index, &self.log)) {
            Ok(incoming) => {
                self.admission.counters.accepted += 1;
                return self.receive(incoming);
            }
            Err(errno) => match classify(errno) {
                Class::Nobody if !self.turns.has_waiting(index) => {}
                Class::Nobody | Class::Retry => {
                    let is_failure = errno != Errno::EINTR;
                    self.admission.counters.failed += u64::from(is_failure);
                    self.turns.fail(index, errno, &self.log);
                }
                Class::Pause => self.make_room(errno),
                Class::Fatal => return Err(self.turns.error(index, errno)),
            },
        }
        Ok(())
    }

    /// Lets the connection in, or first waits for its PROXY header.
    fn receive(&mut self, incoming: Incoming) -> Result<()> {
        let Some(proxy) = &mut self.proxy else {
            return self.let_in_and_pass(incoming);
        };
        if let Some((refused, why)) = proxy.expect(incoming, Instant::now()) {
            self.turn_away(refused, why);
        }
        self.let_in_complete()
    }

    /// Lets in connections whose PROXY header is complete, as long as there is room.
    fn let_in_complete(&mut self) -> Result<()> {
        while self.complete_headers() > 0
            && !self.shortage.is_on()
            && self.may_let_in(Instant::now())
        {
            if let Err(errno) = self.admission.prepare() {
                self.make_room(errno);
                continue;
            }
            let complete = self.proxy.as_mut().and_then(AwaitedHeaders::take);
            if let Some(incoming) = complete {
                self.let_in_and_pass(incoming)?;
            }
        }
        Ok(())
    }

    fn let_in_and_pass(&mut self, incoming: Incoming) -> Result<()> {
        self.let_in(incoming);
        self.pass()?;
        if self.may_let_in(Instant::now()) {
            // Prepares for the next connection. A failure is logged when that connection comes.
            let _ = self.admission.prepare();
        }
        Ok(())
    }

    /// Takes the connection in hand, or refuses it.
    fn let_in(&mut self, incoming: Incoming) {
        let connection = incoming.connection.as_fd();
        let entry = match self.admission.judge(connection, &incoming.client) {
            Ok(entry) => entry,
            Err(why) => return self.turn_away(incoming, why),
        };
        let mut info = incoming.info();
        if let Some(number) = entry.number {
            info.set(message::TCP_CONN_NUM, number.to_string());
        }
        if self.log.is_verbose() {
            let (client, listener) = (ends::client(&info), &incoming.listener);
            self.log
                .detail(format_args!("accepted {client} on {listener}"));
        }
        if let Some(child) = self.shutdown.child_mut() {
            child.expect_client(&self.log);
        }
        self.outbox.take(InHand {
            connection: incoming.connection,
            lease: entry.lease,
            payload: if self.is_bare {
                message::BARE.to_vec()
            } else {
                info.encode()
            },
        });
    }

    fn turn_away(&mut self, incoming: Incoming, why: Refusal) {
        if self.log.is_verbose() {
            let (client, listener) = (ends::client(&incoming.info()), &incoming.listener);
            self.log
                .detail(format_args!("refused {client} on {listener}: {why}"));
        } else if self.admission.is_first_excess(why) {
            let (client, listener) = (incoming.info().client(), &incoming.listener);
            self.log
                .warning(format_args!("refused {client} on {listener}: {why}"));
        }
        self.admission.refuse(incoming.connection, why);
    }

    /// Takes back leases, reads PROXY headers, and closes connections. What that frees may end a
    /// shortage.
    fn attend_clients(&mut self) {
        let mut is_freed = self.admission.attend();
        let ended = self.admission.ended_excess();
        self.say_excess(ended);
        let proxy = self.proxy.as_mut();
        let refused = proxy.map(|proxy| proxy.attend(Instant::now()));
        for (incoming, why) in refused.into_iter().flatten() {
            self.turn_away(incoming, why);
            is_freed = true;
        }
        if is_freed {
            self.shortage.end();
        }
    }

    /// Descriptors or memory are short: gives up a client, or else accepts nothing for a while.
    fn make_room(&mut self, errno: Errno) {
        if !self.give_up_header() {
            self.shortage.begin(errno, &self.log);
        }
    }

    /// Frees a descriptor: refuses the client that has waited longest for its PROXY header. False
    /// if no client waits for one.
    fn give_up_header(&mut self) -> bool {
        let proxy = self.proxy.as_mut();
        let oldest = proxy.and_then(|proxy| proxy.give_up_oldest(Refusal::Shortage));
        let Some((incoming, why)) = oldest else {
            return false;
        };
        self.turn_away(incoming, why);
        true
    }

    /// Passes the connection in hand to the queue, if there is room.
    fn pass(&mut self) -> Result<()> {
        if self.shutdown.stage() == Stage::Gone {
            return Ok(());
        }
        match self.outbox.pass(&mut self.sink, &self.log)? {
            Some(Delivery::Done) => self.admission.counters.passed += 1,
            Some(Delivery::Gone) => self.nobody_is_left(),
            Some(Delivery::Full | Delivery::Later) | None => {}
        }
        Ok(())
    }

    fn attend_sink(&mut self) -> Result<()> {
        if self.shutdown.stage() == Stage::Gone {
            return Ok(());
        }
        let is_anybody_left = self.sink.attend(&self.log)?;
        self.admission.counters.consumers = self.sink.refused();
        if !is_anybody_left {
            self.nobody_is_left();
        }
        Ok(())
    }

    /// Closes the listeners: without consumers there is no reason to accept.
    fn nobody_is_left(&mut self) {
        self.shutdown.nobody_is_left();
        self.close();
    }

    /// Logs it if clients have no room for long, and when that is over.
    fn attend_congestion(&mut self, now: Instant) {
        // A stop has its own words.
        let is_open = self.shutdown.stage() == Stage::Open;
        let is_full = is_open && self.sink.is_full();
        match self.queue_congestion.look(is_full, now) {
            Some(News::Full) => self.log.warning(
                "the queue is full: consumers are busy, or there are none; further clients wait in \
                 the backlog",
            ),
            Some(News::Room) if is_open => self.log.notice("the queue has room again"),
            _ => {}
        }
        let Some(max) = self.admission.max() else {
            return;
        };
        let is_full = is_open && self.admission.has_max();
        match self.max_congestion.look(is_full, now) {
            Some(News::Full) => {
                let fate = if self.admission.is_full() {
                    "wait in the backlog"
                } else {
                    "are turned away"
                };
                let reached = format!("--max {max} is reached; further clients {fate}");
                self.log.warning(reached);
            }
            Some(News::Room) if is_open => {
                let below = format!("fewer connections than --max {max} are in service again");
                self.log.notice(below);
            }
            _ => {}
        }
    }

    fn attend_signals(&mut self) {
        while let Some(signal) = self.signals.next() {
            match signal {
                Signal::SIGCHLD => {}
                Signal::SIGUSR1 => self.say_counters(),
                Signal::SIGHUP => self.reload(),
                _ if !self.shutdown.is_told() => self.stop(),
                _ => {
                    self.close();
                    self.shutdown.stop_at_once();
                }
            }
        }
    }

    /// Logs how often clients were refused after they were named.
    fn say_excess(&self, clients: Vec<(ClientKey, u64)>) {
        for (client, besides) in clients {
            let times = match besides {
                1 => "once".to_owned(),
                _ => format!("{besides} times"),
            };
            self.log.warning(format_args!(
                "refused {client} again, {times} (--max-per-source)"
            ));
        }
    }

    fn say_counters(&mut self) {
        let refused = self.admission.excess_so_far();
        self.say_excess(refused);
        let taken = self.sink.taken();
        self.log.notice(self.admission.counters.line(taken));
    }

    fn attend_supervisor(&mut self) {
        self.supervisor.beat();
        if self.status_due().is_some_and(|due| due <= Instant::now()) {
            self.tell_status();
        }
    }

    fn status_due(&mut self) -> Option<Instant> {
        // Only a service manager gets this number, so it is not counted for anyone else.
        let is_managed = self.supervisor.is_managed();
        let taken = is_managed.then(|| self.sink.taken()).flatten();
        self.supervisor.status_due(&self.admission.counters, taken)
    }

    fn tell_status(&mut self) {
        if self.supervisor.is_managed() {
            let taken = self.sink.taken();
            self.supervisor.status(self.admission.counters, taken);
        }
    }

    fn reload(&mut self) {
        self.supervisor.reloading(&self.log);
        match self.admission.reload() {
            Ok(()) => self.log.notice("rules: read again"),
            Err(error) => self.log.error(format_args!("{error}; the old rules stay")),
        }
        self.supervisor.reloaded(&self.log);
    }

    /// On the first TERM or INT: accepts the connections in the backlogs, and no later ones.
    fn stop(&mut self) {
        self.supervisor.stopping();
        if self.shutdown.stop() {
            self.turns.call_last_orders();
        }
    }

    /// Logs once what a stop waits for.
    fn attend_notice(&mut self) {
        let headers = self.proxy.as_ref().map_or(0, AwaitedHeaders::incomplete);
        let in_hand = usize::from(!self.outbox.is_free()) + self.complete_headers();
        let is_last_orders = self.shutdown.stage() == Stage::LastOrders;
        let has_waiting = is_last_orders && !self.turns.is_empty();
        let sink = &mut self.sink;
        self.shutdown.attend_notice(&self.log, || {
            let untaken = sink.awaited() + in_hand;
            let mut all = Vec::new();
            if has_waiting {
                all.push("clients in the backlog".to_owned());
            }
            if headers > 0 {
                all.push(counted(headers, "PROXY header"));
            }
            if untaken > 0 {
                let connections = counted(untaken, "connection");
                all.push(format!("consumers to take {connections}"));
            }
            all
        });
    }

    /// Closes at the end of last orders, when every connection is in the queue.
    fn close_when_done(&mut self) {
        if self.shutdown.stage() == Stage::LastOrders
            && self.outbox.is_free()
            && self.proxy.as_ref().is_none_or(AwaitedHeaders::is_empty)
            && self.turns.is_empty()
        {
            self.close();
        }
    }

    /// Closes the listeners. With a command also closes the queue, so that the command finishes.
    fn close(&mut self) {
        self.shutdown.close();
        self.turns.close();
        let given_up = self.proxy.as_mut().map(AwaitedHeaders::give_up);
        for (incoming, why) in given_up.into_iter().flatten() {
            self.turn_away(incoming, why);
        }
        if self.shutdown.stage() != Stage::Gone {
            self.sink.end_chain();
        }
    }

    /// The command's status, but not success if connections were accepted in vain.
    fn end_with_child(mut self, status: u8) -> u8 {
        self.turns.close();
        let taken = self.sink.taken();
        self.shutdown.say_if_idle(status, taken, &self.log);
        match (status, self.say_untaken()) {
            (0, true) => 1,
            _ => status,
        }
    }

    fn end(self) -> Result<u8> {
        let is_gone = self.shutdown.stage() == Stage::Gone;
        let is_failure = is_gone && self.sink.needs_consumers();
        let is_untaken = self.say_untaken();
        if is_failure {
            let gone = "nobody takes connections from the queue any more";
            return Err(Error::Peer(gone.into()));
        }
        Ok(is_untaken.into())
    }

    /// Gives up the queue, and logs what became of the connections. Returns whether any connection
    /// was accepted in vain.
    fn say_untaken(mut self) -> bool {
        let refused = self.admission.excess_so_far();
        self.say_excess(refused);
        let in_hand = usize::from(!self.outbox.is_free()) + self.complete_headers();
        let (untaken, taken) = self.sink.give_up();
        self.log.notice(self.admission.counters.line(taken));
        let (up_to, count) = match untaken {
            Untaken::AtMost(in_queue) => ("up to ", in_queue + in_hand),
            Untaken::Exactly(in_queue) => ("", in_queue + in_hand),
        };
        match count {
            0 => return false,
            1 => self.log.error("1 connection was accepted and not taken"),
            _ => self.log.error(format_args!(
                "{up_to}{count} connections were accepted and not taken"
            )),
        }
        true
    }
}
