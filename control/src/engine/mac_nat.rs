//! Ports with one MAC for everybody behind them: which MAC, and who is there.

use std::collections::BTreeMap;

use dataplane_core::addr::{MacAddr, PortId};
use dataplane_core::l2::{MAC_NAT_ADDRESSES_MAX, MacNat, PortFlags};
use dataplane_core::topology::Port;

use super::ports::port_id;
use super::{Engine, State};
use crate::api::mac_nat::{AddressView, MacNatView};
use crate::error::Error;
use crate::model::{Asked, Backend, Endpoint};
use crate::port_settings::{OneMac, PortChange, PortSettings};

impl Engine {
    /// Puts the device's MAC in the place of the word for it, and checks the one that a port is to have.
    ///
    /// # Errors
    /// [`Error::Invalid`], with what is valid.
    pub(super) fn named_mac(
        &self,
        state: &State,
        endpoint: &Endpoint,
        change: PortChange,
    ) -> Result<PortChange, Error> {
        let mac = match change.mac_nat {
            Asked::Nothing | Asked::Default => return Ok(change),
            Asked::Value(OneMac::Given(mac)) => mac,
            Asked::Value(OneMac::Device) => self.device_mac(state, endpoint)?,
        };
        let name = &endpoint.name;
        let problem = if mac.is_group() || mac == MacAddr::ZERO {
            Some(format!(
                "{mac} is a group address or zero, and no station has it; give one whose first octet \
                 is even"
            ))
        } else if mac == endpoint.mac && !endpoint.backend.is_nic() {
            // A card's own MAC is this side's: what is behind it has others.
            Some(format!(
                "{mac} is the MAC of the interface that '{name}' leads to, which would take its own \
                 frames for others'; give another, or on for that of this side"
            ))
        } else {
            let network = state.desired.network_of(endpoint);
            network
                .filter(|network| network.gateway_mac() == mac)
                .map(|network| {
                    let network = &network.name;
                    format!("{mac} is the gateway's MAC of network '{network}'; give another")
                })
        };
        match problem {
            Some(problem) => Err(Error::Invalid(problem)),
            None => Ok(PortChange {
                mac_nat: Asked::Value(OneMac::Given(mac)),
                ..change
            }),
        }
    }

    /// The MAC of the device by which the switch has a port.
    fn device_mac(&self, state: &State, endpoint: &Endpoint) -> Result<MacAddr, Error> {
        let name = &endpoint.name;
        match endpoint.backend {
            Backend::Tap | Backend::TapPlain | Backend::Host => Err(Error::Invalid(format!(
                "port '{name}' is a TAP, whose only MAC is its sandbox's own; say which MAC is to leave \
                 by it, as in `causeway port set {name} mac-nat 02:00:00:00:00:01`"
            ))),
            Backend::Packet | Backend::Xdp | Backend::Nic | Backend::NicXdp => {
                let device = match endpoint.backend.is_nic() {
                    true => endpoint.ifname.clone(),
                    false => self.devices.own_name(endpoint),
                };
                let mac = state.host.link(&device).and_then(|link| link.mac);
                mac.ok_or_else(|| {
                    Error::Invalid(format!(
                        "the device '{device}' of port '{name}' has no MAC; say which one is to leave \
                         by it"
                    ))
                })
            }
        }
    }

    /// The one MAC of each port that has one. Who is behind it goes over from the picture that is in
    /// force.
    pub(super) fn mac_nats(&self, state: &State) -> BTreeMap<PortId, MacNat> {
        let before = self.dataplane.topology();
        let endpoints = state.desired.endpoints.with_mac_nat();
        let of = |endpoint: &Endpoint| {
            let mac = endpoint.settings.mac_nat?;
            let known = before.port(endpoint.port);
            let known = known.and_then(|port| port.profile.mac_nat.clone());
            let known = known.filter(|nat| nat.mac == mac);
            let nat = known.unwrap_or_else(|| MacNat::new(mac, fastrand::u64(..)));
            Some((endpoint.port, nat))
        };
        endpoints.filter_map(of).collect()
    }

    /// Who is behind the ports that have one MAC for everybody, or behind one of them.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::Invalid`] for a port without.
    pub fn mac_nat(&self, name: Option<&str>) -> Result<Vec<MacNatView>, Error> {
        let topology = self.dataplane.topology();
        let ports = topology.ports.iter().flatten();
        let Some(name) = name else {
            return Ok(ports.filter_map(|port| self.mac_nat_view(port)).collect());
        };
        let id = port_id(name);
        let mut named = ports.filter(|port| *port.name == *name || Some(port.id.0) == id);
        let port = named.next().ok_or_else(|| Error::unknown_port(name))?;
        let view = self.mac_nat_view(port).ok_or_else(|| {
            Error::Invalid(format!(
                "port '{name}' lets each station leave by its own MAC; `causeway port set {name} \
                 mac-nat on` gives it one for all"
            ))
        })?;
        Ok(vec![view])
    }

    fn mac_nat_view(&self, port: &Port) -> Option<MacNatView> {
        let nat = port.profile.mac_nat.as_ref()?;
        if !port.flags.has(PortFlags::MAC_NAT) {
            return None;
        }
        let now = self.dataplane.now();
        let entries = nat.table.entries(now);
        let view = |entry: &dataplane_core::l2::MacNatEntry| AddressView {
            address: entry.located.address.to_string(),
            vlan: entry.located.vlan.0,
            mac: entry.mac.to_string(),
            age_seconds: entry.age.as_secs(),
        };
        Some(MacNatView {
            port: port.id.0,
            port_name: port.name.to_string(),
            mac: nat.mac.to_string(),
            owned: nat.table.has_owner(now),
            addresses: entries.iter().map(view).collect(),
            addresses_max: MAC_NAT_ADDRESSES_MAX,
            refused: nat.table.refused(),
        })
    }
}

/// Whether a port may have all that is set of it at once.
///
/// # Errors
/// [`Error::Invalid`] for a hairpin with one MAC: what came from outside would leave as from inside.
pub(super) fn check_together(settings: &PortSettings) -> Result<(), Error> {
    if settings.mac_nat.is_some() && settings.flags.has(PortFlags::HAIRPIN) {
        return Err(Error::Invalid(
            "a port with mac-nat is no hairpin: what came by it would go back as from a station of \
             this side; turn one of the two off"
                .to_owned(),
        ));
    }
    Ok(())
}
