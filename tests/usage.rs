//! Wrong usage: each has a message with the program's name and what to do, and its own status.

mod support;

use support::*;

/// The exit status and the message of one of the programs.
fn fails(name: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let (status, _, stderr) = run(program(name).args(arguments));
    assert!(stderr.starts_with(&format!("{name}: ")), "{stderr}");
    (status, stderr)
}

#[test]
fn an_unknown_option_is_a_usage_error() {
    for name in ["fdaccept", "fdrecv", "fdpool"] {
        let (status, message) = fails(name, &["--nonsense"]);
        assert_eq!(status, Some(2));
        assert!(message.contains("'--nonsense'"), "{message}");
        assert!(
            message.contains(&format!("try '{name} --help'")),
            "{message}"
        );
    }
}
