//! Keeps the host's stack from answering what is ours.
//!
//! # Theory of operation
//! A packet socket sees an interface's frames *in addition* to the host: unguarded, the host
//! answers ARP on a veth's host end with the veth's MAC, and resets every TCP connection that
//! our NAT makes through a shared network card. The guard is a filter on the interface's ingress
//! (clsact), where packet sockets have their copy already; what it steals goes no further.
//!
//! - [`Guarded::Everything`] for the host end of a veth, which is ours alone.
//! - [`Guarded::Card`] for a network card that is a port of ours.
//! - [`Guarded::Spec`] for an uplink: only what a [`GuardSpec`] declares. Echo replies and ICMP
//!   errors reach both stacks, and so do later fragments; the host ignores those that it did not
//!   ask for. VLAN-tagged frames are the host's.
//!
//! The filter is a classic BPF program in direct-action mode (see [`program`]); where the kernel
//! has no `cls_bpf`, `u32` filters redirect to an interface that is down (see [`sink`]).
//!
//! # States
//! An interface has no guard, or one. [`install`] makes one, or replaces the program of the one
//! that is there: atomically, no packet sees neither. [`find`] recognises the guard of an earlier
//! process, so that a start can adopt it; [`remove`] leaves nothing of ours. No firewall rule is
//! ever written.
//!
//! Limits: [`program::INSTRUCTIONS_MAX`] per interface, about 500 port ranges in each IP version.
//! All calls act on the calling thread's network namespace and block for a few milliseconds.

mod netlink;
pub mod program;
pub mod sink;
mod spec;

use std::io;

use libc::sock_filter;

use crate::sys;
use netlink::{Netlink, Request, TrafficControl};

pub use spec::{EXTENSIONS_MAX, GuardPorts, GuardSpec, Owner, Transport};

/// The handle of the guard's filter within its priority. It only has to differ from those that
/// the kernel gives out, which count from one.
const HANDLE: u32 = 0x00ca_05e0;

/// Priorities that are tried for the filter, lowest number first, until one is found that is not
/// taken by a filter of another kind. Each lower one belongs to the host's administrator.
const PRIORITIES: std::ops::RangeInclusive<u16> = 1..=8;

// linux/pkt_sched.h and linux/pkt_cls.h.
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
const TCA_BPF_OPS_LEN: u16 = 4;
const TCA_BPF_OPS: u16 = 5;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;

/// What is kept from the host's stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarded<'a> {
    /// Every frame.
    Everything,
    /// Every frame but EAPOL, by which whoever associates the host's card is let into its network
    /// (IEEE 802.1X) and gets new keys.
    Card,
    /// What is declared.
    Spec(&'a GuardSpec),
}

/// How a guard is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// One classic BPF program, exact.
    Bpf,
    /// `u32` filters that redirect to a sink; see [`sink`] for what they cannot say.
    Sink,
}

/// Why a guard could not be installed, found or removed.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// Traffic control was refused.
    #[error("not permitted to guard '{interface}'; it needs CAP_NET_ADMIN in this namespace")]
    NotPermitted {
        /// The interface.
        interface: Box<str>,
    },
    /// There is no such interface.
    #[error("there is no interface '{interface}' in this network namespace to guard")]
    NotFound {
        /// The interface.
        interface: Box<str>,
    },
    /// The declaration is too long for one program.
    #[error(
        "the guard of '{interface}' has too many separate rules; publish contiguous ranges of \
         ports instead of single ones"
    )]
    TooManyRules {
        /// The interface.
        interface: Box<str>,
    },
    /// The kernel has neither of the classifiers.
    #[error(
        "the kernel cannot guard '{interface}': it lacks the clsact queueing discipline, or both \
         cls_bpf and cls_u32 with act_mirred and ifb"
    )]
    NoClassifier {
        /// The interface.
        interface: Box<str>,
    },
    /// Anything else.
    #[error("cannot {operation} the guard of '{interface}': {source}")]
    Io {
        /// The interface.
        interface: Box<str>,
        /// What failed.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Puts the guard on an interface, or replaces the one that is there, and says how.
///
/// # Errors
/// As the variants of [`GuardError`] say; an earlier guard is then still in place.
pub fn install(interface: &str, guarded: Guarded<'_>) -> Result<Method, GuardError> {
    match install_with(Method::Bpf, interface, guarded) {
        Err(GuardError::NoClassifier { .. }) => {
            install_with(Method::Sink, interface, guarded)?;
            Ok(Method::Sink)
        }
        Err(error) => Err(error),
        Ok(()) => Ok(Method::Bpf),
    }
}

/// Like [`install`], by one method.
///
/// # Errors
/// [`GuardError::NoClassifier`] when the kernel does not have what the method needs.
pub fn install_with(
    method: Method,
    interface: &str,
    guarded: Guarded<'_>,
) -> Result<(), GuardError> {
    let mut hook = Hook::open(interface)?;
    hook.add_clsact()
        .map_err(|error| hook.failed("prepare", error))?;
    match method {
        Method::Bpf => {
            let program = match guarded {
                Guarded::Everything => program::steal_everything(),
                Guarded::Card => program::steal_all_but_eapol(),
                Guarded::Spec(spec) => {
                    let too_many = || GuardError::TooManyRules {
                        interface: interface.into(),
                    };
                    spec.guard_program().ok_or_else(too_many)?
                }
            };
            hook.install_program(&program)
                .map_err(|error| hook.failed("install", error))?;
            sink::remove(&mut hook)
        }
        Method::Sink => {
            sink::install(&mut hook, guarded)?;
            hook.remove_program()
        }
    }
    .map_err(|error| hook.failed("replace", error))
}

/// How the interface is guarded, by this process or an earlier one; `None` when it is not.
///
/// # Errors
/// As the variants of [`GuardError`] say.
pub fn find(interface: &str) -> Result<Option<Method>, GuardError> {
    let mut hook = Hook::open(interface)?;
    let places = hook
        .programs()
        .map_err(|error| hook.failed("find", error))?;
    if !places.is_empty() {
        return Ok(Some(Method::Bpf));
    }
    let sunk = sink::find(&mut hook).map_err(|error| hook.failed("find", error))?;
    Ok((!sunk.is_empty()).then_some(Method::Sink))
}

/// Takes the guard off an interface, and the clsact hook if nobody else has a filter on it. That
/// there is no guard, or no interface, is no error.
///
/// # Errors
/// As the variants of [`GuardError`] say; what could be removed has been.
pub fn remove(interface: &str) -> Result<(), GuardError> {
    let mut hook = match Hook::open(interface) {
        Err(GuardError::NotFound { .. }) => return Ok(()),
        opened => opened?,
    };
    let program = hook.remove_program();
    let sink = sink::remove(&mut hook);
    let clsact = hook.remove_clsact_if_unused();
    let outcome = program.and(sink).and(clsact);
    outcome.map_err(|error| hook.failed("remove", error))
}

/// The ingress of one interface.
#[derive(Debug)]
struct Hook {
    netlink: Netlink,
    name: Box<str>,
    interface: u32,
}

impl Hook {
    fn open(interface: &str) -> Result<Self, GuardError> {
        let failed = |source: io::Error| error(interface, "open", source);
        Ok(Self {
            interface: sys::interface_index(interface).map_err(failed)?,
            netlink: Netlink::open().map_err(failed)?,
            name: interface.into(),
        })
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> GuardError {
        error(&self.name, operation, source)
    }

    /// A place on this interface.
    fn place(&self, parent: u32) -> TrafficControl {
        TrafficControl {
            interface: self.interface,
            parent,
            ..TrafficControl::default()
        }
    }

    /// Adds the clsact hook unless it, or the older ingress, is there.
    fn add_clsact(&mut self) -> io::Result<()> {
        let place = TrafficControl {
            handle: CLSACT_HANDLE,
            ..self.place(CLSACT)
        };
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let request = Request::traffic_control(libc::RTM_NEWQDISC, flags, place)
            .attribute(libc::TCA_KIND, b"clsact\0");
        ignoring(libc::EEXIST, self.netlink.request(request))
    }

    fn remove_clsact_if_unused(&mut self) -> io::Result<()> {
        for parent in [INGRESS, EGRESS] {
            match self.netlink.filters(self.interface, parent) {
                Ok(filters) if filters.is_empty() => {}
                Ok(_) => return Ok(()),
                // There is no such hook to look at.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(error) => return Err(error),
            }
        }
        let place = TrafficControl {
            handle: CLSACT_HANDLE,
            ..self.place(CLSACT)
        };
        let request = Request::traffic_control(libc::RTM_DELQDISC, 0, place)
            .attribute(libc::TCA_KIND, b"clsact\0");
        // None there, or an administrator's ingress instead.
        let removed = ignoring(libc::ENOENT, self.netlink.request(request));
        ignoring(libc::EINVAL, removed)
    }

    /// Makes `program` the guard: in the place of the one that is there, or at the first
    /// priority that is free.
    fn install_program(&mut self, program: &[sock_filter]) -> io::Result<()> {
        if let Some(place) = self.programs()?.first().copied() {
            return self.put_program(place, program);
        }
        let mut refused = None;
        for priority in PRIORITIES {
            let place = TrafficControl {
                handle: HANDLE,
                info: TrafficControl::filter_info(priority, libc::ETH_P_ALL as u16),
                ..self.place(INGRESS)
            };
            match self.put_program(place, program) {
                // A filter of another kind or protocol has this priority.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = Some(error),
                outcome => return outcome,
            }
        }
        Err(refused.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
    }

    /// Creates the filter, or exchanges its program in one step (`cls_bpf_change` replaces the
    /// entry under RCU).
    fn put_program(&mut self, place: TrafficControl, program: &[sock_filter]) -> io::Result<()> {
        let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut instructions = Vec::with_capacity(size_of_val(program));
        for op in program {
            instructions.extend(op.code.to_ne_bytes());
            instructions.extend([op.jt, op.jf]);
            instructions.extend(op.k.to_ne_bytes());
        }
        let request = Request::traffic_control(libc::RTM_NEWTFILTER, libc::NLM_F_CREATE, place)
            .attribute(libc::TCA_KIND, b"bpf\0")
            .nested(libc::TCA_OPTIONS, |options| {
                options
                    .attribute(TCA_BPF_OPS_LEN, &len.to_ne_bytes())
                    .attribute(TCA_BPF_OPS, &instructions)
                    .attribute(TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes())
            });
        self.netlink.request(request)
    }

    /// Our filters on this interface: by handle, and by the signature that the program begins
    /// with.
    fn programs(&mut self) -> io::Result<Vec<TrafficControl>> {
        let filters = self.netlink.filters(self.interface, INGRESS);
        let filters = match filters {
            // No clsact hook: `tc_dump_tfilter` then says nothing, or that there is none.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(Vec::new()),
            filters => filters?,
        };
        let ours = filters.into_iter().filter(|filter| {
            let mut attributes = netlink::attributes(&filter.options);
            let program =
                attributes.find_map(|(kind, value)| (kind == TCA_BPF_OPS).then_some(value));
            let signature = program.and_then(|program| netlink::u32_at(program, 4));
            filter.kind == b"bpf"
                && filter.place.handle == HANDLE
                && signature == Some(program::SIGNATURE)
        });
        Ok(ours.map(|filter| filter.place).collect())
    }

    fn remove_program(&mut self) -> io::Result<()> {
        for place in self.programs()? {
            self.remove_filter(place)?;
        }
        Ok(())
    }

    /// Removes a filter, or all of a priority where the handle is zero. It may be gone already.
    fn remove_filter(&mut self, place: TrafficControl) -> io::Result<()> {
        let request = Request::traffic_control(libc::RTM_DELTFILTER, 0, place);
        ignoring(libc::ENOENT, self.netlink.request(request))
    }
}

/// Success in place of one error.
fn ignoring(code: i32, outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.raw_os_error() == Some(code) => Ok(()),
        outcome => outcome,
    }
}

fn error(interface: &str, operation: &'static str, source: io::Error) -> GuardError {
    let interface = interface.into();
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => GuardError::NotPermitted { interface },
        Some(libc::ENODEV) => GuardError::NotFound { interface },
        Some(libc::ENOENT | libc::EOPNOTSUPP) => GuardError::NoClassifier { interface },
        None if source.kind() == io::ErrorKind::NotFound => GuardError::NotFound { interface },
        _ => GuardError::Io {
            interface,
            operation,
            source,
        },
    }
}
