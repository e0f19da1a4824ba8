//! A keeper and the sessions that it finds again.

use std::sync::atomic::{AtomicUsize, Ordering};

use dataplane_core::addr::{DomainId, L4Addr, MacAddr, PortId};
use dataplane_core::nat::{Dependence, NatProtocol};
use dataplane_core::time::Instant;
use dataplane_core::topology::{Domain, Neighbour, Topology};

use super::*;

const NOW: Instant = Instant::from_secs(40_000_000);
const CLOCKS: Clocks = Clocks {
    now: NOW,
    unix_seconds: 1_800_000_000,
};

struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("cw-keep-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn topology() -> Topology {
    let mut topology = Topology::default();
    let mut domain = Domain::new(DomainId(1), "n");
    let neighbour = Neighbour {
        mac: MacAddr::ZERO,
        port: PortId(40),
    };
    domain.neighbours.insert([10, 88, 0, 2].into(), neighbour);
    topology.put_domain(domain);
    topology.local_addresses.insert([192, 0, 2, 1].into());
    topology.finish();
    topology
}

fn session(number: u16) -> SavedSession {
    let port = 50_000 + number;
    SavedSession {
        domain: DomainId(1),
        protocol: NatProtocol::Udp,
        inside: L4Addr::new([10, 88, 0, 2].into(), port),
        external: L4Addr::new([192, 0, 2, 1].into(), port),
        remote: L4Addr::new([198, 51, 100, 9].into(), 53),
        rule: None,
        target: 0,
        mapping: Dependence::EndpointIndependent,
        filtering: Dependence::AddressAndPortDependent,
        tcp: 0,
        created: Instant::from_secs(39_999_000),
        last_seen: Instant::from_secs(39_999_990),
        packets_out: 3,
        packets_in: u64::from(number),
        bytes_out: 180,
        bytes_in: 60 * u64::from(number),
    }
}

fn put(nat: &Nat, numbers: impl Iterator<Item = u16>) {
    let sessions: Vec<_> = numbers.map(session).collect();
    let count = sessions.len();
    assert_eq!(nat.restore(&topology(), sessions, NOW).restored, count);
}

/// What the next daemon would find, by external port.
fn found(dir: &Dir) -> Vec<SavedSession> {
    let left = read(&dir.0, 10_000, CLOCKS);
    assert_eq!(left.problem, None);
    let mut sessions = left.sessions;
    sessions.sort_by_key(|saved| saved.external.l4_port);
    sessions
}

#[test]
fn what_changes_is_found_by_the_next_daemon() {
    let dir = Dir::new();
    let nat = Nat::new(1);
    put(&nat, 0..10);
    let mut keeper = Keeper::new(&dir.0, Arc::clone(&nat));
    assert!(found(&dir).is_empty());
    keeper.keep(CLOCKS).unwrap();
    let wanted: Vec<_> = (0..10).map(session).collect();
    assert_eq!(found(&dir), wanted, "what was there before the keeper");
    put(&nat, 10..20);
    nat.remove_sessions(|session| session.external.l4_port.0 < 50_005);
    keeper.keep(CLOCKS).unwrap();
    let wanted: Vec<_> = (5..20).map(session).collect();
    assert_eq!(found(&dir), wanted);
    discard(&dir.0).unwrap();
    discard(&dir.0).unwrap();
    assert!(found(&dir).is_empty());
}

#[test]
fn the_log_of_a_table_that_comes_and_goes_stays_small() {
    let dir = Dir::new();
    let nat = Nat::new(1);
    let mut keeper = Keeper::new(&dir.0, Arc::clone(&nat));
    let (mut largest, mut size, mut shrunk) = (0, 0, 0);
    for _ in 0..60 {
        put(&nat, 0..1_000);
        keeper.keep(CLOCKS).unwrap();
        nat.remove_sessions(|_| true);
        keeper.keep(CLOCKS).unwrap();
        let before = size;
        size = fs::metadata(dir.0.join(LOG_FILE)).unwrap().len();
        largest = largest.max(size);
        shrunk += u32::from(size < before);
    }
    let allowed = size_max(1_000) + 1_000 * RECORD_SIZE_MAX as u64;
    assert!(largest < allowed, "{largest} bytes");
    assert!(shrunk > 2, "it was written anew now and then");
    put(&nat, 0..3);
    keeper.keep(CLOCKS).unwrap();
    assert_eq!(found(&dir).len(), 3);
}

#[test]
fn after_a_write_that_failed_everything_is_written() {
    let dir = Dir::new();
    let nat = Nat::new(1);
    put(&nat, 0..3);
    let mut keeper = Keeper::new(&dir.0.join("gone"), Arc::clone(&nat));
    assert!(keeper.keep(CLOCKS).is_err());
    put(&nat, 3..6);
    assert!(keeper.keep(CLOCKS).is_err());
    fs::create_dir(dir.0.join("gone")).unwrap();
    keeper.keep(CLOCKS).unwrap();
    assert_eq!(read(&dir.0.join("gone"), 10, CLOCKS).sessions.len(), 6);
}
