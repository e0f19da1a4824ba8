//! The sans-IO core of Causeway: a learning switch with a routing, translating gateway.
//!
//! Start with [`path`]: it is the data path, in order. The core reads no clock, starts no thread,
//! writes no log and touches no descriptor; time comes in as an argument. The same frames and
//! the same times give the same verdicts, in a worker, in a simulation and in `causeway why`.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod addr;
pub mod ahead;
pub mod checksum;
pub mod counters;
mod cut;
pub mod fdb;
pub mod frame;
pub mod gso;
pub mod headers;
pub mod l2;
pub mod link;
pub mod multicast;
pub mod nat;
pub mod path;
pub mod policy;
pub mod reply;
pub mod route;
pub mod time;
pub mod topology;
pub mod trace;
pub mod verdict;
