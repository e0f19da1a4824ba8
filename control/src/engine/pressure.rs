//! How near the NAT is to its limits: gauges, warnings, and lines in the log before something is
//! full.
//!
//! A limit is told once when it is nearly reached and once when it was refused for, however fast
//! sessions come and go; `status` shows both as long as they last.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use dataplane_core::nat::NatProtocol;
use dataplane_core::verdict::DropReason;

use super::{Engine, State};
use crate::api::types::{CountView, NatEndpointView, NatPoolView, NatUsageView};
use crate::events::{EventKind, Subject};

/// From this part of a limit on it is told, in per cent.
const NEAR_PERCENT: usize = 80;
/// Below this part it is forgotten again, so that one that swings around the other tells nothing.
const CALM_PERCENT: usize = 70;
/// How long a refusal is a warning, and the pause between two lines of the log about the like.
const REFUSAL_TOLD_FOR: Duration = Duration::from_secs(60);
/// Inside addresses listed, the fullest first.
const ENDPOINTS_LISTED_MAX: usize = 10;

/// Reasons for which a new session is refused because something is full.
const REFUSALS: [DropReason; 3] = [
    DropReason::NatTableFull,
    DropReason::NatQuota,
    DropReason::NatNoPort,
];

/// A limit, and how much of it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gauge {
    /// What is limited.
    what: String,
    used: usize,
    limit: usize,
    /// What can be done about it.
    advice: &'static str,
}

impl Gauge {
    fn percent(&self) -> usize {
        self.used * 100 / self.limit.max(1)
    }

    fn told(&self) -> String {
        let Self {
            what,
            used,
            limit,
            advice,
        } = self;
        let percent = self.percent();
        format!("{what}: {used} of {limit} used ({percent} %); {advice}")
    }
}

/// What has been told, so that it is not told again and again.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    /// Limits that are nearly reached.
    near: BTreeSet<String>,
    refused: BTreeMap<&'static str, Refused>,
}

#[derive(Debug, Default)]
struct Refused {
    /// All that there ever were.
    total: u64,
    /// Those of `total` that the log knows of.
    logged: u64,
    logged_at: Option<Instant>,
    /// When `total` last grew.
    grown_at: Option<Instant>,
}

impl Pressure {
    /// Takes note of what is used and refused, and returns what the log has to be told.
    pub fn observe(
        &mut self,
        gauges: &[Gauge],
        refused: &[(DropReason, u64)],
        now: Instant,
    ) -> Vec<String> {
        let mut lines = Vec::new();
        for gauge in gauges
            .iter()
            .filter(|gauge| gauge.percent() >= NEAR_PERCENT)
        {
            if self.near.insert(gauge.what.clone()) {
                lines.push(gauge.told());
            }
        }
        self.near.retain(|what| {
            let gauge = gauges.iter().find(|gauge| gauge.what == *what);
            gauge.is_some_and(|gauge| gauge.percent() >= CALM_PERCENT)
        });
        for (reason, total) in refused {
            let known = self.refused.entry(reason.label()).or_default();
            if *total > known.total {
                (known.total, known.grown_at) = (*total, Some(now));
            }
            let paused = known
                .logged_at
                .is_none_or(|at| now - at >= REFUSAL_TOLD_FOR);
            if known.total > known.logged && paused {
                lines.push(refusals(*reason, known.total - known.logged));
                (known.logged, known.logged_at) = (known.total, Some(now));
            }
        }
        lines
    }

    /// What disturbs as of now.
    pub fn warnings(&self, gauges: &[Gauge], now: Instant) -> Vec<String> {
        let near = gauges.iter().filter(|gauge| {
            let known = self.near.contains(&gauge.what);
            gauge.percent() >= NEAR_PERCENT || known && gauge.percent() >= CALM_PERCENT
        });
        let refused = REFUSALS.into_iter().filter_map(|reason| {
            let known = self.refused.get(reason.label())?;
            (now - known.grown_at? < REFUSAL_TOLD_FOR).then(|| refusals(reason, known.total))
        });
        near.map(Gauge::told).chain(refused).collect()
    }
}

fn refusals(reason: DropReason, count: u64) -> String {
    let (label, sentence) = (reason.label(), reason.sentence());
    format!("{count} packets of new sessions were refused: {sentence} ({label})")
}

impl Engine {
    /// How much of the NAT's limits is used.
    pub async fn nat_usage(&self) -> NatUsageView {
        let state = self.state().await;
        self.nat_usage_of(&state)
    }

    pub(super) fn nat_usage_of(&self, state: &State) -> NatUsageView {
        let (nat, config) = (self.nat(), &self.config.nat);
        let usage = nat.usage(ENDPOINTS_LISTED_MAX);
        let pools = usage.pools.iter().map(|pool| NatPoolView {
            address: pool.external.to_string(),
            protocol: protocol_label(pool.protocol).to_owned(),
            ports: pool.ports as usize,
            ports_max: config.port_range.len(),
        });
        let endpoints = usage.endpoints.iter().map(|endpoint| {
            let network = state.desired.networks.get(&endpoint.domain);
            let name = state
                .desired
                .endpoints_of(endpoint.domain)
                .find(|candidate| candidate.addresses.contains(&endpoint.inside));
            NatEndpointView {
                network: network.map_or_else(String::new, |n| n.name.to_string()),
                endpoint: name.map(|endpoint| endpoint.name.to_string()),
                address: endpoint.inside.to_string(),
                sessions: endpoint.sessions,
            }
        });
        let refused = self.refused().into_iter().map(|(reason, count)| CountView {
            label: reason.label().to_owned(),
            count,
        });
        NatUsageView {
            sessions: usage.sessions,
            sessions_max: config.sessions_max,
            sessions_per_endpoint_max: config.sessions_per_endpoint_max,
            pools: pools.collect(),
            endpoints: endpoints.collect(),
            refused: refused.collect(),
        }
    }

    /// Packets of new sessions that were refused since the start, answered or not.
    fn refused(&self) -> Vec<(DropReason, u64)> {
        let stats = self.dataplane.stats();
        let count = |counts: &[(DropReason, u64)], wanted: DropReason| {
            let found = counts.iter().find(|(reason, _)| *reason == wanted);
            found.map_or(0, |(_, count)| *count)
        };
        let total = |reason| count(&stats.drops, reason) + count(&stats.refusals, reason);
        REFUSALS.map(|reason| (reason, total(reason))).to_vec()
    }

    /// Looks at the limits, and tells the log what is new.
    pub(super) async fn watch_pressure(&self) {
        let mut state = self.state().await;
        let gauges = gauges(&self.nat_usage_of(&state));
        let refused = self.refused();
        for line in state.pressure.observe(&gauges, &refused, Instant::now()) {
            self.events.tell(EventKind::Limit, Subject::default(), line);
        }
    }

    pub(super) fn pressure_warnings(&self, state: &State, usage: &NatUsageView) -> Vec<String> {
        state.pressure.warnings(&gauges(usage), Instant::now())
    }
}

/// Every limit with what is used of it.
fn gauges(usage: &NatUsageView) -> Vec<Gauge> {
    let sessions = Gauge {
        what: "NAT sessions".to_owned(),
        used: usage.sessions,
        limit: usage.sessions_max,
        advice: "when all are, only half-open TCP sessions make room; raise nat.sessions_max",
    };
    let pools = usage.pools.iter().map(|pool| Gauge {
        what: format!("{} ports of {}", pool.protocol, pool.address),
        used: pool.ports,
        limit: pool.ports_max,
        advice: "the rest is kept for endpoints that hold few; widen nat.port_first to \
                 nat.port_last, or add an address to nat.external_addresses",
    });
    let endpoints = usage.endpoints.iter().map(|endpoint| Gauge {
        what: match &endpoint.endpoint {
            Some(name) => format!("NAT sessions of endpoint '{name}' ({})", endpoint.address),
            None => format!("NAT sessions of {}", endpoint.address),
        },
        used: endpoint.sessions,
        limit: usage.sessions_per_endpoint_max,
        advice: "when all are, its new ones are refused; see what it opens, or raise \
                 nat.sessions_per_endpoint_max",
    });
    [sessions]
        .into_iter()
        .chain(pools)
        .chain(endpoints)
        .collect()
}

const fn protocol_label(protocol: NatProtocol) -> &'static str {
    match protocol {
        NatProtocol::Tcp => "TCP",
        NatProtocol::Udp => "UDP",
        NatProtocol::Icmp => "ICMP",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gauge(used: usize) -> Gauge {
        Gauge {
            what: "ports".to_owned(),
            used,
            limit: 1_000,
            advice: "add some",
        }
    }

    #[test]
    fn a_limit_is_told_once_when_it_comes_near_and_again_after_a_calm() {
        let (mut pressure, now) = (Pressure::default(), Instant::now());
        let mut told = Vec::new();
        for used in [0, 799, 800, 801, 1_000, 799, 800, 700, 699, 799, 850] {
            let lines = pressure.observe(&[gauge(used)], &[], now);
            told.extend(lines.into_iter().map(|line| (used, line)));
        }
        let wanted = [
            (800, "ports: 800 of 1000 used (80 %); add some".to_owned()),
            (850, "ports: 850 of 1000 used (85 %); add some".to_owned()),
        ];
        assert_eq!(told, wanted);
    }

    #[test]
    fn a_warning_lasts_as_long_as_the_limit_is_near() {
        let (mut pressure, now) = (Pressure::default(), Instant::now());
        assert!(pressure.warnings(&[gauge(799)], now).is_empty());
        assert_eq!(pressure.warnings(&[gauge(800)], now).len(), 1, "at once");
        pressure.observe(&[gauge(800)], &[], now);
        assert_eq!(pressure.warnings(&[gauge(700)], now).len(), 1);
        assert!(pressure.warnings(&[gauge(699)], now).is_empty());
        assert!(pressure.warnings(&[], now).is_empty(), "gone altogether");
    }

    #[test]
    fn refusals_are_logged_once_a_minute_with_all_that_came_meanwhile() {
        let (mut pressure, start) = (Pressure::default(), Instant::now());
        let mut at = |seconds: u64, total: u64| {
            let now = start + Duration::from_secs(seconds);
            let lines = pressure.observe(&[], &[(DropReason::NatQuota, total)], now);
            (lines, pressure.warnings(&[], now).len())
        };
        assert_eq!(at(0, 0), (vec![], 0));
        let (lines, warnings) = at(1, 5);
        assert!(lines[0].starts_with("5 packets") && lines[0].contains("nat_quota"));
        assert_eq!((lines.len(), warnings), (1, 1));
        assert_eq!(at(2, 100), (vec![], 1));
        assert_eq!(at(60, 100), (vec![], 1));
        let (lines, warnings) = at(61, 100);
        assert!(lines[0].starts_with("95 packets"), "{lines:?}");
        assert_eq!(warnings, 1);
        assert_eq!(at(62, 100), (vec![], 0), "a minute after the last one");
    }
}
