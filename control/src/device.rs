//! The devices of endpoints: made inside a sandbox, opened again after a crash, removed.
//!
//! # Theory of operation
//! A device is made under a temporary name that contains the instance, gets an alias that
//! contains the instance and the port, and only then its final name. So at any instant a device
//! of ours is recognised, by its temporary name or its alias, and an `eth0` that is not ours is
//! never touched. Who renames our device inside the sandbox does no harm: the alias counts.
//!
//! No namespace is held open: a handle would keep a sandbox alive that its owner has ended.

mod default_routes;
pub(crate) mod nic;
mod static_routes;

use std::net::IpAddr;

use dataplane_core::addr::Prefix;
use dataplane_port::ethtool;
use dataplane_port::guard::{self, Guarded};
use dataplane_port::packet::{PacketBuilder, Rings};
use dataplane_port::tap::{Persistence, Tap, TapBuilder, TapError};
use dataplane_port::tap_plain::PlainTap;
use dataplane_port::xdp::XdpBuilder;
use dataplane_port::{Carrier, PortIo};

use crate::error::Error;
use crate::link::inet::{Address, DuplicateDetection};
use crate::link::{self, Link, Netlink, TAP_QUEUE_FRAMES, VethEnd};
use crate::model::{Backend, Endpoint, Network};
use crate::netns::Netns;
use crate::plan::ObservedSandbox;
use default_routes::add_default_routes;
use static_routes::add_static_routes;

/// The queues of an opened port.
pub type Queues = Vec<Box<dyn PortIo>>;

/// How many characters of the instance fit into a temporary name beside a port id.
const INSTANCE_PART_LEN: usize = 6;

/// What the far end of a veth must not leave to its device, as the frames that XDP redirects come
/// without it: VLAN tags beside the bytes, and the checksum of SCTP, which nobody else computes.
const LOST_TO_XDP: &[&str] = &[
    "tx-vlan-hw-insert",
    "tx-vlan-stag-hw-insert",
    "tx-checksum-sctp",
];

/// What it must not leave to it as a packet socket has no words for it.
const LOST_TO_PACKET: &[&str] = &["tx-sctp-segmentation"];

/// Makes and opens devices.
#[derive(Clone, Debug)]
pub struct Devices {
    /// The host's namespace, where the host ends of veths are.
    pub host: Netns,
    /// A socket in it.
    pub netlink: Netlink,
    /// Marks our devices.
    pub instance: String,
    /// Queues that a multi-queue device gets.
    pub workers: usize,
    /// Frames that a busy poll fetches; `None` has none.
    pub busy_poll_frames: Option<u16>,
}

impl Devices {
    /// The alias by which an endpoint's device is recognised.
    pub fn alias(&self, endpoint: &Endpoint) -> String {
        format!("causeway:{}:{}", self.instance, endpoint.port)
    }

    /// The name that a device has until it has its alias, and a veth's host end for good.
    pub fn own_name(&self, endpoint: &Endpoint) -> String {
        let part = self.instance.get(..INSTANCE_PART_LEN).unwrap_or_default();
        format!("cw{part}p{}", endpoint.port.0)
    }

    /// Makes the device with its addresses and opens it. Leaves nothing behind when it fails.
    ///
    /// # Errors
    /// Names what is missing, taken or refused.
    pub async fn create(&self, endpoint: &Endpoint, network: &Network) -> Result<Queues, Error> {
        if endpoint.backend.is_nic() {
            return self.take_nic(endpoint, network).await;
        }
        let sandbox = Sandbox::open(endpoint)?;
        if sandbox.netlink.link(&endpoint.ifname).await?.is_some() {
            return Err(Error::IfNameTaken {
                ifname: endpoint.ifname.clone(),
                sandbox: endpoint.sandbox.path.display().to_string(),
            });
        }
        // A crash can have left one behind under its temporary name.
        self.remove_from(&sandbox, endpoint).await?;
        let made = match endpoint.backend {
            Backend::Tap | Backend::Host => self.create_tap(&sandbox, endpoint),
            Backend::TapPlain => self.create_plain_tap(&sandbox, endpoint),
            Backend::Packet | Backend::Xdp => self.create_veth(&sandbox, endpoint, network).await,
            Backend::Nic | Backend::NicXdp => self.open_nic(endpoint, network),
        };
        let configured = match made {
            Ok(queues) => self
                .configure(&sandbox, endpoint, network)
                .await
                .map(|()| queues),
            Err(error) => Err(error),
        };
        if configured.is_err()
            && let Err(error) = self.remove_from(&sandbox, endpoint).await
        {
            tracing::error!(endpoint = %endpoint.name, %error, "cannot remove a half-made device");
        }
        configured
    }

    fn create_plain_tap(&self, sandbox: &Sandbox, endpoint: &Endpoint) -> Result<Queues, Error> {
        let name = self.own_name(endpoint);
        let tap = sandbox.ns.run(|| PlainTap::create(&name))??;
        tap.set_persistence(Persistence::Persistent)
            .map_err(|error| Error::io(format!("make the TAP '{name}' stay"), error))?;
        Ok(boxed(vec![tap]))
    }

    fn create_tap(&self, sandbox: &Sandbox, endpoint: &Endpoint) -> Result<Queues, Error> {
        let builder = TapBuilder::new(&self.own_name(endpoint))
            .queues(self.workers)
            .persistence(Persistence::Persistent);
        let taps = sandbox.ns.run(|| builder.create())??;
        Ok(boxed(taps))
    }

    async fn create_veth(
        &self,
        sandbox: &Sandbox,
        endpoint: &Endpoint,
        network: &Network,
    ) -> Result<Queues, Error> {
        let name = self.own_name(endpoint);
        let end = VethEnd {
            name: &name,
            mac: None,
            mtu: network.mtu.into(),
        };
        self.netlink.create_veth(end, end, &sandbox.ns).await?;
        let host_end = self.netlink.require(&name).await?;
        self.netlink
            .set_alias(host_end.index, &self.alias(endpoint))
            .await?;
        // The host must not speak on it: no address, hence no IPv6 of its own either.
        self.netlink.set_addr_gen_mode_none(host_end.index).await?;
        let lost = if endpoint.backend == Backend::Xdp {
            LOST_TO_XDP
        } else {
            LOST_TO_PACKET
        };
        sandbox
            .ns
            .run(|| ethtool::switch_off(&name, lost))?
            .map_err(|error| Error::io(format!("set what '{name}' leaves to its device"), error))?;
        let queues = self.open_veth(endpoint, network)?;
        self.netlink.set_up(host_end.index).await?;
        Ok(queues)
    }

    /// Opens the host end, guarded: the host would answer ARP for its own addresses on it.
    ///
    /// What XDP redirects never gets as far as the guard, which stays when the process dies and its
    /// program with it.
    fn open_veth(&self, endpoint: &Endpoint, network: &Network) -> Result<Queues, Error> {
        let name = self.own_name(endpoint);
        self.host
            .run(|| guard::install(&name, Guarded::Everything))??;
        if endpoint.backend == Backend::Xdp {
            let builder = self.xdp_builder(&name, network);
            return Ok(boxed(self.host.run(|| builder.open())??));
        }
        let builder = PacketBuilder::new(&name).queues(self.workers);
        let builder = builder.rings(Rings::Wanted);
        Ok(boxed(self.host.run(|| builder.open())??))
    }

    fn xdp_builder(&self, name: &str, network: &Network) -> XdpBuilder {
        let builder = XdpBuilder::new(name).mtu(network.mtu);
        match self.busy_poll_frames {
            Some(frames) => builder.busy_poll(frames),
            None => builder,
        }
    }

    /// Sets everything inside the sandbox, the state "up" and the routes last.
    async fn configure(
        &self,
        sandbox: &Sandbox,
        endpoint: &Endpoint,
        network: &Network,
    ) -> Result<(), Error> {
        let netlink = &sandbox.netlink;
        let index = netlink.require(&self.own_name(endpoint)).await?.index;
        netlink.set_alias(index, &self.alias(endpoint)).await?;
        netlink.set_mac(index, endpoint.mac).await?;
        netlink.set_mtu(index, network.mtu.into()).await?;
        netlink.set_noqueue(index).await?;
        netlink.set_tx_queue_frames(index, TAP_QUEUE_FRAMES).await?;
        netlink.rename(index, &endpoint.ifname).await?;
        if endpoint.backend == Backend::Host {
            // The card's link-local address comes along, however it was made.
            netlink.set_addr_gen_mode_none(index).await?;
        }
        sandbox.keep_neighbours(index, endpoint).await?;
        for prefix in addresses_inside(endpoint, network) {
            netlink
                .add_address(index, prefix, DuplicateDetection::Off)
                .await?;
        }
        netlink.set_up(index).await?;
        add_default_routes(netlink, index, endpoint, network).await?;
        add_static_routes(netlink, index, endpoint).await?;
        Ok(())
    }

    /// Plugs or unplugs the cable of a device of which the dataplane's end is an interface of the
    /// host. A TAP's is the dataplane's to plug.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn set_carrier(&self, endpoint: &Endpoint, carrier: Carrier) -> Result<(), Error> {
        if !endpoint.backend.is_veth() {
            return Ok(());
        }
        let link = self.netlink.require(&self.own_name(endpoint)).await?;
        match carrier {
            Carrier::Present if link.up => {}
            Carrier::Present => self.netlink.set_up(link.index).await?,
            Carrier::Absent => self.netlink.set_down(link.index).await?,
        }
        Ok(())
    }

    /// What is left of an endpoint's device.
    ///
    /// # Errors
    /// When the sandbox is there but cannot be looked into.
    pub async fn observe(&self, endpoint: &Endpoint) -> Result<ObservedSandbox, Error> {
        let Some(sandbox) = Sandbox::open_if_there(endpoint)? else {
            return Ok(ObservedSandbox::Gone);
        };
        if endpoint.backend.is_nic() {
            return Ok(match self.netlink.link(&endpoint.ifname).await? {
                Some(_) => ObservedSandbox::WithDevice,
                None => ObservedSandbox::Unplugged,
            });
        }
        Ok(match self.find(&sandbox.netlink, endpoint).await? {
            Some(_) => ObservedSandbox::WithDevice,
            None => ObservedSandbox::WithoutDevice,
        })
    }

    /// Opens a device that an earlier process has made.
    ///
    /// # Errors
    /// When it is not there, or not of our making.
    pub async fn adopt(&self, endpoint: &Endpoint, network: &Network) -> Result<Queues, Error> {
        match endpoint.backend {
            Backend::TapPlain => {
                let (sandbox, name) = self.find_in_sandbox(endpoint).await?;
                let tap = sandbox.ns.run(|| PlainTap::attach(&name))??;
                Ok(boxed(vec![tap]))
            }
            Backend::Tap | Backend::Host => {
                let (sandbox, name) = self.find_in_sandbox(endpoint).await?;
                let builder = TapBuilder::new(&name)
                    .queues(self.workers)
                    .persistence(Persistence::Persistent);
                let taps = sandbox.ns.run(|| builder.attach())??;
                Ok(boxed(taps))
            }
            Backend::Packet | Backend::Xdp => self.open_veth(endpoint, network),
            Backend::Nic | Backend::NicXdp => self.take_nic(endpoint, network).await,
        }
    }

    /// Brings an adopted device to what the model says: its MAC, MTU, addresses, state and
    /// default route may have been changed while nobody watched. What somebody has added stays.
    /// Returns what differed, in words.
    ///
    /// # Errors
    /// When the sandbox or the device is gone, or the kernel refuses.
    pub async fn repair(
        &self,
        endpoint: &Endpoint,
        network: &Network,
    ) -> Result<Vec<String>, Error> {
        if endpoint.backend.is_nic() {
            return Ok(Vec::new());
        }
        let sandbox = Sandbox::open(endpoint)?;
        let netlink = &sandbox.netlink;
        let Some(link) = self.find(netlink, endpoint).await? else {
            return Ok(Vec::new());
        };
        let mut repaired = Vec::new();
        if link.mac != Some(endpoint.mac) {
            netlink.set_mac(link.index, endpoint.mac).await?;
            repaired.push(format!("MAC {}", endpoint.mac));
        }
        if link.mtu != u32::from(network.mtu) {
            netlink.set_mtu(link.index, network.mtu.into()).await?;
            repaired.push(format!("MTU {}", network.mtu));
        }
        let present = netlink.addresses().await?;
        for prefix in addresses_inside(endpoint, network) {
            let there = |a: &Address| a.link == link.index && a.prefix == prefix;
            if !present.iter().any(there) {
                let off = DuplicateDetection::Off;
                netlink.add_address(link.index, prefix, off).await?;
                repaired.push(format!("address {prefix}"));
            }
        }
        if !link.up {
            netlink.set_up(link.index).await?;
            repaired.push("state up".to_owned());
        }
        for gateway in add_default_routes(netlink, link.index, endpoint, network).await? {
            repaired.push(format!("default route by {gateway}"));
        }
        for route in add_static_routes(netlink, link.index, endpoint).await? {
            repaired.push(format!("route {route}"));
        }
        Ok(repaired)
    }

    /// The sandbox, and the name that the device has in it by now.
    async fn find_in_sandbox(&self, endpoint: &Endpoint) -> Result<(Sandbox, String), Error> {
        let sandbox = Sandbox::open(endpoint)?;
        let link = self.find(&sandbox.netlink, endpoint).await?;
        let name = link.map_or_else(|| endpoint.ifname.clone(), |link| link.name);
        Ok((sandbox, name))
    }

    /// Removes an endpoint's device, wherever in its life it is. The dataplane must have closed
    /// it. That it is gone already is no error.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    pub async fn remove(&self, endpoint: &Endpoint) -> Result<(), Error> {
        if endpoint.backend.is_nic() {
            return self.unguard_nic(&endpoint.ifname);
        }
        if endpoint.backend.is_veth() {
            // The host end takes the other along, and outlives an unreachable sandbox.
            return self.remove_link(&self.netlink, endpoint).await;
        }
        match Sandbox::open_if_there(endpoint)? {
            Some(sandbox) => self.remove_from(&sandbox, endpoint).await,
            None => Ok(()),
        }
    }

    async fn remove_from(&self, sandbox: &Sandbox, endpoint: &Endpoint) -> Result<(), Error> {
        if endpoint.backend.is_veth() {
            self.remove_link(&self.netlink, endpoint).await?;
        }
        self.remove_link(&sandbox.netlink, endpoint).await
    }

    async fn remove_link(&self, netlink: &Netlink, endpoint: &Endpoint) -> Result<(), Error> {
        let Some(link) = self.find(netlink, endpoint).await? else {
            return Ok(());
        };
        match netlink.delete(link.index).await {
            Err(error) if !error.is(nix::errno::Errno::ENODEV) => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    async fn find(
        &self,
        netlink: &Netlink,
        endpoint: &Endpoint,
    ) -> Result<Option<Link>, link::Error> {
        let (alias, name) = (self.alias(endpoint), self.own_name(endpoint));
        let ours = |link: &Link| link.alias.as_deref() == Some(&alias) || link.name == name;
        Ok(netlink.links().await?.into_iter().find(ours))
    }
}

/// The addresses of the model, with their subnets' lengths. The host's own move to its port by
/// themselves, with all that belongs to them.
fn addresses_inside(endpoint: &Endpoint, network: &Network) -> Vec<Prefix> {
    if endpoint.comes_with_nic() {
        return Vec::new();
    }
    let with_len = |address: &IpAddr| {
        let subnet = network.subnet_of(*address)?;
        Some(Prefix::new(*address, subnet.prefix.prefix_len()))
    };
    endpoint.addresses.iter().filter_map(with_len).collect()
}

/// An endpoint's sandbox while something is done in it.
struct Sandbox {
    ns: Netns,
    netlink: Netlink,
}

impl Sandbox {
    /// Opens the sandbox, and makes sure that it is still the same.
    fn open(endpoint: &Endpoint) -> Result<Self, Error> {
        let path = &endpoint.sandbox.path;
        Self::open_if_there(endpoint)?.ok_or_else(|| {
            let (path, name) = (path.display(), &endpoint.name);
            Error::Invalid(format!(
                "the network namespace {path} of endpoint '{name}' is gone; detach the endpoint"
            ))
        })
    }

    /// The sandbox, or `None` when there is none at the path any more, or another one.
    fn open_if_there(endpoint: &Endpoint) -> Result<Option<Self>, Error> {
        // Looked at before it is opened: a path such as /proc/PID/fd/N can lead to a socket or a
        // pipe by now, which cannot be opened, or not without side effects.
        if !sandbox_is_there(endpoint) {
            return Ok(None);
        }
        let ns = match Netns::from_path(&endpoint.sandbox.path) {
            Ok(ns) => ns,
            Err(crate::netns::Error::NotANamespace(_)) => return Ok(None),
            Err(_) if !sandbox_is_there(endpoint) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if ns.id().inode() != endpoint.sandbox.inode {
            return Ok(None);
        }
        let netlink = Netlink::open(&ns)?;
        Ok(Some(Self { ns, netlink }))
    }
}

impl Sandbox {
    /// Keeps what the sandbox knows of its neighbours while no daemon holds its device: the kernel
    /// forgets them with the carrier otherwise (`neigh_carrier_down`), loses its next question,
    /// and asks again after a second. A restart took 1,150 ms of its traffic instead of 160.
    ///
    /// Linux 5.16 has the settings; before, or without IPv6, an outage is longer.
    async fn keep_neighbours(&self, index: u32, endpoint: &Endpoint) -> Result<(), Error> {
        if let Err(error) = self.netlink.keep_ipv4_neighbours(index).await {
            tracing::debug!(%error, "cannot keep the neighbours of a sandbox");
        }
        // Of IPv6 there is no netlink attribute, and a path below /proc/sys costs the more the more
        // namespaces there are: for those alone who speak it.
        if endpoint.addresses.iter().all(IpAddr::is_ipv4) {
            return Ok(());
        }
        let path = format!(
            "/proc/sys/net/ipv6/conf/{}/ndisc_evict_nocarrier",
            endpoint.ifname
        );
        self.ns.run(|| {
            if let Err(error) = std::fs::write(&path, "0") {
                tracing::debug!(path, %error, "cannot keep the neighbours of a sandbox");
            }
        })?;
        Ok(())
    }
}

/// Whether the sandbox's namespace is still at its path. A look from outside: one system call.
pub fn sandbox_is_there(endpoint: &Endpoint) -> bool {
    use std::os::unix::fs::MetadataExt;
    let status = std::fs::metadata(&endpoint.sandbox.path);
    status.is_ok_and(|status| status.ino() == endpoint.sandbox.inode)
}

/// Opens a persistent multi-queue TAP of the host, or makes it.
pub(crate) fn open_or_create_tap(
    ns: &Netns,
    name: &str,
    workers: usize,
) -> Result<Vec<Tap>, Error> {
    let builder = TapBuilder::new(name)
        .queues(workers)
        .persistence(Persistence::Persistent);
    ns.run(|| match builder.attach() {
        Err(TapError::NotFound { .. }) => builder.create(),
        other => other,
    })?
    .map_err(Error::from)
}

/// The queues behind the trait.
pub(crate) fn boxed<P: PortIo + 'static>(queues: Vec<P>) -> Queues {
    queues
        .into_iter()
        .map(|queue| Box::new(queue) as Box<dyn PortIo>)
        .collect()
}
