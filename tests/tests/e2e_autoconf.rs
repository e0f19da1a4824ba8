//! What hosts of a network do to find their addresses and each other, by real programs and the
//! kernel's own stack: DHCP, router advertisements, duplicate address detection, multicast DNS.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tests::conform::program;
use tests::daemon::Daemon;
use tests::lab::{DEADLINE, Lab, Namespace, Running, block_on, ip, require_root, wait_until};
use tests::site::serve_leases;
use tests::talk::{ping, unpingable};

const MDNS_PORT: u16 = 5353;
const MDNS_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const MDNS_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
/// Of a message that asks for `host.local`.
const MDNS_QUESTION: &[u8] = b"\0\0\0\0\0\x01\0\0\0\0\0\0\x04host\x05local\0\0\x01\0\x01";

/// A host asks for advertisements three times, 4 s apart and by Linux ever further (RFC 4861 section
/// 6.3.7, RFC 7559), and what it makes of one is tentative for a second or two.
const ADVERTISED_MAX: Duration = Duration::from_secs(30);

/// A network without a gateway of ours for what the router in the sandbox `router` says.
struct Segment {
    daemon: Daemon,
    router: Namespace,
    lab: Lab,
}

impl Segment {
    fn new(name: &str) -> Self {
        let lab = Lab::new(name);
        let host = lab.namespace("host");
        let daemon = Daemon::start(&lab, &host, &["--uplink", "none"]);
        daemon.run(
            &[
                &["network", "create", "lan", "--no-host-link"][..],
                &["--subnet", "10.88.0.0/24", "--subnet6", "fd00:88::/64"],
            ]
            .concat(),
        );
        let router = lab.namespace("router");
        let address = ["--ip", "10.88.0.2", "--ip6", "fd00:88::2"];
        daemon.attach(&router, "lan", "router", &address);
        // It hears what it sends to all nodes: an address made of that is not its port's, and what
        // it sends from there is dropped as spoofed.
        router.set_sysctl("net/ipv6/conf/eth0/accept_ra", "0");
        Self {
            daemon,
            router,
            lab,
        }
    }

    /// Starts dnsmasq in the router's sandbox: DHCP, and advertisements of the prefix.
    fn serve(&self, dnsmasq: &Path) -> Running {
        let ranges = ["10.88.0.100,10.88.0.150", "fd00:88::"];
        serve_leases(&self.lab, &self.router, dnsmasq, ranges)
    }

    fn client(&self, name: &str, options: &[&str]) -> Namespace {
        let ns = self.lab.namespace(name);
        self.daemon.attach(&ns, "lan", name, options);
        ns
    }
}

/// A script for udhcpc that notes what it got.
fn script(lab: &Lab, noted: &Path) -> PathBuf {
    let path = lab.dir().join("noted.sh");
    let text = format!(
        "#!/bin/sh\n[ \"$1\" = bound ] && echo \"$ip $mask $router\" >{}\nexit 0\n",
        noted.display()
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// The global IPv6 addresses that an interface has by advertisement, once they are no longer
/// tentative.
fn advertised(ns: &Namespace) -> Vec<IpAddr> {
    let all = block_on(ns.netlink().addresses()).unwrap();
    let of_prefix = |address: &IpAddr| match address {
        IpAddr::V6(address) => address.segments()[..4] == [0xfd00, 0x88, 0, 0],
        IpAddr::V4(_) => false,
    };
    let ready = all.iter().filter(|address| !address.tentative);
    ready
        .map(|address| address.prefix.address)
        .filter(of_prefix)
        .collect()
}

#[test]
fn a_sandbox_gets_its_address_by_dhcp_and_talks_from_it_though_its_port_is_secured() {
    let test = "a_sandbox_gets_its_address_by_dhcp_and_talks_from_it_though_its_port_is_secured";
    if !require_root(test) {
        return;
    }
    let dnsmasq = program(test, "dnsmasq", "dnsmasq-base");
    let udhcpc = program(test, "udhcpc", "udhcpc");
    let (Some(dnsmasq), Some(udhcpc)) = (dnsmasq, udhcpc) else {
        return;
    };
    let segment = Segment::new("dhcp");
    let client = segment.client("client", &["--ip", "none"]);
    let all = block_on(client.netlink().addresses()).unwrap();
    let v4 = |address: IpAddr| address.is_ipv4() && !address.is_loopback();
    assert!(!all.iter().any(|a| v4(a.prefix.address)), "{all:?}");
    let _server = segment.serve(&dnsmasq);
    let noted = segment.lab.dir().join("noted");
    let script = script(&segment.lab, &noted);
    let mut command = Command::new(udhcpc);
    command
        .args(["-i", "eth0", "-f", "-q", "-n", "-t", "20", "-T", "1", "-s"])
        .arg(&script)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let ended = client.start(&mut command).wait().unwrap();
    let log = || fs::read_to_string(segment.lab.dir().join("dnsmasq.log")).unwrap();
    assert!(ended.success(), "no lease: {}", log());
    let lease = fs::read_to_string(&noted).unwrap();
    let [address, mask, router] = lease.split_whitespace().collect::<Vec<_>>()[..] else {
        panic!("an odd lease: {lease}");
    };
    assert_eq!((mask, router), ("24", "10.88.0.2"));
    let leased: Ipv4Addr = address.parse().unwrap();
    assert!((100..=150).contains(&leased.octets()[3]), "{leased}");
    client.add_address("eth0", &format!("{leased}/24"));
    assert!(ping(&client, ip("10.88.0.2"), 56));
    assert!(ping(&segment.router, leased.into(), 1_400));
    let listed = segment.daemon.json(&["port", "show", "client"]);
    assert_eq!(listed["flags"]["port_security"], true, "{listed}");
}

#[test]
fn advertisements_give_an_address_and_duplicates_are_found() {
    let test = "advertisements_give_an_address_and_duplicates_are_found";
    if !require_root(test) {
        return;
    }
    let Some(dnsmasq) = program(test, "dnsmasq", "dnsmasq-base") else {
        return;
    };
    let segment = Segment::new("ra");
    let client = segment.client("client", &["--ip6", "none"]);
    let _server = segment.serve(&dnsmasq);
    wait_until(
        ADVERTISED_MAX,
        "the client has an advertised address",
        || !advertised(&client).is_empty(),
    );
    let own = advertised(&client)[0];
    assert!(ping(&client, ip("fd00:88::2"), 56));
    assert!(ping(&segment.router, own, 1_400));
    // The same address elsewhere: the kernel asks, the owner answers, and it is not taken.
    let second = segment.client("second", &["--ip6", "none"]);
    wait_until(
        ADVERTISED_MAX,
        "the second has an address of its own",
        || !advertised(&second).is_empty(),
    );
    let index = second.link("eth0").index;
    let prefix = tests::lab::prefix(&format!("{own}/64"));
    let add =
        second
            .netlink()
            .add_address(index, prefix, control::link::inet::DuplicateDetection::On);
    block_on(add).unwrap();
    wait_until(DEADLINE, "the duplicate is found", || {
        let text = second.run(|| fs::read_to_string("/proc/thread-self/net/if_inet6"));
        // IFA_F_DADFAILED (linux/if_addr.h), in the fifth column.
        let text = text.unwrap();
        text.lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let bytes = match own {
                IpAddr::V6(own) => own.octets(),
                IpAddr::V4(_) => unreachable!("it is an IPv6 address"),
            };
            let wanted: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            let flags = u32::from_str_radix(words[4], 16).unwrap();
            words[0] == wanted && flags & 0x08 != 0
        })
    });
}

/// A socket that hears multicast DNS on eth0.
fn mdns(ns: &Namespace, v6: bool) -> UdpSocket {
    let any = if v6 { "[::]" } else { "0.0.0.0" };
    let index = ns.link("eth0").index;
    ns.run(|| {
        let socket = UdpSocket::bind(format!("{any}:{MDNS_PORT}")).unwrap();
        if v6 {
            socket.join_multicast_v6(&MDNS_V6, index).unwrap();
        } else {
            socket
                .join_multicast_v4(&MDNS_V4, &Ipv4Addr::UNSPECIFIED)
                .unwrap();
        }
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket
    })
}

/// Covers: 49
#[test]
fn multicast_dns_reaches_every_member_and_nobody_on_another_network() {
    if !require_root("multicast_dns_reaches_every_member_and_nobody_on_another_network") {
        return;
    }
    let segment = Segment::new("mdns");
    segment
        .daemon
        .run(&["network", "create", "other", "--subnet", "10.89.0.0/24"]);
    let members = ["a", "b", "c"].map(|name| segment.client(name, &[]));
    let stranger = segment.lab.namespace("stranger");
    segment.daemon.attach(&stranger, "other", "stranger", &[]);
    for v6 in [false, true] {
        let sockets: Vec<UdpSocket> = members.iter().map(|member| mdns(member, v6)).collect();
        let outside = (!v6).then(|| mdns(&stranger, false));
        for (asker, socket) in sockets.iter().enumerate() {
            let scope = members[asker].link("eth0").index;
            let to: SocketAddr = match v6 {
                true => std::net::SocketAddrV6::new(MDNS_V6, MDNS_PORT, 0, scope).into(),
                false => (MDNS_V4, MDNS_PORT).into(),
            };
            socket.send_to(MDNS_QUESTION, to).unwrap();
            for (member, hearer) in sockets.iter().enumerate() {
                let mut buffer = [0; 512];
                let (size, from) = hearer.recv_from(&mut buffer).unwrap_or_else(|e| {
                    panic!("member {member} does not hear {asker}, IPv6 {v6}: {e}")
                });
                assert_eq!(&buffer[..size], MDNS_QUESTION);
                assert_eq!(from.port(), MDNS_PORT);
            }
        }
        if let Some(outside) = outside {
            outside.set_nonblocking(true).unwrap();
            assert!(outside.recv_from(&mut [0; 512]).is_err());
        }
    }
    assert!(unpingable(&stranger, ip("10.88.0.2")));
}
