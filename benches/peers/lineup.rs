//! Who takes part.

use std::process::Command;

use crate::server::{Line, Server};

/// fdtools first.
const PROCESS_PER_CONNECTION: &[Line] = &[
    Line {
        name: "fdaccept | fdpool 16",
        needs: &[],
        text: "fdaccept -q 127.0.0.1:PORT | fdpool -q 16 -- cat",
    },
    // Twice as many as there are cores, for a machine with two.
    Line {
        name: "fdaccept | fdpool 4",
        needs: &[],
        text: "fdaccept -q 127.0.0.1:PORT | fdpool -q 4 -- cat",
    },
    Line {
        name: "bare accept, vfork, exec",
        needs: &[],
        text: "exec \"$BENCH\" --baseline exec PORT",
    },
    Line {
        name: "tcpserver",
        needs: &["tcpserver"],
        text: "exec tcpserver -H -R -l0 -c 1000 -b 4096 127.0.0.1 PORT cat",
    },
    Line {
        name: "s6-tcpserver",
        needs: &["s6-tcpserver"],
        text: "exec s6-tcpserver -c 1000 -b 4096 127.0.0.1 PORT cat",
    },
    Line {
        name: "systemd-socket-activate",
        needs: &["systemd-socket-activate"],
        text: "exec systemd-socket-activate -a --inetd -l 127.0.0.1:PORT cat",
    },
    Line {
        name: "inetd",
        needs: &["inetutils-inetd"],
        text: "printf '127.0.0.1:PORT stream tcp nowait root /bin/cat cat\\n' >inetd.conf; \
               exec inetutils-inetd -d -R 100000000 ./inetd.conf",
    },
    Line {
        name: "socat",
        needs: &["socat"],
        text: "exec socat TCP-LISTEN:PORT,bind=127.0.0.1,reuseaddr,fork,backlog=4096 EXEC:cat",
    },
    Line {
        name: "ncat",
        needs: &["ncat"],
        text: "exec ncat -4 -k -m 1000 -e /bin/cat -l 127.0.0.1 PORT",
    },
];

const WORKERS: &[Line] = &[
    Line {
        name: "fdpool 2 --worker",
        needs: &[],
        text: "fdaccept -q 127.0.0.1:PORT | fdpool -q --worker 2 -- \"$WORKER\"",
    },
    Line {
        name: "2 processes that accept",
        needs: &[],
        text: "exec \"$BENCH\" --baseline echo PORT",
    },
    Line {
        name: "bare accept, pass, 2 that receive",
        needs: &[],
        text: "exec \"$BENCH\" --baseline pass PORT",
    },
];

/// All that start a process for each connection.
pub fn process_per_connection() -> Vec<Server> {
    start_all(PROCESS_PER_CONNECTION)
}

/// Those that do not.
pub fn workers() -> Vec<Server> {
    build_worker();
    start_all(WORKERS)
}

/// The worker of examples/, which cargo does not build for benchmarks.
fn build_worker() {
    let built = Command::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "--locked",
            "--release",
            "--example",
            "worker",
        ])
        .arg("--manifest-path")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .status();
    if !built.is_ok_and(|status| status.success()) {
        eprintln!("the example could not be built");
    }
}

fn start_all(lines: &[Line]) -> Vec<Server> {
    lines.iter().filter_map(Server::start).collect()
}
