//! A worker on real TAPs allocates nothing for a frame that it forwards, floods, translates, drops
//! or holds on a link.
//!
//! Every allocation of the process counts, on whatever thread: the test's own sending and
//! receiving makes none. So this file is one test with nothing beside it.

#![allow(clippy::unwrap_used)]

#[path = "../../dataplane/port/tests/common/counting.rs"]
#[allow(unsafe_code)]
mod counting;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use dataplane::Config;
use dataplane::stats::Stats;
use dataplane_core::addr::{MacAddr, VlanId};
use dataplane_core::l2::{
    Form, MacNat, Mirror, MirrorDirection, MirrorSource, PortFlags, PortVlans, VLAN_DEFAULT,
};
use dataplane_core::link::{Direction, Impairment, LinkSpec};
use dataplane_core::topology::{Multicast, Role};
use dataplane_core::verdict::VerdictKind;
use tests::lab::{self, DEADLINE, Namespace};
use tests::rig::{Backend, NETWORK, Rig, Sandbox};
use tests::talk::Witness;
use tests::world::groups;

/// Frames of each kind after which every buffer and table has reached its size.
const WARM_UP: u64 = 500;
/// Frames of each kind that are counted.
const FRAMES: u64 = 2_000;

const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);

/// A datagram's way from one socket to another.
struct Way {
    from: UdpSocket,
    address: SocketAddr,
    to: UdpSocket,
}

impl Way {
    fn new(from: &Namespace, to: &Namespace, listen: SocketAddr, address: SocketAddr) -> Self {
        let bind = |ns: &Namespace, at: SocketAddr| ns.run(|| UdpSocket::bind(at)).unwrap();
        let any = "0.0.0.0:0".parse().unwrap();
        let (from, to) = (bind(from, any), bind(to, listen));
        from.set_broadcast(true).unwrap();
        to.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { from, address, to }
    }

    /// Sends `count` datagrams, each when the one before has arrived.
    fn go(&self, count: u64) {
        let mut buffer = [0; 256];
        for _ in 0..count {
            self.from.send_to(&[7; 200], self.address).unwrap();
            assert_eq!(self.to.recv(&mut buffer).unwrap(), 200);
        }
    }
}

/// A socket whose datagrams end in the switch.
struct DeadEnd {
    from: UdpSocket,
    address: SocketAddr,
}

impl DeadEnd {
    fn new(from: &Namespace, address: SocketAddr) -> Self {
        let from = from.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        from.set_broadcast(true).unwrap();
        Self { from, address }
    }
}

/// Sends `count` datagrams each way.
fn round(ways: &[Way], dead_ends: &[DeadEnd], count: u64) {
    for way in ways {
        way.go(count);
    }
    for dead_end in dead_ends {
        for index in 0..count {
            let sent = dead_end.from.send_to(&[7; 200], dead_end.address);
            assert_eq!(sent.unwrap(), 200);
            // Behind every few of those that vanish, some that arrive: no queue overflows.
            if index % 16 == 0 {
                ways[0].go(1);
            }
        }
    }
}

/// Whether VLANs count on the network; where they do, c shows a mirror of a besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vlans {
    Ignored,
    Counted,
}

/// Has VLANs count: every sandbox is in VLAN 1, c with a tag, so that floods leave in both forms.
fn count_vlans(rig: &mut Rig) {
    for domain in rig.topology.domains.iter_mut().flatten() {
        domain.gateway_vlan = VLAN_DEFAULT;
    }
    let mut trunk = PortVlans::access(VlanId(2));
    trunk.add(1..=1, Form::Tagged);
    for port in rig.topology.ports.iter_mut().flatten() {
        if let Role::Bridge(_) = port.role {
            let vlans = match &*port.name {
                "c" => trunk.clone(),
                _ => PortVlans::default(),
            };
            port.flags = port.flags.with(PortFlags::FILTERING);
            port.profile_mut().vlans = Some(Box::new(vlans));
        }
    }
}

/// Has a socket of `b` listen to the group, and `a` ask who does, until frames go by the answer.
fn listen(rig: &Rig, a: &Sandbox, b: &Sandbox, socket: &UdpSocket) {
    let (IpAddr::V4(from), IpAddr::V4(own)) = (a.address, b.address) else {
        panic!("the sandboxes have IPv4");
    };
    socket.join_multicast_v4(&GROUP, &own).unwrap();
    let query = groups::query(a.mac, from, 1);
    Witness::new(&a.ns, "eth0").send(&query);
    lab::wait_until(DEADLINE, "a listener and a querier", || {
        let (mdb, now) = (rig.dataplane.mdb(), rig.dataplane.now());
        let queriers = mdb.queriers(&rig.dataplane.topology(), NETWORK, now);
        let rows = mdb.rows(NETWORK, now);
        queriers.iter().any(|querier| querier.trusted) && rows.iter().any(|row| row.port == b.port)
    });
}

fn dropped(stats: &Stats) -> u64 {
    stats.drops.iter().map(|(_, count)| count).sum()
}

#[test]
fn nothing_is_allocated_for_a_frame() {
    if !lab::require_root("alloc") {
        return;
    }
    for (workers, vlans) in [
        (1, Vlans::Ignored),
        (2, Vlans::Ignored),
        (1, Vlans::Counted),
    ] {
        let config = Config {
            workers,
            ..Config::default()
        };
        let mut rig = Rig::new("alloc", &config);
        let a = rig.sandbox("a", "10.0.0.2/24", Backend::Tap, 1_500);
        let b = rig.sandbox("b", "10.0.0.3/24", Backend::Tap, 1_500);
        let c = rig.sandbox("c", "10.0.0.4/24", Backend::Tap, 1_500);
        a.ns.add_default_route("eth0", "10.0.0.1");
        rig.add_gateway(&["10.0.0.1"], 1_500);
        let outside = rig.add_uplink(1_500);
        let down = rig.sandbox("down", "10.0.0.5/24", Backend::Tap, 1_500);
        rig.topology.ports[down.port.index()].as_mut().unwrap().up = false;
        if vlans == Vlans::Counted {
            count_vlans(&mut rig);
            rig.topology.mirrors.push(Mirror {
                from: MirrorSource::Port(a.port),
                direction: MirrorDirection::Both,
                to: c.port,
            });
        }
        if workers == 2 {
            // All that leaves to b carries one MAC.
            let port = rig.topology.ports[b.port.index()].as_mut().unwrap();
            port.flags = port.flags.with(PortFlags::MAC_NAT);
            port.profile_mut().mac_nat = Some(MacNat::new(MacAddr([2, 0, 0, 0, 0x77, 1]), 1));
        }
        for sandbox in [&a, &b, &c] {
            // Its hosts join groups at moments of their own, which costs memory.
            sandbox.ns.set_sysctl("net/ipv6/conf/all/disable_ipv6", "1");
        }
        // A group with a listener, on a network where somebody has asked for listeners.
        rig.domain_mut(NETWORK).multicast = Multicast::Snooped;
        rig.install();
        let any = |port| SocketAddr::from(([0, 0, 0, 0], port));
        let at = |address, port| SocketAddr::new(address, port);
        let ways = [
            Way::new(&a.ns, &b.ns, any(6_000), at(b.address, 6_000)),
            Way::new(&a.ns, &b.ns, any(6_001), at(lab::ip("10.0.0.255"), 6_001)),
            Way::new(&a.ns, &outside.ns, any(6_002), at(outside.address, 6_002)),
            Way::new(&a.ns, &b.ns, any(6_003), at(GROUP.into(), 6_003)),
        ];
        listen(&rig, &a, &b, &ways[3].to);
        // A port that is down drops; where no route leads, the gateway says so, or drops when it
        // has said so too often.
        let dead_ends = [
            DeadEnd::new(&down.ns, at(lab::ip("10.0.0.255"), 9)),
            DeadEnd::new(&a.ns, at(lab::ip("203.0.113.9"), 9)),
        ];
        round(&ways, &dead_ends, WARM_UP);
        let before = rig.dataplane.stats();
        let start = counting::of_the_process();
        round(&ways, &dead_ends, FRAMES);
        let allocations = counting::of_the_process() - start;
        rig.check_laws();
        let after = rig.dataplane.stats();
        let grown = |kind| after.verdict(kind) - before.verdict(kind);
        for kind in [
            VerdictKind::Bridged,
            VerdictKind::Flooded,
            VerdictKind::Multicast,
            VerdictKind::Routed,
        ] {
            assert!(grown(kind) >= FRAMES, "{kind:?}: {}", grown(kind));
        }
        let dropped = dropped(&after) - dropped(&before);
        assert!(dropped >= FRAMES, "{dropped} drops");
        let frames = after.rx - before.rx;
        println!("workers {workers}: {allocations} allocations for {frames} frames");
        assert_eq!(allocations, 0, "for {frames} frames");

        let link = LinkSpec {
            limit: "1gbit".parse().ok(),
            impairment: Impairment {
                delay: Duration::from_micros(50),
                ..Impairment::default()
            },
        };
        for (port, direction) in [(a.port, Direction::In), (b.port, Direction::Out)] {
            let port = rig.topology.ports[port.index()].as_mut().unwrap();
            port.set_link(direction, link);
        }
        rig.install();
        round(&ways, &dead_ends, WARM_UP);
        let start = counting::of_the_process();
        round(&ways, &dead_ends, FRAMES);
        let allocations = counting::of_the_process() - start;
        rig.check_laws();
        let held = rig.dataplane.stats().verdict(VerdictKind::Held);
        assert!(held >= 2 * FRAMES, "{held}");
        assert_eq!(allocations, 0, "over links");
    }
}
