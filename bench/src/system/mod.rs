//! What is compared: each system between namespaces of its own, ready for load.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use tests::lab::Namespace;

/// A system under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SystemName {
    /// Causeway.
    Causeway,
    /// A veth pair from end to end, with nothing between.
    Veth,
    /// The kernel bridge.
    Bridge,
    /// The kernel's router with nftables NAT.
    Nft,
    /// Open vSwitch in userspace on AF_PACKET.
    OvsPacket,
    /// Open vSwitch in userspace on AF_XDP.
    OvsXdp,
    /// VDE's switch on TAPs.
    Vde,
    /// pasta, from a namespace to its host.
    Pasta,
    /// Docker's userland proxy.
    DockerProxy,
}

/// How the ends are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// Two sandboxes on one switch.
    Pair,
    /// Many sandboxes on one switch.
    Star,
    /// From a sandbox to an outside namespace, its source translated.
    NatOut,
    /// From an outside namespace to a published port of a sandbox.
    PortForward,
}

/// How sandboxes are plugged into Causeway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackendName {
    /// A TAP with virtio-net headers.
    #[default]
    Tap,
    /// A veth whose host end is held by AF_PACKET.
    Packet,
    /// A TAP of one queue without offloads.
    TapPlain,
}

/// How Causeway's workers wait for frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WaitingMode {
    /// In the kernel, at once.
    Sleep,
    /// Looking for frames for a while, then in the kernel.
    #[default]
    Adaptive,
    /// Never in the kernel.
    Always,
}

/// What a system is set up with.
#[derive(Clone, Debug, PartialEq)]
pub struct Setup {
    /// How the ends are connected.
    pub shape: Shape,
    /// Sandboxes, at least 2.
    pub ports: u16,
    /// MTU of every interface.
    pub mtu: u16,
    /// Segmentation offload of the sandboxes' interfaces.
    pub gso: bool,
    /// Worker threads of Causeway.
    pub workers: u16,
    /// How sandboxes are plugged into Causeway.
    pub backend: BackendName,
    /// Frames of one batch of Causeway; `None` is its default.
    pub batch: Option<u16>,
    /// How Causeway's workers wait.
    pub waiting: WaitingMode,
}

/// A way through a system.
#[derive(Clone, Debug)]
pub struct Path {
    /// Where the client is.
    pub from: Namespace,
    /// Where the server is.
    pub to: Namespace,
    /// What the server binds.
    pub listen: SocketAddr,
    /// What the client connects to.
    pub connect: SocketAddr,
}

/// A thread or process whose CPU time is the switch's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// A process of its own, by its id.
    Process {
        /// What it is called in results.
        name: String,
        /// Its process id.
        pid: u32,
    },
    /// The threads of this process whose names begin so.
    Threads {
        /// What they are called in results.
        name: String,
        /// The beginning of their names.
        prefix: String,
    },
}
