//! Links, addresses, routes and neighbours of one network namespace, by rtnetlink.
//!
//! A [`Netlink`] is a netlink socket that was opened inside a namespace and stays bound to it,
//! so its methods can be called from any thread and never need `setns`. It must be opened within
//! a tokio runtime, whose task drives the socket until the last clone is dropped.
//!
//! This file has the links; [`inet`] has what IP puts on them, [`saved`] what of it is kept to be put
//! back, and [`watch`] tells of changes.

pub mod inet;
pub mod saved;
pub mod watch;

use std::io;
use std::os::fd::AsRawFd;

use dataplane_core::addr::MacAddr;
use dataplane_port::Framing;
use futures::{Stream, StreamExt};
use nix::errno::Errno;
use rtnetlink::packet_core::{
    DefaultNla, Emitable, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE,
    NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth,
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use crate::netns::Netns;

/// Longest name of an interface: `IFNAMSIZ` of `linux/if.h`, less the terminating zero.
pub const IFNAME_LEN_MAX: usize = 15;
/// Longest alias of an interface: `IFALIASZ` of `linux/if.h`, less the terminating zero.
pub const ALIAS_LEN_MAX: usize = 255;
/// What the aliases of our links begin with.
const ALIAS_PREFIX: &str = "causeway:";
/// Frames that a TAP keeps for a worker that the scheduler has kept away: as many as other Ethernet
/// devices (`DEFAULT_TX_QUEUE_LEN`), where a TAP alone has 500, 2 ms of small frames at 250,000 a
/// second and less than one turn of another thread.
pub const TAP_QUEUE_FRAMES: u32 = 1_000;

/// `IFLA_INET_CONF` of `linux/if_link.h`.
const IFLA_INET_CONF: u16 = 1;
/// `IPV4_DEVCONF_ARP_EVICT_NOCARRIER` of `linux/ip.h`.
const ARP_EVICT_NOCARRIER: u16 = 33;

/// What could not be done to which object, and what the kernel said.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {object}: {source}")]
pub struct Error {
    /// What was tried.
    pub action: &'static str,
    /// On what.
    pub object: String,
    /// What the kernel said.
    pub source: io::Error,
}

impl Error {
    /// Whether the kernel gave this reason.
    pub fn is(&self, errno: Errno) -> bool {
        self.source.raw_os_error() == Some(errno as i32)
    }

    fn new(action: &'static str, object: impl Into<String>, source: io::Error) -> Self {
        Self {
            action,
            object: object.into(),
            source,
        }
    }
}

impl From<io::Error> for Error {
    fn from(source: io::Error) -> Self {
        Self::new("open", "a netlink socket", source)
    }
}

/// Why a text cannot be the name of an interface.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' cannot name an interface: write 1 to 15 characters without '/', ':' and spaces")]
pub struct IfNameError(pub String);

/// Checks a name by the kernel's own rule (`dev_valid_name` of `net/core/dev.c`).
///
/// # Errors
/// [`IfNameError`] with the name.
pub fn check_ifname(name: &str) -> Result<(), IfNameError> {
    let bad = name.is_empty()
        || name.len() > IFNAME_LEN_MAX
        || name == "."
        || name == ".."
        || name
            .chars()
            .any(|c| matches!(c, '/' | ':' | '\0' | '%') || c.is_whitespace() || c.is_control());
    if bad {
        return Err(IfNameError(name.to_owned()));
    }
    Ok(())
}

/// A link as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The interface index.
    pub index: u32,
    /// The interface name.
    pub name: String,
    /// The driver's name (`veth`, `tun`, ...); empty for hardware and `lo`.
    pub kind: String,
    /// The link layer, as `linux/if_arp.h` numbers it.
    pub layer: u16,
    /// The MAC, of links that have one.
    pub mac: Option<MacAddr>,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
    /// Set up by an administrator.
    pub up: bool,
    /// The other side is there.
    pub carrier: bool,
    /// `lo`.
    pub loopback: bool,
    /// The bridge or bond that it is a member of.
    pub controller: Option<u32>,
    /// The link that it is made of: a VLAN's or macvlan's, a veth's peer.
    pub parent: Option<u32>,
    /// The alias; ours carry one, so that they are recognised after a crash.
    pub alias: Option<String>,
    /// The root qdisc's kind.
    pub qdisc: String,
    /// Frames that the device itself keeps, or its qdisc: `txqueuelen`.
    pub tx_queue_frames: u32,
    /// Counters.
    pub stats: LinkStats,
}

impl Link {
    /// Whether it is one of Causeway's own, of this daemon or another.
    pub fn is_ours(&self) -> bool {
        let alias = self.alias.as_deref();
        alias.is_some_and(|alias| alias.starts_with(ALIAS_PREFIX))
    }

    /// What the link's packets begin with; `None` for a link layer that we do not know.
    pub const fn framing(&self) -> Option<Framing> {
        // ARPHRD_ETHER, ARPHRD_LOOPBACK and ARPHRD_NONE of linux/if_arp.h.
        match self.layer {
            1 | 772 => Some(Framing::Ethernet),
            0xfffe => Some(Framing::Ip),
            _ => None,
        }
    }
}

/// Counters of a link, as its own namespace sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Frames received.
    pub rx_frames: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Frames lost on receiving.
    pub rx_dropped: u64,
    /// Frames lost on sending: for a TAP, the ones that its reader was too slow to take.
    pub tx_dropped: u64,
}

/// One end of a veth pair to be.
#[derive(Clone, Copy, Debug)]
pub struct VethEnd<'a> {
    /// The interface name.
    pub name: &'a str,
    /// Its MAC; `None` for a random one.
    pub mac: Option<MacAddr>,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
}

/// A netlink socket of one namespace.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
}

impl Netlink {
    /// Opens a socket in `ns`, within a tokio runtime.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the socket not be opened.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open(ns: &Netns) -> Result<Self, Error> {
        let runtime = tokio::runtime::Handle::current();
        ns.run(|| {
            let _context = runtime.enter();
            Self::open_here()
        })
        .map_err(|error| io::Error::other(error.to_string()))?
    }

    /// Opens a socket in the namespace of the calling thread, within a tokio runtime.
    ///
    /// # Errors
    /// When the socket cannot be opened.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open_here() -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        // Ends by itself when the last handle is dropped.
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Every link.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn links(&self) -> Result<Vec<Link>, Error> {
        let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let replies = self.dump(message, "list", "the links").await?;
        Ok(replies.into_iter().filter_map(link_of_reply).collect())
    }

    /// The link of that name, if there is one.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, Error> {
        let message = LinkUnspec::new_with_name(name).build();
        self.get(message, format!("link '{name}'")).await
    }

    /// The link of that name.
    ///
    /// # Errors
    /// `ENODEV` when there is none.
    pub async fn require(&self, name: &str) -> Result<Link, Error> {
        self.link(name).await?.ok_or_else(|| {
            Error::new(
                "find",
                format!("link '{name}'"),
                io::Error::from(Errno::ENODEV),
            )
        })
    }

    /// The link of that index, if there is one.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn link_by_index(&self, index: u32) -> Result<Option<Link>, Error> {
        let message = LinkUnspec::new_with_index(index).build();
        self.get(message, format!("link {index}")).await
    }

    async fn get(&self, message: LinkMessage, object: String) -> Result<Option<Link>, Error> {
        let request = RouteNetlinkMessage::GetLink(message);
        match self.exchange(request, NLM_F_REQUEST).await {
            Ok(replies) => Ok(replies.into_iter().find_map(link_of_reply)),
            Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(None),
            Err(error) => Err(Error::new("read", object, error)),
        }
    }

    /// Creates a veth pair: `end` here, `peer` in `peer_ns` from its first moment, so that no
    /// other program ever sees it here. Both ends get the `noqueue` qdisc by nature of veth.
    ///
    /// # Errors
    /// `EEXIST` when either name is taken; nothing is left behind then.
    pub async fn create_veth(
        &self,
        end: VethEnd<'_>,
        peer: VethEnd<'_>,
        peer_ns: &Netns,
    ) -> Result<(), Error> {
        let peer_message = with_end(LinkMessageBuilder::<LinkUnspec>::new(), peer)
            .setns_by_fd(peer_ns.as_raw_fd())
            .build();
        let message = with_end(
            LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Veth),
            end,
        )
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer_message)))
        .build();
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.command(RouteNetlinkMessage::NewLink(message), flags)
            .await
            .map_err(|error| {
                let object = format!("veth pair '{}', '{}'", end.name, peer.name);
                Error::new("create", object, error)
            })
    }

    /// Creates a kernel bridge: what Causeway is compared with.
    ///
    /// # Errors
    /// `EEXIST` when the name is taken.
    pub async fn create_bridge(&self, name: &str) -> Result<(), Error> {
        let message = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Bridge)
            .name(name)
            .build();
        self.command(
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .await
        .map_err(|error| Error::new("create", format!("bridge '{name}'"), error))
    }

    /// Plugs a link into a kernel bridge.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn set_controller(&self, index: u32, bridge: u32) -> Result<(), Error> {
        self.change(index, "plug into a bridge", |link| link.controller(bridge))
            .await
    }

    /// Creates an intermediate functional block: an interface that, left down, swallows what is
    /// redirected to it.
    ///
    /// # Errors
    /// `EEXIST` when the name is taken.
    pub async fn create_ifb(&self, name: &str) -> Result<(), Error> {
        let message = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Ifb)
            .name(name)
            .build();
        self.command(
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .await
        .map_err(|error| Error::new("create", format!("link '{name}'"), error))
    }

    /// Deletes a link; a veth's peer goes with it.
    ///
    /// # Errors
    /// `ENODEV` when it is gone already.
    pub async fn delete(&self, index: u32) -> Result<(), Error> {
        let message = LinkUnspec::new_with_index(index).build();
        self.command(RouteNetlinkMessage::DelLink(message), 0)
            .await
            .map_err(|error| Error::new("delete", format!("link {index}"), error))
    }

    /// Lets a link carry frames.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn set_up(&self, index: u32) -> Result<(), Error> {
        self.change(index, "set up", |link| link.up()).await
    }

    /// Stops a link; its routes go.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn set_down(&self, index: u32) -> Result<(), Error> {
        self.change(index, "set down", |link| link.down()).await
    }

    /// Sets the largest IP packet, in bytes.
    ///
    /// # Errors
    /// `EINVAL` outside what the driver allows.
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), Error> {
        self.change(index, "set the MTU of", |link| link.mtu(mtu))
            .await
    }

    /// Sets the MAC.
    ///
    /// # Errors
    /// `EADDRNOTAVAIL` for a group or zero address.
    pub async fn set_mac(&self, index: u32, mac: MacAddr) -> Result<(), Error> {
        self.change(index, "set the MAC of", |link| link.address(mac.0.to_vec()))
            .await
    }

    /// Renames a link.
    ///
    /// # Errors
    /// `EEXIST` when the name is taken.
    pub async fn rename(&self, index: u32, name: &str) -> Result<(), Error> {
        self.change(index, "rename", |link| link.name(name)).await
    }

    /// Sets the alias, by which ours are recognised.
    ///
    /// # Errors
    /// `EINVAL` beyond [`ALIAS_LEN_MAX`] bytes.
    pub async fn set_alias(&self, index: u32, alias: &str) -> Result<(), Error> {
        self.change(index, "set the alias of", |link| link.alias(alias))
            .await
    }

    /// Switches ARP and neighbour discovery off: everything is sent to one MAC.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn set_noarp(&self, index: u32) -> Result<(), Error> {
        self.change(index, "switch ARP off on", |link| link.arp(false))
            .await
    }

    /// Moves a link into another namespace, where it arrives down and without addresses.
    ///
    /// # Errors
    /// `EEXIST` when its name is taken there.
    pub async fn move_to(&self, index: u32, ns: &Netns) -> Result<(), Error> {
        self.change(index, "move", |link| link.setns_by_fd(ns.as_raw_fd()))
            .await
    }

    /// Keeps the kernel from giving the link an IPv6 link-local address of its own, and so from
    /// speaking IPv6 on it.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn set_addr_gen_mode_none(&self, index: u32) -> Result<(), Error> {
        let spec = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let attribute = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![spec])]);
        self.change(index, "set addr_gen_mode of", |link| {
            link.append_extra_attribute(attribute)
        })
        .await
    }

    /// Keeps what the link's stack knows of its IPv4 neighbours when the carrier goes
    /// (`arp_evict_nocarrier` of ip-sysctl.rst, since Linux 5.16).
    ///
    /// By netlink and not by `/proc/sys`: there, the entries of all namespaces lie in one chain for each
    /// part of a path (`proc_sys_compare`), so that a look costs time for each of them.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn keep_ipv4_neighbours(&self, index: u32) -> Result<(), Error> {
        // The library writes such a setting only where it is not zero.
        let setting = DefaultNla::new(ARP_EVICT_NOCARRIER, 0_u32.to_ne_bytes().to_vec());
        let mut settings = vec![0; setting.buffer_len()];
        setting.emit(&mut settings);
        let spec = AfSpecInet::Other(DefaultNla::new(IFLA_INET_CONF, settings));
        let attribute = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![spec])]);
        self.change(index, "keep the neighbours of", |link| {
            link.append_extra_attribute(attribute)
        })
        .await
    }

    /// Gives the link a root qdisc without a queue. Call it before the first [`Netlink::set_up`].
    ///
    /// With the default qdisc a multi-queue TAP costs megabytes and milliseconds and drops
    /// without telling the sender; with `noqueue` a full queue is `ENOBUFS` to the sender.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn set_noqueue(&self, index: u32) -> Result<(), Error> {
        let object = || format!("link {index}");
        let ifindex = i32::try_from(index)
            .map_err(|_| Error::new("find", object(), io::Error::from(Errno::ENODEV)))?;
        let mut message = TcMessage::with_index(ifindex);
        message.header.parent = TcHandle::ROOT;
        message
            .attributes
            .push(TcAttribute::Kind("noqueue".to_owned()));
        let request = RouteNetlinkMessage::NewQueueDiscipline(message);
        self.command(request, NLM_F_CREATE | NLM_F_REPLACE)
            .await
            .map_err(|error| Error::new("set the noqueue qdisc of", object(), error))
    }

    /// Sets how many frames a TAP keeps until they are read (`txqueuelen`); each takes 8 bytes.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn set_tx_queue_frames(&self, index: u32, count: u32) -> Result<(), Error> {
        self.change(index, "set the queue of", |link| {
            link.append_extra_attribute(LinkAttribute::TxQueueLen(count))
        })
        .await
    }

    async fn change(
        &self,
        index: u32,
        action: &'static str,
        edit: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), Error> {
        let message = edit(LinkUnspec::new_with_index(index)).build();
        self.command(RouteNetlinkMessage::NewLink(message), 0)
            .await
            .map_err(|error| Error::new(action, format!("link {index}"), error))
    }

    /// Sends a request that is answered by an acknowledgement only.
    async fn command(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK | flags)
            .await
            .map(drop)
    }

    async fn dump(
        &self,
        message: RouteNetlinkMessage,
        action: &'static str,
        object: &str,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_DUMP)
            .await
            .map_err(|error| Error::new(action, object, error))
    }

    async fn exchange(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags;
        let mut handle = self.handle.clone();
        let replies = handle.request(request).map_err(io::Error::other)?;
        collect(replies).await
    }
}

async fn collect(
    mut replies: impl Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Unpin,
) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut messages = Vec::new();
    while let Some(reply) = replies.next().await {
        match reply.payload {
            NetlinkPayload::InnerMessage(message) => messages.push(message),
            NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
            // An error without a code is the acknowledgement; done, noop and overrun say nothing
            // about the request.
            _ => {}
        }
    }
    Ok(messages)
}

fn with_end(
    builder: LinkMessageBuilder<LinkUnspec>,
    end: VethEnd<'_>,
) -> LinkMessageBuilder<LinkUnspec> {
    let builder = builder.name(end.name).mtu(end.mtu);
    match end.mac {
        Some(mac) => builder.address(mac.0.to_vec()),
        None => builder,
    }
}

fn link_of_reply(reply: RouteNetlinkMessage) -> Option<Link> {
    match reply {
        RouteNetlinkMessage::NewLink(message) => Some(link_of_message(message)),
        _ => None,
    }
}

fn link_of_message(message: LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: String::new(),
        layer: message.header.link_layer_type.into(),
        mac: None,
        mtu: 0,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        loopback: flags.contains(LinkFlags::Loopback),
        controller: None,
        parent: None,
        alias: None,
        qdisc: String::new(),
        tx_queue_frames: 0,
        stats: LinkStats::default(),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(octets) => {
                link.mac = <[u8; 6]>::try_from(octets.as_slice()).ok().map(MacAddr);
            }
            LinkAttribute::Controller(index) => link.controller = Some(index),
            LinkAttribute::Link(index) => link.parent = Some(index),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Qdisc(kind) => link.qdisc = kind,
            LinkAttribute::TxQueueLen(count) => link.tx_queue_frames = count,
            LinkAttribute::Stats64(stats) => {
                link.stats = LinkStats {
                    rx_frames: stats.rx_packets,
                    tx_frames: stats.tx_packets,
                    rx_dropped: stats.rx_dropped,
                    tx_dropped: stats.tx_dropped,
                };
            }
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        link.kind = kind.to_string();
                    }
                }
            }
            _ => {}
        }
    }
    link
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_follow_the_kernels_rule() {
        for good in ["eth0", "a", "causeway0", "exactly-fifteen"] {
            assert_eq!(check_ifname(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a b",
            "a/b",
            "a:b",
            "sixteen-letters-",
            "a\n",
            "eth%d",
        ] {
            assert_eq!(check_ifname(bad), Err(IfNameError(bad.to_owned())));
        }
    }
}
