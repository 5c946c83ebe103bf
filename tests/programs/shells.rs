//! The pipelines of the manual, under every installed shell: each serves real clients, and ends
//! cleanly when fdaccept is told to.

use crate::support::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpgid};

/// fdaccept as the first program of a pipeline. It tells its process id.
const FDACCEPT: &str = "sh -c 'echo fdaccept has pid $$ >&2; exec fdaccept 127.0.0.1:0'";

struct Pipeline {
    shell: Process,
    fdaccept: Pid,
    port: u16,
}

impl Pipeline {
    /// `fdaccept REST`
    #[track_caller]
    fn start(shell: &str, rest: &str) -> Self {
        let mut shell = script(shell, &format!("{FDACCEPT} {rest}")).start();
        let line = shell.line("has pid ");
        let pid = line.rsplit_once(' ').unwrap().1.parse().unwrap();
        Self {
            port: shell.port(),
            fdaccept: Pid::from_raw(pid),
            shell,
        }
    }

    fn client(&self) -> Client {
        Client::connect(self.port)
    }

    /// Several clients at once. Each gets its own bytes back.
    #[track_caller]
    fn expect_echoes(&self) {
        Crowd::connect(self.port, 6).expect_served();
    }

    /// Stops fdaccept, and expects that everything ends with it, with these last words.
    #[track_caller]
    fn stop(mut self, last_words: &[&str]) {
        kill(self.fdaccept, Signal::SIGTERM).unwrap();
        let log = self.shell.expect_end(0);
        // The first two tell the process id and the port.
        assert_eq!(&besides_counters(&log)[2..], last_words, "{log}");
        let group = self.shell.pid();
        until("the end of the pipeline", || !group_is_alive(group));
    }
}

/// Whether a process of the group still runs, in the background or not. Zombies do not count.
fn group_is_alive(group: Pid) -> bool {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.map(Pid::from_raw)
        .any(|pid| getpgid(Some(pid)) == Ok(group) && is_alive(pid))
}

/// `fdaccept 8888 | fdpool 4 -- cat`
#[track_caller]
fn a_pool_of_four(shell: &str) {
    let pipeline = Pipeline::start(shell, "| fdpool 4 -- cat");
    let clients = [(); 4].map(|()| pipeline.client());
    clients.iter().for_each(Client::expect_served);
    drop(clients);
    pipeline.expect_echoes();
    pipeline.stop(&[]);
}

/// `fdaccept 8888 | fdpool 1 -- HANDLER`
#[track_caller]
fn one_after_another(shell: &str) {
    let rest = "| fdpool 1 -- sh -c 'echo hello; exec cat'";
    let pipeline = Pipeline::start(shell, rest);
    let first = pipeline.client();
    let second = pipeline.client();
    assert_eq!(first.line(), "hello");
    second.expect_waiting();
    drop(first);
    assert_eq!(second.line(), "hello");
    drop(second);
    pipeline.stop(&[]);
}

/// `fdaccept 8888 | while fdrecv -- HANDLER || [ $? -ne 69 ]; do :; done`
#[track_caller]
fn a_loop_of_fdrecv(shell: &str) {
    let rest = "| while fdrecv -- cat || [ $? -ne 69 ]; do :; done";
    let pipeline = Pipeline::start(shell, rest);
    pipeline.expect_echoes();
    pipeline.stop(&["fdrecv: the queue is closed"]);
}

/// A handler that fails does not end the loop.
#[track_caller]
fn a_loop_of_fdrecv_goes_on_after_a_failure(shell: &str) {
    let rest = "| while fdrecv -- sh -c 'echo hello; exit 3' || [ $? -ne 69 ]; do :; done";
    let pipeline = Pipeline::start(shell, rest);
    for _ in 0..3 {
        assert_eq!(pipeline.client().line(), "hello");
    }
    pipeline.stop(&["fdrecv: the queue is closed"]);
}

/// `fdaccept 8888 | { fdpool 2 -- a <&3 3<&- & exec fdpool 2 -- b 3<&-; } 3<&0`
#[track_caller]
fn two_pools_on_one_pipe(shell: &str) {
    let [a, b] = ["a", "b"].map(|name| format!("sh -c 'echo {name}; exec cat'"));
    let rest = format!("| {{ fdpool 2 -- {a} <&3 3<&- & exec fdpool 2 -- {b} 3<&-; }} 3<&0");
    let pipeline = Pipeline::start(shell, &rest);
    // All 4 are served at once, so each pool serves 2.
    let clients = [(); 4].map(|()| pipeline.client());
    let mut names = clients.each_ref().map(Client::line);
    names.sort();
    assert_eq!(names, ["a", "a", "b", "b"]);
    drop(clients);
    pipeline.stop(&[]);
}

/// The same tests for each shell. The first word is its program.
macro_rules! shells {
    ($($module:ident: $shell:literal;)*) => {$(
        shells!{@$module $shell
            a_pool_of_four_serves_four_at_once: a_pool_of_four;
            a_pool_of_one_serves_one_after_another: one_after_another;
            a_loop_of_fdrecv_serves_until_the_queue_is_closed: a_loop_of_fdrecv;
            a_loop_of_fdrecv_outlives_a_handler_that_fails: a_loop_of_fdrecv_goes_on_after_a_failure;
            two_pools_share_one_pipe: two_pools_on_one_pipe;
        }
    )*};
    (@$module:ident $shell:literal $($name:ident: $check:ident;)*) => {
        mod $module {
            use super::*;

            $(#[test]
            fn $name() {
                if peer($shell.split(' ').next().unwrap()).is_some() {
                    $check($shell);
                }
            })*
        }
    };
}

shells! {
    under_sh: "sh";
    under_dash: "dash";
    under_bash: "bash";
    under_zsh: "zsh";
    under_ksh93: "ksh93";
    under_busybox_sh: "busybox sh";
}
