//! The client that a header names, and which proxies may send one.

use std::net::TcpListener;
use std::os::fd::OwnedFd;

use super::*;

#[test]
fn a_handler_is_told_the_client_that_the_header_names() {
    let (client6, server6) = ("[2001:db8::1]:65535", "[2001:db8::2]:1");
    let told6 = "2001:db8::1 65535 2001:db8::2 1";
    let makes: [(_, &[Make]); 3] = [("v1", &[v1]), ("v2", &[v2]), ("any", &[v1, v2])];
    for (version, makes) in makes {
        let (acceptor, _pool) = proxied(version, &[]).with_pool();
        for make in makes {
            acceptor.serves(&make(CLIENT, SERVER));
            expect_told(acceptor.says(&make(client6, server6)), told6, b"");
        }
    }
}

#[test]
fn a_handler_finds_all_its_variables() {
    let text = "echo $PROTO $TCPREMOTEIP $TCPREMOTEPORT $TCPLOCALIP $TCPLOCALPORT $REMOTE_ADDR \
        $REMOTE_PORT ${IPCREMOTEEUID-none} ${TCPCONNNUM-none}";
    let acceptor = proxied("any", &[]);
    let _pool = acceptor.pool_of(1, text);
    for header in headers() {
        let expected = format!("TCP {TOLD} 192.0.2.1 51000 none none");
        expect_told(acceptor.says(&header), &expected, b"");
    }
}

/// That the client of a header is told where fdaccept and a pool connect as `text` says.
#[track_caller]
fn assert_told(text: &str) {
    let acceptor = script_with(&text.replace("HANDLER", &format!("sh -c '{WHO}'")));
    for header in headers() {
        let client = acceptor.says(&[&header[..], b"data"].concat());
        expect_told(client, TOLD, b"data");
    }
}

cases! {
    assert_told;
    the_client_is_told_in_a_chain: "exec fdaccept OPTIONS -- fdpool 2 -- HANDLER";
    the_client_is_told_in_a_pipeline: "fdaccept OPTIONS | fdpool 2 -- HANDLER";
    the_client_is_told_with_a_name_of_the_consumer:
        "fdpool --bind ./q 2 -- HANDLER & exec fdaccept --connect ./q OPTIONS";
}

#[test]
fn the_client_is_told_in_a_loop_of_fdrecv() {
    let each = "while fdrecv -- HANDLER || [ $? -ne 69 ]; do :; done";
    assert_told(&format!("fdaccept OPTIONS | {each}"));
}

/// fdaccept with the options that are right, and a chain to a pool of [`WHO`].
fn chain() -> Fdaccept {
    let words = [&["fdpool", "2", "--"][..], &sh_c(WHO)].concat();
    Fdaccept::chain(words).args(RIGHT)
}

#[test]
fn the_client_is_told_with_an_inherited_listener() {
    let listener = OwnedFd::from(TcpListener::bind(ADDRESS).unwrap());
    let acceptor = chain().listen("fd:0").stdin(listener).start();
    for header in headers() {
        acceptor.serves(&header);
    }
}

#[test]
fn every_listener_expects_headers() {
    let acceptor = chain().listen(ADDRESS).listen(ADDRESS).start();
    for port in &acceptor.ports {
        let client = Client::connect(*port);
        write(&client, &v1(CLIENT, SERVER));
        expect_told(client, TOLD, b"");
        let client = Client::connect(*port);
        client.send("GET / HTTP/1.1\r\n");
        client.expect_closed();
    }
}

#[test]
fn a_proxy_that_speaks_for_itself_is_the_client() {
    let tcp4 = [192, 0, 2, 1, 198, 51, 100, 7, 0, 1, 0, 2];
    let (acceptor, _pool) = proxied("any", &[]).with_pool();
    for header in [
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN \r\n".to_vec(),
        b"PROXY UNKNOWN something else\r\n".to_vec(),
        b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n".to_vec(),
        v2_of(LOCAL, 0x00, b""),
        v2_of(LOCAL, 0x11, &tcp4),
        v2_of(LOCAL, 0x11, b"short"),
        // A family that there is not: nothing is asked of it here.
        v2_of(LOCAL, 0xff, b"ignored"),
        v2_of(LOCAL, 0x00, &[0xff; 5000]),
    ] {
        let client = acceptor.says(&[&header[..], b"data"].concat());
        let own = own(&client);
        expect_told(client, &own, b"data");
    }
}

#[test]
fn any_address_and_port_can_be_told() {
    let (acceptor, _pool) = proxied("any", &[]).with_pool();
    for (client, server) in [
        ("0.0.0.0:0", "255.255.255.255:65535"),
        ("127.0.0.1:1", "127.0.0.1:1"),
        ("[::]:0", "[ffff::ffff]:65535"),
        ("[1:2:3:4:5:6:7:8]:9", "[fe80::1]:10"),
    ] {
        let told = |text| format!("{} {}", address(text).ip(), address(text).port());
        let expected = format!("{} {}", told(client), told(server));
        for header in [v1(client, server), v2(client, server)] {
            expect_told(acceptor.says(&header), &expected, b"");
        }
    }
}

#[test]
fn mapped_addresses_are_told_as_the_ipv4_addresses_that_they_are() {
    let (acceptor, _pool) = proxied("any", &[]).with_pool();
    let (client, server) = ("[::ffff:192.0.2.1]:51000", "[::ffff:198.51.100.7]:443");
    for header in [v1(client, server), v2(client, server)] {
        acceptor.serves(&header);
    }
}

// Proxies.

#[test]
fn a_client_that_is_no_proxy_is_reset_and_counted_whatever_it_says() {
    let (mut acceptor, _pool) = proxied("any", &["-v", "--proxy-from", "127.0.0.8/31"]).with_pool();
    let [v1, v2] = headers();
    for (number, words) in [&v1[..], &v2, b"", b"GET"].iter().enumerate() {
        // The reset may be told to whichever call comes next.
        let client = acceptor.try_client_from([127, 0, 0, 7]);
        is_reset(client.and_then(|client| (&client.0).write_all(words).map(|()| client)));
        acceptor.until_counted("refused by rule", number + 1);
    }
    assert_eq!(acceptor.counted("bad header"), 0);
    for last in [1, 8, 9] {
        let client = acceptor.client_from([127, 0, 0, last]);
        write(&client, &v1);
        expect_told(client, TOLD, b"");
    }
    let log = acceptor.log();
    let port = acceptor.port;
    let why = format!(" on 127.0.0.1:{port}: a rule denies it");
    let refused = times_told(&log, "fdaccept: refused 127.0.0.7", &why);
    assert_eq!(refused, 4, "{log}");
}

#[test]
fn proxies_may_come_over_ipv6_and_over_ipv4_to_a_listener_for_both() {
    needs!(has_ipv6());
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    for from in [["127.0.0.0/8", "::1"], ["::ffff:127.0.0.0/104", "::/127"]] {
        let options = ["--proxy-from", from[0], "--proxy-from", from[1]];
        let (acceptor, _pool) = proxied_at("0", "any", &options).with_pool();
        for (proxy, server) in [("127.0.0.9", "127.0.0.1"), ("::1", "::1")] {
            let server = SocketAddr::new(ip(server), acceptor.port);
            let says = |header: &[u8]| {
                let client = Client(try_connect_from(ip(proxy), server).unwrap());
                write(&client, header);
                client
            };
            for header in headers() {
                expect_told(says(&header), TOLD, b"");
            }
            for header in local_headers() {
                let client = says(&header);
                let own = own(&client);
                expect_told(client, &own, b"");
            }
        }
    }
    let acceptor = proxied_at("0", "any", &[]);
    let server = SocketAddr::new(ip("::1"), acceptor.port);
    is_reset(try_connect_from(ip("::1"), server).map(Client));
}
