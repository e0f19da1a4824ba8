//! Mirrors of a lab: what they look like in a file, and the steps to them.

use dataplane_core::l2::MirrorDirection;
use serde::{Deserialize, Serialize};

use super::form;
use super::plan::{Error, Step};
use super::{LabFile, known_endpoint, known_network};
use crate::model::{MIRROR_FILE_SIZE_DEFAULT, MIRROR_FILES_KEPT_DEFAULT};

/// A mirror. It is whole: one of which something else is wanted is set anew.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MirrorFile {
    /// The endpoint whose port is watched.
    pub from: Option<String>,
    /// Or the network that is.
    pub network: Option<String>,
    /// `in`, `out` or `both`; both of a port, in of a network when left out.
    #[serde(deserialize_with = "form::direction")]
    pub direction: Option<String>,
    /// The endpoint whose port shows the copies.
    pub to: Option<String>,
    /// That port is an ordinary one of its network as well.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ingress: bool,
    /// Or the file that they are written to.
    pub to_file: Option<String>,
    /// Bytes of the file after which another one is begun.
    pub limit_size: Option<u64>,
    /// Files kept.
    pub rotate: Option<u32>,
}

impl MirrorFile {
    /// The same with everything said.
    fn whole(&self) -> Self {
        let mut whole = self.clone();
        whole.direction.get_or_insert_with(|| usual_direction(self));
        if self.to_file.is_some() {
            whole.limit_size.get_or_insert(MIRROR_FILE_SIZE_DEFAULT);
            whole.rotate.get_or_insert(MIRROR_FILES_KEPT_DEFAULT);
        }
        whole
    }

    /// The same with what is as usual left out.
    pub(super) fn shorten(&mut self) {
        let usual = usual_direction(self);
        super::observed::leave_out(&mut self.direction, &usual);
        super::observed::leave_out(&mut self.limit_size, &MIRROR_FILE_SIZE_DEFAULT);
        super::observed::leave_out(&mut self.rotate, &MIRROR_FILES_KEPT_DEFAULT);
    }

    /// What is wrong with it, whatever there is.
    fn problem(&self) -> Option<&'static str> {
        let of_file = self.limit_size.is_some() || self.rotate.is_some();
        if self.from.is_some() == self.network.is_some() {
            return Some("watches a port or a network; give 'from' or 'network'");
        }
        if self.to.is_some() == self.to_file.is_some() {
            return Some("goes to a port or to a file; give 'to' or 'to_file'");
        }
        if self.to.is_some() && of_file {
            return Some("goes to a port; leave out 'limit_size' and 'rotate'");
        }
        if self.to_file.is_some() && self.ingress {
            return Some("goes to a file; leave out 'ingress'");
        }
        let relative = |path: &String| !path.starts_with('/');
        match self.to_file.as_ref().is_some_and(relative) {
            true => Some("has a relative path; write the whole one"),
            false => None,
        }
    }
}

fn usual_direction(mirror: &MirrorFile) -> String {
    let usual = match mirror.network {
        Some(_) => MirrorDirection::In,
        None => MirrorDirection::Both,
    };
    usual.label().to_owned()
}

/// The steps that end mirrors of which something else is wanted. They come first: a mirror ends by
/// itself with what it watches.
pub(super) fn removals<'l>(wanted: &'l LabFile, there: &'l LabFile) -> impl Iterator<Item = Step> {
    let changed = changed(wanted, there);
    let known = changed.filter(|(name, _)| there.mirrors.contains_key(*name));
    known.map(|(name, _)| Step::RemoveMirror(name.clone()))
}

/// The steps that set the mirrors that are wanted and not there.
pub(super) fn additions<'l>(wanted: &'l LabFile, there: &'l LabFile) -> impl Iterator<Item = Step> {
    let changed = changed(wanted, there);
    changed.map(|(name, mirror)| Step::AddMirror(name.clone(), mirror.clone()))
}

/// The mirrors that are not there as they are wanted.
fn changed<'l>(
    wanted: &'l LabFile,
    there: &'l LabFile,
) -> impl Iterator<Item = (&'l String, &'l MirrorFile)> {
    wanted.mirrors.iter().filter(|(name, mirror)| {
        let known = there.mirrors.get(*name).map(MirrorFile::whole);
        known != Some(mirror.whole())
    })
}

/// # Errors
/// A mirror that cannot be, or of what is neither there nor in the file.
pub(super) fn check(wanted: &LabFile, there: &LabFile) -> Result<(), Error> {
    for (name, mirror) in &wanted.mirrors {
        if let Some(problem) = mirror.problem() {
            return Err(Error::Mirror {
                name: name.clone(),
                problem,
            });
        }
        for endpoint in [&mirror.from, &mirror.to].into_iter().flatten() {
            if !known_endpoint(endpoint, wanted, there) {
                return Err(Error::NoEndpoint {
                    what: format!("mirrors.{name}"),
                    endpoint: endpoint.clone(),
                });
            }
        }
        if let Some(network) = &mirror.network
            && !known_network(network, wanted, there)
        {
            return Err(Error::NoMirrored {
                name: name.clone(),
                network: network.clone(),
            });
        }
    }
    Ok(())
}
