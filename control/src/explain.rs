//! Traces in words: what a frame was, and what each stage did with it.
//!
//! `causeway trace`, `causeway why`, the demo and the golden traces all render here, so what one
//! shows the others show. Names come from the topology; a thing without a name keeps its number.

use std::fmt::Write as _;

use dataplane_core::addr::{DomainId, L4Addr, PortId, UplinkId, VlanId};
use dataplane_core::fdb::Learn;
use dataplane_core::frame::Offload;
use dataplane_core::headers::{Headers, L3, L4Kind};
use dataplane_core::l2::{PortFlags, TRANSPARENT};
use dataplane_core::multicast::Heard;
use dataplane_core::policy::{Ruling, Standing};
use dataplane_core::topology::{Port, Role, Topology};
use dataplane_core::trace::{Answer, IcmpErrorKind, NatKind, Step, Target, Way};
use dataplane_core::verdict::{Consumer, Verdict};
use etherparse::{LaxSlicedPacket, TransportSlice};

/// One step in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The stage that speaks.
    pub stage: &'static str,
    /// What it did, a clause without a full stop.
    pub text: String,
}

/// Renders the steps of one frame, a line each; steps without news are left out.
pub fn explain(steps: &[Step], topology: &Topology) -> Vec<Line> {
    let names = Names { topology };
    let mut lines = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let before = &steps[..index];
        lines.extend(names.line(step));
        lines.extend(names.readdressed(step, before));
        if let Step::Verdict(verdict) = step {
            let place = lines.len().saturating_sub(1);
            let under_other_mac = names.one_mac(*verdict, before);
            lines.splice(place..place, under_other_mac);
        }
    }
    lines
}

/// What a frame is, in one line: its innermost readable layer with the addresses that matter.
pub fn summary(bytes: &[u8]) -> String {
    let Ok(packet) = LaxSlicedPacket::from_ethernet(bytes) else {
        return format!("{} bytes, no Ethernet header", bytes.len());
    };
    let mut text = String::new();
    if let Ok(headers) = Headers::parse(bytes)
        && let Some(tag) = headers.tag
    {
        let _ = write!(text, "VLAN {} ", tag.vlan().0);
    }
    match &packet.net {
        Some(etherparse::LaxNetSlice::Arp(arp)) => text += &arp_summary(arp),
        Some(net) => text += &ip_summary(net, packet.transport.as_ref(), bytes),
        None => {
            let headers = Headers::parse(bytes);
            let ethertype = headers.map_or(0, |headers| headers.ethertype);
            let _ = write!(text, "EtherType {ethertype:#06x}");
        }
    }
    text
}

fn arp_summary(arp: &etherparse::ArpPacketSlice<'_>) -> String {
    let address = |octets: &[u8]| match <[u8; 4]>::try_from(octets) {
        Ok(octets) => std::net::Ipv4Addr::from(octets).to_string(),
        Err(_) => "?".to_owned(),
    };
    let (sender, target) = (
        address(arp.sender_protocol_addr()),
        address(arp.target_protocol_addr()),
    );
    match arp.operation() {
        etherparse::ArpOperation::REQUEST if sender == target => {
            format!("ARP announcement of {sender}")
        }
        etherparse::ArpOperation::REQUEST => format!("ARP who has {target}? tell {sender}"),
        etherparse::ArpOperation::REPLY => {
            let mac = <[u8; 6]>::try_from(arp.sender_hw_addr()).unwrap_or_default();
            format!("ARP {sender} is at {}", dataplane_core::addr::MacAddr(mac))
        }
        other => format!("ARP operation {}", other.0),
    }
}

fn ip_summary(
    net: &etherparse::LaxNetSlice<'_>,
    transport: Option<&TransportSlice<'_>>,
    bytes: &[u8],
) -> String {
    let (src, dst) = match net {
        etherparse::LaxNetSlice::Ipv4(v4) => (
            std::net::IpAddr::V4(v4.header().source_addr()),
            std::net::IpAddr::V4(v4.header().destination_addr()),
        ),
        etherparse::LaxNetSlice::Ipv6(v6) => (
            std::net::IpAddr::V6(v6.header().source_addr()),
            std::net::IpAddr::V6(v6.header().destination_addr()),
        ),
        etherparse::LaxNetSlice::Arp(_) => return String::new(),
    };
    let between = |a: u16, b: u16| format!("{} > {}", L4Addr::new(src, a), L4Addr::new(dst, b));
    match transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let flags = [
                (tcp.syn(), "SYN"),
                (tcp.fin(), "FIN"),
                (tcp.rst(), "RST"),
                (tcp.psh(), "PSH"),
                (tcp.ack(), "ACK"),
            ];
            let flags: Vec<_> = flags
                .iter()
                .filter(|(set, _)| *set)
                .map(|(_, n)| *n)
                .collect();
            let ports = between(tcp.source_port(), tcp.destination_port());
            format!("TCP {ports} [{}]", flags.join(" "))
        }
        Some(TransportSlice::Udp(udp)) => {
            format!("UDP {}", between(udp.source_port(), udp.destination_port()))
        }
        Some(TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_) | TransportSlice::Igmp(_))
        | None => {
            let what = match Headers::parse(bytes) {
                Ok(Headers { l4: Ok(l4), .. }) => icmp_name(l4.kind),
                Ok(Headers {
                    l3: Ok(L3::Ip(ip)), ..
                }) => match ip.fragment {
                    Some(fragment) => {
                        format!(
                            "IP protocol {} fragment at {}",
                            ip.protocol, fragment.offset
                        )
                    }
                    None => format!("IP protocol {}", ip.protocol),
                },
                Ok(_) | Err(_) => "IP, malformed".to_owned(),
            };
            format!("{what} {src} > {dst}")
        }
    }
}

fn icmp_name(kind: L4Kind) -> String {
    match kind {
        L4Kind::Echo { request: true, id } => format!("ICMP echo request id {id}"),
        L4Kind::Echo { request: false, id } => format!("ICMP echo reply id {id}"),
        L4Kind::IcmpError { icmp_type, code } => format!("ICMP error type {icmp_type} code {code}"),
        L4Kind::IcmpOther { icmp_type: 133 } => "ND router solicitation".to_owned(),
        L4Kind::IcmpOther { icmp_type: 134 } => "ND router advertisement".to_owned(),
        L4Kind::IcmpOther { icmp_type: 135 } => "ND neighbour solicitation".to_owned(),
        L4Kind::IcmpOther { icmp_type: 136 } => "ND neighbour advertisement".to_owned(),
        L4Kind::IcmpOther { icmp_type } => format!("ICMP type {icmp_type}"),
        L4Kind::Tcp { .. } => "TCP".to_owned(),
        L4Kind::Udp { .. } => "UDP".to_owned(),
    }
}

/// Names of what a trace speaks of.
struct Names<'t> {
    topology: &'t Topology,
}

impl Names<'_> {
    fn line(&self, step: &Step) -> Option<Line> {
        let line = |stage, text| Some(Line { stage, text });
        match step {
            Step::Ingress {
                port,
                size,
                offload,
            } => {
                let text = format!("{size} bytes by {}{}", self.port(*port), lacks(offload));
                line("ingress", text)
            }
            Step::Parsed(headers) => line("parse", parsed(headers)),
            Step::Admitted(vlan, _) if vlan.0 == 0 => None,
            Step::Admitted(vlan, _) => line("admit", format!("into VLAN {}", vlan.0)),
            Step::Learned(learn) => line("learn", self.learned(*learn)?),
            Step::Lookup(target) => line("lookup", self.target(*target)),
            Step::Snooped(heard) => line("snoop", snooped(*heard)),
            Step::Policy(ruling, standing) => line("policy", self.ruling(*ruling, *standing)),
            Step::Route(way) => line("route", self.way(*way)),
            Step::Nat {
                kind,
                before,
                after,
                created,
            } => line("nat", translation(*kind, *before, *after, *created)),
            Step::Refused(reason) => line(
                "refused",
                format!("({}): {}", reason.label(), reason.sentence()),
            ),
            Step::Reply(answer) => line("reply", reply(*answer)),
            Step::Verdict(verdict) => line("verdict", self.verdict(*verdict)),
        }
    }

    /// A frame that came to the one MAC of its port, and whom it was given to.
    fn readdressed(&self, step: &Step, before: &[Step]) -> Option<Line> {
        let Step::Admitted(_, dst) = step else {
            return None;
        };
        let read = before.iter().find_map(|step| match step {
            Step::Parsed(headers) => Some(headers.dst),
            _ => None,
        })?;
        let text = format!("{read} is shared by stations: the address leads to {dst}");
        let stage = "mac-nat";
        (read != *dst).then_some(Line { stage, text })
    }

    /// The ports that a frame is about to leave by under another MAC than its sender's.
    fn one_mac(&self, verdict: Verdict, before: &[Step]) -> Vec<Line> {
        let ingress = before.iter().find_map(|step| match step {
            Step::Ingress { port, .. } => Some(*port),
            _ => None,
        });
        let ports: Vec<PortId> = match verdict {
            Verdict::Bridged(port) | Verdict::Routed(port) | Verdict::Replied(port) => vec![port],
            Verdict::Flooded(domain, vlan, class) => {
                let takers = ingress.map(|from| self.topology.flood_set(domain, vlan, from, class));
                takers.into_iter().flatten().collect()
            }
            _ => Vec::new(),
        };
        let line = |id: PortId| {
            let port = self.topology.port(id)?;
            let nat = port.profile.mac_nat.as_ref();
            let nat = nat.filter(|_| port.flags.has(PortFlags::MAC_NAT))?;
            let (port, mac) = (self.port(id), nat.mac);
            let text = format!("leaves by {port} as from {mac}, in ARP and ND as well");
            let stage = "mac-nat";
            Some(Line { stage, text })
        };
        ports.into_iter().filter_map(line).collect()
    }

    /// What the rules said.
    fn ruling(&self, ruling: Ruling, standing: Standing) -> String {
        let name = |slot| {
            let rule = self.topology.policy.rule(slot);
            rule.map_or_else(|| "?".to_owned(), |rule| rule.name.to_string())
        };
        match (ruling, standing) {
            (Ruling::Default, Standing::Opening) => "no rule fits: the default counts".to_owned(),
            (Ruling::Default, Standing::Answer) => {
                "an answer, and no rule fits what it answers: the default counts".to_owned()
            }
            (Ruling::Allowed(slot), Standing::Opening) => {
                format!("rule '{}' allows it", name(slot))
            }
            (Ruling::Allowed(slot), Standing::Answer) => {
                format!("an answer, to what rule '{}' allows", name(slot))
            }
            (Ruling::Denied(slot), Standing::Opening) => {
                format!("rule '{}' denies it", name(slot))
            }
            (Ruling::Denied(slot), Standing::Answer) => {
                format!("an answer, to what rule '{}' denies", name(slot))
            }
            (Ruling::Rejected(slot), Standing::Opening) => {
                format!("rule '{}' rejects it", name(slot))
            }
            (Ruling::Rejected(slot), Standing::Answer) => {
                format!("an answer, to what rule '{}' rejects", name(slot))
            }
        }
    }

    fn port(&self, id: PortId) -> String {
        self.topology
            .port(id)
            .map_or_else(|| id.to_string(), |port| port.name.to_string())
    }

    fn domain(&self, id: DomainId) -> String {
        let domain = self.topology.domain(id);
        domain.map_or_else(|| id.to_string(), |domain| domain.name.to_string())
    }

    fn uplink(&self, id: UplinkId) -> String {
        let uplink = self.topology.uplink(id);
        uplink.map_or_else(|| id.to_string(), |uplink| uplink.name.to_string())
    }

    fn learned(&self, learn: Learn) -> Option<String> {
        Some(match learn {
            Learn::New => "its source MAC is new on this port".to_owned(),
            Learn::Known => "its source MAC is known on this port".to_owned(),
            Learn::Moved { from } => format!("its source MAC moved here from {}", self.port(from)),
            Learn::Full => "not learned: the table or the port's share of it is full".to_owned(),
            Learn::Limited => "not learned: the port has as many stations as it may".to_owned(),
            Learn::MoveRefused => "not learned: the station moves too often".to_owned(),
            Learn::Pinned { at } => format!(
                "not learned: an entry that does not move has its source MAC on {}",
                self.port(at)
            ),
            Learn::Off => "not learned: learning is off on this port".to_owned(),
            Learn::Exempt => return None,
        })
    }

    fn target(&self, target: Target) -> String {
        match target {
            Target::Unicast(port) => format!("CAM hit: the destination is on {}", self.port(port)),
            Target::Flood => "the destination is on no one port: flood".to_owned(),
            Target::Gateway => "for the gateway".to_owned(),
        }
    }

    fn way(&self, way: Way) -> String {
        match way {
            Way::Local => "to the gateway itself".to_owned(),
            Way::Host => "to the host, over the host link".to_owned(),
            Way::Endpoint { domain, mac, port } => {
                format!("to {mac} on {} of {}", self.port(port), self.domain(domain))
            }
            Way::Uplink { uplink, mac } => {
                format!("to the outside by {}, next hop {mac}", self.uplink(uplink))
            }
        }
    }

    fn verdict(&self, verdict: Verdict) -> String {
        match verdict {
            Verdict::Bridged(port) => format!("bridged to {}", self.port(port)),
            Verdict::Flooded(domain, vlan, _) => self.flooded(domain, vlan),
            Verdict::Multicast(domain, _) => {
                format!(
                    "sent to the listeners of its group on {}, and to router ports",
                    self.domain(domain)
                )
            }
            Verdict::Routed(port) => format!("routed to {}", self.port(port)),
            Verdict::Replied(port) => format!("answered in place, back by {}", self.port(port)),
            Verdict::Delivered(Consumer::HostLink(_)) => "delivered to the host".to_owned(),
            Verdict::Delivered(Consumer::Service(domain)) => {
                format!("delivered to the service: dns, of {}", self.domain(domain))
            }
            Verdict::Held(_) => verdict.to_string(),
            Verdict::NotOurs => "left to the host".to_owned(),
            Verdict::Drop(reason) => {
                format!("dropped ({}): {}", reason.label(), reason.sentence())
            }
        }
    }

    fn flooded(&self, domain: DomainId, vlan: VlanId) -> String {
        let of_domain = |port: &&Port| port.role == Role::Bridge(domain);
        let ports = self.topology.ports.iter().flatten().filter(of_domain);
        let name = self.domain(domain);
        if vlan == TRANSPARENT {
            let ports = ports.count();
            return format!("flooded to the other ports of {name}, which has {ports}");
        }
        let members = ports.filter(|port| port.form(vlan).is_some()).count();
        let vlan = vlan.0;
        format!("flooded to the other ports in VLAN {vlan} of {name}, which has {members}")
    }
}

fn lacks(offload: &Offload) -> String {
    let mut text = String::new();
    if let Some(kind) = offload.gso() {
        let _ = write!(text, ", {kind:?} segments of {} bytes", offload.gso_size);
    }
    if offload.needs_checksum() {
        text += ", checksum left to the device";
    }
    text
}

fn parsed(headers: &Headers) -> String {
    let mut text = format!("{} > {}", headers.src, headers.dst);
    if let Some(tag) = headers.tag {
        let _ = write!(text, ", VLAN {}", tag.vlan().0);
    }
    match headers.l3 {
        Ok(L3::Arp(_)) => text += ", ARP",
        Ok(L3::Ip(ip)) => {
            let _ = write!(text, ", {} > {}, TTL {}", ip.src, ip.dst, ip.ttl);
        }
        Err(error) => {
            let _ = write!(text, ", EtherType {:#06x}, L3 {error}", headers.ethertype);
        }
    }
    text
}

fn snooped(heard: Heard) -> String {
    let Heard {
        joined,
        left,
        refused,
        queries,
    } = heard;
    if queries > 0 {
        return "a query: somebody asks who listens".to_owned();
    }
    let mut said = Vec::new();
    for (count, what) in [
        (joined, "listened to"),
        (left, "left"),
        (refused, "over the limit"),
    ] {
        if count > 0 {
            said.push(format!("{count} {what}"));
        }
    }
    match said.is_empty() {
        true => "a message that changes nothing".to_owned(),
        false => format!("groups: {}", said.join(", ")),
    }
}

fn translation(
    kind: NatKind,
    before: (L4Addr, L4Addr),
    after: (L4Addr, L4Addr),
    created: bool,
) -> String {
    let what = match kind {
        NatKind::Source => "source translated",
        NatKind::SourceReturn => "way back of a translated flow",
        NatKind::Forward => "published port",
        NatKind::ForwardReturn => "way back of a published port",
        NatKind::Hairpin => "hairpin",
        NatKind::IcmpError => "ICMP error about a translated flow",
    };
    let session = if created {
        "new session"
    } else {
        "known session"
    };
    let ((src, dst), (new_src, new_dst)) = (before, after);
    if before == after {
        return format!("routed, nothing translated, {session}: {src} > {dst}");
    }
    format!("{what}, {session}: {src} > {dst} becomes {new_src} > {new_dst}")
}

fn reply(answer: Answer) -> String {
    match answer {
        Answer::Arp => "the gateway gives its MAC (ARP)".to_owned(),
        Answer::Neighbour => "the gateway gives its MAC (ND)".to_owned(),
        Answer::ArpFor => "the endpoint's MAC, from the table (ARP)".to_owned(),
        Answer::NeighbourFor => "the endpoint's MAC, from the table (ND)".to_owned(),
        Answer::Echo => "the gateway answers the echo".to_owned(),
        Answer::Reset => "TCP reset".to_owned(),
        Answer::Error { kind } => match kind {
            IcmpErrorKind::TimeExceeded => "ICMP time exceeded".to_owned(),
            IcmpErrorKind::NetworkUnreachable => "ICMP network unreachable".to_owned(),
            IcmpErrorKind::HostUnreachable => "ICMP host unreachable".to_owned(),
            IcmpErrorKind::PortUnreachable => "ICMP port unreachable".to_owned(),
            IcmpErrorKind::Prohibited => "ICMP administratively prohibited".to_owned(),
            IcmpErrorKind::TooBig { mtu } => format!("ICMP too big, MTU {mtu}"),
        },
    }
}
