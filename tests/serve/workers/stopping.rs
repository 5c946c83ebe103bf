//! How a pool of workers stops, and what becomes of them when it is killed.

use super::*;

#[test]
fn a_stop_asks_every_worker_to_go() {
    for signal in STOPS {
        // Nothing but their own end is to end them.
        let options = ["--grace", "100000", "--ready-fd", "3"];
        let mut pool = Workers::start(&options, 3, &ready_after(":"));
        let workers = pool.until_noted("ready", 3);
        pool.signal(signal);
        pool.expect_quiet_end();
        assert_eq!(pool.until_noted("term", 3), workers);
    }
}

#[test]
fn a_terminals_interrupt_does_not_reach_workers() {
    let text = ready_after("trap 'echo int $$ >>\"$DIR/log\"' INT");
    let mut pool = Workers::start(&["--ready-fd", "3"], 2, &text);
    pool.until_noted("ready", 2);
    pool.signal_group(Signal::SIGINT);
    pool.expect_end(0);
    assert_eq!(pool.noted("int"), []);
    assert_eq!(pool.noted("term").len(), 2);
}

#[test]
fn a_worker_that_is_asked_to_go_finishes_what_it_has_in_hand() {
    for worker in [gentle(), gentle_python()].into_iter().flatten() {
        let mut pool = Workers::of_command(&["--ready-fd", "3"], 2, &worker);
        let client = pool.client();
        client.expect_served();
        pool.until_workers(2);
        pool.term();
        // The idle worker ends.
        pool.until_workers(1);
        // What comes now waits for somebody else.
        let later = pool.client();
        client.expect_served();
        later.expect_waiting();
        drop((client, later));
        pool.expect_quiet_end();
    }
}

/// As [`gentle`], in Python.
fn gentle_python() -> Option<[String; 4]> {
    let [python, source] = <[String; 2]>::try_from(python_example()?).unwrap();
    let text = format!("echo >&3; exec '{python}' \"$0\" 3>&-");
    Some(["sh".into(), "-c".into(), text, source])
}

#[test]
fn a_stop_kills_workers_that_ignore_term_after_the_grace_with_their_groups() {
    let text = format!(
        "trap '' TERM; sleep 100 & echo child $! >>\"$DIR/log\"; echo ready $$ >>\"$DIR/log\"; {STAY}"
    );
    let mut pool = Workers::start(&["--grace", "0.3"], 2, &text);
    let workers = pool.until_noted("ready", 2);
    let children = pool.noted("child");
    let start = Instant::now();
    let log = pool.stop();
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert_eq!(log.matches("did not end within 0.3 s").count(), 2, "{log}");
    // A shell whose child is killed first may say so.
    let said = log.lines().filter(|line| line.starts_with("fdpool: "));
    assert_eq!(said.count(), 2, "{log}");
    workers.into_iter().chain(children).for_each(until_gone);
}

#[test]
fn a_stop_asks_a_worker_alone_and_then_what_it_leaves() {
    let text = format!(
        "(trap 'echo child_term 0 >>\"$DIR/log\"; exit' TERM; echo child 0 >>\"$DIR/log\"; {STAY}) &\n\
         trap 'echo term $$ >>\"$DIR/log\"; \
               while [ ! -e \"$DIR/gate\" ]; do sleep 0.05; done; exit' TERM\n\
         echo ready $$ >>\"$DIR/log\"; {STAY}"
    );
    let mut pool = Workers::start(&["--grace", "100000"], 1, &text);
    pool.until_noted("ready", 1);
    pool.until_noted("child", 1);
    pool.term();
    pool.until_noted("term", 1);
    // Its child would have noted it by then.
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(pool.noted("child_term"), []);
    assert!(pool.is_running());
    pool.touch("gate");
    pool.until_noted("child_term", 1);
    pool.expect_end(0);
}

#[test]
fn a_stop_kills_what_a_worker_left_after_the_grace() {
    let text = format!("{STUBBORN} & exec sleep 100");
    let mut pool = Workers::start(&["--grace", "0.3"], 1, &text);
    let child = *pool.until_noted("child", 1).first().unwrap();
    let worker = pool.worker();
    let start = Instant::now();
    pool.term();
    until_gone(worker);
    pool.expect_end(0);
    assert!(start.elapsed() >= Duration::from_millis(300));
    until_gone(child);
}

#[test]
fn a_second_signal_kills_every_group_at_once() {
    for (first, second) in [(0, 0), (0, 1), (1, 0)] {
        // Of the first worker only a child is left when the second signal comes.
        let text = format!(
            "trap '' TERM; sleep 100 & echo child $! >>\"$DIR/log\"\n\
             if mkdir \"$DIR/first\" 2>/dev/null; then leaves=exit; fi\n\
             trap 'echo term $$ >>\"$DIR/log\"; $leaves' TERM; echo ready $$ >>\"$DIR/log\"; {STAY}"
        );
        let mut pool = Workers::start(&["--grace", "100000"], 2, &text);
        let workers = pool.until_noted("ready", 2);
        let children = pool.noted("child");
        pool.signal(STOPS[first]);
        pool.until_noted("term", 2);
        pool.until_workers(1);
        assert!(children.iter().all(|child| is_alive(*child)));
        pool.signal(STOPS[second]);
        pool.expect_end(0);
        workers.into_iter().chain(children).for_each(until_gone);
    }
}

/// Expects that a stop ends workers that `send` has stopped.
#[track_caller]
fn assert_stopped_workers_end(send: impl Fn(Pid, Signal) -> nix::Result<()>) {
    // Nothing but their own end is to end them.
    let options = ["--grace", "100000", "--ready-fd", "3"];
    let mut pool = Workers::start(&options, 2, &ready_after(":"));
    let workers = pool.until_noted("ready", 2);
    for worker in workers {
        send(worker, Signal::SIGSTOP).unwrap();
        until_stopped(worker);
    }
    pool.stop();
    assert_eq!(pool.noted("term").len(), 2);
}

cases! {
    assert_stopped_workers_end;
    a_stop_reaches_workers_that_are_stopped: kill;
    a_stop_reaches_workers_that_are_stopped_with_all_that_they_have_started: killpg;
}

#[test]
fn a_stop_in_a_reload_ends_old_and_new() {
    let (mut pool, _) = gated_workers(2);
    pool.signal(Signal::SIGHUP);
    pool.until_workers(3);
    let all = pool.workers();
    pool.stop();
    all.into_iter().for_each(until_gone);
}

#[test]
fn a_reload_in_a_stop_starts_nobody() {
    let text = ready_after("trap 'echo term $$ >>\"$DIR/log\"; touch \"$DIR/stopping\"' TERM");
    let mut pool = Workers::start(&["-v", "--grace", "0.3", "--ready-fd", "3"], 1, &text);
    let worker = pool.until_noted("ready", 1);
    pool.term();
    pool.until_noted("term", 1);
    for signal in [Signal::SIGHUP, Signal::SIGTTIN, Signal::SIGUSR1] {
        pool.signal(signal);
    }
    let log = pool.expect_end(0);
    assert_eq!(log.matches("was started").count(), 1, "{log}");
    assert!(!log.contains("reload"), "{log}");
    assert_eq!(pool.until_noted("ready", 1), worker);
}

#[test]
fn a_stop_while_a_worker_waits_for_its_next_start_ends_at_once() {
    let mut pool = Workers::start(&[], 1, "exit 1");
    pool.line("in 0.2 s");
    pool.stop();
}

#[test]
fn a_stop_while_there_is_no_queue_ends_at_once() {
    let names = Names::new();
    let mut pool = Pool::on(&names.path()).workers(2, &["cat"]).start();
    pool.line("waiting");
    pool.stop();
}

#[test]
fn when_the_pool_is_killed_its_workers_get_term() {
    let (mut pool, workers) = ready_workers(3);
    pool.slay();
    assert_eq!(pool.until_noted("term", 3), workers);
    workers.into_iter().for_each(until_gone);
}

#[test]
fn when_the_pool_is_killed_workers_that_are_stopped_get_hup_and_term() {
    let text = ready_after("trap 'echo hup $$ >>\"$DIR/log\"' HUP");
    let mut pool = Workers::start(&["--ready-fd", "3"], 2, &text);
    let workers = pool.until_noted("ready", 2);
    for worker in &workers {
        killpg(*worker, Signal::SIGSTOP).unwrap();
        until_stopped(*worker);
    }
    pool.slay();
    // The kernel has let them go on, too.
    assert_eq!(pool.until_noted("term", 2), workers);
    assert_eq!(pool.until_noted("hup", 2), workers);
}

#[test]
fn an_example_that_is_stopped_when_the_pool_is_killed_finishes_what_it_has() {
    for command in [rust_example(), python_example()].into_iter().flatten() {
        let acceptor = Fdaccept::bound().start();
        let mut pool = Pool::on(&acceptor).workers(1, &command).start();
        let client = acceptor.served_client();
        let worker = pool.workers().pop_first().expect("it serves");
        kill(worker, Signal::SIGSTOP).unwrap();
        until_stopped(worker);
        pool.slay();
        client.expect_served();
        drop(client);
        until_gone(worker);
    }
}

#[test]
fn when_the_pool_is_killed_connections_in_hand_are_finished_and_another_pool_goes_on() {
    let worker = needs!(rust_example());
    let mut acceptor = Fdaccept::bound().start();
    let mut pool = Pool::on(&acceptor).workers(2, &worker).start();
    let client = acceptor.served_client();
    until("both workers", || pool.workers().len() == 2);
    let workers = pool.workers();
    pool.slay();
    until("the end of the idle one", || {
        workers.iter().filter(|pid| is_alive(**pid)).count() == 1
    });
    let later = acceptor.client();
    client.expect_served();
    drop(client);
    workers.into_iter().for_each(until_gone);
    let mut pool = Pool::on(&acceptor).workers(1, &worker).start();
    later.expect_served();
    drop(later);
    pool.stop();
    acceptor.stop();
}

/// A command that runs another one as the first process of a container, if that can be done here.
fn container() -> Option<Command> {
    if !root() {
        return None;
    }
    let unshare = peer("unshare")?;
    let container = || {
        let mut command = Command::new(&unshare);
        command.args(["--pid", "--fork", "--kill-child"]);
        command.env("PATH", path()).stdin(Stdio::null());
        command
    };
    if !container().arg("true").status().unwrap().success() {
        skip("no namespace of processes can be made here");
        return None;
    }
    Some(container())
}

/// A worker that leaves a child, which is an orphan when it gets TERM.
fn leaves_an_orphan() -> String {
    format!("sleep 100 & trap exit TERM; echo ready $$ >>\"$DIR/log\"; {STAY}")
}

#[test]
fn the_first_process_of_a_container_ends_with_what_its_workers_left() {
    let text = leaves_an_orphan();
    let pool = ["fdpool", "--grace", "100000", "1", "--worker", "--"];
    let chain = ["fdaccept", "--grace", "0.1", ADDRESS, "--"];
    for first in [&[][..], &chain] {
        let mut command = needs!(container());
        command.args(first).args(pool).args(["sh", "-c", &text]);
        let mut pool = Workers::of(&mut command);
        pool.until_noted("ready", 1);
        let first = pool.children()[0];
        kill(first, Signal::SIGTERM).unwrap();
        pool.expect_exit(0);
    }
}

#[test]
fn a_stop_does_not_wait_until_somebody_reaps_orphans() {
    let mut command = needs!(container());
    // Here nobody does, as in a container whose first process knows of no orphans.
    let text = "fdpool --grace 100000 1 --worker -- sh -c \"$0\" <&3 3<&- & exec sleep 100";
    let text = format!("{{ {text}; }} 3<&0 </dev/null");
    command.args(["sh", "-c", &text, &leaves_an_orphan()]);
    let pool = Workers::of(&mut command);
    pool.until_noted("ready", 1);
    let first = pool.children()[0];
    let fdpool = children(first)[0];
    kill(fdpool, Signal::SIGTERM).unwrap();
    until_gone(fdpool);
}
