//! `fdb`: what networks have learned, and what is set.

use super::args::FdbCommand;
use super::client::{Client, escape};
use super::{print_json, table};
use crate::api::bridging::{FdbSet, FdbView};
use dataplane_core::fdb::FdbKind;

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
