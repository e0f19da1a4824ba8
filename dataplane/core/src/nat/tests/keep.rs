//! Sessions that outlive the process: what the journal tells, and what comes back.

use std::collections::BTreeMap;

use super::*;
use crate::addr::MacAddr;
use crate::topology::{Domain, NatMode, Neighbour};

/// Packets, pauses and looks at the journal of one run.
const STEPS: usize = 1_500;
/// Runs when no `SEED` is given.
const RUNS: u64 = 12;

const SERVER: &str = "10.0.0.8:8080";

/// The lab with two networks, their endpoints, and a published port.
fn lab(seed: u64) -> Lab {
    let mut lab = Lab::with_seed(seed);
    for (id, name) in [(NET, "net"), (TWIN, "twin")] {
        let mut domain = Domain::new(id, name);
        let neighbour = Neighbour {
            mac: MacAddr::ZERO,
            port: PortId(1),
        };
        for host in 2..=9 {
            for address in [format!("10.0.0.{host}"), format!("fd00::{host}")] {
                domain.neighbours.insert(ip(&address), neighbour);
            }
        }
        domain.nat.filtering = Dependence::AddressDependent;
        lab.topology.put_domain(domain);
    }
    let twin = lab.topology.domains[TWIN.index()].as_mut().unwrap();
    twin.nat.mapping = Dependence::AddressDependent;
    for address in [external_of(ip("10.0.0.2")), external_of(ip("fd00::2"))] {
        lab.topology.local_addresses.insert(address);
    }
    lab.publish(1, "*", 8_000..=8_009, at(SERVER));
    lab.topology.nat.port_range = 50_000..=50_511;
    lab
}

/// Another process with the same picture.
fn successor(lab: &Lab, seed: u64) -> Lab {
    let nat = Nat::new(seed);
    Lab {
        view: NatView::live(Arc::clone(&nat)),
        nat,
        topology: lab.topology.clone(),
        now: lab.now,
    }
}

fn all(nat: &Nat) -> BTreeMap<SlotId, SavedSession> {
    let mut saved = BTreeMap::new();
    let mut cursor = SaveCursor::default();
    while nat.save_all(&mut cursor, |slot, session| {
        assert_eq!(saved.insert(slot, session), None, "each once");
    }) {}
    saved
}

fn restore(lab: &mut Lab, saved: impl IntoIterator<Item = SavedSession>) -> Restored {
    let saved = saved.into_iter().collect();
    lab.nat.restore(&lab.topology, saved, lab.now)
}

/// A listing, in an order of its own.
fn listing(nat: &Nat) -> Vec<String> {
    let sessions = nat.sessions(usize::MAX);
    let mut texts: Vec<_> = sessions.iter().map(|s| format!("{s:?}")).collect();
    texts.sort();
    texts
}

fn any_packet(rng: &mut fastrand::Rng, lab: &mut Lab) {
    let kinds = [
        Kind::Tcp(SYN),
        Kind::Tcp(SYN_ACK),
        Kind::Tcp(ACK),
        Kind::Tcp(FIN_ACK),
        Kind::Tcp(RST),
        Kind::Udp,
        Kind::EchoRequest,
    ];
    let kind = kinds[rng.usize(0..kinds.len())];
    let v6 = rng.u8(0..4) == 0;
    let (hosts, remotes) = if v6 {
        ("[fd00::", "[2001:db8:9::")
    } else {
        ("10.0.0.", "203.0.113.")
    };
    let close = if v6 { "]" } else { "" };
    let port = 50_000 + 64 * rng.u16(0..3);
    let inside = match rng.u8(0..5) {
        0 if !v6 => at(SERVER),
        _ => at(&format!("{hosts}{}{close}:{port}", rng.u8(2..5))),
    };
    let remote = at(&format!(
        "{remotes}{}{close}:{}",
        rng.u8(1..4),
        rng.u16(50..53)
    ));
    let echo = kind == Kind::EchoRequest;
    let remote = if echo {
        L4Addr::new(remote.ip, 0)
    } else {
        remote
    };
    let domain = [NET, TWIN][rng.usize(0..2)];
    // Whatever becomes of a packet, it becomes of it in the tables.
    let _ = match rng.u8(0..3) {
        0 => lab.out_from(domain, kind, inside, remote).map(drop),
        1 if echo => lab
            .back(
                Kind::EchoReply,
                remote,
                L4Addr::new(external_of(inside.ip), port),
            )
            .map(drop),
        1 => lab
            .back(kind, remote, L4Addr::new(external_of(inside.ip), port))
            .map(drop),
        _ if echo || v6 => Ok(()),
        _ => lab.back(kind, remote, at("198.51.100.1:8000")).map(drop),
    };
}

/// Random traffic, pauses, sweeps and removals; what a log of the journal holds in the end.
fn run(rng: &mut fastrand::Rng, lab: &mut Lab) -> BTreeMap<SlotId, SavedSession> {
    let mut log = BTreeMap::new();
    lab.nat.keep_journal();
    let look = |lab: &Lab, log: &mut BTreeMap<_, _>, budget| {
        lab.nat.save_changed(budget, |slot, session| match session {
            Some(session) => {
                log.insert(slot, session);
            }
            None => {
                log.remove(&slot);
            }
        })
    };
    for _ in 0..STEPS {
        match rng.u8(0..40) {
            0 => lab.wait(rng.u64(1..40)),
            1 => {
                lab.nat.expire(lab.now, &lab.topology.nat, rng.usize(1..50));
            }
            2 => {
                let gone = ip(&format!("10.0.0.{}", rng.u8(2..5)));
                lab.nat.remove_sessions(|session| session.inside.ip == gone);
            }
            3..6 => {
                look(lab, &mut log, rng.usize(0..20));
            }
            _ => any_packet(rng, lab),
        }
    }
    while look(lab, &mut log, 64) == 64 {}
    assert_eq!(look(lab, &mut log, 64), 0, "all are told of");
    log
}

fn seeds() -> std::ops::Range<u64> {
    match std::env::var("SEED") {
        Ok(text) => {
            let seed: u64 = text.parse().unwrap();
            seed..seed + 1
        }
        Err(_) => 0..RUNS,
    }
}

#[test]
fn the_journal_tells_of_every_change_and_how_long_ago_a_session_was_heard() {
    let mut seen = 0;
    for seed in seeds() {
        println!("SEED={seed}");
        let rng = &mut fastrand::Rng::with_seed(seed);
        let mut lab = lab(seed);
        let log = run(rng, &mut lab);
        let now = all(&lab.nat);
        let slots =
            |saved: &BTreeMap<SlotId, SavedSession>| -> Vec<_> { saved.keys().copied().collect() };
        assert_eq!(slots(&log), slots(&now));
        for (slot, now) in &now {
            let then = &log[slot];
            let lag = now.last_seen.since(then.last_seen).as_secs();
            let lag_max = u64::from(LAG_ESTABLISHED_SECONDS.max(LAG_SECONDS));
            assert!(lag < lag_max, "{lag} s");
            let counted = SavedSession {
                last_seen: then.last_seen,
                packets_out: then.packets_out,
                packets_in: then.packets_in,
                bytes_out: then.bytes_out,
                bytes_in: then.bytes_in,
                ..*now
            };
            assert_eq!(*then, counted, "state and ends are as they are");
        }
        seen += now.len();
    }
    assert!(seen > 100, "{seen} sessions");
}

#[test]
fn a_session_that_begins_anew_in_its_slot_is_told_of() {
    let mut lab = lab(7);
    let (host, remote) = (at("10.0.0.2:50001"), at("203.0.113.5:80"));
    lab.nat.keep_journal();
    let told = |lab: &Lab| {
        let mut told = Vec::new();
        lab.nat
            .save_changed(9, |_, session| told.push(session.map(|s| s.created)));
        told
    };
    lab.out(Kind::Udp, host, remote).unwrap();
    assert_eq!(told(&lab), [Some(lab.now)]);
    assert_eq!(told(&lab), []);
    // Its time is over, and nobody has swept it away.
    lab.wait(301);
    lab.out(Kind::Udp, host, remote).unwrap();
    assert_eq!(told(&lab), [Some(lab.now)]);
}

#[test]
fn what_was_saved_comes_back_and_expires_in_the_same_order() {
    for seed in seeds() {
        println!("SEED={seed}");
        let rng = &mut fastrand::Rng::with_seed(seed);
        let mut lab = lab(seed);
        run(rng, &mut lab);
        lab.nat.expire(lab.now, &lab.topology.nat, usize::MAX);
        let mut saved: Vec<_> = all(&lab.nat).into_values().collect();
        rng.shuffle(&mut saved);
        let mut next = successor(&lab, seed + 1_000);
        let done = restore(&mut next, saved.clone());
        assert_eq!(
            (done.restored, done.expired, done.unfit),
            (saved.len(), 0, 0)
        );
        assert_eq!(listing(&next.nat), listing(&lab.nat));
        assert_eq!(next.nat.gauges().endpoints, lab.nat.gauges().endpoints);
        // Where ports are shared, an inside may have got the same port by two mappings.
        assert!(next.nat.gauges().mappings <= lab.nat.gauges().mappings);
        let again = restore(&mut next, saved);
        assert_eq!(again.restored, 0, "what is there is not put back");
        while lab.nat.session_count() > 0 {
            for lab in [&mut lab, &mut next] {
                lab.wait(7);
                lab.nat.expire(lab.now, &lab.topology.nat, usize::MAX);
            }
            assert_eq!(listing(&next.nat), listing(&lab.nat));
        }
    }
}

#[test]
fn flows_find_their_sessions_again() {
    let mut lab = lab(1);
    let (host, other, remote) = (
        at("10.0.0.2:50001"),
        at("10.0.0.3:50001"),
        at("203.0.113.5:80"),
    );
    let (client, public) = (at("192.0.2.77:40000"), at("198.51.100.1:8000"));
    let first = lab.out(Kind::Udp, host, remote).unwrap();
    let second = lab.out(Kind::Udp, other, remote).unwrap();
    let ping = lab
        .out(Kind::EchoRequest, host, at("203.0.113.5:0"))
        .unwrap();
    lab.back(Kind::Tcp(SYN), client, public).unwrap();
    lab.out(Kind::Tcp(SYN_ACK), at(SERVER), client).unwrap();
    lab.back(Kind::Tcp(ACK), client, public).unwrap();
    let mut next = successor(&lab, 2);
    assert_eq!(restore(&mut next, all(&lab.nat).into_values()).restored, 4);
    assert_eq!(next.back(Kind::Udp, remote, second), Ok((NET, other)));
    assert_eq!(next.back(Kind::Udp, remote, first), Ok((NET, host)));
    let known = next.back(Kind::Udp, at("203.0.113.5:81"), first);
    assert_eq!(known, Ok((NET, host)), "its filtering came along");
    let answered = next.back(Kind::EchoReply, at("203.0.113.5:0"), ping);
    assert_eq!(answered, Ok((NET, L4Addr::new(host.ip, ping.l4_port.0))));
    assert_eq!(next.out(Kind::Udp, other, remote), Ok(second));
    assert_eq!(next.out(Kind::Udp, host, at("203.0.113.9:1")), Ok(first));
    assert_eq!(next.out(Kind::Tcp(ACK), at(SERVER), client), Ok(public));
    assert_eq!(
        next.back(Kind::Tcp(RST), client, public),
        Ok((NET, at(SERVER)))
    );
    let closed = next.nat.sessions(9).into_iter().find(|s| s.rule.is_some());
    assert_eq!(closed.unwrap().state, SessionState::Closing);
    assert_eq!(next.opened(1), 0, "it brought nothing new");
}

/// A saved dynamic session and one of a published port, of a lab that has no others.
fn two_saved(lab: &mut Lab) -> (SavedSession, SavedSession) {
    let (host, remote) = (at("10.0.0.2:50001"), at("203.0.113.5:80"));
    lab.out(Kind::Udp, host, remote).unwrap();
    let dynamic = *all(&lab.nat).values().next().unwrap();
    lab.nat.remove_sessions(|_| true);
    let (client, public) = (at("192.0.2.77:40000"), at("198.51.100.1:8000"));
    lab.back(Kind::Tcp(SYN), client, public).unwrap();
    let published = *all(&lab.nat).values().next().unwrap();
    (dynamic, published)
}

#[test]
fn what_does_not_fit_any_more_is_left_out() {
    let mut lab = lab(3);
    let (dynamic, published) = two_saved(&mut lab);
    type Edit = fn(&mut Topology, &mut SavedSession);
    let unfit: [(&str, SavedSession, Edit); 13] = [
        ("no network", dynamic, |t, _| t.domains[NET.index()] = None),
        ("no endpoint", dynamic, |_, s| s.inside.ip = ip("10.0.0.77")),
        ("not our address", dynamic, |t, _| t.local_addresses.clear()),
        ("another range", dynamic, |t, _| {
            t.nat.port_range = 50_100..=50_511;
        }),
        ("another shard", dynamic, |_, s| s.external.l4_port.0 += 1),
        ("another family", dynamic, |_, s| {
            s.remote.ip = ip("2001:db8::9");
        }),
        ("an internal network", dynamic, |t, _| {
            t.domains[NET.index()].as_mut().unwrap().internal = true;
        }),
        ("a routed network", dynamic, |t, _| {
            t.domains[NET.index()].as_mut().unwrap().modes.v4 = NatMode::Routed;
        }),
        ("a published port", dynamic, |t, s| {
            let mut rule = t.statics.rules()[1].clone();
            (rule.id, rule.external_ports) = (77, s.external.l4_port.0..=s.external.l4_port.0);
            t.statics.add(rule).unwrap();
        }),
        ("withdrawn", published, |t, _| {
            t.statics.remove(1).unwrap();
        }),
        ("another rule", published, |_, s| s.rule = Some(2)),
        ("not for this client", published, |t, _| {
            let mut rule = t.statics.remove(1).unwrap();
            rule.from = Some(crate::addr::Prefix::new(ip("203.0.113.0"), 24));
            t.statics.add(rule).unwrap();
        }),
        ("another transport", published, |_, s| {
            s.protocol = NatProtocol::Icmp;
        }),
    ];
    for saved in [dynamic, published] {
        let mut next = successor(&lab, 4);
        assert_eq!(restore(&mut next, [saved]).restored, 1);
    }
    for (why, mut saved, edit) in unfit {
        let mut next = successor(&lab, 4);
        edit(&mut next.topology, &mut saved);
        let done = restore(&mut next, [saved]);
        assert_eq!((done.restored, done.unfit), (0, 1), "{why}");
        assert_eq!(next.nat.gauges(), Gauges::default(), "{why}");
    }
}

#[test]
fn time_ports_and_limits_bind_those_that_come_back() {
    let mut lab = lab(3);
    let (dynamic, published) = two_saved(&mut lab);
    let mut next = successor(&lab, 4);
    next.wait(301);
    assert_eq!(restore(&mut next, [dynamic]).expired, 1);
    // One external port is one inside's, unless ports may be shared.
    let mut sibling = dynamic;
    sibling.inside = at("10.0.0.3:50001");
    sibling.remote = at("203.0.113.6:80");
    for (share, restored) in [(true, 2), (false, 1)] {
        let mut next = successor(&lab, 4);
        next.topology.nat.share_ports = share;
        let done = restore(&mut next, [dynamic, sibling]);
        assert_eq!(done.restored, restored);
    }
    // The limits hold for those that come back.
    let mut next = successor(&lab, 4);
    next.topology.nat.sessions_max = 1;
    assert_eq!(restore(&mut next, [dynamic, published]).restored, 1);
}

#[test]
fn a_routed_flow_comes_back_as_itself() {
    let mut lab = lab(5);
    let net = lab.topology.domains[NET.index()].as_mut().unwrap();
    net.modes.v6 = NatMode::Routed;
    let (host, remote) = (at("[fd00::2]:9"), at("[2001:db8:9::1]:80"));
    let mut buf = frame(Kind::Udp, host, remote);
    let headers = Headers::parse(buf.bytes()).unwrap();
    let mut out = Frame::new(PortId(1), &mut buf);
    lab.view
        .outbound(
            &lab.topology,
            NET,
            host.ip.into(),
            &mut out,
            &headers,
            lab.now,
        )
        .unwrap();
    let mut next = successor(&lab, 6);
    assert_eq!(restore(&mut next, all(&lab.nat).into_values()).restored, 1);
    let mut answer = frame(Kind::Udp, remote, host);
    let headers = Headers::parse(answer.bytes()).unwrap();
    let mut back = Frame::new(PortId(0), &mut answer);
    let (view, topology) = (&mut next.view, &next.topology);
    let admitted = view.admit(topology, NET, &mut back, &headers, next.now);
    assert_eq!(admitted.unwrap().inside, host.ip);
}
