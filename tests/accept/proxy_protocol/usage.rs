//! Wrong usage.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use super::*;

/// Checks that fdaccept with these words is wrong usage: status 2, two lines, of which the first
/// has `expected`, and that nothing is left of it.
#[track_caller]
fn is_wrong(words: &[&str], expected: &str) {
    let names = Names::new();
    let mut command = program("fdaccept");
    command.args(["--bind", &names.path()]).args(words);
    let (status, _, stderr) = run(command.current_dir(&names.directory));
    assert_eq!(status, Some(2), "{words:?}: {stderr}");
    let lines: Vec<_> = stderr.lines().collect();
    let [problem, help] = lines[..] else {
        panic!("{words:?}: {stderr}");
    };
    assert!(
        problem.starts_with("fdaccept: ") && problem.contains(expected),
        "{words:?}: {stderr}"
    );
    assert_eq!(help, "fdaccept: try 'fdaccept --help' for more information");
    assert!(names.is_empty(), "{words:?}");
}

#[test]
fn headers_without_proxies_are_a_usage_error() {
    is_wrong(&["--proxy-protocol", "any", ADDRESS], "--proxy-from");
}

#[test]
fn proxies_without_headers_are_a_usage_error() {
    is_wrong(&["--proxy-from", "127.0.0.1", ADDRESS], "--proxy-protocol");
    is_wrong(&["--proxy-timeout", "1", ADDRESS], "--proxy-protocol");
}

/// Checks that [`RIGHT`] with each of these values of an option is wrong usage.
#[track_caller]
fn are_wrong(option: &str, values: &[&str]) {
    for value in values {
        let mut words = RIGHT.to_vec();
        if let Some(place) = words.iter().position(|word| *word == option) {
            words.drain(place..place + 2);
        }
        let wrong = format!("{option}={value}");
        words.extend([wrong.as_str(), ADDRESS]);
        is_wrong(&words, option);
    }
}

#[test]
fn a_version_that_there_is_not_is_a_usage_error() {
    let versions = ["", "v3", "V1", "1", "v1,v2", "ANY", "v1 "];
    are_wrong("--proxy-protocol", &versions);
    is_wrong(&["--proxy-protocol"], "--proxy-protocol");
}

cases! {
    are_wrong;
    what_is_no_network_of_proxies_is_a_usage_error:
        "--proxy-from", &["", "x", "10.0.0", "10.0.0.0/33", "::/129", "10.0.0.0/", "localhost"];
    what_is_no_time_for_a_header_is_a_usage_error:
        "--proxy-timeout", &["", "0", "0.0", "-1", "x", "nan", "5s", "1e-300"];
}

#[test]
fn any_time_for_a_header_may_be_given() {
    for time in ["1e300", "inf", "99999999999999999999", "0.001"] {
        let (acceptor, _pool) = proxied("any", &["--proxy-timeout", time]).with_pool();
        // A header may be late where there is next to no time.
        until("an answer", || {
            let client = acceptor.says(&v1(CLIENT, SERVER));
            let _ = client.0.shutdown(std::net::Shutdown::Write);
            let told = client.rest_or_reset();
            assert!(told.is_empty() || told == format!("{TOLD}\n"), "{told}");
            !told.is_empty()
        });
    }
}

#[test]
fn headers_on_a_unix_listener_are_a_usage_error() {
    let abstract_name = Names::new().abstract_name();
    for address in ["./listener", &abstract_name] {
        is_wrong(&[&RIGHT[..], &[address]].concat(), "--proxy-protocol");
        let both = [&RIGHT[..], &[ADDRESS, address]].concat();
        is_wrong(&both, "--proxy-protocol");
    }
}

#[test]
fn headers_on_an_inherited_unix_listener_are_a_usage_error() {
    let names = Names::new();
    let listener = UnixListener::bind(names.file("listener")).unwrap();
    let mut command = program("fdaccept");
    command
        .args(["--bind", &names.path()])
        .args(RIGHT)
        .arg("fd:0");
    let (status, _, stderr) = run(command.stdin(OwnedFd::from(listener)));
    assert_eq!(status, Some(2), "{stderr}");
    assert!(stderr.contains("--proxy-protocol"), "{stderr}");
}
