//! A learning switch between two TAP devices, `sw0` and `sw1`, by the `tun-tap` crate. As root:
//! `unshare -n cargo run -p dataplane --example two_ports`

use std::error::Error;
use std::time::Duration;

use dataplane::{Config, Dataplane};
use dataplane_core::addr::{DomainId, PortId};
use dataplane_core::topology::{Domain, Port, Role, Topology};
use dataplane_port::tap_plain::PlainTap;

fn main() -> Result<(), Box<dyn Error>> {
    let dataplane = Dataplane::start(&Config {
        workers: 1,
        ..Config::default()
    })?;
    let network = DomainId(0);
    let mut topology = Topology::default();
    topology.put_domain(Domain::new(network, "lab"));
    for (id, name) in [(PortId(0), "sw0"), (PortId(1), "sw1")] {
        dataplane.add_port(id, vec![Box::new(PlainTap::create(name)?)])?;
        topology.put_port(Port::new(id, name, Role::Bridge(network)));
    }
    topology.finish();
    dataplane.install(topology)?;
    println!("sw0 and sw1 are switched; bring them up with `ip link set sw0 up`, Ctrl-C ends");
    loop {
        let _ = dataplane.notices().recv_timeout(Duration::from_secs(5));
        let stats = dataplane.stats();
        println!("{} frames, {} stations", stats.rx, dataplane.fdb().len());
    }
}
