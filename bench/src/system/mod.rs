//! What is compared: each system between namespaces of its own, ready for load.
//!
//! [`start`] gives a running [`System`]: its ways through, whose CPU time is the switch's, and
//! what to know of it. When it is dropped its processes have ended and are reaped, and its
//! namespaces and directories are gone. No configuration of the machine is touched, and no daemon
//! of the machine is used: each program is started by hand with files of its own.

use std::any::Any;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::panic::{self, AssertUnwindSafe};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tests::lab::{Lab, Namespace};
use tests::rig::Rig;

use self::process::Process;

mod causeway;
mod docker_proxy;
mod host;
mod kernel;
mod offload;
mod ovs;
mod packages;
mod pasta;
mod process;
mod vde;

pub use self::host::{SERVER_PORT, two_sandboxes};
pub use self::packages::{availability, install};

/// A system under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SystemName {
    /// Causeway, with whatever backend the setup names.
    Causeway,
    /// Causeway with sandboxes on AF_PACKET by rings.
    CausewayPacket,
    /// Causeway with sandboxes on AF_PACKET by system calls.
    CausewayPacketCalls,
    /// Causeway with sandboxes on AF_XDP.
    CausewayXdp,
    /// Causeway with sandboxes on plain TAPs.
    CausewayTapPlain,
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
    /// Many sandboxes on one switch, each sending to the next.
    Star,
    /// Many sandboxes on one switch, each sending to every other.
    Mesh,
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
    /// A veth whose host end is held by AF_PACKET, by rings.
    Packet,
    /// The same by system calls.
    PacketCalls,
    /// A veth whose host end is held by AF_XDP.
    Xdp,
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

/// A running system.
pub struct System {
    /// Which one.
    pub name: SystemName,
    /// Its ways through, at least one.
    pub paths: Vec<Path>,
    /// Whose CPU time is the switch's; empty when the kernel alone does the work.
    pub work: Vec<Work>,
    /// What to know of it: versions, settings.
    pub facts: BTreeMap<String, String>,
    /// What ends with it.
    _held: Held,
}

/// What keeps a system alive. Fields are dropped in their order: programs before the namespaces
/// that they are in, and the directory last.
#[derive(Default)]
struct Held {
    processes: Vec<Process>,
    _rig: Option<Box<Rig>>,
    /// Whatever else: threads of a prototype.
    _other: Option<Box<dyn Any>>,
    namespaces: Vec<Namespace>,
    lab: Option<Lab>,
}

impl System {
    /// Two sandboxes with a switch of the caller's own, which ends when `keep` is dropped.
    pub fn of_pair(sandboxes: &[Namespace], work: Work, keep: Box<dyn Any>) -> Self {
        Self::of_paths(host::paths(sandboxes, &Setup::default()), work, keep)
    }

    /// Ways through something of the caller's own, which ends when `keep` is dropped.
    pub fn of_paths(paths: Vec<Path>, work: Work, keep: Box<dyn Any>) -> Self {
        Self {
            name: SystemName::Causeway,
            paths,
            work: vec![work],
            facts: BTreeMap::from([("prototype".to_owned(), "yes".to_owned())]),
            _held: Held {
                _other: Some(keep),
                ..Held::default()
            },
        }
    }
}

/// Why a system did not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// It is not installed here.
    #[error("{system} is absent: {reason}")]
    Absent {
        /// Its name.
        system: SystemName,
        /// What is missing, and what would bring it.
        reason: String,
    },
    /// It cannot do what is asked for.
    #[error("{system} cannot do this: {reason}")]
    Impossible {
        /// Its name.
        system: SystemName,
        /// What it cannot do.
        reason: String,
    },
    /// It should have started and did not.
    #[error("{system} did not start: {reason}")]
    Failed {
        /// Its name.
        system: SystemName,
        /// What went wrong.
        reason: String,
    },
}

impl SystemName {
    /// Every system.
    pub const ALL: [Self; 13] = [
        Self::Causeway,
        Self::Veth,
        Self::Bridge,
        Self::Nft,
        Self::OvsPacket,
        Self::OvsXdp,
        Self::Vde,
        Self::Pasta,
        Self::DockerProxy,
        Self::CausewayPacket,
        Self::CausewayPacketCalls,
        Self::CausewayXdp,
        Self::CausewayTapPlain,
    ];

    /// Whether it is Causeway, however sandboxes are plugged in.
    pub const fn is_causeway(self) -> bool {
        matches!(self, Self::Causeway) || self.backend().is_some()
    }

    /// The backend that its name says, so that several take part in the same rounds.
    pub const fn backend(self) -> Option<BackendName> {
        match self {
            Self::CausewayPacket => Some(BackendName::Packet),
            Self::CausewayPacketCalls => Some(BackendName::PacketCalls),
            Self::CausewayXdp => Some(BackendName::Xdp),
            Self::CausewayTapPlain => Some(BackendName::TapPlain),
            Self::Causeway
            | Self::Veth
            | Self::Bridge
            | Self::Nft
            | Self::OvsPacket
            | Self::OvsXdp
            | Self::Vde
            | Self::Pasta
            | Self::DockerProxy => None,
        }
    }
}

/// As scenarios write it.
impl std::fmt::Display for SystemName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Causeway => "causeway",
            Self::CausewayPacket => "causeway-packet",
            Self::CausewayPacketCalls => "causeway-packet-calls",
            Self::CausewayXdp => "causeway-xdp",
            Self::CausewayTapPlain => "causeway-tap-plain",
            Self::Veth => "veth",
            Self::Bridge => "bridge",
            Self::Nft => "nft",
            Self::OvsPacket => "ovs-packet",
            Self::OvsXdp => "ovs-xdp",
            Self::Vde => "vde",
            Self::Pasta => "pasta",
            Self::DockerProxy => "docker-proxy",
        })
    }
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            shape: Shape::Pair,
            ports: 2,
            mtu: 1500,
            gso: true,
            workers: u16::try_from(dataplane::Config::default().workers).unwrap_or(1),
            backend: BackendName::default(),
            batch: None,
            waiting: WaitingMode::default(),
        }
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pair => "pair",
            Self::Star => "star",
            Self::Mesh => "mesh",
            Self::NatOut => "nat-out",
            Self::PortForward => "port-forward",
        })
    }
}

/// Starts a system.
///
/// # Errors
/// [`StartError`]; nothing of the system is left then.
pub fn start(name: SystemName, setup: &Setup) -> Result<System, StartError> {
    start_with(name, setup, causeway::SPIN)
}

/// Starts a system; adaptive workers of Causeway look for frames for `spin` before they sleep.
///
/// # Errors
/// [`StartError`]; nothing of the system is left then.
pub fn start_with(name: SystemName, setup: &Setup, spin: Duration) -> Result<System, StartError> {
    let impossible = |reason: String| StartError::Impossible {
        system: name,
        reason,
    };
    if setup.ports < 2 || setup.ports > host::SANDBOXES_MAX {
        let most = host::SANDBOXES_MAX;
        return Err(impossible(format!(
            "{} sandboxes were asked for; give 2 to {most}",
            setup.ports
        )));
    }
    let version = availability(name)?;
    // The lab and the rig panic with what went wrong; a run goes on with its other systems.
    let started = panic::catch_unwind(AssertUnwindSafe(|| match name {
        SystemName::Causeway
        | SystemName::CausewayPacket
        | SystemName::CausewayPacketCalls
        | SystemName::CausewayXdp
        | SystemName::CausewayTapPlain => {
            let backend = name.backend().unwrap_or(setup.backend);
            let setup = Setup {
                backend,
                ..setup.clone()
            };
            causeway::start(&setup, spin)
        }
        SystemName::Veth => kernel::veth(setup),
        SystemName::Bridge => kernel::bridge(setup),
        SystemName::Nft => kernel::nft(setup),
        SystemName::DockerProxy => docker_proxy::start(setup),
        SystemName::OvsPacket => ovs::start(setup, ovs::Ports::Packet),
        SystemName::OvsXdp => ovs::start(setup, ovs::Ports::Xdp),
        SystemName::Vde => vde::start(setup),
        SystemName::Pasta => pasta::start(setup),
    }));
    match started {
        Ok(Ok(mut system)) => {
            system.name = name;
            system.facts.insert("version".to_owned(), version);
            system.facts.insert("mtu".to_owned(), setup.mtu.to_string());
            let gso = if setup.gso { "on" } else { "off" };
            system.facts.insert("gso".to_owned(), gso.to_owned());
            Ok(system)
        }
        Ok(Err(Refusal::Impossible(reason))) => Err(impossible(reason)),
        Ok(Err(Refusal::Failed(reason))) => Err(StartError::Failed {
            system: name,
            reason,
        }),
        Err(panic) => Err(StartError::Failed {
            system: name,
            reason: panic_message(&*panic),
        }),
    }
}

/// Why a system's own part of [`start`] gave up.
enum Refusal {
    /// It cannot do this.
    Impossible(String),
    /// It should have.
    Failed(String),
}

/// A system that cannot do a shape says so.
fn refuse_shape(setup: &Setup, able: &[Shape]) -> Result<(), Refusal> {
    if able.contains(&setup.shape) {
        return Ok(());
    }
    let able: Vec<String> = able.iter().map(Shape::to_string).collect();
    Err(Refusal::Impossible(format!(
        "it has no {}; it can do {}",
        setup.shape,
        able.join(", ")
    )))
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("it panicked without words").to_owned()
}
