//! The pipelines of the manual, under every shell that is there: each serves real clients, and
//! ends cleanly when fdaccept is told to.

use std::io::Write;

use crate::support::*;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// fdaccept as the first program of a pipeline, which says under which process id it runs.
const FDACCEPT: &str = "sh -c 'echo fdaccept has pid $$ >&2; exec fdaccept 127.0.0.1:0'";

/// A running pipeline.
struct Pipeline {
    shell: Process,
    fdaccept: Pid,
    port: u16,
}

impl Pipeline {
    /// Starts what follows `fdaccept` in a pipeline.
    #[track_caller]
    fn start(shell: &str, rest: &str) -> Self {
        let mut shell = Process::start(&mut script(shell, &format!("{FDACCEPT} {rest}")));
        let line = shell.line("has pid ");
        let pid = line.rsplit_once(' ').unwrap().1.parse().unwrap();
        Self {
            port: shell.port(),
            fdaccept: Pid::from_raw(pid),
            shell,
        }
    }

    /// Stops fdaccept, and expects that everything ends with it, with these last words.
    #[track_caller]
    fn stop(mut self, last_words: &[&str]) {
        kill(self.fdaccept, Signal::SIGTERM).unwrap();
        let (status, log) = self.shell.finish();
        assert_eq!(status.code(), Some(0), "{log}");
        // Before that were the two with the process id and the port.
        assert_eq!(&besides_counters(&log)[2..], last_words, "{log}");
        let group = self.shell.pid();
        until("the end of the pipeline", || !group_is_alive(group));
    }
}

/// Whether a process of the group still runs: one of the background, too, and no zombie.
fn group_is_alive(group: Pid) -> bool {
    if nix::sys::signal::killpg(group, None) == Err(Errno::ESRCH) {
        return false;
    }
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut stats = processes.filter_map(|entry| {
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        // The state, the parent and the group follow the name.
        let fields = stat.rsplit_once(") ")?.1.to_owned();
        let fields: Vec<_> = fields.split(' ').map(str::to_owned).collect();
        Some((fields[0].clone(), fields[2].parse::<i32>().ok()?))
    });
    stats.any(|(state, its_group)| its_group == group.as_raw() && state != "Z")
}

/// Several clients at once, each of which gets its own bytes back.
#[track_caller]
fn assert_echoes(port: u16) {
    std::thread::scope(|scope| {
        for number in 0..6 {
            scope.spawn(move || {
                let request = format!("request {number}").into_bytes();
                assert_eq!(exchange(port, &request), request);
            });
        }
    });
}

/// `fdaccept 8888 | fdpool 4 -- cat`
#[track_caller]
fn a_pool_of_four(shell: &str) {
    let pipeline = Pipeline::start(shell, "| fdpool 4 -- cat");
    // Four at once.
    let clients = [(); 4].map(|()| connect(pipeline.port));
    for mut client in &clients {
        client.write_all(b"hello\n").unwrap();
        assert_eq!(read_line(client), "hello");
    }
    drop(clients);
    assert_echoes(pipeline.port);
    pipeline.stop(&[]);
}

/// `fdaccept 8888 | fdpool 1 -- HANDLER`
#[track_caller]
fn one_after_another(shell: &str) {
    let rest = "| fdpool 1 -- sh -c 'echo hello; exec cat'";
    let pipeline = Pipeline::start(shell, rest);
    let first = connect(pipeline.port);
    let second = connect(pipeline.port);
    assert_eq!(read_line(&first), "hello");
    // The second has to wait for the first.
    second.set_nonblocking(true).unwrap();
    let nothing = second.peek(&mut [0]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    second.set_nonblocking(false).unwrap();
    drop(first);
    assert_eq!(read_line(&second), "hello");
    drop(second);
    pipeline.stop(&[]);
}

/// `fdaccept 8888 | while fdrecv -- HANDLER || [ $? -ne 69 ]; do :; done`
#[track_caller]
fn a_loop_of_fdrecv(shell: &str) {
    let rest = "| while fdrecv -- cat || [ $? -ne 69 ]; do :; done";
    let pipeline = Pipeline::start(shell, rest);
    assert_echoes(pipeline.port);
    pipeline.stop(&["fdrecv: the queue is closed"]);
}

/// A handler that fails does not end the loop.
#[track_caller]
fn a_loop_of_fdrecv_goes_on_after_a_failure(shell: &str) {
    let rest = "| while fdrecv -- sh -c 'echo hello; exit 3' || [ $? -ne 69 ]; do :; done";
    let pipeline = Pipeline::start(shell, rest);
    for _ in 0..3 {
        assert_eq!(read_line(&connect(pipeline.port)), "hello");
    }
    pipeline.stop(&["fdrecv: the queue is closed"]);
}

/// `fdaccept 8888 | { fdpool 2 -- a <&3 3<&- & exec fdpool 2 -- b 3<&-; } 3<&0`
#[track_caller]
fn two_pools_on_one_pipe(shell: &str) {
    let handler = |name| format!("sh -c 'echo {name}; exec cat'");
    let (a, b) = (handler("a"), handler("b"));
    let rest = format!("| {{ fdpool 2 -- {a} <&3 3<&- & exec fdpool 2 -- {b} 3<&-; }} 3<&0");
    let pipeline = Pipeline::start(shell, &rest);
    // Two have room for four: if all four are served at once, each serves two.
    let clients = [(); 4].map(|()| connect(pipeline.port));
    let mut names = clients.each_ref().map(read_line);
    names.sort();
    assert_eq!(names, ["a", "a", "b", "b"]);
    drop(clients);
    pipeline.stop(&[]);
}

/// The same tests for each shell; `$program` is what has to be installed for it, if anything.
macro_rules! shells {
    ($($module:ident: $shell:literal $(, $program:literal)?;)*) => {$(
        mod $module {
            use super::*;

            shells!{@tests $shell $(, $program)?;
                a_pool_of_four_serves_four_at_once = a_pool_of_four;
                a_pool_of_one_serves_one_after_another = one_after_another;
                a_loop_of_fdrecv_serves_until_the_queue_is_closed = a_loop_of_fdrecv;
                a_loop_of_fdrecv_outlives_a_handler_that_fails = a_loop_of_fdrecv_goes_on_after_a_failure;
                two_pools_share_one_pipe = two_pools_on_one_pipe;
            }
        }
    )*};
    (@tests $shell:literal, $program:literal; $($name:ident = $check:ident;)*) => {$(
        #[test]
        fn $name() {
            if peer($program).is_some() {
                $check($shell);
            }
        }
    )*};
    (@tests $shell:literal; $($name:ident = $check:ident;)*) => {$(
        #[test]
        fn $name() {
            $check($shell);
        }
    )*};
}

shells! {
    under_sh: "sh";
    under_dash: "dash", "dash";
    under_bash: "bash", "bash";
    under_zsh: "zsh", "zsh";
    under_ksh93: "ksh93", "ksh93";
    under_busybox_sh: "busybox sh", "busybox";
}
