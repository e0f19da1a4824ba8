//! `mdb`: who listens to which groups, and who is set to.

use std::io::{self, Write};

use clap::{Args, Subcommand};

use super::client::{Client, escape};
use super::{print_json, table};
use crate::api::groups::{ListenerBody, MdbView, QuerierView};
use crate::api::types::NetworkView;

/// What to do with the MDB.
#[derive(Debug, Subcommand)]
pub enum MdbCommand {
    /// List groups with their listeners, router ports and queriers, as `bridge mdb show`
    #[command(after_help = "Examples:
  causeway mdb show
  causeway mdb show web --json")]
    #[command(visible_alias = "ls")]
    Show {
        /// The network [default: all]
        network: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Set a port to listen to a group, whether it is heard to or not
    #[command(after_help = "Examples:
  causeway mdb add web 239.1.2.3 --port web1
  causeway mdb add web ff0e::7 --port web1 --vlan 10

What is set is kept over restarts and ends with its port.")]
    Add(ListenerArgs),
    /// Have a port no longer listen to a group, set or heard
    Del(ListenerArgs),
}

/// Which listener.
#[derive(Debug, Args)]
pub struct ListenerArgs {
    /// The network
    network: String,
    /// The group, from 224.0.1.0 or ff00:: on
    group: String,
    /// Its port: an endpoint's name, or the port's number
    #[arg(long)]
    port: String,
    /// Its VLAN, where VLANs count [default: the port's PVID]
    #[arg(long, value_name = "VID", allow_negative_numbers = true)]
    vlan: Option<i64>,
}

/// `mdb`
pub(super) async fn mdb(client: &Client, command: MdbCommand) -> anyhow::Result<()> {
    match command {
        MdbCommand::Show { network, json } => show(client, network, json).await,
        MdbCommand::Add(args) => {
            let path = format!("/v1/networks/{}/mdb", escape(&args.network));
            let body = ListenerBody {
                group: args.group,
                port: args.port,
                vlan: args.vlan,
            };
            Ok(client.create(&path, &body).await?)
        }
        MdbCommand::Del(args) => {
            let (network, group, port) = (&args.network, &args.group, &args.port);
            let vlan = args.vlan.map(|vlan| format!("&vlan={vlan}"));
            let path = format!(
                "/v1/networks/{}/mdb?group={}&port={}{}",
                escape(network),
                escape(group),
                escape(port),
                vlan.unwrap_or_default()
            );
            Ok(client.delete(&path).await?)
        }
    }
}

async fn show(client: &Client, network: Option<String>, json: bool) -> anyhow::Result<()> {
    let names = match network {
        Some(name) => vec![name],
        None => {
            let networks: Vec<NetworkView> = client.get("/v1/networks").await?;
            networks.into_iter().map(|network| network.name).collect()
        }
    };
    let mut views: Vec<MdbView> = Vec::new();
    for name in names {
        let path = format!("/v1/networks/{}/mdb", escape(&name));
        views.push(client.get(&path).await?);
    }
    if json {
        return print_json(&views);
    }
    print(&views)
}

fn print(views: &[MdbView]) -> anyhow::Result<()> {
    let timer = |left: Option<u64>| left.map_or_else(String::new, |left| format!("{left} s"));
    let mut rows = Vec::new();
    for view in views {
        rows.extend(view.groups.iter().map(|group| {
            vec![
                view.network.clone(),
                group.port_name.clone(),
                group.group.clone(),
                group.vlan.to_string(),
                group.state.clone(),
                timer(group.left_seconds),
            ]
        }));
    }
    let heading = ["NETWORK", "PORT", "GROUP", "VLAN", "STATE", "TIMER"];
    table::print(&heading, &rows)?;
    let mut out = io::stdout().lock();
    for view in views {
        for router in &view.routers {
            writeln!(
                out,
                "router port on {}{}: {} ({}, {}) {}",
                view.network,
                vlan(router.vlan),
                router.port,
                router.protocol,
                router.state,
                timer(router.left_seconds)
            )?;
        }
        for querier in &view.queriers {
            let place = format!("{}{}", view.network, vlan(querier.vlan));
            writeln!(out, "querier on {place}: {}", told(querier))?;
        }
        let flooded = match (view.snooping.as_str(), view.queriers.is_empty()) {
            ("off", _) => "snooping is off",
            (_, true) => "no querier, see `causeway network set --help`",
            (_, false) => continue,
        };
        writeln!(out, "{}: all multicast is flooded: {flooded}", view.network)?;
    }
    Ok(())
}

fn vlan(vlan: u16) -> String {
    match vlan {
        0 => String::new(),
        vlan => format!(" VLAN {vlan}"),
    }
}

fn told(querier: &QuerierView) -> String {
    let place = match (&querier.port, querier.left_seconds) {
        (Some(port), Some(left)) => format!("behind {port}, for {left} s more"),
        (_, _) => "this switch".to_owned(),
    };
    let waits = if querier.trusted {
        ""
    } else {
        "; its first answers are not in, so all is flooded"
    };
    format!("{} ({}), {place}{waits}", querier.address, querier.protocol)
}
