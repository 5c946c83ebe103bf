//! The servers to compare.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::server::{Line, Server};

/// fdtools comes first.
const PROCESS_PER_CONNECTION: &[Line] = &[
    Line {
        name: "fdaccept | fdpool 16",
        needs: &[],
        text: "fdaccept -q 127.0.0.1:PORT | fdpool -q 16 -- cat",
    },
    // 2 x cores, on a machine with 2.
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

/// Servers with a process per connection; `None` if fdtools does not answer.
pub fn process_per_connection() -> Option<Vec<Server>> {
    start_all(PROCESS_PER_CONNECTION, &[])
}

/// Servers with workers that stay; `None` if fdtools does not answer.
pub fn workers() -> Option<Vec<Server>> {
    let Some(worker) = build_worker() else {
        eprintln!("the example could not be built");
        return None;
    };
    start_all(WORKERS, &[("WORKER", &worker)])
}

/// The worker of examples/, which cargo does not build for benchmarks. Returns its path.
fn build_worker() -> Option<PathBuf> {
    let built = Command::new(env!("CARGO"))
        .args(["build", "--locked", "--release", "--example", "worker"])
        .args(["--message-format", "json-render-diagnostics"])
        .arg("--manifest-path")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .stderr(Stdio::inherit())
        .output()
        .ok()
        .filter(|built| built.status.success())?;
    let messages = serde_json::Deserializer::from_slice(&built.stdout).into_iter();
    let executable = |message: serde_json::Value| {
        let is_worker = message["target"]["name"] == "worker";
        let path = message["executable"].as_str().filter(|_| is_worker)?;
        Some(PathBuf::from(path))
    };
    messages.filter_map(Result::ok).find_map(executable)
}

/// Starts the installed servers; `None` if the first one, fdtools, does not answer.
fn start_all(lines: &[Line], environment: &[(&str, &Path)]) -> Option<Vec<Server>> {
    let (ours, others) = lines.split_first()?;
    let ours = Server::start(ours, environment)?;
    let others = others
        .iter()
        .filter_map(|line| Server::start(line, environment));
    Some(std::iter::once(ours).chain(others).collect())
}
