//! Uplinks: network cards that the switch shares with the host, and what keeps the two apart.
//!
//! # Theory of operation
//! In this order, so that no packet of ours ever meets the host's stack: the NAT's port range is
//! reserved (and what was reserved before is noted in the store), the guard goes on the
//! interface's ingress, the packet sockets open with a filter that admits what may be ours, the
//! topology names the uplink. A change of the publications or of the host's addresses replaces
//! filter and guard, each atomically, from one declaration. All of it
//! stays when the daemon ends, because the containers' sessions go on when it comes back;
//! `causeway clean` takes it away in reverse order.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use dataplane_core::addr::{L4Port, PortId, Prefix, UplinkId};
use dataplane_core::nat::{self, Nat};
use dataplane_port::Framing;
use dataplane_port::guard::{self, GuardPorts, GuardSpec, Guarded};
use dataplane_port::packet::PacketBuilder;

use super::{Engine, State};
use crate::config::Uplinks;
use crate::device;
use crate::error::Error;
use crate::link::Link;
use crate::model::{DesiredState, Endpoint, Network, UPLINK_PORT_FIRST};
use crate::topology::UplinkPort;

/// The note about the interfaces that we guard.
pub(super) const GUARDED_NOTE: &str = "guarded_interfaces";

/// An address of the host in a prefix, gateways left out.
pub(super) fn own_address_in(state: &State, prefix: &Prefix) -> Option<IpAddr> {
    let except = state.host_link.map(|link| link.link);
    let own = state.host.local_addresses(except);
    own.into_iter().find(|address| prefix.contains(*address))
}

impl Engine {
    /// The translations of all gateways.
    pub(super) fn nat(&self) -> &Arc<Nat> {
        &self.dataplane.gateway().nat
    }

    /// Opens every uplink; at the start, before anything is forwarded, and again when there was
    /// no default route then.
    pub(super) async fn open_uplinks(&self, state: &mut State) -> Result<(), Error> {
        let names = self.uplink_names(state);
        if names.is_empty() && self.config.uplinks == Uplinks::DefaultRoute {
            // What an earlier daemon guards stays guarded: the route may come back.
            tracing::warn!("this host has no default route; waiting for one to have an uplink");
            return Ok(());
        }
        self.drop_stale_guards(&names)?;
        self.reserve_ports_with_nat(state, !names.is_empty())?;
        state.uplinks = self.uplinks_there(state)?;
        self.refresh_uplinks(state)?;
        for uplink in state.uplinks.clone() {
            self.open_uplink(state, &uplink)?;
        }
        Ok(())
    }

    fn uplink_names(&self, state: &State) -> Vec<String> {
        match &self.config.uplinks {
            Uplinks::Named(names) => names.clone(),
            Uplinks::DefaultRoute => {
                let link = state.host.default_interface();
                link.map(|link| link.name.clone()).into_iter().collect()
            }
        }
    }

    /// The uplinks that are to be opened, as the host has them.
    ///
    /// # Errors
    /// [`Error::Invalid`] for one that is no interface of the host, or of another link layer.
    pub(super) fn uplinks_there(&self, state: &State) -> Result<Vec<UplinkPort>, Error> {
        let names = self.uplink_names(state).into_iter();
        let port = |(index, name): (usize, String)| {
            let link = state.host.link(&name).ok_or_else(|| {
                let names: Vec<&str> = state.host.links.iter().map(|l| l.name.as_str()).collect();
                Error::Invalid(format!(
                    "there is no interface '{name}' for an uplink; choose one of: {}, or none",
                    names.join(", ")
                ))
            })?;
            let on_network = |nic: &&Endpoint| nic.backend.is_nic() && nic.ifname == name;
            if let Some(nic) = state.desired.endpoints.values().find(on_network) {
                let network = state.desired.network_of(nic);
                let network = network.map_or_else(String::new, |n| n.name.to_string());
                return Err(Error::InUse(format!(
                    "interface '{name}' is the NIC of network '{network}' and cannot be an uplink; \
                     choose another by --uplink, or none, and take the NIC back by `causeway network \
                     set {network} --nic none`"
                )));
            }
            // The number of uplinks was checked against UPLINKS_MAX.
            let index = u16::try_from(index).unwrap_or(u16::MAX);
            Ok(UplinkPort {
                id: UplinkId(index),
                port: PortId(UPLINK_PORT_FIRST + index),
                link: link.index,
                framing: framing(link)?,
                name,
            })
        };
        names.enumerate().map(port).collect()
    }

    fn open_uplink(&self, state: &mut State, uplink: &UplinkPort) -> Result<(), Error> {
        let spec = self.guard_spec(&state.desired, state, uplink);
        let builder = PacketBuilder::new(&uplink.name)
            .framing(uplink.framing)
            .queues(self.dataplane.workers())
            .filter(&spec.socket_filter());
        let sockets = self.host.run(|| builder.open())??;
        let mut handles = Vec::new();
        for socket in &sockets {
            let handle = socket.filter_handle();
            let failed = |error| Error::io("keep a handle of an uplink's socket", error);
            handles.push(handle.map_err(failed)?);
        }
        let queues = device::boxed(sockets);
        self.blocking(|dataplane| dataplane.add_port(uplink.port, queues))?;
        state.filters.insert(uplink.port, handles);
        Ok(())
    }

    /// Follows what became of the uplinks' interfaces: a default route that has come, a card that
    /// was taken away and plugged in again.
    pub(super) async fn follow_uplinks(&self, state: &mut State) -> Result<(), Error> {
        if state.uplinks.is_empty()
            && self.config.uplinks == Uplinks::DefaultRoute
            && state.host.default_interface().is_some()
        {
            self.open_uplinks(state).await?;
        }
        for position in 0..state.uplinks.len() {
            let mut uplink = state.uplinks[position].clone();
            let Some(link) = state.host.link(&uplink.name) else {
                continue;
            };
            if link.index == uplink.link {
                continue;
            }
            let index = link.index;
            let framing = match framing(link) {
                Ok(framing) => framing,
                Err(error) => {
                    // The others go on, and so does what follows.
                    tracing::error!(%error, "cannot open an uplink that has come back");
                    continue;
                }
            };
            tracing::info!(
                interface = uplink.name,
                "opening an uplink that has come back"
            );
            (uplink.link, uplink.framing) = (index, framing);
            state.uplinks[position] = uplink.clone();
            if state.filters.remove(&uplink.port).is_some() {
                self.blocking(|dataplane| dataplane.remove_port(uplink.port))?;
            }
            self.open_uplink(state, &uplink)?;
        }
        self.refresh_uplinks(state)
    }

    /// Ends what was translated to an address that the host no longer has: nobody would answer its
    /// packets any more. Called when the picture without the address is installed, so that what the
    /// endpoints send from now on gets an address that there is.
    pub(super) fn end_sessions_of_lost_addresses(&self, state: &mut State) {
        let now = state.host.local_addresses(None);
        let before = std::mem::replace(&mut state.addresses, now);
        let lost: BTreeSet<_> = before.difference(&state.addresses).copied().collect();
        if lost.is_empty() {
            return;
        }
        let ended = self
            .nat()
            .remove_sessions(|session| lost.contains(&session.external.ip));
        if ended > 0 {
            tracing::info!(?lost, ended, "ended the sessions of lost addresses");
        }
    }

    /// Lets the sockets and the guards of the uplinks tell ours from the host's as of now. What
    /// is ours from now on is admitted before it is kept from the host.
    pub(super) fn refresh_uplinks(&self, state: &State) -> Result<(), Error> {
        let there = |uplink: &&UplinkPort| state.host.link_by_index(uplink.link).is_some();
        for uplink in state.uplinks.iter().filter(there) {
            let spec = self.guard_spec(&state.desired, state, uplink);
            let program = spec.socket_filter();
            for handle in state.filters.get(&uplink.port).into_iter().flatten() {
                handle.replace(&program).map_err(|error| {
                    Error::io(format!("filter what arrives by {}", uplink.name), error)
                })?;
            }
            self.host
                .run(|| guard::install(&uplink.name, Guarded::Spec(&spec)))??;
        }
        Ok(())
    }

    fn guard_spec(&self, desired: &DesiredState, state: &State, uplink: &UplinkPort) -> GuardSpec {
        let range = &self.config.nat.port_range;
        let dynamic = guard::Transport::ALL
            .into_iter()
            .map(|transport| GuardPorts {
                transport,
                destination: None,
                first: L4Port(*range.start()),
                last: L4Port(*range.end()),
            });
        let published = desired.publications.values().flat_map(|publication| {
            let places = state.places(publication).into_iter();
            places.map(|destination| GuardPorts {
                transport: match publication.transport {
                    nat::Transport::Tcp => guard::Transport::Tcp,
                    nat::Transport::Udp => guard::Transport::Udp,
                },
                destination,
                first: L4Port(*publication.host_ports.start()),
                last: L4Port(*publication.host_ports.end()),
            })
        });
        GuardSpec {
            framing: uplink.framing,
            addresses: state.host.addresses_of(uplink.link).collect(),
            ports: dynamic.chain(published).collect(),
            prefixes: self.routed_prefixes(desired, state),
        }
    }

    /// The prefixes that are kept from the host as a whole: none that has an address of the host's
    /// own, be it one that has come since, for the host would be deaf to it.
    fn routed_prefixes(&self, desired: &DesiredState, state: &State) -> Vec<Prefix> {
        let networks = desired.networks.values();
        networks
            .flat_map(Network::routed_prefixes)
            .filter(|prefix| own_address_in(state, prefix).is_none())
            .collect()
    }

    /// Makes the kernel keep the routers of the uplinks resolved, and no others.
    pub(super) async fn keep_next_hops(&self, state: &mut State) {
        let wanted: BTreeSet<_> = state
            .uplinks
            .iter()
            // A tunnel has nobody to resolve.
            .filter(|uplink| uplink.framing == Framing::Ethernet)
            .flat_map(|uplink| {
                let hops = state.host.next_hops(uplink.link);
                hops.into_iter().map(|address| (uplink.link, address))
            })
            .collect();
        for (link, address) in &wanted {
            if state.managed.contains(&(*link, *address)) {
                continue;
            }
            if let Err(error) = self.netlink.add_managed_neighbour(*link, *address).await {
                // Linux before 5.16: asked for when a frame waits.
                tracing::warn!(%address, %error, "cannot keep a router resolved");
            }
        }
        for (link, address) in state.managed.difference(&wanted) {
            if let Err(error) = self.netlink.remove_neighbour(*link, *address).await {
                tracing::warn!(%address, %error, "cannot give a router back");
            }
        }
        state.managed = wanted;
    }

    /// Gives the routers back to the host's own neighbour discovery.
    pub async fn release_next_hops(&self) {
        let mut state = self.state().await;
        for (link, address) in std::mem::take(&mut state.managed) {
            if let Err(error) = self.netlink.remove_neighbour(link, address).await {
                tracing::warn!(%address, %error, "cannot give a router back");
            }
        }
    }

    /// Notes which interfaces are going to be guarded, and unguards those that no longer are.
    fn drop_stale_guards(&self, names: &[String]) -> Result<(), Error> {
        let noted = self.store.host_note(GUARDED_NOTE)?.unwrap_or_default();
        for name in noted.split_whitespace() {
            if !names.iter().any(|wanted| wanted == name) {
                self.host.run(|| guard::remove(name))??;
            }
        }
        self.store.set_host_note(GUARDED_NOTE, &names.join(" "))?;
        Ok(())
    }
}

/// What the packets of an uplink begin with.
///
/// # Errors
/// [`Error::Invalid`] for an interface that is neither Ethernet nor a tunnel of plain IP.
fn framing(link: &Link) -> Result<Framing, Error> {
    link.framing().ok_or_else(|| {
        let Link {
            name, kind, layer, ..
        } = link;
        let kind = if kind.is_empty() { "device" } else { kind };
        Error::Invalid(format!(
            "interface '{name}' cannot be an uplink: it is a {kind} with link layer {layer} of \
             if_arp.h, and only Ethernet (1) and plain IP (65534: tun, WireGuard) are supported; \
             choose another interface by --uplink, or none"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostnet::tests::link;

    #[test]
    fn an_interface_of_another_link_layer_is_refused_by_name_and_kind() {
        let mut link = link(3, "ppp0");
        assert_eq!(framing(&link).unwrap(), Framing::Ethernet);
        (link.layer, link.kind) = (0xfffe, "wireguard".to_owned());
        assert_eq!(framing(&link).unwrap(), Framing::Ip);
        (link.layer, link.kind) = (512, "ppp".to_owned());
        let refused = framing(&link).unwrap_err().to_string();
        for word in ["'ppp0'", "a ppp", "512", "WireGuard", "--uplink"] {
            assert!(refused.contains(word), "{refused}");
        }
    }
}
