//! `network`: what is listed of networks, and the removal of those that nobody uses.

use std::io::{self, BufRead, Write};

use clap::Args;

use super::client::{Client, escape};
use super::table;
use crate::api::reservations::ReservationBody;
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

/// `network reserve`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  causeway network reserve web 10.88.0.9                   for a machine that the switch does not know
  causeway network reserve web 10.88.0.10 --for db         'db' gets it whenever it is attached
  causeway network reserve web 10.88.0.11 --for 02:42:0a:58:00:0b
  causeway network release web 10.88.0.9")]
pub struct ReserveArgs {
    /// The network
    pub name: String,
    /// The address
    pub ip: String,
    /// The endpoint that alone gets it, by name or MAC [default: none does]
    #[arg(long = "for", value_name = "NAME|MAC")]
    pub holder: Option<String>,
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

/// Keeps an address for an endpoint, or from all.
pub(super) async fn reserve(client: &Client, args: ReserveArgs) -> anyhow::Result<()> {
    let path = format!("/v1/networks/{}/reservations", escape(&args.name));
    let body = ReservationBody {
        ip: args.ip,
        holder: args.holder,
    };
    Ok(client.create(&path, &body).await?)
}

/// Gives a reserved address back.
pub(super) async fn release(client: &Client, name: &str, ip: &str) -> anyhow::Result<()> {
    let (name, ip) = (escape(name), escape(ip));
    let path = format!("/v1/networks/{name}/reservations/{ip}");
    Ok(client.delete(&path).await?)
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
