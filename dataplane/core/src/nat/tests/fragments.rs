//! Fragments: translated like their first one, or not at all.

use super::*;

/// Cuts the UDP datagram of `buf` (IPv4, no options) into fragments of `size` payload bytes.
fn fragments(buf: &FrameBuf, size: usize) -> Vec<FrameBuf> {
    let (header, payload) = buf.bytes().split_at(34);
    let count = payload.len().div_ceil(size);
    let piece = |(index, piece): (usize, &[u8])| {
        let mut bytes = [header, piece].concat();
        let total = (20 + piece.len()) as u16;
        bytes[16..18].copy_from_slice(&total.to_be_bytes());
        let more = if index + 1 < count { 0x2000 } else { 0 };
        let place = (index * size / 8) as u16 | more;
        bytes[20..22].copy_from_slice(&place.to_be_bytes());
        let sum = crate::checksum::ipv4_header(&bytes[14..34]);
        bytes[24..26].copy_from_slice(&sum.to_be_bytes());
        FrameBuf::from_bytes(&bytes)
    };
    payload.chunks(size).enumerate().map(piece).collect()
}

/// Puts fragments together again.
fn whole(fragments: &[FrameBuf]) -> FrameBuf {
    let mut bytes = fragments[0].bytes()[..34].to_vec();
    for fragment in fragments {
        let header = &fragment.bytes()[14..34];
        let sum = crate::checksum::ipv4_header(header);
        assert_eq!(header[10..12], sum.to_be_bytes());
        bytes.extend_from_slice(&fragment.bytes()[34..]);
    }
    let total = (bytes.len() - 14) as u16;
    bytes[16..18].copy_from_slice(&total.to_be_bytes());
    bytes[20..22].fill(0);
    let sum = crate::checksum::ipv4_header(&bytes[14..34]);
    bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    FrameBuf::from_bytes(&bytes)
}

const PAYLOAD: [u8; 4_000] = [0x5a; 4_000];

#[test]
fn later_fragments_follow_the_first_in_both_directions() {
    let (host, remote) = (at("10.0.0.2:50001"), at("203.0.113.5:53"));
    let mut lab = Lab::new();
    let mut out = fragments(&frame_with(Kind::Udp, host, remote, &PAYLOAD), 1_400);
    assert_eq!(out.len(), 3);
    for fragment in &mut out {
        lab.go_out(NET, fragment).unwrap();
    }
    let (external, to) = ends(whole(&out).bytes());
    assert_eq!((external, to), (at("198.51.100.1:50001"), remote));
    let mut back = fragments(&frame_with(Kind::Udp, remote, external, &PAYLOAD), 1_400);
    for fragment in &mut back {
        let inbound = lab.come_in(fragment).unwrap();
        assert_eq!((inbound.domain, inbound.inside), (NET, host.ip));
    }
    assert_eq!(ends(whole(&back).bytes()), (remote, host));
    assert_eq!(lab.nat.session_count(), 1);
}

#[test]
fn a_large_echo_goes_through() {
    let (host, remote) = (at("10.0.0.2:50001"), at("203.0.113.5:0"));
    let mut lab = Lab::new();
    let mut out = fragments(
        &frame_with(Kind::EchoRequest, host, remote, &PAYLOAD),
        1_400,
    );
    for fragment in &mut out {
        lab.go_out(NET, fragment).unwrap();
    }
    assert_eq!(ends(whole(&out).bytes()).0, at("198.51.100.1:50001"));
}

#[test]
fn a_hairpinned_datagram_may_be_fragmented() {
    let (client, public, server) = (
        at("10.0.0.2:50001"),
        at("198.51.100.1:80"),
        at("10.0.0.8:8080"),
    );
    let mut lab = Lab::new();
    lab.publish(1, "*", 80..=80, server);
    let mut around = fragments(&frame_with(Kind::Udp, client, public, &PAYLOAD), 1_400);
    for fragment in &mut around {
        let inbound = lab.around(NET, fragment).unwrap();
        assert_eq!(inbound.inside, server.ip);
    }
    let seen = (at("198.51.100.1:50001"), server);
    assert_eq!(ends(whole(&around).bytes()), seen);
}

#[test]
fn a_fragment_before_the_first_cannot_be_translated() {
    let (host, remote) = (at("10.0.0.2:50001"), at("203.0.113.5:53"));
    let mut lab = Lab::new();
    let mut out = fragments(&frame_with(Kind::Udp, host, remote, &PAYLOAD), 1_400);
    let early = out.last_mut().unwrap();
    assert_eq!(lab.go_out(NET, early), Err(DropReason::NatFragment));
    assert_eq!(lab.come_in(early), Err(DropReason::NatFragment));
    lab.go_out(NET, &mut out[0]).unwrap();
    // The same packet of a network with the same addresses is another packet.
    let twin = lab.go_out(TWIN, &mut out[1].clone());
    assert_eq!(twin, Err(DropReason::NatFragment));
    assert!(lab.go_out(NET, &mut out[1].clone()).is_ok());
    lab.wait(31);
    let late = lab.go_out(NET, &mut out[2]);
    assert_eq!(late, Err(DropReason::NatFragment));
}

#[test]
fn fragments_of_the_hosts_own_packets_are_left_to_it() {
    let (remote, port) = (at("203.0.113.5:53"), at("198.51.100.1:53"));
    let mut lab = Lab::new();
    let mut to_host = fragments(&frame_with(Kind::Udp, remote, port, &PAYLOAD), 1_400);
    for fragment in &mut to_host {
        assert_eq!(lab.come_in(fragment), Err(DropReason::NatNoMapping));
    }
    let host = at("10.0.0.2:50001");
    let mut around = fragments(&frame_with(Kind::Udp, host, port, &PAYLOAD), 1_400);
    for fragment in &mut around {
        assert_eq!(lab.around(NET, fragment), Err(DropReason::NatNoMapping));
    }
}

#[test]
fn an_identification_is_free_again_when_its_packet_is_complete() {
    let (host, remote) = (at("10.0.0.2:50001"), at("203.0.113.5:53"));
    let mut lab = Lab::new();
    let pieces = fragments(&frame_with(Kind::Udp, host, remote, &PAYLOAD), 1_400);
    let mut ids = Vec::new();
    for _ in 0..3 {
        let mut sent = pieces.clone();
        for piece in &mut sent {
            lab.go_out(NET, piece).unwrap();
        }
        let id = |piece: &FrameBuf| [piece.bytes()[18], piece.bytes()[19]];
        assert!(sent.iter().all(|piece| id(piece) == id(&sent[0])));
        ids.push(id(&sent[0]));
        assert_eq!(ends(whole(&sent).bytes()).1, remote);
    }
    ids.dedup();
    assert_eq!(ids.len(), 3, "each packet has one of its own");
}

#[test]
fn whoever_gets_an_address_gets_no_fragment_of_its_former_owner() {
    let (client, public, server) = (
        at("192.0.2.77:40000"),
        at("198.51.100.1:80"),
        at("10.0.0.8:53"),
    );
    let mut lab = Lab::new();
    lab.publish(1, "*", 80..=80, server);
    let inbound = fragments(&frame_with(Kind::Udp, client, public, &PAYLOAD), 1_400);
    let outbound = fragments(&frame_with(Kind::Udp, server, client, &PAYLOAD), 1_400);
    let other = at("10.0.0.2:50001");
    let kept = fragments(&frame_with(Kind::Udp, other, client, &PAYLOAD), 1_400);
    lab.come_in(&mut inbound[0].clone()).unwrap();
    for first in [&outbound[0], &kept[0]] {
        lab.go_out(NET, &mut first.clone()).unwrap();
    }
    let elsewhere = |domain, _| domain == TWIN;
    lab.nat.forget_fragments(elsewhere);
    assert!(lab.come_in(&mut inbound[1].clone()).is_ok());
    assert!(lab.go_out(NET, &mut outbound[1].clone()).is_ok());
    lab.nat
        .forget_fragments(|domain, inside| (domain, inside) == (NET, server.ip));
    let late = lab.come_in(&mut inbound[2].clone());
    assert_eq!(late, Err(DropReason::NatFragment));
    let late = lab.go_out(NET, &mut outbound[2].clone());
    assert_eq!(late, Err(DropReason::NatFragment));
    assert!(lab.go_out(NET, &mut kept[1].clone()).is_ok());
}
