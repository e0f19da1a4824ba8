//! Network address translation: dynamic source NAT and published ports, IPv4 and IPv6 alike.
//!
//! # Theory of operation
//! *Inside to outside*: an inside address and port gets one external port for all remotes
//! (endpoint-independent mapping, RFC 4787 REQ-1), preferably its own number; each remote that it
//! talks to gets a session, and only packets of sessions come back in (address-and-port-dependent
//! filtering, REQ-8). Only when every port is taken do endpoints share one, each towards remotes of
//! its own. *Outside to inside*: published ports are intervals of the topology; the
//! client's address is kept. *Hairpin*: an inside host that addresses an external port of ours is
//! translated on both sides (REQ-9). ICMP errors about any of these are translated with the
//! packet that they quote, and never end a session (REQ-12).
//!
//! The external port agrees with the inside port modulo [`SHARDS`], and that residue is the
//! shard: both directions of a flow find it without a lookup. Sessions of published ports live in
//! the shard of a hash of their remote, for the same reason.
//!
//! Start with `translate.rs`: `outbound`, `inbound` and `hairpin` of [`NatView`]. `follow.rs` is the
//! short way of a packet whose session knows where its flow leaves.
//!
//! Limits: [`NatConfig::sessions_max`], [`NatConfig::sessions_per_endpoint_max`], the port range
//! (for each external address and protocol), [`RULES_MAX`], [`FRAGMENTS_MAX`]. A full table first
//! drops what has expired, then transitory TCP sessions, and then refuses the new session.
//! Payload is never looked at: there are no application gateways (RFC 4787 REQ-10).

mod follow;
mod forward;
mod fragment;
mod hash;
mod icmp;
mod open;
mod packet;
mod pool;
mod rewrite;
mod session;
mod shared;
mod slab;
mod table;
mod translate;

#[cfg(test)]
mod tests;

use std::ops::RangeInclusive;

use crate::time::Duration;

pub(crate) use follow::Leaving;
pub use forward::{RULES_MAX, RuleError, StaticRule, StaticRules, Transport};
pub use fragment::{FRAGMENT_TIMEOUT_SECONDS, FRAGMENTS_MAX};
pub use pool::SHARDS;
pub use session::{Direction, NatProtocol, SessionInfo, SessionState};
pub use shared::{Gauges, Nat, NatView};
pub use translate::{Inbound, Outside, Translation};

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
