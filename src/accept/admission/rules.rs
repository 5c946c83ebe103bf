//! Access rules on addresses, and on users of Unix clients. No I/O, except to read a file of rules.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use crate::error::{Error, Result};
use crate::system::inherited;
use crate::system::read_file::{PATIENCE, read};
use crate::system::text::{digits, printable};

/// The longest file of rules, in bytes: more than a million rules.
const MOST_RULES: usize = 64 << 20;

/// Some editors put U+FEFF in front of a text.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allow,
    Deny,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Allow => "allow",
            Verdict::Deny => "deny",
        }
    }
}

/// All access rules. Without any rule everybody may connect.
#[derive(Clone, Debug, Default)]
pub(crate) struct Access {
    /// The rules of the command line. The file's rules are added to a copy.
    given: Table,
    /// A file with more rules.
    file: Option<PathBuf>,
    /// All rules on addresses.
    table: Table,
    /// Users and groups of Unix clients that may connect.
    uids: Vec<u32>,
    gids: Vec<u32>,
}

impl Access {
    /// Rules on addresses from the command line and `file`; `uids` and `gids` are for Unix clients.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the same CIDR is allowed and denied; [`Error::File`] if a line of the
    /// file is no rule; [`Error::System`] if the file cannot be read.
    pub fn new(
        rules: &[(Verdict, IpNet)],
        file: Option<OsString>,
        uids: Vec<u32>,
        gids: Vec<u32>,
    ) -> Result<Self> {
        let mut given = Table::default();
        for (verdict, net) in rules {
            given.add(*verdict, *net).map_err(Error::Invalid)?;
        }
        let mut access = Self {
            given,
            file: file.map(PathBuf::from),
            table: Table::default(),
            uids,
            gids,
        };
        access
            .file
            .as_deref()
            .map_or(Ok(()), inherited::check_path)?;
        access.reload(PATIENCE)?;
        Ok(access)
    }

    /// Reads the file again. A FIFO has `patience` to give its rules. An error changes nothing.
    ///
    /// # Errors
    /// [`Error::File`], with the number of the bad line; [`Error::System`] if reading fails.
    pub fn reload(&mut self, patience: Duration) -> Result<()> {
        let mut table = self.given.clone();
        if let Some(path) = &self.file {
            let shown = path.display();
            let text = read(path, MOST_RULES + 1, patience)
                .map_err(|error| Error::io(format!("read the rules in {shown}"), error))?;
            if text.len() > MOST_RULES {
                let problem = format!("{shown} has more than {MOST_RULES} bytes");
                return Err(Error::File(problem));
            }
            let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&text);
            table
                .add_lines(text)
                .map_err(|(line, problem)| Error::File(format!("{shown}:{line}: {problem}")))?;
        }
        self.table = table;
        Ok(())
    }

    /// Whether a client with this address may connect. The most specific rule for the address
    /// decides. Without such a rule the client may connect unless there is an `allow` rule.
    pub fn allows(&self, address: IpAddr) -> bool {
        self.table.allows(address)
    }

    /// Whether a Unix client may connect: no user or group is named, or one is the client's.
    pub fn allows_user(&self, uid: u32, gids: &[u32]) -> bool {
        !self.asks_users()
            || self.uids.contains(&uid)
            || gids.iter().any(|gid| self.gids.contains(gid))
    }

    /// Whether there are rules on users or groups.
    pub fn asks_users(&self) -> bool {
        !self.uids.is_empty() || !self.gids.is_empty()
    }
}

/// Rules on addresses.
#[derive(Clone, Debug, Default)]
struct Table {
    v4: PrefixMap<Ipv4Net, Verdict>,
    v6: PrefixMap<Ipv6Net, Verdict>,
    /// With any `allow` rule, an address without a rule is denied.
    allows_something: bool,
}

impl Table {
    fn add(&mut self, verdict: Verdict, net: IpNet) -> Result<(), String> {
        let before = match net {
            IpNet::V4(net) => self.v4.insert(net, verdict),
            IpNet::V6(net) => self.v6.insert(net, verdict),
        };
        self.allows_something |= verdict == Verdict::Allow;
        match before {
            Some(before) if before != verdict => Err(format!("{net} is allowed and denied")),
            _ => Ok(()),
        }
    }

    /// Adds the rules of a file. An error comes with the number of its line.
    fn add_lines(&mut self, text: &[u8]) -> Result<(), (usize, String)> {
        for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let rule = parse_line(line).map_err(|problem| (index + 1, problem))?;
            if let Some((verdict, net)) = rule {
                self.add(verdict, net)
                    .map_err(|problem| (index + 1, problem))?;
            }
        }
        Ok(())
    }

    fn allows(&self, address: IpAddr) -> bool {
        let found = match address.to_canonical() {
            IpAddr::V4(address) => self.v4.get_lpm(&address.into()).map(|(_, verdict)| verdict),
            IpAddr::V6(address) => self.v6.get_lpm(&address.into()).map(|(_, verdict)| verdict),
        };
        match found {
            Some(verdict) => *verdict == Verdict::Allow,
            None => !self.allows_something,
        }
    }
}

/// Parses a line of a file: `allow CIDR`, `deny CIDR`, or nothing but a comment.
fn parse_line(line: &[u8]) -> Result<Option<(Verdict, IpNet)>, String> {
    let problem = || format!("not a rule (allow CIDR, deny CIDR): {}", printable(line));
    let text = std::str::from_utf8(line).map_err(|_| problem())?;
    let text = text.split_once('#').map_or(text, |(rule, _)| rule);
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let (word, net) = match words[..] {
        [] => return Ok(None),
        [word, net] => (word, net),
        _ => return Err(problem()),
    };
    let verdicts = [Verdict::Allow, Verdict::Deny];
    let verdict = verdicts.into_iter().find(|verdict| verdict.word() == word);
    Ok(Some((verdict.ok_or_else(problem)?, parse_net(net)?)))
}

/// Parses a network in CIDR notation, or a single address. Ignores bits beyond the prefix. An
/// IPv4-mapped IPv6 network becomes the IPv4 network.
///
/// # Errors
/// The problem, in words.
pub(crate) fn parse_net(text: &str) -> Result<IpNet, String> {
    // The parser of IpNet itself takes leading zeros, which other programs take for octal.
    let net = match text.split_once('/') {
        None => text.parse::<IpAddr>().ok().map(IpNet::from),
        Some((ip, bits)) => {
            let parts = ip.parse::<IpAddr>().ok().zip(digits(bits));
            parts.and_then(|(ip, bits)| IpNet::new(ip, bits).ok())
        }
    };
    let net =
        net.ok_or_else(|| format!("not an address or CIDR: {}", printable(text.as_bytes())))?;
    Ok(unmapped(net).trunc())
}

/// The first 96 bits of a mapped address only mark it as mapped.
fn unmapped(net: IpNet) -> IpNet {
    const MAPPED: u8 = 96;
    let IpNet::V6(v6) = net else {
        return net;
    };
    let address = v6.addr().to_ipv4_mapped();
    let prefix = v6.prefix_len().checked_sub(MAPPED);
    let v4 = address.zip(prefix);
    let v4 = v4.and_then(|(address, prefix)| Ipv4Net::new(address, prefix).ok());
    v4.map_or(net, IpNet::V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(rules: &str) -> Access {
        let mut table = Table::default();
        table
            .add_lines(rules.replace("; ", "\n").as_bytes())
            .unwrap();
        Access {
            table,
            ..Access::default()
        }
    }

    #[track_caller]
    fn assert_allows(rules: &str, address: &str, expected: bool) {
        let allowed = access(rules).allows(address.parse().unwrap());
        assert_eq!(allowed, expected, "{rules}: {address}");
    }

    #[test]
    fn the_most_specific_rule_decides() {
        let rules = "allow 10.0.0.0/8; deny 10.1.0.0/16; allow 10.1.2.3";
        for order in [rules, "allow 10.1.2.3; deny 10.1.0.0/16; allow 10.0.0.0/8"] {
            assert_allows(order, "10.2.0.1", true);
            assert_allows(order, "10.1.0.1", false);
            assert_allows(order, "10.1.2.3", true);
        }
        assert_allows("deny ::/0; allow 2001:db8::/32", "2001:db8::1", true);
        assert_allows("deny ::/0; allow 2001:db8::/32", "2001:db9::1", false);
    }

    #[test]
    fn what_no_rule_knows_is_allowed_unless_something_is() {
        assert_allows("", "192.0.2.1", true);
        assert_allows("deny 10.0.0.0/8", "192.0.2.1", true);
        assert_allows("allow 10.0.0.0/8", "192.0.2.1", false);
        assert_allows("allow 10.0.0.0/8", "2001:db8::1", false);
        assert_allows("deny 0.0.0.0/0", "2001:db8::1", true);
    }

    #[test]
    fn mapped_addresses_are_the_ipv4_ones() {
        assert_allows("deny 10.0.0.0/8", "::ffff:10.1.1.1", false);
        assert_allows("deny ::ffff:10.0.0.0/104", "10.1.1.1", false);
        assert_allows("deny ::ffff:10.0.0.1", "10.0.0.1", false);
        // ::/0 does not contain IPv4.
        assert_allows("deny ::/0", "::ffff:10.1.1.1", true);
    }

    #[test]
    fn bits_beyond_the_prefix_do_not_matter() {
        assert_allows("deny 10.1.1.1/8", "10.2.2.2", false);
    }

    #[test]
    fn a_line_that_is_no_rule_is_told_by_its_number() {
        let bad = [
            "allow",
            "permit 10.0.0.0/8",
            "allow 10.0.0.0/33",
            "allow 10.0.0.0/8 x",
            "ALLOW ::/0",
            "allow 10.0.0",
            "allow host.example",
            "allow 10.0.0.0/-1",
            "allow 10.0.0.0/",
            "allow 10.0.0.1-2",
            "allow ::/129",
            "allow 10.0.0.0/08",
            "allow 10.0.0.0/+8",
            "allow 010.0.0.0/8",
            "deny /8",
        ];
        for line in bad {
            let text = format!("# rules\n\nallow 127.0.0.1 # here\n{line}\n");
            let (number, problem) = Table::default().add_lines(text.as_bytes()).unwrap_err();
            assert_eq!(number, 4, "{line}: {problem}");
        }
        let (number, _) = Table::default().add_lines(b"allow \xff").unwrap_err();
        assert_eq!(number, 1);
    }

    #[test]
    fn a_contradiction_is_an_error() {
        let text = b"allow 10.0.0.0/8\ndeny 10.1.1.1/8";
        let (number, problem) = Table::default().add_lines(text).unwrap_err();
        assert_eq!(
            (number, problem.as_str()),
            (2, "10.0.0.0/8 is allowed and denied")
        );
        assert!(Table::default().add_lines(b"deny ::1\ndeny ::1").is_ok());
    }

    #[test]
    fn unix_clients_are_known_by_user_or_group() {
        let mut access = Access::default();
        assert!(access.allows_user(5, &[5]) && !access.asks_users());
        access.uids = vec![7];
        access.gids = vec![8, 9];
        assert!(access.asks_users());
        assert!(access.allows_user(7, &[1]));
        assert!(access.allows_user(1, &[3, 9]));
        assert!(!access.allows_user(8, &[7]));
        assert!(!access.allows_user(0, &[0]));
    }
}
