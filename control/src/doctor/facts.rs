//! What is so on this host, read without changing anything.

use std::fs;
use std::io;
use std::path::Path;

use dataplane_core::addr::MacAddr;
use ipnet::IpNet;
use nix::sys::resource::{Resource, getrlimit};
use tokio::process::Command;

use crate::api::following::EventView;
use crate::api::types::{EndpointView, NetworkView, StatusView};
use crate::error::Error;
use crate::hostnet::HostState;
use crate::link::Netlink;
use crate::{host_link, rights};

/// The device by which TAPs are made.
const TUN: &str = "/dev/net/tun";

/// What is so on this host.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Capabilities of the daemon's work that this process lacks.
    pub missing_capabilities: Vec<String>,
    /// Why the device by which TAPs are made cannot be opened.
    pub tun_problem: Option<String>,
    /// What becomes of forwarded packets that no rule of a packet filter names.
    pub forward: Forward,
    /// Frames between ports of a kernel bridge pass the packet filter.
    pub bridge_filtered: bool,
    /// Interfaces that drop what comes by another way than their answers take (`rp_filter` 1).
    pub strict_reverse_path: Vec<String>,
    /// The host's interfaces.
    pub links: Vec<LinkFacts>,
    /// Prefixes that the host has routes for, and by which interface; ours left out.
    pub routes: Vec<(IpNet, String)>,
    /// Open files that a process may have.
    pub open_files_max: u64,
    /// Neighbours that the kernel remembers (`gc_thresh3`), of IPv4 and of IPv6.
    pub neighbours_max: [u64; 2],
    /// What the daemon says; or why it says nothing.
    pub daemon: Result<DaemonFacts, String>,
}

/// What a packet filter does with forwarded packets by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Forward {
    /// They pass.
    #[default]
    Accepted,
    /// They are dropped; by which chain.
    Dropped(String),
    /// There is no tool that knows.
    Unknown,
}

/// An interface of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkFacts {
    /// Its name.
    pub name: String,
    /// Its MAC.
    pub mac: Option<MacAddr>,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
    /// A member of a kernel bridge or a bond.
    pub enslaved: bool,
}

/// What the daemon says.
#[derive(Clone, Debug, Default)]
pub struct DaemonFacts {
    /// `GET /v1/status`
    pub status: Option<StatusView>,
    /// `GET /v1/networks`
    pub networks: Vec<NetworkView>,
    /// `GET /v1/endpoints`
    pub endpoints: Vec<EndpointView>,
    /// `GET /v1/events`
    pub events: Vec<EventView>,
}

impl Facts {
    /// Reads what the host says, of the network namespace that this program is in.
    ///
    /// # Errors
    /// When the kernel does not answer at all.
    pub async fn read(daemon: Result<DaemonFacts, String>) -> Result<Self, Error> {
        let host = HostState::read(&Netlink::open_here()?).await?;
        let ours = host.link(host_link::IFNAME).map(|link| link.index);
        let links = host.links.iter().filter(|link| !link.loopback);
        let links = links.map(|link| LinkFacts {
            name: link.name.clone(),
            mac: link.mac,
            mtu: link.mtu,
            enslaved: link.controller.is_some(),
        });
        let routes = host.foreign_routes(ours).into_iter();
        let strict = host.links.iter().filter(|link| is_strict(&link.name));
        Ok(Self {
            missing_capabilities: rights::missing(),
            tun_problem: open_tun().err().map(|error| error.to_string()),
            forward: forward().await,
            bridge_filtered: number("/proc/sys/net/bridge/bridge-nf-call-iptables") == Some(1),
            strict_reverse_path: strict.map(|link| link.name.clone()).collect(),
            links: links.collect(),
            routes: routes
                .map(|route| (route.prefix, route.interface))
                .collect(),
            open_files_max: getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard),
            neighbours_max: ["ipv4", "ipv6"].map(|family| {
                let path = format!("/proc/sys/net/{family}/neigh/default/gc_thresh3");
                number(&path).unwrap_or(u64::MAX)
            }),
            daemon,
        })
    }
}

fn open_tun() -> io::Result<fs::File> {
    fs::File::options().read(true).write(true).open(TUN)
}

fn number(path: impl AsRef<Path>) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The kernel takes the larger of an interface's own setting and that of `all`
/// (Documentation/networking/ip-sysctl.rst).
fn is_strict(interface: &str) -> bool {
    let of = |name: &str| number(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter")).unwrap_or(0);
    of(interface).max(of("all")) == 1
}

/// What nft(8) or iptables(8) say of forwarded packets; the latter's older variant has tables that the
/// former does not see.
async fn forward() -> Forward {
    let by_nft = output("nft", &["-j", "list", "chains"]).await;
    let by_iptables = output("iptables", &["-S", "FORWARD"]).await;
    if by_nft.is_none() && by_iptables.is_none() {
        return Forward::Unknown;
    }
    let dropping = by_nft.as_deref().and_then(dropping_chain);
    let dropping = dropping.or_else(|| {
        let drops = by_iptables?.lines().any(|line| line == "-P FORWARD DROP");
        drops.then(|| "iptables' FORWARD".to_owned())
    });
    dropping.map_or(Forward::Accepted, Forward::Dropped)
}

/// What a program says on its standard output, if it is there and content.
async fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().await.ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then_some(text)
}

/// The first chain of nft's listing that drops forwarded packets by default.
fn dropping_chain(listing: &str) -> Option<String> {
    let listing: serde_json::Value = serde_json::from_str(listing).ok()?;
    let objects = listing["nftables"].as_array()?;
    let chains = objects.iter().filter_map(|object| object.get("chain"));
    let mut dropping =
        chains.filter(|chain| chain["hook"] == "forward" && chain["policy"] == "drop");
    let chain = dropping.next()?;
    let word = |key: &str| chain[key].as_str().unwrap_or("?");
    Some(format!(
        "{} {} {}",
        word("family"),
        word("table"),
        word("name")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_that_drops_forwarded_packets_is_named() {
        let listing = r#"{"nftables": [
            {"metainfo": {"version": "1.0.6"}},
            {"chain": {"family": "ip", "table": "filter", "name": "INPUT", "hook": "input",
                       "prio": 0, "policy": "drop"}},
            {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward",
                       "prio": 0, "policy": "drop"}}
        ]}"#;
        assert_eq!(
            dropping_chain(listing).as_deref(),
            Some("ip filter FORWARD")
        );
        let accepting = listing.replace(
            r#""prio": 0, "policy": "drop"}}
        ]"#,
            r#""prio": 0, "policy": "accept"}}
        ]"#,
        );
        assert_ne!(listing, accepting);
        assert_eq!(dropping_chain(&accepting), None);
        assert_eq!(dropping_chain("no JSON"), None);
    }
}
