//! Reading ahead: what the frames of a batch will ask of a large table, fetched all at once.
//!
//! With a million stations each lookup waits for main memory, 100 ns, while the processor could
//! wait for ten reads at a time. A worker has a whole batch in hand, so it first reads the FDB's
//! lines of every frame, whose waits overlap, and then forwards frame by frame from its caches.
//! Nothing is decided here, and a line that is taken away in between is only read again.

use core::hint::black_box;

use crate::addr::PortId;
use crate::fdb::FdbKey;
use crate::frame::FrameBuf;
use crate::headers::ETHERNET_SIZE;
use crate::l2;
use crate::path::Switch;

/// Stations from which on reading ahead pays: a line each, they no longer fit into a processor's
/// own caches of a few hundred kilobytes.
pub const STATIONS_MIN: usize = 4_096;

/// Reads ahead for frames that all entered by `ingress`. Once per batch, before they are forwarded.
#[inline]
pub fn look_ahead<'f>(sw: &Switch, ingress: PortId, frames: impl Iterator<Item = &'f FrameBuf>) {
    if sw.fdb.len() < STATIONS_MIN {
        return;
    }
    let port = sw.topology.port(ingress);
    let Some(domain) = port.and_then(|port| sw.topology.bridge_domain(port)) else {
        return;
    };
    let mut read = 0;
    for frame in frames {
        let Some(ethernet) = frame.bytes().first_chunk::<ETHERNET_SIZE>() else {
            continue;
        };
        for mac in l2::addresses(ethernet) {
            read ^= sw.fdb.touch(FdbKey::new(domain.id, l2::TRANSPARENT, mac));
        }
    }
    // Otherwise the compiler may leave the reads out.
    black_box(read);
}
