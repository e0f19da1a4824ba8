//! The `tun-tap` backend in namespaces of its own.

#![allow(clippy::unwrap_used)]

mod common;

use common::{in_namespace, ip};
use dataplane_port::conformance::{PortPeer, Subject, check_all, wait};
use dataplane_port::packet::PacketSocket;
use dataplane_port::tap::{Persistence, Tap, TapError};
use dataplane_port::tap_plain::PlainTap;

#[test]
fn plain_tap_conforms() {
    in_namespace(|| {
        let mut device = 0;
        check_all(|| {
            device += 1;
            let name = format!("tap{device}");
            let tap = PlainTap::create(&name).unwrap();
            ip(&format!("link set {name} mtu 9000 up"));
            let far_end = PacketSocket::open(&name).unwrap();
            let unplug = move || ip(&format!("link del {name}"));
            Subject::new(tap, PortPeer::new(far_end, unplug), 9_014)
        });
    });
}

#[test]
fn names_are_checked_and_persistent_devices_attached_to() {
    in_namespace(|| {
        let error = PlainTap::create("lo").unwrap_err();
        assert!(matches!(error, TapError::NameTaken { .. }), "{error}");
        let error = PlainTap::create("a-name-that-is-too-long").unwrap_err();
        assert!(matches!(error, TapError::NameInvalid { .. }), "{error}");
        let error = PlainTap::attach("absent0").unwrap_err();
        assert!(matches!(error, TapError::NotFound { .. }), "{error}");
        let error = PlainTap::attach("lo").unwrap_err();
        assert!(matches!(error, TapError::NotOurKind { .. }), "{error}");

        let tap = PlainTap::create("tap0").unwrap();
        tap.set_persistence(Persistence::Persistent).unwrap();
        let index = tap.interface_index().unwrap();
        let error = PlainTap::attach("tap0").unwrap_err();
        assert!(matches!(error, TapError::NameTaken { .. }), "{error}");
        drop(tap);
        let tap = wait(|| PlainTap::attach("tap0").ok()).unwrap();
        assert_eq!(tap.interface_index().unwrap(), index);

        let queues = Tap::create("tap1", 2).unwrap();
        let error = PlainTap::attach("tap1").unwrap_err();
        assert!(matches!(error, TapError::NotOurKind { .. }), "{error}");
        drop(queues);
    });
}
