//! `causeway why SRC DST [PROTO PORT]`: what would happen to a packet, and what would change it.
//!
//! A question names its ends as people do: an endpoint's name or address, `host`, or an address
//! outside. It is turned into the frames that the source would send (an ARP request where it
//! would ask first, then the packet), and each is put to [`dataplane::what_if`], which runs the
//! very code that forwards.

use std::net::{IpAddr, Ipv4Addr};

use dataplane::Dataplane;
use dataplane_core::addr::{DomainId, L4Addr, MacAddr, PortId};
use dataplane_core::frame::Offload;
use dataplane_core::link::{Direction, LinkSpec};
use dataplane_core::nat::Transport;
use dataplane_core::topology::{Domain, Neighbour, Port, Role, Topology};
use dataplane_core::verdict::{DropReason, Verdict};
use etherparse::PacketBuilder;

use crate::explain::{Line, explain, summary};
use crate::impairment::ImpairmentBody;

/// The source port of a question about TCP or UDP: one that a client could have chosen.
const SOURCE_PORT: u16 = 54_321;

/// TTL of a question's packet, as Linux sends.
const TTL: u8 = 64;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Who sends: an endpoint's name or address, `host`, or an address outside.
    pub src: String,
    /// To whom: an endpoint's name, or any address.
    pub dst: String,
    /// What is sent.
    pub packet: Packet,
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    /// An ICMP or ICMPv6 echo request.
    Echo,
    /// The first segment of a TCP connection to this port.
    Tcp(u16),
    /// A datagram to this port.
    Udp(u16),
}

/// Why a question cannot be put.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    /// No endpoint has this name or address, and it is no address outside.
    #[error("'{0}' is neither an endpoint nor an address; 'causeway port ls' lists the endpoints")]
    Unknown(String),
    /// One end is IPv4 and the other IPv6.
    #[error("{src} and {dst} are of different address families")]
    Families {
        /// The source address.
        src: IpAddr,
        /// The destination address.
        dst: IpAddr,
    },
    /// The source has no address of the family.
    #[error("'{name}' has no address to reach {dst} from")]
    NoAddress {
        /// The source.
        name: String,
        /// The destination.
        dst: IpAddr,
    },
    /// Nothing links the host to the networks.
    #[error("the host is not linked to any network")]
    NoHostLink,
    /// The host has no way to such an address, so nothing can come from there.
    #[error("no uplink leads to {0}, so nothing can come from there")]
    NoWayFrom(IpAddr),
}

/// What would become of one frame.
#[derive(Clone, Debug)]
pub struct Journey {
    /// The frame in a line.
    pub frame: String,
    /// The port that it would enter by.
    pub ingress: String,
    /// What each stage would do.
    pub lines: Vec<Line>,
    /// What would become of it.
    pub verdict: Verdict,
    /// The ports that it would leave by.
    pub egress: Vec<String>,
    /// The frame as it would leave, in a line; `None` when it would leave unchanged or not at all.
    pub rewritten: Option<String>,
    /// What would change the answer.
    pub advice: Option<&'static str>,
}

/// One end of a question, as the topology knows it.
struct End {
    port: PortId,
    /// Source MAC of its frames, and the MAC that it sends to for other networks.
    mac: MacAddr,
    next_hop: MacAddr,
    address: IpAddr,
    domain: Option<DomainId>,
}

/// Puts a question to the dataplane; nothing in it changes.
///
/// # Errors
/// [`QuestionError`], naming the end that cannot be made sense of.
pub fn ask(dataplane: &Dataplane, question: &Question) -> Result<Vec<Journey>, QuestionError> {
    let mut what_if = dataplane.what_if();
    let topology = dataplane.topology();
    let dst = destination(&topology, &question.dst)?;
    let src = source(&topology, &question.src, dst)?;
    if src.address.is_ipv4() != dst.is_ipv4() {
        return Err(QuestionError::Families {
            src: src.address,
            dst,
        });
    }
    let journeys = frames(&topology, &src, dst, question.packet)
        .into_iter()
        .map(|bytes| {
            let answer = what_if.ask(src.port, &bytes, Offload::NONE);
            let foretold = answer.expect("a question's frame is a few dozen bytes");
            let changed = foretold.frame != bytes && !matches!(foretold.verdict, Verdict::Drop(_));
            let link = |port, direction| link_line(&topology, port, direction);
            let mut lines = Vec::from_iter(link(src.port, Direction::In));
            lines.extend(explain(&foretold.steps, &topology));
            lines.extend(published_for(
                &topology,
                dst,
                question.packet,
                foretold.verdict,
            ));
            let egress = foretold.egress.iter();
            lines.extend(egress.filter_map(|port| link(*port, Direction::Out)));
            Journey {
                frame: summary(&bytes),
                ingress: port_name(&topology, src.port),
                lines,
                verdict: foretold.verdict,
                egress: foretold
                    .egress
                    .iter()
                    .map(|port| port_name(&topology, *port))
                    .collect(),
                rewritten: changed.then(|| summary(&foretold.frame)),
                advice: match foretold.verdict {
                    Verdict::Drop(reason) => advice(reason),
                    _ => None,
                },
            }
        });
    Ok(journeys.collect())
}

/// What is set of the link that a frame takes into the switch, or out of it: what is asked loses
/// nothing there and waits for nothing, but what is sent does.
fn link_line(topology: &Topology, id: PortId, direction: Direction) -> Option<Line> {
    let port = topology.port(id)?;
    let LinkSpec { limit, impairment } = port.profile.links[direction as usize];
    let limit = limit.map(|limit| format!("no more than {limit}"));
    let impaired = (!impairment.is_none()).then(|| ImpairmentBody::from(impairment).words());
    let words: Vec<String> = limit.into_iter().chain(impaired).collect();
    let way = match direction {
        Direction::In => "into the switch",
        Direction::Out => "out of it",
    };
    let text = format!("{}'s link {way}: {}", port.name, words.join(", "));
    let stage = "link";
    (!words.is_empty()).then_some(Line { stage, text })
}

/// For whom alone a port is published, where somebody else was turned away.
fn published_for(
    topology: &Topology,
    ip: IpAddr,
    packet: Packet,
    verdict: Verdict,
) -> Option<Line> {
    let (transport, port) = match packet {
        _ if verdict != Verdict::Drop(DropReason::NatFiltered) => return None,
        Packet::Tcp(port) => (Transport::Tcp, port),
        Packet::Udp(port) => (Transport::Udp, port),
        Packet::Echo => return None,
    };
    let rule = topology
        .statics
        .by_external(transport, L4Addr::new(ip, port))?;
    let from = rule.from?;
    let text = format!("the port is published, but for clients of {from} alone");
    let stage = "nat";
    Some(Line { stage, text })
}

fn destination(topology: &Topology, text: &str) -> Result<IpAddr, QuestionError> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (_, address, _) = endpoint_named(topology, text, |_| true)
        .ok_or_else(|| QuestionError::Unknown(text.to_owned()))?;
    Ok(address)
}

fn source(topology: &Topology, text: &str, dst: IpAddr) -> Result<End, QuestionError> {
    if text == "host" {
        return host(topology, dst);
    }
    let same_family = |address: IpAddr| address.is_ipv4() == dst.is_ipv4();
    if let Some((domain, address, neighbour)) = endpoint_named(topology, text, same_family) {
        return Ok(endpoint(domain, address, neighbour));
    }
    let Ok(address) = text.parse::<IpAddr>() else {
        return Err(match port_named(topology, text) {
            Some(_) => QuestionError::NoAddress {
                name: text.to_owned(),
                dst,
            },
            None => QuestionError::Unknown(text.to_owned()),
        });
    };
    let by_address = topology.domains().find_map(|domain| {
        domain
            .neighbours
            .get(&address)
            .map(|neighbour| (domain, *neighbour))
    });
    if let Some((domain, neighbour)) = by_address {
        return Ok(endpoint(domain, address, neighbour));
    }
    outside(topology, address, dst)
}

fn endpoint(domain: &Domain, address: IpAddr, neighbour: Neighbour) -> End {
    End {
        port: neighbour.port,
        mac: neighbour.mac,
        next_hop: domain
            .gateway
            .as_ref()
            .map_or(MacAddr::BROADCAST, |gateway| gateway.mac),
        address,
        domain: Some(domain.id),
    }
}

fn host(topology: &Topology, dst: IpAddr) -> Result<End, QuestionError> {
    let link = topology.host_link.ok_or(QuestionError::NoHostLink)?;
    let gateway = topology
        .network_of(dst)
        .and_then(|domain| domain.gateway.as_ref());
    let own = gateway.into_iter().flat_map(|gateway| &gateway.addresses);
    let address = own
        .chain(&topology.local_addresses)
        .find(|own| own.is_ipv4() == dst.is_ipv4())
        .ok_or_else(|| QuestionError::NoAddress {
            name: "host".to_owned(),
            dst,
        })?;
    Ok(End {
        port: link.port,
        mac: link.mac,
        next_hop: link.mac,
        address: *address,
        domain: None,
    })
}

/// Somebody outside, who sends to the host: by the uplink whose address he asks for, else by the one
/// that leads to him.
fn outside(topology: &Topology, address: IpAddr, dst: IpAddr) -> Result<End, QuestionError> {
    let route = topology
        .route(address)
        .ok_or(QuestionError::NoWayFrom(address))?;
    let asked = topology.uplinks.iter().find(|u| u.addresses.contains(&dst));
    let uplink = asked.or(route.uplink.and_then(|id| topology.uplink(id)));
    let uplink = uplink.ok_or(QuestionError::NoWayFrom(address))?;
    let router = uplink.mac_of(route.next_hop.unwrap_or(address));
    Ok(End {
        port: uplink.port,
        mac: router.unwrap_or(MacAddr([0x02, 0, 0, 0, 0, 1])),
        next_hop: uplink.mac,
        address,
        domain: None,
    })
}

/// The frames that the source would send: a question for the MAC, where it would have to ask for
/// a neighbour's, then the packet.
fn frames(topology: &Topology, src: &End, dst: IpAddr, packet: Packet) -> Vec<Vec<u8>> {
    let domain = src.domain.and_then(|id| topology.domain(id));
    let Some(domain) = domain.filter(|domain| domain.contains(dst)) else {
        return vec![build(src, src.next_hop, dst, packet)];
    };
    let gateway = domain.gateway.as_ref().filter(|gateway| gateway.owns(dst));
    let known = gateway.map(|gateway| gateway.mac);
    let known = known.or_else(|| domain.neighbours.get(&dst).map(|neighbour| neighbour.mac));
    let mut frames = Vec::new();
    if let (IpAddr::V4(own), IpAddr::V4(dst)) = (src.address, dst) {
        frames.push(arp_request(src.mac, own, dst));
    }
    frames.extend(known.map(|mac| build(src, mac, dst, packet)));
    frames
}

fn arp_request(mac: MacAddr, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = [MacAddr::BROADCAST.0, mac.0].concat();
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend(mac.0);
    frame.extend(sender.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

fn build(src: &End, dst_mac: MacAddr, dst: IpAddr, packet: Packet) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(src.mac.0, dst_mac.0);
    let builder = match (src.address, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => builder.ipv4(src.octets(), dst.octets(), TTL),
        (IpAddr::V6(src), IpAddr::V6(dst)) => builder.ipv6(src.octets(), dst.octets(), TTL),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return Vec::new(),
    };
    let mut frame = Vec::new();
    let written = match (packet, dst) {
        (Packet::Tcp(port), _) => builder
            .tcp(SOURCE_PORT, port, 1, 64_240)
            .syn()
            .write(&mut frame, &[]),
        (Packet::Udp(port), _) => builder.udp(SOURCE_PORT, port).write(&mut frame, &[0; 8]),
        (Packet::Echo, IpAddr::V4(_)) => builder
            .icmpv4_echo_request(SOURCE_PORT, 1)
            .write(&mut frame, &[0; 8]),
        (Packet::Echo, IpAddr::V6(_)) => builder
            .icmpv6_echo_request(SOURCE_PORT, 1)
            .write(&mut frame, &[0; 8]),
    };
    written.expect("writing a few dozen bytes to memory cannot fail");
    frame
}

/// The endpoint on the port of that name, with its first address that fits.
fn endpoint_named<'t>(
    topology: &'t Topology,
    name: &str,
    fits: impl Fn(IpAddr) -> bool,
) -> Option<(&'t Domain, IpAddr, Neighbour)> {
    let port = port_named(topology, name)?;
    let Role::Bridge(domain) = port.role else {
        return None;
    };
    let domain = topology.domain(domain)?;
    let here = |(_, neighbour): &(&IpAddr, &Neighbour)| neighbour.port == port.id;
    let mut addresses: Vec<_> = domain.neighbours.iter().filter(here).collect();
    addresses.sort_by_key(|(address, _)| **address);
    let (address, neighbour) = addresses.into_iter().find(|(address, _)| fits(**address))?;
    Some((domain, *address, *neighbour))
}

fn port_named<'t>(topology: &'t Topology, name: &str) -> Option<&'t Port> {
    topology
        .ports
        .iter()
        .flatten()
        .find(|port| &*port.name == name)
}

fn port_name(topology: &Topology, id: PortId) -> String {
    topology
        .port(id)
        .map_or_else(|| id.to_string(), |port| port.name.to_string())
}

/// What would make a dropped packet pass, where something would.
pub const fn advice(reason: DropReason) -> Option<&'static str> {
    Some(match reason {
        DropReason::PortDown => "bring the endpoint's interface up, or attach it again",
        DropReason::Runt
        | DropReason::SourceZero
        | DropReason::SourceGroup
        | DropReason::LinkLocalGroup
        | DropReason::L3Malformed
        | DropReason::L4Malformed
        | DropReason::NatIcmpMalformed
        | DropReason::NotIp
        | DropReason::ArpNotForGateway
        | DropReason::MartianDestination
        | DropReason::GroupMessageMalformed
        | DropReason::SamePort => return None,
        DropReason::LinkLost => "take the impairment away: 'causeway impair clear PORT'",
        DropReason::RateLimited => {
            "send less, or raise the rate: 'causeway port set PORT rate-in none'"
        }
        DropReason::LinkFull => "send less, or over a link of less delay",
        DropReason::NoOtherPort => "attach another endpoint: there is nobody else to flood to",
        DropReason::LoopProbe => {
            "disconnect the two ports outside the switch; `causeway events --kind loop` names them"
        }
        DropReason::SourceMacForeign | DropReason::SourceAddressForeign => {
            "send by the endpoint's own MAC and addresses, or let it be anybody: 'causeway port set \
             PORT port-security off'"
        }
        DropReason::MacNatEcho => {
            "nothing: the network behind the port repeats what it was sent; or give stations their own \
             MACs: 'causeway port set PORT mac-nat off'"
        }
        DropReason::MacNatUnknown => {
            "have the station send something first, or attach an endpoint with that address; 'causeway \
             mac-nat ls PORT' lists who is known"
        }
        DropReason::MacNatNotIp => {
            "use IP, or let stations leave by their own MACs: 'causeway port set PORT mac-nat off'"
        }
        DropReason::MirrorPort => {
            "let the port be an ordinary one as well: 'causeway mirror add ... --ingress'"
        }
        DropReason::VlanNoPvid => {
            "give the port a VLAN for frames without a tag: 'causeway vlan add PORT VID pvid'"
        }
        DropReason::VlanIngress | DropReason::VlanEgress => {
            "let the port be a member of the VLAN: 'causeway vlan add PORT VID'"
        }
        DropReason::PortIsolated => {
            "let one of the two ports reach the other: 'causeway port set PORT isolated off'"
        }
        DropReason::StormBroadcast
        | DropReason::StormMulticast
        | DropReason::StormUnknownUnicast => {
            "flood less, or raise the limit: 'causeway port set PORT storm-CLASS none'"
        }
        DropReason::NoListener => {
            "have somebody join the group, or flood it: 'causeway network set NETWORK \
             --mcast-snooping off'; 'causeway mdb show' lists who listens"
        }
        DropReason::EgressDown => "bring the destination's interface up, or attach it again",
        DropReason::TaggedForGateway => "send it untagged: gateways are in no VLAN",
        DropReason::MartianSource => "give the sender an address of its network",
        DropReason::HostLinkForeignSource => {
            "nothing: the host would be routing for others, past isolation and publishing; publish \
             the port instead"
        }
        DropReason::TtlExceeded => "send it with a larger TTL; or there is a routing loop",
        DropReason::FragmentationNeeded => "send smaller packets, or raise the MTU on the way",
        DropReason::NoRoute => "add a route on the host, or ask for an address that exists",
        DropReason::NoUplinkRoute => {
            "make the interface of the host's route an uplink: 'causeway daemon --uplink IF'"
        }
        DropReason::NetworkInternal => "create the network without --internal",
        DropReason::PolicyDenied | DropReason::PolicyRejected => {
            "let a rule before it allow this: 'causeway rule add NAME allow ... --before RULE'; \
             'causeway rule ls' lists them in their order"
        }
        DropReason::IccOff => {
            "allow these two: 'causeway allow SRC DST', or all: 'causeway network set NETWORK --icc on'"
        }
        DropReason::NetworkIsolated => {
            "allow one to open connections to the other: 'causeway allow SRC DST'"
        }
        DropReason::NeighbourUnknown => "attach an endpoint with that address",
        DropReason::NextHopUnresolved => "check that the next hop answers ARP or ND on the uplink",
        DropReason::NoHostLink => "create the network without --no-host-link",
        DropReason::GatewayClosed => "listen on the host, or ask another address",
        DropReason::UplinkForeignDestination => {
            "publish the port: 'causeway publish add HOST_PORT:PORT ENDPOINT'"
        }
        DropReason::NatNoMapping => {
            "publish the port, or let the inside send first; nothing inside has opened it"
        }
        DropReason::NatFiltered => {
            "let the inside send to this remote first, or publish the port for it: 'causeway publish \
             ls' shows for whom ports are published"
        }
        DropReason::RoutedUnsolicited => {
            "publish the port on all addresses, or let the inside send to this remote first"
        }
        DropReason::NatUnsupported => "use TCP, UDP or ICMP echo: nothing else is translated",
        DropReason::NatFragment => "send the fragments within two seconds, or smaller packets",
        DropReason::NatFragmentOverlap => "send each byte of a packet once",
        DropReason::NatTableFull => "raise the session limit, or end sessions",
        DropReason::NatQuota => "raise the limit per endpoint, or find out what opens so many",
        DropReason::NatNoPort => "widen the NAT port range, or end sessions",
        DropReason::NatOtherUplink => {
            "come in by the uplink that it is published for, or publish it without --uplink"
        }
        DropReason::NatNoTarget => {
            "let a target serve again: 'causeway publish undrain SPEC ENDPOINT', or join another"
        }
        DropReason::NatTargetUnknown => {
            "connect again, or let the server send first: only it knows whose connection it is"
        }
        DropReason::NatNoAddress => "give the uplink an address of this family",
        DropReason::NatIcmpUnmatched => "nothing: the error speaks of a session that is gone",
    })
}
