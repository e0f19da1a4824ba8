//! A world whose network `red` snoops, and questions about where its groups go.

use std::net::Ipv4Addr;

use dataplane_core::addr::VlanId;
use dataplane_core::l2::PortFlags;
use dataplane_core::multicast::{Heard, Question};
use dataplane_core::time::Duration;
use dataplane_core::topology::Multicast;
use dataplane_core::trace::Step;
use dataplane_core::verdict::{DropReason, Verdict};

use super::groups::{data, mld_query, query, v4, v6};
use super::{Outcome, RED, World, ip, mac};

pub const GROUP: &str = "239.1.2.3";
pub const OTHER: &str = "239.1.2.4";
pub const GROUP6: &str = "ff15::1:3";

pub fn multicast(world: &mut World, how: Multicast) {
    world.edit(|t| t.domains[RED.index()].as_mut().unwrap().multicast = how);
}

pub fn set(world: &mut World, port: u16, change: impl FnOnce(PortFlags) -> PortFlags) {
    world.edit(|t| {
        let port = t.ports[usize::from(port)].as_mut().unwrap();
        port.flags = change(port.flags);
    });
}

/// A world that snoops, with a querier behind port 3 that has had its answers.
pub fn queried() -> World {
    let mut world = World::new();
    multicast(&mut world, Multicast::Snooped);
    let _ = world.send(3, &query(mac(3), v4("10.1.0.4"), 10));
    let _ = world.send(3, &mld_query(mac(3), v6("fe80::4"), 1_000));
    world.wait(2);
    world
}

/// The same without a router's port: the querier has no address.
pub fn queried_from_nowhere() -> World {
    let mut world = World::new();
    multicast(&mut world, Multicast::Snooped);
    let _ = world.send(3, &query(mac(3), Ipv4Addr::UNSPECIFIED, 10));
    world.wait(2);
    world
}

/// The ports that a frame left by.
pub fn egress(world: &World, out: &Outcome, ingress: u16) -> Vec<u16> {
    match out.verdict {
        Verdict::Multicast(RED, VlanId(0)) => {
            world.sw.groups.takers().iter().map(|p| p.0).collect()
        }
        Verdict::Flooded(..) => world.flood_ports(out, ingress),
        Verdict::Drop(DropReason::NoListener) => Vec::new(),
        other => panic!("{other}"),
    }
}

/// Where a datagram to a group goes.
pub fn goes(world: &mut World, port: u16, group: &str) -> Vec<u16> {
    let out = world.send(port, &data(mac(port as u8), ip(group)));
    egress(world, &out, port)
}

pub fn heard(out: &Outcome) -> Option<Heard> {
    out.steps.iter().find_map(|step| match step {
        Step::Snooped(heard) => Some(*heard),
        _ => None,
    })
}

/// What the switch asks in the time that passes, by second and question.
pub fn asked(world: &mut World, seconds: u64) -> Vec<(u64, Question)> {
    let start = world.now;
    let mut all = Vec::new();
    for _ in 0..seconds * 10 {
        let mut questions = Vec::new();
        world
            .mdb
            .tick(&world.sw.topology, world.now, &mut questions);
        let second = world.now.since(start).as_secs();
        all.extend(questions.into_iter().map(|question| (second, question)));
        world.now = world.now + Duration::from_millis(100);
    }
    all
}
