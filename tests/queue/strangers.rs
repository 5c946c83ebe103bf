//! What local strangers send to fdaccept and fdpool to stop them: files whose close waits for ever,
//! sockets that linger, and messages without end.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use crate::support::*;
use fdtools::queue::{receive, send};
use nix::sys::signal::Signal;
use nix::sys::socket::{Backlog, SockType, UnixAddr, bind, connect, listen};
use rustix::net::{SocketFlags, accept_with};

/// An abstract name as an address, or a path.
fn address_of(name: &str) -> UnixAddr {
    match name.strip_prefix('@') {
        Some(name) => UnixAddr::new_abstract(name.as_bytes()),
        None => UnixAddr::new(name),
    }
    .unwrap()
}

fn connect_at(kind: SockType, name: &str) -> OwnedFd {
    let socket = unix_socket(kind);
    connect(socket.as_raw_fd(), &address_of(name)).unwrap();
    socket
}

/// What a stranger sends.
enum Weapon {
    File(Fuse),
    /// The other sides of 20 sockets that linger for an hour, and these.
    Sockets(Vec<(OwnedFd, OwnedFd)>),
}

impl Weapon {
    /// Both, where there is FUSE.
    fn all() -> Vec<Self> {
        let file = Fuse::mount().map(Weapon::File);
        file.into_iter().chain([Self::sockets()]).collect()
    }

    fn sockets() -> Self {
        Weapon::Sockets((0..20).map(|_| lingering_pair()).collect())
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Weapon::File(fuse) => vec![fuse.file.as_fd()],
            Weapon::Sockets(pairs) => pairs.iter().map(|(_, socket)| socket.as_fd()).collect(),
        }
    }

    /// Closes our copies of sockets, so that the message with them has the last ones. Nobody may have
    /// received it yet, or we close them last. Of a file each close blocks, not only the last one.
    /// Returns what must live on.
    fn leave(self) -> (Option<Fuse>, Vec<OwnedFd>) {
        match self {
            Weapon::File(fuse) => (Some(fuse), Vec::new()),
            Weapon::Sockets(pairs) => {
                let (others, sockets): (_, Vec<_>) = pairs.into_iter().unzip();
                leave(sockets);
                (None, others)
            }
        }
    }
}

/// A door where a consumer fetches the queue: its acceptor and its address.
struct Door {
    acceptor: Acceptor,
    name: String,
}

impl Door {
    fn of_tickets() -> Self {
        let acceptor = Fdaccept::piped().start();
        let mut ticket = [0; 94];
        let mut pipe = acceptor.pipe();
        std::io::Read::read_exact(&mut pipe, &mut ticket).unwrap();
        let token = std::str::from_utf8(&ticket[17..49]).unwrap();
        let name = format!("@fdtools-{token}");
        Self { acceptor, name }
    }

    fn named(name: String) -> Self {
        let acceptor = Fdaccept::bound_at(&name).start();
        Self { acceptor, name }
    }

    /// Expects that a client is served by a consumer that comes now.
    #[track_caller]
    fn expect_service(&self) {
        let mut consumer = fdrecv_on(&self.acceptor).args(["--", "cat"]).start();
        assert_eq!(exchange(self.acceptor.port, b"served"), b"served");
        consumer.expect_exit(0);
    }
}

/// A stranger leaves each weapon at a door of fdaccept's. Expects that the next consumer is let in.
#[track_caller]
fn assert_door_stays_open(door: impl Fn() -> Door, uid: u32) {
    for weapon in Weapon::all() {
        let door = door();
        let (fuse, _others) = door.acceptor.at_once(&[], || {
            as_user(uid, || {
                let socket = connect_at(SockType::SeqPacket, &door.name);
                send(&socket, b"nonsense", &weapon.descriptors()).unwrap();
                send(&socket, b"more", &weapon.descriptors()).unwrap();
            });
            weapon.leave()
        });
        door.expect_service();
        assert!(fuse.is_none_or(|fuse| fuse.held() == 0), "it was closed");
    }
}

cases! {
    assert_door_stays_open;
    what_blocks_when_it_is_closed_does_not_stop_the_door_of_tickets: Door::of_tickets, 0;
    what_blocks_when_it_is_closed_does_not_stop_the_door_of_a_name:
        || Door::named(Names::new().abstract_name()), 0;
}

#[test]
fn what_blocks_when_it_is_closed_does_not_stop_the_door_of_a_path() {
    let names = Names::new();
    assert_door_stays_open(|| Door::named(names.path()), 0);
}

#[test]
fn what_another_user_sends_to_a_door_does_not_stop_it() {
    needs!(root());
    assert_door_stays_open(Door::of_tickets, NOBODY);
    assert_door_stays_open(|| Door::named(Names::new().abstract_name()), NOBODY);
}

/// A listener with `count` connections in its backlog, each with descriptors in flight: more than
/// another user than root may have.
fn long_backlog(names: &Names, count: usize) -> (UnixListener, Vec<UnixStream>) {
    let path = names.text("backlog");
    let listener = UnixListener::bind(&path).unwrap();
    listen(&listener, Backlog::new(count as i32).unwrap()).unwrap();
    let null = File::open("/dev/null").unwrap();
    let client = |_| {
        let client = UnixStream::connect(&path).unwrap();
        for _ in 0..20 {
            send(&client, b"x", &[null.as_fd()]).unwrap();
        }
        client
    };
    let clients = (0..count).map(client).collect();
    (listener, clients)
}

#[test]
fn a_listener_with_2000_connections_at_a_door_takes_no_time() {
    needs!(root());
    raise_limit();
    let names = Names::new();
    for door in [Door::of_tickets(), Door::named(names.abstract_name())] {
        let (listener, clients) = long_backlog(&names, 2000);
        let pid = door.acceptor.pid();
        let before = cpu_time(pid);
        let socket = connect_at(SockType::SeqPacket, &door.name);
        door.acceptor.at_once(&[], || {
            let _ = send(&socket, b"x", &[listener.as_fd()]);
            drop((listener, clients, socket));
        });
        door.expect_service();
        let used = cpu_time(pid) - before;
        assert!(used < Duration::from_millis(400), "{used:?}");
        std::fs::remove_file(names.text("backlog")).unwrap();
    }
}

// At the inbox of a pool.

/// A pool that owns an abstract name, with `slots` slots that all wait.
fn inbox(slots: usize) -> (String, Pool) {
    let name = Names::new().abstract_name();
    // What blocks is not ended by the clock.
    let pool = Pool::bound_at(&name).options("--grace 1000");
    let pool = pool.slots(slots, ["cat"]).full();
    pool.until_idle();
    (name, pool)
}

/// Expects that a message of ours is served.
#[track_caller]
fn expect_served_at(name: &str) {
    let sender = connect_at(SockType::Datagram, name);
    let (client, server) = unix_pair();
    send(&sender, b"x", &[server.as_fd()]).unwrap();
    drop(server);
    client.expect_echo("served");
}

#[test]
fn a_listener_with_2000_connections_in_an_inbox_takes_no_time() {
    needs!(root());
    raise_limit();
    let names = Names::new();
    let (listener, clients) = long_backlog(&names, 2000);
    let (name, pool) = inbox(1);
    let slot = pool.children()[0];
    let before = cpu_time(slot);
    freeze(slot);
    let sender = connect_at(SockType::Datagram, &name);
    send(&sender, b"x", &[listener.as_fd(), listener.as_fd()]).unwrap();
    drop((listener, clients));
    thaw(slot);
    expect_served_at(&name);
    let used = cpu_time(slot) - before;
    assert!(used < Duration::from_millis(100), "{used:?}");
}

/// The one place where a descriptor must be received before its sender is known: the manual says what
/// that means.
#[test]
fn a_file_in_an_inbox_blocks_one_slot_for_as_long_as_its_file_system_likes() {
    let fuse = needs!(Fuse::mount());
    let (name, mut pool) = inbox(2);
    as_user(NOBODY, || {
        let sender = connect_at(SockType::Datagram, &name);
        send(&sender, b"x", &[fuse.file.as_fd()]).unwrap();
    });
    until("the close", || fuse.held() == 1);
    expect_served_at(&name);
    drop(fuse);
    let log = pool.stop();
    assert!(log.ends_with("1 message was refused"), "{log}");
}

#[test]
fn a_flood_of_a_strangers_messages_is_said_once_for_all_slots_and_counted() {
    needs!(root());
    const MANY: usize = 1000;
    let (name, mut pool) = inbox(4);
    as_user(NOBODY, || {
        let sender = connect_at(SockType::Datagram, &name);
        // Each blocks while there is no room.
        for _ in 0..MANY {
            send(&sender, b"x", &[]).unwrap();
        }
    });
    as_user(SOMEBODY, || {
        send(connect_at(SockType::Datagram, &name), b"x", &[]).unwrap();
    });
    expect_served_at(&name);
    let log = pool.stop();
    let refused = |uid: u32| {
        format!("fdpool: a message came from uid {uid}, which may not send to this name")
    };
    let counted = format!("fdpool: {} messages were refused", MANY + 1);
    let lines: Vec<_> = log.lines().collect();
    assert_eq!(lines, [refused(NOBODY), refused(SOMEBODY), counted]);
}

#[test]
fn nothing_of_a_message_is_looked_at_before_its_sender() {
    let name = needs!(root().then(|| Names::new().abstract_name()));
    let mut pool = Pool::bound_at(&name).slots(1, ["cat"]).full();
    let zero = File::open("/dev/zero").unwrap();
    as_user(NOBODY, || {
        let sender = connect_at(SockType::Datagram, &name);
        for count in [0, 1, 2, 3] {
            send(&sender, &[b'x'; 5000], &vec![zero.as_fd(); count]).unwrap();
        }
    });
    expect_served_at(&name);
    let log = pool.stop();
    assert_eq!(log.lines().count(), 2, "{log}");
    assert!(log.contains("uid 65534, which may not send"), "{log}");
    assert!(log.ends_with("4 messages were refused"), "{log}");
}

#[test]
fn the_status_of_a_pool_tells_how_many_messages_were_refused() {
    let names = Names::new();
    let name = names.path();
    let mut pool = Pool::bound_at(&name).args(["-v"]).slots(1, ["cat"]).full();
    let sender = sender_to(&name);
    for _ in 0..3 {
        send(&sender, b"x", &[]).unwrap();
    }
    let (client, server) = unix_pair();
    send(&sender, b"x", &[server.as_fd()]).unwrap();
    drop(server);
    client.expect_echo("served");
    pool.line("status: 1/1, refused: 3");
}

#[test]
fn fdrecv_says_once_what_it_refuses() {
    let names = Names::new();
    let name = names.path();
    let mut fdrecv = program("fdrecv");
    let mut fdrecv = fdrecv.args(["--bind", &name, "--", "cat"]).start();
    let sender = sender_to(&name);
    for _ in 0..100 {
        send(&sender, b"x", &[]).unwrap();
    }
    let (client, server) = unix_pair();
    send(&sender, b"x", &[server.as_fd()]).unwrap();
    drop(server);
    client.expect_echo("served");
    let log = fdrecv.expect_end(0);
    assert_eq!(log, "fdrecv: a message came without a descriptor");
}

// At the doors of fdaccept.

#[test]
fn a_flood_of_strangers_at_a_door_is_said_once_and_counted() {
    needs!(root());
    for door in [
        Door::of_tickets(),
        Door::named(Names::new().abstract_name()),
    ] {
        let Door { mut acceptor, name } = door;
        let visit = |payload: &[u8]| {
            let socket = connect_at(SockType::SeqPacket, &name);
            let _ = send(&socket, payload, &[]);
            // Until the door is shut.
            let _ = receive(&socket);
        };
        as_user(NOBODY, || (0..300).for_each(|_| visit(b"nonsense")));
        let count = acceptor.counted("consumers refused");
        // At a name nobody waits for words: who left at once was refused as well.
        assert_eq!(count, 300);
        as_user(SOMEBODY, || (0..10).for_each(|_| visit(b"nonsense")));
        assert_eq!(acceptor.counted("consumers refused"), 310);
        let log = acceptor.log();
        let refusals = log.lines().filter(|line| line.contains("was refused"));
        let refusals: Vec<_> = refusals.collect();
        assert_eq!(refusals.len(), 2, "{log}");
        assert!(refusals[0].contains("uid 65534"), "{log}");
        assert!(refusals[1].contains("uid 65533"), "{log}");
    }
}

/// A stranger's listener at the name of an acceptor.
fn listener_at(name: &str) -> OwnedFd {
    let listener = unix_socket(SockType::SeqPacket);
    // A child of another test may have the last listener open for a moment.
    until("the name", || {
        bind(listener.as_raw_fd(), &address_of(name)).is_ok()
    });
    listen(&listener, Backlog::MAXCONN).unwrap();
    listener
}

#[test]
fn strangers_who_take_turns_at_a_name_do_not_fill_the_log() {
    let name = needs!(root().then(|| Names::new().abstract_name()));
    let mut pool = Pool::on(&name).slots(1, ["cat"]).start();
    for round in 0..10 {
        let uid = [NOBODY, SOMEBODY][round % 2];
        as_user(uid, || {
            let listener = listener_at(&name);
            // The pool comes again and again.
            accept_with(&listener, SocketFlags::CLOEXEC).unwrap();
        });
    }
    let log = pool.stop();
    for uid in [NOBODY, SOMEBODY] {
        let said = log.lines().filter(|line| line.contains(&uid.to_string()));
        assert!(said.count() <= 1, "{log}");
    }
    assert!(log.contains("which is not trusted"), "{log}");
}

#[test]
fn a_stranger_at_the_name_of_an_acceptor_does_not_stop_a_pool() {
    let name = needs!(root().then(|| Names::new().abstract_name()));
    // The answer is there before the pool asks who gave it, which is one of these calls.
    let slow = "-o ./trace -e trace=getsockopt -e inject=getsockopt:delay_enter=1000000";
    let traced = needs!(traced(slow));
    let names = Names::new();
    let mut command = sh("exec \"$0\" \"$1\" fdpool --connect \"$NAME\" 1 cat");
    command
        .args(traced)
        .env("NAME", &name)
        .current_dir(&names.directory);
    let mut pool = Pool::of(&mut command);
    let _others = as_user(NOBODY, || {
        let listener = listener_at(&name);
        let visitor = accept_with(&listener, SocketFlags::CLOEXEC).unwrap();
        let weapon = Weapon::sockets();
        send(&visitor, b"FDTOOLS=1\n", &weapon.descriptors()).unwrap();
        weapon.leave()
    });
    // The pool goes on to look for its acceptor.
    let acceptor = Fdaccept::bound_at(&name).start();
    assert_eq!(exchange(acceptor.port, b"served"), b"served");
    pool.line("which is not trusted");
}

// Queues that end with something in them.

#[test]
fn what_a_stranger_left_in_an_inbox_does_not_delay_the_end_of_the_pool() {
    needs!(root());
    let (name, mut pool) = inbox(2);
    let slots = pool.children();
    slots.iter().for_each(|slot| freeze(*slot));
    let weapon = Weapon::sockets();
    as_user(NOBODY, || {
        let sender = connect_at(SockType::Datagram, &name);
        for _ in 0..3 {
            send(&sender, b"x", &weapon.descriptors()).unwrap();
        }
    });
    let _others = weapon.leave();
    pool.term();
    // The pool continues its slots.
    pool.expect_end(0);
}

/// A client of a Unix listener that has sent sockets that linger, and waits in the queue.
fn leave_in_queue(listener: &str) -> (UnixStream, Vec<OwnedFd>) {
    let client = connect_unix(listener);
    let weapon = Weapon::sockets();
    send(&client, b"x", &weapon.descriptors()).unwrap();
    (client, weapon.leave().1)
}

#[test]
fn what_is_in_flight_in_waiting_connections_does_not_delay_the_end_of_fdaccept() {
    let names = Names::new();
    let listener = names.text("listener");
    let mut acceptor = Fdaccept::bound_at(&names.path()).listen(&listener).start();
    let (_client, _others) = leave_in_queue(&listener);
    acceptor.until_counted("passed", 1);
    acceptor.signal(Signal::SIGTERM);
    acceptor.signal(Signal::SIGINT);
    let log = acceptor.expect_end(1);
    assert!(
        log.contains("1 connection was accepted and not taken"),
        "{log}"
    );
}

#[test]
fn what_is_in_flight_in_waiting_connections_does_not_delay_the_end_of_a_pool() {
    let names = Names::new();
    let listener = names.text("listener");
    let words = "fdpool --grace 1000 1 -- cat".split(' ');
    let mut acceptor = Fdaccept::chain(words).listen(&listener).start();
    let first = Client::connect_unix(&listener);
    first.expect_served();
    let (_client, _others) = leave_in_queue(&listener);
    acceptor.until_counted("passed", 2);
    let pool = acceptor.children()[0];
    let slot = children(pool)[0];
    let sockets = || {
        let open = descriptors(slot).into_iter();
        open.filter(|(_, what)| what.starts_with("socket:")).count()
    };
    let before = sockets();
    nix::sys::signal::kill(pool, Signal::SIGTERM).unwrap();
    until("the slot to give up the queue", || sockets() < before);
    first.finish();
    // The connection that waited is lost, and said.
    acceptor.expect_exit(1);
}

#[test]
fn what_is_in_flight_in_a_served_connection_does_not_stop_its_slot() {
    let strace = needs!(peer("strace"));
    let queue = Queue::new();
    let pool = Pool::on(&queue).slots(1, ["true"]).full();
    pool.until_idle();
    let slot = pool.children()[0];
    // The slot closes its copy of a connection when the handler has ended.
    let mut command = std::process::Command::new(strace);
    command.args(["-qq", "-o", "/dev/null", "-e", "trace=close"]);
    command.args(["-e", "inject=close:delay_enter=500000"]);
    let _strace = command.args(["-p", &slot.to_string()]).start();
    until("the tracer", || status_field(slot, "TracerPid") != "0");
    let weapon = Weapon::sockets();
    let (client, server) = unix_pair();
    send(&client.0, b"x", &weapon.descriptors()).unwrap();
    let _others = weapon.leave();
    queue.send(server);
    for _ in 0..2 {
        assert_eq!(queue.client().rest(), "");
    }
}
