//! How frames pass between a socket and the kernel, and why not by a ring where they do not.

use std::io;

use crate::Negotiated;

/// What is asked of the kernel, each in its turn: what a socket cannot do without, and what rings take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// A packet socket.
    Socket,
    /// A description of what is left to do, in front of each frame.
    Description,
    /// A group of sockets that share an interface's frames.
    Group,
    /// A header that says all of a frame that may come, without which a ring would stop for good.
    Header,
    /// Slots as version 2 lays them out.
    Version,
    /// A ring to receive by.
    ReceiveRing,
    /// Its mapping.
    ReceiveMapping,
    /// A second socket, to send by.
    TransmitSocket,
    /// A ring to send by.
    TransmitRing,
    /// Its mapping.
    TransmitMapping,
}

/// Whether rings are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rings {
    /// Where the kernel has them; what it refuses is done by system calls, and told by
    /// [`crate::PortIo::negotiated`].
    Wanted,
    /// System calls alone.
    Off,
}

/// How frames pass in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passing {
    /// By slots of shared memory.
    Ring,
    /// By system calls.
    Calls(Because),
}

/// Why there is no ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// None was asked for.
    NotWanted,
    /// The kernel is too old: its header cannot say all of a frame.
    OldKernel,
    /// The kernel has no such rings.
    Unsupported,
    /// It has no memory.
    Memory,
    /// The rings of the process have all that they may.
    Limit,
    /// It does not let us.
    NotPermitted,
    /// The process has no descriptor left.
    Descriptors,
}

impl Because {
    /// What an error of the kernel's means.
    pub(super) fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOMEM | libc::ENOBUFS | libc::EAGAIN) => Self::Memory,
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted,
            Some(libc::EMFILE | libc::ENFILE) => Self::Descriptors,
            Some(_) | None => Self::Unsupported,
        }
    }
}

/// How frames pass in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ways {
    /// From the kernel to us.
    pub receive: Passing,
    /// From us to the kernel.
    pub transmit: Passing,
}

/// What is best.
const RING: &str = "by a ring of shared memory";

impl Passing {
    const fn in_words(self) -> &'static str {
        match self {
            Self::Ring => RING,
            Self::Calls(Because::NotWanted) => "by system calls",
            Self::Calls(Because::OldKernel) => "by system calls, for the kernel is older than 6.2",
            Self::Calls(Because::Unsupported) => {
                "by system calls, for the kernel refuses such a ring"
            }
            Self::Calls(Because::Memory) => "by system calls, for lack of memory",
            Self::Calls(Because::Limit) => {
                "by system calls, for the rings have the 256 MiB that they may"
            }
            Self::Calls(Because::NotPermitted) => "by system calls, for a ring is not permitted",
            Self::Calls(Because::Descriptors) => {
                "by system calls, for lack of descriptors (`ulimit -n`)"
            }
        }
    }
}

impl Ways {
    /// Each with what is best and what it came to, where it was asked for.
    pub(super) fn in_words(self) -> Vec<Negotiated> {
        let both = [("reception", self.receive), ("sending", self.transmit)];
        let asked = both.into_iter();
        let asked = asked.filter(|(_, way)| *way != Passing::Calls(Because::NotWanted));
        let told = asked.map(|(feature, way)| Negotiated {
            feature,
            wanted: RING,
            used: way.in_words(),
        });
        told.collect()
    }
}

const _: () = assert!(
    super::slots::RING_BYTES_MAX == 256 << 20,
    "as it is said above"
);
