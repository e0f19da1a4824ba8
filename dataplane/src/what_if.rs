//! What would happen to a frame, by the very code that would do it, with nothing changed.
//!
//! The question runs [`forward`] on a switch of its own: the current topology, and views that read
//! the live tables and keep what they write to themselves. One thing it cannot see: how many frames
//! a worker already holds for an unresolved next hop, which is that worker's alone.

use std::borrow::Cow;
use std::sync::Arc;

use dataplane_core::addr::PortId;
use dataplane_core::counters::Counters;
use dataplane_core::fdb::FdbView;
use dataplane_core::frame::{FRAME_SIZE_MAX, Frame, FrameBuf, Offload};
use dataplane_core::l2::{self, PortFlags, StormView, TRANSPARENT, reshape};
use dataplane_core::multicast::MdbView;
use dataplane_core::path::{Switch, forward};
use dataplane_core::policy::RuleSlot;
use dataplane_core::route::State;
use dataplane_core::topology::Topology;
use dataplane_core::trace::{Recorder, Step};
use dataplane_core::verdict::Verdict;

use crate::{Dataplane, Error, mac_nat};

/// A switch for questions: what one frame changes, the next one sees, and nobody else.
#[derive(Debug)]
pub struct WhatIf {
    switch: Switch,
    now: dataplane_core::time::Instant,
}

/// The answer about one frame.
#[derive(Clone, Debug)]
pub struct Foretold {
    /// What would become of it.
    pub verdict: Verdict,
    /// How it would come to that.
    pub steps: Vec<Step>,
    /// The frame as it would leave, or where it would end.
    pub frame: Vec<u8>,
    /// The ports that it would leave by.
    pub egress: Vec<PortId>,
}

impl Dataplane {
    /// The packets that the rule of a slot has decided on, and their bytes, of all workers.
    pub fn rule_hits(&self, slot: RuleSlot) -> (u64, u64) {
        let hits = self
            .workers
            .iter()
            .map(|worker| worker.core.rule_hits(slot));
        hits.fold((0, 0), |(packets, bytes), hits| {
            (packets + hits.0, bytes + hits.1)
        })
    }

    /// Opens a switch for questions, on the state of this moment.
    pub fn what_if(&self) -> WhatIf {
        WhatIf {
            switch: Switch {
                topology: self.topology(),
                fdb: FdbView::overlay(Arc::clone(self.fdb())),
                bridge: l2::State::new(self.probe_key),
                storm: StormView::overlay(Arc::clone(&self.storm)),
                groups: MdbView::overlay(Arc::clone(self.mdb())),
                gateway: State::overlay(self.gateway()),
                counters: Arc::new(Counters::default()),
            },
            now: self.now(),
        }
    }

    /// A hash of everything that frames change: FDB, MDB, NAT and flows. Equal states have equal hashes.
    pub fn state_hash(&self) -> u64 {
        self.fdb()
            .state_hash()
            .wrapping_add(self.mdb().state_hash().rotate_left(2))
            .wrapping_add(self.gateway().nat.state_hash().rotate_left(1))
            .wrapping_add(self.gateway().flows.state_hash().rotate_left(3))
    }
}

impl WhatIf {
    /// Asks about a frame that would enter by `ingress`.
    ///
    /// # Errors
    /// [`Error::FrameSize`] when it is larger than any frame can be.
    pub fn ask(
        &mut self,
        ingress: PortId,
        bytes: &[u8],
        offload: Offload,
    ) -> Result<Foretold, Error> {
        if bytes.len() > FRAME_SIZE_MAX {
            return Err(Error::FrameSize(bytes.len()));
        }
        let mut buf = FrameBuf::from_bytes(bytes);
        buf.offload = offload;
        let mut recorder = Recorder::new();
        self.switch.fdb.begin_batch();
        let mut frame = Frame::new(ingress, &mut buf);
        let verdict = forward(&mut self.switch, &mut frame, self.now, &mut recorder);
        Ok(Foretold {
            verdict,
            steps: recorder.take(),
            frame: buf.bytes().to_vec(),
            egress: egress_ports(&self.switch, ingress, verdict),
        })
    }

    /// The picture that the answers are of.
    pub fn topology(&self) -> &Topology {
        &self.switch.topology
    }
}

/// A frame as it leaves by one of the ports that a verdict sends it to: what is flooded in a VLAN
/// has a tag on one and none on another, and by some all that leaves carries the port's own MAC.
pub fn as_it_leaves<'f>(
    topology: &Topology,
    verdict: Verdict,
    port: PortId,
    frame: &'f [u8],
) -> Cow<'f, [u8]> {
    let vlan = match verdict {
        Verdict::Flooded(_, vlan, _) | Verdict::Multicast(_, vlan) => vlan,
        _ => TRANSPARENT,
    };
    let Some(port) = topology.port(port) else {
        return Cow::Borrowed(frame);
    };
    let form = Some(port).filter(|_| vlan != TRANSPARENT);
    let form = form.and_then(|port| port.form(vlan));
    if form.is_none() && !port.flags.has(PortFlags::MAC_NAT) {
        return Cow::Borrowed(frame);
    }
    let mut buf = FrameBuf::with_capacity(frame.len());
    buf.copy_from(frame, Offload::NONE);
    if let Some(form) = form {
        reshape(&mut buf, vlan, form);
    }
    mac_nat::show(topology, port.id, &mut buf);
    Cow::Owned(buf.bytes().to_vec())
}

/// The ports that a verdict sends a frame to, the last one that the switch has forwarded.
pub fn egress_ports(switch: &Switch, ingress: PortId, verdict: Verdict) -> Vec<PortId> {
    use dataplane_core::verdict::Consumer;
    match verdict {
        Verdict::Bridged(port)
        | Verdict::Routed(port)
        | Verdict::Replied(port)
        | Verdict::Delivered(Consumer::HostLink(port)) => vec![port],
        Verdict::Flooded(domain, vlan, class) => {
            let takers = switch.topology.flood_set(domain, vlan, ingress, class);
            takers.collect()
        }
        Verdict::Multicast(..) => switch.groups.takers().to_vec(),
        Verdict::Delivered(Consumer::Service(_))
        | Verdict::Held(_)
        | Verdict::NotOurs
        | Verdict::Drop(_) => Vec::new(),
    }
}
