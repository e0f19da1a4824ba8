//! Copies that leave by a port with one MAC for everybody: fitted to it last of all, where the worker that
//! owns the port takes them up.

use dataplane_core::addr::PortId;
use dataplane_core::frame::FrameBuf;
use dataplane_core::l2::{PortFlags, Untranslatable};
use dataplane_core::topology::Topology;

use crate::stats::EgressDrop;
use crate::worker::{Slot, Worker};

impl From<Untranslatable> for EgressDrop {
    fn from(reason: Untranslatable) -> Self {
        match reason {
            Untranslatable::NotIp => Self::MacNatNotIp,
            Untranslatable::Unreadable => Self::MacNatUnreadable,
            Untranslatable::Full => Self::MacNatFull,
        }
    }
}

impl Worker {
    /// Gives a copy the MAC of its port, once: not yet where the port's queue is on its way here.
    /// `false` for a copy that is not to leave, which is counted.
    // Cold for the sake of the other ports.
    #[cold]
    #[inline(never)]
    pub fn leave_by_one_mac(&self, port: PortId, buf: &mut FrameBuf) -> bool {
        let topology = &self.switch.topology;
        let found = topology.port(port);
        let domain = found.and_then(|port| topology.bridge_domain(port));
        let nat = found.and_then(|port| port.profile.mac_nat.as_ref());
        let (Some(port), Some(domain), Some(nat)) = (found, domain, nat) else {
            return true;
        };
        let Some(Slot::Own { lane, .. }) = self.lanes.get(port.id.index()) else {
            return true;
        };
        // The batch that it came in is a moment ago.
        let left = nat.leave(port, domain, buf, self.instant(self.last_busy));
        left.inspect_err(|reason| lane.counters.record_drop((*reason).into()))
            .is_ok()
    }

    /// Sends a copy of what is flooded to a port that has another MAC written into it.
    #[cold]
    #[inline(never)]
    pub fn send_copy(&mut self, port: PortId, buf: &FrameBuf) {
        match self.batch.take_copy(buf) {
            Some(copy) => self.enqueue(port, copy),
            None => {
                let counters = self.lanes.get(port.index()).and_then(Slot::counters);
                if let Some(counters) = counters {
                    counters.enqueued.add(1);
                    counters.record_drop(EgressDrop::QueueFull);
                }
            }
        }
    }
}

/// Shows a frame as it leaves by a port: with its one MAC, if it has one.
pub(crate) fn show(topology: &Topology, port: PortId, buf: &mut FrameBuf) {
    let port = topology.port(port);
    let nat = port.and_then(|port| {
        let on = port.flags.has(PortFlags::MAC_NAT);
        port.profile.mac_nat.as_ref().filter(|_| on)
    });
    if let Some(nat) = nat {
        // What cannot leave is shown as far as it came.
        let _ = nat.rewrite(buf);
    }
}
