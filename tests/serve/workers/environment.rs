//! What a worker finds when it starts, what is logged of it, and wrong usage.

use super::*;

/// A pool of one worker that is `sleep`, started by a shell that does `first`; and that worker.
fn sleeper(first: &str) -> (Workers, Pid) {
    let text = format!("{first}\nexec fdpool 1 --worker -- sleep 100");
    let pool = Workers::of(&mut sh(&text));
    let worker = pool.worker();
    until_named(worker, "sleep");
    (pool, worker)
}

#[test]
fn a_worker_finds_the_queue_and_the_standard_streams_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("output");
    let text = "exec fdpool 2 --worker -- sleep 100 4</dev/null 7</dev/null 9>/dev/null";
    let blocking = |fd: &OwnedFd| {
        let flags = fcntl(fd, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
        !flags.unwrap().contains(OFlag::O_NONBLOCK)
    };
    let mut pool = Workers::of(sh(text).stdout(File::create(&output).unwrap()));
    pool.until_workers(2);
    let inode = fstat(&pool.queue.read_end).unwrap().st_ino;
    let stderr = descriptors(pool.pid())[2].1.clone();
    let expected = [
        (0, format!("socket:[{inode}]")),
        (1, output.to_str().unwrap().to_owned()),
        (2, stderr),
    ];
    for worker in pool.workers() {
        until("the worker", || descriptors(worker) == expected);
    }
    assert!(blocking(&pool.queue.read_end));
    pool.stop();
}

#[test]
fn a_worker_finds_every_signal_at_its_default_and_none_blocked() {
    let started = std::thread::spawn(|| {
        // For this thread, and what it starts.
        SigSet::all().thread_block().unwrap();
        let ignored = "trap '' HUP INT QUIT PIPE ALRM USR1 USR2 CHLD TSTP TTIN TTOU WINCH";
        sleeper(ignored)
    });
    let (mut pool, worker) = started.join().unwrap();
    assert_eq!(ignored(worker), 0);
    for field in ["SigBlk", "SigCgt", "SigPnd", "ShdPnd"] {
        assert_eq!(status_field(worker, field), "0000000000000000", "{field}");
    }
    pool.stop();
}

#[test]
fn a_worker_finds_the_environment_without_what_speaks_of_a_connection_or_of_the_pool() {
    let ours = "export KEPT=word REMOTE_USER=kept";
    let not_ours = "export PROTO=TCP TCPREMOTEIP=1.2.3.4 TCPREMOTEPORT=5 TCPLOCALIP=1.2.3.4 \
        TCPLOCALPORT=5 IPCREMOTEEUID=1 IPCREMOTEEGID=1 IPCREMOTEPID=1 IPCREMOTEPATH=x \
        IPCLOCALPATH=x REMOTE_ADDR=1.2.3.4 REMOTE_PORT=5 TCPCONNNUM=1";
    let others = OF_A_SERVICE_MANAGER.iter().chain(&OF_OTHER_SERVERS);
    let others: String = others.map(|name| format!(" {name}=1")).collect();
    let not_ours = format!("{not_ours}{others}");
    let (mut pool, worker) = sleeper(&format!("{ours}\n{not_ours}"));
    let mut expected = environ(pool.pid());
    let (words, count) = (not_ours.split(' ').skip(1), expected.len());
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    expected.retain(|entry| !words.contains(&entry.as_str()));
    assert_eq!(expected.len(), count - words.len());
    assert!(expected.contains(&"KEPT=word".to_owned()));
    assert_eq!(environ(worker), expected);
    pool.stop();
}

#[test]
fn a_worker_leads_a_group_of_its_own_and_inherits_the_rest() {
    let (mut pool, worker) = sleeper("cd /; umask 027; ulimit -n 77; ulimit -c 0");
    let parent = pool.pid();
    assert_eq!(getpgid(Some(worker)), Ok(worker));
    assert_eq!(getsid(Some(worker)), getsid(Some(parent)));
    assert_eq!(status_field(worker, "PPid"), parent.to_string());
    assert_eq!(status_field(worker, "Umask"), "0027");
    let read = |pid: Pid, name| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    let limits = read(worker, "limits");
    assert_eq!(limits, read(parent, "limits"));
    let has_77 = |line: &str| line.starts_with("Max open files            77 ");
    assert!(limits.lines().any(has_77), "{limits}");
    let folder = std::fs::read_link(format!("/proc/{worker}/cwd")).unwrap();
    assert_eq!(folder, Path::new("/"));
    pool.stop();
}

// The log.

#[test]
fn verbose_tells_of_each_worker() {
    let mut pool = Workers::start(
        &["-v", "--ready-fd", "3"],
        1,
        &ready_after("trap 'exit 3' TERM"),
    );
    pool.line("is ready");
    let (one, two) = (pool.worker(), {
        pool.signal(Signal::SIGHUP);
        pool.line("is ready");
        pool.line("end ");
        pool.worker()
    });
    let log = pool.stop();
    let mut lines: Vec<_> = log.lines().collect();
    // An old one may have ended before the reload is said to be done.
    let expected = [
        format!("fdpool: worker {one} was started"),
        format!("fdpool: worker {one} is ready"),
        "fdpool: reload: 1 workers to replace".to_owned(),
        format!("fdpool: worker {two} was started"),
        format!("fdpool: worker {two} is ready"),
        "fdpool: reload: done".to_owned(),
        format!("fdpool: end {one} status 768"),
        format!("fdpool: end {two} status 768"),
    ];
    lines[5..7].sort_unstable_by_key(|line| !line.contains("reload"));
    assert_eq!(lines, expected);
}

#[test]
fn a_handler_that_is_run_as_a_worker_is_told_once_what_it_gets() {
    let mut pool = Workers::of_command(&[], 2, ["cat"]);
    let expected = "fdpool: cat gets the queue, not a connection: did you mean fdpool N -- cat, \
        without --worker?";
    assert_eq!(pool.line("gets the queue"), expected);
    let log = pool.stop();
    assert_eq!(log.matches("gets the queue").count(), 1, "{log}");
}

#[test]
fn workers_of_any_kind_are_not_told_what_they_know() {
    let start = |worker: &Vec<String>| Workers::of_command(&[], 1, worker);
    let mut pools: Vec<_> = kinds().iter().map(start).collect();
    let oldest = pools.iter().map(|pool| pool.worker()).collect::<Vec<_>>();
    // The first worker is examined when it has lived for a second.
    std::thread::sleep(Duration::from_millis(1500));
    for (pool, worker) in pools.iter_mut().zip(oldest) {
        assert_eq!((pool.worker(), pool.log().as_str()), (worker, ""));
    }
}

#[test]
fn a_queue_that_ends_before_its_workers_are_a_second_old_leaves_the_pool_idle() {
    let text = "if mkdir \"$DIR/first\" 2>/dev/null; then exec sleep 100; fi; exec fdrecv -- cat";
    let mut pool = Workers::start(&[], 2, text);
    pool.until_workers(2);
    pool.queue.close();
    pool.until_workers(1);
    // The first second is not over yet when the first look begins.
    (0..2).for_each(|_| is_idle(pool.pid()));
}

#[test]
fn quiet_tells_of_no_restart_and_no_reload() {
    let mut pool = Workers::start(&["-q", "--ready-fd", "3"], 1, &ready_after(":"));
    pool.until_noted("ready", 1);
    kill(pool.worker(), Signal::SIGKILL).unwrap();
    pool.until_noted("ready", 2);
    pool.signal(Signal::SIGHUP);
    pool.until_noted("ready", 3);
    pool.until_noted("term", 1);
    pool.until_workers(1);
    assert_eq!(pool.stop(), "");
}

// Usage.

#[test]
fn what_makes_no_sense_with_workers_is_a_wrong_usage() {
    let cases: [(&[&str], &str); 15] = [
        (&["--worker", "--timeout", "1", "1"], "--timeout"),
        (&["--ready-fd", "3", "1"], "--worker"),
        (&["--worker", "--ready-timeout", "5", "1"], "--ready-fd"),
        (&["--ready-timeout", "5", "1"], "--ready-fd"),
        (
            &["--worker", "--ready-fd", "3", "--ready-timeout", "0", "1"],
            "must be more than 0",
        ),
        (&["--worker", "--ready-fd", "0", "1"], "must be 3 or more"),
        (&["--worker", "--ready-fd", "1", "1"], "must be 3 or more"),
        (&["--worker", "--ready-fd", "2", "1"], "must be 3 or more"),
        (
            &["--worker", "--ready-fd", "x", "1"],
            "not the number of a descriptor",
        ),
        (
            &["--worker", "--ready-fd", "+3", "1"],
            "not the number of a descriptor",
        ),
        (
            &["--worker", "--ready-fd", "99999999", "1"],
            "99999999 is beyond the limit",
        ),
        (
            &["--worker", "--bind", "@name", "1"],
            "--worker needs a path for --bind",
        ),
        (&["--worker", "--once", "1"], "--connect"),
        (&["--worker", "0"], "not a number from 1 to 65536"),
        (
            &["--worker", "1", "--bind", "a", "--connect", "b"],
            "cannot be used with",
        ),
    ];
    for (arguments, problem) in cases {
        let (status, _, log) = run(program("fdpool").args(arguments).args(["--", "cat"]));
        assert_eq!(status, Some(2), "{arguments:?}: {log}");
        assert!(log.lines().next().unwrap().contains(problem), "{log}");
    }
}

#[test]
fn workers_need_a_command() {
    let (status, _, log) = run(program("fdpool").args(["--worker", "1"]));
    assert_eq!(status, Some(2));
    assert!(log.contains("COMMAND"), "{log}");
}
