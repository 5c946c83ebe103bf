//! The part of fdaccept's command line that says who is let in.

use std::ffi::OsString;
use std::num::{NonZeroU32, NonZeroUsize};

use clap::Args;
use ipnet::IpNet;

use crate::access::{Access, Verdict, parse_net};
use crate::client::SourcePrefix;
use crate::guard::{Options, WhenFull};
use crate::rate::Rate;
use crate::{Error, Result};

/// Who is let in, and how many.
#[derive(Args, Clone, Debug)]
pub struct GuardArguments {
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
    #[arg(long, value_name = "GID")]
    allow_gid: Vec<u32>,

    /// At most N connections in service at once
    #[arg(long, value_name = "N")]
    max: Option<NonZeroUsize>,

    /// At most N of one client
    #[arg(long, value_name = "N")]
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
}

impl GuardArguments {
    /// Whether there are rules to be read again.
    pub fn has_rules(&self) -> bool {
        self.rules.is_some()
    }

    /// What the command line says, with the users that may connect to Unix sockets.
    ///
    /// # Errors
    /// [`Error::Usage`] for what contradicts itself; [`Error::System`] if a file cannot be read.
    pub fn options(&self, allow_uid: &[u32]) -> Result<Options> {
        if self.when_full.is_some() && self.max.is_none() && self.max_per_source.is_none() {
            return Err(Error::Usage(
                "--when-full needs --max or --max-per-source".into(),
            ));
        }
        let allow = self.allow.iter().map(|net| (Verdict::Allow, *net));
        let deny = self.deny.iter().map(|net| (Verdict::Deny, *net));
        let rules: Vec<_> = allow.chain(deny).collect();
        let (uids, gids) = (allow_uid.to_vec(), self.allow_gid.clone());
        Ok(Options {
            access: Access::new(&rules, self.rules.clone(), uids, gids)?,
            max: self.max.map(NonZeroUsize::get),
            max_per_source: self.max_per_source.map(NonZeroU32::get),
            source_prefix: self.source_prefix.unwrap_or_default(),
            rate: self.rate.clone(),
            when_full: self.when_full.as_deref().map(WhenFull::parse).transpose()?,
        })
    }
}
