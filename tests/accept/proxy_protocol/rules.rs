//! Rules about clients that headers speak for.

use nix::sys::signal::Signal;

use super::*;

#[test]
fn rules_hold_the_client_that_the_header_names() {
    let options = ["--deny", "192.0.2.0/24", "--deny", "2001:db8::/32"];
    let (mut acceptor, _pool) = proxied("any", &options).with_pool();
    let server6 = "[2001:db8::2]:1";
    let mut refused = 0;
    for (client, server) in [
        ("192.0.2.255:1", SERVER),
        ("[2001:db8::1]:1", server6),
        ("[::ffff:192.0.2.1]:1", server6),
    ] {
        for header in [v1(client, server), v2(client, server)] {
            acceptor.says(&header).expect_reset();
            refused += 1;
            acceptor.until_counted("refused by rule", refused);
        }
    }
    for client in ["192.0.3.1:1", "127.0.0.1:1"] {
        for header in [v1(client, SERVER), v2(client, SERVER)] {
            let told = acceptor.says(&header).line();
            assert!(told.starts_with(&client.replace(':', " ")), "{told}");
        }
    }
    let by_itself = acceptor.says(b"PROXY UNKNOWN\r\n").line();
    assert!(by_itself.starts_with("127.0.0.1 "), "{by_itself}");
}

#[test]
fn rules_hold_a_proxy_where_it_speaks_for_itself_alone() {
    let (mut acceptor, _pool) = proxied("any", &["-v", "--allow", "192.0.2.1"]).with_pool();
    for header in headers() {
        acceptor.serves(&header);
    }
    for header in local_headers() {
        acceptor.says(&header).expect_reset();
    }
    acceptor.until_counted("refused by rule", 2);
    let log = acceptor.log();
    let port = acceptor.port;
    let listener = format!(" on 127.0.0.1:{port}");
    for (start, rest) in [
        ("fdaccept: accepted 192.0.2.1", listener.clone()),
        (
            "fdaccept: refused 127.0.0.1",
            format!("{listener}: a rule denies it"),
        ),
    ] {
        assert_eq!(times_told(&log, start, &rest), 2, "{log}");
    }
}

#[test]
fn rules_that_are_read_again_hold_those_whose_headers_come_then() {
    let names = Names::new();
    let file = names.text("rules");
    std::fs::write(&file, "").unwrap();
    let (mut acceptor, _pool) = patient("any", &["--rules", &file]).with_pool();
    acceptor.serves(&v1(CLIENT, SERVER));
    let client = acceptor.says(BEGUN);
    until_all_is_read(&client);
    std::fs::write(&file, "deny 192.0.2.1\n").unwrap();
    acceptor.signal(Signal::SIGHUP);
    acceptor.line("rules: read again");
    complete(&client, b"");
    client.expect_reset();
}
