//! Red, with port 6 of it leading to a LAN that admits one MAC.

#![allow(dead_code)]

use std::net::Ipv4Addr;
use std::sync::Arc;

use dataplane_core::addr::{MacAddr, PortId};
use dataplane_core::frame::FrameBuf;
use dataplane_core::l2::{MacNat, PortFlags, Untranslatable};
use dataplane_core::topology::{Port, Role};
use dataplane_core::verdict::{DropReason, Verdict};
use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder};

use crate::world::packets::octets6;
use crate::world::{RED, World};

/// The port with one MAC.
pub const LAN: u16 = 6;
pub const NAT_MAC: MacAddr = MacAddr([0x02, 0, 0, 0, 0x77, 0x01]);
/// A station of the LAN.
pub const OUTSIDE: MacAddr = MacAddr([0x02, 0, 0, 0, 0x99, 0x01]);

pub fn nat_world() -> World {
    let mut world = World::new();
    world.edit(|t| {
        let mut port = Port::new(PortId(LAN), "lan", Role::Bridge(RED));
        port.flags = port.flags.with(PortFlags::MAC_NAT);
        port.profile_mut().mac_nat = Some(MacNat::new(NAT_MAC, 1));
        t.put_port(port);
    });
    world
}

pub fn nat(world: &World) -> MacNat {
    let port = world.sw.topology.port(PortId(LAN)).unwrap();
    port.profile.mac_nat.clone().unwrap()
}

/// Has a frame leave by the port, as a worker does.
pub fn leave(world: &mut World, bytes: &[u8]) -> Result<FrameBuf, Untranslatable> {
    let topology = Arc::clone(&world.sw.topology);
    let port = topology.port(PortId(LAN)).unwrap();
    let domain = topology.domain(RED).unwrap();
    let mut buf = FrameBuf::from_bytes(bytes);
    let nat = port.profile.mac_nat.as_ref().unwrap();
    nat.leave(port, domain, &mut buf, world.now)?;
    Ok(buf)
}

/// Whom a frame is given to that enters by the port, or why it ends at the door. What the gateway does
/// with it is not looked at, but for whose it is.
pub fn entered(world: &mut World, bytes: &[u8]) -> Result<MacAddr, DropReason> {
    use dataplane_core::trace::Step;
    let out = world.send(LAN, bytes);
    let admitted = out.steps.iter().find_map(|step| match step {
        Step::Admitted(_, dst) => Some(*dst),
        _ => None,
    });
    match (admitted, out.verdict) {
        (Some(dst), _) => Ok(dst),
        (None, Verdict::Drop(reason)) => Err(reason),
        (None, verdict) => panic!("{verdict:?} without admission"),
    }
}

pub fn arp(
    operation: u16,
    sender: MacAddr,
    from: [u8; 4],
    target: MacAddr,
    to: [u8; 4],
) -> Vec<u8> {
    let arp = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        ArpOperation(operation),
        &sender.0,
        &from,
        &target.0,
        &to,
    );
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(sender.0, target.0);
    builder.arp(arp.unwrap()).write(&mut frame).unwrap();
    frame
}

/// A frame of another EtherType.
pub fn raw(src: MacAddr, dst: MacAddr, ethertype: u16) -> Vec<u8> {
    let mut frame = [dst.0, src.0].concat();
    frame.extend(ethertype.to_be_bytes());
    frame.extend([7; 46]);
    frame
}

/// A message of neighbour discovery about fe80::2, with a link-layer address in an option; none for
/// option 0.
pub fn discovery(
    src_mac: MacAddr,
    src: &str,
    dst: &str,
    icmp_type: u8,
    option: u8,
    mac: MacAddr,
) -> Vec<u8> {
    let target = octets6("fe80::2");
    let mut body = match icmp_type {
        133 => Vec::new(),
        134 => vec![0; 8],
        137 => [target, target].concat(),
        _ => target.to_vec(),
    };
    if option != 0 {
        body.extend([option, 1]);
        body.extend(mac.0);
    }
    message(src_mac, src, dst, icmp_type, &body)
}

/// An unsolicited neighbour advertisement of an address.
pub fn advertisement(src_mac: MacAddr, src: &str, target: &str) -> Vec<u8> {
    let mut body = octets6(target).to_vec();
    body.extend([2, 1]);
    body.extend(src_mac.0);
    message(src_mac, src, "ff02::1", 136, &body)
}

pub fn message(src_mac: MacAddr, src: &str, dst: &str, icmp_type: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(src_mac.0, [0x33, 0x33, 0, 0, 0, 1])
        .ipv6(octets6(src), octets6(dst), 255)
        .icmpv6_raw(icmp_type, 0, [0x20, 0, 0, 0])
        .write(&mut frame, body)
        .unwrap();
    frame
}

/// The first message of a DHCP client, by a relay if `relay` is one.
pub fn dhcp_discover(client: MacAddr, relay: [u8; 4]) -> Vec<u8> {
    let mut message = vec![0; 240];
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[24..28].copy_from_slice(&relay);
    message[28..34].copy_from_slice(&client.0);
    message[236..240].copy_from_slice(&[99, 130, 83, 99]);
    message.extend([53, 1, 1, 255]);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(client.0, [0xff; 6])
        .ipv4([0; 4], Ipv4Addr::BROADCAST.octets(), 64)
        .udp(68, 67)
        .write(&mut frame, &message)
        .unwrap();
    frame
}
