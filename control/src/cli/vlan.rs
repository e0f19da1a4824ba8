//! `vlan`: in which VLANs ports are.

use anyhow::bail;
use clap::{Args, Subcommand, ValueEnum};
use dataplane_core::l2::Form;

use super::client::{Client, escape};
use super::{print_json, table};
use crate::api::vlans::{PortVlansView, VlanAdd, VlanView};
use crate::vlans::{self, Pvid};

/// `vlan`
#[derive(Debug, Subcommand)]
pub enum VlanCommand {
    /// Put a port into VLANs, in place of what was set of them
    #[command(after_help = "Examples:
  causeway vlan add web1 10 pvid untagged      an access port of VLAN 10, beside what it has
  causeway vlan add router1 10-20              a trunk: VLANs 10 to 20, with their tags
  causeway vlan del web1 1                     and no longer in VLAN 1

VLANs count where the network says so: `causeway network set NAME --vlan-filtering on`.
A new port is in VLAN 1, pvid and untagged.")]
    Add {
        /// An endpoint's name, or the port's number
        port: String,
        /// A VLAN from 1 to 4094, or an interval: 10-20
        #[arg(value_name = "VID[-VID]", allow_hyphen_values = true)]
        vlans: String,
        /// pvid: frames without a tag are in it; untagged: frames leave without a tag
        #[arg(value_name = "pvid|untagged")]
        words: Vec<String>,
    },
    /// Take VLANs away from a port
    Del {
        /// An endpoint's name, or the port's number
        port: String,
        /// A VLAN from 1 to 4094, or an interval: 10-20
        #[arg(value_name = "VID[-VID]", allow_hyphen_values = true)]
        vlans: String,
    },
    /// List the VLANs of a port, or of all, as `bridge vlan show`
    #[command(visible_alias = "show")]
    Ls {
        /// An endpoint's name, or the port's number
        port: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// How VLANs are set of a network.
#[derive(Debug, Args)]
pub struct NetworkVlanArgs {
    /// VLANs count: a frame reaches only ports in its own [default: off, tags pass as they are]
    #[arg(long, value_enum, value_name = "on|off", num_args = 0..=1, default_missing_value = "on")]
    pub vlan_filtering: Option<Switch>,
    /// The VLAN that the gateway is in, where they count [default: 1]
    #[arg(long, value_name = "VID", allow_negative_numbers = true)]
    pub gateway_vlan: Option<i64>,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

impl NetworkVlanArgs {
    /// Whether VLANs are to count, if anything is said of it.
    pub fn filtering(&self) -> Option<bool> {
        self.vlan_filtering.map(|switch| switch == Switch::On)
    }
}

/// `vlan`
pub(super) async fn vlan(client: &Client, command: VlanCommand) -> anyhow::Result<()> {
    match command {
        VlanCommand::Add { port, vlans, words } => {
            let Some(membership) = vlans::membership(words.iter().map(String::as_str)) else {
                bail!(
                    "'{}' is not what a VLAN can be; write pvid, untagged, both or none",
                    words.join(" ")
                );
            };
            let body = VlanAdd {
                vlans,
                pvid: membership.pvid == Pvid::This,
                untagged: membership.form == Form::Untagged,
            };
            let path = format!("/v1/ports/{}/vlans", escape(&port));
            let view: PortVlansView = client.post(&path, &body).await?;
            if !view.filtering {
                let network = view.network;
                eprintln!(
                    "causeway: kept, and without effect as yet: VLANs do not count in network \
                     '{network}'; `causeway network set {network} --vlan-filtering on` lets them"
                );
            }
        }
        VlanCommand::Del { port, vlans } => {
            let path = format!("/v1/ports/{}/vlans/{}", escape(&port), escape(&vlans));
            client.delete(&path).await?;
        }
        VlanCommand::Ls { port, json } => list(client, port, json).await?,
    }
    Ok(())
}

async fn list(client: &Client, port: Option<String>, json: bool) -> anyhow::Result<()> {
    let query = port.map(|port| format!("?port={}", escape(&port)));
    let path = format!("/v1/vlans{}", query.unwrap_or_default());
    let ports: Vec<PortVlansView> = client.get(&path).await?;
    if json {
        return print_json(&ports);
    }
    let mut rows = Vec::new();
    for port in &ports {
        // As `bridge vlan show`: a port is named once, and one without VLANs has none to show.
        let mut name = port.name.clone();
        let lines = port.vlans.iter().map(line);
        let none = port.vlans.is_empty().then(|| "None".to_owned());
        for line in lines.chain(none) {
            rows.push(vec![std::mem::take(&mut name), line]);
        }
    }
    Ok(table::print(&["PORT", "VLAN-ID"], &rows)?)
}

fn line(view: &VlanView) -> String {
    let last = view.vlan_end.unwrap_or(view.vlan);
    let mut words = vec![vlans::span_text(&(view.vlan..=last))];
    words.extend(view.flags.iter().cloned());
    words.join(" ")
}
