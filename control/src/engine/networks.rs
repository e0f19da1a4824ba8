//! Networks: created, listed, removed.

use std::net::IpAddr;

use dataplane_core::addr::DomainId;
use dataplane_core::fdb::Flush;
use dataplane_core::nat::Account;
use dataplane_core::topology::{AGEING_DEFAULT, DOMAINS_MAX, NatModes};
use ipnet::IpNet;

use super::uplinks::own_address_in;
use super::{Engine, State};
use crate::error::Error;
use crate::events::{EventKind, Subject};
use crate::flood_settings::{FloodChange, FloodSettings};
use crate::ipam;
use crate::model::dns::NetworkDns;
use crate::model::{
    ForeignId, LoopDetect, MTU_DEFAULT, MTU_MAX, MTU_MIN, NatRequest, Network, NetworkNat,
    StpFrames, Subnet,
};
use crate::vlans::{NetworkVlans, NetworkVlansChange};

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
    /// What is spared the ports that have no use for it.
    pub flood: FloodChange,
    /// How its packets are translated.
    pub nat: NatRequest,
    /// Who answers for names.
    pub dns: NetworkDns,
    /// Who else knows it.
    pub foreign: Option<ForeignId>,
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
        let mut state = self.state().await;
        let network = self.network_of_request(&state, request)?;
        check_routed(&state, &network)?;
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
        let text = format!("network '{}' was created", network.name);
        self.tell_network(EventKind::NetworkCreated, network.name.as_str(), text);
        Ok(network)
    }

    fn network_of_request(&self, state: &State, request: NetworkRequest) -> Result<Network, Error> {
        let name = request.name.parse()?;
        if state.desired.network(&request.name).is_some() {
            return Err(Error::Exists {
                kind: "network",
                name: request.name,
            });
        }
        let mtu = request.mtu.unwrap_or(MTU_DEFAULT);
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
        Ok(Network {
            domain,
            name,
            subnets: self.subnets_of_request(state, &request)?,
            internal: request.internal,
            host_link: !request.no_host_link,
            mtu,
            ageing_seconds,
            stp_frames: request.stp_frames.unwrap_or_default(),
            loop_detect: request.loop_detect.unwrap_or_default(),
            vlans: request.vlans.over(NetworkVlans::default()),
            flood: request.flood.over(FloodSettings::default()),
            nat: request.nat.over(NetworkNat::default()),
            dns: request.dns,
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
            subnets.push(ipam::default_subnet(&state.desired, &routes)?);
        }
        for subnet in &subnets {
            ipam::check_overlap(subnet.prefix, &state.desired, &routes)?;
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
            .map(|endpoint| endpoint.name.as_str())
            .collect();
        if !users.is_empty() {
            let users = users.join(", ");
            return Err(Error::InUse(format!(
                "network '{name}' has endpoints: {users}; detach them first"
            )));
        }
        self.store.remove_network(domain)?;
        state.desired.networks.remove(&domain);
        self.drop_mirrors_of_network(&mut state, domain);
        let converged = self.converge_or_fail(&mut state).await;
        // The id may be given to another network; nothing learned must be left under it.
        let fdb = self.dataplane.fdb();
        fdb.flush_domain(domain, None, Flush::All);
        let account = Account::Network(domain);
        self.nat().forget_accounts(|other| other == account);
        converged.and_then(|()| self.refresh_uplinks(&state))?;
        let text = format!("network '{name}' was removed");
        self.tell_network(EventKind::NetworkRemoved, name, text);
        Ok(())
    }
}

/// A routed network takes its prefixes from the host's stack, which must not lose its own address.
fn check_routed(state: &State, network: &Network) -> Result<(), Error> {
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

fn check_ageing(seconds: u32) -> Result<(), Error> {
    if (AGEING_SECONDS_MIN..=AGEING_SECONDS_MAX).contains(&seconds) {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "the ageing time is from {AGEING_SECONDS_MIN} to {AGEING_SECONDS_MAX} seconds, not \
         {seconds}"
    )))
}
