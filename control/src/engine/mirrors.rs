//! Mirrors: set, removed, listed.

use dataplane_core::addr::{DomainId, PortId};
use dataplane_core::l2::{MIRRORS_MAX, Mirror, MirrorDirection, MirrorSource};

use super::{Engine, State};
use crate::api::mirrors::MirrorView;
use crate::error::Error;
use crate::events::EventKind;
use crate::model::{MirrorIngress, MirrorSetting, Name, only_shows};

/// A mirror that somebody wants.
#[derive(Clone, Debug)]
pub struct MirrorRequest {
    /// Its name.
    pub name: String,
    /// What is watched.
    pub from: MirrorFrom,
    /// On which ways; both of a port, in of a network when left out.
    pub direction: Option<MirrorDirection>,
    /// Name or id of the port that shows the copies.
    pub to: String,
    /// What that port is besides.
    pub ingress: MirrorIngress,
}

/// What is watched, by name.
#[derive(Clone, Debug)]
pub enum MirrorFrom {
    /// An endpoint's port.
    Port(String),
    /// A network.
    Network(String),
}

impl Engine {
    /// Sets a mirror. It is in force, and kept, when this returns.
    ///
    /// # Errors
    /// Names what is unknown or impossible; nothing is changed.
    pub async fn add_mirror(&self, request: MirrorRequest) -> Result<MirrorView, Error> {
        let mut state = self.state().await;
        let name: Name = request.name.parse()?;
        let setting = self.mirror_of_request(&state, &name, &request)?;
        self.store.put_mirror(&name, setting)?;
        state.desired.mirrors.insert(name.clone(), setting);
        if let Err(error) = self.install(&state) {
            self.store.remove_mirror(&name)?;
            state.desired.mirrors.remove(&name);
            self.install(&state)?;
            return Err(error);
        }
        if setting.ingress == MirrorIngress::Closed {
            self.dataplane.fdb().flush_port(setting.mirror.to);
        }
        let text = format!("shows mirror '{name}'");
        self.tell_mirror(&state, setting.mirror.to, &text);
        Ok(self.mirror_view(&state, &name, setting))
    }

    fn mirror_of_request(
        &self,
        state: &State,
        name: &Name,
        request: &MirrorRequest,
    ) -> Result<MirrorSetting, Error> {
        let mirrors = &state.desired.mirrors;
        if mirrors.contains_key(name) {
            return Err(Error::Exists {
                kind: "mirror",
                name: name.to_string(),
            });
        }
        if mirrors.len() >= MIRRORS_MAX {
            return Err(Error::Limit {
                what: "mirrors",
                max: MIRRORS_MAX,
            });
        }
        let to = self.port_of(state, &request.to)?;
        let (from, usual) = match &request.from {
            MirrorFrom::Port(port) => {
                let port = self.port_of(state, port)?.port;
                (MirrorSource::Port(port), MirrorDirection::Both)
            }
            MirrorFrom::Network(network) => {
                let known = state.desired.network(network);
                let known = known.ok_or_else(|| Error::unknown_network(network))?;
                (MirrorSource::Domain(known.domain), MirrorDirection::In)
            }
        };
        if from == MirrorSource::Port(to.port) {
            return Err(Error::Invalid(format!(
                "port '{}' cannot show itself; give another one by --to",
                to.name
            )));
        }
        if request.ingress == MirrorIngress::Closed {
            check_unset(state, to.port, to.name.as_str())?;
        }
        let direction = request.direction.unwrap_or(usual);
        let to = to.port;
        Ok(MirrorSetting {
            mirror: Mirror {
                from,
                direction,
                to,
            },
            ingress: request.ingress,
        })
    }

    /// Removes a mirror; its port is an ordinary one again, unless another mirror has it.
    ///
    /// # Errors
    /// [`Error::Unknown`]; nothing is changed.
    pub async fn remove_mirror(&self, name: &str) -> Result<(), Error> {
        let mut state = self.state().await;
        let unknown = || Error::Unknown {
            kind: "mirror",
            name: name.to_owned(),
            list: "mirror ls",
        };
        let key: Name = name.parse().map_err(|_| unknown())?;
        let setting = state.desired.mirrors.get(&key).copied();
        let setting = setting.ok_or_else(unknown)?;
        self.store.remove_mirror(&key)?;
        state.desired.mirrors.remove(&key);
        self.install(&state)?;
        let text = format!("no longer shows mirror '{name}'");
        self.tell_mirror(&state, setting.mirror.to, &text);
        Ok(())
    }

    /// The mirrors, by name.
    pub async fn mirrors(&self) -> Vec<MirrorView> {
        let state = self.state().await;
        let mirrors = state.desired.mirrors.iter();
        mirrors
            .map(|(name, setting)| self.mirror_view(&state, name, *setting))
            .collect()
    }

    /// Forgets the mirrors of a port that is gone, and with it has left the store.
    pub(super) fn drop_mirrors_of_port(&self, state: &mut State, port: PortId) {
        state.desired.mirrors.retain(|_, setting| {
            setting.mirror.to != port && setting.mirror.from != MirrorSource::Port(port)
        });
    }

    /// The same of a network.
    pub(super) fn drop_mirrors_of_network(&self, state: &mut State, domain: DomainId) {
        let gone = MirrorSource::Domain(domain);
        let mirrors = &mut state.desired.mirrors;
        mirrors.retain(|_, setting| setting.mirror.from != gone);
    }

    fn tell_mirror(&self, state: &State, port: PortId, what: &str) {
        if let Some(endpoint) = state.desired.endpoints.get(&port) {
            let text = format!("port '{}' {what}", endpoint.name);
            self.tell_port(state, EventKind::PortChanged, endpoint, text);
        }
    }

    fn mirror_view(&self, state: &State, name: &Name, setting: MirrorSetting) -> MirrorView {
        let MirrorSetting { mirror, ingress } = setting;
        let port_name = |port: PortId| {
            let endpoint = state.desired.endpoints.get(&port);
            endpoint.map_or_else(|| port.to_string(), |endpoint| endpoint.name.to_string())
        };
        let (port, network) = match mirror.from {
            MirrorSource::Port(port) => (Some(port_name(port)), None),
            MirrorSource::Domain(domain) => {
                let network = state.desired.networks.get(&domain);
                (None, network.map(|network| network.name.to_string()))
            }
        };
        let stats = self.dataplane.stats();
        let counts = stats.port(mirror.to);
        MirrorView {
            name: name.to_string(),
            port,
            network,
            direction: mirror.direction.label().to_owned(),
            to: port_name(mirror.to),
            ingress: ingress == MirrorIngress::Open,
            copies: counts.map_or(0, |port| port.mirrored),
            dropped: counts.map_or(0, |port| port.drops.iter().map(|(_, count)| count).sum()),
        }
    }
}

/// A port that only shows copies is nobody's place: no entry that was set may lead there.
fn check_unset(state: &State, port: PortId, name: &str) -> Result<(), Error> {
    let listeners = state.desired.mdb.iter().filter(|l| l.port == port).count();
    if listeners > 0 {
        return Err(Error::InUse(format!(
            "port '{name}' is set to listen to {listeners} groups, which nothing would reach it of; \
             take that back by `causeway mdb del`, or add --ingress"
        )));
    }
    let set = state.desired.fdb.iter();
    match set.filter(|(_, setting)| setting.port == port).count() {
        0 => Ok(()),
        count => Err(Error::InUse(format!(
            "port '{name}' has {count} static or local FDB entries, which would lead nowhere; remove \
             them by `causeway fdb del`, or add --ingress"
        ))),
    }
}

/// Whether stations may be set on a port.
pub(super) fn check_ordinary(state: &State, port: PortId, name: &str) -> Result<(), Error> {
    if !only_shows(&state.desired.mirrors, port) {
        return Ok(());
    }
    Err(Error::InUse(format!(
        "port '{name}' shows a mirror and is nobody's place; name another one, or see `causeway mirror \
         ls`"
    )))
}
