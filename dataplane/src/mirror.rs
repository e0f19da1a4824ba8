//! Copies for mirrors: made before a frame is forwarded, and again before it leaves.
//!
//! They are enqueued like other copies and counted among them, and apart as well
//! (`mirrored`). They are no frames of the core: nothing learns or forwards them, and no mirror sees
//! them. A worker without a mirror in its picture asks for one once per batch. What enters is shown
//! behind the link of its port, what leaves before it.

use std::sync::Arc;

use dataplane_core::addr::{PortId, VlanId};
use dataplane_core::frame::{Frame, FrameBuf};
use dataplane_core::l2::{Mirror, TRANSPARENT, reshape};
use dataplane_core::link::Unseen;
use dataplane_core::path::Switch;
use dataplane_core::time::Instant;
use dataplane_core::topology::{Port, Topology};
use dataplane_core::verdict::{Consumer, Verdict};

use crate::mac_nat;
use crate::stats::EgressDrop;
use crate::worker::{Slot, Worker};

impl Worker {
    /// Whether there is any mirror.
    #[inline]
    pub fn is_mirroring(&self) -> bool {
        !self.switch.topology.mirrors.is_empty()
    }

    /// Takes a frame to its verdict, by `judge`, with copies for mirrors.
    #[cold]
    pub fn forward_mirrored(
        &mut self,
        ingress: PortId,
        mut buf: FrameBuf,
        now: Instant,
        judge: impl FnOnce(&mut Switch, &mut Frame<'_>, Instant, &mut Unseen) -> Verdict,
    ) {
        self.mirror_entering(ingress, &buf);
        let mut frame = Frame::new(ingress, &mut buf);
        let verdict = judge(&mut self.switch, &mut frame, now, &mut Unseen);
        self.dispatch_mirrored(ingress, buf, verdict);
    }

    /// Carries out a verdict where mirrors may have a copy.
    pub fn dispatch_mirrored(&mut self, ingress: PortId, buf: FrameBuf, verdict: Verdict) {
        if self.is_mirroring() {
            self.mirror_leaving(ingress, &buf, verdict);
        }
        self.dispatch(ingress, buf, verdict);
    }

    /// Copies a frame that has entered, as it came.
    #[cold]
    pub fn mirror_entering(&mut self, ingress: PortId, buf: &FrameBuf) {
        let topology = Arc::clone(&self.switch.topology);
        let Some(port) = topology.port(ingress) else {
            return;
        };
        for mirror in topology.mirrors.iter().filter(|m| m.copies_from(port)) {
            self.mirror(mirror, buf, |_| {});
        }
    }

    /// Copies a frame that is about to leave, as it leaves by each port.
    #[cold]
    pub fn mirror_leaving(&mut self, ingress: PortId, buf: &FrameBuf, verdict: Verdict) {
        let topology = Arc::clone(&self.switch.topology);
        match verdict {
            Verdict::Bridged(port)
            | Verdict::Routed(port)
            | Verdict::Replied(port)
            | Verdict::Delivered(Consumer::HostLink(port)) => {
                self.mirror_leaving_by(&topology, port, buf, TRANSPARENT);
            }
            Verdict::Flooded(domain, vlan, class) => {
                for port in topology.flood_set(domain, vlan, ingress, class) {
                    self.mirror_leaving_by(&topology, port, buf, vlan);
                }
            }
            Verdict::Multicast(_, vlan) => {
                let takers = self.switch.groups.take_takers();
                for port in &takers {
                    self.mirror_leaving_by(&topology, *port, buf, vlan);
                }
                self.switch.groups.return_takers(takers);
            }
            Verdict::Delivered(Consumer::Service(_))
            | Verdict::Held(_)
            | Verdict::NotOurs
            | Verdict::Drop(_) => {}
        }
    }

    /// Copies a frame of a VLAN that is about to leave by one port.
    pub fn mirror_leaving_by(
        &mut self,
        topology: &Topology,
        port: PortId,
        buf: &FrameBuf,
        vlan: VlanId,
    ) {
        let Some(port) = topology.port(port) else {
            return;
        };
        let form_of = |port: &Port| (vlan != TRANSPARENT).then(|| port.form(vlan))?;
        let form = form_of(port).map(|form| (vlan, form));
        for mirror in topology.mirrors.iter().filter(|m| m.copies_to(port)) {
            self.mirror(mirror, buf, |copy| {
                if let Some((vlan, form)) = form {
                    reshape(copy, vlan, form);
                }
                mac_nat::show(topology, port.id, copy);
            });
        }
    }

    fn mirror(&mut self, mirror: &Mirror, buf: &FrameBuf, fit: impl FnOnce(&mut FrameBuf)) {
        let copy = self.batch.take_copy(buf);
        let counters = self.lanes.get(mirror.to.index()).and_then(Slot::counters);
        let Some(counters) = counters else {
            // Its port is gone, and with it whom to tell.
            if let Some(copy) = copy {
                self.batch.recycle(copy);
            }
            return;
        };
        counters.mirrored.add(1);
        let Some(mut copy) = copy else {
            counters.enqueued.add(1);
            return counters.record_drop(EgressDrop::QueueFull);
        };
        fit(&mut copy);
        self.enqueue(mirror.to, copy);
    }
}
