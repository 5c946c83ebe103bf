//! The smallest worker: takes one connection after another and echoes what it says.
//!
//! ```text
//! worker               for  fdpool 4 --worker -- worker: the queue is standard input
//! worker PATH          for  fdaccept --bind PATH ADDRESS
//! worker --bind PATH   for  fdaccept --connect PATH ADDRESS
//! ```
//!
//! PATH may be @name, in the abstract namespace.

use std::env;
use std::error::Error;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use fdtools::interrupt;
use fdtools::queue::connection::Connection;
use fdtools::queue::name::Name;
use fdtools::queue::trust::Trust;
use fdtools::queue::{Received, Receiver};
use nix::libc::{SIGHUP, SIGINT, SIGTERM};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The watchdog of `fdpool --watchdog`: the worker says that it is alive where it waits. A thread that
/// does nothing else would go on while the worker hangs.
struct Watchdog {
    pool: UnixDatagram,
    /// Half of the time that the worker may be silent.
    pause: Duration,
    due: Instant,
}

impl Watchdog {
    /// `None` if nobody wants to hear of this worker.
    fn find() -> io::Result<Option<Self>> {
        let time = env::var("WATCHDOG_USEC").ok();
        let time = time.and_then(|time| time.parse().ok());
        let Some((time, name)) = time.zip(env::var("NOTIFY_SOCKET").ok()) else {
            return Ok(None);
        };
        let pool = UnixDatagram::unbound()?;
        match name.strip_prefix('@') {
            Some(name) => pool.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
            None => pool.connect(name)?,
        }
        // The pool may be stopped, and take nothing.
        pool.set_write_timeout(Some(Duration::from_millis(100)))?;
        Ok(Some(Self {
            pool,
            pause: Duration::from_micros(time) / 2,
            due: Instant::now(),
        }))
    }

    /// Waits until `descriptor` can be read.
    fn wait(&mut self, descriptor: impl AsFd) -> io::Result<()> {
        loop {
            if self.due <= Instant::now() {
                let sent = self.pool.send(b"WATCHDOG=1");
                // There may be room for it soon.
                let pause = sent.map_or(self.pause / 10, |_| self.pause);
                self.due = Instant::now() + pause;
            }
            let left = self.due.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            let mut ready = [PollFd::new(&descriptor, PollFlags::IN)];
            match poll(&mut ready, Some(&left)) {
                // A signal that stops the worker has put something readable in the queue's place.
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

fn echo(mut client: &Connection, mut watchdog: Option<&mut Watchdog>) -> io::Result<()> {
    let mut data = [0; 8192];
    loop {
        if let Some(watchdog) = &mut watchdog {
            watchdog.wait(client)?;
        }
        match client.read(&mut data) {
            Ok(0) => return Ok(()),
            Ok(length) => client.write_all(&data[..length])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// How long to wait for a client that does not end.
const FINISH: Duration = Duration::from_secs(5);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
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
    let mut watchdog = Watchdog::find()?;
    loop {
        let received = match &mut watchdog {
            Some(watchdog) => {
                watchdog.wait(&queue)?;
                queue.try_receive()?
            }
            None => Some(queue.receive()?),
        };
        // Another worker may have been faster.
        let Some(received) = received else { continue };
        match received {
            Received::Connection(connection) => {
                // That the client has gone is no reason to end.
                let _ = echo(&connection, watchdog.as_mut());
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
