//! Reading ahead: what the frames of a batch will ask of a large table, fetched all at once.
//!
//! With a million stations each lookup waits for main memory, 100 ns, while the processor could
//! wait for twenty reads at a time. A worker has a whole batch in hand, so it first reads the FDB's
//! lines of every frame, whose waits overlap, and then forwards frame by frame from its caches.
//! Nothing is decided here, and a line that is taken away in between is only read again.
//!
//! Where the lines are is computed before the first of them is read: a processor looks some two
//! hundred instructions ahead of one that waits, which is three frames' hashes, but sixty bare reads.

use core::hint::black_box;

use crate::addr::{MacAddr, PortId};
use crate::frame::FrameBuf;
use crate::headers::ETHERNET_SIZE;
use crate::l2;
use crate::path::Switch;

/// Lines that are read ahead: two for each frame of a full batch of minimum-size frames. Frames after
/// them are forwarded as they are.
const LINES: usize = 2 * 64;

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
    let mut lines = [0; LINES];
    let mut filled = 0;
    let mut last = MacAddr::ZERO;
    for frame in frames {
        let Some(ethernet) = frame.bytes().first_chunk::<ETHERNET_SIZE>() else {
            continue;
        };
        let Some([first, second]) = lines[filled..].first_chunk_mut() else {
            break;
        };
        let [dst, src] = l2::addresses(ethernet);
        *first = sw.fdb.line_of(domain.id, dst);
        filled += 1;
        // Most senders have more than one frame in a batch.
        if src != last {
            *second = sw.fdb.line_of(domain.id, src);
            filled += 1;
            last = src;
        }
    }
    // Otherwise the compiler may leave the reads out.
    black_box(sw.fdb.read_lines(&lines[..filled]));
}
