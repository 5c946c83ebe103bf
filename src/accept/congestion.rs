//! Says once that clients wait, or are turned away, because there is no room, and once that it is over.
//!
//! A state counts once it has lasted for [`LASTING`], but for breaks of [`BREAK`]: whoever takes a
//! connection makes room for the next one. Once it was logged, breaks up to [`LASTING`] do not end it. The
//! beginning is logged once in [`SELDOM`] at most, and the end only after a beginning that was logged, so
//! that a steady overload costs 2 lines a minute.

use std::time::{Duration, Instant};

const LASTING: Duration = Duration::from_secs(1);
const BREAK: Duration = Duration::from_millis(100);
const SELDOM: Duration = Duration::from_secs(60);

/// What is worth a line now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    Full,
    Room,
}

#[derive(Debug, Default)]
pub(super) struct Congestion {
    is_full: bool,
    /// Since when there is no room, but for short breaks.
    full: Option<Instant>,
    /// Since when there is room, in or after such a time.
    room: Option<Instant>,
    told: Option<Instant>,
    /// The beginning was logged, and the end was not.
    is_told: bool,
}

impl Congestion {
    /// Whether there is no room at the moment. Returns what to log.
    pub fn look(&mut self, is_full: bool, now: Instant) -> Option<News> {
        self.is_full = is_full;
        if is_full {
            let pause = self.room.take().map(|since| now - since);
            if pause.is_some_and(|pause| pause > self.longest_break()) {
                self.full = None;
            }
            self.full.get_or_insert(now);
        } else if self.full.is_some() {
            self.room.get_or_insert(now);
        }
        match self.deadline() {
            Some(due) if due <= now => {}
            _ => return None,
        }
        if is_full {
            self.is_told = true;
            self.told = Some(now);
            return Some(News::Full);
        }
        self.full = None;
        self.room = None;
        std::mem::take(&mut self.is_told).then_some(News::Room)
    }

    /// When to look again, though nothing has changed.
    pub fn deadline(&self) -> Option<Instant> {
        if !self.is_full {
            return self.room.map(|since| since + self.longest_break());
        }
        let since = self.full.filter(|_| !self.is_told)?;
        let again = self.told.map(|told| told + SELDOM);
        again.max(Some(since + LASTING))
    }

    fn longest_break(&self) -> Duration {
        if self.is_told { LASTING } else { BREAK }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is logged of such looks, by their times in milliseconds. As in the loop of fdaccept, it
    /// looks also whenever that is due.
    fn logged(looks: &[(u64, bool)]) -> Vec<(u64, News)> {
        let start = Instant::now();
        let mut congestion = Congestion::default();
        let mut news = Vec::new();
        let mut state = false;
        let mut look = |congestion: &mut Congestion, at: Instant, is_full| {
            let millis = (at - start).as_millis() as u64;
            news.extend(congestion.look(is_full, at).map(|what| (millis, what)));
        };
        for (millis, is_full) in looks {
            let at = start + Duration::from_millis(*millis);
            while let Some(due) = congestion.deadline().filter(|due| *due < at) {
                look(&mut congestion, due, state);
            }
            state = *is_full;
            look(&mut congestion, at, state);
        }
        news
    }

    #[test]
    fn what_lasts_is_logged_once_and_so_is_its_end() {
        let looks = [
            (0, false),
            (100, true),
            (5000, true),
            (9000, false),
            (20000, false),
        ];
        assert_eq!(logged(&looks), [(1100, News::Full), (10000, News::Room)]);
    }

    #[test]
    fn what_is_short_is_not_logged() {
        assert_eq!(logged(&[(0, true), (999, false), (90000, false)]), []);
        assert_eq!(logged(&[(0, false), (90000, false)]), []);
    }

    #[test]
    fn short_breaks_end_nothing() {
        let breaks = (0..100).flat_map(|n| [(n * 1000, true), (n * 1000 + 950, false)]);
        let looks: Vec<_> = breaks.chain([(99_990, true), (200_000, true)]).collect();
        assert_eq!(logged(&looks), [(1000, News::Full)]);
        let later = (0..100).flat_map(|n| [(n * 1000 + 2000, true), (n * 1000 + 2100, false)]);
        let looks: Vec<_> = [(0, true)].into_iter().chain(later).collect();
        assert_eq!(logged(&looks), [(1000, News::Full)]);
    }

    #[test]
    fn moments_without_room_are_not_logged() {
        let moments = (0..1000).flat_map(|n| [(n * 155, true), (n * 155 + 5, false)]);
        assert_eq!(logged(&moments.collect::<Vec<_>>()), []);
    }

    #[test]
    fn an_overload_that_comes_and_goes_costs_two_lines_a_minute() {
        let waves = (0..600).flat_map(|n| [(n * 4000, true), (n * 4000 + 2000, false)]);
        let news = logged(&waves.collect::<Vec<_>>());
        assert!((70..=80).contains(&news.len()), "{news:?}");
        let begun = news.iter().filter(|(_, what)| *what == News::Full);
        let begun: Vec<_> = begun.map(|(at, _)| *at).collect();
        assert!(begun.windows(2).all(|pair| pair[1] - pair[0] >= 60_000));
        let kinds = news.iter().map(|(_, what)| *what);
        let expected = [News::Full, News::Room].into_iter().cycle();
        assert!(kinds.eq(expected.take(news.len())));
    }

    #[test]
    fn what_lasts_beyond_a_minute_of_silence_is_logged_then() {
        let looks = [(0, true), (3000, false), (6000, true), (100_000, true)];
        let expected = [(1000, News::Full), (4000, News::Room), (61000, News::Full)];
        assert_eq!(logged(&looks), expected);
    }

    #[test]
    fn nothing_is_due_while_nothing_happens() {
        let mut congestion = Congestion::default();
        let now = Instant::now();
        assert_eq!(
            (congestion.look(false, now), congestion.deadline()),
            (None, None)
        );
        congestion.look(true, now);
        assert_eq!(congestion.deadline(), Some(now + LASTING));
        assert_eq!(congestion.look(true, now + LASTING), Some(News::Full));
        assert_eq!(congestion.deadline(), None);
    }
}
