//! The gateway: routing between a network, the host and the outside.
//!
//! A packet comes here when it was sent to the gateway's MAC, asks for it, or entered by the host
//! link or an uplink. The way is chosen by its destination, in this order: the gateway itself,
//! one of the host's addresses, the same network, another network, the outside. Answers that need
//! no state are made in place (`reply`); addresses are translated on the way out and in (`nat`).

mod early;
mod errors;
mod hold;
mod known;
mod passage;
mod prefixes;
mod refuse;
mod reject;
mod routed;
mod rules;
mod unsolicited;

use std::net::IpAddr;
use std::sync::Arc;

use crate::addr::{PortId, UplinkId, VlanId};
use crate::counters::Counters;
use crate::frame::{Frame, FrameBuf};
use crate::headers::{Headers, L3, ethertype};
use crate::l2;
use crate::nat::{Nat, NatView};
use crate::policy::{Flows, FlowsView, Judge};
use crate::reply;
use crate::time::Instant;
use crate::topology::{Domain, Topology};
use crate::trace::Off;
use crate::verdict::{DropReason, Verdict};

use early::{Due, Early};
pub use early::{EARLY_BYTES_MAX, EARLY_MAX, EARLY_PER_SENDER_MAX, EARLY_TIME};
pub use errors::ERRORS_PER_SECOND_MAX;
use errors::ErrorBudget;
pub use hold::{HELD_MAX, HELD_PER_NEXT_HOP_MAX, HOLD_TIME, Holding};
pub(crate) use passage::Passage;
pub use prefixes::PrefixTable;
pub(crate) use reject::end;
use unsolicited::Unsolicited;
pub use unsolicited::{SILENCE, UNSOLICITED_MAX};

/// The gateways' tables, shared by all workers.
#[derive(Debug)]
pub struct Tables {
    /// Address translations.
    pub nat: Arc<Nat>,
    /// Who opened the flows that are not translated, where rules ask.
    pub flows: Arc<Flows>,
}

impl Tables {
    /// Empty tables; `seed` fixes hashes and the choice of ports.
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            nat: Nat::new(seed),
            flows: Flows::new(seed),
        })
    }
}

/// One worker's part of the gateways.
#[derive(Debug)]
pub struct State {
    nat: NatView,
    nat_tables: Arc<Nat>,
    flows: FlowsView,
    holding: Holding,
    early: Early,
    unsolicited: Unsolicited,
    errors: ErrorBudget,
}

impl State {
    /// A worker's part, working on the shared tables.
    pub fn live(tables: &Tables) -> Self {
        let flows = FlowsView::live(Arc::clone(&tables.flows));
        Self::with(tables, NatView::live(Arc::clone(&tables.nat)), flows)
    }

    /// A what-if's part: it reads the shared tables and keeps what it changes to itself.
    pub fn overlay(tables: &Tables) -> Self {
        let flows = FlowsView::overlay(Arc::clone(&tables.flows));
        Self::with(tables, NatView::overlay(Arc::clone(&tables.nat)), flows)
    }

    fn with(tables: &Tables, nat: NatView, flows: FlowsView) -> Self {
        let nat_tables = Arc::clone(&tables.nat);
        Self {
            nat,
            nat_tables,
            flows,
            holding: Holding::default(),
            early: Early::default(),
            unsolicited: Unsolicited::default(),
            errors: ErrorBudget::default(),
        }
    }

    /// What rules are asked with about frames that no gateway sees.
    pub(crate) const fn judge<'j, T>(
        &'j self,
        topology: &'j Topology,
        counters: &'j Counters,
        now: Instant,
        trace: &'j mut T,
    ) -> Judge<'j, T> {
        Judge {
            flows: &self.flows,
            topology,
            counters,
            now,
            trace,
        }
    }

    /// Expires up to `budget` sessions. Now and then, by each worker.
    pub fn tick(&mut self, topology: &Topology, now: Instant, budget: usize) {
        self.nat_tables.expire(now, &topology.nat, budget);
    }

    /// Sessions of the NAT, of all workers.
    pub fn session_count(&self) -> usize {
        self.nat_tables.session_count()
    }

    /// Takes up a held frame whose waiting is over, and counts its verdict. Call until `None`.
    pub fn release(
        &mut self,
        topology: &Topology,
        counters: &Counters,
        now: Instant,
    ) -> Option<(PortId, FrameBuf, Verdict)> {
        let (ingress, buf, verdict) = match self.early.take(&mut self.nat, now) {
            Some(due) => self.end_wait(due, topology, counters, now),
            None => self.release_other(topology, counters, now)?,
        };
        counters.released.add(1);
        counters.record(verdict);
        Some((ingress, buf, verdict))
    }

    /// Whether held frames may be due although no time has passed: a first fragment has come while
    /// others wait. Asked after each batch.
    #[inline]
    pub fn take_due(&mut self) -> bool {
        self.nat.take_fragments_begun() && !self.early.is_empty()
    }

    /// Takes a fragment through the gateway again, behind its first one, or gives it up.
    fn end_wait(
        &mut self,
        due: Due,
        topology: &Topology,
        counters: &Counters,
        now: Instant,
    ) -> (PortId, FrameBuf, Verdict) {
        let (ingress, mut buf) = match due {
            Due::Follows(ingress, buf) => (ingress, buf),
            Due::InVain(origin, buf) => {
                // What came from outside may be of the host's own.
                let hosts = |headers: Headers| {
                    let ip = headers.ip()?;
                    Some(topology.local_addresses.contains(&ip.dst))
                };
                let shared = || Headers::parse(buf.bytes()).ok().and_then(hosts);
                let verdict = if origin.from.is_none() && shared() == Some(true) {
                    Verdict::NotOurs
                } else {
                    Verdict::Drop(DropReason::NatFragment)
                };
                return (origin.ingress, buf, verdict);
            }
        };
        let again = |state: &mut Self, buf: &mut FrameBuf| {
            let port = topology.port_up(ingress).ok_or(DropReason::PortDown)?;
            let headers = Headers::parse(buf.bytes())?;
            Passage {
                state,
                topology,
                frame: &mut Frame::new(ingress, buf),
                headers: &headers,
                now,
                counters,
                trace: &mut Off,
            }
            .through_gateway(port)
        };
        let verdict = again(self, &mut buf).unwrap_or_else(Verdict::Drop);
        (ingress, buf, verdict)
    }

    /// Takes up a frame that waited for its next hop, or a SYN that nobody met.
    fn release_other(
        &mut self,
        topology: &Topology,
        counters: &Counters,
        now: Instant,
    ) -> Option<(PortId, FrameBuf, Verdict)> {
        let Self {
            nat,
            holding,
            unsolicited,
            errors,
            ..
        } = self;
        let may_answer = || {
            let within = errors.take(now);
            counters.errors_suppressed.add(u64::from(!within));
            within
        };
        holding
            .release(topology, now)
            .or_else(|| unsolicited.release(nat, topology, now, may_answer))
    }

    /// Next hops that frames have begun to wait for since the last call.
    pub fn take_wanted(&mut self) -> Vec<(UplinkId, IpAddr)> {
        self.holding.take_wanted()
    }
}

/// Whether a frame that entered a VLAN of a domain is for its gateway: by MAC, or because it asks by
/// ARP or ND for an address of the gateway's.
#[inline]
pub(crate) fn addresses_gateway(
    domain: &Domain,
    vlan: VlanId,
    headers: &Headers,
    bytes: &[u8],
) -> bool {
    let Some(gateway) = &domain.gateway else {
        return false;
    };
    if vlan != domain.gateway_vlan {
        return false;
    }
    if headers.dst == gateway.mac {
        return true;
    }
    if !headers.dst.is_group() || !l2::is_plain(headers, vlan) {
        return false;
    }
    match (headers.ethertype, headers.l3) {
        (ethertype::ARP, Ok(L3::Arp(arp))) => {
            arp.operation == 1 && gateway.owns(IpAddr::V4(arp.target))
        }
        (ethertype::IPV6, Ok(_)) => {
            reply::solicited(bytes, headers).is_some_and(|target| gateway.owns(IpAddr::V6(target)))
        }
        _ => false,
    }
}
