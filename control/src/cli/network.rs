//! `network`: what is listed of networks, and the removal of those that nobody uses.

use std::io::{self, BufRead, Write};

use clap::Args;

use super::client::Client;
use super::table;
use crate::api::types::{NetworkView, SubnetView};

/// `network prune`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  causeway network prune
  causeway network prune --force      without a question, for scripts")]
pub struct PruneArgs {
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
}

/// Prints networks; the first columns are those of `docker network ls`.
pub(super) fn print(networks: &[NetworkView]) -> io::Result<()> {
    let row = |network: &NetworkView| {
        let subnets = network.subnets.iter();
        let subnets: Vec<&str> = subnets.map(|subnet| subnet.subnet.as_str()).collect();
        vec![
            network.name.clone(),
            driver(network).to_owned(),
            "local".to_owned(),
            subnets.join(","),
            way_outside(network),
            nic_of(network),
            network.mtu.to_string(),
            network.endpoints.len().to_string(),
        ]
    };
    let rows: Vec<_> = networks.iter().map(row).collect();
    let heading = [
        "NAME",
        "DRIVER",
        "SCOPE",
        "SUBNETS",
        "OUTSIDE",
        "NIC",
        "MTU",
        "ENDPOINTS",
    ];
    table::print(&heading, &rows)
}

/// The driver of Docker's that does the like.
fn driver(network: &NetworkView) -> &'static str {
    match network.router.as_str() {
        "lan" => "macvlan",
        _ => "bridge",
    }
}

fn nic_of(network: &NetworkView) -> String {
    let nic = network.nic.as_ref();
    nic.map_or_else(|| "-".to_owned(), |nic| nic.name.clone())
}

/// How a network's packets go outside, for each of its subnets.
fn way_outside(network: &NetworkView) -> String {
    if network.internal {
        return "internal".to_owned();
    }
    if network.router == "lan" {
        return "lan".to_owned();
    }
    let mode = |subnet: &SubnetView| match subnet.subnet.contains(':') {
        true => network.nat6.as_str(),
        false => network.nat4.as_str(),
    };
    let modes: Vec<&str> = network.subnets.iter().map(mode).collect();
    modes.join(",")
}

/// Removes the networks that nobody uses, and says which they were.
pub(super) async fn prune(client: &Client, args: &PruneArgs) -> anyhow::Result<()> {
    if !args.force && !is_agreed()? {
        return Ok(());
    }
    let pruned: Vec<String> = client.post("/v1/prune/networks", &()).await?;
    let mut out = io::stdout().lock();
    for name in pruned {
        writeln!(out, "{name}")?;
    }
    Ok(())
}

fn is_agreed() -> io::Result<bool> {
    eprint!("Networks that no endpoint is on will be removed. Continue? [y/N] ");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str()))
}
