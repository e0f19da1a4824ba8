//! pasta: a process that speaks for a sandbox by sockets of the host.

use std::collections::BTreeMap;
use std::process::Command;

use super::host::{self, GATEWAY, HOST_ADDRESS, OUTSIDE_ADDRESS, Router, SERVER_PORT};
use super::process::Process;
use super::{Refusal, Setup, Shape, System, SystemName, offload, packages, refuse_shape};

/// MTU inside: its own default. It ends every TCP connection itself, so the MTU outside, which is
/// the one of the setup, does not bind it, and nobody runs it with a small one.
const MTU: u32 = 65_520;
/// It gives up its right to look into other processes before it opens the sandbox's namespace, so
/// it is handed over as a descriptor.
const WITH_DESCRIPTOR_9: &str = "exec 9<\"$1\"; shift; exec \"$@\"";

/// Starts it.
pub fn start(setup: &Setup) -> Result<System, Refusal> {
    refuse_shape(setup, &[Shape::NatOut, Shape::PortForward])?;
    let router = Router::without_inside("pasta", setup);
    let Router { host, inside, .. } = &router;
    host.ns.add_default_route("up0", OUTSIDE_ADDRESS);
    let published = format!("{HOST_ADDRESS}/{SERVER_PORT}");
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", WITH_DESCRIPTOR_9, "sh"])
        .arg(inside.path())
        .arg(packages::path("pasta"))
        .args(["--foreground", "--ipv4-only", "--config-net", "--no-map-gw"])
        .args(["--address", &host::address(0).to_string()])
        .args(["--netmask", "16", "--gateway", GATEWAY])
        .args(["--ns-ifname", "eth0", "--mtu", &MTU.to_string()])
        .args(["--tcp-ports", &published, "--udp-ports", &published])
        .args(["--tcp-ns", "none", "--udp-ns", "none"])
        .arg("--log-file")
        .arg(host.lab.dir().join("pasta.own.log"))
        .args(["--runas", "0:0", "--netns", "/proc/self/fd/9"]);
    let started = Process::start("pasta", &host.ns, host.lab.dir(), &mut command);
    let mut process = started.map_err(Refusal::Failed)?;
    let links = || tests::lab::block_on(inside.netlink().links()).unwrap_or_default();
    let made = process.wait_until("its interface", || {
        links().iter().any(|link| link.name == "eth0" && link.up)
    });
    made.map_err(Refusal::Failed)?;
    inside.set_mtu("eth0", MTU);
    if !setup.gso {
        offload::turn_off(inside, "eth0", &offload::SEGMENTATION);
    }
    let facts = BTreeMap::from([("mtu inside".to_owned(), MTU.to_string())]);
    Ok(router.system(SystemName::Pasta, setup, vec![process], facts))
}
