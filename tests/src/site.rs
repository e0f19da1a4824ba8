//! A host on a LAN: a card of its own, a veth whose far end is a router, and what a move of the card's
//! addresses could leave or lose.

use std::fs::File;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use control::link::inet::Route;
use control::link::saved::SavedIp;
use dataplane_port::guard;
use rtnetlink::packet_core::Emitable;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, CacheInfo};

use crate::daemon::Daemon;
use crate::lab::{DEADLINE, Lab, Namespace, Running, block_on, ip, prefix, wait_until};

/// A host on a LAN.
#[derive(Debug)]
pub struct Site {
    /// Its lab.
    pub lab: Lab,
    /// The host, with the card `nic0`.
    pub host: Namespace,
    /// The LAN's only other station.
    pub router: Namespace,
}

impl Site {
    /// A host with a card on a LAN and no address there.
    pub fn bare(name: &str) -> Self {
        let lab = Lab::new(name);
        let [host, router] = lab.namespaces(["host", "router"]);
        lab.cable(&host, "nic0", &router, "eth0");
        router.add_address("eth0", "192.168.7.1/24");
        router.add_address("eth0", "fd00:7::1/64");
        router.add_address("lo", "198.51.100.1/32");
        router.add_address("lo", "2001:db8:9::1/128");
        Self { lab, host, router }
    }

    /// A host with addresses of both families on the LAN, one of them leased, and routes that have
    /// metrics.
    pub fn addressed(name: &str) -> Self {
        let site = Self::bare(name);
        let host = &site.host;
        host.add_address("nic0", "192.168.7.2/24");
        host.add_address("nic0", "fd00:7::2/64");
        site.lease([192, 168, 7, 3]);
        let by = |to: &str, router: &str, metric| Route {
            gateway: Some(ip(router)),
            metric,
            ..Route::on_link(prefix(to), host.link("nic0").index)
        };
        for route in [
            by("0.0.0.0/0", "192.168.7.1", 100),
            by("10.20.0.0/16", "192.168.7.1", 7),
            by("::/0", "fd00:7::1", 1_024),
            by("2001:db8:20::/48", "fd00:7::1", 50),
        ] {
            block_on(host.netlink().add_route(route)).expect("the kernel answers");
        }
        site
    }

    /// An address that is the host's for an hour.
    fn lease(&self, address: [u8; 4]) {
        let nic = self.host.link("nic0");
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = 24;
        let mut times = CacheInfo::default();
        (times.ifa_preferred, times.ifa_valid) = (1_800, 3_600);
        message.attributes = vec![
            AddressAttribute::Local(IpAddr::from(address)),
            AddressAttribute::Address(IpAddr::from(address)),
            AddressAttribute::CacheInfo(times),
        ];
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let saved = SavedIp::decode(&[format!("a{digits}")]).expect("the kernel answers");
        let failed = block_on(self.host.netlink().put_addresses(&nic, &saved));
        assert!(failed.is_empty(), "{failed:?}");
    }

    /// A daemon without uplinks.
    ///
    /// # Panics
    /// With its log, when it does not answer.
    pub fn daemon(&self, options: &[&str]) -> Daemon {
        Daemon::start(
            &self.lab,
            &self.host,
            &[&["--uplink", "none"], options].concat(),
        )
    }

    /// A sandbox of a network, with an address of the LAN.
    pub fn sandbox(&self, daemon: &Daemon, network: &str, name: &str, address: &str) -> Namespace {
        let ns = self.lab.namespace(name);
        daemon.attach(&ns, network, name, &["--ip", address]);
        ns
    }
}

/// The LAN's: leases from 192.168.7.100 to .150, and advertisements of fd00:7::/64.
pub const LAN_LEASES: [&str; 2] = ["192.168.7.100,192.168.7.150", "fd00:7::"];

/// Starts dnsmasq behind `router`'s eth0: leases of a range of IPv4 addresses in a /24, and advertisements
/// of an IPv6 prefix. It logs to `dnsmasq.log` in the lab's directory.
///
/// # Panics
/// When it cannot be started.
pub fn serve_leases(
    lab: &Lab,
    router: &Namespace,
    dnsmasq: &Path,
    [addresses, prefix]: [&str; 2],
) -> Running {
    let leases = lab.dir().join("leases");
    let log = File::create(lab.dir().join("dnsmasq.log")).expect("a file in the lab's directory");
    let mut command = Command::new(dnsmasq);
    command
        .args([
            "--no-daemon",
            "--conf-file=/dev/null",
            "--user=root",
            "--port=0",
        ])
        .args(["--interface=eth0", "--bind-interfaces", "--log-dhcp"])
        .args(["--dhcp-authoritative", "--no-ping", "--enable-ra"])
        .arg(format!("--dhcp-range={prefix},ra-only,64"))
        .arg(format!("--dhcp-range={addresses},255.255.255.0,1h"))
        .arg(format!("--dhcp-leasefile={}", leases.display()))
        .arg("--pid-file=")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    Running(router.start(&mut command))
}

/// Everything of a host that a move could leave or lose.
#[derive(Debug, PartialEq)]
pub struct Footprint {
    links: Vec<(String, bool, Option<String>)>,
    /// Addresses and routes of the card, in words.
    pub nic: Vec<String>,
    leased: Vec<String>,
    routes: Vec<Route>,
    guard: Option<guard::Method>,
    addr_gen_mode: String,
}

/// Reads it.
///
/// # Panics
/// When the card is not there.
pub fn footprint(host: &Namespace) -> Footprint {
    let links = block_on(host.netlink().links()).expect("the kernel answers");
    let nic = links
        .iter()
        .find(|link| link.name == "nic0")
        .expect("the kernel answers");
    let saved = block_on(host.netlink().saved_ip(nic.index)).expect("the kernel answers");
    let addresses = saved.addresses().map(|address| address.to_string());
    let mut all: Vec<String> = addresses.chain(saved.routes()).collect();
    all.sort();
    let hour = |(address, seconds)| {
        assert!((3_000..=3_600).contains(&seconds), "{address}: {seconds}");
        format!("{address}")
    };
    let mut routes = block_on(host.netlink().routes()).expect("the kernel answers");
    routes.sort_by_key(|route| format!("{route:?}"));
    Footprint {
        links: links
            .iter()
            .map(|link| (link.name.clone(), link.up, link.alias.clone()))
            .collect(),
        nic: all,
        leased: saved.leases().map(hour).collect(),
        routes,
        guard: host
            .run(|| guard::find("nic0"))
            .expect("the kernel answers"),
        addr_gen_mode: host.sysctl("net/ipv6/conf/nic0/addr_gen_mode"),
    }
}

/// The footprint once the kernel has done with its own address of the card.
pub fn settled(host: &Namespace) -> Footprint {
    wait_until(DEADLINE, "the card has its link-local address", || {
        let all = block_on(host.netlink().addresses()).expect("the kernel answers");
        let index = host.link("nic0").index;
        let mut own = all.iter().filter(|address| address.link == index);
        own.any(|own| is_link_local(own.prefix.address) && !own.tentative)
    });
    footprint(host)
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
