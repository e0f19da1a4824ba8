//! What has happened, for people and programs that want to follow it: the last [`EVENTS_MAX`], and
//! a stream of those to come.
//!
//! An event is told once, where it happens; the log gets the same sentence. Whoever reads too slowly
//! finds a gap in the numbers and is told of it; the one who tells never waits.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;

/// Events that are kept; older ones give way.
pub const EVENTS_MAX: usize = 4_096;

/// What kind of thing has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// An endpoint was attached.
    EndpointAttached,
    /// An endpoint was detached, or its sandbox has ended.
    EndpointDetached,
    /// What is set of a port was changed.
    PortChanged,
    /// A port no longer carries frames.
    PortDown,
    /// A port carries frames again.
    PortUp,
    /// A port was taken out of use, for it is part of a loop.
    PortBlocked,
    /// A blocked port was taken into use again.
    PortUnblocked,
    /// A network was created.
    NetworkCreated,
    /// A network was changed.
    NetworkChanged,
    /// A network was removed.
    NetworkRemoved,
    /// The host has its NIC back, for nobody confirmed its move, or no daemon was there.
    NicReturned,
    /// A port was published.
    Published,
    /// A publication ended.
    Unpublished,
    /// A station is heard now on one port, now on another.
    MacFlap,
    /// An address is claimed by another MAC than its endpoint's.
    DuplicateAddress,
    /// A loop probe came back: two ports are connected outside the switch.
    Loop,
    /// A port floods more than its storm control lets through.
    StormBegan,
    /// It no longer does.
    StormEnded,
    /// The file of a mirror cannot be written.
    MirrorFailed,
    /// It can again.
    MirrorResumed,
    /// A limit is near, or something was refused for it.
    Limit,
    /// A rule was added, changed or removed.
    RulesChanged,
}

impl EventKind {
    /// Every kind.
    pub const ALL: [Self; 22] = [
        Self::EndpointAttached,
        Self::EndpointDetached,
        Self::PortChanged,
        Self::PortDown,
        Self::PortUp,
        Self::PortBlocked,
        Self::PortUnblocked,
        Self::NetworkCreated,
        Self::NetworkChanged,
        Self::NetworkRemoved,
        Self::NicReturned,
        Self::Published,
        Self::Unpublished,
        Self::MacFlap,
        Self::DuplicateAddress,
        Self::Loop,
        Self::StormBegan,
        Self::StormEnded,
        Self::MirrorFailed,
        Self::MirrorResumed,
        Self::Limit,
        Self::RulesChanged,
    ];

    /// The word for it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::EndpointAttached => "endpoint_attached",
            Self::EndpointDetached => "endpoint_detached",
            Self::PortChanged => "port_changed",
            Self::PortDown => "port_down",
            Self::PortUp => "port_up",
            Self::PortBlocked => "port_blocked",
            Self::PortUnblocked => "port_unblocked",
            Self::NetworkCreated => "network_created",
            Self::NetworkChanged => "network_changed",
            Self::NetworkRemoved => "network_removed",
            Self::NicReturned => "nic_returned",
            Self::Published => "published",
            Self::Unpublished => "unpublished",
            Self::MacFlap => "mac_flap",
            Self::DuplicateAddress => "duplicate_address",
            Self::Loop => "loop",
            Self::StormBegan => "storm_began",
            Self::StormEnded => "storm_ended",
            Self::MirrorFailed => "mirror_failed",
            Self::MirrorResumed => "mirror_resumed",
            Self::Limit => "limit",
            Self::RulesChanged => "rules_changed",
        }
    }

    /// Whether somebody should look at it.
    pub const fn is_trouble(self) -> bool {
        match self {
            Self::PortDown
            | Self::PortBlocked
            | Self::NicReturned
            | Self::MacFlap
            | Self::DuplicateAddress
            | Self::Loop
            | Self::StormBegan
            | Self::MirrorFailed
            | Self::Limit => true,
            Self::EndpointAttached
            | Self::EndpointDetached
            | Self::PortChanged
            | Self::PortUp
            | Self::PortUnblocked
            | Self::StormEnded
            | Self::MirrorResumed
            | Self::NetworkCreated
            | Self::NetworkChanged
            | Self::NetworkRemoved
            | Self::Published
            | Self::RulesChanged
            | Self::Unpublished => false,
        }
    }
}

/// A word that names no kind of event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{word}' is no kind of event; there are {}", all_kinds())]
pub struct EventKindError {
    word: String,
}

fn all_kinds() -> String {
    EventKind::ALL.map(EventKind::label).join(", ")
}

impl FromStr for EventKind {
    type Err = EventKindError;

    fn from_str(word: &str) -> Result<Self, EventKindError> {
        let mut all = Self::ALL.into_iter();
        let found = all.find(|kind| kind.label() == word);
        found.ok_or_else(|| EventKindError {
            word: word.to_owned(),
        })
    }
}

/// What an event is about; empty where it is about neither.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// The network.
    pub network: Option<String>,
    /// The port's name, which is its endpoint's.
    pub port: Option<String>,
}

impl Subject {
    /// Neither a network nor a port.
    pub const fn none() -> Self {
        Self {
            network: None,
            port: None,
        }
    }

    /// A network.
    pub fn network(name: impl fmt::Display) -> Self {
        Self {
            network: Some(name.to_string()),
            port: None,
        }
    }

    /// A port of a network.
    pub fn port(network: impl fmt::Display, name: impl fmt::Display) -> Self {
        Self {
            network: Some(network.to_string()),
            port: Some(name.to_string()),
        }
    }
}

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Grows by one with each event of a daemon, from 1.
    pub number: u64,
    /// When.
    pub at: SystemTime,
    /// What kind of thing.
    pub kind: EventKind,
    /// What it is about.
    pub subject: Subject,
    /// What has happened, in a sentence without a full stop.
    pub text: String,
}

/// The events of a daemon.
#[derive(Debug)]
pub struct Events {
    ring: Mutex<VecDeque<Event>>,
    /// The number of the last event, for those who wait for the next.
    last: watch::Sender<u64>,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            ring: Mutex::default(),
            last: watch::Sender::new(0),
        }
    }
}

impl Events {
    /// Tells that something has happened: to the log, and to everyone who follows.
    pub fn tell(&self, kind: EventKind, subject: Subject, text: String) {
        let label = kind.label();
        let (network, port) = (subject.network.as_deref(), subject.port.as_deref());
        if kind.is_trouble() {
            tracing::warn!(event = label, network, port, "{text}");
        } else {
            tracing::info!(event = label, network, port, "{text}");
        }
        let mut ring = self.ring();
        let number = *self.last.borrow() + 1;
        if ring.len() >= EVENTS_MAX {
            ring.pop_front();
        }
        ring.push_back(Event {
            number,
            at: SystemTime::now(),
            kind,
            subject,
            text,
        });
        // Under the lock, so that numbers appear in order.
        self.last.send_replace(number);
    }

    /// Events after number `after` that are still kept, the oldest first.
    pub fn after(&self, after: u64) -> Vec<Event> {
        let ring = self.ring();
        let first = ring.front().map_or(0, |event| event.number);
        // Numbers are dense, so the first wanted one is found by counting.
        let skipped = usize::try_from((after + 1).saturating_sub(first)).unwrap_or(usize::MAX);
        ring.iter().skip(skipped).cloned().collect()
    }

    /// The number of the last event, and of each one to come.
    pub fn numbers(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }

    fn ring(&self) -> MutexGuard<'_, VecDeque<Event>> {
        // Nothing in here panics half-way.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(events: &Events, after: u64) -> Vec<u64> {
        events.after(after).iter().map(|e| e.number).collect()
    }

    fn tell(events: &Events, kind: EventKind) {
        events.tell(kind, Subject::port("net", "web"), "so it is".to_owned());
    }

    #[test]
    fn events_are_numbered_from_one_and_read_from_anywhere() {
        let events = Events::default();
        assert_eq!(numbers(&events, 0), [0; 0]);
        for _ in 0..3 {
            tell(&events, EventKind::PortUp);
        }
        assert_eq!(numbers(&events, 0), [1, 2, 3]);
        assert_eq!(numbers(&events, 2), [3]);
        assert_eq!(numbers(&events, 3), [0; 0]);
        assert_eq!(numbers(&events, u64::MAX - 1), [0; 0]);
    }

    #[test]
    fn the_oldest_gives_way_and_the_gap_shows_in_the_numbers() {
        let events = Events::default();
        for _ in 0..EVENTS_MAX + 10 {
            tell(&events, EventKind::PortUp);
        }
        let kept = numbers(&events, 0);
        assert_eq!(kept.len(), EVENTS_MAX);
        assert_eq!(kept[0], 11);
        assert_eq!(numbers(&events, 5)[0], 11);
        assert_eq!(numbers(&events, 12)[0], 13);
    }

    #[tokio::test]
    async fn who_waits_is_woken_by_the_next_event() {
        let events = Events::default();
        let mut last = events.numbers();
        tell(&events, EventKind::Loop);
        last.changed().await.unwrap();
        assert_eq!(*last.borrow_and_update(), 1);
    }

    #[test]
    fn every_kind_is_read_by_its_own_word() {
        for kind in EventKind::ALL {
            assert_eq!(kind.label().parse(), Ok(kind));
        }
        let error = EventKind::from_str("party").unwrap_err().to_string();
        assert!(error.contains("mac_flap") && error.contains("party"));
    }
}
