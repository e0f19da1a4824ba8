//! The difference between what is wanted and what is there, as a list of actions.
//!
//! Pure, and idempotent with the steps that carry it out: a plan that was carried out leaves an
//! empty plan behind. It is asked at the start, after every change of the desired state and
//! whenever the host has changed, so a gateway address that somebody removed comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dataplane_core::addr::{PortId, Prefix};

use crate::model::{DesiredState, Network, Phase};

/// What is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Our host link.
    pub host_link: Option<ObservedHostLink>,
    /// The sandboxes of endpoints that are not open in the dataplane.
    pub closed: BTreeMap<PortId, ObservedSandbox>,
}

/// Our host link as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedHostLink {
    /// Largest IP packet, in bytes.
    pub mtu: u32,
    /// Addresses on it.
    pub addresses: BTreeSet<(IpAddr, u8)>,
    /// Routes by it that we made: prefix, length, source.
    pub routes: BTreeSet<(IpAddr, u8, Option<IpAddr>)>,
}

/// A sandbox as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObservedSandbox {
    /// There is no such namespace any more.
    Gone,
    /// The namespace is there, our device is not.
    WithoutDevice,
    /// Both are there.
    WithDevice,
    /// It is a NIC, which is not in the machine now and may come back.
    Unplugged,
}

/// One step towards what is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Create the host link.
    CreateHostLink,
    /// Delete the host link; its addresses and routes go with it.
    RemoveHostLink,
    /// Set the MTU of the host link.
    SetHostLinkMtu(u32),
    /// Put a gateway's address on the host link.
    AddGatewayAddress(Prefix),
    /// Take an address off the host link.
    RemoveGatewayAddress(Prefix),
    /// Route a subnet to the host link.
    AddSubnetRoute {
        /// The subnet.
        prefix: Prefix,
        /// The gateway's address.
        source: IpAddr,
    },
    /// Remove such a route.
    RemoveSubnetRoute {
        /// The subnet.
        prefix: Prefix,
        /// Its source.
        source: Option<IpAddr>,
    },
    /// Open an endpoint's device again.
    Adopt(PortId),
    /// Make an endpoint's device anew.
    Recreate(PortId),
    /// Remove what a half-made attach left; nobody was told of it.
    UndoAttach(PortId),
    /// Remove what a half-done detach left.
    FinishDetach(PortId),
    /// Drop an endpoint whose sandbox is gone.
    Forget(PortId),
}

/// Compares and lists what to do, in the order to do it.
#[must_use]
pub fn plan(desired: &DesiredState, observed: &Observed) -> Vec<Action> {
    let mut actions = plan_endpoints(desired, observed);
    actions.extend(plan_host_link(desired, observed.host_link.as_ref()));
    actions
}

fn plan_endpoints(desired: &DesiredState, observed: &Observed) -> Vec<Action> {
    let action = |(port, sandbox): (&PortId, &ObservedSandbox)| {
        let endpoint = desired.endpoints.get(port)?;
        Some(match (endpoint.phase, sandbox) {
            (Phase::Attaching, _) => Action::UndoAttach(*port),
            (Phase::Detaching, _) => Action::FinishDetach(*port),
            (Phase::Attached, ObservedSandbox::Unplugged) => return None,
            (Phase::Attached, ObservedSandbox::Gone) => Action::Forget(*port),
            (Phase::Attached, ObservedSandbox::WithoutDevice) => Action::Recreate(*port),
            (Phase::Attached, ObservedSandbox::WithDevice) => Action::Adopt(*port),
        })
    };
    observed.closed.iter().filter_map(action).collect()
}

fn plan_host_link(desired: &DesiredState, observed: Option<&ObservedHostLink>) -> Vec<Action> {
    let linked: Vec<&Network> = desired
        .networks
        .values()
        .filter(|network| network.host_link && !network.subnets.is_empty())
        .collect();
    let Some(mtu) = linked.iter().map(|network| u32::from(network.mtu)).max() else {
        return observed
            .map(|_| Action::RemoveHostLink)
            .into_iter()
            .collect();
    };
    let mut actions = Vec::new();
    let nothing = ObservedHostLink::default();
    let observed = observed.unwrap_or_else(|| {
        actions.push(Action::CreateHostLink);
        &nothing
    });
    if observed.mtu != mtu {
        actions.push(Action::SetHostLinkMtu(mtu));
    }
    let subnets = || linked.iter().flat_map(|network| &network.subnets);
    let addresses: BTreeSet<_> = subnets()
        .map(|s| (s.gateway, host_len(s.gateway)))
        .collect();
    let routes: BTreeSet<_> = subnets()
        .map(|s| (s.prefix.network(), s.prefix.prefix_len(), Some(s.gateway)))
        .collect();
    for (prefix, len, source) in observed.routes.difference(&routes) {
        let (prefix, source) = (Prefix::new(*prefix, *len), *source);
        actions.push(Action::RemoveSubnetRoute { prefix, source });
    }
    for (address, len) in observed.addresses.difference(&addresses) {
        actions.push(Action::RemoveGatewayAddress(Prefix::new(*address, *len)));
    }
    for (address, len) in addresses.difference(&observed.addresses) {
        actions.push(Action::AddGatewayAddress(Prefix::new(*address, *len)));
    }
    // After the addresses: a route's source must be an address of the host.
    for (prefix, len, source) in routes.difference(&observed.routes) {
        if let Some(source) = *source {
            let prefix = Prefix::new(*prefix, *len);
            actions.push(Action::AddSubnetRoute { prefix, source });
        }
    }
    actions
}

/// The length of a prefix that holds one address.
pub const fn host_len(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Backend, Endpoint, MTU_DEFAULT, NetworkNat, Sandbox};
    use dataplane_core::addr::{DomainId, MacAddr};

    fn network(domain: u16, prefix: &str) -> Network {
        Network {
            domain: DomainId(domain),
            name: format!("n{domain}").parse().unwrap(),
            subnets: vec![crate::ipam::subnet(prefix.parse().unwrap(), None, None).unwrap()],
            internal: false,
            host_link: true,
            mtu: MTU_DEFAULT,
            ageing_seconds: 300,
            stp_frames: Default::default(),
            loop_detect: Default::default(),
            vlans: Default::default(),
            icc: Default::default(),
            flood: Default::default(),
            nat: NetworkNat::default(),
            dns: Default::default(),
            router: Default::default(),
            foreign: None,
        }
    }

    fn desired(networks: impl IntoIterator<Item = Network>) -> DesiredState {
        let mut desired = DesiredState::default();
        for network in networks {
            desired.networks.insert(network.domain, network);
        }
        desired
    }

    /// What carrying a plan out does to what is there.
    fn carry_out(observed: &mut Observed, actions: &[Action]) {
        for action in actions {
            let link = &mut observed.host_link;
            match (*action, link) {
                (Action::CreateHostLink, link) => *link = Some(ObservedHostLink::default()),
                (Action::RemoveHostLink, link) => *link = None,
                (Action::SetHostLinkMtu(mtu), Some(link)) => link.mtu = mtu,
                (Action::AddGatewayAddress(a), Some(link)) => {
                    link.addresses.insert((a.address, a.len));
                }
                (Action::RemoveGatewayAddress(a), Some(link)) => {
                    assert!(link.addresses.remove(&(a.address, a.len)));
                }
                (Action::AddSubnetRoute { prefix, source }, Some(link)) => {
                    let own = (source, host_len(source));
                    assert!(
                        link.addresses.contains(&own),
                        "the source must be there first"
                    );
                    link.routes
                        .insert((prefix.address, prefix.len, Some(source)));
                }
                (Action::RemoveSubnetRoute { prefix, source }, Some(link)) => {
                    assert!(link.routes.remove(&(prefix.address, prefix.len, source)));
                }
                (other, _) => panic!("{other:?} without a host link"),
            }
        }
    }

    #[test]
    fn a_plan_that_was_carried_out_leaves_an_empty_plan() {
        let mut observed = Observed::default();
        for wanted in [
            desired([]),
            desired([network(1, "10.1.0.0/24")]),
            desired([network(1, "10.1.0.0/24"), network(2, "fd00:2::/64")]),
            desired([network(2, "10.2.0.0/24")]),
            desired([]),
        ] {
            let actions = plan(&wanted, &observed);
            carry_out(&mut observed, &actions);
            assert_eq!(plan(&wanted, &observed), []);
        }
        assert_eq!(observed, Observed::default());
    }

    #[test]
    fn what_somebody_removed_comes_back() {
        let wanted = desired([network(1, "10.1.0.0/24")]);
        let mut observed = Observed::default();
        let first = plan(&wanted, &observed);
        carry_out(&mut observed, &first);
        let link = observed.host_link.as_mut().unwrap();
        link.addresses.clear();
        link.routes.clear();
        link.mtu = 9_000;
        let again = plan(&wanted, &observed);
        assert_eq!(again.len(), 3, "{again:?}");
        carry_out(&mut observed, &again);
        assert_eq!(plan(&wanted, &observed), []);
    }

    #[test]
    fn networks_without_a_host_link_leave_the_host_alone() {
        let mut own = network(1, "10.1.0.0/24");
        own.host_link = false;
        assert_eq!(plan(&desired([own]), &Observed::default()), []);
    }

    #[test]
    fn a_killed_daemon_undoes_finishes_forgets_adopts() {
        let mut wanted = desired([network(1, "10.1.0.0/24")]);
        wanted.networks.clear();
        let cases = [
            (
                Phase::Attaching,
                ObservedSandbox::Gone,
                Action::UndoAttach(PortId(40)),
            ),
            (
                Phase::Attaching,
                ObservedSandbox::WithDevice,
                Action::UndoAttach(PortId(40)),
            ),
            (
                Phase::Detaching,
                ObservedSandbox::WithDevice,
                Action::FinishDetach(PortId(40)),
            ),
            (
                Phase::Detaching,
                ObservedSandbox::Gone,
                Action::FinishDetach(PortId(40)),
            ),
            (
                Phase::Attached,
                ObservedSandbox::Gone,
                Action::Forget(PortId(40)),
            ),
            (
                Phase::Attached,
                ObservedSandbox::WithoutDevice,
                Action::Recreate(PortId(40)),
            ),
            (
                Phase::Attached,
                ObservedSandbox::WithDevice,
                Action::Adopt(PortId(40)),
            ),
        ];
        for (phase, sandbox, action) in cases {
            let endpoint = Endpoint {
                port: PortId(40),
                name: "web".parse().unwrap(),
                domain: DomainId(1),
                sandbox: Sandbox {
                    path: "/x".into(),
                    inode: 1,
                },
                ifname: "eth0".to_owned(),
                mac: MacAddr::ZERO,
                addresses: Vec::new(),
                backend: Backend::Tap,
                choice: None,
                phase,
                settings: Default::default(),
                vlans: Default::default(),
                attached_at: 0,
                dns: Default::default(),
                gw_priority: 0,
                routes: Vec::new(),
                foreign: None,
            };
            wanted.endpoints.insert(endpoint);
            let observed = Observed {
                host_link: None,
                closed: [(PortId(40), sandbox)].into(),
            };
            assert_eq!(plan(&wanted, &observed), [action], "{phase:?} {sandbox:?}");
        }
    }
}
