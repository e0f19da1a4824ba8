//! Ports: kept or chosen, parity, class, and whether two share one (RFC 4787 section 4.2).

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::Error;
use super::matrix::{Check, Matrix};
use super::prober::{Mapping, Prober};
use super::side::Transport;

/// Inside ports that get a mapping, for each transport. Enough that a NAT which chose among 16,384
/// without looking would be caught at sharing one in one run of eight.
const COUNT: usize = 64;
/// Mappings that may fail before no more are tried: each is waited for.
const LOST_MAX: usize = 4;
/// Further inside ports below 49152, where a NAT may have to choose.
const LOW_COUNT: usize = 32;
const LOW_FIRST: u16 = 10_000;
const LOW_SPREAD: u32 = 20_000;
/// Well-known inside ports, of which the least used are at the end.
const WELL_KNOWN_COUNT: usize = 8;
const WELL_KNOWN_LAST: u16 = 1_023;
const WELL_KNOWN_TRIES: u16 = 256;
/// Chosen ports that are needed to tell whether they can be guessed.
const CHOSEN_MIN: usize = 8;

/// Looks at what external ports inside ports get.
///
/// # Errors
/// When a socket fails.
pub fn probe(prober: &mut Prober, matrix: &mut Matrix) -> Result<(), Error> {
    let mut udp = Made::default();
    while udp.count() < COUNT && udp.goes_on() {
        let remote = prober.remote(udp.count() % 2, 0);
        udp.add(prober.udp_mapping(remote)?);
    }
    let mut udp = udp.mappings;
    let first = LOW_FIRST + (prober.number() % LOW_SPREAD) as u16;
    let mut low = Made::default();
    for port in (first..).take(LOW_COUNT) {
        if low.goes_on() && prober.inside.reserve(Transport::Udp, port)? {
            low.add(prober.udp_out(port, prober.remote(usize::from(port % 2), 0))?);
        }
    }
    let low = low.mappings;
    judge_choice(matrix, &udp, &low);
    udp.extend(low);
    judge_sharing(matrix, Check::UdpOverloading, &udp);
    judge_parity(matrix, &udp);
    judge_class(matrix, Check::PortClassHigh, &udp);

    let mut tcp = Made::default();
    while tcp.count() < COUNT && tcp.goes_on() {
        let port = prober.port(Transport::Tcp)?;
        let syn = prober.tcp_syn(port, prober.remote(tcp.count() % 2, 0))?;
        tcp.add(syn.map(|syn| syn.mapping));
    }
    judge_sharing(matrix, Check::TcpOverloading, &tcp.mappings);

    let mut well_known = Made::default();
    for port in (0..WELL_KNOWN_TRIES).map(|back| WELL_KNOWN_LAST - back) {
        if well_known.count() == WELL_KNOWN_COUNT || !well_known.goes_on() {
            break;
        }
        if prober.inside.reserve(Transport::Udp, port)? {
            well_known.add(prober.udp_out(port, prober.remote(0, 0))?);
        }
    }
    judge_class(matrix, Check::PortClassLow, &well_known.mappings);
    Ok(())
}

/// Mappings that could be made, and how many could not.
#[derive(Default)]
struct Made {
    mappings: Vec<Mapping>,
    lost: usize,
}

impl Made {
    fn add(&mut self, mapping: Option<Mapping>) {
        self.lost += usize::from(mapping.is_none());
        self.mappings.extend(mapping);
    }

    fn count(&self) -> usize {
        self.mappings.len()
    }

    fn goes_on(&self) -> bool {
        self.lost < LOST_MAX
    }
}

/// No two inside ports at one external address and port.
fn judge_sharing(matrix: &mut Matrix, check: Check, mappings: &[Mapping]) {
    let mut owners: BTreeMap<SocketAddr, u16> = BTreeMap::new();
    let mut shared = 0;
    for mapping in mappings {
        let owner = owners.entry(mapping.external).or_insert(mapping.port);
        shared += usize::from(*owner != mapping.port);
    }
    if mappings.len() < 2 {
        matrix.not_tested(check, "fewer than two mappings could be made");
        return;
    }
    let observed = format!("{shared} of {} ports shared", mappings.len());
    matrix.judge(check, shared == 0, observed);
}

fn judge_choice(matrix: &mut Matrix, high: &[Mapping], low: &[Mapping]) {
    let kept = |of: &[Mapping]| of.iter().filter(|m| m.port == m.external.port()).count();
    let chosen: Vec<u16> = high
        .iter()
        .chain(low)
        .map(|mapping| (mapping.port, mapping.external.port()))
        .filter(|(port, external)| port != external)
        .map(|(_, external)| external)
        .collect();
    let mut observed = format!(
        "kept {} of {} above 49151, {} of {} below",
        kept(high),
        high.len(),
        kept(low),
        low.len()
    );
    if high.len() + low.len() < CHOSEN_MIN {
        matrix.not_tested(Check::PortChoice, "too few mappings could be made");
        return;
    }
    if chosen.is_empty() {
        matrix.judge(Check::PortChoice, true, observed);
        return;
    }
    if chosen.len() < CHOSEN_MIN {
        observed.push_str("; too few were chosen to tell how");
        matrix.not_tested(Check::PortChoice, observed);
        return;
    }
    let guessed = can_be_guessed(&chosen);
    observed.push_str(if guessed {
        "; the others in steps"
    } else {
        "; the others scattered"
    });
    matrix.judge(Check::PortChoice, !guessed, observed);
}

/// Whether most steps from one chosen port to the next are the same.
fn can_be_guessed(chosen: &[u16]) -> bool {
    let mut steps: BTreeMap<u16, usize> = BTreeMap::new();
    for pair in chosen.windows(2) {
        *steps.entry(pair[1].wrapping_sub(pair[0])).or_default() += 1;
    }
    let most = steps.values().max().copied().unwrap_or(0);
    2 * most > chosen.len()
}

fn judge_parity(matrix: &mut Matrix, mappings: &[Mapping]) {
    let kept = |mapping: &&Mapping| mapping.port % 2 == mapping.external.port() % 2;
    let kept = mappings.iter().filter(kept).count();
    if mappings.is_empty() {
        matrix.not_tested(Check::PortParity, "no mapping could be made");
        return;
    }
    let observed = format!("kept for {kept} of {}", mappings.len());
    matrix.judge(Check::PortParity, kept == mappings.len(), observed);
}

fn judge_class(matrix: &mut Matrix, check: Check, mappings: &[Mapping]) {
    let well_known = |port: u16| port <= WELL_KNOWN_LAST;
    let kept = |mapping: &&Mapping| well_known(mapping.port) == well_known(mapping.external.port());
    let kept = mappings.iter().filter(kept).count();
    if mappings.is_empty() {
        let why = "no port of this class is free inside, or none gets a mapping";
        matrix.not_tested(check, why);
        return;
    }
    let observed = format!("kept for {kept} of {}", mappings.len());
    matrix.judge(check, kept == mappings.len(), observed);
}

#[cfg(test)]
mod tests {
    use super::super::matrix::Verdict;
    use super::*;

    fn mapping(port: u16, external: u16) -> Mapping {
        let external = SocketAddr::new([192, 0, 2, 1].into(), external);
        Mapping {
            port,
            remote: SocketAddr::new([192, 0, 2, 2].into(), 7),
            external,
        }
    }

    fn verdict(check: Check, judge: impl FnOnce(&mut Matrix)) -> Verdict {
        let mut matrix = Matrix::default();
        judge(&mut matrix);
        matrix.row(check).unwrap().verdict
    }

    #[test]
    fn a_shared_port_is_a_deviation_and_one_mapping_tells_nothing() {
        let judge = |mappings: &[Mapping]| {
            verdict(Check::UdpOverloading, |matrix| {
                judge_sharing(matrix, Check::UdpOverloading, mappings);
            })
        };
        assert_eq!(judge(&[mapping(1, 9), mapping(2, 8)]), Verdict::Pass);
        assert_eq!(judge(&[mapping(1, 9), mapping(2, 9)]), Verdict::Deviation);
        assert_eq!(judge(&[mapping(1, 9), mapping(1, 9)]), Verdict::Pass);
        assert_eq!(judge(&[mapping(1, 9)]), Verdict::NotTested);
    }

    #[test]
    fn ports_in_steps_can_be_guessed_and_scattered_ones_cannot() {
        assert!(can_be_guessed(&[10, 11, 12, 13, 14, 20, 21, 22]));
        assert!(can_be_guessed(&[10, 74, 138, 202, 266, 330, 394, 458]));
        assert!(!can_be_guessed(&[10, 900, 77, 5000, 321, 9, 12, 60000]));
        let kept: Vec<Mapping> = (50_000..50_020).map(|p| mapping(p, p)).collect();
        let stepped: Vec<Mapping> = (0..20).map(|n| mapping(100 + n, 5_000 + n)).collect();
        let judge = |high: &[Mapping], low: &[Mapping]| {
            verdict(Check::PortChoice, |matrix| judge_choice(matrix, high, low))
        };
        assert_eq!(judge(&kept, &[]), Verdict::Pass);
        assert_eq!(judge(&kept, &stepped), Verdict::Deviation);
        assert_eq!(judge(&kept, &stepped[..3]), Verdict::NotTested);
        assert_eq!(judge(&[], &[]), Verdict::NotTested);
    }

    #[test]
    fn parity_and_class_are_kept_by_all_or_deviate() {
        let parity = |mappings: &[Mapping]| {
            verdict(Check::PortParity, |matrix| judge_parity(matrix, mappings))
        };
        assert_eq!(parity(&[mapping(2, 4), mapping(3, 5)]), Verdict::Pass);
        assert_eq!(parity(&[mapping(2, 4), mapping(3, 6)]), Verdict::Deviation);
        assert_eq!(parity(&[]), Verdict::NotTested);
        let class = |mappings: &[Mapping]| {
            verdict(Check::PortClassLow, |matrix| {
                judge_class(matrix, Check::PortClassLow, mappings);
            })
        };
        assert_eq!(class(&[mapping(1023, 1023)]), Verdict::Pass);
        assert_eq!(class(&[mapping(1023, 1024)]), Verdict::Deviation);
        assert_eq!(class(&[]), Verdict::NotTested);
    }
}
