//! The NAT against a model of ordered maps, over random packets, pauses and sweeps.
//!
//! The model knows no shards, lists or hashes: it states what RFC 4787 and 5382 ask for. Ports
//! that the NAT chooses at random it takes over after checking that the choice was allowed.
//! `SEED=n` repeats one run; every failure names its seed.

use std::collections::BTreeMap;

use super::*;
use crate::nat::hash::HashKey;

/// Packets, pauses and sweeps of one run.
const STEPS: usize = 3_000;
/// Runs when no `SEED` is given.
const RUNS: u64 = 24;

type Flow = (DomainId, NatProtocol, L4Addr, L4Addr);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Side {
    Inside,
    Remote,
}

/// A TCP connection as a list of facts.
#[derive(Clone, Copy, Debug, Default)]
struct Facts {
    opened_by_remote: bool,
    inside_sent: bool,
    remote_sent: bool,
    inside_finished: bool,
    remote_finished: bool,
    completed: bool,
    reset: bool,
}

impl Facts {
    fn closing(&self) -> bool {
        self.reset || (self.inside_finished && self.remote_finished)
    }

    fn see(&mut self, side: Side, flags: TcpFlags) {
        let fresh = flags == SYN;
        if fresh && self.closing() {
            *self = Self {
                opened_by_remote: side == Side::Remote,
                ..Self::default()
            };
        }
        let (other_sent, opener) = match side {
            Side::Inside => (self.remote_sent, !self.opened_by_remote),
            Side::Remote => (self.inside_sent, self.opened_by_remote),
        };
        self.reset = flags == RST;
        if !self.reset && other_sent && opener && !flags.has(SYN) {
            self.completed = true;
        }
        let fin = flags.has(TcpFlags::FIN);
        match side {
            Side::Inside => {
                self.inside_sent = true;
                self.inside_finished |= fin;
            }
            Side::Remote => {
                self.remote_sent = true;
                self.remote_finished |= fin;
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    external: L4Addr,
    rule: Option<u32>,
    facts: Facts,
    last_seen: u64,
    packets: (u64, u64),
}

impl Entry {
    fn new(external: L4Addr, rule: Option<u32>) -> Self {
        Self {
            external,
            rule,
            facts: Facts::default(),
            last_seen: 0,
            packets: (0, 0),
        }
    }

    fn timeout(&self, protocol: NatProtocol) -> u64 {
        match protocol {
            NatProtocol::Udp => 300,
            NatProtocol::Icmp => 60,
            NatProtocol::Tcp if self.facts.completed && !self.facts.closing() => 7_440,
            NatProtocol::Tcp => 240,
        }
    }

    fn see(&mut self, side: Side, kind: Kind, now: u64) {
        match side {
            Side::Inside => self.packets.0 += 1,
            Side::Remote => self.packets.1 += 1,
        }
        let Kind::Tcp(flags) = kind else {
            self.last_seen = now;
            return;
        };
        let closing = self.facts.closing();
        self.facts.see(side, flags);
        if !(closing && self.facts.closing()) {
            self.last_seen = now;
        }
    }
}

/// Sessions from inside and of published ports: by inside end and remote.
#[derive(Default)]
struct Model {
    dynamic: BTreeMap<Flow, Entry>,
    forward: BTreeMap<Flow, Entry>,
}

const SERVER: &str = "10.0.0.8:8080";
const PUBLISHED: RangeInclusive<u16> = 50_000..=50_009;

fn published(external: L4Addr, protocol: NatProtocol) -> Option<L4Addr> {
    let known = protocol != NatProtocol::Icmp
        && external.ip == ip("198.51.100.1")
        && PUBLISHED.contains(&external.l4_port.0);
    let server = at(SERVER);
    known.then(|| L4Addr::new(server.ip, 8_080 + external.l4_port.0 - 50_000))
}

/// The external port that publishes an inside one.
fn publishing(domain: DomainId, inside: L4Addr, protocol: NatProtocol) -> Option<L4Addr> {
    let port = inside.l4_port.0;
    let known = domain == NET
        && protocol != NatProtocol::Icmp
        && inside.ip == at(SERVER).ip
        && (8_080..=8_089).contains(&port);
    known.then(|| L4Addr::new(external_of(inside.ip), 50_000 + port - 8_080))
}

impl Model {
    fn alive(entry: &Entry, protocol: NatProtocol, now: u64) -> bool {
        now - entry.last_seen <= entry.timeout(protocol)
    }

    fn mapping(&self, (domain, protocol, inside, _): Flow) -> Option<L4Addr> {
        let same =
            |(flow, _): &(&Flow, &Entry)| (flow.0, flow.1, flow.2) == (domain, protocol, inside);
        self.dynamic
            .iter()
            .find(same)
            .map(|(_, entry)| entry.external)
    }

    fn holder(&self, protocol: NatProtocol, external: L4Addr) -> Option<(DomainId, L4Addr)> {
        let same =
            |(flow, entry): &(&Flow, &Entry)| flow.1 == protocol && entry.external == external;
        self.dynamic
            .iter()
            .find(same)
            .map(|(flow, _)| (flow.0, flow.2))
    }

    /// A packet from inside, to which the NAT gave `external`.
    fn out(&mut self, flow: Flow, kind: Kind, now: u64, external: L4Addr) {
        let (domain, protocol, inside, remote) = flow;
        let public = publishing(domain, inside, protocol);
        if public.is_some()
            && let Some(entry) = self.forward.get_mut(&flow)
            && Self::alive(entry, protocol, now)
        {
            assert_eq!(external, entry.external);
            return entry.see(Side::Inside, kind, now);
        }
        if let Some(entry) = self.dynamic.get_mut(&flow) {
            assert_eq!(external, entry.external);
            if !Self::alive(entry, protocol, now) {
                *entry = Entry::new(external, None);
            }
            return entry.see(Side::Inside, kind, now);
        }
        let answer = matches!(kind, Kind::Tcp(flags) if flags != SYN);
        if let Some(public) = public.filter(|_| answer) {
            assert_eq!(external, public, "a server's answer resumes");
            let mut entry = Entry::new(public, Some(1));
            entry.see(Side::Inside, kind, now);
            self.forward.insert(flow, entry);
            return;
        }
        match self.mapping(flow) {
            Some(mapped) => assert_eq!(external, mapped, "one mapping for all remotes"),
            None => self.check_choice(protocol, inside, external),
        }
        let mut entry = Entry::new(external, None);
        entry.see(Side::Inside, kind, now);
        let _new = self
            .dynamic
            .insert((domain, protocol, inside, remote), entry);
    }

    fn check_choice(&self, protocol: NatProtocol, inside: L4Addr, external: L4Addr) {
        let free = |external| {
            self.holder(protocol, external).is_none() && published(external, protocol).is_none()
        };
        assert!(free(external), "{external} is taken");
        assert!(PORT_RANGE_DEFAULT.contains(&external.l4_port.0));
        assert_eq!(external.l4_port.0 % 64, inside.l4_port.0 % 64);
        assert_eq!(external.ip, external_of(inside.ip));
        let same = L4Addr::new(external.ip, inside.l4_port.0);
        if PORT_RANGE_DEFAULT.contains(&same.l4_port.0) && free(same) {
            assert_eq!(external, same, "the port could have been kept");
        }
    }

    /// A packet from outside: where it has to go.
    fn back(
        &mut self,
        protocol: NatProtocol,
        kind: Kind,
        remote: L4Addr,
        external: L4Addr,
        now: u64,
    ) -> Result<(DomainId, L4Addr), DropReason> {
        if let Some(server) = published(external, protocol) {
            let flow = (NET, protocol, server, remote);
            let entry = self.forward.entry(flow);
            let entry = entry.or_insert_with(|| Entry {
                last_seen: now,
                ..Entry::new(external, Some(1))
            });
            if entry.packets == (0, 0) || !Self::alive(entry, protocol, now) {
                *entry = Entry::new(external, Some(1));
                entry.facts.opened_by_remote = true;
            }
            entry.see(Side::Remote, kind, now);
            return Ok((NET, server));
        }
        let (domain, inside) = self
            .holder(protocol, external)
            .ok_or(DropReason::NatNoMapping)?;
        let entry = self.dynamic.get_mut(&(domain, protocol, inside, remote));
        let entry = entry.filter(|entry| Self::alive(entry, protocol, now));
        let entry = entry.ok_or(DropReason::NatFiltered)?;
        entry.see(Side::Remote, kind, now);
        Ok((domain, inside))
    }

    fn sweep(&mut self, now: u64) {
        let alive = |flow: &Flow, entry: &mut Entry| Self::alive(entry, flow.1, now);
        self.dynamic.retain(alive);
        self.forward.retain(alive);
    }

    /// Every session in comparable form, ordered.
    fn sessions(&self) -> Vec<String> {
        let sessions = self.dynamic.iter().chain(&self.forward);
        let mut listed: Vec<String> = sessions
            .map(|((domain, protocol, inside, remote), entry)| {
                let Entry {
                    external,
                    rule,
                    last_seen,
                    packets,
                    ..
                } = entry;
                format!(
                    "{domain} {protocol} {inside} {remote} {external} {} {last_seen} {packets:?}",
                    rule.is_some()
                )
            })
            .collect();
        listed.sort_unstable();
        listed
    }
}

fn listed(nat: &Nat) -> Vec<String> {
    let line = |session: &SessionInfo| {
        let SessionInfo {
            domain,
            protocol,
            inside,
            remote,
            external,
            ..
        } = session;
        let packets = (session.packets_out, session.packets_in);
        let last_seen = session.last_seen.second();
        format!(
            "{domain} {protocol} {inside} {remote} {external} {} {last_seen} {packets:?}",
            session.rule.is_some()
        )
    };
    let mut listed: Vec<String> = nat.sessions(usize::MAX).iter().map(line).collect();
    listed.sort_unstable();
    listed
}

struct Run {
    rng: fastrand::Rng,
    lab: Lab,
    model: Model,
}

impl Run {
    fn kinds(&mut self) -> (NatProtocol, Kind, Kind) {
        let flags = [SYN, SYN_ACK, ACK, FIN_ACK, RST][self.rng.usize(0..5)];
        match self.rng.u8(0..4) {
            0 => (NatProtocol::Udp, Kind::Udp, Kind::Udp),
            1 => (NatProtocol::Icmp, Kind::EchoRequest, Kind::EchoReply),
            _ => (NatProtocol::Tcp, Kind::Tcp(flags), Kind::Tcp(flags)),
        }
    }

    fn remote(&mut self, v6: bool, protocol: NatProtocol) -> L4Addr {
        let host = self.rng.u8(1..3);
        let port = match protocol {
            NatProtocol::Icmp => 0,
            NatProtocol::Tcp | NatProtocol::Udp => self.rng.u16(80..83),
        };
        match v6 {
            false => L4Addr::new(IpAddr::from([203, 0, 113, host]), port),
            true => L4Addr::new(
                IpAddr::from([0x2001, 0xdb8, 5, 0, 0, 0, 0, u16::from(host)]),
                port,
            ),
        }
    }

    fn inside(&mut self, v6: bool) -> L4Addr {
        let port = match self.rng.u8(0..4) {
            0 => self.rng.u16(8_080..8_083),
            1 => self.rng.u16(50_000..50_003),
            _ => self.rng.u16(1_000..1_004),
        };
        match v6 {
            false => L4Addr::new(IpAddr::from([10, 0, 0, self.rng.u8(7..10)]), port),
            true => L4Addr::new(ip("fd00::7"), port),
        }
    }

    fn send_out(&mut self) {
        let (protocol, kind, _) = self.kinds();
        let v6 = self.rng.u8(0..4) == 0;
        let domain = if self.rng.u8(0..4) == 0 { TWIN } else { NET };
        let (inside, remote) = (self.inside(v6), self.remote(v6, protocol));
        let external = self.lab.out_from(domain, kind, inside, remote).unwrap();
        let now = u64::from(self.lab.now.second());
        let flow = (domain, protocol, inside, remote);
        self.model.out(flow, kind, now, external);
    }

    fn send_back(&mut self) {
        let (protocol, _, kind) = self.kinds();
        let v6 = self.rng.u8(0..4) == 0;
        // Mostly to what is open, sometimes to a published port, sometimes to anything.
        let open: Vec<L4Addr> = self
            .model
            .dynamic
            .iter()
            .filter(|(flow, _)| flow.1 == protocol && flow.2.ip.is_ipv6() == v6)
            .map(|(_, entry)| entry.external)
            .collect();
        let own = external_of(self.inside(v6).ip);
        let external = match self.rng.u8(0..8) {
            0 => L4Addr::new(own, self.rng.u16(49_152..)),
            1 if !v6 => L4Addr::new(own, self.rng.u16(PUBLISHED)),
            _ if open.is_empty() => return,
            _ => open[self.rng.usize(..open.len())],
        };
        let remote = self.remote(v6, protocol);
        let now = u64::from(self.lab.now.second());
        let wanted = self.model.back(protocol, kind, remote, external, now);
        assert_eq!(self.lab.back(kind, remote, external), wanted);
    }

    fn step(&mut self) {
        match self.rng.u8(0..20) {
            0 => self.lab.wait(self.rng.u64(0..400)),
            1 => {
                let config = NatConfig::default();
                self.lab.nat.expire(self.lab.now, &config, usize::MAX);
                self.model.sweep(u64::from(self.lab.now.second()));
            }
            2..=10 => self.send_out(),
            _ => self.send_back(),
        }
    }
}

#[test]
fn the_nat_behaves_as_its_model() {
    let seeds = match std::env::var("SEED") {
        Ok(seed) => vec![seed.parse().expect("SEED is a number")],
        Err(_) => (0..RUNS).collect(),
    };
    for seed in seeds {
        follow(seed, seed);
    }
}

/// Hashes are of 32 bits: of a million flows, a hundred share theirs with another.
#[test]
fn the_nat_behaves_as_its_model_where_all_hashes_collide() {
    for seed in 0..RUNS / 4 {
        follow(seed, HashKey::COLLIDING);
    }
}

/// Follows the model through a run of a seed, with hashes of another.
fn follow(seed: u64, hashes: u64) {
    let mut run = Run {
        rng: fastrand::Rng::with_seed(seed),
        lab: Lab::with_seed(hashes),
        model: Model::default(),
    };
    run.lab.publish(1, "198.51.100.1", PUBLISHED, at(SERVER));
    for step in 0..STEPS {
        println!("SEED={seed} step {step}");
        run.step();
        let model = &run.model;
        let wanted = model.dynamic.len() + model.forward.len();
        assert_eq!(
            run.lab.nat.session_count(),
            wanted,
            "SEED={seed} step {step}"
        );
        if step % 100 == 0 {
            let (nat, model) = (listed(&run.lab.nat), run.model.sessions());
            assert_eq!(nat, model, "SEED={seed} step {step}");
        }
    }
    let counted: usize = (0..=255)
        .flat_map(|host| [IpAddr::from([10, 0, 0, host])])
        .chain([ip("fd00::7")])
        .flat_map(|host| [(NET, host), (TWIN, host)])
        .map(|(domain, host)| run.lab.nat.session_count_of(domain, host))
        .sum();
    assert_eq!(counted, run.lab.nat.session_count(), "SEED={seed}");
}
