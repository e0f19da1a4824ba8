//! `plug`: pipework's grammar, for those whose scripts and fingers have it.

use std::io::{self, Write};
use std::net::IpAddr;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use dataplane_core::addr::{MacAddr, Prefix};
use ipnet::IpNet;

use super::client::{Client, escape};
use super::guest::Guest;
use super::lease;
use crate::api::types::{EndpointCreate, EndpointView, NetworkCreate, NetworkView, NicBody};
use crate::api::vlans::{PortVlansView, VlanAdd};
use crate::link::Netlink;
use crate::link::inet::{DuplicateDetection, Route};
use crate::link::watch::Watch;
use crate::netns::Netns;

/// The interface's name inside, as pipework has it.
const IFNAME_DEFAULT: &str = "eth1";
/// The VLAN that a new port is in.
const VLAN_DEFAULT: u16 = 1;

/// `plug`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  causeway plug br1 web1 192.168.1.1/24                    a network that is there, or a new one
  causeway plug eth2 4fa6e0f0c678 50.19.169.157/24         a card of the host, shared by containers
  causeway plug br1 4711 192.168.4.25/20@192.168.4.1       and the default route by that router
  causeway plug eth1 web1 dhcp                             an address of the LAN's server
  causeway plug br1 -i eth2 web1 0/0                       no address
  causeway plug br1 web1 10.1.1.2/24 fa:de:b0:99:52:1c@30  a MAC, and VLAN 30
  causeway plug route web1 add 10.0.5.0/24 via 192.168.1.9
  causeway plug --wait -i eth1                             inside: until the interface is up

A container is named by its namespace (name or path), a process id, or its id. A card gets a network of its
name, without a gateway of the switch; the host must have no address on it (see network create --nic).")]
pub struct PlugArgs {
    /// IF CONTAINER IP/LEN[@GATEWAY]|dhcp|0/0 [MAC][@VLAN], or route CONTAINER add|del DEST [via IP] [dev IF]
    #[arg(required_unless_present = "wait", value_name = "WORD")]
    pub words: Vec<String>,
    /// The interface's name inside [default: eth1]
    #[arg(short = 'i', long, value_name = "IFNAME")]
    pub ifname: Option<String>,
    /// Wait, inside a sandbox, until its interface is there and up
    #[arg(long, conflicts_with = "words")]
    pub wait: bool,
}

/// Does what was asked for.
pub(super) async fn plug(client: &Client, args: PlugArgs) -> anyhow::Result<()> {
    let ifname = args.ifname.as_deref().unwrap_or(IFNAME_DEFAULT);
    if args.wait {
        return wait(ifname).await;
    }
    let words: Vec<&str> = args.words.iter().map(String::as_str).collect();
    match &words[..] {
        ["route", guest, command @ ..] => route(guest, ifname, command).await,
        [interface, guest, address] => connect(client, interface, ifname, guest, address, "").await,
        [interface, guest, address, mac] => {
            connect(client, interface, ifname, guest, address, mac).await
        }
        _ => bail!(
            "give IF CONTAINER IP/LEN[@GATEWAY] [MAC][@VLAN]; `causeway plug --help` has examples"
        ),
    }
}

/// What is said of the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Address(IpNet, Option<IpAddr>),
    Dhcp,
    Nothing,
}

impl Wanted {
    fn read(word: &str) -> anyhow::Result<Self> {
        match word {
            "dhcp" => return Ok(Self::Dhcp),
            "0/0" => return Ok(Self::Nothing),
            _ => {}
        }
        let (address, router) = match word.split_once('@') {
            Some((address, router)) => (address, Some(router)),
            None => (word, None),
        };
        if address.parse::<IpAddr>().is_ok() {
            bail!("'{address}' has no length of its subnet; maybe you meant {address}/24");
        }
        let net = address.parse().map_err(|_| {
            anyhow!("'{word}' is no address; give IP/LEN[@GATEWAY], dhcp, or 0/0 for none")
        })?;
        let router = router.map(str::parse).transpose();
        let router = router.map_err(|_| anyhow!("the gateway of '{word}' is no IP address"))?;
        Ok(Self::Address(net, router))
    }

    const fn net(&self) -> Option<IpNet> {
        match self {
            Self::Address(net, _) => Some(*net),
            Self::Dhcp | Self::Nothing => None,
        }
    }
}

async fn connect(
    client: &Client,
    interface: &str,
    ifname: &str,
    guest: &str,
    address: &str,
    mac: &str,
) -> anyhow::Result<()> {
    let wanted = Wanted::read(address)?;
    let (mac, vlan) = read_mac(mac)?;
    let guest = Guest::find(guest)?;
    let ns = guest.open()?;
    let network = network_for(client, interface, wanted.net(), vlan).await?;
    // A network that knows no subnet has no addresses to give, nor to refuse.
    let given = wanted.net().filter(|_| !network.subnets.is_empty());
    if let Some(net) = given {
        check_len(&network, net)?;
    }
    let without = ["ipv4", "ipv6"].into_iter().zip([true, false]);
    let without = without.filter(|(_, v4)| given.is_none_or(|net| net.addr().is_ipv4() != *v4));
    let (netns, pid) = match &guest {
        Guest::Netns(netns) => (Some(netns.clone()), None),
        Guest::Pid(pid) => (None, Some(*pid)),
    };
    let body = EndpointCreate {
        network: network.name.clone(),
        netns,
        pid,
        ifname: Some(ifname.to_owned()),
        addresses: given.iter().map(|net| net.addr().to_string()).collect(),
        without: without.map(|(family, _)| family.to_owned()).collect(),
        mac: mac.map(|mac| mac.to_string()),
        ..EndpointCreate::default()
    };
    let made: EndpointView = client.post("/v1/endpoints", &body).await?;
    let finished = finish(client, &network, &made, &ns, wanted, vlan).await;
    match finished {
        Ok(addresses) => {
            let addresses = addresses.join(" ");
            writeln!(io::stdout(), "{} {ifname} {addresses}", made.name)?;
            Ok(())
        }
        Err(error) => {
            // Nothing is left behind.
            let path = format!("/v1/endpoints/{}", escape(&made.name));
            client.delete(&path).await?;
            Err(error)
        }
    }
}

/// Does in the sandbox, and for its VLAN, what an attachment alone does not. Returns its addresses.
async fn finish(
    client: &Client,
    network: &NetworkView,
    made: &EndpointView,
    ns: &Netns,
    wanted: Wanted,
    vlan: Option<u16>,
) -> anyhow::Result<Vec<String>> {
    if let Some(vlan) = vlan {
        put_in_vlan(client, network, made, vlan).await?;
    }
    let netlink = Netlink::open(ns)?;
    let index = netlink.require(&made.ifname).await?.index;
    let (address, router) = match wanted {
        Wanted::Nothing => return Ok(Vec::new()),
        Wanted::Address(net, router) => (Prefix::new(net.addr(), net.prefix_len()), router),
        Wanted::Dhcp => {
            let ifname = made.ifname.clone();
            let ns = ns.clone();
            let asked = tokio::task::spawn_blocking(move || lease::ask(&ns, &ifname));
            let lease = asked.await.context("the DHCP client's thread ended")??;
            (lease.address, lease.router)
        }
    };
    netlink
        .add_address(index, address, DuplicateDetection::Off)
        .await?;
    if let Some(router) = router {
        put_default_route(&netlink, index, address, router).await?;
    }
    Ok(vec![address.to_string()])
}

/// Leads all that has no other way to a router, in place of whoever it went to.
async fn put_default_route(
    netlink: &Netlink,
    index: u32,
    address: Prefix,
    router: IpAddr,
) -> anyhow::Result<()> {
    let routes = netlink.routes().await?;
    let same = |other: &Route| other.prefix.address.is_ipv4() == router.is_ipv4();
    for default in routes.into_iter().filter(|r| r.prefix.len == 0 && same(r)) {
        netlink.remove_route(default).await?;
    }
    if !address.contains(router) {
        let len = if router.is_ipv4() { 32 } else { 128 };
        let to = Route::on_link(Prefix::new(router, len), index);
        netlink.add_route(to).await?;
    }
    netlink.add_route(Route::default_by(router, index)).await?;
    Ok(())
}

/// The network that a word means: one of that name, or that of the card; or a new one.
async fn network_for(
    client: &Client,
    interface: &str,
    net: Option<IpNet>,
    vlan: Option<u16>,
) -> anyhow::Result<NetworkView> {
    let networks: Vec<NetworkView> = client.get("/v1/networks").await?;
    let of_card = |network: &&NetworkView| {
        let nic = network.nic.as_ref();
        nic.is_some_and(|nic| nic.name == interface)
    };
    let named = networks.iter().find(|network| network.name == interface);
    if let Some(network) = named.or_else(|| networks.iter().find(of_card)) {
        if vlan.is_some() && !network.vlan_filtering {
            bail!(
                "VLANs do not count in network '{0}'; let them by `causeway network set {0} \
                 --vlan-filtering on`, or leave @VLAN out",
                network.name
            );
        }
        return Ok(network.clone());
    }
    let subnet = net.map(|net| net.trunc().to_string());
    let (subnet, subnet6) = match net {
        Some(IpNet::V6(_)) => (None, subnet),
        Some(IpNet::V4(_)) | None => (subnet, None),
    };
    // pipework makes bridges of such names, and takes all others for cards.
    let is_bridge = ["br", "ovs"].iter().any(|word| interface.starts_with(word));
    let body = NetworkCreate {
        name: interface.to_owned(),
        subnet,
        subnet6,
        lan_gateway: vec!["none".to_owned()],
        vlan_filtering: vlan.map(|_| true),
        nic: (!is_bridge).then(|| NicBody {
            name: interface.to_owned(),
            ..NicBody::default()
        }),
        ..NetworkCreate::default()
    };
    let made: NetworkView = client.post("/v1/networks", &body).await?;
    eprintln!("network '{}' was created", made.name);
    Ok(made)
}

/// The subnet's length is the network's to say.
fn check_len(network: &NetworkView, net: IpNet) -> anyhow::Result<()> {
    let subnets = network
        .subnets
        .iter()
        .filter_map(|s| s.subnet.parse::<IpNet>().ok());
    let mut holding = subnets.filter(|subnet| subnet.contains(&net.addr()));
    match holding.next() {
        Some(subnet) if subnet.prefix_len() != net.prefix_len() => bail!(
            "network '{}' has the subnet {subnet}; give {}/{}",
            network.name,
            net.addr(),
            subnet.prefix_len()
        ),
        Some(_) | None => Ok(()),
    }
}

/// Makes a sandbox's port an access port of a VLAN, which the card carries with tags.
async fn put_in_vlan(
    client: &Client,
    network: &NetworkView,
    made: &EndpointView,
    vlan: u16,
) -> anyhow::Result<()> {
    let add = |tagged: bool| VlanAdd {
        vlans: vlan.to_string(),
        pvid: !tagged,
        untagged: !tagged,
    };
    let port = escape(&made.name);
    let path = format!("/v1/ports/{port}/vlans");
    let _: PortVlansView = client.post(&path, &add(false)).await?;
    if vlan != VLAN_DEFAULT {
        client.delete(&format!("{path}/{VLAN_DEFAULT}")).await?;
    }
    if let Some(nic) = &network.nic {
        let path = format!("/v1/ports/{}/vlans", escape(&nic.name));
        let _: PortVlansView = client.post(&path, &add(true)).await?;
    }
    Ok(())
}

/// Reads `[MAC][@VLAN]`.
fn read_mac(word: &str) -> anyhow::Result<(Option<MacAddr>, Option<u16>)> {
    let (mac, vlan) = match word.split_once('@') {
        Some((mac, vlan)) => (mac, Some(vlan)),
        None => (word, None),
    };
    let mac = (!mac.is_empty()).then(|| mac.parse()).transpose();
    let mac = mac.map_err(|error| anyhow!("{error}"))?;
    let number = vlan.map(str::parse::<i64>).transpose();
    let number = number.map_err(|_| anyhow!("'{word}' names no VLAN; give [MAC]@VLAN"))?;
    let vlan = number.map(crate::vlans::vlan).transpose()?;
    Ok((mac, vlan.map(|vlan| vlan.0)))
}

/// `route CONTAINER add|del|replace DEST [via IP] [dev IF]`
async fn route(guest: &str, ifname: &str, command: &[&str]) -> anyhow::Result<()> {
    let usage = "give: route CONTAINER add|replace|del DESTINATION [via IP] [dev IF]";
    let [verb, destination, rest @ ..] = command else {
        bail!(usage);
    };
    let (mut router, mut device) = (None, None);
    for pair in rest.chunks(2) {
        match pair {
            ["via", ip] => {
                let ip: IpAddr = ip.parse().map_err(|_| anyhow!("'{ip}' is no IP address"))?;
                router = Some(ip);
            }
            ["dev", name] => device = Some(*name),
            _ => bail!("{usage}, not '{}'", pair.join(" ")),
        }
    }
    let ns = Guest::find(guest)?.open()?;
    let netlink = Netlink::open(&ns)?;
    let prefix = destination_of(destination, router)?;
    let index = match (device, router) {
        (Some(name), _) => netlink.require(name).await?.index,
        (None, None) => netlink.require(ifname).await?.index,
        (None, Some(router)) => link_to(&netlink, router).await?,
    };
    let mut route = Route::on_link(prefix, index);
    route.gateway = router;
    match *verb {
        "add" | "replace" => netlink.add_route(route).await?,
        "del" => {
            let fits = |other: &&Route| {
                other.prefix == prefix && router.is_none_or(|router| other.gateway == Some(router))
            };
            let routes = netlink.routes().await?;
            let Some(found) = routes.iter().find(fits) else {
                bail!(
                    "'{guest}' has no route to {destination}; `ip route` in it lists those that it has"
                );
            };
            netlink.remove_route(*found).await?;
        }
        other => bail!("{usage}, not '{other}'"),
    }
    Ok(())
}

/// Where a route leads: `default`, an address or a prefix.
fn destination_of(word: &str, router: Option<IpAddr>) -> anyhow::Result<Prefix> {
    if word == "default" {
        let v6 = router.is_some_and(|router| router.is_ipv6());
        let any: IpAddr = if v6 { [0; 16].into() } else { [0; 4].into() };
        return Ok(Prefix::new(any, 0));
    }
    if let Ok(address) = word.parse::<IpAddr>() {
        return Ok(Prefix::new(
            address,
            if address.is_ipv4() { 32 } else { 128 },
        ));
    }
    let net: IpNet = word
        .parse()
        .map_err(|_| anyhow!("'{word}' is no destination; give default, an address or a prefix"))?;
    let net = net.trunc();
    Ok(Prefix::new(net.addr(), net.prefix_len()))
}

/// The link by which a router is a neighbour.
async fn link_to(netlink: &Netlink, router: IpAddr) -> anyhow::Result<u32> {
    let mut routes = netlink.routes().await?;
    routes.retain(|route| route.gateway.is_none() && route.prefix.contains(router));
    let longest = routes.iter().max_by_key(|route| route.prefix.len);
    longest.map(|route| route.link).ok_or_else(|| {
        anyhow!("{router} is no neighbour on any interface there; name one by dev IF")
    })
}

/// Waits in this namespace until an interface is there and has its cable.
async fn wait(ifname: &str) -> anyhow::Result<()> {
    let ns = Netns::current()?;
    let mut watch = Watch::open(&ns)?;
    let netlink = Netlink::open(&ns)?;
    while !netlink
        .link(ifname)
        .await?
        .is_some_and(|link| link.up && link.carrier)
    {
        watch.changed().await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_pipeworks_readme_are_read() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let with = Wanted::Address(net("192.168.4.25/20"), Some([192, 168, 4, 1].into()));
        assert_eq!(Wanted::read("192.168.4.25/20@192.168.4.1").unwrap(), with);
        let without = Wanted::Address(net("192.168.1.1/24"), None);
        assert_eq!(Wanted::read("192.168.1.1/24").unwrap(), without);
        assert_eq!(Wanted::read("dhcp").unwrap(), Wanted::Dhcp);
        assert_eq!(Wanted::read("0/0").unwrap(), Wanted::Nothing);
        for (wrong, part) in [
            ("192.168.1.2", "maybe you meant 192.168.1.2/24"),
            ("192.168.1.2/99", "is no address"),
            ("192.168.1.2/24@x", "gateway"),
        ] {
            let error = Wanted::read(wrong).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let mac: MacAddr = "26:2e:71:98:60:8f".parse().unwrap();
        assert_eq!(read_mac("26:2e:71:98:60:8f").unwrap(), (Some(mac), None));
        assert_eq!(
            read_mac("26:2e:71:98:60:8f@30").unwrap(),
            (Some(mac), Some(30))
        );
        assert_eq!(read_mac("@10").unwrap(), (None, Some(10)));
        assert_eq!(read_mac("").unwrap(), (None, None));
        for wrong in ["@4095", "@x", "26:2e", "@"] {
            assert!(read_mac(wrong).is_err(), "{wrong}");
        }
        let to = |word: &str| destination_of(word, None).unwrap().to_string();
        assert_eq!(to("default"), "0.0.0.0/0");
        assert_eq!(to("10.0.5.6/24"), "10.0.5.0/24");
        assert_eq!(to("10.0.5.6"), "10.0.5.6/32");
    }
}
