//! The data path: read this first. [`forward`] takes one frame from its ingress port to its verdict,
//! stage by stage. What it needs and learns is in the [`Switch`]; what leaves is the frame and the
//! verdict, which tells the egress ports.

use std::sync::Arc;

use crate::addr::VlanId;
use crate::counters::Counters;
use crate::fdb::{FdbKey, FdbView, Learn, Place};
use crate::frame::Frame;
use crate::headers::Headers;
use crate::l2::{self, PortFlags, StormView};
use crate::multicast::{MdbView, Spared};
use crate::route::{self, Passage};
use crate::time::Instant;
use crate::topology::{Domain, Port, Topology};
use crate::trace::{Step, Target, Trace, step};
use crate::verdict::{DropReason, Verdict};

/// One worker's view of the switch. Not shared: workers meet only in the tables behind the views.
#[derive(Debug)]
pub struct Switch {
    /// The picture as of the current batch.
    pub topology: Arc<Topology>,
    /// The forwarding database, as this worker reads it.
    pub fdb: FdbView,
    /// What is kept of bridge domains besides.
    pub bridge: l2::State,
    /// How much has been flooded that entered by limited ports.
    pub storm: StormView,
    /// Who listens to which groups, as this worker reads it.
    pub groups: MdbView,
    /// What the gateways keep: translations, held frames, the budget of errors.
    pub gateway: route::State,
    /// What this worker counts.
    pub counters: Arc<Counters>,
}

/// Takes one frame to its verdict.
#[inline]
pub fn forward<T: Trace>(
    sw: &mut Switch,
    frame: &mut Frame<'_>,
    now: Instant,
    trace: &mut T,
) -> Verdict {
    sw.counters.rx.add(1);
    let verdict = route::end(path(sw, frame, now, trace), sw, frame, now, trace);
    sw.counters.record(verdict);
    step!(trace, Step::Verdict(verdict));
    verdict
}

#[inline(always)] // As a call of its own it costs each frame 28 instructions.
fn path<T: Trace>(
    sw: &mut Switch,
    frame: &mut Frame<'_>,
    now: Instant,
    trace: &mut T,
) -> Result<Verdict, DropReason> {
    // 1. Ingress: only ports that are configured and up.
    step!(trace, Step::ingress(frame));
    let topology = &*sw.topology;
    let port = topology.port_up(frame.ingress);
    let port = port.ok_or(DropReason::PortDown)?;

    // 2. Parse: L2 must hold; L3 and L4 are kept as results.
    let mut headers = Headers::NONE;
    headers.read(frame.bytes())?;
    step!(trace, Step::Parsed(headers));

    // 3. Admit: link-local groups and impossible sources stay out.
    let vlan = l2::admit(&mut sw.bridge, topology, port, &mut headers, frame, now)?;
    let headers = &headers;
    step!(trace, Step::Admitted(vlan, headers.dst));

    // 4. Learn: the source is behind the ingress port.
    let domain = topology.bridge_domain(port);
    let learned = learn(&mut sw.fdb, domain, port, vlan, headers, now);
    sw.counters.record_learn(learned);
    sw.bridge.notice(learned, domain, vlan, headers, frame, now);
    step!(trace, Step::Learned(learned));

    // 5. Lookup: to one port, to all, or to the gateway.
    let target = lookup(&mut sw.fdb, domain, vlan, headers, frame, now);
    step!(trace, Step::Lookup(target));

    // 6. Policy: the rules, where there are any. Of what it routes, the gateway asks them.
    let judge = sw.gateway.judge(topology, &sw.counters, now, trace);
    judge.bridged(port, target, frame, headers)?;

    // 7. and 8. Bridge, or route and translate; either way out.
    match (target, domain) {
        (Target::Unicast(egress), _) => l2::bridge(topology, port, frame, egress, vlan),
        (Target::Flood, Some(domain)) => Spared {
            view: &mut sw.groups,
            storm: &mut sw.storm,
            topology,
            domain,
            port,
            vlan,
            headers,
            frame,
            counters: &sw.counters,
            now,
            trace,
        }
        .forward(),
        (Target::Gateway, _) | (Target::Flood, None) => Passage {
            state: &mut sw.gateway,
            topology,
            frame,
            headers,
            now,
            counters: &sw.counters,
            trace,
        }
        .through_gateway(port),
    }
}

#[inline(always)]
fn learn(
    fdb: &mut FdbView,
    domain: Option<&Domain>,
    port: &Port,
    vlan: VlanId,
    headers: &Headers,
    now: Instant,
) -> Learn {
    match domain {
        // Learned, the gateway's MAC would send stations to the pretender.
        Some(domain) if !domain.gateway_has(headers.src) => {
            if !port.flags.has(PortFlags::LEARNING) {
                return Learn::Off;
            }
            let key = FdbKey::new(domain.id, vlan, headers.src);
            fdb.learn(key, port.id, now, domain.ageing)
        }
        Some(_) | None => Learn::Exempt,
    }
}

#[inline(always)]
fn lookup(
    fdb: &mut FdbView,
    domain: Option<&Domain>,
    vlan: VlanId,
    headers: &Headers,
    frame: &Frame<'_>,
    now: Instant,
) -> Target {
    // The host link and uplinks have no domain: everything from there is the gateway's.
    let Some(domain) = domain else {
        return Target::Gateway;
    };
    if route::addresses_gateway(domain, vlan, headers, frame.bytes()) {
        return Target::Gateway;
    }
    if headers.dst.is_group() {
        return Target::Flood;
    }
    let key = FdbKey::new(domain.id, vlan, headers.dst);
    match fdb.lookup(key, now, domain.ageing) {
        Some(Place::Port(port)) => Target::Unicast(port),
        Some(Place::Local) if vlan == domain.gateway_vlan => Target::Gateway,
        Some(Place::Local) | None => Target::Flood,
    }
}
