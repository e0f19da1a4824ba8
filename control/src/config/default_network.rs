//! `[default_network]`: the network that is there from the first start.
//!
//! The keys are those by which Docker's daemon.json describes its default bridge, so that what an
//! operator knows of one host is said of the other in the same words.

use std::fmt;

use ipnet::IpNet;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::Error;

/// Name of the default network, which `attach` uses when no other is named.
pub const DEFAULT_NETWORK: &str = "default";

/// The network that a state directory has from its first start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DefaultNetwork {
    /// None.
    Absent,
    /// One like this.
    Present(DefaultNetworkConfig),
}

impl Default for DefaultNetwork {
    fn default() -> Self {
        Self::Present(DefaultNetworkConfig::default())
    }
}

/// What the default network is like; what is left out is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DefaultNetworkConfig {
    /// Its gateway, with the length of its subnet.
    pub bip: Option<IpNet>,
    /// Where its endpoints get their addresses from.
    pub fixed_cidr: Option<IpNet>,
    /// Its gateway in IPv6.
    pub bip6: Option<IpNet>,
    /// Largest IP packet, in bytes.
    pub mtu: Option<u16>,
    /// Nothing outside is reachable.
    #[serde(default)]
    pub internal: bool,
}

/// What the file says: `false`, or a table.
#[derive(Debug, Default)]
pub(super) struct DefaultNetworkFile(DefaultNetwork);

impl DefaultNetworkFile {
    /// What it comes to, where the command line may have said that there is to be none.
    pub(super) fn checked(
        self,
        overridden: Option<DefaultNetwork>,
    ) -> Result<DefaultNetwork, Error> {
        let network = overridden.unwrap_or(self.0);
        if let DefaultNetwork::Present(config) = &network {
            let wanted = [
                ("default_network.bip", config.bip, Family::V4),
                ("default_network.fixed_cidr", config.fixed_cidr, Family::V4),
                ("default_network.bip6", config.bip6, Family::V6),
            ];
            for (key, value, family) in wanted {
                check(key, value, family)?;
            }
            if config.fixed_cidr.is_some() && config.bip.is_none() {
                return Err(Error::RangeWithoutSubnet);
            }
        }
        Ok(network)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

fn check(key: &'static str, value: Option<IpNet>, family: Family) -> Result<(), Error> {
    let (is_of, name) = match family {
        Family::V4 => (value.is_none_or(|net| net.addr().is_ipv4()), "IPv4"),
        Family::V6 => (value.is_none_or(|net| net.addr().is_ipv6()), "IPv6"),
    };
    match value {
        Some(value) if !is_of => Err(Error::Family {
            key,
            family: name,
            value,
        }),
        Some(_) | None => Ok(()),
    }
}

impl<'de> Deserialize<'de> for DefaultNetworkFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FileVisitor)
    }
}

/// A visitor, for an untagged enum would not say which key is wrong, nor where.
struct FileVisitor;

impl<'de> Visitor<'de> for FileVisitor {
    type Value = DefaultNetworkFile;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("true, false, or a table with bip, fixed_cidr, bip6, mtu and internal")
    }

    fn visit_bool<E>(self, present: bool) -> Result<Self::Value, E> {
        Ok(DefaultNetworkFile(match present {
            true => DefaultNetwork::default(),
            false => DefaultNetwork::Absent,
        }))
    }

    fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Self::Value, M::Error> {
        let config = DefaultNetworkConfig::deserialize(MapAccessDeserializer::new(map))?;
        Ok(DefaultNetworkFile(DefaultNetwork::Present(config)))
    }
}
