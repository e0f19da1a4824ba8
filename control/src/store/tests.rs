//! The store, written and read back.

use super::*;
use crate::flood_settings::FloodSettings;
use crate::link::saved::SavedIp;
use crate::model::dns::{EndpointDns, endpoint_dns, network_dns};
use crate::model::{
    Backend, BackendChoice, Confirmation, Endpoint, FdbSetting, FileTarget, Holder, LoopDetect,
    MIRROR_FILE_PORT_FIRST, MTU_DEFAULT, MdbSetting, MirrorFileSetting, MirrorIngress,
    MirrorSetting, NicBefore, NicOrigin, NicSetting, NicStage, Phase, Publication,
    PublicationTarget, Purpose, RuleBody, RulePorts, RuleSetting, Sandbox, StpFrames,
};
use std::net::IpAddr;
use std::time::Duration;

use dataplane_core::link::{Impairment, LinkSpec};

use crate::port_settings::{AdminState, PortSettings};
use crate::vlans::{NetworkVlans, VlanFiltering};
use dataplane_core::addr::{MacAddr, PortId, VlanId};
use dataplane_core::fdb::FdbKind;
use dataplane_core::l2::{Mirror, MirrorDirection, MirrorSource, PortFlags, PortVlans};
use dataplane_core::nat::{Balance, Duty, Transport};
use dataplane_core::policy::{Action, Protocol, RuleSlot};
use std::sync::atomic::{AtomicUsize, Ordering};

pub(super) struct Dir(pub PathBuf);

impl Dir {
    pub fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("cw-store-{}-{number}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn example() -> DesiredState {
    let network = Network {
        domain: DomainId(3),
        name: "web".parse().unwrap(),
        subnets: vec![
            crate::ipam::subnet("10.88.0.0/24".parse().unwrap(), None, None).unwrap(),
            crate::ipam::subnet("fd00:88::/64".parse().unwrap(), None, None).unwrap(),
        ],
        internal: true,
        host_link: false,
        mtu: MTU_DEFAULT,
        ageing_seconds: 17,
        stp_frames: StpFrames::Forward,
        loop_detect: LoopDetect::Block,
        vlans: NetworkVlans {
            filtering: VlanFiltering::On,
            gateway: VlanId(5),
        },
        icc: Icc::Off,
        flood: FloodSettings {
            mcast_snooping: false,
            mcast_querier: true,
            arp_suppression: true,
        },
        nat: NetworkNat {
            mapping: Some(Dependence::AddressDependent),
            filtering: Some(Dependence::EndpointIndependent),
            v4: Some(NatMode::Routed),
            v6: Some(NatMode::Masquerade),
        },
        dns: network_dns(&["192.0.2.53".to_owned(), "2001:db8::53".to_owned()]).unwrap(),
        router: Router::Lan,
        foreign: Some(ForeignId {
            owner: "docker".to_owned(),
            id: "ab12".to_owned(),
        }),
    };
    let endpoint = Endpoint {
        port: PortId(40),
        name: "web1".parse().unwrap(),
        domain: network.domain,
        sandbox: Sandbox {
            path: "/run/netns/web1".into(),
            inode: u64::MAX - 7,
        },
        ifname: "eth0".to_owned(),
        mac: "02:42:0a:58:00:02".parse().unwrap(),
        addresses: vec!["10.88.0.2".parse().unwrap(), "fd00:88::2".parse().unwrap()],
        backend: Backend::Packet,
        choice: Some(BackendChoice {
            purpose: Purpose::SmallFrames,
            why: "xdp was not used".to_owned(),
        }),
        phase: Phase::Attaching,
        settings: PortSettings {
            flags: PortFlags::default().with(PortFlags::ISOLATED),
            mac_limit: Some(3),
            state: AdminState::Down,
            links: [
                LinkSpec {
                    limit: Some("10mbit burst 5000".parse().unwrap()),
                    impairment: Impairment::default(),
                },
                LinkSpec {
                    limit: None,
                    impairment: Impairment {
                        delay: Duration::from_millis(20),
                        seed: 7,
                        ..Impairment::default()
                    },
                },
            ],
            storm: "broadcast 1000, multicast 7 burst 3".parse().unwrap(),
            mac_nat: Some("02:00:00:00:77:01".parse().unwrap()),
        },
        vlans: crate::vlans::read("5 pvid, 7 untagged, 10-20").unwrap(),
        attached_at: u64::MAX - 3,
        dns: endpoint_dns(
            &["www".to_owned(), "a.b".to_owned()],
            &["::1".to_owned()],
            &["db1:database".to_owned()],
        )
        .unwrap(),
        gw_priority: -7,
        routes: vec![
            "10.9.0.0/16=10.88.0.254".parse().unwrap(),
            "10.7.0.0/16=10.88.0.253".parse().unwrap(),
        ],
        foreign: None,
    };
    let second = Endpoint {
        port: PortId(39),
        name: "web2".parse().unwrap(),
        addresses: vec!["10.88.0.3".parse().unwrap()],
        phase: Phase::Attached,
        settings: PortSettings::default(),
        vlans: PortVlans::default(),
        dns: EndpointDns::default(),
        gw_priority: 0,
        routes: Vec::new(),
        ..endpoint.clone()
    };
    let target = |endpoint: &Endpoint, weight, duty| PublicationTarget {
        endpoint: endpoint.port,
        inside_port_first: 80,
        weight,
        duty,
    };
    let publication = Publication {
        id: 9,
        transport: Transport::Udp,
        host_ip: Some("127.0.0.1".parse().unwrap()),
        uplink: Some("eth1".to_owned()),
        host_ports: 8_000..=8_010,
        from: Some("192.0.2.0/24".parse().unwrap()),
        balance: Balance::SourceHash { key: u64::MAX - 7 },
        targets: vec![
            target(&endpoint, 5, Duty::Serving),
            target(&second, 1, Duty::Draining),
        ],
    };
    let station = (network.domain, VlanId(7), MacAddr([2, 0, 0, 0, 0, 9]));
    let setting = FdbSetting {
        port: second.port,
        kind: FdbKind::Local,
    };
    let mirror = |from, direction, ingress| MirrorSetting {
        mirror: Mirror {
            from,
            direction,
            to: second.port,
        },
        ingress,
    };
    let (of_port, of_network) = (
        MirrorSource::Port(endpoint.port),
        MirrorSource::Domain(network.domain),
    );
    let mirrors = [
        mirror(of_port, MirrorDirection::Out, MirrorIngress::Open),
        mirror(of_network, MirrorDirection::In, MirrorIngress::Closed),
    ];
    let names = ["m1", "m2"].map(|name| name.parse().unwrap());
    let file = |number: u16, from| MirrorFileSetting {
        mirror: Mirror {
            from,
            direction: MirrorDirection::Both,
            to: PortId(MIRROR_FILE_PORT_FIRST + number),
        },
        target: FileTarget {
            path: format!("/var/log/f{number}.pcapng").into(),
            size_max: u64::from(u32::MAX) + u64::from(number),
            files_max: 10,
        },
    };
    let files = [file(0, of_port), file(1, of_network)];
    let file_names = ["f1", "f2"].map(|name| name.parse().unwrap());
    let listener = MdbSetting {
        domain: network.domain,
        vlan: VlanId(7),
        group: "ff0e::7".parse().unwrap(),
        port: endpoint.port,
    };
    let nic = NicSetting {
        host_port: Some(second.port),
        stage: NicStage::Held,
        confirmation: Confirmation::Pending(u64::from(u32::MAX) + 7),
        within_seconds: 17,
        origin: NicOrigin::Creation,
        before: NicBefore {
            place: "boot 4026531840 2".to_owned(),
            up: true,
            addr_gen_mode: Some(3),
            features: vec!["rx-vlan-hw-parse".to_owned()],
            ip: SavedIp::default(),
        },
    };
    let reserved = |address: &str, holder| ((DomainId(3), address.parse().unwrap()), holder);
    let reservations = [
        reserved("10.88.0.9", Holder::Nobody),
        reserved("10.88.0.10", "web9".parse().unwrap()),
        reserved("fd00:88::9", "02:00:00:00:00:09".parse().unwrap()),
    ];
    let rule = |slot, name: &str, action, from: &str, ports: &str| RuleSetting {
        name: name.parse().unwrap(),
        slot: RuleSlot(slot),
        what: RuleBody {
            action,
            from: from.parse().unwrap(),
            to: "endpoint:gone".parse().unwrap(),
            protocol: Protocol::Number(6),
            source_ports: RulePorts::default(),
            ports: ports.parse().unwrap(),
            uplink: Some("eth1".to_owned()),
        },
    };
    let rules = vec![
        rule(0, "z", Action::Drop, "192.0.2.0/24", "80,8000-8010"),
        rule(1, "a", Action::Allow, "network:web", ""),
    ];
    DesiredState {
        rules,
        nics: [(endpoint.port, nic)].into(),
        mirrors: names.into_iter().zip(mirrors).collect(),
        mirror_files: file_names.into_iter().zip(files).collect(),
        networks: [(network.domain, network)].into(),
        endpoints: [endpoint, second].into_iter().collect(),
        publications: [(publication.id, publication)].into(),
        fdb: [(station, setting)].into(),
        reservations: reservations.into(),
        mdb: [listener].into(),
    }
}

pub(super) fn write(store: &Store, desired: &DesiredState) {
    desired
        .networks
        .values()
        .for_each(|n| store.put_network(n).unwrap());
    desired
        .endpoints
        .values()
        .for_each(|e| store.put_endpoint(e).unwrap());
    let publications: Vec<_> = desired.publications.values().cloned().collect();
    store.put_publications(&publications).unwrap();
    let mirrors = desired.mirrors.iter();
    mirrors.for_each(|(name, setting)| store.put_mirror(name, *setting).unwrap());
    let files = desired.mirror_files.iter();
    files.for_each(|(name, setting)| store.put_mirror_file(name, setting).unwrap());
    let entries = desired.fdb.iter();
    entries.for_each(|(key, setting)| store.put_fdb_entry(*key, *setting).unwrap());
    let listeners = desired.mdb.iter();
    listeners.for_each(|listener| store.put_listener(*listener).unwrap());
    let reservations = desired.reservations.iter();
    reservations.for_each(|((domain, address), holder)| {
        store.put_reservation(*domain, *address, holder).unwrap();
    });
    store.put_rules(&desired.rules).unwrap();
    let nics = desired.nics.iter();
    nics.for_each(|(port, setting)| store.put_nic(*port, setting).unwrap());
}

#[test]
fn what_was_written_is_read_back_by_the_next_process() {
    let dir = Dir::new();
    let desired = example();
    let store = Store::open(&dir.0).unwrap();
    let instance = store.instance().to_owned();
    assert_eq!(instance.len(), 8);
    assert_eq!(store.load().unwrap(), DesiredState::default());
    write(&store, &desired);
    store.set_host_note("sysctl", "1-2").unwrap();
    drop(store);
    let store = Store::open(&dir.0).unwrap();
    assert_eq!(store.load().unwrap(), desired);
    assert_eq!(store.instance(), instance);
    assert_eq!(store.host_note("sysctl").unwrap().as_deref(), Some("1-2"));
    assert_eq!(store.host_note("other").unwrap(), None);
}

#[test]
fn replacing_leaves_no_old_rows_and_removing_takes_publications_along() {
    let dir = Dir::new();
    let mut desired = example();
    let store = Store::open(&dir.0).unwrap();
    write(&store, &desired);
    desired.endpoints.change(PortId(40), |endpoint| {
        endpoint.phase = Phase::Attached;
        endpoint.addresses.pop();
    });
    store.put_endpoint(&desired.endpoints[&PortId(40)]).unwrap();
    let network = desired.networks.get_mut(&DomainId(3)).unwrap();
    network.subnets.pop();
    store.put_network(network).unwrap();
    assert_eq!(store.load().unwrap(), desired);
    assert!(
        store.remove_network(DomainId(3)).is_err(),
        "it still has an endpoint"
    );
    assert_eq!(
        store.load().unwrap(),
        desired,
        "the failed removal changed nothing"
    );
    store.remove_endpoint(PortId(40)).unwrap();
    let left = &store.load().unwrap().publications[&9];
    assert_eq!(left.targets, desired.publications[&9].targets[1..]);
    store.remove_endpoint(PortId(39)).unwrap();
    store.remove_network(DomainId(3)).unwrap();
    assert_eq!(
        store.load().unwrap().rules,
        desired.rules,
        "a rule outlives what it names"
    );
    store.put_rules(&[]).unwrap();
    assert_eq!(store.load().unwrap(), DesiredState::default());
}

#[test]
fn a_state_of_the_first_version_is_brought_forward() {
    let dir = Dir::new();
    fs::create_dir_all(&dir.0).unwrap();
    let old = Connection::open(dir.0.join(DATABASE_FILE)).unwrap();
    old.execute_batch(FIRST_SCHEMA).unwrap();
    old.execute_batch(
        "PRAGMA user_version = 1;
         INSERT INTO host VALUES ('instance', '0123abcd');
         INSERT INTO network VALUES (3, 'web', 0, 1, 1500, 300, NULL, NULL);",
    )
    .unwrap();
    drop(old);
    let store = Store::open(&dir.0).unwrap();
    assert_eq!(store.instance(), "0123abcd");
    let network = store.load().unwrap().networks[&DomainId(3)].clone();
    assert_eq!(network.nat, NetworkNat::default());
    let changed = Network {
        nat: example().networks[&DomainId(3)].nat,
        ..network
    };
    store.put_network(&changed).unwrap();
    drop(store);
    let store = Store::open(&dir.0).unwrap();
    assert_eq!(store.load().unwrap().networks[&DomainId(3)], changed);
}

#[test]
fn a_state_of_any_earlier_version_is_brought_forward_and_takes_what_this_one_knows() {
    for version in 1..MIGRATIONS.len() {
        let dir = Dir::new();
        fs::create_dir_all(&dir.0).unwrap();
        let old = Connection::open(dir.0.join(DATABASE_FILE)).unwrap();
        for migration in &MIGRATIONS[..version] {
            old.execute_batch(migration).unwrap();
        }
        old.pragma_update(None, "user_version", version as i64)
            .unwrap();
        old.execute_batch(
            "INSERT INTO host VALUES ('instance', '0123abcd');
             INSERT INTO network (domain, name, internal, host_link, mtu, ageing_seconds)
             VALUES (3, 'old', 0, 1, 1500, 300);
             INSERT INTO subnet VALUES (3, '10.88.0.0/24', '10.88.0.1', '10.88.0.0/24');
             INSERT INTO endpoint (port, name, domain, sandbox_path, sandbox_inode, ifname, mac,
             backend, phase) VALUES
             (40, 'web1', 3, '/run/netns/a', 7, 'eth0', '02:42:0a:58:00:02', 'tap', 'attached');
             INSERT INTO endpoint_address VALUES (40, '10.88.0.2');",
        )
        .unwrap();
        drop(old);
        let store = Store::open(&dir.0).unwrap();
        assert!(!store.is_default_network_due().unwrap(), "it is not new");
        let loaded = store.load().unwrap();
        let endpoint = &loaded.endpoints[&PortId(40)];
        let address: IpAddr = "10.88.0.2".parse().unwrap();
        assert_eq!(endpoint.addresses, [address], "version {version}");
        assert_eq!(endpoint.settings, PortSettings::default());
        assert_eq!(loaded.networks[&DomainId(3)].subnets.len(), 1);
        write(&store, &example());
        assert_eq!(store.load().unwrap(), example(), "version {version}");
        drop(store);
        let store = Store::open(&dir.0).unwrap();
        assert_eq!(store.load().unwrap(), example(), "version {version}");
    }
}

#[test]
fn a_second_daemon_and_a_newer_state_are_refused() {
    let dir = Dir::new();
    let store = Store::open(&dir.0).unwrap();
    let locked = Store::open(&dir.0).unwrap_err();
    let holder = Some(std::process::id().cast_signed());
    assert!(matches!(&locked, Error::Locked { holder: named, .. } if *named == holder));
    assert!(locked.to_string().contains("(process "), "{locked}");
    store
        .connection()
        .pragma_update(None, "user_version", 99)
        .unwrap();
    drop(store);
    assert!(matches!(
        Store::open(&dir.0),
        Err(Error::Version { found: 99, .. })
    ));
}

#[test]
fn what_goes_with_an_endpoint_is_found_by_an_index() {
    let dir = Dir::new();
    drop(Store::open(&dir.0).unwrap());
    let connection = Connection::open(dir.0.join(DATABASE_FILE)).unwrap();
    let tables =
        "SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE '%port INTEGER%'";
    let mut statement = connection.prepare(tables).unwrap();
    let tables = statement.query_map([], |row| row.get(0)).unwrap();
    let tables: Vec<String> = tables.collect::<Result<_, _>>().unwrap();
    assert!(tables.len() > 8, "{tables:?}");
    for table in tables.iter().filter(|table| !table.starts_with("mirror")) {
        let plan = format!("EXPLAIN QUERY PLAN DELETE FROM {table} WHERE port = 1");
        let plan: String = connection
            .query_row(&plan, [], |row| row.get("detail"))
            .unwrap();
        assert!(plan.starts_with("SEARCH"), "{table}: {plan}");
    }
}
