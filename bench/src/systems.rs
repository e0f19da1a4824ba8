//! What is compared: two sandboxes with a switch between them.

use std::net::IpAddr;
use std::time::Duration;

use control::link::VethEnd;
use dataplane::{Config, Waiting};
use tests::lab::{self, Lab, Namespace};
use tests::rig::{Backend, Rig};

/// A switch with two sandboxes, ready for load.
pub struct Pair {
    /// Who sends.
    pub a: Namespace,
    /// Who receives.
    pub b: Namespace,
    /// The receiver's address.
    pub address: IpAddr,
    /// Keeps the switch alive.
    _switch: Switch,
}

enum Switch {
    Kernel { _host: Namespace, _lab: Lab },
    Causeway { _rig: Box<Rig> },
}

impl Pair {
    /// The unspecified address of the pair's family.
    pub fn unspecified(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        }
    }
}

/// Settings of our side.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Worker threads.
    pub workers: usize,
    /// Microseconds of spinning before sleep.
    pub spin: u64,
}

impl Tuning {
    /// The dataplane's configuration.
    pub fn config(self) -> Config {
        let waiting = match self.spin {
            0 => Waiting::Sleep,
            micros => Waiting::Adaptive {
                spin: Duration::from_micros(micros),
            },
        };
        Config {
            workers: self.workers,
            waiting,
            ..Config::default()
        }
    }
}

const MTU: u16 = 1500;

/// Two namespaces on a kernel bridge, by veths with their default offloads.
pub fn kernel_bridge() -> Pair {
    let lab = Lab::new("bench-bridge");
    let host = lab.namespace("host");
    let netlink = host.netlink().clone();
    lab::block_on(netlink.create_bridge("br0")).expect("a bridge");
    let bridge = host.link("br0").index;
    host.set_up("br0");
    let [a, b] = [("a", "10.0.0.2/24"), ("b", "10.0.0.3/24")].map(|(name, address)| {
        let ns = lab.namespace(name);
        let end = |name| VethEnd {
            name,
            mac: None,
            mtu: MTU.into(),
        };
        let pair = netlink.create_veth(end(name), end("eth0"), ns.netns());
        lab::block_on(pair).expect("a veth pair");
        let index = host.link(name).index;
        lab::block_on(netlink.set_controller(index, bridge)).expect("a port of the bridge");
        host.set_up(name);
        ns.add_address("eth0", address);
        ns.set_up("eth0");
        ns
    });
    let address = lab::ip("10.0.0.3");
    Pair {
        a,
        b,
        address,
        _switch: Switch::Kernel {
            _host: host,
            _lab: lab,
        },
    }
}

/// Two namespaces on Causeway, by TAPs with their default offloads.
pub fn causeway(tuning: Tuning) -> Pair {
    let mut rig = Rig::new("bench", &tuning.config());
    let a = rig.sandbox("a", "10.0.0.2/24", Backend::Tap, MTU);
    let b = rig.sandbox("b", "10.0.0.3/24", Backend::Tap, MTU);
    Pair {
        a: a.ns,
        b: b.ns,
        address: b.address,
        _switch: Switch::Causeway {
            _rig: Box::new(rig),
        },
    }
}

/// A switch with `ports` idle sandboxes.
pub fn idle(tuning: Tuning, ports: u8) -> Rig {
    let mut rig = Rig::new("bench-idle", &tuning.config());
    for port in 0..ports {
        rig.sandbox(
            &format!("s{port}"),
            &format!("10.0.0.{}/24", port + 2),
            Backend::Tap,
            MTU,
        );
    }
    rig
}
