//! Packets that go no further: who is told, and of what.

use std::net::IpAddr;

use super::Passage;
use super::early::Origin;
use super::unsolicited::Syn;
use crate::addr::{DomainId, L4Addr, MacAddr};
use crate::headers::{HeaderError, Ip, L4Kind, TcpFlags, protocol};
use crate::reply;
use crate::topology::{Gateway, Uplink};
use crate::trace::{Answer, IcmpErrorKind, Step, Trace, step};
use crate::verdict::{Awaited, DropReason, Verdict};

/// Who answers when a packet cannot go on: an address of the gateway or uplink, and its MAC.
#[derive(Clone, Copy)]
pub(super) struct Reporter<'r> {
    addresses: &'r [IpAddr],
    mac: MacAddr,
}

impl<'r> Reporter<'r> {
    /// The gateway of a routed network, as the outside knows it: by an address of its own, and by
    /// the MAC of the uplink.
    pub fn outwards(gateway: &'r Gateway, uplink: &Uplink) -> Self {
        Self {
            addresses: &gateway.addresses,
            mac: uplink.mac,
        }
    }
}

impl<'r> From<&'r Gateway> for Reporter<'r> {
    fn from(gateway: &'r Gateway) -> Self {
        Self {
            addresses: &gateway.addresses,
            mac: gateway.mac,
        }
    }
}

impl<'r> From<&'r Uplink> for Reporter<'r> {
    fn from(uplink: &'r Uplink) -> Self {
        Self {
            addresses: &uplink.addresses,
            mac: uplink.mac,
        }
    }
}

impl<T: Trace> Passage<'_, '_, T> {
    /// Sends an ICMP error about the packet, or drops it for `reason` where none may be sent.
    pub(super) fn refuse(
        &mut self,
        reporter: Reporter<'_>,
        ip: &Ip,
        kind: IcmpErrorKind,
        reason: DropReason,
    ) -> Result<Verdict, DropReason> {
        let same_family = |own: &&IpAddr| own.is_ipv4() == ip.src.is_ipv4();
        let from = reporter.addresses.iter().find(same_family).ok_or(reason)?;
        if !reply::may_report(self.headers, ip) {
            return Err(reason);
        }
        if !self.state.errors.take(self.now) {
            self.counters.errors_suppressed.add(1);
            return Err(reason);
        }
        if !reply::error(self.frame.buf, self.headers, ip, kind, *from, reporter.mac) {
            return Err(reason);
        }
        self.counters.record_refusal(reason);
        step!(self.trace, Step::Refused(reason));
        Ok(self.replied(Answer::Error { kind }))
    }

    /// Tells the sender of a new flow that it can have no session (RFC 5508 REQ-8).
    #[cold]
    pub(super) fn prohibit(
        &mut self,
        gateway: &Gateway,
        ip: &Ip,
        reason: DropReason,
    ) -> Result<Verdict, DropReason> {
        self.refuse(gateway.into(), ip, IcmpErrorKind::Prohibited, reason)
    }

    /// A fragment that cannot be translated: one that has overtaken its first waits for it.
    #[cold]
    pub(super) fn await_first(
        &mut self,
        from: Option<DomainId>,
        ip: &Ip,
    ) -> Result<Verdict, DropReason> {
        let origin = Origin {
            ingress: self.frame.ingress,
            from,
            sender: ip.src,
        };
        let later = self.headers.l4 == Err(HeaderError::LaterFragment);
        if later && self.state.early.hold(origin, self.frame.buf, self.now) {
            return Ok(Verdict::Held(Awaited::Fragment));
        }
        // What came from outside may be of the host's own.
        if from.is_none() && self.topology.local_addresses.contains(&ip.dst) {
            Ok(Verdict::NotOurs)
        } else {
            Err(DropReason::NatFragment)
        }
    }

    /// A packet from outside that was not let in: a SYN to a port that is not published waits, for
    /// it may be half of a simultaneous open; anything else ends here.
    #[cold]
    pub(super) fn turned_away(
        &mut self,
        ip: &Ip,
        reason: DropReason,
    ) -> Result<Verdict, DropReason> {
        let refused = matches!(
            reason,
            DropReason::NatNoMapping | DropReason::NatFiltered | DropReason::RoutedUnsolicited
        );
        let Ok(L4Kind::Tcp {
            src, dst, flags, ..
        }) = self.headers.l4.map(|l4| l4.kind)
        else {
            return Err(reason);
        };
        let opens = flags.has(TcpFlags::SYN) && !flags.has(TcpFlags::ACK);
        let statics = &self.topology.statics;
        if !refused || !opens || statics.covers(protocol::TCP, ip.dst, dst) {
            return Err(reason);
        }
        let end = |ip, l4_port| L4Addr { ip, l4_port };
        let syn = Syn {
            external: end(ip.dst, dst),
            remote: end(ip.src, src),
            ingress: self.frame.ingress,
            reason,
        };
        self.state.unsolicited.hold(syn, self.frame.buf, self.now)?;
        Ok(Verdict::Held(Awaited::Connection))
    }

    /// Tells the sender of a packet that may not be fragmented how large it may be.
    pub(super) fn too_big(
        &mut self,
        reporter: Reporter<'_>,
        ip: &Ip,
        mtu: u16,
    ) -> Result<Verdict, DropReason> {
        if !ip.dont_fragment {
            return Err(DropReason::FragmentationNeeded);
        }
        let kind = IcmpErrorKind::TooBig { mtu };
        self.refuse(reporter, ip, kind, DropReason::FragmentationNeeded)
    }
}

/// Reasons to drop a packet from outside whatever its port: an ICMP error that quotes a port of ours,
/// or that nobody, the host included, could read; a fragment of a packet of ours.
pub(super) fn is_final(reason: DropReason) -> bool {
    matches!(
        reason,
        DropReason::NatIcmpUnmatched
            | DropReason::NatIcmpMalformed
            | DropReason::NatFragmentOverlap
    )
}

/// Reasons why a new flow gets no session, of which its sender is told.
pub(super) fn is_refusal(reason: DropReason) -> bool {
    matches!(
        reason,
        DropReason::NatTableFull
            | DropReason::NatQuota
            | DropReason::NatNoPort
            | DropReason::NatNoTarget
    )
}
