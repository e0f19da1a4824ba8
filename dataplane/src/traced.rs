//! What a worker tells of its frames while somebody watches.

use dataplane_core::addr::PortId;
use dataplane_core::frame::{Frame, FrameBuf};
use dataplane_core::path::Switch;
use dataplane_core::time::Instant;
use dataplane_core::trace::{Recorder, Step};
use dataplane_core::verdict::Verdict;

use crate::tracing::Record;
use crate::what_if::egress_ports;
use crate::worker::Worker;

impl Worker {
    /// Takes a frame to its verdict, by `judge`, and tells how it came to that.
    pub fn forward_traced(
        &mut self,
        ingress: PortId,
        mut buf: FrameBuf,
        now: Instant,
        judge: impl FnOnce(&mut Switch, &mut Frame<'_>, Instant, &mut Recorder) -> Verdict,
    ) {
        if self.is_mirroring() {
            self.mirror_entering(ingress, &buf);
        }
        let snap_size = self.taps.iter().map(|tap| tap.snap_size).max().unwrap_or(0);
        let snap = |buf: &FrameBuf| buf.bytes()[..buf.len().min(snap_size)].to_vec();
        let (size, offload, before) = (buf.len(), buf.offload, snap(&buf));
        let mut recorder = Recorder::new();
        let mut frame = Frame::new(ingress, &mut buf);
        let verdict = judge(&mut self.switch, &mut frame, now, &mut recorder);
        let record = Record {
            sequence: 0,
            worker: self.index,
            at: now,
            ingress,
            size,
            offload,
            before,
            after: snap(&buf),
            size_after: buf.len(),
            offload_after: buf.offload,
            verdict,
            egress: egress_ports(&self.switch, ingress, verdict),
            steps: recorder.take(),
        };
        self.tell_taps(&record);
        self.dispatch_mirrored(ingress, buf, verdict);
    }

    fn tell_taps(&self, record: &Record) {
        let lost = self.taps.iter().filter(|tap| !tap.send(record)).count();
        self.counters.traces_lost.add(lost as u64);
    }

    /// Tells the traces of a frame that has come to the link, and no further yet.
    pub fn trace_link(&self, ingress: PortId, buf: &FrameBuf, verdict: Verdict, now: Instant) {
        let snap_size = self.taps.iter().map(|tap| tap.snap_size).max().unwrap_or(0);
        let snap = buf.bytes()[..buf.len().min(snap_size)].to_vec();
        let entered = Step::Ingress {
            port: ingress,
            size: buf.len(),
            offload: buf.offload,
        };
        self.tell_taps(&Record {
            sequence: 0,
            worker: self.index,
            at: now,
            ingress,
            size: buf.len(),
            offload: buf.offload,
            before: snap.clone(),
            after: snap,
            size_after: buf.len(),
            offload_after: buf.offload,
            verdict,
            egress: Vec::new(),
            steps: vec![entered, Step::Verdict(verdict)],
        });
    }
}
