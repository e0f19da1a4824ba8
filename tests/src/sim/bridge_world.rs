//! The ports of the simulated bridge: how they may be set, the picture of that, and links that are no
//! plain cables.

use std::collections::BTreeMap;
use std::sync::Arc;

use dataplane_core::addr::{PortId, VlanId};
use dataplane_core::l2::{
    FloodClass, Form, Mirror, MirrorDirection, MirrorSource, PortFlags, PortVlans, StormLimit,
};
use dataplane_core::link::{Chance, Direction, Impairment, Link, LinkSpec, LossModel};
use dataplane_core::time::{Duration, Instant};
use dataplane_core::topology::{Domain, Multicast, Port, Role, Topology};
use fastrand::Rng;

use super::bridge::Coming;
use super::bridge_model::Plan;
use crate::world::RED;

/// Ports of the bridge: the first leads to the querier and is a trunk of every VLAN.
pub(super) const PORTS: u16 = 8;
pub(super) const QUERIER: PortId = PortId(1);
/// Ports whose links are no plain cables: into the switch, and out of it.
pub(super) const FROM_AFAR: PortId = PortId(2);
pub(super) const TO_AFAR: PortId = PortId(3);
/// The port that shows a mirror of all.
pub(super) const SPAN: PortId = PortId(9);
/// An FDB entry's life: short, so that stations are forgotten.
pub(super) const AGEING_MILLIS: u64 = 30_000;
/// VLANs that ports are in; beyond is nobody.
pub(super) const VLANS: u16 = 4;

/// What is set of every port, as of some picture.
pub(super) type Plans = Arc<BTreeMap<PortId, Plan>>;

/// A link of the core, and the frames on it.
pub(super) struct Held {
    pub link: Link,
    due: BTreeMap<(u64, u64), Coming>,
    passed: u64,
}

impl Held {
    pub fn new(direction: Direction, rng: &mut Rng) -> Self {
        let tenth: Chance = "10%".parse().unwrap_or(Chance::ALWAYS);
        let impairment = Impairment {
            delay: Duration::from_millis(30),
            jitter: Duration::from_millis(20),
            loss: LossModel::Random(tenth),
            duplicate: tenth,
            reorder: tenth,
            seed: rng.u64(..),
            ..Impairment::default()
        };
        let limit = "64kbit burst 2000".parse().ok();
        let spec = LinkSpec { limit, impairment };
        let link = Link::new(spec, direction);
        Self {
            link,
            due: BTreeMap::new(),
            passed: 0,
        }
    }

    pub fn take(&mut self, coming: &Coming, now: Instant, sequence: u64) {
        let Ok((first, second)) = self.link.pass(coming.bytes.len(), now) else {
            return;
        };
        for (index, arrival) in [Some(first), second].into_iter().flatten().enumerate() {
            let place = (arrival.due.nanos(), sequence + index as u64);
            self.due.insert(place, coming.clone());
        }
    }

    pub fn pass(&mut self, now: u64) -> Option<Coming> {
        let next = self.due.first_entry()?;
        let coming = (next.key().0 <= now).then(|| next.remove())?;
        self.passed += 1;
        Some(coming)
    }

    /// The law of links.
    pub fn audit(&self) {
        let counts = self.link.counts;
        let gone = counts.lost + counts.limited + counts.overflowed;
        let came = counts.entered + counts.duplicated;
        assert_eq!(came, gone + self.passed + self.due.len() as u64);
        assert!(counts.entered > 0 && counts.lost > 0 && counts.duplicated > 0);
    }
}

/// What a port may be set to.
pub(super) fn any_plan(rng: &mut Rng, port: PortId) -> Plan {
    let mut plan = Plan {
        up: true,
        ..Plan::default()
    };
    if port == QUERIER {
        plan.vlans.extend((1..=VLANS).map(|vlan| (vlan, true)));
        return plan;
    }
    match rng.u8(..4) {
        0 | 1 => {
            let vlan = rng.u16(1..=VLANS);
            plan.vlans.insert(vlan, false);
            plan.pvid = Some(vlan);
        }
        kind => {
            for vlan in 1..=VLANS {
                if rng.bool() {
                    plan.vlans.insert(vlan, true);
                }
            }
            if kind == 2 {
                let vlan = rng.u16(1..=VLANS);
                plan.vlans.insert(vlan, rng.bool());
                plan.pvid = Some(vlan);
            }
        }
    }
    plan.isolated = rng.bool();
    plan.hairpin = rng.u8(..6) == 0;
    plan.fast_leave = rng.u8(..3) == 0;
    for class in FloodClass::ALL {
        if rng.u8(..10) == 0 {
            plan.spared.push(class);
        }
        if rng.u8(..4) == 0 {
            let limit = (rng.u32(1..=50), rng.u32(1..=10));
            plan.storm.insert(class as usize, limit);
        }
    }
    plan
}

/// The picture of some plans.
pub(super) fn picture(plans: &BTreeMap<PortId, Plan>, generation: u64) -> Topology {
    let mut topology = Topology::default();
    let mut red = Domain::new(RED, "red");
    red.gateway_vlan = VlanId(1);
    red.multicast = Multicast::Snooped;
    red.ageing = Duration::from_millis(AGEING_MILLIS);
    topology.put_domain(red);
    for (id, plan) in plans {
        let mut vlans = PortVlans::NONE;
        for (vlan, tagged) in &plan.vlans {
            let form = if *tagged {
                Form::Tagged
            } else {
                Form::Untagged
            };
            vlans.add(*vlan..=*vlan, form);
        }
        if let Some(pvid) = plan.pvid {
            vlans.set_pvid(VlanId(pvid));
        }
        let mut port = Port::new(*id, &id.to_string(), Role::Bridge(RED));
        port.up = plan.up;
        port.flags = port.flags.with(PortFlags::FILTERING);
        for (on, flag) in [
            (plan.isolated, PortFlags::ISOLATED),
            (plan.hairpin, PortFlags::HAIRPIN),
            (plan.fast_leave, PortFlags::FAST_LEAVE),
            (!plan.storm.is_empty(), PortFlags::STORM),
        ] {
            if on {
                port.flags = port.flags.with(flag);
            }
        }
        for class in &plan.spared {
            port.flags = port.flags.without(class.flag());
        }
        for class in FloodClass::ALL {
            let limit = plan.storm.get(&(class as usize));
            let limit = limit.and_then(|(rate, burst)| StormLimit::new(*rate, Some(*burst)).ok());
            *port.profile_mut().storm.of_mut(class) = limit;
        }
        port.profile_mut().vlans = Some(Box::new(vlans));
        topology.put_port(port);
    }
    topology.put_port(Port {
        flags: PortFlags::MIRROR,
        ..Port::new(SPAN, "span", Role::Bridge(RED))
    });
    topology.mirrors.push(Mirror {
        from: MirrorSource::Domain(RED),
        direction: MirrorDirection::Both,
        to: SPAN,
    });
    topology.generation = generation;
    topology.finish();
    topology
}
