//! Frames that wait for the MAC of their next hop, as a router's ARP queue does (RFC 1122
//! section 2.3.2.2).
//!
//! A frame is held fully rewritten; only its destination MAC is missing. It is released when a
//! topology brings the neighbour, or given up after [`HOLD_TIME`].

use std::collections::VecDeque;
use std::net::IpAddr;

use crate::addr::{PortId, UplinkId};
use crate::frame::FrameBuf;
use crate::reply;
use crate::time::{Duration, Instant};
use crate::topology::Topology;
use crate::verdict::{DropReason, Verdict};

/// Frames that one worker holds in all.
pub const HELD_MAX: usize = 256;
/// Frames held for one next hop, as Linux's `unres_qlen` did in frames.
pub const HELD_PER_NEXT_HOP_MAX: usize = 16;
/// How long a frame waits: as long as Linux asks before it gives a neighbour up, 3 × 1 s.
pub const HOLD_TIME: Duration = Duration::from_secs(3);

/// A held frame.
#[derive(Debug)]
struct Held {
    ingress: PortId,
    uplink: UplinkId,
    next_hop: IpAddr,
    buf: FrameBuf,
    since: Instant,
}

/// One worker's held frames, oldest first.
#[derive(Debug, Default)]
pub struct Holding {
    held: VecDeque<Held>,
    /// Next hops that were not yet reported as wanted.
    wanted: Vec<(UplinkId, IpAddr)>,
}

impl Holding {
    /// Keeps a copy of a frame until its next hop is known.
    ///
    /// # Errors
    /// [`DropReason::NextHopUnresolved`] when as many are held as may be.
    pub fn hold(
        &mut self,
        ingress: PortId,
        (uplink, next_hop): (UplinkId, IpAddr),
        buf: &FrameBuf,
        now: Instant,
    ) -> Result<(), DropReason> {
        let waiting = |held: &&Held| (held.uplink, held.next_hop) == (uplink, next_hop);
        let same = self.held.iter().filter(waiting).count();
        if same >= HELD_PER_NEXT_HOP_MAX || self.held.len() >= HELD_MAX {
            return Err(DropReason::NextHopUnresolved);
        }
        if !self.wanted.contains(&(uplink, next_hop)) {
            self.wanted.push((uplink, next_hop));
        }
        let mut copy = FrameBuf::with_capacity(buf.len());
        copy.copy_from(buf.bytes(), buf.offload);
        self.held.push_back(Held {
            ingress,
            uplink,
            next_hop,
            buf: copy,
            since: now,
        });
        Ok(())
    }

    /// The next hops that frames have begun to wait for since the last call.
    pub fn take_wanted(&mut self) -> Vec<(UplinkId, IpAddr)> {
        core::mem::take(&mut self.wanted)
    }

    /// Takes out the oldest frame whose waiting is over, with its verdict. Call until `None`.
    pub fn release(
        &mut self,
        topology: &Topology,
        now: Instant,
    ) -> Option<(PortId, FrameBuf, Verdict)> {
        for index in 0..self.held.len() {
            let held = &self.held[index];
            let uplink = topology.uplink(held.uplink);
            let resolved = uplink.and_then(|up| Some((up, up.mac_of(held.next_hop)?)));
            if resolved.is_none() && now.since(held.since) < HOLD_TIME {
                continue;
            }
            let mut held = self.held.remove(index)?;
            let verdict = match resolved {
                Some((uplink, mac)) => {
                    reply::set_macs(&mut held.buf, &mac, &uplink.mac);
                    Verdict::Routed(uplink.port)
                }
                None => Verdict::Drop(DropReason::NextHopUnresolved),
            };
            return Some((held.ingress, held.buf, verdict));
        }
        None
    }

    /// Frames that are held.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether no frame is held.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}
