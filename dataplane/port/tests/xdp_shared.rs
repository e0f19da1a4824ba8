//! Two interfaces with packet buffers in common, on veth pairs in namespaces of their own.

#![allow(clippy::unwrap_used)]

mod common;

use common::{in_namespace, ip, output_of};
use dataplane_core::checksum;
use dataplane_core::frame::{FrameBuf, Offload};
use dataplane_port::conformance::{Packet, PacketKind, numbered, wait};
use dataplane_port::packet::PacketSocket;
use dataplane_port::xdp::{End, Feature, SharedPair, XdpBuilder, XdpError, XdpSocket};
use dataplane_port::xdp::{RECEIVE_CHUNKS, TRANSMIT_CHUNKS};
use dataplane_port::{BATCH_MAX, Batch, EdgeStats, PortIo};

/// Two cables within the namespace, with a packet socket at the far end of each.
fn cables(mtu: u16) -> [PacketSocket; 2] {
    ["0", "1"].map(|number| {
        ip(&format!(
            "link add a{number} mtu {mtu} type veth peer name b{number} mtu {mtu}"
        ));
        ip(&format!("link set a{number} up"));
        ip(&format!("link set b{number} up"));
        PacketSocket::open(&format!("b{number}")).unwrap()
    })
}

fn open() -> SharedPair {
    let mut pairs = SharedPair::open(&XdpBuilder::new("a0"), &XdpBuilder::new("a1")).unwrap();
    assert_eq!(pairs.len(), 1);
    pairs.remove(0)
}

/// Passes frames from one far end to the other, in their order, and returns how they arrived.
fn pass(
    pair: &mut SharedPair,
    from: (End, &mut PacketSocket),
    to: &mut PacketSocket,
    frames: &mut [FrameBuf],
) -> Vec<FrameBuf> {
    assert_eq!(from.1.send(frames).unwrap(), frames.len());
    let mut moved = 0;
    let mut rx = Batch::new();
    let all = wait(|| {
        moved += pair.forward(from.0);
        let _ = to.recv(&mut rx);
        (rx.len() >= frames.len()).then_some(())
    });
    assert!(all.is_some(), "{moved} moved, {} arrived", rx.len());
    assert_eq!((moved, rx.len()), (frames.len(), frames.len()));
    rx.take_frames()
}

const NOTHING_LOST: EdgeStats = EdgeStats {
    rx_dropped: 0,
    rx_malformed: 0,
    tx_dropped: 0,
};

#[test]
fn frames_move_both_ways_bit_for_bit_and_in_their_order() {
    in_namespace(|| {
        let [mut one, mut two] = cables(1_500);
        let mut pair = open();
        let mut frames: Vec<FrameBuf> = [60, 61, 300, 1_513, 1_514]
            .into_iter()
            .zip(0..)
            .map(|(size, number)| FrameBuf::from_bytes(&numbered(size, number)))
            .collect();
        let there = pass(&mut pair, (End::First, &mut one), &mut two, &mut frames);
        let back = pass(&mut pair, (End::Second, &mut two), &mut one, &mut frames);
        for arrived in [there, back] {
            for (arrived, sent) in arrived.iter().zip(&frames) {
                assert_eq!(arrived.bytes(), sent.bytes());
                assert_eq!(arrived.offload, Offload::NONE);
            }
        }
        for end in [End::First, End::Second] {
            assert_eq!(pair.edge_stats(end), NOTHING_LOST);
        }
    });
}

#[test]
fn a_checksum_that_is_still_to_do_is_said_or_finished() {
    in_namespace(|| {
        let [mut one, mut two] = cables(1_500);
        for finished in [false, true] {
            let mut first = XdpBuilder::new("a0");
            if finished {
                first = first.refuse(Feature::Metadata, libc::EINVAL);
            }
            let mut pairs = SharedPair::open(&first, &XdpBuilder::new("a1")).unwrap();
            for kind in PacketKind::ALL {
                for tags in [&[][..], &[(0x88a8, 100), (0x8100, 10)]] {
                    let packet = Packet::new(kind, tags, 300);
                    let mut frame = FrameBuf::from_bytes(&packet.partial());
                    frame.offload = packet.checksum_offload();
                    let sent = std::slice::from_mut(&mut frame);
                    let arrived = pass(&mut pairs[0], (End::First, &mut one), &mut two, sent);
                    if finished {
                        checksum::complete(&mut frame).unwrap();
                    }
                    assert_eq!(arrived[0].bytes(), frame.bytes(), "{kind:?}");
                    assert_eq!(arrived[0].offload, frame.offload, "{kind:?}");
                }
            }
        }
    });
}

#[test]
fn chunks_come_back_whichever_way_frames_pass() {
    in_namespace(|| {
        let [mut one, mut two] = cables(1_500);
        let mut pair = open();
        let all_chunks = 2 * (RECEIVE_CHUNKS + TRANSMIT_CHUNKS);
        // One way only, so that whatever one end has to receive into goes by the other.
        for round in 0..2 * all_chunks / BATCH_MAX as u32 {
            let mut frames: Vec<FrameBuf> = (0..BATCH_MAX as u32)
                .map(|number| FrameBuf::from_bytes(&numbered(60 + number as usize, round)))
                .collect();
            let arrived = pass(&mut pair, (End::First, &mut one), &mut two, &mut frames);
            for (arrived, sent) in arrived.iter().zip(&frames) {
                assert_eq!(arrived.bytes(), sent.bytes(), "round {round}");
            }
        }
        let mut frame = [FrameBuf::from_bytes(&numbered(60, 9_999))];
        let back = pass(&mut pair, (End::Second, &mut two), &mut one, &mut frame);
        assert_eq!(back[0].bytes(), frame[0].bytes());
    });
}

/// Whoever is read too slowly loses frames of its own, and costs the other end nothing.
#[test]
fn what_comes_beyond_the_chunks_of_one_end_is_lost_and_counted() {
    in_namespace(|| {
        let [mut one, mut two] = cables(1_500);
        let mut pair = open();
        let sent = RECEIVE_CHUNKS + 500;
        for number in 0..sent {
            let mut frame = [FrameBuf::from_bytes(&numbered(60, number))];
            assert_eq!(wait(|| one.send(&mut frame).ok()), Some(1));
        }
        let mut frame = [FrameBuf::from_bytes(&numbered(60, 9_999))];
        let back = pass(&mut pair, (End::Second, &mut two), &mut one, &mut frame);
        assert_eq!(back[0].bytes(), frame[0].bytes());
        let mut rx = Batch::new();
        let mut arrived = 0;
        let all = wait(|| {
            pair.forward(End::First);
            let _ = two.recv(&mut rx);
            arrived += rx.len() as u64;
            rx.clear();
            let lost = pair.edge_stats(End::First).rx_dropped;
            (arrived + lost == u64::from(sent)).then_some(lost)
        });
        assert!(all.is_some_and(|lost| lost > 0), "{arrived} arrived");
        assert_eq!(pair.edge_stats(End::Second), NOTHING_LOST);
    });
}

#[test]
fn an_end_that_is_down_loses_what_is_for_it_and_none_of_it_comes_later() {
    in_namespace(|| {
        let [mut one, mut two] = cables(1_500);
        let mut pair = open();
        let count = 3 * TRANSMIT_CHUNKS;
        for (name, lost) in [("a1", count), ("b1", 2 * count)] {
            ip(&format!("link set {name} down"));
            for number in 0..count {
                let mut frame = [FrameBuf::from_bytes(&numbered(60, number))];
                assert_eq!(wait(|| one.send(&mut frame).ok()), Some(1));
                let moved = wait(|| Some(pair.forward(End::First)).filter(|&moved| moved > 0));
                assert_eq!(moved, Some(1));
            }
            assert_eq!(pair.edge_stats(End::Second).tx_dropped, u64::from(lost));
            ip(&format!("link set {name} up"));
            let mut frame = [FrameBuf::from_bytes(&numbered(60, 9_999))];
            let arrived = pass(&mut pair, (End::First, &mut one), &mut two, &mut frame);
            assert_eq!(arrived[0].bytes(), frame[0].bytes(), "{name}");
        }
        assert_eq!(pair.edge_stats(End::First), NOTHING_LOST);
    });
}

#[test]
fn every_queue_of_two_interfaces_passes_frames() {
    in_namespace(|| {
        let queues = "numtxqueues 2 numrxqueues 2";
        for number in 0..2 {
            ip(&format!(
                "link add a{number} {queues} type veth peer name b{number} {queues}"
            ));
            ip(&format!("link set a{number} up"));
            ip(&format!("link set b{number} up"));
        }
        let [first, second] = ["a0", "a1"].map(|name| XdpBuilder::new(name).queues(2));
        let mut pairs = SharedPair::open(&first, &second).unwrap();
        assert_eq!(pairs.len(), 2);
        let [mut one, mut two] = ["b0", "b1"].map(|name| PacketSocket::open(name).unwrap());
        let mut rx = Batch::new();
        for number in 0..200 {
            let mut frame = [FrameBuf::from_bytes(&numbered(60, number))];
            assert_eq!(one.send(&mut frame).unwrap(), 1);
            let arrived = wait(|| {
                for pair in &mut pairs {
                    pair.forward(End::First);
                }
                two.recv(&mut rx).ok()
            });
            assert_eq!(arrived, Some(1));
            assert_eq!(rx.frames()[0].bytes(), numbered(60, number));
            rx.clear();
        }
    });
}

#[test]
fn what_cannot_be_opened_is_explained_and_leaves_nothing() {
    in_namespace(|| {
        cables(1_500);
        let [first, second] = ["a0", "a1"].map(XdpBuilder::new);
        let refused = [
            SharedPair::open(&first, &XdpBuilder::new("absent0")),
            SharedPair::open(&first, &second.clone().queues(2)),
            SharedPair::open(&first, &second.clone().mtu(9_000)),
            SharedPair::open(&first, &second.clone().refuse(Feature::Native, libc::EPERM)),
        ];
        for (outcome, words) in refused.into_iter().zip([
            "no interface 'absent0'",
            "'a1' receives by 2 queues",
            "takes up to 1770",
            "not permitted to attach",
        ]) {
            let said = outcome.unwrap_err().to_string();
            assert!(said.contains(words), "{said}");
        }
        for name in ["a0", "a1"] {
            assert!(!output_of(&format!("ip -d link show {name}")).contains("xdp"));
        }
        let taken = XdpSocket::open("a1").unwrap();
        let error = SharedPair::open(&first, &second).unwrap_err();
        assert!(matches!(error, XdpError::InUse { .. }), "{error}");
        drop(taken);
        SharedPair::open(&first, &second).unwrap();
    });
}
