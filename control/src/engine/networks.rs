//! Networks: created, listed, removed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane_core::addr::DomainId;
use dataplane_core::fdb::Flush;
use dataplane_core::nat::Account;
use dataplane_core::topology::{AGEING_DEFAULT, DOMAINS_MAX, NatModes};
use ipnet::IpNet;

use super::nics::{HostAddress, NicRequest};
use super::uplinks::own_address_in;
use super::{Engine, State};
use crate::config::DEFAULT_NETWORK;
use crate::error::Error;
use crate::events::{EventKind, Subject};
use crate::flood_settings::{FloodChange, FloodSettings};
use crate::ipam;
use crate::model::dns::NetworkDns;
use crate::model::{
    ForeignId, Icc, LoopDetect, MTU_DEFAULT, MTU_MAX, MTU_MIN, Name, NatRequest, Network,
    NetworkNat, NicOrigin, Router, StpFrames, Subnet,
};
use crate::vlans::{NetworkVlans, NetworkVlansChange};

/// What `causeway run --network` takes for something else than a network's name.
const RUN_MODES: [&str; 2] = ["host", "none"];

/// Longest ageing time: what IEEE 802.1Q-2018 table 8-6 allows.
const AGEING_SECONDS_MAX: u32 = 1_000_000;
/// Shortest ageing time, of the same table.
const AGEING_SECONDS_MIN: u32 = 10;

/// A network that somebody wants.
#[derive(Clone, Debug, Default)]
pub struct NetworkRequest {
    /// Its name.
    pub name: String,
    /// IPv4 subnet; a default one when neither family is given.
    pub subnet: Option<IpNet>,
    /// IPv4 gateway.
    pub gateway: Option<IpAddr>,
    /// IPv6 subnet.
    pub subnet6: Option<IpNet>,
    /// IPv6 gateway.
    pub gateway6: Option<IpAddr>,
    /// Where IPv4 endpoints get their addresses from.
    pub ip_range: Option<IpNet>,
    /// Nothing outside is reachable.
    pub internal: bool,
    /// The host stays out.
    pub no_host_link: bool,
    /// Largest IP packet, in bytes.
    pub mtu: Option<u16>,
    /// How long an FDB entry lives.
    pub ageing_seconds: Option<u32>,
    /// What becomes of BPDUs.
    pub stp_frames: Option<StpFrames>,
    /// What is done about loops.
    pub loop_detect: Option<LoopDetect>,
    /// Whether VLANs count.
    pub vlans: NetworkVlansChange,
    /// Whether endpoints reach each other without a rule.
    pub icc: Option<Icc>,
    /// What is spared the ports that have no use for it.
    pub flood: FloodChange,
    /// How its packets are translated.
    pub nat: NatRequest,
    /// Who answers for names.
    pub dns: NetworkDns,
    /// Its way out is the LAN's.
    pub lan_gateway: Option<LanGateway>,
    /// A network card that is to be a port of it.
    pub nic: Option<NicRequest>,
    /// Who else knows it.
    pub foreign: Option<ForeignId>,
}

/// The router of a network whose way out is the LAN's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LanGateway {
    /// Endpoints get no default route from us.
    Unknown,
    /// At these addresses, one of a family.
    At(Vec<IpAddr>),
}

impl LanGateway {
    fn of(&self, subnet: IpNet) -> Option<IpAddr> {
        match self {
            Self::Unknown => None,
            Self::At(addresses) => {
                let same = |address: &&IpAddr| address.is_ipv4() == subnet.addr().is_ipv4();
                addresses.iter().find(same).copied()
            }
        }
    }
}

/// What may be changed of a network while it is in use.
#[derive(Clone, Debug, Default)]
pub struct NetworkChange {
    /// How long an FDB entry lives.
    pub ageing_seconds: Option<u32>,
    /// What becomes of BPDUs.
    pub stp_frames: Option<StpFrames>,
    /// What is done about loops.
    pub loop_detect: Option<LoopDetect>,
    /// Whether VLANs count.
    pub vlans: NetworkVlansChange,
    /// Whether endpoints reach each other without a rule.
    pub icc: Option<Icc>,
    /// What is spared the ports that have no use for it.
    pub flood: FloodChange,
    /// How its packets are translated.
    pub nat: NatRequest,
    /// Who answers for names.
    pub dns: Option<NetworkDns>,
}

impl Engine {
    /// Creates a network.
    ///
    /// # Errors
    /// Names what is malformed or taken; nothing is left behind.
    pub async fn create_network(&self, request: NetworkRequest) -> Result<Network, Error> {
        self.create_network_and_tell(request, "").await
    }

    /// The same, with more to be told of it.
    pub(super) async fn create_network_and_tell(
        &self,
        mut request: NetworkRequest,
        more: &str,
    ) -> Result<Network, Error> {
        let mut state = self.state().await;
        self.complete_by_nic(&mut state, &mut request).await?;
        let nic = request.nic.take();
        let network = self.network_of_request(&state, request)?;
        check_routed(&state, &network)?;
        check_rules(&state, &network)?;
        self.store.put_network(&network)?;
        let domain = network.domain;
        state.desired.networks.insert(domain, network.clone());
        let made = self.converge_or_fail(&mut state).await;
        if let Err(error) = made.and_then(|()| self.refresh_uplinks(&state)) {
            state.desired.networks.remove(&domain);
            self.store.remove_network(domain)?;
            for (action, error) in self.converge(&mut state).await? {
                tracing::error!(?action, %error, "cannot undo");
            }
            self.refresh_uplinks(&state)?;
            return Err(error);
        }
        if let Some(nic) = nic {
            let put = self.put_nic(&mut state, domain, nic, NicOrigin::Creation);
            if let Err(error) = put.await {
                self.drop_network(&mut state, domain).await?;
                return Err(error);
            }
        }
        let text = format!("network '{}' was created{more}", network.name);
        self.tell_network(EventKind::NetworkCreated, network.name.as_str(), text);
        Ok(network)
    }

    /// Fills in what the host knows of the LAN behind a NIC: where its address moves along, the subnet
    /// and the router are the host's own; the MTU is the card's.
    async fn complete_by_nic(
        &self,
        state: &mut State,
        request: &mut NetworkRequest,
    ) -> Result<(), Error> {
        let Some(nic) = &request.nic else {
            return Ok(());
        };
        self.look_at_host(state).await?;
        let link = self.check_nic(state, &nic.name)?;
        let mtu = u16::try_from(link.mtu).unwrap_or(u16::MAX);
        request.mtu = request.mtu.or(Some(mtu.clamp(MTU_MIN, MTU_MAX)));
        if nic.address == HostAddress::Absent {
            return Ok(());
        }
        let ip = self.netlink.saved_ip(link.index).await?;
        if request.subnet.is_none() && request.subnet6.is_none() {
            let mut own = ip.global_addresses().filter(|own| own.address.is_ipv4());
            let own = own.find_map(|own| IpNet::new(own.address, own.len).ok());
            request.subnet = own
                .map(|own| own.trunc())
                .filter(|own| own.prefix_len() < 31);
        }
        if request.lan_gateway.is_none() {
            let prefixes = [request.subnet, request.subnet6];
            let inside = |router: &IpAddr| {
                let mut prefixes = prefixes.iter().flatten();
                prefixes.any(|prefix| prefix.contains(router))
            };
            let routers =
                [IpAddr::is_ipv4, IpAddr::is_ipv6].map(|family| ip.default_router(family));
            let routers: Vec<IpAddr> = routers.into_iter().flatten().filter(inside).collect();
            request.lan_gateway = Some(match routers.is_empty() {
                true => LanGateway::Unknown,
                false => LanGateway::At(routers),
            });
        }
        Ok(())
    }

    fn network_of_request(&self, state: &State, request: NetworkRequest) -> Result<Network, Error> {
        let name = request.name.parse()?;
        if RUN_MODES.contains(&request.name.as_str()) {
            return Err(Error::Invalid(format!(
                "'{}' is a mode of `causeway run` and no network; choose another name",
                request.name
            )));
        }
        if state.desired.network(&request.name).is_some() {
            return Err(Error::Exists {
                kind: "network",
                name: request.name,
            });
        }
        let reaches_outside = !request.internal && request.lan_gateway.is_none();
        let suggested = reaches_outside.then(|| mtu_of_uplinks(state)).flatten();
        let mtu = request.mtu.or(suggested).unwrap_or(MTU_DEFAULT);
        if !(MTU_MIN..=MTU_MAX).contains(&mtu) {
            let problem = format!("an MTU is from {MTU_MIN} to {MTU_MAX} bytes, not {mtu}");
            return Err(Error::Invalid(problem));
        }
        let default = u32::try_from(AGEING_DEFAULT.as_secs()).unwrap_or(AGEING_SECONDS_MAX);
        let ageing_seconds = request.ageing_seconds.unwrap_or(default);
        check_ageing(ageing_seconds)?;
        let domain = (1..DOMAINS_MAX)
            .filter_map(|index| u16::try_from(index).ok())
            .map(DomainId)
            .find(|id| !state.desired.networks.contains_key(id))
            .ok_or(Error::Limit {
                what: "networks",
                max: DOMAINS_MAX - 1,
            })?;
        let router = match request.lan_gateway {
            Some(_) => Router::Lan,
            None => Router::Switch,
        };
        Ok(Network {
            domain,
            name,
            subnets: self.subnets_of_request(state, &request)?,
            internal: request.internal,
            host_link: !request.no_host_link && router == Router::Switch,
            mtu,
            ageing_seconds,
            stp_frames: request.stp_frames.unwrap_or_default(),
            loop_detect: request.loop_detect.unwrap_or_default(),
            vlans: request.vlans.over(NetworkVlans::default()),
            icc: request.icc.unwrap_or_default(),
            flood: request.flood.over(FloodSettings::default()),
            nat: request.nat.over(NetworkNat::default()),
            dns: request.dns,
            router,
            foreign: request.foreign,
        })
    }

    fn subnets_of_request(
        &self,
        state: &State,
        request: &NetworkRequest,
    ) -> Result<Vec<Subnet>, Error> {
        let wrong = |option: &str, family: &str, value: IpNet| {
            Error::Invalid(format!("{option} takes an {family} subnet, not {value}"))
        };
        match (request.subnet, request.subnet6) {
            (Some(net @ IpNet::V6(_)), _) => return Err(wrong("--subnet", "IPv4", net)),
            (_, Some(net @ IpNet::V4(_))) => return Err(wrong("--subnet6", "IPv6", net)),
            (None, None) if request.gateway.is_some() || request.ip_range.is_some() => {
                let problem = "--gateway and --ip-range need --subnet; give the subnet as well";
                return Err(Error::Invalid(problem.to_owned()));
            }
            (_, None) if request.gateway6.is_some() => {
                let problem = "--gateway6 needs --subnet6; give the subnet as well";
                return Err(Error::Invalid(problem.to_owned()));
            }
            (_, _) => {}
        }
        if let Some(router) = &request.lan_gateway {
            return subnets_of_lan(request, router);
        }
        let except = state.host_link.map(|link| link.link);
        let routes = if request.no_host_link {
            Vec::new()
        } else {
            state.host.foreign_routes(except)
        };
        let mut subnets = Vec::new();
        if let Some(prefix) = request.subnet {
            subnets.push(ipam::subnet(prefix, request.gateway, request.ip_range)?);
        }
        if let Some(prefix) = request.subnet6 {
            subnets.push(ipam::subnet(prefix, request.gateway6, None)?);
        }
        if subnets.is_empty() {
            let pools = &self.config.pools;
            subnets.push(ipam::default_subnet(pools, &state.desired, &routes)?);
        }
        for subnet in subnets.iter().filter(|_| !request.no_host_link) {
            ipam::check_host_link(subnet.prefix, &state.desired, &routes)?;
        }
        Ok(subnets)
    }

    /// Changes a network in use. Sessions go on as they were made, but for those of a family whose
    /// mode has changed, which end; new ones are made by the new settings.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::Invalid`]; nothing is changed.
    pub async fn change_network(&self, name: &str, change: NetworkChange) -> Result<(), Error> {
        let mut state = self.state().await;
        let before = state
            .desired
            .network(name)
            .ok_or_else(|| Error::unknown_network(name))?
            .clone();
        let after = Network {
            ageing_seconds: change.ageing_seconds.unwrap_or(before.ageing_seconds),
            stp_frames: change.stp_frames.unwrap_or(before.stp_frames),
            loop_detect: change.loop_detect.unwrap_or(before.loop_detect),
            vlans: change.vlans.over(before.vlans),
            icc: change.icc.unwrap_or(before.icc),
            flood: change.flood.over(before.flood),
            nat: change.nat.over(before.nat),
            dns: change.dns.unwrap_or_else(|| before.dns.clone()),
            ..before.clone()
        };
        check_ageing(after.ageing_seconds)?;
        check_routed(&state, &after)?;
        let (domain, modes) = (after.domain, [before.nat_modes(), after.nat_modes()]);
        let refiltered = before.vlans.filtering != after.vlans.filtering;
        if let Err(error) = self.put_changed(&mut state, after) {
            self.put_changed(&mut state, before)?;
            return Err(error);
        }
        self.restore_listeners_of(&state, domain);
        self.end_untranslatable(domain, modes);
        if refiltered {
            // Stations are in other VLANs now than those that they were learned in.
            let fdb = self.dataplane.fdb();
            fdb.flush_domain(domain, None, Flush::Learned);
        }
        self.follow_name_services(&mut state).await;
        let text = format!("network '{name}' was changed");
        self.tell_network(EventKind::NetworkChanged, name, text);
        Ok(())
    }

    fn tell_network(&self, kind: EventKind, name: &str, text: String) {
        self.events.tell(kind, Subject::network(name), text);
    }

    fn put_changed(&self, state: &mut State, network: Network) -> Result<(), Error> {
        self.store.put_network(&network)?;
        state.desired.networks.insert(network.domain, network);
        self.refresh_uplinks(state)?;
        self.install(state)
    }

    /// Ends the flows whose address outside is no longer the one that the network's packets get:
    /// their remotes would not know them.
    fn end_untranslatable(&self, domain: DomainId, [before, after]: [NatModes; 2]) {
        let changed = |address: IpAddr| before.of(address) != after.of(address);
        self.nat().remove_sessions(|session| {
            let itself = session.external == session.inside;
            session.domain == domain
                && changed(session.inside.ip)
                && (session.rule.is_none() || itself)
        });
        self.keep_sessions();
    }

    /// Removes a network without endpoints.
    ///
    /// # Errors
    /// [`Error::Unknown`]; [`Error::InUse`] with the endpoints' names.
    pub async fn remove_network(&self, name: &str) -> Result<(), Error> {
        let mut state = self.state().await;
        let network = state
            .desired
            .network(name)
            .ok_or_else(|| Error::unknown_network(name))?;
        let domain = network.domain;
        let users: Vec<&str> = state
            .desired
            .endpoints_of(domain)
            .filter(|endpoint| !endpoint.comes_with_nic())
            .map(|endpoint| endpoint.name.as_str())
            .collect();
        if !users.is_empty() {
            let users = users.join(", ");
            return Err(Error::InUse(format!(
                "network '{name}' has endpoints: {users}; detach them first"
            )));
        }
        let given_back = self.take_nic_off(&mut state, domain).await;
        self.drop_network(&mut state, domain).await?;
        let text = format!("network '{name}' was removed");
        self.tell_network(EventKind::NetworkRemoved, name, text);
        given_back
    }

    /// Removes the networks that have no endpoints, but for the default one. Which they were.
    ///
    /// # Errors
    /// What the kernel or the store refused; those before it are gone then.
    pub async fn prune_networks(&self) -> Result<Vec<Name>, Error> {
        let mut state = self.state().await;
        let networks = state.desired.networks.values();
        let unused = networks.filter(|network| {
            let used = state.desired.endpoints_of(network.domain).next().is_some();
            !used && network.name.as_str() != DEFAULT_NETWORK
        });
        let unused: Vec<(DomainId, Name)> = unused
            .map(|network| (network.domain, network.name.clone()))
            .collect();
        let mut pruned = Vec::with_capacity(unused.len());
        for (domain, name) in unused {
            self.drop_network(&mut state, domain).await?;
            let text = format!("network '{name}' was removed");
            self.tell_network(EventKind::NetworkRemoved, name.as_str(), text);
            pruned.push(name);
        }
        Ok(pruned)
    }

    /// Drops a network that has no endpoints any more.
    pub(super) async fn drop_network(
        &self,
        state: &mut State,
        domain: DomainId,
    ) -> Result<(), Error> {
        self.store.remove_network(domain)?;
        state.desired.networks.remove(&domain);
        let reservations = &mut state.desired.reservations;
        reservations.retain(|(of, _), _| *of != domain);
        self.drop_mirrors_of_network(state, domain);
        let converged = self.converge_or_fail(state).await;
        // The id may be given to another network; nothing learned must be left under it.
        let fdb = self.dataplane.fdb();
        fdb.flush_domain(domain, None, Flush::All);
        let account = Account::Network(domain);
        self.nat().forget_accounts(|other| other == account);
        converged.and_then(|()| self.refresh_uplinks(state))
    }
}

/// The largest packet that every uplink takes whole, so that no packet of an endpoint is too large for
/// the way that it happens to take.
fn mtu_of_uplinks(state: &State) -> Option<u16> {
    let links = state.uplinks.iter();
    let links = links.filter_map(|uplink| state.host.link_by_index(uplink.link));
    let smallest = links.map(|link| link.mtu).min()?;
    let mtu = u16::try_from(smallest).unwrap_or(MTU_MAX);
    Some(mtu.clamp(MTU_MIN, MTU_MAX))
}

/// The subnets of a network whose way out is the LAN's: what others have decided, so that nothing of
/// the host's can be in its way.
fn subnets_of_lan(request: &NetworkRequest, router: &LanGateway) -> Result<Vec<Subnet>, Error> {
    if request.gateway.is_some() || request.gateway6.is_some() {
        let problem = "--gateway is an address of the switch's own, and --lan-gateway says that it has \
                       none in this network; give one of the two";
        return Err(Error::Invalid(problem.to_owned()));
    }
    let mut subnets = Vec::new();
    for (prefix, range) in [(request.subnet, request.ip_range), (request.subnet6, None)] {
        let Some(prefix) = prefix else {
            continue;
        };
        let gateway = router.of(prefix);
        let mut subnet = ipam::subnet(prefix, gateway, range)?;
        subnet.gateway = gateway.unwrap_or(match prefix {
            IpNet::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpNet::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        });
        subnets.push(subnet);
    }
    if let LanGateway::At(addresses) = router {
        let inside = |address: &IpAddr| {
            let mut own = subnets.iter();
            own.any(|subnet| subnet.prefix.contains(address))
        };
        if let Some(outside) = addresses.iter().find(|address| !inside(address)) {
            return Err(Error::Invalid(format!(
                "--lan-gateway {outside} is in no subnet of the network; give the LAN's by --subnet"
            )));
        }
    }
    Ok(subnets)
}

/// A routed network takes its prefixes from the host's stack, which must not lose its own address; and
/// from outside an address leads to one network only.
fn check_routed(state: &State, network: &Network) -> Result<(), Error> {
    for other in state.desired.networks.values() {
        if other.domain != network.domain {
            check_routed_beside(network, other)?;
            check_routed_beside(other, network)?;
        }
    }
    for prefix in network.routed_prefixes() {
        if let Some(address) = own_address_in(state, &prefix) {
            return Err(Error::Invalid(format!(
                "subnet {prefix} has the host's own address {address}, so it cannot be routed; use \
                 'masquerade', or another subnet"
            )));
        }
    }
    Ok(())
}

fn check_routed_beside(routed: &Network, other: &Network) -> Result<(), Error> {
    for prefix in routed.routed_prefixes() {
        let shares = |subnet: &&Subnet| {
            let other = subnet.dataplane_prefix();
            prefix.contains(other.address) || other.contains(prefix.address)
        };
        if let Some(shared) = other.subnets.iter().find(shares) {
            return Err(Error::Invalid(format!(
                "network '{}' is routed and its subnet {prefix} overlaps {} of network '{}'; use \
                 'masquerade', or another subnet",
                routed.name, shared.prefix, other.name
            )));
        }
    }
    Ok(())
}

/// Networks between which a rule leads must not be mistaken for a new one.
fn check_rules(state: &State, network: &Network) -> Result<(), Error> {
    if state.desired.rules.is_empty() {
        return Ok(());
    }
    let mut desired = state.desired.clone();
    desired.networks.insert(network.domain, network.clone());
    crate::rules::check_all(&desired).map_err(Error::InUse)
}

fn check_ageing(seconds: u32) -> Result<(), Error> {
    if (AGEING_SECONDS_MIN..=AGEING_SECONDS_MAX).contains(&seconds) {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "the ageing time is from {AGEING_SECONDS_MIN} to {AGEING_SECONDS_MAX} seconds, not \
         {seconds}"
    )))
}
