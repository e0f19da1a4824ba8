//! Loops: ports that are connected to each other outside the switch, and what is done about them.
//!
//! Workers notice a station that flaps between two ports, and probes that come back. Here that
//! becomes an event, and where the network says so the port that was attached later is blocked for
//! [`BLOCK_TIME`]. A port whose endpoint owns the flapping MAC is never the one: who pretends to be
//! somebody must not take his port from him.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dataplane_core::addr::{DomainId, MacAddr, PortId, VlanId};
use dataplane_core::l2::{FLAP_MOVES, FLAP_WINDOW, PortFlags, Sighting};

use super::told::Told;
use super::{Engine, State};
use crate::error::Error;
use crate::events::{EventKind, Subject};
use crate::model::{Endpoint, LoopDetect, Name};

/// Time between two probes of a port.
pub(super) const PROBE_EVERY: Duration = Duration::from_secs(2);
/// How long a port is blocked. A loop that is still there then is found by the next probe.
const BLOCK_TIME: Duration = Duration::from_secs(60);

/// Sightings, as they are told of: whether it is a loop, and the ports in any order.
pub(super) type Sighted = Told<(bool, PortId, PortId)>;

fn told_as(sighting: Sighting) -> (bool, PortId, PortId) {
    let (is_loop, a, b) = match sighting {
        Sighting::Flap { from, to, .. } => (false, from, to),
        Sighting::Loop { sent, received, .. } => (true, sent, received),
    };
    (is_loop, a.min(b), a.max(b))
}

/// Ports that are blocked, each until a moment.
#[derive(Debug, Default)]
pub(super) struct Blocked(Mutex<BTreeMap<PortId, Instant>>);

impl Blocked {
    /// Those of now.
    pub fn ports(&self) -> BTreeSet<PortId> {
        self.until().keys().copied().collect()
    }

    /// How long a port stays blocked.
    pub fn time_left(&self, port: PortId) -> Option<Duration> {
        let until = *self.until().get(&port)?;
        Some(until.saturating_duration_since(Instant::now()))
    }

    fn until(&self) -> MutexGuard<'_, BTreeMap<PortId, Instant>> {
        // Nothing in here panics half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a port's block; `false` when it was not blocked.
    pub fn release(&self, port: PortId) -> bool {
        self.until().remove(&port).is_some()
    }

    fn take_over(&self, now: Instant) -> Vec<PortId> {
        let mut until = self.until();
        let over = until.iter().filter(|(_, until)| **until <= now);
        let over: Vec<PortId> = over.map(|(port, _)| *port).collect();
        until.retain(|_, until| *until > now);
        over
    }
}

impl Engine {
    /// Sends probes, where any port is to detect loops.
    pub(super) fn probe_for_loops(&self) -> Result<(), Error> {
        let topology = self.dataplane.topology();
        let mut ports = topology.ports.iter().flatten();
        if ports.any(|port| port.flags.has(PortFlags::LOOP_DETECT)) {
            self.blocking(|dataplane| dataplane.probe())?;
        }
        Ok(())
    }

    /// Follows what a worker has noticed.
    pub(super) async fn follow_sighting(&self, sighting: Sighting) -> Result<(), Error> {
        let mut state = self.state().await;
        let (domain, a, b, owned) = match sighting {
            Sighting::Flap {
                domain,
                mac,
                from,
                to,
                ..
            } => (domain, from, to, Some(mac)),
            Sighting::Loop {
                domain,
                sent,
                received,
            } => (domain, sent, received, None),
        };
        let endpoints = &state.desired.endpoints;
        // Detached meanwhile: the loop went with it.
        let (Some(a), Some(b)) = (endpoints.get(&a), endpoints.get(&b)) else {
            return Ok(());
        };
        let (a, b) = (a.clone(), b.clone());
        if state.sighted.is_news(told_as(sighting), Instant::now()) {
            self.tell_sighting(&state, sighting, &a, &b);
        }
        let detect = state.desired.networks.get(&domain).map(|n| n.loop_detect);
        if detect == Some(LoopDetect::Block) {
            let port = later(&a, &b, owned).port;
            self.block(&mut state, port)?;
        }
        Ok(())
    }

    fn tell_sighting(&self, state: &State, sighting: Sighting, a: &Endpoint, b: &Endpoint) {
        match sighting {
            Sighting::Flap {
                domain, vlan, mac, ..
            } => {
                let text = flap_text(mac, vlan, &a.name, &b.name);
                let subject = Subject::network(network_name(state, domain));
                self.events.tell(EventKind::MacFlap, subject, text);
            }
            Sighting::Loop { .. } if a.port == b.port => {
                let text = format!(
                    "a loop probe that left by port '{}' came back by it: its sandbox returns \
                     what it receives",
                    a.name
                );
                self.tell_port(state, EventKind::Loop, a, text);
            }
            Sighting::Loop { .. } => {
                let text = format!(
                    "a loop probe that left by port '{}' came back by port '{}': the two are \
                     connected outside the switch",
                    a.name, b.name
                );
                self.tell_port(state, EventKind::Loop, b, text);
            }
        }
    }

    /// Takes a port out of use for a while.
    fn block(&self, state: &mut State, port: PortId) -> Result<(), Error> {
        let until = Instant::now() + BLOCK_TIME;
        if self.blocked.until().insert(port, until).is_some() {
            return Ok(());
        }
        self.install(state)?;
        self.dataplane.fdb().flush_port(port);
        if let Some(endpoint) = state.desired.endpoints.get(&port) {
            let text = format!(
                "port '{name}' is blocked for {} s, for it is part of a loop; `causeway port set \
                 {name} up` ends that at once",
                BLOCK_TIME.as_secs(),
                name = endpoint.name
            );
            self.tell_port(state, EventKind::PortBlocked, endpoint, text);
        }
        Ok(())
    }

    /// Takes ports into use again whose time is over.
    pub(super) async fn unblock_ports(&self) -> Result<(), Error> {
        if self.blocked.until().is_empty() {
            return Ok(());
        }
        let state = self.state().await;
        let over = self.blocked.take_over(Instant::now());
        if over.is_empty() {
            return Ok(());
        }
        self.install(&state)?;
        for endpoint in over.iter().filter_map(|p| state.desired.endpoints.get(p)) {
            self.tell_unblocked(&state, endpoint);
        }
        Ok(())
    }

    /// Tells that a port is no longer blocked.
    pub(super) fn tell_unblocked(&self, state: &State, endpoint: &Endpoint) {
        let text = format!("port '{}' is no longer blocked", endpoint.name);
        self.tell_port(state, EventKind::PortUnblocked, endpoint, text);
    }
}

/// The endpoint that is blocked of two: the one that was attached later, unless it owns the MAC that
/// flaps.
fn later<'e>(a: &'e Endpoint, b: &'e Endpoint, flapping: Option<MacAddr>) -> &'e Endpoint {
    let rank = |endpoint: &Endpoint| {
        let owns = flapping == Some(endpoint.mac);
        (!owns, endpoint.attached_at, endpoint.port)
    };
    if rank(a) > rank(b) { a } else { b }
}

fn flap_text(mac: MacAddr, vlan: VlanId, a: &Name, b: &Name) -> String {
    let vlan = match vlan {
        VlanId(0) => String::new(),
        vlan => format!(" in VLAN {}", vlan.0),
    };
    format!(
        "{mac}{vlan} moves between the ports '{a}' and '{b}', {FLAP_MOVES} times within {} s: two \
         stations have this MAC, or the ports are connected outside the switch",
        FLAP_WINDOW.as_secs()
    )
}

fn network_name(state: &State, domain: DomainId) -> String {
    let network = state.desired.networks.get(&domain);
    network.map_or_else(|| domain.to_string(), |network| network.name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Backend, Phase, Sandbox};

    fn endpoint(port: u16, attached_at: u64) -> Endpoint {
        Endpoint {
            port: PortId(port),
            name: format!("e{port}").parse().unwrap(),
            domain: DomainId(1),
            sandbox: Sandbox {
                path: "/x".into(),
                inode: 1,
            },
            ifname: "eth0".to_owned(),
            mac: MacAddr([2, 0, 0, 0, 0, port as u8]),
            addresses: Vec::new(),
            backend: Backend::Tap,
            choice: None,
            phase: Phase::Attached,
            settings: Default::default(),
            vlans: Default::default(),
            attached_at,
            dns: Default::default(),
            gw_priority: 0,
            routes: Vec::new(),
            foreign: None,
        }
    }

    #[test]
    fn the_later_of_two_ports_is_blocked_but_never_the_owner_of_a_mac() {
        let (old, new) = (endpoint(9, 1_000), endpoint(8, 2_000));
        let stranger = MacAddr([2, 0, 0, 0, 0, 99]);
        for (a, b) in [(&old, &new), (&new, &old)] {
            assert_eq!(later(a, b, None).port, new.port);
            assert_eq!(later(a, b, Some(stranger)).port, new.port);
            assert_eq!(later(a, b, Some(new.mac)).port, old.port);
            assert_eq!(later(a, b, Some(old.mac)).port, new.port);
        }
        let (one, other) = (endpoint(1, 0), endpoint(2, 0));
        assert_eq!(later(&one, &other, None).port, other.port, "by number");
        assert_eq!(later(&one, &one, None).port, one.port, "with itself");
    }

    #[test]
    fn the_same_two_ports_are_the_same_in_either_order_and_a_loop_is_no_flap() {
        let between = |sent, received| {
            told_as(Sighting::Loop {
                domain: DomainId(1),
                sent: PortId(sent),
                received: PortId(received),
            })
        };
        let flap = told_as(Sighting::Flap {
            domain: DomainId(1),
            vlan: VlanId(0),
            mac: MacAddr::ZERO,
            from: PortId(1),
            to: PortId(2),
        });
        assert_eq!(between(1, 2), between(2, 1));
        assert_ne!(between(1, 2), between(1, 3));
        assert_ne!(between(1, 2), flap);
    }

    #[test]
    fn a_block_ends_when_its_time_is_over_or_it_is_released() {
        let (blocked, now) = (Blocked::default(), Instant::now());
        blocked.until().insert(PortId(1), now + BLOCK_TIME);
        blocked.until().insert(PortId(2), now + 2 * BLOCK_TIME);
        assert_eq!(blocked.take_over(now), []);
        assert_eq!(blocked.take_over(now + BLOCK_TIME), [PortId(1)]);
        assert_eq!(blocked.ports(), [PortId(2)].into());
        assert!(blocked.time_left(PortId(2)).is_some());
        assert!(blocked.release(PortId(2)) && !blocked.release(PortId(2)));
    }
}
