//! Publish specifications: `-p` as Docker users write it.
//!
//! | form | meaning |
//! |---|---|
//! | `80` | container port 80 on a free port of every host address |
//! | `8080:80` | host port 8080 |
//! | `127.0.0.1::80` | a free port of that address |
//! | `127.0.0.1:8080:80` | that port of that address |
//! | `8000-8010:9000-9010` | eleven ports |
//! | `…/udp` | UDP instead of TCP |
//!
//! IPv6 addresses stand in brackets: `[::1]:8080:80`.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use dataplane_core::nat::Transport;

use crate::model::transport_label;

/// A parsed specification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishSpec {
    /// TCP or UDP.
    pub transport: Transport,
    /// The host's address; `None` for all.
    pub host_ip: Option<IpAddr>,
    /// The host's ports; `None` for free ones.
    pub host_ports: Option<RangeInclusive<u16>>,
    /// The endpoint's ports, as many as the host's.
    pub inside_ports: RangeInclusive<u16>,
}

/// Text that is no publish specification.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{spec}' cannot be published: {problem}; write [[IP:]HOST_PORT:]CONTAINER_PORT[/tcp|/udp]"
)]
pub struct PublishSpecError {
    /// As given.
    pub spec: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl PublishSpec {
    /// How many ports are published.
    pub fn count(&self) -> usize {
        self.inside_ports.len()
    }
}

impl FromStr for PublishSpec {
    type Err = PublishSpecError;

    fn from_str(text: &str) -> Result<Self, PublishSpecError> {
        parse(text).map_err(|problem| PublishSpecError {
            spec: text.to_owned(),
            problem,
        })
    }
}

fn parse(text: &str) -> Result<PublishSpec, &'static str> {
    let (ports, transport) = match text.rsplit_once('/') {
        None => (text, Transport::Tcp),
        Some((ports, "tcp")) => (ports, Transport::Tcp),
        Some((ports, "udp")) => (ports, Transport::Udp),
        Some(_) => return Err("the protocol is neither tcp nor udp"),
    };
    let (host_ip, ports) = split_address(ports)?;
    let (host, inside) = match ports.split_once(':') {
        Some((host, inside)) => (Some(host), inside),
        None if host_ip.is_some() => return Err("the container port is missing"),
        None => (None, ports),
    };
    let inside_ports = range(inside)?;
    let host_ports = match host {
        None | Some("") => None,
        Some(host) => Some(range(host)?),
    };
    if host == Some("") && host_ip.is_none() {
        return Err("the host port is missing");
    }
    if let Some(host_ports) = &host_ports
        && host_ports.len() != inside_ports.len()
    {
        return Err("the two ranges differ in length");
    }
    Ok(PublishSpec {
        transport,
        host_ip,
        host_ports,
        inside_ports,
    })
}

/// Takes the address off the front. `H:C` has no address; `IP::C` and `IP:H:C` have one.
fn split_address(text: &str) -> Result<(Option<IpAddr>, &str), &'static str> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or("the bracket is not closed")?;
        let address = address.parse().map_err(|_| "the address is malformed")?;
        let rest = rest
            .strip_prefix(':')
            .ok_or("the container port is missing")?;
        return Ok((Some(IpAddr::V6(address)), rest));
    }
    let colons = text.matches(':').count();
    match colons {
        0 | 1 => Ok((None, text)),
        2 => {
            let (address, rest) = text.split_once(':').ok_or("the address is malformed")?;
            let address = address.parse().map_err(|_| "the address is malformed")?;
            Ok((Some(IpAddr::V4(address)), rest))
        }
        _ => Err("an IPv6 address must stand in brackets"),
    }
}

fn range(text: &str) -> Result<RangeInclusive<u16>, &'static str> {
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    if first > last {
        return Err("the range runs backwards");
    }
    Ok(first..=last)
}

fn port(text: &str) -> Result<u16, &'static str> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|port| digits && *port > 0)
        .ok_or("a port is a number from 1 to 65535")
}

/// `8080` or `8000-8010`.
pub fn range_text(range: &RangeInclusive<u16>) -> String {
    if range.start() == range.end() {
        range.start().to_string()
    } else {
        format!("{}-{}", range.start(), range.end())
    }
}

impl fmt::Display for PublishSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(IpAddr::V4(ip)) => write!(f, "{ip}:")?,
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:")?,
            None => {}
        }
        match &self.host_ports {
            Some(ports) => write!(f, "{}:", range_text(ports))?,
            None if self.host_ip.is_some() => f.write_str(":")?,
            None => {}
        }
        let inside = range_text(&self.inside_ports);
        write!(f, "{inside}/{}", transport_label(self.transport))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_written_back() {
        for (text, canonical) in [
            ("80", "80/tcp"),
            ("80/udp", "80/udp"),
            ("8080:80", "8080:80/tcp"),
            ("127.0.0.1::80", "127.0.0.1::80/tcp"),
            ("127.0.0.1:8080:80/tcp", "127.0.0.1:8080:80/tcp"),
            ("8000-8010:9000-9010/udp", "8000-8010:9000-9010/udp"),
            ("[::1]:8080:80", "[::1]:8080:80/tcp"),
            ("[::1]::80", "[::1]::80/tcp"),
            ("7000-7003", "7000-7003/tcp"),
        ] {
            let spec: PublishSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), canonical, "{text}");
            assert_eq!(canonical.parse::<PublishSpec>(), Ok(spec));
        }
    }

    #[test]
    fn bad_forms_are_refused_with_the_reason() {
        for (text, problem) in [
            ("", "a port is a number from 1 to 65535"),
            ("0", "a port is a number from 1 to 65535"),
            ("65536", "a port is a number from 1 to 65535"),
            ("+80", "a port is a number from 1 to 65535"),
            (":80", "the host port is missing"),
            ("80/sctp", "the protocol is neither tcp nor udp"),
            ("90-80", "the range runs backwards"),
            ("1-2:1-3", "the two ranges differ in length"),
            ("1.2.3:80:80", "the address is malformed"),
            ("::1:80:80", "an IPv6 address must stand in brackets"),
            ("[::1:80", "the bracket is not closed"),
            ("[::1]", "the container port is missing"),
        ] {
            let error = text.parse::<PublishSpec>().unwrap_err();
            assert_eq!(error.problem, problem, "{text}");
            assert_eq!(error.spec, text);
        }
    }
}
