//! The namespaces around a system: a host that plays the machine, and sandboxes with `eth0`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use control::link::VethEnd;
use tests::lab::{self, Lab, Namespace};

use super::process::Process;
use super::{Held, Path, Setup, Shape, System, SystemName, Work};

/// Where servers listen, and where they are published.
pub const SERVER_PORT: u16 = 5201;
/// Sandboxes of one system: addresses of a /16, far more than a small machine carries.
pub const SANDBOXES_MAX: u16 = 4_000;
/// The gateway of every sandbox, where there is one.
pub const GATEWAY: &str = "10.0.0.1";

/// A host with sandboxes on it.
pub struct Host {
    /// Its directory is the system's.
    pub lab: Lab,
    /// The namespace that plays the machine.
    pub ns: Namespace,
}

impl Host {
    /// A host without sandboxes.
    pub fn new(name: &str) -> Self {
        let lab = Lab::new(&format!("bench-{name}"));
        let ns = lab.namespace("host");
        Self { lab, ns }
    }

    /// A sandbox whose `eth0` is a veth to the host, where its other end is [`host_end`].
    pub fn sandbox(&self, index: u16, setup: &Setup) -> Namespace {
        let ns = self.lab.namespace(&format!("s{index}"));
        self.plug(index, &ns, setup);
        ns
    }

    /// Gives a sandbox its `eth0`.
    fn plug(&self, index: u16, ns: &Namespace, setup: &Setup) {
        let name = host_end(index);
        let pair = self
            .ns
            .netlink()
            .create_veth(end(&name, setup), end("eth0", setup), ns.netns());
        lab::block_on(pair).unwrap_or_else(|e| panic!("{name}: {e}"));
        finish(ns, &address(index).to_string(), setup);
        self.ns.set_up(&name);
    }

    /// The index of a sandbox's end on the host.
    pub fn link(&self, index: u16) -> u32 {
        self.ns.link(&host_end(index)).index
    }
}

/// A host with two sandboxes whose veths have so many queues, and the names of the veths' ends on it.
pub fn two_sandboxes(
    name: &str,
    setup: &Setup,
    queues: usize,
) -> (Host, [Namespace; 2], [String; 2]) {
    let host = Host::new(name);
    let sandboxes = [0, 1].map(|index| {
        let ns = host.sandbox(index, setup);
        for (side, end) in [(&host.ns, host_end(index).as_str()), (&ns, "eth0")] {
            super::offload::set_queues(side, end, queues as u32);
        }
        ns
    });
    (host, sandboxes, [0, 1].map(host_end))
}

/// Gives a sandbox's `eth0` its address and brings it up.
pub fn finish(ns: &Namespace, address: &str, setup: &Setup) {
    if !setup.gso {
        super::offload::turn_off(ns, "eth0", &super::offload::SEGMENTATION);
    }
    ns.add_address("eth0", &format!("{address}/16"));
    ns.set_up("eth0");
}

/// Name of a sandbox's end on the host.
pub fn host_end(index: u16) -> String {
    format!("v{index}")
}

/// Address of a sandbox.
pub fn address(index: u16) -> IpAddr {
    let [high, low] = (index + 2).to_be_bytes();
    Ipv4Addr::new(10, 0, high, low).into()
}

/// One end of a veth.
pub fn end<'a>(name: &'a str, setup: &Setup) -> VethEnd<'a> {
    VethEnd {
        name,
        mac: None,
        mtu: setup.mtu.into(),
    }
}

/// How many sandboxes a shape has.
pub fn sandboxes(setup: &Setup) -> u16 {
    match setup.shape {
        Shape::Pair => 2,
        Shape::Star | Shape::Mesh => setup.ports,
        Shape::NatOut | Shape::PortForward => 1,
    }
}

/// From each sandbox to the next one, and from the last to the first; of a pair only the first. In a
/// mesh from each to every other: first to the next one, then to the one after it, and so on.
pub fn paths(sandboxes: &[Namespace], setup: &Setup) -> Vec<Path> {
    let count = sandboxes.len();
    let path = |from: usize, distance: usize| {
        let to = (from + distance) % count;
        let server = SocketAddr::new(address(to as u16), SERVER_PORT);
        Path {
            from: sandboxes[from].clone(),
            to: sandboxes[to].clone(),
            listen: server,
            connect: server,
        }
    };
    let (senders, distances) = match setup.shape {
        Shape::Star => (count, 1),
        Shape::Mesh => (count, count - 1),
        Shape::Pair | Shape::NatOut | Shape::PortForward => (1, 1),
    };
    let pairs = (1..=distances).flat_map(|distance| (0..senders).map(move |from| (from, distance)));
    pairs.map(|(from, distance)| path(from, distance)).collect()
}

/// A host that routes between one sandbox and an outside.
pub struct Router {
    /// The host: `v0` to the sandbox, `up0` to the outside.
    pub host: Host,
    /// The sandbox, with its default route by the host.
    pub inside: Namespace,
    /// The outside, which knows of no sandbox.
    pub outside: Namespace,
}

/// The host's address on its network card.
pub const HOST_ADDRESS: &str = "192.0.2.1";
/// The address outside.
pub const OUTSIDE_ADDRESS: &str = "192.0.2.2";

impl Router {
    /// Plugs everything together; nothing is translated yet.
    pub fn new(name: &str, setup: &Setup) -> Self {
        let router = Self::without_inside(name, setup);
        let Self { host, inside, .. } = &router;
        host.plug(0, inside, setup);
        host.ns.add_address(&host_end(0), &format!("{GATEWAY}/16"));
        inside.add_default_route("eth0", GATEWAY);
        router
    }

    /// The same, with nothing in the sandbox yet.
    pub fn without_inside(name: &str, setup: &Setup) -> Self {
        let host = Host::new(name);
        let inside = host.lab.namespace("s0");
        let outside = host.lab.namespace("outside");
        host.lab.cable(&host.ns, "up0", &outside, "eth0");
        for (ns, name, address) in [
            (&host.ns, "up0", HOST_ADDRESS),
            (&outside, "eth0", OUTSIDE_ADDRESS),
        ] {
            ns.set_mtu(name, setup.mtu.into());
            ns.add_address(name, &format!("{address}/24"));
        }
        if !setup.gso {
            super::offload::turn_off(&outside, "eth0", &super::offload::SEGMENTATION);
        }
        Self {
            host,
            inside,
            outside,
        }
    }

    /// The running system of which this is the surroundings and `processes` the work.
    pub fn system(
        self,
        name: SystemName,
        setup: &Setup,
        processes: Vec<Process>,
        facts: BTreeMap<String, String>,
    ) -> System {
        let work = processes.iter().map(|process| Work::Process {
            name: name.to_string(),
            pid: process.pid(),
        });
        System {
            name,
            paths: vec![self.path(setup)],
            work: work.collect(),
            facts,
            _held: Held {
                processes,
                namespaces: vec![self.inside, self.outside, self.host.ns],
                lab: Some(self.host.lab),
                ..Held::default()
            },
        }
    }

    /// The way of the shape: out of the sandbox, or into its published port.
    fn path(&self, setup: &Setup) -> Path {
        let server = |address| SocketAddr::new(address, SERVER_PORT);
        let (inside, outside) = (self.inside.clone(), self.outside.clone());
        if setup.shape == Shape::PortForward {
            return Path {
                from: outside,
                to: inside,
                listen: server(address(0)),
                connect: server(lab::ip(HOST_ADDRESS)),
            };
        }
        Path {
            from: inside,
            to: outside,
            listen: server(lab::ip(OUTSIDE_ADDRESS)),
            connect: server(lab::ip(OUTSIDE_ADDRESS)),
        }
    }
}
