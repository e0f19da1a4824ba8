//! Static routes of endpoints, which their sandboxes are given.

use dataplane_core::addr::Prefix;

use crate::link::inet::Route;
use crate::link::{self, Netlink};
use crate::model::{Endpoint, StaticRoute};

/// Gives a sandbox the static routes that it lacks; returns those. One that somebody has made to the
/// same destinations stays.
pub(super) async fn add_static_routes(
    netlink: &Netlink,
    index: u32,
    endpoint: &Endpoint,
) -> Result<Vec<StaticRoute>, link::Error> {
    let mut added = Vec::new();
    if endpoint.routes.is_empty() {
        return Ok(added);
    }
    let present = netlink.routes().await?;
    for route in &endpoint.routes {
        let prefix = Prefix::new(route.prefix.addr(), route.prefix.prefix_len());
        if present.iter().any(|other| other.prefix == prefix) {
            continue;
        }
        let wanted = Route {
            prefix,
            ..Route::default_by(route.via, index)
        };
        netlink.add_route(wanted).await?;
        added.push(*route);
    }
    Ok(added)
}
