//! What the daemon may do (capabilities(7)): what it needs and nothing else, from its first thread on.
//!
//! Capabilities belong to threads, and a thread gets those of the one that made it; so they are given
//! up before there is a second one. What is given up of the bounding set does not come back in a
//! program that the daemon starts, even as root.

use std::fmt::Write;

use caps::{CapSet, Capability, CapsHashSet};

use crate::error::Error;

/// What the daemon keeps, of what it has.
pub const KEPT: [Capability; 10] = [
    // Links, addresses, routes, filters, TAPs.
    Capability::CAP_NET_ADMIN,
    // Packet sockets, and those of AF_XDP.
    Capability::CAP_NET_RAW,
    // Listeners that hold published ports below 1024 for the host.
    Capability::CAP_NET_BIND_SERVICE,
    // setns(2) into sandboxes, mount(2) of their names.
    Capability::CAP_SYS_ADMIN,
    // /proc/PID/ns of processes of other users.
    Capability::CAP_SYS_PTRACE,
    // The programs of the guard and of AF_XDP, where the kernel tells this from CAP_SYS_ADMIN.
    Capability::CAP_BPF,
    // More open files than the soft limit, and memory for rings.
    Capability::CAP_SYS_RESOURCE,
    Capability::CAP_IPC_LOCK,
    // State and resolv.conf files in directories of other users, and the socket's group.
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_CHOWN,
];

/// Gives up what is not [`KEPT`]. Who has none of it, as in a user namespace of little, keeps what
/// there is.
///
/// # Errors
/// When the kernel refuses.
pub fn drop_all_others() -> Result<(), Error> {
    let failed = |error: caps::errors::CapsError| {
        Error::io("give up capabilities", std::io::Error::other(error))
    };
    let has = caps::read(None, CapSet::Permitted).map_err(failed)?;
    let kept: CapsHashSet = KEPT.into_iter().filter(|it| has.contains(it)).collect();
    // The bounding set first: it takes CAP_SETPCAP, which goes with the others.
    if has.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::read(None, CapSet::Bounding).map_err(failed)? {
            if !kept.contains(&capability) {
                caps::drop(None, CapSet::Bounding, capability).map_err(failed)?;
            }
        }
    }
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new()).map_err(failed)?;
    caps::set(None, CapSet::Effective, &kept).map_err(failed)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(failed)
}

/// Whether this process may load programs of BPF that touch the network, as far as can be told: the kernel lets
/// none of another user namespace than the first.
pub fn may_load_bpf() -> bool {
    let has = caps::read(None, CapSet::Effective).unwrap_or_default();
    let may = |capability| has.contains(&capability);
    let first = std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().eq(["0", "0", "4294967295"]));
    let may_load = may(Capability::CAP_BPF) || may(Capability::CAP_SYS_ADMIN);
    first && may_load && may(Capability::CAP_NET_ADMIN) && may(Capability::CAP_NET_RAW)
}

/// Capabilities of the daemon's work that this process lacks, as capabilities(7) names them.
pub fn missing() -> Vec<String> {
    let has = caps::read(None, CapSet::Effective).unwrap_or_default();
    let lacking = KEPT.into_iter().filter(|it| !has.contains(it));
    lacking.map(|it| it.to_string()).collect()
}

/// [`KEPT`] as a line of a systemd unit has them.
pub fn unit_words() -> String {
    let mut words = String::new();
    for capability in KEPT {
        let _ = write!(words, "{capability} ");
    }
    words.truncate(words.trim_end().len());
    words
}
