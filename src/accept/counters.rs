//! Counters of accepted, passed and refused connections.

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("a rule denies it")]
    Rule,
    /// Too many connections, of all clients or of this client.
    #[error("too many connections")]
    Limit,
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
            Refusal::Limit => self.by_limit += 1,
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
    fn numbers_become_a_line() {
        let mut counters = Counters {
            accepted: 9,
            passed: 5,
            ..Counters::default()
        };
        counters.refused(Refusal::Rule);
        counters.refused(Refusal::Limit);
        counters.refused(Refusal::Limit);
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
