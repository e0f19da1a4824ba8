//! What stations and adversaries do on the simulated bridge, and what the control plane does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use dataplane_core::addr::{MacAddr, PortId};
use dataplane_core::multicast::Forget;
use fastrand::Rng;

use super::bridge::{BridgeSim, Coming};
use super::bridge_model::{Kind, Plan};
use super::bridge_world::{PORTS, QUERIER, SPAN, VLANS, any_plan, picture};
use crate::wire;
use crate::world::{groups, mac};

impl BridgeSim {
    /// Queries by the querier's port, in every VLAN, for both families.
    pub(super) fn ask(&mut self) {
        for vlan in 1..=VLANS {
            let from = Ipv4Addr::new(10, 1, 0, 99);
            let v4 = groups::query(mac(0x99), from, 20);
            let v6 = groups::mld_query(
                mac(0x99),
                Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x99),
                2_000,
            );
            for (v6, bytes) in [(false, v4), (true, v6)] {
                let bytes = self.dressed(QUERIER, vlan, bytes);
                let kind = Kind::Query {
                    v6,
                    response: 2_000,
                };
                self.enter(Coming {
                    port: QUERIER,
                    bytes,
                    kind,
                });
            }
        }
    }

    /// Somebody does something.
    pub(super) fn deed(&mut self) {
        match self.rng.u8(..20) {
            0..7 => self.talk(),
            7..9 => self.hop(),
            9..12 => self.listen(),
            12 => self.lie(),
            13..17 => self.send_to_group(),
            17 => self.storm(),
            18 => self.flood_tables(),
            _ => self.change(),
        }
    }

    /// A station sends to another, or to all; now and then by another port than its own.
    fn talk(&mut self) {
        let (port, vlan) = self.somewhere();
        let roams = self.rng.u8(..) < 20;
        let station = if roams {
            self.rng.u8(1..=40)
        } else {
            port.0 as u8 * 5 + self.rng.u8(..2)
        };
        let dst = match self.rng.u8(..6) {
            0 => MacAddr::BROADCAST,
            1 => mac(self.rng.u8(100..120)),
            2 => MacAddr([0x03, 0, 0, 0, 0, 9]),
            _ => mac(self.rng.u8(1..=8) * 5 + self.rng.u8(..2)),
        };
        let bytes = wire::plain(wire::Link(mac(station), dst));
        self.come(port, vlan, bytes, Kind::Plain);
    }

    /// The hopper: two tags, a VLAN that is not its own, the VLANs that there cannot be, half a tag.
    fn hop(&mut self) {
        let (port, _) = self.somewhere();
        let station = mac(60 + port.0 as u8);
        let mut bytes = wire::plain(wire::Link(station, MacAddr::BROADCAST));
        let any = |rng: &mut Rng| rng.u16(1..=VLANS + 1);
        let (inner, outer) = (any(&mut self.rng), any(&mut self.rng));
        match self.rng.u8(..6) {
            0 => {
                wire::tag(&mut bytes, 0x8100, inner);
                wire::tag(&mut bytes, 0x8100, outer);
            }
            1 => {
                wire::tag(&mut bytes, 0x8100, inner);
                wire::tag(&mut bytes, 0x88a8, outer);
            }
            2 => wire::tag(&mut bytes, 0x8100, outer),
            3 => wire::tag(
                &mut bytes,
                0x8100,
                *self.rng.choice(&[0, 0xe000, 4_095]).unwrap_or(&0),
            ),
            4 => {
                wire::tag(&mut bytes, 0x8100, outer);
                bytes.truncate(self.rng.usize(14..18));
            }
            _ => wire::tag(&mut bytes, 0x8100, outer | 0xb000),
        }
        self.count("deed hop");
        self.come_as_it_is(port, bytes, Kind::Plain);
    }

    /// Somebody joins a group or leaves it.
    fn listen(&mut self) {
        let (port, vlan) = self.somewhere();
        let (station, group) = (mac(port.0 as u8 * 5), any_group(&mut self.rng));
        let (bytes, kind) = match self.rng.u8(..5) {
            0 | 1 => (
                groups::report(station, group),
                Kind::Join {
                    groups: vec![group],
                    new: false,
                },
            ),
            2 | 3 => (
                newer(station, &[group]),
                Kind::Join {
                    groups: vec![group],
                    new: true,
                },
            ),
            _ => (groups::leave(station, group), Kind::Leave(group)),
        };
        self.count("deed listen");
        self.come(port, vlan, bytes, kind);
    }

    /// A report that is wrong, or one of more groups than a port may have.
    fn lie(&mut self) {
        let (port, vlan) = self.somewhere();
        let station = mac(port.0 as u8 * 5 + 1);
        if self.rng.bool() {
            let mut bytes = groups::report(station, any_group(&mut self.rng));
            let last = match bytes[12..14] {
                [0x08, 0x00] => 14 + 24 + 7,
                _ => 14 + 40 + 8 + 23,
            };
            bytes[last] ^= 1 << self.rng.u8(..8);
            self.count("deed wrong report");
            return self.come(port, vlan, bytes, Kind::Wrong);
        }
        self.count("deed many groups");
        // From the flooder's port alone, so that the others' groups stay certain.
        let port = PortId(PORTS);
        let vlan = self.plans[&port].vlans.keys().next().copied().unwrap_or(1);
        let first = self.rng.u32(..1 << 20);
        for frame in 0..24 {
            let group = |n| IpAddr::V4(Ipv4Addr::from_bits(0xe800_0000 + (first + frame) * 32 + n));
            let groups: Vec<IpAddr> = (0..25).map(group).collect();
            let bytes = newer(station, &groups);
            self.come(port, vlan, bytes, Kind::Join { groups, new: true });
        }
    }

    fn send_to_group(&mut self) {
        let (port, vlan) = self.somewhere();
        let group = any_group(&mut self.rng);
        let bytes = groups::data(mac(port.0 as u8 * 5 + 2), group);
        self.come(port, vlan, bytes, Kind::Data(group));
    }

    /// More than may be flooded at once.
    fn storm(&mut self) {
        let (port, vlan) = self.somewhere();
        let dst = [MacAddr::BROADCAST, MacAddr([0x03, 0, 0, 0, 0, 9]), mac(110)];
        let dst = *self.rng.choice(&dst).unwrap_or(&MacAddr::BROADCAST);
        for _ in 0..20 {
            let bytes = wire::plain(wire::Link(mac(port.0 as u8 * 5 + 3), dst));
            self.come(port, vlan, bytes, Kind::Plain);
        }
    }

    /// The flooder makes stations up.
    fn flood_tables(&mut self) {
        let (port, vlan) = (PortId(PORTS), self.rng.u16(1..=VLANS));
        for _ in 0..8 {
            let [x, y] = self.rng.u16(..).to_be_bytes();
            let station = MacAddr([0x06, 0, 0, 0, x, y]);
            let bytes = wire::plain(wire::Link(station, mac(110)));
            self.come(port, vlan, bytes, Kind::Plain);
        }
        let bytes = wire::plain(wire::Link(mac(1), MacAddr::BROADCAST));
        self.come_as_it_is(SPAN, bytes, Kind::Plain);
    }

    /// The control plane changes a port, or it goes down or comes back.
    fn change(&mut self) {
        let port = PortId(self.rng.u16(2..=PORTS));
        let before = self.plans[&port].clone();
        let after = match self.rng.bool() {
            true => Plan {
                // What is down comes back, and what is up goes down once in four times.
                up: !before.up || self.rng.u8(..4) > 0,
                ..before.clone()
            },
            false => Plan {
                up: before.up,
                ..any_plan(&mut self.rng, port)
            },
        };
        self.count(if after.up == before.up {
            "deed change"
        } else {
            "deed flap"
        });
        if before.up && !after.up {
            self.fdb.flush_port(port);
            self.mdb.forget_port(port, Forget::Heard);
            self.model.forget(port);
        }
        self.plans.insert(port, after);
        self.topology = picture(&self.plans, self.topology.generation + 1);
        let (shared, plans) = (
            Arc::new(self.topology.clone()),
            Arc::new(self.plans.clone()),
        );
        self.pending.clear();
        for worker in 0..self.workers.len() {
            let next = (worker, Arc::clone(&shared), Arc::clone(&plans));
            self.pending.push(next);
        }
    }
}

fn any_group(rng: &mut Rng) -> IpAddr {
    let last = rng.u8(1..=6);
    match rng.bool() {
        true => Ipv4Addr::new(239, 1, 2, last).into(),
        false => Ipv6Addr::new(0xff15, 0, 0, 0, 0, 0, 1, last.into()).into(),
    }
}

/// A report of the newer versions.
fn newer(station: MacAddr, list: &[IpAddr]) -> Vec<u8> {
    let records: Vec<groups::Record> = list
        .iter()
        .map(|group| (groups::TO_EX, *group, 0))
        .collect();
    match list.first() {
        Some(IpAddr::V6(_)) => groups::mld_report_v2(station, &records),
        Some(IpAddr::V4(_)) | None => groups::report_v3(station, &records),
    }
}
