//! Storms: when storm control begins to drop what enters by a port, and when it has ended.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use dataplane_core::addr::PortId;
use dataplane_core::l2::FloodClass;

use super::Engine;
use crate::events::EventKind;

/// A storm that has dropped nothing for so long is over. One that flares up sooner is the same, so
/// a port and class tell of at most two events in this time.
const CALM: Duration = Duration::from_secs(5);

/// The storms that there are.
#[derive(Debug, Default)]
pub(super) struct Storms {
    /// Frames that were dropped of each port and class, at the last look.
    seen: BTreeMap<(PortId, usize), u64>,
    running: BTreeMap<(PortId, usize), Storm>,
}

#[derive(Debug)]
struct Storm {
    /// Frames that were dropped before it began.
    before: u64,
    last: Instant,
}

/// What is new of a storm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It has begun.
    Began,
    /// It is over, after so many frames.
    Ended(u64),
}

impl Storms {
    /// Takes note of how many frames of a port and class have been dropped by `now`.
    pub fn observe(
        &mut self,
        port: PortId,
        class: FloodClass,
        dropped: u64,
        now: Instant,
    ) -> Option<Change> {
        let key = (port, class as usize);
        let seen = self.seen.insert(key, dropped).unwrap_or(0);
        let grown = dropped > seen;
        let Some(storm) = self.running.get_mut(&key) else {
            let storm = Storm {
                before: seen,
                last: now,
            };
            return grown.then(|| {
                self.running.insert(key, storm);
                Change::Began
            });
        };
        if grown {
            storm.last = now;
            return None;
        }
        if now.saturating_duration_since(storm.last) < CALM {
            return None;
        }
        let count = dropped.saturating_sub(storm.before);
        self.running.remove(&key);
        Some(Change::Ended(count))
    }

    /// Forgets ports that are gone.
    pub fn retain(&mut self, is_there: impl Fn(PortId) -> bool) {
        self.seen.retain(|(port, _), _| is_there(*port));
        self.running.retain(|(port, _), _| is_there(*port));
    }
}

impl Engine {
    /// Looks at what storm control has dropped, and tells what is new.
    pub(super) async fn watch_storms(&self) {
        let mut state = self.state().await;
        let mut storms = std::mem::take(&mut state.storms);
        let now = Instant::now();
        for endpoint in state.desired.endpoints.values() {
            for class in FloodClass::ALL {
                let dropped = self.dataplane.storm().dropped(endpoint.port, class);
                let label = class.label();
                let change = storms.observe(endpoint.port, class, dropped, now);
                let (kind, text) = match change {
                    None => continue,
                    Some(Change::Began) => {
                        let text = format!("port '{}' floods too much {label}", endpoint.name);
                        (EventKind::StormBegan, text)
                    }
                    Some(Change::Ended(count)) => {
                        let name = &endpoint.name;
                        let text = format!(
                            "port '{name}' no longer floods too much {label}: {count} frames were \
                             dropped"
                        );
                        (EventKind::StormEnded, text)
                    }
                };
                self.tell_port(&state, kind, endpoint, text);
            }
        }
        storms.retain(|port| state.desired.endpoints.contains_key(&port));
        state.storms = storms;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_is_told_when_it_begins_and_when_it_has_been_calm_for_a_while() {
        let mut storms = Storms::default();
        let start = Instant::now();
        let mut look = |seconds, dropped| {
            let now = start + Duration::from_secs(seconds);
            storms.observe(PortId(1), FloodClass::Broadcast, dropped, now)
        };
        assert_eq!(look(0, 0), None);
        assert_eq!(look(1, 10), Some(Change::Began));
        assert_eq!(look(2, 500), None, "one and the same");
        assert_eq!(look(6, 500), None, "not calm for long enough");
        assert_eq!(look(7, 510), None);
        assert_eq!(look(11, 510), None);
        assert_eq!(look(12, 510), Some(Change::Ended(510)));
        assert_eq!(look(13, 510), None);
        assert_eq!(look(14, 511), Some(Change::Began));
        assert_eq!(look(20, 511), Some(Change::Ended(1)));
    }

    #[test]
    fn ports_and_classes_have_storms_of_their_own_and_a_new_port_none() {
        let mut storms = Storms::default();
        let now = Instant::now();
        let (broadcast, multicast) = (FloodClass::Broadcast, FloodClass::Multicast);
        let began = Some(Change::Began);
        assert_eq!(storms.observe(PortId(1), broadcast, 5, now), began);
        assert_eq!(storms.observe(PortId(1), multicast, 0, now), None);
        assert_eq!(storms.observe(PortId(2), broadcast, 5, now), began);
        storms.retain(|port| port == PortId(1));
        assert_eq!(storms.observe(PortId(1), broadcast, 6, now), None);
        assert_eq!(storms.observe(PortId(2), broadcast, 5, now), began);
    }
}
