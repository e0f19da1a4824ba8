//! What becomes of a frame: exactly one [`Verdict`] each, and for a drop exactly one reason.
//!
//! The reasons are one declaration: variant, stage, label (metrics, `causeway drops`), sentence
//! (traces, the manual). Nothing else lists them, so nothing can drift from them.

use core::fmt;

use crate::addr::{DomainId, PortId, VlanId};
use crate::l2::FloodClass;

/// What becomes of a frame that entered the switch.
#[must_use = "a frame without a verdict has vanished"]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Sent to the one port where its destination MAC was learned.
    Bridged(PortId),
    /// Sent to every port of the domain that is up and takes what is flooded of this class.
    Flooded(DomainId, VlanId, FloodClass),
    /// Sent to the ports of the domain that listen to its group, and to those that lead to multicast
    /// routers: [`MdbView::takers`](crate::multicast::MdbView::takers).
    Multicast(DomainId, VlanId),
    /// Handed to a consumer on this host: its IP stack, or one of the switch's own services.
    Delivered(Consumer),
    /// Passed the gateway: new MAC addresses, one hop less to live, possibly translated.
    Routed(PortId),
    /// Turned into its own answer in place and sent to the given port.
    Replied(PortId),
    /// Kept for later; counted again when it is released.
    Held(Awaited),
    /// Seen on a shared interface, but the host's business and not ours.
    NotOurs,
    /// Ends here.
    Drop(DropReason),
}

/// Who on this host takes a delivered frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Consumer {
    /// The host's own IP stack, by the host-link port.
    HostLink(PortId),
    /// The service thread, for the given domain: what is for DNS at its gateway.
    Service(DomainId),
}

/// What a held frame waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Awaited {
    /// The MAC of its next hop.
    NextHop,
    /// The first fragment of its packet.
    Fragment,
    /// A connection from inside that would make a SYN from outside welcome.
    Connection,
    /// The moment at which its port's link has carried it.
    Link,
}

impl fmt::Display for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NextHop => "the next hop is resolved",
            Self::Fragment => {
                "the first fragment of its packet has come, or two seconds have passed"
            }
            Self::Connection => "a connection from inside meets it, or six seconds have passed",
            Self::Link => "its port's link has carried it",
        })
    }
}

/// The kinds of [`Verdict`] other than a drop, as an index for counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum VerdictKind {
    /// [`Verdict::Bridged`]
    Bridged,
    /// [`Verdict::Flooded`]
    Flooded,
    /// [`Verdict::Multicast`]
    Multicast,
    /// [`Verdict::Delivered`]
    Delivered,
    /// [`Verdict::Routed`]
    Routed,
    /// [`Verdict::Replied`]
    Replied,
    /// [`Verdict::Held`]
    Held,
    /// [`Verdict::NotOurs`]
    NotOurs,
}

impl VerdictKind {
    /// Every kind, in counter order.
    pub const ALL: [Self; 8] = [
        Self::Bridged,
        Self::Flooded,
        Self::Multicast,
        Self::Delivered,
        Self::Routed,
        Self::Replied,
        Self::Held,
        Self::NotOurs,
    ];

    /// The name used in metrics and listings.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Bridged => "bridged",
            Self::Flooded => "flooded",
            Self::Multicast => "multicast",
            Self::Delivered => "delivered",
            Self::Routed => "routed",
            Self::Replied => "replied",
            Self::Held => "held",
            Self::NotOurs => "not_ours",
        }
    }
}

impl Verdict {
    /// The kind, or the reason of a drop.
    #[inline]
    pub const fn kind(self) -> Result<VerdictKind, DropReason> {
        match self {
            Self::Bridged(_) => Ok(VerdictKind::Bridged),
            Self::Flooded(..) => Ok(VerdictKind::Flooded),
            Self::Multicast(..) => Ok(VerdictKind::Multicast),
            Self::Delivered(_) => Ok(VerdictKind::Delivered),
            Self::Routed(_) => Ok(VerdictKind::Routed),
            Self::Replied(_) => Ok(VerdictKind::Replied),
            Self::Held(_) => Ok(VerdictKind::Held),
            Self::NotOurs => Ok(VerdictKind::NotOurs),
            Self::Drop(reason) => Err(reason),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bridged(port) => write!(f, "bridged to {port}"),
            Self::Flooded(domain, _, _) => write!(f, "flooded to the other ports of {domain}"),
            Self::Multicast(domain, _) => {
                write!(
                    f,
                    "sent to the listeners of its group in {domain}, and to router ports"
                )
            }
            Self::Delivered(Consumer::HostLink(port)) => {
                write!(f, "delivered to the host by {port}")
            }
            Self::Delivered(Consumer::Service(domain)) => {
                write!(f, "delivered to the service: dns, of {domain}")
            }
            Self::Routed(port) => write!(f, "routed to {port}"),
            Self::Replied(port) => write!(f, "answered in place, back by {port}"),
            Self::Held(awaited) => write!(f, "held until {awaited}"),
            Self::NotOurs => f.write_str("left to the host"),
            Self::Drop(reason) => write!(f, "dropped at {}: {reason}", reason.stage()),
        }
    }
}

macro_rules! drop_reasons {
    ($($variant:ident, $stage:ident, $label:literal, $sentence:literal;)*) => {
        /// Why a frame ended here. Closed: a new reason is a new line in this one declaration.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
        #[repr(u8)]
        pub enum DropReason {
            $(#[doc = $sentence] #[error($sentence)] $variant,)*
        }

        impl DropReason {
            /// Every reason, in declaration order: the index of its counter.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name used in metrics and listings.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }

            /// What happened, as one sentence without a full stop.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)* }
            }

            /// The stage of the data path that dropped the frame.
            pub const fn stage(self) -> Stage {
                match self { $(Self::$variant => Stage::$stage,)* }
            }
        }
    };
}

drop_reasons! {
    PortDown, Ingress, "port_down", "the ingress port is down or no longer configured";
    LinkLost, Ingress, "link_lost", "the port's link is set to lose frames";
    RateLimited, Ingress, "rate_limited", "the frame exceeds the port's rate, and as many wait as may";
    LinkFull, Ingress, "link_full", "as many frames are on their way over the port's link as may be held";
    Runt, Parse, "runt", "the frame ends before its Ethernet header does";
    SourceZero, Admit, "source_zero", "the source MAC is all zero";
    SourceGroup, Admit, "source_group", "the source MAC is a group address";
    SourceMacForeign, Admit, "source_mac_foreign", "the port is secured, and the source or ARP sender MAC is not its endpoint's";
    SourceAddressForeign, Admit, "source_address_foreign", "the port is secured, and the IP, ARP or ND source is none of its endpoint's addresses, or cannot be read";
    LoopProbe, Admit, "loop_probe", "a loop probe of this switch came back: two of its ports are connected outside";
    MirrorPort, Admit, "mirror_port", "the ingress port shows the copies of a mirror, and nothing enters by it";
    VlanNoPvid, Admit, "vlan_no_pvid", "the frame has no VLAN tag, and its port no PVID to put it into a VLAN";
    VlanIngress, Admit, "vlan_ingress", "the ingress port is no member of the frame's VLAN";
    MacNatEcho, Admit, "mac_nat_echo", "the frame came back: its source, or what it says in ARP or ND, is the one MAC of the port that it entered by";
    MacNatUnknown, Admit, "mac_nat_unknown", "no station behind the port's one MAC is known to have the destination address";
    MacNatNotIp, Admit, "mac_nat_not_ip", "the frame is neither ARP nor IP, so the port's one MAC does not tell which station it is for";
    LinkLocalGroup, Admit, "link_local_group", "the destination is a link-local group that bridges never forward";
    GroupMessageMalformed, Lookup, "group_message_malformed", "an IGMP or MLD message is truncated, contradicts itself or has a wrong checksum";
    NoListener, Egress, "no_listener", "no other port listens to the group, and none leads to a multicast router";
    SamePort, Lookup, "same_port", "the destination was learned on the ingress port itself";
    StormBroadcast, Lookup, "storm_broadcast", "more broadcasts have entered by the port than its storm control lets through";
    StormMulticast, Lookup, "storm_multicast", "more multicasts have entered by the port than its storm control lets through";
    StormUnknownUnicast, Lookup, "storm_unknown_unicast", "more frames to unknown stations have entered by the port than its storm control lets through";
    NoOtherPort, Egress, "no_other_port", "no other port of the domain takes flooded frames";
    EgressDown, Egress, "egress_down", "the destination's port is down or no longer configured";
    PortIsolated, Egress, "port_isolated", "the ingress port and the destination's port are both isolated";
    VlanEgress, Egress, "vlan_egress", "the destination's port is no member of the frame's VLAN";
    PolicyDenied, Policy, "policy_denied", "a rule denies it";
    PolicyRejected, Policy, "policy_rejected", "a rule rejects it, and its sender is told unless too many are, or nobody may be";
    IccOff, Policy, "icc_off", "endpoints of the network do not reach each other, and no rule allows these two to";
    NotIp, Route, "not_ip", "the gateway was sent something that is neither ARP nor IP";
    TaggedForGateway, Route, "tagged_for_gateway", "the gateway has no interface in the VLAN of this frame";
    L3Malformed, Route, "l3_malformed", "the ARP or IP header is truncated or contradicts itself";
    L4Malformed, Route, "l4_malformed", "the TCP, UDP or ICMP header is truncated or contradicts itself";
    ArpNotForGateway, Route, "arp_not_for_gateway", "an ARP or ND message sent to the gateway's MAC asks nothing of it";
    MartianSource, Route, "martian_source", "the source address cannot be one of this network";
    MartianDestination, Route, "martian_destination", "the destination is not an address that is routed";
    HostLinkForeignSource, Route, "host_link_foreign_source", "a frame from the host link does not carry one of the host's own addresses";
    TtlExceeded, Route, "ttl_exceeded", "no hops left";
    FragmentationNeeded, Route, "fragmentation_needed", "the packet exceeds the MTU";
    NoRoute, Route, "no_route", "no route leads to the destination";
    NoUplinkRoute, Route, "no_uplink_route", "the host routes the destination by an interface that is no uplink";
    NetworkInternal, Route, "network_internal", "the network is internal and the destination is outside it";
    NetworkIsolated, Route, "network_isolated", "the destination is on another network and nothing allows the passage";
    NeighbourUnknown, Route, "neighbour_unknown", "no endpoint of the network has the destination address";
    NextHopUnresolved, Route, "next_hop_unresolved", "the MAC of the next hop is not known, and no more frames are held for it";
    NoHostLink, Route, "no_host_link", "the host was addressed, but this network has no link to it";
    GatewayClosed, Route, "gateway_closed", "the gateway offers no such service";
    UplinkForeignDestination, Route, "uplink_foreign_destination", "a frame from outside is addressed straight into a network that is not routed";
    NatNoMapping, Nat, "nat_no_mapping", "nothing inside has opened this external port";
    NatFiltered, Nat, "nat_filtered", "the external port is open, but not to this remote address and port";
    RoutedUnsolicited, Nat, "routed_unsolicited", "an endpoint of a routed network has not spoken to this remote, and has not published the port";
    NatUnsupported, Nat, "nat_unsupported", "this protocol cannot be translated";
    NatFragment, Nat, "nat_fragment", "the first fragment did not come in time, or cannot be translated";
    NatFragmentOverlap, Nat, "nat_fragment_overlap", "a fragment repeats, overlaps or contradicts another one of its packet";
    NatTableFull, Nat, "nat_table_full", "the session table is full";
    NatQuota, Nat, "nat_quota", "the endpoint holds as many sessions as one endpoint may";
    NatNoPort, Nat, "nat_no_port", "every external port that could serve is taken";
    NatOtherUplink, Nat, "nat_other_uplink", "the port is published for another uplink than the one that the packet came in by";
    NatNoTarget, Nat, "nat_no_target", "every target of the published port drains and takes no new session";
    NatTargetUnknown, Nat, "nat_target_unknown", "any of several targets could have this connection, which no table knows";
    NatNoAddress, Nat, "nat_no_address", "the uplink has no address of this family to translate to";
    NatIcmpUnmatched, Nat, "nat_icmp_unmatched", "an ICMP error speaks of a packet that belongs to no session";
    NatIcmpMalformed, Nat, "nat_icmp_malformed", "the packet quoted by an ICMP error cannot be read";
}

impl DropReason {
    /// Number of reasons: the length of a counter array.
    pub const COUNT: usize = Self::ALL.len();
}

/// The stages of the data path, in the order of `path.rs`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stage {
    /// The port is looked up.
    Ingress,
    /// The headers are read.
    Parse,
    /// The frame is let into the domain.
    Admit,
    /// The source MAC is learned.
    Learn,
    /// The destination MAC is looked up.
    Lookup,
    /// The rules are asked.
    Policy,
    /// The gateway routes.
    Route,
    /// The gateway translates addresses.
    Nat,
    /// The frame leaves.
    Egress,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Parse => "parse",
            Self::Admit => "admit",
            Self::Learn => "learn",
            Self::Lookup => "lookup",
            Self::Policy => "policy",
            Self::Route => "route",
            Self::Nat => "nat",
            Self::Egress => "egress",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn labels_and_sentences_are_unique_and_indices_match() {
        let labels: HashSet<_> = DropReason::ALL.iter().map(|r| r.label()).collect();
        let sentences: HashSet<_> = DropReason::ALL.iter().map(|r| r.sentence()).collect();
        assert_eq!(labels.len(), DropReason::COUNT);
        assert_eq!(sentences.len(), DropReason::COUNT);
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert!(!reason.sentence().ends_with('.'));
            assert!(
                reason
                    .label()
                    .chars()
                    .all(|c| matches!(c, 'a'..='z' | '0'..='9' | '_'))
            );
        }
    }
}
