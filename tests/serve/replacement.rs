//! Pools that come and go while clients are served: one takes over from another, several finish at
//! once, one is killed, one ends as nobody comes. And pools that other programs have taken
//! privileges from.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::*;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tempfile::TempDir;

// Who serves: all of them give back what they get.

/// Those who serve in a pool.
struct Crew {
    /// What makes them so, among the pool's options.
    option: Option<&'static str>,
    command: Vec<PathBuf>,
    /// How often to do what takes as long as their start.
    rounds: usize,
}

impl Crew {
    fn slots() -> Self {
        Self {
            option: None,
            command: vec!["cat".into()],
            rounds: 25,
        }
    }

    /// The example in Rust.
    fn rust() -> Option<Self> {
        Some(Self::workers(vec![rust_worker()?], 25))
    }

    /// The example in Python, which takes its time to start.
    fn python() -> Option<Self> {
        Some(Self::workers(python_worker()?.into(), 3))
    }

    /// A loop in the shell. On TERM it loses what it has in hand.
    fn shell() -> Self {
        let text = "while fdrecv -- cat; do :; done";
        Self::workers(vec!["sh".into(), "-c".into(), text.into()], 0)
    }

    fn workers(command: Vec<PathBuf>, rounds: usize) -> Self {
        Self {
            option: Some("--worker"),
            command,
            rounds,
        }
    }

    /// A pool of so many, which may take a moment until it serves.
    fn pool(&self, acceptor: &Acceptor, options: &[&str], size: usize) -> Pool {
        let pool = Pool::on(acceptor).args(options).args(self.option);
        let pool = pool.env(MARK, acceptor.name());
        pool.slots(size, &self.command).start()
    }

    /// The same, once all of them were started.
    fn full_pool(&self, acceptor: &Acceptor, size: usize) -> Pool {
        let pool = self.pool(acceptor, &[], size);
        pool.until_size(size);
        pool
    }
}

/// Tests for slots and for the workers of examples/.
macro_rules! for_every_crew {
    ($($test:ident: $function:ident;)*) => {$(
        mod $test {
            use super::*;

            #[test]
            fn slots() {
                $function(&Crew::slots());
            }

            #[test]
            fn rust_workers() {
                Crew::rust().iter().for_each($function);
            }

            #[test]
            fn python_workers() {
                Crew::python().iter().for_each($function);
            }
        }
    )*};
}

for_every_crew! {
    a_pool_that_is_replaced_under_load_loses_nothing: replace_under_load;
    several_generations_finish_at_once: let_generations_finish;
    when_a_pool_is_killed_its_connections_are_finished_and_a_new_one_serves: kill_beside_a_new_pool;
    what_waits_when_a_pool_is_killed_is_left_to_the_next_one: kill_while_connections_wait;
    a_pool_that_is_killed_under_load_loses_nothing: kill_under_load;
    exit_idle_counts_from_the_last_service: stop_after_the_last_service;
    exit_idle_ends_a_pool_to_which_nothing_ever_came: stop_without_any_service;
    exit_idle_ends_a_pool_whose_fdaccept_has_gone: stop_when_fdaccept_has_gone;
    what_comes_after_exit_idle_is_left_to_the_next_pool: leave_the_rest_to_the_next_pool;
    exit_idle_loses_nothing_that_comes_just_then: stop_idle_under_load;
}

// The other side.

/// What every process that a test starts has in its environment, with a value for each test.
const MARK: &str = "FDTOOLS_TEST_MARK";

/// fdaccept with a named queue, for pools that come and go.
fn acceptor() -> Acceptor {
    let names = Names::new();
    let mark = names.path();
    Fdaccept::bound_in(names).env(MARK, mark).start()
}

/// The processes of a test that are there.
fn left(acceptor: &Acceptor) -> Vec<Pid> {
    processes_with(MARK, acceptor.name())
}

/// Stops fdaccept. Then nobody may be left, and nothing may have been lost.
#[track_caller]
fn finish(mut acceptor: Acceptor) {
    acceptor.stop();
    until("every process to end", || left(&acceptor).is_empty());
}

/// Waits until `count` of a pool have a connection in hand, and returns who.
#[track_caller]
fn until_busy(pool: &Pool, count: usize) -> Vec<Pid> {
    eventually(&format!("{count} connections in hand"), || {
        let mut members = pool.children();
        members.retain(|member| is_busy(pool, *member));
        (members.len() == count).then_some(members)
    })
}

/// Two clients in service, with the processes that serve them.
#[track_caller]
fn two_in_service(acceptor: &Acceptor, pool: &Pool) -> (Vec<Client>, Vec<Pid>) {
    let clients = acceptor.clients(2);
    clients.iter().for_each(Client::expect_served);
    (clients, until_busy(pool, 2))
}

/// Whether a slot with its handler, or a worker, has a socket open that the pool has not: what the
/// pool has is the queue, until one of them is told to end.
fn is_busy(pool: &Pool, member: Pid) -> bool {
    let common = sockets(pool.pid());
    let processes = std::iter::once(member).chain(children(member));
    processes
        .flat_map(sockets)
        .any(|socket| !common.contains(&socket))
}

/// Asks a pool to end, which it does well, and neither it nor who served in it has said anything.
#[track_caller]
fn stop(pool: &mut Process) {
    assert_eq!(pool.stop(), "");
}

// One pool after another.

fn replace_under_load(crew: &Crew) {
    let acceptor = acceptor();
    let mut leaving = Vec::new();
    let mut last = under_load(acceptor.port, 0, |tally| {
        let mut random = Random(1);
        let mut pool = crew.full_pool(&acceptor, 3);
        for _ in 0..crew.rounds {
            tally.wait();
            random.pause(20_000);
            let next = crew.full_pool(&acceptor, 3);
            random.pause(2_000);
            pool.term();
            leaving.push(std::mem::replace(&mut pool, next));
        }
        pool
    });
    for pool in &mut leaving {
        pool.expect_quiet_end();
    }
    stop(&mut last);
    finish(acceptor);
}

fn let_generations_finish(crew: &Crew) {
    let acceptor = acceptor();
    let mut newest = crew.full_pool(&acceptor, 2);
    let mut old = Vec::new();
    for _ in 0..3 {
        // It stays with the pool that took it.
        let client = acceptor.served_client();
        until_busy(&newest, 1);
        let next = crew.full_pool(&acceptor, 2);
        newest.term();
        // Whoever has nothing in hand goes, and takes nothing more.
        newest.until_size(1);
        old.push((client, std::mem::replace(&mut newest, next)));
    }
    for (client, pool) in &mut old {
        client.expect_served();
        until_busy(pool, 1);
    }
    // The newest serves what comes now.
    let (clients, _) = two_in_service(&acceptor, &newest);
    clients.into_iter().for_each(Client::finish);
    // The end of one is not that of the others.
    while let Some((client, mut pool)) = (!old.is_empty()).then(|| old.remove(old.len() / 2)) {
        client.finish();
        pool.expect_quiet_end();
        for (client, pool) in &mut old {
            client.expect_served();
            assert!(pool.is_running());
        }
    }
    Crowd::connect(acceptor.port, 10).expect_served();
    stop(&mut newest);
    finish(acceptor);
}

// A pool that is killed.

fn kill_beside_a_new_pool(crew: &Crew) {
    let acceptor = acceptor();
    let mut pool = crew.full_pool(&acceptor, 3);
    let (clients, busy) = two_in_service(&acceptor, &pool);
    let members = pool.children();
    pool.slay();
    for idle in members.iter().filter(|member| !busy.contains(member)) {
        until_gone(*idle);
    }
    let crowd = Crowd::connect(acceptor.port, 5);
    clients.iter().for_each(Client::expect_served);
    crowd.expect_waiting();
    let mut next = crew.full_pool(&acceptor, 2);
    crowd.expect_served();
    clients.iter().for_each(Client::expect_served);
    assert!(busy.iter().all(|member| is_alive(*member)));
    clients.into_iter().for_each(Client::finish);
    for member in busy {
        until_gone(member);
    }
    stop(&mut next);
    finish(acceptor);
}

fn kill_while_connections_wait(crew: &Crew) {
    let acceptor = acceptor();
    let mut pool = crew.full_pool(&acceptor, 2);
    let (clients, busy) = two_in_service(&acceptor, &pool);
    let crowd = Crowd::connect(acceptor.port, 5);
    let before: Vec<_> = busy.iter().map(|member| sockets(*member).len()).collect();
    pool.slay();
    // They have TERM at once, but may take a moment to mind it.
    for (member, before) in busy.iter().zip(before) {
        until("who is busy to leave the queue", || {
            sockets(*member).len() < before
        });
    }
    clients.iter().for_each(Client::expect_served);
    clients.into_iter().for_each(Client::finish);
    for member in busy {
        until_gone(member);
    }
    crowd.expect_waiting();
    let mut next = crew.full_pool(&acceptor, 2);
    crowd.expect_served();
    stop(&mut next);
    finish(acceptor);
}

/// Slots and the examples finish what they have in hand, so there is nothing to be lost. Some
/// pools are killed while they start.
fn kill_under_load(crew: &Crew) {
    let acceptor = acceptor();
    let mut killed = Vec::new();
    let mut last = under_load(acceptor.port, 0, |tally| {
        let mut random = Random(2);
        for round in 0..crew.rounds {
            let mut pool = crew.pool(&acceptor, &[], 3);
            if round % 3 > 0 {
                tally.wait();
            }
            random.pause(20_000);
            pool.slay();
            killed.push(pool);
        }
        crew.full_pool(&acceptor, 3)
    });
    stop(&mut last);
    until("the end of all others", || {
        left(&acceptor) == [acceptor.pid()]
    });
    for pool in &mut killed {
        assert_eq!(pool.finish().1, "");
    }
    finish(acceptor);
}

// A pool that ends as nobody comes.

/// What `--exit-idle` is given for `limit`.
fn seconds(limit: Duration) -> String {
    limit.as_secs_f64().to_string()
}

/// Runs `attempt` with a limit for idleness, and with a longer one where that was too short to
/// tell: this machine was too slow, and the pool may have been right to end.
#[track_caller]
fn with_limit(attempt: impl Fn(Duration) -> Option<()>) {
    let mut limits = (0..7).map(|doubled| Duration::from_millis(200 << doubled));
    assert!(limits.any(|limit| attempt(limit).is_some()), "too slow");
}

/// Waits until a client is answered, or its pool has ended.
fn until_answered(client: &Client, pool: &mut Process) {
    until("an answer or an end", || {
        client.is_answered() || !pool.is_running()
    });
}

/// Expects that the pool ends for want of work, and that it was without for `limit` since `since`.
#[track_caller]
fn assert_ends_idle(pool: &mut Process, limit: Duration, since: Instant) {
    let (status, log) = pool.finish();
    let elapsed = since.elapsed();
    assert_eq!(status.code(), Some(0), "{log}");
    let line = format!(
        "fdpool: nothing was served for {} s; stopping",
        seconds(limit)
    );
    assert_eq!(log.lines().last(), Some(line.as_str()), "{log}");
    // The end of a service is known to the millisecond.
    let enough = limit - Duration::from_millis(1);
    assert!(elapsed >= enough, "{elapsed:?} of {limit:?}");
}

#[test]
fn exit_idle_does_not_end_slots_while_a_connection_is_open() {
    with_limit(|limit| {
        let acceptor = acceptor();
        let client = acceptor.client();
        client.send("hello\n");
        let start = Instant::now();
        let mut pool = Crew::slots().pool(&acceptor, &["--exit-idle", &seconds(limit)], 2);
        until_answered(&client, &mut pool);
        if start.elapsed() >= limit {
            return None;
        }
        assert_eq!(client.line(), "hello");
        // Nothing happens there, and it is in service all the same.
        std::thread::sleep(limit * 2);
        assert_eq!(pool.log(), "");
        client.expect_served();
        Some(())
    });
}

/// Workers are busy for as long as they do something.
fn keep_busy(crew: Option<Crew>) {
    let crew = needs!(crew);
    with_limit(|limit| {
        let acceptor = acceptor();
        let client = acceptor.client();
        let mut times = [Instant::now(); 2];
        let mut longest = Duration::ZERO;
        let mut pool = crew.pool(&acceptor, &["--exit-idle", &seconds(limit)], 2);
        let end = times[0] + limit * 3;
        while Instant::now() < end {
            // Since before the last exchange until after this one: the worker rested for less.
            times = [times[1], Instant::now()];
            client.send("ping\n");
            until_answered(&client, &mut pool);
            longest = longest.max(times[0].elapsed());
            if longest >= limit {
                return None;
            }
            assert_eq!(client.line(), "ping");
            assert_eq!(pool.log(), "");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(pool.is_running());
        Some(())
    });
}

cases! {
    keep_busy;
    exit_idle_does_not_end_rust_workers_that_exchange_bytes_more_often: Crew::rust();
    exit_idle_does_not_end_python_workers_that_exchange_bytes_more_often: Crew::python();
    exit_idle_does_not_end_workers_whose_children_exchange_bytes_more_often: Some(Crew::shell());
}

fn stop_after_the_last_service(crew: &Crew) {
    with_limit(|limit| {
        let acceptor = acceptor();
        let client = acceptor.client();
        client.end();
        let mut since = Instant::now();
        let mut pool = crew.pool(&acceptor, &["--exit-idle", &seconds(limit)], 2);
        until_answered(&client, &mut pool);
        for _ in 0..2 {
            if since.elapsed() >= limit {
                return None;
            }
            std::thread::sleep(limit / 2);
            let client = acceptor.client();
            let before = std::mem::replace(&mut since, Instant::now());
            client.end();
            until_answered(&client, &mut pool);
            if before.elapsed() >= limit {
                return None;
            }
        }
        assert_ends_idle(&mut pool, limit, since);
        finish(acceptor);
        Some(())
    });
}

fn stop_without_any_service(crew: &Crew) {
    let limit = Duration::from_millis(300);
    let acceptor = acceptor();
    let start = Instant::now();
    let mut pool = crew.pool(&acceptor, &["--exit-idle", &seconds(limit)], 2);
    assert_ends_idle(&mut pool, limit, start);
    finish(acceptor);
}

#[test]
fn exit_idle_ends_a_pool_that_never_saw_fdaccept() {
    let names = Names::new();
    let limit = Duration::from_millis(300);
    for option in [None, Some("--worker")] {
        let start = Instant::now();
        let options = ["--exit-idle", "0.3"].into_iter().chain(option);
        let pool = Pool::on(&names.path()).args(options);
        let mut pool = pool.slots(2, ["cat"]).start();
        pool.line("; waiting");
        assert_ends_idle(&mut pool, limit, start);
    }
}

fn stop_when_fdaccept_has_gone(crew: &Crew) {
    with_limit(|limit| {
        let mut acceptor = acceptor();
        let client = acceptor.client();
        client.end();
        let start = Instant::now();
        let mut pool = crew.pool(&acceptor, &["--exit-idle", &seconds(limit)], 2);
        until_answered(&client, &mut pool);
        if start.elapsed() >= limit {
            return None;
        }
        acceptor.term();
        acceptor.wait();
        // It has gone before the pool may.
        if start.elapsed() >= limit {
            return None;
        }
        assert_ends_idle(&mut pool, limit, start);
        Some(())
    });
}

fn leave_the_rest_to_the_next_pool(crew: &Crew) {
    let acceptor = acceptor();
    let mut pool = crew.pool(&acceptor, &["--exit-idle", "0.2"], 2);
    pool.expect_exit(0);
    let crowd = Crowd::connect(acceptor.port, 10);
    crowd.expect_waiting();
    let mut next = crew.full_pool(&acceptor, 2);
    crowd.expect_served();
    stop(&mut next);
    finish(acceptor);
}

fn stop_idle_under_load(crew: &Crew) {
    const LIMIT: &str = "0.01";
    let acceptor = acceptor();
    // Mostly the next one comes before the limit has passed, and sometimes none does.
    let mut last = under_load(acceptor.port, 100_000, |_| {
        for _ in 0..crew.rounds {
            let mut pool = crew.pool(&acceptor, &["--exit-idle", LIMIT], 2);
            let log = pool.expect_end(0);
            let line = format!("fdpool: nothing was served for {LIMIT} s; stopping");
            assert_eq!(log, line);
        }
        crew.full_pool(&acceptor, 2)
    });
    stop(&mut last);
    finish(acceptor);
}

// Pools that others have taken privileges from.

const AS_NOBODY: &str = "setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs";
/// Who one is.
const WHO: &str = "echo $(id -u) $(id -g) $(id -G)";
const NOBODY: &str = "65534 65534 65534\n";

/// Copies of the programs where everybody may look, as where they were built perhaps nobody may.
struct Programs(TempDir);

impl Programs {
    /// A shell script that finds the programs, and two more: a handler that says what `probe`
    /// does, as `$HANDLER`, and a worker of which that is said, as `$WORKER`. What has neither
    /// environment nor path finds the programs through `$1` to `$3`.
    fn script(&self, text: &str, probe: &str) -> Command {
        let worker = format!(
            "seen=$({probe}); [ -z \"$READY\" ] || {{ echo >&3; exec 3>&-; }}; \
             while \"$0\" -- echo \"$seen\"; do :; done"
        );
        let mut command = script("sh", text);
        command.arg("sh");
        command.args(["fdaccept", "fdpool", "fdrecv"].map(|name| copy_of(name, self.0.path())));
        command.env("HANDLER", probe).env("WORKER", worker);
        command.env("READY", "");
        command.env("QUEUE", self.0.path().join("queue"));
        command.current_dir(&self.0);
        command
    }
}

/// Expects that `probe` prints `expected` in a handler and in a worker of a pool that `wrapper` runs.
#[track_caller]
fn assert_observed(wrapper: &str, probe: &str, expected: &str) {
    needs!(peer(wrapper.split(' ').next().unwrap()));
    for arguments in [OF_HANDLERS, OF_WORKERS] {
        assert_eq!(observe_pool(wrapper, arguments, probe), expected);
    }
}

const OF_HANDLERS: &str = "2 -- sh -c \"$HANDLER\"";

const OF_WORKERS: &str = "--worker 2 -- sh -c \"$WORKER\" \"$3\"";

/// The same of a pool with these arguments. It has its queue by a ticket.
#[track_caller]
fn observe_pool(wrapper: &str, arguments: &str, probe: &str) -> String {
    let programs = Programs(open_dir());
    let text = format!("\"$1\" 127.0.0.1:0 | {wrapper} \"$2\" {arguments}");
    let mut process = programs.script(&text, probe).start();
    let port = process.port();
    let answer = text_of(port);
    // The others say the same.
    for _ in 0..3 {
        assert_eq!(text_of(port), answer);
    }
    answer
}

/// What a client gets.
#[track_caller]
fn text_of(port: u16) -> String {
    String::from_utf8(exchange(port, b"")).unwrap()
}

#[test]
fn a_pool_of_another_user_has_its_queue_from_root_by_a_ticket() {
    needs!(root());
    assert_observed(AS_NOBODY, WHO, NOBODY);
}

/// fdaccept of root, whose named queue everybody may use, and a pool of somebody else.
fn foreign_pool(arguments: &str) -> Option<(Programs, Process, u16, Pool)> {
    if !root() || peer("setpriv").is_none() {
        return None;
    }
    let programs = Programs(open_dir());
    let text = "exec \"$1\" --bind \"$QUEUE\" --mode 0666 127.0.0.1:0";
    let mut acceptor = programs.script(text, WHO).start();
    let port = acceptor.port();
    let text = format!("exec {AS_NOBODY} \"$2\" --connect \"$QUEUE\" {arguments}");
    let pool = Pool::of(programs.script(&text, WHO).env("READY", "1"));
    Some((programs, acceptor, port, pool))
}

#[test]
fn a_pool_of_another_user_has_its_queue_from_root_by_a_name() {
    let (_programs, _acceptor, port, mut pool) = needs!(foreign_pool(OF_HANDLERS));
    for _ in 0..4 {
        assert_eq!(text_of(port), NOBODY);
    }
    stop(&mut pool);
}

/// Whether somebody in a process group is there, and not a zombie.
fn is_group_alive(group: Pid) -> bool {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let stats = entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    let mut members = stats.filter_map(|stat| {
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let state = fields.next()?;
        let its_group: i32 = fields.nth(1)?.parse().ok()?;
        Some(state != "Z" && its_group == group.as_raw())
    });
    members.any(|is_member| is_member)
}

#[test]
fn a_pool_of_another_user_replaces_its_workers() {
    let arguments = "--ready-fd 3 --worker 2 -- sh -c \"$WORKER\" \"$3\"";
    let (_programs, _acceptor, port, mut pool) = needs!(foreign_pool(arguments));
    for _ in 0..4 {
        assert_eq!(text_of(port), NOBODY);
    }
    let before = pool.children();
    pool.signal(Signal::SIGHUP);
    pool.line("reload: done");
    pool.until_replaced(&before, 2);
    // What was started by one may outlive it for a moment, and still take something.
    until("the end of all that is old", || {
        !before.iter().any(|worker| is_group_alive(*worker))
    });
    for _ in 0..4 {
        assert_eq!(text_of(port), NOBODY);
    }
}

cases! {
    assert_observed;
    prlimit_limits_the_descriptors_of_a_pool:
        "prlimit --nofile=32", "ulimit -n; ulimit -Hn", "32\n32\n";
    s6_softlimit_limits_the_descriptors_of_a_pool: "s6-softlimit -o 32", "ulimit -n", "32\n";
}

#[test]
fn a_pool_serves_on_all_its_slots_with_32_descriptors() {
    let prlimit = needs!(peer("prlimit"));
    let acceptor = acceptor();
    let mut command = Command::new(prlimit);
    command.arg("--nofile=32").arg(bin_dir().join("fdpool"));
    acceptor.give_to(&mut command);
    let mut pool = command.args(["64", "--", "cat"]).start();
    let clients = acceptor.clients(64);
    clients.iter().for_each(Client::expect_served);
    clients.into_iter().for_each(Client::finish);
    stop(&mut pool);
}

#[test]
fn nice_makes_a_pool_nicer() {
    needs!(peer("nice"));
    let (_, here, _) = run(&mut Command::new("nice"));
    let nicer = (here.trim().parse::<i32>().unwrap() + 3).min(19);
    assert_observed("nice -n 3", "nice", &format!("{nicer}\n"));
}

/// The environment that the shell was started with.
const ENVIRONMENT: &str = "tr '\\0' '\\n' </proc/$$/environ";

#[test]
fn env_empties_the_environment_of_workers() {
    let seen = observe_pool("env -i WORD=here", OF_WORKERS, ENVIRONMENT);
    assert_eq!(seen, "WORD=here\n");
}

#[test]
fn env_leaves_to_handlers_what_is_known_of_their_client() {
    let programs = Programs(open_dir());
    let text = "\"$1\" 127.0.0.1:0 | env -i WORD=here \"$2\" 2 -- sh -c \"$HANDLER\"";
    let mut process = programs.script(text, ENVIRONMENT).start();
    let port = process.port();
    let client = Client::connect(port);
    let remote = client.local_port();
    let text = client.rest();
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    let expected = [
        "PROTO=TCP".to_owned(),
        "REMOTE_ADDR=127.0.0.1".to_owned(),
        format!("REMOTE_PORT={remote}"),
        "TCPLOCALIP=127.0.0.1".to_owned(),
        format!("TCPLOCALPORT={port}"),
        "TCPREMOTEIP=127.0.0.1".to_owned(),
        format!("TCPREMOTEPORT={remote}"),
        "WORD=here".to_owned(),
    ];
    assert_eq!(lines, expected);
}
