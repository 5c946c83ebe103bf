//! Clients that their own limit turns away. Each is named once, and how often it is refused besides is
//! counted until its last connection has gone.
//!
//! Strangers can have very many addresses. So few clients are named at a time, and few in a minute, each
//! once; of the others only the total is known. No clock, no I/O.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::accept::client::ClientKey;

const MINUTE: Duration = Duration::from_secs(60);
/// How many clients are named in a minute.
const MOST_IN_A_MINUTE: usize = 16;
/// How many named clients there are at a time.
const MOST: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Excess {
    /// How often each named client was refused besides.
    named: BTreeMap<ClientKey, u64>,
    /// Who was named in the last minute, the oldest first.
    lately: VecDeque<(Instant, ClientKey)>,
}

impl Excess {
    /// A client is refused. Returns whether to name it.
    pub fn refuse(&mut self, key: ClientKey, now: Instant) -> bool {
        if let Some(besides) = self.named.get_mut(&key) {
            *besides += 1;
            return false;
        }
        self.lately.retain(|(at, _)| now - *at < MINUTE);
        let was_named = self.lately.iter().any(|(_, other)| *other == key);
        if was_named || self.lately.len() == MOST_IN_A_MINUTE || self.named.len() == MOST {
            return false;
        }
        self.lately.push_back((now, key));
        self.named.insert(key, 0);
        true
    }

    /// Forgets the named clients that have no connection left. Returns who was refused besides, and how
    /// often.
    pub fn end(&mut self, has_any: impl Fn(&ClientKey) -> bool) -> Vec<(ClientKey, u64)> {
        let mut ended = Vec::new();
        self.named.retain(|key, besides| {
            let stays = has_any(key);
            if !stays && *besides > 0 {
                ended.push((*key, *besides));
            }
            stays
        });
        ended
    }

    /// Who was refused besides, and how often, since this was last asked.
    pub fn so_far(&mut self) -> Vec<(ClientKey, u64)> {
        let all = self.named.iter_mut();
        let all = all.map(|(key, besides)| (*key, std::mem::take(besides)));
        all.filter(|(_, besides)| *besides > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: ClientKey = ClientKey::User(7);

    #[test]
    fn a_client_is_named_once_and_counted_until_its_last_connection_has_gone() {
        let (mut excess, now) = (Excess::default(), Instant::now());
        assert!(excess.refuse(KEY, now));
        assert!(!excess.refuse(KEY, now));
        assert!(!excess.refuse(KEY, now + MINUTE * 5));
        assert_eq!(excess.end(|_| true), []);
        assert_eq!(excess.end(|_| false), [(KEY, 2)]);
        assert_eq!(excess.end(|_| false), []);
    }

    #[test]
    fn what_was_told_in_between_is_not_told_again() {
        let (mut excess, now) = (Excess::default(), Instant::now());
        assert!(excess.refuse(KEY, now));
        assert_eq!(excess.so_far(), []);
        excess.refuse(KEY, now);
        assert_eq!(excess.so_far(), [(KEY, 1)]);
        assert_eq!(excess.so_far(), []);
        excess.refuse(KEY, now);
        assert_eq!(excess.end(|_| false), [(KEY, 1)]);
    }

    #[test]
    fn a_client_that_comes_and_goes_is_named_once_a_minute() {
        let (mut excess, start) = (Excess::default(), Instant::now());
        let is_named = |second: &u64| {
            let is_named = excess.refuse(KEY, start + Duration::from_secs(*second));
            excess.refuse(KEY, start + Duration::from_secs(*second));
            assert_eq!(excess.end(|_| false).len(), usize::from(is_named));
            is_named
        };
        let named: Vec<_> = (0..=180).filter(is_named).collect();
        assert_eq!(named, [0, 60, 120, 180]);
    }

    #[test]
    fn few_of_very_many_clients_are_named_and_remembered() {
        let (mut excess, start) = (Excess::default(), Instant::now());
        let mut named = 0;
        for number in 0..100_000 {
            let at = start + Duration::from_millis(u64::from(number) * 3);
            named += usize::from(excess.refuse(ClientKey::User(number), at));
            assert!(excess.lately.len() <= MOST_IN_A_MINUTE);
            if number % 1000 == 0 {
                assert_eq!(excess.end(|_| false), []);
            }
        }
        // In 5 minutes.
        assert_eq!(named, 5 * MOST_IN_A_MINUTE);
        let many = (0..1000).map(|number| ClientKey::User(200_000 + number));
        for (minute, key) in many.enumerate() {
            excess.refuse(key, start + MINUTE * (6 + minute as u32));
        }
        assert!(excess.named.len() <= MOST);
    }
}
