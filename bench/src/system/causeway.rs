//! Causeway in this process: the core and its workers on real devices.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use dataplane::{Config, Waiting};
use dataplane_core::nat::Transport;
use dataplane_port::BATCH_MAX;
use tests::lab;
use tests::rig::{Backend, HOST_ADDRESS, Rig};

use super::host::{self, GATEWAY, SERVER_PORT};
use super::{
    BackendName, Held, Path, Refusal, Setup, Shape, System, SystemName, WaitingMode, Work,
};

/// How long adaptive workers look for frames before they sleep: the product's default.
pub const SPIN: Duration = Duration::from_micros(50);
/// Names of the dataplane's threads begin so.
const WORKERS: &str = "worker-";

/// Starts it; adaptive workers look for frames for `spin` before they sleep.
pub fn start(setup: &Setup, spin: Duration) -> Result<System, Refusal> {
    if setup
        .batch
        .is_some_and(|frames| !(1..=BATCH_MAX).contains(&frames.into()))
    {
        let reason = format!("batches have 1 to {BATCH_MAX} frames");
        return Err(Refusal::Impossible(reason));
    }
    let mut rig = Rig::new("bench-causeway", &config(setup, spin));
    let backend = backend(setup);
    let sandboxes: Vec<_> = (0..host::sandboxes(setup))
        .map(|index| {
            let address = format!("{}/16", host::address(index));
            let sandbox = rig.sandbox(&format!("s{index}"), &address, backend, setup.mtu);
            if !setup.gso {
                super::offload::turn_off(&sandbox.ns, "eth0", &super::offload::SEGMENTATION);
            }
            sandbox
        })
        .collect();
    let paths = match setup.shape {
        Shape::Pair | Shape::Star | Shape::Mesh => {
            let namespaces: Vec<_> = sandboxes.into_iter().map(|sandbox| sandbox.ns).collect();
            host::paths(&namespaces, setup)
        }
        Shape::NatOut | Shape::PortForward => {
            let inside = &sandboxes[0];
            inside.ns.add_default_route("eth0", GATEWAY);
            rig.add_gateway(&[GATEWAY], setup.mtu);
            for transport in [Transport::Tcp, Transport::Udp] {
                rig.publish(transport, SERVER_PORT, inside, SERVER_PORT);
            }
            let outside = rig.add_uplink(setup.mtu);
            let server = |address| SocketAddr::new(address, SERVER_PORT);
            vec![match setup.shape {
                Shape::PortForward => Path {
                    from: outside.ns,
                    to: inside.ns.clone(),
                    listen: server(inside.address),
                    connect: server(lab::ip(HOST_ADDRESS)),
                },
                _ => Path {
                    from: inside.ns.clone(),
                    to: outside.ns,
                    listen: server(outside.address),
                    connect: server(outside.address),
                },
            }]
        }
    };
    Ok(System {
        name: SystemName::Causeway,
        paths,
        work: vec![Work::Threads {
            name: "causeway".to_owned(),
            prefix: WORKERS.to_owned(),
        }],
        facts: BTreeMap::from([
            ("workers".to_owned(), setup.workers.to_string()),
            ("backend".to_owned(), format!("{:?}", setup.backend)),
            ("waiting".to_owned(), format!("{:?}", setup.waiting)),
        ]),
        _held: Held {
            _rig: Some(Box::new(rig)),
            ..Held::default()
        },
    })
}

fn config(setup: &Setup, spin: Duration) -> Config {
    Config {
        workers: setup.workers.into(),
        waiting: match setup.waiting {
            WaitingMode::Sleep => Waiting::Sleep,
            WaitingMode::Adaptive => Waiting::Adaptive { spin },
            WaitingMode::Always => Waiting::Always,
        },
        batch_frames_max: setup.batch.map_or(BATCH_MAX, usize::from),
        ..Config::default()
    }
}

const fn backend(setup: &Setup) -> Backend {
    match setup.backend {
        BackendName::Tap => Backend::Tap,
        BackendName::Packet => Backend::Packet,
        BackendName::PacketCalls => Backend::PacketCalls,
        BackendName::Xdp => Backend::Xdp,
        BackendName::TapPlain => Backend::TapPlain,
    }
}
