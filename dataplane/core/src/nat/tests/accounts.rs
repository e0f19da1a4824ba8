//! What published ports and networks have carried.

use super::*;

const CLIENT: &str = "192.0.2.77:40000";
const SERVER: &str = "10.0.0.8:8080";
const PUBLIC: &str = "198.51.100.1:80";
const REMOTE: &str = "203.0.113.5:443";
/// TCP's rule of [`Lab::publish`], with its only target.
const PUBLISHED: Account = Account::Target { rule: 1, target: 0 };

/// Bytes of the IP packet that [`frame`] makes.
fn size_of_packet(kind: Kind) -> u64 {
    let buf = frame(kind, at(CLIENT), at(PUBLIC));
    buf.bytes().len() as u64 - 14
}

fn totals(lab: &Lab, account: Account) -> Totals {
    lab.nat
        .accounts()
        .get(&account)
        .copied()
        .unwrap_or_default()
}

#[test]
fn packets_and_bytes_are_counted_both_ways_and_survive_their_session() {
    let mut lab = Lab::new();
    lab.publish(1, "*", 80..=80, at(SERVER));
    let (syn, udp) = (size_of_packet(Kind::Tcp(SYN)), size_of_packet(Kind::Udp));
    for _ in 0..3 {
        lab.back(Kind::Tcp(SYN), at(CLIENT), at(PUBLIC)).unwrap();
    }
    lab.out(Kind::Tcp(SYN_ACK), at(SERVER), at(CLIENT)).unwrap();
    lab.out(Kind::Udp, at("10.0.0.2:50001"), at(REMOTE))
        .unwrap();
    lab.out_from(TWIN, Kind::Udp, at("10.0.0.2:50001"), at(REMOTE))
        .unwrap();
    let published = Totals {
        opened: 1,
        live: 1,
        packets_out: 1,
        packets_in: 3,
        bytes_out: syn,
        bytes_in: 3 * syn,
    };
    let sent = Totals {
        opened: 1,
        live: 1,
        packets_out: 1,
        bytes_out: udp,
        ..Totals::default()
    };
    let live = [
        (Account::Network(NET), sent),
        (Account::Network(TWIN), sent),
        (PUBLISHED, published),
    ];
    assert_eq!(lab.nat.accounts().into_iter().collect::<Vec<_>>(), live);
    assert_eq!(lab.nat.live_sessions(PUBLISHED), 1);
    lab.nat.remove_sessions(|_| true);
    let ended = live.map(|(account, totals)| (account, Totals { live: 0, ..totals }));
    assert_eq!(lab.nat.accounts().into_iter().collect::<Vec<_>>(), ended);
    assert_eq!(lab.nat.live_sessions(PUBLISHED), 0);
    lab.nat.forget_rule(1);
    assert_eq!(totals(&lab, PUBLISHED), Totals::default());
    assert_eq!(totals(&lab, Account::Network(NET)).packets_out, 1);
}

#[test]
fn a_session_that_begins_again_in_its_place_is_a_new_one() {
    let mut lab = Lab::new();
    let host = at("10.0.0.2:50001");
    lab.out(Kind::Udp, host, at(REMOTE)).unwrap();
    lab.wait(301);
    lab.out(Kind::Udp, host, at(REMOTE)).unwrap();
    assert_eq!(lab.only_session().packets_out, 1);
    let sum = totals(&lab, Account::Network(NET));
    assert_eq!((sum.opened, sum.live, sum.packets_out), (2, 1, 2));
    assert_eq!(sum.bytes_out, 2 * size_of_packet(Kind::Udp));
}

#[test]
fn zeroing_leaves_live_sessions_and_counts_what_they_carry_from_then_on() {
    let mut lab = Lab::new();
    lab.publish(1, "*", 80..=80, at(SERVER));
    for port in 1..=20 {
        let client = L4Addr::new(at(CLIENT).ip, port);
        lab.back(Kind::Tcp(SYN), client, at(PUBLIC)).unwrap();
    }
    lab.nat.zero_accounts();
    let nothing = Totals {
        live: 20,
        ..Totals::default()
    };
    assert_eq!(totals(&lab, PUBLISHED), nothing);
    let first = L4Addr::new(at(CLIENT).ip, 1);
    lab.out(Kind::Tcp(SYN_ACK), at(SERVER), first).unwrap();
    let one = Totals {
        packets_out: 1,
        bytes_out: size_of_packet(Kind::Tcp(SYN)),
        ..nothing
    };
    assert_eq!(totals(&lab, PUBLISHED), one);
    lab.nat.remove_sessions(|_| true);
    assert_eq!(totals(&lab, PUBLISHED), Totals { live: 0, ..one });
}

#[test]
fn an_observers_packets_are_in_nobodys_account() {
    let mut lab = Lab::new();
    lab.publish(1, "*", 80..=80, at(SERVER));
    lab.back(Kind::Tcp(SYN), at(CLIENT), at(PUBLIC)).unwrap();
    let before = lab.nat.accounts();
    lab.view = NatView::overlay(Arc::clone(&lab.nat));
    lab.back(Kind::Tcp(SYN), at(CLIENT), at(PUBLIC)).unwrap();
    lab.back(Kind::Udp, at(CLIENT), at(PUBLIC)).unwrap();
    lab.out(Kind::Udp, at("10.0.0.2:50001"), at(REMOTE))
        .unwrap();
    assert_eq!(lab.nat.accounts(), before);
}

#[test]
fn accounts_equal_the_sum_of_all_packets_over_any_history() {
    let mut rng = fastrand::Rng::with_seed(11);
    let mut lab = Lab::new();
    lab.publish(1, "*", 80..=80, at(SERVER));
    let mut model: std::collections::BTreeMap<Account, [u64; 2]> = Default::default();
    for _ in 0..4_000 {
        let host = L4Addr::new(
            IpAddr::from([10, 0, 0, rng.u8(2..5)]),
            rng.u16(50_000..50_100),
        );
        let client = L4Addr::new(at(CLIENT).ip, rng.u16(1..200));
        let carried = match rng.u8(0..8) {
            0 => {
                lab.wait(rng.u64(0..200));
                lab.nat
                    .expire(lab.now, &NatConfig::default(), rng.usize(0..30));
                None
            }
            1..=4 => {
                lab.out(Kind::Udp, host, at(REMOTE)).unwrap();
                Some((Account::Network(NET), 0))
            }
            _ => {
                lab.back(Kind::Tcp(SYN), client, at(PUBLIC)).unwrap();
                Some((PUBLISHED, 1))
            }
        };
        if let Some((account, way)) = carried {
            model.entry(account).or_default()[way] += 1;
        }
    }
    for (account, [packets_out, packets_in]) in model {
        let sum = totals(&lab, account);
        assert_eq!((sum.packets_out, sum.packets_in), (packets_out, packets_in));
        let live = lab.nat.sessions(usize::MAX);
        let live = live
            .iter()
            .filter(|s| s.rule.is_some() == (account == PUBLISHED));
        assert_eq!(sum.live, live.count() as u64);
    }
}
