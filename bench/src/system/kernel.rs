//! What the kernel does by itself: a cable, a bridge, a router with NAT.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use tests::lab::{self, Namespace};

use super::host::{self, Host, Router, SERVER_PORT};
use super::process::Process;
use super::{Held, Path, Refusal, Setup, Shape, System, SystemName, packages, refuse_shape};

/// Two sandboxes, the `eth0` of one being the other end of that of the other.
pub fn veth(setup: &Setup) -> Result<System, Refusal> {
    refuse_shape(setup, &[Shape::Pair])?;
    let lab = lab::Lab::new("bench-veth");
    let (a, b) = (lab.namespace("s0"), lab.namespace("s1"));
    let end = || host::end("eth0", setup);
    let pair = a.netlink().create_veth(end(), end(), b.netns());
    lab::block_on(pair).unwrap_or_else(|e| panic!("a veth pair: {e}"));
    let sandboxes = [a, b];
    for (index, ns) in sandboxes.iter().enumerate() {
        host::finish(ns, &host::address(index as u16).to_string(), setup);
    }
    let held = Held {
        lab: Some(lab),
        ..Held::default()
    };
    let paths = host::paths(&sandboxes, setup);
    Ok(system(SystemName::Veth, paths, held))
}

/// Sandboxes on a bridge, by veths with their default offloads.
pub fn bridge(setup: &Setup) -> Result<System, Refusal> {
    refuse_shape(setup, &[Shape::Pair, Shape::Star, Shape::Mesh])?;
    let host = Host::new("bridge");
    let netlink = host.ns.netlink();
    lab::block_on(netlink.create_bridge("br0")).unwrap_or_else(|e| panic!("br0: {e}"));
    let bridge = host.ns.link("br0").index;
    host.ns.set_up("br0");
    let plug = |index| {
        let ns = host.sandbox(index, setup);
        lab::block_on(netlink.set_controller(host.link(index), bridge))
            .unwrap_or_else(|e| panic!("{} on br0: {e}", host::host_end(index)));
        ns
    };
    let sandboxes: Vec<Namespace> = (0..host::sandboxes(setup)).map(plug).collect();
    let paths = host::paths(&sandboxes, setup);
    let held = Held {
        namespaces: vec![host.ns],
        lab: Some(host.lab),
        ..Held::default()
    };
    Ok(system(SystemName::Bridge, paths, held))
}

/// A router that masquerades what leaves, and publishes the server's port of the sandbox.
pub fn nft(setup: &Setup) -> Result<System, Refusal> {
    refuse_shape(setup, &[Shape::NatOut, Shape::PortForward])?;
    let router = Router::new("nft", setup);
    let host = &router.host;
    host.ns.set_sysctl("net/ipv4/ip_forward", "1");
    let rules = host.lab.dir().join("rules.nft");
    let inside = host::address(0);
    let text = format!(
        "table ip nat {{\n\
         chain out {{ type nat hook postrouting priority srcnat; oifname \"up0\" masquerade; }}\n\
         chain in {{ type nat hook prerouting priority dstnat; iifname \"up0\" \
         meta l4proto {{ tcp, udp }} th dport {SERVER_PORT} dnat to {inside}; }}\n\
         }}\n"
    );
    fs::write(&rules, text).map_err(|e| Refusal::Failed(format!("{}: {e}", rules.display())))?;
    let mut command = Command::new(packages::path("nft"));
    Process::start(
        "nft",
        &host.ns,
        host.lab.dir(),
        command.arg("-f").arg(&rules),
    )
    .and_then(Process::finish)
    .map_err(Refusal::Failed)?;
    Ok(router.system(SystemName::Nft, setup, Vec::new(), BTreeMap::new()))
}

fn system(name: SystemName, paths: Vec<Path>, held: Held) -> System {
    System {
        name,
        paths,
        work: Vec::new(),
        facts: BTreeMap::new(),
        _held: held,
    }
}
