//! `[[default_address_pools]]`: where networks get their subnets from, in Docker's words.

use ipnet::{IpNet, Ipv4Net};
use serde::Deserialize;

use super::Error;

/// Subnets of one pool that are looked at; as many as there are domains would do.
pub(super) const POOL_SUBNETS_MAX: usize = 65_536;
/// Shortest prefix of a pool: a class A network.
const BASE_LEN_MIN: u8 = 8;
/// Longest subnet that has room for a gateway and one endpoint.
const SIZE_MAX: u8 = 30;

/// A prefix that is cut into subnets of one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddressPool {
    /// What is cut.
    pub base: IpNet,
    /// The length of the subnets.
    pub size: u8,
}

impl AddressPool {
    /// Its subnets, lowest first.
    pub fn subnets(self) -> impl Iterator<Item = IpNet> {
        let subnets = match self.base {
            IpNet::V4(base) => base.subnets(self.size).ok(),
            IpNet::V6(_) => None,
        };
        subnets.into_iter().flatten().map(IpNet::V4)
    }

    fn is_good(self) -> bool {
        let good = |base: Ipv4Net| {
            let len = base.prefix_len();
            base.trunc() == base
                && len >= BASE_LEN_MIN
                && (len..=SIZE_MAX).contains(&self.size)
                && 1_usize << (self.size - len) <= POOL_SUBNETS_MAX
        };
        matches!(self.base, IpNet::V4(base) if good(base))
    }
}

pub(super) fn checked(pools: Vec<AddressPool>) -> Result<Vec<AddressPool>, Error> {
    match pools.iter().find(|pool| !pool.is_good()) {
        Some(AddressPool { base, size }) => Err(Error::Pool {
            base: *base,
            size: *size,
        }),
        None => Ok(pools),
    }
}
