//! The options of fdaccept that decide which clients are admitted.

use std::ffi::OsString;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;

use crate::accept::admission::rate::Rate;
use crate::accept::admission::rules::{Access, Verdict, parse_net};
use crate::accept::admission::{AdmissionOptions, WhenFull};
use crate::accept::client::SourcePrefix;
use crate::accept::listen::{Listener, Transport};
use crate::accept::proxy::header::Version;
use crate::accept::proxy::{AwaitedHeaders, ProxyOptions};
use crate::cli::usage;
use crate::system::text::{parse_number, parse_timeout};

/// Access rules and limits.
#[derive(Args, Clone, Debug)]
pub(super) struct AdmissionArguments {
    /// Let clients from CIDR in, and from nowhere else (repeatable; the most specific rule decides)
    #[arg(long, value_name = "CIDR", value_parser = parse_net)]
    allow: Vec<IpNet>,

    /// Turn clients from CIDR away (repeatable; the most specific rule decides)
    #[arg(long, value_name = "CIDR", value_parser = parse_net)]
    deny: Vec<IpNet>,

    /// Read such rules from FILE, a line each: allow CIDR or deny CIDR; HUP reads it again
    #[arg(long, value_name = "FILE")]
    rules: Option<OsString>,

    /// On a Unix socket: let clients of group GID in (repeatable)
    #[arg(long, value_name = "GID", value_parser = parse_number::<u32>)]
    allow_gid: Vec<u32>,

    /// At most N connections in service at once
    #[arg(long, value_name = "N", value_parser = parse_number::<NonZeroUsize>)]
    max: Option<NonZeroUsize>,

    /// At most N of one client
    #[arg(long, value_name = "N", value_parser = parse_number::<NonZeroU32>)]
    max_per_source: Option<NonZeroU32>,

    /// The bits of an IPv4 and of an IPv6 address that tell one client from another [default: 32,64]
    #[arg(long, value_name = "V4,V6", requires = "max_per_source", value_parser = SourcePrefix::parse)]
    source_prefix: Option<SourcePrefix>,

    /// Accept at most N in so many seconds; more wait
    #[arg(long, value_name = "N/SECONDS", value_parser = Rate::parse)]
    rate: Option<Rate>,

    /// What becomes of clients that are too many: wait, close, or a FILE that is sent to them
    #[arg(long, value_name = "wait|close|FILE")]
    when_full: Option<OsString>,

    /// Expect a PROXY header on each connection: the client that it names is the client
    #[arg(long, value_name = "v1|v2|any", requires = "proxy_from", value_parser = Version::parse)]
    proxy_protocol: Option<Version>,

    /// Who may say such a header; nobody else may connect (repeatable)
    #[arg(long, value_name = "CIDR", requires = "proxy_protocol", value_parser = parse_net)]
    proxy_from: Vec<IpNet>,

    /// How long a header may take [default: 5]
    #[arg(long, value_name = "SECONDS", requires = "proxy_protocol", value_parser = parse_timeout)]
    proxy_timeout: Option<Duration>,
}

const PROXY_TIMEOUT: Duration = Duration::from_secs(5);

impl AdmissionArguments {
    /// Whether HUP has rules to read again.
    pub fn has_rules(&self) -> bool {
        self.rules.is_some()
    }

    /// Whether connections in service are counted.
    pub fn has_limits(&self) -> bool {
        self.max.is_some() || self.max_per_source.is_some()
    }

    /// The PROXY headers to await on `listeners`, if any.
    pub fn awaited_headers(
        &self,
        listeners: &[Listener],
    ) -> anyhow::Result<Option<AwaitedHeaders>> {
        let Some(version) = self.proxy_protocol else {
            return Ok(None);
        };
        let is_other = |listener: &&Listener| listener.transport() != Transport::Tcp;
        if let Some(other) = listeners.iter().find(is_other) {
            return Err(usage(format!(
                "--proxy-protocol is for TCP alone, which {other} is not"
            )));
        }
        let headers = AwaitedHeaders::new(ProxyOptions {
            version,
            from: self.proxy_from.clone(),
            timeout: self.proxy_timeout.unwrap_or(PROXY_TIMEOUT),
        })?;
        Ok(Some(headers))
    }

    /// What the command line says. `allow_uid` names the users that may connect to Unix sockets.
    pub fn options(&self, allow_uid: &[u32]) -> anyhow::Result<AdmissionOptions> {
        if self.when_full.is_some() && !self.has_limits() {
            return Err(usage("--when-full needs --max or --max-per-source"));
        }
        let allow = self.allow.iter().map(|net| (Verdict::Allow, *net));
        let deny = self.deny.iter().map(|net| (Verdict::Deny, *net));
        let rules: Vec<_> = allow.chain(deny).collect();
        let (uids, gids) = (allow_uid.to_vec(), self.allow_gid.clone());
        let options = AdmissionOptions {
            access: Access::new(&rules, self.rules.clone(), uids, gids)?,
            max: self.max.map(NonZeroUsize::get),
            max_per_source: self.max_per_source.map(NonZeroU32::get),
            source_prefix: self.source_prefix.unwrap_or_default(),
            rate: self.rate.clone(),
            when_full: self.when_full.as_deref().map(WhenFull::parse).transpose()?,
        };
        if options.when_full == Some(WhenFull::Wait) && options.max.is_none() {
            return Err(usage(
                "--when-full wait needs --max: one client cannot be left in the backlog without \
                 those behind it",
            ));
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        _admission: AdmissionArguments,
    }

    #[track_caller]
    fn refuses(option: &str, values: &[&str]) {
        for value in values {
            let argument = format!("{option}={value}");
            let error = Program::try_parse_from(["fdaccept", &argument]).err();
            let text = error.expect(&argument).to_string();
            assert!(text.contains(option), "{argument}: {text}");
        }
    }

    #[test]
    fn limits_groups_and_networks_are_checked() {
        for option in ["--max", "--max-per-source"] {
            let too_large = "99999999999999999999999";
            refuses(option, &["0", "-1", "+1", "01", "", "x", "1.5", too_large]);
        }
        refuses("--allow-gid", &["", "x", "-1", "+1", "01", "4294967296"]);
        for option in ["--allow", "--deny"] {
            refuses(option, &["", "x", "10.0.0.0/33", "localhost"]);
        }
        refuses("--rate", &["", "0/1", "5/0", "+5/1", "05/1", "5/+1"]);
    }
}
