//! The index of published intervals, from both sides.

use super::*;

fn rule(id: u32, external: Option<&str>, ports: RangeInclusive<u16>, first: u16) -> StaticRule {
    StaticRule {
        external: external.map_or(External::Every, |text| External::Address(ip_of(text))),
        ..StaticRule::new(id, Transport::Tcp, ports, target(0, first))
    }
}

fn target(id: u16, first: u16) -> Target {
    Target::new(id, DomainId(1), outside("10.0.0.2", first))
}

fn outside(text: &str, port: u16) -> L4Addr {
    L4Addr::new(ip_of(text), port)
}

fn by_uplink(addresses: &[&str]) -> External {
    let addresses = addresses.iter().map(|text| ip_of(text));
    External::Uplink(UplinkId(1), addresses.collect())
}

fn ip_of(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn hit(rules: &StaticRules, text: &str, port: u16) -> Option<u32> {
    rules
        .by_external(Transport::Tcp, outside(text, port))
        .map(|rule| rule.id)
}

#[test]
fn a_rule_for_one_address_goes_before_a_rule_for_all() {
    let mut rules = StaticRules::default();
    rules.add(rule(1, None, 80..=90, 8_080)).unwrap();
    rules.add(rule(2, Some("192.0.2.1"), 85..=85, 22)).unwrap();
    assert_eq!(hit(&rules, "192.0.2.1", 85), Some(2));
    assert_eq!(hit(&rules, "192.0.2.2", 85), Some(1));
    assert_eq!(hit(&rules, "192.0.2.1", 90), Some(1));
    for (address, port) in [("192.0.2.1", 79), ("192.0.2.1", 91), ("2001:db8::1", 85)] {
        assert_eq!(hit(&rules, address, port), None, "{address} {port}");
    }
    let udp = rules.by_external(Transport::Udp, outside("192.0.2.1", 85));
    assert_eq!(udp, None);
    for (number, covered) in [(6, true), (17, false), (1, false)] {
        let address = ip_of("192.0.2.1");
        assert_eq!(rules.covers(number, address, L4Port(85)), covered);
    }
}

#[test]
fn a_rule_of_an_uplink_is_at_each_of_its_addresses_and_at_no_other() {
    let mut rules = StaticRules::default();
    let mut own = rule(1, None, 80..=90, 8_080);
    own.external = by_uplink(&["192.0.2.1", "2001:db8::1", "192.0.2.7"]);
    rules.add(own).unwrap();
    rules.add(rule(2, None, 85..=85, 22)).unwrap();
    for (address, port, wanted) in [
        ("192.0.2.1", 85, Some(1)),
        ("192.0.2.7", 90, Some(1)),
        ("192.0.2.8", 85, Some(2)),
        ("192.0.2.8", 90, None),
        ("2001:db8::1", 85, None),
    ] {
        assert_eq!(hit(&rules, address, port), wanted, "{address} {port}");
    }
    let other = rule(3, Some("192.0.2.7"), 88..=99, 1);
    let overlap = rules.add(other);
    assert!(matches!(
        overlap,
        Err(RuleError::Overlap {
            other: 1,
            from: 88,
            to: 90,
            ..
        })
    ));
    // An uplink that has no address is entered by nobody.
    let mut none = rule(4, None, 7..=7, 7);
    none.external = by_uplink(&[]);
    rules.add(none).unwrap();
    assert_eq!(hit(&rules, "192.0.2.1", 7), None);
    let inside = outside("10.0.0.2", 7);
    let found = rules.by_inside(Transport::Tcp, DomainId(1), inside);
    let (rule, _) = found.unwrap();
    assert_eq!(rule.external.source(ip_of("192.0.2.8")), ip_of("192.0.2.8"));
    let own = &rules.rules()[0].external;
    for (host, wanted) in [
        ("192.0.2.8", "192.0.2.1"),
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::8", "2001:db8::1"),
    ] {
        assert_eq!(own.source(ip_of(host)), ip_of(wanted));
    }
    assert_eq!(rules.remove(1).map(|rule| rule.id), Some(1));
    assert_eq!(hit(&rules, "192.0.2.7", 85), Some(2));
}

#[test]
fn intervals_keep_their_offset_in_both_directions() {
    let rule = rule(1, None, 1_000..=1_999, 5_000);
    let target = rule.targets[0];
    let inside = outside("10.0.0.2", 5_234);
    assert_eq!(target.inside_of(&rule, L4Port(1_234)), inside);
    assert_eq!(target.external_of(&rule, L4Port(5_234)), L4Port(1_234));
}

#[test]
fn an_overlap_is_refused_and_names_the_other_rule() {
    let mut rules = StaticRules::default();
    rules.add(rule(7, None, 100..=200, 100)).unwrap();
    let wanted = |id, from, to| RuleError::Overlap {
        rule: id,
        other: 7,
        transport: Transport::Tcp,
        from,
        to,
    };
    for (ports, from, to) in [
        (200..=300, 200, 200),
        (50..=100, 100, 100),
        (150..=150, 150, 150),
        (1..=65_000, 100, 200),
    ] {
        let refused = rules.add(rule(8, None, ports, 1)).unwrap_err();
        assert_eq!(refused, wanted(8, from, to));
    }
    assert_eq!(rules.rules().len(), 1);
    rules.add(rule(9, None, 201..=300, 1)).unwrap();
    rules.add(rule(10, None, 1..=99, 1)).unwrap();
    let both = vec![rule(7, None, 100..=200, 100), rule(8, None, 1..=150, 1)];
    assert_eq!(StaticRules::build(both).unwrap_err(), wanted(8, 100, 150));
}

#[test]
fn unsound_rules_are_refused() {
    let mut rules = StaticRules::default();
    #[expect(clippy::reversed_empty_ranges)]
    let empty = rule(1, None, 5..=4, 1);
    assert_eq!(rules.add(empty), Err(RuleError::Empty(1)));
    assert_eq!(rules.add(rule(1, None, 0..=4, 1)), Err(RuleError::Empty(1)));
    let beyond = rule(1, None, 1..=10, 65_530);
    assert_eq!(rules.add(beyond), Err(RuleError::InsideRange(1)));
    let mixed = rule(1, Some("2001:db8::1"), 1..=10, 1);
    assert_eq!(rules.add(mixed), Err(RuleError::Family(1)));
    rules.add(rule(1, None, 1..=10, 1)).unwrap();
    let twice = rule(1, None, 11..=12, 1);
    assert_eq!(rules.add(twice), Err(RuleError::Duplicate(1)));
}

#[test]
fn targets_are_checked_each_and_together() {
    let with = |targets: Vec<Target>| {
        let rule = StaticRule {
            targets,
            ..rule(1, None, 1..=10, 1)
        };
        StaticRules::build(vec![rule.clone()])?;
        StaticRules::default().add(rule)
    };
    let many = |count: u16| (0..count).map(|id| target(id, 100)).collect::<Vec<_>>();
    assert_eq!(with(many(TARGETS_MAX as u16)), Ok(()));
    assert_eq!(
        with(many(TARGETS_MAX as u16 + 1)),
        Err(RuleError::Targets(1))
    );
    assert_eq!(with(Vec::new()), Err(RuleError::Targets(1)));
    let twice = vec![target(5, 1), target(5, 100)];
    assert_eq!(with(twice), Err(RuleError::Targets(1)));
    for (weight, wanted) in [(0, Err(RuleError::Weight(1))), (WEIGHT_MAX, Ok(()))] {
        let mut second = target(1, 100);
        second.weight = weight;
        assert_eq!(with(vec![target(0, 1), second]), wanted);
    }
    let mut foreign = target(1, 100);
    foreign.inside = ip_of("fd00::2");
    assert_eq!(with(vec![target(0, 1), foreign]), Err(RuleError::Family(1)));
    let beyond = vec![target(0, 1), target(1, 65_530)];
    assert_eq!(with(beyond), Err(RuleError::InsideRange(1)));
}

#[test]
fn every_target_is_found_from_inside_whatever_order_they_came_in() {
    let mut rules = StaticRules::default();
    let first = rule(1, None, 80..=89, 8_080);
    let second = StaticRule {
        targets: vec![target(9, 7_000), target(3, 9_000), target(4, 8_085)],
        ..rule(2, None, 100..=109, 1)
    };
    rules.add(first).unwrap();
    rules.add(second.clone()).unwrap();
    let find = |rules: &StaticRules, port| {
        let inside = outside("10.0.0.2", port);
        let found = rules.by_inside(Transport::Tcp, DomainId(1), inside);
        found.map(|(rule, target)| (rule.id, target.id, target.external_of(rule, L4Port(port)).0))
    };
    for (port, wanted) in [
        (7_000, Some((2, 9, 100))),
        (9_009, Some((2, 3, 109))),
        (8_080, Some((1, 0, 80))),
        (8_089, Some((2, 4, 104))),
        (8_094, Some((2, 4, 109))),
        (8_095, None),
    ] {
        assert_eq!(find(&rules, port), wanted, "{port}");
    }
    assert_eq!(
        rules.rules()[1].target(4).map(|t| t.inside_port_first),
        Some(8_085)
    );
    assert_eq!(rules.rules()[1].target(5), None);
    rules.remove(1).unwrap();
    assert_eq!(find(&rules, 8_080), None);
    assert_eq!(find(&rules, 9_000), Some((2, 3, 100)));
    rules.remove(2).unwrap();
    assert_eq!(find(&rules, 9_000), None);
}

#[test]
fn one_inside_port_may_be_published_twice_and_is_found_under_a_wider_interval() {
    let mut rules = StaticRules::default();
    rules.add(rule(1, None, 1_000..=1_999, 1)).unwrap();
    rules.add(rule(2, None, 80..=80, 80)).unwrap();
    rules.add(rule(3, None, 81..=81, 300)).unwrap();
    let find = |rules: &StaticRules, port| {
        rules
            .by_inside(Transport::Tcp, DomainId(1), outside("10.0.0.2", port))
            .map(|(rule, _)| rule.id)
    };
    assert_eq!(find(&rules, 80), Some(2));
    assert_eq!(
        find(&rules, 500),
        Some(1),
        "rule 3 begins later but ends before"
    );
    assert_eq!(find(&rules, 1_000), Some(1));
    assert_eq!(find(&rules, 1_001), None);
    assert_eq!(rules.remove(1).map(|rule| rule.id), Some(1));
    assert_eq!((find(&rules, 80), find(&rules, 500)), (Some(2), None));
    assert_eq!(hit(&rules, "192.0.2.1", 81), Some(3));
    assert_eq!(hit(&rules, "192.0.2.1", 1_500), None);
}

#[test]
fn building_at_once_equals_adding_one_by_one() {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut added = StaticRules::default();
    for id in 0..400 {
        let first = rng.u16(1..2_000);
        let ports = first..=first + rng.u16(0..8);
        let external = [None, Some("192.0.2.1")][rng.usize(0..2)];
        let mut rule = rule(id, external, ports, rng.u16(1..2_000));
        if rng.u8(..) < 50 {
            rule.external = by_uplink(&["192.0.2.1", "fd00::1", "192.0.2.9"]);
        }
        // An overlap is refused, which leaves what is there in place.
        let _refused = added.add(rule);
    }
    let built = StaticRules::build(added.rules().to_vec()).unwrap();
    for port in 0..2_100 {
        let model = |address: IpAddr| {
            let covers = |rule: &&StaticRule| rule.external_ports.contains(&port);
            let own = |rule: &&StaticRule| rule.external.named().contains(&address);
            let all = |rule: &&StaticRule| rule.external == External::Every;
            let rules = added.rules().iter().filter(covers);
            rules.clone().find(own).or(rules.clone().find(all)).cloned()
        };
        for text in ["192.0.2.1", "192.0.2.9"] {
            let external = outside(text, port);
            let wanted = model(external.ip);
            for rules in [&added, &built] {
                let found = rules.by_external(Transport::Tcp, external).cloned();
                assert_eq!(found, wanted, "{external}");
            }
        }
        let inside = outside("10.0.0.2", port);
        let covers = |rule: &StaticRule| {
            let covers = |target: &Target| {
                let last = rule.inside_port_last(target).unwrap();
                (target.inside_port_first..=last).contains(&port)
            };
            rule.targets.iter().any(covers)
        };
        let found = added.by_inside(Transport::Tcp, DomainId(1), inside);
        assert_eq!(found.is_some(), added.rules().iter().any(covers), "{port}");
        assert!(found.is_none_or(|(rule, _)| covers(rule)));
    }
}
