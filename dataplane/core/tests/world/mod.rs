//! A switch in a bottle: topology, tables and a virtual clock, driven through `forward` alone.
//!
//! The picture is always the same, so that a test reads as its frames:
//!
//! | port | what |
//! |---|---|
//! | 1, 2, 3 | a, b, c on network `red`, 10.1.0.0/16 and fd00:1::/64, gateway .1 |
//! | 4 | d on network `blue`, 10.2.0.0/16 |
//! | 5 | e on the internal network `vault`, 10.3.0.0/16 |
//! | 8 | the host link |
//! | 9 | the uplink, 192.0.2.1/24 and 2001:db8::1/64, router at .254 |
//!
//! `add_second_uplink` adds port 10, 100.64.0.1/24, whose router at .254 is another way to everywhere.

#![allow(dead_code)]

pub mod groups;
pub mod packets;
pub mod snooping;

use std::net::IpAddr;
use std::sync::Arc;

use dataplane_core::addr::{DomainId, MacAddr, PortId, Prefix, UplinkId};
use dataplane_core::counters::Counters;
use dataplane_core::fdb::{Fdb, FdbView, Limits};
use dataplane_core::frame::{Frame, FrameBuf, Offload};
use dataplane_core::l2::{self, ProbeKey, StormMeters, StormView};
use dataplane_core::multicast::{Mdb, MdbView};
use dataplane_core::path::{Switch, forward};
use dataplane_core::route::{State, Tables};
use dataplane_core::time::{Duration, Instant};
use dataplane_core::topology::{
    Domain, Gateway, HostLink, Neighbour, Port, Role, Route, Topology, Uplink,
};
use dataplane_core::trace::{Recorder, Step};
use dataplane_core::verdict::{DropReason, Verdict};

pub const RED: DomainId = DomainId(1);
pub const BLUE: DomainId = DomainId(2);
pub const VAULT: DomainId = DomainId(3);
pub const HOST_LINK: PortId = PortId(8);
pub const UPLINK: PortId = PortId(9);
pub const HOST_MAC: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0xee]);
pub const UPLINK_MAC: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0xff]);
pub const ROUTER_MAC: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0xfe]);
pub const SECOND_UPLINK: PortId = PortId(10);
pub const SECOND_UPLINK_MAC: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0xfd]);
pub const SECOND_ROUTER_MAC: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0xfc]);

pub struct World {
    pub sw: Switch,
    pub fdb: Arc<Fdb>,
    pub storm: Arc<StormMeters>,
    pub mdb: Arc<Mdb>,
    pub tables: Arc<Tables>,
    pub now: Instant,
}

/// What a what-if says of a frame: its verdict, the frame then, and who of a group takes it.
type Foretold = (Verdict, FrameBuf, Vec<PortId>);

/// What became of one frame.
#[derive(Debug)]
pub struct Outcome {
    pub verdict: Verdict,
    pub frame: FrameBuf,
    pub steps: Vec<Step>,
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn mac(n: u8) -> MacAddr {
    MacAddr([0x02, 0, 0, 0, 0, n])
}

pub fn gateway_mac(domain: DomainId) -> MacAddr {
    MacAddr([0x02, 0xca, 0x5e, 0, 0, domain.0 as u8])
}

fn domain(id: DomainId, name: &str, v4: &str, v6: Option<&str>) -> Domain {
    let mut domain = Domain::new(id, name);
    domain
        .subnets
        .push(Prefix::new(ip(&format!("{v4}.0.0")), 16));
    let mut addresses = vec![ip(&format!("{v4}.0.1"))];
    if let Some(v6) = v6 {
        domain.subnets.push(Prefix::new(ip(&format!("{v6}::")), 64));
        addresses.push(ip(&format!("{v6}::1")));
    }
    domain.gateway = Some(Gateway {
        mac: gateway_mac(id),
        addresses,
        mtu: 1500,
    });
    domain
}

pub fn topology() -> Topology {
    let mut t = Topology::default();
    t.put_domain(domain(RED, "red", "10.1", Some("fd00:1")));
    t.put_domain(domain(BLUE, "blue", "10.2", None));
    let mut vault = domain(VAULT, "vault", "10.3", None);
    vault.internal = true;
    t.put_domain(vault);
    for (port, id, v4) in [
        (1, RED, "10.1.0.2"),
        (2, RED, "10.1.0.3"),
        (3, RED, "10.1.0.4"),
    ] {
        endpoint(&mut t, port, id, v4);
    }
    endpoint(&mut t, 4, BLUE, "10.2.0.2");
    endpoint(&mut t, 5, VAULT, "10.3.0.2");
    let red = t.domains[RED.index()].as_mut().unwrap();
    for port in 1..=3 {
        let neighbour = Neighbour {
            mac: mac(port),
            port: PortId(port.into()),
        };
        red.neighbours
            .insert(ip(&format!("fd00:1::{}", port + 1)), neighbour);
    }
    put_port(&mut t, HOST_LINK, "host", Role::HostLink);
    put_port(&mut t, UPLINK, "eth9", Role::Uplink(UplinkId(0)));
    t.host_link = Some(HostLink {
        port: HOST_LINK,
        mac: HOST_MAC,
    });
    let addresses = vec![ip("192.0.2.1"), ip("2001:db8::1")];
    t.local_addresses.extend(addresses.iter().copied());
    let neighbours = [
        (ip("192.0.2.254"), ROUTER_MAC),
        (ip("192.0.2.7"), mac(7)),
        (ip("2001:db8::fe"), ROUTER_MAC),
    ];
    t.uplinks.push(Uplink {
        id: UplinkId(0),
        name: "eth9".into(),
        port: UPLINK,
        mac: UPLINK_MAC,
        mtu: 1500,
        addresses,
        neighbours: neighbours.into_iter().collect(),
        peer: None,
    });
    let mut route = |prefix: &str, len, uplink: Option<u16>, next_hop: Option<&str>| {
        t.routes.push(Route {
            prefix: Prefix::new(ip(prefix), len),
            uplink: uplink.map(UplinkId),
            next_hop: next_hop.map(ip),
            source: None,
        });
    };
    route("192.0.2.0", 24, Some(0), None);
    route("0.0.0.0", 0, Some(0), Some("192.0.2.254"));
    route("203.0.113.0", 24, None, None);
    route("2001:db8::", 64, Some(0), None);
    route("::", 0, Some(0), Some("2001:db8::fe"));
    t.finish();
    t
}

/// A second provider: the default route by it counts less than the first one's.
pub fn add_second_uplink(t: &mut Topology) {
    put_port(t, SECOND_UPLINK, "eth10", Role::Uplink(UplinkId(1)));
    t.local_addresses.insert(ip("100.64.0.1"));
    let neighbour = (ip("100.64.0.254"), SECOND_ROUTER_MAC);
    t.uplinks.push(Uplink {
        id: UplinkId(1),
        name: "eth10".into(),
        port: SECOND_UPLINK,
        mac: SECOND_UPLINK_MAC,
        mtu: 1500,
        addresses: vec![ip("100.64.0.1")],
        neighbours: [neighbour].into_iter().collect(),
        peer: None,
    });
    for (prefix, len, next_hop) in [
        ("100.64.0.0", 24, None),
        ("0.0.0.0", 0, Some(ip("100.64.0.254"))),
    ] {
        t.routes.push(Route {
            prefix: Prefix::new(ip(prefix), len),
            uplink: Some(UplinkId(1)),
            next_hop,
            source: None,
        });
    }
}

fn put_port(t: &mut Topology, id: PortId, name: &str, role: Role) {
    t.put_port(Port::new(id, name, role));
}

fn endpoint(t: &mut Topology, port: u8, id: DomainId, address: &str) {
    put_port(
        t,
        PortId(port.into()),
        &format!("p{port}"),
        Role::Bridge(id),
    );
    let neighbour = Neighbour {
        mac: mac(port),
        port: PortId(port.into()),
    };
    let domain = t.domains[id.index()].as_mut().unwrap();
    domain.neighbours.insert(ip(address), neighbour);
}

/// What the key of loop probes is made from.
pub const PROBE_SEED: u64 = 1;

impl World {
    pub fn new() -> Self {
        Self::with(topology())
    }

    pub fn with(topology: Topology) -> Self {
        let fdb = Fdb::new(Limits::default(), 1);
        let mdb = Mdb::new(1);
        let tables = Tables::new(1);
        let storm = StormMeters::new();
        let sw = Switch {
            topology: Arc::new(topology),
            fdb: FdbView::live(Arc::clone(&fdb)),
            bridge: l2::State::new(ProbeKey::new(PROBE_SEED)),
            storm: StormView::live(Arc::clone(&storm)),
            groups: MdbView::live(Arc::clone(&mdb)),
            gateway: State::live(&tables),
            counters: Arc::new(Counters::default()),
        };
        Self {
            sw,
            fdb,
            storm,
            mdb,
            tables,
            now: Instant::from_secs(1_000),
        }
    }

    /// Changes the topology as the control plane would.
    pub fn edit(&mut self, change: impl FnOnce(&mut Topology)) {
        let mut topology = Topology::clone(&self.sw.topology);
        change(&mut topology);
        topology.generation += 1;
        topology.finish();
        self.sw.topology = Arc::new(topology);
        self.sw.fdb.begin_batch();
    }

    pub fn wait(&mut self, seconds: u64) {
        self.now = self.now + Duration::from_secs(seconds);
    }

    pub fn send(&mut self, port: u16, bytes: &[u8]) -> Outcome {
        self.send_offloaded(port, bytes, Offload::NONE)
    }

    /// Sends one frame and checks the law of frames.
    pub fn send_offloaded(&mut self, port: u16, bytes: &[u8], offload: Offload) -> Outcome {
        let mut frame = FrameBuf::from_bytes(bytes);
        frame.offload = offload;
        let mut recorder = Recorder::new();
        self.sw.fdb.begin_batch();
        let before = self.sw.counters.judged();
        let foretold = self.foretell(port, bytes, offload);
        let verdict = forward(
            &mut self.sw,
            &mut Frame::new(PortId(port), &mut frame),
            self.now,
            &mut recorder,
        );
        let counters = &self.sw.counters;
        assert_eq!(counters.judged(), before + 1, "one verdict each");
        assert_eq!(
            counters.judged(),
            counters.rx.get() + counters.released.get(),
            "law of frames"
        );
        let steps = recorder.take();
        assert_eq!(
            steps.last(),
            Some(&Step::Verdict(verdict)),
            "the trace ends with the verdict"
        );
        self.check_foretold(&foretold, verdict, &frame);
        Outcome {
            verdict,
            frame,
            steps,
        }
    }

    /// What a what-if says of the frame: the same code on overlays of the live tables, which must
    /// leave them as they are.
    fn foretell(&self, port: u16, bytes: &[u8], offload: Offload) -> Foretold {
        let state = || {
            let (fdb, nat) = (self.fdb.state_hash(), self.tables.nat.state_hash());
            let flows = self.tables.flows.state_hash();
            (fdb, self.mdb.state_hash(), nat, flows)
        };
        let before = state();
        let mut what_if = Switch {
            topology: Arc::clone(&self.sw.topology),
            fdb: FdbView::overlay(Arc::clone(&self.fdb)),
            bridge: l2::State::new(ProbeKey::new(PROBE_SEED)),
            storm: StormView::overlay(Arc::clone(&self.storm)),
            groups: MdbView::overlay(Arc::clone(&self.mdb)),
            gateway: State::overlay(&self.tables),
            counters: Arc::new(Counters::default()),
        };
        let mut frame = FrameBuf::from_bytes(bytes);
        frame.offload = offload;
        let verdict = forward(
            &mut what_if,
            &mut Frame::new(PortId(port), &mut frame),
            self.now,
            &mut Recorder::new(),
        );
        assert_eq!(state(), before, "asking changed something");
        let takers = what_if.groups.takers().to_vec();
        (verdict, frame, takers)
    }

    /// Holds the answer against what happened. Two things are a worker's alone to know: how many
    /// frames it holds, and how many errors it has sent this second.
    fn check_foretold(&self, foretold: &Foretold, verdict: Verdict, frame: &FrameBuf) {
        let waits = verdict == Verdict::Drop(DropReason::NextHopUnresolved)
            || matches!(foretold.0, Verdict::Held(_));
        if waits || self.sw.counters.errors_suppressed.get() > 0 {
            return;
        }
        assert_eq!(foretold.0, verdict, "foretold and happened");
        assert_eq!(foretold.1.bytes(), frame.bytes(), "foretold and happened");
        if matches!(verdict, Verdict::Multicast(..)) {
            assert_eq!(foretold.2, self.sw.groups.takers(), "foretold and happened");
        }
    }

    /// The ports that a flooded frame reaches.
    pub fn flood_ports(&self, outcome: &Outcome, ingress: u16) -> Vec<u16> {
        let Verdict::Flooded(domain, vlan, class) = outcome.verdict else {
            panic!("not flooded: {:?}", outcome.verdict);
        };
        self.sw
            .topology
            .flood_set(domain, vlan, PortId(ingress), class)
            .map(|port| port.0)
            .collect()
    }

    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.sw.counters.dropped(reason)
    }
}
