//! AF_PACKET on veth pairs in namespaces of their own.

#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/flows.rs"]
mod flows;

use std::io;
use std::net::UdpSocket;

use common::{in_namespace, ip};
use dataplane_core::checksum::{self, Sum};
use dataplane_core::frame::{FrameBuf, Offload};
use dataplane_port::conformance::{PortPeer, Subject, check_all, numbered, wait};
use dataplane_port::packet::{Offloads, PacketBuilder, PacketError, PacketSocket};
use dataplane_port::{Batch, Framing, PortIo};
use flows::datagram;
use tun_tap::{Iface, Mode};

/// Both ends of a cable within the namespace.
fn veth() {
    ip("link add a0 mtu 9000 type veth peer name b0 mtu 9000");
    ip("link set a0 up");
    ip("link set b0 up");
}

#[test]
fn veth_conforms() {
    in_namespace(|| {
        let mut pair = 0;
        check_all(|| {
            // The pair of the check before may still be there.
            pair += 1;
            let (near, far) = (format!("a{pair}"), format!("b{pair}"));
            ip(&format!(
                "link add {near} mtu 9000 type veth peer name {far} mtu 9000"
            ));
            ip(&format!("link set {near} up"));
            ip(&format!("link set {far} up"));
            let port = PacketSocket::open(&near).unwrap();
            let far_end = PacketSocket::open(&far).unwrap();
            let unplug = move || ip(&format!("link del {near}"));
            Subject::new(port, PortPeer::new(far_end, unplug), 9_014)
        });
    });
}

#[test]
fn missing_interface_and_bad_queue_counts_are_explained() {
    in_namespace(|| {
        let error = PacketSocket::open("absent0").unwrap_err();
        assert!(matches!(error, PacketError::NotFound { .. }), "{error}");
        let error = PacketBuilder::new("lo").queues(0).open().unwrap_err();
        assert!(matches!(error, PacketError::QueueCount(0)), "{error}");
    });
}

#[test]
fn own_frames_are_not_received() {
    in_namespace(|| {
        veth();
        ip("addr add 192.0.2.1/24 dev a0");
        ip("neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev a0");
        let mut queues = PacketBuilder::new("a0").queues(2).open().unwrap();
        let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
        socket.send_to(b"out", "192.0.2.2:5000").unwrap();
        let mut far_end = PacketSocket::open("b0").unwrap();
        assert_eq!(
            far_end
                .send(&mut [FrameBuf::from_bytes(&numbered(60, 5))])
                .unwrap(),
            1
        );
        let mut rx = Batch::new();
        let received = wait(|| queues.iter_mut().find_map(|queue| queue.recv(&mut rx).ok()));
        assert_eq!(received, Some(1));
        assert_eq!(rx.frames()[0].bytes(), numbered(60, 5));
    });
}

#[test]
fn queues_share_the_flows_and_keep_each_in_order() {
    in_namespace(|| {
        veth();
        let mut queues = PacketBuilder::new("a0").queues(2).open().unwrap();
        flows::each_keeps_its_queue_and_its_order(
            &mut queues,
            &mut PacketSocket::open("b0").unwrap(),
        );
    });
}

#[test]
fn filter_admits_from_the_first_frame_on() {
    in_namespace(|| {
        veth();
        // Byte 17 is the low byte of the number: admit 7 only.
        let load = libc::sock_filter {
            code: 0x30,
            jt: 0,
            jf: 0,
            k: 17,
        };
        let seven = libc::sock_filter {
            code: 0x15,
            jt: 0,
            jf: 1,
            k: 7,
        };
        let admit = libc::sock_filter {
            code: 0x06,
            jt: 0,
            jf: 0,
            k: u32::MAX,
        };
        let refuse = libc::sock_filter {
            code: 0x06,
            jt: 0,
            jf: 0,
            k: 0,
        };
        let program = [load, seven, admit, refuse];
        let mut port = PacketBuilder::new("a0")
            .filter(&program)
            .open()
            .unwrap()
            .remove(0);
        let mut far_end = PacketSocket::open("b0").unwrap();
        for number in 0..20 {
            let mut frame = [FrameBuf::from_bytes(&numbered(60, number))];
            assert_eq!(far_end.send(&mut frame).unwrap(), 1);
        }
        let mut rx = Batch::new();
        assert_eq!(wait(|| port.recv(&mut rx).ok()), Some(1));
        assert_eq!(rx.frames()[0].bytes(), numbered(60, 7));
        assert_eq!(
            port.recv(&mut rx).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
    });
}

#[test]
fn loss_at_the_kernels_edge_is_counted() {
    in_namespace(|| {
        veth();
        let port = PacketBuilder::new("a0")
            .receive_buffer_size(4_096)
            .open()
            .unwrap()
            .remove(0);
        let mut far_end = PacketSocket::open("b0").unwrap();
        assert_eq!(port.edge_stats().rx_dropped, 0);
        let mut lost = 0;
        let counted = wait(|| {
            let mut frame = [FrameBuf::from_bytes(&numbered(1_000, 1))];
            assert_eq!(far_end.send(&mut frame).unwrap(), 1);
            let now = port.edge_stats().rx_dropped;
            assert!(now >= lost, "the count never falls: {lost} to {now}");
            lost = now;
            (lost > 10).then_some(())
        });
        assert!(counted.is_some());
    });
}

#[test]
fn interface_that_comes_back_up_is_connected_again() {
    in_namespace(|| {
        veth();
        let mut port = PacketSocket::open("a0").unwrap();
        ip("link set a0 down");
        let mut rx = Batch::new();
        let error = port.recv(&mut rx).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotConnected, "{error}");
        let mut frame = [FrameBuf::from_bytes(&numbered(60, 1))];
        let error = port.send(&mut frame).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotConnected, "{error}");
        ip("link set a0 up");
        let mut far_end = PacketSocket::open("b0").unwrap();
        assert!(wait(|| far_end.send(&mut frame).ok()).is_some());
        assert_eq!(wait(|| port.recv(&mut rx).ok()), Some(1));
    });
}

#[test]
fn frames_beyond_the_mtu_are_refused_one_by_one() {
    in_namespace(|| {
        veth();
        let mut port = PacketSocket::open("a0").unwrap();
        let mut far_end = PacketSocket::open("b0").unwrap();
        let mut frames = [
            FrameBuf::from_bytes(&numbered(60, 1)),
            FrameBuf::from_bytes(&numbered(9_100, 2)),
            FrameBuf::from_bytes(&numbered(60, 3)),
        ];
        assert_eq!(port.send(&mut frames).unwrap(), 1);
        let error = port.send(&mut frames[1..]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
        assert_eq!(port.send(&mut frames[2..]).unwrap(), 1);
        let mut rx = Batch::new();
        assert!(
            wait(|| {
                drop(far_end.recv(&mut rx));
                (rx.len() == 2).then_some(())
            })
            .is_some()
        );
    });
}

#[test]
fn without_the_header_a_socket_is_plain() {
    in_namespace(|| {
        veth();
        let mut port = PacketBuilder::new("a0")
            .offloads(Offloads::None)
            .open()
            .unwrap()
            .remove(0);
        assert!(!port.capabilities().checksum);
        let mut far_end = PacketSocket::open("b0").unwrap();
        assert_eq!(far_end.send(&mut [datagram(5_000, 9)]).unwrap(), 1);
        let mut rx = Batch::new();
        assert_eq!(wait(|| port.recv(&mut rx).ok()), Some(1));
        assert_eq!(rx.frames()[0].bytes(), datagram(5_000, 9).bytes());
        assert_eq!(rx.frames()[0].offload, Offload::NONE);
        assert_eq!(port.send(&mut [datagram(5_001, 8)]).unwrap(), 1);
        rx.clear();
        assert_eq!(wait(|| far_end.recv(&mut rx).ok()), Some(1));
        assert_eq!(rx.frames()[0].bytes(), datagram(5_001, 8).bytes());
    });
}

#[test]
fn filter_is_replaced_while_frames_flow() {
    in_namespace(|| {
        veth();
        let answer = |k| libc::sock_filter {
            code: 0x06,
            jt: 0,
            jf: 0,
            k,
        };
        let mut queues = PacketBuilder::new("a0")
            .queues(2)
            .filter(&[answer(0)])
            .open()
            .unwrap();
        let handles: Vec<_> = queues.iter().map(|q| q.filter_handle().unwrap()).collect();
        let mut far_end = PacketSocket::open("b0").unwrap();
        let mut send = |number| {
            let mut frame = [FrameBuf::from_bytes(&numbered(60, number))];
            assert_eq!(far_end.send(&mut frame).unwrap(), 1);
        };
        send(1);
        for handle in &handles {
            handle.replace(&[answer(u32::MAX)]).unwrap();
        }
        send(2);
        let mut rx = Batch::new();
        let received = wait(|| queues.iter_mut().find_map(|queue| queue.recv(&mut rx).ok()));
        assert_eq!(received, Some(1));
        assert_eq!(rx.frames()[0].bytes(), numbered(60, 2));
        // A program without a return is none, and the filter stays as it is.
        let load = libc::sock_filter {
            code: 0x30,
            jt: 0,
            jf: 0,
            k: 0,
        };
        let error = handles[0].replace(&[load]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
    });
}

/// A tun device with 203.0.113.1, whose far end is the returned file.
fn tunnel() -> Iface {
    let far_end = Iface::without_packet_info("t0", Mode::Tun).unwrap();
    far_end.set_non_blocking().unwrap();
    ip("link set t0 mtu 1400 up");
    ip("addr add 203.0.113.1/24 dev t0");
    far_end
}

/// The bytes of the next packet that comes out at the far end.
fn next_packet(far_end: &Iface) -> Vec<u8> {
    let mut packet = vec![0; 2_000];
    let size = wait(|| far_end.recv(&mut packet).ok()).expect("a packet");
    packet.truncate(size);
    packet
}

#[test]
fn a_tunnel_is_an_ethernet_link_between_two_stations() {
    in_namespace(|| {
        let far_end = tunnel();
        let builder = PacketBuilder::new("t0").framing(Framing::Ip).queues(2);
        let mut queues = builder.open().unwrap();
        let frame = datagram(5_000, 7);
        let packet = &frame.bytes()[14..];
        // In: a header of both MACs and the protocol is put on, for each IP version.
        let mut v6 = vec![0x60, 0, 0, 0, 0, 0, 59, 64];
        v6.extend([0xfd; 32]);
        let mut rx = Batch::new();
        for (packet, ethertype) in [(packet, [0x08, 0x00]), (&v6, [0x86, 0xdd])] {
            far_end.send(packet).unwrap();
            let received = wait(|| queues.iter_mut().find_map(|queue| queue.recv(&mut rx).ok()));
            assert_eq!(received, Some(1));
            let (own, peer) = (Framing::OWN_MAC.0, Framing::PEER_MAC.0);
            let header = [&own[..], &peer, &ethertype].concat();
            assert_eq!(rx.frames()[0].bytes(), [&header, packet].concat());
            rx.clear();
        }
        // Out: it is taken off.
        assert_eq!(queues[0].send(&mut [frame.clone()]).unwrap(), 1);
        assert_eq!(next_packet(&far_end), packet);
    });
}

/// 3,000 bytes of TCP, to be cut into segments of 1,000, their checksums left out.
fn oversized() -> FrameBuf {
    let mut frame = vec![0; 54 + 3_000];
    frame[..12].copy_from_slice(&[0x02, 0, 0, 0, 0, 2, 0x02, 0, 0, 0, 0, 1]);
    frame[12..34].copy_from_slice(&[
        0x08, 0, 0x45, 0, 0x0b, 0xe0, 0, 1, 0x40, 0, 64, 6, 0, 0, 203, 0, 113, 1, 203, 0, 113, 2,
    ]);
    frame[34..38].copy_from_slice(&[0x13, 0x88, 0, 80]);
    frame[46..48].copy_from_slice(&[0x50, 0x10]);
    let sum = pseudo_header(3_020).folded();
    frame[50..52].copy_from_slice(&sum.to_be_bytes());
    let mut buf = FrameBuf::from_bytes(&frame);
    buf.offload = Offload {
        flags: Offload::NEEDS_CSUM,
        gso_type: 1,
        hdr_len: 54,
        gso_size: 1_000,
        csum_start: 34,
        csum_offset: 16,
    };
    buf
}

fn pseudo_header(size: usize) -> Sum {
    Sum::pseudo_header([203, 0, 113, 1].into(), [203, 0, 113, 2].into(), 6, size)
}

/// Whether an IP packet is that segment of [`oversized`], complete.
fn assert_segment(packet: &[u8], number: u32) {
    assert_eq!(packet.len(), 1_040, "segment {number}");
    assert_eq!(packet[24..28], (number * 1_000).to_be_bytes());
    let sum = pseudo_header(1_020).add_bytes(&packet[20..]);
    assert_eq!(sum.checksum(), 0, "segment {number}");
}

#[test]
fn what_is_left_to_do_for_a_packet_is_done_for_a_tunnel() {
    in_namespace(|| {
        let far_end = tunnel();
        let builder = PacketBuilder::new("t0").framing(Framing::Ip);
        let mut port = builder.open().unwrap().remove(0);
        for _ in 0..2 {
            assert_eq!(port.send(&mut [oversized()]).unwrap(), 1);
            for number in 0..3 {
                assert_segment(&next_packet(&far_end), number);
            }
        }
    });
}

#[test]
fn an_interface_that_does_not_segment_has_it_done_by_the_kernel() {
    in_namespace(|| {
        veth();
        // As a card without TCP segmentation: what is larger is for software.
        ip("link set a0 gso_max_size 2000");
        let mut port = PacketSocket::open("a0").unwrap();
        let mut far_end = PacketSocket::open("b0").unwrap();
        let small = datagram(5_000, 1);
        assert_eq!(port.send(&mut [small, oversized()]).unwrap(), 1);
        assert_eq!(port.send(&mut [oversized()]).unwrap(), 1);
        let mut rx = Batch::new();
        let mut packets = Vec::new();
        wait(|| {
            drop(far_end.recv(&mut rx));
            for frame in rx.frames_mut() {
                assert_eq!(frame.offload.gso(), None);
                checksum::complete(frame).unwrap();
                packets.push(frame.bytes()[14..].to_vec());
            }
            rx.clear();
            (packets.len() >= 4).then_some(())
        });
        assert_eq!(packets.len(), 4);
        for number in 0..3 {
            assert_segment(&packets[number as usize + 1], number);
        }
    });
}
