//! The smallest sender: passes each connection to the consumer that owns PATH, without the fdtools
//! library.
//!
//! ```text
//! sender PORT PATH     for  fdpool --bind PATH 4 -- COMMAND
//! ```

use std::env;
use std::error::Error;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

use sendfd::SendWithFd;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [port, path] = &arguments[..] else {
        return Err("usage: sender PORT PATH".into());
    };
    let listener = TcpListener::bind(("127.0.0.1", port.parse()?))?;
    let inbox = UnixDatagram::unbound()?;
    inbox.connect(path)?;
    eprintln!("sender: listening on {}", listener.local_addr()?);
    loop {
        let (connection, _) = listener.accept()?;
        // The first line of every payload, and the last of the shortest: see fdtools(7). The consumer
        // asks the connection itself who is there. This blocks while the consumer's socket is full.
        inbox.send_with_fd(b"FDTOOLS=1\n", &[connection.as_raw_fd()])?;
    }
}
