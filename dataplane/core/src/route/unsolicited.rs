//! SYNs from outside that nobody asked for, which wait before they are answered.
//!
//! Two hosts behind NATs that open a connection to each other at once each send a SYN that the
//! other's NAT knows nothing of yet. An error would end the attempt of the one that was a moment
//! earlier, so a NAT keeps silent for [`SILENCE`] and answers only if no connection from inside has
//! come by then (RFC 5382 REQ-4).
//!
//! Limit: [`UNSOLICITED_MAX`] SYNs of one worker; one beyond it, and each repetition of one that
//! waits, ends in silence.

use std::collections::VecDeque;

use crate::addr::{L4Addr, PortId};
use crate::frame::FrameBuf;
use crate::headers::Headers;
use crate::nat::NatView;
use crate::reply;
use crate::time::{Duration, Instant};
use crate::topology::Topology;
use crate::trace::IcmpErrorKind;
use crate::verdict::{DropReason, Verdict};

/// SYNs that one worker keeps waiting, so that a flood of them holds at most some kilobytes.
pub const UNSOLICITED_MAX: usize = 64;
/// How long a SYN waits for a connection from inside (RFC 5382 REQ-4).
pub const SILENCE: Duration = Duration::from_secs(6);

/// A SYN to an external port.
#[derive(Debug)]
pub(super) struct Syn {
    pub external: L4Addr,
    pub remote: L4Addr,
    pub ingress: PortId,
    /// Why it was not let in.
    pub reason: DropReason,
}

#[derive(Debug)]
struct Waiting {
    syn: Syn,
    since: Instant,
    buf: FrameBuf,
}

/// One worker's unanswered SYNs, oldest first.
#[derive(Debug, Default)]
pub(super) struct Unsolicited {
    waiting: VecDeque<Waiting>,
}

impl Unsolicited {
    /// Keeps a copy of a SYN.
    ///
    /// # Errors
    /// The reason why it was not let in, when it is to end in silence.
    pub fn hold(&mut self, syn: Syn, buf: &FrameBuf, now: Instant) -> Result<(), DropReason> {
        let same =
            |other: &Waiting| (other.syn.external, other.syn.remote) == (syn.external, syn.remote);
        if self.waiting.len() >= UNSOLICITED_MAX || self.waiting.iter().any(same) {
            return Err(syn.reason);
        }
        let mut copy = FrameBuf::with_capacity(buf.len());
        copy.copy_from(buf.bytes(), buf.offload);
        self.waiting.push_back(Waiting {
            syn,
            since: now,
            buf: copy,
        });
        Ok(())
    }

    /// Takes out the oldest SYN whose silence is over: as an error to its sender, or as a drop when
    /// a connection from inside has come or `may_answer` forbids it. Call until `None`.
    pub fn release(
        &mut self,
        nat: &mut NatView,
        topology: &Topology,
        now: Instant,
        may_answer: impl FnOnce() -> bool,
    ) -> Option<(PortId, FrameBuf, Verdict)> {
        let oldest = self.waiting.front()?;
        if now.since(oldest.since) < SILENCE {
            return None;
        }
        let Waiting { syn, mut buf, .. } = self.waiting.pop_front()?;
        let met = nat.has_connection(topology, syn.external, syn.remote, now);
        // A NAT's port is closed as a host's would be; behind a router it is somebody's decision
        // (RFC 6092 section 3.3.1).
        let kind = match syn.reason {
            DropReason::RoutedUnsolicited => IcmpErrorKind::Prohibited,
            _ => IcmpErrorKind::PortUnreachable,
        };
        let answered = !met && answer(&mut buf, kind, may_answer);
        let verdict = if answered {
            Verdict::Replied(syn.ingress)
        } else {
            Verdict::Drop(syn.reason)
        };
        Some((syn.ingress, buf, verdict))
    }
}

/// Turns a SYN into an error, from the address that it was sent to.
fn answer(buf: &mut FrameBuf, kind: IcmpErrorKind, may_answer: impl FnOnce() -> bool) -> bool {
    let Ok(headers) = Headers::parse(buf.bytes()) else {
        return false;
    };
    let Some(ip) = headers.ip().copied() else {
        return false;
    };
    reply::may_report(&headers, &ip)
        && may_answer()
        && reply::error(buf, &headers, &ip, kind, ip.dst, headers.dst)
}
