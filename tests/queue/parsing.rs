//! Everything that parses what comes from outside: whatever it is given, it does not panic, and
//! what it accepts is valid.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use fdtools::queue::message::{Info, MAX_PAYLOAD, UnixPeer, VARIABLES, VERSION_LINE, Variable};
use fdtools::queue::ticket::{self, Ticket};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::Union;

/// A variable with a value that it may have.
fn valid() -> impl Strategy<Value = (Variable, Vec<u8>)> {
    let path = vec(any::<u8>(), 1..120).prop_map(|mut path| {
        path.retain(|byte| !byte.is_ascii_control());
        path.push(b'/');
        path
    });
    let ip = any::<IpAddr>().prop_map(|ip| ip.to_string().into_bytes());
    let port = any::<u16>().prop_map(|port| port.to_string().into_bytes());
    let number = any::<u32>().prop_map(|number| number.to_string().into_bytes());
    let protocol = select(vec![b"TCP".to_vec(), b"IPC".to_vec()]);
    (select(VARIABLES), path, ip, port, number, protocol).prop_map(
        |(variable, path, ip, port, number, protocol)| {
            let value = match variable.name() {
                "PROTO" => protocol,
                name if name.ends_with("IP") || name.ends_with("ADDR") => ip,
                name if name.ends_with("PORT") => port,
                name if name.ends_with("PATH") => path,
                _ => number,
            };
            (variable, value)
        },
    )
}

/// A payload that the library wrote, and the information that it says.
fn payload() -> impl Strategy<Value = (Info, Vec<u8>)> {
    vec(valid(), 0..14).prop_map(|values| {
        let mut info = Info::new();
        for (variable, value) in values {
            assert!(info.set(variable, &value), "{variable:?} {value:?}");
        }
        let payload = info.encode();
        (info, payload)
    })
}

/// Lines that look like a payload's.
fn likely_lines() -> impl Strategy<Value = Vec<u8>> {
    let names = VARIABLES.iter().map(|variable| variable.name());
    let names: Vec<_> = names.chain(["FDTOOLS", "PATH", "LD_PRELOAD", ""]).collect();
    let values = Union::new([
        select(vec![
            "TCP",
            "IPC",
            "::1",
            "192.0.2.1",
            "80",
            "0",
            "65536",
            "-1",
            "/x",
            "a b",
        ])
        .prop_map(|text| text.as_bytes().to_vec())
        .boxed(),
        vec(any::<u8>(), 0..20).boxed(),
    ]);
    let line = (select(names), values).prop_map(|(name, value)| {
        let mut line = name.as_bytes().to_vec();
        line.push(b'=');
        line.extend(value);
        line.push(b'\n');
        line
    });
    vec(line, 0..10).prop_map(|lines| [VERSION_LINE, &lines.concat()].concat())
}

/// Some change of some bytes.
fn mutate(bytes: &mut Vec<u8>, changes: &[(u8, usize, u8)]) {
    for (kind, at, byte) in changes {
        let at = at % (bytes.len() + 1);
        match kind % 4 {
            0 => bytes.insert(at, *byte),
            1 => bytes.truncate(at),
            2 if at < bytes.len() => bytes[at] = *byte,
            _ if at < bytes.len() => {
                bytes.remove(at);
            }
            _ => {}
        }
    }
}

fn changes() -> impl Strategy<Value = Vec<(u8, usize, u8)>> {
    vec((any::<u8>(), any::<usize>(), any::<u8>()), 1..5)
}

/// Whether a variable has a value that it may have: said here once more, in other words.
fn is_valid(name: &str, value: &[u8]) -> bool {
    let text = std::str::from_utf8(value).unwrap_or("?");
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match name {
        "PROTO" => ["TCP", "IPC"].contains(&text),
        "TCPREMOTEIP" | "TCPLOCALIP" | "REMOTE_ADDR" => text.parse::<IpAddr>().is_ok(),
        "TCPREMOTEPORT" | "TCPLOCALPORT" | "REMOTE_PORT" => digits && text.parse::<u16>().is_ok(),
        "IPCREMOTEEUID" | "IPCREMOTEEGID" | "IPCREMOTEPID" | "TCPCONNNUM" => {
            digits && text.parse::<u32>().is_ok()
        }
        "IPCREMOTEPATH" | "IPCLOCALPATH" => {
            !value.is_empty() && value.iter().all(|byte| *byte >= 0x20 && *byte != 0x7f)
        }
        _ => false,
    }
}

/// Checks what was decoded: no name outside the table, none twice, and no bad value.
fn check(payload: &[u8]) -> Result<(), TestCaseError> {
    let Some(info) = Info::decode(payload) else {
        return Ok(());
    };
    prop_assert!(payload.len() <= MAX_PAYLOAD && payload.starts_with(VERSION_LINE));
    let mut seen = BTreeSet::new();
    for (variable, value) in info.variables() {
        prop_assert!(is_valid(variable.name(), value), "{variable:?} {value:?}");
        prop_assert!(seen.insert(variable.name()), "{} twice", variable.name());
    }
    let client = info.client();
    prop_assert!(!client.is_empty() && !client.chars().any(char::is_control));
    prop_assert_eq!(Info::decode(&info.encode()), Some(info));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_payload_says_what_was_put_in((info, payload) in payload()) {
        prop_assert!(payload.len() <= MAX_PAYLOAD);
        prop_assert_eq!(Info::decode(&payload), Some(info));
    }

    #[test]
    fn any_bytes_decode_to_valid_values_or_nothing(bytes in vec(any::<u8>(), 0..5000)) {
        check(&bytes)?;
        check(&[VERSION_LINE, &bytes].concat())?;
    }

    #[test]
    fn likely_lines_decode_to_valid_values_or_nothing(payload in likely_lines()) {
        check(&payload)?;
    }

    #[test]
    fn a_changed_payload_decodes_to_valid_values_or_nothing(
        (_, mut payload) in payload(),
        changes in changes(),
    ) {
        mutate(&mut payload, &changes);
        check(&payload)?;
    }

    #[test]
    fn two_payloads_one_behind_the_other_are_none((_, one) in payload(), (_, other) in payload()) {
        prop_assert_eq!(Info::decode(&[one, other].concat()), None);
    }

    #[test]
    fn a_payload_that_was_cut_within_a_line_is_none((_, payload) in payload(), at: prop::sample::Index) {
        let cut = &payload[..at.index(payload.len())];
        prop_assert_eq!(Info::decode(cut).is_some(), cut.ends_with(b"\n"));
    }

    #[test]
    fn a_tcp_connection_is_told_with_addresses_that_parse(remote: SocketAddr, local: SocketAddr) {
        let info = Info::tcp(remote, local);
        check(&info.encode())?;
        let told: Vec<_> = info.variables().map(|(variable, _)| variable.name()).collect();
        for name in ["TCPREMOTEIP", "TCPREMOTEPORT", "TCPLOCALIP", "TCPLOCALPORT", "REMOTE_ADDR"] {
            prop_assert!(told.contains(&name));
        }
        prop_assert_eq!(info.client(), remote.ip().to_canonical().to_string());
    }

    #[test]
    fn no_path_of_a_client_writes_a_line(path in vec(any::<u8>(), 0..200), local in vec(any::<u8>(), 0..200)) {
        let info = Info::unix(UnixPeer {
            credentials: Some((1, 2, 3)),
            remote_path: Some(&path),
            local_path: Some(&local),
        });
        let payload = info.encode();
        check(&payload)?;
        let lines = payload.iter().filter(|byte| **byte == b'\n').count();
        prop_assert_eq!(lines, 1 + info.variables().count());
        prop_assert_eq!(info.client(), "1:2");
    }

    #[test]
    fn a_value_that_is_too_long_is_left_out_and_the_rest_is_said(length in 3900usize..5000) {
        let long = vec![b'x'; length];
        let info = Info::unix(UnixPeer {
            credentials: Some((1, 2, 3)),
            remote_path: Some(&long),
            local_path: Some(b"/run/s"),
        });
        let payload = info.encode();
        prop_assert!(payload.len() <= MAX_PAYLOAD);
        let decoded = Info::decode(&payload).unwrap();
        prop_assert_eq!(decoded.client(), "1:2");
        for (variable, value) in decoded.variables() {
            prop_assert_eq!(info.get(variable), Some(value));
        }
    }

    #[test]
    fn any_bytes_are_no_ticket(bytes in vec(any::<u8>(), 0..200)) {
        prop_assert_eq!(Ticket::parse(&bytes), None);
        prop_assert!(matches!(ticket::read(&bytes[..]), Ok(None) | Err(_)));
    }

    #[test]
    fn likely_lines_are_tickets_only_if_they_are_what_a_ticket_is(
        door in "[0-9a-f]{31,33}", uid in "[0-9]{9,11}", token in "[0-9a-fA-F]{32}", end in "\n?",
    ) {
        let line = format!("fdtools-ticket 1 {door} {uid} {token}{end}");
        let good = door.len() == 32
            && uid.len() == 10
            && uid.parse::<u32>().is_ok()
            && !token.bytes().any(|byte| byte.is_ascii_uppercase())
            && end == "\n";
        match Ticket::parse(line.as_bytes()) {
            Some(ticket) => {
                prop_assert!(good);
                prop_assert_eq!(ticket.encode(), line);
            }
            None => prop_assert!(!good),
        }
    }

    #[test]
    fn a_changed_ticket_is_none_or_what_it_says(
        door in "[0-9a-f]{32}", uid: u32, token in "[0-9a-f]{32}", changes in changes(),
    ) {
        let mut line = format!("fdtools-ticket 1 {door} {uid:010} {token}\n").into_bytes();
        prop_assert_eq!(line.len(), ticket::LENGTH);
        prop_assert!(Ticket::parse(&line).is_some());
        mutate(&mut line, &changes);
        if let Some(ticket) = Ticket::parse(&line) {
            prop_assert_eq!(ticket.encode().into_bytes(), line);
        }
    }

    #[test]
    fn a_reader_takes_tickets_one_by_one(uids in vec(any::<u32>(), 0..5), rest in vec(any::<u8>(), 0..94)) {
        let lines: Vec<_> = uids
            .iter()
            .map(|uid| format!("fdtools-ticket 1 {:032x} {uid:010} {:032x}\n", 1, 2))
            .collect();
        let all = [lines.concat().as_bytes(), &rest].concat();
        let mut pipe = &all[..];
        for line in &lines {
            let ticket = ticket::read(&mut pipe).unwrap().unwrap();
            prop_assert_eq!(&ticket.encode(), line);
        }
        prop_assert_eq!(pipe, &rest[..]);
        match ticket::read(&mut pipe) {
            Ok(None) => prop_assert!(rest.is_empty()),
            Ok(Some(_)) => prop_assert!(false, "{rest:?} is a ticket"),
            Err(_) => {}
        }
    }
}
