//! `show` and `stats`: the networks as `brctl show` has bridges, and what frames came to.

use std::io::{self, Write};

use anyhow::bail;
use clap::Args;
use serde::Serialize;

use super::args::JsonArgs;
use super::client::Client;
use super::{print_json, table};
use crate::api::frames::StatsView;
use crate::api::types::{NetworkView, PortView};

/// The priority that a bridge has until it is given another (IEEE 802.1D section 17.14), in the id.
const PRIORITY: &str = "8000";

/// `show`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  causeway show
  causeway show web
  causeway show --json

The columns are those of `brctl show`. The id is the gateway's MAC behind the usual priority; there is no
spanning tree, so STP is always 'no'; interfaces go by the names of their endpoints.")]
pub struct ShowArgs {
    /// Only this network
    pub network: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A network, as `brctl show` has a bridge.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Bridge {
    name: String,
    id: String,
    stp: bool,
    interfaces: Vec<String>,
}

/// `show`
pub(super) async fn show(client: &Client, args: ShowArgs) -> anyhow::Result<()> {
    let networks: Vec<NetworkView> = client.get("/v1/networks").await?;
    let ports: Vec<PortView> = client.get("/v1/ports").await?;
    let mut bridges: Vec<Bridge> = networks
        .iter()
        .map(|network| bridge(network, &ports))
        .collect();
    bridges.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(name) = &args.network {
        bridges.retain(|bridge| bridge.name == *name);
        if bridges.is_empty() {
            bail!("there is no network '{name}'; `causeway network ls` lists those that are");
        }
    }
    if args.json {
        return print_json(&bridges);
    }
    Ok(write!(io::stdout(), "{}", as_brctl(&bridges))?)
}

fn bridge(network: &NetworkView, ports: &[PortView]) -> Bridge {
    let own = ports
        .iter()
        .filter(|port| port.network.as_ref() == Some(&network.name));
    let mut interfaces: Vec<String> = own.map(|port| port.name.clone()).collect();
    interfaces.sort();
    Bridge {
        name: network.name.clone(),
        id: format!("{PRIORITY}.{}", network.gateway_mac.replace(':', "")),
        stp: false,
        interfaces,
    }
}

/// The text that brctl would print.
fn as_brctl(bridges: &[Bridge]) -> String {
    let mut text = "bridge name\tbridge id\t\tSTP enabled\tinterfaces\n".to_owned();
    for bridge in bridges {
        let stp = if bridge.stp { "yes" } else { "no" };
        let interfaces = bridge.interfaces.join("\n\t\t\t\t\t\t\t");
        text += &format!("{}\t\t{}\t{stp}\t\t{interfaces}\n", bridge.name, bridge.id);
    }
    text
}

/// `stats`
pub(super) async fn stats(client: &Client, args: &JsonArgs) -> anyhow::Result<()> {
    let stats: StatsView = client.get("/v1/stats").await?;
    if args.json {
        return print_json(&stats);
    }
    let rows = [
        ("received", stats.received),
        ("forwarded", stats.forwarded),
        ("filtered_same_port", stats.filtered_same_port),
        ("flooded_unknown", stats.flooded_unknown),
        ("flooded_bcast", stats.flooded_bcast),
        ("flooded_mcast", stats.flooded_mcast),
        ("multicast", stats.multicast),
        ("routed", stats.routed),
        ("delivered", stats.delivered),
        ("replied", stats.replied),
        ("held", stats.held),
        ("not_ours", stats.not_ours),
        ("dropped", stats.dropped),
    ];
    let rows = rows.map(|(name, count)| vec![name.to_owned(), count.to_string()]);
    Ok(table::print(&["FRAMES", "COUNT"], &rows)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_that_of_brctl_tab_by_tab() {
        let bridge = |name: &str, interfaces: &[&str]| Bridge {
            name: name.to_owned(),
            id: "8000.024256780001".to_owned(),
            stp: false,
            interfaces: interfaces.iter().map(|name| (*name).to_owned()).collect(),
        };
        let bridges = [bridge("web", &["a", "b"]), bridge("empty", &[])];
        let expected = "bridge name\tbridge id\t\tSTP enabled\tinterfaces\n\
                        web\t\t8000.024256780001\tno\t\ta\n\
                        \t\t\t\t\t\t\tb\n\
                        empty\t\t8000.024256780001\tno\t\t\n";
        assert_eq!(as_brctl(&bridges), expected);
    }
}
