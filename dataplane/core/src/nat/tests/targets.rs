//! Published ports with several targets: who gets a new session, and that it stays there.

use super::*;
use crate::verdict::DropReason;

const PUBLIC: &str = "198.51.100.1:80";
const RULE: u32 = 1;

/// The server of a target: its number is the last of its address.
fn server(number: u16) -> L4Addr {
    L4Addr::new(IpAddr::from([10, 0, 0, number as u8]), 8_000 + number)
}

fn client(number: u32) -> L4Addr {
    let [.., high, low] = number.to_be_bytes();
    L4Addr::new(IpAddr::from([192, 0, high, low]), 40_000)
}

/// A lab with port 80 published to servers 11, 12, ... of these weights.
fn published(weights: &[u16], balance: Balance) -> Lab {
    let mut lab = Lab::new();
    let target = |(number, weight): (u16, &u16)| Target {
        weight: *weight,
        ..Target::new(number, NET, server(number))
    };
    let targets = (11..).zip(weights).map(target).collect();
    let first = Target::new(0, NET, server(11));
    for (id, transport) in [(RULE, Transport::Tcp), (RULE + 100, Transport::Udp)] {
        let rule = StaticRule {
            balance,
            targets: Vec::clone(&targets),
            ..StaticRule::new(id, transport, 80..=80, first)
        };
        lab.topology.statics.add(rule).unwrap();
    }
    lab
}

/// Changes both rules, as a new topology does.
fn edit(lab: &mut Lab, change: impl Fn(&mut StaticRule)) {
    let mut rules = lab.topology.statics.rules().to_vec();
    rules.iter_mut().for_each(change);
    lab.topology.statics = StaticRules::build(rules).unwrap();
}

fn set_duty(lab: &mut Lab, number: u16, duty: Duty) {
    edit(lab, |rule| {
        let target = rule.targets.iter_mut().find(|target| target.id == number);
        target.unwrap().duty = duty;
    });
}

/// Sends a packet from a client and says which server it reached.
fn reach(lab: &mut Lab, kind: Kind, client: L4Addr) -> Result<u16, DropReason> {
    let (domain, inside) = lab.back(kind, client, at(PUBLIC))?;
    let number = inside.l4_port.0 - 8_000;
    assert_eq!((domain, inside), (NET, server(number)));
    Ok(number)
}

fn counts(lab: &mut Lab, clients: std::ops::Range<u32>) -> Vec<(u16, u32)> {
    let mut counts = std::collections::BTreeMap::new();
    for number in clients {
        let reached = reach(lab, Kind::Tcp(SYN), client(number)).unwrap();
        *counts.entry(reached).or_insert(0) += 1;
    }
    counts.into_iter().collect()
}

#[test]
fn new_sessions_take_turns_and_old_ones_stay() {
    let mut lab = published(&[1, 1, 1], Balance::RoundRobin);
    let first: Vec<u16> = (0..7)
        .map(|number| reach(&mut lab, Kind::Tcp(SYN), client(number)).unwrap())
        .collect();
    assert_eq!(first, [11, 12, 13, 11, 12, 13, 11]);
    for (number, own) in (0..7).zip(&first) {
        for kind in [Kind::Tcp(SYN), Kind::Tcp(ACK), Kind::Tcp(FIN_ACK)] {
            assert_eq!(reach(&mut lab, kind, client(number)), Ok(*own));
        }
        let answer = lab.out(Kind::Tcp(SYN_ACK), server(*own), client(number));
        assert_eq!(answer, Ok(at(PUBLIC)));
    }
    // Packets of known sessions took no turn, and UDP has a rule of its own.
    assert_eq!(reach(&mut lab, Kind::Tcp(SYN), client(7)), Ok(12));
    assert_eq!(reach(&mut lab, Kind::Udp, client(7)), Ok(11));
    assert_eq!(lab.nat.session_count(), 9);
}

#[test]
fn shares_follow_the_weights() {
    let mut lab = published(&[3, 1, 2], Balance::RoundRobin);
    assert_eq!(counts(&mut lab, 0..600), [(11, 300), (12, 100), (13, 200)]);
}

#[test]
fn four_workers_take_each_turn_once() {
    let lab = published(&[1, 1, 1, 1, 1], Balance::RoundRobin);
    let counts: Vec<Vec<(u16, u32)>> = std::thread::scope(|scope| {
        let worker = |index: u32| {
            let nat = Arc::clone(&lab.nat);
            scope.spawn(move || {
                let mut own = published(&[1, 1, 1, 1, 1], Balance::RoundRobin);
                own.view = NatView::live(Arc::clone(&nat));
                own.nat = nat;
                counts(&mut own, index * 1_000..index * 1_000 + 500)
            })
        };
        let workers: Vec<_> = (0..4).map(worker).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .collect()
    });
    for number in 11..16 {
        let all = counts.iter().flatten().filter(|(own, _)| *own == number);
        assert_eq!(all.map(|(_, count)| count).sum::<u32>(), 400, "{counts:?}");
    }
}

#[test]
fn an_observer_takes_no_turn() {
    let mut lab = published(&[1, 1, 1], Balance::RoundRobin);
    assert_eq!(reach(&mut lab, Kind::Tcp(SYN), client(0)), Ok(11));
    let hash = lab.nat.state_hash();
    let live = std::mem::replace(&mut lab.view, NatView::overlay(Arc::clone(&lab.nat)));
    let seen: Vec<_> = (1..4)
        .map(|number| reach(&mut lab, Kind::Tcp(SYN), client(number)).unwrap())
        .collect();
    assert_eq!(seen, [12, 13, 11], "it sees its own turns");
    assert_eq!(lab.nat.state_hash(), hash);
    lab.view = live;
    assert_eq!(reach(&mut lab, Kind::Tcp(SYN), client(9)), Ok(12));
    assert_ne!(lab.nat.state_hash(), hash);
}

#[test]
fn a_source_keeps_its_target_whatever_its_port() {
    let mut lab = published(&[1, 1, 1], Balance::SourceHash { key: 5 });
    let mut used = std::collections::BTreeSet::new();
    for number in 0..40 {
        let from = client(number);
        let own = reach(&mut lab, Kind::Tcp(SYN), from).unwrap();
        used.insert(own);
        for port in 1..5 {
            let other = L4Addr::new(from.ip, port);
            assert_eq!(reach(&mut lab, Kind::Tcp(SYN), other), Ok(own));
            assert_eq!(reach(&mut lab, Kind::Udp, other), Ok(own));
        }
    }
    assert_eq!(used.into_iter().collect::<Vec<_>>(), [11, 12, 13]);
}

#[test]
fn a_draining_target_keeps_its_sessions_and_gets_no_other() {
    let mut lab = published(&[1, 1], Balance::RoundRobin);
    assert_eq!(reach(&mut lab, Kind::Tcp(SYN), client(0)), Ok(11));
    assert_eq!(reach(&mut lab, Kind::Udp, client(0)), Ok(11));
    set_duty(&mut lab, 11, Duty::Draining);
    assert_eq!(counts(&mut lab, 100..110), [(12, 10)]);
    assert_eq!(reach(&mut lab, Kind::Tcp(ACK), client(0)), Ok(11));
    assert_eq!(reach(&mut lab, Kind::Udp, client(0)), Ok(11));
    assert_eq!(
        lab.out(Kind::Tcp(ACK), server(11), client(0)),
        Ok(at(PUBLIC))
    );
    set_duty(&mut lab, 11, Duty::Serving);
    assert_eq!(counts(&mut lab, 200..210), [(11, 5), (12, 5)]);
}

#[test]
fn a_connection_that_begins_anew_leaves_a_draining_target() {
    let mut lab = published(&[1, 1], Balance::RoundRobin);
    assert_eq!(reach(&mut lab, Kind::Tcp(SYN), client(0)), Ok(11));
    set_duty(&mut lab, 11, Duty::Draining);
    assert_eq!(
        reach(&mut lab, Kind::Tcp(SYN), client(0)),
        Ok(11),
        "sent again"
    );
    lab.out(Kind::Tcp(RST), server(11), client(0)).unwrap();
    assert_eq!(reach(&mut lab, Kind::Tcp(SYN), client(0)), Ok(12));
    assert_eq!(lab.only_session().inside, server(12));
}

#[test]
fn when_every_target_drains_a_new_client_is_dropped_with_a_reason_of_its_own() {
    for weights in [&[1][..], &[1, 1]] {
        let mut lab = published(weights, Balance::RoundRobin);
        assert_eq!(reach(&mut lab, Kind::Tcp(SYN), client(0)), Ok(11));
        edit(&mut lab, |rule| {
            rule.targets
                .iter_mut()
                .for_each(|target| target.duty = Duty::Draining);
        });
        for kind in [Kind::Tcp(SYN), Kind::Udp] {
            let refused = reach(&mut lab, kind, client(1));
            assert_eq!(refused, Err(DropReason::NatNoTarget));
        }
        let refused = lab.around(NET, &mut frame(Kind::Udp, at("10.0.0.2:50001"), at(PUBLIC)));
        assert_eq!(refused, Err(DropReason::NatNoTarget), "from inside, too");
        assert_eq!(reach(&mut lab, Kind::Tcp(ACK), client(0)), Ok(11));
    }
}

#[test]
fn a_target_that_is_taken_out_loses_its_clients_to_the_others() {
    let mut lab = published(&[1, 1], Balance::RoundRobin);
    assert_eq!(reach(&mut lab, Kind::Udp, client(0)), Ok(11));
    assert_eq!(reach(&mut lab, Kind::Udp, client(1)), Ok(12));
    edit(&mut lab, |rule| {
        rule.targets.retain(|target| target.id != 11);
    });
    assert_eq!(reach(&mut lab, Kind::Udp, client(0)), Ok(12));
    assert_eq!(lab.nat.session_count_of(NET, server(11).ip), 0);
    let stale = lab.out(Kind::Udp, server(11), client(0)).unwrap();
    assert_ne!(stale, at(PUBLIC), "nothing of the rule is left to it");
}

#[test]
fn a_target_at_another_address_takes_its_clients_along() {
    let mut lab = published(&[1, 1], Balance::RoundRobin);
    assert_eq!(reach(&mut lab, Kind::Udp, client(0)), Ok(11));
    edit(&mut lab, |rule| rule.targets[0].inside = ip("10.0.0.99"));
    let (_, inside) = lab.back(Kind::Udp, client(0), at(PUBLIC)).unwrap();
    // Whose turn it is decides, for the session is a new one.
    assert_eq!(inside, server(12));
    let (_, inside) = lab.back(Kind::Udp, client(1), at(PUBLIC)).unwrap();
    assert_eq!(inside, L4Addr::new(ip("10.0.0.99"), 8_011));
}

#[test]
fn after_a_restart_each_server_takes_up_its_own_connections() {
    let mut lab = published(&[1, 1, 1], Balance::RoundRobin);
    let unknown = reach(&mut lab, Kind::Tcp(ACK), client(0));
    assert_eq!(
        unknown,
        Err(DropReason::NatTargetUnknown),
        "a guess would end it"
    );
    for (number, own) in [(0, 12), (1, 13), (2, 11)] {
        let answer = lab.out(Kind::Tcp(ACK), server(own), client(number));
        assert_eq!(answer, Ok(at(PUBLIC)));
        assert_eq!(reach(&mut lab, Kind::Tcp(ACK), client(number)), Ok(own));
    }
    // By the hash the client's side finds the same target as before.
    let key = Balance::SourceHash { key: 5 };
    let mut before = published(&[1, 1, 1], key);
    let mut after = published(&[1, 1, 1], key);
    for number in 0..20 {
        let own = reach(&mut before, Kind::Tcp(SYN), client(number));
        assert_eq!(reach(&mut after, Kind::Tcp(ACK), client(number)), own);
    }
}

#[test]
fn a_hairpin_reaches_every_target_also_from_one_of_them() {
    for from in ["10.0.0.2:50001", "10.0.0.11:50001"] {
        let mut lab = published(&[1, 1, 1], Balance::RoundRobin);
        for turn in 0..6 {
            let own = 11 + turn % 3;
            let inside = L4Addr::new(at(from).ip, 50_001 + turn * 64);
            let mut request = frame(Kind::Tcp(SYN), inside, at(PUBLIC));
            lab.around(NET, &mut request).unwrap();
            let (seen, to) = ends(request.bytes());
            assert_eq!((seen.ip, to), (ip("198.51.100.1"), server(own)));
            let mut answer = frame(Kind::Tcp(SYN_ACK), server(own), seen);
            lab.around(NET, &mut answer).unwrap();
            assert_eq!(ends(answer.bytes()), (at(PUBLIC), inside));
        }
    }
}
