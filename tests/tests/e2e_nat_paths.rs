//! Paths that lead through the NAT, from real namespaces: their MTU, their hops, and datagrams that
//! only fit through in pieces.

#![allow(clippy::unwrap_used)]

use std::io::IoSliceMut;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn,
    connect, getsockopt, recv, recvmsg, send, setsockopt, socket, sockopt,
};
use tests::daemon::Daemon;
use tests::lab::{DEADLINE, Lab, Namespace, ip, require_root, wait_until};
use tests::rig::{Transfer, bulk_size, transfer};
use tests::talk::{SILENCE, Watch, Witness, ask_udp, ping, serve_tcp, serve_udp};

/// The address of the far end, three routers away from the container.
const FAR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// The least that an IPv6 link has, and what tunnels commonly leave of an IPv4 one.
const NARROW: u32 = 1_280;
/// Times that a probe is sent: a router may hold back an error for its rate limit.
const PROBES_MAX: usize = 10;
/// Datagrams of the fragments' test, and bytes of each.
const DATAGRAMS: usize = 20;
const DATAGRAM_SIZE: usize = 8_192;

/// A container `a` behind a host, and a path of two routers from there to the far end:
/// `host 192.0.2.1 - 192.0.2.2 r1 198.51.100.1 - 198.51.100.2 r2 203.0.113.1 - 203.0.113.2 far`.
struct Path {
    host: Namespace,
    r1: Namespace,
    r2: Namespace,
    far: Namespace,
    a: Namespace,
    daemon: Daemon,
    _lab: Lab,
}

impl Path {
    fn new(name: &str, network: &[&str]) -> Self {
        let lab = Lab::new(name);
        let (host, r1) = lab.host_and_outside();
        let [r2, far, a] = lab.namespaces(["r2", "far", "a"]);
        lab.cable(&r1, "eth1", &r2, "eth0");
        lab.cable(&r2, "eth1", &far, "eth0");
        for (ns, link, address) in [
            (&r1, "eth1", "198.51.100.1/24"),
            (&r2, "eth0", "198.51.100.2/24"),
            (&r2, "eth1", "203.0.113.1/24"),
            (&far, "eth0", "203.0.113.2/24"),
        ] {
            ns.add_address(link, address);
        }
        r1.add_default_route("eth1", "198.51.100.2");
        r2.add_default_route("eth0", "198.51.100.1");
        far.add_default_route("eth0", "203.0.113.1");
        for router in [&r1, &r2] {
            router.set_sysctl("net/ipv4/ip_forward", "1");
            router.set_sysctl("net/ipv4/icmp_ratelimit", "0");
        }
        let daemon = Daemon::start(&lab, &host, &["--uplink", "up0"]);
        let create = ["network", "create", "n", "--subnet", "10.88.0.0/24"];
        daemon.run(&[&create, network].concat());
        daemon.attach(&a, "n", "a", &[]);
        daemon.run(&["publish", "add", "8080:80", "a"]);
        Self {
            host,
            r1,
            r2,
            far,
            a,
            daemon,
            _lab: lab,
        }
    }

    /// Transfers from the container to the far end, by SNAT.
    fn transfer_out(&self) -> Transfer {
        let far = SocketAddr::from((FAR, 5_001));
        let done = transfer(&self.a, &self.far, far, far, bulk_size(), None);
        assert_eq!(done.client.ip(), ip("192.0.2.1"));
        done
    }

    /// Transfers from the far end to the container, by the published port.
    fn transfer_in(&self) -> Transfer {
        let (listen, published) = ("0.0.0.0:80", "192.0.2.1:8080");
        let (listen, published) = (listen.parse().unwrap(), published.parse().unwrap());
        let done = transfer(&self.far, &self.a, listen, published, bulk_size(), None);
        assert_eq!(done.client.ip(), IpAddr::V4(FAR));
        done
    }
}

/// What `ns` takes for the MTU of its path to `address`.
fn path_mtu(ns: &Namespace, address: &str) -> i32 {
    let socket = ns.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    socket.connect((address, 9)).unwrap();
    getsockopt(&socket, sockopt::IpMtu).unwrap()
}

/// Transfers both ways through a path that `narrow` has narrowed somewhere, each on a path of its own,
/// because an end that has learned the MTU tells the other one by what it offers.
fn both_ends_find_out(name: &str, network: &[&str], narrow: fn(&Path)) {
    let path = Path::new(name, network);
    assert_eq!(path_mtu(&path.far, "192.0.2.1"), 1_500);
    narrow(&path);
    let out = path.transfer_out();
    assert_eq!(
        path_mtu(&path.a, "203.0.113.2"),
        1_280,
        "{name}, from inside"
    );
    let path = Path::new(name, network);
    narrow(&path);
    let inwards = path.transfer_in();
    assert_eq!(
        path_mtu(&path.far, "192.0.2.1"),
        1_280,
        "{name}, from outside"
    );
    println!("MTU 1280, {name}: out {out}; in {inwards}");
}

#[test]
fn a_path_that_narrows_beyond_the_uplink_is_found_out_from_both_ends() {
    if !require_root("a_path_that_narrows_beyond_the_uplink_is_found_out_from_both_ends") {
        return;
    }
    // What a router outside says is translated for the container.
    both_ends_find_out("beyond", &[], |path| {
        path.r1.set_mtu("eth1", NARROW);
        path.r2.set_mtu("eth0", NARROW);
    });
}

#[test]
fn an_uplink_and_a_network_of_a_small_mtu_are_found_out_from_both_ends() {
    if !require_root("an_uplink_and_a_network_of_a_small_mtu_are_found_out_from_both_ends") {
        return;
    }
    // Told by the gateway, and by the router in front of the host.
    both_ends_find_out("uplink", &[], narrow_the_uplink);
}

#[test]
fn a_network_of_a_small_mtu_tells_the_outside() {
    if !require_root("a_network_of_a_small_mtu_tells_the_outside") {
        return;
    }
    let path = Path::new("network", &["--mtu", "1280"]);
    let (out, inwards) = (path.transfer_out(), path.transfer_in());
    println!("MTU 1280 of the network: out {out}; in {inwards}");
    // The ends of TCP told each other what they take; who sends a datagram has to be told.
    assert_eq!(path_mtu(&path.far, "192.0.2.1"), 1_500);
    path.daemon.run(&["publish", "add", "5353:53/udp", "a"]);
    serve_udp(&path.a, "0.0.0.0:53");
    let seen = ask_udp(&path.far, "192.0.2.1:5353", 1_400);
    assert_eq!(seen, IpAddr::V4(FAR));
    assert_eq!(path_mtu(&path.far, "192.0.2.1"), 1_280);
}

/// How a hop is asked for.
#[derive(Clone, Copy, Debug)]
enum Probe {
    Udp,
    Icmp,
    Tcp,
}

/// Who answered a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hop {
    /// A router in which its TTL ended.
    Router(IpAddr),
    /// The end itself.
    End,
}

impl Probe {
    const ALL: [Self; 3] = [Self::Udp, Self::Icmp, Self::Tcp];

    fn socket(self) -> OwnedFd {
        let (kind, protocol) = match self {
            Self::Udp => (SockType::Datagram, SockProtocol::Udp),
            Self::Icmp => (SockType::Datagram, SockProtocol::Icmp),
            Self::Tcp => (SockType::Stream, SockProtocol::Tcp),
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        socket(AddressFamily::Inet, kind, flags, protocol).unwrap()
    }

    /// Sends the probe with this TTL, and waits a moment for what comes of it.
    fn send(self, to: (Ipv4Addr, u16), ttl: i32) -> Option<Hop> {
        let socket = self.socket();
        setsockopt(&socket, sockopt::Ipv4RecvErr, &true).unwrap();
        setsockopt(&socket, sockopt::Ipv4Ttl, &ttl).unwrap();
        let fd = socket.as_raw_fd();
        let to = SockaddrIn::from(std::net::SocketAddrV4::new(to.0, to.1));
        match connect(fd, &to) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(error) => panic!("{self:?}: {error}"),
        }
        match self {
            Self::Udp => drop(send(fd, &[0; 32], MsgFlags::empty()).unwrap()),
            Self::Icmp => {
                let request = [&[8, 0, 0, 0, 0, 0, 0, 1][..], &[0; 24]].concat();
                send(fd, &request, MsgFlags::empty()).unwrap();
            }
            Self::Tcp => {}
        }
        let end = Instant::now() + SILENCE;
        while Instant::now() < end {
            if let Some(hop) = self.answered(&socket) {
                return Some(hop);
            }
            std::thread::yield_now();
        }
        None
    }

    /// What has come of the probe by now.
    fn answered(self, socket: &OwnedFd) -> Option<Hop> {
        if let Some((kind, offender)) = told(socket) {
            // Port unreachable is how an end refuses UDP; time exceeded, how a router ends a TTL.
            return match kind {
                (3, 3) => Some(Hop::End),
                (11, 0) => Some(Hop::Router(offender)),
                other => panic!("ICMP {other:?} from {offender}"),
            };
        }
        let arrived = match self {
            Self::Udp => false,
            Self::Icmp => recv(socket.as_raw_fd(), &mut [0; 64], MsgFlags::empty()).is_ok(),
            Self::Tcp => TcpStream::from(socket.try_clone().unwrap())
                .peer_addr()
                .is_ok(),
        };
        arrived.then_some(Hop::End)
    }
}

/// The ICMP error that waits on a socket: type, code, and who sent it.
fn told(socket: &OwnedFd) -> Option<((u8, u8), IpAddr)> {
    let mut control = nix::cmsg_space!(nix::libc::sock_extended_err, nix::libc::sockaddr_in);
    let mut bytes = [0; 512];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let fd = socket.as_fd().as_raw_fd();
    let message = recvmsg::<SockaddrIn>(fd, &mut parts, Some(&mut control), flags).ok()?;
    message.cmsgs().unwrap().find_map(|control| match control {
        ControlMessageOwned::Ipv4RecvErr(error, Some(offender)) => {
            let address = Ipv4Addr::from(u32::from_be(offender.sin_addr.s_addr));
            Some(((error.ee_type, error.ee_code), IpAddr::V4(address)))
        }
        _ => None,
    })
}

/// The hops from `ns` to `to`, and whether its end was reached.
fn hops(ns: &Namespace, probe: Probe, to: (Ipv4Addr, u16)) -> Vec<Hop> {
    let mut hops = Vec::new();
    for ttl in 1..=8 {
        let answered = (0..PROBES_MAX).find_map(|_| ns.run(|| probe.send(to, ttl)));
        let Some(hop) = answered else {
            panic!("{probe:?}: no answer with TTL {ttl} after {hops:?}");
        };
        hops.push(hop);
        if hop == Hop::End {
            break;
        }
    }
    hops
}

/// The routers' addresses, and then the end.
fn routers(addresses: &[&str]) -> Vec<Hop> {
    let routers = addresses.iter().map(|address| Hop::Router(ip(address)));
    routers.chain([Hop::End]).collect()
}

#[test]
fn every_hop_through_the_nat_shows_itself_once_by_its_own_address() {
    if !require_root("every_hop_through_the_nat_shows_itself_once_by_its_own_address") {
        return;
    }
    let path = Path::new("hops", &[]);
    path.a.set_sysctl("net/ipv4/ping_group_range", "0 0");
    serve_tcp(&path.far, "0.0.0.0:80");
    serve_tcp(&path.a, "0.0.0.0:80");
    let out = ["10.88.0.1", "192.0.2.2", "198.51.100.2"];
    for probe in Probe::ALL {
        assert_eq!(hops(&path.a, probe, (FAR, 80)), routers(&out), "{probe:?}");
    }
    // Towards a published port the host is a router in front of an end with its own address.
    let inwards = ["203.0.113.1", "198.51.100.1", "192.0.2.1"];
    let published = (Ipv4Addr::new(192, 0, 2, 1), 8_080);
    assert_eq!(hops(&path.far, Probe::Tcp, published), routers(&inwards));
    for address in out.iter().chain(&["203.0.113.2"]) {
        assert!(ping(&path.a, ip(address), 56), "{address}");
        assert!(
            ping(&path.a, ip(address), 1_472),
            "{address}, a full packet"
        );
        assert!(ping(&path.a, ip(address), 8_000), "{address}, in fragments");
    }
}

/// The hops that Debian's traceroute shows, or `None` when it is not installed.
fn traceroute(ns: &Namespace, words: &[&str]) -> Option<Vec<String>> {
    let arguments = ["-n", "-q", "1", "-N", "1", "-w", "2", "-m", "8"];
    let mut command = Command::new("traceroute");
    command.args(arguments).args(words).arg(FAR.to_string());
    let output = ns.run(|| command.output()).ok()?;
    let text = String::from_utf8(output.stdout).unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {text}{error}");
    // "traceroute to …" and then " 1  10.88.0.1  0.123 ms".
    let hop = |line: &str| line.split_whitespace().nth(1).map(str::to_owned);
    Some(text.lines().skip(1).filter_map(hop).collect())
}

#[test]
fn traceroute_and_ping_show_the_path_as_it_is() {
    if !require_root("traceroute_and_ping_show_the_path_as_it_is") {
        return;
    }
    let path = Path::new("traceroute", &[]);
    serve_tcp(&path.far, "0.0.0.0:80");
    for mode in [&[][..], &["-U"], &["-I"], &["-T", "-p", "80"]] {
        let Some(shown) = traceroute(&path.a, mode) else {
            println!("not tested: traceroute is not installed");
            break;
        };
        let path = ["10.88.0.1", "192.0.2.2", "198.51.100.2", "203.0.113.2"];
        assert_eq!(shown, path, "traceroute {mode:?}");
    }
    let mut command = Command::new("ping");
    command.args(["-n", "-c", "3", "-i", "0.2", "-W", "5", "203.0.113.2"]);
    match path.a.run(|| command.output()) {
        Ok(output) => {
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(text.contains("3 received, 0% packet loss"), "{text}");
            assert!(
                text.contains("ttl=61"),
                "two routers and the gateway: {text}"
            );
            assert!(!text.contains("DUP!"), "{text}");
        }
        Err(_) => println!("not tested: ping is not installed"),
    }
}

/// Whether a frame is a fragment of an IPv4 packet.
fn is_fragment(frame: &[u8]) -> Option<()> {
    let ipv4 = frame.get(12..14)? == [0x08, 0x00];
    let flags_and_offset = u16::from_be_bytes([*frame.get(20)?, *frame.get(21)?]);
    (ipv4 && flags_and_offset & 0x3fff != 0).then_some(())
}

fn fragments(watch: Watch<()>) -> usize {
    let seen = watch.end();
    assert_eq!(seen.missed, 0);
    seen.kept.len()
}

#[test]
fn datagrams_of_eight_kilobytes_arrive_in_fragments_both_ways() {
    if !require_root("datagrams_of_eight_kilobytes_arrive_in_fragments_both_ways") {
        return;
    }
    let path = Path::new("fragments", &[]);
    path.daemon.run(&["publish", "add", "5353:53/udp", "a"]);
    serve_udp(&path.far, "203.0.113.2:53");
    serve_udp(&path.a, "0.0.0.0:53");
    for (from, server, seen) in [
        (&path.a, "203.0.113.2:53", "192.0.2.1"),
        (&path.far, "192.0.2.1:5353", "203.0.113.2"),
    ] {
        let out = Witness::new(&path.r1, "eth0").watch(is_fragment);
        let inwards = Witness::new(&path.host, "up0").watch(is_fragment);
        for _ in 0..DATAGRAMS {
            assert_eq!(ask_udp(from, server, DATAGRAM_SIZE), ip(seen));
        }
        // Six pieces of each: none went whole.
        let (out, inwards) = (fragments(out), fragments(inwards));
        assert!(out >= 6 * DATAGRAMS, "{out} fragments out to {server}");
        assert!(
            inwards >= 6 * DATAGRAMS,
            "{inwards} fragments in from {server}"
        );
        println!("{server}: {out} fragments out, {inwards} in");
    }
}

/// Datagrams that the kernel hands over in one frame (`UDP_SEGMENT`), and bytes of each: they fit the
/// container's link and not the uplink.
const SEGMENTS: usize = 20;
const SEGMENT_SIZE: usize = 1_400;

/// Narrows the host's uplink, and waits until the daemon knows.
fn narrow_the_uplink(path: &Path) {
    path.r1.set_mtu("eth0", NARROW);
    path.host.set_mtu("up0", NARROW);
    wait_until(DEADLINE, "the daemon has seen it", || {
        let ports = path.daemon.json(&["port", "ls"]);
        let mut ports = ports.as_array().unwrap().iter();
        ports.any(|port| port["name"] == "up0" && port["mtu"] == NARROW)
    });
}

/// Frames that the switch has received from the container.
fn frames_received(path: &Path) -> u64 {
    let ports = path.daemon.json(&["port", "ls"]);
    let mut ports = ports.as_array().unwrap().iter();
    let port = ports.find(|port| port["name"] == "a").unwrap();
    port["rx_frames"].as_u64().unwrap()
}

#[test]
fn datagrams_of_one_offloaded_frame_arrive_in_fragments_on_a_narrow_way() {
    if !require_root("datagrams_of_one_offloaded_frame_arrive_in_fragments_on_a_narrow_way") {
        return;
    }
    let path = Path::new("datagrams", &[]);
    narrow_the_uplink(&path);
    // Sockets opened from now on leave DF clear.
    path.a.set_sysctl("net/ipv4/ip_no_pmtu_disc", "1");
    let far = path.far.run(|| UdpSocket::bind("203.0.113.2:53")).unwrap();
    far.set_read_timeout(Some(DEADLINE)).unwrap();
    let client = path.a.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    client.connect("203.0.113.2:53").unwrap();
    // The router's MAC is resolved, and the session is there.
    client.send(b"first").unwrap();
    let mut got = vec![0; 1 << 16];
    assert_eq!(far.recv(&mut got).unwrap(), 5);
    let before = frames_received(&path);
    let watch = Witness::new(&path.r1, "eth0").watch(is_fragment);
    setsockopt(&client, sockopt::UdpGsoSegment, &(SEGMENT_SIZE as i32)).unwrap();
    let mut sent = vec![0; SEGMENTS * SEGMENT_SIZE + 100];
    fastrand::fill(&mut sent);
    client.send(&sent).unwrap();
    for datagram in sent.chunks(SEGMENT_SIZE) {
        let (size, from) = far.recv_from(&mut got).unwrap();
        assert_eq!(from.ip(), ip("192.0.2.1"));
        assert!(got[..size] == *datagram, "{size} bytes that differ");
    }
    // Neighbour discovery may add a frame or two.
    let frames = frames_received(&path) - before;
    assert!(frames < SEGMENTS as u64 / 2, "{frames} frames came");
    assert_eq!(fragments(watch), 2 * SEGMENTS, "and the last one fits");
}
