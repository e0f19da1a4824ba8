//! What is known of one network's groups: who listens, where routers are, who the querier is.
//!
//! Plain data and rules; locks and views are in the files beside it. Time is an argument, and what
//! has an end is asked for it wherever it is used, so nothing depends on when it is tidied up.

use core::hash::{Hash, Hasher};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};

use rustc_hash::FxBuildHasher;

use super::message::{Message, Query, Wish};
use super::timing::{
    LAST_MEMBER_COUNT, LAST_MEMBER_INTERVAL, MEMBERSHIP_INTERVAL, QUERIER_INTERVAL, QUERY_INTERVAL,
    RESPONSE_INTERVAL, STARTUP_COUNT, STARTUP_INTERVAL, STARTUP_TIME,
};
use super::{Family, GROUPS_MAX, GROUPS_PER_PORT_MAX, GroupKey, Heard, LEAVES_MAX, Question};
use crate::addr::{PortId, VlanId};
use crate::l2::PortFlags;
use crate::time::Instant;
use crate::topology::{Domain, Multicast, Topology};

/// The groups of one network.
#[derive(Clone, Debug, Default)]
pub(super) struct Network {
    groups: BTreeMap<GroupKey, Vec<Listener>>,
    /// How many groups are kept for each port, those that are set not counted.
    counts: HashMap<PortId, usize, FxBuildHasher>,
    /// Ports that want more groups than are kept for them, and are sent every group meanwhile.
    eager: Vec<Lasting>,
    /// Queriers and routers of each VLAN that one was heard in, or that we ask in.
    vlans: BTreeMap<VlanId, [FamilyState; Family::ALL.len()]>,
    leaves: Vec<Leaving>,
    /// Ports that were up when we looked last, ascending, as of a generation of the picture.
    present: (u64, Vec<PortId>),
    tidied: Instant,
}

/// A port that listens to a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Listener {
    pub port: PortId,
    /// Until when; `None` for one that was set.
    pub until: Option<Instant>,
}

/// A port that is something for some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Lasting {
    pub port: PortId,
    pub until: Instant,
}

/// What is kept for IGMP and for MLD apart.
#[derive(Clone, Debug, Default)]
struct FamilyState {
    /// Ports with a multicast router behind them.
    routers: Vec<Lasting>,
    /// Another querier, heard lately.
    other: Option<Other>,
    /// What we ask next, while we are the querier.
    own: Option<Own>,
    /// Before this, listeners have not had the time to answer the first query, or the first two of ours.
    trusted_from: Instant,
}

/// Another querier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Other {
    pub address: IpAddr,
    pub port: PortId,
    pub until: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Own {
    next: Instant,
    /// Queries of the beginning that were sent.
    begun: u8,
}

/// A port that may have lost its last listener to a group: it is asked.
#[derive(Clone, Copy, Debug)]
struct Leaving {
    key: GroupKey,
    port: PortId,
    /// Queries that are still to be sent.
    left: u8,
    next: Instant,
}

/// Where a message was heard, as the rules ask for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<'d> {
    pub domain: &'d Domain,
    pub vlan: VlanId,
    pub port: PortId,
    pub flags: PortFlags,
}

impl Source<'_> {
    fn key(&self, group: IpAddr) -> GroupKey {
        GroupKey {
            vlan: self.vlan,
            group,
        }
    }
}

impl Network {
    /// Takes note of a message.
    pub fn hear(&mut self, source: Source<'_>, message: Message<'_>, now: Instant) -> Heard {
        let mut heard = Heard::default();
        let mut take = |network: &mut Self, group, wish| match wish {
            Wish::Join => heard.note(network.join(source.key(group), source.port, now)),
            Wish::Leave => {
                network.leave(source, source.key(group), now);
                heard.left += 1;
            }
            Wish::Nothing => {}
        };
        match message {
            Message::Report(group) => take(self, group, Wish::Join),
            Message::Leave(group) => take(self, group, Wish::Leave),
            Message::Records(records) => {
                for (group, wish) in records {
                    take(self, group, wish);
                }
            }
            Message::Query(query) => {
                heard.queries += 1;
                self.query(source, &query, now);
            }
            Message::Router => self.mark_router(Family::V4, source, now),
        }
        heard
    }

    /// Notes that a port listens to a group, if there is room for it.
    fn join(&mut self, key: GroupKey, port: PortId, now: Instant) -> Joined {
        if key.is_always_flooded() {
            return Joined::Kept;
        }
        let until = now + MEMBERSHIP_INTERVAL;
        self.leaves
            .retain(|leaving| (leaving.key, leaving.port) != (key, port));
        let known = self.groups.get_mut(&key);
        if let Some(listeners) = &known
            && let Ok(at) = position(listeners, port)
        {
            if let Some(listener) = known.and_then(|listeners| listeners.get_mut(at))
                && listener.until.is_some()
            {
                listener.until = Some(until);
            }
            return Joined::Kept;
        }
        let count = self.counts.get(&port).copied().unwrap_or_default();
        if count >= GROUPS_PER_PORT_MAX || known.is_none() && self.groups.len() >= GROUPS_MAX {
            mark(&mut self.eager, Lasting { port, until });
            return Joined::Refused;
        }
        self.counts.insert(port, count + 1);
        let listeners = self.groups.entry(key).or_default();
        insert(
            listeners,
            Listener {
                port,
                until: Some(until),
            },
        );
        Joined::Kept
    }

    /// Notes that one listener behind a port has left a group (RFC 2236 section 3, RFC 4541 section
    /// 2.1.1): whether it was the last one is for the querier to ask.
    fn leave(&mut self, source: Source<'_>, key: GroupKey, now: Instant) {
        let Some(listeners) = self.groups.get_mut(&key) else {
            return;
        };
        let Ok(at) = position(listeners, source.port) else {
            return;
        };
        let Some(until) = listeners.get(at).and_then(|listener| listener.until) else {
            return;
        };
        if source.flags.has(PortFlags::FAST_LEAVE) {
            listeners.remove(at);
            self.count_off(source.port);
            return self.drop_if_empty(key);
        }
        let state = self.vlans.get(&key.vlan);
        let state = state.map(|families| &families[key.family() as usize]);
        if state.is_some_and(|state| state.other(now).is_some()) {
            return;
        }
        if state.is_some_and(|state| state.own.is_some()) {
            if self.leaves.len() >= LEAVES_MAX {
                return;
            }
            let asked = |leaving: &Leaving| (leaving.key, leaving.port) == (key, source.port);
            if !self.leaves.iter().any(asked) {
                self.leaves.push(Leaving {
                    key,
                    port: source.port,
                    left: LAST_MEMBER_COUNT,
                    next: now,
                });
            }
        }
        let end = now + LAST_MEMBER_INTERVAL * u32::from(LAST_MEMBER_COUNT);
        if let Some(listener) = listeners.get_mut(at) {
            listener.until = Some(until.min(end));
        }
    }

    fn query(&mut self, source: Source<'_>, query: &Query, now: Instant) {
        match query.group {
            None if !query.leaves_timers => self.general_query(source, query, now),
            Some(group) if !query.leaves_timers => {
                let end = now + query.response_max * u32::from(LAST_MEMBER_COUNT);
                let listeners = self.groups.get_mut(&source.key(group));
                for listener in listeners.into_iter().flatten() {
                    listener.until = listener.until.map(|until| until.min(end));
                }
            }
            None | Some(_) => {}
        }
    }

    /// A query to all: there is a router where it came from, unless its sender has no address
    /// (RFC 4541 section 2.1.1 (1) b), and the lower address is the querier (RFC 2236 section 3).
    fn general_query(&mut self, source: Source<'_>, query: &Query, now: Instant) {
        let family = Family::of(query.from);
        if !query.from.is_unspecified() {
            self.mark_router(family, source, now);
        }
        let state = self.state_mut(source.vlan, family);
        let other = state.other(now);
        let rival = match (other, state.own) {
            (Some(other), _) => Some(other.address),
            (None, Some(_)) => source.domain.querier(source.vlan, family),
            (None, None) => None,
        };
        let beaten = rival.is_some_and(|rival| !rival.is_unspecified() && query.from > rival);
        if beaten {
            return;
        }
        if other.is_none() {
            state.trusted_from = now + query.response_max;
        }
        state.own = None;
        state.other = Some(Other {
            address: query.from,
            port: source.port,
            until: now + QUERIER_INTERVAL,
        });
    }

    fn mark_router(&mut self, family: Family, source: Source<'_>, now: Instant) {
        if !source.flags.has(PortFlags::MCAST_ROUTER_LEARNING) {
            return;
        }
        let router = Lasting {
            port: source.port,
            until: now + QUERIER_INTERVAL,
        };
        mark(&mut self.state_mut(source.vlan, family).routers, router);
    }

    fn state(&self, vlan: VlanId, family: Family) -> Option<&FamilyState> {
        let families = self.vlans.get(&vlan)?;
        Some(&families[family as usize])
    }

    fn state_mut(&mut self, vlan: VlanId, family: Family) -> &mut FamilyState {
        &mut self.vlans.entry(vlan).or_default()[family as usize]
    }

    /// Whether what is known of a family's groups may be gone by: somebody asks for listeners, and
    /// they have had the time to answer.
    pub fn is_trusted(&self, vlan: VlanId, family: Family, now: Instant) -> bool {
        let state = self.state(vlan, family);
        state.is_some_and(|state| {
            let asked = state.own.is_some() || state.other(now).is_some();
            asked && now >= state.trusted_from
        })
    }

    /// Adds the ports that listen to a group, and those that are sent every group.
    pub fn collect_listeners(&self, key: GroupKey, now: Instant, into: &mut Vec<PortId>) {
        let listeners = self.groups.get(&key).into_iter().flatten();
        let alive = listeners.filter(|listener| listener.is_alive(now));
        into.extend(alive.map(|listener| listener.port));
        let eager = self.eager.iter().filter(|eager| eager.until > now);
        into.extend(eager.map(|eager| eager.port));
    }

    /// Adds the ports with routers behind them that a group's frames reach.
    pub fn collect_routers(&self, key: GroupKey, now: Instant, into: &mut Vec<PortId>) {
        let routers = self.routers(key.vlan, key.family(), now);
        into.extend(routers.map(|router| router.port));
    }

    /// The ports of a VLAN with routers of a family behind them, ascending.
    pub fn routers(
        &self,
        vlan: VlanId,
        family: Family,
        now: Instant,
    ) -> impl Iterator<Item = Lasting> {
        let routers = self.state(vlan, family).map(|state| &state.routers);
        let routers = routers.into_iter().flatten().copied();
        routers.filter(move |router| router.until > now)
    }

    /// The other querier of a VLAN and family that is in charge.
    pub fn other(&self, vlan: VlanId, family: Family, now: Instant) -> Option<Other> {
        self.state(vlan, family)?.other(now)
    }

    /// Whether we are the querier of a VLAN and family.
    pub fn is_querier(&self, vlan: VlanId, family: Family) -> bool {
        let state = self.state(vlan, family);
        state.is_some_and(|state| state.own.is_some())
    }

    /// The VLANs in which somebody asks, or a router was heard.
    pub fn vlans(&self) -> impl Iterator<Item = VlanId> {
        self.vlans.keys().copied()
    }

    /// Groups and their listeners, the dead left out.
    pub fn listeners(&self, now: Instant) -> impl Iterator<Item = (GroupKey, Listener)> {
        let groups = self.groups.iter();
        groups.flat_map(move |(key, listeners)| {
            let alive = listeners.iter().filter(move |l| l.is_alive(now));
            alive.map(|listener| (*key, *listener))
        })
    }

    /// Listeners, those included whose time is over.
    pub fn len(&self) -> usize {
        self.groups.values().map(Vec::len).sum()
    }

    /// Adds what frames change to a hash.
    pub fn hash_into(&self, state: &mut impl Hasher) {
        self.groups.hash(state);
        self.eager.hash(state);
        for (vlan, families) in &self.vlans {
            for family in families {
                (vlan, &family.routers).hash(state);
                (family.other, family.trusted_from).hash(state);
            }
        }
        self.leaves.len().hash(state);
    }

    /// Sets a listener that stays.
    pub fn set(&mut self, key: GroupKey, port: PortId) -> Result<(), super::Full> {
        if !self.groups.contains_key(&key) && self.groups.len() >= GROUPS_MAX {
            return Err(super::Full);
        }
        self.remove(key, port);
        insert(
            self.groups.entry(key).or_default(),
            Listener { port, until: None },
        );
        Ok(())
    }

    /// Removes a listener, heard or set; `false` when there is none.
    pub fn remove(&mut self, key: GroupKey, port: PortId) -> bool {
        let Some(listeners) = self.groups.get_mut(&key) else {
            return false;
        };
        let Ok(at) = position(listeners, port) else {
            return false;
        };
        if listeners.remove(at).until.is_some() {
            self.count_off(port);
        }
        self.drop_if_empty(key);
        true
    }

    /// Forgets what was heard on a port; with `all` what was set for it as well.
    pub fn forget_port(&mut self, port: PortId, forget: Forget) {
        self.retain(|listener| {
            listener.port != port || forget == Forget::Heard && listener.until.is_none()
        });
        self.eager.retain(|eager| eager.port != port);
        self.leaves.retain(|leaving| leaving.port != port);
        for family in self.vlans.values_mut().flatten() {
            family.routers.retain(|router| router.port != port);
        }
    }

    /// What is to be asked now, and of whom; the dead are buried now and then.
    pub fn tick(
        &mut self,
        topology: &Topology,
        domain: &Domain,
        now: Instant,
        questions: &mut Vec<Question>,
    ) {
        self.ask_newcomers(topology, domain, now, questions);
        let vlan = domain.gateway_vlan;
        for (_, families) in self.vlans.iter_mut().filter(|(other, _)| **other != vlan) {
            families.iter_mut().for_each(|family| family.own = None);
        }
        for family in Family::ALL {
            if domain.querier(vlan, family).is_none() && !self.vlans.contains_key(&vlan) {
                continue;
            }
            if self.state_mut(vlan, family).own_is_due(domain, family, now) {
                questions.push(Question {
                    domain: domain.id,
                    vlan,
                    family,
                    group: None,
                    to: None,
                });
            }
        }
        for leaving in &mut self.leaves {
            if leaving.next <= now && leaving.left > 0 {
                leaving.left -= 1;
                leaving.next = now + LAST_MEMBER_INTERVAL;
                questions.push(Question {
                    domain: domain.id,
                    vlan: leaving.key.vlan,
                    family: leaving.key.family(),
                    group: Some(leaving.key.group),
                    to: Some(leaving.port),
                });
            }
        }
        self.leaves.retain(|leaving| leaving.left > 0);
        if now.since(self.tidied) >= LAST_MEMBER_INTERVAL {
            self.tidied = now;
            self.retain(|listener| listener.is_alive(now));
            self.eager.retain(|eager| eager.until > now);
            for family in self.vlans.values_mut().flatten() {
                family.routers.retain(|router| router.until > now);
            }
        }
    }

    /// Asks ports that have come up since the last look, as the kernel's bridge does: a daemon that
    /// begins finds its ports one after the other, and each is given time to answer.
    fn ask_newcomers(
        &mut self,
        topology: &Topology,
        domain: &Domain,
        now: Instant,
        questions: &mut Vec<Question>,
    ) {
        if self.present.0 == topology.generation {
            return;
        }
        let up = |id: &PortId| topology.port_up(*id).is_some();
        let ports: Vec<PortId> = domain.flood.iter().copied().filter(up).collect();
        let vlan = domain.gateway_vlan;
        let families = Family::ALL.map(|family| (family, self.is_querier(vlan, family)));
        for (family, _) in families.into_iter().filter(|(_, asks)| *asks) {
            let known = &self.present.1;
            let newcomers = ports
                .iter()
                .filter(|port| known.binary_search(port).is_err());
            let before = questions.len();
            questions.extend(newcomers.map(|port| Question {
                domain: domain.id,
                vlan,
                family,
                group: None,
                to: Some(*port),
            }));
            let asked = questions.len() > before;
            let state = self.state_mut(vlan, family);
            if asked && now < state.trusted_from {
                state.trusted_from = state.trusted_from.max(now + RESPONSE_INTERVAL);
            }
        }
        self.present = (topology.generation, ports);
    }

    fn retain(&mut self, keep: impl Fn(&Listener) -> bool) {
        let counts = &mut self.counts;
        self.groups.retain(|_, listeners| {
            listeners.retain(|listener| {
                let kept = keep(listener);
                if !kept && listener.until.is_some() {
                    count_off(counts, listener.port);
                }
                kept
            });
            !listeners.is_empty()
        });
    }

    fn count_off(&mut self, port: PortId) {
        count_off(&mut self.counts, port);
    }

    fn drop_if_empty(&mut self, key: GroupKey) {
        if self.groups.get(&key).is_some_and(Vec::is_empty) {
            self.groups.remove(&key);
        }
    }
}

/// What is forgotten of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forget {
    /// What was heard.
    Heard,
    /// What was set as well.
    All,
}

/// What a join came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Joined {
    Kept,
    Refused,
}

impl Listener {
    fn is_alive(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| until > now)
    }
}

impl FamilyState {
    fn other(&self, now: Instant) -> Option<Other> {
        self.other.filter(|other| other.until > now)
    }

    /// Whether it is time to ask, as the querier that a network is to have (RFC 2236 section 3):
    /// twice at the beginning, then at intervals, and only where no other one does.
    fn own_is_due(&mut self, domain: &Domain, family: Family, now: Instant) -> bool {
        let wanted = domain.querier(domain.gateway_vlan, family).is_some();
        if !wanted || self.other(now).is_some() {
            self.own = None;
            return false;
        }
        let begins = || Own {
            next: now,
            begun: 0,
        };
        if self.own.is_none() && self.other.take().is_none() {
            // Nobody has asked before: what is known is not all there is.
            self.trusted_from = now + STARTUP_TIME;
        }
        let own = self.own.get_or_insert_with(begins);
        if own.next > now {
            return false;
        }
        own.begun = own.begun.saturating_add(1);
        let pause = if own.begun < STARTUP_COUNT {
            STARTUP_INTERVAL
        } else {
            QUERY_INTERVAL
        };
        own.next = now + pause;
        true
    }
}

impl Domain {
    /// The address that the switch asks by, where it is to be a querier: in the VLAN that the gateway
    /// is in, by its address. With a gateway that has no IPv4 address it asks by 0.0.0.0, as RFC 4541
    /// section 2.1.1 has it.
    pub fn querier(&self, vlan: VlanId, family: Family) -> Option<IpAddr> {
        let asks = self.multicast == Multicast::Queried && vlan == self.gateway_vlan;
        let gateway = self.gateway.as_ref().filter(|_| asks)?;
        let mut own = gateway.addresses.iter().copied();
        Some(match family {
            Family::V4 => own
                .find(IpAddr::is_ipv4)
                .unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
            Family::V6 => gateway.mac.link_local_v6().into(),
        })
    }
}

fn position(listeners: &[Listener], port: PortId) -> Result<usize, usize> {
    listeners.binary_search_by_key(&port, |listener| listener.port)
}

fn insert(listeners: &mut Vec<Listener>, listener: Listener) {
    if let Err(at) = position(listeners, listener.port) {
        listeners.insert(at, listener);
    }
}

/// Notes that a port is something from now on, or still.
fn mark(ports: &mut Vec<Lasting>, mark: Lasting) {
    match ports.binary_search_by_key(&mark.port, |known| known.port) {
        Ok(at) => ports[at] = mark,
        Err(at) => ports.insert(at, mark),
    }
}

fn count_off(counts: &mut HashMap<PortId, usize, FxBuildHasher>, port: PortId) {
    if let Some(count) = counts.get_mut(&port) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&port);
        }
    }
}
