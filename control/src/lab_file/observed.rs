//! What a daemon lists, as a lab.

use std::collections::{BTreeMap, BTreeSet};

use dataplane_core::addr::MacAddr;
use dataplane_core::fdb::FdbKind;
use dataplane_core::l2::{FloodClass, PortFlags, PortVlans};
use dataplane_core::link::Direction;
use dataplane_core::topology::AGEING_DEFAULT;

use super::form::{AUTO, DEFAULT, NONE, netns_name};
use super::{
    EndpointFile, FdbFile, LabFile, ListenerFile, MirrorFile, NetworkFile, NicFile, PortFile,
    PublicationFile, RuleFile,
};
use crate::api::bridging::{FdbView, FlagsBody};
use crate::api::groups::GroupView;
use crate::api::mirrors::MirrorView;
use crate::api::rules::RuleView;
use crate::api::types::{
    EndpointView, NetworkView, PortView, PublicationView, SubnetView, TargetView,
};
use crate::api::vlans::{PortVlansView, VlanView};
use crate::model::{Backend, LoopDetect, StpFrames};
use crate::port_settings::PortSettings;
use crate::vlans;

/// What the MDB calls a listener that a command has set.
const PERMANENT: &str = "permanent";

/// What a daemon lists.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Networks.
    pub networks: Vec<NetworkView>,
    /// Switch ports.
    pub ports: Vec<PortView>,
    /// VLANs of ports.
    pub vlans: Vec<PortVlansView>,
    /// Published ports.
    pub publications: Vec<PublicationView>,
    /// FDBs, by network.
    pub fdb: BTreeMap<String, Vec<FdbView>>,
    /// Listeners to groups, by network.
    pub mdb: BTreeMap<String, Vec<GroupView>>,
    /// Rules, in their order.
    pub rules: Vec<RuleView>,
    /// Mirrors.
    pub mirrors: Vec<MirrorView>,
    /// Namespaces that have a name.
    pub namespaces: BTreeSet<String>,
}

impl Observed {
    /// The same as a lab in which everything is said, to be compared with what is wanted.
    pub fn lab(&self) -> LabFile {
        let attached = self.networks.iter().flat_map(|network| &network.endpoints);
        let attached = attached.filter(|endpoint| {
            let mut backends = Backend::ALL.iter();
            backends.any(|backend| backend.label() == endpoint.backend)
        });
        LabFile {
            namespaces: self.namespaces.clone(),
            networks: self
                .networks
                .iter()
                .map(|network| (network.name.clone(), self.network(network)))
                .collect(),
            endpoints: attached
                .map(|endpoint| (endpoint.name.clone(), self.endpoint(endpoint)))
                .collect(),
            publications: self.publications.iter().flat_map(publications).collect(),
            rules: self.rules.iter().map(rule).collect(),
            mirrors: self.mirrors.iter().map(mirror).collect(),
        }
    }

    /// Rules that name what is not there, and so fit nothing. They cannot be made anew, so
    /// [`Self::lab_to_read`] leaves them out.
    pub fn rules_left_out(&self) -> impl Iterator<Item = &RuleView> {
        self.rules.iter().filter(|rule| !rule.absent.is_empty())
    }

    /// The same as a lab for people: what is as usual is left out.
    pub fn lab_to_read(&self) -> LabFile {
        let mut lab = self.lab();
        let used: BTreeSet<&str> = lab.endpoints.values().map(|e| e.netns.as_str()).collect();
        lab.namespaces.retain(|name| used.contains(name.as_str()));
        for endpoint in lab.endpoints.values_mut() {
            let network = lab.networks.get(&endpoint.network);
            shorten_endpoint(endpoint, network);
        }
        lab.networks.values_mut().for_each(shorten_network);
        lab.publications.iter_mut().for_each(shorten_publication);
        lab.rules.retain(|rule| {
            let mut left_out = self.rules_left_out();
            left_out.all(|other| other.name != rule.name)
        });
        lab.mirrors.values_mut().for_each(MirrorFile::shorten);
        lab
    }

    fn network(&self, view: &NetworkView) -> NetworkFile {
        let of_family = |v6: bool| {
            let mut subnets = view.subnets.iter();
            subnets.find(move |subnet| subnet.subnet.contains(':') == v6)
        };
        let (v4, v6) = (of_family(false), of_family(true));
        let on_lan = view.router == "lan";
        let gateway = |subnet: &SubnetView| subnet.gateway.clone();
        let own = |subnet: Option<&SubnetView>| subnet.filter(|_| !on_lan).map(gateway);
        let lan_gateway = on_lan.then(|| {
            let routers = view.subnets.iter().map(gateway);
            let routers: Vec<String> = routers.filter(|router| !router.is_empty()).collect();
            match routers.is_empty() {
                true => vec![NONE.to_owned()],
                false => routers,
            }
        });
        let or = |set: &Option<String>, word: &str| Some(set.as_deref().unwrap_or(word).to_owned());
        NetworkFile {
            subnet: v4.map(|subnet| subnet.subnet.clone()),
            gateway: own(v4),
            ip_range: v4.map(|subnet| subnet.ip_range.clone()),
            subnet6: v6.map(|subnet| subnet.subnet.clone()),
            gateway6: own(v6),
            internal: Some(view.internal),
            host_link: Some(view.host_link),
            mtu: Some(view.mtu),
            lan_gateway,
            ageing_seconds: Some(view.ageing_seconds),
            stp_frames: Some(view.stp_frames.clone()),
            loop_detect: Some(view.loop_detect.clone()),
            vlan_filtering: Some(view.vlan_filtering),
            gateway_vlan: Some(view.gateway_vlan),
            mcast_snooping: Some(view.mcast_snooping),
            mcast_querier: Some(view.mcast_querier),
            arp_suppression: Some(view.arp_suppression),
            icc: Some(view.icc),
            nat_mapping: or(&view.nat_set.mapping, DEFAULT),
            nat_filtering: or(&view.nat_set.filtering, DEFAULT),
            nat4: or(&view.nat_set.nat4, AUTO),
            nat6: or(&view.nat_set.nat6, AUTO),
            dns: Some(view.dns.clone()),
            nic: view.nic.as_ref().map(|nic| NicFile {
                name: nic.name.clone(),
                take_address: nic.host_ifname.is_some(),
                mac_nat: self
                    .port(nic.port)
                    .is_some_and(|port| port.mac_nat.is_some()),
                backend: nic.backend.clone(),
            }),
            reservations: view.reservations.clone(),
            fdb: self.set_entries(&view.name),
            mdb: self.set_listeners(&view.name),
        }
    }

    fn set_entries(&self, network: &str) -> Vec<FdbFile> {
        let entries = self.fdb.get(network).into_iter().flatten();
        let set = entries.filter(|entry| entry.state != FdbKind::Dynamic.label());
        let entry = |view: &FdbView| FdbFile {
            mac: view.mac.clone(),
            port: view.port_name.clone(),
            // 0 where VLANs do not count.
            vlan: (view.vlan != 0).then_some(view.vlan),
            state: view.state.clone(),
        };
        set.map(entry).collect()
    }

    fn set_listeners(&self, network: &str) -> Vec<ListenerFile> {
        let groups = self.mdb.get(network).into_iter().flatten();
        let set = groups.filter(|group| group.state == PERMANENT);
        let listener = |view: &GroupView| ListenerFile {
            group: view.group.clone(),
            port: view.port_name.clone(),
            vlan: (view.vlan != 0).then_some(view.vlan),
        };
        set.map(listener).collect()
    }

    fn port(&self, number: u16) -> Option<&PortView> {
        self.ports.iter().find(|port| port.port == number)
    }

    fn endpoint(&self, view: &EndpointView) -> EndpointFile {
        let address = |v6: bool| {
            let mut addresses = view.addresses.iter();
            let found = addresses.find(|address| address.contains(':') == v6);
            let bare = |address: &String| address.split('/').next().unwrap_or_default().to_owned();
            Some(found.map_or_else(|| NONE.to_owned(), bare))
        };
        EndpointFile {
            network: view.network.clone(),
            netns: netns_name(&view.netns),
            ifname: Some(view.ifname.clone()),
            ip: address(false),
            ip6: address(true),
            mac: Some(view.mac.clone()),
            backend: view
                .backend_asked
                .clone()
                .or_else(|| Some(view.backend.clone())),
            aliases: Some(view.aliases.clone()),
            links: Some(view.links.clone()),
            gw_priority: Some(view.gw_priority),
            routes: Some(view.routes.clone()),
            dns: Some(view.dns.clone()),
            port: self.port_file(view.port),
        }
    }

    fn port_file(&self, number: u16) -> PortFile {
        let Some(port) = self.port(number) else {
            return PortFile::default();
        };
        let vlans = self.vlans.iter().find(|vlans| vlans.port == number);
        let storm = |class: FloodClass| {
            let mut views = port.storm.iter();
            let view = views.find(|view| view.class == class.label());
            view.and_then(|view| view.limit.clone())
        };
        let link = |direction: Direction| {
            let mut links = port.links.iter();
            links.find(|link| link.direction == direction.label())
        };
        let rate = |direction| link(direction).and_then(|link| link.rate.clone());
        let impair = |direction| link(direction).and_then(|link| link.impairment.clone());
        PortFile {
            vlans: vlans.map(|vlans| vlans_text(&vlans.vlans)),
            mac_limit: port.mac_limit,
            storm_broadcast: storm(FloodClass::Broadcast),
            storm_multicast: storm(FloodClass::Multicast),
            storm_unknown_unicast: storm(FloodClass::UnknownUnicast),
            rate_in: rate(Direction::In),
            rate_out: rate(Direction::Out),
            mac_nat: port.mac_nat.clone(),
            flags: port.flags.unwrap_or_default(),
            impair_in: impair(Direction::In),
            impair_out: impair(Direction::Out),
        }
    }
}

fn vlans_text(views: &[VlanView]) -> String {
    let words = |view: &VlanView| {
        let mut text = vlans::span_text(&(view.vlan..=view.vlan_end.unwrap_or(view.vlan)));
        for (flag, word) in [("PVID", " pvid"), ("Egress Untagged", " untagged")] {
            if view.flags.iter().any(|other| other == flag) {
                text += word;
            }
        }
        text
    };
    views.iter().map(words).collect::<Vec<_>>().join(", ")
}

fn publications(view: &PublicationView) -> impl Iterator<Item = PublicationFile> {
    let target = |target: &TargetView| PublicationFile {
        spec: target.spec.clone(),
        endpoint: target.endpoint.clone(),
        from: view.from.clone(),
        uplink: view.uplink.clone(),
        balance: Some(view.balance.clone()),
        weight: Some(target.weight),
        draining: Some(target.state == "draining"),
        id: Some(view.id),
    };
    view.targets.iter().map(target)
}

fn rule(view: &RuleView) -> RuleFile {
    let view = view.clone();
    RuleFile {
        name: view.name,
        action: view.action,
        from: view.from,
        to: view.to,
        protocol: view.protocol,
        source_ports: view.source_ports,
        ports: view.ports,
        uplink: view.uplink,
    }
}

fn mirror(view: &MirrorView) -> (String, MirrorFile) {
    let to = Some(view.to.clone());
    let (to, to_file) = match view.file {
        None => (to, None),
        Some(_) => (None, to),
    };
    let file = MirrorFile {
        from: view.port.clone(),
        network: view.network.clone(),
        direction: Some(view.direction.clone()),
        to,
        ingress: view.ingress,
        to_file,
        limit_size: view.file.as_ref().map(|file| file.limit_size),
        rotate: view.file.as_ref().map(|file| file.rotate),
    };
    (view.name.clone(), file)
}

/// Leaves out what has this value.
pub(super) fn leave_out<T: PartialEq>(setting: &mut Option<T>, usual: &T) {
    if setting.as_ref() == Some(usual) {
        *setting = None;
    }
}

fn shorten_network(network: &mut NetworkFile) {
    let word = |word: &str| word.to_owned();
    if network.ip_range == network.subnet {
        network.ip_range = None;
    }
    leave_out(&mut network.internal, &false);
    leave_out(&mut network.host_link, &network.lan_gateway.is_none());
    leave_out(
        &mut network.ageing_seconds,
        &(AGEING_DEFAULT.as_secs() as u32),
    );
    leave_out(&mut network.stp_frames, &word(StpFrames::default().label()));
    leave_out(
        &mut network.loop_detect,
        &word(LoopDetect::default().label()),
    );
    leave_out(&mut network.vlan_filtering, &false);
    leave_out(&mut network.gateway_vlan, &1);
    leave_out(&mut network.mcast_snooping, &true);
    leave_out(&mut network.mcast_querier, &false);
    leave_out(&mut network.arp_suppression, &false);
    leave_out(&mut network.icc, &true);
    leave_out(&mut network.nat_mapping, &word(DEFAULT));
    leave_out(&mut network.nat_filtering, &word(DEFAULT));
    leave_out(&mut network.nat4, &word(AUTO));
    leave_out(&mut network.nat6, &word(AUTO));
    leave_out(&mut network.dns, &vec![word("on")]);
}

fn shorten_endpoint(endpoint: &mut EndpointFile, network: Option<&NetworkFile>) {
    let none = NONE.to_owned();
    if network.is_some_and(|network| network.subnet.is_none()) {
        leave_out(&mut endpoint.ip, &none);
    }
    if network.is_some_and(|network| network.subnet6.is_none()) {
        leave_out(&mut endpoint.ip6, &none);
    }
    let v4 = endpoint.ip.as_ref().and_then(|ip| ip.parse().ok());
    if let Some(ip) = v4 {
        leave_out(&mut endpoint.mac, &MacAddr::from_ipv4(ip).to_string());
    }
    leave_out(&mut endpoint.ifname, &"eth0".to_owned());
    leave_out(&mut endpoint.backend, &Backend::Tap.label().to_owned());
    leave_out(&mut endpoint.aliases, &Vec::new());
    leave_out(&mut endpoint.links, &Vec::new());
    leave_out(&mut endpoint.gw_priority, &0);
    leave_out(&mut endpoint.routes, &Vec::new());
    leave_out(&mut endpoint.dns, &Vec::new());
    let usual = vlans::written(&PortVlans::default());
    leave_out(&mut endpoint.port.vlans, &usual);
    let mut usual = FlagsBody::from(PortSettings::default().flags);
    for (flag, _) in PortFlags::ALL {
        let usual = usual.entry(flag).and_then(|entry| *entry);
        if let Some(entry) = endpoint.port.flags.entry(flag)
            && *entry == usual
        {
            *entry = None;
        }
    }
}

fn shorten_publication(publication: &mut PublicationFile) {
    leave_out(&mut publication.balance, &"round-robin".to_owned());
    leave_out(&mut publication.weight, &1);
    leave_out(&mut publication.draining, &false);
    publication.id = None;
}
