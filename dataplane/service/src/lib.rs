//! What the switch itself says on its networks, written with smoltcp's wire representations.
//!
//! | module | says |
//! |---|---|
//! | [`announce`] | where an address is now: gratuitous ARP, unsolicited neighbour advertisement |

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod announce;
