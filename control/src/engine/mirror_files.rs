//! Mirrors to files: set, taken up again by the next daemon, watched, removed.

use dataplane_core::addr::PortId;
use dataplane_core::l2::{Mirror, MirrorDirection, MirrorSource};

use super::{Engine, State};
use crate::api::mirrors::{MirrorFileView, MirrorView};
use crate::error::Error;
use crate::events::{EventKind, Subject};
use crate::mirror_file::{MirrorFile, disk};
use crate::model::{
    DesiredState, FileTarget, MIRROR_FILE_PORT_FIRST, MIRROR_FILE_SIZES, MIRROR_FILES_KEPT,
    MIRROR_FILES_MAX, MirrorFileSetting, Name,
};

/// A mirror's file that is being written.
#[derive(Debug)]
pub(super) struct Running {
    port: PortId,
    file: MirrorFile,
    /// The failure that was told of.
    told: Option<String>,
}

impl Engine {
    /// Sets a mirror to a file; its name is new.
    pub(super) fn add_mirror_file(
        &self,
        state: &mut State,
        name: &Name,
        (from, direction): (MirrorSource, MirrorDirection),
        target: FileTarget,
    ) -> Result<MirrorView, Error> {
        check_target(&state.desired, &target)?;
        let to = free_port(&state.desired)?;
        tokio::task::block_in_place(|| disk::check(&target.path))?;
        let mirror = Mirror {
            from,
            direction,
            to,
        };
        let setting = MirrorFileSetting { mirror, target };
        self.open_mirror_file(state, name, &setting)?;
        let kept = self.store.put_mirror_file(name, &setting);
        state
            .desired
            .mirror_files
            .insert(name.clone(), setting.clone());
        let installed = kept.map_err(Error::from).and_then(|()| self.install(state));
        if let Err(error) = installed {
            self.remove_mirror_file(state, name)?;
            return Err(error);
        }
        let path = setting.target.path.display();
        let text = format!("mirror '{name}' writes to '{path}'");
        self.tell_mirror_file(state, EventKind::PortChanged, from, text);
        Ok(self.mirror_file_view(state, name, &setting))
    }

    /// Ends a mirror to a file. Everything is written when this returns.
    pub(super) fn remove_mirror_file(&self, state: &mut State, name: &Name) -> Result<(), Error> {
        self.store.remove_mirror(name)?;
        let removed = state.desired.mirror_files.remove(name);
        self.install(state)?;
        self.close_mirror_files(state);
        if let Some(MirrorFileSetting { mirror, target }) = removed {
            let path = target.path.display();
            let text = format!("mirror '{name}' no longer writes to '{path}'");
            self.tell_mirror_file(state, EventKind::PortChanged, mirror.from, text);
        }
        Ok(())
    }

    /// Takes up the mirrors of an earlier daemon. A file that cannot be written is told of, and
    /// tried again.
    pub(super) fn open_mirror_files(&self, state: &mut State) {
        for (name, setting) in state.desired.mirror_files.clone() {
            if let Err(error) = self.open_mirror_file(state, &name, &setting) {
                tracing::error!(%name, %error, "cannot take up a mirror to a file");
            }
        }
    }

    fn open_mirror_file(
        &self,
        state: &mut State,
        name: &Name,
        setting: &MirrorFileSetting,
    ) -> Result<(), Error> {
        let port = setting.mirror.to;
        let interface = source_name(&state.desired, setting.mirror.from);
        let started = MirrorFile::start(setting.target.clone(), &interface);
        let (file, queue) = started.map_err(|error| Error::io("start a mirror's file", error))?;
        self.blocking(|dataplane| dataplane.add_port(port, vec![Box::new(queue)]))?;
        let told = None;
        state
            .mirror_files
            .insert(name.clone(), Running { port, file, told });
        Ok(())
    }

    /// Forgets the mirrors of what is gone, and with it has left the store.
    pub(super) fn drop_mirror_files_from(&self, state: &mut State, from: MirrorSource) {
        let files = &mut state.desired.mirror_files;
        files.retain(|_, setting| setting.mirror.from != from);
        self.close_mirror_files(state);
    }

    /// Ends what is written for no mirror any more.
    fn close_mirror_files(&self, state: &mut State) {
        let State {
            desired,
            mirror_files,
            ..
        } = state;
        let wanted = |name: &Name| desired.mirror_files.contains_key(name);
        for (name, ended) in mirror_files.extract_if(.., |name, _| !wanted(name)) {
            self.end_mirror_file(&name, &ended);
        }
    }

    fn end_mirror_file(&self, name: &Name, ended: &Running) {
        let removed = self.blocking(|dataplane| dataplane.remove_port(ended.port));
        if let Err(error) = removed {
            tracing::warn!(%name, %error, "cannot end the port of a mirror's file");
        }
        tokio::task::block_in_place(|| ended.file.finish());
    }

    /// Writes what is left for files before the daemon ends.
    pub async fn finish_mirror_files(&self) {
        let mut state = self.state().await;
        for (name, ended) in std::mem::take(&mut state.mirror_files) {
            self.end_mirror_file(&name, &ended);
        }
    }

    /// Tells which files have failed, and which are written again.
    pub(super) async fn watch_mirror_files(&self) {
        let mut state = self.state().await;
        let mut running = std::mem::take(&mut state.mirror_files);
        for (name, file) in &mut running {
            let failure = file.file.failure();
            let setting = state.desired.mirror_files.get(name);
            let Some(setting) = setting.filter(|_| failure != file.told) else {
                continue;
            };
            let (kind, text) = match &failure {
                Some(failure) => {
                    let text = format!("mirror '{name}' loses its copies: {failure}");
                    (EventKind::MirrorFailed, text)
                }
                None => {
                    let path = setting.target.path.display();
                    let text = format!("mirror '{name}' writes to '{path}' again");
                    (EventKind::MirrorResumed, text)
                }
            };
            self.tell_mirror_file(&state, kind, setting.mirror.from, text);
            file.told = failure;
        }
        state.mirror_files = running;
    }

    fn tell_mirror_file(&self, state: &State, kind: EventKind, from: MirrorSource, text: String) {
        match from {
            MirrorSource::Port(port) => {
                if let Some(endpoint) = state.desired.endpoints.get(&port) {
                    self.tell_port(state, kind, endpoint, text);
                }
            }
            MirrorSource::Domain(_) => {
                let subject = Subject::network(source_name(&state.desired, from));
                self.events.tell(kind, subject, text);
            }
        }
    }

    pub(super) fn mirror_file_view(
        &self,
        state: &State,
        name: &Name,
        setting: &MirrorFileSetting,
    ) -> MirrorView {
        let FileTarget {
            path,
            size_max,
            files_max,
        } = &setting.target;
        let file = state.mirror_files.get(name).map(|running| &running.file);
        let view = self.mirror_view_of(state, name, setting.mirror);
        MirrorView {
            to: path.display().to_string(),
            dropped: view.dropped + file.map_or(0, MirrorFile::lost),
            file: Some(MirrorFileView {
                limit_size: *size_max,
                rotate: *files_max,
                written: file.map_or(0, MirrorFile::written),
                failure: file.and_then(MirrorFile::failure),
            }),
            ..view
        }
    }
}

/// The name of the port or network that is watched.
fn source_name(desired: &DesiredState, from: MirrorSource) -> String {
    let name = match from {
        MirrorSource::Port(port) => desired.endpoints.get(&port).map(|e| &e.name),
        MirrorSource::Domain(domain) => desired.networks.get(&domain).map(|n| &n.name),
    };
    name.map_or_else(String::new, Name::to_string)
}

/// Whether a file can be one's, as far as that can be told without looking at the disk.
fn check_target(desired: &DesiredState, target: &FileTarget) -> Result<(), Error> {
    let FileTarget {
        path,
        size_max,
        files_max,
    } = target;
    let shown = path.display();
    if !path.is_absolute() {
        return Err(Error::Invalid(format!(
            "'{shown}' is relative to nothing that the daemon knows; give an absolute path"
        )));
    }
    let (least, most) = MIRROR_FILE_SIZES.into_inner();
    if !(least..=most).contains(size_max) {
        return Err(Error::Invalid(format!(
            "a file of {size_max} bytes was asked for; give {least} to {most} by --limit-size"
        )));
    }
    let (least, most) = MIRROR_FILES_KEPT.into_inner();
    if !(least..=most).contains(files_max) {
        return Err(Error::Invalid(format!(
            "{files_max} files were asked for; give {least} to {most} by --rotate"
        )));
    }
    let mut others = desired.mirror_files.iter();
    match others.find(|(_, other)| other.target.path == *path) {
        None => Ok(()),
        Some((name, _)) => Err(Error::InUse(format!(
            "'{shown}' is written by mirror '{name}'; name another file"
        ))),
    }
}

fn free_port(desired: &DesiredState) -> Result<PortId, Error> {
    let taken = |port: &PortId| {
        let mut mirrors = desired.mirror_files.values();
        mirrors.any(|setting| setting.mirror.to == *port)
    };
    let ports = MIRROR_FILE_PORT_FIRST..MIRROR_FILE_PORT_FIRST + MIRROR_FILES_MAX;
    let free = ports.map(PortId).find(|port| !taken(port));
    free.ok_or(Error::Limit {
        what: "mirrors to files",
        max: usize::from(MIRROR_FILES_MAX),
    })
}
