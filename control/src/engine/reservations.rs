//! Ports that the host's kernel must not choose for its own connections: the NAT's range, and
//! published ranges without a listener per port.
//!
//! What was reserved before us, within our ports, is written to the store before the sysctl
//! changes, so that a crash at any point loses nobody's reservation. A program of the host can
//! still bind such a port by its number; for the NAT's range and at publishing that is checked.

use std::ops::RangeInclusive;

use super::{Engine, State};
use crate::error::Error;
use crate::model::Publication;
use crate::netns::Netns;
use crate::owner;
use crate::publish::range_text;
use crate::relay::PORTS_MAX;
use crate::store::Store;
use crate::sysctl::{self, PortSet};

/// The note about the ports that were reserved before us, within ours.
const BEFORE_NOTE: &str = "reserved_ports_before";
/// The note about the ports that we reserved.
pub(super) const OURS_NOTE: &str = "reserved_ports_ours";

/// Whether a publication is kept from the host by reservation instead of listeners.
pub(super) fn reserves(publication: &Publication) -> bool {
    publication.host_ports.len() > PORTS_MAX
}

impl Engine {
    /// Reserves what the publications want as of now, beside the NAT's range if it is reserved.
    pub(super) fn reserve_ports(&self, state: &State) -> Result<(), Error> {
        let nat = noted(&self.store, OURS_NOTE)?.covers(&self.config.nat.port_range);
        self.reserve_ports_with_nat(state, nat)
    }

    /// Reserves what the publications want, and the NAT's range if there is `nat`.
    pub(super) fn reserve_ports_with_nat(&self, state: &State, nat: bool) -> Result<(), Error> {
        let range = &self.config.nat.port_range;
        let ours = noted(&self.store, OURS_NOTE)?;
        if nat && !ours.covers(range) {
            self.check_range(range)?;
        }
        let mut wanted = PortSet::default();
        if nat {
            wanted.insert(range);
        }
        let publications = state.desired.publications.values();
        for publication in publications.filter(|publication| reserves(publication)) {
            wanted.insert(&publication.host_ports);
        }
        replace(&self.store, &self.host, &wanted)
    }

    /// Refuses a range in which the host has a socket: the guard would cut it off.
    fn check_range(&self, range: &RangeInclusive<u16>) -> Result<(), Error> {
        let used = self.host.run(|| owner::of_any_port(range))?;
        let Some((port, owner)) = used else {
            return Ok(());
        };
        let range = range_text(range);
        Err(Error::InUse(format!(
            "port {port} of this host is in use by {owner}, within the NAT's range {range}; end \
             that program, or set nat.port_first and nat.port_last to a range without it"
        )))
    }
}

/// Reserves `wanted` instead of what is ours now, and leaves reserved what was so before.
fn replace(store: &Store, host: &Netns, wanted: &PortSet) -> Result<(), Error> {
    let (ours, before) = (noted(store, OURS_NOTE)?, noted(store, BEFORE_NOTE)?);
    let mut theirs = sysctl::reserved_ports(host)?;
    ours.ranges().for_each(|range| theirs.remove(&range));
    before.ranges().for_each(|range| theirs.insert(&range));
    let mut before_wanted = PortSet::default();
    for range in wanted.ranges() {
        let within = theirs.intersection(&range);
        within.ranges().for_each(|r| before_wanted.insert(&r));
    }
    // Both, until the sysctl is written: a crash in between finds theirs by either note.
    let mut either = before;
    before_wanted.ranges().for_each(|r| either.insert(&r));
    let mut both = ours;
    wanted.ranges().for_each(|range| both.insert(&range));
    store.set_host_note(BEFORE_NOTE, &either.to_string())?;
    store.set_host_note(OURS_NOTE, &both.to_string())?;
    wanted.ranges().for_each(|range| theirs.insert(&range));
    sysctl::set_reserved_ports(host, &theirs)?;
    store.set_host_note(OURS_NOTE, &wanted.to_string())?;
    store
        .set_host_note(BEFORE_NOTE, &before_wanted.to_string())
        .map_err(Error::from)
}

/// Gives the ports back that we reserved, and leaves reserved what was so before.
///
/// # Errors
/// When the sysctl or the store cannot be written.
pub(super) fn give_ports_back(store: &Store, host: &Netns) -> Result<(), Error> {
    if store.host_note(OURS_NOTE)?.is_none() {
        return Ok(());
    }
    // Before the notes, which a full disk has no room to change: done twice, it does no harm.
    let (ours, before) = (noted(store, OURS_NOTE)?, noted(store, BEFORE_NOTE)?);
    let mut theirs = sysctl::reserved_ports(host)?;
    ours.ranges().for_each(|range| theirs.remove(&range));
    before.ranges().for_each(|range| theirs.insert(&range));
    sysctl::set_reserved_ports(host, &theirs)?;
    store.remove_host_note(OURS_NOTE)?;
    Ok(store.remove_host_note(BEFORE_NOTE)?)
}

fn noted(store: &Store, key: &str) -> Result<PortSet, Error> {
    let text = store.host_note(key)?.unwrap_or_default();
    text.parse().map_err(Error::Invalid)
}
