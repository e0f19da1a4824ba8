//! Ranges, timeouts and limits of the NAT, and which of them make no sense.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use crate::time::Duration;

/// External ports that dynamic mappings use when the configuration names none: the upper part of
/// the range that IANA leaves to ephemeral ports (RFC 6335 section 6).
pub const PORT_RANGE_DEFAULT: RangeInclusive<u16> = 49_152..=65_535;
/// Sessions of all shards together.
pub const SESSIONS_MAX_DEFAULT: usize = 1_048_576;
/// Sessions of one inside address, so that one endpoint cannot starve the others.
pub const SESSIONS_PER_ENDPOINT_MAX_DEFAULT: usize = 65_536;

/// On what of the remote a behaviour depends (RFC 4787 sections 4.1 and 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum Dependence {
    /// Nothing: all remotes are treated alike.
    #[default]
    EndpointIndependent,
    /// Its address.
    AddressDependent,
    /// Its address and port.
    AddressAndPortDependent,
}

impl Dependence {
    /// Every one.
    pub const ALL: [Self; 3] = [
        Self::EndpointIndependent,
        Self::AddressDependent,
        Self::AddressAndPortDependent,
    ];

    /// What RFC 4787 calls it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::AddressAndPortDependent => "address-and-port-dependent",
        }
    }
}

/// How a network's mappings are made, and whom they let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behaviour {
    /// Which remotes share one external port of an inside address and port.
    pub mapping: Dependence,
    /// Whether a remote that was not spoken to comes in: any, one whose address was spoken to, or
    /// none.
    pub filtering: Dependence,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            mapping: Dependence::EndpointIndependent,
            filtering: Dependence::AddressAndPortDependent,
        }
    }
}

/// Ranges, timeouts and limits of the NAT.
#[derive(Clone, Debug)]
pub struct NatConfig {
    /// Behaviour towards networks that [`NatConfig::networks`] does not name.
    pub behaviour: Behaviour,
    /// Behaviour by the network's name.
    pub networks: BTreeMap<String, Behaviour>,
    /// External addresses that inside addresses are spread over, each inside address on one of
    /// them, as far as the uplink has them. Empty: the address that the host itself would use.
    pub external_addresses: Vec<IpAddr>,
    /// Whether endpoints share a port towards different remotes when none is free (a deviation
    /// from RFC 4787 REQ-3); otherwise the latecomer is refused.
    pub share_ports: bool,
    /// Whether the segment size that TCP ends offer is held to the MTU of the way between them.
    pub clamp_mss: bool,
    /// Whether packets from the remote keep a UDP session alive (RFC 4787 REQ-6 a).
    pub udp_inbound_refresh: bool,
    /// External ports that dynamic mappings are made from, ICMP identifiers included.
    pub port_range: RangeInclusive<u16>,
    /// How long sessions live.
    pub timeouts: Timeouts,
    /// Sessions of all shards together.
    pub sessions_max: usize,
    /// Sessions of one inside address.
    pub sessions_per_endpoint_max: usize,
}

impl Default for NatConfig {
    fn default() -> Self {
        Self {
            behaviour: Behaviour::default(),
            networks: BTreeMap::new(),
            external_addresses: Vec::new(),
            share_ports: true,
            clamp_mss: false,
            udp_inbound_refresh: true,
            port_range: PORT_RANGE_DEFAULT,
            timeouts: Timeouts::default(),
            sessions_max: SESSIONS_MAX_DEFAULT,
            sessions_per_endpoint_max: SESSIONS_PER_ENDPOINT_MAX_DEFAULT,
        }
    }
}

/// How long a session lives without traffic.
#[derive(Clone, Debug)]
pub struct Timeouts {
    /// Before the third step of the handshake; RFC 5382 REQ-5: at least 4 min.
    pub tcp_opening: Duration,
    /// Both sides have sent; RFC 5382 REQ-5: at least 2 h 4 min.
    pub tcp_established: Duration,
    /// After a RST or the FINs of both sides; RFC 5382 REQ-5: at least 4 min.
    pub tcp_closing: Duration,
    /// RFC 4787 REQ-5: at least 2 min, 5 min recommended.
    pub udp: Duration,
    /// UDP to port 53, which RFC 4787 REQ-5 a lets be shorter, because a query gets one answer.
    /// `None` for no difference.
    pub udp_dns: Option<Duration>,
    /// RFC 5508 REQ-2: at least 60 s.
    pub icmp: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_opening: Duration::from_secs(4 * 60),
            tcp_established: Duration::from_secs(2 * 3600 + 4 * 60),
            tcp_closing: Duration::from_secs(4 * 60),
            udp: Duration::from_secs(5 * 60),
            udp_dns: None,
            icmp: Duration::from_secs(60),
        }
    }
}

/// Why settings of the NAT cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NatConfigError {
    /// Port 0 is reserved (RFC 6335 section 6).
    #[error("external ports begin at 1, not 0")]
    PortZero,
    /// The range ends before it begins.
    #[error("external ports {first}-{last} are none: the range ends before it begins")]
    PortsReversed {
        /// First port.
        first: u16,
        /// Last port.
        last: u16,
    },
    /// No session could ever be made.
    #[error("a limit of 0 sessions lets no packet out; set at least 1")]
    NoSessions,
    /// Less than an RFC asks for.
    #[error(
        "the {state} timeout must be at least {min} s ({clause}), not {value} s; use force to set \
         it all the same"
    )]
    TimeoutTooShort {
        /// Of which sessions.
        state: &'static str,
        /// RFC and requirement.
        clause: &'static str,
        /// The least, in seconds.
        min: u64,
        /// What it is, in seconds.
        value: u64,
    },
}

impl NatConfig {
    /// The behaviour towards a network.
    pub fn behaviour_of(&self, network: &str) -> Behaviour {
        let own = self.networks.get(network);
        own.copied().unwrap_or(self.behaviour)
    }

    /// Whether a NAT can work with these settings at all.
    ///
    /// # Errors
    /// The first of [`NatConfigError`] that applies, but for timeouts.
    pub fn check(&self) -> Result<(), NatConfigError> {
        let (first, last) = (*self.port_range.start(), *self.port_range.end());
        if first == 0 {
            return Err(NatConfigError::PortZero);
        }
        if last < first {
            return Err(NatConfigError::PortsReversed { first, last });
        }
        if self.sessions_max == 0 || self.sessions_per_endpoint_max == 0 {
            return Err(NatConfigError::NoSessions);
        }
        Ok(())
    }
}

impl Timeouts {
    /// Whether every timeout is as long as the RFCs ask.
    ///
    /// # Errors
    /// [`NatConfigError::TimeoutTooShort`] for the first that is not.
    pub fn check(&self) -> Result<(), NatConfigError> {
        let tcp = "RFC 5382 REQ-5";
        let least = [
            ("opening TCP", tcp, 240, self.tcp_opening),
            ("established TCP", tcp, 7_440, self.tcp_established),
            ("closing TCP", tcp, 240, self.tcp_closing),
            ("UDP", "RFC 4787 REQ-5", 120, self.udp),
            ("ICMP", "RFC 5508 REQ-2", 60, self.icmp),
        ];
        for (state, clause, min, timeout) in least {
            let value = timeout.as_secs();
            if value < min {
                return Err(NatConfigError::TimeoutTooShort {
                    state,
                    clause,
                    min,
                    value,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_sound_and_nonsense_is_refused_with_its_reason() {
        assert_eq!(NatConfig::default().check(), Ok(()));
        let refused = |change: fn(&mut NatConfig)| {
            let mut config = NatConfig::default();
            change(&mut config);
            config.check().unwrap_err().to_string()
        };
        assert!(refused(|c| c.port_range = 0..=1_023).contains("not 0"));
        #[allow(clippy::reversed_empty_ranges)]
        let reversed = refused(|c| c.port_range = 60_000..=50_000);
        assert!(reversed.contains("60000-50000"), "{reversed}");
        assert!(refused(|c| c.sessions_max = 0).contains("at least 1"));
        assert!(refused(|c| c.sessions_per_endpoint_max = 0).contains("at least 1"));
    }

    #[test]
    fn a_timeout_below_the_rfcs_least_is_named_with_its_clause() {
        type Field = fn(&mut Timeouts) -> &mut Duration;
        let second = Duration::from_secs(1);
        let cases: [(Field, &str, u64); 5] = [
            (|t| &mut t.tcp_opening, "5382", 240),
            (|t| &mut t.tcp_established, "5382", 7_440),
            (|t| &mut t.tcp_closing, "5382", 240),
            (|t| &mut t.udp, "4787", 120),
            (|t| &mut t.icmp, "5508", 60),
        ];
        for (field, clause, min) in cases {
            let mut timeouts = Timeouts::default();
            *field(&mut timeouts) = Duration::from_secs(min);
            assert_eq!(timeouts.check(), Ok(()));
            *field(&mut timeouts) -= second;
            let told = timeouts.check().unwrap_err().to_string();
            assert!(told.contains(clause) && told.contains("force"), "{told}");
            assert!(told.contains(&min.to_string()), "{told}");
        }
        let dns = Timeouts {
            udp_dns: Some(second),
            ..Timeouts::default()
        };
        assert_eq!(dns.check(), Ok(()), "RFC 4787 REQ-5 a allows it");
    }
}
