//! What a rule rejects: its sender is told, by a TCP reset or an ICMP error.
//!
//! A frame is told of while it is still as it has entered: rules are asked before anything is changed,
//! but for packets of translated connections, which end without a word. What is told takes from the same
//! budget as the gateway's errors.

use std::net::IpAddr;

use crate::addr::{MacAddr, VlanId};
use crate::frame::Frame;
use crate::headers::{Headers, Ip, L4Kind, TcpFlags};
use crate::l2::{self, PortFlags};
use crate::path::Switch;
use crate::reply;
use crate::time::Instant;
use crate::topology::{Domain, Port, Topology};
use crate::trace::{Answer, IcmpErrorKind, Step, Trace, step};
use crate::verdict::{DropReason, Verdict};

/// The verdict that the path has come to, where a rule may want the sender to be told of a drop.
#[inline(always)]
pub(crate) fn end<T: Trace>(
    verdict: Result<Verdict, DropReason>,
    sw: &mut Switch,
    frame: &mut Frame<'_>,
    now: Instant,
    trace: &mut T,
) -> Verdict {
    match verdict {
        Ok(verdict) => verdict,
        Err(DropReason::PolicyRejected) => reject(sw, frame, now, trace),
        Err(reason) => Verdict::Drop(reason),
    }
}

/// The reason why a frame ends that is another one than it was when it entered: its sender cannot be
/// told.
pub(super) const fn untold(reason: DropReason) -> DropReason {
    match reason {
        DropReason::PolicyRejected => DropReason::PolicyDenied,
        reason => reason,
    }
}

#[cold]
#[inline(never)]
fn reject<T: Trace>(
    sw: &mut Switch,
    frame: &mut Frame<'_>,
    now: Instant,
    trace: &mut T,
) -> Verdict {
    let reason = DropReason::PolicyRejected;
    let Some(told) = whom_to_tell(&sw.topology, frame) else {
        return Verdict::Drop(reason);
    };
    if !sw.gateway.errors.take(now) {
        sw.counters.errors_suppressed.add(1);
        return Verdict::Drop(reason);
    }
    let Some(answer) = told.answer(frame) else {
        return Verdict::Drop(reason);
    };
    sw.counters.record_refusal(reason);
    step!(trace, Step::Refused(reason));
    step!(trace, Step::Reply(answer));
    Verdict::Replied(frame.ingress)
}

/// The sender of a frame, and by whom it is told.
struct Told<'t> {
    port: &'t Port,
    headers: Headers,
    ip: Ip,
    /// The VLAN of the frame, where VLANs count.
    vlan: Option<VlanId>,
    /// Who sends errors: the gateway, or whoever the frame was for where there is none.
    from: (IpAddr, MacAddr),
}

/// `None` where nobody may be told: of errors, resets, later fragments, and what groups are sent.
fn whom_to_tell<'t>(topology: &'t Topology, frame: &Frame<'_>) -> Option<Told<'t>> {
    let headers = Headers::parse(frame.bytes()).ok()?;
    let ip = *headers.ip()?;
    let reset = match headers.l4.map(|l4| l4.kind) {
        Ok(L4Kind::Tcp { flags, .. }) => flags.has(TcpFlags::RST),
        Ok(_) | Err(_) => false,
    };
    if reset || !reply::may_report(&headers, &ip) {
        return None;
    }
    let port = topology.port(frame.ingress)?;
    let domain = topology.bridge_domain(port);
    let gateway = domain.and_then(|domain| domain.gateway.as_ref());
    let from = gateway.and_then(|gateway| {
        let mut own = gateway.addresses.iter();
        let own = own.find(|own| own.is_ipv4() == ip.src.is_ipv4())?;
        Some((*own, gateway.mac))
    });
    Some(Told {
        port,
        headers,
        ip,
        vlan: domain.and_then(|domain| vlan_of(port, domain, &headers)),
        from: from.unwrap_or((ip.dst, headers.dst)),
    })
}

/// The VLAN that a frame was put into; one for the gateway may have lost its tag on the way there.
fn vlan_of(port: &Port, domain: &Domain, headers: &Headers) -> Option<VlanId> {
    if !port.flags.has(PortFlags::FILTERING) {
        return None;
    }
    if domain.gateway_has(headers.dst) {
        return Some(domain.gateway_vlan);
    }
    port.profile.classify(headers.tag).ok()
}

impl Told<'_> {
    /// Makes the answer of the frame, in the form in which it leaves by the port.
    fn answer(&self, frame: &mut Frame<'_>) -> Option<Answer> {
        let (headers, ip) = (&self.headers, &self.ip);
        let answer = match headers.l4.map(|l4| l4.kind) {
            Ok(L4Kind::Tcp { .. }) => reply::reset(frame.buf, headers, ip).then_some(Answer::Reset),
            Ok(_) | Err(_) => {
                let kind = IcmpErrorKind::Prohibited;
                let (from, mac) = self.from;
                let made = reply::error(frame.buf, headers, ip, kind, from, mac);
                made.then_some(Answer::Error { kind })
            }
        }?;
        match self.vlan {
            Some(vlan) => l2::leave(frame.buf, self.port, vlan).ok().map(|()| answer),
            None => Some(answer),
        }
    }
}
