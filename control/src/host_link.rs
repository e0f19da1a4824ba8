//! The host link: the interface by which the host and its containers reach each other.
//!
//! One TAP without ARP in the host's namespace. The gateways' addresses are on it as single
//! addresses, the subnets are routed to it: the host then reaches containers, and containers
//! reach the host's services on their gateway's address, as they do with docker0.
//!
//! Where TAPs cannot be opened (an ordinary user's namespace on a machine whose `/dev/net/tun` is
//! root's), it is a veth whose other end, in the same namespace, is ours by AF_PACKET, guarded.

use std::collections::BTreeSet;

use dataplane_core::addr::PortId;
use dataplane_core::addr::Prefix;
use dataplane_port::guard::{self, Guarded};
use dataplane_port::packet::PacketBuilder;
use dataplane_port::tap::TapError;

use crate::device::{self, Queues};
use crate::error::Error;
use crate::hostnet::HostState;
use crate::link::inet::{DuplicateDetection, Route};
use crate::link::{Link, Netlink, TAP_QUEUE_FRAMES, VethEnd};
use crate::model::HOST_LINK_PORT;
use crate::netns::Netns;
use crate::plan::ObservedHostLink;

/// The interface's name.
pub const IFNAME: &str = "causeway0";
/// MTU of a veth until the networks say theirs.
const MTU_DEFAULT: u32 = 1_500;
/// MTU of the switch's end: the host's end alone decides how large packets are.
const MTU_MAX: u32 = 65_535;
/// The switch's end, where the host link is a veth.
const SWITCH_END: &str = "causeway0s";
/// The port of the dataplane that carries it.
pub const PORT: PortId = HOST_LINK_PORT;

/// The host link of one instance.
#[derive(Clone, Debug)]
pub struct HostLink {
    /// The host's namespace.
    pub host: Netns,
    /// A socket in it.
    pub netlink: Netlink,
    /// Marks the interface.
    pub instance: String,
    /// Queues that it gets.
    pub workers: usize,
}

impl HostLink {
    /// The alias by which the interface is recognised.
    pub fn alias(&self) -> String {
        format!("causeway:{}:host-link", self.instance)
    }

    /// Whether the interface is there and whose it is.
    ///
    /// # Errors
    /// [`Error::InUse`] when another instance, or somebody else, has the name.
    pub fn find<'h>(&self, host: &'h HostState) -> Result<Option<&'h Link>, Error> {
        let Some(link) = host.link(IFNAME) else {
            return Ok(None);
        };
        let alias = self.alias();
        // Without an alias, up or address it is one that a crash left between two steps.
        let made_by_us = matches!(link.kind.as_str(), "tun" | "veth");
        let half_made = link.alias.is_none() && made_by_us && !link.up;
        if link.alias.as_deref() == Some(alias.as_str()) || half_made {
            return Ok(Some(link));
        }
        let owner = match &link.alias {
            Some(alias) if alias.starts_with("causeway:") => "another Causeway daemon",
            Some(_) | None => "another program",
        };
        Err(Error::InUse(format!(
            "the interface {IFNAME} in this network namespace belongs to {owner}; stop that one \
             and remove the interface (ip link del {IFNAME}), or start this one in another \
             namespace"
        )))
    }

    /// Makes or opens the interface, and brings it up.
    ///
    /// # Errors
    /// What is missing or refused.
    pub async fn open(&self) -> Result<(Queues, Link), Error> {
        let present = self.netlink.link(IFNAME).await?;
        let queues = if present.is_some_and(|link| link.kind == "veth") {
            self.open_switch_end().await?
        } else {
            match device::open_or_create_tap(&self.host, IFNAME, self.workers) {
                Ok(taps) => device::boxed(taps),
                Err(Error::Tap(error)) if is_denied(&error) => {
                    tracing::warn!(%error, "linking the host by a veth instead of a TAP");
                    self.create_veth().await?;
                    self.open_switch_end().await?
                }
                Err(error) => return Err(error),
            }
        };
        let index = self.netlink.require(IFNAME).await?.index;
        self.netlink.set_alias(index, &self.alias()).await?;
        self.netlink.set_noarp(index).await?;
        self.netlink.set_addr_gen_mode_none(index).await?;
        self.netlink.set_noqueue(index).await?;
        self.netlink
            .set_tx_queue_frames(index, TAP_QUEUE_FRAMES)
            .await?;
        self.netlink.set_up(index).await?;
        let link = self.netlink.require(IFNAME).await?;
        Ok((queues, link))
    }

    async fn create_veth(&self) -> Result<(), Error> {
        let end = |name| VethEnd {
            name,
            mac: None,
            mtu: MTU_DEFAULT,
        };
        Ok(self
            .netlink
            .create_veth(end(IFNAME), end(SWITCH_END), &self.host)
            .await?)
    }

    /// Opens the switch's end of a veth: the host must neither speak nor listen on it.
    async fn open_switch_end(&self) -> Result<Queues, Error> {
        let index = self.netlink.require(SWITCH_END).await?.index;
        self.netlink.set_addr_gen_mode_none(index).await?;
        self.netlink.set_mtu(index, MTU_MAX).await?;
        let builder = PacketBuilder::new(SWITCH_END).queues(self.workers);
        self.host
            .run(|| guard::install(SWITCH_END, Guarded::Everything))??;
        let sockets = self.host.run(|| builder.open())??;
        self.netlink.set_up(index).await?;
        Ok(device::boxed(sockets))
    }

    /// Deletes the interface with its addresses and routes.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn remove(&self, index: u32) -> Result<(), Error> {
        match self.netlink.delete(index).await {
            Err(error) if !error.is(nix::errno::Errno::ENODEV) => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Puts a gateway's address on the interface.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn add_address(&self, index: u32, address: Prefix) -> Result<(), Error> {
        let off = DuplicateDetection::Off;
        Ok(self.netlink.add_address(index, address, off).await?)
    }

    /// Routes a subnet to the interface.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn add_route(&self, route: Route) -> Result<(), Error> {
        Ok(self.netlink.add_route(route).await?)
    }
}

/// Whether TAPs are out of reach here, rather than this one being in the way.
fn is_denied(error: &TapError) -> bool {
    matches!(
        error,
        TapError::NoTunDevice | TapError::NotPermitted { .. } | TapError::Unsupported { .. }
    )
}

/// The interface as [`crate::plan`] compares it.
pub fn observed(host: &HostState, link: &Link) -> ObservedHostLink {
    let addresses: BTreeSet<_> = host
        .addresses
        .iter()
        .filter(|address| address.link == link.index)
        .map(|address| (address.prefix.address, address.prefix.len))
        .collect();
    let routes = host
        .routes
        .iter()
        .filter(|route| route.link == link.index && route.ours)
        .map(|route| (route.prefix.address, route.prefix.len, route.source))
        .collect();
    ObservedHostLink {
        mtu: link.mtu,
        addresses,
        routes,
    }
}
