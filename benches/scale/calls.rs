//! Counts the system calls of one connection with strace.

use std::collections::BTreeMap;

use nix::unistd::Pid;

use crate::load;
use crate::server::{Line, Server, children};
use crate::slots::Pool;

const CONNECTIONS: usize = 100;

pub fn measure() {
    let line = Line {
        name: "a pool that is traced",
        needs: &["strace"],
        text: "exec strace -f -qq -e signal=none -o trace \
               fdaccept -q 127.0.0.1:PORT -- fdpool -q 1 -- cat",
    };
    let Some(server) = Server::start(&line, &[]) else {
        return;
    };
    let path = server.directory().join("trace");
    let read = || std::fs::read_to_string(&path).expect("a trace");
    let before = read().len();
    for _ in 0..CONNECTIONS {
        assert!(load::ask(server.port), "an answer");
    }
    let trace = read();
    // strace has 1 child: fdaccept.
    let pool = Pool::of(children(server.pid())[0]);
    let slot = pool.slots()[0];
    let mut calls = [const { BTreeMap::new() }; 3];
    let mut is_cat = Vec::new();
    for (pid, call) in trace[before..].lines().filter_map(call) {
        let role = match pid {
            _ if is_cat.contains(&pid) => continue,
            pid if pid == pool.fdaccept => 0,
            pid if pid == slot => 1,
            _ => 2,
        };
        if call == "execve" {
            is_cat.push(pid);
        }
        *calls[role].entry(call).or_insert(0) += 1;
    }
    for (name, calls) in ["fdaccept", "a slot", "its child, until it is the handler"]
        .iter()
        .zip(calls)
    {
        let each = |count: &usize| *count as f64 / CONNECTIONS as f64;
        let list: Vec<_> = calls
            .iter()
            // The handler from before may still end.
            .filter(|(_, count)| each(count) > 0.1)
            .map(|(call, count)| format!("{call} {:.1}", each(count)))
            .collect();
        println!(
            "system calls of {name} for one connection: {:.1} ({})",
            each(&calls.values().sum()),
            list.join(", ")
        );
    }
}

/// The process and the name of the system call in a line of strace(1).
fn call(line: &str) -> Option<(Pid, &str)> {
    let (pid, rest) = line.split_once(' ')?;
    let (call, _) = rest.trim_start().split_once('(')?;
    let is_name = |text: &str| {
        text.bytes()
            .all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit())
    };
    let pid = Pid::from_raw(pid.parse().ok()?);
    is_name(call).then_some((pid, call))
}
