//! Workers that end, and commands that vanish.

use super::*;

#[test]
fn a_worker_that_lived_for_a_second_is_replaced_at_once_and_the_others_go_on() {
    // The third one and all that follow end too soon.
    let text = "mkdir \"$DIR/1\" || mkdir \"$DIR/2\" || { echo end $$ >>\"$DIR/log\"; exit 4; }\n\
        echo ready $$ >>\"$DIR/log\"; exec sleep 100";
    let mut pool = Workers::start(&[], 2, &format!("exec 2>/dev/null; {text}"));
    let both = pool.until_noted("ready", 2);
    std::thread::sleep(Duration::from_millis(1000));
    let (first, other) = (*both.first().unwrap(), *both.last().unwrap());
    kill(first, Signal::SIGKILL).unwrap();
    let line = pool.line("the next one");
    let expected =
        format!("fdpool: worker {first} was ended by signal 9; the next one is started at once");
    assert_eq!(line, expected);
    for (count, delay) in [(1, "0.1"), (2, "0.2")] {
        pool.until_noted("end", count);
        let worker = pool.noted("end")[count - 1];
        let expected = format!(
            "fdpool: worker {worker} ended with status 4; the next one is started in {delay} s"
        );
        assert_eq!(pool.line("the next one"), expected);
    }
    assert!(is_alive(other));
    pool.stop();
}

#[test]
fn after_a_worker_that_ended_too_soon_there_is_a_delay_that_doubles() {
    let start = Instant::now();
    let mut pool = Workers::start(&[], 1, "echo start $$ >>\"$DIR/log\"; exit 3");
    pool.line("in 0.8 s");
    assert!(start.elapsed() >= Duration::from_millis(100 + 200 + 400));
    let workers = pool.noted("start");
    let expected: Vec<_> = std::iter::zip(&workers, ["0.1", "0.2", "0.4", "0.8"])
        .map(|(pid, delay)| {
            format!(
                "fdpool: worker {pid} ended with status 3; the next one is started in {delay} s"
            )
        })
        .collect();
    // One more may have ended by now.
    let log = pool.stop();
    assert_eq!(log.lines().take(4).collect::<Vec<_>>(), expected);
}

#[test]
fn a_worker_that_dies_before_it_is_ready_has_one_line_in_the_log() {
    let text = "echo start $$ >>\"$DIR/log\"; exit 3";
    let mut pool = Workers::start(&["--ready-fd", "3"], 4, text);
    pool.line("in 0.4 s");
    let log = pool.stop();
    let foreign = log.lines().find(|line| !line.contains("the next one"));
    assert_eq!(foreign, None);
}

#[test]
fn a_worker_that_fails_again_and_again_leaves_the_work_to_the_others() {
    let text = format!("mkdir \"$DIR/taken\" 2>/dev/null || exit 1; {LOOP}");
    let mut pool = Workers::start(&[], 3, &text);
    let client = pool.client();
    client.expect_served();
    pool.line("in 0.2 s");
    pool.line("in 0.2 s");
    client.expect_served();
    drop(client);
    pool.client().expect_served();
    pool.stop();
}

#[test]
fn what_a_worker_does_not_receive_stays_in_the_queue_whatever_happens_to_it() {
    let text = format!(
        "echo start $$ >>\"$DIR/log\"; while [ ! -e \"$DIR/go\" ]; do sleep 0.05; done; {LOOP}"
    );
    let mut pool = Workers::start(&[], 1, &text);
    let clients: Vec<_> = (0..5).map(|_| pool.client()).collect();
    for (round, signal) in [Signal::SIGKILL, Signal::SIGTERM].into_iter().enumerate() {
        pool.until_noted("start", round + 1);
        kill(pool.worker(), signal).unwrap();
        pool.line("the next one");
    }
    clients.iter().for_each(Client::expect_waiting);
    pool.touch("go");
    clients
        .into_iter()
        .for_each(|client| client.expect_served());
    pool.stop();
}

#[test]
fn stopped_workers_leave_connections_to_the_others() {
    let mut pool = Workers::start(&[], 3, LOOP);
    pool.until_workers(3);
    for worker in pool.workers().into_iter().skip(1) {
        let waits = || {
            children(worker)
                .first()
                .is_some_and(|c| state(*c) == Some('S'))
        };
        until("it to wait", waits);
        killpg(worker, Signal::SIGSTOP).unwrap();
        until("it to stop", || {
            let fdrecv = children(worker).first().copied();
            state(worker) == Some('T') && fdrecv.is_none_or(|pid| state(pid) == Some('T'))
        });
        let expected = format!("fdpool: worker {worker} is stopped by SIGSTOP");
        assert_eq!(pool.line("stopped"), expected);
    }
    for _ in 0..10 {
        pool.client().expect_served();
    }
    // Nor do they hold up the end.
    assert_eq!(pool.stop().lines().count(), 2);
}

#[test]
fn what_a_worker_left_behind_may_finish() {
    let mut pool = Workers::start(&[], 1, LOOP);
    let client = pool.client();
    client.expect_served();
    let first = pool.worker();
    kill(first, Signal::SIGKILL).unwrap();
    // Its child goes on with the connection, and the next worker with the queue.
    pool.client().expect_served();
    client.expect_served();
    pool.stop();
}

#[test]
fn a_child_that_a_worker_left_behind_gets_term_after_the_grace_and_kill_5_seconds_later() {
    let text = "if mkdir \"$DIR/first\"; then \
        (trap 'echo term 0 >>\"$DIR/log\"' TERM; while :; do sleep 0.05; done) & \
        echo child $! >>\"$DIR/log\"; exit; fi 2>/dev/null; exec sleep 100";
    let start = Instant::now();
    let mut pool = Workers::start(&["--grace", "0.3"], 1, text);
    let child = *pool.until_noted("child", 1).first().unwrap();
    pool.until_noted("term", 1);
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert!(is_alive(child));
    until_gone(child);
    assert!(start.elapsed() >= Duration::from_millis(5300));
    pool.stop();
}

// Workers that end well.

#[test]
fn a_worker_that_ends_with_status_0_is_replaced_at_once_however_soon() {
    // With the delays of failures, the last one would wait for minutes.
    let mut pool = Workers::start(&[], 1, "exec fdrecv -- cat");
    for _ in 0..15 {
        pool.client().expect_echo("hello");
    }
    let log = pool.stop();
    assert!(!log.contains("the next one"), "{log}");
}

#[test]
fn a_worker_that_serves_some_connections_and_leaves_is_no_failure() {
    let text = "for i in 1 2 3; do fdrecv -- cat || exit 0; done";
    let mut pool = Workers::start(&[], 2, text);
    for _ in 0..30 {
        pool.client().expect_echo("hello");
    }
    let log = pool.stop();
    assert!(!log.contains("the next one"), "{log}");
}

#[test]
fn workers_that_end_at_once_with_status_0_are_started_at_a_limited_rate() {
    let mut pool = Workers::of_command(&["-v"], 4, ["true"]);
    let limited = "workers end with status 0 within a second; at most 100 a second are started";
    pool.line(limited);
    let before = pool.log().matches("was started").count();
    // The rate is what this is about.
    std::thread::sleep(Duration::from_secs(1));
    let log = pool.log();
    let started = log.matches("was started").count() - before;
    // 4 may have been due.
    assert!((1..=110).contains(&started), "{started}");
    assert_eq!(log.matches(limited).count(), 1, "{log}");
    pool.stop();
}

#[test]
fn a_worker_that_ends_with_status_0_before_it_is_ready_is_a_failure() {
    let mut pool = Workers::start(&["--ready-fd", "3"], 1, "exit 0");
    for delay in ["0.1", "0.2", "0.4"] {
        let line = pool.line("the next one");
        let expected = format!("ended with status 0; the next one is started in {delay} s");
        assert!(line.ends_with(&expected), "{line}");
    }
    pool.stop();
    let text = "echo >&3; exec 3>&-; exec fdrecv -- cat";
    let mut pool = Workers::start(&["--ready-fd", "3"], 1, text);
    for _ in 0..15 {
        pool.client().expect_echo("hello");
    }
    pool.stop();
}

// A command that vanishes.

#[test]
fn a_command_that_vanishes_while_the_pool_runs_is_tried_until_it_is_back() {
    // With a line for the kernel and without one.
    for start in ["#!/bin/sh\n", ""] {
        let (mut pool, file) = pool_of_a_file(&[], &format!("{start}{LOOP}\n"));
        pool.client().expect_served();
        let away = pool.file("away");
        std::fs::rename(&file, &away).unwrap();
        let worker = pool.worker();
        killpg(worker, Signal::SIGKILL).unwrap();
        // Who is killed while it waits for a connection may still get one.
        until("the end of its group", || killpg(worker, None).is_err());
        let client = pool.client();
        let line = pool.line("next try in 0.2 s");
        let expected = format!(
            "fdpool: cannot run {}: No such file or directory; next try in 0.2 s",
            file.display()
        );
        assert_eq!(line, expected);
        client.expect_waiting();
        std::fs::rename(&away, &file).unwrap();
        client.expect_served();
        pool.stop();
    }
}

#[test]
fn a_command_that_may_not_be_executed_any_more_is_tried_until_it_may() {
    use std::os::unix::fs::PermissionsExt;
    let (mut pool, file) = pool_of_a_file(&[], "#!/bin/sh\nexec sleep 100\n");
    let first = pool.worker();
    until_named(first, "sleep");
    let set_mode = |mode| std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
    set_mode(0o644);
    kill(first, Signal::SIGKILL).unwrap();
    pool.line("Permission denied; next try in 0.2 s");
    set_mode(0o755);
    pool.until_other(first);
    pool.stop();
}

#[test]
fn a_reload_whose_command_is_gone_keeps_the_old_workers() {
    let (mut pool, file) = pool_of_a_file(&[], "#!/bin/sh\nexec sleep 100\n");
    let first = pool.worker();
    until_named(first, "sleep");
    let away = pool.file("away");
    std::fs::rename(&file, &away).unwrap();
    pool.signal(Signal::SIGHUP);
    let line = pool.line("stay");
    let file_name = file.to_str().unwrap();
    let expected = format!(
        "fdpool: reload: cannot run {file_name}: No such file or directory; the old workers stay"
    );
    assert_eq!(line, expected);
    until("the old one alone", || pool.worker() == first);
    pool.stop();
}

#[test]
fn a_command_that_cannot_be_run_is_noticed_before_anything_is_taken_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    File::create(&plain).unwrap();
    for (worker, expected) in [("/no/such/worker", 127), (plain.to_str().unwrap(), 126)] {
        let queue = Queue::new();
        let write_end = queue.write_end();
        fdtools::queue::send(write_end, b"first", &[write_end.as_fd()]).unwrap();
        let mut command = program("fdpool");
        command.args(["1", "--worker", worker]);
        let (status, _, log) = run(command.stdin(queue.input()));
        assert_eq!(status, Some(expected), "{log}");
        let message = fdtools::queue::try_receive(&queue.read_end).unwrap();
        assert_eq!(message.payload, b"first");
    }
}
