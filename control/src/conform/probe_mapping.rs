//! Mapping and filtering: which of the three behaviours of RFC 4787 sections 4.1 and 5 a NAT has.

use std::fmt;
use std::net::SocketAddr;

use super::Error;
use super::matrix::{Check, Matrix};
use super::packet::{Head, Segment, flags};
use super::prober::{Flow, GRACE, Mapping, Prober};
use super::side::Transport;

/// One of three: what a mapping or a filter depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dependence {
    /// On the inside address and port alone.
    Endpoint,
    /// On the remote's address as well.
    Address,
    /// On the remote's address and port.
    AddressAndPort,
}

impl fmt::Display for Dependence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Endpoint => "endpoint-independent",
            Self::Address => "address-dependent",
            Self::AddressAndPort => "address-and-port-dependent",
        })
    }
}

impl Dependence {
    /// From the external sides of one inside port towards (R1, p1), (R1, p2) and (R2, p1).
    fn of_mappings<T: PartialEq>([first, other_port, other_address]: &[T; 3]) -> Self {
        match (first == other_port, first == other_address) {
            (true, true) => Self::Endpoint,
            (true, false) => Self::Address,
            (false, _) => Self::AddressAndPort,
        }
    }

    /// From whether the contacted remote's other port and another remote get in.
    fn of_admissions(other_port: bool, other_address: bool) -> Self {
        match (other_port, other_address) {
            (_, true) => Self::Endpoint,
            (true, false) => Self::Address,
            (false, false) => Self::AddressAndPort,
        }
    }
}

/// What was seen for UDP in the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    mapping: Option<Dependence>,
    filtering: Option<Dependence>,
}

/// Looks at both behaviours of every transport.
///
/// # Errors
/// When a socket fails.
pub fn probe(
    prober: &mut Prober,
    matrix: &mut Matrix,
    progress: &mut dyn FnMut(&str),
) -> Result<Class, Error> {
    progress("mapping");
    let class = class(prober)?;
    let lost = "a packet did not arrive outside";
    match class.mapping {
        Some(found) => judge_mapping(matrix, Check::UdpMapping, found),
        None => matrix.not_tested(Check::UdpMapping, lost),
    }
    match tcp_mapping(prober)? {
        Some(found) => judge_mapping(matrix, Check::TcpMapping, found),
        None => matrix.not_tested(Check::TcpMapping, lost),
    }
    icmp(prober, matrix)?;
    progress("filtering");
    match class.filtering {
        Some(found) => matrix.judge(Check::UdpFiltering, true, found.to_string()),
        None => matrix.judge(
            Check::UdpFiltering,
            false,
            "not even the contacted remote gets in",
        ),
    }
    tcp_filtering(prober, matrix)?;
    Ok(class)
}

/// Judges what mappings depend on.
pub fn judge_mapping(matrix: &mut Matrix, check: Check, found: Dependence) {
    matrix.judge(check, found == Dependence::Endpoint, found.to_string());
}

/// Looks at UDP again, after all that has happened in between.
///
/// # Errors
/// When a socket fails.
pub fn probe_again(prober: &mut Prober, matrix: &mut Matrix, before: Class) -> Result<(), Error> {
    let after = class(prober)?;
    let text = |class: Class| {
        let name = |found: Option<Dependence>| {
            found.map_or_else(|| "unknown".to_owned(), |found| found.to_string())
        };
        format!(
            "{} mapping, {} filtering",
            name(class.mapping),
            name(class.filtering)
        )
    };
    let observed = if before == after {
        format!("both times {}", text(after))
    } else {
        format!("{}; then {}", text(before), text(after))
    };
    if before.mapping.is_none() || before.filtering.is_none() {
        matrix.not_tested(Check::Deterministic, observed);
    } else {
        matrix.judge(Check::Deterministic, before == after, observed);
    }
    Ok(())
}

/// The three remotes of a classification: contacted, its other port, another address.
pub fn remotes(prober: &Prober) -> [SocketAddr; 3] {
    [
        prober.remote(0, 0),
        prober.remote(0, 1),
        prober.remote(1, 0),
    ]
}

fn class(prober: &mut Prober) -> Result<Class, Error> {
    let mapping = udp_mapping(prober)?;
    let filtering = udp_filtering(prober)?;
    Ok(Class { mapping, filtering })
}

fn udp_mapping(prober: &mut Prober) -> Result<Option<Dependence>, Error> {
    let port = prober.port(Transport::Udp)?;
    let mut externals = Vec::new();
    for remote in remotes(prober) {
        externals.extend(prober.udp_out(port, remote)?.map(|m| m.external));
    }
    Ok(three(externals))
}

/// The three external sides of a classification; `None` when one was lost.
pub fn three<T: PartialEq>(found: Vec<T>) -> Option<Dependence> {
    let found: [T; 3] = found.try_into().ok()?;
    Some(Dependence::of_mappings(&found))
}

fn tcp_mapping(prober: &mut Prober) -> Result<Option<Dependence>, Error> {
    let port = prober.port(Transport::Tcp)?;
    let mut externals = Vec::new();
    for remote in remotes(prober) {
        externals.extend(prober.tcp_syn(port, remote)?.map(|s| s.mapping.external));
    }
    Ok(three(externals))
}

/// A ping has no ports, so two of the three remotes are all there are.
fn icmp(prober: &mut Prober, matrix: &mut Matrix) -> Result<(), Error> {
    let id = prober.query_id();
    let [one, two] = prober.remotes;
    let (first, second) = (prober.ping(id, one)?, prober.ping(id, two)?);
    let (Some(first), Some(second)) = (first, second) else {
        let why = "an echo request did not arrive outside";
        matrix.none_tested(&[Check::IcmpMapping, Check::IcmpReply], why);
        return Ok(());
    };
    let same = first.external == second.external;
    let kept = if first.external.1 == id {
        "kept"
    } else {
        "another one"
    };
    let observed = if same {
        format!("endpoint-independent, identifier {kept}")
    } else {
        format!(
            "identifier {} towards one remote, {} towards another",
            first.external.1, second.external.1
        )
    };
    matrix.judge(Check::IcmpMapping, same, observed);
    let answered = [first, second].iter().filter(|ping| ping.answered).count();
    let observed = format!("{answered} of 2 replies came back");
    matrix.judge(Check::IcmpReply, answered == 2, observed);
    Ok(())
}

fn udp_filtering(prober: &mut Prober) -> Result<Option<Dependence>, Error> {
    let [contacted, other_port, other_address] = remotes(prober);
    let Some(mapping) = prober.udp_mapping(contacted)? else {
        return Ok(None);
    };
    let admitted = prober.udp_admitted(&mapping, &[other_port, other_address])?;
    Ok(admitted.map(|admitted| Dependence::of_admissions(admitted[0], admitted[1])))
}

fn tcp_filtering(prober: &mut Prober, matrix: &mut Matrix) -> Result<(), Error> {
    let [contacted, other_port, other_address] = remotes(prober);
    let Some(mut flow) = prober.tcp_flow(contacted)? else {
        let observed = "no connection to a remote opens";
        matrix.judge(Check::TcpFiltering, false, observed);
        return Ok(());
    };
    let mark = prober.inside.mark()?;
    for stranger in [other_port, other_address] {
        let packet = syn(prober, stranger, &flow.mapping);
        prober.outside.send(&packet)?;
    }
    let token = prober.token();
    if !prober.tcp_in(&mut flow, flags::ACK, &token)? {
        let observed = "not even the contacted remote gets in";
        matrix.judge(Check::TcpFiltering, false, observed);
        return Ok(());
    }
    prober.inside.wait(mark, GRACE, |_| None::<()>)?;
    let admitted = |prober: &mut Prober, stranger| -> Result<bool, Error> {
        let seen = prober.inside.since(mark)?;
        Ok(seen
            .iter()
            .filter_map(|seen| seen.packet.ends())
            .any(|(from, _)| from == stranger))
    };
    let other_port = admitted(prober, other_port)?;
    let other_address = admitted(prober, other_address)?;
    let found = Dependence::of_admissions(other_port, other_address);
    matrix.judge(Check::TcpFiltering, true, found.to_string());
    close(prober, &mut flow)
}

/// A SYN of a stranger to a mapping.
pub fn syn(prober: &mut Prober, from: SocketAddr, mapping: &Mapping) -> Vec<u8> {
    let segment = Segment {
        seq: prober.number(),
        ack: 0,
        flags: flags::SYN,
    };
    let to = mapping.external;
    Head::new(from.ip(), to.ip()).tcp((from.port(), to.port()), segment, &[])
}

/// Resets a connection that is not needed any more, from inside.
pub fn close(prober: &mut Prober, flow: &mut Flow) -> Result<(), Error> {
    prober.tcp_out(flow, flags::RST | flags::ACK, &[]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_classified_as_rfc_4787_section_4_1_does() {
        use Dependence::{Address, AddressAndPort, Endpoint};
        assert_eq!(Dependence::of_mappings(&[1, 1, 1]), Endpoint);
        assert_eq!(Dependence::of_mappings(&[1, 1, 2]), Address);
        assert_eq!(Dependence::of_mappings(&[1, 2, 3]), AddressAndPort);
        assert_eq!(Dependence::of_mappings(&[1, 2, 1]), AddressAndPort);
        assert_eq!(three(vec![1, 1]), None, "one of them was lost");
    }

    #[test]
    fn filters_are_classified_as_rfc_4787_section_5_does() {
        use Dependence::{Address, AddressAndPort, Endpoint};
        assert_eq!(Dependence::of_admissions(true, true), Endpoint);
        assert_eq!(Dependence::of_admissions(true, false), Address);
        assert_eq!(Dependence::of_admissions(false, false), AddressAndPort);
    }
}
