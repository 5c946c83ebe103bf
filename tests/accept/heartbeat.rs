//! The watchdog of a service manager (`WATCHDOG_USEC`), as fdaccept answers it.

use crate::support::*;
use nix::sys::signal::Signal;

/// As a service of this manager, with a watchdog.
fn watched(fdaccept: Fdaccept, manager: &Manager) -> Fdaccept {
    fdaccept.under(manager).env("WATCHDOG_USEC", OFTEN)
}

#[track_caller]
fn is_heard_again_and_again(fdaccept: Fdaccept) {
    let manager = Manager::at_path();
    let mut acceptor = watched(fdaccept, &manager).start();
    manager.until_beats();
    acceptor.term();
    manager.until_told("STOPPING=1");
    acceptor.expect_end(0);
}

cases! {
    is_heard_again_and_again;
    the_manager_of_a_chain_is_told_that_it_is_alive: Fdaccept::cats();
    the_manager_of_one_with_a_name_is_told_that_it_is_alive: Fdaccept::bound();
    the_manager_of_a_pipe_is_told_that_it_is_alive: Fdaccept::piped();
    the_manager_of_a_sandbox_is_told_that_it_is_alive: Fdaccept::cats().args(["--sandbox"]);
}

#[test]
fn another_user_tells_the_watchdog_of_root_that_it_is_alive() {
    needs!(root());
    let manager = Manager::at_path();
    let chain = Fdaccept::chain(["sleep", "1000"]).user(4_000_000_001);
    let _acceptor = watched(chain, &manager).start();
    manager.until_beats();
}

#[test]
fn it_is_alive_while_the_queue_is_full() {
    let manager = Manager::at_name();
    let fdaccept = Fdaccept::bound().args(["--queue", "1"]);
    let mut acceptor = watched(fdaccept, &manager).start();
    let _clients = [(); 3].map(|()| acceptor.client());
    manager.until_status("accepted 1");
    manager.until_beats();
    assert!(acceptor.is_running());
}

#[test]
fn it_is_alive_while_descriptors_are_short() {
    let prlimit = needs!(peer("prlimit"));
    let manager = Manager::at_name();
    let mut acceptor = watched(Fdaccept::bound(), &manager).start();
    manager.until_told("READY=1");
    let open = descriptors(acceptor.pid());
    let is_open = |number: &i32| open.iter().any(|(other, _)| other == number);
    let free = (0..).find(|number| !is_open(number)).unwrap();
    limit(&prlimit, acceptor.pid(), &format!("{free}:"));
    let _clients = [(); 3].map(|()| acceptor.client());
    acceptor.line("Too many open files");
    manager.until_beats();
}

#[test]
fn it_is_alive_while_it_stops() {
    let manager = Manager::at_name();
    let mut acceptor = watched(Fdaccept::cats(), &manager).start();
    let client = acceptor.served_client();
    acceptor.term();
    manager.until_told("STOPPING=1");
    manager.until_beats();
    client.expect_served();
    client.finish();
    acceptor.expect_end(0);
}

#[test]
fn it_is_alive_again_when_it_goes_on_and_when_the_manager_does() {
    let manager = Manager::at_name();
    let acceptor = watched(Fdaccept::cats(), &manager).start();
    manager.until_beats();
    acceptor.freeze();
    let _ = manager.rest();
    // A loop that does not run says nothing.
    stays("silence", || !manager.has_something());
    acceptor.thaw();
    manager.until_beats();
    manager.fill();
    acceptor.expect_echo();
    manager.until_beats();
}

#[test]
fn the_watchdog_of_this_process_is_told() {
    let manager = Manager::at_path();
    let text = "WATCHDOG_PID=$$ exec fdaccept --bind ./queue 127.0.0.1:0";
    let _acceptor = watched(Fdaccept::sh(text), &manager).start();
    manager.until_beats();
}

/// With this of sd_watchdog_enabled(3) in its environment, it says nothing.
#[track_caller]
fn is_not_heard(name: &str, value: &str) {
    let manager = Manager::at_path();
    let mut acceptor = watched(Fdaccept::cats(), &manager).env(name, value).start();
    acceptor.expect_echo();
    let log = acceptor.stop();
    assert!(!log.contains("WATCHDOG"), "{log}");
    let told = manager.rest();
    assert!(told.iter().any(|told| told.is("READY=1")), "{told:?}");
    assert!(!told.iter().any(|told| told.is(ALIVE)), "{told:?}");
}

cases! {
    is_not_heard;
    the_watchdog_of_another_process_is_told_nothing: "WATCHDOG_PID", "1";
    a_watchdog_without_a_time_is_told_nothing: "WATCHDOG_USEC", "";
    a_watchdog_of_no_time_is_told_nothing: "WATCHDOG_USEC", "0";
    a_watchdog_with_nonsense_as_its_time_is_told_nothing: "WATCHDOG_USEC", "-1";
}

#[test]
fn a_watchdog_without_a_socket_does_not_matter() {
    let mut acceptor = Fdaccept::cats().env("WATCHDOG_USEC", "1").start();
    acceptor.expect_echo();
    acceptor.signal(Signal::SIGTERM);
    acceptor.expect_clean_end();
}

#[test]
fn the_watchdog_reaches_neither_command_nor_handlers() {
    let manager = Manager::at_path();
    let tell = "env | grep -c ^WATCHDOG_ >&2; exec fdpool 1 -- env";
    let chain = watched(Fdaccept::chain(["sh", "-c", tell]), &manager);
    let mut acceptor = chain.start();
    assert_eq!(acceptor.line("0"), "0");
    let environment = String::from_utf8(exchange(acceptor.port, b"")).unwrap();
    assert!(environment.contains("PROTO=TCP"));
    assert!(!environment.contains("WATCHDOG"), "{environment}");
}
