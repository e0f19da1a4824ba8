//! Endpoints: attached, adopted, detached.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use dataplane_core::addr::{MacAddr, PortId};
use dataplane_core::l2::Families;
use dataplane_core::topology::PORTS_MAX;

use super::choosing;
use super::detaching::check_detachable;
use super::reservations::reserves;
use super::{Engine, State};
use crate::error::Error;
use crate::events::EventKind;
use crate::ipam;
use crate::link::check_ifname;
use crate::model::dns::EndpointDns;
use crate::model::{
    Backend, BackendAsked, BackendError, Claimant, DesiredState, ENDPOINT_PORT_FIRST, Endpoint,
    ForeignId, Name, Network, Phase, Router, Sandbox, StaticRoute, check_routes,
};
use crate::netns::{NAMED_DIR, Netns};
use crate::port_settings::PortSettings;
use dataplane_core::l2::PortVlans;

/// Which sandbox somebody means.
#[derive(Clone, Debug)]
pub enum SandboxRef {
    /// A name that `ip netns` knows, or a path.
    Netns(String),
    /// That of a process.
    Pid(u32),
}

/// An endpoint that somebody wants.
#[derive(Clone, Debug)]
pub struct AttachRequest {
    /// The sandbox.
    pub sandbox: SandboxRef,
    /// The network's name.
    pub network: String,
    /// The endpoint's name; made from the sandbox when left out.
    pub name: Option<String>,
    /// The interface's name inside.
    pub ifname: String,
    /// Addresses, one of a family at most; free ones where left out.
    pub addresses: Vec<IpAddr>,
    /// Families that it is given no address of.
    pub without: Families,
    /// The MAC; made from the address when left out.
    pub mac: Option<MacAddr>,
    /// How it is connected.
    pub backend: BackendAsked,
    /// Its names besides its own.
    pub dns: EndpointDns,
    /// Of several endpoints of a sandbox the highest has the default route.
    pub gw_priority: i32,
    /// What its sandbox is to reach by other routers than the gateway.
    pub routes: Vec<StaticRoute>,
    /// Who else knows it.
    pub foreign: Option<ForeignId>,
    /// What becomes of an endpoint that has the name.
    pub namesake: Namesake,
}

/// What becomes of an endpoint that already has the name of one that is to be attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Namesake {
    /// It stays, and the request is refused.
    #[default]
    Stays,
    /// It gives way, and leaves to the new one what is published for it.
    GivesWay,
}

impl Engine {
    /// Gives a sandbox an interface on a network.
    ///
    /// # Errors
    /// Names what is unknown, malformed, taken or refused; nothing is left behind.
    pub async fn attach(&self, request: AttachRequest) -> Result<Endpoint, Error> {
        let mut state = self.state().await;
        let namesake = request.name.as_deref();
        let namesake = namesake
            .and_then(|name| state.desired.endpoint(name))
            .cloned();
        let (endpoint, network) = match namesake {
            Some(old) if request.namesake == Namesake::GivesWay => {
                check_detachable(&state, &old)?;
                self.give_way(&mut state, old, request).await?
            }
            Some(_) | None => self.endpoint_of_request(&state, request)?,
        };
        self.put_in(&mut state, endpoint, &network).await
    }

    /// Makes the device of an endpoint and puts it in force.
    pub(super) async fn put_in(
        &self,
        state: &mut State,
        mut endpoint: Endpoint,
        network: &Network,
    ) -> Result<Endpoint, Error> {
        let queues = match self.make_device(&mut endpoint, network).await {
            Ok(queues) => queues,
            Err(error) => {
                self.drop_endpoint(state, endpoint.port)?;
                return Err(error);
            }
        };
        let port = endpoint.port;
        state.note_capabilities(port, &queues);
        // Whoever had the address before, with our knowledge or not, leaves it no flow.
        self.end_sessions([&endpoint]);
        endpoint.phase = Phase::Attached;
        state.desired.endpoints.insert(endpoint.clone());
        let opened = self
            .blocking(|dataplane| dataplane.add_port(port, queues))
            .map_err(Error::from)
            .and_then(|()| {
                state.open.insert(port);
                self.restore_fdb_entries(state, port);
                self.restore_listeners(state, port);
                self.install(state)
            })
            .and_then(|()| Ok(self.store.put_endpoint(&endpoint)?));
        if let Err(error) = opened {
            self.remove_endpoint(state, port).await?;
            return Err(error);
        }
        // The port is down at any rate; that the sandbox cannot see it must not undo the rest.
        if let Err(error) = self.unplug_if_down(state, &endpoint).await {
            tracing::warn!(endpoint = %endpoint.name, %error, "cannot unplug");
        }
        self.settle_ways_out_beside(state, &endpoint).await;
        let published: Vec<u32> = state.desired.publications_of(port).map(|p| p.id).collect();
        for id in published {
            self.lead_listeners(state, id);
        }
        // Neighbours may still know the address by the MAC of an earlier endpoint.
        for address in &endpoint.addresses {
            let told = self.blocking(|dataplane| dataplane.announce(port, endpoint.mac, *address));
            if let Err(error) = told {
                tracing::warn!(endpoint = %endpoint.name, %address, %error, "cannot announce");
            }
        }
        let path = endpoint.sandbox.path.as_os_str();
        self.write_resolv_confs_of(state, state.desired.endpoints.at_path(path));
        let text = format!(
            "endpoint '{}' was attached to network '{}' as {} of {port}",
            endpoint.name, network.name, endpoint.ifname
        );
        self.tell_port(state, EventKind::EndpointAttached, &endpoint, text);
        Ok(endpoint)
    }

    /// Takes the device of an endpoint away and makes room for its successor, which keeps its switch
    /// port and with it all that is published for it. A daemon that is killed before the successor
    /// is there leaves neither.
    async fn give_way(
        &self,
        state: &mut State,
        mut old: Endpoint,
        request: AttachRequest,
    ) -> Result<(Endpoint, Network), Error> {
        let port = old.port;
        state.desired.endpoints.remove(&port);
        let made = self.endpoint_of_request(state, request);
        state.desired.endpoints.insert(old.clone());
        let (mut endpoint, network) = made?;
        endpoint.port = port;
        endpoint.settings = old.settings;
        endpoint.vlans = old.vlans.clone();
        let published = state.desired.publications_of(port).next().is_some();
        if network.internal && published {
            return Err(Error::Invalid(format!(
                "network '{}' is internal, and ports are published for endpoint '{}'; withdraw them \
                 first",
                network.name, old.name
            )));
        }
        if endpoint.domain != old.domain {
            self.forget_settings(state, |_, setting| setting.port == port)?;
            self.forget_listeners(state, port)?;
        }
        old.phase = Phase::Detaching;
        self.store.set_phase(&[port], old.phase)?;
        state.desired.endpoints.insert(old.clone());
        self.install(state)?;
        if state.open.remove(&port) {
            self.blocking(|dataplane| dataplane.remove_port(port))?;
        }
        // Another endpoint may have the number next.
        self.blocked.release(port);
        self.devices.remove(&old).await?;
        self.end_sessions([&old]);
        state.desired.endpoints.insert(endpoint.clone());
        self.drop_resolv_conf(state, &old);
        Ok((endpoint, network))
    }

    /// Drops an endpoint that has no device, from the state and the store.
    fn drop_endpoint(&self, state: &mut State, port: PortId) -> Result<(), Error> {
        let Some(endpoint) = state.desired.endpoints.get(&port).cloned() else {
            return Ok(self.store.remove_endpoint(port)?);
        };
        let gone = self.withdraw_from(state, port);
        self.forget_endpoints(state, &[&endpoint])?;
        self.forget_withdrawn(state, port, gone)?;
        self.tell_detached(state, &endpoint);
        Ok(())
    }

    /// Tells that an endpoint is no more, unless it has never come to be one.
    pub(super) fn tell_detached(&self, state: &State, endpoint: &Endpoint) {
        if endpoint.phase != Phase::Attaching {
            let text = format!("endpoint '{}' was detached", endpoint.name);
            self.tell_port(state, EventKind::EndpointDetached, endpoint, text);
        }
    }

    /// Takes an endpoint out of the publications that lead to it, and ends those that lead to no
    /// other. What has to be forgotten of them once that is in force.
    pub(super) fn withdraw_from(&self, state: &mut State, port: PortId) -> Withdrawn {
        let mut gone = Withdrawn::default();
        for publication in state.desired.publications.values_mut() {
            if publication.target(port).is_none() {
                continue;
            }
            publication.targets.retain(|target| target.endpoint != port);
            if publication.targets.is_empty() {
                gone.reserving |= reserves(publication);
                gone.publications.push(publication.id);
            } else {
                gone.targets.push(publication.id);
            }
        }
        for id in &gone.publications {
            state.listeners.remove(id);
            state.desired.publications.remove(id);
        }
        for id in &gone.targets {
            self.lead_listeners(state, *id);
        }
        gone
    }

    /// Ends what came by publications that lead to an endpoint no more.
    pub(super) fn forget_withdrawn(
        &self,
        state: &State,
        port: PortId,
        gone: Withdrawn,
    ) -> Result<(), Error> {
        if gone.reserving {
            self.reserve_ports(state)?;
        }
        for id in gone.publications {
            self.forget_translations(id);
            self.tell_unpublished(id);
        }
        for id in gone.targets {
            self.forget_target(id, port);
        }
        Ok(())
    }

    fn endpoint_of_request(
        &self,
        state: &State,
        request: AttachRequest,
    ) -> Result<(Endpoint, Network), Error> {
        let network = state
            .desired
            .network(&request.network)
            .ok_or_else(|| Error::unknown_network(&request.network))?;
        check_ifname(&request.ifname)?;
        let backend = choosing::first(request.backend);
        if !Backend::ALL.contains(&backend) {
            return Err(BackendError(backend.label().to_owned()).into());
        }
        let (path, ns) = open_sandbox(&request.sandbox)?;
        if ns == self.host {
            let path = path.display();
            return Err(Error::Invalid(format!(
                "{path} is the host's own network namespace; attach another one"
            )));
        }
        let sandbox = Sandbox {
            path,
            inode: ns.id().inode(),
        };
        // A handle would keep the sandbox alive.
        drop(ns);
        let name = endpoint_name(state, &request)?;
        let claimant = Claimant {
            name: &name,
            mac: request.mac,
        };
        let addresses = addresses_of_request(state, network, &request, claimant)?;
        check_routes(&request.routes, network, &addresses)?;
        let mac = mac_of_request(&request, &addresses, network)?;
        let port = free_port(&state.desired, &[])?;
        let endpoint = Endpoint {
            port,
            name,
            domain: network.domain,
            sandbox,
            ifname: request.ifname,
            mac,
            addresses,
            backend,
            choice: choosing::begun(request.backend),
            phase: Phase::Attaching,
            settings: PortSettings::default(),
            vlans: PortVlans::default(),
            attached_at: now_millis(),
            dns: request.dns,
            gw_priority: request.gw_priority,
            routes: request.routes,
            foreign: request.foreign,
        };
        Ok((endpoint, network.clone()))
    }

    /// Opens the device of an endpoint that an earlier daemon has made.
    pub(super) async fn adopt(&self, state: &mut State, port: PortId) -> Result<(), Error> {
        let endpoint = self.endpoint(state, port)?.clone();
        let network = super::nics::network_at(&state.desired, endpoint.domain)?;
        let queues = self.devices.adopt(&endpoint, network).await?;
        state.note_capabilities(port, &queues);
        self.blocking(|dataplane| dataplane.add_port(port, queues))?;
        state.open.insert(port);
        self.restore_fdb_entries(state, port);
        self.restore_listeners(state, port);
        let Some(network) = state.desired.network_of(&endpoint) else {
            return self.unplug_if_down(state, &endpoint).await;
        };
        // Frames flow by now; what cannot be repaired must not take that away.
        match self.devices.repair(&endpoint, network).await {
            Ok(repaired) if repaired.is_empty() => {}
            Ok(repaired) => {
                let repaired = repaired.join(", ");
                tracing::warn!(endpoint = %endpoint.name, %repaired, "repaired in its sandbox");
            }
            Err(error) => {
                tracing::error!(endpoint = %endpoint.name, %error, "cannot repair in its sandbox");
            }
        }
        self.settle_ways_out_beside(state, &endpoint).await;
        self.unplug_if_down(state, &endpoint).await
    }

    /// Makes the device of an endpoint anew.
    pub(super) async fn recreate(&self, state: &mut State, port: PortId) -> Result<(), Error> {
        let endpoint = self.endpoint(state, port)?.clone();
        let network = state
            .desired
            .network_of(&endpoint)
            .ok_or_else(|| Error::unknown_network(&endpoint.domain.to_string()))?
            .clone();
        let queues = self.devices.create(&endpoint, &network).await?;
        state.note_capabilities(port, &queues);
        self.blocking(|dataplane| dataplane.add_port(port, queues))?;
        state.open.insert(port);
        self.restore_fdb_entries(state, port);
        self.restore_listeners(state, port);
        if endpoint.backend == Backend::Host {
            self.refill_host_port(state, &endpoint).await?;
        }
        self.settle_ways_out_beside(state, &endpoint).await;
        self.unplug_if_down(state, &endpoint).await
    }

    /// Takes endpoints out whose devices have gone, and those with them whose sandboxes are gone too.
    pub(super) async fn ports_gone(&self, ports: &[PortId]) -> Result<(), Error> {
        let mut state = self.state().await;
        let mut gone = Vec::with_capacity(ports.len());
        for port in ports {
            let Some(endpoint) = state.desired.endpoints.get(port) else {
                continue;
            };
            if self.devices.observe(endpoint).await? == crate::plan::ObservedSandbox::WithDevice {
                // Down, not gone: somebody set it down, and may set it up again.
                let text = format!(
                    "port '{}' is down: {} was set down in its sandbox",
                    endpoint.name, endpoint.ifname
                );
                self.tell_port(&state, EventKind::PortDown, endpoint, text);
            } else {
                gone.push(*port);
            }
        }
        if gone.is_empty() {
            return Ok(());
        }
        // Together: what each would cost alone grows with all that there are.
        let closed: Vec<PortId> = gone.into_iter().filter(|p| state.open.remove(p)).collect();
        if !closed.is_empty() {
            self.install(&state)?;
        }
        for port in closed {
            self.blocking(|dataplane| dataplane.remove_port(port))?;
        }
        for (action, error) in self.converge(&mut state).await? {
            tracing::error!(?action, %error, "cannot bring the host to the wanted state");
        }
        Ok(())
    }
}

/// What an endpoint was taken out of.
#[derive(Debug, Default)]
pub(super) struct Withdrawn {
    /// Publications that ended.
    publications: Vec<u32>,
    /// Publications that lead to others.
    targets: Vec<u32>,
    /// One of those that ended had its ports reserved.
    reserving: bool,
}

/// A switch port that no endpoint has, nor one of these.
pub(super) fn free_port(desired: &DesiredState, taken: &[PortId]) -> Result<PortId, Error> {
    let free = desired
        .endpoints
        .free_port(PortId(ENDPOINT_PORT_FIRST), |port| taken.contains(&port));
    free.ok_or(Error::Limit {
        what: "endpoints",
        max: PORTS_MAX - usize::from(ENDPOINT_PORT_FIRST),
    })
}

/// Milliseconds since 1970; a clock that is not set yet is at their beginning.
pub(super) fn now_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

pub(super) fn open_sandbox(sandbox: &SandboxRef) -> Result<(PathBuf, Netns), Error> {
    match sandbox {
        SandboxRef::Pid(pid) => {
            let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
            Ok((path, Netns::from_pid(*pid)?))
        }
        SandboxRef::Netns(text) if text.contains('/') => {
            let path = PathBuf::from(text);
            if !path.is_absolute() {
                return Err(Error::Invalid(format!(
                    "'{text}' is a relative path; write the whole one"
                )));
            }
            let ns = Netns::from_path(&path)?;
            Ok((path, ns))
        }
        SandboxRef::Netns(name) => {
            let ns = Netns::from_name(name)?;
            Ok((PathBuf::from(NAMED_DIR).join(name), ns))
        }
    }
}

fn endpoint_name(state: &State, request: &AttachRequest) -> Result<Name, Error> {
    if let Some(name) = &request.name {
        if state.desired.endpoint(name).is_some() {
            return Err(Error::Exists {
                kind: "endpoint",
                name: name.clone(),
            });
        }
        return Ok(name.parse()?);
    }
    let base = match &request.sandbox {
        SandboxRef::Pid(pid) => format!("pid-{pid}"),
        SandboxRef::Netns(text) => text
            .rsplit('/')
            .next()
            .filter(|last| last.parse::<Name>().is_ok())
            .unwrap_or("endpoint")
            .to_owned(),
    };
    let candidates = std::iter::once(base.clone())
        .chain(std::iter::once(format!("{base}-{}", request.ifname)))
        .chain((2..PORTS_MAX).map(|number| format!("{base}-{number}")));
    let mut free = candidates.filter(|name| state.desired.endpoint(name).is_none());
    Ok(free.next().unwrap_or(base).parse()?)
}

fn addresses_of_request(
    state: &State,
    network: &Network,
    request: &AttachRequest,
    claimant: Claimant<'_>,
) -> Result<Vec<IpAddr>, Error> {
    let mut addresses = Vec::new();
    for address in &request.addresses {
        ipam::check_address(network, &state.desired, *address, claimant)?;
        check_not_the_hosts(state, network, *address)?;
        let same_family = |other: &IpAddr| other.is_ipv4() == address.is_ipv4();
        if request.without.have(*address) {
            let problem = format!("{address} and none of its family; give one of the two");
            return Err(Error::Invalid(problem));
        }
        if addresses.iter().any(same_family) {
            let problem = format!("{address} is the second address of its family; give one");
            return Err(Error::Invalid(problem));
        }
        addresses.push(*address);
    }
    for subnet in &network.subnets {
        let chosen = |address: &IpAddr| address.is_ipv4() == subnet.gateway.is_ipv4();
        if request.without.have(subnet.gateway) || addresses.iter().any(chosen) {
            continue;
        }
        let reserved = ipam::reserved_address(network, subnet, &state.desired, claimant);
        if let Some(address) = reserved {
            addresses.push(address);
            continue;
        }
        if network.router == Router::Lan && subnet.pool == subnet.prefix {
            if subnet.prefix.addr().is_ipv6() {
                // By the LAN's advertisements.
                continue;
            }
            return Err(Error::Invalid(format!(
                "network '{0}' is on a LAN that gives its addresses to others as well; give --ip ADDRESS, \
                 or --ip none for one by DHCP, or create the network with the part of the subnet that is \
                 yours (--ip-range)",
                network.name
            )));
        }
        addresses.push(ipam::free_address(network, subnet, &state.desired)?);
    }
    addresses.sort();
    Ok(addresses)
}

/// On a LAN the host's own address may be one of the network's, though no endpoint has it.
fn check_not_the_hosts(state: &State, network: &Network, address: IpAddr) -> Result<(), Error> {
    let hosts = state.host.local_addresses(None).contains(&address);
    if network.router == Router::Lan && hosts {
        let owner = "the host itself".to_owned();
        return Err(ipam::Error::Taken { address, owner }.into());
    }
    Ok(())
}

/// From the IPv4 address as docker0 does it, or from the last octets of the IPv6 address; random where
/// there is neither.
fn mac_of_request(
    request: &AttachRequest,
    addresses: &[IpAddr],
    network: &Network,
) -> Result<MacAddr, Error> {
    if let Some(mac) = request.mac {
        if mac.is_group() || mac == MacAddr::ZERO {
            return Err(Error::Invalid(format!(
                "{mac} is a group address or zero; give a unicast MAC, such as 02:42:ac:11:00:02"
            )));
        }
        if mac == network.gateway_mac() {
            return Err(Error::Invalid(format!(
                "{mac} is the gateway's MAC of network '{}'; choose another",
                network.name
            )));
        }
        return Ok(mac);
    }
    Ok(match addresses.first() {
        Some(IpAddr::V4(address)) => MacAddr::from_ipv4(*address),
        Some(IpAddr::V6(address)) => {
            let [.., a, b, c, d] = address.octets();
            MacAddr([0x02, 0x44, a, b, c, d])
        }
        None => {
            let [a, b, c, d] = fastrand::u32(..).to_be_bytes();
            MacAddr([0x02, 0x45, a, b, c, d])
        }
    })
}
