//! Docker's userland proxy: a process that listens on the host and copies to the sandbox.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use super::host::{self, HOST_ADDRESS, Router, SERVER_PORT};
use super::process::Process;
use super::{Refusal, Setup, Shape, System, SystemName, packages, refuse_shape};

/// The proxy tells its parent by descriptor 3 that it listens, and closes it; without one it
/// would close a descriptor of its own.
const WITH_DESCRIPTOR_3: &str = "told=$1; shift; exec \"$@\" 3>\"$told\"";
/// What it tells when it listens.
const LISTENING: &str = "0\n";

/// Starts one proxy for TCP and one for UDP, as Docker does for each published port.
pub fn start(setup: &Setup) -> Result<System, Refusal> {
    refuse_shape(setup, &[Shape::PortForward])?;
    let router = Router::new("docker-proxy", setup);
    let mut processes = Vec::new();
    for transport in ["tcp", "udp"] {
        let name = format!("docker-proxy-{transport}");
        let dir = router.host.lab.dir();
        let told = dir.join(format!("{name}.told"));
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", WITH_DESCRIPTOR_3, "sh"])
            .arg(&told)
            .arg(packages::path("docker-proxy"))
            .args(["-proto", transport, "-host-ip", HOST_ADDRESS])
            .args(["-host-port", &SERVER_PORT.to_string()])
            .args(["-container-ip", &host::address(0).to_string()])
            .args(["-container-port", &SERVER_PORT.to_string()]);
        let started = Process::start(&name, &router.host.ns, dir, &mut command);
        let mut process = started.map_err(Refusal::Failed)?;
        let listens = || fs::read_to_string(&told).is_ok_and(|text| text == LISTENING);
        let waited = process.wait_until("it to listen", listens);
        processes.push(process);
        waited.map_err(Refusal::Failed)?;
    }
    Ok(router.system(SystemName::DockerProxy, setup, processes, BTreeMap::new()))
}
