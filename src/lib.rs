//! fdtools passes open connections between processes.
//!
//! A *queue* is a Unix socket pair whose messages each carry one open descriptor, usually a connection
//! that was accepted. Whoever accepts holds the write end, a [`queue::Sender`]; all who serve share the
//! read end, a [`queue::Receiver`], and the kernel gives each connection to one of them. The three
//! programs `fdaccept`, `fdrecv` and `fdpool` are built of what is here; their manual pages, and
//! fdtools(7) for the formats, say what they do.
//!
//! # One connection over a pair
//!
//! ```
//! use fdtools::message::Info;
//! use fdtools::queue::{self, Received};
//! use std::net::{TcpListener, TcpStream};
//!
//! let listener = TcpListener::bind("127.0.0.1:0")?;
//! let client = TcpStream::connect(listener.local_addr()?)?;
//! let (connection, remote) = listener.accept()?;
//!
//! let (sender, receiver) = queue::pair()?;
//! sender.send(&connection, &Info::tcp(remote, listener.local_addr()?))?;
//! // Our own copy; the client sees the end when the last one is closed.
//! drop(connection);
//!
//! match receiver.receive()? {
//!     Received::Connection { descriptor, info, .. } => {
//!         let served = TcpStream::from(descriptor);
//!         assert_eq!(served.peer_addr()?, client.local_addr()?);
//!         assert_eq!(info.unwrap().client(), "127.0.0.1");
//!     }
//!     other => panic!("{other:?}"),
//! }
//! drop(sender);
//! assert!(matches!(receiver.receive()?, Received::End));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # One connection over a path
//!
//! The receiver owns the path, as with `fdpool --bind`, and any number of senders send to it.
//!
//! ```
//! use fdtools::message::Info;
//! use fdtools::name::Name;
//! use fdtools::queue::{Received, Receiver, Sender};
//! use fdtools::trust::Trust;
//! use std::io::{Read, Write};
//! use std::os::unix::net::UnixStream;
//!
//! let directory = tempfile::tempdir()?;
//! let name = Name::Path(directory.path().join("inbox"));
//! // A path is guarded by its mode, here 0600. Of an abstract name `trust` says who may send.
//! let receiver = Receiver::bind(&name, None, Trust::everybody())?;
//!
//! let sender = Sender::connect(&name, &Trust::everybody())?;
//! let (mut client, connection) = UnixStream::pair()?;
//! sender.send(connection, &Info::new())?;
//!
//! let Received::Connection { descriptor, .. } = receiver.receive()? else {
//!     panic!("no connection");
//! };
//! UnixStream::from(descriptor).write_all(b"hello")?;
//! let mut answer = String::new();
//! client.read_to_string(&mut answer)?;
//! assert_eq!(answer, "hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Any descriptors with any bytes
//!
//! [`queue::send`] and [`queue::receive`] pass up to [`queue::MAX_DESCRIPTORS`] descriptors and up to
//! [`message::MAX_PAYLOAD`] bytes in one message of any Unix socket.
//!
//! ```
//! use fdtools::queue;
//! use std::fs::File;
//! use std::io::Read;
//! use std::os::fd::AsFd;
//! use std::os::unix::net::UnixDatagram;
//!
//! let (here, there) = UnixDatagram::pair()?;
//! let (null, zero) = (File::open("/dev/null")?, File::open("/dev/zero")?);
//! queue::send(&here, b"two files", &[null.as_fd(), zero.as_fd()], true)?;
//!
//! let mut message = queue::receive(&there, true)?;
//! assert_eq!(message.payload, b"two files");
//! // What is not taken out is closed with the message.
//! let mut zero = File::from(message.descriptors.remove(1));
//! let mut byte = [1];
//! zero.read_exact(&mut byte)?;
//! assert_eq!(byte, [0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is where
//!
//! Passing connections:
//!
//! - [`queue`]: both ends of a queue; the only file that knows `SCM_RIGHTS`; `room`: numbers for what
//!   comes
//! - [`message`]: what a message says of its connection, to bytes and back
//! - [`connection`]: a connection with what is known of it
//! - [`name`]: names of Unix sockets and who owns them; [`trust`]: who may be on the other side
//!
//! Who accepts:
//!
//! - [`address`]: where to listen, as users spell it; [`listener`]: listening sockets, made or
//!   inherited; [`sockopt`]: their options; `backlog`: what waits at them
//! - [`arrival`]: a connection that was just accepted; [`proxy_header`] and [`awaited_headers`]: whom
//!   a proxy speaks for
//! - [`guard`]: who gets from a listener to the sink: [`access`] rules, what is in service
//!   ([`lease`]), the [`rate`]; [`client`]: who a client is, `peer_groups` on a Unix socket;
//!   [`farewell`]: those that are turned away; [`counters`]
//! - [`accept`]: the loop from listeners to a sink; [`sink`]: where an acceptor puts connections;
//!   `unread`: how many of them nobody has taken
//! - `own_queue`: a queue of ours, which consumers fetch; `named_door`: at a name; [`ticket`]: through
//!   a pipe; `ballast`: room for the queue itself where too much is on its way
//! - [`chain`]: the command of `fdaccept ADDRESS -- COMMAND`
//! - [`supervisor`]: telling who supervises how it is; [`listen_fds`]: what that one passed; [`store`]:
//!   what it keeps; [`port_file`]: which ports were bound
//! - [`footprint`]: giving back what starting took
//! - [`user`]: another user than root; [`sandbox`]: no other calls than those of the loop
//! - [`accept_arguments`]: the command line; `guard_arguments` and `service_arguments`: parts of it
//!
//! Who serves:
//!
//! - [`source`]: where a consumer finds its queue; [`rendezvous`]: what the user says of either side
//! - [`command`]: a command line, found before anything depends on it; [`handler`]: starting one, `vfork`: without
//!   a copy of its parent
//! - [`pool`]: the parent that supervises; `supply`: its queue, also after another one; `crew`: what
//!   it asks of those who serve, which are one of the following
//! - `slots`: forked loops, seen from their parent; `slot`: one of them; [`scoreboard`]: what they
//!   share
//! - `workers`: programs that take connections themselves; [`worker`]: starting one; `activity`:
//!   whether they do something
//! - `ending`: the end of a process group, be it a handler's or what a worker has left behind
//!
//! A process and its surroundings:
//!
//! - [`start`]: from the C library's `main` to the exit; [`arguments`]: what the command lines have in
//!   common; [`report`]: messages and exit status; [`error`](mod@error): the one error type
//! - [`inherited`] and [`descriptor`]: descriptors that were open before, and what one is;
//!   [`limit`]: how many there may be
//! - [`signals`]: signals as a descriptor, and as a program should find them; [`interrupt`]: breaking
//!   off a blocking call; [`alarm`]: a timer; [`wait`]: poll(2); `fork`: a process that goes on in the
//!   same program; `diag`: who owns a datagram socket

pub mod accept;
pub mod accept_arguments;
pub mod access;
mod activity;
pub mod address;
pub mod alarm;
pub mod arguments;
pub mod arrival;
pub mod awaited_headers;
mod backlog;
mod ballast;
pub mod chain;
pub mod client;
pub mod command;
pub mod connection;
pub mod counters;
mod crew;
pub mod descriptor;
mod diag;
mod ending;
pub mod error;
pub mod farewell;
pub mod footprint;
mod fork;
pub mod guard;
pub mod guard_arguments;
pub mod handler;
pub mod inherited;
pub mod interrupt;
pub mod lease;
pub mod limit;
pub mod listen_fds;
pub mod listener;
pub mod message;
pub mod name;
mod named_door;
mod own_queue;
mod peer_groups;
pub mod pool;
pub mod port_file;
pub mod proxy_header;
pub mod queue;
pub mod rate;
pub mod rendezvous;
pub mod report;
mod room;
pub mod sandbox;
pub mod scoreboard;
pub mod service_arguments;
pub mod signals;
pub mod sink;
mod slot;
mod slots;
pub mod sockopt;
pub mod source;
pub mod start;
pub mod store;
pub mod supervisor;
mod supply;
pub mod ticket;
pub mod trust;
mod unread;
pub mod user;
mod vfork;
pub mod wait;
pub mod worker;
mod workers;

pub use error::{Error, Result};
