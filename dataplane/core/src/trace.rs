//! What the data path tells an observer, and the two observers: none, and a recorder.
//!
//! `forward` is generic over [`Trace`]. With [`Off`] every step compiles to nothing, so tracing
//! costs a running switch only the choice between two instantiations, once per batch. A trace
//! is told of steps and can change nothing.

use crate::addr::{DomainId, L4Addr, MacAddr, PortId, UplinkId, VlanId};
use crate::fdb::Learn;
use crate::frame::{Frame, Offload};
use crate::headers::Headers;
use crate::multicast::Heard;
use crate::policy::{Ruling, Standing};
use crate::verdict::{DropReason, Verdict};

/// One thing that the data path did with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The frame entered.
    Ingress {
        /// By this port.
        port: PortId,
        /// Bytes of frame.
        size: usize,
        /// What its checksums and segmentation lack.
        offload: Offload,
    },
    /// The headers were read.
    Parsed(Headers),
    /// The frame was let into a VLAN of its domain, for this station or group: another than was read
    /// where stations share the MAC of their port.
    Admitted(VlanId, MacAddr),
    /// What learning the source MAC came to.
    Learned(Learn),
    /// Where the destination MAC leads.
    Lookup(Target),
    /// What a message about groups came to.
    Snooped(Heard),
    /// The rules were asked, of a flow that the frame opens or answers.
    Policy(Ruling, Standing),
    /// The gateway chose a way.
    Route(Way),
    /// The gateway translated addresses.
    Nat {
        /// Which translation.
        kind: NatKind,
        /// Source and destination before.
        before: (L4Addr, L4Addr),
        /// Source and destination after.
        after: (L4Addr, L4Addr),
        /// Whether a session was created for it.
        created: bool,
    },
    /// The packet goes no further for this reason, and its sender is told.
    Refused(DropReason),
    /// The frame was turned into its own answer.
    Reply(Answer),
    /// The end.
    Verdict(Verdict),
}

impl Step {
    /// The step of a frame that enters.
    pub fn ingress(frame: &Frame<'_>) -> Self {
        Self::Ingress {
            port: frame.ingress,
            size: frame.buf.len(),
            offload: frame.buf.offload,
        }
    }
}

/// Where the lookup stage sends a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// To the port where the destination was learned.
    Unicast(PortId),
    /// To every other port of the domain.
    Flood,
    /// To the gateway: its MAC or a local one was addressed, it was asked for by ARP or ND, or the frame entered
    /// by the host link or an uplink, where there is nothing to bridge.
    Gateway,
}

/// Where the gateway sends a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To one of the gateway's own addresses.
    Local,
    /// To the host, by the host link.
    Host,
    /// To an endpoint of a network.
    Endpoint {
        /// The endpoint's network.
        domain: DomainId,
        /// Its MAC.
        mac: MacAddr,
        /// Its port.
        port: PortId,
    },
    /// Out by an uplink.
    Uplink {
        /// Which.
        uplink: UplinkId,
        /// MAC of the next hop.
        mac: MacAddr,
    },
}

/// Which translation the NAT stage made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NatKind {
    /// Inside to outside: the source becomes the external address.
    Source,
    /// The way back of a [`NatKind::Source`] session.
    SourceReturn,
    /// A published port: the destination becomes the endpoint's.
    Forward,
    /// The way back of a [`NatKind::Forward`] session.
    ForwardReturn,
    /// Both at once: an inside host addressed another by its external address.
    Hairpin,
    /// An ICMP error about a session, with the packet that it quotes.
    IcmpError,
}

/// What a frame was turned into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// ARP reply: the gateway's MAC.
    Arp,
    /// Neighbour advertisement: the gateway's MAC.
    Neighbour,
    /// ARP reply: an endpoint's MAC, which the others were not asked for.
    ArpFor,
    /// Neighbour advertisement: an endpoint's MAC.
    NeighbourFor,
    /// ICMP or ICMPv6 echo reply.
    Echo,
    /// TCP reset.
    Reset,
    /// ICMP or ICMPv6 error.
    Error {
        /// Which.
        kind: IcmpErrorKind,
    },
}

/// The ICMP errors that the gateway makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpErrorKind {
    /// TTL or hop limit ran out in transit.
    TimeExceeded,
    /// No route to the network.
    NetworkUnreachable,
    /// No such host.
    HostUnreachable,
    /// Nobody listens on this port.
    PortUnreachable,
    /// Forbidden by configuration, or a NAT limit.
    Prohibited,
    /// Too big for the next link, which takes packets of this many bytes.
    TooBig {
        /// MTU of the next link, in bytes of IP packet.
        mtu: u16,
    },
}

/// An observer of the data path.
pub trait Trace {
    /// Whether it observes; a constant, so that "off" compiles to nothing.
    const ON: bool;

    /// Takes note of a step.
    fn step(&mut self, step: Step);
}

/// Tells `$trace` of a step, evaluating it only if the trace is on.
macro_rules! step {
    ($trace:expr, $step:expr) => {
        if T::ON {
            $crate::trace::Trace::step($trace, $step);
        }
    };
}
pub(crate) use step;

/// No observer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Off;

impl Trace for Off {
    const ON: bool = false;

    #[inline(always)]
    fn step(&mut self, _: Step) {}
}

/// Steps that a [`Recorder`] keeps: a frame takes at most a dozen today.
pub const STEPS_MAX: usize = 32;

/// Keeps the steps of one frame.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    steps: Vec<Step>,
}

impl Recorder {
    /// An empty recorder.
    pub fn new() -> Self {
        Self::default()
    }

    /// What was recorded, in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Empties the recorder for the next frame and returns what it held.
    pub fn take(&mut self) -> Vec<Step> {
        core::mem::take(&mut self.steps)
    }
}

impl Trace for Recorder {
    const ON: bool = true;

    fn step(&mut self, step: Step) {
        if self.steps.len() < STEPS_MAX {
            self.steps.push(step);
        }
    }
}
