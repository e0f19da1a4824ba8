//! The core alone: scripts through `forward` in memory.

use std::sync::Arc;

use dataplane_core::addr::{DomainId, MacAddr, PortId, VlanId};
use dataplane_core::counters::Counters;
use dataplane_core::fdb::{Fdb, FdbKey, FdbKind, FdbView, Limits};
use dataplane_core::frame::{Frame, FrameBuf, Offload};
use dataplane_core::l2::{
    self, FloodClass, Form, PortFlags, ProbeKey, StormMeters, StormView, TRANSPARENT, VLAN_DEFAULT,
    reshape,
};
use dataplane_core::multicast::{Mdb, MdbView};
use dataplane_core::path::{Switch, forward};
use dataplane_core::route::{State, Tables};
use dataplane_core::time::{Duration, Instant};
use dataplane_core::topology::{Domain, Multicast, Port, Role, Topology};
use dataplane_core::trace::Off;
use dataplane_core::verdict::Verdict;

use super::vlan::Vlans;
use super::{Bridge, Change, Flag, Kind, Outputs, PORTS};

/// The picture of every Causeway that is compared: so many networks of [`PORTS`] ports.
pub fn topology(networks: usize) -> Topology {
    let mut topology = Topology::default();
    for network in 0..networks {
        let id = DomainId(network as u16);
        topology.put_domain(Domain::new(id, &format!("net{network}")));
        for port in 0..PORTS {
            let (number, name) = (port_id(network, port), format!("p{network}.{port}"));
            topology.put_port(Port::new(number, &name, Role::Bridge(id)));
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

/// Switches a flag of a network's port.
pub fn set_flag(topology: &mut Topology, id: PortId, flag: Flag, on: bool) {
    let meant = match flag {
        Flag::Learning => PortFlags::LEARNING,
        Flag::Flood => PortFlags::FLOOD,
        Flag::McastFlood => PortFlags::MCAST_FLOOD,
        Flag::BcastFlood => PortFlags::BCAST_FLOOD,
        Flag::Isolated => PortFlags::ISOLATED,
        Flag::Hairpin => PortFlags::HAIRPIN,
    };
    if let Some(Some(port)) = topology.ports.get_mut(id.index()) {
        port.flags = match on {
            true => port.flags.with(meant),
            false => port.flags.without(meant),
        };
    }
    topology.finish();
}

/// Puts a network's port into VLANs, which count from then on.
pub fn set_vlans(topology: &mut Topology, id: PortId, vlans: Vlans) {
    if let Some(Some(port)) = topology.ports.get_mut(id.index()) {
        port.flags = port.flags.with(PortFlags::FILTERING);
        port.profile_mut().vlans = Some(Box::new(vlans.of_core()));
        if let Role::Bridge(domain) = port.role
            && let Some(Some(domain)) = topology.domains.get_mut(domain.index())
        {
            domain.gateway_vlan = VLAN_DEFAULT;
        }
    }
    topology.finish();
}

/// Makes a change that is one of a table.
pub fn change_table(fdb: &Fdb, network: usize, change: Change, now: Instant) {
    let domain = DomainId(network as u16);
    let key = |mac| FdbKey::new(domain, VlanId(0), MacAddr(mac));
    match change {
        Change::Flush(port) => fdb.flush_port(port_id(network, port)),
        Change::Set { mac, port, kind } => {
            let kind = match kind {
                Kind::Static => FdbKind::Static,
                Kind::Sticky => FdbKind::Sticky,
            };
            let set = fdb.set(key(mac), port_id(network, port), kind, now);
            set.unwrap();
        }
        Change::Remove(mac) => {
            fdb.remove(domain, VlanId(0), MacAddr(mac));
        }
        Change::Flag { .. } | Change::Ageing(_) | Change::Pass(_) | Change::Vlans { .. } => {}
    }
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
        fdb.open_vlans(DomainId(0));
        Self {
            sw: Switch {
                topology: Arc::new(topology(1)),
                fdb: FdbView::live(Arc::clone(&fdb)),
                bridge: l2::State::new(ProbeKey::new(1)),
                storm: StormView::live(StormMeters::new()),
                groups: MdbView::live(Mdb::new(1)),
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
    /// A core whose network snoops groups.
    pub fn snooping() -> Self {
        let mut made = Self::default();
        for domain in made.topology().domains.iter_mut().flatten() {
            domain.multicast = Multicast::Snooped;
        }
        made
    }

    fn topology(&mut self) -> &mut Topology {
        Arc::make_mut(&mut self.sw.topology)
    }

    fn deliver(&mut self, to: PortId) {
        self.outputs[usize::from(to.0)].push(self.buf.bytes().to_vec());
    }

    /// Delivers to every port that takes a flooded frame, as a worker does: in the one form before
    /// the other.
    fn flood(&mut self, (domain, vlan): (DomainId, VlanId), ingress: PortId, class: FloodClass) {
        let topology = Arc::clone(&self.sw.topology);
        let takers = || topology.flood_set(domain, vlan, ingress, class);
        if vlan == TRANSPARENT {
            takers().for_each(|to| self.deliver(to));
            return;
        }
        for form in Form::ALL {
            assert!(reshape(&mut self.buf, vlan, form), "room for a tag");
            for to in takers() {
                if topology.port(to).and_then(|port| port.form(vlan)) == Some(form) {
                    self.deliver(to);
                }
            }
        }
    }
}

impl Bridge for Bottle {
    fn send(&mut self, port: usize, frame: &[u8]) {
        self.buf.copy_from(frame, Offload::NONE);
        let ingress = port_id(0, port);
        let mut frame = Frame::new(ingress, &mut self.buf);
        let verdict = forward(&mut self.sw, &mut frame, self.now, &mut Off);
        match verdict {
            Verdict::Bridged(to) => self.deliver(to),
            Verdict::Flooded(domain, vlan, class) => self.flood((domain, vlan), ingress, class),
            Verdict::Multicast(_, TRANSPARENT) => {
                for to in self.sw.groups.takers().to_vec() {
                    self.deliver(to);
                }
            }
            Verdict::Drop(_) => {}
            other => panic!("a bridge without a gateway has no such verdict: {other}"),
        }
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Flag { port, flag, on } => {
                set_flag(self.topology(), port_id(0, port), flag, on);
            }
            Change::Ageing(ageing) => set_ageing(self.topology(), 0, ageing),
            Change::Vlans { port, vlans } => set_vlans(self.topology(), port_id(0, port), vlans),
            Change::Pass(time) => self.now = self.now + time,
            Change::Flush(_) | Change::Set { .. } | Change::Remove(_) => {
                change_table(&self.fdb, 0, change, self.now);
            }
        }
        self.sw.fdb.begin_batch();
    }

    fn collect(&mut self) -> Outputs {
        // A worker lets only so many moves through in a second, and a script has fewer.
        self.now = self.now + Duration::from_secs(1);
        std::mem::take(&mut self.outputs)
    }
}
