//! fdtools passes open connections between processes.
//!
//! A *queue* is a Unix socket pair. Each message carries one open descriptor, usually an accepted
//! connection. The acceptor holds the write end, a [`queue::Sender`]. All consumers share the read
//! end, a [`queue::Receiver`]; the kernel gives each connection to one consumer. A signal stops a
//! consumer without losing a connection: see [`interrupt`].
//!
//! The programs `fdaccept`, `fdrecv` and `fdpool` speak the same formats, see fdtools(7). A program
//! that needs only the library compiles less without the default feature `programs`.
//!
//! # One connection over a pair
//!
//! ```
//! use fdtools::queue::message::Info;
//! use fdtools::queue::{self, Received};
//! use std::io::{Read, Write};
//! use std::net::{TcpListener, TcpStream};
//!
//! let listener = TcpListener::bind("127.0.0.1:0")?;
//! let mut client = TcpStream::connect(listener.local_addr()?)?;
//! let (connection, remote) = listener.accept()?;
//!
//! let (sender, receiver) = queue::pair()?;
//! sender.send(&connection, &Info::tcp(remote, listener.local_addr()?))?;
//! // The client sees the end when the last copy of the connection is closed.
//! drop(connection);
//!
//! match receiver.receive()? {
//!     Received::Connection(mut connection) => {
//!         assert_eq!(connection.info().client(), "127.0.0.1");
//!         connection.write_all(b"hello")?;
//!     }
//!     other => panic!("{other:?}"),
//! }
//! let mut answer = String::new();
//! client.read_to_string(&mut answer)?;
//! assert_eq!(answer, "hello");
//!
//! drop(sender);
//! assert!(matches!(receiver.receive()?, Received::End));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # One connection over a path
//!
//! The receiver owns the path, as in `fdpool --bind`. Any number of senders may send to it.
//!
//! ```
//! use fdtools::queue::message::Info;
//! use fdtools::queue::name::Name;
//! use fdtools::queue::trust::Trust;
//! use fdtools::queue::{Received, Receiver, Sender};
//! use std::io::{Read, Write};
//! use std::os::unix::net::UnixStream;
//!
//! let directory = tempfile::tempdir()?;
//! let name = Name::Path(directory.path().join("inbox"));
//! // The mode, here 0600, guards a path. `trust` guards an abstract name.
//! let receiver = Receiver::bind(&name, None, Trust::everybody())?;
//!
//! let sender = Sender::connect(&name, &Trust::everybody())?;
//! let (mut client, connection) = UnixStream::pair()?;
//! sender.send(connection, &Info::new())?;
//!
//! let Received::Connection(mut connection) = receiver.receive()? else {
//!     panic!("no connection");
//! };
//! connection.write_all(b"hello")?;
//! drop(connection);
//! let mut answer = String::new();
//! client.read_to_string(&mut answer)?;
//! assert_eq!(answer, "hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Any descriptors with any bytes
//!
//! [`queue::send`] and [`queue::receive`] pass up to [`queue::MAX_DESCRIPTORS`] descriptors and up to
//! [`MAX_PAYLOAD`](queue::message::MAX_PAYLOAD) bytes in one message of any Unix socket.
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
//! queue::send(&here, b"two files", &[null.as_fd(), zero.as_fd()])?;
//!
//! let mut message = queue::receive(&there)?;
//! assert_eq!(message.payload, b"two files");
//! // Dropping the message closes the descriptors that are still in it.
//! let mut zero = File::from(message.descriptors.remove(1));
//! let mut byte = [1];
//! zero.read_exact(&mut byte)?;
//! assert_eq!(byte, [0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// The house: bin -> cli -> { accept | serve } -> queue -> system -> error.
//   cli     command lines: what each program does, step by step
//   accept  fdaccept: from listener to sink        serve  fdpool and fdrecv: from queue to handler
//   queue   how a connection is passed: the public library
//   system  Linux, seen from Rust

// Without the programs some of the library has no caller, but it is not dead.
#![cfg_attr(not(feature = "programs"), allow(dead_code))]

#[cfg(feature = "programs")]
mod accept;
#[cfg(feature = "programs")]
mod cli;
mod error;
pub mod queue;
#[cfg(feature = "programs")]
mod serve;
mod system;

pub use error::{Error, Result};
pub use system::interrupt;

#[cfg(feature = "programs")]
#[doc(hidden)]
pub use cli::{fdaccept::run as fdaccept, fdpool::run as fdpool, fdrecv::run as fdrecv, start};
