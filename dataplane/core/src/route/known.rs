//! The short ways of packets whose sessions remember theirs: what `passage` decides step by step was
//! decided for the session already (`nat/follow.rs`).

use super::Passage;
use crate::addr::DomainId;
use crate::gso;
use crate::nat::Passing;
use crate::topology::Uplink;
use crate::trace::Trace;
use crate::verdict::{DropReason, Verdict};

impl<'p, T: Trace> Passage<'p, '_, T> {
    /// Out by the way that the session of an endpoint's packet remembers. `None`, and nothing changed,
    /// when there is none.
    #[inline(always)]
    pub(super) fn known_way_out(&mut self, domain: DomainId) -> Option<Verdict> {
        let passing = self.passing()?;
        let nat = &mut self.state.nat;
        let leaving = nat.leave(&passing, domain, self.frame, self.headers)?;
        self.trace_nat(&leaving.translation);
        let exit = leaving.exit;
        Some(self.send_by_uplink(exit.uplink, exit.port, &exit.src, leaving.mac))
    }

    /// In by the way that the session of a packet from outside remembers. `None`, and nothing changed,
    /// when there is none.
    #[inline(always)]
    pub(super) fn known_way_in(&mut self, uplink: &Uplink) -> Option<Result<Verdict, DropReason>> {
        // Rules are asked about every packet that comes in.
        if self.headers.dst != uplink.mac || !self.topology.policy.is_empty() {
            return None;
        }
        let passing = self.passing()?;
        let nat = &mut self.state.nat;
        let entering = nat.enter(&passing, self.frame, self.headers)?;
        self.trace_nat(&entering.translation);
        Some(self.send_to_neighbour(entering.domain, entering.gateway, entering.neighbour))
    }

    /// A whole packet without a tag that has a hop left to make.
    #[inline(always)]
    fn passing(&self) -> Option<Passing<'p>> {
        let ip = self.headers.ip()?;
        if self.headers.tag.is_some() || ip.ttl <= 1 || ip.fragment.is_some() {
            return None;
        }
        Some(Passing {
            topology: self.topology,
            size: gso::packet_size(&self.frame.buf.offload, self.headers)?,
            now: self.now,
        })
    }
}
