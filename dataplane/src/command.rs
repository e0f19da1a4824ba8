//! What the control side tells a worker, and what a worker tells back.
//!
//! Commands are taken up between two batches and acknowledged, so that the caller knows when a
//! change is in force everywhere.

use std::net::IpAddr;
use std::sync::Arc;

use crossbeam::channel::Sender;
use dataplane_core::addr::{PortId, UplinkId};
use dataplane_core::frame::FrameBuf;
use dataplane_core::l2::{Claim, ProbeKey, Sighting};
use dataplane_core::link::Direction;
use dataplane_core::topology::Topology;
use dataplane_port::{Carrier, EdgeStats, PortIo};

use crate::links::SharedLink;
use crate::stats::PortCounters;
use crate::tracing::Tap;

/// A change for one worker.
pub(crate) enum Command {
    /// Changes to the next picture.
    Install(Arc<Topology>),
    /// Adds a port.
    Attach(Attachment),
    /// Closes a port's queue and forgets the port.
    Detach(PortId),
    /// Lets frames for a port wait: its only queue is on its way to this worker.
    Expect(PortId),
    /// Hands frames for a port to another worker from now on.
    Redirect(PortId, usize),
    /// Gives up the only queue of a port in favour of that worker.
    Release(PortId, usize, Sender<Released>),
    /// Takes over the only queue of a port.
    Adopt(PortId, Released),
    /// Gives a port a link, or takes it away.
    SetLink(PortId, Direction, Option<Arc<SharedLink>>),
    /// Plugs or unplugs a port's cable, as its far side sees it.
    SetCarrier(PortId, Carrier),
    /// Changes nothing: for a worker that a change does not concern.
    Pass,
    /// Floods a frame of the switch's own in a port's domain, as if that port had sent it.
    Announce(PortId, Vec<u8>),
    /// Sends a loop probe by every port that is to detect loops.
    Probe(ProbeKey),
    /// Starts a trace.
    Trace(Tap),
    /// Ends the trace of that number.
    EndTrace(u64),
    /// Ends the worker, closing its queues.
    Stop,
}

/// A port as one worker sees it.
pub(crate) struct Attachment {
    pub id: PortId,
    /// This worker's queue; `None` when another worker owns the port's only one.
    pub queue: Option<Box<dyn PortIo>>,
    /// The worker that owns the port's only queue; this one for a multi-queue port.
    pub owner: usize,
    pub counters: Arc<PortCounters>,
}

/// A queue between two owners, with the frames that its device has not taken yet.
pub(crate) struct Released {
    pub io: Box<dyn PortIo>,
    /// Oldest first.
    pub waiting: Vec<FrameBuf>,
    pub down: bool,
    /// What was lost at the kernel's edge and is counted already.
    pub edge: EdgeStats,
}

/// A command with the channel on which the worker says that it is done.
pub(crate) struct Order {
    pub command: Command,
    pub done: Sender<Result<(), String>>,
}

/// Something that the control side should know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A port's device went down or away.
    PortDown(PortId),
    /// A port's device delivers again.
    PortUp(PortId),
    /// A station flaps between two ports, or a loop probe came back.
    Sighted(Sighting),
    /// An address is claimed by a MAC that may not be its endpoint's.
    Claimed(Claim),
    /// Frames wait for the MAC of a next hop.
    NextHopWanted(UplinkId, IpAddr),
}
