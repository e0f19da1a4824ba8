//! Network address translation: dynamic source NAT and published ports.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use crate::addr::{DomainId, Prefix};
use crate::time::Duration;

/// External ports that dynamic mappings use when the configuration names none: the upper part of
/// the range that IANA leaves to ephemeral ports (RFC 6335 section 6).
pub const PORT_RANGE_DEFAULT: RangeInclusive<u16> = 49_152..=65_535;
/// Sessions of all shards together.
pub const SESSIONS_MAX_DEFAULT: usize = 1_048_576;
/// Sessions of one inside address, so that one endpoint cannot starve the others.
pub const SESSIONS_PER_ENDPOINT_MAX_DEFAULT: usize = 65_536;

/// Ranges, timeouts and limits of the NAT.
#[derive(Clone, Debug)]
pub struct NatConfig {
    /// External ports that dynamic mappings are made from, ICMP identifiers included.
    pub port_range: RangeInclusive<u16>,
    /// How long sessions live.
    pub timeouts: Timeouts,
    /// Sessions of all shards together.
    pub sessions_max: usize,
    /// Sessions of one inside address.
    pub sessions_per_endpoint_max: usize,
}

impl Default for NatConfig {
    fn default() -> Self {
        Self {
            port_range: PORT_RANGE_DEFAULT,
            timeouts: Timeouts::default(),
            sessions_max: SESSIONS_MAX_DEFAULT,
            sessions_per_endpoint_max: SESSIONS_PER_ENDPOINT_MAX_DEFAULT,
        }
    }
}

/// How long a session lives without traffic.
#[derive(Clone, Debug)]
pub struct Timeouts {
    /// Both sides have sent; RFC 5382 REQ-5: at least 2 h 4 min.
    pub tcp_established: Duration,
    /// Opening or closing; RFC 5382 REQ-5: at least 4 min.
    pub tcp_transitory: Duration,
    /// RFC 4787 REQ-5: at least 2 min, 5 min recommended.
    pub udp: Duration,
    /// RFC 5508 REQ-2: at least 60 s.
    pub icmp: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_established: Duration::from_secs(2 * 3600 + 4 * 60),
            tcp_transitory: Duration::from_secs(4 * 60),
            udp: Duration::from_secs(5 * 60),
            icmp: Duration::from_secs(60),
        }
    }
}

/// A transport that ports can be published of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A published interval of ports: external `external_ports` lead to `inside`, starting at
/// `inside_port_first`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StaticRule {
    /// Names the rule in counters, traces and listings.
    pub id: u32,
    /// TCP or UDP.
    pub transport: Transport,
    /// The external address; `None` for every address of the host of `inside`'s family.
    pub external: Option<IpAddr>,
    /// External ports, both ends included.
    pub external_ports: RangeInclusive<u16>,
    /// The network of the endpoint.
    pub domain: DomainId,
    /// The endpoint's address.
    pub inside: IpAddr,
    /// The endpoint's port for the first external one.
    pub inside_port_first: u16,
    /// Only clients of this prefix; `None` for all.
    pub from: Option<Prefix>,
}

/// Every published interval of a topology, searchable from both sides.
#[derive(Clone, Debug, Default)]
pub struct StaticRules {
    rules: Vec<StaticRule>,
}

impl StaticRules {
    /// The rules, in the order in which they were added.
    pub fn rules(&self) -> &[StaticRule] {
        &self.rules
    }
}
