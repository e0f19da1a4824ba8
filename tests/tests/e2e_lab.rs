//! The lab itself, and the netlink and namespace operations that everything else stands on.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use control::link::inet::{DuplicateDetection, Route};
use control::link::watch::{Changes, Watch};
use control::link::{Netlink, VethEnd};
use control::netns::{self, Loopback, NAMED_DIR, Netns};
use dataplane_core::addr::{MacAddr, Prefix};
use nix::errno::Errno;
use tests::lab::{
    DEADLINE, Lab, MTU_DEFAULT, block_on, connect, ip, prefix, require_root, wait_for, wait_until,
};

#[test]
fn two_namespaces_talk_tcp_over_a_cable() {
    if !require_root("two_namespaces_talk_tcp_over_a_cable") {
        return;
    }
    let lab = Lab::new("cable");
    let [a, b] = lab.namespaces(["a", "b"]);
    lab.cable(&a, "eth0", &b, "eth0");
    a.add_address("eth0", "10.9.0.1/24");
    b.add_address("eth0", "10.9.0.2/24");
    let listener = b.run(|| TcpListener::bind("10.9.0.2:7000")).unwrap();
    let server = b.spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        (text, peer.ip())
    });
    let address: SocketAddr = "10.9.0.2:7000".parse().unwrap();
    let mut stream = a.run(|| connect(DEADLINE, address));
    stream.write_all(b"hello").unwrap();
    drop(stream);
    assert_eq!(server.join().unwrap(), ("hello".to_owned(), ip("10.9.0.1")));
}

#[test]
fn a_namespace_is_new_has_lo_up_and_ends_with_its_handle() {
    if !require_root("a_namespace_is_new_has_lo_up_and_ends_with_its_handle") {
        return;
    }
    let lab = Lab::new("life");
    let ns = lab.namespace("a");
    assert_ne!(*ns.netns(), Netns::current().unwrap());
    assert_eq!(ns.run(|| Netns::current().unwrap()), *ns.netns());
    assert!(ns.link("lo").up);
    let loopback = ns.run(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    let address = loopback.local_addr().unwrap();
    ns.run(|| {
        UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .send_to(b"x", address)
    })
    .unwrap();
    let mut buffer = [0; 8];
    loopback.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(loopback.recv(&mut buffer).unwrap(), 1);

    let other = lab.namespace("b");
    lab.cable(&ns, "cable0", &other, "cable0");
    drop((ns, loopback));
    // The peer goes with the namespace of its other end.
    wait_until(DEADLINE, "the veth peer disappears", || {
        block_on(other.netlink().link("cable0")).unwrap().is_none()
    });
}

#[test]
fn a_panic_inside_is_the_callers_and_leaves_the_caller_where_it_was() {
    if !require_root("a_panic_inside_is_the_callers_and_leaves_the_caller_where_it_was") {
        return;
    }
    let before = Netns::current().unwrap();
    let ns = Netns::create_unnamed().unwrap();
    let panic = std::panic::catch_unwind(|| ns.run(|| panic!("inside"))).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"inside"));
    assert_eq!(Netns::current().unwrap(), before);
}

#[test]
fn a_named_namespace_can_be_opened_refuses_a_second_and_is_removed() {
    if !require_root("a_named_namespace_can_be_opened_refuses_a_second_and_is_removed") {
        return;
    }
    let name = format!("cw-test-{}", std::process::id());
    let ns = Netns::create_named(&name, Loopback::Up).unwrap();
    let taken = Netns::create_named(&name, Loopback::Up).unwrap_err();
    let opened = Netns::from_name(&name);
    let by_path = Netns::from_path(format!("{NAMED_DIR}/{name}"));
    Netns::remove_named(&name).unwrap();

    assert!(matches!(taken, netns::Error::NameTaken(_)), "{taken}");
    assert_eq!(opened.unwrap(), ns);
    assert_eq!(by_path.unwrap(), ns);
    assert!(matches!(
        Netns::from_name(&name),
        Err(netns::Error::UnknownName(_))
    ));
    assert!(matches!(
        Netns::remove_named(&name),
        Err(netns::Error::UnknownName(_))
    ));
    // The handle still works without the name.
    ns.run(|| ()).unwrap();
}

#[test]
fn a_namespace_of_another_kind_is_refused() {
    if !require_root("a_namespace_of_another_kind_is_refused") {
        return;
    }
    let error = Netns::from_path("/proc/self/ns/uts").unwrap_err();
    assert!(matches!(error, netns::Error::NotANamespace(_)), "{error}");
}

#[test]
fn link_properties_are_set_and_read_back() {
    if !require_root("link_properties_are_set_and_read_back") {
        return;
    }
    let lab = Lab::new("links");
    let [a, b] = lab.namespaces(["a", "b"]);
    let mac: MacAddr = "02:42:0a:09:00:07".parse().unwrap();
    let one = VethEnd {
        name: "one",
        mac: Some(mac),
        mtu: 9_000,
    };
    let two = VethEnd {
        name: "two",
        mac: None,
        mtu: 9_000,
    };
    block_on(a.netlink().create_veth(one, two, b.netns())).unwrap();
    assert_eq!((a.mac("one"), a.link("one").mtu), (mac, 9_000));
    assert!(
        block_on(a.netlink().link("two")).unwrap().is_none(),
        "the peer is only in b"
    );
    assert_eq!(a.link("one").kind, "veth");

    let error = block_on(a.netlink().create_veth(one, two, b.netns())).unwrap_err();
    assert!(error.is(Errno::EEXIST), "{error}");

    let index = a.link("one").index;
    let netlink = a.netlink();
    block_on(async {
        netlink.rename(index, "renamed").await.unwrap();
        netlink.set_alias(index, "causeway: test").await.unwrap();
        netlink.set_mtu(index, 1_400).await.unwrap();
        netlink.set_addr_gen_mode_none(index).await.unwrap();
        netlink.set_noqueue(index).await.unwrap();
        netlink.set_up(index).await.unwrap();
    });
    b.set_up("two");
    let link = wait_for(DEADLINE, "the carrier", || {
        Some(a.link("renamed")).filter(|l| l.carrier)
    });
    assert_eq!(
        (link.mtu, link.alias.as_deref()),
        (1_400, Some("causeway: test"))
    );
    assert_eq!((link.up, link.qdisc.as_str()), (true, "noqueue"));
    let v6 = block_on(netlink.addresses())
        .unwrap()
        .into_iter()
        .find(|x| x.link == index);
    assert_eq!(
        v6, None,
        "addr_gen_mode none keeps the link without an address"
    );

    block_on(netlink.move_to(index, b.netns())).unwrap();
    assert_eq!(b.link("renamed").mac, Some(mac));
    block_on(b.netlink().delete(b.link("renamed").index)).unwrap();
    assert!(
        block_on(b.netlink().link("two")).unwrap().is_none(),
        "the peer went too"
    );
}

#[test]
fn noqueue_is_set_before_the_first_up() {
    if !require_root("noqueue_is_set_before_the_first_up") {
        return;
    }
    let lab = Lab::new("qdisc");
    let ns = lab.namespace("a");
    let netlink = ns.netlink();
    block_on(async {
        netlink.create_ifb("ifb0").await.unwrap();
        let index = netlink.require("ifb0").await.unwrap().index;
        netlink.set_noqueue(index).await.unwrap();
        netlink.set_up(index).await.unwrap();
        assert_eq!(netlink.require("ifb0").await.unwrap().qdisc, "noqueue");
    });
}

#[test]
fn addresses_routes_and_neighbours_are_set_listed_and_removed() {
    if !require_root("addresses_routes_and_neighbours_are_set_listed_and_removed") {
        return;
    }
    let lab = Lab::new("inet");
    let [a, b] = lab.namespaces(["a", "b"]);
    lab.cable(&a, "eth0", &b, "eth0");
    let (netlink, index) = (a.netlink(), a.link("eth0").index);
    let v4 = prefix("10.9.1.5/24");
    let v6 = prefix("fd00:9::5/64");
    let subnet = Prefix::new(ip("192.0.2.0"), 24);
    let mut by_source = Route::on_link(subnet, index);
    by_source.source = Some(v4.address);
    let mac: MacAddr = "02:42:0a:09:01:09".parse().unwrap();
    block_on(async {
        netlink
            .add_address(index, v4, DuplicateDetection::On)
            .await
            .unwrap();
        netlink
            .add_address(index, v4, DuplicateDetection::On)
            .await
            .unwrap();
        netlink
            .add_address(index, v6, DuplicateDetection::Off)
            .await
            .unwrap();
        let addresses = netlink.addresses().await.unwrap();
        let of = |p: Prefix| addresses.iter().find(|x| x.link == index && x.prefix == p);
        assert!(of(v4).is_some_and(|x| !x.tentative), "{addresses:?}");
        assert!(of(v6).is_some_and(|x| !x.tentative), "{addresses:?}");

        let default = Route::default_by(ip("10.9.1.1"), index);
        let default6 = Route::default_by(ip("fd00:9::1"), index);
        for route in [by_source, default, default6] {
            netlink.add_route(route).await.unwrap();
            netlink.add_route(route).await.unwrap();
        }
        let routes = netlink.routes().await.unwrap();
        assert!(routes.contains(&by_source), "{routes:?}");
        assert!(routes.contains(&default), "{routes:?}");
        // The kernel gives an IPv6 route without a metric 1024 (IP6_RT_PRIO_USER).
        assert!(
            routes.contains(&Route {
                metric: 1_024,
                ..default6
            }),
            "{routes:?}"
        );
        let connected = routes.iter().find(|x| x.prefix == prefix("10.9.1.0/24"));
        assert!(connected.is_some_and(|x| !x.ours), "{routes:?}");

        netlink
            .add_static_neighbour(index, ip("10.9.1.9"), mac)
            .await
            .unwrap();
        netlink
            .add_static_neighbour(index, ip("fd00:9::9"), mac)
            .await
            .unwrap();
        let neighbours = netlink.neighbours().await.unwrap();
        for address in [ip("10.9.1.9"), ip("fd00:9::9")] {
            let found = neighbours.iter().find(|x| x.address == address);
            assert_eq!(found.and_then(|x| x.mac), Some(mac), "{neighbours:?}");
        }

        for _ in 0..2 {
            netlink.remove_route(by_source).await.unwrap();
            netlink
                .remove_neighbour(index, ip("10.9.1.9"))
                .await
                .unwrap();
            netlink.remove_address(index, v4).await.unwrap();
        }
        assert!(!netlink.routes().await.unwrap().contains(&by_source));
        let addresses = netlink.addresses().await.unwrap();
        assert!(!addresses.iter().any(|x| x.prefix == v4));
        let unreachable = netlink
            .add_route(Route::default_by(ip("10.77.0.1"), index))
            .await;
        assert!(unreachable.unwrap_err().is(Errno::ENETUNREACH));
    });
}

#[test]
fn a_managed_neighbour_is_resolved_by_the_kernel_and_the_watch_tells() {
    if !require_root("a_managed_neighbour_is_resolved_by_the_kernel_and_the_watch_tells") {
        return;
    }
    let lab = Lab::new("managed");
    let [a, b] = lab.namespaces(["a", "b"]);
    lab.cable(&a, "eth0", &b, "eth0");
    a.add_address("eth0", "10.9.2.1/24");
    let index = a.link("eth0").index;
    let (peer, b_index) = (b.mac("eth0"), b.link("eth0").index);
    block_on(async {
        let mut watch = Watch::open(a.netns()).unwrap();
        a.netlink()
            .add_managed_neighbour(index, ip("10.9.2.2"))
            .await
            .unwrap();
        let resolved = async {
            loop {
                let neighbours = a.netlink().neighbours().await.unwrap();
                if let Some(found) = neighbours.iter().find(|x| x.address == ip("10.9.2.2"))
                    && found.mac == Some(peer)
                {
                    return *found;
                }
                // Only the kernel's notification wakes this loop.
                while !watch.changed().await.intersects(Changes::NEIGHBOURS) {}
            }
        };
        // The other side gets its address only now: the first request goes unanswered.
        let late = b.netlink().add_address(
            b_index,
            Prefix::new(Ipv4Addr::new(10, 9, 2, 2).into(), 24),
            DuplicateDetection::On,
        );
        late.await.unwrap();
        let found = tokio::time::timeout(DEADLINE, resolved).await.unwrap();
        assert!(found.managed);
    });
}

#[test]
fn the_watch_merges_what_changed_and_stays_silent_otherwise() {
    if !require_root("the_watch_merges_what_changed_and_stays_silent_otherwise") {
        return;
    }
    let lab = Lab::new("watch");
    let ns = lab.namespace("a");
    block_on(async {
        let mut watch = Watch::open(ns.netns()).unwrap();
        let silent = tokio::time::timeout(Duration::from_millis(50), watch.changed()).await;
        assert!(silent.is_err(), "{silent:?}");
        ns.netlink().create_ifb("ifb0").await.unwrap();
        let index = ns.netlink().require("ifb0").await.unwrap().index;
        let address = prefix("fd00:9::1/64");
        ns.netlink()
            .add_address(index, address, DuplicateDetection::Off)
            .await
            .unwrap();
        let mut seen = Changes::default();
        let all = async {
            while !(seen.intersects(Changes::LINKS) && seen.intersects(Changes::ADDRESSES)) {
                seen = seen | watch.changed().await;
            }
        };
        tokio::time::timeout(DEADLINE, all).await.unwrap();
    });
}

#[test]
fn sysctls_are_the_namespaces_own() {
    if !require_root("sysctls_are_the_namespaces_own") {
        return;
    }
    let lab = Lab::new("sysctl");
    let [a, b] = lab.namespaces(["a", "b"]);
    a.set_sysctl("net/ipv4/ip_local_reserved_ports", "49152-65535");
    assert_eq!(a.sysctl("net/ipv4/ip_local_reserved_ports"), "49152-65535");
    assert_eq!(b.sysctl("net/ipv4/ip_local_reserved_ports"), "");
}

#[test]
fn a_socket_opened_inside_a_namespace_stays_there() {
    if !require_root("a_socket_opened_inside_a_namespace_stays_there") {
        return;
    }
    let lab = Lab::new("socket");
    let ns = lab.namespace("a");
    block_on(async {
        let netlink = Netlink::open(ns.netns()).unwrap();
        let links = netlink.links().await.unwrap();
        let names: Vec<_> = links.iter().map(|link| link.name.as_str()).collect();
        assert_eq!(names, ["lo"]);
    });
    assert!(ns.link("lo").mtu > MTU_DEFAULT);
}
