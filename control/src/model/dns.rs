//! What is set of the name service: of a network, and of an endpoint.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use dataplane_core::topology::Resolver;

use super::{Name, NameError};

/// Servers that a network or endpoint may name: what resolv.conf(5) takes.
pub const SERVERS_MAX: usize = 3;
/// Aliases of one endpoint.
pub const ALIASES_MAX: usize = 32;
/// Links of one endpoint.
pub const LINKS_MAX: usize = 32;

/// What is set of a network's name service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkDns {
    /// Who answers at the gateway.
    pub state: DnsState,
    /// Whom questions go to that the network does not answer; the daemon's servers when empty.
    pub servers: Vec<IpAddr>,
}

/// Whether a network has the service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DnsState {
    /// It has.
    #[default]
    On,
    /// What is sent to the gateway's port 53 is the host's.
    Off,
}

impl DnsState {
    /// The same, as the dataplane knows it.
    pub const fn resolver(self) -> Resolver {
        match self {
            Self::On => Resolver::Service,
            Self::Off => Resolver::Host,
        }
    }
}

/// What is set of an endpoint's names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointDns {
    /// Further names of it.
    pub aliases: Vec<Name>,
    /// Whom its questions go to; its network's servers when empty.
    pub servers: Vec<IpAddr>,
    /// Names that it alone knows others by.
    pub links: Vec<NameLink>,
}

/// A name that one endpoint alone knows another one of its network by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameLink {
    /// The other one's name.
    pub target: Name,
    /// The name for it.
    pub alias: Name,
}

impl FromStr for NameLink {
    type Err = NameError;

    /// Reads `NAME` or `NAME:ALIAS`, as Docker has it.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let (target, alias) = text.split_once(':').unwrap_or((text, text));
        Ok(Self {
            target: target.parse()?,
            alias: alias.parse()?,
        })
    }
}

impl fmt::Display for NameLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.target, self.alias)
    }
}

/// Text that is no setting of the name service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DnsError {
    /// Neither a word nor an address.
    #[error("'{0}' is no name server; give an IP address, or 'on' or 'off' alone")]
    Server(String),
    /// More than resolv.conf(5) takes.
    #[error("{0} name servers were given; give at most {SERVERS_MAX}")]
    TooManyServers(usize),
    /// More than anybody needs.
    #[error("{0} aliases were given; give at most {ALIASES_MAX}")]
    TooManyAliases(usize),
    /// More than anybody needs.
    #[error("{0} links were given; give at most {LINKS_MAX}")]
    TooManyLinks(usize),
    /// Not a name.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// Reads what a request says of a network: `on`, `off`, or servers.
///
/// # Errors
/// [`DnsError`] for any other words.
pub fn network_dns(words: &[String]) -> Result<NetworkDns, DnsError> {
    let of_state = |state| NetworkDns {
        state,
        servers: Vec::new(),
    };
    Ok(match words {
        [word] if word == "off" => of_state(DnsState::Off),
        [word] if word == "on" => of_state(DnsState::On),
        words => NetworkDns {
            state: DnsState::On,
            servers: servers(words)?,
        },
    })
}

/// The words for it.
pub fn network_dns_words(dns: &NetworkDns) -> Vec<String> {
    match (dns.state, dns.servers.as_slice()) {
        (DnsState::Off, _) => vec!["off".to_owned()],
        (DnsState::On, []) => vec!["on".to_owned()],
        (DnsState::On, servers) => servers.iter().map(IpAddr::to_string).collect(),
    }
}

/// Reads what a request says of an endpoint.
///
/// # Errors
/// [`DnsError`].
pub fn endpoint_dns(
    aliases: &[String],
    words: &[String],
    links: &[String],
) -> Result<EndpointDns, DnsError> {
    if aliases.len() > ALIASES_MAX {
        return Err(DnsError::TooManyAliases(aliases.len()));
    }
    if links.len() > LINKS_MAX {
        return Err(DnsError::TooManyLinks(links.len()));
    }
    let aliases: Result<Vec<Name>, NameError> = aliases.iter().map(|text| text.parse()).collect();
    Ok(EndpointDns {
        aliases: aliases?,
        servers: servers(words)?,
        links: links
            .iter()
            .map(|text| text.parse())
            .collect::<Result<_, NameError>>()?,
    })
}

fn servers(words: &[String]) -> Result<Vec<IpAddr>, DnsError> {
    if words.len() > SERVERS_MAX {
        return Err(DnsError::TooManyServers(words.len()));
    }
    let server = |word: &String| word.parse().map_err(|_| DnsError::Server(word.clone()));
    words.iter().map(server).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_networks_service_is_on_or_off_or_asks_certain_servers() {
        for words in [&["on"][..], &["off"], &["192.0.2.1", "2001:db8::1"]] {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(network_dns_words(&network_dns(&words).unwrap()), words);
        }
        for (words, problem) in [
            (&["off", "192.0.2.1"][..], "'off' is no name server"),
            (&["dns.example"], "'dns.example' is no name server"),
            (&["::1", "::2", "::3", "::4"], "give at most 3"),
        ] {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            let error = network_dns(&words).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn a_link_is_a_name_with_or_without_an_alias() {
        for (text, whole) in [("db:database", "db:database"), ("db", "db:db")] {
            assert_eq!(text.parse::<NameLink>().unwrap().to_string(), whole);
        }
        for wrong in ["", ":", "db:", ":db", "a:b:c", "a b"] {
            assert!(wrong.parse::<NameLink>().is_err(), "{wrong}");
        }
        let many = vec!["db".to_owned(); LINKS_MAX + 1];
        assert_eq!(
            endpoint_dns(&[], &[], &many),
            Err(DnsError::TooManyLinks(LINKS_MAX + 1))
        );
    }
}
