//! NAT conformance, from real packets: what a NAT between two namespaces does, beside what the RFCs
//! want.
//!
//! # Theory of operation
//! A `Side` writes and sees raw packets in a namespace whose own stack is kept silent;
//! a `Prober` holds one side behind the NAT, one with two remotes before it, and another host behind it
//! that wants the same ports. Every `probe_*`
//! file has conversations across the NAT and notes in a [`Matrix`] what it saw. What nobody saw is
//! *not tested*, never a pass: a timer that nobody waited for, a packet size that the MTU does not
//! allow, a hairpin that brought nothing to answer.
//!
//! The NAT is a black box: nothing is asked of it but by packets, so the same probes judge ours, the
//! kernel's and anybody's, proxies included. One run looks at one family; IPv6 is asked what IPv4 is, though
//! the RFCs were written for the latter. Where the outside sees the inside's own address, packets are
//! routed: rows about translation are then not tested, and the others are.
//!
//! Limits: fewer than 4,000 packets without timers; each packet that should arrive is waited for
//! three seconds at most, so a NAT that loses most of them takes minutes (`prober.rs`). Blocking: call
//! from a thread of its own.

mod ground;
mod matrix;
mod packet;
mod probe_contention;
mod probe_error;
mod probe_fragment;
mod probe_hairpin;
mod probe_mapping;
mod probe_packet;
mod probe_port;
mod probe_tcp;
mod probe_timer;
mod prober;
mod report;
mod side;

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

pub use ground::{Borrowed, Ground, Namespaces};
pub use matrix::{Check, Matrix, Row, Verdict};
pub use packet::Family;
use prober::Prober;
pub use report::{Report, by_family, csv, markdown, text};

use serde::Serialize;

use crate::{link, netns};

/// Longest that timers can be waited for: a little more than the longest that an RFC wants.
pub const TIMERS_SECONDS_MAX: u64 = 8_000;

/// How long timers are waited for when nobody says how long: a little more than the longest that an RFC
/// wants, established connections aside, and than our own.
pub const TIMERS_SECONDS_DEFAULT: u64 = 310;
/// How long everything else takes.
const PACKETS: Duration = Duration::from_secs(15);

/// Why a NAT could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A namespace that cannot be used.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// A link operation that failed.
    #[error(transparent)]
    Link(#[from] link::Error),
    /// A socket that failed.
    #[error("cannot {action} {side}: {source}{}", hint(.source))]
    Socket {
        /// What was tried.
        action: &'static str,
        /// On which side of the NAT.
        side: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Twice the same.
    #[error("inside and outside are one namespace; name different ones, with the NAT between them")]
    OneNamespace,
    /// The outside has no address.
    #[error("the outside namespace has no {0} address on an interface that is up; give it one")]
    NoRemote(Family),
    /// A remote that is not there.
    #[error(
        "the outside namespace has no address {0} on an interface that is up; add it there, or leave --remote out"
    )]
    UnknownRemote(IpAddr),
    /// No second remote.
    #[error("no second address beside {0} can be borrowed outside; name two with --remote")]
    NoSecondRemote(IpAddr),
    /// The inside cannot send there.
    #[error("the inside namespace has no route to {0}; give it one by the NAT")]
    NoRoute(IpAddr),
    /// All ports are taken.
    #[error("no port is free {0}; end what uses them")]
    NoFreePort(&'static str),
    /// Nothing passes.
    #[error(
        "a UDP datagram from {inside} to {remote} does not arrive there; check the NAT and the routes with ping"
    )]
    NoWayOut {
        /// From where.
        inside: IpAddr,
        /// Where to.
        remote: IpAddr,
    },
    /// Nothing comes back.
    #[error(
        "an answer from {remote} to {external} does not come in; check the NAT and the outside's routes with ping"
    )]
    NoWayBack {
        /// From where.
        remote: IpAddr,
        /// The external address.
        external: IpAddr,
    },
    /// There is no NAT, and nothing else to look at.
    #[error(
        "the outside sees the inside's own address {0} and has no way back to it: there is no NAT between these namespaces"
    )]
    NoNat(IpAddr),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; run as root, or with CAP_NET_RAW",
        _ => "",
    }
}

/// Whether the outside sees other addresses than the inside has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// It does.
    Translated,
    /// It does not: a router stands between them, perhaps with a filter.
    Routed,
}

/// How a NAT is looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// How long timers are waited for; `None`: they are not tested.
    pub timers: Option<Duration>,
    /// What random numbers come from.
    pub seed: u64,
}

impl Options {
    /// How long a run takes on a NAT that loses nothing, at most.
    pub fn duration(&self) -> Duration {
        self.timers.map_or(PACKETS, |timers| PACKETS + timers)
    }
}

/// Looks at the NAT between the two sides. `progress` is told what happens.
///
/// # Errors
/// When the probes cannot run; what the NAT does wrong is no error.
pub fn run(
    name: &str,
    ground: &Ground,
    options: Options,
    progress: &mut dyn FnMut(&str),
) -> Result<Report, Error> {
    let start = Instant::now();
    let mut prober = Prober::new(ground.open()?, ground.remotes(), options.seed)?;
    let mut matrix = Matrix::default();
    progress("the way out and back");
    let mode = check_path(&mut prober)?;
    let unsolicited = probe_tcp::knock(&mut prober)?;
    let class = probe_mapping::probe(&mut prober, &mut matrix, progress)?;
    if mode == Mode::Translated {
        progress("ports");
        probe_port::probe(&mut prober, &mut matrix)?;
        progress("hairpin");
        probe_hairpin::probe(&mut prober, &mut matrix)?;
    }
    progress("ICMP errors");
    probe_error::probe(&mut prober, &mut matrix)?;
    progress("TCP");
    probe_tcp::probe(&mut prober, &mut matrix)?;
    progress("fragments");
    probe_fragment::probe(&mut prober, &mut matrix)?;
    progress("packets");
    probe_packet::probe(&mut prober, &mut matrix)?;
    if mode == Mode::Translated {
        progress("two inside hosts with one port");
        probe_contention::probe(&mut prober, &mut matrix)?;
    }
    progress("the answer to an unsolicited SYN");
    probe_tcp::listen(&mut prober, &mut matrix, unsolicited)?;
    if mode == Mode::Translated {
        probe_timer::probe(&mut prober, &mut matrix, options.timers, progress)?;
    }
    progress("mapping and filtering again");
    probe_mapping::probe_again(&mut prober, &mut matrix, class)?;
    probe_packet::conclude(&prober, &mut matrix);
    if mode == Mode::Routed {
        matrix.none_tested(Check::OF_TRANSLATION, "no translation: routed");
    }
    Ok(Report {
        target: name.to_owned(),
        family: prober.family(),
        mode,
        inside: prober.inside_address(),
        remotes: prober.remotes,
        externals: prober.externals.iter().copied().collect(),
        seed: options.seed,
        seconds: start.elapsed().as_secs_f64(),
        rows: matrix.into_rows(),
    })
}

/// Whether packets pass between the inside and both remotes at all, and are translated. Without
/// this, silence would be taken for a filter.
fn check_path(prober: &mut Prober) -> Result<Mode, Error> {
    let inside = prober.inside_address();
    let mut mode = Mode::Routed;
    for index in 0..prober.remotes.len() {
        let remote = prober.remote(index, 0);
        let mapping = prober.udp_mapping(remote)?.ok_or(Error::NoWayOut {
            inside,
            remote: remote.ip(),
        })?;
        let external = mapping.external.ip();
        match prober.udp_in(&mapping) {
            // The outside may not even have a route to it.
            Ok(false) | Err(Error::Socket { .. }) if external == inside => {
                return Err(Error::NoNat(inside));
            }
            Ok(true) => {}
            Ok(false) => {
                return Err(Error::NoWayBack {
                    remote: remote.ip(),
                    external,
                });
            }
            Err(error) => return Err(error),
        }
        if external != inside {
            mode = Mode::Translated;
        }
    }
    Ok(mode)
}
