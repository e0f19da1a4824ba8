//! `mac-nat`: who is behind ports that have one MAC for everybody.

use clap::Subcommand;

use super::client::{Client, escape};
use super::{print_json, table};
use crate::api::mac_nat::{AddressView, MacNatView};

/// What to do with MAC-NAT.
#[derive(Debug, Subcommand)]
pub enum MacNatCommand {
    /// List ports with one MAC, and the stations behind them
    #[command(after_help = "Examples:
  causeway port set lan mac-nat on          all that leaves carries the MAC of lan's device
  causeway mac-nat ls
  causeway mac-nat ls lan --json

An address is known from what its station sends out by the port, for four hours; addresses of
endpoints are known anyway. A port knows 4096.")]
    Ls {
        /// An endpoint's name, or the port's number [default: all]
        port: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// `mac-nat`
pub(super) async fn mac_nat(client: &Client, command: MacNatCommand) -> anyhow::Result<()> {
    let MacNatCommand::Ls { port, json } = command;
    let path = match port {
        Some(port) => format!("/v1/mac-nat/{}", escape(&port)),
        None => "/v1/mac-nat".to_owned(),
    };
    let views: Vec<MacNatView> = client.get(&path).await?;
    if json {
        return print_json(&views);
    }
    let rows: Vec<_> = views.iter().flat_map(rows).collect();
    let heading = ["PORT", "MAC", "ADDRESS", "VLAN", "STATION", "AGE"];
    Ok(table::print(&heading, &rows)?)
}

/// A port with nobody behind it is listed too, by its MAC.
fn rows(view: &MacNatView) -> Vec<Vec<String>> {
    let row = |address: Option<&AddressView>| {
        let (port, mac) = (view.port_name.clone(), view.mac.clone());
        let rest = address.map(|entry| {
            let age = format!("{} s", entry.age_seconds);
            [
                entry.address.clone(),
                entry.vlan.to_string(),
                entry.mac.clone(),
                age,
            ]
        });
        let rest = rest.unwrap_or_else(|| ["-"; 4].map(str::to_owned));
        [port, mac].into_iter().chain(rest).collect()
    };
    match view.addresses.is_empty() {
        true => vec![row(None)],
        false => view.addresses.iter().map(Some).map(row).collect(),
    }
}
