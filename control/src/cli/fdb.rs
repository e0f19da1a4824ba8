//! `fdb`: what networks have learned, and what is set.

use clap::Subcommand;

use super::client::{Client, escape};
use super::{print_json, table};
use crate::api::bridging::{FdbSet, FdbView};
use dataplane_core::fdb::FdbKind;

/// `fdb`
#[derive(Debug, Subcommand)]
pub enum FdbCommand {
    /// Show what a network has learned, and what is set
    #[command(visible_alias = "ls")]
    Show {
        /// The network
        network: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Set an entry, in place of one that is there
    #[command(
        group(clap::ArgGroup::new("state").args(["static", "sticky", "local"])),
        after_help = "Examples:
  causeway fdb add web 02:00:00:00:00:07 --port web1             neither ages nor moves (--static)
  causeway fdb add web 02:00:00:00:00:07 --port web1 --sticky    ages, does not move
  causeway fdb add web 02:00:00:00:00:07 --port web1 --local     the switch's own: to the gateway

Static and local entries are kept over restarts and end with their port."
    )]
    Add {
        /// The network
        network: String,
        /// The station
        mac: String,
        /// Its port: an endpoint's name, or the port's number
        #[arg(long)]
        port: String,
        /// Its VLAN, where VLANs count [default: the port's PVID]
        #[arg(long, value_name = "VID", allow_negative_numbers = true)]
        vlan: Option<i64>,
        /// It neither ages nor moves [default]
        #[arg(long = "static", id = "static")]
        fixed: bool,
        /// It ages and does not move
        #[arg(long)]
        sticky: bool,
        /// It is the switch's own address
        #[arg(long)]
        local: bool,
    },
    /// Remove an entry, learned or set
    Del {
        /// The network
        network: String,
        /// The station
        mac: String,
        /// Only in this VLAN [default: in every one]
        #[arg(long, value_name = "VID", allow_negative_numbers = true)]
        vlan: Option<i64>,
    },
    /// Forget what was learned
    #[command(
        group(clap::ArgGroup::new("which").args(["dynamic", "all"])),
        after_help = "Examples:
  causeway fdb flush web
  causeway fdb flush web --port web1
  causeway fdb flush web --all                                    static and local entries as well"
    )]
    Flush {
        /// The network
        network: String,
        /// Only on this port: an endpoint's name, or the port's number
        #[arg(long)]
        port: Option<String>,
        /// Only in this VLAN
        #[arg(long, value_name = "VID", allow_negative_numbers = true)]
        vlan: Option<i64>,
        /// What was learned, and sticky entries [default]
        #[arg(long)]
        dynamic: bool,
        /// Everything
        #[arg(long)]
        all: bool,
    },
}

/// `fdb`
pub(super) async fn fdb(client: &Client, command: FdbCommand) -> anyhow::Result<()> {
    match command {
        FdbCommand::Show { network, json } => show(client, &network, json).await?,
        FdbCommand::Add {
            network,
            mac,
            port,
            vlan,
            fixed: _,
            sticky,
            local,
        } => {
            let kind = match (sticky, local) {
                (true, _) => FdbKind::Sticky,
                (false, true) => FdbKind::Local,
                (false, false) => FdbKind::Static,
            };
            let state = Some(kind.label().to_owned());
            let body = FdbSet {
                mac,
                port,
                vlan,
                state,
            };
            client.create(&path(&network), &body).await?;
        }
        FdbCommand::Del { network, mac, vlan } => {
            let vlan = vlan.map(|vlan| format!("?vlan={vlan}"));
            let entry = format!("{}/{}", path(&network), escape(&mac));
            client.delete(&(entry + &vlan.unwrap_or_default())).await?;
        }
        FdbCommand::Flush {
            network,
            port,
            vlan,
            dynamic: _,
            all,
        } => {
            let port = port.map(|port| format!("&port={}", escape(&port)));
            let vlan = vlan.map(|vlan| format!("&vlan={vlan}"));
            let (port, vlan) = (port.unwrap_or_default(), vlan.unwrap_or_default());
            let query = format!("?all={all}{port}{vlan}");
            client.delete(&(path(&network) + &query)).await?;
        }
    }
    Ok(())
}

fn path(network: &str) -> String {
    format!("/v1/networks/{}/fdb", escape(network))
}

async fn show(client: &Client, network: &str, json: bool) -> anyhow::Result<()> {
    let entries: Vec<FdbView> = client.get(&path(network)).await?;
    if json {
        return print_json(&entries);
    }
    let row = |entry: &FdbView| {
        vec![
            entry.mac.clone(),
            entry.vlan.to_string(),
            entry.port_name.clone(),
            entry.state.clone(),
            format!("{} s", entry.age_seconds),
            entry.moves.to_string(),
        ]
    };
    let rows: Vec<_> = entries.iter().map(row).collect();
    let heading = ["MAC", "VLAN", "PORT", "STATE", "AGE", "MOVES"];
    Ok(table::print(&heading, &rows)?)
}
