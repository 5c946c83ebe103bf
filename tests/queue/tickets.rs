//! Tickets: how a consumer gets the queue through a pipe, and what everybody else gets at the
//! door, which is nothing. The tests speak the protocol themselves.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, ErrorKind, PipeReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{ChildStdin, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::poll::{ready, wait};
use crate::support::*;
use fdtools::queue::{Message, receive, send, try_receive};
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{Backlog, SockType, UnixAddr, bind, connect, listen, setsockopt};
use nix::sys::time::TimeVal;
use rustix::event::{PollFd, PollFlags};
use rustix::io::ioctl_fionread;
use rustix::net::{SocketFlags, accept_with};

/// The length of a ticket, its newline included.
const LENGTH: usize = 94;

/// What can read tickets.
const CONSUMERS: [(&str, &[&str]); 2] = [("fdrecv", &["cat"]), ("fdpool", &["1", "cat"])];

/// An fdaccept that writes its tickets to a pipe, which the test reads.
fn issuer() -> Acceptor {
    Fdaccept::piped().args(["-v"]).start()
}

/// Such an fdaccept, and its first ticket.
fn issue() -> (Acceptor, Ticket) {
    let issuer = issuer();
    let ticket = issuer.ticket();
    (issuer, ticket)
}

impl Acceptor {
    /// The next ticket.
    #[track_caller]
    fn ticket(&self) -> Ticket {
        next_ticket(self.pipe())
    }

    /// The number of bytes that wait in the pipe.
    fn waiting(&self) -> u64 {
        ioctl_fionread(self.pipe()).unwrap()
    }

    /// Waits until there is a next ticket.
    #[track_caller]
    fn until_next(&self) {
        until("the next ticket", || self.waiting() == LENGTH as u64);
    }

    /// Expects that a client is served by a consumer that comes now.
    #[track_caller]
    fn expect_service(&self) {
        assert_served(self, self.port);
    }
}

#[track_caller]
fn next_ticket(mut pipe: &PipeReader) -> Ticket {
    wait_readable(pipe.as_fd());
    let mut line = [0; LENGTH];
    pipe.read_exact(&mut line).unwrap();
    Ticket(String::from_utf8(line.to_vec()).unwrap())
}

#[track_caller]
fn assert_served(source: &impl Source, port: u16) {
    let mut consumer = fdrecv_on(source).args(["--", "cat"]).start();
    assert_eq!(exchange(port, b"served"), b"served");
    consumer.expect_exit(0);
}

/// One line of the pipe.
struct Ticket(String);

impl Ticket {
    fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    fn field(&self, index: usize) -> &str {
        self.0.trim_end().split(' ').nth(index).unwrap()
    }

    fn door(&self) -> String {
        format!("fdtools-{}", self.field(2))
    }

    fn address(&self) -> UnixAddr {
        UnixAddr::new_abstract(self.door().as_bytes()).unwrap()
    }

    fn token(&self) -> &str {
        self.field(4)
    }

    /// What a consumer shows at the door.
    fn shown(&self) -> Vec<u8> {
        format!("FDTOOLS=1\nTOKEN={}\n", self.token()).into_bytes()
    }

    /// The same ticket with another token.
    fn with_token(&self, token: &str) -> Self {
        Self(self.0.replace(self.token(), token))
    }
}

/// Somebody at a door.
struct Visitor(OwnedFd);

impl Visitor {
    fn at(ticket: &Ticket) -> Self {
        let visitor = unix_socket(SockType::SeqPacket);
        let patience = TimeVal::new(DEADLINE.as_secs() as i64, 0);
        setsockopt(&visitor, ReceiveTimeout, &patience).unwrap();
        connect(visitor.as_raw_fd(), &ticket.address()).unwrap();
        Self(visitor)
    }

    /// Says something. The door may be shut already.
    fn say(&self, payload: &[u8], descriptors: &[BorrowedFd<'_>]) {
        use ErrorKind::{BrokenPipe, ConnectionReset};
        match send(&self.0, payload, descriptors) {
            Err(error) if [BrokenPipe, ConnectionReset].contains(&error.kind()) => {}
            sent => sent.unwrap(),
        }
    }

    /// Waits until the door is shut.
    #[track_caller]
    fn until_end(&self) {
        match hear(&self.0) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            end => {
                let end = end.unwrap();
                let nothing = (&end.payload[..], end.descriptors.len());
                assert_eq!(nothing, (&b""[..], 0));
            }
        }
    }

    fn is_let_in_or_waits(&self) -> bool {
        !ready(self.0.as_fd(), PollFlags::IN).contains(PollFlags::HUP)
    }
}

/// Receives. The kernel does not restart a receive that has a time limit (signal(7)).
fn hear(socket: impl AsFd) -> io::Result<Message> {
    loop {
        match receive(&socket) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            heard => return heard,
        }
    }
}

/// The read end that a ticket is worth, if it is worth one.
fn redeem(ticket: &Ticket) -> Option<OwnedFd> {
    let visitor = Visitor::at(ticket);
    send(&visitor.0, &ticket.shown(), &[]).unwrap();
    let mut answer = hear(&visitor.0).unwrap();
    assert_eq!(answer.payload, b"FDTOOLS=1\n");
    assert!(answer.descriptors.len() <= 1);
    answer.descriptors.pop()
}

#[track_caller]
fn wait_readable(descriptor: BorrowedFd<'_>) {
    let mut fds = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
    wait(&mut fds, Some(Instant::now() + DEADLINE)).unwrap();
    assert!(!fds[0].revents().is_empty(), "nothing to read");
}

/// Takes the next connection out of a queue, and sends `text` on it. Returns the payload.
#[track_caller]
fn answer_next(queue: &OwnedFd, text: &str) -> Vec<u8> {
    let mut message = try_receive(queue).unwrap();
    let connection = message.descriptors.pop().unwrap();
    Client(TcpStream::from(connection)).send(text);
    message.payload.clone()
}

/// A consumer with `text` on its pipe, and the write end of the pipe.
fn consumer_of(name: &str, arguments: &[&str], text: &[u8]) -> (Process, ChildStdin) {
    let mut command = program(name);
    let mut process = command.args(arguments).stdin(Stdio::piped()).start();
    let mut stdin = process.child().stdin.take().unwrap();
    // It may have seen enough before all is written.
    let _ = stdin.write_all(text);
    (process, stdin)
}

const VOID: &str = "the ticket is void: it was used before, or is too old";
const NO_TICKET: &str = "what comes from the pipe is no ticket of fdaccept's";

/// Expects that consumers that find `text` on their pipe, and then its end, fail for `cause`.
#[track_caller]
fn assert_fails(text: &[u8], cause: &str) {
    for (name, arguments) in CONSUMERS {
        let (mut process, _) = consumer_of(name, arguments, text);
        assert_eq!(process.expect_end(1), format!("{name}: {cause}"));
    }
}

// What a ticket is, and is worth.

#[test]
fn a_ticket_is_one_line_of_readable_text() {
    let (_issuer, ticket) = issue();
    let line = ticket.0.strip_suffix('\n').unwrap();
    let fields: Vec<_> = line.split(' ').collect();
    let [program, version, door, uid, token] = fields[..] else {
        panic!("{line}");
    };
    assert_eq!((program, version), ("fdtools-ticket", "1"));
    for random in [door, token] {
        assert_eq!(random.len(), 32);
        assert!(random.bytes().all(|b| b"0123456789abcdef".contains(&b)));
    }
    let us = nix::unistd::geteuid().as_raw();
    assert_eq!(uid, format!("{us:010}"));
}

#[test]
fn the_pipe_holds_one_ticket_at_a_time() {
    let mut issuer = issuer();
    for _ in 0..20 {
        issuer.until_next();
        // A client makes it look at everything once more.
        let client = issuer.client();
        issuer.until_accepted(1);
        drop(client);
        assert_eq!(issuer.waiting(), LENGTH as u64);
        issuer.ticket();
    }
}

#[test]
fn there_is_always_a_next_ticket_and_it_is_another_one() {
    let issuer = issuer();
    let tickets: Vec<_> = (0..200).map(|_| issuer.ticket()).collect();
    let tokens: BTreeSet<_> = tickets.iter().map(Ticket::token).collect();
    assert_eq!(tokens.len(), tickets.len());
    let doors: BTreeSet<_> = tickets.iter().map(Ticket::door).collect();
    assert_eq!(doors.len(), 1);
    issuer.expect_service();
}

#[test]
fn a_ticket_is_worth_the_queue() {
    let (issuer, ticket) = issue();
    let queue = redeem(&ticket).expect("the read end");
    let client = issuer.client();
    wait_readable(queue.as_fd());
    let payload = answer_next(&queue, "hello");
    assert!(payload.starts_with(b"FDTOOLS=1\nPROTO=TCP\n"));
    assert_eq!(client.rest(), "hello");
}

#[test]
fn a_ticket_is_worth_the_queue_once() {
    let (issuer, ticket) = issue();
    assert!(redeem(&ticket).is_some());
    for _ in 0..3 {
        assert!(redeem(&ticket).is_none());
    }
    issuer.expect_service();
}

#[test]
fn a_replayed_ticket_is_an_error_of_the_consumer() {
    let (issuer, ticket) = issue();
    assert!(redeem(&ticket).is_some());
    assert_fails(ticket.bytes(), VOID);
    issuer.expect_service();
}

#[test]
fn a_consumer_with_a_void_ticket_takes_the_next() {
    let (issuer, ticket) = issue();
    assert!(redeem(&ticket).is_some());
    let two = [ticket.bytes(), issuer.ticket().bytes()].concat();
    let (mut consumer, _stdin) = consumer_of("fdrecv", &["cat"], &two);
    assert_eq!(exchange(issuer.port, b"served"), b"served");
    consumer.expect_exit(0);
}

#[test]
fn a_forged_token_opens_nothing() {
    let (_issuer, ticket) = issue();
    let first = u8::from(ticket.token().starts_with('0'));
    let nearly = format!("{first}{}", &ticket.token()[1..]);
    for token in [&nearly, &"0".repeat(32), &"f".repeat(32)] {
        let forged = ticket.with_token(token);
        assert!(redeem(&forged).is_none());
        assert_fails(forged.bytes(), VOID);
    }
    assert!(redeem(&ticket).is_some(), "the true one still is good");
}

#[test]
fn a_ticket_of_an_fdaccept_that_is_gone_is_the_end_of_the_queue() {
    let (mut issuer, ticket) = issue();
    issuer.slay();
    let ends = [(69, "fdrecv: the queue is closed"), (0, "")];
    for ((name, arguments), (status, log)) in CONSUMERS.into_iter().zip(ends) {
        let (mut consumer, _) = consumer_of(name, arguments, ticket.bytes());
        assert_eq!(consumer.expect_end(status), log);
    }
}

// What is no ticket. More of it is tested beside its parser.

#[test]
fn a_truncated_ticket_is_an_error() {
    let (_issuer, ticket) = issue();
    for length in [1, 16, 17, 50, LENGTH - 1] {
        assert_fails(&ticket.bytes()[..length], NO_TICKET);
    }
    assert!(redeem(&ticket).is_some());
}

/// Expects that consumers whose pipe stays open notice by themselves that this is no ticket.
#[track_caller]
fn assert_refused_at_once(texts: &[&[u8]]) {
    for text in texts {
        for (name, arguments) in CONSUMERS {
            let (mut process, _stdin) = consumer_of(name, arguments, text);
            assert_eq!(process.expect_end(1), format!("{name}: {NO_TICKET}"));
        }
    }
}

cases! {
    assert_refused_at_once;
    text_on_the_pipe_is_an_error_at_once:
        &[b"hello\n", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"];
    bytes_on_the_pipe_are_an_error_at_once: &[b"\0", &[0xff; 5000]];
}

// Tickets that nobody uses.

#[test]
fn a_consumer_that_is_killed_with_its_ticket_in_hand_starves_nobody() {
    let issuer = issuer();
    for _ in 0..5 {
        issuer.until_next();
        // While fdaccept stands still, a consumer gets no further than to the door.
        issuer.freeze();
        let consumer = fdrecv_on(&issuer).arg("cat").start();
        until("the ticket to be read", || issuer.waiting() == 0);
        // This kills it.
        drop(consumer);
        issuer.thaw();
    }
    issuer.expect_service();
}

#[test]
fn tickets_that_nobody_redeems_starve_nobody() {
    let issuer = issuer();
    (0..100).for_each(|_| drop(issuer.ticket()));
    issuer.expect_service();
}

#[test]
fn a_reader_that_redeems_no_ticket_is_told_once() {
    let mut issuer = issuer();
    let start = issuer.log();
    (0..255).for_each(|_| drop(issuer.ticket()));
    issuer.until_next();
    assert_eq!(issuer.log(), start);
    (0..3).for_each(|_| drop(issuer.ticket()));
    let expected = "fdaccept: 256 tickets were read and none was redeemed: does the reader of the \
        pipe understand them? Did you mean | fdpool N -- COMMAND?";
    assert_eq!(issuer.line("tickets"), expected);
    issuer.expect_service();
    let log = issuer.log();
    assert_eq!(log.matches("none was redeemed").count(), 1, "{log}");
}

#[test]
fn a_signal_while_random_bytes_are_waited_for_costs_no_ticket() {
    // Every second call is interrupted, whether the first one is the C library's or not.
    for calls in ["1+2", "2+2"] {
        let inject = format!("-o /dev/null -e inject=getrandom:error=EINTR:when={calls}");
        let traced = needs!(traced(&inject));
        let text = "\"$0\" \"$1\" fdaccept 127.0.0.1:0 | fdpool 1 -- cat";
        let mut process = sh(text).args(traced).start();
        assert_eq!(exchange(process.port(), b"hello"), b"hello");
    }
}

#[test]
fn as_many_as_64_tickets_are_good() {
    let issuer = issuer();
    // The 64th waits in the pipe.
    let tickets: Vec<_> = (0..63).map(|_| issuer.ticket()).collect();
    issuer.until_next();
    assert!(redeem(&tickets[0]).is_some());
}

#[test]
fn the_65th_ticket_voids_the_first() {
    let issuer = issuer();
    // The 65th waits in the pipe.
    let tickets: Vec<_> = (0..64).map(|_| issuer.ticket()).collect();
    issuer.until_next();
    assert!(redeem(&tickets[0]).is_none());
    for ticket in &tickets[1..] {
        assert!(redeem(ticket).is_some());
    }
}

// Other users.

#[test]
fn a_consumer_may_have_another_uid_than_fdaccept() {
    needs!(root());
    let dir = open_dir();
    let issuer = issuer();
    let mut fdrecv = by(NOBODY, &dir, "fdrecv");
    issuer.give_to(fdrecv.args(["sh", "-c", "id -u"]));
    let mut consumer = fdrecv.start();
    assert_eq!(exchange(issuer.port, b""), b"65534\n");
    consumer.expect_exit(0);
    let mut fdpool = by(NOBODY, &dir, "fdpool");
    issuer.give_to(fdpool.args(["2", "cat"]));
    let _pool = Pool::of(&mut fdpool);
    for _ in 0..5 {
        assert_eq!(exchange(issuer.port, b"pooled"), b"pooled");
    }
}

#[test]
fn fdaccept_may_have_another_uid_than_its_consumer() {
    needs!(root());
    let dir = open_dir();
    let (pipe, writer) = std::io::pipe().unwrap();
    let mut fdaccept = by(NOBODY, &dir, "fdaccept");
    let mut fdaccept = fdaccept.arg(ADDRESS).stdout(writer).start();
    let port = fdaccept.port();
    assert_eq!(next_ticket(&pipe).field(3), "0000065534");
    assert_served(&pipe, port);
}

#[test]
fn an_impostor_at_the_door_gets_no_trust() {
    needs!(root());
    let dir = open_dir();
    let (mut issuer, ticket) = issue();
    issuer.slay();
    // It hands out a queue of its own to whoever comes, as soon as root does.
    let mut impostor = by(NOBODY, &dir, "fdaccept");
    let name = format!("@{}", ticket.door());
    let mut impostor = impostor.args(["--bind", &name, ADDRESS]).start();
    let _waiting = Client::connect(impostor.port());
    let cause = "the door of a ticket from uid 0 is held by uid 65534";
    assert_fails(ticket.bytes(), cause);
}

#[test]
fn a_door_that_answers_nonsense_is_an_error() {
    let (mut issuer, ticket) = issue();
    issuer.slay();
    // Somebody with our own uid: the uid alone is no reason to take everything.
    let door = unix_socket(SockType::SeqPacket);
    bind(door.as_raw_fd(), &ticket.address()).unwrap();
    listen(&door, Backlog::MAXCONN).unwrap();
    let file = File::open("/dev/null").unwrap();
    let (one, _other) = UnixStream::pair().unwrap();
    let (file, one) = (file.as_fd(), one.as_fd());
    let answers: [(&[u8], &[BorrowedFd<'_>]); 4] = [
        (b"FDTOOLS=1\n", &[file]),
        (b"FDTOOLS=1\n", &[one, one]),
        (b"FDTOOLS=2\n", &[one]),
        (b"nonsense", &[]),
    ];
    for (payload, descriptors) in answers {
        let (mut consumer, _) = consumer_of("fdrecv", &["cat"], ticket.bytes());
        wait_readable(door.as_fd());
        let visitor = accept_with(&door, SocketFlags::CLOEXEC).unwrap();
        send(&visitor, payload, descriptors).unwrap();
        let log = consumer.expect_end(1);
        assert!(log.starts_with("fdrecv: "), "{log}");
    }
}

// Strangers at the door.

#[test]
fn a_stranger_who_says_nothing_is_sent_away_after_two_seconds() {
    let (_issuer, ticket) = issue();
    let start = Instant::now();
    Visitor::at(&ticket).until_end();
    // Not earlier: a slow consumer has this time.
    assert!(start.elapsed() >= Duration::from_millis(1900));
}

#[test]
fn strangers_who_say_something_else_are_sent_away() {
    let (_issuer, ticket) = issue();
    let token = format!("TOKEN={}\n", ticket.token());
    for payload in [
        &b"x"[..],
        b"\0",
        b"FDTOOLS=1\n",
        b"FDTOOLS=1\nTOKEN=\n",
        token.as_bytes(),
        &[b"FDTOOLS=2\n", token.as_bytes()].concat(),
        &[&ticket.shown()[..], b"\n"].concat(),
        &[&ticket.shown()[..], &[b'x'; 60000]].concat(),
    ] {
        let stranger = Visitor::at(&ticket);
        stranger.say(payload, &[]);
        stranger.until_end();
    }
    assert!(redeem(&ticket).is_some());
}

#[test]
fn the_17th_stranger_takes_the_place_of_the_first() {
    let (_issuer, ticket) = issue();
    // On a busy machine their 2 seconds may be over before all have been looked at. Then again.
    until("the first of 17 to go alone", || {
        let strangers: Vec<_> = (0..17).map(|_| Visitor::at(&ticket)).collect();
        strangers[0].until_end();
        strangers[1..].iter().all(Visitor::is_let_in_or_waits)
    });
}

#[test]
fn sixteen_strangers_take_no_place_from_each_other() {
    let issuer = issuer();
    until("16 strangers to wait at once", || {
        let ticket = issuer.ticket();
        let strangers: Vec<_> = (0..16).map(|_| Visitor::at(&ticket)).collect();
        // It has seen them all when it has answered somebody who came later and had a token.
        assert!(redeem(&ticket).is_some());
        strangers.iter().all(Visitor::is_let_in_or_waits)
    });
}

/// What strangers do at the door.
fn misbehave(ticket: &Ticket, kind: usize) -> Option<Visitor> {
    let null = File::open("/dev/null").unwrap();
    let stranger = Visitor::at(ticket);
    match kind % 6 {
        // Says nothing, and stays.
        0 => return Some(stranger),
        // Says nothing, and goes.
        1 => {}
        2 => stranger.say(&[b'x'; 60000], &[]),
        3 => stranger.say(format!("FDTOOLS=1\nTOKEN={kind:032x}\n").as_bytes(), &[]),
        4 => stranger.say(b"FDTOOLS=1\n", &[null.as_fd(); 253]),
        _ => {
            for _ in 0..3 {
                stranger.say(b"", &[null.as_fd(), stranger.0.as_fd()]);
            }
        }
    }
    None
}

#[test]
fn strangers_at_the_door_keep_no_consumer_and_no_client_out() {
    let (issuer, ticket) = issue();
    issuer.until_next();
    let pid = issuer.pid();
    let before = descriptors(pid);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let ticket = &ticket;
            scope.spawn(move || {
                let strangers = (0..50).map(|kind| misbehave(ticket, kind + thread));
                let _staying: Vec<_> = strangers.collect();
            });
        }
        for _ in 0..20 {
            issuer.expect_service();
        }
    });
    // The last stranger that stayed may have gone this moment.
    issuer.until_next();
    until("the same descriptors as before", || {
        descriptors(pid) == before
    });
    assert!(redeem(&ticket).is_some(), "none of them had the token");
}

#[test]
fn a_flood_of_strangers_keeps_no_client_out() {
    let (issuer, ticket) = issue();
    let _pool = Pool::on(&issuer).slots(2, ["cat"]).start();
    let served = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let start = Instant::now();
                while !served.load(Ordering::Relaxed) && start.elapsed() < DEADLINE {
                    drop(Visitor::at(&ticket));
                }
            });
        }
        let answers = [(); 5].map(|()| try_exchange(issuer.port, b"served"));
        // Set whatever comes: the threads are waited for.
        served.store(true, Ordering::Relaxed);
        for answer in answers {
            assert_eq!(answer.unwrap(), b"served");
        }
    });
}

/// A stranger says `first`, and then sends a socket whose last close blocks. Expects that fdaccept
/// goes on.
fn assert_not_stopped(first: impl FnOnce(&Ticket) -> Vec<Vec<u8>>) {
    let (issuer, ticket) = issue();
    let (socket, _other) = lingering();
    issuer.freeze();
    let stranger = Visitor::at(&ticket);
    for payload in first(&ticket) {
        stranger.say(&payload, &[]);
    }
    stranger.say(b"more", &[socket.as_fd()]);
    // The message now has the last copy.
    leave((socket, stranger));
    issuer.thaw();
    issuer.expect_service();
}

cases! {
    assert_not_stopped;
    a_lingering_socket_of_a_strangers_does_not_stop_fdaccept: |_| vec![];
    a_lingering_socket_that_is_not_even_read_does_not_stop_fdaccept: |_| vec![b"nonsense".into()];
    a_lingering_socket_behind_an_empty_message_does_not_stop_fdaccept:
        |_| ["nonsense", "", "", "", "", ""].map(Vec::from).into();
    a_lingering_socket_behind_a_good_token_does_not_stop_fdaccept: |ticket| vec![ticket.shown()];
}

// The pipe's other end.

#[test]
fn fdaccept_stops_when_the_readers_of_the_pipe_are_gone() {
    let mut issuer = issuer();
    issuer.until_next();
    drop(issuer.take_pipe());
    let log = issuer.expect_end(0);
    let lines = besides_counters(&log).len();
    assert_eq!(lines, 1, "only where it listens: {log}");
}

#[test]
fn what_a_consumer_still_can_take_is_not_lost_with_the_pipe() {
    let (mut issuer, ticket) = issue();
    let queue = redeem(&ticket).unwrap();
    let client = issuer.client();
    issuer.until_accepted(1);
    drop(issuer.take_pipe());
    // Nobody knows whether it will.
    let log = issuer.expect_end(1);
    assert!(log.ends_with("1 connection was accepted and not taken"));
    answer_next(&queue, "late");
    assert_eq!(client.rest(), "late");
    assert!(hear(&queue).unwrap().payload.is_empty(), "the end");
}

#[test]
fn a_pipe_that_is_held_open_keeps_fdaccept_alive_and_connections_wait() {
    let mut issuer = issuer();
    for _ in 0..3 {
        issuer.expect_service();
        // No consumer is there now.
        let client = issuer.client();
        client.send("waited");
        client.end();
        issuer.until_accepted(2);
        let mut consumer = fdrecv_on(&issuer).arg("cat").start();
        assert_eq!(client.rest(), "waited");
        consumer.expect_exit(0);
        assert!(issuer.is_running());
    }
}
