//! Network address translation: dynamic source NAT and published ports, IPv4 and IPv6 alike.
//!
//! # Theory of operation
//! *Inside to outside*: an inside address and port gets one external port for all remotes
//! (endpoint-independent mapping, RFC 4787 REQ-1), preferably its own number; each remote that it
//! talks to gets a session, and only packets of sessions come back in (address-and-port-dependent
//! filtering, REQ-8). Only when every port is taken do endpoints share one, each towards remotes of
//! its own. *Outside to inside*: published ports are intervals of the topology; the
//! client's address is kept, and where a rule leads to several targets, each new session is given to
//! one of them (`target.rs`). *Hairpin*: an inside host that addresses an external port of ours is
//! translated on both sides (REQ-9). ICMP errors about any of these are translated with the
//! packet that they quote, and never end a session (REQ-12). *Routed* networks keep their own
//! addresses outside: a mapping then leads to itself, and the same tables track the flow.
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

mod account;
mod config;
mod endpoints;
mod follow;
mod forward;
mod fragment;
mod hash;
mod icmp;
mod identification;
mod index;
mod journal;
mod keep;
mod lock;
mod mss;
mod open;
mod packet;
mod pool;
mod published;
mod rewrite;
mod routed;
mod session;
mod shared;
mod slab;
mod spans;
mod table;
mod target;
mod translate;
mod usage;

#[cfg(test)]
mod tests;

pub use account::{Account, Totals};
pub use config::{
    Behaviour, Dependence, NatConfig, NatConfigError, PORT_RANGE_DEFAULT, SESSIONS_MAX_DEFAULT,
    SESSIONS_PER_ENDPOINT_MAX_DEFAULT, Timeouts,
};
pub(crate) use follow::Passing;
pub use forward::{External, RULES_MAX, RuleError, StaticRule, StaticRules, Transport};
pub use fragment::{FRAGMENT_TIMEOUT_SECONDS, FRAGMENTS_MAX};
pub(crate) use hash::FlowHash;
pub(crate) use icmp::flow_of_error;
pub use journal::{LAG_ESTABLISHED_SECONDS, LAG_SECONDS};
pub use keep::{Restored, SaveCursor, SavedSession, SlotId};
pub(crate) use mss::clamp as clamp_mss;
pub use pool::SHARDS;
pub use session::{Direction, NatProtocol, SessionInfo, SessionState};
pub use shared::{Gauges, Nat, NatView};
pub use target::{Balance, Duty, Rotation, TARGETS_MAX, Target, WEIGHT_MAX};
pub use translate::{Inbound, Outside, Translation};
pub use usage::{EndpointUsage, PoolUsage, Usage};
