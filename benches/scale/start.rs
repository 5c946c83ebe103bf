//! What fdrecv adds to the start of a command, compared with env(1), which does nothing else.

use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use fdtools::queue;
use fdtools::queue::message::Info;

use crate::server::{Line, Server};

const STARTS: usize = 500;
const COMMAND: &str = "/bin/true";

pub fn measure() {
    let line = Line {
        name: "a queue for fdrecv",
        needs: &[],
        text: "fdaccept -q --bind ./queue 127.0.0.1:PORT & \
               until [ -S queue ]; do sleep 0.01; done; \
               fdrecv --connect ./queue -- cat; wait",
    };
    let Some(server) = Server::start(&line, &[]) else {
        return;
    };
    let (sender, read_end) = queue::ends().expect("a queue");
    let (_client, connection) = UnixStream::pair().expect("a connection");
    let name = server.directory().join("queue");
    let mut times = [const { Vec::new() }; 4];
    // In turns, so that other load on the machine hits all commands alike.
    for _ in 0..STARTS {
        sender.send(&connection, &Info::new()).expect("room");
        let _client = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port));
        let mut inheriting = fdrecv();
        inheriting.stdin(read_end.try_clone().expect("a descriptor"));
        let mut commands = [
            Command::new(COMMAND),
            with(Command::new("env"), &[]),
            with(inheriting, &["--".as_ref()]),
            with(fdrecv(), &["--connect".as_ref(), &name, "--".as_ref()]),
        ];
        for (command, times) in commands.iter_mut().zip(&mut times) {
            let start = Instant::now();
            let status = command.status().expect("a process");
            times.push(start.elapsed().as_secs_f64() * 1e3);
            assert!(status.success(), "{command:?}");
        }
    }
    let [alone, env, inherited, named] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[STARTS / 2]
    });
    println!(
        "{COMMAND} alone takes {alone:.2} ms; to that adds fdrecv {:.2} ms with a queue that it \
         inherits and {:.2} with one that has a name, env {:.2}",
        inherited - alone,
        named - alone,
        env - alone
    );
}

fn fdrecv() -> Command {
    Command::new(env!("CARGO_BIN_EXE_fdrecv"))
}

/// The command with `arguments`, followed by COMMAND.
fn with(mut command: Command, arguments: &[&Path]) -> Command {
    command.args(arguments).arg(COMMAND);
    command
}
