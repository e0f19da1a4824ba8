//! Multicast snooping: a group's frames go to the ports that listen to it, not to all.
//!
//! # Theory of operation
//! Hosts say which groups they listen to, by IGMP (RFC 2236, RFC 3376) and MLD (RFC 2710, RFC 3810);
//! a querier asks them every two minutes, and who does not answer is forgotten. The switch listens
//! in (RFC 4541) and keeps, for each network, which ports listen to which groups: the MDB. What the
//! kernel's bridge does (net/bridge/br_multicast.c) is done here, down to its times, except where
//! an RFC says otherwise (decision 0020).
//!
//! - *Each VLAN* of a network has groups, queriers and router ports of its own; the switch asks in the
//!   one that the gateway is in.
//! - *Without a querier* nobody is asked, so the MDB says nothing of who is silent: everything is
//!   flooded, as if there were no snooping. The same holds until the first query's answers are in.
//! - *A group that is known* goes to its listeners and to the ports that lead to multicast routers.
//!   One that is not goes to the routers alone. A router's port is one that a query came by.
//! - *Always flooded* is what hosts need not report: 224.0.0.0/24 and ff02::1, whatever is not IP,
//!   and IP that is not to a group.
//! - *Messages* are believed whole or not at all; one that is wrong is dropped, as RFC 4541 section
//!   2.1.1 (4) asks. Queries and leaves are flooded, as reports of the newer versions are. Those of
//!   the older ones go to routers only: a host that hears another's report keeps its own back.
//! - *A leave* does not end a listening, for there may be others behind the port: the querier asks
//!   the group by that port, and the silence of two seconds ends it.
//! - *A full table* refuses the new and keeps the old. A port whose wish is refused is sent every
//!   group for as long as the listening would have lasted.
//!
//! A listening ends when its time is over, whoever looks; [`Mdb::tick`] returns the memory and says
//! what the switch, as a querier, has to ask.
//!
//! Thread-safety: one [`Mdb`] serves all workers. A frame to a group reads its network under the
//! shared side of a lock, for as long as its ports are written down; a message takes the exclusive
//! side. Nothing is called meanwhile, and nothing allocated for a frame. Frames to one station or to
//! everybody never come here.
//!
//! Limits: [`GROUPS_MAX`], [`GROUPS_PER_PORT_MAX`], [`LEAVES_MAX`].

mod message;
mod network;
mod query;
mod timing;
mod view;

use core::hash::{BuildHasher, Hash, Hasher};
use core::sync::atomic::{AtomicU64, Ordering};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ahash::RandomState;
use dashmap::DashMap;

use crate::addr::{DomainId, MacAddr, PortId, VlanId};
use crate::frame::FrameBuf;
use crate::time::{Duration, Instant};
use crate::topology::{Multicast, Topology};

use message::{ALL_NODES, ALL_SYSTEMS};
pub use network::Forget;
use network::Network;
pub use view::MdbView;
pub(crate) use view::Spared;

/// Groups of one network, as many as the kernel's bridge keeps (`mcast_hash_max`).
pub const GROUPS_MAX: usize = 4_096;

/// Groups of one port, so that no port takes all of its network's: an eighth.
pub const GROUPS_PER_PORT_MAX: usize = 512;

/// Ports of one network that are asked for the last listener to a group at a time, each for a
/// second. Beyond, a leave is not followed up, and its group is forgotten when nobody reports it.
pub const LEAVES_MAX: usize = 256;

/// IGMP or MLD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4 and IGMP.
    V4,
    /// IPv6 and MLD.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// That of an address.
    #[inline]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// What names a group on a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupKey {
    /// The VLAN that its listeners are in.
    pub vlan: VlanId,
    /// Its address.
    pub group: IpAddr,
}

impl GroupKey {
    /// The family of its address.
    #[inline]
    pub const fn family(&self) -> Family {
        Family::of(self.group)
    }

    /// Whether frames to it go to every port whoever listens (RFC 4541 sections 2.1.2 (2) and 3).
    #[inline]
    pub fn is_always_flooded(&self) -> bool {
        match self.group {
            IpAddr::V4(group) => group.octets()[..3] == ALL_SYSTEMS.octets()[..3],
            IpAddr::V6(group) => group == ALL_NODES,
        }
    }
}

/// There is no room for another group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// What a message came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Groups that are listened to by its port.
    pub joined: u16,
    /// Groups that somebody behind its port has left.
    pub left: u16,
    /// Groups for which there was no room.
    pub refused: u16,
    /// Queries: one, or none.
    pub queries: u16,
}

impl Heard {
    fn note(&mut self, joined: network::Joined) {
        match joined {
            network::Joined::Kept => self.joined += 1,
            network::Joined::Refused => self.refused += 1,
        }
    }
}

/// Something that the switch has to ask, as the querier of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Which network.
    pub domain: DomainId,
    /// In which VLAN.
    pub vlan: VlanId,
    /// By IGMP or by MLD.
    pub family: Family,
    /// About one group; `None` about all.
    pub group: Option<IpAddr>,
    /// Of one port; `None` of all.
    pub to: Option<PortId>,
}

impl Question {
    /// Writes the frame that asks it. `false` when its network is gone.
    pub fn write(&self, topology: &Topology, buf: &mut FrameBuf) -> bool {
        let domain = topology.domain(self.domain);
        domain.is_some_and(|domain| query::write(buf, domain, self))
    }
}

/// A port that listens to a group, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MdbRow {
    /// The group.
    pub key: GroupKey,
    /// The port.
    pub port: PortId,
    /// How much longer; `None` for one that was set.
    pub left: Option<Duration>,
}

/// A port that leads to a multicast router, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouterRow {
    /// The VLAN that it was heard in.
    pub vlan: VlanId,
    /// By IGMP or by MLD.
    pub family: Family,
    /// The port.
    pub port: PortId,
    /// How much longer; `None` for one that was set.
    pub left: Option<Duration>,
}

/// Who asks, of one family, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuerierRow {
    /// The VLAN that it asks in.
    pub vlan: VlanId,
    /// By IGMP or by MLD.
    pub family: Family,
    /// Its address.
    pub address: IpAddr,
    /// The port that it is behind, and how much longer it is; `None` when it is the switch.
    pub behind: Option<(PortId, Duration)>,
    /// Whether the MDB is gone by: listeners have had the time to answer.
    pub trusted: bool,
}

/// The groups of every network.
#[derive(Debug)]
pub struct Mdb {
    networks: DashMap<DomainId, Network, RandomState>,
    queries_sent: AtomicU64,
    /// Generation of the picture that [`Mdb::tick`] has seen last, plus one.
    pictured: AtomicU64,
}

impl Mdb {
    /// An empty table.
    pub fn new(seed: u64) -> Arc<Self> {
        let hasher = RandomState::with_seeds(seed, 1, 2, 3);
        Arc::new(Self {
            networks: DashMap::with_hasher(hasher),
            queries_sent: AtomicU64::new(0),
            pictured: AtomicU64::new(0),
        })
    }

    /// What is to be asked now. Every tenth of a second or so, by one worker.
    pub fn tick(&self, topology: &Topology, now: Instant, questions: &mut Vec<Question>) {
        let kept = |id: &DomainId| {
            let domain = topology.domain(*id);
            domain.is_some_and(|domain| domain.multicast != Multicast::Flooded)
        };
        // Walking the whole table allocates, so it is done for a new picture only.
        let seen = topology.generation.wrapping_add(1);
        if self.pictured.swap(seen, Ordering::Relaxed) != seen {
            self.networks.retain(|id, _| kept(id));
        }
        for domain in topology.domains() {
            match domain.multicast {
                Multicast::Flooded => {}
                Multicast::Snooped => {
                    // One that has heard nothing has nothing to do either.
                    if let Some(mut network) = self.networks.get_mut(&domain.id) {
                        network.tick(topology, domain, now, questions);
                    }
                }
                Multicast::Queried => {
                    let mut network = self.networks.entry(domain.id).or_default();
                    network.tick(topology, domain, now, questions);
                }
            }
        }
    }

    /// Counts queries that were sent.
    pub fn count_sent(&self, queries: u64) {
        self.queries_sent.fetch_add(queries, Ordering::Relaxed);
    }

    /// Queries that the switch has sent.
    pub fn queries_sent(&self) -> u64 {
        self.queries_sent.load(Ordering::Relaxed)
    }

    /// Sets a listener that stays until it is removed.
    ///
    /// # Errors
    /// [`Full`].
    pub fn set(&self, domain: DomainId, key: GroupKey, port: PortId) -> Result<(), Full> {
        self.networks.entry(domain).or_default().set(key, port)
    }

    /// Removes a listener, heard or set; `false` when there is none.
    pub fn remove(&self, domain: DomainId, key: GroupKey, port: PortId) -> bool {
        let network = self.networks.get_mut(&domain);
        network.is_some_and(|mut network| network.remove(key, port))
    }

    /// Forgets what was heard on a port, or all that there is of it.
    pub fn forget_port(&self, port: PortId, forget: Forget) {
        for mut network in self.networks.iter_mut() {
            network.forget_port(port, forget);
        }
    }

    /// The listeners of a network, by group.
    pub fn rows(&self, domain: DomainId, now: Instant) -> Vec<MdbRow> {
        let Some(network) = self.networks.get(&domain) else {
            return Vec::new();
        };
        let row = |(key, listener): (GroupKey, network::Listener)| MdbRow {
            key,
            port: listener.port,
            left: listener.until.map(|until| until.since(now)),
        };
        network.listeners(now).map(row).collect()
    }

    /// Listeners of all networks, those included whose time is over.
    pub fn len(&self) -> usize {
        self.networks.iter().map(|network| network.len()).sum()
    }

    /// Whether nobody listens to anything.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The ports of a network that lead to routers, as they were heard.
    pub fn routers(&self, domain: DomainId, now: Instant) -> Vec<RouterRow> {
        let Some(network) = self.networks.get(&domain) else {
            return Vec::new();
        };
        let mut rows = Vec::new();
        for vlan in network.vlans() {
            for family in Family::ALL {
                let routers = network.routers(vlan, family, now);
                rows.extend(routers.map(|router| RouterRow {
                    vlan,
                    family,
                    port: router.port,
                    left: Some(router.until.since(now)),
                }));
            }
        }
        rows
    }

    /// Who asks on a network.
    pub fn queriers(&self, topology: &Topology, id: DomainId, now: Instant) -> Vec<QuerierRow> {
        let found = self.networks.get(&id).zip(topology.domain(id));
        let Some((network, domain)) = found else {
            return Vec::new();
        };
        let of = |vlan, family| {
            let other = network.other(vlan, family, now);
            let own = || {
                let own = domain.querier(vlan, family);
                own.filter(|_| network.is_querier(vlan, family))
            };
            Some(QuerierRow {
                vlan,
                family,
                address: other.map(|other| other.address).or_else(own)?,
                behind: other.map(|other| (other.port, other.until.since(now))),
                trusted: network.is_trusted(vlan, family, now),
            })
        };
        let vlans = network.vlans();
        vlans
            .flat_map(|vlan| Family::ALL.map(|family| of(vlan, family)))
            .flatten()
            .collect()
    }

    /// A hash of everything that frames change. Equal tables have equal hashes.
    pub fn state_hash(&self) -> u64 {
        let hasher = RandomState::with_seeds(1, 2, 3, 4);
        let hash = |id: DomainId, network: &Network| {
            let mut state = hasher.build_hasher();
            id.hash(&mut state);
            network.hash_into(&mut state);
            state.finish()
        };
        let networks = self.networks.iter();
        networks
            .map(|network| hash(*network.key(), network.value()))
            .fold(0, u64::wrapping_add)
    }
}

/// The Ethernet address of a group (RFC 1112 section 6.4, RFC 2464 section 7).
pub fn group_mac(group: IpAddr) -> MacAddr {
    match group {
        IpAddr::V4(group) => {
            let [_, b, c, d] = Ipv4Addr::octets(&group);
            MacAddr([0x01, 0x00, 0x5e, b & 0x7f, c, d])
        }
        IpAddr::V6(group) => {
            let [.., a, b, c, d] = Ipv6Addr::octets(&group);
            MacAddr([0x33, 0x33, a, b, c, d])
        }
    }
}
