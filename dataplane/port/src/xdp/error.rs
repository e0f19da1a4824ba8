//! Why a socket of AF_XDP could not be opened, and what to do about it.

use std::io;

use super::open::QUEUES_MAX;

/// Why a socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum XdpError {
    /// The kernel lets nobody without privileges load programs, in no user namespace but the first.
    #[error(
        "not permitted to {operation} the AF_XDP socket on '{name}'; it needs CAP_BPF, \
         CAP_NET_ADMIN and CAP_NET_RAW in the initial user namespace; use the backend packet, which \
         needs no BPF"
    )]
    NotPermitted {
        /// The interface.
        name: Box<str>,
        /// What failed.
        operation: &'static str,
    },
    /// There is no such interface.
    #[error("there is no interface '{name}' in this network namespace")]
    NotFound {
        /// The interface.
        name: Box<str>,
    },
    /// The kernel was built without what it takes.
    #[error(
        "the kernel cannot {operation} the AF_XDP socket on '{name}': it lacks CONFIG_BPF_SYSCALL or \
         CONFIG_XDP_SOCKETS, or is older than Linux 5.9; use the backend packet"
    )]
    Unsupported {
        /// The interface.
        name: Box<str>,
        /// What failed.
        operation: &'static str,
    },
    /// Somebody else's program or socket is there.
    #[error(
        "'{name}' has an XDP program or an AF_XDP socket already; `ip link show {name}` tells the \
         program, `ip link set {name} xdp off` removes one"
    )]
    InUse {
        /// The interface.
        name: Box<str>,
    },
    /// The memory limit was reached.
    #[error(
        "no memory for the AF_XDP socket on '{name}', which pins 5 to 10 MiB per queue; raise the \
         limit of locked memory (`ulimit -l`, `LimitMEMLOCK=`), or use the backend packet"
    )]
    Memory {
        /// The interface.
        name: Box<str>,
    },
    /// Frames of the interface's MTU do not fit.
    #[error(
        "the MTU is too large for an AF_XDP socket on '{name}', which takes up to {mtu_max} on this \
         kernel; lower the network's MTU, or use the backend packet"
    )]
    TooLarge {
        /// The interface.
        name: Box<str>,
        /// What there is room for.
        mtu_max: usize,
    },
    /// Zero queues, or too many.
    #[error("an AF_XDP port has 1 to {QUEUES_MAX} queues, not {0}")]
    QueueCount(usize),
    /// The interface receives by another number of queues.
    #[error(
        "'{name}' receives by {has} queues, and frames of all but {wanted} would be lost; \
         `ethtool -L {name} combined {wanted}` changes that where the driver can"
    )]
    OtherQueues {
        /// The interface.
        name: Box<str>,
        /// How many were to be opened.
        wanted: usize,
        /// How many there are.
        has: usize,
    },
    /// Anything else.
    #[error("cannot {operation} the AF_XDP socket on '{name}': {source}")]
    Io {
        /// The interface.
        name: Box<str>,
        /// What failed.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}
