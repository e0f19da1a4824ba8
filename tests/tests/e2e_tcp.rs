//! TCP between untouched sandboxes: the classic death of userspace switches is that ping works
//! and TCP does not, because checksums and segmentation were left to a device that has neither.

use dataplane::Config;
use tests::lab;
use tests::rig::{Backend, Rig, bulk_size, transfer};

#[test]
fn tcp_crosses_from_tap_to_tap_with_frames_larger_than_the_mtu_and_no_checksum_made_here() {
    if !lab::require_root("e2e_tcp") {
        return;
    }
    for workers in [1, 2] {
        for mtu in [1500, 9000] {
            let config = Config {
                workers,
                ..Config::default()
            };
            let mut rig = Rig::new("tcp", &config);
            let a = rig.sandbox("a", "10.0.0.2/24", Backend::Tap, mtu);
            let b = rig.sandbox("b", "10.0.0.3/24", Backend::Tap, mtu);
            for congestion in ["bbr", "cubic"] {
                let listen = (b.address, 5001).into();
                let done = transfer(&a.ns, &b.ns, listen, listen, bulk_size(), Some(congestion));
                assert_eq!(done.client.ip(), a.address);
                println!("workers {workers}, MTU {mtu}, {congestion}: {done}");
            }
            rig.check_laws();
            let stats = rig.dataplane.stats();
            let to_b = stats.port(b.port).expect("b's port");
            assert!(
                to_b.sent_gso > bulk_size() / 200_000,
                "GSO frames crossed whole: {}",
                to_b.sent_gso
            );
            let mean = to_b.sent_bytes / to_b.sent_frames;
            assert!(mean > u64::from(mtu), "mean frame of {mean} bytes");
            for port in &stats.ports {
                assert_eq!(
                    (port.checksums, port.segments),
                    (0, 0),
                    "done here for {}",
                    port.port
                );
            }
        }
    }
}

/// Covers: 13
#[test]
fn tcp_crosses_between_every_ordered_pair_of_backends() {
    if !lab::require_root("e2e_tcp") {
        return;
    }
    for (from, to) in Backend::pairs() {
        for mtu in [1500, 9000] {
            let mut rig = Rig::new(
                "pairs",
                &Config {
                    workers: 2,
                    ..Config::default()
                },
            );
            let a = rig.sandbox("a", "10.0.0.2/24", from, mtu);
            let b = rig.sandbox("b", "10.0.0.3/24", to, mtu);
            for congestion in ["bbr", "cubic"] {
                let listen = (b.address, 5001).into();
                let done = transfer(&a.ns, &b.ns, listen, listen, bulk_size(), Some(congestion));
                assert_eq!(done.client.ip(), a.address);
                println!("{from:?} to {to:?}, MTU {mtu}, {congestion}: {done}");
            }
            rig.check_laws();
        }
    }
}
