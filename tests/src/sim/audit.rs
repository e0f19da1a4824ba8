//! The auditors: after every frame they compare what the core did with what must hold.

use std::collections::BTreeMap;
use std::net::IpAddr;

use dataplane_core::addr::{DomainId, MacAddr, PortId};
use dataplane_core::fdb::Learn;
use dataplane_core::frame::FrameBuf;
use dataplane_core::headers::{Headers, L3, ethertype};
use dataplane_core::l2::FloodClass;
use dataplane_core::time::Instant;
use dataplane_core::topology::{Role, Topology};
use dataplane_core::trace::{Step, Target};
use dataplane_core::verdict::{DropReason, Verdict};

use crate::wire;

/// A learning switch as one would explain it on a blackboard.
#[derive(Debug, Default)]
pub struct Model {
    stations: BTreeMap<(DomainId, MacAddr), Station>,
}

#[derive(Clone, Copy, Debug)]
struct Station {
    port: PortId,
    second: u32,
}

/// What the model expects of a frame that entered by a port of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Exactly(Verdict),
    /// The gateway's business.
    Gateway,
    /// At the edge of its age a station may be known or not.
    Either(Verdict, Verdict),
}

impl Model {
    /// Forgets the stations of a port.
    pub fn flush(&mut self, port: PortId) {
        self.stations.retain(|_, station| station.port != port);
    }

    /// Stations that the model knows on a port.
    pub fn count_on(&self, port: PortId) -> usize {
        let on = |station: &&Station| station.port == port;
        self.stations.values().filter(on).count()
    }

    /// Judges one frame: what was learned, where it went.
    ///
    /// # Panics
    /// When the core and the model differ.
    pub fn judge(
        &mut self,
        topology: &Topology,
        ingress: PortId,
        bytes: &[u8],
        steps: &[Step],
        verdict: Verdict,
        now: Instant,
    ) {
        let Some(port) = topology.port_up(ingress) else {
            assert_eq!(verdict, Verdict::Drop(DropReason::PortDown));
            return;
        };
        let Role::Bridge(domain) = port.role else {
            return;
        };
        let learned = steps.iter().find_map(|step| match step {
            Step::Learned(learn) => Some(*learn),
            _ => None,
        });
        match self.expect(topology, domain, ingress, bytes, learned, now) {
            Expected::Exactly(expected) => assert_eq!(verdict, expected),
            Expected::Either(a, b) => assert!([a, b].contains(&verdict), "{verdict:?}"),
            Expected::Gateway => assert!(
                steps.contains(&Step::Lookup(Target::Gateway)),
                "the gateway was addressed: {steps:?}"
            ),
        }
    }

    fn expect(
        &mut self,
        topology: &Topology,
        domain: DomainId,
        ingress: PortId,
        bytes: &[u8],
        learned: Option<Learn>,
        now: Instant,
    ) -> Expected {
        let drop = |reason| Expected::Exactly(Verdict::Drop(reason));
        let Ok(headers) = Headers::parse(bytes) else {
            return drop(DropReason::Runt);
        };
        if headers.src.is_group() {
            return drop(DropReason::SourceGroup);
        }
        if headers.src == MacAddr::ZERO {
            return drop(DropReason::SourceZero);
        }
        if headers.dst.is_link_local_group() {
            return drop(DropReason::LinkLocalGroup);
        }
        let network = topology
            .domain(domain)
            .expect("a port's domain is configured");
        let gateway = network
            .gateway
            .as_ref()
            .expect("each network has a gateway");
        let ageing = network.ageing.as_secs() as u32;
        if headers.src == gateway.mac {
            assert_eq!(learned, Some(Learn::Exempt));
        } else {
            self.learn((domain, headers.src), ingress, learned, now, ageing);
        }
        let asked = match (headers.ethertype, headers.l3) {
            (ethertype::ARP, Ok(L3::Arp(arp))) => {
                headers.dst.is_group()
                    && arp.operation == 1
                    && gateway.addresses.contains(&IpAddr::V4(arp.target))
            }
            _ => false,
        };
        if headers.dst == gateway.mac || asked {
            return Expected::Gateway;
        }
        let flood = match flood_set(topology, domain, ingress).as_slice() {
            [] => Verdict::Drop(DropReason::NoOtherPort),
            [..] => Verdict::Flooded(domain, Default::default(), FloodClass::of(headers.dst)),
        };
        let Some(station) = self.stations.get(&(domain, headers.dst)) else {
            return Expected::Exactly(flood);
        };
        let unicast = if station.port == ingress {
            Verdict::Drop(DropReason::SamePort)
        } else if topology.port_up(station.port).is_none() {
            Verdict::Drop(DropReason::EgressDown)
        } else {
            Verdict::Bridged(station.port)
        };
        // A busy station is written at most every sixteenth of the ageing time, so its entry may
        // be that much older than its last frame.
        match now.second() - station.second {
            age if age > ageing => Expected::Exactly(flood),
            age if age + ageing / 16 >= ageing => Expected::Either(unicast, flood),
            _ => Expected::Exactly(unicast),
        }
    }

    fn learn(
        &mut self,
        key: (DomainId, MacAddr),
        ingress: PortId,
        learned: Option<Learn>,
        now: Instant,
        ageing: u32,
    ) {
        let known = self.stations.get(&key).copied();
        let edge = known.is_some_and(|s| now.second() - s.second + ageing / 16 >= ageing);
        match learned {
            Some(Learn::Full) => {
                assert_eq!(
                    self.count_on(ingress),
                    super::STATIONS_PER_PORT_MAX as usize
                );
                return;
            }
            Some(Learn::MoveRefused) => return,
            Some(Learn::Known) => {
                let at = known.map(|station| station.port);
                assert_eq!(at, Some(ingress), "{key:?} known to the core alone");
            }
            Some(Learn::Moved { from }) => {
                assert_eq!(
                    known.map(|station| station.port),
                    Some(from),
                    "{key:?} moved"
                );
                assert_ne!(from, ingress);
            }
            Some(Learn::New) => assert!(known.is_none() || edge, "{key:?} was known: {known:?}"),
            Some(Learn::Exempt | Learn::Off | Learn::Limited | Learn::Pinned { .. }) | None => {
                panic!("{key:?} was not learned")
            }
        }
        let second = now.second();
        self.stations.insert(
            key,
            Station {
                port: ingress,
                second,
            },
        );
    }
}

/// The ports that a frame flooded in `domain` must reach, from the roles alone.
pub fn flood_set(topology: &Topology, domain: DomainId, ingress: PortId) -> Vec<PortId> {
    let ports = topology.ports.iter().flatten();
    ports
        .filter(|port| port.role == Role::Bridge(domain) && port.up && port.id != ingress)
        .map(|port| port.id)
        .collect()
}

/// Judges where a frame goes: networks stay apart, nothing bridged returns, floods are exact.
///
/// # Panics
/// When a rule is broken.
pub fn judge_egress(topology: &Topology, ingress: PortId, verdict: Verdict, egress: &[PortId]) {
    let domain_of = |id: PortId| match topology.port(id).map(|port| port.role) {
        Some(Role::Bridge(domain)) => Some(domain),
        Some(Role::HostLink | Role::Uplink(_)) | None => None,
    };
    match verdict {
        Verdict::Bridged(port) => {
            assert_ne!(port, ingress, "a bridged frame went back");
            assert_eq!(
                domain_of(port),
                domain_of(ingress),
                "a frame left its network"
            );
            assert_eq!(egress, [port]);
        }
        Verdict::Flooded(domain, _, _) => {
            assert_eq!(Some(domain), domain_of(ingress), "a flood left its network");
            assert_eq!(
                egress,
                flood_set(topology, domain, ingress),
                "the flood set"
            );
        }
        Verdict::Multicast(domain, _) => {
            assert_eq!(Some(domain), domain_of(ingress), "a group left its network");
            let reached = flood_set(topology, domain, ingress);
            assert!(egress.iter().all(|port| reached.contains(port)));
        }
        Verdict::Routed(port) => assert_eq!(egress, [port]),
        Verdict::Replied(port) => assert_eq!((port, egress), (ingress, &[port][..])),
        Verdict::Delivered(_) => {}
        Verdict::Held(_) | Verdict::NotOurs | Verdict::Drop(_) => assert!(egress.is_empty()),
    }
}

/// Judges a frame that leaves by `port`: sums, size, and no inside address on the outside.
///
/// # Panics
/// When a rule is broken.
pub fn judge_copy(topology: &Topology, port: PortId, buf: &FrameBuf) {
    let port = topology
        .port(port)
        .expect("a frame leaves by a configured port");
    if let Err(error) = wire::check(buf.bytes(), &buf.offload) {
        panic!("a frame left by {} with a bad sum: {error}", port.name);
    }
    let headers = Headers::parse(buf.bytes()).expect("what leaves has an Ethernet header");
    let Some(ip) = headers.ip() else {
        return;
    };
    let mtu = usize::from(port.mtu);
    let size = dataplane_core::gso::packet_size(&buf.offload, &headers).unwrap_or(0);
    assert!(size <= mtu, "{size} bytes of IP leave by {}", port.name);
    if let Role::Uplink(id) = port.role {
        let uplink = topology.uplink(id).expect("an uplink's port names it");
        assert!(
            uplink.addresses.contains(&ip.src),
            "{} seen outside",
            ip.src
        );
    }
}
