//! DNS for the endpoints of a network, at its gateway.
//!
//! # Theory of operation
//! A question about an endpoint's name is answered from the [`Zones`], an immutable picture of the
//! control plane's table of endpoints. Every other question is asked of upstream servers, for all
//! who ask it at the same time once, and what they say is kept in the [`Cache`](cache::Cache) for as
//! long as they say. The [`Resolver`] does no I/O: it says what to send to which server, and is told
//! what came back, or that time has passed. It never lets a client wait for longer than
//! [`resolver::WAIT_MAX`]: a stub resolver would ask again after five seconds.
//!
//! What is decided where is in decision 0024. Limits are with what has them.

pub mod cache;
pub mod counters;
mod index;
pub mod message;
pub mod resolver;
pub mod zone;

pub use counters::{Counters, CountersView, UpstreamView};
pub use resolver::{Answer, How, Resolver, Send, Via};
pub use zone::{EndpointNames, NetworkNames, Zones};

#[cfg(test)]
mod tests;
