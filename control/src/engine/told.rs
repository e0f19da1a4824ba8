//! What was told of lately, so that what goes on for hours is told once a minute.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Pause between two events about the same.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Things that were told of lately; beyond, all are forgotten and told again.
const TOLD_MAX: usize = 1_024;

/// What was told of lately, and when.
#[derive(Debug)]
pub(super) struct Told<K>(BTreeMap<K, Instant>);

impl<K> Default for Told<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Told<K> {
    /// Whether it is time to tell of this, which counts as told then.
    pub fn is_news(&mut self, what: K, now: Instant) -> bool {
        self.0.retain(|_, at| now - *at < AGAIN_AFTER);
        if self.0.contains_key(&what) {
            return false;
        }
        if self.0.len() >= TOLD_MAX {
            self.0.clear();
        }
        self.0.insert(what, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_told_of_once_a_minute() {
        let (mut told, start) = (Told::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(told.is_news(1, start));
        assert!(!told.is_news(1, at(59)));
        assert!(told.is_news(2, start), "another");
        assert!(told.is_news(1, at(60)));
    }

    #[test]
    fn what_was_told_of_takes_no_more_than_its_room() {
        let (mut told, now) = (Told::default(), Instant::now());
        for what in 0..=TOLD_MAX {
            assert!(told.is_news(what, now));
            assert!(told.0.len() <= TOLD_MAX);
        }
        assert!(told.is_news(0, now), "forgotten for the last");
    }
}
