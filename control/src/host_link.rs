//! The host link: the interface by which the host and its containers reach each other.
//!
//! One TAP without ARP in the host's namespace. The gateways' addresses are on it as single
//! addresses, the subnets are routed to it: the host then reaches containers, and containers
//! reach the host's services on their gateway's address, as they do with docker0.

use std::collections::BTreeSet;

use dataplane_core::addr::PortId;
use dataplane_core::addr::Prefix;

use crate::device::{self, Queues};
use crate::error::Error;
use crate::hostnet::HostState;
use crate::link::inet::{DuplicateDetection, Route};
use crate::link::{Link, Netlink};
use crate::model::HOST_LINK_PORT;
use crate::netns::Netns;
use crate::plan::ObservedHostLink;

/// The interface's name.
pub const IFNAME: &str = "causeway0";
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
        let half_made = link.alias.is_none() && link.kind == "tun" && !link.up;
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
        let taps = device::open_or_create_tap(&self.host, IFNAME, self.workers)?;
        let index = self.netlink.require(IFNAME).await?.index;
        self.netlink.set_alias(index, &self.alias()).await?;
        self.netlink.set_noarp(index).await?;
        self.netlink.set_addr_gen_mode_none(index).await?;
        self.netlink.set_noqueue(index).await?;
        self.netlink.set_up(index).await?;
        let link = self.netlink.require(IFNAME).await?;
        Ok((device::boxed(taps), link))
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
