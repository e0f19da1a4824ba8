//! Publications: ports of the host that lead to an endpoint.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use dataplane_core::nat::Balance;
use ipnet::IpNet;

use super::listings::spec_text;
use super::reservations::reserves;
use super::targets::target_of;
use super::{Engine, State};
use crate::error::Error;
use crate::events::{EventKind, Subject};
use crate::model::{Endpoint, Publication, Router, transport_label};
use crate::owner;
use crate::publish::{PublishSpec, range_text};
use crate::relay::{Claim, Held};
use crate::topology;

/// Host ports that are handed out when a specification names none: what lies between the ports
/// that Linux gives to its own clients by default, 32768, and the NAT's range. Docker's free
/// ports come from the same range of the kernel.
const FREE_PORTS: RangeInclusive<u16> = 32_768..=49_151;
/// Publications of one daemon, counted by their targets; each costs a place in a NAT rule of either
/// family, and a publication its listeners.
const PUBLICATIONS_MAX: usize = 4_096;

/// Ports that somebody wants published.
#[derive(Clone, Debug)]
pub struct PublishRequest {
    /// Which ports.
    pub spec: PublishSpec,
    /// The endpoint's name.
    pub endpoint: String,
    /// Only clients of this prefix.
    pub from: Option<IpNet>,
    /// Only clients that come in by this uplink.
    pub uplink: Option<String>,
    /// What is done where the ports are published already.
    pub clash: Clash,
    /// The endpoint's share of new sessions; 1 when left out.
    pub weight: Option<u16>,
    /// How new sessions are spread; in turns when left out, or as they are.
    pub balance: Option<Balance>,
}

/// What becomes of a request for ports that are published already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clash {
    /// It is refused.
    #[default]
    Refuse,
    /// They lead to this endpoint as well.
    Join,
}

impl Engine {
    /// Publishes ports of an endpoint.
    ///
    /// # Errors
    /// [`Error::PortTaken`] with the owner; nothing is left behind.
    pub async fn publish(&self, request: PublishRequest) -> Result<Publication, Error> {
        let mut state = self.state().await;
        let endpoint = state
            .desired
            .endpoint(&request.endpoint)
            .ok_or_else(|| Error::unknown_endpoint(&request.endpoint))?
            .clone();
        self.check_request(&state, &request, &endpoint)?;
        if request.clash == Clash::Join
            && let Some(there) = published(&state, &request)
        {
            let there = there.clone();
            return self.join(&mut state, &request, &endpoint, there).await;
        }
        let (publication, held) = match &request.spec.host_ports {
            Some(ports) => {
                let publication = publication(&state, &request, &endpoint, ports.clone())?;
                self.check_clash(&state, &publication)?;
                self.make_room(&mut state, &publication).await;
                match self.hold(&state, &publication).await {
                    Ok(held) => (publication, held),
                    Err(error) => {
                        self.follow_name_services(&mut state).await;
                        return Err(error);
                    }
                }
            }
            None => self.choose_ports(&state, &request, &endpoint).await?,
        };
        let id = publication.id;
        self.store
            .put_publications(std::slice::from_ref(&publication))?;
        state.desired.publications.insert(id, publication.clone());
        let reserving = reserves(&publication);
        let reserved = if reserving {
            self.reserve_ports(&state)
        } else {
            Ok(())
        };
        let installed = reserved
            .and_then(|()| self.refresh_uplinks(&state))
            .and_then(|()| self.install(&state));
        if let Err(error) = installed {
            state.desired.publications.remove(&id);
            self.store.remove_publication(id)?;
            self.refresh_uplinks(&state)?;
            self.install(&state)?;
            if reserving {
                self.reserve_ports(&state)?;
            }
            return Err(error);
        }
        let rules = topology::rules_of(&state.desired, &publication);
        state.listeners.insert(id, held.serve(rules, &self.budget));
        if let Some(target) = publication.target(endpoint.port) {
            let spec = spec_text(&publication, target);
            let text = format!("{spec} was published for endpoint '{}'", endpoint.name);
            self.tell_port(&state, EventKind::Published, &endpoint, text);
        }
        Ok(publication)
    }

    fn check_request(
        &self,
        state: &State,
        request: &PublishRequest,
        endpoint: &Endpoint,
    ) -> Result<(), Error> {
        let spec = &request.spec;
        let publications = state.desired.publications.values();
        let targets: usize = publications
            .map(|publication| publication.targets.len())
            .sum();
        if targets >= PUBLICATIONS_MAX {
            let what = "publications";
            let max = PUBLICATIONS_MAX;
            return Err(Error::Limit { what, max });
        }
        let internal = state
            .desired
            .network_of(endpoint)
            .is_some_and(|n| n.internal);
        if internal {
            return Err(Error::Invalid(format!(
                "endpoint '{}' is on an internal network, which nothing outside can reach; \
                 attach it to another network to publish its ports",
                endpoint.name
            )));
        }
        let network = state.desired.network_of(endpoint);
        if network.is_some_and(|network| network.router == Router::Lan) {
            return Err(Error::Invalid(format!(
                "endpoint '{}' is on a LAN by an address of its own, and nothing is translated there; \
                 reach it at that address",
                endpoint.name
            )));
        }
        if let Some(uplink) = &request.uplink {
            check_uplink(state, uplink, spec)?;
        }
        let family = |address: IpAddr| endpoint.addresses.iter().any(|a| same_family(*a, address));
        if let Some(ip) = spec.host_ip {
            let local = state.host.local_addresses(None).contains(&ip);
            if !local && !ip.is_loopback() && !ip.is_unspecified() {
                return Err(Error::Invalid(format!(
                    "{ip} is no address of this host; `ip address` lists those that are"
                )));
            }
            if !family(ip) {
                let name = &endpoint.name;
                return Err(Error::Invalid(format!(
                    "endpoint '{name}' has no address of the family of {ip}; \
                     choose a host address of the other family"
                )));
            }
        }
        if let Some(from) = request.from
            && !family(from.addr())
        {
            let name = &endpoint.name;
            return Err(Error::Invalid(format!(
                "endpoint '{name}' has no address of the family of {from}; give another prefix"
            )));
        }
        let nat = &self.config.nat.port_range;
        if let Some(ports) = &spec.host_ports
            && ports.start() <= nat.end()
            && nat.start() <= ports.end()
        {
            return Err(Error::PortTaken {
                transport: transport_label(spec.transport),
                port: *ports.start().max(nat.start()),
                address: "all addresses".to_owned(),
                owner: format!("the NAT, whose range is {}", range_text(nat)),
            });
        }
        Ok(())
    }

    fn check_clash(&self, state: &State, wanted: &Publication) -> Result<(), Error> {
        let clash = state
            .desired
            .publications
            .values()
            .find(|other| other.clashes_with(wanted));
        let Some(other) = clash else {
            return Ok(());
        };
        let targets = other.targets.iter();
        let endpoints = targets.filter_map(|target| state.desired.endpoints.get(&target.endpoint));
        let names: Vec<String> = endpoints.map(|e| format!("'{}'", e.name)).collect();
        let owner = match names.as_slice() {
            [name] => format!("endpoint {name}"),
            names => format!("endpoints {}", names.join(", ")),
        };
        if other.is_at_ports_of(wanted) {
            let ports = range_text(&wanted.host_ports);
            let transport = transport_label(wanted.transport);
            return Err(Error::InUse(format!(
                "{transport} port {ports} of {} is taken by {owner}; add --join to share it, or \
                 choose another host port",
                address_text(wanted)
            )));
        }
        Err(Error::PortTaken {
            transport: transport_label(wanted.transport),
            port: *wanted.host_ports.start().max(other.host_ports.start()),
            address: address_text(wanted),
            owner,
        })
    }

    /// Makes sure that nobody else has the ports: by listening on each, or, where they are too
    /// many for that, by a look at every socket of the host.
    async fn hold(&self, state: &State, publication: &Publication) -> Result<Held, Error> {
        let places = state.places(publication);
        if !reserves(publication) {
            let claims = places.iter().flat_map(|ip| claims(publication, *ip));
            return Held::take(claims.collect()).await;
        }
        let transport = publication.transport;
        let ports = &publication.host_ports;
        for ip in places {
            let taken = self.host.run(|| owner::of_range(transport, ip, ports))?;
            if let Some((port, owner)) = taken {
                return Err(Error::PortTaken {
                    transport: transport_label(transport),
                    port,
                    address: address_text(publication),
                    owner,
                });
            }
        }
        Ok(Held::default())
    }

    /// Takes the lowest free ports of [`FREE_PORTS`], side by side.
    async fn choose_ports(
        &self,
        state: &State,
        request: &PublishRequest,
        endpoint: &Endpoint,
    ) -> Result<(Publication, Held), Error> {
        // A specification cannot name more ports than there are.
        let count = u16::try_from(request.spec.count()).unwrap_or(u16::MAX);
        let mut first = *FREE_PORTS.start();
        while let Some(last) = first
            .checked_add(count - 1)
            .filter(|l| FREE_PORTS.contains(l))
        {
            let publication = publication(state, request, endpoint, first..=last)?;
            if self.check_clash(state, &publication).is_ok() {
                match self.hold(state, &publication).await {
                    Ok(held) => return Ok((publication, held)),
                    Err(Error::PortTaken { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            first += count;
        }
        Err(Error::InUse(format!(
            "no {count} free host ports are left in {}; name the host ports",
            range_text(&FREE_PORTS)
        )))
    }

    /// Withdraws a publication.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub async fn unpublish(&self, id: u32) -> Result<(), Error> {
        let mut state = self.state().await;
        if !state.desired.publications.contains_key(&id) {
            return Err(Error::unknown_publication(id));
        }
        self.withdraw(&mut state, id)?;
        self.follow_name_services(&mut state).await;
        Ok(())
    }

    /// Withdraws a publication that is there.
    pub(super) fn withdraw(&self, state: &mut State, id: u32) -> Result<(), Error> {
        self.store.remove_publication(id)?;
        let removed = state.desired.publications.remove(&id);
        state.listeners.remove(&id);
        self.install(state)?;
        self.forget_translations(id);
        let targets = removed.iter().flat_map(|publication| &publication.targets);
        for target in targets {
            if let Some(endpoint) = state.desired.endpoints.get(&target.endpoint) {
                self.forget_fragments(endpoint);
            }
        }
        self.refresh_uplinks(state)?;
        if removed.is_some_and(|publication| reserves(&publication)) {
            self.reserve_ports(state)?;
        }
        self.tell_unpublished(id);
        Ok(())
    }

    /// Tells that a publication has ended.
    pub(super) fn tell_unpublished(&self, id: u32) {
        let text = format!("publication {id} has ended");
        self.events
            .tell(EventKind::Unpublished, Subject::default(), text);
    }

    /// Ends the sessions that came by a publication, and forgets what was counted of it.
    pub(super) fn forget_translations(&self, publication: u32) {
        let rules = topology::rule_ids(publication);
        let nat = self.nat();
        nat.remove_sessions(|session| session.rule.is_some_and(|rule| rules.contains(&rule)));
        rules.into_iter().for_each(|rule| nat.forget_rule(rule));
        self.keep_sessions();
    }

    /// Opens the listeners of every publication, after a start.
    pub(super) async fn open_all_listeners(&self, state: &mut State) {
        let publications: Vec<Publication> = state.desired.publications.values().cloned().collect();
        for publication in publications {
            match self.hold(state, &publication).await {
                Ok(held) => {
                    let rules = topology::rules_of(&state.desired, &publication);
                    let listeners = held.serve(rules, &self.budget);
                    state.listeners.insert(publication.id, listeners);
                }
                // Clients elsewhere are served all the same; only the host's own are not.
                Err(error) => {
                    tracing::error!(publication = publication.id, %error, "cannot listen");
                }
            }
        }
    }
}

fn same_family(one: IpAddr, two: IpAddr) -> bool {
    one.is_ipv4() == two.is_ipv4()
}

/// An interface that is an uplink, and no address beside it.
fn check_uplink(state: &State, uplink: &str, spec: &PublishSpec) -> Result<(), Error> {
    if let Some(ip) = spec.host_ip {
        return Err(Error::Invalid(format!(
            "{spec} names an address, {ip}, and --uplink is for all that {uplink} has; give one of \
             the two"
        )));
    }
    if state.uplinks.iter().any(|there| there.name == uplink) {
        return Ok(());
    }
    let names: Vec<&str> = state.uplinks.iter().map(|u| u.name.as_str()).collect();
    let there = match names.as_slice() {
        [] => "there is none".to_owned(),
        names => format!("those are {}", names.join(", ")),
    };
    Err(Error::Invalid(format!(
        "'{uplink}' is no uplink of this daemon: {there}; choose one, or start the daemon with \
         --uplink {uplink} as well"
    )))
}

fn address_text(publication: &Publication) -> String {
    match (publication.host_ip, &publication.uplink) {
        (Some(ip), _) => ip.to_string(),
        (None, Some(uplink)) => format!("uplink {uplink}"),
        (None, None) => "all addresses".to_owned(),
    }
}

fn host_ip(request: &PublishRequest) -> Option<IpAddr> {
    request.spec.host_ip.filter(|ip| !ip.is_unspecified())
}

/// The publication of the very ports that a request names.
fn published<'s>(state: &'s State, request: &PublishRequest) -> Option<&'s Publication> {
    let spec = &request.spec;
    state.desired.publications.values().find(|publication| {
        publication.transport == spec.transport
            && publication.host_ip == host_ip(request)
            && publication.uplink == request.uplink
            && Some(&publication.host_ports) == spec.host_ports.as_ref()
    })
}

fn publication(
    state: &State,
    request: &PublishRequest,
    endpoint: &Endpoint,
    host_ports: RangeInclusive<u16>,
) -> Result<Publication, Error> {
    let free = |id: &u32| !state.desired.publications.contains_key(id);
    Ok(Publication {
        id: (1..).find(free).unwrap_or(u32::MAX),
        transport: request.spec.transport,
        host_ip: host_ip(request),
        uplink: request.uplink.clone(),
        host_ports,
        from: request.from,
        balance: request.balance.unwrap_or_default(),
        targets: vec![target_of(request, endpoint)?],
    })
}

/// One claim per port of an address, or of all.
pub(super) fn claims(
    publication: &Publication,
    host_ip: Option<IpAddr>,
) -> impl Iterator<Item = Claim> {
    let (transport, ports) = (publication.transport, publication.host_ports.clone());
    ports.map(move |host_port| Claim {
        transport,
        host_ip,
        host_port,
    })
}
