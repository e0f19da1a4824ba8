//! The running control plane: what requests change, and how it reaches the host.
//!
//! # Theory of operation
//! One mutex holds `State`; a request holds it from its first check to its answer, so requests
//! see each other's effects whole. Each change goes the same way: check, write the intent to the
//! store, change the host, install the topology, write the result, answer. A step that fails
//! undoes those before it, and the error names the object. A crash between two steps leaves an
//! intent in the store, which the next start undoes or finishes ([`crate::plan`]).
//!
//! The dataplane never waits for this mutex; frames flow while control is busy or broken.

mod addresses;
mod background;
mod choosing;
mod claims;
mod clean;
mod detaching;
mod endpoints;
mod exposure;
mod features;
mod first_start;
mod frames;
mod gone;
mod groups;
mod kept;
mod listening;
mod listings;
mod mac_nat;
mod mirror_files;
mod mirrors;
mod names;
mod networks;
mod nic_checks;
mod nics;
mod ports;
mod pressure;
mod publications;
mod reservations;
mod rules;
mod stations;
mod storms;
mod targets;
mod told;
mod uplinks;
mod vlans;
mod ways_out;
mod wiring;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use dashmap::DashMap;
use dataplane::Dataplane;
use dataplane_core::addr::PortId;
use dataplane_port::packet::FilterHandle;
use dataplane_port::{Capabilities, Negotiated};
use tokio::sync::{Mutex, MutexGuard};

pub use clean::clean;
pub use detaching::DETACHED_MAX;
pub use endpoints::{AttachRequest, Namesake, SandboxRef};
pub use groups::ListenerRequest;
pub use mirrors::{MirrorFrom, MirrorRequest, MirrorTo};
pub use names::NameQuestion;
pub use networks::{LanGateway, NetworkChange, NetworkRequest};
pub use nics::{HostAddress, NicChange, NicMacs, NicRequest, WITHIN_SECONDS_DEFAULT};
pub(crate) use nics::{Which, give_nics_back};
pub use publications::{Clash, PublishRequest};
pub use rules::RulePlace;
pub use stations::FdbRequest;
pub use targets::TargetChange;

use kept::keeper;
use wiring::Blocked;

use crate::config::Config;
use crate::device::{Devices, Queues};
use crate::error::Error;
use crate::events::{EventKind, Events, Subject};
use crate::host_link::{self, HostLink};
use crate::hostnet::HostState;
use crate::keep::Keeper;
use crate::lifeline::Lifeline;
use crate::link::Netlink;
use crate::link::inet::Route;
use crate::model::{DesiredState, Endpoint, Name, Network};
use crate::names::ResolvConf;
use crate::netns::Netns;
use crate::parts::Parts;
use crate::plan::{self, Action, Observed, ObservedSandbox};
use crate::relay::{Budget, Listeners};
use crate::serving::Serving;
use crate::store::Store;
use crate::topology::{self, HostLinkPort, UplinkPort};

/// How often one convergence reads the host. The second reading misses nothing, unless somebody
/// changes the host meanwhile.
const ROUNDS_MAX: usize = 4;

/// The control plane of one daemon.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    store: Store,
    _serving: Serving,
    dataplane: Arc<Dataplane>,
    host: Netns,
    netlink: Netlink,
    devices: Devices,
    host_link: HostLink,
    budget: Budget,
    /// What writes sessions, where they are kept. Locked for a write, under `state` or alone.
    keeper: Option<std::sync::Mutex<Keeper>>,
    state: Mutex<State>,
    started: Instant,
    events: Events,
    /// Ports that are part of a loop.
    blocked: Blocked,
    /// What the pictures have of the endpoints. Locked under `state`.
    parts: std::sync::Mutex<Parts>,
    /// What the host's resolver is told.
    resolver: names::HostResolver,
    /// What the files of named sandboxes say, as this daemon has written them.
    resolv_confs: DashMap<String, ResolvConf>,
    /// Handlers that panicked.
    pub panics: AtomicU64,
}

/// What changes while the daemon runs.
#[derive(Debug, Default)]
struct State {
    desired: DesiredState,
    /// Endpoint ports that the dataplane has open.
    open: BTreeSet<PortId>,
    /// What the open ports take, as their kernel devices said.
    capabilities: BTreeMap<PortId, Capabilities>,
    /// What else was negotiated of them.
    negotiated: BTreeMap<PortId, Vec<Negotiated>>,
    host: HostState,
    /// The reading whose links, addresses and routes were followed last.
    followed: HostState,
    /// The last convergence ended before a reading missed nothing, so the next is followed whatever it
    /// says.
    unsettled: bool,
    host_link: Option<HostLinkPort>,
    uplinks: Vec<UplinkPort>,
    /// The socket filters of the uplinks.
    filters: BTreeMap<PortId, Vec<FilterHandle>>,
    listeners: BTreeMap<u32, Listeners>,
    /// What answers the host at gateways.
    name_listeners: names::Listeners,
    /// Next hops that we made the kernel keep resolved, by link.
    managed: BTreeSet<(u32, IpAddr)>,
    /// Addresses that the installed picture may translate to.
    addresses: BTreeSet<IpAddr>,
    /// Ports of veths whose far end is down, so that nobody is behind them.
    unplugged: BTreeSet<PortId>,
    /// What was told of loops.
    sighted: wiring::Sighted,
    /// Storms that storm control is holding back.
    storms: storms::Storms,
    /// The files of mirrors that are being written.
    mirror_files: BTreeMap<Name, mirror_files::Running>,
    /// Claims of addresses that were told of lately.
    claimed: claims::Claimed,
    /// What the slots of rules had counted when they were given to theirs.
    rule_counts: BTreeMap<u16, (u64, u64)>,
    /// What was told of the NAT's limits.
    pressure: pressure::Pressure,
    /// Who gives the host its NICs back when this daemon is gone.
    lifeline: Option<Lifeline>,
}

impl State {
    /// The addresses of all uplinks.
    fn uplink_addresses(&self) -> Vec<IpAddr> {
        let links = self.uplinks.iter().map(|uplink| uplink.link);
        links
            .flat_map(|link| self.host.addresses_of(link))
            .collect()
    }

    fn note_capabilities(&mut self, port: PortId, queues: &Queues) {
        // Every queue of a device was opened the same way.
        if let Some(queue) = queues.first() {
            self.capabilities.insert(port, queue.capabilities());
            let negotiated = queue.negotiated();
            for Negotiated {
                feature,
                wanted,
                used,
            } in negotiated.iter().filter(|it| it.wanted != it.used)
            {
                tracing::warn!(%port, feature, wanted, used, "the kernel refuses what is best");
            }
            self.negotiated.insert(port, negotiated);
        }
    }
}

impl Engine {
    /// Starts the dataplane, adopts what an earlier daemon has left, and brings the host to what
    /// the store says.
    ///
    /// # Errors
    /// When the state is locked or unreadable, the rights are missing, or an uplink cannot be
    /// opened. What is wrong with single endpoints is logged instead; the others must work.
    pub async fn start(config: Config) -> Result<Arc<Self>, Error> {
        let store = Store::open_when_free(&config.state_dir).await?;
        let serving = Serving::claim().await?;
        let host = Netns::current()?;
        let netlink = Netlink::open(&host)?;
        let dataplane = Arc::new(Dataplane::start(&config.dataplane)?);
        let workers = dataplane.workers();
        let instance = store.instance().to_owned();
        let desired = store.load()?;
        let keeper = keeper(&config, &dataplane)?;
        let engine = Arc::new(Self {
            devices: Devices {
                host: host.clone(),
                netlink: netlink.clone(),
                instance: instance.clone(),
                workers,
                busy_poll_frames: config.busy_poll_frames,
            },
            host_link: HostLink {
                host: host.clone(),
                netlink: netlink.clone(),
                instance,
                workers,
            },
            config,
            store,
            _serving: serving,
            dataplane,
            host,
            netlink,
            budget: Budget::default(),
            keeper,
            state: Mutex::new(State {
                desired,
                ..State::default()
            }),
            started: Instant::now(),
            events: Events::default(),
            blocked: Blocked::default(),
            parts: std::sync::Mutex::default(),
            resolver: names::HostResolver::default(),
            resolv_confs: DashMap::new(),
            panics: AtomicU64::new(0),
        });
        engine.resolver.read(&engine.config.dns);
        let mut state = engine.state.lock().await;
        state.host = HostState::read(&engine.netlink).await?;
        engine.host_link.find(&state.host)?;
        // Before the first frame: one that comes earlier would make a mapping of its own.
        engine.restore_sessions(&state)?;
        engine.open_mirror_files(&mut state);
        engine.open_uplinks(&mut state).await?;
        engine.prepare_nics(&mut state).await?;
        for (action, error) in engine.converge(&mut state).await? {
            tracing::error!(?action, %error, "cannot bring the host to the wanted state");
        }
        engine.take_prepared_nics(&mut state).await;
        engine.open_all_listeners(&mut state).await;
        engine.write_resolv_confs(&state);
        drop(state);
        engine.make_default_network().await?;
        Ok(engine)
    }

    async fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().await
    }

    /// Reads the host, does what is missing and installs the topology. Returns what failed.
    ///
    /// # Errors
    /// When the host cannot be read or the dataplane does not answer.
    async fn converge(&self, state: &mut State) -> Result<Vec<(Action, Error)>, Error> {
        let guarded = state.uplink_addresses();
        let failed = self.do_what_is_missing(state).await?;
        if state.uplink_addresses() != guarded {
            // Before the picture has an address, for the host must not answer there either.
            self.refresh_uplinks(state)?;
        }
        self.keep_next_hops(state).await;
        self.install(state)?;
        self.end_sessions_of_lost_addresses(state);
        self.follow_name_services(state).await;
        Ok(failed)
    }

    /// Reads the host and does what is missing, until a reading misses nothing or only what cannot be
    /// done. Returns what failed.
    ///
    /// No other reading may count as known: what somebody took from the host before it, or between two
    /// of its parts, would never be missed.
    async fn do_what_is_missing(&self, state: &mut State) -> Result<Vec<(Action, Error)>, Error> {
        let mut failed = Vec::new();
        let mut tried = Vec::new();
        state.unsettled = true;
        for _ in 0..ROUNDS_MAX {
            state.host = HostState::read(&self.netlink).await?;
            self.adopt_host_link(state).await?;
            let observed = self.observe(state).await?;
            let actions = plan::plan(&state.desired, &observed);
            if actions.is_empty() {
                state.unsettled = false;
                return Ok(Vec::new());
            }
            if !failed.is_empty() && actions.iter().all(|action| tried.contains(action)) {
                state.unsettled = false;
                return Ok(failed);
            }
            failed = self.carry_out(state, &actions).await;
            tried = actions;
        }
        Ok(failed)
    }

    /// Does what a plan says. Returns what failed.
    async fn carry_out(&self, state: &mut State, actions: &[Action]) -> Vec<(Action, Error)> {
        let mut failed = Vec::new();
        let (removals, others): (Vec<Action>, Vec<Action>) = actions
            .iter()
            .partition(|action| removed(**action).is_some());
        // Together, because each picture that is put in force costs what all endpoints do.
        if let Some(first) = removals.first() {
            tracing::info!(?removals, "changing the host");
            let ports: Vec<PortId> = removals.iter().copied().filter_map(removed).collect();
            if let Err(error) = self.remove_endpoints(state, &ports).await {
                failed.push((*first, error));
            }
        }
        for action in others {
            tracing::info!(?action, "changing the host");
            if let Err(error) = self.apply(state, action).await {
                failed.push((action, error));
            }
        }
        failed
    }

    /// Converges, and takes the first failure for the caller's.
    async fn converge_or_fail(&self, state: &mut State) -> Result<(), Error> {
        let failed = self.converge(state).await?;
        failed
            .into_iter()
            .next()
            .map_or(Ok(()), |(_, error)| Err(error))
    }

    /// Follows the host as it is now: when it has told of a change, and for a request whose interface may
    /// have come a moment ago.
    async fn look_at_host(&self, state: &mut State) -> Result<(), Error> {
        for (action, error) in self.converge(state).await? {
            tracing::warn!(?action, %error, "cannot repair the host");
        }
        Ok(())
    }

    async fn observe(&self, state: &State) -> Result<Observed, Error> {
        let host_link = self
            .host_link
            .find(&state.host)?
            // One that is there but not open is opened by creating it.
            .filter(|_| state.host_link.is_some())
            .map(|link| host_link::observed(&state.host, link));
        let mut closed = BTreeMap::new();
        for endpoint in state.desired.endpoints.values() {
            if !state.open.contains(&endpoint.port) {
                let seen = self.devices.observe(endpoint).await;
                let seen = seen.unwrap_or_else(|error| {
                    tracing::error!(endpoint = %endpoint.name, %error, "cannot look into");
                    ObservedSandbox::WithDevice
                });
                closed.insert(endpoint.port, seen);
            }
        }
        // Without a network on the host link, one of an earlier daemon is removed all the same.
        let left_over = host_link.is_none() && self.host_link.find(&state.host)?.is_some();
        let wanted = state
            .desired
            .networks
            .values()
            .any(|network| network.host_link);
        let host_link = match host_link {
            None if left_over && !wanted => Some(plan::ObservedHostLink::default()),
            other => other,
        };
        Ok(Observed { host_link, closed })
    }

    async fn apply(&self, state: &mut State, action: Action) -> Result<(), Error> {
        match action {
            Action::CreateHostLink => self.create_host_link(state).await,
            Action::RemoveHostLink => self.remove_host_link(state).await,
            Action::SetHostLinkMtu(mtu) => {
                let link = self.open_host_link(state)?;
                self.netlink.set_mtu(link.link, mtu).await?;
                link.mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
                Ok(())
            }
            Action::AddGatewayAddress(address) => {
                let index = self.open_host_link(state)?.link;
                self.host_link.add_address(index, address).await
            }
            Action::RemoveGatewayAddress(address) => {
                let index = self.open_host_link(state)?.link;
                Ok(self.netlink.remove_address(index, address).await?)
            }
            Action::AddSubnetRoute { prefix, source } => {
                let mut route = Route::on_link(prefix, self.open_host_link(state)?.link);
                route.source = Some(source);
                self.host_link.add_route(route).await
            }
            Action::RemoveSubnetRoute { prefix, source } => {
                let mut route = Route::on_link(prefix, self.open_host_link(state)?.link);
                route.source = source;
                Ok(self.netlink.remove_route(route).await?)
            }
            Action::Adopt(port) => self.adopt(state, port).await,
            Action::Recreate(port) => self.recreate(state, port).await,
            Action::UndoAttach(port) | Action::FinishDetach(port) | Action::Forget(port) => {
                self.remove_endpoint(state, port).await
            }
        }
    }

    fn open_host_link<'s>(&self, state: &'s mut State) -> Result<&'s mut HostLinkPort, Error> {
        state.host_link.as_mut().ok_or_else(|| {
            let name = host_link::IFNAME;
            Error::Invalid(format!(
                "the host link {name} could not be opened; see the log"
            ))
        })
    }

    /// Opens the host link of an earlier daemon, as it is, so that the plan sees what differs;
    /// closes one that was deleted.
    async fn adopt_host_link(&self, state: &mut State) -> Result<(), Error> {
        let found = self.host_link.find(&state.host)?.map(|link| link.index);
        let open = state.host_link.map(|link| link.link);
        if open.is_some() && found != open {
            // Somebody deleted it: what we have open leads nowhere.
            state.host_link = None;
            self.blocking(|dataplane| dataplane.remove_port(host_link::PORT))?;
        }
        if state.host_link.is_none() && found.is_some() && wants_host_link(&state.desired) {
            self.create_host_link(state).await?;
        }
        Ok(())
    }

    async fn create_host_link(&self, state: &mut State) -> Result<(), Error> {
        let (queues, link) = self.host_link.open().await?;
        state.note_capabilities(host_link::PORT, &queues);
        let added = self.blocking(|dataplane| dataplane.add_port(host_link::PORT, queues));
        if let Err(error) = added {
            self.host_link.remove(link.index).await?;
            return Err(error.into());
        }
        state.host_link = Some(HostLinkPort {
            link: link.index,
            mac: link.mac.unwrap_or_default(),
            mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX),
        });
        Ok(())
    }

    async fn remove_host_link(&self, state: &mut State) -> Result<(), Error> {
        let found = self.host_link.find(&state.host)?.map(|link| link.index);
        if state.host_link.take().is_some() {
            self.install(state)?;
            self.blocking(|dataplane| dataplane.remove_port(host_link::PORT))?;
        }
        match found {
            Some(index) => self.host_link.remove(index).await,
            None => Ok(()),
        }
    }

    /// Installs the picture of now.
    fn install(&self, state: &State) -> Result<(), Error> {
        let parts = self.parts(&state.desired);
        let inputs = topology::Inputs {
            desired: &state.desired,
            host: &state.host,
            uplinks: &state.uplinks,
            parts: &parts,
            host_link: state.host_link,
            open: &state.open,
            blocked: &self.blocked.ports(),
            nat: &self.config.nat,
            mac_nats: &self.mac_nats(state),
        };
        let topology = topology::build(&inputs, self.dataplane.outdated())
            .map_err(|error| Error::Invalid(error.to_string()))?;
        self.blocking(|dataplane| dataplane.install(topology))?;
        self.show_names(&state.desired, &parts);
        Ok(())
    }

    /// What is made of the endpoints, as of now.
    fn parts(&self, desired: &DesiredState) -> std::sync::MutexGuard<'_, Parts> {
        // One that panicked half-way has left parts that are whole, each of its endpoint.
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.follow(desired);
        parts
    }

    /// Calls the dataplane, which answers when every worker has, so the runtime's other tasks
    /// are moved off this thread meanwhile.
    fn blocking<T>(&self, call: impl FnOnce(&Dataplane) -> T) -> T {
        tokio::task::block_in_place(|| call(&self.dataplane))
    }

    fn endpoint<'s>(&self, state: &'s State, port: PortId) -> Result<&'s Endpoint, Error> {
        let endpoint = state.desired.endpoints.get(&port);
        endpoint.ok_or_else(|| Error::unknown_endpoint(&port.to_string()))
    }

    /// The running dataplane.
    pub fn dataplane(&self) -> &Arc<Dataplane> {
        &self.dataplane
    }

    /// What has happened.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// Tells of an endpoint's port.
    fn tell_port(&self, state: &State, kind: EventKind, endpoint: &Endpoint, text: String) {
        let network = state.desired.network_of(endpoint);
        let network = network.map_or_else(String::new, |network| network.name.to_string());
        let subject = Subject::port(network, &endpoint.name);
        self.events.tell(kind, subject, text);
    }

    /// What the daemon was told.
    pub fn config(&self) -> &Config {
        &self.config
    }
}

/// The endpoint that an action removes, if it does.
const fn removed(action: Action) -> Option<PortId> {
    match action {
        Action::UndoAttach(port) | Action::FinishDetach(port) | Action::Forget(port) => Some(port),
        _ => None,
    }
}

fn wants_host_link(desired: &DesiredState) -> bool {
    let linked = |network: &Network| network.host_link && !network.subnets.is_empty();
    desired.networks.values().any(linked)
}
