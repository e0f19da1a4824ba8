//! What is connected to what: an immutable picture that workers swap as a whole.
//!
//! The control plane builds a [`Topology`], the workers hold it behind an `Arc` and change to the
//! next one between two batches, so no frame ever sees half of a change. Everything that a frame
//! needs is precomputed here: flooding is an array walk, a route lookup a short scan.
//!
//! Limits: [`PORTS_MAX`] ports, [`DOMAINS_MAX`] domains, [`UPLINKS_MAX`] uplinks.

use core::sync::atomic::{AtomicU32, Ordering};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use rustc_hash::FxBuildHasher;

use crate::addr::{DomainId, MacAddr, PortId, Prefix, UplinkId, VlanId};
use crate::l2::{FloodClass, Mirror, PortFlags, TRANSPARENT, Takers};
use crate::multicast::Question;
use crate::nat::{Behaviour, NatConfig, StaticRules};
use crate::policy::Policy;
use crate::route::PrefixTable;
use crate::time::Duration;

mod port;

pub use port::{Port, Role};

/// Switch ports of one process; each costs a queue and a file descriptor per worker.
pub const PORTS_MAX: usize = 8_192;
/// Networks of one process.
pub const DOMAINS_MAX: usize = 4_096;
/// External interfaces of one process.
pub const UPLINKS_MAX: usize = 16;

/// Largest IP packet of a port that nobody sets another for, in bytes: Ethernet's.
pub const MTU_DEFAULT: u16 = 1_500;

/// FDB ageing time when a network does not set one (IEEE 802.1Q-2018 table 8-6).
pub const AGEING_DEFAULT: Duration = Duration::from_secs(300);

/// The whole picture, as of one generation.
#[derive(Clone, Debug, Default)]
pub struct Topology {
    /// Grows with every installed picture.
    pub generation: u64,
    /// By [`PortId`].
    pub ports: Vec<Option<Port>>,
    /// By [`DomainId`].
    pub domains: Vec<Option<Domain>>,
    /// By [`UplinkId`].
    pub uplinks: Vec<Uplink>,
    /// The host's own IP stack, if it is linked.
    pub host_link: Option<HostLink>,
    /// Every address of the host the process runs on, gateway addresses excluded.
    pub local_addresses: HashSet<IpAddr, FxBuildHasher>,
    /// The host's routes, in any order; among equal prefixes the first counts.
    pub routes: Vec<Route>,
    /// Published ports.
    pub statics: StaticRules,
    /// Ranges, timeouts and limits of the NAT.
    pub nat: NatConfig,
    /// What is copied to which ports.
    pub mirrors: Vec<Mirror>,
    /// Rules of the policy stage.
    pub policy: Policy,
    /// Derived by [`Topology::finish`].
    index: Index,
}

/// What [`Topology::finish`] derives, so that no frame pays for it.
#[derive(Clone, Debug, Default)]
struct Index {
    /// Positions in [`Topology::routes`].
    routes: PrefixTable<usize>,
    /// The same of the routes by each uplink alone, where there are several.
    routes_by_uplink: Vec<PrefixTable<usize>>,
    /// Which network has a prefix. Where several share it, one that is linked to the host.
    networks: PrefixTable<DomainId>,
    /// Gateway addresses of the networks that are linked to the host, where they are its own.
    gateways: HashSet<IpAddr, FxBuildHasher>,
    /// Where each of [`Topology::routes`] leaves; `None` for one that leads to no uplink that is up.
    exits: Vec<Option<Exit>>,
    /// The smallest MTU of the networks' gateways.
    mtu_min: u16,
    /// Tells this picture from every other of the process; 0 before `finish`.
    stamp: u32,
}

/// Where a route leaves the host, put together from the route and its uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    pub uplink: UplinkId,
    /// The port that carries it, which is up.
    pub port: PortId,
    /// The uplink's MAC.
    pub src: MacAddr,
    /// MAC of the router, when there is one and it is resolved.
    pub router: Option<MacAddr>,
    /// Destinations are on the link, each with a MAC of its own.
    pub on_link: bool,
    pub mtu: u16,
}

/// A route of one picture, as a session remembers the way that its packets take. Every picture
/// has a stamp of its own, so a mark of another one leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteMark {
    pub(crate) stamp: u32,
    pub(crate) route: u16,
}

impl RouteMark {
    /// Leads nowhere.
    pub const NONE: Self = Self { stamp: 0, route: 0 };
    /// Routes of a picture that can be remembered, the first ones: as many as fit into 15 bits with
    /// one number left.
    pub(crate) const ROUTES_MAX: u16 = (1 << 15) - 1;
}

/// The last stamp given. Only ever compared for equality, so that the order in which pictures are
/// made changes no outcome. It comes round after four thousand million pictures.
static STAMP: AtomicU32 = AtomicU32::new(0);

/// One bridge domain with its gateway: what people call a network.
#[derive(Clone, Debug)]
pub struct Domain {
    /// Its index in [`Topology::domains`].
    pub id: DomainId,
    /// The network's name.
    pub name: Box<str>,
    /// How long an FDB entry lives without being heard from.
    pub ageing: Duration,
    /// Its ports, ascending: those that flooded frames may leave by.
    pub flood: Box<[PortId]>,
    /// How its frames to groups are forwarded.
    pub multicast: Multicast,
    /// Who answers questions for its endpoints.
    pub suppression: Suppression,
    /// Its ports with [`PortFlags::MCAST_ROUTER`], ascending.
    pub mcast_routers: Box<[PortId]>,
    /// Prefixes of the network.
    pub subnets: Vec<Prefix>,
    /// The gateway, if the network has one.
    pub gateway: Option<Gateway>,
    /// The VLAN that the gateway is in; 0 where the domain is transparent to tags.
    pub gateway_vlan: VlanId,
    /// Endpoints by address: the gateway's static neighbours.
    pub neighbours: HashMap<IpAddr, Neighbour, FxBuildHasher>,
    /// How its mappings are made and whom they let in.
    pub nat: Behaviour,
    /// Under which address its packets go outside, by family.
    pub modes: NatModes,
    /// Nothing outside the network is reachable.
    pub internal: bool,
    /// The host may reach the network and be reached from it.
    pub host_link: bool,
    /// Who answers at the gateway's DNS port.
    pub resolver: Resolver,
}

/// Who answers what endpoints send to port 53 of their gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Resolver {
    /// The host, as at the gateway's other ports.
    #[default]
    Host,
    /// The switch's own service, which knows the network's names.
    Service,
}

/// How a network's frames to groups are forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Multicast {
    /// To every port.
    #[default]
    Flooded,
    /// To the ports that listen, where a querier asks for listeners.
    Snooped,
    /// The same, and the switch is a querier.
    Queried,
}

/// Who answers ARP requests and neighbour solicitations for a network's endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Suppression {
    /// The endpoints, to whom they are flooded.
    #[default]
    Off,
    /// The switch, for those in its table.
    On,
}

/// Under which address a network's packets go outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum NatMode {
    /// An address of the host.
    #[default]
    Masquerade,
    /// Their own, which the outside has to route here. Their flows are tracked all the same.
    Routed,
}

impl NatMode {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Masquerade, Self::Routed];

    /// The word for it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Masquerade => "masquerade",
            Self::Routed => "routed",
        }
    }
}

/// The mode of each address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct NatModes {
    /// Of IPv4.
    pub v4: NatMode,
    /// Of IPv6.
    pub v6: NatMode,
}

impl NatModes {
    /// The mode of the family of `address`.
    #[inline]
    pub const fn of(&self, address: IpAddr) -> NatMode {
        match address {
            IpAddr::V4(_) => self.v4,
            IpAddr::V6(_) => self.v6,
        }
    }
}

/// The gateway of a network.
#[derive(Clone, Debug)]
pub struct Gateway {
    /// The MAC that it answers with.
    pub mac: MacAddr,
    /// Its addresses; the IPv6 link-local one derived from `mac` is implied.
    pub addresses: Vec<IpAddr>,
    /// Largest IP packet of the network, in bytes.
    pub mtu: u16,
}

/// An endpoint as the gateway knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its MAC.
    pub mac: MacAddr,
    /// The port behind which it is.
    pub port: PortId,
}

/// An external interface.
#[derive(Clone, Debug)]
pub struct Uplink {
    /// Its index in [`Topology::uplinks`].
    pub id: UplinkId,
    /// The interface's name.
    pub name: Box<str>,
    /// The switch port that carries it.
    pub port: PortId,
    /// Its MAC, which is the host's.
    pub mac: MacAddr,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
    /// Its addresses; traffic is translated to one of the same family.
    pub addresses: Vec<IpAddr>,
    /// Resolved next hops and on-link stations.
    pub neighbours: HashMap<IpAddr, MacAddr, FxBuildHasher>,
    /// Where every packet goes that leaves by it, whatever its next hop: the other end of an
    /// interface without stations, such as a tunnel.
    pub peer: Option<MacAddr>,
}

impl Uplink {
    /// The MAC of a next hop, once it is known.
    #[inline]
    pub fn mac_of(&self, next_hop: IpAddr) -> Option<MacAddr> {
        self.known_mac(&next_hop).copied()
    }

    #[inline]
    fn known_mac(&self, next_hop: &IpAddr) -> Option<&MacAddr> {
        self.peer.as_ref().or_else(|| self.neighbours.get(next_hop))
    }
}

/// The link to the host's IP stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostLink {
    /// The switch port that carries it.
    pub port: PortId,
    /// MAC of the interface on the host's side.
    pub mac: MacAddr,
}

/// One route of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destinations.
    pub prefix: Prefix,
    /// The uplink that it leaves by; `None` when its interface is no uplink.
    pub uplink: Option<UplinkId>,
    /// The router, `None` for destinations on the link.
    pub next_hop: Option<IpAddr>,
    /// The host's preferred source address for it.
    pub source: Option<IpAddr>,
}

impl Topology {
    /// The port, if it is configured.
    #[inline]
    pub fn port(&self, id: PortId) -> Option<&Port> {
        self.ports.get(id.index())?.as_ref()
    }

    /// The port, if it is configured and up.
    #[inline]
    pub fn port_up(&self, id: PortId) -> Option<&Port> {
        self.port(id).filter(|port| port.up)
    }

    /// The domain, if it is configured.
    #[inline]
    pub fn domain(&self, id: DomainId) -> Option<&Domain> {
        self.domains.get(id.index())?.as_ref()
    }

    /// The domain that a port bridges to; the host link and uplinks have none.
    #[inline]
    pub fn bridge_domain(&self, port: &Port) -> Option<&Domain> {
        match port.role {
            Role::Bridge(domain) => self.domain(domain),
            Role::HostLink | Role::Uplink(_) => None,
        }
    }

    /// The uplink of that index.
    pub fn uplink(&self, id: UplinkId) -> Option<&Uplink> {
        self.uplinks.get(id.index())
    }

    /// The domains that are configured.
    pub fn domains(&self) -> impl Iterator<Item = &Domain> {
        self.domains.iter().flatten()
    }

    /// The host's route to `destination`.
    pub fn route(&self, destination: IpAddr) -> Option<&Route> {
        self.marked_route(destination).map(|(route, _)| route)
    }

    /// The host's route to `destination`, and the mark by which it is found again.
    #[inline]
    pub(crate) fn marked_route(&self, destination: IpAddr) -> Option<(&Route, RouteMark)> {
        let position = *self.index.routes.lookup(destination)?;
        let route = u16::try_from(position).ok();
        let route = route.filter(|route| *route < RouteMark::ROUTES_MAX);
        let mark = route.map_or(RouteMark::NONE, |route| RouteMark {
            stamp: self.index.stamp,
            route,
        });
        Some((self.routes.get(position)?, mark))
    }

    /// The host's route to `destination` among those that leave by `uplink`, which may be one that
    /// counts less than another uplink's. Known where there are several uplinks.
    pub(crate) fn route_by(&self, uplink: UplinkId, destination: IpAddr) -> Option<&Route> {
        let routes = self.index.routes_by_uplink.get(uplink.index())?;
        self.routes.get(*routes.lookup(destination)?)
    }

    /// The stamp that the marks of this picture have.
    #[inline]
    pub(crate) fn stamp(&self) -> u32 {
        self.index.stamp
    }

    /// The smallest MTU of the networks: what is no larger fits into each.
    #[inline]
    pub(crate) fn mtu_min(&self) -> usize {
        usize::from(self.index.mtu_min)
    }

    /// Where the route of a mark of this picture leaves towards `destination`, with the MAC of the
    /// next hop. `None` when the way is not open.
    #[inline(always)]
    pub(crate) fn exit(&self, route: u16, destination: &IpAddr) -> Option<(&Exit, &MacAddr)> {
        let exit = self.index.exits.get(usize::from(route))?.as_ref()?;
        if !exit.on_link {
            return Some((exit, exit.router.as_ref()?));
        }
        let uplink = self.uplink(exit.uplink)?;
        Some((exit, uplink.known_mac(destination)?))
    }

    fn exit_of(&self, route: &Route) -> Option<Exit> {
        let uplink = self.uplink(route.uplink?)?;
        let port = self.port_up(uplink.port)?;
        let router = route.next_hop.and_then(|hop| uplink.mac_of(hop));
        Some(Exit {
            uplink: uplink.id,
            port: port.id,
            src: uplink.mac,
            router,
            on_link: route.next_hop.is_none(),
            mtu: uplink.mtu,
        })
    }

    /// The network that has `address`; where several overlap, one that is linked to the host.
    #[inline]
    pub fn network_of(&self, address: IpAddr) -> Option<&Domain> {
        self.domain(*self.index.networks.lookup(address)?)
    }

    /// Whether the host itself has `address`, be it as a gateway on the host link.
    #[inline]
    pub fn is_host_address(&self, address: IpAddr) -> bool {
        self.local_addresses.contains(&address) || self.index.gateways.contains(&address)
    }

    /// Ports that a frame of a class reaches, flooded in a VLAN of `domain` when it entered by
    /// `ingress`, a port of it. Flags are looked at on the walk, not sorted out beforehand: each port's state is
    /// read anyway, so they cost a mask, and one list serves every class and every ingress.
    #[inline]
    pub fn flood_set(
        &self,
        domain: DomainId,
        vlan: VlanId,
        ingress: PortId,
        class: FloodClass,
    ) -> impl Iterator<Item = PortId> {
        let list = self.domain(domain).map(|domain| &domain.flood[..]);
        self.takers(list, vlan, ingress, class)
    }

    /// Those of [`Topology::flood_set`] from port `first` on.
    pub fn flood_set_from(
        &self,
        first: PortId,
        domain: DomainId,
        vlan: VlanId,
        ingress: PortId,
        class: FloodClass,
    ) -> impl Iterator<Item = PortId> {
        let list = self.domain(domain).map(|domain| &domain.flood[..]);
        let list = list.map(|list| &list[list.partition_point(|port| *port < first)..]);
        self.takers(list, vlan, ingress, class)
    }

    #[inline(always)]
    fn takers(
        &self,
        list: Option<&[PortId]>,
        vlan: VlanId,
        ingress: PortId,
        class: FloodClass,
    ) -> impl Iterator<Item = PortId> {
        let walk = self.port(ingress).zip(list);
        let takers = walk.map(|(port, list)| {
            let takers = Takers::new(port, vlan, class);
            let takes = move |id: &PortId| self.port(*id).is_some_and(|port| takers.include(port));
            list.iter().copied().filter(takes)
        });
        takers.into_iter().flatten()
    }

    /// Ports that a question of the switch's own goes to: all of its VLAN that are up, or the one that
    /// is asked.
    pub fn asked(&self, question: Question) -> impl Iterator<Item = PortId> {
        let domain = self.domain(question.domain);
        let ports = domain.into_iter().flat_map(|domain| &domain.flood).copied();
        ports.filter(move |id| {
            let vlan = question.vlan;
            let member = |port: &Port| vlan == TRANSPARENT || port.form(vlan).is_some();
            question.to.is_none_or(|asked| asked == *id) && self.port_up(*id).is_some_and(member)
        })
    }

    /// Puts a port at its index.
    pub fn put_port(&mut self, port: Port) {
        put(&mut self.ports, port.id.index(), port);
    }

    /// Puts a domain at its index.
    pub fn put_domain(&mut self, domain: Domain) {
        put(&mut self.domains, domain.id.index(), domain);
    }

    /// Derives flood lists and lookup tables. The last call when a topology is built.
    pub fn finish(&mut self) {
        let mut index = Index::default();
        if self.uplinks.len() > 1 {
            index
                .routes_by_uplink
                .resize_with(self.uplinks.len(), PrefixTable::default);
        }
        for (position, route) in self.routes.iter().enumerate() {
            index.routes.insert_first(route.prefix, position);
            let uplink = route.uplink.map(|uplink| uplink.index());
            let own = uplink.and_then(|uplink| index.routes_by_uplink.get_mut(uplink));
            if let Some(own) = own {
                own.insert_first(route.prefix, position);
            }
        }
        self.list_ports();
        self.mark_policed();
        // Those linked to the host last, so that they are found where prefixes are shared.
        for linked in [false, true] {
            for domain in self
                .domains
                .iter()
                .flatten()
                .filter(|d| d.host_link == linked)
            {
                for subnet in &domain.subnets {
                    index.networks.insert(*subnet, domain.id);
                }
                let addresses = domain.gateway.iter().flat_map(|gateway| &gateway.addresses);
                index.gateways.extend(addresses.copied().filter(|_| linked));
            }
        }
        index.exits = self.routes.iter().map(|r| self.exit_of(r)).collect();
        let gateways = self.domains().filter_map(|domain| domain.gateway.as_ref());
        index.mtu_min = gateways.map(|gateway| gateway.mtu).min().unwrap_or(0);
        // 0 is for pictures that are not finished.
        let last = STAMP.fetch_add(1, Ordering::Relaxed);
        index.stamp = last.wrapping_add(1).max(1);
        self.index = index;
    }
}

impl Topology {
    /// Lists the ports of each domain.
    fn list_ports(&mut self) {
        let mut lists = vec![(Vec::new(), Vec::new()); self.domains.len()];
        for port in self.ports.iter().flatten() {
            let Role::Bridge(domain) = port.role else {
                continue;
            };
            let Some((members, routers)) = lists.get_mut(domain.index()) else {
                continue;
            };
            members.push(port.id);
            if port.flags.has(PortFlags::MCAST_ROUTER) {
                routers.push(port.id);
            }
        }
        for (domain, (members, routers)) in self.domains.iter_mut().zip(lists) {
            if let Some(domain) = domain {
                domain.flood = members.into();
                domain.mcast_routers = routers.into();
            }
        }
    }

    /// Marks the ports of networks in which rules have a say, or a default other than to pass.
    fn mark_policed(&mut self) {
        let mut policed = vec![false; self.domains.len()];
        for domain in self.domains.iter().flatten() {
            policed[domain.id.index()] = self.policy.sees_bridged(domain.id);
        }
        let icc_off = |port: &&Port| port.flags.has(PortFlags::ICC_OFF);
        for port in self.ports.iter().flatten().filter(icc_off) {
            if let Role::Bridge(domain) = port.role
                && let Some(policed) = policed.get_mut(domain.index())
            {
                *policed = true;
            }
        }
        for port in self.ports.iter_mut().flatten() {
            let policed = match port.role {
                Role::Bridge(domain) => policed.get(domain.index()) == Some(&true),
                Role::HostLink | Role::Uplink(_) => false,
            };
            port.flags = match policed {
                true => port.flags.with(PortFlags::POLICED),
                false => port.flags.without(PortFlags::POLICED),
            };
        }
    }
}

impl Domain {
    /// A domain without ports, gateway or subnets.
    pub fn new(id: DomainId, name: &str) -> Self {
        Self {
            id,
            name: name.into(),
            ageing: AGEING_DEFAULT,
            flood: Box::new([]),
            multicast: Multicast::default(),
            suppression: Suppression::default(),
            mcast_routers: Box::new([]),
            subnets: Vec::new(),
            gateway: None,
            gateway_vlan: TRANSPARENT,
            neighbours: HashMap::default(),
            nat: Behaviour::default(),
            modes: NatModes::default(),
            internal: false,
            host_link: true,
            resolver: Resolver::default(),
        }
    }

    /// Whether VLANs count in it.
    pub fn filters(&self) -> bool {
        self.gateway_vlan != TRANSPARENT
    }

    /// Whether `mac` is the gateway's.
    #[inline]
    pub fn gateway_has(&self, mac: MacAddr) -> bool {
        self.gateway
            .as_ref()
            .is_some_and(|gateway| gateway.mac == mac)
    }

    /// Whether the outside reaches `address`, which belongs to the network, by itself.
    pub fn is_routed(&self, address: IpAddr) -> bool {
        !self.internal && self.modes.of(address) == NatMode::Routed
    }

    /// Whether some ports may be spared a frame that is flooded.
    #[inline]
    pub fn spares(&self, dst: MacAddr) -> bool {
        let any = self.multicast != Multicast::Flooded || self.suppression == Suppression::On;
        any && dst.is_group()
    }

    /// Whether `address` belongs to one of the network's prefixes.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.subnets.iter().any(|subnet| subnet.contains(address))
    }
}

impl Gateway {
    /// Whether `address` is one of the gateway's own.
    #[inline]
    pub fn owns(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address) || address == IpAddr::V6(self.mac.link_local_v6())
    }
}

fn put<T>(table: &mut Vec<Option<T>>, index: usize, value: T) {
    if table.len() <= index {
        table.resize_with(index + 1, || None);
    }
    table[index] = Some(value);
}
