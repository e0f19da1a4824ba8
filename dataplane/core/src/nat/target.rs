//! Where a published interval leads: to one target, or to several that share its new sessions.
//!
//! A target is chosen for a new session only; the session's mapping keeps it from then on. Round
//! robin takes turns that all workers share. Source hash sends a client to the same
//! target as long as there is one, by rendezvous hashing: when a target comes or goes, only the
//! clients move that it gains or loses. Both are as deterministic as their inputs.
//!
//! A target that drains gets no new session and keeps those that it has.

use core::cmp::Reverse;
use std::net::IpAddr;

use crate::addr::{DomainId, L4Addr, L4Port};

use super::forward::StaticRule;
use super::hash::HashKey;

/// Targets of one published interval: what one person looks after, and few enough that a new
/// session may look at each.
pub const TARGETS_MAX: usize = 64;
/// The largest weight: nobody tells servers apart by less than a hundredth.
pub const WEIGHT_MAX: u16 = 100;

/// An endpoint's ports that a published interval leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    /// Tells it from the rule's other targets for as long as the process lives.
    pub id: u16,
    /// The network of the endpoint.
    pub domain: DomainId,
    /// The endpoint's address.
    pub inside: IpAddr,
    /// The endpoint's port for the rule's first external one.
    pub inside_port_first: u16,
    /// Its share of the new sessions, from 1 to [`WEIGHT_MAX`].
    pub weight: u16,
    /// Whether it gets new sessions.
    pub duty: Duty,
}

/// Whether a target gets new sessions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Duty {
    /// It does.
    #[default]
    Serving,
    /// It only keeps those that it has.
    Draining,
}

/// How new sessions are spread over targets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Balance {
    /// In turns, as many for each target as its weight says.
    #[default]
    RoundRobin,
    /// By the client's address: the same client, the same target.
    SourceHash {
        /// Nobody outside can tell which target an address leads to without it. The same key
        /// makes the same choices, across restarts too.
        key: u64,
    },
}

impl Target {
    /// A target of weight 1, whose ports begin with that of `inside`.
    pub const fn new(id: u16, domain: DomainId, inside: L4Addr) -> Self {
        Self {
            id,
            domain,
            inside: inside.ip,
            inside_port_first: inside.l4_port.0,
            weight: 1,
            duty: Duty::Serving,
        }
    }

    /// Where a client that addresses `port` of the external side of `rule` is led.
    #[inline]
    pub fn inside_of(&self, rule: &StaticRule, port: L4Port) -> L4Addr {
        let offset = port.0.wrapping_sub(*rule.external_ports.start());
        L4Addr::new(self.inside, self.inside_port_first.wrapping_add(offset))
    }

    /// The external port of `rule` that leads to `port` of the endpoint.
    #[inline]
    pub fn external_of(&self, rule: &StaticRule, port: L4Port) -> L4Port {
        let offset = port.0.wrapping_sub(self.inside_port_first);
        L4Port(rule.external_ports.start().wrapping_add(offset))
    }

    const fn serves(&self) -> bool {
        matches!(self.duty, Duty::Serving)
    }
}

impl StaticRule {
    /// The target of that id. A search among at most [`TARGETS_MAX`]; one comparison when there
    /// is one.
    #[inline]
    pub fn target(&self, id: u16) -> Option<&Target> {
        let at = self.targets.binary_search_by_key(&id, |target| target.id);
        self.targets.get(at.ok()?)
    }

    /// The target of a new session of `client`; `None` when all of them drain. Where they take
    /// turns, `in_turn` takes one.
    pub fn choose<'r>(
        &'r self,
        client: IpAddr,
        in_turn: impl FnOnce(&'r Self) -> Option<&'r Target>,
    ) -> Option<&'r Target> {
        let mut serving = self.targets.iter().filter(|target| target.serves());
        let first = serving.next()?;
        if serving.next().is_none() {
            return Some(first);
        }
        match self.balance {
            Balance::RoundRobin => in_turn(self),
            Balance::SourceHash { key } => {
                let serving = self.targets.iter().filter(|target| target.serves());
                heaviest(serving, key, client)
            }
        }
    }

    /// The target that has a connection of `client` that began before the tables were made, as far
    /// as that can be told: where a wrong guess would end the connection, there is none.
    pub fn recall(&self, client: IpAddr) -> Option<&Target> {
        match (self.targets.as_slice(), self.balance) {
            ([only], _) => Some(only),
            (_, Balance::RoundRobin) => None,
            // Of one that drains, clients may have been moved since they came.
            (targets, Balance::SourceHash { key }) => {
                heaviest(targets.iter(), key, client).filter(|target| target.serves())
            }
        }
    }
}

/// Whose turn it is among the targets of one rule: smooth weighted round robin. Each turn every
/// target is credited its weight, and the one with the most pays for all: so a heavy target's turns
/// are spread, and whoever comes begins with nothing to make up for.
#[derive(Clone, Debug, Default, Hash)]
pub struct Rotation {
    /// By target, those that serve, in the order of their ids. At most [`TARGETS_MAX`].
    credits: Vec<(u16, i32)>,
}

impl Rotation {
    /// Takes a turn among those of `targets` that serve.
    pub fn advance<'t>(&mut self, targets: &'t [Target]) -> Option<&'t Target> {
        let serving = || targets.iter().filter(|target| target.serves());
        let known = self.credits.iter().map(|(id, _)| *id);
        if !known.eq(serving().map(|target| target.id)) {
            let before = core::mem::take(&mut self.credits);
            let credit = |id| before.iter().find(|(known, _)| *known == id);
            self.credits = serving()
                .map(|target| {
                    (
                        target.id,
                        credit(target.id).map_or(0, |(_, credit)| *credit),
                    )
                })
                .collect();
        }
        let mut all = 0;
        for ((_, credit), target) in self.credits.iter_mut().zip(serving()) {
            *credit += i32::from(target.weight);
            all += i32::from(target.weight);
        }
        // The first of equals, so that equal weights are served in order.
        let (own, target) = self
            .credits
            .iter_mut()
            .zip(serving())
            .min_by_key(|((_, credit), _)| Reverse(*credit))?;
        own.1 -= all;
        Some(target)
    }
}

/// Weighted rendezvous hashing: each target draws a number for the client, which is the larger the
/// more it weighs, and the largest wins. No target's draw depends on the others.
fn heaviest<'t>(
    targets: impl Iterator<Item = &'t Target>,
    key: u64,
    client: IpAddr,
) -> Option<&'t Target> {
    let key = HashKey::new(key);
    let draw = |target: &Target| {
        let bits = key.draw(client, target.id) >> 11;
        // Strictly between 0 and 1, as 53 bits tell it.
        let uniform = (bits as f64 + 0.5) / (1_u64 << 53) as f64;
        f64::from(target.weight) / -uniform.ln()
    };
    targets.max_by(|one, two| draw(one).total_cmp(&draw(two)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nat::Transport;
    use std::collections::BTreeMap;

    fn rule(weights: &[u16], balance: Balance) -> StaticRule {
        let target = |(id, weight): (usize, &u16)| Target {
            weight: *weight,
            ..Target::new(
                id as u16,
                DomainId(1),
                L4Addr::new([10, 0, 0, id as u8].into(), 80),
            )
        };
        let targets: Vec<Target> = weights.iter().enumerate().map(target).collect();
        StaticRule {
            balance,
            targets: targets.clone(),
            ..StaticRule::new(1, Transport::Tcp, 80..=80, targets[0])
        }
    }

    fn hashed(weights: &[u16]) -> StaticRule {
        rule(weights, Balance::SourceHash { key: 7 })
    }

    fn client(number: u32) -> IpAddr {
        IpAddr::V4((0xc000_0200 + number).into())
    }

    fn pick(rule: &StaticRule, number: u32, rotation: &mut Rotation) -> Option<u16> {
        let picked = rule.choose(client(number), |rule| rotation.advance(&rule.targets));
        picked.map(|target| target.id)
    }

    fn next(rule: &StaticRule, rotation: &mut Rotation) -> u16 {
        pick(rule, 1, rotation).unwrap()
    }

    /// Where turns play no part.
    fn chosen(rule: &StaticRule, number: u32) -> u16 {
        let picked = rule.choose(client(number), |_| panic!("nobody's turn"));
        picked.unwrap().id
    }

    #[test]
    fn equal_weights_are_even_within_one_after_every_turn() {
        for count in [2_u16, 3, 5, 8, 64] {
            let rule = rule(&vec![9; count.into()], Balance::RoundRobin);
            let mut counts = vec![0_u32; count.into()];
            let mut rotation = Rotation::default();
            for _ in 0..700 {
                counts[usize::from(next(&rule, &mut rotation))] += 1;
                let (least, most) = (counts.iter().min(), counts.iter().max());
                assert!(most.unwrap() - least.unwrap() <= 1, "{counts:?}");
            }
        }
    }

    #[test]
    fn turns_are_proportional_to_the_weights_and_spread() {
        let mut rng = fastrand::Rng::with_seed(3);
        for case in 0..200 {
            let count = rng.usize(2..20);
            let weights: Vec<u16> = (0..count).map(|_| rng.u16(1..=WEIGHT_MAX)).collect();
            let sum: u32 = weights.iter().copied().map(u32::from).sum();
            let rule = rule(&weights, Balance::RoundRobin);
            let mut counts = vec![0_u32; count];
            let mut rotation = Rotation::default();
            for turn in 0..sum {
                counts[usize::from(next(&rule, &mut rotation))] += 1;
                for (got, weight) in counts.iter().zip(&weights) {
                    let due = f64::from(turn + 1) * f64::from(*weight) / f64::from(sum);
                    let off = (f64::from(*got) - due).abs();
                    assert!(off < 2.0, "case {case}, {weights:?} after {turn}: {off}");
                }
            }
            let wanted: Vec<u32> = weights.iter().copied().map(u32::from).collect();
            assert_eq!(counts, wanted, "case {case}");
        }
        let heavy = rule(&[5, 1, 1], Balance::RoundRobin);
        let mut rotation = Rotation::default();
        let order: Vec<u16> = (0..7).map(|_| next(&heavy, &mut rotation)).collect();
        assert_eq!(order, [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn a_newcomer_gets_its_share_and_nothing_to_make_up_for() {
        let (two, three) = (
            rule(&[1, 1], Balance::RoundRobin),
            rule(&[1, 1, 1], Balance::RoundRobin),
        );
        let mut rotation = Rotation::default();
        for _ in 0..101 {
            next(&two, &mut rotation);
        }
        let mut counts = [0_u32; 3];
        for _ in 0..30 {
            counts[usize::from(next(&three, &mut rotation))] += 1;
        }
        assert!(
            counts.iter().all(|count| (9..=11).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn a_draining_target_gets_nothing_new_and_all_draining_is_nobody() {
        for balance in [Balance::RoundRobin, Balance::SourceHash { key: 1 }] {
            let mut rule = rule(&[1, 200, 1], balance);
            rule.targets[1].duty = Duty::Draining;
            let mut counts = [0_u32; 3];
            let mut rotation = Rotation::default();
            for number in 0..2_000 {
                let own = pick(&rule, number, &mut rotation).unwrap();
                counts[usize::from(own)] += 1;
            }
            assert_eq!(counts[1], 0);
            assert!(counts[0].abs_diff(counts[2]) < 200, "{counts:?}");
            rule.targets[0].duty = Duty::Draining;
            assert_eq!(pick(&rule, 1, &mut rotation), Some(2));
            rule.targets[2].duty = Duty::Draining;
            assert_eq!(pick(&rule, 1, &mut rotation), None);
        }
    }

    #[test]
    fn a_single_target_takes_no_turn() {
        let only = rule(&[1], Balance::RoundRobin);
        assert_eq!(chosen(&only, 1), 0);
    }

    #[test]
    fn a_source_keeps_its_target_and_shares_follow_the_weights() {
        let clients = 40_000;
        let rule = hashed(&[1, 2, 4, 1]);
        let mut counts = [0_u32; 4];
        for number in 0..clients {
            let own = chosen(&rule, number);
            assert_eq!(chosen(&rule, number), own);
            counts[usize::from(own)] += 1;
        }
        for (count, weight) in counts.iter().zip([1, 2, 4, 1]) {
            let due = clients * weight / 8;
            assert!(count.abs_diff(due) < due / 20, "{counts:?}");
        }
        let other = StaticRule {
            balance: Balance::SourceHash { key: 8 },
            ..rule.clone()
        };
        let moved = (0..clients).filter(|n| chosen(&rule, *n) != chosen(&other, *n));
        assert!(moved.count() > 10_000, "the key decides");
    }

    #[test]
    fn a_target_that_comes_or_drains_moves_only_its_own_clients() {
        let clients = 20_000;
        for count in [2_usize, 5, 20] {
            let few = hashed(&vec![1; count]);
            let many = hashed(&vec![1; count + 1]);
            let newcomer = count as u16;
            let mut moved = 0;
            for number in 0..clients {
                let (before, after) = (chosen(&few, number), chosen(&many, number));
                moved += u32::from(before != after);
                assert!(before == after || after == newcomer, "{before} -> {after}");
            }
            let due = clients / (count as u32 + 1);
            assert!(moved.abs_diff(due) < due / 8, "{moved} of {due} moved");
            let mut drained = many.clone();
            drained.targets[0].duty = Duty::Draining;
            for number in 0..clients {
                let before = chosen(&many, number);
                assert!(before == 0 || chosen(&drained, number) == before);
            }
        }
    }

    #[test]
    fn a_connection_is_recalled_only_where_it_can_have_been() {
        let mut rules = BTreeMap::new();
        rules.insert("alone", rule(&[1], Balance::RoundRobin));
        rules.insert("turns", rule(&[1, 1], Balance::RoundRobin));
        rules.insert("hash", hashed(&[1, 1]));
        rules
            .values_mut()
            .for_each(|rule| rule.targets[0].duty = Duty::Draining);
        let recalled = |rule: &StaticRule| -> Vec<Option<u16>> {
            let ids = (0..100).map(|n| rule.recall(client(n)).map(|target| target.id));
            ids.collect()
        };
        assert_eq!(recalled(&rules["alone"]), [Some(0); 100]);
        assert_eq!(recalled(&rules["turns"]), [None; 100]);
        let whole = hashed(&[1, 1]);
        for (number, found) in (0..).zip(recalled(&rules["hash"])) {
            let own = chosen(&whole, number);
            assert_eq!(
                found,
                (own == 1).then_some(1),
                "0 drains, so nobody is sure"
            );
        }
    }
}
