//! What a request can be refused with. Every message names the object and says what to do.

use std::io;
use std::net::IpAddr;

use dataplane_core::addr::MacAddr;
use dataplane_port::guard::GuardError;
use dataplane_port::packet::PacketError;
use dataplane_port::tap::TapError;
use dataplane_port::xdp::XdpError;

use crate::events::EventKindError;
use crate::link::IfNameError;
use crate::model::dns::DnsError;
use crate::model::{
    BackendError, DependenceError, FdbKindError, GroupError, HolderError, LoopDetectError,
    MirrorDirectionError, NameError, NatModeError, RuleActionError, RulePortsError,
    RuleProtocolError, RuleSideError, StaticRouteError, StpFramesError,
};
use crate::publish::PublishSpecError;
use crate::vlans::VlanError;
use crate::{ipam, link, mirror_file, netns, store};

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Not an interface name.
    #[error(transparent)]
    IfName(#[from] IfNameError),
    /// Not a backend.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// No backend works here.
    #[error("no backend works here: {0}")]
    NoBackend(String),
    /// Not a behaviour of a NAT.
    #[error(transparent)]
    Dependence(#[from] DependenceError),
    /// Not what becomes of BPDUs.
    #[error(transparent)]
    StpFrames(#[from] StpFramesError),
    /// Not what is done about loops.
    #[error(transparent)]
    LoopDetect(#[from] LoopDetectError),
    /// Not a VLAN.
    #[error(transparent)]
    Vlan(#[from] VlanError),
    /// Not a direction of a mirror.
    #[error(transparent)]
    MirrorDirection(#[from] MirrorDirectionError),
    /// Not a file that a mirror can write.
    #[error(transparent)]
    MirrorFile(#[from] mirror_file::disk::Error),
    /// Not a group that listeners are kept of.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// Not a kind of FDB entry.
    #[error(transparent)]
    FdbKind(#[from] FdbKindError),
    /// Not a kind of event.
    #[error(transparent)]
    EventKind(#[from] EventKindError),
    /// Not a mode of a NAT.
    #[error(transparent)]
    NatMode(#[from] NatModeError),
    /// Not whom an address can be kept for.
    #[error(transparent)]
    Holder(#[from] HolderError),
    /// What is asked of the name service.
    #[error(transparent)]
    Dns(#[from] DnsError),
    /// Not a static route, or none that an endpoint can have.
    #[error(transparent)]
    StaticRoute(#[from] StaticRouteError),
    /// Not a side of a rule.
    #[error(transparent)]
    RuleSide(#[from] RuleSideError),
    /// Not ports of a rule.
    #[error(transparent)]
    RulePorts(#[from] RulePortsError),
    /// Not a protocol of a rule.
    #[error(transparent)]
    RuleProtocol(#[from] RuleProtocolError),
    /// Not what a rule does.
    #[error(transparent)]
    RuleAction(#[from] RuleActionError),
    /// Not a publish specification.
    #[error(transparent)]
    PublishSpec(#[from] PublishSpecError),
    /// An address or subnet that cannot be given.
    #[error(transparent)]
    Ipam(#[from] ipam::Error),
    /// A namespace that cannot be used.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// A link operation that failed.
    #[error(transparent)]
    Link(#[from] link::Error),
    /// A TAP that cannot be opened.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// A packet socket that cannot be opened.
    #[error(transparent)]
    Packet(#[from] PacketError),
    /// An AF_XDP socket that cannot be opened.
    #[error(transparent)]
    Xdp(#[from] XdpError),
    /// A guard that cannot be installed or removed.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// State that cannot be read or written.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The dataplane refused.
    #[error(transparent)]
    Dataplane(#[from] dataplane::Error),
    /// A request that contradicts itself or is out of range.
    #[error("{0}")]
    Invalid(String),
    /// No such object.
    #[error("there is no {kind} '{name}'; `causeway {list}` lists those that are")]
    Unknown {
        /// What kind of object.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The command that lists them.
        list: &'static str,
    },
    /// A sandbox without the endpoint, or a network without the station, that was meant.
    #[error("{0}")]
    NotAttached(String),
    /// The name is in use.
    #[error("there is already a {kind} '{name}'; choose another name or remove that one first")]
    Exists {
        /// What kind of object.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// Something else depends on the object.
    #[error("{0}")]
    InUse(String),
    /// An interface name is taken inside a sandbox.
    #[error(
        "the interface name '{ifname}' is taken in {sandbox}; choose another with --ifname, or \
         remove that interface"
    )]
    IfNameTaken {
        /// The interface name.
        ifname: String,
        /// The sandbox.
        sandbox: String,
    },
    /// A port of the host is taken.
    #[error("{transport} port {port} of {address} is taken by {owner}; choose another host port")]
    PortTaken {
        /// TCP or UDP.
        transport: &'static str,
        /// Which port.
        port: u16,
        /// Which address.
        address: String,
        /// Who has it.
        owner: String,
    },
    /// A limit is reached.
    #[error("{what} are limited to {max}; remove some first")]
    Limit {
        /// What there are too many of.
        what: &'static str,
        /// How many there may be.
        max: usize,
    },
    /// Anything else that the kernel refused.
    #[error("cannot {action}: {source}{}", rights_hint(.source))]
    Io {
        /// What was tried.
        action: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What kind of answer an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The request itself is wrong.
    Invalid,
    /// It names something that is not there.
    NotFound,
    /// It clashes with something that is there.
    Conflict,
    /// The disk has no room for it.
    Full,
    /// The host or this program failed.
    Failed,
}

impl Error {
    /// Wraps what the kernel said.
    pub fn io(action: impl Into<String>, source: io::Error) -> Self {
        let action = action.into();
        Self::Io { action, source }
    }

    /// A network that is not there.
    pub fn unknown_network(name: &str) -> Self {
        Self::Unknown {
            kind: "network",
            name: name.to_owned(),
            list: "network ls",
        }
    }

    /// An endpoint that is not there.
    pub fn unknown_endpoint(name: &str) -> Self {
        Self::Unknown {
            kind: "endpoint",
            name: name.to_owned(),
            list: "port ls",
        }
    }

    /// A switch port that is not there.
    pub fn unknown_port(name: &str) -> Self {
        Self::Unknown {
            kind: "port",
            name: name.to_owned(),
            list: "port ls",
        }
    }

    /// An FDB entry that is not there.
    pub fn unknown_fdb_entry(mac: MacAddr, network: &str) -> Self {
        Self::NotAttached(format!(
            "network '{network}' has no FDB entry for {mac}; `causeway fdb show {network}` lists \
             those that are"
        ))
    }

    /// A listener that is not there.
    pub fn unknown_listener(group: IpAddr, port: &str, network: &str) -> Self {
        Self::NotAttached(format!(
            "port '{port}' does not listen to {group} on network '{network}'; `causeway mdb show \
             {network}` lists those that do"
        ))
    }

    /// A publication that is not there.
    pub fn unknown_publication(id: u32) -> Self {
        Self::Unknown {
            kind: "publication",
            name: id.to_string(),
            list: "publish ls",
        }
    }

    /// What kind of answer it is.
    pub fn class(&self) -> Class {
        match self {
            Self::Name(_)
            | Self::IfName(_)
            | Self::Backend(_)
            | Self::Dependence(_)
            | Self::NatMode(_)
            | Self::Dns(_)
            | Self::Holder(_)
            | Self::FdbKind(_)
            | Self::Group(_)
            | Self::StpFrames(_)
            | Self::LoopDetect(_)
            | Self::Vlan(_)
            | Self::MirrorDirection(_)
            | Self::EventKind(_)
            | Self::StaticRoute(_)
            | Self::RuleSide(_)
            | Self::RulePorts(_)
            | Self::RuleProtocol(_)
            | Self::RuleAction(_)
            | Self::PublishSpec(_)
            | Self::Invalid(_) => Class::Invalid,
            Self::Ipam(error) => match error {
                ipam::Error::OverlapsNetwork { .. }
                | ipam::Error::OverlapsRoute { .. }
                | ipam::Error::NoSubnet
                | ipam::Error::Taken { .. }
                | ipam::Error::Exhausted { .. } => Class::Conflict,
                ipam::Error::HostBits { .. }
                | ipam::Error::TooSmall(_)
                | ipam::Error::NotUnicast(_)
                | ipam::Error::Outside { .. }
                | ipam::Error::Reserved { .. }
                | ipam::Error::NoSuchSubnet { .. } => Class::Invalid,
            },
            Self::MirrorFile(error) => match error {
                mirror_file::disk::Error::Io { .. } => Class::Failed,
                mirror_file::disk::Error::Directory(_)
                | mirror_file::disk::Error::NotAFile(_)
                | mirror_file::disk::Error::NotPcapng(_) => Class::Invalid,
            },
            Self::Netns(error) => match error {
                netns::Error::UnknownName(_) | netns::Error::UnknownProcess(_) => Class::NotFound,
                netns::Error::BadName(_) | netns::Error::NotANamespace(_) => Class::Invalid,
                netns::Error::NameTaken(_) => Class::Conflict,
                netns::Error::UserNamespaceDenied { .. }
                | netns::Error::MissingCapabilities(_)
                | netns::Error::Refused { .. } => Class::Failed,
            },
            Self::Unknown { .. } | Self::NotAttached(_) => Class::NotFound,
            Self::Exists { .. }
            | Self::InUse(_)
            | Self::IfNameTaken { .. }
            | Self::PortTaken { .. }
            | Self::Limit { .. } => Class::Conflict,
            Self::Store(error) if error.is_full() => Class::Full,
            Self::Link(_)
            | Self::Tap(_)
            | Self::Packet(_)
            | Self::Xdp(_)
            | Self::NoBackend(_)
            | Self::Guard(_)
            | Self::Store(_)
            | Self::Dataplane(_)
            | Self::Io { .. } => Class::Failed,
        }
    }
}

fn rights_hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => "; run as root, or choose a path that is yours",
        _ => "",
    }
}

/// What happened and, where the message says so behind a semicolon, what to do about it.
pub fn split_hint(message: &str) -> (&str, Option<&str>) {
    match message.split_once("; ") {
        Some((what, hint)) => (what, Some(hint)),
        None => (message, None),
    }
}
