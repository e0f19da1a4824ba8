//! A stack with clients: frames that etherparse has written, and a TCP client of smoltcp's.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr};

use dataplane_core::headers::L4Kind;
use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use smoltcp::socket::tcp;

use super::*;

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 7]);
const PORT: PortId = PortId(40);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);

fn gateway() -> Gateway {
    Gateway {
        mac: MacAddr([2, 0x42, 10, 1, 0, 1]),
        addresses: vec![GATEWAY.into(), "fd00:1::1".parse().unwrap()],
        mtu: 1_500,
    }
}

fn now(millis: u64) -> Instant {
    Instant::from_millis(1_000_000 + millis)
}

fn udp(src: &str, dst: &str, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(MAC.0, gateway().mac.0);
    let builder = match (src.parse().unwrap(), dst.parse().unwrap()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => builder.ipv4(src.octets(), dst.octets(), 64),
        (IpAddr::V6(src), IpAddr::V6(dst)) => builder.ipv6(src.octets(), dst.octets(), 64),
        _ => panic!("two families"),
    };
    let mut frame = Vec::new();
    builder.udp(4_000, 53).write(&mut frame, payload).unwrap();
    frame
}

/// What leaves, with the port that it leaves by.
fn sent(stack: &mut Stack, now: Instant) -> Vec<(PortId, Vec<u8>)> {
    let mut sent = Vec::new();
    stack.run(
        now,
        |_| None,
        |port, frame| sent.push((port, frame.to_vec())),
    );
    sent
}

#[test]
fn a_datagram_is_answered_from_the_address_that_was_asked() {
    let link_local = gateway().mac.link_local_v6().to_string();
    for (src, dst) in [
        ("10.1.0.2", "10.1.0.1"),
        ("fd00:1::2", "fd00:1::1"),
        ("fe80::2", link_local.as_str()),
    ] {
        let mut stack = Stack::new(&gateway(), now(0));
        stack.receive(&udp(src, dst, b"who"), PORT, now(0));
        let asked = stack.take_asked().unwrap();
        assert_eq!(
            (asked.source.to_string().as_str(), &asked.bytes[..]),
            (src, &b"who"[..])
        );
        assert_eq!(stack.take_asked(), None);
        assert!(stack.answer(asked.client, b"me"));
        let sent = sent(&mut stack, now(1));
        let [(port, frame)] = &sent[..] else {
            panic!("{sent:?}")
        };
        assert_eq!(*port, PORT);
        let headers = Headers::parse(frame).unwrap();
        assert_eq!((headers.dst, headers.src), (MAC, gateway().mac));
        let ip = headers.ip().unwrap();
        assert_eq!(
            (ip.src, ip.dst),
            (dst.parse().unwrap(), src.parse().unwrap())
        );
        let kind = headers.l4.unwrap().kind;
        assert!(
            matches!(
                kind,
                L4Kind::Udp {
                    src: L4Port(53),
                    dst: L4Port(4_000)
                }
            ),
            "{kind:?}"
        );
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let Some(TransportSlice::Udp(datagram)) = packet.transport else {
            panic!("no UDP")
        };
        assert_eq!(datagram.payload(), b"me");
        assert_ne!(datagram.checksum(), 0);
    }
}

#[test]
fn an_answer_goes_where_the_gateway_knows_its_client_before_where_it_was_heard() {
    let mut stack = Stack::new(&gateway(), now(0));
    stack.receive(&udp("10.1.0.2", "10.1.0.1", b"who"), PORT, now(0));
    let asked = stack.take_asked().unwrap();
    assert!(stack.answer(asked.client, b"me"));
    let owner = Station {
        port: PortId(41),
        mac: MacAddr([2, 0, 0, 0, 0, 8]),
    };
    let mut sent = Vec::new();
    stack.run(
        now(0),
        |_| Some(owner),
        |port, frame| sent.push((port, frame.to_vec())),
    );
    assert_eq!(sent[0].0, owner.port);
    assert_eq!(sent[0].1[..6], owner.mac.0);
}

#[test]
fn what_is_no_question_leaves_nothing_behind() {
    let mut stack = Stack::new(&gateway(), now(0));
    let good = udp("10.1.0.2", "10.1.0.1", b"who");
    let mut wrong_sum = good.clone();
    wrong_sum[41] ^= 1;
    let mut other_port = good.clone();
    other_port[37] = 54;
    let large = udp("10.1.0.2", "10.1.0.1", &[0; QUESTION_SIZE_MAX + 1]);
    for frame in [
        &wrong_sum,
        &other_port,
        &large,
        &good[..30].to_vec(),
        &Vec::new(),
    ] {
        stack.receive(frame, PORT, now(0));
        assert_eq!(stack.take_asked(), None);
    }
    stack.receive(&good, PORT, now(0));
    assert!(stack.take_asked().is_some(), "and it still serves");
}

/// A TCP client with a cable to the stack.
struct ClientHost {
    interface: Interface,
    device: PacketDevice,
    sockets: SocketSet<'static>,
    address: Ipv4Addr,
}

impl ClientHost {
    fn new(last: u8) -> Self {
        let mut device = PacketDevice::new(1_500);
        let config = Config::new(HardwareAddress::Ip);
        let mut interface = Interface::new(config, &mut device, device::clock(now(0)));
        let address = Ipv4Addr::new(10, 1, 0, last);
        interface.update_ip_addrs(|addresses| {
            addresses
                .push(IpCidr::new(IpAddr::V4(address).into(), 0))
                .unwrap();
        });
        Self {
            interface,
            device,
            sockets: SocketSet::new(Vec::new()),
            address,
        }
    }

    fn connect(&mut self, port: u16) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 100_000]);
        let handle = self.sockets.add(tcp::Socket::new(buffer(), buffer()));
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.set_nagle_enabled(false);
        let remote = (IpAddr::V4(GATEWAY), 53);
        socket
            .connect(self.interface.context(), remote, port)
            .unwrap();
        handle
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Carries packets both ways until there are none.
    fn talk(&mut self, stack: &mut Stack, now: Instant) {
        for _ in 0..1_000 {
            let clock = device::clock(now);
            self.interface
                .poll(clock, &mut self.device, &mut self.sockets);
            let mut quiet = true;
            while let Some(packet) = self.device.take() {
                quiet = false;
                let ethernet = [&gateway().mac.0[..], &MAC.0, &[8, 0], &packet].concat();
                stack.receive(&ethernet, PORT, now);
            }
            for (_, frame) in sent(stack, now) {
                if SlicedPacket::from_ethernet(&frame).is_ok()
                    && frame[30..34] == self.address.octets()
                {
                    quiet = false;
                    self.device.put(&frame[ETHERNET_SIZE..]);
                    self.interface
                        .poll(clock, &mut self.device, &mut self.sockets);
                }
            }
            if quiet {
                return;
            }
        }
        panic!("they talk for ever");
    }
}

fn message(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

#[test]
fn a_connection_carries_questions_in_pieces_and_large_answers() {
    let (mut host, mut stack) = (ClientHost::new(2), Stack::new(&gateway(), now(0)));
    let handle = host.connect(5_000);
    host.talk(&mut stack, now(0));
    assert_eq!(stack.connections(), 1);
    let questions = [message(b"one"), message(b"two")].concat();
    for piece in questions.chunks(2) {
        host.socket(handle).send_slice(piece).unwrap();
        host.talk(&mut stack, now(1));
    }
    let answer = vec![7; 60_000];
    for wanted in [b"one", b"two"] {
        let asked = stack.take_asked().unwrap();
        assert_eq!(asked.bytes, wanted);
        assert!(stack.answer(asked.client, &answer));
        host.talk(&mut stack, now(2));
    }
    let mut got = vec![0; 200_000];
    let mut size = host.socket(handle).recv_slice(&mut got).unwrap();
    host.talk(&mut stack, now(3));
    size += host
        .socket(handle)
        .recv_slice(&mut got[size..])
        .unwrap_or(0);
    assert_eq!(size, 2 * (2 + answer.len()));
    assert_eq!(got[..2], (answer.len() as u16).to_be_bytes());
    host.socket(handle).close();
    host.talk(&mut stack, now(4));
    assert_eq!(stack.connections(), 0);
    assert_eq!(stack.connections.len(), 1, "one listens");
}

#[test]
fn connections_have_limits_and_end_when_they_are_silent() {
    let (mut host, mut stack) = (ClientHost::new(2), Stack::new(&gateway(), now(0)));
    for port in 0..CONNECTIONS_PER_CLIENT_MAX as u16 + 3 {
        host.connect(5_000 + port);
        host.talk(&mut stack, now(0));
    }
    assert_eq!(stack.connections(), CONNECTIONS_PER_CLIENT_MAX);
    assert_eq!(stack.refused().connections, 3);
    let mut other = ClientHost::new(3);
    let handle = other.connect(5_000);
    other.talk(&mut stack, now(0));
    assert!(other.socket(handle).may_send(), "there is room for others");

    other.socket(handle).send_slice(&message(b"who")).unwrap();
    other.talk(&mut stack, now(9_000));
    assert!(stack.take_asked().is_some());
    host.talk(&mut stack, now(10_001));
    assert_eq!(stack.connections(), 1, "who has spoken stays");
    let due = stack.next_due(now(10_001)).unwrap();
    assert!(due <= CONNECTION_IDLE, "{due:?}");
    other.talk(&mut stack, now(19_001));
    assert_eq!(stack.connections(), 0);
}

#[test]
fn a_message_larger_than_any_question_ends_its_connection() {
    let (mut host, mut stack) = (ClientHost::new(2), Stack::new(&gateway(), now(0)));
    let handle = host.connect(5_000);
    host.talk(&mut stack, now(0));
    host.socket(handle).send_slice(&[0xff, 0xff, 0]).unwrap();
    host.talk(&mut stack, now(1));
    assert_eq!((stack.connections(), stack.refused().oversize), (0, 1));
}

#[test]
fn questions_beyond_the_pipeline_wait_their_turn() {
    let (mut host, mut stack) = (ClientHost::new(2), Stack::new(&gateway(), now(0)));
    let handle = host.connect(5_000);
    host.talk(&mut stack, now(0));
    let many: Vec<u8> = (0..100).flat_map(|_| message(b"who")).collect();
    host.socket(handle).send_slice(&many).unwrap();
    host.talk(&mut stack, now(1));
    let mut answered = 0;
    loop {
        let asked: Vec<_> = std::iter::from_fn(|| stack.take_asked()).collect();
        assert!(asked.len() <= PIPELINED_MAX, "{}", asked.len());
        if asked.is_empty() {
            break;
        }
        for asked in asked {
            answered += 1;
            assert!(stack.answer(asked.client, b"me"));
        }
        host.talk(&mut stack, now(2));
    }
    assert_eq!(answered, 100);
}
