//! A lab in one file: networks, endpoints, published ports, rules and mirrors, as `causeway apply`
//! reads them and `causeway export` writes them.
//!
//! What a file leaves out is left alone where it is there, and is as usual where it is made. Texts are
//! brought into the form in which the daemon lists them while they are read, so that what is wanted
//! and what is there are compared as they stand; a text that cannot be read is an error with its line.
//!
//! Left out of labs: ports that are set down.

mod form;
mod mirrors;
mod observed;
pub mod plan;
mod rules;
mod words;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::api::bridging::FlagsBody;
use crate::api::reservations::ReservationBody;
use crate::impairment::ImpairmentBody;

pub use mirrors::MirrorFile;
pub use observed::Observed;
pub use rules::RuleFile;

/// A lab.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LabFile {
    /// Network namespaces that are made when they are missing, by name.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub namespaces: BTreeSet<String>,
    /// By name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub networks: BTreeMap<String, NetworkFile>,
    /// By name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub endpoints: BTreeMap<String, EndpointFile>,
    /// Ports of the host that lead to endpoints; several entries of the same ports share them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub publications: Vec<PublicationFile>,
    /// Who may open connections to whom, in the order in which they are asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RuleFile>,
    /// Ports and files that show what others carry, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub mirrors: BTreeMap<String, MirrorFile>,
}

/// A network. The first keys are settled when it is made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkFile {
    /// IPv4 subnet.
    #[serde(deserialize_with = "form::prefix")]
    pub subnet: Option<String>,
    /// IPv4 gateway.
    #[serde(deserialize_with = "form::address")]
    pub gateway: Option<String>,
    /// Where IPv4 endpoints get their addresses from.
    #[serde(deserialize_with = "form::prefix")]
    pub ip_range: Option<String>,
    /// IPv6 subnet.
    #[serde(deserialize_with = "form::prefix")]
    pub subnet6: Option<String>,
    /// IPv6 gateway.
    #[serde(deserialize_with = "form::address")]
    pub gateway6: Option<String>,
    /// Nothing outside is reachable.
    pub internal: Option<bool>,
    /// The host has addresses in it.
    pub host_link: Option<bool>,
    /// Largest IP packet, in bytes.
    pub mtu: Option<u16>,
    /// The LAN's routers, or `none` alone.
    pub lan_gateway: Option<Vec<String>>,
    /// How long an FDB entry lives.
    pub ageing_seconds: Option<u32>,
    /// What becomes of BPDUs.
    #[serde(deserialize_with = "form::stp_frames")]
    pub stp_frames: Option<String>,
    /// What is done about loops.
    #[serde(deserialize_with = "form::loop_detect")]
    pub loop_detect: Option<String>,
    /// VLANs count.
    pub vlan_filtering: Option<bool>,
    /// The VLAN that the gateway is in.
    pub gateway_vlan: Option<u16>,
    /// Frames to a group go to its listeners.
    pub mcast_snooping: Option<bool>,
    /// The switch is a querier.
    pub mcast_querier: Option<bool>,
    /// The switch answers ARP and neighbour discovery for endpoints.
    pub arp_suppression: Option<bool>,
    /// Endpoints reach each other without a rule.
    pub icc: Option<bool>,
    /// On what of the remote an external port depends, or `default`.
    #[serde(deserialize_with = "form::dependence")]
    pub nat_mapping: Option<String>,
    /// On what of the remote it depends whether it is let in, or `default`.
    #[serde(deserialize_with = "form::dependence")]
    pub nat_filtering: Option<String>,
    /// Under which address IPv4 packets go outside.
    #[serde(deserialize_with = "form::nat_mode")]
    pub nat4: Option<String>,
    /// Under which address IPv6 packets go outside.
    #[serde(deserialize_with = "form::nat_mode")]
    pub nat6: Option<String>,
    /// Who answers for names.
    pub dns: Option<Vec<String>>,
    /// A network card of the host that is a port of it.
    pub nic: Option<NicFile>,
    /// Addresses that are kept for somebody.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reservations: Vec<ReservationBody>,
    /// Stations that neither age nor move.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fdb: Vec<FdbFile>,
    /// Ports that listen to groups.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mdb: Vec<ListenerFile>,
}

/// A network card of the host on a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicFile {
    /// The interface.
    pub name: String,
    /// The host's addresses and routes move to a port of the host on the network.
    #[serde(default)]
    pub take_address: bool,
    /// All that leaves by the card carries its MAC.
    #[serde(default)]
    pub mac_nat: bool,
    /// How the card is read: `packet` or `xdp`.
    #[serde(
        default = "form::nic_backend_default",
        deserialize_with = "form::nic_backend"
    )]
    pub backend: String,
}

/// A set FDB entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FdbFile {
    /// The station.
    #[serde(deserialize_with = "form::mac")]
    pub mac: String,
    /// The endpoint that it is behind.
    pub port: String,
    /// Its VLAN; that of its port's untagged frames when left out.
    #[serde(default)]
    pub vlan: Option<u16>,
    /// `static`, `sticky` or `local`.
    #[serde(default = "form::static_entry", deserialize_with = "form::fdb_state")]
    pub state: String,
}

/// A port that listens to a group, whether it says so or not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerFile {
    /// The group.
    #[serde(deserialize_with = "form::group")]
    pub group: String,
    /// The endpoint whose port it is.
    pub port: String,
    /// The VLAN; that of its port's untagged frames when left out.
    #[serde(default)]
    pub vlan: Option<u16>,
}

/// An endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointFile {
    /// Its network's name.
    pub network: String,
    /// Name or path of its network namespace.
    #[serde(deserialize_with = "form::netns")]
    pub netns: String,
    /// The interface's name inside.
    #[serde(default)]
    pub ifname: Option<String>,
    /// IPv4 address, or `none`.
    #[serde(default, deserialize_with = "form::address_or_none")]
    pub ip: Option<String>,
    /// IPv6 address, or `none`.
    #[serde(default, deserialize_with = "form::address_or_none")]
    pub ip6: Option<String>,
    /// The interface's MAC.
    #[serde(default, deserialize_with = "form::optional_mac")]
    pub mac: Option<String>,
    /// How it is connected.
    #[serde(default, deserialize_with = "form::backend")]
    pub backend: Option<String>,
    /// Further names on its network.
    #[serde(default)]
    pub aliases: Option<Vec<String>>,
    /// Names that it alone knows others by.
    pub links: Option<Vec<String>>,
    /// Of several endpoints of a sandbox the highest has the default route.
    pub gw_priority: Option<i32>,
    /// What its sandbox reaches by other routers than the gateway: `10.9.0.0/16=10.88.0.254`.
    #[serde(default, deserialize_with = "form::routes")]
    pub routes: Option<Vec<String>>,
    /// The servers that its questions for other names go to.
    #[serde(default)]
    pub dns: Option<Vec<String>>,
    /// What is set of its port.
    #[serde(default, skip_serializing_if = "PortFile::is_usual")]
    pub port: PortFile,
}

/// What is set of an endpoint's port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PortFile {
    /// The VLANs that it is in: `1 pvid untagged, 10-20`.
    #[serde(deserialize_with = "form::vlans")]
    pub vlans: Option<String>,
    /// How many stations may be learned on it.
    pub mac_limit: Option<u32>,
    /// Frames per second that are flooded as broadcast.
    #[serde(deserialize_with = "form::storm")]
    pub storm_broadcast: Option<String>,
    /// The same of groups.
    #[serde(deserialize_with = "form::storm")]
    pub storm_multicast: Option<String>,
    /// The same of stations that are not known.
    #[serde(deserialize_with = "form::storm")]
    pub storm_unknown_unicast: Option<String>,
    /// The rate of what enters by it.
    #[serde(deserialize_with = "form::rate")]
    pub rate_in: Option<String>,
    /// The rate of what leaves by it.
    #[serde(deserialize_with = "form::rate")]
    pub rate_out: Option<String>,
    /// The one MAC that everything carries which leaves by it.
    #[serde(deserialize_with = "form::optional_mac")]
    pub mac_nat: Option<String>,
    /// What is switched on.
    #[serde(skip_serializing_if = "form::is_empty")]
    pub flags: FlagsBody,
    /// What is wrong with the link on the way in.
    pub impair_in: Option<ImpairmentBody>,
    /// What is wrong with the link on the way out.
    pub impair_out: Option<ImpairmentBody>,
}

impl PortFile {
    /// Whether nothing is said of the port.
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// Ports of the host that lead to an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublicationFile {
    /// `[IP:]HOST_PORT:PORT[/tcp|/udp]`.
    #[serde(deserialize_with = "form::spec")]
    pub spec: String,
    /// The endpoint.
    pub endpoint: String,
    /// Only clients of this prefix.
    #[serde(default, deserialize_with = "form::prefix")]
    pub from: Option<String>,
    /// Only clients that come in by this uplink.
    #[serde(default)]
    pub uplink: Option<String>,
    /// How new sessions are spread: `round-robin` or `source-hash`.
    #[serde(default, deserialize_with = "form::balance")]
    pub balance: Option<String>,
    /// The endpoint's share of new sessions.
    #[serde(default)]
    pub weight: Option<u16>,
    /// It gets no new sessions.
    #[serde(default)]
    pub draining: Option<bool>,
    /// Its number, of one that is there.
    #[serde(skip)]
    pub id: Option<u32>,
}

impl LabFile {
    /// Reads a file.
    ///
    /// # Errors
    /// With the line, the column and what is wrong there.
    pub fn read(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// The text that it is read from.
    ///
    /// # Errors
    /// None that is known: every value has a form in TOML.
    pub fn to_text(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }

    /// Whether it has, or makes, an endpoint of that name. A NIC brings one of its own name, and one
    /// for the host where it takes the host's addresses.
    fn has_endpoint(&self, name: &str) -> bool {
        let of_nic = |(network, file): (&String, &NetworkFile)| {
            file.nic.as_ref().is_some_and(|nic| {
                let host_port = name.strip_suffix("-host") == Some(network);
                nic.name == name || nic.take_address && host_port
            })
        };
        self.endpoints.contains_key(name) || self.networks.iter().any(of_nic)
    }
}

/// Whether something may lead to an endpoint of that name.
fn known_endpoint(name: &str, wanted: &LabFile, there: &LabFile) -> bool {
    wanted.has_endpoint(name) || there.has_endpoint(name)
}

/// Whether something may be about a network of that name.
fn known_network(name: &str, wanted: &LabFile, there: &LabFile) -> bool {
    wanted.networks.contains_key(name) || there.networks.contains_key(name)
}

#[cfg(test)]
mod tests;
