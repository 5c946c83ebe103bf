//! Counters of accepted, passed and refused connections.

use std::fmt;

use crate::accept::client::ClientKey;
use crate::system::text::counted;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("a rule denies it")]
    Rule,
    /// Too many connections of all clients.
    #[error("too many connections")]
    Limit,
    /// Too many connections of this client, which has so many.
    #[error("{}", own_limit(.0, *.1))]
    OwnLimit(ClientKey, u32),
    /// The first bytes are no PROXY header, or the connection ended before its header did.
    #[error("no PROXY header")]
    BadHeader,
    #[error("its PROXY header is late")]
    LateHeader,
    /// Too many clients wait for their PROXY header.
    #[error("too many PROXY headers are awaited")]
    Crowd,
    /// Its PROXY header is not complete, and other connections need what it takes.
    #[error("its PROXY header is awaited, and descriptors or memory are short")]
    Shortage,
}

fn own_limit(key: &ClientKey, count: u32) -> String {
    let connections = counted(count as usize, "connection");
    let client = match key {
        // Not the client alone.
        ClientKey::Net(net) if net.prefix_len() < net.max_prefix_len() => net.to_string(),
        _ => "it".to_owned(),
    };
    format!("{client} has {connections} already (--max-per-source {count})")
}

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub accepted: u64,
    /// Put into the queue.
    pub passed: u64,
    pub by_rule: u64,
    pub by_limit: u64,
    /// How often the rate was reached, so that further clients had to wait.
    pub by_rate: u64,
    /// Closed for lack of a PROXY header.
    pub bad_header: u64,
    /// accept(2) failed: the client was gone, or something does not let it in.
    pub failed: u64,
    /// Refused at the door where consumers fetch the queue.
    pub consumers: u64,
}

impl Counters {
    pub fn refused(&mut self, why: Refusal) {
        match why {
            Refusal::Rule => self.by_rule += 1,
            Refusal::Limit | Refusal::OwnLimit(..) => self.by_limit += 1,
            Refusal::BadHeader | Refusal::LateHeader | Refusal::Crowd | Refusal::Shortage => {
                self.bad_header += 1;
            }
        }
    }

    /// The counters in words. `taken` is how many connections consumers have taken, if known.
    pub fn line(&self, taken: Option<u64>) -> impl fmt::Display + use<> {
        Line(*self, taken)
    }
}

struct Line(Counters, Option<u64>);

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Line(counters, taken) = self;
        write!(
            f,
            "accepted {}, passed {}",
            counters.accepted, counters.passed
        )?;
        if let Some(taken) = taken {
            write!(f, ", taken {taken}")?;
        }
        write!(
            f,
            ", refused by rule {}, by limit {}, held up by rate {}, bad header {}, failed {}",
            counters.by_rule,
            counters.by_limit,
            counters.by_rate,
            counters.bad_header,
            counters.failed
        )?;
        match counters.consumers {
            0 => Ok(()),
            count => write!(f, ", consumers refused {count}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_over_its_limit_has_its_number() {
        let net = |text: &str| ClientKey::Net(text.parse().unwrap());
        for (key, most, expected) in [
            (
                net("192.0.2.7/32"),
                3,
                "it has 3 connections already (--max-per-source 3)",
            ),
            (
                net("2001:db8::7/128"),
                1,
                "it has 1 connection already (--max-per-source 1)",
            ),
            (
                ClientKey::User(7),
                2,
                "it has 2 connections already (--max-per-source 2)",
            ),
            (
                net("2001:db8::/64"),
                2,
                "2001:db8::/64 has 2 connections already (--max-per-source 2)",
            ),
        ] {
            assert_eq!(Refusal::OwnLimit(key, most).to_string(), expected);
        }
    }

    #[test]
    fn numbers_become_a_line() {
        let mut counters = Counters {
            accepted: 9,
            passed: 5,
            ..Counters::default()
        };
        counters.refused(Refusal::Rule);
        counters.refused(Refusal::Limit);
        counters.refused(Refusal::OwnLimit(ClientKey::User(7), 1));
        counters.refused(Refusal::LateHeader);
        let rest = "refused by rule 1, by limit 2, held up by rate 0, bad header 1, failed 0";
        let line = counters.line(Some(3)).to_string();
        assert_eq!(line, format!("accepted 9, passed 5, taken 3, {rest}"));
        let line = counters.line(None).to_string();
        assert_eq!(line, format!("accepted 9, passed 5, {rest}"));
        counters.consumers = 4;
        let line = counters.line(None).to_string();
        assert!(line.ends_with(", failed 0, consumers refused 4"), "{line}");
    }
}
