//! The real dataplane on real devices, a network for each of several scripts at a time.

use std::thread;
use std::time::Instant;

use dataplane::{Config, Dataplane};
use dataplane_core::fdb::MOVES_PER_SECOND_MAX;
use dataplane_core::topology::Topology;
use dataplane_port::PortIo;
use dataplane_port::packet::{PacketBuilder, Rings};
use dataplane_port::tap::TapBuilder;
use dataplane_port::xdp::XdpSocket;

use super::station::{Stations, pass, silence};
use crate::bridges::bottle::{change_table, port_id, set_ageing, set_flag, set_vlans, topology};
use crate::bridges::script::{Op, Script};
use crate::bridges::{Change, Outputs, PORTS};
use crate::lab::{self, Lab, Namespace};

/// How the ports are plugged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Devices {
    /// TAPs with virtio-net headers.
    Taps,
    /// Veths, whose ends the switch holds by AF_PACKET.
    Veths,
    /// Veths, whose ends the switch holds by AF_XDP.
    VethsByXdp,
}

/// Networks of the switch. A script is played to each at the same time, so that it takes one wait
/// for a frame of each until all have their verdicts.
pub const LANES: usize = 8;

/// Moves in a second from which on the next scripts wait for the next second: a worker lets only so
/// many through, and a script makes no more than the rest.
const MOVES_PER_SECOND: u64 = MOVES_PER_SECOND_MAX as u64 / 2;

/// A switch with [`LANES`] networks of [`PORTS`] ports.
#[derive(Debug)]
pub struct Causeway {
    dataplane: Dataplane,
    topology: Topology,
    lanes: Vec<Stations>,
    /// Frames that were sent so far.
    sent: u64,
    /// The second in which moves are counted, and how many there had been before.
    moved: (u32, u64),
    _namespaces: [Namespace; 2],
}

impl Causeway {
    /// A switch that has heard nobody.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(lab: &Lab, devices: Devices, workers: usize) -> Self {
        let config = Config {
            workers,
            ..Config::default()
        };
        let dataplane = Dataplane::start(&config).expect("a dataplane");
        let [host, ns] = lab.namespaces(["host", "stations"]);
        silence(&host);
        silence(&ns);
        let lanes = (0..LANES).map(|lane| {
            for port in 0..PORTS {
                let (near, far) = (format!("p{lane}.{port}"), format!("s{lane}.{port}"));
                let queues = match devices {
                    Devices::Taps => taps(&ns, &far, workers),
                    Devices::Veths => veth(lab, (&host, &near), (&ns, &far), workers),
                    Devices::VethsByXdp => xdp(lab, (&host, &near), (&ns, &far)),
                };
                let added = dataplane.add_port(port_id(lane, port), queues);
                added.expect("a free port id");
            }
            Stations::new(&ns, &format!("s{lane}."))
        });
        let lanes = lanes.collect();
        let made = Self {
            lanes,
            dataplane,
            topology: topology(LANES),
            sent: 0,
            moved: (0, 0),
            _namespaces: [host, ns],
        };
        made.install();
        made
    }

    /// Plays scripts, up to [`LANES`] at the same time; what each made leave.
    ///
    /// # Panics
    /// When a frame gets no verdict.
    pub fn play(&mut self, scripts: &[Script]) -> Vec<Outputs> {
        assert!(scripts.len() <= LANES, "more scripts than networks");
        self.pace();
        let longest = scripts.iter().map(|script| script.ops.len()).max();
        for step in 0..longest.unwrap_or_default() {
            for (lane, script) in scripts.iter().enumerate() {
                match script.ops.get(step) {
                    Some(Op::Send { port, frame }) => {
                        self.lanes[lane].send(*port, frame);
                        self.sent += 1;
                    }
                    Some(Op::Change(change)) => self.change(lane, *change),
                    None => {}
                }
            }
            self.settle();
            // The time that scripts let pass passes for all of them at once.
            let passes = scripts
                .iter()
                .filter_map(|script| match script.ops.get(step) {
                    Some(Op::Change(Change::Pass(time))) => Some(*time),
                    _ => None,
                });
            passes.max().into_iter().for_each(pass);
        }
        let stats = self.dataplane.stats();
        assert_eq!(stats.move_refused, 0, "stations moved too fast");
        let played = self.lanes.iter_mut().take(scripts.len());
        played.map(Stations::collect).collect()
    }

    fn change(&mut self, lane: usize, change: Change) {
        match change {
            Change::Flag { port, flag, on } => {
                set_flag(&mut self.topology, port_id(lane, port), flag, on);
                self.install();
            }
            Change::Flush(_) | Change::Set { .. } | Change::Remove(_) => {
                change_table(self.dataplane.fdb(), lane, change, self.dataplane.now());
            }
            Change::Ageing(ageing) => {
                set_ageing(&mut self.topology, lane, ageing);
                self.install();
            }
            Change::Vlans { port, vlans } => {
                set_vlans(&mut self.topology, port_id(lane, port), vlans);
                self.install();
            }
            Change::Pass(_) => {}
        }
    }

    fn install(&self) {
        let installed = self.dataplane.install(self.topology.clone());
        installed.expect("workers that answer");
    }

    /// Waits until every frame has its verdict and every copy its end.
    fn settle(&self) {
        let deadline = Instant::now() + lab::DEADLINE;
        loop {
            let stats = self.dataplane.stats();
            let idle = stats.ports.iter().all(|port| port.queued == 0);
            if stats.rx == self.sent && idle && stats.check_laws().is_ok() {
                return;
            }
            assert!(Instant::now() < deadline, "a frame without a verdict");
            // No pause: there are as many waits as frames of a script, each for microseconds.
            thread::yield_now();
        }
    }

    /// Waits for the next second when too many stations have moved in this one.
    fn pace(&mut self) {
        let now = |dataplane: &Dataplane| dataplane.now().second();
        let moved = self.dataplane.stats().moved;
        if self.moved.0 == now(&self.dataplane) && moved - self.moved.1 >= MOVES_PER_SECOND {
            let dataplane = &self.dataplane;
            lab::wait_until(lab::DEADLINE, "the next second", || {
                now(dataplane) != self.moved.0
            });
        }
        if self.moved.0 != now(&self.dataplane) {
            self.moved = (now(&self.dataplane), moved);
        }
    }
}

fn taps(ns: &Namespace, name: &str, queues: usize) -> Vec<Box<dyn PortIo>> {
    let taps = ns.run(|| TapBuilder::new(name).queues(queues).create());
    let taps = taps.unwrap_or_else(|error| panic!("{name}: {error}"));
    let index = ns.link(name).index;
    lab::block_on(ns.netlink().set_noqueue(index)).expect("noqueue");
    ns.set_up(name);
    let boxed = |tap| Box::new(tap) as Box<dyn PortIo>;
    taps.into_iter().map(boxed).collect()
}

fn veth(
    lab: &Lab,
    (host, near): (&Namespace, &str),
    (ns, far): (&Namespace, &str),
    queues: usize,
) -> Vec<Box<dyn PortIo>> {
    lab.cable(host, near, ns, far);
    let sockets = host.run(|| {
        PacketBuilder::new(near)
            .queues(queues)
            .rings(Rings::Wanted)
            .open()
    });
    let sockets = sockets.unwrap_or_else(|error| panic!("{near}: {error}"));
    let boxed = |socket| Box::new(socket) as Box<dyn PortIo>;
    sockets.into_iter().map(boxed).collect()
}

fn xdp(
    lab: &Lab,
    (host, near): (&Namespace, &str),
    (ns, far): (&Namespace, &str),
) -> Vec<Box<dyn PortIo>> {
    lab.cable(host, near, ns, far);
    let socket = host.run(|| XdpSocket::open(near));
    let socket = socket.unwrap_or_else(|error| panic!("{near}: {error}"));
    vec![Box::new(socket)]
}
