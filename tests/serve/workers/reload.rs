//! HUP, the size of the pool, and how a new worker says that it is ready.

use super::*;

/// Expects that at no time fewer than `count` were there that are ready and were not asked to go.
#[track_caller]
fn assert_never_fewer(pool: &Workers, count: usize) {
    let notes = pool.notes();
    let mut there = BTreeSet::new();
    let mut reached = false;
    for (word, pid) in &notes {
        match word.as_str() {
            "ready" => there.insert(pid),
            "term" => there.remove(pid),
            _ => false,
        };
        reached |= there.len() >= count;
        assert!(!reached || there.len() >= count, "{notes:?}");
    }
    assert!(reached, "{notes:?}");
}

#[test]
fn a_reload_replaces_every_worker_and_none_before_a_new_one_is_ready() {
    for count in [1, 3] {
        let (mut pool, mut old) = ready_workers(count);
        for round in 1..=3 {
            pool.signal(Signal::SIGHUP);
            let line = pool.line("reload: ");
            assert_eq!(line, format!("fdpool: reload: {count} workers to replace"));
            pool.line("reload: done");
            // Each once, and no new one.
            pool.until_noted("term", round * count);
            let new = pool.until_replaced(&old, count);
            assert_eq!(pool.noted("term").len(), round * count);
            old = new;
        }
        assert_never_fewer(&pool, count);
        pool.stop();
    }
}

#[test]
fn without_a_ready_descriptor_a_new_worker_has_started_when_it_lived_for_a_second() {
    let mut pool = Workers::of_command(&["-v"], 1, &["sleep", "100"]);
    pool.line("was started");
    let old = pool.worker();
    let start = Instant::now();
    pool.signal(Signal::SIGHUP);
    pool.line(&format!("end {old} status 15"));
    assert!(start.elapsed() >= Duration::from_secs(1));
    pool.until_other(old);
    pool.stop();
}

#[test]
fn with_a_ready_descriptor_a_new_worker_has_started_when_it_says_so_and_not_before() {
    let (mut pool, old) = gated_workers(1);
    pool.signal(Signal::SIGHUP);
    pool.until_workers(2);
    // That it lives for a second does not count.
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(pool.noted("term"), []);
    assert_eq!(pool.workers().len(), 2);
    pool.touch("gate");
    pool.line("reload: done");
    assert_eq!(pool.until_noted("term", 1), old);
    assert_never_fewer(&pool, 1);
    pool.stop();
}

/// Two old workers, and new ones that do `how`: the old ones stay, and `words` say why. When that
/// is mended, a further reload replaces them.
#[track_caller]
fn assert_reload_fails(options: &[&str], how: &str, words: &[&str]) {
    let text = match options {
        [] => format!(
            "if [ -e \"$DIR/broken\" ]; then {how}; fi; echo ready $$ >>\"$DIR/log\"; exec sleep 100"
        ),
        _ => ready_after(&format!(
            "if [ -e \"$DIR/broken\" ]; then trap - TERM; {how}; fi"
        )),
    };
    let mut pool = Workers::start(options, 2, &text);
    let old = pool.until_noted("ready", 2);
    pool.touch("broken");
    pool.signal(Signal::SIGHUP);
    let line = pool.line("the old workers stay");
    let said = |word: &&&str| line.contains(**word);
    assert!(line.starts_with("fdpool: reload: worker "), "{line}");
    assert!(words.iter().find(said).is_some(), "{line}");
    until("the end of the new one", || pool.workers() == old);
    assert_eq!(pool.noted("term"), []);
    // It does not go on by itself.
    assert!(!pool.log().contains("reload: done"));
    pool.remove("broken");
    // It takes two seconds without.
    if !options.is_empty() {
        pool.reload();
        pool.until_replaced(&old, 2);
    }
    pool.stop();
}

/// Which of the two is seen first, its end or that of its pipe, is chance.
const UNREADY: [&str; 2] = ["does not say that it is ready", "before it had started"];

#[test]
fn a_new_worker_that_dies_within_a_second_keeps_the_old_ones() {
    let words = ["ended with status 7 before it had started"];
    assert_reload_fails(&[], "exit 7", &words);
    let words = ["was ended by signal 9 before it had started"];
    assert_reload_fails(&[], "kill -KILL $$", &words);
}

#[test]
fn a_new_worker_that_dies_before_it_is_ready_keeps_the_old_ones() {
    assert_reload_fails(&["--ready-fd", "3"], "exit 7", &UNREADY);
    assert_reload_fails(&["--ready-fd", "3"], "printf junk >&3; exit 7", &UNREADY);
}

#[test]
fn a_new_worker_that_closes_its_ready_descriptor_without_a_newline_keeps_the_old_ones() {
    for how in ["exec 3>&-", "printf junk >&3; exec 3>&-"] {
        let how = format!("{how}; sleep 100");
        assert_reload_fails(&["--ready-fd", "3"], &how, &UNREADY[..1]);
    }
}

#[test]
fn a_worker_is_ready_when_the_newline_comes_whatever_came_before() {
    let first = "printf 'not yet' >&3; sleep 0.1; printf ', but' >&3; sleep 0.1";
    let mut pool = Workers::start(&["-v", "--ready-fd", "3"], 1, &ready_after(first));
    pool.line("is ready");
    let old = pool.worker();
    pool.reload();
    pool.until_other(old);
    assert_never_fewer(&pool, 1);
    pool.stop();
}

#[test]
fn a_new_worker_that_never_is_ready_leaves_the_old_ones_until_the_next_reload() {
    let first = "if [ -e \"$DIR/broken\" ]; then trap - TERM; printf junk >&3; sleep 100; fi";
    let mut pool = Workers::start(&["--ready-fd", "3"], 2, &ready_after(first));
    let old = pool.until_noted("ready", 2);
    pool.touch("broken");
    pool.signal(Signal::SIGHUP);
    pool.until_workers(3);
    let stuck = *pool.workers().difference(&old).next().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert!(pool.workers().is_superset(&old));
    assert_eq!(pool.noted("term"), []);
    pool.remove("broken");
    pool.reload();
    until_gone(stuck);
    pool.until_replaced(&old, 2);
    assert_never_fewer(&pool, 2);
    pool.stop();
}

/// A worker that does `how` instead of becoming ready if there is a file `broken`.
fn ready_unless_broken(how: &str) -> String {
    ready_after(&format!("if [ -e \"$DIR/broken\" ]; then {how}; fi"))
}

/// The options of a pool whose workers have half a second to become ready.
const HALF: [&str; 6] = [
    "--ready-fd",
    "3",
    "--ready-timeout",
    "0.5",
    "--grace",
    "0.2",
];

/// Expects that a new worker that does `how`, and never says that it is ready, is ended by `signal`.
#[track_caller]
fn assert_late_one_is_ended(how: &str, signal: Signal) {
    let options = [&HALF[..], &["-v"]].concat();
    let mut pool = Workers::start(&options, 2, &ready_unless_broken(how));
    let old = pool.until_noted("ready", 2);
    pool.touch("broken");
    let start = Instant::now();
    pool.signal(Signal::SIGHUP);
    let line = pool.line("stay");
    assert!(start.elapsed() >= Duration::from_millis(500));
    let late = line.split(' ').nth(3).unwrap();
    let expected =
        format!("fdpool: reload: worker {late} was not ready within 0.5 s; the old workers stay");
    assert_eq!(line, expected);
    pool.line(&format!("end {late} status {}", signal as i32));
    until("the old ones alone", || pool.workers() == old);
    assert_eq!(pool.noted("term"), []);
    pool.remove("broken");
    pool.reload();
    pool.until_replaced(&old, 2);
    pool.stop();
}

cases! {
    assert_late_one_is_ended;
    a_new_worker_that_is_not_ready_in_time_is_ended_and_the_old_ones_stay:
        "trap - TERM; exec sleep 100", Signal::SIGTERM;
    a_new_worker_that_is_not_ready_in_time_and_ignores_term_is_killed:
        "trap '' TERM; exec sleep 100", Signal::SIGKILL;
}

#[test]
fn the_successor_of_a_dead_worker_that_is_not_ready_in_time_is_ended_and_tried_again() {
    let text = ready_unless_broken("trap - TERM; exec sleep 100");
    let mut pool = Workers::start(&HALF, 2, &text);
    let old = pool.until_noted("ready", 2);
    pool.touch("broken");
    kill(*old.first().unwrap(), Signal::SIGKILL).unwrap();
    pool.line("was ended by signal 9");
    // The dead one may have lived for a second, or not.
    let line = pool.line("was not ready within 0.5 s, and is ended; the next one is started in ");
    let first = line.rsplit(' ').nth(1).unwrap().parse::<f64>().unwrap();
    let next = format!("and is ended; the next one is started in {} s", first * 2.0);
    pool.line(&next);
    assert!(is_alive(*old.last().unwrap()));
    pool.remove("broken");
    pool.until_noted("ready", 3);
    pool.until_workers(2);
    pool.stop();
}

#[test]
fn a_worker_that_said_in_time_that_it_is_ready_stays() {
    // Time enough to become ready on a busy machine, too.
    let options = ["--ready-fd", "3", "--ready-timeout", "3"];
    let mut pool = Workers::start(&options, 1, &ready_after(":"));
    let old = pool.until_noted("ready", 1);
    // The time that passes is what this is about.
    std::thread::sleep(Duration::from_millis(3200));
    assert_eq!(pool.workers(), old);
    assert_eq!(pool.stop(), "");
}

#[test]
fn a_reload_in_a_reload_starts_it_over() {
    let (mut pool, _) = gated_workers(2);
    for _ in 0..3 {
        pool.signal(Signal::SIGHUP);
        pool.line("reload: 2 workers to replace");
        pool.line("was started");
    }
    pool.touch("gate");
    pool.line("reload: done");
    pool.until_workers(2);
    // All that are there came after the last signal.
    let log = pool.log();
    let (before, after) = log.rsplit_once("to replace").unwrap();
    for worker in pool.workers() {
        let started = format!("worker {worker} was started");
        assert!(
            !before.contains(&started) && after.contains(&started),
            "{log}"
        );
    }
    assert_eq!(log.matches("reload: done").count(), 1, "{log}");
    assert_never_fewer(&pool, 2);
    pool.stop();
}

#[test]
fn many_reloads_at_once_end_with_new_workers() {
    let (mut pool, old) = ready_workers(2);
    let mut random = Random(4);
    for _ in 0..20 {
        pool.signal(Signal::SIGHUP);
        random.pause(20_000);
    }
    pool.reload();
    pool.until_replaced(&old, 2);
    pool.until_noted("ready", 4);
    assert_never_fewer(&pool, 2);
    pool.stop();
}

#[test]
fn reloads_that_come_faster_than_workers_end_start_no_more_than_a_few() {
    let text = "trap '' TERM; while :; do sleep 1; done";
    let mut pool = Workers::start(&["--grace", "100000"], 2, text);
    pool.until_workers(2);
    let mut most = 0;
    for _ in 0..500 {
        pool.signal(Signal::SIGHUP);
        pool.line("to replace");
        most = most.max(pool.workers().len());
    }
    // For each place 4 leaving workers; the 2 that stay; a candidate.
    assert!((3..=8 + 2 + 1).contains(&most), "{most} workers");
    pool.term();
    pool.signal(Signal::SIGINT);
    pool.expect_end(0);
}

#[test]
fn a_worker_of_another_user_that_cannot_be_ended_is_given_up() {
    needs!(root());
    let setpriv = needs!(peer("setpriv"));
    let dir = open_dir();
    copy_of("fdpool", dir.path());
    // The pool may become somebody else, but not signal them.
    let capabilities = "-all,+setuid,+setgid";
    let mut command = Command::new(&setpriv);
    command.args(["--reuid=65533", "--regid=65533", "--clear-groups"]);
    command.args(["--inh-caps", capabilities, "--ambient-caps", capabilities]);
    let options = "--grace 0.1 --queue-fd 0 --worker 1 --";
    command.arg("./fdpool").args(options.split(' '));
    command
        .arg(&setpriv)
        .args("--reuid=65532 sleep 1000".split(' '));
    let queue = Queue::new();
    let mut pool = Pool::of(command.current_dir(&dir).stdin(queue.input()));
    let is_another = |pid: &Pid| status_field(*pid, "Uid").starts_with("65532");
    let worker = eventually("the worker", || {
        pool.children().into_iter().find(is_another)
    });
    pool.term();
    pool.line(&format!(
        "worker {worker} cannot be ended, and is left alone"
    ));
    pool.expect_exit(0);
    kill(worker, Signal::SIGKILL).unwrap();
}

#[test]
fn a_reload_starts_a_worker_whose_place_waits_and_its_delay_begins_anew() {
    let mut pool = Workers::start(&[], 1, "exit 1");
    pool.line("in 0.8 s");
    pool.signal(Signal::SIGHUP);
    pool.line("reload: 0 workers to replace");
    assert!(pool.line("the next one").ends_with("in 0.1 s"));
    pool.stop();
}

#[test]
fn a_reload_replaces_those_that_are_there_while_one_fails() {
    // Only who has the place is well; a new one takes it over.
    let first = "if [ -e \"$DIR/full\" ]; then exit 1; fi";
    let mut pool = Workers::start(&["--ready-fd", "3"], 2, &ready_after(first));
    let both = pool.until_noted("ready", 2);
    pool.touch("full");
    let gone = *both.first().unwrap();
    kill(gone, Signal::SIGKILL).unwrap();
    pool.line("in 0.2 s");
    pool.remove("full");
    pool.reload();
    pool.until_replaced(&both, 2);
    pool.until_noted("term", 1);
    assert_eq!(pool.noted("term"), [*both.last().unwrap()]);
    pool.stop();
}

#[test]
fn an_old_worker_that_ignores_term_is_killed_after_the_grace_with_its_group() {
    // A worker that ignores TERM, as its child does; then a worker that dies and leaves such a child.
    for (end, status) in [("trap '' TERM", 9), ("trap - TERM", 15)] {
        let text = format!("{STUBBORN} & {end}; echo >&3; exec 3>&-; exec sleep 100");
        let mut pool = Workers::start(&["-v", "--grace", "0.2", "--ready-fd", "3"], 1, &text);
        pool.line("is ready");
        let old = pool.worker();
        let child = *pool.until_noted("child", 1).first().unwrap();
        let start = Instant::now();
        pool.reload();
        pool.line(&format!("end {old} status {status}"));
        until_gone(child);
        assert!(start.elapsed() >= Duration::from_millis(200));
        pool.until_other(old);
        let log = pool.stop();
        let killed = format!("worker {old} did not end within 0.2 s, and is killed");
        assert_eq!(log.contains(&killed), status == 9, "{log}");
    }
}

#[test]
fn old_workers_that_are_stopped_go_too() {
    let options = ["--grace", "100000", "--ready-fd", "3"];
    let mut pool = Workers::start(&options, 2, &ready_after(":"));
    let old = pool.until_noted("ready", 2);
    for worker in &old {
        kill(*worker, Signal::SIGSTOP).unwrap();
        until_stopped(*worker);
    }
    pool.reload();
    until("the new ones", || pool.workers().is_disjoint(&old));
    assert_eq!(pool.until_noted("term", 2), old);
    pool.stop();
}

#[test]
fn old_workers_finish_what_they_have_in_hand_several_generations_at_once() {
    let worker = needs!(gentle());
    let mut pool = Workers::of_command(&["--ready-fd", "3"], 1, &worker);
    let mut clients = Vec::new();
    for round in 1..=4 {
        let client = pool.client();
        client.expect_served();
        clients.push(client);
        assert_eq!(pool.workers().len(), round);
        pool.reload();
    }
    for client in clients {
        client.expect_served();
        let before = pool.workers().len();
        client.finish();
        pool.until_workers(before - 1);
    }
    pool.client().expect_served();
    pool.stop();
}

#[test]
fn a_reload_before_there_is_a_queue_does_no_harm() {
    let names = Names::new();
    let name = &names.path();
    let mut pool = Pool::on(name).workers(2, sh_c(LOOP)).start();
    pool.line("waiting");
    pool.signal(Signal::SIGHUP);
    pool.line("reload: 0 workers to replace");
    let mut acceptor = Fdaccept::bound_at(name).start();
    assert_two_serve(acceptor.port);
    pool.stop();
    acceptor.stop();
}

#[test]
fn a_hangup_that_was_ignored_when_the_pool_started_reloads_all_the_same() {
    let text = "trap '' HUP; exec fdpool --ready-fd 3 1 --worker -- sh -c \"$0\"";
    let mut pool = Workers::of(sh(text).arg(ready_after(":")));
    let old = pool.until_noted("ready", 1);
    pool.reload();
    pool.until_replaced(&old, 1);
    pool.stop();
}

#[test]
fn without_workers_a_hangup_ends_the_pool() {
    let queue = Queue::new();
    let mut pool = Pool::on(&queue).slots(1, ["cat"]).full();
    pool.signal(Signal::SIGHUP);
    pool.expect_killed_by(Signal::SIGHUP);
}

/// Does `chaos` to a pool whose clients each want their own bytes back.
fn chaos_under_load(
    options: &[&str],
    size: usize,
    worker: &[String],
    chaos: impl FnOnce(&mut Pool),
) {
    let mut acceptor = Fdaccept::bound().start();
    let pool = Pool::on(&acceptor).args(options);
    let mut pool = pool.workers(size, worker).start();
    under_load(acceptor.port, 0, |tally| {
        tally.wait();
        chaos(&mut pool);
        tally.wait();
    });
    pool.stop();
    acceptor.stop();
}

fn reload_under_load(worker: Option<Vec<String>>) {
    chaos_under_load(&[], 1, &needs!(worker), |pool| {
        let old = pool.workers();
        pool.signal(Signal::SIGHUP);
        pool.line("reload: done");
        until("new workers", || {
            let new = pool.workers();
            new.len() == 1 && new.is_disjoint(&old)
        });
    });
}

cases! {
    reload_under_load;
    a_reload_of_the_example_in_rust_loses_no_connection: rust_example();
    a_reload_of_the_example_in_python_loses_no_connection: python_example();
}

/// Many reloads one after another, and others that are broken off by the next one, amid changes
/// of the size. A shell says that the worker is ready, so that they take no time.
fn many_reloads_under_load(worker: Option<Vec<String>>) {
    let text = "echo >&3; exec \"$@\" 3>&-";
    let command = ["sh", "-c", text, "sh"].map(str::to_owned);
    let command = [&command[..], &needs!(worker)].concat();
    chaos_under_load(&["--ready-fd", "3"], 2, &command, |pool| {
        let mut random = Random(5);
        for round in 0..12 {
            pool.signal(Signal::SIGHUP);
            random.pause(10_000);
            pool.signal(match round % 2 {
                0 => Signal::SIGTTIN,
                _ => Signal::SIGTTOU,
            });
            if round % 3 == 0 {
                pool.line("reload: done");
            }
        }
        pool.line("reload: done");
    });
}

cases! {
    many_reloads_under_load;
    many_reloads_of_the_example_in_rust_lose_no_connection: rust_example();
    many_reloads_of_the_example_in_python_lose_no_connection: python_example();
}

// Size.

#[test]
fn ttin_and_usr1_make_one_worker_more_and_ttou_one_less_but_never_none() {
    let mut pool = Workers::start(&["-v", "--ready-fd", "3"], 1, &ready_after(":"));
    pool.until_noted("ready", 1);
    for (count, signal) in [(2, Signal::SIGTTIN), (3, Signal::SIGUSR1)] {
        pool.signal(signal);
        let line = pool.line("status: ");
        assert_eq!(line, format!("fdpool: status: {count} workers"));
        pool.until_noted("ready", count);
    }
    for (terms, count) in [(1, 2), (2, 1), (2, 1), (2, 1)] {
        pool.signal(Signal::SIGTTOU);
        let line = pool.line("status: ");
        assert_eq!(line, format!("fdpool: status: {count} workers"));
        pool.until_noted("term", terms);
        pool.until_workers(count);
    }
    pool.signal(Signal::SIGTTIN);
    pool.until_noted("ready", 4);
    assert_eq!(pool.noted("term").len(), 2);
    pool.stop();
}

#[test]
fn a_worker_that_is_too_many_finishes_what_it_has_in_hand() {
    let worker = needs!(gentle());
    let mut pool = Workers::of_command(&["-v", "--ready-fd", "3"], 2, &worker);
    let clients = [pool.client(), pool.client()];
    clients.iter().for_each(Client::expect_served);
    pool.signal(Signal::SIGTTOU);
    pool.line("status: 1 workers");
    clients.iter().for_each(Client::expect_served);
    assert_eq!(pool.workers().len(), 2);
    drop(clients);
    pool.until_workers(1);
    pool.client().expect_served();
    pool.stop();
}

#[test]
fn a_place_that_waits_is_the_first_to_be_taken_away() {
    let first = "mkdir \"$DIR/first\" 2>/dev/null || [ -e \"$DIR/mended\" ] || exit 1";
    let mut pool = Workers::start(&["-v", "--ready-fd", "3"], 2, &ready_after(first));
    let well = pool.until_noted("ready", 1);
    pool.line("in 0.8 s");
    pool.signal(Signal::SIGTTOU);
    pool.line("status: 1 workers");
    pool.touch("mended");
    pool.signal(Signal::SIGHUP);
    pool.line("reload: 1 workers to replace");
    pool.line("reload: done");
    assert_eq!(pool.until_noted("term", 1), well);
    pool.until_workers(1);
    assert_eq!(pool.noted("ready").len(), 2);
    pool.stop();
}

#[test]
fn the_size_can_be_changed_in_a_reload_and_stays() {
    for (signals, count) in [
        (&[Signal::SIGTTIN][..], 3),
        (&[Signal::SIGUSR1], 3),
        (&[Signal::SIGTTOU], 1),
        (&[Signal::SIGTTOU, Signal::SIGTTIN, Signal::SIGUSR1], 3),
    ] {
        let (mut pool, old) = gated_workers(2);
        pool.signal(Signal::SIGHUP);
        pool.until_workers(3);
        for signal in signals {
            pool.signal(*signal);
            pool.line("status: ");
        }
        // The first new one still waits. What is there is as many as wanted, besides it.
        pool.until_workers(count + 1);
        pool.touch("gate");
        pool.line("reload: done");
        let before = pool.until_replaced(&old, count);
        pool.until_noted("ready", old.len() + count);
        pool.reload();
        pool.until_replaced(&before, count);
        assert_never_fewer(&pool, 1);
        pool.stop();
    }
}

// The ready descriptor.

#[test]
fn any_descriptor_can_be_the_ready_one() {
    for number in (3..=16).chain([64, 200]) {
        let number = number.to_string();
        let text = format!("echo >/proc/self/fd/{number}; exec sleep 100");
        let mut pool = Workers::start(&["-v", "--ready-fd", &number], 2, &text);
        pool.line("is ready");
        pool.line("is ready");
        for worker in pool.workers() {
            let expected = [0, 1, 2, number.parse().unwrap()];
            // What else is open, it opens itself while it starts.
            let open = eventually("the worker", || {
                let open = descriptors(worker);
                let numbers = open.iter().map(|(number, _)| *number);
                numbers.eq(expected).then_some(open)
            });
            assert!(open[0].1.starts_with("socket:"), "{open:?}");
            assert!(open[3].1.starts_with("pipe:"), "{open:?}");
        }
        pool.stop();
    }
}

#[test]
fn the_ready_descriptor_can_have_the_number_of_the_queue() {
    let text =
        "exec fdpool -v --queue-fd 5 --ready-fd 5 1 --worker -- sh -c \"$0\" 5<&0 </dev/null";
    let worker = format!("echo >&5; exec 5>&-; {LOOP}");
    let mut pool = Workers::of(sh(text).arg(worker));
    pool.line("is ready");
    pool.client().expect_served();
    pool.stop();
}

#[test]
fn a_command_that_vanishes_is_noticed_whatever_the_ready_descriptor_is() {
    let mut pools: Vec<_> = (3..=12)
        .map(|number| {
            let text = format!("#!/bin/sh\necho >/proc/self/fd/{number}\nexec sleep 100\n");
            pool_of_a_file(&["--ready-fd", &number.to_string()], &text)
        })
        .collect();
    for (pool, file) in &mut pools {
        pool.line("is ready");
        let worker = pool.worker();
        std::fs::rename(file, pool.file("away")).unwrap();
        kill(worker, Signal::SIGKILL).unwrap();
    }
    for (pool, file) in &mut pools {
        pool.line("No such file or directory; next try in 0.2 s");
        std::fs::rename(pool.file("away"), file).unwrap();
    }
    for (pool, _) in &mut pools {
        pool.line("is ready");
        pool.stop();
    }
}

#[test]
fn a_worker_that_closes_its_ready_descriptor_without_a_newline_serves_all_the_same() {
    let text = format!("exec 3>&-; {LOOP}");
    let mut pool = Workers::start(&["--ready-fd", "3"], 1, &text);
    let line = pool.line("ready descriptor");
    let worker = pool.worker();
    let expected = format!("fdpool: worker {worker} closed its ready descriptor without a newline");
    assert_eq!(line, expected);
    pool.client().expect_served();
    assert_eq!(pool.worker(), worker);
    pool.stop();
}
