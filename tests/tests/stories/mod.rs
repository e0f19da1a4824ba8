//! Stories of the bridge, and of several uplinks.

pub mod groups;
pub mod links;
pub mod mac_nat;
pub mod names;
pub mod nic;
pub mod rules;
pub mod uplinks;
pub mod vlans;

use control::explain::summary;
use dataplane::what_if::{as_it_leaves, egress_ports};
use dataplane_core::addr::{MacAddr, PortId, VlanId};
use dataplane_core::fdb::{FdbKey, FdbKind};
use dataplane_core::l2::{Identity, PortFlags, ProbeKey};
use dataplane_core::path::Switch;
use tests::wire::{self, Link};
use tests::world::{Outcome, PROBE_SEED, RED, ip, mac};

use super::Story;

/// A line for all ports by which a frame leaves as the same.
pub fn leaving(switch: &Switch, ingress: PortId, outcome: &Outcome) -> String {
    let topology = &switch.topology;
    let mut lines: Vec<(String, Vec<&str>)> = Vec::new();
    for id in egress_ports(switch, ingress, outcome.verdict) {
        let frame = as_it_leaves(topology, outcome.verdict, id, outcome.frame.bytes());
        let (frame, name) = (summary(&frame), topology.port(id).map(|port| &*port.name));
        match lines.iter_mut().find(|(other, _)| *other == frame) {
            Some((_, names)) => names.extend(name),
            None => lines.push((frame, Vec::from_iter(name))),
        }
    }
    let line =
        |(frame, names): (String, Vec<&str>)| format!("  out      {}: {frame}\n", names.join(", "));
    lines.into_iter().map(line).collect()
}

/// Turns flags of a port on and off.
fn set(s: &mut Story, port: usize, on: PortFlags, off: PortFlags) {
    s.world.edit(|t| {
        if let Some(Some(port)) = t.ports.get_mut(port) {
            port.flags = port.flags.with(on).without(off);
        }
    });
}

fn from(src: u8, dst: MacAddr) -> Vec<u8> {
    wire::plain(Link(mac(src), dst))
}

pub fn entries_that_are_set(s: &mut Story) {
    let entry = |s: &Story, station: u8, kind| {
        let key = FdbKey::new(RED, VlanId(0), mac(station));
        let set = s.world.fdb.set(key, PortId(3), kind, s.world.now);
        assert_eq!(set, Ok(()));
    };
    s.say(
        "a static entry has the station on c's port; a claims it, and is heard, but not believed",
    );
    entry(s, 0x50, FdbKind::Static);
    s.send(1, &from(0x50, MacAddr::BROADCAST));
    s.wait(1_000);
    s.send(2, &from(2, mac(0x50)));
    s.say("an address of the switch itself: the gateway's business");
    entry(s, 0x60, FdbKind::Local);
    s.send(2, &from(2, mac(0x60)));
}

pub fn a_port_that_shows_a_mirror(s: &mut Story) {
    s.say("c's port shows the copies of a mirror: nothing enters by it, and no flood leaves");
    let floods = PortFlags::BCAST_FLOOD
        .with(PortFlags::MCAST_FLOOD)
        .with(PortFlags::FLOOD);
    set(s, 3, PortFlags::MIRROR, floods);
    s.send(3, &from(3, MacAddr::BROADCAST));
    s.send(1, &from(1, MacAddr::BROADCAST));
}

pub fn a_secured_port(s: &mut Story) {
    set(s, 1, PortFlags::SECURED, PortFlags::NONE);
    s.world.edit(|t| {
        if let Some(Some(port)) = t.ports.get_mut(1) {
            port.profile_mut().identity = Identity {
                mac: mac(1),
                addresses: [ip("10.1.0.2")].into(),
                ..Identity::default()
            };
        }
    });
    let datagram = |src, from| {
        let link = Link(src, mac(2));
        wire::udp(link, wire::at(from), wire::at("10.1.0.3:9"), 64, b"hello")
    };
    s.say("a speaks for itself, by another MAC, and from another's address");
    s.send(1, &datagram(mac(1), "10.1.0.2:9"));
    s.send(1, &datagram(mac(7), "10.1.0.2:9"));
    s.send(1, &datagram(mac(1), "10.1.0.4:9"));
    s.say("and asks everyone, as if it were the gateway");
    let (gateway, b) = ([10, 1, 0, 1].into(), [10, 1, 0, 3].into());
    s.send(1, &wire::arp_request(mac(1), gateway, b));
    s.say("b's port may have one station, and has it");
    s.world.fdb.limit_port(PortId(2), Some(1));
    s.send(2, &from(2, MacAddr::BROADCAST));
    s.send(2, &from(0x22, MacAddr::BROADCAST));
}

pub fn a_loop_that_is_found(s: &mut Story) {
    for port in 1..=3 {
        set(s, port, PortFlags::LOOP_DETECT, PortFlags::NONE);
    }
    s.say("the probe that left by a's port comes back by b's: somebody connects the two");
    s.send(2, &ProbeKey::new(PROBE_SEED).probe(PortId(1)));
    s.say("another switch's probe is a multicast frame like others");
    s.send(2, &ProbeKey::new(PROBE_SEED + 1).probe(PortId(1)));
}

pub fn storm_control(s: &mut Story) {
    s.world.edit(|t| {
        if let Some(Some(port)) = t.ports.get_mut(1) {
            port.flags = port.flags.with(PortFlags::STORM);
            let limits = "broadcast 10 burst 2, multicast 10 burst 1, unknown-unicast 10 burst 1";
            port.profile_mut().storm = limits.parse().unwrap_or_default();
        }
    });
    s.say("a may send two broadcasts at once, and ten in a second");
    for _ in 0..3 {
        s.send(1, &from(1, MacAddr::BROADCAST));
    }
    s.say("one multicast, and one frame to a station that nobody knows");
    for dst in [MacAddr([0x01, 0, 0x5e, 0, 0, 1]), mac(0x77)] {
        s.send(1, &from(1, dst));
        s.send(1, &from(1, dst));
    }
    s.say("b's port has no limit, and a is known to it");
    s.send(2, &from(2, MacAddr::BROADCAST));
    s.send(2, &from(2, mac(1)));
    s.wait(1);
    s.send(1, &from(1, MacAddr::BROADCAST));
}

pub fn flags_of_ports(s: &mut Story) {
    s.send(2, &from(2, MacAddr::BROADCAST));
    s.say("a's port learns nothing any more, and c's takes no unknown unicast");
    set(s, 1, PortFlags::NONE, PortFlags::LEARNING);
    set(s, 3, PortFlags::NONE, PortFlags::FLOOD);
    s.send(1, &from(9, mac(0x77)));
    s.send(1, &from(9, MacAddr::BROADCAST));
    s.say("a and b are isolated: neither reaches the other, both reach c");
    set(s, 1, PortFlags::ISOLATED, PortFlags::NONE);
    set(s, 2, PortFlags::ISOLATED, PortFlags::NONE);
    s.send(1, &from(1, mac(2)));
    s.send(1, &from(1, MacAddr::BROADCAST));
    s.say("b's port is a hairpin, for two stations behind it");
    set(s, 2, PortFlags::HAIRPIN, PortFlags::ISOLATED);
    s.send(2, &from(0x22, mac(2)));
}
