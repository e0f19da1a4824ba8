//! Announcements: a station's address and MAC, told to everybody before anybody asks.
//!
//! When an endpoint attaches, its neighbours may still know its address by the MAC of an earlier
//! one. An ARP announcement (RFC 5227 section 2.3) or an unsolicited neighbour advertisement
//! (RFC 4861 section 7.2.6) corrects them at once, instead of when their entry times out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane_core::addr::MacAddr;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv6Packet, Ipv6Repr, NdiscNeighborFlags,
    NdiscRepr, RawHardwareAddress,
};

/// All nodes on the link (RFC 4291 section 2.7.1), and its Ethernet address (RFC 2464 section 7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: MacAddr = MacAddr([0x33, 0x33, 0, 0, 0, 1]);

/// Hop limit of neighbour discovery, which proves that no router was crossed (RFC 4861).
const ND_HOP_LIMIT: u8 = 255;

/// The frame that tells everybody that `address` is at `mac`.
pub fn announcement(mac: MacAddr, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => arp_announcement(mac, address),
        IpAddr::V6(address) => unsolicited_advertisement(mac, address),
    }
}

fn arp_announcement(mac: MacAddr, address: Ipv4Addr) -> Vec<u8> {
    let arp = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(mac.0),
        source_protocol_addr: address,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: address,
    };
    let header = ethernet(mac, MacAddr::BROADCAST, EthernetProtocol::Arp);
    frame(header, arp.buffer_len(), |payload| {
        arp.emit(&mut ArpPacket::new_unchecked(payload));
    })
}

fn unsolicited_advertisement(mac: MacAddr, address: Ipv6Addr) -> Vec<u8> {
    let icmp = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
        flags: NdiscNeighborFlags::OVERRIDE,
        target_addr: address,
        lladdr: Some(RawHardwareAddress::from_bytes(&mac.0)),
    });
    let ip = Ipv6Repr {
        src_addr: address,
        dst_addr: ALL_NODES,
        next_header: IpProtocol::Icmpv6,
        payload_len: icmp.buffer_len(),
        hop_limit: ND_HOP_LIMIT,
    };
    let header = ethernet(mac, ALL_NODES_MAC, EthernetProtocol::Ipv6);
    frame(header, ip.buffer_len() + icmp.buffer_len(), |payload| {
        let mut packet = Ipv6Packet::new_unchecked(payload);
        ip.emit(&mut packet);
        let mut icmp_packet = Icmpv6Packet::new_unchecked(packet.payload_mut());
        icmp.emit(
            &address,
            &ALL_NODES,
            &mut icmp_packet,
            &ChecksumCapabilities::default(),
        );
    })
}

fn ethernet(src: MacAddr, dst: MacAddr, ethertype: EthernetProtocol) -> EthernetRepr {
    EthernetRepr {
        src_addr: EthernetAddress(src.0),
        dst_addr: EthernetAddress(dst.0),
        ethertype,
    }
}

fn frame(header: EthernetRepr, payload_size: usize, fill: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = vec![0; header.buffer_len() + payload_size];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    header.emit(&mut frame);
    fill(frame.payload_mut());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use dataplane_core::headers::{Headers, L3, L4Kind};

    const MAC: MacAddr = MacAddr([2, 0x42, 10, 0, 0, 5]);

    #[test]
    fn an_ipv4_address_is_announced_by_arp() {
        let address = Ipv4Addr::new(10, 0, 0, 5);
        let headers = Headers::parse(&announcement(MAC, address.into())).unwrap();
        assert_eq!((headers.src, headers.dst), (MAC, MacAddr::BROADCAST));
        let Ok(L3::Arp(arp)) = headers.l3 else {
            panic!("{:?}", headers.l3)
        };
        assert_eq!((arp.operation, arp.sender_mac), (1, MAC));
        assert_eq!((arp.sender, arp.target), (address, address));
    }

    #[test]
    fn an_ipv6_address_is_announced_by_an_advertisement_that_overrides() {
        let address: Ipv6Addr = "fd00::5".parse().unwrap();
        let bytes = announcement(MAC, address.into());
        let headers = Headers::parse(&bytes).unwrap();
        assert_eq!((headers.src, headers.dst), (MAC, ALL_NODES_MAC));
        let ip = headers.ip().unwrap();
        assert_eq!(
            (ip.src, ip.dst, ip.ttl),
            (address.into(), ALL_NODES.into(), 255)
        );
        let l4 = headers.l4.unwrap();
        assert_eq!(l4.kind, L4Kind::IcmpOther { icmp_type: 136 });
        assert_eq!(
            bytes[l4.offset + 4],
            0x20,
            "override, neither router nor solicited"
        );
        let sum = dataplane_core::checksum::Sum::pseudo_header(
            ip.src,
            ip.dst,
            ip.protocol,
            bytes.len() - l4.offset,
        );
        assert_eq!(
            sum.add_bytes(&bytes[l4.offset..]).checksum(),
            0,
            "valid checksum"
        );
    }
}
