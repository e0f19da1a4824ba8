//! The guard on real interfaces: what the host's stack still answers, and what we still see.

#![allow(clippy::unwrap_used)]

mod common;

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::process::Command;

use common::{in_namespace, ip, tc};
use dataplane_core::addr::L4Port;
use dataplane_core::frame::FrameBuf;
use dataplane_port::conformance::wait;
use dataplane_port::guard::{self, GuardError, GuardPorts, GuardSpec, Guarded, Method, Transport};
use dataplane_port::packet::{PacketBuilder, PacketSocket};
use dataplane_port::{Batch, Framing, PortIo};
use tun_tap::{Iface, Mode};

const METHODS: [Method; 2] = [Method::Bpf, Method::Sink];

/// The host's end with an address, and the far end without.
fn cable() {
    ip("link add a0 address 02:00:00:00:00:0a type veth peer name b0");
    std::fs::write("/proc/sys/net/ipv6/conf/a0/disable_ipv6", "0").unwrap();
    std::fs::write("/proc/sys/net/ipv6/conf/a0/accept_dad", "0").unwrap();
    ip("link set b0 up");
    ip("link set a0 up");
    ip("addr add 192.0.2.1/24 dev a0");
    ip("addr add 2001:db8::1/64 dev a0 nodad");
    ip("neigh add 192.0.2.2 lladdr 02:00:00:00:00:0b dev a0");
}

#[test]
fn everything_is_stolen_and_still_seen() {
    for method in METHODS {
        in_namespace(move || {
            cable();
            let mut port = PacketSocket::open("a0").unwrap();
            let mut far_end = PacketSocket::open("b0").unwrap();
            assert!(answered(&mut far_end), "an unguarded host answers ARP");
            guard::install_with(method, "a0", Guarded::Everything).unwrap();
            let mut rx = Batch::new();
            drop(port.recv(&mut rx));
            rx.clear();
            send(&mut far_end, &arp_request());
            let seen = wait(|| {
                drop(port.recv(&mut rx));
                let requests = rx.frames().iter().any(|f| f.bytes() == arp_request());
                requests.then_some(())
            });
            assert!(seen.is_some(), "the packet socket sees what is stolen");
            // veth hands a frame to the host before the send returns; a second one arrives
            // behind any answer to the first.
            guard::remove("a0").unwrap();
            assert_eq!(
                answers(&mut far_end),
                1,
                "only the request after the guard is answered"
            );
        });
    }
}

#[test]
fn a_supplicant_of_the_host_hears_what_lets_its_card_in_and_nobody_hears_more() {
    in_namespace(|| {
        cable();
        // What the host's stack gets of a0 is seen at the other port of a bridge.
        ip("link add br0 type bridge");
        ip("link add c0 type veth peer name d0");
        for end in ["a0", "c0"] {
            ip(&format!("link set {end} master br0"));
        }
        for link in ["br0", "c0", "d0"] {
            ip(&format!("link set {link} up"));
        }
        let mut far_end = PacketSocket::open("b0").unwrap();
        let mut host = PacketSocket::open("d0").unwrap();
        let frame = |ether_type: [u8; 2]| {
            let mut frame = vec![0x02, 0, 0, 0, 0, 0x0d, 0x02, 0, 0, 0, 0, 0x0b];
            frame.extend(ether_type);
            frame.resize(60, 0x5a);
            frame
        };
        let (eapol, other) = (frame([0x88, 0x8e]), frame([0x88, 0xb5]));
        // Sends the other one first, until EAPOL has come; says what else has.
        let mut heard = || {
            let (mut rx, mut others) = (Batch::new(), 0);
            let came = wait(|| {
                send(&mut far_end, &other);
                send(&mut far_end, &eapol);
                drop(host.recv(&mut rx));
                let frames = rx.frames().iter();
                others += frames.clone().filter(|f| f.bytes() == other).count();
                let came = frames.clone().any(|f| f.bytes() == eapol);
                rx.clear();
                came.then_some(())
            });
            (came.is_some(), others)
        };
        let (came, others) = heard();
        assert!(came && others > 0, "an unguarded card: {others}");
        guard::install_with(Method::Bpf, "a0", Guarded::Card).unwrap();
        assert_eq!(guard::find("a0").unwrap(), Some(Method::Bpf));
        // What was on its way is let through first.
        heard();
        assert_eq!(heard(), (true, 0));
        guard::install_with(Method::Bpf, "a0", Guarded::Everything).unwrap();
        heard_nothing(&mut far_end, &mut host, &eapol);
    });
}

/// Sends a frame, behind which nothing comes out.
fn heard_nothing(far_end: &mut PacketSocket, host: &mut PacketSocket, frame: &[u8]) {
    let mut rx = Batch::new();
    drop(host.recv(&mut rx));
    rx.clear();
    // A veth hands frames to the host before the send returns.
    send(far_end, frame);
    drop(host.recv(&mut rx));
    assert!(rx.frames().iter().all(|seen| seen.bytes() != frame));
}

#[test]
fn only_what_is_declared_is_stolen() {
    for method in METHODS {
        in_namespace(move || {
            cable();
            let spec = nat_range(49_152);
            assert_eq!(spec.ports.len(), 2);
            guard::install_with(method, "a0", Guarded::Spec(&spec)).unwrap();
            let mut filtered = PacketBuilder::new("a0")
                .filter(&spec.socket_filter())
                .open()
                .unwrap()
                .remove(0);
            let mut far_end = PacketSocket::open("b0").unwrap();
            for address in ["192.0.2.1", "2001:db8::1"] {
                let address: IpAddr = address.parse().unwrap();
                let ours = UdpSocket::bind((address, 50_000)).unwrap();
                let host = UdpSocket::bind((address, 5_000)).unwrap();
                ours.set_nonblocking(true).unwrap();
                host.set_nonblocking(true).unwrap();
                let mut payload = [0; 16];
                // Again and again: IPv6 takes a moment to be ready on a new link.
                let arrived = wait(|| {
                    let mut elsewhere = datagram(address, 50_000);
                    elsewhere[5] = 0x77;
                    send(&mut far_end, &elsewhere);
                    send(&mut far_end, &datagram(address, 50_000));
                    send(&mut far_end, &datagram(address, 5_000));
                    host.recv(&mut payload).ok()
                });
                assert_eq!(arrived, Some(4), "{address}: the host's own port");
                let error = ours.recv(&mut payload).unwrap_err();
                assert_eq!(
                    error.kind(),
                    io::ErrorKind::WouldBlock,
                    "{address}: our port"
                );
                let mut rx = Batch::new();
                let mut admitted = 0;
                while filtered.recv(&mut rx).is_ok() {
                    assert!(!rx.is_empty(), "{address}");
                    for frame in rx.frames() {
                        assert_eq!(frame.bytes(), datagram(address, 50_000));
                    }
                    rx.clear();
                    admitted += 1;
                }
                assert!(admitted > 0, "{address}: our port");
            }
        });
    }
}

#[test]
fn real_header_length_and_first_fragments_are_matched() {
    in_namespace(|| {
        cable();
        guard::install_with(Method::Bpf, "a0", Guarded::Spec(&nat_range(49_152))).unwrap();
        let ours = UdpSocket::bind("192.0.2.1:50000").unwrap();
        let host = UdpSocket::bind("192.0.2.1:5000").unwrap();
        ours.set_nonblocking(true).unwrap();
        host.set_nonblocking(true).unwrap();
        let mut far_end = PacketSocket::open("b0").unwrap();
        let address = "192.0.2.1".parse().unwrap();
        for port in [50_000, 5_000] {
            // Four options of one byte each: "no operation".
            let mut frame = datagram(address, port);
            frame[14] = 0x46;
            frame[17] += 4;
            frame.splice(34..34, [1, 1, 1, 1]);
            finish_v4(&mut frame);
            send(&mut far_end, &frame);
        }
        let mut payload = [0; 16];
        assert_eq!(wait(|| host.recv(&mut payload).ok()), Some(4));
        assert!(ours.recv(&mut payload).is_err());
        // A datagram in two fragments, of which the second looks like one to our port: the host
        // must get both.
        let mut whole = datagram(address, 5_000);
        whole.truncate(38);
        whole.extend([0, 8 + 16, 0, 0]);
        whole.extend([0xc3; 16]);
        let mut first = whole[..50].to_vec();
        first[17] = 36;
        first[20] = 0x20;
        finish_v4(&mut first);
        let mut second = whole[..34].to_vec();
        second.extend(&whole[50..]);
        second[17] = 28;
        second[21] = 2;
        finish_v4(&mut second);
        send(&mut far_end, &first);
        send(&mut far_end, &second);
        assert_eq!(wait(|| host.recv(&mut payload).ok()), Some(16));
    });
}

#[test]
fn replacing_leaves_one_guard_that_is_found_again() {
    for method in METHODS {
        in_namespace(move || {
            cable();
            assert_eq!(guard::find("a0").unwrap(), None);
            for first in [50_000, 60_000, 49_152] {
                let spec = nat_range(first);
                guard::install_with(method, "a0", Guarded::Spec(&spec)).unwrap();
                assert_eq!(guard::find("a0").unwrap(), Some(method));
                if method == Method::Bpf {
                    let filters = tc("filter show dev a0 ingress");
                    assert_eq!(filters.matches("handle").count(), 1, "{filters}");
                }
            }
            // The other method takes over and leaves nothing of the first.
            let other = METHODS.into_iter().find(|&m| m != method).unwrap();
            guard::install_with(other, "a0", Guarded::Everything).unwrap();
            assert_eq!(guard::find("a0").unwrap(), Some(other));
            guard::remove("a0").unwrap();
            assert_eq!(guard::find("a0").unwrap(), None);
            assert_eq!(tc("filter show dev a0 ingress"), "");
            assert!(!tc("qdisc show dev a0").contains("clsact"));
            let links = Command::new("ip").arg("link").output().unwrap();
            let links = String::from_utf8(links.stdout).unwrap();
            assert!(!links.contains("cwsk"), "{links}");
        });
    }
}

#[test]
fn longest_program_is_installed_and_found() {
    in_namespace(|| {
        cable();
        // Single ports with gaps, until the next one would be too many.
        let mut spec = GuardSpec::default();
        for port in (1u16..).step_by(2) {
            let range = GuardPorts {
                transport: Transport::Tcp,
                destination: None,
                first: L4Port(port),
                last: L4Port(port),
            };
            spec.ports.push(range);
            if spec.guard_program().is_none() {
                break;
            }
        }
        let error = guard::install("a0", Guarded::Spec(&spec)).unwrap_err();
        assert!(matches!(error, GuardError::TooManyRules { .. }), "{error}");
        spec.ports.pop();
        for _ in 0..2 {
            assert_eq!(
                guard::install("a0", Guarded::Spec(&spec)).unwrap(),
                Method::Bpf
            );
            assert_eq!(guard::find("a0").unwrap(), Some(Method::Bpf));
        }
        guard::remove("a0").unwrap();
        assert_eq!(guard::find("a0").unwrap(), None);
    });
}

#[test]
fn filters_of_the_administrator_stay() {
    in_namespace(|| {
        cable();
        tc("qdisc add dev a0 clsact");
        tc("filter add dev a0 ingress prio 1 protocol ip u32 match u32 0 0");
        let before = tc("filter show dev a0 ingress");
        guard::install("a0", Guarded::Everything).unwrap();
        assert_eq!(guard::find("a0").unwrap(), Some(Method::Bpf));
        guard::remove("a0").unwrap();
        assert_eq!(tc("filter show dev a0 ingress"), before);
        assert!(tc("qdisc show dev a0").contains("clsact"));
    });
}

/// Runs this file's other tests once more where bpf(2) is refused.
#[test]
fn user_namespaces_are_guarded_as_well() {
    const INNER: &str = "CW_TEST_IN_USER_NAMESPACE";
    if std::env::var_os(INNER).is_some() {
        return;
    }
    let probe = Command::new("unshare").args(["-Urn", "true"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: needs unprivileged user namespaces and unshare(1)");
        return;
    }
    let output = Command::new("unshare")
        .arg("-Urn")
        .arg(std::env::current_exe().unwrap())
        .env(INNER, "1")
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}");
    assert!(!printed.contains("SKIPPED"), "{printed}");
}

#[test]
fn a_guard_of_a_tunnel_steals_by_offsets_without_a_link_header() {
    in_namespace(|| {
        let far_end = Iface::without_packet_info("t0", Mode::Tun).unwrap();
        ip("link set t0 up");
        ip("addr add 192.0.2.1/24 dev t0");
        let spec = GuardSpec {
            framing: Framing::Ip,
            addresses: vec!["192.0.2.1".parse().unwrap()],
            ..nat_range(50_000)
        };
        let host = UdpSocket::bind("192.0.2.1:49999").unwrap();
        let ours = UdpSocket::bind("192.0.2.1:50000").unwrap();
        for socket in [&host, &ours] {
            socket.set_nonblocking(true).unwrap();
        }
        let builder = PacketBuilder::new("t0").framing(Framing::Ip);
        let mut port = builder.filter(&spec.socket_filter()).open().unwrap();
        let mut port = port.remove(0);
        let send = |to| {
            let frame = datagram("192.0.2.1".parse().unwrap(), to);
            far_end.send(&frame[14..]).unwrap();
        };
        let received = |socket: &UdpSocket| socket.recv(&mut [0; 16]).is_ok();
        let mut rx = Batch::new();
        for method in [None, Some(Method::Bpf), Some(Method::Sink)] {
            if let Some(method) = method {
                guard::install_with(method, "t0", Guarded::Spec(&spec)).unwrap();
            }
            send(50_000);
            // The host's own comes behind it: by then the other was stolen, or has come.
            send(49_999);
            assert!(
                wait(|| received(&host).then_some(())).is_some(),
                "{method:?}"
            );
            assert_eq!(received(&ours), method.is_none(), "{method:?}");
            let admitted = wait(|| port.recv(&mut rx).ok());
            assert_eq!(admitted, Some(1), "{method:?}: ours alone");
            assert_eq!(rx.frames()[0].bytes()[36..38], 50_000u16.to_be_bytes());
            rx.clear();
        }
        guard::remove("t0").unwrap();
        assert_eq!(guard::find("t0").unwrap(), None);
    });
}

#[test]
fn missing_interface_is_no_error_to_remove() {
    in_namespace(|| {
        guard::remove("absent0").unwrap();
        let error = guard::install("absent0", Guarded::Everything).unwrap_err();
        assert!(matches!(error, GuardError::NotFound { .. }), "{error}");
    });
}

/// Both transports from `first` on, at every address.
fn nat_range(first: u16) -> GuardSpec {
    GuardSpec {
        ports: Transport::ALL
            .map(|transport| GuardPorts {
                transport,
                destination: None,
                first: L4Port(first),
                last: L4Port(u16::MAX),
            })
            .to_vec(),
        ..GuardSpec::default()
    }
}

fn send(port: &mut PacketSocket, bytes: &[u8]) {
    assert_eq!(port.send(&mut [FrameBuf::from_bytes(bytes)]).unwrap(), 1);
}

/// Asks, and says whether an answer came.
fn answered(far_end: &mut PacketSocket) -> bool {
    answers(far_end) > 0
}

/// Asks, waits for the answer, and says how many were there.
fn answers(far_end: &mut PacketSocket) -> usize {
    send(far_end, &arp_request());
    let mut rx = Batch::new();
    let mut count = 0;
    let first = wait(|| {
        drop(far_end.recv(&mut rx));
        let is_reply = |f: &&FrameBuf| f.bytes()[12..14] == [8, 6] && f.bytes()[21] == 2;
        count += rx.frames().iter().filter(is_reply).count();
        rx.clear();
        (count > 0).then_some(())
    });
    assert!(first.is_some(), "no answer");
    count
}

/// "Who has 192.0.2.1? Tell 192.0.2.2."
fn arp_request() -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([0x02, 0, 0, 0, 0, 0x0b, 0x08, 0x06]);
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend([0x02, 0, 0, 0, 0, 0x0b, 192, 0, 2, 2]);
    frame.extend([0, 0, 0, 0, 0, 0, 192, 0, 2, 1]);
    frame
}

/// Four bytes for a port of the host, whole and with its checksums.
fn datagram(address: IpAddr, port: u16) -> Vec<u8> {
    let mut frame = vec![0x02, 0, 0, 0, 0, 0x0a, 0x02, 0, 0, 0, 0, 0x0b];
    let mut udp = vec![0x13, 0x88];
    udp.extend(port.to_be_bytes());
    udp.extend([0, 12, 0, 0, b'p', b'i', b'n', b'g']);
    match address {
        IpAddr::V4(dst) => {
            frame.extend([8, 0, 0x45, 0, 0, 32, 0, 1, 0, 0, 64, 17, 0, 0]);
            frame.extend([192, 0, 2, 2]);
            frame.extend(dst.octets());
            frame.extend(udp);
            finish_v4(&mut frame);
        }
        IpAddr::V6(dst) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 12, 17, 64]);
            let src: std::net::Ipv6Addr = "2001:db8::2".parse().unwrap();
            let mut pseudo = src.octets().to_vec();
            pseudo.extend(dst.octets());
            frame.extend(&pseudo);
            pseudo.extend([0, 12, 0, 17]);
            pseudo.extend(&udp);
            udp[6..8].copy_from_slice(&checksum(&pseudo).to_be_bytes());
            frame.extend(udp);
        }
    }
    frame
}

/// Fills in the IPv4 header's checksum.
fn finish_v4(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let end = 14 + usize::from(frame[14] & 0x0f) * 4;
    let sum = checksum(&frame[14..end]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|w| u32::from(w[0]) << 8 | u32::from(w[1]));
    let sum: u32 = words.sum();
    !((sum & 0xffff) + (sum >> 16)) as u16
}
