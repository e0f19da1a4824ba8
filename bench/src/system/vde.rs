//! VDE's switch on TAPs, which are moved into the sandboxes.

use std::collections::BTreeMap;
use std::process::Command;

use tests::lab::{self, Namespace};

use super::host::{self, Host};
use super::process::Process;
use super::{Held, Refusal, Setup, Shape, System, SystemName, Work, packages, refuse_shape};

/// Ports beside those of the sandboxes: it numbers them from 1.
const PORTS_BESIDE: u16 = 1;

/// Starts it.
pub fn start(setup: &Setup) -> Result<System, Refusal> {
    refuse_shape(setup, &[Shape::Pair, Shape::Star, Shape::Mesh])?;
    let host = Host::new("vde");
    let count = host::sandboxes(setup);
    let dir = host.lab.dir();
    let mut command = Command::new(packages::path("vde_switch"));
    command
        .arg("-sock")
        .arg(dir.join("ctl"))
        .arg("-mgmt")
        .arg(dir.join("mgmt"))
        .args(["-numports", &(count + PORTS_BESIDE).to_string()]);
    for index in 0..count {
        command.args(["-tap", &host::host_end(index)]);
    }
    let started = Process::start("vde_switch", &host.ns, dir, &mut command);
    let mut process = started.map_err(Refusal::Failed)?;
    let links = || lab::block_on(host.ns.netlink().links()).unwrap_or_default();
    let last = host::host_end(count - 1);
    let made = process.wait_until("its TAPs", || links().iter().any(|link| link.name == last));
    let pid = process.pid();
    let mut held = Held {
        processes: vec![process],
        ..Held::default()
    };
    made.map_err(Refusal::Failed)?;
    let sandboxes: Vec<Namespace> = (0..count)
        .map(|index| {
            let ns = host.lab.namespace(&format!("s{index}"));
            let end = host::host_end(index);
            let moved = host.ns.netlink().move_to(host.link(index), ns.netns());
            lab::block_on(moved).unwrap_or_else(|e| panic!("{end} into a sandbox: {e}"));
            let netlink = ns.netlink();
            lab::block_on(netlink.rename(ns.link(&end).index, "eth0"))
                .unwrap_or_else(|e| panic!("{end} as eth0: {e}"));
            ns.set_mtu("eth0", setup.mtu.into());
            host::finish(&ns, &host::address(index).to_string(), setup);
            ns
        })
        .collect();
    let paths = host::paths(&sandboxes, setup);
    held.namespaces = vec![host.ns];
    held.lab = Some(host.lab);
    Ok(System {
        name: SystemName::Vde,
        paths,
        work: vec![Work::Process {
            name: "vde_switch".to_owned(),
            pid,
        }],
        facts: BTreeMap::new(),
        _held: held,
    })
}
