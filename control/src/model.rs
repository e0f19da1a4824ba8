//! What the user wants: networks, endpoints and publications.
//!
//! These types hold only what is valid: names, subnets and ids are checked where they are made.
//! They are not serializable on purpose; the store, the API and the configuration file each have
//! formats of their own, so that none of them can force its shape on the model.

mod backend;
mod bridging;
pub mod dns;
mod endpoints;
mod fdb;
mod mdb;
mod mirror;
mod nic;
mod reservation;
mod route;
mod rule;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use dataplane_core::addr::{DomainId, MacAddr, PortId, Prefix};
use dataplane_core::l2::PortVlans;
use dataplane_core::nat::{Balance, Behaviour, Dependence, Duty, Transport};
use dataplane_core::topology::{NatMode, NatModes};
use ipnet::IpNet;

use crate::flood_settings::FloodSettings;
use crate::ipam;
use crate::port_settings::PortSettings;
use crate::vlans::NetworkVlans;

pub use backend::{
    Backend, BackendAsked, BackendChoice, BackendError, NicBackend, NicBackendError, Purpose,
};
pub use bridging::{LoopDetect, LoopDetectError, StpFrames, StpFramesError};
pub use endpoints::Endpoints;
pub use fdb::{FdbKindError, FdbPlace, FdbSetting, fdb_kind};
pub use mdb::{GroupError, MdbSetting, group};
pub use mirror::{
    FileTarget, MIRROR_FILE_PORT_FIRST, MIRROR_FILE_SIZE_DEFAULT, MIRROR_FILE_SIZES,
    MIRROR_FILES_KEPT, MIRROR_FILES_KEPT_DEFAULT, MIRROR_FILES_MAX, MirrorDirectionError,
    MirrorFileSetting, MirrorFiles, MirrorIngress, MirrorSetting, Mirrors, is_mirror_file,
    mirror_direction, only_shows,
};
pub use nic::{Confirmation, NicBefore, NicOrigin, NicSetting, NicStage, Router};
pub use reservation::{Claimant, Holder, HolderError};
pub use route::{STATIC_ROUTES_MAX, StaticRoute, StaticRouteError, check_routes};
pub use rule::{
    Icc, RuleActionError, RuleBody, RulePorts, RulePortsError, RuleProtocolError, RuleSetting,
    RuleSide, RuleSideError, has_ports, rule_action, rule_action_label, rule_protocol,
    rule_protocol_label,
};

/// Longest name of a network or endpoint: a DNS label (RFC 1035 section 2.3.4), because names
/// become host names.
pub const NAME_LEN_MAX: usize = 63;
/// Endpoints and their ports start here: lower port ids are the host link and the uplinks.
pub const ENDPOINT_PORT_FIRST: u16 = 32;
/// The port of the host link.
pub const HOST_LINK_PORT: PortId = PortId(0);
/// The port of the first uplink; the others follow.
pub const UPLINK_PORT_FIRST: u16 = 1;
/// MTU of a network that does not set one.
pub const MTU_DEFAULT: u16 = 1_500;
/// Smallest MTU of a network: what IPv6 needs (RFC 8200 section 5).
pub const MTU_MIN: u16 = 1_280;
/// Largest MTU of a network: 64 KiB frames with room for headers.
pub const MTU_MAX: u16 = 65_000;

/// A name that people give to a network or an endpoint.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<str>);

/// Text that cannot be a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' cannot be a name: write 1 to 63 letters, digits, '-', '_' and '.', \
     starting with a letter or digit"
)]
pub struct NameError(pub String);

impl Name {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let good = text.len() <= NAME_LEN_MAX
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        if good {
            Ok(Self(text.into()))
        } else {
            Err(NameError(text.to_owned()))
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// The id by which somebody else knows an object: Docker's network and endpoint ids, a CNI
/// container id and interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ForeignId {
    /// Whose id it is: `docker`, `cni`, `netavark`.
    pub owner: String,
    /// The id.
    pub id: String,
}

/// A network: one bridge domain with the subnets that its gateway serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// The bridge domain.
    pub domain: DomainId,
    /// The name.
    pub name: Name,
    /// At most one of each family.
    pub subnets: Vec<Subnet>,
    /// Nothing outside is reachable.
    pub internal: bool,
    /// The host has addresses in it.
    pub host_link: bool,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
    /// How long an FDB entry lives without being heard from.
    pub ageing_seconds: u32,
    /// What becomes of BPDUs that enter it.
    pub stp_frames: StpFrames,
    /// What is done to find loops, and about them.
    pub loop_detect: LoopDetect,
    /// Whether VLANs count in it.
    pub vlans: NetworkVlans,
    /// Whether its endpoints reach each other without a rule.
    pub icc: Icc,
    /// What is spared the ports that have no use for it.
    pub flood: FloodSettings,
    /// How its packets are translated.
    pub nat: NetworkNat,
    /// Who answers for names.
    pub dns: dns::NetworkDns,
    /// Whose its way out is.
    pub router: Router,
    /// Who else knows the network, and as what.
    pub foreign: Option<ForeignId>,
}

impl Network {
    /// The MAC that the gateway answers with: from its IPv4 address, as docker0 does it, or a
    /// locally administered one from the domain.
    pub fn gateway_mac(&self) -> MacAddr {
        let v4 = self.subnets.iter().find_map(|subnet| match subnet.gateway {
            IpAddr::V4(address) => Some(MacAddr::from_ipv4(address)),
            IpAddr::V6(_) => None,
        });
        let [high, low] = self.domain.0.to_be_bytes();
        v4.unwrap_or(MacAddr([0x02, 0x43, 0, 0, high, low]))
    }

    /// Under which addresses its packets go outside. Addresses that the whole Internet routes need
    /// no others (decision 0011); IPv4 subnets are never taken for such.
    pub fn nat_modes(&self) -> NatModes {
        let global = |subnet: &Subnet| ipam::is_global_v6(subnet.prefix);
        let suggested = match self.subnets.iter().any(global) {
            true => NatMode::Routed,
            false => NatMode::Masquerade,
        };
        NatModes {
            v4: self.nat.v4.unwrap_or_default(),
            v6: self.nat.v6.unwrap_or(suggested),
        }
    }

    /// The prefixes that the outside reaches by themselves.
    pub fn routed_prefixes(&self) -> impl Iterator<Item = Prefix> {
        let modes = self.nat_modes();
        self.subnets
            .iter()
            .filter(move |_| !self.internal && self.router == Router::Switch)
            .filter(move |subnet| modes.of(subnet.gateway) == NatMode::Routed)
            .map(Subnet::dataplane_prefix)
    }

    /// The subnet that contains `address`.
    pub fn subnet_of(&self, address: IpAddr) -> Option<&Subnet> {
        self.subnets
            .iter()
            .find(|subnet| subnet.prefix.contains(&address))
    }
}

/// What was asked of a network's NAT; what was not is as the configuration says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkNat {
    /// Which remotes share an external port.
    pub mapping: Option<Dependence>,
    /// Which remotes are let in.
    pub filtering: Option<Dependence>,
    /// Under which address IPv4 packets go outside; `None` for an address of the host.
    pub v4: Option<NatMode>,
    /// Under which address IPv6 packets go outside; `None` for what the subnet suggests.
    pub v6: Option<NatMode>,
}

impl NetworkNat {
    /// The behaviour that results where the configuration says `base`.
    pub fn behaviour(&self, base: Behaviour) -> Behaviour {
        Behaviour {
            mapping: self.mapping.unwrap_or(base.mapping),
            filtering: self.filtering.unwrap_or(base.filtering),
        }
    }
}

/// What a request says of a setting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Asked<T> {
    /// Nothing: it stays as it is.
    #[default]
    Nothing,
    /// To be as the configuration says.
    Default,
    /// To be this.
    Value(T),
}

impl<T> Asked<T> {
    /// The setting after the request, where it was `before`.
    pub fn over(self, before: Option<T>) -> Option<T> {
        match self {
            Self::Nothing => before,
            Self::Default => None,
            Self::Value(value) => Some(value),
        }
    }

    /// What is asked for in words, if anything is; `none` for what the configuration says.
    pub fn in_words(self, words: impl FnOnce(T) -> String) -> Option<String> {
        match self {
            Self::Nothing => None,
            Self::Default => Some("none".to_owned()),
            Self::Value(value) => Some(words(value)),
        }
    }
}

/// What a request says of a network's NAT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NatRequest {
    /// Of [`NetworkNat::mapping`].
    pub mapping: Asked<Dependence>,
    /// Of [`NetworkNat::filtering`].
    pub filtering: Asked<Dependence>,
    /// Of [`NetworkNat::v4`].
    pub v4: Asked<NatMode>,
    /// Of [`NetworkNat::v6`].
    pub v6: Asked<NatMode>,
}

impl NatRequest {
    /// The settings after the request.
    pub fn over(self, before: NetworkNat) -> NetworkNat {
        NetworkNat {
            mapping: self.mapping.over(before.mapping),
            filtering: self.filtering.over(before.filtering),
            v4: self.v4.over(before.v4),
            v6: self.v6.over(before.v6),
        }
    }
}

/// Text that names no dependence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no behaviour of a NAT; choose endpoint-independent, address-dependent or \
     address-and-port-dependent"
)]
pub struct DependenceError(pub String);

/// Reads what RFC 4787 calls a dependence.
///
/// # Errors
/// [`DependenceError`] for any other text.
pub fn dependence(text: &str) -> Result<Dependence, DependenceError> {
    let of_label = |dependence: &Dependence| dependence.label() == text;
    Dependence::ALL
        .into_iter()
        .find(of_label)
        .ok_or_else(|| DependenceError(text.to_owned()))
}

/// Text that names no mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no way outside; choose auto, masquerade or routed")]
pub struct NatModeError(pub String);

/// Reads the word for a mode.
///
/// # Errors
/// [`NatModeError`] for any other text.
pub fn nat_mode(text: &str) -> Result<NatMode, NatModeError> {
    let of_label = |mode: &NatMode| mode.label() == text;
    NatMode::ALL
        .into_iter()
        .find(of_label)
        .ok_or_else(|| NatModeError(text.to_owned()))
}

/// A subnet of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// The prefix, without host bits.
    pub prefix: IpNet,
    /// The gateway's address in it; unspecified where the LAN is to have one and has none.
    pub gateway: IpAddr,
    /// Where endpoints get their addresses from; within `prefix`.
    pub pool: IpNet,
}

impl Subnet {
    /// The router that endpoints use.
    pub fn router(&self) -> Option<IpAddr> {
        (!self.gateway.is_unspecified()).then_some(self.gateway)
    }

    /// The prefix, as the dataplane knows it.
    pub fn dataplane_prefix(&self) -> Prefix {
        Prefix::new(self.prefix.network(), self.prefix.prefix_len())
    }
}

/// How far an endpoint's life has come. Written to the store before each step, so that a daemon
/// that was killed half-way knows what to undo or to finish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its device may exist; nobody was told of it. After a crash it is undone.
    Attaching,
    /// It is there.
    Attached,
    /// Its device may be gone. After a crash the rest is removed.
    Detaching,
}

/// The sandbox of an endpoint: a path to its network namespace, and which one was found there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// Where the namespace is opened.
    pub path: PathBuf,
    /// The inode of the namespace in nsfs: another one at the same path is another sandbox.
    pub inode: u64,
}

/// An endpoint: one interface of one sandbox, on one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its switch port.
    pub port: PortId,
    /// Its name.
    pub name: Name,
    /// Its network.
    pub domain: DomainId,
    /// The sandbox.
    pub sandbox: Sandbox,
    /// The interface's name inside.
    pub ifname: String,
    /// The interface's MAC.
    pub mac: MacAddr,
    /// Its addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// How it is connected.
    pub backend: Backend,
    /// Set where that was the daemon's choice.
    pub choice: Option<BackendChoice>,
    /// How far it has come.
    pub phase: Phase,
    /// What is set of its port.
    pub settings: PortSettings,
    /// The VLANs that it is in, where they count.
    pub vlans: PortVlans,
    /// When it was attached, in milliseconds since 1970; 0 where that was not written down.
    pub attached_at: u64,
    /// Its names besides its own.
    pub dns: dns::EndpointDns,
    /// Of several endpoints of a sandbox the highest has the default route.
    pub gw_priority: i32,
    /// What its sandbox reaches by other routers than the gateway.
    pub routes: Vec<StaticRoute>,
    /// Who else knows the endpoint, and as what.
    pub foreign: Option<ForeignId>,
}

impl Endpoint {
    /// Whether it is a part of its network, which comes and goes with the network's NIC.
    pub const fn comes_with_nic(&self) -> bool {
        match self.backend {
            Backend::Nic | Backend::NicXdp | Backend::Host => true,
            Backend::Tap | Backend::TapPlain | Backend::Packet | Backend::Xdp => false,
        }
    }
}

/// A published interval of ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// Names the publication and its NAT rule.
    pub id: u32,
    /// TCP or UDP.
    pub transport: Transport,
    /// The host's address; `None` for all of them.
    pub host_ip: Option<IpAddr>,
    /// The uplink by which alone clients come in, at whatever addresses it has; `None` for all.
    pub uplink: Option<String>,
    /// The host's ports.
    pub host_ports: RangeInclusive<u16>,
    /// Only clients of this prefix.
    pub from: Option<IpNet>,
    /// How new sessions are spread over `targets`.
    pub balance: Balance,
    /// Where it leads, in the order in which they came; never empty.
    pub targets: Vec<PublicationTarget>,
}

/// An endpoint that a publication leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicationTarget {
    /// The endpoint, which is a target of the publication once.
    pub endpoint: PortId,
    /// The endpoint's port for the first of the host's.
    pub inside_port_first: u16,
    /// Its share of the new sessions.
    pub weight: u16,
    /// Whether it gets new sessions.
    pub duty: Duty,
}

impl Publication {
    /// The target that an endpoint is.
    pub fn target(&self, endpoint: PortId) -> Option<&PublicationTarget> {
        self.targets
            .iter()
            .find(|target| target.endpoint == endpoint)
    }

    /// Whether two publications are of the very same ports of the same address or uplink.
    pub fn is_at_ports_of(&self, other: &Self) -> bool {
        (self.transport, self.host_ip) == (other.transport, other.host_ip)
            && self.uplink == other.uplink
            && self.host_ports == other.host_ports
    }

    /// Whether two publications want the same port of the same address, or may come to: an uplink may
    /// get any address but those of the host's loopback.
    pub fn clashes_with(&self, other: &Self) -> bool {
        let ports_overlap = self.host_ports.start() <= other.host_ports.end()
            && other.host_ports.start() <= self.host_ports.end();
        let addresses_overlap = match (&self.uplink, &other.uplink) {
            (Some(one), Some(two)) => one == two,
            (Some(_), None) => other.host_ip.is_none_or(|ip| !ip.is_loopback()),
            (None, Some(_)) => self.host_ip.is_none_or(|ip| !ip.is_loopback()),
            (None, None) => match (self.host_ip, other.host_ip) {
                (Some(one), Some(two)) => one == two,
                (None, _) | (_, None) => true,
            },
        };
        self.transport == other.transport && ports_overlap && addresses_overlap
    }
}

/// The word for a way of spreading sessions.
pub const fn balance_label(balance: Balance) -> &'static str {
    match balance {
        Balance::RoundRobin => "round-robin",
        Balance::SourceHash { .. } => "source-hash",
    }
}

/// The word for whether a target gets new sessions.
pub const fn duty_label(duty: Duty) -> &'static str {
    match duty {
        Duty::Serving => "serving",
        Duty::Draining => "draining",
    }
}

/// The word for a transport in listings and publish specifications.
pub const fn transport_label(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    }
}

/// Everything that the user wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DesiredState {
    /// By bridge domain.
    pub networks: BTreeMap<DomainId, Network>,
    /// By switch port.
    pub endpoints: Endpoints,
    /// By id.
    pub publications: BTreeMap<u32, Publication>,
    /// By bridge domain, VLAN and station.
    pub fdb: BTreeMap<FdbPlace, FdbSetting>,
    /// Addresses that are kept for somebody, by bridge domain.
    pub reservations: BTreeMap<(DomainId, IpAddr), Holder>,
    /// Ports that are set to listen to groups.
    pub mdb: BTreeSet<MdbSetting>,
    /// By name.
    pub mirrors: Mirrors,
    /// By name.
    pub mirror_files: MirrorFiles,
    /// NICs that are on networks, by switch port.
    pub nics: BTreeMap<PortId, NicSetting>,
    /// Rules, in their order.
    pub rules: Vec<RuleSetting>,
}

impl DesiredState {
    /// The network of that name.
    pub fn network(&self, name: &str) -> Option<&Network> {
        self.networks
            .values()
            .find(|network| network.name.as_str() == name)
    }

    /// The endpoint of that name.
    pub fn endpoint(&self, name: &str) -> Option<&Endpoint> {
        self.endpoints.named(name)
    }

    /// The endpoints of a network.
    pub fn endpoints_of(&self, domain: DomainId) -> impl Iterator<Item = &Endpoint> {
        self.endpoints
            .values()
            .filter(move |endpoint| endpoint.domain == domain)
    }

    /// The NIC of a network.
    pub fn nic_of(&self, domain: DomainId) -> Option<&Endpoint> {
        self.endpoints_of(domain)
            .find(|endpoint| endpoint.backend.is_nic())
    }

    /// The publications of an endpoint.
    pub fn publications_of(&self, port: PortId) -> impl Iterator<Item = &Publication> {
        self.publications
            .values()
            .filter(move |publication| publication.target(port).is_some())
    }

    /// The network of an endpoint.
    pub fn network_of(&self, endpoint: &Endpoint) -> Option<&Network> {
        self.networks.get(&endpoint.domain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels_with_underscores_and_dots() {
        for good in ["web1", "a", "0", "A_b-c.d"] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        let long = "x".repeat(NAME_LEN_MAX + 1);
        for bad in ["", "-a", ".a", "_a", "a b", "a/b", "é", long.as_str()] {
            assert_eq!(bad.parse::<Name>(), Err(NameError(bad.to_owned())));
        }
    }

    #[test]
    fn publications_clash_on_the_same_port_of_an_overlapping_address() {
        let one = Publication {
            id: 1,
            transport: Transport::Tcp,
            host_ip: None,
            uplink: None,
            host_ports: 8_000..=8_010,
            from: None,
            balance: Balance::RoundRobin,
            targets: Vec::new(),
        };
        let mut two = one.clone();
        two.host_ports = 8_010..=8_020;
        assert!(one.clashes_with(&two) && two.clashes_with(&one));
        two.host_ip = Some("10.0.0.1".parse().unwrap());
        assert!(one.clashes_with(&two) && two.clashes_with(&one));
        two.transport = Transport::Udp;
        assert!(!one.clashes_with(&two));
        two.transport = Transport::Tcp;
        two.host_ports = 8_011..=8_020;
        assert!(!one.clashes_with(&two));
    }

    #[test]
    fn publications_of_two_uplinks_do_not_clash_and_all_else_beside_an_uplink_does() {
        let at = |host_ip: Option<&str>, uplink: Option<&str>| Publication {
            id: 1,
            transport: Transport::Tcp,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            uplink: uplink.map(str::to_owned),
            host_ports: 80..=80,
            from: None,
            balance: Balance::RoundRobin,
            targets: Vec::new(),
        };
        let own = at(None, Some("up0"));
        for (other, clashes) in [
            (at(None, Some("up1")), false),
            (at(None, Some("up0")), true),
            (at(None, None), true),
            (at(Some("192.0.2.1"), None), true),
            (at(Some("127.0.0.1"), None), false),
            (at(Some("::1"), None), false),
        ] {
            assert_eq!(own.clashes_with(&other), clashes, "{other:?}");
            assert_eq!(other.clashes_with(&own), clashes, "{other:?}");
            assert_eq!(own.is_at_ports_of(&other), other == own);
        }
    }
}
