//! Several workers on one NAT, both directions of each flow on different ones, while sessions
//! expire and are taken away: afterwards nothing is there twice, and nothing is lost.

use super::*;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::collections::{BTreeMap, BTreeSet};
use std::thread;

/// Packets of each worker: half a second of a debug build.
const STEPS: u32 = 20_000;
/// Packets that one worker sends when the others have ended: two for each flow, about.
const STEPS_AFTER: u32 = 400;
/// Workers that send out and workers that receive, of the same flows.
const PAIRS: u64 = 2;
/// Inside hosts, ports of each, and remotes: few, so that workers meet.
const HOSTS: u8 = 4;
const PORTS: u16 = 24;
const REMOTES: u8 = 3;
/// Packets per second of the virtual clock, so that sessions expire now and then.
const STEPS_PER_SECOND: u64 = 40;
/// Runs, each with a seed of its own.
const RUNS: u64 = 4;

/// What the threads share.
struct Board {
    nat: Arc<Nat>,
    topology: Topology,
    steps: AtomicU64,
    /// The external port that each inside host and port was last seen by, over UDP and TCP.
    seen: [Vec<AtomicU32>; 2],
}

impl Board {
    fn new(seed: u64) -> Self {
        let mut lab = Lab::with_seed(seed);
        // Fewer ports than flows want, shared in every second run.
        lab.topology.nat.port_range = 50_000..=50_063;
        lab.topology.nat.share_ports = seed.is_multiple_of(2);
        lab.topology.nat.sessions_max = 200;
        lab.topology.nat.sessions_per_endpoint_max = 80;
        lab.topology.nat.timeouts.udp = Duration::from_secs(5);
        lab.topology.nat.timeouts.tcp_opening = Duration::from_secs(3);
        lab.topology.nat.timeouts.tcp_closing = Duration::from_secs(2);
        lab.topology.nat.timeouts.tcp_established = Duration::from_secs(20);
        lab.publish(1, "*", 80..=80, at("10.0.0.1:8080"));
        let flows = usize::from(HOSTS) * usize::from(PORTS);
        let unseen = || (0..flows).map(|_| AtomicU32::new(0)).collect();
        Self {
            nat: lab.nat,
            topology: lab.topology,
            steps: AtomicU64::new(0),
            seen: [unseen(), unseen()],
        }
    }

    /// A worker's own view, with the clock moved on.
    fn lab(&self) -> Lab {
        Lab {
            nat: Arc::clone(&self.nat),
            view: NatView::live(Arc::clone(&self.nat)),
            topology: self.topology.clone(),
            now: Instant::from_secs(1_000),
        }
    }

    fn now(&self) -> Instant {
        let steps = self.steps.fetch_add(1, Ordering::Relaxed);
        Instant::from_secs(1_000 + steps / STEPS_PER_SECOND)
    }
}

/// One choice of a flow.
struct Flow {
    tcp: bool,
    index: usize,
    inside: L4Addr,
    remote: L4Addr,
}

impl Flow {
    fn any(rng: &mut fastrand::Rng) -> Self {
        let (host, port) = (rng.u8(0..HOSTS), rng.u16(0..PORTS));
        Self {
            tcp: rng.bool(),
            index: usize::from(host) * usize::from(PORTS) + usize::from(port),
            inside: L4Addr::new(
                IpAddr::from([10, 0, 0, 2 + host]),
                50_000 + port % 8 * 64 + port,
            ),
            remote: L4Addr::new(IpAddr::from([203, 0, 113, rng.u8(0..REMOTES)]), 80),
        }
    }

    fn kind(&self, rng: &mut fastrand::Rng) -> Kind {
        match self.tcp {
            false => Kind::Udp,
            true => Kind::Tcp([SYN, SYN, SYN_ACK, ACK, ACK, FIN_ACK, RST][rng.usize(0..7)]),
        }
    }
}

/// A worker that sends out what endpoints send, and the answers of the published server.
fn send_out(board: &Board, steps: u32, mut rng: fastrand::Rng) {
    let mut lab = board.lab();
    for _ in 0..steps {
        lab.now = board.now();
        let flow = Flow::any(&mut rng);
        if rng.u8(0..4) == 0 {
            let client = L4Addr::new(flow.remote.ip, 40_000 + flow.index as u16);
            // Whether its client has come by another worker: either way is right.
            let _ = lab.out(Kind::Tcp(SYN_ACK), at("10.0.0.1:8080"), client);
            continue;
        }
        let kind = flow.kind(&mut rng);
        if let Ok(external) = lab.out(kind, flow.inside, flow.remote) {
            let seen = &board.seen[usize::from(flow.tcp)][flow.index];
            seen.store(external.l4_port.0.into(), Ordering::Relaxed);
        }
    }
}

/// A worker that receives the other direction of all that.
fn receive(board: &Board, mut rng: fastrand::Rng) {
    let mut lab = board.lab();
    for _ in 0..STEPS {
        lab.now = board.now();
        let flow = Flow::any(&mut rng);
        if rng.u8(0..4) == 0 {
            let client = L4Addr::new(flow.remote.ip, 40_000 + flow.index as u16);
            let _ = lab.back(flow.kind(&mut rng), client, at("198.51.100.1:80"));
            continue;
        }
        let port = board.seen[usize::from(flow.tcp)][flow.index].load(Ordering::Relaxed);
        let external = L4Addr::new(ip("198.51.100.1"), port as u16);
        let kind = flow.kind(&mut rng);
        if let Ok((domain, inside)) = lab.back(kind, flow.remote, external) {
            assert_eq!(
                (domain, inside.l4_port.0 % 64),
                (NET, external.l4_port.0 % 64)
            );
        }
    }
}

/// What the control plane does meanwhile: it sweeps, ends sessions, and looks.
fn control(board: &Board, mut rng: fastrand::Rng) {
    let end = u64::from(STEPS) * PAIRS * 2;
    while board.steps.load(Ordering::Relaxed) < end {
        match rng.u8(0..4) {
            0 => {
                let host = IpAddr::from([10, 0, 0, 2 + rng.u8(0..HOSTS)]);
                let of_it = |session: &SessionInfo| session.inside.ip == host;
                board.nat.remove_sessions(of_it);
            }
            1 => {
                let now = board.now();
                board.nat.expire(now, &board.topology.nat, rng.usize(1..20));
            }
            2 => assert!(board.nat.usage(3).endpoints.len() <= 3),
            _ => assert!(board.nat.sessions(50).len() <= 50),
        }
        thread::yield_now();
    }
}

/// What is there, and that all that is told of it agrees.
fn check(board: &Board, seed: u64) -> Vec<SessionInfo> {
    let nat = &board.nat;
    let sessions = nat.sessions(usize::MAX);
    let count = sessions.len();
    let gauges = nat.gauges();
    assert_eq!(
        (nat.session_count(), gauges.sessions),
        (count, count),
        "SEED={seed}"
    );
    let mut of_endpoints: BTreeMap<(DomainId, IpAddr), usize> = BTreeMap::new();
    for session in &sessions {
        let inside = (session.domain, session.inside.ip);
        *of_endpoints.entry(inside).or_default() += 1;
    }
    assert_eq!(gauges.endpoints, of_endpoints.len(), "SEED={seed}");
    for ((domain, inside), held) in &of_endpoints {
        assert_eq!(nat.session_count_of(*domain, *inside), *held, "SEED={seed}");
    }
    // Nothing is there twice, as either side knows it.
    let of_inside = sessions
        .iter()
        .map(|s| (s.protocol, s.domain, s.inside, s.remote, s.rule));
    assert_eq!(
        of_inside.collect::<BTreeSet<_>>().len(),
        count,
        "SEED={seed}"
    );
    let of_outside = sessions.iter().map(|s| (s.protocol, s.external, s.remote));
    assert_eq!(
        of_outside.collect::<BTreeSet<_>>().len(),
        count,
        "SEED={seed}"
    );
    // A port has one holder, unless sharing is allowed, and is counted once.
    let dynamic = sessions.iter().filter(|session| session.rule.is_none());
    let mut holders: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for session in dynamic {
        let port = (
            session.external.ip,
            session.protocol,
            session.external.l4_port,
        );
        holders.entry(port).or_default().insert(session.inside);
    }
    let shared = holders.values().any(|insides| insides.len() > 1);
    assert!(!shared || board.topology.nat.share_ports, "SEED={seed}");
    let mut pools: BTreeMap<_, u32> = BTreeMap::new();
    for (external, protocol, _) in holders.keys() {
        *pools.entry((*external, *protocol)).or_default() += 1;
    }
    let counted = nat.usage(0).pools;
    let counted = counted
        .iter()
        .map(|pool| ((pool.external, pool.protocol), pool.ports));
    assert!(counted.eq(pools), "SEED={seed}");
    sessions
}

/// Each session is found from both sides, by the packet that its other end sends.
fn found_from_both_sides(board: &Board, sessions: &[SessionInfo], now: Instant, seed: u64) {
    let mut lab = board.lab();
    lab.now = now;
    for session in sessions {
        let kind = match session.protocol {
            NatProtocol::Tcp => Kind::Tcp(ACK),
            NatProtocol::Udp | NatProtocol::Icmp => Kind::Udp,
        };
        let out = lab.out(kind, session.inside, session.remote);
        assert_eq!(out, Ok(session.external), "SEED={seed}");
        let back = lab.back(kind, session.remote, session.external);
        assert_eq!(back, Ok((session.domain, session.inside)), "SEED={seed}");
    }
    assert_eq!(lab.nat.session_count(), sessions.len(), "SEED={seed}");
}

#[test]
fn no_session_is_lost_or_doubled_by_workers_that_see_one_direction_each() {
    let seeds = match std::env::var("SEED") {
        Ok(seed) => vec![seed.parse().expect("SEED is a number")],
        Err(_) => (0..RUNS).collect(),
    };
    for seed in seeds {
        let board = &Board::new(seed);
        let random = |number| fastrand::Rng::with_seed(seed * 100 + number);
        thread::scope(|scope| {
            for pair in 0..PAIRS {
                scope.spawn(move || send_out(board, STEPS, random(2 * pair)));
                scope.spawn(move || receive(board, random(2 * pair + 1)));
            }
            scope.spawn(move || control(board, random(99)));
        });
        check(board, seed);
        // The control plane may have been the last one, and have taken away what there was.
        send_out(board, STEPS_AFTER, random(98));
        let now = board.now();
        board.nat.expire(now, &board.topology.nat, usize::MAX);
        let sessions = check(board, seed);
        assert!(sessions.len() > 20, "SEED={seed}: {} left", sessions.len());
        found_from_both_sides(board, &sessions, now, seed);
        // One that fell out of the list of its age would stay for ever.
        let later = now + Duration::from_secs(3_600);
        let expired = board.nat.expire(later, &board.topology.nat, usize::MAX);
        assert_eq!(expired, sessions.len(), "SEED={seed}");
        assert_eq!(board.nat.gauges(), Gauges::default(), "SEED={seed}");
        assert_eq!(board.nat.usage(9), Usage::default(), "SEED={seed}");
    }
}
