//! Publications: ports of the host that lead to an endpoint.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::reservations::reserves;
use super::{Engine, State};
use crate::error::Error;
use crate::model::{Endpoint, Publication, transport_label};
use crate::owner;
use crate::publish::{PublishSpec, range_text};
use crate::relay::{Claim, Held};
use crate::topology;

/// Host ports that are handed out when a specification names none: what lies between the ports
/// that Linux gives to its own clients by default, 32768, and the NAT's range. Docker's free
/// ports come from the same range of the kernel.
const FREE_PORTS: RangeInclusive<u16> = 32_768..=49_151;
/// Publications of one daemon; each costs a NAT rule of either family and its listeners.
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
        let (publication, held) = match &request.spec.host_ports {
            Some(ports) => {
                let publication = publication(&state, &request, &endpoint, ports.clone());
                self.check_clash(&state, &publication)?;
                let held = self.hold(&publication, &endpoint).await?;
                (publication, held)
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
        state.listeners.insert(id, held.serve(&self.budget));
        Ok(publication)
    }

    fn check_request(
        &self,
        state: &State,
        request: &PublishRequest,
        endpoint: &Endpoint,
    ) -> Result<(), Error> {
        let spec = &request.spec;
        if state.desired.publications.len() >= PUBLICATIONS_MAX {
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
        let owner = match state.desired.endpoints.get(&other.endpoint) {
            Some(endpoint) => format!("endpoint '{}'", endpoint.name),
            None => other.endpoint.to_string(),
        };
        Err(Error::PortTaken {
            transport: transport_label(wanted.transport),
            port: *wanted.host_ports.start().max(other.host_ports.start()),
            address: wanted
                .host_ip
                .map_or_else(|| "all addresses".to_owned(), |ip| ip.to_string()),
            owner,
        })
    }

    /// Makes sure that nobody else has the ports: by listening on each, or, where they are too
    /// many for that, by a look at every socket of the host.
    async fn hold(&self, publication: &Publication, endpoint: &Endpoint) -> Result<Held, Error> {
        if !reserves(publication) {
            return Held::take(claims(publication, endpoint)).await;
        }
        let transport = publication.transport;
        let (ip, ports) = (publication.host_ip, &publication.host_ports);
        let taken = self.host.run(|| owner::of_range(transport, ip, ports))?;
        match taken {
            Some((port, owner)) => Err(Error::PortTaken {
                transport: transport_label(transport),
                port,
                address: ip.map_or_else(|| "all addresses".to_owned(), |ip| ip.to_string()),
                owner,
            }),
            None => Ok(Held::default()),
        }
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
            let publication = publication(state, request, endpoint, first..=last);
            if self.check_clash(state, &publication).is_ok() {
                match self.hold(&publication, endpoint).await {
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
            return Err(Error::Unknown {
                kind: "publication",
                name: id.to_string(),
                list: "publish ls",
            });
        }
        self.store.remove_publication(id)?;
        let removed = state.desired.publications.remove(&id);
        state.listeners.remove(&id);
        self.install(&state)?;
        self.forget_translations(id);
        self.refresh_uplinks(&state)?;
        if removed.is_some_and(|publication| reserves(&publication)) {
            self.reserve_ports(&state)?;
        }
        Ok(())
    }

    /// Ends the sessions that came by a publication, and forgets how often it was used.
    pub(super) fn forget_translations(&self, publication: u32) {
        let rules = topology::rule_ids(publication);
        let nat = self.nat();
        nat.remove_sessions(|session| session.rule.is_some_and(|rule| rules.contains(&rule)));
        rules.into_iter().for_each(|rule| nat.forget_rule(rule));
    }

    /// Opens the listeners of every publication, after a start.
    pub(super) async fn open_all_listeners(&self, state: &mut State) {
        let publications: Vec<Publication> = state.desired.publications.values().cloned().collect();
        for publication in publications {
            let Some(endpoint) = state.desired.endpoints.get(&publication.endpoint) else {
                continue;
            };
            match self.hold(&publication, endpoint).await {
                Ok(held) => {
                    let listeners = held.serve(&self.budget);
                    state.listeners.insert(publication.id, listeners);
                }
                // Clients elsewhere are served all the same; only the host's own are not.
                Err(error) => {
                    tracing::error!(endpoint = %endpoint.name, %error, "cannot listen");
                }
            }
        }
    }
}

fn same_family(one: IpAddr, two: IpAddr) -> bool {
    one.is_ipv4() == two.is_ipv4()
}

fn publication(
    state: &State,
    request: &PublishRequest,
    endpoint: &Endpoint,
    host_ports: RangeInclusive<u16>,
) -> Publication {
    let free = |id: &u32| !state.desired.publications.contains_key(id);
    Publication {
        id: (1..).find(free).unwrap_or(u32::MAX),
        endpoint: endpoint.port,
        transport: request.spec.transport,
        host_ip: request.spec.host_ip.filter(|ip| !ip.is_unspecified()),
        host_ports,
        inside_port_first: *request.spec.inside_ports.start(),
        from: request.from,
    }
}

/// One claim per port.
fn claims(publication: &Publication, endpoint: &Endpoint) -> Vec<Claim> {
    publication
        .host_ports
        .clone()
        .zip(publication.inside_port_first..)
        .map(|(host_port, inside_port)| Claim {
            transport: publication.transport,
            host_ip: publication.host_ip,
            host_port,
            inside: endpoint
                .addresses
                .iter()
                .map(|address| SocketAddr::new(*address, inside_port))
                .collect(),
        })
        .collect()
}
