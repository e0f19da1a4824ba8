//! `causeway clean`: takes everything of ours off the host, when no daemon will return.

use std::path::Path;

use dataplane_port::guard;

use super::names::drop_resolv_conf;
use super::nics::{Which, give_nics_back};
use super::reservations::{OURS_NOTE, give_ports_back};
use super::uplinks::GUARDED_NOTE;
use crate::device::Devices;
use crate::error::Error;
use crate::host_link::HostLink;
use crate::hostnet::HostState;
use crate::link::Netlink;
use crate::netns::Netns;
use crate::store::Store;

/// Removes every device, guard, address and reservation that the state names, then the state.
/// Goes on when a step fails, and reports them all. Returns what was removed, a line each.
///
/// That a full disk has no room for what is to be forgotten step by step is no failure: with the state
/// goes all that was to be forgotten.
///
/// # Errors
/// When the state is in use or unreadable: nothing has been touched then.
pub async fn clean(state_dir: &Path) -> Result<(Vec<String>, Vec<Error>), Error> {
    if !state_dir.exists() {
        return Ok((Vec::new(), Vec::new()));
    }
    let store = Store::open_when_free(state_dir).await?;
    let host = Netns::current()?;
    let netlink = Netlink::open(&host)?;
    let desired = store.load()?;
    let mut done = Vec::new();
    let mut failed = Vec::new();
    let mut note = |what: String, result: Result<(), Error>| match result {
        Ok(()) => done.push(what),
        Err(error) => {
            // Gone from the host all the same, if that is all that failed.
            if lacks_room(&error) {
                done.push(what);
            }
            failed.push(error);
        }
    };
    let devices = Devices {
        host: host.clone(),
        netlink: netlink.clone(),
        instance: store.instance().to_owned(),
        workers: 1,
        busy_poll_frames: None,
    };
    // Before the host's port, which has the host's address on it.
    for (what, errors) in give_nics_back(&devices, &store, Which::All).await? {
        let first = errors.into_iter().next();
        note(
            format!("the switch's hold of {what}"),
            first.map_or(Ok(()), Err),
        );
    }
    for endpoint in desired.endpoints.values() {
        let removed = devices.remove(endpoint).await;
        let removed = removed.and_then(|()| Ok(store.remove_endpoint(endpoint.port)?));
        drop_resolv_conf(&endpoint.sandbox.path);
        note(format!("endpoint {}", endpoint.name), removed);
    }
    let link = HostLink {
        host: host.clone(),
        netlink: netlink.clone(),
        instance: store.instance().to_owned(),
        workers: 1,
    };
    let observed = HostState::read(&netlink).await?;
    // A link of that name that is somebody else's is none of our business here.
    if let Ok(Some(found)) = link.find(&observed) {
        note(
            format!("interface {}", found.name),
            link.remove(found.index).await,
        );
    }
    let guarded = store.host_note(GUARDED_NOTE)?.unwrap_or_default();
    for name in guarded.split_whitespace() {
        let removed = host.run(|| guard::remove(name)).map_err(Error::from);
        note(
            format!("guard on {name}"),
            removed.and_then(|result| Ok(result?)),
        );
    }
    for (index, address) in observed
        .neighbours
        .iter()
        .filter(|neighbour| neighbour.managed && guards(&observed, &guarded, neighbour.link))
        .map(|neighbour| (neighbour.link, neighbour.address))
    {
        let removed = netlink.remove_neighbour(index, address).await;
        note(
            format!("managed neighbour {address}"),
            removed.map_err(Error::from),
        );
    }
    if store.host_note(OURS_NOTE)?.is_some() {
        note("reserved ports".to_owned(), give_ports_back(&store, &host));
    }
    let full = failed.iter().any(lacks_room);
    // Networks of endpoints that there was no room to forget cannot be forgotten either.
    for network in desired.networks.values().filter(|_| !full) {
        match store.remove_network(network.domain) {
            Ok(()) => done.push(format!("network {}", network.name)),
            Err(error) => failed.push(error.into()),
        }
    }
    let unforgotten: Vec<Error> = failed.extract_if(.., |error| lacks_room(error)).collect();
    if !failed.is_empty() {
        failed.extend(unforgotten);
    } else {
        drop(store);
        let removed = std::fs::remove_dir_all(state_dir);
        if let Err(error) = removed {
            let action = format!("remove {}", state_dir.display());
            failed.push(Error::io(action, error));
        }
    }
    Ok((done, failed))
}

fn lacks_room(error: &Error) -> bool {
    matches!(error, Error::Store(error) if error.is_full())
}

fn guards(host: &HostState, guarded: &str, link: u32) -> bool {
    let name = host.link_by_index(link).map(|link| link.name.as_str());
    guarded
        .split_whitespace()
        .any(|guarded| Some(guarded) == name)
}
