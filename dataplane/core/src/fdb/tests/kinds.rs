//! Entries that commands have set: what ends them, and what moves them.

use super::*;

const P3: PortId = PortId(3);

fn set(fdb: &Fdb, n: u8, port: PortId, kind: FdbKind) {
    fdb.set(key(n), port, kind, at(0)).unwrap();
}

fn row(fdb: &Fdb, n: u8, now: Instant) -> Option<FdbRow> {
    let rows = fdb.rows(DomainId(3), now, AGEING);
    rows.into_iter().find(|row| row.mac == key(n).mac())
}

#[test]
fn a_kind_has_bits_of_its_own() {
    for kind in FdbKind::ALL {
        let entry = FdbEntry::new(PortId(0x1fff), 0x3fff, 7).of_kind(kind);
        assert_eq!(entry.kind(), kind);
        let parts = (entry.port(), entry.generation(), entry.second());
        assert_eq!(parts, (PortId(0x1fff), 0x3fff, 7));
        assert_eq!(entry.of_kind(FdbKind::Dynamic).kind(), FdbKind::Dynamic);
    }
    assert_eq!(next_generation(0x3fff), 0, "and the kind stays out of it");
}

#[test]
fn a_static_entry_neither_ages_nor_moves_and_outlives_a_flush() {
    let (fdb, mut view) = table();
    set(&fdb, 1, P1, FdbKind::Static);
    view.begin_batch();
    for second in [0, 301, 100_000] {
        assert_eq!(view.lookup(key(1), at(second), AGEING), on(P1), "{second}");
        let learned = view.learn(key(1), P2, at(second), AGEING);
        assert_eq!(learned, Learn::Pinned { at: P1 });
        assert_eq!(view.learn(key(1), P1, at(second), AGEING), Learn::Known);
    }
    fdb.flush_port(P1);
    fdb.flush_domain(DomainId(3), None, Flush::Learned);
    assert_eq!(fdb.sweep(at(200_000), |_| AGEING), 0);
    view.begin_batch();
    assert_eq!(view.lookup(key(1), at(200_000), AGEING), on(P1));
    assert_eq!(view.learn(key(1), P1, at(200_000), AGEING), Learn::Known);
    assert_eq!(row(&fdb, 1, at(200_001)).unwrap().age.as_secs(), 1);
    assert_eq!(fdb.flush_domain(DomainId(3), None, Flush::All), 1);
    view.begin_batch();
    assert_eq!(view.lookup(key(1), at(200_000), AGEING), None);
}

#[test]
fn a_busy_static_station_writes_as_seldom_as_a_learned_one() {
    let (fdb, mut view) = table();
    set(&fdb, 1, P1, FdbKind::Static);
    fdb.flush_port(P1);
    let mut writes = 0;
    let mut last = fdb.state_hash();
    for second in 0..=300 {
        let _ = view.learn(key(1), P1, at(second), AGEING);
        writes += u32::from(fdb.state_hash() != last);
        last = fdb.state_hash();
    }
    assert!((15..=17).contains(&writes), "{writes} writes");
}

#[test]
fn a_sticky_entry_does_not_move_and_ages_as_any_other() {
    let (fdb, mut view) = table();
    set(&fdb, 1, P1, FdbKind::Sticky);
    view.begin_batch();
    assert_eq!(
        view.learn(key(1), P2, at(1), AGEING),
        Learn::Pinned { at: P1 }
    );
    assert_eq!(view.learn(key(1), P1, at(200), AGEING), Learn::Known);
    assert_eq!(view.lookup(key(1), at(500), AGEING), on(P1), "refreshed");
    assert_eq!(view.lookup(key(1), at(501), AGEING), None);
    assert_eq!(view.learn(key(1), P2, at(501), AGEING), Learn::New);
    assert_eq!(row(&fdb, 1, at(501)).unwrap().kind, FdbKind::Dynamic);
    set(&fdb, 2, P1, FdbKind::Sticky);
    fdb.flush_port(P1);
    view.begin_batch();
    assert_eq!(view.lookup(key(2), at(0), AGEING), None, "flushed");
}

#[test]
fn a_local_address_is_the_switchs_and_is_never_learned() {
    let (fdb, mut view) = table();
    let _ = view.learn(key(1), P2, at(0), AGEING);
    set(&fdb, 1, P1, FdbKind::Local);
    view.begin_batch();
    for port in [P1, P2] {
        assert_eq!(view.learn(key(1), port, at(1), AGEING), Learn::Exempt);
    }
    assert_eq!(view.lookup(key(1), at(9_999), AGEING), Some(Place::Local));
    assert_eq!(row(&fdb, 1, at(0)).unwrap().port, P1);
    assert!(fdb.remove(DomainId(3), VlanId(0), key(1).mac()));
    view.begin_batch();
    assert_eq!(view.lookup(key(1), at(1), AGEING), None);
    assert_eq!(view.learn(key(1), P2, at(1), AGEING), Learn::New);
}

#[test]
fn a_worker_follows_what_is_set_in_its_next_batch() {
    let (fdb, mut view) = table();
    let _ = view.learn(key(1), P2, at(0), AGEING);
    set(&fdb, 1, P1, FdbKind::Static);
    view.begin_batch();
    assert_eq!(view.lookup(key(1), at(0), AGEING), on(P1));
    set(&fdb, 1, P3, FdbKind::Static);
    view.begin_batch();
    assert_eq!(view.lookup(key(1), at(0), AGEING), on(P3));
    assert_eq!(fdb.len(), 1);
}

#[test]
fn what_is_set_takes_no_share_of_its_port_and_finds_no_room_in_a_full_table() {
    let (fdb, mut view) = small(3, 1);
    let _ = view.learn(key(1), P1, at(0), AGEING);
    set(&fdb, 2, P1, FdbKind::Static);
    assert_eq!(
        fdb.set(key(3), P1, FdbKind::Sticky, at(0)),
        Err(Full),
        "a sticky one is of the port's share"
    );
    set(&fdb, 1, P1, FdbKind::Sticky);
    assert_eq!(view.learn(key(4), P1, at(0), AGEING), Learn::Full);
    set(&fdb, 1, P1, FdbKind::Static);
    assert_eq!(
        view.learn(key(4), P1, at(0), AGEING),
        Learn::New,
        "room again"
    );
    assert_eq!(fdb.set(key(5), P2, FdbKind::Static, at(0)), Err(Full));
    assert_eq!(fdb.len(), 3);
    assert_eq!(fdb.flush_domain(DomainId(3), Some(P1), Flush::Learned), 1);
    set(&fdb, 5, P2, FdbKind::Static);
    assert_eq!(fdb.flush_domain(DomainId(3), Some(P1), Flush::All), 2);
    assert_eq!(fdb.rows(DomainId(3), at(0), AGEING).len(), 1, "port 2's");
}

#[test]
fn a_port_that_goes_takes_all_its_entries_along() {
    let (fdb, mut view) = table();
    let _ = view.learn(key(1), P1, at(0), AGEING);
    set(&fdb, 2, P1, FdbKind::Static);
    set(&fdb, 3, P1, FdbKind::Local);
    set(&fdb, 4, P2, FdbKind::Static);
    fdb.forget_port(P1);
    view.begin_batch();
    for n in 1..=3 {
        assert_eq!(view.lookup(key(n), at(0), AGEING), None, "{n}");
    }
    assert_eq!(view.lookup(key(4), at(0), AGEING), on(P2));
}

#[test]
fn moves_are_counted_by_station() {
    let (fdb, mut view) = table();
    for (n, port) in [P1, P2, P1, P3].into_iter().enumerate() {
        let _ = view.learn(key(1), port, at(n as u64), AGEING);
    }
    assert_eq!(row(&fdb, 1, at(4)).unwrap().moves, 3);
    set(&fdb, 1, P3, FdbKind::Static);
    let _ = view.learn(key(1), P1, at(5), AGEING);
    assert_eq!(row(&fdb, 1, at(5)).unwrap().moves, 3);
}

#[test]
fn a_what_if_keeps_to_what_is_set() {
    let (fdb, _) = table();
    set(&fdb, 1, P1, FdbKind::Static);
    set(&fdb, 2, P1, FdbKind::Local);
    set(&fdb, 3, P1, FdbKind::Sticky);
    let mut what_if = FdbView::overlay(Arc::clone(&fdb));
    for n in [1, 3] {
        let learned = what_if.learn(key(n), P2, at(0), AGEING);
        assert_eq!(learned, Learn::Pinned { at: P1 });
        assert_eq!(what_if.learn(key(n), P1, at(0), AGEING), Learn::Known);
        let learned = what_if.learn(key(n), P2, at(1), AGEING);
        assert_eq!(learned, Learn::Pinned { at: P1 }, "its own memory as well");
    }
    assert_eq!(what_if.learn(key(2), P2, at(0), AGEING), Learn::Exempt);
    assert_eq!(what_if.lookup(key(2), at(0), AGEING), Some(Place::Local));
}

#[test]
fn a_port_learns_no_more_than_its_own_limit_and_the_others_as_before() {
    let (fdb, mut view) = table();
    fdb.limit_port(P1, Some(2));
    for n in [1, 2] {
        assert_eq!(view.learn(key(n), P1, at(0), AGEING), Learn::New);
    }
    assert_eq!(view.learn(key(3), P1, at(0), AGEING), Learn::Limited);
    assert_eq!(view.lookup(key(3), at(0), AGEING), None);
    assert_eq!(view.learn(key(3), P2, at(0), AGEING), Learn::New);
    let moved = view.learn(key(3), P1, at(0), AGEING);
    assert_eq!(moved, Learn::Limited, "a move needs room too");
    assert_eq!(view.learn(key(1), P1, at(0), AGEING), Learn::Known);
    assert_eq!(
        fdb.usage_of(P1),
        PortUsage {
            stations: 2,
            refused: 2
        }
    );
    let mut what_if = FdbView::overlay(Arc::clone(&fdb));
    assert_eq!(what_if.learn(key(9), P1, at(0), AGEING), Learn::Limited);
    assert_eq!(fdb.usage_of(P1).refused, 2, "asking is not counted");
    set(&fdb, 4, P1, FdbKind::Static);
    assert_eq!(fdb.set(key(5), P1, FdbKind::Sticky, at(0)), Err(Full));
    fdb.limit_port(P1, Some(1));
    assert_eq!(view.lookup(key(2), at(0), AGEING), on(P1), "it was there");
    fdb.limit_port(P1, None);
    assert_eq!(
        view.learn(key(3), P1, at(1), AGEING),
        Learn::Moved { from: P2 }
    );
}
