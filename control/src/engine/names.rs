//! Names: what the service answers by, who tells resolvers of it, and questions about it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dataplane_core::addr::{DomainId, L4Port};
use dataplane_service::dns::Via;
use dataplane_service::dns::message::{Transport, upstream_query};
use hickory_proto::rr::{Name, RecordType};
use tokio::sync::oneshot;

use super::{Engine, State};
use crate::api::names::{NameCountView, NameStatsView, NameWhyView, RecordView, UpstreamView};
use crate::config::DnsConfig;
use crate::error::Error;
use crate::model::dns::DnsState;
use crate::model::{DesiredState, Endpoint, Network, Phase, Publication, Router};
use crate::name_listener::NameListener;
use crate::names::{self, ResolvConf};
use crate::parts::Parts;
use crate::resolv_file;

/// How long a question of ours may wait: longer than the service lets one.
const ANSWER_MAX: Duration = Duration::from_secs(6);

/// What answers the host, by gateway.
pub(super) type Listeners = BTreeMap<(DomainId, IpAddr), NameListener>;

/// What the host's resolver is told, as of the last look.
#[derive(Debug, Default)]
pub(super) struct HostResolver(Mutex<ResolvConf>);

impl HostResolver {
    /// Looks again; whether anything has changed.
    pub fn read(&self, config: &DnsConfig) -> bool {
        // Without the file there is nobody to ask.
        let text = std::fs::read_to_string(&config.resolv_conf).unwrap_or_default();
        let mut now = ResolvConf::read(&text);
        if !config.servers.is_empty() {
            now.servers.clone_from(&config.servers);
        }
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = *last != now;
        *last = now;
        changed
    }

    fn get(&self) -> ResolvConf {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// A question about a name, as somebody would ask it.
#[derive(Clone, Debug)]
pub struct NameQuestion {
    /// The name.
    pub name: String,
    /// The endpoint that asks, by name.
    pub from: Option<String>,
    /// The network on which it is asked, where no endpoint is given.
    pub network: Option<String>,
    /// The type; an address when left out.
    pub rtype: Option<String>,
}

impl Engine {
    /// Answers by these names from now on.
    pub(super) fn show_names(&self, desired: &DesiredState, parts: &Parts) {
        let zones = names::zones(desired, parts, &self.resolver.get().servers);
        self.dataplane.set_zones(Arc::new(zones));
    }

    /// Follows a change of the host's resolver.
    pub(super) async fn watch_resolver(&self) {
        if self.resolver.read(&self.config.dns) {
            let state = self.state().await;
            self.show_names(&state.desired, &self.parts(&state.desired));
            self.write_resolv_confs(&state);
        }
    }

    /// Listens for the host at each gateway that it has and that has the service, and nowhere else.
    pub(super) async fn follow_name_services(&self, state: &mut State) {
        let mut wanted = Vec::new();
        if state.host_link.is_some() {
            for network in state.desired.networks.values() {
                if network.host_link && names::is_served(network) {
                    let gateways = network.subnets.iter().map(|subnet| subnet.gateway);
                    wanted.extend(gateways.map(|gateway| (network.domain, gateway)));
                }
            }
        }
        let published = |gateway| {
            let mut publications = state.desired.publications.values();
            publications.any(|publication| takes_port(publication, gateway))
        };
        wanted.retain(|(_, gateway)| !published(*gateway));
        close_all(state, |at| !wanted.contains(at)).await;
        for at @ (domain, gateway) in wanted {
            if state.name_listeners.contains_key(&at) {
                continue;
            }
            match NameListener::open(&self.dataplane, domain, gateway) {
                Ok(listener) => {
                    state.name_listeners.insert(at, listener);
                }
                // Endpoints are served all the same; only the host's own questions are not.
                Err(error) => tracing::warn!(
                    %gateway, %error, "cannot answer the host's questions at a gateway"
                ),
            }
        }
        self.write_resolv_confs(state);
    }

    /// Gives the port of DNS up where a publication is to have it.
    pub(super) async fn make_room(&self, state: &mut State, publication: &Publication) {
        close_all(state, |(_, gateway)| takes_port(publication, *gateway)).await;
    }

    /// Makes the files of named sandboxes say what is so now. One that this daemon has written so already
    /// is not touched: with a thousand sandboxes, an attachment would write a thousand files.
    pub(super) fn write_resolv_confs(&self, state: &State) {
        self.write_resolv_confs_of(state, state.desired.endpoints.values());
    }

    /// The same for the sandboxes of some endpoints, all of whose endpoints must be among them.
    pub(super) fn write_resolv_confs_of<'e>(
        &self,
        state: &State,
        endpoints: impl Iterator<Item = &'e Endpoint>,
    ) {
        let mut wanted: BTreeMap<&str, ResolvConf> = BTreeMap::new();
        for endpoint in endpoints {
            let Some(name) = resolv_file::netns_name(&endpoint.sandbox.path) else {
                continue;
            };
            let conf = wanted.entry(name).or_default();
            let network = state.desired.network_of(endpoint);
            if let Some(network) = network.filter(|_| endpoint.phase == Phase::Attached) {
                conf.servers.extend(names::nameservers(network));
                conf.search = self.resolver.get().search;
            }
        }
        for (name, conf) in wanted {
            let written = self.resolv_confs.get(name);
            if written.is_none_or(|written| *written != conf) && put_resolv_conf(name, &conf) {
                self.resolv_confs.insert(name.to_owned(), conf);
            }
        }
    }

    /// Takes an endpoint's share of its sandbox's file away, where it was the last to have one.
    pub(super) fn drop_resolv_conf(&self, state: &State, gone: &Endpoint) {
        let path = gone.sandbox.path.as_os_str();
        let mut same = state.desired.endpoints.at_path(path).peekable();
        if same.peek().is_some() {
            self.write_resolv_confs_of(state, same);
        } else {
            self.drop_resolv_conf_of(&gone.sandbox.path);
        }
    }

    /// Takes a sandbox's file away, where it is ours.
    pub(super) fn drop_resolv_conf_of(&self, sandbox: &Path) {
        drop_resolv_conf(sandbox);
        if let Some(name) = resolv_file::netns_name(sandbox) {
            self.resolv_confs.remove(name);
        }
    }

    /// Puts a question to the service, and tells what it comes to and why.
    ///
    /// # Errors
    /// [`Error::Unknown`] or [`Error::Invalid`] for what is asked; [`Error::Limit`] when the service is
    /// busy.
    pub async fn why_name(&self, question: NameQuestion) -> Result<NameWhyView, Error> {
        let (domain, source, network) = self.asker(&question).await?;
        let (name, rtype) = read_question(&question)?;
        let via = Via {
            domain,
            source,
            transport: Transport::Tcp,
        };
        let message = upstream_query(0, &name, rtype, false, false);
        let (told, answer) = oneshot::channel();
        let asked = self.dataplane.ask_name(via, message, move |answer| {
            let _ = told.send(answer);
        });
        let busy = || Error::Invalid("the name service is busy; ask again".to_owned());
        if !asked {
            return Err(busy());
        }
        let answer = tokio::time::timeout(ANSWER_MAX, answer).await;
        let answer = answer.map_err(|_| busy())?.map_err(|_| busy())?;
        Ok(NameWhyView::new(&question.name, rtype, &network, &answer))
    }

    /// On which network, and by which address, a question is asked.
    async fn asker(&self, question: &NameQuestion) -> Result<(DomainId, IpAddr, String), Error> {
        let state = self.state().await;
        let desired = &state.desired;
        let (network, source) = match (&question.from, &question.network) {
            (Some(from), None) => {
                let endpoint = desired.endpoint(from);
                let endpoint = endpoint.ok_or_else(|| Error::unknown_endpoint(from))?;
                let network = desired.network_of(endpoint);
                (network, endpoint.addresses.first().copied())
            }
            (None, Some(name)) => {
                let network = desired.network(name);
                (
                    Some(network.ok_or_else(|| Error::unknown_network(name))?),
                    None,
                )
            }
            (None, None) if desired.networks.len() == 1 => (desired.networks.values().next(), None),
            (_, _) => {
                let problem = "who asks is not clear; give --from ENDPOINT or --network NET";
                return Err(Error::Invalid(problem.to_owned()));
            }
        };
        let network = network.ok_or_else(|| Error::Invalid("its network is gone".to_owned()))?;
        check_served(network)?;
        let gateway = network.subnets.first().map(|subnet| subnet.gateway);
        let source = source
            .or(gateway)
            .unwrap_or(std::net::Ipv4Addr::LOCALHOST.into());
        Ok((network.domain, source, network.name.to_string()))
    }

    /// The records of a network.
    ///
    /// # Errors
    /// [`Error::Unknown`]; [`Error::Invalid`] where the service is off.
    pub async fn names(&self, network: &str) -> Result<Vec<RecordView>, Error> {
        let state = self.state().await;
        let found = state.desired.network(network);
        let network = found.ok_or_else(|| Error::unknown_network(network))?;
        check_served(network)?;
        let zones = names::zones(&state.desired, &self.parts(&state.desired), &[]);
        let listed = zones.list(network.domain);
        Ok(listed.into_iter().map(RecordView::from).collect())
    }

    /// What the service has counted.
    pub fn name_stats(&self) -> NameStatsView {
        let read = self.dataplane.name_stats();
        let stats = self.dataplane.stats();
        let refused = stats
            .workers
            .iter()
            .map(|worker| worker.service_refused)
            .sum();
        let counts = read.counts.iter().map(|(label, count)| NameCountView {
            label: (*label).to_owned(),
            count: *count,
        });
        let queue_full = NameCountView {
            label: "queue_full".to_owned(),
            count: refused,
        };
        NameStatsView {
            counts: counts.chain([queue_full]).collect(),
            upstreams: read.upstreams.iter().map(UpstreamView::new).collect(),
        }
    }

    /// Forgets what servers have said. Returns how many answers that were.
    pub fn flush_names(&self) -> usize {
        self.blocking(|dataplane| dataplane.flush_names())
    }
}

/// Whether a publication has the port of DNS at a gateway, as one of a name server in a sandbox has.
fn takes_port(publication: &Publication, gateway: IpAddr) -> bool {
    let here = publication.uplink.is_none() && publication.host_ip.is_none_or(|ip| ip == gateway);
    here && publication.host_ports.contains(&L4Port::DNS.0)
}

async fn close_all(state: &mut State, which: impl Fn(&(DomainId, IpAddr)) -> bool) {
    let closing: Vec<_> = state
        .name_listeners
        .keys()
        .filter(|at| which(at))
        .copied()
        .collect();
    for at in closing {
        if let Some(listener) = state.name_listeners.remove(&at) {
            listener.close().await;
        }
    }
}

fn check_served(network: &Network) -> Result<(), Error> {
    let problem = match network.dns.state {
        DnsState::Off => "has no name service (--dns off); `network set --dns on` gives it one",
        DnsState::On if network.router != Router::Switch => {
            "is routed by somebody else, who has the port of DNS there"
        }
        DnsState::On if network.subnets.is_empty() => "has no gateway that could be asked",
        DnsState::On => return Ok(()),
    };
    Err(Error::Invalid(format!(
        "network '{}' {problem}",
        network.name
    )))
}

fn read_question(question: &NameQuestion) -> Result<(Name, RecordType), Error> {
    let text = question.name.trim_end_matches('.');
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok((Name::from(address), RecordType::PTR));
    }
    let name = Name::from_ascii(format!("{text}."));
    let name = name.map_err(|_| Error::Invalid(format!("'{text}' cannot be a domain name")))?;
    let rtype = question
        .rtype
        .as_deref()
        .unwrap_or("A")
        .to_ascii_uppercase();
    let rtype = rtype.parse::<RecordType>();
    let rtype = rtype.map_err(|_| {
        let text = question.rtype.as_deref().unwrap_or_default();
        Error::Invalid(format!(
            "'{text}' is no record type; give A, AAAA, PTR, TXT or the like"
        ))
    })?;
    Ok((name, rtype))
}

/// Takes the file of a sandbox away, if it is ours.
pub(super) fn drop_resolv_conf(sandbox: &Path) {
    if let Some(name) = resolv_file::netns_name(sandbox) {
        put_resolv_conf(name, &ResolvConf::default());
    }
}

/// Whether the file says so now.
fn put_resolv_conf(name: &str, conf: &ResolvConf) -> bool {
    let put = resolv_file::put(Path::new(resolv_file::NETNS_ETC), name, conf);
    match &put {
        Ok(true) => {}
        Ok(false) => tracing::debug!(netns = name, "its resolv.conf is not ours, and stays"),
        Err(error) => tracing::warn!(netns = name, %error, "cannot write its resolv.conf"),
    }
    matches!(put, Ok(true))
}
