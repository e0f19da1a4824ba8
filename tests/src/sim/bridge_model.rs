//! A bridge with VLANs, groups and storm control as one would explain it on a blackboard: maps, whole
//! numbers, and no code of the core's. It says what must become of a frame before the core's answer is
//! looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dataplane_core::addr::{MacAddr, PortId};
use dataplane_core::l2::FloodClass;

/// Milliseconds that a listener is remembered, that a router and a querier are, and that a leave takes
/// where nobody asks (RFC 2236 section 8, RFC 2710 section 7).
const MEMBERSHIP_MILLIS: u64 = 260_000;
const QUERIER_MILLIS: u64 = 255_000;
const LEAVE_MILLIS: u64 = 2_000;

/// What is set of a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The VLAN of frames without a tag.
    pub pvid: Option<u16>,
    /// VLANs that it is in, and whether their frames leave with a tag.
    pub vlans: BTreeMap<u16, bool>,
    /// Frames flow.
    pub up: bool,
    /// It reaches no other isolated port.
    pub isolated: bool,
    /// A frame may go back by it.
    pub hairpin: bool,
    /// A leave by it is believed.
    pub fast_leave: bool,
    /// Classes of flooded frames that do not leave by it.
    pub spared: Vec<FloodClass>,
    /// Frames a second and at once, by class.
    pub storm: BTreeMap<usize, (u32, u32)>,
}

/// What a frame is, as the one who made it knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Anything else.
    Plain,
    /// A datagram to a group.
    Data(IpAddr),
    /// Reports that go to routers alone, or (of the newer versions) to everybody.
    Join {
        /// The groups.
        groups: Vec<IpAddr>,
        /// Of the newer version.
        new: bool,
    },
    /// A leave.
    Leave(IpAddr),
    /// A general query, whose answers take so many milliseconds.
    Query {
        /// Of MLD.
        v6: bool,
        /// Milliseconds.
        response: u64,
    },
    /// A message about groups with a wrong checksum.
    Wrong,
}

/// A frame that enters.
#[derive(Clone, Debug)]
pub struct Sent<'f> {
    /// By this port.
    pub port: PortId,
    /// Its bytes.
    pub bytes: &'f [u8],
    /// What it is.
    pub kind: &'f Kind,
    /// When, in milliseconds.
    pub millis: u64,
}

/// What must become of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Dropped, for the reason with this label.
    Drop(&'static str),
    /// To one port.
    Bridged(u16, PortId),
    /// To all of these.
    Flooded(u16, FloodClass, Vec<PortId>),
    /// To all of the first, and to no other than the second.
    Group(u16, Vec<PortId>, Vec<PortId>),
}

#[derive(Clone, Copy, Debug)]
struct Listener {
    until: u64,
    /// Known for certain: not when its port was full, or down.
    sure: bool,
}

/// What is known of one VLAN and family.
#[derive(Clone, Debug, Default)]
struct Asked {
    /// Until when somebody asks, and from when the answers are in.
    until: u64,
    trusted_from: u64,
    routers: BTreeMap<PortId, u64>,
}

/// The model.
#[derive(Debug, Default)]
pub struct Model {
    stations: BTreeMap<(u16, MacAddr), (PortId, u64)>,
    listeners: BTreeMap<(u16, IpAddr), BTreeMap<PortId, Listener>>,
    /// Ports that wanted more groups than are kept for one, and are sent everything meanwhile.
    eager: BTreeMap<PortId, u64>,
    asked: BTreeMap<(u16, bool), Asked>,
    /// Nanoseconds that a class of a port owes, as of a moment.
    debts: BTreeMap<(PortId, usize), (u64, u64)>,
}

/// The VLAN of the customer tag that a frame begins with.
fn customer(bytes: &[u8]) -> Option<u16> {
    let tagged = bytes.len() >= 18 && bytes[12..14] == [0x81, 0x00];
    tagged.then(|| u16::from_be_bytes([bytes[14] & 0x0f, bytes[15]]))
}

/// A frame as it leaves by a port: with the tag of its VLAN, or without one.
pub fn as_it_leaves(bytes: &[u8], vlan: u16, tagged: bool) -> Vec<u8> {
    let priority = customer(bytes).map_or(0, |_| bytes[14] & 0xf0);
    let rest = if customer(bytes).is_some() { 16 } else { 12 };
    let [high, low] = vlan.to_be_bytes();
    let tag = [0x81, 0x00, high | priority, low];
    let tag = if tagged { &tag[..] } else { &[] };
    [&bytes[..12], tag, &bytes[rest..]].concat()
}

impl Model {
    /// The VLAN that a port puts a frame into, or why it may not enter.
    pub fn classify(plan: &Plan, bytes: &[u8]) -> Result<u16, &'static str> {
        match customer(bytes) {
            None | Some(0) => plan.pvid.ok_or("vlan_no_pvid"),
            Some(vlan) if plan.vlans.contains_key(&vlan) => Ok(vlan),
            Some(_) => Err("vlan_ingress"),
        }
    }

    /// Forgets what was heard on a port that has gone down.
    pub fn forget(&mut self, port: PortId) {
        self.stations.retain(|_, (at, _)| *at != port);
        for listeners in self.listeners.values_mut() {
            listeners.remove(&port);
        }
        for asked in self.asked.values_mut() {
            asked.routers.remove(&port);
        }
        self.eager.remove(&port);
    }

    /// Where a station was heard last, and when; at 0 when that is so long ago that it is unknown.
    pub fn station(&self, vlan: u16, mac: MacAddr) -> Option<(PortId, u64)> {
        self.stations.get(&(vlan, mac)).copied()
    }

    /// Notes where a station is.
    pub fn learn(&mut self, vlan: u16, mac: MacAddr, port: PortId, millis: u64) {
        self.stations.insert((vlan, mac), (port, millis));
    }

    /// Has a station unknown from now on, for its time is over. Its entry still takes its room.
    pub fn age_out(&mut self, vlan: u16, mac: MacAddr) {
        if let Some((_, heard)) = self.stations.get_mut(&(vlan, mac)) {
            *heard = 0;
        }
    }

    /// Stations on a port, those included whose time is over.
    pub fn count_on(&self, port: PortId) -> usize {
        let on = |(at, _): &&(PortId, u64)| *at == port;
        self.stations.values().filter(on).count()
    }

    /// What must become of a frame of a VLAN whose station is learned already.
    pub fn fate(&mut self, plans: &BTreeMap<PortId, Plan>, sent: &Sent<'_>, vlan: u16) -> Fate {
        let dst = MacAddr(sent.bytes[..6].try_into().unwrap_or_default());
        if !dst.is_group()
            && let Some((at, 1..)) = self.station(vlan, dst)
        {
            return bridged(plans, sent.port, at, vlan);
        }
        let class = if dst.is_broadcast() {
            FloodClass::Broadcast
        } else if dst.is_group() {
            FloodClass::Multicast
        } else {
            FloodClass::UnknownUnicast
        };
        if let Some(dropped) = self.meter(&plans[&sent.port], sent, class) {
            return Fate::Drop(dropped);
        }
        let flooded = || {
            let ports = takers(plans, sent.port, vlan, Some(class));
            match ports.is_empty() {
                true => Fate::Drop("no_other_port"),
                false => Fate::Flooded(vlan, class, ports),
            }
        };
        let (group, listeners) = match sent.kind {
            Kind::Plain => return flooded(),
            Kind::Wrong => return Fate::Drop("group_message_malformed"),
            Kind::Data(group) => (*group, true),
            kind => {
                self.hear(&plans[&sent.port], sent, vlan);
                match kind {
                    Kind::Join { groups, new: false } => (groups[0], false),
                    _ => return flooded(),
                }
            }
        };
        self.group(plans, sent, (vlan, group), listeners)
            .unwrap_or_else(flooded)
    }

    /// Whom a frame to a group reaches; `None` where nobody has asked who listens.
    fn group(
        &self,
        plans: &BTreeMap<PortId, Plan>,
        sent: &Sent<'_>,
        (vlan, group): (u16, IpAddr),
        listeners: bool,
    ) -> Option<Fate> {
        let now = sent.millis;
        let asked = self.asked.get(&(vlan, group.is_ipv6()))?;
        if asked.until <= now || now < asked.trusted_from {
            return None;
        }
        let routers = asked.routers.iter().filter(|(_, until)| **until > now);
        let mut must: BTreeSet<PortId> = routers.map(|(port, _)| *port).collect();
        let mut may = must.clone();
        if listeners {
            let known = self.listeners.get(&(vlan, group)).into_iter().flatten();
            for (port, listener) in known.filter(|(_, listener)| listener.until > now) {
                may.insert(*port);
                if listener.sure {
                    must.insert(*port);
                }
            }
            let eager = self.eager.iter().filter(|(_, until)| **until > now);
            may.extend(eager.map(|(port, _)| *port));
        }
        let reached = takers(plans, sent.port, vlan, None);
        let within = |ports: &BTreeSet<PortId>| -> Vec<PortId> {
            let ports = ports.iter().copied();
            ports.filter(|port| reached.contains(port)).collect()
        };
        Some(Fate::Group(vlan, within(&must), within(&may)))
    }

    /// Takes note of a message about groups.
    fn hear(&mut self, plan: &Plan, sent: &Sent<'_>, vlan: u16) {
        let (port, now) = (sent.port, sent.millis);
        match sent.kind {
            Kind::Join { groups, .. } => {
                for group in groups {
                    let listeners = self.listeners.entry((vlan, *group)).or_default();
                    let known = listeners.get(&port).filter(|known| known.until > now);
                    let sure = known.is_none_or(|known| known.sure);
                    let until = now + MEMBERSHIP_MILLIS;
                    listeners.insert(port, Listener { until, sure });
                }
            }
            Kind::Leave(group) => {
                let asked = self.asked.get(&(vlan, group.is_ipv6()));
                let asks = asked.is_some_and(|asked| asked.until > now);
                let listeners = self.listeners.get_mut(&(vlan, *group));
                let Some(listeners) = listeners else {
                    return;
                };
                if plan.fast_leave {
                    listeners.remove(&port);
                } else if let Some(listener) = listeners.get_mut(&port).filter(|_| !asks) {
                    listener.until = listener.until.min(now + LEAVE_MILLIS);
                }
            }
            Kind::Query { v6, response } => {
                let asked = self.asked.entry((vlan, *v6)).or_default();
                asked.routers.insert(port, now + QUERIER_MILLIS);
                if asked.until <= now {
                    asked.trusted_from = now + response;
                }
                asked.until = now + QUERIER_MILLIS;
            }
            Kind::Plain | Kind::Data(_) | Kind::Wrong => {}
        }
    }

    /// A report was refused in part: its port is sent everything, and may listen to any of these.
    pub fn refused(&mut self, port: PortId, vlan: u16, groups: &[IpAddr], millis: u64) {
        self.eager.insert(port, millis + MEMBERSHIP_MILLIS);
        for group in groups {
            let known = self.listeners.get_mut(&(vlan, *group));
            if let Some(listener) = known.and_then(|known| known.get_mut(&port)) {
                listener.sure = false;
            }
        }
    }

    /// Groups that a port has listened to, those included whose time is over.
    pub fn groups_of(&self, port: PortId) -> usize {
        let listeners = self.listeners.values();
        listeners.filter(|known| known.contains_key(&port)).count()
    }

    /// A debt of time: each frame adds its share, the clock takes it off, and a burst's worth may be
    /// owed. What is owed stays so when the limit changes.
    fn meter(&mut self, plan: &Plan, sent: &Sent<'_>, class: FloodClass) -> Option<&'static str> {
        let (rate, burst) = plan.storm.get(&(class as usize))?;
        let share = 1_000_000_000 / u64::from(*rate);
        let now = sent.millis * 1_000_000;
        let (debt, at) = self.debts.entry((sent.port, class as usize)).or_default();
        *debt = debt.saturating_sub(now - *at);
        *at = now;
        match *debt <= share * u64::from(burst - 1) {
            true => {
                *debt += share;
                None
            }
            false => Some(match class {
                FloodClass::Broadcast => "storm_broadcast",
                FloodClass::Multicast => "storm_multicast",
                FloodClass::UnknownUnicast => "storm_unknown_unicast",
            }),
        }
    }
}

/// A frame to one station.
fn bridged(plans: &BTreeMap<PortId, Plan>, from: PortId, to: PortId, vlan: u16) -> Fate {
    let (ingress, egress) = (&plans[&from], &plans[&to]);
    Fate::Drop(if from == to && !ingress.hairpin {
        "same_port"
    } else if !egress.up {
        "egress_down"
    } else if ingress.isolated && egress.isolated {
        "port_isolated"
    } else if !egress.vlans.contains_key(&vlan) {
        "vlan_egress"
    } else {
        return Fate::Bridged(vlan, to);
    })
}

/// The ports of a VLAN that a frame reaches which entered by one; `None` for a group that is known, of
/// which no port is spared.
fn takers(
    plans: &BTreeMap<PortId, Plan>,
    from: PortId,
    vlan: u16,
    class: Option<FloodClass>,
) -> Vec<PortId> {
    let ingress = &plans[&from];
    let takes = |(port, plan): &(&PortId, &Plan)| {
        let back = **port == from && !plan.hairpin;
        let apart = ingress.isolated && plan.isolated;
        let spared = class.is_some_and(|class| plan.spared.contains(&class));
        plan.up && plan.vlans.contains_key(&vlan) && !back && !apart && !spared
    };
    let taking = plans.iter().filter(takes);
    taking.map(|(port, _)| *port).collect()
}
