//! Crowds of clients that stall, and few descriptors.

use nix::sys::resource::{Resource, getrlimit};

use super::*;

const MOST: usize = 1024;

/// Whether this process and fdaccept may have as many descriptors as a crowd needs.
fn may_have_crowds() -> bool {
    raise_limit();
    let (most, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let backlog = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let is_enough = most >= 4096 && backlog.trim().parse::<usize>().unwrap() >= 100;
    if !is_enough {
        skip("the limit on descriptors is too low for a crowd");
    }
    is_enough
}

/// Connects clients as fast as fdaccept takes them, so that none waits in the backlog for long.
#[track_caller]
fn crowd(acceptor: &mut Acceptor, count: usize, bytes: &[u8]) -> Vec<Client> {
    let mut all = Vec::new();
    let before = acceptor.counted("accepted");
    while all.len() < count {
        let next = (count - all.len()).min(64);
        let so_far = before + all.len();
        all.extend(acceptor.stalled(next, bytes, so_far));
    }
    all
}

#[test]
fn at_most_1024_are_waited_for_and_the_oldest_goes_for_a_further_one() {
    needs!(may_have_crowds());
    let mut acceptor = patient("any", &["-v"]);
    let mut stalled = crowd(&mut acceptor, MOST, b"PRO").into_iter();
    assert_eq!(acceptor.counted("bad header"), 0);
    let mut further = Vec::new();
    for number in 1..=5 {
        further.push(acceptor.says(b"PRO"));
        stalled.next().unwrap().expect_closed();
        acceptor.until_counted("bad header", number);
    }
    further.extend(stalled);
    assert_eq!(further.len(), MOST);
    assert!(!further.iter().any(Client::is_answered));
    let why = "too many PROXY headers are awaited";
    assert_eq!(acceptor.log().matches(why).count(), 5);
}

#[test]
fn while_more_than_1024_stall_others_are_served() {
    needs!(may_have_crowds());
    for (mut acceptor, _pool, header) in each_version(&PATIENT) {
        let pid = acceptor.pid();
        acceptor.serves(&header);
        let before = settled_descriptors(pid);
        let mut stalled = crowd(&mut acceptor, MOST, &header[..header.len() - 1]);
        for _ in 0..10 {
            // A client sends its header in parts, while others go on coming.
            let (first, last) = header.split_at(7);
            let slow = acceptor.says(first);
            acceptor.until_asleep();
            stalled.extend(crowd(&mut acceptor, 20, &header[..3]));
            write(&slow, last);
            expect_told(slow, TOLD, b"");
            acceptor.serves(&header);
        }
        is_idle(pid);
        let open = descriptors(pid).len() - before.len();
        assert!((MOST - 20..=MOST).contains(&open), "{open}");
        // Each of the last clients may still go on.
        let last = stalled.pop().unwrap();
        write(&last, &header[3..]);
        expect_told(last, TOLD, b"");
        drop(stalled);
        until("the end of all", || descriptors(pid) == before);
        let passed = acceptor.counted("passed");
        let sum = passed + acceptor.counted("bad header");
        assert_eq!((acceptor.counted("accepted"), passed), (sum, 22));
    }
}

// When descriptors are short.

/// fdaccept with few descriptors and a pool, as `text` says, and many clients that stall.
#[track_caller]
fn assert_served_with_few_descriptors(text: &str) {
    let mut acceptor = script_with(&text.replace("OPTIONS", "-v OPTIONS"));
    let stall = |acceptor: &Acceptor| [(); 40].map(|()| acceptor.says(BEGUN));
    let mut stalled = Vec::from(stall(&acceptor));
    for number in 0..20 {
        for header in headers() {
            let text = number.to_string();
            let request = [&header[..], text.as_bytes()].concat();
            assert_eq!(exchange(acceptor.port, &request), text.as_bytes());
        }
        if number == 10 {
            stalled.extend(stall(&acceptor));
        }
    }
    let log = acceptor.log();
    assert!(!log.contains("cannot accept"), "{log}");
    // They are not too many: they have what others need.
    assert!(!log.contains("too many"), "{log}");
    assert!(
        log.contains("awaited, and descriptors or memory are short"),
        "{log}"
    );
}

cases! {
    assert_served_with_few_descriptors;
    a_chain_with_few_descriptors_serves_others_than_those_who_stall:
        "ulimit -n 20; exec fdaccept OPTIONS -- fdpool 4 -- cat";
    a_chain_with_few_descriptors_and_a_limit_serves_others_than_those_who_stall:
        "ulimit -n 32; exec fdaccept --max 100 OPTIONS -- fdpool 4 -- cat";
    a_pipeline_with_few_descriptors_serves_others_than_those_who_stall:
        "ulimit -n 24; fdaccept OPTIONS | fdpool 4 -- cat";
}

#[test]
fn who_stalls_with_few_descriptors_costs_no_time() {
    let text = "ulimit -n 20; exec fdaccept OPTIONS -- fdpool 1 -- cat";
    let mut acceptor = script_with(text);
    let _stalled = acceptor.clients(40);
    acceptor.until_counted("accepted", 40);
    is_idle(acceptor.pid());
    let request = [&v1(CLIENT, SERVER)[..], b"data"].concat();
    assert_eq!(exchange(acceptor.port, &request), b"data");
}

/// That a consumer which comes last finds the queue, in which a client waits, though others that
/// stall have all descriptors that there are.
#[track_caller]
fn assert_consumer_comes(text: &str) {
    let acceptor = script_with(text);
    let client = acceptor.says(&[&v1(CLIENT, SERVER)[..], b"data"].concat());
    let stalled = acceptor.clients(60);
    // The first client is given up when there is no descriptor left.
    until("a shortage", || stalled[0].is_answered());
    std::fs::write(acceptor.names.file("go"), "").unwrap();
    client.end();
    assert_eq!(client.rest(), "data");
}

#[test]
fn a_consumer_finds_its_way_when_those_who_stall_have_used_up_the_descriptors() {
    assert_consumer_comes(&format!(
        "ulimit -n 24; {{ {UNTIL_GO}; exec fdpool --connect ./queue 1 -- cat; }} & \
         exec fdaccept --bind ./queue OPTIONS"
    ));
}

#[test]
fn a_consumer_finds_its_way_by_ticket_when_those_who_stall_have_used_up_the_descriptors() {
    assert_consumer_comes(&format!(
        "ulimit -n 24; fdaccept OPTIONS | {{ {UNTIL_GO}; exec fdpool 1 -- cat; }}"
    ));
}

#[test]
fn the_name_of_a_consumer_is_found_when_clients_with_headers_have_used_up_the_descriptors() {
    let mut acceptor = script_with(&format!(
        "ulimit -n 24; {{ {UNTIL_GO}; exec fdpool --bind ./queue 1 -- cat; }} & \
         exec fdaccept --connect ./queue OPTIONS"
    ));
    let mut clients: Vec<_> = (0..60).map(|_| acceptor.says(BEGUN)).collect();
    until("a shortage", || clients[0].is_answered());
    settled(acceptor.pid());
    clients.retain(|client| !client.is_answered());
    for client in &clients {
        complete(client, b"data");
        client.end();
    }
    acceptor.line("cannot connect to ./queue");
    std::fs::write(acceptor.names.file("go"), "").unwrap();
    for client in clients {
        assert_eq!(client.rest(), "data");
    }
}

#[test]
fn the_descriptors_of_fdaccept_are_those_of_before_whatever_clients_did() {
    // With limits a lease for the next client may be there already, or not.
    let limits = &["--max", "50", "--max-per-source", "40"][..];
    for (options, spare) in [(&[][..], 0), (limits, 2)] {
        let options = [&["--proxy-timeout", "2"], options].concat();
        let (mut acceptor, _pool) = proxied("any", &options).with_pool();
        let header = v2(CLIENT, SERVER);
        acceptor.serves(&header);
        let before = settled(acceptor.pid());
        let mut late = Vec::new();
        for _ in 0..20 {
            late.push(acceptor.says(&header[..20]));
            let _bad = acceptor.says(b"GET / HTTP/1.1\r\n");
            let _stranger = acceptor.try_client_from([127, 0, 0, 7]);
            drop(acceptor.says(&header[..10]));
            drop(acceptor.client());
            acceptor.serves(&header);
        }
        acceptor.until_counted("refused by rule", 20);
        acceptor.until_counted("bad header", 80);
        let open = settled(acceptor.pid());
        assert!(open <= before + spare, "{before} {open}");
    }
}
