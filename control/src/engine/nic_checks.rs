//! Which interfaces can be NICs of networks, and what endpoints they become.

use dataplane_core::l2::{PortFlags, PortVlans};

use super::endpoints::{free_port, now_millis};
use super::nics::{HostAddress, NicMacs, NicRequest};
use super::{Engine, State};
use crate::device::nic::Medium;
use crate::error::Error;
use crate::link::{IFNAME_LEN_MAX, Link, check_ifname};
use crate::model::{
    Asked, Backend, Confirmation, Endpoint, Name, Network, NicBefore, Phase, Router, Sandbox,
};
use crate::port_settings::{OneMac, PortChange, PortSettings};

/// The longest that a host may do without an answer: an hour without a network is a visit to it.
const WITHIN_SECONDS_MAX: u32 = 3_600;
/// Where the host's namespace is, seen from every process in it.
const HOST_NETNS: &str = "/proc/self/ns/net";
/// What the host's ports begin with; the network's name follows.
const HOST_IFNAME: &str = "cw-";
/// Interfaces that are made of others, which they receive by.
const MADE_OF_OTHERS: [&str; 5] = ["vlan", "macvlan", "macvtap", "ipvlan", "ipvtap"];

impl Engine {
    /// The interface of that name, if it can be a network's NIC.
    pub(super) fn check_nic<'s>(&self, state: &'s State, name: &str) -> Result<&'s Link, Error> {
        check_ifname(name)?;
        let link = state.host.link(name).ok_or_else(|| {
            let ours = |link: &&Link| !link.loopback && !link.is_ours();
            let names = state.host.links.iter().filter(ours);
            let names: Vec<&str> = names.map(|link| link.name.as_str()).collect();
            Error::Invalid(format!(
                "there is no interface '{name}' on this host to put on a network; choose one of: {}",
                names.join(", ")
            ))
        })?;
        let refused = |why: String| Err(Error::InUse(why));
        if link.is_ours() {
            return refused(format!(
                "interface '{name}' is one of Causeway's own; choose a network card of the host"
            ));
        }
        // ARPHRD_ETHER of linux/if_arp.h.
        if link.loopback || link.layer != 1 {
            return refused(format!(
                "interface '{name}' is no Ethernet card, which alone can be a port; choose another"
            ));
        }
        if let Some(uplink) = state.uplinks.iter().find(|uplink| uplink.name == name) {
            return refused(format!(
                "interface '{}' is an uplink, which the switch shares with the host; start the \
                 daemon with other uplinks (--uplink IF, or none), or choose another card",
                uplink.name
            ));
        }
        let nic = |endpoint: &&Endpoint| endpoint.backend.is_nic();
        let mut nics = state.desired.endpoints.values().filter(nic);
        if let Some(taken) = nics.find(|nic| nic.ifname == name) {
            let network = state.desired.network_of(taken);
            let network = network.map_or_else(String::new, |network| network.name.to_string());
            return refused(format!(
                "interface '{name}' is the NIC of network '{network}'; take it back first, by \
                 `causeway network set {network} --nic none`"
            ));
        }
        if let Some(index) = link.controller {
            let other = state.host.link_by_index(index);
            let other = other.map_or_else(|| format!("link {index}"), |link| link.name.clone());
            return refused(format!(
                "interface '{name}' is a member of '{other}'; take it out first, by `ip link set \
                 {name} nomaster`"
            ));
        }
        let made_of = |other: &&Link| {
            other.parent == Some(link.index) && MADE_OF_OTHERS.contains(&other.kind.as_str())
        };
        if let Some(other) = state.host.links.iter().find(made_of) {
            return refused(format!(
                "interface '{}' receives by '{name}' and would receive no more; remove it first, by \
                 `ip link del {0}`",
                other.name
            ));
        }
        Ok(link)
    }

    pub(super) fn nic_endpoint(
        &self,
        state: &State,
        network: &Network,
        link: &Link,
        request: &NicRequest,
    ) -> Result<Endpoint, Error> {
        let ifname = link.name.clone();
        let mut endpoint = self.part_of(state, network, &ifname, ifname.clone())?;
        endpoint.backend = request.backend.of_port();
        endpoint.mac = link.mac.unwrap_or_default();
        let medium = self.devices.medium(&link.name);
        if let Some(mac) = one_mac(request.macs, medium) {
            let change = PortChange {
                mac_nat: Asked::Value(mac),
                ..PortChange::default()
            };
            let change = self.named_mac(state, &endpoint, change)?;
            endpoint.settings = change.over(endpoint.settings);
        }
        Ok(endpoint)
    }

    pub(super) fn host_endpoint(
        &self,
        state: &State,
        network: &Network,
        nic: &Endpoint,
        before: &NicBefore,
    ) -> Result<Endpoint, Error> {
        let name = format!("{}-host", network.name);
        let mut ifname = format!("{HOST_IFNAME}{}", network.name);
        ifname.truncate(IFNAME_LEN_MAX);
        check_ifname(&ifname)?;
        if state.host.link(&ifname).is_some() {
            return Err(Error::InUse(format!(
                "the host has an interface '{ifname}', which is to be its port on network '{}'; \
                 rename or remove it",
                network.name
            )));
        }
        let mut endpoint = self.part_of(state, network, &name, ifname)?;
        endpoint.port = free_port(&state.desired, &[nic.port])?;
        endpoint.backend = Backend::Host;
        // Neighbours and DHCP servers know the host by it.
        endpoint.mac = nic.mac;
        let own = before.ip.global_addresses().map(|prefix| prefix.address);
        endpoint.addresses = own
            .filter(|own| network.subnet_of(*own).is_some())
            .collect();
        Ok(endpoint)
    }

    /// An endpoint that is a part of its network.
    fn part_of(
        &self,
        state: &State,
        network: &Network,
        name: &str,
        ifname: String,
    ) -> Result<Endpoint, Error> {
        if state.desired.endpoint(name).is_some() {
            return Err(Error::Exists {
                kind: "endpoint",
                name: name.to_owned(),
            });
        }
        let defaults = PortSettings::default();
        Ok(Endpoint {
            port: free_port(&state.desired, &[])?,
            name: name.parse::<Name>()?,
            domain: network.domain,
            sandbox: Sandbox {
                path: HOST_NETNS.into(),
                inode: self.host.id().inode(),
            },
            ifname,
            mac: Default::default(),
            addresses: Vec::new(),
            backend: Backend::Nic,
            choice: None,
            phase: Phase::Attaching,
            // A whole LAN is behind one, and whatever the host has on the other.
            settings: PortSettings {
                flags: defaults.flags.without(PortFlags::SECURED),
                ..defaults
            },
            vlans: PortVlans::default(),
            attached_at: now_millis(),
            foreign: None,
            dns: Default::default(),
            gw_priority: 0,
            routes: Vec::new(),
        })
    }
}

/// The one MAC of a NIC's port, where it has one for everybody.
fn one_mac(macs: NicMacs, medium: Medium) -> Option<OneMac> {
    match (macs, medium) {
        (NicMacs::Own, Medium::Wire) => None,
        // Access points take frames of a client from the client's own MAC alone.
        (NicMacs::Own, Medium::Wireless) | (NicMacs::Card, _) => Some(OneMac::Device),
    }
}

/// What people should know of NICs: a move that waits for them, a host that is deaf.
pub(super) fn nic_warnings(state: &State) -> Vec<String> {
    let mut warnings = Vec::new();
    for (port, setting) in &state.desired.nics {
        let Some(nic) = state.desired.endpoints.get(port) else {
            continue;
        };
        let network = state.desired.network_of(nic);
        let network = network.map_or_else(String::new, |network| network.name.to_string());
        if let Confirmation::Pending(by) = setting.confirmation {
            let left = by.saturating_sub(now_millis()).div_ceil(1_000);
            warnings.push(format!(
                "what the host had on '{}' goes back in {left} s, unless `causeway network confirm \
                 {network}`",
                nic.ifname
            ));
        }
        let link = state.host.link(&nic.ifname).map(|link| link.index);
        for address in link
            .into_iter()
            .flat_map(|link| state.host.addresses_of(link))
        {
            warnings.push(format!(
                "somebody has put {address} on '{}', where the host is deaf: the card is a port of \
                 network '{network}'",
                nic.ifname
            ));
        }
    }
    warnings
}

/// Whether what the host has on a NIC goes with what is asked for.
pub(super) fn check_fits(
    network: &Network,
    link: &Link,
    before: &NicBefore,
    address: HostAddress,
) -> Result<(), Error> {
    let name = &link.name;
    if u32::from(network.mtu) > link.mtu {
        return Err(Error::Invalid(format!(
            "network '{}' has packets of up to {} bytes, and interface '{name}' carries no more than \
             {}; give --mtu {2}, or raise the card's by `ip link set {name} mtu {1}`",
            network.name, network.mtu, link.mtu
        )));
    }
    let own = before.ip.global_addresses().next();
    match (address, own) {
        (HostAddress::Absent, Some(own)) => {
            return Err(Error::InUse(format!(
                "the host has {own} on interface '{name}' and would be deaf at it; move it to a port \
                 of the network by --take-address, or remove it first"
            )));
        }
        (HostAddress::Absent, None) => {
            if let Some(route) = before.ip.routes().next() {
                return Err(Error::InUse(format!(
                    "the host has the route {route} by interface '{name}'; move it to a port of the \
                     network by --take-address, or remove it first"
                )));
            }
            return Ok(());
        }
        (HostAddress::Moves(_) | HostAddress::MovesUnasked, None) => {
            return Err(Error::Invalid(format!(
                "the host has no address on interface '{name}' that could move; leave --take-address \
                 out"
            )));
        }
        (HostAddress::Moves(_) | HostAddress::MovesUnasked, Some(_)) => {}
    }
    if let HostAddress::Moves(seconds) = address
        && !(1..=WITHIN_SECONDS_MAX).contains(&seconds)
    {
        return Err(Error::Invalid(format!(
            "a move is confirmed within 1 to {WITHIN_SECONDS_MAX} seconds, not {seconds}; --no-confirm \
             asks nobody"
        )));
    }
    if network.router == Router::Switch {
        return Err(Error::Invalid(format!(
            "network '{}' has a gateway of the switch's own, by which the host is in it; the host's \
             address can move to a network whose gateway is the LAN's (--lan-gateway)",
            network.name
        )));
    }
    if let Some(route) = before.ip.unmovable() {
        return Err(Error::InUse(format!(
            "the route {route} of interface '{name}' has several ways or a next hop of its own object, \
             which cannot be moved and put back; replace it by plain ones first"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wireless_card_has_one_mac_for_all_unasked_and_a_wired_one_where_it_is_asked_for() {
        for (macs, medium, expected) in [
            (NicMacs::Own, Medium::Wire, None),
            (NicMacs::Own, Medium::Wireless, Some(OneMac::Device)),
            (NicMacs::Card, Medium::Wire, Some(OneMac::Device)),
            (NicMacs::Card, Medium::Wireless, Some(OneMac::Device)),
        ] {
            assert_eq!(one_mac(macs, medium), expected, "{macs:?} {medium:?}");
        }
    }
}
