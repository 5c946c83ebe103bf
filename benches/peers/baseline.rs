//! What a server costs at least: nothing but what the job itself takes.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;

use fdtools::command::environment_without;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, posix_spawn};
use nix::sys::wait::{WaitPidFlag, waitpid};

/// How many processes the one that echoes by itself has.
const WORKERS: usize = 2;

/// Becomes the baseline of this name, on this port.
pub fn run(name: &str, port: &str) -> ! {
    let port: u16 = port.parse().expect("a port");
    match name {
        "exec" => exec(&listen(port)),
        "echo" => echo(&listen(port)),
        "inherited" => {
            let listener = std::io::stdin().as_fd().try_clone_to_owned();
            accept_and_echo(&listener.expect("a descriptor").into())
        }
        _ => panic!("no such baseline"),
    }
}

fn listen(port: u16) -> TcpListener {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("a free port");
    // As much as the kernel allows, as fdaccept has it.
    rustix::net::listen(&listener, i32::MAX).expect("it listens already");
    listener
}

/// Accepts, starts cat with the connection, and nothing else.
fn exec(listener: &TcpListener) -> ! {
    let attributes = PosixSpawnAttr::init().expect("memory");
    // As every other server has it: what cat does depends on it, such as on LANG.
    let environment = environment_without(|_| false);
    loop {
        let Ok((connection, _)) = listener.accept() else {
            continue;
        };
        let mut actions = PosixSpawnFileActions::init().expect("memory");
        for number in [0, 1] {
            actions
                .add_dup2(connection.as_raw_fd(), number)
                .expect("memory");
        }
        posix_spawn(c"/bin/cat", &actions, &attributes, &[c"cat"], &environment).expect("cat runs");
        // Whatever has ended by now.
        while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|s| s.pid().is_some()) {}
    }
}

/// Processes that each accept, and echo by themselves. The others get the listener as their standard
/// input.
fn echo(listener: &TcpListener) -> ! {
    let start = |_| {
        let this = std::env::current_exe().expect("this program");
        Command::new(this)
            .args(["--baseline", "inherited", "0"])
            .stdin(OwnedFd::from(listener.try_clone().expect("a descriptor")))
            .spawn()
            .expect("a process")
    };
    let _others: Vec<_> = (1..WORKERS).map(start).collect();
    accept_and_echo(listener)
}

fn accept_and_echo(listener: &TcpListener) -> ! {
    let mut buffer = [0; 65536];
    loop {
        if let Ok((connection, _)) = listener.accept() {
            let _ = answer(connection, &mut buffer);
        }
    }
}

fn answer(mut connection: TcpStream, buffer: &mut [u8]) -> std::io::Result<()> {
    loop {
        match connection.read(buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => connection.write_all(&buffer[..count])?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
