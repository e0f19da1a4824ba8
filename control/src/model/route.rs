//! Static routes that an endpoint's sandbox is given by its interface.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use super::Network;

/// Static routes of an endpoint. Each is looked for in the sandbox at every start.
pub const STATIC_ROUTES_MAX: usize = 64;

/// A static route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StaticRoute {
    /// Destinations; some of them, and without host bits.
    pub prefix: IpNet,
    /// The router.
    pub via: IpAddr,
}

impl fmt::Display for StaticRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.prefix, self.via)
    }
}

/// Why a route cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StaticRouteError {
    /// It cannot be read.
    #[error("'{0}' is no route; write SUBNET=ROUTER, as in 10.9.0.0/16=10.88.0.254")]
    Text(String),
    /// Bits are set behind the prefix.
    #[error("'{text}' has bits behind its length; write {prefix}")]
    HostBits {
        /// The route.
        text: String,
        /// The subnet that is meant.
        prefix: IpNet,
    },
    /// IPv4 by IPv6, or the other way round.
    #[error("'{0}' leads to one family by a router of the other")]
    Families(String),
    /// All destinations.
    #[error(
        "'{0}' is a default route, which the network's gateway is; of several endpoints --gw-priority \
         chooses"
    )]
    Default(String),
    /// The router is not a neighbour.
    #[error(
        "'{0}' leads by a router that is no neighbour; give one in a subnet of network '{1}' that the \
         endpoint has an address in, and not its own"
    )]
    Far(StaticRoute, String),
    /// One prefix, two routes.
    #[error("{0} is led to twice; leave one out")]
    Twice(IpNet),
    /// More than there may be.
    #[error("an endpoint has at most {STATIC_ROUTES_MAX} static routes")]
    Many,
}

impl FromStr for StaticRoute {
    type Err = StaticRouteError;

    fn from_str(text: &str) -> Result<Self, StaticRouteError> {
        let wrong = || StaticRouteError::Text(text.to_owned());
        let (prefix, via) = text.split_once('=').ok_or_else(wrong)?;
        let via: IpAddr = via.parse().map_err(|_| wrong())?;
        let prefix = match prefix.parse::<IpNet>() {
            Ok(prefix) => prefix,
            Err(_) => prefix.parse::<IpAddr>().map_err(|_| wrong())?.into(),
        };
        if prefix.addr().is_ipv4() != via.is_ipv4() {
            return Err(StaticRouteError::Families(text.to_owned()));
        }
        if prefix.prefix_len() == 0 {
            return Err(StaticRouteError::Default(text.to_owned()));
        }
        if prefix != prefix.trunc() {
            return Err(StaticRouteError::HostBits {
                text: text.to_owned(),
                prefix: prefix.trunc(),
            });
        }
        Ok(Self { prefix, via })
    }
}

/// Whether an endpoint that has these addresses on a network can have these routes.
///
/// # Errors
/// The first of [`StaticRouteError`] that applies.
pub fn check_routes(
    routes: &[StaticRoute],
    network: &Network,
    addresses: &[IpAddr],
) -> Result<(), StaticRouteError> {
    if routes.len() > STATIC_ROUTES_MAX {
        return Err(StaticRouteError::Many);
    }
    for (index, route) in routes.iter().enumerate() {
        let own = |address: &IpAddr| {
            let subnet = network.subnet_of(*address);
            subnet.is_some_and(|subnet| subnet.prefix.contains(&route.via))
        };
        if !addresses.iter().any(own) || addresses.contains(&route.via) {
            let network = network.name.to_string();
            return Err(StaticRouteError::Far(*route, network));
        }
        let same = |other: &StaticRoute| other.prefix == route.prefix;
        if routes[..index].iter().any(same) {
            return Err(StaticRouteError::Twice(route.prefix));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(text: &str) -> Result<StaticRoute, String> {
        let read: Result<StaticRoute, _> = text.parse();
        read.map_err(|error| error.to_string())
    }

    #[test]
    fn routes_are_read_as_they_are_written_and_nothing_else_is() {
        for text in ["10.9.0.0/16=10.88.0.254", "fd00:9::/32=fd00:88::9"] {
            assert_eq!(route(text).unwrap().to_string(), text);
        }
        let host = route("10.9.0.7=10.88.0.254").unwrap().to_string();
        assert_eq!(host, "10.9.0.7/32=10.88.0.254");
        for (text, told) in [
            ("", "is no route"),
            ("10.9.0.0/16", "is no route"),
            ("10.9.0.0/33=10.88.0.254", "is no route"),
            ("10.9.0.0/16=", "is no route"),
            ("10.9.0.0/16=gateway", "is no route"),
            ("10.9.0.1/16=10.88.0.254", "write 10.9.0.0/16"),
            ("10.9.0.0/16=fd00:88::9", "of the other"),
            ("0.0.0.0/0=10.88.0.254", "--gw-priority"),
            ("::/0=fd00:88::9", "--gw-priority"),
        ] {
            let refused = route(text).unwrap_err();
            assert!(refused.contains(told), "{text}: {refused}");
        }
    }
}
