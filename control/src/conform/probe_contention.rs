//! Two inside hosts that want the same port (RFC 4787 sections 4.1 and 4.2). A NAT that looks
//! endpoint-independent while nobody else wants a port may give way to another host for one remote
//! and keep the port for the next, or give both one external port towards remotes of their own.

use std::net::SocketAddr;

use super::Error;
use super::matrix::{Check, Matrix};
use super::probe_mapping::{self, Dependence};
use super::prober::{Mapping, Prober};
use super::side::Transport;

/// Ports that both hosts want, for each question. A NAT that chooses without regard to parity is
/// taken for one that keeps it in one run of 65,536.
const COUNT: usize = 16;
/// Ports that are tried for them: either host may have something else on one.
const TRIES_MAX: usize = 64;
/// Mappings that may fail before no more are tried: each is waited for.
const LOST_MAX: usize = 4;
/// Well-known ports, of which the least used are at the end.
const WELL_KNOWN_COUNT: usize = 8;
const WELL_KNOWN_LAST: u16 = 1_023;

const CHECKS: [Check; 8] = [
    Check::UdpMappingContended,
    Check::TcpMappingContended,
    Check::UdpOverloadingContended,
    Check::TcpOverloadingContended,
    Check::DeliveryContended,
    Check::PortParityContended,
    Check::PortClassLowContended,
    Check::PortClassHighContended,
];

/// Looks at what two inside hosts with one port get.
///
/// # Errors
/// When a socket fails.
pub fn probe(prober: &mut Prober, matrix: &mut Matrix) -> Result<(), Error> {
    if let Some(why) = hindrance(prober)? {
        matrix.none_tested(&CHECKS, why);
        return Ok(());
    }
    let (same, other) = pairs(prober, Transport::Udp)?;
    judge_overloading(matrix, Check::UdpOverloadingContended, &same, &other);
    judge_displaced(matrix, &same);
    delivery(prober, matrix, [same.first(), other.first()])?;
    let low = well_known(prober)?;
    judge_class(matrix, Check::PortClassLowContended, &low);
    let (same, other) = pairs(prober, Transport::Tcp)?;
    judge_overloading(matrix, Check::TcpOverloadingContended, &same, &other);
    for (check, transport) in [
        (Check::UdpMappingContended, Transport::Udp),
        (Check::TcpMappingContended, Transport::Tcp),
    ] {
        match mapping(prober, transport)? {
            Some(found) => probe_mapping::judge_mapping(matrix, check, found),
            None => matrix.not_tested(check, "a packet did not arrive outside"),
        }
    }
    Ok(())
}

/// Why there is nothing to see, if so: a NAT that knows its hosts may serve no other.
fn hindrance(prober: &mut Prober) -> Result<Option<&'static str>, Error> {
    let remote = prober.remote(0, 0);
    let passes = prober.as_second(|prober| {
        let Some(mapping) = prober.udp_mapping(remote)? else {
            return Ok((false, false));
        };
        Ok((true, prober.udp_in(&mapping)?))
    })?;
    Ok(match passes {
        None => Some("no second inside address is free; name a namespace as SECOND"),
        Some((false, _)) => {
            Some("nothing of a second inside host goes out; name a namespace as SECOND")
        }
        Some((true, false)) => {
            Some("nothing comes in to a second inside host; name a namespace as SECOND")
        }
        Some((true, true)) => None,
    })
}

/// Mappings of the first and of the second host for one inside port.
#[derive(Clone, Copy, Debug)]
struct Pair {
    first: Mapping,
    second: Mapping,
}

impl Pair {
    fn is_shared(&self) -> bool {
        self.first.external == self.second.external
    }

    fn kept(&self) -> bool {
        self.second.port == self.second.external.port()
    }
}

/// A port that both hosts have free, reserved.
fn port(prober: &mut Prober, transport: Transport) -> Result<Option<u16>, Error> {
    for _ in 0..TRIES_MAX {
        let port = prober.port(transport)?;
        let free = prober.as_second(|prober| prober.inside.reserve(transport, port))?;
        if free == Some(true) {
            return Ok(Some(port));
        }
    }
    Ok(None)
}

fn open(
    prober: &mut Prober,
    transport: Transport,
    port: u16,
    remote: SocketAddr,
) -> Result<Option<Mapping>, Error> {
    Ok(match transport {
        Transport::Udp => prober.udp_out(port, remote)?,
        Transport::Tcp => prober.tcp_syn(port, remote)?.map(|syn| syn.mapping),
    })
}

/// The first host's mapping of a port, and then the second's, each towards its remote.
fn pair(
    prober: &mut Prober,
    (transport, port): (Transport, u16),
    remotes: [SocketAddr; 2],
) -> Result<Option<Pair>, Error> {
    let Some(first) = open(prober, transport, port, remotes[0])? else {
        return Ok(None);
    };
    let second = prober.as_second(|prober| open(prober, transport, port, remotes[1]))?;
    let second = second.flatten();
    Ok(second.map(|second| Pair { first, second }))
}

/// Pairs that want one remote, and pairs that want one each.
fn pairs(prober: &mut Prober, transport: Transport) -> Result<(Vec<Pair>, Vec<Pair>), Error> {
    let (one, two) = (prober.remote(0, 0), prober.remote(1, 0));
    let mut made = [Vec::new(), Vec::new()];
    for (pairs, remotes) in made.iter_mut().zip([[one, one], [one, two]]) {
        let mut lost = 0;
        while pairs.len() < COUNT && lost < LOST_MAX {
            let Some(port) = port(prober, transport)? else {
                break;
            };
            match pair(prober, (transport, port), remotes)? {
                Some(pair) => pairs.push(pair),
                None => lost += 1,
            }
        }
    }
    let [same, other] = made;
    Ok((same, other))
}

/// Pairs of well-known ports towards one remote.
fn well_known(prober: &mut Prober) -> Result<Vec<Pair>, Error> {
    let (remote, transport) = (prober.remote(0, 0), Transport::Udp);
    let (mut pairs, mut lost) = (Vec::new(), 0);
    for port in (0..=WELL_KNOWN_LAST).rev().take(TRIES_MAX) {
        if pairs.len() == WELL_KNOWN_COUNT || lost == LOST_MAX {
            break;
        }
        let free = |prober: &mut Prober| prober.inside.reserve(transport, port);
        if !free(prober)? || prober.as_second(free)? != Some(true) {
            continue;
        }
        match pair(prober, (transport, port), [remote; 2])? {
            Some(pair) => pairs.push(pair),
            None => lost += 1,
        }
    }
    Ok(pairs)
}

/// What the second host's mappings depend on while the first has its port towards one remote. That
/// remote comes last: conntrack keeps to a port that has given way, but not to one that it kept.
fn mapping(prober: &mut Prober, transport: Transport) -> Result<Option<Dependence>, Error> {
    let Some(port) = port(prober, transport)? else {
        return Ok(None);
    };
    let remotes = probe_mapping::remotes(prober);
    if open(prober, transport, port, remotes[0])?.is_none() {
        return Ok(None);
    }
    let externals = prober.as_second(|prober| {
        let mut externals = Vec::new();
        for remote in remotes.into_iter().rev() {
            externals.extend(open(prober, transport, port, remote)?.map(|m| m.external));
        }
        externals.reverse();
        Ok(externals)
    })?;
    Ok(externals.and_then(probe_mapping::three))
}

/// Whether each host gets what the remotes of two pairs answer it.
fn delivery(
    prober: &mut Prober,
    matrix: &mut Matrix,
    pairs: [Option<&Pair>; 2],
) -> Result<(), Error> {
    let (mut asked, mut came) = (0, 0);
    for pair in pairs.into_iter().flatten() {
        asked += 2;
        came += usize::from(prober.udp_in(&pair.first)?);
        let second = prober.as_second(|prober| prober.udp_in(&pair.second))?;
        came += usize::from(second == Some(true));
    }
    if asked == 0 {
        matrix.not_tested(Check::DeliveryContended, "no mappings could be made");
        return Ok(());
    }
    let observed = format!("{came} of {asked} answers arrive where they belong");
    matrix.judge(Check::DeliveryContended, came == asked, observed);
    Ok(())
}

fn judge_overloading(matrix: &mut Matrix, check: Check, same: &[Pair], other: &[Pair]) {
    if same.is_empty() || other.is_empty() {
        matrix.not_tested(check, "no two hosts get mappings of one port");
        return;
    }
    let shared = |pairs: &[Pair]| pairs.iter().filter(|pair| pair.is_shared()).count();
    let (same_shared, other_shared) = (shared(same), shared(other));
    let observed = format!(
        "shared towards one remote {same_shared} of {}, towards two {other_shared} of {}",
        same.len(),
        other.len()
    );
    matrix.judge(check, same_shared + other_shared == 0, observed);
}

/// Parity and class of the ports that gave way.
fn judge_displaced(matrix: &mut Matrix, pairs: &[Pair]) {
    let check = Check::PortParityContended;
    let displaced: Vec<&Pair> = pairs.iter().filter(|pair| !pair.kept()).collect();
    if displaced.is_empty() {
        matrix.not_tested(check, "no port gives way");
    } else {
        let even = |pair: &&&Pair| pair.second.port % 2 == pair.second.external.port() % 2;
        let (kept, all) = (displaced.iter().filter(even).count(), displaced.len());
        matrix.judge(check, kept == all, format!("kept for {kept} of {all}"));
    }
    judge_class(matrix, Check::PortClassHighContended, pairs);
}

fn judge_class(matrix: &mut Matrix, check: Check, pairs: &[Pair]) {
    let displaced: Vec<&Pair> = pairs.iter().filter(|pair| !pair.kept()).collect();
    if displaced.is_empty() {
        matrix.not_tested(check, "no port gives way");
        return;
    }
    let well_known = |port: u16| port <= WELL_KNOWN_LAST;
    let kept =
        |pair: &&&Pair| well_known(pair.second.port) == well_known(pair.second.external.port());
    let (kept, all) = (displaced.iter().filter(kept).count(), displaced.len());
    matrix.judge(check, kept == all, format!("kept for {kept} of {all}"));
}

#[cfg(test)]
mod tests {
    use super::super::matrix::Verdict;
    use super::*;

    fn pair(port: u16, first: u16, second: u16) -> Pair {
        let mapping = |external: u16| Mapping {
            port,
            remote: SocketAddr::new([192, 0, 2, 2].into(), 7),
            external: SocketAddr::new([192, 0, 2, 1].into(), external),
        };
        Pair {
            first: mapping(first),
            second: mapping(second),
        }
    }

    fn row(check: Check, judge: impl FnOnce(&mut Matrix)) -> (Verdict, String) {
        let mut matrix = Matrix::default();
        judge(&mut matrix);
        let row = matrix.row(check).unwrap();
        (row.verdict, row.observed.clone())
    }

    #[test]
    fn one_external_port_for_two_hosts_is_a_deviation_whatever_their_remotes() {
        let judge = |same: &[Pair], other: &[Pair]| {
            let check = Check::UdpOverloadingContended;
            row(check, |matrix| {
                judge_overloading(matrix, check, same, other);
            })
            .0
        };
        let (apart, shared) = (pair(5, 5, 6), pair(5, 5, 5));
        assert_eq!(judge(&[apart], &[apart]), Verdict::Pass);
        assert_eq!(judge(&[apart], &[apart, shared]), Verdict::Deviation);
        assert_eq!(judge(&[shared], &[apart]), Verdict::Deviation);
        assert_eq!(judge(&[apart], &[]), Verdict::NotTested);
        assert_eq!(judge(&[], &[apart]), Verdict::NotTested);
    }

    #[test]
    fn parity_and_class_are_told_of_ports_that_gave_way_alone() {
        let parity = |pairs: &[Pair]| {
            row(Check::PortParityContended, |matrix| {
                judge_displaced(matrix, pairs);
            })
        };
        let kept = pair(5_000, 5_000, 5_000);
        assert_eq!(parity(&[kept]).0, Verdict::NotTested);
        assert_eq!(parity(&[kept, pair(4, 4, 8)]).1, "kept for 1 of 1");
        let half = parity(&[pair(4, 4, 8), pair(4, 4, 7)]);
        assert_eq!(half, (Verdict::Deviation, "kept for 1 of 2".to_owned()));
        let class = |pairs: &[Pair]| {
            let check = Check::PortClassLowContended;
            row(check, |matrix| judge_class(matrix, check, pairs)).0
        };
        assert_eq!(class(&[pair(1_023, 1_023, 1_022)]), Verdict::Pass);
        assert_eq!(class(&[pair(1_023, 1_023, 1_024)]), Verdict::Deviation);
        assert_eq!(class(&[pair(1_023, 1_023, 1_023)]), Verdict::NotTested);
    }
}
