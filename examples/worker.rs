//! The smallest worker: takes one connection after another and echoes what it says.
//!
//! ```text
//! worker               for  fdpool 4 --worker -- worker: the queue is standard input
//! worker PATH          for  fdaccept --bind PATH ADDRESS
//! worker --bind PATH   for  fdaccept --connect PATH ADDRESS
//! ```
//!
//! PATH may be @name, in the abstract namespace.

use std::error::Error;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use fdtools::interrupt;
use fdtools::queue::name::Name;
use fdtools::queue::trust::Trust;
use fdtools::queue::{Received, Receiver};
use nix::libc::{SIGHUP, SIGINT, SIGTERM};

/// How long to wait for a client that does not end.
const FINISH: Duration = Duration::from_secs(5);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    // Of an abstract name's other side, this user and root are trusted.
    let trust = Trust::us_and(&[]);
    let queue = match &arguments[..] {
        // fdpool has fetched the queue.
        [] => Receiver::inherit(0)?,
        // fdaccept owns the name, and hands out the queue, which all its consumers share.
        [path] => Receiver::connect(&Name::parse(path)?, &trust)?,
        // This worker owns the name, and every message that is sent to it is a connection.
        [bind, path] if bind == "--bind" => Receiver::bind(&Name::parse(path)?, None, trust)?,
        _ => return Err("usage: worker [[--bind] PATH]".into()),
    };
    // On TERM, INT or HUP the worker serves the connection in hand and takes no other. A flag that it
    // looks at between two connections would miss a signal that comes after the look and before the
    // wait. So the signal's handler puts /dev/null in the place of the queue: a receive that has not
    // begun fails, a waiting receive is interrupted, and a receive that has its connection returns it.
    // HUP is how the kernel ends a process that is stopped when its pool is killed.
    interrupt::on_signals(&[SIGTERM, SIGINT, SIGHUP])?;
    let _watch = interrupt::watch(queue.as_fd());
    loop {
        match queue.receive()? {
            Received::Connection(connection) => {
                // That the client has gone is no reason to end.
                let _ = io::copy(&mut &connection, &mut &connection);
                // A close alone could lose the end of the answer. Here the client has ended already,
                // unless it cannot be served.
                connection.finish(FINISH);
            }
            Received::End | Received::Interrupted => return Ok(()),
            // A message that was no connection.
            _ => {}
        }
    }
}
