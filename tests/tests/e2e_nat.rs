//! Through the gateway on a network card that the host shares: out by SNAT, in by a published
//! port, with the host's own stack guarded from answering for us.

use dataplane::Config;
use dataplane_core::nat::Transport;
use tests::lab;
use tests::rig::{Backend, HOST_ADDRESS, Outside, Rig, Sandbox, bulk_size, transfer};

const GATEWAY: &str = "10.0.0.1";
const MTUS: [u16; 2] = [1500, 9000];

fn rig(backend: Backend, mtu: u16) -> (Rig, Sandbox, Outside) {
    let mut rig = Rig::new(
        "nat",
        &Config {
            workers: 2,
            ..Config::default()
        },
    );
    let inside = rig.sandbox("inside", "10.0.0.2/24", backend, mtu);
    inside.ns.add_default_route("eth0", GATEWAY);
    rig.add_gateway(&[GATEWAY], mtu);
    rig.publish(Transport::Tcp, 8080, &inside, 80);
    let outside = rig.add_uplink(mtu);
    (rig, inside, outside)
}

/// Covers: 55
#[test]
fn tcp_leaves_by_the_hosts_address() {
    if !lab::require_root("e2e_nat") {
        return;
    }
    for backend in Backend::ALL {
        for mtu in MTUS {
            let (rig, inside, outside) = rig(backend, mtu);
            for congestion in ["bbr", "cubic"] {
                let listen = (outside.address, 5001).into();
                let done = transfer(
                    &inside.ns,
                    &outside.ns,
                    listen,
                    listen,
                    bulk_size(),
                    Some(congestion),
                );
                assert_eq!(
                    done.client.ip(),
                    lab::ip(HOST_ADDRESS),
                    "what the outside sees"
                );
                println!("{backend:?} by SNAT, MTU {mtu}, {congestion}: {done}");
            }
            assert_eq!(rig.dataplane.gateway().nat.session_count(), 2);
            rig.check_laws();
        }
    }
}

#[test]
fn tcp_enters_by_a_published_port_with_the_clients_address() {
    if !lab::require_root("e2e_nat") {
        return;
    }
    for backend in Backend::ALL {
        for mtu in MTUS {
            let (rig, inside, outside) = rig(backend, mtu);
            for congestion in ["bbr", "cubic"] {
                let listen = (inside.address, 80).into();
                let connect = (lab::ip(HOST_ADDRESS), 8080).into();
                let done = transfer(
                    &outside.ns,
                    &inside.ns,
                    listen,
                    connect,
                    bulk_size(),
                    Some(congestion),
                );
                assert_eq!(done.client.ip(), outside.address, "what the inside sees");
                println!("published on {backend:?}, MTU {mtu}, {congestion}: {done}");
            }
            rig.check_laws();
        }
    }
}

#[test]
fn tcp_turns_round_through_a_published_port_between_every_ordered_pair_of_backends() {
    if !lab::require_root("e2e_nat") {
        return;
    }
    for (from, to) in Backend::pairs() {
        for mtu in MTUS {
            let (mut rig, inside, _outside) = rig(to, mtu);
            let client = rig.sandbox("client", "10.0.0.3/24", from, mtu);
            client.ns.add_default_route("eth0", GATEWAY);
            for congestion in ["bbr", "cubic"] {
                let listen = (inside.address, 80).into();
                let connect = (lab::ip(HOST_ADDRESS), 8080).into();
                let done = transfer(
                    &client.ns,
                    &inside.ns,
                    listen,
                    connect,
                    bulk_size(),
                    Some(congestion),
                );
                assert_eq!(done.client.ip(), lab::ip(HOST_ADDRESS), "hairpin");
                println!("{from:?} to published {to:?}, MTU {mtu}, {congestion}: {done}");
            }
            rig.check_laws();
        }
    }
}
