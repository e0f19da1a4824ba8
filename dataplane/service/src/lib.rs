//! What the switch itself says on its networks. Sans-IO: frames and messages in, frames and messages
//! out, time as an argument; threads and sockets are the dataplane's.
//!
//! | module | says |
//! |---|---|
//! | [`announce`] | where an address is now: gratuitous ARP, unsolicited neighbour advertisement |
//! | [`stack`] | UDP and TCP at the DNS port of a gateway, by smoltcp |
//! | [`dns`] | which address a name has: names of endpoints, and what upstream servers know |

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod announce;
pub mod dns;
pub mod stack;
