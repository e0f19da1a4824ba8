//! Default routes of sandboxes, which of several endpoints one alone may have.
//!
//! The one with the highest priority has it; of equals the one that has it already, or was attached first.
//! A default route that somebody else has made stays, and none of ours is beside it.

use std::net::IpAddr;

use super::{Devices, Sandbox};
use crate::error::Error;
use crate::link::inet::Route;
use crate::link::{Link, Netlink};
use crate::model::{Endpoint, Network, Subnet};

impl Devices {
    /// Leads the default routes of a sandbox by the endpoint that is to have them; `here` are all that it
    /// has.
    ///
    /// # Errors
    /// When the sandbox cannot be looked into, or the kernel refuses.
    pub async fn lead_default_routes(&self, here: &[(&Endpoint, &Network)]) -> Result<(), Error> {
        let Some((first, _)) = here.first() else {
            return Ok(());
        };
        let Some(sandbox) = Sandbox::open_if_there(first)? else {
            return Ok(());
        };
        let links = sandbox.netlink.links().await?;
        let routes = sandbox.netlink.routes().await?;
        let ways: Vec<Way> = here
            .iter()
            .flat_map(|(endpoint, network)| self.ways_by(endpoint, network, &links))
            .collect();
        for v4 in [true, false] {
            let of_family =
                |route: &&Route| route.prefix.len == 0 && route.prefix.address.is_ipv4() == v4;
            let present: Vec<Route> = routes.iter().filter(of_family).copied().collect();
            let ways: Vec<Way> = ways.iter().filter(|way| way.v4() == v4).copied().collect();
            if let Some(change) = change(&ways, &present) {
                // Replaces one of the same metric in one step.
                sandbox.netlink.add_route(change.new).await?;
                if let Some(old) = change.old {
                    sandbox.netlink.remove_route(old).await?;
                }
            }
        }
        Ok(())
    }

    /// The default routes that an endpoint can have.
    fn ways_by(&self, endpoint: &Endpoint, network: &Network, links: &[Link]) -> Vec<Way> {
        let alias = self.alias(endpoint);
        let mut ours = links
            .iter()
            .filter(|link| link.alias.as_deref() == Some(&alias));
        let Some(link) = ours.next() else {
            return Vec::new();
        };
        let routers = routers(endpoint, network).into_iter();
        let way = |router| Way {
            link: link.index,
            router,
            priority: endpoint.gw_priority,
            attached: (endpoint.attached_at, endpoint.port.0),
        };
        routers.map(way).collect()
    }
}

/// A default route that a sandbox can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    link: u32,
    router: IpAddr,
    priority: i32,
    /// When its endpoint was attached; of the same instant, the lower port was first.
    attached: (u64, u16),
}

impl Way {
    fn v4(&self) -> bool {
        self.router.is_ipv4()
    }

    fn is(&self, route: &Route) -> bool {
        route.link == self.link && route.gateway == Some(self.router)
    }
}

/// A default route that takes another one's place.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    new: Route,
    old: Option<Route>,
}

/// What is to be changed about the default routes of a family, where there are these and could be those.
fn change(ways: &[Way], present: &[Route]) -> Option<Change> {
    let of_somebody = |route: &Route| !ways.iter().any(|way| way.is(route));
    if present.iter().any(of_somebody) {
        return None;
    }
    let has_it = |way: &Way| present.iter().any(|route| way.is(route));
    let rank = |way: &&Way| (way.priority, has_it(way), std::cmp::Reverse(way.attached));
    let wanted = ways.iter().max_by_key(rank)?;
    if has_it(wanted) {
        return None;
    }
    Some(Change {
        new: Route::default_by(wanted.router, wanted.link),
        old: present.first().copied(),
    })
}

/// The routers that an endpoint's network has for it, one of a family at most.
fn routers(endpoint: &Endpoint, network: &Network) -> Vec<IpAddr> {
    if network.internal || endpoint.comes_with_nic() {
        return Vec::new();
    }
    let addresses = endpoint.addresses.iter();
    let subnets = addresses.filter_map(|address| network.subnet_of(*address));
    subnets.filter_map(Subnet::router).collect()
}

/// Gives a sandbox the default routes that it lacks; returns their gateways.
pub(super) async fn add_default_routes(
    netlink: &Netlink,
    index: u32,
    endpoint: &Endpoint,
    network: &Network,
) -> Result<Vec<IpAddr>, Error> {
    let mut added = Vec::new();
    let routers = routers(endpoint, network);
    if routers.is_empty() {
        return Ok(added);
    }
    let present = netlink.routes().await?;
    for router in routers {
        // A sandbox on a second network keeps the way out that it has.
        let family_has_default = present.iter().any(|route| {
            route.prefix.len == 0 && route.prefix.address.is_ipv4() == router.is_ipv4()
        });
        if !family_has_default {
            netlink.add_route(Route::default_by(router, index)).await?;
            added.push(router);
        }
    }
    Ok(added)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(link: u32, priority: i32) -> Way {
        Way {
            link,
            router: IpAddr::from([10, 0, link as u8, 1]),
            priority,
            attached: (u64::from(link), 0),
        }
    }

    fn route(way: &Way) -> Route {
        Route::default_by(way.router, way.link)
    }

    #[test]
    fn the_highest_has_the_route_and_of_equals_who_has_it_or_was_first() {
        let (one, two, three) = (way(1, 0), way(2, 0), way(3, 5));
        let links = |ways: &[Way], present: &[&Way]| {
            let present: Vec<Route> = present.iter().map(|way| route(way)).collect();
            change(ways, &present).map(|change| (change.new.link, change.old.map(|old| old.link)))
        };
        assert_eq!(links(&[one, two], &[]), Some((1, None)), "who was first");
        assert_eq!(links(&[one, two], &[&two]), None, "who has it");
        assert_eq!(links(&[one, two, three], &[&two]), Some((3, Some(2))));
        assert_eq!(links(&[three, one], &[&three]), None);
        let low = way(1, -1);
        assert_eq!(links(&[low, two], &[&low]), Some((2, Some(1))));
        assert_eq!(links(&[], &[]), None);
    }

    #[test]
    fn somebody_elses_default_route_stays_alone() {
        let (one, two) = (way(1, 0), way(2, 9));
        let others = [
            Route::default_by(IpAddr::from([10, 0, 1, 254]), 1),
            Route::default_by(IpAddr::from([192, 0, 2, 1]), 7),
        ];
        for other in others {
            assert_eq!(change(&[one, two], &[other]), None);
            assert_eq!(change(&[one, two], &[route(&one), other]), None);
        }
    }
}
