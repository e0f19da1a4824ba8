//! AF_PACKET by rings of shared memory, on veth pairs in namespaces of their own.

#![allow(clippy::unwrap_used)]

#[path = "common/cables.rs"]
mod cables;
mod common;
#[path = "common/flows.rs"]
mod flows;

use std::io;

use common::{in_namespace, ip, tc};
use dataplane_core::frame::{FrameBuf, Offload};
use dataplane_port::conformance::{Packet, PacketKind};
use dataplane_port::conformance::{numbered, wait};
use dataplane_port::packet::{Because, Feature, PacketBuilder, PacketSocket, Passing, Rings};
use dataplane_port::packet::{Offloads, RECEIVE_SLOTS, SLOT_SIZE, TRANSMIT_SLOTS, Ways};
use dataplane_port::tap::Tap;
use dataplane_port::{BATCH_MAX, Batch, Framing, PortIo};

/// Both ends of a cable within the namespace.
fn veth() {
    ip("link add a0 mtu 9000 type veth peer name b0 mtu 9000");
    ip("link set a0 up");
    ip("link set b0 up");
}

fn builder(name: &str) -> PacketBuilder {
    PacketBuilder::new(name).rings(Rings::Wanted)
}

fn open(name: &str) -> PacketSocket {
    let socket = builder(name).open().unwrap().remove(0);
    assert_eq!(socket.ways(), BOTH);
    socket
}

const BOTH: Ways = Ways {
    receive: Passing::Ring,
    transmit: Passing::Ring,
};

/// Runs the suite on the ports that `build` opens, on cables of an MTU.
fn conforms(mtu: u16, build: impl Fn(PacketBuilder) -> PacketBuilder) {
    cables::conforms(mtu, |near| build(builder(near)).open().unwrap().remove(0));
}

#[test]
fn veth_conforms() {
    in_namespace(|| conforms(1_500, |builder| builder));
}

#[test]
fn veth_conforms_with_frames_larger_than_a_slot() {
    in_namespace(|| conforms(9_000, |builder| builder));
}

#[test]
fn veth_conforms_with_a_ring_to_receive_by_alone() {
    let without = |it: PacketBuilder| it.refuse(Feature::TransmitRing, libc::ENOMEM);
    in_namespace(move || conforms(9_000, without));
}

#[test]
fn veth_conforms_with_a_ring_to_send_by_alone() {
    let without = |it: PacketBuilder| it.refuse(Feature::ReceiveRing, libc::ENOMEM);
    in_namespace(move || conforms(9_000, without));
}

/// What is told of a socket: how it receives and how it sends.
fn told(builder: &PacketBuilder) -> [&'static str; 2] {
    let socket = builder.open().unwrap().remove(0);
    let negotiated = socket.negotiated();
    let features: Vec<_> = negotiated.iter().map(|it| it.feature).collect();
    assert_eq!(features, ["reception", "sending"]);
    assert!(
        negotiated.iter().all(|it| it.wanted == RING),
        "{negotiated:?}"
    );
    [negotiated[0].used, negotiated[1].used]
}

const RING: &str = "by a ring of shared memory";

#[test]
fn what_the_kernel_refuses_is_done_by_system_calls_and_named() {
    in_namespace(|| {
        veth();
        assert_eq!(told(&builder("a0")), [RING, RING]);
        let receiving = [
            (Feature::Header, libc::EOPNOTSUPP, "older than 6.2"),
            (Feature::ReceiveRing, libc::ENOMEM, "lack of memory"),
            (
                Feature::ReceiveRing,
                libc::EINVAL,
                "the kernel refuses such a ring",
            ),
            (Feature::ReceiveMapping, libc::EAGAIN, "lack of memory"),
            (Feature::ReceiveMapping, libc::EPERM, "not permitted"),
        ];
        for (feature, errno, words) in receiving {
            let [reception, sending] = told(&builder("a0").refuse(feature, errno));
            assert!(reception.contains(words), "{feature:?}: {reception}");
            assert_eq!(sending, RING, "{feature:?}");
        }
        let sending = [
            (Feature::TransmitSocket, libc::EMFILE, "lack of descriptors"),
            (Feature::TransmitRing, libc::ENOMEM, "lack of memory"),
            (
                Feature::TransmitRing,
                libc::ENOPROTOOPT,
                "refuses such a ring",
            ),
            (Feature::TransmitMapping, libc::ENOMEM, "lack of memory"),
        ];
        for (feature, errno, words) in sending {
            let [reception, sending] = told(&builder("a0").refuse(feature, errno));
            assert!(sending.contains(words), "{feature:?}: {sending}");
            assert_eq!(reception, RING, "{feature:?}");
        }
        let neither = told(&builder("a0").refuse(Feature::Version, libc::EINVAL));
        let refused = neither.map(|it| it.contains("refuses such a ring"));
        assert_eq!(refused, [true, true], "{neither:?}");
    });
}

#[test]
fn what_cannot_be_done_without_is_explained() {
    in_namespace(|| {
        veth();
        for (feature, errno, words) in [
            (Feature::Socket, libc::EPERM, "CAP_NET_RAW"),
            (
                Feature::Socket,
                libc::EAFNOSUPPORT,
                "cannot open the packet socket on 'a0'",
            ),
            (
                Feature::Description,
                libc::ENOPROTOOPT,
                "cannot set the header of the packet socket",
            ),
            (
                Feature::Group,
                libc::EINVAL,
                "cannot share the frames of the packet socket",
            ),
        ] {
            let opened = builder("a0").queues(2).refuse(feature, errno).open();
            let said = opened.unwrap_err().to_string();
            assert!(said.contains(words), "{feature:?}: {said}");
        }
        // One queue shares with nobody.
        let alone = builder("a0").refuse(Feature::Group, libc::EINVAL).open();
        assert_eq!(alone.unwrap()[0].ways(), BOTH);
    });
}

#[test]
fn rings_beyond_the_limit_of_the_process_are_not_made() {
    in_namespace(|| {
        veth();
        let said = told(&builder("a0").ring_bytes_max(TRANSMIT_SLOTS * SLOT_SIZE - 1));
        let limited = said.map(|it| it.contains("256 MiB"));
        assert_eq!(limited, [true, true], "{said:?}");
        // Of several queues none has what the others have not.
        let sockets = builder("a0").queues(2).ring_bytes_max(0).open().unwrap();
        for socket in sockets {
            let limit = Passing::Calls(Because::Limit);
            assert_eq!(socket.ways().receive, limit);
            assert_eq!(socket.ways().transmit, limit);
        }
    });
}

#[test]
fn a_ring_is_not_asked_for_where_a_frame_would_not_be_told_whole() {
    in_namespace(|| {
        veth();
        for plain in [
            builder("a0").offloads(Offloads::None),
            builder("a0").framing(Framing::Ip),
            builder("a0").rings(Rings::Off),
        ] {
            let socket = plain.open().unwrap().remove(0);
            assert_eq!(socket.ways().receive, Passing::Calls(Because::NotWanted));
            assert_eq!(socket.ways().transmit, Passing::Calls(Because::NotWanted));
            assert_eq!(socket.negotiated(), []);
        }
    });
}

/// Has a system call fail on this thread, whatever for.
fn forbid(call: libc::c_long) {
    let step = |code: u32, jf, k| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf,
        k,
    };
    let program = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, call as u32),
        step(
            libc::BPF_RET | libc::BPF_K,
            0,
            libc::SECCOMP_RET_ERRNO | libc::ENOTRECOVERABLE as u32,
        ),
        step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    let (option, mode) = (libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER);
    // SAFETY: the program is live during the call, which copies it; it binds this thread alone.
    // JUSTIFICATION: std installs no filters.
    let returned = unsafe { libc::prctl(option, mode, &raw const program) };
    assert_eq!(returned, 0, "{}", io::Error::last_os_error());
}

#[test]
fn small_frames_pass_without_the_calls_that_larger_ones_take() {
    in_namespace(|| {
        veth();
        let mut port = open("a0");
        let mut far_end = open("b0");
        let mut frames: Vec<_> = (0..BATCH_MAX as u32)
            .map(|number| FrameBuf::from_bytes(&numbered(1_500, number)))
            .collect();
        let mut rx = Batch::new();
        let mut exchange = |port: &mut PacketSocket, far_end: &mut PacketSocket| {
            let sent = port.send(&mut frames)?;
            let received = far_end.recv(&mut rx)?;
            let same = rx.frames().iter().zip(&frames);
            assert!(same.clone().all(|(got, sent)| got.bytes() == sent.bytes()));
            rx.clear();
            Ok::<_, io::Error>((sent, received))
        };
        // The veth hands frames over before the call returns.
        for call in [libc::SYS_recvmmsg, libc::SYS_sendmmsg] {
            forbid(call);
            let passed = exchange(&mut port, &mut far_end).unwrap();
            assert_eq!(passed, (BATCH_MAX, BATCH_MAX));
        }
        // One more call would do it for all, and it is the only one.
        forbid(libc::SYS_getsockopt);
        let passed = exchange(&mut port, &mut far_end).unwrap();
        assert_eq!(passed, (BATCH_MAX, BATCH_MAX));
        let large = Packet::new(PacketKind::TcpV4, &[], 20_000);
        let mut gso = FrameBuf::from_bytes(&large.partial());
        gso.offload = large.gso_offload(1_400);
        let error = port.send(&mut [gso]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTRECOVERABLE), "{error}");
        forbid(libc::SYS_sendto);
        let error = exchange(&mut port, &mut far_end).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTRECOVERABLE), "{error}");
    });
}

/// Frames of all sizes mixed: those of a slot, larger ones, and oversized ones.
fn mixed(count: u32) -> Vec<FrameBuf> {
    let frame = |number: u32| {
        let (size, segment) = match number % 6 {
            0 | 1 => (60 + number as usize % 1_000, 0),
            2 => (5_000, 0),
            3 => (1_990, 0),
            // Oversized, and yet no larger than a slot.
            4 => (1_500, 500),
            _ => (14_000, 1_400),
        };
        if segment == 0 {
            return FrameBuf::from_bytes(&numbered(size, number));
        }
        let packet = Packet::new(PacketKind::UdpV4, &[], size);
        let mut bytes = packet.partial();
        // In the payload, which nobody looks into.
        bytes[100..104].copy_from_slice(&number.to_be_bytes());
        let mut frame = FrameBuf::from_bytes(&bytes);
        frame.offload = packet.gso_offload(segment);
        frame
    };
    (0..count).map(frame).collect()
}

#[test]
fn frames_of_all_sizes_keep_their_order() {
    in_namespace(|| {
        veth();
        let mut port = open("a0");
        let mut far_end = open("b0");
        for round in 0..100 {
            let mut frames = mixed(40);
            let mut sent = 0;
            while sent < frames.len() {
                sent += port.send(&mut frames[sent..]).unwrap();
            }
            let mut rx = Batch::new();
            let mut seen = 0;
            let all = wait(|| {
                drop(far_end.recv(&mut rx));
                for frame in rx.frames() {
                    let expected = &frames[seen];
                    assert_eq!(frame.bytes(), expected.bytes(), "{seen} in round {round}");
                    assert_eq!(frame.offload.gso(), expected.offload.gso());
                    seen += 1;
                }
                rx.clear();
                (seen == frames.len()).then_some(())
            });
            assert!(all.is_some(), "{seen} in round {round}");
        }
        let stats = [&port, &far_end].map(|it| it.edge_stats());
        assert!(stats.iter().all(|it| it.rx_dropped + it.rx_malformed == 0));
    });
}

#[test]
fn small_frames_do_not_overtake_what_the_queueing_discipline_holds() {
    in_namespace(|| {
        veth();
        // As a card without TCP segmentation: what is larger is for software, behind the discipline.
        ip("link set a0 gso_max_size 2000");
        let mut port = open("a0");
        let mut far_end = open("b0");
        let large = Packet::new(PacketKind::TcpV4, &[], 20_000);
        let mut gso = FrameBuf::from_bytes(&large.partial());
        gso.offload = large.gso_offload(1_400);
        assert_eq!(port.send(&mut [gso]).unwrap(), 1);
        tc("qdisc add dev a0 root tbf rate 2mbit burst 10kb latency 1s");
        let sizes = [5_000, 5_000, 5_000, 60, 5_000, 61];
        let frame = |(number, &size): (u32, &usize)| FrameBuf::from_bytes(&numbered(size, number));
        let mut frames: Vec<_> = (0..).zip(&sizes).map(frame).collect();
        let mut sent = 0;
        while sent < frames.len() {
            sent += port.send(&mut frames[sent..]).unwrap();
        }
        let mut arrived = Vec::new();
        let mut rx = Batch::new();
        let all = wait(|| {
            drop(far_end.recv(&mut rx));
            let sizes_now = rx.frames().iter().map(FrameBuf::len);
            arrived.extend(sizes_now.filter(|size| sizes.contains(size)));
            rx.clear();
            (arrived.len() == sizes.len()).then_some(())
        });
        assert!(all.is_some(), "{arrived:?}");
        assert_eq!(arrived, sizes);
    });
}

#[test]
fn queues_share_the_flows_and_keep_each_in_order() {
    in_namespace(|| {
        veth();
        let mut queues = builder("a0").queues(2).open().unwrap();
        flows::each_keeps_its_queue_and_its_order(&mut queues, &mut open("b0"));
    });
}

#[test]
fn what_a_full_ring_misses_is_counted_to_the_frame() {
    in_namespace(|| {
        veth();
        let mut port = open("a0");
        let mut far_end = open("b0");
        assert_eq!(port.edge_stats().rx_dropped, 0);
        let sent = RECEIVE_SLOTS as u32 + 300;
        for number in 0..sent {
            let mut frame = [FrameBuf::from_bytes(&numbered(60, number))];
            assert_eq!(far_end.send(&mut frame).unwrap(), 1);
        }
        let mut rx = Batch::new();
        let mut received = 0;
        while let Ok(count) = port.recv(&mut rx) {
            for frame in rx.frames() {
                assert_eq!(frame.bytes(), numbered(60, received), "the oldest are kept");
                received += 1;
            }
            assert_eq!(count, rx.len());
            rx.clear();
        }
        assert_eq!(received as usize, RECEIVE_SLOTS);
        assert_eq!(port.edge_stats().rx_dropped, 300);
        assert_eq!(
            far_end
                .send(&mut [FrameBuf::from_bytes(&numbered(60, 7))])
                .unwrap(),
            1
        );
        assert_eq!(port.recv(&mut rx).unwrap(), 1);
        let stats = port.edge_stats();
        assert_eq!((stats.rx_dropped, stats.rx_malformed), (300, 0));
    });
}

#[test]
fn what_no_buffer_has_room_for_is_counted_as_missed() {
    in_namespace(|| {
        veth();
        let small = builder("a0").receive_buffer_size(4_096);
        let mut port = small.open().unwrap().remove(0);
        let mut far_end = open("b0");
        let mut frames: Vec<_> = (0..20)
            .map(|number| FrameBuf::from_bytes(&numbered(8_000, number)))
            .collect();
        frames.push(FrameBuf::from_bytes(&numbered(60, 20)));
        let mut sent = 0;
        while sent < frames.len() {
            sent += far_end.send(&mut frames[sent..]).unwrap();
        }
        let mut rx = Batch::new();
        while port.recv(&mut rx).is_ok() {}
        let last = rx.frames().last().unwrap();
        assert_eq!(last.bytes(), numbered(60, 20), "small ones pass");
        let stats = port.edge_stats();
        assert_eq!(rx.len() as u64 + stats.rx_dropped, 21, "{stats:?}");
        assert!(stats.rx_dropped > 10, "{stats:?}");
    });
}

#[test]
fn what_the_kernel_refuses_to_send_is_told_of_the_frame_and_the_rest_passes() {
    in_namespace(|| {
        veth();
        ip("link set b0 mtu 1000");
        let mut port = open("a0");
        let mut far_end = PacketSocket::open("b0").unwrap();
        let frame = |size, number| FrameBuf::from_bytes(&numbered(size, number));
        let mut wrong = frame(60, 2);
        wrong.offload = Offload {
            flags: Offload::NEEDS_CSUM,
            csum_start: 50,
            csum_offset: 16,
            ..Offload::NONE
        };
        // The third is too large for the far end, the fourth for the cable.
        let large = [frame(1_400, 3), frame(9_100, 4)];
        let [too_large, beyond] = large;
        let mut frames = [
            frame(60, 1),
            wrong,
            frame(60, 5),
            too_large,
            beyond,
            frame(60, 6),
        ];
        let before: Vec<_> = frames.iter().map(|it| it.bytes().to_vec()).collect();
        assert_eq!(port.send(&mut frames).unwrap(), 1);
        let error = port.send(&mut frames[1..]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
        assert_eq!(port.send(&mut frames[2..]).unwrap(), 1);
        let error = port.send(&mut frames[3..]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOBUFS), "{error}");
        let error = port.send(&mut frames[4..]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
        assert_eq!(port.send(&mut frames[5..]).unwrap(), 1);
        assert!(
            frames
                .iter()
                .zip(&before)
                .all(|(now, before)| now.bytes() == before)
        );
        let mut rx = Batch::new();
        let all = wait(|| {
            drop(far_end.recv(&mut rx));
            (rx.len() == 3).then_some(())
        });
        assert!(all.is_some(), "{} arrived", rx.len());
        let arrived: Vec<_> = rx.frames().iter().map(|it| it.bytes().to_vec()).collect();
        assert_eq!(arrived, [1, 5, 6].map(|number| numbered(60, number)));
        // The ring is in use as before, all of it.
        forbid(libc::SYS_sendmmsg);
        for number in 0..3 * TRANSMIT_SLOTS as u32 {
            assert_eq!(port.send(&mut [frame(60, number)]).unwrap(), 1);
        }
    });
}

#[test]
fn a_frame_that_fits_a_slot_and_not_the_mtu_is_refused_for_its_size() {
    in_namespace(|| {
        ip("link add a0 mtu 1000 type veth peer name b0 mtu 9000");
        ip("link set a0 up");
        ip("link set b0 up");
        let mut port = open("a0");
        let mut frames = [1_014, 1_020].map(|size| FrameBuf::from_bytes(&numbered(size, 1)));
        assert_eq!(port.send(&mut frames).unwrap(), 1);
        let error = port.send(&mut frames[1..]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
    });
}

#[test]
fn an_interface_that_is_down_takes_nothing_and_none_of_it_comes_later() {
    in_namespace(|| {
        veth();
        let mut port = open("a0");
        let mut far_end = open("b0");
        ip("link set a0 down");
        let mut rx = Batch::new();
        let error = port.recv(&mut rx).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotConnected, "{error}");
        for number in 1..2 * TRANSMIT_SLOTS as u32 {
            let mut frames = [number, number + 1].map(|it| FrameBuf::from_bytes(&numbered(60, it)));
            let error = port.send(&mut frames).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotConnected, "{error}");
        }
        ip("link set a0 up");
        forbid(libc::SYS_sendmmsg);
        let mut frame = [FrameBuf::from_bytes(&numbered(60, 9_999))];
        assert!(wait(|| port.send(&mut frame).ok()).is_some());
        assert_eq!(wait(|| far_end.recv(&mut rx).ok()), Some(1));
        assert_eq!(rx.frames()[0].bytes(), numbered(60, 9_999));
        rx.clear();
        assert!(wait(|| far_end.send(&mut frame).ok()).is_some());
        assert_eq!(wait(|| port.recv(&mut rx).ok()), Some(1));
    });
}

/// The kernel fills a ring no more once a frame has come that its header has no words for.
#[test]
fn a_ring_that_the_kernel_has_given_up_is_made_anew() {
    in_namespace(|| {
        let mut tap = Tap::create("t0", 1).unwrap().remove(0);
        ip("link set t0 up");
        let mut port = open("t0");
        let mut rx = Batch::new();
        let _ = port.recv(&mut rx);
        rx.clear();
        for round in 0..3 {
            let mut good = [FrameBuf::from_bytes(&numbered(60, round))];
            assert_eq!(tap.send(&mut good).unwrap(), 1);
            assert_eq!(wait(|| port.recv(&mut rx).ok()), Some(1));
            rx.clear();
            let before = port.edge_stats();
            let packet = Packet::new(PacketKind::UdpV4, &[], 3_000);
            let mut indescribable = FrameBuf::from_bytes(&packet.partial());
            // Fragmentation of UDP, which the kernel takes and does not give.
            indescribable.offload = Offload {
                gso_type: 3,
                ..packet.gso_offload(1_400)
            };
            assert_eq!(tap.send(&mut [indescribable]).unwrap(), 1);
            let mut seen_again = false;
            let received = wait(|| {
                seen_again |= port.edge_stats().rx_dropped > before.rx_dropped;
                assert_eq!(tap.send(&mut good).unwrap(), 1);
                port.recv(&mut rx).ok().filter(|&count| count > 0)
            });
            assert!(received.is_some(), "round {round}: {:?}", port.edge_stats());
            assert!(seen_again, "what was missed meanwhile is counted");
            while port.recv(&mut rx).is_ok() {
                rx.clear();
            }
            assert!(port.edge_stats().rx_malformed > before.rx_malformed);
        }
    });
}
