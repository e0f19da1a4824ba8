//! Seeded hashes of the NAT tables' keys.
//!
//! Remote addresses and ports are chosen by strangers, who must not be able to aim at one bucket:
//! a hash whose collisions do not depend on the seed (such as fxhash) would let them. These fold
//! a 64x64→128 bit product with secret factors, as wyhash does, in about a nanosecond per key.

use std::net::IpAddr;

use crate::addr::{DomainId, L4Addr, L4Port};

use super::packet::End;
use super::session::{Mapping, NatProtocol, Session};
use super::table::{FlowKey, InsideKey};

/// The secret of one NAT; from a seed, so that a simulation repeats itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct HashKey([u64; 4]);

impl HashKey {
    /// A seed by which all ends have one hash, so that only what is compared tells flows apart.
    #[cfg(test)]
    pub const COLLIDING: u64 = u64::MAX;

    pub fn new(seed: u64) -> Self {
        #[cfg(test)]
        if seed == Self::COLLIDING {
            return Self([0; 4]);
        }
        let mut rng = fastrand::Rng::with_seed(seed);
        // Odd, so that no factor is zero.
        Self(core::array::from_fn(|_| rng.u64(..) | 1))
    }

    #[inline]
    pub fn inside(&self, key: &InsideKey) -> u64 {
        let inside = self.end((&key.inside).into()) ^ tag(key.protocol, key.domain);
        self.join(inside, self.outside(&key.external, key.scope))
    }

    /// As [`HashKey::inside`] of the key of a mapping.
    #[inline]
    pub fn inside_of(&self, mapping: &Mapping) -> u64 {
        let inside = self.end((&mapping.inside).into()) ^ tag(mapping.protocol, mapping.domain);
        self.join(inside, self.outside(&mapping.external.ip, mapping.scope))
    }

    #[inline]
    fn outside(&self, external: &IpAddr, scope: u32) -> u64 {
        let address = End {
            ip: external,
            l4_port: L4Port(0),
        };
        self.end(address).rotate_left(32) ^ u64::from(scope)
    }

    /// As [`HashKey::flow`] and [`HashKey::pair`] of the keys of a session.
    #[inline]
    pub fn session_of(&self, session: &Session, mapping: &Mapping) -> (u64, u64) {
        let remote = self.end((&session.remote).into()).rotate_left(32);
        let inside = self.end((&mapping.inside).into()) ^ tag(mapping.protocol, mapping.domain);
        let external = self.end((&mapping.external).into()) ^ tag(mapping.protocol, DomainId(0));
        (self.join(inside, remote), self.join(external, remote))
    }

    #[inline]
    pub fn external(&self, protocol: NatProtocol, external: L4Addr) -> u64 {
        self.join(self.l4(external), tag(protocol, DomainId(0)))
    }

    #[inline]
    pub fn pair(&self, protocol: NatProtocol, external: L4Addr, remote: L4Addr) -> u64 {
        self.pair_of(protocol, (&external).into(), (&remote).into())
    }

    #[inline]
    pub fn flow(&self, key: &FlowKey) -> u64 {
        let (inside, remote) = ((&key.inside).into(), (&key.remote).into());
        self.flow_of(key.protocol, key.domain, inside, remote)
    }

    /// The hash of an address inside towards one outside: a choice between outside ones that is
    /// always the same for an inside.
    pub fn pairing(&self, domain: DomainId, inside: IpAddr, external: IpAddr) -> u64 {
        let inside = self.ip(inside) ^ u64::from(domain.0);
        self.join(inside, self.ip(external).rotate_left(32))
    }

    /// The hash of an inside address.
    #[inline]
    pub fn endpoint(&self, domain: DomainId, inside: IpAddr) -> u64 {
        self.join(self.ip(inside), u64::from(domain.0))
    }

    /// What a target draws for a client, when one of several is chosen.
    pub fn draw(&self, client: IpAddr, target: u16) -> u64 {
        self.join(self.ip(client), u64::from(target) << 17 | 1)
    }

    /// The low `bits` of `number`, an even count, in another order that only the key tells: a
    /// Feistel network, so that no two numbers get one place.
    pub fn permute(&self, number: u32, bits: u32) -> u32 {
        let half = bits / 2;
        let mask = (1 << half) - 1;
        let (mut left, mut right) = (number >> half & mask, number & mask);
        for round in 0..4 {
            let scrambled = self.join(u64::from(right), round) as u32 & mask;
            (left, right) = (right, left ^ scrambled);
        }
        left << half | right
    }

    /// The hash of a remote that a mapping knows.
    pub fn contact(&self, mapping: u32, remote: IpAddr) -> u64 {
        self.join(u64::from(mapping), self.ip(remote))
    }

    /// As [`HashKey::flow`] of a packet's two ends.
    #[inline(always)]
    pub fn flow_of(
        &self,
        protocol: NatProtocol,
        domain: DomainId,
        inside: End<'_>,
        remote: End<'_>,
    ) -> u64 {
        let inside = self.end(inside) ^ tag(protocol, domain);
        self.join(inside, self.end(remote).rotate_left(32))
    }

    /// As [`HashKey::pair`] of a packet's two ends.
    #[inline(always)]
    pub fn pair_of(&self, protocol: NatProtocol, external: End<'_>, remote: End<'_>) -> u64 {
        let external = self.end(external) ^ tag(protocol, DomainId(0));
        self.join(external, self.end(remote).rotate_left(32))
    }

    /// The hash of an address alone.
    #[inline]
    pub fn ip(&self, address: IpAddr) -> u64 {
        self.l4(L4Addr::new(address, 0))
    }

    /// The hash of an address and port.
    #[inline]
    pub fn l4(&self, address: L4Addr) -> u64 {
        self.end((&address).into())
    }

    #[inline(always)]
    fn end(&self, end: End<'_>) -> u64 {
        let [k0, k1, k2, _] = self.0;
        let port = u64::from(end.l4_port.0);
        match end.ip {
            IpAddr::V4(ip) => mix((u64::from(ip.to_bits()) << 16 | port) ^ k0, k1),
            IpAddr::V6(ip) => {
                let bits = ip.to_bits();
                let (high, low) = ((bits >> 64) as u64, bits as u64);
                mix(mix(high ^ k0, low ^ k1) ^ port, k2)
            }
        }
    }

    /// The hash of an address and port by which remotes are spread over shards. One product leaves
    /// a pattern in addresses that follow each other: some shards would get none of a thousand, and
    /// there a flood of SYNs from them would leave nothing to give up for a client.
    #[inline]
    pub fn spread(&self, address: L4Addr) -> u64 {
        self.spread_of((&address).into())
    }

    /// As [`HashKey::spread`] of an end of a packet.
    #[inline(always)]
    pub fn spread_of(&self, end: End<'_>) -> u64 {
        self.join(self.end(end), 0)
    }

    #[inline]
    fn join(&self, a: u64, b: u64) -> u64 {
        let [_, _, k2, k3] = self.0;
        mix(a ^ k2, b ^ k3)
    }
}

/// The secret by which flows that are not translated are known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlowHash(HashKey);

impl FlowHash {
    pub fn new(seed: u64) -> Self {
        Self(HashKey::new(seed))
    }

    /// The hash of a flow of the kind `tag` between two ends. Never 0.
    #[inline]
    pub fn flow(&self, tag: u64, a: L4Addr, b: L4Addr) -> u64 {
        let Self(key) = self;
        let (a, b) = (key.l4(a), key.l4(b).rotate_left(32));
        // Twice: one product leaves a pattern in ports that follow each other.
        key.join(key.join(a ^ tag, b), tag).max(1)
    }
}

#[inline]
fn tag(protocol: NatProtocol, domain: DomainId) -> u64 {
    (protocol as u64) << 16 | u64::from(domain.0)
}

#[inline]
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product >> 64) as u64 ^ product as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permutation_gives_every_number_once_and_in_no_order() {
        let key = HashKey::new(7);
        let given: Vec<u32> = (0..65_536).map(|n| key.permute(n, 16)).collect();
        let once: std::collections::BTreeSet<u32> = given.iter().copied().collect();
        assert_eq!((once.len(), once.last()), (65_536, Some(&65_535)));
        let steps = given
            .windows(2)
            .filter(|pair| pair[1].wrapping_sub(pair[0]) == 1);
        assert!(steps.count() < 10);
        assert_ne!(key.permute(1, 32), HashKey::new(8).permute(1, 32));
    }
    use std::collections::HashMap;

    #[test]
    fn remotes_in_a_row_reach_every_shard() {
        let least = |hash: fn(&HashKey, L4Addr) -> u64| {
            let of_seed = |seed| {
                let key = HashKey::new(seed);
                let mut shards = [0u32; 64];
                for number in 0..1_000u32 {
                    let remote = L4Addr::new(IpAddr::V4((0xc612_0000 + number).into()), 1_025);
                    shards[(hash(&key, remote) >> 32) as usize % 64] += 1;
                }
                shards.into_iter().min().unwrap_or_default()
            };
            (0..200).map(of_seed).min().unwrap_or_default()
        };
        assert_eq!(least(HashKey::l4), 0, "as bad as it was");
        assert!(least(HashKey::spread) >= 2, "15.6 on average");
    }

    #[test]
    fn neighbouring_keys_spread_and_the_seed_decides_where() {
        let buckets = |seed| {
            let key = HashKey::new(seed);
            let mut buckets: HashMap<u64, u32> = HashMap::new();
            for host in 0..64u32 {
                for port in 0..64 {
                    let address = L4Addr::new(IpAddr::V4((0x0a00_0000 + host).into()), port);
                    *buckets
                        .entry(key.external(NatProtocol::Udp, address) % 256)
                        .or_default() += 1;
                }
            }
            buckets
        };
        for seed in 0..8 {
            let worst = buckets(seed).into_values().max().unwrap_or_default();
            assert!(
                worst <= 48,
                "4096 keys in 256 buckets, {worst} in one (16 on average)"
            );
        }
        assert_ne!(buckets(1), buckets(2));
        assert_eq!(buckets(1), buckets(1));
    }
}
