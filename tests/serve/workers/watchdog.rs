//! `--watchdog`: workers that hang are ended, others live on, and nobody else has a say in it.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Longer than any test takes.
const LONG: &str = "1000";
/// A machine that stands still for 3 seconds does not make a worker late that speaks in half the time.
const CALM: Duration = Duration::from_secs(8);

/// One worker of watchdog.py, with these words as its arguments. `None` without Python.
fn try_start(options: &[&str], words: &[&str]) -> Option<Workers> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/serve/workers/watchdog.py");
    let mut worker = vec![python()?.into_os_string(), source.into()];
    worker.extend(words.iter().map(Into::into));
    Some(Workers::of_command(options, 1, worker))
}

fn watched(time: &str, words: &[&str]) -> Option<Workers> {
    try_start(&["--watchdog", time], words)
}

impl Workers {
    /// The socket of the watchdog, as any process can find it.
    #[track_caller]
    fn watchdog(&self) -> SocketAddr {
        let name = eventually("a worker with a watchdog", || {
            environment(self.worker()).remove("NOTIFY_SOCKET")
        });
        let name = name.strip_prefix('@').unwrap();
        SocketAddr::from_abstract_name(name).unwrap()
    }

    /// A client that the worker has begun to serve.
    #[track_caller]
    fn served_client(&self) -> Client<UnixStream> {
        let client = self.client();
        client.expect_served();
        client
    }

    /// Waits until the worker has said something since now.
    #[track_caller]
    fn until_said(&self, count: usize) {
        let before = self.noted("said").len();
        until("a sign of life", || {
            self.noted("said").len() >= before + count
        });
    }
}

/// Sends again and again, from threads of their own, until it is dropped.
struct Flood {
    is_over: std::sync::Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Flood {
    fn start(to: &SocketAddr, threads: usize, pause: Duration) -> Self {
        let is_over = std::sync::Arc::new(AtomicBool::new(false));
        let one = || {
            let (to, is_over) = (to.clone(), is_over.clone());
            std::thread::spawn(move || {
                let socket = UnixDatagram::unbound().unwrap();
                socket.set_nonblocking(true).unwrap();
                while !is_over.load(Ordering::SeqCst) {
                    let _ = socket.send_to_addr(b"WATCHDOG=1", &to);
                    std::thread::sleep(pause);
                }
            })
        };
        let threads = (0..threads).map(|_| one()).collect();
        Self { is_over, threads }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[test]
fn a_worker_that_hangs_is_ended_and_the_next_client_is_served() {
    let mut pool = needs!(watched("4", &[]));
    let hung = pool.served_client();
    let worker = pool.worker();
    hung.send("hang\n");
    pool.line(&format!(
        "worker {worker} has not been heard of for 4 s, and is ended; the next one is started at once"
    ));
    hung.expect_closed();
    pool.served_client();
    pool.until_other(worker);
}

#[test]
fn workers_that_speak_live_on_when_they_are_idle_and_when_they_are_busy() {
    let mut pool = needs!(watched(&CALM.as_secs().to_string(), &[]));
    let worker = pool.worker();
    pool.until_said(1);
    // Nothing but the time tells.
    let end = Instant::now() + CALM * 3 / 2;
    until_time(end);
    let client = pool.served_client();
    until_time(end + CALM * 3 / 2);
    client.expect_served();
    assert_eq!(pool.worker(), worker);
    assert_eq!(pool.log(), "");
}

fn until_time(at: Instant) {
    std::thread::sleep(at.saturating_duration_since(Instant::now()));
}

#[test]
fn a_worker_that_says_nothing_at_all_is_replaced_later_and_later() {
    let mut pool = needs!(watched("1", &["mute"]));
    let problem = "did not say within 1 s that it is alive (WATCHDOG=1), and is ended";
    for delay in ["0.1", "0.2", "0.4"] {
        pool.line(&format!("{problem}; the next one is started in {delay} s"));
    }
}

#[test]
fn a_worker_that_does_not_end_by_term_is_killed_with_what_it_started() {
    let stubborn = format!("trap '' TERM; {STUBBORN} & wait");
    let mut pool = Workers::start(&["--watchdog", "0.5"], 1, &stubborn);
    let child = *pool.until_noted("child", 1).first().unwrap();
    pool.line("did not say within 0.5 s");
    pool.line("did not end within 1 s, and is killed");
    until_gone(child);
}

#[test]
fn a_worker_can_ask_for_its_end() {
    let mut pool = needs!(watched(LONG, &[]));
    let client = pool.served_client();
    let worker = pool.worker();
    client.send("say X=1\nWATCHDOG=trigger\nREADY=1");
    pool.line(&format!(
        "worker {worker} asked for its end (WATCHDOG=trigger), and is ended"
    ));
    pool.until_other(worker);
    pool.served_client();
}

#[test]
fn a_worker_can_change_its_time() {
    let mut pool = needs!(watched(LONG, &[]));
    let client = pool.served_client();
    let worker = pool.worker();
    client.send("say WATCHDOG_USEC=500000");
    pool.line(&format!("worker {worker} has not been heard of for 0.5 s"));
    pool.until_other(worker);
}

#[test]
fn a_process_of_the_workers_group_speaks_for_it() {
    let python = needs!(python());
    // The shell is the worker, and waits for the process that serves.
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/serve/workers/watchdog.py");
    let text = format!("'{}' '{}'; :", python.display(), source.display());
    let mut pool = Workers::start(&["--watchdog", LONG], 1, &text);
    let client = pool.served_client();
    let worker = pool.worker();
    client.send("say WATCHDOG=trigger");
    pool.line(&format!("worker {worker} asked for its end"));
    client.line();
    client.expect_closed();
}

#[test]
fn a_worker_finds_the_watchdog_of_its_pool_and_no_other() {
    let manager = |mut pool: std::process::Command| {
        pool.env("NOTIFY_SOCKET", "/nobody")
            .env("WATCHDOG_PID", "1");
        pool.env("WATCHDOG_USEC", "1").env("WATCHDOG_LATER", "1");
        Workers::of(&mut pool)
    };
    let pool = Pool::plain().args(["--watchdog", "1000.5"]);
    let pool = manager(pool.workers(1, ["sleep", "1000"]).command());
    let worker = pool.worker();
    until_named(worker, "sleep");
    let mut found = environment(worker);
    found.retain(|name, _| name.starts_with("WATCHDOG_") || name == "NOTIFY_SOCKET");
    let name = found.remove("NOTIFY_SOCKET").unwrap();
    assert!(name.len() > 1 && name.starts_with('@'), "{name}");
    let expected = [
        ("WATCHDOG_PID".to_owned(), worker.to_string()),
        ("WATCHDOG_USEC".to_owned(), "1000500000".to_owned()),
    ];
    assert_eq!(found.into_iter().collect::<Vec<_>>(), expected);
    // Without a watchdog there is none.
    let pool = manager(Pool::plain().workers(1, ["sleep", "1000"]).command());
    let worker = pool.worker();
    until_named(worker, "sleep");
    let found = environ(worker).join("\n");
    assert!(
        !found.contains("WATCHDOG_") && !found.contains("NOTIFY_SOCKET"),
        "{found}"
    );
}

#[test]
fn the_time_of_a_worker_begins_when_it_is_ready() {
    let options = ["-v", "--watchdog", "0.5", "--ready-fd", "3"];
    let mut pool = needs!(try_start(&options, &["starts-when-told", "mute"]));
    let worker = pool.worker();
    // Several times as long as it may be silent.
    until_time(Instant::now() + Duration::from_secs(2));
    pool.touch("gate");
    pool.line(&format!("worker {worker} is ready"));
    pool.line(&format!("worker {worker} did not say within 0.5 s"));
}

#[test]
fn a_reload_is_given_up_when_the_new_worker_asks_for_its_end() {
    let options = ["-v", "--watchdog", LONG, "--ready-fd", "3"];
    let mut pool = needs!(try_start(&options, &["gives-up-when-told"]));
    pool.line("is ready");
    let worker = pool.worker();
    pool.touch("gate");
    pool.signal(Signal::SIGHUP);
    pool.line("asked for its end (WATCHDOG=trigger); the old workers stay");
    until("the old worker alone", || pool.workers() == [worker].into());
    pool.served_client();
}

#[test]
fn a_worker_that_is_to_go_has_the_grace_and_need_not_speak() {
    let text = "trap '' TERM; echo ready $$ >>\"$DIR/log\"; exec sleep 1000";
    let mut pool = Workers::start(&["--watchdog", "5", "--grace", "7"], 1, text);
    pool.until_noted("ready", 1);
    pool.term();
    pool.line("did not end within 7 s, and is killed");
    let log = pool.expect_end(0);
    assert!(!log.contains("did not say"), "{log}");
}

#[test]
fn a_stopped_worker_is_told_and_ended() {
    let mut pool = needs!(watched("4", &[]));
    pool.until_said(1);
    let worker = pool.worker();
    kill(worker, Signal::SIGSTOP).unwrap();
    pool.line(&format!("worker {worker} is stopped by SIGSTOP"));
    pool.line(&format!("worker {worker} has not been heard of for 4 s"));
    pool.until_other(worker);
    pool.served_client();
}

#[test]
fn a_pool_that_was_stopped_itself_ends_no_worker_for_that() {
    let mut pool = needs!(watched("4", &[]));
    let worker = pool.worker();
    pool.until_said(1);
    // The worker waits until the pool reads on.
    pool.freeze();
    until_time(Instant::now() + Duration::from_secs(5));
    pool.thaw();
    pool.until_said(50);
    assert_eq!((pool.worker(), pool.log()), (worker, String::new()));
}

// Strangers.

#[test]
fn what_another_process_says_does_not_count_and_is_told_once() {
    let mut pool = needs!(watched("1", &["mute"]));
    let flood = Flood::start(&pool.watchdog(), 1, Duration::from_millis(5));
    let uid = nix::unistd::geteuid();
    let said =
        format!("a process of uid {uid}, which is no worker, sent a message to the watchdog");
    pool.line(&said);
    pool.line("did not say within 1 s that it is alive");
    drop(flood);
    let log = pool.stop();
    assert_eq!(log.matches(&said).count(), 1, "{log}");
    assert!(
        log.lines()
            .any(|line| line.ends_with("messages were refused")),
        "{log}"
    );
}

#[test]
fn another_user_has_no_say_either() {
    needs!(root());
    let mut pool = needs!(watched(LONG, &[]));
    pool.until_said(1);
    let (worker, to) = (pool.worker(), pool.watchdog());
    let say = |what: &[u8]| {
        let socket = UnixDatagram::unbound().unwrap();
        assert_eq!(socket.send_to_addr(what, &to).unwrap(), what.len());
    };
    as_user(NOBODY, || {
        say(b"WATCHDOG=trigger");
        say(b"WATCHDOG_USEC=1");
    });
    pool.line(&format!("a process of uid {NOBODY}, which is no worker"));
    pool.until_said(20);
    assert_eq!(pool.worker(), worker);
    let log = pool.stop();
    assert!(log.contains("2 messages were refused"), "{log}");
}

#[test]
fn a_flood_neither_saves_a_worker_that_hangs_nor_starves_one_that_speaks() {
    let mut pool = needs!(watched("4", &[]));
    pool.until_said(1);
    let flood = Flood::start(&pool.watchdog(), 4, Duration::ZERO);
    // A worker that blocks in each message goes on all the same.
    pool.until_said(200);
    let client = pool.served_client();
    client.send("hang\n");
    pool.line("has not been heard of for 4 s");
    client.expect_closed();
    pool.served_client();
    drop(flood);
    let log = pool.stop();
    assert_eq!(log.matches("which is no worker").count(), 1, "{log}");
}

#[test]
fn messages_that_make_no_sense_do_nothing_and_leave_nothing() {
    let mut pool = needs!(watched(LONG, &[]));
    pool.until_said(1);
    let (worker, before) = (pool.worker(), descriptors(pool.pid()).len());
    let to = pool.watchdog();
    let socket = UnixDatagram::unbound().unwrap();
    socket.connect_addr(&to).unwrap();
    let long = [b"WATCHDOG=trigger\n".repeat(300), vec![b'x'; 60_000]].concat();
    let (mine, _other) = UnixStream::pair().unwrap();
    for message in [&b""[..], b"\0", b"\xff\n\n=\nWATCHDOG", &long] {
        socket.send(message).unwrap();
        // Also with descriptors, of which none may stay.
        fdtools::queue::send(&socket, message, &[mine.as_fd(); 100]).unwrap();
    }
    pool.line("which is no worker");
    pool.until_said(20);
    assert_eq!(descriptors(pool.pid()).len(), before);
    assert_eq!(pool.worker(), worker);
    let log = pool.stop();
    assert!(log.contains("8 messages were refused"), "{log}");
}

#[test]
fn a_message_that_is_too_long_does_not_count_whoever_sends_it() {
    let mut pool = needs!(watched("4", &[]));
    let client = pool.served_client();
    let worker = pool.worker();
    client.send(&format!("say WATCHDOG=trigger\nX={}", "x".repeat(5000)));
    pool.line(&format!("worker {worker} has not been heard of for 4 s"));
}

#[test]
fn a_socket_that_lingers_in_a_message_does_not_hold_the_pool_up() {
    let mut pool = needs!(watched(LONG, &[]));
    let client = pool.served_client();
    let socket = UnixDatagram::unbound().unwrap();
    socket.connect_addr(&pool.watchdog()).unwrap();
    let (lingering, _other) = lingering();
    // The pool has the last copy.
    pool.at_once(&[], || {
        eventually("room for it", || {
            fdtools::queue::send(&socket, b"WATCHDOG=1", &[lingering.as_fd()]).ok()
        });
        leave(lingering);
    });
    pool.line("which is no worker");
    client.send("say WATCHDOG=trigger");
    pool.line("asked for its end");
}

#[test]
fn options_that_make_no_sense_together_are_wrong_usage() {
    let cases: [(&[&str], &str); 3] = [
        (&["--watchdog", "2", "1"], "--worker"),
        (&["--worker", "--watchdog", "0", "1"], "must be more than 0"),
        (
            &["--worker", "--timeout", "2", "1"],
            "--timeout ends handlers, and cannot be used with --worker: --watchdog SECONDS ends a \
             worker that hangs",
        ),
    ];
    for (arguments, problem) in cases {
        let (status, _, log) = run(program("fdpool").args(arguments).args(["--", "cat"]));
        assert_eq!(status, Some(2), "{arguments:?}: {log}");
        assert!(log.contains(problem), "{log}");
    }
}
