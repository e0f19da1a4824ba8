//! AF_XDP on veth pairs in namespaces of their own.

#![allow(clippy::unwrap_used)]

#[path = "common/cables.rs"]
mod cables;
mod common;

use std::io;
use std::net::UdpSocket;

use common::{in_namespace, ip, output_of};
use dataplane_core::checksum::{self, Sum};
use dataplane_core::frame::{FrameBuf, Offload};
use dataplane_port::conformance::{Packet, PacketKind};
use dataplane_port::conformance::{numbered, wait};
use dataplane_port::packet::PacketSocket;
use dataplane_port::xdp::{BUSY_POLL_FRAMES_MAX, XdpBuilder, XdpError};
use dataplane_port::xdp::{Checksums, Feature, Features, Frames, Mode, Polling};
use dataplane_port::xdp::{RECEIVE_CHUNKS, TRANSMIT_CHUNKS, XdpSocket};
use dataplane_port::{BATCH_MAX, Batch, PortIo, ethtool};

/// Both ends of a cable within the namespace.
fn veth() {
    ip("link add a0 type veth peer name b0");
    ip("link set a0 up");
    ip("link set b0 up");
}

/// Runs the suite on the ports that `build` opens, on cables of an MTU.
fn conforms(mtu: u16, build: impl Fn(XdpBuilder) -> XdpBuilder) {
    cables::conforms(mtu, |near| {
        let builder = build(XdpBuilder::new(near).mtu(mtu));
        builder.open().unwrap().remove(0)
    });
}

#[test]
fn veth_conforms() {
    in_namespace(|| conforms(1_500, |builder| builder));
}

#[test]
fn veth_conforms_with_frames_in_several_chunks() {
    in_namespace(|| conforms(9_000, |builder| builder));
}

#[test]
fn veth_conforms_with_checksums_finished_here() {
    in_namespace(|| {
        conforms(1_500, |builder| {
            builder.refuse(Feature::Metadata, libc::EINVAL)
        });
    });
}

#[test]
fn veth_conforms_with_frames_in_one_chunk() {
    in_namespace(|| {
        conforms(3_400, |builder| {
            builder.refuse(Feature::SeveralChunks, libc::EINVAL)
        });
    });
}

#[test]
fn veth_conforms_in_the_kernels_common_path() {
    in_namespace(|| {
        conforms(1_500, |builder| {
            builder.refuse(Feature::Native, libc::EOPNOTSUPP)
        });
    });
}

const EVERYTHING: Features = Features {
    mode: Mode::Native,
    frames: Frames::SeveralChunks,
    checksums: Checksums::Described,
    polling: Polling::Unasked,
};

#[test]
fn what_the_kernel_refuses_is_done_without_and_named() {
    in_namespace(|| {
        veth();
        let with = |refused: &[(Feature, i32)]| {
            let mut builder = XdpBuilder::new("a0");
            for (feature, errno) in refused {
                builder = builder.refuse(*feature, *errno);
            }
            builder.open().unwrap().remove(0).features()
        };
        assert_eq!(with(&[]), EVERYTHING);
        let one_chunk = Features {
            frames: Frames::OneChunk,
            ..EVERYTHING
        };
        assert_eq!(with(&[(Feature::SeveralChunks, libc::EINVAL)]), one_chunk);
        assert_eq!(with(&[(Feature::ProgramOfPieces, libc::EINVAL)]), one_chunk);
        let finished = Features {
            checksums: Checksums::Finished,
            ..EVERYTHING
        };
        assert_eq!(with(&[(Feature::Metadata, libc::EINVAL)]), finished);
        let generic = Features {
            mode: Mode::Generic,
            ..EVERYTHING
        };
        assert_eq!(with(&[(Feature::Native, libc::EOPNOTSUPP)]), generic);
    });
}

#[test]
fn busy_polling_is_named_where_it_was_asked_for_and_done_without_where_it_is_refused() {
    in_namespace(|| {
        veth();
        let words = |socket: &XdpSocket| {
            let told = socket.negotiated().into_iter();
            let told = told.map(|it| (it.feature, it.wanted == it.used));
            told.collect::<Vec<_>>()
        };
        let unasked = XdpSocket::open("a0").unwrap();
        assert!(!unasked.busy_polled());
        assert!(
            words(&unasked)
                .iter()
                .all(|(feature, _)| *feature != "polling")
        );
        drop(unasked);
        for errno in [None, Some(libc::EPERM), Some(libc::ENOPROTOOPT)] {
            let mut builder = XdpBuilder::new("a0").busy_poll(BUSY_POLL_FRAMES_MAX);
            if let Some(errno) = errno {
                builder = builder.refuse(Feature::BusyPoll, errno);
            }
            let mut socket = builder.open().unwrap().remove(0);
            assert_eq!(socket.busy_polled(), errno.is_none());
            assert!(words(&socket).contains(&("polling", errno.is_none())));
            let mut far_end = PacketSocket::open("b0").unwrap();
            let mut frame = [FrameBuf::from_bytes(&numbered(60, 1))];
            assert_eq!(far_end.send(&mut frame).unwrap(), 1);
            let mut rx = Batch::new();
            let received = wait(|| {
                socket.busy_poll();
                socket.recv(&mut rx).ok()
            });
            assert_eq!(received, Some(1));
            assert_eq!(rx.frames()[0].bytes(), frame[0].bytes());
        }
    });
}

#[test]
fn veth_conforms_while_it_is_busy_polled() {
    in_namespace(|| conforms(1_500, |builder| builder.busy_poll(8)));
}

#[test]
fn what_cannot_be_done_without_is_explained_and_leaves_nothing() {
    in_namespace(|| {
        veth();
        let cases = [
            (Feature::Map, libc::EPERM, "CAP_BPF"),
            (Feature::Map, libc::ENOSYS, "CONFIG_BPF_SYSCALL"),
            (Feature::Program, libc::EPERM, "not permitted to load"),
            (Feature::Program, libc::EINVAL, "cannot load the program"),
            (Feature::Socket, libc::EPERM, "not permitted to open"),
            (Feature::Socket, libc::EAFNOSUPPORT, "CONFIG_XDP_SOCKETS"),
            (Feature::Memory, libc::ENOMEM, "locked memory"),
            (Feature::Metadata, libc::ENOBUFS, "locked memory"),
            (Feature::SeveralChunks, libc::EBUSY, "already"),
            (Feature::Native, libc::EPERM, "not permitted to attach"),
        ];
        for (feature, errno, words) in cases {
            let opened = XdpBuilder::new("a0").refuse(feature, errno).open();
            let said = opened.unwrap_err().to_string();
            assert!(said.contains(words), "{feature:?}, {errno}: {said}");
            assert!(said.contains("a0"), "{said}");
        }
        let neither = XdpBuilder::new("a0")
            .refuse(Feature::Native, libc::EOPNOTSUPP)
            .refuse(Feature::Generic, libc::EOPNOTSUPP)
            .open();
        let said = neither.unwrap_err().to_string();
        assert!(said.contains("use the backend packet"), "{said}");
        assert!(!output_of("ip -d link show a0").contains("xdp"));
        XdpSocket::open("a0").unwrap();
    });
}

#[test]
fn an_mtu_beyond_what_fits_is_refused_with_the_limit() {
    in_namespace(|| {
        ip("link add a0 mtu 9000 type veth peer name b0 mtu 9000");
        let one_chunk = XdpBuilder::new("a0")
            .mtu(9_000)
            .refuse(Feature::SeveralChunks, libc::EINVAL);
        // Whoever asks for less than the interface has is told by the kernel.
        let by_kernel = XdpBuilder::new("a0").refuse(Feature::ProgramOfPieces, libc::EINVAL);
        for (builder, max) in [(one_chunk, 4_096 - 256 - 22), (by_kernel, 3_506)] {
            let error = builder.open().unwrap_err();
            let told = matches!(error, XdpError::TooLarge { mtu_max, .. } if mtu_max == max);
            assert!(told && error.to_string().contains("up to 3"), "{error}");
        }
        XdpBuilder::new("a0").mtu(9_000).open().unwrap();
    });
}

#[test]
fn missing_interface_taken_interface_and_bad_queue_counts_are_explained() {
    in_namespace(|| {
        let error = XdpSocket::open("absent0").unwrap_err();
        assert!(matches!(error, XdpError::NotFound { .. }), "{error}");
        let error = XdpBuilder::new("lo").queues(0).open().unwrap_err();
        assert!(matches!(error, XdpError::QueueCount(0)), "{error}");
        veth();
        let first = XdpSocket::open("a0").unwrap();
        let error = XdpSocket::open("a0").unwrap_err();
        assert!(matches!(error, XdpError::InUse { .. }), "{error}");
        drop(first);
        XdpSocket::open("a0").unwrap();
        ip(
            "link add c0 numtxqueues 2 numrxqueues 2 type veth peer name d0 numtxqueues 2 numrxqueues 2",
        );
        let error = XdpSocket::open("c0").unwrap_err();
        let told = matches!(
            error,
            XdpError::OtherQueues {
                wanted: 1,
                has: 2,
                ..
            }
        );
        assert!(told, "{error}");
    });
}

#[test]
fn every_queue_of_the_interface_is_heard() {
    in_namespace(|| {
        ip(
            "link add a0 numtxqueues 2 numrxqueues 2 type veth peer name b0 numtxqueues 2 numrxqueues 2",
        );
        ip("link set a0 up");
        ip("link set b0 up");
        let mut queues = XdpBuilder::new("a0").queues(2).open().unwrap();
        let mut far_end = PacketSocket::open("b0").unwrap();
        let mut rx = Batch::new();
        let mut heard = 0;
        for number in 0..200 {
            let mut frame = [FrameBuf::from_bytes(&numbered(60, number))];
            assert_eq!(far_end.send(&mut frame).unwrap(), 1);
            let received = wait(|| queues.iter_mut().find_map(|queue| queue.recv(&mut rx).ok()));
            heard += received.unwrap();
            assert_eq!(rx.frames()[0].bytes(), numbered(60, number));
            rx.clear();
        }
        assert_eq!(heard, 200);
        for (number, queue) in (0..).zip(&mut queues) {
            let mut frame = [FrameBuf::from_bytes(&numbered(60, number))];
            assert_eq!(queue.send(&mut frame).unwrap(), 1);
            assert_eq!(take(&mut far_end), numbered(60, number));
        }
    });
}

/// The bytes of the only frame at the far end.
fn take(far_end: &mut PacketSocket) -> Vec<u8> {
    take_all(far_end, 1).remove(0)
}

/// The bytes of the frames at the far end, of which there are so many.
fn take_all(far_end: &mut PacketSocket, count: usize) -> Vec<Vec<u8>> {
    let mut rx = Batch::new();
    let all = wait(|| {
        let _ = far_end.recv(&mut rx);
        (rx.len() >= count).then_some(())
    });
    assert!(all.is_some() && rx.len() == count, "{:?}", rx.frames());
    rx.frames().iter().map(|it| it.bytes().to_vec()).collect()
}

fn nothing_comes(far_end: &mut PacketSocket) {
    let mut rx = Batch::new();
    let error = far_end.recv(&mut rx).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
}

/// An ARP request for 192.0.2.1.
fn request() -> FrameBuf {
    let mut bytes = vec![0xff; 6];
    bytes.extend([
        0x02, 0, 0, 0, 0, 0x0b, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1,
    ]);
    bytes.extend([0x02, 0, 0, 0, 0, 0x0b, 192, 0, 2, 2, 0, 0, 0, 0, 0, 0]);
    bytes.extend([192, 0, 2, 1]);
    FrameBuf::from_bytes(&bytes)
}

#[test]
fn the_host_hears_nothing_while_the_port_is_open_and_all_when_it_is_not() {
    in_namespace(|| {
        veth();
        ip("addr add 192.0.2.1/24 dev a0");
        let mut port = XdpSocket::open("a0").unwrap();
        let mut far_end = PacketSocket::open("b0").unwrap();
        assert_eq!(far_end.send(&mut [request()]).unwrap(), 1);
        let mut rx = Batch::new();
        assert_eq!(wait(|| port.recv(&mut rx).ok()), Some(1));
        // Whatever the host answered would be there before this.
        assert_eq!(port.send(&mut rx.take_frames()).unwrap(), 1);
        assert_eq!(take(&mut far_end), request().bytes());
        nothing_comes(&mut far_end);

        assert!(output_of("ip -d link show a0").contains("prog/xdp"));
        drop(port);
        assert!(!output_of("ip -d link show a0").contains("xdp"));
        assert_eq!(far_end.send(&mut [request()]).unwrap(), 1);
        assert_eq!(take(&mut far_end)[20..22], [0, 2], "an answer");
    });
}

#[test]
fn a_checksum_that_a_sandbox_left_to_its_device_is_seen_and_one_that_it_did_not_is_not() {
    in_namespace(|| {
        veth();
        ip("addr add 192.0.2.2/24 dev b0");
        ip("neigh add 192.0.2.1 lladdr 02:00:00:00:00:01 dev b0");
        let mut port = XdpSocket::open("a0").unwrap();
        let socket = UdpSocket::bind("192.0.2.2:0").unwrap();
        let mut seen = Vec::new();
        for _ in 0..2 {
            socket.send_to(b"unfinished", "192.0.2.1:5000").unwrap();
            let mut rx = Batch::new();
            assert_eq!(wait(|| port.recv(&mut rx).ok()), Some(1));
            let frame = &mut rx.frames_mut()[0];
            seen.push(frame.offload.needs_checksum());
            checksum::complete(frame).unwrap();
            let segment = &frame.bytes()[34..];
            let addresses = ["192.0.2.2", "192.0.2.1"].map(|it| it.parse().unwrap());
            let sum = Sum::pseudo_header(addresses[0], addresses[1], 17, segment.len());
            assert_eq!(sum.add_bytes(segment).checksum(), 0);
            ethtool::switch_off("b0", &["tx-checksum-ip-generic"]).unwrap();
        }
        assert_eq!(seen, [true, false]);
    });
}

/// Whoever receives it by AF_XDP could not tell that there is something to do.
#[test]
fn a_checksum_whose_field_does_not_hold_the_pseudo_header_is_finished_before() {
    in_namespace(|| {
        veth();
        let mut port = XdpSocket::open("a0").unwrap();
        let mut far_end = PacketSocket::open("b0").unwrap();
        let packet = Packet::new(PacketKind::UdpV4, &[], 300);
        let inner = Offload {
            csum_start: 100,
            ..packet.checksum_offload()
        };
        let mut other_sum = packet.partial();
        other_sum[40] ^= 0xff;
        for (bytes, offload) in [
            (packet.complete(), inner),
            (packet.partial(), inner),
            (other_sum, packet.checksum_offload()),
        ] {
            let mut frame = FrameBuf::from_bytes(&bytes);
            frame.offload = offload;
            assert_eq!(port.send(std::slice::from_mut(&mut frame)).unwrap(), 1);
            assert_eq!((frame.bytes(), frame.offload), (&bytes[..], offload));
            let mut rx = Batch::new();
            assert_eq!(wait(|| far_end.recv(&mut rx).ok()), Some(1));
            checksum::complete(&mut frame).unwrap();
            assert_eq!(rx.frames()[0].bytes(), frame.bytes());
            assert_eq!(rx.frames()[0].offload, Offload::NONE);
        }
    });
}

#[test]
fn loss_at_the_kernels_edge_is_counted() {
    in_namespace(|| {
        veth();
        let mut port = XdpSocket::open("a0").unwrap();
        let mut far_end = PacketSocket::open("b0").unwrap();
        assert_eq!(port.edge_stats().rx_dropped, 0);
        let sent = RECEIVE_CHUNKS + 500;
        for number in 0..sent {
            let mut frame = [FrameBuf::from_bytes(&numbered(60, number))];
            let accepted = wait(|| far_end.send(&mut frame).ok());
            assert_eq!(accepted, Some(1));
        }
        let mut rx = Batch::new();
        let mut received = 0;
        let all = wait(|| {
            received += port.recv(&mut rx).unwrap_or(0) as u64;
            rx.clear();
            (received + port.edge_stats().rx_dropped == u64::from(sent)).then_some(())
        });
        let stats = port.edge_stats();
        assert!(all.is_some(), "{received} received, {stats:?}");
        assert_eq!((stats.rx_malformed, stats.tx_dropped), (0, 0));
        assert!(stats.rx_dropped > 0, "{stats:?}");
    });
}

#[test]
fn chunks_come_back_however_many_frames_pass() {
    in_namespace(|| {
        veth();
        let mut port = XdpSocket::open("a0").unwrap();
        let mut far_end = PacketSocket::open("b0").unwrap();
        let rounds = 3 * RECEIVE_CHUNKS / BATCH_MAX as u32;
        assert!(rounds * BATCH_MAX as u32 > 3 * TRANSMIT_CHUNKS);
        for round in 0..rounds {
            let mut frames: Vec<FrameBuf> = (0..BATCH_MAX as u32)
                .map(|number| FrameBuf::from_bytes(&numbered(60 + number as usize, round)))
                .collect();
            for from in [&mut far_end as &mut dyn PortIo, &mut port] {
                assert_eq!(from.send(&mut frames).unwrap(), BATCH_MAX);
            }
            for to in [&mut far_end as &mut dyn PortIo, &mut port] {
                let mut rx = Batch::new();
                let mut seen = 0;
                let all = wait(|| {
                    let _ = to.recv(&mut rx);
                    for (frame, sent) in rx.frames().iter().zip(&frames[seen..]) {
                        assert_eq!(frame.bytes(), sent.bytes(), "round {round}");
                    }
                    seen += rx.len();
                    rx.clear();
                    (seen == BATCH_MAX).then_some(())
                });
                assert!(all.is_some(), "{seen} in round {round}");
            }
        }
    });
}

#[test]
fn an_interface_that_is_down_takes_nothing_and_none_of_it_comes_later() {
    in_namespace(|| {
        veth();
        let mut port = XdpSocket::open("a0").unwrap();
        let mut far_end = PacketSocket::open("b0").unwrap();
        ip("link set a0 down");
        let mut rx = Batch::new();
        let error = port.recv(&mut rx).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotConnected, "{error}");
        for number in 1..2 * TRANSMIT_CHUNKS {
            let mut frames = [number, number + 1].map(|it| FrameBuf::from_bytes(&numbered(60, it)));
            let error = port.send(&mut frames).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotConnected, "{error}");
        }
        ip("link set a0 up");
        let mut frame = [FrameBuf::from_bytes(&numbered(60, 9_999))];
        assert!(wait(|| port.send(&mut frame).ok()).is_some());
        assert_eq!(take(&mut far_end), numbered(60, 9_999));
        nothing_comes(&mut far_end);
        assert!(wait(|| far_end.send(&mut frame).ok()).is_some());
        assert_eq!(wait(|| port.recv(&mut rx).ok()), Some(1));
    });
}

#[test]
fn as_many_frames_are_refused_as_the_kernel_drops() {
    in_namespace(|| {
        veth();
        ip("link set b0 mtu 1000");
        let mut port = XdpSocket::open("a0").unwrap();
        let mut far_end = PacketSocket::open("b0").unwrap();
        let frame = |size, number| FrameBuf::from_bytes(&numbered(size, number));
        // The second and third are too large for the far end.
        let mut frames = [frame(60, 1), frame(1_400, 2), frame(1_400, 3), frame(60, 4)];
        assert_eq!(port.send(&mut frames).unwrap(), 2);
        for done in 2..4 {
            let error = port.send(&mut frames[done..]).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EBUSY), "{error}");
        }
        let arrived = [numbered(60, 1), numbered(60, 4)];
        assert_eq!(take_all(&mut far_end, 2), arrived);
        nothing_comes(&mut far_end);
        assert_eq!(port.send(&mut frames[..1]).unwrap(), 1);
        assert_eq!(take(&mut far_end), numbered(60, 1));

        ip("link set b0 down");
        for done in 0..4 {
            let error = port.send(&mut frames[done..]).unwrap_err();
            assert_eq!(
                error.raw_os_error(),
                Some(libc::EBUSY),
                "no carrier: {error}"
            );
        }
        ip("link set b0 up");
        assert_eq!(port.edge_stats().tx_dropped, 0, "all were told");
        assert_eq!(wait(|| port.send(&mut frames[3..]).ok()), Some(1));
        assert_eq!(take(&mut far_end), numbered(60, 4));
    });
}

#[test]
fn a_card_hears_every_station_and_leaves_eapol_to_the_host() {
    in_namespace(|| {
        for mode in [None, Some((Feature::Native, libc::EOPNOTSUPP))] {
            veth();
            let mut builder = XdpBuilder::new("a0").card();
            if let Some((feature, errno)) = mode {
                builder = builder.refuse(feature, errno);
            }
            let mut port = builder.open().unwrap().remove(0);
            assert!(output_of("ip -d link show a0").contains("promiscuity 1"));
            let mut host = PacketSocket::open("a0").unwrap();
            let mut far_end = PacketSocket::open("b0").unwrap();
            let mut eapol = numbered(60, 1);
            eapol[12..14].copy_from_slice(&[0x88, 0x8e]);
            let mut frames = [eapol.clone(), numbered(60, 2)].map(|it| FrameBuf::from_bytes(&it));
            assert_eq!(far_end.send(&mut frames).unwrap(), 2);
            assert_eq!(take(&mut host), eapol);
            let mut rx = Batch::new();
            assert_eq!(wait(|| port.recv(&mut rx).ok()), Some(1));
            assert_eq!(rx.frames()[0].bytes(), numbered(60, 2));
            nothing_comes(&mut host);
            drop(port);
            assert!(output_of("ip -d link show a0").contains("promiscuity 0"));
            ip("link del a0");
        }
    });
}
