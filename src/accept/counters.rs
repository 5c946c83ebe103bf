//! What became of connections, counted.

use std::fmt;

/// Why a connection was not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// A rule denies its client.
    #[error("a rule denies it")]
    Rule,
    /// There are too many, of all clients or of this one.
    #[error("too many connections")]
    Limit,
    /// What it said first is no PROXY header, or it ended before that was complete.
    #[error("no PROXY header")]
    BadHeader,
    /// Its PROXY header was not complete in time.
    #[error("its PROXY header is late")]
    LateHeader,
    /// Too many others had not said their PROXY header either.
    #[error("too many PROXY headers are awaited")]
    Crowd,
}

/// Numbers since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Accepted from a listener.
    pub accepted: u64,
    /// Put into the queue.
    pub passed: u64,
    /// Turned away by a rule.
    pub by_rule: u64,
    /// Turned away by a limit.
    pub by_limit: u64,
    /// How often the rate was reached, and further ones had to wait.
    pub by_rate: u64,
    /// Closed for want of a PROXY header.
    pub bad_header: u64,
    /// Failed while they were accepted: the client was gone.
    pub failed: u64,
}

impl Counters {
    /// Counts one that is turned away.
    pub fn refused(&mut self, why: Refusal) {
        match why {
            Refusal::Rule => self.by_rule += 1,
            Refusal::Limit => self.by_limit += 1,
            Refusal::BadHeader | Refusal::LateHeader | Refusal::Crowd => self.bad_header += 1,
        }
    }

    /// All of them in words, with how many connections consumers have taken, if that is known.
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
        )
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
    }
}
