//! What requests may look at. Nothing here changes anything.

use dataplane::LinkStats;
use dataplane::balance::{Loads, PortLoad};
use dataplane::stats::Stats;
use dataplane::tracing::Record;
use dataplane_core::addr::{DomainId, PortId};
use dataplane_core::l2::FloodClass;
use dataplane_core::nat::{Account, Behaviour, Dependence, Totals};
use dataplane_core::time::Duration;
use dataplane_core::topology::{NatMode, Role, Topology};
use dataplane_core::verdict::Stage;

use std::sync::atomic::Ordering;

use super::endpoints::now_millis;
use super::nic_checks::nic_warnings;
use super::ports::port_id;
use super::{Engine, State, features};
use crate::api::bridging::{LinkView, StormView};
use crate::api::reservations::ReservationBody;
use crate::api::types::{
    CountView, DropView, EndpointView, NatSetView, NetworkView, NicView, PortLoadView, PortView,
    PublicationView, RuleView, SessionView, StatusView, StepView, SubnetView, TargetView,
    TraceView, UplinkView, WorkerLoadView,
};
use crate::error::Error;
use crate::explain;
use crate::host_link;
use crate::model::dns::network_dns_words;
use crate::model::{
    Backend, Confirmation, Endpoint, Icc, Network, NicBackend, Publication, PublicationTarget,
    Router, balance_label, duty_label, is_mirror_file, transport_label,
};
use crate::names::nameservers;
use crate::publish::PublishSpec;
use crate::topology;
use crate::vlans::VlanFiltering;

/// Sessions listed at a time; the table may hold a million.
const SESSIONS_LISTED_MAX: usize = 10_000;

impl Engine {
    /// Every network.
    pub async fn networks(&self) -> Vec<NetworkView> {
        let state = self.state().await;
        let networks = state.desired.networks.values();
        networks
            .map(|network| self.network_view(&state, network))
            .collect()
    }

    /// One network.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub async fn network(&self, name: &str) -> Result<NetworkView, Error> {
        let state = self.state().await;
        let network = state.desired.network(name);
        network
            .map(|network| self.network_view(&state, network))
            .ok_or_else(|| Error::unknown_network(name))
    }

    /// Every endpoint.
    pub async fn endpoints(&self) -> Vec<EndpointView> {
        let state = self.state().await;
        let endpoints = state.desired.endpoints.values();
        endpoints
            .map(|endpoint| endpoint_view(&state, endpoint))
            .collect()
    }

    /// One endpoint.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub async fn endpoint_named(&self, name: &str) -> Result<EndpointView, Error> {
        let state = self.state().await;
        let endpoint = state.desired.endpoint(name);
        endpoint
            .map(|endpoint| endpoint_view(&state, endpoint))
            .ok_or_else(|| Error::unknown_endpoint(name))
    }

    /// Publications, those of one endpoint or all.
    ///
    /// # Errors
    /// [`Error::Unknown`] for an endpoint that is not there.
    pub async fn publications(
        &self,
        endpoint: Option<&str>,
    ) -> Result<Vec<PublicationView>, Error> {
        let state = self.state().await;
        let only = match endpoint {
            Some(name) => {
                let found = state.desired.endpoint(name);
                Some(found.ok_or_else(|| Error::unknown_endpoint(name))?.port)
            }
            None => None,
        };
        let publications = state.desired.publications.values();
        Ok(publications
            .filter(|publication| only.is_none_or(|port| publication.target(port).is_some()))
            .map(|publication| self.publication_view(&state, publication))
            .collect())
    }

    /// One publication.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub async fn publication(&self, id: u32) -> Result<PublicationView, Error> {
        let state = self.state().await;
        let found = state.desired.publications.get(&id);
        let view = found.map(|publication| self.publication_view(&state, publication));
        view.ok_or_else(|| Error::unknown_publication(id))
    }

    fn publication_view(&self, state: &State, publication: &Publication) -> PublicationView {
        let view = |target: &PublicationTarget| TargetView {
            endpoint: endpoint_name(state, target.endpoint),
            inside_port_first: target.inside_port_first,
            spec: spec_text(publication, target),
            weight: target.weight,
            state: duty_label(target.duty).to_owned(),
            live_sessions: topology::accounts_of(publication, target)
                .map(|account| self.nat().live_sessions(account))
                .sum(),
        };
        let targets: Vec<TargetView> = publication.targets.iter().map(view).collect();
        let (endpoint, inside_port_first, spec) = match targets.first() {
            Some(first) => (
                first.endpoint.clone(),
                first.inside_port_first,
                first.spec.clone(),
            ),
            None => Default::default(),
        };
        PublicationView {
            id: publication.id,
            endpoint,
            transport: transport_label(publication.transport).to_owned(),
            host_ip: publication.host_ip.map(|ip| ip.to_string()),
            uplink: publication.uplink.clone(),
            host_port_first: *publication.host_ports.start(),
            host_port_last: *publication.host_ports.end(),
            inside_port_first,
            from: publication.from.map(|prefix| prefix.to_string()),
            spec,
            balance: balance_label(publication.balance).to_owned(),
            targets,
        }
    }

    /// What each target of a publication, and each network, has carried.
    pub async fn nat_rules(&self) -> Vec<RuleView> {
        let state = self.state().await;
        let accounts = self.nat().accounts();
        let sum = |wanted: &mut dyn Iterator<Item = Account>| {
            let mut sum = Totals::default();
            for totals in wanted.filter_map(|account| accounts.get(&account)) {
                sum += *totals;
            }
            sum
        };
        let mut views = Vec::new();
        for publication in state.desired.publications.values() {
            for target in &publication.targets {
                let totals = sum(&mut topology::accounts_of(publication, target));
                let endpoint = state.desired.endpoints.get(&target.endpoint);
                let network = endpoint.and_then(|endpoint| state.desired.network_of(endpoint));
                views.push(RuleView {
                    publication: Some(publication.id),
                    spec: Some(spec_text(publication, target)),
                    endpoint: Some(endpoint_name(&state, target.endpoint)),
                    ..rule_view("publish", network, &totals)
                });
            }
        }
        for network in state.desired.networks.values() {
            let totals = sum(&mut std::iter::once(Account::Network(network.domain)));
            views.push(rule_view("masquerade", Some(network), &totals));
        }
        views
    }

    /// Every switch port, with counters.
    pub fn ports(&self) -> Vec<PortView> {
        let topology = self.dataplane.topology();
        let stats = self.dataplane.stats();
        let view = |port: &dataplane_core::topology::Port| {
            let counters = stats.port(port.id).cloned().unwrap_or_default();
            let (role, network) = match port.role {
                Role::Bridge(domain) if is_mirror_file(port.id) => {
                    ("mirror-file", Some(network_name(&topology, domain)))
                }
                Role::Bridge(domain) => ("endpoint", Some(network_name(&topology, domain))),
                Role::HostLink => ("host-link", None),
                Role::Uplink(_) => ("uplink", None),
            };
            let bridged = matches!(port.role, Role::Bridge(_));
            let usage = self.dataplane.fdb().usage_of(port.id);
            PortView {
                port: port.id.0,
                name: port.name.to_string(),
                role: role.to_owned(),
                network,
                up: port.up,
                blocked_seconds: self.blocked.time_left(port.id).map(|left| left.as_secs()),
                mtu: port.mtu,
                rx_frames: counters.rx_frames,
                rx_bytes: counters.rx_bytes,
                rx_missed: counters.rx_missed,
                rx_malformed: counters.rx_malformed,
                tx_frames: counters.sent_frames,
                tx_bytes: counters.sent_bytes,
                tx_dropped: counters.drops.iter().map(|(_, count)| count).sum(),
                tx_lost: counters.tx_lost,
                flags: bridged.then(|| port.flags.into()),
                mac_limit: port.profile.mac_limit,
                stations: usage.stations,
                mac_limit_refused: usage.refused,
                mac_nat: port.profile.mac_nat.as_ref().map(|nat| nat.mac.to_string()),
                storm: self.storm_views(port),
                links: link_views(&stats, port),
                connection: None,
            }
        };
        topology.ports.iter().flatten().map(view).collect()
    }

    fn storm_views(&self, port: &dataplane_core::topology::Port) -> Vec<StormView> {
        let view = |class: FloodClass| StormView {
            class: class.label().to_owned(),
            limit: port.profile.storm.of(class).map(|limit| limit.to_string()),
            dropped: self.dataplane.storm().dropped(port.id, class),
        };
        match port.role {
            Role::Bridge(_) => FloodClass::ALL.map(view).into(),
            Role::HostLink | Role::Uplink(_) => Vec::new(),
        }
    }

    /// One switch port, by its name or its id.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn port(&self, name: &str) -> Result<PortView, Error> {
        let id = port_id(name);
        let mut ports = self.ports().into_iter();
        ports
            .find(|port| port.name == name || Some(port.port) == id)
            .ok_or_else(|| Error::unknown_port(name))
    }

    /// NAT sessions, at most `SESSIONS_LISTED_MAX`.
    pub fn nat_sessions(&self) -> Vec<SessionView> {
        let topology = self.dataplane.topology();
        let now = self.dataplane.now();
        let sessions = self.nat().sessions(SESSIONS_LISTED_MAX);
        sessions
            .into_iter()
            .map(|session| SessionView {
                protocol: format!("{:?}", session.protocol).to_lowercase(),
                network: network_name(&topology, session.domain),
                inside: session.inside.to_string(),
                external: session.external.to_string(),
                remote: session.remote.to_string(),
                state: format!("{:?}", session.state).to_lowercase(),
                published: session.rule.is_some(),
                age_seconds: session.age(now).as_secs(),
                idle_seconds: session.idle(now).as_secs(),
                packets_out: session.packets_out,
                packets_in: session.packets_in,
                bytes_out: session.bytes_out,
                bytes_in: session.bytes_in,
            })
            .collect()
    }

    /// Drop reasons that have happened.
    pub fn drops(&self) -> Vec<DropView> {
        let topology = self.dataplane.topology();
        let stats = self.dataplane.stats();
        let silent = stats.drops.iter().map(|(_, count)| count);
        let told = stats.refusals.iter().zip(silent);
        let forwarding = told.map(|((reason, answered), silent)| DropView {
            stage: reason.stage().to_string(),
            reason: reason.label().to_owned(),
            port: None,
            count: silent + answered,
            answered: *answered,
            meaning: reason.sentence().to_owned(),
        });
        let ports = stats.ports.iter().flat_map(|port| {
            let name = port_name(&topology, port.port);
            port.drops.iter().map(move |(reason, count)| DropView {
                stage: Stage::Egress.to_string(),
                reason: reason.label().to_owned(),
                port: Some(name.clone()),
                count: *count,
                answered: 0,
                meaning: reason.sentence().to_owned(),
            })
        });
        forwarding
            .chain(ports)
            .filter(|view| view.count > 0)
            .collect()
    }

    /// A traced frame in words.
    pub fn trace_view(&self, record: &Record) -> TraceView {
        let topology = self.dataplane.topology();
        let lines = explain::explain(&record.steps, &topology);
        TraceView {
            sequence: record.sequence,
            at_nanos: since_start(record.at.since(self.config.dataplane.clock_start)),
            port: record.ingress.0,
            port_name: port_name(&topology, record.ingress),
            size: record.size,
            summary: explain::summary(&record.before),
            steps: lines
                .into_iter()
                .map(|line| StepView {
                    stage: line.stage.to_owned(),
                    text: line.text,
                })
                .collect(),
            outcome: match record.verdict.kind() {
                Ok(kind) => kind.label().to_owned(),
                Err(reason) => reason.label().to_owned(),
            },
            egress: record
                .egress
                .iter()
                .map(|port| port_name(&topology, *port))
                .collect(),
        }
    }

    /// The daemon at a glance.
    pub async fn status(&self) -> StatusView {
        let state = self.state().await;
        let stats = self.dataplane.stats();
        let topology = self.dataplane.topology();
        let loads = self.dataplane.loads();
        let uplinks = topology.uplinks.iter().map(|uplink| UplinkView {
            name: uplink.name.to_string(),
            up: topology.port_up(uplink.port).is_some(),
            addresses: uplink.addresses.iter().map(ToString::to_string).collect(),
        });
        let verdicts = stats.verdicts.iter().map(|(kind, count)| CountView {
            label: kind.label().to_owned(),
            count: *count,
        });
        let features = self.features(&state);
        let usage = self.nat_usage_of(&state);
        let mut warnings = warnings(&state);
        warnings.extend(self.pressure_warnings(&state, &usage));
        warnings.extend(features::warnings(&features));
        StatusView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            state_dir: self.config.state_dir.display().to_string(),
            netns_inode: self.host.id().inode(),
            workers: self.dataplane.workers(),
            worker_loads: worker_loads(&loads),
            port_loads: port_loads(&loads, &topology),
            generation: topology.generation,
            networks: state.desired.networks.len(),
            endpoints: state.desired.endpoints.len(),
            publications: state.desired.publications.len(),
            nat_sessions: self.nat().session_count(),
            nat: Some(usage),
            uplinks: uplinks.collect(),
            host_link: state.host_link.map(|_| host_link::IFNAME.to_owned()),
            rx_frames: stats.rx,
            verdicts: verdicts.collect(),
            dropped: stats.drops.iter().map(|(_, count)| count).sum(),
            learning: learning(&stats),
            spared: self.spared(&stats),
            api_panics: self.panics.load(Ordering::Relaxed),
            warnings,
            features,
        }
    }
}

/// The links of a port.
fn link_views(stats: &Stats, port: &dataplane_core::topology::Port) -> Vec<LinkView> {
    let links = stats.links.iter().filter(|link| link.port == port.id);
    let view = |link: &LinkStats| {
        let spec = port.profile.links[link.direction as usize];
        let impaired = !spec.impairment.is_none();
        LinkView {
            direction: link.direction.label().to_owned(),
            rate: spec.limit.map(|limit| limit.to_string()),
            impairment: impaired.then(|| spec.impairment.into()),
            held: link.held,
            entered: link.counts.entered,
            passed: link.passed,
            late_nanos: link.late_nanos,
            lost: link.counts.lost,
            rate_limited: link.counts.limited,
            overflowed: link.counts.overflowed,
            duplicated: link.counts.duplicated,
            reordered: link.counts.reordered,
            corrupted: link.counts.corrupted,
        }
    };
    links.map(view).collect()
}

impl Engine {
    /// How many groups are listened to, and what else ports were spared.
    fn spared(&self, stats: &Stats) -> Vec<CountView> {
        let mdb = self.dataplane.mdb();
        let listeners = u64::try_from(mdb.len()).unwrap_or(u64::MAX);
        let counts = [
            ("listeners", listeners),
            ("groups_refused", stats.groups_refused),
            ("queries_sent", mdb.queries_sent()),
            ("answered_for", stats.answered_for),
            ("flows_refused", stats.flows_refused),
        ];
        counts.map(count_view).into()
    }
}

fn count_view((label, count): (&str, u64)) -> CountView {
    CountView {
        label: label.to_owned(),
        count,
    }
}

/// What learning has come to, by label.
fn learning(stats: &Stats) -> Vec<CountView> {
    let counts = [
        ("learned", stats.learned),
        ("moved", stats.moved),
        ("full", stats.learn_full),
        ("mac_limit", stats.learn_limited),
        ("pinned", stats.pinned),
        ("flapping", stats.move_refused),
    ];
    counts.map(count_view).into()
}

fn since_start(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn worker_loads(loads: &Loads) -> Vec<WorkerLoadView> {
    let workers = loads.workers.iter().enumerate();
    workers
        .map(|(worker, load)| WorkerLoadView {
            worker,
            busy: load.busy,
            spinning: load.spinning,
            rx_frames_per_second: load.rx_frames,
            batch_frames: load.batch_frames,
        })
        .collect()
}

fn port_loads(loads: &Loads, topology: &Topology) -> Vec<PortLoadView> {
    let mut ports = loads.ports.clone();
    ports.sort_by(|a, b| b.busy.total_cmp(&a.busy));
    let view = |load: &PortLoad| PortLoadView {
        port: port_name(topology, load.port),
        worker: load.owner,
        busy: load.busy,
        rx_frames_per_second: load.rx_frames,
        rx_bytes_per_second: load.rx_bytes,
        tx_frames_per_second: load.tx_frames,
        tx_bytes_per_second: load.tx_bytes,
    };
    ports.iter().map(view).collect()
}

fn warnings(state: &State) -> Vec<String> {
    let mut warnings = Vec::new();
    for endpoint in state.desired.endpoints.values() {
        if !state.open.contains(&endpoint.port) {
            let name = &endpoint.name;
            warnings.push(format!(
                "endpoint '{name}' is not connected: its device is not open"
            ));
        }
    }
    warnings.extend(nic_warnings(state));
    for publication in state.desired.publications.values() {
        if !state.serves_the_host(publication) {
            let specs = publication.targets.iter();
            let specs = specs.map(|target| spec_text(publication, target)).next();
            let spec = specs.unwrap_or_default();
            warnings.push(format!("{spec} does not serve the host's own connections"));
        }
    }
    warnings
}

fn network_name(topology: &Topology, domain: DomainId) -> String {
    let found = topology.domain(domain);
    found.map_or_else(|| domain.to_string(), |domain| domain.name.to_string())
}

fn port_name(topology: &Topology, port: PortId) -> String {
    let found = topology.port(port);
    found.map_or_else(|| port.to_string(), |port| port.name.to_string())
}

impl Engine {
    fn network_view(&self, state: &State, network: &Network) -> NetworkView {
        let configured = self.config.nat.behaviour_of(network.name.as_str());
        let behaviour = network.nat.behaviour(configured);
        network_view(state, network, behaviour)
    }
}

fn network_view(state: &State, network: &Network, behaviour: Behaviour) -> NetworkView {
    let label = |dependence: Dependence| dependence.label().to_owned();
    let mode = |mode: NatMode| mode.label().to_owned();
    let modes = network.nat_modes();
    NetworkView {
        name: network.name.to_string(),
        subnets: network
            .subnets
            .iter()
            .map(|subnet| SubnetView {
                subnet: subnet.prefix.to_string(),
                gateway: subnet
                    .router()
                    .map_or_else(String::new, |ip| ip.to_string()),
                ip_range: subnet.pool.to_string(),
            })
            .collect(),
        gateway_mac: network.gateway_mac().to_string(),
        internal: network.internal,
        host_link: network.host_link,
        mtu: network.mtu,
        ageing_seconds: network.ageing_seconds,
        stp_frames: network.stp_frames.label().to_owned(),
        loop_detect: network.loop_detect.label().to_owned(),
        vlan_filtering: network.vlans.filtering == VlanFiltering::On,
        gateway_vlan: network.vlans.gateway.0,
        icc: network.icc == Icc::On,
        mcast_snooping: network.flood.mcast_snooping,
        mcast_querier: network.flood.mcast_querier,
        arp_suppression: network.flood.arp_suppression,
        nat_mapping: label(behaviour.mapping),
        nat_filtering: label(behaviour.filtering),
        nat4: mode(modes.v4),
        nat6: mode(modes.v6),
        nat_set: NatSetView {
            mapping: network.nat.mapping.map(label),
            filtering: network.nat.filtering.map(label),
            nat4: network.nat.v4.map(mode),
            nat6: network.nat.v6.map(mode),
        },
        dns: network_dns_words(&network.dns),
        router: match network.router {
            Router::Switch => "switch",
            Router::Lan => "lan",
        }
        .to_owned(),
        nic: nic_view(state, network),
        reservations: state
            .desired
            .reservations
            .iter()
            .filter(|((domain, _), _)| *domain == network.domain)
            .map(|((_, address), holder)| ReservationBody {
                ip: address.to_string(),
                holder: holder.text(),
            })
            .collect(),
        endpoints: state
            .desired
            .endpoints_of(network.domain)
            .filter(|endpoint| !endpoint.comes_with_nic())
            .map(|endpoint| endpoint_view(state, endpoint))
            .collect(),
    }
}

fn nic_view(state: &State, network: &Network) -> Option<NicView> {
    let nic = state.desired.nic_of(network.domain)?;
    let setting = state.desired.nics.get(&nic.port)?;
    let host = setting.host_port;
    let host = host.and_then(|port| state.desired.endpoints.get(&port));
    Some(NicView {
        name: nic.ifname.clone(),
        port: nic.port.0,
        backend: match nic.backend {
            Backend::NicXdp => NicBackend::Xdp.label().to_owned(),
            _ => NicBackend::Packet.label().to_owned(),
        },
        up: state.open.contains(&nic.port),
        host_ifname: host.map(|host| host.ifname.clone()),
        confirm_within_seconds: match setting.confirmation {
            Confirmation::Pending(by) => Some(by.saturating_sub(now_millis()).div_ceil(1_000)),
            Confirmation::Done => None,
        },
    })
}

fn endpoint_view(state: &State, endpoint: &Endpoint) -> EndpointView {
    let network = state.desired.network_of(endpoint);
    let with_len = |address: &std::net::IpAddr| {
        let subnet = network.and_then(|network| network.subnet_of(*address));
        match subnet {
            Some(subnet) => format!("{address}/{}", subnet.prefix.prefix_len()),
            None => address.to_string(),
        }
    };
    EndpointView {
        name: endpoint.name.to_string(),
        network: network.map_or_else(String::new, |network| network.name.to_string()),
        port: endpoint.port.0,
        netns: endpoint.sandbox.path.display().to_string(),
        netns_inode: endpoint.sandbox.inode,
        ifname: endpoint.ifname.clone(),
        mac: endpoint.mac.to_string(),
        addresses: endpoint.addresses.iter().map(with_len).collect(),
        backend: endpoint.backend.label().to_owned(),
        backend_asked: Some(super::choosing::asked(endpoint).label().to_owned()),
        backend_why: endpoint.choice.as_ref().map(|choice| choice.why.clone()),
        links: endpoint.dns.links.iter().map(ToString::to_string).collect(),
        gw_priority: endpoint.gw_priority,
        routes: endpoint.routes.iter().map(ToString::to_string).collect(),
        aliases: endpoint
            .dns
            .aliases
            .iter()
            .map(ToString::to_string)
            .collect(),
        dns: endpoint
            .dns
            .servers
            .iter()
            .map(ToString::to_string)
            .collect(),
        nameservers: network.map_or_else(Vec::new, |network| {
            let servers = nameservers(network).into_iter();
            servers.map(|server| server.to_string()).collect()
        }),
        up: state.open.contains(&endpoint.port),
    }
}

fn endpoint_name(state: &State, port: PortId) -> String {
    let endpoint = state.desired.endpoints.get(&port);
    endpoint.map_or_else(String::new, |endpoint| endpoint.name.to_string())
}

fn rule_view(kind: &str, network: Option<&Network>, totals: &Totals) -> RuleView {
    RuleView {
        kind: kind.to_owned(),
        publication: None,
        spec: None,
        endpoint: None,
        network: network.map_or_else(String::new, |network| network.name.to_string()),
        new_sessions: totals.opened,
        live_sessions: totals.live,
        packets_in: totals.packets_in,
        bytes_in: totals.bytes_in,
        packets_out: totals.packets_out,
        bytes_out: totals.bytes_out,
    }
}

pub(super) fn spec_text(publication: &Publication, target: &PublicationTarget) -> String {
    let extent = publication.host_ports.end() - publication.host_ports.start();
    let last = target.inside_port_first.saturating_add(extent);
    let spec = PublishSpec {
        transport: publication.transport,
        host_ip: publication.host_ip,
        host_ports: Some(publication.host_ports.clone()),
        inside_ports: target.inside_port_first..=last,
    };
    spec.to_string()
}
