//! `--backend auto`: which backend an endpoint gets, and why.
//!
//! # Theory of operation
//! What an endpoint is for gives an order of backends, best first ([`preferred`]). What is known of the
//! machine beforehand rules some of them out ([`plan`]); the others are tried in this order until one works,
//! for what the kernel gives is only known when it was asked. What was ruled out or refused is said with what
//! was chosen ([`reason`]).
//!
//! Everything here is pure but [`Facts::of_this_machine`].

use std::fmt::Write;
use std::fs::OpenOptions;

use crate::error::Error;
use crate::model::{Backend, Purpose};
use crate::rights;

/// The first kernel on which XDP programs are links, which end with their process.
const XDP_SINCE: (u32, u32) = (5, 9);
/// The first one on which a frame may be in several chunks.
const XDP_CHUNKS_SINCE: (u32, u32) = (6, 6);
/// The largest MTU without them, as drivers have it.
const XDP_MTU_MAX: u16 = 3_506;

/// What is known before anything is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Major and minor version of the kernel.
    pub kernel: (u32, u32),
    /// Programs of BPF may be loaded.
    pub bpf: Right,
    /// `/dev/net/tun` can be opened.
    pub tun: Right,
    /// MTU of the network.
    pub mtu: u16,
}

/// Whether something may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// As far as can be told beforehand.
    Granted,
    /// Certainly not.
    Missing,
}

impl From<bool> for Right {
    fn from(granted: bool) -> Self {
        match granted {
            true => Self::Granted,
            false => Self::Missing,
        }
    }
}

impl Facts {
    /// What this process finds, for a network of this MTU.
    pub fn of_this_machine(mtu: u16) -> Self {
        let mut way = OpenOptions::new();
        let tun = way.read(true).write(true).open("/dev/net/tun");
        Self {
            kernel: dataplane_port::kernel_version(),
            bpf: rights::may_load_bpf().into(),
            tun: tun.is_ok().into(),
            mtu,
        }
    }
}

/// A backend that is not used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which.
    pub backend: Backend,
    /// What stands against it.
    pub why: String,
}

/// What to try, best first, and what not to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What may work.
    pub candidates: Vec<Backend>,
    /// What cannot.
    pub refusals: Vec<Refusal>,
}

/// A plan being followed: what may work is tried, best first, until something does.
#[derive(Debug)]
pub struct Search {
    left: std::vec::IntoIter<Backend>,
    /// What was better than what is tried now, and why it is not used.
    pub refusals: Vec<Refusal>,
}

impl Search {
    /// The beginning.
    pub fn new(plan: Plan) -> Self {
        Self {
            left: plan.candidates.into_iter(),
            refusals: plan.refusals,
        }
    }

    /// What to try now.
    ///
    /// # Errors
    /// [`nothing_works`] when the machine has refused everything.
    pub fn to_try(&mut self) -> Result<Backend, Error> {
        let next = self.left.next();
        next.ok_or_else(|| nothing_works(&self.refusals))
    }

    /// Takes note of why a backend did not work.
    ///
    /// # Errors
    /// What another backend would fail by as well.
    pub fn refused(&mut self, backend: Backend, error: Error) -> Result<(), Error> {
        if !is_refusal(&error) {
            return Err(error);
        }
        self.refusals.push(Refusal {
            backend,
            why: error.to_string(),
        });
        Ok(())
    }
}

/// The backends for a purpose, best first, by `docs/manual/backends.md`.
pub const fn preferred(purpose: Purpose) -> &'static [Backend] {
    match purpose {
        Purpose::Mixed => &[Backend::Packet, Backend::Tap],
        Purpose::SmallFrames => &[Backend::Xdp, Backend::Packet, Backend::Tap],
    }
}

/// What is worth trying for a purpose where these facts hold.
pub fn plan(purpose: Purpose, facts: &Facts) -> Plan {
    let mut plan = Plan {
        candidates: Vec::new(),
        refusals: Vec::new(),
    };
    for &backend in preferred(purpose) {
        match obstacle(backend, facts) {
            None => plan.candidates.push(backend),
            Some(why) => plan.refusals.push(Refusal { backend, why }),
        }
    }
    plan
}

/// What is known to stand against a backend.
fn obstacle(backend: Backend, facts: &Facts) -> Option<String> {
    let (major, minor) = facts.kernel;
    match backend {
        Backend::Xdp if facts.kernel < XDP_SINCE => {
            Some(format!("it takes Linux 5.9, and this is {major}.{minor}"))
        }
        Backend::Xdp if facts.bpf == Right::Missing => Some(
            "it takes CAP_BPF, CAP_NET_ADMIN and CAP_NET_RAW in the initial user namespace"
                .to_owned(),
        ),
        Backend::Xdp if facts.kernel < XDP_CHUNKS_SINCE && facts.mtu > XDP_MTU_MAX => {
            Some(format!(
                "beyond an MTU of {XDP_MTU_MAX} it takes Linux 6.6, and this is {major}.{minor}"
            ))
        }
        Backend::Tap if facts.tun == Right::Missing => {
            Some("/dev/net/tun cannot be opened".to_owned())
        }
        Backend::Tap
        | Backend::TapPlain
        | Backend::Packet
        | Backend::Xdp
        | Backend::Nic
        | Backend::NicXdp
        | Backend::Host => None,
    }
}

/// Why this backend was chosen, in a sentence or more.
pub fn reason(purpose: Purpose, chosen: Backend, refusals: &[Refusal]) -> String {
    let mut text = match (purpose, refusals) {
        (Purpose::Mixed, []) => "best for large and small frames together".to_owned(),
        (Purpose::SmallFrames, []) => "best for small frames".to_owned(),
        (_, [..]) => format!("{} would be better", preferred(purpose)[0].label()),
    };
    for Refusal { backend, why } in refusals {
        // Writing to a string cannot fail.
        let _ = write!(text, "; {} was not used: {why}", backend.label());
    }
    debug_assert!(refusals.iter().all(|it| it.backend != chosen));
    text
}

/// What to say where nothing works.
pub fn nothing_works(refusals: &[Refusal]) -> Error {
    let whys = refusals
        .iter()
        .map(|Refusal { backend, why }| format!("{}: {why}", backend.label()));
    let whys: Vec<String> = whys.collect();
    Error::NoBackend(whys.join(", "))
}

/// Whether an error says that a backend does not work here, so that another one may. Of anything else,
/// a name that is taken or a sandbox that has gone, another would say the same.
pub fn is_refusal(error: &Error) -> bool {
    use dataplane_port::{packet::PacketError, tap::TapError, xdp::XdpError};
    match error {
        Error::Xdp(error) => !matches!(error, XdpError::NotFound { .. }),
        Error::Packet(error) => !matches!(error, PacketError::NotFound { .. }),
        Error::Tap(error) => matches!(
            error,
            TapError::NoTunDevice
                | TapError::NotPermitted { .. }
                | TapError::Unsupported { .. }
                | TapError::Io { .. }
        ),
        // No driver for veths.
        Error::Link(error) => error.is(nix::errno::Errno::EOPNOTSUPP),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dataplane_port::{packet::PacketError, tap::TapError, xdp::XdpError};

    const EVERYTHING: Facts = Facts {
        kernel: (6, 18),
        bpf: Right::Granted,
        tun: Right::Granted,
        mtu: 1_500,
    };

    fn candidates(purpose: Purpose, facts: Facts) -> Vec<Backend> {
        plan(purpose, &facts).candidates
    }

    #[test]
    fn with_everything_there_the_best_for_the_purpose_comes_first_and_nothing_is_refused() {
        for purpose in [Purpose::Mixed, Purpose::SmallFrames] {
            let plan = plan(purpose, &EVERYTHING);
            assert_eq!(plan.candidates, preferred(purpose));
            assert_eq!(plan.refusals, []);
        }
        let [mixed, small] =
            [Purpose::Mixed, Purpose::SmallFrames].map(|it| candidates(it, EVERYTHING)[0]);
        assert_eq!((mixed, small), (Backend::Packet, Backend::Xdp));
    }

    #[test]
    fn each_thing_that_lacks_rules_out_what_takes_it_and_says_so() {
        let without_xdp = [Backend::Packet, Backend::Tap];
        let cases = [
            (
                Facts {
                    kernel: (5, 8),
                    ..EVERYTHING
                },
                &without_xdp[..],
                "Linux 5.9, and this is 5.8",
            ),
            (
                Facts {
                    bpf: Right::Missing,
                    ..EVERYTHING
                },
                &without_xdp,
                "CAP_BPF",
            ),
            (
                Facts {
                    kernel: (6, 5),
                    mtu: 3_507,
                    ..EVERYTHING
                },
                &without_xdp,
                "Linux 6.6",
            ),
            (
                Facts {
                    tun: Right::Missing,
                    ..EVERYTHING
                },
                &[Backend::Xdp, Backend::Packet],
                "/dev/net/tun",
            ),
        ];
        for (facts, left, words) in cases {
            let plan = plan(Purpose::SmallFrames, &facts);
            assert_eq!(plan.candidates, left, "{facts:?}");
            assert_eq!(plan.refusals.len(), 1, "{facts:?}");
            assert!(plan.refusals[0].why.contains(words), "{plan:?}");
        }
        for facts in [
            Facts {
                kernel: (6, 5),
                mtu: 3_506,
                ..EVERYTHING
            },
            Facts {
                kernel: (6, 6),
                mtu: 9_000,
                ..EVERYTHING
            },
            Facts {
                kernel: (5, 9),
                ..EVERYTHING
            },
        ] {
            assert_eq!(candidates(Purpose::SmallFrames, facts)[0], Backend::Xdp);
        }
    }

    #[test]
    fn what_is_chosen_is_said_with_what_was_not_and_why() {
        let refusals = [Refusal {
            backend: Backend::Xdp,
            why: "no".to_owned(),
        }];
        let said = reason(Purpose::SmallFrames, Backend::Packet, &refusals);
        assert_eq!(said, "xdp would be better; xdp was not used: no");
        assert_eq!(
            reason(Purpose::SmallFrames, Backend::Xdp, &[]),
            "best for small frames"
        );
        let said = nothing_works(&refusals).to_string();
        assert!(said.contains("xdp: no"), "{said}");
    }

    /// What a kernel says that has no such backend.
    fn refused(backend: Backend) -> Error {
        let name = || "a0".into();
        let no_header = std::io::Error::from_raw_os_error(nix::libc::ENOPROTOOPT);
        match backend {
            Backend::Xdp => Error::Xdp(XdpError::Memory { name: name() }),
            Backend::Packet => Error::Packet(PacketError::Io {
                name: name(),
                operation: "set the header of",
                source: no_header,
            }),
            _ => Error::Tap(TapError::Unsupported { name: name() }),
        }
    }

    /// What comes of a kernel that has none of these; the backend, or why there is none, with what is said.
    fn chosen(purpose: Purpose, lacking: &[Backend]) -> (Option<Backend>, String) {
        let mut search = Search::new(plan(purpose, &EVERYTHING));
        loop {
            match search.to_try() {
                Ok(backend) if lacking.contains(&backend) => {
                    search.refused(backend, refused(backend)).unwrap();
                }
                Ok(backend) => {
                    return (Some(backend), reason(purpose, backend, &search.refusals));
                }
                Err(error) => return (None, error.to_string()),
            }
        }
    }

    #[test]
    fn a_kernel_that_refuses_each_backend_in_turn_leads_to_the_next_and_it_is_said() {
        for purpose in [Purpose::Mixed, Purpose::SmallFrames] {
            let order = preferred(purpose);
            for count in 0..=order.len() {
                let (backend, said) = chosen(purpose, &order[..count]);
                assert_eq!(backend, order.get(count).copied());
                for backend in &order[..count] {
                    let (label, why) = (backend.label(), refused(*backend));
                    let named = [
                        format!("{label} was not used: {why}"),
                        format!("{label}: {why}"),
                    ];
                    assert!(named.iter().any(|words| said.contains(words)), "{said}");
                }
                assert_eq!(said.starts_with("best for"), count == 0, "{said}");
            }
        }
        // One that lacks in the middle is not reached.
        let (backend, said) = chosen(Purpose::SmallFrames, &[Backend::Packet]);
        assert_eq!(
            (backend, said.as_str()),
            (Some(Backend::Xdp), "best for small frames")
        );
    }

    #[test]
    fn what_another_backend_would_not_help_ends_the_search() {
        let mut search = Search::new(plan(Purpose::SmallFrames, &EVERYTHING));
        let backend = search.to_try().unwrap();
        let taken = search.refused(backend, Error::Invalid("a name".to_owned()));
        assert!(matches!(taken, Err(Error::Invalid(_))));
    }

    #[test]
    fn only_what_concerns_a_backend_leads_to_another() {
        let name = || "a0".into();
        let operation = "open";
        for error in [
            XdpError::NotPermitted {
                name: name(),
                operation,
            },
            XdpError::Unsupported {
                name: name(),
                operation,
            },
            XdpError::Memory { name: name() },
            XdpError::TooLarge {
                name: name(),
                mtu_max: 3_506,
            },
            XdpError::InUse { name: name() },
        ] {
            assert!(is_refusal(&Error::Xdp(error)));
        }
        assert!(!is_refusal(&Error::Xdp(XdpError::NotFound {
            name: name()
        })));
        for error in [
            TapError::NoTunDevice,
            TapError::NotPermitted {
                name: name(),
                operation,
            },
            TapError::Unsupported { name: name() },
        ] {
            assert!(is_refusal(&Error::Tap(error)));
        }
        assert!(is_refusal(&Error::Packet(PacketError::NotPermitted {
            name: name()
        })));
        assert!(!is_refusal(&Error::Tap(TapError::NameTaken {
            name: name()
        })));
        assert!(!is_refusal(&Error::Invalid("a name".to_owned())));
    }
}
