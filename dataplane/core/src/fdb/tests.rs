use super::*;

mod kinds;

const AGEING: Duration = Duration::from_secs(300);
const P1: PortId = PortId(1);
const P2: PortId = PortId(2);

fn key(n: u8) -> FdbKey {
    FdbKey::new(DomainId(3), VlanId(0), MacAddr([2, 0, 0, 0, 0, n]))
}

fn on(port: PortId) -> Option<Place> {
    Some(Place::Port(port))
}

fn at(second: u64) -> Instant {
    Instant::from_secs(second)
}

fn table() -> (Arc<Fdb>, FdbView) {
    let fdb = Fdb::new(Limits::default(), 7);
    let view = FdbView::live(Arc::clone(&fdb));
    (fdb, view)
}

fn small(entries_max: usize, entries_per_port_max: u32) -> (Arc<Fdb>, FdbView) {
    let fdb = Fdb::new(
        Limits {
            entries_max,
            entries_per_port_max,
        },
        7,
    );
    let view = FdbView::live(Arc::clone(&fdb));
    (fdb, view)
}

/// What the shared entry says of a station, with no cache in between.
fn shared(fdb: &Arc<Fdb>, key: FdbKey, now: Instant) -> Option<(PortId, u32)> {
    fdb.lookup(key, now, AGEING)
        .map(|entry| (entry.port(), entry.second()))
}

#[test]
fn keys_keep_their_parts_apart() {
    let k = FdbKey::new(
        DomainId(0xfffe),
        VlanId(0x0abc),
        MacAddr([0xfe, 1, 2, 3, 4, 5]),
    );
    assert_eq!((k.domain(), k.vlan()), (DomainId(0xfffe), VlanId(0x0abc)));
    assert_eq!(k.mac(), MacAddr([0xfe, 1, 2, 3, 4, 5]));
    assert_ne!(k, FdbKey::new(DomainId(0xfffe), VlanId(0x0abd), k.mac()));
    let entry = FdbEntry::new(PortId(0x1234), 0x2bcd, 0xdead_beef);
    assert_eq!((entry.port(), entry.generation()), (PortId(0x1234), 0x2bcd));
    assert_eq!(entry.second(), 0xdead_beef);
}

#[test]
fn a_station_is_found_where_it_was_last_heard() {
    let (fdb, mut view) = table();
    assert_eq!(view.lookup(key(1), at(10), AGEING), None);
    assert_eq!(view.learn(key(1), P1, at(10), AGEING), Learn::New);
    assert_eq!(view.learn(key(1), P1, at(10), AGEING), Learn::Known);
    assert_eq!(view.lookup(key(1), at(10), AGEING), on(P1));
    assert_eq!(
        view.learn(key(1), P2, at(11), AGEING),
        Learn::Moved { from: P1 }
    );
    assert_eq!(view.lookup(key(1), at(11), AGEING), on(P2));
    assert_eq!(fdb.len(), 1);
}

#[test]
fn another_worker_follows_a_move_at_once() {
    let (fdb, mut one) = table();
    let mut two = FdbView::live(Arc::clone(&fdb));
    let _ = one.learn(key(1), P1, at(0), AGEING);
    assert_eq!(two.lookup(key(1), at(0), AGEING), on(P1));
    let _ = one.learn(key(1), P2, at(0), AGEING);
    assert_eq!(two.lookup(key(1), at(0), AGEING), on(P2));
    assert_eq!(one.lookup(key(1), at(0), AGEING), on(P2));
    assert_eq!(two.learn(key(1), P2, at(0), AGEING), Learn::Known);
}

#[test]
fn a_new_station_bumps_no_epoch() {
    let (fdb, mut view) = table();
    let before = fdb.epoch.load(Ordering::Relaxed);
    for n in 0..100 {
        assert_eq!(view.learn(key(n), P1, at(0), AGEING), Learn::New);
    }
    assert_eq!(fdb.epoch.load(Ordering::Relaxed), before);
}

#[test]
fn a_busy_station_is_written_at_most_sixteen_times_per_ageing_time_and_never_ages() {
    let (fdb, mut view) = table();
    let _ = view.learn(key(1), P1, at(0), AGEING);
    let mut writes = 0;
    let mut last = 0;
    for second in 1..=300 {
        let _ = view.learn(key(1), P1, at(second), AGEING);
        let seen = shared(&fdb, key(1), at(second)).unwrap().1;
        if seen != last {
            writes += 1;
            last = seen;
        }
    }
    assert!((15..=16).contains(&writes), "{writes} writes");
    assert_eq!(view.lookup(key(1), at(500), AGEING), on(P1));
}

#[test]
fn a_silent_station_dies_when_its_time_is_over_indexed_or_not() {
    let (fdb, mut view) = table();
    let _ = view.learn(key(1), P1, at(100), AGEING);
    assert_eq!(
        view.lookup(key(1), at(400), AGEING),
        on(P1),
        "300 s is still in time"
    );
    assert_eq!(view.lookup(key(1), at(401), AGEING), None, "in the index");
    let mut fresh = FdbView::live(Arc::clone(&fdb));
    assert_eq!(
        fresh.lookup(key(1), at(401), AGEING),
        None,
        "in another view"
    );
    assert_eq!(fdb.sweep(at(400), |_| AGEING), 0);
    assert_eq!(fdb.sweep(at(401), |_| AGEING), 1);
    assert!(fdb.is_empty());
}

#[test]
fn looking_up_does_not_keep_a_station_alive() {
    let (_, mut view) = table();
    let _ = view.learn(key(1), P1, at(0), AGEING);
    for second in (0..=300).step_by(50) {
        assert_eq!(view.lookup(key(1), at(second), AGEING), on(P1));
    }
    assert_eq!(view.lookup(key(1), at(301), AGEING), None);
}

#[test]
fn an_aged_station_heard_elsewhere_is_new_and_not_a_move() {
    let (fdb, mut view) = table();
    let _ = view.learn(key(1), P1, at(0), AGEING);
    assert_eq!(view.learn(key(1), P2, at(1000), AGEING), Learn::New);
    assert_eq!(shared(&fdb, key(1), at(1000)), Some((P2, 1000)));
    assert_eq!(fdb.len(), 1);
}

#[test]
fn flushing_a_port_forgets_its_stations_and_no_others() {
    let (fdb, mut view) = table();
    let _ = view.learn(key(1), P1, at(0), AGEING);
    let _ = view.learn(key(2), P2, at(0), AGEING);
    fdb.flush_port(P1);
    view.begin_batch();
    assert_eq!(view.lookup(key(1), at(0), AGEING), None);
    assert_eq!(view.lookup(key(2), at(0), AGEING), on(P2));
    assert_eq!(view.learn(key(1), P1, at(0), AGEING), Learn::New);
    assert_eq!(fdb.rows(DomainId(3), at(0), AGEING).len(), 2);
    assert_eq!(fdb.len(), 2);
}

#[test]
fn removing_one_station_or_a_domain_is_seen_by_every_view() {
    let (fdb, mut view) = table();
    let _ = view.learn(key(1), P1, at(0), AGEING);
    assert!(fdb.remove(DomainId(3), VlanId(0), key(1).mac()));
    assert!(!fdb.remove(DomainId(3), VlanId(0), key(1).mac()));
    view.begin_batch();
    assert_eq!(view.lookup(key(1), at(0), AGEING), None);
    let other = FdbKey::new(DomainId(4), VlanId(0), key(1).mac());
    let _ = view.learn(key(1), P1, at(0), AGEING);
    let _ = view.learn(other, P1, at(0), AGEING);
    assert_eq!(fdb.flush_domain(DomainId(3), None, Flush::Learned), 1);
    view.begin_batch();
    assert_eq!(view.lookup(key(1), at(0), AGEING), None);
    assert_eq!(view.lookup(other, at(0), AGEING), on(P1));
}

#[test]
fn a_full_table_refuses_the_new_and_keeps_the_old() {
    let (fdb, mut view) = small(2, 10);
    assert_eq!(view.learn(key(1), P1, at(0), AGEING), Learn::New);
    assert_eq!(view.learn(key(2), P1, at(0), AGEING), Learn::New);
    assert_eq!(view.learn(key(3), P1, at(0), AGEING), Learn::Full);
    assert_eq!(view.lookup(key(3), at(0), AGEING), None);
    assert_eq!(view.lookup(key(1), at(0), AGEING), on(P1));
    assert_eq!(fdb.len(), 2);
    assert_eq!(fdb.sweep(at(301), |_| AGEING), 2);
    assert_eq!(view.learn(key(3), P1, at(301), AGEING), Learn::New);
}

#[test]
fn a_ports_share_is_its_own_and_comes_back_by_move_flush_and_age() {
    let (fdb, mut view) = small(100, 2);
    let _ = view.learn(key(1), P1, at(0), AGEING);
    let _ = view.learn(key(2), P1, at(0), AGEING);
    assert_eq!(view.learn(key(3), P1, at(0), AGEING), Learn::Full);
    assert_eq!(
        view.learn(key(4), P2, at(0), AGEING),
        Learn::New,
        "another port's share"
    );
    assert_eq!(
        view.learn(key(1), P2, at(0), AGEING),
        Learn::Moved { from: P1 }
    );
    assert_eq!(
        view.learn(key(2), P2, at(0), AGEING),
        Learn::Full,
        "a move needs room too"
    );
    assert_eq!(
        view.learn(key(3), P1, at(0), AGEING),
        Learn::New,
        "the move made room"
    );
    fdb.flush_port(P2);
    view.begin_batch();
    assert_eq!(view.learn(key(5), P2, at(0), AGEING), Learn::New);
    assert_eq!(view.learn(key(6), P2, at(0), AGEING), Learn::New);
    assert_eq!(view.learn(key(7), P2, at(0), AGEING), Learn::Full);
    assert_eq!(fdb.sweep(at(0), |_| AGEING), 2, "the flushed ones");
    assert_eq!(
        view.learn(key(7), P2, at(0), AGEING),
        Learn::Full,
        "a sweep counts once"
    );
    assert_eq!(fdb.sweep(at(999), |_| AGEING), 4);
    assert_eq!(view.learn(key(7), P2, at(999), AGEING), Learn::New);
}

#[test]
fn a_flapping_station_is_held_where_it_was_until_the_next_second() {
    let (_, mut view) = table();
    let _ = view.learn(key(1), P1, at(5), AGEING);
    let mut last = P1;
    for n in 0..MOVES_PER_SECOND_MAX {
        let to = if n % 2 == 0 { P2 } else { P1 };
        assert_eq!(
            view.learn(key(1), to, at(5), AGEING),
            Learn::Moved { from: last }
        );
        last = to;
    }
    let other = if last == P1 { P2 } else { P1 };
    assert_eq!(view.learn(key(1), other, at(5), AGEING), Learn::MoveRefused);
    assert_eq!(view.lookup(key(1), at(5), AGEING), on(last));
    assert_eq!(
        view.learn(key(1), other, at(6), AGEING),
        Learn::Moved { from: last }
    );
}

#[test]
fn a_what_if_learns_apart_and_leaves_the_table_as_it_was() {
    let (fdb, mut view) = table();
    let _ = view.learn(key(1), P1, at(0), AGEING);
    let before = fdb.state_hash();
    let mut what_if = FdbView::overlay(Arc::clone(&fdb));
    assert_eq!(what_if.lookup(key(1), at(9), AGEING), on(P1));
    assert_eq!(
        what_if.learn(key(1), P2, at(9), AGEING),
        Learn::Moved { from: P1 }
    );
    assert_eq!(what_if.learn(key(2), P2, at(9), AGEING), Learn::New);
    assert_eq!(what_if.lookup(key(1), at(9), AGEING), on(P2));
    assert_eq!(what_if.lookup(key(2), at(9), AGEING), on(P2));
    assert_eq!(fdb.state_hash(), before);
    assert_eq!(view.lookup(key(2), at(9), AGEING), None);
    let _ = view.learn(key(2), P2, at(9), AGEING);
    assert_ne!(fdb.state_hash(), before);
}

#[test]
fn workers_that_learn_at_once_agree_on_the_count() {
    let (fdb, _) = table();
    std::thread::scope(|scope| {
        for worker in 0..4u16 {
            let fdb = &fdb;
            scope.spawn(move || {
                let mut view = FdbView::live(Arc::clone(fdb));
                for round in 0..2_000u32 {
                    view.begin_batch();
                    let port = PortId(1 + (worker + round as u16) % 3);
                    let _ = view.learn(key((round % 200) as u8), port, at(0), AGEING);
                }
            });
        }
    });
    assert_eq!(fdb.len(), 200);
    let counted: u64 = fdb
        .ports
        .iter()
        .map(|p| u64::from(p.load(Ordering::Relaxed) as u32))
        .sum();
    assert_eq!(counted, 200);
    assert_eq!(fdb.rows(DomainId(3), at(0), AGEING).len(), 200);
}

fn numbered(n: u32) -> FdbKey {
    FdbKey::new(
        DomainId(3),
        VlanId(0),
        MacAddr::from_u64(0x0200_0000_0000 | u64::from(n)),
    )
}

#[test]
fn a_worn_index_is_replaced_and_every_view_goes_on_with_the_new_one() {
    let (fdb, mut view) = table();
    let lasting = numbered(1_000_000);
    let mut idle = FdbView::live(Arc::clone(&fdb));
    let _ = idle.learn(lasting, P1, at(0), AGEING);
    for n in 0..20_000 {
        let _ = view.learn(numbered(n), P1, at(0), AGEING);
    }
    let _ = view.learn(lasting, P1, at(299), AGEING);
    let (old, epoch) = (fdb.index(), fdb.epoch.load(Ordering::Relaxed));
    assert_eq!(fdb.sweep(at(300), |_| AGEING), 0);
    assert!(Arc::ptr_eq(&old, &fdb.index()), "nothing is lost yet");
    assert_eq!(fdb.sweep(at(301), |_| AGEING), 20_000);
    assert!(!Arc::ptr_eq(&old, &fdb.index()), "20,000 slots were lost");
    assert!(fdb.epoch.load(Ordering::Relaxed) > epoch);
    assert_eq!(idle.lookup(lasting, at(301), AGEING), on(P1));
    assert_eq!(
        view.learn(lasting, P2, at(301), AGEING),
        Learn::Moved { from: P1 }
    );
    assert_eq!(
        view.lookup(lasting, at(301), AGEING),
        on(P2),
        "a worker sees its own at once"
    );
    idle.begin_batch();
    assert_eq!(idle.lookup(lasting, at(301), AGEING), on(P2));
    drop(old);
    for n in 0..20_000 {
        assert_eq!(view.learn(numbered(n), P2, at(302), AGEING), Learn::New);
    }
    for n in 0..20_000 {
        assert_eq!(idle.lookup(numbered(n), at(302), AGEING), on(P2));
    }
}

#[test]
fn a_station_of_a_vlan_is_in_the_index_once_its_domain_is_open() {
    let (fdb, mut view) = table();
    let in_vlan = |vlan| FdbKey::new(DomainId(3), VlanId(vlan), key(1).mac());
    assert_eq!(view.learn(in_vlan(7), P1, at(0), AGEING), Learn::New);
    fdb.open_vlans(DomainId(3));
    for (vlan, port) in [(0, P1), (7, P1), (8, P2)] {
        let _ = view.learn(in_vlan(vlan), port, at(20), AGEING);
        let word = fdb.word(in_vlan(vlan)).unwrap();
        assert_eq!(fdb.index().get(word).port(), port, "VLAN {vlan}");
    }
    fdb.remove(DomainId(3), VlanId(7), key(1).mac());
    view.begin_batch();
    for (vlan, place) in [(0, on(P1)), (7, None), (8, on(P2))] {
        assert_eq!(view.lookup(in_vlan(vlan), at(20), AGEING), place);
    }
    let impossible = FdbKey::new(DomainId(u16::MAX), VlanId(0), key(1).mac());
    assert_eq!(fdb.word(impossible), None, "a number of a VLAN");
}

#[test]
fn stations_without_a_slot_are_found_in_the_table_of_record() {
    let (fdb, mut view) = table();
    let tagged = FdbKey::new(DomainId(3), VlanId(7), key(1).mac());
    let nobody = FdbKey::new(DomainId(0), VlanId(0), MacAddr::ZERO);
    assert_eq!((fdb.word(tagged), fdb.word(nobody)), (None, None));
    for key in [tagged, nobody] {
        assert_eq!(view.learn(key, P1, at(0), AGEING), Learn::New);
        assert_eq!(view.learn(key, P1, at(0), AGEING), Learn::Known);
        assert_eq!(view.lookup(key, at(0), AGEING), on(P1));
    }
    assert_eq!(view.lookup(key(1), at(0), AGEING), None, "another VLAN");
    // Sixteen slots for hundreds of stations, which a larger table would have room for.
    *fdb.index.write().unwrap() = Arc::new(Index::new(4, 1));
    fdb.bump_epoch();
    view.begin_batch();
    for n in 0..300 {
        let _ = view.learn(numbered(n), P1, at(0), AGEING);
        let _ = view.learn(numbered(n), P2, at(0), AGEING);
    }
    for n in 0..300 {
        let moved = if n < MOVES_PER_SECOND_MAX { P2 } else { P1 };
        assert_eq!(view.lookup(numbered(n), at(0), AGEING), on(moved));
    }
}

#[test]
fn what_is_read_ahead_is_where_a_lookup_looks() {
    let (_, mut view) = table();
    for n in 0..100u16 {
        let (domain, mac) = (DomainId(n % 7), MacAddr([2, 0, 0, 0, 1, n as u8]));
        let key = FdbKey::new(domain, VlanId(0), mac);
        assert_eq!(view.learn(key, P1, at(1), AGEING), Learn::New);
        assert!(view.has_on_line(view.line_of(domain, mac), key), "{key:?}");
    }
}
