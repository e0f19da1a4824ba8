//! Frames of the switch's own: questions to listeners, loop probes, what its services answer, and in
//! `announcing` announcements. No port received them, so they get no verdict; their copies are counted
//! like all others.

use std::sync::Arc;

use dataplane_core::frame::Offload;
use dataplane_core::l2::{PortFlags, ProbeKey, reshape};
use dataplane_core::time::Instant;
use dataplane_core::topology::Topology;
use dataplane_core::verdict::Verdict;

use crate::command::Notice;
use crate::service::{INJECTED_MAX, SERVICE_WORKER};
use crate::worker::Worker;

impl Worker {
    /// Whether the service thread has frames for this worker to send.
    pub fn is_injected(&self) -> bool {
        self.index == SERVICE_WORKER && !self.shared.injected.is_empty()
    }

    /// Sends what the service thread answers, each to the one port where its client is.
    pub fn take_injected(&mut self) {
        if !self.is_injected() {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let topology = Arc::clone(&self.switch.topology);
        for _ in 0..INJECTED_MAX {
            // One buffer for the other, so that the service thread does not run out.
            let Some(spare) = self.batch.take_buffer() else {
                break;
            };
            let Some((id, mut buf)) = shared.injected.take() else {
                self.batch.recycle(spare);
                break;
            };
            shared.injected.give_back(spare);
            let port = topology.port_up(id);
            let domain = port.and_then(|port| topology.bridge_domain(port));
            let (Some(port), Some(domain)) = (port, domain) else {
                self.batch.recycle(buf);
                continue;
            };
            if domain.filters() {
                let form = port.form(domain.gateway_vlan);
                let vlan = domain.gateway_vlan;
                if !form.is_some_and(|form| reshape(&mut buf, vlan, form)) {
                    self.batch.recycle(buf);
                    continue;
                }
            }
            if self.is_mirroring() {
                self.mirror_leaving(id, &buf, Verdict::Replied(id));
            }
            self.enqueue(id, buf);
        }
        self.flush_touched();
    }

    /// Asks who listens to groups, where the switch is the querier. Its questions enter by no port
    /// and get no verdict, like announcements; their copies are counted like all others.
    pub fn ask_listeners(&mut self, topology: &Topology, now: Instant) {
        let mut questions = core::mem::take(&mut self.questions);
        let mdb = Arc::clone(self.switch.groups.mdb());
        mdb.tick(topology, now, &mut questions);
        for question in questions.drain(..) {
            let Some(mut buf) = self.batch.take_buffer() else {
                break;
            };
            if !question.write(topology, &mut buf) {
                self.batch.recycle(buf);
                continue;
            }
            mdb.count_sent(1);
            if self.is_mirroring() {
                for port in topology.asked(question) {
                    self.mirror_leaving_by(topology, port, &buf, question.vlan);
                }
            }
            self.send_copies(question.vlan, || topology.asked(question), buf);
        }
        self.questions = questions;
    }

    /// Sends a loop probe by every port that is to detect loops, each at once: there may be more
    /// ports than buffers.
    pub fn send_probes(&mut self, key: ProbeKey) {
        let topology = Arc::clone(&self.switch.topology);
        let ports = topology.ports.iter().flatten();
        for port in ports.filter(|port| port.up && port.flags.has(PortFlags::LOOP_DETECT)) {
            let Some(mut buf) = self.batch.take_buffer() else {
                return;
            };
            buf.copy_from(&key.probe(port.id), Offload::NONE);
            if self.is_mirroring() {
                self.mirror_leaving(port.id, &buf, Verdict::Replied(port.id));
            }
            self.enqueue(port.id, buf);
            self.flush_touched();
        }
    }

    /// Tells the control side what was noticed about the wiring.
    pub fn tell_sightings(&mut self) {
        while let Some(sighting) = self.switch.bridge.watch.take_sighting() {
            self.notify(Notice::Sighted(sighting));
        }
        let untold = self.switch.bridge.watch.take_untold();
        self.counters.notices_lost.add(untold);
        while let Some(claim) = self.switch.bridge.claims.take() {
            self.notify(Notice::Claimed(claim));
        }
    }
}
