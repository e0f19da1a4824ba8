//! Network cards of the host as devices of endpoints: taken, and given back as they were.
//!
//! A NIC stays in the host's namespace. The switch reads and writes it by AF_PACKET or AF_XDP, promiscuous for
//! as long as the socket is open, and a guard keeps all that arrives from the host's own stack, but for
//! what a supplicant waits for (EAPOL). The stack has no address on it meanwhile and makes none. What the host had is read before
//! ([`Devices::nic_before`]) and put back by [`Devices::restore_nic`], which may be called at any
//! point of the way there, and twice.

use std::fs;
use std::path::Path;

use dataplane_port::ethtool;
use dataplane_port::guard::{self, Guarded};
use dataplane_port::packet::{Membership, PacketBuilder};

use super::{Devices, Queues, boxed};
use crate::error::Error;
use crate::link::Link;
use crate::link::saved::SavedIp;
use crate::model::{Backend, Endpoint, Network, NicBefore};

/// Changes with every start of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// How the kernel treats an interface, which goes along with its addresses.
const SETTINGS: [(&str, &[&str]); 2] = [
    (
        "ipv4",
        &[
            "forwarding",
            "rp_filter",
            "arp_ignore",
            "arp_announce",
            "accept_redirects",
            "send_redirects",
            "proxy_arp",
        ],
    ),
    (
        "ipv6",
        &[
            "disable_ipv6",
            "forwarding",
            "accept_ra",
            "accept_ra_defrtr",
            "accept_ra_pinfo",
            "autoconf",
            "use_tempaddr",
        ],
    ),
];

/// What a card must not do for whoever reads it by AF_XDP: take VLAN tags out of the bytes, which nobody
/// could put back, and join segments, which do not fit.
const LOST_TO_XDP: [&str; 4] = [
    "rx-vlan-hw-parse",
    "rx-vlan-stag-hw-parse",
    "rx-lro",
    "rx-gro-hw",
];

/// What a network card speaks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Medium {
    /// A cable, or what passes for one.
    Wire,
    /// An access point (IEEE 802.11).
    Wireless,
}

impl Devices {
    /// What the host has on a NIC now.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn nic_before(&self, link: &Link) -> Result<NicBefore, Error> {
        Ok(NicBefore {
            place: self.place(link.index)?,
            up: link.up,
            addr_gen_mode: self.addr_gen_mode(&link.name)?,
            features: self.features_to_lose(&link.name)?,
            ip: self.netlink.saved_ip(link.index).await?,
        })
    }

    /// Whether what was read of a NIC was read of this one, on this host, since it was started.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn is_at(&self, link: &Link, before: &NicBefore) -> Result<bool, Error> {
        Ok(self.place(link.index)? == before.place)
    }

    /// Takes a NIC for the switch. The host no longer hears it from here on.
    ///
    /// # Errors
    /// When it is not there, or the kernel refuses.
    pub(super) async fn take_nic(
        &self,
        endpoint: &Endpoint,
        network: &Network,
    ) -> Result<Queues, Error> {
        let name = endpoint.ifname.as_str();
        let link = self.netlink.require(name).await?;
        self.host.run(|| guard::install(name, Guarded::Card))??;
        self.netlink.set_addr_gen_mode_none(link.index).await?;
        let made_by_kernel = self.netlink.saved_ip(link.index).await?.link_local();
        let failed = self.netlink.take_ip(&link, &made_by_kernel).await;
        if let Some(error) = failed.into_iter().next() {
            return Err(error.into());
        }
        let queues = self.open_nic(endpoint, network)?;
        self.netlink.set_up(link.index).await?;
        Ok(queues)
    }

    /// Opens the sockets of a NIC that is guarded.
    pub(super) fn open_nic(&self, endpoint: &Endpoint, network: &Network) -> Result<Queues, Error> {
        let name = endpoint.ifname.as_str();
        if endpoint.backend == Backend::NicXdp {
            return self.open_nic_by_xdp(name, network);
        }
        let builder = PacketBuilder::new(name)
            .queues(self.workers)
            .membership(Membership::Promiscuous);
        let sockets = self.host.run(|| builder.open())??;
        Ok(boxed(sockets))
    }

    /// Every worker has a queue of a card that has as many, or one has the only one.
    fn open_nic_by_xdp(&self, name: &str, network: &Network) -> Result<Queues, Error> {
        let builder = self.xdp_builder(name, network).card();
        let sockets = self.host.run(|| {
            ethtool::switch_off(name, &LOST_TO_XDP)
                .map_err(|error| Error::io(format!("set what '{name}' does by itself"), error))?;
            let queues = match ethtool::receive_queues(name) {
                Ok(Some(1)) => 1,
                // The builder says what is wrong.
                Ok(_) | Err(_) => self.workers,
            };
            Ok::<_, Error>(builder.queues(queues).open()?)
        })??;
        Ok(boxed(sockets))
    }

    /// What the card would do for others that is lost to AF_XDP.
    fn features_to_lose(&self, name: &str) -> Result<Vec<String>, Error> {
        let mut on = self
            .host
            .run(|| ethtool::features(name))?
            .unwrap_or_default();
        on.retain(|feature| LOST_TO_XDP.contains(&feature.as_str()));
        Ok(on)
    }

    /// Lets the host hear its NIC again.
    pub(super) fn unguard_nic(&self, name: &str) -> Result<(), Error> {
        Ok(self.host.run(|| guard::remove(name))??)
    }

    /// Puts what the host had on a NIC back. Goes on when a step fails, and returns what failed.
    pub async fn restore_nic(&self, name: &str, before: &NicBefore) -> Vec<Error> {
        let link = match self.netlink.link(name).await {
            Ok(Some(link)) => link,
            // Pulled out, with all that was on it.
            Ok(None) => return Vec::new(),
            Err(error) => return vec![error.into()],
        };
        match self.is_at(&link, before) {
            Ok(true) => {}
            // Since another start the host has set up its NIC anew.
            Ok(false) => return Vec::new(),
            Err(error) => return vec![error],
        }
        let mut failed = Vec::new();
        let on: Vec<&str> = before.features.iter().map(String::as_str).collect();
        match self.host.run(|| ethtool::switch_on(name, &on)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                failed.push(Error::io(
                    format!("set what '{name}' does by itself"),
                    error,
                ));
            }
            Err(error) => failed.push(error.into()),
        }
        let set = match before.up {
            true => self.netlink.set_up(link.index).await,
            false => self.netlink.set_down(link.index).await,
        };
        failed.extend(set.err().map(Error::from));
        let addresses = self.netlink.put_addresses(&link, &before.ip).await;
        let routes = self.netlink.put_routes(&link, &before.ip).await;
        failed.extend(addresses.into_iter().chain(routes).map(Error::from));
        // After the addresses: the link-local one is the kernel's again, and needs no looking for
        // duplicates.
        failed.extend(self.set_addr_gen_mode(name, before.addr_gen_mode).err());
        failed
    }

    /// What is on the host's own port, if it is there.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn ip_of(&self, host_port: &Endpoint) -> Result<Option<(Link, SavedIp)>, Error> {
        let Some(link) = self.find(&self.netlink, host_port).await? else {
            return Ok(None);
        };
        let ip = self.netlink.saved_ip(link.index).await?;
        Ok(Some((link, ip)))
    }

    /// Treats one interface as the kernel treats another. What it does not know is left out.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn copy_settings(&self, from: &str, to: &str) -> Result<(), Error> {
        self.host.run(|| {
            for (family, names) in SETTINGS {
                let path = |interface: &str, name: &str| {
                    format!("/proc/sys/net/{family}/conf/{interface}/{name}")
                };
                for name in names {
                    let Ok(value) = fs::read_to_string(path(from, name)) else {
                        continue;
                    };
                    if let Err(error) = fs::write(path(to, name), value.trim()) {
                        tracing::debug!(name, %error, "cannot copy a setting of the NIC");
                    }
                }
            }
        })?;
        Ok(())
    }

    /// What an interface speaks to.
    pub(crate) fn medium(&self, name: &str) -> Medium {
        let read = || medium_of(Path::new("/"), name);
        self.host.run(read).unwrap_or(Medium::Wire)
    }

    fn place(&self, index: u32) -> Result<String, Error> {
        let boot = fs::read_to_string(BOOT_ID)
            .map_err(|error| Error::io(format!("read {BOOT_ID}"), error))?;
        Ok(format!(
            "{} {} {index}",
            boot.trim(),
            self.host.id().inode()
        ))
    }

    fn addr_gen_mode(&self, name: &str) -> Result<Option<u8>, Error> {
        let path = addr_gen_mode_path(name);
        let text = self.host.run(|| fs::read_to_string(path))?;
        Ok(text.ok().and_then(|text| text.trim().parse().ok()))
    }

    fn set_addr_gen_mode(&self, name: &str, mode: Option<u8>) -> Result<(), Error> {
        let Some(mode) = mode else {
            return Ok(());
        };
        let path = addr_gen_mode_path(name);
        self.host
            .run(|| fs::write(&path, mode.to_string()))?
            .map_err(|error| Error::io(format!("write {path}"), error))
    }
}

/// What an interface speaks to, by the `/sys` and `/proc` below a directory.
fn medium_of(root: &Path, name: &str) -> Medium {
    let class = root.join("sys/class/net").join(name);
    // Drivers of cfg80211, and those with wireless extensions alone.
    let listed = ["phy80211", "wireless"].map(|entry| class.join(entry).exists());
    // Of a namespace whose `/sys` is another's.
    let table = fs::read_to_string(root.join("proc/thread-self/net/wireless")).unwrap_or_default();
    let line = format!("{name}:");
    let mut names = table.lines().map(str::trim_start);
    match listed.contains(&true) || names.any(|other| other.starts_with(&line)) {
        true => Medium::Wireless,
        false => Medium::Wire,
    }
}

fn addr_gen_mode_path(name: &str) -> String {
    format!("/proc/sys/net/ipv6/conf/{name}/addr_gen_mode")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_card_is_wireless_by_sysfs_or_by_the_table_of_wireless_extensions() {
        let root = std::env::temp_dir().join(format!("causeway-medium-{}", std::process::id()));
        let class = root.join("sys/class/net");
        for entry in ["eth0/queues", "wlan0/phy80211", "ra0/wireless", "wlan"] {
            fs::create_dir_all(class.join(entry)).unwrap();
        }
        let found = ["eth0", "wlan0", "ra0", "wlan", "ath0", "nobody"].map(|name| {
            let before = medium_of(&root, name);
            let table = root.join("proc/thread-self/net");
            fs::create_dir_all(&table).unwrap();
            let text = "Inter-| sta-|   Quality        |   Discarded packets\n face | tus | link level \
                        noise |  nwid  crypt\n  ath0: 0000   54.  -56.  -256        0      0\n";
            fs::write(table.join("wireless"), text).unwrap();
            let after = medium_of(&root, name);
            fs::remove_file(table.join("wireless")).unwrap();
            (before, after)
        });
        fs::remove_dir_all(&root).unwrap();
        use Medium::{Wire, Wireless};
        let expected = [
            (Wire, Wire),
            (Wireless, Wireless),
            (Wireless, Wireless),
            (Wire, Wire),
            (Wire, Wireless),
            (Wire, Wire),
        ];
        assert_eq!(found, expected);
    }
}
