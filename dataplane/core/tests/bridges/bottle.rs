//! The core alone: scripts through `forward` in memory.

use std::sync::Arc;

use dataplane_core::addr::{DomainId, PortId, VlanId};
use dataplane_core::counters::Counters;
use dataplane_core::fdb::{Fdb, FdbView, Limits};
use dataplane_core::frame::{Frame, FrameBuf, Offload};
use dataplane_core::path::{Switch, forward};
use dataplane_core::route::{State, Tables};
use dataplane_core::time::{Duration, Instant};
use dataplane_core::topology::{Domain, Port, Role, Topology};
use dataplane_core::trace::Off;
use dataplane_core::verdict::Verdict;

use super::{Bridge, Change, Outputs, PORTS};

/// The picture of every Causeway that is compared: so many networks of [`PORTS`] ports.
pub fn topology(networks: usize) -> Topology {
    let mut topology = Topology::default();
    for network in 0..networks {
        let id = DomainId(network as u16);
        topology.put_domain(Domain::new(id, &format!("net{network}")));
        for port in 0..PORTS {
            topology.put_port(Port {
                id: port_id(network, port),
                name: format!("p{network}.{port}").into(),
                role: Role::Bridge(id),
                up: true,
                mtu: 1_500,
            });
        }
    }
    topology.finish();
    topology
}

/// Has the stations of a network forgotten when they were not heard for so long.
pub fn set_ageing(topology: &mut Topology, network: usize, ageing: Duration) {
    if let Some(Some(domain)) = topology.domains.get_mut(network) {
        domain.ageing = ageing;
    }
    topology.finish();
}

/// The switch port of a network's port.
pub fn port_id(network: usize, port: usize) -> PortId {
    PortId((network * PORTS + port) as u16)
}

/// A core with its tables.
#[derive(Debug)]
pub struct Bottle {
    sw: Switch,
    fdb: Arc<Fdb>,
    now: Instant,
    buf: FrameBuf,
    outputs: Outputs,
}

impl Default for Bottle {
    fn default() -> Self {
        let fdb = Fdb::new(Limits::default(), 1);
        Self {
            sw: Switch {
                topology: Arc::new(topology(1)),
                fdb: FdbView::live(Arc::clone(&fdb)),
                gateway: State::live(&Tables::new(1)),
                counters: Arc::new(Counters::default()),
            },
            fdb,
            now: Instant::from_secs(10),
            buf: FrameBuf::new(),
            outputs: Outputs::default(),
        }
    }
}

impl Bottle {
    fn deliver(&mut self, to: PortId, ingress: PortId, verdict: Verdict) {
        assert_ne!(to, ingress, "never back to ingress: {verdict}");
        self.outputs[usize::from(to.0)].push(self.buf.bytes().to_vec());
    }
}

impl Bridge for Bottle {
    fn send(&mut self, port: usize, frame: &[u8]) {
        self.buf.copy_from(frame, Offload::NONE);
        let ingress = port_id(0, port);
        let mut frame = Frame::new(ingress, &mut self.buf);
        let verdict = forward(&mut self.sw, &mut frame, self.now, &mut Off);
        match verdict {
            Verdict::Bridged(to) => self.deliver(to, ingress, verdict),
            Verdict::Flooded(domain, VlanId(_)) => {
                let topology = Arc::clone(&self.sw.topology);
                for to in topology.flood_set(domain, ingress) {
                    self.deliver(to, ingress, verdict);
                }
            }
            Verdict::Drop(_) => {}
            other => panic!("a bridge without a gateway has no such verdict: {other}"),
        }
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Flush(port) => self.fdb.flush_port(port_id(0, port)),
            Change::Ageing(ageing) => {
                let mut topology = topology(1);
                set_ageing(&mut topology, 0, ageing);
                self.sw.topology = Arc::new(topology);
            }
            Change::Pass(time) => self.now = self.now + time,
        }
        self.sw.fdb.begin_batch();
    }

    fn collect(&mut self) -> Outputs {
        // A worker lets only so many moves through in a second, and a script has fewer.
        self.now = self.now + Duration::from_secs(1);
        std::mem::take(&mut self.outputs)
    }
}
