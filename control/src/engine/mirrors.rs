//! Mirrors: set, removed, listed.

use dataplane_core::addr::{DomainId, PortId};
use dataplane_core::l2::{MIRRORS_MAX, Mirror, MirrorDirection, MirrorSource};

use super::{Engine, State};
use crate::api::mirrors::MirrorView;
use crate::error::Error;
use crate::events::EventKind;
use crate::model::{FileTarget, MirrorIngress, MirrorSetting, Name, only_shows};

/// A mirror that somebody wants.
#[derive(Clone, Debug)]
pub struct MirrorRequest {
    /// Its name.
    pub name: String,
    /// What is watched.
    pub from: MirrorFrom,
    /// On which ways; both of a port, in of a network when left out.
    pub direction: Option<MirrorDirection>,
    /// Where the copies go.
    pub to: MirrorTo,
}

/// Where copies go.
#[derive(Clone, Debug)]
pub enum MirrorTo {
    /// To the port of that name or id, and what it is besides.
    Port(String, MirrorIngress),
    /// To a file.
    File(FileTarget),
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
        check_new(&state, &name)?;
        let (from, usual) = self.mirror_source(&state, &request.from)?;
        let direction = request.direction.unwrap_or(usual);
        match request.to {
            MirrorTo::Port(port, ingress) => {
                let to = self.port_to_show(&state, &port, from, ingress)?;
                let mirror = Mirror {
                    from,
                    direction,
                    to,
                };
                let setting = MirrorSetting { mirror, ingress };
                self.add_port_mirror(&mut state, &name, setting)?;
                Ok(self.mirror_view(&state, &name, setting))
            }
            MirrorTo::File(target) => {
                self.add_mirror_file(&mut state, &name, (from, direction), target)
            }
        }
    }

    fn add_port_mirror(
        &self,
        state: &mut State,
        name: &Name,
        setting: MirrorSetting,
    ) -> Result<(), Error> {
        self.store.put_mirror(name, setting)?;
        state.desired.mirrors.insert(name.clone(), setting);
        if let Err(error) = self.install(state) {
            self.store.remove_mirror(name)?;
            state.desired.mirrors.remove(name);
            self.install(state)?;
            return Err(error);
        }
        if setting.ingress == MirrorIngress::Closed {
            self.dataplane.fdb().flush_port(setting.mirror.to);
        }
        let text = format!("shows mirror '{name}'");
        self.tell_mirror(state, setting.mirror.to, &text);
        Ok(())
    }

    /// What is watched, and on which ways where nobody says.
    fn mirror_source(
        &self,
        state: &State,
        from: &MirrorFrom,
    ) -> Result<(MirrorSource, MirrorDirection), Error> {
        match from {
            MirrorFrom::Port(port) => {
                let port = self.port_of(state, port)?.port;
                Ok((MirrorSource::Port(port), MirrorDirection::Both))
            }
            MirrorFrom::Network(network) => {
                let known = state.desired.network(network);
                let known = known.ok_or_else(|| Error::unknown_network(network))?;
                Ok((MirrorSource::Domain(known.domain), MirrorDirection::In))
            }
        }
    }

    fn port_to_show(
        &self,
        state: &State,
        name: &str,
        from: MirrorSource,
        ingress: MirrorIngress,
    ) -> Result<PortId, Error> {
        let to = self.port_of(state, name)?;
        if from == MirrorSource::Port(to.port) {
            return Err(Error::Invalid(format!(
                "port '{}' cannot show itself; give another one by --to",
                to.name
            )));
        }
        if ingress == MirrorIngress::Closed {
            check_unset(state, to.port, to.name.as_str())?;
        }
        Ok(to.port)
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
        if state.desired.mirror_files.contains_key(&key) {
            return self.remove_mirror_file(&mut state, &key);
        }
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
        let to_ports = mirrors.map(|(name, setting)| self.mirror_view(&state, name, *setting));
        let files = state.desired.mirror_files.iter();
        let to_files = files.map(|(name, setting)| self.mirror_file_view(&state, name, setting));
        let mut views: Vec<_> = to_ports.chain(to_files).collect();
        views.sort_by(|a, b| a.name.cmp(&b.name));
        views
    }

    /// Forgets the mirrors of a port that is gone, and with it has left the store.
    pub(super) fn drop_mirrors_of_port(&self, state: &mut State, port: PortId) {
        state.desired.mirrors.retain(|_, setting| {
            setting.mirror.to != port && setting.mirror.from != MirrorSource::Port(port)
        });
        self.drop_mirror_files_from(state, MirrorSource::Port(port));
    }

    /// The same of a network.
    pub(super) fn drop_mirrors_of_network(&self, state: &mut State, domain: DomainId) {
        let gone = MirrorSource::Domain(domain);
        let mirrors = &mut state.desired.mirrors;
        mirrors.retain(|_, setting| setting.mirror.from != gone);
        self.drop_mirror_files_from(state, gone);
    }

    fn tell_mirror(&self, state: &State, port: PortId, what: &str) {
        if let Some(endpoint) = state.desired.endpoints.get(&port) {
            let text = format!("port '{}' {what}", endpoint.name);
            self.tell_port(state, EventKind::PortChanged, endpoint, text);
        }
    }

    fn mirror_view(&self, state: &State, name: &Name, setting: MirrorSetting) -> MirrorView {
        let MirrorSetting { mirror, ingress } = setting;
        MirrorView {
            to: port_name(state, mirror.to),
            ingress: ingress == MirrorIngress::Open,
            ..self.mirror_view_of(state, name, mirror)
        }
    }

    /// What is the same of mirrors to ports and to files.
    pub(super) fn mirror_view_of(&self, state: &State, name: &Name, mirror: Mirror) -> MirrorView {
        let (port, network) = match mirror.from {
            MirrorSource::Port(port) => (Some(port_name(state, port)), None),
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
            to: String::new(),
            ingress: false,
            copies: counts.map_or(0, |port| port.mirrored),
            dropped: counts.map_or(0, |port| port.drops.iter().map(|(_, count)| count).sum()),
            file: None,
        }
    }
}

fn port_name(state: &State, port: PortId) -> String {
    let endpoint = state.desired.endpoints.get(&port);
    endpoint.map_or_else(|| port.to_string(), |endpoint| endpoint.name.to_string())
}

fn check_new(state: &State, name: &Name) -> Result<(), Error> {
    let desired = &state.desired;
    if desired.mirrors.contains_key(name) || desired.mirror_files.contains_key(name) {
        return Err(Error::Exists {
            kind: "mirror",
            name: name.to_string(),
        });
    }
    if desired.mirrors.len() + desired.mirror_files.len() >= MIRRORS_MAX {
        return Err(Error::Limit {
            what: "mirrors",
            max: MIRRORS_MAX,
        });
    }
    Ok(())
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
