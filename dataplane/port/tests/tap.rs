//! TAP devices in namespaces of their own: opening, negotiating, carrying real sockets' frames.

#![allow(clippy::unwrap_used)]

mod common;

use std::io;
use std::net::UdpSocket;

use common::{in_namespace, ip, output_of};
use dataplane_core::frame::FrameBuf;
use dataplane_port::Carrier;
use dataplane_port::conformance::{PortPeer, Subject, check_all, wait};
use dataplane_port::packet::PacketSocket;
use dataplane_port::tap::{Feature, Persistence, Tap, TapBuilder, TapError, TapOffload};
use dataplane_port::{Batch, PortIo};

#[test]
fn missing_and_bad_names_are_explained() {
    in_namespace(|| {
        let error = TapBuilder::new("absent0").attach().unwrap_err();
        assert!(matches!(error, TapError::NotFound { .. }), "{error}");
        let error = Tap::create("much-too-long-a-name", 1).unwrap_err();
        assert!(matches!(error, TapError::NameInvalid { .. }), "{error}");
        let error = Tap::create("tap0", 0).unwrap_err();
        assert!(matches!(error, TapError::QueueCount(0)), "{error}");
        let error = TapBuilder::new("lo").attach().unwrap_err();
        assert!(matches!(error, TapError::NotOurKind { .. }), "{error}");
        let error = Tap::create("lo", 1).unwrap_err();
        assert!(matches!(error, TapError::NameTaken { .. }), "{error}");
    });
}

#[test]
fn every_queue_is_opened_and_the_name_is_then_taken() {
    in_namespace(|| {
        let taps = Tap::create("tap0", 4).unwrap();
        assert_eq!(taps.len(), 4);
        assert!(taps[0].interface_index().unwrap() > 0);
        let error = Tap::create("tap0", 1).unwrap_err();
        assert!(matches!(error, TapError::NameTaken { .. }), "{error}");
    });
}

#[test]
fn offloads_are_refused_one_by_one() {
    in_namespace(|| {
        for (name, wanted) in [
            ("tap0", TapOffload::None),
            ("tap1", TapOffload::Checksum),
            ("tap2", TapOffload::Tcp),
            ("tap3", TapOffload::TcpUdp),
        ] {
            let tap = TapBuilder::new(name)
                .offload_max(wanted)
                .create()
                .unwrap()
                .remove(0);
            assert!(tap.offload() <= wanted);
            let capabilities = tap.capabilities();
            assert_eq!(capabilities.checksum, tap.offload() >= TapOffload::Checksum);
            assert_eq!(capabilities.gso_tcp, tap.offload() >= TapOffload::Tcp);
            assert_eq!(capabilities.gso_udp, tap.offload() >= TapOffload::TcpUdp);
        }
    });
}

#[test]
fn persistent_device_is_attached_to_again() {
    in_namespace(|| {
        let taps = TapBuilder::new("tap0")
            .queues(2)
            .persistence(Persistence::Persistent)
            .create()
            .unwrap();
        let index = taps[0].interface_index().unwrap();
        drop(taps);
        let taps = TapBuilder::new("tap0").queues(2).attach().unwrap();
        assert_eq!(taps[0].interface_index().unwrap(), index);
        taps[0].set_persistence(Persistence::WhileOpen).unwrap();
        drop(taps);
        let gone = wait(|| TapBuilder::new("tap0").attach().is_err().then_some(()));
        assert!(gone.is_some(), "the device outlived its last queue");
    });
}

#[test]
fn carrier_follows_the_cable() {
    in_namespace(|| {
        let tap = Tap::create("tap0", 1).unwrap().remove(0);
        ip("link set tap0 up");
        tap.set_carrier(Carrier::Absent).unwrap();
        assert!(link("tap0").contains("NO-CARRIER"), "{}", link("tap0"));
        tap.set_carrier(Carrier::Present).unwrap();
        assert!(link("tap0").contains("LOWER_UP"), "{}", link("tap0"));
    });
}

#[test]
fn udp_datagram_arrives_unfinished_and_goes_back_in_one_write() {
    in_namespace(|| {
        let mut tap = Tap::create("tap0", 1).unwrap().remove(0);
        ip("link set tap0 up");
        ip("addr add 192.0.2.1/24 dev tap0");
        ip("neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev tap0");
        let socket = UdpSocket::bind("192.0.2.1:5000").unwrap();
        socket.send_to(b"hello", "192.0.2.2:5000").unwrap();
        let mut rx = Batch::new();
        let received = wait(|| tap.recv(&mut rx).ok()).unwrap();
        assert_eq!(received, 1);
        let mut frame = rx.frames()[0].clone();
        assert_eq!(&frame.bytes()[42..], b"hello");
        assert!(frame.offload.needs_checksum());
        assert_eq!(frame.offload.csum_start, 34);
        assert_eq!(frame.offload.csum_offset, 6);

        // The answer: addresses swapped, which leaves the pseudo-header's sum as it is.
        let bytes = frame.bytes_mut();
        let (dst, src) = bytes[..12].split_at_mut(6);
        dst.swap_with_slice(src);
        let (src, dst) = bytes[26..34].split_at_mut(4);
        src.swap_with_slice(dst);
        assert_eq!(tap.send(&mut [frame]).unwrap(), 1);
        let mut answer = [0; 16];
        let timeout = Some(std::time::Duration::from_secs(5));
        socket.set_read_timeout(timeout).unwrap();
        let (size, from) = socket.recv_from(&mut answer).unwrap();
        assert_eq!(&answer[..size], b"hello");
        assert_eq!(from.to_string(), "192.0.2.2:5000");
    });
}

/// What is left when the kernel refuses this and all that is more.
const LESSER: [(TapOffload, TapOffload); 3] = [
    (TapOffload::TcpUdp, TapOffload::Tcp),
    (TapOffload::Tcp, TapOffload::Checksum),
    (TapOffload::Checksum, TapOffload::None),
];

/// A device of a kernel that refuses so many of what is more than complete frames, the best first.
fn refusing(name: &str, count: usize) -> TapBuilder {
    let refused = LESSER[..count].iter();
    refused.fold(TapBuilder::new(name), |builder, (offload, _)| {
        builder.refuse(Feature::Offload(*offload), libc::EINVAL)
    })
}

#[test]
fn what_the_kernel_refuses_is_done_without_and_told() {
    in_namespace(|| {
        for (index, (_, left)) in LESSER.into_iter().enumerate() {
            let builder = refusing(&format!("tap{index}"), index + 1);
            let tap = builder.create().unwrap().remove(0);
            assert_eq!(tap.offload(), left);
            let told = tap.capabilities();
            assert_eq!(told.checksum, left >= TapOffload::Checksum);
            assert_eq!(told.gso_tcp, left >= TapOffload::Tcp);
            assert!(!told.gso_udp);
        }
        let sized = TapBuilder::new("sized0").refuse(Feature::HeaderSize, libc::EINVAL);
        let taps = sized.queues(2).create().unwrap();
        assert_eq!(taps[0].offload(), TapOffload::TcpUdp);
    });
}

#[test]
fn what_cannot_be_done_without_is_explained_and_leaves_nothing() {
    in_namespace(|| {
        let all_offloads = [TapOffload::TcpUdp, TapOffload::Tcp, TapOffload::Checksum];
        let none = all_offloads.into_iter().chain([TapOffload::None]);
        let none = none.fold(TapBuilder::new("tap0"), |builder, offload| {
            builder.refuse(Feature::Offload(offload), libc::EINVAL)
        });
        let refuse = |feature, errno| TapBuilder::new("tap0").refuse(feature, errno);
        let cases = [
            (
                refuse(Feature::Node, libc::ENOENT),
                "choose the backend 'packet'",
            ),
            (refuse(Feature::Node, libc::ENODEV), "modprobe tun"),
            (
                refuse(Feature::Node, libc::EACCES),
                "write access to /dev/net/tun",
            ),
            (refuse(Feature::Queues, libc::EPERM), "CAP_NET_ADMIN"),
            (
                refuse(Feature::Queues, libc::EINVAL),
                "'packet' or 'tap-plain'",
            ),
            (none, "cannot set the offloads of the TAP device 'tap0'"),
        ];
        for (builder, words) in cases {
            let said = builder.create().unwrap_err().to_string();
            assert!(said.contains(words), "{builder:?}: {said}");
            let gone = wait(|| (!output_of("ip -o link show").contains("tap0")).then_some(()));
            assert!(gone.is_some(), "{builder:?}");
        }
        // Of a device that was there the size of its headers is not known.
        let persistent = TapBuilder::new("tap0").persistence(Persistence::Persistent);
        drop(persistent.create().unwrap());
        let attached = refuse(Feature::HeaderSize, libc::EINVAL).attach();
        let said = attached.unwrap_err().to_string();
        assert!(said.contains("cannot set the header size of"), "{said}");
    });
}

/// Runs the suite on devices that `build` makes, whose names begin so.
fn conforms(prefix: &str, build: impl Fn(&str) -> TapBuilder) {
    // A name of its own for each check: another test's fork holds our descriptors until it
    // executes its program, and the device for as long.
    let mut device = 0;
    check_all(|| {
        device += 1;
        let name = format!("{prefix}x{device}");
        let tap = build(&name).create().unwrap().remove(0);
        ip(&format!("link set {name} mtu 9000 up"));
        let far_end = PacketSocket::open(&name).unwrap();
        let unplug = move || ip(&format!("link del {name}"));
        Subject::new(tap, PortPeer::new(far_end, unplug), 9_014)
    });
}

#[test]
fn tap_conforms() {
    in_namespace(|| conforms("tap", TapBuilder::new));
}

#[test]
fn tap_conforms_without_a_choice_of_headers() {
    let build = |name: &str| TapBuilder::new(name).refuse(Feature::HeaderSize, libc::EINVAL);
    in_namespace(move || conforms("tap", build));
}

#[test]
fn tap_conforms_with_every_lesser_offload() {
    in_namespace(|| {
        for count in 1..=LESSER.len() {
            conforms(&format!("lesser{count}"), |name| refusing(name, count));
        }
    });
}

#[test]
fn every_datagram_arrives_on_one_queue_once() {
    const FLOWS: u16 = 64;
    in_namespace(|| {
        let mut queues = Tap::create("tap0", 4).unwrap();
        ip("link set tap0 up");
        ip("addr add 192.0.2.1/24 dev tap0");
        ip("neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev tap0");
        for flow in 0..FLOWS {
            let socket = UdpSocket::bind(("192.0.2.1", 5_000 + flow)).unwrap();
            socket.send_to(b"hello", "192.0.2.2:5000").unwrap();
        }
        let mut rx = Batch::new();
        let mut seen = [0; FLOWS as usize];
        let mut used = [false; 4];
        let all = wait(|| {
            for (queue, used) in queues.iter_mut().zip(&mut used) {
                *used |= queue.recv(&mut rx).is_ok();
                for frame in rx.frames() {
                    let port = u16::from_be_bytes([frame.bytes()[34], frame.bytes()[35]]);
                    seen[usize::from(port - 5_000)] += 1;
                }
                rx.clear();
            }
            seen.iter().all(|&count| count > 0).then_some(())
        });
        assert!(
            all.is_some() && seen.iter().all(|&count| count == 1),
            "{seen:?}"
        );
        assert!(used.iter().filter(|&&used| used).count() > 1, "{used:?}");
    });
}

#[test]
fn down_and_deleted_devices_are_not_connected() {
    in_namespace(|| {
        let mut tap = Tap::create("tap0", 1).unwrap().remove(0);
        let mut frame = [FrameBuf::from_bytes(&[0; 60])];
        let error = tap.send(&mut frame).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotConnected, "down: {error}");
        ip("link set tap0 up");
        assert_eq!(tap.send(&mut frame).unwrap(), 1);
        ip("link del tap0");
        let error = tap.send(&mut frame).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotConnected, "gone: {error}");
        let error = tap.recv(&mut Batch::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotConnected, "gone: {error}");
    });
}

/// One line of `ip link` about an interface.
fn link(name: &str) -> String {
    let output = std::process::Command::new("ip")
        .args(["-o", "link", "show", name])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}
