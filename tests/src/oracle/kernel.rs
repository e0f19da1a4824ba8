//! The kernel's bridge with a veth for each port, in namespaces of its own.
//!
//! Everything is sent by one thread that stays on one CPU. The kernel takes what a veth carries
//! through the backlog of the CPU that sent it, first in, first out, so frames keep their order
//! whichever port they enter by, and a frame that crosses a cable beside the bridge often enough
//! tells that all before it are through.

use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;
use rtnetlink::{LinkBridge, LinkMessageBuilder};

use super::station::{Station, Stations, pass, silence};
use crate::bridges::{Bridge, Change, Outputs, PORTS};
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
            let bridge = LinkBridge::new(BRIDGE).mcast_snooping(false).up().build();
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
        let flush = rtnetlink::LinkBridgePort::new(port).fdb_flush().build();
        lab::block_on(self.handle.link().set_port(flush).execute()).expect("a flush");
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
            Change::Ageing(ageing) => {
                let ticks = (ageing.as_millis() / MILLIS_PER_TICK) as u32;
                self.set(LinkBridge::new(BRIDGE).ageing_time(ticks));
            }
            Change::Pass(time) => pass(time),
        }
    }

    fn collect(&mut self) -> Outputs {
        self.settle();
        self.stations.collect()
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
