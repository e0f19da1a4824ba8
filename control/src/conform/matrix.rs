//! What is asked of a NAT, and what was found.

use serde::Serialize;

/// What was found about one requirement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It was observed to hold.
    Pass,
    /// It was observed not to hold.
    Deviation,
    /// It was not observed, and the row says why.
    NotTested,
}

impl Verdict {
    /// For people.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Deviation => "deviation",
            Self::NotTested => "not tested",
        }
    }
}

macro_rules! checks {
    ($($variant:ident, $name:literal, $source:literal, $requirement:literal;)*) => {
        /// One requirement that the checker knows.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Check {
            $(#[doc = $requirement] $variant,)*
        }

        impl Check {
            /// All of them, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Its name, which stays the same between versions.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// RFC and number of the requirement.
            pub const fn source(self) -> &'static str {
                match self { $(Self::$variant => $source),* }
            }

            /// What is required.
            pub const fn requirement(self) -> &'static str {
                match self { $(Self::$variant => $requirement),* }
            }
        }
    };
}

checks! {
    UdpMapping, "udp-mapping", "RFC 4787 REQ-1", "mapping is endpoint-independent";
    TcpMapping, "tcp-mapping", "RFC 5382 REQ-1", "mapping is endpoint-independent";
    IcmpMapping, "icmp-mapping", "RFC 5508 REQ-1", "mapping of a query identifier is endpoint-independent";
    IcmpReply, "icmp-reply", "RFC 5508 REQ-1", "a query's reply comes back with the inside identifier";
    UdpFiltering, "udp-filtering", "RFC 4787 REQ-8", "the contacted remote gets in; others by a filter that is one of the three";
    TcpFiltering, "tcp-filtering", "RFC 5382 REQ-3", "the contacted remote gets in; others by a filter that is one of the three";
    Pooling, "pooling", "RFC 4787 REQ-2", "one inside address has one external address (paired pooling)";
    UdpOverloading, "udp-overloading", "RFC 4787 REQ-3", "no two inside ports share an external port";
    TcpOverloading, "tcp-overloading", "RFC 5382 REQ-7", "no two inside ports share an external port";
    PortChoice, "port-choice", "RFC 7857 9, RFC 6056", "a port is kept, or chosen so that it cannot be guessed";
    PortParity, "port-parity", "RFC 4787 REQ-4", "even stays even, odd stays odd";
    PortClassLow, "port-class-low", "RFC 4787 REQ-3a", "0-1023 stays in 0-1023";
    PortClassHigh, "port-class-high", "RFC 4787 REQ-3a", "1024-65535 stays in 1024-65535";
    UdpMappingContended, "udp-mapping-contended", "RFC 4787 REQ-1", "mapping is endpoint-independent even when another inside host has the port";
    TcpMappingContended, "tcp-mapping-contended", "RFC 5382 REQ-1", "mapping is endpoint-independent even when another inside host has the port";
    UdpOverloadingContended, "udp-overloading-contended", "RFC 4787 REQ-3", "two inside hosts with one port share no external port, whatever their remotes";
    TcpOverloadingContended, "tcp-overloading-contended", "RFC 5382 REQ-7", "two inside hosts with one port share no external port, whatever their remotes";
    DeliveryContended, "delivery-contended", "RFC 4787 REQ-3", "of two inside hosts with one port each gets its own answers";
    PortParityContended, "port-parity-contended", "RFC 4787 REQ-4", "a port that gives way to another host's stays even or odd";
    PortClassLowContended, "port-class-low-contended", "RFC 4787 REQ-3a", "a port that gives way to another host's stays in 0-1023";
    PortClassHighContended, "port-class-high-contended", "RFC 4787 REQ-3a", "a port that gives way to another host's stays in 1024-65535";
    HairpinUdp, "hairpin-udp", "RFC 4787 REQ-9", "an inside socket reaches another by its mapping";
    HairpinTcp, "hairpin-tcp", "RFC 5382 REQ-8", "an inside socket reaches another by its mapping";
    HairpinSource, "hairpin-source", "RFC 4787 REQ-9a", "what is hairpinned comes from the sender's external address and port";
    HairpinIcmpError, "hairpin-icmp-error", "RFC 5508 REQ-7", "an ICMP error about a hairpinned packet comes back translated";
    HairpinPing, "hairpin-ping", "RFC 5508 REQ-7", "a ping of one's own external address is answered";
    ErrorUdp, "icmp-error-udp", "RFC 5508 REQ-4", "an ICMP error about a UDP mapping comes in, the quoted packet translated back";
    ErrorTcp, "icmp-error-tcp", "RFC 5382 REQ-9", "an ICMP error about a TCP mapping comes in, the quoted packet translated back";
    ErrorQuery, "icmp-error-query", "RFC 5508 REQ-4", "an ICMP error about a query comes in, the quoted packet translated back";
    ErrorTooBig, "icmp-error-too-big", "RFC 4787 REQ-13", "fragmentation needed, or packet too big, from outside comes in with its MTU";
    ErrorOutbound, "icmp-error-outbound", "RFC 5508 REQ-5", "an ICMP error from inside goes out, the quoted packet translated";
    ErrorBadSum, "icmp-error-bad-checksum", "RFC 5508 REQ-3", "an ICMP error with a wrong checksum is dropped";
    ErrorUnknown, "icmp-error-unknown", "RFC 5508 REQ-4", "an ICMP error without a mapping is dropped";
    ErrorKeepsUdp, "icmp-error-keeps-udp", "RFC 4787 REQ-12", "ICMP errors end no UDP mapping";
    ErrorKeepsTcp, "icmp-error-keeps-tcp", "RFC 5382 REQ-10", "ICMP errors end no TCP connection";
    ErrorKeepsQuery, "icmp-error-keeps-query", "RFC 5508 REQ-6", "ICMP errors end no query mapping";
    TcpConnection, "tcp-connection", "RFC 5382 REQ-2", "a connection opens and carries data both ways";
    TcpHalfClose, "tcp-half-close", "RFC 5382 REQ-2", "a half-closed connection carries data the other way";
    TcpSimultaneous, "tcp-simultaneous-open", "RFC 5382 REQ-2", "a simultaneous open succeeds";
    TcpUnsolicited, "tcp-unsolicited-syn", "RFC 5382 REQ-4", "an unsolicited SYN is not answered for 6 s";
    TcpReset, "tcp-reset", "RFC 7857 2.2", "a reset within the window passes both ways";
    TcpForgedReset, "tcp-forged-reset", "RFC 7857 2.2", "a reset outside the window ends no connection";
    TcpReopen, "tcp-reopen", "RFC 5382 REQ-2", "a SYN on a closed connection opens it again";
    FragmentsOut, "fragments-out", "RFC 4787 REQ-14", "fragments in order go out";
    FragmentsOutShuffled, "fragments-out-shuffled", "RFC 4787 REQ-14", "fragments out of order go out";
    FragmentsIn, "fragments-in", "RFC 4787 REQ-14", "fragments in order come in";
    FragmentsInShuffled, "fragments-in-shuffled", "RFC 4787 REQ-14", "fragments out of order come in";
    FragmentsMixed, "fragments-mixed", "RFC 4787 REQ-14", "fragments of two remotes with one identification come in, each whole";
    TooBig, "too-big", "RFC 4787 REQ-13", "what is too large and must not be cut is answered with the MTU";
    ZeroChecksum, "udp-zero-checksum", "RFC 768, RFC 3022 4.1", "a UDP datagram without a checksum stays without";
    Checksums, "checksums", "RFC 3022 4.2", "checksums of what was translated hold";
    Ttl, "ttl", "RFC 1812 5.3.1, RFC 8200 3", "the TTL, or hop limit, is decremented both ways";
    TtlExceeded, "ttl-exceeded", "RFC 5508 REQ-10", "the end of a TTL, or hop limit, is answered by time exceeded";
    Payload, "no-alg", "RFC 4787 REQ-10, RFC 5382 REQ-6", "the payload of FTP passes unchanged";
    Deterministic, "deterministic", "RFC 4787 REQ-11", "mapping and filtering are at the end as in the beginning";
    AddressConflict, "address-conflict", "RFC 4787 REQ-7", "the same subnet inside and outside works";
    UdpTimer, "udp-timer", "RFC 4787 REQ-5", "a UDP mapping lives 120 s";
    UdpTimerTalk, "udp-timer-answered", "RFC 4787 REQ-5", "a UDP mapping with traffic both ways lives 120 s";
    UdpTimerDns, "udp-timer-dns", "RFC 4787 REQ-5a", "how long a UDP mapping to port 53 lives, shorter or not";
    RefreshOut, "udp-refresh-outbound", "RFC 4787 REQ-6", "outbound packets refresh a mapping";
    RefreshIn, "udp-refresh-inbound", "RFC 4787 REQ-6", "whether inbound packets refresh a mapping, either way";
    IcmpTimer, "icmp-timer", "RFC 5508 REQ-2", "a query mapping lives 60 s";
    TcpTimerOpening, "tcp-timer-opening", "RFC 5382 REQ-5", "a connection that is opening lives 240 s";
    TcpTimerClosing, "tcp-timer-closing", "RFC 5382 REQ-5", "a connection that both ends have closed lives 240 s";
    TcpTimerReset, "tcp-timer-reset", "RFC 7857 2.2", "a connection that was reset lives 240 s";
    TcpTimerEstablished, "tcp-timer-established", "RFC 5382 REQ-5", "an established connection lives 7440 s";
}

impl Check {
    /// What there is to say of a translation, and nothing of a router.
    pub const OF_TRANSLATION: &'static [Self] = &[
        Self::UdpMapping,
        Self::TcpMapping,
        Self::IcmpMapping,
        Self::Pooling,
        Self::UdpOverloading,
        Self::TcpOverloading,
        Self::PortChoice,
        Self::PortParity,
        Self::PortClassLow,
        Self::PortClassHigh,
        Self::UdpMappingContended,
        Self::TcpMappingContended,
        Self::UdpOverloadingContended,
        Self::TcpOverloadingContended,
        Self::DeliveryContended,
        Self::PortParityContended,
        Self::PortClassLowContended,
        Self::PortClassHighContended,
        Self::HairpinUdp,
        Self::HairpinTcp,
        Self::HairpinSource,
        Self::HairpinIcmpError,
        Self::HairpinPing,
        Self::ErrorBadSum,
        Self::ErrorUnknown,
        Self::Deterministic,
        Self::AddressConflict,
        Self::UdpTimer,
        Self::UdpTimerTalk,
        Self::UdpTimerDns,
        Self::RefreshOut,
        Self::RefreshIn,
        Self::IcmpTimer,
        Self::TcpTimerOpening,
        Self::TcpTimerClosing,
        Self::TcpTimerReset,
        Self::TcpTimerEstablished,
    ];
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Which requirement.
    pub check: Check,
    /// What was observed, or why nothing was.
    pub observed: String,
    /// What that comes to.
    pub verdict: Verdict,
}

/// What was found about one NAT.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Matrix {
    rows: Vec<Row>,
}

impl Matrix {
    /// Notes what was observed, and whether that is what is required.
    pub fn judge(&mut self, check: Check, holds: bool, observed: impl Into<String>) {
        let verdict = if holds {
            Verdict::Pass
        } else {
            Verdict::Deviation
        };
        self.put(check, verdict, observed.into());
    }

    /// Notes that nothing was observed, and why.
    pub fn not_tested(&mut self, check: Check, why: impl Into<String>) {
        self.put(check, Verdict::NotTested, why.into());
    }

    /// The same of several.
    pub fn none_tested(&mut self, checks: &[Check], why: &str) {
        for check in checks {
            self.not_tested(*check, why);
        }
    }

    fn put(&mut self, check: Check, verdict: Verdict, observed: String) {
        let row = Row {
            check,
            observed,
            verdict,
        };
        match self.rows.binary_search_by_key(&check, |row| row.check) {
            Ok(at) => self.rows[at] = row,
            Err(at) => self.rows.insert(at, row),
        }
    }

    /// What was noted of a requirement.
    pub fn row(&self, check: Check) -> Option<&Row> {
        let at = self.rows.binary_search_by_key(&check, |row| row.check);
        at.ok().map(|at| &self.rows[at])
    }

    /// One row for every requirement, in the order of the table.
    #[must_use]
    pub fn into_rows(mut self) -> Vec<Row> {
        for check in Check::ALL {
            if self.row(*check).is_none() {
                self.not_tested(*check, "no probe came to it");
            }
        }
        self.rows
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_requirement_has_a_row_and_what_nobody_noted_is_not_a_pass() {
        let mut matrix = Matrix::default();
        matrix.judge(Check::TcpMapping, true, "same");
        matrix.judge(Check::UdpMapping, false, "differs");
        let rows = matrix.into_rows();
        assert_eq!(rows.len(), Check::ALL.len());
        for (row, check) in rows.iter().zip(Check::ALL) {
            assert_eq!(row.check, *check);
            let wanted = match check {
                Check::UdpMapping => Verdict::Deviation,
                Check::TcpMapping => Verdict::Pass,
                _ => Verdict::NotTested,
            };
            assert_eq!(row.verdict, wanted, "{check:?}");
        }
    }

    #[test]
    fn the_later_finding_replaces_the_earlier() {
        let mut matrix = Matrix::default();
        matrix.judge(Check::Ttl, true, "first");
        matrix.not_tested(Check::Ttl, "second");
        assert_eq!(matrix.row(Check::Ttl).unwrap().verdict, Verdict::NotTested);
    }

    #[test]
    fn names_are_one_word_each_and_every_source_names_an_rfc() {
        let names: BTreeSet<&str> = Check::ALL.iter().map(|check| check.name()).collect();
        assert_eq!(names.len(), Check::ALL.len());
        for check in Check::ALL {
            assert!(check.source().starts_with("RFC "), "{check:?}");
            assert!(!check.name().contains([' ', ',']), "{check:?}");
        }
    }
}
