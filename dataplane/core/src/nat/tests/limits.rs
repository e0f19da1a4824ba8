//! What happens when something is full.

use super::*;

const REMOTE: &str = "203.0.113.5:80";

fn host(number: u16, port: u16) -> L4Addr {
    let [high, low] = number.to_be_bytes();
    L4Addr::new(IpAddr::from([10, 0, high, low]), port)
}

#[test]
fn one_endpoint_cannot_take_the_sessions_of_others() {
    let mut lab = Lab::new();
    lab.topology.nat.sessions_per_endpoint_max = 3;
    for port in 50_000..50_003 {
        lab.out(Kind::Udp, host(1, port), at(REMOTE)).unwrap();
    }
    let more = lab.out(Kind::Udp, host(1, 50_003), at(REMOTE));
    assert_eq!(more, Err(DropReason::NatQuota));
    assert_eq!(lab.nat.session_count_of(NET, ip("10.0.0.1")), 3);
    assert!(lab.out(Kind::Udp, host(2, 50_003), at(REMOTE)).is_ok());
    let twin = lab.out_from(TWIN, Kind::Udp, host(1, 50_003), at(REMOTE));
    assert!(twin.is_ok(), "another network's endpoint of that address");
    let known = lab.out(Kind::Udp, host(1, 50_000), at(REMOTE));
    assert!(known.is_ok(), "what is there stays");
    assert_eq!(lab.nat.session_count(), 5);
    assert_eq!(lab.nat.gauges().endpoints, 3);
    let ended = lab.nat.remove_sessions(|session| session.domain == NET);
    assert_eq!(ended, 4);
    assert!(lab.out(Kind::Udp, host(1, 50_003), at(REMOTE)).is_ok());
}

#[test]
fn a_full_quota_ends_no_session_of_another() {
    let mut lab = Lab::new();
    lab.topology.nat.sessions_per_endpoint_max = 1;
    let syn = Kind::Tcp(SYN);
    lab.out(syn, host(1, 50_001), at(REMOTE)).unwrap();
    lab.out(Kind::Udp, host(2, 50_001), at(REMOTE)).unwrap();
    let refused = lab.out(syn, host(2, 50_065), at(REMOTE));
    assert_eq!(refused, Err(DropReason::NatQuota));
    assert_eq!(lab.nat.session_count(), 2);
    // What has expired makes room at once, before any sweep.
    lab.wait(301);
    assert!(lab.out(syn, host(2, 50_065), at(REMOTE)).is_ok());
}

#[test]
fn a_flood_of_syns_to_a_published_port_displaces_itself() {
    let mut lab = Lab::new();
    let (server, public) = (at("10.0.0.8:80"), at("198.51.100.1:80"));
    lab.topology.nat.sessions_per_endpoint_max = 1_000;
    lab.publish(1, "*", 80..=80, server);
    let neighbour = lab.out(Kind::Tcp(SYN), host(1, 50_001), at(REMOTE));
    let client = at("192.0.2.1:40000");
    lab.back(Kind::Tcp(SYN), client, public).unwrap();
    lab.out(Kind::Tcp(SYN_ACK), server, client).unwrap();
    lab.back(Kind::Tcp(ACK), client, public).unwrap();
    for number in 0..20_000u32 {
        let [_, a, b, c] = number.to_be_bytes();
        let forged = L4Addr::new(IpAddr::from([203, a, b, c]), 1_025);
        let passed = lab.back(Kind::Tcp(SYN), forged, public);
        assert_eq!(passed, Ok((NET, server)), "{number}");
    }
    assert_eq!(lab.nat.session_count_of(NET, server.ip), 1_000);
    assert_eq!(lab.out(Kind::Tcp(ACK), server, client), Ok(public));
    assert_eq!(
        lab.out(Kind::Tcp(SYN), host(1, 50_001), at(REMOTE)),
        neighbour
    );
    assert_eq!(lab.nat.session_count(), 1_001);
}

#[test]
fn a_quota_of_zero_leaves_no_count_behind() {
    let mut lab = Lab::new();
    lab.topology.nat.sessions_per_endpoint_max = 0;
    let refused = lab.out(Kind::Udp, host(1, 50_000), at(REMOTE));
    assert_eq!(refused, Err(DropReason::NatQuota));
    assert_eq!(lab.nat.gauges(), Gauges::default());
    assert_eq!(lab.nat.session_count(), 0);
}

#[test]
fn a_full_table_keeps_its_udp_and_established_sessions() {
    let mut lab = Lab::new();
    lab.topology.nat.sessions_max = 2;
    let syn = Kind::Tcp(SYN);
    let external = lab.out(syn, host(1, 50_000), at(REMOTE)).unwrap();
    lab.back(Kind::Tcp(SYN_ACK), at(REMOTE), external).unwrap();
    lab.out(Kind::Tcp(ACK), host(1, 50_000), at(REMOTE))
        .unwrap();
    lab.out(Kind::Udp, host(1, 50_064), at(REMOTE)).unwrap();
    for kind in [syn, Kind::Udp] {
        let refused = lab.out(kind, host(2, 50_128), at(REMOTE));
        assert_eq!(refused, Err(DropReason::NatTableFull));
    }
    assert_eq!(lab.nat.session_count(), 2);
}

#[test]
fn a_full_table_first_drops_the_expired_then_the_half_open() {
    let mut lab = Lab::new();
    lab.topology.nat.sessions_max = 3;
    let syn = Kind::Tcp(SYN);
    lab.out(syn, host(1, 50_000), at(REMOTE)).unwrap();
    lab.wait(1);
    lab.out(syn, host(1, 50_064), at(REMOTE)).unwrap();
    lab.wait(1);
    lab.out(Kind::Udp, host(1, 50_000), at(REMOTE)).unwrap();
    // The half-open connection that was unheard for longest makes room.
    lab.out(Kind::Udp, host(2, 50_128), at(REMOTE)).unwrap();
    let left = |lab: &Lab| {
        let mut ports: Vec<u16> = lab
            .nat
            .sessions(10)
            .iter()
            .map(|session| session.inside.l4_port.0)
            .collect();
        ports.sort_unstable();
        ports
    };
    assert_eq!(left(&lab), [50_000, 50_064, 50_128]);
    // Once the other has expired it goes, and nothing alive has to.
    lab.wait(240);
    lab.out(syn, host(2, 50_192), at(REMOTE)).unwrap();
    assert_eq!(left(&lab), [50_000, 50_128, 50_192]);
    assert_eq!(lab.nat.session_count(), 3);
}

#[test]
fn an_exhausted_residue_refuses_cleanly_and_recovers() {
    let mut lab = Lab::new();
    for number in 0..256 {
        lab.out(Kind::Udp, host(number, 50_001), at(REMOTE))
            .unwrap();
    }
    let refused = lab.out(Kind::Udp, host(300, 50_001), at(REMOTE));
    assert_eq!(refused, Err(DropReason::NatNoPort));
    assert_eq!(lab.nat.session_count(), 256);
    assert_eq!(lab.nat.session_count_of(NET, host(300, 0).ip), 0);
    // Other residues, protocols and external addresses have ports of their own.
    assert!(lab.out(Kind::Udp, host(300, 50_002), at(REMOTE)).is_ok());
    let syn = Kind::Tcp(SYN);
    assert!(lab.out(syn, host(300, 50_001), at(REMOTE)).is_ok());
    let v6 = at("[fd00::2]:50001");
    let remote6 = at("[2001:db8:5::5]:80");
    assert!(lab.out(Kind::Udp, v6, remote6).is_ok());
    lab.wait(301);
    assert!(lab.out(Kind::Udp, host(300, 50_001), at(REMOTE)).is_ok());
}

#[test]
fn tcp_without_a_port_takes_the_place_of_the_oldest_transitory_connection() {
    let mut lab = Lab::new();
    let syn = Kind::Tcp(SYN);
    let mut externals = Vec::new();
    for number in 0..256 {
        externals.push(lab.out(syn, host(number, 50_001), at(REMOTE)).unwrap());
    }
    // The oldest gets established and is safe from then on.
    lab.back(Kind::Tcp(SYN_ACK), at(REMOTE), externals[0])
        .unwrap();
    lab.out(Kind::Tcp(ACK), host(0, 50_001), at(REMOTE))
        .unwrap();
    let taken = lab.out(syn, host(300, 50_001), at(REMOTE)).unwrap();
    assert_eq!(taken, externals[1]);
    assert_eq!(lab.nat.session_count(), 256);
    let kept = lab.back(Kind::Tcp(ACK), at(REMOTE), externals[0]);
    assert_eq!(kept, Ok((NET, host(0, 50_001))));
}

/// The `index`th inside port that is congruent to 1, and so competes for 256 ports of the range.
fn competing(index: u16) -> u16 {
    1_025 + index * 64
}

#[test]
fn one_endpoint_that_takes_every_port_leaves_the_last_eighth_to_others() {
    let mut lab = Lab::new();
    let other = at("203.0.113.6:80");
    for index in 0..224 {
        lab.out(Kind::Udp, host(1, competing(index)), at(REMOTE))
            .unwrap();
    }
    let next = host(1, competing(224));
    let refused = lab.out(Kind::Udp, next, at(REMOTE));
    assert_eq!(refused, Err(DropReason::NatNoPort));
    assert!(
        lab.out(Kind::Udp, next, other).is_ok(),
        "by a port it shares"
    );
    let known = lab.out(Kind::Udp, host(1, competing(0)), other);
    assert!(known.is_ok(), "by the port it has");
    for neighbour in 0..32 {
        let got = lab.out(Kind::Udp, host(2 + neighbour, competing(7)), at(REMOTE));
        assert!(got.is_ok(), "neighbour {neighbour}");
    }
    let late = host(99, competing(7));
    let refused = lab.out(Kind::Udp, late, at(REMOTE));
    assert_eq!(refused, Err(DropReason::NatNoPort), "the last one is gone");
    let held = |lab: &Lab| -> Vec<u32> {
        let pools = lab.nat.usage(0).pools;
        pools.iter().map(|pool| pool.ports).collect()
    };
    assert_eq!(held(&lab), [256], "a shared port is one");
    let first = lab.nat.usage(1).endpoints[0];
    assert_eq!((first.inside, first.sessions), (host(1, 0).ip, 226));
    lab.nat.remove_sessions(|session| session.remote == other);
    assert_eq!(held(&lab), [256], "and is held as long as anybody holds it");
    lab.wait(301);
    assert!(lab.out(Kind::Udp, late, at(REMOTE)).is_ok());
}

#[test]
fn who_holds_more_than_a_fair_part_displaces_its_own_connections_alone() {
    for share in [true, false] {
        let mut lab = Lab::new();
        lab.topology.nat.share_ports = share;
        let syn = Kind::Tcp(SYN);
        let neighbour = lab.out(syn, host(2, competing(0)), at(REMOTE)).unwrap();
        lab.wait(1);
        let oldest = lab.out(syn, host(1, competing(0)), at(REMOTE)).unwrap();
        lab.wait(1);
        for index in 1..223 {
            lab.out(syn, host(1, competing(index)), at(REMOTE)).unwrap();
        }
        let next = lab.out(syn, host(1, competing(223)), at(REMOTE));
        assert_eq!(next, Ok(oldest), "in the place of its own oldest");
        assert_eq!(lab.nat.session_count(), 224);
        let answered = lab.back(Kind::Tcp(SYN_ACK), at(REMOTE), neighbour);
        assert_eq!(answered, Ok((NET, host(2, competing(0)))), "older still");
        // Who holds few gets a port of those that are left, and displaces nobody.
        lab.out(syn, host(3, competing(0)), at(REMOTE)).unwrap();
        assert_eq!(lab.nat.session_count(), 225);
    }
}

#[test]
fn a_budgeted_sweep_reaches_every_shard() {
    let mut lab = Lab::new();
    for port in 50_000..50_128 {
        lab.out(Kind::Udp, host(1, port), at(REMOTE)).unwrap();
    }
    let config = NatConfig::default();
    assert_eq!(lab.nat.expire(lab.now, &config, 1_000), 0);
    lab.wait(301);
    for left in (0..128).rev() {
        assert_eq!(lab.nat.expire(lab.now, &config, 1), 1);
        assert_eq!(lab.nat.session_count(), left);
    }
    assert_eq!(lab.nat.expire(lab.now, &config, 1), 0);
    assert_eq!(lab.nat.gauges(), Gauges::default());
}

#[test]
fn a_sweep_goes_on_where_the_last_one_stopped() {
    let mut lab = Lab::new();
    let config = NatConfig::default();
    for port in [50_002, 50_040] {
        lab.out(Kind::Udp, host(1, port), at(REMOTE)).unwrap();
    }
    lab.wait(301);
    assert_eq!(lab.nat.expire(lab.now, &config, 1), 1);
    assert_eq!(lab.only_session().inside.l4_port.0, 50_040);
    // Shard 0 gets work again, but those behind have been waiting.
    lab.out(Kind::Udp, host(1, 49_984), at(REMOTE)).unwrap();
    lab.wait(301);
    assert_eq!(lab.nat.expire(lab.now, &config, 1), 1);
    assert_eq!(lab.only_session().inside.l4_port.0, 49_984);
}

#[test]
fn when_every_port_is_taken_endpoints_share_them_towards_different_remotes() {
    for (request, reply) in [
        (Kind::Udp, Kind::Udp),
        (Kind::Tcp(SYN), Kind::Tcp(SYN_ACK)),
        (Kind::EchoRequest, Kind::EchoReply),
    ] {
        let mut lab = Lab::new();
        lab.topology.nat.port_range = 50_000..=50_127;
        let port = if request == Kind::EchoRequest { 0 } else { 80 };
        let remote = |number: u8| L4Addr::new(IpAddr::from([203, 0, 113, number]), port);
        let (a, b, c) = (host(1, 50_001), host(2, 50_001), host(3, 50_001));
        let first = lab.out(request, a, remote(1)).unwrap();
        let second = lab.out(request, b, remote(1)).unwrap();
        assert_ne!(first, second);
        let shared = lab.out(request, c, remote(2)).unwrap();
        assert!([first, second].contains(&shared));
        assert_eq!(lab.back(reply, remote(2), shared), Ok((NET, c)));
        assert_eq!(lab.back(reply, remote(1), first), Ok((NET, a)));
        assert_eq!(lab.back(reply, remote(1), second), Ok((NET, b)));
        // Whose port is shared gets another one towards a remote that is taken there.
        let owner = if shared == first { a } else { b };
        let other = if shared == first { second } else { first };
        assert_eq!(lab.out(request, owner, remote(2)), Ok(other));
        assert_eq!(lab.back(reply, remote(2), other), Ok((NET, owner)));
        assert_eq!(lab.back(reply, remote(2), shared), Ok((NET, c)));
        assert_eq!(lab.nat.session_count(), 4);
        let ended = lab.nat.remove_sessions(|_| true);
        assert_eq!((ended, lab.nat.gauges()), (4, Gauges::default()));
    }
}

#[test]
fn no_crowd_makes_two_flows_look_the_same_from_outside() {
    let seeds = match std::env::var("SEED") {
        Ok(seed) => vec![seed.parse().expect("SEED is a number")],
        Err(_) => (0..16).collect(),
    };
    for seed in seeds {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut lab = Lab::with_seed(seed);
        lab.topology.nat.port_range = 50_000..=50_300;
        lab.topology.nat.sessions_max = 400;
        let mut refused = 0;
        for _ in 0..2_000 {
            let inside = host(rng.u16(1..20), rng.u16(49_980..50_010));
            let remote = L4Addr::new(IpAddr::from([203, 0, 113, rng.u8(0..4)]), 80);
            let (request, reply) =
                [(Kind::Udp, Kind::Udp), (Kind::Tcp(SYN), Kind::Tcp(SYN_ACK))][rng.usize(0..2)];
            let domain = [NET, TWIN][rng.usize(0..2)];
            match lab.out_from(domain, request, inside, remote) {
                Ok(external) => {
                    let back = lab.back(reply, remote, external);
                    assert_eq!(back, Ok((domain, inside)), "SEED={seed}");
                }
                Err(DropReason::NatNoPort | DropReason::NatTableFull) => refused += 1,
                Err(reason) => panic!("SEED={seed}: {reason}"),
            }
            lab.wait(rng.u64(0..3));
        }
        let sessions = lab.nat.sessions(usize::MAX);
        let mut seen: Vec<_> = sessions
            .iter()
            .map(|session| (session.protocol, session.external, session.remote))
            .collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), sessions.len(), "SEED={seed}");
        assert!(refused > 0 && refused < 2_000, "SEED={seed}: {refused}");
        assert!(sessions.len() <= 400);
    }
}
