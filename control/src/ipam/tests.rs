//! Subnets and addresses, chosen and checked.

use super::*;
use crate::model::{Endpoints, MTU_DEFAULT, Name, Network, NetworkNat};
use dataplane_core::addr::DomainId;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn global_is_what_the_internet_can_route() {
    for global in [
        "2a01:4f8::/64",
        "2400:cb00:1::/48",
        "3ffe::/64",
        "2001:200::/64",
    ] {
        assert!(is_global_v6(net(global)), "{global}");
    }
    for other in [
        "fd00:1::/64",
        "fe80::/64",
        "2001:db8::/64",
        "2001:db8:ffff::/48",
        "3fff:fff::/64",
        "2002:c000:201::/64",
        "2001::/64",
        "2001:2::/64",
        "2001:20::/64",
        "5f00::/64",
        "64:ff9b::/96",
        "192.0.2.0/24",
        "8.8.8.0/24",
    ] {
        assert!(!is_global_v6(net(other)), "{other}");
    }
}

fn network(prefix: &str) -> Network {
    Network {
        domain: DomainId(1),
        name: "one".parse().unwrap(),
        subnets: vec![subnet(net(prefix), None, None).unwrap()],
        internal: false,
        host_link: true,
        mtu: MTU_DEFAULT,
        ageing_seconds: 300,
        stp_frames: Default::default(),
        loop_detect: Default::default(),
        vlans: Default::default(),
        icc: Default::default(),
        flood: Default::default(),
        nat: NetworkNat::default(),
        dns: Default::default(),
        router: Default::default(),
        foreign: None,
    }
}

fn nobody() -> Name {
    "nobody".parse().unwrap()
}

fn claimant(name: &Name) -> Claimant<'_> {
    Claimant { name, mac: None }
}

fn desired(network: Network) -> DesiredState {
    let mut desired = DesiredState::default();
    desired.networks.insert(network.domain, network);
    desired
}

#[test]
fn the_gateway_is_the_first_address_unless_it_is_given() {
    let given = subnet(net("10.1.0.0/24"), None, None).unwrap();
    assert_eq!(given.gateway, ip("10.1.0.1"));
    let v6 = subnet(net("fd00:1::/64"), None, None).unwrap();
    assert_eq!(v6.gateway, ip("fd00:1::1"));
    let own = subnet(net("10.1.0.0/24"), Some(ip("10.1.0.254")), None).unwrap();
    assert_eq!(own.gateway, ip("10.1.0.254"));
}

#[test]
fn malformed_subnets_are_refused_by_name() {
    let check = |text: &str| subnet(net(text), None, None).unwrap_err();
    assert!(matches!(check("10.1.0.5/24"), Error::HostBits { .. }));
    assert!(matches!(check("10.1.0.0/31"), Error::TooSmall(_)));
    assert!(matches!(check("fd00::/127"), Error::TooSmall(_)));
    for text in [
        "224.0.0.0/24",
        "127.0.0.0/8",
        "0.0.0.0/0",
        "fe80::/64",
        "255.0.0.0/24",
    ] {
        assert!(matches!(check(text), Error::NotUnicast(_)), "{text}");
    }
    let gateway = |text| subnet(net("10.1.0.0/24"), Some(ip(text)), None).unwrap_err();
    assert!(matches!(gateway("10.2.0.1"), Error::Outside { .. }));
    assert!(matches!(gateway("10.1.0.0"), Error::Reserved { .. }));
    assert!(matches!(gateway("10.1.0.255"), Error::Reserved { .. }));
    let range = subnet(net("10.1.0.0/24"), None, Some(net("10.2.0.0/28"))).unwrap_err();
    assert!(matches!(range, Error::Outside { .. }));
}

#[test]
fn overlaps_name_the_network_or_the_route() {
    let desired = desired(network("10.1.0.0/24"));
    let error = check_host_link(net("10.0.0.0/8"), &desired, &[]).unwrap_err();
    assert!(error.to_string().contains("network 'one'"), "{error}");
    let route = |prefix: &str| HostRoute {
        prefix: net(prefix),
        interface: "eth0".to_owned(),
    };
    let error = check_host_link(net("10.9.0.0/24"), &desired, &[route("10.9.0.0/16")]);
    assert!(error.unwrap_err().to_string().contains("'eth0'"));
    check_host_link(net("10.9.0.0/24"), &desired, &[route("0.0.0.0/0")]).unwrap();
    let mut apart = desired;
    for network in apart.networks.values_mut() {
        network.host_link = false;
    }
    check_host_link(net("10.0.0.0/8"), &apart, &[]).unwrap();
}

#[test]
fn default_subnets_avoid_networks_and_routes() {
    let desired = desired(network("172.31.0.0/16"));
    let route = HostRoute {
        prefix: net("172.30.5.0/24"),
        interface: "eth0".to_owned(),
    };
    let found = default_subnet(&[], &desired, &[route]).unwrap();
    assert_eq!(found.prefix, net("172.29.0.0/16"));
}

fn endpoint(port: u16, network: &Network, address: IpAddr) -> crate::model::Endpoint {
    crate::model::Endpoint {
        port: dataplane_core::addr::PortId(port),
        name: format!("e{port}").parse().unwrap(),
        domain: network.domain,
        sandbox: crate::model::Sandbox {
            path: "/x".into(),
            inode: 1,
        },
        ifname: "eth0".to_owned(),
        mac: dataplane_core::addr::MacAddr::ZERO,
        addresses: vec![address],
        backend: crate::model::Backend::Tap,
        choice: None,
        phase: crate::model::Phase::Attached,
        settings: Default::default(),
        vlans: Default::default(),
        attached_at: 0,
        dns: Default::default(),
        gw_priority: 0,
        routes: Vec::new(),
        foreign: None,
    }
}

/// More rounds than a /16 has addresses: an address that is kept after its endpoint would be missed.
#[test]
fn seventy_thousand_endpoints_come_and_go_and_no_address_is_lost() {
    const ALIVE: u16 = 8;
    let network = network("10.1.0.0/16");
    let mut desired = desired(network.clone());
    let subnet = network.subnets[0];
    let mut highest = subnet.gateway;
    for round in 0..70_000_u32 {
        let port = 40 + (round % u32::from(ALIVE)) as u16;
        let id = dataplane_core::addr::PortId(port);
        desired.endpoints.remove(&id);
        let address = free_address(&network, &subnet, &desired).unwrap();
        check_address(&network, &desired, address, claimant(&nobody())).unwrap();
        highest = highest.max(address);
        desired.endpoints.insert(endpoint(port, &network, address));
    }
    assert_eq!(highest, ip("10.1.0.9"), "the gateway and {ALIVE} endpoints");
    desired.endpoints = Endpoints::default();
    let next = free_address(&network, &subnet, &desired).unwrap();
    assert_eq!(next, ip("10.1.0.2"));
}

#[test]
fn addresses_are_handed_out_lowest_first_until_none_is_left() {
    let network = network("10.1.0.0/29");
    let mut desired = desired(network.clone());
    let subnet = network.subnets[0];
    let mut given = Vec::new();
    for port in 40.. {
        let Ok(address) = free_address(&network, &subnet, &desired) else {
            break;
        };
        check_address(&network, &desired, address, claimant(&nobody())).unwrap();
        given.push(address.to_string());
        let endpoint = endpoint(port, &network, address);
        desired.endpoints.insert(endpoint);
    }
    assert_eq!(
        given,
        ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6"]
    );
    let taken = check_address(&network, &desired, ip("10.1.0.3"), claimant(&nobody())).unwrap_err();
    assert!(taken.to_string().contains("endpoint 'e41'"), "{taken}");
    assert!(check_address(&network, &desired, ip("10.1.0.1"), claimant(&nobody())).is_err());
    assert!(check_address(&network, &desired, ip("10.2.0.1"), claimant(&nobody())).is_err());
}

#[test]
fn a_huge_v6_subnet_does_not_take_for_ever() {
    let network = network("fd00::/8");
    let desired = desired(network.clone());
    let subnet = network.subnets[0];
    assert_eq!(
        free_address(&network, &subnet, &desired).unwrap(),
        ip("fd00::2")
    );
}

#[test]
fn a_reserved_address_is_its_holders_alone() {
    let network = network("10.1.0.0/29");
    let subnet = network.subnets[0];
    let mut desired = desired(network.clone());
    let (db, other) = ("db".parse().unwrap(), nobody());
    let mut keep = |address: &str, holder: Holder| {
        let kept = check_reservation(&network, &desired, ip(address), &holder);
        kept.map(|()| {
            desired
                .reservations
                .insert((network.domain, ip(address)), holder)
        })
        .map_err(|error| error.to_string())
    };
    keep("10.1.0.2", Holder::Nobody).unwrap();
    keep("10.1.0.4", Holder::Named(Name::clone(&db))).unwrap();
    for (address, problem) in [
        ("10.1.0.2", "taken by a reservation for nobody"),
        ("10.1.0.1", "the gateway"),
        ("10.1.0.7", "broadcast"),
        ("10.2.0.1", "in no subnet"),
    ] {
        let error = keep(address, Holder::Nobody).unwrap_err();
        assert!(error.contains(problem), "{error}");
    }
    assert_eq!(
        free_address(&network, &subnet, &desired),
        Ok(ip("10.1.0.3"))
    );
    let reserved = |name| reserved_address(&network, &subnet, &desired, claimant(name));
    assert_eq!(reserved(&db), Some(ip("10.1.0.4")));
    assert_eq!(reserved(&other), None);
    let check =
        |address: &str, name| check_address(&network, &desired, ip(address), claimant(name));
    assert_eq!(check("10.1.0.4", &db), Ok(()));
    assert!(matches!(
        check("10.1.0.4", &other),
        Err(Error::Taken { .. })
    ));
    assert!(matches!(check("10.1.0.2", &db), Err(Error::Taken { .. })));
}

#[test]
fn subnets_come_from_the_pools_in_their_order() {
    let pool = |base, size| AddressPool {
        base: net(base),
        size,
    };
    let pools = [pool("10.9.0.0/23", 24), pool("10.10.0.0/16", 20)];
    let mut desired = DesiredState::default();
    for (domain, expected) in [(1, "10.9.0.0/24"), (2, "10.9.1.0/24"), (3, "10.10.0.0/20")] {
        let found = default_subnet(&pools, &desired, &[]).unwrap();
        assert_eq!(found.prefix, net(expected));
        let taken = Network {
            domain: DomainId(domain),
            ..network(expected)
        };
        desired.networks.insert(taken.domain, taken);
    }
    let full = default_subnet(&pools[..1], &desired, &[]);
    assert_eq!(full, Err(Error::NoSubnet));
}
