//! The kernel's bridge with a veth for each port, in namespaces of its own.
//!
//! Everything is sent by one thread that stays on one CPU. The kernel takes what a veth carries
//! through the backlog of the CPU that sent it, first in, first out, so frames keep their order
//! whichever port they enter by, and a frame that crosses a cable beside the bridge often enough
//! tells that all before it are through.

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::InfoBridgePort;
use rtnetlink::packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::{LinkBridge, LinkBridgePort, LinkMessageBuilder};

use super::station::{Station, Stations, pass, silence};
use crate::bridges::{Bridge, Change, Flag, Kind, Outputs, PORTS};
use crate::lab::{self, Lab, Namespace};

/// Crossings of the cable beside the bridge after which everything before is through: a frame
/// through the bridge takes two turns of the backlog.
const CROSSINGS: usize = 3;

const BRIDGE: &str = "br0";
/// A tick of the clock that netlink counts in (`USER_HZ`).
const MILLIS_PER_TICK: u128 = 10;

/// The kernel's bridge.
#[derive(Debug)]
pub struct KernelBridge {
    /// Lives as long as the bridge.
    _host: Namespace,
    handle: rtnetlink::Handle,
    stations: Stations,
    /// The two ends of the cable beside the bridge.
    beside: [Station; 2],
    ports: [u32; PORTS],
}

impl KernelBridge {
    /// A bridge that floods multicast, without spanning tree, and nothing learned.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(lab: &Lab) -> Self {
        Self::made(lab, false)
    }

    /// The same, and it snoops groups.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn snooping(lab: &Lab) -> Self {
        Self::made(lab, true)
    }

    fn made(lab: &Lab, snooping: bool) -> Self {
        stay_here();
        let [host, ns] = lab.namespaces(["bridge", "stations"]);
        silence(&host);
        silence(&ns);
        // With it the bridge shows frames to iptables, and drops those whose IP header it cannot read.
        for tables in ["iptables", "ip6tables", "arptables"] {
            host.set_sysctl(&format!("net/bridge/bridge-nf-call-{tables}"), "0");
        }
        let handle = handle(&host);
        lab::block_on(async {
            let bridge = LinkBridge::new(BRIDGE)
                .mcast_snooping(snooping)
                .up()
                .build();
            handle.link().add(bridge).execute().await
        })
        .expect("a bridge");
        let bridge = host.link(BRIDGE).index;
        let ports = std::array::from_fn(|port| {
            lab.cable(&host, &format!("p{port}"), &ns, &format!("s{port}"));
            let index = host.link(&format!("p{port}")).index;
            lab::block_on(host.netlink().set_controller(index, bridge)).expect("a port");
            index
        });
        lab.cable(&ns, "b0", &ns, "b1");
        let beside = ns.run(|| ["b0", "b1"].map(Station::open));
        let stations = Stations::new(&ns, "s");
        let mut made = Self {
            _host: host,
            handle,
            stations,
            beside,
            ports,
        };
        made.wait_for_carrier();
        made
    }

    /// Waits until the kernel has noticed that every port has a carrier.
    fn wait_for_carrier(&mut self) {
        let probe = probe();
        lab::wait_until(lab::DEADLINE, "every port of the kernel's bridge", || {
            self.send(0, &probe);
            let heard = self.collect();
            heard[1..].iter().all(|frames| !frames.is_empty())
        });
        for port in self.ports {
            self.flush(port);
        }
    }

    fn set(&self, bridge: LinkMessageBuilder<LinkBridge>) {
        let set = self.handle.link().change(bridge.build());
        lab::block_on(set.execute()).expect("a setting of the bridge");
    }

    fn settle(&mut self) {
        let [one, other] = &mut self.beside;
        for _ in 0..CROSSINGS {
            one.send(&probe());
            lab::wait_until(lab::DEADLINE, "a frame beside the bridge", || {
                !other.collect().is_empty()
            });
        }
    }

    fn flush(&self, port: u32) {
        self.set_port(LinkBridgePort::new(port).fdb_flush());
    }

    fn set_port(&self, port: LinkMessageBuilder<LinkBridgePort>) {
        let set = self.handle.link().set_port(port.build());
        lab::block_on(set.execute()).expect("a setting of a port");
    }

    fn set_entry(&self, mac: [u8; 6], port: u32, kind: Kind) {
        let (state, flags) = match kind {
            Kind::Static => (NeighbourState::Noarp, NeighbourFlags::Controller),
            Kind::Sticky => (
                NeighbourState::Reachable,
                NeighbourFlags::Controller | NeighbourFlags::Sticky,
            ),
        };
        let add = self.handle.neighbours().add_bridge(port, &mac);
        let add = add.state(state).flags(flags).replace();
        lab::block_on(add.execute()).expect("an entry");
    }

    /// The kernel removes an entry only from the port that it is on, which the frames decide.
    fn remove_entry(&self, mac: [u8; 6]) {
        for port in self.ports {
            let mut message = NeighbourMessage::default();
            message.header.family = AddressFamily::Bridge;
            message.header.ifindex = port;
            message.header.flags = NeighbourFlags::Controller;
            let address = NeighbourAttribute::LinkLayerAddress(mac.to_vec());
            message.attributes.push(address);
            let removed = lab::block_on(self.handle.neighbours().del(message).execute());
            if let Err(rtnetlink::Error::NetlinkError(error)) = &removed
                && error.raw_code() == -(Errno::ENOENT as i32)
            {
                continue;
            }
            removed.expect("an entry removed");
        }
    }
}

impl Bridge for KernelBridge {
    fn send(&mut self, port: usize, frame: &[u8]) {
        self.stations.send(port, frame);
    }

    fn change(&mut self, change: Change) {
        self.settle();
        match change {
            Change::Flush(port) => self.flush(self.ports[port]),
            Change::Flag { port, flag, on } => {
                let info = match flag {
                    Flag::Learning => InfoBridgePort::Learning(on),
                    Flag::Flood => InfoBridgePort::UnicastFlood(on),
                    Flag::McastFlood => InfoBridgePort::MulticastFlood(on),
                    Flag::BcastFlood => InfoBridgePort::BroadcastFlood(on),
                    Flag::Isolated => InfoBridgePort::Isolated(on),
                    Flag::Hairpin => InfoBridgePort::HairpinMode(on),
                };
                self.set_port(LinkBridgePort::new(self.ports[port]).append_info_data(info));
            }
            Change::Set { mac, port, kind } => self.set_entry(mac, self.ports[port], kind),
            Change::Remove(mac) => self.remove_entry(mac),
            Change::Ageing(ageing) => {
                let ticks = (ageing.as_millis() / MILLIS_PER_TICK) as u32;
                self.set(LinkBridge::new(BRIDGE).ageing_time(ticks));
            }
            Change::Pass(time) => pass(time),
            Change::Vlans { .. } => unreachable!("this kernel's bridge knows no VLANs"),
        }
    }

    fn collect(&mut self) -> Outputs {
        self.settle();
        self.stations.collect()
    }
}

/// Joins interfaces of a namespace by a bridge of the kernel, which is transparent to tags.
///
/// # Panics
/// When it cannot.
pub fn join(ns: &Namespace, interfaces: &[&str]) {
    let handle = handle(ns);
    lab::block_on(async {
        let bridge = LinkBridge::new(BRIDGE).mcast_snooping(false).up().build();
        handle.link().add(bridge).execute().await
    })
    .expect("a bridge");
    let bridge = ns.link(BRIDGE).index;
    for interface in interfaces {
        let index = ns.link(interface).index;
        lab::block_on(ns.netlink().set_controller(index, bridge)).expect("a port");
    }
}

/// A broadcast of a protocol that nobody speaks.
fn probe() -> Vec<u8> {
    let mut probe = [[0xff; 6], [0x0a, 0, 0, 0, 0, 1]].concat();
    probe.extend([0x88, 0xb6]);
    probe.resize(60, 0);
    probe
}

fn handle(ns: &Namespace) -> rtnetlink::Handle {
    lab::block_on(async {
        let runtime = tokio::runtime::Handle::current();
        let (connection, handle, _) = ns.run(|| {
            let _context = runtime.enter();
            rtnetlink::new_connection().expect("a netlink socket")
        });
        tokio::spawn(connection);
        handle
    })
}

/// Keeps the calling thread on the CPU that it is on.
fn stay_here() {
    let mut here = CpuSet::new();
    let cpu = sched_getcpu().expect("a CPU");
    here.set(cpu).expect("a CPU");
    sched_setaffinity(Pid::from_raw(0), &here).expect("one's own thread");
}
