//! Network cards as ports of networks, and the host's own addresses moved to a port beside them.
//!
//! # Theory of operation
//! A NIC and the host's port are endpoints of the network that nobody attaches or detaches: they come
//! and go with the network's NIC. The move has these steps, each of which leaves what a crash can
//! undo: what the host has is written down (`recorded`), the host's port is made (`host_port`), the
//! NIC is guarded and opened (`guarded`), addresses are put on the host's port (`addresses`), taken
//! off the NIC (`taken`), routes follow (`routes`), and the store says that they are there (`held`).
//! The way back goes from what is on the host's port then; half-way there, from what was written down.
//!
//! A move that is not confirmed in time is undone. A daemon that dies is waited for by a process of
//! its own, the lifeline ([`crate::lifeline`]), which gives the NIC back when none returns.

use dataplane_core::addr::{DomainId, PortId};
use nix::sys::signal::{Signal, raise};

use super::endpoints::now_millis;
use super::nic_checks::check_fits;
use super::{Engine, State};
use crate::device::Devices;
use crate::error::Error;
use crate::events::{EventKind, Subject};
use crate::lifeline::Lifeline;
use crate::model::{
    Confirmation, DesiredState, Endpoint, Network, NicBackend, NicOrigin, NicSetting, NicStage,
    Phase,
};
use crate::store::Store;

/// Seconds in which a move has to be confirmed, and a daemon to come back, when nobody says another
/// number: long enough to log in again, short enough to wait for.
pub const WITHIN_SECONDS_DEFAULT: u32 = 60;

/// A NIC that somebody wants on a network.
#[derive(Clone, Debug)]
pub struct NicRequest {
    /// The interface's name.
    pub name: String,
    /// What becomes of the host's addresses on it.
    pub address: HostAddress,
    /// By which MACs this side is on the LAN.
    pub macs: NicMacs,
    /// How the card is read.
    pub backend: NicBackend,
}

/// By which MACs stations of this side are on the LAN behind a NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NicMacs {
    /// Each by its own; by the card's where it is wireless.
    Own,
    /// All by the card's.
    Card,
}

/// What becomes of the host's addresses on a NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostAddress {
    /// There must be none.
    Absent,
    /// They move to a port of the host, and that has to be confirmed within so many seconds.
    Moves(u32),
    /// They move, and nobody is asked.
    MovesUnasked,
}

/// What is asked of a network's NIC.
#[derive(Clone, Debug)]
pub enum NicChange {
    /// To have this one.
    Put(NicRequest),
    /// To have none.
    Take,
}

impl Engine {
    /// Gives a network a NIC, or takes the one back that it has.
    ///
    /// # Errors
    /// Names what is in the way; the host is as it was.
    pub async fn set_nic(&self, network: &str, change: NicChange) -> Result<(), Error> {
        let mut state = self.state().await;
        let domain = state.desired.network(network).map(|network| network.domain);
        let domain = domain.ok_or_else(|| Error::unknown_network(network))?;
        let text = match change {
            NicChange::Put(request) => {
                let text = format!("network '{network}' has the NIC '{}'", request.name);
                self.look_at_host(&mut state).await?;
                self.put_nic(&mut state, domain, request, NicOrigin::Change)
                    .await?;
                text
            }
            NicChange::Take => {
                self.take_nic_off(&mut state, domain).await?;
                format!("network '{network}' has no NIC")
            }
        };
        self.tell(EventKind::NetworkChanged, network, text);
        Ok(())
    }

    /// Makes a NIC a port of a network.
    ///
    /// # Errors
    /// Names what is in the way; the host is as it was.
    pub(super) async fn put_nic(
        &self,
        state: &mut State,
        domain: DomainId,
        request: NicRequest,
        origin: NicOrigin,
    ) -> Result<(), Error> {
        let network = network_at(&state.desired, domain)?.clone();
        if let Some(other) = state.desired.nic_of(domain) {
            return Err(Error::InUse(format!(
                "network '{0}' has the NIC '{1}'; take that back first, by `causeway network set {0} \
                 --nic none`",
                network.name, other.ifname
            )));
        }
        let link = self.check_nic(state, &request.name)?.clone();
        let before = self.devices.nic_before(&link).await?;
        check_fits(&network, &link, &before, request.address)?;
        let nic = self.nic_endpoint(state, &network, &link, &request)?;
        let host = match request.address {
            HostAddress::Absent => None,
            HostAddress::Moves(_) | HostAddress::MovesUnasked => {
                Some(self.host_endpoint(state, &network, &nic, &before)?)
            }
        };
        let (within_seconds, confirmation) = match request.address {
            HostAddress::Moves(seconds) => {
                let by = now_millis() + u64::from(seconds) * 1_000;
                (seconds, Confirmation::Pending(by))
            }
            HostAddress::Absent | HostAddress::MovesUnasked => {
                (WITHIN_SECONDS_DEFAULT, Confirmation::Done)
            }
        };
        let setting = NicSetting {
            host_port: host.as_ref().map(|host| host.port),
            stage: NicStage::Moving,
            confirmation,
            within_seconds,
            origin,
            before,
        };
        if host.is_some() {
            self.hold_lifeline(state, within_seconds)?;
        }
        self.record_nic(state, [Some(&nic), host.as_ref()], setting)?;
        self.halt("recorded");
        let port = nic.port;
        if let Err(error) = self.move_in(state, nic, host, &network).await {
            for failure in self.return_nic(state, port, &link.name).await {
                tracing::error!(nic = link.name, error = %failure, "cannot undo");
            }
            return Err(error);
        }
        Ok(())
    }

    /// Writes a NIC down, with its endpoints, before anything is changed.
    fn record_nic(
        &self,
        state: &mut State,
        endpoints: [Option<&Endpoint>; 2],
        setting: NicSetting,
    ) -> Result<(), Error> {
        for endpoint in endpoints.into_iter().flatten() {
            self.store.put_endpoint(endpoint)?;
            state.desired.endpoints.insert(endpoint.clone());
        }
        if let [Some(nic), _] = endpoints {
            self.store.put_nic(nic.port, &setting)?;
            state.desired.nics.insert(nic.port, setting);
        }
        Ok(())
    }

    async fn move_in(
        &self,
        state: &mut State,
        nic: Endpoint,
        host: Option<Endpoint>,
        network: &Network,
    ) -> Result<(), Error> {
        let port = nic.port;
        if let Some(host) = host {
            self.put_in(state, host, network).await?;
            self.halt("host_port");
        }
        self.put_in(state, nic, network).await?;
        self.halt("guarded");
        self.move_ip(state, port).await
    }

    /// Moves addresses and routes from a NIC to the host's port, where there is one.
    async fn move_ip(&self, state: &mut State, port: PortId) -> Result<(), Error> {
        let Some(setting) = state.desired.nics.get(&port).cloned() else {
            return Ok(());
        };
        if let Some(host_port) = setting.host_port {
            let host = self.endpoint(state, host_port)?.clone();
            let nic = self.endpoint(state, port)?.ifname.clone();
            let from = self.netlink.require(&nic).await?;
            let to = self.netlink.require(&host.ifname).await?;
            self.devices.copy_settings(&from.name, &to.name)?;
            let ip = &setting.before.ip;
            all_done(self.netlink.put_addresses(&to, ip).await)?;
            self.halt("addresses");
            all_done(self.netlink.take_ip(&from, ip).await)?;
            self.halt("taken");
            all_done(self.netlink.put_routes(&to, ip).await)?;
            self.halt("routes");
        }
        self.set_stage(state, port, NicStage::Held)?;
        self.halt("held");
        Ok(())
    }

    fn set_stage(&self, state: &mut State, port: PortId, stage: NicStage) -> Result<(), Error> {
        if let Some(setting) = state.desired.nics.get_mut(&port) {
            setting.stage = stage;
            self.store.put_nic(port, setting)?;
        }
        Ok(())
    }

    /// Takes the NIC off a network, and gives the host back what it had. Goes on when a step fails,
    /// and returns what failed.
    async fn return_nic(&self, state: &mut State, port: PortId, nic: &str) -> Vec<Error> {
        let Some(setting) = state.desired.nics.get(&port).cloned() else {
            return Vec::new();
        };
        let mut failed = Vec::new();
        let host = setting.host_port;
        let host = host.and_then(|host| state.desired.endpoints.get(&host).cloned());
        let setting = match read_back(&self.devices, &self.store, port, setting, host).await {
            Ok(setting) => setting,
            Err((setting, error)) => {
                failed.push(error);
                setting
            }
        };
        state.desired.nics.insert(port, setting.clone());
        if let Some(host) = setting.host_port
            && state.desired.endpoints.contains_key(&host)
        {
            failed.extend(self.remove_endpoint(state, host).await.err());
        }
        failed.extend(self.devices.restore_nic(nic, &setting.before).await);
        // Half-way it may not have come to be one.
        if state.desired.endpoints.contains_key(&port) {
            failed.extend(self.remove_endpoint(state, port).await.err());
        }
        state.desired.nics.remove(&port);
        self.let_go_of_lifeline(state);
        failed
    }

    /// Takes the NIC off a network.
    ///
    /// # Errors
    /// What could not be put back as it was; the rest is.
    pub(super) async fn take_nic_off(
        &self,
        state: &mut State,
        domain: DomainId,
    ) -> Result<(), Error> {
        let Some(nic) = state.desired.nic_of(domain) else {
            return Ok(());
        };
        let (port, name) = (nic.port, nic.ifname.clone());
        let failed = self.return_nic(state, port, &name).await;
        match &failed[..] {
            [] => Ok(()),
            failed => {
                let all: Vec<String> = failed.iter().map(ToString::to_string).collect();
                let all = all.join("; ");
                Err(Error::Invalid(format!(
                    "the NIC was given back, but not as it was: {all}"
                )))
            }
        }
    }

    /// Keeps a network's NIC, with the host's addresses moved: the host is still reachable.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::NotAttached`] when there is nothing to confirm.
    pub async fn confirm_nic(&self, network: &str) -> Result<(), Error> {
        let mut state = self.state().await;
        let domain = state.desired.network(network).map(|network| network.domain);
        let domain = domain.ok_or_else(|| Error::unknown_network(network))?;
        let port = state.desired.nic_of(domain).map(|nic| nic.port);
        let setting = port.and_then(|port| Some((port, state.desired.nics.get_mut(&port)?)));
        let Some((port, setting)) = setting.filter(|(_, s)| s.host_port.is_some()) else {
            return Err(Error::NotAttached(format!(
                "network '{network}' has no NIC whose addresses were moved, so there is nothing to \
                 confirm; if the time was over, they are back (`causeway events`)"
            )));
        };
        setting.confirmation = Confirmation::Done;
        self.store.put_nic(port, setting)?;
        let text = format!("the NIC of network '{network}' was confirmed");
        self.tell(EventKind::NetworkChanged, network, text);
        Ok(())
    }

    /// Undoes moves that nobody has confirmed in time, and sees to it that the lifeline lives.
    pub(super) async fn watch_nics(&self) {
        let mut state = self.state().await;
        let now = now_millis();
        let over = |setting: &NicSetting| match setting.confirmation {
            Confirmation::Pending(by) => by <= now,
            Confirmation::Done => false,
        };
        let nics = state.desired.nics.iter();
        let over: Vec<PortId> = nics
            .filter(|(_, setting)| over(setting))
            .map(|(port, _)| *port)
            .collect();
        for port in over {
            self.roll_back(&mut state, port).await;
        }
        let held = within_of(&state.desired);
        if let Some(within) = held
            && let Err(error) = self.hold_lifeline(&mut state, within)
        {
            tracing::error!(%error, "nobody would give the NIC back if this daemon died");
        }
    }

    async fn roll_back(&self, state: &mut State, port: PortId) {
        let Some(nic) = state.desired.endpoints.get(&port).cloned() else {
            return;
        };
        let origin = state.desired.nics.get(&port).map(|setting| setting.origin);
        let network = state.desired.network_of(&nic);
        let network = network.map_or_else(String::new, |network| network.name.to_string());
        let failed = self.return_nic(state, port, &nic.ifname).await;
        let mut text = format!(
            "nobody confirmed the move of '{}' to network '{network}' in time; the host has its \
             addresses and routes on it again",
            nic.ifname
        );
        for error in &failed {
            text.push_str(&format!(", but {error}"));
        }
        self.tell(EventKind::NicReturned, &network, text);
        let used = state.desired.endpoints_of(nic.domain).next().is_some();
        if origin == Some(NicOrigin::Creation)
            && !used
            && let Err(error) = self.drop_network(state, nic.domain).await
        {
            tracing::error!(network, %error, "cannot remove the network that came with the NIC");
        }
    }

    /// Before the first frame, and when the host has changed: undoes what a crash left half-way, and
    /// reads anew what the host has on NICs that are to be taken.
    pub(super) async fn prepare_nics(&self, state: &mut State) -> Result<(), Error> {
        for (port, mut setting) in state.desired.nics.clone() {
            let Some(nic) = state.desired.endpoints.get(&port).cloned() else {
                continue;
            };
            let Some(link) = self.netlink.link(&nic.ifname).await? else {
                continue;
            };
            let here = self.devices.is_at(&link, &setting.before)?;
            let done = setting.confirmation == Confirmation::Done;
            match setting.stage {
                NicStage::Held if here => continue,
                NicStage::Held | NicStage::Returned => {}
                NicStage::Moving => {
                    let desired = &state.desired;
                    for error in
                        give_back(&self.devices, &self.store, desired, port, setting.clone()).await
                    {
                        tracing::error!(nic = nic.ifname, %error, "cannot undo a move");
                    }
                    if !done {
                        let network = state.desired.network_of(&nic);
                        let network = network.map_or_else(String::new, |n| n.name.to_string());
                        let text = format!(
                            "the move of '{}' was cut short, so the host has its addresses and \
                             routes on it again",
                            nic.ifname
                        );
                        self.tell(EventKind::NicReturned, &network, text);
                    }
                    state.desired = self.store.load()?;
                    if !done {
                        continue;
                    }
                }
            }
            // Taken once more, from what the host has on it by now.
            setting.before = self.devices.nic_before(&link).await?;
            let host = setting.host_port;
            let host = host.and_then(|host| state.desired.endpoints.get(&host));
            // Of a card that was pulled and plugged in again the host's port has all that counts.
            if let Some(host) = host
                && setting.before.ip.global_addresses().next().is_none()
                && let Some((_, ip)) = self.devices.ip_of(host).await?
            {
                setting.before.ip = ip;
            }
            setting.stage = NicStage::Moving;
            self.store.put_nic(port, &setting)?;
            state.desired.nics.insert(port, setting);
        }
        Ok(())
    }

    /// Once the ports are open: moves what was prepared to be moved.
    pub(super) async fn take_prepared_nics(&self, state: &mut State) {
        let moving = |(_, setting): &(&PortId, &NicSetting)| setting.stage == NicStage::Moving;
        let nics = state.desired.nics.iter();
        let prepared: Vec<PortId> = nics.filter(moving).map(|(port, _)| *port).collect();
        for port in prepared {
            let nic = state.desired.endpoints.get(&port).cloned();
            let Some(nic) = nic.filter(|_| state.open.contains(&port)) else {
                continue;
            };
            if let Err(error) = self.move_ip(state, port).await {
                let network = state.desired.network_of(&nic);
                let network = network.map_or_else(String::new, |n| n.name.to_string());
                let mut text = format!(
                    "the host's addresses on '{}' cannot move to network '{network}' again: {error}; \
                     the host has them",
                    nic.ifname
                );
                for error in self.return_nic(state, port, &nic.ifname).await {
                    text.push_str(&format!(", but {error}"));
                }
                self.tell(EventKind::NicReturned, &network, text);
            }
        }
        if let Some(within) = within_of(&state.desired)
            && let Err(error) = self.hold_lifeline(state, within)
        {
            tracing::error!(%error, "nobody would give the NIC back if this daemon died");
        }
    }

    /// Puts what was moved on a host's port that somebody has deleted, and that was made anew.
    pub(super) async fn refill_host_port(
        &self,
        state: &State,
        host: &Endpoint,
    ) -> Result<(), Error> {
        let mut nics = state.desired.nics.values();
        let held = nics.find(|setting| setting.host_port == Some(host.port));
        if let Some(setting) = held.filter(|setting| setting.stage == NicStage::Held) {
            let link = self.netlink.require(&host.ifname).await?;
            all_done(self.netlink.put_addresses(&link, &setting.before.ip).await)?;
            all_done(self.netlink.put_routes(&link, &setting.before.ip).await)?;
        }
        Ok(())
    }

    fn hold_lifeline(&self, state: &mut State, within_seconds: u32) -> Result<(), Error> {
        if state
            .lifeline
            .as_mut()
            .is_some_and(|lifeline| lifeline.holds(within_seconds))
        {
            return Ok(());
        }
        let lifeline = Lifeline::start(&self.config.state_dir, within_seconds)?;
        if let Some(earlier) = state.lifeline.replace(lifeline) {
            earlier.release();
        }
        Ok(())
    }

    fn let_go_of_lifeline(&self, state: &mut State) {
        if within_of(&state.desired).is_none()
            && let Some(lifeline) = state.lifeline.take()
        {
            lifeline.release();
        }
    }

    fn tell(&self, kind: EventKind, network: &str, text: String) {
        self.events.tell(kind, Subject::network(network), text);
    }

    /// Dies here, where a test has asked for it.
    fn halt(&self, point: &str) {
        if self.config.die_at.as_deref() == Some(point)
            && let Err(error) = raise(Signal::SIGKILL)
        {
            tracing::error!(%error, "cannot die");
        }
    }
}

/// Notes what is on the host's port, so that it can be put back whatever happens from here on.
async fn read_back(
    devices: &Devices,
    store: &Store,
    port: PortId,
    mut setting: NicSetting,
    host: Option<Endpoint>,
) -> Result<NicSetting, (NicSetting, Error)> {
    // Half-way, what was written down counts, and is written.
    if setting.stage != NicStage::Held {
        return Ok(setting);
    }
    let read = match &host {
        Some(host) => devices.ip_of(host).await,
        None => Ok(None),
    };
    let read = match read {
        Ok(Some((_, ip))) if !ip.is_empty() => {
            setting.before.ip = ip;
            Ok(())
        }
        Ok(_) => Ok(()),
        Err(error) => Err(error),
    };
    setting.stage = NicStage::Moving;
    match read.and_then(|()| Ok(store.put_nic(port, &setting)?)) {
        Ok(()) => Ok(setting),
        Err(error) => Err((setting, error)),
    }
}

/// Gives the host a NIC back without a dataplane: half-way through a move, or when no daemon is there.
/// One that was confirmed is taken again by the next daemon. Goes on when a step fails, and returns
/// what failed.
pub(crate) async fn give_back(
    devices: &Devices,
    store: &Store,
    desired: &DesiredState,
    port: PortId,
    setting: NicSetting,
) -> Vec<Error> {
    let Some(nic) = desired.endpoints.get(&port) else {
        return Vec::new();
    };
    let mut failed = Vec::new();
    let host = setting.host_port;
    let host = host.and_then(|host| desired.endpoints.get(&host));
    let mut setting = match read_back(devices, store, port, setting, host.cloned()).await {
        Ok(setting) => setting,
        Err((setting, error)) => {
            failed.push(error);
            setting
        }
    };
    if let Some(host) = host {
        failed.extend(devices.remove(host).await.err());
    }
    failed.extend(devices.restore_nic(&nic.ifname, &setting.before).await);
    failed.extend(devices.remove(nic).await.err());
    if setting.confirmation == Confirmation::Done {
        setting.stage = NicStage::Returned;
        let parts = [Some(nic), host].into_iter().flatten();
        for part in parts {
            let attached = Endpoint {
                phase: Phase::Attached,
                ..part.clone()
            };
            failed.extend(store.put_endpoint(&attached).err().map(Error::from));
        }
        failed.extend(store.put_nic(port, &setting).err().map(Error::from));
        return failed;
    }
    for part in [Some(port), setting.host_port].into_iter().flatten() {
        failed.extend(store.remove_endpoint(part).err().map(Error::from));
    }
    let parts = [Some(port), setting.host_port];
    let mut others = desired.endpoints_of(nic.domain);
    let used = others.any(|endpoint| !parts.contains(&Some(endpoint.port)));
    if setting.origin == NicOrigin::Creation && !used {
        failed.extend(store.remove_network(nic.domain).err().map(Error::from));
    }
    failed
}

/// Which NICs are given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// Those with the host's addresses. Nobody misses the others until a daemon returns.
    WithAddress,
    /// Each.
    All,
}

/// Gives the host its NICs back, where no daemon runs. Returns what was given back, with what of it
/// failed.
///
/// # Errors
/// When the state cannot be read.
pub(crate) async fn give_nics_back(
    devices: &Devices,
    store: &Store,
    which: Which,
) -> Result<Vec<(String, Vec<Error>)>, Error> {
    let desired = store.load()?;
    let mut done = Vec::new();
    for (port, setting) in &desired.nics {
        let nic = desired.endpoints.get(port);
        let nic = nic.map_or_else(|| port.to_string(), |nic| nic.ifname.clone());
        let meant = which == Which::All || setting.host_port.is_some();
        if setting.stage == NicStage::Returned || !meant {
            continue;
        }
        let what = format!("'{nic}' with {}", setting.before.ip);
        let failed = give_back(devices, store, &desired, *port, setting.clone()).await;
        done.push((what, failed));
    }
    Ok(done)
}

/// For how long the host does without a daemon, where it would have no address then.
fn within_of(desired: &DesiredState) -> Option<u32> {
    let moved = |setting: &&NicSetting| setting.host_port.is_some();
    let nics = desired.nics.values().filter(moved);
    nics.map(|setting| setting.within_seconds).max()
}

fn all_done(failed: Vec<crate::link::Error>) -> Result<(), Error> {
    failed
        .into_iter()
        .next()
        .map_or(Ok(()), |error| Err(error.into()))
}

pub(super) fn network_at(desired: &DesiredState, domain: DomainId) -> Result<&Network, Error> {
    let network = desired.networks.get(&domain);
    network.ok_or_else(|| Error::unknown_network(&domain.to_string()))
}
