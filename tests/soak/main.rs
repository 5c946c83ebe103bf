//! Load and disorder for as long as it takes: nothing is lost, and nothing is left over.

#[path = "../support/mod.rs"]
mod support;

mod hostile_soak;
mod load;
mod pool_chaos;
mod pool_soak;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use nix::unistd::Pid;

/// A number in the environment.
fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// What the private memory of a process may grow by, in kB: a few pages of heap that it has not
/// used yet.
const ALLOWANCE: u64 = 256;

/// The private memory of a process, in kB; 0 if it has ended.
fn memory(pid: Pid) -> u64 {
    let field = support::try_status_field(pid, "RssAnon").unwrap_or_default();
    let number = field.split_whitespace().next();
    number.map_or(0, |number| number.parse().unwrap())
}

/// Sends `request` and no more. Returns the answer.
fn ask(mut client: &TcpStream, request: &[u8]) -> std::io::Result<Vec<u8>> {
    client.write_all(request)?;
    client.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    client.read_to_end(&mut answer)?;
    Ok(answer)
}
